//! Capsules, data and R2T (NVMe/TCP Transport 1.0 §3.6.2.6 to §3.6.2.10).

use super::{Digests, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, FLAG_SUCCESS};
use super::{PduKind, SHORT_HLEN, data_offset, header_digest};
use crate::cqe::Cqe;
use crate::field::{get16, get32, put16, put32};
use crate::sqe::Sqe;

/// What H2CData, C2HData and R2T say after the common header: the same layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataPdu {
    /// The command's identifier (CCCID).
    pub cid: u16,
    /// The transfer tag (reserved in C2HData).
    pub ttag: u16,
    /// First byte in the command's data (DATAO, R2TO).
    pub offset: u32,
    /// Bytes (DATAL, R2TL).
    pub len: u32,
}

impl DataPdu {
    /// From the 24 header bytes.
    #[must_use]
    pub fn decode(raw: &[u8; SHORT_HLEN]) -> Self {
        Self {
            cid: get16(raw, 8),
            ttag: get16(raw, 10),
            offset: get32(raw, 12),
            len: get32(raw, 16),
        }
    }

    #[inline]
    fn header(&self, kind: PduKind, flags: u8, pdo: u8, plen: u32) -> [u8; SHORT_HLEN] {
        let mut raw = [0; SHORT_HLEN];
        raw[0] = kind.byte();
        raw[1] = flags;
        raw[2] = 24;
        raw[3] = pdo;
        put32(&mut raw, 4, plen);
        put16(&mut raw, 8, self.cid);
        put16(&mut raw, 10, self.ttag);
        put32(&mut raw, 12, self.offset);
        put32(&mut raw, 16, self.len);
        raw
    }
}

/// A length that is known to be small, as the wire wants it.
#[inline]
fn small(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Flags, PDO and PLEN of a PDU with data; PLEN saturates (callers keep data below 4 GiB).
#[inline]
fn layout(kind: PduKind, digests: Digests, pda: u8, data_len: u32) -> (u8, u8, u32) {
    let at = data_offset(kind, digests, pda);
    let flags =
        if digests.header { FLAG_HDGST } else { 0 } | if digests.data { FLAG_DDGST } else { 0 };
    let plen = small(at + digests.data_len()).saturating_add(data_len);
    (flags, u8::try_from(at).unwrap_or(u8::MAX), plen)
}

#[inline]
fn put_header(out: &mut Vec<u8>, header: &[u8], digests: Digests) {
    out.extend_from_slice(header);
    if digests.header {
        out.extend_from_slice(&header_digest(header));
    }
}

/// Padding from the end of header and digest to the data.
fn put_padding(out: &mut Vec<u8>, kind: PduKind, digests: Digests, pda: u8) {
    let gap = data_offset(kind, digests, pda) - kind.hlen() - digests.header_len();
    if gap > 0 {
        out.resize(out.len() + gap, 0);
    }
}

/// Appends the header of a command capsule, for `data_len` bytes of in-capsule data (0 for none)
/// at a controller with alignment `cpda`; data and its digest follow.
pub fn put_capsule_cmd(out: &mut Vec<u8>, sqe: &Sqe, data_len: u32, digests: Digests, cpda: u8) {
    let kind = PduKind::CapsuleCmd;
    let mut raw = [0; super::CAPSULE_CMD_HLEN];
    raw[0] = kind.byte();
    raw[2] = 72;
    if data_len == 0 {
        raw[1] = if digests.header { FLAG_HDGST } else { 0 };
        put32(&mut raw, 4, small(72 + digests.header_len()));
    } else {
        let (flags, pdo, plen) = layout(kind, digests, cpda, data_len);
        (raw[1], raw[3]) = (flags, pdo);
        put32(&mut raw, 4, plen);
    }
    raw[8..].copy_from_slice(sqe.as_bytes());
    put_header(out, &raw, digests);
    if data_len != 0 {
        put_padding(out, kind, digests, cpda);
    }
}

/// A response capsule, without the header digest.
#[inline]
#[must_use]
pub fn capsule_resp(cqe: &Cqe, digests: Digests) -> [u8; SHORT_HLEN] {
    let mut raw = [0; SHORT_HLEN];
    raw[0] = PduKind::CapsuleResp.byte();
    raw[1] = if digests.header { FLAG_HDGST } else { 0 };
    raw[2] = 24;
    raw[4] = if digests.header { 28 } else { 24 };
    raw[8..].copy_from_slice(&cqe.encode());
    raw
}

/// Appends a response capsule.
pub fn put_capsule_resp(out: &mut Vec<u8>, cqe: &Cqe, digests: Digests) {
    put_header(out, &capsule_resp(cqe, digests), digests);
}

/// The header of C2HData, without digest and padding. `success` says that no response capsule
/// follows, and requires `last`.
#[inline]
#[must_use]
pub fn c2h_data(
    pdu: &DataPdu,
    last: bool,
    success: bool,
    digests: Digests,
    hpda: u8,
) -> [u8; SHORT_HLEN] {
    let (mut flags, pdo, plen) = layout(PduKind::C2hData, digests, hpda, pdu.len);
    if last {
        flags |= if success { FLAG_LAST | FLAG_SUCCESS } else { FLAG_LAST };
    }
    pdu.header(PduKind::C2hData, flags, pdo, plen)
}

/// Appends the header of C2HData for a host with alignment `hpda`; data and its digest follow.
/// `success` says that no response capsule follows, and requires `last`.
pub fn put_c2h_data(
    out: &mut Vec<u8>,
    pdu: &DataPdu,
    last: bool,
    success: bool,
    digests: Digests,
    hpda: u8,
) {
    put_header(out, &c2h_data(pdu, last, success, digests, hpda), digests);
    put_padding(out, PduKind::C2hData, digests, hpda);
}

/// Appends the header of H2CData for a controller with alignment `cpda`; data and digest follow.
pub fn put_h2c_data(out: &mut Vec<u8>, pdu: &DataPdu, last: bool, digests: Digests, cpda: u8) {
    let (mut flags, pdo, plen) = layout(PduKind::H2cData, digests, cpda, pdu.len);
    if last {
        flags |= FLAG_LAST;
    }
    put_header(out, &pdu.header(PduKind::H2cData, flags, pdo, plen), digests);
    put_padding(out, PduKind::H2cData, digests, cpda);
}

/// Appends an R2T.
pub fn put_r2t(out: &mut Vec<u8>, pdu: &DataPdu, digests: Digests) {
    let flags = if digests.header { FLAG_HDGST } else { 0 };
    let plen = small(SHORT_HLEN + digests.header_len());
    put_header(out, &pdu.header(PduKind::R2t, flags, 0, plen), digests);
}
