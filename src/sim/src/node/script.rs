//! What happens in a seeded run of a node, as a list of steps that can be shortened.

use super::scenes::scene;
use super::world::Plan;
use crate::config::MODES;
use crate::rng::Rng;
use crate::script::{Fault, Weather, fault};
use crate::workload::random_ask;
use crate::world::Ask;
use forebay_cache::engine::CacheMode;
use forebay_io::RequestOp;

/// Largest transfer of the target (MDTS).
const TRANSFER_MAX: u64 = 128 << 10;

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A host, one of those that can, asks.
    Ask(usize, Ask),
    /// Polls.
    Poll(u64),
    /// Polls until so much time has passed.
    Sleep(u64),
    /// The process dies; with it the power, or not.
    Crash(bool),
    /// The same, as soon as an answer is on its way while a cache device has something to do.
    CrashAnswered(bool),
    /// A clean stop and a start.
    Restart,
    /// A mode switch.
    Mode(usize, CacheMode),
    /// A drain.
    Drain(usize),
    /// A fault begins; of a cache device at this reactor.
    Fault(usize, Fault),
    /// All faults of devices end.
    Calm,
    /// The backing devices are judged.
    Places,
    /// A connection, one of those there are, breaks.
    Cut(usize),
    /// Nothing passes between a host and the node.
    Stall(usize, u64),
    /// A reactor stands still.
    Reactor(usize, u64),
    /// A host closes its connections.
    Leave(usize),
    /// A host aborts one of its commands.
    Abort(usize, usize),
}

/// How the devices of a seed misbehave.
#[must_use]
pub fn weather(seed: u64) -> Weather {
    match Rng::new(seed, 42).below(8) {
        0..=3 => Weather::Fair,
        4 | 5 => Weather::Backing,
        _ => Weather::Transient,
    }
}

/// A request that fits a command; with `hot`, many of them of few blocks.
fn ask(volumes: &[(u64, u32)], rng: &mut Rng, most: u64, hot: bool) -> Ask {
    let mut ask = random_ask(volumes, rng, most);
    let (_, unit) = volumes[ask.volume];
    let unit = u64::from(unit);
    if hot && ask.op != RequestOp::Flush && rng.one_in(2) {
        let small = |op| matches!(op, RequestOp::Write | RequestOp::CompareAndWrite);
        if rng.one_in(2) || small(ask.op) {
            (ask.op, ask.spoil) = (RequestOp::CompareAndWrite, rng.one_in(8));
        }
        (ask.offset, ask.len) = (rng.below(2) * 4096, unit);
    }
    if !matches!(ask.op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate) {
        ask.len = ask.len.min(TRANSFER_MAX);
    }
    ask
}

/// The steps of a seed.
#[must_use]
pub fn script(seed: u64, plan: &Plan) -> Vec<Step> {
    let (mut rng, mut scenes) = (Rng::new(seed, 43), Rng::new(seed, 44));
    let weather = weather(seed);
    let volumes: Vec<(u64, u32)> = plan.config.volumes.iter().map(|v| (v.size, v.unit)).collect();
    let mut steps = Vec::new();
    let (total, switches, hot) = (100 + rng.below(250), rng.one_in(2), rng.one_in(2));
    let (most, patience) = (rng.pick(&[2, 16, 40]), rng.pick(&[2, 3, 8]));
    let (crashes, cuts) = (rng.pick(&[0, 60, 120]), rng.pick(&[0, 8, 40]));
    let times = [100_000, 5_000_000, 200_000_000];
    for _ in 0..total {
        match rng.below(400) {
            0..=3 => steps.push(Step::Sleep(rng.pick(&[1_000_000, 20_000_000, 300_000_000]))),
            4 => steps.push(Step::Restart),
            5 | 6 => steps.push(Step::Drain(rng.index(volumes.len()))),
            7..=12 if switches => {
                steps.push(Step::Mode(rng.index(volumes.len()), MODES[rng.index(4)]));
            }
            13..=22 => {
                let found = fault(weather, &plan.config, &mut rng);
                steps.extend(found.map(|fault| Step::Fault(rng.index(2), fault)));
            }
            23..=26 => steps.push(Step::Calm),
            27..=32 => steps.push(Step::Places),
            33..=35 => steps.push(Step::Reactor(rng.index(2), rng.pick(&times))),
            36..=55 => steps.push(Step::Abort(rng.index(plan.hosts.len()), rng.index(16))),
            _ => {}
        }
        if rng.one_in(cuts) {
            let h = rng.index(plan.hosts.len());
            steps.push(match rng.below(6) {
                0 => Step::Stall(h, rng.pick(&[5_000_000, 100_000_000, 4_000_000_000])),
                1 => Step::Leave(h),
                _ => Step::Cut(rng.index(16)),
            });
        }
        if rng.one_in(crashes) {
            steps.push(Step::Crash(rng.one_in(2)));
        }
        steps.push(Step::Ask(rng.index(4), ask(&volumes, &mut rng, most, hot)));
        if rng.one_in(patience) {
            steps.push(Step::Poll(1 + rng.below(6)));
        }
        if scenes.one_in(60) {
            scene(plan, &mut scenes, &mut steps);
        }
    }
    steps
}
