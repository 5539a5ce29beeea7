//! Terminate connection requests (NVMe/TCP Transport 1.0 §3.6.2.4 and §3.6.2.5).

use super::{Direction, Fatal, Fes, PduKind, SHORT_HLEN};
use crate::field::{get16, get32, put16, put32};

/// Most bytes of the offending PDU's header that are sent back.
pub const TERM_HEADER_MAX: usize = 128;
/// Longest terminate request in bytes.
pub const TERM_LEN_MAX: usize = SHORT_HLEN + TERM_HEADER_MAX;

/// A terminate request: why the other side ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermReq {
    /// The reason.
    pub fatal: Fatal,
}

impl TermReq {
    /// From the 24 header bytes. FEI lies at byte 10 and is not aligned.
    #[must_use]
    pub fn decode(raw: &[u8; SHORT_HLEN]) -> Self {
        Self { fatal: Fatal { fes: Fes::decode(get16(raw, 8)), fei: get32(raw, 10) } }
    }
}

/// Appends a terminate request to the peer in `direction`, with the start of the offending PDU.
pub fn put_term_req(out: &mut Vec<u8>, direction: Direction, fatal: Fatal, offending: &[u8]) {
    let offending = &offending[..offending.len().min(TERM_HEADER_MAX)];
    let mut raw = [0; SHORT_HLEN];
    raw[0] = match direction {
        Direction::ToController => PduKind::H2cTermReq.byte(),
        Direction::ToHost => PduKind::C2hTermReq.byte(),
    };
    raw[2] = 24;
    put32(&mut raw, 4, u32::try_from(SHORT_HLEN + offending.len()).unwrap_or(u32::MAX));
    put16(&mut raw, 8, fatal.fes.encode());
    put32(&mut raw, 10, fatal.fei);
    out.extend_from_slice(&raw);
    out.extend_from_slice(offending);
}
