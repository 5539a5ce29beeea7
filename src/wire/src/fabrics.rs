//! Fabrics commands (NVMe Base 2.0 §6): Connect, Property Get and Set, Disconnect.

use crate::field::{array, get16, get32, get64, put_bytes, put16, put32, put64};
use crate::nqn::{NQN_FIELD_LEN, Nqn, NqnError};
use crate::sqe::{Sqe, admin};

/// Fabrics command types (byte 4 of the command).
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTH_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTH_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// Length of Connect data in bytes.
pub const CONNECT_DATA_LEN: usize = 1024;
/// The controller identifier that asks for any controller (dynamic model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// Largest controller identifier that may be given out.
pub const CNTLID_MAX: u16 = 0xffef;
/// Offset of KATO in Connect, for "invalid parameter" results.
pub const CONNECT_KATO_AT: u16 = 48;
/// Offset of QID in Connect.
pub const CONNECT_QID_AT: u16 = 42;
/// Offset of SQSIZE in Connect.
pub const CONNECT_SQSIZE_AT: u16 = 44;
/// Offset of CNTLID in Connect data.
pub const CONNECT_DATA_CNTLID_AT: u16 = 16;
/// Offset of the subsystem's name in Connect data.
pub const CONNECT_DATA_SUBNQN_AT: u16 = 256;
/// Offset of the host's name in Connect data.
pub const CONNECT_DATA_HOSTNQN_AT: u16 = 512;
/// Offset of the host identifier in Connect data.
pub const CONNECT_DATA_HOSTID_AT: u16 = 0;

/// CATTR bit 2: SQ flow control is off (§6.3).
const CATTR_NO_SQ_FLOW: u8 = 1 << 2;

/// Connect (§6.3), without its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// Record format: 0.
    pub recfmt: u16,
    /// Queue identifier: 0 is the admin queue.
    pub qid: u16,
    /// Submission queue size, zero-based.
    pub sqsize: u16,
    /// Whether SQ flow control is switched off.
    pub no_sq_flow: bool,
    /// Keep-alive timeout in milliseconds; 0 is none. Admin queue only.
    pub kato: u32,
}

impl Connect {
    /// From the command.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Self {
        let raw = sqe.as_bytes();
        Self {
            recfmt: get16(raw, 40),
            qid: get16(raw, 42),
            sqsize: get16(raw, 44),
            no_sq_flow: raw[46] & CATTR_NO_SQ_FLOW != 0,
            kato: get32(raw, 48),
        }
    }

    /// As a command; the caller sets the SGL.
    #[must_use]
    pub fn encode(&self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(admin::FABRICS, cid, u32::from(fctype::CONNECT));
        let raw = sqe.raw_mut();
        put16(raw, 40, self.recfmt);
        put16(raw, 42, self.qid);
        put16(raw, 44, self.sqsize);
        raw[46] = if self.no_sq_flow { CATTR_NO_SQ_FLOW } else { 0 };
        put32(raw, 48, self.kato);
        sqe
    }
}

/// Connect data (§6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller identifier: FFFFh asks for any.
    pub cntlid: u16,
    /// Subsystem name.
    pub subnqn: Nqn,
    /// Host name.
    pub hostnqn: Nqn,
}

/// Which name in Connect data is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectDataError {
    /// The subsystem's.
    Subnqn(NqnError),
    /// The host's.
    Hostnqn(NqnError),
}

impl core::fmt::Display for ConnectDataError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Subnqn(error) => write!(f, "subsystem NQN: {error}"),
            Self::Hostnqn(error) => write!(f, "host NQN: {error}"),
        }
    }
}

impl core::error::Error for ConnectDataError {}

impl ConnectDataError {
    /// The result of the refusal: offset of the parameter, bit 16 "in the data" (§6.3).
    #[must_use]
    pub const fn result(&self) -> u32 {
        invalid_in_data(match self {
            Self::Subnqn(_) => CONNECT_DATA_SUBNQN_AT,
            Self::Hostnqn(_) => CONNECT_DATA_HOSTNQN_AT,
        })
    }
}

impl ConnectData {
    /// From the 1024 bytes.
    ///
    /// # Errors
    /// Where a name is empty, not terminated, too long or not text.
    pub fn decode(raw: &[u8; CONNECT_DATA_LEN]) -> Result<Self, ConnectDataError> {
        let subnqn: [u8; NQN_FIELD_LEN] = array(raw, usize::from(CONNECT_DATA_SUBNQN_AT));
        let hostnqn: [u8; NQN_FIELD_LEN] = array(raw, usize::from(CONNECT_DATA_HOSTNQN_AT));
        Ok(Self {
            hostid: array(raw, 0),
            cntlid: get16(raw, 16),
            subnqn: Nqn::from_field(&subnqn).map_err(ConnectDataError::Subnqn)?,
            hostnqn: Nqn::from_field(&hostnqn).map_err(ConnectDataError::Hostnqn)?,
        })
    }

    /// The 1024 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; CONNECT_DATA_LEN] {
        let mut raw = [0; CONNECT_DATA_LEN];
        put_bytes(&mut raw, 0, &self.hostid);
        put16(&mut raw, 16, self.cntlid);
        put_bytes(&mut raw, usize::from(CONNECT_DATA_SUBNQN_AT), &self.subnqn.to_field());
        put_bytes(&mut raw, usize::from(CONNECT_DATA_HOSTNQN_AT), &self.hostnqn.to_field());
        raw
    }
}

/// The result of "Connect Invalid Parameters" for a field of the command.
#[must_use]
pub const fn invalid_in_command(offset: u16) -> u32 {
    let raw = offset.to_le_bytes();
    u32::from_le_bytes([raw[0], raw[1], 0, 0])
}

/// The result of "Connect Invalid Parameters" for a field of the data.
#[must_use]
pub const fn invalid_in_data(offset: u16) -> u32 {
    invalid_in_command(offset) | 1 << 16
}

/// Property Get (§6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyGet {
    /// Whether 8 bytes are asked for, else 4.
    pub wide: bool,
    /// Offset of the property.
    pub offset: u32,
}

impl PropertyGet {
    /// From the command; `None` for a reserved size.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Option<Self> {
        Some(Self { wide: wide(sqe)?, offset: get32(sqe.as_bytes(), 44) })
    }

    /// As a command.
    #[must_use]
    pub fn encode(&self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(admin::FABRICS, cid, u32::from(fctype::PROPERTY_GET));
        let raw = sqe.raw_mut();
        raw[40] = u8::from(self.wide);
        put32(raw, 44, self.offset);
        sqe
    }
}

/// Property Set (§6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertySet {
    /// Whether 8 bytes are written, else 4.
    pub wide: bool,
    /// Offset of the property.
    pub offset: u32,
    /// The value; the upper half is reserved where 4 bytes are written.
    pub value: u64,
}

impl PropertySet {
    /// From the command; `None` for a reserved size.
    #[must_use]
    pub fn decode(sqe: &Sqe) -> Option<Self> {
        let raw = sqe.as_bytes();
        Some(Self { wide: wide(sqe)?, offset: get32(raw, 44), value: get64(raw, 48) })
    }

    /// As a command.
    #[must_use]
    pub fn encode(&self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(admin::FABRICS, cid, u32::from(fctype::PROPERTY_SET));
        let raw = sqe.raw_mut();
        raw[40] = u8::from(self.wide);
        put32(raw, 44, self.offset);
        put64(raw, 48, self.value);
        sqe
    }
}

/// ATTRIB bits 2:0: 0 is 4 bytes, 1 is 8 bytes.
fn wide(sqe: &Sqe) -> Option<bool> {
    match sqe.as_bytes()[40] & 7 {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Disconnect (§6.4), which deletes the I/O queue that it arrives on.
#[must_use]
pub fn disconnect(cid: u16) -> Sqe {
    Sqe::new(admin::FABRICS, cid, u32::from(fctype::DISCONNECT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base_2_0_6_3_connect_as_linux_sends_it() {
        let connect =
            Connect { qid: 1, sqsize: 127, no_sq_flow: true, kato: 5000, ..Connect::default() };
        let sqe = connect.encode(0x55aa);
        let mut golden = [0u8; 64];
        golden[..5].copy_from_slice(&[0x7f, 0x40, 0xaa, 0x55, 0x01]);
        golden[42] = 1;
        golden[44] = 127;
        golden[46] = 4;
        golden[48..50].copy_from_slice(&[0x88, 0x13]);
        assert_eq!(sqe.as_bytes(), &golden);
        assert_eq!(Connect::decode(&sqe), connect);
        assert_eq!(sqe.fctype(), fctype::CONNECT);
    }

    #[test]
    fn base_2_0_6_3_connect_data() {
        let data = ConnectData {
            hostid: [7; 16],
            cntlid: CNTLID_DYNAMIC,
            subnqn: "nqn.2026-01.io.forebay:v".parse().unwrap(),
            hostnqn: "nqn.2014-08.org.nvmexpress:uuid:1".parse().unwrap(),
        };
        let mut raw = data.encode();
        assert_eq!(raw[16..18], [0xff, 0xff]);
        assert_eq!(&raw[256..260], b"nqn.");
        assert_eq!(&raw[512..516], b"nqn.");
        assert_eq!(ConnectData::decode(&raw), Ok(data));
        raw[512..768].fill(b'x');
        let error = ConnectData::decode(&raw).unwrap_err();
        assert_eq!(error, ConnectDataError::Hostnqn(NqnError::TooLong));
        assert_eq!(error.result(), 0x0001_0200);
    }

    #[test]
    fn base_2_0_6_5_and_6_6_properties() {
        let get = PropertyGet { wide: true, offset: 0 };
        assert_eq!(PropertyGet::decode(&get.encode(1)), Some(get));
        let set = PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 };
        let sqe = set.encode(2);
        assert_eq!(sqe.as_bytes()[40..52], [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0]);
        assert_eq!(PropertySet::decode(&sqe), Some(set));
        assert_eq!(PropertySet::decode(&sqe.with_cdw(10, 2)), None);
        assert_eq!(disconnect(3).fctype(), 8);
    }

    proptest! {
        #[test]
        fn any_bytes_decode(raw in proptest::collection::vec(any::<u8>(), 1024)) {
            let mut data = [0; 1024];
            data.copy_from_slice(&raw);
            if let Ok(parsed) = ConnectData::decode(&data) {
                prop_assert_eq!(ConnectData::decode(&parsed.encode()), Ok(parsed));
            }
            let sqe = Sqe::from_bytes(&array(&raw, 0));
            let connect = Connect::decode(&sqe);
            prop_assert_eq!(Connect::decode(&connect.encode(0)), connect);
            if let Some(set) = PropertySet::decode(&sqe) {
                prop_assert_eq!(PropertySet::decode(&set.encode(0)), Some(set));
            }
        }
    }
}
