//! A host's request comes in, is put aside and taken up again, and ends.

use super::read::Found;
use super::request::{Part, Stage};
use super::slab::Handle;
use super::stats::BlockCounts;
use super::types::{BLOCK, Event};
use super::{Cx, Engine};
use forebay_io::{
    BlockError, Buf, BufPool, Instant, Outcome, Payload, Piece, Request, RequestOp, Tag,
};

/// What a request that was checked asks for.
struct Asked {
    place: u16,
    /// Bytes from the volume's begin.
    offset: u64,
    len: u64,
    sequential: bool,
}

impl<B: Buf> Engine<B> {
    /// Takes a host's request. It ends in [`Event::Done`] with its tag.
    pub fn handle_request<P: BufPool<Buf = B>>(
        &mut self,
        request: &Request,
        payload: Payload<'_, B>,
        pool: &mut P,
        now: Instant,
    ) {
        let mut cx = Cx { pool, now };
        self.last_poll = now;
        let judged = self.judge(request, &payload);
        if let Err(error) = judged.and_then(|asked| self.admit(&mut cx, request, &asked, payload)) {
            self.event(Event::Done { tag: request.tag, outcome: Outcome::Failed(error) });
        }
        self.settle(&mut cx);
    }

    /// Begins a request that was checked.
    fn admit<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        request: &Request,
        asked: &Asked,
        payload: Payload<'_, B>,
    ) -> Result<(), BlockError> {
        let (block, skip) = (asked.offset / BLOCK, asked.offset % BLOCK);
        if request.op != RequestOp::Read || skip + asked.len > BLOCK {
            let h = self.enter(request, asked, cx.now)?;
            self.begin(cx, h, payload);
            return Ok(());
        }
        // What the memory tier has of one block is answered at once, and needs no place.
        match self.lookup(asked.place, block) {
            Found::Page(buf, start) => self.page_hit(request.tag, asked, buf, start),
            found => {
                let h = self.enter(request, asked, cx.now)?;
                self.read_one(cx, h, found);
            }
        }
        Ok(())
    }

    /// Checks a request.
    fn judge(&mut self, request: &Request, payload: &Payload<'_, B>) -> Result<Asked, BlockError> {
        let place = self.vols.find(request.volume).ok_or(BlockError::NoSuchVolume)?;
        let vol = self.vols.get_mut(place).ok_or(BlockError::NoSuchVolume)?;
        if !vol.attached || vol.detaching || self.stopping {
            return Err(BlockError::NotReady);
        }
        let unit = u64::from(vol.block_size);
        let offset = request.lba.0.checked_mul(unit).ok_or(BlockError::Internal)?;
        let len = u64::from(request.blocks) * unit;
        let flush = request.op == RequestOp::Flush;
        let inside = offset.checked_add(len).is_some_and(|end| end <= vol.size);
        if !flush && (len == 0 || !inside) {
            return Err(BlockError::Internal);
        }
        let given = match payload {
            Payload::None => 0,
            Payload::Inline(bytes) => bytes.len() as u64,
            Payload::Owned(buf) => buf.len() as u64,
            Payload::Pair(a, b) if a.len() == b.len() => a.len() as u64,
            Payload::Pair(..) => return Err(BlockError::Internal),
        };
        let pair = matches!(payload, Payload::Pair(..));
        let right = match request.op {
            RequestOp::Write | RequestOp::Compare => given == len && !pair,
            RequestOp::CompareAndWrite => given == len && pair,
            _ => true,
        };
        if !right {
            return Err(BlockError::Internal);
        }
        let sequential = match request.op {
            RequestOp::Read => {
                let (first, end) = (offset / BLOCK, (offset + len).div_ceil(BLOCK));
                vol.sequential.observe(first, end - first)
            }
            _ => false,
        };
        Ok(Asked { place, offset, len, sequential })
    }

    /// Gives a request a place.
    fn enter(
        &mut self,
        request: &Request,
        asked: &Asked,
        now: Instant,
    ) -> Result<Handle, BlockError> {
        let vol = self.vols.get_mut(asked.place).ok_or(BlockError::NoSuchVolume)?;
        let (h, req) = self.reqs.take().ok_or(BlockError::Internal)?;
        vol.requests += 1;
        req.reset();
        req.tag = request.tag;
        (req.volume, req.op, req.fua) = (asked.place, request.op, request.fua);
        (req.offset, req.len) = (asked.offset, asked.len);
        (req.sequential, req.arrived) = (asked.sequential, now);
        Ok(h)
    }

    /// Answers a read of one block, or of a part of it, from its page in the memory tier.
    fn page_hit(&mut self, tag: Tag, asked: &Asked, buf: B, start: u32) {
        // Both are less than a block.
        let skip = u32::try_from(asked.offset % BLOCK).unwrap_or(0);
        let len = u32::try_from(asked.len).unwrap_or(0);
        if let Some(vol) = self.vols.get_mut(asked.place) {
            vol.blocks.tier_hits += 1;
        }
        self.stats.blocks.tier_hits += 1;
        self.pieces.push_back(Piece { buf, offset: start + skip, len });
        self.events.push_back((Event::Done { tag, outcome: Outcome::Done }, 1));
    }

    /// Ends a host's read whose parts are complete.
    pub(super) fn read_ended(&mut self, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        // One block is the usual case by far.
        let [Part { piece, origin, .. }] = req.parts.as_mut_slice() else {
            return self.finish(h, Outcome::Done);
        };
        let (piece, origin) = (piece.take(), *origin);
        let (place, tag) = (req.volume, req.tag);
        self.reqs.free(h);
        if let Some(vol) = self.vols.get_mut(place) {
            vol.requests -= 1;
            vol.blocks.read(origin);
        }
        self.stats.blocks.read(origin);
        let count = u32::from(piece.is_some());
        self.pieces.extend(piece);
        self.events.push_back((Event::Done { tag, outcome: Outcome::Done }, count));
    }

    fn begin<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        payload: Payload<'_, B>,
    ) {
        match self.reqs.get(h).map(|req| req.op) {
            Some(RequestOp::Read) => self.read_begin(cx, h),
            Some(RequestOp::Write | RequestOp::CompareAndWrite) => self.write_new(cx, h, payload),
            Some(RequestOp::Compare) => self.compare_begin(cx, h, payload),
            Some(RequestOp::WriteZeroes { .. } | RequestOp::Deallocate) => self.range_begin(cx, h),
            Some(RequestOp::Flush) => self.flush_begin(cx, h),
            None => {}
        }
    }

    fn compare_begin<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        payload: Payload<'_, B>,
    ) {
        let buf = match payload {
            Payload::Owned(buf) => Some(buf),
            Payload::Inline(bytes) => self.alloc(cx, bytes.len() as u64).and_then(|mut buf| {
                buf.as_mut_slice()?.copy_from_slice(bytes);
                Some(buf)
            }),
            _ => None,
        };
        let Some(buf) = buf else {
            self.finish(h, Outcome::Failed(BlockError::NotReady));
            return;
        };
        if let Some(req) = self.reqs.get_mut(h) {
            req.data = Some(buf);
        }
        self.compare_read(cx, h);
    }

    fn compare_read<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.stage = Stage::Prepare;
        let (offset, len) = (req.offset, req.len);
        self.read_range(cx, h, offset, len);
        self.parts_check(cx, h);
    }

    /// Takes up a request that was put aside.
    pub(super) fn resume<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        match req.op {
            RequestOp::Read => self.read_begin(cx, h),
            RequestOp::Compare => self.compare_read(cx, h),
            RequestOp::Flush => self.flush_begin(cx, h),
            _ if req.committed || req.backing.is_some() => self.backing_go(cx, h),
            _ => self.write_go(cx, h, None),
        }
    }

    /// A claim was granted, or a flush ended, for a request.
    fn woken<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        match self.reqs.get(h).map(|req| req.stage) {
            Some(Stage::Claim) => self.write_go(cx, h, None),
            Some(Stage::Backing) => self.backing_issue(cx, h),
            Some(Stage::Flush) => self.flush_goes_on(cx, h),
            _ => {}
        }
    }

    /// Goes on with all that was woken.
    pub(super) fn settle<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        while let Some(h) = self.wake.pop_front() {
            self.woken(cx, h);
        }
    }

    /// Ends a request.
    pub(super) fn finish(&mut self, h: Handle, outcome: Outcome) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        if req.outstanding > 0 && req.stage != Stage::Read && req.stage != Stage::Prepare {
            // Its edges are still under way.
            if let Outcome::Failed(error) = outcome {
                req.error = req.error.or(Some(error));
            }
            req.stage = Stage::Edges;
            // Its own part is done: others may wait for these blocks whom the edges wait for.
            let (claim, backing, doubt) = (req.claim.take(), req.backing.take(), req.doubt);
            if let Some(id) = claim {
                self.release_hold(id);
            }
            if let Some(id) = backing {
                self.end_backing(id, doubt);
            }
            return;
        }
        let outcome = match (outcome, req.error) {
            (Outcome::Done, Some(error)) => Outcome::Failed(error),
            _ => outcome,
        };
        let (place, tag, parent) = (req.volume, req.tag, req.parent);
        let (claim, backing, counted) = (req.claim.take(), req.backing.take(), req.counted);
        let doubt = req.doubt;
        let (direct, bypassing) = (req.direct, req.bypassing);
        (req.data, req.second) = (None, None);
        let wrote = outcome == Outcome::Done
            && parent.is_none()
            && matches!(req.op, RequestOp::Write | RequestOp::CompareAndWrite);
        let (bypass, written) = (req.bypass, if wrote { req.blocks().1 } else { 0 });
        let count = if outcome == Outcome::Done && req.op == RequestOp::Read {
            self.give_parts(h)
        } else {
            req.parts.clear();
            0
        };
        self.reqs.free(h);
        if let Some(vol) = self.vols.get_mut(place) {
            vol.requests -= 1;
            vol.journaling -= u64::from(counted);
            vol.direct -= u64::from(direct);
            vol.bypassing -= u64::from(bypassing);
            vol.blocks.wrote(bypass, written);
        }
        self.stats.blocks.wrote(bypass, written);
        if let Some(id) = claim {
            self.release_hold(id);
        }
        if let Some(id) = backing {
            self.end_backing(id, doubt);
        }
        match parent {
            Some(parent) => self.edge_over(parent, outcome),
            None if outcome == Outcome::Failed(BlockError::NotReady)
                && !self.stopping
                && self.refusals.hold(self.last_poll, tag) => {}
            None => self.events.push_back((Event::Done { tag, outcome }, count)),
        }
    }

    /// Counts a read's parts and hands their pieces out, neighbours in one buffer as one; returns how
    /// many.
    fn give_parts(&mut self, h: Handle) -> u32 {
        let Some(req) = self.reqs.get_mut(h) else { return 0 };
        let mut blocks = BlockCounts::default();
        let mut count = 0;
        let mut last: Option<(u64, Piece<B>)> = None;
        for part in req.parts.drain(..) {
            blocks.read(part.origin);
            let Some(piece) = part.piece else { continue };
            if let Some((from, open)) = &mut last
                && *from != 0
                && *from == part.from
                && open.offset + open.len == piece.offset
            {
                open.len += piece.len;
                continue;
            }
            if let Some((_, done)) = last.replace((part.from, piece)) {
                self.pieces.push_back(done);
                count += 1;
            }
        }
        if let Some((_, done)) = last {
            self.pieces.push_back(done);
            count += 1;
        }
        if let Some(vol) = self.vols.get_mut(req.volume) {
            vol.blocks.add(&blocks);
        }
        self.stats.blocks.add(&blocks);
        count
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back((event, 0));
    }
}
