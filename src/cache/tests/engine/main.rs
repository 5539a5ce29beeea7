//! The engine against simulated devices.
//!
//! | module | holds |
//! |---|---|
//! | `counters` | what is counted of hosts' blocks |
//! | `hard_cases` | the hard cases of the design, each by name |
//! | `promises` | promises of docs/CONSISTENCY.md that no other test shows by itself |
//! | `random` | random runs against a model, crashes |
//! | `scrub` | self-healing and scrub |
//! | `shares` | minimums, maximums and pins of volumes |
//! | `staged` | starts whose clean blocks come back while the engine serves |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::manual_is_multiple_of,
    reason = "a test's helpers fail by panicking"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod counters;
mod hard_cases;
mod promises;
mod random;
mod scrub;
mod shares;
mod staged;
