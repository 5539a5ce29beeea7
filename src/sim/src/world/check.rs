//! The checkers: bounds, the order on the backing devices, what is where and what is read.

use super::ask::Asked;
use super::{Ask, FRONT, World};
use crate::config::id_of;
use crate::oracle::{Oracle, Seen, recognise};
use forebay_cache::engine::CopyAt;
use forebay_io::{Instant, Lba, Outcome, Request, RequestOp, Tag};
use forebay_node::route::{Cargo, Message};

/// Longest time of a request after the last fault, in nanoseconds: many times what any wait of the
/// engine for a slow device, a retry or a flush takes.
const ALIVE_MAX: u64 = 60_000_000_000;

impl World {
    /// A page of a backing device changed: no sector of it may have gone back to an older write.
    pub(super) fn judge_order(&mut self, n: usize, page: u64, before: &crate::medium::Medium) {
        if self.oracles[n].is_relaxed() {
            // A cache device that lies may bring back what it had acknowledged newer data over.
            return;
        }
        let from = page * 4096;
        let len = 4096.min(before.size() - from);
        let (old, new) = (before.bytes(from, len), self.backing[n].bytes.bytes(from, len));
        let place = from / 512..;
        for ((place, old), new) in place.zip(old.chunks(512)).zip(new.chunks(512)) {
            if let (Seen::Write(old), Seen::Write(new)) =
                (recognise(place, old), recognise(place, new))
                && let (Some(old_time), Some(new_time)) = (
                    usize::try_from(old).ok().and_then(|at| self.times.get(at)),
                    usize::try_from(new).ok().and_then(|at| self.times.get(at)),
                )
                && (new_time.1 < old_time.0 || self.went_back(place, (old, new)))
            {
                self.fail(format!(
                    "the backing device of volume {n} goes back in time: sector {place} held write {old}, now write {new}"
                ));
            }
        }
    }

    /// Whether the log has the second of two writes of a sector before the first. (What lies of one
    /// write in several records has the number of the first: later ones carry it along.)
    fn went_back(&self, place: u64, (old, new): (u64, u64)) -> bool {
        let lsn = |write| self.versions.get(&(place, write));
        !self.oracles.iter().any(Oracle::is_relaxed)
            && lsn(old).zip(lsn(new)).is_some_and(|(old, new)| new < old)
    }

    /// A compare-and-write replaced what it had found: no other one can have found it, too.
    pub(super) fn check_replaced(&mut self, asked: &Asked) {
        let volume = asked.ask.volume;
        for (place, sector) in (asked.ask.offset / 512..).zip(asked.want.chunks(512)) {
            if let Seen::Write(write) = recognise(place, sector)
                && !self.replaced.insert((volume, place, write))
            {
                self.fail(format!(
                    "two compare-and-writes replaced write {write} in sector {place} of volume {volume}"
                ));
            }
        }
    }

    /// Without faults every request ends in bounded time.
    pub(super) fn check_alive(&mut self) {
        let cache = !self.cache_failed && self.cache.faults.any();
        if cache || self.backing.iter().any(|disk| disk.faults.any()) {
            self.faulty = self.now;
        }
        let oldest = self.asked.first_key_value().map(|(_, asked)| asked.since.max(self.faulty));
        if oldest.is_some_and(|since| self.now > since + ALIVE_MAX) && !self.over {
            self.stuck("a request is under way for ever");
        }
    }

    /// What was clean before a stop or a crash that loses nothing is clean after it.
    pub(super) fn check_drained(&mut self, volume: usize) {
        if !self.drained[volume] || self.tolerance.lost || self.violation.is_some() || self.over {
            return;
        }
        let dirty = self.engine().volume_stats(id_of(volume)).map_or(0, |stats| stats.dirty_bytes);
        if dirty > 0 {
            self.fail(format!(
                "volume {volume} was drained, and {dirty} bytes of it are dirty again"
            ));
        }
    }

    /// Bounds that hold at every moment.
    pub(super) fn check_bounds(&mut self) {
        let (live, _) = self.pool.bytes();
        self.most_live = self.most_live.max(live);
        // The logs' batches and spare ones, reads of requests and destage, the tier.
        let bound = (48 << 20) + u64::from(self.config.tier_pages) * 4096;
        if live > bound {
            self.fail(format!("{live} bytes in buffers, more than {bound}"));
        }
        let complaints = core::iter::once(&mut self.cache).chain(&mut self.backing);
        let complaints = complaints.chain(&mut self.journal);
        let complaint = complaints.flat_map(|disk| disk.complaints.drain(..)).next();
        if let Some(what) = complaint {
            self.fail(format!("a device was asked for what it cannot do: {what}"));
        }
        if let Some(n) = self.backing.iter().position(|disk| disk.overlaps > 0) {
            self.backing[n].overlaps = 0;
            self.fail(format!("overlapping writes of the backing device of volume {n}"));
        }
    }

    /// Reads everything after a crash: what is found is how it is. (No hosts are there yet.)
    pub(super) fn look_at_all(&mut self, power: bool) {
        let lasting = power || !self.config.volatile;
        for volume in 0..self.backing.len() {
            for (offset, data) in self.read_all(volume) {
                let tick = self.ticked();
                if let Err(wrong) = self.oracles[volume].judge(offset, &data, tick) {
                    self.fail(format!("after a crash, volume {volume}: {wrong}"));
                    return;
                }
                self.oracles[volume].settled(offset, &data, tick, lasting);
            }
            self.check_places(volume);
        }
    }

    /// All of a volume that can be read, block by block, straight from the engine's answer: the
    /// oracle is not told.
    pub fn read_all(&mut self, volume: usize) -> Vec<(u64, Vec<u8>)> {
        const CHUNK: u64 = 64 << 10;
        let size = self.config.volumes[volume].size;
        let unit = u64::from(self.config.volumes[volume].unit);
        let mut found = Vec::new();
        let mut at = 0;
        while at < size && self.violation.is_none() {
            let len = CHUNK.min(size - at);
            match self.read_raw(volume, at, len, unit) {
                Some(data) => found.push((at, data)),
                None if self.tolerance.lost || self.tolerance.refused => {
                    // Something of it is lost: block by block.
                    for from in (at..at + len).step_by(4096) {
                        let len = 4096.min(size - from);
                        if let Some(data) = self.read_raw(volume, from, len, unit) {
                            found.push((from, data));
                        }
                    }
                }
                None => self.fail(format!("volume {volume} cannot be read at {at}+{len}")),
            }
            at += len;
        }
        found
    }

    pub(super) fn read_raw(
        &mut self,
        volume: usize,
        offset: u64,
        len: u64,
        unit: u64,
    ) -> Option<Vec<u8>> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let request = Request {
            tag: Tag(tag),
            volume: id_of(volume),
            op: RequestOp::Read,
            lba: Lba(offset / unit),
            blocks: u32::try_from(len / unit).unwrap_or(0),
            fua: false,
        };
        let message = Message::Forward { from: FRONT, request, cargo: Cargo::None };
        self.raw = Some((tag, None));
        self.shard.handle_message(message, Instant(self.now));
        self.pump();
        for _ in 0..100_000 {
            if let Some((_, Some((outcome, data)))) = self.raw.take_if(|raw| raw.1.is_some()) {
                return (outcome == Outcome::Done && data.len() as u64 == len).then_some(data);
            }
            self.step();
        }
        self.raw = None;
        self.stuck("a read does not end");
        None
    }

    /// Judges the backing device by what the engine says of each block: what is not dirty in the
    /// cache must be there, and for good: trimmed implies flushed.
    pub fn check_places(&mut self, volume: usize) {
        let tick = self.ticked();
        self.check_places_at(volume, tick);
    }

    /// The same at a given tick.
    pub fn check_places_at(&mut self, volume: usize, tick: u64) {
        if self.cache_failed {
            return;
        }
        self.tick = self.tick.max(tick);
        let size = self.config.volumes[volume].size;
        let blocks = size.div_ceil(4096);
        let places = self.engine().locate(id_of(volume), 0, blocks, usize::MAX);
        // Without a volatile cache a write that bypasses the log is durable when it is acknowledged.
        let bypassed = self.config.volatile && self.bypassed[volume];
        for place in places {
            if !matches!(place.copy, CopyAt::Clean | CopyAt::Backing) {
                continue;
            }
            let (from, end) = (place.block * 4096, ((place.block + place.blocks) * 4096).min(size));
            let disk = &self.backing[volume];
            let lasting = place.copy == CopyAt::Clean || !bypassed;
            let medium = if lasting { disk.stable() } else { &disk.bytes };
            let data = medium.bytes(from, end - from);
            self.counts.places += place.blocks;
            if let Err(wrong) = self.oracles[volume].judge(from, &data, tick) {
                self.fail(format!(
                    "the backing device of volume {volume}, where the cache has no newer copy ({:?}): {wrong}",
                    place.copy
                ));
                return;
            }
        }
    }

    /// While no host writes: what the cache calls clean must be what the backing device holds.
    pub fn check_copies(&mut self, volume: usize) {
        let (size, unit) =
            (self.config.volumes[volume].size, u64::from(self.config.volumes[volume].unit));
        let places = self.engine().locate(id_of(volume), 0, size.div_ceil(4096), usize::MAX);
        for place in places.iter().filter(|place| place.copy == CopyAt::Clean) {
            for block in place.block..place.block + place.blocks {
                let (from, len) = (block * 4096, 4096.min(size - block * 4096));
                let Some(data) = self.read_raw(volume, from, len, unit) else { continue };
                if data != self.backing[volume].bytes.bytes(from, len) {
                    self.fail(format!(
                        "block {block} of volume {volume} is clean and not what the backing device holds"
                    ));
                    return;
                }
            }
        }
    }

    /// Destages all and checks that the backing devices hold it.
    pub fn check_backing(&mut self) {
        for volume in 0..self.backing.len() {
            if self.violation.is_some() || self.cache_failed || self.over {
                return;
            }
            self.drain_and_wait(volume);
            if self.violation.is_some() || self.over {
                return;
            }
            let size = self.config.volumes[volume].size;
            let places = self.engine().locate(id_of(volume), 0, size.div_ceil(4096), usize::MAX);
            for place in places.iter().filter(|place| place.copy != CopyAt::Lost) {
                let from = place.block * 4096;
                let len = (place.blocks * 4096).min(size - from);
                let data = self.backing[volume].bytes.bytes(from, len);
                let tick = self.ticked();
                if let Err(wrong) = self.oracles[volume].judge(from, &data, tick) {
                    self.fail(format!("the drained backing device of volume {volume}: {wrong}"));
                }
            }
            self.check_places(volume);
            self.check_copies(volume);
        }
    }

    /// Reads everything as a host does, and judges it.
    pub fn check_all(&mut self) {
        self.sweep(RequestOp::Read, 64 << 10);
    }

    /// Asks for all of every volume, `step` bytes at a time.
    pub(crate) fn sweep(&mut self, op: RequestOp, step: u32) {
        for volume in 0..self.backing.len() {
            let size = self.config.volumes[volume].size;
            for offset in (0..size).step_by(step as usize) {
                if self.violation.is_some() || self.over {
                    return;
                }
                let len = u64::from(step).min(size - offset);
                self.ask_and_wait(Ask { volume, op, offset, len, fua: false, spoil: false });
            }
        }
    }
}
