//! One reactor's state: its target, its engines, and the ways between them. It only routes; when
//! protocol or policy appears here, a type is missing elsewhere.

use crate::ack::{CommitOrder, OutOfOrder};
use crate::route::{Cargo, Foreign, Message, Route, Routes};
use forebay_cache::engine::{Action, Engine, Event, Source};
use forebay_io::{
    BlockError, Buf, BufPool, Completion, Instant, Lsn, Outcome, Payload, Piece, Request, Tag,
    VolumeId,
};
use forebay_nvmf::plant::{Bug, Plant};
use forebay_nvmf::target::{ConnId, IoSink, Target};
use std::collections::{BTreeMap, VecDeque};

/// What the shell must know or do.
#[derive(Debug)]
pub enum ShardEvent {
    /// An engine's, other than those that end here.
    Engine {
        /// Which engine.
        engine: usize,
        /// What happened.
        event: Event,
    },
    /// An engine reported numbers that break the order of commits: a fault of ours, the volume's
    /// writes are not acknowledged any more.
    CommitFault {
        /// The volume.
        volume: VolumeId,
        /// The run that was refused.
        run: OutOfOrder,
    },
}

/// Target, engines and routes of one reactor.
pub struct Shard<B: Buf, P> {
    /// The protocol side.
    pub target: Target<B>,
    ways: Ways<B, P>,
    events: VecDeque<ShardEvent>,
    pieces: Vec<Piece<B>>,
    plant: Plant,
    /// When the loop began that the last call was made in.
    began: Instant,
}

/// Everything a request passes through behind the target, apart from it so that both can be lent
/// at once.
struct Ways<B: Buf, P> {
    reactor: u32,
    pool: P,
    now: Instant,
    engines: Vec<Engine<B>>,
    routes: Routes,
    commits: BTreeMap<VolumeId, CommitOrder>,
    foreign: Foreign,
    /// Messages for other reactors.
    outbox: VecDeque<(u32, Message<B>)>,
    /// Requests that ended before they reached an engine.
    refused: VecDeque<(Tag, BlockError)>,
}

impl<B: Buf, P: BufPool<Buf = B>> Ways<B, P> {
    fn refuse(&mut self, tag: Tag, error: BlockError) {
        self.refused.push_back((tag, error));
    }

    fn own(&mut self, bytes: &[u8]) -> Option<B> {
        let mut buf = self.pool.alloc(bytes.len())?;
        buf.as_mut_slice()?.copy_from_slice(bytes);
        Some(buf)
    }

    fn forward(&mut self, to: u32, request: Request, payload: Payload<'_, B>) {
        let cargo = match payload {
            Payload::None => Cargo::None,
            Payload::Inline(bytes) => match self.own(bytes) {
                Some(buf) => Cargo::One(buf),
                None => return self.refuse(request.tag, BlockError::NotReady),
            },
            Payload::Owned(buf) => Cargo::One(buf),
            Payload::Pair(first, second) => Cargo::Pair(first, second),
        };
        self.outbox.push_back((to, Message::Forward { from: self.reactor, request, cargo }));
    }

    fn handle(&mut self, engine: usize, request: Request, payload: Payload<'_, B>) {
        match self.engines.get_mut(engine) {
            Some(engine) => engine.handle_request(&request, payload, &mut self.pool, self.now),
            None => self.refuse(request.tag, BlockError::NoSuchVolume),
        }
    }
}

impl<B: Buf, P: BufPool<Buf = B>> IoSink<B> for Ways<B, P> {
    fn submit(&mut self, request: Request, payload: Payload<'_, B>) {
        match self.routes.get(request.volume) {
            Some(Route::Here(engine)) => self.handle(engine, request, payload),
            Some(Route::There(reactor)) => self.forward(reactor, request, payload),
            None => self.refuse(request.tag, BlockError::NoSuchVolume),
        }
    }
}

impl<B: Buf, P: BufPool<Buf = B> + Clone> Shard<B, P> {
    /// A shard of reactor number `reactor` without engines.
    pub fn new(reactor: u32, target: Target<B>, pool: P, now: Instant) -> Self {
        let ways = Ways {
            reactor,
            pool,
            now,
            engines: Vec::new(),
            routes: Routes::default(),
            commits: BTreeMap::new(),
            foreign: Foreign::default(),
            outbox: VecDeque::new(),
            refused: VecDeque::new(),
        };
        Self {
            target,
            ways,
            events: VecDeque::new(),
            pieces: Vec::new(),
            plant: Plant::default(),
            began: now,
        }
    }

    /// Removes a rule on purpose, by its number in [`forebay_nvmf::plant::Bug`]; 0 for none.
    #[cfg(feature = "planted-bugs")]
    pub const fn plant(&mut self, bug: u16) {
        self.plant = Plant::new(bug);
        self.target.plant(bug);
    }

    /// Takes over a recovered engine; its number is the answer.
    pub fn add_engine(&mut self, engine: Engine<B>) -> usize {
        self.ways.engines.push(engine);
        self.ways.engines.len() - 1
    }

    /// An engine, for control.
    pub fn engine(&mut self, engine: usize) -> Option<&mut Engine<B>> {
        self.ways.engines.get_mut(engine)
    }

    /// All engines.
    pub fn engines(&self) -> impl Iterator<Item = &Engine<B>> {
        self.ways.engines.iter()
    }

    /// A volume lives on an engine of this shard; its numbers up to `committed` are acknowledged.
    pub fn serve(&mut self, volume: VolumeId, engine: usize, committed: Lsn) {
        self.ways.commits.insert(volume, CommitOrder::new(committed));
        self.ways.routes.set(volume, Some(Route::Here(engine)));
    }

    /// A volume lives on another reactor.
    pub fn route(&mut self, volume: VolumeId, reactor: u32) {
        self.ways.routes.set(volume, Some(Route::There(reactor)));
    }

    /// A volume is not served any more.
    pub fn unserve(&mut self, volume: VolumeId) {
        self.ways.routes.set(volume, None);
        self.ways.commits.remove(&volume);
    }

    /// A loop has begun at `now`: the commands completed in the one before have ended. The calls
    /// that every loop makes do this themselves; before latencies are read it is called once more.
    #[inline]
    pub fn begin_loop(&mut self, now: Instant) {
        if now > self.began {
            self.began = now;
            self.target.measure(now);
        }
    }

    /// Bytes that a connection received.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &[u8], now: Instant) {
        self.begin_loop(now);
        self.ways.now = now;
        let mut pool = self.ways.pool.clone();
        self.target.handle_bytes(conn, bytes, now, &mut pool, &mut self.ways);
    }

    /// The end of an operation that an engine asked for.
    pub fn handle_device(
        &mut self,
        engine: usize,
        source: Source,
        completion: Completion<B>,
        now: Instant,
    ) {
        let ways = &mut self.ways;
        if let Some(engine) = ways.engines.get_mut(engine) {
            engine.handle_completion(source, completion, &mut ways.pool, now);
        }
    }

    /// A message of another reactor.
    pub fn handle_message(&mut self, message: Message<B>, now: Instant) {
        self.begin_loop(now);
        self.ways.now = now;
        match message {
            Message::Forward { from, request, cargo } => self.admit(from, request, cargo),
            Message::Answer { tag, outcome, mut pieces } => {
                self.target.complete(tag, outcome, &mut pieces);
            }
        }
    }

    fn admit(&mut self, from: u32, mut request: Request, cargo: Cargo<B>) {
        let ways = &mut self.ways;
        let theirs = request.tag;
        let refusal = match (ways.routes.get(request.volume), ways.foreign.admit(from, theirs)) {
            (Some(Route::Here(engine)), Ok(tag)) => {
                request.tag = tag;
                let payload = match cargo {
                    Cargo::None => Payload::None,
                    Cargo::One(buf) => Payload::Owned(buf),
                    Cargo::Pair(first, second) => Payload::Pair(first, second),
                };
                return ways.handle(engine, request, payload);
            }
            (_, Ok(tag)) => {
                ways.foreign.release(tag);
                BlockError::NoSuchVolume
            }
            (_, Err(error)) => error,
        };
        let answer =
            Message::Answer { tag: theirs, outcome: Outcome::Failed(refusal), pieces: Vec::new() };
        ways.outbox.push_back((from, answer));
    }

    /// Timers of target and engines.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ways.now = now;
        self.target.handle_timeout(now);
        let ways = &mut self.ways;
        for engine in &mut ways.engines {
            if engine.next_deadline() <= now {
                engine.handle_timeout(&mut ways.pool, now);
            }
        }
    }

    /// When [`Shard::handle_timeout`] is due at the latest.
    pub fn next_deadline(&self) -> Instant {
        let engines = self.ways.engines.iter().map(Engine::next_deadline).min();
        self.target.next_deadline().min(engines.unwrap_or(Instant::NEVER))
    }

    /// The end of a poll: what was gathered becomes one device write per log.
    pub fn end_of_poll(&mut self, now: Instant) {
        self.begin_loop(now);
        let ways = &mut self.ways;
        for engine in &mut ways.engines {
            engine.end_of_poll(&mut ways.pool, now);
        }
        if self.target.waiting_for_buffers() {
            self.target.poll_buffers(&mut ways.pool);
        }
    }

    /// The next operation for a device of an engine.
    pub fn poll_action(&mut self, engine: usize) -> Option<Action<B>> {
        self.ways.engines.get_mut(engine)?.poll_action()
    }

    /// How many engines there are.
    pub fn engine_count(&self) -> usize {
        self.ways.engines.len()
    }

    /// The next message for another reactor, and its number.
    pub fn poll_message(&mut self) -> Option<(u32, Message<B>)> {
        self.ways.outbox.pop_front()
    }

    /// A message could not be sent: the other's mailbox is full. It is the next one again.
    pub fn unsent(&mut self, to: u32, message: Message<B>) {
        if !self.plant.has(Bug::UnsentLost) {
            self.ways.outbox.push_front((to, message));
        }
    }

    /// Carries what the engines have finished to where it belongs. Returns whether there was any.
    pub fn settle(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((tag, error)) = self.ways.refused.pop_front() {
            any = true;
            self.finish(tag, Outcome::Failed(error));
        }
        for engine in 0..self.ways.engines.len() {
            while let Some(event) = self.ways.engines[engine].poll_event(&mut self.pieces) {
                any = true;
                self.handle_event(engine, event, now);
            }
        }
        any
    }

    fn handle_event(&mut self, engine: usize, event: Event, now: Instant) {
        match event {
            Event::Done { tag, outcome } => self.finish(tag, outcome),
            Event::Persisted { volume, first, last } => {
                self.persisted(engine, volume, (first, last), now);
            }
            event => self.events.push_back(ShardEvent::Engine { engine, event }),
        }
    }

    /// What became durable here is acknowledged as far as the rule in [`crate::ack`] allows.
    fn persisted(&mut self, engine: usize, volume: VolumeId, run: (Lsn, Lsn), now: Instant) {
        let ways = &mut self.ways;
        let Some(order) = ways.commits.get_mut(&volume) else { return };
        match order.persisted(run.0, run.1) {
            Ok(Some(point)) => {
                if let Some(engine) = ways.engines.get_mut(engine) {
                    engine.commit(volume, point, &mut ways.pool, now);
                }
            }
            Ok(None) => {}
            Err(run) => self.events.push_back(ShardEvent::CommitFault { volume, run }),
        }
    }

    /// A request has ended: tell the host's connection, or the reactor that it came from.
    fn finish(&mut self, tag: Tag, outcome: Outcome) {
        if let Some((reactor, theirs)) = self.ways.foreign.release(tag) {
            let pieces = core::mem::take(&mut self.pieces);
            // The generation of the command's slot decides which ones.
            let some = theirs.0 >> 8 & 7 == 3;
            if some && self.plant.has(Bug::AnswerLost) {
                return;
            }
            if some && self.plant.has(Bug::AnswerTwice) {
                let again = Message::Answer { tag: theirs, outcome, pieces: pieces.clone() };
                self.ways.outbox.push_back((reactor, again));
            }
            let answer = Message::Answer { tag: theirs, outcome, pieces };
            self.ways.outbox.push_back((reactor, answer));
        } else {
            self.target.complete(tag, outcome, &mut self.pieces);
            self.pieces.clear();
        }
    }

    /// What the shell must know or do.
    pub fn poll_event(&mut self) -> Option<ShardEvent> {
        self.events.pop_front()
    }
}
