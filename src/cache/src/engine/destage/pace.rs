//! How much destage does at once: it follows the backing device while there is room for dirty data,
//! and asks all of the device once hosts would have to wait.

use forebay_io::{Duration, Instant};

/// Backing writes at once: at first, and at most.
const WINDOW_FROM: usize = 4;
const WINDOW_MAX: usize = 32;
/// Sealed segments of one round at most.
const SEGMENTS_MAX: usize = 4;
/// What a round cleans becomes clean at its end, all at once: hosts that wait for room wait for a
/// round, so its writes should not take long. Its flush is left out: a slow one is a reason to write
/// more before it, not less.
const RUN_LONG: Duration = Duration::from_millis(50);
const RUN_SHORT: Duration = Duration::from_millis(20);

/// The pace of destage.
#[derive(Debug)]
pub(super) struct Pace {
    window: usize,
    /// Fastest and average time of a backing write in nanoseconds.
    best: u64,
    average: u64,
    segments: usize,
    began: Instant,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { window: WINDOW_FROM, best: u64::MAX, average: 0, segments: 1, began: Instant(0) }
    }

    /// Backing writes at once. With `pressed` all that there may be: hosts are being slowed down for
    /// want of room, and what is spared the device would be taken from them.
    pub(super) const fn window(&self, pressed: bool) -> usize {
        if pressed { WINDOW_MAX } else { self.window }
    }

    /// Segments that the next round takes.
    pub(super) const fn segments(&self) -> usize {
        self.segments
    }

    pub(super) const fn round_begins(&mut self, now: Instant) {
        self.began = now;
    }

    /// The writes of a round are done.
    pub(super) fn round_ran(&mut self, now: Instant) {
        let took = now.since(self.began);
        if took > RUN_LONG {
            self.segments = 1;
        } else if took < RUN_SHORT {
            self.segments = (self.segments + 1).min(SEGMENTS_MAX);
        }
    }

    /// The window follows the device: wider while it answers about as fast as it ever did,
    /// narrower when it queues.
    pub(super) fn learn(&mut self, took: u64) {
        let took = took.max(1);
        self.best = self.best.saturating_add(self.best / 1024).min(took);
        self.average =
            if self.average == 0 { took } else { self.average - self.average / 8 + took / 8 };
        if self.average < self.best.saturating_mul(2) {
            self.window = (self.window + 1).min(WINDOW_MAX);
        } else if self.average > self.best.saturating_mul(4) {
            self.window = (self.window - 1).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_spares_a_device_that_queues_unless_hosts_wait() {
        let mut pace = Pace::new();
        for _ in 0..100 {
            pace.learn(100_000);
        }
        assert_eq!(pace.window(false), WINDOW_MAX);
        for _ in 0..100 {
            pace.learn(1_000_000);
        }
        assert_eq!(pace.window(false), 1);
        assert_eq!(pace.window(true), WINDOW_MAX);
    }

    #[test]
    fn rounds_that_take_long_are_cut_short() {
        let mut pace = Pace::new();
        let mut round = |millis| {
            pace.round_begins(Instant(5));
            pace.round_ran(Instant(5) + Duration::from_millis(millis));
            pace.segments()
        };
        assert_eq!([round(1), round(1), round(1), round(1)], [2, 3, 4, 4]);
        assert_eq!(round(30), 4);
        assert_eq!([round(51), round(51)], [1, 1]);
    }
}
