//! Flushes: of the cache device where it has a volatile cache, and of backing devices for hosts.

use super::ops::What;
use super::request::Stage;
use super::slab::Handle;
use super::{Cx, Engine};
use crate::format::geometry::LogStream;
use crate::plant::Bug;
use forebay_io::{Buf, BufPool, DeviceError, Instant, Op, Outcome, RequestOp};

/// Flushes of the cache device: at most one is under way; a waiter names the first one that begins
/// after it asked.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    wanted: u64,
    started: u64,
    completed: u64,
    under_way: bool,
    /// Requests that wait.
    waiting: Vec<Handle>,
    /// Batches with lower numbers were durable when the flush that is under way began.
    snapshot: [u64; 3],
    /// Batches with lower numbers are flushed.
    below: [u64; 3],
}

impl Flushes {
    /// The oldest batch of a log that is not durable, where completed is not durable yet.
    pub(super) fn durable_below(&self, kind: LogStream, oldest: u64) -> u64 {
        self.below[usize::from(kind.code())].min(oldest)
    }
}

impl<B: Buf> Engine<B> {
    /// The flush that makes everything completed so far durable.
    pub(super) fn flush_ticket(&mut self) -> u64 {
        if !self.volatile {
            return 0;
        }
        let early = self.plant.has(Bug::FlushUnderWay) && self.flush.under_way;
        let ticket = self.flush.started + u64::from(!early);
        self.flush.wanted = self.flush.wanted.max(ticket);
        ticket
    }

    /// The next flush that begins, without asking for it.
    pub(super) const fn next_flush(&self) -> u64 {
        if self.volatile { self.flush.started + 1 } else { 0 }
    }

    pub(super) fn flush_passed(&self, ticket: u64) -> bool {
        !self.volatile || self.flush.completed >= ticket
    }

    /// Begins a flush if one is wanted and none is under way.
    pub(super) fn flush_pump(&mut self, now: Instant) {
        let wanted = self.flush.wanted > self.flush.started;
        if self.flush.under_way || !wanted || self.cache_failed.is_some() {
            return;
        }
        self.flush.started += 1;
        self.flush.under_way = true;
        for kind in LogStream::ALL {
            let index = usize::from(kind.code());
            let oldest = self.streams[index].queue.front().map(|batch| batch.number);
            self.flush.snapshot[index] = oldest.unwrap_or(self.numbers.peek());
        }
        self.cache_op(now, What::CacheFlush, Op::flush(0));
    }

    pub(super) fn cache_flush_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        result: Result<(), DeviceError>,
    ) {
        self.flush.under_way = false;
        if let Err(error) = result {
            // Tried again: nothing that waits for it goes on before one succeeds.
            self.flush.started -= 1;
            self.flush_errors = self.flush_errors.saturating_add(1);
            let last = self.flush_errors >= 3;
            self.cache_error(cx, error, last);
            return;
        }
        self.flush_errors = 0;
        self.flush.completed = self.flush.started;
        self.flush.below = self.flush.snapshot;
        let mut waiting = core::mem::take(&mut self.flush.waiting);
        waiting.retain(|h| {
            let ticket = self.reqs.get(*h).map(|req| req.ticket);
            let passed = ticket.is_none_or(|ticket| self.flush.completed >= ticket);
            if passed && ticket.is_some() {
                self.wake.push_back(*h);
            }
            !passed
        });
        waiting.append(&mut self.flush.waiting);
        self.flush.waiting = waiting;
    }

    /// The requests that wait for a flush which will not come.
    pub(super) fn flush_give_up(&mut self) -> Vec<Handle> {
        core::mem::take(&mut self.flush.waiting)
    }

    /// Ends, or takes up again, a request once all that is completed now is durable.
    pub(super) fn flush_wait(&mut self, now: Instant, h: Handle) {
        if self.cache_failed.is_some() {
            self.refuse(h);
            return;
        }
        let ticket = self.flush_ticket();
        if let Some(req) = self.reqs.get_mut(h) {
            (req.stage, req.ticket) = (Stage::Flush, ticket);
        }
        if self.flush_passed(ticket) {
            self.wake.push_back(h);
        } else {
            self.flush.waiting.push(h);
            self.flush_pump(now);
        }
    }

    /// The flush of the cache device that a request waited for is done.
    pub(super) fn flush_goes_on<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        match req.op {
            RequestOp::Flush => self.host_flush(cx, h),
            _ if req.bypass => self.bypass_go(cx, h),
            _ if req.through => self.backing_go(cx, h),
            _ => self.finish(h, Outcome::Done),
        }
    }

    /// A host's Flush: what it completed is durable where it was acknowledged from.
    pub(super) fn flush_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let flushes = self.volatile && !self.plant.has(Bug::NoHostFlush);
        if flushes && self.cache_failed.is_none() {
            self.flush_wait(cx.now, h);
        } else {
            self.host_flush(cx, h);
        }
    }

    fn host_flush<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get_mut(h) else { return };
        req.stage = Stage::Flush;
        let place = req.volume;
        let Some(vol) = self.vols.get_mut(place) else { return };
        if let Some(order) = vol.order.as_mut() {
            order.flushed();
        }
        // What an earlier flush covers is durable only when that one ends.
        let awaited = vol.flushing > 0 && !self.plant.has(Bug::FlushNotAwaited);
        let wanted = vol.unflushed || awaited || vol.bypassing > 0 || vol.doubts > 0;
        let wanted = wanted && !self.plant.has(Bug::NoBackingFlush);
        if wanted && vol.backing.volatile_write_cache {
            vol.unflushed = false;
            vol.flushing += 1;
            self.backing_op(cx.now, place, What::HostFlush { req: h }, Op::flush(0));
        } else {
            self.finish(h, Outcome::Done);
        }
    }

    pub(super) fn host_flush_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        h: Handle,
        result: Result<(), DeviceError>,
    ) {
        let Some(place) = self.reqs.get(h).map(|req| req.volume) else { return };
        if let Some(vol) = self.vols.get_mut(place) {
            vol.flushing -= 1;
        }
        match result {
            Ok(()) => self.finish(h, Outcome::Done),
            Err(error) => {
                if let Some(vol) = self.vols.get_mut(place) {
                    vol.unflushed = true;
                }
                self.backing_error(cx, place, error);
                self.backing_refused(cx, h);
            }
        }
    }

    /// Flushes a backing device whose latest writes may be lost, before what is read from it is kept
    /// in a cache that a power loss may leave newer than it.
    pub(super) fn quiet_flush(&mut self, now: Instant, place: u16) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        let health = &vol.health;
        let able = health.hanging.is_none() && (health.failing.is_none() || health.retry_at <= now);
        let wanted = vol.unflushed && vol.flushing == 0 && vol.backing.volatile_write_cache;
        if self.volatile && wanted && able && vol.attached && vol.caching && !vol.detaching {
            vol.unflushed = false;
            vol.flushing += 1;
            self.backing_op(now, place, What::QuietFlush { volume: place }, Op::flush(0));
        }
    }

    pub(super) fn quiet_flush_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        result: Result<(), DeviceError>,
    ) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        vol.flushing -= 1;
        if let Err(error) = result {
            vol.unflushed = true;
            self.backing_error(cx, place, error);
        }
    }
}
