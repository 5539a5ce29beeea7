//! Live numbers of a node that runs in a terminal: one line a second, only while something happens.

use forebay_control::stat::NodeStat;

/// Totals at the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    reads: u64,
    writes: u64,
    bytes: u64,
    hits: u64,
    looked: u64,
    dirty: u64,
}

impl Totals {
    fn of(stat: &NodeStat) -> Self {
        let mut totals = Self::default();
        for volume in &stat.volumes {
            totals.reads += volume.read.ops;
            totals.writes += volume.write.ops;
            totals.bytes += volume.read.bytes + volume.write.bytes;
            totals.hits += volume.hits;
            totals.looked += volume.hits + volume.misses + volume.bypassed;
            totals.dirty += volume.dirty_bytes;
        }
        totals
    }
}

/// The line for what happened since `last` in `seconds`; `None` where nothing did.
pub(crate) fn line(stat: &NodeStat, last: &mut Totals, seconds: f64) -> Option<String> {
    let now = Totals::of(stat);
    let before = core::mem::replace(last, now);
    if now == before || seconds <= 0.0 {
        return None;
    }
    let per_second = |now: u64, before: u64| as_f64(now.saturating_sub(before)) / seconds;
    let looked = now.looked.saturating_sub(before.looked);
    let hits = if looked == 0 {
        "-".to_owned()
    } else {
        format!("{:.1} %", 100.0 * as_f64(now.hits.saturating_sub(before.hits)) / as_f64(looked))
    };
    let complaints = stat.complaints();
    let trouble = complaints.first().map(|what| format!("  ! {what}")).unwrap_or_default();
    Some(format!(
        "read {:>8.0}/s  write {:>8.0}/s  {:>7.1} MiB/s  hits {hits:>7}  dirty {:>8.1} MiB{trouble}",
        per_second(now.reads, before.reads),
        per_second(now.writes, before.writes),
        per_second(now.bytes, before.bytes) / f64::from(1 << 20),
        as_f64(now.dirty) / f64::from(1 << 20),
    ))
}

/// For display: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "only shown, rounded")]
pub(crate) fn as_f64(value: u64) -> f64 {
    value as f64
}
