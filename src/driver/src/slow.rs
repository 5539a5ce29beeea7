//! `slow:URI`: a device with added latency, standing for a distant array.

use crate::any::AnyDevice;
use crate::uri::Latency;
use core::cmp::Reverse;
use core::time::Duration;
use forebay_io::{Completion, Device, DeviceInfo, Instant, Op, OpKind};
use forebay_reactor::{LoopTime, PoolBuf};
use std::collections::BinaryHeap;

/// Operations under way at most.
const QUEUE: usize = 1024;

/// A device whose completions are held back until their time has come.
pub struct SlowDevice {
    inner: AnyDevice,
    time: LoopTime,
    latency: Latency,
    random: u64,
    /// Operations inside, by the token that they have there: their own token, and when they are due.
    due: Vec<(u64, Instant)>,
    free: Vec<usize>,
    inside: usize,
    /// Completed inside and not yet due: when, in which order they came, place in `held`.
    waiting: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    held: Vec<Option<Completion<PoolBuf>>>,
    held_free: Vec<usize>,
    arrivals: u64,
    scratch: Vec<Completion<PoolBuf>>,
}

impl SlowDevice {
    /// Wraps `inner`, on a reactor whose loop time is `time`.
    #[must_use]
    pub fn new(inner: AnyDevice, time: LoopTime, latency: Latency) -> Self {
        Self {
            inner,
            time,
            latency,
            random: latency.seed,
            due: Vec::with_capacity(QUEUE),
            free: Vec::with_capacity(QUEUE),
            inside: 0,
            waiting: BinaryHeap::with_capacity(QUEUE),
            held: Vec::with_capacity(QUEUE),
            held_free: Vec::with_capacity(QUEUE),
            arrivals: 0,
            scratch: Vec::with_capacity(QUEUE),
        }
    }

    /// The wrapped device.
    #[must_use]
    pub const fn inner(&self) -> &AnyDevice {
        &self.inner
    }

    /// How long an operation takes: its kind's latency, varied by the jitter.
    fn draw(&mut self, kind: OpKind) -> Duration {
        let base = match kind {
            OpKind::Read => self.latency.read,
            OpKind::Flush => self.latency.flush,
            OpKind::Write | OpKind::Deallocate | OpKind::WriteZeroes => self.latency.write,
        };
        if self.latency.jitter == 0 {
            return base;
        }
        // splitmix64: even for every seed, neighbouring ones included.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = f64::from(u32::try_from(mixed >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        base.mul_f64(1.0 + f64::from(self.latency.jitter) / 100.0 * (2.0 * unit - 1.0))
    }

    /// When the next held completion is due.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.waiting.peek().map_or(Instant::NEVER, |Reverse((due, ..))| *due)
    }

    fn hold(&mut self, due: Instant, completion: Completion<PoolBuf>) {
        let place = self.held_free.pop().unwrap_or(self.held.len());
        if place == self.held.len() {
            self.held.push(Some(completion));
        } else {
            self.held[place] = Some(completion);
        }
        self.arrivals += 1;
        self.waiting.push(Reverse((due, self.arrivals, place)));
    }
}

impl Device for SlowDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn submit(&mut self, mut op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        if self.in_flight() >= QUEUE {
            return Err(op);
        }
        let due = self.time.now() + self.draw(op.kind);
        let token = op.token;
        let place = self.free.pop().unwrap_or(self.due.len());
        if place == self.due.len() {
            self.due.push((token, due));
        } else {
            self.due[place] = (token, due);
        }
        op.token = place as u64;
        self.inner.submit(op).map_err(|mut op| {
            self.free.push(place);
            op.token = token;
            op
        })?;
        self.inside += 1;
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let mut scratch = core::mem::take(&mut self.scratch);
        self.inner.poll(&mut scratch);
        for mut completion in scratch.drain(..) {
            let place = usize::try_from(completion.token).unwrap_or(usize::MAX);
            let Some((token, due)) = self.due.get(place).copied() else { continue };
            self.free.push(place);
            self.inside -= 1;
            completion.token = token;
            self.hold(due, completion);
        }
        self.scratch = scratch;
        let now = self.time.now();
        let mut count = 0;
        while let Some(Reverse((due, _, place))) = self.waiting.peek().copied()
            && due <= now
        {
            self.waiting.pop();
            self.held_free.push(place);
            if let Some(completion) = self.held.get_mut(place).and_then(Option::take) {
                done.push(completion);
                count += 1;
            }
        }
        count
    }

    fn in_flight(&self) -> usize {
        self.inside + self.waiting.len()
    }
}

#[cfg(test)]
mod tests;
