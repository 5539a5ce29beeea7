//! Bits that flip in the cache file under the running daemon: never served, repaired where the
//! backing store has the data, and otherwise a media error of just those blocks, listed and logged.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::jobs::{JobState, JobView, ScrubReport};
use forebay_control::node::{Copy, Located};
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use support::records::{flip, records};
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed, wait};

const CLEAN: Range<u64> = 0..3072;
const DIRTY: Range<u64> = 3072..4096;

fn pieces(range: Range<u64>) -> Vec<(u64, u64)> {
    range.clone().step_by(16).map(|first| (first, 16.min(range.end - first))).collect()
}

fn setup() -> (Setup, std::path::PathBuf, std::path::PathBuf) {
    let mut setup = Setup::new();
    let cache = setup.cache_file("", 256 * MIB);
    let backing = setup.backing_file("backing.img", 16 * MIB);
    let volume = Volume::new("v", &format!("uring:{}", backing.display()))
        .with("memory_tier", "\"1MiB\"")
        .with("dirty_age_max", "\"1h\"");
    setup.volumes = vec![volume];
    (setup, cache, backing)
}

/// Blocks that `volume where` calls lost.
fn lost(daemon: &Daemon) -> BTreeSet<u64> {
    let answer = daemon.call("volume_where", json!({ "name": "v", "lba": 0, "blocks": DIRTY.end }));
    let found: Vec<Located> = serde_json::from_value(answer["pieces"].clone()).expect("places");
    let lost = found.iter().filter(|piece| piece.current == Copy::Lost);
    lost.flat_map(|piece| piece.lba..piece.lba + piece.blocks).collect()
}

/// Runs a scrub by the command line; its exit code and what it found.
fn scrub(daemon: &Daemon, command: &[&str]) -> (Option<i32>, ScrubReport, String) {
    let ended = daemon.command(&[command, &["--rate", "2GiB"]].concat());
    let mut lines = ended.text.lines().rev();
    let last = lines.find_map(|line| serde_json::from_str::<JobView>(line).ok());
    let last = last.unwrap_or_else(|| panic!("no job in {}", ended.text));
    assert_eq!((last.state, last.left_bytes), (JobState::Done, Some(0)), "{}", ended.text);
    (ended.code, last.scrub.expect("a scrub says what it found"), ended.text)
}

fn found(checked: u64, repaired: u64, damaged: u64) -> ScrubReport {
    ScrubReport { checked, repaired, damaged, ..ScrubReport::default() }
}

/// Flips a bit of each of these blocks.
fn spoil(cache: &Path, blocks: &BTreeSet<u64>) {
    let all = records(cache);
    assert_eq!(all.len() as u64, DIRTY.end, "every block has a record");
    for block in blocks {
        flip(cache, all[block].offset + block * 97 % 4096);
    }
}

#[test]
fn flipped_bits_are_healed_or_reported() {
    let (setup, cache, backing) = setup();
    let daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut load = Load::new(seed(11), Plan::mixed(16 * MIB));
    load.write_all(&mut host, &pieces(CLEAN));
    daemon.drain("v", Duration::from_secs(60));
    load.write_all(&mut host, &pieces(DIRTY));
    load.assert_no_errors();
    assert_eq!(daemon.volume("v").dirty_bytes, 4 * MIB);
    let (code, report, text) = scrub(&daemon, &["volume", "scrub", "v"]);
    assert_eq!((code, report), (Some(0), found(4096, 0, 0)), "{text}");

    let clean: BTreeSet<u64> = CLEAN.step_by(61).collect();
    let dirty: BTreeSet<u64> = DIRTY.step_by(97).collect();
    spoil(&cache, &(&clean | &dirty));
    // A host comes upon some of them before the scrub.
    let early: BTreeSet<u64> = clean.iter().take(5).copied().collect();
    let hit = *dirty.first().unwrap();
    for block in &early {
        assert_eq!(load.read_all(&mut host, &[(*block, 1)]), 1, "right, from the backing store");
    }
    load.assert_no_errors();
    assert!(host.read(hit * 4096, 4096).is_err(), "block {hit} has no good copy");
    let volume = daemon.volume("v");
    assert_eq!((volume.healed, volume.damaged_bytes), (5, 4096));

    let (code, report, text) = scrub(&daemon, &["scrub", "v"]);
    let (repaired, damaged) = (clean.len() as u64 - 5, dirty.len() as u64);
    // What was fetched again may be met, and checked, again.
    assert!((4096..=4096 + repaired).contains(&report.checked), "{text}");
    assert_eq!((code, report), (Some(3), found(report.checked, repaired, damaged)), "{text}");
    let volume = daemon.volume("v");
    assert_eq!((volume.healed, volume.damaged_bytes), (clean.len() as u64, damaged * 4096));
    assert_eq!(lost(&daemon), dirty, "exactly those");
    let said = text.lines().find(|line| line.contains("damaged") && !line.starts_with('{'));
    println!("process: forebay scrub v: exit code 3: {}", said.expect("it says what it found"));
    let table = daemon.command(&["volume", "where", "v", "--lba", "0+4096"]);
    let rows: Vec<&str> = table.text.lines().filter(|row| row.contains("lost")).collect();
    let shown: Vec<String> = dirty.iter().map(|block| format!("{block}-{block} ")).collect();
    let listed = |row: &&str| shown.iter().any(|block| row.trim_start().starts_with(block));
    assert!(rows.len() == dirty.len() && rows.iter().all(listed), "{}", table.text);
    println!("process: forebay volume where v: {} rows, such as: {}", rows.len(), rows[0]);
    let stat = daemon.command(&["stat"]);
    assert_eq!(stat.code, Some(3), "`forebay stat` is degraded: {}", stat.text);
    let complaint = stat.text.lines().find(|line| line.contains("! "));
    println!("process: forebay stat: exit code 3: {}", complaint.expect("it says what is wrong"));
    let logged = daemon.log().lines().filter(|line| line.contains("dirty data is damaged")).count();
    assert!((1..=4).contains(&logged), "{logged} lines for {damaged} blocks:\n{}", daemon.log());

    // Hosts read all the rest, and get errors for just those.
    let right = load.verify_range(&mut host, CLEAN);
    assert_eq!(right, CLEAN.end, "clean blocks");
    load.assert_no_errors();
    for block in DIRTY {
        let good = load.read_all(&mut host, &[(block, 1)]) == 1;
        assert_eq!(good, !dirty.contains(&block), "block {block}");
    }
    load.counts.errors.clear();

    // What is damaged cannot be destaged: a drain ends when nothing else is left, and says so.
    let drain = daemon.begin("volume_drain", json!({ "name": "v" }));
    let ended = wait("all that can be is destaged", Duration::from_secs(30), || {
        let job = daemon.job(drain);
        (job.state != JobState::Running).then_some(job)
    });
    assert_eq!(ended.state, JobState::Failed, "{ended:?}");
    assert!(ended.error.as_deref().is_some_and(|why| why.contains("damaged")), "{ended:?}");
    assert_eq!(daemon.volume("v").dirty_bytes, damaged * 4096);

    // Written anew they are good again, on both devices and after a restart.
    let again: Vec<(u64, u64)> = dirty.iter().map(|block| (*block, 1)).collect();
    load.write_all(&mut host, &again);
    assert_eq!((daemon.volume("v").damaged_bytes, lost(&daemon).len()), (0, 0));
    daemon.drain("v", Duration::from_secs(30));
    let (code, report, text) = scrub(&daemon, &["scrub", "v"]);
    assert_eq!((code, report), (Some(0), found(4096, 0, 0)), "{text}");
    host.disconnect();
    daemon.stop();
    let daemon = Daemon::start(&setup);
    let (code, report, text) = scrub(&daemon, &["scrub", "v"]);
    assert_eq!((code, report.damaged, report.repaired), (Some(0), 0, 0), "{text}");
    daemon.drain("v", Duration::from_secs(60));
    assert!(report.checked > 4000, "{text}");
    daemon.stop();
    let compared = load.compare_file(&backing);
    println!(
        "process: {} clean blocks spoiled and repaired, {damaged} dirty ones reported, {logged} \
         lines in the log, {compared} bytes compared",
        clean.len()
    );
}

/// A scrub under load finds nothing, is listed and cancelled; one that is under way when the daemon
/// is killed begins again.
#[test]
fn a_scrub_is_a_job_like_others() {
    let (setup, _, backing) = setup();
    let mut daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut load = Load::new(seed(12), Plan::mixed(16 * MIB));
    load.write_all(&mut host, &pieces(0..4096));
    let slow = daemon.begin("volume_scrub", json!({ "name": "v", "rate": "1MiB" }));
    let busy = daemon.client().call("volume_scrub", json!({ "name": "v" })).unwrap_err();
    assert!(busy.to_string().contains(&format!("job {slow} (scrub)")), "{busy}");
    // What it goes through must not be overwritten meanwhile: then it had nothing to do.
    load.plan.reads = 100;
    load.run_for(&mut host, Duration::from_secs(2));
    load.plan.reads = 35;
    // It keeps nobody from anything else.
    daemon.drain("v", Duration::from_secs(60));
    let job = wait("bytes left, rate and time left", Duration::from_secs(5), || {
        let job = daemon.job(slow);
        assert_eq!(job.state, JobState::Running, "{job:?}");
        job.eta_s.is_some().then_some(job)
    });
    let (left, total) = (job.left_bytes.unwrap(), job.total_bytes.unwrap());
    assert!(left < total && job.rate_bytes_per_s > 0.0, "{job:?}");
    assert!(daemon.command(&["job", "list"]).text.contains("blocks checked"));
    daemon.kill();
    drop(host);
    let daemon = Daemon::start(&setup);
    let job = daemon.job(slow);
    assert_eq!(job.state, JobState::Running, "it began again: {job:?}");
    let cancelled = daemon.command(&["job", "cancel", &slow.to_string()]);
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.text);
    let state = wait("the end", Duration::from_secs(10), || {
        let job = daemon.job(slow);
        (job.state != JobState::Running).then_some(job.state)
    });
    assert_eq!(state, JobState::Cancelled);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut checked = 0;
    for _ in 0..5 {
        let job = daemon.begin("volume_scrub", json!({ "name": "v", "rate": "4GiB" }));
        load.run_for(&mut host, Duration::from_secs(1));
        let report = daemon.finish(job, Duration::from_secs(60)).scrub.unwrap();
        assert_eq!(report, found(report.checked, 0, 0), "no false alarm");
        checked += report.checked;
    }
    load.verify(&mut host);
    load.assert_no_errors();
    daemon.drain("v", Duration::from_secs(60));
    host.disconnect();
    daemon.stop();
    let compared = load.compare_file(&backing);
    println!("process: {checked} blocks scrubbed under load, {compared} bytes compared");
}
