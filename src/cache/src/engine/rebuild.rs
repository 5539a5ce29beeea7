//! A sealed segment whose footer cannot be read: its records are gathered again from the headers of
//! its batches, block by block, and kept in memory for destage, reclaim and scrub.

use super::ops::What;
use super::segments::State;
use super::types::{BLOCK, BLOCK_LEN};
use super::{Cx, Engine};
use crate::format::batch::BatchView;
use crate::format::segment_log::SegmentLog;
use forebay_io::{Buf, BufPool, Completion, Op};

/// Reads of a footer that find none, and of a header, before it counts as gone.
pub(super) const TRIES_MAX: u8 = 3;

/// A segment that is gone through. One at a time.
#[derive(Debug)]
pub(super) struct Rebuild {
    seg: u32,
    seq: u64,
    /// The slot that is read.
    slot: u16,
    tries: u8,
    /// The number of the last batch found.
    last: u64,
    log: SegmentLog,
}

impl<B: Buf> Engine<B> {
    /// Whether the records of a segment are being gathered, or wait until another's are.
    pub(super) fn waits_for_rebuild(&self, seg: u32) -> bool {
        self.rebuild.is_some()
            && self.segs.get(seg).is_some_and(|s| s.log.is_none() && s.footer_tries >= TRIES_MAX)
    }

    /// The footer of a sealed segment was not what it must be.
    pub(super) fn footer_unread<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, seg: u32) {
        let Some(s) = self.segs.get_mut(seg) else { return };
        if s.state != State::Sealed || s.log.is_some() {
            return;
        }
        s.footer_tries = s.footer_tries.saturating_add(1);
        if s.footer_tries < TRIES_MAX || self.rebuild.is_some() {
            return;
        }
        let seq = s.seq;
        self.footer_lost(seg);
        let log = SegmentLog::new(self.map.geometry());
        self.rebuild = Some(Rebuild { seg, seq, slot: 0, tries: 0, last: 0, log });
        self.rebuild_next(cx);
    }

    /// The footer of a segment is gone; counted once in its life, however often it is asked for.
    pub(super) fn footer_lost(&mut self, seg: u32) {
        if let Some(s) = self.segs.get_mut(seg) {
            self.stats.lost_footers += u64::from(!s.footer_lost);
            s.footer_lost = true;
        }
    }

    /// Reads the next block that may be a header. Without a buffer it is over: the next read of the
    /// footer begins it again.
    fn rebuild_next<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let Some(walk) = self.rebuild.take() else { return };
        if u32::from(walk.slot) >= self.map.geometry().data_slots() {
            return self.rebuilt(walk);
        }
        let at = self.map.slot_offset(self.map.slot(walk.seg, walk.slot));
        let (Some(buf), Some(at)) = (self.alloc(cx, BLOCK), at) else { return };
        self.segs.reader(walk.seg, 1);
        self.rebuild = Some(walk);
        self.cache_op(cx.now, What::Rebuild, Op::read(0, at, BLOCK, buf));
    }

    pub(super) fn rebuild_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        done: Completion<B>,
    ) {
        let Some(mut walk) = self.rebuild.take() else { return };
        self.segs.reader(walk.seg, -1);
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let same = |s: &super::segments::Segment| s.state == State::Sealed && s.seq == walk.seq;
        if self.cache_failed.is_some() || !self.segs.get(walk.seg).is_some_and(same) {
            return;
        }
        let Some(name) = self.segment_name(walk.seg) else { return };
        let data = done.buf.as_ref().filter(|_| done.result.is_ok()).map(Buf::as_slice);
        let view = data.and_then(|data| BatchView::parse(data.get(..BLOCK_LEN)?).ok());
        let view = view.filter(|view| {
            let end = u32::from(walk.slot) + 1 + u32::from(view.blocks);
            view.belongs(&name, walk.slot)
                && view.number > walk.last
                && end <= self.map.geometry().data_slots()
        });
        walk.tries += 1;
        if let Some(view) = view {
            for (record, crcs) in view.records() {
                walk.log.push(&record);
                crcs.iter().for_each(|crc| walk.log.push_crc(crc));
            }
            walk.log.close_batch(view.number);
            walk.last = view.number;
            walk.slot += 1 + view.blocks;
            walk.tries = 0;
        } else if walk.tries >= TRIES_MAX {
            // The header is gone, or there is none here.
            walk.slot += 1;
            walk.tries = 0;
        }
        self.rebuild = Some(walk);
        self.rebuild_next(cx);
    }

    /// All that is left of the segment's records is known. What is dirty and described by none of
    /// them cannot be checked any more: it is lost.
    fn rebuilt(&mut self, walk: Rebuild) {
        let seg = walk.seg;
        for (key, entry) in self.undescribed(seg, &walk.log) {
            let place = self.vols.iter().find(|(_, vol)| vol.index == key.volume());
            if let Some(place) = place.map(|(place, _)| place)
                && entry.flags.dirty()
            {
                self.block_lost(place, key.block(), entry.slot);
            }
        }
        self.segs.keep_log(seg, walk.log);
        if let Some(s) = self.segs.get_mut(seg) {
            s.skip_until = forebay_io::Instant(0);
        }
    }

    /// What the index has of a segment and a log of its records has not. Takes time in proportion to
    /// the cache.
    pub(super) fn undescribed(
        &self,
        seg: u32,
        log: &SegmentLog,
    ) -> Vec<(crate::index::Key, crate::index::Entry)> {
        let first = self.map.slot(seg, 0);
        let mut known = vec![false; self.map.geometry().data_slots() as usize];
        for (record, _) in log.iter().filter(|(record, _)| record.kind.has_data()) {
            let from = usize::from(record.slot);
            if let Some(slots) = known.get_mut(from..from + record.data_blocks()) {
                slots.fill(true);
            }
        }
        let mut found = Vec::new();
        self.index.for_each(|key, entry| {
            let within = entry.slot.checked_sub(first).map(|at| at as usize);
            if self.map.segment_of(entry.slot) == seg
                && within.and_then(|at| known.get(at)) != Some(&true)
            {
                found.push((key, entry));
            }
        });
        found
    }
}
