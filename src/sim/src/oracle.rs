//! What each sector of a volume may hold: the judge of every read, of every image after a crash, and
//! of what the backing devices hold.
//!
//! Each sector that a host writes names its write and its own place, so that mixed, foreign or
//! misplaced data is recognised by itself. For each sector the changes are kept that a read may still
//! see. Times are ticks: every begin and end of a request has one of its own, so that two are never
//! equal. The rules, per sector:
//!
//! * a change is dead for a read if another one began after it ended and ended before the read began;
//! * what a read returned has happened by the end of that read, acknowledged or not: a later read may
//!   not go back behind it, and where acknowledged means durable, neither may a crash;
//! * after a crash what was under way happened or not; what the first reads afterwards find is how it is.

/// Bytes of a sector: the unit in which devices tear.
pub const SECTOR: u64 = 512;
const LEN: usize = 512;
/// Has not ended.
const OPEN: u64 = u64::MAX;

/// Writes the content of one sector of a write.
fn fill(write: u64, place: u64, out: &mut [u8]) {
    let seed = write.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place << 8);
    for (at, word) in out.chunks_mut(8).enumerate() {
        let value = match at {
            0 => write,
            1 => place,
            _ => seed ^ at as u64,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The content of a write: each sector names the write and its own place.
#[must_use]
pub fn content(write: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
    for (place, sector) in (offset / SECTOR..).zip(data.chunks_mut(LEN)) {
        fill(write, place, sector);
    }
    data
}

/// What one sector's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Zeroes.
    Zero,
    /// The sector of this write.
    Write(u64),
    /// Nothing that was ever written here.
    Foreign,
}

/// Recognises a sector's bytes.
#[must_use]
pub fn recognise(place: u64, sector: &[u8]) -> Seen {
    let write = u64::from_le_bytes(sector[..8].try_into().unwrap_or([0; 8]));
    if write == 0 {
        let zero = sector.iter().all(|byte| *byte == 0);
        return if zero { Seen::Zero } else { Seen::Foreign };
    }
    let mut want = [0; LEN];
    fill(write, place, &mut want);
    if sector == want { Seen::Write(write) } else { Seen::Foreign }
}

#[derive(Clone, Copy, Debug)]
struct Change {
    write: u64,
    zero: bool,
    start: u64,
    /// It has happened by then; [`OPEN`] while that is not known.
    end: u64,
    /// What begins after this comes after it in the order; [`OPEN`] where only `end` tells.
    before: u64,
    /// It happens for certain once it is acknowledged (a deallocate may be ignored).
    certain: bool,
    /// A power loss does not undo it.
    durable: bool,
    /// The process that asked for it died and it was not seen since; only a power loss that undoes
    /// what is over it may show it again.
    hidden: bool,
    /// No read that begins after this sees it; [`OPEN`] where that is not known.
    gone: u64,
}

impl Change {
    const fn is(&self, seen: Seen) -> bool {
        match seen {
            Seen::Zero => self.zero,
            Seen::Write(write) => !self.zero && self.write == write,
            Seen::Foreign => false,
        }
    }
}

/// The history of each sector of a volume, cut to what can still be seen.
#[derive(Clone)]
pub struct Oracle {
    sectors: Vec<Vec<Change>>,
    /// Acknowledged is durable: no volatile cache.
    acked_is_durable: bool,
    /// The cache device lied or lost what it had acknowledged: any earlier content may be there, but
    /// nothing else. Up to this write.
    relaxed: bool,
    newest: u64,
}

/// Whether nothing can be seen of `c` by a read that begins at `start`.
fn dead(all: &[Change], c: &Change, start: u64) -> bool {
    let end = c.end.min(c.before);
    let over = |o: &Change| o.certain && !o.hidden && o.start > end && o.end < start;
    c.gone < start || end != OPEN && all.iter().any(|o| over(o) && o.write != c.write)
}

impl Oracle {
    /// A volume of `size` bytes of zeroes.
    #[must_use]
    pub fn new(size: u64, acked_is_durable: bool) -> Self {
        let first = Change {
            write: 0,
            zero: true,
            start: 0,
            end: 0,
            before: OPEN,
            certain: true,
            durable: true,
            hidden: false,
            gone: OPEN,
        };
        let n = usize::try_from(size.div_ceil(SECTOR)).unwrap_or(0);
        Self { sectors: vec![vec![first]; n], acked_is_durable, relaxed: false, newest: 0 }
    }

    /// From now on only foreign, mixed or misplaced data is an error.
    pub fn relax(&mut self) {
        self.relaxed = true;
    }

    /// Whether it is relaxed.
    #[must_use]
    pub const fn is_relaxed(&self) -> bool {
        self.relaxed
    }

    fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
        let at = |bytes: u64| usize::try_from(bytes / SECTOR).unwrap_or(0);
        at(offset)..at(offset + len)
    }

    /// A change begins.
    pub fn started(&mut self, at: (u64, u64), write: u64, zero: bool, certain: bool, tick: u64) {
        self.newest = self.newest.max(write);
        let (start, end, before, gone) = (tick, OPEN, OPEN, OPEN);
        let (durable, hidden) = (false, false);
        let change = Change { write, zero, start, end, before, certain, durable, hidden, gone };
        for sector in &mut self.sectors[Self::range(at.0, at.1)] {
            sector.push(change);
        }
    }

    /// A change was acknowledged. Everything that is under way began at `horizon` or later.
    pub fn ended(&mut self, at: (u64, u64), write: u64, tick: u64, horizon: u64, fua: bool) {
        let durable = fua || self.acked_is_durable;
        for sector in &mut self.sectors[Self::range(at.0, at.1)] {
            for c in sector.iter_mut().filter(|c| c.write == write) {
                c.end = c.end.min(tick);
                c.durable |= durable;
            }
            let lasting: Vec<Change> = sector.iter().filter(|c| c.durable).copied().collect();
            sector.retain(|c| !dead(&lasting, c, horizon));
        }
    }

    /// A change that certainly did not happen.
    pub fn never(&mut self, at: (u64, u64), write: u64) {
        for sector in &mut self.sectors[Self::range(at.0, at.1)] {
            sector.retain(|c| c.write != write);
        }
    }

    /// A change whose answer never came has ended by now, with or without effect: nothing of it
    /// happens later.
    pub fn gone(&mut self, at: (u64, u64), write: u64, tick: u64) {
        for sector in &mut self.sectors[Self::range(at.0, at.1)] {
            for c in sector.iter_mut().filter(|c| c.write == write && c.end == OPEN) {
                (c.end, c.certain) = (tick, false);
            }
        }
    }

    /// A compare-and-write found `want` and wrote at once: what began after the content that it found
    /// had ended is not between the two, and so comes after the write.
    pub fn swapped(&mut self, at: (u64, u64), write: u64, want: &[u8]) {
        for (place, bytes) in Self::range(at.0, at.1).zip(want.chunks(LEN)) {
            let Seen::Write(found) = recognise(place as u64, bytes) else { continue };
            let sector = &mut self.sectors[place];
            let mut same = sector.iter().filter(|c| c.write == found && !c.zero);
            let (Some(end), None) = (same.next().map(|c| c.end), same.next()) else { continue };
            for c in sector.iter_mut().filter(|c| c.write == write) {
                c.before = end;
            }
        }
    }

    /// What a range may hold: of each sector the change that began last.
    #[must_use]
    pub fn guess(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        for (at, out) in Self::range(offset, len).zip(data.chunks_mut(LEN)) {
            let all = self.sectors[at].iter().filter(|c| !c.hidden && c.end != OPEN);
            if let Some(c) = all.max_by_key(|c| c.start).filter(|c| !c.zero) {
                fill(c.write, at as u64, out);
            }
        }
        data
    }

    /// A host's Flush that began at `start` ended.
    pub fn flushed(&mut self, start: u64) {
        for c in self.sectors.iter_mut().flatten() {
            c.durable |= c.end <= start;
        }
    }

    /// Says whether a sector may hold this for a read that begins at `start`.
    fn may(&self, at: usize, seen: Seen, start: u64) -> Result<(), String> {
        if self.relaxed {
            return match seen {
                Seen::Write(write) if write <= self.newest => Ok(()),
                Seen::Zero => Ok(()),
                _ => Err(format!("sector {at} holds {seen:?}, which was never written here")),
            };
        }
        let all = &self.sectors[at];
        if all.iter().any(|c| !c.hidden && c.is(seen) && !dead(all, c, start)) {
            return Ok(());
        }
        let known = all.iter().any(|c| c.is(seen));
        let what = match (seen, known) {
            (Seen::Foreign, _) => "mixed or foreign data",
            (_, true) => "overwritten data",
            (_, false) => "data from before, or that never was",
        };
        let list: Vec<String> = all
            .iter()
            .map(|c| {
                let end = if c.end == OPEN { "-".to_owned() } else { c.end.to_string() };
                let what = if c.zero { "zeroes" } else { "write" };
                let notes = [(c.durable, " durable"), (c.hidden, " hidden"), (!c.certain, " may")];
                let notes: String = notes.iter().filter(|n| n.0).map(|n| n.1).collect();
                format!("{what} {} [{}..{end}]{notes}", c.write, c.start)
            })
            .collect();
        Err(format!(
            "sector {at} (block {}) holds {seen:?}: {what}; for a reader from {start} on it may hold: {}",
            at / 8,
            list.join(", ")
        ))
    }

    /// Judges bytes that are seen at `tick`, without learning anything of them.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn judge(&self, offset: u64, data: &[u8], tick: u64) -> Result<(), String> {
        for (at, sector) in Self::range(offset, data.len() as u64).zip(data.chunks(LEN)) {
            self.may(at, recognise(at as u64, sector), tick)?;
        }
        Ok(())
    }

    /// Judges a read that began at `start` and ended at `tick`, and learns from it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn read(&mut self, offset: u64, data: &[u8], start: u64, tick: u64) -> Result<(), String> {
        for (at, sector) in Self::range(offset, data.len() as u64).zip(data.chunks(LEN)) {
            let seen = recognise(at as u64, sector);
            self.may(at, seen, start)?;
            if !self.relaxed {
                self.observed(at, seen, start, tick);
            }
        }
        Ok(())
    }

    fn observed(&mut self, at: usize, seen: Seen, start: u64, tick: u64) {
        let sector = &mut self.sectors[at];
        let durable = self.acked_is_durable;
        let mut same = sector.iter_mut().filter(|c| c.is(seen) && !c.hidden);
        let (Some(c), None) = (same.next(), same.next()) else { return };
        c.end = c.end.min(tick);
        c.durable |= durable;
        c.certain = true;
        let (lasts, write, end) = (c.durable, c.write, c.end);
        if lasts {
            // Whatever had ended before this read began came before what it found, for good.
            for o in sector.iter_mut().filter(|o| o.write != write && o.end < start) {
                o.gone = o.gone.min(tick);
            }
        }
        if let Seen::Write(_) = seen {
            // A deallocate that had ended and is not seen was ignored, unless the write that is seen was
            // under way at once with it and may have come after it.
            sector.retain(|o| o.certain || o.end >= start || o.start <= end);
        }
    }

    /// The process died, or all lost power. What was under way happened or not.
    pub fn crashed(&mut self, power: bool) {
        for sector in &mut self.sectors {
            for c in sector.iter_mut().filter(|_| power) {
                c.hidden = false;
                if !c.durable {
                    c.end = OPEN;
                }
            }
        }
    }

    /// What the first reads after a crash found at `tick` is how it is from now on. `lasting`: and
    /// no power loss changes that.
    pub fn settled(&mut self, offset: u64, data: &[u8], tick: u64, lasting: bool) {
        if self.relaxed {
            return;
        }
        for (at, bytes) in Self::range(offset, data.len() as u64).zip(data.chunks(LEN)) {
            let seen = recognise(at as u64, bytes);
            let sector = &mut self.sectors[at];
            let found = sector.iter().filter(|c| c.is(seen) && !c.hidden);
            let Some(mut kept) = found.copied().reduce(|a, b| Change {
                start: a.start.min(b.start),
                durable: a.durable && b.durable,
                ..a
            }) else {
                continue;
            };
            (kept.end, kept.gone) = (tick, OPEN);
            kept.certain = true;
            kept.durable |= lasting;
            if lasting {
                sector.clear();
            } else {
                sector.retain(|c| !c.is(seen));
                sector.iter_mut().for_each(|c| c.hidden = true);
            }
            sector.push(kept);
        }
    }

    /// The content of a range, where it is certain.
    #[must_use]
    pub fn known(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let mut data = vec![0; usize::try_from(len).ok()?];
        for (at, out) in Self::range(offset, len).zip(data.chunks_mut(LEN)) {
            let all = &self.sectors[at];
            let mut alive = all.iter().filter(|c| !c.hidden && !dead(all, c, OPEN));
            let only = alive.next().filter(|c| c.end != OPEN && c.certain)?;
            if alive.next().is_some() {
                return None;
            }
            if !only.zero {
                fill(only.write, at as u64, out);
            }
        }
        (!self.relaxed).then_some(data)
    }

    /// Whether one content certainly came before another in a sector: for the order of writes on a
    /// backing device.
    #[must_use]
    pub fn goes_back(&self, place: u64, from: Seen, to: Seen) -> bool {
        let Some(all) = usize::try_from(place).ok().and_then(|at| self.sectors.get(at)) else {
            return false;
        };
        let one = |seen: Seen| {
            let mut same = all.iter().filter(|c| c.is(seen));
            same.next().filter(|_| same.next().is_none())
        };
        match (one(from), to) {
            (Some(from), Seen::Write(_)) => match one(to) {
                Some(to) => to.end < from.start,
                // Pruned: certainly older than what is here for good, if that is here for good.
                None => from.end != OPEN && from.durable,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (u64, u64) = (0, 512);

    fn sector(write: u64) -> Vec<u8> {
        content(write, 0, 512)
    }

    fn two_writes() -> Oracle {
        let mut o = Oracle::new(512, true);
        o.started(ALL, 1, false, true, 1);
        o.ended(ALL, 1, 2, 2, false);
        o.started(ALL, 2, false, true, 3);
        o
    }

    #[test]
    fn an_overwritten_sector_is_not_seen_again() {
        let mut o = two_writes();
        assert!(o.read(0, &sector(1), 4, 5).is_ok(), "the second is under way");
        o.ended(ALL, 2, 6, 6, false);
        assert!(o.read(0, &sector(1), 7, 8).is_err());
        assert!(o.read(0, &sector(2), 7, 8).is_ok());
        assert!(o.read(0, &[0; 512], 7, 8).is_err());
        assert!(o.read(0, &content(2, 512, 512), 7, 8).is_err(), "misplaced");
        assert!(o.read(0, &sector(3), 7, 8).is_err(), "never written");
    }

    #[test]
    fn a_lost_write_is_not_seen_after_one_that_began_when_it_was_over() {
        let mut o = two_writes();
        o.gone(ALL, 2, 4);
        assert!(o.judge(0, &sector(1), 5).is_ok() && o.judge(0, &sector(2), 5).is_ok());
        o.started(ALL, 3, false, true, 6);
        o.ended(ALL, 3, 7, 7, false);
        assert!(o.judge(0, &sector(2), 8).is_err());
        assert!(o.judge(0, &sector(3), 8).is_ok());
    }

    #[test]
    fn nothing_comes_between_a_compare_and_its_write() {
        let mut o = two_writes();
        // While 2, a compare-and-write that found 1, is under way, 3 begins and ends.
        o.started(ALL, 3, false, true, 4);
        o.ended(ALL, 3, 5, 3, false);
        assert!(o.judge(0, &sector(2), 6).is_ok(), "not known to be a swap");
        o.read(0, &sector(1), 3, 6).unwrap();
        o.swapped(ALL, 2, &sector(1));
        o.ended(ALL, 2, 6, 6, false);
        assert!(o.judge(0, &sector(2), 7).is_err(), "3 began after 1 was written: it is over 2");
        assert!(o.judge(0, &sector(3), 7).is_ok());
    }

    #[test]
    fn what_was_read_stays_through_a_crash_where_acknowledged_is_durable() {
        let mut o = two_writes();
        assert!(o.read(0, &sector(2), 4, 5).is_ok());
        assert!(o.clone().read(0, &sector(1), 6, 7).is_err(), "back in time");
        o.crashed(true);
        assert!(o.judge(0, &sector(1), 8).is_err(), "read, then lost");
        assert!(o.judge(0, &sector(2), 8).is_ok());
    }

    #[test]
    fn a_power_loss_undoes_what_was_not_flushed_and_what_it_left_is_final() {
        let mut o = Oracle::new(512, false);
        o.started(ALL, 1, false, true, 1);
        o.ended(ALL, 1, 2, 2, false);
        o.flushed(3);
        o.started(ALL, 2, false, true, 4);
        o.ended(ALL, 2, 5, 5, false);
        assert!(o.judge(0, &sector(1), 6).is_err());
        o.crashed(true);
        assert!(o.judge(0, &[0; 512], 7).is_err(), "flushed");
        assert!(o.judge(0, &sector(2), 7).is_ok());
        o.settled(0, &sector(1), 8, true);
        assert!(o.judge(0, &sector(2), 9).is_err(), "it was not there a moment ago");
    }

    #[test]
    fn of_two_writes_at_once_the_one_that_was_read_stays() {
        let mut o = Oracle::new(512, true);
        o.started(ALL, 1, false, true, 1);
        o.started(ALL, 2, false, true, 2);
        o.ended(ALL, 1, 3, 1, false);
        o.ended(ALL, 2, 4, 1, false);
        assert!(o.judge(0, &sector(1), 5).is_ok() && o.judge(0, &sector(2), 5).is_ok());
        o.read(0, &sector(2), 5, 7).unwrap();
        assert!(o.judge(0, &sector(1), 8).is_err(), "it was over already");
        assert!(o.judge(0, &sector(1), 6).is_ok(), "a reader that began before that read ended");
        o.crashed(true);
        assert!(o.judge(0, &sector(1), 9).is_err());
    }

    #[test]
    fn a_process_that_dies_undoes_nothing_and_a_later_power_loss_may() {
        let mut o = Oracle::new(512, false);
        o.started(ALL, 1, false, true, 1);
        o.ended(ALL, 1, 2, 2, false);
        o.crashed(false);
        assert!(o.judge(0, &[0; 512], 3).is_err());
        o.settled(0, &sector(1), 3, false);
        assert!(o.judge(0, &[0; 512], 4).is_err());
        o.crashed(true);
        assert!(o.judge(0, &[0; 512], 5).is_ok());
    }
}
