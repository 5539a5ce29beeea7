//! Devices by URI, for the commands that use one without a node.

use forebay_bench::{Counters, JobResult, Workload};
use forebay_control::error::{ControlError, ErrorKind, Result};
use serde::Serialize;
use std::fmt;

/// What `format` has made.
#[derive(Debug, Serialize)]
pub(crate) struct Formatted {
    /// The device.
    pub(crate) device: String,
    /// Its new identifier.
    pub(crate) uuid: String,
    /// Bytes for data.
    pub(crate) bytes: u64,
    /// Logical shards.
    pub(crate) shards: u32,
}

impl fmt::Display for Formatted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, uuid, bytes, shards } = self;
        write!(
            f,
            "{device} is cache device {uuid}: {} in {shards} shards",
            crate::output::bytes(*bytes)
        )
    }
}

/// Makes a cache device; foreign data is overwritten only with `force`.
pub(crate) fn format(uri: &str, force: bool) -> Result<Formatted> {
    let _ = force;
    Err(no_driver(uri))
}

/// Runs a load on a device, each job on one of its own.
pub(crate) fn measure(uri: &str, workload: &Workload, counters: &Counters) -> Result<JobResult> {
    let _ = (workload, counters);
    Err(no_driver(uri))
}

fn no_driver(uri: &str) -> ControlError {
    ControlError::new(ErrorKind::Unsupported, format!("{uri} cannot be opened by this build"))
}
