//! `slow:URI`: a device with added latency, standing for a distant array.

use crate::any::AnyDevice;
use core::cmp::Reverse;
use core::time::Duration;
use forebay_io::{Completion, Device, DeviceInfo, Instant, Op, OpKind};
use forebay_reactor::{LoopTime, PoolBuf};
use std::collections::{BinaryHeap, VecDeque};

/// Operations under way at most.
const QUEUE: usize = 1024;

/// A device whose completions are held back.
pub struct SlowDevice {
    inner: AnyDevice,
    time: LoopTime,
    read: Duration,
    write: Duration,
    jitter: f64,
    random: u64,
    /// When each operation under way inside may complete, by the token it has there.
    due: Vec<(u64, Instant)>,
    free: VecDeque<usize>,
    inside: usize,
    /// Completed inside and not yet due: when, place in `held`.
    waiting: BinaryHeap<Reverse<(Instant, usize)>>,
    held: Vec<Option<Completion<PoolBuf>>>,
    held_free: Vec<usize>,
    scratch: Vec<Completion<PoolBuf>>,
}

impl SlowDevice {
    /// Wraps `inner`. `jitter` is the share by which an added latency varies.
    #[must_use]
    pub fn new(
        inner: AnyDevice,
        time: LoopTime,
        (read, write): (Duration, Duration),
        jitter: f64,
    ) -> Self {
        Self {
            inner,
            time,
            read,
            write,
            jitter,
            // Any odd number: the same run has the same latencies.
            random: 0x9e37_79b9_7f4a_7c15,
            due: Vec::new(),
            free: VecDeque::new(),
            inside: 0,
            waiting: BinaryHeap::new(),
            held: Vec::new(),
            held_free: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The wrapped device.
    #[must_use]
    pub const fn inner(&self) -> &AnyDevice {
        &self.inner
    }

    fn latency(&mut self, kind: OpKind) -> Duration {
        let base = if kind == OpKind::Read { self.read } else { self.write };
        // xorshift64: even enough for a jitter.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let unit = f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        base.mul_f64((1.0 + self.jitter * (2.0 * unit - 1.0)).max(0.0))
    }

    /// When the next held completion is due.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.waiting.peek().map_or(Instant::NEVER, |Reverse((due, _))| *due)
    }

    fn hold(&mut self, due: Instant, completion: Completion<PoolBuf>) {
        let place = self.held_free.pop().unwrap_or(self.held.len());
        if place == self.held.len() {
            self.held.push(Some(completion));
        } else {
            self.held[place] = Some(completion);
        }
        self.waiting.push(Reverse((due, place)));
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
        let due = self.time.now() + self.latency(op.kind);
        let token = op.token;
        let place = self.free.pop_front().unwrap_or(self.due.len());
        if place == self.due.len() {
            self.due.push((token, due));
        } else {
            self.due[place] = (token, due);
        }
        op.token = place as u64;
        self.inner.submit(op).map_err(|mut op| {
            self.free.push_front(place);
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
            self.free.push_back(place);
            self.inside -= 1;
            completion.token = token;
            self.hold(due, completion);
        }
        self.scratch = scratch;
        let now = self.time.now();
        let mut count = 0;
        while let Some(Reverse((due, place))) = self.waiting.peek().copied()
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
