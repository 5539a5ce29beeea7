//! Namespaces of remote NVMe/TCP controllers as devices, by the project's own initiator.

use core::fmt;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};

use forebay_io::{Buf, Completion, Device, DeviceInfo, Duration, Instant, Op};
use forebay_nvmf::initiator::remote::{Link, Remote};
use forebay_nvmf::initiator::{Error, SocketAction};
use forebay_reactor::MonotonicClock;
use forebay_reactor::wait::{Epoll, Interest, Trigger};

mod discover;
mod socket;
#[cfg(test)]
mod tests;
pub mod uri;

pub use discover::discover;
use socket::Socket;
pub use uri::{NvmfUri, UriError};

/// Bytes received at a time.
const RECEIVE: usize = 256 << 10;
/// Pieces sent at a time.
const SLICES: usize = 256;
/// Between two looks at time limits.
const TICK: Duration = Duration::from_millis(1);
/// The longest that nobody looks at time limits.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// In a busy device, sockets without I/O in flight are looked at once in so many polls.
const QUIET_POLLS: u32 = 32;

/// Why a remote namespace could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The host's name does not resolve.
    Resolve(String, io::Error),
    /// No answer, or a refusal, within the time.
    Association(Error),
    /// No TCP connection.
    Connect(io::Error),
    /// The process has no descriptors left.
    Epoll(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(host, error) => write!(f, "cannot resolve {host}: {error}"),
            Self::Association(error) => error.fmt(f),
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Epoll(error) => write!(f, "cannot wait for sockets: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// A remote namespace. Its operations fail while the controller cannot be reached for longer than
/// `fail_after`, and succeed again when it is back.
pub struct NvmfDevice<B> {
    remote: Remote<B>,
    info: DeviceInfo,
    addresses: Vec<SocketAddr>,
    next_address: usize,
    sockets: Vec<Option<Socket>>,
    epoll: Epoll,
    events: Vec<forebay_reactor::wait::Event>,
    receive: Vec<u8>,
    now: Instant,
    next_tick: Instant,
    quiet_polls: u32,
    last_io_error: Option<io::Error>,
}

impl<B: Buf> NvmfDevice<B> {
    /// Connects and waits until the namespace is known, at most twice the connect timeout.
    ///
    /// # Errors
    /// Why it cannot be used now.
    pub fn open(uri: &NvmfUri) -> Result<Self, OpenError> {
        let addresses = resolve(&uri.host, uri.port)?;
        let now = MonotonicClock.now();
        let limit = now + uri.config.host.setup_timeout * 2;
        let queues = usize::from(uri.config.host.queues) + 1;
        let mut device = Self {
            remote: Remote::new(uri.config.clone(), now),
            info: unknown(),
            addresses,
            next_address: 0,
            sockets: (0..queues).map(|_| None).collect(),
            epoll: Epoll::new().map_err(OpenError::Epoll)?,
            events: Vec::new(),
            receive: vec![0; RECEIVE],
            now,
            next_tick: now,
            quiet_polls: 0,
            last_io_error: None,
        };
        loop {
            device.drive();
            match device.remote.link() {
                Link::Up => break,
                Link::Connecting if device.now < limit => {}
                Link::Connecting | Link::Dead => return Err(device.why()),
            }
            device.wait(Duration::from_millis(5));
        }
        device.refresh();
        Ok(device)
    }

    /// A descriptor that is readable while there is something to do, for a reactor's wait set.
    #[must_use]
    pub fn wait_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// When it must be polled at the latest although nothing is readable.
    #[must_use]
    pub const fn next_deadline(&self) -> Instant {
        self.next_tick
    }

    /// Whether the namespace can be reached.
    #[must_use]
    pub fn link(&self) -> &Link {
        self.remote.link()
    }

    /// Why the last association ended or could not be made, if one did.
    #[must_use]
    pub fn last_error(&self) -> Option<&Error> {
        self.remote.last_error()
    }

    /// Associations made so far: more than one after a loss.
    #[must_use]
    pub const fn associations(&self) -> u64 {
        self.remote.associations()
    }

    /// Ends the association in good order; waits for the controller's answer for up to `limit`.
    /// Operations in flight fail.
    pub fn close(&mut self, limit: Duration) {
        let end = MonotonicClock.now() + limit;
        self.remote.shut_down(MonotonicClock.now());
        loop {
            self.drive();
            if self.remote.is_shut_down() || self.now >= end {
                return;
            }
            self.wait(Duration::from_millis(1));
        }
    }

    fn why(&mut self) -> OpenError {
        match (self.remote.last_error(), self.last_io_error.take()) {
            (None | Some(Error::Closed), Some(error)) => OpenError::Connect(error),
            (Some(error), _) => OpenError::Association(error.clone()),
            (None, None) => OpenError::Association(Error::Timeout("the controller")),
        }
    }

    fn wait(&mut self, limit: Duration) {
        self.events.clear();
        // An error here only means that the next look comes at once.
        let _result = self.epoll.wait(Some(limit), &mut self.events);
    }

    /// One round of everything: time, sockets opened and closed, bytes out, in, and out again.
    fn drive(&mut self) {
        self.now = MonotonicClock.now();
        if self.now >= self.next_tick {
            self.remote.handle_timeout(self.now);
            let due = self.remote.next_deadline().min(self.now + IDLE_TICK);
            self.next_tick = due.max(self.now + TICK);
            self.refresh();
        }
        self.act();
        self.send_all();
        self.receive_all();
        self.act();
        self.send_all();
    }

    /// The namespace may have another size by now.
    fn refresh(&mut self) {
        if let Some(info) = self.remote.info()
            && *info != self.info
        {
            self.info = info.clone();
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.remote.poll_action() {
            match action {
                SocketAction::CloseAll => {
                    // The last words, such as why the connection ends, if they go at once.
                    self.send_all();
                    self.sockets.iter_mut().for_each(|socket| *socket = None);
                }
                SocketAction::Open(queue) => {
                    if let Err(error) = self.open_socket(queue) {
                        self.fail(error);
                    }
                }
            }
        }
    }

    fn open_socket(&mut self, queue: u16) -> io::Result<()> {
        // The next address is tried with the next association.
        if queue == 0 {
            self.next_address = (self.next_address + 1) % self.addresses.len().max(1);
        }
        let address = self.addresses.get(self.next_address).ok_or(io::ErrorKind::NotFound)?;
        let socket = Socket::connect(address)?;
        self.epoll.add(socket.as_raw_fd(), queue.into(), Interest::BOTH, Trigger::Level)?;
        if let Some(place) = self.sockets.get_mut(usize::from(queue)) {
            *place = Some(socket);
        }
        Ok(())
    }

    /// A connection is lost, and with it the association.
    fn fail(&mut self, error: io::Error) {
        self.last_io_error = Some(error);
        self.remote.handle_closed(self.now);
    }

    fn send_all(&mut self) {
        for queue in 0..self.sockets.len() {
            let id = u16::try_from(queue).unwrap_or(u16::MAX);
            if let Err(error) = self.send(id) {
                self.fail(error);
            }
        }
    }

    fn send(&mut self, queue: u16) -> io::Result<()> {
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(queue)) else { return Ok(()) };
        if !socket.connected {
            return Ok(());
        }
        while self.remote.has_output(queue) {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.remote.gather(queue, &mut slices);
            let sent = socket.send(&slices[..used])?;
            match sent {
                Some(count) => self.remote.advance(queue, count),
                None => break,
            }
        }
        let blocked = self.remote.has_output(queue);
        if blocked != socket.blocked {
            socket.blocked = blocked;
            let interest = if blocked { Interest::BOTH } else { Interest::READ };
            self.epoll.change(socket.as_raw_fd(), queue.into(), interest, Trigger::Level)?;
        }
        Ok(())
    }

    /// With I/O in flight its sockets are read without asking; the others, and all of an idle
    /// device, only when they have something.
    fn receive_all(&mut self) {
        self.quiet_polls += 1;
        let busy = self.remote.in_flight() > 0 && *self.remote.link() == Link::Up;
        if busy {
            for queue in 1..self.sockets.len() {
                self.receive(u16::try_from(queue).unwrap_or(u16::MAX));
            }
        }
        if busy && self.quiet_polls < QUIET_POLLS {
            return;
        }
        self.quiet_polls = 0;
        self.wait(Duration::ZERO);
        let mut events = core::mem::take(&mut self.events);
        for event in events.drain(..) {
            let queue = u16::try_from(event.key).unwrap_or(u16::MAX);
            if self.finish_connect(queue) && (event.readable || event.closed) {
                self.receive(queue);
            }
        }
        self.events = events;
    }

    /// Whether a queue's connection is open, after looking whether it has just become so.
    fn finish_connect(&mut self, queue: u16) -> bool {
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(queue)) else { return false };
        if socket.connected {
            return true;
        }
        let fd = socket.as_raw_fd();
        let opened = socket
            .finish_connect()
            .and_then(|()| self.epoll.change(fd, queue.into(), Interest::READ, Trigger::Level));
        match opened {
            Ok(()) => self.remote.handle_connected(queue, self.now),
            Err(error) => self.fail(error),
        }
        self.sockets.get(usize::from(queue)).is_some_and(Option::is_some)
    }

    fn receive(&mut self, queue: u16) {
        let Some(Some(socket)) = self.sockets.get_mut(usize::from(queue)) else { return };
        if !socket.connected {
            return;
        }
        match socket.receive(&mut self.receive) {
            Ok(None) => {}
            Ok(Some(0)) => self.fail(io::ErrorKind::ConnectionReset.into()),
            Ok(Some(count)) => self.remote.handle_bytes(queue, &self.receive[..count], self.now),
            Err(error) => self.fail(error),
        }
    }
}

impl<B: Buf> Device for NvmfDevice<B> {
    type Buf = B;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: Op<B>) -> Result<(), Op<B>> {
        self.remote.submit(op, self.now)
    }

    fn poll(&mut self, done: &mut Vec<Completion<B>>) -> usize {
        self.drive();
        let before = done.len();
        while let Some(completion) = self.remote.poll_done() {
            done.push(completion);
        }
        done.len() - before
    }

    fn in_flight(&self) -> usize {
        self.remote.in_flight()
    }
}

impl<B> fmt::Debug for NvmfDevice<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmfDevice")
            .field("info", &self.info)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The addresses of a host; asks the resolver, so it may wait.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, OpenError> {
    let failed = |error| OpenError::Resolve(host.to_owned(), error);
    let mut addresses: Vec<_> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    // The first attempt moves on by one.
    addresses.rotate_right(1);
    if addresses.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(addresses)
}

/// What is said of a namespace that is not known yet; nobody sees it, since opening waits.
fn unknown() -> DeviceInfo {
    DeviceInfo {
        size: 0,
        block_size: 512,
        atomic_write: 512,
        volatile_write_cache: true,
        optimal_io: 4096,
        max_io: 0,
        deallocate: false,
        write_zeroes: false,
        identity: String::new(),
    }
}
