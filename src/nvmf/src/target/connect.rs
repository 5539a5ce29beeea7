//! Connect (NVMe Base 2.0 §6.3): from an established connection to a queue of a controller.

use super::conn::{Conn, Home};
use super::controller::{Controller, Notice, Settings};
use super::{
    ConnId, ConnSlot, DUPLICATE_QID_WAIT, Event, LINGER, LocalAddress, Target, TargetFull,
};
use crate::tcp::Established;
use forebay_io::{Buf, Instant};
use forebay_wire::Status;
use forebay_wire::fabrics::{
    CNTLID_DYNAMIC, CONNECT_DATA_CNTLID_AT, CONNECT_DATA_HOSTNQN_AT, CONNECT_DATA_SUBNQN_AT,
    CONNECT_QID_AT, CONNECT_SQSIZE_AT, invalid_in_command, invalid_in_data,
};
use forebay_wire::property::{Cc, Csts};
use std::collections::{BTreeSet, VecDeque};

/// Connections above the limit that are still taken, to be told that the target is busy.
const REFUSALS_MAX: usize = 16;
/// Granularity of the keep-alive timer in milliseconds (KAS 10).
pub(super) const KAS_MS: u32 = 1000;

/// Why a Connect is refused, with the result.
struct Refusal(Status, u32);

fn invalid(result: u32) -> Refusal {
    Refusal(Status::CONNECT_INVALID_PARAMETERS.dnr(), result)
}

impl<B: Buf> Target<B> {
    /// Takes a connection whose handshake is done, and answers its Connect: with a queue, or with
    /// a refusal after which it closes. Then give `established.leftover` to
    /// [`Target::handle_bytes`]. `local` is the address that the host used.
    ///
    /// # Errors
    /// The target is at its limit: close the socket without an answer.
    pub fn accept(
        &mut self,
        established: &Established,
        local: &LocalAddress,
        now: Instant,
    ) -> Result<ConnId, TargetFull> {
        let id = self.new_id()?;
        let home = self.home_of(established);
        let mut conn = Box::new(Conn::new(
            id,
            home.unwrap_or(Home::Discovery),
            established.connect.qid,
            established.params,
            now,
        ));
        (conn.no_sq_flow, conn.plant) = (established.connect.no_sq_flow, self.plant);
        conn.tx.push_with(0, |out| out.extend_from_slice(&established.unsent));
        let full = self.conns.iter().filter(|slot| slot.conn.is_some()).count()
            >= usize::from(self.config.limits.connections);
        let outcome = match home {
            _ if full => Err(Refusal(Status::CONNECT_BUSY, 0)),
            // No DNR: a host that reconnects while volumes are being opened should try again.
            None => Err(Refusal(
                Status::CONNECT_INVALID_PARAMETERS,
                invalid_in_data(CONNECT_DATA_SUBNQN_AT),
            )),
            Some(home) if established.connect.qid == 0 => {
                self.connect_admin(&mut conn, home, established, local, now)
            }
            Some(_) => self.connect_io(&mut conn, established, now),
        };
        if let Err(Refusal(status, result)) = outcome {
            self.refuse(&mut conn, established, status, result, now);
        }
        self.put(conn);
        self.settle(now);
        Ok(id)
    }

    fn new_id(&mut self) -> Result<ConnId, TargetFull> {
        if let Some(slot) = self.free_conns.pop() {
            let generation = self.conns[usize::from(slot)].generation;
            return Ok(ConnId { slot, generation });
        }
        let most = usize::from(self.config.limits.connections) + REFUSALS_MAX;
        let slot = u16::try_from(self.conns.len()).map_err(|_| TargetFull)?;
        if usize::from(slot) >= most {
            return Err(TargetFull);
        }
        self.conns.push(ConnSlot { generation: 0, conn: None });
        Ok(ConnId { slot, generation: 0 })
    }

    fn home_of(&self, established: &Established) -> Option<Home> {
        if established.data.subnqn.is_discovery() {
            return Some(Home::Discovery);
        }
        self.find_subsystem(&established.data.subnqn).map(Home::Subsystem)
    }

    fn refuse(
        &mut self,
        conn: &mut Conn<B>,
        established: &Established,
        status: Status,
        result: u32,
        now: Instant,
    ) {
        self.stats.connects_refused += 1;
        self.events.push_back(Event::Refused {
            hostnqn: established.data.hostnqn.clone(),
            subnqn: established.data.subnqn.clone(),
            status,
        });
        conn.respond(established.cid, status, result.into());
        conn.close(now + LINGER);
        self.wake_at(now + LINGER);
    }

    fn connect_admin(
        &mut self,
        conn: &mut Conn<B>,
        home: Home,
        established: &Established,
        local: &LocalAddress,
        now: Instant,
    ) -> Result<(), Refusal> {
        let (connect, data) = (&established.connect, &established.data);
        if let Home::Subsystem(at) = home {
            let allowed = self.subsystem(at).is_some_and(|s| s.config.hosts.allows(&data.hostnqn));
            if !allowed || self.host_id_taken(home, established) {
                return Err(Refusal(Status::CONNECT_INVALID_HOST.dnr(), 0));
            }
        }
        if data.cntlid != CNTLID_DYNAMIC {
            return Err(invalid(invalid_in_data(CONNECT_DATA_CNTLID_AT)));
        }
        let entries = self.queue_entries(connect.sqsize)?;
        let live = self.controllers.iter().flatten().count();
        if live >= usize::from(self.config.limits.controllers) {
            return Err(Refusal(Status::CONNECT_BUSY, 0));
        }
        let cntlid = self.new_cntlid().ok_or(Refusal(Status::CONNECT_BUSY, 0))?;
        let controller = Controller {
            cntlid,
            home,
            hostnqn: data.hostnqn.clone(),
            hostid: data.hostid,
            admin: Some(conn.id),
            io: Vec::new(),
            cc: Cc::default(),
            csts: Csts::default(),
            kato: connect.kato.div_ceil(KAS_MS).saturating_mul(KAS_MS),
            heard: now,
            local: local.clone(),
            settings: self.default_settings(),
            event_requests: VecDeque::new(),
            namespace_notice: Notice::default(),
            ana_notice: Notice::default(),
            discovery_notice: Notice::default(),
            changed: BTreeSet::new(),
            errors: VecDeque::new(),
            error_count: 0,
            claim: None,
            held: false,
            ana_changes: 0,
            ending: false,
        };
        if let Some(silence) = controller.silence_max() {
            self.wake_at(now + silence);
        }
        conn.ctrl = self.add_controller(controller);
        conn.home = home;
        conn.open_queue(entries);
        conn.respond(established.cid, Status::SUCCESS, cntlid.into());
        self.stats.associations += 1;
        self.events.push_back(Event::Connected {
            cntlid,
            hostnqn: data.hostnqn.clone(),
            subnqn: data.subnqn.clone(),
        });
        Ok(())
    }

    pub(super) const fn default_settings(&self) -> Settings {
        Settings {
            arbitration: 0,
            temperature: 343,
            error_recovery: 0,
            events: 0,
            queues: self.config.limits.io_queues,
        }
    }

    /// Entries for a zero-based SQSIZE.
    fn queue_entries(&self, sqsize: u16) -> Result<u16, Refusal> {
        let entries = sqsize.saturating_add(1);
        if sqsize < 1 || entries > self.config.limits.queue_entries {
            return Err(invalid(invalid_in_command(CONNECT_SQSIZE_AT)));
        }
        Ok(entries)
    }

    /// Whether a host identifier is live in the subsystem under another host name.
    fn host_id_taken(&self, home: Home, established: &Established) -> bool {
        let data = &established.data;
        data.hostid != [0; 16]
            && self.controllers.iter().flatten().any(|ctrl| {
                ctrl.home == home && ctrl.hostid == data.hostid && ctrl.hostnqn != data.hostnqn
            })
    }

    /// The next identifier of the range that no controller has.
    fn new_cntlid(&mut self) -> Option<u16> {
        let range = self.config.limits.cntlids.clone();
        for _ in range.clone() {
            let cntlid = self.next_cntlid;
            self.next_cntlid =
                if range.contains(&(cntlid + 1)) { cntlid + 1 } else { *range.start() };
            if !self.controllers.iter().flatten().any(|ctrl| ctrl.cntlid == cntlid) {
                return Some(cntlid);
            }
        }
        None
    }

    fn add_controller(&mut self, controller: Controller) -> usize {
        let at = self.controllers.iter().position(Option::is_none);
        let at = at.unwrap_or_else(|| {
            self.controllers.push(None);
            self.controllers.len() - 1
        });
        self.controllers[at] = Some(Box::new(controller));
        at
    }

    fn connect_io(
        &mut self,
        conn: &mut Conn<B>,
        established: &Established,
        now: Instant,
    ) -> Result<(), Refusal> {
        let (connect, data) = (&established.connect, &established.data);
        let at = self
            .controllers
            .iter()
            .position(|ctrl| ctrl.as_ref().is_some_and(|c| c.cntlid == data.cntlid))
            .ok_or(invalid(invalid_in_data(CONNECT_DATA_CNTLID_AT)))?;
        let ctrl = self.controllers[at].as_deref().filter(|c| c.home == conn.home && !c.ending);
        let ctrl = ctrl.ok_or(invalid(invalid_in_data(CONNECT_DATA_CNTLID_AT)))?;
        if ctrl.hostnqn != data.hostnqn || ctrl.hostid != data.hostid {
            return Err(invalid(invalid_in_data(CONNECT_DATA_HOSTNQN_AT)));
        }
        if ctrl.is_discovery() || connect.qid > ctrl.settings.queues {
            return Err(invalid(invalid_in_command(CONNECT_QID_AT)));
        }
        if !ctrl.ready() {
            return Err(Refusal(Status::COMMAND_SEQUENCE.dnr(), 0));
        }
        let duplicate = ctrl.io.iter().any(|(qid, _)| *qid == connect.qid);
        let entries = self.queue_entries(connect.sqsize)?;
        conn.ctrl = at;
        conn.open_queue(entries);
        if duplicate {
            // Some hosts come back before the end of the old queue is noticed: wait for it.
            conn.parked = Some((established.cid, now + DUPLICATE_QID_WAIT));
            self.wake_at(now + DUPLICATE_QID_WAIT);
        } else {
            self.join(conn, established.cid);
        }
        Ok(())
    }

    /// Makes a connection an I/O queue of its controller.
    pub(super) fn join(&mut self, conn: &mut Conn<B>, cid: u16) {
        let Some(ctrl) = self.controllers.get_mut(conn.ctrl).and_then(Option::as_deref_mut) else {
            return;
        };
        ctrl.io.push((conn.qid, conn.id));
        conn.gate = ctrl.gate();
        conn.respond(cid, Status::SUCCESS, ctrl.cntlid.into());
    }
}
