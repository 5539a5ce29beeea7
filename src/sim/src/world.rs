//! A world: one reactor's shard with an engine, its devices, hosts on another reactor whose messages
//! arrive in any order, a clock that jumps to what happens next, and the checkers.
//!
//! The shard is the production `node::Shard`. Requests reach it as the messages that reactors send each
//! other for volumes that live elsewhere, so that routing, the acknowledgement rule and the engine are
//! the code that serves hosts; the bytes of NVMe/TCP are not part of these runs.

use crate::boot::{Boot, boot};
use crate::buffer::{SimBuf, SimPool};
use crate::config::{Config, id_of};
use crate::device::Device;
use crate::history::{Host, Moment, Span};
use crate::oracle::{Oracle, Seen, content, recognise};
use crate::rng::Rng;
use forebay_cache::engine::{Action, CacheMode, CopyAt, Engine, Event, Source};
use forebay_io::{
    BlockError, Buf, Instant, Lba, Lsn, Outcome, Piece, Request, RequestOp, Tag, VolumeId,
};
use forebay_node::route::{Cargo, Message};
use forebay_node::shard::{Shard, ShardEvent};
use forebay_nvmf::target::{Target, TargetConfig};
use std::collections::BTreeMap;

/// The reactor that hosts are connected to, and the one that serves.
const FRONT: u32 = 0;
const HOME: u32 = 1;
/// Lines of the timeline that are kept.
const LINES_MAX: usize = 4000;
/// Has not ended.
const OPEN: u64 = u64::MAX;

/// What a host asks.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Volume.
    pub volume: usize,
    /// What.
    pub op: RequestOp,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Force unit access.
    pub fua: bool,
    /// Spoil the data of a compare, so that it must fail.
    pub spoil: bool,
}

/// A request under way.
#[derive(Clone, Debug)]
struct Asked {
    ask: Ask,
    write: u64,
    start: u64,
    /// A compare that must succeed, or must fail.
    expect: Option<bool>,
}

impl Ask {
    fn changes(&self) -> bool {
        !matches!(self.op, RequestOp::Read | RequestOp::Compare | RequestOp::Flush)
    }

    const fn span(&self) -> Span {
        (self.offset, self.len)
    }
}

/// Which errors a request may end in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// The cache device lost data: reads may fail for good.
    pub lost: bool,
    /// Devices fail: requests may be refused.
    pub refused: bool,
    /// Dirty data is lost, and what waits until it is clean never ends: a gap of the engine that is
    /// known, counted apart, and ends the run.
    pub stuck: bool,
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
    /// Runs that lost blocks kept from ending.
    pub stuck: u64,
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
        let pool = SimPool::default();
        let bypassed = vec![false; modes.len()];
        Self {
            shard: Self::shard(&pool, 0),
            pool,
            cache,
            backing,
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

    /// Waits until nothing is in flight and makes all that completed durable, as a device may at any
    /// time.
    pub fn calm(&mut self) {
        self.quiesce();
        for _ in 0..1000 {
            let flying = self.backing.iter().map(Device::in_flight).sum::<usize>();
            if flying + self.cache.in_flight() == 0 || self.violation.is_some() {
                break;
            }
            self.step();
        }
        self.cache.settle();
        self.backing.iter_mut().for_each(Device::settle);
        let tick = self.tick();
        for volume in 0..self.oracles.len() {
            self.oracles[volume].flushed(tick);
        }
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
        match boot(&mut self.cache, None) {
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
        for n in 0..self.backing.len() {
            let mode = self.modes[n];
            self.note_mode(n, mode);
            let spec = self.config.spec(n, mode, self.backing[n].info.clone());
            if let Err(error) = self.engine().add_volume(&spec) {
                self.fail(format!("volume {n} was refused: {error}"));
                return;
            }
            self.wait_for(|event| *event == Event::Attached { volume: id_of(n) });
        }
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

    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.asked.len()
    }

    /// Sends a request to the reactor that serves; returns its tag.
    pub fn ask(&mut self, ask: Ask) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let unit = u64::from(self.config.volumes[ask.volume].unit);
        let request = Request {
            tag: Tag(tag),
            volume: id_of(ask.volume),
            op: ask.op,
            lba: Lba(ask.offset / unit),
            blocks: u32::try_from(ask.len / unit).unwrap_or(0),
            fua: ask.fua,
        };
        let write = if ask.changes() { self.times.len() as u64 } else { 0 };
        let (want, expect) = self.want(&ask);
        let data = SimBuf::from_bytes(&content(write, ask.offset, ask.len));
        let cargo = match ask.op {
            RequestOp::Write => Cargo::One(data),
            RequestOp::Compare => Cargo::One(SimBuf::from_bytes(&want)),
            RequestOp::CompareAndWrite => Cargo::Pair(SimBuf::from_bytes(&want), data),
            _ => Cargo::None,
        };
        let start = self.ticked();
        if ask.changes() {
            self.times.push((start, OPEN));
            let zero = matches!(ask.op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
            self.tell(Host::Started {
                volume: ask.volume,
                at: ask.span(),
                write,
                zero,
                certain: ask.op != RequestOp::Deallocate,
                tick: start,
            });
        }
        self.line(|| {
            let fua = if ask.fua { " FUA" } else { "" };
            format!(
                "host   {tag} {:?} vol{} {}+{}{fua} write {write}",
                ask.op, ask.volume, ask.offset, ask.len
            )
        });
        self.asked.insert(tag, Asked { ask, write, start, expect });
        let message = Message::Forward { from: FRONT, request, cargo };
        if self.config.mail == 0 {
            self.shard.handle_message(message, Instant(self.now));
            self.pump();
        } else {
            let at = self.now + self.rng.below(self.config.mail);
            self.mail.push((at, message, tag));
        }
        tag
    }

    /// The data of a compare, and whether it must be found.
    fn want(&mut self, ask: &Ask) -> (Vec<u8>, Option<bool>) {
        if !matches!(ask.op, RequestOp::Compare | RequestOp::CompareAndWrite) {
            return (Vec::new(), None);
        }
        let end = ask.offset + ask.len;
        // Others may write the same place meanwhile.
        let busy = self.asked.values().any(|o| {
            o.ask.volume == ask.volume
                && o.ask.changes()
                && o.ask.offset < end
                && ask.offset < o.ask.offset + o.ask.len
        });
        let known = self.oracles[ask.volume].known(ask.offset, ask.len);
        let expect = (known.is_some() && !busy).then_some(!ask.spoil);
        let mut data = known.unwrap_or_else(|| vec![0; usize::try_from(ask.len).unwrap_or(0)]);
        if ask.spoil && !data.is_empty() {
            let at = self.rng.index(data.len());
            data[at] ^= 0x55;
        }
        // A later overlapping change may overtake a message, and a compare that writes nothing
        // holds nobody up.
        let sure = self.config.mail == 0 && ask.op == RequestOp::CompareAndWrite;
        (data, expect.filter(|_| sure))
    }

    /// One poll: time goes on to the next thing that happens.
    pub fn step(&mut self) {
        let mut next = self.now + 1_000_000;
        for disk in core::iter::once(&self.cache).chain(&self.backing) {
            next = next.min(disk.next_ready());
        }
        next = next.min(self.mail.iter().map(|mail| mail.0).min().unwrap_or(u64::MAX));
        next = next.min(self.shard.next_deadline().0);
        // A poll costs at least two microseconds, and several things may happen in one.
        self.now = next.max(self.now + 2_000) + self.rng.below(3) * 3_000;
        let now = Instant(self.now);
        while let Some(at) = self.mail.iter().position(|mail| mail.0 <= self.now) {
            // Those that are due arrive in any order.
            let (_, message, tag) = self.mail.swap_remove(at);
            self.line(|| format!("mail   {tag} arrives"));
            self.shard.handle_message(message, now);
            self.pump();
        }
        while let Some(done) = self.cache.take_ready(self.now) {
            self.note_done("cache", done.token, done.result.err().map(|e| e.to_string()));
            self.shard.handle_device(0, Source::Cache, done, now);
            self.pump();
        }
        for n in 0..self.backing.len() {
            while let Some(done) = self.take_backing(n) {
                self.note_done("backing", done.token, done.result.err().map(|e| e.to_string()));
                self.shard.handle_device(0, Source::Backing(id_of(n)), done, now);
                self.pump();
            }
        }
        if self.shard.next_deadline() <= now {
            self.shard.handle_timeout(now);
            self.pump();
        }
        self.shard.end_of_poll(now);
        self.pump();
        self.check_bounds();
    }

    fn note_done(&mut self, device: &str, token: u64, error: Option<String>) {
        self.sum(token ^ self.now.rotate_left(32));
        self.line(|| format!("device {device} done {token:x} {}", error.unwrap_or_default()));
    }

    /// The next completion of a backing device, whose order of versions is judged.
    fn take_backing(&mut self, n: usize) -> Option<forebay_io::Completion<SimBuf>> {
        let before = self.backing[n].bytes.clone();
        let done = self.backing[n].take_ready(self.now)?;
        let changed = self.backing[n].bytes.changed(&before);
        for page in changed {
            self.judge_order(n, page, &before);
        }
        Some(done)
    }

    /// A page of a backing device changed: no sector of it may have gone back to an older write.
    fn judge_order(&mut self, n: usize, page: u64, before: &crate::medium::Medium) {
        let from = page * 4096;
        let len = 4096.min(before.size() - from);
        let (old, new) = (before.bytes(from, len), self.backing[n].bytes.bytes(from, len));
        let place = from / 512..;
        for ((place, old), new) in place.zip(old.chunks(512)).zip(new.chunks(512)) {
            if let (Seen::Write(old), Seen::Write(new)) =
                (recognise(place, old), recognise(place, new))
                && let (Some(old_time), Some(new_time)) = (
                    usize::try_from(old).ok().and_then(|at| self.times.get(at)),
                    usize::try_from(new).ok().and_then(|at| self.times.get(at)),
                )
                && new_time.1 < old_time.0
            {
                self.fail(format!(
                    "the backing device of volume {n} goes back in time: sector {place} held write {old}, now write {new}"
                ));
            }
        }
    }

    /// Carries actions to the devices, messages and events to the hosts.
    fn pump(&mut self) {
        let now = Instant(self.now);
        loop {
            self.shard.settle(now);
            let mut any = false;
            while let Some((to, message)) = self.shard.poll_message() {
                any = true;
                self.answered(to, message);
            }
            while let Some(event) = self.shard.poll_event() {
                any = true;
                self.happened(event);
            }
            while let Some(action) = self.shard.poll_action(0) {
                any = true;
                self.carry_out(action);
            }
            if !any {
                break;
            }
        }
        if self.moments.is_some() {
            self.keep_touches();
        }
    }

    fn carry_out(&mut self, action: Action<SimBuf>) {
        let (name, op) = match &action {
            Action::Cache(op) => ("cache".to_owned(), op),
            Action::Backing(id, op) => (format!("backing{}", id.0 - 3), op),
        };
        let (kind, token, offset, len, fua) = (op.kind, op.token, op.offset, op.len, op.fua);
        self.sum(token ^ offset.rotate_left(20) ^ len.rotate_left(44) ^ kind as u64);
        self.line(|| {
            let fua = if fua { " FUA" } else { "" };
            format!("device {name} {kind:?} {offset}+{len}{fua} as {token:x}")
        });
        match action {
            Action::Cache(op) => self.cache.submit(op, self.now),
            Action::Backing(id, op) => {
                let n = usize::try_from(id.0 - 3).unwrap_or(0);
                self.backing[n].submit(op, self.now);
            }
        }
    }

    fn happened(&mut self, event: ShardEvent) {
        self.line(|| format!("engine {event:?}"));
        match event {
            ShardEvent::CommitFault { volume, run } => {
                self.fail(format!("commits of {volume} out of order: {run:?}"));
            }
            ShardEvent::Engine { event, .. } => {
                match &event {
                    Event::Attached { volume } => {
                        let committed = self.engine().committed_lsn(*volume).unwrap_or(Lsn(0));
                        self.shard.serve(*volume, 0, committed);
                    }
                    Event::CacheFailed { error } => {
                        self.cache_failed = true;
                        if !self.tolerance.lost {
                            self.fail(format!("the cache device counts as failed: {error}"));
                        }
                        self.engine().cache_failure_noted();
                    }
                    Event::DirtyLost { volume, block, .. } if !self.tolerance.lost => {
                        self.fail(format!("block {block} of {volume} counts as lost"));
                    }
                    _ => {}
                }
                self.events.push(event);
            }
        }
    }

    fn answered(&mut self, to: u32, message: Message<SimBuf>) {
        let Message::Answer { tag, outcome, pieces } = message else {
            self.fail(format!("an unexpected message to {to}: {message:?}"));
            return;
        };
        if let Some(raw) = self.raw.as_mut().filter(|raw| raw.0 == tag.0 && raw.1.is_none()) {
            raw.1 = Some((outcome, gather(&pieces)));
            return;
        }
        let Some(asked) = self.asked.remove(&tag.0) else {
            self.fail(format!("request {} ended twice", tag.0));
            return;
        };
        let tick = self.ticked();
        let code = match outcome {
            Outcome::Done => 0,
            Outcome::Failed(error) => 1 + error as u64,
        };
        self.sum(tag.0 ^ code.rotate_left(40));
        self.line(|| format!("host   {} ends: {outcome:?}", tag.0));
        match outcome {
            Outcome::Done => self.ended_well(&asked, tick, &pieces),
            Outcome::Failed(error) => self.ended_badly(&asked, error),
        }
    }

    fn horizon(&self, start: u64) -> u64 {
        self.asked.values().map(|a| a.start).min().unwrap_or(OPEN).min(start)
    }

    fn ended_well(&mut self, asked: &Asked, tick: u64, pieces: &[Piece<SimBuf>]) {
        self.counts.done += 1;
        let ask = &asked.ask;
        let horizon = self.horizon(asked.start);
        match ask.op {
            RequestOp::Read => {
                let data = gather(pieces);
                if data.len() as u64 != ask.len {
                    self.fail(format!("a read of {} bytes got {}", ask.len, data.len()));
                    return;
                }
                let crc = forebay_io::crc::crc32c(&data);
                self.sum(u64::from(crc));
                self.counts.reads += 1;
                let (volume, offset, start) = (ask.volume, ask.offset, asked.start);
                self.tell(Host::Read { volume, offset, data: data.into(), start, tick });
            }
            RequestOp::Flush => {
                self.tell(Host::Flushed { volume: ask.volume, start: asked.start });
            }
            RequestOp::Compare => {
                if asked.expect == Some(false) {
                    self.fail(format!("a compare that must fail succeeded: {asked:?}"));
                }
            }
            _ => {
                if asked.expect == Some(false) {
                    self.fail(format!("a compare that must fail succeeded: {asked:?}"));
                }
                self.times[usize::try_from(asked.write).unwrap_or(0)].1 = tick;
                self.tell(Host::Ended {
                    volume: ask.volume,
                    at: ask.span(),
                    write: asked.write,
                    tick,
                    horizon,
                    fua: ask.fua,
                });
            }
        }
    }

    fn ended_badly(&mut self, asked: &Asked, error: BlockError) {
        self.counts.failed += 1;
        let ask = &asked.ask;
        if error == BlockError::CompareFailed {
            if asked.expect == Some(true) {
                self.fail(format!("a compare that must succeed failed: {asked:?}"));
            }
            if ask.op == RequestOp::CompareAndWrite {
                let (volume, at, write) = (ask.volume, ask.span(), asked.write);
                self.tell(Host::Never { volume, at, write });
            }
            return;
        }
        let allowed = match error {
            BlockError::Unrecovered => self.tolerance.lost,
            BlockError::NotReady | BlockError::CapacityExceeded => self.tolerance.refused,
            _ => false,
        };
        if !allowed {
            self.fail(format!("{asked:?} ended in {error:?}"));
        }
    }

    /// Bounds that hold at every moment.
    fn check_bounds(&mut self) {
        let (live, _) = self.pool.bytes();
        self.most_live = self.most_live.max(live);
        // The logs' batches and spare ones, reads of requests and destage, the tier.
        let bound = (48 << 20) + u64::from(self.config.tier_pages) * 4096;
        if live > bound {
            self.fail(format!("{live} bytes in buffers, more than {bound}"));
        }
        let complaints = core::iter::once(&mut self.cache).chain(&mut self.backing);
        let complaint = complaints.flat_map(|disk| disk.complaints.drain(..)).next();
        if let Some(what) = complaint {
            self.fail(format!("a device was asked for what it cannot do: {what}"));
        }
        if let Some(n) = self.backing.iter().position(|disk| disk.overlaps > 0) {
            self.backing[n].overlaps = 0;
            self.fail(format!("overlapping writes of the backing device of volume {n}"));
        }
    }

    /// Runs until an event is seen (and takes it).
    pub fn wait_for(&mut self, mut want: impl FnMut(&Event) -> bool) {
        for _ in 0..400_000 {
            if let Some(at) = self.events.iter().position(&mut want) {
                self.events.remove(at);
                return;
            }
            if self.violation.is_some() {
                return;
            }
            self.step();
        }
        self.stuck("an event did not come");
    }

    fn stuck(&mut self, what: &str) {
        if self.tolerance.stuck {
            // Lost blocks, and those of a segment whose footer is gone, count as dirty until they are
            // written through the log: drains, switches and bypassing writes wait for them.
            self.over = true;
            self.counts.stuck += 1;
            self.asked.clear();
            return;
        }
        let now = Instant(self.now);
        let asked: Vec<Asked> = self.asked.values().take(4).cloned().collect();
        let volumes: Vec<_> =
            (0..self.backing.len()).map(|n| self.engine().volume_stats(id_of(n))).collect();
        let stats = self.engine().stats(now);
        self.fail(format!("{what}; under way {asked:?}; {volumes:?}; {stats:?}"));
    }

    /// Runs until no request is under way.
    pub fn quiesce(&mut self) {
        for _ in 0..400_000 {
            if self.asked.is_empty() || self.violation.is_some() || self.over {
                return;
            }
            self.step();
        }
        self.stuck("requests do not end");
    }

    /// Asks for something and waits for its end.
    pub fn ask_and_wait(&mut self, ask: Ask) {
        let tag = self.ask(ask);
        for _ in 0..400_000 {
            if !self.asked.contains_key(&tag) || self.violation.is_some() || self.over {
                return;
            }
            self.step();
        }
        self.stuck("a request does not end");
    }

    /// Begins a mode switch; `false` where it is refused now.
    pub fn set_mode(&mut self, volume: usize, mode: CacheMode) -> bool {
        if self.violation.is_some() {
            return false;
        }
        self.line(|| format!("mode   vol{volume} {mode:?}"));
        let set = self.engine().set_mode(id_of(volume), mode).is_ok();
        if set {
            self.modes[volume] = mode;
            self.note_mode(volume, mode);
        }
        self.pump();
        set
    }

    /// Asks for a drain; [`Event::Drained`] says when it is over.
    pub fn drain(&mut self, volume: usize) {
        if self.violation.is_some() {
            return;
        }
        self.line(|| format!("drain  vol{volume}"));
        let _ = self.engine().drain(id_of(volume));
        self.pump();
    }

    /// Runs until nothing is dirty.
    pub fn drain_and_wait(&mut self, volume: usize) {
        self.events.retain(|event| *event != Event::Drained { volume: id_of(volume) });
        self.drain(volume);
        self.wait_for(|event| *event == Event::Drained { volume: id_of(volume) });
    }

    /// A clean stop and a new start. Requests under way end first.
    pub fn restart(&mut self) {
        self.quiesce();
        if self.violation.is_some() || self.cache_failed || self.over {
            return;
        }
        self.line(|| "stop".to_owned());
        self.engine().stop();
        self.wait_for(|event| *event == Event::Stopped);
        for _ in 0..1000 {
            let flying = self.backing.iter().map(Device::in_flight).sum::<usize>();
            if flying + self.cache.in_flight() == 0 || self.violation.is_some() {
                break;
            }
            self.step();
        }
        self.mail.clear();
        self.events.clear();
        self.start();
    }

    /// The process dies, or all loses power; then a new start, and everything is looked at.
    pub fn crash(&mut self, power: bool) {
        self.counts.crashes += 1;
        self.line(|| format!("crash  power {power}"));
        self.cache.crash(power);
        for disk in &mut self.backing {
            disk.crash(power);
        }
        self.pool.dry(0);
        for oracle in &mut self.oracles {
            oracle.crashed(power);
        }
        if power && self.config.volatile {
            self.times.iter_mut().for_each(|times| *times = (0, OPEN));
        }
        self.asked.clear();
        self.mail.clear();
        self.events.clear();
        self.now += 1_000_000;
        self.start();
        if self.violation.is_none() && !self.over {
            self.look_at_all(power);
        }
    }

    /// Reads everything after a crash: what is found is how it is. (No hosts are there yet.)
    fn look_at_all(&mut self, power: bool) {
        let lasting = power || !self.config.volatile;
        for volume in 0..self.backing.len() {
            for (offset, data) in self.read_all(volume) {
                let tick = self.ticked();
                if let Err(wrong) = self.oracles[volume].judge(offset, &data, tick) {
                    self.fail(format!("after a crash, volume {volume}: {wrong}"));
                    return;
                }
                self.oracles[volume].settled(offset, &data, tick, lasting);
            }
            self.check_places(volume);
        }
    }

    /// All of a volume that can be read, block by block, straight from the engine's answer: the
    /// oracle is not told.
    pub fn read_all(&mut self, volume: usize) -> Vec<(u64, Vec<u8>)> {
        const CHUNK: u64 = 64 << 10;
        let size = self.config.volumes[volume].size;
        let unit = u64::from(self.config.volumes[volume].unit);
        let mut found = Vec::new();
        let mut at = 0;
        while at < size && self.violation.is_none() {
            let len = CHUNK.min(size - at);
            match self.read_raw(volume, at, len, unit) {
                Some(data) => found.push((at, data)),
                None if self.tolerance.lost || self.tolerance.refused => {
                    // Something of it is lost: block by block.
                    for from in (at..at + len).step_by(4096) {
                        let len = 4096.min(size - from);
                        if let Some(data) = self.read_raw(volume, from, len, unit) {
                            found.push((from, data));
                        }
                    }
                }
                None => self.fail(format!("volume {volume} cannot be read at {at}+{len}")),
            }
            at += len;
        }
        found
    }

    fn read_raw(&mut self, volume: usize, offset: u64, len: u64, unit: u64) -> Option<Vec<u8>> {
        let tag = self.next_tag;
        self.next_tag += 1;
        let request = Request {
            tag: Tag(tag),
            volume: id_of(volume),
            op: RequestOp::Read,
            lba: Lba(offset / unit),
            blocks: u32::try_from(len / unit).unwrap_or(0),
            fua: false,
        };
        let message = Message::Forward { from: FRONT, request, cargo: Cargo::None };
        self.raw = Some((tag, None));
        self.shard.handle_message(message, Instant(self.now));
        self.pump();
        for _ in 0..100_000 {
            if let Some((_, Some((outcome, data)))) = self.raw.take_if(|raw| raw.1.is_some()) {
                return (outcome == Outcome::Done && data.len() as u64 == len).then_some(data);
            }
            self.step();
        }
        self.raw = None;
        self.stuck("a read does not end");
        None
    }

    /// Judges the backing device by what the engine says of each block: what is not dirty in the
    /// cache must be there, and for good: trimmed implies flushed.
    pub fn check_places(&mut self, volume: usize) {
        let tick = self.ticked();
        self.check_places_at(volume, tick);
    }

    /// The same at a given tick.
    pub fn check_places_at(&mut self, volume: usize, tick: u64) {
        if self.cache_failed {
            return;
        }
        self.tick = self.tick.max(tick);
        let size = self.config.volumes[volume].size;
        let blocks = size.div_ceil(4096);
        let places = self.engine().locate(id_of(volume), 0, blocks, usize::MAX);
        // Without a volatile cache a write that bypasses the log is durable when it is acknowledged.
        let bypassed = self.config.volatile && self.bypassed[volume];
        for place in places {
            if !matches!(place.copy, CopyAt::Clean | CopyAt::Backing) {
                continue;
            }
            let (from, end) = (place.block * 4096, ((place.block + place.blocks) * 4096).min(size));
            let disk = &self.backing[volume];
            let lasting = place.copy == CopyAt::Clean || !bypassed;
            let medium = if lasting { disk.stable() } else { &disk.bytes };
            let data = medium.bytes(from, end - from);
            self.counts.places += place.blocks;
            if let Err(wrong) = self.oracles[volume].judge(from, &data, tick) {
                self.fail(format!(
                    "the backing device of volume {volume}, where the cache has no newer copy ({:?}): {wrong}",
                    place.copy
                ));
                return;
            }
        }
    }

    /// Destages all and checks that the backing devices hold it.
    pub fn check_backing(&mut self) {
        for volume in 0..self.backing.len() {
            if self.violation.is_some() || self.cache_failed || self.over {
                return;
            }
            self.drain_and_wait(volume);
            if self.violation.is_some() || self.over {
                return;
            }
            let data = self.backing[volume].bytes.bytes(0, self.config.volumes[volume].size);
            let tick = self.ticked();
            if let Err(wrong) = self.oracles[volume].judge(0, &data, tick) {
                self.fail(format!("the drained backing device of volume {volume}: {wrong}"));
            }
            self.check_places(volume);
        }
    }

    /// Reads everything as a host does, and judges it.
    pub fn check_all(&mut self) {
        for volume in 0..self.backing.len() {
            let size = self.config.volumes[volume].size;
            for offset in (0..size).step_by(64 << 10) {
                if self.violation.is_some() || self.over {
                    return;
                }
                let len = (64 << 10).min(size - offset);
                let op = RequestOp::Read;
                self.ask_and_wait(Ask { volume, op, offset, len, fua: false, spoil: false });
            }
        }
    }

    /// Flips bits in blocks of data of sealed segments: what was durable, and known to be.
    pub fn rot(&mut self, blocks: u64) {
        let slots = u64::from(self.config.segment_slots);
        let first = crate::config::head(self.config.segment_slots);
        let segments = (self.config.cache_bytes - first) / (slots * 4096);
        let data = slots - 1 - slots.div_ceil(48);
        for _ in 0..blocks * 4 {
            let start = first + self.rng.below(segments) * slots * 4096;
            let at = start + self.rng.below(data) * 4096;
            let footer = self.cache.bytes.bytes(start + (data + 1) * 4096, 8);
            let mut block = self.cache.bytes.bytes(at, 4096);
            let bit = self.rng.index(4096 * 8);
            if footer != b"FBYFOOT\0" || block.starts_with(b"FBYBATCH") {
                continue;
            }
            block[bit / 8] ^= 1 << (bit % 8);
            self.cache.put(at, &block);
            self.cache.injected.lies += 1;
        }
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
