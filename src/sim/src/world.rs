//! A world: one reactor's shard with an engine, its devices, hosts on another reactor whose messages
//! arrive in any order, a clock that jumps to what happens next, and the checkers.
//!
//! The shard is the production `node::Shard`. Requests reach it as the messages that reactors send each
//! other for volumes that live elsewhere, so that routing, the acknowledgement rule and the engine are
//! the code that serves hosts; the bytes of NVMe/TCP are not part of these runs.

mod ask;
mod check;
mod cold;
mod drive;
mod operate;

pub use ask::Ask;

use crate::boot::{Boot, boot, open_journal};
use crate::buffer::{SimBuf, SimPool};
use crate::config::{Config, id_of};
use crate::device::Device;
use crate::history::{Host, Moment};
use crate::oracle::Oracle;
use crate::rng::Rng;
use ask::Asked;
use forebay_cache::engine::{CacheMode, Engine, Event};
use forebay_io::{Buf, Instant, Outcome, Piece, VolumeId};
use forebay_node::route::Message;
use forebay_node::shard::Shard;
use forebay_nvmf::target::{Target, TargetConfig};
use std::collections::{BTreeMap, BTreeSet};

/// The reactor that hosts are connected to, and the one that serves.
const FRONT: u32 = 0;
const HOME: u32 = 1;
/// Lines of the timeline that are kept.
const LINES_MAX: usize = 4000;
/// Has not ended.
const OPEN: u64 = u64::MAX;

/// Which errors a request may end in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// The cache device lost data: reads may fail for good.
    pub lost: bool,
    /// Devices fail: requests may be refused.
    pub refused: bool,
    /// The cache device may be refused at a start, which ends the run.
    pub unbootable: bool,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests that ended well.
    pub done: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Reads that the oracle judged.
    pub reads: u64,
    /// Blocks whose copy on a backing device was judged.
    pub places: u64,
    /// Crashes.
    pub crashes: u64,
}

/// See the module's description.
pub struct World {
    /// What it was made of.
    pub config: Config,
    shard: Shard<SimBuf, SimPool>,
    /// The pool of the shard.
    pub pool: SimPool,
    /// The cache device.
    pub cache: Device,
    /// The backing devices.
    pub backing: Vec<Device>,
    /// The ordered journal of the first volume, if it has one.
    pub journal: Option<Device>,
    /// The judges.
    pub oracles: Vec<Oracle>,
    /// Where each volume's mode goes.
    pub modes: Vec<CacheMode>,
    /// Volumes whose writes have bypassed the log.
    bypassed: Vec<bool>,
    /// Virtual time in nanoseconds.
    pub now: u64,
    tick: u64,
    rng: Rng,
    asked: BTreeMap<u64, Asked>,
    mail: Vec<(u64, Message<SimBuf>, u64)>,
    next_tag: u64,
    /// Begin and end of each write, for the order on the backing devices.
    times: Vec<(u64, u64)>,
    /// The LSN with which a write's sector entered the log first, in this life.
    versions: BTreeMap<(u64, u64), u64>,
    /// What was taken from the engine and not waited for yet.
    pub events: Vec<Event>,
    /// Which errors are allowed now.
    pub tolerance: Tolerance,
    /// The cache device counts as failed.
    pub cache_failed: bool,
    /// What is wrong.
    pub violation: Option<String>,
    /// The cache device was refused, as may be.
    pub over: bool,
    /// What happened, if it is kept.
    pub lines: Option<Vec<String>>,
    moments: Option<Vec<Moment>>,
    /// Counts.
    pub counts: Counts,
    /// A sum of everything that happened.
    pub hash: u64,
    most_live: u64,
    /// When a device misbehaved last.
    faulty: u64,
    /// Volumes of which nothing is dirty, and nothing was asked since that was said.
    drained: Vec<bool>,
    /// What a compare-and-write has found and replaced: volume, sector, write.
    replaced: BTreeSet<(usize, u64, u64)>,
    /// The next start finds no footer.
    cold: bool,
    /// A read of the checkers' own, and its end.
    raw: Option<(u64, Option<RawEnd>)>,
}

/// How a read of the checkers' own ended, and its data.
type RawEnd = (Outcome, Vec<u8>);

/// The bytes of read data.
fn gather(pieces: &[Piece<SimBuf>]) -> Vec<u8> {
    let mut data = Vec::new();
    for piece in pieces {
        let start = piece.offset as usize;
        let part = piece.buf.as_slice().get(start..start + piece.len as usize);
        data.extend_from_slice(part.unwrap_or_default());
    }
    data
}

impl World {
    /// A world with a formatted cache, its volumes attached.
    #[must_use]
    pub fn new(config: Config, lines: bool) -> Self {
        let seed = config.seed;
        let medium = config.formatted();
        let cache = Device::with(config.cache_info(), medium, Rng::new(seed, 2));
        let backing: Vec<Device> = (0..config.volumes.len())
            .map(|n| Device::new(config.backing_info(n), Rng::new(seed, 10 + n as u64)))
            .collect();
        let oracles = config.volumes.iter().map(|v| Oracle::new(v.size, !config.volatile));
        let oracles = oracles.collect();
        let modes = config.volumes.iter().map(|v| v.mode).collect();
        let mut world = Self::on(config, cache, backing, oracles, modes, lines);
        world.start();
        world
    }

    /// A world on these devices, that has not started yet.
    #[must_use]
    pub fn on(
        config: Config,
        mut cache: Device,
        mut backing: Vec<Device>,
        oracles: Vec<Oracle>,
        modes: Vec<CacheMode>,
        lines: bool,
    ) -> Self {
        cache.latency = config.cache_latency;
        for disk in &mut backing {
            disk.latency = config.backing_latency;
        }
        let journal = (config.journal > 0).then(|| {
            let info = crate::device::info("journal", config.journal, config.backing_volatile);
            let mut disk = Device::new(info, Rng::new(config.seed, 30));
            disk.latency = config.cache_latency;
            disk
        });
        let pool = SimPool::default();
        let (bypassed, drained) = (vec![false; modes.len()], vec![false; modes.len()]);
        Self {
            shard: Self::shard(&pool, 0),
            pool,
            cache,
            backing,
            journal,
            oracles,
            bypassed,
            modes,
            now: 1_000_000,
            tick: 1,
            rng: Rng::new(config.seed, 3),
            asked: BTreeMap::new(),
            mail: Vec::new(),
            next_tag: 1,
            times: vec![(0, 0)],
            versions: BTreeMap::new(),
            events: Vec::new(),
            tolerance: Tolerance::default(),
            cache_failed: false,
            violation: None,
            over: false,
            lines: lines.then(Vec::new),
            moments: None,
            counts: Counts::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            most_live: 0,
            faulty: 0,
            drained,
            replaced: BTreeSet::new(),
            cold: false,
            raw: None,
            config,
        }
    }

    fn shard(pool: &SimPool, now: u64) -> Shard<SimBuf, SimPool> {
        let target = Target::new(TargetConfig::default(), Instant(now));
        Shard::new(HOME, target, pool.clone(), Instant(now))
    }

    /// From now on every moment is kept.
    pub fn record(&mut self) {
        self.moments = Some(Vec::new());
        self.cache.watch();
        self.backing.iter_mut().for_each(Device::watch);
    }

    /// What happened since [`World::record`].
    pub fn moments(&mut self) -> Vec<Moment> {
        self.keep_touches();
        self.moments.take().unwrap_or_default()
    }

    fn keep_touches(&mut self) {
        let Some(moments) = &mut self.moments else { return };
        moments.extend(self.cache.touches().into_iter().map(Moment::Cache));
        for (n, disk) in self.backing.iter_mut().enumerate() {
            moments.extend(disk.touches().into_iter().map(|touch| Moment::Backing(n, touch)));
        }
    }

    fn tell(&mut self, host: Host) {
        let told = host.tell(&mut self.oracles);
        if self.moments.is_some() {
            self.keep_touches();
            if let Some(moments) = &mut self.moments {
                moments.push(Moment::Host(host));
            }
        }
        if let Err(wrong) = told {
            self.fail(wrong);
        }
    }

    fn ticked(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Now, as the oracles count.
    #[must_use]
    pub const fn tick(&self) -> u64 {
        self.tick
    }

    /// Notes a violation; the first one counts.
    pub fn fail(&mut self, what: String) {
        self.line(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    /// Adds a line to the timeline and to the sum of what happened.
    pub fn line(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                // The begin and the end tell most.
                lines.remove(LINES_MAX / 2);
            }
            lines.push(format!("{:>12.3} µs  {}", now as f64 / 1000.0, text()));
        }
    }

    fn sum(&mut self, what: u64) {
        self.hash = (self.hash ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    /// The engine.
    ///
    /// # Panics
    /// Before the start.
    pub fn engine(&mut self) -> &mut Engine<SimBuf> {
        self.shard.engine(0).expect("the world has started")
    }

    /// Opens the cache device and attaches all volumes, in the modes where they were going.
    pub fn start(&mut self) {
        match boot(&mut self.cache, None, self.config.plant) {
            Boot::Up(up) => {
                let (header, recovered) = *up;
                if !recovered.lost.is_empty() && !self.tolerance.lost {
                    self.fail(format!("recovery lists {:?} as lost", recovered.lost));
                }
                let engine = Engine::new(&self.config.engine(), header, recovered);
                self.shard = Self::shard(&self.pool, self.now);
                #[cfg(feature = "planted-bugs")]
                let engine = {
                    let mut engine = engine;
                    engine.plant(self.config.plant);
                    engine
                };
                self.shard.add_engine(engine);
            }
            Boot::Cut => {}
            Boot::Refused(_) if self.tolerance.unbootable => {
                self.over = true;
                return;
            }
            Boot::Refused(why) => {
                self.fail(format!("the cache device was refused: {why}"));
                return;
            }
        }
        if self.cold {
            self.refuse_reads();
        }
        for n in 0..self.backing.len() {
            if !self.attach(n) {
                return;
            }
        }
    }

    /// Attaches a volume in the mode where it was going; `false` where it is refused.
    fn attach(&mut self, n: usize) -> bool {
        let mode = self.modes[n];
        self.note_mode(n, mode);
        let spec = self.config.spec(n, mode, self.backing[n].info.clone());
        if let Err(error) = self.engine().add_volume(&spec) {
            self.fail(format!("volume {n} was refused: {error}"));
            return false;
        }
        if let Some(disk) = self.journal.as_mut().filter(|_| n == 0) {
            let opened = open_journal(disk, spec.uuid, &spec.backing);
            let given =
                opened.and_then(|opened| self.engine().set_ordered_journal(spec.id, opened));
            if let Err(error) = given {
                self.fail(format!("the ordered journal of volume {n} was refused: {error}"));
                return false;
            }
        }
        self.wait_for(|event| *event == Event::Attached { volume: id_of(n) });
        true
    }

    fn note_mode(&mut self, volume: usize, mode: CacheMode) {
        self.bypassed[volume] |= matches!(mode, CacheMode::PassThrough | CacheMode::WriteAround);
        self.keep_touches();
        if let Some(moments) = &mut self.moments {
            moments.push(Moment::Mode(volume, mode));
        }
    }

    /// A volume's writes have bypassed the log before.
    pub fn set_bypassed(&mut self, volume: usize) {
        self.bypassed[volume] = true;
    }

    /// Whether a volume's writes have ever bypassed the log.
    #[must_use]
    pub fn has_bypassed(&self, volume: usize) -> bool {
        self.bypassed[volume]
    }

    /// The most bytes that were in buffers at once.
    #[must_use]
    pub const fn most_live(&self) -> u64 {
        self.most_live
    }

    /// Faults injected so far.
    #[must_use]
    pub fn injected(&self) -> crate::device::Injected {
        let mut all = crate::device::Injected::default();
        for disk in core::iter::once(&self.cache).chain(&self.backing) {
            all.errors += disk.injected.errors;
            all.lies += disk.injected.lies;
            all.chances += disk.injected.chances;
            all.crashed += disk.injected.crashed;
        }
        all.errors += self.pool.refused();
        all
    }

    /// The volume of a handle.
    #[must_use]
    pub fn volume_of(id: VolumeId) -> usize {
        usize::try_from(id.0.saturating_sub(3)).unwrap_or(0)
    }
}
