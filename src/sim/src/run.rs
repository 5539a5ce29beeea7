//! A seeded run: the world of the seed, its script, and at the end, when all faults are over, the
//! checks of everything.

use crate::config::Config;
use crate::device::{Device, Faults, Injected};
use crate::script::{Fault, RICHER_FROM, Step, Weather, script, weather};
use crate::world::{Counts, Tolerance, World};
use forebay_io::{DeviceError, RequestOp};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Requests under way at most, and in the richer seeds.
const UNDER_WAY_MAX: [usize; 2] = [24, 64];
/// Polls that one step of the script takes at most.
const POLLS_MAX: u64 = 20_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What is wrong.
    pub violation: Option<String>,
    /// A sum of everything that happened.
    pub hash: u64,
    /// Counts.
    pub counts: Counts,
    /// Faults injected.
    pub injected: Injected,
    /// Steps of the script.
    pub steps: usize,
    /// The timeline, if it was kept.
    pub lines: Vec<String>,
}

/// How a run is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The rule that is removed.
    pub plant: u16,
    /// The timeline is kept.
    pub lines: bool,
    /// Only these steps of the script.
    pub keep: Option<Vec<usize>>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Report {
    let mut config = Config::of_seed(seed);
    config.plant = options.plant;
    let steps = script(seed, &config);
    let total = steps.len();
    let mut world = None;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(config, options.lines));
        let all = 0..total;
        let kept = options.keep.clone().unwrap_or_else(|| all.collect());
        play(world, weather(seed), kept.iter().filter_map(|at| steps.get(*at)));
    }));
    let panicked = ended.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("panic: {}", text.unwrap_or_default())
    });
    match world {
        Some(mut world) => Report {
            seed,
            violation: world.violation.take().or(panicked),
            hash: world.hash,
            counts: world.counts,
            injected: world.injected(),
            steps: total,
            lines: world.lines.take().unwrap_or_default(),
        },
        None => Report {
            seed,
            violation: panicked.or_else(|| Some("the world was not made".to_owned())),
            hash: 0,
            counts: Counts::default(),
            injected: Injected::default(),
            steps: total,
            lines: Vec::new(),
        },
    }
}

fn play<'a>(world: &mut World, weather: Weather, steps: impl Iterator<Item = &'a Step>) {
    if matches!(weather, Weather::Liar) {
        world.oracles.iter_mut().for_each(crate::oracle::Oracle::relax);
    }
    for step in steps {
        if world.violation.is_some() || world.over {
            return;
        }
        carry_out(world, weather, step);
    }
    finish(world, weather);
}

/// Which errors hosts may see from now on.
fn tolerate(world: &mut World, weather: Weather) {
    let fails = world.config.on_failure == forebay_cache::engine::OnFailure::Fail;
    world.tolerance = match weather {
        Weather::Fair => Tolerance::default(),
        Weather::Backing => Tolerance { refused: fails, ..Tolerance::default() },
        // A write whose data finds no buffer is refused.
        Weather::Transient => Tolerance { refused: true, ..Tolerance::default() },
        Weather::Rot => Tolerance { lost: true, ..Tolerance::default() },
        Weather::Gone => Tolerance { lost: true, refused: true, ..Tolerance::default() },
        Weather::Liar => Tolerance { lost: true, refused: true, unbootable: true },
    };
}

fn carry_out(world: &mut World, weather: Weather, step: &Step) {
    match step {
        Step::Ask(ask) => {
            let mut polls = 0;
            let most = UNDER_WAY_MAX[usize::from(world.config.seed >= RICHER_FROM)];
            while world.under_way() >= most && world.violation.is_none() {
                world.step();
                polls += 1;
                if polls > POLLS_MAX {
                    // Devices hang: the hosts wait, and so does this request.
                    return;
                }
            }
            world.ask(ask.clone());
        }
        Step::Poll(n) => (0..*n).for_each(|_| world.step()),
        Step::Sleep(time) => {
            let end = world.now + time;
            let mut polls = 0;
            while world.now < end && polls < POLLS_MAX && world.violation.is_none() {
                world.step();
                polls += 1;
            }
        }
        // A cache that failed is put on record and not trusted again.
        Step::Crash(_) | Step::Restart if world.cache_failed => {}
        Step::Crash(power) => world.crash(*power),
        Step::Restart => {
            calm(world);
            world.restart();
        }
        Step::Mode(volume, mode) => {
            world.set_mode(*volume, *mode);
        }
        Step::Drain(volume) => world.drain(*volume),
        Step::Fault(fault) => {
            world.line(|| format!("fault  {fault:?}"));
            tolerate(world, weather);
            begin(world, *fault);
        }
        Step::Calm => {
            world.line(|| "calm".to_owned());
            calm(world);
        }
        Step::Reattach(_) | Step::Scrub(_) | Step::DrainCrash(..) | Step::Cold(_)
            if world.cache_failed => {}
        Step::Reattach(volume) => {
            calm(world);
            world.reattach(*volume);
        }
        Step::Scrub(volume) => world.scrub(*volume),
        Step::Cold(volume) => {
            calm(world);
            world.cold(*volume);
        }
        Step::DrainCrash(volume, power) => {
            calm(world);
            world.quiesce();
            world.drain_and_wait(*volume);
            if world.violation.is_none() && !world.over {
                world.crash(*power);
            }
        }
        Step::Places => {
            let hard = matches!(weather, Weather::Liar);
            for volume in (0..world.backing.len()).filter(|_| !hard) {
                world.check_places(volume);
            }
        }
    }
}

fn begin(world: &mut World, fault: Fault) {
    let fails = |disk: &mut Device, [read, write, flush]: [u64; 3], budget, error| {
        (disk.faults.read, disk.faults.write, disk.faults.flush) = (read, write, flush);
        (disk.faults.budget, disk.faults.error) = (budget, Some(error));
    };
    match fault {
        Fault::Backing(n, one_in, error) => fails(&mut world.backing[n], one_in, u64::MAX, error),
        Fault::Hang(n) => world.backing[n].faults.hang = true,
        Fault::Slow(n, times) => world.backing[n].faults.slow = times,
        Fault::Cache(one_in, budget) => {
            fails(&mut world.cache, one_in, budget, DeviceError::Io(5));
            // Three in a row, and the device counts as failed.
            world.cache.faults.in_a_row = 2;
        }
        Fault::Gone => fails(&mut world.cache, [1, 1, 1], u64::MAX, DeviceError::Gone),
        Fault::ReadOnly => fails(&mut world.cache, [0, 1, 1], u64::MAX, DeviceError::Io(30)),
        Fault::Rot(blocks) => world.rot(blocks),
        Fault::Reads([stale, misread, flip]) => {
            let faults = &mut world.cache.faults;
            (faults.stale, faults.misread, faults.flip) = (stale, misread, flip);
        }
        Fault::Writes([lose, misplace]) => {
            (world.cache.faults.lose, world.cache.faults.misplace) = (lose, misplace);
        }
        Fault::Lie => world.cache.faults.lie = true,
        Fault::Late(n, one_in) => world.backing[n].faults.late = one_in,
        Fault::Unreadable(blocks) => world.spoil(blocks),
        Fault::Dry(n) => world.pool.dry(n),
    }
}

/// All faults end, other than those that never do.
fn calm(world: &mut World) {
    let gone = world.cache_failed;
    if !gone {
        world.cache.faults = Faults::default();
    }
    for disk in &mut world.backing {
        disk.faults = Faults::default();
    }
    world.pool.dry(0);
}

/// The faults are over: everything must end, be read right, and be destaged.
fn finish(world: &mut World, weather: Weather) {
    calm(world);
    world.line(|| "the end: all faults are over".to_owned());
    world.quiesce();
    world.check_all();
    if world.violation.is_some() || world.cache_failed || world.over {
        return;
    }
    if matches!(weather, Weather::Rot | Weather::Liar) {
        // What was lost counts as dirty until it is written anew.
        world.sweep(RequestOp::Write, 32 << 10);
        world.check_all();
    }
    for volume in 0..world.backing.len() {
        if world.violation.is_none() && !world.over && !matches!(weather, Weather::Liar) {
            world.check_places(volume);
        }
    }
    if world.over {
        return;
    }
    world.check_backing();
    if world.violation.is_none() && !world.over {
        world.restart();
    }
    if world.violation.is_none() && !world.over {
        world.check_all();
    }
}
