//! What the tests of this crate share: a pool, a loop, a model of a device, scratch files.

use crate::DriverContext;
use forebay_io::{Buf, BufPool, Completion, Device, DeviceError, Op, OpKind};
use forebay_reactor::{LoopTime, MonotonicClock, Pool, PoolBuf, PoolConfig, RegionTable, WaitSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A reactor's surroundings without a reactor.
pub(crate) struct Bench {
    pub(crate) context: DriverContext,
    pub(crate) pool: Pool,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let table = Arc::new(RegionTable::new());
        let config = PoolConfig {
            pages: forebay_hugepages::Preference::Ordinary,
            ..PoolConfig::bounded(16 << 20)
        };
        let time = LoopTime::new(MonotonicClock.now());
        let wait = WaitSet::new().unwrap();
        let context = DriverContext::new(time, wait, Arc::clone(&table));
        Self { context, pool: Pool::new(config, table) }
    }

    pub(crate) fn buf(&mut self, bytes: &[u8]) -> PoolBuf {
        let mut buf = self.pool.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().unwrap().copy_from_slice(bytes);
        buf
    }

    /// Begins a loop.
    pub(crate) fn tick(&self) {
        self.context.time.set(MonotonicClock.now());
    }

    /// Carries one operation out.
    pub(crate) fn run<D: Device<Buf = PoolBuf>>(
        &mut self,
        device: &mut D,
        op: Op<PoolBuf>,
    ) -> Completion<PoolBuf> {
        let token = op.token;
        device.submit(op).unwrap();
        let completion = self.wait_one(device);
        assert_eq!(completion.token, token);
        completion
    }

    pub(crate) fn wait_one<D: Device<Buf = PoolBuf>>(&self, device: &mut D) -> Completion<PoolBuf> {
        let (begun, mut done) = (Instant::now(), Vec::new());
        while done.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no completion");
            self.tick();
            device.poll(&mut done);
        }
        assert_eq!(done.len(), 1);
        done.remove(0)
    }

    pub(crate) fn read<D: Device<Buf = PoolBuf>>(
        &mut self,
        device: &mut D,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, DeviceError> {
        let buf = self.pool.alloc(len).unwrap();
        let done = self.run(device, Op::read(1, offset, len as u64, buf));
        done.result.map(|()| done.buf.unwrap().as_slice().to_vec())
    }

    pub(crate) fn write<D: Device<Buf = PoolBuf>>(
        &mut self,
        device: &mut D,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let buf = self.buf(bytes);
        self.run(device, Op::write(2, offset, bytes.len() as u64, buf)).result
    }
}

/// A small generator of numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct Flying {
    kind: OpKind,
    offset: usize,
    len: usize,
}

/// Runs random operations, many at once but never two on one range, against a model in memory, and
/// compares every read and, at the end, everything. Returns how many operations were carried out.
pub(crate) fn against_model<D: Device<Buf = PoolBuf>>(
    bench: &mut Bench,
    device: &mut D,
    seed: u64,
    operations: usize,
) -> usize {
    println!("seed {seed}");
    let info = device.info().clone();
    let size = usize::try_from(info.size).unwrap();
    let block = usize::try_from(info.block_size).unwrap();
    let mut model = Vec::with_capacity(size);
    while model.len() < size {
        let len = (size - model.len()).min(1 << 20);
        model.extend(bench.read(device, model.len() as u64, len).unwrap());
    }
    let mut random = Random(seed);
    let mut flying: Vec<Option<Flying>> = Vec::new();
    let (mut started, mut ended, mut done) = (0, 0, Vec::new());
    let begun = Instant::now();
    while ended < operations {
        assert!(begun.elapsed() < Duration::from_secs(120), "seed {seed}: {ended} ended");
        while started < operations && started - ended < 32 {
            let blocks = if random.below(8) == 0 { 256 } else { 1 + random.below(16) };
            let len = (usize::try_from(blocks).unwrap() * block).min(size);
            let place = random.below(((size - len) / block + 1) as u64);
            let offset = usize::try_from(place).unwrap() * block;
            let overlaps = |f: &Flying| offset < f.offset + f.len && f.offset < offset + len;
            if flying.iter().flatten().any(overlaps) {
                break;
            }
            let kind = match random.below(12) {
                0 => OpKind::Flush,
                1 if info.deallocate => OpKind::Deallocate,
                2 if info.write_zeroes => OpKind::WriteZeroes,
                3..=6 => OpKind::Read,
                _ => OpKind::Write,
            };
            let mut op = Op::range(flying.len() as u64, kind, offset as u64, len as u64);
            op.fua = random.below(6) == 0;
            if matches!(kind, OpKind::Read | OpKind::Write) {
                let mut buf = bench.pool.alloc(len).unwrap();
                if kind == OpKind::Write {
                    let bytes = buf.as_mut_slice().unwrap();
                    bytes.fill_with(|| random.next().to_le_bytes()[0]);
                    model[offset..offset + len].copy_from_slice(bytes);
                }
                op.buf = Some(buf);
            }
            if kind == OpKind::WriteZeroes || kind == OpKind::Deallocate {
                model[offset..offset + len].fill(0);
            }
            flying.push(Some(Flying { kind, offset, len }));
            device.submit(op).unwrap();
            started += 1;
        }
        bench.tick();
        device.poll(&mut done);
        for completion in done.drain(..) {
            let number = usize::try_from(completion.token).unwrap();
            let f = flying[number].take().expect("completed once");
            let what = (f.kind, f.offset, f.len);
            assert_eq!(completion.result, Ok(()), "seed {seed}: {what:?}");
            if f.kind == OpKind::Read {
                let buf = completion.buf.unwrap();
                let wanted = &model[f.offset..f.offset + f.len];
                assert!(buf.as_slice() == wanted, "seed {seed}: {what:?}");
            }
            ended += 1;
        }
    }
    assert_eq!(device.in_flight(), 0);
    for offset in (0..size).step_by(1 << 20) {
        let len = (size - offset).min(1 << 20);
        let read = bench.read(device, offset as u64, len).unwrap();
        assert!(read == model[offset..offset + len], "seed {seed}: at the end, from {offset}");
    }
    ended
}

/// A path that nobody else uses, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(directory: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(directory.join(format!("forebay-driver-{}-{number}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
