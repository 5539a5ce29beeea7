//! Promises of docs/CONSISTENCY.md that no other test shows by itself.

use crate::harness::{Setup, World};
use forebay_cache::engine::{CacheMode, CopyAt, Event, Limits, OnFailure};
use forebay_io::{BlockError, DeviceError, Duration, Outcome, RequestOp};

const K: u64 = 4096;
const SIZE: u64 = 2 << 20;

fn world(seed: u64, mode: CacheMode, volatile: bool) -> World {
    let limits = Limits { dirty_age: Duration::from_secs(3600), ..Limits::default() };
    let volumes = vec![(SIZE, 4096, mode)];
    World::new(seed, Setup { volumes, volatile, limits, ..Setup::default() })
}

#[test]
fn a_flush_in_write_back_asks_nothing_of_the_backing_device() {
    for seed in 0..20 {
        let volatile = seed % 2 == 0;
        let mut w = world(seed, CacheMode::WriteBack, volatile);
        // The first one after a start: what went past the cache before it may not be flushed.
        let first = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(first), Outcome::Done);
        w.run_for(100_000_000);
        let flushes = w.backing[0].flushes;
        assert!(flushes > 0 && w.backing[0].in_flight() == 0);
        // From now on it answers nothing, so that whatever waits for it never ends.
        w.backing[0].faults.hang = true;
        for n in 0..50 {
            let block = w.rng.below(256);
            w.write(0, block * K, (1 + n % 8) * K);
            let before = w.cache.flushes;
            let flush = w.ask(0, RequestOp::Flush, 0, 0);
            assert_eq!(w.wait_done(flush), Outcome::Done);
            assert_eq!(
                w.cache.flushes > before,
                volatile,
                "the cache device is flushed if need be"
            );
            let block = w.rng.below(256);
            let fua = w.ask_with(0, RequestOp::Write, block * K, K, true, None);
            assert_eq!(w.wait_done(fua), Outcome::Done);
        }
        let backing = &w.backing[0];
        assert_eq!((backing.flushes, backing.writes, backing.in_flight()), (flushes, 0, 0));
        w.backing[0].faults.hang = false;
        w.crash(true);
        w.check_all(0);
    }
}

#[test]
fn without_dirty_data_the_backing_device_alone_has_every_acknowledged_write() {
    use CacheMode::{PassThrough, WriteAround, WriteThrough};
    for seed in 0..30 {
        let mode = [PassThrough, WriteAround, WriteThrough][seed as usize % 3];
        let mut w = world(seed, mode, seed % 2 == 0);
        for _ in 0..150 {
            w.random_op(0);
        }
        w.quiesce();
        // The cache is gone without a drain.
        w.check_backing(0);
        // With a power loss on top, what a Flush covered is there. In write-through the cache is what it
        // covers; the backing device's flush comes with destage.
        if mode == WriteThrough {
            w.drain(0);
        }
        let flush = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(flush), Outcome::Done);
        w.backing[0].crash(true);
        w.check_backing(0);
    }
}

#[test]
fn a_lost_cache_takes_no_more_than_what_was_dirty() {
    for seed in 0..20 {
        let mut w = world(seed, CacheMode::WriteBack, false);
        for _ in 0..80 {
            w.random_op(0);
        }
        w.quiesce();
        w.drain(0);
        for _ in 0..40 {
            let block = w.rng.below(SIZE / K);
            w.write(0, block * K, K);
        }
        let mut dirty = vec![false; (SIZE / K) as usize];
        w.engine.dirty_ranges(World::id(0), |first, blocks| {
            dirty[first as usize..(first + blocks) as usize].fill(true);
        });
        let count = dirty.iter().filter(|dirty| **dirty).count() as u64;
        assert!((1..=40).contains(&count), "{count} dirty blocks");
        assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().dirty_bytes, count * K);
        for (block, _) in (0..).zip(&dirty).filter(|(_, dirty)| !**dirty) {
            let data = w.backing[0].peek(block * K, K);
            let now = w.now;
            w.model[0].check_read(block * K, &data, now, now);
        }
    }
}

#[test]
fn what_a_write_that_timed_out_may_still_change_is_not_kept() {
    for seed in 0..10 {
        let limits = Limits { op_timeout: Duration::from_secs(1), ..Limits::default() };
        let volumes = vec![(SIZE, 4096, CacheMode::WriteAround)];
        let backing_volatile = seed % 2 == 0;
        let setup = Setup { volumes, backing_volatile, limits, ..Setup::default() };
        let mut w = World::new(seed, setup);
        w.backing[0].faults.write = Some(DeviceError::Timeout);
        let tag = w.ask(0, RequestOp::Write, 0, K);
        assert_eq!(w.wait_done(tag), Outcome::Failed(BlockError::NotReady));
        w.backing[0].faults.write = None;
        let read_on = |w: &mut World| {
            for _ in 0..3 {
                w.read(0, 0, K);
                w.run_for(20_000_000);
            }
            w.engine.locate(World::id(0), 0, 1, 1)[0].copy
        };
        assert_eq!(read_on(&mut w), CopyAt::Backing, "seed {seed}: it may still be carried out");
        w.run_for(2_000_000_000);
        assert_eq!(read_on(&mut w), CopyAt::Clean, "seed {seed}: the device has given it up");
    }
}

#[test]
fn a_flush_covers_what_hosts_have_seen_of_a_write_that_is_not_over() {
    for on_failure in [OnFailure::Wait, OnFailure::Fail] {
        let volumes = vec![(SIZE, 4096, CacheMode::PassThrough)];
        let setup = Setup { volumes, on_failure, backing_volatile: true, ..Setup::default() };
        let mut w = World::new(3, setup);
        w.backing[0].faults.write = Some(DeviceError::Timeout);
        let late = w.next_write;
        let write = w.ask(0, RequestOp::Write, 0, K);
        w.wait_for(|e| matches!(e, Event::BackingFailing { .. }));
        w.run_for(300_000_000);
        assert_eq!(w.asked.contains_key(&write), on_failure == OnFailure::Wait);
        let flush = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(flush), Outcome::Done);
        // The device carries it out, a host reads it, and asks that it stays.
        w.backing[0].put(0, &crate::harness::model::content(late, 0, K));
        w.read(0, 0, K);
        let flushes = w.backing[0].flushes;
        let flush = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(flush), Outcome::Done);
        assert_eq!(w.backing[0].flushes, flushes + 1, "{on_failure:?}");
    }
}

#[test]
fn while_a_write_around_the_cache_is_not_over_reads_come_from_the_backing_device() {
    for seed in 0..10 {
        let volumes = vec![(SIZE, 4096, CacheMode::WriteAround)];
        let on_failure = OnFailure::Wait;
        let mut w = World::new(seed, Setup { volumes, on_failure, ..Setup::default() });
        if seed % 2 == 0 {
            // What was cached before is made invalid first.
            (0..3).for_each(|_| drop(w.read(0, 0, 2 * K)));
            w.run_for(20_000_000);
        }
        w.backing[0].faults.write = Some(DeviceError::Timeout);
        let late = w.next_write;
        w.ask(0, RequestOp::Write, 0, 2 * K);
        w.wait_for(|e| matches!(e, Event::BackingFailing { .. }));
        for _ in 0..3 {
            w.read(0, 0, K);
            w.run_for(5_000_000);
        }
        let new = crate::harness::model::content(late, 0, 2 * K);
        w.backing[0].put(0, &new);
        assert!(w.read(0, 0, K) == new[..4096], "seed {seed}: an older copy");
        w.backing[0].faults.write = None;
        w.quiesce();
        w.check_all(0);
    }
}

#[test]
fn a_write_of_a_part_of_a_block_waits_for_what_may_still_change_the_rest() {
    for seed in 0..10 {
        let limits = Limits { op_timeout: Duration::from_secs(1), ..Limits::default() };
        let volumes = vec![(SIZE, 512, CacheMode::WriteAround)];
        let mut w = World::new(seed, Setup { volumes, limits, ..Setup::default() });
        w.backing[0].faults.write = Some(DeviceError::Timeout);
        let late = w.next_write;
        let tag = w.ask(0, RequestOp::Write, 0, K);
        assert_eq!(w.wait_done(tag), Outcome::Failed(BlockError::NotReady));
        w.backing[0].faults.write = None;
        w.set_mode(0, [CacheMode::WriteBack, CacheMode::WriteThrough][(seed % 2) as usize]);
        let part = w.ask(0, RequestOp::Write, 512, 512);
        w.run_for(100_000_000);
        assert!(w.asked.contains_key(&part), "seed {seed}: the rest of the block is in doubt");
        // The device carries the first write out, and a host sees it.
        w.backing[0].put(0, &crate::harness::model::content(late, 0, K));
        w.read(0, 0, K);
        assert_eq!(w.wait_done(part), Outcome::Done);
        w.read(0, 0, K);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn zeroes_that_cannot_be_written_yet_are_no_busy_loop() {
    let limits = Limits { op_timeout: Duration::from_secs(2), ..Limits::default() };
    let volumes = vec![(SIZE, 4096, CacheMode::WriteBack)];
    let mut w = World::new(1, Setup { volumes, volatile: true, limits, ..Setup::default() });
    let tag = w.ask(0, RequestOp::Deallocate, 0, 32 * K);
    assert_eq!(w.wait_done(tag), Outcome::Done);
    // Destage's own write of them times out: nothing else is written there for as long as that limit.
    w.backing[0].faults.write = Some(DeviceError::Timeout);
    w.engine.drain(World::id(0)).unwrap();
    w.wait_for(|e| matches!(e, Event::BackingFailing { .. }));
    w.backing[0].faults.write = None;
    // It answers, so that nothing but those blocks is held up.
    w.read(0, 64 * K, K);
    let (flushes, from) = (w.cache.flushes, w.now);
    while !w.events.iter().any(|e| matches!(e, Event::Drained { .. })) {
        // As a reactor that still polls after its last work.
        w.pump();
        w.step();
    }
    assert!(w.now - from > 1_000_000_000, "it waited for the device to give the write up");
    let flushes = w.cache.flushes - flushes;
    assert!(flushes < 40, "{flushes} flushes of the cache device meanwhile");
}
