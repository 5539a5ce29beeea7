//! What goes into the engine and what comes out of it.

use forebay_io::device::DeviceInfo;
use forebay_io::{DeviceError, Duration, Epoch, Lsn, Op, Outcome, Tag, Uuid, VolumeId};

/// Bytes of a cache block.
pub const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub(super) const BLOCK_LEN: usize = 4096;
/// The same as an offset in a piece.
pub(super) const BLOCK_U32: u32 = 4096;

/// How a volume is cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Everything goes to the backing device; nothing is cached.
    #[default]
    PassThrough,
    /// Reads are cached; writes go to the backing device alone.
    WriteAround,
    /// Writes are cached and acknowledged when the backing device has them.
    WriteThrough,
    /// Writes are acknowledged when the cache device has them.
    WriteBack,
    /// The same, and what the backing device holds between batches of destage is a prefix of them.
    WriteBackOrdered,
}

impl CacheMode {
    /// Whether writes are acknowledged before the backing device has them.
    #[must_use]
    pub const fn is_write_back(self) -> bool {
        matches!(self, Self::WriteBack | Self::WriteBackOrdered)
    }
}

/// Where a completion comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache device.
    Cache,
    /// The backing device of a volume.
    Backing(VolumeId),
    /// The ordered journal of a volume.
    Journal(VolumeId),
}

/// An operation that the shell carries to a device. Each ends in a
/// [`Completion`](forebay_io::Completion) handed to `handle_completion`, also after a detach.
#[derive(Clone, Debug)]
pub enum Action<B> {
    /// For the cache device.
    Cache(Op<B>),
    /// For a volume's backing device.
    Backing(VolumeId, Op<B>),
    /// For a volume's ordered journal.
    Journal(VolumeId, Op<B>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// These numbers are on the cache device; the acknowledgement rule decides when they commit.
    Persisted {
        /// The volume.
        volume: VolumeId,
        /// First of them.
        first: Lsn,
        /// Last of them.
        last: Lsn,
    },
    /// A request has ended; read data went to the piece list given to `poll_event`.
    Done {
        /// The request's.
        tag: Tag,
        /// How.
        outcome: Outcome,
    },
    /// A volume that was added may be served.
    Attached {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume has left the engine; its slot may be used by another.
    Detached {
        /// The volume.
        volume: VolumeId,
    },
    /// A mode switch is complete.
    ModeChanged {
        /// The volume.
        volume: VolumeId,
        /// Its mode now.
        mode: CacheMode,
    },
    /// A drain that was asked for has ended: no dirty data was left at this point.
    Drained {
        /// The volume.
        volume: VolumeId,
    },
    /// A backing device stopped working.
    BackingFailing {
        /// The volume.
        volume: VolumeId,
        /// Its error.
        error: DeviceError,
    },
    /// A backing device works again.
    BackingBack {
        /// The volume.
        volume: VolumeId,
    },
    /// The cache device stopped working: the engine serves from the backing devices.
    CacheFailed {
        /// Its error.
        error: DeviceError,
    },
    /// Dirty data cannot be read back: reads of these blocks fail until they are written.
    DirtyLost {
        /// The volume.
        volume: VolumeId,
        /// First cache block.
        block: u64,
        /// Cache blocks.
        blocks: u64,
    },
    /// A drain, a switch or a detach has ended short of its aim: all that could be destaged is, and
    /// what is left dirty is damaged. It is kept, as media errors, until hosts write or discard it,
    /// or the volume is removed with its dirty data discarded; `Engine::locate` lists it.
    DamageLeft {
        /// The volume.
        volume: VolumeId,
        /// Damaged cache blocks.
        blocks: u64,
        /// What has ended.
        ended: Aim,
    },
    /// The shard's free segments run short and it may have more: give it an extent by
    /// `extent_granted`, or say `extent_denied`. Asked once until one of the two.
    WantsExtent,
    /// A clean stop is complete; nothing more is submitted.
    Stopped,
}

/// What needs a volume without dirty data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// A drain.
    Drain,
    /// A switch to pass-through: the volume is in write-around instead.
    PassThrough,
    /// A detach: the volume is served again.
    Detach,
}

/// A volume to serve.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// The node's handle.
    pub id: VolumeId,
    /// Its identifier.
    pub uuid: Uuid,
    /// The identifier of its write log.
    pub journal: Uuid,
    /// Its name, for the superblock and messages.
    pub name: String,
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// The mode to start in.
    pub mode: CacheMode,
    /// What its backing device states of itself now.
    pub backing: DeviceInfo,
    /// The owner's epoch, stamped into records.
    pub epoch: Epoch,
    /// What is done with host writes and misses that the backing device does not take.
    pub on_failure: OnFailure,
}

/// What becomes of requests that need a failing backing device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They wait until it works again.
    Wait,
    /// They end in [`BlockError::NotReady`](forebay_io::BlockError::NotReady).
    #[default]
    Fail,
}

/// Limits of one engine; changed live by `set_limits`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most dirty bytes; capped at 70 % of the data slots.
    pub dirty_max: u64,
    /// Destage begins at once at this age of the oldest dirty byte.
    pub dirty_age: Duration,
    /// Destage begins above this share of `dirty_max`, in percent.
    pub destage_from: u8,
    /// Reads of at least this many sequential bytes are not cached; 0 caches all.
    pub sequential_cutoff: u64,
    /// Whether a miss is cached at its first sight or only at its second.
    pub admit_at_once: bool,
    /// After this long without a completion a device counts as hanging.
    pub op_timeout: Duration,
    /// The longest delay of one write near the dirty bound.
    pub throttle_max: Duration,
    /// In write-back-ordered a batch is closed this long after its first write, at the latest.
    pub batch_age: Duration,
    /// It is closed as well when it has this many bytes.
    pub batch_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dirty_max: u64::MAX,
            dirty_age: Duration::from_secs(30),
            destage_from: 20,
            sequential_cutoff: 8 << 20,
            admit_at_once: true,
            op_timeout: Duration::from_secs(20),
            throttle_max: Duration::from_millis(100),
            batch_age: Duration::from_secs(1),
            batch_bytes: 64 << 20,
        }
    }
}
