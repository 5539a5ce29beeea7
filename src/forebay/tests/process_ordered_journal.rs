//! write-back-ordered with an ordered journal, on the real daemon: kill -9 at any time under load, the
//! cache lost, and the backing file held against the order in which the host wrote, each time after
//! `volume recover --lost-cache`. What cannot be a journal is refused and left as it is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::{Prefix, VolumeState};
use serde_json::json;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::ordered::{BLOCK, BLOCKS, Log};
use support::{Daemon, Host, HostOptions, MIB, Setup, Volume, refused, seed, wait};

/// Kills with the cache lost.
const KILLS: u64 = 16;

fn uri(path: &Path) -> String {
    format!("uring:{}", path.display())
}

/// A node with one volume in write-back-ordered; its backing file, and its journal's.
fn setup(batch_age: &str) -> (Setup, PathBuf, PathBuf) {
    let mut setup = Setup::new();
    setup.cache_file("", 128 * MIB);
    let backing = setup.backing_file("backing.img", BLOCKS * BLOCK);
    let journal = setup.backing_file("journal.img", 24 * MIB);
    let slow = format!("slow:uring:{}?read_us=200&write_us=2000", backing.display());
    let mut volume = Volume::new("v", &slow).with("batch_age_max", &format!("{batch_age:?}"));
    volume.mode = "write-back-ordered".to_owned();
    volume = volume.with("ordered_journal", &format!("{:?}", uri(&journal)));
    setup.volumes = vec![volume];
    (setup, backing, journal)
}

fn connect(setup: &Setup) -> Host {
    Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default())
}

/// Puts a new cache in the place of the one that is lost.
fn new_cache(setup: &mut Setup) {
    let old = setup.dir.file("cache.img");
    setup.caches.clear();
    fs::remove_file(old).unwrap();
    setup.cache_file("", 128 * MIB);
}

/// What the volume's journal holds, as `volume recover` says before it does anything.
fn holds(daemon: &Daemon) -> (String, String) {
    let params = json!({ "name": "v", "lost_cache": true, "commit": false });
    let answer = daemon.call("volume_recover", params);
    let state = answer["ordered_journal"]["state"].as_str().unwrap().to_owned();
    (state, answer["note"].as_str().unwrap().to_owned())
}

/// Goes on without the cache; every other time with a kill in the middle of that.
fn recover(setup: &Setup, mut daemon: Daemon, interrupt: Option<Duration>) -> (Daemon, u64) {
    let Some(after) = interrupt else {
        let done = daemon.command(&["volume", "recover", "v", "--lost-cache", "--yes"]);
        assert_eq!(done.code, Some(0), "{}", done.text);
        assert!(done.text.contains("the ordered journal holds"), "{}", done.text);
        return (daemon, 0);
    };
    let socket = setup.socket();
    let asks = std::thread::spawn(move || {
        let params = json!({ "name": "v", "lost_cache": true, "commit": true });
        forebay_control::rpc::Client::connect(&socket).ok()?.call("volume_recover", params).ok()
    });
    std::thread::sleep(after);
    daemon.kill();
    let ended = asks.join().unwrap().is_some();
    let daemon = Daemon::start(setup);
    if daemon.volume("v").state == VolumeState::Down {
        return recover(setup, daemon, None);
    }
    (daemon, u64::from(!ended))
}

#[test]
fn killed_at_any_time_with_the_cache_lost_the_backing_file_is_a_prefix() {
    let mut log = Log::new(seed(33));
    let (mut setup, backing, _) = setup("30ms");
    let (mut batches, mut broken_before, mut interrupted) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut daemon = Daemon::start(&setup);
        let mut host = connect(&setup);
        let until = 200 + log.random.below(2500);
        log.run(&mut host, 50, |begun| {
            let now = begun >= until;
            if now {
                daemon.kill();
            }
            now
        });
        log.killed(&mut host);
        broken_before += u64::from(log.judge(&backing).0.is_some());
        new_cache(&mut setup);
        let daemon = Daemon::start(&setup);
        assert_eq!(daemon.volume("v").state, VolumeState::Down);
        let before = fs::read(&backing).unwrap();
        let (state, note) = holds(&daemon);
        assert!(fs::read(&backing).unwrap() == before, "a look changes nothing");
        assert!(["batch", "nothing"].contains(&&*state), "{state}: {note}");
        batches += u64::from(state == "batch");
        let interrupt = (kill % 2 == 1).then(|| Duration::from_millis(log.random.below(60)));
        let (mut daemon, cut) = recover(&setup, daemon, interrupt);
        interrupted += cut;
        let (broken, _) = log.judge(&backing);
        assert_eq!(broken, None, "kill {kill}, {state}: {note}");
        let volume = daemon.volume("v");
        assert!(matches!(volume.prefix, Some(Prefix::Holds { .. })), "{:?}", volume.prefix);
        assert!(!volume.ordered_journal.unwrap().complete);
        daemon.kill();
        log.lost(&backing);
    }
    println!(
        "ordered: {KILLS} kills at random with the cache lost, {} writes; the journal held a complete batch \
         after {batches} of them; the backing file alone was no prefix after {broken_before}, and is one \
         after the recovery in all, {interrupted} of which were killed in the middle",
        log.writes.len()
    );
    assert!(batches > 0, "no kill came in the middle of a batch");
    support::conclude(KILLS);
}

/// With the cache kept nothing is lost, whatever the journal holds; and the mode may be left and
/// entered again meanwhile.
#[test]
fn killed_under_mode_switches_nothing_is_lost() {
    let mut log = Log::new(seed(34));
    let (setup, backing, _) = setup("30ms");
    let modes = ["write-back", "write-through", "write-around", "pass-through"];
    for mode in modes {
        let mut daemon = Daemon::start(&setup);
        let mut host = connect(&setup);
        log.run(&mut host, 100, |begun| begun >= 600);
        let job = daemon.begin("volume_set_mode", json!({ "name": "v", "mode": mode }));
        log.run(&mut host, 100, |begun| begun >= 200);
        daemon.finish(job, Duration::from_secs(60));
        log.run(&mut host, 0, |begun| begun >= 50);
        log.settle(&mut host);
        daemon.kill();
        log.killed(&mut host);
        let mut daemon = Daemon::start(&setup);
        assert_eq!(daemon.volume("v").mode.as_str(), mode);
        let mut host = connect(&setup);
        daemon.set_mode("v", "write-back-ordered", Duration::from_secs(60));
        log.run(&mut host, 100, |begun| begun >= 300);
        log.settle(&mut host);
        host.flush().unwrap();
        wait("all is on the backing file", Duration::from_secs(60), || {
            let volume = daemon.volume("v");
            let holds = matches!(volume.prefix, Some(Prefix::Holds { .. }));
            (holds && volume.dirty_bytes == 0).then_some(())
        });
        assert_eq!(log.judge(&backing), (None, 0), "{mode}");
        daemon.kill();
        log.killed(&mut host);
    }
    support::conclude(2 * modes.len() as u64);
}

/// What must be refused: the text names the thing and says what to do, and the files are as before.
fn check(what: &str, setup: &Setup, files: &[&Path], says: &[&str]) {
    let before: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let refusal = refused(setup);
    for text in says {
        assert!(refusal.text.contains(text), "{what}: `{text}` is not said: {}", refusal.text);
    }
    for (file, before) in files.iter().zip(&before) {
        assert!(fs::read(file).unwrap() == *before, "{what}: {} has changed", file.display());
    }
    println!("process: {what}: exit {:?}: {}", refusal.code, refusal.text.trim());
}

#[test]
fn what_cannot_be_an_ordered_journal_is_refused_at_the_start() {
    let (mut setup, backing, journal) = setup("30ms");
    let cache = setup.dir.file("cache.img");
    let with = |setup: &mut Setup, uri: &str| {
        setup.volumes[0].extra.retain(|(key, _)| key != "ordered_journal");
        setup.volumes[0].extra.push(("ordered_journal".to_owned(), format!("{uri:?}")));
    };
    with(&mut setup, &uri(&backing));
    check("its backing device", &setup, &[&backing, &cache], &["is its backing device"]);
    with(&mut setup, &uri(&cache));
    check("a cache device", &setup, &[&backing, &cache], &["is a cache device"]);
    // The same file by another name.
    let linked = setup.dir.file("linked.img");
    fs::hard_link(&backing, &linked).unwrap();
    with(&mut setup, &uri(&linked));
    check(
        "its backing device by another name",
        &setup,
        &[&backing],
        &["ordered journal", "linked.img"],
    );
    let small = setup.backing_file("small.img", 64 << 10);
    with(&mut setup, &uri(&small));
    check("too small", &setup, &[&small], &["needs at least", "has 65536"]);
    let foreign = setup.backing_file("foreign.img", 24 * MIB);
    let file = fs::File::options().write(true).open(&foreign).unwrap();
    file.write_all_at(b"_BHRfS_M", 65_536 + 64).unwrap();
    with(&mut setup, &uri(&foreign));
    check("a file system", &setup, &[&foreign], &["Btrfs", "empty"]);
    let other = setup.backing_file("other.img", 24 * MIB);
    fs::File::options().write(true).open(&other).unwrap().write_all_at(b"mine", 9000).unwrap();
    with(&mut setup, &uri(&other));
    check("other data", &setup, &[&other], &["holds other data"]);
    let second = setup.backing_file("second.img", 16 * MIB);
    let mut both = setup.volumes[0].clone();
    both.name = "w".to_owned();
    both.backing = uri(&second);
    with(&mut setup, &uri(&journal));
    both.extra = setup.volumes[0].extra.clone();
    setup.volumes.push(both);
    check("two volumes", &setup, &[&journal], &["have the same ordered journal"]);
    let volume = setup.volumes.pop().unwrap();
    Daemon::start(&setup).stop();
    // By another node's volume.
    let before = fs::read(&journal).unwrap();
    let mut stranger = Setup::new();
    stranger.cache_file("", 96 * MIB);
    stranger.volumes = vec![volume];
    check("another volume's", &stranger, &[&journal], &["belongs to volume"]);
    assert!(fs::read(&journal).unwrap() == before);
    Daemon::start(&setup).stop();
}

#[test]
fn the_commands_make_give_show_and_clear_a_journal() {
    let (mut setup, _, journal) = setup("30ms");
    setup.volumes.clear();
    let backing = setup.backing_file("second.img", 16 * MIB);
    let (backing, journal_uri) = (uri(&backing), uri(&journal));
    let daemon = Daemon::start(&setup);
    let create = |mode: &str, journal: &str| {
        let args = ["volume", "create", "v", "--backing", &backing, "--mode", mode];
        let more = ["--block-size", "4096", "--ordered-journal", journal];
        daemon.command(&[&args[..], &more[..]].concat())
    };
    let refusal = create("write-back", &journal_uri);
    assert_eq!(refusal.code, Some(2), "{}", refusal.text);
    assert!(refusal.text.contains("only with the mode write-back-ordered"), "{}", refusal.text);
    let refusal = create("write-back-ordered", &backing);
    assert!(refusal.text.contains("is its backing device"), "{}", refusal.text);
    fs::File::options().write(true).open(&journal).unwrap().write_all_at(b"mine", 0).unwrap();
    let before = fs::read(&journal).unwrap();
    let refusal = create("write-back-ordered", &journal_uri);
    assert_eq!(refusal.code, Some(5), "{}", refusal.text);
    assert!(refusal.text.contains("holds other data"), "{}", refusal.text);
    assert!(fs::read(&journal).unwrap() == before, "left as it was");
    assert!(daemon.stat().volumes.is_empty(), "nothing was made");
    fs::File::options().write(true).open(&journal).unwrap().write_all_at(&[0; 4], 0).unwrap();
    let made = create("write-back-ordered", &journal_uri);
    assert_eq!(made.code, Some(0), "{}", made.text);
    let shown = daemon.command(&["volume", "show", "v"]);
    for text in ["backing alone", "journal state", "holds no complete batch", "journal.img"] {
        assert!(shown.text.contains(text), "`{text}` is not shown: {}", shown.text);
    }
    let again = daemon.command(&["volume", "set", "v", "--ordered-journal", "uring:/x/y"]);
    assert!(again.text.contains("has an ordered journal"), "{}", again.text);
    // As the table of a batch that was applied is left there.
    fs::File::options().write(true).open(&journal).unwrap().write_all_at(&[7; 4096], 8192).unwrap();
    let deleted = daemon.command(&["volume", "delete", "v", "--yes"]);
    assert_eq!(deleted.code, Some(0), "{}", deleted.text);
    assert!(fs::read(&journal).unwrap()[..128 << 10].iter().all(|byte| *byte == 0), "cleared");
    // Another volume gets it while it is served.
    let args = ["volume", "create", "v", "--backing", &backing, "--mode", "write-through"];
    assert_eq!(daemon.command(&args).code, Some(0));
    let set = || daemon.command(&["volume", "set", "v", "--ordered-journal", &journal_uri]);
    let refusal = set();
    assert!(refusal.text.contains("set-mode"), "{}", refusal.text);
    daemon.set_mode("v", "write-back-ordered", Duration::from_secs(30));
    let given = set();
    assert_eq!(given.code, Some(0), "{}", given.text);
    assert!(daemon.volume("v").ordered_journal.is_some());
    let exported = daemon.command(&["config", "export"]);
    assert!(exported.text.contains("ordered_journal = "), "{}", exported.text);
    daemon.stop();
    let daemon = Daemon::start(&setup);
    assert!(daemon.volume("v").ordered_journal.is_some(), "kept over a restart");
    daemon.stop();
}
