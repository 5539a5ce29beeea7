//! What runs on each reactor: sockets, shard and devices, and calls of the control plane.

use super::devices::Devices;
use super::net::{Arrival, Meta, Net, is_loopback};
use super::shard::{NodeShard, SharedPool};
use super::volumes::LocalVolumes;
use forebay_driver::DriverContext;
use forebay_io::Instant;
use forebay_node::ShardEvent;
use forebay_nvmf::target::ConnId;
use forebay_nvmf::target::{Event as TargetEvent, LocalAddress};
use forebay_reactor::{Context, MailSender, PoolBuf, Progress, Service};
use forebay_wire::Nqn;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

/// Messages of the target's protocol that wait for room in another reactor's mailbox.
const OUTGOING_MAX: usize = 8192;
/// How long a stop waits for hosts' commands under way, and then for the engines' last records.
pub(super) const STOP_PATIENCE: core::time::Duration = core::time::Duration::from_secs(10);

/// Which reactor serves a subsystem; replaced as a whole when volumes come and go.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) homes: BTreeMap<Nqn, u32>,
}

/// A call of the control plane, carried out between two polls.
pub(crate) type Call = Box<dyn FnOnce(&mut NodeService, &Context) + Send>;

/// What is sent to a reactor.
pub(crate) enum Message {
    /// From another reactor's shard.
    Peer(forebay_node::Message<PoolBuf>),
    /// A connection whose subsystem lives here.
    Arrival(Box<Arrival>),
    /// From the control plane.
    Call(Call),
}

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Serving.
    Serving,
    /// No new commands; those under way end.
    Quiescing,
    /// The engines write their last records.
    Stopping(Instant),
    /// Done.
    Stopped,
}

/// One reactor's part of the node.
pub(crate) struct NodeService {
    pub(crate) reactor: u32,
    pub(crate) shard: NodeShard,
    pub(crate) net: Net,
    pub(crate) devices: Devices,
    pub(crate) drivers: DriverContext,
    pub(crate) pool: SharedPool,
    pub(crate) volumes: LocalVolumes,
    pub(crate) directory: Arc<Directory>,
    /// Whether hosts that no list names may connect from loopback addresses.
    pub(crate) loopback_only: bool,
    peers: Vec<MailSender<Message>>,
    arrivals: Vec<Arrival>,
    outgoing: VecDeque<(u32, Message)>,
    life: Life,
    engines_stopped: usize,
}

/// What a service is made of.
pub(crate) struct Parts {
    pub(crate) reactor: u32,
    pub(crate) shard: NodeShard,
    pub(crate) net: Net,
    pub(crate) devices: Devices,
    pub(crate) drivers: DriverContext,
    pub(crate) pool: SharedPool,
    pub(crate) peers: Vec<MailSender<Message>>,
    pub(crate) loopback_only: bool,
}

impl NodeService {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            reactor: parts.reactor,
            shard: parts.shard,
            net: parts.net,
            devices: parts.devices,
            drivers: parts.drivers,
            pool: parts.pool,
            volumes: LocalVolumes::default(),
            directory: Arc::default(),
            loopback_only: parts.loopback_only,
            peers: parts.peers,
            arrivals: Vec::new(),
            outgoing: VecDeque::new(),
            life: Life::Serving,
            engines_stopped: 0,
        }
    }

    /// Begins the end: no new connections or commands.
    pub(crate) fn quiesce(&mut self) {
        if self.life == Life::Serving {
            self.net.close_doors();
            self.life = Life::Quiescing;
        }
    }

    /// Whether every command that hosts of this reactor had under way has ended and is answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.shard.target.outstanding() == 0
            && self.outgoing.is_empty()
            && !self.net.has_unsent(&self.shard)
    }

    /// Ends the connections, so that hosts look for another path or wait for this one at once, and
    /// has the engines write their last records. All reactors are quiet, or nobody waits for them any more.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.net.close_all(&mut self.shard, now);
        for engine in 0..self.shard.engine_count() {
            if let Some(engine) = self.shard.engine(engine) {
                engine.stop();
            }
        }
        self.life = Life::Stopping(now + STOP_PATIENCE);
    }

    /// Carries out what a call of the control plane has set going.
    pub(crate) fn kick(&mut self, now: Instant) {
        self.devices.drive(&mut self.shard, now);
        self.events(now);
    }

    fn place_arrivals(&mut self, now: Instant) {
        while let Some(arrival) = self.arrivals.pop() {
            let home = self.directory.homes.get(&arrival.established.data.subnqn).copied();
            match home {
                Some(home) if home != self.reactor => {
                    self.outgoing.push_back((home, Message::Arrival(Box::new(arrival))));
                }
                // The target itself answers for discovery, and refuses what it does not know.
                _ => self.settle_in(arrival, now),
            }
        }
    }

    /// A connection stays on this reactor.
    fn settle_in(&mut self, arrival: Arrival, now: Instant) {
        let Arrival { stream, peer, established } = arrival;
        if self.life != Life::Serving || (self.loopback_only && !is_loopback(peer.ip())) {
            tracing::warn!(%peer, "connection refused: this node serves loopback addresses only");
            return;
        }
        let local = stream.local_addr().map(local_address).unwrap_or_default();
        let meta = Meta { peer, since: now, digests: established.params.digests };
        let id = match self.shard.target.accept(&established, &local, now) {
            Ok(id) => id,
            Err(error) => {
                tracing::warn!(%peer, %error, "connection refused");
                return;
            }
        };
        if let Err(error) = self.net.adopt(id, stream, meta) {
            tracing::warn!(%peer, %error, "connection refused");
            self.shard.conn_closed(id, now);
            return;
        }
        if !established.leftover.is_empty() {
            self.shard.handle_bytes(id, &established.leftover, now);
        }
    }

    /// Events of target and engines: sockets to close, states to keep, things to tell.
    fn events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.shard.target.poll_event() {
            any = true;
            if let TargetEvent::Close(id) = event {
                self.close(id, now);
            } else {
                tell(&event);
            }
        }
        while let Some(event) = self.shard.poll_event() {
            any = true;
            match event {
                ShardEvent::Engine { engine, event } => {
                    if event == forebay_cache::engine::Event::Stopped {
                        self.engines_stopped += 1;
                    }
                    self.volumes.note(engine, event);
                }
                ShardEvent::CommitFault { volume, run } => {
                    tracing::error!(%volume, first = %run.first, last = %run.last, "numbers out of order: \
                        the volume's writes are not acknowledged any more");
                }
            }
        }
        any
    }

    fn close(&mut self, id: ConnId, now: Instant) {
        self.net.close(id, &mut self.shard, now);
    }

    fn exchange(&mut self) -> bool {
        let mut any = false;
        while self.outgoing.len() < OUTGOING_MAX
            && let Some((to, message)) = self.shard.poll_message()
        {
            self.outgoing.push_back((to, Message::Peer(message)));
        }
        while let Some((to, message)) = self.outgoing.pop_front() {
            any = true;
            let Some(peer) = usize::try_from(to).ok().and_then(|to| self.peers.get(to)) else {
                continue;
            };
            if let Err(message) = peer.send(message) {
                self.outgoing.push_front((to, message));
                break;
            }
        }
        any
    }

    fn advance_life(&mut self, now: Instant) {
        match self.life {
            Life::Stopping(until) => {
                let all = self.shard.engine_count();
                if now >= until && self.engines_stopped < all {
                    tracing::warn!(
                        reactor = self.reactor,
                        "the devices took too long for a clean stop: the next start recovers, and loses nothing"
                    );
                }
                if now >= until || self.engines_stopped >= all {
                    self.life = Life::Stopped;
                }
            }
            Life::Serving | Life::Quiescing | Life::Stopped => {}
        }
    }
}

impl Service for NodeService {
    type Message = Message;

    fn message(&mut self, message: Message, context: &Context) {
        match message {
            Message::Peer(message) => self.shard.handle_message(message, context.now),
            Message::Arrival(arrival) => self.settle_in(*arrival, context.now),
            Message::Call(call) => call(self, context),
        }
    }

    fn poll(&mut self, context: &Context) -> Progress {
        let now = context.now;
        let mut busy = false;
        if self.life == Life::Serving {
            busy |= self.net.poll(&mut self.shard, &mut self.arrivals, now);
            self.place_arrivals(now);
        }
        // Only the target's: the timers of engines are looked at by every end of a poll, below.
        if self.shard.target.next_deadline() <= now {
            self.shard.target.handle_timeout(now);
            busy = true;
        }
        busy |= self.devices.drive(&mut self.shard, now);
        busy |= self.events(now);
        self.devices.watch.sending();
        busy |= self.net.send(&mut self.shard);
        busy |= self.exchange();
        if self.life != Life::Serving {
            self.advance_life(now);
            if self.life == Life::Stopped {
                return Progress::Stop;
            }
        }
        if busy { Progress::Busy } else { Progress::Idle }
    }

    fn next_deadline(&self) -> Instant {
        if !self.outgoing.is_empty() {
            return Instant(0);
        }
        let life = match self.life {
            Life::Stopping(until) => until,
            Life::Serving | Life::Quiescing | Life::Stopped => Instant::NEVER,
        };
        let devices = self.devices.next_deadline();
        self.shard.next_deadline().min(self.net.next_deadline()).min(devices).min(life)
    }
}

fn local_address(address: SocketAddr) -> LocalAddress {
    let ip = address.ip().to_canonical();
    LocalAddress {
        adrfam: if ip.is_ipv4() { 1 } else { 2 },
        traddr: ip.to_string(),
        trsvcid: address.port().to_string(),
    }
}

/// What operators want to read of hosts coming and going.
fn tell(event: &TargetEvent) {
    match event {
        TargetEvent::Close(_) => {}
        TargetEvent::Connected { cntlid, hostnqn, subnqn } => {
            tracing::info!(cntlid, host = %hostnqn, subsystem = %subnqn, "host connected");
        }
        TargetEvent::Disconnected { cntlid, hostnqn } => {
            tracing::info!(cntlid, host = %hostnqn, "host disconnected");
        }
        TargetEvent::Refused { hostnqn, subnqn, status } => {
            tracing::warn!(host = %hostnqn, subsystem = %subnqn, %status, "host refused");
        }
        TargetEvent::Protocol { conn, fatal } => {
            tracing::warn!(%conn, %fatal, "protocol error: connection ended");
        }
        TargetEvent::KeepAliveExpired { cntlid, hostnqn } => {
            tracing::warn!(cntlid, host = %hostnqn, "keep-alive timeout: association ended");
        }
    }
}
