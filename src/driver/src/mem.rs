//! `mem:` memory of this process as a device, for tests and for measuring what is not the device.

use forebay_hugepages::{Memory, Preference, RegionError};
use forebay_io::{Buf, Completion, Device, DeviceError, DeviceInfo, Op, OpKind};
use forebay_reactor::PoolBuf;
use std::collections::VecDeque;

/// Operations between two polls at most.
const QUEUE: usize = 1024;

/// Memory as a device. Operations take effect when they are submitted and complete at the next poll.
#[derive(Debug)]
pub struct MemDevice {
    memory: Memory,
    info: DeviceInfo,
    done: VecDeque<Completion<PoolBuf>>,
}

impl MemDevice {
    /// A device of `size` bytes, rounded down to 4096.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(size: u64) -> Result<Self, RegionError> {
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let memory = Memory::new(len, Preference::PreferHugetlb)?;
        let info = DeviceInfo {
            size: size & !4095,
            block_size: 512,
            atomic_write: 4096,
            volatile_write_cache: false,
            optimal_io: 4096,
            max_io: 8 << 20,
            deallocate: true,
            write_zeroes: true,
            identity: format!("mem-{size}"),
        };
        Ok(Self { memory, info, done: VecDeque::with_capacity(QUEUE) })
    }

    fn carry_out(&mut self, op: &mut Op<PoolBuf>) -> Result<(), DeviceError> {
        if op.kind == OpKind::Flush {
            return Ok(());
        }
        let end = op.offset.checked_add(op.len).filter(|end| *end <= self.info.size);
        let (Some(_), Ok(at), Ok(len)) = (end, usize::try_from(op.offset), usize::try_from(op.len))
        else {
            return Err(DeviceError::OutOfRange);
        };
        match op.kind {
            OpKind::Read => {
                let into = op.buf.as_mut().and_then(Buf::as_mut_slice);
                let into = into.and_then(|bytes| bytes.get_mut(..len)).ok_or(DeviceError::Io(libc::EINVAL))?;
                self.memory.read(at, into);
            }
            OpKind::Write => {
                let from = op.buf.as_ref().and_then(|buf| buf.as_slice().get(..len));
                self.memory.write(at, from.ok_or(DeviceError::Io(libc::EINVAL))?);
            }
            OpKind::Deallocate | OpKind::WriteZeroes => self.memory.zero(at..at + len),
            OpKind::Flush => {}
        }
        Ok(())
    }
}

impl Device for MemDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, mut op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        if self.done.len() >= QUEUE {
            return Err(op);
        }
        let result = self.carry_out(&mut op);
        self.done.push_back(Completion { token: op.token, result, buf: op.buf });
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let count = self.done.len();
        done.extend(self.done.drain(..));
        count
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
