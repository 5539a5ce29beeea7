//! Deleting a volume whose backing device is dead: it cannot be drained; its dirty data is dropped
//! when its name is given twice, and nothing of it comes back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::jobs::JobState;
use serde_json::json;
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed, wait};

const SIZE: u64 = 32 * MIB;
const UNIT: u64 = 4096;

fn connect(setup: &Setup, name: &str) -> Host {
    Host::connect(setup.address(), &Setup::nqn(name), HostOptions::default())
}

fn is_there(daemon: &Daemon, name: &str) -> bool {
    daemon.stat().volume(name).is_some()
}

/// A node with two volumes full of dirty data; the backing device of the first one takes no writes.
fn node(seed: u64) -> (Setup, Daemon, Load, Load) {
    let mut setup = Setup::new();
    setup.cache_file("", 256 * MIB);
    let mut volumes = Vec::new();
    for name in ["dead", "other"] {
        let backing = setup.backing_file(&format!("{name}.img"), SIZE);
        let uri = format!("fault:uring:{}", backing.display());
        volumes.push(Volume::new(name, &uri).with("dirty_age_max", "\"1h\""));
    }
    setup.volumes = volumes;
    let daemon = Daemon::start(&setup);
    daemon.fault("backing:dead", "error", &["write", "flush"]);
    let mut loads = Vec::new();
    for (name, seed) in [("dead", seed), ("other", seed + 1)] {
        let mut host = connect(&setup, name);
        let mut load = Load::new(seed, Plan::mixed(SIZE));
        let pieces: Vec<(u64, u64)> = (0..4096).step_by(16).map(|first| (first, 16)).collect();
        load.write_all(&mut host, &pieces);
        load.assert_no_errors();
        host.disconnect();
        assert!(daemon.volume(name).dirty_bytes >= 8 * MIB);
        loads.push(load);
    }
    let other = loads.pop().unwrap();
    (setup, daemon, loads.pop().unwrap(), other)
}

/// The deleted volume is gone, before and after a restart, and the other has all it had.
fn check_gone(setup: &Setup, mut daemon: Daemon, other: &mut Load) -> Daemon {
    assert!(!is_there(&daemon, "dead"));
    daemon.kill();
    let daemon = Daemon::start(setup);
    daemon.finish_all(Duration::from_secs(30));
    assert!(!is_there(&daemon, "dead"), "it does not come back");
    let mut host = connect(setup, "other");
    other.verify(&mut host);
    other.assert_no_errors();
    host.disconnect();
    let written = std::fs::read(setup.dir.file("dead.img")).unwrap();
    assert!(written.iter().all(|byte| *byte == 0), "nothing reached the backing device");
    daemon
}

#[test]
fn a_volume_with_a_dead_backing_device_is_deleted_without_its_dirty_data() {
    let (setup, daemon, mut dead, mut other) = node(seed(81));
    // Draining cannot end, and says why; taken back, the volume is there with all its data.
    let job = daemon.begin("volume_delete", json!({ "name": "dead" }));
    let stall = wait("the job says what stalls it", Duration::from_secs(10), || {
        let view = daemon.job(job);
        assert_eq!(view.state, JobState::Running, "{view:?}");
        view.stall
    });
    daemon.call("job_cancel", json!({ "id": job }));
    wait("the job is cancelled", Duration::from_secs(10), || {
        (daemon.job(job).state == JobState::Cancelled).then_some(())
    });
    let mut host = connect(&setup, "dead");
    let served = dead.verify(&mut host);
    dead.assert_no_errors();
    host.disconnect();

    let refused =
        daemon.command(&["volume", "delete", "dead", "--discard-dirty", "other", "--yes"]);
    assert_eq!(refused.code, Some(5), "refused as unsafe: {}", refused.text);
    assert!(refused.text.contains("--discard-dirty dead"), "says how: {}", refused.text);
    assert!(is_there(&daemon, "dead") && is_there(&daemon, "other"));
    let deleted = daemon.command(&["volume", "delete", "dead", "--discard-dirty", "dead"]);
    assert_eq!(deleted.code, Some(0), "{}\n{}", deleted.text, daemon.log());
    let daemon = check_gone(&setup, daemon, &mut other);

    // A new volume of that name begins with what its backing device has.
    let uri = setup.volumes[0].backing.clone();
    let made =
        daemon.command(&["volume", "create", "dead", "--backing", &uri, "--mode", "write-back"]);
    assert_eq!(made.code, Some(0), "{}", made.text);
    let mut host = connect(&setup, "dead");
    for unit in (0..SIZE / UNIT).step_by(97) {
        let data = host.read(unit * UNIT, 4096).unwrap();
        assert!(data.iter().all(|byte| *byte == 0), "unit {unit} is stale");
    }
    host.disconnect();
    println!(
        "process: delete: {served} blocks served after a cancelled one (\"{stall}\"); refused: \"{}\"; dropped, gone after a kill",
        refused.text.lines().next().unwrap_or_default()
    );
    daemon.stop();
}

#[test]
fn killed_while_it_is_deleted_it_is_deleted_at_the_next_start() {
    let seed = seed(83);
    for n in 0..4 {
        let (setup, mut daemon, _, mut other) = node(seed + 2 * n);
        daemon.begin("volume_delete", json!({ "name": "dead", "discard_dirty": true }));
        std::thread::sleep(Duration::from_millis(n * 3));
        daemon.kill();
        let daemon = Daemon::start(&setup);
        daemon.finish_all(Duration::from_secs(30));
        check_gone(&setup, daemon, &mut other).stop();
    }
    println!("process: delete: killed during it 4 times, gone each time, the other volume whole");
}
