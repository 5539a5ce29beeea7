//! The inputs of a run repeat, given the seed.

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() % u64::from(n)).unwrap()
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A value that is likely to be at an edge of something.
    pub(super) fn interesting(&mut self, now: u64) -> u64 {
        let edge = [0, 1, 2, 7, 24, 72, 128, 0x7f, 0x80, 0xff, 0x1000, 0x7fff, 0x8000, 0xffff];
        let far = [0x2_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
        match self.below(8) {
            0..3 => self.pick(&edge),
            3 => self.pick(&far),
            4 => now.wrapping_add(1),
            5 => now.wrapping_sub(1),
            6 => now ^ (1 << self.below(64)),
            _ => self.next(),
        }
    }
}
