//! The devices of one reactor, and the way of operations from its engines to them and back.

use super::failpoints::Watch;
use super::shard::NodeShard;
use forebay_cache::engine::{Action, Source};
use forebay_driver::AnyDevice;
use forebay_io::{
    Completion, Device, DeviceError, Instant, LatencyHistogram, Op, OpKind, VolumeId,
};
use forebay_reactor::PoolBuf;
use std::collections::VecDeque;

/// Rounds of submitting and polling in one loop, so that what completes at once (memory, a cached
/// block) is answered in the same loop.
const ROUNDS: u32 = 4;

/// An operation under way: whose it is, under the token that the engine knows.
#[derive(Clone, Copy, Debug)]
struct Pending {
    engine: usize,
    source: Source,
    token: u64,
    kind: OpKind,
    len: u64,
    began: Instant,
}

/// What a device did, since the start. Times are of the reactor's loops that submitted an operation
/// and found its completion: right to within a loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceCounters {
    pub(crate) read_ops: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_ops: u64,
    pub(crate) write_bytes: u64,
    pub(crate) errors: u64,
    pub(crate) last_error: Option<DeviceError>,
    pub(crate) reads: LatencyHistogram,
    /// Writes, flushes and what else is no read.
    pub(crate) writes: LatencyHistogram,
}

impl DeviceCounters {
    fn count(&mut self, pending: &Pending, result: Result<(), DeviceError>, now: Instant) {
        if let Err(error) = result {
            self.errors += 1;
            self.last_error = Some(error);
            return;
        }
        if pending.kind == OpKind::Read {
            self.read_ops += 1;
            self.read_bytes += pending.len;
            self.reads.record(pending.began, now);
        } else {
            self.write_ops += 1;
            self.write_bytes += pending.len;
            self.writes.record(pending.began, now);
        }
    }
}

/// A device and what was asked of it.
pub(crate) struct Unit {
    pub(crate) uri: String,
    pub(crate) device: AnyDevice,
    pub(crate) counters: DeviceCounters,
    /// Operations that the device had no room for.
    waiting: VecDeque<Op<PoolBuf>>,
}

impl Unit {
    pub(crate) fn new(uri: String, device: AnyDevice) -> Self {
        Self { uri, device, counters: DeviceCounters::default(), waiting: VecDeque::new() }
    }

    fn push(&mut self, op: Op<PoolBuf>) {
        if self.waiting.is_empty() {
            if let Err(op) = self.device.submit(op) {
                self.waiting.push_back(op);
            }
        } else {
            self.waiting.push_back(op);
        }
    }

    fn retry(&mut self) {
        while let Some(op) = self.waiting.pop_front() {
            if let Err(op) = self.device.submit(op) {
                self.waiting.push_front(op);
                return;
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.device.in_flight() + self.waiting.len()
    }
}

fn find(units: &mut [(VolumeId, Unit)], volume: VolumeId) -> Option<&mut Unit> {
    units.iter_mut().find(|(id, _)| *id == volume).map(|(_, unit)| unit)
}

/// All devices of a reactor.
#[derive(Default)]
pub(crate) struct Devices {
    /// Cache devices that engines of this reactor use, with their number in the configuration.
    pub(crate) caches: Vec<(u32, Unit)>,
    /// For each engine the position of its cache device in `caches`.
    engine_cache: Vec<usize>,
    /// Backing devices, by volume.
    pub(crate) backings: Vec<(VolumeId, Unit)>,
    /// Ordered journals, by volume.
    pub(crate) journals: Vec<(VolumeId, Unit)>,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    done: Vec<Completion<PoolBuf>>,
    pub(crate) watch: Watch,
}

impl Devices {
    pub(crate) fn add_cache(&mut self, number: u32, unit: Unit) -> usize {
        self.caches.push((number, unit));
        self.caches.len() - 1
    }

    /// The next engine of the shard uses this cache device.
    pub(crate) fn bind_engine(&mut self, cache: usize) {
        self.engine_cache.push(cache);
    }

    pub(crate) fn add_backing(&mut self, volume: VolumeId, unit: Unit) {
        self.backings.push((volume, unit));
    }

    pub(crate) fn add_journal(&mut self, volume: VolumeId, unit: Unit) {
        self.journals.push((volume, unit));
    }

    /// Gives a backing device and its ordered journal up; what is in flight on them is forgotten with
    /// them.
    pub(crate) fn remove_backing(&mut self, volume: VolumeId) {
        self.backings.retain(|(id, _)| *id != volume);
        self.forget(Source::Backing(volume));
        self.remove_journal(volume);
    }

    /// Gives an ordered journal up.
    pub(crate) fn remove_journal(&mut self, volume: VolumeId) {
        self.journals.retain(|(id, _)| *id != volume);
        self.forget(Source::Journal(volume));
    }

    fn forget(&mut self, source: Source) {
        for slot in 0..self.pending.len() {
            if self.pending[slot].is_some_and(|p| p.source == source) {
                self.pending[slot] = None;
                self.free.push(slot);
            }
        }
    }

    pub(crate) fn backing(&mut self, volume: VolumeId) -> Option<&mut Unit> {
        find(&mut self.backings, volume)
    }

    pub(crate) fn journal(&mut self, volume: VolumeId) -> Option<&mut Unit> {
        find(&mut self.journals, volume)
    }

    /// When a device must be polled at the latest although nothing wakes the reactor.
    pub(crate) fn next_deadline(&self) -> Instant {
        let caches = self.caches.iter().map(|(_, unit)| unit);
        let volumes = self.backings.iter().chain(&self.journals).map(|(_, unit)| unit);
        let all = caches.chain(volumes);
        let due = |unit: &Unit| {
            if unit.waiting.is_empty() { unit.device.next_deadline() } else { Instant(0) }
        };
        all.map(due).min().unwrap_or(Instant::NEVER)
    }

    /// Carries operations to the devices and completions back until nothing more moves.
    pub(crate) fn drive(&mut self, shard: &mut NodeShard, now: Instant) -> bool {
        let mut busy = false;
        for _ in 0..ROUNDS {
            shard.end_of_poll(now);
            let settled = shard.settle(now);
            let submitted = self.submit(shard, now);
            let completed = self.complete(shard, now);
            busy |= settled || submitted || completed;
            // What settling alone leads to later is for the next loop.
            if !(submitted || completed) {
                break;
            }
        }
        busy
    }

    fn submit(&mut self, shard: &mut NodeShard, now: Instant) -> bool {
        let mut any = false;
        for engine in 0..shard.engine_count() {
            while let Some(action) = shard.poll_action(engine) {
                any = true;
                let (source, op) = match action {
                    Action::Cache(op) => (Source::Cache, op),
                    Action::Backing(volume, op) => (Source::Backing(volume), op),
                    Action::Journal(volume, op) => (Source::Journal(volume), op),
                };
                self.start(shard, engine, source, op, now);
            }
        }
        any
    }

    fn start(
        &mut self,
        shard: &mut NodeShard,
        engine: usize,
        source: Source,
        mut op: Op<PoolBuf>,
        now: Instant,
    ) {
        let pending =
            Pending { engine, source, token: op.token, kind: op.kind, len: op.len, began: now };
        let unit = match source {
            Source::Cache => self
                .engine_cache
                .get(engine)
                .and_then(|at| self.caches.get_mut(*at))
                .map(|(_, unit)| unit),
            Source::Backing(volume) => find(&mut self.backings, volume),
            Source::Journal(volume) => find(&mut self.journals, volume),
        };
        let Some(unit) = unit else {
            let gone =
                Completion { token: op.token, result: Err(DeviceError::Gone), buf: op.buf.take() };
            shard.handle_device(engine, source, gone, now);
            return;
        };
        let slot = self.free.pop().unwrap_or(self.pending.len());
        if slot == self.pending.len() {
            self.pending.push(Some(pending));
        } else {
            self.pending[slot] = Some(pending);
        }
        self.watch.submitting(slot, source, &op);
        op.token = slot as u64;
        unit.push(op);
    }

    fn complete(&mut self, shard: &mut NodeShard, now: Instant) -> bool {
        let mut any = false;
        let mut done = core::mem::take(&mut self.done);
        let volumes = self.backings.iter_mut().chain(&mut self.journals).map(|(_, unit)| unit);
        for unit in self.caches.iter_mut().map(|(_, unit)| unit).chain(volumes) {
            unit.retry();
            if unit.device.in_flight() == 0 {
                continue;
            }
            unit.device.poll(&mut done);
            self.watch.polled();
            for mut completion in done.drain(..) {
                any = true;
                let slot = usize::try_from(completion.token).unwrap_or(usize::MAX);
                let Some(pending) = self.pending.get_mut(slot).and_then(Option::take) else {
                    continue;
                };
                self.free.push(slot);
                self.watch.done(slot);
                unit.counters.count(&pending, completion.result, now);
                completion.token = pending.token;
                shard.handle_device(pending.engine, pending.source, completion, now);
            }
        }
        self.done = done;
        any
    }
}
