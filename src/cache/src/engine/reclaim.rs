//! Reclaim: the segment that was sealed first is made free. What is dirty in it is destaged before,
//! or appended again; what was read again is appended again; the rest leaves the cache.
//!
//! The free mark is durable before an entry leaves the index and before the segment is used again,
//! so that "not in the index" means "not on the device" for good.

mod account;

use super::ops::What;
use super::segments::{Cover, State};
use super::types::{BLOCK, BLOCK_LEN};
use super::volume::spare;
use super::{Cx, Engine};
use crate::format::BLOCK as FORMAT_BLOCK;
use crate::format::footer::{FooterView, FreeMark};
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::format::segment_log::SegmentLog;
use crate::index::{Entry, Key};
use crate::plant::Bug;
use forebay_io::crc::block_crc;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Instant, Op};

/// Blocks read to be appended again, at once.
const READS_MAX: usize = 16;

/// Entries of the list of blocks that stay which are gone through before it is tidied.
const ROUND_MAX: usize = 4096;

/// Tries of a dirty block that the device does not give, before it is given up.
const UNREADABLE_MAX: u8 = 20;

/// A block that stays.
#[derive(Clone, Copy, Debug)]
struct Keep {
    place: u16,
    record: Record,
    /// Index of the block in its record.
    at: u32,
    slot: u32,
    crc: u32,
    dirty: bool,
    /// It stays for its volume's minimum, or is pinned.
    kept: bool,
    tries: u8,
    /// Its record is gone: nothing tells whether it is right.
    unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Load,
    Copy,
    /// The copies are on their way; the last batch's ordinal.
    Settle(Option<u64>),
    /// The flush before the mark.
    Before(u64),
    Mark,
    /// The flush after the mark.
    After(u64),
}

/// The state of reclaim.
#[derive(Debug)]
pub(super) struct Reclaim {
    phase: Phase,
    /// A log found no free segment.
    pub(super) wanted: bool,
    seg: u32,
    log: Option<SegmentLog>,
    keep: Vec<Keep>,
    next: usize,
    reads: usize,
    ordinal: Option<u64>,
    /// The footer cannot be read: the records are what the batches' headers still say.
    rebuilt: bool,
    /// The next record, and block of it, whose ranges of zeroes are appended again.
    ranges_at: (u32, u64),
    /// The last journal batch with ranges that were appended again.
    journal: Option<u64>,
    accounting: account::Accounting,
    pub(super) segments: u64,
    pub(super) moved: u64,
    pub(super) evicted: u64,
}

impl Reclaim {
    pub(super) const fn new() -> Self {
        Self {
            phase: Phase::Idle,
            wanted: false,
            seg: 0,
            log: None,
            keep: Vec::new(),
            next: 0,
            reads: 0,
            ordinal: None,
            rebuilt: false,
            ranges_at: (0, 0),
            journal: None,
            accounting: account::Accounting::Marks,
            segments: 0,
            moved: 0,
            evicted: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }
}

impl<B: Buf> Engine<B> {
    /// Whether a segment is being reclaimed: what it holds may be on its way to another place.
    pub(super) fn reclaims(&self, seg: u32) -> bool {
        !self.reclaim.is_idle() && self.reclaim.seg == seg
    }

    /// Reclaim begins below this many free segments.
    pub(super) fn reclaim_from(&self) -> usize {
        (self.segs.len() / 64).clamp(5, 64).min(self.segs.len() / 2)
    }

    /// Takes reclaim as far as it goes now.
    pub(super) fn reclaim_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if self.cache_failed.is_some() {
            return;
        }
        // Bounded: what has to wait for others is taken up at the next step.
        for _ in 0..8 {
            let before = self.reclaim.phase;
            match before {
                Phase::Idle => self.reclaim_begin(cx),
                Phase::Load | Phase::Mark => {}
                Phase::Copy => self.reclaim_copy(cx),
                Phase::Settle(ordinal) => self.reclaim_settle(cx, ordinal),
                Phase::Before(_) if self.plant.has(Bug::NoFreeMark) => self.reclaim_end(),
                Phase::Before(ticket) if self.flush_passed(ticket) => self.mark(cx),
                Phase::After(ticket) if self.flush_passed(ticket) => self.reclaim_end(),
                Phase::Before(_) | Phase::After(_) => {}
            }
            if self.reclaim.phase == before || self.reclaim.phase == Phase::Idle {
                return;
            }
        }
    }

    fn reclaim_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        // A destage round that a stop waits for may still need room for its trims.
        let no_use = self.winds_down() && self.destage.resting();
        if self.segs.free_count() >= self.reclaim_from() || no_use {
            self.reclaim.wanted = false;
            return;
        }
        if self.grows() {
            return;
        }
        let Some(seg) = self.segs.oldest() else { return };
        let Some(s) = self.segs.get(seg) else { return };
        // What the index does not cover yet is read first: warming goes in the same order.
        if s.state != State::Sealed || s.cover == Cover::Later {
            return;
        }
        let (seal, dirty, skip, kept) = (s.seal, s.dirty, s.skip_until, s.kept);
        // Every segment opened before this one's seal needs its footer first.
        let young = self.segs.young();
        let passes = self.plant.has(Bug::ReclaimPassesYoung);
        if young.iter().any(|other| self.segs.get(*other).is_some_and(|s| s.seq < seal)) && !passes
        {
            self.end_before(seal);
            return;
        }
        let pressed = self.segs.free_count() <= super::write::HOST_RESERVE + 1;
        if kept > 0 {
            self.destage.urgent = true;
            if !pressed {
                return;
            }
            self.orders_leave(seg, cx.now);
        }
        if dirty > 0 {
            self.destage.urgent = true;
            // A backing device that does not take its data must not pin the log for ever: what is
            // dirty is appended again, which gains as long as not all of it is.
            let gains = u64::from(dirty) * 4 <= u64::from(self.map.geometry().data_slots()) * 3
                || self.dirty * 10 <= self.segs.data_slots() * 7;
            let comes = skip <= cx.now || self.trims_come();
            if (comes && !self.destage.is_stuck(cx.now)) || !gains || !pressed {
                return;
            }
        }
        if self.waits_for_rebuild(seg) {
            return;
        }
        let kept = self.segs.get(seg).and_then(|s| s.log.clone());
        if let Some(log) = kept {
            self.reclaim.seg = seg;
            self.reclaim_loaded(seg, log, true);
        } else if self.footer_read(cx, seg, What::ReclaimFooter { seg }) {
            self.reclaim.seg = seg;
            self.reclaim.phase = Phase::Load;
        }
    }

    pub(super) fn reclaim_footer<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        done: Completion<B>,
    ) {
        self.segs.reader(seg, -1);
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let name = self.segment_name(seg);
        let view = done.buf.as_ref().filter(|_| done.result.is_ok());
        let view = view.and_then(|buf| FooterView::parse(buf.as_slice()));
        let log = self.reclaim.log.take();
        let mut log = log.unwrap_or_else(|| SegmentLog::new(self.map.geometry()));
        log.clear();
        match view.filter(|view| Some(view.head.name) == name) {
            Some(view) => view.load(&mut log),
            None => {
                self.reclaim.log = Some(log);
                self.reclaim.phase = Phase::Idle;
                self.footer_unread(cx, seg);
                return;
            }
        }
        self.reclaim_loaded(seg, log, false);
    }

    /// The records of the segment are known.
    fn reclaim_loaded(&mut self, seg: u32, log: SegmentLog, rebuilt: bool) {
        self.reclaim.rebuilt = rebuilt;
        self.reclaim.keep.clear();
        (self.reclaim.next, self.reclaim.reads) = (0, 0);
        (self.reclaim.ordinal, self.reclaim.journal) = (None, None);
        self.reclaim.accounting = account::Accounting::Marks;
        self.reclaim.ranges_at = (0, 0);
        self.sort_out(seg, &log);
        if rebuilt {
            self.forget_undescribed(seg, &log);
        }
        self.reclaim.log = Some(log);
        self.reclaim.phase = Phase::Copy;
    }

    /// Blocks whose records are gone: clean ones are dropped, dirty ones lost. That they are is
    /// appended again in their place, with the newest number that may be theirs.
    fn forget_undescribed(&mut self, seg: u32, log: &SegmentLog) {
        for (key, entry) in self.undescribed(seg, log) {
            let vol = self.vols.iter().find(|(_, v)| v.index == key.volume());
            let Some((place, vol)) = vol.filter(|_| entry.flags.dirty()) else {
                self.drop_entry(key, entry);
                continue;
            };
            let record = Record {
                kind: Kind::Write,
                block: key.block(),
                blocks: 1,
                ..Self::commit_record(vol)
            };
            let slot = entry.slot;
            let unknown = true;
            let (crc, dirty, kept, tries) = (0, true, false, 2);
            let keep = Keep { place, record, at: 0, slot, crc, dirty, kept, tries, unknown };
            self.reclaim.keep.push(keep);
            self.block_lost(place, key.block(), slot);
        }
    }

    fn drop_entry(&mut self, key: Key, entry: Entry) {
        if self.index.remove_if_slot(key, entry.slot).is_some() {
            let place = self.vols.iter().find(|(_, v)| v.index == key.volume()).map(|(p, _)| p);
            self.uncount(place.unwrap_or(u16::MAX), entry);
        }
    }

    /// Says of each current block whether it stays.
    fn sort_out(&mut self, seg: u32, log: &SegmentLog) {
        let (holds, mut budget) = self.share_begin();
        for (record, crcs) in log.iter() {
            let Some(place) = self.vols.place_of(record.volume, record.generation) else {
                continue;
            };
            if !record.kind.has_data() {
                continue;
            }
            let first = self.map.slot(seg, record.slot);
            for (at, crc) in (0..record.blocks).zip(crcs) {
                let slot = first + at;
                let Some(key) = self.vols.key(place, record.block + u64::from(at)) else {
                    continue;
                };
                let Some(entry) = self.index.get(key).filter(|entry| entry.slot == slot) else {
                    continue;
                };
                let dirty = entry.flags.dirty();
                let drops = self.plant.has(Bug::ReclaimDropsDirty);
                let stays = if dirty && !drops {
                    Some(false)
                } else {
                    let flags = if self.tier.contains(key) {
                        entry.flags.with_freq(entry.flags.freq().max(1))
                    } else {
                        entry.flags
                    };
                    self.clean_stays((place, key), flags, (holds, budget))
                };
                if let Some(kept) = stays {
                    budget = budget.saturating_sub(u32::from(!dirty && !kept));
                    let (record, crc) = (*record, *crc);
                    let (tries, unknown) = (0, false);
                    let keep = Keep { place, record, at, slot, crc, dirty, kept, tries, unknown };
                    self.reclaim.keep.push(keep);
                }
            }
        }
    }

    fn reclaim_copy<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if self.reclaim.reads == 0 {
            // What was asked again stands behind what is done with: the list must not grow for ever.
            self.reclaim.keep.drain(..self.reclaim.next);
            self.reclaim.next = 0;
        }
        while self.reclaim.reads < READS_MAX
            && (self.reclaim.next < ROUND_MAX || self.reclaim.reads == 0)
            && let Some(keep) = self.reclaim.keep.get(self.reclaim.next).copied()
        {
            if !self.keeps(&keep) {
                self.reclaim.next += 1;
                continue;
            }
            let (Some(buf), Some(at)) = (self.alloc(cx, BLOCK), self.map.slot_offset(keep.slot))
            else {
                return;
            };
            self.segs.reader(self.reclaim.seg, 1);
            let index = u32::try_from(self.reclaim.next).unwrap_or(u32::MAX);
            self.reclaim.next += 1;
            self.reclaim.reads += 1;
            self.cache_op(cx.now, What::ReclaimRead { at: index }, Op::read(0, at, BLOCK, buf));
        }
        if self.reclaim.reads > 0 || self.reclaim.next < self.reclaim.keep.len() {
            return;
        }
        if !self.move_ranges(cx) || !self.account(cx) {
            return;
        }
        self.close_batch(LogStream::Reinsert);
        self.pump(cx.now, LogStream::Reinsert);
        self.reclaim.phase = Phase::Settle(self.reclaim.ordinal);
    }

    /// Whether the log so far says of the version in this slot that it is dirty.
    fn is_dirty_in_log(&self, place: u16, block: u64, slot: u32) -> bool {
        let entry = self.vols.key(place, block).and_then(|key| self.index.get(key));
        entry.is_some_and(|entry| entry.slot == slot && entry.flags.dirty())
            && !self.destage.has_trimmed(
                place,
                block,
                (slot, self.segs.life(self.map.segment_of(slot))),
            )
    }

    /// Whether a block is still current where it was.
    fn keeps(&self, keep: &Keep) -> bool {
        let key = self.vols.key(keep.place, keep.record.block + u64::from(keep.at));
        key.and_then(|key| self.index.get(key)).is_some_and(|entry| entry.slot == keep.slot)
    }

    pub(super) fn reclaim_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        at: u32,
        done: Completion<B>,
    ) {
        self.reclaim.reads -= 1;
        self.segs.reader(self.reclaim.seg, -1);
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let Some(keep) = self.reclaim.keep.get(at as usize).copied() else { return };
        if !self.keeps(&keep) {
            return;
        }
        let block = keep.record.block + u64::from(keep.at);
        let Some((index, generation, key)) =
            self.vols.get(keep.place).map(|vol| (vol.index, vol.generation, vol.key))
        else {
            return;
        };
        let data = done.buf.as_ref().filter(|_| done.result.is_ok()).map(Buf::as_slice);
        let data = data.and_then(|data| data.get(..BLOCK_LEN));
        let good = data
            .is_some_and(|data| block_crc(key, block, keep.record.lsn.0, data) == keep.crc)
            || (self.plant.has(Bug::NoCrcOnReclaim) && data.is_some());
        let most = if keep.dirty && done.result.is_err() { UNREADABLE_MAX } else { 2 };
        let good = good && !keep.unknown;
        if !good && keep.tries < most {
            // Read again, at the end of the list.
            self.reclaim.keep.push(Keep { tries: keep.tries + 1, ..keep });
            return;
        }
        if !good && !keep.dirty {
            return;
        }
        if self.vols.get(keep.place).is_some_and(|vol| vol.in_flight(block, 1)) {
            // A newer version is in flight: it replaces this one, or this is asked again.
            if keep.dirty {
                self.reclaim.keep.push(keep);
            }
            return;
        }
        if !good {
            self.block_lost(keep.place, block, keep.slot);
        }
        // What was destaged meanwhile, and is trimmed in front of this copy, must not come back dirty.
        let dirty = keep.dirty && self.is_dirty_in_log(keep.place, block, keep.slot);
        let record = Record {
            moved: true,
            clean: !dirty,
            volume: index,
            generation,
            block,
            blocks: 1,
            slot: 0,
            ..keep.record
        };
        // Bad dirty data must stay bad: with another seed its CRC never matches.
        let seed = if good || self.plant.has(Bug::MovedLossIsGood) { key } else { !key };
        let zeroes = [0u8; BLOCK_LEN];
        let data = data.unwrap_or(&zeroes);
        if self.room(cx, LogStream::Reinsert, 0).is_none() {
            // What is clean by now can be left behind: asked again it would wait for room for ever.
            // What a volume keeps waits as long as it is only its turn that has not come.
            if dirty || (keep.kept && self.segs.free_count() > 0) {
                self.reclaim.keep.push(keep);
            }
            return;
        }
        let placed = self.append_data(LogStream::Reinsert, &record, seed, data, Some(keep.slot));
        if let Some((_, seg, ordinal)) = placed {
            self.reclaim.ordinal = Some(ordinal);
            self.reclaim.moved += 1;
            self.older(seg);
        }
    }

    /// A segment that takes moved data is as old as the data.
    fn older(&mut self, seg: u32) {
        let since = self.segs.get(self.reclaim.seg).map_or(Instant(0), |s| s.since);
        if let Some(s) = self.segs.get_mut(seg) {
            s.since = s.since.min(since);
        }
    }

    /// Appends again the ranges of zeroes that are not destaged and that only this segment records,
    /// without the blocks that have a newer version on its way: it waits for those. `false` while
    /// that, or room, is missing; each piece is appended once.
    fn move_ranges<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) -> bool {
        let Some(log) = self.reclaim.log.take() else { return true };
        let mut done = true;
        while done && self.reclaim.ranges_at.0 < log.len() {
            let (entry, from) = self.reclaim.ranges_at;
            let piece = log.get(entry).and_then(|(record, _)| self.next_piece(record, from));
            let Some((piece, place)) = piece else {
                self.reclaim.ranges_at = (entry + 1, 0);
                continue;
            };
            let (block, blocks) = (piece.block, u64::from(piece.blocks));
            let busy = self.vols.get(place).is_some_and(|vol| vol.in_flight(block, blocks));
            let placed =
                if busy { None } else { self.append_mark(cx, LogStream::Journal, 0, &piece) };
            match placed {
                Some((ordinal, _)) => {
                    self.reclaim.journal = self.reclaim.journal.max(Some(ordinal));
                    self.reclaim.ranges_at = (entry, block + blocks);
                }
                None => done = false,
            }
        }
        self.reclaim.log = Some(log);
        done
    }

    /// The first piece, from a block on, of what a record of zeroes still has to give to the backing
    /// device.
    fn next_piece(&self, record: &Record, from: u64) -> Option<(Record, u16)> {
        if !matches!(record.kind, Kind::Zeroes | Kind::Discard) {
            return None;
        }
        let place = self.vols.place_of(record.volume, record.generation)?;
        let (mut at, end) = (from.max(record.block), record.block + u64::from(record.blocks));
        let vol = self.vols.get(place)?;
        loop {
            let mut ranges = vol.ranges.overlapping(at, end.checked_sub(at)?);
            let range = ranges.find(|range| range.lsn == record.lsn && range.dirty)?;
            let (block, mut blocks) = (range.first, range.blocks);
            // Behind its trim it would be dirty again after a crash; the backing device has it.
            match self.destage.trimmed(place, block, blocks, record.lsn.0) {
                Some((first, end)) if first <= block => {
                    at = end;
                    continue;
                }
                Some((first, _)) => blocks = first - block,
                None => {}
            }
            let blocks = u32::try_from(blocks).ok()?;
            return Some((Record { moved: true, block, blocks, ..*record }, place));
        }
    }

    /// Moved blocks are on the device in their new place.
    pub(super) fn moved_counts(&mut self, record: &Record, seg: u32, from: &[u32]) {
        let Some(place) = self.vols.place_of(record.volume, record.generation) else { return };
        let first = self.map.slot(seg, record.slot);
        for ((slot, block), old) in (first..).zip(record.block..).zip(from) {
            let Some(key) = self.vols.key(place, block) else { return };
            let Some(entry) = self.index.get(key).filter(|entry| entry.slot == *old) else {
                continue;
            };
            let freq = entry.flags.freq().saturating_sub(1);
            // That the backing device took it is noted of the old slot: in the new one it is destaged
            // again, or nobody would ever call it clean.
            let kept = if self.plant.has(Bug::MovedWritten) { spare::WRITTEN } else { 0 };
            let spare = entry.flags.spare() & (!spare::WRITTEN | kept);
            let flags = entry.flags.with_freq(freq).with_spare(spare);
            if self.index.insert(key, slot, flags).is_ok() {
                let dirty = i32::from(flags.dirty());
                self.segs.count(self.map.segment_of(*old), -1, -dirty);
                self.segs.count(seg, 1, dirty);
                if flags.dirty() {
                    self.order_moved(place);
                }
            }
        }
    }

    /// Once the copies are durable and nothing dirty or in flight is left, the mark may go.
    fn reclaim_settle<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, ordinal: Option<u64>) {
        let waits = |kind: LogStream, ordinal: Option<u64>| {
            ordinal.is_some_and(|at| self.streams[usize::from(kind.code())].durable <= at)
        };
        if waits(LogStream::Reinsert, ordinal) || waits(LogStream::Journal, self.reclaim.journal) {
            return;
        }
        let seg = self.reclaim.seg;
        let drops = self.plant.has(Bug::ReclaimDropsDirty);
        if self.segs.get(seg).is_some_and(|s| s.kept > 0) {
            self.orders_leave(seg, cx.now);
        }
        if self.segs.get(seg).is_some_and(|s| s.dirty > 0) && !drops {
            // What was in flight, or found no room, once more.
            if let Some(log) = self.reclaim.log.take() {
                self.reclaim.keep.clear();
                self.reclaim.next = 0;
                self.sort_out(seg, &log);
                self.reclaim.keep.retain(|keep| keep.dirty || keep.kept);
                if self.reclaim.rebuilt {
                    self.forget_undescribed(seg, &log);
                }
                self.reclaim.log = Some(log);
                self.reclaim.ordinal = None;
                self.reclaim.phase = Phase::Copy;
            }
            return;
        }
        if self.replaced_in_flight(seg) {
            return;
        }
        let ticket = self.flush_ticket();
        self.flush_pump(cx.now);
        self.reclaim.phase = Phase::Before(ticket);
    }

    /// Whether a record that is placed and not committed replaces a block that is current here.
    fn replaced_in_flight(&self, seg: u32) -> bool {
        self.vols.iter().any(|(_, vol)| {
            vol.pending.iter().any(|pending| {
                (pending.block..pending.block + pending.blocks).any(|block| {
                    Key::new(vol.index, block)
                        .and_then(|key| self.index.get(key))
                        .is_some_and(|entry| self.map.segment_of(entry.slot) == seg)
                })
            })
        })
    }

    fn mark<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let seg = self.reclaim.seg;
        let Some(mut buf) = self.alloc(cx, BLOCK) else { return };
        let built = (|| {
            let name = self.segment_name(seg)?;
            let seal = self.segs.get(seg)?.seal;
            let out = buf.as_mut_slice()?.first_chunk_mut::<FORMAT_BLOCK>()?;
            FreeMark { name, seal }.encode(out);
            self.map.segment_offset(seg)
        })();
        let Some(start) = built else { return };
        let at = start + u64::from(self.map.geometry().mark_slot()) * BLOCK;
        self.stats.mark_bytes += BLOCK;
        self.reclaim.phase = Phase::Mark;
        self.cache_op(cx.now, What::FreeMark, Op::write(0, at, BLOCK, buf));
    }

    pub(super) fn mark_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        result: Result<(), DeviceError>,
    ) {
        match result {
            Ok(()) => {
                let ticket = self.flush_ticket();
                self.flush_pump(cx.now);
                self.reclaim.phase = Phase::After(ticket);
            }
            Err(error) => {
                self.mark_errors += 1;
                let last = self.mark_errors >= 3;
                self.cache_error(cx, error, last);
                self.reclaim.phase = Phase::Before(0);
            }
        }
    }

    /// The mark is durable: what is still named here leaves the index, and the segment is free.
    fn reclaim_end(&mut self) {
        let seg = self.reclaim.seg;
        self.mark_errors = 0;
        if let Some(log) = self.reclaim.log.take() {
            for (record, _) in log.iter().filter(|(record, _)| record.kind.has_data()) {
                let first = self.map.slot(seg, record.slot);
                for (slot, at) in (first..).zip(0..u64::from(record.blocks)) {
                    let Some(key) = Key::new(record.volume, record.block + at) else { continue };
                    if let Some(flags) = self.index.remove_if_slot(key, slot) {
                        self.reclaim.evicted += 1;
                        let place = self.vols.place_of(record.volume, record.generation);
                        self.uncount(place.unwrap_or(u16::MAX), Entry { slot, flags });
                    }
                }
            }
            self.reclaim.log = Some(log);
        }
        self.reclaim.segments += 1;
        self.warm_freed(seg);
        self.segs.freed(seg);
        self.reclaim.phase = Phase::Idle;
    }
}
