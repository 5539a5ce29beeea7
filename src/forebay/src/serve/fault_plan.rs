//! A fault in the control plane's words as one in the driver's.

use forebay_control::node::{DeviceFault, FaultKind, FaultOp};
use forebay_driver::{Fault, FaultHandle, FaultOps};
use forebay_io::DeviceError;

/// What to do with a device's fault handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    fault: Option<Fault>,
    ops: FaultOps,
    count: Option<u64>,
}

pub(crate) fn plan(fault: &DeviceFault) -> Plan {
    let ops = if fault.ops.is_empty() {
        FaultOps::ALL
    } else {
        let has = |op| fault.ops.contains(&op);
        FaultOps {
            read: has(FaultOp::Read),
            write: has(FaultOp::Write),
            flush: has(FaultOp::Flush),
        }
    };
    let kind = match fault.fault {
        FaultKind::Error => Some(Fault::Error(DeviceError::Io(libc::EIO))),
        FaultKind::Gone => Some(Fault::Error(DeviceError::Gone)),
        FaultKind::Hang => Some(Fault::Hang),
        FaultKind::Heal => None,
    };
    Plan { fault: kind, ops, count: fault.count }
}

pub(crate) fn apply(plan: &Plan, handle: &FaultHandle) {
    match plan.fault {
        Some(fault) => handle.inject(fault, plan.ops, plan.count),
        None => handle.heal(),
    }
}
