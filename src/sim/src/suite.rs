//! Many runs on all processors, with counts: what the tests of every change and the long run do.

use crate::bounded;
use crate::images::{Effort, ImageCounts};
use crate::node;
use crate::run::{Options, run};
use crate::script::SCENES_FROM;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Failures that are printed.
const PRINTED_MAX: u64 = 12;

/// Calls `work` with 0..n on all processors.
pub fn each(n: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        return;
                    }
                    work(at);
                }
            });
        }
    });
}

/// Seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// The first.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// The rule that is removed.
    pub plant: u16,
}

/// What came of seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeedCounts {
    /// Seeds run.
    pub seeds: u64,
    /// Faults: errors, lies, and writes that a crash dropped, tore or let through, and crashes.
    pub faults: u64,
    /// Crashes.
    pub crashes: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Reads judged.
    pub reads: u64,
    /// Lies that 16 bits of a CRC did not tell from the truth, and that were made other ones.
    pub chances: u64,
    /// Seeds run twice, with equal sums.
    pub equal: u64,
    /// Seeds in which something is wrong, unequal sums included.
    pub violations: u64,
}

impl SeedCounts {
    /// Adds other seeds'.
    const fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.requests += other.requests;
        self.reads += other.reads;
        self.chances += other.chances;
        self.equal += other.equal;
        self.violations += other.violations;
    }
}

/// Runs seeds; one in a hundred twice.
pub fn seeds(seeds: &Seeds) -> SeedCounts {
    let started = Instant::now();
    let counts = Mutex::new(SeedCounts::default());
    each(seeds.count, |at| {
        let seed = seeds.from + at;
        let options = Options { plant: seeds.plant, ..Options::default() };
        let report = run(seed, &options);
        let again = seed.is_multiple_of(100).then(|| run(seed, &options).hash == report.hash);
        let mut counts = counts.lock().expect("no thread panics with it");
        counts.seeds += 1;
        let injected = report.injected;
        counts.crashes += report.counts.crashes;
        counts.faults += injected.errors + injected.lies + injected.crashed + report.counts.crashes;
        counts.requests += report.counts.done + report.counts.failed;
        counts.reads += report.counts.reads;
        counts.chances += injected.chances;
        counts.equal += u64::from(again == Some(true));
        if let Some(what) = &report.violation {
            counts.violations += 1;
            if counts.violations <= PRINTED_MAX {
                println!("seed {seed}: {}", shorten(what));
                println!("    replay: forebay-sim --seed {seed} --plant {}", seeds.plant);
            }
        } else if again == Some(false) {
            counts.violations += 1;
            println!("seed {seed}: two runs differ");
        }
    });
    let counts = counts.into_inner().expect("no thread panics with it");
    println!("{counts:?} in {:.1} s", started.elapsed().as_secs_f64());
    counts
}

/// What came of seeds of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeCounts {
    /// Seeds run.
    pub seeds: u64,
    /// Faults: of devices, crashes, and of the network.
    pub faults: u64,
    /// What the runs counted.
    pub counts: node::judge::Counts,
    /// Seeds run twice, with equal sums.
    pub equal: u64,
    /// Seeds in which something is wrong, unequal sums included.
    pub violations: u64,
}

/// Runs seeds of a whole node with hosts; one in a hundred twice.
pub fn node(seeds: &Seeds) -> NodeCounts {
    let started = Instant::now();
    let counts = Mutex::new(NodeCounts::default());
    each(seeds.count, |at| {
        let seed = seeds.from + at;
        let options = Options { plant: seeds.plant, ..Options::default() };
        let report = node::run::run(seed, &options);
        let again = || node::run::run(seed, &options).hash == report.hash;
        let again = seed.is_multiple_of(100).then(again);
        let mut counts = counts.lock().expect("no thread panics with it");
        counts.seeds += 1;
        let (injected, ran) = (report.injected, report.counts);
        counts.faults += injected.errors + injected.crashed + ran.crashes + ran.network;
        counts.counts.add(&ran);
        counts.equal += u64::from(again == Some(true));
        if let Some(what) = &report.violation {
            counts.violations += 1;
            if counts.violations <= PRINTED_MAX {
                println!("node seed {seed}: {}", shorten(what));
                println!("    replay: forebay-sim node --seed {seed} --plant {}", seeds.plant);
            }
        } else if again == Some(false) {
            counts.violations += 1;
            println!("node seed {seed}: two runs differ");
        }
    });
    let all = counts.into_inner().expect("no thread panics with it");
    let counts = &all.counts;
    println!(
        "node: {} seeds with two shards and NVMe/TCP hosts, {} faults injected ({} crashes, {} of network and reactors), {} associations, \
         {} commands ended well, {} in an error, {} lost with a connection, {} sent again, {} messages between shards, {} reads judged, \
         {} seeds run twice with equal sums; {} violations; {:.0} s",
        all.seeds,
        all.faults,
        counts.crashes,
        counts.network,
        counts.associations,
        counts.done,
        counts.failed,
        counts.lost,
        counts.again,
        counts.messages,
        counts.reads,
        all.equal,
        all.violations,
        started.elapsed().as_secs_f64()
    );
    all
}

fn shorten(what: &str) -> &str {
    let end = what.char_indices().nth(600).map_or(what.len(), |(at, _)| at);
    &what[..end]
}

/// Crash images to look at.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// Longer workloads rather than bounded ones.
    pub long: bool,
    /// The first workload.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// From one to the next.
    pub step: u64,
    /// The rule that is removed.
    pub plant: u16,
    /// How much is tried.
    pub effort: Effort,
    /// One moment and image alone.
    pub only: Option<(usize, usize)>,
    /// The timeline is printed.
    pub lines: bool,
}

/// What came of images.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImagesDone {
    /// Counts.
    pub counts: ImageCounts,
    /// Workloads with a bad image.
    pub violations: u64,
}

/// Runs workloads and looks at their images.
pub fn images(images: &Images) -> ImagesDone {
    let started = Instant::now();
    let name = if images.long { "long" } else { "bounded" };
    let all = Mutex::new(ImagesDone::default());
    each(images.count, |at| {
        let n = images.from + at * images.step;
        let mut counts = ImageCounts::default();
        let run = if images.long { bounded::long } else { bounded::run };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(n, images.plant, &images.effort, images.only, images.lines, &mut counts)
        }));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Err((format!("panic: {text}"), Vec::new()))
        });
        let mut all = all.lock().expect("no thread panics with it");
        all.counts.add(&counts);
        if let Err((what, lines)) = result {
            all.violations += 1;
            if all.violations <= PRINTED_MAX {
                lines.iter().for_each(|line| println!("{line}"));
                println!("{name} {n}: {}", shorten(&what));
                if !images.long {
                    println!("    {:?}", bounded::workload(n));
                }
                println!("    replay: forebay-sim {name} --from {n} --count 1 --lines 1");
            }
        }
    });
    let all = all.into_inner().expect("no thread panics with it");
    println!("{name}: {all:?} in {:.1} s", started.elapsed().as_secs_f64());
    all
}

/// How large a run of everything is.
struct Size {
    /// Bounded workloads of one and two operations: one in this many.
    pairs: u64,
    /// Bounded workloads of three operations: one in this many.
    triples: u64,
    longs: u64,
    effort: Effort,
    seeds: u64,
    /// Seeds with scenes.
    scenes: u64,
    /// Runs in write-back-ordered.
    ordered: u64,
    /// The same with an ordered journal.
    journal: u64,
    /// Seeds of a whole node.
    nodes: u64,
}

fn all(size: &Size) -> bool {
    let started = Instant::now();
    let plain = Images {
        long: false,
        from: 0,
        count: bounded::count(2).div_ceil(size.pairs),
        step: size.pairs,
        plant: 0,
        effort: size.effort,
        only: None,
        lines: false,
    };
    let pairs = images(&plain);
    let (from, end) = (bounded::count(2), bounded::count(3));
    let count = (end - from).div_ceil(size.triples);
    let triples = images(&Images { from, count, step: size.triples, ..plain });
    let longs = images(&Images { long: true, count: size.longs, step: 1, ..plain });
    let mut seeded = seeds(&Seeds { from: 0, count: size.seeds, plant: 0 });
    seeded.add(&seeds(&Seeds { from: SCENES_FROM, count: size.scenes, plant: 0 }));
    let ordered = crate::ordered::seeds(0, size.ordered, crate::ordered::STEPS, false, false);
    let journal = crate::ordered::seeds(0, size.journal, crate::ordered::STEPS, false, true);
    let nodes = node(&Seeds { from: 0, count: size.nodes, plant: 0 });
    let mut counts = pairs.counts;
    counts.add(&triples.counts);
    counts.add(&longs.counts);
    let violations = pairs.violations + triples.violations + longs.violations + seeded.violations;
    let violations = violations + ordered.violations + journal.violations;
    println!(
        "sim: {} seeds, {} faults injected, {} crashes, {} reads judged, {} seeds run twice with equal sums; \
         {} crash images of {} histories ({} torn, {} with recovery interrupted, {} drained); {violations} violations; {:.0} s",
        seeded.seeds,
        seeded.faults,
        seeded.crashes,
        seeded.reads,
        seeded.equal,
        counts.images,
        counts.histories,
        counts.torn,
        counts.interrupted,
        counts.drained,
        started.elapsed().as_secs_f64()
    );
    violations + nodes.violations == 0
}

/// What is run for every change.
pub fn ci() -> bool {
    let effort = Effort { per_cut: 12, stride: 2, interrupt: 10, drain: 10 };
    all(&Size {
        pairs: 13,
        triples: 801,
        longs: 60,
        effort,
        seeds: 2000,
        scenes: 200,
        ordered: 320,
        journal: 600,
        nodes: 300,
    })
}

/// The long run.
pub fn soak() -> bool {
    let effort = Effort { per_cut: 24, stride: 1, interrupt: 6, drain: 6 };
    all(&Size {
        pairs: 1,
        triples: 31,
        longs: 2000,
        effort,
        seeds: 20_000,
        scenes: 2000,
        ordered: 2000,
        journal: 6000,
        nodes: 5000,
    })
}
