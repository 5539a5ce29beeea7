//! Medians, spread and ratios as Markdown.

use super::config::Comparison;
use super::initiator::Sample;
use core::fmt::Write as _;
use std::fs;

/// Median and range of some values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (all.first().copied(), all.last().copied());
        let median = match all.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => all[n / 2],
            n => f64::midpoint(all[n / 2 - 1], all[n / 2]),
        };
        Self { median, least: least.unwrap_or(f64::NAN), most: most.unwrap_or(f64::NAN) }
    }

    fn show(self, decimals: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.decimals$} ({least:.decimals$}–{most:.decimals$})")
    }
}

/// The subject against itself: what a ratio of 1 looks like here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    iops: Spread,
    p50: Spread,
}

impl Noise {
    /// From pairs of runs of one target.
    pub(crate) fn new(pairs: &[(Sample, Sample)]) -> Self {
        Self {
            iops: Spread::of(pairs.iter().map(|(a, b)| a.iops / b.iops)),
            p50: Spread::of(pairs.iter().map(|(a, b)| a.p50 / b.p50)),
        }
    }
}

/// The subject against one anchor under one work.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    work: String,
    anchor: String,
    pairs: Vec<(Sample, Sample)>,
    noise: Noise,
}

impl Row {
    /// From pairs of (subject, anchor).
    pub(crate) fn new(
        work: &str,
        anchor: &str,
        noise: &Noise,
        pairs: Vec<(Sample, Sample)>,
    ) -> Self {
        Self { work: work.to_owned(), anchor: anchor.to_owned(), pairs, noise: *noise }
    }

    fn ratio(&self, of: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.pairs.iter().map(|(ours, theirs)| of(ours) / of(theirs)))
    }
}

/// Where it was measured, and how.
pub(crate) fn environment(comparison: &Comparison) -> String {
    let line = |path: &str, start: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        found.rsplit(':').next().unwrap_or_default().trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, core::num::NonZero::get);
    let initiator = match &comparison.spdk_nvme_perf {
        Some(_) => "spdk_nvme_perf",
        None => "forebay bench",
    };
    format!(
        "{} × {}, Linux {}, load average before {}; initiator {initiator} on core {}; {} pairs of {} s",
        cores,
        line("/proc/cpuinfo", "model name"),
        line("/proc/sys/kernel/osrelease", ""),
        line("/proc/loadavg", ""),
        comparison.load_core,
        comparison.pairs,
        comparison.seconds
    )
}

/// The runs of one work.
pub(crate) fn work(name: &str, subject: &str, rows: &[Row], noise: &Noise) -> String {
    let mut text = format!("\n### {name}\n\n");
    text.push_str(
        "| target | IOPS | p50 µs | p99 µs | share of its core |\n|---|---|---|---|---|\n",
    );
    let mut target = |name: &str, samples: Vec<Sample>| {
        let of = |what: fn(&Sample) -> f64| Spread::of(samples.iter().map(what));
        let _infallible = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            of(|s| s.iops).show(0),
            of(|s| s.p50).show(1),
            of(|s| s.p99).show(1),
            of(|s| s.target_cpu).show(2)
        );
    };
    for row in rows.iter().filter(|row| row.work == name) {
        target(
            &format!("{subject} (beside {})", row.anchor),
            row.pairs.iter().map(|p| p.0).collect(),
        );
        target(&row.anchor, row.pairs.iter().map(|p| p.1).collect());
    }
    let _infallible =
        writeln!(text, "\nA/A: IOPS × {}, p50 × {}", noise.iops.show(2), noise.p50.show(2));
    text
}

/// The ratios of all works.
pub(crate) fn summary(rows: &[Row]) -> String {
    let mut text = String::from(
        "\n## Ratios, subject to anchor: median of the pairs (least–most)\n\n\
         | work | anchor | IOPS × | p50 × | p99 × | A/A IOPS × |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _infallible = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            row.work,
            row.anchor,
            row.ratio(|s| s.iops).show(2),
            row.ratio(|s| s.p50).show(2),
            row.ratio(|s| s.p99).show(2),
            row.noise.iops.show(2)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_pairs_and_not_of_sides() {
        let sample = |iops| Sample { iops, p50: 1.0, p99: 2.0, ..Sample::default() };
        let pairs = [(100.0, 50.0), (90.0, 90.0), (300.0, 100.0)];
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (sample(*a), sample(*b))).collect();
        let noise = Noise::new(&pairs);
        assert_eq!(noise.iops.show(2), "2.00 (1.00–3.00)");
        let row = Row::new("work", "anchor", &noise, pairs);
        assert!(
            summary(&[row]).contains("| work | anchor | 2.00 (1.00–3.00) | 1.00 (1.00–1.00) |")
        );
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).show(1), "2.5 (1.0–4.0)");
    }
}
