//! What recovery hands to the engine.

use crate::fold::Folds;
use crate::format::geometry::{LogStream, Numbers, ShardMap};
use crate::format::superblock::{Superblock, SuperblockError};
use crate::index::Index;
use crate::ranges::RangeMap;
use core::fmt;
use forebay_io::{DeviceError, Lsn};
use std::collections::BTreeMap;

/// What a segment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentState {
    /// Free to be opened.
    #[default]
    Free,
    /// Sealed, with a durable footer. (After recovery no segment is open.)
    Sealed,
    /// It could not be read or sealed: not to be used, nor to be counted on.
    Bad,
}

/// A segment after recovery, by its number in the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentInfo {
    /// What it is.
    pub state: SegmentState,
    /// The log it belongs to, unless free.
    pub stream: Option<LogStream>,
    /// The number of its opening (0 if free and never used).
    pub seq: u64,
    /// The number of its seal: segments are freed in this order.
    pub seal: u64,
    /// Blocks that the index has here.
    pub live: u32,
    /// Those of them that are dirty.
    pub dirty: u32,
}

/// A volume after recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredVolume {
    /// Its index in the shard.
    pub volume: u16,
    /// All LSNs up to this one are accounted for; the next change gets the one after it.
    pub last: Lsn,
    /// Blocks that the index has.
    pub live: u64,
    /// Those of them that are dirty.
    pub dirty: u64,
    /// Records that were left out because an LSN before theirs was missing: never acknowledged.
    pub void: u64,
    /// The highest epoch in a record or promise.
    pub epoch: forebay_io::Epoch,
}

/// Blocks that read as zeroes and that the backing store does not hold as zeroes yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredRange {
    /// The volume's index.
    pub volume: u16,
    /// First block.
    pub block: u64,
    /// Blocks.
    pub blocks: u64,
    /// The LSN of the record.
    pub lsn: Lsn,
    /// Deallocated, rather than written with zeroes.
    pub discard: bool,
    /// The segment whose record holds it.
    pub segment: u32,
}

/// Data that is known to be lost: dirty blocks that a damaged part of the cache device held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The volume's index.
    pub volume: u16,
    /// First block.
    pub block: u64,
    /// Blocks.
    pub blocks: u32,
    /// The LSN of the record.
    pub lsn: Lsn,
}

/// Counts for the log and for `stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments looked at.
    pub segments: u32,
    /// Segments that had no footer and were gone through batch by batch.
    pub scanned: u32,
    /// Segments that were sealed by this recovery.
    pub sealed: u32,
    /// Segments that could not be read.
    pub bad: u32,
    /// Records applied.
    pub records: u64,
    /// Records left out for an LSN gap.
    pub void: u64,
    /// Records of another generation, or of no volume, that were left out.
    pub stale: u64,
    /// Batches proven durable once that are damaged now.
    pub damaged_batches: u64,
    /// Segments whose footer was damaged after it was relied on.
    pub damaged_footers: u32,
    /// Bytes of memory that recovery itself used at most, besides the index and the CRC table.
    pub temporary_bytes: u64,
}

/// What the engine loads while it serves ([`crate::recovery::Recovery::staged`]).
#[derive(Debug, Default)]
pub struct Deferred {
    /// Sealed segments of the fill log, in the order of their seals.
    pub segments: Vec<u32>,
    /// By volume index: below which LSN copies of which blocks are dead.
    pub killed: BTreeMap<u16, RangeMap>,
}

/// Everything the engine starts from.
pub struct Recovered {
    /// The superblock that is on the device now: its incarnation is the present one (unless the
    /// recovery was read-only).
    pub superblock: Superblock,
    /// Where the shard's segments are.
    pub map: ShardMap,
    /// The numbers of this incarnation.
    pub numbers: Numbers,
    /// The index, dirty flags set.
    pub index: Index,
    /// For each slot the fold ([`forebay_io::crc::fold16`]) of its block's
    /// [timeless CRC](crate::fold::timeless).
    pub folds: Folds,
    /// Each segment.
    pub segments: Vec<SegmentInfo>,
    /// Each volume of the superblock, by rising index.
    pub volumes: Vec<RecoveredVolume>,
    /// The zero ranges that are to be destaged, by volume and block, none overlapping another or
    /// a block in the index.
    pub ranges: Vec<RecoveredRange>,
    /// What is lost.
    pub lost: Vec<Lost>,
    /// What is still to be loaded; nothing unless the recovery was staged.
    pub deferred: Deferred,
    /// Counts.
    pub stats: Stats,
}

/// Why a shard cannot be recovered at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryError {
    /// The shard is not on this device.
    NoSuchShard(u16),
    /// The index could not be made; the shard has more slots than an index takes.
    Index(crate::index::IndexError),
    /// A write of the new footers or the superblock failed.
    Write(DeviceError),
    /// The superblock could not be encoded.
    Superblock(SuperblockError),
    /// The log holds numbers of a later incarnation than the superblock: an old superblock came back.
    Superseded {
        /// The incarnation of the superblock.
        superblock: u32,
        /// The incarnation found in the log.
        log: u64,
    },
    /// More segments without a footer than any crash leaves.
    TooManyOpen(u32),
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchShard(shard) => write!(f, "the cache device has no shard {shard}"),
            Self::Index(error) => write!(f, "no index for this shard: {error}"),
            Self::Write(error) => write!(
                f,
                "the cache device cannot be written: {error}; its data is intact, and recovery can be \
                 tried again"
            ),
            Self::Superblock(error) => error.fmt(f),
            Self::Superseded { superblock, log } => write!(
                f,
                "the superblock is of incarnation {superblock}, the log of {log}: part of the device is an \
                 older copy; do not use it, restore the whole device or give up its dirty data with \
                 `volume recover --lost-cache`"
            ),
            Self::TooManyOpen(count) => write!(
                f,
                "{count} segments have no footer, more than a crash leaves: the device is damaged or was \
                 written to by something else; see `forebay doctor`"
            ),
        }
    }
}

impl core::error::Error for RecoveryError {}
