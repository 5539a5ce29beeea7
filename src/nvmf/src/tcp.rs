//! NVMe/TCP: what a connection agrees on, its handshake on the target's side, its send queue.

pub use crate::tcp::handshake::{
    Established, HANDSHAKE_BUFFER_MAX, HANDSHAKE_DEADLINE, Handshake, HandshakeError, Progress,
};
pub use crate::tcp::txqueue::TxQueue;
pub(crate) use crate::tcp::txqueue::widen;

use forebay_wire::tcp::Digests;

mod handshake;
mod txqueue;

/// In-capsule data that the target accepts on every queue, in bytes (IOCCSZ less the SQE).
pub const IN_CAPSULE_MAX: u32 = 8192;
/// Most data in one H2CData PDU that the target states, in bytes.
pub const MAXH2CDATA: u32 = 128 << 10;

/// What ICReq and ICResp agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Digests in use.
    pub digests: Digests,
    /// Alignment of data that the host asked for, dwords, zero-based.
    pub hpda: u8,
    /// R2Ts that may be outstanding for a command, zero-based. The target never has more than one.
    pub maxr2t: u32,
}
