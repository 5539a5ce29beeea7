//! What a lying device must not do: a hit is checked against 16 bits of its block's CRC, so that one wrong
//! block in 65,536 passes for the right one. Nobody can tell those; here they are made another wrong block.

use crate::medium::Medium;
use forebay_io::crc::{crc32c, fold16};
use std::collections::BTreeMap;

const BLOCK: usize = 4096;

/// The CRCs of blocks whose bytes on the medium are wrong: of what they should be.
#[derive(Clone, Default)]
pub struct Truth(BTreeMap<u64, u32>);

/// The blocks that `len` bytes from `offset` lie in.
const fn touched(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / BLOCK as u64..(offset + len as u64).div_ceil(BLOCK as u64)
}

/// The CRC of a block on the medium.
fn crc_at(medium: &Medium, block: u64) -> u32 {
    crc32c(&medium.bytes(block * BLOCK as u64, BLOCK as u64))
}

impl Truth {
    /// A range of the medium is about to become wrong; what is wrong already stays as it should be.
    pub fn keep(&mut self, medium: &Medium, offset: u64, len: usize) {
        for block in touched(offset, len) {
            self.0.entry(block).or_insert_with(|| crc_at(medium, block));
        }
    }

    /// The device says that it has written this, and has not.
    pub fn claimed(&mut self, offset: u64, data: &[u8]) {
        self.written(offset, data.len());
        let blocks = data.chunks_exact(BLOCK).map(crc32c);
        if offset.is_multiple_of(BLOCK as u64) {
            self.0.extend((offset / BLOCK as u64..).zip(blocks));
        }
    }

    /// A range of the medium is as it should be again.
    pub fn written(&mut self, offset: u64, len: usize) {
        for block in touched(offset, len) {
            self.0.remove(&block);
        }
    }

    /// Changes the wrong blocks of an answer that 16 bits do not tell from the right ones; says how many.
    /// `lied`: not only the medium is wrong.
    pub fn tell_apart(&self, medium: &Medium, offset: u64, answer: &mut [u8], lied: bool) -> u64 {
        if self.0.is_empty() && !lied || !offset.is_multiple_of(BLOCK as u64) {
            return 0;
        }
        let blocks = offset / BLOCK as u64..;
        let wrong = blocks.zip(answer.chunks_exact_mut(BLOCK)).filter_map(|(block, data)| {
            let truth = self.0.get(&block).copied();
            let truth = truth.or_else(|| lied.then(|| crc_at(medium, block)))?;
            differ(truth, data).then_some(())
        });
        wrong.count() as u64
    }
}

/// Changes a block that is not the true one, and agrees with it in 16 bits, until it does not.
fn differ(truth: u32, data: &mut [u8]) -> bool {
    let passes = |data: &[u8]| fold16(crc32c(data)) == fold16(truth);
    let chance = crc32c(data) != truth && passes(data);
    if chance {
        let bits = (0..8 * BLOCK).map(|bit| (bit / 8, 1 << (bit % 8)));
        for (byte, bit) in bits {
            data[byte] ^= bit;
            if !passes(data) {
                break;
            }
            data[byte] ^= bit;
        }
    }
    chance
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::content;

    fn passes(data: &[u8], right: &[u8]) -> bool {
        fold16(crc32c(data)) == fold16(crc32c(right))
    }

    /// A right block, and a wrong one that agrees with it in 16 bits.
    fn pair() -> (Vec<u8>, Vec<u8>) {
        let right = content(1, 0, BLOCK as u64);
        let mut others = (2..1 << 20).map(|write| content(write, 0, BLOCK as u64));
        let wrong = others.find(|wrong| passes(wrong, &right)).unwrap();
        (right, wrong)
    }

    #[test]
    fn a_lie_that_16_bits_do_not_tell_becomes_one_that_they_tell() {
        let (right, wrong) = pair();
        let mut medium = Medium::new(4 * BLOCK as u64);
        medium.write(BLOCK as u64, &right);
        let mut truth = Truth::default();
        let ask = |truth: &Truth, medium: &Medium, lied| {
            let mut answer = [vec![0; BLOCK], wrong.clone()].concat();
            let told = truth.tell_apart(medium, 0, &mut answer, lied);
            (told, passes(&answer[BLOCK..], &right))
        };
        assert_eq!(ask(&truth, &medium, false), (0, true), "an honest device is not looked at");
        assert_eq!(ask(&truth, &medium, true), (1, false));
        // It rots on the medium, or another write lands there.
        truth.keep(&medium, BLOCK as u64, BLOCK);
        medium.write(BLOCK as u64, &wrong);
        truth.keep(&medium, BLOCK as u64, BLOCK);
        assert_eq!(ask(&truth, &medium, false), (1, false));
        truth.written(BLOCK as u64 + 512, 512);
        assert_eq!(ask(&truth, &medium, false), (0, true));
        // It was to be written, and never was.
        truth.claimed(BLOCK as u64, &right);
        assert_eq!(ask(&truth, &medium, false), (1, false));
    }

    #[test]
    fn the_truth_itself_and_what_16_bits_tell_stay_as_they_are() {
        let (right, _) = pair();
        let mut medium = Medium::new(4 * BLOCK as u64);
        medium.write(0, &right);
        for answer in [right, content(2, 0, BLOCK as u64)] {
            let mut given = answer.clone();
            assert_eq!(Truth::default().tell_apart(&medium, 0, &mut given, true), 0);
            assert!(given == answer);
        }
    }
}
