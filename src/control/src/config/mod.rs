//! The configuration file: TOML, one type for each section, unknown keys refused.
//!
//! [`parse`] reads and checks everything and reports all that is wrong at once, with line and
//! column; [`export`] writes the same language back.

mod check;
mod export;
mod parse;
#[cfg(test)]
mod tests;

pub(crate) use check::check_volume;
pub use export::export;
pub(crate) use parse::read_volume;
pub use parse::{ConfigError, ConfigErrors, parse, read_file};

use crate::value::{ByteSize, Durability, HugepageUse, LbaSpan, Mode, Poll, Span};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where a node keeps its state unless the file says otherwise.
pub const STATE_DIR: &str = "/var/lib/forebay";
/// Where a node's control socket is unless the file says otherwise.
pub const SOCKET: &str = "/run/forebay/forebay.sock";
/// What the NQN of a volume's subsystem starts with unless the file says otherwise.
pub const NQN_PREFIX: &str = "nqn.2026-11.io.forebay";
/// The port of NVMe/TCP that IANA assigned, for I/O controllers.
pub const PORT: u16 = 4420;
/// The directory of a quickstart.
pub const QUICKSTART_DIR: &str = "./forebay-data";
/// The name of the control socket inside a quickstart's directory.
pub const QUICKSTART_SOCKET: &str = "forebay.sock";

/// Everything that `forebay serve` starts a node from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where it comes from.
    pub origin: Origin,
    /// `[node]`.
    pub node: NodeConfig,
    /// `[[listen]]`, at least one.
    pub listen: Vec<ListenConfig>,
    /// `[[cache]]`, at least one unless there is no volume that caches.
    pub caches: Vec<CacheConfig>,
    /// `[[volume]]`, in the order of the file; names are unique.
    pub volumes: Vec<VolumeConfig>,
    /// `[security]`.
    pub security: SecurityConfig,
    /// `[control]`.
    pub control: ControlConfig,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file, an absolute path where that could be found out.
    File(PathBuf),
    /// `--quickstart`, everything in this directory.
    Quickstart(PathBuf),
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name; the machine's unless set.
    pub name: String,
    /// The cores that reactors are pinned to, one reactor each; empty: chosen at start.
    pub cores: Vec<usize>,
    /// How reactors wait.
    pub poll: Poll,
    /// Memory for buffers and the memory tier; `None`: chosen at start.
    pub memory: Option<ByteSize>,
    /// Whether that memory is hugepages.
    pub hugepages: HugepageUse,
    /// What the NQNs of subsystems start with; a colon and a name follow.
    pub nqn_prefix: String,
    /// Where what commands change is kept.
    pub state_dir: PathBuf,
}

/// A transport. RDMA comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
}

/// `[[listen]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// `transport`.
    pub transport: Transport,
    /// `address` and `port`.
    pub address: SocketAddr,
}

/// `[[cache]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// The URI of the cache device.
    pub device: String,
    /// What is known of its write cache.
    pub durability: Durability,
}

/// `[[volume]]`; also the parameters of `volume create`, and what the state file keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// The name.
    pub name: String,
    /// The URI of the backing device.
    pub backing: String,
    /// The mode that is wanted.
    pub mode: Mode,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// The subsystem it shares with other volumes; `None`: one of its own, named like itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// Hosts that may connect; `None`: those of `[security]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Most dirty bytes; `None`: chosen by the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_max: Option<ByteSize>,
    /// Greatest age of a dirty byte; `None`: chosen by the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty_age_max: Option<Span>,
    /// In write-back-ordered: bytes that close a batch; `None`: 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_max: Option<ByteSize>,
    /// In write-back-ordered: the age that closes a batch; `None`: 1 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_age_max: Option<Span>,
    /// In write-back-ordered: the URI of the device that each batch is written to first; `None`: there
    /// is none, and the loss of the cache in the middle of a batch leaves no prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_journal: Option<String>,
    /// Bytes of the memory tier; `None`: a share of the node's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<ByteSize>,
    /// Bytes of cache that other volumes cannot take away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_min: Option<ByteSize>,
    /// Most bytes of cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_max: Option<ByteSize>,
    /// Ranges of logical blocks that are fetched into the cache and stay there: in order and apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<LbaSpan>,
}

/// Most ranges that a volume may have pinned.
pub const PINS_MAX: usize = 256;

impl VolumeConfig {
    /// A volume with nothing but what must be said.
    #[must_use]
    pub fn new(name: &str, backing: &str, mode: Mode) -> Self {
        Self {
            name: name.to_owned(),
            backing: backing.to_owned(),
            mode,
            block_size: BLOCK_SIZE,
            subsystem: None,
            hosts: None,
            dirty_max: None,
            dirty_age_max: None,
            batch_max: None,
            batch_age_max: None,
            ordered_journal: None,
            memory_tier: None,
            cache_min: None,
            cache_max: None,
            pin: Vec::new(),
        }
    }

    /// The name of its subsystem.
    #[must_use]
    pub fn subsystem_name(&self) -> &str {
        self.subsystem.as_deref().unwrap_or(&self.name)
    }
}

/// The block size of a volume that states none. 512, because a backing device may hold data laid
/// out in such blocks, and a host can use a 512 B namespace in 4 KiB units but not the reverse.
pub const BLOCK_SIZE: u32 = 512;

/// `[security]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityConfig {
    /// Hosts that may connect to every volume that has no list of its own.
    pub hosts: Vec<String>,
    /// Whether any host may connect from a loopback address. Only a quickstart sets it.
    pub any_host_from_loopback: bool,
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// The Unix socket of the JSON-RPC server.
    pub socket: PathBuf,
    /// Where `/metrics` and `/healthz` are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
}

impl ServeConfig {
    /// The configuration of `forebay serve --quickstart`: one node on loopback whose files are all
    /// in `dir`, with one write-back volume `quickstart`.
    #[must_use]
    pub fn quickstart(dir: &Path) -> Self {
        let file =
            |name: &str, size: &str| format!("uring:{}?size={size}", dir.join(name).display());
        Self {
            origin: Origin::Quickstart(dir.to_owned()),
            node: NodeConfig {
                name: "quickstart".to_owned(),
                cores: Vec::new(),
                poll: Poll::Adaptive,
                memory: None,
                hugepages: HugepageUse::Auto,
                nqn_prefix: NQN_PREFIX.to_owned(),
                state_dir: dir.to_owned(),
            },
            listen: vec![ListenConfig {
                transport: Transport::Tcp,
                address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT),
            }],
            caches: vec![CacheConfig {
                device: file("cache.img", "2G"),
                durability: Durability::Auto,
            }],
            volumes: vec![VolumeConfig {
                // Its backing file is new: nothing on it is laid out in smaller blocks.
                block_size: 4096,
                ..VolumeConfig::new("quickstart", &file("backing.img", "8G"), Mode::WriteBack)
            }],
            security: SecurityConfig { hosts: Vec::new(), any_host_from_loopback: true },
            control: ControlConfig { socket: dir.join(QUICKSTART_SOCKET), metrics: None },
        }
    }

    /// The NQN of a subsystem.
    #[must_use]
    pub fn nqn(&self, subsystem: &str) -> String {
        format!("{}:{subsystem}", self.node.nqn_prefix)
    }
}
