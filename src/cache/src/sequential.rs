//! Recognises sequential streams, whose blocks are not worth a place in the cache.

/// Streams watched for each volume.
const STREAMS: usize = 16;
/// A stream goes on where its next I/O begins at most this many blocks beyond its end: readahead
/// issues requests slightly out of order.
const WINDOW: u64 = 64;

#[derive(Clone, Copy, Default)]
struct Stream {
    /// The block after the furthest seen.
    next: u64,
    /// Blocks seen in sequence.
    run: u64,
    used: u64,
}

/// Watches one volume's reads or writes. Fixed size, no allocation.
pub struct Sequential {
    streams: [Stream; STREAMS],
    cutoff: u64,
    clock: u64,
}

impl Sequential {
    /// A stream counts as sequential from `cutoff` blocks on; 0 means never.
    #[must_use]
    pub const fn new(cutoff: u64) -> Self {
        Self { streams: [Stream { next: 0, run: 0, used: 0 }; STREAMS], cutoff, clock: 0 }
    }

    /// Changes the cutoff; the streams seen so far stay known.
    pub const fn set_cutoff(&mut self, cutoff: u64) {
        self.cutoff = cutoff;
    }

    /// Notes an I/O of `blocks` cache blocks from `first` on, and says whether it belongs to a
    /// stream that has reached the cutoff, this I/O included.
    pub fn observe(&mut self, first: u64, blocks: u64) -> bool {
        if self.cutoff == 0 {
            return false;
        }
        self.clock += 1;
        let end = first.saturating_add(blocks);
        let goes_on = |s: &Stream| {
            s.used > 0
                && first <= s.next.saturating_add(WINDOW)
                && first.saturating_add(WINDOW) >= s.next
        };
        let known = self.streams.iter().position(goes_on);
        let oldest = self.streams.iter().enumerate().min_by_key(|(_, s)| s.used);
        let Some(at) = known.or_else(|| oldest.map(|(at, _)| at)) else { return false };
        let stream = &mut self.streams[at];
        if known.is_none() {
            *stream = Stream { next: first, run: 0, used: 0 };
        }
        // Only new ground counts, so that hammering one place is not a stream; what was skipped is
        // taken back if it comes late, by not counting it twice.
        stream.run = stream.run.saturating_add(end.saturating_sub(stream.next.max(first)));
        stream.next = stream.next.max(end);
        stream.used = self.clock;
        stream.run >= self.cutoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_sequential_and_random_io_is_not() {
        let mut watch = Sequential::new(256);
        let mut random = 12345u64;
        for i in 0..1000u64 {
            assert_eq!(watch.observe(1_000_000 + i * 8, 8), i >= 31, "{i}");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            assert!(!watch.observe(1 << 40 | random >> 30, 8));
        }
    }

    #[test]
    fn streams_are_told_apart_and_reordering_is_borne() {
        let mut watch = Sequential::new(128);
        let order = [1u64, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14, 17, 16];
        for (step, at) in order.into_iter().enumerate() {
            for stream in 0..10 {
                let sequential = watch.observe(stream * 100_000 + at * 16, 16);
                assert!(step < 15 || sequential, "stream {stream}, step {step}");
                assert!(step > 6 || !sequential, "stream {stream}, step {step}");
            }
        }
    }

    #[test]
    fn hammering_one_place_is_no_stream_and_zero_turns_it_off() {
        let mut watch = Sequential::new(64);
        assert!((0..1000).all(|_| !watch.observe(77, 8)));
        watch.set_cutoff(0);
        assert!((0..1000).all(|i| !watch.observe(i * 8, 8)));
    }
}
