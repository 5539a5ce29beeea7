//! How deep inputs get: what no input may do is only shown where inputs do something.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count of all inputs of this process.
pub struct Count {
    /// What is counted.
    pub name: &'static str,
    /// The target that it belongs to.
    pub target: &'static str,
    count: AtomicU64,
}

impl Count {
    const fn new(target: &'static str, name: &'static str) -> Self {
        Self { name, target, count: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, n: usize) {
        self.count.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// How often so far.
    pub fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

pub(crate) static FRAMES: Count = Count::new("wire", "right PDU headers");
pub(crate) static REQUESTS: Count = Count::new("target", "requests to volumes");
pub(crate) static LOST: Count = Count::new("target", "connections ended by the target");
pub(crate) static READY: Count = Count::new("initiator", "namespaces connected");
pub(crate) static DONE: Count = Count::new("initiator", "operations done well");
pub(crate) static LOGS: Count = Count::new("discovery", "logs read");
pub(crate) static SUPERS: Count = Count::new("superblock", "superblocks and headers accepted");
pub(crate) static PARTS: Count = Count::new("segment", "headers, footers and marks accepted");
pub(crate) static JOURNALS: Count = Count::new("journal", "ordered journals opened");
pub(crate) static BATCHES: Count = Count::new("journal", "complete batches read back");
pub(crate) static RECOVERED: Count = Count::new("recovery", "shards recovered");
pub(crate) static REFUSED: Count = Count::new("recovery", "recoveries refused");
pub(crate) static RESULTS: Count = Count::new("rpc", "results");
pub(crate) static ERRORS: Count = Count::new("rpc", "errors");
pub(crate) static CONFIGS: Count = Count::new("config", "configurations accepted");
pub(crate) static URIS: Count = Count::new("uri", "URIs accepted");

/// All of them; a run in which one stays zero shows nothing.
pub static ALL: [&Count; 16] = [
    &FRAMES, &REQUESTS, &LOST, &READY, &DONE, &LOGS, &SUPERS, &PARTS, &JOURNALS, &BATCHES,
    &RECOVERED, &REFUSED, &RESULTS, &ERRORS, &CONFIGS, &URIS,
];
