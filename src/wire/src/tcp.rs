//! NVMe/TCP PDUs (NVMe/TCP Transport 1.0 §3.6): framing and its validation, and typed headers.
//!
//! A receiver reads 8 bytes, asks [`Frame::parse`] how the PDU is laid out (or why the connection
//! must end), waits for [`Frame::header_len`] bytes, checks the header digest, and then knows where
//! the data lies. A sender appends a whole header, digest and padding included, with one of the
//! `put_*` functions, and the data and its digest after it.

pub use crate::tcp::digest::{DIGEST_LEN, Digest, data_digest, header_digest};
pub use crate::tcp::frame::{Direction, Frame};
pub use crate::tcp::init::{IC_LEN, IcReq, IcResp};
pub use crate::tcp::pdu::{
    DataPdu, c2h_data, capsule_resp, put_c2h_data, put_capsule_cmd, put_capsule_resp, put_h2c_data,
    put_r2t,
};
pub use crate::tcp::term::{TERM_HEADER_MAX, TERM_LEN_MAX, TermReq, put_term_req};

mod digest;
mod frame;
mod init;
mod pdu;
mod term;

/// Length of the common header in bytes.
pub const COMMON_LEN: usize = 8;
/// Header length of a command capsule in bytes.
pub const CAPSULE_CMD_HLEN: usize = 72;
/// Header length of every other PDU after initialization in bytes.
pub const SHORT_HLEN: usize = 24;
/// Smallest MAXH2CDATA that may be stated (§3.6.2.3).
pub const MAXH2CDATA_MIN: u32 = 4096;

/// Flag: a header digest follows the header.
pub const FLAG_HDGST: u8 = 1;
/// Flag: a data digest follows the data.
pub const FLAG_DDGST: u8 = 2;
/// Flag of H2CData and C2HData: the last PDU of the transfer.
pub const FLAG_LAST: u8 = 4;
/// Flag of C2HData: the command completed well and no response capsule follows.
pub const FLAG_SUCCESS: u8 = 8;

/// The PDU types (§3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PduKind {
    /// Initialize connection request.
    IcReq,
    /// Initialize connection response.
    IcResp,
    /// Host to controller terminate connection request.
    H2cTermReq,
    /// Controller to host terminate connection request.
    C2hTermReq,
    /// Command capsule.
    CapsuleCmd,
    /// Response capsule.
    CapsuleResp,
    /// Host to controller data.
    H2cData,
    /// Controller to host data.
    C2hData,
    /// Ready to transfer.
    R2t,
}

impl PduKind {
    /// The type byte.
    #[inline]
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::IcReq => 0x00,
            Self::IcResp => 0x01,
            Self::H2cTermReq => 0x02,
            Self::C2hTermReq => 0x03,
            Self::CapsuleCmd => 0x04,
            Self::CapsuleResp => 0x05,
            Self::H2cData => 0x06,
            Self::C2hData => 0x07,
            Self::R2t => 0x09,
        }
    }

    /// From the type byte; `None` for a reserved one.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 => Some(Self::IcReq),
            0x01 => Some(Self::IcResp),
            0x02 => Some(Self::H2cTermReq),
            0x03 => Some(Self::C2hTermReq),
            0x04 => Some(Self::CapsuleCmd),
            0x05 => Some(Self::CapsuleResp),
            0x06 => Some(Self::H2cData),
            0x07 => Some(Self::C2hData),
            0x09 => Some(Self::R2t),
            _ => None,
        }
    }

    /// The only right header length in bytes.
    #[inline]
    #[must_use]
    pub const fn hlen(self) -> usize {
        match self {
            Self::IcReq | Self::IcResp => IC_LEN,
            Self::CapsuleCmd => CAPSULE_CMD_HLEN,
            _ => SHORT_HLEN,
        }
    }
}

/// Fatal error status: why a connection ends (§3.6.2.4 and §3.6.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fes {
    /// A field of a PDU header is invalid.
    InvalidHeaderField,
    /// A PDU came out of sequence.
    Sequence,
    /// The header digest is wrong.
    HeaderDigest,
    /// Data outside the range asked for.
    OutOfRange,
    /// A limit was exceeded (R2T limit or data transfer limit).
    LimitExceeded,
    /// An unsupported parameter.
    UnsupportedParameter,
    /// A reserved value.
    Reserved(u16),
}

impl Fes {
    /// The value in the PDU.
    #[must_use]
    pub const fn encode(self) -> u16 {
        match self {
            Self::InvalidHeaderField => 1,
            Self::Sequence => 2,
            Self::HeaderDigest => 3,
            Self::OutOfRange => 4,
            Self::LimitExceeded => 5,
            Self::UnsupportedParameter => 6,
            Self::Reserved(value) => value,
        }
    }

    /// From the value in the PDU.
    #[must_use]
    pub const fn decode(value: u16) -> Self {
        match value {
            1 => Self::InvalidHeaderField,
            2 => Self::Sequence,
            3 => Self::HeaderDigest,
            4 => Self::OutOfRange,
            5 => Self::LimitExceeded,
            6 => Self::UnsupportedParameter,
            value => Self::Reserved(value),
        }
    }
}

/// Why a connection must end: what a terminate request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// The status.
    pub fes: Fes,
    /// Information: the offset of the field, or the digest received.
    pub fei: u32,
}

impl Fatal {
    /// The field at `offset` of the header is invalid.
    #[must_use]
    pub const fn field(offset: u32) -> Self {
        Self { fes: Fes::InvalidHeaderField, fei: offset }
    }

    /// The PDU does not belong here.
    #[must_use]
    pub const fn sequence() -> Self {
        Self { fes: Fes::Sequence, fei: 0 }
    }

    /// The data lies outside what was asked for.
    #[must_use]
    pub const fn out_of_range() -> Self {
        Self { fes: Fes::OutOfRange, fei: 0 }
    }
}

impl core::fmt::Display for Fatal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.fes {
            Fes::InvalidHeaderField => write!(f, "invalid PDU header field at byte {}", self.fei),
            Fes::Sequence => f.write_str("PDU out of sequence"),
            Fes::HeaderDigest => write!(f, "wrong header digest {:#010x}", self.fei),
            Fes::OutOfRange => f.write_str("data transfer out of range"),
            Fes::LimitExceeded => f.write_str("transfer limit exceeded"),
            Fes::UnsupportedParameter => write!(f, "unsupported parameter at byte {}", self.fei),
            Fes::Reserved(fes) => write!(f, "fatal error status {fes:#x}"),
        }
    }
}

impl core::error::Error for Fatal {}

/// Which digests a connection uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Header digests.
    pub header: bool,
    /// Data digests.
    pub data: bool,
}

impl Digests {
    const fn encode(self) -> u8 {
        match (self.header, self.data) {
            (false, false) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (true, true) => 3,
        }
    }

    const fn decode(byte: u8) -> Self {
        Self { header: byte & 1 != 0, data: byte & 2 != 0 }
    }

    /// Bytes of a header digest on this connection.
    #[inline]
    #[must_use]
    pub const fn header_len(self) -> usize {
        if self.header { DIGEST_LEN } else { 0 }
    }

    /// Bytes of a data digest on this connection.
    #[inline]
    #[must_use]
    pub const fn data_len(self) -> usize {
        if self.data { DIGEST_LEN } else { 0 }
    }
}

/// Where data begins, for an alignment in dwords, zero-based (CPDA or HPDA).
#[inline]
#[must_use]
pub const fn data_offset(kind: PduKind, digests: Digests, pda: u8) -> usize {
    let end = kind.hlen() + digests.header_len();
    if pda == 0 {
        // Headers and digests are whole dwords.
        return end;
    }
    let unit = (pda as usize + 1) * 4;
    end.div_ceil(unit) * unit
}

#[cfg(test)]
mod tests;
