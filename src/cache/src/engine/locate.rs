//! Which copy of a block is current: for operators who want to know where their data is.

use super::Engine;
use super::volume::spare;
use forebay_io::{Buf, VolumeId};

/// Where the current copy of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyAt {
    /// Only in the cache.
    Dirty,
    /// In the cache and on the backing device.
    Clean,
    /// On the backing device.
    Backing,
    /// In the cache alone, and it cannot be read back: it is damaged, or the device failed.
    Lost,
}

/// A run of cache blocks that agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First cache block.
    pub block: u64,
    /// Cache blocks.
    pub blocks: u64,
    /// Where the current copy is.
    pub copy: CopyAt,
    /// Whether the memory tier has it as well.
    pub in_memory: bool,
}

impl<B: Buf> Engine<B> {
    /// Where the blocks `first..first + blocks` of a volume are, in at most `places` runs.
    #[must_use]
    pub fn locate(&self, id: VolumeId, first: u64, blocks: u64, places: usize) -> Vec<Place> {
        let mut found: Vec<Place> = Vec::new();
        let Some(at) = self.vols.find(id) else { return found };
        let Some(vol) = self.vols.get(at) else { return found };
        let failed = self.cache_failed.is_some();
        for block in first..first.saturating_add(blocks).min(vol.size.div_ceil(super::BLOCK)) {
            let Some(key) = self.vols.key(at, block) else { break };
            let in_memory = vol.caching && self.tier.contains(key);
            let copy = match self.index.get(key) {
                _ if !vol.caching => CopyAt::Backing,
                Some(entry) if entry.flags.spare() & spare::BAD != 0 => {
                    // A clean one is not read any more.
                    if entry.flags.dirty() { CopyAt::Lost } else { CopyAt::Backing }
                }
                // Of a failed device there is only what the memory tier has.
                Some(entry) if failed && !in_memory => {
                    if entry.flags.dirty() {
                        CopyAt::Lost
                    } else {
                        CopyAt::Backing
                    }
                }
                Some(entry) if entry.flags.dirty() => CopyAt::Dirty,
                Some(_) => CopyAt::Clean,
                None if vol.ranges.get(block).is_some_and(|range| range.dirty) => CopyAt::Dirty,
                None => CopyAt::Backing,
            };
            let full = found.len() == places;
            match found.last_mut() {
                Some(last) if (last.copy, last.in_memory) == (copy, in_memory) => last.blocks += 1,
                _ if full => break,
                _ => found.push(Place { block, blocks: 1, copy, in_memory }),
            }
        }
        found
    }
}
