//! Following a job: a bar on a terminal, one JSON value a line elsewhere.

use crate::cli::{Format, Wait};
use crate::output;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::jobs::{JobState, JobView};
use forebay_control::rpc::Client;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::time::{Duration, Instant};

/// How often progress is shown.
const TICK: Duration = Duration::from_secs(1);

/// Follows the job that a command began, as far as the command line asks for it.
pub(crate) fn follow(client: &mut Client, format: Format, id: u64, wait: &Wait) -> Result<()> {
    if wait.no_wait {
        let job: JobView = client.get("job_wait", json!({ "id": id, "timeout_s": 0 }))?;
        return output::show(format, &job, |job| {
            format!("job {} ({}) has begun; forebay job wait {}", job.id, job.work.kind(), job.id)
        });
    }
    wait_for(client, format, id, wait.timeout.map(forebay_control::value::Span::duration))
}

/// Waits for a job.
///
/// # Errors
/// The job failed or was cancelled, or the time is over and it goes on.
pub(crate) fn wait_for(
    client: &mut Client,
    format: Format,
    id: u64,
    timeout: Option<Duration>,
) -> Result<()> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let bar = output::is_watched(format).then(new_bar);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let over = left.is_some_and(|left| left < TICK);
        let job: JobView =
            client.get("job_wait", json!({ "id": id, "timeout_s": u64::from(!over) }))?;
        match &bar {
            Some(bar) => show(bar, &job),
            None => output::line(&job)?,
        }
        if job.state != JobState::Running {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
                output::print(&ended(&job))?;
            }
            return verdict(&job);
        }
        if let (true, Some(left)) = (over, left) {
            // The rest of a second, then one look more.
            std::thread::sleep(left);
            if left.is_zero() {
                return Err(ControlError::new(
                    ErrorKind::TimedOut,
                    format!("job {id} is still running"),
                )
                .remedy(format!("forebay job wait {id}, or forebay job cancel {id}")));
            }
        }
    }
}

fn verdict(job: &JobView) -> Result<()> {
    let what = named(job);
    match job.state {
        JobState::Done | JobState::Running => match &job.scrub {
            Some(found) if found.is_degraded() => {
                let volume = job.work.volume().unwrap_or_default();
                let message = format!("{what}: {found}; this cannot be repaired from here");
                Err(ControlError::new(ErrorKind::Degraded, message).remedy(format!(
                    "forebay volume where {volume} --lba RANGE shows what is lost; writing it anew ends that"
                )))
            }
            _ => Ok(()),
        },
        JobState::Cancelled => Err(ControlError::failed(format!("{what} was cancelled"))),
        JobState::Failed => {
            let why = job.error.as_deref().unwrap_or("no cause is known");
            Err(ControlError::failed(format!("{what} failed: {why}")))
        }
    }
}

/// The job in a few words.
pub(crate) fn named(job: &JobView) -> String {
    match job.work.volume() {
        Some(volume) => format!("job {} ({} of {volume})", job.id, job.work.kind()),
        None => format!("job {} ({})", job.id, job.work.kind()),
    }
}

fn ended(job: &JobView) -> String {
    let found = job.scrub.map_or_else(String::new, |found| format!(", {found}"));
    format!("{}: {:?} after {:.1} s{found}", named(job), job.state, job.elapsed_s)
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {msg}",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn show(bar: &ProgressBar, job: &JobView) {
    bar.set_prefix(named(job));
    if let (Some(total), Some(left)) = (job.total_bytes, job.left_bytes) {
        bar.set_length(total);
        bar.set_position(total.saturating_sub(left));
    }
    bar.set_message(speed(job));
}

/// The same, and what it found.
pub(crate) fn doing(job: &JobView) -> String {
    let found = job.scrub.map(|found| found.to_string());
    let parts: Vec<String> = found.into_iter().chain([speed(job)]).collect();
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Rate, time left and what stalls it, for people.
pub(crate) fn speed(job: &JobView) -> String {
    let mut parts = Vec::new();
    if job.rate_bytes_per_s >= 1.0 {
        let rate = job.rate_bytes_per_s / f64::from(1 << 20);
        parts.push(format!("{rate:.1} MiB/s"));
    }
    if let Some(eta) = job.eta_s {
        parts.push(format!("{} left", output::seconds(eta)));
    }
    if let Some(stall) = &job.stall {
        parts.push(format!("stalled: {stall}"));
    }
    parts.join(", ")
}
