//! `fault:URI`: a device that fails, hangs or disappears on request.

use crate::any::AnyDevice;
use forebay_io::{Completion, Device, DeviceError, DeviceInfo, Instant, Op, OpKind};
use forebay_reactor::PoolBuf;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Operations that hang or have failed at most, between two polls.
const QUEUE: usize = 4096;

/// What happens to an operation that meets a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error; the device does not see it. [`DeviceError::Gone`] is a disappearance.
    Error(DeviceError),
    /// It is taken and not answered until the fault is healed; then it is carried out.
    Hang,
}

/// Which operations a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultOps {
    /// Reads.
    pub read: bool,
    /// Writes, write-zeroes, deallocations.
    pub write: bool,
    /// Flushes.
    pub flush: bool,
}

impl FaultOps {
    /// All.
    pub const ALL: Self = Self { read: true, write: true, flush: true };

    const fn has(self, kind: OpKind) -> bool {
        match kind {
            OpKind::Read => self.read,
            OpKind::Flush => self.flush,
            OpKind::Write | OpKind::Deallocate | OpKind::WriteZeroes => self.write,
        }
    }
}

/// When which operations meet a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// What happens to them.
    pub fault: Fault,
    /// Their kinds; all numbers below count operations of these kinds.
    pub ops: FaultOps,
    /// So many are spared first.
    pub after: u64,
    /// So many meet it then, before it ends for new ones; `None`: all.
    pub count: Option<u64>,
    /// Of the others so many in a million meet it, drawn from `seed`.
    pub per_million: u32,
    /// The same seed chooses the same operations.
    pub seed: u64,
}

impl FaultRule {
    /// Every operation meets the fault, from now on.
    #[must_use]
    pub const fn always(fault: Fault) -> Self {
        let (after, count, per_million, seed) = (0, None, 1_000_000, 0);
        Self { fault, ops: FaultOps::ALL, after, count, per_million, seed }
    }
}

#[derive(Debug, Default)]
struct Plan {
    rule: Option<FaultRule>,
    /// Counts heals: operations that hang do so until it changes.
    heals: u64,
}

impl Plan {
    /// The fault that an operation of this kind meets now.
    fn meet(&mut self, kind: OpKind) -> Option<Fault> {
        let rule = self.rule.as_mut().filter(|rule| rule.ops.has(kind))?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        if rule.per_million < 1_000_000 {
            // splitmix64, as for the latencies of `slow:`.
            rule.seed = rule.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = rule.seed;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if (mixed ^ (mixed >> 31)) % 1_000_000 >= u64::from(rule.per_million) {
                return None;
            }
        }
        let fault = rule.fault;
        if let Some(left) = &mut rule.count {
            if *left == 0 {
                self.rule = None;
                return None;
            }
            *left -= 1;
        }
        Some(fault)
    }
}

/// Controls a device's faults, from the reactor's thread (the control plane calls in there, which also
/// wakes a reactor that sleeps).
#[derive(Clone, Debug, Default)]
pub struct FaultHandle(Rc<RefCell<Plan>>);

impl FaultHandle {
    /// Begins a fault, for `count` operations or until it is healed.
    pub fn inject(&self, fault: Fault, ops: FaultOps, count: Option<u64>) {
        self.inject_rule(FaultRule { ops, count, ..FaultRule::always(fault) });
    }

    /// Begins a fault by rule, in place of the one that was; operations that hang go on hanging.
    pub fn inject_rule(&self, rule: FaultRule) {
        self.0.borrow_mut().rule = Some(rule);
    }

    /// Ends any fault for new operations; those that hang stay so until [`FaultHandle::heal`].
    pub fn end(&self) {
        self.0.borrow_mut().rule = None;
    }

    /// Ends any fault; what hangs is carried out.
    pub fn heal(&self) {
        let mut plan = self.0.borrow_mut();
        plan.rule = None;
        plan.heals += 1;
    }
}

/// A device under a fault handle.
pub struct FaultDevice {
    inner: AnyDevice,
    handle: FaultHandle,
    /// Operations that hang, with the number of heals when they were submitted.
    hung: VecDeque<(u64, Op<PoolBuf>)>,
    failed: VecDeque<Completion<PoolBuf>>,
}

impl FaultDevice {
    /// Wraps `inner`; without a fault it behaves as that does.
    #[must_use]
    pub fn new(inner: AnyDevice) -> Self {
        Self {
            inner,
            handle: FaultHandle::default(),
            hung: VecDeque::new(),
            failed: VecDeque::new(),
        }
    }

    /// What controls it.
    #[must_use]
    pub fn handle(&self) -> FaultHandle {
        self.handle.clone()
    }

    /// The wrapped device.
    #[must_use]
    pub const fn inner(&self) -> &AnyDevice {
        &self.inner
    }

    /// When it must be polled at the latest: at once while it has something of its own to say.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let heals = self.handle.0.borrow().heals;
        let released = self.hung.front().is_some_and(|(then, _)| *then != heals);
        if released || !self.failed.is_empty() { Instant(0) } else { self.inner.next_deadline() }
    }
}

impl Device for FaultDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn submit(&mut self, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        if self.hung.len() + self.failed.len() >= QUEUE {
            return Err(op);
        }
        let mut plan = self.handle.0.borrow_mut();
        match plan.meet(op.kind) {
            None => self.inner.submit(op),
            Some(Fault::Error(error)) => {
                let failed = Completion { token: op.token, result: Err(error), buf: op.buf };
                self.failed.push_back(failed);
                Ok(())
            }
            Some(Fault::Hang) => {
                self.hung.push_back((plan.heals, op));
                Ok(())
            }
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let heals = self.handle.0.borrow().heals;
        while self.hung.front().is_some_and(|(then, _)| *then != heals) {
            let Some((_, op)) = self.hung.pop_front() else { break };
            if let Err(op) = self.inner.submit(op) {
                // Released already: its number of heals is past whatever it was.
                self.hung.push_front((heals.wrapping_sub(1), op));
                break;
            }
        }
        let count = self.failed.len();
        done.extend(self.failed.drain(..));
        count + self.inner.poll(done)
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.hung.len() + self.failed.len()
    }
}

#[cfg(test)]
mod tests;
