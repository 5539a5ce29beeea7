//! Mutation without coverage: a few damages to an input of the corpus, or to two of them joined.

use crate::rng::Rng;

/// Values at the edge of something.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    7,
    16,
    24,
    64,
    72,
    127,
    128,
    255,
    512,
    1023,
    1024,
    4095,
    4096,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// An input made of the corpus, at most `max` long.
pub fn make(rng: &mut Rng, corpus: &[Vec<u8>], words: &[&str], max: usize) -> Vec<u8> {
    let mut bytes = corpus[rng.below(corpus.len())].clone();
    if rng.below(16) == 0 {
        let other = &corpus[rng.below(corpus.len())];
        let (cut, from) = (rng.below(bytes.len() + 1), rng.below(other.len() + 1));
        bytes.truncate(cut);
        bytes.extend_from_slice(&other[from..]);
    }
    let most = 1 << rng.below(4);
    for _ in 0..=rng.below(most) {
        once(rng, &mut bytes, words);
    }
    bytes.truncate(max);
    bytes
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[&str]) {
    let at = rng.below(bytes.len());
    if bytes.is_empty() {
        bytes.push(rng.byte());
        return;
    }
    if !words.is_empty() && rng.below(3) == 0 {
        bytes.splice(at..at, rng.pick(words).bytes());
        return;
    }
    match rng.below(16) {
        0..4 => bytes[at] ^= 1 << rng.below(8),
        4 | 5 => bytes[at] = rng.byte(),
        // Numbers of any width, in place, so that what follows stays where it is.
        6..10 => {
            let len = rng.pick(&[1, 2, 4, 8]).min(bytes.len() - at);
            let mut raw = [0; 8];
            raw[..len].copy_from_slice(&bytes[at..at + len]);
            let now = u64::from_le_bytes(raw);
            let value = match rng.below(4) {
                0 => now.wrapping_add(1),
                1 => now.wrapping_sub(1),
                2 => now ^ 1 << rng.below(64),
                _ => rng.pick(&EDGES),
            };
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        10 | 11 => {
            let len = 1 + rng.below((bytes.len() - at).min(80));
            let to = rng.below(bytes.len() - len + 1);
            bytes.copy_within(at..at + len, to);
        }
        12 => {
            let len = 1 + rng.below((bytes.len() - at).min(80));
            let copy = bytes[at..at + len].to_vec();
            bytes.splice(at..at, copy);
        }
        13 => {
            let len = 1 + rng.below((bytes.len() - at).min(80));
            bytes.drain(at..at + len);
        }
        14 => {
            let len = 1 + rng.below(16);
            let fresh: Vec<u8> = (0..len).map(|_| rng.byte()).collect();
            bytes.splice(at..at, fresh);
        }
        _ => bytes.truncate(at + 1),
    }
}
