//! The log-structured cache engine, a state machine without I/O.
#![forbid(unsafe_code)]

pub mod ghost;
pub mod hazard;
pub mod index;
pub mod tier;
pub mod fold;
pub mod policy;
pub mod ranges;
pub mod sequential;
