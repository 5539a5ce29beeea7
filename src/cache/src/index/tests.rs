use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SEEDS: [u64; 4] = [0, 1, 0xdead_beef, u64::MAX];

fn key(volume: u16, block: u64) -> Key {
    Key::new(volume, block).unwrap()
}

/// Fills to the stated capacity, checks all, empties to half, refills, checks all.
fn fill_and_check(capacity: u64, seed: u64, name: &str, keys: impl Fn(u64) -> Key) {
    let top = u32::try_from(capacity - 1).unwrap();
    let mut index = Index::new(capacity, top, seed).unwrap();
    let slot = |i: u64| u32::try_from(i % capacity).unwrap();
    for i in 0..capacity {
        let put = index.insert(keys(i), slot(i), Flags::NONE);
        assert_eq!(put, Ok(None), "{name}, seed {seed}, capacity {capacity}, entry {i}");
    }
    assert_eq!(index.insert(keys(capacity), 0, Flags::NONE), Err(IndexError::Full));
    // Replace each entry in turn, as reclaiming the oldest segments does: one turnover.
    for i in 0..capacity {
        assert_eq!(index.remove(keys(i)).map(|e| e.slot), Some(slot(i)));
        let put = index.insert(keys(capacity + i), slot(i), Flags::NONE.with_dirty(true));
        assert_eq!(put, Ok(None), "{name}, seed {seed}, capacity {capacity}, turnover {i}");
    }
    for i in 0..capacity {
        assert_eq!(index.get(keys(i)), None);
        let entry = index.get(keys(capacity + i)).unwrap();
        assert_eq!((entry.slot, entry.flags.dirty()), (slot(i), true));
    }
    assert_eq!(index.len() as u64, capacity);
    if capacity >= 1000 {
        assert_eq!(index.stashed(), 0, "{name}, seed {seed}, capacity {capacity}");
        assert!(index.memory_bytes() as u64 <= capacity * 9 + 2048 + 4 * 4096);
    }
}

#[test]
fn it_takes_its_stated_capacity_of_adversarial_keys() {
    for seed in SEEDS {
        for capacity in [1, 2, 7, 8, 100, 1000, 70_000] {
            fill_and_check(capacity, seed, "sequential", |i| key(0, i));
            fill_and_check(capacity, seed, "volumes", |i| {
                key(u16::try_from(i % 4096).unwrap(), i / 4096)
            });
            fill_and_check(capacity, seed, "stride 2^12", |i| {
                key(7, (i << 12) & 0xf_ffff_ffff | i >> 24)
            });
            fill_and_check(capacity, seed, "stride 2^24", |i| {
                key(4095, (i << 24) & 0xf_ffff_ffff | i >> 12)
            });
            fill_and_check(capacity, seed, "bit reversed", |i| key(1, (i << 28).reverse_bits()));
        }
    }
}

#[test]
fn four_million_sequential_keys_at_nine_bytes_each() {
    fill_and_check(1 << 22, 3, "sequential", |i| key(3, i));
}

#[test]
fn widths_are_checked_when_it_is_made() {
    assert_eq!(Index::new(0, 0, 1).unwrap_err(), IndexError::Capacity(0));
    assert!(matches!(Index::new(MAX_SLOTS + 1, 0, 1), Err(IndexError::Capacity(_))));
    assert!(matches!(Index::new(8, u32::MAX, 1), Err(IndexError::MaxSlot(_))));
    let mut index = Index::new(8, 100, 1).unwrap();
    assert_eq!(index.insert(key(0, 0), 101, Flags::NONE), Err(IndexError::Slot(101)));
    assert_eq!(index.len(), 0);
    // The greatest index, without allocating it: its fields must fit.
    let count: u64 = (MAX_SLOTS * 10_000).div_ceil(8 * LOAD);
    assert!(48 - count.ilog2() + 2 + FLAG_BITS + 30 <= 64);
}

#[test]
fn keys_and_flags_keep_their_fields_apart() {
    assert!(Key::new(4096, 0).is_none() && Key::new(0, 1 << 36).is_none());
    let k = key(4095, (1 << 36) - 1);
    assert_eq!((k.volume(), k.block(), k.bits()), (4095, (1 << 36) - 1, (1 << 48) - 1));
    let flags = Flags::NONE.with_freq(9).with_spare(5).with_dirty(true);
    assert_eq!((flags.freq(), flags.spare(), flags.dirty()), (3, 5, true));
    let flags = flags.with_dirty(false).with_spare(8).with_freq(1);
    assert_eq!((flags.freq(), flags.spare(), flags.dirty()), (1, 0, false));
}

#[test]
fn touches_saturate_and_changes_need_the_same_slot() {
    let mut index = Index::new(10, 99, 5).unwrap();
    index.insert(key(1, 2), 50, Flags::NONE.with_dirty(true)).unwrap();
    for before in [0, 1, 2, 3, 3] {
        assert_eq!(index.get_touch(key(1, 2)).unwrap().flags.freq(), before);
    }
    assert_eq!(index.update_if_slot(key(1, 2), 51, |f| f.with_dirty(false)), None);
    assert!(index.get(key(1, 2)).unwrap().flags.dirty());
    assert!(index.update_if_slot(key(1, 2), 50, |f| f.with_dirty(false)).unwrap().dirty());
    assert!(!index.get(key(1, 2)).unwrap().flags.dirty());
    assert_eq!(index.remove_if_slot(key(1, 2), 51), None);
    assert!(index.remove_if_slot(key(1, 2), 50).is_some());
    assert!(index.is_empty() && index.get_touch(key(1, 2)).is_none());
}

#[test]
fn the_stash_serves_and_drains() {
    // One bucket and a small stash: entries beyond 8 are only possible by going around `insert`.
    let mut index = Index::new(7, 99, 5).unwrap();
    for i in 0..20u32 {
        assert!(index.place(key(0, u64::from(i)), Entry { slot: i, flags: Flags::NONE }));
        index.len += 1;
        index.of_volume[0] += 1;
    }
    assert_eq!(index.stashed(), 12);
    for i in 0..20u32 {
        assert_eq!(index.get(key(0, u64::from(i))).unwrap().slot, i);
    }
    assert_eq!(index.get_touch(key(0, 15)).unwrap().flags.freq(), 0);
    assert_eq!(index.get(key(0, 15)).unwrap().flags.freq(), 1);
    for i in (0..20u32).rev() {
        assert_eq!(index.remove(key(0, u64::from(i))).unwrap().slot, i);
        assert_eq!(index.len(), i as usize);
    }
    assert_eq!(index.stashed(), 0);
}

proptest! {
    #[test]
    fn it_agrees_with_a_btreemap(
        seed in any::<u64>(),
        steps in prop::collection::vec((0u8..6, 0u16..3, 0u64..60, 0u32..64, 0u8..64), 1..600)
    ) {
        let mut index = Index::new(64, 63, seed).unwrap();
        let mut model: BTreeMap<Key, Entry> = BTreeMap::new();
        for (what, volume, block, slot, flags) in steps {
            let k = key(volume, block * 0x1_0001);
            let entry = Entry { slot, flags: Flags(flags) };
            match what {
                0 | 1 if model.len() == 64 && !model.contains_key(&k) =>
                    prop_assert_eq!(index.insert(k, slot, entry.flags), Err(IndexError::Full)),
                0 | 1 => prop_assert_eq!(index.insert(k, slot, entry.flags), Ok(model.insert(k, entry))),
                2 => prop_assert_eq!(index.remove(k), model.remove(&k)),
                3 => {
                    let hit = model.get(&k).is_some_and(|e| e.slot == slot);
                    let old = if hit { model.remove(&k).map(|e| e.flags) } else { None };
                    prop_assert_eq!(index.remove_if_slot(k, slot), old);
                }
                4 => {
                    let old = model.get_mut(&k).map(|e| {
                        let old = *e;
                        e.flags = e.flags.with_freq(e.flags.freq() + 1);
                        old
                    });
                    prop_assert_eq!(index.get_touch(k), old);
                }
                _ => {
                    index.retain(|k, e| (k.block() + u64::from(e.slot)) % 5 != u64::from(flags) % 5);
                    model.retain(|k, e| (k.block() + u64::from(e.slot)) % 5 != u64::from(flags) % 5);
                }
            }
            prop_assert_eq!(index.get(k), model.get(&k).copied());
            prop_assert_eq!(index.len(), model.len());
            for volume in 0..3 {
                let theirs = model.keys().filter(|k| k.volume() == volume).count();
                prop_assert_eq!(index.volume_len(volume), theirs as u64);
            }
        }
        let mut all = BTreeMap::new();
        index.for_each(|k, e| { all.insert(k, e); });
        prop_assert_eq!(all, model);
    }
}

#[test]
fn a_pass_in_parts_forgets_what_one_at_once_forgets() {
    let mut index = Index::new(20_000, 20_000, 5).unwrap();
    for block in 0..18_000u64 {
        let volume = u16::try_from(block % 3).unwrap();
        index.insert(key(volume, block), u32::try_from(block).unwrap(), Flags::NONE).unwrap();
    }
    let (mut from, mut parts, mut gone) = (Some(0), 0, 0);
    while let Some(at) = from {
        from = index.retain_some(at, 100, |key, _| {
            gone += u64::from(key.volume() == 1);
            key.volume() != 1
        });
        parts += 1;
    }
    assert!(parts > 10, "{parts} parts");
    assert_eq!((gone, index.len()), (6000, 12_000));
    assert_eq!([0, 1, 2, 4095, 4096].map(|v| index.volume_len(v)), [6000, 0, 6000, 0, 0]);
    index.for_each(|key, _| assert_ne!(key.volume(), 1));
}
