//! Rules of the core that are removed on purpose, one at a time: whether the checkers notice, and how
//! soon.

use crate::bounded;
use crate::images::{Effort, ImageCounts};
use crate::run::{Options, run};
use forebay_cache::plant::BUGS;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// How a planted bug was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caught {
    /// By this many seeds.
    Seeds(u64),
    /// By the crash images of this many workloads.
    Images(u64),
    No,
}

/// Planted bugs that nothing catches yet: a failed destage write that is taken for done (15) needs more
/// seeds in which a backing device fails, and with one (22) a run does not end.
const OPEN: [u16; 3] = [15, 19, 22];

fn hunt(bug: u16, seeds: u64) -> (Caught, String) {
    for seed in 0..seeds {
        let report = run(seed, &Options { plant: bug, ..Options::default() });
        if let Some(what) = report.violation {
            return (Caught::Seeds(seed + 1), what);
        }
    }
    let effort = Effort { per_cut: 12, stride: 2, interrupt: 0, drain: 4 };
    let step = (bounded::count(2) / 300) | 1;
    for n in 0..330 {
        let mut counts = ImageCounts::default();
        let found = catch_unwind(AssertUnwindSafe(|| {
            if n < 300 {
                bounded::run(n * step, bug, &effort, None, false, &mut counts)
            } else {
                bounded::long(n, bug, &effort, None, false, &mut counts)
            }
        }));
        match found {
            Ok(Ok(())) => {}
            Ok(Err((what, _))) => return (Caught::Images(n + 1), what),
            Err(_) => return (Caught::Images(n + 1), "panic".to_owned()),
        }
    }
    (Caught::No, String::new())
}

/// Hunts every planted bug and prints the score. `only`: this one alone; 0 for all.
pub fn score(only: u64, seeds: u64) -> bool {
    if !cfg!(feature = "planted-bugs") {
        println!("plants: not in this build; use --features planted-bugs");
        return false;
    }
    let hunted = |bug: &u16| if only == 0 { !OPEN.contains(bug) } else { u64::from(*bug) == only };
    let bugs: Vec<u16> = (1..=BUGS).filter(hunted).collect();
    let all = Mutex::new(Vec::new());
    crate::suite::each(bugs.len() as u64, |at| {
        let bug = bugs[usize::try_from(at).unwrap_or(0)];
        let (caught, what) = hunt(bug, seeds);
        let what: String = what.chars().take(110).collect();
        println!("planted {bug}: {caught:?} {what}");
        all.lock().expect("no thread panics with it").push((bug, caught));
    });
    let all = all.into_inner().expect("no thread panics with it");
    let seeded =
        all.iter().filter_map(|(_, c)| if let Caught::Seeds(n) = c { Some(*n) } else { None });
    let mut needed: Vec<u64> = seeded.collect();
    needed.sort_unstable();
    let images = all.iter().filter(|(_, c)| matches!(c, Caught::Images(_))).count();
    println!(
        "plants: {} of {} planted bugs caught, {} by seeds (median {} seeds), {images} by crash images",
        needed.len() + images,
        if only == 0 { usize::from(BUGS) } else { 1 },
        needed.len(),
        needed.get(needed.len() / 2).copied().unwrap_or(0)
    );
    println!("plants: not hunted, since nothing catches them yet: {OPEN:?}");
    needed.len() + images == all.len()
}
