//! What a reactor remembers of its volumes, out of their engines' events, for the control plane.

use forebay_cache::engine::{CacheMode, Event};
use forebay_io::{DeviceError, VolumeId};

/// Lost ranges that are remembered of a volume.
const LOST_MAX: usize = 10_000;

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
    pub(crate) backing_error: Option<DeviceError>,
    /// Cache blocks whose only copy cannot be read: first, count.
    pub(crate) lost: Vec<(u64, u64)>,
    pub(crate) lost_blocks: u64,
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
            backing_error: None,
            lost: Vec::new(),
            lost_blocks: 0,
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
                tracing::error!(volume = v.name, block, blocks, "dirty data cannot be read back");
                v.lost_blocks += blocks;
                if v.lost.len() < LOST_MAX {
                    v.lost.push((block, blocks));
                }
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
