//! Modes switched under load, with a kill after each switch or in its middle: no stale record
//! comes back, and what is drained is what the host wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::jobs::JobState;
use serde_json::json;
use std::time::{Duration, Instant};
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

/// Every switch from one mode to another, as a round trip that begins at write-back.
const ROUND: [&str; 12] = [
    "pass-through",
    "write-back",
    "write-around",
    "write-back",
    "write-through",
    "pass-through",
    "write-around",
    "pass-through",
    "write-through",
    "write-around",
    "write-through",
    "write-back",
];

fn switches() -> Vec<(&'static str, &'static str)> {
    let from = std::iter::once("write-back").chain(ROUND);
    from.zip(ROUND).collect()
}

#[test]
fn the_round_trip_has_every_switch() {
    let mut all = switches();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4 * 3);
}

/// Runs a load, asks for a mode in its middle, and kills the daemon in the middle of the switch or
/// some time after its end.
fn switch_and_kill(
    daemon: &mut Daemon,
    load: &mut Load,
    host: Host,
    mode: &str,
    in_the_middle: bool,
) {
    let began = load.counts.ops();
    let (mut job, mut since) = (None, None);
    load.run_into_crash(host, |counts| {
        let ops = counts.ops() - began;
        match (job, since) {
            (None, _) if ops >= 150 => {
                let params = json!({ "name": "v", "mode": mode });
                job = Some(daemon.begin("volume_set_mode", params));
                since = in_the_middle.then(|| (Instant::now(), ops));
            }
            // A look at the job costs a connection: not after every operation.
            (Some(id), None)
                if ops.is_multiple_of(16) && daemon.job(id).state == JobState::Done =>
            {
                assert_eq!(daemon.volume("v").mode.as_str(), mode);
                since = Some((Instant::now(), ops));
            }
            (Some(_), Some((at, then))) => {
                let more = if in_the_middle { 20 } else { 300 };
                if ops >= then + more || at.elapsed() > Duration::from_secs(10) {
                    daemon.kill();
                    return true;
                }
            }
            _ => {}
        }
        false
    });
}

#[test]
fn modes_switch_under_load_and_across_kills() {
    let seed = seed(3);
    let mut setup = Setup::new();
    setup.cache_file("", 256 * MIB);
    let backing = setup.backing_file("backing.img", 96 * MIB);
    let uri = format!("slow:uring:{}?read_us=500&write_us=700", backing.display());
    setup.volumes = vec![Volume::new("v", &uri)];
    let nqn = Setup::nqn("v");
    let mut load = Load::new(seed, Plan::mixed(96 * MIB));
    let mut daemon = Daemon::start(&setup);
    let mut kills = 0;
    for in_the_middle in [false, true] {
        for (from, to) in switches() {
            let limit = Duration::from_secs(60);
            // A switch that a kill cut short goes on by itself.
            daemon.finish_all(limit);
            daemon.set_mode("v", from, limit);
            let mut host = Host::connect(setup.address(), &nqn, HostOptions::default());
            load.run_for(&mut host, Duration::from_millis(200));
            switch_and_kill(&mut daemon, &mut load, host, to, in_the_middle);
            kills += 1;
            daemon = Daemon::start(&setup);
            let target = daemon.volume("v").target_mode;
            assert_eq!(target.as_str(), to, "a switch that was asked for is kept across a kill");
            let mut host = Host::connect(setup.address(), &nqn, HostOptions::default());
            let verified = load.verify(&mut host);
            let when = if in_the_middle { "during" } else { "after" };
            println!("process: {from} to {to}, killed {when} it: {verified} blocks verified");
            load.assert_no_errors();
            host.disconnect();
        }
    }
    let limit = Duration::from_secs(120);
    let mut host = Host::connect(setup.address(), &nqn, HostOptions::default());
    load.run_for(&mut host, Duration::from_secs(1));
    load.verify(&mut host);
    assert_eq!(daemon.volume("v").mode.as_str(), "write-back");
    daemon.drain("v", limit);
    let drained = load.compare_file(&backing);
    load.run_for(&mut host, Duration::from_secs(1));
    daemon.set_mode("v", "pass-through", limit);
    load.run_for(&mut host, Duration::from_secs(1));
    load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    let switched = load.compare_file(&backing);
    daemon.stop();
    assert_eq!(load.compare_file(&backing), switched);
    let counts = &load.counts;
    println!(
        "process: modes: {kills} switches with a kill each, {} writes, {} reads, {} writes without \
         an answer, {} blocks verified, 0 wrong; backing file compared with what the host wrote: \
         {drained} bytes after drain, {switched} after pass-through, no difference",
        counts.writes, counts.reads, counts.unknown, counts.verified
    );
    support::conclude(counts.verified);
}
