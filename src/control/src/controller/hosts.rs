//! Who may connect.

use super::volumes::existing;
use super::{Controller, HostList, Inner, VolumeHosts};
use crate::error::Result;
use crate::state::State;

impl Controller {
    /// Lets a host connect: to one volume, or to all without a list of their own. Returns whether
    /// that is new.
    ///
    /// # Errors
    /// No such volume, or the node does not take it.
    pub fn allow_host(&self, nqn: &str, volume: Option<&str>) -> Result<bool> {
        let mut inner = self.lock();
        if let Some(name) = volume {
            let mut volume = existing(inner.keeper.state(), name)?.clone();
            // The first entry of a volume's own list would otherwise shut out everybody else.
            let hosts = match &mut volume.hosts {
                Some(hosts) => hosts,
                none => none.insert(inner.keeper.state().hosts(&inner.file.security.hosts)),
            };
            if hosts.iter().any(|host| host == nqn) {
                return Ok(false);
            }
            hosts.push(nqn.to_owned());
            return self.update_locked(&mut inner, &volume).map(|()| true);
        }
        self.change_hosts(&mut inner, |state, file| {
            state.hosts_denied.remove(nqn);
            if !file.iter().any(|host| host == nqn) {
                state.hosts_allowed.insert(nqn.to_owned());
            }
        })
    }

    /// Lets a host no longer connect, and disconnects it. Returns whether it could before.
    ///
    /// # Errors
    /// No such volume, or the node does not take it.
    pub fn deny_host(&self, nqn: &str, volume: Option<&str>) -> Result<bool> {
        let mut inner = self.lock();
        if let Some(name) = volume {
            let mut volume = existing(inner.keeper.state(), name)?.clone();
            let mut hosts = volume
                .hosts
                .unwrap_or_else(|| inner.keeper.state().hosts(&inner.file.security.hosts));
            let before = hosts.len();
            hosts.retain(|host| host != nqn);
            let changed = hosts.len() != before;
            volume.hosts = Some(hosts);
            if !changed {
                return Ok(false);
            }
            return self.update_locked(&mut inner, &volume).map(|()| true);
        }
        self.change_hosts(&mut inner, |state, file| {
            state.hosts_allowed.remove(nqn);
            if file.iter().any(|host| host == nqn) {
                state.hosts_denied.insert(nqn.to_owned());
            }
        })
    }

    pub(super) fn change_hosts(
        &self,
        inner: &mut Inner,
        change: impl FnOnce(&mut State, &[String]),
    ) -> Result<bool> {
        let file = inner.file.security.hosts.clone();
        let before = inner.keeper.state().clone();
        inner.keeper.change(|state| change(state, &file))?;
        let hosts = inner.keeper.state().hosts(&file);
        if hosts == before.hosts(&file) {
            return Ok(false);
        }
        self.node.set_hosts(&hosts).or_else(|error| {
            inner.keeper.change(|state| *state = before)?;
            Err(error)
        })?;
        Ok(true)
    }

    /// Who may connect, and who has.
    ///
    /// # Errors
    /// See [`NodeControl::stat`].
    pub fn hosts(&self) -> Result<HostList> {
        let connected = self.node.stat()?.hosts;
        let inner = self.lock();
        let state = inner.keeper.state();
        Ok(HostList {
            allowed: state.hosts(&inner.file.security.hosts),
            any_host_from_loopback: inner.file.security.any_host_from_loopback,
            volumes: state
                .volumes
                .values()
                .filter_map(|kept| {
                    let hosts = kept.now.hosts.clone()?;
                    Some(VolumeHosts { volume: kept.now.name.clone(), hosts })
                })
                .collect(),
            connected,
        })
    }
}
