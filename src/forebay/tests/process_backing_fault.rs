//! The backing device failing, hanging, going away and coming back under write-back load.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::Health;
use serde_json::json;
use std::time::{Duration, Instant};
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed, wait};

/// The device under the volume, as the control socket knows it.
const DEVICE: &str = "backing:v";

/// Writes during a fault at most: 66 KiB each on average.
const WRITES_MAX: u64 = 6000;

struct Rig {
    setup: Setup,
    daemon: Daemon,
    host: Host,
    load: Load,
}

impl Rig {
    fn hot_pieces(&self) -> Vec<(u64, u64)> {
        let hot = self.load.plan.hot.clone();
        (hot.start..hot.end).step_by(8).map(|first| (first, 8.min(hot.end - first))).collect()
    }

    /// The backing device does `fault` for a while. Then it heals, and all ends well.
    fn endure(&mut self, fault: &str) {
        let hot = self.hot_pieces();
        self.load.write_all(&mut self.host, &hot);
        self.load.assert_no_errors();
        self.daemon.fault(DEVICE, fault, &[]);
        let began = Instant::now();

        // Writes of whole blocks go on, and the hot blocks are read from the cache.
        self.load.failed_reads.clear();
        let writes = self.load.counts.writes;
        // Less than the log holds, or what is clean of the hot blocks may leave the cache for it.
        let end = began + Duration::from_secs(2);
        let most = writes + WRITES_MAX;
        self.load.run(&mut self.host, |counts| counts.writes >= most || Instant::now() >= end);
        let served = self.load.read_all(&mut self.host, &hot);
        let acknowledged = self.load.counts.writes - writes;
        assert!(self.load.failed_reads.is_empty(), "cached: {:?}", self.load.failed_reads);
        assert_eq!(self.load.counts.failed("write"), 0, "{:?}", self.load.counts.errors);
        assert!(acknowledged > 100, "{acknowledged} writes while the backing store fails");

        // A drain cannot end; it keeps the device asked, and says what stalls it.
        let job = self.daemon.begin("volume_drain", json!({ "name": "v" }));
        let cause =
            wait(&format!("stat says what is wrong: {fault}"), Duration::from_secs(40), || {
                let stat = self.daemon.stat();
                let volume = stat.volume("v").unwrap();
                let said = volume.backing.health != Health::Ok && !stat.complaints().is_empty();
                said.then(|| stat.complaints().join("; "))
            });
        assert!(self.daemon.volume("v").dirty_bytes > 0);
        let shown = self.daemon.command(&["stat"]);
        assert_eq!(shown.code, Some(3), "`forebay stat` is degraded: {}", shown.text);
        assert!(shown.text.contains("! "), "`forebay stat` says what is wrong: {}", shown.text);

        let failing = began.elapsed();
        // Nothing reaches a device that fails.
        let destaged = self.daemon.volume("v").destaged_bytes;
        self.daemon.fault(DEVICE, "heal", &[]);
        let healed = Instant::now();
        // By itself: nothing else is asked of it.
        wait("destage resumes", Duration::from_secs(30), || {
            (self.daemon.volume("v").destaged_bytes > destaged).then_some(())
        });
        let resumed = healed.elapsed();
        self.daemon.finish(job, Duration::from_secs(60));
        wait("nothing is dirty", Duration::from_secs(10), || {
            (self.daemon.volume("v").dirty_bytes == 0).then_some(())
        });
        wait("stat is content", Duration::from_secs(10), || {
            self.daemon.stat().complaints().is_empty().then_some(())
        });
        let verified = self.load.verify(&mut self.host);
        self.load.assert_no_errors();
        println!(
            "process: backing {fault} for {failing:?}: {acknowledged} writes acknowledged, {served} \
             cached blocks read, \"{cause}\"; destage resumed {resumed:?} after it healed, \
             {verified} blocks verified"
        );
    }

    /// Killed while the device fails: what was acknowledged is there after the restart.
    fn kill_while_failing(mut self) -> Load {
        self.daemon.fault(DEVICE, "error", &[]);
        let begun = self.load.counts.writes;
        self.load.run_into_crash(self.host, |counts| {
            let now = counts.writes >= begun + 400;
            if now {
                self.daemon.kill();
            }
            now
        });
        self.load.counts.errors.clear();
        let daemon = Daemon::start(&self.setup);
        let mut host =
            Host::connect(self.setup.address(), &Setup::nqn("v"), HostOptions::default());
        let verified = self.load.verify(&mut host);
        self.load.assert_no_errors();
        daemon.drain("v", Duration::from_secs(60));
        let compared = self.load.compare_file(&self.setup.dir.file("backing.img"));
        println!(
            "process: killed while the backing device fails: {verified} blocks verified, {compared} \
             bytes compared with the backing file after the drain"
        );
        host.disconnect();
        daemon.stop();
        self.load
    }
}

#[test]
fn a_failing_backing_device_loses_nothing() {
    let seed = seed(4);
    let mut setup = Setup::new();
    setup.cache_file("", 768 * MIB);
    let backing = setup.backing_file("backing.img", 128 * MIB);
    let uri = format!("fault:uring:{}", backing.display());
    setup.volumes = vec![Volume::new("v", &uri).with("dirty_max", "\"400MiB\"")];
    let daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    // Everything is cached before anything fails, and only the hot part is read under load: reads
    // that miss may fail while there is nothing to read from. The load is bounded by depth.
    let mut plan = Plan::mixed(128 * MIB);
    (plan.depth, plan.reads) = (4, 0);
    let mut load = Load::new(seed, plan);
    load.run_for(&mut host, Duration::from_secs(2));
    load.assert_no_errors();
    let mut rig = Rig { setup, daemon, host, load };
    for fault in ["error", "gone", "hang"] {
        rig.endure(fault);
    }
    let load = rig.kill_while_failing();
    println!(
        "process: backing faults: {} writes acknowledged, none lost, {} blocks verified",
        load.counts.writes, load.counts.verified
    );
    support::conclude(load.counts.verified);
}
