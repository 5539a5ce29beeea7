//! What volumes keep of their cache and may have of it: from the configuration to their engines; and
//! the job that follows how pinned blocks are fetched.

use super::attach::engine_error;
use super::calls::Reactors;
use super::follow::cancelled;
use super::node::Node;
use super::registry::Served;
use forebay_cache::engine::{BlockRange, ControlError as EngineError, Quota};
use forebay_control::config::VolumeConfig;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::jobs::JobHandle;
use forebay_control::value::ByteSize;
use forebay_io::VolumeId;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often the job looks how far the fetching is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Bytes of a cache block.
const BLOCK: u64 = 4096;

/// A volume's quota as its engine takes it.
///
/// # Errors
/// A pinned range beyond the end of the volume.
pub(crate) fn quota_of(config: &VolumeConfig, size: u64) -> Result<Quota> {
    let unit = u64::from(config.block_size);
    let total = size / unit.max(1);
    let range = |span: &forebay_control::value::LbaSpan| {
        if span.end() > total {
            let message = format!("pinned blocks are beyond the end of volume `{}`", config.name);
            return Err(ControlError::new(ErrorKind::Invalid, message)
                .field("pin")
                .value(span)
                .accepted(format!("blocks 0 to {}", total.saturating_sub(1))));
        }
        let first = span.first * unit / BLOCK;
        Ok(BlockRange { first, blocks: (span.end() * unit).div_ceil(BLOCK) - first })
    };
    Ok(Quota {
        min: config.cache_min.map_or(0, |min| min.0),
        max: config.cache_max.map(|max| max.0),
        pins: config.pin.iter().map(range).collect::<Result<_>>()?,
    })
}

/// What an engine says of a quota that does not fit.
pub(crate) fn refused(error: &EngineError) -> ControlError {
    match error {
        EngineError::QuotaTooLarge { keeps, others, most } => {
            let left = ByteSize(most.saturating_sub(*others));
            ControlError::new(ErrorKind::Invalid, "so much cannot be kept for this volume")
                .field("cache_min, pin")
                .value(ByteSize(*keeps))
                .accepted(format!(
                    "at most {left}: half of the cache's data is {}, and other volumes keep {}",
                    ByteSize(*most),
                    ByteSize(*others)
                ))
                .remedy(
                    "keep less, here or for others: `forebay volume set`, `forebay volume unpin`",
                )
        }
        EngineError::KeepsMoreThanMax { keeps, max } => {
            ControlError::new(ErrorKind::Invalid, "more would be kept than the volume may have")
                .field("cache_max")
                .value(ByteSize(*max))
                .accepted(format!("at least {}, by cache_min and pin", ByteSize(*keeps)))
        }
        other => ControlError::failed(other.to_string()),
    }
}

/// Whether a volume of `size` bytes, that is served or is to be, can be given what its configuration
/// says.
///
/// # Errors
/// The engine's; nothing changes in any case.
pub(crate) fn check(
    reactors: &Reactors,
    (reactor, engine): (u32, usize),
    id: VolumeId,
    config: &VolumeConfig,
    size: u64,
) -> Result<()> {
    let quota = quota_of(config, size)?;
    reactors.call(reactor, move |service, _| {
        let part = service.shard.engine(engine);
        part.map_or(Ok(()), |part| part.check_quota(id, size, &quota).map_err(engine_error))
    })?
}

/// Gives a volume what its configuration says.
///
/// # Errors
/// The engine's; then nothing changed.
pub(crate) fn apply(node: &Node, served: &Served, config: &VolumeConfig) -> Result<()> {
    let quota = quota_of(config, served.size)?;
    let (id, engine) = (served.id, served.engine);
    node.reactors.call(served.reactor, move |service, context| {
        if let Some(part) = service.shard.engine(engine) {
            part.set_quota(id, &quota).map_err(engine_error)?;
        }
        service.kick(context.now);
        Ok(())
    })?
}

impl Node {
    /// Follows how the pinned blocks of a volume are fetched.
    pub(crate) fn pin(self: &Arc<Self>, name: &str, job: JobHandle) -> Result<()> {
        let served = self.lock().registry.find(name)?.clone();
        let node = Arc::clone(self);
        let body = move || {
            let result = node.follow_pin(&served, &job);
            job.finish(result);
        };
        // Without a thread the handle is dropped, and the job has failed.
        let _ = thread::Builder::new().name("job".to_owned()).spawn(body);
        Ok(())
    }

    fn follow_pin(&self, served: &Served, job: &JobHandle) -> Result<()> {
        let (id, engine) = (served.id, served.engine);
        loop {
            let status = self.reactors.call(served.reactor, move |service, _| {
                service.shard.engine(engine).and_then(|part| part.pin_status(id))
            })?;
            let gone = || ControlError::failed("the volume left its cache while it was fetched");
            let status = status.ok_or_else(gone)?;
            job.progress(status.left_bytes, status.stall.map(str::to_owned));
            if !status.running {
                return if status.missing_bytes == 0 { Ok(()) } else { Err(missing(&status)) };
            }
            if job.is_cancelled() {
                self.reactors.call(served.reactor, move |service, _| {
                    service.shard.engine(engine).map(|part| part.pin_end(id))
                })?;
                return cancelled();
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// The end of a job after which pinned blocks are missing.
fn missing(status: &forebay_cache::engine::PinStatus) -> ControlError {
    let message =
        format!("{} of what is pinned did not enter the cache", ByteSize(status.missing_bytes));
    ControlError::failed(message).remedy(
        "it comes in when hosts read it; or pin it again, once `forebay stat` shows nothing that is wrong",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_control::value::Mode;

    #[test]
    fn pinned_blocks_become_whole_cache_blocks() {
        let mut config = VolumeConfig::new("v", "mem:?size=1M", Mode::WriteBack);
        config.pin = vec!["7-8".parse().unwrap(), "64+8".parse().unwrap()];
        config.cache_min = Some(ByteSize(5));
        let quota = quota_of(&config, 1 << 20).unwrap();
        let ranges = [(0, 2), (8, 1)].map(|(first, blocks)| BlockRange { first, blocks });
        assert_eq!((quota.pins.as_slice(), quota.min, quota.max), (ranges.as_slice(), 5, None));
        config.block_size = 4096;
        let quota = quota_of(&config, 1 << 20).unwrap();
        assert_eq!(quota.pins[1], BlockRange { first: 64, blocks: 8 });
        let error = quota_of(&config, 71 * 4096).unwrap_err();
        assert_eq!(error.detail.value.as_deref(), Some("64-71"));
        assert_eq!(error.detail.accepted.as_deref(), Some("blocks 0 to 70"));
    }
}
