//! Completions from volumes.

use super::conn::{Conn, Kind};
use super::status::status_of;
use super::subsystem::Namespace;
use super::{Target, untag};
use forebay_io::{Buf, Outcome, Piece, Tag};
use forebay_wire::Status;

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
        let (kind, mut failed) = (slot.kind, slot.failed);
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
        if let Some(namespace) = self.namespace_of_mut(home, nsid) {
            count(namespace, kind, blocks, failed);
        }
        if let Some(status) = failed {
            self.log_completed(parts.conn, cid, nsid, slba, status);
        }
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

/// Counts a command of a namespace.
fn count(namespace: &mut Namespace, kind: Kind, blocks: u32, failed: Option<Status>) {
    let counters = &mut namespace.counters;
    match (kind, failed) {
        (Kind::FusedWrite, Some(status)) if status.is(Status::COMPARE_FAILURE) => {
            counters.reads += 1;
        }
        (_, Some(status)) if !status.is(Status::COMPARE_FAILURE) => counters.errors += 1,
        (Kind::Read | Kind::Compare, _) => {
            counters.reads += 1;
            counters.blocks_read += u64::from(blocks);
        }
        (Kind::Write | Kind::FusedWrite, _) => {
            counters.writes += 1;
            counters.blocks_written += u64::from(blocks);
        }
        (Kind::WriteZeroes | Kind::Dsm, _) => counters.writes += 1,
        (Kind::Flush, _) => counters.flushes += 1,
        (Kind::FusedCompare | Kind::AsyncEvent, _) => {}
    }
}

impl<B: Buf> Conn<B> {
    /// Whether nothing keeps the connection once its socket is gone.
    pub(super) const fn drained(&self) -> bool {
        self.admitted == 0
    }
}
