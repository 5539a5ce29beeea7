//! What the control plane asks of the running node.

use crate::config::VolumeConfig;
use crate::error::Result;
use crate::jobs::JobHandle;
use crate::stat::NodeStat;
use crate::value::Mode;
use serde::{Deserialize, Serialize};

/// The running node, as the control plane sees it.
///
/// Called on control threads, several at once; an implementation sends messages to reactors and
/// waits for their answers, with a bound. Names and values have been checked; whether a volume
/// exists has not. The [`crate::Controller`] keeps the state file, serialises the calls that change
/// something, and makes the jobs: the node only carries out.
///
/// A call that takes a [`JobHandle`] returns as soon as the work is accepted; the work reports
/// through the handle and ends with [`JobHandle::finish`], also when the node stops.
pub trait NodeControl: Send + Sync + 'static {
    /// Everything there is to know, sampled now. `volume list`, `stat`, `/metrics` and SPDK's
    /// methods are all views of it.
    ///
    /// # Errors
    /// A reactor that does not answer in time.
    fn stat(&self) -> Result<NodeStat>;

    /// Opens the backing device, makes the volume's key in the store and serves it. Idempotent: a
    /// volume that is there already with the same backing device and block size is no error, so
    /// that an interrupted creation is repeated at the next start.
    ///
    /// # Errors
    /// A device that cannot be opened or that the volume's key does not fit; then nothing changes.
    fn create_volume(&self, volume: &VolumeConfig) -> Result<()>;

    /// Stops serving the volume; drains it, or with `discard_dirty` drops what is dirty; leaves a
    /// tombstone; finishes the job. A cancelled or failed one serves the volume again.
    ///
    /// # Errors
    /// No such volume, or one that cannot be deleted; then nothing changes.
    fn delete_volume(&self, name: &str, discard_dirty: bool, job: JobHandle) -> Result<()>;

    /// Switches the mode under load. The job finishes when `mode` is what was asked: at once, or
    /// when the volume is clean. Asked again for the mode it has, it finishes at once.
    ///
    /// # Errors
    /// No such volume; then nothing changes.
    fn set_mode(&self, name: &str, mode: Mode, job: JobHandle) -> Result<()>;

    /// Destages everything that is dirty now. The volume goes on in its mode.
    ///
    /// # Errors
    /// No such volume.
    fn drain(&self, name: &str, job: JobHandle) -> Result<()>;

    /// Reads what the cache has of the volume, at most `rate` bytes a second, checks it, and fetches
    /// again what is wrong and clean. Damage that cannot be repaired is reported through the job,
    /// which finishes well all the same.
    ///
    /// # Errors
    /// No such volume, or its cache device has failed.
    fn scrub(&self, name: &str, rate: u64, job: JobHandle) -> Result<()>;

    /// Follows how what is pinned of the volume is fetched, which [`NodeControl::update_volume`] and
    /// each start begin. The job ends when all of it is in the cache; cancelled, no more is fetched.
    ///
    /// # Errors
    /// No such volume.
    fn pin(&self, name: &str, job: JobHandle) -> Result<()>;

    /// Takes over hosts, limits and memory tier, and an ordered journal where the volume had none;
    /// nothing else differs from what it runs with.
    ///
    /// # Errors
    /// No such volume, limits that cannot be met, minimums and pins that do not fit, or a device that cannot be the volume's journal; then
    /// nothing changes.
    fn update_volume(&self, volume: &VolumeConfig) -> Result<()>;

    /// Which copy of each part of a range is current, and where it is. In order, contiguous, at
    /// most `pieces_max`.
    ///
    /// # Errors
    /// No such volume, or a range beyond its end.
    fn locate(&self, name: &str, range: LbaRange, pieces_max: usize) -> Result<Vec<Located>>;

    /// What is known to be lost with a volume's lost cache. With `commit` the volume is attached
    /// again cold, once the batch in its ordered journal is applied; without it nothing changes.
    ///
    /// # Errors
    /// No such volume, one whose cache is not lost, or an ordered journal that cannot be read.
    fn recover_lost_cache(&self, name: &str, commit: bool) -> Result<LostCache>;

    /// The whole list of hosts of `[security]` from now on. Hosts that are no longer in it, nor in
    /// their volume's own list, are disconnected.
    ///
    /// # Errors
    /// A reactor that does not answer in time.
    fn set_hosts(&self, hosts: &[String]) -> Result<()>;

    /// Injects a fault into a `fault:` device, or heals it.
    ///
    /// # Errors
    /// No such device, or one that is not a `fault:` device.
    fn inject_fault(&self, fault: &DeviceFault) -> Result<()>;
}

/// A range of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LbaRange {
    /// First block.
    pub lba: u64,
    /// Number of blocks, at least 1; `u64::MAX`: to the end of the volume.
    pub blocks: u64,
}

/// One piece of the answer of [`NodeControl::locate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Which copy is current.
    pub current: Copy,
    /// Whether the same data is in the memory tier.
    pub in_memory: bool,
    /// The log sequence number of the data, where a cached copy is current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<u64>,
    /// Where exactly, for people: cache device, segment and offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Where the current copy of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copy {
    /// Only in the cache: newer than the backing store.
    CacheDirty,
    /// In the cache and on the backing store.
    CacheClean,
    /// On the backing store only.
    Backing,
    /// It was dirty in a cache that cannot be read.
    Lost,
}

impl Copy {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CacheDirty => "cache (dirty)",
            Self::CacheClean => "cache (clean)",
            Self::Backing => "backing",
            Self::Lost => "lost",
        }
    }
}

/// What went with a lost cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostCache {
    /// Whether the volume was known to be clean: then nothing was lost.
    pub clean: bool,
    /// Ranges known to have been dirty, at most ten thousand.
    pub ranges: Vec<LbaRange>,
    /// Whether `ranges` is all that was dirty; where the cache device cannot be read at all,
    /// nothing more can be known.
    pub complete: bool,
    /// What is in the volume's ordered journal, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_journal: Option<JournalHolds>,
    /// What else there is to say, for people.
    pub note: String,
}

/// What an ordered journal holds for a backing device whose cache is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum JournalHolds {
    /// No batch: the backing device had none in part.
    Nothing,
    /// A complete batch: the backing device is a prefix once it is applied.
    Batch {
        /// The last change of it.
        end: u64,
        /// Blocks of 4 KiB of data.
        blocks: u64,
    },
    /// A complete batch of which something cannot be read back: the backing device may have a part of it
    /// and cannot be completed.
    Damaged,
    /// A batch from before the volume was served without this journal: it is dropped.
    Outdated,
    /// The volume was served with another journal than the one that it has now, or has none now: what
    /// that one holds is not known.
    Elsewhere,
}

/// A fault for a `fault:` device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFault {
    /// The device: its URI as configured, or `cache:N`, `backing:VOLUME` or `journal:VOLUME`.
    pub device: String,
    /// What it does from now on.
    pub fault: FaultKind,
    /// Which operations: any of `read`, `write`, `flush`; empty: all.
    pub ops: Vec<FaultOp>,
    /// How many operations before it heals by itself; `None`: until healed.
    pub count: Option<u64>,
}

/// What a faulty device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Operations fail with an I/O error.
    Error,
    /// Operations are taken and never answered, until healed; then they are carried out.
    Hang,
    /// The device is not there any more.
    Gone,
    /// It works again.
    Heal,
}

/// Operations that a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultOp {
    /// Reads.
    Read,
    /// Writes, write-zeroes and deallocations.
    Write,
    /// Flushes.
    Flush,
}
