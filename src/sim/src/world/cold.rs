//! Starts whose footers cannot be read for a while: what was there before stays out of the index, and
//! comes back at the start after that.

use super::{Ask, World};
use crate::device::Faults;
use forebay_cache::engine::CacheMode;
use forebay_io::{DeviceError, Instant, RequestOp};

/// Time for a switch, or for fills to be placed, in nanoseconds.
const WHILE: u64 = 60_000_000;
/// Rounds after the start at which all is back.
const ROUNDS: u64 = 12;

impl World {
    /// Writes around copies that the index does not have, and around those of which it has the second only.
    pub fn cold(&mut self, volume: usize) {
        self.quiesce();
        let mode = self.modes[volume];
        let blocks = self.config.volumes[volume].size / 4096;
        let hot = blocks.min(24);
        self.turn(volume, CacheMode::WriteAround);
        self.touch(volume, RequestOp::Read, 0..blocks, 1);
        self.start_cold();
        // Some are written around, the others are read: copies for the second time.
        self.touch(volume, RequestOp::Write, 0..hot / 3, 2);
        self.touch(volume, RequestOp::Read, hot / 3..blocks, 1);
        for _ in 0..ROUNDS {
            self.crash_and_look();
            // What was sealed first is freed.
            self.turn(volume, CacheMode::WriteBack);
            let many = 1 + self.rng.below(4);
            self.touch(volume, RequestOp::Write, hot..blocks, many);
            self.turn(volume, CacheMode::WriteAround);
            self.touch(volume, RequestOp::Write, 0..hot, 8);
        }
        self.crash_and_look();
        self.turn(volume, mode);
    }

    fn going(&self) -> bool {
        self.violation.is_none() && !self.over && !self.cache_failed
    }

    fn crash_and_look(&mut self) {
        self.quiesce();
        if self.going() {
            self.crash(false);
        }
    }

    /// Dies, and finds no footer at its start.
    fn start_cold(&mut self) {
        self.quiesce();
        if !self.going() {
            return;
        }
        self.cold = true;
        self.die(false);
        self.start();
        self.cold = false;
        for _ in 0..10_000 {
            if !self.going() || self.engine_stats().warming == 0 {
                break;
            }
            self.step();
        }
        self.cache.faults = Faults::default();
    }

    /// No read of the cache device ends well from here on.
    pub(super) fn refuse_reads(&mut self) {
        self.cache.faults.read = 1;
        (self.cache.faults.budget, self.cache.faults.error) = (u64::MAX, Some(DeviceError::Io(5)));
    }

    fn engine_stats(&mut self) -> forebay_cache::engine::EngineStats {
        let now = Instant(self.now);
        self.engine().stats(now)
    }

    /// Switches a clean volume and waits a while.
    fn turn(&mut self, volume: usize, mode: CacheMode) {
        self.quiesce();
        if !self.going() {
            return;
        }
        self.drain_and_wait(volume);
        self.set_mode(volume, mode);
        self.wait();
    }

    fn wait(&mut self) {
        let end = self.now + WHILE;
        while self.now < end && self.going() {
            self.step();
        }
    }

    /// Asks for one block in `one_in` of a range, or all, in an order that is not that of their places.
    fn touch(&mut self, volume: usize, op: RequestOp, range: std::ops::Range<u64>, one_in: u64) {
        for first in 0..2 {
            for block in range.clone().skip(first).step_by(2) {
                if !self.going() {
                    return;
                }
                if self.rng.one_in(one_in) {
                    let (offset, len) = (block * 4096, 4096);
                    self.ask_and_wait(Ask { volume, op, offset, len, fua: false, spoil: false });
                }
            }
        }
        self.wait();
    }
}
