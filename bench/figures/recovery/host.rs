//! A user of one device, a host of a namespace say, that does one operation at a time.

use crate::Result;
use forebay_driver::{AnyDevice, DriverContext};
use forebay_io::{Buf, BufPool, Device, DeviceInfo, Op};
use forebay_reactor::{LoopTime, MonotonicClock, Pool, PoolBuf, PoolConfig, RegionTable, WaitSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of each operation.
const BLOCK: u64 = 4096;
/// How long one operation may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open device.
pub(crate) struct Host {
    device: AnyDevice,
    pool: Pool,
    time: LoopTime,
}

impl Host {
    /// Opens a device by its URI.
    pub(crate) fn connect(uri: &str) -> Result<Self> {
        let table = Arc::new(RegionTable::new());
        let pool = Pool::new(PoolConfig::bounded(4 << 20), Arc::clone(&table));
        let time = LoopTime::new(MonotonicClock.now());
        let wait = WaitSet::new().map_err(|error| error.to_string())?;
        let context = DriverContext::new(time.clone(), wait, table);
        let device = forebay_driver::open(uri, &context).map_err(|error| error.to_string())?;
        Ok(Self { device, pool, time })
    }

    /// What the device states of itself.
    pub(crate) fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    /// Writes a block.
    pub(crate) fn write(&mut self, block: u64, bytes: &[u8]) -> Result<()> {
        let mut buf = self.buf()?;
        buf.as_mut_slice().ok_or("a shared buffer")?.copy_from_slice(bytes);
        self.run(Op::write(0, block * BLOCK, BLOCK, buf)).map(|_| ())
    }

    /// Reads a block.
    pub(crate) fn read(&mut self, block: u64) -> Result<Vec<u8>> {
        let buf = self.buf()?;
        let buf = self.run(Op::read(0, block * BLOCK, BLOCK, buf))?;
        Ok(buf.as_slice().to_vec())
    }

    fn buf(&mut self) -> Result<PoolBuf> {
        let len = usize::try_from(BLOCK).map_err(|error| error.to_string())?;
        self.pool.alloc(len).ok_or_else(|| "no buffer".to_owned())
    }

    fn run(&mut self, op: Op<PoolBuf>) -> Result<PoolBuf> {
        let end = Instant::now() + PATIENCE;
        let (mut done, mut held) = (Vec::new(), Some(op));
        while done.is_empty() {
            self.time.set(MonotonicClock.now());
            if let Some(op) = held.take() {
                held = self.device.submit(op).err();
            }
            self.device.poll(&mut done);
            if Instant::now() > end {
                return Err("an operation does not end".into());
            }
        }
        let completion = done.pop().ok_or("no completion")?;
        completion.result.map_err(|error| error.to_string())?;
        completion.buf.ok_or_else(|| "a completion without its buffer".into())
    }
}
