//! The log-structured cache engine, a state machine without I/O.
#![forbid(unsafe_code)]

pub mod engine;
pub mod fold;
pub mod format;
pub mod ghost;
pub mod hazard;
pub mod index;
pub mod order_journal;
pub mod plant;
pub mod policy;
pub mod ranges;
pub mod recovery;
pub mod sequential;
pub mod tier;
