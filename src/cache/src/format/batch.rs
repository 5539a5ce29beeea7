//! A batch: one header block, then the data blocks of its records, contiguous; several batches may
//! follow each other in one device write. [`BatchBuilder`] lays one out in the caller's buffer,
//! [`BatchView`] validates and reads one.

use super::bytes::{Reader, put_crc, put_u16, put_u32, put_u64, sound};
use super::geometry::LogStream;
use super::record::{CRC_BYTES, RECORD_BYTES, Record};
use super::segment_log::SegmentLog;
use super::{BLOCK, VERSION};
use core::ops::Range;
use forebay_io::Uuid;
use forebay_io::crc::{block_crc, crc32c};

/// First eight bytes of a batch header.
pub const BATCH_MAGIC: [u8; 8] = *b"FBYBATCH";
/// Bytes of a header before its records.
pub const BATCH_HEAD_BYTES: usize = 80;
/// Bytes for records in one header block.
pub const BATCH_RECORD_BYTES: usize = BLOCK - BATCH_HEAD_BYTES;

/// Where a segment is and what its life is called: what every header and footer in it repeats, so
/// that a block of another place or time is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// The cache device.
    pub cache: Uuid,
    /// The shard.
    pub shard: u16,
    /// The segment, numbered over the whole device.
    pub segment: u32,
    /// The number taken when it was opened.
    pub seq: u64,
    /// The log it belongs to.
    pub stream: LogStream,
}

/// Where the data of an appended record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The first block's slot inside the segment; 0 for a record without data.
    pub slot: u16,
    /// The index of the record in the [`SegmentLog`].
    pub entry: u32,
}

/// Why a record does not fit; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The header block: finish this batch and begin another behind it.
    Header,
    /// The caller's buffer: finish and submit it.
    Buffer,
    /// The segment's slots, or the room of its footer: finish, open the next segment.
    Segment,
    /// The record breaks a bound of the format, or the data are not `blocks` whole blocks.
    Invalid,
}

/// Lays out one batch. The buffer is passed to each call and belongs to the caller; the batch
/// occupies it from `start`, the header block first.
#[derive(Clone, Copy, Debug)]
pub struct BatchBuilder {
    name: SegmentName,
    /// Slot of the header inside the segment.
    slot: u16,
    /// Byte in the buffer where the header is.
    start: usize,
    /// Bytes of records so far.
    record_bytes: usize,
    records: u16,
    blocks: u16,
}

impl BatchBuilder {
    /// A batch whose header goes to `slot` of the segment and to byte `start` of the buffer.
    #[must_use]
    pub const fn new(name: SegmentName, slot: u16, start: usize) -> Self {
        Self { name, slot, start, record_bytes: 0, records: 0, blocks: 0 }
    }

    /// How many data blocks one more record may have here, for a buffer of `buffer_len` bytes:
    /// 0 where none fits. A longer host write is split, each part a record with an LSN of its own.
    #[must_use]
    pub fn room(&self, buffer_len: usize, log: &SegmentLog) -> u32 {
        let header =
            BATCH_RECORD_BYTES.saturating_sub(self.record_bytes + RECORD_BYTES) / CRC_BYTES;
        let buffer = buffer_len.saturating_sub(self.end()) / BLOCK;
        let segment = log.data_slots().saturating_sub(self.next_slot());
        let room = header.min(buffer).min(log.room_blocks());
        u32::try_from(room).unwrap_or(u32::MAX).min(segment)
    }

    /// Appends a record with data: copies the data behind what is there and computes each block's
    /// CRC32C with `volume_key` ([`super::superblock::VolumeEntry::key`]). The record's `slot` is
    /// filled in. `data` is `record.blocks` whole blocks.
    ///
    /// # Errors
    /// [`Full`]; nothing changed.
    pub fn append_data(
        &mut self,
        buffer: &mut [u8],
        log: &mut SegmentLog,
        record: &Record,
        volume_key: u64,
        data: &[u8],
    ) -> Result<Placed, Full> {
        self.append_with(buffer, log, record, volume_key, |out| {
            if out.len() == data.len() {
                out.copy_from_slice(data);
            }
            out.len() == data.len()
        })
    }

    /// The same for data that the caller puts together in place: `fill` gets exactly
    /// `record.blocks` blocks to write, and says whether it did.
    ///
    /// # Errors
    /// [`Full`]; nothing changed ([`Full::Invalid`] where `fill` said no).
    pub fn append_with(
        &mut self,
        buffer: &mut [u8],
        log: &mut SegmentLog,
        record: &Record,
        volume_key: u64,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> Result<Placed, Full> {
        let blocks = record.data_blocks();
        let slot = u16::try_from(self.next_slot()).map_err(|_| Full::Segment)?;
        let record = Record { slot, ..*record };
        if !record.kind.has_data() || !record.valid() {
            return Err(Full::Invalid);
        }
        self.check_fits(buffer.len(), log, &record)?;
        let at = self.end();
        let out = buffer.get_mut(at..at + blocks * BLOCK).ok_or(Full::Buffer)?;
        if !fill(out) {
            return Err(Full::Invalid);
        }
        let entry = log.push(&record);
        let mut crc_at = self.start + BATCH_HEAD_BYTES + self.record_bytes + RECORD_BYTES;
        for index in 0..blocks {
            let from = at + index * BLOCK;
            let block = record.block + index as u64;
            let crc = block_crc(volume_key, block, record.lsn.0, &buffer[from..from + BLOCK]);
            log.push_crc(crc);
            put_u32(buffer, crc_at, crc);
            crc_at += CRC_BYTES;
        }
        self.put_record(buffer, &record);
        // `check_fits` has compared the blocks with the segment, whose slots fit 16 bits.
        self.blocks += u16::try_from(blocks).unwrap_or(u16::MAX);
        Ok(Placed { slot, entry })
    }

    /// Appends a record without data.
    ///
    /// # Errors
    /// [`Full`]; nothing changed.
    pub fn append_mark(
        &mut self,
        buffer: &mut [u8],
        log: &mut SegmentLog,
        record: &Record,
    ) -> Result<Placed, Full> {
        if record.kind.has_data() || !record.valid() {
            return Err(Full::Invalid);
        }
        self.check_fits(buffer.len(), log, record)?;
        let entry = log.push(record);
        self.put_record(buffer, record);
        Ok(Placed { slot: 0, entry })
    }

    fn check_fits(&self, buffer_len: usize, log: &SegmentLog, record: &Record) -> Result<(), Full> {
        let blocks = record.data_blocks();
        if self.next_slot() + u32::try_from(blocks).unwrap_or(u32::MAX) > log.data_slots()
            || !log.fits(record)
        {
            return Err(Full::Segment);
        }
        if self.end() + blocks * BLOCK > buffer_len {
            return Err(Full::Buffer);
        }
        if self.record_bytes + record.encoded_len() > BATCH_RECORD_BYTES {
            return Err(Full::Header);
        }
        Ok(())
    }

    fn put_record(&mut self, buffer: &mut [u8], record: &Record) {
        let at = self.start + BATCH_HEAD_BYTES + self.record_bytes;
        if let Some(out) = buffer[at..].first_chunk_mut::<RECORD_BYTES>() {
            record.encode(out);
        }
        self.record_bytes += record.encoded_len();
        self.records += 1;
    }

    /// Whether no record was appended yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The byte of the buffer behind the batch: its length where `start` is 0.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.start + (1 + self.blocks as usize) * BLOCK
    }

    /// The slot of the header inside the segment.
    #[must_use]
    pub const fn slot(&self) -> u16 {
        self.slot
    }

    /// The slot behind the batch.
    #[must_use]
    pub const fn next_slot(&self) -> u32 {
        self.slot as u32 + 1 + self.blocks as u32
    }

    /// Writes the header. `number` is the batch's fresh number; `durable_below` is the number of
    /// the oldest batch of this stream that is not durable yet (`number` where there is none).
    pub fn finish(self, buffer: &mut [u8], log: &mut SegmentLog, number: u64, durable_below: u64) {
        let end = self.start + BLOCK;
        let Some(header) = buffer.get_mut(self.start..end) else { return };
        header[BATCH_HEAD_BYTES + self.record_bytes..].fill(0);
        header[..BATCH_HEAD_BYTES].fill(0);
        header[..8].copy_from_slice(&BATCH_MAGIC);
        put_u16(header, 12, VERSION);
        put_u16(header, 14, self.name.shard);
        header[16..32].copy_from_slice(&self.name.cache.0);
        put_u64(header, 32, self.name.seq);
        put_u64(header, 40, number);
        put_u64(header, 48, durable_below);
        put_u32(header, 56, self.name.segment);
        put_u16(header, 60, self.slot);
        put_u16(header, 62, self.blocks);
        put_u16(header, 64, self.records);
        header[66] = self.name.stream.code();
        put_u16(header, 68, u16::try_from(self.record_bytes).unwrap_or(0));
        put_crc(header);
        log.close_batch(number);
    }
}

/// Why bytes are not the batch that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// No header of this format, or a damaged one.
    NotAHeader,
    /// A header of another format version.
    Version(u16),
    /// A sound header of another cache device, shard, segment, slot or life of the segment.
    Elsewhere,
    /// The CRC is right but the content is not: a defect of the writer.
    Content,
}

/// A validated batch header.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// The segment it names.
    pub name: SegmentName,
    /// The slot it names as its own.
    pub slot: u16,
    /// The batch's number.
    pub number: u64,
    /// All batches of the stream with lower numbers were durable when this one was submitted.
    pub durable_below: u64,
    /// Data blocks that follow the header.
    pub blocks: u16,
    /// Records.
    pub records: u16,
    body: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Parses a header block, whatever segment it names.
    ///
    /// # Errors
    /// [`BatchError`], never `Elsewhere`.
    pub fn parse(block: &'a [u8]) -> Result<Self, BatchError> {
        if block.len() != BLOCK || !sound(block, &BATCH_MAGIC) {
            return Err(BatchError::NotAHeader);
        }
        let version = u16::from_le_bytes([block[12], block[13]]);
        if version != VERSION {
            return Err(BatchError::Version(version));
        }
        Self::parse_fields(block).ok_or(BatchError::Content)
    }

    fn parse_fields(block: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(block.get(14..)?);
        let shard = reader.u16()?;
        let cache = Uuid(reader.array()?);
        let seq = reader.u64()?;
        let number = reader.u64()?;
        let durable_below = reader.u64()?;
        let segment = reader.u32()?;
        let slot = reader.u16()?;
        let blocks = reader.u16()?;
        let records = reader.u16()?;
        let stream = LogStream::from_code(reader.u8()?)?;
        reader.u8()?;
        let record_bytes = usize::from(reader.u16()?);
        let body = block.get(BATCH_HEAD_BYTES..BATCH_HEAD_BYTES + record_bytes)?;
        let name = SegmentName { cache, shard, segment, seq, stream };
        let view = Self { name, slot, number, durable_below, blocks, records, body };
        view.records_are_sound().then_some(view)
    }

    /// Whether the records are well formed, fill the body exactly, and their data follow each
    /// other without a gap.
    fn records_are_sound(&self) -> bool {
        let (mut count, mut bytes) = (0u32, 0usize);
        let mut next = u32::from(self.slot) + 1;
        for (record, _) in self.records() {
            count += 1;
            bytes += record.encoded_len();
            if record.kind.has_data() {
                if u32::from(record.slot) != next {
                    return false;
                }
                next += record.blocks;
            }
        }
        count == u32::from(self.records)
            && bytes == self.body.len()
            && next == u32::from(self.slot) + 1 + u32::from(self.blocks)
            && self.durable_below <= self.number
    }

    /// Whether it is the header that belongs to this place and life.
    #[must_use]
    pub fn belongs(&self, name: &SegmentName, slot: u16) -> bool {
        self.name == *name && self.slot == slot
    }

    /// The records with their CRCs, in the order of placement.
    pub fn records(&self) -> impl Iterator<Item = (Record, Crcs<'a>)> + use<'a> {
        RecordIter { reader: Reader::new(self.body) }
    }

    /// The bytes of the whole batch.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        (1 + self.blocks as usize) * BLOCK
    }
}

/// The CRCs of a record's blocks.
#[derive(Clone, Copy, Debug)]
pub struct Crcs<'a>(&'a [u8]);

impl<'a> Crcs<'a> {
    /// One for each block.
    pub fn iter(self) -> impl Iterator<Item = u32> + use<'a> {
        self.0
            .chunks_exact(CRC_BYTES)
            .map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]))
    }
}

/// Goes through encoded records; ends at the first byte that is no record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordIter<'a> {
    pub(super) reader: Reader<'a>,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = (Record, Crcs<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let record = Record::parse(&mut self.reader)?;
        let crcs = self.reader.take(record.data_blocks() * CRC_BYTES)?;
        Some((record, Crcs(crcs)))
    }
}

/// The CRC32C of eight zero bytes.
const CRC_ZEROES: u32 = 0x8c28_b28a;

/// What makes of a [`block_crc`] the one with the LSN taken as 0, by exclusive or. In memory
/// ([`crate::fold::Folds`]) CRCs are kept so, because a hit does not know the LSN. A CRC is linear,
/// so that the difference depends on the LSN alone.
#[must_use]
pub fn timeless_mask(lsn: u64) -> u32 {
    // What stands before the LSN in the seed is the same in both and falls out.
    (crc32c(&lsn.to_le_bytes()) ^ CRC_ZEROES).rotate_left(1)
}

/// Checks the data of a record against its CRCs: from the first block that does not match to behind
/// the last. `data` begins with the record's first block. A block whose CRC was made with the
/// complement of the key is whole: it is known to be lost, was appended again at reclaim, and matches
/// at no hit.
#[must_use]
pub fn bad_blocks(
    record: &Record,
    crcs: Crcs<'_>,
    volume_key: u64,
    data: &[u8],
) -> Option<Range<u32>> {
    let mut bad: Option<Range<u32>> = None;
    for (index, crc) in (0u32..).zip(crcs.iter()) {
        let from = index as usize * BLOCK;
        let block = record.block + u64::from(index);
        let good = data.get(from..from + BLOCK).is_some_and(|data| {
            block_crc(volume_key, block, record.lsn.0, data) == crc
                || block_crc(!volume_key, block, record.lsn.0, data) == crc
        });
        if !good {
            bad = Some(bad.map_or(index, |range| range.start)..index + 1);
        }
    }
    bad
}
