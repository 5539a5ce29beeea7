//! A daemon as a process of its own, started for one figure and ended after it.

use crate::Result;
use crate::guard::Guard;
use forebay_bench::{Counters, JobResult, Workload, measure};
use forebay_control::rpc::Client;
use forebay_control::stat::{NodeStat, NodeState, VolumeStat};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a clean stop may take.
const STOP_MAX: Duration = Duration::from_secs(120);
/// The host that the programs here are, and that their nodes allow.
pub(crate) const HOST_NQN: &str =
    "nqn.2014-08.org.nvmexpress:uuid:6f0b1f6e-6f72-4562-8179-62656e636800";
/// The volume's name in the nodes that the programs here configure.
pub(crate) const VOLUME: &str = "bench";

/// A running daemon; asked to stop, then killed, when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    /// For an end of this program that drops nothing.
    _guard: Guard,
    socket: PathBuf,
    log: PathBuf,
}

/// What a node of one cache and one volume is made of.
#[derive(Clone, Debug)]
pub(crate) struct Layout<'a> {
    /// Files of the node.
    pub(crate) dir: &'a Path,
    /// URI of the cache device.
    pub(crate) cache: String,
    /// URI of the backing device.
    pub(crate) backing: String,
    /// The volume's mode.
    pub(crate) mode: &'a str,
    /// The core of its reactor.
    pub(crate) core: usize,
    /// `busy` or `adaptive`.
    pub(crate) poll: &'a str,
    /// TCP port on 127.0.0.1.
    pub(crate) port: u16,
    /// Bytes of the memory tier.
    pub(crate) memory_tier: u64,
    /// URI of the volume's ordered journal.
    pub(crate) ordered_journal: Option<String>,
}

impl Layout<'_> {
    /// The configuration, with the fewest buffers that a node may have.
    pub(crate) fn toml(&self) -> String {
        let Self { dir, cache, backing, mode, core, poll, port, memory_tier, ordered_journal } =
            self;
        let dir = dir.display();
        let journal = ordered_journal.as_ref().map(|uri| format!("ordered_journal = \"{uri}\"\n"));
        let journal = journal.unwrap_or_default();
        format!(
            "[node]\nname = \"bench\"\ncores = [{core}]\npoll = \"{poll}\"\nmemory = \"64M\"\nstate_dir = \"{dir}/state\"\n\
             [[listen]]\ntransport = \"tcp\"\naddress = \"127.0.0.1\"\nport = {port}\n\
             [[cache]]\ndevice = \"{cache}\"\n\
             [[volume]]\nname = \"{VOLUME}\"\nbacking = \"{backing}\"\nmode = \"{mode}\"\n\
             block_size = 4096\nmemory_tier = \"{memory_tier}\"\n{journal}\
             [security]\nhosts = [\"{HOST_NQN}\"]\n[control]\nsocket = \"{dir}/forebay.sock\"\n"
        )
    }

    /// Formats the cache where it is a file, writes the configuration and starts the node.
    pub(crate) fn start(&self, program: &Path) -> Result<Node> {
        self.prepare(program)?;
        Node::start(program, &self.config(), &self.socket())
    }

    /// Starts the node on what is there already, without waiting for it.
    pub(crate) fn spawn(&self, program: &Path) -> Result<Node> {
        Node::spawn(program, &self.config(), &self.socket())
    }

    fn config(&self) -> PathBuf {
        self.dir.join("forebay.toml")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("forebay.sock")
    }

    /// Writes the configuration and starts the node on caches that are formatted already.
    pub(crate) fn start_formatted(&self, program: &Path) -> Result<Node> {
        self.configure()?;
        Node::start(program, &self.config(), &self.socket())
    }

    fn prepare(&self, program: &Path) -> Result<()> {
        if self.cache.starts_with("uring:") {
            let done = Command::new(program)
                .args(["format", &self.cache])
                .output()
                .map_err(|error| format!("{}: {error}", program.display()))?;
            if !done.status.success() {
                return Err(String::from_utf8_lossy(&done.stderr).into_owned());
            }
        }
        self.configure()
    }

    fn configure(&self) -> Result<()> {
        let config = self.config();
        fs::write(&config, self.toml()).map_err(|e| format!("{}: {e}", config.display()))
    }

    /// The URI of its volume.
    pub(crate) fn uri(&self) -> String {
        format!(
            "nvmf+tcp://127.0.0.1:{}/nqn.2026-11.io.forebay:{VOLUME}?nsid=1&hostnqn={HOST_NQN}",
            self.port
        )
    }
}

impl Node {
    /// Starts `forebay serve` and waits until it serves.
    pub(crate) fn start(program: &Path, config: &Path, socket: &Path) -> Result<Self> {
        let mut node = Self::spawn(program, config, socket)?;
        let end = Instant::now() + START_MAX;
        while node.stat().is_none_or(|stat| stat.node.state != NodeState::Ready) {
            node.still_runs()?;
            if Instant::now() > end {
                return Err(node.silent());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    /// Starts `forebay serve` without waiting for it.
    pub(crate) fn spawn(program: &Path, config: &Path, socket: &Path) -> Result<Self> {
        let log = socket.with_extension("log");
        let file = File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let twin = file.try_clone().map_err(|e| format!("{}: {e}", log.display()))?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(twin)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let pid = child.id();
        let guard =
            Guard::new(&format!("kill -CONT {pid}; kill -INT {pid}")).inspect_err(|_| {
                let _gone = child.kill();
            })?;
        Ok(Self { child, _guard: guard, socket: socket.to_owned(), log })
    }

    /// What it said, where it does not serve.
    pub(crate) fn silent(&self) -> String {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        format!("the daemon does not serve:\n{said}")
    }

    /// An error where it has ended.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait().map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(_) => Err(self.silent()),
        }
    }

    /// Ends it as a crash would: SIGKILL.
    pub(crate) fn crash(mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its statistics; `None` where it does not answer.
    pub(crate) fn stat(&self) -> Option<NodeStat> {
        Client::connect(&self.socket).ok()?.get("stat", json!({})).ok()
    }

    /// The statistics of the volume.
    pub(crate) fn volume(&self) -> Result<VolumeStat> {
        let stat = self.stat().ok_or("the daemon does not answer")?;
        stat.volume(VOLUME).cloned().ok_or_else(|| "the daemon has no such volume".to_owned())
    }

    /// Destages all dirty data of the volume.
    pub(crate) fn drain(&self) -> Result<()> {
        let call = |client: &mut Client, method: &str, params| {
            client.call(method, params).map_err(|error| error.to_string())
        };
        let mut client = Client::connect(&self.socket).map_err(|error| error.to_string())?;
        call(&mut client, "volume_drain", json!({ "name": VOLUME }))?;
        while self.volume()?.dirty_bytes > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Resident bytes and those in huge pages (proc(5): hugetlb pages are no part of VmRSS).
    pub(crate) fn memory(&self) -> Result<u64> {
        self.memory_as("VmRSS:")
    }

    /// The same at the highest.
    pub(crate) fn memory_peak(&self) -> Result<u64> {
        self.memory_as("VmHWM:")
    }

    fn memory_as(&self, rss: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        match (kib(rss), kib("HugetlbPages:")) {
            (Some(rss), Some(huge)) => Ok((rss + huge) << 10),
            _ => Err(format!("{path}: no {rss} or no HugetlbPages")),
        }
    }

    /// Seconds that its threads ran on a processor, all together.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/task", self.pid());
        let threads = fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut nanos = 0;
        for thread in threads.flatten() {
            let said = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanos += said.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos).as_secs_f64())
    }

    /// Bytes that the process has sent to storage, as the kernel counts them.
    pub(crate) fn storage_writes(&self) -> Result<u64> {
        let path = format!("/proc/{}/io", self.pid());
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
            .ok_or_else(|| format!("{path}: no write_bytes"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // The daemon leaves on SIGINT; no signal can be sent without help of another program.
        let asked = Command::new("kill").args(["-INT", &self.pid().to_string()]).status();
        let end = Instant::now() + STOP_MAX;
        while asked.is_ok() && Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs a load here, refuses a run with errors.
pub(crate) fn load(uri: &str, workload: &Workload) -> Result<JobResult> {
    let result = measure(uri, workload, &Counters::default()).map_err(|e| e.to_string())?;
    match (result.errors, result.first_error) {
        (0, _) => Ok(result),
        (errors, first) => Err(format!("{errors} operations on {uri} failed; first: {first:?}")),
    }
}

/// The daemon's program: as given, else the one beside this program.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("forebay"));
    let path = given.map(Path::to_owned).or_else(beside).unwrap_or_default();
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "no program {}; build it with: cargo build --release, or name it with --program",
        path.display()
    ))
}

/// An empty directory for a node's files; one that holds anything is refused.
pub(crate) fn empty_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(format!("{} is not empty; name an empty directory", dir.display())),
    }
}
