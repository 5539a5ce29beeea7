//! Host writes on the backing device: after commit in write-through, instead of the log in
//! write-around and pass-through. At most one overlapping write of a backing device is under way,
//! destage included.

use super::destage::Written;
use super::ops::What;
use super::request::Stage;
use super::slab::Handle;
use super::types::OnFailure;
use super::volume::spare;
use super::write::ZEROES_MAX;
use super::{Cx, Engine};
use crate::format::record::Kind;
use crate::hazard::{Claim, ClaimId, Mode, Verdict};
use crate::plant::Bug;
use forebay_io::{BlockError, Buf, BufPool, DeviceError, Op, OpKind, Outcome, RequestOp};

/// Bytes of one write of zeroes to a backing device without write-zeroes.
const ZEROES_BYTES: u64 = 256 << 10;

impl<B: Buf> Engine<B> {
    /// Goes on with a request that bypasses the log.
    pub(super) fn bypass_go<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        let (place, (first, blocks)) = (req.volume, req.blocks());
        if !req.invalidated && self.vols.get(place).is_some_and(|vol| self.forgets(vol)) {
            // The index has no copy any more, but after a crash the log would: nothing may become
            // newer than it before the new generation is durable.
            self.stall(h, cx.now);
            return;
        }
        let caching = self.vols.get(place).is_some_and(|vol| vol.caching);
        if caching && !req.invalidated && self.cache_failed.is_none() {
            let deallocate = req.op == RequestOp::Deallocate;
            if blocks > 16 * ZEROES_MAX && deallocate {
                self.finish(h, Outcome::Done);
                return;
            }
            match self.cached(place, first, blocks) {
                Cached::Lost => {
                    self.through_log(cx, h);
                    return;
                }
                Cached::Dirty if !self.plant.has(Bug::AroundDirty) => {
                    // The backing device does not hold what is acknowledged: destage first.
                    self.destage.urgent = true;
                    self.stall(h, cx.now);
                    return;
                }
                Cached::Clean if self.plant.has(Bug::NoInvalidation) => {}
                Cached::Clean | Cached::Dirty => {
                    if let Some(req) = self.reqs.get_mut(h) {
                        req.stage = Stage::Journal;
                    }
                    if self.place_mark(cx, h, first, blocks, Kind::Invalidate).is_none() {
                        self.stall(h, cx.now);
                    }
                    return;
                }
                Cached::No => {
                    let trims = self.vols.get(place).map_or(0, |vol| vol.trims_durable);
                    if self.volatile && !self.flush_passed(trims) {
                        // Without its trim a range of zeroes would be destaged over this write.
                        if let Some(req) = self.reqs.get_mut(h) {
                            req.invalidated = true;
                        }
                        self.flush_wait(cx.now, h);
                        return;
                    }
                }
            }
        }
        if let Some(req) = self.reqs.get_mut(h) {
            req.invalidated = true;
        }
        self.backing_go(cx, h);
    }

    /// Sends a write through the log after all: it replaces damaged blocks, which have to stay known as
    /// damaged, whatever happens, until the new data is there.
    fn through_log<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        (req.bypass, req.through) = (false, true);
        self.count_journaling(h);
        self.write_go(cx, h, None);
    }

    /// What the cache has of a range, in the index, as ranges of zeroes, or on its way.
    fn cached(&mut self, place: u16, first: u64, blocks: u64) -> Cached {
        let Some(vol) = self.vols.get(place) else { return Cached::No };
        // What the index does not have may still be on the device.
        let all = self.warm.covers_all() || self.plant.has(Bug::WarmCovers);
        let mut found = if all { Cached::No } else { Cached::Clean };
        for range in vol.ranges.overlapping(first, blocks) {
            if range.dirty {
                found = Cached::Dirty;
            } else if found == Cached::No {
                found = Cached::Clean;
            }
        }
        for block in first..first.saturating_add(blocks) {
            let Some(key) = self.vols.key(place, block) else { break };
            match self.index.get(key) {
                Some(entry) if entry.flags.dirty() => {
                    if entry.flags.spare() & spare::BAD != 0 {
                        return Cached::Lost;
                    }
                    found = Cached::Dirty;
                }
                Some(_) if found == Cached::Dirty => {}
                Some(_) => found = Cached::Clean,
                None => {}
            }
        }
        if found == Cached::No && self.placed_fills(place, first, blocks, false) {
            found = Cached::Clean;
        }
        found
    }

    /// Takes a range out of the index, the memory tier and the fills.
    pub(super) fn forget_range(&mut self, place: u16, first: u64, blocks: u64) {
        self.kill_fills(place, first, blocks, true);
        if let Some(index) = self.vols.get(place).map(|vol| vol.index) {
            self.warm_kill(index, first, blocks);
            self.tier.invalidate_range(index, first, blocks);
        }
        for block in first..first.saturating_add(blocks) {
            let Some(key) = self.vols.key(place, block) else { break };
            if let Some(old) = self.index.remove(key) {
                self.order_replaced(place, old);
                self.uncount(place, old);
            }
        }
    }

    /// Claims the backing device's blocks for a host write and writes.
    pub(super) fn backing_go<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let place = self.reqs.get(h).map(|req| req.volume);
        if place.and_then(|place| self.vols.get(place)).is_some_and(|vol| vol.journal_busy())
            && !self.plant.has(Bug::JournalPassed)
        {
            // A batch that is not applied would be written over it after a crash.
            self.stall(h, cx.now);
            return;
        }
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.stage = Stage::Backing;
        if req.backing.is_some() {
            self.backing_issue(cx, h);
            return;
        }
        let (first, blocks) = req.blocks();
        let claim =
            Claim { volume: req.volume, first, blocks, mode: Mode::Exclusive, token: h.token() };
        match self.backing.claim(claim) {
            Verdict::Granted(id) => {
                self.backing_queued(h, id);
                self.backing_issue(cx, h);
            }
            Verdict::Waiting(id) => self.backing_queued(h, id),
            Verdict::Full => self.stall(h, cx.now),
        }
    }

    /// A request stands in the backing device's queue: newer writes of its blocks come after it, so
    /// that a write-through need not keep them from the log any longer.
    fn backing_queued(&mut self, h: Handle, id: ClaimId) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.backing = Some(id);
        if req.through
            && let Some(claim) = req.claim.take()
        {
            self.release_hold(claim);
        }
    }

    /// The claim is held.
    pub(super) fn backing_issue<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        if self.bypass_begins(cx, h) {
            return;
        }
        let Some(req) = self.reqs.get(h) else { return };
        let place = req.volume;
        let Some(vol) = self.vols.get(place) else { return };
        let (offset, len) = if req.merged {
            let (first, blocks) = req.blocks();
            vol.backing_range(first, blocks)
        } else {
            (req.offset, req.len)
        };
        // Where the cache keeps what is read, the backing device must not forget it: a power loss
        // would leave a clean copy that is newer.
        let volatile = vol.backing.volatile_write_cache;
        let fua = req.fua || (volatile && (!self.volatile || vol.caching));
        let fua = fua && req.bypass && !self.plant.has(Bug::NoBackingFua);
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.lasting = fua;
        let req = &*req;
        let Some(vol) = self.vols.get(place) else { return };
        if let Some(data) = &req.data {
            let mut op = Op::write(0, offset, len, data.clone());
            op.fua = fua;
            self.backing_op(cx.now, place, What::HostWrite { req: h }, op);
        } else if vol.backing.write_zeroes {
            let mut op = Op::range(0, OpKind::WriteZeroes, offset, len);
            op.fua = fua;
            self.backing_op(cx.now, place, What::HostRange { req: h }, op);
        } else if req.op == RequestOp::Deallocate {
            self.backing_finished(cx, h);
        } else {
            let (at, left) = (offset + req.zeroed, len - req.zeroed);
            let bytes = left.min(ZEROES_BYTES);
            let buf = self.alloc(cx, bytes).and_then(|mut buf| {
                buf.as_mut_slice()?.fill(0);
                Some(buf)
            });
            let Some(buf) = buf else {
                self.stall(h, cx.now);
                return;
            };
            if let Some(req) = self.reqs.get_mut(h) {
                req.zeroed += bytes;
            }
            let mut op = Op::write(0, at, bytes, buf);
            op.fua = fua;
            self.backing_op(cx.now, place, What::HostRange { req: h }, op);
        }
    }

    /// A write past the cache is about to be issued. As long as it is not over reads of its blocks may
    /// find either version on the backing device: a copy of the older one must be nowhere, or a read
    /// that finds it goes back behind one that found the newer. `true` where such a copy came while the
    /// write waited for others, and is made invalid first.
    fn bypass_begins<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) -> bool {
        let Some(req) = self.reqs.get(h).filter(|req| req.bypass && !req.bypassing) else {
            return false;
        };
        let (place, (first, blocks)) = (req.volume, req.blocks());
        let Some(vol) = self.vols.get(place) else { return false };
        let (index, caching) = (vol.index, vol.caching && self.cache_failed.is_none());
        let planted = self.plant.has(Bug::NoInvalidation) || self.plant.has(Bug::BypassKeepsFills);
        if caching && !planted {
            let mut keys = (first..first + blocks).filter_map(|block| self.vols.key(place, block));
            let indexed = keys.any(|key| self.index.get(key).is_some());
            // What is in the log already would be found after a crash.
            if indexed || self.placed_fills(place, first, blocks, false) {
                if let Some(req) = self.reqs.get_mut(h) {
                    req.invalidated = false;
                }
                self.bypass_go(cx, h);
                return true;
            }
            self.kill_fills(place, first, blocks, false);
            self.tier.invalidate_range(index, first, blocks);
        }
        if let Some(req) = self.reqs.get_mut(h) {
            req.bypassing = true;
        }
        if let Some(vol) = self.vols.get_mut(place) {
            vol.bypassing += 1;
        }
        false
    }

    /// Whether a write of these blocks past the cache may be on the backing device and is not over.
    pub(super) fn bypassed_now(&mut self, place: u16, first: u64, blocks: u64) -> bool {
        let claim = Claim { volume: place, first, blocks, mode: Mode::Shared, token: 0 };
        let any = self.vols.get(place).is_some_and(|vol| vol.bypassing > 0);
        any && !self.backing.is_free(&claim) && !self.plant.has(Bug::BypassKeepsFills)
    }

    /// A host's write of the backing device ended.
    pub(super) fn host_write_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        result: Result<(), DeviceError>,
    ) {
        let Some(req) = self.reqs.get(h) else { return };
        let place = req.volume;
        let result = if self.plant.has(Bug::HostErrorIgnored) { Ok(()) } else { result };
        match result {
            Ok(()) => {
                let more = req.data.is_none() && req.zeroed > 0 && req.zeroed < req.len;
                self.backing_good(cx, place);
                if more {
                    self.backing_issue(cx, h);
                } else {
                    self.backing_finished(cx, h);
                }
            }
            Err(DeviceError::Unsupported) if req.data.is_none() => {
                if let Some(vol) = self.vols.get_mut(place) {
                    vol.backing.write_zeroes = false;
                }
                self.backing_issue(cx, h);
            }
            Err(error) => {
                if let Some(req) = self.reqs.get_mut(h) {
                    req.zeroed = 0;
                    req.doubt |= error == DeviceError::Timeout;
                }
                self.backing_error(cx, place, error);
                self.backing_refused(cx, h);
            }
        }
    }

    /// The backing device does not take a host's request: it waits or fails, as configured.
    pub(super) fn backing_refused<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(vol) = self.reqs.get(h).and_then(|req| self.vols.get(req.volume)) else { return };
        if vol.on_failure == OnFailure::Wait {
            let at = vol.health.retry_at;
            self.stall(h, cx.now);
            if let Some(req) = self.reqs.get_mut(h) {
                req.release = at;
            }
        } else {
            // Another try of the host's finds no room either, until somebody makes some.
            let full = matches!(vol.health.failing, Some((_, DeviceError::NoSpace)));
            let error = if full { BlockError::CapacityExceeded } else { BlockError::NotReady };
            self.bypass_over(h, true);
            self.finish(h, Outcome::Failed(error));
        }
    }

    /// A bypassing write is over, well or not: what was read while it ran must not be cached.
    fn bypass_over(&mut self, h: Handle, failed: bool) {
        let Some(req) = self.reqs.get(h).filter(|req| req.bypass) else { return };
        let (place, (first, blocks), lasting) = (req.volume, req.blocks(), req.lasting);
        if let Some(vol) = self.vols.get_mut(place) {
            vol.unflushed |= failed || !lasting;
            let index = vol.index;
            self.tier.invalidate_range(index, first, blocks);
        }
        if !self.plant.has(Bug::BypassKeepsFills) {
            self.kill_fills(place, first, blocks, false);
        }
    }

    /// The backing device has a host's write.
    fn backing_finished<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        self.bypass_over(h, false);
        let Some(req) = self.reqs.get(h) else { return };
        let (place, (first, blocks)) = (req.volume, req.blocks());
        if req.bypass && self.cache_failed.is_some() {
            // What was lost with the cache device is replaced.
            self.forget_range(place, first, blocks);
            if let Some(vol) = self.vols.get_mut(place) {
                let _ = vol.ranges.punch(first, blocks, forebay_io::Lsn(u64::MAX));
            }
        }
        let Some(req) = self.reqs.get_mut(h) else { return };
        if req.through {
            let records = core::mem::take(&mut req.records);
            for record in &records {
                self.written(cx, place, *record);
            }
            if let Some(req) = self.reqs.get_mut(h) {
                req.records = records;
            }
        }
        self.finish(h, Outcome::Done);
    }

    /// Committed blocks are on the backing device; its flush and the trim follow in a round of
    /// destage.
    fn written<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        (block, blocks, slot, life): (u64, u32, u32, u64),
    ) {
        if !self.lives(slot, life) {
            return;
        }
        let Some(lsn) = self.vols.get(place).map(|vol| vol.committed) else { return };
        for (slot, block) in (slot..).zip(block..block + u64::from(blocks)) {
            let Some(key) = self.vols.key(place, block) else { return };
            let old = self.index.update_if_slot(key, slot, |flags| {
                if flags.dirty() { flags.with_spare(flags.spare() | spare::WRITTEN) } else { flags }
            });
            if old.is_some_and(|flags| flags.dirty()) {
                self.destage.written(cx.now, Written { place, block, slot, life, lsn });
            }
        }
    }

    /// Ends the claim of a write that is over. Where the device did not say what becomes of it
    /// (`doubt`) it may still be carried out: nothing newer may be written there until it surely is not.
    pub(super) fn end_backing(&mut self, id: ClaimId, doubt: bool) {
        if doubt {
            self.doubtful.push_back((self.last_poll + self.limits.op_timeout, id));
            self.doubts(id, 1);
        } else {
            self.release_backing(id);
        }
    }

    /// Counts the writes of a volume that may still be carried out: no flush covers them.
    fn doubts(&mut self, id: ClaimId, change: i32) {
        let place = self.backing.get(id).map(|(claim, _)| claim.volume);
        if let Some(vol) = place.and_then(|place| self.vols.get_mut(place)) {
            vol.doubts = vol.doubts.saturating_add_signed(change);
            vol.unflushed = true;
        }
    }

    /// Until when a write that timed out may still change some of these blocks on the backing device.
    pub(super) fn doubt_until(
        &self,
        place: u16,
        first: u64,
        blocks: u64,
    ) -> Option<forebay_io::Instant> {
        let overlaps = |id: &ClaimId| {
            self.backing.get(*id).is_some_and(|(claim, _)| {
                let ends = claim.first.saturating_add(claim.blocks);
                claim.volume == place && claim.first < first.saturating_add(blocks) && first < ends
            })
        };
        self.doubtful.iter().filter(|(_, id)| overlaps(id)).map(|(at, _)| *at).max()
    }

    /// Ends the claims of writes that timed out so long ago that the device has given them up.
    pub(super) fn doubts_over(&mut self, now: forebay_io::Instant) {
        while let Some((at, id)) = self.doubtful.front().copied()
            && at <= now
        {
            self.doubtful.pop_front();
            self.doubts(id, -1);
            self.release_backing(id);
        }
    }

    /// Ends a claim on a backing device and wakes who waited for it.
    pub(super) fn release_backing(&mut self, id: ClaimId) {
        self.backing.release(id);
        while let Some((_, claim)) = self.backing.pop_granted() {
            self.wake.push_back(Handle::from_token(claim.token));
        }
    }

    /// Ends a claim on a volume's blocks and wakes who waited for it.
    pub(super) fn release_hold(&mut self, id: ClaimId) {
        self.hold.release(id);
        while let Some((_, claim)) = self.hold.pop_granted() {
            self.wake.push_back(Handle::from_token(claim.token));
        }
    }
}

/// What the cache has of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cached {
    No,
    Clean,
    Dirty,
    /// Some of it is dirty and damaged.
    Lost,
}
