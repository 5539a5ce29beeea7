//! A simulated device: operations complete after random times, in any order.

use forebay_io::{Completion, DeviceError, DeviceInfo, HeapBuf, Op, OpKind};

/// A small deterministic generator.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { (self.next() >> 11) % n }
    }
}

pub fn info(identity: &str, size: u64, block_size: u32, volatile: bool) -> DeviceInfo {
    DeviceInfo {
        size,
        block_size,
        atomic_write: block_size,
        volatile_write_cache: volatile,
        optimal_io: 4096,
        max_io: 1 << 20,
        deallocate: true,
        write_zeroes: true,
        identity: identity.to_owned(),
    }
}

#[derive(Clone)]
struct Flying {
    ready: u64,
    op: Op<HeapBuf>,
}

/// Bytes written and when they are for good.
#[derive(Clone)]
struct Unflushed {
    offset: u64,
    bytes: Vec<u8>,
}

/// Which operations fail.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// All reads, writes, flushes fail with this.
    pub read: Option<DeviceError>,
    pub write: Option<DeviceError>,
    pub flush: Option<DeviceError>,
    /// One operation in this many fails once.
    pub one_in: u64,
    /// Nothing completes.
    pub hang: bool,
}

#[derive(Clone)]
pub struct Disk {
    pub info: DeviceInfo,
    /// What reads return.
    bytes: Vec<u8>,
    /// What a power loss leaves, where that differs.
    stable: Option<Vec<u8>>,
    unflushed: Vec<Unflushed>,
    flying: Vec<Flying>,
    pub latency: (u64, u64),
    pub faults: Faults,
    pub rng: Rng,
    pub written: u64,
    pub writes: u64,
    pub flushes: u64,
    pub injected: u64,
    /// Overlapping writes in flight at once, which a backing device must never see.
    pub overlaps: u64,
}

impl Disk {
    pub fn new(info: DeviceInfo, volatile: bool, seed: u64) -> Self {
        let bytes = vec![0; usize::try_from(info.size).unwrap()];
        Self {
            info,
            stable: volatile.then(|| bytes.clone()),
            bytes,
            unflushed: Vec::new(),
            flying: Vec::new(),
            latency: (1_000, 10_000),
            faults: Faults::default(),
            rng: Rng(seed.wrapping_mul(0x9e37_79b9) | 1),
            written: 0,
            writes: 0,
            flushes: 0,
            injected: 0,
            overlaps: 0,
        }
    }

    pub fn next_ready(&self) -> u64 {
        if self.faults.hang {
            u64::MAX
        } else {
            self.flying.iter().map(|f| f.ready).min().unwrap_or(u64::MAX)
        }
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    pub fn in_flight_of(&self, kind: OpKind) -> usize {
        self.flying.iter().filter(|flying| flying.op.kind == kind).count()
    }

    pub fn submit(&mut self, op: Op<HeapBuf>, now: u64) {
        let end = op.offset + op.len;
        assert!(end <= self.info.size, "{:?} beyond the end: {}+{}", op.kind, op.offset, op.len);
        let unit = u64::from(self.info.block_size);
        assert!(
            op.offset % unit == 0 && op.len % unit == 0,
            "unaligned {:?} {}+{}",
            op.kind,
            op.offset,
            op.len
        );
        assert!(op.kind == OpKind::Flush || op.len > 0);
        if op.kind != OpKind::Read && op.kind != OpKind::Flush {
            for other in &self.flying {
                let o = &other.op;
                if o.kind != OpKind::Read
                    && o.kind != OpKind::Flush
                    && o.offset < end
                    && op.offset < o.offset + o.len
                {
                    self.overlaps += 1;
                }
            }
        }
        let ready = now + self.latency.0 + self.rng.below(self.latency.1 - self.latency.0);
        self.flying.push(Flying { ready, op });
    }

    pub fn take_ready(&mut self, now: u64) -> Option<Completion<HeapBuf>> {
        if self.faults.hang {
            return None;
        }
        let ready: Vec<usize> =
            (0..self.flying.len()).filter(|at| self.flying[*at].ready <= now).collect();
        if ready.is_empty() {
            return None;
        }
        let at = ready[usize::try_from(self.rng.below(ready.len() as u64)).unwrap()];
        let op = self.flying.swap_remove(at).op;
        Some(self.serve(op))
    }

    fn fault(&mut self, kind: OpKind) -> Option<DeviceError> {
        if self.faults.one_in > 0 && self.rng.below(self.faults.one_in) == 0 {
            self.injected += 1;
            return Some(DeviceError::Io(5));
        }
        match kind {
            OpKind::Read => self.faults.read,
            OpKind::Flush => self.faults.flush,
            _ => self.faults.write,
        }
    }

    /// Carries out an operation at once.
    pub fn serve(&mut self, mut op: Op<HeapBuf>) -> Completion<HeapBuf> {
        use forebay_io::Buf;
        if let Some(error) = self.fault(op.kind) {
            return Completion { token: op.token, result: Err(error), buf: op.buf };
        }
        let (from, len) = (usize::try_from(op.offset).unwrap(), usize::try_from(op.len).unwrap());
        match op.kind {
            OpKind::Read => {
                let out =
                    op.buf.as_mut().unwrap().as_mut_slice().expect("a read's buffer is unshared");
                out[..len].copy_from_slice(&self.bytes[from..from + len]);
            }
            OpKind::Write => {
                let data = op.buf.as_ref().unwrap().as_slice()[..len].to_vec();
                self.writes += 1;
                self.apply(op.offset, &data, op.fua);
            }
            OpKind::WriteZeroes | OpKind::Deallocate => {
                if !self.info.write_zeroes {
                    let result = Err(DeviceError::Unsupported);
                    return Completion { token: op.token, result, buf: op.buf };
                }
                self.apply(op.offset, &vec![0; len], op.fua);
            }
            OpKind::Flush => {
                self.flushes += 1;
                self.flush_all();
            }
        }
        Completion { token: op.token, result: Ok(()), buf: op.buf }
    }

    fn flush_all(&mut self) {
        if let Some(stable) = &mut self.stable {
            for write in self.unflushed.drain(..) {
                let from = usize::try_from(write.offset).unwrap();
                stable[from..from + write.bytes.len()].copy_from_slice(&write.bytes);
            }
        }
    }

    fn apply(&mut self, offset: u64, data: &[u8], fua: bool) {
        self.written += data.len() as u64;
        let from = usize::try_from(offset).unwrap();
        self.bytes[from..from + data.len()].copy_from_slice(data);
        if let Some(stable) = &mut self.stable {
            if fua {
                // Earlier unflushed writes of the same place must not come back over it.
                stable[from..from + data.len()].copy_from_slice(data);
                for write in &mut self.unflushed {
                    let (a, b) = (write.offset, write.offset + write.bytes.len() as u64);
                    let (low, high) = (a.max(offset), b.min(offset + data.len() as u64));
                    if low < high {
                        let (to, src) = ((low - a) as usize, (low - offset) as usize);
                        let n = (high - low) as usize;
                        write.bytes[to..to + n].copy_from_slice(&data[src..src + n]);
                    }
                }
            } else {
                self.unflushed.push(Unflushed { offset, bytes: data.to_vec() });
            }
        }
    }

    pub fn put(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap();
        self.bytes[from..from + data.len()].copy_from_slice(data);
        if let Some(stable) = &mut self.stable {
            stable[from..from + data.len()].copy_from_slice(data);
        }
    }

    pub fn peek(&self, offset: u64, len: u64) -> Vec<u8> {
        let from = usize::try_from(offset).unwrap();
        self.bytes[from..from + usize::try_from(len).unwrap()].to_vec()
    }

    /// Each write in flight is dropped, done, or torn at 512 bytes; with a power loss so is each
    /// write that was not flushed.
    pub fn crash(&mut self, power: bool) {
        use forebay_io::Buf;
        self.faults = Faults::default();
        if power && let Some(stable) = self.stable.take() {
            self.bytes = stable;
            for write in std::mem::take(&mut self.unflushed) {
                self.maybe(write.offset, &write.bytes);
            }
            self.stable = Some(self.bytes.clone());
        }
        let mut flying = std::mem::take(&mut self.flying);
        while !flying.is_empty() {
            let at = usize::try_from(self.rng.below(flying.len() as u64)).unwrap();
            let op = flying.swap_remove(at).op;
            let len = usize::try_from(op.len).unwrap();
            match op.kind {
                OpKind::Write => {
                    let data = op.buf.as_ref().unwrap().as_slice()[..len].to_vec();
                    self.maybe(op.offset, &data);
                }
                OpKind::WriteZeroes => self.maybe(op.offset, &vec![0; len]),
                _ => {}
            }
        }
        if power && self.stable.is_some() {
            self.stable = Some(self.bytes.clone());
        }
    }

    /// Nothing that is in flight was ever done.
    pub fn drop_flying(&mut self) {
        self.flying.clear();
    }

    fn maybe(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap();
        match self.rng.below(4) {
            0 => {}
            1 => self.bytes[from..from + data.len()].copy_from_slice(data),
            2 => {
                // A prefix.
                let sectors = data.len() as u64 / 512;
                let n = usize::try_from(self.rng.below(sectors + 1) * 512).unwrap();
                self.bytes[from..from + n].copy_from_slice(&data[..n]);
            }
            _ => {
                for (n, sector) in data.chunks(512).enumerate() {
                    if self.rng.below(2) == 0 {
                        let at = from + n * 512;
                        self.bytes[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
}
