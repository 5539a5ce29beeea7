//! Inputs for connections: a list of chunks, each with a byte that says what to do with it.
//!
//! ```text
//! byte 0: flags: bits 0–1 the connection, others see below and at the target
//! byte 1–2: bits 0–11 how many bytes follow (cut where the input ends), bits 12–15 how many zeros
//!           after them: 2^n, none for 0; little-endian
//! then the bytes
//! ```
//! Zeros keep conversations short: Identify data is hardly anything else.

use forebay_wire::tcp::{Digests, PduKind, data_digest, header_digest};

/// The connection of a chunk.
pub(crate) const CONN: u8 = 0x03;
/// The chunk is one PDU: make its length and its digests right, so that what is inside is reached.
pub(crate) const WHOLE: u8 = 0x04;
/// Hand the chunk over in two parts.
pub(crate) const SPLIT: u8 = 0x08;
/// Let time pass before it.
pub(crate) const WAIT: u8 = 0x10;

/// What is to be done with some bytes.
pub(crate) struct Chunk {
    pub(crate) flags: u8,
    pub(crate) bytes: Vec<u8>,
}

impl Chunk {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The bytes, in the parts in which they are to arrive.
    pub(crate) fn parts(&self, digests: Digests) -> [Vec<u8>; 2] {
        let mut bytes = self.bytes.clone();
        if self.has(WHOLE) {
            make_whole(&mut bytes, digests);
        }
        let cut = if self.has(SPLIT) { bytes.len() * 2 / 3 } else { bytes.len() };
        let rest = bytes.split_off(cut);
        [bytes, rest]
    }
}

const LEN_MAX: usize = 0xfff;

/// The chunks of an input.
pub(crate) fn chunks(mut input: &[u8]) -> impl Iterator<Item = Chunk> {
    core::iter::from_fn(move || {
        let ([flags, a, b], rest) = input.split_first_chunk()?;
        let word = u16::from_le_bytes([*a, *b]);
        let len = (usize::from(word) & LEN_MAX).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        input = rest;
        let zeros = if word >> 12 == 0 { 0 } else { 1 << (word >> 12) };
        let mut bytes = bytes.to_vec();
        bytes.resize(len + zeros, 0);
        Some(Chunk { flags: *flags, bytes })
    })
}

/// Appends bytes to an input, as as many chunks as it takes.
pub(crate) fn put(out: &mut Vec<u8>, flags: u8, mut bytes: &[u8]) {
    loop {
        let from = bytes.windows(16).position(|run| run == [0; 16]).unwrap_or(bytes.len());
        let from = from.min(LEN_MAX);
        let zeros = bytes[from..].iter().take_while(|byte| **byte == 0).count();
        // Fewer than 16 only where the chunk is full.
        let shift = if zeros < 16 { 0 } else { zeros.ilog2().min(15) };
        let word = u16::try_from(from).expect("at most LEN_MAX") | (shift as u16) << 12;
        out.push(flags);
        out.extend_from_slice(&word.to_le_bytes());
        out.extend_from_slice(&bytes[..from]);
        bytes = &bytes[from + if shift == 0 { 0 } else { 1 << shift }..];
        if bytes.is_empty() {
            return;
        }
    }
}

/// Sets HLEN, PLEN, the digest flags and the digests of a PDU that has room for them.
fn make_whole(pdu: &mut [u8], digests: Digests) {
    let len = u32::try_from(pdu.len()).expect("a short PDU");
    let Some(kind) = pdu.first().and_then(|byte| PduKind::from_byte(*byte)) else { return };
    let hlen = kind.hlen();
    let digested = hlen != 128 && !matches!(kind, PduKind::H2cTermReq | PduKind::C2hTermReq);
    let header_end = hlen + if digests.header && digested { 4 } else { 0 };
    if pdu.len() < header_end {
        return;
    }
    let has_data = pdu.len() > header_end + 4 && digests.data && digested;
    pdu[1] &= !3;
    pdu[1] |= u8::from(digests.header && digested) | u8::from(has_data) << 1;
    pdu[2] = u8::try_from(hlen).expect("at most 128");
    pdu[3] = if pdu.len() > header_end { u8::try_from(header_end).expect("short") } else { 0 };
    pdu[4..8].copy_from_slice(&len.to_le_bytes());
    if header_end > hlen {
        let digest = header_digest(&pdu[..hlen]);
        pdu[hlen..header_end].copy_from_slice(&digest);
    }
    if has_data {
        let at = pdu.len() - 4;
        let digest = data_digest(&pdu[header_end..at]);
        pdu[at..].copy_from_slice(&digest);
    }
}
