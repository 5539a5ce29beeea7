//! What verified blocks hold, and what may be read back.
//!
//! Each unit (a logical block of the device) carries its own address, a version, and a pattern
//! made of both, so that any part that is stale, misplaced, torn or foreign is recognised. The
//! version that a read may find lies between the last one acknowledged or seen and the last one
//! ever attempted: a write that failed or was cut off may have taken effect or not.

use crate::random::Random;

const MAGIC: u64 = 0x7f0e_ba57_a3b1_0c5e;
/// Bytes before the pattern: magic, seed, unit, version, checksum.
const HEAD: usize = 40;

/// Why a unit that was read is not right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It does not hold a stamp, but was written.
    NoStamp,
    /// The stamp of another unit.
    Misplaced {
        /// The unit whose stamp was found.
        found: u64,
    },
    /// An acknowledged or once seen version is lost.
    Stale {
        /// The version found.
        found: u32,
        /// The oldest right one.
        least: u32,
    },
    /// A version that was never written.
    Future {
        /// The version found.
        found: u32,
    },
    /// Head and pattern do not fit together.
    Torn,
}

/// Fills one unit. `seed` tells runs apart.
pub fn fill(data: &mut [u8], seed: u64, unit: u64, version: u32) {
    let (head, pattern) = data.split_at_mut(HEAD.min(data.len()));
    let mut random = Random::new(seed ^ unit.rotate_left(24) ^ u64::from(version));
    let mut checksum = 0u64;
    for word in pattern.chunks_mut(8) {
        let bits = random.next();
        checksum = checksum.rotate_left(5) ^ bits;
        let length = word.len();
        word.copy_from_slice(&bits.to_le_bytes()[..length]);
    }
    let words = [MAGIC, seed, unit, u64::from(version), checksum];
    for (field, word) in head.chunks_exact_mut(8).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
}

/// The version of one unit as read, judged by itself.
///
/// # Errors
/// Where it is not a whole stamp of this run and this unit.
pub fn read(data: &[u8], seed: u64, unit: u64) -> Result<u32, Mismatch> {
    let word = |at: usize| {
        let mut raw = [0; 8];
        raw.copy_from_slice(&data[at * 8..at * 8 + 8]);
        u64::from_le_bytes(raw)
    };
    if data.len() < HEAD || word(0) != MAGIC || word(1) != seed {
        return Err(Mismatch::NoStamp);
    }
    if word(2) != unit {
        return Err(Mismatch::Misplaced { found: word(2) });
    }
    let Ok(version) = u32::try_from(word(3)) else { return Err(Mismatch::Torn) };
    let mut random = Random::new(seed ^ unit.rotate_left(24) ^ u64::from(version));
    let mut checksum = 0u64;
    for piece in data[HEAD..].chunks(8) {
        let bits = random.next();
        checksum = checksum.rotate_left(5) ^ bits;
        if piece != &bits.to_le_bytes()[..piece.len()] {
            return Err(Mismatch::Torn);
        }
    }
    if checksum == word(4) { Ok(version) } else { Err(Mismatch::Torn) }
}

/// What may be read from each unit of a range.
#[derive(Debug)]
pub struct Ledger {
    seed: u64,
    first: u64,
    units: Vec<Versions>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    least: u32,
    most: u32,
    busy: bool,
}

impl Ledger {
    /// For `count` units from `first` on, of which nothing is known.
    #[must_use]
    pub fn new(seed: u64, first: u64, count: usize) -> Self {
        Self { seed, first, units: vec![Versions::default(); count] }
    }

    fn at(&mut self, unit: u64) -> Option<&mut Versions> {
        let at = usize::try_from(unit.checked_sub(self.first)?).ok()?;
        self.units.get_mut(at)
    }

    /// Takes `count` units from `unit` on for one operation; `false` where one is taken.
    pub fn lock(&mut self, unit: u64, count: u64) -> bool {
        let free = (unit..unit + count).all(|u| self.at(u).is_some_and(|v| !v.busy));
        if free {
            (unit..unit + count).for_each(|u| {
                if let Some(versions) = self.at(u) {
                    versions.busy = true;
                }
            });
        }
        free
    }

    /// Gives units back.
    pub fn unlock(&mut self, unit: u64, count: u64) {
        (unit..unit + count).for_each(|u| {
            if let Some(versions) = self.at(u) {
                versions.busy = false;
            }
        });
    }

    /// Stamps the next version of the units in `data` (`unit_size` bytes each).
    pub fn stamp(&mut self, unit: u64, data: &mut [u8], unit_size: usize) {
        let seed = self.seed;
        for (u, part) in (unit..).zip(data.chunks_exact_mut(unit_size)) {
            if let Some(versions) = self.at(u) {
                versions.most += 1;
                fill(part, seed, u, versions.most);
            }
        }
    }

    /// A write of the newest version was acknowledged.
    pub fn acknowledge(&mut self, unit: u64, count: u64) {
        (unit..unit + count).for_each(|u| {
            if let Some(versions) = self.at(u) {
                versions.least = versions.most;
            }
        });
    }

    /// Checks units as read; what is seen once must not go away again. Returns how many are wrong
    /// and the first of them.
    pub fn check(
        &mut self,
        unit: u64,
        data: &[u8],
        unit_size: usize,
    ) -> (u64, Option<(u64, Mismatch)>) {
        let seed = self.seed;
        let (mut wrong, mut first) = (0, None);
        for (u, part) in (unit..).zip(data.chunks_exact(unit_size)) {
            let Some(versions) = self.at(u) else { continue };
            let verdict = match read(part, seed, u) {
                // Nothing was acknowledged: whatever was there before is right.
                Err(Mismatch::NoStamp) if versions.least == 0 => Ok(()),
                Err(mismatch) => Err(mismatch),
                Ok(found) if found > versions.most => Err(Mismatch::Future { found }),
                Ok(found) if found < versions.least => {
                    Err(Mismatch::Stale { found, least: versions.least })
                }
                Ok(found) => {
                    versions.least = found;
                    Ok(())
                }
            };
            if let Err(mismatch) = verdict {
                wrong += 1;
                first = first.or(Some((u, mismatch)));
            }
        }
        (wrong, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let mut unit = [0u8; 512];
        fill(&mut unit, 1, 77, 5);
        assert_eq!(read(&unit, 1, 77), Ok(5));
        assert_eq!(read(&unit, 2, 77), Err(Mismatch::NoStamp));
        assert_eq!(read(&unit, 1, 78), Err(Mismatch::Misplaced { found: 77 }));
        for at in [40, 300, 511, 24, 33] {
            let mut torn = unit;
            torn[at] ^= 1;
            assert_eq!(read(&torn, 1, 77), Err(Mismatch::Torn), "byte {at}");
        }
        assert_eq!(read(&[0; 512], 1, 0), Err(Mismatch::NoStamp));
    }

    #[test]
    fn the_ledger_bears_unacknowledged_writes_but_no_lost_ones() {
        let mut ledger = Ledger::new(9, 100, 4);
        let mut old = [0u8; 1024];
        assert_eq!(ledger.check(100, &old, 512), (0, None), "never written");
        ledger.stamp(100, &mut old, 512);
        ledger.acknowledge(100, 2);
        let mut new = old;
        ledger.stamp(100, &mut new, 512);
        assert_eq!(ledger.check(100, &old, 512).0, 0, "not acknowledged: old is right");
        assert_eq!(ledger.check(100, &new, 512).0, 0, "and so is new");
        let stale = Mismatch::Stale { found: 1, least: 2 };
        assert_eq!(ledger.check(100, &old, 512), (2, Some((100, stale))), "seen, and gone again");
        assert_eq!(ledger.check(100, &[0; 1024], 512).0, 2, "zeroes");
        let mut future = [0u8; 512];
        fill(&mut future, 9, 100, 3);
        assert_eq!(ledger.check(100, &future, 512).1, Some((100, Mismatch::Future { found: 3 })));
        assert!(ledger.lock(101, 2) && !ledger.lock(102, 1) && !ledger.lock(103, 2));
        ledger.unlock(101, 2);
        assert!(ledger.lock(102, 2));
    }
}
