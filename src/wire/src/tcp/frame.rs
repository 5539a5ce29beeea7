//! Framing: from the 8-byte common header to where everything lies.

use super::digest::check_header;
use super::{COMMON_LEN, DIGEST_LEN, Digests, Fatal, PduKind, TERM_LEN_MAX, data_offset};
use super::{FLAG_DDGST, FLAG_HDGST};
use crate::field::{array, get32};

/// Who receives the PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The controller (from the host).
    ToController,
    /// The host (from the controller).
    ToHost,
}

/// How a PDU is laid out, all lengths in bytes and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The type.
    pub kind: PduKind,
    /// The flags byte.
    pub flags: u8,
    /// Whether a header digest is there.
    pub hdgst: bool,
    /// Where the data begins; the end of header and digest where there is none.
    pub data_at: usize,
    /// Bytes of data, without digest.
    pub data_len: usize,
    /// Whether a data digest is there.
    pub ddgst: bool,
    /// The whole PDU (PLEN).
    pub total: usize,
}

impl Frame {
    /// Judges a common header on a connection with `digests`, whose receiver asked for data
    /// alignment `pda` (dwords, zero-based), and that accepts at most `data_max` bytes of data.
    ///
    /// # Errors
    /// An unknown type, a type of the other direction, or a wrong flag, HLEN, PDO or PLEN, with the
    /// offset of the field.
    #[inline]
    pub fn parse(
        raw: &[u8; COMMON_LEN],
        direction: Direction,
        digests: Digests,
        pda: u8,
        data_max: u32,
    ) -> Result<Self, Fatal> {
        let kind = PduKind::from_byte(raw[0]).ok_or(Fatal::field(0))?;
        if !travels(kind, direction) {
            return Err(Fatal::field(0));
        }
        let hlen = kind.hlen();
        if usize::from(raw[2]) != hlen {
            return Err(Fatal::field(2));
        }
        let flags = raw[1];
        let total = usize::try_from(get32(raw, 4)).map_err(|_| Fatal::field(4))?;
        let bare =
            Self { kind, flags, hdgst: false, data_at: hlen, data_len: 0, ddgst: false, total };
        match kind {
            PduKind::IcReq | PduKind::IcResp if total == hlen => Ok(bare),
            PduKind::H2cTermReq | PduKind::C2hTermReq if (hlen..=TERM_LEN_MAX).contains(&total) => {
                Ok(Self { data_len: total - hlen, ..bare })
            }
            PduKind::IcReq | PduKind::IcResp | PduKind::H2cTermReq | PduKind::C2hTermReq => {
                Err(Fatal::field(4))
            }
            _ => bare.with_digests(raw[3], digests, pda, data_max),
        }
    }

    /// The part for PDUs that carry digests and, some of them, data.
    fn with_digests(
        self,
        pdo: u8,
        digests: Digests,
        pda: u8,
        data_max: u32,
    ) -> Result<Self, Fatal> {
        if (self.flags & FLAG_HDGST != 0) != digests.header {
            return Err(Fatal::field(1));
        }
        let header_end = self.kind.hlen() + digests.header_len();
        let carries =
            matches!(self.kind, PduKind::CapsuleCmd | PduKind::H2cData | PduKind::C2hData);
        let optional = self.kind == PduKind::CapsuleCmd;
        if self.total == header_end && (optional || !carries) {
            let hdgst = digests.header;
            return Ok(Self { hdgst, data_at: header_end, ..self });
        }
        if !carries {
            return Err(Fatal::field(4));
        }
        if (self.flags & FLAG_DDGST != 0) != digests.data {
            return Err(Fatal::field(1));
        }
        let data_at = data_offset(self.kind, digests, pda);
        if usize::from(pdo) != data_at {
            return Err(Fatal::field(3));
        }
        // PLEN must leave room for at least one byte of data after header, padding and digests.
        let data_len = self.total.checked_sub(data_at + digests.data_len());
        match data_len.filter(|len| *len > 0).map(|len| (len, u32::try_from(len))) {
            Some((data_len, Ok(len))) if len <= data_max => {
                Ok(Self { hdgst: digests.header, data_at, data_len, ddgst: digests.data, ..self })
            }
            _ => Err(Fatal::field(4)),
        }
    }

    /// Bytes to wait for before the header can be read: header and its digest.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.kind.hlen() + if self.hdgst { DIGEST_LEN } else { 0 }
    }

    /// Checks the header digest of a PDU that starts at `pdu[0]`, if there is one.
    ///
    /// # Errors
    /// A wrong digest, or fewer bytes than [`Frame::header_len`].
    #[inline]
    pub fn check_header(&self, pdu: &[u8]) -> Result<(), Fatal> {
        if !self.hdgst {
            return Ok(());
        }
        let (header, rest) = pdu.split_at_checked(self.kind.hlen()).ok_or(Fatal::field(2))?;
        let (received, _) = rest.split_at_checked(DIGEST_LEN).ok_or(Fatal::field(2))?;
        check_header(header, array(received, 0))
    }
}

/// Whether a PDU type travels in this direction.
const fn travels(kind: PduKind, direction: Direction) -> bool {
    match kind {
        PduKind::IcReq | PduKind::H2cTermReq | PduKind::CapsuleCmd | PduKind::H2cData => {
            matches!(direction, Direction::ToController)
        }
        PduKind::IcResp
        | PduKind::C2hTermReq
        | PduKind::CapsuleResp
        | PduKind::C2hData
        | PduKind::R2t => matches!(direction, Direction::ToHost),
    }
}
