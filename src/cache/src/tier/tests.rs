use super::*;
use forebay_io::{Buf, HeapBuf};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key(block: u64) -> Key {
    Key::new(1, block).unwrap()
}

#[test]
fn it_keeps_what_is_read_again_through_a_scan() {
    let mut tier = Tier::new(100);
    for block in 0..50 {
        tier.insert(key(block), block, 0);
        assert_eq!(tier.get(key(block)), Some((&block, 0)));
    }
    // A scan ten times the tier, with the hot blocks read now and then.
    for block in 1000..2000 {
        tier.insert(key(block), block, 0);
        assert!(tier.get(key(block % 50)).is_some(), "{block}");
    }
    assert_eq!(tier.len(), 100);
    assert_eq!(tier.stats().evictions, 950);
}

#[test]
fn a_block_that_comes_back_goes_to_the_main_queue() {
    let mut tier = Tier::new(20);
    for block in 0..40 {
        tier.insert(key(block), block, 0);
    }
    assert!(!tier.contains(key(3)));
    tier.insert(key(3), 3, 0);
    for block in 100..130 {
        tier.insert(key(block), block, 0);
    }
    assert!(tier.contains(key(3)) && !tier.contains(key(101)));
}

#[test]
fn buffers_are_shared_and_let_go() {
    let mut tier = Tier::new(1);
    let mut buf = HeapBuf::from_bytes(&[1; 8]);
    tier.insert(key(1), buf.clone(), 4);
    assert!(buf.as_mut_slice().is_none());
    tier.insert(key(2), HeapBuf::from_bytes(&[2; 8]), 0);
    assert!(buf.as_mut_slice().is_some(), "evicted");
    assert!(tier.replace(key(2), buf.clone(), 4) && !tier.replace(key(1), buf.clone(), 0));
    assert_eq!(tier.get(key(2)).map(|(b, at)| (b.len(), at)), Some((8, 4)));
    assert!(tier.invalidate(key(2)) && !tier.invalidate(key(2)));
    assert!(buf.as_mut_slice().is_some());
    let mut off: Tier<HeapBuf> = Tier::new(0);
    off.insert(key(1), buf, 0);
    assert!(off.get(key(1)).is_none() && !off.shrink_one() && !off.invalidate(key(1)));
}

proptest! {
    #[test]
    fn it_never_returns_anything_but_the_last_content(
        pages in 1u32..20,
        steps in prop::collection::vec((0u8..8, 0u64..40, 1u64..30), 1..400)
    ) {
        let mut tier = Tier::new(pages);
        let mut model = BTreeMap::new();
        for (time, (what, block, blocks)) in steps.into_iter().enumerate() {
            match what {
                0..=2 => { tier.insert(key(block), time, 0); model.insert(block, time); }
                3 => { tier.invalidate(key(block)); model.remove(&block); }
                4 => {
                    tier.invalidate_range(1, block, blocks);
                    model.retain(|b, _| *b < block || *b >= block + blocks);
                }
                5 => { let some = !tier.is_empty(); prop_assert_eq!(tier.shrink_one(), some); }
                _ => {
                    let found = tier.get(key(block)).map(|(b, _)| *b);
                    prop_assert!(found.is_none() || found == model.get(&block).copied());
                }
            }
            let here = (0..40).filter(|b| tier.contains(key(*b))).count();
            prop_assert_eq!(here, tier.len());
            prop_assert!(tier.len() <= pages as usize);
        }
    }
}
