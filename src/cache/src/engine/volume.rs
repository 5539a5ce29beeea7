//! A volume in the engine.

use super::mode::Switch;
use super::order::{Journal, Order};
use super::share::Share;
use super::slab::Handle;
use super::stats::BlockCounts;
use super::types::{BLOCK, CacheMode, OnFailure};
use crate::format::record::Kind;
use crate::index::Key;
use crate::ranges::RangeMap;
use crate::sequential::Sequential;
use forebay_io::{BlockError, DeviceError, DeviceInfo, Duration, Epoch, Instant, Uuid, VolumeId};
use std::collections::VecDeque;

/// The engine's spare bits of an index entry.
pub(super) mod spare {
    /// Dirty, but the backing device took it and only its flush is missing.
    pub(in crate::engine) const WRITTEN: u8 = 1;
    /// Dirty: cannot be read back. Clean: not to be read, the backing device has it; the entry stays as
    /// the record is on the device until a fill replaces it.
    pub(in crate::engine) const BAD: u8 = 2;
}

/// A record that is placed and not committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) req: Handle,
    pub(super) kind: Kind,
    pub(super) block: u64,
    pub(super) blocks: u64,
    /// Slot of the first block, over all segments.
    pub(super) slot: u32,
    pub(super) seg: u32,
    /// The request's last record.
    pub(super) last: bool,
}

/// How a backing device does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    /// Since when it fails, and how.
    pub(super) failing: Option<(Instant, DeviceError)>,
    /// Next try.
    pub(super) retry_at: Instant,
    pub(super) backoff: Duration,
    /// Since when an operation has been without an answer for too long.
    pub(super) hanging: Option<Instant>,
    pub(super) probing: bool,
    pub(super) errors: u64,
}

impl Health {
    /// Whether nothing is to be asked of the device now.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.hanging.is_some() || (self.failing.is_some() && self.retry_at > now)
    }
}

/// A volume.
pub(super) struct Volume {
    pub(super) id: VolumeId,
    /// Its index in records and in the index of blocks: another one after its cache was forgotten.
    pub(super) index: u16,
    /// Its cache generation, stamped into records.
    pub(super) generation: u32,
    /// Seed of its CRCs.
    pub(super) key: u64,
    pub(super) uuid: Uuid,
    pub(super) epoch: Epoch,
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) backing: DeviceInfo,
    pub(super) mode: CacheMode,
    pub(super) target: CacheMode,
    pub(super) switch: Switch,
    pub(super) on_failure: OnFailure,
    /// May be served: the superblock knows it.
    pub(super) attached: bool,
    /// Reads consult the cache; `false` in pass-through.
    pub(super) caching: bool,
    pub(super) detaching: bool,
    /// Its dirty data is dropped with it.
    pub(super) discard: super::detach::Discard,
    pub(super) draining: bool,
    pub(super) next_lsn: u64,
    pub(super) persisted: u64,
    pub(super) committed: u64,
    /// The last commit mark: its number, the journal batch (by ordinal) and segment it is in.
    pub(super) marked: (u64, Option<u64>, u32),
    pub(super) pending: VecDeque<Pending>,
    pub(super) ranges: RangeMap,
    /// The flush of the cache device after which trims of ranges that are in no map any more are durable.
    pub(super) trims_durable: u64,
    /// Dirty blocks in the index.
    pub(super) dirty: u64,
    pub(super) lost_blocks: u64,
    /// Clean blocks whose copy was wrong, dropped.
    pub(super) healed: u64,
    pub(super) sequential: Sequential,
    pub(super) health: Health,
    /// Operations on the backing device.
    pub(super) backing_ops: u64,
    /// Blocks that its hosts read and wrote.
    pub(super) blocks: BlockCounts,
    /// Blocks destaged.
    pub(super) destaged: u64,
    /// Requests in the engine.
    pub(super) requests: u64,
    /// Requests that have been sent through the log and have not ended: the log may not be left
    /// while there are any.
    pub(super) journaling: u64,
    /// Writes to the backing device since its last flush began, beside destage.
    pub(super) unflushed: bool,
    /// Writes of its backing device that timed out and may still be carried out.
    pub(super) doubts: u32,
    /// Flushes of the backing device for hosts under way.
    pub(super) flushing: u64,
    /// Writes that reach the backing device without destage and have not ended.
    pub(super) direct: u64,
    /// Requests whose write past the log has been issued and is not over: hosts may see it already, or
    /// once the device carries out what timed out, and no flush that began before covers it.
    pub(super) bypassing: u64,
    /// In write-back-ordered: its batches.
    pub(super) order: Option<Box<Order>>,
    /// The journal that its batches go through, if it has one.
    pub(super) order_journal: Option<Box<Journal>>,
    /// The cache knew changes of it when it was added.
    pub(super) known: bool,
    /// What it keeps of the cache and may have.
    pub(super) share: Share,
}

impl Volume {
    /// Where blocks are on the backing device, clipped to its end: offset and length in bytes.
    pub(super) fn backing_range(&self, block: u64, blocks: u64) -> (u64, u64) {
        let start = block.saturating_mul(BLOCK).min(self.size);
        let end = block.saturating_add(blocks).saturating_mul(BLOCK).min(self.size);
        (start, end - start)
    }

    /// Why a miss cannot be asked of the backing device now.
    pub(super) fn refuses_reads(&self) -> Option<BlockError> {
        let down = self.health.hanging.is_some()
            || matches!(self.health.failing, Some((_, DeviceError::Gone)));
        (down && self.on_failure == OnFailure::Fail && self.health.probing)
            .then_some(BlockError::NotReady)
    }

    /// Whether a record of one of these blocks is placed and not committed.
    pub(super) fn in_flight(&self, block: u64, blocks: u64) -> bool {
        let overlaps =
            |p: &Pending| p.block < block.saturating_add(blocks) && block < p.block + p.blocks;
        self.pending.iter().any(overlaps)
    }

    /// Whether writes go through the log.
    pub(super) fn journals(&self) -> bool {
        self.mode.is_write_back() || self.mode == CacheMode::WriteThrough
    }

    /// Nothing is dirty that could still be destaged, and no record waits for commit: what is left, if
    /// anything, is damaged.
    pub(super) fn settled(&self) -> bool {
        self.dirty <= self.lost_blocks
            && self.pending.is_empty()
            && self.ranges.iter().all(|range| !range.dirty)
    }

    /// Nothing is dirty and no record waits for commit.
    pub(super) fn clean(&self) -> bool {
        self.dirty == 0 && self.settled()
    }
}

/// The volumes, each in a place that it keeps while it is here. (Not the index of the volume table:
/// that changes when a volume's cache is forgotten.)
#[derive(Default)]
pub(super) struct Volumes {
    list: Vec<Option<Box<Volume>>>,
    by_id: Vec<u16>,
    /// Blocks that all of them keep.
    kept: u64,
}

impl Volumes {
    pub(super) fn get(&self, index: u16) -> Option<&Volume> {
        self.list.get(usize::from(index))?.as_deref()
    }

    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Volume> {
        self.list.get_mut(usize::from(index))?.as_deref_mut()
    }

    pub(super) fn find(&self, id: VolumeId) -> Option<u16> {
        let index = *self.by_id.get(id.0 as usize)?;
        (index != u16::MAX).then_some(index)
    }

    /// The index key of a volume's block.
    pub(super) fn key(&self, place: u16, block: u64) -> Option<Key> {
        Key::new(self.get(place)?.index, block)
    }

    /// The place of the volume whose records have this index and generation.
    pub(super) fn place_of(&self, index: u16, generation: u32) -> Option<u16> {
        let found = self.iter().find(|(_, v)| v.index == index && v.generation == generation);
        found.map(|(place, _)| place)
    }

    pub(super) fn of_index(&mut self, index: u16, generation: u32) -> Option<&mut Volume> {
        let place = self.place_of(index, generation)?;
        self.get_mut(place)
    }

    /// A place for one more.
    pub(super) fn vacancy(&self) -> Option<u16> {
        let at = self.list.iter().position(Option::is_none).unwrap_or(self.list.len());
        u16::try_from(at).ok()
    }

    pub(super) fn put(&mut self, index: u16, volume: Volume) {
        let id = volume.id.0 as usize;
        if self.by_id.len() <= id {
            self.by_id.resize(id + 1, u16::MAX);
        }
        self.by_id[id] = index;
        if self.list.len() <= usize::from(index) {
            self.list.resize_with(usize::from(index) + 1, || None);
        }
        self.list[usize::from(index)] = Some(Box::new(volume));
    }

    pub(super) fn take(&mut self, index: u16) -> Option<Box<Volume>> {
        let volume = self.list.get_mut(usize::from(index))?.take()?;
        if let Some(place) = self.by_id.get_mut(volume.id.0 as usize) {
            *place = u16::MAX;
        }
        self.count_kept();
        Some(volume)
    }

    /// Blocks of the cache that the volumes keep together.
    pub(super) const fn kept(&self) -> u64 {
        self.kept
    }

    /// What a volume keeps has changed.
    pub(super) fn count_kept(&mut self) {
        self.kept = self.iter().map(|(_, vol)| vol.share.keeps()).sum();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Volume)> {
        (0u16..).zip(&self.list).filter_map(|(index, vol)| Some((index, vol.as_deref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Volume)> {
        (0u16..).zip(&mut self.list).filter_map(|(index, vol)| Some((index, vol.as_deref_mut()?)))
    }

    /// One above the highest index ever used.
    pub(super) fn bound(&self) -> u16 {
        u16::try_from(self.list.len()).unwrap_or(u16::MAX)
    }
}
