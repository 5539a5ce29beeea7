//! What closes a segment: the footer (its records as they were when it was sealed) and, in a slot
//! of its own, the free mark.

use super::batch::{Crcs, RecordIter, SegmentName};
use super::bytes::{Reader, put_crc, put_u16, put_u32, put_u64, sound};
use super::geometry::LogStream;
use super::record::{CRC_BYTES, Kind, RECORD_BYTES, Record};
use super::segment_log::SegmentLog;
use super::{BLOCK, VERSION};
use forebay_io::crc::crc32c;
use forebay_io::{Lsn, Uuid};

/// First eight bytes of a footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"FBYFOOT\0";
/// First eight bytes of a free mark.
pub const MARK_MAGIC: [u8; 8] = *b"FBYFREE\0";
/// Bytes of a footer before its groups.
pub const FOOTER_HEAD_BYTES: usize = 128;
/// Bytes of a group's head: batch number, bytes of records.
pub const GROUP_BYTES: usize = 16;

/// Flag of a footer that recovery made.
const RECOVERED: u8 = 1;

/// What becomes of a block in the footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Left out: it is not the current version.
    Dead,
    /// Current, and on the backing store.
    Clean,
    /// Current, and not on the backing store.
    Dirty,
}

/// What a footer says of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterHead {
    /// The segment and its life.
    pub name: SegmentName,
    /// The number taken when the footer was built: segments are freed in this order.
    pub seal: u64,
    /// The number of its first batch with records, as in the headers (before anything was left
    /// out); 0 if there was none. With `last_batch` it tells recovery when to take it up.
    pub first_batch: u64,
    /// The number of its last batch.
    pub last_batch: u64,
    /// Bytes of the footer in use, this head included.
    pub bytes: u32,
    /// Blocks of data that were current at the seal.
    pub live: u32,
    /// Those of them that were dirty.
    pub dirty: u32,
    /// Recovery made it: behind `last_batch` lies what a crash tore or left out.
    pub recovered: bool,
    /// CRC32C of the bytes behind the head.
    body_crc: u32,
}

/// A footer that was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterBuilt {
    /// Bytes to write from the footer's first slot on, whole blocks.
    pub bytes: usize,
    /// Blocks of data noted as current.
    pub live: u32,
    /// Those of them that are dirty.
    pub dirty: u32,
}

/// Builds a footer of what the log holds into `out`, a buffer of
/// [`super::geometry::Geometry::footer_bytes`].
///
/// `block_fate` says what becomes of one block of data: it gets the record and the index of the
/// block in it. Records without data are all kept. Where all of the last change of a volume is left
/// out, a commit with its LSN takes its place: each record of a sealed segment is durable and
/// committed, and recovery must not take its LSN for missing. `None` where `out` is too short, which a log
/// that kept its bounds never asks for.
pub fn build_footer(
    out: &mut [u8],
    log: &SegmentLog,
    name: &SegmentName,
    seal: u64,
    mut block_fate: impl FnMut(&Record, u32) -> Keep,
) -> Option<FooterBuilt> {
    let mut writer = Writer { out, at: FOOTER_HEAD_BYTES, live: 0, dirty: 0, lasts: Vec::new() };
    let groups = log.groups().count();
    let (mut first, mut last) = (0, 0);
    for (at, (number, entries)) in log.groups().enumerate() {
        first = if first == 0 { number } else { first };
        last = number;
        let head = writer.at;
        writer.at += GROUP_BYTES;
        for entry in entries {
            let (record, crcs) = log.get(entry)?;
            if record.kind.has_data() {
                writer.put_data(record, crcs, &mut block_fate)?;
            } else {
                writer.put(record, &[])?;
                writer.note(record, true);
            }
        }
        if at + 1 == groups {
            writer.put_lasts()?;
        }
        let bytes = writer.at - head - GROUP_BYTES;
        if bytes == 0 {
            writer.at = head;
            continue;
        }
        let group = writer.out.get_mut(head..head + GROUP_BYTES)?;
        put_u64(group, 0, number);
        put_u32(group, 8, u32::try_from(bytes).ok()?);
        put_u32(group, 12, 0);
    }
    let built = FooterBuilt {
        bytes: writer.at.next_multiple_of(BLOCK),
        live: writer.live,
        dirty: writer.dirty,
    };
    let used = writer.at;
    let head = FooterHead {
        name: *name,
        seal,
        first_batch: first,
        last_batch: last,
        bytes: u32::try_from(used).ok()?,
        live: built.live,
        dirty: built.dirty,
        recovered: false,
        body_crc: crc32c(out.get(FOOTER_HEAD_BYTES..used)?),
    };
    out.get_mut(used..built.bytes)?.fill(0);
    head.encode(out.get_mut(..FOOTER_HEAD_BYTES)?);
    Some(built)
}

/// Notes in a footer that was built that recovery made it.
pub fn set_recovered(footer: &mut [u8]) {
    if let Some(head) = footer.get_mut(..FOOTER_HEAD_BYTES) {
        head[85] |= RECOVERED;
        put_crc(head);
    }
}

/// The last change of a volume, and the last one of which something was kept.
struct Last {
    record: Record,
    kept: Lsn,
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    live: u32,
    dirty: u32,
    lasts: Vec<Last>,
}

impl Writer<'_> {
    /// Splits a record into runs of blocks with the same fate.
    fn put_data(
        &mut self,
        record: &Record,
        crcs: &[u32],
        block_fate: &mut impl FnMut(&Record, u32) -> Keep,
    ) -> Option<()> {
        let before = self.at;
        let mut from = 0;
        let mut next = block_fate(record, 0);
        while from < record.blocks {
            let fate = next;
            let mut end = from + 1;
            while end < record.blocks {
                next = block_fate(record, end);
                if next != fate {
                    break;
                }
                end += 1;
            }
            if fate != Keep::Dead {
                let run = Record {
                    clean: fate == Keep::Clean && record.kind == Kind::Write,
                    block: record.block + u64::from(from),
                    blocks: end - from,
                    slot: record.slot + u16::try_from(from).ok()?,
                    ..*record
                };
                let crcs = crcs.get(usize::try_from(from).ok()?..usize::try_from(end).ok()?)?;
                self.put(&run, crcs)?;
                self.live += end - from;
                self.dirty += if run.dirty() { end - from } else { 0 };
            }
            from = end;
        }
        self.note(record, self.at > before);
        Some(())
    }

    /// Notes the LSN of a change, and whether the footer shows it.
    fn note(&mut self, record: &Record, kept: bool) {
        if !record.kind.takes_lsn() || record.moved {
            return;
        }
        let same = |last: &Last| {
            last.record.volume == record.volume && last.record.generation == record.generation
        };
        let at = self.lasts.iter().position(same).unwrap_or(self.lasts.len());
        if at == self.lasts.len() {
            self.lasts.push(Last { record: *record, kept: Lsn(0) });
        }
        if let Some(last) = self.lasts.get_mut(at) {
            last.record.lsn = last.record.lsn.max(record.lsn);
            last.kept = if kept { last.kept.max(record.lsn) } else { last.kept };
        }
    }

    /// Commits in place of last changes that were left out. Each has the room of what was left out.
    fn put_lasts(&mut self) -> Option<()> {
        for last in core::mem::take(&mut self.lasts) {
            if last.record.lsn > last.kept {
                let kind = Kind::Commit;
                let commit =
                    Record { kind, clean: false, block: 0, blocks: 0, slot: 0, ..last.record };
                self.put(&commit, &[])?;
            }
        }
        Some(())
    }

    fn put(&mut self, record: &Record, crcs: &[u32]) -> Option<()> {
        let end = self.at + RECORD_BYTES + crcs.len() * CRC_BYTES;
        let out = self.out.get_mut(self.at..end)?;
        record.encode(out.first_chunk_mut()?);
        for (out, crc) in out[RECORD_BYTES..].chunks_exact_mut(CRC_BYTES).zip(crcs) {
            out.copy_from_slice(&crc.to_le_bytes());
        }
        self.at = end;
        Some(())
    }
}

impl FooterHead {
    fn encode(&self, out: &mut [u8]) {
        out.fill(0);
        out[..8].copy_from_slice(&FOOTER_MAGIC);
        put_u16(out, 12, VERSION);
        put_u16(out, 14, self.name.shard);
        out[16..32].copy_from_slice(&self.name.cache.0);
        put_u64(out, 32, self.name.seq);
        put_u64(out, 40, self.seal);
        put_u64(out, 48, self.first_batch);
        put_u64(out, 56, self.last_batch);
        put_u32(out, 64, self.name.segment);
        put_u32(out, 68, self.bytes);
        put_u32(out, 72, self.live);
        put_u32(out, 76, self.dirty);
        put_u32(out, 80, self.body_crc);
        out[84] = self.name.stream.code();
        out[85] = if self.recovered { RECOVERED } else { 0 };
        put_crc(out);
    }

    /// Parses the head, of which the footer's first block is enough; the rest is checked by
    /// [`FooterView::parse`]. `None` for anything else, another version included (the superblock
    /// has the same version and is read first).
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let head = block.get(..FOOTER_HEAD_BYTES)?;
        if !sound(head, &FOOTER_MAGIC) {
            return None;
        }
        let mut reader = Reader::new(&head[12..]);
        let version = reader.u16()?;
        let shard = reader.u16()?;
        let cache = Uuid(reader.array()?);
        let seq = reader.u64()?;
        let seal = reader.u64()?;
        let first_batch = reader.u64()?;
        let last_batch = reader.u64()?;
        let segment = reader.u32()?;
        let bytes = reader.u32()?;
        let live = reader.u32()?;
        let dirty = reader.u32()?;
        let body_crc = reader.u32()?;
        let stream = LogStream::from_code(reader.u8()?)?;
        let recovered = reader.u8()? & RECOVERED != 0;
        let name = SegmentName { cache, shard, segment, seq, stream };
        let sane = version == VERSION
            && usize::try_from(bytes).is_ok_and(|bytes| bytes >= FOOTER_HEAD_BYTES)
            && dirty <= live
            && first_batch <= last_batch
            && seq < seal;
        sane.then_some(Self {
            name,
            seal,
            first_batch,
            last_batch,
            bytes,
            live,
            dirty,
            recovered,
            body_crc,
        })
    }

    /// Bytes to read for the whole footer: whole blocks.
    #[must_use]
    pub fn read_bytes(&self) -> usize {
        usize::try_from(self.bytes)
            .unwrap_or(usize::MAX)
            .checked_next_multiple_of(BLOCK)
            .unwrap_or(usize::MAX)
    }
}

/// A validated footer.
#[derive(Clone, Copy, Debug)]
pub struct FooterView<'a> {
    /// Its head.
    pub head: FooterHead,
    body: &'a [u8],
}

impl<'a> FooterView<'a> {
    /// Parses a whole footer; `None` for a torn or damaged one and for anything else.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let head = FooterHead::parse(bytes)?;
        let body = bytes.get(FOOTER_HEAD_BYTES..usize::try_from(head.bytes).ok()?)?;
        let view = Self { head, body };
        (crc32c(body) == head.body_crc && view.is_sound()).then_some(view)
    }

    fn is_sound(&self) -> bool {
        let (mut bytes, mut last, mut live, mut dirty) = (0usize, 0u64, 0u64, 0u64);
        for (number, group) in self.groups() {
            bytes += GROUP_BYTES + group.len();
            let mut used = 0;
            for (record, _) in records(group) {
                used += record.encoded_len();
                if record.kind.has_data() {
                    live += u64::from(record.blocks);
                    dirty += if record.dirty() { u64::from(record.blocks) } else { 0 };
                }
            }
            if used != group.len() || number <= last || number < self.head.first_batch {
                return false;
            }
            last = number;
        }
        bytes == self.body.len()
            && last <= self.head.last_batch
            && live == u64::from(self.head.live)
            && dirty == u64::from(self.head.dirty)
    }

    fn groups(&self) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.body);
        core::iter::from_fn(move || {
            let number = reader.u64()?;
            let bytes = reader.u32()?;
            let reserved = reader.u32()?;
            let group = reader.take(usize::try_from(bytes).ok()?)?;
            (reserved == 0).then_some((number, group))
        })
    }

    /// The records that were kept, batch by batch in the order of placement: batch number, record,
    /// CRCs. `clean` of each says what was known at the seal.
    pub fn records(&self) -> impl Iterator<Item = (u64, Record, Crcs<'a>)> + use<'a> {
        self.groups().flat_map(|(number, group)| {
            records(group).map(move |(record, crcs)| (number, record, crcs))
        })
    }

    /// Puts the records into a log (cleared first).
    pub fn load(&self, log: &mut SegmentLog) {
        log.clear();
        for (number, group) in self.groups() {
            for (record, crcs) in records(group) {
                log.push(&record);
                crcs.iter().for_each(|crc| log.push_crc(crc));
            }
            log.close_batch(number);
        }
    }
}

const fn records(group: &[u8]) -> RecordIter<'_> {
    RecordIter { reader: Reader::new(group) }
}

/// A free mark: every life of the segment up to `seq` is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeMark {
    /// The life that ended.
    pub name: SegmentName,
    /// The seal number of that life.
    pub seal: u64,
}

impl FreeMark {
    /// Fills a block with the mark.
    pub fn encode(&self, out: &mut [u8; BLOCK]) {
        out.fill(0);
        out[..8].copy_from_slice(&MARK_MAGIC);
        put_u16(out, 12, VERSION);
        put_u16(out, 14, self.name.shard);
        out[16..32].copy_from_slice(&self.name.cache.0);
        put_u64(out, 32, self.name.seq);
        put_u64(out, 40, self.seal);
        put_u32(out, 48, self.name.segment);
        out[52] = self.name.stream.code();
        put_crc(out);
    }

    /// Parses a block; `None` for anything that is not a mark.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        if block.len() != BLOCK || !sound(block, &MARK_MAGIC) {
            return None;
        }
        let mut reader = Reader::new(&block[12..]);
        let version = reader.u16()?;
        let shard = reader.u16()?;
        let cache = Uuid(reader.array()?);
        let seq = reader.u64()?;
        let seal = reader.u64()?;
        let segment = reader.u32()?;
        let stream = LogStream::from_code(reader.u8()?)?;
        (version == VERSION && seq < seal)
            .then_some(Self { name: SegmentName { cache, shard, segment, seq, stream }, seal })
    }
}
