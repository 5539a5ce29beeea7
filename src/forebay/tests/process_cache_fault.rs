//! The cache device failing: writes go to the backing store, clean data comes from there, dirty
//! data without another copy is an error and listed, and nothing stale comes back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::node::{Copy, Located, LostCache};
use forebay_control::stat::Health;
use forebay_control::stat::VolumeState;
use serde_json::json;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};
use support::{
    Daemon, Host, HostOptions, Load, Loop, MIB, Mount, Plan, Setup, Volume, forebay, refused, seed,
    wait,
};

const UNIT: u64 = 4096;

fn pieces(range: Range<u64>) -> Vec<(u64, u64)> {
    range.clone().step_by(16).map(|first| (first, 16.min(range.end - first))).collect()
}

fn connect(setup: &Setup) -> Host {
    // A device that hangs is called failed after more than 20 s; only then is a command answered.
    let options = HostOptions { fail_after: Duration::from_secs(40), ..HostOptions::default() };
    Host::connect(setup.address(), &Setup::nqn("v"), options)
}

/// Ranges of units that `volume where` calls lost.
fn lost(daemon: &Daemon, units: u64) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    let mut from = 0;
    while from < units {
        let params = json!({ "name": "v", "lba": from, "blocks": units - from });
        let answer = daemon.call("volume_where", params);
        let found: Vec<Located> = serde_json::from_value(answer["pieces"].clone()).expect("places");
        assert!(!found.is_empty(), "an answer covers the range: {answer}");
        for piece in found {
            assert_eq!(piece.lba, from, "in order, without gaps");
            from = piece.lba + piece.blocks;
            if piece.current == Copy::Lost {
                all.push(piece.lba..from);
            }
        }
    }
    all
}

fn inside(lost: &[Range<u64>], unit: u64) -> bool {
    lost.iter().any(|range| range.contains(&unit))
}

/// A cache device that can be made to fail, and to work again.
struct Cache {
    what: String,
    /// Its name for `format --force`.
    name: String,
    fail: Box<dyn FnOnce(&Daemon)>,
    heal: Box<dyn FnOnce()>,
    /// Killed, not stopped, after it failed.
    kill: bool,
}

impl Cache {
    /// A file behind `fault:`.
    fn fault(setup: &mut Setup, fault: &'static str) -> Self {
        setup.cache_file("fault:", 512 * MIB);
        Self {
            what: format!("cache {fault}"),
            name: "cache.img".to_owned(),
            fail: Box::new(move |daemon| daemon.fault("cache:0", fault, &[])),
            heal: Box::new(|| {}),
            kill: fault == "error",
        }
    }

    /// A device of a real file system, which fails by `fail` and is mended by `heal`.
    fn on(
        setup: &mut Setup,
        what: &str,
        path: &Path,
        fail: impl FnOnce() + 'static,
        heal: impl FnOnce() + 'static,
    ) -> Self {
        let uri = format!("uring:{}", path.display());
        let made = forebay(&["format", &uri]);
        assert_eq!(made.code, Some(0), "{}", made.text);
        setup.caches.push(uri);
        Self {
            what: what.to_owned(),
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            fail: Box::new(move |_| fail()),
            heal: Box::new(heal),
            kill: true,
        }
    }
}

struct Rig {
    setup: Setup,
    daemon: Daemon,
    host: Host,
    load: Load,
    clean: Range<u64>,
    dirty: Range<u64>,
    free: Range<u64>,
}

impl Rig {
    /// A volume with a clean part, a dirty one and one that was never touched.
    fn new(mut setup: Setup, seed: u64) -> Self {
        let size = 192 * MIB;
        let backing = setup.backing_file("backing.img", size);
        let volume = Volume::new("v", &format!("uring:{}", backing.display()))
            .with("memory_tier", "\"8MiB\"")
            .with("dirty_age_max", "\"1h\"");
        setup.volumes = vec![volume];
        let daemon = Daemon::start(&setup);
        let mut host = connect(&setup);
        let third = size / UNIT / 3;
        let (clean, dirty, free) = (0..third, third..third + 8192, third + 8192..size / UNIT);
        let mut plan = Plan::mixed(size);
        plan.depth = 16;
        let mut load = Load::new(seed, plan);
        load.write_all(&mut host, &pieces(clean.clone()));
        daemon.drain("v", Duration::from_secs(60));
        load.write_all(&mut host, &pieces(dirty.clone()));
        load.assert_no_errors();
        let is_dirty = daemon.volume("v").dirty_bytes;
        assert!(is_dirty > 16 * MIB, "dirty data waits for its age: {is_dirty}");
        Self { setup, daemon, host, load, clean, dirty, free }
    }

    fn check_failing(&mut self, what: &str, fail: impl FnOnce(&Daemon)) {
        let Self { daemon, host, load, .. } = self;
        fail(daemon);
        let began = Instant::now();
        // Writes go on, all of them: at once, or when the device has not answered for long enough.
        let fresh = self.free.start..self.free.start + 2048;
        load.write_all(host, &pieces(fresh.clone()));
        load.write_all(host, &pieces(self.clean.start..self.clean.start + 512));
        load.assert_no_errors();
        let took = began.elapsed();
        // Less than the 30 s that a Linux host waits for an answer before it resets its controller.
        assert!(took < Duration::from_secs(28), "writes went on after {took:?}");
        // Clean and fresh data comes from the backing store.
        let mut served = load.verify_range(host, self.clean.clone());
        served += load.verify_range(host, fresh);
        load.assert_no_errors();
        let cause = wait("stat says what is wrong", Duration::from_secs(40), || {
            let stat = daemon.stat();
            let said = stat.caches[0].health != Health::Ok && !stat.complaints().is_empty();
            said.then(|| stat.complaints().join("; "))
        });
        assert_eq!(daemon.command(&["stat"]).code, Some(3), "`forebay stat` is degraded");
        self.check_dirty(what, served, &cause);
    }

    /// Reads of dirty data return it or fail; those that fail are listed.
    fn check_dirty(&mut self, what: &str, served: u64, cause: &str) {
        let Self { daemon, host, load, .. } = self;
        load.failed_reads.clear();
        let copies = load.read_all(host, &pieces(self.dirty.clone()));
        let failed: Vec<(u64, u64)> = std::mem::take(&mut load.failed_reads);
        assert!(!failed.is_empty(), "32 MiB of dirty data cannot be in 8 MiB of memory");
        let listed = lost(daemon, load.plan.units);
        for (first, count) in &failed {
            let some = (*first..first + count).any(|unit| inside(&listed, unit));
            assert!(some, "a read of {first}+{count} failed, and nothing of it is listed");
        }
        for range in &listed {
            let dirty = self.dirty.start <= range.start && range.end <= self.dirty.end;
            assert!(dirty, "{range:?} is listed as lost, but was not dirty");
        }
        let bytes: u64 = listed.iter().map(|range| (range.end - range.start) * UNIT).sum();
        assert_eq!(daemon.volume("v").lost_bytes, bytes, "stat and list agree");
        load.counts.errors.clear();
        // Written again, a lost block is there again.
        let again = self.dirty.start..self.dirty.start + 1024;
        load.write_all(host, &pieces(again.clone()));
        let rewritten = load.verify_range(host, again.clone());
        load.assert_no_errors();
        assert!(!lost(daemon, load.plan.units).iter().any(|range| range.start < again.end));
        println!(
            "process: {what}: {served} clean and fresh blocks served, {copies} dirty ones \
             had a copy, {} MiB listed as lost in {} ranges, {} reads of them failed, {rewritten} \
             rewritten and read; \"{cause}\"",
            bytes / MIB,
            listed.len(),
            failed.len()
        );
    }

    /// Stopped or killed, and started again with a device that works: it holds records that are older than
    /// what went to the backing store meanwhile. It is refused. Made anew, it lets the volume go
    /// on once somebody has said that the old cache is lost, and nothing stale is read.
    fn check_restart(mut self, what: &str, name: &str, kill: bool, heal: impl FnOnce()) {
        self.host.disconnect();
        let how = if !kill {
            let (status, took) = self.daemon.interrupt();
            assert_eq!(status.code(), Some(0), "Ctrl-C ends it well: {status}");
            assert!(took < Duration::from_secs(20), "Ctrl-C took {took:?}");
            "stopped"
        } else {
            self.daemon.kill();
            "killed"
        };
        heal();
        // The kernel closes the files of a process that was killed some time after it.
        let refusal = wait("the devices can be opened again", Duration::from_secs(60), || {
            Some(refused(&self.setup)).filter(|refusal| !refusal.text.contains("is in use"))
        });
        assert_eq!(refusal.code, Some(5), "refused as unsafe: {}", refusal.text);
        assert!(refusal.text.contains("--lost-cache"), "says what to do: {}", refusal.text);
        let uri = self.setup.caches[0].trim_start_matches("fault:").to_owned();
        let made = forebay(&["format", &uri, "--force", name]);
        assert_eq!(made.code, Some(0), "{}", made.text);

        let daemon = Daemon::start(&self.setup);
        let volume = daemon.volume("v");
        assert_eq!(volume.state, VolumeState::Down, "its cache is gone: {:?}", volume.cause);
        let cause = volume.cause.unwrap_or_default();
        assert!(cause.contains("--lost-cache"), "says what to do: {cause}");
        let params = |commit: bool| json!({ "name": "v", "lost_cache": true, "commit": commit });
        let told: LostCache = serde_json::from_value(daemon.call("volume_recover", params(false)))
            .expect("a list of what is lost");
        assert!(!told.clean && !told.complete, "dirty data was lost: {told:?}");
        assert_eq!(daemon.volume("v").state, VolumeState::Down, "only told so far");
        let recovered = daemon.command(&["volume", "recover", "v", "--lost-cache", "--yes"]);
        assert_eq!(recovered.code, Some(0), "{}", recovered.text);
        assert_eq!(daemon.volume("v").state, VolumeState::Active);
        let mut host = connect(&self.setup);
        let mut verified = 0;
        for range in [
            self.clean,
            self.dirty.start..self.dirty.start + 1024,
            self.free.start..self.free.start + 2048,
        ] {
            verified += self.load.verify_range(&mut host, range.clone());
            self.load.write_all(&mut host, &pieces(range.clone()));
            verified += self.load.verify_range(&mut host, range);
        }
        self.load.assert_no_errors();
        println!(
            "process: {how} after {what}: refused, then cold after volume recover: \
             {verified} blocks verified; \"{}\"",
            refusal.text.trim()
        );
        host.disconnect();
        daemon.stop();
        support::conclude(self.load.counts.verified);
    }
}

/// The cache of this node fails, then the node starts again.
fn check(setup: Setup, cache: Cache, seed: u64) {
    let Cache { what, name, fail, heal, kill } = cache;
    let mut rig = Rig::new(setup, seed);
    rig.check_failing(&what, fail);
    rig.check_restart(&what, &name, kill, heal);
}

#[test]
fn a_failing_cache_device_loses_only_what_it_alone_had() {
    let seed = seed(5);
    for (fault, seed) in [("error", seed), ("gone", seed + 1), ("hang", seed + 2)] {
        let mut setup = Setup::new();
        let cache = Cache::fault(&mut setup, fault);
        check(setup, cache, seed);
    }
}

const FILE: u64 = 256 * MIB;

/// The kernel's loop device over a file whose file system runs full fails writes, as a disk would.
#[test]
fn a_failing_cache_block_device_loses_only_what_it_alone_had() {
    let mut setup = Setup::new();
    let test = "a cache on a failing block device";
    let Some(mount) = Mount::tmpfs(&setup.dir, "small", test, FILE + 48 * MIB) else { return };
    let mount = Rc::new(mount);
    let file = mount.sparse("cache.img", FILE);
    let disk = Loop::new(&file);
    let (full, room) = (Rc::clone(&mount), Rc::clone(&mount));
    let fail = move || assert!(full.fill() > 0);
    let cache = Cache::on(&mut setup, test, &disk.0, fail, move || room.clear());
    check(setup, cache, seed(8));
}

/// A cache file that was copied without its empty blocks has no space of its own where there is not
/// that much (a warning at the start), and runs into ENOSPC.
#[test]
fn a_cache_file_that_runs_out_of_space_loses_only_what_it_alone_had() {
    let mut setup = Setup::new();
    let test = "a cache file on a full tmpfs";
    let Some(mount) = Mount::tmpfs(&setup.dir, "small", test, FILE + 48 * MIB) else { return };
    let mount = Rc::new(mount);
    let file = mount.sparse("cache.img", FILE);
    let (full, room) = (Rc::clone(&mount), Rc::clone(&mount));
    let heal = move || {
        room.resize(FILE + 48 * MIB);
        room.clear();
    };
    let cache = Cache::on(&mut setup, test, &file, move || assert!(full.fill() > 0), heal);
    let copy = file.with_extension("copy");
    let copied = Command::new("cp").arg("--sparse=always").args([&file, &copy]).status().unwrap();
    assert!(copied.success() && std::fs::rename(&copy, &file).is_ok());
    mount.resize(FILE - 48 * MIB);
    check(setup, cache, seed(9));
}

/// The file system under a cache file is gone: every operation is an I/O error.
#[test]
fn a_cache_file_whose_file_system_fails_loses_only_what_it_alone_had() {
    let mut setup = Setup::new();
    let test = "a cache file on an ext4 that is cut off";
    let Some(mount) = Mount::ext4(&setup.dir, "cache", test, FILE + 64 * MIB) else { return };
    let mount = Rc::new(mount);
    let file = mount.sparse("cache.img", FILE);
    let (away, back) = (Rc::clone(&mount), Rc::clone(&mount));
    let cache = Cache::on(&mut setup, test, &file, move || away.cut_off(), move || back.again());
    check(setup, cache, seed(10));
}
