//! What the engine counts of hosts' blocks: per volume, each block once, by where it came from.

use crate::harness::{Setup, World, seeds};
use forebay_cache::engine::{BlockCounts, CacheMode, Limits};
use forebay_io::{BlockError, DeviceError, Duration, Instant, Outcome, RequestOp};

const K: u64 = 4096;

fn of(w: &World, volume: usize) -> BlockCounts {
    w.engine.volume_stats(World::id(volume)).unwrap().blocks
}

fn all(w: &World) -> BlockCounts {
    w.engine.stats(Instant(w.now)).counts.blocks
}

fn world(volumes: Vec<(u64, u32, CacheMode)>, tier_pages: u32) -> World {
    World::new(7, Setup { volumes, tier_pages, ..Setup::default() })
}

#[test]
fn each_volume_counts_its_own_blocks() {
    let volumes =
        vec![(1 << 20, 4096, CacheMode::WriteBack), (1 << 20, 4096, CacheMode::WriteBack)];
    let mut w = world(volumes, 0);
    w.write(0, 0, 8 * K);
    w.read(0, 0, 8 * K);
    w.read(1, 64 * K, 4 * K);
    let first = BlockCounts { writes: 8, hits: 8, ..BlockCounts::default() };
    let second = BlockCounts { misses: 4, ..BlockCounts::default() };
    assert_eq!((of(&w, 0), of(&w, 1)), (first, second));
    assert_eq!(all(&w), BlockCounts { writes: 8, hits: 8, misses: 4, ..BlockCounts::default() });
    assert_eq!((first.all_hits(), first.reads(), second.reads()), (8, 8, 4));
    let dirty = |w: &World, n| w.engine.volume_stats(World::id(n)).unwrap().destaged_bytes;
    assert_eq!((dirty(&w, 0), dirty(&w, 1)), (0, 0));
    w.drain(0);
    assert_eq!((dirty(&w, 0), dirty(&w, 1)), (8 * K, 0), "destaged by volume");
}

#[test]
fn the_memory_tier_and_ranges_of_zeroes_are_told_apart() {
    let mut w = world(vec![(4 << 20, 4096, CacheMode::WriteBack)], 64);
    w.write(0, 0, K);
    // The first read brings the block into memory, the second finds it there.
    w.read(0, 0, K);
    w.read(0, 0, K);
    let zeroes = w.ask(0, RequestOp::WriteZeroes { deallocate: false }, 256 * K, 64 * K);
    assert_eq!(w.wait_done(zeroes), Outcome::Done);
    w.read(0, 256 * K, 2 * K);
    let blocks = of(&w, 0);
    assert_eq!((blocks.hits, blocks.tier_hits, blocks.zero_hits), (1, 1, 2), "{blocks:?}");
    assert_eq!((blocks.writes, blocks.misses), (1, 0), "{blocks:?}");
}

#[test]
fn what_goes_past_the_cache_is_counted_as_that() {
    let mut w = world(
        vec![(1 << 20, 4096, CacheMode::PassThrough), (1 << 20, 4096, CacheMode::WriteAround)],
        0,
    );
    w.write(0, 0, 4 * K);
    w.read(0, 0, 4 * K);
    let expected = BlockCounts { bypassed_writes: 4, bypassed_reads: 4, ..BlockCounts::default() };
    assert_eq!(of(&w, 0), expected);
    w.write(1, 0, 4 * K);
    w.read(1, 0, 4 * K);
    w.run_for(20_000_000);
    w.read(1, 0, 4 * K);
    let expected = BlockCounts { bypassed_writes: 4, misses: 4, hits: 4, ..BlockCounts::default() };
    assert_eq!(of(&w, 1), expected);
}

#[test]
fn a_stream_beyond_the_cutoff_bypasses() {
    let setup = Setup {
        volumes: vec![(4 << 20, 4096, CacheMode::WriteBack)],
        tier_pages: 0,
        limits: Limits { sequential_cutoff: 16 * K, ..Limits::default() },
        ..Setup::default()
    };
    let mut w = World::new(3, setup);
    for block in 0..256 {
        w.read(0, block * K, K);
    }
    let blocks = of(&w, 0);
    assert_eq!(blocks.misses + blocks.bypassed_reads, 256, "{blocks:?}");
    assert!((1..=20).contains(&blocks.misses), "the first 16 or so: {blocks:?}");
}

#[test]
fn a_failed_cache_device_is_bypassed() {
    let mut w = world(vec![(1 << 20, 4096, CacheMode::WriteThrough)], 0);
    w.write(0, 0, 4 * K);
    w.drain(0);
    let before = of(&w, 0);
    w.cache.faults.write = Some(DeviceError::Gone);
    w.cache.faults.read = Some(DeviceError::Gone);
    while w.engine.stats(Instant(w.now)).cache_failed.is_none() {
        let tag = w.ask(0, RequestOp::Write, 0, K);
        w.wait_done(tag);
    }
    w.write(0, 8 * K, 2 * K);
    w.read(0, 0, 4 * K);
    let now = of(&w, 0);
    assert_eq!(now.bypassed_reads, before.bypassed_reads + 4, "{now:?}");
    assert!(now.bypassed_writes >= 2, "{now:?}");
}

/// Every block of every Read and Compare that ended well is counted once, whatever it took;
/// sub-block writes read for themselves, and that is nobody's hit.
#[test]
fn counts_are_what_hosts_asked() {
    for seed in seeds(24) {
        let unit = if seed % 2 == 0 { 512 } else { 4096 };
        let mode = [
            CacheMode::PassThrough,
            CacheMode::WriteAround,
            CacheMode::WriteThrough,
            CacheMode::WriteBack,
        ][(seed / 2 % 4) as usize];
        println!("seed {seed} unit {unit} mode {mode:?}");
        let setup = Setup {
            volumes: vec![(1 << 20, unit, mode), (1 << 20, unit, CacheMode::WriteBack)],
            cache_bytes: 5 << 20,
            tier_pages: if seed % 3 == 0 { 0 } else { 16 },
            ..Setup::default()
        };
        let mut w = World::new(seed, setup);
        let mut asked = Vec::new();
        for _ in 0..300 {
            let volume = w.rng.below(2) as usize;
            let units = (1 << 20) / u64::from(unit);
            let start = w.rng.below(units);
            let count = (1 + w.rng.below(24)).min(units - start);
            let (offset, len) = (start * u64::from(unit), count * u64::from(unit));
            let op = match w.rng.below(10) {
                0..=4 => RequestOp::Read,
                5 => RequestOp::Compare,
                _ => RequestOp::Write,
            };
            let want = (op == RequestOp::Compare).then(|| (vec![1; len as usize], None));
            let tag = w.ask_with(volume, op, offset, len, false, want);
            asked.push((tag, volume, op, offset, len));
            while w.asked.len() > 12 {
                w.step();
            }
        }
        w.quiesce();
        let mut sum = BlockCounts::default();
        for volume in 0..2 {
            let (mut reads, mut writes) = (0, 0);
            for (tag, of, op, offset, len) in &asked {
                let blocks = (offset + len).div_ceil(K) - offset / K;
                match (op, w.done[tag]) {
                    _ if *of != volume => {}
                    (RequestOp::Write, Outcome::Done) => writes += blocks,
                    (RequestOp::Read, Outcome::Done)
                    | (
                        RequestOp::Compare,
                        Outcome::Done | Outcome::Failed(BlockError::CompareFailed),
                    ) => reads += blocks,
                    _ => {}
                }
            }
            let blocks = of(&w, volume);
            assert_eq!(blocks.reads(), reads, "volume {volume}: {blocks:?}");
            assert_eq!(blocks.writes + blocks.bypassed_writes, writes, "{blocks:?}");
            sum.hits += blocks.hits;
            sum.misses += blocks.misses;
            sum.writes += blocks.writes;
        }
        let engine = all(&w);
        assert_eq!((engine.hits, engine.misses, engine.writes), (sum.hits, sum.misses, sum.writes));
    }
}

/// Nothing is destaged by itself.
fn lazy(seed: u64) -> World {
    let limits =
        Limits { dirty_age: Duration::from_secs(3600), destage_from: 100, ..Limits::default() };
    let volumes = vec![(1 << 20, 4096, CacheMode::WriteBack)];
    World::new(seed, Setup { volumes, limits, tier_pages: 0, ..Setup::default() })
}

#[test]
fn the_age_of_recovered_dirty_data_counts_from_recovery() {
    let mut w = lazy(9);
    // The machine has been up for some days.
    w.now += 300_000_000_000_000;
    w.write(0, 0, 4 * K);
    w.run_for(7_000_000_000);
    let before = w.engine.stats(Instant(w.now));
    assert!(before.oldest_dirty.unwrap() >= Duration::from_secs(7), "{before:?}");
    assert!(before.oldest_dirty.unwrap() < Duration::from_secs(8), "{before:?}");
    assert!(!before.oldest_recovered);
    // It is destaged at once after recovery, but that takes time.
    w.backing[0].latency = (4_000_000_000, 4_000_000_000);
    w.crash(false);
    let began = w.now;
    w.run_for(3_000_000_000);
    let after = w.engine.stats(Instant(w.now));
    assert!(after.oldest_recovered && after.dirty_bytes == 4 * K, "{after:?}");
    let age = after.oldest_dirty.unwrap().as_nanos() as u64;
    assert!((2_900_000_000..=w.now - began + 1_000_000_000).contains(&age), "{age}");
    w.backing[0].latency = (10_000, 20_000);
    w.drain(0);
    w.write(0, 0, K);
    let fresh = w.engine.stats(Instant(w.now));
    assert!(!fresh.oldest_recovered && fresh.oldest_dirty.unwrap() < Duration::from_secs(1));
}

/// A device that does not answer is named after five seconds, and for how long counts from the
/// begin of what hangs, not from when that was noticed; a device that answers is not named.
#[test]
fn a_hanging_device_is_named_since_its_oldest_operation() {
    for cache in [false, true] {
        let mut w = lazy(10);
        w.write(0, 0, 4 * K);
        w.drain(0);
        let disk = if cache { &mut w.cache } else { &mut w.backing[0] };
        disk.faults.hang = true;
        let begun = w.now;
        w.ask(0, RequestOp::Read, if cache { 0 } else { 100 * K }, K);
        let hanging = |w: &World| {
            let volume = w.engine.volume_stats(World::id(0)).unwrap();
            let engine = w.engine.stats(Instant(w.now));
            let other = if cache { volume.backing_hanging } else { engine.cache_hanging };
            assert_eq!(other, None, "the other device is not to blame");
            if cache { engine.cache_hanging } else { volume.backing_hanging }
        };
        w.run_for(4_900_000_000);
        assert_eq!(hanging(&w), None, "not yet");
        assert_eq!(w.engine.cause(World::id(0), Instant(w.now)), None);
        w.run_for(1_200_000_000);
        let since = hanging(&w).expect("named after 5 s");
        assert!(since.0 >= begun && since.0 < begun + 1_000_000, "{since:?} {begun}");
        let cause = w.engine.cause(World::id(0), Instant(w.now)).unwrap();
        assert!(cause.contains("not answered for 6 s"), "{cause}");
        let disk = if cache { &mut w.cache } else { &mut w.backing[0] };
        disk.faults.hang = false;
        w.quiesce();
        assert_eq!(hanging(&w), None);
    }
}
