//! The shard: routes requests between NVMe-oF and the cache; the acknowledgement rule.
//!
//! Call order in one loop of the shell: [`shard::Shard::handle_bytes`] for each socket,
//! [`shard::Shard::handle_device`] for each completion, [`shard::Shard::handle_message`],
//! [`shard::Shard::handle_timeout`]; then [`shard::Shard::end_of_poll`], [`shard::Shard::settle`],
//! and the `poll_*` calls until each has nothing more.
#![forbid(unsafe_code)]

pub mod ack;
pub mod route;
pub mod shard;

pub use route::{Message, Route};
pub use shard::{Shard, ShardEvent};
