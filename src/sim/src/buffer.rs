//! Buffers whose memory is counted, and a pool that may run dry.

use forebay_io::{Buf, BufPool};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Meter {
    live: AtomicU64,
    most: AtomicU64,
    asked: AtomicU64,
    refused: AtomicU64,
    dry: AtomicU64,
}

#[derive(Debug)]
struct Memory {
    bytes: Box<[u8]>,
    meter: Option<Arc<Meter>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.live.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
        }
    }
}

/// A buffer in ordinary memory.
#[derive(Clone, Debug)]
pub struct SimBuf(Arc<Memory>);

impl SimBuf {
    /// A buffer of the host's, which no pool counts.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Arc::new(Memory { bytes: bytes.into(), meter: None }))
    }
}

impl Buf for SimBuf {
    fn as_slice(&self) -> &[u8] {
        &self.0.bytes
    }

    fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.0).map(|memory| &mut memory.bytes[..])
    }
}

/// A pool of counted buffers. Fresh ones hold a pattern, so that a reader of memory that was never
/// written is noticed.
#[derive(Clone, Debug, Default)]
pub struct SimPool {
    meter: Arc<Meter>,
}

impl SimPool {
    /// Bytes in buffers that are alive, and the most there ever were.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.meter.live.load(Ordering::Relaxed), self.meter.most.load(Ordering::Relaxed))
    }

    /// From now on one request in `n` finds the pool empty; 0 for none.
    pub fn dry(&self, n: u64) {
        self.meter.dry.store(n, Ordering::Relaxed);
    }

    /// Requests that found it empty.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.meter.refused.load(Ordering::Relaxed)
    }
}

impl BufPool for SimPool {
    type Buf = SimBuf;

    fn alloc(&mut self, len: usize) -> Option<SimBuf> {
        let asked = self.meter.asked.fetch_add(1, Ordering::Relaxed);
        let dry = self.meter.dry.load(Ordering::Relaxed);
        // Scattered, and the same for the same run.
        if dry > 0 && (asked.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33).is_multiple_of(dry) {
            self.meter.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let live = self.meter.live.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        self.meter.most.fetch_max(live, Ordering::Relaxed);
        let bytes = vec![0xa5; len].into_boxed_slice();
        Some(SimBuf(Arc::new(Memory { bytes, meter: Some(Arc::clone(&self.meter)) })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_until_the_last_owner_is_gone() {
        let mut pool = SimPool::default();
        let a = pool.alloc(100).unwrap();
        let b = a.clone();
        drop(a);
        assert_eq!(pool.bytes(), (100, 100));
        drop(b);
        assert_eq!(pool.bytes(), (0, 100));
        pool.dry(1);
        assert!(pool.alloc(1).is_none());
    }
}
