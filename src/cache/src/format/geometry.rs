//! Where things are: segments and their parts, the extents of a shard, and the numbers that order
//! everything placed in a shard's log.

use super::{BLOCK, BLOCK_U64};

/// Fewest and most slots of a segment; a power of two between them.
pub const SEGMENT_SLOTS: core::ops::RangeInclusive<u32> = 16..=16_384;

/// The parts of a segment, which is the same for all segments of a device:
/// `[batches: data slots][free mark: 1 slot][footer: footer slots]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    segment_slots: u32,
    footer_slots: u32,
}

impl Geometry {
    /// The geometry of segments with this many slots; `None` where that is not a power of two in
    /// [`SEGMENT_SLOTS`].
    #[must_use]
    pub fn new(segment_slots: u32) -> Option<Self> {
        (segment_slots.is_power_of_two() && SEGMENT_SLOTS.contains(&segment_slots))
            .then(|| Self { segment_slots, footer_slots: segment_slots.div_ceil(48) })
    }

    /// The same with the footer size that a device header states; `None` where they do not agree.
    #[must_use]
    pub fn with_footer(segment_slots: u32, footer_slots: u32) -> Option<Self> {
        Self::new(segment_slots).filter(|geometry| geometry.footer_slots == footer_slots)
    }

    /// Slots of a segment, all parts together.
    #[must_use]
    pub const fn segment_slots(self) -> u32 {
        self.segment_slots
    }

    /// Bytes of a segment.
    #[must_use]
    pub const fn segment_bytes(self) -> u64 {
        self.segment_slots as u64 * BLOCK_U64
    }

    /// Slots for batches: headers and data.
    #[must_use]
    pub const fn data_slots(self) -> u32 {
        self.segment_slots - self.footer_slots - 1
    }

    /// The slot of the free mark.
    #[must_use]
    pub const fn mark_slot(self) -> u32 {
        self.data_slots()
    }

    /// The first slot of the footer.
    #[must_use]
    pub const fn footer_slot(self) -> u32 {
        self.data_slots() + 1
    }

    /// Slots of the footer at most.
    #[must_use]
    pub const fn footer_slots(self) -> u32 {
        self.footer_slots
    }

    /// Bytes of the footer at most.
    #[must_use]
    pub const fn footer_bytes(self) -> usize {
        self.footer_slots as usize * BLOCK
    }
}

/// A run of device segments that belongs to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first segment, numbered over the whole device.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

impl Extent {
    /// The segment after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first as u64 + self.count as u64
    }
}

/// Translates a shard's own segment and slot numbers, which follow the order in which its extents
/// were granted, to places on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    geometry: Geometry,
    /// Byte offset of segment 0 on the device.
    base: u64,
    /// Each extent with the shard's own number of its first segment.
    extents: Vec<(u32, Extent)>,
    segments: u32,
}

impl ShardMap {
    /// A map of these extents, in the order of their grant. `base` is the byte offset of the
    /// device's segment 0 ([`super::device::DeviceHeader::segments_offset`]).
    #[must_use]
    pub fn new(geometry: Geometry, base: u64, extents: &[Extent]) -> Self {
        let mut map = Self { geometry, base, extents: Vec::new(), segments: 0 };
        for extent in extents {
            map.grant(*extent);
        }
        map
    }

    /// Adds an extent behind the others. The superblock must hold it before it is used.
    pub fn grant(&mut self, extent: Extent) {
        self.extents.push((self.segments, extent));
        self.segments = self.segments.saturating_add(extent.count);
    }

    /// The parts of a segment.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Segments of the shard.
    #[must_use]
    pub const fn segments(&self) -> u32 {
        self.segments
    }

    /// One above the shard's greatest slot number.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        self.segments as u64 * self.geometry.segment_slots as u64
    }

    /// Slots that can hold a batch: the index needs no room for footers and marks.
    #[must_use]
    pub const fn data_slots(&self) -> u64 {
        self.segments as u64 * self.geometry.data_slots() as u64
    }

    /// The device's number of one of the shard's segments; `None` past the end.
    #[must_use]
    pub fn device_segment(&self, segment: u32) -> Option<u32> {
        if segment >= self.segments {
            return None;
        }
        let at = self.extents.partition_point(|(start, _)| *start <= segment).checked_sub(1)?;
        let (start, extent) = self.extents.get(at)?;
        extent.first.checked_add(segment - start)
    }

    /// The byte offset of one of the shard's segments; `None` past the end.
    #[must_use]
    pub fn segment_offset(&self, segment: u32) -> Option<u64> {
        let device = self.device_segment(segment)?;
        u64::from(device).checked_mul(self.geometry.segment_bytes())?.checked_add(self.base)
    }

    /// The byte offset of one of the shard's slots; `None` past the end.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> Option<u64> {
        let start = self.segment_offset(self.segment_of(slot))?;
        Some(start + u64::from(self.slot_in_segment(slot)) * BLOCK_U64)
    }

    /// The segment of a slot.
    #[must_use]
    pub const fn segment_of(&self, slot: u32) -> u32 {
        slot / self.geometry.segment_slots
    }

    /// The place of a slot inside its segment.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a segment has at most 16384 slots")]
    pub const fn slot_in_segment(&self, slot: u32) -> u16 {
        (slot % self.geometry.segment_slots) as u16
    }

    /// The shard's number of a slot of one of its segments.
    #[must_use]
    pub const fn slot(&self, segment: u32, slot_in_segment: u16) -> u32 {
        segment * self.geometry.segment_slots + slot_in_segment as u32
    }
}

/// The three logs of a shard, each with one open segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogStream {
    /// Changes by hosts, trims, commit marks.
    Journal,
    /// Data read from the backing store.
    Fill,
    /// Records appended again at reclaim.
    Reinsert,
}

impl LogStream {
    /// All of them, by their code.
    pub const ALL: [Self; 3] = [Self::Journal, Self::Fill, Self::Reinsert];

    /// As on the medium: 0, 1, 2.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Journal => 0,
            Self::Fill => 1,
            Self::Reinsert => 2,
        }
    }

    /// From the medium.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Journal),
            1 => Some(Self::Fill),
            2 => Some(Self::Reinsert),
            _ => None,
        }
    }
}

/// Bits of a number below its incarnation: 200,000 numbers a second last 2.7 years.
pub const NUMBER_BITS: u32 = 44;
/// One above the greatest incarnation.
pub const MAX_INCARNATION: u32 = 1 << (64 - NUMBER_BITS);

/// The shard's one counter: fresh numbers for opened segments, batches and seals. The upper bits
/// are the incarnation, so that a number of an earlier life is always lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    next: u64,
}

impl Numbers {
    /// The numbers of an incarnation (below [`MAX_INCARNATION`]).
    #[must_use]
    pub const fn new(incarnation: u32) -> Self {
        Self { next: ((incarnation as u64) << NUMBER_BITS) + 1 }
    }

    /// Goes on after `last`, the highest number seen.
    #[must_use]
    pub const fn after(last: u64) -> Self {
        Self { next: last.saturating_add(1) }
    }

    /// A fresh number.
    pub const fn next(&mut self) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    /// The number that comes next, without taking it.
    #[must_use]
    pub const fn peek(self) -> u64 {
        self.next
    }

    /// The incarnation of a number.
    #[must_use]
    pub const fn incarnation(number: u64) -> u64 {
        number >> NUMBER_BITS
    }
}
