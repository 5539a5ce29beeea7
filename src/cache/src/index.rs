//! The exact map from a cached block to its slot: 8-byte entries in 64-byte buckets.
//!
//! A key of 48 bits goes through an invertible permutation whose high part selects a bucket and
//! whose low part, the remainder, is stored; so the key itself is never stored and a hit is never
//! false. Each key has two buckets; where both are full, entries are moved to their other bucket,
//! and what finds no place at all goes to a small stash. A lookup reads at most two cache lines.

use core::fmt;

mod perm;
#[cfg(test)]
mod tests;

use perm::Permutation;

/// Bits of a volume's index inside its shard.
pub const VOLUME_BITS: u32 = 12;
/// Bits of a cache block number.
pub const BLOCK_BITS: u32 = 36;
/// Bits of a [`Key`].
const KEY_BITS: u32 = VOLUME_BITS + BLOCK_BITS;
/// Bits of [`Flags`].
const FLAG_BITS: u32 = 6;
/// Entries of a bucket: one cache line.
const WAYS: usize = 8;
/// Entries that found no place in either bucket. Tests show it empty at the stated capacity.
const STASH: usize = 64;
/// Filled entries of each ten thousand at the stated capacity.
const LOAD: u64 = 9_300;
/// Most slots of one index (30 bits).
pub const MAX_SLOTS: u64 = 1 << 30;

/// A cached block's name inside a shard: the volume's index there and the cache block number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of `block` of the shard's volume number `volume`; `None` where the volume does not
    /// fit [`VOLUME_BITS`] or the block does not fit [`BLOCK_BITS`].
    #[must_use]
    pub fn new(volume: u16, block: u64) -> Option<Self> {
        (u32::from(volume) >> VOLUME_BITS == 0 && block >> BLOCK_BITS == 0)
            .then_some(Self((u64::from(volume) << BLOCK_BITS) | block))
    }

    /// The volume's index in its shard.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "12 bits remain")]
    pub const fn volume(self) -> u16 {
        (self.0 >> BLOCK_BITS) as u16
    }

    /// The cache block number.
    #[must_use]
    pub const fn block(self) -> u64 {
        self.0 & ((1 << BLOCK_BITS) - 1)
    }

    /// All 48 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// What is noted beside a slot: dirty, how often it was read (0 to 3), and spare bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Clean and never read again.
    pub const NONE: Self = Self(0);
    /// The highest frequency that is counted.
    pub const MAX_FREQ: u8 = 3;
    const DIRTY: u8 = 4;
    const SPARE_SHIFT: u32 = 3;

    /// Whether the backing store does not hold this data yet.
    #[must_use]
    pub const fn dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// The same with the dirty bit set as said.
    #[must_use]
    pub const fn with_dirty(self, dirty: bool) -> Self {
        Self(self.0 & !Self::DIRTY | if dirty { Self::DIRTY } else { 0 })
    }

    /// Reads since it was placed, saturating at [`Flags::MAX_FREQ`].
    #[must_use]
    pub const fn freq(self) -> u8 {
        self.0 & Self::MAX_FREQ
    }

    /// The same with this frequency, capped.
    #[must_use]
    pub const fn with_freq(self, freq: u8) -> Self {
        let freq = if freq > Self::MAX_FREQ { Self::MAX_FREQ } else { freq };
        Self(self.0 & !Self::MAX_FREQ | freq)
    }

    /// The three spare bits, the engine's own.
    #[must_use]
    pub const fn spare(self) -> u8 {
        self.0 >> Self::SPARE_SHIFT
    }

    /// The same with these spare bits; bits beyond the third are dropped.
    #[must_use]
    pub const fn with_spare(self, spare: u8) -> Self {
        Self(self.0 & (Self::MAX_FREQ | Self::DIRTY) | ((spare & 7) << Self::SPARE_SHIFT))
    }
}

/// Where a block is and what is noted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The slot inside the shard.
    pub slot: u32,
    /// Dirty, frequency, spare bits.
    pub flags: Flags,
}

/// Why an index cannot be made or cannot take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexError {
    /// The capacity is zero or above [`MAX_SLOTS`].
    Capacity(u64),
    /// Slots up to this one need more bits than an entry has left beside the remainder.
    MaxSlot(u32),
    /// The stated capacity is reached, or no place was found; nothing changed.
    Full,
    /// The slot is above the greatest slot that was stated; nothing changed.
    Slot(u32),
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(slots) => {
                write!(f, "an index of {slots} slots; it takes 1 to {MAX_SLOTS}")
            }
            Self::MaxSlot(slot) => {
                write!(f, "slots up to {slot} do not fit the entries of so small an index")
            }
            Self::Full => f.write_str("the index is full"),
            Self::Slot(slot) => write!(f, "slot {slot} is above the greatest stated slot"),
        }
    }
}

impl core::error::Error for IndexError {}

/// One cache line of entries; 0 is an empty entry.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket([u64; WAYS]);

/// Where an entry is.
#[derive(Clone, Copy)]
enum Place {
    Bucket(usize, usize),
    Stash(usize),
}

/// One of a key's two candidate positions: the bucket and the upper part of the entry there.
#[derive(Clone, Copy)]
struct Home {
    bucket: usize,
    tag: u64,
}

/// The exact map from [`Key`] to slot and [`Flags`]. See the module's description.
///
/// An entry, from the lowest bit: slot, flags, present, choice of bucket, remainder.
pub struct Index {
    buckets: Vec<Bucket>,
    stash: Vec<(Key, Entry)>,
    permutation: Permutation,
    count: u64,
    shift: u32,
    slot_bits: u32,
    tag_mask: u64,
    len: usize,
    /// Entries of each volume, by its index.
    of_volume: Box<[u32]>,
    capacity: usize,
    max_slot: u32,
}

impl Index {
    /// An index for up to `capacity_slots` entries with slots 0 to `max_slot`. Allocates about
    /// 8.9 bytes a slot; never again later. The seed scatters the keys.
    ///
    /// # Errors
    /// [`IndexError::Capacity`] or [`IndexError::MaxSlot`].
    pub fn new(capacity_slots: u64, max_slot: u32, seed: u64) -> Result<Self, IndexError> {
        let capacity = usize::try_from(capacity_slots)
            .ok()
            .filter(|_| (1..=MAX_SLOTS).contains(&capacity_slots))
            .ok_or(IndexError::Capacity(capacity_slots))?;
        let count = (capacity_slots * 10_000).div_ceil(WAYS as u64 * LOAD);
        let shift = count.ilog2();
        let slot_bits = 32 - max_slot.leading_zeros();
        // Remainder, choice and present bits stand above slot and flags.
        if KEY_BITS - shift + 2 + FLAG_BITS + slot_bits > u64::BITS {
            return Err(IndexError::MaxSlot(max_slot));
        }
        let buckets = usize::try_from(count).map_err(|_| IndexError::Capacity(capacity_slots))?;
        Ok(Self {
            buckets: vec![Bucket([0; WAYS]); buckets],
            stash: Vec::with_capacity(STASH),
            permutation: Permutation::new(seed),
            count,
            shift,
            slot_bits,
            tag_mask: u64::MAX << (slot_bits + FLAG_BITS),
            len: 0,
            of_volume: vec![0; 1 << VOLUME_BITS].into_boxed_slice(),
            capacity,
            max_slot,
        })
    }

    /// Where a block is.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<Entry> {
        self.find(key).map(|place| self.entry_at(place))
    }

    /// Where a block is, counting the read in its frequency. The entry returned is the one before
    /// the count.
    pub fn get_touch(&mut self, key: Key) -> Option<Entry> {
        let place = self.find(key)?;
        let entry = self.entry_at(place);
        // Once saturated the line is not written any more.
        if entry.flags.freq() < Flags::MAX_FREQ {
            let flags = entry.flags.with_freq(entry.flags.freq() + 1);
            self.store(place, Entry { flags, ..entry });
        }
        Some(entry)
    }

    /// Reads the memory that the next calls for these keys will need, so that the processor waits once
    /// and not for each in turn.
    pub fn prefetch(&self, keys: impl Iterator<Item = Key>) {
        let mut seen = 0;
        for [a, b] in keys.map(|key| self.homes(key)) {
            seen ^= self.buckets[a.bucket].0[0] ^ self.buckets[b.bucket].0[0];
        }
        core::hint::black_box(seen);
    }

    /// Maps `key` to `slot`, and says what it was mapped to before.
    ///
    /// # Errors
    /// [`IndexError::Full`] for a new key beyond the capacity, [`IndexError::Slot`].
    pub fn insert(
        &mut self,
        key: Key,
        slot: u32,
        flags: Flags,
    ) -> Result<Option<Entry>, IndexError> {
        if slot > self.max_slot {
            return Err(IndexError::Slot(slot));
        }
        let entry = Entry { slot, flags };
        let homes = self.homes(key);
        if let Some(place) = self.find_in(key, homes) {
            let old = self.entry_at(place);
            self.store(place, entry);
            return Ok(Some(old));
        }
        if self.len >= self.capacity || !self.place_in(key, homes, entry) {
            return Err(IndexError::Full);
        }
        self.len += 1;
        self.of_volume[usize::from(key.volume())] += 1;
        Ok(None)
    }

    /// Forgets a block, and says where it was.
    pub fn remove(&mut self, key: Key) -> Option<Entry> {
        let place = self.find(key)?;
        let entry = self.entry_at(place);
        self.clear(key, place);
        Some(entry)
    }

    /// Forgets a block only if it is still in `slot`; says what was noted of it.
    pub fn remove_if_slot(&mut self, key: Key, slot: u32) -> Option<Flags> {
        let place = self.find(key)?;
        let entry = self.entry_at(place);
        (entry.slot == slot).then(|| {
            self.clear(key, place);
            entry.flags
        })
    }

    /// Changes the flags of a block only if it is still in `slot`; returns the old flags.
    pub fn update_if_slot(
        &mut self,
        key: Key,
        slot: u32,
        change: impl FnOnce(Flags) -> Flags,
    ) -> Option<Flags> {
        let place = self.find(key)?;
        let entry = self.entry_at(place);
        (entry.slot == slot).then(|| {
            self.store(place, Entry { slot, flags: change(entry.flags) });
            entry.flags
        })
    }

    /// Calls `keep` for every entry and forgets those for which it says no. Takes time in
    /// proportion to the whole index: for attaching, detaching and checks, not for the data path.
    pub fn retain(&mut self, keep: impl FnMut(Key, Entry) -> bool) {
        let all = self.retain_some(0, usize::MAX, keep);
        debug_assert!(all.is_none());
    }

    /// [`Index::retain`] for some buckets from bucket `from` on, so that the work can be spread over
    /// polls. Returns where to go on, or `None` at the end. Entries move between buckets when others
    /// come: a pass in parts may miss some.
    pub fn retain_some(
        &mut self,
        from: usize,
        buckets: usize,
        mut keep: impl FnMut(Key, Entry) -> bool,
    ) -> Option<usize> {
        let end = from.saturating_add(buckets).min(self.buckets.len());
        for bucket in from..end {
            for way in 0..WAYS {
                let raw = self.buckets[bucket].0[way];
                if raw == 0 {
                    continue;
                }
                let key = self.key_of(bucket, raw);
                if !keep(key, self.unpack(raw)) {
                    self.buckets[bucket].0[way] = 0;
                    self.len -= 1;
                    self.of_volume[usize::from(key.volume())] -= 1;
                }
            }
        }
        if end < self.buckets.len() {
            return Some(end);
        }
        let Self { stash, len, of_volume, .. } = self;
        stash.retain(|(key, entry)| {
            let stays = keep(*key, *entry);
            *len -= usize::from(!stays);
            of_volume[usize::from(key.volume())] -= u32::from(!stays);
            stays
        });
        None
    }

    /// Calls `visit` for every entry, in an order that depends only on the history of changes.
    pub fn for_each(&self, mut visit: impl FnMut(Key, Entry)) {
        for (number, bucket) in self.buckets.iter().enumerate() {
            for raw in bucket.0.into_iter().filter(|raw| *raw != 0) {
                visit(self.key_of(number, raw), self.unpack(raw));
            }
        }
        self.stash.iter().for_each(|(key, entry)| visit(*key, *entry));
    }

    /// Entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Entries of one volume, by its index in the shard; 0 where no volume can have that index.
    #[must_use]
    pub fn volume_len(&self, volume: u16) -> u64 {
        self.of_volume.get(usize::from(volume)).copied().map_or(0, u64::from)
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries it certainly takes.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Entries that found no place in a bucket (shown in statistics; each lookup reads them).
    #[must_use]
    pub const fn stashed(&self) -> usize {
        self.stash.len()
    }

    /// Bytes of memory, all included.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.buckets.len() * size_of::<Bucket>()
            + self.of_volume.len() * size_of::<u32>()
            + STASH * size_of::<(Key, Entry)>()
    }

    /// The bucket and tag of a permuted key for one of the two choices.
    ///
    /// `bucket = permuted · count / 2^48`. Keys of one bucket differ by multiples of `count` in the
    /// fraction, so that its bits from `shift = ⌊log2 count⌋` upwards tell them apart: no division.
    #[inline]
    fn home(&self, permuted: u64, choice: u64) -> Home {
        let product = u128::from(permuted) * u128::from(self.count);
        let bucket = (product >> KEY_BITS) as usize;
        #[expect(clippy::cast_possible_truncation, reason = "masked to 48 bits")]
        let fraction = (product as u64) & ((1 << KEY_BITS) - 1);
        let remainder = fraction >> self.shift;
        let tag = (remainder << 2) | (choice << 1) | 1;
        Home { bucket, tag: tag << (self.slot_bits + FLAG_BITS) }
    }

    /// The two homes of a key.
    #[inline]
    fn homes(&self, key: Key) -> [Home; 2] {
        let first = self.permutation.first(key.0);
        [self.home(first, 0), self.home(self.permutation.second(first), 1)]
    }

    /// Where a key is, whose homes are known.
    #[inline]
    fn find_in(&self, key: Key, homes: [Home; 2]) -> Option<Place> {
        if let Some(place) = homes.into_iter().find_map(|home| self.find_at(home)) {
            return Some(place);
        }
        self.stash.iter().position(|(stashed, _)| *stashed == key).map(Place::Stash)
    }

    #[inline]
    fn find(&self, key: Key) -> Option<Place> {
        let first = self.permutation.first(key.0);
        if let Some(place) = self.find_at(self.home(first, 0)) {
            return Some(place);
        }
        if let Some(place) = self.find_at(self.home(self.permutation.second(first), 1)) {
            return Some(place);
        }
        if self.stash.is_empty() {
            return None;
        }
        self.stash.iter().position(|(stashed, _)| *stashed == key).map(Place::Stash)
    }

    #[inline]
    fn find_at(&self, home: Home) -> Option<Place> {
        let entries = &self.buckets[home.bucket].0;
        entries
            .iter()
            .position(|raw| raw & self.tag_mask == home.tag)
            .map(|way| Place::Bucket(home.bucket, way))
    }

    const fn unpack(&self, raw: u64) -> Entry {
        #[expect(clippy::cast_possible_truncation, reason = "masked to the widths of the fields")]
        Entry {
            slot: (raw & ((1 << self.slot_bits) - 1)) as u32,
            flags: Flags(((raw >> self.slot_bits) & ((1 << FLAG_BITS) - 1)) as u8),
        }
    }

    fn pack(&self, tag: u64, entry: Entry) -> u64 {
        tag | (u64::from(entry.flags.0) << self.slot_bits) | u64::from(entry.slot)
    }

    fn entry_at(&self, place: Place) -> Entry {
        match place {
            Place::Bucket(bucket, way) => self.unpack(self.buckets[bucket].0[way]),
            Place::Stash(at) => self.stash[at].1,
        }
    }

    fn store(&mut self, place: Place, entry: Entry) {
        match place {
            Place::Bucket(bucket, way) => {
                let tag = self.buckets[bucket].0[way] & self.tag_mask;
                self.buckets[bucket].0[way] = self.pack(tag, entry);
            }
            Place::Stash(at) => self.stash[at].1 = entry,
        }
    }

    fn clear(&mut self, key: Key, place: Place) {
        match place {
            Place::Bucket(bucket, way) => self.buckets[bucket].0[way] = 0,
            Place::Stash(at) => {
                self.stash.swap_remove(at);
            }
        }
        self.len -= 1;
        self.of_volume[usize::from(key.volume())] -= 1;
        // A place became free: the stash shrinks as soon as it can.
        if let Some((key, entry)) = self.stash.pop() {
            let _placed = self.place(key, entry);
        }
    }

    /// The permuted key of an entry, from its bucket and remainder, and the choice it stands for.
    fn permuted_of(&self, bucket: usize, raw: u64) -> (u64, u64) {
        let tag = raw >> (self.slot_bits + FLAG_BITS);
        let (choice, remainder) = ((tag >> 1) & 1, tag >> 2);
        let floor = ((bucket as u128) << KEY_BITS) | (u128::from(remainder) << self.shift);
        #[expect(clippy::cast_possible_truncation, reason = "a permuted key has 48 bits")]
        let permuted = floor.div_ceil(u128::from(self.count)) as u64;
        (permuted, choice)
    }

    fn key_of(&self, bucket: usize, raw: u64) -> Key {
        let (permuted, choice) = self.permuted_of(bucket, raw);
        let first = if choice == 1 { self.permutation.first_of(permuted) } else { permuted };
        Key(self.permutation.key_of(first))
    }

    /// The other home of an entry.
    fn other_home(&self, bucket: usize, raw: u64) -> Home {
        let (permuted, choice) = self.permuted_of(bucket, raw);
        if choice == 0 {
            self.home(self.permutation.second(permuted), 1)
        } else {
            self.home(self.permutation.first_of(permuted), 0)
        }
    }

    fn free_way(&self, bucket: usize) -> Option<usize> {
        self.buckets[bucket].0.iter().position(|raw| *raw == 0)
    }

    /// Puts a key that is not there yet: first bucket, second bucket, after moving others, stash.
    /// The first bucket is preferred to the emptier one so that most hits read one line.
    fn place(&mut self, key: Key, entry: Entry) -> bool {
        self.place_in(key, self.homes(key), entry)
    }

    fn place_in(&mut self, key: Key, homes: [Home; 2], entry: Entry) -> bool {
        let free = homes
            .iter()
            .find_map(|home| self.free_way(home.bucket).map(|way| (*home, way)))
            .or_else(|| {
                homes.iter().find_map(|home| self.make_room(home.bucket).map(|way| (*home, way)))
            })
            .or_else(|| {
                homes
                    .iter()
                    .find_map(|home| self.make_room_deep(home.bucket).map(|way| (*home, way)))
            });
        if let Some((home, way)) = free {
            self.buckets[home.bucket].0[way] = self.pack(home.tag, entry);
            return true;
        }
        let room = self.stash.len() < STASH;
        if room {
            self.stash.push((key, entry));
        }
        room
    }

    /// Moves one entry of a full bucket to its other bucket, if any has room there.
    fn make_room(&mut self, bucket: usize) -> Option<usize> {
        (0..WAYS).find(|way| {
            let raw = self.buckets[bucket].0[*way];
            let other = self.other_home(bucket, raw);
            self.free_way(other.bucket).is_some_and(|free| {
                self.relocate(raw, other, free);
                self.buckets[bucket].0[*way] = 0;
                true
            })
        })
    }

    /// The same with one more step: first makes room in the other bucket of one of the entries.
    fn make_room_deep(&mut self, bucket: usize) -> Option<usize> {
        (0..WAYS).find(|way| {
            let other = self.other_home(bucket, self.buckets[bucket].0[*way]);
            if other.bucket == bucket {
                return false;
            }
            let Some(free) = self.make_room(other.bucket) else { return false };
            // The step may have filled or moved nothing of this bucket: it was full throughout.
            let raw = self.buckets[bucket].0[*way];
            self.relocate(raw, other, free);
            self.buckets[bucket].0[*way] = 0;
            true
        })
    }

    fn relocate(&mut self, raw: u64, to: Home, way: usize) {
        self.buckets[to.bucket].0[way] = self.pack(to.tag, self.unpack(raw));
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .field("buckets", &self.buckets.len())
            .field("stashed", &self.stash.len())
            .finish_non_exhaustive()
    }
}
