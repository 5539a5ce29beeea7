//! `forebay-sim`: see the library.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test tool")]

use forebay_sim::bounded;
use forebay_sim::images::{Effort, ImageCounts};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    while let Some(name) = args.next() {
        named.insert(name.trim_start_matches('-').to_owned(), args.next().unwrap_or_default());
    }
    let number = |name: &str, default: u64| named.get(name).map_or(default, |v| v.parse().unwrap());
    let started = Instant::now();
    let mut counts = ImageCounts::default();
    let effort = Effort {
        per_cut: number("per-cut", 12) as usize,
        stride: number("every", 1),
        interrupt: number("interrupt", 10),
        drain: number("drain", 10),
    };
    let (from, n, step) = (number("from", 0), number("count", 100), number("step", 1));
    let only = named.get("cut").map(|_| (number("cut", 0) as usize, number("image", 0) as usize));
    let lines = named.contains_key("lines");
    let mut bad = 0;
    for i in 0..n {
        let at = from + i * step;
        let result = match command.as_str() {
            "bounded" => bounded::run(at, number("plant", 0) as u16, &effort, only, lines, &mut counts),
            _ => bounded::long(at, number("plant", 0) as u16, &effort, only, lines, &mut counts),
        };
        if let Err((what, lines)) = result {
            for line in lines {
                println!("{line}");
            }
            println!("{command} {at}: {what}");
            if command == "bounded" {
                println!("   {:?}", bounded::workload(at));
            }
            bad += 1;
            if bad >= 10 {
                break;
            }
        }
    }
    println!("{counts:?} bad {bad} in {:?}", started.elapsed());
}
