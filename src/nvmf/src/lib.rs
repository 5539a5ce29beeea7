//! NVMe over Fabrics target and initiator as state machines without I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`initiator`] | the host's side: queues, controllers, discovery, a remote namespace as a device |
//! | [`tcp`] | what both ends of NVMe/TCP share: the queue of bytes to send, connection parameters, and the target's handshake |
//! | [`target`] | subsystems, namespaces, controllers, queues, discovery: bytes in, block requests out |
//!
//! Sockets, clocks and memory belong to the shell: bytes and `now` are arguments, buffers come from
//! a pool that is passed in, and what is to be sent is a list of slices.
#![forbid(unsafe_code)]

pub mod initiator;
pub mod plant;
pub mod target;
pub mod tcp;
