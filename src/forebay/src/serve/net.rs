//! Sockets of one reactor: listeners, connections that belong to no subsystem yet, and those that
//! a target of this reactor serves. Nothing here blocks.

use super::shard::NodeShard;
use forebay_io::Instant;
use forebay_nvmf::target::ConnId;
use forebay_nvmf::tcp::{Established, HANDSHAKE_DEADLINE, Handshake, Progress, TxQueue};
use forebay_reactor::{Epoll, Interest, PoolBuf, Trigger, WaitSet};
use forebay_wire::tcp::Digests;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

/// Bytes taken from a socket at once: about sixty writes of 4 KiB.
const RECEIVE: usize = 256 << 10;
/// Connections that are simply tried in each loop; more are asked for through epoll.
const HOT: usize = 8;
/// Loops between two looks at listeners and at connections that are not established.
const COLD_EVERY: u32 = 32;
/// The same while nothing else is to be done: a look costs as much as trying a connection, and would
/// double the time in which a command that arrives is found.
const IDLE_EVERY: u32 = 8;
/// Connections that belong to no subsystem yet, on one reactor, and from one address.
const UNASSOCIATED_MAX: usize = 256;
const UNASSOCIATED_PER_ADDRESS_MAX: usize = 64;
/// Pieces of one send at most; Linux takes 1024. The list is made anew for each send, and is no longer
/// than what there is to send needs.
const PIECES: usize = 512;

/// What a key of the epoll set stands for.
const KIND_LISTENER: u64 = 1 << 32;
const KIND_GREETING: u64 = 2 << 32;
const KIND_CONN: u64 = 3 << 32;

/// A connection whose Connect command is whole, on its way to the reactor of its subsystem.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) established: Box<Established>,
}

struct Greeting {
    stream: TcpStream,
    peer: SocketAddr,
    handshake: Handshake,
}

/// What is known of a connection besides its queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub(crate) peer: SocketAddr,
    pub(crate) since: Instant,
    pub(crate) digests: Digests,
}

struct Link {
    id: ConnId,
    stream: TcpStream,
    meta: Meta,
    /// The socket took less than it was given; epoll says when it takes more.
    blocked: bool,
}

/// The sockets of a reactor.
pub(crate) struct Net {
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    greetings: Vec<Option<Greeting>>,
    links: Vec<Option<Link>>,
    /// Indices of links that exist.
    live: Vec<usize>,
    buffer: Box<[u8]>,
    events: Vec<forebay_reactor::wait::Event>,
    loops: u32,
    /// Links whose sockets take no more for now.
    blocked: usize,
    /// The deadline of the oldest greeting.
    deadline: Instant,
}

impl Net {
    pub(crate) fn new(wait: &WaitSet) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        wait.add(epoll.as_raw_fd())?;
        Ok(Self {
            epoll,
            listeners: Vec::new(),
            greetings: Vec::new(),
            links: Vec::new(),
            live: Vec::new(),
            buffer: vec![0; RECEIVE].into_boxed_slice(),
            events: Vec::with_capacity(256),
            loops: 0,
            blocked: 0,
            deadline: Instant::NEVER,
        })
    }

    pub(crate) fn listen(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let key = KIND_LISTENER | self.listeners.len() as u64;
        self.epoll.add(listener.as_raw_fd(), key, Interest::READ, Trigger::Level)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Stops listening and forgets connections that belong to no subsystem.
    pub(crate) fn close_doors(&mut self) {
        self.listeners.clear();
        self.greetings.clear();
        self.deadline = Instant::NEVER;
    }

    /// Connections that a target serves.
    pub(crate) fn connections(&self) -> usize {
        self.live.len()
    }

    /// What is known of a connection.
    pub(crate) fn meta(&self, id: ConnId) -> Option<Meta> {
        self.links.get(id.index())?.as_ref().filter(|link| link.id == id).map(|link| link.meta)
    }

    /// When [`Net::poll`] is due at the latest.
    pub(crate) const fn next_deadline(&self) -> Instant {
        self.deadline
    }

    /// Receives what is there. Connections that became whole are appended to `arrivals`.
    pub(crate) fn poll(
        &mut self,
        shard: &mut NodeShard,
        arrivals: &mut Vec<Arrival>,
        now: Instant,
    ) -> bool {
        let mut busy = false;
        let direct = self.live.len() <= HOT;
        if direct {
            for at in 0..self.live.len() {
                let Some(&link) = self.live.get(at) else { break };
                busy |= self.receive(link, shard, now);
            }
        }
        self.loops = self.loops.wrapping_add(1);
        let quiet = !busy && self.loops.is_multiple_of(IDLE_EVERY);
        if !direct || self.blocked > 0 || quiet || self.loops.is_multiple_of(COLD_EVERY) {
            busy |= self.look(shard, arrivals, direct, now);
        }
        if now >= self.deadline {
            self.expire(now);
        }
        busy
    }

    /// Asks epoll, without waiting.
    fn look(
        &mut self,
        shard: &mut NodeShard,
        arrivals: &mut Vec<Arrival>,
        direct: bool,
        now: Instant,
    ) -> bool {
        let mut events = core::mem::take(&mut self.events);
        events.clear();
        // A failure would be a bad descriptor of ours; the sockets themselves then tell.
        let _ = self.epoll.wait(Some(core::time::Duration::ZERO), &mut events);
        let mut busy = false;
        for event in &events {
            let at = usize::try_from(event.key & 0xffff_ffff).unwrap_or(usize::MAX);
            match event.key & !0xffff_ffff {
                KIND_LISTENER => busy |= self.accept(at, now),
                KIND_GREETING => busy |= self.greet(at, arrivals),
                _ => {
                    if event.writable || event.closed {
                        self.unblock(at);
                        self.send_one(at, shard);
                    }
                    if !direct && (event.readable || event.closed) {
                        busy |= self.receive(at, shard, now);
                    }
                }
            }
        }
        self.events = events;
        busy
    }

    fn accept(&mut self, listener: usize, now: Instant) -> bool {
        let Some(listener) = self.listeners.get(listener) else { return false };
        let Ok((stream, peer)) = listener.accept() else { return false };
        let waiting = self.greetings.iter().flatten().count();
        let same = |greeting: &&Greeting| greeting.peer.ip() == peer.ip();
        let from_there = self.greetings.iter().flatten().filter(same).count();
        if waiting >= UNASSOCIATED_MAX || from_there >= UNASSOCIATED_PER_ADDRESS_MAX {
            tracing::warn!(%peer, waiting, "connection refused: too many that are not associated yet");
            return true;
        }
        if let Err(error) = self.admit(stream, peer, now) {
            tracing::warn!(%peer, %error, "connection refused");
        }
        true
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr, now: Instant) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let at = self.greetings.iter().position(Option::is_none).unwrap_or(self.greetings.len());
        let fd = stream.as_raw_fd();
        self.epoll.add(fd, KIND_GREETING | at as u64, Interest::READ, Trigger::Level)?;
        let greeting =
            Greeting { stream, peer, handshake: Handshake::new(now, HANDSHAKE_DEADLINE) };
        self.deadline = self.deadline.min(greeting.handshake.deadline());
        if at == self.greetings.len() {
            self.greetings.push(Some(greeting));
        } else {
            self.greetings[at] = Some(greeting);
        }
        Ok(())
    }

    fn greet(&mut self, at: usize, arrivals: &mut Vec<Arrival>) -> bool {
        let Some(slot) = self.greetings.get_mut(at) else { return false };
        let Some(greeting) = slot.as_mut() else { return false };
        // A Connect capsule is about a kilobyte; what follows it stays in the socket.
        let progress = match greeting.stream.read(&mut self.buffer[..4096]) {
            Ok(0) => {
                *slot = None;
                return true;
            }
            Ok(n) => greeting.handshake.handle_bytes(&self.buffer[..n]),
            Err(error) if is_later(&error) => return false,
            Err(_) => {
                *slot = None;
                return true;
            }
        };
        let output = greeting.handshake.output().len();
        if output > 0 {
            // A few hundred bytes fit an empty socket buffer; a host that does not take them is gone.
            let sent = greeting.stream.write(greeting.handshake.output()).unwrap_or(0);
            greeting.handshake.advance(sent);
        }
        match progress {
            Progress::More => {}
            Progress::Failed(error) => {
                tracing::warn!(peer = %greeting.peer, %error, "handshake failed");
                *slot = None;
            }
            Progress::Established(established) => {
                let Some(greeting) = slot.take() else { return true };
                let _ = self.epoll.remove(greeting.stream.as_raw_fd());
                let Greeting { stream, peer, .. } = greeting;
                arrivals.push(Arrival { stream, peer, established });
            }
        }
        true
    }

    fn expire(&mut self, now: Instant) {
        self.deadline = Instant::NEVER;
        for slot in &mut self.greetings {
            let Some(greeting) = slot else { continue };
            let deadline = greeting.handshake.deadline();
            if deadline <= now {
                tracing::warn!(peer = %greeting.peer, "no Connect command in time: closed");
                *slot = None;
            } else {
                self.deadline = self.deadline.min(deadline);
            }
        }
    }

    /// Takes over a connection that the target has accepted as `id`.
    pub(crate) fn adopt(&mut self, id: ConnId, stream: TcpStream, meta: Meta) -> io::Result<()> {
        let at = id.index();
        if self.links.len() <= at {
            self.links.resize_with(at + 1, || None);
        }
        self.epoll.add(
            stream.as_raw_fd(),
            KIND_CONN | at as u64,
            Interest::READ,
            Trigger::Level,
        )?;
        self.links[at] = Some(Link { id, stream, meta, blocked: false });
        self.live.push(at);
        Ok(())
    }

    /// Ends a connection: the target has said so, or the socket has ended.
    pub(crate) fn close(&mut self, id: ConnId, shard: &mut NodeShard, now: Instant) {
        let at = id.index();
        if let Some(slot) = self.links.get_mut(at)
            && let Some(link) = slot.take_if(|link| link.id == id)
        {
            self.blocked -= usize::from(link.blocked);
            self.live.retain(|live| *live != at);
        }
        shard.conn_closed(id, now);
    }

    /// Ends every connection.
    pub(crate) fn close_all(&mut self, shard: &mut NodeShard, now: Instant) {
        self.blocked = 0;
        while let Some(at) = self.live.pop() {
            if let Some(link) = self.links.get_mut(at).and_then(Option::take) {
                shard.conn_closed(link.id, now);
            }
        }
    }

    /// Whether a host has not been sent all of its answers.
    pub(crate) fn has_unsent(&self, shard: &NodeShard) -> bool {
        let mut links = self.live.iter().filter_map(|at| self.links.get(*at)?.as_ref());
        links.any(|link| shard.target.tx(link.id).is_some_and(|tx| !tx.is_empty()))
    }

    fn receive(&mut self, at: usize, shard: &mut NodeShard, now: Instant) -> bool {
        let Some(Some(link)) = self.links.get_mut(at) else { return false };
        let id = link.id;
        if !shard.target.wants_read(id) {
            return false;
        }
        match link.stream.read(&mut self.buffer) {
            Ok(0) => {
                self.close(id, shard, now);
                true
            }
            Ok(n) => {
                shard.handle_bytes(id, &self.buffer[..n], now);
                true
            }
            Err(error) if is_later(&error) => false,
            Err(_) => {
                self.close(id, shard, now);
                true
            }
        }
    }

    /// Sends what connections have to send, until the sockets take no more.
    pub(crate) fn send(&mut self, shard: &mut NodeShard) -> bool {
        let mut busy = false;
        while let Some(id) = shard.target.poll_ready() {
            busy = true;
            self.send_one(id.index(), shard);
        }
        busy
    }

    fn send_one(&mut self, at: usize, shard: &mut NodeShard) {
        let Some(Some(link)) = self.links.get_mut(at) else { return };
        let id = link.id;
        while !link.blocked {
            let Some(tx) = shard.target.tx(id) else { return };
            if tx.is_empty() {
                return;
            }
            let outcome = match tx.most_slices() {
                ..=16 => write::<16>(&mut link.stream, tx),
                17..=64 => write::<64>(&mut link.stream, tx),
                65..=256 => write::<256>(&mut link.stream, tx),
                _ => write::<PIECES>(&mut link.stream, tx),
            };
            match outcome {
                Ok(sent) => shard.target.advance(id, sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    link.blocked = true;
                    self.blocked += 1;
                    let key = KIND_CONN | at as u64;
                    let fd = link.stream.as_raw_fd();
                    let _ = self.epoll.change(fd, key, Interest::BOTH, Trigger::Level);
                }
                // The next receive finds the socket's end and closes.
                Err(_) => return,
            }
        }
    }

    fn unblock(&mut self, at: usize) {
        let Some(Some(link)) = self.links.get_mut(at) else { return };
        if core::mem::take(&mut link.blocked) {
            self.blocked -= 1;
            let key = KIND_CONN | at as u64;
            let _ = self.epoll.change(link.stream.as_raw_fd(), key, Interest::READ, Trigger::Level);
        }
    }
}

fn write<const N: usize>(stream: &mut TcpStream, tx: &TxQueue<PoolBuf>) -> io::Result<usize> {
    let mut pieces = [IoSlice::new(&[]); N];
    let count = tx.gather(&mut pieces);
    stream.write_vectored(&pieces[..count])
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Whether an address is one that only this machine reaches.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
