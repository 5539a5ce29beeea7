//! Monotonic time: read once per loop, shared with whoever needs it on the reactor.

use core::cell::Cell;
use forebay_io::Instant;
use std::rc::Rc;

/// The machine's monotonic clock (`CLOCK_MONOTONIC`), the same on all threads of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock;

impl MonotonicClock {
    /// The time now.
    #[must_use]
    pub fn now(self) -> Instant {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid place for the answer; the call cannot fail for this clock.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        to_instant(time)
    }
}

/// Seconds and nanoseconds as an instant; a negative time, which no clock here gives, is zero.
pub(crate) fn to_instant(time: libc::timespec) -> Instant {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant(seconds * 1_000_000_000 + nanos)
}

/// The time at which the current loop of a reactor began. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct LoopTime(Rc<Cell<Instant>>);

impl LoopTime {
    /// A loop time that starts at `now`; reactors make their own, tests and tools this one.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Rc::new(Cell::new(now)))
    }

    /// When the current loop began.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.get()
    }

    /// Begins a loop at `now`.
    pub fn set(&self, now: Instant) {
        self.0.set(now);
    }
}
