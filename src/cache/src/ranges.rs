//! Ranges that read as zeroes (written as zeroes, or discarded): a bounded map per volume.

use core::fmt;
use std::collections::BTreeMap;

use forebay_io::Lsn;

#[cfg(test)]
mod tests;

/// Why a range reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// The host wrote zeroes.
    Zeroes,
    /// The host no longer needs it.
    Discarded,
}

/// A run of blocks of one kind and one log sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First cache block.
    pub first: u64,
    /// Cache blocks, at least 1.
    pub blocks: u64,
    /// The change that made it.
    pub lsn: Lsn,
    /// Zeroes or discarded.
    pub kind: RangeKind,
    /// Whether the backing store does not know of it yet.
    pub dirty: bool,
}

impl Range {
    const fn end(&self) -> u64 {
        self.first.saturating_add(self.blocks)
    }

    /// What of it lies in `first..end`; empty ranges have no blocks.
    fn clipped(mut self, first: u64, end: u64) -> Option<Self> {
        let (low, high) = (self.first.max(first), self.end().min(end));
        (self.first, self.blocks) = (low, high.saturating_sub(low));
        (low < high).then_some(self)
    }
}

/// The map has no room for the change, which was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangesFull;

impl fmt::Display for RangesFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many ranges of zeroes or discarded blocks")
    }
}

impl core::error::Error for RangesFull {}

/// Disjoint ranges of one volume. A newer change covers an older one where they overlap.
pub struct RangeMap {
    ranges: BTreeMap<u64, Range>,
    max: usize,
    blocks: u64,
    scratch: Vec<Range>,
}

impl fmt::Debug for RangeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.values()).finish()
    }
}

impl RangeMap {
    /// A map of at most `max` ranges.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { ranges: BTreeMap::new(), max, blocks: 0, scratch: Vec::new() }
    }

    /// Adds a range. Parts covered by a change with a higher LSN stay as they are; touching parts
    /// with the same LSN, kind and state become one.
    ///
    /// # Errors
    /// [`RangesFull`]; nothing changed.
    pub fn insert(&mut self, range: Range) -> Result<(), RangesFull> {
        if range.blocks == 0 {
            return Ok(());
        }
        self.overlaps(range.first, range.end());
        let overlaps = core::mem::take(&mut self.scratch);
        // The new range is cut into the gaps between newer ones.
        let mut parts = Vec::new();
        let mut at = range.first;
        for newer in overlaps.iter().filter(|old| old.lsn > range.lsn) {
            parts.extend(range.clipped(at, newer.first));
            at = newer.end();
        }
        parts.extend(range.clipped(at.max(range.first), range.end()));
        // Older ones leave at most two pieces more than there were.
        let result = if self.ranges.len() + parts.len() + 1 > self.max {
            Err(RangesFull)
        } else {
            for old in overlaps.iter().filter(|old| old.lsn <= range.lsn) {
                self.cut(*old, range.first, range.end());
            }
            parts.into_iter().for_each(|part| self.put(part));
            Ok(())
        };
        self.scratch = overlaps;
        result
    }

    /// Removes what lies in `first .. first + blocks` and is older than `lsn`: a later change, or a
    /// trim up to that LSN, replaces it.
    ///
    /// # Errors
    /// [`RangesFull`] where a range would have to be split and there is no room; nothing changed.
    pub fn punch(&mut self, first: u64, blocks: u64, lsn: Lsn) -> Result<(), RangesFull> {
        let end = first.saturating_add(blocks);
        if blocks == 0 || self.ranges.is_empty() {
            return Ok(());
        }
        self.overlaps(first, end);
        let overlaps = core::mem::take(&mut self.scratch);
        let older = || overlaps.iter().filter(|old| old.lsn < lsn);
        let splits = older().any(|old| old.first < first && old.end() > end);
        let result = if splits && self.ranges.len() >= self.max {
            Err(RangesFull)
        } else {
            older().for_each(|old| self.cut(*old, first, end));
            Ok(())
        };
        self.scratch = overlaps;
        result
    }

    /// Marks what lies in the range, with exactly this LSN, as known to the backing store.
    pub fn mark_clean(&mut self, first: u64, lsn: Lsn) {
        if let Some((_, range)) = self.ranges.range_mut(..=first).next_back()
            && range.end() > first
            && range.lsn == lsn
        {
            range.dirty = false;
        }
    }

    /// The range that a block lies in.
    #[must_use]
    pub fn get(&self, block: u64) -> Option<Range> {
        let (_, range) = self.ranges.range(..=block).next_back()?;
        (block < range.end()).then_some(*range)
    }

    /// The ranges that overlap `first .. first + blocks`, clipped to it, in order.
    pub fn overlapping(&self, first: u64, blocks: u64) -> impl Iterator<Item = Range> + '_ {
        let end = first.saturating_add(blocks);
        let start = self.get(first).map_or(first, |range| range.first);
        self.ranges.range(start..end.max(start)).filter_map(move |(_, r)| r.clipped(first, end))
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.values().copied()
    }

    /// Ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is no range: the quick test on the data path.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How full it is, in thousandths, for throttling before [`RangesFull`].
    #[must_use]
    pub fn fill_permille(&self) -> usize {
        self.ranges.len().saturating_mul(1000) / self.max.max(1)
    }

    /// Blocks in all ranges.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.blocks = 0;
    }

    /// Collects the whole ranges that overlap `first..end` in `scratch`, in order.
    fn overlaps(&mut self, first: u64, end: u64) {
        self.scratch.clear();
        let start = self.get(first).map_or(first, |range| range.first);
        self.scratch.extend(self.ranges.range(start..end.max(start)).map(|(_, range)| *range));
    }

    /// Takes `first..end` out of a range that is in the map.
    fn cut(&mut self, range: Range, first: u64, end: u64) {
        self.ranges.remove(&range.first);
        self.blocks -= range.blocks;
        for part in [range.clipped(0, first), range.clipped(end, u64::MAX)].into_iter().flatten() {
            self.blocks += part.blocks;
            self.ranges.insert(part.first, part);
        }
    }

    /// Puts a range that overlaps no other one, joined with equal neighbours.
    fn put(&mut self, mut range: Range) {
        let joins = |a: &Range, b: &Range| {
            a.end() == b.first && a.lsn == b.lsn && a.kind == b.kind && a.dirty == b.dirty
        };
        self.blocks += range.blocks;
        if let Some((_, before)) = self.ranges.range(..range.first).next_back()
            && joins(before, &range)
        {
            let before = *before;
            self.ranges.remove(&before.first);
            range = Range { first: before.first, blocks: before.blocks + range.blocks, ..range };
        }
        if let Some(after) = self.ranges.get(&range.end()).copied()
            && joins(&range, &after)
        {
            self.ranges.remove(&after.first);
            range.blocks += after.blocks;
        }
        self.ranges.insert(range.first, range);
    }
}
