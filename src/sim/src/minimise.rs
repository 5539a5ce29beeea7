//! Shortens a failing history: steps of its script are left out, halves first, as long as it fails.

use crate::run::{Options, Report, run};

/// Runs at most.
const RUNS_MAX: usize = 400;

/// The steps of a failing seed that are enough for it to fail, and the report of that run.
#[must_use]
pub fn minimise(seed: u64, plant: u16) -> (Vec<usize>, Report) {
    let with =
        |keep: &[usize]| run(seed, &Options { plant, lines: true, keep: Some(keep.to_vec()) });
    let mut best = run(seed, &Options { plant, lines: true, keep: None });
    let mut keep: Vec<usize> = (0..best.steps).collect();
    let (mut chunk, mut runs) = (keep.len().div_ceil(2), 0);
    while chunk > 0 && runs < RUNS_MAX && best.violation.is_some() {
        let (mut at, mut shorter) = (0, false);
        while at < keep.len() && runs < RUNS_MAX {
            let mut fewer = keep.clone();
            fewer.drain(at..(at + chunk).min(keep.len()));
            runs += 1;
            let report = with(&fewer);
            if report.violation.is_some() {
                (keep, best, shorter) = (fewer, report, true);
            } else {
                at += chunk;
            }
        }
        chunk = if shorter && chunk > 1 { chunk } else { chunk / 2 };
    }
    (keep, best)
}

/// A list of numbers as the command line takes it: `1,4-7`.
#[must_use]
pub fn list(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some(last) if last.1 + 1 == *n => last.1 = *n,
            _ => runs.push((*n, *n)),
        }
    }
    let text = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    text.collect::<Vec<_>>().join(",")
}

/// The other way round.
#[must_use]
pub fn unlist(text: &str) -> Vec<usize> {
    let part = |part: &str| {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        Some(a.parse().ok()?..=b.parse().ok()?)
    };
    text.split(',').filter_map(part).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_back() {
        let numbers = vec![0, 1, 2, 5, 9, 10];
        assert_eq!(list(&numbers), "0-2,5,9-10");
        assert_eq!(unlist(&list(&numbers)), numbers);
    }
}
