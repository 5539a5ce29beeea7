//! A whole node in a simulated world: two shards, hosts that speak NVMe/TCP bytes over connections that
//! delay, split, stall and break, storage behind each engine, crashes, and checkers.
//!
//! The target, the shards, the engines and recovery are the production code, and so is the initiator
//! that the hosts use. Simulated are sockets, mailboxes, devices and the clock; one poll of a reactor
//! makes the calls that the daemon's service makes, in its order.
//!
//! ```text
//! host ── Controller ── Link (bytes, both ways) ──> reactor: Shard ── Device (cache, backing)
//!                                                     ^   mailbox, in order for each pair
//!                                                     v
//!                                                   reactor: Shard ── Device
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`link`] | a connection's bytes on their way |
//! | [`tap`] | what must hold of the bytes of a connection |
//! | [`host`] | a host: its association, its commands |
//! | [`judge`] | what was asked and answered, and the oracles |
//! | [`world`], [`reactor`], [`life`], [`check`] | the node and time; one reactor's poll; starts, stops and crashes; what is looked at |
//! | [`script`], `scenes`, [`run`] | seeded runs |

pub mod check;
pub mod host;
pub mod judge;
pub mod life;
pub mod link;
pub mod reactor;
pub mod run;
mod scenes;
pub mod script;
pub mod tap;
pub mod world;
