use crate::status::page_pools_at;
use crate::{Backing, HUGE_PAGE, Memory, Preference, Region, page_pools, usage};
use std::fs;

#[test]
fn a_region_is_aligned_counted_and_zeroed() {
    for preference in [Preference::Ordinary, Preference::PreferHugetlb] {
        let mut region = Memory::new(3 << 20, preference).unwrap();
        assert_eq!(region.len(), 4 << 20);
        let raw = Region::new(1, preference).unwrap();
        assert_eq!((raw.as_ptr().addr() % HUGE_PAGE, raw.len()), (0, HUGE_PAGE));
        let used = usage();
        match region.backing() {
            Backing::Hugetlb => assert!(used.hugetlb >= region.len()),
            Backing::Ordinary => assert!(used.ordinary >= region.len()),
        }
        let mut back = [1u8; 16];
        region.read(region.len() - 16, &mut back);
        assert_eq!(back, [0; 16]);

        let ones = vec![0xff; region.len()];
        region.write(0, &ones);
        // Begins and ends inside pages, with a whole 2 MiB page between.
        let range = 1000..region.len() - 1000;
        region.zero(range.clone());
        let mut all = vec![0; region.len()];
        region.read(0, &mut all);
        for (i, byte) in all.iter().enumerate() {
            assert_eq!(*byte, if range.contains(&i) { 0 } else { 0xff }, "byte {i}");
        }
    }
}

#[test]
fn an_impossible_region_says_what_was_tried() {
    let error = Region::new(usize::MAX - 10, Preference::Ordinary).unwrap_err();
    assert_eq!(error.backing, Backing::Ordinary);
    // 1 PiB of reserved pages exist nowhere.
    let error = Region::new(1 << 50, Preference::OnlyHugetlb).unwrap_err();
    assert_eq!(error.backing, Backing::Hugetlb);
    assert!(error.to_string().contains("hugepages reserve"), "{error}");
}

#[test]
fn offsets_are_found_only_inside() {
    let region = Region::new(HUGE_PAGE, Preference::Ordinary).unwrap();
    let base = region.as_ptr().cast_const();
    assert_eq!(region.offset_of(base.wrapping_add(4096), 4096), Some(4096));
    assert_eq!(region.offset_of(base.wrapping_add(HUGE_PAGE - 4096), 4096), Some(HUGE_PAGE - 4096));
    assert_eq!(region.offset_of(base.wrapping_add(HUGE_PAGE - 4095), 4096), None);
    assert_eq!(region.offset_of(base.wrapping_sub(1), 1), None);
}

#[test]
fn the_kernels_reserve_is_read_and_nonsense_is_named() {
    for pool in page_pools().unwrap() {
        assert!(pool.available() <= pool.total + pool.surplus, "{pool:?}");
    }
    let root = std::env::temp_dir().join(format!("forebay-hugepages-{}", std::process::id()));
    let pool = root.join("hugepages-2048kB");
    fs::create_dir_all(&pool).unwrap();
    for (file, value) in [("nr", "512"), ("free", "12"), ("resv", "2"), ("surplus", "0")] {
        fs::write(pool.join(format!("{file}_hugepages")), format!("{value}\n")).unwrap();
    }
    let pools = page_pools_at(&root).unwrap();
    assert_eq!((pools[0].page_size, pools[0].total, pools[0].available()), (2 << 20, 512, 10));
    fs::write(pool.join("free_hugepages"), "many").unwrap();
    assert!(page_pools_at(&root).unwrap_err().to_string().contains("\"many\""));
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(page_pools_at(&root).unwrap(), Vec::new());
}
