//! What a reactor did with its time.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

/// Written by the reactor, read by anyone; single values are exact, together they may be one loop apart.
#[derive(Debug, Default)]
pub struct ReactorStats {
    pub(crate) loops: Counter,
    pub(crate) messages: Counter,
    pub(crate) busy: Counter,
    pub(crate) spinning: Counter,
    pub(crate) asleep: Counter,
    pub(crate) sleeps: Counter,
}

/// A counter with one writer, so that adding needs no read-modify-write.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The values of [`ReactorStats`] at one time, all since the reactor began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Loops.
    pub loops: u64,
    /// Messages received.
    pub messages: u64,
    /// Time in loops that found work.
    pub busy: Duration,
    /// Time in loops that found none.
    pub spinning: Duration,
    /// Time asleep in the kernel.
    pub asleep: Duration,
    /// How often it went to sleep.
    pub sleeps: u64,
}

impl ReactorStats {
    /// The values now.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            loops: self.loops.get(),
            messages: self.messages.get(),
            busy: Duration::from_nanos(self.busy.get()),
            spinning: Duration::from_nanos(self.spinning.get()),
            asleep: Duration::from_nanos(self.asleep.get()),
            sleeps: self.sleeps.get(),
        }
    }
}

impl StatsSnapshot {
    /// The part of the time since `earlier` in which the reactor had work, 0 to 1.
    #[must_use]
    pub fn busy_share(&self, earlier: &Self) -> f64 {
        let busy = self.busy.saturating_sub(earlier.busy).as_secs_f64();
        let rest = (self.spinning + self.asleep).saturating_sub(earlier.spinning + earlier.asleep);
        let all = busy + rest.as_secs_f64();
        if all > 0.0 { busy / all } else { 0.0 }
    }
}
