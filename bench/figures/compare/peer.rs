//! A target: started, ended, and held still (SIGSTOP) while another one has the core.

use super::config::PeerConfig;
use crate::Result;
use crate::guard::Guard;
use crate::node::Node;
use crate::threads::Threads;
use forebay_control::stat::{DeviceStat, VolumeStat};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a daemon has counted: blocks of its volumes, bytes of its caches.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Found in the cache, memory tier included.
    pub(crate) hits: u64,
    /// Found in the memory tier.
    pub(crate) memory_hits: u64,
    /// Fetched.
    pub(crate) misses: u64,
    /// Fetched past the cache.
    pub(crate) bypassed: u64,
    /// Written into the cache.
    pub(crate) cached_writes: u64,
    /// Written past it.
    pub(crate) bypassed_writes: u64,
    /// Bytes written to the cache devices.
    pub(crate) written: u64,
    /// Bytes that these have.
    pub(crate) capacity: u64,
}

/// A running target.
#[derive(Debug)]
pub(crate) struct Peer {
    config: PeerConfig,
    pid: Option<u32>,
    /// Of this project; it guards itself.
    node: Option<Node>,
    /// For an end of this program that drops nothing.
    _guard: Option<Guard>,
}

impl Peer {
    /// Starts it.
    pub(crate) fn start(config: &PeerConfig, program: &Path) -> Result<Self> {
        if let Some(file) = &config.forebay {
            let node = Node::start(program, file, &socket_of(file)?)?;
            let pid = Some(node.pid());
            return Ok(Self { config: config.clone(), pid, node: Some(node), _guard: None });
        }
        let (Some(start), Some(pid)) = (&config.start, &config.pid) else {
            return Ok(Self { config: config.clone(), pid: None, node: None, _guard: None });
        };
        shell(start, &config.base)?;
        let pid = shell(pid, &config.base)?;
        let pid = pid
            .trim()
            .parse()
            .map_err(|_| format!("peer \"{}\": `pid` printed \"{pid}\"", config.name))?;
        let mut peer = Self { config: config.clone(), pid: Some(pid), node: None, _guard: None };
        let stop = config.stop.as_deref().unwrap_or(":");
        let base = config.base.display();
        peer._guard =
            Some(Guard::new(&format!("kill -CONT {pid}; export COMPARISON='{base}'; {stop}"))?);
        Ok(peer)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Where it serves.
    pub(crate) fn uri(&self) -> &str {
        &self.config.uri
    }

    /// Its process; none for a device without a target.
    pub(crate) const fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// What it says its version is.
    pub(crate) fn version(&self) -> Result<Option<String>> {
        let Some(node) = &self.node else {
            let said =
                self.config.version.as_ref().map(|version| shell(version, &self.config.base));
            return Ok(said.transpose()?.map(|said| said.trim().to_owned()));
        };
        let stat = node.stat().ok_or("the daemon does not answer")?;
        Ok(Some(stat.node.version))
    }

    /// Holds it still.
    pub(crate) fn hold(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Lets it run for as long as `work` does.
    pub(crate) fn released<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.signal("-CONT")?;
        let result = work();
        self.hold()?;
        result
    }

    /// Reads counted so far; `None` where the target is none of ours.
    pub(crate) fn counters(&self) -> Result<Option<Counters>> {
        let Some(node) = &self.node else {
            return Ok(None);
        };
        let stat = node.stat().ok_or("the daemon does not answer")?;
        let caches = |of: fn(&DeviceStat) -> u64| stat.caches.iter().map(of).sum();
        let volumes = |of: fn(&VolumeStat) -> u64| stat.volumes.iter().map(of).sum();
        Ok(Some(Counters {
            hits: volumes(|volume| volume.hits),
            memory_hits: volumes(|volume| volume.memory_hits),
            misses: volumes(|volume| volume.misses),
            bypassed: volumes(|volume| volume.bypassed),
            cached_writes: volumes(|volume| volume.cached_writes),
            bypassed_writes: volumes(|volume| volume.bypassed_writes),
            written: caches(|cache| cache.write.bytes),
            capacity: caches(|cache| cache.size),
        }))
    }

    /// What its threads have had of the processor; nothing for a device without a target.
    pub(crate) fn threads(&self) -> Result<Threads> {
        self.pid.map_or_else(|| Ok(Threads::default()), Threads::of)
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let Some(pid) = self.pid else {
            return Ok(());
        };
        let done = Command::new("kill").args([signal, &pid.to_string()]).status();
        match done {
            Ok(status) if status.success() => Ok(()),
            _ => Err(format!("{} (process {pid}) is gone", self.name())),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A held process would not answer to its end.
        let _gone = self.signal("-CONT");
        if let Some(stop) = &self.config.stop
            && let Err(error) = shell(stop, &self.config.base)
        {
            eprintln!("{}: {error}", self.name());
        }
    }
}

/// The control socket that a daemon's configuration names.
fn socket_of(file: &Path) -> Result<PathBuf> {
    let fail = |what: &str| format!("{}: {what}", file.display());
    let text = fs::read_to_string(file).map_err(|error| fail(&error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| fail(&e.to_string()))?;
    let socket = table.get("control").and_then(|c| c.get("socket")).and_then(|s| s.as_str());
    socket.map(PathBuf::from).ok_or_else(|| fail("`socket` of [control] is missing"))
}

/// Runs a command; `$COMPARISON` is the directory of the file that names it.
fn shell(command: &str, base: &Path) -> Result<String> {
    // Output goes to a file: a daemon that a command leaves behind would keep a pipe open.
    let out = tempfile(command)?;
    let file = fs::File::create(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let done =
        Command::new("sh").args(["-c", command]).env("COMPARISON", base).stdout(file).status();
    let said = fs::read_to_string(&out).unwrap_or_default();
    let _gone = fs::remove_file(&out);
    match done {
        Ok(status) if status.success() => Ok(said),
        Ok(status) => Err(format!("`{command}` ended with {status}: {said}")),
        Err(error) => Err(format!("sh: {error}")),
    }
}

fn tempfile(command: &str) -> Result<PathBuf> {
    let name = format!("forebay-bench-{}-{}", std::process::id(), command.len());
    let dir = std::env::temp_dir();
    if dir.is_dir() { Ok(dir.join(name)) } else { Err(format!("no directory {}", dir.display())) }
}
