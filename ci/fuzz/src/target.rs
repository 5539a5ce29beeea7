//! Bytes into the target: up to four connections, from ICReq on, through handshakes, capsules,
//! SGLs and data, with volumes that answer now and then. See [`crate::chunks`] for the form.

use crate::chunks::{CONN, Chunk, WAIT, chunks};
use forebay_io::{
    BlockError, Buf, BufPool, HeapBuf, HeapPool, Instant, Outcome, Payload, Piece, Request,
    RequestOp, Tag, Uuid, VolumeId,
};
use forebay_nvmf::target::{
    AnaState, BlockSize, ConnId, DiscoveryRecord, Event, HostAccess, IoSink, LocalAddress,
    NamespaceConfig, SubsystemConfig, TRANSFER_MAX, Target, TargetConfig,
};
use forebay_nvmf::tcp::{HANDSHAKE_DEADLINE, Handshake, Params, Progress};
use forebay_wire::log::{DiscoveryEntry, SubsystemType};
use forebay_wire::tcp::{Digests, Direction, Frame, PduKind, data_digest};
use forebay_wire::{Cqe, DISCOVERY_NQN};

/// Leave requests with the volumes after this chunk.
const HOLD: u8 = 0x20;
/// The pool is empty while this chunk is taken.
const EMPTY: u8 = 0x40;
/// The host closes its connection after this chunk.
const CLOSE: u8 = 0x80;

const BLOCKS: u64 = 256;
/// Requests of one PDU at most: the ranges of Dataset Management.
const REQUESTS_MAX: usize = 256;
pub(crate) const SUBSYSTEM: &str = "nqn.2026-01.io.forebay:fuzz";

/// Volumes that insist on what the target promises, and answer without keeping anything.
#[derive(Default)]
struct Volumes {
    pending: Vec<Request>,
}

fn block_size(volume: VolumeId) -> u32 {
    if volume.0 == 2 { 4096 } else { 512 }
}

impl IoSink<HeapBuf> for Volumes {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let (first, second) = match payload {
            Payload::None => (0, 0),
            Payload::Inline(bytes) => (bytes.len(), 0),
            Payload::Owned(buf) => (buf.len(), 0),
            Payload::Pair(a, b) => (a.len(), b.len()),
        };
        let end = request.lba.0.checked_add(u64::from(request.blocks));
        assert!(end.is_some_and(|end| end <= BLOCKS), "{request:?}");
        let bytes = request.blocks as usize * block_size(request.volume) as usize;
        let expected = match request.op {
            RequestOp::Write | RequestOp::Compare => (bytes, 0),
            RequestOp::CompareAndWrite => (bytes, bytes),
            _ => (0, 0),
        };
        assert_eq!((first, second), expected, "{request:?}");
        crate::reached::REQUESTS.add(1);
        self.pending.push(request);
    }
}

/// A pool that is sometimes empty.
#[derive(Default)]
struct Pool {
    empty: bool,
}

impl BufPool for Pool {
    type Buf = HeapBuf;

    fn alloc(&mut self, len: usize) -> Option<HeapBuf> {
        assert!(len <= TRANSFER_MAX as usize, "a buffer of {len} bytes");
        if self.empty { None } else { HeapPool.alloc(len) }
    }
}

enum Conn {
    Shaking(Handshake),
    Live { id: ConnId, params: Params, output: Vec<u8> },
}

/// A target, its volumes and its connections.
pub(crate) struct World {
    target: Target<HeapBuf>,
    volumes: Volumes,
    pool: Pool,
    now: Instant,
    conns: [Option<Conn>; 4],
}

fn namespace(nsid: u32) -> NamespaceConfig {
    let volume = VolumeId(nsid);
    NamespaceConfig {
        nsid,
        volume,
        blocks: BLOCKS,
        block_size: BlockSize::from_bytes(block_size(volume)).expect("a block size"),
        uuid: Uuid::from_random([7; 16]),
        nguid: [7; 16],
        volatile_write_cache: true,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 0,
    }
}

fn record(number: u16) -> DiscoveryRecord {
    let entry = DiscoveryEntry {
        trtype: 3,
        adrfam: 1,
        subtype: SubsystemType::Nvm,
        treq: 0,
        portid: number,
        cntlid: 0xffff,
        asqsz: 32,
        eflags: 0,
        trsvcid: "4420".into(),
        traddr: "192.0.2.1".into(),
        subnqn: SUBSYSTEM.parse().expect("an NQN"),
        tsas: 0,
    };
    DiscoveryRecord { entry, hosts: HostAccess::Any }
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Instant(1_000_000_000);
        let mut target = Target::new(TargetConfig::default(), now);
        let nqn = SUBSYSTEM.parse().expect("an NQN");
        let config = SubsystemConfig { nqn, serial: "FB1".into(), hosts: HostAccess::Any };
        let nqn = config.nqn.clone();
        target.add_subsystem(config).expect("room");
        for nsid in [1, 2] {
            target.add_namespace(&nqn, namespace(nsid), now).expect("room");
        }
        target.set_discovery((0..2).map(record).collect(), now);
        let conns = [None, None, None, None];
        Self { target, volumes: Volumes::default(), pool: Pool::default(), now, conns }
    }

    /// The digests of a connection.
    fn digests(&self, at: usize) -> Digests {
        match &self.conns[at] {
            Some(Conn::Live { params, .. }) => params.digests,
            _ => Digests::default(),
        }
    }

    /// Takes a chunk; returns what the target sends on its connection.
    pub(crate) fn chunk(&mut self, chunk: &Chunk) -> Vec<u8> {
        let at = usize::from(chunk.flags & CONN);
        if chunk.has(WAIT) {
            self.wait(1_000_000_000);
        }
        self.pool.empty = chunk.has(EMPTY);
        let mut sent = Vec::new();
        for part in chunk.parts(self.digests(at)) {
            sent.append(&mut self.bytes(at, &part));
        }
        self.pool.empty = false;
        if !chunk.has(HOLD) {
            self.complete();
        }
        self.wait(1000);
        sent.append(&mut self.output(at));
        if chunk.has(CLOSE) {
            self.close(at);
        }
        sent
    }

    fn bytes(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() {
            return Vec::new();
        }
        let conn = self.conns[at]
            .get_or_insert_with(|| Conn::Shaking(Handshake::new(self.now, HANDSHAKE_DEADLINE)));
        match conn {
            Conn::Live { id, .. } => {
                let id = *id;
                self.feed(id, bytes);
                Vec::new()
            }
            Conn::Shaking(handshake) => {
                let progress = handshake.handle_bytes(bytes);
                let sent = handshake.output().to_vec();
                assert!(sent.len() <= 512, "bounded handshake");
                handshake.advance(sent.len());
                match progress {
                    Progress::More => {}
                    Progress::Failed(_) => self.conns[at] = None,
                    Progress::Established(established) => {
                        self.conns[at] = None;
                        let (adrfam, traddr) = (1, "192.0.2.1".into());
                        let local = LocalAddress { adrfam, traddr, trsvcid: "4420".into() };
                        if let Ok(id) = self.target.accept(&established, &local, self.now) {
                            let params = established.params;
                            self.conns[at] = Some(Conn::Live { id, params, output: Vec::new() });
                            self.feed(id, &established.leftover);
                        }
                    }
                }
                sent
            }
        }
    }

    fn feed(&mut self, id: ConnId, bytes: &[u8]) {
        if bytes.is_empty() || !self.target.wants_read(id) {
            return;
        }
        let before = self.volumes.pending.len();
        let (pool, volumes) = (&mut self.pool, &mut self.volumes);
        self.target.handle_bytes(id, bytes, self.now, pool, volumes);
        // A PDU has at least eight bytes; one more may have been whole but for its last.
        let pdus = bytes.len() / 8 + 2;
        assert!(self.volumes.pending.len() - before <= pdus * REQUESTS_MAX, "bounded requests");
    }

    /// Completes what the volumes have; some of it fails.
    fn complete(&mut self) {
        for request in std::mem::take(&mut self.volumes.pending) {
            let mut pieces = Vec::new();
            let mut outcome = Outcome::Done;
            if request.lba.0 % 32 == 31 {
                outcome = Outcome::Failed(BlockError::NotReady);
            } else if request.op == RequestOp::Read {
                let len = request.blocks * block_size(request.volume);
                let buf = HeapBuf::from_bytes(&vec![0; len as usize]);
                let half = len / 2;
                pieces.push(Piece { buf: buf.clone(), offset: 0, len: half });
                pieces.push(Piece { buf, offset: half, len: len - half });
            }
            self.target.complete(request.tag, outcome, &mut pieces);
            if request.lba.0 % 32 == 30 {
                // Twice, and one that never was: counted, nothing else.
                self.target.complete(request.tag, Outcome::Done, &mut Vec::new());
                self.target.complete(Tag(!request.tag.0), Outcome::Done, &mut Vec::new());
            }
        }
    }

    fn wait(&mut self, nanos: u64) {
        self.now = Instant(self.now.0 + nanos);
        if self.now >= self.target.next_deadline() {
            self.target.handle_timeout(self.now);
        }
        if self.target.waiting_for_buffers() {
            self.target.poll_buffers(&mut self.pool);
        }
        while self.target.poll_ready().is_some() {}
        let mut events = 0;
        while let Some(event) = self.target.poll_event() {
            events += 1;
            assert!(events < 1024, "bounded events");
            if let Event::Close(closed) = event {
                let is_it = |conn: &Option<Conn>| matches!(conn, Some(Conn::Live { id, .. }) if *id == closed);
                if let Some(at) = self.conns.iter().position(is_it) {
                    crate::reached::LOST.add(1);
                    self.close(at);
                }
            }
        }
    }

    /// Takes what the target has to send on a connection, and checks each PDU of it.
    fn output(&mut self, at: usize) -> Vec<u8> {
        let Some(Conn::Live { id, params, output }) = &mut self.conns[at] else {
            return Vec::new();
        };
        let (id, params) = (*id, *params);
        let mut sent = Vec::new();
        if let Some(tx) = self.target.tx(id) {
            tx.slices().for_each(|slice| sent.extend_from_slice(slice));
            assert_eq!(sent.len(), tx.len());
        }
        output.extend_from_slice(&sent);
        check_output(output, &params);
        self.target.advance(id, sent.len());
        self.wait(0);
        sent
    }

    fn close(&mut self, at: usize) {
        if let Some(Conn::Live { id, .. }) = self.conns[at].take() {
            self.target.conn_closed(id, self.now);
        }
    }

    /// Closes everything: nothing may be left.
    fn end(mut self) {
        for at in 0..self.conns.len() {
            self.output(at);
            self.close(at);
        }
        self.complete();
        self.wait(200_000_000_000);
        assert_eq!(self.target.outstanding(), 0);
        assert_eq!(self.target.connections().count(), 0);
        assert_eq!(self.target.controllers().count(), 0);
    }
}

/// Takes whole PDUs from the front; each must be right whatever the host sent.
fn check_output(output: &mut Vec<u8>, params: &Params) {
    let mut at = 0;
    while at < output.len() {
        let common = output[at..].first_chunk().expect("PDUs are sent whole");
        let digests = params.digests;
        let frame = Frame::parse(common, Direction::ToHost, digests, params.hpda, TRANSFER_MAX);
        let frame = frame.expect("a right header");
        let pdu = &output[at..at + frame.total];
        frame.check_header(pdu).expect("a right header digest");
        let data = &pdu[frame.data_at..frame.data_at + frame.data_len];
        assert!(!frame.ddgst || pdu.ends_with(&data_digest(data)), "data digest");
        if frame.kind == PduKind::CapsuleResp {
            let _ = Cqe::decode(pdu[8..24].first_chunk().expect("16 bytes"));
        }
        at += frame.total;
    }
    output.clear();
}

/// The name of a subsystem that the target has, or of discovery.
pub(crate) fn subsystem(discovery: bool) -> &'static str {
    if discovery { DISCOVERY_NQN } else { SUBSYSTEM }
}

/// Bytes from hosts into the target's state machines.
pub fn target(input: &[u8]) {
    let mut world = World::new();
    for chunk in chunks(input) {
        world.chunk(&chunk);
    }
    world.end();
}
