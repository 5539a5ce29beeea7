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
    /// Write-through shares its blocks with other writes.
    ThroughShares,
    /// Recovery does not check the data of a batch.
    TornBatch,
    /// Recovery goes on behind a batch that is torn or missing.
    PastTear,
    /// Recovery writes no footer for the segments that have none.
    NoSettledFooter,
    /// Recovery does not begin a new incarnation.
    SameIncarnation,
    /// A commit mark does not account for the numbers before it.
    CommitMarkIgnored,
    /// Recovery ignores trims.
    TrimMarkIgnored,
    /// At recovery a trim covers newer versions too.
    TrimCoversNewer,
    /// At recovery nothing is dead by a later invalidation or range of zeroes.
    ReplayNoKill,
    /// At recovery a range of zeroes hides newer data.
    ReplayNoPunch,
    /// A trim covers what is placed and not committed when its data are chosen.
    TrimAhead,
    /// What changed during a round of destage counts as clean.
    SettleUnchecked,
    /// Destage does not claim its blocks on the backing device.
    DestageUnclaimed,
    /// What is trimmed counts as clean before the trim is durable.
    TrimNotAwaited,
    /// A failed flush of destage counts as done.
    DestageFlushErrorIgnored,
    /// A host's Flush does not flush the backing device.
    NoBackingFlush,
    /// A host's Flush does not wait for one that is under way.
    FlushNotAwaited,
    /// A flush of the cache device that is under way covers what comes later.
    FlushUnderWay,
    /// A write that bypasses the log ignores force unit access.
    NoBackingFua,
    /// A write that bypasses the log does not stop fills of older data.
    BypassKeepsFills,
    /// A fill replaces what the index has.
    ReplaceAny,
    /// Pass-through begins without the cache forgetting the volume.
    NoForget,
    /// Writes pass a switch before the cache has durably forgotten the volume.
    ForgetNotDurable,
    /// A write that bypasses the log does not wait until its blocks are clean.
    AroundDirty,
    /// A write bypasses the log before its invalidation is durable.
    BypassUnflushed,
    /// A volume with dirty data is attached in a mode that bypasses the log.
    AttachDirty,
    /// A detached volume is not forgotten.
    DetachWarm,
    /// A volume is detached before it is clean.
    DetachDirty,
    /// A segment is freed before those that were open with it are sealed.
    ReclaimPassesYoung,
    /// Reclaim does not check the CRC of what it moves.
    NoCrcOnReclaim,
    /// A lost block that reclaim moves is good again.
    MovedLossIsGood,
    /// A footer names what has a newer version.
    FooterKeepsDead,
    /// A failed write of a batch counts as done.
    LogErrorIgnored,
    /// Records are committed in the wrong order.
    CommitBackwards,
    /// A compare-and-write shares its blocks.
    CompareShares,
    /// A write of a part of a block shares it.
    EdgesShare,
    /// A write-zeroes leaves the older data in the index.
    ZeroesKeepIndex,
    /// A deallocate takes whole blocks that it covers in part.
    DiscardWhole,
    /// The memory tier takes what was overwritten while it was read.
    TierLate,
    /// A lost block is served as zeroes.
    LostIsZero,
    /// A bad dirty block is read from the backing device.
    BadDirtyIsMiss,
    /// Scrub drops dirty blocks that are wrong.
    ScrubDropsDirty,
    /// With the cache device gone dirty blocks are read from the backing device.
    FailedServesOld,
    /// What the cache device took down with it is acknowledged.
    FailedAcks,
    /// A record counts as durable when it is placed.
    AckBeforeDurable,
    /// What is read while a write that timed out may still be carried out is kept in the cache.
    FillInDoubt,
    /// A copy that comes back while the engine serves ignores what made it dead.
    WarmDead,
    /// A copy that comes back while the engine serves replaces what is newer.
    WarmOverNewer,
    /// Of two copies that come back while the engine serves the index names the one that is freed first.
    WarmKeepsFirst,
    /// A write that bypasses the log takes what is not back yet for what is not there.
    WarmCovers,
    /// A write of destage that its round went on without does not keep others from its blocks.
    LeftUnclaimed,
    /// An ordered journal's table and data are not flushed before the header that says *complete*.
    JournalUnflushed = 110,
    /// A batch is applied before the header that says *complete* is durable.
    JournalHeaderNotAwaited,
    /// What is read back from an ordered journal is not checked.
    JournalUnchecked,
    /// Host writes go to the backing device while a batch is complete.
    JournalPassed,
    /// What a batch wrote is trimmed before the header says *nothing*.
    JournalTrimEarly,
    /// The backing device is not flushed before the header says *nothing*.
    JournalApplyUnflushed,
    /// A batch that ends later than it was to keeps what was gathered of it before.
    JournalNotAnew,
    /// A batch that could not be gathered whole is completed all the same.
    JournalHoled,
}

/// How many there are below [`JOURNAL_FIRST`].
pub const BUGS: u16 = Bug::LeftUnclaimed as u16;
/// The first rule of the ordered journal.
pub const JOURNAL_FIRST: u16 = Bug::JournalUnflushed as u16;
/// The last one.
pub const JOURNAL_LAST: u16 = Bug::JournalHoled as u16;

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
