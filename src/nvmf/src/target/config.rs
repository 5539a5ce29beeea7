//! What the shell tells a target: limits, subsystems, namespaces, discovery.

use core::fmt;
use core::ops::RangeInclusive;
use forebay_io::{Uuid, VolumeId};
use forebay_wire::Nqn;
use forebay_wire::fabrics::CNTLID_MAX;
use forebay_wire::log::{AnaState, DiscoveryEntry};
use std::collections::BTreeSet;

/// Named maxima of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Controller identifiers that this target gives out: disjoint between reactors and nodes,
    /// because a host refuses a subsystem with two controllers of one identifier.
    pub cntlids: RangeInclusive<u16>,
    /// Connections.
    pub connections: u16,
    /// Controllers (associations).
    pub controllers: u16,
    /// I/O queues of a controller, at most 1024.
    pub io_queues: u16,
    /// Entries of a queue, 2 to 1024 (MQES + 1).
    pub queue_entries: u16,
    /// Asynchronous Event Requests of a controller, 1 to 16.
    pub async_events: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cntlids: 1..=CNTLID_MAX,
            connections: 1024,
            controllers: 256,
            io_queues: 64,
            queue_entries: 1024,
            async_events: 4,
        }
    }
}

/// What all controllers of a target say of themselves, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Model number, up to 40 characters.
    pub model: String,
    /// Firmware revision, up to 8 characters.
    pub firmware: String,
    /// Limits.
    pub limits: Limits,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            model: "Forebay".into(),
            firmware: env!("CARGO_PKG_VERSION").into(),
            limits: Limits::default(),
        }
    }
}

/// Which hosts may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// Every host (only for a listener that nobody else can reach).
    Any,
    /// These.
    Only(BTreeSet<Nqn>),
}

impl HostAccess {
    /// Whether `host` may connect.
    #[must_use]
    pub fn allows(&self, host: &Nqn) -> bool {
        match self {
            Self::Any => true,
            Self::Only(hosts) => hosts.contains(host),
        }
    }
}

/// A subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number, up to 20 characters; the same on all nodes.
    pub serial: String,
    /// Who may connect.
    pub hosts: HostAccess,
}

/// Logical block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        1 << self.shift()
    }

    /// As a power of two.
    #[must_use]
    pub const fn shift(self) -> u8 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// From bytes; `None` for a size that is not offered.
    #[must_use]
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// A namespace. Identifiers are the same on all paths and never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Namespace identifier, 1 to 1024; also its ANA group.
    pub nsid: u32,
    /// The volume behind it.
    pub volume: VolumeId,
    /// Size in logical blocks, not 0.
    pub blocks: u64,
    /// Block size.
    pub block_size: BlockSize,
    /// UUID, not nil.
    pub uuid: Uuid,
    /// NGUID, not zero (a host that sees zero there ignores the namespace).
    pub nguid: [u8; 16],
    /// Whether a completed write may still be lost at a power loss until a Flush.
    pub volatile_write_cache: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// ANA state on this node.
    pub ana: AnaState,
    /// Preferred I/O size in bytes; a multiple of the block size, or 0 for none.
    pub optimal_io: u32,
}

/// Largest namespace identifier.
pub const NSID_MAX: u32 = 1024;

/// Why a namespace was not added or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceError {
    /// No subsystem of that name is here.
    NoSubsystem,
    /// No such namespace.
    NoNamespace,
    /// The identifier is in use.
    InUse,
    /// The identifier is not within 1 to 1024.
    Nsid,
    /// The size is 0 or more than 2^55 blocks.
    Size,
    /// UUID or NGUID is zero.
    Identity,
    /// The preferred I/O size is not a multiple of the block size.
    OptimalIo,
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSubsystem => "no subsystem of that name is here",
            Self::NoNamespace => "the subsystem has no such namespace",
            Self::InUse => "the namespace identifier is in use",
            Self::Nsid => "a namespace identifier is 1 to 1024",
            Self::Size => "a namespace has at least one block",
            Self::Identity => "a namespace has a UUID and an NGUID that are not zero",
            Self::OptimalIo => "the preferred I/O size is a multiple of the block size",
        })
    }
}

impl core::error::Error for NamespaceError {}

/// Why a subsystem was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSubsystemError {
    /// One of that name exists.
    Exists,
    /// The name is the discovery subsystem's.
    Discovery,
}

impl fmt::Display for AddSubsystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exists => "a subsystem of that name exists",
            Self::Discovery => "the name belongs to the discovery subsystem",
        })
    }
}

impl core::error::Error for AddSubsystemError {}

impl NamespaceConfig {
    pub(super) fn check(&self) -> Result<(), NamespaceError> {
        if !(1..=NSID_MAX).contains(&self.nsid) {
            return Err(NamespaceError::Nsid);
        }
        check_blocks(self.blocks)?;
        if self.uuid.is_nil() || self.nguid == [0; 16] {
            return Err(NamespaceError::Identity);
        }
        if !self.optimal_io.is_multiple_of(self.block_size.bytes()) {
            return Err(NamespaceError::OptimalIo);
        }
        Ok(())
    }
}

/// Refuses sizes whose byte count would not fit.
pub(super) fn check_blocks(blocks: u64) -> Result<(), NamespaceError> {
    if (1..1 << 51).contains(&blocks) { Ok(()) } else { Err(NamespaceError::Size) }
}

/// One line of the discovery log, and who may see it. An entry with an empty `traddr` stands for
/// the address that the asking host used (a listener on all addresses).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryRecord {
    /// The entry.
    pub entry: DiscoveryEntry,
    /// Who may see it.
    pub hosts: HostAccess,
}

/// The target's end of a connection, for discovery entries without an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddress {
    /// Address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// Address.
    pub traddr: String,
    /// Port.
    pub trsvcid: String,
}
