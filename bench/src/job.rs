//! The loop over one device: closed, or open where the workload has a pace.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::pace::Schedule;
use crate::random::{Positions, Random};
use crate::run::Counters;
use crate::stamp::{self, Ledger, Mismatch};
use crate::workload::{Limit, Rw, Workload, WorkloadError};
use forebay_io::{Buf, BufPool, Completion, Device, DeviceError, Duration, Instant, Op};
use hdrhistogram::Histogram;

#[cfg(test)]
mod tests;

/// Longest latency that a histogram tells from longer ones.
const LONGEST: Duration = Duration::from_secs(300);
/// How long operations in flight may take to end once nothing new is started, and how long after its end
/// an open loop still starts operations that were due before it.
const GRACE: Duration = Duration::from_secs(60);
/// Polls without a completion before the processor is offered to others.
const SPINS: u32 = 256;

/// Why a job could not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobError {
    /// The workload does not fit the device.
    Workload(WorkloadError),
    /// The device could not be opened; in its own words.
    Open(String),
    /// The pool has no buffers for the queue depth.
    NoBuffers,
    /// A histogram could not be made.
    Histogram,
    /// The job's thread ended early.
    Thread,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(error) => error.fmt(f),
            Self::Open(text) => f.write_str(text),
            Self::NoBuffers => f.write_str("the buffer pool is too small for this queue depth"),
            Self::Histogram => f.write_str("no memory for the latency histogram"),
            Self::Thread => f.write_str("a job's thread ended early"),
        }
    }
}

impl core::error::Error for JobError {}

impl From<WorkloadError> for JobError {
    fn from(error: WorkloadError) -> Self {
        Self::Workload(error)
    }
}

/// Operations of one direction.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Operations that ended well while measuring.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Tally {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`JobError::Histogram`].
    pub fn new() -> Result<Self, JobError> {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latency = Histogram::new_with_bounds(1, longest, 3).map_err(|_| JobError::Histogram)?;
        Ok(Self { ops: 0, bytes: 0, latency })
    }

    fn record(&mut self, bytes: u64, latency: Duration) {
        self.ops += 1;
        self.bytes += bytes;
        self.latency
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Adds another job's.
    pub fn merge(&mut self, other: &Self) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        // Both have the same bounds, so that nothing can fall outside.
        let _fits = self.latency.add(&other.latency);
    }
}

/// What a job did.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Reads.
    pub reads: Tally,
    /// Writes.
    pub writes: Tally,
    /// Reads of the scan beside them.
    pub scans: Tally,
    /// Operations that ended well, warming up included; not those that read back.
    pub all_ops: u64,
    /// The longest time between two looks of the loop at its device while measuring: what held up the
    /// load itself for so long is in the latencies, too.
    pub longest_pause: Duration,
    /// From the end of warming up to the last completion.
    pub elapsed: Duration,
    /// Operations that failed, those that never ended, and those of an open loop that were due and never
    /// began.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<DeviceError>,
    /// Logical blocks that were read and held against their stamps.
    pub verified: u64,
    /// Logical blocks that were wrong.
    pub mismatches: u64,
    /// The first of them: logical block and what was wrong.
    pub first_mismatch: Option<(u64, Mismatch)>,
}

/// One operation in flight.
struct Slot<B> {
    /// In an open loop, when it was due: what it waited for a free slot or a full device is a part of its
    /// latency, or else a stall would hide what it held up.
    started: Instant,
    block: u64,
    kind: Kind,
    buf: Option<B>,
}

/// What an operation is to the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// A read of the scan.
    Scan,
    /// A read back: a check, no part of the load.
    Back,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Start an operation for each that ends.
    Load,
    /// Read back what was written, from this block on.
    ReadBack(u64),
    /// Let what is in flight end.
    Drain,
}

/// A loop over one device.
pub struct Job<D: Device, P> {
    workload: Workload,
    device: D,
    pool: P,
    blocks: Range<u64>,
    units_per_block: u64,
    unit_size: usize,
    positions: Positions,
    random: Random,
    next_sequential: u64,
    next_scan: u64,
    schedule: Option<Schedule>,
    number: u16,
    seed: u64,
    slots: Vec<Slot<D::Buf>>,
    free: Vec<usize>,
    ledger: Option<Ledger>,
    phase: Phase,
    issued: u64,
    result: JobResult,
}

impl<D: Device, P: BufPool<Buf = D::Buf>> Job<D, P> {
    /// Job number `number` of the workload on this device. Takes its buffers from the pool now.
    ///
    /// # Errors
    /// Where the workload does not fit the device or the pool.
    pub fn new(number: u16, workload: &Workload, device: D, mut pool: P) -> Result<Self, JobError> {
        let info = device.info();
        let blocks = workload.blocks_of(number, info)?;
        let unit_size = info.block_size as usize;
        let units_per_block = u64::from(workload.block_size / info.block_size);
        let count = blocks.end - blocks.start;
        let seed = Random::new(workload.seed ^ u64::from(number) << 32).next();
        let mut slots = Vec::with_capacity(usize::from(workload.queue_depth));
        for at in 0..u64::from(workload.queue_depth) {
            let mut buf = pool.alloc(workload.block_size as usize).ok_or(JobError::NoBuffers)?;
            if let Some(data) = buf.as_mut_slice() {
                stamp::fill(data, seed, at, 0);
            }
            slots.push(Slot { started: Instant(0), block: 0, kind: Kind::Read, buf: Some(buf) });
        }
        let ledger = if workload.verify {
            let units =
                usize::try_from(count * units_per_block).map_err(|_| JobError::NoBuffers)?;
            Some(Ledger::new(workload.seed, blocks.start * units_per_block, units))
        } else {
            None
        };
        // Sequential jobs that share a range begin at different places of it.
        let shares = u64::from(if workload.verify { 1 } else { workload.jobs });
        let own = |count: u64| count / shares * (u64::from(number) % shares);
        let positions = Positions::new(count, workload.distribution);
        let cold = positions.cold_from();
        Ok(Self {
            next_sequential: blocks.start + own(count),
            next_scan: blocks.start + cold + own(count - cold),
            schedule: None,
            number,
            seed,
            positions,
            random: Random::new(seed),
            workload: workload.clone(),
            free: (0..slots.len()).rev().collect(),
            slots,
            device,
            pool,
            blocks,
            units_per_block,
            unit_size,
            ledger,
            phase: Phase::Load,
            issued: 0,
            result: JobResult {
                reads: Tally::new()?,
                writes: Tally::new()?,
                scans: Tally::new()?,
                all_ops: 0,
                longest_pause: Duration::ZERO,
                elapsed: Duration::ZERO,
                errors: 0,
                first_error: None,
                verified: 0,
                mismatches: 0,
                first_mismatch: None,
            },
        })
    }

    /// Runs to the limit, and in verify mode reads back all that was written.
    pub fn run(mut self, clock: impl Fn() -> Instant, counters: &Counters) -> JobResult {
        let begin = clock();
        let measure_from = begin + self.workload.warm_up;
        let end = match self.workload.limit {
            Limit::Time(time) => measure_from + time,
            Limit::Ops(_) => Instant::NEVER,
        };
        let jobs = (self.number, self.workload.jobs);
        self.schedule = self.workload.pace.map(|pace| Schedule::new(pace, begin, jobs, self.seed));
        let mut done = Vec::with_capacity(self.slots.len());
        let (mut now, mut idle, mut last, mut looked) = (begin, 0u32, begin, begin);
        loop {
            if looked >= measure_from {
                self.result.longest_pause = self.result.longest_pause.max(now.since(looked));
            }
            looked = now;
            self.advance(now, end, counters);
            self.start_all(now);
            if self.phase == Phase::Drain && self.free.len() == self.slots.len() {
                break;
            }
            if self.device.poll(&mut done) == 0 {
                idle += 1;
                if idle >= SPINS {
                    idle = 0;
                    std::thread::yield_now();
                }
                now = clock();
                if now.since(last) > GRACE && self.phase != Phase::Load {
                    self.abandon();
                    break;
                }
                continue;
            }
            (idle, now) = (0, clock());
            last = now;
            for completion in done.drain(..) {
                self.finish(completion, now, measure_from, counters);
            }
        }
        self.result
    }

    /// Passes to the next phase where this one is over.
    fn advance(&mut self, now: Instant, end: Instant, counters: &Counters) {
        let enough = match (self.workload.limit, &self.schedule) {
            (Limit::Ops(ops), _) => self.issued >= ops,
            (Limit::Time(_), None) => now >= end,
            // All that was due in time is started, however late: to leave it out would be to leave out a stall.
            (Limit::Time(_), Some(schedule)) => schedule.due() >= end || self.too_late(now, end),
        };
        let failed = self.result.errors > self.workload.max_errors;
        let stop = failed || counters.stop.load(Ordering::Relaxed);
        self.phase = match self.phase {
            Phase::Load if stop => Phase::Drain,
            Phase::Load if enough && self.ledger.is_some() => Phase::ReadBack(self.blocks.start),
            Phase::Load if enough => Phase::Drain,
            Phase::ReadBack(next) if stop || next >= self.blocks.end => Phase::Drain,
            phase => phase,
        };
    }

    /// Gives up operations that were due before the end and did not begin long after it. Each is a failure.
    fn too_late(&mut self, now: Instant, end: Instant) -> bool {
        if self.phase != Phase::Load || now.since(end) <= GRACE {
            return false;
        }
        while let Some(schedule) = self.schedule.as_mut().filter(|schedule| schedule.due() < end) {
            schedule.advance();
            self.result.errors += 1;
        }
        self.result.first_error = self.result.first_error.or(Some(DeviceError::Timeout));
        true
    }

    /// The moment from which the next operation counts; `None` where it is not due yet.
    fn start_of_next(&self, now: Instant) -> Option<Instant> {
        match &self.schedule {
            Some(schedule) if self.phase == Phase::Load => {
                Some(schedule.due()).filter(|due| *due <= now)
            }
            _ => Some(now),
        }
    }

    /// Starts as many operations as there is room for.
    fn start_all(&mut self, now: Instant) {
        while let Some(at) = self.free.last().copied() {
            let Some(started) = self.start_of_next(now) else { return };
            let Some((block, kind)) = self.choose() else { return };
            let write = kind == Kind::Write;
            let Some(buf) = self.buffer(at, block, write) else { return self.release(block) };
            let size = u64::from(self.workload.block_size);
            let token = at as u64;
            let mut op = if write {
                Op::write(token, block * size, size, buf)
            } else {
                Op::read(token, block * size, size, buf)
            };
            op.fua = write && self.workload.fua;
            if let Err(op) = self.device.submit(op) {
                self.slots[at].buf = op.buf;
                self.release(block);
                return;
            }
            self.free.pop();
            self.issued += 1;
            match (&mut self.phase, kind) {
                (Phase::ReadBack(next), _) => *next += 1,
                (_, Kind::Scan) => self.next_scan = block + 1,
                _ if !self.workload.rw.is_random() => self.next_sequential = block + 1,
                _ => {}
            }
            if let Some(schedule) = self.schedule.as_mut().filter(|_| kind != Kind::Back) {
                schedule.advance();
            }
            let slot = &mut self.slots[at];
            (slot.started, slot.block, slot.kind) = (started, block, kind);
        }
    }

    /// The next block, locked in verify mode, and what to do with it.
    fn choose(&mut self) -> Option<(u64, Kind)> {
        let (block, kind) = match self.phase {
            Phase::Drain => return None,
            Phase::ReadBack(next) if next >= self.blocks.end => return None,
            Phase::ReadBack(next) => {
                let lock = self.lock(next);
                return lock.then_some((next, Kind::Back));
            }
            Phase::Load if self.workload.limit_reached(self.issued) => return None,
            Phase::Load => self.pick(),
        };
        if self.ledger.is_none() {
            return Some((block, kind));
        }
        // A block that is in use passes the turn to its neighbour; half of all are free.
        let (first, count) = (self.blocks.start, self.blocks.end - self.blocks.start);
        (0..count)
            .map(|step| first + (block - first + step) % count)
            .find(|block| self.lock(*block))
            .map(|block| (block, kind))
    }

    fn pick(&mut self) -> (u64, Kind) {
        let scan = u64::from(self.workload.scan_percent);
        if scan > 0 && self.random.below(100) < scan {
            let over = self.next_scan >= self.blocks.end;
            let first = self.blocks.start + self.positions.cold_from();
            return (if over { first } else { self.next_scan }, Kind::Scan);
        }
        let block = if self.workload.rw.is_random() {
            self.blocks.start + self.positions.draw(&mut self.random)
        } else if self.next_sequential >= self.blocks.end {
            self.blocks.start
        } else {
            self.next_sequential
        };
        let write = match self.workload.rw {
            Rw::RandRead | Rw::Read => false,
            Rw::RandWrite | Rw::Write => true,
            Rw::RandRw => self.random.below(100) >= u64::from(self.workload.read_percent),
        };
        (block, if write { Kind::Write } else { Kind::Read })
    }

    fn lock(&mut self, block: u64) -> bool {
        let units = self.units_per_block;
        self.ledger.as_mut().is_none_or(|ledger| ledger.lock(block * units, units))
    }

    fn release(&mut self, block: u64) {
        let units = self.units_per_block;
        if let Some(ledger) = &mut self.ledger {
            ledger.unlock(block * units, units);
        }
    }

    /// The slot's buffer, stamped for a verified write; a fresh one where it is still shared.
    fn buffer(&mut self, at: usize, block: u64, write: bool) -> Option<D::Buf> {
        let size = self.workload.block_size as usize;
        let mut buf = self.slots[at].buf.take().or_else(|| self.pool.alloc(size))?;
        let stamped = write && self.ledger.is_some();
        if (stamped || !write) && buf.as_mut_slice().is_none() {
            buf = self.pool.alloc(size)?;
        }
        if let (Some(ledger), true, Some(data)) = (&mut self.ledger, write, buf.as_mut_slice()) {
            ledger.stamp(block * self.units_per_block, data, self.unit_size);
        }
        Some(buf)
    }

    fn finish(
        &mut self,
        completion: Completion<D::Buf>,
        now: Instant,
        measure_from: Instant,
        counters: &Counters,
    ) {
        let Some(at) = usize::try_from(completion.token).ok().filter(|at| *at < self.slots.len())
        else {
            return;
        };
        let (block, write) = (self.slots[at].block, self.slots[at].kind == Kind::Write);
        match completion.result {
            Ok(()) => self.succeed(at, completion.buf.as_ref(), now, measure_from, counters),
            Err(error) => {
                self.result.errors += 1;
                self.result.first_error = self.result.first_error.or(Some(error));
                counters.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let (Some(ledger), true, true) = (&mut self.ledger, write, completion.result.is_ok()) {
            ledger.acknowledge(block * self.units_per_block, self.units_per_block);
        }
        self.release(block);
        self.slots[at].buf = completion.buf;
        self.free.push(at);
    }

    fn succeed(
        &mut self,
        at: usize,
        buf: Option<&D::Buf>,
        now: Instant,
        measure_from: Instant,
        counters: &Counters,
    ) {
        let (started, block, kind) = {
            let slot = &self.slots[at];
            (slot.started, slot.block, slot.kind)
        };
        let bytes = u64::from(self.workload.block_size);
        counters.ops.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.result.all_ops += u64::from(kind != Kind::Back);
        let tally = match kind {
            Kind::Read => Some(&mut self.result.reads),
            Kind::Write => Some(&mut self.result.writes),
            Kind::Scan => Some(&mut self.result.scans),
            Kind::Back => None,
        };
        if let Some(tally) = tally.filter(|_| started >= measure_from) {
            tally.record(bytes, now.since(started));
            self.result.elapsed = now.since(measure_from);
        }
        let checked = self.ledger.as_mut().filter(|_| kind != Kind::Write);
        if let (Some(ledger), Some(buf)) = (checked, buf) {
            let unit = block * self.units_per_block;
            let (wrong, first) = ledger.check(unit, buf.as_slice(), self.unit_size);
            self.result.verified += self.units_per_block;
            self.result.mismatches += wrong;
            self.result.first_mismatch = self.result.first_mismatch.or(first);
            counters.mismatches.fetch_add(wrong, Ordering::Relaxed);
        }
    }

    /// Counts what never ended as failed.
    fn abandon(&mut self) {
        self.result.errors += (self.slots.len() - self.free.len()) as u64;
        self.result.first_error = self.result.first_error.or(Some(DeviceError::Timeout));
    }
}

impl Workload {
    const fn limit_reached(&self, issued: u64) -> bool {
        matches!(self.limit, Limit::Ops(ops) if issued >= ops)
    }
}
