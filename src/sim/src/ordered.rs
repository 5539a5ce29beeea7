//! `write-back-ordered`, with the cache lost: at each moment of seeded runs the backing device alone is
//! looked at, and must be a prefix of the acknowledged writes whenever the engine says that no batch is
//! being destaged.
//!
//! The check is a black box, by the order of real time: where the device holds any block of a write,
//! then of every write that was acknowledged before that one was submitted it holds each block, or
//! something that is not older. States in the middle of a batch, and before the first one after a
//! start or a switch is complete, are counted and reported apart.

use crate::boot::open_journal;
use crate::config::{Config, VolumeConfig, id_of, uuid};
use crate::device::Faults;
use crate::history::{Host, Moment};
use crate::medium::Medium;
use crate::oracle::{Seen, recognise};
use crate::rng::Rng;
use crate::suite::each;
use crate::workload::random_ask;
use crate::world::World;
use forebay_cache::engine::{CacheMode, Limits, OrderState};
use forebay_cache::format::order_journal::{Entry, least_bytes};
use forebay_cache::order_journal::Found;
use forebay_io::{DeviceError, Duration, RequestOp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

const BLOCK: u64 = 4096;
/// Steps of a run.
pub const STEPS: u64 = 3000;
/// Has not ended.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    start: u64,
    end: u64,
    zero: bool,
    certain: bool,
}

/// What was written to one volume.
#[derive(Debug, Default)]
pub struct Prefix {
    writes: BTreeMap<u64, Write>,
    /// The writes of each block, in the order of their submission.
    blocks: BTreeMap<u64, Vec<u64>>,
}

impl Prefix {
    /// Takes up what happened to a host. Volume 0 alone counts, whose requests cover whole blocks.
    pub fn tell(&mut self, host: &Host) {
        match host {
            Host::Started { volume: 0, at, write, zero, certain, tick } => {
                let (zero, certain) = (*zero, *certain);
                self.writes.insert(*write, Write { start: *tick, end: OPEN, zero, certain });
                for block in at.0 / BLOCK..(at.0 + at.1) / BLOCK {
                    self.blocks.entry(block).or_default().push(*write);
                }
            }
            Host::Ended { volume: 0, write, tick, .. } => {
                if let Some(known) = self.writes.get_mut(write) {
                    known.end = *tick;
                }
            }
            Host::Never { volume: 0, at, write } => {
                self.writes.remove(write);
                for block in at.0 / BLOCK..(at.0 + at.1) / BLOCK {
                    self.blocks.entry(block).or_default().retain(|other| other != write);
                }
            }
            _ => {}
        }
    }

    /// Power was lost with a volatile cache: nothing that was acknowledged is certain any more.
    pub fn power_lost(&mut self) {
        self.writes.values_mut().for_each(|write| write.certain = false);
    }

    /// Whether a replay of this data leaves something older in a block than the device has there.
    ///
    /// # Errors
    /// It does.
    fn goes_back(&self, block: u64, device: &Medium, data: &[u8]) -> Result<(), String> {
        let place = block * BLOCK / 512;
        let write = |bytes: &[u8]| match recognise(place, bytes) {
            Seen::Write(write) => self.writes.get(&write),
            _ => None,
        };
        let there = device.bytes(block * BLOCK, 512);
        match (write(&there), write(data.get(..512).unwrap_or_default())) {
            (Some(there), Some(replayed)) if replayed.end < there.start => {
                Err(format!("the replay takes block {block} back behind what is on the device"))
            }
            _ => Ok(()),
        }
    }

    /// Why a device is no prefix, if it is none.
    #[must_use]
    pub fn broken(&self, device: &Medium) -> Option<String> {
        let held = |block: u64| {
            let sector = device.bytes(block * BLOCK, 512);
            recognise(block * BLOCK / 512, &sector)
        };
        let held: BTreeMap<u64, Seen> = self.blocks.keys().map(|b| (*b, held(*b))).collect();
        let start = |seen: &Seen| match seen {
            Seen::Write(write) => self.writes.get(write).map(|write| write.start),
            _ => None,
        };
        let newest = held.values().filter_map(start).max()?;
        for (block, history) in &self.blocks {
            let all = || history.iter().filter_map(|write| self.writes.get(write));
            let end = match held.get(block) {
                Some(Seen::Write(write)) => self.writes.get(write).map_or(0, |write| write.end),
                // Of any write of zeroes, or the first content.
                Some(Seen::Zero) => all().filter(|w| w.zero).map(|w| w.end).max().unwrap_or(0),
                _ => return Some(format!("block {block} holds what was never written")),
            };
            let wanted = all().filter(|w| w.certain && w.end < newest).map(|w| w.start).max();
            if wanted.is_some_and(|start| end < start) {
                return Some(format!(
                    "block {block} holds {:?}, over at {end}; a write that began at {wanted:?} was \
                     acknowledged before {newest}, when one began that the device holds",
                    held.get(block)
                ));
            }
        }
        None
    }
}

/// What came of runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrderedCounts {
    /// Runs.
    pub seeds: u64,
    /// Crash states in which the engine said that the device is a prefix.
    pub between: u64,
    /// Batches that were completed.
    pub batches: u64,
    /// Crash states in the middle of a batch that continues a prefix, and those of them that are none.
    pub within: u64,
    /// See `within`.
    pub within_broken: u64,
    /// Crash states before the first batch after a start or a switch was complete, and those of them
    /// that are no prefix.
    pub before: u64,
    /// See `before`.
    pub before_broken: u64,
    /// With an ordered journal: crash states after its replay, of those said to be between batches and
    /// within one; each with the process's death alone or with a power loss.
    pub replayed_between: u64,
    /// See `replayed_between`.
    pub replayed_within: u64,
    /// The same before the first batch after a start or a switch was complete, and those of them that
    /// are no prefix then.
    pub replayed_before: u64,
    /// See `replayed_before`.
    pub replayed_before_broken: u64,
    /// Those in which the journal held a complete batch.
    pub replays: u64,
    /// Crashes with a recovery.
    pub crashes: u64,
    /// Runs with a violation.
    pub violations: u64,
}

impl OrderedCounts {
    fn add(&mut self, more: &Self) {
        self.seeds += more.seeds;
        self.between += more.between;
        self.batches += more.batches;
        self.within += more.within;
        self.within_broken += more.within_broken;
        self.before += more.before;
        self.before_broken += more.before_broken;
        self.replayed_between += more.replayed_between;
        self.replayed_within += more.replayed_within;
        self.replayed_before += more.replayed_before;
        self.replayed_before_broken += more.replayed_before_broken;
        self.replays += more.replays;
        self.crashes += more.crashes;
        self.violations += more.violations;
    }
}

struct Run {
    world: World,
    prefix: Prefix,
    /// The state last judged, and whether the device was no prefix then.
    last: Option<(OrderState, Medium, bool)>,
    counts: OrderedCounts,
}

impl Run {
    /// Takes up what happened, and judges the device if anything has changed.
    fn look(&mut self) -> Result<(), String> {
        let mut changed = false;
        for moment in self.world.moments() {
            match moment {
                Moment::Host(host) => {
                    changed |= matches!(host, Host::Ended { volume: 0, .. });
                    self.prefix.tell(&host);
                }
                Moment::Backing(0, _) => changed = true,
                _ => {}
            }
        }
        self.world.record();
        if let Some(what) = self.world.violation.take() {
            return Err(what);
        }
        let stats = self.world.engine().volume_stats(id_of(0));
        let journal = stats.as_ref().and_then(|stats| stats.order_journal);
        let complete = journal.is_some_and(|journal| journal.complete);
        let Some(state) = stats.and_then(|stats| stats.order) else {
            // The mode is left: no prefix is promised, but a batch must not take anything back.
            return if complete && changed { self.replay(OrderState::NotYet) } else { Ok(()) };
        };
        let device = &self.world.backing[0].bytes;
        let mut broken = None;
        let mut same = false;
        if let Some((old, bytes, was)) = &self.last {
            let batch = matches!(state, OrderState::Prefix(_)) && *old != state;
            self.counts.batches += u64::from(batch);
            same = bytes.same(device) && *old == state;
            if same && !changed {
                return Ok(());
            }
            // The same bytes: what was acknowledged since ended after every write there had begun, so
            // that nothing more is asked of them.
            broken = (same && *was).then(String::new);
        }
        if !same {
            broken = self.prefix.broken(device);
        }
        let bad = broken.is_some();
        if !same || self.last.is_none() {
            self.replay(state)?;
        }
        let device = &self.world.backing[0].bytes;
        match (state, broken) {
            (OrderState::Prefix(lsn), broken) => {
                self.counts.between += 1;
                // What a power loss leaves of the device, too.
                let stable = self.world.backing[0].stable();
                let stable = if same { None } else { self.prefix.broken(stable) };
                if let Some(what) = broken.or(stable) {
                    return Err(format!("said to be the prefix at {lsn:?}: {what}"));
                }
            }
            (OrderState::Destaging(..), broken) => {
                self.counts.within += 1;
                self.counts.within_broken += u64::from(broken.is_some());
            }
            (OrderState::NotYet, broken) => {
                self.counts.before += 1;
                self.counts.before_broken += u64::from(broken.is_some());
            }
        }
        self.last = Some((state, device.clone(), bad));
        Ok(())
    }

    /// Loses the cache now, the process alone or with a power loss, and replays the ordered journal.
    fn replay(&mut self, state: OrderState) -> Result<(), String> {
        let Some(journal) = self.world.journal.clone() else { return Ok(()) };
        let count = match state {
            OrderState::Prefix(_) => &mut self.counts.replayed_between,
            OrderState::Destaging(..) => &mut self.counts.replayed_within,
            OrderState::NotYet => &mut self.counts.replayed_before,
        };
        *count += 2;
        for power in [false, true] {
            let (mut journal, mut backing) = (journal.clone(), self.world.backing[0].clone());
            journal.crash(power);
            backing.crash(power);
            let opened = open_journal(&mut journal, uuid(1), &backing.info)
                .map_err(|error| format!("{state:?}: the journal is refused: {error}"))?;
            match opened.found {
                Found::Nothing => {}
                Found::Damaged => return Err(format!("{state:?}: a complete batch is damaged")),
                Found::Batch(entries) => {
                    self.counts.replays += 1;
                    let layout = opened.header.layout;
                    let mut slot = 0;
                    let mut seen = BTreeSet::new();
                    for entry in entries {
                        let (block, blocks, data) = match entry {
                            Entry::Zeroes { block, blocks } => (block, blocks, vec![0; 4096]),
                            Entry::Data { block, .. } => {
                                let data = journal.bytes.bytes(layout.data_offset(slot), BLOCK);
                                slot += 1;
                                (block, 1, data)
                            }
                        };
                        for block in block..block + u64::from(blocks) {
                            if !seen.insert(block) {
                                return Err(format!(
                                    "{state:?}: block {block} is twice in a batch"
                                ));
                            }
                            self.prefix.goes_back(block, &backing.bytes, &data)?;
                            backing.bytes.write(block * BLOCK, &data);
                        }
                    }
                }
            }
            let broken = self.prefix.broken(&backing.bytes);
            if state == OrderState::NotYet {
                self.counts.replayed_before_broken += u64::from(broken.is_some());
            } else if let Some(what) = broken {
                return Err(format!("{state:?}, power {power}, after the replay: {what}"));
            }
        }
        Ok(())
    }
}

/// Asks for something random. A host's Flush closes a batch: most are left out, so that there is
/// something between two of them.
fn ask(world: &mut World, rng: &mut Rng) {
    let volumes: Vec<(u64, u32)> = world.config.volumes.iter().map(|v| (v.size, v.unit)).collect();
    while world.under_way() > 16 && world.violation.is_none() {
        world.step();
    }
    let ask = random_ask(&volumes, rng, 40);
    if ask.op != RequestOp::Flush || rng.one_in(8) {
        world.ask(ask);
    }
}

fn config(seed: u64, mode: CacheMode, rng: &mut Rng) -> Config {
    let volume = VolumeConfig { size: (32 + rng.below(64)) * BLOCK, unit: 4096, mode };
    let mut config = Config::small(seed, rng.pick(&[16, 32]), 14 + rng.below(16), volume);
    let quick = rng.one_in(8);
    config.limits = Limits {
        dirty_age: Duration::from_millis(if quick { 2 } else { 10_000 }),
        destage_from: if quick { 5 } else { 100 },
        throttle_max: Duration::from_millis(5),
        batch_age: Duration::from_micros(rng.pick(&[1000, 20_000, 200_000])),
        batch_bytes: rng.pick(&[64 << 10, 256 << 10, 64 << 20]),
        ..Limits::default()
    };
    config.volatile = rng.one_in(3);
    config.backing_volatile = !rng.one_in(3);
    config.write_zeroes = !rng.one_in(4);
    config.backing_latency = rng.pick(&[(5_000, 20_000), (20_000, 60_000), (50_000, 500_000)]);
    config.mail = rng.pick(&[0, 20_000]);
    if rng.one_in(4) {
        config.volumes.push(VolumeConfig {
            size: 40 * BLOCK,
            unit: 4096,
            mode: CacheMode::WriteBack,
        });
    }
    config
}

/// One run: its counts, and what is wrong. With `lines` its timeline is printed; with `journal` the
/// volume has an ordered journal; the rule `plant` is removed, 0 for none.
pub fn run(
    seed: u64,
    steps: u64,
    lines: bool,
    (journal, plant): (bool, u16),
) -> (OrderedCounts, Result<(), String>) {
    let mode = CacheMode::WriteBackOrdered;
    let mut rng = Rng::new(seed, 71);
    let mut config = config(seed, mode, &mut rng);
    config.plant = plant;
    if journal {
        config.journal = rng.pick(&[least_bytes(), 4 << 20]);
    }
    let world = World::new(config, lines);
    let counts = OrderedCounts { seeds: 1, ..OrderedCounts::default() };
    let mut run = Run { world, prefix: Prefix::default(), last: None, counts };
    run.world.tolerance.refused = true;
    run.world.record();
    let result = go(&mut run, &mut rng, mode, steps);
    run.world.lines.iter().flatten().for_each(|line| println!("{line}"));
    (run.counts, result)
}

fn go(run: &mut Run, rng: &mut Rng, mode: CacheMode, steps: u64) -> Result<(), String> {
    for step in 0..steps {
        if rng.below(3) == 0 {
            ask(&mut run.world, rng);
        } else {
            run.world.step();
        }
        run.look()?;
        match rng.below(1500) {
            0 => {
                let power = rng.one_in(2);
                run.world.crash(power);
                run.counts.crashes += 1;
                if power && run.world.config.volatile {
                    run.prefix.power_lost();
                }
                run.last = None;
                run.look()?;
            }
            1 => {
                let faults = Faults {
                    write: rng.pick(&[1, 3]),
                    flush: rng.pick(&[0, 1]),
                    error: Some(DeviceError::Io(5)),
                    budget: rng.pick(&[3, 30]),
                    ..Faults::default()
                };
                match &mut run.world.journal {
                    Some(disk) if rng.one_in(2) => disk.faults = faults,
                    _ => run.world.backing[0].faults = faults,
                }
            }
            2 if mode == CacheMode::WriteBackOrdered => {
                let other = rng.pick(&[
                    CacheMode::WriteBack,
                    CacheMode::WriteThrough,
                    CacheMode::WriteAround,
                ]);
                run.world.set_mode(0, other);
                for _ in 0..rng.below(100) {
                    ask(&mut run.world, rng);
                    run.look()?;
                }
                run.world.set_mode(0, mode);
            }
            3 => run.world.drain(0),
            4 => {
                // For a while its reads are wrong now and then, or all of them.
                if let Some(disk) = &mut run.world.journal {
                    disk.faults = Faults { flip: rng.pick(&[1, 3]), ..Faults::default() };
                    for _ in 0..rng.below(100) {
                        ask(&mut run.world, rng);
                        run.look()?;
                    }
                    run.world.journal.iter_mut().for_each(|disk| disk.faults = Faults::default());
                }
            }
            _ => {}
        }
        if run.world.over || step + 1 == steps {
            break;
        }
    }
    for disk in run.world.backing.iter_mut().chain(&mut run.world.journal) {
        disk.faults = Faults::default();
    }
    run.world.quiesce();
    run.look()?;
    run.world.drain_and_wait(0);
    run.look()
}

/// Runs seeds on all processors.
#[must_use]
pub fn seeds(from: u64, count: u64, steps: u64, lines: bool, journal: bool) -> OrderedCounts {
    let started = std::time::Instant::now();
    let all = Mutex::new(OrderedCounts::default());
    each(count, |at| {
        let seed = from + at;
        let (counts, result) = run(seed, steps, lines, (journal, 0));
        let mut all = all.lock().expect("no thread panics with it");
        all.add(&counts);
        if let Err(what) = result {
            all.violations += 1;
            if all.violations <= 12 {
                println!("ordered {seed}: {what}");
                println!(
                    "    replay: forebay-sim ordered --from {seed} --count 1 --steps {steps} --lines 1 --journal {}",
                    u8::from(journal)
                );
            }
        }
    });
    let all = all.into_inner().expect("no thread panics with it");
    println!(
        "ordered: {} seeds, {} batches, {} crashes; with the cache lost: {} crash states between batches, \
         {} in mid-destage ({} of them no prefix), {} before the first batch ({} no prefix); \
         {} violations; {:.0} s",
        all.seeds,
        all.batches,
        all.crashes,
        all.between,
        all.within,
        all.within_broken,
        all.before,
        all.before_broken,
        all.violations,
        started.elapsed().as_secs_f64()
    );
    if journal {
        println!(
            "ordered: with the journal, after its replay: {} crash states between batches, {} in \
             mid-destage, {} before the first batch ({} no prefix); {} of them with a complete batch to replay",
            all.replayed_between,
            all.replayed_within,
            all.replayed_before,
            all.replayed_before_broken,
            all.replays
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_batches_the_backing_device_alone_is_a_prefix() {
        let counts = seeds(0, 24, 1500, false, false);
        assert_eq!(counts.violations, 0);
        assert!(counts.between > 1000 && counts.within_broken > 0, "{counts:?}");
    }

    #[test]
    fn with_the_journal_it_is_one_at_any_time_after_the_replay() {
        let counts = seeds(0, 8, 1500, false, true);
        assert_eq!(counts.violations, 0);
        assert!(counts.within_broken > 0 && counts.replays > 100, "{counts:?}");
    }

    /// What a batch wrote stayed dirty, as the flush before its trim failed, or as it was moved before
    /// that: no later batch took it, and a drain did not end (152, 183). Reclaim moved what only waited
    /// for the trims of its batch, until these had no room (791); it waited for room for what was clean
    /// by then (816).
    #[test]
    fn what_is_trimmed_at_the_end_of_a_batch_holds_nothing_up() {
        for seed in [152, 183, 791, 816] {
            run(seed, STEPS, false, (true, 0))
                .1
                .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        }
    }

    /// Plain write-back destages in no order: the check must see it, or it could not fail.
    #[test]
    fn plain_write_back_is_no_prefix() {
        let mut broken = 0;
        for seed in 0..4 {
            let mut rng = Rng::new(seed, 71);
            let mut config = config(seed, CacheMode::WriteBack, &mut rng);
            config.limits.dirty_age = Duration::from_millis(2);
            let mut world = World::new(config, false);
            world.record();
            let mut prefix = Prefix::default();
            for _ in 0..1500 {
                ask(&mut world, &mut rng);
                for moment in world.moments() {
                    if let Moment::Host(host) = moment {
                        prefix.tell(&host);
                    }
                }
                world.record();
                broken += u64::from(prefix.broken(&world.backing[0].bytes).is_some());
            }
            assert_eq!(world.violation, None);
        }
        assert!(broken > 100, "{broken}");
    }
}
