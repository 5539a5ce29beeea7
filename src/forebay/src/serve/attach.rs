//! Bringing volumes to life and taking them away, step by step over reactors: device and engine
//! first, then the namespace that hosts see.

use super::calls::Reactors;
use super::devices::Unit;
use super::failpoints;
use super::registry::{Served, engine_mode};
use super::service::NodeService;
use forebay_cache::engine::VolumeSpec;
use forebay_cache::format::order_journal::JournalError;
use forebay_cache::order_journal::{Found, OpenedJournal};
use forebay_control::config::VolumeConfig;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::value::Mode;
use forebay_io::{Device, DeviceInfo, Epoch, Instant, Uuid, VolumeId};
use forebay_nvmf::target::{AnaState, BlockSize, HostAccess, NamespaceConfig, SubsystemConfig};
use forebay_wire::Nqn;
use std::time::Duration;

/// How long an engine may take to write a superblock or make a volume's records dead.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Opens a volume's backing device on the volume's reactor.
///
/// # Errors
/// The device's own, in full.
pub(crate) fn open_backing(
    reactors: &Reactors,
    reactor: u32,
    id: VolumeId,
    uri: &str,
) -> Result<DeviceInfo> {
    let uri = uri.to_owned();
    reactors.call(reactor, move |service, _| {
        let device = forebay_driver::open(&uri, &service.drivers)
            .map_err(|error| super::backing::unopened(&uri, &error))?;
        super::start::warn_buffered(&uri, &device);
        let info = device.info().clone();
        service.devices.add_backing(id, Unit::new(uri, device));
        Ok(info)
    })?
}

/// Opens a volume's ordered journal on the volume's reactor.
///
/// # Errors
/// The device's own, in full.
pub(crate) fn open_journal(
    reactors: &Reactors,
    reactor: u32,
    id: VolumeId,
    uri: &str,
) -> Result<()> {
    let uri = uri.to_owned();
    reactors.call(reactor, move |service, _| {
        let device = forebay_driver::open(&uri, &service.drivers)
            .map_err(|error| super::journal::unopened(&uri, &error))?;
        super::start::warn_buffered(&uri, &device);
        service.devices.add_journal(id, Unit::new(uri, device));
        Ok(())
    })?
}

/// Gives a backing device and its ordered journal up that no engine uses.
pub(crate) fn close_backing(reactors: &Reactors, reactor: u32, id: VolumeId) {
    // A reactor that does not answer has nothing left to close.
    let _ = reactors.call(reactor, move |service, _| service.devices.remove_backing(id));
}

/// What the engine is told of a volume besides its backing device.
pub(crate) struct Identity {
    pub(crate) id: VolumeId,
    pub(crate) uuid: Uuid,
    pub(crate) epoch: Epoch,
    pub(crate) mode: Mode,
}

/// Adds a volume to its engine and waits until the superblock knows it.
///
/// # Errors
/// The engine's: another backing device than the cache knows, too many volumes.
pub(crate) fn add_to_engine(
    reactors: &Reactors,
    (reactor, engine): (u32, usize),
    identity: &Identity,
    config: &VolumeConfig,
    (backing, journal): (DeviceInfo, Option<OpenedJournal>),
) -> Result<()> {
    let patience =
        journal.as_ref().map_or(PATIENCE, |journal| super::journal::patience(&journal.found));
    let spec = VolumeSpec {
        id: identity.id,
        uuid: identity.uuid,
        // One journal for each volume of a node; replicas will have others of their own.
        journal: journal_of(identity.uuid),
        name: config.name.clone(),
        block_size: config.block_size,
        mode: engine_mode(identity.mode),
        backing,
        epoch: identity.epoch,
        on_failure: forebay_cache::engine::OnFailure::default(),
    };
    let quota = super::share::quota_of(config, spec.backing.size)?;
    let (id, name) = (identity.id, config.name.clone());
    let uri = config.ordered_journal.clone().unwrap_or_default();
    failpoints::hit("volume-add");
    reactors.call(reactor, move |service, context| {
        let Some(part) = service.shard.engine(engine) else {
            return Err(ControlError::failed("the cache of this volume is not served"));
        };
        if journal.as_ref().is_some_and(|opened| opened.found == Found::Damaged)
            && !part.knows(spec.uuid)
        {
            return Err(super::journal::refused(&uri, &JournalError::BatchDamaged));
        }
        part.add_volume(&spec).map_err(engine_error)?;
        part.set_quota(id, &quota).map_err(engine_error)?;
        if let Some(opened) = journal {
            part.set_ordered_journal(id, opened)
                .map_err(|error| super::journal::refused(&uri, &error))?;
        }
        service.volumes.add(id, &name, engine, spec.mode);
        service.kick(context.now);
        Ok(())
    })??;
    wait_for(reactors, reactor, patience, move |service| {
        service.volumes.get(id).is_none_or(|volume| volume.attached)
    })?;
    reactors.call(reactor, move |service, _| {
        let committed = service.shard.engine(engine).and_then(|part| part.committed_lsn(id));
        service.shard.serve(id, engine, committed.unwrap_or_default());
    })
}

/// Waits until `done` holds on a reactor.
///
/// # Errors
/// Where it does not come to hold in time.
pub(crate) fn wait_for<F>(
    reactors: &Reactors,
    reactor: u32,
    patience: Duration,
    done: F,
) -> Result<()>
where
    F: Fn(&mut NodeService) -> bool + Clone + Send + 'static,
{
    let until = std::time::Instant::now() + patience;
    loop {
        let done = done.clone();
        if reactors.call(reactor, move |service, _| done(service))? {
            return Ok(());
        }
        if std::time::Instant::now() >= until {
            return Err(ControlError::new(
                ErrorKind::TimedOut,
                "the volume's devices do not answer",
            )
            .remedy("`forebay stat` names devices that hang"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What an engine refused.
pub(crate) fn engine_error(error: forebay_cache::engine::ControlError) -> ControlError {
    use forebay_cache::engine::ControlError as Engine;
    let kind = match error {
        Engine::NoSuchVolume(_) => ErrorKind::NotFound,
        Engine::AlreadyThere(_) => ErrorKind::Exists,
        Engine::Busy(_) | Engine::Stopping => ErrorKind::Busy,
        Engine::QuotaTooLarge { .. } | Engine::KeepsMoreThanMax { .. } => {
            return super::share::refused(&error);
        }
        Engine::Invalid(_) | Engine::OtherBlockSize { .. } => ErrorKind::Invalid,
        Engine::OtherBacking { .. } | Engine::OtherSize { .. } => ErrorKind::Unsafe,
        Engine::TooMany | Engine::IndexTooSmall { .. } | Engine::CacheFailed => ErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string())
}

/// A volume's journal on this node: its own identifier, marked as a journal's.
fn journal_of(volume: Uuid) -> Uuid {
    let mut bytes = volume.0;
    bytes[0] ^= 0x4a;
    Uuid::from_random(bytes)
}

/// How hosts see a volume.
pub(crate) struct Presentation<'a> {
    pub(crate) volume: &'a Served,
    /// The reactor of the subsystem, whose other volumes may be there already.
    pub(crate) home: u32,
    pub(crate) hosts: HostAccess,
    pub(crate) volatile_write_cache: bool,
    pub(crate) optimal_io: u32,
    pub(crate) serial: String,
}

/// Shows a volume to hosts: as a namespace of its subsystem, which is made if need be.
///
/// # Errors
/// What the target refuses.
pub(crate) fn present(reactors: &Reactors, how: Presentation<'_>) -> Result<()> {
    let Presentation { volume, home, hosts, volatile_write_cache, optimal_io, serial } = how;
    let nqn = parse_nqn(&volume.nqn)?;
    let block_size = BlockSize::from_bytes(volume.config.block_size)
        .ok_or_else(|| ControlError::failed("the block size is 512 or 4096"))?;
    let config = NamespaceConfig {
        nsid: volume.nsid,
        volume: volume.id,
        blocks: volume.size / u64::from(volume.config.block_size),
        block_size,
        uuid: volume.uuid,
        nguid: volume.nguid.0,
        volatile_write_cache,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io,
    };
    let (id, lives_on) = (volume.id, volume.reactor);
    reactors.call(home, move |service, context| {
        if lives_on != home {
            service.shard.route(id, lives_on);
        }
        add_namespace(service, SubsystemConfig { nqn, serial, hosts }, config, context.now)
    })?
}

fn add_namespace(
    service: &mut NodeService,
    subsystem: SubsystemConfig,
    namespace: NamespaceConfig,
    now: Instant,
) -> Result<()> {
    use forebay_nvmf::target::AddSubsystemError;
    let nqn = subsystem.nqn.clone();
    let failed =
        |error: &dyn std::fmt::Display| ControlError::failed(error.to_string()).value(&nqn);
    match service.shard.target.add_subsystem(subsystem.clone()) {
        Ok(()) => {}
        Err(AddSubsystemError::Exists) => {
            service.shard.target.set_hosts(&nqn, subsystem.hosts, now);
        }
        Err(error) => return Err(failed(&error)),
    }
    service.shard.target.add_namespace(&nqn, namespace, now).map_err(|error| failed(&error))
}

/// A checked NQN.
///
/// # Errors
/// Text that is none; configuration and commands have refused that before.
pub(crate) fn parse_nqn(text: &str) -> Result<Nqn> {
    text.parse().map_err(|error| {
        ControlError::new(ErrorKind::Invalid, format!("`{text}` is not an NQN: {error}"))
    })
}
