//! `fault:URI`: a device that fails, hangs or disappears on request.

use crate::any::AnyDevice;
use forebay_io::{Completion, Device, DeviceError, DeviceInfo, Op, OpKind};
use forebay_reactor::PoolBuf;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Operations that wait for a hanging device at most.
const QUEUE: usize = 4096;

/// What a device does from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Operations fail with this error; the device does not see them.
    Error(DeviceError),
    /// Operations are taken and not answered until the fault ends; then they are carried out.
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

#[derive(Debug, Default)]
struct Plan {
    fault: Option<(Fault, FaultOps)>,
    /// Operations until it ends by itself.
    left: Option<u64>,
}

/// Controls a device's faults, from the reactor's thread.
#[derive(Clone, Debug, Default)]
pub struct FaultHandle(Rc<RefCell<Plan>>);

impl FaultHandle {
    /// Begins a fault, for `count` operations or until it is healed.
    pub fn inject(&self, fault: Fault, ops: FaultOps, count: Option<u64>) {
        *self.0.borrow_mut() = Plan { fault: Some((fault, ops)), left: count };
    }

    /// Ends any fault.
    pub fn heal(&self) {
        *self.0.borrow_mut() = Plan::default();
    }

    /// The fault that an operation of this kind meets now.
    fn meet(&self, kind: OpKind) -> Option<Fault> {
        let mut plan = self.0.borrow_mut();
        let (fault, ops) = plan.fault?;
        if !ops.has(kind) {
            return None;
        }
        if let Some(left) = &mut plan.left {
            if *left == 0 {
                *plan = Plan::default();
                return None;
            }
            *left -= 1;
        }
        Some(fault)
    }

    fn hangs(&self, kind: OpKind) -> bool {
        let plan = self.0.borrow();
        plan.fault.is_some_and(|(fault, ops)| fault == Fault::Hang && ops.has(kind))
            && plan.left != Some(0)
    }
}

/// A device under a fault handle.
pub struct FaultDevice {
    inner: AnyDevice,
    handle: FaultHandle,
    hung: VecDeque<Op<PoolBuf>>,
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

    /// Whether it must be polled although nothing wakes the reactor.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }
}

impl Device for FaultDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn submit(&mut self, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        match self.handle.meet(op.kind) {
            None => self.inner.submit(op),
            Some(Fault::Error(error)) => {
                self.failed.push_back(Completion {
                    token: op.token,
                    result: Err(error),
                    buf: op.buf,
                });
                Ok(())
            }
            Some(Fault::Hang) if self.hung.len() < QUEUE => {
                self.hung.push_back(op);
                Ok(())
            }
            Some(Fault::Hang) => Err(op),
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        for _ in 0..self.hung.len() {
            let Some(op) = self.hung.pop_front() else { break };
            if self.handle.hangs(op.kind) {
                self.hung.push_back(op);
            } else if let Err(op) = self.inner.submit(op) {
                self.hung.push_front(op);
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
