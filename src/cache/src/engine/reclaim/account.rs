//! What accounts for the numbers of a journal segment that is freed.

use super::super::{Cx, Engine};
use crate::format::geometry::LogStream;
use forebay_io::{Buf, BufPool, Lsn};

/// How the numbers of the segment are accounted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Accounting {
    /// By marks in the journal.
    Marks,
    /// By the superblock, once this flush of the cache device is over: by volume index, up to which number.
    Flush(u64, Vec<(u16, u64)>),
    /// By the superblock of this ticket.
    Superblock(u64),
}

impl<B: Buf> Engine<B> {
    /// Before a journal segment is freed a mark in another one accounts for its numbers: else they
    /// would seem to be missing; where no log has room for one, the superblock does. `false` while that is under
    /// way.
    pub(super) fn account<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) -> bool {
        let seg = self.reclaim.seg;
        if self.segs.get(seg).is_none_or(|s| s.stream != LogStream::Journal) {
            return true;
        }
        if self.reclaim.accounting != Accounting::Marks {
            return self.account_in_superblock(cx);
        }
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            let (lsn, ordinal, at) = vol.marked;
            if lsn == vol.committed && at != seg {
                self.reclaim.journal = self.reclaim.journal.max(ordinal);
                continue;
            }
            let record = Self::commit_record(vol);
            let committed = vol.committed;
            let Some((ordinal, at)) = self.append_mark(cx, LogStream::Journal, 0, &record) else {
                return self.segs.free_count() == 0 && self.account_in_superblock(cx);
            };
            self.reclaim.journal = self.reclaim.journal.max(Some(ordinal));
            if let Some(vol) = self.vols.get_mut(place) {
                vol.marked = (committed, Some(ordinal), at);
            }
        }
        true
    }

    /// The same without any room in a log: with no free segment left a mark would wait for ever for this
    /// very reclaim. Numbers are accounted for only once their records are durable.
    fn account_in_superblock<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) -> bool {
        match &self.reclaim.accounting {
            Accounting::Marks => {
                let committed = self.vols.iter().map(|(_, vol)| (vol.index, vol.committed));
                let committed = committed.collect();
                let ticket = self.flush_ticket();
                self.reclaim.accounting = Accounting::Flush(ticket, committed);
                self.flush_pump(cx.now);
            }
            Accounting::Flush(ticket, _) if !self.flush_passed(*ticket) => {}
            Accounting::Flush(_, committed) => {
                for (index, committed) in committed {
                    if let Some(entry) = self.supers.block.volume_mut(*index) {
                        entry.accounted = entry.accounted.max(Lsn(*committed));
                    }
                }
                self.reclaim.accounting = Accounting::Superblock(self.supers.change());
                self.super_pump(cx);
            }
            Accounting::Superblock(ticket) => return self.supers.passed(*ticket),
        }
        false
    }
}
