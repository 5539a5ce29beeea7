//! Devices by URI, for the commands that use one without a node.

use crate::serve::SharedPool;
use crate::serve::start::{format_device, read_header, reserve};
use forebay_bench::{Counters, JobError, JobResult, Workload};
use forebay_cache::format::device::OpenError;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_driver::DriverContext;
use forebay_reactor::{LoopTime, MonotonicClock, Pool, PoolConfig, RegionTable, WaitSet};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// Memory for buffers while formatting: superblocks are written a few at a time.
const POOL_BYTES: usize = 16 << 20;

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
    /// What was formatted, where the device was given inside wrappers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inside: Option<String>,
}

impl fmt::Display for Formatted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, uuid, bytes, shards, inside } = self;
        write!(
            f,
            "{device} is cache device {uuid}: {} in {shards} shards",
            crate::output::bytes(*bytes)
        )?;
        match inside {
            Some(inside) => {
                write!(f, "\nformatted was {inside}: a wrapper leaves no trace on a device")
            }
            None => Ok(()),
        }
    }
}

/// Makes a cache device; anything but a blank device is overwritten only with `force`.
pub(crate) fn format(uri: &str, force: bool) -> Result<Formatted> {
    let failed = |error: &dyn fmt::Display| {
        ControlError::failed(format!("{uri} cannot be opened: {error}")).field("DEVICE")
    };
    let table = Arc::new(RegionTable::new());
    let pool = SharedPool::new(Pool::new(PoolConfig::bounded(POOL_BYTES), Arc::clone(&table)));
    let wait = WaitSet::new().map_err(|error| failed(&error))?;
    let context = DriverContext::new(LoopTime::new(MonotonicClock.now()), wait, table);
    // Wrappers change when and whether operations end, not what is on the device.
    let mut device =
        forebay_driver::open(unwrapped(uri), &context).map_err(|error| failed(&error))?;
    let there = match read_header(&mut device, &pool) {
        Err(OpenError::Blank) => None,
        Err(OpenError::Device(error)) => return Err(failed(&error)),
        Ok(opened) => Some(format!(
            "it is cache {}, which may hold data that its backing devices lack",
            opened.header.cache
        )),
        Err(OpenError::Foreign(what)) => Some(format!("it holds {what}")),
        Err(OpenError::Unknown) => Some("it holds data of an unknown kind".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let (Some(there), false) = (there, force) {
        let name = device_name(uri);
        return Err(ControlError::new(ErrorKind::Unsafe, format!("{uri} is not blank: {there}"))
            .remedy(format!(
                "if it is the right device and nothing on it is needed: \
                 forebay format {uri} --force {name}"
            )));
    }
    reserve(uri, &device)?;
    format_device(&mut device, &pool)?;
    let header = read_header(&mut device, &pool).map_err(|error| failed(&error))?.header;
    Ok(Formatted {
        device: uri.to_owned(),
        uuid: header.cache.to_string(),
        bytes: u64::from(header.segments) * header.geometry.segment_bytes(),
        shards: u32::from(header.shards),
        inside: (unwrapped(uri) != uri).then(|| unwrapped(uri).to_owned()),
    })
}

/// The device inside `slow:` and `fault:`.
fn unwrapped(uri: &str) -> &str {
    let mut rest = uri;
    while let Some(tail) = rest.strip_prefix("slow:").or_else(|| rest.strip_prefix("fault:")) {
        rest = tail;
    }
    rest
}

/// What a person calls the device: the last part of its path or NQN, without parameters.
pub(crate) fn device_name(uri: &str) -> &str {
    let path = uri.split('?').next().unwrap_or(uri);
    path.rsplit(['/', ':']).next().unwrap_or(path)
}

/// Runs a load on a device, each job on one of its own.
pub(crate) fn measure(uri: &str, workload: &Workload, counters: &Counters) -> Result<JobResult> {
    forebay_bench::measure(uri, workload, counters).map_err(|error| {
        let kind = match &error {
            JobError::Workload(_) => ErrorKind::Invalid,
            _ => ErrorKind::Failed,
        };
        ControlError::new(kind, format!("{uri}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::{device_name, unwrapped};

    #[test]
    fn a_device_is_named_by_the_end_of_its_path() {
        assert_eq!(device_name("uring:/dev/nvme1n1"), "nvme1n1");
        assert_eq!(device_name("uring:/var/cache.img?size=8G"), "cache.img");
        assert_eq!(device_name("fault:uring:/dev/disk/by-id/x"), "x");
        assert_eq!(device_name("nvmf+tcp://127.0.0.1:4420/nqn.2026-11.io.x:v?nsid=1"), "v");
        assert_eq!(unwrapped("slow:fault:uring:/dev/x"), "uring:/dev/x");
    }
}
