//! Applies records, in the order of their placement, to the index and all that goes with it.

use super::MAX_KILLS;
use super::kills::RecentKills;
use super::outcome::{Lost, RecoveredRange, RecoveredVolume, SegmentInfo, Stats};
use crate::fold::Folds;
use crate::format::BLOCK_U64;
use crate::format::batch::timeless_mask;
use crate::format::geometry::{Geometry, Numbers};
use crate::format::record::{Kind, Record};
use crate::format::superblock::Superblock;
use crate::index::{Entry, Flags, Index, IndexError, Key};
use crate::plant::{Bug, Plant};
use crate::ranges::{Range, RangeKind, RangeMap};
use forebay_io::{Epoch, Lsn};
use std::collections::BTreeMap;

/// Records of more blocks than this are not applied block by block but in one pass over the index
/// at the end.
const LARGE: u32 = 4096;

/// Where records come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The shard's number of the segment.
    pub(super) segment: u32,
    /// The number of its opening.
    pub(super) seq: u64,
    /// It has no footer.
    pub(super) scanned: bool,
    /// It is certain that all before it in its stream was durable: a footer was begun, or a later
    /// header says so.
    pub(super) complete: bool,
    /// Its footer was relied on once and is damaged: its records may be older than what was freed.
    pub(super) suspect: bool,
}

/// What is known of a volume while records are applied.
struct Volume {
    out: RecoveredVolume,
    generation: u32,
    base: Lsn,
    key: u64,
    /// Blocks the volume has, the last one whole.
    blocks: u64,
    zeroes: RangeMap,
    /// For large records, applied at the end: for each block the highest LSN below which all is
    /// dead, and up to which all is on the backing store.
    dead_below: RangeMap,
    clean_up_to: RangeMap,
    /// What was made dead, for copies that are loaded later.
    killed: RangeMap,
}

/// The state that records build up.
pub(super) struct Replay {
    pub(super) index: Index,
    pub(super) folds: Folds,
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) stats: Stats,
    lost: Vec<Lost>,
    /// The LSN of what each slot holds, while the slot is in the index. Given up afterwards.
    lsns: Vec<u64>,
    volumes: Vec<Volume>,
    kills: RecentKills,
    /// The segment of each record of zeroes, by volume and LSN.
    zero_segments: BTreeMap<(u16, Lsn), u32>,
    geometry: Geometry,
    incarnation: u64,
    large: bool,
    pub(super) plant: Plant,
    remember_kills: bool,
    forgot_kills: bool,
}

impl Replay {
    pub(super) fn new(
        superblock: &Superblock,
        geometry: Geometry,
        segments: u32,
        index: Index,
    ) -> Self {
        let slots = segments.saturating_mul(geometry.segment_slots());
        Self {
            index,
            folds: Folds::new(slots),
            segments: vec![SegmentInfo::default(); segments as usize],
            stats: Stats { segments, ..Stats::default() },
            lost: Vec::new(),
            lsns: vec![0; slots as usize],
            volumes: Self::volumes(superblock),
            kills: RecentKills::default(),
            zero_segments: BTreeMap::new(),
            geometry,
            incarnation: u64::from(superblock.incarnation),
            large: false,
            plant: Plant::default(),
            remember_kills: false,
            forgot_kills: false,
        }
    }

    fn volumes(superblock: &Superblock) -> Vec<Volume> {
        let map = || RangeMap::new(usize::MAX);
        let volumes = superblock.volumes.iter().map(|entry| Volume {
            out: RecoveredVolume {
                volume: entry.index,
                last: entry.accounted.max(entry.base),
                live: 0,
                dirty: 0,
                void: 0,
                epoch: entry.epoch,
            },
            generation: entry.generation,
            base: entry.base,
            key: entry.key(),
            blocks: entry.size.div_ceil(BLOCK_U64),
            zeroes: map(),
            dead_below: map(),
            clean_up_to: map(),
            killed: RangeMap::new(MAX_KILLS),
        });
        volumes.collect()
    }

    /// Whether to remember all that records make dead.
    pub(super) const fn remember_kills(&mut self, remember: bool) {
        self.remember_kills = remember;
    }

    /// Whether that was more than can be remembered.
    pub(super) const fn forgot_kills(&self) -> bool {
        self.forgot_kills
    }

    /// What records made dead, by volume.
    pub(super) fn take_kills(&mut self) -> BTreeMap<u16, RangeMap> {
        let take = |volume: &mut Volume| {
            let killed = core::mem::replace(&mut volume.killed, RangeMap::new(MAX_KILLS));
            (volume.out.volume, killed)
        };
        self.volumes.iter_mut().map(take).filter(|(_, killed)| !killed.is_empty()).collect()
    }

    /// Forgets all records, and what is to be remembered of them.
    pub(super) fn start_over(&mut self, superblock: &Superblock) {
        self.index.retain(|_, _| false);
        self.lsns.fill(0);
        self.segments.fill(SegmentInfo::default());
        self.stats = Stats { segments: self.stats.segments, ..Stats::default() };
        self.lost.clear();
        self.volumes = Self::volumes(superblock);
        self.kills = RecentKills::default();
        self.zero_segments.clear();
        (self.large, self.remember_kills, self.forgot_kills) = (false, false, false);
    }

    /// The key of a volume's CRCs; `None` where its records are dead.
    pub(super) fn key(&self, record: &Record) -> Option<u64> {
        self.at(record).and_then(|at| self.volumes.get(at)).map(|volume| volume.key)
    }

    fn at(&self, record: &Record) -> Option<usize> {
        let index = |volume: &Volume| volume.out.volume;
        let at = self.volumes.binary_search_by_key(&record.volume, index).ok()?;
        let volume = self.volumes.get(at)?;
        let end = record.block.saturating_add(u64::from(record.blocks));
        (volume.generation == record.generation && end <= volume.blocks).then_some(at)
    }

    /// Looks the blocks of a batch up, so that the processor waits for the index's memory once and
    /// not for each of them in turn.
    pub(super) fn touch<'a>(&self, records: impl Iterator<Item = (&'a Record, &'a [u32])>) {
        let keys = records.filter_map(|(record, _)| Key::new(record.volume, record.block));
        self.index.prefetch(keys);
    }

    /// Applies one record with its CRCs; `false` if it is void for a missing LSN.
    ///
    /// # Errors
    /// The index is full or does not take the slot.
    pub(super) fn apply(
        &mut self,
        source: &Source,
        record: &Record,
        crcs: &[u32],
    ) -> Result<bool, IndexError> {
        let Some(at) = self.at(record) else {
            self.stats.stale += 1;
            return Ok(true);
        };
        if !self.admit(source, record, at) {
            self.stats.void += 1;
            return Ok(false);
        }
        self.stats.records += 1;
        match record.kind {
            Kind::Write | Kind::Fill => self.data(source, record, crcs, at)?,
            Kind::Zeroes | Kind::Discard => self.zeroes(source, record, at),
            Kind::Invalidate => self.kill(record, at),
            Kind::Trim => self.trim(record, at),
            Kind::Commit | Kind::Promise => {}
        }
        Ok(true)
    }

    /// The rule of LSN contiguity. A change in a segment without a footer counts only if it follows
    /// the last one; every other record proves that its LSN was committed. Says whether
    /// the record counts.
    fn admit(&mut self, source: &Source, record: &Record, at: usize) -> bool {
        let Some(volume) = self.volumes.get_mut(at) else { return false };
        if record.kind == Kind::Promise {
            volume.out.epoch = volume.out.epoch.max(record.epoch);
            return true;
        }
        if record.kind.takes_lsn() && !record.moved && source.scanned {
            let follows = record.lsn.0 <= volume.out.last.0.saturating_add(1);
            let beyond = !follows && !source.complete;
            let earlier_life = Numbers::incarnation(source.seq) < self.incarnation;
            if beyond || (earlier_life && record.lsn > volume.base) {
                volume.out.void += 1;
                return false;
            }
        }
        if record.kind != Kind::Commit || !self.plant.has(Bug::CommitMarkIgnored) {
            volume.out.last = volume.out.last.max(record.lsn);
        }
        volume.out.epoch = volume.out.epoch.max(record.epoch);
        true
    }

    fn data(
        &mut self,
        source: &Source,
        record: &Record,
        crcs: &[u32],
        at: usize,
    ) -> Result<(), IndexError> {
        // Of what may be out of date only dirty data are of use, to be reported.
        let end = u32::from(record.slot) + record.blocks;
        if (source.suspect && !record.dirty()) || end > self.geometry.data_slots() {
            return Ok(());
        }
        let Some(volume) = self.volumes.get_mut(at) else { return Ok(()) };
        if !volume.zeroes.is_empty() && !self.plant.has(Bug::ReplayNoPunch) {
            // A range with a higher LSN stays, and the block is dead (see below).
            let _ = volume.zeroes.punch(record.block, u64::from(record.blocks), record.lsn.next());
        }
        let mask = timeless_mask(record.lsn.0);
        let first = source.segment * self.geometry.segment_slots() + u32::from(record.slot);
        for ((block, slot), crc) in (record.block..).zip(first..).zip(crcs) {
            let Some(name) = Key::new(record.volume, block) else { continue };
            let Some(volume) = self.volumes.get(at) else { continue };
            let under = !volume.zeroes.is_empty() && volume.zeroes.get(block).is_some();
            if under || self.kills.is_dead(name, record.lsn) {
                continue;
            }
            self.block(at, record, name, slot)?;
            self.folds.set(slot, crc ^ mask);
        }
        Ok(())
    }

    /// One block of data: the higher LSN wins, among equal ones the later place.
    fn block(
        &mut self,
        at: usize,
        record: &Record,
        name: Key,
        slot: u32,
    ) -> Result<(), IndexError> {
        let dirty = record.dirty();
        let old = self.index.insert(name, slot, Flags::NONE.with_dirty(dirty))?;
        let mut entry = Entry { slot, flags: Flags::NONE.with_dirty(dirty) };
        if let Some(old) = old {
            let old_lsn = self.lsn_of(old.slot);
            if old_lsn > record.lsn.0 {
                self.index.insert(name, old.slot, old.flags)?;
                return Ok(());
            }
            self.count(at, old, false);
            if old_lsn == record.lsn.0 && dirty && !old.flags.dirty() {
                // The same version, already known to be on the backing store.
                entry.flags = Flags::NONE;
                self.index.insert(name, slot, entry.flags)?;
            }
        }
        if let Some(lsn) = self.lsns.get_mut(slot as usize) {
            *lsn = record.lsn.0;
        }
        self.count(at, entry, true);
        Ok(())
    }

    fn lsn_of(&self, slot: u32) -> u64 {
        self.lsns.get(slot as usize).copied().unwrap_or(0)
    }

    fn count(&mut self, at: usize, entry: Entry, add: bool) {
        let dirty = u32::from(entry.flags.dirty());
        let segment = entry.slot / self.geometry.segment_slots();
        if let Some(info) = self.segments.get_mut(segment as usize) {
            step32(&mut info.live, 1, add);
            step32(&mut info.dirty, dirty, add);
        }
        if let Some(volume) = self.volumes.get_mut(at) {
            step64(&mut volume.out.live, 1, add);
            step64(&mut volume.out.dirty, u64::from(dirty), add);
        }
    }

    fn zeroes(&mut self, source: &Source, record: &Record, at: usize) {
        if source.suspect {
            self.lost(record, record.block, record.blocks);
            self.kill(record, at);
            return;
        }
        let Some(volume) = self.volumes.get_mut(at) else { return };
        let kind =
            if record.kind == Kind::Discard { RangeKind::Discarded } else { RangeKind::Zeroes };
        let range = Range {
            first: record.block,
            blocks: u64::from(record.blocks),
            lsn: record.lsn,
            kind,
            dirty: true,
        };
        // A map without a bound is never full.
        let _ = volume.zeroes.insert(range);
        self.zero_segments.insert((record.volume, record.lsn), source.segment);
        self.kill(record, at);
    }

    /// Everything of these blocks that is older is dead. Where something newer is in the index
    /// already, a range of zeroes leaves it out.
    fn kill(&mut self, record: &Record, at: usize) {
        let Some(volume) = self.volumes.get_mut(at) else { return };
        if record.kind == Kind::Invalidate {
            let _ = volume.zeroes.punch(record.block, u64::from(record.blocks), record.lsn);
        }
        if self.remember_kills && !self.plant.has(Bug::ReplayNoKill) {
            self.forgot_kills |= volume.killed.insert(note(record)).is_err();
        }
        if record.blocks > LARGE {
            self.large = true;
            let _ = volume.dead_below.insert(note(record));
            return;
        }
        for block in record.block..record.block + u64::from(record.blocks) {
            let Some(name) = Key::new(record.volume, block) else { continue };
            self.kills.note(name, record.lsn);
            let Some(entry) = self.index.get(name) else { continue };
            if self.plant.has(Bug::ReplayNoKill) {
                continue;
            }
            if self.lsn_of(entry.slot) < record.lsn.0 {
                self.index.remove(name);
                self.count(at, entry, false);
            } else if let Some(volume) = self.volumes.get_mut(at) {
                let _ = volume.zeroes.punch(block, 1, record.lsn.next());
            }
        }
    }

    fn trim(&mut self, record: &Record, at: usize) {
        if self.plant.has(Bug::TrimMarkIgnored) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(at) else { return };
        if !volume.zeroes.is_empty() {
            let _ = volume.zeroes.punch(record.block, u64::from(record.blocks), record.lsn.next());
        }
        if record.blocks > LARGE {
            self.large = true;
            let _ = volume.clean_up_to.insert(note(record));
            return;
        }
        for block in record.block..record.block + u64::from(record.blocks) {
            let Some(name) = Key::new(record.volume, block) else { continue };
            let Some(entry) = self.index.get(name) else { continue };
            let covered = self.lsn_of(entry.slot) <= record.lsn.0;
            if entry.flags.dirty() && (covered || self.plant.has(Bug::TrimCoversNewer)) {
                self.clean(at, name, entry);
            }
        }
    }

    fn clean(&mut self, at: usize, name: Key, entry: Entry) {
        self.count(at, entry, false);
        let entry = Entry { flags: entry.flags.with_dirty(false), ..entry };
        self.index.update_if_slot(name, entry.slot, |flags| flags.with_dirty(false));
        self.count(at, entry, true);
    }

    /// Notes blocks of a damaged part that were dirty.
    pub(super) fn lost(&mut self, record: &Record, block: u64, blocks: u32) {
        self.lost.push(Lost { volume: record.volume, block, blocks, lsn: record.lsn });
    }

    /// After the last record: applies the large ones in one pass, and drops from the lost what
    /// has a newer version after all.
    pub(super) fn sweep(&mut self) {
        if self.large {
            self.sweep_large();
        }
        let lost = core::mem::take(&mut self.lost);
        self.lost = lost.into_iter().filter_map(|lost| self.still_lost(lost)).collect();
    }

    fn sweep_large(&mut self) {
        let (mut dead, mut clean, mut holes) = (Vec::new(), Vec::new(), Vec::new());
        let (volumes, lsns) = (&self.volumes, &self.lsns);
        self.index.for_each(|name, entry| {
            let lsn = Lsn(lsns.get(entry.slot as usize).copied().unwrap_or(0));
            let found = volumes.binary_search_by_key(&name.volume(), |volume| volume.out.volume);
            let Some((at, volume)) = found.ok().and_then(|at| Some((at, volumes.get(at)?))) else {
                return;
            };
            let below = volume.dead_below.get(name.block());
            if below.is_some_and(|range| lsn < range.lsn) {
                dead.push((at, name, entry));
                return;
            }
            if volume.zeroes.get(name.block()).is_some_and(|range| range.lsn <= lsn) {
                holes.push((at, name.block(), lsn));
            }
            let up_to = volume.clean_up_to.get(name.block());
            if entry.flags.dirty() && up_to.is_some_and(|range| lsn <= range.lsn) {
                clean.push((at, name, entry));
            }
        });
        for (at, name, entry) in dead {
            self.index.remove(name);
            self.count(at, entry, false);
        }
        for (at, name, entry) in clean {
            self.clean(at, name, entry);
        }
        for (at, block, lsn) in holes {
            if let Some(volume) = self.volumes.get_mut(at) {
                let _ = volume.zeroes.punch(block, 1, lsn.next());
            }
        }
    }

    /// What of it has no newer version: the part from the first to the last such block.
    fn still_lost(&self, lost: Lost) -> Option<Lost> {
        let newer = |block: u64| {
            let entry = Key::new(lost.volume, block).and_then(|name| self.index.get(name));
            entry.is_some_and(|entry| {
                let lsn = self.lsn_of(entry.slot);
                lsn > lost.lsn.0 || (lsn == lost.lsn.0 && !entry.flags.dirty())
            })
        };
        let end = lost.block + u64::from(lost.blocks);
        let first = (lost.block..end).find(|block| !newer(*block))?;
        let last = (first..end).rev().find(|block| !newer(*block))?;
        let blocks = u32::try_from(last + 1 - first).ok()?;
        Some(Lost { block: first, blocks, ..lost })
    }

    /// Bytes that only recovery uses.
    pub(super) fn temporary_bytes(&self) -> u64 {
        (self.lsns.capacity() * size_of::<u64>()) as u64
    }

    /// The volumes, the ranges of zeroes and the losses.
    pub(super) fn outcome(&mut self) -> (Vec<RecoveredVolume>, Vec<RecoveredRange>, Vec<Lost>) {
        let mut ranges = Vec::new();
        for volume in &self.volumes {
            for range in volume.zeroes.iter() {
                let segment = self.zero_segments.get(&(volume.out.volume, range.lsn));
                ranges.push(RecoveredRange {
                    volume: volume.out.volume,
                    block: range.first,
                    blocks: range.blocks,
                    lsn: range.lsn,
                    discard: range.kind == RangeKind::Discarded,
                    segment: segment.copied().unwrap_or(0),
                });
            }
        }
        let volumes = self.volumes.iter().map(|volume| volume.out).collect();
        (volumes, ranges, core::mem::take(&mut self.lost))
    }

    /// Whether the index has the block in this slot, and whether it is dirty.
    pub(super) fn fate(&self, volume: u16, block: u64, slot: u32) -> Option<bool> {
        let entry = self.index.get(Key::new(volume, block)?)?;
        (entry.slot == slot).then(|| entry.flags.dirty())
    }

    /// The last LSN and the highest epoch of a volume.
    pub(super) fn last(&self, volume: u16) -> Option<(Lsn, Epoch)> {
        let at = self.volumes.binary_search_by_key(&volume, |volume| volume.out.volume).ok()?;
        self.volumes.get(at).map(|volume| (volume.out.last, volume.out.epoch))
    }
}

fn note(record: &Record) -> Range {
    Range {
        first: record.block,
        blocks: u64::from(record.blocks),
        lsn: record.lsn,
        kind: RangeKind::Zeroes,
        dirty: false,
    }
}

const fn step32(value: &mut u32, by: u32, add: bool) {
    *value = if add { value.saturating_add(by) } else { value.saturating_sub(by) };
}

const fn step64(value: &mut u64, by: u64, add: bool) {
    *value = if add { value.saturating_add(by) } else { value.saturating_sub(by) };
}
