//! NVMe, NVMe over Fabrics and NVMe/TCP wire formats, parsed once into validated types.
//!
//! Every type here has both directions, so that the target and the initiator use one codec.
//! Decoding takes arrays of the exact size or checks lengths first: no input can panic. Nothing
//! here keeps state; sequences of PDUs belong to the crate `nvmf`.
//!
//! | module | holds |
//! |---|---|
//! | [`sqe`] | the 64-byte submission queue entry and typed views of its commands |
//! | [`cqe`] | the 16-byte completion queue entry |
//! | [`status`] | status codes, by type, with the Do Not Retry bit |
//! | [`nqn`] | NVMe qualified names |
//! | [`identify`] | Identify data structures |
//! | [`log`] | log pages |
//! | [`feature`] | feature identifiers and values |
//! | [`fabrics`] | Connect, Property Get and Set, Disconnect |
//! | [`property`] | controller properties CAP, VS, CC, CSTS, CRTO |
//! | [`dsm`] | Dataset Management ranges |
//! | [`tcp`] | NVMe/TCP PDUs, their validation, digests |
//!
//! Specifications cited: NVMe Base 2.0, NVM Command Set 1.0, NVMe/TCP Transport 1.0.
#![forbid(unsafe_code)]

pub mod cqe;
pub mod dsm;
pub mod fabrics;
pub mod feature;
mod field;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod property;
pub mod sqe;
pub mod status;
pub mod tcp;

pub use cqe::Cqe;
pub use nqn::Nqn;
pub use sqe::Sqe;
pub use status::Status;

/// The namespace identifier that means "all namespaces" (NVMe Base 2.0 §3.2.1.2).
pub const NSID_ALL: u32 = 0xffff_ffff;
/// The name of the discovery subsystem that every target answers to (NVMe Base 2.0 §4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
