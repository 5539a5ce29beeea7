//! All kinds of devices behind one enum, and how they are opened.

use crate::fault::{FaultDevice, FaultHandle};
use crate::mem::MemDevice;
use crate::nvmf::{NvmfDevice, NvmfUri};
use crate::slow::SlowDevice;
use crate::uri::{DeviceUri, UriError};
use crate::uring::{Ring, UringDevice, UringError};
use core::fmt;
use forebay_hugepages::RegionError;
use forebay_io::{Completion, Device, DeviceInfo, Instant, Op};
use forebay_reactor::{LoopTime, PoolBuf, RegionTable, WaitSet};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// What devices of one reactor share.
#[derive(Clone)]
pub struct DriverContext {
    /// The loop's clock.
    pub time: LoopTime,
    /// What wakes the reactor; rings put themselves in.
    pub wait: WaitSet,
    /// The memory that buffers come from, to be registered.
    pub table: Arc<RegionTable>,
    /// The reactor's ring, made with its first device.
    ring: Rc<RefCell<Option<Ring>>>,
}

impl DriverContext {
    /// The context of a reactor.
    #[must_use]
    pub fn new(time: LoopTime, wait: WaitSet, table: Arc<RegionTable>) -> Self {
        Self { time, wait, table, ring: Rc::default() }
    }

    fn ring(&self) -> Result<Ring, UringError> {
        let mut slot = self.ring.borrow_mut();
        if let Some(ring) = &*slot {
            return Ok(ring.clone());
        }
        let ring = Ring::new(Arc::clone(&self.table), &self.wait)?;
        *slot = Some(ring.clone());
        Ok(ring)
    }
}

/// Why a device was not opened.
#[derive(Debug)]
pub enum OpenError {
    /// The URI.
    Uri(UriError),
    /// A file or block device.
    Uring(UringError),
    /// Memory.
    Mem {
        /// Bytes asked for.
        size: u64,
        /// Why not.
        error: RegionError,
    },
    /// A remote namespace, in words.
    Nvmf(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(error) => error.fmt(f),
            Self::Uring(error) => error.fmt(f),
            Self::Mem { size, error } => write!(f, "no memory of {size} bytes: {error}"),
            Self::Nvmf(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for OpenError {}

/// A device of any kind.
pub enum AnyDevice {
    /// `mem:`
    Mem(MemDevice),
    /// `uring:`
    Uring(UringDevice),
    /// `nvmf+tcp:`
    Nvmf(Box<NvmfDevice<PoolBuf>>),
    /// `slow:`
    Slow(Box<SlowDevice>),
    /// `fault:`
    Fault(Box<FaultDevice>),
}

/// Opens a device for the reactor of `context`, on that reactor's thread.
///
/// # Errors
/// [`OpenError`], which names the device, what is wrong and what to do.
pub fn open(uri: &str, context: &DriverContext) -> Result<AnyDevice, OpenError> {
    open_parsed(&uri.parse().map_err(OpenError::Uri)?, context)
}

fn open_parsed(uri: &DeviceUri, context: &DriverContext) -> Result<AnyDevice, OpenError> {
    Ok(match uri {
        DeviceUri::Mem { size, block_size } => AnyDevice::Mem(
            MemDevice::new(*size, *block_size)
                .map_err(|error| OpenError::Mem { size: *size, error })?,
        ),
        DeviceUri::Uring { path, size } => {
            let ring = context.ring().map_err(OpenError::Uring)?;
            AnyDevice::Uring(UringDevice::open(path, *size, ring).map_err(OpenError::Uring)?)
        }
        DeviceUri::Slow { inner, latency } => {
            let inner = open_parsed(inner, context)?;
            AnyDevice::Slow(Box::new(SlowDevice::new(inner, context.time.clone(), *latency)))
        }
        DeviceUri::Fault { inner } => {
            AnyDevice::Fault(Box::new(FaultDevice::new(open_parsed(inner, context)?)))
        }
        DeviceUri::NvmfTcp { address, options } => {
            let words = |error: &dyn fmt::Display| OpenError::Nvmf(format!("{address}: {error}"));
            let options = options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let uri = NvmfUri::from_parts(address, options).map_err(|error| words(&error))?;
            let device = NvmfDevice::open(&uri).map_err(|error| words(&error))?;
            context.wait.add(device.wait_fd()).map_err(|error| words(&error))?;
            AnyDevice::Nvmf(Box::new(device))
        }
    })
}

impl AnyDevice {
    /// When it must be polled at the latest although nothing wakes the reactor.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match self {
            Self::Mem(device) if device.in_flight() > 0 => Instant(0),
            Self::Mem(_) | Self::Uring(_) => Instant::NEVER,
            Self::Nvmf(device) => device.next_deadline(),
            Self::Slow(device) => device.next_deadline().min(device.inner().next_deadline()),
            Self::Fault(device) => device.next_deadline(),
        }
    }

    /// Whether its I/O goes past the page cache. Only files of a file system that refuses `O_DIRECT`
    /// do not.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        match self {
            Self::Mem(_) | Self::Nvmf(_) => true,
            Self::Uring(device) => device.is_direct(),
            Self::Slow(device) => device.inner().is_direct(),
            Self::Fault(device) => device.inner().is_direct(),
        }
    }

    /// Sets aside the space of a file that has holes, so that no write to it can find its file system
    /// full; nothing else changes. Blocks for system calls. Other devices have their space.
    ///
    /// # Errors
    /// The file system's: without that much space, or without the means.
    pub fn reserve(&self) -> std::io::Result<()> {
        match self {
            Self::Mem(_) | Self::Nvmf(_) => Ok(()),
            Self::Uring(device) => device.reserve(),
            Self::Slow(device) => device.inner().reserve(),
            Self::Fault(device) => device.inner().reserve(),
        }
    }

    /// Bytes of a file without space of their own; 0 of other devices.
    #[must_use]
    pub fn unreserved(&self) -> u64 {
        match self {
            Self::Mem(_) | Self::Nvmf(_) => 0,
            Self::Uring(device) => device.unreserved(),
            Self::Slow(device) => device.inner().unreserved(),
            Self::Fault(device) => device.inner().unreserved(),
        }
    }

    /// What controls its faults, if it or what it wraps is `fault:`.
    #[must_use]
    pub fn faults(&self) -> Option<FaultHandle> {
        match self {
            Self::Fault(device) => Some(device.handle()),
            Self::Slow(device) => device.inner().faults(),
            Self::Mem(_) | Self::Uring(_) | Self::Nvmf(_) => None,
        }
    }
}

impl Device for AnyDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        match self {
            Self::Mem(device) => device.info(),
            Self::Uring(device) => device.info(),
            Self::Nvmf(device) => device.info(),
            Self::Slow(device) => device.info(),
            Self::Fault(device) => device.info(),
        }
    }

    fn submit(&mut self, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        match self {
            Self::Mem(device) => device.submit(op),
            Self::Uring(device) => device.submit(op),
            Self::Nvmf(device) => device.submit(op),
            Self::Slow(device) => device.submit(op),
            Self::Fault(device) => device.submit(op),
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        match self {
            Self::Mem(device) => device.poll(done),
            Self::Uring(device) => device.poll(done),
            Self::Nvmf(device) => device.poll(done),
            Self::Slow(device) => device.poll(done),
            Self::Fault(device) => device.poll(done),
        }
    }

    fn in_flight(&self) -> usize {
        match self {
            Self::Mem(device) => device.in_flight(),
            Self::Uring(device) => device.in_flight(),
            Self::Nvmf(device) => device.in_flight(),
            Self::Slow(device) => device.in_flight(),
            Self::Fault(device) => device.in_flight(),
        }
    }
}
