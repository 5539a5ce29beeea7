//! Long work: what it is, how far, how fast, what stalls it; waiting for it and cancelling it.

use crate::error::{ControlError, ErrorKind, Result};
use crate::value::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Most jobs that run at once.
pub const RUNNING_MAX: usize = 256;
/// Most finished jobs that are remembered.
pub const FINISHED_MAX: usize = 256;

/// What a job does; enough to begin it again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Work {
    /// Destage everything that is dirty.
    Drain {
        /// Of this volume.
        volume: String,
    },
    /// Switch the mode.
    SetMode {
        /// Of this volume.
        volume: String,
        /// To this mode.
        mode: Mode,
    },
    /// Stop serving, drain, forget.
    Delete {
        /// This volume.
        volume: String,
        /// Drop what is dirty instead of draining.
        discard_dirty: bool,
    },
    /// Check what the cache has of it, and repair what can be.
    Scrub {
        /// Of this volume.
        volume: String,
        /// Bytes a second at most.
        rate: u64,
    },
    /// Fetch what is pinned and not in the cache.
    Pin {
        /// Of this volume.
        volume: String,
    },
    /// Read the caches at start. The node's own; not begun by a command.
    Recovery,
}

impl Work {
    /// Its kind, for people.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Drain { .. } => "drain",
            Self::SetMode { .. } => "set-mode",
            Self::Delete { .. } => "delete",
            Self::Scrub { .. } => "scrub",
            Self::Pin { .. } => "pin",
            Self::Recovery => "recovery",
        }
    }

    /// Its volume.
    #[must_use]
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::Drain { volume }
            | Self::SetMode { volume, .. }
            | Self::Delete { volume, .. }
            | Self::Pin { volume }
            | Self::Scrub { volume, .. } => Some(volume),
            Self::Recovery => None,
        }
    }

    /// Whether the two cannot be under way at once: both are of one volume. A scrub, and fetching what
    /// is pinned, change nothing that others decide on and may take hours, so that only another of their
    /// kind has to wait for them.
    fn excludes(&self, other: &Self) -> bool {
        let aside = |work: &Self| match work {
            Self::Scrub { .. } | Self::Pin { .. } => Some(work.kind()),
            _ => None,
        };
        self.volume().is_some() && self.volume() == other.volume() && aside(self) == aside(other)
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Under way.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error; nothing is lost by it.
    Failed,
    /// Ended because somebody said so.
    Cancelled,
}

/// What a scrub found, in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Blocks that were looked at, good or not.
    pub checked: u64,
    /// Clean ones that were wrong: dropped, and fetched again from the backing store.
    pub repaired: u64,
    /// Dirty ones that are wrong: reads of them fail until they are written.
    pub damaged: u64,
    /// Dirty ones that the cache device did not give.
    pub unreadable: u64,
    /// Segments whose list of records is wrong: their blocks could not be checked.
    pub unchecked_segments: u64,
}

impl ScrubReport {
    /// Whether something is wrong that the scrub could not repair.
    #[must_use]
    pub const fn is_degraded(&self) -> bool {
        self.damaged > 0 || self.unreadable > 0 || self.unchecked_segments > 0
    }
}

impl core::fmt::Display for ScrubReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { checked, repaired, damaged, .. } = self;
        write!(f, "{checked} blocks checked, {repaired} repaired, {damaged} damaged")?;
        if self.unreadable > 0 {
            write!(f, ", {} not readable now", self.unreadable)?;
        }
        if self.unchecked_segments > 0 {
            write!(f, ", {} segments not checked", self.unchecked_segments)?;
        }
        Ok(())
    }
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its number; never used again.
    pub id: u64,
    /// What it does.
    pub work: Work,
    /// Where it is.
    pub state: JobState,
    /// Bytes at the most that were left; `None` until known.
    pub total_bytes: Option<u64>,
    /// Bytes left; `None` until known.
    pub left_bytes: Option<u64>,
    /// Bytes a second, lately.
    pub rate_bytes_per_s: f64,
    /// Seconds left at that rate; `None` where there is no rate.
    pub eta_s: Option<u64>,
    /// What stalls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it found, if it is a scrub: so far, or at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubReport>,
    /// Seconds since it began, or that it took.
    pub elapsed_s: f64,
}

struct Job {
    work: Work,
    state: JobState,
    total: Option<u64>,
    left: Option<u64>,
    rate: f64,
    sampled: Option<(Instant, u64)>,
    stall: Option<String>,
    error: Option<String>,
    scrub: Option<ScrubReport>,
    began: Instant,
    ended: Option<Instant>,
    cancel: Arc<AtomicBool>,
}

impl Job {
    fn new(work: Work) -> Self {
        Self {
            work,
            state: JobState::Running,
            total: None,
            left: None,
            rate: 0.0,
            sampled: None,
            stall: None,
            error: None,
            scrub: None,
            began: Instant::now(),
            ended: None,
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    fn view(&self, id: u64) -> JobView {
        let running = self.state == JobState::Running;
        let eta_s = match (running, self.left) {
            (true, Some(0)) => Some(0),
            (true, Some(left)) if self.rate >= 1.0 => {
                Duration::try_from_secs_f64(left as f64 / self.rate).ok().map(|eta| eta.as_secs())
            }
            _ => None,
        };
        JobView {
            id,
            work: self.work.clone(),
            state: self.state,
            total_bytes: self.total,
            left_bytes: self.left,
            rate_bytes_per_s: if running { self.rate } else { 0.0 },
            eta_s,
            stall: self.stall.clone(),
            error: self.error.clone(),
            scrub: self.scrub,
            elapsed_s: self
                .ended
                .map_or_else(|| self.began.elapsed(), |end| end - self.began)
                .as_secs_f64(),
        }
    }

    fn progress(&mut self, left: u64, stall: Option<String>) {
        // Samples nearer together than this only add noise to the rate.
        const SAMPLE_MIN: Duration = Duration::from_millis(200);
        // Weight of the newest sample: the rate follows a change within some seconds.
        const WEIGHT: f64 = 0.3;
        let now = Instant::now();
        match self.sampled {
            None => self.sampled = Some((now, left)),
            Some((then, before)) if now - then >= SAMPLE_MIN => {
                let rate = before.saturating_sub(left) as f64 / (now - then).as_secs_f64();
                self.rate =
                    if self.rate > 0.0 { self.rate + WEIGHT * (rate - self.rate) } else { rate };
                self.sampled = Some((now, left));
            }
            Some(_) => {}
        }
        self.total = Some(self.total.unwrap_or(0).max(left));
        self.left = Some(left);
        self.stall = stall;
    }
}

struct Inner {
    next: u64,
    jobs: BTreeMap<u64, Job>,
}

/// The end of a job, before anybody sees it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) id: u64,
    pub(crate) work: Work,
    pub(crate) state: JobState,
    error: Option<String>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Whoever writes ends down before they are seen.
    ends: Mutex<Option<Sender<Ended>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked left at worst one job's figures half updated.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All jobs. A clone is the same table.
#[derive(Clone)]
pub struct JobTable(Arc<Shared>);

impl Default for JobTable {
    fn default() -> Self {
        Self::new(1)
    }
}

impl JobTable {
    /// An empty table whose first job gets the number `next`.
    #[must_use]
    pub fn new(next: u64) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner { next, jobs: BTreeMap::new() }),
            changed: Condvar::new(),
            ends: Mutex::new(None),
        }))
    }

    /// From now on the ends of jobs arrive here, and are seen once they are settled. A job may end
    /// on any thread, a reactor's too, so what must be written first is written elsewhere.
    pub(crate) fn ends(&self) -> Receiver<Ended> {
        let (sender, receiver) = std::sync::mpsc::channel();
        *self.0.ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// The table, without keeping it alive.
    pub(crate) fn downgrade(&self) -> WeakTable {
        WeakTable(Arc::downgrade(&self.0))
    }

    fn settle(&self, ended: Ended) {
        if let Some(job) = self.0.lock().jobs.get_mut(&ended.id) {
            job.state = ended.state;
            job.ended = Some(Instant::now());
            job.error = ended.error;
            job.stall = None;
            if ended.state == JobState::Done {
                job.left = Some(0);
            }
        }
        self.0.changed.notify_all();
    }

    /// Begins a job. One job at a time may work on a volume, and a scrub and a pin besides.
    ///
    /// # Errors
    /// Busy, where the volume has one that runs (its number is named) or there are too many.
    pub fn begin(&self, work: Work) -> Result<JobHandle> {
        let id = self.0.lock().next;
        self.begin_as(id, work)
    }

    /// Begins a job under a number it had before a restart.
    ///
    /// # Errors
    /// As for [`JobTable::begin`].
    pub fn begin_as(&self, id: u64, work: Work) -> Result<JobHandle> {
        let mut inner = self.0.lock();
        let running = || inner.jobs.iter().filter(|(_, job)| job.state == JobState::Running);
        if running().count() >= RUNNING_MAX {
            return Err(ControlError::new(
                ErrorKind::Busy,
                format!("{RUNNING_MAX} jobs are running, as many as can"),
            )
            .remedy("wait for one, or cancel one: forebay job list"));
        }
        if let Some(volume) = work.volume()
            && let Some((id, job)) = running().find(|(_, job)| job.work.excludes(&work))
        {
            return Err(ControlError::new(
                ErrorKind::Busy,
                format!("job {id} ({}) is working on volume `{volume}`", job.work.kind()),
            )
            .remedy(format!("forebay job wait {id}, or forebay job cancel {id}")));
        }
        let job = Job::new(work);
        let cancel = Arc::clone(&job.cancel);
        // Taken again under the lock: two beginners may have seen the same number.
        let id = if inner.jobs.contains_key(&id) { inner.next } else { id };
        inner.next = inner.next.max(id + 1);
        inner.jobs.insert(id, job);
        let finished: Vec<u64> = inner
            .jobs
            .iter()
            .filter(|(_, job)| job.state != JobState::Running)
            .map(|(id, _)| *id)
            .collect();
        for id in finished.iter().rev().skip(FINISHED_MAX) {
            inner.jobs.remove(id);
        }
        Ok(JobHandle { id, table: self.clone(), cancel, finished: false })
    }

    /// Forgets a job that was refused before it did anything. Its number is not given again.
    pub(crate) fn withdraw(&self, id: u64) {
        self.0.lock().jobs.remove(&id);
        self.0.changed.notify_all();
    }

    /// The number that the next job gets.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.0.lock().next
    }

    /// Every job that runs or is remembered, by number.
    #[must_use]
    pub fn list(&self) -> Vec<JobView> {
        self.0.lock().jobs.iter().map(|(id, job)| job.view(*id)).collect()
    }

    /// The job of this number.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: u64) -> Result<JobView> {
        let inner = self.0.lock();
        let job = inner.jobs.get(&id).ok_or_else(|| ControlError::not_found("job", id))?;
        Ok(job.view(id))
    }

    /// Waits until the job has ended or the time is over, and gives the job as it then is.
    ///
    /// # Errors
    /// There is no such job.
    pub fn wait(&self, id: u64, timeout: Duration) -> Result<JobView> {
        let deadline = Instant::now() + timeout;
        let mut inner = self.0.lock();
        loop {
            let job = inner.jobs.get(&id).ok_or_else(|| ControlError::not_found("job", id))?;
            let left = deadline.saturating_duration_since(Instant::now());
            if job.state != JobState::Running || left.is_zero() {
                return Ok(job.view(id));
            }
            inner =
                self.0.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks a job to stop. It ends soon, as cancelled, or as done where it was done first.
    ///
    /// # Errors
    /// There is no such job, or it has ended, or it cannot be cancelled.
    pub fn cancel(&self, id: u64) -> Result<JobView> {
        let inner = self.0.lock();
        let job = inner.jobs.get(&id).ok_or_else(|| ControlError::not_found("job", id))?;
        if job.state != JobState::Running {
            return Err(ControlError::new(
                ErrorKind::Busy,
                format!("job {id} has ended already, as {:?}", job.state).to_lowercase(),
            ));
        }
        if job.work == Work::Recovery {
            return Err(ControlError::new(
                ErrorKind::Unsupported,
                format!("job {id} is the recovery of the caches: it cannot be cancelled"),
            ));
        }
        job.cancel.store(true, Ordering::Release);
        Ok(job.view(id))
    }
}

/// A [`JobTable`] that may be gone.
pub(crate) struct WeakTable(Weak<Shared>);

impl WeakTable {
    /// Lets everybody see an end.
    pub(crate) fn settle(&self, ended: Ended) {
        if let Some(shared) = self.0.upgrade() {
            JobTable(shared).settle(ended);
        }
    }
}

/// The right to report on a job, held by whoever carries it out. Dropped without an end, the job
/// has failed.
pub struct JobHandle {
    id: u64,
    table: JobTable,
    cancel: Arc<AtomicBool>,
    finished: bool,
}

impl JobHandle {
    /// Its number.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether it should stop. Look often.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// The flag that says so, for a thread or reactor that has not got the handle.
    #[must_use]
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Reports the bytes that are left, and what stalls it if something does. More bytes may be
    /// left than before: a drain under load gets new dirty data.
    pub fn progress(&self, left_bytes: u64, stall: Option<String>) {
        if let Some(job) = self.table.0.lock().jobs.get_mut(&self.id) {
            job.progress(left_bytes, stall);
        }
        self.table.0.changed.notify_all();
    }

    /// Reports what a scrub found so far.
    pub fn scrubbed(&self, report: ScrubReport) {
        if let Some(job) = self.table.0.lock().jobs.get_mut(&self.id) {
            job.scrub = Some(report);
        }
    }

    /// Ends it: well, as cancelled where that was asked and the result is an error, or with the
    /// error.
    pub fn finish(mut self, result: Result<()>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<()>) {
        self.finished = true;
        let (state, error) = match result {
            Ok(()) => (JobState::Done, None),
            Err(_) if self.is_cancelled() => (JobState::Cancelled, None),
            Err(error) => (JobState::Failed, Some(error.to_string())),
        };
        let work = self.table.0.lock().jobs.get(&self.id).map(|job| job.work.clone());
        let Some(work) = work else { return };
        let ended = Ended { id: self.id, work, state, error };
        let ends = self.table.0.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let unheard = match &*ends {
            Some(ends) => ends.send(ended).err().map(|unsent| unsent.0),
            None => Some(ended),
        };
        drop(ends);
        if let Some(ended) = unheard {
            self.table.settle(ended);
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Err(ControlError::failed("the node stopped working on it")));
        }
    }
}
