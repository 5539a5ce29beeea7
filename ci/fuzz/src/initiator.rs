//! Bytes of a hostile controller into the initiator: a remote namespace with two queues, and the
//! reading of a discovery log. See [`crate::chunks`] for the form.

use crate::chunks::{CONN, WAIT, chunks};
use crate::reached::{DONE, LOGS, READY};
use crate::target::subsystem;
use forebay_io::{Duration, HeapBuf, Instant, Op, OpKind};
use forebay_nvmf::initiator::admin::Identity;
use forebay_nvmf::initiator::remote::RemoteConfig;
use forebay_nvmf::initiator::{Discovery, HostConfig, Remote, SocketAction};
use forebay_wire::Nqn;
use forebay_wire::tcp::Digests;
use std::io::IoSlice;

/// Submit an operation before this chunk; which one its connection and [`OTHER`] say.
pub(crate) const SUBMIT: u8 = 0x20;
const OTHER: u8 = 0x40;
/// The controller closes the connections after this chunk.
const CLOSE: u8 = 0x80;
/// Output between two chunks at most: all commands with their data.
const OUTPUT_MAX: usize = 16 << 20;
const DEPTH: u16 = 8;

fn nqn(text: &str) -> Nqn {
    text.parse().expect("an NQN")
}

fn remote_config(digests: Digests) -> RemoteConfig {
    let host = HostConfig {
        identity: Identity {
            hostnqn: nqn("nqn.2014-08.org.nvmexpress:uuid:fuzz"),
            hostid: [0x11; 16],
            subnqn: nqn(subsystem(false)),
        },
        nsid: 1,
        queues: 1,
        depth: DEPTH,
        digests,
        no_sq_flow: true,
        keep_alive: Duration::from_secs(10),
        setup_timeout: Duration::from_secs(5),
        io_timeout: Duration::from_secs(30),
    };
    RemoteConfig {
        host,
        reconnect_min: Duration::from_millis(100),
        reconnect_max: Duration::from_secs(5),
        fail_after: Duration::from_secs(3),
    }
}

/// The initiator with what it was asked to do.
pub(crate) struct Host {
    remote: Remote<HeapBuf>,
    now: Instant,
    token: u64,
    open: bool,
    /// Tokens submitted and not completed.
    flying: Vec<u64>,
}

impl Host {
    pub(crate) fn new(digests: Digests) -> Self {
        let now = Instant(1_000_000_000);
        let remote = Remote::new(remote_config(digests), now);
        let mut host = Self { remote, now, token: 0, open: true, flying: Vec::new() };
        host.turn();
        host
    }

    pub(crate) fn submit(&mut self, what: u8) {
        self.token += 1;
        let token = self.token;
        let buf = |len: usize| HeapBuf::from_bytes(&vec![0; len]);
        let op = match what & (CONN | OTHER) {
            0 => Op::read(token, 4096, 4096, buf(4096)),
            1 => Op::write(token, 0, 4096, buf(4096)),
            2 => Op::write(token, 8192, 20_480, buf(20_480)),
            3 => Op::flush(token),
            0x40 => Op::range(token, OpKind::Deallocate, 0, 65_536),
            0x41 => Op::range(token, OpKind::WriteZeroes, 0, 65_536),
            0x42 => Op::read(token, 1 << 40, 512, buf(512)),
            _ => Op::read(token, 0, 512, buf(512)),
        };
        if self.remote.submit(op, self.now).is_ok() {
            self.flying.push(token);
        }
        self.turn();
    }

    pub(crate) fn bytes(&mut self, queue: u16, bytes: &[u8]) {
        self.remote.handle_bytes(queue, bytes, self.now);
        self.turn();
    }

    /// Answers what it asks for; each operation ends once.
    fn turn(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.remote.poll_action() {
            actions += 1;
            assert!(actions < 64, "bounded actions");
            match action {
                SocketAction::Open(queue) if self.open => {
                    self.remote.handle_connected(queue, self.now);
                }
                SocketAction::Open(_) => self.remote.handle_closed(self.now),
                SocketAction::CloseAll => {}
            }
        }
        while let Some(done) = self.remote.poll_done() {
            let at = self.flying.iter().position(|token| *token == done.token);
            self.flying.swap_remove(at.expect("once, and asked for"));
            DONE.add(usize::from(done.result.is_ok()));
        }
        assert_eq!(self.remote.in_flight(), self.flying.len());
    }

    /// What a queue has to send.
    pub(crate) fn output(&mut self, queue: u16) -> Vec<u8> {
        let mut all = Vec::new();
        while self.remote.has_output(queue) {
            let mut slices = [IoSlice::new(&[]); 16];
            let used = self.remote.gather(queue, &mut slices);
            let before = all.len();
            slices[..used].iter().for_each(|slice| all.extend_from_slice(slice));
            let count = all.len() - before;
            assert!(count > 0 && all.len() <= OUTPUT_MAX, "bounded output");
            self.remote.advance(queue, count);
        }
        all
    }

    pub(crate) fn has_output(&self, queue: u16) -> bool {
        self.remote.has_output(queue)
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.remote.handle_timeout(self.now);
        self.turn();
    }
}

/// The digests that the first byte of an input asks for.
pub(crate) fn digests(select: u8) -> Digests {
    Digests { header: select & 1 != 0, data: select & 2 != 0 }
}

/// Bytes from a controller into the initiator, after one that chooses the digests.
pub fn initiator(input: &[u8]) {
    let Some((select, input)) = input.split_first() else { return };
    let digests = digests(*select);
    let mut host = Host::new(digests);
    for chunk in chunks(input) {
        if chunk.has(WAIT) {
            host.wait(Duration::from_secs(1));
        }
        if chunk.has(SUBMIT) {
            host.submit(chunk.flags);
        }
        let queue = u16::from(chunk.flags & CONN & 1);
        for part in chunk.parts(digests) {
            host.bytes(queue, &part);
        }
        for queue in [0, 1] {
            host.output(queue);
        }
        if chunk.has(CLOSE) {
            host.remote.handle_closed(host.now);
            host.turn();
        }
    }
    READY.add(usize::from(host.remote.info().is_some()));
    // No controller any more: everything that was asked for ends.
    host.open = false;
    for _ in 0..16 {
        host.wait(Duration::from_secs(5));
    }
    assert!(host.flying.is_empty(), "{} operations forgotten", host.flying.len());
}

/// A discovery log being read.
pub(crate) fn new_discovery(now: Instant) -> Discovery {
    let host = nqn("nqn.2014-08.org.nvmexpress:uuid:fuzz");
    Discovery::new(host, [0x11; 16], Duration::from_secs(5), now).expect("a well-known name")
}

/// Takes what it has to send.
pub(crate) fn discovery_output(discovery: &mut Discovery) -> Vec<u8> {
    let mut all = Vec::new();
    let output = discovery.output();
    while !output.is_empty() {
        let mut slices = [IoSlice::new(&[]); 16];
        let used = output.gather(&mut slices);
        let before = all.len();
        slices[..used].iter().for_each(|slice| all.extend_from_slice(slice));
        let count = all.len() - before;
        assert!(count > 0 && all.len() <= OUTPUT_MAX, "bounded output");
        output.advance(count);
    }
    all
}

/// Bytes from a discovery controller.
pub fn discovery(input: &[u8]) {
    let mut now = Instant(1_000_000_000);
    let mut discovery = new_discovery(now);
    for chunk in chunks(input) {
        if chunk.has(WAIT) {
            now = now + Duration::from_secs(1);
            if discovery.handle_timeout(now).is_err() {
                break;
            }
        }
        for part in chunk.parts(Digests::default()) {
            if discovery.handle_bytes(&part, now).is_err() {
                discovery_output(&mut discovery);
                return;
            }
        }
        discovery_output(&mut discovery);
        let entries = discovery.result().map_or(0, <[_]>::len);
        LOGS.add(usize::from(entries > 0));
        assert!(entries <= 4096, "bounded entries");
    }
}
