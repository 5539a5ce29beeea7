//! What each sector of a volume may hold.

use std::collections::VecDeque;

pub const SECTOR: u64 = 512;

/// The content of a write: each sector names the write and its own place.
pub fn content(write: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(len).unwrap()];
    for (n, sector) in data.chunks_mut(512).enumerate() {
        let place = offset / SECTOR + n as u64;
        for (at, word) in sector.chunks_mut(8).enumerate() {
            let value = match at {
                0 => write,
                1 => place,
                _ => write.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place << 8) ^ at as u64,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    data
}

#[derive(Clone, Copy, Debug)]
struct Change {
    write: u64,
    zero: bool,
    start: u64,
    /// Acknowledged at; `None` while it is not (it may or may not have happened).
    end: Option<u64>,
    /// It happens for certain once it is acknowledged (a deallocate may be ignored).
    certain: bool,
    /// A power loss does not undo it.
    durable: bool,
}

/// The history of each sector, cut to what can still be seen.
pub struct Model {
    sectors: Vec<VecDeque<Change>>,
    /// Acknowledged is durable (no volatile cache).
    pub acked_is_durable: bool,
}

impl Model {
    pub fn new(size: u64) -> Self {
        let first =
            Change { write: 0, zero: true, start: 0, end: Some(0), certain: true, durable: true };
        let n = usize::try_from(size.div_ceil(SECTOR)).unwrap();
        Self { sectors: vec![VecDeque::from([first]); n], acked_is_durable: true }
    }

    fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
        usize::try_from(offset / SECTOR).unwrap()..usize::try_from((offset + len) / SECTOR).unwrap()
    }

    pub fn started(
        &mut self,
        offset: u64,
        len: u64,
        write: u64,
        zero: bool,
        certain: bool,
        now: u64,
    ) {
        for at in Self::range(offset, len) {
            self.sectors[at].push_back(Change {
                write,
                zero,
                start: now,
                end: None,
                certain,
                durable: false,
            });
        }
    }

    /// A change was acknowledged. Everything that is under way began at `horizon` or later.
    pub fn ended(&mut self, offset: u64, len: u64, write: u64, now: u64, horizon: u64, fua: bool) {
        for at in Self::range(offset, len) {
            let sector = &mut self.sectors[at];
            for change in sector.iter_mut().filter(|change| change.write == write) {
                change.end = Some(now);
                change.durable |= fua || self.acked_is_durable;
            }
            let mut all = sector.clone();
            all.retain(|change| change.durable);
            sector.retain(|change| !Self::dead(&all, change, horizon));
        }
    }

    /// A host's Flush that began at `start` ended.
    pub fn flushed(&mut self, start: u64) {
        for change in self.sectors.iter_mut().flatten() {
            change.durable |= change.end.is_some_and(|end| end <= start);
        }
    }

    /// Power was lost: what was not durable may have happened or not.
    pub fn power_lost(&mut self) {
        for change in self.sectors.iter_mut().flatten().filter(|change| !change.durable) {
            change.end = None;
        }
    }

    /// Whether a read that began at `start` cannot see a change: another one began after it ended,
    /// and ended before the read began.
    fn dead(all: &VecDeque<Change>, c: &Change, start: u64) -> bool {
        all.iter().any(|other| {
            other.certain
                && c.end.is_some_and(|end| other.start > end)
                && other.end.is_some_and(|end| end < start)
        })
    }

    /// A compare-and-write that found a difference.
    pub fn never(&mut self, offset: u64, len: u64, write: u64) {
        for at in Self::range(offset, len) {
            self.sectors[at].retain(|change| change.write != write);
        }
    }

    /// Checks what a read that began at `start` saw.
    pub fn check_read(&mut self, offset: u64, data: &[u8], start: u64, now: u64) {
        for (at, sector) in Self::range(offset, data.len() as u64).zip(data.chunks(512)) {
            let zero = sector.iter().all(|byte| *byte == 0);
            let write = u64::from_le_bytes(sector[..8].try_into().unwrap());
            let place = at as u64;
            if !zero {
                assert_eq!(
                    sector,
                    content(write, place * SECTOR, 512),
                    "sector {place}: mixed or foreign data, write {write}"
                );
            }
            let history = &self.sectors[at];
            let seen =
                history.iter().find(|c| if zero { c.zero } else { !c.zero && c.write == write });
            let Some(seen) = seen else {
                panic!(
                    "sector {place} at {now}: holds write {write} (zero {zero}), may hold {history:?}"
                );
            };
            let alive = history.iter().any(|c| {
                (if zero { c.zero } else { !c.zero && c.write == write })
                    && !Self::dead(history, c, start)
            });
            assert!(
                alive,
                "sector {place} at {now}: holds write {write}, which is overwritten: {history:?}, seen {seen:?}"
            );
        }
    }

    /// The content of a range, where it is certain.
    pub fn known(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        for at in Self::range(offset, len) {
            let sector = &self.sectors[at];
            let mut alive = sector.iter().filter(|c| !Self::dead(sector, c, u64::MAX));
            let only = alive.next()?;
            only.end?;
            if alive.next().is_some() {
                return None;
            }
            if only.zero {
                data.extend_from_slice(&[0; 512]);
            } else {
                data.extend_from_slice(&content(only.write, at as u64 * SECTOR, 512));
            }
        }
        Some(data)
    }
}
