//! The shard: routes requests between NVMe-oF and the cache; the acknowledgement rule.
#![forbid(unsafe_code)]

pub mod ack;
