//! The daemon ends itself with SIGKILL at named places of its way, under verified load and at a start:
//! every acknowledged write reads back right afterwards. Between those ends it is killed at random.
//!
//! It needs a daemon with failpoints, named by `FOREBAY_FAILPOINT_DAEMON`; `ci/test process` builds one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_bench::random::Random;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{
    Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, forebay, forebay_armed, seed,
};

/// Operations with three places each: before it, under way, done. The most that is drawn for how often
/// the place is reached.
const KINDS: [(&str, u64); 9] = [
    ("log-write", 200),
    ("trim-write", 8),
    ("fill-write", 60),
    ("superblock", 2),
    ("free-mark", 4),
    ("footer", 4),
    ("cache-flush", 20),
    ("backing-write", 60),
    ("backing-flush", 8),
];
const STAGES: [&str; 3] = ["before", "under-way", "done"];
/// Other places, with counts.
const PLACES: [(&str, &[u64]); 4] = [
    ("ack-unsent", &[1, 40, 300]),
    ("recovery-step", &[1, 20, 60]),
    ("recovery-write", &[1, 2, 3, 4]),
    ("volume-add", &[1]),
];
/// An armed daemon must come to its end within this time.
const LIMIT: Duration = Duration::from_secs(30);

/// The daemon with failpoints; `None`, and a line that says so, where there is none.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("FOREBAY_FAILPOINT_DAEMON").map(PathBuf::from);
    match &named {
        Some(path) => assert!(path.exists(), "{} is not there", path.display()),
        None => println!(
            "not run: failpoints: FOREBAY_FAILPOINT_DAEMON names no daemon that was built with them"
        ),
    }
    named
}

fn all(seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let mut points = Vec::new();
    for (kind, most) in KINDS {
        for stage in STAGES {
            points.push(format!("{kind}-{stage}:{}", 1 + random.below(most)));
        }
    }
    for (place, counts) in PLACES {
        points.extend(counts.iter().map(|count| format!("{place}:{count}")));
    }
    for at in (1..points.len()).rev() {
        points.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
    }
    points
}

struct Rig {
    setup: Setup,
    load: Load,
    random: Random,
}

impl Rig {
    /// A volume larger than its cache, with little dirty data: all that the cache does in the
    /// background happens all the time.
    fn new(seed: u64) -> (Self, PathBuf) {
        let mut setup = Setup::new();
        setup.cache_file("", 64 * MIB);
        let backing = setup.backing_file("backing.img", 80 * MIB);
        let volume = Volume::new("v", &format!("uring:{}", backing.display()))
            .with("dirty_max", "\"12MiB\"")
            .with("dirty_age_max", "\"1s\"")
            .with("memory_tier", "\"4MiB\"");
        setup.volumes = vec![volume];
        let load = Load::new(seed, Plan { flushes: 3, ..Plan::mixed(80 * MIB) });
        (Self { setup, load, random: Random::new(!seed) }, backing)
    }

    fn host(&self) -> Host {
        Host::connect(self.setup.address(), &Setup::nqn("v"), HostOptions::default())
    }

    /// Load on a daemon until it is killed at a moment that the host's count of answers decides.
    fn kill_at_random(&mut self, daemon: &mut Daemon, host: Host) {
        let until = self.load.counts.ops() + 60 + self.random.below(500);
        self.load.run_into_crash(host, |counts| {
            let now = counts.ops() >= until;
            if now {
                daemon.kill();
            }
            now
        });
    }

    /// An armed daemon, with load if it gets as far as that, until its end.
    fn run_to_the_end(&mut self, program: &std::path::Path, failpoint: &str) {
        let mut daemon = Daemon::start_armed(&self.setup, program, failpoint);
        let limit = Instant::now() + LIMIT;
        while !daemon.is_ready() {
            if daemon.met_its_end(failpoint) {
                return;
            }
            assert!(Instant::now() < limit, "{failpoint}: neither ends nor serves");
            std::thread::sleep(Duration::from_millis(10));
        }
        // It may end before the host is connected.
        let host = Host::begin(self.setup.address(), &Setup::nqn("v"), HostOptions::default());
        let mut modes = ["write-through", "write-back"].into_iter().cycle();
        let mut switch_at = Instant::now() + Duration::from_millis(100);
        self.load.run_into_crash(host, |_| {
            if failpoint.starts_with("superblock") && Instant::now() >= switch_at {
                // Modes are kept in the superblock.
                let mode = json!({ "name": "v", "mode": modes.next() });
                daemon.try_call("volume_set_mode", mode);
                switch_at = Instant::now() + Duration::from_millis(300);
            }
            let ended = daemon.met_its_end(failpoint);
            assert!(ended || Instant::now() < limit, "{failpoint} is not reached");
            ended
        });
    }
}

#[test]
fn no_failpoint_loses_an_acknowledged_write() {
    let Some(program) = program() else { return };
    let seed = seed(7);
    let (mut rig, backing) = Rig::new(seed);
    let mut daemon = Daemon::start(&rig.setup);
    let mut host = rig.host();
    rig.load.run_for(&mut host, Duration::from_secs(1));
    let mut met = Vec::new();
    for failpoint in all(seed) {
        rig.kill_at_random(&mut daemon, host);
        let ops = rig.load.counts.ops();
        rig.run_to_the_end(&program, &failpoint);
        let ops = rig.load.counts.ops() - ops;
        daemon = Daemon::start(&rig.setup);
        host = rig.host();
        let verified = rig.load.verify(&mut host);
        rig.load.assert_no_errors();
        println!("kill: {failpoint} after {ops} operations: {verified} blocks verified");
        if failpoint.starts_with("superblock") {
            daemon.finish_all(Duration::from_secs(30));
            daemon.set_mode("v", "write-back", Duration::from_secs(30));
        }
        met.push(failpoint);
    }
    rig.load.run_for(&mut host, Duration::from_secs(1));
    rig.load.verify(&mut host);
    host.disconnect();
    daemon.drain("v", Duration::from_secs(60));
    let compared = rig.load.compare_file(&backing);
    daemon.stop();
    let counts = &rig.load.counts;
    println!(
        "kill: failpoints: {} of {} reached, each after a random kill; {} writes, {} without an \
         answer; {compared} bytes of the backing file compared, no difference",
        met.len(),
        KINDS.len() * STAGES.len() + PLACES.iter().map(|(_, counts)| counts.len()).sum::<usize>(),
        counts.writes,
        counts.unknown
    );
    support::conclude(counts.verified);
}

/// A format that is interrupted at any step leaves nothing that is taken for a cache with data: it can
/// be done again, and the cache that was there before is not found any more.
#[test]
fn an_interrupted_format_can_be_repeated() {
    let Some(program) = program() else { return };
    let mut setup = Setup::new();
    let path = setup.cache_file("", 64 * MIB);
    let uri = format!("uring:{}", path.display());
    let name = "cache.img";
    let mut steps = 0;
    loop {
        let failpoint = format!("format-step:{}", steps + 1);
        let made = forebay(&["format", &uri, "--force", name]);
        assert_eq!(made.code, Some(0), "{}", made.text);
        let old = made.text.split("cache device ").nth(1).and_then(|rest| rest.split(':').next());
        let old = old.expect("format names the cache").to_owned();
        let armed = forebay_armed(&program, &failpoint, &["format", &uri, "--force", name]);
        if armed.code == Some(0) {
            break;
        }
        assert_eq!(armed.code, None, "{failpoint}: {}", armed.text);
        let again = forebay(&["format", &uri]);
        assert!(matches!(again.code, Some(0 | 5)), "{failpoint}: {}", again.text);
        // Before its first step it has changed nothing.
        assert_eq!(again.text.contains(&old), steps == 0, "{failpoint}: {}", again.text);
        steps += 1;
    }
    // Neither this nor any other build without the feature looks at the variable.
    let ordinary = std::path::Path::new(env!("CARGO_BIN_EXE_forebay"));
    let unmoved = forebay_armed(ordinary, "format-step:1", &["format", &uri, "--force", name]);
    assert_eq!(unmoved.code, Some(0), "{}", unmoved.text);
    let versions = [ordinary, &program]
        .map(|daemon| forebay_armed(daemon, "ack-unsent:1", &["--version"]).text);
    assert!(
        !versions[0].contains("failpoint") && versions[1].contains("failpoint"),
        "{versions:?}"
    );
    assert!(steps > 4, "a format has several steps: {steps}");
    println!("kill: format: killed before each of its {steps} steps, repeated, the old cache gone");
}
