//! The running node, as the control plane drives it.

use super::attach::{
    Identity, add_to_engine, close_backing, engine_error, open_backing, open_journal, parse_nqn,
};
use super::backing::check as check_backing;
use super::calls::Reactors;
use super::follow::{Look, cancelled, damage_left};
use super::publish::{access, home_of};
use super::registry::{Down, Registry, Served, engine_mode, from_kept, kept_mode, store_error};
use super::stat::Sampler;
use forebay_cluster::{NewVolume, Placement, VolumeKey};
use forebay_control::config::{ServeConfig, VolumeConfig};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::jobs::JobHandle;
use forebay_control::node::{
    Copy, DeviceFault, JournalHolds, LbaRange, Located, LostCache, NodeControl,
};
use forebay_control::stat::{NodeStat, NodeState};
use forebay_control::value::{Durability, Mode};
use forebay_io::{DeviceInfo, Epoch, Uuid};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cache device as it was found at start.
#[derive(Clone, Debug)]
pub(crate) struct CacheUnit {
    pub(crate) uri: String,
    pub(crate) uuid: Uuid,
    pub(crate) reactor: u32,
    pub(crate) engine: usize,
    pub(crate) info: DeviceInfo,
    pub(crate) durability: Durability,
}

/// What changes while the node runs.
pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) hosts: Vec<String>,
    state: NodeState,
    sampler: Sampler,
}

/// The node.
pub(crate) struct Node {
    pub(crate) config: ServeConfig,
    pub(crate) reactors: Reactors,
    pub(crate) caches: Vec<CacheUnit>,
    pub(crate) listening: Vec<SocketAddr>,
    inner: Mutex<Inner>,
}

impl Node {
    pub(crate) fn new(
        config: ServeConfig,
        reactors: Reactors,
        caches: Vec<CacheUnit>,
        listening: Vec<SocketAddr>,
        registry: Registry,
        sampler: Sampler,
    ) -> Self {
        let hosts = config.security.hosts.clone();
        let inner = Inner { registry, hosts, state: NodeState::Recovering, sampler };
        Self { config, reactors, caches, listening, inner: Mutex::new(inner) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in another call leaves tables that are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_state(&self, state: NodeState) {
        self.lock().state = state;
    }

    /// The volumes that serve, for what is printed at start.
    pub(crate) fn served(&self) -> Vec<Served> {
        self.lock().registry.served.clone()
    }

    /// Brings a volume to life; a new one gets a key first.
    pub(crate) fn start_volume(&self, config: &VolumeConfig) -> Result<()> {
        let mut inner = self.lock();
        if inner.registry.served.iter().any(|served| served.config.name == config.name) {
            return Ok(());
        }
        self.start_locked(&mut inner, config)?;
        self.publish(&inner)
    }

    /// A volume of the configuration at start: one whose cache is not here is kept aside, so that the
    /// others are served.
    pub(crate) fn start_or_set_aside(&self, config: &VolumeConfig) -> Result<()> {
        {
            let mut inner = self.lock();
            if let Err(error) = self.place(&inner.registry, config)
                && error.kind == ErrorKind::Unsafe
            {
                tracing::error!(volume = config.name, %error, "the volume is not served");
                let cause =
                    format!("{}; {}", error.message, error.detail.remedy.unwrap_or_default());
                inner.registry.down.push(Down { config: config.clone(), cause });
                return Ok(());
            }
        }
        self.start_volume(config)
    }

    /// What is lost with a cache that is not here; with `commit` the volume is attached cold.
    fn recover(&self, name: &str, commit: bool) -> Result<LostCache> {
        let mut inner = self.lock();
        let Some(at) = inner.registry.down.iter().position(|down| down.config.name == name) else {
            inner.registry.find(name)?;
            let message = format!("the cache of volume {name} is not lost");
            return Err(ControlError::new(ErrorKind::Unsafe, message)
                .remedy("nothing was changed; `forebay stat` shows how it is"));
        };
        let key = inner.registry.key(name)?.key;
        let config = inner.registry.down[at].config.clone();
        let holds = super::journal::look(&config, &key)?;
        let lost = LostCache {
            clean: key.clean,
            ranges: Vec::new(),
            complete: key.clean,
            ordered_journal: holds,
            note: lost_note(&key, holds),
        };
        if !commit {
            return Ok(lost);
        }
        if holds == Some(JournalHolds::Damaged) {
            // The operator has read that; from now on it is out of date, and voided.
            inner.registry.change(name, |key| key.ordered_journal = None)?;
        }
        let cache = self.emptiest(&inner.registry)?;
        let place = Placement { cache: self.caches[cache].uuid, shard: 0 };
        inner.registry.change(name, |key| key.placement = Some(place))?;
        self.start_locked(&mut inner, &config)?;
        inner.registry.down.remove(at);
        self.publish(&inner)?;
        Ok(lost)
    }

    fn start_locked(&self, inner: &mut Inner, config: &VolumeConfig) -> Result<()> {
        let registry = &mut inner.registry;
        let number = self.place(registry, config)?;
        let Some(cache) = self.caches.get(number) else {
            return Err(ControlError::failed("a volume needs a cache device").remedy(
                "add a [[cache]] section to the configuration, then `forebay format` its device",
            ));
        };
        let id = registry.new_id();
        let info = open_backing(&self.reactors, cache.reactor, id, &config.backing)?;
        let started = self.start_opened(registry, config, (number, id), &info);
        let volume = match started {
            Ok(volume) => volume,
            Err(error) => {
                close_backing(&self.reactors, cache.reactor, id);
                return Err(error);
            }
        };
        self.present_volume(inner, &volume)?;
        inner.registry.served.push(volume);
        Ok(())
    }

    /// The key, made or checked, and the engine.
    fn start_opened(
        &self,
        registry: &mut Registry,
        config: &VolumeConfig,
        (number, id): (usize, forebay_io::VolumeId),
        info: &DeviceInfo,
    ) -> Result<Served> {
        let cache = &self.caches[number];
        let place = (cache.reactor, cache.engine);
        super::share::check(&self.reactors, place, id, config, info.size)?;
        if registry.store.find(&config.name).is_none() {
            super::journal::check(config, None, info)?;
            let new = NewVolume {
                name: config.name.clone(),
                group: config.subsystem.clone(),
                mode: kept_mode(config.mode),
                size: info.size,
                block_size: config.block_size,
                backing: config.backing.clone(),
                backing_identity: info.identity.clone(),
                placement: Some(Placement { cache: cache.uuid, shard: 0 }),
            };
            registry.store.create(new).map_err(store_error)?;
        }
        let keyed = registry.key(&config.name)?;
        check_backing(&keyed.key, config, info)?;
        let journal = super::journal::open(registry, config, info)?;
        if let Some(uri) = &config.ordered_journal {
            open_journal(&self.reactors, cache.reactor, id, uri)?;
        }
        // Not clean from before the first acknowledgement that only the journal has.
        let mode = from_kept(keyed.key.mode);
        let keyed = registry.change(&config.name, |key| {
            if mode.is_write_back() {
                key.clean = false;
            }
        })?;
        let key = keyed.key;
        let identity = Identity { id, uuid: key.uuid, epoch: Epoch(key.owner_epoch), mode };
        add_to_engine(
            &self.reactors,
            (cache.reactor, cache.engine),
            &identity,
            config,
            (info.clone(), journal),
        )?;
        Ok(Served {
            config: config.clone(),
            id,
            uuid: key.uuid,
            nguid: key.nguid,
            nqn: self.config.nqn(&key.subsystem),
            nsid: key.nsid,
            size: info.size,
            owner_epoch: key.owner_epoch,
            reactor: cache.reactor,
            engine: cache.engine,
            cache: u32::try_from(number).unwrap_or(u32::MAX),
        })
    }

    /// Which cache device a volume is on: where it was, else the one with the fewest volumes.
    fn place(&self, registry: &Registry, config: &VolumeConfig) -> Result<usize> {
        let kept = registry.store.find(&config.name).and_then(|keyed| keyed.key.placement.clone());
        if let Some(kept) = kept {
            return self.caches.iter().position(|cache| cache.uuid == kept.cache).ok_or_else(|| {
                ControlError::new(
                    ErrorKind::Unsafe,
                    format!("volume {} is cached on {}, which is not here", config.name, kept.cache),
                )
                .remedy("attach its cache device; if it is lost for good: `forebay volume recover NAME --lost-cache`")
            });
        }
        self.emptiest(registry)
    }

    /// The cache device with the fewest volumes.
    fn emptiest(&self, registry: &Registry) -> Result<usize> {
        let load = |number: usize| {
            registry
                .served
                .iter()
                .filter(|served| usize::try_from(served.cache) == Ok(number))
                .count()
        };
        (0..self.caches.len()).min_by_key(|number| load(*number)).ok_or_else(|| {
            ControlError::failed("a volume needs a cache device")
                .remedy("add a [[cache]] section to the configuration")
        })
    }
}

/// The control plane's handle of the node.
pub(crate) struct Handle(pub(crate) Arc<Node>);

impl NodeControl for Handle {
    fn stat(&self) -> Result<NodeStat> {
        let node = &self.0;
        let mut inner = node.lock();
        let Inner { registry, sampler, state, .. } = &mut *inner;
        sampler.sample(node, registry, *state)
    }

    fn create_volume(&self, volume: &VolumeConfig) -> Result<()> {
        self.0.start_volume(volume)
    }

    fn delete_volume(&self, name: &str, discard_dirty: bool, job: JobHandle) -> Result<()> {
        self.0.delete(name, discard_dirty, job)
    }

    fn set_mode(&self, name: &str, mode: Mode, job: JobHandle) -> Result<()> {
        let served = {
            let mut inner = self.0.lock();
            let served = inner.registry.find(name)?.clone();
            inner.registry.change(name, |key| key.target_mode = kept_mode(mode))?;
            if mode.is_write_back() {
                // Cleared before the first acknowledgement that only the journal has.
                inner
                    .registry
                    .change(name, |key| (key.mode, key.clean) = (kept_mode(mode), false))?;
            }
            served
        };
        let (id, engine) = (served.id, served.engine);
        let damaged = self.0.look(&served)?.damage_left;
        self.0.reactors.call(served.reactor, move |service, context| {
            let Some(part) = service.shard.engine(engine) else {
                return Err(ControlError::failed("the cache of this volume is not served"));
            };
            part.set_mode(id, engine_mode(mode)).map_err(engine_error)?;
            service.kick(context.now);
            Ok(())
        })??;
        let volume = name.to_owned();
        let done = move |node: &Node, look: &Look| {
            if look.damage_left > damaged && look.mode != Some(mode) {
                return Some(damage_left(&volume, look, "it is in write-around now"));
            }
            (look.mode == Some(mode)).then(|| node.mode_reached(&volume, mode))
        };
        self.0.follow(job, served, done, |_| Some(cancelled()));
        Ok(())
    }

    fn drain(&self, name: &str, job: JobHandle) -> Result<()> {
        let served = self.0.lock().registry.find(name)?.clone();
        let (id, engine) = (served.id, served.engine);
        let look = self.0.look(&served)?;
        let (before, damaged) = (look.drains, look.damage_left);
        self.0.reactors.call(served.reactor, move |service, context| {
            let Some(part) = service.shard.engine(engine) else {
                return Err(ControlError::failed("the cache of this volume is not served"));
            };
            part.drain(id).map_err(engine_error)?;
            service.kick(context.now);
            Ok(())
        })??;
        let volume = name.to_owned();
        let done = move |_: &Node, look: &Look| {
            if look.damage_left > damaged {
                return Some(damage_left(&volume, look, "the drain has ended"));
            }
            (look.drains > before).then_some(Ok(()))
        };
        let reactor = served.reactor;
        let ended = move |node: &Node| {
            let _ = node.reactors.call(reactor, move |service, _| {
                service.shard.engine(engine).map(|part| part.cancel_drain(id))
            });
            Some(cancelled())
        };
        self.0.follow(job, served, done, ended);
        Ok(())
    }

    fn scrub(&self, name: &str, rate: u64, job: JobHandle) -> Result<()> {
        self.0.scrub(name, rate, job)
    }

    fn pin(&self, name: &str, job: JobHandle) -> Result<()> {
        self.0.pin(name, job)
    }

    fn update_volume(&self, volume: &VolumeConfig) -> Result<()> {
        let mut inner = self.0.lock();
        let hosts = access(volume, &inner.hosts, self.0.config.security.any_host_from_loopback)?;
        let served = inner.registry.find(&volume.name)?.clone();
        let place = (served.reactor, served.engine);
        super::share::check(&self.0.reactors, place, served.id, volume, served.size)?;
        self.0.give_journal(&mut inner.registry, &served, volume)?;
        super::share::apply(&self.0, &served, volume)?;
        let served = inner.registry.find_mut(&volume.name)?;
        served.config = volume.clone();
        let served = served.clone();
        let home = home_of(&inner.registry, &served);
        let nqn = parse_nqn(&served.nqn)?;
        self.0.reactors.call(home, move |service, context| {
            service.shard.target.set_hosts(&nqn, hosts, context.now);
        })?;
        super::limits::apply(&self.0, &inner.registry, served.reactor, served.engine)
    }

    fn locate(&self, name: &str, range: LbaRange, pieces_max: usize) -> Result<Vec<Located>> {
        let served = self.0.lock().registry.find(name)?.clone();
        locate(&self.0, &served, range, pieces_max)
    }

    fn recover_lost_cache(&self, name: &str, commit: bool) -> Result<LostCache> {
        self.0.recover(name, commit)
    }

    fn set_hosts(&self, hosts: &[String]) -> Result<()> {
        let mut inner = self.0.lock();
        inner.hosts = hosts.to_vec();
        for served in &inner.registry.served {
            let any = self.0.config.security.any_host_from_loopback;
            let access = access(&served.config, hosts, any)?;
            let nqn = parse_nqn(&served.nqn)?;
            let home = home_of(&inner.registry, served);
            self.0.reactors.call(home, move |service, context| {
                service.shard.target.set_hosts(&nqn, access, context.now);
            })?;
        }
        self.0.publish(&inner)
    }

    fn inject_fault(&self, fault: &DeviceFault) -> Result<()> {
        super::faults::inject(&self.0, &self.0.lock().registry, fault)
    }
}

impl Node {
    /// Engines whose cache device has failed hold writes until that is on record: see [`super::failed`].
    pub(crate) fn note_failed_caches(&self) {
        for cache in &self.caches {
            let engine = cache.engine;
            let failed = self
                .reactors
                .call(cache.reactor, move |service, _| service.volumes.unnoted_failure(engine));
            let Ok(Some(error)) = failed else { continue };
            if let Err(error) =
                super::failed::note(&self.config.node.state_dir, cache.uuid, &error.to_string())
            {
                tracing::error!(%error, "the failure of a cache cannot be put on record: writes wait");
                continue;
            }
            let _ = self.reactors.call(cache.reactor, move |service, context| {
                service.volumes.failure_noted(engine);
                if let Some(part) = service.shard.engine(engine) {
                    part.cache_failure_noted();
                }
                service.kick(context.now);
            });
        }
    }

    /// The engine is in the mode that was wanted: the key follows, `clean` with it.
    fn mode_reached(&self, name: &str, mode: Mode) -> Result<()> {
        let mut inner = self.lock();
        inner.registry.change(name, |key| {
            key.mode = kept_mode(mode);
            key.clean = !mode.is_write_back();
        })?;
        if let Ok(served) = inner.registry.find_mut(name) {
            served.config.mode = mode;
        }
        Ok(())
    }
}

/// What there is to say of a volume whose cache is lost.
fn lost_note(key: &VolumeKey, holds: Option<JournalHolds>) -> String {
    if key.clean {
        return "the volume was clean: its backing device has everything".to_owned();
    }
    let lost =
        "everything that was dirty in the lost cache is lost; which blocks, only that cache knew";
    let ordered = match holds {
        None => return lost.to_owned(),
        Some(JournalHolds::Nothing) => {
            "the ordered journal holds no batch: the backing device has none in part, and is a prefix of the \
             acknowledged writes if one was complete since the volume entered write-back-ordered"
        }
        Some(JournalHolds::Batch { end, blocks }) => {
            return format!(
                "the ordered journal holds the batch up to LSN {end} ({blocks} blocks): it is written to the \
                 backing device before the volume is served, which is a prefix of the acknowledged writes \
                 then; {lost}, but for that batch"
            );
        }
        Some(JournalHolds::Damaged) => {
            "the ordered journal holds a batch that cannot be read back: the backing device may have a part \
             of it, and is no known prefix; going on, the batch is dropped"
        }
        Some(JournalHolds::Outdated) => {
            "the ordered journal holds a batch from before the volume was served without it: it is dropped, \
             and whether the backing device is a prefix is not known"
        }
        Some(JournalHolds::Elsewhere) => {
            "the volume was served with another ordered journal than it has now: what that one holds is not known, \
             the backing device may have a part of it, and is no known prefix; going on, it is never applied"
        }
    };
    format!("{ordered}; {lost}")
}

/// Which copies of a range are current, joined where neighbours agree.
fn locate(
    node: &Node,
    served: &Served,
    range: LbaRange,
    pieces_max: usize,
) -> Result<Vec<Located>> {
    let block_size = u64::from(served.config.block_size);
    let total = served.size / block_size;
    let blocks = range.blocks.min(total.saturating_sub(range.lba));
    if range.lba >= total || blocks == 0 {
        return Err(ControlError::new(
            ErrorKind::Invalid,
            "the range is beyond the end of the volume",
        )
        .field("lba")
        .value(range.lba)
        .accepted(format!("0 to {}", total - 1)));
    }
    let (id, engine) = (served.id, served.engine);
    let first = range.lba * block_size / 4096;
    let last = ((range.lba + blocks) * block_size).div_ceil(4096);
    let found = node.reactors.call(served.reactor, move |service, _| {
        service.shard.engine(engine).map(|part| part.locate(id, first, last - first, pieces_max))
    })?;
    let scale = 4096 / block_size;
    Ok(found
        .unwrap_or_default()
        .into_iter()
        .map(|piece| {
            let lba = (piece.block * scale).max(range.lba);
            let end = ((piece.block + piece.blocks) * scale).min(range.lba + blocks);
            Located {
                lba,
                blocks: end - lba,
                current: match piece.copy {
                    forebay_cache::engine::CopyAt::Dirty => Copy::CacheDirty,
                    forebay_cache::engine::CopyAt::Clean => Copy::CacheClean,
                    forebay_cache::engine::CopyAt::Backing => Copy::Backing,
                    forebay_cache::engine::CopyAt::Lost => Copy::Lost,
                },
                in_memory: piece.in_memory,
                lsn: None,
                place: None,
            }
        })
        .collect())
}
