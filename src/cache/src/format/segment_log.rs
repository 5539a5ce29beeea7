//! The records of a segment in memory: of an open one, until its footer is made of them, and of a
//! sealed one whose footer was read (destage and reclaim go through them).

use super::footer::{FOOTER_HEAD_BYTES, GROUP_BYTES};
use super::geometry::Geometry;
use super::record::{RECORD_BYTES, Record};
use core::ops::Range;

/// Bytes of footer that a block of data needs at worst, when each is a record of its own.
const WORST_BLOCK_BYTES: usize = RECORD_BYTES + super::record::CRC_BYTES;

/// A record and where its CRCs are.
#[derive(Clone, Copy, Debug)]
struct Held {
    record: Record,
    crc: u32,
}

/// The records of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    number: u64,
    end: u32,
}

/// The records of a segment, batch by batch, in the order of placement.
#[derive(Clone, Debug)]
pub struct SegmentLog {
    geometry: Geometry,
    held: Vec<Held>,
    crcs: Vec<u32>,
    groups: Vec<Group>,
    /// Bytes of footer that these records need at worst.
    footer_bytes: usize,
}

impl SegmentLog {
    /// An empty log for a segment of this geometry.
    #[must_use]
    pub const fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            held: Vec::new(),
            crcs: Vec::new(),
            groups: Vec::new(),
            footer_bytes: FOOTER_HEAD_BYTES + GROUP_BYTES,
        }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.held.clear();
        self.crcs.clear();
        self.groups.clear();
        self.footer_bytes = FOOTER_HEAD_BYTES + GROUP_BYTES;
    }

    /// Slots for batches in the segment.
    #[must_use]
    pub const fn data_slots(&self) -> u32 {
        self.geometry.data_slots()
    }

    /// Whether the footer has room for one more record.
    #[must_use]
    pub fn fits(&self, record: &Record) -> bool {
        self.footer_bytes + worst_bytes(record) <= self.geometry.footer_bytes()
    }

    /// How many blocks of data in one record the footer has room for.
    #[must_use]
    pub const fn room_blocks(&self) -> usize {
        self.geometry.footer_bytes().saturating_sub(self.footer_bytes) / WORST_BLOCK_BYTES
    }

    /// Bytes of footer left, for [`RECORD_BYTES`]-sized marks.
    #[must_use]
    pub const fn room_bytes(&self) -> usize {
        self.geometry.footer_bytes().saturating_sub(self.footer_bytes)
    }

    pub(crate) fn push(&mut self, record: &Record) -> u32 {
        let entry = self.len();
        let crc = u32::try_from(self.crcs.len()).unwrap_or(u32::MAX);
        self.held.push(Held { record: *record, crc });
        self.footer_bytes += worst_bytes(record);
        entry
    }

    pub(crate) fn push_crc(&mut self, crc: u32) {
        self.crcs.push(crc);
    }

    /// Ends the group of records that were pushed since the last call.
    pub(crate) fn close_batch(&mut self, number: u64) {
        let end = self.len();
        if self.groups.last().is_none_or(|group| group.end < end) {
            self.groups.push(Group { number, end });
            self.footer_bytes += GROUP_BYTES;
        }
    }

    /// Records.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A record and the CRC32C of each of its blocks (empty without data).
    #[must_use]
    pub fn get(&self, entry: u32) -> Option<(&Record, &[u32])> {
        let held = self.held.get(usize::try_from(entry).ok()?)?;
        let from = usize::try_from(held.crc).ok()?;
        Some((&held.record, self.crcs.get(from..from + held.record.data_blocks())?))
    }

    /// All records with their CRCs, in the order of placement.
    pub fn iter(&self) -> impl Iterator<Item = (&Record, &[u32])> {
        (0..self.len()).filter_map(|entry| self.get(entry))
    }

    /// The batches that are closed: number and records of each.
    pub fn groups(&self) -> impl Iterator<Item = (u64, Range<u32>)> + '_ {
        let mut start = 0;
        self.groups.iter().map(move |group| {
            let range = start..group.end;
            start = group.end;
            (group.number, range)
        })
    }

    /// One of the batches: its number and its records.
    #[must_use]
    pub fn group(&self, index: usize) -> Option<(u64, Range<u32>)> {
        let group = self.groups.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.groups.get(before));
        Some((group.number, start.map_or(0, |before| before.end)..group.end))
    }

    /// Forgets the batches from this one on.
    pub(crate) fn truncate(&mut self, groups: usize) {
        self.groups.truncate(groups);
        let held = self.groups.last().map_or(0, |group| group.end);
        self.held.truncate(usize::try_from(held).unwrap_or(usize::MAX));
        let end = self.held.last().map_or(0, |held| {
            usize::try_from(held.crc).unwrap_or(usize::MAX) + held.record.data_blocks()
        });
        self.crcs.truncate(end);
    }

    /// Forgets these records, given by rising index.
    pub(crate) fn remove(&mut self, entries: &[u32]) {
        let gone = |entry: u32| entries.binary_search(&entry).is_ok();
        let mut entry = 0;
        self.held.retain(|_| {
            entry += 1;
            !gone(entry - 1)
        });
        for group in &mut self.groups {
            let before = entries.partition_point(|entry| *entry < group.end);
            group.end -= u32::try_from(before).unwrap_or(0);
        }
    }

    /// Changes every CRC, and its fold to 16 bits, so that no data match any more.
    pub(crate) fn poison(&mut self) {
        self.crcs.iter_mut().for_each(|crc| *crc ^= 0xffff);
    }

    /// Bytes of memory held.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.held.capacity() * size_of::<Held>()
            + self.crcs.capacity() * size_of::<u32>()
            + self.groups.capacity() * size_of::<Group>()
    }
}

fn worst_bytes(record: &Record) -> usize {
    if record.kind.has_data() { record.data_blocks() * WORST_BLOCK_BYTES } else { RECORD_BYTES }
}
