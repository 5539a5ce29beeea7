use super::*;
use proptest::prelude::*;

fn range(first: u64, blocks: u64, lsn: u64) -> Range {
    Range { first, blocks, lsn: Lsn(lsn), kind: RangeKind::Zeroes, dirty: true }
}

#[test]
fn a_later_write_punches_and_a_newer_range_covers() {
    let mut map = RangeMap::new(8);
    map.insert(range(0, 100, 5)).unwrap();
    map.punch(10, 5, Lsn(6)).unwrap();
    assert_eq!(map.iter().collect::<Vec<_>>(), [range(0, 10, 5), range(15, 85, 5)]);
    map.punch(20, 5, Lsn(5)).unwrap();
    assert_eq!(map.len(), 2, "a change that is not newer takes nothing away");
    map.insert(range(5, 20, 7)).unwrap();
    assert_eq!(map.get(12), Some(range(5, 20, 7)));
    map.insert(range(0, 100, 6)).unwrap();
    let lsns: Vec<_> = map.iter().map(|r| (r.first, r.blocks, r.lsn.0)).collect();
    assert_eq!(lsns, [(0, 5, 6), (5, 20, 7), (25, 75, 6)]);
    assert_eq!(map.blocks(), 100);
    assert_eq!(map.overlapping(4, 3).collect::<Vec<_>>(), [range(4, 1, 6), range(5, 2, 7)]);
    map.mark_clean(5, Lsn(6));
    assert!(map.get(5).unwrap().dirty);
    map.mark_clean(5, Lsn(7));
    assert!(!map.get(5).unwrap().dirty);
}

#[test]
fn it_is_bounded_and_refuses_whole_changes() {
    let mut map = RangeMap::new(3);
    map.insert(range(0, 10, 1)).unwrap();
    map.insert(range(20, 10, 2)).unwrap();
    assert_eq!(map.insert(range(40, 10, 3)), Err(RangesFull));
    assert_eq!(map.len(), 2);
    map.punch(5, 1, Lsn(3)).unwrap();
    assert_eq!(map.punch(25, 1, Lsn(3)), Err(RangesFull));
    assert_eq!(map.get(25), Some(range(20, 10, 2)));
    map.punch(20, 10, Lsn(3)).unwrap();
    assert_eq!(map.fill_permille(), 666);
}

#[test]
fn the_last_block_of_all_is_no_special_case() {
    let mut map = RangeMap::new(4);
    map.insert(range(u64::MAX - 5, 5, 1)).unwrap();
    assert_eq!(map.get(u64::MAX - 1), Some(range(u64::MAX - 5, 5, 1)));
    assert_eq!(map.get(u64::MAX), None);
    map.punch(u64::MAX - 3, 100, Lsn(2)).unwrap();
    assert_eq!(map.blocks(), 2);
}

const SPACE: usize = 64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn it_agrees_with_an_array(
        steps in prop::collection::vec((0u8..4, 0u64..60, 0u64..30, 1u64..30, any::<bool>()), 1..60)
    ) {
        let mut map = RangeMap::new(40);
        let mut model: [Option<(Lsn, RangeKind)>; SPACE] = [None; SPACE];
        for (what, first, blocks, lsn, zeroes) in steps {
            let blocks = blocks.min(SPACE as u64 - first);
            let kind = if zeroes { RangeKind::Zeroes } else { RangeKind::Discarded };
            let here = usize::try_from(first).unwrap()..usize::try_from(first + blocks).unwrap();
            let lsn = Lsn(lsn);
            if what < 2 {
                if map.insert(Range { first, blocks, lsn, kind, dirty: false }).is_ok() {
                    for at in &mut model[here] {
                        if at.is_none_or(|(old, _)| old <= lsn) { *at = Some((lsn, kind)); }
                    }
                }
            } else if map.punch(first, blocks, lsn).is_ok() {
                for at in &mut model[here] {
                    if at.is_some_and(|(old, _)| old < lsn) { *at = None; }
                }
            }
            for (block, want) in model.iter().enumerate() {
                let found = map.get(block as u64);
                prop_assert_eq!(found.map(|r| (r.lsn, r.kind)), *want, "block {}", block);
            }
            let runs: u64 = map.overlapping(first, 20).map(|r| r.blocks).sum();
            let end = usize::try_from(first + 20).unwrap().min(SPACE);
            let want = model[usize::try_from(first).unwrap()..end].iter().flatten().count();
            prop_assert_eq!(runs, want as u64);
            prop_assert_eq!(map.blocks(), model.iter().flatten().count() as u64);
            prop_assert!(map.len() <= 40);
        }
    }
}
