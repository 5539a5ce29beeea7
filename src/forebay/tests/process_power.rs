//! File systems that are cut off from their disk, as a loss of power does it: real I/O errors, and what
//! was not flushed is gone when they are mounted again. What was acknowledged and flushed is there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::Health;
use std::path::PathBuf;
use std::time::Duration;
use support::{
    Daemon, Host, HostOptions, Load, MIB, Mount, Plan, Setup, Volume, forebay, seed, wait,
};

const SIZE: u64 = 64 * MIB;
const ROUNDS: u64 = 5;

fn volume(backing: &std::path::Path) -> Volume {
    Volume::new("v", &format!("uring:{}", backing.display())).with("dirty_age_max", "\"200ms\"")
}

fn connect(setup: &Setup) -> Host {
    Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default())
}

fn kill_in_load(daemon: &mut Daemon, load: &mut Load, host: Host, ops: u64) {
    let until = load.counts.ops() + ops;
    load.run_into_crash(host, |counts| {
        let now = counts.ops() >= until;
        if now {
            daemon.kill();
        }
        now
    });
}

/// The backing file's file system fails under load and loses what was not flushed: a block that was
/// trimmed before its flush would be gone. Hosts notice nothing.
#[test]
fn a_backing_file_system_that_is_cut_off_loses_nothing() {
    let mut setup = Setup::new();
    let test = "an ext4 that is cut off under a backing file";
    let Some(mount) = Mount::ext4(&setup.dir, "backing", test, SIZE + 64 * MIB) else { return };
    let backing = mount.sparse("backing.img", SIZE);
    std::fs::File::open(&backing).unwrap().sync_all().unwrap();
    std::fs::File::open(mount.path()).unwrap().sync_all().unwrap();
    setup.cache_file("", 192 * MIB);
    setup.volumes = vec![volume(&backing).with("dirty_max", "\"100MiB\"")];
    let seed = seed(21);
    // Reads of what only the backing file has fail while it is away.
    let mut load = Load::new(seed, Plan { depth: 8, reads: 0, ..Plan::mixed(SIZE) });
    let (mut destaged, mut cause) = (0, String::new());
    for round in 0..ROUNDS {
        let mut daemon = Daemon::start(&setup);
        let mut host = connect(&setup);
        load.verify(&mut host);
        load.run_for(&mut host, Duration::from_millis(700 + 130 * round));
        load.assert_no_errors();
        destaged += daemon.volume("v").destaged_bytes;
        mount.cut_off();
        let writes = load.counts.writes;
        load.run_for(&mut host, Duration::from_millis(500));
        assert!(load.counts.writes > writes, "writes go on: {:?}", load.counts);
        load.assert_no_errors();
        cause = wait("stat says what is wrong", Duration::from_secs(20), || {
            let stat = daemon.stat();
            let said = stat.volume("v")?.backing.health != Health::Ok;
            said.then(|| stat.complaints().join("; "))
        });
        kill_in_load(&mut daemon, &mut load, host, 50);
        drop(daemon);
        mount.again();
    }
    let compared = support::last_look(&setup, &mut load, &backing);
    assert!(destaged > 8 * MIB, "destage was under way: {destaged}");
    println!(
        "process: backing ext4 cut off {ROUNDS} times: \"{cause}\"; {} MiB had been destaged, {} writes \
         acknowledged, {} blocks verified, {compared} bytes compared with the file",
        destaged / MIB,
        load.counts.writes,
        load.counts.verified
    );
    support::conclude(load.counts.verified);
}

/// The cache file's file system loses what was not flushed. What a host wrote before a Flush is there.
#[test]
fn a_cache_file_system_that_is_cut_off_keeps_what_was_flushed() {
    let mut setup = Setup::new();
    let test = "an ext4 that is cut off under a cache file";
    let Some(mount) = Mount::ext4(&setup.dir, "cache", test, 192 * MIB) else { return };
    let cache: PathBuf = mount.sparse("cache.img", 96 * MIB);
    let uri = format!("uring:{}", cache.display());
    let made = forebay(&["format", &uri]);
    assert_eq!(made.code, Some(0), "{}", made.text);
    setup.caches.push(uri);
    let backing = setup.backing_file("backing.img", SIZE);
    setup.volumes = vec![volume(&backing)];
    let mut load = Load::new(seed(22), Plan::mixed(SIZE));
    for round in 0..ROUNDS {
        let mut daemon = Daemon::start(&setup);
        let mut host = connect(&setup);
        load.verify(&mut host);
        load.run_for(&mut host, Duration::from_millis(500 + 170 * round));
        host.flush().expect("a flush");
        load.assert_no_errors();
        daemon.kill();
        mount.cut_off();
        drop(daemon);
        mount.again();
    }
    let compared = support::last_look(&setup, &mut load, &backing);
    println!(
        "process: cache ext4 cut off {ROUNDS} times after a flush: {} writes, {} blocks verified, {compared} \
         bytes compared with the backing file",
        load.counts.writes, load.counts.verified
    );
    support::conclude(load.counts.verified);
}
