//! What `forebay format` (and the quickstart) writes: a list of steps, computed without I/O.

use super::device::{DeviceHeader, HEADER_COPY_OFFSET, MAX_SHARDS, PROBE_BYTES, segments_offset};
use super::geometry::{Extent, Geometry};
use super::superblock::{Superblock, SuperblockError};
use super::{BLOCK, BLOCK_U64};
use core::fmt;
use forebay_io::{DeviceInfo, Uuid};

/// Fewest segments of a shard: three open, two reserved for marks and compaction, and some to use.
pub const MIN_SEGMENTS: u32 = 8;
/// Fewest segments for each shard where the number of shards is not stated.
const COMFORTABLE_SEGMENTS: u64 = 64;
/// Bytes of an extent where the device is large enough.
const EXTENT_TARGET: u64 = 64 << 20;
/// The smallest device that gets segments of 1024 slots by default.
const LARGE: u64 = 1 << 30;

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// The new cache's identity: random.
    pub cache: Uuid,
    /// Logical shards; `None` for up to 16 as the size allows. One shard owns all the device at
    /// once; more get extents when they need them.
    pub shards: Option<u16>,
    /// Slots of a segment; `None` for 1024, or 256 on a device below 1 GiB.
    pub segment_slots: Option<u32>,
}

impl FormatOptions {
    /// The defaults for a cache with this identity.
    #[must_use]
    pub const fn new(cache: Uuid) -> Self {
        Self { cache, shards: None, segment_slots: None }
    }
}

/// One step; each completes before the next begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write these bytes (whole blocks).
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Flush the device.
    Flush,
}

/// What to write, and the header that results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The header.
    pub header: DeviceHeader,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// Why a device cannot be formatted so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The device is too small.
    TooSmall {
        /// Bytes needed with these options.
        needed: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A shard could not address its part.
    TooLarge {
        /// Fewest shards for this device.
        shards: u64,
    },
    /// Not a power of two in the range.
    SegmentSlots(u32),
    /// Not in 1 to [`MAX_SHARDS`].
    Shards(u16),
    /// The device's logical blocks are larger than 4096 bytes.
    BlockSize(u32),
    /// The cache's identity is nil.
    NilCache,
    /// The superblock refused.
    Superblock(SuperblockError),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { needed, size } => write!(
                f,
                "the device has {size} bytes; a cache with these options needs at least {needed} \
                 ({} MiB)",
                needed.div_ceil(1 << 20)
            ),
            Self::TooLarge { shards } => {
                write!(f, "one shard addresses 4 TiB: this device needs at least {shards} shards")
            }
            Self::SegmentSlots(slots) => write!(
                f,
                "a segment cannot have {slots} slots of 4096 bytes: take a power of two from 16 to 16384"
            ),
            Self::Shards(shards) => {
                write!(f, "{shards} shards are not possible: take 1 to {MAX_SHARDS}")
            }
            Self::BlockSize(size) => write!(
                f,
                "the device has logical blocks of {size} bytes; a cache device needs 4096 or less"
            ),
            Self::NilCache => f.write_str("the cache's identity must not be nil"),
            Self::Superblock(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PlanError {}

/// Plans the format of a device. What the device holds is not looked at:
/// [`super::device::probe`] says whether it should be.
///
/// # Errors
/// [`PlanError`]; the text says what would do.
pub fn plan(info: &DeviceInfo, options: &FormatOptions) -> Result<Plan, PlanError> {
    let header = layout(info, options)?;
    let mut steps = Vec::new();
    // Whatever was here is not found again, even if this is interrupted.
    steps.push(Step::Write { offset: 0, bytes: vec![0; PROBE_BYTES] });
    steps.push(Step::Flush);
    for shard in 0..header.shards {
        let extents = if header.shards == 1 {
            vec![Extent { first: 0, count: header.segments }]
        } else {
            Vec::new()
        };
        let superblock = Superblock {
            cache: header.cache,
            shard,
            generation: 1,
            incarnation: 1,
            clean_stop: true,
            next_volume_generation: 1,
            extents,
            volumes: Vec::new(),
        };
        let mut bytes = vec![0; superblock.encoded_len()];
        superblock.encode(&mut bytes).map_err(PlanError::Superblock)?;
        let copy = superblock.copy();
        steps.push(Step::Write { offset: header.superblock_offset(shard, copy), bytes });
        let other = header.superblock_offset(shard, 1 - copy);
        steps.push(Step::Write { offset: other, bytes: vec![0; BLOCK] });
    }
    steps.push(Step::Flush);
    let mut block = [0; BLOCK];
    header.encode(&mut block);
    for offset in [HEADER_COPY_OFFSET, 0] {
        steps.push(Step::Write { offset, bytes: block.to_vec() });
        steps.push(Step::Flush);
    }
    Ok(Plan { header, steps })
}

fn layout(info: &DeviceInfo, options: &FormatOptions) -> Result<DeviceHeader, PlanError> {
    if u64::from(info.block_size) > BLOCK_U64 {
        return Err(PlanError::BlockSize(info.block_size));
    }
    if options.cache.is_nil() {
        return Err(PlanError::NilCache);
    }
    let slots = options.segment_slots.unwrap_or(if info.size < LARGE { 256 } else { 1024 });
    let geometry = Geometry::new(slots).ok_or(PlanError::SegmentSlots(slots))?;
    let fits = |shards: u16| {
        info.size.saturating_sub(segments_offset(shards, geometry)) / geometry.segment_bytes()
    };
    let shards = match options.shards {
        Some(shards) if (1..=MAX_SHARDS).contains(&shards) => shards,
        Some(shards) => return Err(PlanError::Shards(shards)),
        None => [16, 8, 4, 2]
            .into_iter()
            .find(|shards| fits(*shards) >= u64::from(*shards) * COMFORTABLE_SEGMENTS)
            .unwrap_or(1),
    };
    let segments = fits(shards);
    let needed = u64::from(shards) * u64::from(MIN_SEGMENTS);
    if segments < needed {
        let needed = segments_offset(shards, geometry) + needed * geometry.segment_bytes();
        return Err(PlanError::TooSmall { needed, size: info.size });
    }
    let most = crate::index::MAX_SLOTS / u64::from(slots);
    if segments > most * u64::from(shards) {
        return Err(PlanError::TooLarge { shards: segments.div_ceil(most) });
    }
    let share = segments / u64::from(shards);
    let extent =
        (EXTENT_TARGET / geometry.segment_bytes()).min(share / 4).max(u64::from(MIN_SEGMENTS));
    let narrow = |value: u64| u32::try_from(value).map_err(|_| PlanError::TooLarge { shards: 256 });
    Ok(DeviceHeader {
        cache: options.cache,
        size: info.size,
        shards,
        geometry,
        segments: narrow(segments)?,
        extent_segments: narrow(extent)?,
    })
}
