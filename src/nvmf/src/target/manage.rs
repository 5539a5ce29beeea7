//! Subsystems, namespaces, discovery and hosts as the shell changes them; lists for it to show.

use super::config::{
    AddSubsystemError, DiscoveryRecord, HostAccess, NamespaceConfig, NamespaceError,
    SubsystemConfig, check_blocks,
};
use super::conn::Home;
use super::stats::{ControllerInfo, HostInfo, NamespaceCounters, NamespaceLatency, TargetStats};
use super::subsystem::{Namespace, Subsystem, index};
use super::{ConnId, Target};
use forebay_io::{Buf, Instant};
use forebay_wire::Nqn;

impl<B: Buf> Target<B> {
    /// Adds a subsystem without namespaces.
    ///
    /// # Errors
    /// Where one of that name exists, or the name is the discovery subsystem's.
    pub fn add_subsystem(&mut self, config: SubsystemConfig) -> Result<(), AddSubsystemError> {
        if config.nqn.is_discovery() {
            return Err(AddSubsystemError::Discovery);
        }
        if self.find_subsystem(&config.nqn).is_some() {
            return Err(AddSubsystemError::Exists);
        }
        let subsystem = Some(Subsystem::new(config));
        // A slot is used again only once no controller of its former owner drains any more.
        let free = (0..self.subsystems.len()).find(|at| {
            let home = Home::Subsystem(*at);
            self.subsystems[*at].is_none()
                && !self.controllers.iter().flatten().any(|ctrl| ctrl.home == home)
        });
        match free {
            Some(at) => self.subsystems[at] = subsystem,
            None => self.subsystems.push(subsystem),
        }
        Ok(())
    }

    /// Removes a subsystem with its namespaces; its associations end. Whether it was here.
    pub fn remove_subsystem(&mut self, nqn: &Nqn, now: Instant) -> bool {
        let Some(at) = self.find_subsystem(nqn) else { return false };
        self.subsystems[at] = None;
        self.end_all(now, |target, ctrl| {
            target.home_of_controller(ctrl) == Some(Home::Subsystem(at))
        });
        true
    }

    /// Changes who may connect to a subsystem; associations of hosts that may not any more end.
    /// Whether the subsystem is here.
    pub fn set_hosts(&mut self, nqn: &Nqn, hosts: HostAccess, now: Instant) -> bool {
        let Some(at) = self.find_subsystem(nqn) else { return false };
        let Some(subsystem) = self.subsystem_mut(at) else { return false };
        subsystem.config.hosts = hosts.clone();
        self.end_all(now, |target, ctrl| {
            target.controllers[ctrl].as_deref().is_some_and(|ctrl| {
                ctrl.home == Home::Subsystem(at) && !hosts.allows(&ctrl.hostnqn)
            })
        });
        true
    }

    /// Ends the association with this controller identifier. Whether it is here.
    pub fn disconnect(&mut self, cntlid: u16, now: Instant) -> bool {
        let before = self.controllers.iter().flatten().filter(|c| c.cntlid == cntlid).count();
        self.end_all(now, |target, ctrl| {
            target.controllers[ctrl].as_deref().is_some_and(|ctrl| ctrl.cntlid == cntlid)
        });
        before > 0
    }

    fn end_all(&mut self, now: Instant, which: impl Fn(&Self, usize) -> bool) {
        for at in 0..self.controllers.len() {
            if which(self, at) {
                self.end_controller(at, now);
            }
        }
        self.settle(now);
    }

    /// Ends an association from this side: closes its admin queue, and with it the others.
    pub(super) fn end_controller(&mut self, at: usize, now: Instant) {
        let admin = self.controllers.get(at).and_then(Option::as_deref).and_then(|c| c.admin);
        if let Some(admin) = admin {
            self.end_association(at, admin, now);
            self.close_now(admin, now);
        }
    }

    /// Adds a namespace; hosts are told.
    ///
    /// # Errors
    /// Where the subsystem is not here, the identifier is in use, or a field is wrong; nothing
    /// changes.
    pub fn add_namespace(
        &mut self,
        subnqn: &Nqn,
        config: NamespaceConfig,
        now: Instant,
    ) -> Result<(), NamespaceError> {
        config.check()?;
        let at = self.find_subsystem(subnqn).ok_or(NamespaceError::NoSubsystem)?;
        let place = index(config.nsid).ok_or(NamespaceError::Nsid)?;
        let subsystem = self.subsystem_mut(at).ok_or(NamespaceError::NoSubsystem)?;
        if subsystem.namespaces.len() <= place {
            subsystem.namespaces.resize_with(place + 1, || None);
        }
        if subsystem.namespaces[place].is_some() {
            return Err(NamespaceError::InUse);
        }
        let nsid = config.nsid;
        let counters = NamespaceCounters::default();
        let latency = Box::default();
        subsystem.namespaces[place] = Some(Namespace { config, counters, latency, ana_changes: 0 });
        subsystem.ana_changes += 1;
        self.namespace_changed(at, nsid, now);
        Ok(())
    }

    /// Removes a namespace; hosts are told. Commands in its volume still complete.
    ///
    /// # Errors
    /// Where the subsystem or the namespace is not here.
    pub fn remove_namespace(
        &mut self,
        subnqn: &Nqn,
        nsid: u32,
        now: Instant,
    ) -> Result<(), NamespaceError> {
        let at = self.find_subsystem(subnqn).ok_or(NamespaceError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at).ok_or(NamespaceError::NoSubsystem)?;
        let slot = index(nsid).and_then(|place| subsystem.namespaces.get_mut(place));
        let slot = slot.filter(|slot| slot.is_some()).ok_or(NamespaceError::NoNamespace)?;
        *slot = None;
        subsystem.ana_changes += 1;
        self.namespace_changed(at, nsid, now);
        Ok(())
    }

    /// Changes the size of a namespace, in blocks; hosts are told.
    ///
    /// # Errors
    /// Where the subsystem or the namespace is not here, or the size is 0.
    pub fn resize_namespace(
        &mut self,
        subnqn: &Nqn,
        nsid: u32,
        blocks: u64,
        now: Instant,
    ) -> Result<(), NamespaceError> {
        check_blocks(blocks)?;
        let at = self.find_subsystem(subnqn).ok_or(NamespaceError::NoSubsystem)?;
        let subsystem = self.subsystem_mut(at).ok_or(NamespaceError::NoSubsystem)?;
        let namespace = subsystem.namespace_mut(nsid).ok_or(NamespaceError::NoNamespace)?;
        namespace.config.blocks = blocks;
        self.namespace_changed(at, nsid, now);
        Ok(())
    }

    fn namespace_changed(&mut self, at: usize, nsid: u32, now: Instant) {
        self.for_controllers(Home::Subsystem(at), |ctrl| {
            ctrl.note_changed(nsid);
            ctrl.ana_notice.pending = true;
        });
        self.settle(now);
    }

    /// Replaces the discovery log; hosts that watch it are told.
    pub fn set_discovery(&mut self, records: Vec<DiscoveryRecord>, now: Instant) {
        if self.discovery == records {
            return;
        }
        self.discovery = records;
        self.discovery_generation += 1;
        self.for_controllers(Home::Discovery, |ctrl| ctrl.discovery_notice.pending = true);
        self.settle(now);
    }

    /// Counters since the target began.
    #[must_use]
    pub const fn stats(&self) -> &TargetStats {
        &self.stats
    }

    /// Counters of a namespace.
    #[must_use]
    pub fn namespace_counters(&self, subnqn: &Nqn, nsid: u32) -> Option<NamespaceCounters> {
        let at = self.find_subsystem(subnqn)?;
        self.subsystem(at)?.namespace(nsid).map(|namespace| namespace.counters)
    }

    /// How long the commands of a namespace took, of those whose end [`Target::measure`] knows.
    #[must_use]
    pub fn namespace_latency(&self, subnqn: &Nqn, nsid: u32) -> Option<&NamespaceLatency> {
        let at = self.find_subsystem(subnqn)?;
        self.subsystem(at)?.namespace(nsid).map(|namespace| &*namespace.latency)
    }

    /// Every controller, those whose association is over but not drained included.
    pub fn controllers(&self) -> impl Iterator<Item = ControllerInfo> + '_ {
        self.controllers.iter().flatten().map(|ctrl| {
            let subnqn = match ctrl.home {
                Home::Discovery => None,
                Home::Subsystem(at) => self.subsystem(at).map(|s| s.config.nqn.clone()),
            };
            let queues = ctrl.admin.iter().map(|id| (0, *id)).chain(ctrl.io.iter().copied());
            ControllerInfo {
                cntlid: ctrl.cntlid,
                subnqn,
                host: HostInfo { nqn: ctrl.hostnqn.clone(), id: ctrl.hostid },
                ready: ctrl.ready(),
                held: ctrl.held,
                kato_ms: ctrl.kato,
                queues: queues
                    .filter_map(|(qid, id)| {
                        self.conn(id).map(|conn| (qid, id, conn.stats, conn.admitted))
                    })
                    .collect(),
            }
        })
    }

    /// Requests of all connections that are in volumes.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.conns
            .iter()
            .filter_map(|slot| slot.conn.as_deref())
            .map(|conn| u64::from(conn.admitted))
            .sum()
    }

    /// Every connection that has a socket.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.conns.iter().filter_map(|slot| slot.conn.as_deref()).filter(|c| !c.dead).map(|c| c.id)
    }

    fn home_of_controller(&self, at: usize) -> Option<Home> {
        self.controllers.get(at)?.as_deref().map(|ctrl| ctrl.home)
    }

    pub(super) fn find_subsystem(&self, nqn: &Nqn) -> Option<usize> {
        self.subsystems
            .iter()
            .position(|s| s.as_ref().is_some_and(|subsystem| subsystem.config.nqn == *nqn))
    }

    pub(super) fn subsystem(&self, at: usize) -> Option<&Subsystem> {
        self.subsystems.get(at)?.as_ref()
    }

    pub(super) fn subsystem_mut(&mut self, at: usize) -> Option<&mut Subsystem> {
        self.subsystems.get_mut(at)?.as_mut()
    }

    pub(super) fn namespace_of(&self, home: Home, nsid: u32) -> Option<&Namespace> {
        let Home::Subsystem(at) = home else { return None };
        self.subsystem(at)?.namespace(nsid)
    }

    pub(super) fn namespace_of_mut(&mut self, home: Home, nsid: u32) -> Option<&mut Namespace> {
        let Home::Subsystem(at) = home else { return None };
        self.subsystem_mut(at)?.namespace_mut(nsid)
    }
}
