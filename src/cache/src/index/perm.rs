//! Two chained permutations of 48-bit keys, each invertible, scattered by a seed.

const MASK: u64 = (1 << 48) - 1;
const HALF: u32 = 24;

/// `first` maps a key to its first position, `second` the first position to the second.
pub(super) struct Permutation {
    first: Mixer,
    second: Mixer,
}

impl Permutation {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            first: Mixer::new(split_mix(seed)),
            second: Mixer::new(split_mix(seed ^ 0x5851_f42d_4c95_7f2d)),
        }
    }

    #[inline]
    pub(super) const fn first(&self, key: u64) -> u64 {
        self.first.mix(key)
    }

    #[inline]
    pub(super) const fn second(&self, first: u64) -> u64 {
        self.second.mix(first)
    }

    pub(super) const fn first_of(&self, second: u64) -> u64 {
        self.second.unmix(second)
    }

    pub(super) const fn key_of(&self, first: u64) -> u64 {
        self.first.unmix(first)
    }
}

/// Rounds of odd multiplication, which carries low bits upwards, and xor with the upper half,
/// which carries high bits downwards; both invertible modulo 2^48.
struct Mixer {
    whiten: u64,
    multiply: [u64; 3],
    divide: [u64; 3],
}

impl Mixer {
    const fn new(seed: u64) -> Self {
        let multiply = [
            (split_mix(seed ^ 1) | 1) & MASK,
            (split_mix(seed ^ 2) | 1) & MASK,
            (split_mix(seed ^ 3) | 1) & MASK,
        ];
        let divide = [inverse(multiply[0]), inverse(multiply[1]), inverse(multiply[2])];
        Self { whiten: split_mix(seed ^ 4) & MASK, multiply, divide }
    }

    #[inline]
    const fn mix(&self, key: u64) -> u64 {
        let mut x = key ^ self.whiten;
        x ^= x >> HALF;
        x = x.wrapping_mul(self.multiply[0]) & MASK;
        x ^= x >> HALF;
        x = x.wrapping_mul(self.multiply[1]) & MASK;
        x ^= x >> HALF;
        x.wrapping_mul(self.multiply[2]) & MASK
    }

    const fn unmix(&self, mixed: u64) -> u64 {
        let mut x = mixed.wrapping_mul(self.divide[2]) & MASK;
        x ^= x >> HALF;
        x = x.wrapping_mul(self.divide[1]) & MASK;
        x ^= x >> HALF;
        x = x.wrapping_mul(self.divide[0]) & MASK;
        x ^= x >> HALF;
        x ^ self.whiten
    }
}

/// The inverse of an odd number modulo 2^48, by Newton's iteration (bits right: 3, 6, … 96).
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut round = 0;
    while round < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x & MASK
}

/// The SplitMix64 output function.
const fn split_mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_invert_and_stay_in_48_bits() {
        for seed in [0, 1, 42, u64::MAX] {
            let p = Permutation::new(seed);
            for key in (0..20_000).map(|i| split_mix(i) & MASK).chain([0, 1, MASK]) {
                let first = p.first(key);
                let second = p.second(first);
                assert!(first <= MASK && second <= MASK);
                assert_eq!(p.first_of(second), first);
                assert_eq!(p.key_of(first), key);
            }
        }
    }
}
