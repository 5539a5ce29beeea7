//! The daemon as a process of its own.

use super::setup::Setup;
use super::wait;
use forebay_control::jobs::{JobState, JobView};
use forebay_control::rpc::Client;
use forebay_control::stat::{NodeStat, NodeState, VolumeStat};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a start with recovery may take.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a clean stop may take.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How long a daemon may take to find out that it must not start.
const REFUSE_MAX: Duration = Duration::from_secs(20);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.stdin(Stdio::null()).env_remove("FOREBAY_SOCKET");
    command
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    /// From the start of the process until it said that it was ready.
    pub started_in: Duration,
}

impl Daemon {
    /// Starts a node with this configuration and waits until it serves.
    pub fn start(setup: &Setup) -> Self {
        let config = setup.write();
        let log = setup.dir.file(&format!("{}.log", setup.state));
        let args = ["serve".into(), "--config".into(), config.into_os_string()];
        Self::spawn(&args, &setup.socket(), &log)
    }

    /// Starts a quickstart in this directory and waits until it serves.
    pub fn quickstart(dir: &Path) -> Self {
        let args = ["serve".into(), "--quickstart".into(), "--dir".into(), dir.into()];
        Self::spawn(&args, &dir.join("forebay.sock"), &dir.with_extension("log"))
    }

    /// Starts the daemon `program`, which has failpoints, with one of them armed (`NAME:COUNT`),
    /// and does not wait: its end may come at any time from now on.
    pub fn start_armed(setup: &Setup, program: &Path, failpoint: &str) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("FOREBAY_FAILPOINT", failpoint);
        command.arg("serve").arg("--config").arg(setup.write());
        let log = setup.dir.file(&format!("{}.log", setup.state));
        Self::launch(command, &setup.socket(), &log)
    }

    fn launch(mut command: Command, socket: &Path, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        Self {
            child: command.spawn().unwrap(),
            socket: socket.to_owned(),
            log: log.to_owned(),
            started_in: Duration::ZERO,
        }
    }

    /// Whether an armed daemon has come to its end, which must be at that failpoint.
    pub fn met_its_end(&mut self, failpoint: &str) -> bool {
        let Some(status) = self.child.try_wait().unwrap() else { return false };
        let (name, _) = failpoint.split_once(':').unwrap();
        let log = self.log();
        let said = log.lines().last() == Some(&format!("failpoint {name}: the end"));
        assert!(status.signal() == Some(9) && said, "{failpoint}: {status}\n{log}");
        super::FAILPOINT_KILLS.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Whether it serves by now.
    pub fn is_ready(&self) -> bool {
        self.try_stat().is_some_and(|stat| stat.node.state == NodeState::Ready)
    }

    /// A call to a daemon that may end meanwhile.
    pub fn try_call(&self, method: &str, params: Value) -> Option<Value> {
        Client::connect(&self.socket).ok()?.call(method, params).ok()
    }

    fn spawn(args: &[std::ffi::OsString], socket: &Path, log: &Path) -> Self {
        let began = Instant::now();
        let mut command = program();
        command.args(args);
        let mut daemon = Self::launch(command, socket, log);
        wait("the daemon serves", START_MAX, || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended at its start: {status}\n{}", daemon.log());
            }
            let stat = daemon.try_stat()?;
            (stat.node.state == NodeState::Ready).then_some(())
        });
        daemon.started_in = began.elapsed();
        daemon
    }

    /// Its process identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it and those before it on the same files have printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it prints.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    /// A connection to its control socket.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    fn try_stat(&self) -> Option<NodeStat> {
        Client::connect(&self.socket).ok()?.get("stat", json!({})).ok()
    }

    /// Its statistics.
    pub fn stat(&self) -> NodeStat {
        self.client().get("stat", json!({})).unwrap()
    }

    /// Those of a volume.
    pub fn volume(&self, name: &str) -> VolumeStat {
        self.stat().volume(name).unwrap_or_else(|| panic!("no volume {name} in stat")).clone()
    }

    /// A call that must succeed.
    pub fn call(&self, method: &str, params: Value) -> Value {
        let text = params.to_string();
        let answer = self.client().call(method, params);
        answer.unwrap_or_else(|error| panic!("{method} {text}: {error}\n{}", self.log()))
    }

    /// Begins a job; its number.
    pub fn begin(&self, method: &str, params: Value) -> u64 {
        self.call(method, params)["job"].as_u64().unwrap()
    }

    /// How a job is doing.
    pub fn job(&self, id: u64) -> JobView {
        let params = json!({ "id": id, "timeout_s": 0 });
        self.client().get("job_wait", params).unwrap()
    }

    /// Waits for a job, which must end well.
    pub fn finish(&self, id: u64, limit: Duration) -> JobView {
        wait(&format!("job {id}"), limit, || {
            let job = self.job(id);
            match job.state {
                JobState::Running => None,
                JobState::Done => Some(job),
                _ => panic!("{job:?}\n{}", self.log()),
            }
        })
    }

    /// Waits until no job is under way.
    pub fn finish_all(&self, limit: Duration) {
        wait("all jobs", limit, || {
            let answer = self.call("job_list", json!({}));
            let jobs: Vec<JobView> = serde_json::from_value(answer["jobs"].clone()).unwrap();
            jobs.iter().all(|job| job.state != JobState::Running).then_some(())
        });
    }

    /// Writes everything dirty to the backing store, and checks that nothing is dirty then.
    pub fn drain(&self, name: &str, limit: Duration) {
        let job = self.begin("volume_drain", json!({ "name": name }));
        self.finish(job, limit);
        assert_eq!(self.volume(name).dirty_bytes, 0, "dirty after the drain of {name}");
    }

    /// Switches the mode and waits for the end of the switch.
    pub fn set_mode(&self, name: &str, mode: &str, limit: Duration) {
        let job = self.begin("volume_set_mode", json!({ "name": name, "mode": mode }));
        self.finish(job, limit);
        assert_eq!(self.volume(name).mode.as_str(), mode);
    }

    /// Lets a `fault:` device fail or heal. `ops` empty: all operations.
    pub fn fault(&self, device: &str, fault: &str, ops: &[&str]) {
        let mut params = json!({ "device": device, "fault": fault });
        if !ops.is_empty() {
            params["ops"] = json!(ops);
        }
        self.call("device_fault", params);
    }

    /// Runs a command of the command line against it.
    pub fn command(&self, args: &[&str]) -> Refusal {
        let socket = self.socket.display().to_string();
        let mut all = vec!["--socket", &socket];
        all.extend_from_slice(args);
        forebay(&all)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the daemon ended by itself before it was killed: {status}\n{}", self.log());
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        super::RANDOM_KILLS.fetch_add(1, Ordering::Relaxed);
    }

    /// Ctrl-C, and waits for the end.
    pub fn interrupt(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -INT {}", self.child.id())])
            .status()
            .unwrap();
        assert!(sent.success());
        let status =
            wait("the daemon stops after SIGINT", STOP_MAX, || self.child.try_wait().unwrap());
        (status, began.elapsed())
    }

    /// Ctrl-C; the end must be a good one.
    pub fn stop(self) {
        let log = self.log.clone();
        let (status, _) = self.interrupt();
        let text = std::fs::read_to_string(log).unwrap_or_default();
        assert_eq!(status.code(), Some(0), "{status}\n{text}");
    }

    /// Processor time that it has used (user and system, all threads) in clock ticks of 1/100 s.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Fields 14 and 15; the name in field 2 may hold anything up to the last parenthesis.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let field =
            |at: usize| -> u64 { rest.split_whitespace().nth(at).unwrap().parse().unwrap() };
        field(11) + field(12)
    }

    /// Nanoseconds that the scheduler gave to each thread there is now.
    pub fn thread_nanos(&self) -> BTreeMap<String, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanos = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = text.split_whitespace().next()?.parse().ok()?;
            Some((task.file_name().to_string_lossy().into_owned(), nanos))
        });
        nanos.collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the daemon's last lines:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
            if let Some(stat) = self.try_stat() {
                eprintln!("and its statistics:\n  {:?}\n  {:?}", stat.caches, stat.volumes);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// All that it printed.
    pub text: String,
}

/// Runs a command that ends by itself.
pub fn forebay(args: &[&str]) -> Refusal {
    let mut command = program();
    command.args(args);
    ends(command, &args.join(" "))
}

/// The same of the daemon with failpoints, one of them armed.
pub fn forebay_armed(program: &Path, failpoint: &str, args: &[&str]) -> Refusal {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("FOREBAY_FAILPOINT", failpoint).args(args);
    ends(command, &args.join(" "))
}

/// Starts a node that must refuse to serve.
pub fn refused(setup: &Setup) -> Refusal {
    let mut command = program();
    command.arg("serve").arg("--config").arg(setup.write());
    let refusal = ends(command, "serve");
    assert_ne!(refusal.code, Some(0), "it must not end well: {}", refusal.text);
    refusal
}

/// The same for a quickstart.
pub fn quickstart_refused(dir: &Path) -> Refusal {
    let mut command = program();
    command.arg("serve").arg("--quickstart").arg("--dir").arg(dir);
    let refusal = ends(command, "serve --quickstart");
    assert_ne!(refusal.code, Some(0), "it must not end well: {}", refusal.text);
    refusal
}

fn ends(mut command: Command, what: &str) -> Refusal {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let read_err = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    let end = Instant::now() + REFUSE_MAX;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = read.join().unwrap() + &read_err.join().unwrap();
    let Some(status) = status else {
        panic!("`forebay {what}` did not end within {REFUSE_MAX:?}:\n{text}");
    };
    Refusal { code: status.code(), text }
}
