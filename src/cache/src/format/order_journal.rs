//! The journal of `write-back-ordered`: one batch of one volume on a device of its own, so that the
//! backing device can be completed after the loss of the cache.
//!
//! Two headers alternate by their generation; behind them are the table, one entry for each block of
//! the batch, and the blocks themselves. A batch's data and table are durable before a header says
//! [`State::Complete`], and the backing device has all of it before one says [`State::Nothing`].

use super::bytes::{Reader, put_crc, put_u16, put_u32, put_u64, sound};
use super::record::{MAX_BLOCK, MAX_LSN};
use super::superblock::{MAX_GENERATION, MAX_IDENTITY};
use super::{BLOCK, BLOCK_U64};
use core::fmt;
use forebay_io::crc::block_crc;
use forebay_io::{DeviceError, Lsn, Uuid};

/// First eight bytes of a header.
pub const JOURNAL_MAGIC: [u8; 8] = *b"FBORDJNL";
/// First eight bytes of a block of the table.
pub const TABLE_MAGIC: [u8; 8] = *b"FBORDTAB";
/// The version of this format.
pub const JOURNAL_VERSION: u16 = 1;
/// Headers, each of one block.
pub const HEADERS: u64 = 2;
/// Entries of one block of the table.
pub const TABLE_ENTRIES: usize = (BLOCK - TABLE_FROM) / ENTRY_BYTES;
/// Ranges of zeroes that a table always has room for.
pub const ZERO_RANGES: u64 = 4096;
/// Blocks of data that a journal holds at least and at most: 1 MiB and 1 TiB.
pub const DATA_MIN: u64 = 256;
/// See [`DATA_MIN`].
pub const DATA_MAX: u64 = 1 << 28;

const TABLE_FROM: usize = 32;
const ENTRY_BYTES: usize = 16;
const IDENTITY_AT: usize = 128;

/// Where the parts of a journal are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the table.
    pub table: u64,
    /// Blocks of data.
    pub data: u64,
}

impl Layout {
    /// The layout on a device of this many bytes; `None` where it is too small.
    #[must_use]
    pub fn of(size: u64) -> Option<Self> {
        let per = TABLE_ENTRIES as u64;
        let room = (size / BLOCK_U64).checked_sub(HEADERS)?.min(2 * DATA_MAX);
        // The table takes (2 × data + ZERO_RANGES) / per blocks, rounded up.
        let data = (room * per).checked_sub(ZERO_RANGES + per)? / (per + 2);
        let data = data.min(DATA_MAX);
        (data >= DATA_MIN).then(|| Self { table: Self::table_for(data), data })
    }

    const fn table_for(data: u64) -> u64 {
        (2 * data + ZERO_RANGES).div_ceil(TABLE_ENTRIES as u64)
    }

    fn sane(&self) -> bool {
        (DATA_MIN..=DATA_MAX).contains(&self.data) && self.table == Self::table_for(self.data)
    }

    /// Entries that the table has room for.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        2 * self.data + ZERO_RANGES
    }

    /// Bytes from the start of the device to the end of the last block.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (HEADERS + self.table + self.data) * BLOCK_U64
    }

    /// Where a block of the table is.
    #[must_use]
    pub const fn table_offset(&self, index: u64) -> u64 {
        (HEADERS + index) * BLOCK_U64
    }

    /// Where a block of data is.
    #[must_use]
    pub const fn data_offset(&self, slot: u64) -> u64 {
        (HEADERS + self.table + slot) * BLOCK_U64
    }
}

/// What a journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing that the backing device lacks.
    Nothing,
    /// A complete batch, which the backing device may hold in part.
    Complete,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: Uuid,
    /// Rises with each header; below [`MAX_GENERATION`].
    pub generation: u64,
    /// What the journal holds.
    pub state: State,
    /// The layout when the journal was made.
    pub layout: Layout,
    /// The generation that the table and the data of the last batch carry.
    pub batch: u64,
    /// The last number of that batch; below [`MAX_LSN`].
    pub end: Lsn,
    /// Entries of its table.
    pub entries: u64,
    /// Bytes of the backing device.
    pub backing_size: u64,
    /// The identity of the backing device, as
    /// [`VolumeEntry::identity_text`](super::superblock::VolumeEntry::identity_text) gives it.
    pub backing_identity: String,
}

impl Header {
    /// Where the header of this generation is.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.generation % HEADERS * BLOCK_U64
    }

    fn sane(&self) -> bool {
        !self.volume.is_nil()
            && (1..MAX_GENERATION).contains(&self.generation)
            && self.batch < MAX_GENERATION
            && self.end.0 < MAX_LSN
            && self.layout.sane()
            && self.entries <= self.layout.entries()
            && self.backing_size > 0
            && self.backing_identity.len() <= MAX_IDENTITY
    }

    /// Fills a block. `false`, and the block is zero, where a value is out of its bounds.
    #[must_use]
    pub fn encode(&self, out: &mut [u8; BLOCK]) -> bool {
        out.fill(0);
        let Ok(len) = u16::try_from(self.backing_identity.len()) else { return false };
        if !self.sane() {
            return false;
        }
        out[..8].copy_from_slice(&JOURNAL_MAGIC);
        put_u16(out, 12, JOURNAL_VERSION);
        put_u16(out, 14, u16::from(self.state == State::Complete));
        out[16..32].copy_from_slice(&self.volume.0);
        put_u64(out, 32, self.generation);
        put_u64(out, 40, self.layout.table);
        put_u64(out, 48, self.layout.data);
        put_u64(out, 56, self.batch);
        put_u64(out, 64, self.end.0);
        put_u64(out, 72, self.entries);
        put_u64(out, 80, self.backing_size);
        put_u16(out, IDENTITY_AT, len);
        let text = IDENTITY_AT + 2;
        out[text..text + self.backing_identity.len()]
            .copy_from_slice(self.backing_identity.as_bytes());
        put_crc(out);
        true
    }

    fn parse(block: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(block.get(14..)?);
        let state = match reader.u16()? {
            0 => State::Nothing,
            1 => State::Complete,
            _ => return None,
        };
        let volume = Uuid(reader.array()?);
        let generation = reader.u64()?;
        let layout = Layout { table: reader.u64()?, data: reader.u64()? };
        let (batch, end, entries) = (reader.u64()?, Lsn(reader.u64()?), reader.u64()?);
        let backing_size = reader.u64()?;
        let mut reader = Reader::new(block.get(IDENTITY_AT..)?);
        let len = usize::from(reader.u16()?);
        let backing_identity = core::str::from_utf8(reader.take(len)?).ok()?.to_owned();
        let header = Self {
            volume,
            generation,
            state,
            layout,
            batch,
            end,
            entries,
            backing_size,
            backing_identity,
        };
        header.sane().then_some(header)
    }
}

/// Why a device cannot serve as a volume's journal. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// It is too small.
    TooSmall {
        /// Bytes of the device.
        found: u64,
        /// Bytes that are needed at least.
        wanted: u64,
    },
    /// It holds something that is no journal; what, where that is known.
    Foreign(Option<&'static str>),
    /// The volume has a journal already, or is served and this one holds a batch from before.
    InUse,
    /// A journal of another format version.
    Version(u16),
    /// Both headers are damaged.
    Damaged,
    /// It is smaller than when it was made.
    CutShort {
        /// Bytes then.
        recorded: u64,
        /// Bytes now.
        found: u64,
    },
    /// It is the journal of another volume.
    OtherVolume(Uuid),
    /// It belongs to another backing device.
    OtherBacking {
        /// The identity that it has.
        recorded: String,
        /// The identity of the device that was given.
        found: String,
    },
    /// The backing device had another size.
    OtherSize {
        /// Bytes then.
        recorded: u64,
        /// Bytes now.
        found: u64,
    },
    /// It holds a complete batch, of which something cannot be read back: the backing device may
    /// hold a part of the batch, and cannot be completed.
    BatchDamaged,
    /// The device fails.
    Device(DeviceError),
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { found, wanted } => {
                write!(f, "an ordered journal needs at least {wanted} bytes, the device has {found}")
            }
            Self::Foreign(what) => write!(
                f,
                "the device given as ordered journal holds {}: give an empty one, or overwrite its first \
                 128 KiB with zeroes if nobody needs what it holds",
                what.unwrap_or("other data")
            ),
            Self::InUse => f.write_str(
                "the volume has an ordered journal, or the device holds a batch from an earlier time",
            ),
            Self::Version(found) => write!(
                f,
                "the ordered journal has format version {found}, this program writes {JOURNAL_VERSION}"
            ),
            Self::Damaged => f.write_str(
                "both headers of the ordered journal are damaged: whether the backing device is a prefix \
                 cannot be told; give an empty journal device to go on",
            ),
            Self::CutShort { recorded, found } => write!(
                f,
                "the ordered journal was made on {recorded} bytes, the device has {found}: give it back \
                 its size"
            ),
            Self::OtherVolume(uuid) => {
                write!(f, "the ordered journal belongs to volume {uuid}: give each volume its own")
            }
            Self::OtherBacking { recorded, found } => write!(
                f,
                "the ordered journal belongs to the backing device \"{recorded}\", this one is \"{found}\""
            ),
            Self::OtherSize { recorded, found } => write!(
                f,
                "the ordered journal was made for a backing device of {recorded} bytes, this one has {found}"
            ),
            Self::BatchDamaged => f.write_str(
                "the ordered journal holds a batch that cannot be read back: the backing device may hold a \
                 part of it and cannot be completed",
            ),
            Self::Device(error) => write!(f, "the ordered journal cannot be read: {error}"),
        }
    }
}

impl core::error::Error for JournalError {}

/// Bytes that a journal needs at least.
#[must_use]
pub fn least_bytes() -> u64 {
    let mut blocks = HEADERS + Layout::table_for(DATA_MIN) + DATA_MIN;
    while Layout::of(blocks * BLOCK_U64).is_none() {
        blocks += 1;
    }
    blocks * BLOCK_U64
}

/// The newest sound header in the first two blocks of a device; `None` where they are blank.
///
/// # Errors
/// [`JournalError`] where they are something else.
pub fn newest(blocks: &[u8]) -> Result<Option<Header>, JournalError> {
    let (a, b) = (blocks.get(..BLOCK), blocks.get(BLOCK..2 * BLOCK));
    let (Some(a), Some(b)) = (a, b) else { return Err(JournalError::Damaged) };
    let mut best: Option<Header> = None;
    let mut other = None;
    let mut ours = false;
    for (at, block) in [(0, a), (1, b)] {
        ours |= block.starts_with(&JOURNAL_MAGIC);
        if !sound(block, &JOURNAL_MAGIC) {
            continue;
        }
        let version = u16::from_le_bytes([block[12], block[13]]);
        if version != JOURNAL_VERSION {
            other = Some(version);
            continue;
        }
        let header = Header::parse(block).filter(|header| header.generation % HEADERS == at);
        if let Some(header) = header
            && best.as_ref().is_none_or(|best| best.generation < header.generation)
        {
            best = Some(header);
        }
    }
    match (best, other) {
        (_, Some(version)) => Err(JournalError::Version(version)),
        (Some(header), None) => Ok(Some(header)),
        (None, None) if ours => Err(JournalError::Damaged),
        (None, None) if blocks[..2 * BLOCK].iter().all(|byte| *byte == 0) => Ok(None),
        (None, None) => Err(JournalError::Foreign(None)),
    }
}

/// What a batch does to the backing device at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The next block of the data, with its CRC ([`data_crc`]).
    Data {
        /// The cache block of the volume.
        block: u64,
        /// Its CRC.
        crc: u32,
    },
    /// These blocks read as zeroes.
    Zeroes {
        /// First cache block of the volume.
        block: u64,
        /// How many; not 0.
        blocks: u32,
    },
}

/// The CRC of a block of data.
#[must_use]
pub fn data_crc(volume: Uuid, batch: u64, block: u64, data: &[u8]) -> u32 {
    block_crc(super::superblock::volume_key(volume), block, batch, data)
}

/// Fills a block of the table with up to [`TABLE_ENTRIES`] entries.
pub fn encode_table(batch: u64, index: u32, entries: &[Entry], out: &mut [u8; BLOCK]) {
    out.fill(0);
    let entries = &entries[..entries.len().min(TABLE_ENTRIES)];
    out[..8].copy_from_slice(&TABLE_MAGIC);
    put_u32(out, 12, index);
    put_u64(out, 16, batch);
    put_u32(out, 24, u32::try_from(entries.len()).unwrap_or(0));
    for (entry, at) in entries.iter().zip((TABLE_FROM..).step_by(ENTRY_BYTES)) {
        let (block, blocks, crc) = match *entry {
            Entry::Data { block, crc } => (block, 0, crc),
            Entry::Zeroes { block, blocks } => (block, blocks, 0),
        };
        put_u64(out, at, block);
        put_u32(out, at + 8, blocks);
        put_u32(out, at + 12, crc);
    }
    put_crc(out);
}

/// Appends the entries of a block of the table; `None` where it is not this block of this batch.
#[must_use]
pub fn parse_table(block: &[u8], batch: u64, index: u32, out: &mut Vec<Entry>) -> Option<()> {
    if block.len() != BLOCK || !sound(block, &TABLE_MAGIC) {
        return None;
    }
    let mut reader = Reader::new(block.get(12..)?);
    if reader.u32()? != index || reader.u64()? != batch {
        return None;
    }
    let count = usize::try_from(reader.u32()?).ok().filter(|count| *count <= TABLE_ENTRIES)?;
    let mut reader = Reader::new(block.get(TABLE_FROM..)?);
    for _ in 0..count {
        let (first, blocks, crc) = (reader.u64()?, reader.u32()?, reader.u32()?);
        if first.checked_add(u64::from(blocks.max(1))).is_none_or(|end| end > MAX_BLOCK) {
            return None;
        }
        out.push(match blocks {
            0 => Entry::Data { block: first, crc },
            blocks => Entry::Zeroes { block: first, blocks },
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::test_support::fix_crc;
    use proptest::prelude::*;

    fn header(generation: u64) -> Header {
        Header {
            volume: Uuid::from_random([7; 16]),
            generation,
            state: State::Complete,
            layout: Layout::of(8 << 20).unwrap(),
            batch: generation - 1,
            end: Lsn(77),
            entries: 9,
            backing_size: 1 << 30,
            backing_identity: "a device".to_owned(),
        }
    }

    fn block(header: &Header) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        assert!(header.encode(&mut out));
        out
    }

    fn pair(headers: &[Header]) -> Vec<u8> {
        let mut both = vec![0; 2 * BLOCK];
        for header in headers {
            let at = usize::try_from(header.offset()).unwrap();
            both[at..at + BLOCK].copy_from_slice(&block(header));
        }
        both
    }

    #[test]
    fn a_layout_fills_its_device_and_not_more() {
        let least = least_bytes();
        assert!(least < 2 << 20, "{least}");
        assert_eq!(Layout::of(least).unwrap().data, DATA_MIN);
        assert_eq!(Layout::of(least - BLOCK_U64), None);
        assert_eq!(Layout::of(0), None);
        for size in [least, 8 << 20, (8 << 20) + 5, 1 << 30, 1 << 45, u64::MAX] {
            let layout = Layout::of(size).unwrap();
            assert!(layout.bytes() <= size);
            assert!(layout.table * TABLE_ENTRIES as u64 >= layout.entries());
            assert!(
                size > 1 << 40 || layout.bytes() + (4 * BLOCK_U64) >= size,
                "{size} {layout:?}"
            );
            assert!(layout.sane(), "{size}");
        }
    }

    #[test]
    fn the_newest_header_counts_and_a_torn_one_leaves_the_one_before() {
        let both = pair(&[header(5), header(6)]);
        assert_eq!(newest(&both), Ok(Some(header(6))));
        for at in (0..BLOCK).step_by(512) {
            let mut torn = both.clone();
            torn[at..at + 4].fill(0xee);
            assert_eq!(newest(&torn).unwrap().unwrap().generation, 5, "sector {at}");
        }
        let mut gone = both.clone();
        gone[20] ^= 1;
        gone[BLOCK + 20] ^= 1;
        assert_eq!(newest(&gone), Err(JournalError::Damaged));
        assert_eq!(newest(&vec![0; 2 * BLOCK]), Ok(None));
        let mut foreign = vec![0; 2 * BLOCK];
        foreign[3000] = 1;
        assert_eq!(newest(&foreign), Err(JournalError::Foreign(None)));
        assert_eq!(newest(&both[..100]), Err(JournalError::Damaged));
        let mut newer = both.clone();
        newer[12] = 9;
        fix_crc(&mut newer[..BLOCK]);
        assert_eq!(newest(&newer), Err(JournalError::Version(9)));
        // A header in the place of the other generation was misdirected.
        let mut wrong = pair(&[header(5)]);
        wrong[..BLOCK].copy_from_slice(&block(&header(7)));
        assert_eq!(newest(&wrong), Ok(Some(header(5))));
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused_both_ways() {
        let mut out = [0; BLOCK];
        let layout = Layout::of(8 << 20).unwrap();
        for bad in [
            Header { generation: 0, ..header(4) },
            Header { generation: MAX_GENERATION, ..header(4) },
            Header { batch: MAX_GENERATION, ..header(4) },
            Header { end: Lsn(MAX_LSN), ..header(4) },
            Header { entries: layout.entries() + 1, ..header(4) },
            Header { layout: Layout { table: 1, ..layout }, ..header(4) },
            Header { layout: Layout { data: u64::MAX, table: u64::MAX }, ..header(4) },
            Header { volume: Uuid([0; 16]), ..header(4) },
            Header { backing_size: 0, ..header(4) },
            Header { backing_identity: "x".repeat(MAX_IDENTITY + 1), ..header(4) },
        ] {
            assert!(!bad.encode(&mut out), "{bad:?}");
        }
        let mut bytes = block(&header(4));
        put_u64(&mut bytes, 64, MAX_LSN);
        fix_crc(&mut bytes);
        assert_eq!(Header::parse(&bytes), None);
        let mut bytes = block(&header(4));
        put_u64(&mut bytes, 48, u64::MAX);
        fix_crc(&mut bytes);
        assert_eq!(Header::parse(&bytes), None);
    }

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            (0..MAX_BLOCK - 1, any::<u32>()).prop_map(|(block, crc)| Entry::Data { block, crc }),
            (0..MAX_BLOCK / 2, 1..1u32 << 20)
                .prop_map(|(block, blocks)| Entry::Zeroes { block, blocks }),
        ]
    }

    proptest! {
        #[test]
        fn headers_come_back(
            generation in 1..MAX_GENERATION, batch in 0..MAX_GENERATION, end in 0..MAX_LSN,
            size in (2u64 << 20)..1 << 42, complete: bool, backing_size in 1u64.., id in ".{0,40}",
        ) {
            let layout = Layout::of(size).unwrap();
            let wanted = Header {
                volume: Uuid::from_random([3; 16]), generation, batch, end: Lsn(end), layout,
                state: if complete { State::Complete } else { State::Nothing },
                entries: layout.entries() / 2, backing_size, backing_identity: id,
            };
            prop_assert_eq!(newest(&pair(std::slice::from_ref(&wanted))), Ok(Some(wanted)));
        }

        #[test]
        fn tables_come_back_and_others_are_not_taken_for_them(
            entries in proptest::collection::vec(entry(), 0..=TABLE_ENTRIES),
            batch in 0..MAX_GENERATION - 1, index in 0u32..1000, flip in 0..BLOCK, bit in 0u8..8,
        ) {
            let mut out = [0; BLOCK];
            encode_table(batch, index, &entries, &mut out);
            let mut got = Vec::new();
            prop_assert_eq!(parse_table(&out, batch, index, &mut got), Some(()));
            prop_assert_eq!(&got, &entries);
            prop_assert_eq!(parse_table(&out, batch + 1, index, &mut got), None);
            prop_assert_eq!(parse_table(&out, batch, index + 1, &mut got), None);
            out[flip] ^= 1 << bit;
            prop_assert_eq!(parse_table(&out, batch, index, &mut got), None);
        }

        #[test]
        fn no_bytes_make_a_parser_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 2 * BLOCK), magic in 0u8..4,
        ) {
            if magic > 0 {
                bytes[..8].copy_from_slice(if magic == 1 { &JOURNAL_MAGIC } else { &TABLE_MAGIC });
                if magic < 3 {
                    bytes[12..14].copy_from_slice(&JOURNAL_VERSION.to_le_bytes());
                    bytes[14] = 1;
                    bytes[15] = 0;
                }
                fix_crc(&mut bytes[..BLOCK]);
            }
            let _ = newest(&bytes);
            let batch = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
            let index = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
            let _ = parse_table(&bytes[..BLOCK], batch, index, &mut Vec::new());
        }
    }
}
