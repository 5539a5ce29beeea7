//! A seeded run of a node: the world of the seed, its script, and at the end, when all faults are over,
//! the checks of everything.

use super::judge::Counts;
use super::script::{Step, script, weather};
use super::world::{Plan, World};
use crate::device::{Device, Injected};
use crate::run::Options;
use crate::script::{Fault, Weather};
use crate::world::Tolerance;
use forebay_io::DeviceError;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Commands under way at most.
const UNDER_WAY_MAX: usize = 32;
/// Polls that one step of the script takes at most.
const POLLS_MAX: u64 = 3_000;
/// Polls at most until an answer is on its way.
const ANSWER_POLLS_MAX: u32 = 200;

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

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Report {
    let mut plan = Plan::of_seed(seed);
    plan.config.plant = options.plant;
    let steps = script(seed, &plan);
    let mut report = Report {
        seed,
        violation: None,
        hash: 0,
        counts: Counts::default(),
        injected: Injected::default(),
        steps: steps.len(),
        lines: Vec::new(),
    };
    let mut world = None;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(plan, options.lines));
        let kept = options.keep.clone().unwrap_or_else(|| (0..steps.len()).collect());
        for step in kept.iter().filter_map(|at| steps.get(*at)) {
            if world.failed() {
                return;
            }
            carry_out(world, weather(seed), step);
        }
        finish(world);
    }));
    let panicked = ended.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("panic: {}", text.unwrap_or_default())
    });
    if let Some(mut world) = world {
        report.violation = world.judge.violation.take();
        report.hash = world.judge.hash;
        report.counts = world.judge.counts;
        report.injected = world.injected();
        report.lines = world.judge.lines.take().unwrap_or_default();
    }
    report.violation = report.violation.or(panicked);
    report
}

fn carry_out(world: &mut World, weather: Weather, step: &Step) {
    match step {
        Step::Ask(pick, ask) => {
            let mut polls = 0;
            while world.judge.asked.len() >= UNDER_WAY_MAX && !world.failed() {
                world.step();
                polls += 1;
                if polls > POLLS_MAX {
                    // Devices hang: the hosts wait, and so does this command.
                    return;
                }
            }
            world.ask(*pick, ask.clone());
        }
        Step::Poll(n) => (0..*n).for_each(|_| world.step()),
        Step::Sleep(time) => {
            let end = world.now + time;
            let mut polls = 0;
            while world.now < end && polls < POLLS_MAX && !world.failed() {
                world.step();
                polls += 1;
            }
        }
        // A cache that failed is put on record and not trusted again.
        Step::Crash(_) | Step::CrashAnswered(_) | Step::Restart if world.cache_failed => {}
        Step::Crash(power) => world.crash(*power),
        Step::CrashAnswered(power) => {
            for _ in 0..ANSWER_POLLS_MAX {
                if world.failed() || world.answers_early() {
                    break;
                }
                world.step();
            }
            if !world.cache_failed {
                world.crash(*power);
            }
        }
        Step::Restart => {
            world.calm();
            world.restart();
        }
        Step::Mode(volume, mode) => world.set_mode(*volume, *mode),
        Step::Drain(volume) => world.drain(*volume),
        Step::Fault(reactor, fault) => {
            world.judge.line(|| format!("fault  {fault:?} at reactor {reactor}"));
            let fails = world.config.on_failure == forebay_cache::engine::OnFailure::Fail;
            let refused = matches!(weather, Weather::Transient) || fails;
            world.judge.tolerance = Tolerance { refused, ..Tolerance::default() };
            begin(world, *reactor, *fault);
        }
        Step::Calm => world.calm(),
        Step::Places => (0..world.backing.len()).for_each(|volume| world.check_places(volume)),
        Step::Cut(pick) => world.cut(*pick),
        Step::Stall(host, time) => world.stall(*host, *time),
        Step::Reactor(reactor, time) => world.sleep(*reactor, *time),
        Step::Leave(host) => world.leave(*host),
        Step::Abort(host, pick) => world.abort(*host, *pick),
    }
}

fn begin(world: &mut World, reactor: usize, fault: Fault) {
    let fails = |disk: &mut Device, [read, write, flush]: [u64; 3], budget, error| {
        (disk.faults.read, disk.faults.write, disk.faults.flush) = (read, write, flush);
        (disk.faults.budget, disk.faults.error) = (budget, Some(error));
    };
    let cache = &mut world.reactors[reactor].cache;
    match fault {
        Fault::Backing(n, one_in, error) => fails(&mut world.backing[n], one_in, u64::MAX, error),
        Fault::Hang(n) => world.backing[n].faults.hang = true,
        Fault::Slow(n, times) => world.backing[n].faults.slow = times,
        Fault::Cache(one_in, budget) => {
            fails(cache, one_in, budget, DeviceError::Io(5));
            // Three in a row, and the device counts as failed.
            cache.faults.in_a_row = 2;
        }
        Fault::Dry(n) => world.reactors[reactor].pool.dry(n),
        other => world.judge.fail(format!("{other:?} is not among the faults of these runs")),
    }
}

/// The faults are over: every command must end, everything be read right and be destaged.
fn finish(world: &mut World) {
    world.calm();
    world.judge.line(|| "the end: all faults are over".to_owned());
    world.quiesce();
    let end = world.now + 3_000_000_000;
    world.until("time does not pass", |world| world.now >= end);
    // From here on no connection breaks and no host is refused.
    world.settle_down();
    world.check_all();
    for volume in 0..world.backing.len() {
        if !world.failed() {
            world.check_places(volume);
        }
    }
    world.check_backing();
    world.restart();
    world.quiesce();
    world.check_all();
}
