//! Self-healing and scrub: rot planted in clean and dirty blocks, torn and misdirected records, and
//! no false alarm whatever goes on meanwhile.

use crate::harness::{Setup, World, seeds, uuid};
use forebay_cache::engine::{
    CacheMode, CopyAt, Event, Limits, ScrubReport, ScrubState, ScrubStatus, VolumeStats,
};
use forebay_io::crc::{block_crc, fold16};
use forebay_io::{BlockError, DeviceError, Duration, Outcome, RequestOp};

const K: u64 = 4096;
/// Fast enough that a whole cache takes some milliseconds.
const FAST: u64 = 4 << 30;

/// Nothing is destaged by itself, nothing is in memory.
fn lazy(seed: u64, modes: &[CacheMode]) -> World {
    let limits =
        Limits { dirty_age: Duration::from_secs(3600), destage_from: 100, ..Limits::default() };
    let volumes = modes.iter().map(|mode| (2 << 20, 4096, *mode)).collect();
    World::new(seed, Setup { volumes, tier_pages: 0, limits, ..Setup::default() })
}

fn stats(w: &World, volume: usize) -> VolumeStats {
    w.engine.volume_stats(World::id(volume)).unwrap()
}

/// Where on the cache device versions of a cache block are: offset and number of the write.
pub(super) fn copies(w: &World, block: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    // Behind the superblocks of the only shard.
    for at in ((128 << 10)..w.cache.info.size).step_by(4096) {
        let head = w.cache.peek(at, 16);
        let word = |from: usize| u64::from_le_bytes(head[from..from + 8].try_into().unwrap());
        if word(8) == block * 8 && (1..1 << 32).contains(&word(0)) {
            found.push((at, word(0)));
        }
    }
    found.sort_by_key(|(_, write)| *write);
    found
}

fn flip(w: &mut World, at: u64, byte: usize) {
    let mut data = w.cache.peek(at, K);
    data[byte] ^= 1;
    w.cache.put(at, &data);
}

/// Flips a bit of the newest version of a block.
pub(super) fn rot(w: &mut World, block: u64) {
    let (at, _) = *copies(w, block).last().expect("the block is on the cache device");
    flip(w, at, 100 + (block % 1000) as usize);
}

fn scrub(w: &mut World, volume: usize, rate: u64) -> ScrubReport {
    w.engine.scrub(World::id(volume), rate).unwrap();
    let status = end_of(w, volume);
    assert_eq!((status.state, status.left_bytes), (ScrubState::Done, 0));
    assert!(w.engine.scrub_end(World::id(volume)));
    assert_eq!(w.engine.scrub_status(World::id(volume)), None);
    status.report
}

fn end_of(w: &mut World, volume: usize) -> ScrubStatus {
    for _ in 0..1_000_000 {
        let status = w.engine.scrub_status(World::id(volume)).unwrap();
        if !matches!(status.state, ScrubState::Waiting | ScrubState::Running) {
            return status;
        }
        w.step();
    }
    panic!("scrub does not end: {:?}", w.engine.scrub_status(World::id(volume)));
}

fn found(checked: u64, repaired: u64, damaged: u64) -> ScrubReport {
    ScrubReport { checked, repaired, damaged, ..ScrubReport::default() }
}

fn copy_of(w: &World, volume: usize, block: u64) -> CopyAt {
    w.engine.locate(World::id(volume), block, 1, 1)[0].copy
}

fn misses(w: &World, volume: usize) -> u64 {
    stats(w, volume).blocks.misses
}

#[test]
fn scrub_repairs_rot_in_clean_blocks_and_reports_it_in_dirty_ones() {
    let mut w = lazy(1, &[CacheMode::WriteBack]);
    w.write(0, 0, 64 * K);
    w.drain(0);
    w.write(0, 100 * K, 32 * K);
    assert_eq!(scrub(&mut w, 0, FAST), found(96, 0, 0), "all is well");
    for block in [3, 4, 63, 100, 120, 121] {
        rot(&mut w, block);
    }
    assert_eq!(scrub(&mut w, 0, FAST), found(96, 3, 3));
    let now = stats(&w, 0);
    assert_eq!((now.healed, now.damaged_bytes, now.lost_bytes), (3, 3 * K, 3 * K));
    for block in [100, 120, 121] {
        assert_eq!(copy_of(&w, 0, block), CopyAt::Lost);
        w.wait_for(|e| matches!(e, Event::DirtyLost { block: b, blocks: 1, .. } if *b == block));
    }
    // The clean ones are in the cache again and right; nothing else was lost.
    w.run_for(20_000_000);
    let before = misses(&w, 0);
    w.read(0, 0, 64 * K);
    w.read(0, 101 * K, 19 * K);
    assert_eq!(misses(&w, 0), before, "fetched again by the scrub, not by hosts");
    for block in [3, 4, 63] {
        assert_eq!(copy_of(&w, 0, block), CopyAt::Clean);
    }
    assert_eq!(w.engine.locate(World::id(0), 119, 4, 9).len(), 3, "the range is listed");
    let bad = w.ask(0, RequestOp::Read, 119 * K, 4 * K);
    assert_eq!(w.wait_done(bad), Outcome::Failed(BlockError::Unrecovered));
    // Known damage is said again, and is over once hosts write or discard the blocks.
    assert_eq!(scrub(&mut w, 0, FAST), found(96, 0, 3));
    w.write(0, 100 * K, K);
    w.write(0, 120 * K, K);
    let zeroed = w.ask(0, RequestOp::WriteZeroes { deallocate: false }, 121 * K, K);
    assert_eq!(w.wait_done(zeroed), Outcome::Done);
    assert_eq!(scrub(&mut w, 0, FAST), found(96, 0, 0));
    let now = stats(&w, 0);
    assert_eq!((now.healed, now.damaged_bytes, now.lost_bytes), (3, 0, 0));
    w.check_all(0);
    w.drain(0);
    w.check_backing(0);
    w.crash(false);
    w.check_all(0);
}

#[test]
fn a_hit_heals_a_clean_block_and_counts_it_for_its_volume() {
    let mut w = lazy(2, &[CacheMode::WriteBack, CacheMode::WriteBack]);
    w.write(0, 0, 8 * K);
    w.drain(0);
    w.write(1, 64 * K, 8 * K);
    w.drain(1);
    rot(&mut w, 2);
    rot(&mut w, 65);
    rot(&mut w, 66);
    w.read(1, 64 * K, 8 * K);
    assert_eq!((stats(&w, 0).healed, stats(&w, 1).healed), (0, 2));
    w.read(0, 0, 8 * K);
    assert_eq!((stats(&w, 0).healed, misses(&w, 0)), (1, 1));
    assert_eq!(copy_of(&w, 0, 2), CopyAt::Backing, "dropped, not lost");
    w.run_for(20_000_000);
    w.read(0, 0, 8 * K);
    assert_eq!((stats(&w, 0).healed, misses(&w, 0)), (1, 1), "it is there again");
    assert_eq!((stats(&w, 0).damaged_bytes, stats(&w, 1).damaged_bytes), (0, 0));
}

/// Begun again while a block that the one before dropped is being fetched.
#[test]
fn a_scrub_that_begins_again_ends_too() {
    for steps in 0..60 {
        let mut w = lazy(14, &[CacheMode::WriteBack]);
        // Longer than the scrub's own pauses, so that the next one begins meanwhile.
        w.backing[0].latency = (30_000_000, 40_000_000);
        w.write(0, 0, 16 * K);
        w.drain(0);
        rot(&mut w, 2);
        w.engine.scrub(World::id(0), FAST).unwrap();
        for _ in 0..steps {
            w.step();
        }
        let report = scrub(&mut w, 0, FAST);
        assert!(report.checked == 16 && report.repaired <= 1, "{steps}: {report:?}");
        w.run_for(100_000_000);
        assert_eq!((stats(&w, 0).healed, copy_of(&w, 0, 2)), (1, CopyAt::Clean));
    }
}

/// What was dropped comes back even where the policy would not admit it: in a long stream.
#[test]
fn what_was_dropped_is_filled_again_by_a_sequential_read_too() {
    let mut w = lazy(3, &[CacheMode::WriteBack]);
    let limits = Limits { sequential_cutoff: 16 * K, ..*w.engine.limits() };
    w.engine.set_limits(limits);
    w.write(0, 0, 128 * K);
    w.drain(0);
    rot(&mut w, 100);
    for block in 0..128 {
        w.read(0, block * K, K);
    }
    w.run_for(20_000_000);
    assert_eq!((stats(&w, 0).healed, copy_of(&w, 0, 100)), (1, CopyAt::Clean));
    assert_eq!(scrub(&mut w, 0, FAST), found(128, 0, 0));
}

/// Torn: the second half is of an older version. Misdirected: another block's data, whole and sound
/// in itself. Stale: an older version of the very block.
#[test]
fn torn_misdirected_and_stale_records_are_found() {
    for dirty in [false, true] {
        let mut w = lazy(4, &[CacheMode::WriteBack]);
        w.write(0, 0, 32 * K);
        w.write(0, 0, 32 * K);
        if !dirty {
            w.drain(0);
        }
        let versions = |w: &World, block| {
            let all = copies(w, block);
            assert_eq!(all.len(), 2);
            (all[0].0, all[1].0)
        };
        let (old, new) = versions(&w, 5);
        let half = w.cache.peek(old + 2048, 2048);
        w.cache.put(new + 2048, &half);
        let (_, from) = versions(&w, 9);
        let (_, to) = versions(&w, 11);
        let other = w.cache.peek(from, K);
        w.cache.put(to, &other);
        let (old, new) = versions(&w, 20);
        let stale = w.cache.peek(old, K);
        w.cache.put(new, &stale);
        let expected = if dirty { found(32, 0, 3) } else { found(32, 3, 0) };
        assert_eq!(scrub(&mut w, 0, FAST), expected, "dirty {dirty}");
        for block in 0..32 {
            let read = w.ask(0, RequestOp::Read, block * K, K);
            let lost = dirty && [5, 11, 20].contains(&block);
            let wanted =
                if lost { Outcome::Failed(BlockError::Unrecovered) } else { Outcome::Done };
            assert_eq!(w.wait_done(read), wanted, "block {block}");
        }
    }
}

/// The 16 bits in memory do not see every change; the record's 32 and the scrub do.
#[test]
fn scrub_checks_the_full_crc() {
    for dirty in [false, true] {
        let mut w = lazy(5, &[CacheMode::WriteBack]);
        w.write(0, 0, 16 * K);
        if !dirty {
            w.drain(0);
        }
        let (at, _) = copies(&w, 7)[0];
        let mut data = w.cache.peek(at, K);
        let journal = uuid(101).0;
        let (high, low) = journal.split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let key = half(high).wrapping_add(half(low));
        let fold = |data: &[u8]| fold16(block_crc(key, 7, 0, data));
        let wanted = fold(&data);
        let changed = (1u32..=1 << 22).any(|value| {
            data[200..204].copy_from_slice(&value.to_le_bytes());
            fold(&data) == wanted
        });
        assert!(changed, "some change keeps the fold");
        w.cache.put(at, &data);
        let (repaired, damaged) = if dirty { (0, 1) } else { (1, 0) };
        assert_eq!(scrub(&mut w, 0, FAST), found(16, repaired, damaged));
        let read = w.ask(0, RequestOp::Read, 7 * K, K);
        let lost = Outcome::Failed(BlockError::Unrecovered);
        assert_eq!(w.wait_done(read), if dirty { lost } else { Outcome::Done });
    }
}

/// In write-through the backing device has the data before the cache calls it clean.
#[test]
fn rot_before_the_flush_of_a_write_through_is_not_lost() {
    for scrubs in [false, true] {
        let mut w = lazy(6, &[CacheMode::WriteThrough]);
        w.write(0, 0, 8 * K);
        assert_eq!(copy_of(&w, 0, 3), CopyAt::Dirty, "not flushed yet");
        rot(&mut w, 3);
        if scrubs {
            assert_eq!(scrub(&mut w, 0, FAST), found(8, 1, 0));
        }
        w.read(0, 0, 8 * K);
        w.run_for(200_000_000);
        w.read(0, 0, 8 * K);
        w.run_for(20_000_000);
        let now = stats(&w, 0);
        assert_eq!((now.damaged_bytes, now.healed, now.dirty_bytes), (0, 1, 0));
        assert_eq!(copy_of(&w, 0, 3), CopyAt::Clean);
        assert!(!w.events.iter().any(|e| matches!(e, Event::DirtyLost { .. })));
    }
}

/// A block that rots after destage read it is on the backing device in the end: no damage is left.
#[test]
fn damage_found_while_the_block_is_being_destaged_ends_with_it() {
    let mut w = lazy(7, &[CacheMode::WriteBack]);
    w.backing[0].latency = (50_000_000, 60_000_000);
    w.write(0, 0, 8 * K);
    w.engine.drain(World::id(0)).unwrap();
    while w.backing[0].in_flight() == 0 {
        w.step();
    }
    rot(&mut w, 4);
    let read = w.ask(0, RequestOp::Read, 4 * K, K);
    assert_eq!(w.wait_done(read), Outcome::Failed(BlockError::Unrecovered));
    assert_eq!(stats(&w, 0).damaged_bytes, K);
    w.wait_for(|e| matches!(e, Event::Drained { .. }));
    let now = stats(&w, 0);
    assert_eq!((now.damaged_bytes, now.lost_bytes), (0, 0));
    w.check_all(0);
    w.check_backing(0);
}

/// Random requests, mode switches, reclaim, destage, discards while one scrub follows the other:
/// nothing is ever wrong, and none says so.
#[test]
fn no_false_alarm_under_load() {
    let modes = [
        CacheMode::WriteBack,
        CacheMode::WriteThrough,
        CacheMode::WriteAround,
        CacheMode::PassThrough,
    ];
    let (mut checked, mut scrubs, mut reclaimed) = (0, 0, 0);
    for seed in seeds(40) {
        let unit = if seed % 2 == 0 { 512 } else { 4096 };
        println!("seed {seed} unit {unit}");
        let setup = Setup {
            volumes: vec![(4 << 20, unit, CacheMode::WriteBack), (1 << 20, 4096, modes[1])],
            cache_bytes: 5 << 20,
            segment_slots: 32,
            tier_pages: if seed % 3 == 0 { 16 } else { 0 },
            volatile: seed % 5 == 0,
            commit_delay: if seed % 7 == 0 { 200_000 } else { 0 },
            limits: Limits { dirty_age: Duration::from_millis(3), ..Limits::default() },
            ..Setup::default()
        };
        let mut w = World::new(seed, setup);
        for step in 0..2000 {
            while w.asked.len() > 8 {
                w.step();
            }
            let volume = usize::from(w.rng.below(4) == 0);
            w.random_op(volume);
            for _ in 0..w.rng.below(4) {
                w.step();
            }
            if w.rng.below(150) == 0 {
                let mode = modes[w.rng.below(4) as usize];
                if w.engine.set_mode(World::id(0), mode).is_ok() {
                    w.modes[0] = mode;
                }
            }
            for volume in 0..2 {
                let status = w.engine.scrub_status(World::id(volume));
                if let Some(ScrubStatus { state: ScrubState::Done, report, .. }) = status {
                    assert_eq!(report, found(report.checked, 0, 0), "seed {seed} step {step}");
                    (checked, scrubs) = (checked + report.checked, scrubs + 1);
                    w.engine.scrub_end(World::id(volume));
                } else if status.is_none() {
                    w.engine.scrub(World::id(volume), FAST).unwrap();
                }
            }
            if w.rng.below(400) == 0 {
                w.engine.scrub_end(World::id(0));
            }
        }
        w.quiesce();
        assert_eq!(w.failures, 0);
        reclaimed += w.engine.stats(forebay_io::Instant(w.now)).reclaimed[0];
        let now = (stats(&w, 0), stats(&w, 1));
        assert_eq!((now.0.healed, now.1.healed), (0, 0));
        assert_eq!((now.0.lost_bytes, now.1.lost_bytes), (0, 0));
        w.drain(0);
        w.drain(1);
        for volume in 0..2 {
            w.check_all(volume);
            w.check_backing(volume);
            assert_eq!(w.backing[volume].overlaps, 0);
        }
    }
    println!("{scrubs} scrubs, {checked} blocks, {reclaimed} segments reclaimed");
    assert!(scrubs > 100 && checked > 20_000 && reclaimed > 100);
}

/// The same with rot in blocks that are clean when it strikes: hosts never see it, nothing is lost,
/// and a scrub afterwards leaves none.
#[test]
fn rot_in_clean_blocks_under_load_is_never_served() {
    let (mut planted, mut healed, mut repaired) = (0, 0, 0);
    for seed in seeds(24) {
        println!("seed {seed}");
        let setup = Setup {
            volumes: vec![(2 << 20, 4096, CacheMode::WriteBack)],
            cache_bytes: 5 << 20,
            segment_slots: 32,
            tier_pages: 0,
            limits: Limits { dirty_age: Duration::from_millis(3), ..Limits::default() },
            ..Setup::default()
        };
        let mut w = World::new(100 + seed, setup);
        for _ in 0..1200 {
            while w.asked.len() > 4 {
                w.step();
            }
            w.random_op(0);
            for _ in 0..w.rng.below(20) {
                w.step();
            }
            if w.rng.below(3) == 0 {
                let block = w.rng.below(512);
                let touched =
                    w.asked.values().any(|a| a.offset / K <= block && block * K < a.offset + a.len);
                if !touched && copy_of(&w, 0, block) == CopyAt::Clean {
                    for (at, _) in copies(&w, block) {
                        flip(&mut w, at, 64 + (seed as usize * 37) % 4000);
                    }
                    planted += 1;
                }
            }
            if w.engine.scrub_status(World::id(0)).is_none() {
                w.engine.scrub(World::id(0), FAST).unwrap();
            } else if let Some(ScrubStatus { state: ScrubState::Done, report, .. }) =
                w.engine.scrub_status(World::id(0))
            {
                assert_eq!((report.damaged, report.unreadable, report.footers), (0, 0, 0));
                repaired += report.repaired;
                w.engine.scrub_end(World::id(0));
            }
        }
        w.quiesce();
        assert_eq!((w.failures, stats(&w, 0).lost_bytes), (0, 0));
        w.drain(0);
        scrub(&mut w, 0, FAST);
        w.run_for(50_000_000);
        let last = scrub(&mut w, 0, FAST);
        assert_eq!(last, found(last.checked, 0, 0));
        w.check_all(0);
        w.check_backing(0);
        healed += stats(&w, 0).healed;
    }
    println!("{planted} planted, {healed} healed, {repaired} of them by scrub");
    assert!(planted > 200 && healed > 100 && repaired > 50);
}

#[test]
fn the_rate_is_kept_and_falls_while_hosts_have_requests() {
    let mut w = lazy(8, &[CacheMode::WriteBack]);
    w.write(0, 0, 256 * K);
    let time = |w: &mut World, load: bool| {
        let began = w.now;
        w.engine.scrub(World::id(0), 8 << 20).unwrap();
        let mut last = u64::MAX;
        loop {
            let status = w.engine.scrub_status(World::id(0)).unwrap();
            assert!(status.left_bytes <= last, "bytes left only fall");
            last = status.left_bytes;
            if status.state == ScrubState::Done {
                break;
            }
            if load && w.asked.is_empty() {
                w.ask(0, RequestOp::Read, 0, K);
            }
            w.step();
        }
        w.quiesce();
        w.engine.scrub_end(World::id(0));
        (w.now - began) as f64 / 1e9
    };
    // 1 MiB and some footers at 8 MiB/s.
    let alone = time(&mut w, false);
    assert!((0.10..0.5).contains(&alone), "{alone}");
    w.cache.latency = (2_000_000, 3_000_000);
    let beside = time(&mut w, true);
    assert!(beside > alone * 2.5 && beside < alone * 8.0, "{alone} {beside}");
}

#[test]
fn a_scrub_is_ended_at_once_and_the_next_one_goes_on() {
    let mut w = lazy(9, &[CacheMode::WriteBack, CacheMode::WriteBack]);
    w.write(0, 0, 256 * K);
    w.write(1, 0, 64 * K);
    for round in 0..30 {
        w.engine.scrub(World::id(0), 1 << 20).unwrap();
        w.engine.scrub(World::id(1), FAST).unwrap();
        for _ in 0..round {
            w.step();
        }
        let first = w.engine.scrub_status(World::id(0)).unwrap();
        let second = w.engine.scrub_status(World::id(1)).unwrap();
        assert_eq!(second.state, ScrubState::Waiting);
        assert!(first.report.checked < 256);
        assert!(w.engine.scrub_end(World::id(0)));
        let second = end_of(&mut w, 1);
        assert_eq!((second.state, second.report), (ScrubState::Done, found(64, 0, 0)));
        let reads = w.cache.in_flight();
        w.run_for(3_000_000);
        assert_eq!((reads.min(1), w.cache.in_flight()), (reads, 0), "nothing goes on");
        assert!(w.engine.scrub_end(World::id(1)) && !w.engine.scrub_end(World::id(1)));
    }
    w.check_all(0);
}

#[test]
fn a_scrub_ends_with_its_volume_its_cache_or_the_engine() {
    let mut w = lazy(10, &[CacheMode::WriteBack]);
    w.write(0, 0, 256 * K);
    w.engine.scrub(World::id(0), 1 << 20).unwrap();
    w.run_for(50_000_000);
    w.engine.detach(World::id(0)).unwrap();
    w.wait_for(|e| matches!(e, Event::Detached { .. }));
    w.run_for(1_000_000_000);
    assert_eq!(w.engine.scrub_status(World::id(0)).unwrap().state, ScrubState::Ended);
    assert!(w.engine.scrub(World::id(0), FAST).is_err(), "it is not here");

    let mut w = lazy(11, &[CacheMode::WriteBack]);
    w.write(0, 0, 256 * K);
    w.engine.scrub(World::id(0), 1 << 20).unwrap();
    w.run_for(50_000_000);
    w.engine.stop();
    w.wait_for(|e| *e == Event::Stopped);
    assert_eq!(w.engine.scrub_status(World::id(0)).unwrap().state, ScrubState::Ended);
    w.restart();
    assert_eq!(scrub(&mut w, 0, FAST), found(256, 0, 0), "the footers of the stop");

    w.engine.scrub(World::id(0), 1 << 20).unwrap();
    w.run_for(50_000_000);
    w.cache.faults.read = Some(DeviceError::Gone);
    assert_eq!(end_of(&mut w, 0).state, ScrubState::CacheFailed);
    assert!(w.engine.scrub(World::id(0), FAST).is_err());
}

/// What the device does not give now is no damage yet: it may give it later.
#[test]
fn unreadable_dirty_blocks_are_reported_and_stay() {
    let mut w = lazy(12, &[CacheMode::WriteBack]);
    w.write(0, 0, 16 * K);
    w.cache.faults.read = Some(DeviceError::Io(5));
    let report = scrub(&mut w, 0, FAST);
    assert_eq!((report.checked, report.unreadable, report.damaged), (16, 16, 0));
    w.cache.faults.read = None;
    assert_eq!(scrub(&mut w, 0, FAST), found(16, 0, 0));
    w.check_all(0);
    // One error in a few is made up for by reading again.
    w.cache.faults.one_in = 40;
    let report = scrub(&mut w, 0, FAST);
    w.cache.faults.one_in = 0;
    assert_eq!((report.damaged, report.repaired), (0, 0), "{report:?}");
    assert_eq!(stats(&w, 0).damaged_bytes, 0);
}

/// Without its footer a segment cannot be checked; that is said, and it is not taken for damage.
#[test]
fn a_wrong_footer_is_reported() {
    let mut w = lazy(13, &[CacheMode::WriteBack]);
    w.write(0, 0, 256 * K);
    w.engine.stop();
    w.wait_for(|e| *e == Event::Stopped);
    w.restart();
    let footer = (0..w.cache.info.size)
        .step_by(4096)
        .find(|at| w.cache.peek(*at, 8) == b"FBYFOOT\0")
        .expect("a footer");
    flip(&mut w, footer, 40);
    let report = scrub(&mut w, 0, FAST);
    assert_eq!((report.footers, report.damaged, report.repaired), (1, 0, 0), "{report:?}");
    assert!(report.checked < 256 && report.checked >= 256 - 64);
    flip(&mut w, footer, 40);
    assert_eq!(scrub(&mut w, 0, FAST), found(256, 0, 0));
}
