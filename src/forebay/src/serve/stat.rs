//! Statistics of the node: a picture of each reactor, put together and held against the last one.

use super::devices::{DeviceCounters, Unit};
use super::live::as_f64;
use super::net::Meta;
use super::node::Node;
use super::registry::{Down, Registry, Served, from_kept, shown_mode};
use super::service::NodeService;
use super::timing::{Timings, Which, Whose};
use forebay_cache::engine::{BlockCounts, EngineStats, OrderJournalStats, OrderState, VolumeStats};
use forebay_cluster::VolumeKey;
use forebay_control::config::ServeConfig;
use forebay_control::error::Result;
use forebay_control::stat::{
    DeviceStat, Health, HostStat, ListenStat, MemoryStat, NodeInfo, NodeStat, NodeState, OpStat,
    OrderedJournalStat, Prefix, ReactorStat, SCHEMA_VERSION, VolumeStat, VolumeState,
};
use forebay_control::value::Durability;
use forebay_io::{Device, DeviceError, Instant, VolumeId};
use forebay_nvmf::target::{ControllerInfo, NamespaceCounters, NamespaceLatency};
use forebay_reactor::{PoolUsage, ReactorHandle, ReactorStats, StatsSnapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A device at one moment.
struct DevicePicture {
    stat: DeviceStat,
    counters: DeviceCounters,
}

/// A reactor at one moment.
struct Picture {
    now: Instant,
    pool: PoolUsage,
    connections: usize,
    volumes: usize,
    /// Of its thread.
    allocations: u64,
    engines: Vec<EngineStats>,
    engine_errors: Vec<Option<DeviceError>>,
    caches: Vec<(u32, DevicePicture)>,
    backings: Vec<(VolumeId, DevicePicture)>,
    journals: Vec<(VolumeId, DevicePicture)>,
    states: Vec<(VolumeId, Option<VolumeStats>, Option<String>)>,
    controllers: Vec<(ControllerInfo, Option<Meta>)>,
}

/// Makes statistics; keeps what rates need.
pub(crate) struct Sampler {
    began: std::time::Instant,
    reactors: Vec<Arc<ReactorStats>>,
    last: Option<(std::time::Instant, NodeStat)>,
    last_reactors: Vec<StatsSnapshot>,
    /// Volumes' counters at the last sample, for hit ratios.
    last_blocks: BTreeMap<VolumeId, BlockCounts>,
    timings: Timings,
    /// Bytes that the memory tiers may take.
    tier_max: u64,
}

impl Sampler {
    pub(crate) fn new(handles: &[ReactorHandle], config: &ServeConfig) -> Self {
        let reactors: Vec<_> = handles.iter().map(|handle| Arc::clone(handle.stats())).collect();
        let last_reactors = reactors.iter().map(|stats| stats.snapshot()).collect();
        Self {
            began: std::time::Instant::now(),
            reactors,
            last: None,
            last_reactors,
            last_blocks: BTreeMap::new(),
            timings: Timings::default(),
            tier_max: super::start::tiers(config).0,
        }
    }

    /// Everything, now.
    pub(crate) fn sample(
        &mut self,
        node: &Node,
        registry: &Registry,
        state: NodeState,
    ) -> Result<NodeStat> {
        let pictures = node.reactors.each(|service, context| picture(service, context.now))?;
        let at = std::time::Instant::now();
        let mut stat = NodeStat {
            schema_version: SCHEMA_VERSION,
            node: self.node(node, &pictures, state),
            reactors: self.reactors(node, &pictures),
            caches: caches(node, &pictures, &mut self.timings),
            volumes: Vec::new(),
            hosts: hosts(&pictures),
        };
        for served in &registry.served {
            if let Some(volume) = self.volume(node, served, &pictures)? {
                stat.volumes.push(volume);
            }
        }
        for aside in &registry.down {
            if let Some(keyed) = registry.store.find(&aside.config.name) {
                stat.volumes.push(down(node, aside, &keyed.key));
            }
        }
        stat.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        // The first interval is that since the start, as it is of latencies and hits.
        let (since, before) = match &self.last {
            Some((at, before)) => (*at, Some(before)),
            None => (self.began, None),
        };
        rates(&mut stat, before, at.duration_since(since).as_secs_f64());
        self.last = Some((at, stat.clone()));
        self.timings.next();
        Ok(stat)
    }

    fn node(&self, node: &Node, pictures: &[Picture], state: NodeState) -> NodeInfo {
        let mut memory = MemoryStat { tier_max_bytes: self.tier_max, ..MemoryStat::default() };
        for picture in pictures {
            memory.hugepage_bytes += picture.pool.hugetlb as u64;
            memory.ordinary_bytes += picture.pool.ordinary as u64;
            memory.free_bytes += picture.pool.mapped.saturating_sub(picture.pool.bytes) as u64;
            memory.index_bytes += picture.engines.iter().map(|e| e.memory_bytes).sum::<u64>();
        }
        NodeInfo {
            name: node.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.began.elapsed().as_secs(),
            state,
            nqn_prefix: node.config.node.nqn_prefix.clone(),
            listen: node
                .listening
                .iter()
                .map(|address| ListenStat {
                    transport: "tcp".to_owned(),
                    address: address.ip().to_string(),
                    port: address.port(),
                })
                .collect(),
            memory,
        }
    }

    fn reactors(&mut self, node: &Node, pictures: &[Picture]) -> Vec<ReactorStat> {
        let now: Vec<_> = self.reactors.iter().map(|stats| stats.snapshot()).collect();
        let before = core::mem::replace(&mut self.last_reactors, now.clone());
        let nanos = |span: core::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let rows = (0u32..).zip(now.iter().zip(&before)).zip(pictures);
        rows.map(|((id, (now, before)), picture)| ReactorStat {
            id,
            core: super::start::core_of(&node.config, id).and_then(|core| u32::try_from(core).ok()),
            busy_ns: nanos(now.busy),
            idle_ns: nanos(now.spinning + now.asleep),
            busy_percent: 100.0 * now.busy_share(before),
            connections: u32::try_from(picture.connections).unwrap_or(u32::MAX),
            volumes: u32::try_from(picture.volumes).unwrap_or(u32::MAX),
            allocations: picture.allocations,
        })
        .collect()
    }

    fn volume(
        &mut self,
        node: &Node,
        served: &Served,
        pictures: &[Picture],
    ) -> Result<Option<VolumeStat>> {
        let Some(picture) = usize::try_from(served.reactor).ok().and_then(|at| pictures.get(at))
        else {
            return Ok(None);
        };
        let Some(engine) = picture.engines.get(served.engine) else { return Ok(None) };
        let found = picture.states.iter().find(|(id, ..)| *id == served.id);
        let Some((_, Some(inside), cause)) = found else { return Ok(None) };
        let (commands, took) = *node.commands_of(served)?;
        let backing = picture.backings.iter().find(|(id, _)| *id == served.id);
        let mut backing = backing
            .map(|(id, picture)| picture.timed(Whose::Backing(*id), &mut self.timings))
            .unwrap_or_default();
        backing.errors = backing.errors.max(inside.backing_errors);
        if let Some(at) = inside.backing_hanging {
            backing.health = Health::Degraded;
            let seconds = picture.now.since(at).as_secs();
            backing.cause = Some(format!("no answer for {seconds} s"));
        } else if let Some((at, error)) = inside.backing_failing {
            backing.health = Health::Failed;
            let seconds = picture.now.since(at).as_secs();
            backing.cause = Some(format!("{error}, for {seconds} s"));
        }
        let journal = picture.journals.iter().find(|(id, _)| *id == served.id);
        let journal = inside.order_journal.zip(journal).map(|(inside, (id, device))| {
            let device = device.timed(Whose::Journal(*id), &mut self.timings);
            journal_of(picture.now, inside, device)
        });
        let state = if cause.is_some() { VolumeState::Degraded } else { VolumeState::Active };
        let block = u64::from(served.config.block_size);
        let blocks = inside.blocks;
        let hosts = Whose::Hosts(served.id);
        let read = (commands.reads, commands.blocks_read * block);
        let write = (commands.writes, commands.blocks_written * block);
        Ok(Some(VolumeStat {
            name: served.config.name.clone(),
            uuid: served.uuid.to_string(),
            nguid: served.nguid.to_string().replace('-', ""),
            nqn: served.nqn.clone(),
            nsid: served.nsid,
            state,
            cause: cause.clone(),
            mode: shown_mode(inside.mode),
            target_mode: shown_mode(inside.target),
            size: served.size,
            block_size: served.config.block_size,
            owner_epoch: served.owner_epoch,
            reactor: served.reactor,
            cache: Some(served.cache),
            backing,
            read: self.timings.ops((hosts, Which::Read), read, &took.read),
            write: self.timings.ops((hosts, Which::Write), write, &took.write),
            flush: self.timings.ops((hosts, Which::Flush), (commands.flushes, 0), &took.flush),
            hits: blocks.all_hits(),
            memory_hits: blocks.tier_hits,
            misses: blocks.misses,
            bypassed: blocks.bypassed_reads,
            cached_writes: blocks.writes,
            bypassed_writes: blocks.bypassed_writes,
            hit_ratio: self.hit_ratio(served.id, blocks),
            cached_bytes: inside.cached_bytes,
            cache_min_bytes: served.config.cache_min.map_or(0, |min| min.0),
            cache_max_bytes: served.config.cache_max.map(|max| max.0),
            pinned_bytes: inside.pinned_bytes,
            memory_tier_bytes: engine.tier_pages * 4096,
            dirty_bytes: inside.dirty_bytes,
            prefix: inside.order.map(prefix_of),
            ordered_journal: journal,
            kept_bytes: inside.kept_bytes,
            dirty_pinned_bytes: engine.dirty_bytes,
            dirty_max: engine.dirty_limit,
            oldest_dirty_ms: engine
                .oldest_dirty
                .filter(|_| inside.dirty_bytes > 0)
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            oldest_dirty_before_start: engine.oldest_recovered && inside.dirty_bytes > 0,
            destaged_bytes: inside.destaged_bytes,
            destage_bytes_per_s: 0.0,
            lost_bytes: inside.lost_bytes,
            damaged_bytes: inside.damaged_bytes,
            healed: inside.healed,
        }))
    }

    fn hit_ratio(&mut self, id: VolumeId, now: BlockCounts) -> Option<f64> {
        let before = self.last_blocks.insert(id, now).unwrap_or_default();
        let all = now.reads().saturating_sub(before.reads());
        let hits = now.all_hits().saturating_sub(before.all_hits());
        (all > 0).then(|| as_f64(hits) / as_f64(all))
    }
}

impl Node {
    /// What the hosts of a volume did, and how long it took: both of the same commands.
    fn commands_of(&self, served: &Served) -> Result<Box<(NamespaceCounters, NamespaceLatency)>> {
        let nqn = super::attach::parse_nqn(&served.nqn)?;
        let nsid = served.nsid;
        // The namespace is counted where its subsystem lives; one reactor has it.
        let all = self.reactors.each(move |service, context| {
            service.shard.begin_loop(context.now);
            let target = &service.shard.target;
            let counters = target.namespace_counters(&nqn, nsid)?;
            let latency = target.namespace_latency(&nqn, nsid)?;
            Some(Box::new((counters, latency.clone())))
        })?;
        Ok(all.into_iter().flatten().next().unwrap_or_default())
    }
}

/// A volume's ordered journal: its device, and what the engine knows of it.
fn journal_of(
    now: Instant,
    inside: OrderJournalStats,
    mut device: DeviceStat,
) -> OrderedJournalStat {
    if let Some((at, error)) = inside.failing {
        device.health = Health::Failed;
        device.cause = Some(format!("{error}, for {} s", now.since(at).as_secs()));
    } else if let Some(at) = inside.hanging {
        device.health = Health::Degraded;
        device.cause = Some(format!("no answer for {} s", now.since(at).as_secs()));
    }
    OrderedJournalStat { device, capacity: inside.capacity, complete: inside.complete }
}

const fn prefix_of(state: OrderState) -> Prefix {
    match state {
        OrderState::NotYet => Prefix::NotYet,
        OrderState::Prefix(lsn) => Prefix::Holds { lsn: lsn.0 },
        OrderState::Destaging(lsn, end) => Prefix::Destaging { lsn: lsn.0, end: end.0 },
    }
}

/// A volume that is not served because its cache is not here.
fn down(node: &Node, aside: &Down, key: &VolumeKey) -> VolumeStat {
    VolumeStat {
        name: aside.config.name.clone(),
        uuid: key.uuid.to_string(),
        nguid: key.nguid.to_string().replace('-', ""),
        nqn: node.config.nqn(&key.subsystem),
        nsid: key.nsid,
        state: VolumeState::Down,
        cause: Some(aside.cause.clone()),
        mode: from_kept(key.mode),
        target_mode: from_kept(key.target_mode),
        size: key.size,
        block_size: key.block_size,
        owner_epoch: key.owner_epoch,
        reactor: 0,
        cache: None,
        backing: DeviceStat { uri: key.backing.clone(), ..DeviceStat::default() },
        read: OpStat::default(),
        write: OpStat::default(),
        flush: OpStat::default(),
        hits: 0,
        memory_hits: 0,
        misses: 0,
        bypassed: 0,
        cached_writes: 0,
        bypassed_writes: 0,
        hit_ratio: None,
        cached_bytes: 0,
        cache_min_bytes: aside.config.cache_min.map_or(0, |min| min.0),
        cache_max_bytes: aside.config.cache_max.map(|max| max.0),
        pinned_bytes: 0,
        memory_tier_bytes: 0,
        dirty_bytes: 0,
        prefix: None,
        ordered_journal: None,
        kept_bytes: 0,
        dirty_pinned_bytes: 0,
        dirty_max: 0,
        oldest_dirty_ms: None,
        oldest_dirty_before_start: false,
        destaged_bytes: 0,
        destage_bytes_per_s: 0.0,
        lost_bytes: 0,
        damaged_bytes: 0,
        healed: 0,
    }
}

fn picture(service: &mut NodeService, now: Instant) -> Picture {
    let engines: Vec<EngineStats> =
        service.shard.engines().map(|engine| engine.stats(now)).collect();
    let engine_errors = (0..engines.len()).map(|at| service.volumes.cache_failure(at)).collect();
    let mut states = Vec::new();
    for (id, _) in &service.devices.backings {
        let Some(engine) = service.volumes.get(*id).map(|volume| volume.engine) else { continue };
        if let Some(part) = service.shard.engine(engine) {
            states.push((*id, part.volume_stats(*id), part.cause(*id, now)));
        }
    }
    let controllers: Vec<ControllerInfo> = service.shard.target.controllers().collect();
    Picture {
        now,
        pool: service.pool.usage(),
        connections: service.net.connections(),
        volumes: service.volumes.len(),
        allocations: forebay_hugepages::allocations(),
        engines,
        engine_errors,
        caches: service.devices.caches.iter_mut().map(|(n, unit)| (*n, cache(unit))).collect(),
        backings: service
            .devices
            .backings
            .iter_mut()
            .map(|(id, unit)| (*id, device(unit)))
            .collect(),
        journals: service
            .devices
            .journals
            .iter_mut()
            .map(|(id, unit)| (*id, device(unit)))
            .collect(),
        states,
        controllers: controllers
            .into_iter()
            .map(|info| {
                let admin = info.queues.first().map(|(_, conn, ..)| *conn);
                let meta = admin.and_then(|conn| service.net.meta(conn));
                (info, meta)
            })
            .collect(),
    }
}

fn cache(unit: &mut Unit) -> DevicePicture {
    let mut picture = device(unit);
    picture.stat.unreserved = unit.device.unreserved();
    picture
}

fn device(unit: &mut Unit) -> DevicePicture {
    let info = unit.device.info();
    let counters = unit.counters.clone();
    let stat = DeviceStat {
        uri: unit.uri.clone(),
        identity: info.identity.clone(),
        size: info.size,
        block_size: info.block_size,
        volatile_write_cache: info.volatile_write_cache,
        buffered: !unit.device.is_direct(),
        unreserved: 0,
        health: Health::Ok,
        cause: None,
        in_flight: u32::try_from(unit.in_flight()).unwrap_or(u32::MAX),
        errors: counters.errors,
        read: OpStat::default(),
        write: OpStat::default(),
    };
    DevicePicture { stat, counters }
}

impl DevicePicture {
    fn timed(&self, whose: Whose, timings: &mut Timings) -> DeviceStat {
        let Self { stat, counters } = self;
        let read = (counters.read_ops, counters.read_bytes);
        let write = (counters.write_ops, counters.write_bytes);
        DeviceStat {
            read: timings.ops((whose, Which::Read), read, &counters.reads),
            write: timings.ops((whose, Which::Write), write, &counters.writes),
            ..stat.clone()
        }
    }
}

fn caches(node: &Node, pictures: &[Picture], timings: &mut Timings) -> Vec<DeviceStat> {
    let mut all: Vec<(u32, DeviceStat)> = Vec::new();
    for picture in pictures {
        for (position, (number, found)) in picture.caches.iter().enumerate() {
            let mut stat = found.timed(Whose::Cache(*number), timings);
            let engine = picture.engines.get(position);
            let failed = engine.and_then(|engine| engine.cache_failed);
            let error = picture.engine_errors.get(position).copied().flatten();
            if let Some((at, error)) = failed {
                stat.health = Health::Failed;
                stat.cause = Some(format!("{error}, {} s ago", picture.now.since(at).as_secs()));
            } else if let Some(at) = engine.and_then(|engine| engine.cache_hanging) {
                stat.health = Health::Degraded;
                stat.cause = Some(format!("no answer for {} s", picture.now.since(at).as_secs()));
            } else if let Some(error) = error.or(found.counters.last_error) {
                stat.health = Health::Degraded;
                stat.cause = Some(format!("last error: {error}"));
            }
            if let Some(cache) = usize::try_from(*number).ok().and_then(|at| node.caches.get(at)) {
                stat.volatile_write_cache = match cache.durability {
                    Durability::Auto => stat.volatile_write_cache,
                    Durability::Protected => false,
                    Durability::Volatile => true,
                };
            }
            all.push((*number, stat));
        }
    }
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, stat)| stat).collect()
}

fn hosts(pictures: &[Picture]) -> Vec<HostStat> {
    let mut all = Vec::new();
    let all_controllers =
        pictures.iter().flat_map(|p| p.controllers.iter().map(move |found| (p.now, found)));
    for (now, (info, meta)) in all_controllers {
        let Some(subsystem) = &info.subnqn else { continue };
        all.push(HostStat {
            nqn: info.host.nqn.to_string(),
            host_id: forebay_io::Uuid(info.host.id).to_string(),
            subsystem: subsystem.to_string(),
            address: meta.map(|meta| meta.peer.to_string()).unwrap_or_default(),
            controller: info.cntlid,
            io_queues: u32::try_from(info.queues.len().saturating_sub(1)).unwrap_or(u32::MAX),
            in_flight: info.queues.iter().map(|(.., commands)| *commands).sum(),
            header_digest: meta.is_some_and(|meta| meta.digests.header),
            data_digest: meta.is_some_and(|meta| meta.digests.data),
            connected_s: meta.map_or(0, |meta| now.since(meta.since).as_secs()),
        });
    }
    all.sort_by(|a, b| a.nqn.cmp(&b.nqn).then(a.controller.cmp(&b.controller)));
    all
}

/// Rates of everything over the time since the last sample.
fn rates(stat: &mut NodeStat, before: Option<&NodeStat>, seconds: f64) {
    if seconds <= 0.0 {
        return;
    }
    let rate = |now: &mut OpStat, then: Option<&OpStat>| {
        let then = then.copied().unwrap_or_default();
        now.iops = as_f64(now.ops.saturating_sub(then.ops)) / seconds;
        now.bytes_per_s = as_f64(now.bytes.saturating_sub(then.bytes)) / seconds;
    };
    for (at, now) in stat.caches.iter_mut().enumerate() {
        let then = before.and_then(|before| before.caches.get(at));
        rate(&mut now.read, then.map(|then| &then.read));
        rate(&mut now.write, then.map(|then| &then.write));
    }
    for now in &mut stat.volumes {
        let then = before.and_then(|before| before.volume(&now.name));
        rate(&mut now.read, then.map(|then| &then.read));
        rate(&mut now.write, then.map(|then| &then.write));
        rate(&mut now.flush, then.map(|then| &then.flush));
        rate(&mut now.backing.read, then.map(|then| &then.backing.read));
        rate(&mut now.backing.write, then.map(|then| &then.backing.write));
        if let Some(journal) = &mut now.ordered_journal {
            let then = then.and_then(|then| then.ordered_journal.as_ref());
            rate(&mut journal.device.read, then.map(|then| &then.device.read));
            rate(&mut journal.device.write, then.map(|then| &then.device.write));
        }
        let destaged = now.destaged_bytes.saturating_sub(then.map_or(0, |v| v.destaged_bytes));
        now.destage_bytes_per_s = as_f64(destaged) / seconds;
    }
}
