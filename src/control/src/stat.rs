//! Statistics: one tree, filled by the node in one pass, shown as tables, JSON and metrics.
//!
//! Counters count from the start of the daemon and only rise. Rates are over the time since the
//! node's previous sample, whoever took it, or since the start where there is none. Latencies are in microseconds, at most 1/16 too large.
//! Those of volumes are of host commands: from the arrival of a command to its response being given
//! to the socket, as the target sees it (what it waits in sockets and on the network is not in it;
//! that the host sends a write's data, where it is asked for, is). Those of devices are right to
//! within a loop of the reactor: what completes in the loop that submitted it took no time.

use crate::value::Mode;
use serde::{Deserialize, Serialize};

/// The version of the JSON that carries these; rises when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStat {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The node itself.
    pub node: NodeInfo,
    /// One for each reactor.
    pub reactors: Vec<ReactorStat>,
    /// Cache devices, in the order of the configuration.
    pub caches: Vec<DeviceStat>,
    /// Volumes, by name.
    pub volumes: Vec<VolumeStat>,
    /// Hosts that are connected or were and may be again, by NQN.
    pub hosts: Vec<HostStat>,
}

/// The node itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Where it is.
    pub state: NodeState,
    /// What the NQNs of its subsystems start with.
    pub nqn_prefix: String,
    /// Where it listens.
    pub listen: Vec<ListenStat>,
    /// Memory of its own.
    pub memory: MemoryStat,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Reading its caches; some volumes may not serve yet.
    #[default]
    Recovering,
    /// Serving.
    Ready,
    /// Stopping.
    Stopping,
}

/// A listening address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenStat {
    /// `tcp`.
    pub transport: String,
    /// The IP address.
    pub address: String,
    /// The port, as bound.
    pub port: u16,
}

/// Memory of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStat {
    /// Bytes in hugepages.
    pub hugepage_bytes: u64,
    /// Bytes of the same use in ordinary pages, where hugepages were not to be had.
    pub ordinary_bytes: u64,
    /// Bytes of both that are free.
    pub free_bytes: u64,
    /// Bytes of indexes.
    pub index_bytes: u64,
    /// Bytes that the memory tiers of all caches may take together: as configured, or what was left of that.
    #[serde(default)]
    pub tier_max_bytes: u64,
}

/// A reactor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReactorStat {
    /// Its number, from 0.
    pub id: u32,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Nanoseconds in which it did work.
    pub busy_ns: u64,
    /// Nanoseconds in which it found none or slept.
    pub idle_ns: u64,
    /// Busy time in the last interval, 0 to 100.
    pub busy_percent: f64,
    /// Connections it serves.
    pub connections: u32,
    /// Volumes that live on it.
    pub volumes: u32,
    /// Times that its thread allocated memory since it began: connections, volumes and calls of the
    /// control plane do, commands under way in steady state do not.
    #[serde(default)]
    pub allocations: u64,
}

/// Whether a device works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It does.
    #[default]
    Ok,
    /// Some operations fail or hang.
    Degraded,
    /// It does not.
    Failed,
}

/// A cache or backing device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStat {
    /// Its URI as configured.
    pub uri: String,
    /// What it states of itself across restarts.
    pub identity: String,
    /// Bytes.
    pub size: u64,
    /// Block size in bytes.
    pub block_size: u32,
    /// Whether it has a volatile write cache, as declared or as it says.
    pub volatile_write_cache: bool,
    /// Whether its I/O goes through the page cache, because its file system refuses `O_DIRECT`: that
    /// takes memory of the system and is slower.
    #[serde(default)]
    pub buffered: bool,
    /// Bytes of a cache file that its file system has not set aside: it may run out of space.
    #[serde(default)]
    pub unreserved: u64,
    /// Whether it works.
    pub health: Health,
    /// Why not: the last error, what hangs and for how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Operations in flight.
    pub in_flight: u32,
    /// Operations that failed.
    pub errors: u64,
    /// Reads.
    pub read: OpStat,
    /// Writes.
    pub write: OpStat,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpStat {
    /// Completed.
    pub ops: u64,
    /// Bytes moved by them.
    pub bytes: u64,
    /// Operations a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Sum of their times in microseconds.
    pub total_us: u64,
    /// Their times since the node's previous sample, as of rates; `None` where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Their times since the start; `None` where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_since_start: Option<Latency>,
    /// How many took less than 2^([`BELOW_FROM`] + n) nanoseconds since the start: for `/metrics`,
    /// not for JSON.
    #[serde(skip)]
    pub below: [u64; BELOW_COUNT],
}

/// The first bound of [`OpStat::below`]: 2^12 ns, about 4 µs.
pub const BELOW_FROM: u32 = 12;
/// How many bounds there are: the last is 2^33 ns, about 8.6 s.
pub const BELOW_COUNT: usize = 22;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Of how many operations.
    #[serde(default)]
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99 % are not above.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// 99.99 %.
    pub p9999_us: f64,
    /// The largest.
    pub max_us: f64,
}

/// Whether a volume serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Its cache is being read.
    #[default]
    Recovering,
    /// It serves.
    Active,
    /// It serves, but a device of it does not work, or not well.
    Degraded,
    /// It does not serve.
    Down,
}

/// What holds of the backing device of a volume in write-back-ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Prefix {
    /// No prefix is known: the first batch after a start or a switch is not complete, the mode is being
    /// left, dirty data is damaged, or the cache device failed.
    NotYet,
    /// It holds all changes up to a number and nothing of any later one.
    Holds {
        /// The last change.
        lsn: u64,
    },
    /// A batch is being written: all changes up to a number, some up to the batch's end. With an ordered
    /// journal that holds it complete, a start makes it whole.
    Destaging {
        /// The last change before the batch.
        lsn: u64,
        /// The batch's last change.
        end: u64,
    },
}

/// The ordered journal of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderedJournalStat {
    /// Its device.
    pub device: DeviceStat,
    /// Bytes of data that one batch may have.
    pub capacity: u64,
    /// It holds a complete batch, which the backing store has in part: a start completes it, also after
    /// the loss of the cache.
    pub complete: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStat {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its NGUID, 32 hexadecimal digits.
    pub nguid: String,
    /// The NQN of its subsystem.
    pub nqn: String,
    /// Its namespace identifier there.
    pub nsid: u32,
    /// Whether it serves.
    pub state: VolumeState,
    /// Why not, or not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The mode it is in.
    pub mode: Mode,
    /// The mode it is on its way to; the same where it is on none.
    pub target_mode: Mode,
    /// Bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// The epoch of the owner.
    pub owner_epoch: u64,
    /// The reactor it lives on.
    pub reactor: u32,
    /// The index of its cache device.
    pub cache: Option<u32>,
    /// Its backing device.
    pub backing: DeviceStat,
    /// Host reads.
    pub read: OpStat,
    /// Host writes.
    pub write: OpStat,
    /// Host flushes.
    pub flush: OpStat,
    /// Blocks of 4 KiB of Read and Compare commands that ended well, each counted once, that the
    /// cache had: on its device, in the memory tier, or as a range of zeroes. With `misses` and
    /// `bypassed` these are all blocks that hosts read.
    pub hits: u64,
    /// Of `hits`, those in the memory tier.
    pub memory_hits: u64,
    /// Blocks that such commands got from the backing store as the cache did not have them; they
    /// were cached then, or could have been.
    pub misses: u64,
    /// Blocks that such commands got from the backing store past the cache: in pass-through, in a
    /// sequential stream longer than the cutoff, or with the cache device failed.
    pub bypassed: u64,
    /// Blocks that Write commands put into the cache: in write-back and write-through.
    #[serde(default)]
    pub cached_writes: u64,
    /// Blocks that Write commands put into the backing store alone: in write-around and
    /// pass-through, or with the cache device failed.
    #[serde(default)]
    pub bypassed_writes: u64,
    /// Hits among hits, misses and bypassed in the last interval, 0 to 1; `None` without reads.
    pub hit_ratio: Option<f64>,
    /// Bytes that its cache has of it, dirty ones included.
    pub cached_bytes: u64,
    /// Bytes of cache that other volumes leave it: its `cache_min`; 0 where it has none.
    #[serde(default)]
    pub cache_min_bytes: u64,
    /// Bytes of cache beyond which it gets no fills: its `cache_max`; `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_max_bytes: Option<u64>,
    /// Bytes that are pinned, in blocks of 4 KiB, in the cache or not.
    #[serde(default)]
    pub pinned_bytes: u64,
    /// Bytes in the memory tier of its cache, of all volumes there.
    pub memory_tier_bytes: u64,
    /// Dirty bytes.
    pub dirty_bytes: u64,
    /// In write-back-ordered: what the backing store alone is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Its ordered journal, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_journal: Option<OrderedJournalStat>,
    /// In write-back-ordered: bytes that were replaced in the cache and wait for their batch.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Dirty bytes of its cache, of all volumes there.
    pub dirty_pinned_bytes: u64,
    /// The bound on them.
    pub dirty_max: u64,
    /// Age of the oldest dirty byte in its cache in milliseconds; `None` where this volume has none.
    pub oldest_dirty_ms: Option<u64>,
    /// That byte was dirty when the daemon started. Records carry no time: its age counts from
    /// recovery, and is more than that.
    #[serde(default)]
    pub oldest_dirty_before_start: bool,
    /// Bytes destaged: no longer dirty, as the backing store has flushed them.
    pub destaged_bytes: u64,
    /// Bytes destaged a second.
    pub destage_bytes_per_s: f64,
    /// Bytes whose only copy was in a cache that cannot be read.
    pub lost_bytes: u64,
    /// Of them, those that are wrong on a cache device that works, in blocks of 4 KiB: reads of them
    /// fail until they are written. `volume where` lists them.
    #[serde(default)]
    pub damaged_bytes: u64,
    /// Clean blocks of 4 KiB whose copy in the cache was wrong, by CRC or address: dropped unseen, and
    /// read from the backing store.
    #[serde(default)]
    pub healed: u64,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStat {
    /// Its NQN.
    pub nqn: String,
    /// Its host identifier.
    pub host_id: String,
    /// The NQN of the subsystem.
    pub subsystem: String,
    /// Its address and port.
    pub address: String,
    /// Controller identifier.
    pub controller: u16,
    /// I/O queues.
    pub io_queues: u32,
    /// Commands in flight.
    pub in_flight: u32,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Seconds since it connected.
    pub connected_s: u64,
}

impl NodeStat {
    /// The volume of this name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&VolumeStat> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// What is wrong, one sentence each; empty where nothing is.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut device = |what: String, device: &DeviceStat| {
            if device.health != Health::Ok {
                let health = if device.health == Health::Failed { "failed" } else { "degraded" };
                let cause = device.cause.as_deref().unwrap_or("no cause is known");
                all.push(format!("{what} {} {health}: {cause}", device.uri));
            }
        };
        for cache in &self.caches {
            device("cache device".to_owned(), cache);
        }
        for volume in &self.volumes {
            device(format!("backing device of volume {}", volume.name), &volume.backing);
            if let Some(journal) = &volume.ordered_journal {
                device(format!("ordered journal of volume {}", volume.name), &journal.device);
            }
        }
        for volume in &self.volumes {
            if matches!(volume.state, VolumeState::Degraded | VolumeState::Down) {
                let state =
                    if volume.state == VolumeState::Down { "is down" } else { "is degraded" };
                let cause = volume.cause.as_deref().unwrap_or("no cause is known");
                all.push(format!("volume {} {state}: {cause}", volume.name));
            }
        }
        all
    }
}
