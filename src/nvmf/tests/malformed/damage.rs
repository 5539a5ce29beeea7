//! What is done to a PDU that was right.

use super::*;

/// Where fields of PDU headers begin, by the kind of PDU.
pub(super) fn fields(kind: u8) -> &'static [usize] {
    match kind {
        0 => &[8, 10, 11, 12],
        // The command; then Connect data or ranges, where there are some.
        4 => &[
            8, 9, 10, 12, 32, 40, 47, 48, 49, 50, 52, 54, 56, 60, 64, 68, 72, 76, 80, 88, 328, 584,
        ],
        _ => &[8, 10, 12, 16],
    }
}

impl World {
    pub(super) fn overwrite(&mut self, pdu: &mut [u8], at: usize) {
        let len = self.rng.pick(&[1, 2, 4, 8]);
        let Some(place) = pdu.get_mut(at..at + len) else { return };
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(place);
        let value = self.rng.interesting(u64::from_le_bytes(raw));
        place.copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Damages a PDU; for half of the ways it can be, digests are made right again.
    pub(super) fn damage(&mut self, pdu: &mut Vec<u8>, digests: Digests) {
        self.malformed += 1;
        let original = pdu.clone();
        let hlen = PduKind::from_byte(pdu[0]).map_or(8, PduKind::hlen).min(pdu.len());
        while *pdu == original {
            let right = self.rng.one_in(2);
            match self.rng.below(16) {
                0 | 1 => {
                    for _ in 0..=self.rng.below(3) {
                        let at = self.rng.below(hlen);
                        pdu[at] ^= 1 << self.rng.below(8);
                    }
                }
                2..=10 => {
                    let field = self.rng.pick(fields(original[0]));
                    self.overwrite(pdu, field);
                }
                11 => {
                    let field = self.rng.pick(&[0, 1, 2, 3, 4]);
                    self.overwrite(pdu, field);
                }
                12 => pdu.truncate(1 + self.rng.below(original.len() - 1)),
                13 => {
                    let from = if self.rng.one_in(4) { 0 } else { 8 };
                    pdu[from..hlen].fill_with(|| self.rng.byte());
                }
                14 => {
                    let more = self.rng.pick(&[1, 4, 100, 1 << 14, 1 << 18, 1 << 31]);
                    let plen = u32::try_from(pdu.len()).unwrap().wrapping_add(more);
                    pdu[4..8].copy_from_slice(&plen.to_le_bytes());
                }
                _ => self.wrong_digest(pdu, hlen, digests),
            }
            let same_digest_rule = pdu.len() == original.len() && original[0] != 0;
            if right && same_digest_rule {
                redigest(pdu, hlen, digests);
            }
        }
    }

    /// A wrong digest, or one where none was agreed on.
    pub(super) fn wrong_digest(&mut self, pdu: &mut [u8], hlen: usize, digests: Digests) {
        let end = pdu.len();
        match (digests.header && end >= hlen + 4, digests.data && end > hlen + 8) {
            (_, true) if self.rng.one_in(2) => pdu[end - 1 - self.rng.below(4)] ^= 0x10,
            (true, _) => pdu[hlen + self.rng.below(4)] ^= 0x10,
            _ => pdu[1] ^= self.rng.pick(&[1, 2, 3]),
        }
    }

    /// A PDU of any kind from nothing.
    pub(super) fn made_up(&mut self) -> Vec<u8> {
        self.malformed += 1;
        let kind = self.rng.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xff]);
        let hlen = PduKind::from_byte(kind).map_or(24, PduKind::hlen);
        let mut pdu: Vec<u8> = (0..hlen + self.rng.below(64)).map(|_| self.rng.byte()).collect();
        if self.rng.one_in(2) {
            let len = u32::try_from(pdu.len()).unwrap();
            pdu[..4].copy_from_slice(&[kind, 0, u8::try_from(hlen).unwrap(), 0]);
            pdu[4..8].copy_from_slice(&len.to_le_bytes());
        }
        pdu
    }
}

/// Makes the digests of a PDU right for its bytes.
pub(super) fn redigest(pdu: &mut [u8], hlen: usize, digests: Digests) {
    let header_end = hlen + if digests.header { 4 } else { 0 };
    if pdu.len() < header_end {
        return;
    }
    if digests.header {
        let digest = header_digest(&pdu[..hlen]);
        pdu[hlen..header_end].copy_from_slice(&digest);
    }
    if digests.data && pdu.len() > header_end + 4 {
        let at = pdu.len() - 4;
        let digest = data_digest(&pdu[header_end..at]);
        pdu[at..].copy_from_slice(&digest);
    }
}
