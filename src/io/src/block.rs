//! What a host asks of a volume, and what comes back: the words that the NVMe-oF target and the
//! cache share, so that the shard between them only routes.

use crate::units::{Lba, VolumeId};
use core::fmt;

/// Names one outstanding host command; chosen by the target, opaque to everyone else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// What a host asks. Ranges are in logical blocks of the namespace and lie inside it: the target
/// has checked them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOp {
    /// Read `blocks` logical blocks.
    Read,
    /// Write the payload.
    Write,
    /// Compare the payload with what is stored.
    Compare,
    /// Compare the first payload; if equal write the second, atomically (a fused pair).
    CompareAndWrite,
    /// The range reads as zeroes afterwards; `deallocate` permits to free it as well.
    WriteZeroes {
        /// The DEAC bit.
        deallocate: bool,
    },
    /// The range is no longer needed (one range of a Dataset Management command).
    Deallocate,
    /// Make all completed writes durable.
    Flush,
}

/// One host command for one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the [`Outcome`].
    pub tag: Tag,
    /// The volume.
    pub volume: VolumeId,
    /// What to do.
    pub op: RequestOp,
    /// First logical block.
    pub lba: Lba,
    /// Number of logical blocks; 0 only for Flush.
    pub blocks: u32,
    /// Force Unit Access.
    pub fua: bool,
}

/// The data that came with a command.
#[derive(Debug)]
pub enum Payload<'a, B> {
    /// None.
    None,
    /// Bytes in the receive buffer, valid only during the call: copy what must live on.
    Inline(&'a [u8]),
    /// An owned buffer.
    Owned(B),
    /// Compare data and write data of a fused pair.
    Pair(B, B),
}

/// A run of bytes inside a shared buffer: read data is a list of these, sent without a copy.
#[derive(Clone, Debug)]
pub struct Piece<B> {
    /// The buffer.
    pub buf: B,
    /// First byte in it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well. Read data travels beside it as [`Piece`]s.
    Done,
    /// Not well.
    Failed(BlockError),
}

/// Why a volume could not do what was asked; mapped to an NVMe status in exactly one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// Data cannot be returned: unrecovered read error.
    Unrecovered,
    /// The write could not be carried out.
    WriteFault,
    /// Compare found a difference.
    CompareFailed,
    /// The volume cannot serve now; the host should try again later.
    NotReady,
    /// No room: the cache is full of dirty data and the backing store does not take any.
    CapacityExceeded,
    /// The command was aborted on request or because its association ended.
    Aborted,
    /// The volume is not here (any more).
    NoSuchVolume,
    /// An internal limit or fault.
    Internal,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unrecovered => "unrecovered read error",
            Self::WriteFault => "write fault",
            Self::CompareFailed => "compare failure",
            Self::NotReady => "volume not ready",
            Self::CapacityExceeded => "no capacity for more dirty data",
            Self::Aborted => "aborted",
            Self::NoSuchVolume => "no such volume",
            Self::Internal => "internal error",
        })
    }
}

impl core::error::Error for BlockError {}
