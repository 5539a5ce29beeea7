//! Devices: what they state of themselves, what can be asked of them, what comes back.

use crate::buf::Buf;
use core::fmt;

/// What a device states of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Size in bytes, a multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: every offset and length is a multiple of it.
    pub block_size: u32,
    /// Bytes that are written whole or not at all at a power loss; at least `block_size`.
    pub atomic_write: u32,
    /// Whether completed writes may still be lost at a power loss until a Flush.
    pub volatile_write_cache: bool,
    /// Preferred I/O granularity in bytes.
    pub optimal_io: u32,
    /// Largest single read or write in bytes.
    pub max_io: u32,
    /// Whether [`OpKind::Deallocate`] is carried out (else it completes as unsupported).
    pub deallocate: bool,
    /// Whether [`OpKind::WriteZeroes`] is carried out (else it completes as unsupported).
    pub write_zeroes: bool,
    /// What tells this device from another across restarts: a stable text such as a file's inode
    /// and birth, a block device's WWID, or a remote namespace's UUID.
    pub identity: String,
}

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Fill the buffer from the device.
    Read,
    /// Write the buffer to the device.
    Write,
    /// Make every write that completed before this was submitted durable.
    Flush,
    /// The range is no longer needed.
    Deallocate,
    /// The range reads as zeroes from now on.
    WriteZeroes,
}

/// Data of one lifetime, kept apart by devices that can place it (NVMe directives or FDP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Not stated.
    #[default]
    Default,
    /// Host writes.
    Journal,
    /// Read misses.
    Fill,
    /// Blocks kept at eviction because they were read again.
    Reinsert,
}

/// One operation, which owns its buffer until it completes.
#[derive(Clone, Debug)]
pub struct Op<B> {
    /// Given back with the completion; the submitter's own.
    pub token: u64,
    /// What to do.
    pub kind: OpKind,
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes; for reads and writes at most the buffer's, from its first byte on.
    pub len: u64,
    /// The data; `None` for operations without any. Unshared for a read.
    pub buf: Option<B>,
    /// Force Unit Access: durable before completion.
    pub fua: bool,
    /// Which lifetime the data has.
    pub stream: Stream,
}

impl<B: Buf> Op<B> {
    /// A read of `len` bytes at `offset` into `buf`.
    pub fn read(token: u64, offset: u64, len: u64, buf: B) -> Self {
        Self {
            token,
            kind: OpKind::Read,
            offset,
            len,
            buf: Some(buf),
            fua: false,
            stream: Stream::Default,
        }
    }

    /// A write of the first `len` bytes of `buf` at `offset`.
    pub fn write(token: u64, offset: u64, len: u64, buf: B) -> Self {
        Self {
            token,
            kind: OpKind::Write,
            offset,
            len,
            buf: Some(buf),
            fua: false,
            stream: Stream::Default,
        }
    }

    /// A flush of the whole device.
    pub fn flush(token: u64) -> Self {
        Self {
            token,
            kind: OpKind::Flush,
            offset: 0,
            len: 0,
            buf: None,
            fua: false,
            stream: Stream::Default,
        }
    }

    /// A deallocate or write-zeroes of `len` bytes at `offset`.
    pub fn range(token: u64, kind: OpKind, offset: u64, len: u64) -> Self {
        Self { token, kind, offset, len, buf: None, fua: false, stream: Stream::Default }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The device reported an I/O error; the operating system's error number, 0 if none is known.
    Io(i32),
    /// The medium cannot return the data (unrecovered read error).
    Media,
    /// The device has no room left (a thin or file-backed device).
    NoSpace,
    /// The range lies outside the device.
    OutOfRange,
    /// The device cannot do this operation.
    Unsupported,
    /// The device is not there any more.
    Gone,
    /// No answer in time. The operation may still take effect later.
    Timeout,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(0) => f.write_str("I/O error"),
            Self::Io(errno) => write!(f, "I/O error (errno {errno})"),
            Self::Media => f.write_str("unrecovered media error"),
            Self::NoSpace => f.write_str("no space left on the device"),
            Self::OutOfRange => f.write_str("range beyond the end of the device"),
            Self::Unsupported => f.write_str("operation not supported by the device"),
            Self::Gone => f.write_str("device is gone"),
            Self::Timeout => f.write_str("no answer from the device in time"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// The end of an operation: its buffer comes back, on errors too.
#[derive(Clone, Debug)]
pub struct Completion<B> {
    /// The token of the [`Op`].
    pub token: u64,
    /// How it ended. Short reads and writes never surface: the driver finishes or fails them.
    pub result: Result<(), DeviceError>,
    /// The buffer of the operation.
    pub buf: Option<B>,
}

/// A device driven by polling, owned by one reactor.
///
/// Operations complete in any order; those in flight at once on overlapping ranges have no order.
pub trait Device {
    /// The buffers it takes.
    type Buf: Buf;

    /// What the device states of itself.
    fn info(&self) -> &DeviceInfo;

    /// Takes an operation, or gives it back where the queue is full (poll, then try again).
    ///
    /// # Errors
    /// The operation itself, untouched. Every other failure arrives as a completion.
    fn submit(&mut self, op: Op<Self::Buf>) -> Result<(), Op<Self::Buf>>;

    /// Hands what was submitted to the device (one batched call) and appends what has completed
    /// to `done`. Returns how many were appended.
    fn poll(&mut self, done: &mut Vec<Completion<Self::Buf>>) -> usize;

    /// Operations submitted and not completed.
    fn in_flight(&self) -> usize;
}
