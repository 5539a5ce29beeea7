//! The ordered journals of volumes: looked at and opened on the caller's thread, before a reactor has
//! them, so that no volume waits while a batch is read back and checked.

use super::attach::{PATIENCE, open_journal};
use super::drive;
use super::node::Node;
use super::registry::{Registry, Served};
use super::shard::SharedPool;
use super::start::random_uuid;
use forebay_cache::format::device::PROBE_BYTES;
use forebay_cache::format::order_journal::{Entry, JournalError};
use forebay_cache::format::plan::Step;
use forebay_cache::order_journal::{Expect, Found, JournalOpener, OpenedJournal};
use forebay_cluster::VolumeKey;
use forebay_control::config::VolumeConfig;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::node::JournalHolds;
use forebay_driver::{AnyDevice, DriverContext};
use forebay_io::{Device, DeviceInfo, Uuid};
use forebay_reactor::{LoopTime, MonotonicClock, Pool, PoolConfig, RegionTable, WaitSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Memory for buffers while a journal is read.
const POOL_BYTES: usize = 16 << 20;
/// Bytes a second that a batch is applied with at least.
const APPLY_RATE: u64 = 4 << 20;

/// A journal's device that cannot be opened.
pub(crate) fn unopened(uri: &str, error: &dyn fmt::Display) -> ControlError {
    ControlError::failed(format!("the ordered journal cannot be opened: {error}"))
        .field("ordered_journal")
        .value(uri)
}

/// A device that cannot be the volume's journal. Nothing on it was changed.
pub(crate) fn refused(uri: &str, error: &JournalError) -> ControlError {
    let kind = match error {
        JournalError::TooSmall { .. } => ErrorKind::Invalid,
        JournalError::Device(_) => ErrorKind::Failed,
        JournalError::InUse => ErrorKind::Exists,
        _ => ErrorKind::Unsafe,
    };
    ControlError::new(kind, error.to_string()).field("ordered_journal").value(uri).remedy(
        "nothing was changed; to go on without what it holds, put an empty device in its place",
    )
}

/// How long a volume may take to attach with what this journal holds: it may have to be applied, zeroes
/// block by block where the backing device has no Write Zeroes.
pub(crate) fn patience(found: &Found) -> Duration {
    let Found::Batch(entries) = found else { return PATIENCE };
    let blocks = entries.iter().map(|entry| match entry {
        Entry::Data { .. } => 1,
        Entry::Zeroes { blocks, .. } => u64::from(*blocks),
    });
    let bytes = blocks.sum::<u64>().saturating_mul(4096);
    PATIENCE + Duration::from_secs(bytes / APPLY_RATE)
}

/// A journal on the caller's thread.
struct Opening {
    device: AnyDevice,
    pool: SharedPool,
}

fn context() -> Result<DriverContext> {
    let wait = WaitSet::new().map_err(|error| ControlError::failed(format!("devices: {error}")))?;
    let time = LoopTime::new(MonotonicClock.now());
    Ok(DriverContext::new(time, wait, Arc::new(RegionTable::new())))
}

impl Opening {
    fn new(uri: &str) -> Result<Self> {
        let wait =
            WaitSet::new().map_err(|error| ControlError::failed(format!("devices: {error}")))?;
        let table = Arc::new(RegionTable::new());
        let pool = Pool::new(PoolConfig::bounded(POOL_BYTES), Arc::clone(&table));
        let time = LoopTime::new(MonotonicClock.now());
        let context = DriverContext::new(time, wait, table);
        let device = forebay_driver::open(uri, &context).map_err(|error| unopened(uri, &error))?;
        Ok(Self { device, pool: SharedPool::new(pool) })
    }

    fn read(
        &mut self,
        volume: Uuid,
        backing: &DeviceInfo,
        expect: Expect,
    ) -> std::result::Result<OpenedJournal, JournalError> {
        let opener = JournalOpener::new(volume, backing, self.device.info()).expecting(expect);
        let mut machine = (opener, None);
        let mut pool = self.pool.clone();
        drive::run(
            &mut self.device,
            &mut machine,
            |(opener, _)| opener.poll_action(&mut pool),
            |(opener, _), completion| opener.handle_completion(completion),
            |(opener, result)| {
                *result = opener.result();
                result.is_some()
            },
        );
        machine.1.unwrap_or(Err(JournalError::Device(forebay_io::DeviceError::Gone)))
    }
}

/// Whether the key says that the volume has been served with this journal and no other ever since.
fn expected(key: &VolumeKey, identity: &str) -> Expect {
    if key.ordered_journal.as_deref() == Some(identity) {
        Expect::Anything
    } else {
        Expect::Outdated
    }
}

/// Checks that the journal that a volume has been served with is there, where it is a file: opened with a
/// size it would be made anew, blank.
///
/// # Errors
/// It is not there.
fn present(config: &VolumeConfig, key: &VolumeKey) -> Result<()> {
    let (Some(uri), Some(recorded)) = (&config.ordered_journal, &key.ordered_journal) else {
        return Ok(());
    };
    if super::backing::path_of(uri).is_none_or(|path| Path::new(&path).exists()) {
        return Ok(());
    }
    let message = format!("the ordered journal of volume {} is not there", config.name);
    let error = ControlError::failed(message).field("ordered_journal").value(uri);
    Err(error.remedy(format!(
        "attach it: it is \"{recorded}\", and may hold a batch that the backing device has in part; nothing was changed"
    )))
}

/// Checks that a device can be a volume's journal; nothing on it changes. A volume that has no key yet
/// can have none of an earlier time.
///
/// # Errors
/// Why not, with what to do.
pub(crate) fn check(
    config: &VolumeConfig,
    key: Option<&VolumeKey>,
    backing: &DeviceInfo,
) -> Result<()> {
    let Some(uri) = &config.ordered_journal else { return Ok(()) };
    let uuid = key.map_or_else(random_uuid, |key| Ok(key.uuid))?;
    if let Some(key) = key {
        present(config, key)?;
    }
    Opening::new(uri)?
        .read(uuid, backing, Expect::Look)
        .map(|_| ())
        .map_err(|error| refused(uri, &error))
}

/// What a volume's journal holds, where its cache is lost. Nothing changes.
///
/// # Errors
/// Devices that cannot be opened, or are not the volume's.
pub(crate) fn look(config: &VolumeConfig, key: &VolumeKey) -> Result<Option<JournalHolds>> {
    let Some(uri) = &config.ordered_journal else {
        return Ok(key.ordered_journal.as_ref().map(|_| JournalHolds::Elsewhere));
    };
    present(config, key)?;
    let backing = forebay_driver::open(&config.backing, &context()?)
        .map_err(|error| super::backing::unopened(&config.backing, &error))?;
    super::backing::check(key, config, backing.info())?;
    let mut opening = Opening::new(uri)?;
    let expect = expected(key, &opening.device.info().identity);
    let found = opening.read(key.uuid, backing.info(), Expect::Look);
    let opened = found.map_err(|error| refused(uri, &error))?;
    Ok(Some(match opened.found {
        Found::Nothing if expect == Expect::Outdated && key.ordered_journal.is_some() => {
            JournalHolds::Elsewhere
        }
        Found::Nothing => JournalHolds::Nothing,
        _ if expect == Expect::Outdated => JournalHolds::Outdated,
        Found::Damaged => JournalHolds::Damaged,
        Found::Batch(entries) => {
            let data = entries.iter().filter(|entry| matches!(entry, Entry::Data { .. }));
            JournalHolds::Batch { end: opened.header.end.0, blocks: data.count() as u64 }
        }
    }))
}

/// Opens a volume's journal, if it is to have one, and puts on record that it is served with it, or
/// without any: a batch in another journal is out of date from now on.
///
/// # Errors
/// A device that cannot be the volume's journal.
pub(crate) fn open(
    registry: &mut Registry,
    config: &VolumeConfig,
    backing: &DeviceInfo,
) -> Result<Option<OpenedJournal>> {
    let key = registry.key(&config.name)?.key;
    let Some(uri) = &config.ordered_journal else {
        if key.ordered_journal.is_some() {
            tracing::warn!(volume = config.name, "it is served without its ordered journal now");
            registry.change(&config.name, |key| key.ordered_journal = None)?;
        }
        return Ok(None);
    };
    let mut opening = Opening::new(uri)?;
    let identity = opening.device.info().identity.clone();
    let expect = expected(&key, &identity);
    if expect == Expect::Outdated && key.ordered_journal.is_some() {
        tracing::warn!(
            volume = config.name,
            journal = uri,
            "this is another ordered journal than it had"
        );
    }
    let opened = opening.read(key.uuid, backing, expect).map_err(|error| refused(uri, &error))?;
    if let Found::Batch(entries) = &opened.found {
        let (end, entries) = (opened.header.end.0, entries.len());
        tracing::info!(
            volume = config.name,
            end,
            entries,
            "its ordered journal holds a complete batch"
        );
    }
    registry.change(&config.name, |key| key.ordered_journal = Some(identity))?;
    Ok(Some(opened))
}

/// A volume is no more: its journal may be another's.
pub(crate) fn clear(uri: &str, volume: Uuid, backing: &DeviceInfo) -> Result<()> {
    let mut opening = Opening::new(uri)?;
    let opened =
        opening.read(volume, backing, Expect::Look).map_err(|error| refused(uri, &error))?;
    if opened.found != Found::Nothing {
        return Err(ControlError::failed("it holds a batch that was never applied"));
    }
    // All that a blank device is known by, the headers first: without them there is no journal.
    let zeroes = |offset: u64| Step::Write { offset, bytes: vec![0; 2 * 4096] };
    let mut steps = vec![zeroes(0), Step::Flush];
    steps.extend((2 * 4096..PROBE_BYTES as u64).step_by(2 * 4096).map(zeroes));
    steps.push(Step::Flush);
    drive::carry_out(&mut opening.device, &mut opening.pool, &steps)
        .map_err(|error| refused(uri, &JournalError::Device(error)))
}

impl Node {
    /// Gives a volume that is served its first ordered journal.
    pub(crate) fn give_journal(
        &self,
        registry: &mut Registry,
        served: &Served,
        config: &VolumeConfig,
    ) -> Result<()> {
        let (Some(uri), None) = (&config.ordered_journal, &served.config.ordered_journal) else {
            return Ok(());
        };
        let (id, engine) = (served.id, served.engine);
        let backing = self.reactors.call(served.reactor, move |service, _| {
            service.devices.backing(id).map(|unit| unit.device.info().clone())
        })?;
        let Some(backing) = backing else {
            return Err(ControlError::failed("the volume's backing device is not open"));
        };
        let Some(opened) = open(registry, config, &backing)? else { return Ok(()) };
        let named = uri.clone();
        let given = open_journal(&self.reactors, served.reactor, id, uri).and_then(|()| {
            self.reactors.call(served.reactor, move |service, context| {
                let Some(part) = service.shard.engine(engine) else {
                    return Err(ControlError::failed("the cache of this volume is not served"));
                };
                let given = part.set_ordered_journal(id, opened);
                given.map_err(|error| refused(&named, &error))?;
                service.kick(context.now);
                Ok(())
            })?
        });
        if given.is_err() {
            // A reactor that does not answer has nothing left to close.
            let _ = self
                .reactors
                .call(served.reactor, move |service, _| service.devices.remove_journal(id));
            registry.change(&config.name, |key| key.ordered_journal = None)?;
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_has_time_for_all_blocks_of_its_zeroes() {
        let zeroes = Entry::Zeroes { block: 0, blocks: 1 << 20 };
        let data = Entry::Data { block: 9, crc: 0 };
        assert_eq!(patience(&Found::Nothing), PATIENCE);
        assert_eq!(patience(&Found::Batch(vec![data; 1024])), PATIENCE + Duration::from_secs(1));
        assert_eq!(patience(&Found::Batch(vec![zeroes])), PATIENCE + Duration::from_secs(1024));
    }
}
