//! Admin commands, and Fabrics commands on every queue after Connect.

use super::conn::{Conn, Kind, State};
use super::controller::Controller;
use super::{Env, Target};
use forebay_io::{Buf, Instant};
use forebay_wire::fabrics::{PropertyGet, PropertySet, fctype};
use forebay_wire::property::{self, Cap, Cc, Crto, Csts, Shn};
use forebay_wire::sqe::{Fuse, Psdt, Sgl, admin};
use forebay_wire::tcp::Fatal;
use forebay_wire::{Sqe, Status};

/// How long a controller may take to become ready, in units of 500 ms.
const READY_TIMEOUT: u8 = 30;

/// What an admin command answers, without data: dword 0 and 1, or an error.
pub(super) type Answer = Result<u64, Status>;

impl<B: Buf> Target<B> {
    pub(super) fn admin_command(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        let Some(mut ctrl) = self.controllers.get_mut(conn.ctrl).and_then(Option::take) else {
            return Err(Fatal::sequence());
        };
        ctrl.heard = env.now();
        let outcome = self.admin_dispatch(conn, &mut ctrl, sqe, data, env.now());
        let at = conn.ctrl;
        self.controllers[at] = Some(ctrl);
        self.mark_dirty(at);
        match outcome {
            Ok(Done::Answered) => {}
            Ok(Done::Result(result)) => conn.respond(sqe.cid(), Status::SUCCESS, result),
            Err(status) => {
                conn.respond(sqe.cid(), status, 0);
                self.log_error(conn, sqe.cid(), sqe.nsid(), 0, status);
            }
        }
        Ok(())
    }

    fn admin_dispatch(
        &mut self,
        conn: &mut Conn<B>,
        ctrl: &mut Controller,
        sqe: &Sqe,
        data: &[u8],
        now: Instant,
    ) -> Result<Done, Status> {
        if sqe.fuse() != Fuse::Normal {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if sqe.opcode() == admin::FABRICS {
            return self.fabrics(conn, ctrl, sqe, now).map(Done::Result);
        }
        if !ctrl.csts.rdy {
            return Err(Status::COMMAND_SEQUENCE.dnr());
        }
        match sqe.opcode() {
            admin::IDENTIFY => self.identify(conn, ctrl, sqe).map(|()| Done::Answered),
            admin::GET_LOG_PAGE => self.log_page(conn, ctrl, sqe, now).map(|()| Done::Answered),
            admin::GET_FEATURES => self.get_features(conn, ctrl, sqe),
            admin::SET_FEATURES => self.set_features(ctrl, sqe, data).map(Done::Result),
            admin::ABORT if !ctrl.is_discovery() => self.abort(conn, ctrl, sqe).map(Done::Result),
            admin::ASYNC_EVENT_REQUEST => self.event_request(conn, ctrl, sqe),
            admin::KEEP_ALIVE => Ok(Done::Result(0)),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Parks an Asynchronous Event Request.
    fn event_request(
        &self,
        conn: &mut Conn<B>,
        ctrl: &mut Controller,
        sqe: &Sqe,
    ) -> Result<Done, Status> {
        if ctrl.event_requests.len() >= usize::from(self.config.limits.async_events) {
            return Err(Status::AER_LIMIT.dnr());
        }
        let start = Conn::<B>::begin(sqe, Kind::AsyncEvent);
        let at = conn.start(start).ok_or(Status::AER_LIMIT.dnr())?;
        conn.slot(at).state = State::Parked;
        ctrl.event_requests.push_back(at);
        Ok(Done::Answered)
    }

    /// Fabrics commands on the admin queue.
    fn fabrics(
        &mut self,
        conn: &mut Conn<B>,
        ctrl: &mut Controller,
        sqe: &Sqe,
        now: Instant,
    ) -> Answer {
        match sqe.fctype() {
            fctype::PROPERTY_GET => {
                let get = PropertyGet::decode(sqe).ok_or(INVALID_PROPERTY)?;
                self.property_get(ctrl, get)
            }
            fctype::PROPERTY_SET => {
                let set = PropertySet::decode(sqe).ok_or(INVALID_PROPERTY)?;
                self.property_set(conn, ctrl, set, now)
            }
            // The queue is connected already.
            fctype::CONNECT => Err(Status::COMMAND_SEQUENCE.dnr()),
            // Disconnect deletes I/O queues only; authentication is not offered.
            fctype::DISCONNECT => Err(Status::INVALID_FIELD.dnr()),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn property_get(&self, ctrl: &Controller, get: PropertyGet) -> Answer {
        let value = match (get.offset, get.wide) {
            (property::CAP, true) => self.cap().encode(),
            (property::VS, false) => property::VERSION_2_0.into(),
            (property::CC, false) => ctrl.cc.encode().into(),
            (property::CSTS, false) => ctrl.csts.encode().into(),
            (property::CRTO, false) => {
                Crto { crwmt: READY_TIMEOUT.into(), crimt: 0 }.encode().into()
            }
            _ => return Err(INVALID_PROPERTY),
        };
        Ok(value)
    }

    /// The capabilities of every controller.
    pub(super) fn cap(&self) -> Cap {
        Cap {
            mqes: self.config.limits.queue_entries.saturating_sub(1),
            cqr: true,
            to: READY_TIMEOUT,
            // NVM, and command sets by Identify 1Ch.
            css: 0x41,
            mpsmin: 0,
            mpsmax: 0,
            // Ready with media.
            crms: 1,
        }
    }

    fn property_set(
        &mut self,
        conn: &mut Conn<B>,
        ctrl: &mut Controller,
        set: PropertySet,
        now: Instant,
    ) -> Answer {
        if set.offset != property::CC || set.wide {
            return Err(INVALID_PROPERTY);
        }
        let raw = set.value.to_le_bytes();
        let cc = Cc::decode(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]));
        let before = core::mem::replace(&mut ctrl.cc, cc);
        if cc.en && !before.en {
            ctrl.csts = if valid(&cc, ctrl.is_discovery()) {
                Csts { rdy: true, ..Csts::default() }
            } else {
                Csts { cfs: true, ..Csts::default() }
            };
            if ctrl.csts.rdy && !ctrl.is_discovery() && ctrl.claim.is_none() {
                ctrl.claim = Some(self.next_claim);
                self.next_claim += 1;
            }
        } else if !cc.en && before.en {
            self.drop_queues(ctrl, now);
            for at in ctrl.event_requests.drain(..) {
                conn.finish(at, Status::ABORT_REQUESTED);
            }
            ctrl.reset(self.default_settings());
        }
        match cc.shn {
            // Completed writes need nothing from us at shutdown: what is acknowledged is as
            // durable as the namespace says.
            Shn::Normal | Shn::Abrupt => ctrl.csts.shst = 2,
            Shn::None | Shn::Reserved => {}
        }
        Ok(0)
    }

    /// Closes the I/O queues of a controller. Commands in the volumes still drain.
    pub(super) fn drop_queues(&mut self, ctrl: &Controller, now: Instant) {
        for (_, id) in &ctrl.io {
            self.close_now(*id, now);
        }
    }

    /// Closes a connection that is not in use by the caller.
    /// What it still had to send is dropped: its host waits for nothing on it any more, or is gone.
    pub(super) fn close_now(&mut self, id: super::ConnId, now: Instant) {
        if let Some(mut conn) = self.take(id) {
            conn.close(now);
            conn.tx.clear();
            self.dirty_close(&mut conn);
            self.put(conn);
        }
    }
}

/// What a dispatched command left to do.
pub(super) enum Done {
    /// Nothing: it has answered, or will.
    Answered,
    /// Success with this result.
    Result(u64),
}

/// Property offset or size unknown.
const INVALID_PROPERTY: Status = Status::CONNECT_INVALID_PARAMETERS.dnr();

/// Whether a controller can be enabled with this configuration.
fn valid(cc: &Cc, discovery: bool) -> bool {
    let sizes = cc.iosqes == 6 && cc.iocqes == 4;
    matches!(cc.css, 0 | 6) && cc.mps == 0 && cc.ams == 0 && (sizes || discovery)
}

/// Whether a command that returns control data describes a place for it; the length of the place.
pub(super) fn place(sqe: &Sqe) -> Result<u32, Status> {
    if !matches!(sqe.psdt(), Psdt::Sgl | Psdt::SglMetadataSgl) {
        return Err(Status::INVALID_FIELD.dnr());
    }
    match sqe.sgl() {
        Sgl::Transport { len } => Ok(len),
        _ => Err(Status::SGL_TYPE_INVALID.dnr()),
    }
}
