//! The target: subsystems, namespaces, controllers, queues and discovery of one reactor.
//!
//! ```text
//! Handshake --Established--> accept --> ConnId
//!                                        |  handle_bytes: capsules, H2CData
//!                                        v
//!   IoSink::submit(Request, Payload)  <--+        complete(Tag, Outcome, pieces)
//!                                        ^              |
//!   poll_ready / tx / advance  <---------+--------------+
//!   poll_event: close a socket, tell the operator
//! ```
//!
//! Call order: `accept`, then `handle_bytes` for what the socket gives (also for the `leftover` of
//! the handshake) while [`Target::wants_read`] says so; `complete` for each request submitted;
//! `handle_timeout` at `next_deadline`; `poll_buffers` while `waiting_for_buffers`; then
//! `poll_ready` for connections with something to send, and `poll_event`. After an
//! [`Event::Close`] (or when the socket ends by itself) the shell calls `conn_closed`.
//!
//! Choices where the specifications leave one:
//! - A controller that was disabled or shut down keeps its association as long as its admin connection
//!   lives (the two minutes that a host may count on, and more); it is not kept beyond that connection.
//! - One R2T covers the whole data of a write, so that MAXR2T never limits and data comes in order.
//! - I/O of a controller that is held (see `ana`) gets the status ANA Inaccessible rather than being
//!   queued: in-capsule data would have to be copied and kept, and Linux waits for the change that an
//!   event announces. A host without multipath retries five times, then reports an error.
//! - A volume that cannot serve now is an ANA Transition, which hosts retry without a limit.

pub use crate::target::config::{
    AddSubsystemError, BlockSize, DiscoveryRecord, HostAccess, Limits, LocalAddress, NSID_MAX,
    NamespaceConfig, NamespaceError, SubsystemConfig, TargetConfig,
};
pub use crate::target::stats::{
    ConnStats, ControllerInfo, HostInfo, NamespaceCounters, NamespaceLatency, TargetStats,
};
pub use forebay_wire::log::AnaState;

use crate::plant::Plant;
use crate::target::conn::{Conn, Home};
use crate::target::controller::Controller;
use crate::target::subsystem::Subsystem;
use crate::tcp::TxQueue;
use core::fmt;
use forebay_io::{Buf, BufPool, Duration, Instant, Payload, Request, Tag};
use forebay_wire::tcp::Fatal;
use forebay_wire::{Nqn, Status};
use std::collections::VecDeque;

mod abort;
mod admin;
mod ana;
mod complete;
mod config;
mod conn;
mod connect;
mod controller;
mod data;
mod features;
mod fused;
mod identify;
mod io;
mod logs;
mod manage;
mod receive;
mod stats;
mod status;
mod subsystem;
#[cfg(test)]
mod tests;
mod timers;

/// Largest data transfer of one command in bytes (MDTS 5: 2^5 pages of 4 KiB).
pub const TRANSFER_MAX: u32 = 128 << 10;
/// Bytes queued on a connection above which nothing more is read from it.
pub const TX_HIGH_WATER: usize = 4 << 20;
/// How long a connection that is being closed may take to send its last bytes.
pub const LINGER: Duration = Duration::from_secs(5);
/// How long an I/O Connect waits for an older queue of the same number to end.
pub const DUPLICATE_QID_WAIT: Duration = Duration::from_secs(2);

/// Names one connection of one target; never reused while anything refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    slot: u16,
    generation: u16,
}

impl ConnId {
    /// A dense small number, unique among the connections that exist now: an index for tables.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.slot)
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// Where checked block requests go.
pub trait IoSink<B> {
    /// Takes a request. Inline payload is valid during the call only. Each request is completed
    /// exactly once, later, through [`Target::complete`].
    fn submit(&mut self, request: Request, payload: Payload<'_, B>);
}

/// What the shell has to do, or may want to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Close the socket, then call [`Target::conn_closed`].
    Close(ConnId),
    /// A host has a new association.
    Connected {
        /// The controller's identifier.
        cntlid: u16,
        /// The host.
        hostnqn: Nqn,
        /// The subsystem.
        subnqn: Nqn,
    },
    /// An association is over and everything it admitted has ended.
    Disconnected {
        /// The controller's identifier.
        cntlid: u16,
        /// The host.
        hostnqn: Nqn,
    },
    /// A Connect was refused.
    Refused {
        /// The host.
        hostnqn: Nqn,
        /// The subsystem it asked for.
        subnqn: Nqn,
        /// Why.
        status: Status,
    },
    /// A host broke the protocol; its connection ends.
    Protocol {
        /// The connection.
        conn: ConnId,
        /// Why.
        fatal: Fatal,
    },
    /// A host sent nothing within its keep-alive timeout; its association ends.
    KeepAliveExpired {
        /// The controller's identifier.
        cntlid: u16,
        /// The host.
        hostnqn: Nqn,
    },
}

/// Why a connection was not accepted: the target is at its limit; close the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetFull;

impl fmt::Display for TargetFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the target holds as many connections as it may")
    }
}

impl core::error::Error for TargetFull {}

/// What a call lends to the state machines: a pool, a place for requests, the time.
trait Env<B: Buf> {
    /// Where buffers come from.
    fn pool(&mut self) -> &mut impl BufPool<Buf = B>;
    /// Where requests go.
    fn io(&mut self) -> &mut impl IoSink<B>;
    /// The time of the call.
    fn now(&self) -> Instant;
}

/// The one [`Env`] there is: a trait so that what passes it on need not name its two types.
struct Lent<'e, P, I> {
    pool: &'e mut P,
    io: &'e mut I,
    now: Instant,
}

impl<B: Buf, P: BufPool<Buf = B>, I: IoSink<B>> Env<B> for Lent<'_, P, I> {
    #[inline(always)]
    fn pool(&mut self) -> &mut impl BufPool<Buf = B> {
        self.pool
    }

    #[inline(always)]
    fn io(&mut self) -> &mut impl IoSink<B> {
        self.io
    }

    #[inline(always)]
    fn now(&self) -> Instant {
        self.now
    }
}

struct ConnSlot<B> {
    generation: u16,
    conn: Option<Box<Conn<B>>>,
}

/// All of the target's state on one reactor.
pub struct Target<B> {
    config: TargetConfig,
    started: Instant,
    subsystems: Vec<Option<Subsystem>>,
    controllers: Vec<Option<Box<Controller>>>,
    conns: Vec<ConnSlot<B>>,
    free_conns: Vec<u16>,
    next_cntlid: u16,
    next_claim: u64,
    ready: VecDeque<ConnId>,
    events: VecDeque<Event>,
    /// Connections with commands that wait for a buffer.
    starved: VecDeque<ConnId>,
    /// Controllers whose events, gates or life may have to change.
    dirty: Vec<usize>,
    discovery: Vec<DiscoveryRecord>,
    discovery_generation: u64,
    deadline: Instant,
    /// The latest time that any call was given.
    clock: Instant,
    /// Completed since [`Target::measure`].
    ended: Vec<stats::Ended>,
    stats: TargetStats,
    plant: Plant,
}

impl<B: Buf> Target<B> {
    /// A target without subsystems, at time `now`.
    #[must_use]
    pub fn new(config: TargetConfig, now: Instant) -> Self {
        Self {
            next_cntlid: *config.limits.cntlids.start(),
            config,
            started: now,
            subsystems: Vec::new(),
            controllers: Vec::new(),
            conns: Vec::new(),
            free_conns: Vec::new(),
            next_claim: 0,
            ready: VecDeque::new(),
            events: VecDeque::new(),
            starved: VecDeque::new(),
            dirty: Vec::new(),
            discovery: Vec::new(),
            discovery_generation: 1,
            deadline: Instant::NEVER,
            clock: now,
            ended: Vec::new(),
            stats: TargetStats::default(),
            plant: Plant::default(),
        }
    }

    /// Removes a rule on purpose, by its number in [`crate::plant::Bug`]; 0 for none.
    #[cfg(feature = "planted-bugs")]
    pub const fn plant(&mut self, bug: u16) {
        self.plant = Plant::new(bug);
    }

    /// Takes bytes that a connection received. Bytes for a connection that is closing or gone are
    /// ignored.
    pub fn handle_bytes<P, I>(
        &mut self,
        id: ConnId,
        bytes: &[u8],
        now: Instant,
        pool: &mut P,
        io: &mut I,
    ) where
        P: BufPool<Buf = B>,
        I: IoSink<B>,
    {
        let Some(mut conn) = self.take(id) else { return };
        conn.heard = now;
        conn.stats.bytes_in += bytes.len() as u64;
        self.receive(&mut conn, bytes, &mut Lent { pool, io, now });
        self.put(conn);
        self.settle(now);
    }

    /// A connection with new output, each once; then send [`Target::tx`] and call
    /// [`Target::advance`]. One that could not be sent whole is not named again by itself.
    pub fn poll_ready(&mut self) -> Option<ConnId> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(conn) = self.conn_mut(id) {
                conn.in_ready = false;
                if !conn.tx.is_empty() {
                    return Some(id);
                }
            }
        }
        None
    }

    /// What a connection has to send; `None` for one that is gone.
    #[must_use]
    pub fn tx(&self, id: ConnId) -> Option<&TxQueue<B>> {
        self.conn(id).map(|conn| &conn.tx)
    }

    /// The first `n` bytes of a connection's output are sent.
    pub fn advance(&mut self, id: ConnId, n: usize) {
        let Some(conn) = self.conn_mut(id) else { return };
        conn.tx.advance(n);
        conn.stats.bytes_out += n as u64;
        if conn.closing.is_some() && conn.tx.is_empty() && !conn.close_told {
            conn.close_told = true;
            self.events.push_back(Event::Close(id));
        }
    }

    /// Whether to read from a connection: not while too much output waits, nor once it closes.
    #[must_use]
    pub fn wants_read(&self, id: ConnId) -> bool {
        self.conn(id).is_some_and(|conn| conn.closing.is_none() && conn.tx.len() < TX_HIGH_WATER)
    }

    /// What to do or to tell next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether commands wait for a pool buffer: then call [`Target::poll_buffers`] when the pool
    /// may have room again.
    #[must_use]
    pub fn waiting_for_buffers(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Gives buffers to commands that wait for one, in order.
    pub fn poll_buffers<P: BufPool<Buf = B>>(&mut self, pool: &mut P) {
        for _ in 0..self.starved.len() {
            let Some(id) = self.starved.pop_front() else { break };
            let Some(conn) = self.conn_mut(id) else { continue };
            conn.starved = false;
            let fed = conn.feed(pool);
            self.note_output(id);
            if !fed {
                self.starve(id);
                break;
            }
        }
    }

    fn conn(&self, id: ConnId) -> Option<&Conn<B>> {
        let slot = self.conns.get(usize::from(id.slot))?;
        slot.conn.as_deref().filter(|_| slot.generation == id.generation)
    }

    fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn<B>> {
        let slot = self.conns.get_mut(usize::from(id.slot))?;
        if slot.generation != id.generation {
            return None;
        }
        slot.conn.as_deref_mut()
    }

    /// Takes a connection out of its slot, so that it and the rest can change together.
    fn take(&mut self, id: ConnId) -> Option<Box<Conn<B>>> {
        let slot = self.conns.get_mut(usize::from(id.slot))?;
        if slot.generation != id.generation {
            return None;
        }
        slot.conn.take()
    }

    fn put(&mut self, mut conn: Box<Conn<B>>) {
        if !conn.tx.is_empty() && !conn.in_ready && !conn.dead {
            conn.in_ready = true;
            self.ready.push_back(conn.id);
        }
        if conn.is_starved() && !conn.starved {
            conn.starved = true;
            self.starved.push_back(conn.id);
        }
        let at = usize::from(conn.id.slot);
        self.conns[at].conn = Some(conn);
    }

    /// Puts a connection on the ready list if it has output.
    fn note_output(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id)
            && !conn.tx.is_empty()
            && !conn.in_ready
            && !conn.dead
        {
            conn.in_ready = true;
            self.ready.push_back(id);
        }
    }

    fn starve(&mut self, id: ConnId) {
        if let Some(conn) = self.conn_mut(id)
            && !conn.starved
        {
            conn.starved = true;
            self.starved.push_front(id);
        }
    }

    fn mark_dirty(&mut self, ctrl: usize) {
        if !self.dirty.contains(&ctrl) {
            self.dirty.push(ctrl);
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.deadline = self.deadline.min(at);
    }
}

/// The parts of a [`Tag`]: connection, command slot (with generations), part of a split command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TagParts {
    conn: ConnId,
    slot: u16,
    generation: u16,
}

/// Slots fit 12 bits, so do their generations, parts fit 8.
const SLOT_BITS: u32 = 12;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;

#[inline]
fn tag(conn: ConnId, slot: u16, generation: u16, part: u8) -> Tag {
    Tag(u64::from(conn.slot) << 48
        | u64::from(conn.generation) << 32
        | (u64::from(slot) & SLOT_MASK) << 20
        | (u64::from(generation) & SLOT_MASK) << 8
        | u64::from(part))
}

#[inline]
fn untag(tag: Tag) -> TagParts {
    let low = |value: u64| {
        let raw = value.to_le_bytes();
        u16::from_le_bytes([raw[0], raw[1]])
    };
    TagParts {
        conn: ConnId { slot: low(tag.0 >> 48), generation: low(tag.0 >> 32) },
        slot: low((tag.0 >> 20) & SLOT_MASK),
        generation: low((tag.0 >> 8) & SLOT_MASK),
    }
}

impl<B> fmt::Debug for Target<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("subsystems", &self.subsystems.iter().flatten().count())
            .field("controllers", &self.controllers.iter().flatten().count())
            .field("conns", &self.conns.iter().filter(|slot| slot.conn.is_some()).count())
            .finish_non_exhaustive()
    }
}
