//! Several volumes in one cache: a noisy one leaves another what that keeps, stays within what it may
//! have, and does not drive out what is pinned; all of it by command, under load and across restarts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::VolumeConfig;
use forebay_control::jobs::{JobState, JobView};
use forebay_control::node::{Copy, Located};
use serde_json::json;
use std::ops::Range;
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

const BLOCK: u64 = 4096;
/// Blocks of the quiet volume that its host uses, and those that are pinned.
const USED: Range<u64> = 0..2048;
const PINNED: Range<u64> = 4096..5120;
const LIMIT: Duration = Duration::from_secs(60);

fn pieces(range: Range<u64>) -> Vec<(u64, u64)> {
    range.clone().step_by(16).map(|first| (first, 16.min(range.end - first))).collect()
}

/// Blocks of a range that the cache has.
fn cached(daemon: &Daemon, name: &str, range: &Range<u64>) -> u64 {
    let params = json!({ "name": name, "lba": range.start, "blocks": range.end - range.start });
    let answer = daemon.call("volume_where", params);
    let found: Vec<Located> = serde_json::from_value(answer["pieces"].clone()).expect("places");
    let there = |piece: &&Located| matches!(piece.current, Copy::CacheClean | Copy::CacheDirty);
    found.iter().filter(there).map(|piece| piece.blocks).sum()
}

fn config(daemon: &Daemon, name: &str) -> VolumeConfig {
    let shown = daemon.call("volume_show", json!({ "name": name }));
    serde_json::from_value(shown["config"].clone()).expect("a configuration")
}

/// A command that must end well; what it printed.
fn run(daemon: &Daemon, args: &[&str]) -> String {
    let ended = daemon.command(args);
    assert_eq!(ended.code, Some(0), "forebay {}: {}", args.join(" "), ended.text);
    ended.text
}

/// A command that must be refused as wrong; what it said.
fn refused(daemon: &Daemon, args: &[&str], says: &str) {
    let ended = daemon.command(args);
    assert_ne!(ended.code, Some(0), "forebay {}: {}", args.join(" "), ended.text);
    assert!(ended.text.contains(says), "forebay {}: {}", args.join(" "), ended.text);
    println!("process: forebay {}: {}", args.join(" "), ended.text.trim());
}

fn setup() -> Setup {
    let mut setup = Setup::new();
    setup.cache_file("", 64 * MIB);
    for (name, mib) in [("quiet", 32), ("noisy", 128), ("bounded", 64), ("far", 32)] {
        let backing = setup.backing_file(&format!("{name}.img"), mib * MIB);
        let slow = if name == "far" { "slow:" } else { "" };
        let delay = if name == "far" { "?read_us=100000" } else { "" };
        let uri = format!("{slow}uring:{}{delay}", backing.display());
        let volume = Volume::new(name, &uri).with("memory_tier", "\"256KiB\"");
        let volume = match name {
            "bounded" => volume.with("cache_max", "\"2MiB\""),
            _ => volume,
        };
        setup.volumes.push(volume);
    }
    setup
}

/// The neighbour writes more than twice what the cache has.
fn noise(load: &mut Load, host: &mut Host) {
    for _ in 0..2 {
        load.write_all(host, &pieces(0..128 * MIB / BLOCK));
    }
    load.assert_no_errors();
}

#[test]
fn a_noisy_neighbour_takes_no_more_than_it_may() {
    let mut setup = setup();
    let address = setup.address();
    let daemon = Daemon::start(&setup);
    let connect = |name: &str| Host::connect(address, &Setup::nqn(name), HostOptions::default());
    let mut quiet_host = connect("quiet");
    let mut quiet = Load::new(seed(21), Plan::mixed(32 * MIB));
    quiet.write_all(&mut quiet_host, &pieces(USED));
    daemon.drain("quiet", LIMIT);
    assert_eq!(daemon.volume("quiet").cached_bytes, 8 * MIB);

    // What does not fit is refused, and nothing has changed.
    let before = config(&daemon, "quiet");
    refused(&daemon, &["volume", "set", "quiet", "--cache-min", "1G"], "half of the cache");
    refused(&daemon, &["volume", "pin", "quiet", "--lba", "0+9000"], "0 to 8191");
    refused(&daemon, &["volume", "unpin", "quiet", "--all"], "is pinned");
    let below = ["volume", "set", "bounded", "--cache-min", "3MiB"];
    refused(&daemon, &below, "at most cache_max = 2MiB");
    assert_eq!(config(&daemon, "quiet"), before);

    run(&daemon, &["volume", "set", "quiet", "--cache-min", "8MiB"]);
    let range = format!("{}-{}", PINNED.start, PINNED.end - 1);
    assert_eq!(cached(&daemon, "quiet", &PINNED), 0);
    let printed = run(&daemon, &["volume", "pin", "quiet", "--lba", &range]);
    println!("process: forebay volume pin: {}", printed.lines().last().unwrap_or_default());
    assert_eq!(cached(&daemon, "quiet", &PINNED), 1024);
    assert_eq!(daemon.volume("quiet").pinned_bytes, 4 * MIB);

    // While there is room for all, so that only the maximum stops it.
    bounded(&daemon, &mut connect("bounded"));

    let mut noisy_host = connect("noisy");
    let mut noisy = Load::new(seed(22), Plan::mixed(128 * MIB));
    noise(&mut noisy, &mut noisy_host);
    let volume = daemon.volume("quiet");
    println!(
        "process: beside {} writes of a neighbour: {} KiB cached of the quiet volume, {} KiB of the noisy",
        noisy.counts.writes,
        volume.cached_bytes / 1024,
        daemon.volume("noisy").cached_bytes / 1024
    );
    assert!(volume.cached_bytes >= 8 * MIB, "{}", volume.cached_bytes);
    assert_eq!(cached(&daemon, "quiet", &PINNED), 1024, "pinned blocks stay");

    cancelled(&daemon);

    // All of it is there after a restart, a clean one and a kill, without being fetched.
    quiet_host.disconnect();
    noisy_host.disconnect();
    daemon.stop();
    let mut daemon = Daemon::start(&setup);
    daemon.kill();
    let daemon = Daemon::start(&setup);
    let volume = daemon.volume("quiet");
    assert_eq!((volume.cache_min_bytes, volume.pinned_bytes), (8 * MIB, 4 * MIB));
    let shown = run(&daemon, &["-o", "table", "volume", "show", "quiet"]);
    assert!(shown.contains("8.0 MiB that others leave it") && shown.contains(&range), "{shown}");
    let mut noisy_host = connect("noisy");
    noise(&mut noisy, &mut noisy_host);
    assert_eq!(cached(&daemon, "quiet", &PINNED), 1024, "pinned blocks stay");
    assert!(daemon.volume("quiet").cached_bytes >= 8 * MIB);
    let stat = run(&daemon, &["-o", "table", "stat"]);
    assert!(stat.contains("CACHED"), "{stat}");
    let mut quiet_host = connect("quiet");
    let verified = quiet.verify_range(&mut quiet_host, USED);
    quiet.assert_no_errors();

    // Without pins and minimum it all goes.
    let half = format!("{}+512", PINNED.start);
    run(&daemon, &["volume", "unpin", "quiet", "--lba", &half]);
    assert_eq!(daemon.volume("quiet").pinned_bytes, 2 * MIB);
    run(&daemon, &["volume", "unpin", "quiet", "--all"]);
    run(&daemon, &["volume", "set", "quiet", "--cache-min", "0"]);
    noise(&mut noisy, &mut noisy_host);
    assert_eq!(cached(&daemon, "quiet", &PINNED), 0, "unpinned blocks go");
    assert!(daemon.volume("quiet").cached_bytes < 8 * MIB);
    let verified = verified + noisy.verify_range(&mut noisy_host, 0..1024);
    noisy.assert_no_errors();
    daemon.stop();

    // A file that asks for too much is refused as a whole; put right, all is as it was.
    let volume = setup.volumes[0].clone();
    setup.volumes[0] = volume.clone().with("cache_min", "\"1G\"");
    let refused = support::refused(&setup);
    assert!(refused.text.contains("half of the cache"), "{}", refused.text);
    setup.volumes[0] = volume.with("pin", "[\"0-15\", \"16+16\"]");
    let daemon = Daemon::start(&setup);
    assert_eq!(daemon.volume("quiet").pinned_bytes, 32 * BLOCK);
    daemon.stop();
    support::conclude(verified);
}

/// Reads here and there stop to enter at the maximum, also at one that is set live.
fn bounded(daemon: &Daemon, host: &mut Host) {
    for (max, from) in [(2, 0), (5, 8192)] {
        run(daemon, &["volume", "set", "bounded", "--cache-max", &format!("{max}MiB")]);
        for n in 0..2048 {
            host.read((from + n * 1031 % 8192) * BLOCK, 4096).expect("a read");
            if n % 256 == 0 {
                let now = daemon.volume("bounded").cached_bytes;
                assert!(now <= max * MIB, "{now} of {max} MiB");
            }
        }
        let volume = support::wait("the maximum is reached", LIMIT, || {
            Some(daemon.volume("bounded")).filter(|volume| volume.cached_bytes >= max * MIB)
        });
        assert_eq!((volume.cached_bytes, volume.cache_max_bytes), (max * MIB, Some(max * MIB)));
        println!("process: {max} MiB at most: {} KiB cached", volume.cached_bytes / 1024);
    }
}

/// Fetching from a distant array takes its time, and can be cancelled: what is there stays.
fn cancelled(daemon: &Daemon) {
    let printed = run(daemon, &["volume", "pin", "far", "--lba", "0+2048", "--no-wait"]);
    assert!(printed.contains("pin"), "{printed}");
    let jobs = daemon.call("job_list", json!({}));
    let jobs: Vec<JobView> = serde_json::from_value(jobs["jobs"].clone()).unwrap();
    let job =
        jobs.iter().find(|job| job.state == JobState::Running).expect("it takes some seconds");
    refused(daemon, &["volume", "pin", "far", "--lba", "5000"], "forebay job wait");
    run(daemon, &["job", "cancel", &job.id.to_string()]);
    let ended = support::wait("the end of the job", LIMIT, || {
        Some(daemon.job(job.id)).filter(|job| job.state != JobState::Running)
    });
    assert_eq!(ended.state, JobState::Cancelled, "{ended:?}");
    assert_eq!(ended.total_bytes, Some(8 * MIB), "{ended:?}");
    assert!(cached(daemon, "far", &(0..2048)) < 2048);
    assert_eq!(daemon.volume("far").pinned_bytes, 8 * MIB, "it stays pinned");
    run(daemon, &["volume", "unpin", "far", "--all"]);
}
