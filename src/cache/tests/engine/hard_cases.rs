//! The hard cases of the design, each by name.

use crate::harness::{Setup, World};
use forebay_cache::engine::{CacheMode, ControlError, CopyAt, Event, Limits, OnFailure};
use forebay_io::{BlockError, DeviceError, Duration, Instant, OpKind, Outcome, RequestOp};

const K: u64 = 4096;

fn world(seed: u64, mode: CacheMode) -> World {
    World::new(
        seed,
        Setup { volumes: vec![(2 << 20, 4096, mode)], tier_pages: 0, ..Setup::default() },
    )
}

fn lazy(seed: u64, mode: CacheMode) -> World {
    let limits = Limits { dirty_age: Duration::from_secs(3600), ..Limits::default() };
    World::new(
        seed,
        Setup { volumes: vec![(2 << 20, 4096, mode)], tier_pages: 0, limits, ..Setup::default() },
    )
}

/// A small cache in which destage and reclaim are always at work.
fn busy(seed: u64) -> World {
    let setup = Setup {
        volumes: vec![(1 << 20, 4096, CacheMode::WriteBack)],
        cache_bytes: 5 << 20,
        limits: Limits { dirty_age: Duration::from_millis(3), ..Limits::default() },
        ..Setup::default()
    };
    World::new(seed, setup)
}

/// Bytes of a sector's write number.
fn writes_in(data: &[u8]) -> Vec<u64> {
    data.chunks(4096).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}

#[test]
fn overwrite_while_its_destage_is_in_flight() {
    for seed in 0..40 {
        let mut w = lazy(seed, CacheMode::WriteBack);
        w.backing[0].latency = (1_000_000, 2_000_000);
        w.write(0, 0, 8 * K);
        w.engine.drain(World::id(0)).unwrap();
        while w.backing[0].in_flight() == 0 {
            w.step();
        }
        w.write(0, 2 * K, 2 * K);
        w.wait_for(|e| matches!(e, Event::Drained { .. }));
        w.check_all(0);
        w.check_backing(0);
        assert_eq!(w.backing[0].overlaps, 0);
    }
}

#[test]
fn fill_racing_a_write_to_the_same_block() {
    for seed in 0..60 {
        let mut w = world(seed, CacheMode::WriteBack);
        let read = w.ask(0, RequestOp::Read, 0, 4 * K);
        for _ in 0..w.rng.below(20) {
            w.step();
        }
        let write = w.ask(0, RequestOp::Write, K, K);
        w.wait_done(read);
        w.wait_done(write);
        w.run_for(10_000_000);
        w.check_all(0);
        w.crash(false);
        w.check_all(0);
        w.drain(0);
        w.crash(true);
        w.check_all(0);
    }
}

#[test]
fn fill_racing_a_write_that_goes_around_the_cache() {
    for seed in 0..60 {
        for mode in [CacheMode::WriteAround, CacheMode::WriteThrough] {
            let mut w = world(seed, mode);
            let read = w.ask(0, RequestOp::Read, 0, 4 * K);
            for _ in 0..w.rng.below(20) {
                w.step();
            }
            let write = w.ask(0, RequestOp::Write, K, K);
            w.wait_done(read);
            w.wait_done(write);
            w.run_for(10_000_000);
            w.check_all(0);
            w.crash(seed % 2 == 0);
            w.check_all(0);
        }
    }
}

/// Reads and writes of single blocks, one of `writes` a write, about `depth` at once.
fn single_blocks(w: &mut World, depth: usize, blocks: u64, writes: u64) {
    for _ in 0..3000 {
        while w.asked.len() > depth {
            w.step();
        }
        let block = w.rng.below(blocks);
        let op = if w.rng.below(writes) == 0 { RequestOp::Write } else { RequestOp::Read };
        w.ask(0, op, block * K, K);
    }
    w.quiesce();
}

#[test]
fn fill_racing_an_eviction() {
    for seed in 0..8 {
        let setup = Setup {
            volumes: vec![(16 << 20, 4096, CacheMode::WriteBack)],
            cache_bytes: 4 << 20,
            segment_slots: 32,
            tier_pages: 0,
            ..Setup::default()
        };
        let mut w = World::new(seed, setup);
        single_blocks(&mut w, 24, 4096, 4);
        let stats = w.engine.stats(Instant(w.now));
        assert!(stats.reclaimed[2] > 100 && stats.counts.fills > 300, "{stats:?}");
        w.crash(false);
        w.check_all(0);
    }
}

#[test]
fn read_during_a_mode_switch() {
    use CacheMode::{PassThrough, WriteAround, WriteBack, WriteThrough};
    for seed in 0..12 {
        let mut w = world(seed, WriteBack);
        for mode in [
            WriteThrough,
            WriteAround,
            PassThrough,
            WriteBack,
            PassThrough,
            WriteThrough,
            WriteBack,
            WriteAround,
            WriteBack,
        ] {
            for _ in 0..30 {
                w.random_op(0);
            }
            w.engine.set_mode(World::id(0), mode).unwrap();
            let mut slowest = 0;
            while !w.events.contains(&Event::ModeChanged { volume: World::id(0), mode }) {
                let asked = w.now;
                let block = w.rng.below(512);
                let tag = w.ask(0, RequestOp::Read, block * K, K);
                w.wait_done(tag);
                slowest = slowest.max(w.now - asked);
                assert_eq!(w.done[&tag], Outcome::Done);
            }
            w.events.clear();
            w.modes[0] = mode;
            // No read waits for the switch: a few backing reads at most.
            assert!(slowest < 20_000_000, "a read took {slowest} ns in a switch to {mode:?}");
        }
        w.quiesce();
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn a_switch_away_from_write_back_is_reached_when_the_backing_device_has_everything() {
    use CacheMode::{WriteAround, WriteThrough};
    let changed =
        |w: &World, mode| w.events.contains(&Event::ModeChanged { volume: World::id(0), mode });
    for seed in 0..24 {
        let modes = if seed % 2 == 0 { [WriteThrough; 2] } else { [WriteThrough, WriteAround] };
        let mut w = lazy(seed, CacheMode::WriteBack);
        w.write(0, 0, 200 * K);
        // Half of the seeds go on writing the blocks that are dirty.
        let hot = seed % 4 >= 2;
        w.engine.set_mode(World::id(0), modes[0]).unwrap();
        let began = w.now;
        let mut asked = modes[0] == modes[1];
        while !changed(&w, modes[1]) {
            while hot && w.asked.len() < 8 {
                let block = w.rng.below(200);
                w.ask(0, RequestOp::Write, block * K, K);
            }
            w.step();
            if !asked && w.engine.volume_stats(World::id(0)).unwrap().mode == WriteAround {
                // Another mode is asked for where the first switch settles.
                w.engine.set_mode(World::id(0), modes[1]).unwrap();
                asked = true;
            }
            assert!(w.now - began < 10_000_000_000, "seed {seed}: the switch ends");
        }
        assert!(asked, "seed {seed}");
        w.quiesce();
        w.check_backing(0);
        w.check_all(0);
    }
}

#[test]
fn pass_through_leaves_the_backing_device_identical_and_nothing_stale_comes_back() {
    for seed in 0..20 {
        let mut w = world(seed, CacheMode::WriteBack);
        for _ in 0..100 {
            w.random_op(0);
        }
        w.quiesce();
        w.set_mode(0, CacheMode::PassThrough);
        w.check_backing(0);
        w.write(0, 0, 64 * K);
        w.check_backing(0);
        w.crash(seed % 2 == 0);
        w.check_all(0);
        w.set_mode(0, CacheMode::WriteBack);
        w.check_all(0);
        w.crash(false);
        w.check_all(0);
    }
}

#[test]
fn discard_and_write_zeroes_against_dirty_clean_and_in_flight_data() {
    for seed in 0..40 {
        for op in [RequestOp::WriteZeroes { deallocate: false }, RequestOp::Deallocate] {
            let mut w = lazy(seed, CacheMode::WriteBack);
            w.write(0, 0, 32 * K);
            w.read(0, 64 * K, 32 * K);
            w.run_for(10_000_000);
            let flying = w.ask(0, RequestOp::Write, 128 * K, 32 * K);
            let tags = [
                w.ask(0, op, 0, 40 * K),
                w.ask(0, op, 60 * K, 40 * K),
                w.ask(0, op, 120 * K, 60 * K),
            ];
            for tag in tags.into_iter().chain([flying]) {
                assert_eq!(w.wait_done(tag), Outcome::Done);
            }
            let data = w.read(0, 0, 40 * K);
            assert!(data.iter().all(|byte| *byte == 0), "{op:?} reads as zeroes");
            w.write(0, 8 * K, 2 * K);
            w.crash(seed % 2 == 0);
            w.check_all(0);
            assert!(w.read(0, 20 * K, 20 * K).iter().all(|byte| *byte == 0));
            w.drain(0);
            w.check_backing(0);
            w.crash(true);
            w.check_all(0);
        }
    }
}

#[test]
fn compare_and_write_is_atomic_between_overlapping_ones() {
    for seed in 0..40 {
        let setup =
            Setup { volumes: vec![(1 << 20, 512, CacheMode::WriteBack)], ..Setup::default() };
        let mut w = World::new(seed, setup);
        w.write(0, 512, 512);
        let now = w.read(0, 512, 512);
        // Many with the same expectation at once: one wins.
        let tags: Vec<u64> = (0..8)
            .map(|_| {
                w.ask_with(
                    0,
                    RequestOp::CompareAndWrite,
                    512,
                    512,
                    false,
                    Some((now.clone(), None)),
                )
            })
            .collect();
        let won = tags.into_iter().filter(|tag| w.wait_done(*tag) == Outcome::Done).count();
        assert_eq!(won, 1);
        w.crash(false);
        assert_ne!(w.read(0, 512, 512), now);
    }
}

#[test]
fn sub_block_writes_on_a_512_byte_namespace() {
    for seed in 0..40 {
        let setup =
            Setup { volumes: vec![(1 << 20, 512, CacheMode::WriteBack)], ..Setup::default() };
        let mut w = World::new(seed, setup);
        // All sectors of a few blocks at once, in any order.
        let mut tags = Vec::new();
        for n in 0..64 {
            let sector = (n * 37) % 64;
            tags.push(w.ask(0, RequestOp::Write, sector * 512, 512));
        }
        for tag in tags {
            assert_eq!(w.wait_done(tag), Outcome::Done);
        }
        w.check_all(0);
        w.crash(true);
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn io_across_the_end_of_the_namespace() {
    let size = (1 << 20) + 512 * 5;
    for mode in [
        CacheMode::WriteBack,
        CacheMode::WriteThrough,
        CacheMode::WriteAround,
        CacheMode::PassThrough,
    ] {
        let setup = Setup { volumes: vec![(size, 512, mode)], ..Setup::default() };
        let mut w = World::new(3, setup);
        w.write(0, size - 512 * 7, 512 * 7);
        w.read(0, size - 512 * 9, 512 * 9);
        let tag =
            w.ask(0, RequestOp::WriteZeroes { deallocate: false }, size - 512 * 300, 512 * 300);
        assert_eq!(w.wait_done(tag), Outcome::Done);
        w.write(0, size - 512, 512);
        w.drain(0);
        w.check_backing(0);
        w.crash(true);
        w.check_all(0);
    }
}

#[test]
fn a_range_beyond_the_end_is_refused_and_changes_nothing() {
    use forebay_io::{HeapPool, Lba, Payload, Request, Tag};
    let mut w = world(1, CacheMode::WriteBack);
    let request = Request {
        tag: Tag(77),
        volume: World::id(0),
        op: RequestOp::Read,
        lba: Lba(511),
        blocks: 2,
        fua: false,
    };
    w.engine.handle_request(&request, Payload::None, &mut HeapPool, Instant(w.now));
    let event = w.engine.poll_event(&mut Vec::new());
    let outcome = Outcome::Failed(BlockError::Internal);
    assert_eq!(event, Some(Event::Done { tag: Tag(77), outcome }));
}

#[test]
fn a_cache_device_full_of_dirty_data() {
    for seed in 0..4 {
        let setup = Setup {
            volumes: vec![(16 << 20, 4096, CacheMode::WriteBack)],
            cache_bytes: 4 << 20,
            segment_slots: 32,
            limits: Limits { throttle_max: Duration::from_millis(3), ..Limits::default() },
            ..Setup::default()
        };
        let mut w = World::new(seed, setup);
        w.backing[0].faults.write = Some(DeviceError::Io(5));
        // Writes go on to the bound, then wait; none is lost and reads go on.
        let (end, mut n) = (w.now + 1_000_000_000, 0u64);
        while w.now < end {
            if w.asked.len() < 40 {
                n += 7;
                w.ask(0, RequestOp::Write, n % 4096 * K, K);
            }
            w.step();
        }
        let stats = w.engine.stats(Instant(w.now));
        assert!(stats.dirty_bytes * 10 >= stats.dirty_limit * 9, "{stats:?}");
        assert!(!w.asked.is_empty(), "some wait");
        assert!(w.events.iter().any(|e| matches!(e, Event::BackingFailing { .. })));
        w.read(0, 0, K);
        w.backing[0].faults.write = None;
        w.quiesce();
        assert!(w.events.iter().any(|e| matches!(e, Event::BackingBack { .. })));
        w.drain(0);
        w.check_all(0);
        w.check_backing(0);
    }
}

#[test]
fn the_backing_device_fails_hangs_and_vanishes_and_destage_resumes_by_itself() {
    for (seed, error) in
        [(1, DeviceError::Io(5)), (2, DeviceError::Gone), (3, DeviceError::NoSpace)]
    {
        let mut w = world(seed, CacheMode::WriteBack);
        w.write(0, 0, 64 * K);
        let faults = &mut w.backing[0].faults;
        (faults.write, faults.flush, faults.read) = (Some(error), Some(error), Some(error));
        w.run_for(500_000_000);
        w.write(0, 64 * K, 64 * K);
        assert_eq!(w.read(0, 0, 128 * K).len() as u64, 128 * K);
        let tag = w.ask(0, RequestOp::Read, 300 * K, K);
        assert_eq!(w.wait_done(tag), Outcome::Failed(BlockError::NotReady), "a miss");
        let cause = w.engine.cause(World::id(0), Instant(w.now)).unwrap();
        assert!(cause.contains("backing device fails"), "{cause}");
        w.backing[0].faults = Default::default();
        w.drain(0);
        w.check_all(0);
        w.check_backing(0);
        assert_eq!(w.engine.cause(World::id(0), Instant(w.now)), None);
    }
    // Hanging: what was in flight takes effect later; nothing overlaps it meanwhile.
    let limits = limits(Duration::from_millis(300));
    let setup = Setup { limits, tier_pages: 0, ..Setup::default() };
    let mut w = World::new(4, setup);
    w.write(0, 0, 16 * K);
    while w.backing[0].in_flight() == 0 {
        w.step();
    }
    w.backing[0].faults.hang = true;
    w.run_for(1_000_000_000);
    assert!(w.engine.volume_stats(World::id(0)).unwrap().backing_hanging.is_some());
    w.write(0, 0, 16 * K);
    w.read(0, 0, 16 * K);
    let miss = w.ask(0, RequestOp::Read, 400 * K, K);
    assert_eq!(w.wait_done(miss), Outcome::Failed(BlockError::NotReady));
    assert_eq!(w.backing[0].overlaps, 0);
    w.backing[0].faults.hang = false;
    w.drain(0);
    w.check_backing(0);
    assert_eq!(w.backing[0].overlaps, 0);
}

/// The first volume's backing device answers nothing more, from its next operation of this kind on.
fn hangs_at(w: &mut World, kind: OpKind) {
    while w.backing[0].in_flight_of(kind) == 0 {
        w.step();
    }
    w.backing[0].faults.hang = true;
}

/// Data is destaged soon, and a device counts as hanging after this time.
fn limits(op_timeout: Duration) -> Limits {
    Limits { dirty_age: Duration::from_millis(5), op_timeout, ..Limits::default() }
}

/// Hosts write the same few blocks many times over, and the log turns: what is dirty in it is moved, in an
/// instant, although the write of some of it to the backing device has no answer.
#[test]
fn writes_find_room_in_the_log_while_the_backing_device_hangs() {
    for seed in crate::harness::seeds(20) {
        for ends in [OpKind::Write, OpKind::Flush] {
            let mut w = busy(seed);
            w.write(0, 0, 64 * K);
            hangs_at(&mut w, ends);
            let (begun, mut longest) = (w.now, 0);
            for at in 0..400 {
                let asked = w.now;
                w.write(0, (64 + (at * 16 + seed) % 176) * K, 16 * K);
                longest = longest.max(w.now - asked);
            }
            assert!(w.engine.stats(Instant(w.now)).counts.log_bytes[2] >= 64 * K, "all that stays");
            assert!(longest < 3_000_000_000, "a write took {longest} ns");
            assert!(w.now - begun < 15_000_000_000, "{} ns", w.now - begun);
            w.backing[0].faults.hang = false;
            w.drain(0);
            w.check_all(0);
            w.check_backing(0);
            assert_eq!(w.backing[0].overlaps, 0);
        }
    }
}

/// What one backing device does not answer is no matter of the others: their data becomes clean, and
/// they can be taken out.
#[test]
fn a_backing_device_that_hangs_does_not_stop_destage_of_other_volumes() {
    for seed in crate::harness::seeds(40) {
        for ends in [OpKind::Write, OpKind::Flush] {
            let limits = limits(Duration::from_secs(1));
            let volume = (2 << 20, 4096, CacheMode::WriteBack);
            let mut w = World::new(
                seed,
                Setup { volumes: vec![volume; 2], limits, tier_pages: 0, ..Setup::default() },
            );
            w.write(0, 0, 16 * K);
            hangs_at(&mut w, ends);
            w.write(0, 0, 16 * K);
            w.write(1, 0, 16 * K);
            let begun = w.now;
            w.drain(1);
            assert!(w.now - begun < 3_000_000_000, "{} ns", w.now - begun);
            w.check_backing(1);
            // The log turns several times, and nobody waits for the first volume's data to leave it.
            for at in 0..400 {
                let asked = w.now;
                w.write(1, at * 16 % 240 * K, 16 * K);
                assert!(w.now - asked < 500_000_000, "write {at} took {} ns", w.now - asked);
            }
            assert!(w.engine.stats(Instant(w.now)).counts.log_bytes[2] >= 16 * K, "what stays");
            w.engine.detach(World::id(1)).unwrap();
            w.wait_for(|e| *e == Event::Detached { volume: World::id(1) });
            assert!(w.backing[0].in_flight() > 0, "it hangs");
            w.backing[0].faults.hang = false;
            w.drain(0);
            w.check_all(0);
            w.check_backing(0);
            assert_eq!(w.backing[0].overlaps, 0);
        }
    }
}

/// A device may say but once that it lost something: what it took while a flush was under way that failed
/// is written again, too.
#[test]
fn what_arrived_during_a_flush_that_failed_is_written_again() {
    for seed in crate::harness::seeds(20) {
        let mut w = world(seed, CacheMode::WriteThrough);
        w.write(0, 0, 4 * K);
        w.backing[0].latency = (50_000_000, 60_000_000);
        while w.backing[0].in_flight_of(OpKind::Flush) == 0 {
            w.step();
        }
        w.backing[0].latency = (1_000, 2_000);
        w.write(0, 16 * K, 2 * K);
        w.backing[0].faults.flush = Some(DeviceError::Io(5));
        w.wait_for(|e| matches!(e, Event::BackingFailing { .. }));
        w.backing[0].faults = Default::default();
        let before = w.backing[0].written;
        w.drain(0);
        assert_eq!(w.backing[0].written - before, 6 * K);
        w.check_backing(0);
    }
}

/// A stop waits until the device has said what it made of what it was given: the next start knows nothing of it.
#[test]
fn a_stop_waits_for_a_write_that_its_round_went_on_without() {
    let limits = limits(Duration::from_millis(300));
    let mut w = World::new(1, Setup { limits, tier_pages: 0, ..Setup::default() });
    w.write(0, 0, 16 * K);
    hangs_at(&mut w, OpKind::Write);
    w.run_for(2_000_000_000);
    w.engine.stop();
    w.run_for(2_000_000_000);
    assert!(!w.events.contains(&Event::Stopped));
    w.backing[0].faults.hang = false;
    w.wait_for(|e| *e == Event::Stopped);
    assert_eq!(w.backing[0].in_flight(), 0);
}

#[test]
fn requests_wait_for_a_failing_backing_device_if_so_configured() {
    for mode in [CacheMode::PassThrough, CacheMode::WriteThrough, CacheMode::WriteAround] {
        let setup = Setup {
            volumes: vec![(2 << 20, 4096, mode)],
            on_failure: OnFailure::Wait,
            tier_pages: 0,
            ..Setup::default()
        };
        let mut w = World::new(9, setup);
        let faults = &mut w.backing[0].faults;
        (faults.write, faults.read) = (Some(DeviceError::Io(5)), Some(DeviceError::Io(5)));
        let tags = [w.ask(0, RequestOp::Write, 0, 4 * K), w.ask(0, RequestOp::Read, 64 * K, 4 * K)];
        w.run_for(300_000_000);
        assert_eq!(w.asked.len(), 2, "{mode:?}: {:?}", w.done);
        w.backing[0].faults = Default::default();
        for tag in tags {
            assert_eq!(w.wait_done(tag), Outcome::Done);
        }
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn error_on_any_single_read_or_write_at_any_point() {
    let mut injected = 0;
    for seed in crate::harness::seeds(60) {
        println!("seed {seed}");
        let mut w = busy(seed);
        w.cache.faults.one_in = if seed % 2 == 0 { 30 } else { 0 };
        w.backing[0].faults.one_in = if seed % 2 == 1 { 8 } else { 0 };
        for _ in 0..400 {
            while w.asked.len() > 16 {
                w.step();
            }
            w.random_op(0);
        }
        w.quiesce();
        injected += w.cache.injected + w.backing[0].injected;
        (w.cache.faults, w.backing[0].faults) = Default::default();
        if w.events.iter().any(|e| matches!(e, Event::CacheFailed { .. })) {
            continue;
        }
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
        w.crash(false);
        w.check_all(0);
    }
    println!("{injected} errors injected");
    assert!(injected > 300, "{injected}");
}

#[test]
fn the_cache_device_fails_clean_reads_and_writes_go_on_dirty_ranges_are_listed() {
    let mut w = lazy(5, CacheMode::WriteBack);
    w.write(0, 0, 8 * K);
    w.drain(0);
    w.write(0, 4 * K, 2 * K);
    let error = DeviceError::Gone;
    let faults = &mut w.cache.faults;
    (faults.read, faults.write, faults.flush) = (Some(error), Some(error), Some(error));
    // A clean block is served from the backing device, and the failure is noticed.
    w.read(0, 0, 2 * K);
    w.wait_for(|e| matches!(e, Event::CacheFailed { .. }));
    w.read(0, 0, 2 * K);
    let lost = w.ask(0, RequestOp::Read, 4 * K, K);
    assert_eq!(w.wait_done(lost), Outcome::Failed(BlockError::Unrecovered));
    let mut listed = Vec::new();
    w.engine.dirty_ranges(World::id(0), |first, blocks| listed.push((first, blocks)));
    assert_eq!(listed, [(4, 2)]);
    let places = w.engine.locate(World::id(0), 0, 8, 10);
    let places: Vec<_> = places.iter().map(|p| (p.block, p.blocks, p.copy)).collect();
    let wanted = [(0, 4, CopyAt::Backing), (4, 2, CopyAt::Lost), (6, 2, CopyAt::Backing)];
    assert_eq!(places, wanted);
    assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().lost_bytes, 2 * K);
    // Writes go to the backing device and heal what they cover.
    w.write(0, 4 * K, K);
    w.write(0, 100 * K, K);
    w.read(0, 4 * K, K);
    let writes = writes_in(&w.backing[0].peek(4 * K, K));
    assert_eq!(writes, [3]);
    assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().lost_bytes, K);
    let lost = w.ask(0, RequestOp::Read, 5 * K, K);
    assert_eq!(w.wait_done(lost), Outcome::Failed(BlockError::Unrecovered));
    assert!(w.engine.cause(World::id(0), Instant(w.now)).unwrap().contains("cache device failed"));
}

#[test]
fn nothing_more_goes_to_a_cache_device_that_refuses_writes() {
    for seed in crate::harness::seeds(120) {
        let mut w = busy(seed);
        // Until reclaim has reads under way, whose blocks come when the device has failed.
        let written = |w: &World| w.engine.stats(Instant(w.now)).counts.log_bytes[2];
        let moved = written(&w);
        while written(&w) < moved + (1 + seed % 16) * 4 * K {
            match w.asked.len() {
                0..16 => w.random_op(0),
                _ => w.step(),
            }
        }
        w.cache.faults.write = Some(DeviceError::Gone);
        w.quiesce();
        while !w.events.iter().any(|e| matches!(e, Event::CacheFailed { .. })) {
            w.random_op(0);
            w.step();
        }
        w.run_for(20_000_000);
        let refused = w.engine.stats(Instant(w.now)).counts.cache_errors;
        w.run_for(50_000_000);
        assert_eq!(w.engine.stats(Instant(w.now)).counts.cache_errors, refused, "seed {seed}");
    }
}

#[test]
fn a_volatile_cache_device_fails_at_a_flush_and_everything_that_waits_for_it_ends() {
    for error in [DeviceError::Gone, DeviceError::Io(5)] {
        let volumes = vec![(2 << 20, 4096, CacheMode::WriteBack)];
        let mut w = World::new(8, Setup { volumes, volatile: true, ..Setup::default() });
        w.write(0, 0, 4 * K);
        w.drain(0);
        w.cache.faults.flush = Some(error);
        let asked: Vec<u64> = (0..20)
            .map(|n| match n % 2 {
                0 => w.ask(0, RequestOp::Write, n * 8 * K, K),
                _ => w.ask(0, RequestOp::Flush, 0, 0),
            })
            .collect();
        for tag in asked {
            w.wait_done(tag);
        }
        w.wait_for(|e| matches!(e, Event::CacheFailed { .. }));
        // Nothing is tried for ever.
        w.run_for(5_000_000_000);
        let errors = w.engine.stats(Instant(w.now)).counts.cache_errors;
        assert!(errors < 20, "{errors} tries of a device that failed");
        let flush = w.ask(0, RequestOp::Flush, 0, 0);
        assert_eq!(w.wait_done(flush), Outcome::Done, "the backing device's own");
    }
}

/// A world whose devices count as hanging after 300 ms, with half a second of looks on top.
fn impatient(seed: u64) -> World {
    let limits = Limits {
        dirty_age: Duration::from_secs(3600),
        op_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let volumes = vec![(2 << 20, 4096, CacheMode::WriteBack)];
    World::new(seed, Setup { volumes, tier_pages: 0, limits, ..Setup::default() })
}

#[test]
fn an_answer_that_asks_for_another_try_is_held_back_while_a_device_is_out() {
    let mut w = world(6, CacheMode::PassThrough);
    let faults = &mut w.backing[0].faults;
    (faults.write, faults.read) = (Some(DeviceError::Io(5)), Some(DeviceError::Io(5)));
    // A host that tries again as soon as it is answered.
    let began = w.now;
    let mut tries = 0;
    while w.now < began + 2_000_000_000 {
        let tag = w.ask(0, RequestOp::Write, 0, K);
        assert_eq!(w.wait_done(tag), Outcome::Failed(BlockError::NotReady));
        tries += 1;
    }
    assert!((5..=21).contains(&tries), "{tries} tries in two seconds");
    w.backing[0].faults = Default::default();
    let began = w.now;
    w.write(0, 0, K);
    assert!(w.now - began < 50_000_000, "what succeeds is not held back");
    // A stop does not wait.
    w.backing[0].faults.write = Some(DeviceError::Io(5));
    let tag = w.ask(0, RequestOp::Write, 0, K);
    w.engine.stop();
    let began = w.now;
    assert_eq!(w.wait_done(tag), Outcome::Failed(BlockError::NotReady));
    assert!(w.now - began < 50_000_000);
}

#[test]
fn a_cache_device_that_hangs_counts_as_failed_and_what_it_does_later_is_nobodys() {
    for seed in 0..20 {
        let mut w = impatient(seed);
        w.write(0, 0, 16 * K);
        w.drain(0);
        w.write(0, 16 * K, 16 * K);
        // Destage, which holds the places that it is to write, begins on some of the dirty blocks.
        if seed % 2 == 0 {
            w.engine.drain(World::id(0)).unwrap();
            while w.cache.in_flight() == 0 {
                w.step();
            }
        }
        w.cache.faults.hang = true;
        let write = w.ask(0, RequestOp::Write, 40 * K, 2 * K);
        let clean = w.ask(0, RequestOp::Read, 0, 4 * K);
        let dirty = w.ask(0, RequestOp::Read, 18 * K, K);
        let asked = w.now;
        assert_eq!(w.wait_done(write), Outcome::Failed(BlockError::NotReady), "to be tried again");
        assert_eq!(w.wait_done(clean), Outcome::Done, "from the backing device");
        assert_eq!(w.wait_done(dirty), Outcome::Failed(BlockError::Unrecovered));
        let took = Duration::from_nanos(w.now - asked);
        assert!(took < Duration::from_secs(4), "bounded: {took:?}");
        w.wait_for(|e| *e == Event::CacheFailed { error: DeviceError::Timeout });
        // Writes go on, also of blocks that were being destaged, and what was clean is read.
        w.write(0, 16 * K, 8 * K);
        w.write(0, 40 * K, 2 * K);
        w.read(0, 0, 24 * K);
        w.read(0, 40 * K, 2 * K);
        let mut listed = Vec::new();
        w.engine.dirty_ranges(World::id(0), |first, blocks| listed.push((first, blocks)));
        assert_eq!(listed, [(24, 8)], "seed {seed}");
        assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().lost_bytes, 8 * K);
        // The device comes back: its late answers change nothing, and it is not used again.
        let ops = w.cache.writes;
        let late = w.cache.in_flight() as u64;
        w.cache.faults.hang = false;
        w.run_for(2_000_000_000);
        assert!(w.cache.writes <= ops + late, "only what was under way");
        w.read(0, 0, 24 * K);
        w.write(0, 24 * K, 8 * K);
        w.read(0, 16 * K, 16 * K);
        assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().lost_bytes, 0);
        assert_eq!(w.backing[0].overlaps, 0);
        // A clean stop ends although nothing more can be written to it.
        w.engine.stop();
        w.wait_for(|e| *e == Event::Stopped);
    }
}

#[test]
fn a_pause_of_the_whole_process_is_no_failure_of_its_cache_device() {
    let mut w = impatient(3);
    w.write(0, 0, 16 * K);
    w.cache.faults.hang = true;
    let write = w.ask(0, RequestOp::Write, 40 * K, 2 * K);
    let read = w.ask(0, RequestOp::Read, 0, 4 * K);
    w.step();
    // Time goes on, polls do not. Answers that came meanwhile are seen one poll after the pause.
    w.now += 60_000_000_000;
    w.step();
    assert!(w.engine.stats(Instant(w.now)).cache_hanging.is_some(), "it looks like that once");
    w.cache.faults.hang = false;
    assert_eq!(w.wait_done(write), Outcome::Done);
    assert_eq!(w.wait_done(read), Outcome::Done);
    w.run_for(5_000_000_000);
    let stats = w.engine.stats(Instant(w.now));
    assert!(stats.cache_failed.is_none() && stats.cache_hanging.is_none(), "{stats:?}");
    w.check_all(0);
}

#[test]
fn a_wrong_crc_on_a_clean_block_is_a_miss_and_on_a_dirty_one_a_media_error() {
    let mut w = lazy(6, CacheMode::WriteBack);
    w.write(0, 0, 4 * K);
    w.drain(0);
    w.write(0, 8 * K, K);
    // Rot every data block on the cache device that holds this volume's data.
    let size = w.cache.info.size;
    let mut rotten = 0;
    for at in (0..size).step_by(4096) {
        let mut block = w.cache.peek(at, K);
        let write = u64::from_le_bytes(block[..8].try_into().unwrap());
        let place = u64::from_le_bytes(block[8..16].try_into().unwrap());
        if (1..=2).contains(&write) && place < 1 << 20 {
            block[100] ^= 1;
            w.cache.put(at, &block);
            rotten += 1;
        }
    }
    assert_eq!(rotten, 5);
    assert_eq!(w.read(0, 0, 4 * K).len() as u64, 4 * K);
    let before = w.engine.stats(Instant(w.now)).counts.blocks.misses;
    w.run_for(20_000_000);
    w.read(0, 0, 4 * K);
    assert_eq!(
        w.engine.stats(Instant(w.now)).counts.blocks.misses,
        before,
        "refetched and cached again"
    );
    let bad = w.ask(0, RequestOp::Read, 8 * K, K);
    assert_eq!(w.wait_done(bad), Outcome::Failed(BlockError::Unrecovered));
    w.wait_for(|e| matches!(e, Event::DirtyLost { block: 8, blocks: 1, .. }));
    assert_eq!(w.engine.volume_stats(World::id(0)).unwrap().lost_bytes, K);
    // It stays so until it is written.
    w.engine.stop();
    w.wait_for(|e| *e == Event::Stopped);
    w.restart();
    let bad = w.ask(0, RequestOp::Read, 8 * K, K);
    assert_eq!(w.wait_done(bad), Outcome::Failed(BlockError::Unrecovered));
    w.write(0, 8 * K, K);
    w.read(0, 8 * K, K);
    w.drain(0);
    w.check_backing(0);
}

#[test]
fn a_backing_device_of_the_wrong_size_or_with_someone_elses_data() {
    let mut w = world(7, CacheMode::WriteBack);
    w.write(0, 0, 4 * K);
    w.cache.crash(false);
    let (header, recovered) = crate::harness::recover(&mut w.cache);
    let config = forebay_cache::engine::EngineConfig {
        limits: Limits::default(),
        tier_pages: 0,
        policy: forebay_cache::policy::PolicyKind::S3Fifo,
        ghost_blocks: 0,
        volatile_write_cache: false,
    };
    let mut engine =
        forebay_cache::engine::Engine::<forebay_io::HeapBuf>::new(&config, header, recovered);
    let right = w.spec(0);
    let mut spec = right.clone();
    spec.backing.identity = "another".to_owned();
    let error = engine.add_volume(&spec).unwrap_err();
    assert!(matches!(error, ControlError::OtherBacking { .. }), "{error}");
    let mut spec = right.clone();
    spec.backing.size -= 4096;
    let error = engine.add_volume(&spec).unwrap_err();
    assert_eq!(error, ControlError::OtherSize { recorded: 2 << 20, found: (2 << 20) - 4096 });
    let mut spec = right.clone();
    spec.block_size = 512;
    assert!(matches!(engine.add_volume(&spec), Err(ControlError::OtherBlockSize { .. })));
    engine.add_volume(&right).unwrap();
    assert_eq!(engine.add_volume(&right), Err(ControlError::AlreadyThere(right.id)));
}

#[test]
fn crash_in_drain() {
    for seed in 0..60 {
        let mut w = lazy(seed, CacheMode::WriteBack);
        for n in 0..40 {
            w.write(0, n * 8 * K, 2 * K);
        }
        w.engine.drain(World::id(0)).unwrap();
        for _ in 0..w.rng.below(60) {
            w.step();
        }
        w.crash(seed % 2 == 0);
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn after_a_clean_stop_all_is_there_and_dirty_data_stays_dirty() {
    for seed in 0..20 {
        let mut w = lazy(seed, CacheMode::WriteBack);
        for _ in 0..60 {
            w.random_op(0);
        }
        w.quiesce();
        let dirty = w.engine.stats(Instant(w.now)).dirty_bytes;
        w.engine.stop();
        w.wait_for(|e| *e == Event::Stopped);
        assert_eq!(w.cache.in_flight(), 0);
        w.restart();
        assert_eq!(w.engine.stats(Instant(w.now)).dirty_bytes, dirty);
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn a_stop_does_not_wait_until_all_is_destaged() {
    for seed in 0..20 {
        let mut w = lazy(seed, CacheMode::WriteBack);
        for n in 0..120 {
            w.write(0, n * 4 * K, 2 * K);
        }
        w.quiesce();
        w.backing[0].latency = (50_000_000, 60_000_000);
        w.engine.drain(World::id(0)).unwrap();
        w.run_for(20_000_000);
        let (began, dirty) = (w.now, w.engine.stats(Instant(w.now)).dirty_bytes);
        w.engine.stop();
        w.wait_for(|e| *e == Event::Stopped);
        assert!(w.now - began < 500_000_000, "{} ms", (w.now - began) / 1_000_000);
        assert!(w.engine.stats(Instant(w.now)).dirty_bytes > dirty / 2);
        w.restart();
        w.check_all(0);
        w.drain(0);
        w.check_backing(0);
    }
}

#[test]
fn the_hit_ratio_after_a_crash_is_at_least_95_percent_of_before() {
    for seed in 0..5 {
        let setup = Setup {
            volumes: vec![(4 << 20, 4096, CacheMode::WriteBack)],
            cache_bytes: 12 << 20,
            tier_pages: 0,
            ..Setup::default()
        };
        let mut w = World::new(seed, setup);
        single_blocks(&mut w, 16, 768, 3);
        w.run_for(50_000_000);
        let cached = w.engine.stats(Instant(w.now)).cached_blocks;
        w.crash(true);
        super::staged::until_warm(&mut w);
        let after = w.engine.stats(Instant(w.now)).cached_blocks;
        assert!(after * 100 >= cached * 95, "{after} of {cached} blocks");
        assert!(cached > 600, "{cached}");
    }
}

#[test]
fn a_detached_volume_comes_back_cold_and_right() {
    for seed in 0..20 {
        let mut w = world(seed, CacheMode::WriteBack);
        w.write(0, 0, 64 * K);
        w.engine.detach(World::id(0)).unwrap();
        w.wait_for(|e| matches!(e, Event::Detached { .. }));
        w.check_backing(0);
        // Somebody else changes the backing device.
        let data = vec![0; 64 * 4096];
        w.backing[0].put(0, &data);
        w.model[0] = crate::harness::model::Model::new(2 << 20);
        if seed % 2 == 0 {
            w.crash(false);
        } else {
            w.attach_all();
        }
        assert!(w.read(0, 0, 64 * K).iter().all(|byte| *byte == 0));
    }
}

/// Two volumes whose dirty data waits for its age; the first one's backing device refuses it.
fn two_volumes(seed: u64) -> World {
    let limits = Limits { dirty_age: Duration::from_secs(3600), ..Limits::default() };
    let volumes = vec![(2 << 20, 4096, CacheMode::WriteBack); 2];
    let mut w = World::new(seed, Setup { volumes, tier_pages: 0, limits, ..Setup::default() });
    let faults = &mut w.backing[0].faults;
    (faults.write, faults.flush) = (Some(DeviceError::Io(5)), Some(DeviceError::Io(5)));
    for n in 0..30 {
        w.write(0, n * 8 * K, 3 * K);
        w.write(1, n * 8 * K, 3 * K);
    }
    let zeroes = w.ask(0, RequestOp::WriteZeroes { deallocate: false }, 300 * K, 100 * K);
    w.wait_done(zeroes);
    w.read(0, 500 * K, 4 * K);
    w
}

#[test]
fn a_volume_is_detached_without_its_dirty_data_although_its_backing_device_fails() {
    let mut w = two_volumes(1);
    // A detach that destages cannot end; it may be taken back, or be turned into one that drops.
    w.engine.detach(World::id(0)).unwrap();
    w.run_for(100_000_000);
    let refused = w.ask(0, RequestOp::Read, 0, K);
    assert_eq!(w.wait_done(refused), Outcome::Failed(BlockError::NotReady));
    assert!(w.engine.cancel_detach(World::id(0)));
    w.check_all(0);
    w.engine.detach(World::id(0)).unwrap();
    w.run_for(1_000_000_000);
    assert!(w.engine.volume_stats(World::id(0)).unwrap().dirty_bytes >= 90 * K);
    // The destage on its behalf took the other volume's along.
    let others: Vec<u64> = (0..90).map(|n| w.ask(1, RequestOp::Write, n * 4 * K, K)).collect();
    let asked = w.now;
    w.engine.detach_discarding(World::id(0)).unwrap();
    w.wait_for(|e| *e == Event::Detached { volume: World::id(0) });
    let took = Duration::from_nanos(w.now - asked);
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!w.engine.cancel_detach(World::id(0)));
    assert!(w.engine.volume_stats(World::id(0)).is_none());
    for tag in others {
        assert_eq!(w.wait_done(tag), Outcome::Done);
    }
    // What is counted is the other volume's alone, and its log goes on being reclaimed.
    let of_other = w.engine.volume_stats(World::id(1)).unwrap().dirty_bytes;
    assert_eq!(w.engine.stats(Instant(w.now)).dirty_bytes, of_other);
    assert!(of_other > 0 && of_other <= 90 * K, "{of_other}");
    for n in 0..4000 {
        w.write(1, (n * 7 % 500) * K, 4 * K);
    }
    w.drain(1);
    w.check_all(1);
    w.check_backing(1);
    assert_eq!(w.engine.stats(Instant(w.now)).dirty_bytes, 0);
    assert_eq!(w.backing[0].writes, 0, "nothing of it reached the backing device");
}

#[test]
fn a_crash_while_dirty_data_is_dropped_leaves_all_of_it_or_none() {
    let mut left = [0, 0];
    for seed in 0..80 {
        let mut w = two_volumes(seed);
        let before = w.engine.volume_stats(World::id(0)).unwrap().dirty_bytes;
        w.engine.detach_discarding(World::id(0)).unwrap();
        for _ in 0..w.rng.below(12) {
            w.step();
        }
        w.crash(seed % 2 == 0);
        let after = w.engine.volume_stats(World::id(0)).unwrap().dirty_bytes;
        left[usize::from(after > 0)] += 1;
        if after == 0 {
            // The volume is what its backing device has: zeroes, as it was never written.
            w.model[0] = crate::harness::model::Model::new(2 << 20);
        } else {
            assert_eq!(after, before, "seed {seed}");
        }
        w.check_all(0);
        w.check_all(1);
        w.engine.detach_discarding(World::id(0)).unwrap();
        w.wait_for(|e| *e == Event::Detached { volume: World::id(0) });
        w.drain(1);
        w.check_backing(1);
    }
    assert!(left[0] > 5 && left[1] > 5, "both were seen: {left:?}");
}

#[test]
fn a_clean_volume_detaches_in_less_than_a_second() {
    let mut w = world(1, CacheMode::WriteBack);
    w.write(0, 0, 64 * K);
    w.drain(0);
    let start = w.now;
    w.engine.detach(World::id(0)).unwrap();
    w.wait_for(|e| matches!(e, Event::Detached { .. }));
    assert!(w.now - start < 1_000_000_000);
}

#[test]
fn dirty_data_is_never_older_than_its_bound_by_much() {
    let mut w = world(2, CacheMode::WriteBack);
    for _ in 0..50 {
        let block = w.rng.below(512);
        w.write(0, block * K, K);
        w.run_for(5_000_000);
        let age = w.engine.stats(Instant(w.now)).oldest_dirty.unwrap_or_default();
        assert!(age < Duration::from_millis(50 + 50), "{age:?}");
    }
}

#[test]
fn a_shard_asks_for_extents_before_it_evicts_and_keeps_them_over_a_crash() {
    use forebay_cache::engine::{Engine, EngineConfig};
    use forebay_cache::format::geometry::Extent;
    let mut w = world(1, CacheMode::WriteBack);
    // The harness made one shard that owns all; format again with two that own nothing.
    let mut options = forebay_cache::format::plan::FormatOptions::new(crate::harness::uuid(200));
    (options.shards, options.segment_slots) = (Some(2), Some(64));
    let plan = forebay_cache::format::plan::plan(&w.cache.info, &options).unwrap();
    let extent_segments = plan.header.extent_segments;
    for step in plan.steps {
        if let forebay_cache::format::plan::Step::Write { offset, bytes } = step {
            w.cache.put(offset, &bytes);
        }
    }
    let (header, recovered) = crate::harness::recover_into(&mut w.cache, 4096);
    assert_eq!(recovered.map.segments(), 0);
    let config = EngineConfig {
        limits: Limits::default(),
        tier_pages: 0,
        policy: forebay_cache::policy::PolicyKind::S3Fifo,
        ghost_blocks: 0,
        volatile_write_cache: false,
    };
    w.engine = Engine::new(&config, header, recovered);
    w.engine.allow_extents();
    w.attach_all();
    let tag = w.ask(0, RequestOp::Write, 0, 4 * K);
    w.wait_for(|e| *e == Event::WantsExtent);
    let count = extent_segments.min(12);
    let too_large = Extent { first: 0, count: 100 };
    assert!(matches!(w.engine.extent_granted(too_large), Err(ControlError::IndexTooSmall { .. })));
    w.engine.extent_granted(Extent { first: 0, count }).unwrap();
    assert_eq!(w.wait_done(tag), Outcome::Done);
    w.engine.extent_denied();
    for _ in 0..200 {
        let block = w.rng.below(512);
        w.write(0, block * K, K);
    }
    w.cache.crash(false);
    let (header, recovered) = crate::harness::recover_into(&mut w.cache, 4096);
    assert_eq!(recovered.map.segments(), count);
    w.engine = Engine::new(&config, header, recovered);
    w.attach_all();
    w.check_all(0);
}

/// Writes that overlap and are under way at once, more than the log takes at a time, so that
/// records of one lie between those of another.
fn overlapping_burst(w: &mut World) {
    let mut left = 600;
    while left > 0 {
        w.step_with(|w| {
            while left > 0 && w.asked.len() < 100 {
                let (first, blocks) = (w.rng.below(60), 1 + w.rng.below(64));
                w.ask(0, RequestOp::Write, first * K, blocks * K);
                left -= 1;
            }
        });
    }
    w.quiesce();
}

#[test]
fn write_through_leaves_on_the_backing_device_what_the_cache_showed() {
    for seed in crate::harness::seeds(6) {
        for volatile in [false, true] {
            let limits = Limits { dirty_age: Duration::from_millis(50), ..Limits::default() };
            let setup = Setup {
                volumes: vec![(2 << 20, 4096, CacheMode::WriteThrough)],
                tier_pages: 0,
                limits,
                volatile,
                ..Setup::default()
            };
            let mut w = World::new(seed, setup);
            w.cache.latency = (500_000, 4_000_000);
            w.backing[0].latency = (50_000, 3_000_000);
            overlapping_burst(&mut w);
            let shown = w.read(0, 0, 128 * K);
            w.set_mode(0, CacheMode::PassThrough);
            let left = w.read(0, 0, 128 * K);
            assert_eq!(writes_in(&left), writes_in(&shown), "seed {seed}, volatile {volatile}");
        }
    }
}
