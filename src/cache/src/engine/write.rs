//! Writes: claims, placement in the journal, commit, and what follows it.

use super::request::Stage;
use super::slab::Handle;
use super::stats::BlockCounts;
use super::types::{BLOCK, BLOCK_LEN};
use super::volume::Pending;
use super::{Cx, Engine};
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::hazard::{Claim, Mode, Verdict};
use crate::index::Flags;
use crate::plant::Bug;
use forebay_io::{BlockError, Buf, BufPool, Lsn, Outcome, Payload, RequestOp, VolumeId};

/// Blocks of one record at most.
const RECORD_MAX: u64 = 64;
/// Blocks of one record of zeroes at most: the index is searched for each at commit.
pub(super) const ZEROES_MAX: u64 = 4096;
/// Free segments that host data does not take: marks and compaction need them.
pub(super) const HOST_RESERVE: usize = 3;
/// Write-zeroes up to this many blocks are written as data.
const ZEROES_AS_DATA: u64 = 16;

/// What is placed next of a request.
#[derive(Clone, Copy)]
enum Chunk {
    /// Data from this byte of the request's buffer on.
    Data(usize),
    Zeroes(Kind),
}

impl<B: Buf> Engine<B> {
    /// Begins a write, a write-zeroes, a deallocate, or a compare-and-write.
    pub(super) fn write_new<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        payload: Payload<'_, B>,
    ) {
        match payload {
            Payload::Inline(bytes) => self.write_go(cx, h, Some(bytes)),
            Payload::Owned(buf) => {
                if let Some(req) = self.reqs.get_mut(h) {
                    req.data = Some(buf);
                }
                self.write_go(cx, h, None);
            }
            Payload::Pair(compare, write) => {
                if let Some(req) = self.reqs.get_mut(h) {
                    (req.data, req.second) = (Some(compare), Some(write));
                }
                self.write_go(cx, h, None);
            }
            Payload::None => self.write_go(cx, h, None),
        }
    }

    /// Goes on with a write from wherever it is. `inline` is its payload while that is still in
    /// the receive buffer.
    pub(super) fn write_go<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        inline: Option<&[u8]>,
    ) {
        let Some(req) = self.reqs.get(h) else { return };
        let Some(vol) = self.vols.get(req.volume) else { return };
        let claimed = req.claim.is_some();
        let failed = self.cache_failed.is_some();
        let bypass = failed || if claimed || req.counted { req.bypass } else { !vol.journals() };
        // With the cache gone, a part of a block whose rest is lost must not seem whole.
        let unit = if bypass && !failed { u64::from(vol.backing.block_size) } else { BLOCK };
        let edges = (req.offset | req.len) % unit != 0;
        let compare = req.op == RequestOp::CompareAndWrite;
        let through = !bypass && (!vol.mode.is_write_back() || vol.target != vol.mode);
        if self.waits_for_note() {
            self.park(cx, h, inline);
            return;
        }
        let keep = through || bypass || edges || compare;
        if keep && !self.own(cx, h, inline) {
            return;
        }
        let inline = if keep { None } else { inline };
        if !claimed {
            // What reaches the backing device in another order than the log must not overlap.
            let exclusive = bypass
                || (through && !self.plant.has(Bug::ThroughShares))
                || (edges && !self.plant.has(Bug::EdgesShare))
                || (compare && !self.plant.has(Bug::CompareShares));
            if let Some(req) = self.reqs.get_mut(h) {
                (req.bypass, req.through) = (bypass, through);
                let direct = bypass || through;
                let change = i64::from(direct) - i64::from(req.direct);
                req.direct = direct;
                if let Some(vol) = self.vols.get_mut(req.volume) {
                    vol.direct = vol.direct.saturating_add_signed(change);
                }
            }
            if !bypass {
                self.count_journaling(h);
            }
            if !self.claim(cx, h, exclusive, inline) {
                return;
            }
        }
        if failed && let Some(req) = self.reqs.get_mut(h) {
            (req.bypass, req.through) = (true, false);
        }
        if !bypass && self.throttled(cx, h) {
            self.park(cx, h, inline);
            return;
        }
        if (edges || compare) && self.reqs.get(h).is_some_and(|req| !req.merged) {
            if self.alloc_edges_only(h) && bypass {
                // A deallocate of a part of a block needs nothing.
                self.finish(h, Outcome::Done);
                return;
            }
            self.prepare(cx, h);
            return;
        }
        if bypass {
            self.bypass_go(cx, h);
        } else {
            self.place(cx, h, inline);
        }
    }

    /// A switch that settles waits for this request, once.
    pub(super) fn count_journaling(&mut self, h: Handle) {
        let Some(req) = self.reqs.get_mut(h).filter(|req| !req.counted) else { return };
        req.counted = true;
        let place = req.volume;
        if let Some(vol) = self.vols.get_mut(place) {
            vol.journaling += 1;
        }
    }

    /// Whether the request has no payload.
    fn alloc_edges_only(&self, h: Handle) -> bool {
        self.reqs.get(h).is_some_and(|req| req.op == RequestOp::Deallocate)
    }

    /// Copies the payload out of the receive buffer. On a lack of buffers the request ends.
    fn own<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        inline: Option<&[u8]>,
    ) -> bool {
        let Some(bytes) = inline else { return true };
        let buf = self.alloc(cx, bytes.len() as u64).and_then(|mut buf| {
            buf.as_mut_slice()?.copy_from_slice(bytes);
            Some(buf)
        });
        let Some(buf) = buf else {
            self.finish(h, Outcome::Failed(BlockError::NotReady));
            return false;
        };
        if let Some(req) = self.reqs.get_mut(h) {
            req.data = Some(buf);
        }
        true
    }

    /// Keeps the payload and waits for a better moment.
    fn park<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle, inline: Option<&[u8]>) {
        if self.own(cx, h, inline) {
            self.stall(h, cx.now);
        }
    }

    /// Claims the request's blocks against other writes; `false` where it has to wait.
    fn claim<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        exclusive: bool,
        inline: Option<&[u8]>,
    ) -> bool {
        let Some(req) = self.reqs.get(h) else { return false };
        let (first, blocks) = req.blocks();
        let mode = if exclusive && !self.plant.has(Bug::SharedClaims) {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        let claim = Claim { volume: req.volume, first, blocks, mode, token: h.token() };
        let (id, granted) = match self.hold.claim(claim) {
            Verdict::Granted(id) => (Some(id), true),
            Verdict::Waiting(id) => (Some(id), false),
            Verdict::Full => (None, false),
        };
        let Some(req) = self.reqs.get_mut(h) else { return false };
        req.claim = id;
        if granted {
            return true;
        }
        if id.is_some() {
            req.stage = Stage::Claim;
            self.own(cx, h, inline);
        } else {
            self.park(cx, h, inline);
        }
        false
    }

    /// Reads the blocks that a write covers in part, or a compare needs whole.
    fn prepare<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        let (first, blocks) = req.blocks();
        let doubt = self.doubt_until(req.volume, first, blocks);
        let Some(req) = self.reqs.get_mut(h) else { return };
        if let Some(until) = doubt {
            // What is read now may be older than what hosts read before this write is done.
            req.release = until;
            self.stall(h, cx.now);
            return;
        }
        req.stage = Stage::Prepare;
        req.parts.clear();
        let (offset, len, op) = (req.offset, req.len, req.op);
        let last = first + blocks - 1;
        if op == RequestOp::CompareAndWrite {
            self.read_range(cx, h, first * BLOCK, blocks * BLOCK);
        } else {
            if offset % BLOCK != 0 {
                self.read_range(cx, h, first * BLOCK, BLOCK);
            }
            let tail = (offset + len) % BLOCK != 0;
            if tail && (last != first || offset % BLOCK == 0) {
                self.read_range(cx, h, last * BLOCK, BLOCK);
            }
        }
        self.parts_check(cx, h);
    }

    /// The reads of `prepare`, or of a compare, are complete.
    pub(super) fn prepared<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        match self.reqs.get(h).map(|req| req.op) {
            Some(RequestOp::Compare) => {
                let equal = self.equal(h, 0);
                let failed = Outcome::Failed(BlockError::CompareFailed);
                self.count_compared(h);
                self.drop_parts(h);
                self.finish(h, if equal { Outcome::Done } else { failed });
            }
            Some(RequestOp::CompareAndWrite) => {
                let skip = self.reqs.get(h).map_or(0, |req| req.offset % BLOCK);
                if !self.equal(h, skip) {
                    self.drop_parts(h);
                    self.finish(h, Outcome::Failed(BlockError::CompareFailed));
                } else if self.merge(cx, h) {
                    self.write_go(cx, h, None);
                }
            }
            Some(_) if self.merge(cx, h) => self.write_go(cx, h, None),
            Some(_) | None => {}
        }
    }

    /// What a compare has read counts as read by its host, equal or not.
    fn count_compared(&mut self, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        let mut blocks = BlockCounts::default();
        req.parts.iter().for_each(|part| blocks.read(part.origin));
        if let Some(vol) = self.vols.get_mut(req.volume) {
            vol.blocks.add(&blocks);
        }
        self.stats.blocks.add(&blocks);
    }

    fn drop_parts(&mut self, h: Handle) {
        if let Some(req) = self.reqs.get_mut(h) {
            req.parts.clear();
        }
    }

    /// Compares what was read, from byte `skip` on, with the request's compare data.
    fn equal(&self, h: Handle, skip: u64) -> bool {
        let Some(req) = self.reqs.get(h) else { return false };
        let Some(want) = req.data.as_ref().map(Buf::as_slice) else { return false };
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut want = want;
        for part in &req.parts {
            let Some(piece) = &part.piece else { return false };
            let (start, len) = (piece.offset as usize, piece.len as usize);
            let Some(data) = piece.buf.as_slice().get(start..start + len) else { return false };
            let data = data.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(len);
            let n = data.len().min(want.len());
            if data[..n] != want[..n] {
                return false;
            }
            want = &want[n..];
        }
        want.is_empty()
    }

    /// Makes one buffer of whole blocks out of what was read and the payload.
    fn merge<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) -> bool {
        let Some(req) = self.reqs.get(h) else { return false };
        let (first, blocks) = req.blocks();
        let (offset, len) = (req.offset - first * BLOCK, req.len);
        let zeroes = matches!(req.op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
        let caw = req.op == RequestOp::CompareAndWrite;
        let (head, tail) = (offset != 0, (offset + len) % BLOCK != 0);
        let buf = self.alloc(cx, blocks * BLOCK);
        let Some(mut buf) = buf else {
            self.drop_parts(h);
            self.stall(h, cx.now);
            return false;
        };
        let done = (|| {
            let out = buf.as_mut_slice()?;
            if caw {
                self.copy_parts(h, 0, out).then_some(())?;
            } else {
                if head {
                    self.copy_parts(h, 0, out.get_mut(..BLOCK_LEN)?).then_some(())?;
                }
                if tail && (!head || blocks > 1) {
                    let from = out.len() - BLOCK_LEN;
                    self.copy_parts(h, usize::from(head), &mut out[from..]).then_some(())?;
                }
            }
            let start = usize::try_from(offset).ok()?;
            let payload = out.get_mut(start..start + usize::try_from(len).ok()?)?;
            if zeroes {
                payload.fill(0);
            } else {
                let req = self.reqs.get(h)?;
                let data = if caw { req.second.as_ref() } else { req.data.as_ref() };
                payload.copy_from_slice(data?.as_slice().get(..payload.len())?);
            }
            Some(())
        })();
        if done.is_none() {
            self.finish(h, Outcome::Failed(BlockError::Internal));
            return false;
        }
        if let Some(req) = self.reqs.get_mut(h) {
            req.data = Some(buf);
            req.second = None;
            req.parts.clear();
            req.merged = true;
        }
        true
    }

    /// What comes next of a request, and how many blocks of it at most in one record.
    fn chunk(&self, h: Handle) -> Option<(u64, u64, Chunk)> {
        let req = self.reqs.get(h)?;
        let (first, blocks) = req.blocks();
        let left = blocks.checked_sub(req.placed).filter(|left| *left > 0)?;
        let at = usize::try_from(req.placed * BLOCK).ok()?;
        let kind = match req.op {
            RequestOp::WriteZeroes { .. } => Kind::Zeroes,
            RequestOp::Deallocate => Kind::Discard,
            _ => return Some((first + req.placed, left.min(RECORD_MAX), Chunk::Data(at))),
        };
        if req.data.is_some() {
            return Some((first + req.placed, left.min(RECORD_MAX), Chunk::Data(at)));
        }
        Some((first + req.placed, left.min(ZEROES_MAX), Chunk::Zeroes(kind)))
    }

    /// Puts a request's records into the journal, as far as there is room.
    fn place<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle, inline: Option<&[u8]>) {
        let owned = self.reqs.get_mut(h).and_then(|req| {
            req.stage = Stage::Journal;
            req.data.clone()
        });
        let data = inline.or_else(|| owned.as_ref().map(Buf::as_slice)).unwrap_or_default();
        while let Some((block, most, chunk)) = self.chunk(h) {
            let placed = match chunk {
                Chunk::Data(at) => self.place_data(cx, h, block, most, data.get(at..)),
                Chunk::Zeroes(kind) => self.place_mark(cx, h, block, most, kind),
            };
            if placed.is_none() {
                self.stats.stalls += 1;
                self.park(cx, h, inline);
                return;
            }
        }
        if let Some(req) = self.reqs.get_mut(h)
            && !req.through
        {
            req.data = None;
        }
    }

    fn record(&self, h: Handle, kind: Kind, block: u64, blocks: u64) -> Option<(Record, u64)> {
        let vol = self.vols.get(self.reqs.get(h)?.volume)?;
        let record = Record {
            kind,
            moved: false,
            clean: false,
            volume: vol.index,
            generation: vol.generation,
            block,
            blocks: u32::try_from(blocks).ok()?,
            lsn: Lsn(vol.next_lsn),
            epoch: vol.epoch,
            slot: 0,
        };
        Some((record, vol.key))
    }

    fn place_data<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        block: u64,
        most: u64,
        data: Option<&[u8]>,
    ) -> Option<()> {
        let room = self.room(cx, LogStream::Journal, HOST_RESERVE)?;
        let blocks = most.min(u64::from(room));
        let data = data?.get(..usize::try_from(blocks * BLOCK).ok()?)?;
        let (record, key) = self.record(h, Kind::Write, block, blocks)?;
        let (slot, seg, _) = self.append_data(LogStream::Journal, &record, key, data, None)?;
        self.stats.host_bytes += blocks * BLOCK;
        self.pend(h, Kind::Write, block, blocks, slot, seg);
        Some(())
    }

    pub(super) fn place_mark<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        block: u64,
        blocks: u64,
        kind: Kind,
    ) -> Option<()> {
        let (record, _) = self.record(h, kind, block, blocks)?;
        let (_, seg) = self.append_mark(cx, LogStream::Journal, HOST_RESERVE, &record)?;
        self.pend(h, kind, block, blocks, 0, seg);
        Some(())
    }

    /// Notes a placed record until it commits.
    fn pend(&mut self, h: Handle, kind: Kind, block: u64, blocks: u64, slot: u32, seg: u32) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.placed += blocks;
        if req.through && kind == Kind::Write {
            let blocks = u32::try_from(blocks).unwrap_or(0);
            req.records.push((block, blocks, slot, self.segs.life(seg)));
        }
        let last = req.placed >= req.blocks().1;
        let Some(vol) = self.vols.get_mut(req.volume) else { return };
        vol.next_lsn += 1;
        let pending = Pending { req: h, kind, block, blocks, slot, seg, last };
        vol.pending.push_back(pending);
        if self.plant.has(Bug::IndexBeforeDurable) {
            let (place, lsn) = (req.volume, vol.next_lsn - 1);
            self.apply(place, &pending, lsn);
        } else if self.plant.has(Bug::AckBeforeDurable) {
            let (volume, lsn) = (vol.id, Lsn(vol.next_lsn - 1));
            vol.persisted = lsn.0;
            self.persisted_event(volume, lsn, lsn);
        }
    }

    /// Commits a volume's records up to a number, in their order: the index changes, and the
    /// requests go on to their ends.
    pub fn commit<P: BufPool<Buf = B>>(
        &mut self,
        volume: VolumeId,
        up_to: Lsn,
        pool: &mut P,
        now: forebay_io::Instant,
    ) {
        let mut cx = Cx { pool, now };
        let Some(place) = self.vols.find(volume) else { return };
        while let Some(vol) = self.vols.get_mut(place) {
            let next = vol.committed + 1;
            if next > up_to.0.min(vol.persisted) {
                break;
            }
            let pending = if self.plant.has(Bug::CommitBackwards) {
                vol.pending.pop_back()
            } else {
                vol.pending.pop_front()
            };
            let Some(pending) = pending else { break };
            vol.committed = next;
            if let Some(order) = vol.order.as_mut() {
                order.committed(now, if pending.kind == Kind::Write { pending.blocks } else { 1 });
            }
            self.apply(place, &pending, next);
            self.unpin(pending.seg);
            if pending.last {
                self.committed(&mut cx, pending.req);
            }
        }
        self.settle(&mut cx);
    }

    fn apply(&mut self, place: u16, pending: &Pending, lsn: u64) {
        let Pending { kind, block, blocks, slot, .. } = *pending;
        if kind != Kind::Write {
            self.apply_range(place, kind, block, blocks, Lsn(lsn));
            return;
        }
        if !self.plant.has(Bug::FillOverNewer) {
            self.kill_fills(place, block, blocks, false);
        }
        if let Some(vol) = self.vols.get_mut(place)
            && !vol.ranges.is_empty()
            && !self.plant.has(Bug::NoPunch)
        {
            // The map is unbounded itself; its bound is kept at admission.
            let _ = vol.ranges.punch(block, blocks, Lsn(lsn));
        }
        for (slot, block) in (slot..).zip(block..block + blocks) {
            self.set_current(place, block, slot, Flags::NONE.with_dirty(true));
        }
    }

    /// From now on this slot holds the current version of a block.
    pub(super) fn set_current(&mut self, place: u16, block: u64, slot: u32, flags: Flags) {
        let Some(key) = self.vols.key(place, block) else { return };
        if !self.plant.has(Bug::StaleTier) {
            self.tier.invalidate(key);
        }
        // A segment's slots are all in the index's capacity, so there is room for each.
        let Ok(old) = self.index.insert(key, slot, flags) else {
            self.stats.index_full += 1;
            return;
        };
        if let Some(old) = old {
            self.order_replaced(place, old);
            self.uncount(place, old);
        }
        let dirty = i32::from(flags.dirty());
        self.segs.count(self.map.segment_of(slot), 1, dirty);
        if flags.dirty() {
            self.dirty += 1;
            if let Some(vol) = self.vols.get_mut(place) {
                vol.dirty += 1;
            }
        }
    }

    /// A version is no longer the current one.
    pub(super) fn uncount(&mut self, place: u16, old: crate::index::Entry) {
        let dirty = old.flags.dirty();
        self.segs.count(self.map.segment_of(old.slot), -1, -i32::from(dirty));
        if dirty {
            self.dirty = self.dirty.saturating_sub(1);
            if let Some(vol) = self.vols.get_mut(place) {
                vol.dirty = vol.dirty.saturating_sub(1);
                if old.flags.spare() & super::volume::spare::BAD != 0 {
                    vol.lost_blocks = vol.lost_blocks.saturating_sub(1);
                }
            }
        }
    }

    /// All records of a request are committed.
    fn committed<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        if req.bypass {
            // Its invalidation is committed; once it is durable the write itself may go.
            req.invalidated = true;
            if self.volatile && !self.plant.has(Bug::BypassUnflushed) {
                self.flush_wait(cx.now, h);
            } else {
                self.bypass_go(cx, h);
            }
            return;
        }
        req.committed = true;
        let (through, durable) =
            (req.through, req.fua && self.volatile && !self.plant.has(Bug::NoFua));
        // Write-through keeps its blocks until it stands in the backing device's queue.
        if !through && let Some(claim) = req.claim.take() {
            self.release_hold(claim);
        }
        if through && (!self.volatile || self.plant.has(Bug::ThroughUnflushed)) {
            self.backing_go(cx, h);
        } else if through || durable {
            // What the backing device gets is durable in the log first: after a power loss an older
            // copy there would hide it, or be written over it.
            self.flush_wait(cx.now, h);
        } else {
            self.finish(h, Outcome::Done);
        }
    }

    /// Whether a write-zeroes is small enough to be written as data.
    pub(super) const fn zeroes_as_data(blocks: u64) -> bool {
        blocks <= ZEROES_AS_DATA
    }
}
