//! A log: its open segment, its open batch, and its batches on the way to the device, which count
//! in their order only.

use crate::format::batch::BatchBuilder;
use forebay_io::Buf;
use std::collections::VecDeque;

/// Bytes of one batch at most, its header included.
pub(super) const BATCH_BYTES: usize = 512 << 10;
/// Batches of one log on the way to the device at most; what comes meanwhile is gathered.
pub(super) const IN_FLIGHT_MAX: usize = 2;
/// A second batch is sent while one is on the way only if it has gathered more than this (header
/// included): small ones would cost a header each.
pub(super) const SECOND_FROM: usize = 16 * super::types::BLOCK_LEN;
/// Buffers kept to be used again.
const SPARE_MAX: usize = 4;

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    No,
    Yes,
    Landed,
}

/// One batch.
#[derive(Debug)]
pub(super) struct Batch<B> {
    pub(super) builder: BatchBuilder,
    pub(super) buf: Option<B>,
    pub(super) seg: u32,
    /// Its records in the segment's log.
    pub(super) entries: core::ops::Range<u32>,
    /// Counts the batches of this stream.
    pub(super) ordinal: u64,
    /// Number of the format, taken when it was closed.
    pub(super) number: u64,
    pub(super) sent: Sent,
    pub(super) tries: u8,
    /// First byte on the device.
    pub(super) at: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Moved blocks: the slot each was in. Fills: `u32::MAX` once a newer change made it stale.
    pub(super) from: Vec<u32>,
}

/// One of the three logs.
#[derive(Debug)]
pub(super) struct Stream<B> {
    pub(super) seg: Option<u32>,
    pub(super) open: Option<Batch<B>>,
    /// Closed batches that are not durable, in order.
    pub(super) queue: VecDeque<Batch<B>>,
    pub(super) in_flight: usize,
    pub(super) next_ordinal: u64,
    /// All batches with a lower ordinal are durable.
    pub(super) durable: u64,
    spare: Vec<B>,
    spare_lists: Vec<Vec<u32>>,
}

impl<B: Buf> Stream<B> {
    pub(super) fn new() -> Self {
        Self {
            seg: None,
            open: None,
            queue: VecDeque::new(),
            in_flight: 0,
            next_ordinal: 0,
            durable: 0,
            spare: Vec::new(),
            spare_lists: Vec::new(),
        }
    }

    pub(super) fn spare(&mut self) -> Option<B> {
        self.spare.pop()
    }

    pub(super) fn list(&mut self) -> Vec<u32> {
        self.spare_lists.pop().unwrap_or_default()
    }

    pub(super) fn keep(&mut self, buf: Option<B>, mut list: Vec<u32>) {
        if let Some(mut buf) = buf
            && self.spare.len() < SPARE_MAX
            && buf.as_mut_slice().is_some()
        {
            self.spare.push(buf);
        }
        // A batch that could not be opened gives back a list without memory, and may do so without end.
        if list.capacity() > 0 && self.spare_lists.len() < SPARE_MAX {
            list.clear();
            self.spare_lists.push(list);
        }
    }

    /// Nothing is open and nothing is on the way.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none() && self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::HeapBuf;

    #[test]
    fn what_is_kept_is_bounded() {
        let mut stream = Stream::<HeapBuf>::new();
        for _ in 0..1000 {
            stream.keep(None, Vec::new());
        }
        assert_eq!(stream.spare_lists.len(), 0, "a list without memory is not worth keeping");
        for _ in 0..1000 {
            stream.keep(None, Vec::with_capacity(8));
        }
        assert_eq!(stream.spare_lists.len(), SPARE_MAX);
        assert!(stream.list().capacity() > 0);
    }
}
