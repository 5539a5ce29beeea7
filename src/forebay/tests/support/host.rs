//! A host: the project's own initiator over real sockets.

use forebay_io::{Buf, BufPool, Completion, DeviceInfo, HeapBuf, HeapPool, Instant, Op, OpKind};
use forebay_nvmf::initiator::admin::Identity;
use forebay_nvmf::initiator::remote::{Link, RemoteConfig};
use forebay_nvmf::initiator::{HostConfig, Remote, SocketAction};
use forebay_wire::tcp::Digests;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

/// What the NQNs of hosts begin with; twelve digits follow.
pub const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:5d1c8ae2-90fe-4d3c-8f00-";

/// How many hosts a node under test lets in.
pub const fn hosts() -> u32 {
    8
}

/// A monotonic clock; its origin is the first call.
fn clock() -> Instant {
    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let spent = ORIGIN.get_or_init(std::time::Instant::now).elapsed();
    Instant(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX))
}

/// How a host connects.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Which of the hosts.
    pub number: u32,
    pub nsid: u32,
    pub queues: u16,
    pub depth: u16,
    pub digests: bool,
    pub keep_alive: Duration,
    /// How long a command may take.
    pub io_timeout: Duration,
    /// How long a command that could not be carried out is tried again.
    pub fail_after: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            number: 0,
            nsid: 1,
            queues: 2,
            depth: 64,
            digests: true,
            // Hosts here do nothing while a test waits for the daemon.
            keep_alive: Duration::from_secs(300),
            // Above the time after which the node calls a device hanging.
            io_timeout: Duration::from_secs(45),
            fail_after: Duration::from_secs(20),
        }
    }
}

/// A connected host with one namespace.
pub struct Host {
    remote: Remote<HeapBuf>,
    address: SocketAddr,
    streams: Vec<Option<TcpStream>>,
    buffer: Vec<u8>,
    idle: u32,
}

impl Host {
    /// Connects and waits until I/O may begin.
    pub fn connect(address: SocketAddr, nqn: &str, options: HostOptions) -> Self {
        let mut host = Self::begin(address, nqn, options);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while *host.remote.link() != Link::Up {
            host.pump();
            let why = host.remote.last_error().map(ToString::to_string);
            assert!(*host.remote.link() != Link::Dead, "{nqn} at {address}: {why:?}");
            assert!(std::time::Instant::now() < end, "no association with {nqn}: {why:?}");
        }
        host
    }

    /// Begins to connect.
    pub fn begin(address: SocketAddr, nqn: &str, options: HostOptions) -> Self {
        let mut hostid = [0x5d; 16];
        hostid[12..].copy_from_slice(&options.number.to_be_bytes());
        let digests = Digests { header: options.digests, data: options.digests };
        let config = RemoteConfig {
            host: HostConfig {
                identity: Identity {
                    hostnqn: format!("{HOST_NQN}{:012}", options.number).parse().unwrap(),
                    hostid,
                    subnqn: nqn.parse().unwrap(),
                },
                nsid: options.nsid,
                queues: options.queues,
                depth: options.depth,
                digests,
                no_sq_flow: false,
                keep_alive: options.keep_alive,
                setup_timeout: Duration::from_secs(10),
                io_timeout: options.io_timeout,
            },
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            fail_after: options.fail_after,
        };
        Self {
            remote: Remote::new(config, clock()),
            address,
            streams: (0..=options.queues).map(|_| None).collect(),
            buffer: vec![0; 256 << 10],
            idle: 0,
        }
    }

    /// What the namespace is.
    pub fn info(&self) -> &DeviceInfo {
        self.remote.info().expect("connected")
    }

    /// Whether I/O travels.
    pub fn is_up(&self) -> bool {
        *self.remote.link() == Link::Up
    }

    /// Associations made so far.
    pub fn associations(&self) -> u64 {
        self.remote.associations()
    }

    /// Why the last association ended.
    pub fn last_error(&self) -> String {
        self.remote.last_error().map_or_else(String::new, ToString::to_string)
    }

    /// Hands over an operation; gives it back while the queues are full.
    pub fn submit(&mut self, op: Op<HeapBuf>) -> Result<(), Op<HeapBuf>> {
        self.remote.submit(op, clock())
    }

    /// The next operation that ended.
    pub fn done(&mut self) -> Option<Completion<HeapBuf>> {
        self.remote.poll_done()
    }

    /// Carries bytes both ways once; says whether any moved. Offers the processor to others while
    /// nothing does.
    pub fn pump(&mut self) -> bool {
        while let Some(action) = self.remote.poll_action() {
            self.act(action);
        }
        let mut moved = false;
        for queue in 0..self.streams.len() {
            moved |= self.receive(queue);
        }
        self.remote.handle_timeout(clock());
        for queue in 0..self.streams.len() {
            moved |= self.send(queue);
        }
        self.idle = if moved { 0 } else { self.idle + 1 };
        match self.idle {
            0 => {}
            1..=16 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
        moved
    }

    fn act(&mut self, action: SocketAction) {
        match action {
            SocketAction::Open(queue) => {
                let at = usize::from(queue);
                let opened = TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
                match opened {
                    Ok(stream) => {
                        stream.set_nodelay(true).unwrap();
                        stream.set_nonblocking(true).unwrap();
                        self.streams[at] = Some(stream);
                        self.remote.handle_connected(queue, clock());
                    }
                    Err(_) => self.remote.handle_closed(clock()),
                }
            }
            SocketAction::CloseAll => {
                for queue in 0..self.streams.len() {
                    self.send(queue);
                    self.streams[queue] = None;
                }
            }
        }
    }

    fn receive(&mut self, queue: usize) -> bool {
        let id = u16::try_from(queue).unwrap();
        let mut moved = false;
        while let Some(stream) = &mut self.streams[queue] {
            match stream.read(&mut self.buffer) {
                Ok(count) if count > 0 => {
                    moved = true;
                    self.remote.handle_bytes(id, &self.buffer[..count], clock());
                    if count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.streams[queue] = None;
                    self.remote.handle_closed(clock());
                }
            }
        }
        moved
    }

    fn send(&mut self, queue: usize) -> bool {
        let id = u16::try_from(queue).unwrap();
        let mut moved = false;
        while self.remote.has_output(id) {
            let Some(stream) = &mut self.streams[queue] else { break };
            let mut slices = [IoSlice::new(&[]); 64];
            let used = self.remote.gather(id, &mut slices);
            match stream.write_vectored(&slices[..used]) {
                Ok(count) => {
                    moved = true;
                    self.remote.advance(id, count);
                }
                Err(_) => break,
            }
        }
        moved
    }

    /// Carries out one operation and waits for its end.
    pub fn one(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        let token = op.token;
        assert!(self.submit(op).is_ok(), "room for one operation");
        let end = std::time::Instant::now() + Duration::from_secs(120);
        loop {
            self.pump();
            if let Some(completion) = self.done() {
                assert_eq!(completion.token, token);
                return completion;
            }
            assert!(std::time::Instant::now() < end, "an operation never ends");
        }
    }

    /// Reads a range.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let buf = HeapPool.alloc(len).unwrap();
        let done = self.one(Op::read(1, offset, len as u64, buf));
        done.result.map_err(|error| error.to_string())?;
        Ok(done.buf.unwrap().as_slice()[..len].to_vec())
    }

    /// Writes a range.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), String> {
        let op = Op::write(1, offset, data.len() as u64, HeapBuf::from_bytes(data));
        self.one(op).result.map_err(|error| error.to_string())
    }

    /// Flush.
    pub fn flush(&mut self) -> Result<(), String> {
        self.one(Op::flush(1)).result.map_err(|error| error.to_string())
    }

    /// Write Zeroes.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), String> {
        let op = Op::range(1, OpKind::WriteZeroes, offset, len);
        self.one(op).result.map_err(|error| error.to_string())
    }

    /// Ends the association in good order.
    pub fn disconnect(mut self) {
        self.remote.shut_down(clock());
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !self.remote.is_shut_down() && std::time::Instant::now() < end {
            self.pump();
        }
    }
}
