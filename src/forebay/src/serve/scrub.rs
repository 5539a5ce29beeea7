//! Scrubbing a volume: its engine does it, a job follows.

use super::attach::engine_error;
use super::follow::cancelled;
use super::node::Node;
use super::registry::Served;
use forebay_cache::engine::{ScrubState, ScrubStatus};
use forebay_control::error::{ControlError, Result};
use forebay_control::jobs::{JobHandle, ScrubReport};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often the job looks how far the scrub is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn shown(status: &ScrubStatus) -> ScrubReport {
    let report = status.report;
    ScrubReport {
        checked: report.checked,
        repaired: report.repaired,
        damaged: report.damaged,
        unreadable: report.unreadable,
        unchecked_segments: report.footers,
    }
}

impl Node {
    /// Begins to scrub a volume; the job ends when everything was looked at.
    pub(crate) fn scrub(self: &Arc<Self>, name: &str, rate: u64, job: JobHandle) -> Result<()> {
        let served = self.lock().registry.find(name)?.clone();
        let (id, engine) = (served.id, served.engine);
        self.reactors.call(served.reactor, move |service, context| {
            let Some(part) = service.shard.engine(engine) else {
                return Err(ControlError::failed("the cache of this volume is not served"));
            };
            part.scrub(id, rate).map_err(engine_error)?;
            service.kick(context.now);
            Ok(())
        })??;
        let node = Arc::clone(self);
        let body = move || {
            let result = node.follow_scrub(&served, &job);
            if let Ok(report) = &result {
                let volume = &served.config.name;
                if report.is_degraded() {
                    tracing::error!(volume, "scrub: {report}");
                } else {
                    tracing::info!(volume, "scrub: {report}");
                }
            }
            job.finish(result.map(|_| ()));
        };
        // Without a thread the handle is dropped, and the job has failed.
        let _ = thread::Builder::new().name("job".to_owned()).spawn(body);
        Ok(())
    }

    fn follow_scrub(&self, served: &Served, job: &JobHandle) -> Result<ScrubReport> {
        let gone = || ControlError::failed("the volume left its cache while it was scrubbed");
        let (id, engine) = (served.id, served.engine);
        loop {
            let status = self.reactors.call(served.reactor, move |service, _| {
                service.shard.engine(engine).and_then(|part| part.scrub_status(id))
            })?;
            let status = status.ok_or_else(gone)?;
            let report = shown(&status);
            job.scrubbed(report);
            let waits = (status.state == ScrubState::Waiting)
                .then(|| "another volume of the same cache is scrubbed first".to_owned());
            job.progress(status.left_bytes, waits);
            let end = match status.state {
                ScrubState::Done => Some(Ok(report)),
                ScrubState::CacheFailed => {
                    Some(Err(ControlError::failed("the cache device failed while it was scrubbed")
                        .remedy("forebay stat")))
                }
                ScrubState::Ended => Some(Err(gone())),
                ScrubState::Waiting | ScrubState::Running => {
                    job.is_cancelled().then(|| cancelled().map(|()| report))
                }
            };
            if let Some(end) = end {
                self.reactors.call(served.reactor, move |service, _| {
                    service.shard.engine(engine).map(|part| part.scrub_end(id))
                })?;
                return end;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}
