//! The one mapping of a volume's errors to NVMe status.

use forebay_io::BlockError;
use forebay_wire::Status;

/// The status of a command that the volume could not carry out.
///
/// `NotReady` is an ANA transition: Linux keeps such a command and tries again until the path is
/// back, whereas Namespace Not Ready becomes an I/O error after five immediate retries.
pub(super) const fn status_of(error: BlockError) -> Status {
    match error {
        BlockError::Unrecovered => Status::UNRECOVERED_READ,
        BlockError::WriteFault => Status::WRITE_FAULT,
        BlockError::CompareFailed => Status::COMPARE_FAILURE.dnr(),
        BlockError::NotReady => Status::ANA_TRANSITION,
        BlockError::CapacityExceeded => Status::CAPACITY_EXCEEDED,
        BlockError::Aborted => Status::ABORT_REQUESTED,
        BlockError::NoSuchVolume => Status::INVALID_NAMESPACE,
        BlockError::Internal => Status::INTERNAL,
    }
}
