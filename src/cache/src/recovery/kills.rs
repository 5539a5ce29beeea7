//! The kills of single blocks that were seen last.

use crate::index::Key;
use forebay_io::Lsn;
use std::collections::{BTreeMap, VecDeque};

/// Most blocks remembered.
const MAX: usize = 65_536;

/// A fill that was placed before a kill may stand in a batch with a higher number, where both were
/// open at once; its LSN is below that of the kill. So kills are remembered for longer than any
/// batch is open.
#[derive(Debug, Default)]
pub(super) struct RecentKills {
    by_key: BTreeMap<u64, Lsn>,
    order: VecDeque<u64>,
}

impl RecentKills {
    pub(super) fn note(&mut self, key: Key, lsn: Lsn) {
        let known = self.by_key.entry(key.bits()).or_insert_with(|| {
            self.order.push_back(key.bits());
            lsn
        });
        *known = (*known).max(lsn);
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }

    /// Whether data of this LSN were killed lately.
    pub(super) fn is_dead(&self, key: Key, lsn: Lsn) -> bool {
        !self.by_key.is_empty() && self.by_key.get(&key.bits()).is_some_and(|killed| lsn < *killed)
    }
}
