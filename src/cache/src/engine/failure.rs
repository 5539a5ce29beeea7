//! What fails, and how the engine lives on: backing devices that fail, hang or vanish; the cache
//! device.

use super::ops::What;
use super::request::Stage;
use super::slab::Handle;
use super::types::{BLOCK, Event, OnFailure};
use super::{Cx, Engine};
use crate::plant::Bug;
use forebay_io::{
    BlockError, Buf, BufPool, Completion, DeviceError, Duration, Instant, Lsn, Op, Outcome, Tag,
    VolumeId,
};
use std::collections::VecDeque;

/// First and longest pause between tries of a failing backing device.
const BACKOFF_FROM: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How often operations are looked at for want of an answer.
pub(super) const WATCH: Duration = Duration::from_millis(250);
/// Looks in a row that must find an operation of the cache device late before it counts as failed.
/// More than one: after a pause of the whole process everything looks late once, answered or not.
const LATE_LOOKS: u8 = 8;

/// How long an answer that asks for another try is held back, and how many are at once. Hosts read it
/// as "Asymmetric Access Transition" (NVMe Base 2.0 §8.1), find the namespace accessible, and one
/// that were answered at once would try again at once for as long as a device is out.
const REFUSE_AFTER: Duration = Duration::from_millis(100);
const REFUSED_MAX: usize = 4096;

/// Refusals on their way, in the order of their time.
#[derive(Debug, Default)]
pub(super) struct Refusals(VecDeque<(Instant, Tag)>);

impl Refusals {
    /// Takes a refusal; `false` where there are too many: it is answered at once then.
    pub(super) fn hold(&mut self, now: Instant, tag: Tag) -> bool {
        let room = self.0.len() < REFUSED_MAX;
        if room {
            self.0.push_back((now + REFUSE_AFTER, tag));
        }
        room
    }

    pub(super) fn deadline(&self) -> Instant {
        self.0.front().map_or(Instant::NEVER, |(at, _)| *at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<B: Buf> Engine<B> {
    /// Answers the refusals that are due; all of them where the engine stops.
    pub(super) fn refusals_go(&mut self, now: Instant) {
        while self.refusals.deadline() <= now || (self.stopping && !self.refusals.is_empty()) {
            let Some((_, tag)) = self.refusals.0.pop_front() else { return };
            self.event(Event::Done { tag, outcome: Outcome::Failed(BlockError::NotReady) });
        }
    }

    /// A backing device refused an operation.
    pub(super) fn backing_error<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        error: DeviceError,
    ) {
        let now = cx.now;
        let Some(vol) = self.vols.get_mut(place) else { return };
        let health = &mut vol.health;
        health.errors += 1;
        let began = health.failing.is_none();
        health.failing = Some((health.failing.map_or(now, |(since, _)| since), error));
        if began || health.retry_at <= now {
            health.backoff =
                if began { BACKOFF_FROM } else { (health.backoff * 2).min(BACKOFF_MAX) };
            health.retry_at = now + health.backoff;
        }
        if began {
            let volume = vol.id;
            self.event(Event::BackingFailing { volume, error });
        }
    }

    /// A backing device carried out an operation.
    pub(super) fn backing_good<P: BufPool<Buf = B>>(&mut self, _cx: &mut Cx<'_, P>, place: u16) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        if vol.health.failing.is_none() {
            return;
        }
        vol.health.failing = None;
        vol.health.backoff = Duration::ZERO;
        vol.health.retry_at = Instant(0);
        let volume = vol.id;
        self.event(Event::BackingBack { volume });
        self.unskip();
    }

    /// Segments that were passed over are looked at again.
    fn unskip(&mut self) {
        for seg in 0..u32::try_from(self.segs.len()).unwrap_or(0) {
            if let Some(s) = self.segs.get_mut(seg) {
                s.skip_until = Instant(0);
            }
        }
    }

    /// The cache device refused an operation; `fatal` where it was tried often enough.
    pub(super) fn cache_error<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        error: DeviceError,
        fatal: bool,
    ) {
        self.stats.cache_errors += 1;
        if self.cache_failed.is_some() || !(fatal || error == DeviceError::Gone) {
            return;
        }
        self.cache_failed = Some((cx.now, error));
        for place in 0..self.vols.bound() {
            self.order_set(place, None);
        }
        self.event(Event::CacheFailed { error });
        // Nothing more is acknowledged from the log.
        for kind in crate::format::geometry::LogStream::ALL {
            let stream = &mut self.streams[usize::from(kind.code())];
            stream.open = None;
            stream.queue.clear();
        }
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get_mut(place) else { continue };
            let (uncommitted, id) = (core::mem::take(&mut vol.pending), vol.id);
            vol.next_lsn = vol.committed + 1;
            let _ = id;
            for pending in uncommitted {
                self.unpin(pending.seg);
                if pending.last {
                    self.refuse(pending.req);
                }
            }
        }
        for h in self.flush_give_up() {
            self.refuse(h);
        }
        let stalled = core::mem::take(&mut self.stalled);
        for h in stalled {
            match self.reqs.get(h).map(|req| req.stage) {
                Some(Stage::Stalled) if self.reqs.get(h).is_some_and(|req| req.placed > 0) => {
                    self.refuse(h)
                }
                _ => self.stalled.push_back(h),
            }
        }
    }

    /// The data of a request went down with the cache device before it was acknowledged: the host
    /// tries again, and its data goes to the backing device then.
    pub(super) fn refuse(&mut self, h: Handle) {
        let acked = self.plant.has(Bug::FailedAcks);
        let refused = Outcome::Failed(BlockError::NotReady);
        self.finish(h, if acked { Outcome::Done } else { refused });
    }

    /// The node has noted durably that this cache failed and must not be trusted after a restart
    /// (its dirty data is older than what is written to the backing devices from now on). Only then
    /// are writes served again, by the backing devices alone.
    pub fn cache_failure_noted(&mut self) {
        self.failure_noted = self.cache_failed.is_some();
    }

    /// Whether writes have to wait until the failure of the cache device is noted.
    pub(super) fn waits_for_note(&self) -> bool {
        self.cache_failed.is_some() && !self.failure_noted
    }

    /// Looks for operations without an answer, and tries failing backing devices again.
    pub(super) fn watch<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        if cx.now < self.watch_at {
            return;
        }
        self.watch_at = cx.now + WATCH;
        self.doubts_over(cx.now);
        let (now, timeout) = (cx.now, self.limits.op_timeout);
        let mut late = core::mem::take(&mut self.late);
        late.clear();
        for (h, under) in self.ops.iter_mut() {
            if now.since(under.started) >= timeout {
                late.push((h, *under));
            }
        }
        let cache_late = late.iter().any(|(_, under)| under.backing.is_none());
        self.cache_hanging = if cache_late { self.cache_hanging.or(Some(now)) } else { None };
        self.late_looks = if cache_late { self.late_looks.saturating_add(1) } else { 0 };
        for place in 0..self.vols.bound() {
            let hangs =
                late.iter().any(|(_, under)| under.backing == Some(place) && !under.journal);
            self.hanging(cx, place, hangs);
        }
        for (h, under) in &late {
            if let Some(place) = under.backing.filter(|_| !under.journal) {
                self.unanswered(cx, place, *h, under.what);
            }
        }
        self.late = late;
        if self.late_looks >= LATE_LOOKS {
            self.cache_error(cx, DeviceError::Timeout, true);
        }
        self.give_up(cx);
        self.probe(cx);
    }

    /// Ends the operations that a failed cache device does not answer: at once where not answering
    /// is how it failed. What it makes of them later is nobody's any more: their handles are free,
    /// and the node has noted that what is on the device must not be trusted.
    fn give_up<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        let Some((_, error)) = self.cache_failed else { return };
        let patience =
            if error == DeviceError::Timeout { Duration::ZERO } else { self.limits.op_timeout };
        let mut late = core::mem::take(&mut self.late);
        late.clear();
        for (h, under) in self.ops.iter_mut() {
            if under.backing.is_none() && cx.now.since(under.started) >= patience {
                late.push((h, *under));
            }
        }
        for (h, under) in late.drain(..) {
            self.ops.free(h);
            let result = Err(DeviceError::Timeout);
            self.dispatch(cx, under.what, Completion { token: h.token(), result, buf: None });
        }
        self.late = late;
    }

    fn hanging<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16, hangs: bool) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        match (hangs, vol.health.hanging) {
            (true, None) => {
                vol.health.hanging = Some(cx.now);
                self.backing_error(cx, place, DeviceError::Timeout);
            }
            (false, Some(_)) => {
                vol.health.hanging = None;
                self.backing_good(cx, place);
            }
            _ => {}
        }
    }

    /// A backing device has not answered an operation in time: what can go on without it does.
    fn unanswered<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        h: Handle,
        what: What,
    ) {
        let fails = self.vols.get(place).is_some_and(|vol| vol.on_failure == OnFailure::Fail);
        match what {
            What::Miss { req, .. } if fails => self.abandon(req),
            What::DestageWrite { run } | What::DestageZeroes { run } => self.run_left(run),
            What::DestageFlush { volume } => {
                if let Some(under) = self.ops.get_mut(h) {
                    under.what = What::LateFlush { volume };
                }
                self.destage_flush_done(cx, volume, Err(DeviceError::Timeout));
            }
            _ => {}
        }
    }

    /// A host's read whose backing read hangs fails; the operation's end is awaited without it.
    fn abandon(&mut self, h: Handle) {
        if self.reqs.get(h).is_some_and(|req| req.stage == Stage::Read) {
            self.finish(h, Outcome::Failed(BlockError::NotReady));
        }
    }

    /// Reads a block of each failing backing device now and then: it may be back.
    fn probe<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            let health = vol.health;
            // A volume whose data is dropped needs it no more, and its place is free soon.
            if vol.discards()
                || health.failing.is_none()
                || health.probing
                || health.retry_at > cx.now
                || health.hanging.is_some()
            {
                continue;
            }
            let len = BLOCK.min(vol.size);
            let Some(buf) = self.alloc(cx, len) else { return };
            if let Some(vol) = self.vols.get_mut(place) {
                vol.health.probing = true;
            }
            self.backing_op(cx.now, place, What::Probe { volume: place }, Op::read(0, 0, len, buf));
        }
    }

    pub(super) fn probe_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        result: Result<(), DeviceError>,
    ) {
        if let Some(vol) = self.vols.get_mut(place) {
            vol.health.probing = false;
            // A device that reads may still not write: that is for the next write to find out.
            vol.health.retry_at = vol.health.retry_at.min(cx.now);
        }
        if let Err(error) = result {
            self.backing_error(cx, place, error);
        } else if let Some((_, DeviceError::Gone | DeviceError::Timeout)) =
            self.vols.get(place).and_then(|vol| vol.health.failing)
        {
            self.backing_good(cx, place);
        }
    }

    /// The dirty blocks of a volume that the failed cache device keeps from us: runs of blocks, by
    /// `visit`. Takes time in proportion to the cache.
    pub fn dirty_ranges(&self, id: VolumeId, mut visit: impl FnMut(u64, u64)) {
        let Some(vol) = self.vols.find(id).and_then(|place| self.vols.get(place)) else { return };
        let mut blocks = Vec::new();
        self.index.for_each(|key, entry| {
            if key.volume() == vol.index && entry.flags.dirty() {
                blocks.push(key.block());
            }
        });
        blocks.sort_unstable();
        let mut run: Option<(u64, u64)> = None;
        for block in blocks {
            match &mut run {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => {
                    if let Some((first, count)) = run.replace((block, 1)) {
                        visit(first, count);
                    }
                }
            }
        }
        if let Some((first, count)) = run {
            visit(first, count);
        }
    }

    /// The last committed number of a volume.
    #[must_use]
    pub fn committed_lsn(&self, id: VolumeId) -> Option<Lsn> {
        let place = self.vols.find(id)?;
        self.vols.get(place).map(|vol| Lsn(vol.committed))
    }
}
