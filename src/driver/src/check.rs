//! What every local device demands of an operation.

use forebay_io::{Buf, DeviceError, DeviceInfo, Op, OpKind};
use forebay_reactor::PoolBuf;

/// Checks an operation against what the device states of itself: range, alignment, buffer.
///
/// # Errors
/// [`DeviceError::OutOfRange`] beyond the end, [`DeviceError::Unsupported`] for what the device does
/// not do, else `Io(EINVAL)`: a bug of the caller.
pub(crate) fn check(info: &DeviceInfo, op: &Op<PoolBuf>) -> Result<(), DeviceError> {
    const INVALID: Result<(), DeviceError> = Err(DeviceError::Io(libc::EINVAL));
    if op.kind == OpKind::Flush {
        return Ok(());
    }
    let block = u64::from(info.block_size);
    if op.offset.checked_add(op.len).is_none_or(|end| end > info.size) {
        return Err(DeviceError::OutOfRange);
    }
    if op.len == 0 || !op.offset.is_multiple_of(block) || !op.len.is_multiple_of(block) {
        return INVALID;
    }
    match op.kind {
        OpKind::Deallocate if !info.deallocate => Err(DeviceError::Unsupported),
        OpKind::WriteZeroes if !info.write_zeroes => Err(DeviceError::Unsupported),
        OpKind::Deallocate | OpKind::WriteZeroes | OpKind::Flush => Ok(()),
        OpKind::Read | OpKind::Write => {
            let Some(buf) = &op.buf else { return INVALID };
            let fits = usize::try_from(op.len).is_ok_and(|len| len <= buf.len());
            let writable = op.kind == OpKind::Write || buf.is_unique();
            if fits && writable && op.len <= u64::from(info.max_io) { Ok(()) } else { INVALID }
        }
    }
}
