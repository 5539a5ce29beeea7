//! Rules that a run of the simulator removes on purpose, to prove that its checkers notice. Without
//! the feature `planted-bugs` none can be: [`Plant::has`] is a constant then.

/// A rule that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Bug {
    /// A hit is served without its CRC being checked.
    NoCrcOnHit = 1,
    /// Destage does not check the CRC of what it read.
    NoCrcOnDestage,
    /// A trim is written without the flush of the backing device.
    TrimBeforeFlush,
    /// A commit does not stop fills of older data.
    FillOverNewer,
    /// What is not durable in a volatile cache is destaged.
    DestageUnflushed,
    /// The index names data that is not durable.
    IndexBeforeDurable,
    /// A footer leaves out what has a newer version that is not durable.
    FooterBeforeDurable,
    /// Writes that must be alone share their blocks.
    SharedClaims,
    /// A segment is used again without its free mark.
    NoFreeMark,
    /// A host's Flush does not flush the cache device.
    NoHostFlush,
    /// Force unit access is ignored.
    NoFua,
    /// A batch counts before the earlier ones of its log.
    AckOutOfOrder,
    /// A write that bypasses the log leaves the cached copy valid.
    NoInvalidation,
    /// A write leaves the range of zeroes over it.
    NoPunch,
    /// A failed backing write of destage counts as done.
    DestageErrorIgnored,
    /// A host's failed backing write is acknowledged.
    HostErrorIgnored,
    /// The memory tier keeps what was overwritten.
    StaleTier,
    /// Reclaim drops dirty blocks.
    ReclaimDropsDirty,
    /// What the backing device may still lose is kept in the cache.
    FillUnflushed,
    /// Write-through does not wait for the log to be durable.
    ThroughUnflushed,
    /// A moved block stays one that only its flush is missing.
    MovedWritten,
    /// A write-zeroes keeps its claims while its edges wait.
    EdgesWait,
}

/// How many there are.
pub const BUGS: u16 = Bug::EdgesWait as u16;

/// Which rule is removed, if any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plant {
    #[cfg(feature = "planted-bugs")]
    bug: u16,
}

impl Plant {
    /// The rule of this number is removed; 0 for none.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub const fn new(bug: u16) -> Self {
        Self { bug }
    }

    /// Whether this rule is removed.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub const fn has(self, bug: Bug) -> bool {
        self.bug == bug as u16
    }

    /// No rule is.
    #[cfg(not(feature = "planted-bugs"))]
    #[must_use]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
