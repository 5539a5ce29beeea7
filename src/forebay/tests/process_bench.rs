//! `forebay bench` against a daemon whose backing device stalls: an open loop shows the stall, a closed one
//! does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use serde_json::Value;
use std::time::Duration;
use support::host::HOST_NQN;
use support::{Daemon, Setup, Volume, forebay};

/// How long nothing is answered.
const STALL: Duration = Duration::from_secs(1);

/// Runs a load of 4 seconds while the backing device hangs for one; its latencies in microseconds.
fn load(setup: &Setup, daemon: &Daemon, extra: &[&str]) -> Value {
    let uri = format!(
        "nvmf+tcp://{}/{}?nsid=1&hostnqn={HOST_NQN}000000000000",
        setup.address(),
        Setup::nqn("v")
    );
    let mut args = vec!["bench", &uri, "-o", "json", "--time", "4s"];
    args.extend(extra);
    let done = std::thread::scope(|scope| {
        let load = scope.spawn(|| forebay(&args));
        std::thread::sleep(Duration::from_millis(1500));
        daemon.fault("backing:v", "hang", &[]);
        std::thread::sleep(STALL);
        daemon.fault("backing:v", "heal", &[]);
        load.join().unwrap()
    });
    assert_eq!(done.code, Some(0), "{}", done.text);
    let report: Value = serde_json::from_str(&done.text).expect(&done.text);
    report["read"]["latency_us"].clone()
}

#[test]
fn an_open_loop_shows_a_stall_that_a_closed_one_hides() {
    let mut setup = Setup::new();
    setup.cache_file("", 256 << 20);
    setup.volumes =
        vec![Volume { mode: "pass-through".to_owned(), ..Volume::new("v", "fault:mem:?size=64M") }];
    let daemon = Daemon::start(&setup);
    let us = |latency: &Value, name: &str| latency[name].as_f64().unwrap();
    let open = load(&setup, &daemon, &["--rate", "500", "--qd", "256", "--connections", "2"]);
    let closed = load(&setup, &daemon, &["--qd", "1"]);
    println!("process: open {open}, closed {closed}");
    // A quarter of what was due waited for half a second in the mean; the limits leave room for slow machines.
    assert!(us(&open, "p90") > 300_000.0, "{open}");
    assert!(us(&open, "max") > 900_000.0 && us(&closed, "max") > 900_000.0, "{open} {closed}");
    assert!(us(&closed, "p99") < 100_000.0, "{closed}");
    daemon.stop();
}
