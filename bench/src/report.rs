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
    /// Zipf exponent, absent for an even spread.
    pub zipf: Option<f64>,
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
    /// Both; absent where nothing ended well.
    pub total: Option<Side>,
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
        let Workload { rw, read_percent, block_size, queue_depth, jobs, seed, verify, .. } =
            *workload;
        Self {
            schema_version: SCHEMA_VERSION,
            uri: uri.to_owned(),
            rw: rw.name(),
            read_percent,
            block_size,
            queue_depth,
            jobs,
            zipf: match workload.distribution {
                Distribution::Uniform => None,
                Distribution::Zipf(theta) => Some(theta),
            },
            seed,
            time_limit_s: match workload.limit {
                Limit::Time(time) => Some(time.as_secs_f64()),
                Limit::Ops(_) => None,
            },
            elapsed_s: seconds,
            read: Side::new(&result.reads, seconds),
            write: Side::new(&result.writes, seconds),
            total: Side::new(&both, seconds),
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
            "{}: {}, {} B blocks, queue depth {} × {} jobs, {:.1} s, seed {}\n",
            self.uri,
            self.rw,
            self.block_size,
            self.queue_depth,
            self.jobs,
            self.elapsed_s,
            self.seed
        );
        let _ = writeln!(
            text,
            "{:6} {:>11} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "IOPS", "MiB/s", "mean µs", "p50", "p99", "p99.9", "p99.99", "max"
        );
        let mixed = self.read.is_some() && self.write.is_some();
        let total = if mixed { self.total.as_ref() } else { None };
        let sides =
            [("read", self.read.as_ref()), ("write", self.write.as_ref()), ("total", total)];
        for (name, side) in sides {
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
        })
    }
}
