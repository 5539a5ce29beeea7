//! Submission entries, and what the kernel's error numbers mean.

use super::ring::Stage;
use forebay_io::{DeviceError, Op, OpKind};
use forebay_reactor::PoolBuf;
use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// How the kernel is told which file is meant.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// By its place in the ring's table of files.
    Registered(u32),
    /// By descriptor.
    Descriptor(RawFd),
}

/// Builds an entry with either kind of file.
macro_rules! with_file {
    ($place:expr, $file:ident => $entry:expr) => {
        match $place {
            Place::Registered(at) => {
                let $file = types::Fixed(at);
                $entry
            }
            Place::Descriptor(fd) => {
                let $file = types::Fd(fd);
                $entry
            }
        }
    };
}

/// The entry for an operation; `None` for a transfer without a buffer.
pub(super) fn build(
    op: &Op<PoolBuf>,
    stage: Stage,
    place: Place,
    region: Option<u16>,
    block_device: bool,
) -> Option<squeue::Entry> {
    let Stage::Moving(moved) = stage else { return Some(sync(place)) };
    match op.kind {
        OpKind::Flush => Some(sync(place)),
        OpKind::Deallocate | OpKind::WriteZeroes => {
            let mode = range_mode(op.kind, block_device);
            Some(with_file!(place, file => {
                opcode::Fallocate::new(file, op.len).offset(op.offset).mode(mode).build()
            }))
        }
        OpKind::Read | OpKind::Write => transfer(op, moved, place, region),
    }
}

fn transfer(
    op: &Op<PoolBuf>,
    moved: u32,
    place: Place,
    region: Option<u16>,
) -> Option<squeue::Entry> {
    let offset = op.offset + u64::from(moved);
    let len = u32::try_from(op.len).ok()?.checked_sub(moved)?;
    let data = op.buf.as_ref()?.as_ptr().wrapping_add(usize::try_from(moved).ok()?);
    // Force Unit Access is a write that is durable before it completes.
    let flags = if op.fua { libc::RWF_DSYNC } else { 0 };
    let read = op.kind == OpKind::Read;
    Some(match region {
        Some(region) if read => with_file!(place, file => {
            opcode::ReadFixed::new(file, data.cast_mut(), len, region).offset(offset).build()
        }),
        None if read => with_file!(place, file => {
            opcode::Read::new(file, data.cast_mut(), len).offset(offset).build()
        }),
        Some(region) => with_file!(place, file => {
            opcode::WriteFixed::new(file, data, len, region).offset(offset).rw_flags(flags).build()
        }),
        None => with_file!(place, file => {
            opcode::Write::new(file, data, len).offset(offset).rw_flags(flags).build()
        }),
    })
}

fn sync(place: Place) -> squeue::Entry {
    with_file!(place, file => {
        opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
    })
}

/// Files: a hole reads as zeroes and every file system that has either has holes. Block devices: a
/// hole is zeroing that the device can do without writing, a zeroed range falls back to writing.
fn range_mode(kind: OpKind, block_device: bool) -> i32 {
    if block_device && kind == OpKind::WriteZeroes {
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
    } else {
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
    }
}

/// What an error number of the kernel says of a device (`block/blk-core.c` maps the block layer's
/// status codes to them).
pub(super) fn device_error(errno: i32) -> DeviceError {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DeviceError::NoSpace,
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => DeviceError::Unsupported,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ENOLINK => DeviceError::Gone,
        libc::ENODATA | libc::EILSEQ | libc::EUCLEAN => DeviceError::Media,
        libc::ETIMEDOUT => DeviceError::Timeout,
        other => DeviceError::Io(other),
    }
}
