//! Starts whose clean blocks come back while the engine serves, and crashes in their midst.

use super::scrub::{copies, rot};
use crate::harness::{Setup, World, seeds};
use forebay_cache::engine::{CacheMode, ControlError, CopyAt, EngineStats, Event, OrderState};
use forebay_io::{Instant, Outcome, RequestOp};

const K: u64 = 4096;
const VOLUME: u64 = 3 << 20;

fn stats(w: &World) -> EngineStats {
    w.engine.stats(Instant(w.now))
}

/// A cache of small segments that has read all of its volume.
fn full(seed: u64, mode: CacheMode) -> World {
    let setup = Setup {
        volumes: vec![(VOLUME, 4096, mode)],
        segment_slots: 16,
        tier_pages: 0,
        ..Setup::default()
    };
    let mut w = World::new(seed, setup);
    w.check_all(0);
    w.run_for(10_000_000);
    w
}

pub(super) fn until_warm(w: &mut World) {
    for _ in 0..1_000_000 {
        if stats(w).warming == 0 {
            return;
        }
        w.step();
    }
    panic!("the cache does not get warm: {:#?}", stats(w));
}

/// Crashes and starts; what was read last is not back yet.
fn crash_cold(w: &mut World) {
    w.crash(false);
    assert!(stats(w).warming > 8, "nothing is left to be warmed: {:#?}", stats(w));
}

/// Changes a byte in the body of each footer of the fill log; says where, and what it was.
fn rot_footers(w: &mut World) -> Vec<(u64, Vec<u8>)> {
    let all = w.cache.peek(0, w.setup.cache_bytes);
    let footers = (0u64..)
        .zip(all.chunks(4096))
        .filter(|(_, block)| block.starts_with(b"FBYFOOT\0") && block[84] == 1);
    let rotten: Vec<_> = footers.map(|(at, block)| (at * K, block.to_vec())).collect();
    for (at, block) in &rotten {
        let mut block = block.clone();
        block[200] ^= 1;
        w.cache.put(*at, &block);
    }
    rotten
}

/// Blocks whose copies come back last.
fn late(n: u64) -> u64 {
    VOLUME - (16 + n) * K
}

#[test]
fn all_is_right_at_once_and_all_comes_back() {
    for seed in 0..20 {
        let mut w = full(seed, CacheMode::WriteBack);
        w.write(0, late(0), 2 * K);
        w.write(0, 5 * K, K);
        w.run_for(5_000_000);
        let before = stats(&w).cached_blocks;
        crash_cold(&mut w);
        assert!(stats(&w).cached_blocks < before);
        let early = w.read(0, late(4), K);
        w.check_all(0);
        until_warm(&mut w);
        assert_eq!(stats(&w).cached_blocks, before, "seed {seed}");
        let misses = stats(&w).counts.blocks.misses;
        assert_eq!(w.read(0, late(4), K), early);
        w.check_all(0);
        assert_eq!(stats(&w).counts.blocks.misses, misses, "seed {seed}: all are hits");
    }
}

#[test]
fn a_copy_that_is_not_back_yet_never_outlives_a_write_around_it() {
    for seed in 0..20 {
        let mut w = full(seed, CacheMode::WriteAround);
        crash_cold(&mut w);
        w.write(0, late(0), K);
        w.write(0, late(3), 2 * K);
        if seed % 2 == 0 {
            // Before anything more came back: the log alone knows.
            w.crash(seed % 4 == 0);
        }
        until_warm(&mut w);
        w.check_all(0);
        w.crash(false);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn a_copy_that_was_made_dead_before_the_crash_does_not_come_back() {
    for seed in 0..20 {
        for (mode, op) in [
            (CacheMode::WriteAround, RequestOp::Write),
            (CacheMode::WriteBack, RequestOp::WriteZeroes { deallocate: false }),
            (CacheMode::WriteBack, RequestOp::Deallocate),
        ] {
            let mut w = full(seed, mode);
            // Content that zeroes can be told from.
            w.write(0, late(2), 3 * K);
            w.drain(0);
            w.crash(false);
            until_warm(&mut w);
            let tag = w.ask(0, op, late(2), 2 * K);
            assert_eq!(w.wait_done(tag), Outcome::Done);
            w.drain(0);
            crash_cold(&mut w);
            w.check_all(0);
            until_warm(&mut w);
            w.check_all(0);
        }
    }
}

#[test]
fn what_a_host_discards_or_zeroes_meanwhile_stays_so() {
    for seed in 0..20 {
        let mut w = full(seed, CacheMode::WriteAround);
        w.write(0, late(2), 4 * K);
        w.read(0, late(2), 4 * K);
        w.run_for(10_000_000);
        w.set_mode(0, CacheMode::WriteBack);
        crash_cold(&mut w);
        for (op, at) in [
            (RequestOp::WriteZeroes { deallocate: false }, late(2)),
            (RequestOp::Deallocate, late(0)),
        ] {
            let tag = w.ask(0, op, at, K);
            assert_eq!(w.wait_done(tag), Outcome::Done);
        }
        w.drain(0);
        until_warm(&mut w);
        w.check_all(0);
        w.crash(false);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn a_volume_that_bypasses_its_cache_forgets_what_was_not_back_yet() {
    for seed in 0..10 {
        let mut w = full(seed, CacheMode::WriteBack);
        w.crash(false);
        w.set_mode(0, CacheMode::PassThrough);
        w.write(0, late(0), 4 * K);
        until_warm(&mut w);
        w.set_mode(0, CacheMode::WriteBack);
        w.check_all(0);
        w.crash(seed % 2 == 0);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn scrub_waits_until_all_is_there() {
    let mut w = full(3, CacheMode::WriteBack);
    crash_cold(&mut w);
    let refused = w.engine.scrub(World::id(0), u64::MAX);
    assert!(matches!(refused, Err(ControlError::Busy(_))), "{refused:?}");
    until_warm(&mut w);
    w.engine.scrub(World::id(0), u64::MAX).unwrap();
}

/// Footers that cannot be read: their blocks are missing, nothing is wrong, and a write around them
/// still makes the copies dead that the device has.
#[test]
fn a_footer_that_is_damaged_later_costs_its_blocks() {
    for seed in 0..10 {
        let mut w = full(seed, CacheMode::WriteAround);
        crash_cold(&mut w);
        let rotten = rot_footers(&mut w);
        assert!(rotten.len() > 40);
        until_warm(&mut w);
        assert!(stats(&w).counts.lost_footers > 0);
        w.write(0, late(0), 2 * K);
        w.check_all(0);
        for (at, block) in rotten {
            // Unless it was written anew.
            if w.cache.peek(at, 128) == block[..128] {
                w.cache.put(at, &block);
            }
        }
        w.crash(false);
        until_warm(&mut w);
        w.check_all(0);
    }
}

/// Once in the life of its segment: where it is to warm the index, and not again where the segment is freed.
#[test]
fn a_lost_footer_is_counted_once() {
    let mut w = full(1, CacheMode::WriteBack);
    crash_cold(&mut w);
    let rotten = rot_footers(&mut w).len() as u64;
    until_warm(&mut w);
    assert!(stats(&w).counts.lost_footers > rotten / 2);
    let mut at = 0;
    while stats(&w).reclaimed[0] < 2 * stats(&w).segments {
        w.write(0, at % VOLUME, 16 * K);
        at += 16 * K;
    }
    let lost = stats(&w).counts.lost_footers;
    assert!(lost <= rotten, "{lost} of {rotten}");
    w.check_all(0);
}

/// Random load, with crashes at any moment of the start and after it.
#[test]
fn crashes_while_it_gets_warm() {
    for seed in seeds(60) {
        let modes = [
            CacheMode::WriteBack,
            CacheMode::WriteAround,
            CacheMode::WriteThrough,
            CacheMode::WriteBackOrdered,
        ];
        let mode = modes[seed as usize % modes.len()];
        let mut w = full(seed, mode);
        for _ in 0..6 {
            for _ in 0..30 + w.rng.below(60) {
                while w.asked.len() > 12 {
                    w.step();
                }
                w.random_op(0);
            }
            for _ in 0..w.rng.below(40) {
                w.step();
            }
            let power = w.rng.below(2) == 0;
            w.crash(power);
        }
        w.check_all(0);
        until_warm(&mut w);
        w.check_all(0);
        w.drain(0);
        w.check_all(0);
        w.check_backing(0);
    }
}

/// Of two copies of a block the one that was filled later, as the other was damaged, is freed later. As
/// long as it is on the device a write around the cache has to make it dead.
#[test]
fn the_index_names_the_copy_that_is_freed_last() {
    for freed in 1..16 {
        let setup = Setup {
            volumes: vec![
                (32 * K, 4096, CacheMode::WriteAround),
                (VOLUME, 4096, CacheMode::WriteBack),
            ],
            cache_bytes: 4 << 20,
            segment_slots: 16,
            tier_pages: 0,
            ..Setup::default()
        };
        let mut w = World::new(freed, setup);
        w.write(0, 0, 32 * K);
        // What is read afterwards seals the segments before.
        for at in 0..2 {
            w.read(0, 0, 32 * K);
            w.read(1, at * 32 * K, 32 * K);
            w.run_for(10_000_000);
            if at == 0 {
                (0..32).for_each(|block| rot(&mut w, block));
            }
        }
        assert_eq!(copies(&w, 5).len(), 2);
        w.crash(false);
        until_warm(&mut w);
        let mut at = 0;
        while stats(&w).reclaimed[0] < freed {
            w.write(1, at % VOLUME, 16 * K);
            at += 16 * K;
        }
        w.write(0, 0, 32 * K);
        w.crash(false);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn a_stop_while_it_gets_warm_keeps_all_and_brings_nothing_dead_back() {
    for seed in 0..20 {
        let mode = [CacheMode::WriteBack, CacheMode::WriteAround, CacheMode::WriteBackOrdered]
            [seed as usize % 3];
        let mut w = full(seed, mode);
        let before = stats(&w).cached_blocks;
        crash_cold(&mut w);
        w.write(0, late(0), K);
        for _ in 0..seed / 2 {
            w.step();
        }
        // What was asked before the stop is done before it.
        let tag = w.ask(0, RequestOp::Write, late(4), 2 * K);
        w.engine.stop();
        assert_eq!(w.wait_done(tag), Outcome::Done);
        w.wait_for(|event| *event == Event::Stopped);
        w.restart();
        w.check_all(0);
        until_warm(&mut w);
        w.check_all(0);
        w.run_for(10_000_000);
        assert_eq!(stats(&w).cached_blocks, before, "seed {seed}");
        w.crash(seed % 2 == 0);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn a_volume_that_is_detached_before_all_is_back_is_cold() {
    for seed in 0..10 {
        let mut w = full(seed, CacheMode::WriteBack);
        crash_cold(&mut w);
        for _ in 0..seed {
            w.step();
        }
        w.engine.detach(World::id(0)).unwrap();
        w.wait_for(|event| *event == Event::Detached { volume: World::id(0) });
        w.attach_all();
        until_warm(&mut w);
        let all = w.engine.locate(World::id(0), 0, VOLUME / K, 9);
        assert!(all.iter().all(|place| place.copy == CopyAt::Backing), "{all:?}");
        w.crash(false);
        until_warm(&mut w);
        assert_eq!(w.engine.locate(World::id(0), 0, VOLUME / K, 9), all);
    }
}

/// A clean volume is a prefix at once, and stays one while the index is made whole.
#[test]
fn batches_go_on_while_it_gets_warm() {
    for seed in 0..10 {
        let mut w = full(seed, CacheMode::WriteBackOrdered);
        crash_cold(&mut w);
        let order = |w: &World| w.engine.volume_stats(World::id(0)).unwrap().order;
        assert!(matches!(order(&w), Some(OrderState::Prefix(_))), "{:?}", order(&w));
        w.write(0, late(0), 2 * K);
        let flush = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(flush), Outcome::Done);
        w.drain(0);
        assert!(matches!(order(&w), Some(OrderState::Prefix(_))), "{:?}", order(&w));
        w.check_backing(0);
        until_warm(&mut w);
        w.check_all(0);
    }
}

#[test]
fn a_volume_that_comes_when_all_is_back_and_bypasses_its_cache_is_forgotten() {
    for seed in 0..6 {
        let mut w = full(seed, CacheMode::WriteBack);
        w.engine.stop();
        w.wait_for(|event| *event == Event::Stopped);
        let backing = core::mem::take(&mut w.backing);
        w.restart();
        until_warm(&mut w);
        assert!(stats(&w).cached_blocks > 500, "all of it came back without the volume");
        w.backing = backing;
        w.modes[0] = CacheMode::PassThrough;
        w.attach_all();
        w.run_for(1_000_000_000);
        for n in 0..8 {
            w.write(0, late(n * 7), K);
        }
        w.set_mode(0, CacheMode::WriteBack);
        w.check_all(0);
    }
}

#[test]
fn a_switch_goes_on_at_once_after_a_start_in_pass_through() {
    for (seed, mode) in (0..).zip([
        CacheMode::WriteThrough,
        CacheMode::WriteBack,
        CacheMode::WriteAround,
        CacheMode::WriteBackOrdered,
    ]) {
        let mut w = full(seed, CacheMode::WriteBack);
        w.engine.stop();
        w.wait_for(|event| *event == Event::Stopped);
        w.modes[0] = CacheMode::PassThrough;
        w.restart();
        let mut steps = 0;
        while w.engine.volume_stats(World::id(0)).unwrap().mode != CacheMode::WriteAround {
            w.step();
            steps += 1;
            assert!(steps < 10_000, "it does not get to the last step before pass-through");
        }
        w.write(0, 0, K);
        w.set_mode(0, mode);
        w.write(0, K, K);
        w.check_all(0);
        let order = w.engine.volume_stats(World::id(0)).unwrap().order.is_some();
        assert_eq!(order, mode == CacheMode::WriteBackOrdered);
    }
}
