//! Reads: memory tier, cache device, backing device; also the reads inside a sub-block write, a
//! compare and a compare-and-write.

use super::ops::What;
use super::request::{Origin, Part, Stage};
use super::slab::Handle;
use super::types::{BLOCK, BLOCK_LEN, BLOCK_U32, Event};
use super::volume::spare;
use super::{Cx, Engine};
use crate::plant::Bug;
use forebay_io::crc::block_crc;
use forebay_io::{BlockError, Buf, BufPool, Completion, Op, Outcome, Piece};

/// Blocks of one device read at most: 256 KiB.
const RUN_MAX: u64 = 64;
/// Reads of one dirty block before it counts as lost.
const TRIES_MAX: u8 = 3;

/// Where a block is.
pub(super) enum Found<B> {
    Zero,
    Page(B, u32),
    Slot(u32),
    Miss,
    Lost,
}

/// Neighbouring blocks that one operation can read.
#[derive(Clone, Copy)]
struct Run {
    /// First slot, or none for a miss.
    slot: Option<u32>,
    block: u64,
    part: u32,
    blocks: u64,
}

impl<B: Buf> Engine<B> {
    /// Begins, or begins again, a host's read.
    pub(super) fn read_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.stage = Stage::Read;
        let (offset, len) = (req.offset, req.len);
        self.read_range(cx, h, offset, len);
        self.parts_check(cx, h);
    }

    /// Adds parts for a range of bytes to a request and begins what operations they need.
    pub(super) fn read_range<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        offset: u64,
        len: u64,
    ) {
        let Some(volume) = self.reqs.get(h).map(|req| req.volume) else { return };
        let end = offset.saturating_add(len);
        let (mut at, mut run) = (offset, None::<Run>);
        while at < end {
            let block = at / BLOCK;
            let stop = ((block + 1) * BLOCK).min(end);
            let within = (at % BLOCK, stop - at);
            at = stop;
            let found = self.lookup(volume, block);
            let Some(next) = self.read_part(cx, h, block, within, found) else { continue };
            if let Some(open) = run.as_mut().filter(|open| self.extends(open, next.slot, block)) {
                open.blocks += 1;
                continue;
            }
            if let Some(done) = run.replace(next) {
                self.read_run(cx, h, volume, done);
            }
        }
        if let Some(done) = run {
            self.read_run(cx, h, volume, done);
        }
    }

    /// Begins a host's read of one block, or of a part of it, that was looked up.
    pub(super) fn read_one<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        found: Found<B>,
    ) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.stage = Stage::Read;
        let (volume, block) = (req.volume, req.offset / BLOCK);
        let within = (req.offset % BLOCK, req.len);
        if let Some(run) = self.read_part(cx, h, block, within, found) {
            self.read_run(cx, h, volume, run);
        }
        self.parts_check(cx, h);
    }

    /// Adds a part, one block or bytes `within` it (first, count), to a request; where a device has to
    /// be read for it, says what.
    fn read_part<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        block: u64,
        within: (u64, u64),
        found: Found<B>,
    ) -> Option<Run> {
        let (offset, len) = (u16::try_from(within.0).ok()?, u16::try_from(within.1).ok()?);
        let origin = match found {
            Found::Page(..) => Origin::Tier,
            Found::Zero => Origin::Zeroes,
            Found::Slot(_) => Origin::Device,
            Found::Miss | Found::Lost => self.origin_past(h),
        };
        let req = self.reqs.get_mut(h)?;
        let part = u32::try_from(req.parts.len()).unwrap_or(u32::MAX);
        req.parts.push(Part { piece: None, origin, from: 0, tries: 0, offset, len });
        match found {
            Found::Slot(slot) => return Some(Run { slot: Some(slot), block, part, blocks: 1 }),
            Found::Miss => return Some(Run { slot: None, block, part, blocks: 1 }),
            Found::Page(buf, start) => self.set_part(h, part, buf, start, 0),
            Found::Zero => match self.zero_page(cx) {
                Some(zero) => self.set_part(h, part, zero, 0, 0),
                None => self.ask_again(h),
            },
            Found::Lost => self.fail(h, BlockError::Unrecovered),
        }
        None
    }

    /// How a block counts that the backing device gives.
    fn origin_past(&self, h: Handle) -> Origin {
        let Some(req) = self.reqs.get(h) else { return Origin::Miss };
        let caching = self.vols.get(req.volume).is_some_and(|vol| vol.caching);
        if caching && !req.sequential && self.cache_failed.is_none() {
            Origin::Miss
        } else {
            Origin::Past
        }
    }

    fn extends(&self, run: &Run, slot: Option<u32>, block: u64) -> bool {
        if run.blocks >= RUN_MAX || run.block + run.blocks != block {
            return false;
        }
        match (run.slot, slot) {
            (None, None) => true,
            (Some(first), Some(slot)) => {
                u64::from(first) + run.blocks == u64::from(slot)
                    && self.map.segment_of(first) == self.map.segment_of(slot)
            }
            _ => false,
        }
    }

    pub(super) fn lookup(&mut self, volume: u16, block: u64) -> Found<B> {
        let Some(vol) = self.vols.get(volume) else { return Found::Lost };
        if !vol.caching {
            return Found::Miss;
        }
        if !vol.ranges.is_empty() && vol.ranges.get(block).is_some() {
            return Found::Zero;
        }
        let Some(key) = self.vols.key(volume, block) else { return Found::Miss };
        if let Some((buf, offset)) = self.tier.get(key) {
            return Found::Page(buf.clone(), offset);
        }
        let Some(entry) = self.index.get_touch(key) else { return Found::Miss };
        if self.cache_failed.is_some() {
            let lost = entry.flags.dirty() && !self.plant.has(Bug::FailedServesOld);
            return if lost { Found::Lost } else { Found::Miss };
        }
        match (entry.flags.spare() & spare::BAD != 0, entry.flags.dirty()) {
            (true, true) if self.plant.has(Bug::LostIsZero) => Found::Zero,
            (true, true) => Found::Lost,
            (true, false) => Found::Miss,
            (false, _) => Found::Slot(entry.slot),
        }
    }

    fn read_run<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        volume: u16,
        run: Run,
    ) {
        let blocks = u32::try_from(run.blocks).unwrap_or(1);
        let Some(buf) = self.alloc(cx, run.blocks * BLOCK) else {
            self.ask_again(h);
            return;
        };
        let (what, op) = match run.slot {
            Some(slot) => {
                let Some(at) = self.map.slot_offset(slot) else { return };
                self.segs.reader(self.map.segment_of(slot), 1);
                let what =
                    What::Hit { req: h, part: run.part, blocks, volume, block: run.block, slot };
                (what, Op::read(0, at, run.blocks * BLOCK, buf))
            }
            None => {
                let Some(vol) = self.vols.get(volume) else { return };
                if let Some(error) = vol.refuses_reads() {
                    self.fail(h, error);
                    return;
                }
                let (at, len) = vol.backing_range(run.block, run.blocks);
                let fill = self.fill_begin(h, volume, run.block, blocks);
                let what =
                    What::Miss { req: h, part: run.part, blocks, volume, block: run.block, fill };
                (what, Op::read(0, at, len, buf))
            }
        };
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.outstanding += 1;
        match run.slot {
            Some(_) => self.cache_op(cx.now, what, op),
            None => self.backing_op(cx.now, volume, what, op),
        }
    }

    /// A read of the cache device for a host ended.
    pub(super) fn hit_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        (req, part, blocks): (Handle, u32, u32),
        (volume, block, slot): (u16, u64, u32),
        token: u64,
        done: Completion<B>,
    ) {
        self.segs.reader(self.map.segment_of(slot), -1);
        self.op_ended(req);
        let key_seed = self.vols.get(volume).map_or(0, |vol| vol.key);
        let buf = done.buf.filter(|_| done.result.is_ok());
        for index in 0..blocks {
            let (slot, block) = (slot + index, block + u64::from(index));
            let start = index as usize * BLOCK_LEN;
            let good = buf.as_ref().filter(|buf| {
                buf.as_slice().get(start..start + BLOCK_LEN).is_some_and(|data| {
                    self.plant.has(Bug::NoCrcOnHit)
                        || self.folds.matches(slot, block_crc(key_seed, block, 0, data))
                })
            });
            let Some(buf) = good else {
                self.stats.bad_reads += 1;
                self.hit_bad(cx, req, part + index, (volume, block, slot), buf.is_some());
                continue;
            };
            let start = index * BLOCK_U32;
            let buf = buf.clone();
            if blocks == 1
                && let Some(key) = self.vols.key(volume, block)
                && self.tier.capacity() > 0
                && (self.plant.has(Bug::TierLate)
                    || self.index.get(key).is_some_and(|entry| entry.slot == slot))
            {
                self.tier.insert(key, buf.clone(), 0);
            }
            self.set_part(req, part + index, buf, start, token);
        }
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        self.parts_check(cx, req);
    }

    /// A block could not be read from the cache device, or is not what was written there: a miss
    /// where it is clean; read again, and at last lost, where it is dirty.
    fn hit_bad<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        req: Handle,
        part: u32,
        (volume, block, slot): (u16, u64, u32),
        readable: bool,
    ) {
        let Some(key) = self.vols.key(volume, block) else { return };
        let entry = self.index.get(key);
        let tries = self.reqs.get_mut(req).and_then(|req| {
            let part = req.parts.get_mut(part as usize)?;
            part.tries += 1;
            Some(part.tries)
        });
        let again = Run { slot: None, block, part, blocks: 1 };
        match entry {
            Some(entry) if entry.slot != slot => {
                self.read_run(cx, req, volume, Run { slot: Some(entry.slot), ..again });
            }
            Some(entry)
                if entry.flags.dirty()
                    && entry.flags.spare() & spare::WRITTEN == 0
                    && !self.plant.has(Bug::BadDirtyIsMiss) =>
            {
                if tries.unwrap_or(TRIES_MAX) < TRIES_MAX && self.cache_failed.is_none() {
                    self.read_run(cx, req, volume, Run { slot: Some(slot), ..again });
                } else {
                    // What the device did not give now it may give later; what is wrong stays so.
                    if readable {
                        self.block_lost(volume, block, slot);
                    }
                    self.fail(req, BlockError::Unrecovered);
                }
            }
            Some(entry) => {
                // What cannot be read may be read later; what is wrong must not be served again. In
                // write-through the backing device has it before it is clean.
                if readable && !entry.flags.dirty() {
                    self.drop_bad(volume, block, slot);
                }
                self.set_origin(req, part, Origin::Miss);
                self.read_run(cx, req, volume, again);
            }
            None if self.vols.get(volume).is_some_and(|v| v.ranges.get(block).is_some()) => {
                self.set_origin(req, part, Origin::Zeroes);
                match self.zero_page(cx) {
                    Some(zero) => self.set_part(req, part, zero, 0, 0),
                    None => self.ask_again(req),
                }
            }
            None => {
                self.set_origin(req, part, Origin::Miss);
                self.read_run(cx, req, volume, again);
            }
        }
    }

    fn set_origin(&mut self, h: Handle, part: u32, origin: Origin) {
        let part = self.reqs.get_mut(h).and_then(|req| req.parts.get_mut(part as usize));
        if let Some(part) = part {
            part.origin = origin;
        }
    }

    /// A clean block does not match its CRC: it is not read again. Its entry stays until a fill
    /// replaces it, because the record is still on the device.
    pub(super) fn drop_bad(&mut self, place: u16, block: u64, slot: u32) {
        let Some(key) = self.vols.key(place, block) else { return };
        let old = self
            .index
            .update_if_slot(key, slot, |flags| flags.with_spare(flags.spare() | spare::BAD));
        self.tier.invalidate(key);
        if old.is_some_and(|flags| flags.spare() & spare::BAD == 0)
            && let Some(vol) = self.vols.get_mut(place)
        {
            vol.healed += 1;
        }
    }

    /// Dirty data is gone: said once, kept as an error until the block is written.
    ///
    /// Hits, destage, reclaim and scrub all give up a dirty block here and nowhere else. This is
    /// where another journal's copy is to be asked for: what comes back under the record's volume
    /// key, address and LSN is appended again to the reinsert log, as reclaim moves a block, and takes
    /// the entry's place if that still is `slot`; only without any copy is the block lost.
    pub(super) fn block_lost(&mut self, volume: u16, block: u64, slot: u32) {
        let Some(key) = self.vols.key(volume, block) else { return };
        let old = self
            .index
            .update_if_slot(key, slot, |flags| flags.with_spare(flags.spare() | spare::BAD));
        if old.is_some_and(|flags| flags.spare() & spare::BAD == 0)
            && let Some(vol) = self.vols.get_mut(volume)
        {
            vol.lost_blocks += 1;
            let volume = vol.id;
            self.event(Event::DirtyLost { volume, block, blocks: 1 });
        }
    }

    /// A read of the backing device for a host ended.
    pub(super) fn miss_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        (req, part, blocks): (Handle, u32, u32),
        (volume, block): (u16, u64),
        fill: Option<u64>,
        token: u64,
        done: Completion<B>,
    ) {
        self.op_ended(req);
        let mut buf = done.buf.filter(|_| done.result.is_ok());
        self.zero_past_end(volume, block, u64::from(blocks), &mut buf);
        match &buf {
            Some(buf) => {
                self.backing_good(cx, volume);
                for index in 0..blocks {
                    self.set_part(req, part + index, buf.clone(), index * BLOCK_U32, token);
                }
            }
            None => {
                let error = done.result.err().unwrap_or(forebay_io::DeviceError::Io(0));
                self.backing_error(cx, volume, error);
                self.miss_failed(req, volume);
            }
        }
        self.fill_read(cx, fill, buf);
        self.parts_check(cx, req);
    }

    /// The backing device did not give the data: the request waits or fails, as configured.
    fn miss_failed(&mut self, h: Handle, volume: u16) {
        match self.vols.get(volume).map(|vol| vol.on_failure) {
            Some(super::types::OnFailure::Wait) => self.ask_again(h),
            _ => self.fail(h, BlockError::NotReady),
        }
    }

    /// Fills a part with `buf` from `start`, the begin of its cache block.
    fn set_part(&mut self, h: Handle, part: u32, buf: B, start: u32, from: u64) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        let Some(part) = req.parts.get_mut(part as usize) else { return };
        let (offset, len) = (start + u32::from(part.offset), u32::from(part.len));
        part.piece = Some(Piece { buf, offset, len });
        part.from = from;
    }

    /// The request begins again once its operations have ended.
    pub(super) fn ask_again(&mut self, h: Handle) {
        if let Some(req) = self.reqs.get_mut(h) {
            req.again = true;
        }
    }

    /// The request fails once its operations have ended.
    pub(super) fn fail(&mut self, h: Handle, error: BlockError) {
        if let Some(req) = self.reqs.get_mut(h) {
            req.error = req.error.or(Some(error));
        }
    }

    pub(super) fn op_ended(&mut self, h: Handle) {
        if let Some(req) = self.reqs.get_mut(h) {
            req.outstanding = req.outstanding.saturating_sub(1);
        }
    }

    /// Goes on with a request whose reads have all ended.
    pub(super) fn parts_check<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        if req.outstanding > 0 || !matches!(req.stage, Stage::Read | Stage::Prepare) {
            return;
        }
        if let Some(error) = req.error {
            self.finish(h, Outcome::Failed(error));
        } else if req.again {
            req.again = false;
            req.parts.clear();
            self.stall(h, cx.now);
        } else if req.stage == Stage::Prepare {
            self.prepared(cx, h);
        } else {
            self.read_ended(h);
        }
    }

    /// A page of zeroes, made once.
    fn zero_page<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) -> Option<B> {
        if self.zero.is_none() {
            let mut page = self.alloc(cx, BLOCK)?;
            page.as_mut_slice()?.fill(0);
            self.zero = Some(page);
        }
        self.zero.clone()
    }

    /// A buffer; where the pool is empty the memory tier gives pages back.
    pub(super) fn alloc<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, len: u64) -> Option<B> {
        let len = usize::try_from(len).ok()?;
        let mut tries = 64;
        loop {
            let got = cx.pool.alloc(len);
            if got.is_some() || tries == 0 || !self.tier.shrink_one() {
                return got;
            }
            tries -= 1;
        }
    }

    /// Copies the bytes of a request's parts, which must be complete, to `out`.
    pub(super) fn copy_parts(&self, h: Handle, from_part: usize, out: &mut [u8]) -> bool {
        let Some(req) = self.reqs.get(h) else { return false };
        let mut at = 0;
        for part in req.parts.iter().skip(from_part) {
            let Some(piece) = &part.piece else { return false };
            let (start, len) = (piece.offset as usize, piece.len as usize);
            if at >= out.len() {
                break;
            }
            let len = len.min(out.len() - at);
            let Some(data) = piece.buf.as_slice().get(start..start + len) else { return false };
            out[at..at + len].copy_from_slice(data);
            at += len;
        }
        at == out.len()
    }
}
