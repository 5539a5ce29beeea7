//! Making a reactor's part of the node: pool, cache devices, recovery, engines, listeners.

use super::calls::Reactors;
use super::devices::{Devices, Unit};
use super::drive;
use super::failpoints;
use super::net::Net;
use super::service::{Message, NodeService, Parts};
use super::shard::{NodeShard, SharedPool};
use forebay_cache::engine::{Engine, EngineConfig};
use forebay_cache::format::device::OpenError;
use forebay_cache::format::open::{Opened, Opener};
use forebay_cache::format::plan::{FormatOptions, plan};
use forebay_cache::index::Index;
use forebay_cache::policy::PolicyKind;
use forebay_cache::recovery::{Recovered, Recovery};
use forebay_control::config::{Origin, ServeConfig};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::value::{Durability, HugepageUse, Poll};
use forebay_driver::{AnyDevice, DriverContext};
use forebay_hugepages::Preference;
use forebay_io::{Device, DeviceInfo, OpKind, Uuid};
use forebay_node::Shard;
use forebay_nvmf::target::{Limits as TargetLimits, Target, TargetConfig};
use forebay_reactor::{
    MailSender, Mailbox, PollMode, Pool, PoolBuf, PoolConfig, ReactorConfig, ReactorHandle,
    RegionTable, Setup, SpawnError, mailbox, spawn,
};
use std::sync::{Arc, mpsc};

/// Messages of a reactor's mailbox.
const MAILBOX: usize = 16 << 10;
/// Memory for buffers and the memory tier unless configured, on each reactor.
const POOL_BYTES: u64 = 256 << 20;
/// The part of that memory which the memory tier takes unless configured, as a divisor.
const TIER_SHARE: u64 = 4;
/// Remembered blocks of the eviction policy, as a part of the cache's blocks.
const GHOST_SHARE: u64 = 10;

/// A cache device after recovery.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) uuid: Uuid,
    pub(crate) engine: usize,
    pub(crate) info: DeviceInfo,
    pub(crate) summary: String,
}

/// The cores that reactors are pinned to: as configured, else one: the last that this process may
/// use, where there is more than one.
pub(crate) fn cores(config: &ServeConfig) -> Vec<Option<usize>> {
    if config.node.cores.is_empty() {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        return vec![(allowed > 1).then(|| allowed - 1)];
    }
    config.node.cores.iter().copied().map(Some).collect()
}

/// The core of one reactor.
pub(crate) fn core_of(config: &ServeConfig, reactor: u32) -> Option<usize> {
    cores(config).get(usize::try_from(reactor).ok()?).copied().flatten()
}

/// All reactors, started, and what they found on their cache devices.
pub(crate) struct Started {
    pub(crate) handles: Vec<ReactorHandle>,
    pub(crate) reactors: Reactors,
    pub(crate) found: Vec<(u32, Found)>,
}

/// Starts the reactors; each recovers its cache devices before this returns.
pub(crate) fn start(config: &ServeConfig) -> Result<Started> {
    if let (_, Some(complaint)) = tiers(config) {
        tracing::warn!("{complaint}");
    }
    let cores = cores(config);
    let count = u32::try_from(cores.len()).unwrap_or(1);
    let mut senders: Vec<MailSender<Message>> = Vec::new();
    let mut boxes: Vec<Mailbox<Message>> = Vec::new();
    for _ in &cores {
        let (sender, receiver) = mailbox(MAILBOX)
            .map_err(|error| ControlError::failed(format!("no mailbox for a reactor: {error}")))?;
        senders.push(sender);
        boxes.push(receiver);
    }
    let table = Arc::new(RegionTable::new());
    let (found_to, found_from) = mpsc::channel();
    let mut handles = Vec::new();
    for ((reactor, core), mailbox) in (0u32..).zip(cores).zip(boxes) {
        let making = Making {
            config: config.clone(),
            reactor,
            reactors: count,
            senders: senders.clone(),
            table: Arc::clone(&table),
            found: found_to.clone(),
        };
        let settings = ReactorConfig {
            name: format!("reactor{reactor}"),
            core,
            poll: match config.node.poll {
                Poll::Adaptive => PollMode::ADAPTIVE,
                Poll::Busy => PollMode::Busy,
            },
        };
        let handle = spawn(settings, mailbox, move |setup| making.make(setup)).map_err(
            |error| match error {
                SpawnError::Service(error) => error,
                other => ControlError::failed(other.to_string()).field("node.cores"),
            },
        )?;
        handles.push(handle);
    }
    drop(found_to);
    let mut found: Vec<(u32, Found)> = found_from.iter().collect();
    found.sort_by_key(|(_, found)| found.number);
    Ok(Started { handles, reactors: Reactors::new(senders), found })
}

/// What a reactor's service is made from, on the reactor's thread.
struct Making {
    config: ServeConfig,
    reactor: u32,
    reactors: u32,
    senders: Vec<MailSender<Message>>,
    table: Arc<RegionTable>,
    found: mpsc::Sender<(u32, Found)>,
}

impl Making {
    fn make(self, setup: &Setup<Message>) -> Result<NodeService> {
        let pool = SharedPool::new(Pool::new(self.pool_config(), Arc::clone(&self.table)));
        let drivers =
            DriverContext::new(setup.time.clone(), setup.wait.clone(), Arc::clone(&self.table));
        let io = |error: std::io::Error| ControlError::failed(format!("sockets: {error}"));
        let net = Net::new(&setup.wait).map_err(io)?;
        let target = Target::new(self.target_config(), setup.time.now());
        let shard = Shard::new(self.reactor, target, pool.clone(), setup.time.now());
        let mut shard = NodeShard(shard);
        let mut devices = Devices::default();
        for (number, cache) in (0u32..).zip(&self.config.caches) {
            if number % self.reactors != self.reactor {
                continue;
            }
            let failed = |error: ControlError| error.field("cache.device").value(&cache.device);
            let opened = self.open_cache(&cache.device, &drivers, &pool).map_err(failed)?;
            let (device, engine, mut found) =
                self.recover(opened, cache.durability, &pool, number).map_err(failed)?;
            found.engine = shard.add_engine(engine);
            let unit = devices.add_cache(number, Unit::new(cache.device.clone(), device));
            devices.bind_engine(unit);
            // The starter counts what arrives; it cannot be gone while it waits for this thread.
            let _ = self.found.send((self.reactor, found));
        }
        Ok(NodeService::new(Parts {
            reactor: self.reactor,
            shard,
            net,
            devices,
            drivers,
            pool,
            peers: self.senders,
            loopback_only: self.config.security.any_host_from_loopback,
        }))
    }

    fn memory(&self) -> u64 {
        self.config.node.memory.map_or(POOL_BYTES, |size| size.0 / u64::from(self.reactors))
    }

    fn pool_config(&self) -> PoolConfig {
        let bytes = usize::try_from(self.memory()).unwrap_or(usize::MAX);
        let pages = match self.config.node.hugepages {
            HugepageUse::Auto | HugepageUse::Required => Preference::PreferHugetlb,
            HugepageUse::Off => Preference::Ordinary,
        };
        PoolConfig { pages, ..PoolConfig::bounded(bytes) }
    }

    fn target_config(&self) -> TargetConfig {
        // Controller identifiers are unique on the node: each reactor gives out its own part.
        let share = 0xff00 / u16::try_from(self.reactors).unwrap_or(1).max(1);
        let first = 1 + share * u16::try_from(self.reactor).unwrap_or(0);
        let limits = TargetLimits { cntlids: first..=first + share - 1, ..TargetLimits::default() };
        TargetConfig { limits, ..TargetConfig::default() }
    }

    fn open_cache(
        &self,
        uri: &str,
        drivers: &DriverContext,
        pool: &SharedPool,
    ) -> Result<(AnyDevice, Opened)> {
        let mut device = forebay_driver::open(uri, drivers).map_err(|error| {
            ControlError::failed(format!("the cache device cannot be opened: {error}"))
        })?;
        warn_buffered(uri, &device);
        let quickstart = matches!(self.config.origin, Origin::Quickstart(_));
        // A quickstart's files take space as they fill.
        if !quickstart && let Err(error) = reserve(uri, &device) {
            tracing::warn!("{error}");
        }
        match read_header(&mut device, pool) {
            // A memory device is blank at every start, and a quickstart makes its own files.
            Err(OpenError::Blank) if quickstart || uri.contains("mem:") => {
                format_device(&mut device, pool)?;
            }
            Ok(opened) => return Ok((device, opened)),
            Err(error) => return Err(unsafe_error(&error)),
        }
        let opened = read_header(&mut device, pool).map_err(|error| unsafe_error(&error))?;
        Ok((device, opened))
    }

    fn recover(
        &self,
        (mut device, opened): (AnyDevice, Opened),
        durability: Durability,
        pool: &SharedPool,
        number: u32,
    ) -> Result<(AnyDevice, Engine<PoolBuf>, Found)> {
        if opened.header.shards != 1 {
            return Err(ControlError::new(
                ErrorKind::Unsupported,
                format!(
                    "the device has {} logical shards; this version serves devices with one",
                    opened.header.shards
                ),
            )
            .remedy("format it with this version's `forebay format`"));
        }
        let recovered = recover_shard(&mut device, &opened, pool)?;
        let stats = recovered.stats;
        let dirty: u64 = recovered.volumes.iter().map(|volume| volume.dirty).sum();
        let live: u64 = recovered.volumes.iter().map(|volume| volume.live).sum();
        let later = match recovered.deferred.segments.len() {
            0 => String::new(),
            segments => format!("; {segments} segments of clean blocks are read while it serves"),
        };
        let summary = format!(
            "{} segments, {live} blocks cached, {dirty} of them dirty; {} records{later}",
            stats.segments, stats.records
        );
        let info = device.info().clone();
        let slots = opened.map(0).map_or(0, |map| map.slots());
        let volatile_write_cache = match durability {
            Durability::Auto => info.volatile_write_cache,
            Durability::Protected => false,
            Durability::Volatile => true,
        };
        let mine = self.config.volumes.iter();
        let config = EngineConfig {
            limits: super::limits::limits_of(mine.clone()),
            tier_pages: self.tier_pages(),
            policy: PolicyKind::default(),
            ghost_blocks: usize::try_from(slots / GHOST_SHARE).unwrap_or(usize::MAX),
            volatile_write_cache,
        };
        let engine = Engine::new(&config, opened.header, recovered);
        let uuid = opened.header.cache;
        let found = Found { number, uuid, engine: 0, info, summary };
        Ok((device, engine, found))
    }

    /// Pages of the memory tier of one engine.
    fn tier_pages(&self) -> u32 {
        let tier = Tier::of(&self.config, self.reactor, self.reactors);
        u32::try_from(tier.bytes / 4096).unwrap_or(u32::MAX)
    }
}

/// The memory tier of one engine: buffers come out of the same memory, so that all tiers of a reactor
/// get half of it at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tier {
    /// What the volumes ask for; `None` where none does.
    asked: Option<u64>,
    /// What it gets.
    bytes: u64,
    /// The engines of its reactor.
    engines: u64,
    reactors: u64,
}

impl Tier {
    fn of(config: &ServeConfig, reactor: u32, reactors: u32) -> Self {
        let asked: Option<u64> = config
            .volumes
            .iter()
            .filter_map(|volume| volume.memory_tier)
            .map(|size| size.0)
            .reduce(u64::saturating_add);
        let caches = (0u32..).zip(&config.caches);
        let engines = caches.filter(|(number, _)| number % reactors == reactor).count() as u64;
        let (engines, reactors) = (engines.max(1), u64::from(reactors.max(1)));
        let memory = config.node.memory.map_or(POOL_BYTES, |size| size.0 / reactors);
        let bytes = asked.unwrap_or(memory / TIER_SHARE).min(memory / 2 / engines);
        Self { asked, bytes, engines, reactors }
    }

    /// What to say where it gets less than the volumes ask for.
    fn complaint(self) -> Option<String> {
        let asked = self.asked.filter(|asked| *asked > self.bytes)?;
        let needed = asked.saturating_mul(2 * self.engines * self.reactors);
        Some(format!(
            "memory_tier of all volumes is {asked} bytes, cut to {} for each cache: the tiers of a \
             reactor get half of its share of [node] memory at most; set memory = {needed} for all, \
             or ask for no more than it gets",
            self.bytes
        ))
    }
}

/// Bytes that all memory tiers may take, and what to say where that is less than was asked for.
pub(crate) fn tiers(config: &ServeConfig) -> (u64, Option<String>) {
    let reactors = u32::try_from(cores(config).len()).unwrap_or(1).max(1);
    let mut bytes = 0;
    let mut complaint = None;
    for (number, _) in (0u32..).zip(&config.caches) {
        let tier = Tier::of(config, number % reactors, reactors);
        bytes += tier.bytes / 4096 * 4096;
        complaint = complaint.or(tier.complaint());
    }
    (bytes, complaint)
}

/// Says so where a device's I/O takes the slow way.
pub(crate) fn warn_buffered(uri: &str, device: &AnyDevice) {
    if !device.is_direct() {
        tracing::warn!(
            device = uri,
            "its file system refuses O_DIRECT: its I/O goes through the page cache, which takes \
             memory of the system and is slower"
        );
    }
}

/// Sets aside the space of a cache file, so that its file system cannot run full under it: a cache that
/// cannot be written counts as failed.
///
/// # Errors
/// Where the file system has not that much left. One that cannot set anything aside is only told of.
pub(crate) fn reserve(uri: &str, device: &AnyDevice) -> Result<()> {
    let missing = device.unreserved();
    match device.reserve() {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
            Err(ControlError::failed(format!(
                "{uri}: its file system has no room for the {missing} bytes that the file still \
                 lacks; a cache device that runs full counts as failed, and data that only it has \
                 is out of reach then"
            ))
            .remedy("make room on that file system, or make a smaller cache file"))
        }
        Err(error) => {
            tracing::warn!(device = uri, %error, missing, "its file system sets no space aside: keep that much free");
            Ok(())
        }
    }
}

fn unsafe_error(error: &OpenError) -> ControlError {
    let kind = match error {
        OpenError::Device(_) => ErrorKind::Failed,
        _ => ErrorKind::Unsafe,
    };
    ControlError::new(kind, error.to_string())
}

/// Reads what a device is.
pub(crate) fn read_header(
    device: &mut AnyDevice,
    pool: &SharedPool,
) -> std::result::Result<Opened, OpenError> {
    let mut opener = (Opener::new(device.info().size, None), None);
    let mut pool = pool.clone();
    drive::run(
        device,
        &mut opener,
        |(opener, _)| opener.poll_action(&mut pool),
        |(opener, _), completion| opener.handle_completion(completion),
        |(opener, result)| {
            *result = opener.result();
            result.is_some()
        },
    );
    opener.1.unwrap_or(Err(OpenError::Device(forebay_io::DeviceError::Gone)))
}

/// Makes a device a cache device.
pub(crate) fn format_device(device: &mut AnyDevice, pool: &SharedPool) -> Result<Uuid> {
    let cache = random_uuid()?;
    let options = FormatOptions { shards: Some(1), ..FormatOptions::new(cache) };
    let plan = plan(device.info(), &options)
        .map_err(|error| ControlError::new(ErrorKind::Invalid, error.to_string()))?;
    drive::carry_out(device, &mut pool.clone(), &plan.steps)
        .map_err(|error| ControlError::failed(format!("the device cannot be written: {error}")))?;
    Ok(cache)
}

fn recover_shard(device: &mut AnyDevice, opened: &Opened, pool: &SharedPool) -> Result<Recovered> {
    let failed = |error: String| ControlError::new(ErrorKind::Unsafe, error);
    let (slots, blocks) = opened.map(0).map_or((0, 0), |map| (map.slots(), map.data_slots()));
    let last = u32::try_from(slots.saturating_sub(1)).unwrap_or(u32::MAX);
    let seed = u64::from_le_bytes(opened.header.cache.0[..8].try_into().unwrap_or([1; 8]));
    let index = Index::new(blocks, last, seed).map_err(|error| failed(error.to_string()))?;
    let mut recovery =
        Recovery::new(opened, 0, index, false).map_err(|error| failed(error.to_string()))?.staged();
    let mut pool = pool.clone();
    drive::run(
        device,
        &mut recovery,
        |recovery| {
            let op = recovery.poll_action(&mut pool)?;
            if op.kind == OpKind::Write {
                failpoints::hit("recovery-write");
            }
            Some(op)
        },
        |recovery, completion| {
            failpoints::hit("recovery-step");
            recovery.handle_completion(completion);
        },
        |recovery| recovery.is_done(),
    );
    recovery.finish().map_err(|error| failed(error.to_string()))
}

/// A fresh random identifier.
pub(crate) fn random_uuid() -> Result<Uuid> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| ControlError::failed(format!("no random numbers: {error}")))?;
    Ok(Uuid::from_random(bytes))
}

#[cfg(test)]
mod tests {
    use super::{Tier, tiers};
    use forebay_control::config::{CacheConfig, ServeConfig};
    use forebay_control::value::ByteSize;

    /// All tiers of a reactor together leave half of its memory to buffers, however many caches it has.
    #[test]
    fn tiers_leave_half_of_the_memory() {
        let mut config = ServeConfig::quickstart(std::path::Path::new("/q"));
        config.node.memory = Some(ByteSize(256 << 20));
        let cache: CacheConfig = config.caches[0].clone();
        for (caches, reactors, most) in [(1, 1, 128), (2, 1, 64), (2, 2, 64), (3, 2, 32)] {
            config.caches = vec![cache.clone(); caches];
            config.volumes[0].memory_tier = Some(ByteSize(1 << 30));
            let tier = Tier::of(&config, 0, reactors);
            assert_eq!((tier.bytes, tier.asked), (most << 20, Some(1 << 30)));
            let complaint = tier.complaint().unwrap();
            let needed = complaint.split("memory = ").nth(1).unwrap();
            let needed: u64 = needed.split(' ').next().unwrap().parse().unwrap();
            config.node.memory = Some(ByteSize(needed));
            let enough = Tier::of(&config, 0, reactors);
            assert_eq!((enough.bytes, enough.complaint()), (1 << 30, None));
            config.node.memory = Some(ByteSize(256 << 20));
        }
        config.caches = vec![cache];
        config.volumes[0].memory_tier = None;
        assert_eq!(tiers(&config), (64 << 20, None));
    }
}
