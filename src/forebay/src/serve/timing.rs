//! Latencies of a sample: since the start, and since the sample before.

use super::live::as_f64;
use forebay_control::stat::{BELOW_COUNT, BELOW_FROM, Latency, OpStat};
use forebay_io::{Duration, LatencyHistogram, VolumeId};
use std::collections::BTreeMap;

/// Whose operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    /// A volume's hosts'.
    Hosts(VolumeId),
    /// A cache device's, by its number.
    Cache(u32),
    /// A volume's backing device's.
    Backing(VolumeId),
    /// A volume's ordered journal's.
    Journal(VolumeId),
}

/// Which operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    Read,
    Write,
    Flush,
}

/// The histograms of the sample before, and of the one that is being made.
#[derive(Debug, Default)]
pub(crate) struct Timings {
    before: BTreeMap<(Whose, Which), LatencyHistogram>,
    now: BTreeMap<(Whose, Which), LatencyHistogram>,
}

impl Timings {
    /// A sample is complete: what is not in it is forgotten.
    pub(crate) fn next(&mut self) {
        self.before = core::mem::take(&mut self.now);
    }

    /// Counts with their latencies.
    pub(crate) fn ops(
        &mut self,
        key: (Whose, Which),
        (ops, bytes): (u64, u64),
        histogram: &LatencyHistogram,
    ) -> OpStat {
        let interval = match self.before.get(&key) {
            Some(before) => latency(&histogram.since(before)),
            None => latency(histogram),
        };
        let mut stat = OpStat {
            ops,
            bytes,
            total_us: u64::try_from(histogram.total().as_micros()).unwrap_or(u64::MAX),
            latency: interval,
            latency_since_start: latency(histogram),
            ..OpStat::default()
        };
        for (log, below) in (BELOW_FROM..).zip(&mut stat.below[..BELOW_COUNT]) {
            *below = histogram.below_power(log);
        }
        self.now.insert(key, histogram.clone());
        stat
    }
}

/// The figures that are shown of a histogram; `None` of an empty one.
fn latency(histogram: &LatencyHistogram) -> Option<Latency> {
    let us = |time: Duration| as_f64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)) / 1000.0;
    (histogram.count() > 0).then(|| Latency {
        count: histogram.count(),
        mean_us: us(histogram.mean()),
        p50_us: us(histogram.quantile(500_000)),
        p99_us: us(histogram.quantile(990_000)),
        p999_us: us(histogram.quantile(999_000)),
        p9999_us: us(histogram.quantile(999_900)),
        max_us: us(histogram.max()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::Instant;

    #[test]
    fn an_interval_is_told_from_all_time() {
        let mut timings = Timings::default();
        let mut histogram = LatencyHistogram::new();
        let key = (Whose::Cache(0), Which::Read);
        assert_eq!(timings.ops(key, (0, 0), &histogram).latency, None);
        timings.next();
        for _ in 0..100 {
            histogram.record(Instant(0), Instant(1_000_000));
        }
        let first = timings.ops(key, (100, 0), &histogram);
        assert_eq!(first.latency, first.latency_since_start);
        assert_eq!(first.latency.unwrap().count, 100);
        timings.next();
        histogram.record(Instant(0), Instant(10_000));
        let second = timings.ops(key, (101, 0), &histogram);
        let (interval, all) = (second.latency.unwrap(), second.latency_since_start.unwrap());
        assert_eq!((interval.count, all.count, second.total_us), (1, 101, 100_010));
        assert!((10.0..10.7).contains(&interval.p50_us), "{interval:?}");
        assert!((1000.0..1063.0).contains(&all.p50_us), "{all:?}");
        timings.next();
        assert_eq!(timings.ops(key, (101, 0), &histogram).latency, None, "nothing happened");
        timings.next();
        timings.next();
        assert_eq!(timings.before.len(), 0, "what is gone is forgotten");
    }
}
