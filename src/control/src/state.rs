//! What commands have changed: a JSON file in the state directory, beside the TOML file, which no
//! command ever writes.
//!
//! For each volume both what it is now and what the file last said of it are kept. At start the
//! three are merged key by key: a key that was edited in the file since then takes the file's
//! value, every other keeps what commands made of it. A volume leaves only by command.

use crate::config::{ServeConfig, VolumeConfig};
use crate::error::{ControlError, ErrorKind, Result};
use crate::files;
use crate::jobs::Work;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The name of the file in the state directory.
pub const STATE_FILE: &str = "state.json";
/// The version of its format that is written, and the only one that is read.
pub const STATE_VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`STATE_VERSION`].
    pub schema_version: u32,
    /// The number of the next job.
    pub next_job: u64,
    /// Jobs that were running, to be begun again.
    pub jobs: Vec<KeptJob>,
    /// Every volume there is.
    pub volumes: BTreeMap<String, KeptVolume>,
    /// Volumes of the file that a command has deleted.
    pub deleted: BTreeSet<String>,
    /// Hosts that a command has allowed.
    pub hosts_allowed: BTreeSet<String>,
    /// Hosts of the file that a command has denied.
    pub hosts_denied: BTreeSet<String>,
}

/// A running job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptJob {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub work: Work,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptVolume {
    /// As it is now.
    pub now: VolumeConfig,
    /// As the file last described it; `None` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<VolumeConfig>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            schema_version: STATE_VERSION,
            next_job: 1,
            jobs: Vec::new(),
            volumes: BTreeMap::new(),
            deleted: BTreeSet::new(),
            hosts_allowed: BTreeSet::new(),
            hosts_denied: BTreeSet::new(),
        }
    }
}

impl State {
    /// Reads the state of a directory; the default one where there is no file.
    ///
    /// # Errors
    /// A file that cannot be read or is not what was written. It is left as it is.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE_FILE);
        let unreadable =
            |why: String| ControlError::failed(format!("the state file {} {why}", path.display()));
        let bytes = files::read_bounded(&path)
            .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        let Some(bytes) = bytes else { return Ok(Self::default()) };
        let version = serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .and_then(|value| value.get("schema_version")?.as_u64());
        if let Some(version) = version.filter(|version| *version != u64::from(STATE_VERSION)) {
            return Err(unreadable(format!(
                "has version {version}; this program reads {STATE_VERSION}"
            ))
            .remedy("start the version of forebay that wrote it"));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            unreadable(format!("is damaged: {error}")).remedy(
                "nothing was changed. Put back a copy of it; or move it away: volumes and hosts \
                 made by command are then forgotten, those of the configuration file are not",
            )
        })
    }

    /// Writes the state: fsync and rename, so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// Those of the system; the old state is then still there.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE_FILE);
        let failed = |why: &dyn std::fmt::Display| {
            ControlError::failed(format!(
                "the state file {} cannot be written: {why}",
                path.display()
            ))
            .remedy("make room or repair the file system; nothing was changed")
        };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| failed(&error))?;
        bytes.push(b'\n');
        files::replace(&path, &bytes).map_err(|error| failed(&error))
    }

    /// Takes over what the configuration file says that it did not say before.
    ///
    /// # Errors
    /// A change to a volume that cannot be made; nothing is then taken over.
    pub fn adopt(&mut self, file: &ServeConfig) -> Result<()> {
        for volume in file.volumes.iter().filter(|v| !self.deleted.contains(&v.name)) {
            if let Some(kept) = self.volumes.get(&volume.name) {
                check_fixed(&kept.now, volume)?;
            }
        }
        for kept in self.volumes.values_mut() {
            if !file.volumes.iter().any(|volume| volume.name == kept.now.name) {
                kept.file = None;
            }
        }
        for volume in &file.volumes {
            if self.deleted.contains(&volume.name) {
                continue;
            }
            match self.volumes.get_mut(&volume.name) {
                Some(kept) => kept.adopt(volume),
                None => {
                    let kept = KeptVolume { now: volume.clone(), file: Some(volume.clone()) };
                    self.volumes.insert(volume.name.clone(), kept);
                }
            }
        }
        // A name that has left the file means nothing any more if it comes back.
        self.deleted.retain(|name| file.volumes.iter().any(|volume| volume.name == *name));
        self.hosts_denied.retain(|nqn| file.security.hosts.contains(nqn));
        self.hosts_allowed.retain(|nqn| !file.security.hosts.contains(nqn));
        Ok(())
    }

    /// Hosts that may connect to volumes without a list of their own.
    #[must_use]
    pub fn hosts(&self, file: &[String]) -> Vec<String> {
        let all: BTreeSet<&String> = file.iter().chain(&self.hosts_allowed).collect();
        all.into_iter().filter(|nqn| !self.hosts_denied.contains(*nqn)).cloned().collect()
    }

    /// The file's configuration with everything that commands have changed.
    #[must_use]
    pub fn effective(&self, file: &ServeConfig) -> ServeConfig {
        let mut config = file.clone();
        config.security.hosts = self.hosts(&file.security.hosts);
        // In the order of the file, then by name.
        let in_file: Vec<&VolumeConfig> = file
            .volumes
            .iter()
            .filter_map(|volume| self.volumes.get(&volume.name).map(|kept| &kept.now))
            .collect();
        let others = self
            .volumes
            .values()
            .map(|kept| &kept.now)
            .filter(|volume| !file.volumes.iter().any(|other| other.name == volume.name));
        config.volumes = in_file.into_iter().chain(others).cloned().collect();
        config
    }
}

/// What is fixed when a volume is made: hosts have built on it.
///
/// # Errors
/// The first key that differs.
pub fn check_fixed(now: &VolumeConfig, wanted: &VolumeConfig) -> Result<()> {
    let fixed = |key: &str, now: String, wanted_value: String| {
        if now == wanted_value {
            return Ok(());
        }
        Err(ControlError::new(
            ErrorKind::Invalid,
            format!("`{key}` of volume `{}` cannot be changed once it is made", wanted.name),
        )
        .field(key)
        .value(wanted_value)
        .accepted(now)
        .remedy("put the old value back, or delete the volume and make it again"))
    };
    fixed("block_size", now.block_size.to_string(), wanted.block_size.to_string())?;
    fixed("subsystem", now.subsystem_name().to_owned(), wanted.subsystem_name().to_owned())
}

impl KeptVolume {
    fn adopt(&mut self, file: &VolumeConfig) {
        let before = self.file.replace(file.clone());
        let now = &mut self.now;
        macro_rules! merge {
            ($($key:ident),+) => {
                $(if before.as_ref().is_none_or(|before| before.$key != file.$key) {
                    now.$key.clone_from(&file.$key);
                })+
            };
        }
        merge!(backing, mode, hosts, dirty_max, dirty_age_max, memory_tier, cache_min, cache_max);
        merge!(batch_max, batch_age_max, ordered_journal, pin);
    }
}

/// The state file of a running node.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    state: State,
}

impl Keeper {
    pub(crate) fn new(dir: PathBuf, state: State) -> Self {
        Self { dir, state }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state and writes it; on an error the state is as before.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.clone();
        let value = change(&mut state);
        if state != self.state {
            state.save(&self.dir)?;
            self.state = state;
        }
        Ok(value)
    }
}
