//! One backing write of destage: its blocks are read from the cache device, checked, and written.

use super::{Candidate, RUN_MAX, Run, TRIES_MAX, Written, ZEROES_WRITE_MAX, Zeroes};
use crate::engine::ops::What;
use crate::engine::slab::Handle;
use crate::engine::types::{BLOCK, BLOCK_LEN};
use crate::engine::{Cx, Engine};
use crate::hazard::{Claim, Mode, Verdict};
use crate::plant::Bug;
use forebay_io::crc::block_crc;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Instant, Op, OpKind};

impl<B: Buf> Engine<B> {
    /// Whether a block is to be destaged: the index names it, or it is kept for its batch.
    pub(super) fn current(&self, c: &Candidate) -> bool {
        let entry = self.vols.key(c.place, c.block).and_then(|key| self.index.get(key));
        if !self.lives(c.slot, c.life) {
            return false;
        }
        match entry.filter(|entry| entry.slot == c.slot) {
            Some(entry) => {
                entry.flags.dirty()
                    && !Self::not_for_destage(entry.flags.spare())
                    && self.journal_wants(c.place, c.slot)
            }
            None => self.order_keeps(c.place, c.slot),
        }
    }

    pub(super) fn willing(&self, place: u16, now: Instant) -> bool {
        self.vols
            .get(place)
            .is_some_and(|vol| !vol.health.is_out(now) && !vol.discards() && !vol.journal_busy())
    }

    /// Begins the next run of neighbouring blocks; `false` where no buffer is to be had.
    pub(super) fn run_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) -> bool {
        let first = self.destage.next;
        let Some(head) = self.destage.candidates.get(first).copied() else { return false };
        if !self.current(&head) || !self.willing(head.place, cx.now) {
            self.destage.next += 1;
            return true;
        }
        let Some(vol) = self.vols.get(head.place) else { return true };
        let most = RUN_MAX.min(u64::from(vol.backing.max_io) / BLOCK).max(1);
        let most =
            vol.order_journal.as_ref().map_or(most, |journal| most.min(journal.blocks_max()));
        let ahead = self.plant.has(Bug::TrimAhead);
        let trim = if ahead { vol.next_lsn - 1 } else { vol.committed };
        let mut blocks = 1;
        while blocks < most
            && let Some(c) =
                usize::try_from(blocks).ok().and_then(|n| self.destage.candidates.get(first + n))
            && c.place == head.place
            && c.block == head.block + blocks
            && self.current(c)
            && !self.destage.suspects(head.slot)
            && !self.destage.suspects(c.slot)
        {
            blocks += 1;
        }
        let claim = Claim {
            volume: head.place,
            first: head.block,
            blocks,
            mode: Mode::Exclusive,
            token: u64::MAX,
        };
        let claims = !self.plant.has(Bug::DestageUnclaimed);
        if claims && !self.backing.is_free(&claim) {
            self.destage.next += usize::try_from(blocks).unwrap_or(1);
            return true;
        }
        let Some(buf) = self.alloc(cx, blocks * BLOCK) else { return false };
        let claim = match claims.then(|| self.backing.claim(claim)) {
            Some(Verdict::Granted(id)) => Some(id),
            Some(_) => return false,
            None => None,
        };
        let Some((h, run)) = self.destage.runs.take() else { return false };
        *run = Run {
            place: head.place,
            block: head.block,
            blocks,
            first,
            buf: Some(buf),
            claim,
            trim,
            started: cx.now,
            ..Run::default()
        };
        self.destage.next += usize::try_from(blocks).unwrap_or(1);
        self.destage.active += 1;
        self.destage.did_something = true;
        self.run_read(cx, h);
        true
    }

    /// Reads all blocks of a run, neighbours on the cache device together. Where buffers end before that
    /// the run ends there: were it given up, a pool that never has enough for all of it would stop
    /// destage for good. The blocks behind are chosen again by the next round.
    fn run_read<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(run) = self.destage.runs.get(h) else { return };
        let (first, blocks) = (run.first, usize::try_from(run.blocks).unwrap_or(0));
        let first_try = run.tries == 0;
        let mut at = 0;
        while at < blocks {
            let slot = self.destage.candidates[first + at].slot;
            let seg = self.map.segment_of(slot);
            let mut n = 1u32;
            // After a failure each alone, to know which it is.
            while first_try && at + (n as usize) < blocks && {
                let next = self.destage.candidates[first + at + n as usize].slot;
                next == slot + n && self.map.segment_of(next) == seg
            } {
                n += 1;
            }
            let buf = self.alloc(cx, u64::from(n) * BLOCK);
            let (Some(buf), Some(offset)) = (buf, self.map.slot_offset(slot)) else {
                if let Some(run) = self.destage.runs.get_mut(h) {
                    run.blocks = at as u64;
                }
                break;
            };
            self.segs.reader(seg, 1);
            if let Some(run) = self.destage.runs.get_mut(h) {
                run.reads += 1;
            }
            let what =
                What::DestageRead { run: h, at: u32::try_from(at).unwrap_or(0), blocks: n, slot };
            self.cache_op(cx.now, what, Op::read(0, offset, u64::from(n) * BLOCK, buf));
            at += n as usize;
        }
        if self.destage.runs.get(h).is_some_and(|run| run.reads == 0) {
            self.run_end(h, false);
        }
    }

    pub(in crate::engine) fn destage_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        (at, blocks, slot): (u32, u32, u32),
        done: Completion<B>,
    ) {
        self.segs.reader(self.map.segment_of(slot), -1);
        let Some(run) = self.destage.runs.get_mut(h) else { return };
        run.reads -= 1;
        let key = self.vols.get(run.place).map_or(0, |vol| vol.key);
        let mut bad = None;
        for index in 0..blocks as usize {
            let c = self.destage.candidates[run.first + at as usize + index];
            let data = done.buf.as_ref().filter(|_| done.result.is_ok());
            let from = index * BLOCK_LEN;
            let data = data.and_then(|buf| buf.as_slice().get(from..from + BLOCK_LEN));
            let good = data.filter(|data| {
                self.plant.has(Bug::NoCrcOnDestage) || block_crc(key, c.block, c.lsn, data) == c.crc
            });
            let to = (at as usize + index) * BLOCK_LEN;
            let out = run.buf.as_mut().and_then(Buf::as_mut_slice);
            match (good, out.and_then(|out| out.get_mut(to..to + BLOCK_LEN))) {
                (Some(data), Some(out)) => out.copy_from_slice(data),
                _ => {
                    run.failed = true;
                    bad = Some(c);
                    if run.tries + 1 >= TRIES_MAX {
                        self.stats.bad_reads += 1;
                    }
                }
            }
        }
        let (reads, failed, tries) = (run.reads, run.failed, run.tries);
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
            // A batch that never ends would hold up all that follows.
            if let Some(c) = bad
                && tries + 1 >= TRIES_MAX
                && self.lives(c.slot, c.life)
                && self.vols.get(c.place).is_some_and(|vol| vol.in_batches())
                && self.order_unreadable(c.place, c.slot, false)
            {
                self.block_lost(c.place, c.block, c.slot);
            }
        }
        if let Some(c) = bad
            && tries + 1 >= TRIES_MAX
            && self.current(&c)
            && (done.result.is_ok() || self.destage.unreadable(c.slot))
        {
            self.order_unreadable(c.place, c.slot, true);
            self.block_lost(c.place, c.block, c.slot);
        }
        if reads > 0 {
            return;
        }
        if !failed {
            self.run_write(cx, h);
        } else if tries + 1 < TRIES_MAX && self.cache_failed.is_none() {
            if let Some(run) = self.destage.runs.get_mut(h) {
                run.tries += 1;
                run.failed = false;
            }
            self.run_read(cx, h);
        } else {
            self.run_end(h, false);
        }
    }

    fn run_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(run) = self.destage.runs.get_mut(h) else { return };
        let (place, Some(buf)) = (run.place, run.buf.take()) else { return };
        run.started = cx.now;
        let (block, blocks) = (run.block, run.blocks);
        if self.vols.get(place).is_some_and(|vol| vol.in_journal()) {
            run.gathers = true;
            if !self.journal_gather(cx.now, h, (place, block, blocks), buf) {
                self.run_end(h, false);
            }
            return;
        }
        let Some(vol) = self.vols.get_mut(place) else { return };
        if let Some(order) = vol.order.as_mut() {
            order.writes();
        }
        let (at, len) = vol.backing_range(block, blocks);
        self.destage.bytes += len;
        self.backing_op(cx.now, place, What::DestageWrite { run: h }, Op::write(0, at, len, buf));
    }

    /// Begins the next range of zeroes, if it is still as it was chosen.
    pub(super) fn zeroes_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let at = self.destage.next_zeroes;
        self.destage.next_zeroes += 1;
        let Some(z) = self.destage.zeroes.get(at).copied() else { return };
        let Some(vol) = self.vols.get(z.place) else { return };
        let batch = vol.order.as_ref().and_then(|order| Some((order.zeroes(), order.batch()?)));
        let (ranges, trim) = batch.unwrap_or((&vol.ranges, vol.committed));
        let mut left = z.blocks;
        for range in ranges.overlapping(z.block, z.blocks) {
            if range.lsn.0 != z.lsn {
                return;
            }
            left -= range.blocks;
        }
        let claim = Claim {
            volume: z.place,
            first: z.block,
            blocks: z.blocks,
            mode: Mode::Exclusive,
            token: u64::MAX,
        };
        if left > 0 || !self.willing(z.place, cx.now) || !self.backing.is_free(&claim) {
            return;
        }
        let Some(vol) = self.vols.get(z.place) else { return };
        if vol.in_journal() {
            self.destage.did_something = true;
            self.journal_zeroes(Zeroes { lsn: trim, ..z });
            return;
        }
        let (offset, len) = vol.backing_range(z.block, z.blocks);
        let direct = vol.backing.write_zeroes;
        let op = if direct {
            Op::range(0, OpKind::WriteZeroes, offset, len)
        } else {
            let blocks = z.blocks.min(ZEROES_WRITE_MAX);
            if blocks < z.blocks {
                return;
            }
            let Some(mut buf) = self.alloc(cx, len) else { return };
            let Some(out) = buf.as_mut_slice() else { return };
            out.fill(0);
            Op::write(0, offset, len, buf)
        };
        let Verdict::Granted(id) = self.backing.claim(claim) else { return };
        let Some((h, run)) = self.destage.runs.take() else { return };
        *run = Run {
            place: z.place,
            block: z.block,
            blocks: z.blocks,
            zeroes: Some(z.lsn),
            claim: Some(id),
            trim,
            started: cx.now,
            ..Run::default()
        };
        self.destage.active += 1;
        self.destage.did_something = true;
        if let Some(order) = self.vols.get_mut(z.place).and_then(|vol| vol.order.as_mut()) {
            order.writes();
        }
        self.backing_op(cx.now, z.place, What::DestageZeroes { run: h }, op);
    }

    pub(in crate::engine) fn destage_write_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        result: Result<(), DeviceError>,
    ) {
        let Some(run) = self.destage.runs.get(h) else { return };
        let place = run.place;
        let took = u64::try_from(cx.now.since(run.started).as_nanos()).unwrap_or(u64::MAX);
        match result {
            Ok(()) => {
                self.destage.pace.learn(took);
                self.backing_good(cx, place);
            }
            Err(DeviceError::Unsupported) if run.zeroes.is_some() => {
                if let Some(vol) = self.vols.get_mut(place) {
                    vol.backing.write_zeroes = false;
                }
            }
            Err(error) => self.backing_error(cx, place, error),
        }
        if result == Err(DeviceError::Timeout)
            && let Some(id) = self.destage.runs.get_mut(h).and_then(|run| run.claim.take())
        {
            self.end_backing(id, true);
        }
        self.run_end(h, result.is_ok() || self.plant.has(Bug::DestageErrorIgnored));
    }

    /// A backing device does not answer: the round goes on without this run, or no volume's data would
    /// become clean. Its blocks stay claimed until the device answers, and dirty.
    pub(in crate::engine) fn run_left(&mut self, h: Handle) {
        let Some(run) = self.destage.runs.get_mut(h).filter(|run| !run.left) else { return };
        run.left = true;
        let claim = if self.plant.has(Bug::LeftUnclaimed) { run.claim.take() } else { None };
        self.destage.active -= 1;
        self.destage.left += 1;
        if let Some(id) = claim {
            self.release_backing(id);
        }
    }

    /// A run was written to an ordered journal, or not.
    pub(in crate::engine) fn gathered<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        result: Result<(), DeviceError>,
    ) {
        let Some(place) = self.destage.runs.get(h).map(|run| run.place) else { return };
        self.journal_gathered(cx.now, place, result);
        self.run_end(h, result.is_ok());
    }

    /// A run is over; what it wrote awaits flush and trim.
    fn run_end(&mut self, h: Handle, good: bool) {
        let Some(run) = self.destage.runs.get_mut(h) else { return };
        let claim = run.claim.take();
        run.buf = None;
        let (place, block, blocks, first, lsn) =
            (run.place, run.block, run.blocks, run.first, run.trim);
        let (zeroes, gathers, left) = (run.zeroes, run.gathers, run.left);
        self.destage.runs.free(h);
        if left {
            self.destage.left -= 1;
        } else {
            self.destage.active -= 1;
            self.destage.progress = self.last_poll;
        }
        if good && !left {
            if zeroes.is_some() {
                self.destage.done_zeroes.push(Zeroes { place, block, blocks, lsn });
            } else {
                let end = first + usize::try_from(blocks).unwrap_or(0);
                if let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) {
                    order.finished(end - first);
                }
                for at in first..end {
                    let Candidate { block, slot, life, .. } = self.destage.candidates[at];
                    let written = Written { place, block, slot, life, lsn };
                    if gathers {
                        self.journal_took(written);
                    } else {
                        self.destage.done.push(written);
                    }
                }
            }
        }
        if let Some(id) = claim {
            self.release_backing(id);
        }
    }
}
