//! write-back-ordered with the real daemon: kill -9 under load with flushes, the cache taken as lost,
//! and the backing file alone held against the order in which the host wrote. Between batches it is
//! a prefix; in the middle of a batch it may be none, which is counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_bench::random::Random;
use forebay_control::stat::Prefix;
use forebay_io::{Buf, BufPool, HeapPool, Op};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Daemon, Host, HostOptions, MIB, Setup, Volume, seed, wait};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
const DEPTH: usize = 16;
/// Kills between batches, and at random.
const KILLS: u64 = 12;

#[derive(Clone, Copy)]
struct Write {
    first: u64,
    blocks: u64,
    start: u64,
    /// `u64::MAX` while it is not acknowledged.
    end: u64,
}

/// Writes that name themselves in each of their blocks, and their order in real time.
struct Log {
    random: Random,
    writes: Vec<Write>,
    clock: u64,
    flushes: u64,
    /// Under way.
    open: usize,
}

impl Log {
    /// Writes, `DEPTH` at once; one command in `flushes` is a Flush (0: none). Ends when `enough` says
    /// so (with the commands begun), without waiting for what is under way.
    fn run(&mut self, host: &mut Host, flushes: u64, mut enough: impl FnMut(u64) -> bool) {
        let mut begun = 0;
        let end = Instant::now() + Duration::from_secs(120);
        while !enough(begun) && host.is_up() {
            assert!(Instant::now() < end, "{}", host.last_error());
            while self.open < DEPTH && host.is_up() {
                let op = if flushes > 0 && self.random.below(flushes) == 0 {
                    self.flushes += 1;
                    Op::flush(u64::MAX)
                } else {
                    self.next()
                };
                assert!(host.submit(op).is_ok(), "the host's queue is deeper");
                (self.open, begun) = (self.open + 1, begun + 1);
            }
            host.pump();
            self.take(host);
        }
    }

    fn next(&mut self) -> Op<forebay_io::HeapBuf> {
        let blocks = 1 + self.random.below(8);
        let hot = self.random.below(2) == 0;
        let first = self.random.below(if hot { 256 } else { BLOCKS }).min(BLOCKS - blocks);
        let name = self.writes.len() as u64 + 1;
        let mut buf = HeapPool.alloc(usize::try_from(blocks * BLOCK).unwrap()).unwrap();
        for block in buf.as_mut_slice().unwrap().chunks_mut(4096) {
            block.fill(name.to_le_bytes()[0]);
            block[..8].copy_from_slice(&name.to_le_bytes());
        }
        self.clock += 1;
        self.writes.push(Write { first, blocks, start: self.clock, end: u64::MAX });
        Op::write(name, first * BLOCK, blocks * BLOCK, buf)
    }

    fn take(&mut self, host: &mut Host) {
        while let Some(done) = host.done() {
            self.open -= 1;
            if let Some(at) = done.token.checked_sub(1).and_then(|at| usize::try_from(at).ok())
                && let Some(write) = self.writes.get_mut(at)
                && done.result.is_ok()
            {
                self.clock += 1;
                write.end = self.clock;
            }
        }
    }

    fn settle(&mut self, host: &mut Host) {
        wait("the end of all writes", Duration::from_secs(60), || {
            host.pump();
            self.take(host);
            (self.open == 0).then_some(())
        });
    }

    /// Writes that were under way when the daemon died may have happened or not.
    fn killed(&mut self, host: &mut Host) {
        let end = Instant::now() + Duration::from_secs(10);
        while host.is_up() && Instant::now() < end {
            host.pump();
            self.take(host);
        }
        self.take(host);
        self.open = 0;
    }

    /// Why the file alone is no prefix, and the acknowledged writes that it lacks in part.
    fn judge(&self, path: &Path) -> (Option<String>, u64) {
        let bytes = std::fs::read(path).unwrap();
        let held: Vec<u64> = bytes
            .chunks(4096)
            .map(|block| {
                let name = u64::from_le_bytes(block[..8].try_into().unwrap());
                assert!(
                    block[8..].iter().all(|byte| *byte == name.to_le_bytes()[0]),
                    "a torn block"
                );
                name
            })
            .collect();
        let write = |name: u64| &self.writes[usize::try_from(name - 1).unwrap()];
        let newest = held.iter().filter(|name| **name > 0).map(|name| write(*name).start).max();
        let (mut broken, mut lacks) = (None, 0);
        for (at, wanted) in self.writes.iter().enumerate().filter(|(_, w)| w.end != u64::MAX) {
            let older = (wanted.first..wanted.first + wanted.blocks).find(|block| {
                let name = held[usize::try_from(*block).unwrap()];
                name == 0 || write(name).end < wanted.start
            });
            lacks += u64::from(older.is_some());
            if let Some(block) = older
                && newest.is_some_and(|newest| wanted.end < newest)
            {
                broken.get_or_insert(format!(
                    "block {block} is older than write {}, which was acknowledged before the newest write \
                     there began",
                    at + 1
                ));
            }
        }
        (broken, lacks)
    }
}

fn setup(batch_age: &str) -> (Setup, std::path::PathBuf) {
    let mut setup = Setup::new();
    setup.cache_file("", 128 * MIB);
    let backing = setup.backing_file("backing.img", BLOCKS * BLOCK);
    let uri = format!("slow:uring:{}?read_us=200&write_us=2000", backing.display());
    let mut volume = Volume::new("v", &uri).with("batch_age_max", &format!("{batch_age:?}"));
    volume.mode = "write-back-ordered".to_owned();
    setup.volumes = vec![volume.with("batch_max", "\"64MiB\"")];
    (setup, backing)
}

fn log(seed: u64) -> Log {
    Log { random: Random::new(seed), writes: Vec::new(), clock: 0, flushes: 0, open: 0 }
}

/// A Flush closes a batch; once it is complete more is written, and nothing closes the next batch:
/// the kill comes between two of them.
#[test]
fn killed_between_batches_the_backing_file_alone_is_a_prefix() {
    let mut log = log(seed(31));
    let (setup, backing) = setup("1h");
    let mut lost = 0;
    for kill in 0..KILLS {
        let mut daemon = Daemon::start(&setup);
        let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
        log.run(&mut host, 200, |begun| begun >= 600);
        log.settle(&mut host);
        host.flush().unwrap();
        wait("the end of the batch", Duration::from_secs(60), || {
            let volume = daemon.volume("v");
            let holds = matches!(volume.prefix, Some(Prefix::Holds { .. }));
            (holds && volume.dirty_bytes == 0).then_some(())
        });
        log.run(&mut host, 0, |begun| begun >= 100 + kill * 20);
        let volume = daemon.volume("v");
        assert!(volume.dirty_bytes > 0, "the open batch is dirty");
        assert!(matches!(volume.prefix, Some(Prefix::Holds { .. })), "{:?}", volume.prefix);
        daemon.kill();
        log.killed(&mut host);
        let (broken, lacks) = log.judge(&backing);
        assert_eq!(broken, None, "kill {kill}");
        assert!(lacks > 0, "what only the cache had is not on the backing file");
        lost += lacks;
    }
    println!(
        "ordered: {KILLS} kills between batches, {} writes, {} flushes, 0 violations of the prefix with the \
         cache lost; {lost} writes were in the cache only",
        log.writes.len(),
        log.flushes
    );
    support::conclude(KILLS);
}

/// Kills at any time. In the middle of a batch the file alone may be no prefix, which is reported; with
/// the cache nothing is lost, and the first batch after the start makes it one again.
#[test]
fn killed_at_random_the_first_batch_after_the_start_is_a_prefix_again() {
    let mut log = log(seed(32));
    let (setup, backing) = setup("50ms");
    let mut within = 0;
    for kill in 0..KILLS {
        let mut daemon = Daemon::start(&setup);
        let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
        let until = 300 + log.random.below(3000);
        log.run(&mut host, 50, |begun| {
            let now = begun >= until;
            if now {
                daemon.kill();
            }
            now
        });
        log.killed(&mut host);
        within += u64::from(log.judge(&backing).0.is_some());
        let mut daemon = Daemon::start(&setup);
        wait("the first batch", Duration::from_secs(60), || {
            let volume = daemon.volume("v");
            let holds = matches!(volume.prefix, Some(Prefix::Holds { .. }));
            (holds && volume.dirty_bytes == 0).then_some(())
        });
        daemon.kill();
        let (broken, lacks) = log.judge(&backing);
        assert_eq!((broken, lacks), (None, 0), "kill {kill}: all that was acknowledged is there");
    }
    println!(
        "ordered: {KILLS} kills at random, {} writes; the file alone was no prefix after {within} of them \
         (in mid-destage), and one after the first batch in all",
        log.writes.len()
    );
    support::conclude(KILLS);
}
