//! The production core in a simulated world.
//!
//! Not a model of the system: the very same `node::Shard`, `cache::Engine` and recovery that serve hosts
//! run here around simulated devices, with virtual time and all chance from one seed, and are judged
//! at every step and after every crash.
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | a shard with its devices, hosts, clock and checkers |
//! | [`device`], [`medium`] | simulated devices and what is on them; faults; crashes |
//! | [`oracle`], [`history`] | what each sector may hold; what hosts asked and got |
//! | [`images`], [`bounded`] | every moment of a history as the moment of a crash |
//! | [`workload`], [`script`], `scenes`, [`run`] | seeded runs with faults |
//! | [`node`] | a whole node: shards, hosts, NVMe/TCP bytes |
//! | [`ordered`] | write-back-ordered with the cache lost |
//! | [`minimise`] | shortens a failing history |
//! | [`plants`] | rules removed on purpose, and whether that is noticed |
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a checker's own faults end it; it judges others and serves nobody"
)]

pub mod boot;
pub mod bounded;
pub mod buffer;
pub mod config;
pub mod device;
pub mod history;
pub mod images;
pub mod lies;
pub mod medium;
pub mod minimise;
pub mod node;
pub mod oracle;
pub mod ordered;
pub mod plants;
pub mod rng;
pub mod run;
mod scenes;
pub mod script;
pub mod suite;
pub mod workload;
pub mod world;
