//! Real file systems that run full, and a block device that fails because of it: hosts get the right
//! answers, nothing acknowledged is lost, `stat` says what is wrong, and it goes on with the space.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::Health;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{
    Daemon, Host, HostOptions, Load, Loop, MIB, Mount, Plan, Setup, Volume, forebay, seed, wait,
};

const SIZE: u64 = 96 * MIB;

fn connect(setup: &Setup) -> Host {
    // A write that finds no room is tried again by the host for a while.
    let options = HostOptions { fail_after: Duration::from_secs(5), ..HostOptions::default() };
    Host::connect(setup.address(), &Setup::nqn("v"), options)
}

/// A write-back volume whose backing store has room for a part of it only. `room` gives it more.
fn check_backing(what: &str, mut setup: Setup, uri: &str, seed: u64, room: impl FnOnce()) {
    setup.cache_file("", 256 * MIB);
    let volume = Volume::new("v", uri).with("dirty_max", "\"160MiB\"");
    setup.volumes = vec![volume.with("dirty_age_max", "\"500ms\"")];
    let mut daemon = Daemon::start(&setup);
    let mut host = connect(&setup);
    let mut plan = Plan::mixed(SIZE);
    // A device without room can have no hole made either; reads of it are right.
    (plan.depth, plan.zeroes) = (8, 0);
    let mut load = Load::new(seed, plan);
    load.run_for(&mut host, Duration::from_secs(3));
    let cause = wait("stat says what is wrong", Duration::from_secs(20), || {
        let stat = daemon.stat();
        let said = stat.volume("v")?.backing.health != Health::Ok;
        said.then(|| stat.complaints().join("; "))
    });
    assert_eq!(daemon.command(&["stat"]).code, Some(3), "`forebay stat` is degraded");
    // The cache has room: writes go on, and all of it reads right, before and after a kill.
    let writes = load.counts.writes;
    load.run_for(&mut host, Duration::from_secs(1));
    assert!(load.counts.writes > writes + 50, "writes go on: {:?}", load.counts);
    load.assert_no_errors();
    let dirty = daemon.volume("v").dirty_bytes;
    let mut verified = load.verify(&mut host);
    let until = load.counts.ops() + 300;
    load.run_into_crash(host, |counts| {
        let now = counts.ops() >= until;
        if now {
            daemon.kill();
        }
        now
    });
    daemon = Daemon::start(&setup);
    host = connect(&setup);
    verified += load.verify(&mut host);
    load.assert_no_errors();

    room();
    let began = Instant::now();
    daemon.drain("v", Duration::from_secs(60));
    let resumed = began.elapsed();
    wait("stat is content", Duration::from_secs(10), || {
        daemon.stat().complaints().is_empty().then_some(())
    });
    load.run_for(&mut host, Duration::from_secs(1));
    verified += load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    daemon.drain("v", Duration::from_secs(60));
    daemon.stop();
    let path = uri.trim_start_matches("uring:");
    let compared = load.compare_file(Path::new(path));
    println!(
        "process: {what}: \"{cause}\" with {} MiB dirty; {} writes acknowledged, {verified} blocks \
         verified, killed in between; drained {resumed:?} after there was room, {compared} bytes compared",
        dirty / MIB,
        load.counts.writes
    );
    support::conclude(load.counts.verified);
}

#[test]
fn a_full_backing_file_system_loses_nothing() {
    let setup = Setup::new();
    let test = "a full ext4 under a backing file";
    let Some(mount) = Mount::ext4(&setup.dir, "full", test, SIZE + 64 * MIB) else { return };
    let uri = format!("uring:{}", mount.sparse("backing.img", SIZE).display());
    mount.fill();
    check_backing("backing on a full ext4", setup, &uri, seed(11), || mount.clear());
}

/// The kernel's loop device over a file whose file system is full fails writes as a disk would.
#[test]
fn a_failing_backing_block_device_loses_nothing() {
    let setup = Setup::new();
    let test = "a failing block device";
    let Some(mount) = Mount::tmpfs(&setup.dir, "small", test, SIZE + 16 * MIB) else { return };
    let disk = Loop::new(&mount.sparse("disk.img", SIZE));
    let uri = format!("uring:{}", disk.0.display());
    mount.fill();
    check_backing("backing on a failing block device", setup, &uri, seed(12), || mount.clear());
    if !Command::new("dmsetup").arg("targets").output().is_ok_and(|out| {
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains("flakey")
    }) {
        println!("not run: dm-flakey: this kernel has no such device-mapper target");
    }
}

/// A write that has to go to a full backing store is not acknowledged: it fails with the status that
/// says so, and a later one succeeds when there is room. What was acknowledged stays.
#[test]
fn writes_past_the_cache_are_not_acknowledged_without_room() {
    let mut setup = Setup::new();
    let test = "a full tmpfs under a volume in pass-through";
    let Some(mount) = Mount::tmpfs(&setup.dir, "full", test, 48 * MIB) else { return };
    setup.cache_file("", 64 * MIB);
    let backing = mount.sparse("backing.img", SIZE);
    let mut volume = Volume::new("v", &format!("uring:{}", backing.display()));
    volume.mode = "pass-through".to_owned();
    setup.volumes = vec![volume];
    let daemon = Daemon::start(&setup);
    let options = HostOptions { fail_after: Duration::from_secs(1), ..HostOptions::default() };
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), options);
    let mut load = Load::new(seed(13), Plan { depth: 32, ..Plan::mixed(SIZE) });
    let pieces: Vec<(u64, u64)> = (0..SIZE / 4096).step_by(16).map(|unit| (unit, 16)).collect();
    load.write_all(&mut host, &pieces[..256]);
    load.assert_no_errors();
    mount.fill();
    load.write_all(&mut host, &pieces[256..320]);
    let errors = std::mem::take(&mut load.counts.errors);
    assert!(load.counts.writes < 320, "not all found room");
    let stat = daemon.stat();
    let cause = stat.complaints().join("; ");
    assert!(cause.contains("no space left"), "stat says what is wrong: {cause}");
    // At once, as Capacity Exceeded: a status that asks for another try would keep hosts at it.
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors.keys().all(|(kind, what)| *kind == "write" && what.contains("no space left")));
    let verified = load.verify_range(&mut host, 0..256 * 16);
    load.assert_no_errors();
    mount.clear();
    load.write_all(&mut host, &pieces[256..320]);
    let more = load.verify_range(&mut host, 0..320 * 16);
    load.assert_no_errors();
    host.disconnect();
    daemon.stop();
    println!(
        "process: pass-through on a full tmpfs: \"{cause}\"; {errors:?}; {} blocks verified",
        verified + more
    );
}

/// The space of a cache file is set aside: others that fill its file system do it no harm. Where there
/// is not that much, nothing is formatted.
#[test]
fn a_cache_file_has_its_space() {
    let mut setup = Setup::new();
    let test = "a full ext4 under a cache file";
    let Some(mount) = Mount::ext4(&setup.dir, "full", test, 160 * MIB) else { return };
    let large = mount.sparse("large.img", 256 * MIB);
    let refused = forebay(&["format", &format!("uring:{}", large.display())]);
    assert_eq!(refused.code, Some(1), "{}", refused.text);
    assert!(
        refused.text.contains(&(256 * MIB).to_string()),
        "names what is lacking: {}",
        refused.text
    );
    std::fs::remove_file(&large).unwrap();

    let cache = mount.sparse("cache.img", 96 * MIB);
    let uri = format!("uring:{}", cache.display());
    let made = forebay(&["format", &uri]);
    assert_eq!(made.code, Some(0), "{}", made.text);
    setup.caches.push(uri);
    let backing = setup.backing_file("backing.img", SIZE);
    setup.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let ballast = mount.fill();
    let daemon = Daemon::start(&setup);
    assert_eq!(daemon.stat().caches[0].unreserved, 0);
    let mut host = connect(&setup);
    let mut load = Load::new(seed(14), Plan::mixed(SIZE));
    load.run_for(&mut host, Duration::from_secs(4));
    let verified = load.verify(&mut host);
    load.assert_no_errors();
    let stat = daemon.stat();
    assert!(stat.complaints().is_empty() && stat.caches[0].errors == 0, "{:?}", stat.complaints());
    let written = stat.caches[0].write.bytes;
    assert!(written > 96 * MIB, "the cache was used all round: {written}");
    host.disconnect();
    daemon.stop();
    println!(
        "process: cache on a full ext4: {} MiB of others, {} MiB written to it, {verified} blocks \
         verified, no error",
        ballast / MIB,
        written / MIB
    );
}
