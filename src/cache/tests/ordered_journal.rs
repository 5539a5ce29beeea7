//! `write-back-ordered` with an ordered journal: with the cache lost at any moment, the backing device
//! is a prefix of the acknowledged writes once the volume is attached again.
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
use forebay_cache::format::order_journal::{JournalError, least_bytes};
use forebay_io::{DeviceError, Duration, Outcome, RequestOp};
use harness::prefix::Prefix;
use harness::{Setup, World, open_journal, seeds, uuid};

const K: u64 = 1024;

fn setup() -> Setup {
    Setup {
        volumes: vec![(2 << 20, 4096, CacheMode::WriteBackOrdered)],
        journal_bytes: 8 << 20,
        limits: Limits {
            dirty_age: Duration::from_secs(3600),
            destage_from: 100,
            batch_age: Duration::from_millis(4),
            batch_bytes: 256 << 10,
            op_timeout: Duration::from_millis(500),
            ..Limits::default()
        },
        ..Setup::default()
    }
}

fn state(w: &World) -> OrderState {
    w.engine.volume_stats(World::id(0)).unwrap().order.unwrap()
}

fn complete(w: &World) -> bool {
    w.engine.volume_stats(World::id(0)).unwrap().order_journal.unwrap().complete
}

/// Crash states that were looked at.
#[derive(Debug, Default)]
struct Looked {
    between: u64,
    within: u64,
    /// Of those, the ones in which a complete batch was in the journal.
    complete: u64,
    /// The backing device alone was no prefix, before the replay.
    broken_alone: u64,
    seen: Option<(u64, u64, u64, u64)>,
    /// Every eighth state is put through the loss of the cache, with and without a power loss.
    every: u64,
}

impl Looked {
    /// Loses the cache now, if anything has changed, and judges the backing device after the replay.
    fn look(&mut self, w: &mut World, prefix: &mut Prefix) -> Result<(), String> {
        prefix.look(w)?;
        let (b, j) = (&w.backing[0], &w.journals[0]);
        let seen = Some((b.written, b.in_flight() as u64, j.written, j.flushes));
        if seen == self.seen {
            return Ok(());
        }
        self.seen = seen;
        let state = state(w);
        if state == OrderState::NotYet {
            return Ok(());
        }
        let within = matches!(state, OrderState::Destaging(..));
        *(if within { &mut self.within } else { &mut self.between }) += 1;
        let alone = held(&w.backing[0]);
        self.broken_alone +=
            u64::from(prefix.broken(|b| alone[usize::try_from(b).unwrap()]).is_some());
        self.complete += u64::from(complete(w));
        self.every += 1;
        if self.every % 8 != 0 {
            return Ok(());
        }
        for power in [false, true] {
            let after = w.lost_cache(power, false);
            assert!(!complete(&after));
            let image = held(&after.backing[0]);
            if let Some(what) = prefix.broken(|b| image[usize::try_from(b).unwrap()]) {
                return Err(format!("{state:?} at {}, power {power}: {what}", w.now));
            }
        }
        Ok(())
    }
}

/// The write that each block of a device is of.
fn held(disk: &harness::disk::Disk) -> Vec<u64> {
    let word = |block: u64| disk.peek(block * 4 * K, 8).try_into().unwrap();
    (0..disk.info.size / (4 * K)).map(|block| u64::from_le_bytes(word(block))).collect()
}

fn load(w: &mut World, prefix: &mut Prefix, looked: &mut Looked, steps: u64) -> Result<(), String> {
    for _ in 0..steps {
        w.step_with(|w| {
            if w.asked.len() < 8 && w.rng.below(3) == 0 {
                w.random_op(0);
            }
        });
        looked.look(w, prefix)?;
    }
    Ok(())
}

fn end(w: &mut World, prefix: &mut Prefix) {
    w.quiesce();
    w.drain(0);
    prefix.look(w).unwrap();
    w.check_backing(0);
    w.check_all(0);
    assert_eq!(w.backing[0].overlaps, 0);
    assert_eq!(w.journals[0].overlaps, 0);
    let stats = w.engine.volume_stats(World::id(0)).unwrap();
    assert_eq!((stats.dirty_bytes, stats.kept_bytes), (0, 0));
}

#[test]
fn the_loss_of_the_cache_at_any_moment_leaves_a_prefix() {
    let mut looked = Looked::default();
    for seed in seeds(4) {
        let mut setup = setup();
        setup.commit_delay = (seed % 3) * 40_000;
        setup.write_zeroes = seed % 4 != 3;
        setup.backing_volatile = seed % 8 != 5;
        let mut w = World::new(seed, setup);
        let mut prefix = Prefix::new(&w, 0);
        load(&mut w, &mut prefix, &mut looked, 1500).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        end(&mut w, &mut prefix);
    }
    println!("{looked:?}");
    assert!(looked.complete > 200 && looked.broken_alone > 50 && looked.within > 200);
}

#[test]
fn errors_of_any_device_change_nothing_of_it() {
    let mut looked = Looked::default();
    for seed in seeds(3) {
        let mut w = World::new(seed, setup());
        let mut prefix = Prefix::new(&w, 0);
        let fail = |e: String| panic!("seed {seed}: {e}");
        load(&mut w, &mut prefix, &mut looked, 200).unwrap_or_else(fail);
        let disk = |w: &mut World| match seed % 3 {
            0 => std::mem::take(&mut w.backing[0].faults),
            _ => std::mem::take(&mut w.journals[0].faults),
        };
        let put = |w: &mut World, faults| match seed % 3 {
            0 => w.backing[0].faults = faults,
            _ => w.journals[0].faults = faults,
        };
        let mut faults = disk(&mut w);
        (faults.one_in, faults.read) = (if seed % 3 == 2 { 0 } else { 3 }, None);
        if seed % 3 == 2 {
            faults.read = Some(DeviceError::Media);
        }
        put(&mut w, faults);
        load(&mut w, &mut prefix, &mut looked, 1200).unwrap_or_else(fail);
        let mut faults = disk(&mut w);
        (faults.one_in, faults.read, faults.flush) = (0, None, Some(DeviceError::Io(5)));
        put(&mut w, faults);
        load(&mut w, &mut prefix, &mut looked, 300).unwrap_or_else(fail);
        disk(&mut w);
        w.run_for(3_000_000_000);
        end(&mut w, &mut prefix);
        assert!(matches!(state(&w), OrderState::Prefix(_)), "seed {seed}: {:?}", state(&w));
    }
    println!("{looked:?}");
    assert!(looked.within > 100 && looked.between > 100);
}

#[test]
fn a_start_with_the_cache_goes_on_with_the_batch_in_the_journal() {
    let mut looked = Looked::default();
    let mut completes = 0;
    for seed in seeds(6) {
        let mut setup = setup();
        setup.volatile = seed % 4 == 2;
        let mut w = World::new(seed, setup);
        let mut prefix = Prefix::new(&w, 0);
        for _ in 0..5 {
            let steps = 100 + w.rng.below(400);
            let result = load(&mut w, &mut prefix, &mut looked, steps);
            result.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            completes += u64::from(complete(&w));
            let power = w.rng.below(2) == 0;
            w.crash(power);
            if power && w.setup.volatile {
                prefix.power_lost();
            }
            looked.seen = None;
        }
        end(&mut w, &mut prefix);
    }
    println!("{completes} of the crashes came while a batch was complete; {looked:?}");
    assert!(completes > 5);
}

/// What is dirty is bounded by the journal: hosts wait, and no batch is written around it.
#[test]
fn a_small_journal_closes_batches_early() {
    let mut looked = Looked::default();
    for seed in seeds(4) {
        let mut setup = setup();
        setup.journal_bytes = least_bytes();
        setup.limits.batch_age = Duration::from_secs(3600);
        setup.limits.batch_bytes = u64::MAX;
        let mut w = World::new(seed, setup);
        let mut prefix = Prefix::new(&w, 0);
        let capacity = w.engine.volume_stats(World::id(0)).unwrap().order_journal.unwrap().capacity;
        assert_eq!(capacity, 1 << 20);
        let mut most = 0;
        for n in 0..1200u64 {
            w.step_with(|w| {
                if w.asked.len() < 8 {
                    let at = w.rng.below(480) * 4 * K;
                    w.ask(0, RequestOp::Write, at, 64 * K);
                }
            });
            most = most.max(w.engine.volume_stats(World::id(0)).unwrap().dirty_bytes);
            if n % 4 == 0 {
                looked.look(&mut w, &mut prefix).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
        }
        assert!(most <= capacity && most > capacity / 2, "{most}");
        end(&mut w, &mut prefix);
    }
    assert!(looked.within > 50, "{looked:?}");
}

/// The mode is left in the middle of a batch: what bypasses it must not be undone by a replay.
#[test]
fn leaving_the_mode_or_losing_the_cache_device_ends_the_batch_first() {
    use CacheMode::{PassThrough, WriteAround, WriteBack, WriteBackOrdered, WriteThrough};
    let mut busy = 0;
    for seed in seeds(8) {
        let mut w = World::new(seed, setup());
        let mut prefix = Prefix::new(&w, 0);
        let mut looked = Looked::default();
        load(&mut w, &mut prefix, &mut looked, 200).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for _ in 0..100_000 {
            if complete(&w) {
                break;
            }
            load(&mut w, &mut prefix, &mut looked, 1)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        busy += u64::from(complete(&w));
        let to =
            [WriteBack, WriteThrough, WriteAround, PassThrough][usize::try_from(seed % 4).unwrap()];
        w.backing[0].latency = (1_000_000, 20_000_000);
        let first = w.next_write;
        w.engine.set_mode(World::id(0), to).unwrap();
        for _ in 0..2000 {
            let mut at = 0;
            w.step_with(|w| {
                if w.asked.len() < 8 {
                    at = w.rng.below(500) * 4 * K;
                    w.ask(0, RequestOp::Write, at, 8 * K);
                }
            });
            // What a host was told to be on the backing device is there after a replay.
            if w.rng.below(20) == 0 {
                let direct: Vec<u64> = held(&w.backing[0]);
                let after = w.lost_cache(false, true);
                let image = held(&after.backing[0]);
                if complete(&w) {
                    assert!(
                        direct.iter().all(|write| *write < first),
                        "seed {seed}: written past it"
                    );
                } else {
                    assert_eq!(direct.len(), image.len());
                    for (block, (a, b)) in direct.iter().zip(&image).enumerate() {
                        assert!(b >= a, "seed {seed}: block {block} went back from {a} to {b}");
                    }
                }
            }
        }
        w.quiesce();
        w.engine.set_mode(World::id(0), WriteBackOrdered).unwrap();
        w.run_for(1_000_000_000);
        w.modes[0] = WriteBackOrdered;
        end(&mut w, &mut prefix);
    }
    assert!(busy > 5, "{busy}");
}

#[test]
fn the_cache_device_fails_in_the_middle_of_a_batch() {
    for seed in seeds(6) {
        let mut w = World::new(seed, setup());
        let mut prefix = Prefix::new(&w, 0);
        let mut looked = Looked::default();
        while !complete(&w) {
            load(&mut w, &mut prefix, &mut looked, 1)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        w.cache.faults.write = Some(DeviceError::Gone);
        w.cache.faults.read = Some(DeviceError::Gone);
        w.backing[0].latency = (1_000_000, 20_000_000);
        let mut tags = Vec::new();
        for n in 0..40 {
            tags.push(w.ask(0, RequestOp::Write, n * 12 * K, 4 * K));
            w.step();
        }
        for tag in tags {
            w.wait_done(tag);
        }
        assert!(!complete(&w), "nothing bypasses a batch that is not applied");
        let written = w.log.last().unwrap().1.write;
        let tag = w.ask(0, RequestOp::Write, 0, 4 * K);
        assert_eq!(w.wait_done(tag), Outcome::Done);
        let after = w.lost_cache(false, true);
        assert_eq!(held(&after.backing[0])[0], written + 1, "a replay takes nothing back");
    }
}

/// The fresh cache knows the volume by then, but no change of it: the batch counts all the same.
#[test]
fn a_crash_in_the_replay_after_the_loss_of_the_cache() {
    let mut left = 0;
    for seed in seeds(24) {
        let mut w = World::new(seed, setup());
        let mut prefix = Prefix::new(&w, 0);
        let mut looked = Looked::default();
        load(&mut w, &mut prefix, &mut looked, 400).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        while !complete(&w) {
            load(&mut w, &mut prefix, &mut looked, 1)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        for _ in 0..w.rng.below(30) {
            w.step();
        }
        prefix.look(&w).unwrap();
        let mut after = w.without_cache(seed % 2 == 0, true);
        if seed % 4 < 2 {
            // A start that leaves another volume's clean blocks for later skips numbers of this one, too.
            after.neighbour(1 << 20);
        }
        after.attach_begin();
        let in_part = |after: &World| {
            let alone = held(&after.backing[0]);
            complete(after) && prefix.broken(|b| alone[usize::try_from(b).unwrap()]).is_some()
        };
        for _ in 0..400 {
            if in_part(&after) && w.rng.below(4) == 0 {
                break;
            }
            after.step();
        }
        left += u64::from(in_part(&after));
        after.crash(seed % 3 == 0);
        let image = held(&after.backing[0]);
        let broken = prefix.broken(|b| image[usize::try_from(b).unwrap()]);
        assert_eq!(broken, None, "seed {seed}: after the second start");
        assert!(!complete(&after), "seed {seed}");
    }
    println!("{left} of the crashes in the replay left a part of the batch");
    assert!(left > 10, "{left}");
}

/// A volume that was served without a journal is given one in the middle of a batch.
#[test]
fn a_journal_that_is_given_while_the_volume_is_served() {
    for seed in seeds(6) {
        let mut w = World::new(seed, setup());
        let mut spare = World::new(seed, setup());
        w.journals.clear();
        w.crash(false);
        let mut prefix = Prefix::new(&w, 0);
        let steps = 100 + w.rng.below(300);
        for _ in 0..steps {
            w.step_with(|w| {
                if w.asked.len() < 8 {
                    w.random_op(0);
                }
            });
            prefix.look(&w).unwrap();
        }
        w.journals = std::mem::take(&mut spare.journals);
        let backing = w.backing[0].info.clone();
        let opened = open_journal(&mut w.journals[0], uuid(1), &backing).unwrap();
        w.engine.set_ordered_journal(World::id(0), opened.clone()).unwrap();
        let again = w.engine.set_ordered_journal(World::id(0), opened);
        assert_eq!(again, Err(JournalError::InUse));
        let mut looked = Looked::default();
        let mut steps = 0;
        while !matches!(state(&w), OrderState::Prefix(_)) {
            load_blind(&mut w, &mut prefix);
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: {:?}", state(&w));
        }
        load(&mut w, &mut prefix, &mut looked, 1200).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(looked.complete > 5, "seed {seed}: {looked:?}");
        end(&mut w, &mut prefix);
    }
}

/// A step under load of which only the host's side is noted.
fn load_blind(w: &mut World, prefix: &mut Prefix) {
    w.step_with(|w| {
        if w.asked.len() < 8 && w.rng.below(3) == 0 {
            w.random_op(0);
        }
    });
    prefix.look(w).unwrap();
}

/// A journal that is out of date, as the volume was written without it meanwhile.
#[test]
fn a_batch_that_the_cache_has_gone_beyond_is_dropped() {
    for seed in seeds(4) {
        let mut w = World::new(seed, setup());
        let mut prefix = Prefix::new(&w, 0);
        let mut looked = Looked::default();
        load(&mut w, &mut prefix, &mut looked, 100).unwrap();
        while !complete(&w) {
            load(&mut w, &mut prefix, &mut looked, 1).unwrap();
        }
        let old = w.journals[0].clone();
        let journals = std::mem::take(&mut w.journals);
        w.crash(false);
        assert!(w.engine.volume_stats(World::id(0)).unwrap().order_journal.is_none());
        w.drain(0);
        w.write(0, 0, 1 << 20);
        w.write(0, 1 << 20, 1 << 20);
        w.drain(0);
        drop(journals);
        w.journals = vec![old];
        w.journals[0].crash(false);
        w.crash(false);
        w.run_for(1_000_000_000);
        assert!(!complete(&w));
        w.check_backing(0);
        w.check_all(0);
    }
}

#[test]
fn other_devices_are_refused_and_say_why() {
    let mut w = World::new(1, setup());
    w.write(0, 0, 64 * K);
    w.drain(0);
    w.quiesce();
    let backing = w.backing[0].info.clone();
    let disk = &mut w.journals[0];
    assert!(open_journal(disk, uuid(1), &backing).is_ok());
    let other = uuid(9);
    assert_eq!(
        open_journal(disk, other, &backing).unwrap_err(),
        JournalError::OtherVolume(uuid(1))
    );
    let mut elsewhere = backing.clone();
    elsewhere.identity = "another".to_owned();
    let refused = open_journal(disk, uuid(1), &elsewhere).unwrap_err();
    assert!(matches!(refused, JournalError::OtherBacking { .. }), "{refused}");
    let mut longer = backing.clone();
    longer.size += 4096;
    let refused = open_journal(disk, uuid(1), &longer).unwrap_err();
    assert!(matches!(refused, JournalError::OtherSize { .. }), "{refused}");
    let mut cut = disk.clone();
    cut.info.size -= 1 << 20;
    let refused = open_journal(&mut cut, uuid(1), &backing).unwrap_err();
    assert!(matches!(refused, JournalError::CutShort { .. }), "{refused}");
    cut.info.size = 4096;
    let refused = open_journal(&mut cut, uuid(1), &backing).unwrap_err();
    assert!(matches!(refused, JournalError::TooSmall { .. }), "{refused}");
    let mut foreign = disk.clone();
    foreign.put(0, &[7; 512]);
    foreign.put(4096, &[7; 512]);
    let refused = open_journal(&mut foreign, uuid(1), &backing).unwrap_err();
    assert!(matches!(refused, JournalError::Foreign(_)), "{refused}");
    // A file system whose superblock is behind the place of the headers.
    let mut btrfs = disk.clone();
    btrfs.put(0, &[0; 8192]);
    btrfs.put(65536 + 64, b"_BHRfS_M");
    let refused = open_journal(&mut btrfs, uuid(1), &backing).unwrap_err();
    assert_eq!(refused, JournalError::Foreign(Some("a Btrfs file system")), "{refused}");
    assert_eq!(btrfs.peek(0, 8192), [0; 8192], "left as it is");
    let mut torn = disk.clone();
    torn.put(1024, &[7; 512]);
    torn.put(4096 + 1024, &[7; 512]);
    assert_eq!(open_journal(&mut torn, uuid(1), &backing).unwrap_err(), JournalError::Damaged);
}

/// A complete batch whose data rots: with the cache lost that is said, and nothing is written; with
/// the cache all comes from there.
#[test]
fn a_batch_that_rots_in_the_journal() {
    let mut w = World::new(2, setup());
    let mut prefix = Prefix::new(&w, 0);
    let mut looked = Looked::default();
    w.backing[0].faults.hang = true;
    load(&mut w, &mut prefix, &mut looked, 400).unwrap();
    assert!(complete(&w));
    w.crash_devices(false);
    let backing = w.backing[0].info.clone();
    let opened = open_journal(&mut w.journals[0], uuid(1), &backing).unwrap();
    let at = opened.header.layout.data_offset(0) + 100;
    let mut byte = w.journals[0].peek(at, 1);
    byte[0] ^= 0x10;
    w.journals[0].put(at, &byte);
    let found = open_journal(&mut w.journals[0], uuid(1), &backing).unwrap();
    assert_eq!(found.found, forebay_cache::order_journal::Found::Damaged);
    assert_eq!(w.cold_refusal(), Some(JournalError::BatchDamaged));
    w.restart();
    w.run_for(1_000_000_000);
    end(&mut w, &mut prefix);
    assert!(matches!(state(&w), OrderState::Prefix(_)));
}

/// An operator gives up the dirty data of a volume whose backing device fails: the batch in the
/// journal is voided, or it would be written over whatever comes there next.
#[test]
fn giving_up_the_dirty_data_voids_the_batch() {
    use forebay_cache::engine::Event;
    let mut w = World::new(3, setup());
    let mut prefix = Prefix::new(&w, 0);
    load(&mut w, &mut prefix, &mut Looked::default(), 300).unwrap();
    w.quiesce();
    w.backing[0].faults.write = Some(DeviceError::Io(5));
    w.write(0, 0, 64 * K);
    w.run_for(100_000_000);
    assert!(complete(&w));
    w.engine.detach_discarding(World::id(0)).unwrap();
    w.wait_for(|event| *event == Event::Detached { volume: World::id(0) });
    let backing = w.backing[0].info.clone();
    let opened = open_journal(&mut w.journals[0], uuid(1), &backing).unwrap();
    assert_eq!(opened.found, forebay_cache::order_journal::Found::Nothing);
}
