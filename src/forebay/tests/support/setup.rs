//! The configuration of a node under test.

use super::dir::Dir;
use super::host::{HOST_NQN, hosts};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

/// One `[[volume]]`.
#[derive(Clone, Debug)]
pub struct Volume {
    pub name: String,
    pub backing: String,
    pub mode: String,
    pub block_size: u32,
    pub subsystem: Option<String>,
    /// Other keys, with their values as TOML.
    pub extra: Vec<(String, String)>,
}

impl Volume {
    /// A write-back volume of 4096-byte blocks.
    pub fn new(name: &str, backing: &str) -> Self {
        Self {
            name: name.to_owned(),
            backing: backing.to_owned(),
            mode: "write-back".to_owned(),
            block_size: 4096,
            subsystem: None,
            extra: Vec::new(),
        }
    }

    /// With another key.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.extra.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A node: its directory, port, devices, volumes.
#[derive(Debug)]
pub struct Setup {
    pub dir: Dir,
    pub port: u16,
    pub cores: Vec<usize>,
    /// URIs of its cache devices.
    pub caches: Vec<String>,
    pub memory: String,
    pub volumes: Vec<Volume>,
    /// Where the state is; another node over the same devices has another one.
    pub state: String,
}

impl Setup {
    /// A node without devices in a directory and on a port of its own.
    pub fn new() -> Self {
        Self {
            dir: Dir::new(),
            port: free_port(),
            cores: vec![0],
            caches: Vec::new(),
            memory: "256MiB".to_owned(),
            volumes: Vec::new(),
            state: "state".to_owned(),
        }
    }

    /// Makes a file of this size, formats it and uses it as the cache device, its URI behind
    /// `wrapper` (`fault:`, `slow:` or nothing).
    pub fn cache_file(&mut self, wrapper: &str, size: u64) -> PathBuf {
        let name = match self.caches.len() {
            0 => "cache.img".to_owned(),
            more => format!("cache{more}.img"),
        };
        let path = self.dir.sparse(&name, size);
        let uri = format!("uring:{}", path.display());
        let made = super::forebay(&["format", &uri]);
        assert_eq!(made.code, Some(0), "format of a blank file: {}", made.text);
        self.caches.push(format!("{wrapper}{uri}"));
        path
    }

    /// Makes a file of this size for a backing device; its path.
    pub fn backing_file(&self, name: &str, size: u64) -> PathBuf {
        self.dir.sparse(name, size)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.file(&format!("{}.sock", self.state))
    }

    /// The NQN of a subsystem.
    pub fn nqn(subsystem: &str) -> String {
        format!("nqn.2026-11.io.forebay.test:{subsystem}")
    }

    /// Writes the configuration file; its path.
    pub fn write(&self) -> PathBuf {
        let path = self.dir.file(&format!("{}.toml", self.state));
        std::fs::write(&path, self.toml()).unwrap();
        path
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        let quoted = |text: &str| format!("{text:?}");
        let dir = self.dir.path().join(&self.state);
        writeln!(text, "[node]\nname = \"test\"\ncores = {:?}", self.cores).unwrap();
        writeln!(text, "poll = \"adaptive\"\nmemory = {}", quoted(&self.memory)).unwrap();
        writeln!(text, "nqn_prefix = \"nqn.2026-11.io.forebay.test\"").unwrap();
        writeln!(text, "state_dir = {:?}\n", dir.display().to_string()).unwrap();
        writeln!(text, "[[listen]]\naddress = \"127.0.0.1\"\nport = {}\n", self.port).unwrap();
        for cache in &self.caches {
            writeln!(text, "[[cache]]\ndevice = {}\n", quoted(cache)).unwrap();
        }
        for volume in &self.volumes {
            writeln!(text, "[[volume]]\nname = {}", quoted(&volume.name)).unwrap();
            writeln!(text, "backing = {}", quoted(&volume.backing)).unwrap();
            writeln!(text, "mode = {}", quoted(&volume.mode)).unwrap();
            writeln!(text, "block_size = {}", volume.block_size).unwrap();
            if let Some(subsystem) = &volume.subsystem {
                writeln!(text, "subsystem = {}", quoted(subsystem)).unwrap();
            }
            for (key, value) in &volume.extra {
                writeln!(text, "{key} = {value}").unwrap();
            }
            text.push('\n');
        }
        let allowed: Vec<String> = (0..hosts()).map(|n| format!("{HOST_NQN}{n:012}")).collect();
        writeln!(text, "[security]\nhosts = {allowed:?}\n").unwrap();
        writeln!(text, "[control]\nsocket = {:?}", self.socket().display().to_string()).unwrap();
        text
    }
}

/// A port that nobody listens on now: bound once and given back.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
