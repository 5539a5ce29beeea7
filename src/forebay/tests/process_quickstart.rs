//! The quickstart: serves, stops on Ctrl-C, goes on with its state, lets no second one in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use support::daemon::quickstart_refused;
use support::{
    Daemon, Dir, Host, HostOptions, Load, MIB, Plan, Setup, Volume, refused, seed, wait,
};

/// A quickstart listens where NVMe/TCP does.
const PORT: u16 = 4420;

fn connect(nqn: &str) -> Host {
    Host::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), nqn, HostOptions::default())
}

#[test]
fn a_quickstart_serves_stops_and_goes_on() {
    let seed = seed(1);
    wait("port 4420 is free: the quickstart needs it", Duration::from_secs(60), || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).ok()
    });
    let dir = Dir::new();
    let data = dir.file("q");
    let daemon = Daemon::quickstart(&data);
    let first = daemon.volume("quickstart");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("nvme connect")).unwrap_or_else(|| {
        panic!("no line says how to connect:\n{log}");
    });
    for part in ["-t tcp", "127.0.0.1", "4420", &first.nqn] {
        assert!(line.contains(part), "`{part}` is missing in: {line}");
    }
    println!("process: {}", line.trim());

    let mut load = Load::new(seed, Plan::mixed(192 * MIB));
    let mut host = connect(&first.nqn);
    load.run_for(&mut host, Duration::from_secs(4));
    load.assert_no_errors();
    let dirty = daemon.volume("quickstart").dirty_bytes;
    assert!(dirty > 0, "a write-back volume that was just written has dirty data");

    second_daemons_are_refused(&data);
    load.run_for(&mut host, Duration::from_secs(1));
    load.assert_no_errors();
    host.disconnect();

    let (status, took) = daemon.interrupt();
    assert_eq!(status.code(), Some(0), "Ctrl-C ends it well: {status}");
    let daemon = Daemon::quickstart(&data);
    let again = daemon.volume("quickstart");
    assert_eq!(
        (&again.nqn, &again.uuid, &again.nguid, again.nsid),
        (&first.nqn, &first.uuid, &first.nguid, 1),
        "hosts find the same namespace"
    );
    let mut host = connect(&again.nqn);
    let verified = load.verify(&mut host);
    load.run_for(&mut host, Duration::from_secs(1));

    // Ctrl-C in the middle of a load: the host sees errors, but what was acknowledged is there.
    let mut daemon = Some(daemon);
    let begun = load.counts.writes;
    load.run_into_crash(host, |counts| {
        counts.writes >= begun + 300
            && daemon.take().is_some_and(|daemon| daemon.interrupt().0.code() == Some(0))
    });
    let daemon = Daemon::quickstart(&data);
    let mut host = connect(&again.nqn);
    let verified_again = load.verify(&mut host);
    host.disconnect();
    daemon.stop();
    let counts = &load.counts;
    println!(
        "process: quickstart: {} writes, {} reads, {} MiB dirty at Ctrl-C, stopped in {took:?}, \
         restarted in {:?}, {verified} and {verified_again} blocks verified after the restarts",
        counts.writes,
        counts.reads,
        dirty / MIB,
        again_started(&data),
    );
}

/// How long another start of a clean quickstart takes.
fn again_started(data: &std::path::Path) -> Duration {
    let daemon = Daemon::quickstart(data);
    let took = daemon.started_in;
    daemon.stop();
    took
}

fn second_daemons_are_refused(data: &std::path::Path) {
    let same = quickstart_refused(data);
    let text = same.text.to_lowercase();
    assert!(
        text.contains("in use") || text.contains("already") || text.contains("another"),
        "says that another one has it: {}",
        same.text
    );
    assert!(text.contains(&data.display().to_string().to_lowercase()), "names it: {}", same.text);
    println!("process: second quickstart: exit {:?}: {}", same.code, same.text.trim());

    // Another node, another state, another port, but the same cache device.
    let mut other = Setup::new();
    let cache = data.join("cache.img");
    other.caches.push(format!("uring:{}", cache.display()));
    let backing = other.backing_file("backing.img", 64 * MIB);
    other.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let refusal = refused(&other);
    assert!(refusal.text.contains(&cache.display().to_string()), "names it: {}", refusal.text);
    println!("process: same cache device: exit {:?}: {}", refusal.code, refusal.text.trim());
}
