//! Scrub: reads what a volume has in the cache, before hosts do, and checks all of it.
//!
//! One volume at a time, segment by segment in the order of their seals, one read under way, at a
//! bounded rate that falls to a quarter while hosts have requests. A block is checked against the
//! full CRC32C of its record, which is seeded with volume, address and LSN: data that is right but
//! of another place or time differs as well. What is wrong is read again, alone, before it counts;
//! then a clean block is dropped and fetched again, a dirty one is [`Engine::block_lost`].
//!
//! Nothing is held: the index is asked before each read and again after it, so that what was
//! overwritten, moved, destaged, discarded or forgotten meanwhile is no alarm.

use super::mode::ControlError;
use super::ops::What;
use super::segments::State;
use super::types::{BLOCK, BLOCK_LEN};
use super::volume::spare;
use super::{Cx, Engine};
use crate::format::footer::FooterView;
use crate::format::segment_log::SegmentLog;
use crate::index::Entry;
use crate::plant::Bug;
use forebay_io::crc::block_crc;
use forebay_io::{Buf, BufPool, Completion, Duration, Instant, Op, VolumeId};

/// Blocks of one read at most: 256 KiB.
const RUN_MAX: u32 = 64;
/// Blocks that nobody asks for are read along up to this many, for the sake of large reads.
const GAP_MAX: u32 = 8;
/// Reads of a block, or of a footer, before what they say counts.
const TRIES_MAX: u8 = 3;
/// A block whose write-through is being flushed is waited for this many times this long.
const WAITS_MAX: u8 = 100;
const WAIT: Duration = Duration::from_millis(20);
/// A pause where no buffer is to be had, or the backing device has to answer first.
const PAUSE: Duration = Duration::from_millis(5);
/// While hosts have requests under way the rate is divided by this.
const YIELD: u64 = 4;
/// Blocks that wait to be fetched again at most; beyond them the next miss does it.
const REFETCH_MAX: usize = 256;
/// The lowest rate: one read a second and a bit.
const RATE_MIN: u64 = 256 << 10;

/// What a scrub found so far, in cache blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Looked at, good or not. What is fetched or moved into a segment still ahead counts again.
    pub checked: u64,
    /// Clean and wrong, or not to be read: dropped, and fetched again from the backing device.
    pub repaired: u64,
    /// Dirty and wrong: their only copy is lost; hosts get media errors until they write them.
    pub damaged: u64,
    /// Dirty, and the device did not give them now.
    pub unreadable: u64,
    /// Segments whose footer is wrong: their blocks could not be checked.
    pub footers: u64,
}

/// Where a scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubState {
    /// Another volume's comes first.
    Waiting,
    /// Under way.
    Running,
    /// Everything was looked at.
    Done,
    /// The cache device failed.
    CacheFailed,
    /// The volume left the cache, or the engine stops.
    Ended,
}

/// How a scrub is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Where it is.
    pub state: ScrubState,
    /// What it found.
    pub report: ScrubReport,
    /// Bytes to be looked at, those of other volumes in the same segments included.
    pub left_bytes: u64,
}

/// A block to check, as its record describes it.
#[derive(Clone, Copy, Debug)]
struct Check {
    block: u64,
    slot: u32,
    life: u64,
    lsn: u64,
    crc: u32,
    tries: u8,
    waits: u8,
}

/// The scrub of a volume.
#[derive(Debug)]
struct Task {
    serial: u64,
    volume: VolumeId,
    place: u16,
    rate: u64,
    /// Segments to visit: which, its number then, its live blocks then. The last comes first.
    segments: Vec<(u32, u64, u32)>,
    left: u64,
    report: ScrubReport,
    state: ScrubState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between segments.
    Idle,
    /// The footer is being read.
    Footer,
    /// Between reads.
    Checks,
    /// A read is under way.
    Read,
}

/// The state of scrub.
#[derive(Debug)]
pub(super) struct Scrub {
    /// Those that ended stay until they are taken away; of the others the first runs.
    tasks: Vec<Task>,
    serials: u64,
    /// The task that the phase is of; it may be gone.
    owner: u64,
    phase: Phase,
    /// Not before this.
    at: Instant,
    /// Live blocks of the segment whose footer is being read.
    live: u32,
    footer_tries: u8,
    log: Option<SegmentLog>,
    checks: Vec<Check>,
    next: usize,
    /// What the read under way is for.
    asked: Vec<Check>,
    /// What was wrong once.
    again: Vec<Check>,
    /// Dropped: to be fetched again, one at a time.
    refetch: Vec<u64>,
    refetching: bool,
}

impl Scrub {
    pub(super) const fn new() -> Self {
        Self {
            tasks: Vec::new(),
            serials: 0,
            owner: 0,
            phase: Phase::Idle,
            at: Instant(0),
            live: 0,
            footer_tries: 0,
            log: None,
            checks: Vec::new(),
            next: 0,
            asked: Vec::new(),
            again: Vec::new(),
            refetch: Vec::new(),
            refetching: false,
        }
    }

    fn active(&self) -> Option<usize> {
        self.tasks
            .iter()
            .position(|task| matches!(task.state, ScrubState::Waiting | ScrubState::Running))
    }

    /// The task that the phase is of, if it still runs.
    fn owner(&mut self) -> Option<&mut Task> {
        let serial = self.owner;
        let mut running = self.tasks.iter_mut().filter(|task| task.state == ScrubState::Running);
        running.find(|task| task.serial == serial)
    }

    fn waits_for_device(&self) -> bool {
        matches!(self.phase, Phase::Footer | Phase::Read)
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.active().is_none()
    }

    /// No read of the cache device is under way.
    pub(super) fn resting(&self) -> bool {
        !self.waits_for_device()
    }

    pub(super) fn deadline(&self) -> Instant {
        if self.is_idle() || self.waits_for_device() { Instant::NEVER } else { self.at }
    }

    /// Forgets what was begun of a segment.
    fn reset(&mut self) {
        self.phase = Phase::Idle;
        self.checks.clear();
        self.again.clear();
        self.asked.clear();
        self.next = 0;
    }
}

impl<B: Buf> Engine<B> {
    /// Begins to scrub what a volume has in the cache, at `rate` bytes a second at most (256 KiB at
    /// least). Begun again it starts over. [`Engine::scrub_status`] says how it is doing.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn scrub(&mut self, id: VolumeId, rate: u64) -> Result<(), ControlError> {
        self.usable()?;
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        if !self.warm.is_idle() {
            return Err(ControlError::Busy("what the cache held before its start is being read"));
        }
        self.scrub_end(id);
        let mut segments: Vec<_> = self
            .segs
            .sealed_iter()
            .chain(self.segs.young().iter().copied())
            .filter_map(|seg| {
                let s = self.segs.get(seg)?;
                (s.live > 0).then_some((seg, s.seq, s.live))
            })
            .collect();
        // One whose footer is on its way is in both lists.
        segments.dedup_by_key(|(seg, ..)| *seg);
        segments.reverse();
        let left = segments.iter().map(|(_, _, live)| u64::from(*live)).sum();
        self.scrub.serials += 1;
        self.scrub.tasks.push(Task {
            serial: self.scrub.serials,
            volume: id,
            place,
            rate: rate.max(RATE_MIN),
            segments,
            left,
            report: ScrubReport::default(),
            state: ScrubState::Waiting,
        });
        Ok(())
    }

    /// Ends the scrub of a volume, wherever it is, and forgets it; what it repaired stays repaired.
    /// `false` where there is none.
    pub fn scrub_end(&mut self, id: VolumeId) -> bool {
        let before = self.scrub.tasks.len();
        self.scrub.tasks.retain(|task| task.volume != id);
        before != self.scrub.tasks.len()
    }

    /// How the scrub of a volume is doing, or how it ended; `None` where there is none.
    #[must_use]
    pub fn scrub_status(&self, id: VolumeId) -> Option<ScrubStatus> {
        let task = self.scrub.tasks.iter().find(|task| task.volume == id)?;
        let mine = task.serial == self.scrub.owner && self.scrub.phase != Phase::Idle;
        let here = self.scrub.checks.len() - self.scrub.next + self.scrub.again.len();
        let here = if mine { here as u64 } else { 0 };
        let ended = !matches!(task.state, ScrubState::Waiting | ScrubState::Running);
        let left_bytes = if ended { 0 } else { (task.left + here) * BLOCK };
        Some(ScrubStatus { state: task.state, report: task.report, left_bytes })
    }

    /// Takes scrub as far as it goes now.
    pub(super) fn scrub_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let Some(at) = self.scrub.active() else { return };
        let failed = self.cache_failed.is_some();
        let ended = {
            let task = &self.scrub.tasks[at];
            self.stopping || self.vols.get(task.place).is_none_or(|vol| vol.id != task.volume)
        };
        if failed || ended {
            let state = if failed { ScrubState::CacheFailed } else { ScrubState::Ended };
            self.scrub.tasks[at].state = state;
            return;
        }
        if self.scrub.waits_for_device() || cx.now < self.scrub.at {
            return;
        }
        let task = &mut self.scrub.tasks[at];
        task.state = ScrubState::Running;
        if self.scrub.owner != task.serial {
            self.scrub.owner = task.serial;
            self.scrub.footer_tries = 0;
            self.scrub.refetch.clear();
            // One of the task before may be under way: it ends for itself.
            self.scrub.refetching = false;
            self.scrub.reset();
        }
        self.refetch_next(cx);
        // Bounded: a segment after the other that has nothing of the volume costs a footer each.
        for _ in 0..8 {
            match self.scrub.phase {
                Phase::Idle => self.scrub_segment(cx),
                Phase::Checks => self.scrub_read_next(cx),
                Phase::Footer | Phase::Read => return,
            }
            if cx.now < self.scrub.at || self.scrub.is_idle() {
                return;
            }
        }
        self.scrub.at = cx.now + Duration::from_millis(1);
    }

    /// What was read has to be waited for.
    fn scrub_pay(&mut self, now: Instant, bytes: u64) {
        let busy = self.reqs.len() > 0;
        let Some(rate) = self.scrub.owner().map(|task| task.rate) else { return };
        let rate = if busy { rate / YIELD } else { rate }.max(1);
        self.scrub.at = now + Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
    }

    /// Begins the next segment, or ends.
    fn scrub_segment<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let waiting = self.scrub.refetching || !self.scrub.refetch.is_empty();
        let Some(task) = self.scrub.owner() else { return };
        let place = task.place;
        let Some((seg, seq, live)) = task.segments.pop() else {
            if waiting {
                self.scrub.at = cx.now + PAUSE;
            } else {
                task.state = ScrubState::Done;
            }
            return;
        };
        let unchanged = self.segs.get(seg).is_some_and(|s| {
            s.seq == seq && !matches!(s.state, State::Free | State::Freed | State::Bad)
        });
        if !unchanged {
            // Freed since: what was live was checked as it was moved.
            self.scrub_passed(live);
            return;
        }
        self.scrub.reset();
        if let Some(log) = self.segs.get_mut(seg).and_then(|s| s.log.take()) {
            self.scrub_collect(place, seg, &log);
            if let Some(s) = self.segs.get_mut(seg) {
                s.log = Some(log);
            }
            self.scrub_passed(live);
        } else if self.footer_read(cx, seg, What::ScrubFooter { seg }) {
            self.scrub.phase = Phase::Footer;
            self.scrub.live = live;
            self.scrub_pay(cx.now, self.map.geometry().footer_bytes() as u64);
        } else {
            self.scrub.at = cx.now + PAUSE;
            if let Some(task) = self.scrub.owner() {
                task.segments.push((seg, seq, live));
            }
        }
    }

    /// What a segment had is not ahead any more.
    fn scrub_passed(&mut self, live: u32) {
        if let Some(task) = self.scrub.owner() {
            task.left = task.left.saturating_sub(u64::from(live));
        }
    }

    pub(super) fn scrub_footer<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        done: Completion<B>,
    ) {
        self.segs.reader(seg, -1);
        self.scrub.phase = Phase::Idle;
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let Some(place) = self.scrub.owner().map(|task| task.place) else { return };
        let name = self.segment_name(seg);
        let view = done.buf.as_ref().filter(|_| done.result.is_ok());
        let view = view.and_then(|buf| FooterView::parse(buf.as_slice()));
        if let Some(view) = view.filter(|view| Some(view.head.name) == name) {
            let log = self.scrub.log.take();
            let mut log = log.unwrap_or_else(|| SegmentLog::new(self.map.geometry()));
            view.load(&mut log);
            self.scrub.footer_tries = 0;
            self.scrub_collect(place, seg, &log);
            self.scrub.log = Some(log);
            self.scrub_passed(self.scrub.live);
            return;
        }
        // Reclaimed meanwhile, which a segment is not while a live block is in it, or wrong.
        let Some(s) = self.segs.get(seg).filter(|s| s.live > 0 && s.state == State::Sealed) else {
            self.scrub.footer_tries = 0;
            self.scrub_passed(self.scrub.live);
            return;
        };
        let (seq, live) = (s.seq, self.scrub.live);
        self.footer_unread(cx, seg);
        self.scrub.footer_tries += 1;
        let last = self.scrub.footer_tries >= TRIES_MAX;
        if last {
            self.scrub.footer_tries = 0;
        }
        let Some(task) = self.scrub.owner() else { return };
        if last {
            task.report.footers += 1;
            self.scrub_passed(live);
        } else {
            task.segments.push((seg, seq, live));
        }
    }

    /// Takes what the index names of a segment's records.
    fn scrub_collect(&mut self, place: u16, seg: u32, log: &SegmentLog) {
        self.scrub.phase = Phase::Checks;
        for (record, crcs) in log.iter().filter(|(record, _)| record.kind.has_data()) {
            if self.vols.place_of(record.volume, record.generation) != Some(place) {
                continue;
            }
            let (first, life) = (self.map.slot(seg, record.slot), self.segs.life(seg));
            for ((slot, block), crc) in (first..).zip(record.block..).zip(crcs) {
                let (lsn, crc) = (record.lsn.0, *crc);
                let check = Check { block, slot, life, lsn, crc, tries: 0, waits: 0 };
                let Some(entry) = self.scrub_entry(place, &check) else { continue };
                if entry.flags.spare() & spare::BAD != 0 {
                    // Known already.
                    self.scrub_wrong(place, &check, entry, true);
                } else {
                    self.scrub.checks.push(check);
                }
            }
        }
        self.scrub.checks.sort_unstable_by_key(|check| check.slot);
    }

    /// The index entry of a block, if this slot is its current place.
    fn scrub_entry(&self, place: u16, check: &Check) -> Option<Entry> {
        let key = self.vols.key(place, check.block)?;
        let entry = self.index.get(key).filter(|entry| entry.slot == check.slot);
        entry.filter(|_| self.lives(check.slot, check.life))
    }

    /// Reads the next blocks to check: what was wrong once alone, the others together.
    fn scrub_read_next<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let Some(place) = self.scrub.owner().map(|task| task.place) else {
            return self.scrub.reset();
        };
        let mut asked = core::mem::take(&mut self.scrub.asked);
        asked.clear();
        while let Some(check) = self.scrub.again.pop() {
            if self.scrub_entry(place, &check).is_some() {
                asked.push(check);
                break;
            }
        }
        let begun = self.scrub.next;
        while asked.first().is_none_or(|first| first.tries == 0 && first.waits == 0)
            && let Some(check) = self.scrub.checks.get(self.scrub.next).copied()
        {
            let far = asked.first().zip(asked.last()).is_some_and(|(first, last)| {
                check.slot - first.slot >= RUN_MAX || check.slot - last.slot > GAP_MAX
            });
            if far {
                break;
            }
            self.scrub.next += 1;
            if self.scrub_entry(place, &check).is_some() {
                asked.push(check);
            }
        }
        let range = asked.first().zip(asked.last()).map(|(a, b)| (a.slot, b.slot - a.slot + 1));
        self.scrub.asked = asked;
        let Some((slot, blocks)) = range else {
            self.scrub.phase = Phase::Idle;
            return;
        };
        let len = u64::from(blocks) * BLOCK;
        // Not at the cost of the memory tier: scrub has time.
        let buf = usize::try_from(len).ok().and_then(|len| cx.pool.alloc(len));
        let (Some(buf), Some(at)) = (buf, self.map.slot_offset(slot)) else {
            let alone = self.scrub.next == begun;
            if alone {
                self.scrub.again.extend(self.scrub.asked.first().copied());
            }
            self.scrub.next = begun;
            self.scrub.at = cx.now + PAUSE;
            return;
        };
        self.segs.reader(self.map.segment_of(slot), 1);
        self.scrub.phase = Phase::Read;
        self.scrub_pay(cx.now, len);
        self.cache_op(cx.now, What::ScrubRead { slot }, Op::read(0, at, len, buf));
    }

    pub(super) fn scrub_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        slot: u32,
        done: Completion<B>,
    ) {
        self.segs.reader(self.map.segment_of(slot), -1);
        self.scrub.phase = Phase::Checks;
        if let Err(error) = done.result {
            self.cache_error(cx, error, false);
        }
        let asked = core::mem::take(&mut self.scrub.asked);
        let owner = self.scrub.owner().map(|task| (task.place, task.volume));
        let vol = owner.and_then(|(place, id)| Some((self.vols.get(place)?, place, id)));
        let Some((seed, place)) =
            vol.filter(|(vol, _, id)| vol.id == *id).map(|(vol, place, _)| (vol.key, place))
        else {
            return self.scrub.reset();
        };
        let data = done.buf.as_ref().filter(|_| done.result.is_ok()).map(Buf::as_slice);
        for check in &asked {
            // Overwritten, moved, discarded or forgotten since: no longer anybody's.
            let Some(entry) = self.scrub_entry(place, check) else { continue };
            let from = (check.slot - slot) as usize * BLOCK_LEN;
            let data = data.and_then(|data| data.get(from..from + BLOCK_LEN));
            let good =
                data.is_some_and(|d| block_crc(seed, check.block, check.lsn, d) == check.crc);
            if good {
                self.scrub_count(|report| report.checked += 1);
            } else if check.tries + 1 < TRIES_MAX {
                self.scrub.again.push(Check { tries: check.tries + 1, ..*check });
            } else {
                self.scrub_wrong(place, check, entry, data.is_some());
            }
        }
        if !self.scrub.again.is_empty() {
            let waits = self.scrub.again.iter().any(|check| check.waits > 0);
            self.scrub.at = self.scrub.at.max(cx.now + if waits { WAIT } else { PAUSE });
        }
        self.scrub.asked = asked;
    }

    fn scrub_count(&mut self, count: impl FnOnce(&mut ScrubReport)) {
        if let Some(task) = self.scrub.owner() {
            count(&mut task.report);
        }
    }

    /// A block is wrong for certain, or the device does not give it.
    fn scrub_wrong(&mut self, place: u16, check: &Check, entry: Entry, readable: bool) {
        let (dirty, written) = (entry.flags.dirty(), entry.flags.spare() & spare::WRITTEN != 0);
        if dirty && written && check.waits < WAITS_MAX {
            // The backing device has it: clean, once it is flushed there.
            self.scrub.again.push(Check { waits: check.waits + 1, ..*check });
            return;
        }
        self.scrub_count(|report| report.checked += 1);
        if !dirty {
            self.drop_bad(place, check.block, check.slot);
            if self.scrub.refetch.len() < REFETCH_MAX {
                self.scrub.refetch.push(check.block);
            }
            self.scrub_count(|report| report.repaired += 1);
        } else if self.plant.has(Bug::ScrubDropsDirty) {
            if let Some(key) = self.vols.key(place, check.block)
                && let Some(old) = self.index.remove(key)
            {
                self.uncount(place, old);
            }
        } else if readable && !written {
            self.block_lost(place, check.block, check.slot);
            self.scrub_count(|report| report.damaged += 1);
        } else {
            self.scrub_count(|report| report.unreadable += 1);
        }
    }

    /// Fetches the next block that was dropped from the backing device, if that works.
    fn refetch_next<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let Some(place) = self.scrub.owner().map(|task| task.place) else { return };
        let down = self.vols.get(place).is_none_or(|vol| {
            vol.health.failing.is_some() || vol.health.hanging.is_some() || vol.detaching
        });
        if down {
            // The next miss fetches them. One that hangs is not waited for.
            self.scrub.refetch.clear();
            self.scrub.refetching = false;
        }
        while !self.scrub.refetching
            && let Some(block) = self.scrub.refetch.pop()
        {
            let entry = self.vols.key(place, block).and_then(|key| self.index.get(key));
            let dropped = |e: Entry| !e.flags.dirty() && e.flags.spare() & spare::BAD != 0;
            if !entry.is_some_and(dropped) {
                continue;
            }
            let len = usize::try_from(BLOCK).unwrap_or(BLOCK_LEN);
            let Some(buf) = cx.pool.alloc(len) else {
                self.scrub.refetch.push(block);
                return;
            };
            let Some(fill) = self.fill_again(place, block) else { continue };
            let Some((at, len)) = self.vols.get(place).map(|vol| vol.backing_range(block, 1))
            else {
                return;
            };
            let serial = self.scrub.owner;
            let what = What::ScrubFill { volume: place, block, fill, serial };
            self.scrub.refetching = true;
            self.backing_op(cx.now, place, what, Op::read(0, at, len, buf));
        }
    }

    /// A block that was dropped came from the backing device.
    pub(super) fn refetched<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        (place, block): (u16, u64),
        (fill, serial): (u64, u64),
        done: Completion<B>,
    ) {
        if serial == self.scrub.owner {
            self.scrub.refetching = false;
        }
        self.fill_fetched(cx, (place, block, 1), fill, done);
    }
}
