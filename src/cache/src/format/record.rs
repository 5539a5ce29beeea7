//! Records: what a batch header and a footer are lists of.

use super::bytes::{Reader, put_u16, put_u32, put_u64};
use forebay_io::{Epoch, Lsn};

/// What a record says of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Data of a host, which the backing store does not hold yet (unless [`Record::clean`]).
    Write,
    /// Data read from the backing store.
    Fill,
    /// The blocks read as zeroes.
    Zeroes,
    /// The blocks were deallocated by the host; they read as zeroes.
    Discard,
    /// Everything older of these blocks is dead; the backing store holds the truth (write-around).
    Invalidate,
    /// Every version of these blocks up to the LSN is on the backing store.
    Trim,
    /// All LSNs of the volume up to this one are durable and committed; no blocks.
    Commit,
    /// The epoch that this journal has promised (replication); no blocks.
    Promise,
}

impl Kind {
    /// As on the medium.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Fill => 2,
            Self::Zeroes => 3,
            Self::Discard => 4,
            Self::Invalidate => 5,
            Self::Trim => 6,
            Self::Commit => 7,
            Self::Promise => 8,
        }
    }

    /// From the medium; `None` for a code that this version does not know.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Write,
            2 => Self::Fill,
            3 => Self::Zeroes,
            4 => Self::Discard,
            5 => Self::Invalidate,
            6 => Self::Trim,
            7 => Self::Commit,
            8 => Self::Promise,
            _ => return None,
        })
    }

    /// Whether blocks of data follow (one slot and one CRC for each block).
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Write | Self::Fill)
    }

    /// Whether it is a change by a host and therefore has an LSN that no other record has
    /// (copies that were moved keep theirs).
    #[must_use]
    pub const fn takes_lsn(self) -> bool {
        matches!(self, Self::Write | Self::Zeroes | Self::Discard | Self::Invalidate)
    }

    /// Whether older versions of its blocks are dead once it is placed.
    #[must_use]
    pub const fn kills(self) -> bool {
        matches!(self, Self::Zeroes | Self::Discard | Self::Invalidate)
    }
}

/// One record without its CRCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// Appended again at the reclaim of its segment, LSN and epoch kept.
    pub moved: bool,
    /// The backing store holds this already (copies that were moved, footers).
    pub clean: bool,
    /// The volume's index in the superblock's volume table (12 bits).
    pub volume: u16,
    /// The volume's cache generation; a record of another generation than the table's is dead.
    pub generation: u32,
    /// First cache block (36 bits).
    pub block: u64,
    /// How many blocks; with data at most a segment's.
    pub blocks: u32,
    /// The log sequence number: the change's own, or as [`Kind`] says.
    pub lsn: Lsn,
    /// The epoch of ownership.
    pub epoch: Epoch,
    /// With data: the slot of the first block inside the segment; else 0.
    pub slot: u16,
}

/// Bytes of an encoded record before its CRCs.
pub const RECORD_BYTES: usize = 40;
/// Bytes of each block's CRC32C.
pub const CRC_BYTES: usize = 4;
/// One above the greatest cache block number.
pub const MAX_BLOCK: u64 = 1 << 36;
/// One above the greatest log sequence number.
pub const MAX_LSN: u64 = 1 << 63;
/// One above the greatest volume index.
pub const MAX_VOLUME: u16 = 1 << 12;

const FLAG_MOVED: u8 = 1;
const FLAG_CLEAN: u8 = 2;

impl Record {
    /// Bytes in a header or footer, CRCs included.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_BYTES + self.data_blocks() * CRC_BYTES
    }

    /// Blocks of data that follow: 0 for kinds without data.
    #[must_use]
    pub fn data_blocks(&self) -> usize {
        if self.kind.has_data() { usize::try_from(self.blocks).unwrap_or(usize::MAX) } else { 0 }
    }

    /// Whether it is data that the backing store did not hold when this was written.
    #[must_use]
    pub const fn dirty(&self) -> bool {
        matches!(self.kind, Kind::Write) && !self.clean
    }

    /// Whether the fields are within their bounds; the parser refuses a record that is not, the
    /// builder does not take it.
    #[must_use]
    pub fn valid(&self) -> bool {
        let end = self.block.checked_add(u64::from(self.blocks));
        let ranged = !matches!(self.kind, Kind::Commit | Kind::Promise);
        self.volume < MAX_VOLUME
            && self.lsn.0 < MAX_LSN
            && end.is_some_and(|end| end <= MAX_BLOCK)
            && ranged == (self.blocks > 0)
            && (ranged || self.block == 0)
            && (self.kind.has_data() || self.slot == 0)
            && (!self.kind.has_data() || self.blocks <= u32::from(u16::MAX))
    }

    pub(super) fn encode(&self, out: &mut [u8; RECORD_BYTES]) {
        let flags =
            if self.moved { FLAG_MOVED } else { 0 } | if self.clean { FLAG_CLEAN } else { 0 };
        out[0] = self.kind.code();
        out[1] = flags;
        put_u16(out, 2, self.volume);
        put_u32(out, 4, self.generation);
        put_u64(out, 8, self.block);
        put_u64(out, 16, self.lsn.0);
        put_u64(out, 24, self.epoch.0);
        put_u32(out, 32, self.blocks);
        put_u16(out, 36, self.slot);
        put_u16(out, 38, 0);
    }

    /// Parses a record at the reader's place; `None` for anything that is not one.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Option<Self> {
        let kind = Kind::from_code(reader.u8()?)?;
        let flags = reader.u8()?;
        let volume = reader.u16()?;
        let generation = reader.u32()?;
        let block = reader.u64()?;
        let lsn = Lsn(reader.u64()?);
        let epoch = Epoch(reader.u64()?);
        let blocks = reader.u32()?;
        let slot = reader.u16()?;
        let reserved = reader.u16()?;
        let record = Self {
            kind,
            moved: flags & FLAG_MOVED != 0,
            clean: flags & FLAG_CLEAN != 0,
            volume,
            generation,
            block,
            blocks,
            lsn,
            epoch,
            slot,
        };
        (flags & !(FLAG_MOVED | FLAG_CLEAN) == 0 && reserved == 0 && record.valid())
            .then_some(record)
    }
}
