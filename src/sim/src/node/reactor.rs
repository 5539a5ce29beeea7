//! One reactor: a shard with its sockets, mailbox and devices. Its poll makes the calls of the daemon's
//! service in the same order.

use super::check::JUDGE;
use super::link::End;
use super::world::World;
use crate::buffer::{SimBuf, SimPool};
use crate::config::{Config, id_of};
use crate::device::Device;
use crate::rng::Rng;
use forebay_cache::engine::{Action, Event, Source};
use forebay_io::{Completion, Instant, Lsn};
use forebay_node::{Message, Shard, ShardEvent};
use forebay_nvmf::target::{
    ConnId, Event as TargetEvent, Limits, LocalAddress, Target, TargetConfig,
};
use forebay_nvmf::tcp::{Established, Progress};
use std::collections::VecDeque;

/// Rounds of submitting and polling in one loop, as the daemon's.
const ROUNDS: u32 = 4;
/// Loops after the last work.
const SPINS: u8 = 2;
/// Controller identifiers of one reactor.
const CNTLIDS: u16 = 1000;

/// What is sent to a reactor.
pub enum Mail {
    /// From another reactor's shard.
    Peer(Message<SimBuf>),
    /// A connection whose subsystem lives here.
    Arrival(u32, Box<Established>),
}

/// A reactor.
pub struct Reactor {
    number: usize,
    /// The shard.
    pub shard: Shard<SimBuf, SimPool>,
    /// Its pool.
    pub pool: SimPool,
    /// The cache device of its engine.
    pub cache: Device,
    /// What was sent to it, in order, and when it arrives.
    pub inbox: VecDeque<(u64, Mail)>,
    /// It does nothing before.
    pub asleep_until: u64,
    /// By connection, the link.
    pub(super) conns: Vec<Option<(ConnId, u32)>>,
    /// Loops that it still makes although no clock tells: a reactor spins before it sleeps.
    spins: u8,
    /// The engine of its shard has stopped.
    pub(super) stopped: bool,
}

impl Reactor {
    /// A reactor with a formatted cache device.
    #[must_use]
    pub fn new(config: &Config, number: usize) -> Self {
        let rng = Rng::new(config.seed, 30 + number as u64);
        let mut cache = Device::with(config.cache_info(), config.formatted(), rng);
        cache.latency = config.cache_latency;
        let pool = SimPool::default();
        Self {
            number,
            shard: shard(number, &pool, 0),
            pool,
            cache,
            inbox: VecDeque::new(),
            asleep_until: 0,
            conns: Vec::new(),
            spins: 0,
            stopped: false,
        }
    }

    /// Everything in memory is gone.
    pub(super) fn forget(&mut self, now: u64) {
        self.shard = shard(self.number, &self.pool, now);
        self.inbox.clear();
        self.conns.clear();
        self.asleep_until = 0;
        (self.spins, self.stopped) = (SPINS, false);
    }

    /// Control has set something going.
    pub(super) const fn wake(&mut self) {
        self.spins = SPINS;
    }

    fn adopt(&mut self, id: ConnId, link: u32) {
        if self.conns.len() <= id.index() {
            self.conns.resize(id.index() + 1, None);
        }
        self.conns[id.index()] = Some((id, link));
    }

    fn link_of(&self, id: ConnId) -> Option<u32> {
        let found = self.conns.get(id.index()).copied().flatten();
        found.filter(|(conn, _)| *conn == id).map(|(_, link)| link)
    }
}

fn shard(number: usize, pool: &SimPool, now: u64) -> Shard<SimBuf, SimPool> {
    let reactor = u32::try_from(number).unwrap_or(0);
    let first = 1 + CNTLIDS * u16::try_from(number).unwrap_or(0);
    let limits = Limits { cntlids: first..=first + CNTLIDS - 1, ..Limits::default() };
    let config = TargetConfig { limits, ..TargetConfig::default() };
    Shard::new(reactor, Target::new(config, Instant(now)), pool.clone(), Instant(now))
}

impl World {
    /// When reactor `r` has something to do.
    pub(super) fn due(&self, r: usize) -> u64 {
        let reactor = &self.reactors[r];
        let mut next = reactor.shard.next_deadline().0.min(reactor.cache.next_ready());
        if let Some((at, _)) = reactor.inbox.front() {
            next = next.min(*at);
        }
        for volume in (0..self.backing.len()).filter(|volume| self.homes[*volume] == r) {
            next = next.min(self.backing[volume].next_ready());
        }
        for link in self.links.values() {
            let here = match &link.end {
                End::Greeting(at, _) => *at == r,
                End::Conn(at, id) => *at == r && reactor.shard.target.wants_read(*id),
                End::Moving | End::Gone => false,
            };
            if here && self.serving {
                next = next.min(link.up.next());
            }
            if link.blocked
                && matches!(link.end, End::Conn(at, _) if at == r)
                && link.down.room(&self.net) > 0
            {
                next = 0;
            }
        }
        if reactor.spins > 0 || reactor.shard.target.waiting_for_buffers() {
            next = next.min(self.now);
        }
        next.max(reactor.asleep_until)
    }

    /// One loop of a reactor.
    pub(super) fn poll(&mut self, r: usize) {
        let now = Instant(self.now);
        self.reactors[r].spins = self.reactors[r].spins.saturating_sub(1);
        while let Some((at, _)) = self.reactors[r].inbox.front()
            && *at <= self.now
            && let Some((_, mail)) = self.reactors[r].inbox.pop_front()
        {
            match mail {
                Mail::Peer(message) => self.reactors[r].shard.handle_message(message, now),
                Mail::Arrival(link, established) => self.settle_in(r, link, &established),
            }
        }
        if self.serving {
            self.receive(r);
        }
        if self.reactors[r].shard.next_deadline() <= now {
            self.reactors[r].shard.handle_timeout(now);
        }
        self.drive(r);
        self.node_events(r);
        self.send(r);
        self.exchange(r);
    }

    /// Takes what sockets have, each at most once.
    fn receive(&mut self, r: usize) {
        let ids: Vec<u32> = self.links.keys().copied().collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if link.up.next() > self.now {
                continue;
            }
            match &mut link.end {
                End::Greeting(at, handshake) if *at == r => {
                    let Some(bytes) = link.up.take(self.now, &mut self.rng) else {
                        self.close_link(id);
                        continue;
                    };
                    let progress = handshake.handle_bytes(&bytes);
                    let out = handshake.output().to_vec();
                    handshake.advance(out.len());
                    link.down.send(&out, self.now, &self.net, &mut self.rng);
                    match progress {
                        Progress::More => {}
                        Progress::Failed(error) => {
                            self.judge.fail(format!("a handshake failed: {error}"));
                        }
                        Progress::Established(established) => self.place(r, id, established),
                    }
                }
                End::Conn(at, conn) if *at == r => {
                    let conn = *conn;
                    if !self.reactors[r].shard.target.wants_read(conn) {
                        continue;
                    }
                    match link.up.take(self.now, &mut self.rng) {
                        Some(bytes) => {
                            self.reactors[r].shard.handle_bytes(conn, &bytes, Instant(self.now));
                        }
                        None => self.close_conn(r, conn),
                    }
                }
                _ => {}
            }
        }
    }

    /// A connection whose Connect is whole goes to the reactor of its subsystem.
    fn place(&mut self, r: usize, id: u32, established: Box<Established>) {
        let nqn = &established.data.subnqn;
        let home = self.subsystems.iter().find(|s| s.nqn == *nqn).map_or(r, |s| s.home);
        if home == r {
            return self.settle_in(r, id, &established);
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.end = End::Moving;
        }
        self.post(home, Mail::Arrival(id, established));
    }

    fn settle_in(&mut self, r: usize, id: u32, established: &Established) {
        let now = Instant(self.now);
        let Some(link) = self.links.get_mut(&id) else { return };
        let shard = &mut self.reactors[r].shard;
        match shard.target.accept(established, &LocalAddress::default(), now) {
            Ok(conn) => {
                link.end = End::Conn(r, conn);
                shard.handle_bytes(conn, &established.leftover, now);
                self.reactors[r].adopt(conn, id);
                self.reactors[r].spins = SPINS;
            }
            Err(error) => self.judge.fail(format!("a connection was refused: {error}")),
        }
    }

    /// The node closes its end of a connection.
    pub(super) fn close_link(&mut self, id: u32) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.end = End::Gone;
        let at = self.now + self.rng.below(100_000);
        // Bytes that the node has not read make the end a reset, which overtakes what was sent.
        if link.up.is_empty() || self.rng.one_in(2) {
            link.down.close(at);
        } else {
            link.down.cut(at, &mut self.rng);
        }
        if !link.open {
            self.links.remove(&id);
        }
    }

    fn close_conn(&mut self, r: usize, conn: ConnId) {
        if let Some(id) = self.reactors[r].link_of(conn) {
            self.reactors[r].conns[conn.index()] = None;
            self.close_link(id);
        }
        self.reactors[r].shard.target.conn_closed(conn, Instant(self.now));
    }

    /// Carries operations to the devices and completions back until nothing more moves.
    fn drive(&mut self, r: usize) {
        let now = Instant(self.now);
        for _ in 0..ROUNDS {
            let shard = &mut self.reactors[r].shard;
            shard.end_of_poll(now);
            let mut moved = shard.settle(now);
            while let Some(action) = self.reactors[r].shard.poll_action(0) {
                moved = true;
                self.carry_out(r, action);
            }
            moved |= self.complete(r);
            if !moved {
                break;
            }
            self.reactors[r].spins = SPINS;
        }
    }

    fn carry_out(&mut self, r: usize, action: Action<SimBuf>) {
        let (op, name) = match &action {
            Action::Cache(op) => (op, format!("cache{r}")),
            Action::Backing(id, op) => {
                (op, format!("backing{}", crate::world::World::volume_of(*id)))
            }
            Action::Journal(id, op) => {
                (op, format!("journal{}", crate::world::World::volume_of(*id)))
            }
        };
        let (kind, token, offset, len) = (op.kind, op.token, op.offset, op.len);
        self.judge.sum(token ^ offset.rotate_left(20) ^ len.rotate_left(44) ^ kind as u64);
        self.judge.line(|| format!("device {name} {kind:?} {offset}+{len} as {token:x}"));
        match action {
            Action::Cache(op) => self.reactors[r].cache.submit(op, self.now),
            Action::Backing(id, op) => {
                self.backing[crate::world::World::volume_of(id)].submit(op, self.now);
            }
            // No volume of these runs has one: the checker of liveness would find it.
            Action::Journal(..) => {}
        }
    }

    fn complete(&mut self, r: usize) -> bool {
        let mut any = false;
        while let Some(done) = self.reactors[r].cache.take_ready(self.now) {
            any = true;
            self.completed(r, Source::Cache, done);
        }
        for volume in 0..self.backing.len() {
            while self.homes[volume] == r
                && let Some(done) = self.take_backing(volume)
            {
                any = true;
                self.completed(r, Source::Backing(id_of(volume)), done);
            }
        }
        any
    }

    fn completed(&mut self, r: usize, source: Source, done: Completion<SimBuf>) {
        self.judge.sum(done.token ^ self.now.rotate_left(32));
        let (token, result) = (done.token, done.result);
        self.judge.line(|| format!("device of reactor {r} {source:?} done {token:x} {result:?}"));
        self.reactors[r].shard.handle_device(0, source, done, Instant(self.now));
    }

    /// The next completion of a backing device, whose order of versions is judged.
    fn take_backing(&mut self, volume: usize) -> Option<Completion<SimBuf>> {
        let before = self.backing[volume].bytes.clone();
        let done = self.backing[volume].take_ready(self.now)?;
        for page in self.backing[volume].bytes.changed(&before) {
            let from = page * 4096;
            let len = 4096.min(before.size() - from);
            let (old, new) = (before.bytes(from, len), self.backing[volume].bytes.bytes(from, len));
            for ((place, old), new) in (from / 512..).zip(old.chunks(512)).zip(new.chunks(512)) {
                self.judge.judge_order(volume, place, old, new);
            }
        }
        Some(done)
    }

    /// Events of target and engines.
    pub(super) fn node_events(&mut self, r: usize) {
        while let Some(event) = self.reactors[r].shard.target.poll_event() {
            self.judge.line(|| format!("target {r} {event:?}"));
            match event {
                TargetEvent::Close(conn) => self.close_conn(r, conn),
                TargetEvent::Protocol { fatal, .. } => {
                    self.judge.fail(format!("the target blames a host: {fatal}"));
                }
                TargetEvent::Refused { status, .. } if self.quiet => {
                    self.judge.fail(format!("the target refuses a host: {status}"));
                }
                TargetEvent::KeepAliveExpired { .. } if self.quiet && self.serving => {
                    self.judge.fail("the keep-alive of a host expired".to_owned());
                }
                _ => {}
            }
        }
        while let Some(event) = self.reactors[r].shard.poll_event() {
            self.judge.line(|| format!("engine {r} {event:?}"));
            match event {
                ShardEvent::CommitFault { volume, run } => {
                    self.judge.fail(format!("commits of {volume} out of order: {run:?}"));
                }
                ShardEvent::Engine { event, .. } => self.engine_event(r, event),
            }
        }
    }

    fn engine_event(&mut self, r: usize, event: Event) {
        let reactor = &mut self.reactors[r];
        match &event {
            Event::Attached { volume } => {
                let engine = reactor.shard.engine(0);
                let committed = engine.and_then(|engine| engine.committed_lsn(*volume));
                reactor.shard.serve(*volume, 0, committed.unwrap_or(Lsn(0)));
            }
            Event::CacheFailed { error } => {
                self.cache_failed = true;
                if let Some(engine) = reactor.shard.engine(0) {
                    engine.cache_failure_noted();
                }
                reactor.spins = SPINS;
                if !self.judge.tolerance.lost {
                    self.judge.fail(format!("a cache device counts as failed: {error}"));
                }
            }
            Event::DirtyLost { volume, block, .. } if !self.judge.tolerance.lost => {
                self.judge.fail(format!("block {block} of {volume} counts as lost"));
            }
            Event::Stopped => reactor.stopped = true,
            _ => {}
        }
        self.events.push(event);
    }

    /// Sends what connections have to send, as far as there is room.
    fn send(&mut self, r: usize) {
        let mut ids: Vec<u32> = Vec::new();
        while let Some(conn) = self.reactors[r].shard.target.poll_ready() {
            match self.reactors[r].link_of(conn) {
                Some(id) => ids.push(id),
                None => self.judge.fail(format!("output for connection {conn}, which is gone")),
            }
        }
        let blocked = self.links.iter().filter(|(_, link)| link.blocked);
        ids.extend(blocked.map(|(id, _)| *id));
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let End::Conn(at, conn) = link.end else { continue };
            if at != r {
                continue;
            }
            let target = &mut self.reactors[r].shard.target;
            let Some(tx) = target.tx(conn) else {
                link.blocked = false;
                continue;
            };
            let room = link.down.room(&self.net);
            let mut bytes = Vec::new();
            for slice in tx.slices() {
                bytes.extend_from_slice(&slice[..slice.len().min(room - bytes.len())]);
                if bytes.len() == room {
                    break;
                }
            }
            link.blocked = bytes.len() < tx.len();
            link.down.send(&bytes, self.now, &self.net, &mut self.rng);
            target.advance(conn, bytes.len());
        }
        // The target may have waited for its last bytes to be sent.
        self.node_events(r);
    }

    /// Sends what the shard has for others; a mailbox may be full.
    fn exchange(&mut self, r: usize) {
        while let Some((to, message)) = self.reactors[r].shard.poll_message() {
            if to == JUDGE {
                self.raw_answer(message);
                continue;
            }
            if self.rng.one_in(self.full) {
                self.reactors[r].shard.unsent(to, message);
                self.reactors[r].spins = SPINS;
                return;
            }
            self.judge.counts.messages += 1;
            let to = usize::try_from(to).unwrap_or(usize::MAX);
            if to < self.reactors.len() {
                self.post(to, Mail::Peer(message));
            } else {
                self.judge.fail(format!("a message for reactor {to}"));
            }
        }
    }

    /// A mailbox keeps the order of what is sent to it.
    fn post(&mut self, to: usize, mail: Mail) {
        let inbox = &mut self.reactors[to].inbox;
        let last = inbox.back().map_or(0, |mail| mail.0);
        let at = (self.now + self.rng.below(self.mail)).max(last);
        inbox.push_back((at, mail));
    }
}
