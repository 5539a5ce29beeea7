//! An idle node costs next to nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::time::{Duration, Instant};
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

/// Clock ticks of a second: USER_HZ, which Linux never changed.
const TICKS: f64 = 100.0;

/// Shares of a core in percent over `time`: by clock ticks, and by the scheduler.
fn measure(daemon: &Daemon, host: &mut Host, time: Duration) -> (f64, f64) {
    let (ticks, threads) = (daemon.ticks(), daemon.thread_nanos());
    let began = Instant::now();
    while began.elapsed() < time {
        host.pump();
        std::thread::sleep(Duration::from_millis(10));
    }
    let wall = began.elapsed().as_secs_f64();
    let by_ticks = (daemon.ticks() - ticks) as f64 / TICKS / wall * 100.0;
    // Threads that came or went meanwhile are in the ticks alone.
    let now = daemon.thread_nanos();
    let nanos: u64 =
        now.iter().filter_map(|(id, now)| threads.get(id).map(|then| now - then)).sum();
    (by_ticks, nanos as f64 / 1e9 / wall * 100.0)
}

#[test]
fn an_idle_node_with_a_host_costs_less_than_a_hundredth_of_a_core() {
    let seed = seed(7);
    let mut setup = Setup::new();
    setup.cache_file("", 256 * MIB);
    let backing = setup.backing_file("backing.img", 64 * MIB);
    setup.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let daemon = Daemon::start(&setup);
    // As often as a Linux host does.
    let options = HostOptions { keep_alive: Duration::from_secs(5), ..HostOptions::default() };
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), options);
    let mut all = Vec::new();
    std::thread::sleep(Duration::from_secs(1));
    all.push(("fresh", measure(&daemon, &mut host, Duration::from_secs(5))));
    // After work, with a warm cache and nothing dirty.
    let mut load = Load::new(seed, Plan::mixed(64 * MIB));
    load.run_for(&mut host, Duration::from_secs(1));
    daemon.drain("v", Duration::from_secs(60));
    assert!(daemon.ticks() > 0, "processor time is counted");
    std::thread::sleep(Duration::from_secs(2));
    all.push(("after load", measure(&daemon, &mut host, Duration::from_secs(5))));
    // With dirty data that waits for its age, devices and timers still have nothing to do.
    load.write_all(&mut host, &[(0, 16), (100, 16), (5000, 16)]);
    std::thread::sleep(Duration::from_secs(2));
    all.push(("with dirty data", measure(&daemon, &mut host, Duration::from_secs(5))));
    assert!(host.is_up() && host.associations() == 1, "kept alive: {}", host.last_error());
    for (when, (ticks, nanos)) in &all {
        println!(
            "process: idle node, {when}: {ticks:.2} % of a core by clock ticks, {nanos:.3} % by the scheduler"
        );
    }
    for (when, (ticks, nanos)) in all {
        assert!(ticks < 1.0 && nanos < 1.0, "{when}: {ticks:.2} %, {nanos:.3} %");
    }
    load.verify(&mut host);
    load.assert_no_errors();
    daemon.stop();
}
