//! The memory tier: committed blocks kept in shared buffers in front of the cache device.
//!
//! Eviction is S3-FIFO: new blocks enter a small queue; those read again while in it, and those
//! that come back soon after leaving it, live in the main queue, which gives second chances.

mod queue;
#[cfg(test)]
mod tests;

use crate::ghost::Ghost;
use crate::index::Key;
use queue::{Links, Queue};

/// No page.
const NONE: u32 = u32::MAX;
/// One page in this many is in the small queue, when the tier is full.
const SMALL_SHARE: usize = 10;
/// The highest frequency that is counted.
const MAX_FREQ: u8 = 3;

/// A block in memory: a buffer, perhaps shared with a host's read, and where in it the block is.
struct Page<B> {
    key: Key,
    buf: Option<B>,
    offset: u32,
    hash_next: u32,
    freq: u8,
    main: bool,
}

/// Blocks in memory, by name. Bounded in pages; allocates only when made.
///
/// The tier holds clones of the buffers given to it: where one buffer holds several blocks, all of
/// it stays allocated while one of them is here.
pub struct Tier<B> {
    pages: Vec<Page<B>>,
    links: Links,
    heads: Vec<u32>,
    free: Vec<u32>,
    small: Queue,
    main: Queue,
    ghost: Ghost,
    small_target: usize,
    stats: TierStats,
}

/// What happened in a tier since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Lookups that found the block.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Pages that had to make room.
    pub evictions: u64,
}

impl<B: Clone> Tier<B> {
    /// A tier of up to `pages` blocks; 0 turns it off.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        let size = pages as usize;
        let chains = if size == 0 { 0 } else { size.next_power_of_two() };
        let empty = Key::new(0, 0);
        let pages_vec = empty.map(|key| {
            let page =
                |_| Page { key, buf: None, offset: 0, hash_next: NONE, freq: 0, main: false };
            (0..pages).map(page).collect()
        });
        Self {
            pages: pages_vec.unwrap_or_default(),
            links: Links::new(size),
            heads: vec![NONE; chains],
            free: (0..pages).rev().collect(),
            small: Queue::new(),
            main: Queue::new(),
            ghost: Ghost::new(size),
            small_target: (size / SMALL_SHARE).max(1),
            stats: TierStats::default(),
        }
    }

    /// The buffer that holds a block, and the block's first byte in it. Counts as a read.
    pub fn get(&mut self, key: Key) -> Option<(&B, u32)> {
        let Some(at) = self.find(key) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        let page = &mut self.pages[at as usize];
        page.freq = (page.freq + 1).min(MAX_FREQ);
        page.buf.as_ref().map(|buf| (buf, page.offset))
    }

    /// Whether a block is here. Does not count as a read.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.find(key).is_some()
    }

    /// Puts a block, or replaces its content; makes room where needed.
    pub fn insert(&mut self, key: Key, buf: B, offset: u32) {
        if self.pages.is_empty() {
            return;
        }
        if let Some(at) = self.find(key) {
            let page = &mut self.pages[at as usize];
            page.buf = Some(buf);
            page.offset = offset;
            return;
        }
        let main = self.ghost.take(key);
        if self.free.is_empty() {
            self.evict();
        }
        let Some(at) = self.free.pop() else { return };
        let chain = self.chain(key);
        let hash_next = self.heads[chain];
        self.heads[chain] = at;
        self.pages[at as usize] = Page { key, buf: Some(buf), offset, hash_next, freq: 0, main };
        let queue = if main { &mut self.main } else { &mut self.small };
        queue.push(&mut self.links, at);
    }

    /// Replaces the content of a block only if it is here; says whether it was.
    pub fn replace(&mut self, key: Key, buf: B, offset: u32) -> bool {
        let Some(at) = self.find(key) else { return false };
        let page = &mut self.pages[at as usize];
        page.buf = Some(buf);
        page.offset = offset;
        true
    }

    /// Forgets a block; says whether it was here.
    pub fn invalidate(&mut self, key: Key) -> bool {
        let Some(at) = self.find(key) else { return false };
        self.detach(at);
        true
    }

    /// Forgets `blocks` blocks from `first` on. Takes time in proportion to the smaller of the
    /// range and the tier.
    pub fn invalidate_range(&mut self, volume: u16, first: u64, blocks: u64) {
        if blocks < self.pages.len() as u64 {
            for block in first..first.saturating_add(blocks) {
                if let Some(key) = Key::new(volume, block) {
                    self.invalidate(key);
                }
            }
        } else {
            self.retain(|key| {
                key.volume() != volume || key.block() < first || key.block() - first >= blocks
            });
        }
    }

    /// Forgets the blocks for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(Key) -> bool) {
        for at in 0..self.pages.len() {
            if self.pages[at].buf.is_some() && !keep(self.pages[at].key) {
                self.detach(u32::try_from(at).unwrap_or(NONE));
            }
        }
    }

    /// Gives one page back, for a pool that ran short; says whether there was one.
    pub fn shrink_one(&mut self) -> bool {
        let some = !self.is_empty();
        if some {
            self.evict();
        }
        some
    }

    /// The names of the blocks here, in no order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.pages.iter().filter(|page| page.buf.is_some()).map(|page| page.key)
    }

    /// Blocks here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// Whether no block is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most blocks here.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pages.len()
    }

    /// Hits, misses, evictions.
    #[must_use]
    pub const fn stats(&self) -> TierStats {
        self.stats
    }

    /// Bytes of memory beside the buffers themselves.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.pages.capacity() * size_of::<Page<B>>()
            + self.links.memory_bytes()
            + (self.heads.capacity() + self.free.capacity()) * size_of::<u32>()
            + self.ghost.memory_bytes()
    }

    fn chain(&self, key: Key) -> usize {
        let mixed = key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.heads.len() - 1)
    }

    fn find(&self, key: Key) -> Option<u32> {
        if self.heads.is_empty() {
            return None;
        }
        let mut at = self.heads[self.chain(key)];
        while at != NONE {
            let page = &self.pages[at as usize];
            if page.key == key {
                return Some(at);
            }
            at = page.hash_next;
        }
        None
    }

    /// S3-FIFO: from the small queue while it is above its share, else from the main queue.
    fn evict(&mut self) {
        loop {
            let from_small = self.small.len() >= self.small_target || self.main.is_empty();
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let Some(at) = queue.front() else { return };
            let page = &mut self.pages[at as usize];
            if page.freq == 0 {
                if from_small {
                    self.ghost.insert(page.key);
                }
                self.stats.evictions += 1;
                self.detach(at);
                return;
            }
            queue.remove(&mut self.links, at);
            page.freq = if from_small { 0 } else { page.freq - 1 };
            page.main = true;
            self.main.push(&mut self.links, at);
        }
    }

    /// Takes a page out of its queue and its hash chain and frees it.
    fn detach(&mut self, at: u32) {
        let chain = self.chain(self.pages[at as usize].key);
        let next = self.pages[at as usize].hash_next;
        if self.heads[chain] == at {
            self.heads[chain] = next;
        } else {
            let mut before = self.heads[chain];
            while before != NONE && self.pages[before as usize].hash_next != at {
                before = self.pages[before as usize].hash_next;
            }
            if before != NONE {
                self.pages[before as usize].hash_next = next;
            }
        }
        let page = &mut self.pages[at as usize];
        page.buf = None;
        let queue = if page.main { &mut self.main } else { &mut self.small };
        queue.remove(&mut self.links, at);
        self.free.push(at);
    }
}
