//! Rules of the core that are removed on purpose, one at a time: whether the checkers notice, and how
//! soon.

use crate::bounded;
use crate::images::{Effort, ImageCounts};
use crate::node;
use crate::ordered;
use crate::run::{Options, run};
use crate::script::{RICHER_FROM, SCENES_FROM};
use forebay_cache::plant::{BUGS, JOURNAL_FIRST, JOURNAL_LAST};
use forebay_nvmf::plant::{FIRST, LAST};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

/// How a planted bug was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caught {
    /// By this many seeds.
    Seeds(u64),
    /// By the crash images of this many workloads.
    Images(u64),
    No,
}

/// Seeds of a whole node at least, for a rule of target or shard.
const NODES: u64 = 100;

/// How long a planted bug is hunted.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Seeds at most.
    pub seeds: u64,
    /// Workloads whose crash images are looked at, at most.
    pub images: u64,
}

fn hunt(bug: u16, patience: &Patience) -> (Caught, String) {
    if (JOURNAL_FIRST..=JOURNAL_LAST).contains(&bug) {
        // A rule of the ordered journal: what is on the backing device once its batch is replayed.
        for seed in 0..patience.seeds {
            if let (_, Err(what)) = ordered::run(seed, ordered::STEPS, false, (true, bug)) {
                return (Caught::Seeds(seed + 1), what);
            }
        }
        return (Caught::No, String::new());
    }
    if bug >= FIRST {
        // A rule of target or shard: whole nodes.
        for seed in 0..patience.seeds.max(NODES) {
            let report = node::run::run(seed, &Options { plant: bug, ..Options::default() });
            if let Some(what) = report.violation {
                return (Caught::Seeds(seed + 1), what);
            }
        }
        return (Caught::No, String::new());
    }
    for at in 0..patience.seeds {
        // One in three has scenes.
        let first = if at % 3 == 2 { SCENES_FROM } else { RICHER_FROM };
        let report = run(first + at, &Options { plant: bug, ..Options::default() });
        if let Some(what) = report.violation {
            return (Caught::Seeds(at + 1), what);
        }
    }
    let effort = Effort { per_cut: 12, stride: 2, interrupt: 0, drain: 4 };
    let step = (bounded::count(2) / 300) | 1;
    for n in 0..patience.images {
        let mut counts = ImageCounts::default();
        // Short and longer workloads in turn.
        let found = catch_unwind(AssertUnwindSafe(|| match n % 4 {
            0 | 1 => {
                let n = n * step % bounded::count(2);
                bounded::run(n, bug, &effort, None, false, &mut counts)
            }
            2 => bounded::long(n, bug, &effort, None, false, &mut counts),
            _ => bounded::long(RICHER_FROM + n, bug, &effort, None, false, &mut counts),
        }));
        match found {
            Ok(Ok(())) => {}
            Ok(Err((what, _))) => return (Caught::Images(n + 1), what),
            Err(_) => return (Caught::Images(n + 1), "panic".to_owned()),
        }
    }
    (Caught::No, String::new())
}

/// Hunts every planted bug and prints the score. `only`: this one alone; 0 for all. Says whether each
/// was caught.
pub fn score(only: u64, from: u64, patience: &Patience) -> bool {
    if !cfg!(feature = "planted-bugs") {
        println!("plants: not in this build; use --features planted-bugs");
        return false;
    }
    let started = Instant::now();
    let hunted = |bug: &u16| match only {
        0 => u64::from(*bug) >= from,
        only => u64::from(*bug) == only,
    };
    let bugs: Vec<u16> =
        (1..=BUGS).chain(FIRST..=LAST).chain(JOURNAL_FIRST..=JOURNAL_LAST).filter(hunted).collect();
    let all = Mutex::new(Vec::new());
    crate::suite::each(bugs.len() as u64, |at| {
        let bug = bugs[usize::try_from(at).unwrap_or(0)];
        let begun = Instant::now();
        let (caught, what) = hunt(bug, patience);
        let what: String = what.chars().take(160).collect();
        println!("planted {bug}: {caught:?} in {:.1} s: {what}", begun.elapsed().as_secs_f64());
        all.lock().expect("no thread panics with it").push((bug, caught));
    });
    let all = all.into_inner().expect("no thread panics with it");
    let seeded =
        all.iter().filter_map(|(_, c)| if let Caught::Seeds(n) = c { Some(*n) } else { None });
    let mut needed: Vec<u64> = seeded.collect();
    needed.sort_unstable();
    let images = all.iter().filter(|(_, c)| matches!(c, Caught::Images(_))).count();
    let mut missed: Vec<u16> =
        all.iter().filter(|(_, c)| *c == Caught::No).map(|(bug, _)| *bug).collect();
    missed.sort_unstable();
    println!(
        "plants: {} of {} planted bugs caught, {} by seeds (median {} seeds), {images} by crash images; \
         missed {missed:?}; {:.0} s",
        needed.len() + images,
        if only == 0 && from <= 1 {
            usize::from(BUGS + LAST - FIRST + 1 + JOURNAL_LAST - JOURNAL_FIRST + 1)
        } else {
            all.len()
        },
        needed.len(),
        needed.get(needed.len() / 2).copied().unwrap_or(0),
        started.elapsed().as_secs_f64()
    );
    missed.is_empty()
}
