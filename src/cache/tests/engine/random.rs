//! The engine against simulated devices: hard cases of the design by name, random runs against a
//! model, crashes.

use crate::harness::{Setup, World, seeds};
use forebay_cache::engine::{CacheMode, Limits};
use forebay_io::{Duration, RequestOp};

const ALL: [CacheMode; 5] = [
    CacheMode::PassThrough,
    CacheMode::WriteAround,
    CacheMode::WriteThrough,
    CacheMode::WriteBack,
    CacheMode::WriteBackOrdered,
];

#[test]
fn a_write_is_read_back_in_every_mode() {
    for mode in ALL {
        for unit in [512, 4096] {
            let setup = Setup { volumes: vec![(1 << 20, unit, mode)], ..Setup::default() };
            let mut world = World::new(1, setup);
            for at in 0..16 {
                world.write(0, at * 8192, 8192);
            }
            world.check_all(0);
            world.check_all(0);
            world.drain(0);
            world.check_backing(0);
        }
    }
}

#[test]
fn random_requests_agree_with_a_flat_model() {
    for seed in seeds(120) {
        let unit = if seed % 2 == 0 { 512 } else { 4096 };
        let mode = ALL[(seed / 2 % 4) as usize];
        let odd = if unit == 512 { 512 * 3 } else { 0 };
        let setup = Setup {
            volumes: vec![((1 << 20) + odd, unit, mode)],
            cache_bytes: 5 << 20,
            tier_pages: if seed % 3 == 0 { 0 } else { 16 },
            write_zeroes: seed % 5 != 0,
            commit_delay: if seed % 7 == 0 { 200_000 } else { 0 },
            limits: Limits { dirty_age: Duration::from_millis(5), ..Limits::default() },
            ..Setup::default()
        };
        println!("seed {seed} unit {unit} mode {mode:?}");
        let mut world = World::new(seed, setup);
        for _ in 0..400 {
            while world.asked.len() > 16 {
                world.step();
            }
            world.random_op(0);
            if world.rng.below(4) == 0 {
                world.step();
            }
        }
        world.quiesce();
        world.check_all(0);
        world.drain(0);
        world.check_backing(0);
        assert_eq!(world.backing[0].overlaps, 0, "overlapping writes of the backing device");
        assert_eq!(world.failures, 0);
        assert!(world.reads_checked > 50);
    }
}

/// Random work with crashes: after each one everything acknowledged is there.
fn crash_run(seed: u64, mode: CacheMode, power: bool, switch: bool, volatile: bool) -> World {
    let unit = if seed % 2 == 0 { 512 } else { 4096 };
    let odd = if unit == 512 { 512 * 3 } else { 0 };
    let setup = Setup {
        volumes: vec![((1 << 20) + odd, unit, mode)],
        cache_bytes: 5 << 20,
        tier_pages: 8,
        commit_delay: if seed % 3 == 0 { 100_000 } else { 0 },
        volatile,
        limits: Limits { dirty_age: Duration::from_millis(3), ..Limits::default() },
        ..Setup::default()
    };
    println!(
        "seed {seed} unit {unit} mode {mode:?} power {power} switch {switch} volatile {volatile}"
    );
    let mut world = World::new(seed, setup);
    for _ in 0..5 {
        for _ in 0..world.rng.below(250) {
            while world.asked.len() > 16 {
                world.step();
            }
            world.random_op(0);
            if world.rng.below(4) == 0 {
                world.step();
            }
            if switch && world.rng.below(60) == 0 {
                let mode = ALL[world.rng.below(4) as usize];
                // Refused while a switch to pass-through is at its last step.
                if world.engine.set_mode(World::id(0), mode).is_ok() {
                    world.modes[0] = mode;
                }
            }
        }
        for _ in 0..world.rng.below(40) {
            world.step();
        }
        world.crash(power);
        world.check_all(0);
    }
    world.quiesce();
    world.drain(0);
    world.check_backing(0);
    assert_eq!(world.backing[0].overlaps, 0, "overlapping writes of the backing device");
    world
}

#[test]
fn a_crash_at_any_point_loses_nothing_acknowledged() {
    for seed in seeds(60) {
        crash_run(seed, ALL[(seed / 2 % 4) as usize], seed % 4 < 2, false, false);
    }
}

#[test]
fn a_crash_during_mode_switches_brings_nothing_stale_back() {
    for seed in seeds(60) {
        crash_run(1000 + seed, CacheMode::WriteBack, seed % 2 == 0, true, false);
    }
}

#[test]
fn a_power_loss_of_a_volatile_cache_loses_nothing_flushed() {
    for seed in seeds(60) {
        crash_run(2000 + seed, ALL[(seed / 2 % 4) as usize], true, seed % 8 > 5, true);
    }
}

/// Bytes written to the cache device for each byte of the host: random overwrites of 4 KiB, 32 in
/// flight, two turnovers of the cache, reclaim, destage, footers and marks included.
#[test]
fn random_overwrites_cost_at_most_115_percent_of_their_bytes() {
    let cache_bytes = 64 << 20;
    let setup = Setup {
        volumes: vec![(24 << 20, 4096, CacheMode::WriteBack)],
        cache_bytes,
        segment_slots: 1024,
        tier_pages: 0,
        limits: Limits { dirty_age: Duration::from_secs(5), ..Limits::default() },
        ..Setup::default()
    };
    let mut world = World::new(5, setup);
    world.backing[0].latency = (100_000, 300_000);
    let before = world.cache.written;
    let blocks = 2 * cache_bytes / 4096;
    for _ in 0..blocks {
        while world.asked.len() >= 32 {
            world.step();
        }
        let block = world.rng.below((24 << 20) / 4096);
        world.ask(0, RequestOp::Write, block * 4096, 4096);
    }
    world.quiesce();
    world.drain(0);
    let device = world.cache.written - before;
    let ratio = device as f64 / (blocks * 4096) as f64;
    let stats = world.engine.stats(forebay_io::Instant(world.now));
    println!("device bytes per host byte: {ratio:.4}; {:?}", stats.counts);
    assert!(ratio <= 1.15, "{ratio}");
    assert!(stats.reclaimed[0] > 10, "reclaim took part: {:?}", stats.reclaimed);
}
