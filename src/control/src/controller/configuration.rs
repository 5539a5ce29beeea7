//! The configuration file against what the node runs with.

use super::volumes::existing;
use super::{Applied, Controller};
use crate::config::{self, ServeConfig, VolumeConfig};
use crate::error::Result;
use crate::plan::{Action, Difference, changed, differences};
use crate::state::State;
use std::collections::BTreeSet;
use std::path::Path;

impl Controller {
    /// What the node runs with, as a configuration.
    #[must_use]
    pub fn effective(&self) -> ServeConfig {
        let inner = self.lock();
        inner.keeper.state().effective(&inner.file)
    }

    /// The file that the node was started with, read again; a quickstart has none and gives what
    /// it started from.
    ///
    /// # Errors
    /// A file that cannot be read, or is wrong.
    pub fn read_own_file(&self) -> Result<ServeConfig> {
        let origin = self.lock().file.origin.clone();
        match origin {
            config::Origin::File(path) => config::read_file(&path),
            config::Origin::Quickstart(dir) => Ok(ServeConfig::quickstart(Path::new(&dir))),
        }
    }

    /// How `file` differs from what the node runs with.
    #[must_use]
    pub fn diff(&self, file: &ServeConfig) -> Vec<Difference> {
        differences(file, &self.effective())
    }

    /// Makes the node what `file` says, as far as that can be done while it runs. `own` says that
    /// it is the file the node starts from: what it says is then remembered as said by it.
    ///
    /// # Errors
    /// The first step that fails; those before it stay done.
    pub fn apply(&self, file: &ServeConfig, own: bool) -> Result<Applied> {
        let mut inner = self.lock();
        let now = inner.keeper.state().effective(&inner.file);
        let (changes, remaining): (Vec<_>, Vec<_>) =
            differences(file, &now).into_iter().partition(|d| d.action.applies());
        let mut jobs = Vec::new();
        let wanted: BTreeSet<String> = file.security.hosts.iter().cloned().collect();
        self.change_hosts(&mut inner, |state, at_start| {
            let at_start: BTreeSet<String> = at_start.iter().cloned().collect();
            state.hosts_allowed = wanted.difference(&at_start).cloned().collect();
            state.hosts_denied = at_start.difference(&wanted).cloned().collect();
        })?;
        for volume in &file.volumes {
            let of_volume = |d: &&Difference| d.volume.as_ref() == Some(&volume.name);
            if !changes.iter().any(|d| of_volume(&d)) {
                continue;
            }
            if changes.iter().filter(of_volume).any(|d| d.action == Action::Create) {
                self.create_locked(&mut inner, volume)?;
                continue;
            }
            let current = existing(inner.keeper.state(), &volume.name)?.clone();
            self.update_locked(&mut inner, &changed(&current, volume))?;
            if current.mode != volume.mode {
                jobs.push(self.set_mode_locked(&mut inner, &volume.name, volume.mode)?);
            }
        }
        if own {
            inner.keeper.change(|state| said_by_file(state, file))?;
            inner.file.volumes.clone_from(&file.volumes);
        }
        Ok(Applied { changed: changes, remaining, jobs })
    }
}

/// Remembers what the node's own file says of each volume.
fn said_by_file(state: &mut State, file: &ServeConfig) {
    for volume in &file.volumes {
        state.deleted.remove(&volume.name);
        if let Some(kept) = state.volumes.get_mut(&volume.name) {
            // Devices that differ wait for the restart, which adopts what is new.
            let before = kept.file.as_ref().unwrap_or(&kept.now);
            let backing = before.backing.clone();
            let waits = kept.now.ordered_journal != volume.ordered_journal;
            let journal = if waits { &before.ordered_journal } else { &volume.ordered_journal };
            let ordered_journal = journal.clone();
            kept.file = Some(VolumeConfig { backing, ordered_journal, ..volume.clone() });
        }
    }
}
