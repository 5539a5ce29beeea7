//! Blocks that were let go recently, by a 12-bit fingerprint: two bytes each, no pointers.

use crate::index::Key;

/// Entries of a bucket.
const WAYS: usize = 8;
/// Time is counted in epochs, each as long as it takes to insert an eighth of the capacity.
const EPOCHS_KEPT: u16 = 8;
/// Epochs are kept modulo this.
const EPOCHS: u16 = 16;

/// Recently forgotten keys. A key that was inserted less than about `capacity` insertions ago is
/// found; another one with a probability of about 1 in 500. Bounded; allocates only when made.
pub struct Ghost {
    /// Fingerprint in the upper 12 bits, epoch in the lower 4; a fingerprint is never 0.
    entries: Vec<[u16; WAYS]>,
    epoch: u16,
    inserted: usize,
    hand: usize,
}

impl Ghost {
    /// Remembers about `capacity` keys in two bytes each (and a quarter more room).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let buckets = (capacity + capacity / 4).div_ceil(WAYS);
        Self { entries: vec![[0; WAYS]; buckets], epoch: 0, inserted: 0, hand: 0 }
    }

    /// Remembers a key. In a bucket without room the oldest gives way.
    pub fn insert(&mut self, key: Key) {
        if self.entries.is_empty() {
            return;
        }
        self.tick();
        let (bucket, fingerprint) = self.locate(key);
        let epoch = self.epoch;
        let mut entries = self.entries[bucket];
        let age = |entry: u16| {
            if entry == 0 { u16::MAX } else { (epoch + EPOCHS - entry % EPOCHS) % EPOCHS }
        };
        let at = (0..WAYS)
            .find(|way| entries[*way] >> 4 == fingerprint)
            .or_else(|| (0..WAYS).max_by_key(|way| age(entries[*way])));
        if let Some(at) = at {
            entries[at] = (fingerprint << 4) | epoch;
            self.entries[bucket] = entries;
        }
    }

    /// Whether a key was let go recently; if so it is no longer remembered.
    pub fn take(&mut self, key: Key) -> bool {
        let found = self.find(key);
        if let Some((bucket, way)) = found {
            self.entries[bucket][way] = 0;
        }
        found.is_some()
    }

    /// Whether a key was let go recently.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.find(key).is_some()
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.capacity() * size_of::<[u16; WAYS]>()
    }

    fn find(&self, key: Key) -> Option<(usize, usize)> {
        if self.entries.is_empty() {
            return None;
        }
        let (bucket, fingerprint) = self.locate(key);
        let entries = &self.entries[bucket];
        let way = entries.iter().position(|e| e >> 4 == fingerprint && !self.expired(*e))?;
        Some((bucket, way))
    }

    const fn expired(&self, entry: u16) -> bool {
        (self.epoch + EPOCHS - entry % EPOCHS) % EPOCHS >= EPOCHS_KEPT
    }

    /// The hand passes all buckets once in an epoch or faster and clears what has expired, before
    /// its epoch number comes round again.
    fn tick(&mut self) {
        let entries = self.entries[self.hand];
        for (way, entry) in entries.into_iter().enumerate() {
            if entry != 0 && self.expired(entry) {
                self.entries[self.hand][way] = 0;
            }
        }
        self.hand = (self.hand + 1) % self.entries.len();
        self.inserted += 1;
        if self.inserted >= self.entries.len() {
            self.inserted = 0;
            self.epoch = (self.epoch + 1) % EPOCHS;
        }
    }

    fn locate(&self, key: Key) -> (usize, u16) {
        let mut x = key.bits().wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let buckets = self.entries.len() as u128;
        #[expect(clippy::cast_possible_truncation, reason = "a bucket number, below their count")]
        let bucket = ((u128::from(x) * buckets) >> 64) as usize;
        let fingerprint = (x & 0xfff) as u16;
        (bucket, fingerprint.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u64) -> Key {
        Key::new(0, block).unwrap()
    }

    #[test]
    fn it_remembers_about_its_capacity() {
        let mut ghost = Ghost::new(10_000);
        (0..100_000).for_each(|block| ghost.insert(key(block)));
        let recent = (92_000..100_000).filter(|b| ghost.contains(key(*b))).count();
        let old = (0..80_000).filter(|b| ghost.contains(key(*b))).count();
        assert!(recent > 7_500, "{recent} of 8000 recent keys");
        assert!(old < 80_000 / 300, "{old} of 80000 forgotten keys");
    }

    #[test]
    fn taking_forgets() {
        let mut ghost = Ghost::new(64);
        ghost.insert(key(5));
        assert!(ghost.contains(key(5)) && ghost.take(key(5)));
        assert!(!ghost.contains(key(5)) && !ghost.take(key(5)));
        let mut none = Ghost::new(0);
        none.insert(key(5));
        assert!(!none.contains(key(5)));
    }
}
