//! Recognises sequential streams, whose blocks are not worth a place in the cache.

/// Streams watched for each volume.
const STREAMS: usize = 16;
/// A stream goes on where its next I/O begins at most this many blocks beyond its end: readahead
/// issues requests slightly out of order.
const WINDOW: u64 = 64;

/// The places of [`Sequential`], from the highest digit on in the order of their last use.
const UNUSED: u64 = 0x0123_4567_89ab_cdef;

/// Where no stream is: far from every block number, which have at most 52 bits.
const NOWHERE: u64 = 1 << 63;

/// Watches one volume's reads or writes. Fixed size, no allocation.
pub struct Sequential {
    /// Of each stream the block after the furthest seen; [`NOWHERE`] where there is none.
    next: [u64; STREAMS],
    /// The low half of the same: random I/O, which belongs to no stream, is told from it alone.
    low: [u32; STREAMS],
    /// Blocks seen in sequence.
    run: [u64; STREAMS],
    /// The streams by their last use, four bits each, the newest lowest.
    order: u64,
    cutoff: u64,
}

impl Sequential {
    /// A stream counts as sequential from `cutoff` blocks on; 0 means never.
    #[must_use]
    pub const fn new(cutoff: u64) -> Self {
        let (next, low) = ([NOWHERE; STREAMS], [1 << 31; STREAMS]);
        Self { next, low, run: [0; STREAMS], order: UNUSED, cutoff }
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
        let end = first.saturating_add(blocks);
        let at = match self.find(first) {
            Some(at) => {
                self.touch(at);
                at
            }
            None => {
                // The one whose last use is the longest ago makes room, and is the newest then.
                self.order = self.order.rotate_left(4);
                let at = (self.order & 0xf) as usize;
                (self.next[at], self.run[at]) = (first, 0);
                at
            }
        };
        // Only new ground counts, so that hammering one place is not a stream; what was skipped is
        // taken back if it comes late, by not counting it twice.
        self.run[at] = self.run[at].saturating_add(end.saturating_sub(self.next[at].max(first)));
        self.next[at] = self.next[at].max(end);
        self.low[at] = low(self.next[at]);
        self.run[at] >= self.cutoff
    }

    /// The stream that goes on at `first`.
    fn find(&self, first: u64) -> Option<usize> {
        let from = low(first.wrapping_add(WINDOW));
        // Without a branch, so that the compiler compares several at once.
        let near = |any, next: &u32| any | u32::from(from.wrapping_sub(*next) <= low(2 * WINDOW));
        if self.low.iter().fold(0, near) == 0 {
            return None;
        }
        let goes_on = |next: &u64| first.wrapping_add(WINDOW).wrapping_sub(*next) <= 2 * WINDOW;
        self.next.iter().position(goes_on)
    }

    /// Makes a stream the newest.
    fn touch(&mut self, at: usize) {
        let place = (0..STREAMS).find(|place| self.order >> (4 * place) & 0xf == at as u64);
        let newer = (1 << (4 * place.unwrap_or(0))) - 1;
        let moved = (self.order & newer) << 4 | at as u64;
        self.order = self.order & !(newer << 4 | 0xf) | moved;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
const fn low(block: u64) -> u32 {
    block as u32
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

    /// What was here first: one list, searched from its begin.
    #[derive(Default)]
    struct Plain {
        streams: Vec<(u64, u64, u64)>,
        clock: u64,
    }

    impl Plain {
        fn observe(&mut self, first: u64, blocks: u64, cutoff: u64) -> bool {
            self.clock += 1;
            let near = |next: u64| first <= next + WINDOW && first + WINDOW >= next;
            let at = self.streams.iter().position(|(next, ..)| near(*next)).unwrap_or_else(|| {
                if self.streams.len() < STREAMS {
                    self.streams.push((first, 0, 0));
                    return self.streams.len() - 1;
                }
                let oldest = (0..STREAMS).min_by_key(|at| self.streams[*at].2).unwrap();
                self.streams[oldest] = (first, 0, 0);
                oldest
            });
            let (next, run, used) = &mut self.streams[at];
            *run += (first + blocks).saturating_sub(first.max(*next));
            (*next, *used) = ((first + blocks).max(*next), self.clock);
            *run >= cutoff
        }
    }

    #[test]
    fn it_says_what_a_plain_list_says() {
        for seed in 1..=20u64 {
            let (mut watch, mut plain) = (Sequential::new(40), Plain::default());
            let (mut random, mut said) = (seed, 0);
            let mut ends = [0u64; 24];
            for step in 0..20_000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
                let pick = usize::try_from(random >> 40).unwrap() % ends.len();
                // Some go on, some jump, some to a place whose low half is that of another.
                let first = match random >> 33 & 7 {
                    0 => random >> 50,
                    1 => ends[(pick + 1) % ends.len()] + (1 << 32),
                    2 => ends[pick] + (random >> 36 & 0x7f),
                    _ => ends[pick],
                };
                let blocks = 1 + (random >> 60);
                ends[pick] = first + blocks;
                let expected = plain.observe(first, blocks, 40);
                said += u32::from(expected);
                assert_eq!(watch.observe(first, blocks), expected, "seed {seed}, step {step}");
            }
            assert!(said > 100, "seed {seed}: {said}");
        }
    }
}
