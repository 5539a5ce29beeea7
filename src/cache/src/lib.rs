//! The log-structured cache engine, a state machine without I/O.
#![forbid(unsafe_code)]
