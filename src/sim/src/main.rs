//! `forebay-sim`: seeded runs and crash images of the production core. `forebay-sim help` says how.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test tool: what it cannot do ends it"
)]

use forebay_sim::images::Effort;
use forebay_sim::minimise::{list, minimise, unlist};
use forebay_sim::node;
use forebay_sim::ordered;
use forebay_sim::plants::Patience;
use forebay_sim::run::{Options, run};
use forebay_sim::suite::{self, Images, Seeds};
use std::collections::BTreeMap;
use std::process::ExitCode;

const HELP: &str = "\
forebay-sim --seed N [--keep LIST] [--plant P]     replays one run bit for bit, with its timeline
forebay-sim --minimise N [--plant P]               shortens a failing run
forebay-sim seeds [--from N] [--count N]           runs seeds
forebay-sim node [--from N] [--count N]            runs seeds of a whole node with hosts
forebay-sim node --seed N [--keep LIST] [--plant P]
                                                   replays one of them, with its timeline
forebay-sim bounded|long [--from N] [--count N] [--step N] [--per-cut N] [--every N]
                                                   crash images of bounded or longer workloads
forebay-sim bounded|long --from N --count 1 --cut C --image I --lines 1
                                                   one crash image, with its timeline
forebay-sim ordered [--from N] [--count N] [--steps N] [--lines 1] [--journal 1]
                                                   write-back-ordered: the backing device alone, at each moment
forebay-sim ci | soak                              all of it, with a last line of counts
forebay-sim plants [--only P] [--seeds N] [--images N]
                                                   which planted bugs are caught (feature planted-bugs)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let command = args.next_if(|arg| !arg.starts_with("--")).unwrap_or_default();
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    while let Some(name) = args.next() {
        named.insert(name.trim_start_matches('-').to_owned(), args.next().unwrap_or_default());
    }
    let number = |name: &str, default: u64| {
        named.get(name).map_or(default, |v| v.parse().expect("a number follows each option"))
    };
    let plant = u16::try_from(number("plant", 0)).expect("a planted bug's number");
    std::panic::set_hook(Box::new(|_| {}));
    let good = match command.as_str() {
        "seeds" => {
            let seeds = Seeds { from: number("from", 0), count: number("count", 200), plant };
            suite::seeds(&seeds).violations == 0
        }
        "bounded" | "long" => {
            let effort = Effort {
                per_cut: usize::try_from(number("per-cut", 12)).expect("a small number"),
                stride: number("every", 1),
                interrupt: number("interrupt", 10),
                drain: number("drain", 10),
            };
            let at = |name: &str| usize::try_from(number(name, 0)).expect("a small number");
            let images = Images {
                long: command == "long",
                from: number("from", 0),
                count: number("count", 100),
                step: number("step", 1),
                plant,
                effort,
                only: named.get("cut").map(|_| (at("cut"), at("image"))),
                lines: named.contains_key("lines"),
            };
            suite::images(&images).violations == 0
        }
        "ordered" => {
            let steps = number("steps", ordered::STEPS);
            let (from, count) = (number("from", 0), number("count", 100));
            let journal = number("journal", 0) > 0;
            let lines = named.contains_key("lines");
            ordered::seeds(from, count, steps, lines, journal).violations == 0
        }
        "ci" => suite::ci(),
        "soak" => suite::soak(),
        "plants" => {
            let patience = Patience { seeds: number("seeds", 120), images: number("images", 120) };
            let (only, from) = (number("only", 0), number("from", 0));
            forebay_sim::plants::score(only, from, &patience)
        }
        "node" if named.contains_key("seed") => {
            let keep = named.get("keep").map(|text| unlist(text));
            let report = node::run::run(number("seed", 0), &Options { plant, lines: true, keep });
            report.lines.iter().for_each(|line| println!("{line}"));
            println!(
                "node seed {} weather {:?} hash {:016x} {:?} {:?}: {}",
                report.seed,
                node::script::weather(report.seed),
                report.hash,
                report.counts,
                report.injected,
                report.violation.as_deref().unwrap_or("ok")
            );
            report.violation.is_none()
        }
        "node" => {
            let seeds = Seeds { from: number("from", 0), count: number("count", 100), plant };
            suite::node(&seeds).violations == 0
        }
        "" if named.contains_key("seed") => {
            let keep = named.get("keep").map(|text| unlist(text));
            let report = run(number("seed", 0), &Options { plant, lines: true, keep });
            report.lines.iter().for_each(|line| println!("{line}"));
            println!(
                "seed {} weather {:?} hash {:016x} {:?} {:?}: {}",
                report.seed,
                forebay_sim::script::weather(report.seed),
                report.hash,
                report.counts,
                report.injected,
                report.violation.as_deref().unwrap_or("ok")
            );
            report.violation.is_none()
        }
        "" if named.contains_key("minimise") => {
            let seed = number("minimise", 0);
            let (keep, report) = minimise(seed, plant);
            report.lines.iter().for_each(|line| println!("{line}"));
            println!("{} of {} steps: {:?}", keep.len(), report.steps, report.violation);
            println!("forebay-sim --seed {seed} --keep {} --plant {plant}", list(&keep));
            report.violation.is_none()
        }
        _ => {
            print!("{HELP}");
            command == "help"
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
