//! Pinned blocks that the cache lacks are fetched from the backing device, in the order of their
//! addresses, a few reads at a time, through the same fills as a host's misses: so a newer change
//! wins, and what is there already, dirty or clean, stays as it is.
//!
//! A pass goes over all pinned blocks of a volume until it has met none that is missing. It begins
//! where pins are set, at a start too, and anew where the volume's cache is forgotten.

use super::ops::What;
use super::share::Share;
use super::types::BLOCK;
use super::{Cx, Engine};
use forebay_io::{Buf, BufPool, Completion, Duration, Instant, Op, VolumeId};

/// Blocks of one read at most: 64 KiB.
const RUN_MAX: u64 = 16;
/// Reads under way at most, of all volumes.
const READS_MAX: u32 = 4;
/// Blocks that are looked up at one poll.
const LOOKS: u64 = 128;
/// A pause where there is no room or buffer, and for what was fetched to enter.
const PAUSE: Duration = Duration::from_millis(10);
/// The same where the volume cannot take part now.
const STALL: Duration = Duration::from_millis(200);
/// Rounds of a pass: what is still missing after them is taken away as fast as it is fetched.
const ROUNDS_MAX: u32 = 100;

/// How far the pinned blocks of a volume are fetched.
#[derive(Debug, Default)]
pub(super) struct Pass {
    on: bool,
    /// The next block to look at.
    at: u64,
    round: u32,
    /// Blocks that were missing in this round, and in the one before.
    missing: u64,
    before: u64,
    /// Reads under way, and their blocks.
    reads: u32,
    flying: u64,
    fetched: u64,
    /// Not before this: the backing device failed.
    after: Instant,
    stall: Option<&'static str>,
}

/// The state of all passes.
#[derive(Debug)]
pub(super) struct Pins {
    /// There may be a pass.
    on: bool,
    reads: u32,
    /// Not before this.
    at: Instant,
}

impl Share {
    /// Ends the pass where it is.
    fn cut(&mut self) -> bool {
        let (on, missing) = (self.pass.on, self.pass.missing + self.pinned_from(self.pass.at));
        if on {
            (self.pass.on, self.pass.before) = (false, missing);
        }
        on
    }
}

impl Pins {
    pub(super) const fn new() -> Self {
        Self { on: false, reads: 0, at: Instant(0) }
    }

    pub(super) const fn is_idle(&self) -> bool {
        !self.on
    }

    pub(super) fn deadline(&self) -> Instant {
        if self.on { self.at } else { Instant::NEVER }
    }
}

/// How far the fetching of a volume's pinned blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinStatus {
    /// Whether it goes on.
    pub running: bool,
    /// Pinned bytes.
    pub pinned_bytes: u64,
    /// Bytes to be looked at, or fetched.
    pub left_bytes: u64,
    /// Bytes that were fetched.
    pub fetched_bytes: u64,
    /// Bytes that the last round found missing, or did not come to: 0 where it ended as it should.
    pub missing_bytes: u64,
    /// What it waits for.
    pub stall: Option<&'static str>,
}

impl<B: Buf> Engine<B> {
    /// How far the fetching of a volume's pinned blocks is; `None` where there is no such volume.
    #[must_use]
    pub fn pin_status(&self, id: VolumeId) -> Option<PinStatus> {
        let share = &self.vols.get(self.vols.find(id)?)?.share;
        let pass = &share.pass;
        let ahead = share.pinned_from(pass.at);
        let ahead = if pass.round > 0 { ahead.min(pass.before) } else { ahead };
        let left = if pass.on { ahead + pass.flying } else { 0 };
        Some(PinStatus {
            running: pass.on,
            pinned_bytes: share.pinned() * BLOCK,
            left_bytes: left * BLOCK,
            fetched_bytes: pass.fetched * BLOCK,
            missing_bytes: pass.before * BLOCK,
            stall: pass.stall,
        })
    }

    /// Fetches no more of a volume's pinned blocks. What is in the cache stays pinned, and what hosts
    /// read of the rest comes in. `false` where nothing was being fetched.
    pub fn pin_end(&mut self, id: VolumeId) -> bool {
        let place = self.vols.find(id);
        let vol = place.and_then(|place| self.vols.get_mut(place));
        vol.is_some_and(|vol| vol.share.cut())
    }

    /// Other blocks are pinned, or the volume's cache was forgotten: a pass begins.
    pub(super) fn pins_changed(&mut self, place: u16) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        let share = &mut vol.share;
        let on = share.pinned() > 0;
        let (reads, flying) = (share.pass.reads, share.pass.flying);
        share.pass = Pass { on, reads, flying, ..Pass::default() };
        self.pins.on |= on;
        self.pins.at = self.last_poll;
    }

    /// Takes the passes as far as they go now.
    pub(super) fn pins_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if cx.now < self.pins.at {
            return;
        }
        if self.stopping || self.cache_failed.is_some() {
            for (_, vol) in self.vols.iter_mut() {
                vol.share.cut();
            }
        }
        self.pins.on = false;
        let mut next = Instant::NEVER;
        for place in 0..self.vols.bound() {
            if !self.vols.get(place).is_some_and(|vol| vol.share.pass.on) {
                continue;
            }
            self.pins.on = true;
            let stall = self.pin_stall(place, cx.now);
            let Some(vol) = self.vols.get_mut(place) else { continue };
            vol.share.pass.stall = stall;
            let later = (cx.now + STALL).min(vol.share.pass.after.max(cx.now + PAUSE));
            next = next.min(if stall.is_some() { later } else { self.pins_look(cx, place) });
        }
        self.pins.at = next;
    }

    /// Why the pinned blocks of a volume cannot be fetched now.
    fn pin_stall(&self, place: u16, now: Instant) -> Option<&'static str> {
        let vol = self.vols.get(place)?;
        if !vol.attached || !self.warm.is_idle() {
            return Some("what the cache held before its start is being read");
        }
        if !vol.caching || vol.detaching {
            return Some("the volume does not cache now");
        }
        if vol.health.hanging.is_some() {
            return Some("the backing device does not answer");
        }
        if now < vol.share.pass.after {
            return Some("the backing device fails");
        }
        None
    }

    /// Looks at some more blocks and asks for those that are missing. Returns when to go on; never,
    /// where a read has to end first.
    fn pins_look<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16) -> Instant {
        let mut looks = 0;
        while looks < LOOKS {
            let Some(vol) = self.vols.get(place) else { return Instant::NEVER };
            let (at, reads) = (vol.share.pass.at, vol.share.pass.reads);
            let Some(pin) = vol.share.next_pin(at) else {
                let again = reads == 0 && self.pins_round(place);
                return if again { cx.now + PAUSE } else { Instant::NEVER };
            };
            if self.pins.reads >= READS_MAX {
                return Instant::NEVER;
            }
            let seen = pin.first + pin.blocks.min(LOOKS);
            let first = (pin.first..seen).find(|block| self.wants_pin(place, *block));
            looks += first.unwrap_or(seen) - pin.first + 1;
            let Some(first) = first else {
                self.pins_seen(place, seen, 0);
                continue;
            };
            let most = (pin.first + pin.blocks - first).min(RUN_MAX);
            let more = (1..most).take_while(|more| self.wants_pin(place, first + more));
            let blocks = 1 + more.count() as u64;
            if self.pin_read(cx, place, first, blocks).is_none() {
                self.pins_seen(place, first, 0);
                return cx.now + PAUSE;
            }
            self.pins_seen(place, first + blocks, blocks);
        }
        cx.now
    }

    fn pins_seen(&mut self, place: u16, at: u64, missing: u64) {
        if let Some(vol) = self.vols.get_mut(place) {
            vol.share.pass.at = at;
            vol.share.pass.missing += missing;
        }
    }

    /// A round is over: the pass is, where nothing was missing. `true` where it goes on.
    fn pins_round(&mut self, place: u16) -> bool {
        let Some(vol) = self.vols.get_mut(place) else { return false };
        let pass = &mut vol.share.pass;
        pass.round += 1;
        pass.before = core::mem::take(&mut pass.missing);
        pass.on = pass.before > 0 && pass.round < ROUNDS_MAX;
        pass.at = 0;
        pass.on
    }

    /// Whether the cache lacks a block, and may take it.
    fn wants_pin(&self, place: u16, block: u64) -> bool {
        let covered = self.vols.get(place).is_none_or(|vol| vol.ranges.get(block).is_some());
        !covered && self.vols.key(place, block).is_some_and(|key| self.replaceable(key))
    }

    /// Reads blocks for the cache. `None` where that cannot be begun now.
    fn pin_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        block: u64,
        blocks: u64,
    ) -> Option<()> {
        let (at, len) = self.vols.get(place)?.backing_range(block, blocks);
        let buf = cx.pool.alloc(usize::try_from(blocks * BLOCK).ok()?)?;
        let fill = self.fill_pinned(place, block, u32::try_from(blocks).ok()?)?;
        let pass = &mut self.vols.get_mut(place)?.share.pass;
        pass.reads += 1;
        pass.flying += blocks;
        self.pins.reads += 1;
        let what = What::PinFill { volume: place, block, blocks, fill };
        self.backing_op(cx.now, place, what, Op::read(0, at, len, buf));
        Some(())
    }

    /// Pinned blocks came from the backing device.
    pub(super) fn pin_fetched<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        (place, block): (u16, u64),
        (fill, blocks): (u64, u64),
        done: Completion<B>,
    ) {
        self.pins.reads = self.pins.reads.saturating_sub(1);
        self.pins.at = self.pins.at.min(cx.now);
        let good = done.result.is_ok();
        if let Some(vol) = self.vols.get_mut(place) {
            let pass = &mut vol.share.pass;
            pass.reads = pass.reads.saturating_sub(1);
            pass.flying = pass.flying.saturating_sub(blocks);
            if good {
                pass.fetched += blocks;
            } else {
                // Once more, but not at once.
                pass.at = pass.at.min(block);
                pass.missing = pass.missing.saturating_sub(blocks);
                pass.after = cx.now + STALL;
            }
        }
        self.fill_fetched(cx, (place, block, blocks), fill, done);
    }
}
