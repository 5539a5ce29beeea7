//! Destage: the oldest dirty data goes to the backing devices in sorted, merged writes; then their
//! flush; then a trim in the journal; then it is clean.
//!
//! One round at a time: load the records of the oldest dirty segments, run, flush, trim, settle. A
//! block is in a round once, and a claim keeps every other write of its place on the backing
//! device away meanwhile. A write that is not answered in time is left behind with its claim: its round
//! goes on without it, and its blocks stay dirty.

mod pace;
mod run;

use super::ops::What;
use super::segments::State;
use super::slab::Slab;
use super::types::BLOCK;
use super::volume::spare;
use super::{Cx, Engine};
use crate::format::footer::FooterView;
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::format::segment_log::SegmentLog;
use crate::hazard::ClaimId;
use crate::plant::Bug;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Duration, Instant, Lsn, Op};
use pace::Pace;

/// Blocks of one backing write at most: 1 MiB.
const RUN_MAX: u64 = 256;
/// A segment that gave nothing to do is left alone for this long.
const SKIP: Duration = Duration::from_millis(200);
/// Write-through data waits this long for its flush and trim, or until there is this much of it.
const WRITTEN_MAX: Duration = Duration::from_millis(50);
const WRITTEN_MANY: usize = 2048;
/// Blocks of one write-zeroes at most: 64 MiB; and of one write of zeroes: 256 KiB.
const ZEROES_MAX: u64 = 16384;
const ZEROES_WRITE_MAX: u64 = 64;
/// Blocks of one range of zeroes in an ordered journal at most: 4 GiB.
const ZEROES_JOURNAL_MAX: u64 = 1 << 20;
/// Ranges of one volume in one round.
const RANGES_MAX: usize = 64;
/// Reads of a block that does not match its CRC before it counts as lost.
const TRIES_MAX: u8 = 3;

/// Rounds in which a block cannot be read at all before it counts as lost, and blocks for which that
/// is counted at once.
const UNREADABLE_MAX: u8 = 10;
const SUSPECTS_MAX: usize = 64;
/// Without progress for this long a round keeps nothing from being moved any more: hosts that wait for
/// room in the log must not wait for a backing device.
const STUCK: Duration = Duration::from_secs(2);

/// A dirty block that a backing device took in write-through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) place: u16,
    pub(super) block: u64,
    pub(super) slot: u32,
    /// The [life](super::segments::Segments::life) of its segment: a later one may have a newer version of
    /// the same block in the same slot.
    pub(super) life: u64,
    pub(super) lsn: u64,
}

/// A dirty block as its record describes it.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    place: u16,
    block: u64,
    slot: u32,
    life: u64,
    lsn: u64,
    crc: u32,
}

/// A range of zeroes to be destaged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zeroes {
    pub(super) place: u16,
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) lsn: u64,
}

/// One backing write of destage.
#[derive(Debug)]
pub(super) struct Run<B> {
    place: u16,
    block: u64,
    blocks: u64,
    /// First candidate, or for zeroes its number of sequence.
    first: usize,
    zeroes: Option<u64>,
    buf: Option<B>,
    reads: u32,
    tries: u8,
    failed: bool,
    /// It is written to the volume's ordered journal.
    gathers: bool,
    /// The backing device has not answered: the round went on without it.
    left: bool,
    claim: Option<ClaimId>,
    /// The volume's committed number when the blocks were chosen.
    trim: u64,
    started: Instant,
}

impl<B> Default for Run<B> {
    fn default() -> Self {
        Self {
            place: 0,
            block: 0,
            blocks: 0,
            first: 0,
            zeroes: None,
            buf: None,
            reads: 0,
            tries: 0,
            failed: false,
            gathers: false,
            left: false,
            claim: None,
            trim: 0,
            started: Instant(0),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Load,
    /// The flush of the cache device that makes what was chosen durable there.
    Durable(u64),
    Run,
    Flush,
    Trim,
    Settle(u64),
}

/// The state of destage.
#[derive(Debug)]
pub(super) struct Destage<B> {
    phase: Phase,
    /// Destage whatever is dirty, now.
    pub(super) urgent: bool,
    candidates: Vec<Candidate>,
    next: usize,
    zeroes: Vec<Zeroes>,
    next_zeroes: usize,
    runs: Slab<Run<B>>,
    active: usize,
    /// Runs that their rounds went on without.
    left: usize,
    /// When a run or a flush of the round ended last, or the round began.
    progress: Instant,
    /// Footers being read.
    loading: usize,
    log: Option<SegmentLog>,
    segments: Vec<u32>,
    /// On the backing devices; flush and trim follow.
    done: Vec<Written>,
    done_zeroes: Vec<Zeroes>,
    written: Vec<Written>,
    written_zeroes: Vec<Zeroes>,
    written_since: Option<Instant>,
    flushes: usize,
    trim_at: usize,
    trim_zeroes_at: usize,
    pace: Pace,
    did_something: bool,
    /// Zeroes are left alone until then: none could be written, as others hold their blocks.
    pub(super) zeroes_from: Instant,
    /// Slots that the cache device did not give, and in how many rounds: destaged alone.
    unreadable: Vec<(u32, u8)>,
    /// Bytes written to backing devices, and when counting began.
    pub(super) bytes: u64,
}

impl<B: Buf> Destage<B> {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            urgent: false,
            candidates: Vec::new(),
            next: 0,
            zeroes: Vec::new(),
            next_zeroes: 0,
            runs: Slab::new(),
            active: 0,
            left: 0,
            progress: Instant(0),
            loading: 0,
            log: None,
            segments: Vec::new(),
            done: Vec::new(),
            done_zeroes: Vec::new(),
            written: Vec::new(),
            written_zeroes: Vec::new(),
            written_since: None,
            flushes: 0,
            trim_at: 0,
            trim_zeroes_at: 0,
            pace: Pace::new(),
            did_something: false,
            zeroes_from: Instant(0),
            unreadable: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && !self.wrote()
    }

    /// Whether a slot could not be read in an earlier round.
    fn suspects(&self, slot: u32) -> bool {
        self.unreadable.iter().any(|(bad, _)| *bad == slot)
    }

    /// The cache device did not give a slot in all of a round's tries; `true` where that was often
    /// enough for its data to count as lost. Of many at once some have to wait for their turn.
    fn unreadable(&mut self, slot: u32) -> bool {
        match self.unreadable.iter_mut().position(|(bad, _)| *bad == slot) {
            Some(at) if self.unreadable[at].1 + 1 >= UNREADABLE_MAX => {
                self.unreadable.swap_remove(at);
                return true;
            }
            Some(at) => self.unreadable[at].1 += 1,
            None if self.unreadable.len() < SUSPECTS_MAX => self.unreadable.push((slot, 1)),
            None => {}
        }
        false
    }

    /// Nothing of a round is under way.
    pub(super) fn resting(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether a backing device still owes an answer to an earlier round.
    pub(super) const fn is_owed(&self) -> bool {
        self.left > 0
    }

    /// Whether the round under way waits for devices, and none of them has answered for a while.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.active + self.flushes > 0 && now.since(self.progress) >= STUCK
    }

    pub(super) fn written(&mut self, now: Instant, block: Written) {
        self.written.push(block);
        self.written_since.get_or_insert(now);
    }

    /// The same of a range of zeroes.
    pub(super) fn zeroes_written(&mut self, now: Instant, zeroes: Zeroes) {
        self.written_zeroes.push(zeroes);
        self.written_since.get_or_insert(now);
    }

    /// The backing devices have something without a run of destage.
    pub(super) fn wrote(&self) -> bool {
        !self.written.is_empty() || !self.written_zeroes.is_empty()
    }

    pub(super) const fn window(&self) -> usize {
        self.pace.window(false)
    }

    /// Whether a trim of the version in this slot, in this life of its segment, was appended by the round
    /// under way.
    pub(super) fn has_trimmed(&self, place: u16, block: u64, slot: (u32, u64)) -> bool {
        let sorted = matches!(self.phase, Phase::Trim | Phase::Settle(_));
        let trimmed = if sorted { self.done.get(..self.trim_at).unwrap_or_default() } else { &[] };
        let at = trimmed.partition_point(|w| (w.place, w.block) < (place, block));
        let same = trimmed.get(at..).unwrap_or_default().iter();
        same.take_while(|w| (w.place, w.block) == (place, block)).any(|w| (w.slot, w.life) == slot)
    }

    /// When a round should begin for write-through data.
    pub(super) fn deadline(&self) -> Instant {
        self.written_since.map_or(Instant::NEVER, |since| since + WRITTEN_MAX)
    }

    /// The first part of a range of zeroes, of this number or an older one, whose trim has been appended:
    /// begin and end.
    pub(super) fn trimmed(
        &self,
        place: u16,
        block: u64,
        blocks: u64,
        lsn: u64,
    ) -> Option<(u64, u64)> {
        let appended = self.done_zeroes.iter().take(self.trim_zeroes_at);
        let parts = appended.filter(|z| z.place == place && z.lsn >= lsn);
        let ends = parts.map(|z| (z.block, z.block + z.blocks));
        ends.filter(|(from, end)| *from < block + blocks && block < *end).min()
    }
}

impl<B: Buf> Engine<B> {
    /// Takes destage as far as it goes now.
    pub(super) fn destage_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if self.cache_failed.is_some() {
            return;
        }
        let mut began = false;
        loop {
            let before = self.destage.phase;
            match before {
                // One round at a time, so that one that finds nothing to do does not begin again.
                Phase::Idle if began => return,
                Phase::Idle => {
                    began = true;
                    self.round_begin(cx);
                }
                Phase::Load => self.round_loaded(cx.now),
                Phase::Durable(ticket) => {
                    if self.flush_passed(ticket) {
                        self.destage.phase = Phase::Run;
                    }
                }
                Phase::Run => self.round_run(cx),
                Phase::Flush => self.round_flushed(),
                Phase::Trim => self.round_trim(cx),
                Phase::Settle(ordinal) => {
                    let durable = self.streams[usize::from(LogStream::Journal.code())].durable;
                    if durable > ordinal || self.plant.has(Bug::TrimNotAwaited) {
                        self.round_settle(cx);
                    }
                }
            }
            if self.destage.phase == before {
                return;
            }
        }
    }

    fn wants_destage(&self, now: Instant) -> bool {
        if self.orders_want(now) {
            return true;
        }
        let d = &self.destage;
        let written = d.written.len() >= WRITTEN_MANY || d.deadline() <= now;
        if written {
            return true;
        }
        let ranges = d.zeroes_from <= now
            && self.vols.iter().any(|(_, vol)| vol.ranges.iter().any(|range| range.dirty));
        if self.dirty == 0 && !ranges {
            return false;
        }
        d.urgent
            || self.vols.iter().any(|(_, vol)| vol.wants_clean())
            || self.dirty_level() >= u64::from(self.limits.destage_from) * 10
            || self.oldest.is_some_and(|at| now.since(at) >= self.limits.dirty_age)
            || (ranges && self.ranges_due(now))
    }

    fn ranges_due(&self, now: Instant) -> bool {
        now.since(self.ranges_since) >= self.limits.dirty_age.min(Duration::from_secs(1))
    }

    fn round_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        self.orders_step(cx.now);
        let winds_down = self.winds_down();
        let wanted = if winds_down { self.destage.wrote() } else { self.wants_destage(cx.now) };
        if !wanted {
            if self.dirty == 0 {
                self.destage.urgent = false;
            }
            return;
        }
        self.ranges_since = cx.now;
        let d = &mut self.destage;
        d.progress = cx.now;
        d.candidates.clear();
        d.zeroes.clear();
        d.done.clear();
        d.done_zeroes.clear();
        d.segments.clear();
        (d.next, d.next_zeroes, d.trim_at, d.trim_zeroes_at) = (0, 0, 0, 0);
        d.did_something = false;
        d.pace.round_begins(cx.now);
        // What write-through or an ordered journal brought needs no run.
        core::mem::swap(&mut d.done, &mut d.written);
        core::mem::swap(&mut d.done_zeroes, &mut d.written_zeroes);
        d.written_since = None;
        if !winds_down {
            self.pick_zeroes(cx.now);
            self.pick_segments(cx);
        }
        self.destage.phase = Phase::Load;
    }

    fn pick_zeroes(&mut self, now: Instant) {
        if self.destage.zeroes_from > now {
            return;
        }
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            if vol.health.retry_at > now && vol.health.failing.is_some() {
                continue;
            }
            let most = match vol.backing.write_zeroes {
                _ if vol.in_journal() => ZEROES_JOURNAL_MAX,
                true => ZEROES_MAX,
                false => ZEROES_WRITE_MAX,
            };
            let ranges = match &vol.order {
                Some(order) if vol.in_batches() => order.zeroes(),
                _ => &vol.ranges,
            };
            for range in ranges.iter().filter(|range| range.dirty).take(RANGES_MAX) {
                let mut at = range.first;
                let end = range.first + range.blocks;
                while at < end && self.destage.zeroes.len() < 4096 {
                    let blocks = most.min(end - at);
                    self.destage.zeroes.push(Zeroes { place, block: at, blocks, lsn: range.lsn.0 });
                    at += blocks;
                }
            }
        }
    }

    fn pick_segments<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let mut picked = core::mem::take(&mut self.destage.segments);
        let all = self.segs.sealed_iter().chain(self.segs.young().iter().copied());
        picked.extend(
            all.filter(|seg| {
                !self.waits_for_rebuild(*seg)
                    && self.segs.get(*seg).is_some_and(|s| {
                        s.dirty > 0
                            && s.skip_until <= cx.now
                            && (s.log.is_some() || s.state == State::Sealed)
                    })
            })
            .take(self.destage.pace.segments()),
        );
        self.orders_pick(cx.now, self.destage.pace.segments(), &mut picked);
        for seg in &picked {
            if let Some(log) = self.segs.get_mut(*seg).and_then(|s| s.log.take()) {
                self.collect(cx.now, *seg, &log);
                if let Some(s) = self.segs.get_mut(*seg) {
                    s.log = Some(log);
                }
            } else {
                let what = What::DestageFooter { seg: *seg };
                if self.footer_read(cx, *seg, what) {
                    self.destage.loading += 1;
                } else {
                    self.orders_missed(*seg);
                }
            }
        }
        self.destage.segments = picked;
    }

    /// Reads the footer of a sealed segment; `false` where no buffer is to be had.
    pub(super) fn footer_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        what: What,
    ) -> bool {
        let geometry = self.map.geometry();
        let bytes = geometry.footer_bytes() as u64;
        let (Some(buf), Some(start)) = (self.alloc(cx, bytes), self.map.segment_offset(seg)) else {
            return false;
        };
        let at = start + u64::from(geometry.footer_slot()) * BLOCK;
        self.segs.reader(seg, 1);
        self.cache_op(cx.now, what, Op::read(0, at, bytes, buf));
        true
    }

    pub(super) fn destage_footer<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        done: Completion<B>,
    ) {
        self.segs.reader(seg, -1);
        self.destage.loading -= 1;
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let name = self.segment_name(seg);
        let view = done.buf.as_ref().filter(|_| done.result.is_ok());
        let view = view.and_then(|buf| FooterView::parse(buf.as_slice()));
        let mut log =
            self.destage.log.take().unwrap_or_else(|| SegmentLog::new(self.map.geometry()));
        match view.filter(|view| Some(view.head.name) == name) {
            Some(view) => {
                view.load(&mut log);
                self.collect(cx.now, seg, &log);
            }
            None => {
                self.orders_missed(seg);
                if let Some(s) = self.segs.get_mut(seg) {
                    s.skip_until = cx.now + SKIP;
                }
                self.footer_unread(cx, seg);
            }
        }
        self.destage.log = Some(log);
    }

    /// Takes what is current and dirty of a segment's records. A segment without any, as what is
    /// dirty there is damaged, is left alone for a while, so that reclaim need not wait for it.
    fn collect(&mut self, now: Instant, seg: u32, log: &SegmentLog) {
        let before = self.destage.candidates.len();
        for (record, crcs) in log.iter().filter(|(record, _)| record.kind.has_data()) {
            let Some(place) = self.vols.place_of(record.volume, record.generation) else {
                continue;
            };
            let vol = self.vols.get(place);
            let batches = vol.is_some_and(|vol| vol.in_batches());
            // Left out here they leave the segment to reclaim, however much there is to do for others.
            if !batches && vol.is_some_and(|vol| vol.health.is_out(now)) {
                continue;
            }
            if batches
                && vol
                    .and_then(|vol| vol.order.as_ref()?.batch())
                    .is_none_or(|end| record.lsn.0 > end)
            {
                continue;
            }
            let (first, life) = (self.map.slot(seg, record.slot), self.segs.life(seg));
            for ((slot, block), crc) in (first..).zip(record.block..).zip(crcs) {
                let c = Candidate { place, block, slot, life, lsn: record.lsn.0, crc: *crc };
                if !self.current(&c) {
                    continue;
                }
                self.destage.candidates.push(c);
                if batches
                    && let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut())
                {
                    order.chose();
                }
            }
        }
        if self.destage.candidates.len() == before
            && let Some(s) = self.segs.get_mut(seg)
        {
            s.skip_until = now + SKIP;
        }
    }

    /// All is chosen. With a volatile write cache it is made durable in the log before any of it is
    /// written elsewhere: after a power loss the backing devices must not be newer than the log.
    fn round_loaded(&mut self, now: Instant) {
        if self.destage.loading > 0 {
            return;
        }
        self.destage.candidates.sort_unstable_by_key(|c| (c.place, c.block));
        let work = !self.destage.candidates.is_empty() || !self.destage.zeroes.is_empty();
        self.destage.phase = if work && self.volatile && !self.plant.has(Bug::DestageUnflushed) {
            let ticket = self.flush_ticket();
            self.flush_pump(now);
            Phase::Durable(ticket)
        } else {
            Phase::Run
        };
    }

    fn round_run<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if self.winds_down() {
            let d = &mut self.destage;
            d.candidates.truncate(d.next);
            d.zeroes.truncate(d.next_zeroes);
        }
        let level = self.dirty_level().max(self.orders_level());
        let window = self.destage.pace.window(level >= super::throttle::FROM);
        while self.destage.active < window && self.destage.next_zeroes < self.destage.zeroes.len() {
            self.zeroes_begin(cx);
        }
        while self.destage.active < window && self.destage.next < self.destage.candidates.len() {
            if !self.run_begin(cx) {
                return;
            }
        }
        let d = &self.destage;
        if d.active > 0 || d.next < d.candidates.len() || d.next_zeroes < d.zeroes.len() {
            return;
        }
        // What gave nothing: its volumes fail, or others hold its blocks.
        if !self.destage.did_something {
            if !self.destage.zeroes.is_empty() {
                self.destage.zeroes_from = cx.now + SKIP;
            }
            for at in 0..self.destage.segments.len() {
                let seg = self.destage.segments[at];
                if let Some(s) = self.segs.get_mut(seg) {
                    s.skip_until = cx.now + SKIP;
                }
            }
        }
        self.destage.pace.round_ran(cx.now);
        self.destage.phase = Phase::Flush;
        self.round_flush(cx);
    }

    /// Flushes every backing device that was written to.
    fn round_flush<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            let touched = self.destage.done.iter().any(|w| w.place == place)
                || self.destage.done_zeroes.iter().any(|z| z.place == place);
            if !touched || !vol.backing.volatile_write_cache || self.plant.has(Bug::TrimBeforeFlush)
            {
                continue;
            }
            if vol.health.hanging.is_some() {
                self.unflushed(place);
                continue;
            }
            self.destage.flushes += 1;
            self.backing_op(cx.now, place, What::DestageFlush { volume: place }, Op::flush(0));
        }
    }

    pub(super) fn destage_flush_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        result: Result<(), DeviceError>,
    ) {
        self.destage.flushes -= 1;
        self.destage.progress = cx.now;
        if !self.plant.has(Bug::DestageFlushErrorIgnored) {
            self.flush_ended(cx, place, result);
        }
    }

    /// A flush of destage ended, in its round or too late for it.
    pub(super) fn flush_ended<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        result: Result<(), DeviceError>,
    ) {
        if let Err(error) = result {
            self.unflushed(place);
            self.backing_error(cx, place, error);
        }
    }

    /// A backing device did not flush: nothing of this volume may be trimmed, and what was written is written
    /// again. So is what arrived during the flush: a device may say but once that it lost something. What an
    /// ordered journal brought was flushed before.
    fn unflushed(&mut self, place: u16) {
        let journal = self.vols.get(place).is_some_and(|vol| vol.in_journal());
        if !journal {
            let written = core::mem::take(&mut self.destage.written);
            self.destage.written = self.without(place, written);
        }
        if matches!(self.destage.phase, Phase::Trim | Phase::Settle(_)) {
            // Another flush has covered the round since.
            return;
        }
        let done = core::mem::take(&mut self.destage.done);
        self.destage.done = self.without(place, done);
        self.destage.done_zeroes.retain(|z| z.place != place);
        if let Some(order) = self.vols.get_mut(place).and_then(|vol| vol.order.as_mut()) {
            order.unflushed();
        }
        self.order_left(place);
    }

    /// Blocks on their way to be clean, without those of a volume: they are destaged again.
    fn without(&mut self, place: u16, mut list: Vec<Written>) -> Vec<Written> {
        list.retain(|w| {
            if w.place == place
                && self.lives(w.slot, w.life)
                && let Some(key) = self.vols.key(place, w.block)
            {
                self.index.update_if_slot(key, w.slot, |flags| {
                    flags.with_spare(flags.spare() & !spare::WRITTEN)
                });
            }
            w.place != place
        });
        list
    }

    fn round_flushed(&mut self) {
        if self.destage.flushes > 0 {
            return;
        }
        self.destage.done.sort_unstable_by_key(|w| (w.place, w.block));
        self.destage.phase = Phase::Trim;
    }

    /// Whether a slot is what it was when it was chosen: its segment was not freed and used again.
    pub(super) fn lives(&self, slot: u32, life: u64) -> bool {
        self.segs.life(self.map.segment_of(slot)) == life
    }

    fn still(&self, w: &Written) -> bool {
        self.vols
            .key(w.place, w.block)
            .and_then(|key| self.index.get(key))
            .is_some_and(|entry| entry.slot == w.slot && entry.flags.dirty())
            && self.lives(w.slot, w.life)
    }

    /// Appends the trims. A run of blocks may share one with the highest number of its blocks:
    /// all were committed when they were chosen and are current now, so that no version of any of
    /// them lies between its own number and that one.
    fn round_trim<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let mut ordinal = None;
        while let Some(head) = self.destage.done.get(self.destage.trim_at).copied() {
            let from = self.destage.trim_at;
            if !self.still(&head) {
                self.destage.trim_at += 1;
                continue;
            }
            let (mut blocks, mut lsn) = (1, head.lsn);
            while let Some(w) = self.destage.done.get(from + blocks)
                && w.place == head.place
                && w.block == head.block + blocks as u64
                && self.still(w)
            {
                lsn = lsn.max(w.lsn);
                blocks += 1;
            }
            match self.trim(cx, head.place, head.block, blocks as u64, lsn) {
                Some(at) => ordinal = ordinal.max(Some(at)),
                None => return,
            }
            self.destage.trim_at += blocks;
        }
        while let Some(z) = self.destage.done_zeroes.get(self.destage.trim_zeroes_at).copied() {
            match self.trim(cx, z.place, z.block, z.blocks, z.lsn) {
                Some(at) => ordinal = ordinal.max(Some(at)),
                None => return,
            }
            self.destage.trim_zeroes_at += 1;
        }
        match ordinal.max(self.trim_ordinal.take()) {
            Some(ordinal) => self.destage.phase = Phase::Settle(ordinal),
            None => self.round_settle(cx),
        }
    }

    fn trim<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        block: u64,
        blocks: u64,
        lsn: u64,
    ) -> Option<u64> {
        let vol = self.vols.get(place)?;
        let record = Record {
            kind: Kind::Trim,
            moved: false,
            clean: false,
            volume: vol.index,
            generation: vol.generation,
            block,
            blocks: u32::try_from(blocks).ok()?,
            lsn: Lsn(lsn),
            epoch: vol.epoch,
            slot: 0,
        };
        let (ordinal, _) = self.append_mark(cx, LogStream::Journal, 0, &record)?;
        self.trim_ordinal = self.trim_ordinal.max(Some(ordinal));
        Some(ordinal)
    }

    /// The trims are durable: what is still the same is clean now.
    fn round_settle<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let done = core::mem::take(&mut self.destage.done);
        for w in &done {
            if !self.lives(w.slot, w.life) {
                continue;
            }
            self.order_done(w.place, w.slot);
            let Some(key) = self.vols.key(w.place, w.block) else { continue };
            let now = self.index.get(key).map_or(w.slot, |entry| entry.slot);
            let slot = if self.plant.has(Bug::SettleUnchecked) { now } else { w.slot };
            let old = self.index.update_if_slot(key, slot, |flags| {
                flags.with_dirty(false).with_spare(flags.spare() & !spare::WRITTEN)
            });
            if old.is_some_and(|flags| flags.dirty()) {
                self.segs.count(self.map.segment_of(slot), 0, -1);
                self.dirty = self.dirty.saturating_sub(1);
                self.stats.destaged += 1;
                if let Some(vol) = self.vols.get_mut(w.place) {
                    vol.dirty = vol.dirty.saturating_sub(1);
                    vol.destaged += 1;
                    // Damaged since it was read for the backing device, which has it now.
                    let bad = old.is_some_and(|flags| flags.spare() & spare::BAD != 0);
                    vol.lost_blocks = vol.lost_blocks.saturating_sub(u64::from(bad));
                }
            }
        }
        self.destage.done = done;
        let durable = self.next_flush();
        for at in 0..self.destage.done_zeroes.len() {
            let z = self.destage.done_zeroes[at];
            if let Some(vol) = self.vols.get_mut(z.place) {
                vol.trims_durable = durable;
                let _ = vol.ranges.punch(z.block, z.blocks, Lsn(z.lsn + 1));
            }
            self.order_zeroed(z.place, z.block, z.blocks, z.lsn);
        }
        self.orders_settle(cx.now);
        self.destage.phase = Phase::Idle;
        if self.dirty == 0 {
            self.destage.urgent = false;
        }
        self.clean_points(cx);
    }
}
