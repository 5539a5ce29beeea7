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
use std::time::{Duration, Instant};
use support::{
    Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, forebay, refused, seed, wait,
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
    fn new(seed: u64) -> Self {
        let mut setup = Setup::new();
        setup.cache_file("fault:", 512 * MIB);
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

    fn check_failing(&mut self, fault: &str) {
        let Self { daemon, host, load, .. } = self;
        daemon.fault("cache:0", fault, &[]);
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
        self.check_dirty(fault, served, &cause);
    }

    /// Reads of dirty data return it or fail; those that fail are listed.
    fn check_dirty(&mut self, fault: &str, served: u64, cause: &str) {
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
            "process: cache {fault}: {served} clean and fresh blocks served, {copies} dirty ones \
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
    fn check_restart(mut self, fault: &str) {
        self.host.disconnect();
        let how = if fault != "error" {
            let (status, took) = self.daemon.interrupt();
            assert_eq!(status.code(), Some(0), "Ctrl-C ends it well: {status}");
            assert!(took < Duration::from_secs(20), "Ctrl-C took {took:?}");
            "stopped"
        } else {
            self.daemon.kill();
            "killed"
        };
        let refusal = refused(&self.setup);
        assert_eq!(refusal.code, Some(5), "refused as unsafe: {}", refusal.text);
        assert!(refusal.text.contains("--lost-cache"), "says what to do: {}", refusal.text);
        let uri = self.setup.caches[0].trim_start_matches("fault:").to_owned();
        let made = forebay(&["format", &uri, "--force", "cache.img"]);
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
            "process: {how} after cache {fault}: refused, then cold after volume recover: \
             {verified} blocks verified; \"{}\"",
            refusal.text.trim()
        );
        host.disconnect();
        daemon.stop();
        support::conclude(self.load.counts.verified);
    }
}

#[test]
fn a_failing_cache_device_loses_only_what_it_alone_had() {
    let seed = seed(5);
    for (fault, seed) in [("error", seed), ("gone", seed + 1), ("hang", seed + 2)] {
        let mut rig = Rig::new(seed);
        rig.check_failing(fault);
        rig.check_restart(fault);
    }
}
