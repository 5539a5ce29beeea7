//! Abort (NVMe Base 2.0 §5.1): best effort, so that only what has not reached a volume is aborted.

use super::Target;
use super::admin::Answer;
use super::conn::{Conn, Fusion, Kind, State};
use super::controller::Controller;
use forebay_io::Buf;
use forebay_wire::sqe::Abort;
use forebay_wire::{Sqe, Status};

/// The result "the command was not aborted".
const NOT_ABORTED: u64 = 1;

impl<B: Buf> Target<B> {
    pub(super) fn abort(&mut self, conn: &mut Conn<B>, ctrl: &mut Controller, sqe: &Sqe) -> Answer {
        let abort = Abort::decode(sqe);
        if abort.sqid == 0 {
            return Ok(abort_event_request(conn, ctrl, abort.cid));
        }
        let queue = ctrl.io.iter().find(|(qid, _)| *qid == abort.sqid).map(|(_, id)| *id);
        let id = queue.ok_or(Status::INVALID_FIELD.dnr())?;
        let Some(mut queue) = self.take(id) else { return Ok(NOT_ABORTED) };
        let result = abort_io(&mut queue, abort.cid);
        self.put(queue);
        Ok(result)
    }
}

fn abort_event_request<B: Buf>(conn: &mut Conn<B>, ctrl: &mut Controller, cid: u16) -> u64 {
    let Some(at) = conn.find(cid).filter(|at| conn.slot(*at).state == State::Parked) else {
        return NOT_ABORTED;
    };
    ctrl.event_requests.retain(|parked| *parked != at);
    conn.finish(at, Status::ABORT_REQUESTED);
    0
}

/// A write without a buffer has asked for no data yet; a lone first half has changed nothing.
fn abort_io<B: Buf>(conn: &mut Conn<B>, cid: u16) -> u64 {
    let Some(at) = conn.find(cid) else { return NOT_ABORTED };
    let slot = conn.slot(at);
    let (state, kind, partner) = (slot.state, slot.kind, slot.partner);
    match (state, kind) {
        (State::WaitBuffer, Kind::Write | Kind::Compare | Kind::Dsm) => {
            conn.leave_line(at);
            conn.finish(at, Status::ABORT_REQUESTED);
            0
        }
        (State::Whole, Kind::FusedCompare)
            if partner.is_none() && conn.fusion == Fusion::First(at) =>
        {
            conn.fusion = Fusion::FirstFailed;
            conn.finish(at, Status::ABORT_REQUESTED);
            0
        }
        _ => NOT_ABORTED,
    }
}
