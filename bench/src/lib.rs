//! Load generator over any [`forebay_io::Device`], alone or over the project's own initiator.
//!
//! A job is a closed loop: it keeps a number of operations in flight on devices of its own, and
//! starts a new one for each that ends. With a [`pace`] it is an open one: operations are due at a
//! rate of their own, and latencies count from that moment, so that a stall of the device shows in
//! all operations that it held up and not only in those that were in flight. With `verify` every block carries a stamp of where and
//! when it was written, and every read is held against what was acknowledged.
//!
//! | module | holds |
//! |---|---|
//! | [`workload`] | what to do: mix, sizes, depth, range, distribution, limits |
//! | [`random`] | deterministic random numbers; uniform and Zipf positions |
//! | [`stamp`] | the content of verified blocks, and what may be read back |
//! | [`pace`] | when operations of an open loop are due |
//! | [`fan`] | several connections as one device |
//! | [`job`] | the loop over one device |
//! | [`run`] | several jobs on threads, merged |
//! | [`report`] | the result as JSON and as a table |
#![forbid(unsafe_code)]

pub mod fan;
pub mod job;
pub mod pace;
pub mod random;
pub mod report;
pub mod run;
pub mod stamp;
pub mod workload;

pub use fan::Fan;
pub use job::{Job, JobError, JobResult};
pub use pace::{Arrivals, Pace};
pub use report::{Report, Side};
pub use run::{Counters, measure, run_jobs};
pub use workload::{Distribution, HotCold, Limit, Rw, Workload, WorkloadError};
