//! Deterministic random numbers and positions.

use crate::workload::{Distribution, HotCold};

/// SplitMix64: small, fast, any seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    #[inline]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`, which is not zero.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// A number from 0 up to, not including, 1.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws positions 0 to `n` − 1.
#[derive(Clone, Debug)]
pub struct Positions {
    n: u64,
    law: Law,
}

#[derive(Clone, Debug)]
enum Law {
    Uniform,
    Zipf(Zipf),
    /// With the number of hot blocks.
    HotCold(HotCold, u64),
}

impl Positions {
    /// Positions below `n`, which is not zero.
    #[must_use]
    pub fn new(n: u64, distribution: Distribution) -> Self {
        let law = match distribution {
            Distribution::Uniform => Law::Uniform,
            Distribution::Zipf(theta) => Law::Zipf(Zipf::new(n, theta)),
            Distribution::HotCold(hot) => Law::HotCold(hot, hot.hot_blocks(n)),
        };
        Self { n, law }
    }

    /// The positions from this one on are no part of a hot set.
    #[must_use]
    pub const fn cold_from(&self) -> u64 {
        match self.law {
            Law::HotCold(_, hot) if hot < self.n => hot,
            _ => 0,
        }
    }

    /// The next position.
    #[inline]
    pub fn draw(&self, random: &mut Random) -> u64 {
        match &self.law {
            Law::Uniform => random.below(self.n),
            Law::Zipf(zipf) => zipf.scatter(zipf.rank(random)),
            Law::HotCold(hot, blocks) => {
                if *blocks >= self.n || random.below(100) < u64::from(hot.operations) {
                    random.below(*blocks)
                } else {
                    blocks + random.below(self.n - blocks)
                }
            }
        }
    }
}

/// Zipf's law by rejection-inversion (Hörmann, Derflinger 1996): no table, any size.
#[derive(Clone, Debug)]
struct Zipf {
    n: u64,
    theta: f64,
    from: f64,
    to: f64,
    accept: f64,
    /// Odd step, coprime to `n`: a permutation that parts popular neighbours.
    step: u64,
}

impl Zipf {
    #[expect(clippy::cast_precision_loss, reason = "a position's rounding does not matter")]
    fn new(n: u64, theta: f64) -> Self {
        let mut step = (n.wrapping_mul(0x9e37) / 0xffff) | 1;
        while gcd(step, n) != 1 {
            step += 2;
        }
        let mut zipf = Self { n, theta, from: 0.0, to: 0.0, accept: 0.0, step };
        zipf.from = zipf.integral(1.5) - 1.0;
        zipf.to = zipf.integral(n as f64 + 0.5);
        zipf.accept = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    fn density(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let t = (1.0 - self.theta) * log;
        (if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 }) * log
    }

    fn inverse(&self, x: f64) -> f64 {
        let t = (x * (1.0 - self.theta)).max(-1.0);
        ((if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 }) * x).exp()
    }

    /// A rank, 0 the most popular.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "clamped to 1..=n before the conversion"
    )]
    fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.to + random.unit() * (self.from - self.to);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.n as f64);
            if k - x <= self.accept || u >= self.integral(k + 0.5) - self.density(k) {
                return (k as u64 - 1).min(self.n - 1);
            }
        }
    }

    fn scatter(&self, rank: u64) -> u64 {
        let wide = u128::from(rank) * u128::from(self.step) % u128::from(self.n);
        u64::try_from(wide).unwrap_or(0)
    }
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn uniform_positions_cover_the_range_evenly() {
        let positions = Positions::new(10, Distribution::Uniform);
        let mut random = Random::new(1);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[usize::try_from(positions.draw(&mut random)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
    }

    #[test]
    fn the_hot_part_gets_its_share_and_the_cold_one_the_rest() {
        let hot = HotCold { operations: 90, blocks: 10 };
        let positions = Positions::new(1000, Distribution::HotCold(hot));
        assert_eq!(positions.cold_from(), 100);
        let mut random = Random::new(3);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[usize::try_from(positions.draw(&mut random) / 100).unwrap()] += 1;
        }
        assert!((89_000..91_000).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|c| (950..1_300).contains(c)), "{counts:?}");
        // One block is hot, and there is no other.
        let single = Positions::new(1, Distribution::HotCold(hot));
        assert_eq!((single.draw(&mut random), single.cold_from()), (0, 0));
        assert_eq!(Positions::new(9, Distribution::Uniform).cold_from(), 0);
    }

    #[test]
    fn zipf_follows_the_law_and_scatters() {
        for (theta, n) in [(0.99, 1000u64), (1.0, 1000), (1.2, 1 << 30), (0.5, 77)] {
            let zipf = Zipf::new(n, theta);
            let mut random = Random::new(7);
            let mut counts = [0f64; 16];
            let draws = 200_000;
            for _ in 0..draws {
                let rank = zipf.rank(&mut random);
                assert!(rank < n);
                if let Some(count) = counts.get_mut(usize::try_from(rank).unwrap()) {
                    *count += 1.0;
                }
            }
            for k in [1usize, 3, 9] {
                let want = counts[0] / (k as f64 + 1.0).powf(theta);
                let off = (counts[k] - want).abs() / want;
                assert!(off < 0.12, "theta {theta}, n {n}, rank {k}: {} for {want}", counts[k]);
            }
            let m = n.min(5000);
            let spread: BTreeSet<u64> = (0..m).map(|r| zipf.scatter(r)).collect();
            assert_eq!(spread.len() as u64, m, "scattering is one to one");
        }
    }
}
