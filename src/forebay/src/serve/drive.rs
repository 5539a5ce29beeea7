//! Work on one device that is done before anything is served: opening, formatting, recovery. The
//! thread polls until it ends.

use super::failpoints;
use forebay_cache::format::plan::Step;
use forebay_driver::AnyDevice;
use forebay_io::{BufPool, Completion, Device, DeviceError, Op};
use forebay_reactor::PoolBuf;

/// Polls the device until `machine` has no operation left: `next` gives operations, `done` takes
/// completions, `ended` says whether it has ended.
pub(crate) fn run<M>(
    device: &mut AnyDevice,
    machine: &mut M,
    mut next: impl FnMut(&mut M) -> Option<Op<PoolBuf>>,
    mut done: impl FnMut(&mut M, Completion<PoolBuf>),
    mut ended: impl FnMut(&mut M) -> bool,
) {
    let mut completions = Vec::new();
    let mut held: Option<Op<PoolBuf>> = None;
    loop {
        let mut moved = false;
        while let Some(op) = held.take().or_else(|| next(machine)) {
            if let Err(op) = device.submit(op) {
                held = Some(op);
                break;
            }
            moved = true;
        }
        device.poll(&mut completions);
        for completion in completions.drain(..) {
            done(machine, completion);
            moved = true;
        }
        if held.is_none() && device.in_flight() == 0 && ended(machine) {
            return;
        }
        if !moved {
            std::thread::yield_now();
        }
    }
}

/// Carries out the steps of a format, each before the next.
///
/// # Errors
/// The device's; the format is then not complete and can be repeated.
pub(crate) fn carry_out(
    device: &mut AnyDevice,
    pool: &mut impl BufPool<Buf = PoolBuf>,
    steps: &[Step],
) -> Result<(), DeviceError> {
    use forebay_io::Buf;
    let mut completions = Vec::new();
    for (token, step) in (0u64..).zip(steps) {
        failpoints::hit("format-step");
        let op = match step {
            Step::Flush => Op::flush(token),
            Step::Write { offset, bytes } => {
                let mut buf = pool.alloc(bytes.len()).ok_or(DeviceError::Io(libc::ENOMEM))?;
                buf.as_mut_slice().ok_or(DeviceError::Io(libc::ENOMEM))?.copy_from_slice(bytes);
                Op::write(token, *offset, bytes.len() as u64, buf)
            }
        };
        device.submit(op).map_err(|_| DeviceError::Timeout)?;
        while device.poll(&mut completions) == 0 {
            std::thread::yield_now();
        }
        for completion in completions.drain(..) {
            completion.result?;
        }
    }
    Ok(())
}
