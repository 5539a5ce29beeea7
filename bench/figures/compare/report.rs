//! A comparison as Markdown with plots.

use crate::plot::{self, Bar, Curve};
use crate::sample::{Compared, Pair, Sample, WorkPairs};
use crate::stats::{Ratio, Spread};
use core::fmt::Write as _;

/// A figure of a run.
type Of = fn(&Sample) -> f64;

/// What ratios are of: a name, whether more is better, and the value.
const RATIOS: [(&str, &str, Of); 5] = [
    ("IOPS", "more is better", |sample| sample.iops),
    ("p50", "less is better", |sample| sample.p50),
    ("p99", "less is better", |sample| sample.p99),
    ("p99.9", "less is better", |sample| sample.p99_9),
    ("p99.99", "less is better", |sample| sample.p99_99),
];

/// The files of a report: `report.md` and its plots.
pub(crate) fn files(compared: &Compared) -> Vec<(String, String)> {
    let mut files = vec![("report.md".to_owned(), markdown(compared))];
    for work in &compared.works {
        let curves = curves(compared, work);
        files
            .push((latency_file(work), plot::latency(&format!("{}: latency", work.name), &curves)));
        if !work.anchors.is_empty() {
            let title = format!("{}: {} to anchor", work.name, subject(compared));
            files.push((ratio_file(work), plot::ratios(&title, &bars(work))));
        }
    }
    files
}

fn latency_file(work: &WorkPairs) -> String {
    format!("latency-{}.svg", plot::slug(&work.name))
}

fn ratio_file(work: &WorkPairs) -> String {
    format!("ratio-{}.svg", plot::slug(&work.name))
}

fn subject(compared: &Compared) -> &str {
    compared.targets.first().map_or("subject", |target| &target.name)
}

/// The report.
pub(crate) fn markdown(compared: &Compared) -> String {
    let mut text = format!("# {} side by side\n\n", subject(compared));
    let _infallible = writeln!(text, "{}\n{}\n", compared.machine.show(), compared.method);
    text.push_str("| target | version | |\n|---|---|---|\n");
    for target in &compared.targets {
        let version = target.version.as_deref().unwrap_or("not told");
        let there = match &target.absent {
            Some(why) => format!("**absent**: {why}"),
            None => format!("`{}`", target.uri),
        };
        let _infallible = writeln!(text, "| {} | {version} | {there} |", target.name);
    }
    text.push_str(&summary(compared));
    for work in &compared.works {
        text.push_str(&one_work(compared, work));
    }
    for (name, file) in &compared.files {
        let _infallible = write!(text, "\n## {name}\n\n```toml\n{}\n```\n", file.trim_end());
    }
    text
}

/// The ratios of all works.
fn summary(compared: &Compared) -> String {
    let mut text = String::from(
        "\n## Ratios, subject to anchor\n\n\
         Median of the pairs' ratios (least–most) [95 % interval of their geometric mean: Student's t over the \
         logarithms]. Where the interval holds 1, or the subject against itself (A/A) reaches as far, or more \
         than half of the pairs were disturbed, nothing is claimed.\n\n\
         | work | anchor | of | ratio | A/A | the subject has | disturbed pairs |\n|---|---|---|---|---|---|---|\n",
    );
    for work in &compared.works {
        for (anchor, pairs) in &work.anchors {
            let disturbed = pairs.iter().filter(|pair| disturbed(pair)).count();
            for (what, better, of) in RATIOS {
                let (ratio, noise) = (ratio(pairs, of), ratio(&work.noise, of));
                let verdict = match disturbed * 2 > pairs.len() {
                    true => "nothing: disturbed",
                    false => ratio.verdict(noise).show(),
                };
                let _infallible = writeln!(
                    text,
                    "| {} | {anchor} | {what} ({better}) | {} | {} | {} | {disturbed} of {} |",
                    work.name,
                    ratio.show(),
                    noise.show(),
                    verdict,
                    pairs.len()
                );
            }
        }
        if work.anchors.is_empty() {
            let noise = ratio(&work.noise, |sample| sample.iops).show();
            let _infallible = writeln!(text, "| {} | none | IOPS | | {noise} | | |", work.name);
        }
    }
    text
}

fn ratio(pairs: &[Pair], of: Of) -> Ratio {
    Ratio::of(pairs.iter().map(|(ours, theirs)| of(ours) / of(theirs)))
}

fn disturbed((ours, theirs): &Pair) -> bool {
    ours.disturbance().is_some() || theirs.disturbance().is_some()
}

/// The runs of one work.
fn one_work(compared: &Compared, work: &WorkPairs) -> String {
    let mut text = format!("\n## {}\n\n{}.\n\n", work.name, work.load);
    text.push_str(
        "| target | runs | IOPS | p50 µs | p99 µs | p99.9 µs | p99.99 µs | cores used | of its core | instructions, \
         cycles per I/O | turnovers of the cache in a run |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, samples) in sides(compared, work) {
        let of = |what: Of| Spread::of(samples.iter().map(|sample| what(sample)));
        let some = |what: fn(&Sample) -> Option<f64>, decimals| {
            let values: Vec<f64> = samples.iter().filter_map(|sample| what(sample)).collect();
            if values.is_empty() {
                "–".to_owned()
            } else {
                Spread::of(values.into_iter()).show(decimals)
            }
        };
        let _infallible = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {}, {} | {} |",
            samples.len(),
            of(|s| s.iops).show(0),
            of(|s| s.p50).show(1),
            of(|s| s.p99).show(1),
            of(|s| s.p99_9).show(1),
            of(|s| s.p99_99).show(1),
            some(|s| s.target_cpu, 2),
            some(|s| s.core_share, 2),
            some(|s| s.instructions, 0),
            some(|s| s.cycles, 0),
            some(|s| s.turnovers, 2)
        );
    }
    text.push_str(&disturbances(compared, work));
    let _infallible = writeln!(text, "\n![latency]({})", latency_file(work));
    if !work.anchors.is_empty() {
        let _infallible = writeln!(text, "\n![ratios]({})", ratio_file(work));
    }
    text
}

/// Which pairs were disturbed, and by what.
fn disturbances(compared: &Compared, work: &WorkPairs) -> String {
    let mut text = String::new();
    let noise = ("itself".to_owned(), work.noise.clone());
    for (anchor, pairs) in std::iter::once(&noise).chain(&work.anchors) {
        for (number, (ours, theirs)) in pairs.iter().enumerate() {
            for (name, sample) in [(subject(compared), ours), (anchor.as_str(), theirs)] {
                if let Some(what) = sample.disturbance() {
                    let number = number + 1;
                    let _infallible = writeln!(
                        text,
                        "* Pair {number} with {anchor} was disturbed: {name} {what}; it is in the figures."
                    );
                }
            }
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// Each target's runs: those of the subject beside each anchor, as machines change from minute to minute.
fn sides<'a>(compared: &'a Compared, work: &'a WorkPairs) -> Vec<(String, Vec<&'a Sample>)> {
    let subject = subject(compared);
    let alone = work.noise.iter().flat_map(|(first, second)| [first, second]).collect();
    let mut sides = vec![(format!("{subject} (A/A)"), alone)];
    for (anchor, pairs) in &work.anchors {
        sides.push((format!("{subject} (beside {anchor})"), pairs.iter().map(|p| &p.0).collect()));
        sides.push((anchor.clone(), pairs.iter().map(|p| &p.1).collect()));
    }
    sides
}

fn curves(compared: &Compared, work: &WorkPairs) -> Vec<Curve> {
    let all = sides(compared, work).into_iter();
    all.map(|(name, samples)| Curve { name, points: median_curve(&samples) }).collect()
}

/// The median of several distributions at each quantile that all of them have.
pub(crate) fn median_curve(samples: &[&Sample]) -> Vec<(f64, f64)> {
    let Some(first) = samples.first() else { return Vec::new() };
    let at = |sample: &Sample, quantile: f64| {
        sample.curve.iter().find(|(q, _)| (q - quantile).abs() < 1e-9).map(|(_, us)| *us)
    };
    let quantiles = first.curve.iter().map(|(quantile, _)| *quantile);
    quantiles
        .filter_map(|quantile| {
            let values: Option<Vec<f64>> = samples.iter().map(|s| at(s, quantile)).collect();
            Some((quantile, Spread::of(values?.into_iter()).median))
        })
        .collect()
}

fn bars(work: &WorkPairs) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |name: &str, pairs: &[Pair]| {
        for (what, _, of) in RATIOS {
            let Ratio { spread, low, high } = ratio(pairs, of);
            bars.push(Bar { name: format!("{name}: {what}"), low, value: spread.median, high });
        }
    };
    add("A/A", &work.noise);
    for (anchor, pairs) in &work.anchors {
        add(anchor, pairs);
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::sample::{Figures, Target};

    fn sample(iops: f64, core_share: f64) -> Sample {
        Sample {
            iops,
            p50: 1.0,
            p99: 2.0,
            p99_9: 3.0,
            p99_99: 4.0,
            curve: vec![(0.0, 0.5), (0.9, 8.0 * iops), (0.99, 5.0)],
            core_share: Some(core_share),
            ..Sample::default()
        }
    }

    fn compared() -> Compared {
        let pairs = |all: [(f64, f64); 3], share| -> Vec<Pair> {
            let mut pairs: Vec<Pair> =
                all.iter().map(|(a, b)| (sample(*a, 1.0), sample(*b, 1.0))).collect();
            pairs[1].1.core_share = Some(share);
            pairs
        };
        let target = |name: &str, absent: Option<&str>| Target {
            name: name.to_owned(),
            uri: "nvmf+tcp://x".to_owned(),
            version: Some("0.1.0".to_owned()),
            absent: absent.map(str::to_owned),
        };
        let anchors = vec![(
            "anchor".to_owned(),
            pairs([(100.0, 50.0), (220.0, 100.0), (300.0, 150.0)], 0.9),
        )];
        let noise = pairs([(100.0, 101.0), (90.0, 90.0), (99.0, 98.0)], 1.0);
        let work =
            WorkPairs { name: "randread QD1".to_owned(), load: "reads".to_owned(), noise, anchors };
        Compared {
            machine: Machine::look(),
            method: "a method".to_owned(),
            files: vec![("c.toml".to_owned(), "pairs = 3\n".to_owned())],
            targets: vec![
                target("Forebay", None),
                target("anchor", None),
                target("CAS", Some("no nvmf_tgt")),
            ],
            works: vec![work],
        }
    }

    #[test]
    fn ratios_are_of_pairs_and_what_is_absent_or_disturbed_is_named() {
        let text = markdown(&compared());
        for part in [
            "| randread QD1 | anchor | IOPS (more is better) | 2.00 (2.00–2.20) [",
            "| more | 1 of 3 |",
            "| p50 (less is better) | 1.00 (1.00–1.00) [1.00, 1.00] |",
            "| within the noise |",
            "| CAS | 0.1.0 | **absent**: no nvmf_tgt |",
            "* Pair 2 with anchor was disturbed: anchor had 0.90 of its core",
            "pairs = 3",
            "](latency-randread-qd1.svg)",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("with itself was disturbed"));
        let mut worse = compared();
        worse.works[0].anchors[0].1[0].0.core_share = Some(0.5);
        let text = markdown(&worse);
        assert!(text.contains("| nothing: disturbed | 2 of 3 |") && !text.contains("| more |"));
    }

    #[test]
    fn the_report_is_made_again_from_the_raw_data() {
        let dir = std::env::temp_dir().join(format!("report-{}", std::process::id()));
        let figures = Figures::Comparison(compared());
        crate::compare::write(&dir, &figures).unwrap();
        let read = || -> Vec<String> {
            ["report.md", "latency-randread-qd1.svg", "ratio-randread-qd1.svg"]
                .iter()
                .map(|name| std::fs::read_to_string(dir.join(name)).unwrap())
                .collect()
        };
        let first = read();
        let again = Figures::load(&dir).unwrap();
        assert_eq!(again, figures);
        for name in ["report.md", "latency-randread-qd1.svg", "ratio-randread-qd1.svg"] {
            std::fs::remove_file(dir.join(name)).unwrap();
        }
        crate::compare::write(&dir, &again).unwrap();
        assert_eq!(read(), first);
        let later = std::fs::read_to_string(dir.join(crate::sample::FILE)).unwrap();
        let later = later.replace("\"schema_version\":1", "\"schema_version\":2");
        std::fs::write(dir.join(crate::sample::FILE), later).unwrap();
        assert!(Figures::load(&dir).unwrap_err().contains("schema version 2"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn curves_are_medians_over_what_all_runs_have() {
        let mut short = sample(100.0, 1.0);
        short.curve.pop();
        let runs = [&sample(100.0, 1.0), &sample(200.0, 1.0), &short];
        assert_eq!(median_curve(&runs), vec![(0.0, 0.5), (0.9, 800.0)]);
    }
}
