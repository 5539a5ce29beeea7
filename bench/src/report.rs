//! The result of a run: one structure, rendered as JSON and as a table.

use core::fmt::Write as _;

use crate::job::{JobResult, Tally};
use crate::workload::{Distribution, Limit, Workload};
use serde::Serialize;

/// Rises whenever a field of the JSON changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Latencies in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Shortest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 of a hundred are at most this.
    pub p90: f64,
    /// 99 of a hundred are at most this.
    pub p99: f64,
    /// 999 of a thousand are at most this.
    pub p99_9: f64,
    /// 9,999 of ten thousand are at most this.
    pub p99_99: f64,
    /// Longest.
    pub max: f64,
}

/// One direction, or both together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// Operations.
    pub ops: u64,
    /// Bytes.
    pub bytes: u64,
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Latencies.
    pub latency_us: Latency,
    /// The whole distribution: quantiles, rising from 0 to at most 1, with the latency in microseconds that
    /// so many are not above.
    pub latency_curve: Vec<(f64, f64)>,
}

/// What was run and what came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The device, as given.
    pub uri: String,
    /// The access pattern's name.
    pub rw: &'static str,
    /// Reads of a hundred operations (only `randrw` heeds it).
    pub read_percent: u8,
    /// Bytes of each operation.
    pub block_size: u32,
    /// Operations in flight of each job.
    pub queue_depth: u16,
    /// Jobs.
    pub jobs: u16,
    /// Connections of each job.
    pub connections: u16,
    /// Operations a second that were due, of all jobs; absent in a closed loop.
    pub rate: Option<u32>,
    /// How they were spread in time.
    pub arrivals: Option<&'static str>,
    /// Zipf exponent, absent for another spread.
    pub zipf: Option<f64>,
    /// The hot part, absent for another spread.
    pub hot_cold: Option<String>,
    /// Of a hundred operations, those of the scan.
    pub scan_percent: u8,
    /// The seed.
    pub seed: u64,
    /// Seconds asked for, absent where operations were counted.
    pub time_limit_s: Option<f64>,
    /// Seconds measured.
    pub elapsed_s: f64,
    /// Reads; absent where there were none.
    pub read: Option<Side>,
    /// Writes; absent where there were none.
    pub write: Option<Side>,
    /// Reads of the scan; absent where there were none.
    pub scan: Option<Side>,
    /// All together; absent where nothing ended well.
    pub total: Option<Side>,
    /// Operations that ended well, warming up included.
    pub all_ops: u64,
    /// The longest time in microseconds for which the load did not look at its device.
    pub longest_pause_us: f64,
    /// Operations that failed.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<String>,
    /// Whether blocks were stamped and checked.
    pub verify: bool,
    /// Logical blocks checked.
    pub verified_blocks: u64,
    /// Logical blocks that were wrong.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<String>,
}

impl Report {
    /// From a workload and the merged result.
    #[must_use]
    pub fn new(uri: &str, workload: &Workload, result: &JobResult) -> Self {
        let seconds = result.elapsed.as_secs_f64();
        let mut both = result.reads.clone();
        both.merge(&result.writes);
        both.merge(&result.scans);
        let Workload { rw, read_percent, block_size, queue_depth, jobs, seed, verify, .. } =
            *workload;
        let Workload { connections, scan_percent, pace, distribution, .. } = *workload;
        Self {
            schema_version: SCHEMA_VERSION,
            uri: uri.to_owned(),
            rw: rw.name(),
            read_percent,
            block_size,
            queue_depth,
            jobs,
            connections,
            rate: pace.map(|pace| pace.rate),
            arrivals: pace.map(|pace| pace.arrivals.name()),
            zipf: match distribution {
                Distribution::Zipf(theta) => Some(theta),
                _ => None,
            },
            hot_cold: match distribution {
                Distribution::HotCold(hot) => Some(format!("{}/{}", hot.operations, hot.blocks)),
                _ => None,
            },
            scan_percent,
            seed,
            time_limit_s: match workload.limit {
                Limit::Time(time) => Some(time.as_secs_f64()),
                Limit::Ops(_) => None,
            },
            elapsed_s: seconds,
            read: Side::new(&result.reads, seconds),
            write: Side::new(&result.writes, seconds),
            scan: Side::new(&result.scans, seconds),
            total: Side::new(&both, seconds),
            all_ops: result.all_ops,
            longest_pause_us: result.longest_pause.as_secs_f64() * 1e6,
            errors: result.errors,
            first_error: result.first_error.map(|error| error.to_string()),
            verify,
            verified_blocks: result.verified,
            mismatches: result.mismatches,
            first_mismatch: result
                .first_mismatch
                .map(|(block, what)| format!("logical block {block}: {what:?}")),
        }
    }

    /// Whether nothing failed and nothing was wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.errors == 0 && self.mismatches == 0
    }

    /// As JSON, on several lines.
    ///
    /// # Errors
    /// As of `serde_json`; not for the fields that there are.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// As text for people.
    #[must_use]
    pub fn to_table(&self) -> String {
        let mut text = format!(
            "{}: {}, {} B blocks, queue depth {} × {} jobs × {} connections, {:.1} s, seed {}\n",
            self.uri,
            self.rw,
            self.block_size,
            self.queue_depth,
            self.jobs,
            self.connections,
            self.elapsed_s,
            self.seed
        );
        if let (Some(rate), Some(arrivals)) = (self.rate, self.arrivals) {
            let _ = writeln!(
                text,
                "open loop: {rate} operations a second due, {arrivals}, timed from then; the load itself was \
                 held up for {:.1} µs at most",
                self.longest_pause_us
            );
        }
        let _ = writeln!(
            text,
            "{:6} {:>11} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "IOPS", "MiB/s", "mean µs", "p50", "p99", "p99.9", "p99.99", "max"
        );
        let sides = [("read", &self.read), ("write", &self.write), ("scan", &self.scan)];
        let mixed = sides.iter().filter(|(_, side)| side.is_some()).count() > 1;
        for (name, side) in sides.into_iter().chain(mixed.then_some(("total", &self.total))) {
            let Some(side) = side else { continue };
            let latency = &side.latency_us;
            let _ = writeln!(
                text,
                "{name:6} {:>11.0} {:>10.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                side.iops,
                side.bytes_per_second / 1_048_576.0,
                latency.mean,
                latency.p50,
                latency.p99,
                latency.p99_9,
                latency.p99_99,
                latency.max
            );
        }
        if self.errors > 0 {
            let first = self.first_error.as_deref().unwrap_or("unknown");
            let _ = writeln!(text, "{} operations failed; the first: {first}", self.errors);
        }
        if self.verify {
            let first = self.first_mismatch.as_deref().unwrap_or("none");
            let _ = writeln!(
                text,
                "verified {} blocks, {} mismatches; the first: {first}",
                self.verified_blocks, self.mismatches
            );
        }
        text
    }
}

impl Side {
    #[expect(clippy::cast_precision_loss, reason = "figures for display")]
    fn new(tally: &Tally, seconds: f64) -> Option<Self> {
        if tally.ops == 0 {
            return None;
        }
        let seconds = seconds.max(1e-9);
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile: f64| us(tally.latency.value_at_quantile(quantile));
        Some(Self {
            ops: tally.ops,
            bytes: tally.bytes,
            iops: tally.ops as f64 / seconds,
            bytes_per_second: tally.bytes as f64 / seconds,
            latency_us: Latency {
                min: us(tally.latency.min()),
                mean: tally.latency.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                p99_99: at(0.9999),
                max: us(tally.latency.max()),
            },
            latency_curve: curve_quantiles(tally.ops).map(|q| (q, at(q))).collect(),
        })
    }
}

/// Quantiles that show a distribution of so many values: denser towards 1, as far as there are two values
/// beyond.
fn curve_quantiles(ops: u64) -> impl Iterator<Item = f64> {
    #[expect(clippy::cast_precision_loss, reason = "a bound")]
    let most = (ops as f64 / 2.0).max(2.0);
    (0..=40)
        .map(|eighth| 10f64.powf(f64::from(eighth) / 8.0))
        .take_while(move |part| *part <= most)
        .map(|part| 1.0 - 1.0 / part)
}
