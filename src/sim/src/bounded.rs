//! Bounded workloads, all of them up to three operations, in every mode, one after the other and at
//! once, on a cache that is empty, holds clean and dirty data, or is about to change its segment; and
//! longer ones from seeds, with destage and reclaim.

use crate::config::{Config, MODES, VolumeConfig};
use crate::images::{BadImage, Effort, History, ImageCounts};
use crate::rng::Rng;
use crate::script::RICHER_FROM;
use crate::world::{Ask, World};
use forebay_cache::engine::{CacheMode, Limits};
use forebay_io::{Duration, RequestOp};

/// One operation of a bounded workload; blocks are of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Write these blocks; FUA.
    Write(u64, u64, bool),
    /// Write half a sector range inside a block: bytes.
    Part(u64, u64),
    /// Write zeroes.
    Zeroes(u64, u64),
    /// Deallocate.
    Discard(u64, u64),
    /// Compare and write.
    Swap(u64, u64),
    /// Read.
    Read(u64, u64),
    /// Flush.
    Flush,
    /// Switch to this mode.
    Mode(CacheMode),
    /// Drain.
    Drain,
}

/// All operations: overlapping, disjoint, with and without data, whole and in part.
pub const ALPHABET: [Do; 18] = [
    Do::Write(0, 2, false),
    Do::Write(1, 2, false),
    Do::Write(8, 1, false),
    Do::Write(0, 2, true),
    Do::Write(0, 20, false),
    Do::Part(4096 + 512, 1024),
    Do::Part(3072, 2048),
    Do::Zeroes(0, 20),
    Do::Zeroes(1, 1),
    Do::Discard(0, 4),
    Do::Swap(0, 1),
    Do::Read(0, 4),
    Do::Flush,
    Do::Drain,
    Do::Mode(CacheMode::WriteBack),
    Do::Mode(CacheMode::WriteThrough),
    Do::Mode(CacheMode::WriteAround),
    Do::Mode(CacheMode::PassThrough),
];

/// What the cache holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prelude {
    /// Nothing.
    Empty,
    /// Data of the same blocks, clean and dirty, and zeroes.
    Warm,
    /// The journal's segment is nearly full.
    Brink,
}

/// A bounded workload.
#[derive(Clone, Debug)]
pub struct Bounded {
    /// The operations.
    pub ops: Vec<Do>,
    /// The mode at first.
    pub mode: CacheMode,
    /// The cache device has a volatile write cache.
    pub volatile: bool,
    /// All are asked at once.
    pub at_once: bool,
    /// What the cache holds before.
    pub prelude: Prelude,
}

/// Ways in which one sequence of operations is run.
const WAYS: u64 = 4 * 2 * 2 * 3;

/// How many workloads of at most `ops` operations there are.
#[must_use]
pub fn count(ops: u32) -> u64 {
    (1..=ops).map(|n| (ALPHABET.len() as u64).pow(n)).sum::<u64>() * WAYS
}

/// Workload number `n`: those of one operation first.
#[must_use]
pub fn workload(n: u64) -> Bounded {
    let (mut way, mut which) = (n % WAYS, n / WAYS);
    let base = ALPHABET.len() as u64;
    let mut len = 1;
    while which >= base.pow(len) {
        which -= base.pow(len);
        len += 1;
    }
    let mut take = |of: u64| {
        let at = way % of;
        way /= of;
        usize::try_from(at).unwrap_or(0)
    };
    let mode = MODES[take(4)];
    let (volatile, at_once) = (take(2) == 1, take(2) == 1);
    let prelude = [Prelude::Empty, Prelude::Warm, Prelude::Brink][take(3)];
    let ops = (0..len).map(|i| ALPHABET[usize::try_from(which / base.pow(i) % base).unwrap_or(0)]);
    Bounded { ops: ops.collect(), mode, volatile, at_once, prelude }
}

fn carry_out(world: &mut World, what: Do) {
    let ask = |op, offset, len, fua| Ask { volume: 0, op, offset, len, fua, spoil: false };
    let blocks = |op, (first, n): (u64, u64), fua| ask(op, first * 4096, n * 4096, fua);
    let ask = match what {
        Do::Write(first, n, fua) => blocks(RequestOp::Write, (first, n), fua),
        Do::Part(offset, len) => ask(RequestOp::Write, offset, len, false),
        Do::Zeroes(first, n) => {
            blocks(RequestOp::WriteZeroes { deallocate: false }, (first, n), false)
        }
        Do::Discard(first, n) => blocks(RequestOp::Deallocate, (first, n), false),
        Do::Swap(first, n) => blocks(RequestOp::CompareAndWrite, (first, n), false),
        Do::Read(first, n) => blocks(RequestOp::Read, (first, n), false),
        Do::Flush => ask(RequestOp::Flush, 0, 0, false),
        Do::Mode(mode) => {
            world.set_mode(0, mode);
            return;
        }
        Do::Drain => return world.drain(0),
    };
    world.ask(ask);
}

/// Runs one workload and looks at all its crash images. `only`: one moment and image.
///
/// # Errors
/// What is wrong.
pub fn run(
    n: u64,
    plant: u16,
    effort: &Effort,
    only: Option<(usize, usize)>,
    lines: bool,
    counts: &mut ImageCounts,
) -> Result<(), (String, Vec<String>)> {
    let bounded = workload(n);
    let volume = VolumeConfig { size: 24 * 4096 + 1024, unit: 512, mode: bounded.mode };
    let mut config = Config::small(n, 16, 12, volume);
    config.volatile = bounded.volatile;
    config.plant = plant;
    config.limits = Limits { dirty_age: Duration::from_micros(300), ..Limits::default() };
    let mut world = World::new(config, lines);
    prepare(&mut world, bounded.prelude);
    let mut history = Some(History::begin(&mut world));
    for what in &bounded.ops {
        carry_out(&mut world, *what);
        if !bounded.at_once {
            world.quiesce();
        }
    }
    world.quiesce();
    // Destage and what a switch has left to do.
    for _ in 0..60 {
        world.step();
    }
    finish(world, &mut history, |history| {
        history.explore(effort, &mut Rng::new(n, 5), only, counts)
    })
}

fn prepare(world: &mut World, prelude: Prelude) {
    match prelude {
        Prelude::Empty => {}
        Prelude::Warm => {
            carry_out(world, Do::Write(0, 6, false));
            carry_out(world, Do::Zeroes(8, 16));
            world.quiesce();
            world.drain_and_wait(0);
            carry_out(world, Do::Read(0, 24));
            carry_out(world, Do::Write(2, 1, false));
            carry_out(world, Do::Write(9, 1, false));
            world.quiesce();
        }
        Prelude::Brink => {
            carry_out(world, Do::Write(0, 8, false));
            world.quiesce();
            carry_out(world, Do::Write(3, 1, false));
            world.quiesce();
        }
    }
}

/// Ends the record and looks at it.
fn finish(
    mut world: World,
    history: &mut Option<History>,
    explore: impl FnOnce(History) -> Result<(), BadImage>,
) -> Result<(), (String, Vec<String>)> {
    let Some(mut history) = history.take() else { return Ok(()) };
    history.end(&mut world);
    let lines = world.lines.take().unwrap_or_default();
    if let Some(what) = world.violation {
        return Err((format!("before any crash: {what}"), lines));
    }
    explore(history)
        .map_err(|bad| (format!("moment {} image {}: {}", bad.cut, bad.image, bad.what), lines))
}

/// Runs a longer workload of a seed and looks at its crash images: a small cache that is turned over,
/// so that segments are sealed, destaged, reclaimed and used again meanwhile.
///
/// # Errors
/// What is wrong.
pub fn long(
    seed: u64,
    plant: u16,
    effort: &Effort,
    only: Option<(usize, usize)>,
    lines: bool,
    counts: &mut ImageCounts,
) -> Result<(), (String, Vec<String>)> {
    let mut rng = Rng::new(seed, 6);
    let unit = rng.pick(&[512, 4096]);
    let mode = MODES[rng.index(8) % 4];
    // A few blocks, written again and again while they are destaged; or more than the cache takes.
    let hot = seed >= RICHER_FROM;
    let blocks = if hot { 2 + rng.below(10) } else { 32 + rng.below(96) };
    let volume = VolumeConfig { size: blocks * 4096, unit, mode };
    let mut config = Config::small(seed, 16, 10 + rng.below(6), volume);
    if hot {
        (config.cache_latency, config.backing_latency) = ((10_000, 900_000), (20_000, 60_000));
    }
    config.volatile = rng.one_in(3);
    config.plant = plant;
    config.tier_pages = rng.pick(&[0, 0, 8]);
    config.write_zeroes = !rng.one_in(4);
    config.limits = Limits {
        dirty_age: Duration::from_micros(rng.pick(&[300, 3000, 100_000])),
        ..Limits::default()
    };
    if rng.one_in(4) {
        config.volumes.push(VolumeConfig {
            size: 40 * 4096,
            unit: 4096,
            mode: MODES[rng.index(4)],
        });
    }
    let mut world = World::new(config, lines);
    for _ in 0..rng.below(200) {
        crate::workload::random_op(&mut world, &mut rng, 24);
    }
    let mut history = Some(History::begin(&mut world));
    for _ in 0..60 + rng.below(100) {
        crate::workload::random_op(&mut world, &mut rng, 24);
        if rng.one_in(if hot { 12 } else { 40 }) {
            let mode = MODES[rng.index(4)];
            world.set_mode(0, mode);
        }
    }
    finish(world, &mut history, |history| {
        history.explore(effort, &mut Rng::new(seed, 5), only, counts)
    })
}
