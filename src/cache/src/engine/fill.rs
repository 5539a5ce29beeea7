//! Fills: blocks read from the backing device enter the cache, unless a change came between.
//!
//! A fill is known from the begin of its backing read. A commit of newer data, or the end of a
//! write that bypasses the log, takes its blocks out of it. It is placed in the log only while no
//! newer version exists, committed or in flight.

use super::slab::Handle;
use super::types::{BLOCK, BLOCK_U32};
use super::volume::{Volume, spare};
use super::{Cx, Engine};
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::hazard::{Claim, Mode};
use crate::index::{Flags, Key};
use crate::plant::Bug;
use crate::policy::{Admission, Room};
use forebay_io::{Buf, BufPool, Completion, Duration, Instant, Lsn, RequestOp};

/// Fills known at once at most; further misses are served and forgotten.
const FILLS_MAX: usize = 256;
/// A batch of fills is written when it has this many blocks, or after [`STAGED_MAX`].
const BATCH_FROM: u32 = 32;
/// Longest wait of a fill for company.
pub(super) const STAGED_MAX: Duration = Duration::from_millis(2);
/// Free segments that fills do not take.
const FILL_RESERVE: usize = 4;
/// Blocks of a miss that go to the memory tier one by one; more share too large a buffer.
const TIER_BLOCKS: u32 = 4;

/// One backing read whose blocks may enter the cache.
#[derive(Debug)]
struct Fill<B> {
    id: u64,
    place: u16,
    block: u64,
    blocks: u32,
    /// The blocks that may enter, a bit for each.
    mask: u64,
    /// The volume's committed number when the backing read began.
    lsn: Lsn,
    /// The data, once it is there.
    buf: Option<B>,
}

/// All fills that are not in the log.
#[derive(Debug)]
pub(super) struct Fills<B> {
    list: Vec<Fill<B>>,
    next: u64,
    staged: u32,
    pub(super) since: Option<Instant>,
}

impl<B> Fills<B> {
    pub(super) const fn new() -> Self {
        Self { list: Vec::new(), next: 0, staged: 0, since: None }
    }
}

/// The bits `from..end`, cut to 64.
fn bits(from: u64, end: u64) -> u64 {
    let below = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(end) & !below(from)
}

impl<B: Buf> Engine<B> {
    /// A miss begins: registers what of it may enter the cache.
    pub(super) fn fill_begin(
        &mut self,
        h: Handle,
        place: u16,
        block: u64,
        blocks: u32,
    ) -> Option<u64> {
        let req = self.reqs.get(h)?;
        let (host, sequential) = (req.op == RequestOp::Read, req.sequential);
        let vol = self.vols.get(place)?;
        if !host || !self.takes_fills(vol) {
            return None;
        }
        let lsn = Lsn(vol.committed);
        if self.bypassed_now(place, block, u64::from(blocks)) {
            return None;
        }
        let vol = self.vols.get(place)?;
        let room =
            if self.segs.free_count() > self.reclaim_from() { Room::Free } else { Room::Full };
        let full = vol.share.room(self.cached_of(vol.index)) == 0;
        let mut mask = 0;
        for index in 0..u64::from(blocks) {
            if vol.ranges.get(block + index).is_none()
                && let Some(key) = self.vols.key(place, block + index)
                && self.replaceable(key)
                && (self.dropped(key)
                    || vol.share.is_pinned(block + index)
                    || (!full && self.policy.on_miss(key, sequential, room) == Admission::Admit))
            {
                mask |= 1 << index;
            }
        }
        if mask == 0 {
            return None;
        }
        self.fills.next += 1;
        let id = self.fills.next;
        self.fills.list.push(Fill { id, place, block, blocks, mask, lsn, buf: None });
        Some(id)
    }

    /// Whether what is read from a volume's backing device now may enter the cache.
    fn takes_fills(&self, vol: &Volume) -> bool {
        // With a volatile cache hosts' writes may still be lost from the backing device: a copy here
        // must not outlive them. The flush is on its way.
        let lasting = !self.volatile
            || self.plant.has(Bug::FillUnflushed)
            || !vol.backing.volatile_write_cache
            || (!vol.unflushed && vol.flushing == 0);
        // A write that timed out may change the backing device behind a copy of what was there.
        let settled = vol.doubts == 0 || self.plant.has(Bug::FillInDoubt);
        lasting
            && settled
            && vol.caching
            && !vol.detaching
            && !self.stopping
            && self.cache_failed.is_none()
            && self.fills.list.len() < FILLS_MAX
    }

    /// A block whose copy was dropped is read from the backing device, for nobody but the cache:
    /// registers it, as [`Engine::fill_begin`] does for a host's miss.
    pub(super) fn fill_again(&mut self, place: u16, block: u64) -> Option<u64> {
        let vol = self.vols.get(place)?;
        let lsn = Lsn(vol.committed);
        let dropped = self.vols.key(place, block).is_some_and(|key| self.dropped(key));
        if !dropped || !self.takes_fills(vol) || self.bypassed_now(place, block, 1) {
            return None;
        }
        self.fills.next += 1;
        let id = self.fills.next;
        self.fills.list.push(Fill { id, place, block, blocks: 1, mask: 1, lsn, buf: None });
        Some(id)
    }

    /// Pinned blocks that the cache lacks are read from the backing device: registers them, as
    /// [`Engine::fill_begin`] does for a host's miss.
    pub(super) fn fill_pinned(&mut self, place: u16, block: u64, blocks: u32) -> Option<u64> {
        let vol = self.vols.get(place)?;
        let lsn = Lsn(vol.committed);
        if !self.takes_fills(vol) || self.segs.free_count() < FILL_RESERVE {
            return None;
        }
        self.fills.next += 1;
        let (id, mask) = (self.fills.next, bits(0, u64::from(blocks)));
        self.fills.list.push(Fill { id, place, block, blocks, mask, lsn, buf: None });
        Some(id)
    }

    /// The volume may end inside its last cache block: the rest of what was read there is zeroes.
    pub(super) fn zero_past_end(&self, place: u16, block: u64, blocks: u64, buf: &mut Option<B>) {
        let len = self.vols.get(place).map_or(0, |vol| vol.backing_range(block, blocks).1);
        if let Some(tail) = buf.as_mut().and_then(Buf::as_mut_slice)
            && let Some(rest) = usize::try_from(len).ok().and_then(|len| tail.get_mut(len..))
        {
            rest.fill(0);
        }
    }

    /// The backing read of blocks that no host asked for ended.
    pub(super) fn fill_fetched<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        (place, block, blocks): (u16, u64, u64),
        fill: u64,
        done: Completion<B>,
    ) {
        let mut buf = done.buf.filter(|_| done.result.is_ok());
        self.zero_past_end(place, block, blocks, &mut buf);
        match done.result {
            Ok(()) => self.backing_good(cx, place),
            Err(error) => self.backing_error(cx, place, error),
        }
        self.fill_read(cx, Some(fill), buf);
    }

    /// The backing read of a fill ended.
    pub(super) fn fill_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        id: Option<u64>,
        buf: Option<B>,
    ) {
        let Some(at) = id.and_then(|id| self.fills.list.iter().position(|fill| fill.id == id))
        else {
            return;
        };
        let (Some(buf), true) = (buf, self.fills.list[at].mask != 0) else {
            self.fills.list.swap_remove(at);
            return;
        };
        let fill = &mut self.fills.list[at];
        fill.buf = Some(buf.clone());
        let (place, block, blocks, mask) = (fill.place, fill.block, fill.blocks, fill.mask);
        self.fills.staged += mask.count_ones();
        self.fills.since.get_or_insert(cx.now);
        if blocks <= TIER_BLOCKS && self.tier.capacity() > 0 {
            for index in (0..blocks).filter(|index| mask >> index & 1 != 0) {
                if let Some(key) = self.vols.key(place, block + u64::from(index)) {
                    self.tier.insert(key, buf.clone(), index * BLOCK_U32);
                }
            }
        }
    }

    /// Newer data of these blocks exists: fills of older data must not enter. `placed`: nor those
    /// that are in the log and not yet in the index.
    pub(super) fn kill_fills(&mut self, place: u16, block: u64, blocks: u64, placed: bool) {
        for fill in self.fills.list.iter_mut().filter(|fill| fill.place == place) {
            let end = block.saturating_add(blocks);
            if block < fill.block + u64::from(fill.blocks) && fill.block < end {
                fill.mask &= !bits(block.saturating_sub(fill.block), end - fill.block);
            }
        }
        if placed {
            self.placed_fills(place, block, blocks, true);
        }
    }

    /// Whether a fill of one of these blocks is in the log and not yet in the index; `kill` keeps
    /// it out of the index.
    pub(super) fn placed_fills(&mut self, place: u16, block: u64, blocks: u64, kill: bool) -> bool {
        let Some(vol) = self.vols.get(place) else { return false };
        let (volume, generation) = (vol.index, vol.generation);
        let mut found = false;
        for batch in &mut self.streams[usize::from(LogStream::Fill.code())].queue {
            let log = self.segs.get(batch.seg).and_then(|s| s.log.as_ref());
            let Some(log) = log else { continue };
            let mut at = 0;
            for entry in batch.entries.clone() {
                let Some((record, _)) = log.get(entry) else { break };
                let from = at;
                at += record.data_blocks();
                if record.volume != volume || record.generation != generation {
                    continue;
                }
                for (place, at) in (record.block..).zip(from..at) {
                    if place >= block && place - block < blocks {
                        found |= batch.from[at] != u32::MAX;
                        if kill {
                            batch.from[at] = u32::MAX;
                        }
                    }
                }
            }
        }
        found
    }

    /// Writes what is staged, if it is enough or has waited long enough.
    pub(super) fn fill_pump<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let due = self.fills.since.is_some_and(|since| cx.now.since(since) >= STAGED_MAX);
        if !due && self.fills.staged < BATCH_FROM {
            return;
        }
        if self.streams[usize::from(LogStream::Fill.code())].queue.len() >= 2 {
            return;
        }
        (self.fills.staged, self.fills.since) = (0, None);
        let mut at = 0;
        while at < self.fills.list.len() {
            if self.fills.list[at].buf.is_none() {
                at += 1;
                continue;
            }
            let fill = self.fills.list.swap_remove(at);
            self.fill_place(cx, &fill);
        }
        self.close_batch(LogStream::Fill);
        self.pump(cx.now, LogStream::Fill);
    }

    fn fill_place<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, fill: &Fill<B>) {
        let share = self.vols.get(fill.place).map(|vol| vol.share.room(self.cached_of(vol.index)));
        let mut room = share.unwrap_or(0);
        let mut index = 0;
        while index < u64::from(fill.blocks) {
            let mut run = 0;
            while run < 64
                && index + run < u64::from(fill.blocks)
                && self.fill_fits(fill, index + run)
                && self.share_takes(fill, index + run, &mut room)
            {
                run += 1;
            }
            if run == 0 {
                index += 1;
                continue;
            }
            let Some(placed) = self.fill_append(cx, fill, index, run) else { return };
            index += placed;
        }
    }

    /// Whether a block of a fill may be placed now.
    fn fill_fits(&mut self, fill: &Fill<B>, index: u64) -> bool {
        let block = fill.block + index;
        let Some(vol) = self.vols.get(fill.place) else { return false };
        let Some(key) = self.vols.key(fill.place, block) else { return false };
        let claim =
            Claim { volume: fill.place, first: block, blocks: 1, mode: Mode::Exclusive, token: 0 };
        fill.mask >> index & 1 != 0
            && vol.caching
            && vol.ranges.get(block).is_none()
            && self.replaceable(key)
            && self.hold.is_free(&claim)
            && !self.placed_fills(fill.place, block, 1, false)
    }

    /// Whether a block of a fill has room in its volume's share, which it takes: what is pinned, or
    /// replaces another copy, needs none.
    fn share_takes(&self, fill: &Fill<B>, index: u64, room: &mut u64) -> bool {
        let block = fill.block + index;
        let pinned = self.vols.get(fill.place).is_some_and(|vol| vol.share.is_pinned(block));
        let replaces = || self.vols.key(fill.place, block).is_some_and(|key| self.dropped(key));
        if *room == 0 {
            return pinned || replaces();
        }
        *room -= 1;
        true
    }

    /// Whether the index has only a clean copy of a block, and that one is wrong.
    fn dropped(&self, key: Key) -> bool {
        let bad = |flags: Flags| !flags.dirty() && flags.spare() & spare::BAD != 0;
        self.index.get(key).is_some_and(|entry| bad(entry.flags))
    }

    /// Whether the index has nothing of a block, or only a clean copy that cannot be read.
    pub(super) fn replaceable(&self, key: Key) -> bool {
        self.index.get(key).is_none() || self.dropped(key) || self.plant.has(Bug::ReplaceAny)
    }

    fn fill_append<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        fill: &Fill<B>,
        index: u64,
        run: u64,
    ) -> Option<u64> {
        let room = self.room(cx, LogStream::Fill, FILL_RESERVE)?;
        let blocks = run.min(u64::from(room));
        let vol = self.vols.get(fill.place)?;
        let record = Record {
            kind: Kind::Fill,
            moved: false,
            clean: true,
            volume: vol.index,
            generation: vol.generation,
            block: fill.block + index,
            blocks: u32::try_from(blocks).ok()?,
            lsn: fill.lsn,
            epoch: vol.epoch,
            slot: 0,
        };
        let key = vol.key;
        let start = usize::try_from(index * BLOCK).ok()?;
        let end = start + usize::try_from(blocks * BLOCK).ok()?;
        let data = fill.buf.as_ref()?.as_slice().get(start..end)?;
        self.append_data(LogStream::Fill, &record, key, data, None)?;
        if let Some(vol) = self.vols.get_mut(fill.place) {
            vol.share.placing += blocks;
        }
        Some(blocks)
    }

    /// Fills are on the cache device: they enter the index where nothing newer is there.
    pub(super) fn fill_counts(&mut self, record: &Record, seg: u32, from: &[u32]) {
        let Some(place) = self.vols.place_of(record.volume, record.generation) else { return };
        if let Some(vol) = self.vols.get_mut(place) {
            vol.share.placing = vol.share.placing.saturating_sub(u64::from(record.blocks));
        }
        let first = self.map.slot(seg, record.slot);
        for (((slot, block), state), _) in
            (first..).zip(record.block..).zip(from).zip(0..record.blocks)
        {
            let Some(key) = self.vols.key(place, block) else { return };
            let covered = self.vols.get(place).is_some_and(|vol| vol.ranges.get(block).is_some());
            if *state != u32::MAX && !covered && self.replaceable(key) {
                self.stats.fills += 1;
                // The memory tier may hold the same data already; it stays there.
                match self.index.insert(key, slot, Flags::NONE) {
                    Ok(old) => {
                        self.segs.count(self.map.segment_of(slot), 1, 0);
                        if let Some(old) = old {
                            self.uncount(place, old);
                        }
                    }
                    Err(_) => self.stats.index_full += 1,
                }
            }
        }
    }
}
