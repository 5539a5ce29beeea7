//! What chance alone brings together too seldom: a crash as an answer is on its way, a host that is back
//! before what it left behind has arrived.

use super::script::Step;
use super::world::Plan;
use crate::rng::Rng;
use crate::world::Ask;
use forebay_io::RequestOp;

/// One of the scenes.
pub(super) fn scene(plan: &Plan, rng: &mut Rng, steps: &mut Vec<Step>) {
    if rng.one_in(2) {
        answered(plan, rng, steps);
    } else {
        left_behind(plan, rng, steps);
    }
}

/// A volume, where in it, and the host that asks.
fn place(plan: &Plan, rng: &mut Rng) -> (usize, u64, u64, usize) {
    let volume = rng.index(plan.config.volumes.len());
    let of = plan.config.volumes[volume];
    let subsystem = plan.subsystems.iter().position(|s| s.volumes.contains(&volume));
    let host = plan.hosts.iter().position(|host| Some(host.0) == subsystem);
    let offset = rng.below(of.size / 4096) * 4096;
    (volume, offset, 4096.min(of.size - offset), host.unwrap_or(0))
}

fn ask(op: RequestOp, volume: usize, offset: u64, len: u64) -> Step {
    // The first of the hosts that can.
    Step::Ask(0, Ask { volume, op, offset, len, fua: false, spoil: false })
}

/// Writes, some of them long, and a crash as soon as one is answered while others are under way.
fn answered(plan: &Plan, rng: &mut Rng, steps: &mut Vec<Step>) {
    let (volume, offset, len, _) = place(plan, rng);
    let size = plan.config.volumes[volume].size;
    for _ in 0..1 + rng.below(6) {
        let long = (len * (1 + rng.below(16))).min(size - offset);
        steps.push(ask(RequestOp::Write, volume, offset, long));
        steps.push(Step::Poll(rng.below(4)));
        steps.push(ask(RequestOp::Write, volume, offset, len));
    }
    steps.push(Step::CrashAnswered(rng.one_in(2)));
}

/// Writes that are held up on their way; the host gives its connections up, comes back and reads, and
/// reads again once they must have arrived.
fn left_behind(plan: &Plan, rng: &mut Rng, steps: &mut Vec<Step>) {
    let (volume, offset, len, host) = place(plan, rng);
    for _ in 0..1 + rng.below(4) {
        steps.push(ask(RequestOp::Write, volume, offset, len));
    }
    steps.push(Step::Poll(1 + rng.below(3)));
    steps.push(Step::Stall(host, rng.pick(&[20_000_000, 100_000_000, 400_000_000])));
    steps.push(Step::Leave(host));
    for _ in 0..2 + rng.below(4) {
        steps.push(ask(RequestOp::Read, volume, offset, len));
        steps.push(Step::Sleep(rng.pick(&[1_000_000, 20_000_000, 100_000_000])));
    }
    steps.push(Step::Sleep(500_000_000));
    steps.push(ask(RequestOp::Read, volume, offset, len));
}
