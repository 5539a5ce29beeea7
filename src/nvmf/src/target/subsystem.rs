//! A subsystem and its namespaces.

use super::config::{NamespaceConfig, SubsystemConfig};
use super::stats::{NamespaceCounters, NamespaceLatency};

/// A namespace that is attached.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) config: NamespaceConfig,
    pub(super) counters: NamespaceCounters,
    /// Apart, as it is large.
    pub(super) latency: Box<NamespaceLatency>,
    /// Changes of its ANA state.
    pub(super) ana_changes: u64,
}

/// A subsystem. Slots of namespaces are NSID - 1.
#[derive(Debug)]
pub(super) struct Subsystem {
    pub(super) config: SubsystemConfig,
    pub(super) namespaces: Vec<Option<Namespace>>,
    /// Changes of any ANA state.
    pub(super) ana_changes: u64,
}

impl Subsystem {
    pub(super) const fn new(config: SubsystemConfig) -> Self {
        Self { config, namespaces: Vec::new(), ana_changes: 0 }
    }

    pub(super) fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.get(index(nsid)?)?.as_ref()
    }

    pub(super) fn namespace_mut(&mut self, nsid: u32) -> Option<&mut Namespace> {
        self.namespaces.get_mut(index(nsid)?)?.as_mut()
    }

    /// Attached namespaces, ascending.
    pub(super) fn active(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().flatten()
    }
}

/// The slot of an NSID; `None` for 0.
pub(super) fn index(nsid: u32) -> Option<usize> {
    usize::try_from(nsid.checked_sub(1)?).ok()
}
