//! How long things took: a histogram of fixed size that allocates nothing.

use crate::time::{Duration, Instant};

/// Each power of two is divided into 2^4 buckets: what is read from them is up to 1/16 too large.
const SUB_BITS: u32 = 4;
const SUBS: usize = 1 << SUB_BITS;
/// Times from 2^37 ns (137 s) on share the last bucket.
const TOP_BITS: u32 = 37;
const BUCKETS: usize = (TOP_BITS - SUB_BITS + 1) as usize * SUBS;

/// Times in nanoseconds, log-linear: exact below 16 ns, then in buckets of 1/16 of a power of two.
/// Recording is a shift and four additions. It only rises; what happened in an interval is the
/// difference of two copies, [`LatencyHistogram::since`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyHistogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of a time.
const fn bucket(ns: u64) -> usize {
    let shift = match ns.checked_ilog2() {
        Some(log) => log.saturating_sub(SUB_BITS),
        None => 0,
    };
    if shift > TOP_BITS - SUB_BITS - 1 {
        return BUCKETS - 1;
    }
    // Below 2^37 >> 33 = 2^5, and 0 to 31 at shift 0: fits any word.
    #[expect(clippy::cast_possible_truncation, reason = "below 32")]
    let within = (ns >> shift) as usize;
    shift as usize * SUBS + within
}

/// The longest time of a bucket other than the last.
const fn longest(bucket: usize) -> u64 {
    if bucket < 2 * SUBS {
        return bucket as u64;
    }
    let (shift, within) = (bucket / SUBS - 1, bucket % SUBS + SUBS);
    ((within as u64 + 1) << shift) - 1
}

impl LatencyHistogram {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], count: 0, sum: 0, max: 0 }
    }

    /// Counts what took from `began` to `ended`.
    #[inline]
    pub fn record(&mut self, began: Instant, ended: Instant) {
        self.record_many(began, ended, 1);
    }

    /// Counts `times` (at least 1) things that took from `began` to `ended` each.
    #[inline]
    pub fn record_many(&mut self, began: Instant, ended: Instant, times: u64) {
        let ns = ended.0.saturating_sub(began.0);
        self.counts[bucket(ns)] += times;
        self.count += times;
        self.sum = self.sum.saturating_add(ns.saturating_mul(times));
        self.max = self.max.max(ns);
    }

    /// How many were counted.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The sum of their times, exact up to 584 years.
    #[must_use]
    pub const fn total(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// Their mean, rounded down to nanoseconds; zero where there is none.
    #[must_use]
    pub const fn mean(&self) -> Duration {
        match self.sum.checked_div(self.count) {
            Some(mean) => Duration::from_nanos(mean),
            None => Duration::ZERO,
        }
    }

    /// The longest; of a difference, at most 1/16 above it.
    #[must_use]
    pub const fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The time that this share of all did not exceed, in millionths: 500 000 asks for the median,
    /// 999 000 for p99.9. At most 1/16 too large, never too small; zero where there is none.
    #[must_use]
    pub fn quantile(&self, millionths: u32) -> Duration {
        let share = u128::from(self.count) * u128::from(millionths.min(1_000_000));
        let rank = share.div_ceil(1_000_000).max(1);
        let mut below = 0;
        for (at, count) in self.counts.iter().enumerate() {
            below += u128::from(*count);
            if below >= rank {
                let longest = if at == BUCKETS - 1 { self.max } else { longest(at) };
                return Duration::from_nanos(longest.min(self.max));
            }
        }
        Duration::ZERO
    }

    /// How many took less than 2^`log` ns, for `log` of 4 to 36.
    #[must_use]
    pub fn below_power(&self, log: u32) -> u64 {
        let log = log.clamp(SUB_BITS, TOP_BITS - 1);
        self.counts[..(log - SUB_BITS + 1) as usize * SUBS].iter().sum()
    }

    /// What was counted after `earlier`, a copy of this one. Where `earlier` is none (what was
    /// measured began anew), all that is here.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.count > self.count {
            return self.clone();
        }
        let mut difference = Self::new();
        for (at, count) in self.counts.iter().enumerate() {
            let more = count.saturating_sub(earlier.counts[at]);
            difference.counts[at] = more;
            difference.count += more;
            if more > 0 {
                difference.max = if at == BUCKETS - 1 { self.max } else { longest(at) };
            }
        }
        difference.max = difference.max.min(self.max);
        difference.sum = self.sum.saturating_sub(earlier.sum);
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(times: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::new();
        times.iter().for_each(|ns| histogram.record(Instant(7), Instant(7 + ns)));
        histogram
    }

    #[test]
    fn buckets_join_without_gap() {
        assert_eq!(
            (bucket(0), bucket(15), bucket(16), bucket(31), bucket(32)),
            (0, 15, 16, 31, 32)
        );
        assert_eq!((longest(31), longest(32), bucket(33), bucket(34)), (31, 33, 32, 33));
        for at in 0..BUCKETS - 1 {
            assert_eq!((bucket(longest(at)), bucket(longest(at) + 1)), (at, at + 1), "{at}");
        }
        assert_eq!(longest(BUCKETS - 1), (1 << TOP_BITS) - 1);
        assert_eq!((bucket(1 << TOP_BITS), bucket(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn an_empty_one_has_zeroes_and_a_very_long_time_is_kept() {
        let empty = LatencyHistogram::new();
        assert_eq!(
            (empty.count(), empty.mean(), empty.quantile(500_000)),
            (0, Duration::ZERO, Duration::ZERO)
        );
        let long = of(&[5, 400_000_000_000]);
        assert_eq!(long.quantile(500_000), Duration::from_nanos(5));
        assert_eq!(long.quantile(1_000_000), Duration::from_secs(400));
        assert_eq!(long.max(), Duration::from_secs(400));
        assert_eq!((long.below_power(4), long.below_power(36)), (1, 1));
    }

    #[test]
    fn many_of_one_time_count_as_each_alone() {
        let mut many = LatencyHistogram::new();
        many.record_many(Instant(7), Instant(1007), 3);
        many.record_many(Instant(9), Instant(8), 2);
        assert_eq!(many, of(&[1000, 1000, 1000, 0, 0]));
    }

    #[test]
    fn an_interval_is_a_difference() {
        let mut histogram = of(&[1_000, 2_000, 900_000]);
        let before = histogram.clone();
        for _ in 0..99 {
            histogram.record(Instant(0), Instant(10_000));
        }
        histogram.record(Instant(0), Instant(50_000));
        let interval = histogram.since(&before);
        assert_eq!((interval.count(), interval.total()), (100, Duration::from_nanos(1_040_000)));
        assert!(interval.quantile(990_000) < Duration::from_nanos(11_000), "not the time before");
        let longest = interval.max().as_nanos();
        assert!((50_000..54_000).contains(&longest), "{longest}");
        assert_eq!(interval.below_power(14), 99);
        assert_eq!(before.since(&histogram), before, "it began anew");
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_list_and_at_most_a_sixteenth_more(
            mut times in prop::collection::vec(0u64..1 << 40, 1..200),
            millionths in 0u32..=1_000_000,
        ) {
            let times: &mut [u64] = &mut times;
            let shift = times[0] % 30;
            times.iter_mut().for_each(|ns| *ns = (*ns >> shift) % (1 << 36));
            let histogram = of(times);
            times.sort_unstable();
            let rank = (times.len() as u64 * u64::from(millionths)).div_ceil(1_000_000).max(1);
            let right = u128::from(times[usize::try_from(rank).unwrap() - 1]);
            let found = histogram.quantile(millionths).as_nanos();
            prop_assert!(found >= right && found <= right + right / 16, "{found} {right}");
            prop_assert_eq!(histogram.count(), times.len() as u64);
            prop_assert_eq!(histogram.total().as_nanos(), times.iter().map(|ns| u128::from(*ns)).sum::<u128>());
            for log in 4..=36 {
                let below = times.iter().filter(|ns| **ns < 1 << log).count() as u64;
                prop_assert_eq!(histogram.below_power(log), below);
            }
        }
    }
}
