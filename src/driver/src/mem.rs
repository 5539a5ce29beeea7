//! `mem:` memory of this process as a device, for tests and for measuring what is not the device.

use crate::check::check;
use forebay_hugepages::{Memory, Preference, RegionError};
use forebay_io::{Buf, Completion, Device, DeviceError, DeviceInfo, Op, OpKind};
use forebay_reactor::PoolBuf;
use forebay_reactor::pool::MAX_BUFFER;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

/// Operations between two polls at most.
const QUEUE: usize = 1024;
/// Bytes that one poll zeroes at most, so that a large range does not hold the reactor up.
const ZERO_STEP: u64 = 4 << 20;

/// Memory as a device. Reads and writes take effect when they are submitted and complete at the next
/// poll; ranges are zeroed in steps.
#[derive(Debug)]
pub struct MemDevice {
    memory: Memory,
    info: DeviceInfo,
    done: VecDeque<Completion<PoolBuf>>,
    /// Ranges that are being zeroed; of each what is left.
    zeroing: VecDeque<Op<PoolBuf>>,
}

impl MemDevice {
    /// A zeroed device of `size` bytes in logical blocks of `block_size` bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(size: u64, block_size: u32) -> Result<Self, RegionError> {
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let memory = Memory::new(len, Preference::PreferHugetlb)?;
        let info = DeviceInfo {
            size: size - size % u64::from(block_size),
            block_size,
            atomic_write: 4096.max(block_size),
            volatile_write_cache: false,
            optimal_io: 4096,
            max_io: u32::try_from(MAX_BUFFER).unwrap_or(u32::MAX),
            deallocate: true,
            write_zeroes: true,
            identity: identity(),
        };
        let (done, zeroing) = (VecDeque::with_capacity(QUEUE), VecDeque::new());
        Ok(Self { memory, info, done, zeroing })
    }

    /// Carries a checked operation out; whether it is complete.
    fn carry_out(&mut self, op: &mut Op<PoolBuf>) -> Result<bool, DeviceError> {
        check(&self.info, op)?;
        let beyond = |_| DeviceError::OutOfRange;
        let at = usize::try_from(op.offset).map_err(beyond)?;
        let len = usize::try_from(op.len).map_err(beyond)?;
        let short = DeviceError::Io(libc::EINVAL);
        match op.kind {
            OpKind::Read => {
                let into = op.buf.as_mut().and_then(Buf::as_mut_slice);
                self.memory.read(at, into.and_then(|bytes| bytes.get_mut(..len)).ok_or(short)?);
            }
            OpKind::Write => {
                let from = op.buf.as_ref().and_then(|buf| buf.as_slice().get(..len));
                self.memory.write(at, from.ok_or(short)?);
            }
            OpKind::Deallocate | OpKind::WriteZeroes => return Ok(self.zero(op, ZERO_STEP)),
            OpKind::Flush => {}
        }
        Ok(true)
    }

    /// Zeroes up to `most` bytes of what is left of a range; whether nothing is left.
    fn zero(&mut self, op: &mut Op<PoolBuf>, most: u64) -> bool {
        let step = op.len.min(most);
        // Both fit: the range is inside the memory.
        let start = usize::try_from(op.offset).unwrap_or(usize::MAX);
        let end = usize::try_from(op.offset + step).unwrap_or(usize::MAX);
        self.memory.zero(start..end);
        op.offset += step;
        op.len -= step;
        op.len == 0
    }

    fn complete(&mut self, op: Op<PoolBuf>, result: Result<(), DeviceError>) {
        self.done.push_back(Completion { token: op.token, result, buf: op.buf });
    }
}

/// Unlike any other: the content does not outlive the device.
fn identity() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("mem {} {} {number}", random.trim(), std::process::id())
}

impl Device for MemDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, mut op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        if self.in_flight() >= QUEUE {
            return Err(op);
        }
        match self.carry_out(&mut op) {
            Ok(true) => self.complete(op, Ok(())),
            Ok(false) => self.zeroing.push_back(op),
            Err(error) => self.complete(op, Err(error)),
        }
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        if let Some(mut op) = self.zeroing.pop_front() {
            if self.zero(&mut op, ZERO_STEP) {
                self.complete(op, Ok(()));
            } else {
                self.zeroing.push_front(op);
            }
        }
        let count = self.done.len();
        done.extend(self.done.drain(..));
        count
    }

    fn in_flight(&self) -> usize {
        self.done.len() + self.zeroing.len()
    }
}

#[cfg(test)]
mod tests;
