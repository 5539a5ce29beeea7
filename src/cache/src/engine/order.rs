//! `write-back-ordered`: destage goes batch by batch, so that the backing device alone is a prefix of
//! the acknowledged writes whenever no batch is being destaged.
//!
//! There is one boundary per volume: the end of the batch that is under way. It is the committed
//! number at the moment the batch is closed; what commits later belongs to the open batch, of which
//! nothing is written to the backing device before all of this one is there, flushed and trimmed. A
//! version that a later write replaces while its batch is under way is kept (a bit for its slot) until
//! it is destaged; one that is replaced inside the open batch is not: that is the coalescing.
//!
//! A batch may be extended to what is committed now at any time before it is complete: it then ends
//! later, and nothing has to be kept for it. That is how the mode is entered with dirty data, how
//! recovery goes on, and what is done where kept versions stand in the way of reclaim.

mod journal;

pub use journal::OrderJournalStats;
pub(super) use journal::{Journal, Step};

use super::Engine;
use super::types::{BLOCK, CacheMode};
use super::volume::{Volume, spare};
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::index::Entry;
use crate::plant::Bug;
use crate::ranges::RangeMap;
use forebay_io::{Buf, Duration, Instant, Lsn};

/// A volume of which a round could do nothing is left alone for this long.
const SKIP: Duration = Duration::from_millis(200);
/// Rounds in which the cache device refuses to read a version before it counts as lost.
const UNREADABLE_MAX: u8 = 20;

/// What holds of a backing device in `write-back-ordered`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// The backing device is no known prefix: the mode was just entered, or the engine just started,
    /// with dirty data, and the first batch is not complete; or the mode is being left; or the cache
    /// device failed; or dirty data was damaged.
    NotYet,
    /// The backing device holds all changes up to this number and nothing of any later one.
    Prefix(Lsn),
    /// A batch is being written: the backing device holds all changes up to the first number, some up
    /// to the second and nothing of any later one.
    Destaging(Lsn, Lsn),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Writes that reach the backing device by themselves are still under way.
    Entering,
    /// Nothing is being destaged.
    Open,
    /// A batch is being destaged.
    Batch,
}

/// A segment that held dirty data of a batch when it was closed.
#[derive(Clone, Copy, Debug)]
struct Part {
    seg: u32,
    seq: u64,
    /// Slots from this one on, in the segment, are of later changes.
    limit: u32,
}

/// The order of one volume.
pub(super) struct Order {
    phase: Phase,
    /// The backing device is the prefix up to here, but for the batch under way.
    held: Option<u64>,
    /// The last number of the batch under way.
    end: u64,
    /// By segment number.
    parts: Vec<Part>,
    /// For each slot of the parts: kept, though a later change replaced it.
    bits: Vec<u64>,
    /// The same, of versions that are in the ordered journal.
    gathered: Vec<u64>,
    kept: u64,
    /// Segments that still have to be gone through, oldest first.
    queue: Vec<u32>,
    /// Ranges of zeroes of the batch that are not destaged.
    zeroes: RangeMap,
    /// Segments of the queue that the round under way goes through, the blocks that it found there,
    /// and those that were written.
    taken: Vec<u32>,
    chosen: usize,
    finished: usize,
    zeroed: bool,
    /// It takes part in the round under way.
    joins: bool,
    /// A segment could not be read, or the backing device was not flushed.
    failed: bool,
    /// A backing write of this batch was begun.
    writing: bool,
    /// A version was lost.
    holed: bool,
    /// The batch must be extended before it can be complete.
    extend: bool,
    /// Of the open batch: its blocks, when its first change was committed, whether a host's Flush
    /// wants it closed.
    open_blocks: u64,
    open_since: Option<Instant>,
    flush: bool,
    retry_at: Instant,
    unreadable: u8,
}

impl Order {
    fn new() -> Self {
        Self {
            phase: Phase::Entering,
            held: None,
            end: 0,
            parts: Vec::new(),
            bits: Vec::new(),
            gathered: Vec::new(),
            kept: 0,
            queue: Vec::new(),
            zeroes: RangeMap::new(usize::MAX),
            taken: Vec::new(),
            chosen: 0,
            finished: 0,
            zeroed: false,
            joins: false,
            failed: false,
            writing: false,
            holed: false,
            extend: false,
            open_blocks: 0,
            open_since: None,
            flush: false,
            retry_at: Instant(0),
            unreadable: 0,
        }
    }

    /// The order of a volume that enters, or is added in, a mode; `None` where that has none.
    pub(super) fn of(mode: CacheMode) -> Option<Box<Self>> {
        (mode == CacheMode::WriteBackOrdered).then(|| Box::new(Self::new()))
    }

    /// A host's Flush closes the open batch, if it holds anything.
    pub(super) const fn flushed(&mut self) {
        self.flush |= self.open_since.is_some();
    }

    /// Blocks were committed.
    pub(super) fn committed(&mut self, now: Instant, blocks: u64) {
        self.open_blocks += blocks;
        self.open_since.get_or_insert(now);
    }

    /// The batch that is being destaged: its last number.
    pub(super) fn batch(&self) -> Option<u64> {
        (self.phase == Phase::Batch).then_some(self.end)
    }

    pub(super) const fn zeroes(&self) -> &RangeMap {
        &self.zeroes
    }

    pub(super) const fn kept(&self) -> u64 {
        self.kept
    }

    pub(super) const fn writes(&mut self) {
        self.writing = true;
    }

    pub(super) const fn chose(&mut self) {
        self.chosen += 1;
    }

    pub(super) const fn finished(&mut self, blocks: usize) {
        self.finished += blocks;
    }

    /// The flush of what a round wrote failed.
    pub(super) const fn unflushed(&mut self) {
        self.failed = true;
    }

    fn bit(&self, seg: u32, slot: u16, words: usize) -> Option<(usize, u64)> {
        let at = self.parts.binary_search_by_key(&seg, |part| part.seg).ok()?;
        Some((at * words + usize::from(slot) / 64, 1 << (slot % 64)))
    }

    fn due(&self, now: Instant, age: Duration, bytes: u64, pressed: bool) -> bool {
        self.open_since.is_some_and(|since| {
            self.flush || pressed || now.since(since) >= age || self.open_blocks * BLOCK >= bytes
        })
    }

    fn state(&self) -> OrderState {
        match (self.phase, self.held) {
            (Phase::Entering, _) | (_, None) => OrderState::NotYet,
            (Phase::Batch, Some(from)) if self.writing => {
                OrderState::Destaging(Lsn(from), Lsn(self.end))
            }
            (_, Some(at)) => OrderState::Prefix(Lsn(at)),
        }
    }
}

impl Volume {
    /// What holds of the backing device; `None` in other modes.
    pub(super) fn order_state(&self) -> Option<OrderState> {
        let ordered = self.mode == CacheMode::WriteBackOrdered;
        ordered.then(|| self.order.as_ref().map_or(OrderState::NotYet, |order| order.state()))
    }

    /// Whether its dirty data goes to the backing device in batches.
    pub(super) fn in_batches(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.phase != Phase::Entering)
    }
}

impl<B: Buf> Engine<B> {
    fn words(&self) -> usize {
        (self.map.geometry().segment_slots() as usize).div_ceil(64)
    }

    /// Begins, ends and extends batches. Called while no round of destage is under way.
    pub(super) fn orders_step(&mut self, now: Instant) {
        let pressed = self.destage.urgent
            || self.dirty_level() >= u64::from(self.limits.destage_from) * 10
            || self.oldest.is_some_and(|at| now.since(at) >= self.limits.dirty_age);
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get_mut(place) else { continue };
            let pressed = pressed || vol.wants_clean();
            let (clean, lost, direct) = (vol.clean(), vol.lost_blocks > 0, vol.direct);
            let (committed, attached) = (vol.committed, vol.attached);
            let journal = vol.order_journal.as_ref();
            let most = journal.map_or(u64::MAX, |journal| journal.capacity() / 2 * BLOCK);
            let waits = journal.is_some_and(|journal| journal.retry_at() > now);
            if vol.journal_busy() {
                continue;
            }
            let Some(order) = vol.order.as_mut() else { continue };
            match order.phase {
                Phase::Entering if direct > 0 || !attached => continue,
                Phase::Entering if clean => {
                    (order.phase, order.held) = (Phase::Open, Some(committed));
                    continue;
                }
                Phase::Entering => self.order_extend(place, now),
                Phase::Batch if order.extend && waits => continue,
                Phase::Batch if order.extend => self.order_extend(place, now),
                Phase::Batch if order.queue.is_empty() && order.zeroes.is_empty() => {
                    let whole = !order.holed && !lost;
                    if self.journal_commit(place, whole) {
                        continue;
                    }
                    let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut())
                    else {
                        continue;
                    };
                    order.held = whole.then_some(order.end);
                    order.phase = Phase::Open;
                    self.order_release(place);
                }
                Phase::Batch | Phase::Open => {}
            }
            let limits = self.limits;
            let order = self.vols.get(place).and_then(|vol| vol.order.as_ref());
            // At a clean stop the batch under way is completed, and no other begun.
            if order.is_some_and(|order| {
                order.phase == Phase::Open
                    && !self.stopping
                    && order.due(now, limits.batch_age, limits.batch_bytes.min(most), pressed)
            }) {
                self.order_extend(place, now);
            }
        }
    }

    /// When a batch is to be closed, or gone on with.
    pub(super) fn orders_deadline(&self) -> Instant {
        let mut at = Instant::NEVER;
        for (_, vol) in self.vols.iter().filter(|(_, vol)| !vol.journal_busy()) {
            let Some(order) = vol.order.as_ref() else { continue };
            let due = match (order.phase, order.open_since) {
                (Phase::Open, Some(_)) if order.flush => Some(self.last_poll),
                (Phase::Open, since) => since.map(|since| since + self.limits.batch_age),
                (Phase::Batch, _) if self.destage.resting() => {
                    Some(order.retry_at.max(self.last_poll))
                }
                _ => None,
            };
            at = due.map_or(at, |due| at.min(due));
        }
        at
    }

    /// Whether a batch waits for a round of destage.
    pub(super) fn orders_want(&self, now: Instant) -> bool {
        self.vols.iter().any(|(_, vol)| {
            vol.order
                .as_ref()
                .is_some_and(|order| order.phase == Phase::Batch && order.retry_at <= now)
                && !vol.journal_busy()
        })
    }

    /// How much of the log lies behind the first segment that a batch needs, in thousandths of what
    /// there may be: segments are freed in their order, and hosts that fill the log faster than batches
    /// are completed must slow down before it is full. (Not for a backing device that fails: its
    /// batches become one.)
    pub(super) fn orders_level(&self) -> u64 {
        let most = self.segs.len().saturating_sub(2 * super::write::HOST_RESERVE).max(1) as u64;
        let mut level = 0;
        for (_, vol) in self.vols.iter() {
            let Some(order) = vol.order.as_ref().filter(|order| order.phase == Phase::Batch) else {
                continue;
            };
            let failing = vol.health.failing.is_some() || vol.health.hanging.is_some();
            if let Some(s) = order.queue.first().and_then(|seg| self.segs.get(*seg))
                && !failing
            {
                level = level.max((self.segs.opened - s.ordinal) * 1000 / most);
            }
        }
        level
    }

    /// Closes the open batch at what is committed now; one that is under way ends there then.
    fn order_extend(&mut self, place: u16, now: Instant) {
        self.order_release(place);
        let words = self.words();
        let Some(vol) = self.vols.get_mut(place) else { return };
        let fits = vol.fits_journal();
        if let Some(journal) = vol.order_journal.as_mut()
            && !self.plant.has(Bug::JournalNotAnew)
        {
            journal.restart();
        }
        if let Some(order) = vol.order.as_mut().filter(|_| !fits) {
            // More is dirty than one batch may have: it goes to the backing device in no order first.
            (order.phase, order.held, order.extend) = (Phase::Entering, None, false);
            self.destage.urgent = true;
            return;
        }
        let Some(mut order) = vol.order.take() else { return };
        let first = vol.pending.iter().find(|p| p.kind == Kind::Write);
        let first = first.map(|p| (p.seg, self.map.slot_in_segment(p.slot)));
        let began = first.and_then(|(seg, _)| self.segs.get(seg)).map_or(u64::MAX, |s| s.seq);
        order.zeroes.clear();
        for range in vol.ranges.iter().filter(|range| range.dirty) {
            // A map without a bound is never full.
            let _ = order.zeroes.insert(range);
        }
        let young = self.segs.young().iter().copied();
        // Those whose footer is being written are among the sealed ones.
        let young = young.filter(|seg| self.segs.get(*seg).is_some_and(|s| s.seal == 0));
        for seg in self.segs.sealed_iter().chain(young) {
            let Some(s) = self.segs.get(seg).filter(|s| s.dirty > 0) else { continue };
            let limit = match (s.stream, &s.log, first) {
                (LogStream::Journal, Some(_), Some((at, slot))) if at == seg => u32::from(slot),
                (LogStream::Journal, Some(_), Some(_)) if s.seq > began => 0,
                (LogStream::Journal, Some(log), None) => {
                    let last = log.iter().filter(|(record, _)| record.kind.has_data()).last();
                    last.map_or(0, |(record, _)| u32::from(record.slot) + record.blocks)
                }
                _ => u32::MAX,
            };
            order.parts.push(Part { seg, seq: s.seq, limit });
            order.queue.push(seg);
        }
        order.parts.sort_unstable_by_key(|part| part.seg);
        order.bits.resize(order.parts.len() * words, 0);
        if vol.order_journal.is_some() {
            order.gathered.resize(order.bits.len(), 0);
        }
        if order.phase != Phase::Batch {
            (order.writing, order.holed) = (false, false);
        }
        (order.phase, order.end, order.extend) = (Phase::Batch, vol.committed, false);
        (order.open_blocks, order.open_since, order.flush) = (0, None, false);
        (order.retry_at, order.unreadable) = (now, 0);
        vol.order = Some(order);
    }

    /// Gives up what is kept for a volume's batch.
    fn order_release(&mut self, place: u16) {
        let words = self.words();
        let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) else {
            return;
        };
        for (part, bits) in order.parts.iter().zip(order.bits.chunks(words)) {
            let kept: u32 = bits.iter().map(|word| word.count_ones()).sum();
            if let Some(s) = self.segs.get_mut(part.seg) {
                s.kept = s.kept.saturating_sub(kept);
            }
        }
        self.kept = self.kept.saturating_sub(order.kept);
        order.kept = 0;
        order.parts.clear();
        order.bits.clear();
        order.gathered.clear();
        order.queue.clear();
        order.taken.clear();
        order.zeroes.clear();
    }

    /// A volume takes up, or gives up, its order.
    pub(super) fn order_set(&mut self, place: u16, order: Option<Box<Order>>) {
        self.order_release(place);
        if let Some(vol) = self.vols.get_mut(place) {
            vol.order = order;
        }
    }

    /// Extends the batches that keep something in a segment, so that it may be freed.
    pub(super) fn orders_leave(&mut self, seg: u32, now: Instant) {
        let words = self.words();
        for place in 0..self.vols.bound() {
            let order = self.vols.get(place).and_then(|vol| vol.order.as_ref());
            let keeps = order.is_some_and(|order| {
                let at = order.parts.binary_search_by_key(&seg, |part| part.seg);
                let bits = at.ok().and_then(|at| order.bits.get(at * words..(at + 1) * words));
                bits.is_some_and(|bits| bits.iter().any(|word| *word != 0))
            });
            if !keeps {
                continue;
            }
            if self.vols.get(place).is_some_and(Volume::in_journal) {
                // What is on its way to the journal ends before the batch begins anew there.
                self.order_release(place);
                if let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) {
                    order.extend = true;
                }
            } else {
                self.order_extend(place, now);
            }
        }
    }

    /// Dirty data was moved: the batch finds it in another segment.
    pub(super) fn order_moved(&mut self, place: u16) {
        if let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) {
            order.extend |= order.phase == Phase::Batch;
        }
        self.order_left(place);
    }

    /// What a batch wrote may be dirty still, as its trim was not appended after the batch was complete in
    /// the ordered journal: the next batch has it once more.
    pub(super) fn order_left(&mut self, place: u16) {
        let now = self.last_poll;
        let Some(vol) = self.vols.get_mut(place).filter(|vol| vol.in_journal()) else { return };
        let Some(order) = vol.order.as_mut() else { return };
        match order.phase {
            Phase::Batch => order.extend = true,
            Phase::Open => {
                order.open_since.get_or_insert(now);
            }
            Phase::Entering => {}
        }
    }

    /// A later change replaces what the index named. If that is of the batch under way, it is kept.
    pub(super) fn order_replaced(&mut self, place: u16, old: Entry) {
        let words = self.words();
        let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) else {
            return;
        };
        if order.phase != Phase::Batch || !old.flags.dirty() {
            return;
        }
        let (seg, slot) = (self.map.segment_of(old.slot), self.map.slot_in_segment(old.slot));
        let part = order.parts.binary_search_by_key(&seg, |part| part.seg).ok();
        let part = part.and_then(|at| order.parts.get(at));
        let (Some(part), Some(s)) = (part, self.segs.get_mut(seg)) else { return };
        if part.seq != s.seq || u32::from(slot) >= part.limit {
            return;
        }
        let Some((at, mask)) = order.bit(seg, slot, words) else { return };
        if order.gathered.get(at).is_some_and(|word| word & mask != 0) {
            // The journal has it.
            return;
        }
        if old.flags.spare() & spare::BAD != 0 {
            // It was lost, and is no longer counted as lost: the batch ends without it.
            order.holed = true;
            return;
        }
        if s.stream != LogStream::Journal && s.seal == 0 {
            // A footer that comes later than that of the change which replaces this must not name it:
            // segments are freed in the order of their seals, and a crash would bring it back.
            order.extend = true;
            return;
        }
        if let Some(word) = order.bits.get_mut(at).filter(|word| **word & mask == 0) {
            *word |= mask;
            order.kept += 1;
            s.kept += 1;
            self.kept += 1;
        }
    }

    /// Whether a version that is no longer current is kept for its batch.
    pub(super) fn order_keeps(&self, place: u16, slot: u32) -> bool {
        let Some(order) = self.vols.get(place).and_then(|vol| vol.order.as_ref()) else {
            return false;
        };
        let (seg, within) = (self.map.segment_of(slot), self.map.slot_in_segment(slot));
        order.kept > 0
            && order
                .bit(seg, within, self.words())
                .is_some_and(|(at, mask)| order.bits.get(at).is_some_and(|word| *word & mask != 0))
    }

    /// The same of a record's block.
    pub(super) fn order_keeps_record(&self, record: &Record, slot: u32) -> bool {
        self.kept > 0
            && self
                .vols
                .place_of(record.volume, record.generation)
                .is_some_and(|place| self.order_keeps(place, slot))
    }

    /// A kept version is on the backing device, or lost.
    pub(super) fn order_done(&mut self, place: u16, slot: u32) {
        if !self.order_keeps(place, slot) {
            return;
        }
        let words = self.words();
        let (seg, within) = (self.map.segment_of(slot), self.map.slot_in_segment(slot));
        let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) else {
            return;
        };
        if let Some((at, mask)) = order.bit(seg, within, words)
            && let Some(word) = order.bits.get_mut(at)
        {
            *word &= !mask;
            order.kept = order.kept.saturating_sub(1);
            self.kept = self.kept.saturating_sub(1);
            if let Some(s) = self.segs.get_mut(seg) {
                s.kept = s.kept.saturating_sub(1);
            }
        }
    }

    /// A version of a batch cannot be read: `true` once it counts as lost. A kept one is dropped; a
    /// batch without it is no prefix.
    pub(super) fn order_unreadable(&mut self, place: u16, slot: u32, damaged: bool) -> bool {
        let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) else {
            return damaged;
        };
        order.unreadable = order.unreadable.saturating_add(1);
        let lost = damaged || order.unreadable >= UNREADABLE_MAX;
        if lost {
            (order.holed, order.unreadable) = (true, 0);
            self.order_done(place, slot);
        }
        lost
    }

    /// The next segments of each batch join those of a round.
    pub(super) fn orders_pick(&mut self, now: Instant, most: usize, picked: &mut Vec<u32>) {
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get_mut(place) else { continue };
            let willing = vol.health.failing.is_none() || vol.health.retry_at <= now;
            let willing = willing && !vol.journal_busy();
            let Some(order) = vol.order.as_mut() else { continue };
            order.taken.clear();
            (order.chosen, order.finished) = (0, 0);
            (order.zeroed, order.failed, order.joins) = (false, false, false);
            if order.phase != Phase::Batch || order.retry_at > now || !willing {
                continue;
            }
            order.joins = true;
            let mut at = 0;
            while order.taken.len() < most
                && let Some(seg) = order.queue.get(at).copied()
            {
                let part = order.parts.binary_search_by_key(&seg, |part| part.seg).ok();
                let part = part.and_then(|at| order.parts.get(at));
                let there = part
                    .zip(self.segs.get(seg))
                    .is_some_and(|(part, s)| part.seq == s.seq && (s.kept > 0 || s.dirty > 0));
                if !there {
                    // It holds nothing of the batch any more, or was freed.
                    order.queue.remove(at);
                    continue;
                }
                at += 1;
                order.taken.push(seg);
                if !picked.contains(&seg) {
                    picked.push(seg);
                }
            }
        }
    }

    /// A segment could not be gone through in this round.
    pub(super) fn orders_missed(&mut self, seg: u32) {
        for (_, vol) in self.vols.iter_mut() {
            if let Some(order) = vol.order.as_mut() {
                order.failed |= order.taken.contains(&seg);
            }
        }
    }

    /// A round ended: where all that it found of a batch is done, so are the segments.
    pub(super) fn orders_settle(&mut self, now: Instant) {
        for place in 0..self.vols.bound() {
            let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) else {
                continue;
            };
            if order.phase != Phase::Batch {
                continue;
            }
            let before = order.queue.len();
            if order.finished >= order.chosen && !order.failed {
                let Order { queue, taken, .. } = &mut **order;
                queue.retain(|seg| !taken.contains(seg));
            }
            if order.finished > 0 || order.zeroed {
                order.unreadable = 0;
            } else if order.joins && order.queue.len() == before {
                // (A round without it says nothing, and must not put it off again and again.)
                order.retry_at = now + SKIP;
            }
            order.taken.clear();
        }
    }

    /// A range of zeroes of a batch is on the backing device.
    pub(super) fn order_zeroed(&mut self, place: u16, first: u64, blocks: u64, lsn: u64) {
        if let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) {
            order.zeroed = true;
            let _ = order.zeroes.punch(first, blocks, Lsn(lsn + 1));
        }
    }
}
