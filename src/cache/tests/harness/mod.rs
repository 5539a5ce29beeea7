//! A world for one engine: simulated devices that complete out of order, a host with a model of
//! what each sector may hold, crashes that drop and tear what was in flight.
#![allow(dead_code, unreachable_pub)]

pub mod disk;
pub mod model;
pub mod prefix;

use disk::{Disk, Rng, info};
use forebay_cache::engine::{
    Action, CacheMode, Engine, EngineConfig, Event, Limits, OnFailure, Source, VolumeSpec,
};
use forebay_cache::format::device::DeviceHeader;
use forebay_cache::format::open::Opener;
use forebay_cache::format::order_journal::JournalError;
use forebay_cache::format::plan::{FormatOptions, Step, plan};
use forebay_cache::index::Index;
use forebay_cache::order_journal::{JournalOpener, OpenedJournal};
use forebay_cache::policy::PolicyKind;
use forebay_cache::recovery::{Recovered, Recovery};
use forebay_io::device::DeviceInfo;
use forebay_io::{
    BlockError, Buf, Duration, Epoch, HeapBuf, HeapPool, Instant, Lba, Lsn, Outcome, Payload,
    Piece, Request, RequestOp, Tag, Uuid, VolumeId,
};
use model::Model;
use std::collections::HashMap;

/// What the host has under way.
#[derive(Clone, Debug)]
pub struct Asked {
    pub volume: usize,
    pub op: RequestOp,
    pub offset: u64,
    pub len: u64,
    pub write: u64,
    pub start: u64,
    /// A compare that must succeed (`true`), must fail (`false`), or may do either.
    pub expect: Option<bool>,
    pub fua: bool,
}

pub struct Setup {
    pub cache_bytes: u64,
    pub segment_slots: u32,
    pub volumes: Vec<(u64, u32, CacheMode)>,
    pub limits: Limits,
    pub tier_pages: u32,
    pub policy: PolicyKind,
    pub volatile: bool,
    pub backing_volatile: bool,
    pub write_zeroes: bool,
    pub on_failure: OnFailure,
    pub commit_delay: u64,
    /// Bytes of each volume's ordered journal; 0 for none.
    pub journal_bytes: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cache_bytes: 8 << 20,
            segment_slots: 64,
            volumes: vec![(2 << 20, 4096, CacheMode::WriteBack)],
            limits: Limits { dirty_age: Duration::from_millis(50), ..Limits::default() },
            tier_pages: 16,
            policy: PolicyKind::S3Fifo,
            volatile: false,
            backing_volatile: true,
            write_zeroes: true,
            on_failure: OnFailure::Fail,
            commit_delay: 0,
            journal_bytes: 0,
        }
    }
}

pub struct World {
    pub setup: Setup,
    pub engine: Engine<HeapBuf>,
    pub cache: Disk,
    pub backing: Vec<Disk>,
    /// The volumes' ordered journals, where they have any.
    pub journals: Vec<Disk>,
    pub model: Vec<Model>,
    pub modes: Vec<CacheMode>,
    pub now: u64,
    pub rng: Rng,
    pub asked: HashMap<u64, Asked>,
    /// All that was asked, by rising tag, and when what was asked ended.
    pub log: Vec<(u64, Asked)>,
    pub ends: HashMap<u64, u64>,
    pub next_tag: u64,
    pub next_write: u64,
    pub events: Vec<Event>,
    pub done: HashMap<u64, Outcome>,
    pub data: HashMap<u64, Vec<u8>>,
    pub commits: Vec<(u64, VolumeId, Lsn)>,
    pub trace: bool,
    pub reads_checked: u64,
    pub writes_acked: u64,
    pub failures: u64,
    pool: HeapPool,
}

/// The seeds to run: `SEED` and `SEEDS` in the environment say which others.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let from = number("SEED").unwrap_or(0);
    from..from + number("SEEDS").unwrap_or(default)
}

pub fn uuid(n: u8) -> Uuid {
    Uuid::from_random([n; 16])
}

/// Formats the device.
pub fn format(disk: &mut Disk, segment_slots: u32) {
    let mut options = FormatOptions::new(uuid(200));
    (options.shards, options.segment_slots) = (Some(1), Some(segment_slots));
    let plan = plan(&disk.info, &options).unwrap();
    for step in plan.steps {
        if let Step::Write { offset, bytes } = step {
            disk.put(offset, &bytes);
        }
    }
}

/// Opens and recovers the device, without delays or faults.
pub fn recover(disk: &mut Disk) -> (DeviceHeader, Recovered) {
    recover_into(disk, 0)
}

/// The same with an index that takes at least `slots` slots.
pub fn recover_into(disk: &mut Disk, slots: u64) -> (DeviceHeader, Recovered) {
    let mut pool = HeapPool;
    let mut opener = Opener::new(disk.info.size, Some(uuid(200)));
    let opened = loop {
        while let Some(op) = opener.poll_action(&mut pool) {
            opener.handle_completion(disk.serve(op));
        }
        if let Some(result) = opener.result() {
            break result.unwrap();
        }
    };
    let map = opened.map(0).unwrap();
    let slots = slots.max(map.slots());
    let index = Index::new(slots, u32::try_from(slots - 1).unwrap(), 7).unwrap();
    let mut recovery = Recovery::new(&opened, 0, index, false).unwrap().staged();
    loop {
        while let Some(op) = recovery.poll_action(&mut pool) {
            recovery.handle_completion(disk.serve(op));
        }
        if recovery.is_done() {
            break;
        }
    }
    (opened.header, recovery.finish().unwrap())
}

/// Opens an ordered journal, without delays.
pub fn open_journal(
    disk: &mut Disk,
    volume: Uuid,
    backing: &DeviceInfo,
) -> Result<OpenedJournal, JournalError> {
    let mut pool = HeapPool;
    let mut opener = JournalOpener::new(volume, backing, &disk.info);
    for _ in 0..1_000_000 {
        if let Some(result) = opener.result() {
            return result;
        }
        let op = opener.poll_action(&mut pool).expect("an operation at a time");
        opener.handle_completion(disk.serve(op));
    }
    panic!("the journal does not open");
}

impl World {
    pub fn new(seed: u64, setup: Setup) -> Self {
        let mut world = Self::bare(seed, setup);
        world.attach_all();
        world
    }

    /// A world whose volumes are not attached.
    fn bare(seed: u64, setup: Setup) -> Self {
        let mut cache =
            Disk::new(info("cache", setup.cache_bytes, 512, setup.volatile), setup.volatile, seed);
        cache.latency = (10_000, 90_000);
        format(&mut cache, setup.segment_slots);
        let (header, recovered) = recover(&mut cache);
        let config = Self::config(&setup);
        let engine = Engine::new(&config, header, recovered);
        let mut backing = Vec::new();
        let mut model = Vec::new();
        let mut modes = Vec::new();
        let mut journals = Vec::new();
        for (n, (size, _, mode)) in setup.volumes.iter().enumerate() {
            let mut info = info(&format!("backing{n}"), *size, 512, setup.backing_volatile);
            info.write_zeroes = setup.write_zeroes;
            let mut disk = Disk::new(info, setup.backing_volatile, seed + 1 + n as u64);
            disk.latency = (100_000, 3_000_000);
            backing.push(disk);
            if setup.journal_bytes > 0 {
                let volatile = setup.backing_volatile;
                let info = disk::info(&format!("journal{n}"), setup.journal_bytes, 512, volatile);
                let mut disk = Disk::new(info, volatile, seed + 100 + n as u64);
                disk.latency = (20_000, 200_000);
                journals.push(disk);
            }
            let mut flat = Model::new(*size);
            flat.acked_is_durable = !setup.volatile;
            model.push(flat);
            modes.push(*mode);
        }
        Self {
            setup,
            engine,
            cache,
            backing,
            journals,
            model,
            modes,
            now: 1_000_000,
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            asked: HashMap::new(),
            log: Vec::new(),
            ends: HashMap::new(),
            next_tag: 1,
            next_write: 1,
            events: Vec::new(),
            done: HashMap::new(),
            data: HashMap::new(),
            commits: Vec::new(),
            trace: std::env::var("FOREBAY_TRACE").is_ok(),
            reads_checked: 0,
            writes_acked: 0,
            failures: 0,
            pool: HeapPool,
        }
    }

    fn config(setup: &Setup) -> EngineConfig {
        EngineConfig {
            limits: setup.limits,
            tier_pages: setup.tier_pages,
            policy: setup.policy,
            ghost_blocks: 256,
            volatile_write_cache: setup.volatile,
        }
    }

    pub fn id(volume: usize) -> VolumeId {
        VolumeId(u32::try_from(volume).unwrap() + 3)
    }

    pub fn spec(&self, volume: usize) -> VolumeSpec {
        let n = u8::try_from(volume).unwrap();
        VolumeSpec {
            id: Self::id(volume),
            uuid: uuid(n + 1),
            journal: uuid(n + 101),
            name: format!("vol{volume}"),
            block_size: self.setup.volumes[volume].1,
            mode: self.modes[volume],
            backing: self.backing[volume].info.clone(),
            epoch: Epoch(1),
            on_failure: self.setup.on_failure,
        }
    }

    pub fn attach_all(&mut self) {
        for volume in 0..self.backing.len() {
            let spec = self.spec(volume);
            self.engine.add_volume(&spec).unwrap();
            if let Some(disk) = self.journals.get_mut(volume) {
                let opened = open_journal(disk, spec.uuid, &spec.backing).unwrap();
                self.engine.set_ordered_journal(spec.id, opened).unwrap();
            }
            self.wait_for(|event| *event == Event::Attached { volume: Self::id(volume) });
        }
    }

    /// Begins to attach the first volume, and does not wait for it.
    pub fn attach_begin(&mut self) {
        let spec = self.spec(0);
        self.engine.add_volume(&spec).unwrap();
        let opened = open_journal(&mut self.journals[0], spec.uuid, &spec.backing).unwrap();
        self.engine.set_ordered_journal(spec.id, opened).unwrap();
    }

    /// Runs until an event is seen (and takes it).
    pub fn wait_for(&mut self, mut want: impl FnMut(&Event) -> bool) {
        for _ in 0..2_000_000 {
            if let Some(at) = self.events.iter().position(&mut want) {
                self.events.remove(at);
                return;
            }
            self.step();
        }
        panic!("the event did not come; stats {:#?}", self.engine.stats(Instant(self.now)));
    }

    pub fn wait_done(&mut self, tag: u64) -> Outcome {
        for _ in 0..2_000_000 {
            if let Some(outcome) = self.done.get(&tag) {
                return *outcome;
            }
            self.step();
        }
        panic!(
            "request {tag} {:?} did not end; stats {:#?} volume {:#?}",
            self.asked.get(&tag),
            self.engine.stats(Instant(self.now)),
            self.engine.volume_stats(Self::id(0))
        );
    }

    /// Runs until no request is under way.
    pub fn quiesce(&mut self) {
        let mut steps = 0;
        while !self.asked.is_empty() {
            self.step();
            steps += 1;
            assert!(
                steps < 2_000_000,
                "requests did not end: {:?}; {:#?} {:#?}",
                self.asked,
                self.engine.stats(Instant(self.now)),
                self.engine.volume_stats(Self::id(0))
            );
        }
    }

    /// Runs until nothing is dirty.
    pub fn drain(&mut self, volume: usize) {
        self.engine.drain(Self::id(volume)).unwrap();
        self.wait_for(|event| *event == Event::Drained { volume: Self::id(volume) });
    }

    pub fn run_for(&mut self, nanos: u64) {
        let end = self.now + nanos;
        while self.now < end {
            self.step();
        }
    }

    /// One poll: time goes on to the next thing that happens.
    pub fn step(&mut self) {
        self.step_with(|_| {});
    }

    /// The same with what the host asks in this poll, after the devices' answers.
    pub fn step_with(&mut self, asks: impl FnOnce(&mut Self)) {
        let mut next = self.now + 1_000_000;
        for disk in core::iter::once(&self.cache).chain(&self.backing).chain(&self.journals) {
            next = next.min(disk.next_ready());
        }
        if let Some(at) = self.commits.iter().map(|commit| commit.0).min() {
            next = next.min(at);
        }
        next = next.min(self.engine.next_deadline().0);
        // A poll costs at least two microseconds, and several things may happen in one.
        self.now = next.max(self.now + 2_000) + self.rng.below(3) * 3_000;
        let now = Instant(self.now);
        while let Some(done) = self.cache.take_ready(self.now) {
            self.engine.handle_completion(Source::Cache, done, &mut self.pool, now);
            self.pump();
        }
        for n in 0..self.backing.len() {
            while let Some(done) = self.backing[n].take_ready(self.now) {
                let source = Source::Backing(Self::id(n));
                self.engine.handle_completion(source, done, &mut self.pool, now);
                self.pump();
            }
        }
        for n in 0..self.journals.len() {
            while let Some(done) = self.journals[n].take_ready(self.now) {
                let source = Source::Journal(Self::id(n));
                self.engine.handle_completion(source, done, &mut self.pool, now);
                self.pump();
            }
        }
        let due: Vec<_> = self.commits.iter().filter(|c| c.0 <= self.now).copied().collect();
        self.commits.retain(|c| c.0 > self.now);
        for (_, volume, lsn) in due {
            self.engine.commit(volume, lsn, &mut self.pool, now);
            self.pump();
        }
        asks(self);
        self.engine.end_of_poll(&mut self.pool, now);
        self.pump();
    }

    /// Carries actions to the devices and events to the host.
    pub fn pump(&mut self) {
        loop {
            let mut pieces = Vec::new();
            if let Some(event) = self.engine.poll_event(&mut pieces) {
                self.take_event(event, &pieces);
                continue;
            }
            let Some(action) = self.engine.poll_action() else { break };
            if self.trace {
                match &action {
                    Action::Cache(op) => {
                        eprintln!("{} cache {:?} {}+{}", self.now, op.kind, op.offset, op.len)
                    }
                    Action::Backing(v, op) => {
                        eprintln!("{} backing {v} {:?} {}+{}", self.now, op.kind, op.offset, op.len)
                    }
                    Action::Journal(v, op) => {
                        eprintln!("{} journal {v} {:?} {}+{}", self.now, op.kind, op.offset, op.len)
                    }
                }
            }
            match action {
                Action::Cache(op) => self.cache.submit(op, self.now),
                Action::Backing(id, op) => {
                    let n = usize::try_from(id.0 - 3).unwrap();
                    self.backing[n].submit(op, self.now);
                }
                Action::Journal(id, op) => {
                    let n = usize::try_from(id.0 - 3).unwrap();
                    self.journals[n].submit(op, self.now);
                }
            }
        }
    }

    fn take_event(&mut self, event: Event, pieces: &[Piece<HeapBuf>]) {
        if self.trace {
            eprintln!("{} event {event:?}", self.now);
        }
        match event {
            Event::Persisted { volume, last, .. } => {
                if self.setup.commit_delay == 0 {
                    self.engine.commit(volume, last, &mut self.pool, Instant(self.now));
                } else {
                    let at = self.now + self.rng.below(self.setup.commit_delay);
                    self.commits.push((at, volume, last));
                }
            }
            Event::Done { tag, outcome } => self.take_done(tag.0, outcome, pieces),
            Event::CacheFailed { .. } => {
                self.engine.cache_failure_noted();
                self.events.push(event);
            }
            event => self.events.push(event),
        }
    }

    fn take_done(&mut self, tag: u64, outcome: Outcome, pieces: &[Piece<HeapBuf>]) {
        let asked = self.asked.remove(&tag).expect("a request ends once");
        self.done.insert(tag, outcome);
        self.ends.insert(tag, self.now);
        let horizon =
            self.asked.values().map(|a| a.start).min().unwrap_or(self.now).min(asked.start);
        let model = &mut self.model[asked.volume];
        match (asked.op, outcome) {
            (RequestOp::Read, Outcome::Done) => {
                let mut data = Vec::new();
                for piece in pieces {
                    let start = piece.offset as usize;
                    data.extend_from_slice(
                        &piece.buf.as_slice()[start..start + piece.len as usize],
                    );
                }
                assert_eq!(data.len() as u64, asked.len, "a read's length");
                model.check_read(asked.offset, &data, asked.start, self.now);
                self.reads_checked += 1;
                self.data.insert(tag, data);
            }
            (
                RequestOp::Write | RequestOp::WriteZeroes { .. } | RequestOp::Deallocate,
                Outcome::Done,
            ) => {
                self.writes_acked += 1;
                model.ended(asked.offset, asked.len, asked.write, self.now, horizon, asked.fua);
            }
            (RequestOp::CompareAndWrite, Outcome::Done) => {
                assert_ne!(
                    asked.expect,
                    Some(false),
                    "a compare that must fail succeeded: {asked:?}"
                );
                model.ended(asked.offset, asked.len, asked.write, self.now, horizon, asked.fua);
            }
            (RequestOp::CompareAndWrite, Outcome::Failed(BlockError::CompareFailed)) => {
                assert_ne!(
                    asked.expect,
                    Some(true),
                    "a compare that must succeed failed: {asked:?}"
                );
                model.never(asked.offset, asked.len, asked.write);
            }
            (RequestOp::Compare, Outcome::Done) => {
                assert_ne!(asked.expect, Some(false), "{asked:?}")
            }
            (RequestOp::Compare, Outcome::Failed(BlockError::CompareFailed)) => {
                assert_ne!(asked.expect, Some(true), "{asked:?}");
            }
            (_, Outcome::Failed(error)) => {
                assert_ne!(error, BlockError::Internal, "{asked:?}");
                self.failures += 1;
            }
            (RequestOp::Flush, Outcome::Done) => model.flushed(asked.start),
        }
    }

    /// Asks for something; the payload is made of the write's number.
    pub fn ask(&mut self, volume: usize, op: RequestOp, offset: u64, len: u64) -> u64 {
        self.ask_with(volume, op, offset, len, false, None)
    }

    pub fn ask_with(
        &mut self,
        volume: usize,
        op: RequestOp,
        offset: u64,
        len: u64,
        fua: bool,
        compare: Option<(Vec<u8>, Option<bool>)>,
    ) -> u64 {
        let (tag, write) = (self.next_tag, self.next_write);
        self.next_tag += 1;
        let unit = u64::from(self.setup.volumes[volume].1);
        let request = Request {
            tag: Tag(tag),
            volume: Self::id(volume),
            op,
            lba: Lba(offset / unit),
            blocks: u32::try_from(len / unit).unwrap(),
            fua,
        };
        let data = model::content(write, offset, len);
        let changes = !matches!(op, RequestOp::Read | RequestOp::Compare | RequestOp::Flush);
        let zero = matches!(op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
        if changes {
            self.next_write += 1;
            // A deallocate may be ignored.
            let whole = op != RequestOp::Deallocate;
            self.model[volume].started(offset, len, write, zero, whole, self.now);
        }
        let expect = compare.as_ref().and_then(|compare| compare.1);
        let asked = Asked { volume, op, offset, len, write, start: self.now, expect, fua };
        if self.trace {
            eprintln!("{} ask {tag} {asked:?}", self.now);
        }
        self.log.push((tag, asked.clone()));
        self.asked.insert(tag, asked);
        let inline = self.rng.below(2) == 0;
        let payload = match (op, compare) {
            (RequestOp::Write, _) if inline => Payload::Inline(&data),
            (RequestOp::Write, _) => Payload::Owned(HeapBuf::from_bytes(&data)),
            (RequestOp::Compare, Some((want, _))) => Payload::Owned(HeapBuf::from_bytes(&want)),
            (RequestOp::CompareAndWrite, Some((want, _))) => {
                Payload::Pair(HeapBuf::from_bytes(&want), HeapBuf::from_bytes(&data))
            }
            _ => Payload::None,
        };
        self.engine.handle_request(&request, payload, &mut self.pool, Instant(self.now));
        self.pump();
        tag
    }

    pub fn write(&mut self, volume: usize, offset: u64, len: u64) -> u64 {
        let tag = self.ask(volume, RequestOp::Write, offset, len);
        assert_eq!(self.wait_done(tag), Outcome::Done);
        tag
    }

    pub fn read(&mut self, volume: usize, offset: u64, len: u64) -> Vec<u8> {
        let tag = self.ask(volume, RequestOp::Read, offset, len);
        assert_eq!(self.wait_done(tag), Outcome::Done, "read {offset}+{len}");
        self.data.remove(&tag).unwrap()
    }

    pub fn set_mode(&mut self, volume: usize, mode: CacheMode) {
        self.engine.set_mode(Self::id(volume), mode).unwrap();
        self.wait_for(|event| *event == Event::ModeChanged { volume: Self::id(volume), mode });
        self.modes[volume] = mode;
    }

    /// Reads all of a volume and checks it.
    pub fn check_all(&mut self, volume: usize) {
        let (size, chunk) = (self.setup.volumes[volume].0, 64 << 10);
        let mut at = 0;
        while at < size {
            let len = chunk.min(size - at);
            self.read(volume, at, len);
            at += len;
        }
    }

    /// Checks that the backing device holds what the host wrote (nothing may be under way).
    pub fn check_backing(&mut self, volume: usize) {
        let size = self.setup.volumes[volume].0;
        let data = self.backing[volume].peek(0, size);
        self.model[volume].check_read(0, &data, self.now, self.now);
    }

    /// The process dies, or all loses power: what was in flight is dropped, torn or done.
    pub fn crash(&mut self, power: bool) {
        self.crash_devices(power);
        self.restart();
    }

    /// The same without the start that follows.
    pub fn crash_devices(&mut self, power: bool) {
        self.cache.crash(power);
        for disk in self.backing.iter_mut().chain(&mut self.journals) {
            disk.crash(power);
        }
        if power {
            self.model.iter_mut().for_each(Model::power_lost);
        }
        self.asked.clear();
        self.events.clear();
        self.commits.clear();
        self.now += 1_000_000;
    }

    /// Why the ordered journal would be refused after the loss of the cache, if it would.
    pub fn cold_refusal(&mut self) -> Option<JournalError> {
        let mut w =
            World::bare(1, Setup { volumes: vec![self.setup.volumes[0]], ..Setup::default() });
        let spec = self.spec(0);
        w.engine.add_volume(&spec).unwrap();
        let opened = open_journal(&mut self.journals[0], spec.uuid, &spec.backing).unwrap();
        w.engine.set_ordered_journal(spec.id, opened).err()
    }

    /// What a volume is after a crash now, with the cache lost: an engine with a fresh cache that was
    /// given its backing device and its ordered journal, once it is attached. Nothing here changes.
    /// What is in flight is `dropped`, or part of it done.
    pub fn lost_cache(&mut self, power: bool, dropped: bool) -> World {
        let mut w = self.without_cache(power, dropped);
        w.attach_all();
        w
    }

    /// The same while the volume is not yet attached: the devices after the crash, and a fresh cache.
    pub fn without_cache(&mut self, power: bool, dropped: bool) -> World {
        let seed = self.rng.next();
        let setup = Setup {
            cache_bytes: 3 << 20,
            segment_slots: 32,
            volumes: vec![self.setup.volumes[0]],
            ..Setup { limits: self.setup.limits, journal_bytes: 0, ..Setup::default() }
        };
        let mut w = World::bare(seed, setup);
        w.backing = vec![self.backing[0].clone()];
        w.journals = self.journals.first().cloned().into_iter().collect();
        for disk in w.backing.iter_mut().chain(&mut w.journals) {
            disk.rng = Rng(seed | 1);
            if dropped {
                disk.drop_flying();
            }
            disk.crash(power);
        }
        w.modes = vec![CacheMode::WriteBackOrdered];
        w
    }

    /// Adds a volume, serves it, and fills sealed segments with its clean blocks.
    pub fn neighbour(&mut self, size: u64) {
        let n = self.backing.len();
        let info = info(&format!("backing{n}"), size, 512, self.setup.backing_volatile);
        let mut disk = Disk::new(info, self.setup.backing_volatile, self.rng.next());
        disk.latency = (100_000, 3_000_000);
        self.backing.push(disk);
        let mut flat = Model::new(size);
        flat.acked_is_durable = !self.setup.volatile;
        self.model.push(flat);
        self.modes.push(CacheMode::WriteBack);
        self.setup.volumes.push((size, 4096, CacheMode::WriteBack));
        let spec = self.spec(n);
        self.engine.add_volume(&spec).unwrap();
        self.wait_for(|event| *event == Event::Attached { volume: spec.id });
        self.check_all(n);
        self.run_for(10_000_000);
    }

    /// Starts an engine on what the devices hold.
    pub fn restart(&mut self) {
        let (header, recovered) = recover(&mut self.cache);
        self.engine = Engine::new(&Self::config(&self.setup), header, recovered);
        self.attach_all();
    }

    /// A random request of the host.
    pub fn random_op(&mut self, volume: usize) {
        let (size, unit, _) = self.setup.volumes[volume];
        let units = size / u64::from(unit);
        let most = match self.rng.below(10) {
            0 => 160 << 10,
            1 | 2 => 32 << 10,
            _ => 8 << 10,
        } / u64::from(unit);
        let hot = self.rng.below(3) > 0;
        let span = if hot { units / 8 } else { units };
        let start = self.rng.below(span.max(1));
        let count = (1 + self.rng.below(most.max(1))).min(units - start);
        let (offset, len) = (start * u64::from(unit), count * u64::from(unit));
        let fua = self.rng.below(16) == 0;
        match self.rng.below(100) {
            0..=39 => self.ask(volume, RequestOp::Read, offset, len),
            40..=79 => self.ask_with(volume, RequestOp::Write, offset, len, fua, None),
            80..=83 => self.ask(volume, RequestOp::WriteZeroes { deallocate: fua }, offset, len),
            84..=87 => self.ask(volume, RequestOp::Deallocate, offset, len),
            88..=91 => self.ask(volume, RequestOp::Flush, 0, 0),
            n => {
                let len = len.min(8 << 10);
                let known = self.model[volume].known(offset, len);
                let (want, expect) = match known {
                    Some(data) => {
                        let mut data = data;
                        let right = self.rng.below(2) == 0;
                        if !right {
                            let at = usize::try_from(self.rng.below(len)).unwrap();
                            data[at] ^= 0x55;
                        }
                        (data, Some(right))
                    }
                    None => (vec![0; usize::try_from(len).unwrap()], None),
                };
                let op = if n < 95 { RequestOp::Compare } else { RequestOp::CompareAndWrite };
                // Others may write the same blocks meanwhile: what must hold is then unknown.
                let busy = self.asked.values().any(|a| {
                    a.volume == volume
                        && a.op != RequestOp::Read
                        && a.offset < offset + len
                        && offset < a.offset + a.len
                });
                let expect = if busy || op == RequestOp::Compare { None } else { expect };
                self.ask_with(volume, op, offset, len, false, Some((want, expect)))
            }
        };
    }
}
