//! A controller: the state of one association.

use super::conn::{Gate, Home};
use super::{ConnId, LocalAddress};
use forebay_io::{Duration, Instant};
use forebay_wire::Nqn;
use forebay_wire::feature::event_bit;
use forebay_wire::log::ErrorEntry;
use forebay_wire::property::{Cc, Csts};
use std::collections::{BTreeSet, VecDeque};

/// Entries of the error log that are kept (ELPE + 1).
pub(super) const ERROR_ENTRIES: usize = 64;
/// Entries of the changed namespace list before it says "more than that" (Base 2.0 §5.16.1.5).
pub(super) const CHANGED_MAX: usize = 1024;
/// How long a discovery controller without keep-alive may be silent.
const DISCOVERY_IDLE: Duration = Duration::from_secs(120);

/// One kind of notice: level triggered, so that a change between reading the log and asking for
/// events is not lost; told once until the log is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) pending: bool,
    pub(super) told: bool,
}

impl Notice {
    /// The host has read the log page (RAE clear).
    pub(super) const fn read(&mut self) {
        self.pending = false;
        self.told = false;
    }
}

/// What a host set of the features that only have to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) arbitration: u32,
    pub(super) temperature: u16,
    pub(super) error_recovery: u16,
    pub(super) events: u32,
    /// I/O queues granted.
    pub(super) queues: u16,
}

/// A controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) cntlid: u16,
    pub(super) home: Home,
    pub(super) hostnqn: Nqn,
    pub(super) hostid: [u8; 16],
    pub(super) admin: Option<ConnId>,
    /// I/O queues, zombies included.
    pub(super) io: Vec<(u16, ConnId)>,
    pub(super) cc: Cc,
    pub(super) csts: Csts,
    /// Keep-alive timeout in milliseconds; 0 for none.
    pub(super) kato: u32,
    pub(super) heard: Instant,
    /// The address that the host connected to.
    pub(super) local: LocalAddress,
    pub(super) settings: Settings,
    /// Slots of outstanding Asynchronous Event Requests on the admin queue.
    pub(super) event_requests: VecDeque<u16>,
    pub(super) namespace_notice: Notice,
    pub(super) ana_notice: Notice,
    pub(super) discovery_notice: Notice,
    pub(super) changed: BTreeSet<u32>,
    pub(super) errors: VecDeque<ErrorEntry>,
    pub(super) error_count: u64,
    /// Its place in the line of its host's controllers, while it wants or still has I/O.
    pub(super) claim: Option<u64>,
    pub(super) held: bool,
    /// Changes of `held`, which count as changes of every ANA state.
    pub(super) ana_changes: u64,
    /// The association is over; it exists until its queues have drained.
    pub(super) ending: bool,
}

impl Controller {
    /// Whether I/O may run.
    pub(super) const fn ready(&self) -> bool {
        self.csts.rdy && !self.csts.cfs && self.csts.shst == 0
    }

    /// Whether its queues admit I/O.
    pub(super) const fn gate(&self) -> Gate {
        if !self.ready() {
            Gate::NotReady
        } else if self.held {
            Gate::Held
        } else {
            Gate::Open
        }
    }

    /// Whether this is a discovery controller.
    pub(super) fn is_discovery(&self) -> bool {
        self.home == Home::Discovery
    }

    /// Events that the host may switch on.
    pub(super) fn events_supported(&self) -> u32 {
        if self.is_discovery() {
            event_bit::DISCOVERY
        } else {
            event_bit::SMART | event_bit::NAMESPACE | event_bit::ANA
        }
    }

    /// How long it may be silent; `None` for ever.
    pub(super) fn silence_max(&self) -> Option<Duration> {
        match self.kato {
            0 if self.is_discovery() => Some(DISCOVERY_IDLE),
            0 => None,
            ms => Some(Duration::from_millis(ms.into())),
        }
    }

    pub(super) fn note_changed(&mut self, nsid: u32) {
        if self.changed.len() <= CHANGED_MAX {
            self.changed.insert(nsid);
        }
        self.namespace_notice.pending = true;
    }

    pub(super) fn log_error(&mut self, entry: ErrorEntry) {
        self.error_count += 1;
        if self.errors.len() == ERROR_ENTRIES {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry { count: self.error_count, ..entry });
    }

    /// Back to what it was after Connect (CC.EN cleared).
    pub(super) fn reset(&mut self, settings: Settings) {
        self.csts = Csts::default();
        self.settings = settings;
        self.changed.clear();
        self.namespace_notice = Notice::default();
        self.ana_notice = Notice::default();
        self.discovery_notice = Notice::default();
    }
}
