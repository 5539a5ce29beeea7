//! State file, jobs and node together: every command ends here.
//!
//! A change is written to the state file first and carried out then, so that a crash in between
//! repeats it at the next start; a refusal by the node takes it back.

use crate::config::{self, ServeConfig, VolumeConfig};
use crate::error::{ControlError, ErrorKind, Result};
use crate::jobs::{Ended, JobState, JobTable, JobView, Work};
use crate::node::{DeviceFault, LbaRange, Located, LostCache, NodeControl};
use crate::plan::{Action, Difference, changed, differences};
use crate::stat::{HostStat, NodeStat};
use crate::state::{Keeper, KeptJob, KeptVolume, State};
use crate::value::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Most volumes of a node.
pub const VOLUMES_MAX: usize = 4096;

/// A configuration whose state has been read and merged, before there is a node.
#[derive(Debug)]
pub struct Prepared {
    file: ServeConfig,
    state: State,
}

impl Prepared {
    /// Makes the state directory if need be, reads the state and takes over what is new in the
    /// configuration file.
    ///
    /// # Errors
    /// A state that cannot be read or written, or a change that cannot be made to a volume.
    pub fn load(file: ServeConfig) -> Result<Self> {
        let dir = &file.node.state_dir;
        std::fs::create_dir_all(dir).map_err(|error| {
            ControlError::failed(format!(
                "the state directory {} cannot be made: {error}",
                dir.display()
            ))
            .field("node.state_dir")
            .remedy("name a directory that this user may write, or make it: mkdir -p")
        })?;
        let before = State::load(dir)?;
        let mut state = before.clone();
        state.adopt(&file)?;
        if state != before {
            state.save(dir)?;
        }
        Ok(Self { file, state })
    }

    /// What the node starts with: the file and everything that commands have changed.
    #[must_use]
    pub fn effective(&self) -> ServeConfig {
        self.state.effective(&self.file)
    }

    /// The jobs of the node. Its own (recovery) may begin before there is a [`Controller`].
    #[must_use]
    pub fn job_table(&self) -> JobTable {
        JobTable::new(self.state.next_job)
    }
}

struct Inner {
    keeper: Keeper,
    /// The configuration file as it was at start; its volumes and hosts follow `config apply`.
    file: ServeConfig,
    /// Once the node stops, jobs that end have not ended: they go on at the next start.
    stopping: bool,
}

/// The commands. Shared by all connections of the control socket.
pub struct Controller {
    node: Arc<dyn NodeControl>,
    jobs: JobTable,
    inner: Mutex<Inner>,
}

/// What `host list` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostList {
    /// Hosts that may connect to every volume without a list of its own.
    pub allowed: Vec<String>,
    /// Whether any host may from a loopback address.
    pub any_host_from_loopback: bool,
    /// Volumes with lists of their own.
    pub volumes: Vec<VolumeHosts>,
    /// Hosts that are connected.
    pub connected: Vec<HostStat>,
}

/// A volume's own list of hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeHosts {
    /// The volume.
    pub volume: String,
    /// Its hosts.
    pub hosts: Vec<String>,
}

/// What `config apply` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Differences that are gone, or going with a job.
    pub changed: Vec<Difference>,
    /// Differences that stay.
    pub remaining: Vec<Difference>,
    /// Jobs that were begun: mode switches.
    pub jobs: Vec<u64>,
}

/// Changes of `volume set`; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// `cache_min`.
    pub cache_min: Option<crate::value::ByteSize>,
    /// `cache_max`.
    pub cache_max: Option<crate::value::ByteSize>,
    /// `dirty_max`.
    pub dirty_max: Option<crate::value::ByteSize>,
    /// `dirty_age_max`.
    pub dirty_age_max: Option<crate::value::Span>,
    /// `memory_tier`.
    pub memory_tier: Option<crate::value::ByteSize>,
}

impl Controller {
    /// Takes over the commands of a node that runs with [`Prepared::effective`].
    ///
    /// # Errors
    /// The thread that follows the jobs cannot be started.
    pub fn new(
        prepared: Prepared,
        jobs: JobTable,
        node: Arc<dyn NodeControl>,
    ) -> Result<Arc<Self>> {
        let dir = prepared.file.node.state_dir.clone();
        let inner = Inner {
            keeper: Keeper::new(dir, prepared.state),
            file: prepared.file,
            stopping: false,
        };
        let controller = Arc::new(Self { node, jobs, inner: Mutex::new(inner) });
        let ends = controller.jobs.ends();
        let (weak, table) = (Arc::downgrade(&controller), controller.jobs.downgrade());
        std::thread::Builder::new()
            .name("control-jobs".to_owned())
            .spawn(move || {
                while let Ok(ended) = ends.recv() {
                    Weak::upgrade(&weak).inspect(|controller| controller.job_ended(&ended));
                    table.settle(ended);
                }
            })
            .map_err(|error| ControlError::failed(format!("no thread for jobs: {error}")))?;
        Ok(controller)
    }

    /// Begins again what was running when the node stopped. Returns what could not be begun.
    pub fn resume(&self) -> Vec<(Work, ControlError)> {
        let jobs = self.lock().keeper.state().jobs.clone();
        let mut failed = Vec::new();
        for KeptJob { id, work } in jobs {
            let begun = self.jobs.begin_as(id, work.clone()).and_then(|job| self.run(&work, job));
            if let Err(error) = begun {
                failed.push((work, error));
            }
        }
        failed
    }

    /// The node is about to stop: jobs that end from now on are begun again at the next start.
    pub fn stop(&self) {
        self.lock().stopping = true;
    }

    /// The jobs.
    #[must_use]
    pub fn jobs(&self) -> &JobTable {
        &self.jobs
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state behind it is replaced whole, so a panicked thread left no half of one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, work: &Work, job: crate::JobHandle) -> Result<()> {
        match work {
            Work::Drain { volume } => self.node.drain(volume, job),
            Work::SetMode { volume, mode } => self.node.set_mode(volume, *mode, job),
            Work::Delete { volume, discard_dirty } => {
                self.node.delete_volume(volume, *discard_dirty, job)
            }
            Work::Recovery => Err(ControlError::failed("recovery is the node's own job")),
        }
    }

    /// Writes down that a job has ended, before anybody sees that it has.
    fn job_ended(&self, ended: &Ended) {
        let target = match &ended.work {
            Work::SetMode { volume, .. } if ended.state != JobState::Done => self
                .node
                .stat()
                .ok()
                .and_then(|stat| stat.volume(volume).map(|volume| volume.target_mode)),
            _ => None,
        };
        let mut inner = self.lock();
        if inner.stopping {
            return;
        }
        let file_names: BTreeSet<String> =
            inner.file.volumes.iter().map(|volume| volume.name.clone()).collect();
        let kept = inner.keeper.change(|state| {
            state.jobs.retain(|job| job.id != ended.id);
            match (&ended.work, ended.state) {
                (Work::Delete { volume, .. }, JobState::Done) => {
                    state.volumes.remove(volume);
                    if file_names.contains(volume) {
                        state.deleted.insert(volume.clone());
                    }
                }
                (Work::SetMode { volume, .. }, _) => {
                    if let (Some(mode), Some(kept)) = (target, state.volumes.get_mut(volume)) {
                        kept.now.mode = mode;
                    }
                }
                _ => {}
            }
        });
        if let Err(error) = kept {
            // The job is begun again at the next start, and ends at once.
            tracing::error!(job = ended.id, "{error}");
        }
    }

    /// Begins work on a volume: `intend` is written to the state file with the job, and taken back
    /// if the node refuses.
    fn begin(&self, inner: &mut Inner, work: Work, intend: impl FnOnce(&mut State)) -> Result<u64> {
        let job = self.jobs.begin(work.clone())?;
        let id = job.id();
        let before = inner.keeper.state().clone();
        let next_job = self.jobs.next_id();
        let begun = inner
            .keeper
            .change(|state| {
                intend(state);
                state.next_job = next_job;
                state.jobs.push(KeptJob { id, work: work.clone() });
            })
            .and_then(|()| self.run(&work, job));
        if let Err(error) = begun {
            inner.keeper.change(|state| *state = State { next_job, ..before })?;
            return Err(error);
        }
        Ok(id)
    }

    // ---- volumes

    /// Everything there is to know.
    ///
    /// # Errors
    /// See [`NodeControl::stat`].
    pub fn stat(&self) -> Result<NodeStat> {
        self.node.stat()
    }

    /// How a volume is configured now.
    ///
    /// # Errors
    /// No such volume.
    pub fn volume_config(&self, name: &str) -> Result<VolumeConfig> {
        existing(self.lock().keeper.state(), name).cloned()
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// The name or the backing device is taken, or see [`NodeControl::create_volume`].
    pub fn create_volume(&self, volume: &VolumeConfig) -> Result<()> {
        let mut inner = self.lock();
        self.create_locked(&mut inner, volume)
    }

    fn create_locked(&self, inner: &mut Inner, volume: &VolumeConfig) -> Result<()> {
        check_new(inner, volume)?;
        let before = inner.keeper.state().clone();
        inner.keeper.change(|state| {
            let kept = KeptVolume { now: volume.clone(), file: None };
            state.volumes.insert(volume.name.clone(), kept);
            // The file's volume of this name, if there is one, stays deleted: this is another.
            if inner.file.volumes.iter().any(|other| other.name == volume.name) {
                state.deleted.insert(volume.name.clone());
            }
        })?;
        self.node.create_volume(volume).or_else(|error| {
            inner.keeper.change(|state| *state = before)?;
            Err(error)
        })
    }

    /// Deletes a volume; the job's number.
    ///
    /// # Errors
    /// No such volume, busy, or see [`NodeControl::delete_volume`].
    pub fn delete_volume(&self, name: &str, discard_dirty: bool) -> Result<u64> {
        let mut inner = self.lock();
        existing(inner.keeper.state(), name)?;
        let work = Work::Delete { volume: name.to_owned(), discard_dirty };
        self.begin(&mut inner, work, |_| {})
    }

    /// Switches a volume's mode; the job's number.
    ///
    /// # Errors
    /// No such volume, busy, or see [`NodeControl::set_mode`].
    pub fn set_mode(&self, name: &str, mode: Mode) -> Result<u64> {
        let mut inner = self.lock();
        self.set_mode_locked(&mut inner, name, mode)
    }

    fn set_mode_locked(&self, inner: &mut Inner, name: &str, mode: Mode) -> Result<u64> {
        existing(inner.keeper.state(), name)?;
        let work = Work::SetMode { volume: name.to_owned(), mode };
        self.begin(inner, work, |state| {
            if let Some(kept) = state.volumes.get_mut(name) {
                kept.now.mode = mode;
            }
        })
    }

    /// Drains a volume; the job's number.
    ///
    /// # Errors
    /// No such volume, or busy.
    pub fn drain(&self, name: &str) -> Result<u64> {
        let mut inner = self.lock();
        existing(inner.keeper.state(), name)?;
        self.begin(&mut inner, Work::Drain { volume: name.to_owned() }, |_| {})
    }

    /// Changes limits of a volume. Returns how it is configured then.
    ///
    /// # Errors
    /// No such volume, limits that contradict each other, or see [`NodeControl::update_volume`].
    pub fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeConfig> {
        let mut inner = self.lock();
        let mut volume = existing(inner.keeper.state(), name)?.clone();
        macro_rules! take {
            ($($key:ident),+) => { $(if change.$key.is_some() { volume.$key = change.$key; })+ };
        }
        take!(cache_min, cache_max, dirty_max, dirty_age_max, memory_tier);
        if let (Some(min), Some(max)) = (volume.cache_min, volume.cache_max) {
            if min > max {
                return Err(ControlError::new(
                    ErrorKind::Invalid,
                    format!("volume `{name}` would have a smallest cache above its largest"),
                )
                .field("cache_min")
                .value(min)
                .accepted(format!("at most cache_max = {max}")));
            }
        }
        self.update_locked(&mut inner, &volume)?;
        Ok(volume)
    }

    fn update_locked(&self, inner: &mut Inner, volume: &VolumeConfig) -> Result<()> {
        let before = existing(inner.keeper.state(), &volume.name)?.clone();
        if before == *volume {
            return Ok(());
        }
        let put = |inner: &mut Inner, volume: &VolumeConfig| {
            inner.keeper.change(|state| {
                if let Some(kept) = state.volumes.get_mut(&volume.name) {
                    kept.now = volume.clone();
                }
            })
        };
        put(inner, volume)?;
        self.node.update_volume(volume).or_else(|error| {
            put(inner, &before)?;
            Err(error)
        })
    }

    /// Which copy is current, and where.
    ///
    /// # Errors
    /// See [`NodeControl::locate`].
    pub fn locate(&self, name: &str, range: LbaRange, pieces_max: usize) -> Result<Vec<Located>> {
        self.node.locate(name, range, pieces_max)
    }

    /// What went with a lost cache; with `commit` the volume goes on without it.
    ///
    /// # Errors
    /// See [`NodeControl::recover_lost_cache`].
    pub fn recover_lost_cache(&self, name: &str, commit: bool) -> Result<LostCache> {
        let inner = self.lock();
        existing(inner.keeper.state(), name)?;
        self.node.recover_lost_cache(name, commit)
    }

    /// Injects a fault.
    ///
    /// # Errors
    /// See [`NodeControl::inject_fault`].
    pub fn inject_fault(&self, fault: &DeviceFault) -> Result<()> {
        self.node.inject_fault(fault)
    }

    // ---- hosts

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

    fn change_hosts(
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

    // ---- configuration

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

    /// The jobs, by number.
    #[must_use]
    pub fn job_list(&self) -> Vec<JobView> {
        self.jobs.list()
    }
}

/// Remembers what the node's own file says of each volume.
fn said_by_file(state: &mut State, file: &ServeConfig) {
    for volume in &file.volumes {
        state.deleted.remove(&volume.name);
        if let Some(kept) = state.volumes.get_mut(&volume.name) {
            // A backing device that differs waits for the restart, which adopts what is new.
            let backing = kept.file.as_ref().unwrap_or(&kept.now).backing.clone();
            kept.file = Some(VolumeConfig { backing, ..volume.clone() });
        }
    }
}

fn existing<'s>(state: &'s State, name: &str) -> Result<&'s VolumeConfig> {
    match state.volumes.get(name) {
        Some(kept) => Ok(&kept.now),
        None => {
            let error = ControlError::not_found("volume", name);
            let names: Vec<&str> = state.volumes.keys().map(String::as_str).collect();
            Err(match crate::value::nearest(name, &names) {
                Some(near) => error.remedy(format!("did you mean `{near}`?")),
                None => error,
            })
        }
    }
}

/// What a new volume must not share with those there are.
fn check_new(inner: &Inner, volume: &VolumeConfig) -> Result<()> {
    let state = inner.keeper.state();
    if state.volumes.contains_key(&volume.name) {
        return Err(ControlError::new(
            ErrorKind::Exists,
            format!("there is a volume `{}` already", volume.name),
        )
        .field("name")
        .remedy("choose another name, or see `forebay volume show`"));
    }
    if state.volumes.len() >= VOLUMES_MAX {
        return Err(ControlError::new(
            ErrorKind::Busy,
            format!("there are {VOLUMES_MAX} volumes, as many as a node can have"),
        ));
    }
    let others: Vec<VolumeConfig> = state.volumes.values().map(|kept| kept.now.clone()).collect();
    config::check_volume(&inner.file, &others, volume)
}
