//! Completions from volumes.

use super::conn::{Conn, Kind};
use super::stats::{Ended, Side};
use super::status::status_of;
use super::subsystem::Namespace;
use super::{Target, untag};
use forebay_io::{Buf, Instant, Outcome, Piece, Tag};
use forebay_wire::Status;

/// Commands whose end is not known yet at most: more than a loop completes. Beyond it they ended
/// when the target was last told the time.
const ENDED_MAX: usize = 16384;

impl<B: Buf> Target<B> {
    /// A request has ended. `pieces` is the data of a read, exactly as much as was asked for; it is
    /// emptied in every case. A completion whose connection has gone is only counted.
    pub fn complete(&mut self, tag: Tag, outcome: Outcome, pieces: &mut Vec<Piece<B>>) {
        let parts = untag(tag);
        let found = self
            .conns
            .get_mut(usize::from(parts.conn.slot))
            .filter(|slot| slot.generation == parts.conn.generation)
            .and_then(|slot| slot.conn.as_deref_mut())
            .filter(|conn| conn.awaits(parts));
        let Some(conn) = found else {
            self.stats.stale_completions += 1;
            pieces.clear();
            return;
        };
        conn.admitted -= 1;
        let slot = &mut conn.slots[usize::from(parts.slot)];
        slot.parts -= 1;
        if let Outcome::Failed(error) = outcome {
            slot.failed = slot.failed.or(Some(status_of(error)));
        }
        if slot.parts > 0 {
            pieces.clear();
            return;
        }
        if conn.dead {
            pieces.clear();
            let partner = slot.partner.take();
            conn.release(parts.slot);
            if let Some(partner) = partner {
                conn.release(partner);
            }
            if conn.admitted == 0 {
                self.reap(parts.conn);
                self.settle(self.clock);
            }
            return;
        }
        let (kind, mut failed, arrived) = (slot.kind, slot.failed, slot.arrived);
        let (cid, nsid, slba, blocks) = (slot.cid, slot.nsid, slot.slba, slot.blocks);
        let home = conn.home;
        match (kind, failed) {
            (Kind::Read, None) => {
                if !conn.send_read(parts.slot, pieces) {
                    failed = Some(Status::INTERNAL);
                }
            }
            (Kind::FusedWrite, _) => Self::finish_pair(conn, parts.slot, failed),
            (_, None) => conn.finish(parts.slot, Status::SUCCESS),
            (_, Some(status)) => conn.finish(parts.slot, status),
        }
        pieces.clear();
        if !conn.in_ready {
            conn.in_ready = true;
            self.ready.push_back(parts.conn);
        }
        if let Some(namespace) = self.namespace_of_mut(home, nsid)
            && let Some(side) = count(namespace, kind, blocks, failed)
        {
            let ended = Ended { home, nsid, side, arrived, commands: 1 };
            match self.ended.last_mut() {
                Some(last) if last.is_like(&ended) => last.commands += 1,
                _ => {
                    if self.ended.len() >= ENDED_MAX {
                        self.measure(self.clock);
                    }
                    self.ended.push(ended);
                }
            }
        }
        if let Some(status) = failed {
            self.log_completed(parts.conn, cid, nsid, slba, status);
        }
    }

    /// What was completed since the last call ended at `now`, for the latencies: the shell calls this
    /// with the time that it reads once a loop anyway, first thing in the next one. So a command is
    /// charged with the whole loop that completed it, the sending of responses included, and no
    /// clock is read for it.
    pub fn measure(&mut self, now: Instant) {
        let mut ended = core::mem::take(&mut self.ended);
        for one in ended.drain(..) {
            if let Some(namespace) = self.namespace_of_mut(one.home, one.nsid) {
                namespace.latency.record(&one, now);
            }
        }
        self.ended = ended;
    }

    fn log_completed(&mut self, id: super::ConnId, cid: u16, nsid: u32, slba: u64, status: Status) {
        if status.is(Status::COMPARE_FAILURE) {
            return;
        }
        if let Some(conn) = self.take(id) {
            self.log_error(&conn, cid, nsid, slba, status);
            self.put(conn);
        }
    }
}

/// Counts a command of a namespace, and says as what; `None` for an error.
fn count(
    namespace: &mut Namespace,
    kind: Kind,
    blocks: u32,
    failed: Option<Status>,
) -> Option<Side> {
    let counters = &mut namespace.counters;
    match (kind, failed) {
        (Kind::FusedWrite, Some(status)) if status.is(Status::COMPARE_FAILURE) => {
            counters.reads += 1;
            Some(Side::Read)
        }
        (_, Some(status)) if !status.is(Status::COMPARE_FAILURE) => {
            counters.errors += 1;
            None
        }
        (Kind::Read | Kind::Compare, _) => {
            counters.reads += 1;
            counters.blocks_read += u64::from(blocks);
            Some(Side::Read)
        }
        (Kind::Write | Kind::FusedWrite, _) => {
            counters.writes += 1;
            counters.blocks_written += u64::from(blocks);
            Some(Side::Write)
        }
        (Kind::WriteZeroes | Kind::Dsm, _) => {
            counters.writes += 1;
            Some(Side::Write)
        }
        (Kind::Flush, _) => {
            counters.flushes += 1;
            Some(Side::Flush)
        }
        (Kind::FusedCompare | Kind::AsyncEvent, _) => None,
    }
}

impl<B: Buf> Conn<B> {
    /// Whether nothing keeps the connection once its socket is gone.
    pub(super) const fn drained(&self) -> bool {
        self.admitted == 0
    }
}
