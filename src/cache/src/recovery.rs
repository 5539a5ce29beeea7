//! Recovery: from an opened cache device to an index, a segment table and each volume's place in
//! its log. A state machine without I/O: drive [`Recovery::poll_action`] and
//! [`Recovery::handle_completion`] until [`Recovery::is_done`], then [`Recovery::finish`].

mod outcome;
pub mod transfer;

pub use outcome::{
    Lost, Recovered, RecoveredRange, RecoveredVolume, RecoveryError, SegmentInfo, SegmentState,
    Stats,
};
