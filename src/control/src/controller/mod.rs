//! State file, jobs and node together: every command ends here.
//!
//! A change is written to the state file first and carried out then, so that a crash in between
//! repeats it at the next start; a refusal by the node takes it back.

mod configuration;
mod hosts;
mod volumes;

use crate::config::ServeConfig;
use crate::error::{ControlError, Result};
use crate::jobs::{Ended, JobState, JobTable, JobView, Work};
use crate::node::NodeControl;
use crate::plan::Difference;
use crate::stat::HostStat;
use crate::state::{Keeper, KeptJob, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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
    /// `batch_max`.
    pub batch_max: Option<crate::value::ByteSize>,
    /// `batch_age_max`.
    pub batch_age_max: Option<crate::value::Span>,
    /// `ordered_journal`: for a volume in write-back-ordered that has none.
    pub ordered_journal: Option<String>,
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
                self.jobs.withdraw(id);
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
            Work::Scrub { volume, rate } => self.node.scrub(volume, *rate, job),
            Work::Pin { volume } => self.node.pin(volume, job),
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
            self.jobs.withdraw(id);
            inner.keeper.change(|state| *state = State { next_job, ..before })?;
            return Err(error);
        }
        Ok(id)
    }

    /// The jobs, by number.
    #[must_use]
    pub fn job_list(&self) -> Vec<JobView> {
        self.jobs.list()
    }
}
