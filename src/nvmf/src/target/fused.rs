//! Fused compare and write (NVMe Base 2.0 §3.4.2): two adjacent commands of one queue that are
//! carried out as one, and whose completions are adjacent too.
//!
//! ```text
//! queue:   None --Compare, first--> First --Write, second--> None   (both go on as a pair)
//!          First --anything else--> None        first fails: fused command missing
//!          None --first is invalid--> FirstFailed --second--> None  second fails: fused failed
//! ```

use super::conn::{Conn, Fusion, Gate, Kind, State};
use super::io::submit;
use super::{Env, IoSink, Target};
use crate::plant::Bug;
use forebay_io::{Buf, BufPool, Lba, Payload, Request, RequestOp};
use forebay_wire::sqe::Fuse;
use forebay_wire::tcp::Fatal;
use forebay_wire::{Sqe, Status};

impl<B: Buf> Target<B> {
    /// A command that is part of a pair, or comes while a first half waits.
    pub(super) fn fused_command(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        let before = core::mem::replace(&mut conn.fusion, Fusion::None);
        match (before, sqe.fuse()) {
            (Fusion::First(first), Fuse::Second) => self.second(conn, first, sqe, data, env),
            (Fusion::FirstFailed, Fuse::Second) => {
                self.io_error(conn, sqe, Status::FUSED_FAILED.dnr());
                Ok(())
            }
            (before, fuse) => {
                if let Fusion::First(first) = before {
                    self.fail_half(conn, first, Status::FUSED_MISSING.dnr());
                }
                match fuse {
                    Fuse::First => self.first(conn, sqe, data, env),
                    Fuse::Normal => self.io_command(conn, sqe, data, env),
                    Fuse::Second => {
                        self.io_error(conn, sqe, Status::FUSED_MISSING.dnr());
                        Ok(())
                    }
                    Fuse::Reserved => {
                        self.io_error(conn, sqe, Status::INVALID_FIELD.dnr());
                        Ok(())
                    }
                }
            }
        }
    }

    /// A command was lost to a wrong data digest: it ends a pair in the making.
    pub(super) fn break_fusion(&mut self, conn: &mut Conn<B>, sqe: &Sqe) {
        match core::mem::replace(&mut conn.fusion, Fusion::None) {
            Fusion::First(first) => self.fail_half(conn, first, Status::FUSED_FAILED),
            Fusion::None | Fusion::FirstFailed => {}
        }
        if conn.qid != 0 && sqe.fuse() == Fuse::First {
            conn.fusion = Fusion::FirstFailed;
        }
    }

    fn first(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        match self.start_half(conn, sqe, data, Kind::Compare, Kind::FusedCompare, env)? {
            Ok(at) => conn.fusion = Fusion::First(at),
            Err(status) => {
                self.io_error(conn, sqe, status);
                conn.fusion = Fusion::FirstFailed;
            }
        }
        Ok(())
    }

    fn second(
        &mut self,
        conn: &mut Conn<B>,
        first: u16,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        let at = match self.start_half(conn, sqe, data, Kind::Write, Kind::FusedWrite, env)? {
            Ok(at) => at,
            Err(status) => {
                self.fail_half(conn, first, Status::FUSED_FAILED.dnr());
                self.io_error(conn, sqe, status);
                return Ok(());
            }
        };
        let place = |conn: &mut Conn<B>, at| {
            let slot = conn.slot(at);
            (slot.nsid, slot.slba, slot.blocks)
        };
        if place(conn, first) != place(conn, at) {
            self.fail_half(conn, first, Status::FUSED_FAILED.dnr());
            self.fail_half(conn, at, Status::INVALID_FIELD.dnr());
            return Ok(());
        }
        conn.slot(first).partner = Some(at);
        conn.slot(at).partner = Some(first);
        self.pair_ready(conn, at, env);
        Ok(())
    }

    /// Checks half of a pair and gets or asks for its data, which must be owned: the halves come
    /// apart in time.
    fn start_half(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        needs: Kind,
        becomes: Kind,
        env: &mut impl Env<B>,
    ) -> Result<Result<u16, Status>, Fatal> {
        let mut checked = match self.check(conn, sqe) {
            Ok(checked) if checked.start.kind == needs => checked,
            Ok(_) => return Ok(Err(Status::INVALID_FIELD.dnr())),
            Err(status) => return Ok(Err(status)),
        };
        let inline = match self.data_source(sqe, &checked.start, data) {
            Ok(inline) => inline,
            Err(status) => return Ok(Err(status)),
        };
        checked.start.kind = becomes;
        let mut buf = None;
        if inline {
            // A pool without room: the host tries again.
            let Some(mut fresh) = env.pool().alloc(data.len()) else {
                return Ok(Err(Status::COMMAND_INTERRUPTED));
            };
            match fresh.as_mut_slice() {
                Some(bytes) if bytes.len() == data.len() => bytes.copy_from_slice(data),
                _ => return Ok(Err(Status::INTERNAL)),
            }
            buf = Some(fresh);
        }
        let at = conn.start(checked.start).ok_or(Fatal::sequence())?;
        if inline {
            conn.slot(at).buf = buf;
            conn.slot(at).state = State::Whole;
        } else {
            conn.ask_for_data(at, env.pool());
        }
        Ok(Ok(at))
    }

    /// Half of a pair has all its data.
    pub(super) fn fused_whole(&mut self, conn: &mut Conn<B>, at: u16, env: &mut impl Env<B>) {
        let slot = conn.slot(at);
        match (slot.partner, slot.failed) {
            (Some(_), _) => self.pair_ready(conn, at, env),
            (None, Some(status)) => {
                if conn.fusion == Fusion::First(at) {
                    conn.fusion = Fusion::FirstFailed;
                }
                conn.finish(at, status);
            }
            // The second half has not come yet.
            (None, None) => {}
        }
    }

    /// Ends half of a pair that will not be carried out: now, or once its data has arrived.
    fn fail_half(&mut self, conn: &mut Conn<B>, at: u16, status: Status) {
        let slot = conn.slot(at);
        slot.partner = None;
        slot.failed = slot.failed.or(Some(status));
        match slot.state {
            State::Receiving => {}
            State::WaitBuffer => {
                conn.leave_line(at);
                conn.finish(at, status);
            }
            _ => conn.finish(at, status),
        }
    }

    /// Carries out the pair that `at` belongs to, if both halves are whole.
    fn pair_ready(&mut self, conn: &mut Conn<B>, at: u16, env: &mut impl Env<B>) {
        let Some(other) = conn.slot(at).partner else { return };
        let (first, second) =
            if conn.slot(at).kind == Kind::FusedCompare { (at, other) } else { (other, at) };
        if conn.slot(first).state != State::Whole || conn.slot(second).state != State::Whole {
            return;
        }
        let failed = (conn.slot(first).failed, conn.slot(second).failed);
        if failed != (None, None) {
            conn.finish(first, failed.0.unwrap_or(Status::FUSED_FAILED));
            return conn.finish(second, failed.1.unwrap_or(Status::FUSED_FAILED));
        }
        let (nsid, slba, blocks) = {
            let slot = conn.slot(second);
            (slot.nsid, slot.slba, slot.blocks)
        };
        let fua = conn.slot(second).fua;
        let volume = self.namespace_of(conn.home, nsid).map(|n| n.config.volume);
        let bufs = (conn.slot(first).buf.take(), conn.slot(second).buf.take());
        let (Some(volume), (Some(compare), Some(write))) = (volume, bufs) else {
            conn.finish(first, Status::INVALID_NAMESPACE.dnr());
            return conn.finish(second, Status::FUSED_FAILED.dnr());
        };
        if conn.gate != Gate::Open {
            conn.finish(first, Status::ANA_INACCESSIBLE);
            return conn.finish(second, Status::ANA_INACCESSIBLE);
        }
        if self.plant.has(Bug::PairApart) {
            let halves = [
                (first, Kind::Compare, RequestOp::Compare, compare),
                (second, Kind::Write, RequestOp::Write, write),
            ];
            for (at, kind, op, buf) in halves {
                (conn.slot(at).kind, conn.slot(at).partner) = (kind, None);
                submit(conn, at, op, volume, Payload::Owned(buf), env.io());
            }
            return;
        }
        let tag = conn.tag(second, 0);
        conn.admitted += 1;
        for at in [first, second] {
            conn.slot(at).state = State::Submitted;
        }
        conn.slot(second).parts = 1;
        let op = RequestOp::CompareAndWrite;
        let request = Request { tag, volume, op, lba: Lba(slba), blocks, fua };
        env.io().submit(request, Payload::Pair(compare, write));
    }

    /// Completes both halves, adjacent and in order.
    pub(super) fn finish_pair(conn: &mut Conn<B>, second: u16, failed: Option<Status>) {
        let first = conn.slot(second).partner;
        // The compare's failure is the first command's, whatever else failed is the second's.
        let (one, two) = match failed {
            None => (Status::SUCCESS, Status::SUCCESS),
            Some(status) if status.is(Status::COMPARE_FAILURE) => {
                (status, Status::FUSED_FAILED.dnr())
            }
            Some(status) => (Status::FUSED_FAILED, status),
        };
        if let Some(first) = first {
            conn.finish(first, one);
        }
        conn.finish(second, two);
    }
}
