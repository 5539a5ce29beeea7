//! What the engine counts and what state it is in, for `stat` and for people.

use super::Engine;
use super::ops::Under;
use super::request::Origin;
use super::types::{BLOCK, CacheMode};
use super::volume::{Volume, spare};
use crate::index::Key;
use crate::policy::PolicyStats;
use crate::tier::TierStats;
use forebay_io::{Buf, DeviceError, Duration, Instant, Lsn, VolumeId};

/// Cache blocks that hosts read and wrote, each counted once, when its command ends well; a block
/// of which a command touches a part counts as one.
///
/// Reads are those of Read and Compare: `hits + tier_hits + zero_hits + misses + bypassed_reads`
/// is what hosts read. What a write of a part of a block, or a fused compare and write, reads for
/// itself is not in it, nor a second try. Writes are those of Write, fused or not, and the
/// small Write Zeroes (64 KiB, and less than a whole block) that are carried out as one; others and
/// Deallocate move no data and are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Read from the cache device.
    pub hits: u64,
    /// Read from the memory tier.
    pub tier_hits: u64,
    /// Known to be zeroes from a record in the log: no device was asked.
    pub zero_hits: u64,
    /// Read from the backing device as the cache did not have them, cached then or not.
    pub misses: u64,
    /// Read from the backing device past the cache: in pass-through, in a sequential stream longer
    /// than the cutoff, or once the cache device has failed. A block of such a stream that the
    /// cache has is a hit.
    pub bypassed_reads: u64,
    /// Written to the log (write-back and write-through).
    pub writes: u64,
    /// Written to the backing device alone: in write-around and pass-through, or once the cache
    /// device has failed.
    pub bypassed_writes: u64,
}

impl BlockCounts {
    /// Counts a block that was read.
    pub(super) fn read(&mut self, origin: Origin) {
        let place = match origin {
            Origin::Device => &mut self.hits,
            Origin::Tier => &mut self.tier_hits,
            Origin::Zeroes => &mut self.zero_hits,
            Origin::Miss => &mut self.misses,
            Origin::Past => &mut self.bypassed_reads,
        };
        *place += 1;
    }

    /// Counts blocks that were written.
    pub(super) const fn wrote(&mut self, bypass: bool, blocks: u64) {
        let place = if bypass { &mut self.bypassed_writes } else { &mut self.writes };
        *place += blocks;
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.hits += more.hits;
        self.tier_hits += more.tier_hits;
        self.zero_hits += more.zero_hits;
        self.misses += more.misses;
        self.bypassed_reads += more.bypassed_reads;
        self.writes += more.writes;
        self.bypassed_writes += more.bypassed_writes;
    }

    /// Blocks read that the cache had, on the device, in memory or as zeroes.
    #[must_use]
    pub const fn all_hits(&self) -> u64 {
        self.hits + self.tier_hits + self.zero_hits
    }

    /// Blocks read.
    #[must_use]
    pub const fn reads(&self) -> u64 {
        self.all_hits() + self.misses + self.bypassed_reads
    }
}

/// Counts since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks of hosts, over all volumes, those that have left included.
    pub blocks: BlockCounts,
    /// Blocks that entered the cache by a miss.
    pub fills: u64,
    /// Bytes of host data placed in the journal.
    pub host_bytes: u64,
    /// Bytes written to the cache device by the journal, fill and reinsert logs, headers included.
    pub log_bytes: [u64; 3],
    /// Bytes of footers written.
    pub footer_bytes: u64,
    /// Bytes of free marks written.
    pub mark_bytes: u64,
    /// Blocks destaged.
    pub destaged: u64,
    /// Reads of the cache device whose data was not what was written.
    pub bad_reads: u64,
    /// Footers that could not be read back.
    pub lost_footers: u64,
    /// Errors of the cache device.
    pub cache_errors: u64,
    /// Times that a request waited for room in the log.
    pub stalls: u64,
    /// Writes delayed near the dirty bound.
    pub throttled: u64,
    /// Blocks that the index had no place for (never, by its bounds).
    pub index_full: u64,
}

/// The state of an engine.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// Counts.
    pub counts: Counts,
    /// The memory tier's.
    pub tier: TierStats,
    /// Pages in the memory tier.
    pub tier_pages: u64,
    /// The policy's.
    pub policy: PolicyStats,
    /// Dirty bytes.
    pub dirty_bytes: u64,
    /// Dirty bytes allowed.
    pub dirty_limit: u64,
    /// Age of the oldest dirty data. What was dirty before this engine was made is older than it
    /// says: records carry no time, so that its age counts from recovery.
    pub oldest_dirty: Option<Duration>,
    /// Whether the oldest dirty data is from before this engine was made.
    pub oldest_recovered: bool,
    /// Segments, and free ones.
    pub segments: u64,
    /// Free segments.
    pub free_segments: u64,
    /// Segments reclaimed, blocks moved and evicted by it.
    pub reclaimed: [u64; 3],
    /// Blocks in the index.
    pub cached_blocks: u64,
    /// Segments whose blocks are still to come back into the index after a start.
    pub warming: u64,
    /// Bytes written to backing devices by destage.
    pub destaged_bytes: u64,
    /// Backing writes that destage keeps in flight.
    pub destage_window: usize,
    /// Since when and why the cache device counts as failed.
    pub cache_failed: Option<(Instant, DeviceError)>,
    /// When the oldest operation of the cache device that is under way began, once that is
    /// [`SILENT`] ago (or [`Limits::op_timeout`](super::Limits::op_timeout), if that is less).
    pub cache_hanging: Option<Instant>,
    /// Bytes of memory of index, folds, policy, hazards and tier, pages not included.
    pub memory_bytes: u64,
    /// Requests in the engine.
    pub requests: u64,
}

/// The state of a volume.
#[derive(Clone, Debug)]
pub struct VolumeStats {
    /// Its mode now.
    pub mode: CacheMode,
    /// Where a switch goes; the same as `mode` while there is none.
    pub target: CacheMode,
    /// Blocks that its hosts read and wrote since it was added.
    pub blocks: BlockCounts,
    /// Bytes destaged since it was added: no longer dirty, as the backing device has flushed them.
    pub destaged_bytes: u64,
    /// Bytes of it that the cache has, dirty ones included.
    pub cached_bytes: u64,
    /// Bytes that are pinned, in the cache or not.
    pub pinned_bytes: u64,
    /// Dirty bytes in the cache: what a drain or a switch has left to do.
    pub dirty_bytes: u64,
    /// Ranges of zeroes that wait for destage.
    pub zero_ranges: u64,
    /// Dirty bytes that cannot be read back.
    pub lost_bytes: u64,
    /// Of them, those that are wrong on a cache device that works.
    pub damaged_bytes: u64,
    /// Clean blocks whose copy in the cache was wrong since the volume was added: never served,
    /// dropped, and read from the backing device.
    pub healed: u64,
    /// What holds of the backing device in write-back-ordered; `None` in other modes.
    pub order: Option<super::order::OrderState>,
    /// Bytes of versions that were replaced and wait for their batch.
    pub kept_bytes: u64,
    /// Its ordered journal, if it has one.
    pub order_journal: Option<super::order::OrderJournalStats>,
    /// Whether a drain is under way.
    pub draining: bool,
    /// Last committed number.
    pub committed: Lsn,
    /// Last number given out.
    pub last: Lsn,
    /// Since when and why the backing device fails.
    pub backing_failing: Option<(Instant, DeviceError)>,
    /// The same of the operations of the backing device, as of the engine's last poll.
    pub backing_hanging: Option<Instant>,
    /// Errors of the backing device.
    pub backing_errors: u64,
    /// Requests in the engine.
    pub requests: u64,
    /// Operations on the backing device under way.
    pub backing_ops: u64,
}

/// An operation without an answer for this long makes its device one that hangs, to whoever looks:
/// no device that works takes as long, the failover of a path included, and Linux hosts wait for
/// 30 s before they abort a command and reset the controller, so that there is time to act.
/// (What the engine does about it is a matter of [`Limits::op_timeout`](super::Limits::op_timeout).)
pub const SILENT: Duration = Duration::from_secs(5);

impl<B: Buf> Engine<B> {
    /// When the oldest operation under way on a device began, a volume's backing device or the
    /// cache device, if it has been silent for long. Takes time in proportion to the operations.
    fn silent(&self, backing: Option<u16>, now: Instant) -> Option<Instant> {
        self.silence(backing, false, now)
    }

    /// The same of a volume's ordered journal.
    pub(super) fn journal_silent(&self, place: u16, now: Instant) -> Option<Instant> {
        self.silence(Some(place), true, now)
    }

    fn silence(&self, backing: Option<u16>, journal: bool, now: Instant) -> Option<Instant> {
        let theirs = |under: &&Under| under.backing == backing && under.journal == journal;
        let ops = self.ops.iter().filter(theirs);
        let after = SILENT.min(self.limits.op_timeout);
        ops.map(|under| under.started).min().filter(|at| now.since(*at) >= after)
    }

    /// The engine's state.
    #[must_use]
    pub fn stats(&self, now: Instant) -> EngineStats {
        let oldest = self.segs.oldest_dirty();
        let began = self.began.unwrap_or(now);
        EngineStats {
            counts: self.stats,
            tier: self.tier.stats(),
            tier_pages: self.tier.len() as u64,
            policy: self.policy.stats(),
            dirty_bytes: self.dirty * BLOCK,
            dirty_limit: self.dirty_limit(),
            oldest_dirty: oldest.map(|at| now.since(at.max(began))),
            oldest_recovered: oldest.is_some_and(|at| at < began),
            segments: self.segs.len() as u64,
            free_segments: self.segs.free_count() as u64,
            reclaimed: [self.reclaim.segments, self.reclaim.moved, self.reclaim.evicted],
            cached_blocks: self.index.len() as u64,
            warming: self.warm.left(),
            destaged_bytes: self.destage.bytes,
            destage_window: self.destage.window(),
            cache_failed: self.cache_failed,
            cache_hanging: self.silent(None, now),
            memory_bytes: (self.index.memory_bytes()
                + self.folds.memory_bytes()
                + self.policy.memory_bytes()
                + self.hold.memory_bytes()
                + self.backing.memory_bytes()
                + self.tier.memory_bytes()) as u64,
            requests: self.reqs.len() as u64,
        }
    }

    /// A volume's state.
    #[must_use]
    pub fn volume_stats(&self, id: VolumeId) -> Option<VolumeStats> {
        let place = self.vols.find(id)?;
        let vol = self.vols.get(place)?;
        Some(VolumeStats {
            mode: vol.mode,
            target: vol.target,
            blocks: vol.blocks,
            destaged_bytes: vol.destaged * BLOCK,
            cached_bytes: self.cached_of(vol.index) * BLOCK,
            pinned_bytes: vol.share.pinned() * BLOCK,
            dirty_bytes: vol.dirty * BLOCK,
            zero_ranges: vol.ranges.len() as u64,
            lost_bytes: self.lost_blocks(vol) * BLOCK,
            damaged_bytes: vol.lost_blocks * BLOCK,
            healed: vol.healed,
            order: vol.order_state(),
            kept_bytes: vol.order.as_ref().map_or(0, |order| order.kept()) * BLOCK,
            order_journal: self.journal_stats(place),
            draining: vol.draining,
            committed: Lsn(vol.committed),
            last: Lsn(vol.next_lsn - 1),
            backing_failing: vol.health.failing,
            backing_hanging: self.silent(Some(place), self.last_poll),
            backing_errors: vol.health.errors,
            requests: vol.requests,
            backing_ops: vol.backing_ops,
        })
    }

    /// Dirty blocks that cannot be read back: damaged ones, or, once the cache device has failed,
    /// all that the memory tier does not have as well. Takes time in proportion to the tier then.
    fn lost_blocks(&self, vol: &Volume) -> u64 {
        if self.cache_failed.is_none() {
            return vol.lost_blocks;
        }
        let dirty = |key: &Key| {
            let entry = self.index.get(*key);
            entry.is_some_and(|e| e.flags.dirty() && e.flags.spare() & spare::BAD == 0)
        };
        let saved = self.tier.keys().filter(|key| key.volume() == vol.index).filter(dirty).count();
        vol.dirty.saturating_sub(saved as u64)
    }

    /// Why a volume does not do what one might expect of it now, in words; `None` while all is well.
    #[must_use]
    pub fn cause(&self, id: VolumeId, now: Instant) -> Option<String> {
        let place = self.vols.find(id)?;
        let vol = self.vols.get(place)?;
        let since = |at: Instant| now.since(at).as_secs();
        if let Some((at, error)) = self.cache_failed {
            return Some(format!("the cache device failed {} s ago: {error}", since(at)));
        }
        if let Some(at) = self.silent(Some(place), now) {
            return Some(format!("the backing device has not answered for {} s", since(at)));
        }
        if let Some((at, error)) = vol.health.failing {
            return Some(format!(
                "the backing device fails since {} s: {error}; {} KiB are kept dirty in the cache",
                since(at),
                vol.dirty * BLOCK / 1024
            ));
        }
        let journal = self.journal_stats(place);
        if let Some((at, error)) = journal.and_then(|journal| journal.failing) {
            return Some(format!(
                "the ordered journal fails since {} s: {error}; no batch is destaged meanwhile, {} KiB are \
                 kept dirty in the cache",
                since(at),
                vol.dirty * BLOCK / 1024
            ));
        }
        if let Some(at) = journal.and_then(|journal| journal.hanging) {
            return Some(format!("the ordered journal has not answered for {} s", since(at)));
        }
        if vol.lost_blocks > 0 {
            return Some(format!("{} dirty blocks cannot be read back", vol.lost_blocks));
        }
        if let Some(at) = self.silent(None, now) {
            return Some(format!("the cache device has not answered for {} s", since(at)));
        }
        if self.dirty_level() >= 1000 {
            return Some("the cache is full of dirty data; writes wait for destage".to_owned());
        }
        None
    }
}
