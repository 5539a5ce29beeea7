//! Warming: what recovery left for later comes back into the index while the engine serves.
//!
//! Those are sealed segments of the fill log: copies of what the backing devices hold. A block of which
//! the index has nothing is read from its backing device meanwhile, which is right, for no dirty data
//! is among what is missing. Four rules keep it so:
//!
//! * A copy enters the index only where nothing of its block is there, for all that recovery or the
//!   engine placed is newer, or the same; or where what is there will be freed before it. So the index
//!   names the copy that is on the device longest: when that is freed none is left. A copy that is on
//!   its way to the device, a fill or what reclaim moves, would be there longer: then it is left out.
//! * It does not enter where a record that recovery found, or the engine since, made it dead
//!   ([`Warm::killed`]).
//! * As long as there are segments that the index does not cover, "not in the index" does not mean "not
//!   on the device": each write that bypasses the log gets its invalidation.
//! * A segment is not freed before it is covered, or given up.

use super::ops::What;
use super::rebuild::TRIES_MAX;
use super::segments::Cover;
use super::{Cx, Engine};
use crate::format::batch::{Crcs, timeless_mask};
use crate::format::footer::FooterView;
use crate::format::record::Record;
use crate::index::{Entry, Flags, Key};
use crate::plant::Bug;
use crate::ranges::{Range, RangeKind, RangeMap};
use crate::recovery::Deferred;
use forebay_io::{Buf, BufPool, Completion, Lsn};
use std::collections::{BTreeMap, VecDeque};

/// Footers read at once.
const READS_MAX: u32 = 8;
/// Records whose place in the index is read ahead.
const AHEAD: usize = 64;

/// The state of warming.
#[derive(Debug)]
pub(super) struct Warm {
    /// Segments whose footers are to be read, in the order of their seals.
    waiting: VecDeque<u32>,
    reads: u32,
    /// Recovery left something.
    began: bool,
    /// Nothing enters the index any more.
    ended: bool,
    /// Segments that the index does not cover: those that wait, and those that were given up.
    uncovered: usize,
    /// By volume index: what is dead below which LSN.
    killed: BTreeMap<u16, RangeMap>,
}

impl Warm {
    pub(super) fn new(deferred: Deferred) -> Self {
        let uncovered = deferred.segments.len();
        let mut killed = deferred.killed;
        if uncovered == 0 {
            killed.clear();
        }
        let (waiting, began) = (deferred.segments.into(), uncovered > 0);
        Self { waiting, reads: 0, began, ended: false, uncovered, killed }
    }

    /// Whether nothing is under way or to come.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.reads == 0
    }

    /// Whether no read is under way.
    pub(super) const fn resting(&self) -> bool {
        self.reads == 0
    }

    /// Whether the index covers all that is on the device: a block that it has not is not there.
    pub(super) const fn covers_all(&self) -> bool {
        self.uncovered == 0
    }

    /// Whether recovery left something: what it counted of a volume is not all that there is.
    pub(super) const fn began(&self) -> bool {
        self.began
    }

    /// Segments that are still to be read.
    pub(super) fn left(&self) -> u64 {
        self.waiting.len() as u64 + u64::from(self.reads)
    }

    /// Whether copies of a block with this LSN are dead.
    fn is_dead(&self, record: &Record, block: u64) -> bool {
        let killed = self.killed.get(&record.volume).and_then(|killed| killed.get(block));
        killed.is_some_and(|range| record.lsn < range.lsn)
    }
}

impl<B: Buf> Engine<B> {
    /// Reads on.
    pub(super) fn warm_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if self.stopping || self.cache_failed.is_some() {
            // They stay on the device as they are.
            self.warm_give_up();
        }
        while self.warm.reads < READS_MAX
            && let Some(seg) = self.warm.waiting.front().copied()
        {
            if !self.footer_read(cx, seg, What::WarmFooter { seg }) {
                return;
            }
            self.warm.waiting.pop_front();
            self.warm.reads += 1;
        }
    }

    /// Leaves what is still to be read where it is, until it is reclaimed.
    fn warm_give_up(&mut self) {
        self.warm.ended = true;
        self.warm.killed.clear();
        for seg in core::mem::take(&mut self.warm.waiting) {
            if let Some(s) = self.segs.get_mut(seg) {
                s.cover = Cover::Never;
            }
        }
    }

    /// A footer was read: its blocks enter the index.
    pub(super) fn warm_footer<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        done: Completion<B>,
    ) {
        self.segs.reader(seg, -1);
        self.warm.reads -= 1;
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        if self.cache_failed.is_some() {
            self.warm_give_up();
        }
        let (name, seal) = (self.segment_name(seg), self.segs.get(seg).map(|s| s.seal));
        let view = done.buf.as_ref().filter(|_| done.result.is_ok());
        let view = view.and_then(|buf| FooterView::parse(buf.as_slice()));
        let view = view.filter(|view| Some(view.head.name) == name && Some(view.head.seal) == seal);
        let view = match view {
            _ if self.warm.ended => {
                self.set_cover(seg, Cover::Never);
                return;
            }
            None => {
                self.warm_missed(seg);
                return;
            }
            Some(view) => view,
        };
        let mut ahead = view.records();
        let mut whole = true;
        for (at, (_, record, crcs)) in view.records().enumerate() {
            if at % AHEAD == 0 {
                let next = ahead.by_ref().take(AHEAD);
                let keys = next.filter_map(|(_, next, _)| Key::new(next.volume, next.block));
                self.index.prefetch(keys);
            }
            whole &= self.warm_record((seg, view.head.seal), &record, crcs);
        }
        self.warm.uncovered -= usize::from(whole);
        self.set_cover(seg, if whole { Cover::Whole } else { Cover::Never });
    }

    /// A footer was not what it must be: it is read again, or its segment given up.
    fn warm_missed(&mut self, seg: u32) {
        let Some(s) = self.segs.get_mut(seg) else { return };
        s.footer_tries = s.footer_tries.saturating_add(1);
        if s.footer_tries < TRIES_MAX {
            self.warm.waiting.push_front(seg);
            return;
        }
        self.footer_lost(seg);
        self.set_cover(seg, Cover::Never);
    }

    fn set_cover(&mut self, seg: u32, cover: Cover) {
        if let Some(s) = self.segs.get_mut(seg) {
            s.cover = cover;
        }
        if self.warm.is_idle() {
            self.warm.killed.clear();
        }
    }

    /// A record's blocks enter the index. `false` where that does not name what will be on the device
    /// longest.
    fn warm_record(&mut self, (seg, seal): (u32, u64), record: &Record, crcs: Crcs<'_>) -> bool {
        let volume = self.supers.block.volume(record.volume);
        let end = record.block + u64::from(record.blocks);
        let current = volume.is_some_and(|entry| {
            entry.generation == record.generation && end <= entry.size.div_ceil(super::BLOCK)
        });
        let last = u32::from(record.slot) + record.blocks;
        if !current || !record.kind.has_data() || last > self.map.geometry().data_slots() {
            return true;
        }
        let blocks = u64::from(record.blocks);
        let place = self.vols.place_of(record.volume, record.generation);
        let filled = place.filter(|place| self.placed_fills(*place, record.block, blocks, false));
        let mask = timeless_mask(record.lsn.0);
        let first = self.map.slot(seg, record.slot);
        let mut whole = true;
        for ((block, slot), crc) in (record.block..).zip(first..).zip(crcs.iter()) {
            let Some(key) = Key::new(record.volume, block) else { return whole };
            let dead = self.warm.is_dead(record, block) && !self.plant.has(Bug::WarmDead);
            let old = self.index.get(key);
            match old {
                _ if dead => continue,
                Some(_) if self.plant.has(Bug::WarmOverNewer) => {}
                Some(old) if !self.freed_before(old, seal) => continue,
                // Its trim is missing. It is the same data, and the only copy that will be destaged.
                Some(old) if old.flags.dirty() => {
                    whole = false;
                    continue;
                }
                Some(old) if self.reclaims(self.map.segment_of(old.slot)) => {
                    whole = false;
                    continue;
                }
                Some(_) if self.plant.has(Bug::WarmKeepsFirst) => continue,
                None if filled.is_some_and(|place| self.placed_fills(place, block, 1, false)) => {
                    whole = false;
                    continue;
                }
                Some(_) | None => {}
            }
            if self.index.insert(key, slot, Flags::NONE).is_err() {
                self.stats.index_full += 1;
                whole = false;
                continue;
            }
            if let Some(old) = old {
                self.segs.count(self.map.segment_of(old.slot), -1, 0);
            }
            self.folds.set(slot, crc ^ mask);
            self.segs.count(seg, 1, 0);
        }
        whole
    }

    /// Whether what the index names is in a segment that was sealed earlier: when this one was sealed its
    /// copy had replaced that, so that it is at least as new.
    fn freed_before(&self, entry: Entry, seal: u64) -> bool {
        let segment = self.segs.get(self.map.segment_of(entry.slot));
        segment.is_some_and(|s| s.seal != 0 && s.seal < seal)
    }

    /// Copies of these blocks that are not in the index yet are dead.
    pub(super) fn warm_kill(&mut self, volume: u16, first: u64, blocks: u64) {
        if self.warm.is_idle() {
            return;
        }
        let killed = self.warm.killed.entry(volume);
        let killed = killed.or_insert_with(|| RangeMap::new(crate::recovery::MAX_KILLS));
        let (lsn, kind) = (Lsn(u64::MAX), RangeKind::Zeroes);
        if killed.insert(Range { first, blocks, lsn, kind, dirty: false }).is_err() {
            // What is dead is not known any more.
            self.warm_give_up();
        }
    }

    /// A segment is free: whatever it held needs no cover any more.
    pub(super) fn warm_freed(&mut self, seg: u32) {
        if self.segs.get(seg).is_some_and(|s| s.cover != Cover::Whole) {
            self.set_cover(seg, Cover::Whole);
            self.warm.uncovered -= 1;
        }
    }
}
