//! Minimums, maximums and pins: what a noisy neighbour cannot take, and what it may not have.

use crate::harness::{Setup, World, seeds};
use forebay_cache::engine::{
    BlockRange, CacheMode, ControlError, CopyAt, Limits, PINS_MAX, PinStatus, Quota, VolumeStats,
};
use forebay_cache::policy::PolicyKind;
use forebay_io::{DeviceError, Duration, Instant, RequestOp};

const K: u64 = 4096;
const MIB: u64 = 1 << 20;

/// A quiet volume of 2 MiB and a neighbour of 16 MiB, in a cache of 8 MiB.
fn world(seed: u64, policy: PolicyKind, mode: CacheMode) -> World {
    let limits =
        Limits { dirty_age: Duration::from_millis(5), sequential_cutoff: 0, ..Limits::default() };
    let volumes = vec![(2 * MIB, 4096, CacheMode::WriteBack), (16 * MIB, 4096, mode)];
    World::new(seed, Setup { volumes, limits, policy, tier_pages: 0, ..Setup::default() })
}

fn of(w: &World, volume: usize) -> VolumeStats {
    w.engine.volume_stats(World::id(volume)).unwrap()
}

fn cached(w: &World, volume: usize) -> u64 {
    of(w, volume).cached_bytes
}

fn pins(w: &World) -> PinStatus {
    w.engine.pin_status(World::id(0)).unwrap()
}

const fn range(first: u64, blocks: u64) -> BlockRange {
    BlockRange { first, blocks }
}

fn min(bytes: u64) -> Quota {
    Quota { min: bytes, ..Quota::default() }
}

fn pinned(ranges: &[BlockRange]) -> Quota {
    Quota { pins: ranges.to_vec(), ..Quota::default() }
}

fn set(w: &mut World, volume: usize, quota: &Quota) {
    w.engine.set_quota(World::id(volume), quota).unwrap();
}

/// What is counted is what the index has.
fn check_counts(w: &World) {
    let volumes = 0..w.setup.volumes.len();
    let counts: Vec<u64> = volumes.clone().map(|n| cached(w, n)).collect();
    let found: Vec<u64> = volumes.map(|n| w.engine.scan_cached(World::id(n)).unwrap()).collect();
    assert_eq!(counts, found);
    let all = w.engine.stats(Instant(w.now)).cached_blocks * K;
    assert!(counts.iter().sum::<u64>() <= all, "{counts:?} of {all}");
}

/// The neighbour reads all that it has, `times` times, and after every read `check` is asked.
fn scan(w: &mut World, times: u64, mut check: impl FnMut(&World)) {
    for at in 0..times * 256 {
        w.read(1, at % 256 * (64 << 10), 64 << 10);
        check(w);
    }
}

#[test]
fn a_scan_does_not_push_a_volume_below_its_minimum() {
    for (seed, policy) in [(1, PolicyKind::Fifo), (2, PolicyKind::S3Fifo)] {
        for keeps in [0, MIB] {
            let mut w = world(seed, policy, CacheMode::WriteBack);
            set(&mut w, 0, &min(keeps));
            for at in 0..16 {
                w.read(0, at * (64 << 10), 64 << 10);
            }
            w.run_for(20_000_000);
            assert_eq!(cached(&w, 0), MIB);
            scan(&mut w, 12, |w| assert!(cached(w, 0) >= keeps, "{}", cached(w, 0)));
            check_counts(&w);
            let reclaimed = w.engine.stats(Instant(w.now)).reclaimed;
            assert!(reclaimed[0] > 30, "the log went round: {reclaimed:?}");
            if keeps == 0 {
                assert_eq!(cached(&w, 0), 0, "without a minimum the neighbour takes it all");
                continue;
            }
            let before = of(&w, 0).blocks;
            for at in 0..16 {
                w.read(0, at * (64 << 10), 64 << 10);
            }
            let now = of(&w, 0).blocks;
            assert_eq!((now.hits - before.hits, now.misses - before.misses), (256, 0));
        }
    }
}

/// The same with a neighbour that reads and writes at random, beside its own minimum changed now and
/// then, and dirty data as much as is allowed.
#[test]
fn a_neighbour_that_writes_leaves_a_volume_its_minimum() {
    for seed in seeds(12) {
        let policy = if seed % 2 == 0 { PolicyKind::Fifo } else { PolicyKind::S3Fifo };
        let mut w = world(seed, policy, CacheMode::WriteBack);
        println!("seed {seed} {policy:?}");
        w.backing[1].latency = (100_000, 3_000_000 * (1 + seed % 4));
        let keeps = MIB + w.rng.below(2) * MIB;
        set(&mut w, 0, &min(keeps));
        for at in 0..keeps / (64 << 10) {
            w.read(0, at * (64 << 10), 64 << 10);
        }
        w.run_for(20_000_000);
        assert_eq!(cached(&w, 0), keeps);
        for n in 0..3000 {
            while w.asked.len() > 16 {
                w.step();
            }
            w.random_op(1);
            assert!(cached(&w, 0) >= keeps, "op {n}: {}", cached(&w, 0));
        }
        w.quiesce();
        check_counts(&w);
        let stats = w.engine.stats(Instant(w.now));
        assert!(stats.reclaimed[0] > 10, "{:?}", stats.reclaimed);
        w.check_all(0);
        w.check_all(1);
        w.drain(1);
        w.check_backing(1);
        assert!(cached(&w, 0) >= keeps);
    }
}

#[test]
fn fills_stop_at_the_maximum() {
    for (seed, policy) in [(3, PolicyKind::Fifo), (4, PolicyKind::S3Fifo)] {
        let mut w = world(seed, policy, CacheMode::WriteBack);
        let max = Quota { max: Some(MIB), ..Quota::default() };
        set(&mut w, 1, &max);
        let mut most = 0;
        scan(&mut w, 3, |w| {
            assert!(cached(w, 1) <= MIB, "{}", cached(w, 1));
            most = most.max(cached(w, 1));
        });
        assert_eq!(most, MIB, "it is used");
        // Many misses at once: what is on its way counts.
        set(&mut w, 1, &Quota { max: Some(2 * MIB), ..Quota::default() });
        for at in 0..200 {
            w.ask(1, RequestOp::Read, 4 * MIB + at * (32 << 10), 32 << 10);
        }
        while !w.asked.is_empty() {
            w.step();
            assert!(cached(&w, 1) <= 2 * MIB, "{}", cached(&w, 1));
        }
        w.run_for(20_000_000);
        assert_eq!(cached(&w, 1), 2 * MIB);
        check_counts(&w);
    }
}

#[test]
fn writes_pass_the_maximum_and_go_first_once_they_are_clean() {
    const MAX: u64 = MIB / 16;
    for max in [None, Some(MAX)] {
        let mut w = world(5, PolicyKind::S3Fifo, CacheMode::WriteBack);
        set(&mut w, 1, &Quota { max, ..Quota::default() });
        for at in 0..32 {
            w.write(1, at * (64 << 10), 64 << 10);
            // Read again, so that the policy alone would keep some.
            w.read(1, at * (64 << 10), 64 << 10);
        }
        w.drain(1);
        assert_eq!(cached(&w, 1), 2 * MIB, "nothing was refused");
        // Others' traffic turns the log.
        for _ in 0..5 {
            for at in 0..32 {
                w.write(0, at * (64 << 10), 64 << 10);
            }
            w.drain(0);
            check_counts(&w);
        }
        let left = cached(&w, 1);
        println!("{left} bytes are left with a maximum of {max:?}");
        assert_eq!(left <= MAX, max.is_some(), "{left}");
        w.check_all(1);
    }
}

fn copies(w: &World, first: u64, blocks: u64) -> u64 {
    let places = w.engine.locate(World::id(0), first, blocks, 1000);
    let there = places.iter().filter(|place| place.copy != CopyAt::Backing);
    there.map(|place| place.blocks).sum()
}

fn fetched(w: &mut World) {
    for _ in 0..100_000 {
        if !pins(w).running {
            return;
        }
        w.step();
    }
    panic!("{:?}", pins(w));
}

#[test]
fn pinned_blocks_are_fetched_and_survive_a_scan_and_a_crash() {
    let mut w = world(6, PolicyKind::Fifo, CacheMode::WriteBack);
    w.write(0, 100 * K, 3 * K);
    let quota = pinned(&[range(90, 100), range(300, 10), range(150, 50)]);
    set(&mut w, 0, &quota);
    assert_eq!(pins(&w).left_bytes, 120 * K);
    fetched(&mut w);
    let status = pins(&w);
    assert_eq!((status.pinned_bytes, status.left_bytes), (120 * K, 0), "{status:?}");
    assert_eq!((status.fetched_bytes, status.missing_bytes), (117 * K, 0), "{status:?}");
    assert_eq!((copies(&w, 90, 110), copies(&w, 300, 10), cached(&w, 0)), (110, 10, 120 * K));
    let there = |w: &World| assert_eq!((copies(w, 90, 110), copies(w, 300, 10)), (110, 10));
    scan(&mut w, 6, there);
    w.check_all(0);
    w.crash(true);
    set(&mut w, 0, &quota);
    fetched(&mut w);
    assert_eq!(pins(&w).fetched_bytes, 0, "they were there: {:?}", pins(&w));
    scan(&mut w, 6, there);
    check_counts(&w);
    // Unpinned, they go like all others.
    set(&mut w, 0, &Quota::default());
    assert_eq!(of(&w, 0).pinned_bytes, 0);
    scan(&mut w, 6, |_| {});
    assert_eq!((copies(&w, 90, 110), copies(&w, 300, 10)), (0, 0));
    w.check_all(0);
}

#[test]
fn fetching_pinned_blocks_waits_ends_and_begins_again() {
    let mut w = world(7, PolicyKind::S3Fifo, CacheMode::WriteBack);
    // A backing device that fails is waited for.
    w.backing[0].faults.read = Some(DeviceError::Io(5));
    set(&mut w, 0, &pinned(&[range(0, 200)]));
    w.run_for(2_000_000_000);
    let status = pins(&w);
    assert!(status.running && status.stall.is_some() && status.left_bytes > 0, "{status:?}");
    w.backing[0].faults.read = None;
    w.run_for(60_000_000_000);
    assert_eq!(copies(&w, 0, 200), 200, "{:?}", pins(&w));
    assert!(!pins(&w).running, "{:?}", pins(&w));
    // Ended, it stays where it is.
    set(&mut w, 0, &pinned(&[range(0, 400)]));
    assert!(w.engine.pin_end(World::id(0)));
    w.run_for(1_000_000_000);
    assert!(copies(&w, 0, 400) < 400 && !pins(&w).running, "{:?}", pins(&w));
    assert!(!w.engine.pin_end(World::id(0)));
    // What hosts read of it comes in, and then stays.
    w.read(0, 300 * K, K);
    w.run_for(10_000_000);
    assert_eq!(copies(&w, 300, 1), 1);
    scan(&mut w, 6, |w| assert_eq!(copies(w, 300, 1), 1));
    // Forgotten in pass-through, it is fetched again after it.
    w.set_mode(0, CacheMode::PassThrough);
    w.run_for(500_000_000);
    assert_eq!((copies(&w, 0, 400), cached(&w, 0)), (0, 0));
    assert!(pins(&w).stall.is_some(), "{:?}", pins(&w));
    w.set_mode(0, CacheMode::WriteAround);
    fetched(&mut w);
    assert_eq!(copies(&w, 0, 400), 400);
    w.check_all(0);
    check_counts(&w);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut w = world(8, PolicyKind::S3Fifo, CacheMode::WriteBack);
    let free = w.engine.stats(Instant(w.now)).dirty_limit;
    let refused = |w: &mut World, volume: usize, quota: &Quota| {
        w.engine.set_quota(World::id(volume), quota).unwrap_err()
    };
    set(&mut w, 1, &min(2 * MIB));
    let error = refused(&mut w, 0, &min(2 * MIB));
    let ControlError::QuotaTooLarge { keeps, others, most } = error else { panic!("{error}") };
    assert_eq!((keeps, others), (2 * MIB, 2 * MIB));
    assert!((most * 14 / 10).abs_diff(free) <= 2 * K, "half, of which dirty data may have 70 %");
    set(&mut w, 0, &min(most - 2 * MIB));
    let error = refused(&mut w, 0, &min(most - 2 * MIB + 1));
    assert!(matches!(error, ControlError::QuotaTooLarge { .. }), "{error}");
    // Pins count in the minimum, not beside it.
    let quota = Quota { min: most - 2 * MIB, pins: vec![range(0, 100)], max: None };
    set(&mut w, 0, &quota);
    let error = refused(&mut w, 0, &pinned(&[range(0, (most - 2 * MIB) / K + 1)]));
    assert!(matches!(error, ControlError::QuotaTooLarge { .. }), "{error}");
    let error = refused(&mut w, 0, &Quota { max: Some(99 * K), ..pinned(&[range(0, 100)]) });
    assert_eq!(error, ControlError::KeepsMoreThanMax { keeps: 100 * K, max: 99 * K });
    assert!(error.to_string().contains("409600 bytes"), "{error}");
    let error = refused(&mut w, 0, &pinned(&[range(511, 2)]));
    assert!(error.to_string().contains("beyond the end"), "{error}");
    let many: Vec<BlockRange> = (0..=PINS_MAX as u64).map(|n| range(n * 2 % 512, 1)).collect();
    set(&mut w, 0, &pinned(&many));
    assert_eq!(of(&w, 0).pinned_bytes, 256 * K, "the last is the first again");
    let many: Vec<BlockRange> = (0..=PINS_MAX as u64).map(|n| range(n * 2, 1)).collect();
    let error = refused(&mut w, 1, &pinned(&many));
    assert!(error.to_string().contains("at most 256"), "{error}");
    assert!(w.engine.set_quota(forebay_io::VolumeId(99), &Quota::default()).is_err());
    // What is kept is taken off what may be dirty, and given back.
    let tight = w.engine.stats(Instant(w.now)).dirty_limit;
    set(&mut w, 0, &Quota::default());
    set(&mut w, 1, &Quota::default());
    assert_eq!(w.engine.stats(Instant(w.now)).dirty_limit, free);
    assert!(tight < free / 2, "{tight} {free}");
    // A volume that leaves gives back what it kept.
    set(&mut w, 1, &min(2 * MIB));
    w.engine.detach(World::id(1)).unwrap();
    let left = forebay_cache::engine::Event::Detached { volume: World::id(1) };
    w.wait_for(|event| *event == left);
    set(&mut w, 0, &min(most));
}

/// Whatever hosts do, whatever changes and crashes: reads are right, and the counts are those of the
/// index.
#[test]
fn random_work_under_changing_quotas() {
    for seed in seeds(24) {
        let limits = Limits { dirty_age: Duration::from_millis(4), ..Limits::default() };
        let volumes = vec![
            (2 * MIB, 4096, CacheMode::WriteBack),
            (2 * MIB, 512, [CacheMode::WriteBack, CacheMode::WriteAround][(seed % 2) as usize]),
        ];
        let setup = Setup {
            volumes,
            limits,
            cache_bytes: 5 * MIB,
            tier_pages: if seed % 3 == 0 { 0 } else { 8 },
            commit_delay: if seed % 5 == 0 { 100_000 } else { 0 },
            volatile: seed % 7 == 0,
            ..Setup::default()
        };
        println!("seed {seed}");
        let mut w = World::new(seed, setup);
        let mut quotas = [Quota::default(), Quota::default()];
        for round in 0..4 {
            for _ in 0..150 {
                while w.asked.len() > 12 {
                    w.step();
                }
                let volume = w.rng.below(2) as usize;
                w.random_op(volume);
                if w.rng.below(25) == 0 {
                    let quota = random_quota(&mut w);
                    if w.engine.set_quota(World::id(volume), &quota).is_ok() {
                        quotas[volume] = quota;
                    }
                }
                if w.rng.below(60) == 0 {
                    let modes = [
                        CacheMode::PassThrough,
                        CacheMode::WriteAround,
                        CacheMode::WriteThrough,
                        CacheMode::WriteBack,
                    ];
                    let mode = modes[w.rng.below(4) as usize];
                    if w.engine.set_mode(World::id(volume), mode).is_ok() {
                        w.modes[volume] = mode;
                    }
                }
                check_counts(&w);
            }
            if round % 2 == 0 {
                let power = w.rng.below(2) == 0;
                w.crash(power);
                for (volume, quota) in quotas.iter().enumerate() {
                    w.engine.set_quota(World::id(volume), quota).unwrap();
                }
                check_counts(&w);
            } else {
                w.quiesce();
            }
            w.check_all(0);
            w.check_all(1);
            check_counts(&w);
        }
        w.quiesce();
        for volume in 0..2 {
            w.drain(volume);
            w.check_backing(volume);
        }
        assert_eq!(w.failures, 0);
    }
}

fn random_quota(w: &mut World) -> Quota {
    let mut quota = Quota { min: w.rng.below(3) * MIB / 2, ..Quota::default() };
    if w.rng.below(3) == 0 {
        quota.max = Some(quota.min + w.rng.below(4) * MIB / 4);
    }
    for _ in 0..w.rng.below(4) {
        let (first, blocks) = (w.rng.below(500), 1 + w.rng.below(100));
        quota.pins.push(range(first, blocks.min(512 - first)));
    }
    quota
}
