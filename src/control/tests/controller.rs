//! Commands against a node in memory: what is written down, when, and what a restart makes of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use forebay_control::config;
use forebay_control::controller::{Prepared, VolumeChange};
use forebay_control::jobs::JobState;
use forebay_control::plan::Action;
use forebay_control::state::{STATE_FILE, State};
use forebay_control::value::{ByteSize, Mode};
use forebay_control::{Controller, ErrorKind, ServeConfig, VolumeConfig};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Dir, start};

const A: &str = "nqn.2014-08.org.nvmexpress:uuid:1";
const B: &str = "nqn.2014-08.org.nvmexpress:uuid:2";

fn done(controller: &Controller, id: u64) -> JobState {
    let job = controller.jobs().wait(id, Duration::from_secs(10)).unwrap();
    assert_ne!(job.state, JobState::Running);
    job.state
}

fn state_bytes(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join(STATE_FILE)).unwrap()
}

#[test]
fn what_commands_change_is_there_after_a_restart_and_the_file_is_not_written() {
    let dir = Dir::new("restart");
    let mut file = support::config(&dir.0);
    let (_node, controller) = start(&file);
    let mut volume = VolumeConfig::new("new", "mem:?size=1G", Mode::WriteThrough);
    volume.dirty_max = Some(ByteSize(1 << 30));
    controller.create_volume(&volume).unwrap();
    assert_eq!(
        done(&controller, controller.set_mode("db", Mode::WriteThrough).unwrap()),
        JobState::Done
    );
    assert!(controller.allow_host(B, None).unwrap());
    assert!(!controller.allow_host(B, None).unwrap());
    assert!(controller.deny_host(A, None).unwrap());
    let change = VolumeChange { cache_max: Some(ByteSize(1 << 33)), ..VolumeChange::default() };
    controller.set_volume("db", &change).unwrap();
    let before = controller.effective();
    drop(controller);
    let (node, controller) = start(&file);
    assert_eq!(controller.effective(), before);
    assert_eq!(before.security.hosts, [B]);
    assert_eq!(before.volumes[0].mode, Mode::WriteThrough);
    assert_eq!(before.volumes[1], volume);
    assert_eq!(node.volumes.lock().unwrap().len(), 2);
    drop(controller);
    // A key edited in the file since wins; every other keeps what commands made of it.
    file.volumes[0].dirty_max = Some(ByteSize(1 << 20));
    let (_node, controller) = start(&file);
    let db = controller.volume_config("db").unwrap();
    assert_eq!((db.mode, db.dirty_max), (Mode::WriteThrough, Some(ByteSize(1 << 20))));
    assert_eq!(db.cache_max, Some(ByteSize(1 << 33)));
    drop(controller);
    file.volumes[0].mode = Mode::PassThrough;
    let (_node, controller) = start(&file);
    assert_eq!(controller.volume_config("db").unwrap().mode, Mode::PassThrough);
}

#[test]
fn a_refusal_by_the_node_leaves_the_state_as_it_was() {
    let dir = Dir::new("refuse");
    let (node, controller) = start(&support::config(&dir.0));
    let mut before = state_bytes(&dir.0);
    let mut refused = 0;
    let mut check = |what: &str, run: &dyn Fn() -> Option<ErrorKind>| {
        node.refuse.store(true, Ordering::Relaxed);
        assert_eq!(run(), Some(ErrorKind::Failed), "{what}");
        assert!(!node.refuse.load(Ordering::Relaxed), "{what}: the node was not asked");
        let after = State::load(&dir.0).unwrap();
        let old: State = serde_json::from_slice(&before).unwrap();
        // The number of a job that was refused is not given again.
        assert_eq!(State { next_job: old.next_job, ..after }, old, "{what}");
        before = state_bytes(&dir.0);
        refused += 1;
    };
    let volume = VolumeConfig::new("new", "mem:?size=1G", Mode::WriteBack);
    check("create", &|| controller.create_volume(&volume).err().map(|e| e.kind));
    check("mode", &|| controller.set_mode("db", Mode::PassThrough).err().map(|e| e.kind));
    check("drain", &|| controller.drain("db").err().map(|e| e.kind));
    check("scrub", &|| controller.scrub("db", 1 << 20).err().map(|e| e.kind));
    let span = "0-7".parse().unwrap();
    check("pin", &|| controller.pin_volume("db", span).err().map(|e| e.kind));
    check("delete", &|| controller.delete_volume("db", false).err().map(|e| e.kind));
    check("allow", &|| controller.allow_host(B, None).err().map(|e| e.kind));
    check("deny", &|| controller.deny_host(A, Some("db")).err().map(|e| e.kind));
    let change = VolumeChange { cache_min: Some(ByteSize(1)), ..VolumeChange::default() };
    check("set", &|| controller.set_volume("db", &change).err().map(|e| e.kind));
    println!("{refused} refusals");
    let error =
        controller.create_volume(&VolumeConfig::new("w", "uring:/dev/sdb", Mode::WriteBack));
    assert_eq!(error.unwrap_err().kind, ErrorKind::Exists);
    let error = controller.drain("dc").unwrap_err();
    assert_eq!(error.detail.remedy.as_deref(), Some("did you mean `db`?"));
}

#[test]
fn what_is_pinned_is_kept_joined_and_let_go() {
    let dir = Dir::new("pin");
    let mut file = support::config(&dir.0);
    let (node, controller) = start(&file);
    let pins = |controller: &Controller| -> Vec<String> {
        let db = controller.volume_config("db").unwrap();
        db.pin.iter().map(ToString::to_string).collect()
    };
    let span = |text: &str| text.parse().unwrap();
    for range in ["100-199", "0-7", "8+2"] {
        let job = controller.pin_volume("db", span(range)).unwrap();
        assert_eq!(done(&controller, job), JobState::Done);
    }
    assert_eq!(pins(&controller), ["0-9", "100-199"]);
    // One at a time: what was refused is not pinned.
    node.hold.store(true, Ordering::Release);
    let first = controller.pin_volume("db", span("300")).unwrap();
    let error = controller.pin_volume("db", span("400")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert_eq!(pins(&controller), ["0-9", "100-199", "300"]);
    // Other work goes on beside it, and a restart goes on with it.
    let drain = controller.drain("db").unwrap();
    controller.stop();
    for job in [first, drain] {
        controller.jobs().cancel(job).unwrap();
        assert_eq!(done(&controller, job), JobState::Cancelled);
    }
    drop((controller, node));
    let (node, controller) = start(&file);
    assert!(controller.resume().is_empty());
    assert_eq!(done(&controller, first), JobState::Done);
    assert_eq!(done(&controller, drain), JobState::Done);
    assert_eq!(pins(&controller), ["0-9", "100-199", "300"]);
    let left = controller.unpin_volume("db", Some(span("5-149"))).unwrap();
    assert_eq!(left, controller.volume_config("db").unwrap());
    assert_eq!(pins(&controller), ["0-4", "150-199", "300"]);
    let error = controller.unpin_volume("db", Some(span("5-149"))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(error.detail.accepted.as_deref(), Some("0-4, 150-199, 300"));
    assert!(controller.unpin_volume("db", None).unwrap().pin.is_empty());
    assert_eq!(controller.unpin_volume("db", None).unwrap_err().kind, ErrorKind::NotFound);
    for n in 0..256 {
        let job = controller.pin_volume("db", span(&format!("{}", n * 2))).unwrap();
        assert_eq!(done(&controller, job), JobState::Done);
    }
    let error = controller.pin_volume("db", span("1000")).unwrap_err();
    assert!(error.to_string().contains("at most 256"), "{error}");
    // The file's own, once it says something else.
    drop((controller, node));
    file.volumes[0].pin = vec![span("7")];
    let (_node, controller) = start(&file);
    assert_eq!(pins(&controller), ["7"]);
    let mut wanted = controller.effective();
    wanted.volumes[0].pin = vec![span("8-9")];
    let differences = controller.diff(&wanted);
    assert_eq!(
        (differences[0].what.as_str(), differences[0].node.as_str()),
        ("volume db.pin", "7")
    );
    assert_eq!(differences[0].action, Action::Change);
    controller.apply(&wanted, false).unwrap();
    assert_eq!(pins(&controller), ["8-9"]);
    let done_mode = controller.set_mode("db", Mode::PassThrough).unwrap();
    assert_eq!(done(&controller, done_mode), JobState::Done);
    let error = controller.pin_volume("db", span("0")).unwrap_err();
    assert!(error.to_string().contains("pass-through"), "{error}");
}

#[test]
fn jobs_are_exclusive_cancellable_and_go_on_after_a_restart() {
    let dir = Dir::new("jobs");
    let file = support::config(&dir.0);
    let (node, controller) = start(&file);
    node.hold.store(true, Ordering::Release);
    let first = controller.drain("db").unwrap();
    let busy = controller.set_mode("db", Mode::PassThrough).unwrap_err();
    assert_eq!(busy.kind, ErrorKind::Busy);
    assert!(busy.message.contains(&format!("job {first} (drain)")), "{busy}");
    let waited = controller.jobs().wait(first, Duration::from_millis(50)).unwrap();
    assert_eq!((waited.state, waited.left_bytes), (JobState::Running, Some(1 << 20)));
    assert_eq!(waited.stall.as_deref(), Some("the test holds it"));
    controller.jobs().cancel(first).unwrap();
    assert_eq!(done(&controller, first), JobState::Cancelled);
    // Cancelled, a mode switch leaves the mode that the node says it has.
    let second = controller.set_mode("db", Mode::PassThrough).unwrap();
    assert_eq!(State::load(&dir.0).unwrap().volumes["db"].now.mode, Mode::PassThrough);
    controller.jobs().cancel(second).unwrap();
    assert_eq!(done(&controller, second), JobState::Cancelled);
    assert_eq!(State::load(&dir.0).unwrap().volumes["db"].now.mode, Mode::WriteBack);
    assert!(State::load(&dir.0).unwrap().jobs.is_empty());
    let third = controller.delete_volume("db", false).unwrap();
    controller.stop();
    controller.jobs().cancel(third).unwrap();
    assert_eq!(done(&controller, third), JobState::Cancelled);
    drop(controller);
    // The deletion was asked for and not done when the node stopped.
    let (node, controller) = start(&file);
    assert!(controller.resume().is_empty());
    assert_eq!(done(&controller, third), JobState::Done);
    assert!(node.volumes.lock().unwrap().is_empty());
    assert!(controller.drain("db").is_err());
    drop(controller);
    // The file still names it: it stays deleted, until the file is applied.
    let (_node, controller) = start(&file);
    assert!(controller.effective().volumes.is_empty());
    assert!(controller.resume().is_empty());
    let plan = controller.diff(&file);
    assert_eq!(plan.iter().filter(|d| d.action == Action::Create).count(), 1);
    controller.apply(&file, true).unwrap();
    let fourth = controller.drain("db").unwrap();
    assert!(fourth > third, "a job's number is used once");
}

/// A scrub may take hours: it keeps nobody from a drain, a switch or a deletion, nor they it.
#[test]
fn only_another_scrub_waits_for_a_scrub() {
    let dir = Dir::new("scrub");
    let file = support::config(&dir.0);
    let (node, controller) = start(&file);
    node.hold.store(true, Ordering::Release);
    let first = controller.scrub("db", 1 << 20).unwrap();
    let busy = controller.scrub("db", 1 << 20).unwrap_err();
    assert_eq!(busy.kind, ErrorKind::Busy);
    assert!(busy.message.contains(&format!("job {first} (scrub)")), "{busy}");
    let drain = controller.drain("db").unwrap();
    assert!(controller.set_mode("db", Mode::PassThrough).unwrap_err().message.contains("drain"));
    controller.jobs().cancel(drain).unwrap();
    assert_eq!(done(&controller, drain), JobState::Cancelled);
    // What was running when the node stopped begins again, at the same rate.
    controller.stop();
    controller.jobs().cancel(first).unwrap();
    assert_eq!(done(&controller, first), JobState::Cancelled);
    drop(controller);
    let (_node, controller) = start(&file);
    assert!(controller.resume().is_empty());
    assert_eq!(done(&controller, first), JobState::Done);
    let report = controller.jobs().get(first).unwrap().scrub.unwrap();
    assert_eq!(report.checked, 1 << 20);
    assert!(!report.is_degraded());
}

#[test]
fn apply_twice_changes_nothing_the_second_time() {
    let dir = Dir::new("apply");
    let file = support::config(&dir.0);
    let (node, controller) = start(&file);
    controller.create_volume(&VolumeConfig::new("extra", "mem:?size=1G", Mode::WriteBack)).unwrap();
    let mut wanted = file.clone();
    wanted.volumes[0].mode = Mode::WriteAround;
    wanted.volumes[0].cache_max = Some(ByteSize(1 << 30));
    wanted.volumes.push(VolumeConfig::new("more", "mem:?size=2G", Mode::WriteThrough));
    wanted.security.hosts = vec![B.to_owned()];
    wanted.node.memory = Some(ByteSize(1 << 32));
    let plan = controller.diff(&wanted);
    let named = |action: Action| -> Vec<&str> {
        plan.iter().filter(|d| d.action == action).map(|d| d.what.as_str()).collect()
    };
    assert_eq!(named(Action::Create), ["volume more"]);
    assert_eq!(named(Action::Restart), ["node.memory"]);
    assert_eq!(named(Action::Keep), ["volume extra"]);
    let hosts = [format!("host {A}"), format!("host {B}")];
    let changes = [&hosts[0], &hosts[1], "volume db.mode", "volume db.cache_max"];
    assert_eq!(named(Action::Change), changes);
    let applied = controller.apply(&wanted, true).unwrap();
    assert_eq!((applied.changed.len(), applied.remaining.len(), applied.jobs.len()), (5, 2, 1));
    assert_eq!(done(&controller, applied.jobs[0]), JobState::Done);
    assert_eq!(*node.hosts.lock().unwrap(), [B]);
    let (calls, state) = (node.calls.load(Ordering::Relaxed), state_bytes(&dir.0));
    let again = controller.apply(&wanted, true).unwrap();
    assert!(again.changed.is_empty() && again.jobs.is_empty(), "{again:?}");
    assert_eq!(again.remaining, applied.remaining);
    assert_eq!(node.calls.load(Ordering::Relaxed), calls, "the node was asked to change something");
    assert_eq!(state_bytes(&dir.0), state);
    // What is exported is no different from what runs.
    let exported = config::parse("x", &config::export(&controller.effective())).unwrap();
    assert_eq!(controller.diff(&exported), []);
    drop(controller);
    let restarted = Prepared::load(wanted.clone()).unwrap().effective();
    let kept = ServeConfig { volumes: restarted.volumes[..2].to_vec(), ..restarted.clone() };
    assert_eq!(kept, wanted);
}

#[test]
fn a_damaged_or_newer_state_is_refused_and_left_as_it_is() {
    let dir = Dir::new("state");
    let file = support::config(&dir.0);
    drop(start(&file));
    let whole = state_bytes(&dir.0);
    for len in [1, whole.len() / 2, whole.len() - 3] {
        std::fs::write(dir.0.join(STATE_FILE), &whole[..len]).unwrap();
        let error = Prepared::load(file.clone()).unwrap_err();
        assert!(error.message.contains("is damaged"), "{error}");
        assert_eq!(state_bytes(&dir.0), &whole[..len]);
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    let newer = text.replace("\"schema_version\": 1", "\"schema_version\": 7");
    std::fs::write(dir.0.join(STATE_FILE), newer).unwrap();
    assert!(Prepared::load(file.clone()).unwrap_err().message.contains("version 7"));
    // A write that was cut off left a part of the new file: the old one counts.
    std::fs::write(dir.0.join(STATE_FILE), &whole).unwrap();
    std::fs::write(forebay_control::files::temporary(&dir.0.join(STATE_FILE)), b"{\"sch").unwrap();
    drop(start(&file));
    // A change that cannot be made to a volume is refused before anything is.
    let mut wrong = file;
    wrong.volumes[0].block_size = 4096;
    let error = Prepared::load(wrong).unwrap_err();
    assert_eq!(error.detail.field.as_deref(), Some("block_size"));
}
