//! The superblock of one logical shard: its extents, its incarnation and its volume table, in two
//! copies that are written in turn.

use super::bytes::{Reader, put_crc, put_u16, put_u32, put_u64, sound};
use super::geometry::{Extent, MAX_INCARNATION};
use super::record::{MAX_LSN, MAX_VOLUME};
use super::{BLOCK, VERSION};
use core::fmt;
use forebay_io::{Epoch, Lsn, Uuid};

/// First eight bytes of a superblock.
pub const SUPER_MAGIC: [u8; 8] = *b"FBYSUPER";
/// Bytes reserved for one copy.
pub const SUPER_BYTES: usize = 256 * 1024;
/// Bytes before the extents.
pub const SUPER_HEAD_BYTES: usize = 128;
/// Bytes of an extent.
pub const EXTENT_BYTES: usize = 8;
/// Bytes of a volume's entry.
pub const VOLUME_BYTES: usize = 512;
/// Most volumes of a shard.
pub const MAX_VOLUMES: usize = 384;
/// Most extents of a shard.
pub const MAX_EXTENTS: usize = 4096;
/// One above the greatest generation of a superblock.
pub const MAX_GENERATION: u64 = 1 << 63;
/// Longest volume name in bytes of UTF-8.
pub const MAX_NAME: usize = 96;
/// Longest identity of a backing device in bytes of UTF-8.
pub const MAX_IDENTITY: usize = 192;

/// A volume as its shard knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// The index that records use (below [`MAX_VOLUME`]).
    pub index: u16,
    /// The cache generation: records of another one are dead. Taken from
    /// [`Superblock::take_generation`] when the volume is added and raised when its cache must be
    /// forgotten (entering pass-through, detach, change of size, ownership elsewhere).
    pub generation: u32,
    /// The volume.
    pub uuid: Uuid,
    /// Its journal here.
    pub journal: Uuid,
    /// The epoch of ownership when this was written.
    pub epoch: Epoch,
    /// The highest epoch promised (replication).
    pub promised: Epoch,
    /// All LSNs up to this one are accounted for without their records: durable, destaged,
    /// superseded, or not of this journal. Recovery goes on from here.
    pub accounted: Lsn,
    /// The last LSN when the present incarnation began: records of earlier incarnations
    /// above it are void for ever.
    pub base: Lsn,
    /// The volume's size in bytes.
    pub size: u64,
    /// The size of its logical block: 512 or 4096.
    pub block_size: u32,
    /// No dirty record exists: the backing store alone is right.
    pub clean: bool,
    /// The cache mode, in the engine's own code.
    pub mode: u8,
    /// The size of the backing device in bytes.
    pub backing_size: u64,
    /// The identity of the backing device (`DeviceInfo::identity`, cut to [`MAX_IDENTITY`] by
    /// [`VolumeEntry::identity_text`]).
    pub backing_identity: String,
    /// The volume's name, for people.
    pub name: String,
}

impl VolumeEntry {
    /// The key that seeds the CRC of every block of the volume
    /// ([`forebay_io::crc::block_crc`]): the two halves of the journal's UUID, added.
    #[must_use]
    pub fn key(&self) -> u64 {
        volume_key(self.journal)
    }

    /// An identity text as the superblock holds it: cut to [`MAX_IDENTITY`] bytes, with the CRC32C of
    /// the whole at its end where it was longer. Compare identities in this form.
    #[must_use]
    pub fn identity_text(identity: &str) -> String {
        if identity.len() <= MAX_IDENTITY {
            return identity.to_owned();
        }
        let mut end = MAX_IDENTITY - 9;
        while !identity.is_char_boundary(end) {
            end -= 1;
        }
        let crc = forebay_io::crc::crc32c(identity.as_bytes());
        format!("{}#{crc:08x}", &identity[..end])
    }

    fn encode(&self, out: &mut [u8]) {
        put_u16(out, 0, self.index);
        out[2] = u8::from(self.clean);
        out[3] = self.mode;
        put_u32(out, 4, self.generation);
        out[8..24].copy_from_slice(&self.uuid.0);
        out[24..40].copy_from_slice(&self.journal.0);
        put_u64(out, 40, self.epoch.0);
        put_u64(out, 48, self.promised.0);
        put_u64(out, 56, self.accounted.0);
        put_u64(out, 64, self.base.0);
        put_u64(out, 72, self.size);
        put_u64(out, 80, self.backing_size);
        put_u32(out, 88, self.block_size);
        put_text(&mut out[96..96 + 2 + MAX_NAME], &self.name);
        put_text(&mut out[200..200 + 2 + MAX_IDENTITY], &self.backing_identity);
    }

    fn parse(bytes: &[u8; VOLUME_BYTES]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let index = reader.u16()?;
        let clean = reader.u8()?;
        let mode = reader.u8()?;
        let generation = reader.u32()?;
        let uuid = Uuid(reader.array()?);
        let journal = Uuid(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let promised = Epoch(reader.u64()?);
        let accounted = Lsn(reader.u64()?);
        let base = Lsn(reader.u64()?);
        let size = reader.u64()?;
        let backing_size = reader.u64()?;
        let block_size = reader.u32()?;
        let name = text(bytes.get(96..96 + 2 + MAX_NAME)?)?;
        let backing_identity = text(bytes.get(200..200 + 2 + MAX_IDENTITY)?)?;
        let entry = Self {
            index,
            generation,
            uuid,
            journal,
            epoch,
            promised,
            accounted,
            base,
            size,
            block_size,
            clean: clean == 1,
            mode,
            backing_size,
            backing_identity,
            name,
        };
        (clean <= 1 && entry.valid()).then_some(entry)
    }

    fn valid(&self) -> bool {
        self.index < MAX_VOLUME
            && matches!(self.block_size, 512 | 4096)
            && self.name.len() <= MAX_NAME
            && self.backing_identity.len() <= MAX_IDENTITY
            && !self.uuid.is_nil()
            && !self.journal.is_nil()
            && self.accounted.0 < MAX_LSN
            && self.base.0 < MAX_LSN
    }
}

/// The key of the volume with this journal: see [`VolumeEntry::key`].
#[must_use]
pub fn volume_key(journal: Uuid) -> u64 {
    let value = u128::from_le_bytes(journal.0);
    let low = u64::try_from(value & u128::from(u64::MAX)).unwrap_or(0);
    let high = u64::try_from(value >> 64).unwrap_or(0);
    low.wrapping_add(high)
}

fn put_text(out: &mut [u8], text: &str) {
    put_u16(out, 0, u16::try_from(text.len()).unwrap_or(0));
    if let Some(out) = out.get_mut(2..2 + text.len()) {
        out.copy_from_slice(text.as_bytes());
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader::new(bytes);
    let len = reader.u16()?;
    let text = reader.take(usize::from(len))?;
    core::str::from_utf8(text).ok().map(str::to_owned)
}

/// One shard's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cache device.
    pub cache: Uuid,
    /// The shard.
    pub shard: u16,
    /// How often this superblock was written: the sound copy with the higher one counts.
    pub generation: u64,
    /// The incarnation: rises at every start before anything else is written.
    pub incarnation: u32,
    /// Everything was sealed and accounted for, and nothing written since.
    pub clean_stop: bool,
    /// The volume generation that is given out next.
    pub next_volume_generation: u32,
    /// The shard's extents in the order of their grant; only ever added to.
    pub extents: Vec<Extent>,
    /// The volumes, by rising index.
    pub volumes: Vec<VolumeEntry>,
}

/// Why a superblock cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// More than [`MAX_VOLUMES`] volumes.
    Volumes,
    /// More than [`MAX_EXTENTS`] extents.
    Extents,
    /// The incarnations are used up: the cache must be drained and formatted again.
    Incarnation,
    /// The generations are used up, which no honest number of writes does.
    Generation,
    /// A volume's entry breaks a bound (the index is given), or is not in order.
    Volume(u16),
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volumes => write!(f, "a shard takes at most {MAX_VOLUMES} volumes"),
            Self::Extents => write!(f, "a shard takes at most {MAX_EXTENTS} extents"),
            Self::Incarnation => f.write_str(
                "this cache has been started as often as its format allows: drain it and run `forebay format`",
            ),
            Self::Generation => f.write_str(
                "the superblock's generation is the last that its format has: the cache device was written to \
                 by something else; drain it and run `forebay format`",
            ),
            Self::Volume(index) => write!(
                f,
                "the entry of volume {index} is not valid: name at most {MAX_NAME} bytes, backing \
                 identity at most {MAX_IDENTITY}, block size 512 or 4096, log sequence numbers below 2^63, \
                 each index once"
            ),
        }
    }
}

impl core::error::Error for SuperblockError {}

impl Superblock {
    /// A fresh generation for a volume that is added or whose cache is forgotten.
    pub const fn take_generation(&mut self) -> u32 {
        let generation = self.next_volume_generation;
        self.next_volume_generation = generation.saturating_add(1);
        generation
    }

    /// The entry of a volume index.
    #[must_use]
    pub fn volume(&self, index: u16) -> Option<&VolumeEntry> {
        let at = self.volumes.binary_search_by_key(&index, |entry| entry.index).ok()?;
        self.volumes.get(at)
    }

    /// The entry of a volume index, to change it.
    pub fn volume_mut(&mut self, index: u16) -> Option<&mut VolumeEntry> {
        let at = self.volumes.binary_search_by_key(&index, |entry| entry.index).ok()?;
        self.volumes.get_mut(at)
    }

    /// The lowest index that no volume has.
    #[must_use]
    pub fn free_index(&self) -> Option<u16> {
        (0..MAX_VOLUME).find(|index| self.volume(*index).is_none())
    }

    /// Which copy (0 or 1) this generation is written to.
    #[must_use]
    pub const fn copy(&self) -> u64 {
        self.generation % 2
    }

    /// Bytes that [`Superblock::encode`] writes: whole blocks.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        (SUPER_HEAD_BYTES + self.extents.len() * EXTENT_BYTES + self.volumes.len() * VOLUME_BYTES)
            .next_multiple_of(BLOCK)
    }

    /// Writes it into the first [`Superblock::encoded_len`] bytes of `out`; returns that length.
    /// The caller raises `generation` first and writes the bytes at
    /// [`super::device::DeviceHeader::superblock_offset`] of [`Superblock::copy`].
    ///
    /// # Errors
    /// [`SuperblockError`].
    ///
    /// # Panics
    /// Where `out` is shorter than that.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, SuperblockError> {
        self.check()?;
        let len = self.encoded_len();
        let out = &mut out[..len];
        out.fill(0);
        out[..8].copy_from_slice(&SUPER_MAGIC);
        put_u16(out, 12, VERSION);
        put_u16(out, 14, self.shard);
        out[16..32].copy_from_slice(&self.cache.0);
        put_u64(out, 32, self.generation);
        put_u32(out, 40, self.incarnation);
        put_u32(out, 44, u32::from(self.clean_stop));
        put_u32(out, 48, self.next_volume_generation);
        put_u32(out, 52, u32::try_from(self.extents.len()).unwrap_or(0));
        put_u32(out, 56, u32::try_from(self.volumes.len()).unwrap_or(0));
        put_u32(out, 60, u32::try_from(len).unwrap_or(0));
        let mut at = SUPER_HEAD_BYTES;
        for extent in &self.extents {
            put_u32(out, at, extent.first);
            put_u32(out, at + 4, extent.count);
            at += EXTENT_BYTES;
        }
        for volume in &self.volumes {
            volume.encode(&mut out[at..at + VOLUME_BYTES]);
            at += VOLUME_BYTES;
        }
        // The CRC of a superblock stands in its head and covers all its blocks.
        put_crc(out);
        Ok(len)
    }

    /// Whether a start can still write its two copies in the next incarnation.
    ///
    /// # Errors
    /// [`SuperblockError::Incarnation`], [`SuperblockError::Generation`].
    pub(crate) const fn check_start(&self) -> Result<(), SuperblockError> {
        if self.incarnation >= MAX_INCARNATION - 1 {
            return Err(SuperblockError::Incarnation);
        }
        if self.generation >= MAX_GENERATION - 2 {
            return Err(SuperblockError::Generation);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), SuperblockError> {
        if self.volumes.len() > MAX_VOLUMES {
            return Err(SuperblockError::Volumes);
        }
        if self.extents.len() > MAX_EXTENTS {
            return Err(SuperblockError::Extents);
        }
        if self.incarnation >= MAX_INCARNATION {
            return Err(SuperblockError::Incarnation);
        }
        if self.generation >= MAX_GENERATION {
            return Err(SuperblockError::Generation);
        }
        let mut least = 0;
        for volume in &self.volumes {
            if !volume.valid() || volume.index < least {
                return Err(SuperblockError::Volume(volume.index));
            }
            least = volume.index + 1;
        }
        Ok(())
    }

    /// Parses a copy (its place's [`SUPER_BYTES`], or as many as were read); `None` for anything
    /// that is not a sound superblock of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let len = u32::from_le_bytes(*bytes.get(60..)?.first_chunk()?);
        let len = usize::try_from(len).ok()?;
        if len < BLOCK || len % BLOCK != 0 || len > SUPER_BYTES {
            return None;
        }
        let bytes = bytes.get(..len)?;
        if !sound(bytes, &SUPER_MAGIC) {
            return None;
        }
        let mut reader = Reader::new(bytes.get(12..)?);
        if reader.u16()? != VERSION {
            return None;
        }
        let shard = reader.u16()?;
        let cache = Uuid(reader.array()?);
        let generation = reader.u64()?;
        let incarnation = reader.u32()?;
        let clean_stop = reader.u32()?;
        let next_volume_generation = reader.u32()?;
        let extent_count = usize::try_from(reader.u32()?).ok()?;
        let volume_count = usize::try_from(reader.u32()?).ok()?;
        if extent_count > MAX_EXTENTS || volume_count > MAX_VOLUMES || clean_stop > 1 {
            return None;
        }
        let mut reader = Reader::new(bytes.get(SUPER_HEAD_BYTES..)?);
        let mut extents = Vec::with_capacity(extent_count);
        for _ in 0..extent_count {
            extents.push(Extent { first: reader.u32()?, count: reader.u32()? });
        }
        let mut volumes = Vec::with_capacity(volume_count);
        for _ in 0..volume_count {
            volumes.push(VolumeEntry::parse(&reader.array()?)?);
        }
        let superblock = Self {
            cache,
            shard,
            generation,
            incarnation,
            clean_stop: clean_stop == 1,
            next_volume_generation,
            extents,
            volumes,
        };
        (superblock.check().is_ok() && superblock.encoded_len() == len).then_some(superblock)
    }

    /// The newer of two copies, each parsed if it was sound.
    #[must_use]
    pub fn newer(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.generation > a.generation { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}
