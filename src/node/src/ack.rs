//! The acknowledgement rule: the only place where a host's write becomes acknowledged.
//!
//! **Rule.** A log sequence number commits when its record and the record of every lower number of
//! the volume are durable on every member that must hold them. On a single node that is this
//! node's journal alone; replicas will be further members here. Commits follow the order of the
//! numbers, whatever the order in which device writes complete.

use forebay_io::Lsn;
use std::collections::VecDeque;

/// Device writes that may complete ahead of an earlier one; the cache keeps far fewer in flight.
const RUNS_AHEAD_MAX: usize = 64;

/// What of one volume is durable, and hence what may be acknowledged.
#[derive(Clone, Debug)]
pub struct CommitOrder {
    /// Everything up to here is durable.
    committed: Lsn,
    /// Durable runs (first, last) beyond a gap, sorted and disjoint.
    ahead: VecDeque<(Lsn, Lsn)>,
}

/// A member reported numbers that it cannot have: they were acknowledged before, or overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    /// First number of the refused run.
    pub first: Lsn,
    /// Last number of the refused run.
    pub last: Lsn,
}

impl CommitOrder {
    /// A volume whose numbers up to `committed` are durable (0 for a new one).
    #[must_use]
    pub fn new(committed: Lsn) -> Self {
        Self { committed, ahead: VecDeque::with_capacity(RUNS_AHEAD_MAX) }
    }

    /// The highest number that may be acknowledged.
    #[must_use]
    pub const fn committed(&self) -> Lsn {
        self.committed
    }

    /// The numbers `first..=last` are durable. Returns the new commit point where it moved.
    ///
    /// # Errors
    /// [`OutOfOrder`] where the run was reported before, is empty, or is one too many ahead: the
    /// caller has a fault, and nothing changes.
    pub fn persisted(&mut self, first: Lsn, last: Lsn) -> Result<Option<Lsn>, OutOfOrder> {
        let refused = Err(OutOfOrder { first, last });
        if first > last || first <= self.committed {
            return refused;
        }
        if first != self.committed.next() {
            return if self.insert_ahead(first, last) { Ok(None) } else { refused };
        }
        if self.ahead.front().is_some_and(|run| run.0 <= last) {
            return refused;
        }
        self.committed = last;
        while let Some(&(next, end)) = self.ahead.front() {
            if next != self.committed.next() {
                break;
            }
            self.committed = end;
            self.ahead.pop_front();
        }
        Ok(Some(self.committed))
    }

    fn insert_ahead(&mut self, first: Lsn, last: Lsn) -> bool {
        let at = self.ahead.partition_point(|run| run.0 < first);
        let clear_before = at == 0 || self.ahead[at - 1].1 < first;
        let clear_after = self.ahead.get(at).is_none_or(|run| last < run.0);
        if !clear_before || !clear_after || self.ahead.len() == RUNS_AHEAD_MAX {
            return false;
        }
        self.ahead.insert(at, (first, last));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_commits_beyond_a_gap() {
        let mut order = CommitOrder::new(Lsn(4));
        assert_eq!(order.persisted(Lsn(7), Lsn(9)), Ok(None));
        assert_eq!(order.persisted(Lsn(6), Lsn(6)), Ok(None));
        assert_eq!(order.committed(), Lsn(4));
        assert_eq!(order.persisted(Lsn(5), Lsn(5)), Ok(Some(Lsn(9))));
    }

    #[test]
    fn a_run_reported_twice_or_overlapping_is_refused_and_changes_nothing() {
        let mut order = CommitOrder::new(Lsn(0));
        assert_eq!(order.persisted(Lsn(3), Lsn(5)), Ok(None));
        for (first, last) in [(3, 5), (5, 6), (2, 3), (1, 3), (9, 8)] {
            assert!(order.persisted(Lsn(first), Lsn(last)).is_err(), "{first}..={last}");
        }
        assert_eq!(order.persisted(Lsn(1), Lsn(2)), Ok(Some(Lsn(5))));
        assert!(order.persisted(Lsn(5), Lsn(5)).is_err());
    }

    proptest! {
        #[test]
        fn the_commit_point_is_the_longest_durable_prefix(
            lengths in proptest::collection::vec(1u64..5, 1..60), seed in any::<u64>()
        ) {
            let mut runs = Vec::new();
            let mut next = 1;
            for length in lengths {
                runs.push((next, next + length - 1));
                next += length;
            }
            let mut state = seed | 1;
            let mut order = CommitOrder::new(Lsn(0));
            let mut durable = vec![false; usize::try_from(next).unwrap()];
            while !runs.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let pick = usize::try_from(state >> 33).unwrap() % runs.len();
                let (first, last) = runs.swap_remove(pick);
                order.persisted(Lsn(first), Lsn(last)).unwrap();
                for lsn in first..=last {
                    durable[usize::try_from(lsn).unwrap()] = true;
                }
                let prefix = durable.iter().skip(1).take_while(|d| **d).count();
                prop_assert_eq!(order.committed(), Lsn(u64::try_from(prefix).unwrap()));
            }
        }
    }
}
