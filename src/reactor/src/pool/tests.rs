#![cfg(not(loom))]

use super::*;
use forebay_io::Buf;
use proptest::prelude::*;
use std::sync::mpsc;
use std::thread;

fn pool(max_bytes: usize, region_bytes: usize) -> Pool {
    let pages = Preference::Ordinary;
    let config = PoolConfig { max_bytes, region_bytes, pages };
    Pool::new(config, Arc::new(RegionTable::new()))
}

#[test]
fn a_buffer_is_aligned_in_its_region_and_shared_by_clones() {
    let mut pool = pool(8 << 20, 4 << 20);
    let mut buf = pool.alloc(5000).unwrap();
    assert_eq!((buf.len(), buf.as_ptr().addr() % 4096), (5000, 0));
    let table = pool.table();
    assert!(table.get(buf.region()).unwrap().offset_of(buf.as_ptr(), 8192).is_some());
    buf.as_mut_slice().unwrap().fill(7);
    let other = buf.clone();
    assert!(buf.as_mut_slice().is_none() && !buf.is_unique());
    assert_eq!(other.as_slice(), [7; 5000]);
    drop(other);
    assert!(buf.as_mut_slice().is_some());
    buf.truncate(10);
    buf.truncate(20);
    assert_eq!(buf.as_slice(), [7; 10]);
    assert_eq!(pool.usage().bytes, 8192);
    drop(buf);
    assert_eq!((pool.usage().bytes, pool.usage().buffers), (0, 0));
}

#[test]
fn the_bound_holds_and_chunks_move_between_classes() {
    let mut pool = pool(4 << 20, 4 << 20);
    let small: Vec<_> = std::iter::from_fn(|| pool.alloc(4096)).collect();
    assert_eq!(small.len(), 1024);
    assert!(pool.alloc(1).is_none() && pool.alloc(1 << 20).is_none());
    assert_eq!(pool.usage().refused, 3);
    drop(small);
    let large: Vec<_> = std::iter::from_fn(|| pool.alloc(1 << 20)).collect();
    assert_eq!(large.len(), 4);
    assert_eq!(pool.usage().mapped, 4 << 20);
    assert!(pool.alloc(MAX_BUFFER + 1).is_none());
}

#[test]
fn what_is_reserved_stays_available() {
    let mut pool = pool(6 << 20, 2 << 20);
    assert!(pool.reserve(576 << 10, 3));
    assert!(!pool.reserve(1 << 20, 5), "5 MiB more do not fit");
    let small: Vec<_> = std::iter::from_fn(|| pool.alloc(4096)).collect();
    assert_eq!(small.len(), 1024, "two of three chunks");
    for _ in 0..2 {
        let large: Vec<_> = std::iter::from_fn(|| pool.alloc(520 << 10)).collect();
        assert_eq!(large.len(), 3);
        drop(large);
        assert!(pool.alloc(4096).is_none(), "the reserved chunk must not become small buffers");
    }
}

#[test]
fn buffers_outlive_their_pool_and_its_thread() {
    let buffers = thread::spawn(|| {
        let mut pool = pool(2 << 20, 2 << 20);
        let mut buffers: Vec<_> = (0..4).map(|_| pool.alloc(100).unwrap()).collect();
        buffers[0].as_mut_slice().unwrap().fill(9);
        drop(buffers.pop());
        drop(pool);
        drop(buffers.pop());
        buffers
    })
    .join()
    .unwrap();
    assert_eq!(buffers[0].as_slice(), [9; 100]);
    let before = Arc::new(buffers);
    let after = Arc::clone(&before);
    thread::spawn(move || drop(after)).join().unwrap();
    drop(before);
}

/// Buffers go round three threads, are checked and freed wherever they are; all of them come home.
#[test]
fn buffers_come_home_from_other_threads() {
    const ROUNDS: u32 = 200_000;
    let (to_second, second) = mpsc::sync_channel::<(u32, PoolBuf)>(64);
    let (to_third, third) = mpsc::sync_channel::<(u32, PoolBuf)>(64);
    let check = |number: u32, buf: &PoolBuf| {
        assert!(buf.as_slice().iter().all(|byte| *byte == number.to_le_bytes()[0]), "{number}");
    };
    let second = thread::spawn(move || {
        for (number, buf) in second {
            check(number, &buf);
            // Every third one is shared, so that both ends race for the last reference.
            if number % 3 == 0 {
                to_third.send((number, buf.clone())).unwrap();
            }
            if number % 2 == 0 && number % 3 != 0 {
                to_third.send((number, buf)).unwrap();
            }
        }
    });
    let third = thread::spawn(move || {
        for (number, buf) in third {
            check(number, &buf);
        }
    });
    let mut pool = pool(4 << 20, 2 << 20);
    for number in 0..ROUNDS {
        let len = [64, 4096, 6000, 40_000][usize::try_from(number % 4).unwrap()];
        let mut buf = loop {
            match pool.alloc(len) {
                Some(buf) => break buf,
                None => thread::yield_now(),
            }
        };
        let part = buf.as_mut_slice().unwrap();
        part.fill(number.to_le_bytes()[0]);
        if number % 5 != 0 {
            to_second.send((number, buf)).unwrap();
        }
    }
    drop(to_second);
    second.join().unwrap();
    third.join().unwrap();
    let usage = pool.usage();
    assert_eq!((usage.buffers, usage.bytes), (0, 0), "{usage:?}");
    assert!(usage.mapped <= 4 << 20);
}

proptest! {
    /// No two buffers that are out at once overlap, and the bound and the counts hold.
    #[test]
    fn buffers_never_overlap(steps in proptest::collection::vec((any::<bool>(), 0usize..2_200_000), 1..300)) {
        let mut pool = pool(16 << 20, 4 << 20);
        let mut out: Vec<(u8, PoolBuf)> = Vec::new();
        let mut mark = 0u8;
        for (take, size) in steps {
            // Mostly small sizes, as in life.
            let size = if size % 3 == 0 { size } else { size % 70_000 };
            if take {
                if let Some(mut buf) = pool.alloc(size) {
                    prop_assert!(size <= MAX_BUFFER);
                    mark = mark.wrapping_add(1);
                    let bytes = buf.as_mut_slice().unwrap();
                    prop_assert_eq!(bytes.len(), size);
                    bytes.fill(mark);
                    out.push((mark, buf));
                }
            } else if !out.is_empty() {
                let (mark, buf) = out.swap_remove(size % out.len());
                prop_assert!(buf.as_slice().iter().all(|byte| *byte == mark));
            }
        }
        let usage = pool.usage();
        prop_assert_eq!(usage.buffers, out.len());
        prop_assert!(usage.bytes >= out.iter().map(|(_, buf)| buf.len()).sum::<usize>());
        for (mark, buf) in &out {
            prop_assert!(buf.as_slice().iter().all(|byte| byte == mark));
        }
        out.clear();
        prop_assert_eq!(pool.usage().buffers, 0);
        prop_assert_eq!(pool.usage().bytes, 0);
    }
}
