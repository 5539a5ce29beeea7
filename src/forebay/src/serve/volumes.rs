//! What a reactor remembers of its volumes, out of their engines' events, for the control plane.

use forebay_cache::engine::{CacheMode, Event};
use forebay_io::{DeviceError, VolumeId};
use std::time::{Duration, Instant};

/// How often damage of one volume is logged at most.
const DAMAGE_EVERY: Duration = Duration::from_secs(1);

/// One volume on this reactor.
#[derive(Clone, Debug)]
pub(crate) struct LocalVolume {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) engine: usize,
    pub(crate) attached: bool,
    pub(crate) detached: bool,
    pub(crate) mode: CacheMode,
    /// How many drains have ended.
    pub(crate) drains: u64,
    /// How many drains, switches and detaches have ended because what was left dirty is damaged.
    pub(crate) damage_left: u64,
    pub(crate) backing_error: Option<DeviceError>,
    /// When damage was logged last, and how many damaged blocks were not since.
    damage_said: Option<Instant>,
    damage_unsaid: u64,
}

impl LocalVolume {
    /// Dirty blocks cannot be read back: said at once, but of many only some. `volume where` has all.
    /// Returns whether it was said.
    fn damaged(&mut self, (block, blocks): (u64, u64), now: Instant) -> bool {
        if self.damage_said.is_some_and(|at| now.duration_since(at) < DAMAGE_EVERY) {
            self.damage_unsaid += blocks;
            return false;
        }
        let others = core::mem::take(&mut self.damage_unsaid);
        self.damage_said = Some(now);
        let (first_byte, bytes) = (block * 4096, blocks * 4096);
        tracing::error!(
            volume = self.name,
            first_byte,
            bytes,
            unlogged_blocks = others,
            "dirty data is damaged and there is no other copy: reads of it fail until it is written"
        );
        true
    }
}

/// The volumes of a reactor.
#[derive(Debug, Default)]
pub(crate) struct LocalVolumes {
    all: Vec<LocalVolume>,
    /// Engines whose cache device has failed, and why.
    cache_failed: Vec<(usize, DeviceError)>,
    /// Those of them that are not on record yet.
    unnoted: Vec<usize>,
}

impl LocalVolumes {
    pub(crate) fn add(&mut self, id: VolumeId, name: &str, engine: usize, mode: CacheMode) {
        self.all.push(LocalVolume {
            id,
            name: name.to_owned(),
            engine,
            attached: false,
            detached: false,
            mode,
            drains: 0,
            damage_left: 0,
            backing_error: None,
            damage_said: None,
            damage_unsaid: 0,
        });
    }

    pub(crate) fn remove(&mut self, id: VolumeId) {
        self.all.retain(|volume| volume.id != id);
    }

    pub(crate) fn get(&self, id: VolumeId) -> Option<&LocalVolume> {
        self.all.iter().find(|volume| volume.id == id)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Why the cache device of an engine does not serve, if it does not.
    pub(crate) fn cache_failure(&self, engine: usize) -> Option<DeviceError> {
        self.cache_failed.iter().find(|(failed, _)| *failed == engine).map(|(_, error)| *error)
    }

    /// The failure of an engine's cache device that is not on record yet.
    pub(crate) fn unnoted_failure(&self, engine: usize) -> Option<DeviceError> {
        if self.unnoted.contains(&engine) { self.cache_failure(engine) } else { None }
    }

    /// It is on record now.
    pub(crate) fn failure_noted(&mut self, engine: usize) {
        self.unnoted.retain(|other| *other != engine);
    }

    /// Takes an engine's event.
    pub(crate) fn note(&mut self, engine: usize, event: Event) {
        match event {
            Event::CacheFailed { error } => {
                tracing::error!(engine, %error, "the cache device fails: writes go to the backing devices");
                self.cache_failed.retain(|(failed, _)| *failed != engine);
                self.cache_failed.push((engine, error));
                self.unnoted.push(engine);
            }
            Event::Attached { volume } => self.change(volume, |v| v.attached = true),
            Event::Detached { volume } => self.change(volume, |v| v.detached = true),
            Event::ModeChanged { volume, mode } => {
                self.change(volume, |v| {
                    tracing::info!(volume = v.name, ?mode, "mode changed");
                    v.mode = mode;
                });
            }
            Event::Drained { volume } => self.change(volume, |v| v.drains += 1),
            Event::BackingFailing { volume, error } => self.change(volume, |v| {
                tracing::error!(volume = v.name, %error, "the backing device fails: dirty data is kept");
                v.backing_error = Some(error);
            }),
            Event::BackingBack { volume } => self.change(volume, |v| {
                tracing::info!(volume = v.name, "the backing device works again");
                v.backing_error = None;
            }),
            Event::DirtyLost { volume, block, blocks } => self.change(volume, |v| {
                v.damaged((block, blocks), Instant::now());
            }),
            Event::DamageLeft { volume, blocks, ended } => self.change(volume, |v| {
                let bytes = blocks * 4096;
                tracing::error!(
                    volume = v.name,
                    bytes,
                    ?ended,
                    "all that could be destaged is; what is left dirty is damaged, see `volume where`"
                );
                v.damage_left += 1;
            }),
            // The shard keeps these to itself, and the service counts the last.
            Event::Persisted { .. } | Event::Done { .. } | Event::Stopped | Event::WantsExtent => {}
        }
    }

    fn change(&mut self, id: VolumeId, change: impl FnOnce(&mut LocalVolume)) {
        if let Some(volume) = self.all.iter_mut().find(|volume| volume.id == id) {
            change(volume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_said_at_once_and_then_once_a_second() {
        let mut all = LocalVolumes::default();
        all.add(VolumeId(1), "v", 0, CacheMode::WriteBack);
        let volume = &mut all.all[0];
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let said: Vec<bool> = (0..25).map(|n| volume.damaged((n, 1), after(n * 100))).collect();
        assert_eq!(said.iter().filter(|said| **said).count(), 3);
        assert!(said[0] && said[10] && said[20]);
        assert_eq!(volume.damage_unsaid, 4);
    }
}
