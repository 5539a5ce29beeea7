//! When operations of an open loop are due: at a rate of their own, whatever the device does.

use crate::random::Random;
use forebay_io::{Duration, Instant};

/// A rate of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Operations a second of all jobs together.
    pub rate: u32,
    /// How they are spread in time.
    pub arrivals: Arrivals,
}

/// How operations of an open loop are spread in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// At equal distances.
    #[default]
    Constant,
    /// At random, each without regard to the others (a Poisson process).
    Poisson,
}

impl Pace {
    /// At equal distances.
    #[must_use]
    pub const fn constant(rate: u32) -> Self {
        Self { rate, arrivals: Arrivals::Constant }
    }
}

impl Arrivals {
    /// The name, as on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// The moments at which one job's operations are due, in order.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    begin: Instant,
    /// Seconds from `begin` to the next one.
    offset: f64,
    /// Mean seconds between two.
    gap: f64,
    /// Draws the gaps of a Poisson process; its own, so that positions do not depend on the pace.
    random: Option<Random>,
}

impl Schedule {
    /// Of job number `job` of `jobs`, which share the rate.
    pub(crate) fn new(pace: Pace, begin: Instant, (job, jobs): (u16, u16), seed: u64) -> Self {
        let gap = f64::from(jobs) / f64::from(pace.rate);
        match pace.arrivals {
            // Jobs that begin at one moment would come in bursts.
            Arrivals::Constant => {
                let offset = f64::from(job) / f64::from(pace.rate);
                Self { begin, offset, gap, random: None }
            }
            Arrivals::Poisson => {
                let random = Random::new(!seed);
                let mut schedule = Self { begin, offset: 0.0, gap, random: Some(random) };
                schedule.advance();
                schedule
            }
        }
    }

    /// When the next operation is due.
    pub(crate) fn due(&self) -> Instant {
        self.begin + Duration::from_secs_f64(self.offset)
    }

    /// The one that was due has been taken.
    pub(crate) fn advance(&mut self) {
        self.offset += match &mut self.random {
            None => self.gap,
            // The inverse of the exponential distribution; the argument lies in (0, 1].
            Some(random) => -(1.0 - random.unit()).ln() * self.gap,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(pace: Pace, seed: u64, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(pace, Instant(1_000), (0, 1), seed);
        let mut last = Instant(1_000);
        (0..count)
            .map(|_| {
                let due = schedule.due();
                schedule.advance();
                let gap = due.0 - last.0;
                last = due;
                gap
            })
            .collect()
    }

    #[test]
    fn constant_arrivals_are_at_equal_distances_and_jobs_interleave() {
        let gaps = gaps(Pace::constant(1000), 1, 50_000);
        assert_eq!(gaps[0], 0, "the first is due at once");
        assert!(gaps[1..].iter().all(|gap| (999_999..=1_000_001).contains(gap)));
        assert_eq!(gaps.iter().sum::<u64>().div_ceil(1_000_000), 49_999, "they do not drift");
        let mut second = Schedule::new(Pace::constant(1000), Instant(0), (1, 4), 1);
        assert_eq!(second.due(), Instant(1_000_000));
        second.advance();
        assert_eq!(second.due(), Instant(5_000_000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_the_process() {
        let pace = Pace { rate: 1000, arrivals: Arrivals::Poisson };
        let all = gaps(pace, 5, 100_000);
        assert_eq!(all, gaps(pace, 5, 100_000), "the same seed, the same moments");
        assert_ne!(all[..100], gaps(pace, 6, 100)[..]);
        let mean = all.iter().sum::<u64>() as f64 / all.len() as f64;
        assert!((0.98e6..1.02e6).contains(&mean), "{mean}");
        // Of exponential gaps e^-1 are longer than the mean, e^-3 than three of it.
        for (times, share) in [(1, 0.3679), (3, 0.0498)] {
            let longer = all.iter().filter(|gap| **gap > times * 1_000_000).count();
            let off = longer as f64 / all.len() as f64 / share;
            assert!((0.95..1.05).contains(&off), "{times}: {longer}");
        }
    }
}
