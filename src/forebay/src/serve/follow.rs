//! Jobs of a volume: each looks how far its volume is, on a thread of its own.

use super::node::Node;
use super::registry::{Served, shown_mode};
use forebay_control::error::{ControlError, Result};
use forebay_control::jobs::JobHandle;
use forebay_control::value::Mode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often a job looks how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a volume is, for a job that follows it.
pub(crate) struct Look {
    pub(crate) mode: Option<Mode>,
    pub(crate) drains: u64,
    /// Drains, switches and detaches that have ended because what was left dirty is damaged.
    pub(crate) damage_left: u64,
    pub(crate) damaged_bytes: u64,
    pub(crate) stall: Option<String>,
    pub(crate) detached: bool,
    pub(crate) dirty_bytes: u64,
}

/// The end of a job that was cancelled.
pub(crate) fn cancelled() -> Result<()> {
    Err(ControlError::failed("cancelled"))
}

/// The end of a job that wanted a volume without dirty data, where what is left of it is damaged.
pub(crate) fn damage_left(name: &str, look: &Look, so: &str) -> Result<()> {
    let kib = look.damaged_bytes / 1024;
    let what =
        format!("{kib} KiB of dirty data of volume {name} are damaged; all else is destaged; {so}");
    Err(ControlError::failed(what).remedy(
        "`volume where` lists the damage: hosts write or discard these ranges, or `volume delete --discard-dirty` \
         gives them up",
    ))
}

impl Node {
    /// Follows a job on its own thread until `done`, a cancellation or the end of the node.
    /// `cancelled` takes back what can be taken back and gives the job's end, or `None` where it is
    /// too late and the job goes on.
    pub(crate) fn follow(
        self: &Arc<Self>,
        job: JobHandle,
        served: Served,
        done: impl Fn(&Node, &Look) -> Option<Result<()>> + Send + 'static,
        cancelled: impl Fn(&Node) -> Option<Result<()>> + Send + 'static,
    ) {
        let node = Arc::clone(self);
        let body = move || {
            loop {
                let look = match node.look(&served) {
                    Ok(look) => look,
                    Err(error) => return job.finish(Err(error)),
                };
                if let Some(result) = done(&node, &look) {
                    return job.finish(result);
                }
                if job.is_cancelled()
                    && let Some(result) = cancelled(&node)
                {
                    return job.finish(result);
                }
                job.progress(look.dirty_bytes, look.stall.clone());
                thread::sleep(LOOK_EVERY);
            }
        };
        // Without a thread the handle is dropped, and the job has failed.
        let _ = thread::Builder::new().name("job".to_owned()).spawn(body);
    }

    pub(crate) fn look(&self, served: &Served) -> Result<Look> {
        let (id, engine) = (served.id, served.engine);
        self.reactors.call(served.reactor, move |service, _| {
            let local = service.volumes.get(id);
            let mode = local.map(|local| shown_mode(local.mode));
            let drains = local.map_or(0, |local| local.drains);
            let damage_left = local.map_or(0, |local| local.damage_left);
            let error = local.and_then(|local| local.backing_error).map(|error| error.to_string());
            let detached = local.is_none_or(|local| local.detached);
            let stats = service.shard.engine(engine).and_then(|part| part.volume_stats(id));
            let dirty_bytes = stats.as_ref().map_or(0, |v| v.dirty_bytes);
            let damaged_bytes = stats.map_or(0, |v| v.damaged_bytes);
            let stall = error.or_else(|| {
                (damaged_bytes > 0).then(|| {
                    let kib = damaged_bytes / 1024;
                    format!("{kib} KiB of dirty data are damaged and wait until hosts write or discard them")
                })
            });
            Look { mode, drains, damage_left, damaged_bytes, stall, detached, dirty_bytes }
        })
    }
}
