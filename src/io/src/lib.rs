//! The seam between core and shell: units, buffers, device operations, block requests, time.
//!
//! Core crates are generic over [`Buf`] and speak of devices only as [`device::Op`] out and
//! [`device::Completion`] in; the shell carries both to real hardware, the simulator to a
//! simulated one. Nothing here performs I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`units`] | `Lba`, `Lsn`, `Epoch`, `Uuid`: sized integers that cannot be confused |
//! | [`time`] | monotonic nanoseconds, passed in as arguments |
//! | [`buf`] | owned, shareable byte buffers and their pool; plain-memory versions |
//! | [`device`] | what a device is, its operations, completions and errors |
//! | [`block`] | what a host asks of a volume, and what comes back |
//! | [`latency`] | histograms of how long things took |
//! | [`crc`] | CRC32C, the one checksum of the project |
#![forbid(unsafe_code)]

pub mod block;
pub mod buf;
pub mod crc;
pub mod device;
pub mod latency;
pub mod time;
pub mod units;

pub use block::{BlockError, Outcome, Payload, Piece, Request, RequestOp, Tag};
pub use buf::{Buf, BufPool, HeapBuf, HeapPool};
pub use device::{Completion, Device, DeviceError, DeviceInfo, Op, OpKind};
pub use latency::LatencyHistogram;
pub use time::{Duration, Instant};
pub use units::{Epoch, Lba, Lsn, Uuid, VolumeId};
