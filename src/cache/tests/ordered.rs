//! `write-back-ordered`: between batches the backing device alone is a prefix of the acknowledged
//! writes. The check is a black box: real time and what the device holds, nothing of the engine but
//! its word that it is between batches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::manual_is_multiple_of,
    reason = "a test's helpers fail by panicking"
)]

mod harness;

use forebay_cache::engine::{CacheMode, Limits, OrderState};
use forebay_io::{DeviceError, Duration, Instant, Outcome, RequestOp};
use harness::prefix::Prefix;
use harness::{Setup, World, seeds};

const K: u64 = 1024;

fn setup(mode: CacheMode) -> Setup {
    Setup {
        volumes: vec![(1 << 20, 4096, mode)],
        limits: Limits {
            dirty_age: Duration::from_secs(3600),
            destage_from: 100,
            batch_age: Duration::from_millis(4),
            batch_bytes: 256 << 10,
            ..Limits::default()
        },
        ..Setup::default()
    }
}

fn world(seed: u64, mode: CacheMode) -> World {
    World::new(seed, setup(mode))
}

fn state(w: &World) -> OrderState {
    w.engine.volume_stats(World::id(0)).unwrap().order.unwrap()
}

/// Runs random requests, at most eight at once, and looks at the device after each step.
fn load(w: &mut World, prefix: &mut Prefix, steps: u64) -> Result<(), String> {
    for _ in 0..steps {
        w.step_with(|w| {
            if w.asked.len() < 8 && w.rng.below(3) == 0 {
                w.random_op(0);
            }
        });
        prefix.look(w)?;
    }
    Ok(())
}

fn end(w: &mut World, prefix: &mut Prefix) -> Result<(), String> {
    w.quiesce();
    prefix.look(w)?;
    w.drain(0);
    prefix.look(w)?;
    w.check_backing(0);
    w.check_all(0);
    assert_eq!(w.backing[0].overlaps, 0);
    let stats = w.engine.volume_stats(World::id(0)).unwrap();
    assert_eq!((stats.dirty_bytes, stats.kept_bytes), (0, 0));
    Ok(())
}

#[test]
fn between_batches_the_backing_device_is_a_prefix() {
    let (mut between, mut within, mut broken) = (0, 0, 0);
    for seed in seeds(12) {
        let mut w = world(seed, CacheMode::WriteBackOrdered);
        w.setup.commit_delay = (seed % 3) * 40_000;
        let mut prefix = Prefix::new(&w, 0);
        load(&mut w, &mut prefix, 4000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        between += prefix.between;
        within += prefix.within;
        broken += prefix.broken_within;
    }
    println!("{between} states between batches, {within} within, {broken} of those no prefix");
    assert!(between > 500 && broken > 0, "{between} {within} {broken}");
}

#[test]
fn plain_write_back_is_no_prefix_or_the_check_could_not_fail() {
    let mut broken = 0;
    for seed in seeds(4) {
        let mut w = world(seed, CacheMode::WriteBack);
        w.engine.set_limits(Limits { dirty_age: Duration::from_millis(4), ..w.setup.limits });
        let mut prefix = Prefix::new(&w, 0);
        load(&mut w, &mut prefix, 4000).unwrap();
        assert_eq!(prefix.between, 0);
        broken += prefix.broken_within;
    }
    assert!(broken > 0);
}

#[test]
fn a_crash_at_any_time_leaves_a_prefix_between_batches_and_recovery_comes_back_to_one() {
    let (mut between, mut within) = (0, 0);
    for seed in seeds(24) {
        let mut setup = setup(CacheMode::WriteBackOrdered);
        let power = seed % 2 == 0;
        setup.volatile = seed % 4 == 2;
        let mut w = World::new(seed, setup);
        let mut prefix = Prefix::new(&w, 0);
        for _ in 0..4 {
            let steps = 100 + w.rng.below(1500);
            load(&mut w, &mut prefix, steps).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            w.crash(power);
            if power && w.setup.volatile {
                prefix.power_lost();
            }
        }
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(matches!(state(&w), OrderState::Prefix(_)), "seed {seed}: {:?}", state(&w));
        between += prefix.between;
        within += prefix.within;
    }
    println!("{between} states between batches, {within} within");
    assert!(between > 500);
}

#[test]
fn a_host_flush_closes_the_batch() {
    let mut w = world(1, CacheMode::WriteBackOrdered);
    let limits = Limits { batch_age: Duration::from_secs(3600), ..w.setup.limits };
    w.engine.set_limits(limits);
    w.write(0, 0, 8 * K);
    w.run_for(100_000_000);
    assert_eq!(w.backing[0].writes, 0, "nothing closes the batch");
    let tag = w.ask(0, RequestOp::Flush, 0, 0);
    assert_eq!(w.wait_done(tag), Outcome::Done);
    w.run_for(100_000_000);
    w.check_backing(0);
    let last = w.engine.committed_lsn(World::id(0)).unwrap();
    assert_eq!(state(&w), OrderState::Prefix(last));
}

#[test]
fn a_batch_is_closed_by_its_size() {
    let mut w = world(1, CacheMode::WriteBackOrdered);
    let limits =
        Limits { batch_age: Duration::from_secs(3600), batch_bytes: 64 * K, ..w.setup.limits };
    w.engine.set_limits(limits);
    for n in 0..15 {
        w.write(0, n * 4 * K, 4 * K);
    }
    w.run_for(50_000_000);
    assert_eq!(w.backing[0].writes, 0);
    w.write(0, 15 * 4 * K, 4 * K);
    w.run_for(100_000_000);
    assert_eq!(w.backing[0].written, 64 * K);
}

/// A batch of which one write fails holds up the next one, and keeps what later writes replace.
#[test]
fn a_batch_that_failed_in_part_is_tried_again_before_the_next_begins() {
    for seed in seeds(6) {
        let mut w = world(seed, CacheMode::WriteBackOrdered);
        let mut prefix = Prefix::new(&w, 0);
        load(&mut w, &mut prefix, 300).unwrap();
        w.backing[0].faults.one_in = 3;
        load(&mut w, &mut prefix, 3000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(w.backing[0].injected > 0);
        w.backing[0].faults.one_in = 0;
        w.backing[0].faults.write = Some(DeviceError::Io(5));
        load(&mut w, &mut prefix, 1000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        w.backing[0].faults.write = None;
        w.backing[0].faults.flush = Some(DeviceError::Io(5));
        load(&mut w, &mut prefix, 1000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        w.backing[0].faults.flush = None;
        w.run_for(3_000_000_000);
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// A version that a later batch replaced is kept, in the segment's footer as well.
#[test]
fn a_replaced_version_is_written_before_what_replaced_it() {
    let mut w = world(3, CacheMode::WriteBackOrdered);
    w.engine.set_limits(Limits { batch_age: Duration::from_secs(3600), ..w.setup.limits });
    w.backing[0].faults.hang = true;
    let mut prefix = Prefix::new(&w, 0);
    for n in 0..16 {
        w.write(0, n * 4 * K, 4 * K);
    }
    w.ask(0, RequestOp::Flush, 0, 0);
    w.run_for(20_000_000);
    // The batch is under way and hangs; all of it is replaced, one segment after another.
    for round in 0..20 {
        for n in 0..16 {
            w.write(0, n * 4 * K, 4 * K);
        }
        let stats = w.engine.volume_stats(World::id(0)).unwrap();
        assert_eq!(stats.kept_bytes, 64 * K, "round {round}: one version of each block is kept");
        prefix.look(&w).unwrap();
    }
    w.backing[0].faults.hang = false;
    for _ in 0..400 {
        w.step();
        prefix.look(&w).unwrap();
    }
    end(&mut w, &mut prefix).unwrap();
}

/// A drain begins a round of destage at each poll: those that leave a failing volume out must not put
/// its batch off for ever. (Kept versions alone in their segments: nothing else would take them up.)
#[test]
fn a_drain_while_a_batch_waits_for_its_device_ends() {
    let mut w = world(8, CacheMode::WriteBackOrdered);
    let (batch_age, batch_bytes) = (Duration::from_secs(3600), u64::MAX);
    w.engine.set_limits(Limits { batch_age, batch_bytes, ..w.setup.limits });
    w.backing[0].faults.write = Some(DeviceError::Io(5));
    for _ in 0..2 {
        for n in 0..120 {
            w.write(0, n * 4 * K, 4 * K);
        }
        w.ask(0, RequestOp::Flush, 0, 0);
        w.run_for(5_000_000);
    }
    assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().kept_bytes, 480 * K);
    w.engine.drain(World::id(0)).unwrap();
    w.run_for(5_000_000);
    w.backing[0].faults.write = None;
    w.drain(0);
    w.check_backing(0);
}

/// Zeroes and deallocates of a later batch take the data of this one out of the index.
#[test]
fn zeroes_of_a_later_batch_do_not_hide_what_comes_before_them() {
    for seed in seeds(8) {
        let write_zeroes = seed % 2 == 0;
        let mut w = World::new(seed, Setup { write_zeroes, ..setup(CacheMode::WriteBackOrdered) });
        let mut prefix = Prefix::new(&w, 0);
        for _ in 0..2000 {
            w.step_with(|w| {
                if w.asked.len() < 4 {
                    let (at, len) = (w.rng.below(3) * 256 * K, 128 * K);
                    let op = match w.rng.below(4) {
                        0 => RequestOp::WriteZeroes { deallocate: false },
                        1 => RequestOp::Deallocate,
                        _ => RequestOp::Write,
                    };
                    w.ask(0, op, at, len);
                }
            });
            prefix.look(&w).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let (between, within) = (prefix.between, prefix.within);
        assert!(between > 3 && within > 3, "seed {seed}: {between} between, {within} within");
    }
}

#[test]
fn entering_the_mode_with_dirty_data_holds_after_the_first_batch_and_leaving_gives_it_up() {
    use CacheMode::{PassThrough, WriteAround, WriteBack, WriteBackOrdered, WriteThrough};
    let mut between = 0;
    for seed in seeds(12) {
        let mut w = world(seed, WriteBack);
        let mut prefix = Prefix::new(&w, 0);
        for mode in [
            WriteBackOrdered,
            WriteThrough,
            WriteBackOrdered,
            WriteAround,
            WriteBackOrdered,
            PassThrough,
            WriteBackOrdered,
            WriteBack,
            WriteBackOrdered,
        ] {
            load(&mut w, &mut prefix, 400).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            w.engine.set_mode(World::id(0), mode).unwrap();
            for _ in 0..200_000 {
                let now = w.engine.volume_stats(World::id(0)).unwrap();
                if now.mode == mode && now.target == mode {
                    break;
                }
                load(&mut w, &mut prefix, 1).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
        }
        load(&mut w, &mut prefix, 2000).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(matches!(state(&w), OrderState::Prefix(_)));
        between += prefix.between;
    }
    assert!(between > 100, "{between}");
}

/// A host that overwrites the same blocks for ever while the backing device is slow: what is kept
/// takes room like dirty data, nothing stalls in steps, batches go on being completed.
#[test]
fn overwriting_the_same_blocks_for_ever_does_not_fill_the_log() {
    let mut w = world(9, CacheMode::WriteBackOrdered);
    w.backing[0].latency = (5_000_000, 20_000_000);
    let mut prefix = Prefix::new(&w, 0);
    let (mut longest, mut most, mut prefixes) = (0, 0, 0);
    let mut last = None;
    for n in 0..6000u64 {
        let begin = w.now;
        let at = (n % 64) * 4 * K;
        let tag = w.ask(0, RequestOp::Write, at, 4 * K);
        while !w.done.contains_key(&tag) {
            w.step();
            prefix.look(&w).unwrap();
        }
        longest = longest.max(w.now - begin);
        let stats = w.engine.volume_stats(World::id(0)).unwrap();
        most = most.max(stats.dirty_bytes + stats.kept_bytes);
        if let Some(OrderState::Prefix(lsn)) = stats.order
            && last != Some(lsn)
        {
            last = Some(lsn);
            prefixes += 1;
        }
    }
    assert!(most <= 2 * 64 * 4 * K, "one dirty and one kept version of each block: {most}");
    assert!(longest < 100_000_000, "a write took {longest} ns");
    assert!(prefixes > 5, "{prefixes} batches were completed");
    end(&mut w, &mut prefix).unwrap();
}

/// A small cache whose log is full of what a failing backing device does not take: batches become
/// one, host writes go on to the dirty bound, and all ends well.
#[test]
fn a_backing_device_that_fails_for_long_makes_one_batch_of_many() {
    for seed in seeds(4) {
        let mut w = World::new(
            seed,
            Setup { cache_bytes: 3 << 20, segment_slots: 32, ..setup(CacheMode::WriteBackOrdered) },
        );
        let mut prefix = Prefix::new(&w, 0);
        load(&mut w, &mut prefix, 300).unwrap();
        w.backing[0].faults.write = Some(DeviceError::Io(5));
        for n in 0..1500u64 {
            w.write(0, (n % 48) * 4 * K, 4 * K);
            prefix.look(&w).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        w.backing[0].faults.write = None;
        w.run_for(3_000_000_000);
        end(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(matches!(state(&w), OrderState::Prefix(_)));
    }
}

#[test]
fn a_failed_cache_device_gives_the_order_up_and_says_so() {
    let mut w = world(4, CacheMode::WriteBackOrdered);
    w.write(0, 0, 64 * K);
    w.cache.faults.write = Some(DeviceError::Gone);
    w.cache.faults.read = Some(DeviceError::Gone);
    let tag = w.ask(0, RequestOp::Write, 0, 4 * K);
    w.wait_done(tag);
    assert_eq!(state(&w), OrderState::NotYet);
    assert!(w.engine.stats(Instant(w.now)).cache_failed.is_some());
    w.write(0, 0, 4 * K);
}

#[test]
fn a_stop_keeps_the_open_batch_and_a_detach_destages_it() {
    let mut w = world(5, CacheMode::WriteBackOrdered);
    let mut prefix = Prefix::new(&w, 0);
    load(&mut w, &mut prefix, 500).unwrap();
    w.quiesce();
    w.engine.stop();
    w.wait_for(|event| *event == forebay_cache::engine::Event::Stopped);
    w.restart();
    load(&mut w, &mut prefix, 500).unwrap();
    w.quiesce();
    prefix.look(&w).unwrap();
    w.engine.detach(World::id(0)).unwrap();
    w.wait_for(|event| *event == forebay_cache::engine::Event::Detached { volume: World::id(0) });
    w.check_backing(0);
}

#[test]
fn two_ordered_volumes_and_a_plain_one_do_not_hold_each_other_up() {
    use CacheMode::{WriteBack, WriteBackOrdered};
    let volumes = vec![
        (1 << 20, 4096, WriteBackOrdered),
        (1 << 20, 4096, WriteBackOrdered),
        (1 << 20, 4096, WriteBack),
    ];
    for seed in seeds(6) {
        let mut w = World::new(seed, Setup { volumes: volumes.clone(), ..setup(WriteBack) });
        let mut prefixes = [Prefix::new(&w, 0), Prefix::new(&w, 1)];
        for step in 0..4000 {
            w.step_with(|w| {
                if w.asked.len() < 8 && w.rng.below(3) == 0 {
                    let volume = w.rng.below(3) as usize;
                    w.random_op(volume);
                }
            });
            w.backing[1].faults.write = (step > 1000 && step < 2000).then_some(DeviceError::Io(5));
            for prefix in &mut prefixes {
                prefix.look(&w).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
        }
        w.quiesce();
        w.run_for(3_000_000_000);
        for volume in 0..3 {
            w.drain(volume);
            w.check_backing(volume);
            w.check_all(volume);
        }
        let between = [prefixes[0].between, prefixes[1].between];
        assert!(between[0] > 4 && between[1] > 2, "seed {seed}: {between:?}");
    }
}
