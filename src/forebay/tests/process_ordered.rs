//! write-back-ordered with the real daemon: kill -9 under load with flushes, the cache taken as lost,
//! and the backing file alone held against the order in which the host wrote. Between batches it is
//! a prefix; in the middle of a batch it may be none, which is counted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::Prefix;
use std::time::Duration;
use support::ordered::{BLOCK, BLOCKS, Log};
use support::{Daemon, Host, HostOptions, MIB, Setup, Volume, seed, wait};

/// Kills between batches, and at random.
const KILLS: u64 = 12;

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

/// A Flush closes a batch; once it is complete more is written, and nothing closes the next batch:
/// the kill comes between two of them.
#[test]
fn killed_between_batches_the_backing_file_alone_is_a_prefix() {
    let mut log = Log::new(seed(31));
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
    let mut log = Log::new(seed(32));
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
