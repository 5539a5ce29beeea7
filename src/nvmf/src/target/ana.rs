//! What follows from changes: one active controller for each host and subsystem, gates, notices,
//! and the end of associations.
//!
//! A second controller of one host on a subsystem reports its namespaces inaccessible until the
//! first has stopped and everything that it admitted has ended. Linux retries on another path at
//! once, while the old command may still be in a socket or in a volume; admitted late, it would
//! overwrite what came after it (the hazard of TP4129).

use super::conn::Home;
use super::controller::{Controller, Notice};
use super::{ConnId, DUPLICATE_QID_WAIT, Event, LINGER, Target};
use crate::plant::Bug;
use forebay_io::{Buf, Instant};
use forebay_wire::feature::{AsyncEvent, event_bit};
use forebay_wire::log::AnaState;
use forebay_wire::{Nqn, Status};

impl<B: Buf> Target<B> {
    /// Draws the consequences of changes noted with `mark_dirty`.
    pub(super) fn settle(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
        while let Some(at) = self.dirty.pop() {
            self.release_claim(at);
            self.finish_association(at);
            self.elect();
            self.unpark(at, now);
            self.tell(at);
        }
    }

    /// A controller that wants no more I/O leaves the line once its queues have drained.
    fn release_claim(&mut self, at: usize) {
        if let Some(ctrl) = self.controllers.get_mut(at).and_then(Option::as_deref_mut) {
            let wants = ctrl.ready() && !ctrl.ending;
            if !wants && ctrl.io.is_empty() {
                ctrl.claim = None;
            }
        }
    }

    fn finish_association(&mut self, at: usize) {
        let over = self
            .controllers
            .get(at)
            .and_then(Option::as_deref)
            .is_some_and(|ctrl| ctrl.ending && ctrl.io.is_empty() && ctrl.admin.is_none());
        if over && let Some(ctrl) = self.controllers[at].take() {
            self.events.push_back(Event::Disconnected {
                cntlid: ctrl.cntlid,
                hostnqn: ctrl.hostnqn.clone(),
            });
        }
    }

    /// Decides which controllers are held: all but the first in line of each host and subsystem.
    fn elect(&mut self) {
        for at in 0..self.controllers.len() {
            let Some(ctrl) = self.controllers[at].as_deref() else { continue };
            let held = ctrl.claim.is_some_and(|claim| {
                self.controllers
                    .iter()
                    .flatten()
                    .any(|other| other.claim.is_some_and(|c| c < claim) && same_host(ctrl, other))
            });
            self.set_held(at, held && !self.plant.has(Bug::AdmitAtOnce));
        }
    }

    fn set_held(&mut self, at: usize, held: bool) {
        let Some(ctrl) = self.controllers[at].as_deref_mut() else { return };
        if ctrl.held != held {
            ctrl.held = held;
            ctrl.ana_changes += 1;
            ctrl.ana_notice.pending = true;
            self.mark_dirty(at);
        }
        let Some(ctrl) = self.controllers[at].as_deref() else { return };
        let gate = ctrl.gate();
        let queues: Vec<ConnId> = ctrl.io.iter().map(|(_, id)| *id).collect();
        for id in queues {
            if let Some(conn) = self.conn_mut(id) {
                conn.gate = gate;
            }
        }
    }

    /// Completes I/O Connects that waited for an older queue of the same number.
    fn unpark(&mut self, at: usize, now: Instant) {
        let parked: Vec<ConnId> = self
            .conns
            .iter()
            .filter_map(|slot| slot.conn.as_deref())
            .filter(|conn| conn.ctrl == at && conn.parked.is_some())
            .map(|conn| conn.id)
            .collect();
        for id in parked {
            let Some(mut conn) = self.take(id) else { continue };
            if let Some((cid, until)) = conn.parked {
                let ctrl = self.controllers.get(at).and_then(Option::as_deref);
                let fits = ctrl.is_some_and(|c| c.ready() && !c.ending);
                let used = ctrl.is_some_and(|c| c.io.iter().any(|(qid, _)| *qid == conn.qid));
                if fits && !used {
                    conn.parked = None;
                    self.join(&mut conn, cid);
                } else if !fits || now >= until {
                    conn.parked = None;
                    conn.respond(cid, Status::CONNECT_BUSY, 0);
                    conn.close(now + LINGER);
                    self.wake_at(now + LINGER);
                } else {
                    self.wake_at(until.min(now + DUPLICATE_QID_WAIT));
                }
            }
            self.put(conn);
        }
    }

    /// Answers event requests with what is pending and wanted.
    fn tell(&mut self, at: usize) {
        let Some(mut ctrl) = self.controllers.get_mut(at).and_then(Option::take) else { return };
        if let Some(id) = ctrl.admin
            && let Some(mut conn) = self.take(id)
        {
            while !ctrl.event_requests.is_empty() {
                let Some(event) = next_event(&mut ctrl) else { break };
                if let Some(slot) = ctrl.event_requests.pop_front() {
                    let cid = conn.slot(slot).cid;
                    conn.release(slot);
                    conn.respond(cid, Status::SUCCESS, event.encode().into());
                }
            }
            self.put(conn);
        }
        self.controllers[at] = Some(ctrl);
    }

    /// The socket of a connection is gone. Commands in volumes still count until they complete.
    pub fn conn_closed(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conn_mut(id) else { return };
        if conn.dead {
            return;
        }
        conn.die(now);
        let (ctrl, qid, drained) = (conn.ctrl, conn.qid, conn.drained());
        if qid == 0 {
            self.end_association(ctrl, id, now);
        }
        if drained || self.plant.has(Bug::ForgetAdmitted) {
            self.reap(id);
        }
        self.settle(now);
    }

    /// Ends an association whose admin queue is `admin`: closes what is left of it.
    pub(super) fn end_association(&mut self, at: usize, admin: ConnId, now: Instant) {
        let Some(mut ctrl) = self.controllers.get_mut(at).and_then(Option::take) else { return };
        if ctrl.admin == Some(admin) {
            ctrl.ending = true;
            self.drop_queues(&ctrl, now);
        }
        self.controllers[at] = Some(ctrl);
        self.mark_dirty(at);
    }

    /// Forgets a connection whose socket is gone and that has nothing in a volume.
    pub(super) fn reap(&mut self, id: ConnId) {
        let at = usize::from(id.slot);
        let Some(conn) = self.take(id) else { return };
        let slot = &mut self.conns[at];
        slot.generation = slot.generation.wrapping_add(1);
        self.free_conns.push(id.slot);
        if let Some(ctrl) = self.controllers.get_mut(conn.ctrl).and_then(Option::as_deref_mut) {
            ctrl.io.retain(|(_, queue)| *queue != id);
            if ctrl.admin == Some(id) {
                ctrl.admin = None;
                ctrl.event_requests.clear();
            }
            self.mark_dirty(conn.ctrl);
        }
    }

    /// Changes the ANA state of a namespace on this node; hosts are told.
    ///
    /// # Errors
    /// Where the subsystem or the namespace is not here.
    pub fn set_ana(
        &mut self,
        subnqn: &Nqn,
        nsid: u32,
        state: AnaState,
        now: Instant,
    ) -> Result<(), super::NamespaceError> {
        let at = self.find_subsystem(subnqn).ok_or(super::NamespaceError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at).ok_or(super::NamespaceError::NoSubsystem)?;
        let namespace = subsystem.namespace_mut(nsid).ok_or(super::NamespaceError::NoNamespace)?;
        if namespace.config.ana != state {
            namespace.config.ana = state;
            namespace.ana_changes += 1;
            subsystem.ana_changes += 1;
            self.for_controllers(Home::Subsystem(at), |ctrl| ctrl.ana_notice.pending = true);
            self.settle(now);
        }
        Ok(())
    }

    /// Changes every controller of a subsystem, and marks it dirty.
    pub(super) fn for_controllers(&mut self, home: Home, mut change: impl FnMut(&mut Controller)) {
        for at in 0..self.controllers.len() {
            if let Some(ctrl) = self.controllers[at].as_deref_mut()
                && ctrl.home == home
            {
                change(ctrl);
                self.mark_dirty(at);
            }
        }
    }
}

/// Whether two controllers belong to one host (by identifier; by name where that is zero) and one
/// subsystem.
fn same_host(a: &Controller, b: &Controller) -> bool {
    a.home == b.home && a.hostid == b.hostid && (a.hostid != [0; 16] || a.hostnqn == b.hostnqn)
}

/// The next event that is pending, wanted and not told yet; marks it told.
fn next_event(ctrl: &mut Controller) -> Option<AsyncEvent> {
    let wanted = ctrl.settings.events;
    let take = |notice: &mut Notice, bit: u32| {
        let due = notice.pending && !notice.told && wanted & bit != 0;
        notice.told |= due;
        due
    };
    if take(&mut ctrl.ana_notice, event_bit::ANA) {
        Some(AsyncEvent::ANA)
    } else if take(&mut ctrl.namespace_notice, event_bit::NAMESPACE) {
        Some(AsyncEvent::NAMESPACE)
    } else if take(&mut ctrl.discovery_notice, event_bit::DISCOVERY) {
        Some(AsyncEvent::DISCOVERY)
    } else {
        None
    }
}
