//! Near the dirty bound host writes slow down smoothly.

use super::slab::Handle;
use super::types::BLOCK;
use super::{Cx, Engine};
use forebay_io::{Buf, BufPool, Duration, Instant};

/// Delays begin at this fill of the dirty bound, in thousandths.
pub(super) const FROM: u64 = 750;
/// How soon a write that found no room at all tries again at the latest.
pub(super) const RETRY: Duration = Duration::from_millis(1);

/// The delay of one write at a fill level in thousandths of the dirty bound: zero up to [`FROM`],
/// then growing with the square up to `max`.
pub(super) fn delay(level: u64, max: Duration) -> Duration {
    let over = level.saturating_sub(FROM).min(1000 - FROM);
    let (square, whole) = (over * over, (1000 - FROM) * (1000 - FROM));
    let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(
        u64::try_from(u128::from(nanos) * u128::from(square) / u128::from(whole)).unwrap_or(0),
    )
}

impl<B: Buf> Engine<B> {
    /// Dirty bytes that are allowed: what was configured, at most 70 % of the data slots, and what
    /// volumes keep leaves of them, so that compaction always gains.
    pub(super) fn dirty_limit(&self) -> u64 {
        let cap = self.segs.data_slots() * BLOCK / 10 * 7;
        let cap = cap.min(self.dirty_room().saturating_mul(BLOCK));
        self.limits.dirty_max.min(cap).max(64 * BLOCK)
    }

    /// How full of dirty data the cache is, in thousandths of the bound. Versions that were replaced
    /// and wait for their batch take room like any other.
    pub(super) fn dirty_level(&self) -> u64 {
        (self.dirty + self.kept).saturating_mul(BLOCK * 1000) / self.dirty_limit()
    }

    /// Whether a write has to wait before it enters the log.
    pub(super) fn throttled<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) -> bool {
        if self.too_many_ranges(h) {
            self.destage.urgent = true;
            return true;
        }
        let level = self.dirty_level().max(self.orders_level()).max(self.journal_level(h));
        let Some(req) = self.reqs.get_mut(h) else { return false };
        if level < FROM || req.placed > 0 {
            return false;
        }
        if level >= 1000 {
            self.destage.urgent = true;
            req.release = cx.now + RETRY;
            self.stats.throttled += 1;
            return true;
        }
        if req.delayed {
            return false;
        }
        req.delayed = true;
        req.release = cx.now + delay(level, self.limits.throttle_max);
        self.stats.throttled += u64::from(req.release > cx.now);
        req.release > cx.now
    }

    /// Puts a request aside until the next poll, or until its release.
    pub(super) fn stall(&mut self, h: Handle, _now: Instant) {
        if let Some(req) = self.reqs.get_mut(h) {
            req.stage = super::request::Stage::Stalled;
            self.stalled.push_back(h);
        }
    }

    /// Takes up stalled requests whose time has come.
    pub(super) fn stalled_go<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        for _ in 0..self.stalled.len() {
            let Some(h) = self.stalled.pop_front() else { return };
            match self.reqs.get(h).map(|req| req.release) {
                Some(release) if release > cx.now => self.stalled.push_back(h),
                Some(_) => self.resume(cx, h),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_smoothly_to_the_most() {
        let max = Duration::from_millis(100);
        assert_eq!(delay(0, max), Duration::ZERO);
        assert_eq!(delay(FROM, max), Duration::ZERO);
        assert_eq!(delay(1000, max), max);
        assert_eq!(delay(5000, max), max);
        let mut last = Duration::ZERO;
        for level in FROM..=1000 {
            let now = delay(level, max);
            assert!(now >= last && now - last <= max / 100, "step at {level}");
            last = now;
        }
    }
}
