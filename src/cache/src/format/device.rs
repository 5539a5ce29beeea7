//! The device header, and what a device without one holds instead.

use super::bytes::{Reader, put_crc, put_u16, put_u32, put_u64, sound};
use super::geometry::Geometry;
use super::superblock::SUPER_BYTES;
use super::{BLOCK, BLOCK_U64, VERSION};
use core::fmt;
use forebay_io::Uuid;

/// First eight bytes of a cache device.
pub const DEVICE_MAGIC: [u8; 8] = *b"FOREBAY\0";
/// Bytes to read from the start of a device to know what it is.
pub const PROBE_BYTES: usize = 128 * 1024;
/// Where the second copy of the header is.
pub const HEADER_COPY_OFFSET: u64 = 64 * 1024;
/// Where the superblocks begin.
pub const SUPERS_OFFSET: u64 = 128 * 1024;
/// Most logical shards of a device.
pub const MAX_SHARDS: u16 = 256;

/// What is written once, by `forebay format`, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceHeader {
    /// The cache device.
    pub cache: Uuid,
    /// The device's size in bytes when it was formatted.
    pub size: u64,
    /// Logical shards.
    pub shards: u16,
    /// The parts of every segment.
    pub geometry: Geometry,
    /// Segments on the device.
    pub segments: u32,
    /// Segments of the extents that are granted to shards.
    pub extent_segments: u32,
}

impl DeviceHeader {
    /// Where a copy (0 or 1) of a shard's superblock is.
    #[must_use]
    pub fn superblock_offset(&self, shard: u16, copy: u64) -> u64 {
        SUPERS_OFFSET + (u64::from(shard) * 2 + copy) * SUPER_BYTES as u64
    }

    /// Where the device's segment 0 is: behind the superblocks, at a multiple of the segment size.
    #[must_use]
    pub fn segments_offset(&self) -> u64 {
        segments_offset(self.shards, self.geometry)
    }

    /// Fills a block.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        out.fill(0);
        out[..8].copy_from_slice(&DEVICE_MAGIC);
        put_u16(out, 12, VERSION);
        put_u16(out, 14, self.shards);
        out[16..32].copy_from_slice(&self.cache.0);
        put_u64(out, 32, self.size);
        put_u32(out, 40, self.geometry.segment_slots());
        put_u32(out, 44, self.geometry.footer_slots());
        put_u32(out, 48, self.segments);
        put_u32(out, 52, self.extent_segments);
        put_crc(out);
    }

    fn parse(block: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(block.get(14..)?);
        let shards = reader.u16()?;
        let cache = Uuid(reader.array()?);
        let size = reader.u64()?;
        let geometry = Geometry::with_footer(reader.u32()?, reader.u32()?)?;
        let segments = reader.u32()?;
        let extent_segments = reader.u32()?;
        let header = Self { cache, size, shards, geometry, segments, extent_segments };
        let end = header
            .segments_offset()
            .checked_add(u64::from(segments).checked_mul(geometry.segment_bytes())?)?;
        let sane = (1..=MAX_SHARDS).contains(&shards)
            && !cache.is_nil()
            && end <= size
            && (1..=segments).contains(&extent_segments);
        sane.then_some(header)
    }
}

/// Where segment 0 is on a device with this many shards.
#[must_use]
pub fn segments_offset(shards: u16, geometry: Geometry) -> u64 {
    (SUPERS_OFFSET + u64::from(shards) * 2 * SUPER_BYTES as u64)
        .next_multiple_of(geometry.segment_bytes().max(BLOCK_U64))
}

/// Why a device cannot be opened as a cache device. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// All of the start of the device is zero.
    Blank,
    /// The device holds something else; its usual name is given.
    Foreign(&'static str),
    /// The device holds data, but nothing that is known.
    Unknown,
    /// A cache device of another format version.
    Version {
        /// Its version.
        found: u16,
    },
    /// The device is smaller than when it was formatted.
    CutShort {
        /// Bytes then.
        recorded: u64,
        /// Bytes now.
        now: u64,
    },
    /// A cache device, but not the one that was asked for.
    WrongCache {
        /// The one asked for.
        wanted: Uuid,
        /// The one that is there.
        found: Uuid,
    },
    /// A cache device whose header is damaged in both copies.
    HeaderDamaged,
    /// No sound superblock of a shard.
    SuperblockDamaged {
        /// The shard.
        shard: u16,
    },
    /// A superblock that contradicts the header or another superblock.
    Inconsistent {
        /// The shard.
        shard: u16,
        /// What contradicts what.
        what: &'static str,
    },
    /// The device does not answer.
    Device(forebay_io::DeviceError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("the device is blank: `forebay format DEVICE` makes it a cache device"),
            Self::Foreign(what) => write!(
                f,
                "the device holds {what}, not a Forebay cache: check that it is the right one; \
                 `forebay format DEVICE --force NAME` destroys what is there"
            ),
            Self::Unknown => f.write_str(
                "the device holds data that is not a Forebay cache: check that it is the right one; \
                 `forebay format DEVICE --force NAME` destroys what is there",
            ),
            Self::Version { found } if *found > VERSION => write!(
                f,
                "the cache has format version {found}, this Forebay knows {VERSION}: start the newer \
                 Forebay that wrote it, or drain there and format again"
            ),
            Self::Version { found } => write!(
                f,
                "the cache has format version {found}, this Forebay knows {VERSION}: drain it with the \
                 Forebay that wrote it, then format again"
            ),
            Self::CutShort { recorded, now } => write!(
                f,
                "the device has {now} bytes, but {recorded} when it was formatted: give it back its size \
                 (dirty data may be behind the cut); after `volume recover --lost-cache` it can be formatted"
            ),
            Self::WrongCache { wanted, found } => write!(
                f,
                "this is cache {found}, the configuration names {wanted}: attach the right device, or \
                 change the configuration"
            ),
            Self::HeaderDamaged => f.write_str(
                "this was a Forebay cache, but both copies of its header are damaged: restore the first \
                 128 KiB from a copy, or give up its dirty data with `volume recover --lost-cache` and format it",
            ),
            Self::SuperblockDamaged { shard } => write!(
                f,
                "both superblocks of shard {shard} are damaged: its volumes' dirty data cannot be read; \
                 `volume recover --lost-cache` gives it up, then format the device"
            ),
            Self::Inconsistent { shard, what } => {
                write!(f, "the superblock of shard {shard} is not consistent: {what}; see `forebay doctor`")
            }
            Self::Device(error) => write!(f, "the device cannot be read: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// Says what the first [`PROBE_BYTES`] of a device of `size` bytes are, and the header if it is
/// ours. `wanted` is the cache that the configuration names, if it names one.
///
/// # Errors
/// [`OpenError`] up to and including `HeaderDamaged`.
pub fn probe(start: &[u8], size: u64, wanted: Option<Uuid>) -> Result<DeviceHeader, OpenError> {
    let copy_at = usize::try_from(HEADER_COPY_OFFSET).unwrap_or(usize::MAX);
    let copies = [start.get(..BLOCK), start.get(copy_at..copy_at + BLOCK)];
    let header = copies.into_iter().flatten().find(|block| sound(block, &DEVICE_MAGIC));
    let Some(block) = header else {
        let ours = copies.into_iter().flatten().any(|block| block.starts_with(&DEVICE_MAGIC));
        return Err(if ours { OpenError::HeaderDamaged } else { what_else(start) });
    };
    let found = u16::from_le_bytes([block[12], block[13]]);
    if found != VERSION {
        return Err(OpenError::Version { found });
    }
    let header = DeviceHeader::parse(block).ok_or(OpenError::HeaderDamaged)?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != header.cache) {
        return Err(OpenError::WrongCache { wanted, found: header.cache });
    }
    if size < header.size {
        return Err(OpenError::CutShort { recorded: header.size, now: size });
    }
    Ok(header)
}

fn what_else(start: &[u8]) -> OpenError {
    if start.iter().all(|byte| *byte == 0) {
        return OpenError::Blank;
    }
    foreign(start).map_or(OpenError::Unknown, OpenError::Foreign)
}

/// What else a device is known to hold, by the signatures that `wipefs` and `blkid` go by: the
/// more specific first, partition tables last. `None` for nothing known.
#[must_use]
pub fn foreign(start: &[u8]) -> Option<&'static str> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
        (0, b"XFSB", "an XFS file system"),
        (0, b"SPDKBLOB", "an SPDK blobstore"),
        (0, b"bluestore block device", "a Ceph BlueStore device"),
        (0, b"hsqs", "a SquashFS file system"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"BitLocker", "a BitLocker volume"),
        (3, b"-FVE-FS-", "a BitLocker volume"),
        (3, b"NTFS    ", "an NTFS file system"),
        (3, b"EXFAT   ", "an exFAT file system"),
        (24, b"\x01LABELONE", "an LVM physical volume"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0, b"LABELONE", "an LVM physical volume"),
        (1024, b"LABELONE", "an LVM physical volume"),
        (1536, b"LABELONE", "an LVM physical volume"),
        (54, b"FAT", "a FAT file system"),
        (82, b"FAT32", "a FAT file system"),
        (1024 + 56, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
        (
            4096 + 24,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
            "a bcache or bcachefs device",
        ),
        (
            4096 + 24,
            b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
            "a bcachefs device",
        ),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (md) array"),
        (0, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (md) array"),
        (4086, b"SWAPSPACE2", "swap space"),
        (4086, b"SWAP-SPACE", "swap space"),
        (65_526, b"SWAPSPACE2", "swap space"),
        (65_536 + 64, b"_BHRfS_M", "a Btrfs file system"),
        (32_769, b"CD001", "an ISO 9660 image"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (510, b"\x55\xaa", "an MBR partition table or boot sector"),
    ];
    SIGNATURES
        .iter()
        .find(|(at, magic, _)| start.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)))
        .map(|(_, _, name)| *name)
}
