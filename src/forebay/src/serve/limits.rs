//! Limits of an engine, out of what its volumes ask for.

use super::node::Node;
use super::registry::Registry;
use forebay_cache::engine::Limits;
use forebay_control::config::VolumeConfig;
use forebay_control::error::Result;
use forebay_io::Duration;

/// What an engine is limited to: it serves its volumes from one log, so that their bounds on dirty
/// bytes add up, and the shortest age and the smallest batch count for all.
pub(crate) fn limits_of<'a>(volumes: impl Iterator<Item = &'a VolumeConfig>) -> Limits {
    let defaults = Limits::default();
    let mut dirty_max = Some(0u64);
    let mut dirty_age: Option<Duration> = None;
    let (mut batch_age, mut batch_bytes): (Option<Duration>, Option<u64>) = (None, None);
    for volume in volumes {
        dirty_max = match (dirty_max, volume.dirty_max) {
            (Some(sum), Some(max)) => Some(sum.saturating_add(max.0)),
            _ => None,
        };
        if let Some(age) = volume.batch_age_max {
            let age = age.duration();
            batch_age = Some(batch_age.map_or(age, |least| least.min(age)));
        }
        if let Some(max) = volume.batch_max {
            batch_bytes = Some(batch_bytes.map_or(max.0, |least| least.min(max.0)));
        }
        if let Some(age) = volume.dirty_age_max {
            let age = age.duration();
            dirty_age = Some(dirty_age.map_or(age, |least| least.min(age)));
        }
    }
    Limits {
        dirty_max: dirty_max.filter(|max| *max > 0).unwrap_or(defaults.dirty_max),
        dirty_age: dirty_age.unwrap_or(defaults.dirty_age),
        batch_age: batch_age.unwrap_or(defaults.batch_age),
        batch_bytes: batch_bytes.unwrap_or(defaults.batch_bytes),
        ..defaults
    }
}

/// Sets the limits of an engine from the volumes that are on it.
pub(crate) fn apply(node: &Node, registry: &Registry, reactor: u32, engine: usize) -> Result<()> {
    let here = registry.served.iter().filter(|s| s.reactor == reactor && s.engine == engine);
    let limits = limits_of(here.map(|served| &served.config));
    node.reactors.call(reactor, move |service, context| {
        if let Some(part) = service.shard.engine(engine) {
            part.set_limits(limits);
        }
        service.kick(context.now);
    })
}
