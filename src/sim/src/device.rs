//! A simulated device: operations end in any order after random times; what a crash or a power loss
//! does to it; and all the ways in which it can misbehave.

use crate::buffer::SimBuf;
use crate::lies::Truth;
use crate::medium::Medium;
use crate::rng::Rng;
use forebay_io::{Buf, Completion, DeviceError, DeviceInfo, Op, OpKind};
use std::rc::Rc;

/// What a device states of itself.
#[must_use]
pub fn info(identity: &str, size: u64, volatile: bool) -> DeviceInfo {
    DeviceInfo {
        size,
        block_size: 512,
        atomic_write: 512,
        volatile_write_cache: volatile,
        optimal_io: 4096,
        max_io: 1 << 20,
        deallocate: true,
        write_zeroes: true,
        identity: identity.to_owned(),
    }
}

/// How a device misbehaves. Numbers are "one in"; 0 is never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Errors of reads, writes (with zeroes) and flushes, and which error.
    pub read: u64,
    /// See `read`.
    pub write: u64,
    /// See `read`.
    pub flush: u64,
    /// The error.
    pub error: Option<DeviceError>,
    /// Failing operations left; then all is well again.
    pub budget: u64,
    /// Failures of one place in a row at most; 0 for any number.
    pub in_a_row: u8,
    /// Nothing completes.
    pub hang: bool,
    /// Times are multiplied by this, if not 0.
    pub slow: u64,
    /// A read returns what was there before the last write.
    pub stale: u64,
    /// A read returns another place.
    pub misread: u64,
    /// A read returns a flipped bit (the medium is sound).
    pub flip: u64,
    /// A write is acknowledged and lost.
    pub lose: u64,
    /// A write lands elsewhere.
    pub misplace: u64,
    /// A write ends in a timeout and takes effect later.
    pub late: u64,
    /// Flushes do nothing.
    pub lie: bool,
}

impl Faults {
    /// Whether there are any now.
    #[must_use]
    pub const fn any(&self) -> bool {
        let errors = self.budget > 0 && self.read + self.write + self.flush > 0;
        let lies = self.stale + self.misread + self.flip + self.lose + self.misplace > 0;
        errors || lies || self.late > 0 || self.slow > 1 || self.hang || self.lie
    }
}

#[derive(Clone)]
struct Flying {
    ready: u64,
    op: Op<SimBuf>,
    id: u64,
    /// Of a flush: what it covers.
    upto: u64,
}

/// A write that completed and is not for good.
#[derive(Clone)]
struct Loose {
    number: u64,
    offset: u64,
    data: Rc<[u8]>,
}

/// What happened to a device, for those who look at every moment of it.
#[derive(Clone)]
pub enum Touch {
    /// A write was submitted.
    Submit {
        /// Its name.
        id: u64,
        /// Where.
        offset: u64,
        /// What.
        data: Rc<[u8]>,
        /// Force unit access.
        fua: bool,
    },
    /// A write completed.
    Done {
        /// Its name.
        id: u64,
    },
    /// A write failed, and what became of it is not known.
    Failed {
        /// Its name.
        id: u64,
    },
    /// A flush completed: every write that completed before these many had is for good.
    Flushed {
        /// Number of completed writes it covers.
        upto: u64,
    },
}

/// Counts of what was done to a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injected {
    /// Operations that failed, in any way other than a crash.
    pub errors: u64,
    /// Reads that returned something else, writes that were lost or misplaced, flushes that lied.
    pub lies: u64,
    /// Lies that 16 bits of a CRC did not tell from the truth, and that were made other ones.
    pub chances: u64,
    /// Writes that a crash dropped, tore, or let through although they were not complete.
    pub crashed: u64,
}

/// A device.
#[derive(Clone)]
pub struct Device {
    /// What it states of itself.
    pub info: DeviceInfo,
    /// What reads return.
    pub bytes: Medium,
    /// What a power loss leaves, where that differs.
    stable: Option<Medium>,
    loose: Vec<Loose>,
    completed: u64,
    flying: Vec<Flying>,
    next_id: u64,
    /// Shortest and longest time of an operation.
    pub latency: (u64, u64),
    /// How it misbehaves.
    pub faults: Faults,
    rng: Rng,
    /// Overlapping writes in flight at once, which a backing device must never see.
    pub overlaps: u64,
    /// Bytes written.
    pub written: u64,
    /// Faults so far.
    pub injected: Injected,
    /// Failures in a row, by kind and place.
    rows: std::collections::BTreeMap<(u8, u64), u8>,
    /// What an overwritten range held, for stale reads.
    before: Vec<(u64, Vec<u8>)>,
    /// Writes that timed out and take effect later.
    late: Vec<(u64, u64, Rc<[u8]>, bool)>,
    /// What blocks should hold whose bytes are wrong.
    truth: Truth,
    /// Blocks that cannot be read until they are written.
    unreadable: std::collections::BTreeSet<u64>,
    touches: Option<Vec<Touch>>,
    /// Complaints of the device about how it is used.
    pub complaints: Vec<String>,
}

impl Device {
    /// A device of zeroes.
    #[must_use]
    pub fn new(info: DeviceInfo, rng: Rng) -> Self {
        let bytes = Medium::new(info.size);
        Self::with(info, bytes, rng)
    }

    /// A device that holds these bytes for good.
    #[must_use]
    pub fn with(info: DeviceInfo, bytes: Medium, rng: Rng) -> Self {
        let stable = info.volatile_write_cache.then(|| bytes.clone());
        Self {
            stable,
            bytes,
            info,
            loose: Vec::new(),
            completed: 0,
            flying: Vec::new(),
            next_id: 1,
            latency: (1_000, 10_000),
            faults: Faults::default(),
            rng,
            overlaps: 0,
            written: 0,
            injected: Injected::default(),
            rows: std::collections::BTreeMap::new(),
            before: Vec::new(),
            late: Vec::new(),
            truth: Truth::default(),
            unreadable: std::collections::BTreeSet::new(),
            touches: None,
            complaints: Vec::new(),
        }
    }

    /// From now on every touch is kept for [`Device::touches`].
    pub fn watch(&mut self) {
        self.touches = Some(Vec::new());
    }

    /// From now on the block at this offset cannot be read, until it is written.
    pub fn spoil(&mut self, offset: u64) {
        self.unreadable.insert(offset / 4096);
    }

    /// What happened since the last call.
    pub fn touches(&mut self) -> Vec<Touch> {
        self.touches.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn touch(&mut self, touch: Touch) {
        if let Some(touches) = &mut self.touches {
            touches.push(touch);
        }
    }

    /// What a power loss certainly leaves.
    #[must_use]
    pub fn stable(&self) -> &Medium {
        self.stable.as_ref().unwrap_or(&self.bytes)
    }

    /// When the next operation ends.
    #[must_use]
    pub fn next_ready(&self) -> u64 {
        let late = self.late.iter().map(|late| late.0);
        let flying = self.flying.iter().map(|f| f.ready);
        let flying = flying.filter(|_| !self.faults.hang);
        flying.chain(late).min().unwrap_or(u64::MAX)
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < 8 {
            self.complaints.push(what);
        }
    }

    /// Takes an operation.
    pub fn submit(&mut self, op: Op<SimBuf>, now: u64) {
        let end = op.offset.saturating_add(op.len);
        let unit = u64::from(self.info.block_size);
        if end > self.info.size || !(op.offset | op.len).is_multiple_of(unit) {
            self.complain(format!("{:?} of {}+{}", op.kind, op.offset, op.len));
        }
        if op.kind != OpKind::Flush && op.len == 0 {
            self.complain(format!("{:?} of nothing at {}", op.kind, op.offset));
        }
        let changes = |kind: OpKind| !matches!(kind, OpKind::Read | OpKind::Flush);
        if changes(op.kind) {
            let flying = self.flying.iter().map(|f| &f.op).filter(|o| changes(o.kind));
            let over = flying.filter(|o| o.offset < end && op.offset < o.offset + o.len).count();
            self.overlaps += over as u64;
        }
        let slow = self.faults.slow.max(1);
        let ready = now + slow * (self.latency.0 + self.rng.below(self.latency.1 - self.latency.0));
        let id = self.next_id;
        self.next_id += 1;
        if changes(op.kind) {
            let (offset, data, fua) = (op.offset, data_of(&op), op.fua);
            if self.touches.is_some() {
                self.touch(Touch::Submit { id, offset, data, fua });
            }
        }
        self.flying.push(Flying { ready, op, id, upto: self.completed });
    }

    /// The end of an operation that is due, a random one of them.
    pub fn take_ready(&mut self, now: u64) -> Option<Completion<SimBuf>> {
        while let Some(at) = self.late.iter().position(|late| late.0 <= now) {
            let (_, offset, data, fua) = self.late.swap_remove(at);
            self.land(offset, &data, fua);
        }
        if self.faults.hang {
            return None;
        }
        let ready: Vec<usize> =
            (0..self.flying.len()).filter(|at| self.flying[*at].ready <= now).collect();
        if ready.is_empty() {
            return None;
        }
        let at = ready[self.rng.index(ready.len())];
        let flying = self.flying.swap_remove(at);
        Some(self.end(flying, now))
    }

    /// Carries out an operation at once.
    pub fn serve(&mut self, op: Op<SimBuf>) -> Completion<SimBuf> {
        let id = self.next_id;
        self.next_id += 1;
        if self.touches.is_some() && !matches!(op.kind, OpKind::Read | OpKind::Flush) {
            let (offset, data, fua) = (op.offset, data_of(&op), op.fua);
            self.touch(Touch::Submit { id, offset, data, fua });
        }
        let upto = self.completed;
        self.end(Flying { ready: 0, op, id, upto }, 0)
    }

    fn fails(&mut self, kind: OpKind, offset: u64) -> Option<DeviceError> {
        let one_in = match kind {
            OpKind::Read => self.faults.read,
            OpKind::Flush => self.faults.flush,
            _ => self.faults.write,
        };
        let place = (kind as u8, offset);
        let row = self.rows.get(&place).copied().unwrap_or(0);
        let enough = self.faults.in_a_row > 0 && row >= self.faults.in_a_row;
        if self.faults.budget == 0 || enough || !self.rng.one_in(one_in) {
            self.rows.remove(&place);
            return None;
        }
        self.rows.insert(place, row.saturating_add(1));
        self.faults.budget -= 1;
        self.injected.errors += 1;
        Some(self.faults.error.unwrap_or(DeviceError::Io(5)))
    }

    fn end(&mut self, flying: Flying, now: u64) -> Completion<SimBuf> {
        let Flying { mut op, id, upto, .. } = flying;
        let changes = !matches!(op.kind, OpKind::Read | OpKind::Flush);
        if let Some(error) = self.fails(op.kind, op.offset) {
            if changes {
                // A failed write may have been done, or a part of it.
                let data = data_of(&op);
                self.maybe(op.offset, &data);
                self.touch(Touch::Failed { id });
            }
            return Completion { token: op.token, result: Err(error), buf: op.buf };
        }
        if op.kind == OpKind::Read
            && self.unreadable.range(op.offset / 4096..(op.offset + op.len).div_ceil(4096)).count()
                > 0
        {
            self.injected.errors += 1;
            let result = Err(DeviceError::Io(5));
            return Completion { token: op.token, result, buf: op.buf };
        }
        let mut result = Ok(());
        match op.kind {
            OpKind::Read => self.read(&mut op),
            OpKind::Flush => {
                if self.faults.lie {
                    self.injected.lies += 1;
                } else {
                    self.flush(upto);
                    self.touch(Touch::Flushed { upto });
                }
            }
            OpKind::WriteZeroes if !self.info.write_zeroes => {
                result = Err(DeviceError::Unsupported);
                self.touch(Touch::Failed { id });
            }
            OpKind::Deallocate if !self.info.deallocate => {
                result = Err(DeviceError::Unsupported);
                self.touch(Touch::Failed { id });
            }
            OpKind::Write | OpKind::WriteZeroes | OpKind::Deallocate => {
                result = self.write(&op, id, now);
            }
        }
        Completion { token: op.token, result, buf: op.buf }
    }

    fn read(&mut self, op: &mut Op<SimBuf>) {
        let (mut from, len) = (op.offset, usize::try_from(op.len).unwrap_or(0));
        if self.rng.one_in(self.faults.misread) && self.info.size > op.len {
            self.injected.lies += 1;
            from = self.rng.below((self.info.size - op.len) / 4096 + 1) * 4096;
            from = from.min(self.info.size - op.len);
        }
        let stale = self.rng.one_in(self.faults.stale);
        let flip = self.rng.one_in(self.faults.flip);
        let lied = from != op.offset || stale || flip;
        let bit = self.rng.below(op.len * 8);
        let Some(out) = op.buf.as_mut().and_then(Buf::as_mut_slice).and_then(|b| b.get_mut(..len))
        else {
            self.complain("a read into a shared or short buffer".to_owned());
            return;
        };
        self.bytes.read(from, out);
        if flip {
            self.injected.lies += 1;
            out[usize::try_from(bit / 8).unwrap_or(0)] ^= 1 << (bit % 8);
        }
        if stale {
            for (offset, old) in &self.before {
                let end = offset + old.len() as u64;
                let (low, high) = ((*offset).max(op.offset), end.min(op.offset + op.len));
                if low < high {
                    self.injected.lies += 1;
                    let at = |base: u64| usize::try_from(low - base).unwrap_or(0);
                    let n = usize::try_from(high - low).unwrap_or(0);
                    out[at(op.offset)..at(op.offset) + n]
                        .copy_from_slice(&old[at(*offset)..at(*offset) + n]);
                }
            }
        }
        self.injected.chances += self.truth.tell_apart(&self.bytes, op.offset, out, lied);
    }

    fn write(&mut self, op: &Op<SimBuf>, id: u64, now: u64) -> Result<(), DeviceError> {
        let data = data_of(op);
        if self.faults.stale > 0 {
            if self.before.len() >= 64 {
                self.before.remove(0);
            }
            self.before.push((op.offset, self.bytes.bytes(op.offset, op.len)));
        }
        if self.rng.one_in(self.faults.late) {
            self.injected.errors += 1;
            let after = now + 1_000_000 + self.rng.below(50_000_000);
            self.late.push((after, op.offset, data, op.fua));
            self.touch(Touch::Failed { id });
            return Err(DeviceError::Timeout);
        }
        if self.rng.one_in(self.faults.lose) {
            self.injected.lies += 1;
            self.truth.claimed(op.offset, &data);
            self.completed += 1;
            self.touch(Touch::Done { id });
            return Ok(());
        }
        if self.rng.one_in(self.faults.misplace) {
            self.injected.lies += 1;
            let elsewhere = self.rng.below((self.info.size - op.len) / 4096 + 1) * 4096;
            let elsewhere = elsewhere.min(self.info.size - op.len);
            self.truth.keep(&self.bytes, elsewhere, data.len());
            self.truth.claimed(op.offset, &data);
            self.apply(elsewhere, &data, op.fua);
        } else {
            self.land(op.offset, &data, op.fua);
        }
        self.touch(Touch::Done { id });
        Ok(())
    }

    fn flush(&mut self, upto: u64) {
        let Some(stable) = &mut self.stable else { return };
        self.loose.retain(|write| {
            if write.number < upto {
                stable.write(write.offset, &write.data);
            }
            write.number >= upto
        });
    }

    /// A write takes effect where it should.
    fn land(&mut self, offset: u64, data: &Rc<[u8]>, fua: bool) {
        self.truth.written(offset, data.len());
        self.apply(offset, data, fua);
    }

    fn apply(&mut self, offset: u64, data: &Rc<[u8]>, fua: bool) {
        self.written += data.len() as u64;
        self.bytes.write(offset, data);
        for block in offset / 4096..(offset + data.len() as u64).div_ceil(4096) {
            self.unreadable.remove(&block);
        }
        let number = self.completed;
        self.completed += 1;
        let Some(stable) = &mut self.stable else { return };
        if !fua {
            self.loose.push(Loose { number, offset, data: Rc::clone(data) });
            return;
        }
        stable.write(offset, data);
        // Earlier writes of the same place must not come back over it.
        for write in &mut self.loose {
            overlay(&mut write.data, write.offset, offset, data);
        }
    }

    /// Makes all that completed durable, as a device may at any time.
    pub fn settle(&mut self) {
        self.flush(u64::MAX);
    }

    /// Writes that completed so far.
    #[must_use]
    pub const fn completed(&self) -> u64 {
        self.completed
    }

    /// These bytes rot on the medium.
    pub fn rot(&mut self, offset: u64, data: &[u8]) {
        self.truth.keep(&self.bytes, offset, data.len());
        self.put(offset, data);
        self.injected.lies += 1;
    }

    /// Puts bytes on the medium for good, past all that.
    pub fn put(&mut self, offset: u64, data: &[u8]) {
        self.bytes.write(offset, data);
        if let Some(stable) = &mut self.stable {
            stable.write(offset, data);
        }
    }

    /// Each write in flight is dropped, done or torn at 512 bytes; with a power loss so is each
    /// write that was not flushed. Faults end.
    pub fn crash(&mut self, power: bool) {
        self.faults = Faults::default();
        self.before.clear();
        if power && let Some(stable) = self.stable.take() {
            self.bytes = stable;
            for write in std::mem::take(&mut self.loose) {
                // An older block may be the right one again.
                self.truth.written(write.offset, write.data.len());
                self.maybe(write.offset, &write.data);
            }
        }
        let volatile = self.info.volatile_write_cache;
        let mut flying: Vec<(u64, Rc<[u8]>, bool)> = std::mem::take(&mut self.flying)
            .iter()
            .filter(|f| !matches!(f.op.kind, OpKind::Read | OpKind::Flush))
            .map(|f| (f.op.offset, data_of(&f.op), f.op.fua))
            .collect();
        let late = std::mem::take(&mut self.late);
        flying.extend(late.into_iter().map(|late| (late.1, late.2, late.3)));
        while !flying.is_empty() {
            let (offset, data, fua) = flying.swap_remove(self.rng.index(flying.len()));
            if power || !volatile {
                self.maybe(offset, &data);
            } else if self.rng.below(2) == 0 {
                // It arrived in the device's cache after the process was gone.
                self.injected.crashed += 1;
                self.land(offset, &data, fua);
            }
        }
        if power && volatile {
            self.stable = Some(self.bytes.clone());
        }
    }

    /// A write that may have been done, or a part of it.
    fn maybe(&mut self, offset: u64, data: &[u8]) {
        self.injected.crashed += 1;
        let choice = self.rng.below(4);
        let parts = torn(data.len(), choice, &mut self.rng);
        for (from, to) in parts {
            let at = offset + from as u64;
            self.bytes.write(at, &data[from..to]);
            self.truth.written(at, to - from);
            if let Some(stable) = &mut self.stable {
                stable.write(at, &data[from..to]);
            }
            // Earlier writes of the same place must not come back over it.
            for write in &mut self.loose {
                overlay(&mut write.data, write.offset, at, &data[from..to]);
            }
        }
    }
}

/// Puts what overlaps of a later write into the data of an earlier one.
pub fn overlay(earlier: &mut Rc<[u8]>, at: u64, offset: u64, data: &[u8]) {
    let (low, high) = (at.max(offset), (at + earlier.len() as u64).min(offset + data.len() as u64));
    if low < high {
        let place = |base: u64| usize::try_from(low - base).unwrap_or(0);
        let n = usize::try_from(high - low).unwrap_or(0);
        let mut patched = earlier.to_vec();
        patched[place(at)..place(at) + n].copy_from_slice(&data[place(offset)..place(offset) + n]);
        *earlier = patched.into();
    }
}

/// The parts of a write of `len` bytes that are on the medium: none (0), all (1), up to a sector
/// (2), some sectors (other).
#[must_use]
pub fn torn(len: usize, choice: u64, rng: &mut Rng) -> Vec<(usize, usize)> {
    let sectors = len / 512;
    match choice {
        0 => Vec::new(),
        1 => vec![(0, len)],
        2 => vec![(0, rng.index(sectors + 1) * 512)],
        _ => (0..sectors).filter(|_| rng.below(2) == 0).map(|n| (n * 512, n * 512 + 512)).collect(),
    }
}

fn data_of(op: &Op<SimBuf>) -> Rc<[u8]> {
    let len = usize::try_from(op.len).unwrap_or(0);
    match &op.buf {
        Some(buf) => buf.as_slice().get(..len).unwrap_or_default().into(),
        None => vec![0; len].into(),
    }
}
