//! What happens in a seeded run, as a list of steps that can be shortened.

use crate::config::{Config, MODES, VolumeConfig};
use crate::rng::Rng;
use crate::scenes::scene;
use crate::workload::random_ask;
use crate::world::Ask;
use forebay_cache::engine::CacheMode;
use forebay_io::{DeviceError, RequestOp};

/// How the devices of a run misbehave, besides crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// They do not.
    Fair,
    /// Backing devices fail, hang, are slow, full or gone for a while.
    Backing,
    /// Operations of the cache device fail once or twice; buffers run out.
    Transient,
    /// Data on the cache device rots, reads return other places, older data, flipped bits.
    Rot,
    /// The cache device fails for good.
    Gone,
    /// The cache device loses or misplaces writes, or lies about flushes: what it then lost is not
    /// survived, only foreign data must not be seen.
    Liar,
}

/// The weather of a seed.
#[must_use]
pub fn weather(seed: u64) -> Weather {
    if seed >= SCENES_FROM && seed.is_multiple_of(2) {
        return Weather::Backing;
    }
    match Rng::new(seed, 20).below(12) {
        0..=3 => Weather::Fair,
        4 | 5 => Weather::Backing,
        6 | 7 => Weather::Transient,
        8 | 9 => Weather::Rot,
        10 => Weather::Gone,
        _ => Weather::Liar,
    }
}

/// A fault that begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Operations of a volume's backing device fail: reads, writes, flushes one in so many.
    Backing(usize, [u64; 3], DeviceError),
    /// A backing device does not answer.
    Hang(usize),
    /// A backing device is slow.
    Slow(usize, u64),
    /// Operations of the cache device fail, so many times.
    Cache([u64; 3], u64),
    /// The cache device is gone.
    Gone,
    /// The cache device does not take writes any more.
    ReadOnly,
    /// So many blocks of data on the cache device rot.
    Rot(u64),
    /// Reads of the cache device return: older data, another place, a flipped bit.
    Reads([u64; 3]),
    /// Writes of the cache device are lost, or misplaced.
    Writes([u64; 2]),
    /// Flushes of the cache device do nothing.
    Lie,
    /// Writes of a volume's backing device time out, one in so many, and are carried out later.
    Late(usize, u64),
    /// So many blocks of data on the cache device cannot be read until they are written.
    Unreadable(u64),
    /// The pool of buffers is empty, one time in so many.
    Dry(u64),
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A host asks.
    Ask(Ask),
    /// Polls.
    Poll(u64),
    /// Polls until so much time has passed.
    Sleep(u64),
    /// The process dies; with it the power, or not.
    Crash(bool),
    /// A clean stop and a start.
    Restart,
    /// A mode switch.
    Mode(usize, CacheMode),
    /// A drain.
    Drain(usize),
    /// A fault begins.
    Fault(Fault),
    /// All faults end.
    Calm,
    /// The backing devices are judged.
    Places,
    /// A volume leaves the cache and comes back.
    Reattach(usize),
    /// A scrub.
    Scrub(usize),
    /// Starts without footers, and writes around what is not back.
    Cold(usize),
    /// A drain, and a crash as soon as it is over.
    DrainCrash(usize, bool),
}

/// From this seed on runs have faults that earlier ones have not, whose histories are kept as they
/// were when they found something.
const MORE_FROM: u64 = 10_000;

/// One richer seed in so many ends with starts whose footers cannot be read; others are named by tests.
const COLD: u64 = 4;

/// The faults of later seeds.
fn more(weather: Weather, config: &Config, rng: &mut Rng) -> Option<Fault> {
    match weather {
        Weather::Backing => {
            Some(Fault::Late(rng.index(config.volumes.len()), rng.pick(&[1, 3, 10])))
        }
        Weather::Rot => Some(Fault::Unreadable(1 + rng.below(8))),
        _ => None,
    }
}

/// Seeds from here on do more than those before: bursts, hosts that read what they wrote and that
/// compete, detached volumes, scrub, crashes after drains, longer failures. What the ones before do stays
/// as it is: the regression tests name some of them.
pub const RICHER_FROM: u64 = 1000;

/// Seeds from here on have scenes, too.
pub const SCENES_FROM: u64 = 100_000;

pub(crate) fn fault(weather: Weather, config: &Config, rng: &mut Rng) -> Option<Fault> {
    let volume = rng.index(config.volumes.len());
    let some = |rng: &mut Rng| if rng.one_in(2) { rng.pick(&[1, 2, 5, 20]) } else { 0 };
    match weather {
        Weather::Fair => None,
        Weather::Backing => Some(match rng.below(6) {
            0 => Fault::Hang(volume),
            1 => Fault::Slow(volume, rng.pick(&[10, 100])),
            2 => Fault::Backing(volume, [0, 1, 0], DeviceError::NoSpace),
            3 => Fault::Backing(volume, [1, 1, 1], DeviceError::Gone),
            _ => Fault::Backing(volume, [some(rng), some(rng), some(rng)], DeviceError::Io(5)),
        }),
        Weather::Transient => Some(match rng.below(3) {
            0 => Fault::Dry(rng.pick(&[2, 10, 50])),
            _ => Fault::Cache([some(rng), some(rng), some(rng)], 2),
        }),
        Weather::Rot => Some(match rng.below(3) {
            0 => Fault::Rot(1 + rng.below(8)),
            _ => {
                let mut one = [0; 3];
                one[rng.index(3)] = rng.pick(&[3, 10, 40]);
                Fault::Reads(one)
            }
        }),
        Weather::Gone => Some(if rng.one_in(2) { Fault::Gone } else { Fault::ReadOnly }),
        Weather::Liar => Some(match rng.below(3) {
            0 => Fault::Lie,
            1 => Fault::Writes([rng.pick(&[5, 30]), 0]),
            _ => Fault::Writes([0, rng.pick(&[5, 30])]),
        }),
    }
}

/// The steps of a seed.
#[must_use]
pub fn script(seed: u64, config: &Config) -> Vec<Step> {
    let mut rng = Rng::new(seed, 21);
    let mut extra = Rng::new(seed, 22);
    let weather = weather(seed);
    let volumes: Vec<(u64, u32)> = config.volumes.iter().map(|v| (v.size, v.unit)).collect();
    let mut steps = Vec::new();
    let (total, switches) = (150 + rng.below(350), rng.one_in(2));
    let (most, patience) = (rng.pick(&[2, 16, 40]), rng.pick(&[2, 3, 8]));
    let crashes = rng.pick(&[0, 60, 120]);
    let mut scan = 0;
    let mut scenes = (seed >= SCENES_FROM).then(|| Rng::new(seed, 23));
    let mut richer = (seed >= RICHER_FROM).then(|| Rng::new(seed, 22));
    for _ in 0..total {
        match rng.below(400) {
            0..=3 => steps.push(Step::Sleep(rng.pick(&[1_000_000, 20_000_000, 300_000_000]))),
            4 => steps.push(Step::Restart),
            5 | 6 => steps.push(Step::Drain(rng.index(volumes.len()))),
            7..=12 if switches => {
                steps.push(Step::Mode(rng.index(volumes.len()), MODES[rng.index(4)]));
            }
            13..=22 => steps.extend(fault(weather, config, &mut rng).map(Step::Fault)),
            23..=26 => steps.push(Step::Calm),
            27..=32 => steps.push(Step::Places),
            33 => scan = 20,
            _ => {}
        }
        if rng.one_in(crashes) {
            steps.push(Step::Crash(rng.one_in(2)));
        }
        let mut ask = random_ask(&volumes, &mut rng, most);
        if scan > 0 {
            // A scan in long reads.
            scan -= 1;
            let (size, unit) = volumes[ask.volume];
            let unit = u64::from(unit);
            ask.op = RequestOp::Read;
            ask.fua = false;
            ask.offset = ((20 - scan) * (32 << 10)) % size / unit * unit;
            ask.len = (32 << 10).min(size - ask.offset);
        }
        let last = ask.clone();
        steps.push(Step::Ask(ask));
        if seed >= MORE_FROM && extra.one_in(80) {
            steps.extend(more(weather, config, &mut extra).map(Step::Fault));
        }
        if let Some(rng) = &mut richer {
            richer_steps(weather, config, &last, rng, &mut steps);
        }
        if let Some(rng) = &mut scenes
            && rng.one_in(60)
        {
            scene(weather, config, rng, &mut steps);
        }
        if rng.one_in(patience) {
            steps.push(Step::Poll(1 + rng.below(4)));
        }
    }
    let whole = matches!(weather, Weather::Fair | Weather::Backing | Weather::Transient);
    if seed >= RICHER_FROM && seed.is_multiple_of(COLD) && whole {
        steps.push(Step::Cold(rng.index(volumes.len())));
    }
    steps
}

/// What the richer seeds do besides.
fn richer_steps(
    weather: Weather,
    config: &Config,
    last: &Ask,
    rng: &mut Rng,
    steps: &mut Vec<Step>,
) {
    let volume = rng.index(config.volumes.len());
    let keeps = !matches!(weather, Weather::Rot | Weather::Gone | Weather::Liar);
    if last.op == RequestOp::CompareAndWrite && rng.one_in(2) {
        steps.push(Step::Ask(last.clone()));
    } else if rng.one_in(6) && last.len > 0 {
        if rng.one_in(2) {
            steps.push(Step::Poll(1 + rng.below(12)));
        }
        let op = RequestOp::Read;
        steps.push(Step::Ask(Ask { op, fua: false, spoil: false, ..last.clone() }));
    }
    match rng.below(160) {
        0 | 1 => burst(volume, config, rng, steps),
        2 if keeps => steps.push(Step::Reattach(volume)),
        3 => steps.push(Step::Scrub(volume)),
        4 if weather == Weather::Rot => {
            steps.push(Step::Fault(Fault::Rot(4)));
            steps.push(Step::Scrub(volume));
        }
        5 if keeps => steps.push(Step::DrainCrash(volume, rng.one_in(2))),
        6..=8 if weather == Weather::Backing => {
            let one_in = [rng.pick(&[0, 3]), rng.pick(&[0, 2, 4]), rng.pick(&[0, 1, 2])];
            steps.push(Step::Fault(Fault::Backing(volume, one_in, DeviceError::Io(5))));
            steps.push(Step::Drain(volume));
            steps.push(Step::Sleep(rng.pick(&[1_000_000, 20_000_000, 200_000_000])));
            steps.push(Step::Places);
            if rng.one_in(2) {
                flush(last, rng, steps);
            }
            steps.push(Step::Calm);
            steps.push(Step::Sleep(100_000_000));
            steps.push(Step::Places);
        }
        9 | 10 if keeps => flush(last, rng, steps),
        _ => {}
    }
}

/// Flushes at once, and a loss of power as soon as one of them may have ended.
fn flush(last: &Ask, rng: &mut Rng, steps: &mut Vec<Step>) {
    if last.len == 0 {
        return;
    }
    let write = Ask { op: RequestOp::Write, fua: false, ..last.clone() };
    let flush = Ask { op: RequestOp::Flush, offset: 0, len: 0, fua: false, ..last.clone() };
    steps.extend([Step::Ask(write), Step::Sleep(rng.pick(&[1_000_000, 25_000_000]))]);
    steps.extend([Step::Ask(flush.clone()), Step::Poll(rng.below(4)), Step::Ask(flush)]);
    steps.extend([Step::Poll(1 + rng.below(6)), Step::Crash(true)]);
}

/// Many overlapping requests before the next poll: more than the logs take at once.
fn burst(volume: usize, config: &Config, rng: &mut Rng, steps: &mut Vec<Step>) {
    let VolumeConfig { size, unit, .. } = config.volumes[volume];
    let (unit, blocks) = (u64::from(unit), size / 4096);
    let hot = blocks.min(8 + rng.below(56));
    let base = rng.below(blocks - hot + 1) * 4096;
    let (longest, polls) = (rng.pick(&[2, 8, 40]), rng.pick(&[0, 2, 4]));
    if rng.one_in(3) {
        steps.push(Step::Mode(volume, CacheMode::WriteThrough));
    }
    for _ in 0..10 + rng.below(30) {
        let mut offset = base + rng.below(hot) * 4096;
        let mut len = (1 + rng.below(longest)) * 4096;
        if rng.one_in(4) {
            offset += rng.below(4096 / unit) * unit;
            len = len - 4096 + unit * (1 + rng.below(4096 / unit));
        }
        let op = match rng.below(12) {
            0 | 1 => RequestOp::Read,
            2 => {
                // A long one with parts of blocks at both ends.
                len = 24 * 4096 - unit;
                RequestOp::WriteZeroes { deallocate: false }
            }
            _ => RequestOp::Write,
        };
        if rng.one_in(polls) {
            steps.push(Step::Poll(1));
        }
        let len = len.min(base + hot * 4096 - offset);
        steps.push(Step::Ask(Ask { volume, op, offset, len, fua: false, spoil: false }));
    }
    steps.push(Step::Sleep(rng.pick(&[10_000, 1_000_000, 40_000_000])));
    for block in 0..hot / 8 {
        let (op, offset, len) = (RequestOp::Read, base + block * (8 << 12), 8 << 12);
        steps.push(Step::Ask(Ask { volume, op, offset, len, fua: false, spoil: false }));
    }
    if rng.one_in(2) {
        // Until what was written through is flushed and trimmed.
        steps.extend([Step::Sleep(120_000_000), Step::Places]);
    }
    match rng.below(8) {
        0 => steps.push(Step::Mode(volume, CacheMode::PassThrough)),
        1 => steps.push(Step::Mode(volume, CacheMode::WriteThrough)),
        _ => {}
    }
}
