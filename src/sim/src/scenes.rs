//! What chance alone brings together too seldom, as steps of a run.

use crate::config::Config;
use crate::rng::Rng;
use crate::script::{Fault, Step, Weather};
use crate::world::Ask;
use forebay_cache::engine::CacheMode;
use forebay_io::{DeviceError, RequestOp};

/// One of the scenes.
pub(crate) fn scene(weather: Weather, config: &Config, rng: &mut Rng, steps: &mut Vec<Step>) {
    match rng.below(4) {
        0 | 1 if weather == Weather::Backing => unflushed_copy(config, rng, steps),
        0 | 2 => cut_switch(config, rng, steps),
        _ => crowd(config, rng, steps),
    }
}

/// Blocks of a volume: the volume, where, how long.
fn place(config: &Config, rng: &mut Rng) -> (usize, u64, u64) {
    let volume = rng.index(config.volumes.len());
    let size = config.volumes[volume].size;
    let offset = rng.below(size / 4096) * 4096;
    (volume, offset, (4096 * (1 + rng.below(4))).min(size - offset))
}

fn ask(op: RequestOp, volume: usize, offset: u64, len: u64) -> Step {
    Step::Ask(Ask { volume, op, offset, len, fua: false, spoil: false })
}

/// A backing device whose flushes fail gets a write in pass-through; then the volume is cached again, the
/// write is read back, and the power goes: a copy in the cache must not outlive what it is a copy of.
fn unflushed_copy(config: &Config, rng: &mut Rng, steps: &mut Vec<Step>) {
    let (volume, offset, len) = place(config, rng);
    steps.push(Step::Mode(volume, CacheMode::PassThrough));
    steps.push(Step::Sleep(rng.pick(&[20_000_000, 100_000_000])));
    steps.push(Step::Fault(Fault::Backing(volume, [0, 0, 1], DeviceError::Io(5))));
    steps.push(ask(RequestOp::Write, volume, offset, len));
    steps.push(Step::Sleep(20_000_000));
    let caches = rng.pick(&[CacheMode::WriteAround, CacheMode::WriteBack, CacheMode::WriteThrough]);
    steps.push(Step::Mode(volume, caches));
    for _ in 0..2 {
        // The second read is what a ghost of the first admits.
        steps.push(Step::Sleep(rng.pick(&[5_000_000, 50_000_000])));
        steps.push(ask(RequestOp::Read, volume, offset, len));
    }
    steps.push(Step::Sleep(rng.pick(&[5_000_000, 50_000_000])));
    steps.push(Step::Crash(true));
}

/// A switch to a mode that bypasses the log is cut off while data is dirty.
fn cut_switch(config: &Config, rng: &mut Rng, steps: &mut Vec<Step>) {
    let (volume, offset, len) = place(config, rng);
    steps.push(Step::Mode(volume, CacheMode::WriteBack));
    steps.push(Step::Sleep(20_000_000));
    steps.push(ask(RequestOp::Write, volume, offset, len));
    steps.push(Step::Poll(1 + rng.below(12)));
    let bypass = rng.pick(&[CacheMode::PassThrough, CacheMode::WriteAround]);
    steps.push(Step::Mode(volume, bypass));
    steps.push(Step::Poll(rng.below(4)));
    steps.push(Step::Crash(rng.one_in(2)));
    steps.push(ask(RequestOp::Read, volume, offset, len));
}

/// Blocks that are not cached are read by many at once, so that several fills have them, and written.
fn crowd(config: &Config, rng: &mut Rng, steps: &mut Vec<Step>) {
    let (volume, offset, len) = place(config, rng);
    let size = config.volumes[volume].size;
    steps.push(Step::Mode(volume, CacheMode::PassThrough));
    steps.push(Step::Sleep(rng.pick(&[20_000_000, 100_000_000])));
    let caches = rng.pick(&[CacheMode::WriteAround, CacheMode::WriteBack, CacheMode::WriteThrough]);
    steps.extend([Step::Mode(volume, caches), Step::Sleep(10_000_000)]);
    for _ in 0..3 + rng.below(6) {
        let from = offset.saturating_sub(4096 * rng.below(16));
        let long = (offset + len - from + 4096 * rng.below(16)).min(size - from);
        steps.push(ask(RequestOp::Read, volume, from, long));
        if rng.one_in(3) {
            steps.push(ask(RequestOp::Write, volume, offset, len));
        }
        steps.push(Step::Poll(rng.below(3)));
    }
    steps.push(Step::Sleep(rng.pick(&[1_000_000, 10_000_000])));
    steps.push(ask(RequestOp::Read, volume, offset, len));
}
