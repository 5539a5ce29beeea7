//! What deserves a place: admission of misses and what happens to a block when its segment is
//! reclaimed. A volume has a policy of its own; the engine only asks.
//!
//! Segments are reclaimed in the order of their making, so S3-FIFO's two queues appear as two
//! decisions. Reclaim: a block that was read again since is copied forward (its second chance, at a
//! frequency of one less), the others are let go and remembered by the ghost. Admission: while the
//! cache has room everything enters; once it is full, a block that the ghost remembers enters at
//! once, and of those never seen before only a share enters, in proportion to how many of the last
//! misses the ghost remembered. So a scan can take little, while a working set that comes back is
//! taken in quickly.

use crate::ghost::Ghost;
use crate::index::{Flags, Key};

#[cfg(test)]
mod tests;

/// Which policy, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// As the module describes.
    #[default]
    S3Fifo,
    /// Every miss enters and nothing is copied forward: plain first in, first out.
    Fifo,
    /// Misses never enter; only writes do.
    WriteOnly,
}

/// How much room there is, as the engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Segments are free that never held data, or more than the reserve is.
    Free,
    /// A new block costs an old one its place.
    Full,
}

/// What to do with a miss's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Fill.
    Admit,
    /// Serve it and forget it.
    Bypass,
}

/// What to do with a live clean block of a segment that is reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Copy it forward with these flags, if the reinsertion budget lasts (else let it go).
    Reinsert(Flags),
    /// Let it go.
    Evict,
}

/// Decisions and their memory for one volume, or for several that share one.
pub struct Policy {
    kind: PolicyKind,
    ghost: Ghost,
    /// Moving average of the share of misses that the ghost remembered, in [`ONE`]ths.
    known_share: u32,
    /// Accumulated share, from which whole admissions are taken: no randomness needed.
    credit: u32,
    stats: PolicyStats,
}

/// Decisions since a policy was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    /// Misses admitted.
    pub admitted: u64,
    /// Misses not admitted.
    pub bypassed: u64,
    /// Misses that the ghost remembered.
    pub ghost_hits: u64,
    /// Blocks let go.
    pub evicted: u64,
    /// Blocks copied forward.
    pub reinserted: u64,
}

/// The whole, for shares.
const ONE: u32 = 1 << 16;
/// At least this share of unknown misses is admitted, or nothing could ever prove its worth.
const LEAST_SHARE: u32 = ONE / 16;
/// Weight of one miss in the moving average: 1/256, so that a scan is noticed within 1 MiB.
const AVERAGE_SHIFT: u32 = 8;

impl Policy {
    /// A policy that remembers about `ghost_blocks` blocks that it let go or did not admit, in
    /// 2.5 bytes each.
    #[must_use]
    pub fn new(kind: PolicyKind, ghost_blocks: usize) -> Self {
        let ghost_blocks = if kind == PolicyKind::S3Fifo { ghost_blocks } else { 0 };
        Self {
            kind,
            ghost: Ghost::new(ghost_blocks),
            known_share: 0,
            credit: 0,
            stats: PolicyStats::default(),
        }
    }

    /// Whether a miss's data enters the cache. `sequential`: it belongs to a long stream.
    pub fn on_miss(&mut self, key: Key, sequential: bool, room: Room) -> Admission {
        let admit = match self.kind {
            PolicyKind::WriteOnly => false,
            _ if sequential => false,
            PolicyKind::Fifo => true,
            PolicyKind::S3Fifo => {
                // Asked first in any case: what is remembered and enters is taken off the list.
                let known = self.ghost.take(key);
                let sample = if known { ONE >> AVERAGE_SHIFT } else { 0 };
                self.known_share = self.known_share - (self.known_share >> AVERAGE_SHIFT) + sample;
                self.stats.ghost_hits += u64::from(known);
                let admit = known || room == Room::Free || self.spend_credit();
                if !admit {
                    self.ghost.insert(key);
                }
                admit
            }
        };
        if admit {
            self.stats.admitted += 1;
            Admission::Admit
        } else {
            self.stats.bypassed += 1;
            Admission::Bypass
        }
    }

    /// What becomes of a live clean block when its segment is reclaimed. `budget` says whether the
    /// engine can still afford to copy a block.
    pub fn on_reclaim(&mut self, key: Key, flags: Flags, budget: bool) -> Reclaim {
        let reused = flags.freq() > 0;
        if reused && budget && self.kind == PolicyKind::S3Fifo {
            self.stats.reinserted += 1;
            return Reclaim::Reinsert(flags.with_freq(flags.freq() - 1));
        }
        self.stats.evicted += 1;
        self.ghost.insert(key);
        Reclaim::Evict
    }

    /// The kind it was made as.
    #[must_use]
    pub const fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Counts since it was made.
    #[must_use]
    pub const fn stats(&self) -> PolicyStats {
        self.stats
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.ghost.memory_bytes()
    }

    /// Admits the present share evenly: adds it each time, and takes a whole when there is one.
    fn spend_credit(&mut self) -> bool {
        let share = self.known_share.clamp(LEAST_SHARE, ONE);
        self.credit += share;
        let whole = self.credit >= ONE;
        if whole {
            self.credit -= ONE;
        }
        whole
    }
}
