//! A stop in the middle of a load, with much to destage to slow backing devices, on two reactors that
//! serve each other's hosts: it is quick, clean, and loses nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

const SIZE: u64 = 96 * MIB;
/// How long a stop may take; what waits out a patience takes ten seconds.
const QUICK: Duration = Duration::from_secs(5);
const STOPS: u64 = 3;

fn host(setup: &Setup, number: u32) -> Host {
    let options = HostOptions { number, nsid: number + 1, queues: 4, ..HostOptions::default() };
    Host::connect(setup.address(), &Setup::nqn("group"), options)
}

/// Runs `work` on both volumes at once, each with a host of its own.
fn on_both(setup: &Setup, loads: &mut [Load], work: impl Fn(&mut Load, Host) + Sync) {
    std::thread::scope(|scope| {
        for (number, load) in (0..).zip(loads) {
            let work = &work;
            scope.spawn(move || work(load, host(setup, number)));
        }
    });
}

/// Stops the daemon once enough was written; how long that took, and its log.
fn stop_under_load(setup: &Setup, loads: &mut [Load], daemon: Daemon) -> (Duration, String) {
    let daemon = Mutex::new(Some(daemon));
    let stopping = AtomicBool::new(false);
    let outcome = Mutex::new(None);
    on_both(setup, loads, |load, host| {
        let begun = load.counts.writes;
        load.run_into_crash(host, |counts| {
            let enough = counts.writes >= begun + 2000;
            if enough && !stopping.swap(true, Ordering::AcqRel) {
                let daemon = daemon.lock().unwrap().take().unwrap();
                let dirty: u64 = daemon.stat().volumes.iter().map(|v| v.dirty_bytes).sum();
                assert!(dirty > 8 * MIB, "{dirty} bytes are dirty: nothing to wait for");
                let log = daemon.log_path();
                let (status, took) = daemon.interrupt();
                let text = std::fs::read_to_string(log).unwrap();
                assert_eq!(status.code(), Some(0), "{status}\n{text}");
                println!(
                    "process: stopped in {} ms with {} MiB dirty",
                    took.as_millis(),
                    dirty / MIB
                );
                *outcome.lock().unwrap() = Some((took, text));
            }
            stopping.load(Ordering::Acquire)
        });
    });
    outcome.into_inner().unwrap().unwrap()
}

#[test]
fn a_stop_under_load_is_quick_and_clean() {
    let seed = seed(21);
    let mut setup = Setup::new();
    setup.cores = vec![0, 1];
    setup.memory = "512MiB".to_owned();
    setup.cache_file("", 256 * MIB);
    setup.cache_file("", 256 * MIB);
    for name in ["g1", "g2"] {
        let backing = setup.backing_file(&format!("{name}.img"), SIZE);
        let mut volume = Volume::new(
            name,
            &format!("slow:uring:{}?read_us=5000&write_us=20000", backing.display()),
        );
        volume.subsystem = Some("group".to_owned());
        setup.volumes.push(volume);
    }
    let mut loads = [Load::new(seed, Plan::mixed(SIZE)), Load::new(seed + 1, Plan::mixed(SIZE))];
    for stop in 0..STOPS {
        let daemon = Daemon::start(&setup);
        // The engines are in the middle of destage when they are told; the next start goes on with it.
        for name in ["g1", "g2"].iter().filter(|_| stop == 0) {
            daemon.begin("volume_drain", serde_json::json!({ "name": name }));
        }
        let (took, log) = stop_under_load(&setup, &mut loads, daemon);
        assert!(took < QUICK, "stop {stop} took {took:?}\n{log}");
        assert!(!log.contains("recovers"), "not clean:\n{log}");
    }
    let daemon = Daemon::start(&setup);
    on_both(&setup, &mut loads, |load, mut host| {
        load.verify(&mut host);
        host.disconnect();
    });
    for (name, load) in ["g1", "g2"].iter().zip(&loads) {
        daemon.drain(name, Duration::from_secs(60));
        load.compare_file(&setup.dir.file(&format!("{name}.img")));
    }
    daemon.stop();
    let verified = loads.iter().map(|load| load.counts.verified).sum();
    println!("process: {STOPS} stops under load, {verified} blocks verified, 0 wrong");
    support::conclude(verified);
}
