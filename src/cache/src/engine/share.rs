//! What a volume keeps of the cache and what it may have of it, so that a noisy neighbour cannot take
//! more than it leaves.
//!
//! * **Minimum.** Reclaim appends a volume's clean blocks again, as it does dirty ones, as long as it
//!   has no more than its minimum.
//! * **Pins.** Blocks of pinned ranges are appended again whatever the volume has; [`super::pins`]
//!   fetches them. They count in the minimum.
//! * **Maximum.** A volume that has as much gets no fills, until reclaim has dropped some of its clean
//!   blocks, and reclaim appends none of them again while it has more. Writes are never refused for it:
//!   they count, and once they are clean they go at reclaim. Pinned blocks enter in any case.
//!
//! What all volumes keep is at most [`KEPT_PERCENT`] of the data slots, and dirty data has to do with
//! what that leaves, so that reclaim always gains. Where there is more of both than that all the same
//! (dirty data that recovery found), minimums and pins give way until it is destaged.

use super::Engine;
use super::mode::ControlError;
use super::types::BLOCK;
use super::volume::spare;
use crate::index::{Flags, Key};
use crate::policy;
use forebay_io::{Buf, VolumeId};

/// Most of the data slots, in percent, that the minimums and pins of all volumes may keep together.
pub const KEPT_PERCENT: u64 = 50;
/// Most ranges that a volume may have pinned, once those that touch are joined.
pub const PINS_MAX: usize = 256;
/// What dirty data and what is kept may have together of what reclaim can use, in percent.
const FULL_PERCENT: u64 = 80;
/// Beyond this share minimums and pins give way.
const GIVE_WAY_PERCENT: u64 = 90;

/// Consecutive cache blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockRange {
    /// The first.
    pub first: u64,
    /// How many.
    pub blocks: u64,
}

impl BlockRange {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.blocks)
    }
}

/// What a volume keeps of the cache, and what it may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of cache that no other volume takes away, once the volume has them. More than its size
    /// counts as its size.
    pub min: u64,
    /// Bytes beyond which the volume gets no fills; `None` for no bound.
    pub max: Option<u64>,
    /// Blocks that are fetched and stay. In any order; they may overlap.
    pub pins: Vec<BlockRange>,
}

/// Joins ranges that overlap or touch, and sorts them.
fn joined(pins: &[BlockRange]) -> Vec<BlockRange> {
    let mut pins: Vec<_> = pins.iter().copied().filter(|pin| pin.blocks > 0).collect();
    pins.sort_unstable();
    let mut all: Vec<BlockRange> = Vec::new();
    for pin in pins {
        match all.last_mut() {
            Some(last) if pin.first <= last.end() => {
                last.blocks = last.end().max(pin.end()) - last.first;
            }
            _ => all.push(pin),
        }
    }
    all
}

/// Blocks of a minimum: not more than the volume has.
fn least(quota: &Quota, size: u64) -> u64 {
    quota.min.min(size).div_ceil(BLOCK)
}

/// The same of a volume in the engine, in blocks.
#[derive(Debug, Default)]
pub(super) struct Share {
    min: u64,
    max: Option<u64>,
    /// Sorted and apart.
    pins: Vec<BlockRange>,
    pinned: u64,
    /// Blocks of fills that are in the log and not yet in the index.
    pub(super) placing: u64,
    /// Blocks of the segment that is being reclaimed which leave with it.
    leaving: u64,
    /// How far the pinned blocks are fetched.
    pub(super) pass: super::pins::Pass,
}

impl Share {
    /// Blocks that reclaim has to leave to the volume at most.
    pub(super) fn keeps(&self) -> u64 {
        self.min.max(self.pinned)
    }

    /// Pinned blocks.
    pub(super) const fn pinned(&self) -> u64 {
        self.pinned
    }

    /// Whether a block is pinned.
    pub(super) fn is_pinned(&self, block: u64) -> bool {
        let after = self.pins.partition_point(|pin| pin.first <= block);
        after.checked_sub(1).is_some_and(|at| block < self.pins[at].end())
    }

    /// The part, from a block on, of the pinned range that has it or comes next.
    pub(super) fn next_pin(&self, from: u64) -> Option<BlockRange> {
        let at = self.pins.partition_point(|pin| pin.end() <= from);
        let pin = self.pins.get(at)?;
        let first = pin.first.max(from);
        Some(BlockRange { first, blocks: pin.end() - first })
    }

    /// Pinned blocks from a block on.
    pub(super) fn pinned_from(&self, from: u64) -> u64 {
        self.pins.iter().map(|pin| pin.end().saturating_sub(pin.first.max(from))).sum()
    }

    /// How many more blocks of fills the volume may have, with `cached` blocks.
    pub(super) fn room(&self, cached: u64) -> u64 {
        self.max.map_or(u64::MAX, |max| max.saturating_sub(cached + self.placing))
    }
}

impl<B: Buf> Engine<B> {
    /// Checks a quota for a volume of `size` bytes, in the engine or to be added: what
    /// [`Engine::set_quota`] would say.
    ///
    /// # Errors
    /// [`ControlError::QuotaTooLarge`], [`ControlError::KeepsMoreThanMax`], or
    /// [`ControlError::Invalid`] for pins beyond the end of the volume or too many of them.
    pub fn check_quota(&self, id: VolumeId, size: u64, quota: &Quota) -> Result<(), ControlError> {
        let pins = joined(&quota.pins);
        if pins.len() > PINS_MAX {
            return Err(ControlError::Invalid("a volume has at most 256 pinned ranges"));
        }
        if pins.last().is_some_and(|pin| pin.end() > size.div_ceil(BLOCK)) {
            return Err(ControlError::Invalid("a pinned range is beyond the end of the volume"));
        }
        let pinned: u64 = pins.iter().map(|pin| pin.blocks).sum();
        let keeps = pinned.max(least(quota, size));
        if let Some(max) = quota.max.filter(|max| keeps > max / BLOCK) {
            return Err(ControlError::KeepsMoreThanMax { keeps: keeps * BLOCK, max });
        }
        let others = self.vols.iter().filter(|(_, vol)| vol.id != id);
        let others: u64 = others.map(|(_, vol)| vol.share.keeps()).sum();
        let most = self.segs.data_slots() * KEPT_PERCENT / 100;
        // What keeps nothing fits, whatever others keep.
        if keeps > 0 && keeps.saturating_add(others) > most {
            return Err(ControlError::QuotaTooLarge {
                keeps: keeps * BLOCK,
                others: others * BLOCK,
                most: most * BLOCK,
            });
        }
        Ok(())
    }

    /// Changes what a volume keeps of the cache and may have, live. Pinned blocks that the cache
    /// lacks are fetched; [`Engine::pin_status`] says how far that is.
    ///
    /// # Errors
    /// [`ControlError::NoSuchVolume`], or as [`Engine::check_quota`]; nothing changed.
    pub fn set_quota(&mut self, id: VolumeId, quota: &Quota) -> Result<(), ControlError> {
        let place = self.vols.find(id).ok_or(ControlError::NoSuchVolume(id))?;
        let size = self.vols.get(place).map_or(0, |vol| vol.size);
        self.check_quota(id, size, quota)?;
        let Some(vol) = self.vols.get_mut(place) else { return Ok(()) };
        let share = &mut vol.share;
        let pins = joined(&quota.pins);
        (share.min, share.max) = (least(quota, size), quota.max.map(|max| max / BLOCK));
        if share.pins != pins {
            share.pinned = pins.iter().map(|pin| pin.blocks).sum();
            share.pins = pins;
            self.pins_changed(place);
        }
        self.vols.count_kept();
        Ok(())
    }

    /// Blocks of a volume that the index names.
    pub(super) fn cached_of(&self, volume: u16) -> u64 {
        self.index.volume_len(volume)
    }

    /// Bytes that the cache has of a volume, by looking at every entry of the index: a check of
    /// [`VolumeStats::cached_bytes`](super::VolumeStats::cached_bytes), which takes time in
    /// proportion to the cache.
    #[must_use]
    pub fn scan_cached(&self, id: VolumeId) -> Option<u64> {
        let index = self.vols.get(self.vols.find(id)?)?.index;
        let mut blocks = 0;
        self.index.for_each(|key, _| blocks += u64::from(key.volume() == index));
        Some(blocks * BLOCK)
    }

    /// Data slots that dirty data and what is kept can share: without what reclaim leaves free and
    /// what is being written.
    fn usable_slots(&self) -> u64 {
        let segments = self.segs.len() as u64;
        let spare = (self.reclaim_from() + self.streams.len()) as u64;
        self.segs.data_slots() / segments.max(1) * segments.saturating_sub(spare)
    }

    /// Dirty blocks that are left room for beside what volumes keep; no bound where none keeps any.
    pub(super) fn dirty_room(&self) -> u64 {
        match self.vols.kept() {
            0 => u64::MAX,
            kept => (self.usable_slots() * FULL_PERCENT / 100).saturating_sub(kept),
        }
    }

    /// A segment is about to be sorted out: whether minimums and pins hold, and how many clean blocks
    /// may be appended again beside them.
    pub(super) fn share_begin(&mut self) -> (bool, u32) {
        for (_, vol) in self.vols.iter_mut() {
            vol.share.leaving = 0;
        }
        let (kept, slots) = (self.vols.kept(), self.segs.data_slots().max(1));
        let holds = self.dirty + self.kept + kept <= self.usable_slots() * GIVE_WAY_PERCENT / 100;
        let quarter = u64::from(self.map.geometry().data_slots() / 4);
        // Of each segment a share is kept on average, which nothing is gained of.
        let budget = if holds { quarter * slots.saturating_sub(kept) / slots } else { quarter };
        (holds, u32::try_from(budget).unwrap_or(u32::MAX))
    }

    /// What becomes of a clean block of the segment that is reclaimed: `Some(true)` where it stays
    /// for its volume's share, `Some(false)` where the policy has it appended again, `None` where it
    /// leaves.
    pub(super) fn clean_stays(
        &mut self,
        (place, key): (u16, Key),
        flags: Flags,
        (holds, budget): (bool, u32),
    ) -> Option<bool> {
        let vol = self.vols.get_mut(place)?;
        let cached = self.index.volume_len(vol.index).saturating_sub(vol.share.leaving);
        let share = &mut vol.share;
        let bad = flags.spare() & spare::BAD != 0;
        if holds && !bad && (cached <= share.min || share.is_pinned(key.block())) {
            return Some(true);
        }
        let over = share.max.is_some_and(|max| cached > max);
        match self.policy.on_reclaim(key, flags, budget > 0 && !over) {
            policy::Reclaim::Reinsert(_) => Some(false),
            policy::Reclaim::Evict => {
                share.leaving += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(first: u64, blocks: u64) -> BlockRange {
        BlockRange { first, blocks }
    }

    #[test]
    fn ranges_that_overlap_or_touch_are_joined() {
        let all =
            [range(10, 5), range(0, 3), range(30, 0), range(15, 1), range(2, 4), range(12, 1)];
        assert_eq!(joined(&all), [range(0, 6), range(10, 6)]);
        assert_eq!(joined(&[range(5, 10), range(6, 2)]), [range(5, 10)]);
        assert!(joined(&[]).is_empty());
    }

    #[test]
    fn pins_are_found_by_block() {
        let pins = vec![range(0, 6), range(10, 6)];
        let share = Share { pins, pinned: 12, min: 3, ..Share::default() };
        let pinned: Vec<u64> = (0..20).filter(|block| share.is_pinned(*block)).collect();
        assert_eq!(pinned, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]);
        assert_eq!(share.next_pin(4), Some(range(4, 2)));
        assert_eq!(share.next_pin(6), Some(range(10, 6)));
        assert_eq!(share.next_pin(16), None);
        assert_eq!([0, 4, 8, 15, 16].map(|from| share.pinned_from(from)), [12, 8, 6, 1, 0]);
        assert_eq!((share.keeps(), share.room(1 << 40)), (12, u64::MAX));
        assert!(!Share::default().is_pinned(0) && Share::default().next_pin(0).is_none());
    }

    #[test]
    fn a_maximum_counts_what_is_on_its_way() {
        let share = Share { max: Some(10), placing: 3, ..Share::default() };
        assert_eq!([0, 6, 7, 8, 100].map(|cached| share.room(cached)), [7, 1, 0, 0, 0]);
    }
}
