//! Rules of target and shard that a run of the simulator removes on purpose, to prove that its checkers
//! notice. Without the feature `planted-bugs` none can be: [`Plant::has`] is a constant then.

/// A rule that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Bug {
    /// What a full mailbox of another reactor did not take is lost.
    UnsentLost = FIRST,
    /// Some answers to another reactor are lost.
    AnswerLost,
    /// Some answers to another reactor are sent twice.
    AnswerTwice,
    /// A new association is admitted at once.
    AdmitAtOnce,
    /// What a dead connection has in the volumes is not waited for.
    ForgetAdmitted,
    /// The halves of a fused pair are carried out each by itself.
    PairApart,
    /// SQHD stays where it is.
    StaleHead,
}

/// The number of the first one; the cache engine's are lower.
pub const FIRST: u16 = 101;
/// The number of the last one.
pub const LAST: u16 = Bug::StaleHead as u16;

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
    #[inline(always)]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
