//! A host made of bytes, and volumes in memory. The host knows nothing of the target's types.

use crate::target::*;
use crate::tcp::{Established, HANDSHAKE_DEADLINE, Handshake, Progress};
use forebay_io::{
    BlockError, Buf, BufPool, HeapBuf, HeapPool, Outcome, Payload, Piece, Request, RequestOp, Uuid,
    VolumeId,
};
use forebay_wire::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, PropertyGet, PropertySet};
use forebay_wire::property;
use forebay_wire::sqe::{Identify, SetFeatures, Sgl, admin};
use forebay_wire::tcp::{
    DataPdu, Digests, Direction, FLAG_LAST, FLAG_SUCCESS, Frame, IcReq, IcResp, PduKind, TermReq,
    data_digest, put_capsule_cmd, put_h2c_data,
};
use forebay_wire::{Cqe, Sqe};
use std::collections::{BTreeMap, VecDeque};

pub(super) const SUBNQN: &str = "nqn.2026-01.io.forebay:v";
pub(super) const HOST_A: &str = "nqn.2014-08.org.nvmexpress:uuid:a";
pub(super) const HOST_B: &str = "nqn.2014-08.org.nvmexpress:uuid:b";
pub(super) const BLOCKS: u64 = 4096;
pub(super) const SECOND: u64 = 1_000_000_000;

pub(super) fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

/// A request as the volume saw it, its payload copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) request: Request,
    pub(super) data: Vec<u8>,
    pub(super) second: Vec<u8>,
    pub(super) inline: bool,
}

/// Volumes: requests wait in `pending` until they are run.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    pub(super) pending: VecDeque<Seen>,
    pub(super) seen: u64,
    pub(super) media: BTreeMap<u32, Vec<u8>>,
    pub(super) fail: Option<BlockError>,
}

impl IoSink<HeapBuf> for Volumes {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let (data, second, inline) = match payload {
            Payload::None => (vec![], vec![], false),
            Payload::Inline(bytes) => (bytes.to_vec(), vec![], true),
            Payload::Owned(buf) => (buf.as_slice().to_vec(), vec![], false),
            Payload::Pair(a, b) => (a.as_slice().to_vec(), b.as_slice().to_vec(), false),
        };
        self.seen += 1;
        self.pending.push_back(Seen { request, data, second, inline });
    }
}

/// A pool with so many buffers to give.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) left: usize,
}

impl BufPool for Pool {
    type Buf = HeapBuf;

    fn alloc(&mut self, len: usize) -> Option<HeapBuf> {
        self.left = self.left.checked_sub(1)?;
        HeapPool.alloc(len)
    }
}

/// The target, its volumes, and time.
pub(super) struct Rig {
    pub(super) target: Target<HeapBuf>,
    pub(super) volumes: Volumes,
    pub(super) pool: Pool,
    pub(super) now: Instant,
    pub(super) closed: Vec<ConnId>,
    pub(super) events: Vec<Event>,
    /// Bytes are given to the target in pieces of this size.
    pub(super) chunk: usize,
    /// Whether volumes answer at once.
    pub(super) auto: bool,
}

pub(super) fn namespace(nsid: u32, block_size: BlockSize) -> NamespaceConfig {
    let id = u8::try_from(nsid).unwrap();
    NamespaceConfig {
        nsid,
        volume: VolumeId(nsid),
        blocks: BLOCKS,
        block_size,
        uuid: Uuid::from_random([id; 16]),
        nguid: [id; 16],
        volatile_write_cache: false,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 0,
    }
}

impl Rig {
    /// Subsystem with namespace 1 (512 B) and 2 (4096 B), hosts A and B allowed.
    pub(super) fn new() -> Self {
        Self::with(TargetConfig::default())
    }

    pub(super) fn with(config: TargetConfig) -> Self {
        let now = Instant(SECOND);
        let mut target = Target::new(config, now);
        let hosts = [nqn(HOST_A), nqn(HOST_B)].into_iter().collect();
        let subsystem = SubsystemConfig {
            nqn: nqn(SUBNQN),
            serial: "FB1".into(),
            hosts: HostAccess::Only(hosts),
        };
        target.add_subsystem(subsystem).unwrap();
        for (nsid, size) in [(1, BlockSize::B512), (2, BlockSize::B4096)] {
            target.add_namespace(&nqn(SUBNQN), namespace(nsid, size), now).unwrap();
        }
        Self {
            target,
            volumes: Volumes::default(),
            pool: Pool { left: usize::MAX },
            now,
            closed: Vec::new(),
            events: Vec::new(),
            chunk: usize::MAX,
            auto: true,
        }
    }

    pub(super) fn after(&mut self, nanos: u64) {
        self.now = Instant(self.now.0 + nanos);
        self.target.handle_timeout(self.now);
        self.drain_events();
    }

    /// Gives bytes to a connection; volumes answer if `auto`.
    pub(super) fn feed(&mut self, conn: ConnId, bytes: &[u8]) {
        for part in bytes.chunks(self.chunk) {
            self.target.handle_bytes(conn, part, self.now, &mut self.pool, &mut self.volumes);
            if self.auto {
                self.run_all();
            }
        }
        self.drain_events();
    }

    pub(super) fn drain_events(&mut self) {
        while let Some(event) = self.target.poll_event() {
            if let Event::Close(conn) = event {
                self.closed.push(conn);
            }
            self.events.push(event);
        }
    }

    /// Closes sockets as the shell would.
    pub(super) fn close_told(&mut self) {
        for conn in std::mem::take(&mut self.closed) {
            self.target.conn_closed(conn, self.now);
        }
        self.drain_events();
        if !self.closed.is_empty() {
            self.close_told();
        }
    }

    pub(super) fn run_all(&mut self) {
        while self.run_one() {}
    }

    /// Runs the oldest request.
    pub(super) fn run_one(&mut self) -> bool {
        let Some(seen) = self.volumes.pending.pop_front() else { return false };
        let (outcome, mut pieces) = self.volumes.run(&seen);
        self.target.complete(seen.request.tag, outcome, &mut pieces);
        assert!(pieces.is_empty());
        true
    }

    /// Sends everything on a connection, in pieces.
    pub(super) fn output(&mut self, conn: ConnId) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(first) =
            self.target.tx(conn).and_then(|tx| tx.slices().next().map(<[u8]>::to_vec))
        {
            let n = first.len().div_ceil(2);
            out.extend_from_slice(&first[..n]);
            self.target.advance(conn, n);
        }
        self.drain_events();
        out
    }
}

impl Volumes {
    fn run(&mut self, seen: &Seen) -> (Outcome, Vec<Piece<HeapBuf>>) {
        if let Some(error) = self.fail {
            return (Outcome::Failed(error), vec![]);
        }
        let volume = seen.request.volume.0;
        let size = if volume == 1 { 512 } else { 4096 };
        let media = self
            .media
            .entry(volume)
            .or_insert_with(|| vec![0; usize::try_from(BLOCKS).unwrap() * size]);
        let from = usize::try_from(seen.request.lba.0).unwrap() * size;
        let len = usize::try_from(seen.request.blocks).unwrap() * size;
        let range = &mut media[from..from + len];
        let mut pieces = vec![];
        let mut outcome = Outcome::Done;
        match seen.request.op {
            RequestOp::Read => {
                // Two pieces, one of them inside a larger buffer.
                let half = len / 2;
                let mut padded = vec![0xee; 7];
                padded.extend_from_slice(&range[half..]);
                let small = |n: usize| u32::try_from(n).unwrap();
                let buf = HeapBuf::from_bytes(&range[..half]);
                pieces.push(Piece { buf, offset: 0, len: small(half) });
                let buf = HeapBuf::from_bytes(&padded);
                pieces.push(Piece { buf, offset: 7, len: small(len - half) });
            }
            RequestOp::Write => range.copy_from_slice(&seen.data),
            RequestOp::Compare if *range != seen.data => {
                outcome = Outcome::Failed(BlockError::CompareFailed);
            }
            RequestOp::CompareAndWrite if *range != seen.data => {
                outcome = Outcome::Failed(BlockError::CompareFailed);
            }
            RequestOp::CompareAndWrite => range.copy_from_slice(&seen.second),
            RequestOp::WriteZeroes { .. } | RequestOp::Deallocate => range.fill(0),
            RequestOp::Compare | RequestOp::Flush => {}
        }
        (outcome, pieces)
    }
}

/// What the host got for a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cqe: Cqe,
    pub(super) data: Vec<u8>,
    /// Whether success came in the data PDU.
    pub(super) by_flag: bool,
}

/// A PDU from the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FromTarget {
    Response(Cqe),
    Data { pdu: DataPdu, last: bool, success: bool, data: Vec<u8> },
    R2t(DataPdu),
    Term(Fatal),
}

/// One queue of the host.
pub(super) struct Queue {
    pub(super) conn: ConnId,
    pub(super) digests: Digests,
    pub(super) hpda: u8,
    pub(super) no_sq_flow: bool,
    pub(super) input: Vec<u8>,
    pub(super) next_cid: u16,
    /// Writes of up to this many bytes go in the capsule.
    pub(super) inline_max: usize,
}

/// How a queue is opened.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) digests: Digests,
    pub(super) hpda: u8,
    pub(super) connect: Connect,
    pub(super) data: ConnectData,
}

impl Opening {
    pub(super) fn admin(host: &str) -> Self {
        let hostid = if host == HOST_A { [0xa; 16] } else { [0xb; 16] };
        Self {
            digests: Digests::default(),
            hpda: 0,
            connect: Connect { sqsize: 31, ..Connect::default() },
            data: ConnectData {
                hostid,
                cntlid: CNTLID_DYNAMIC,
                subnqn: nqn(SUBNQN),
                hostnqn: nqn(host),
            },
        }
    }

    pub(super) fn io(&self, cntlid: u16, qid: u16) -> Self {
        let mut opening = self.clone();
        opening.connect.qid = qid;
        opening.connect.sqsize = 127;
        opening.connect.kato = 0;
        opening.data.cntlid = cntlid;
        opening
    }

    /// The bytes of ICReq and of the Connect capsule.
    pub(super) fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let request = IcReq { hpda: self.hpda, digests: self.digests, maxr2t: 0 };
        let data = self.data.encode();
        let sqe = self.connect.encode(1).with_sgl(Sgl::InCapsule { offset: 0, len: 1024 });
        let mut capsule = Vec::new();
        put_capsule_cmd(&mut capsule, &sqe, 1024, self.digests, 0);
        capsule.extend_from_slice(&data);
        if self.digests.data {
            capsule.extend_from_slice(&data_digest(&data));
        }
        (request.encode().to_vec(), capsule)
    }

    /// The handshake alone.
    pub(super) fn establish(&self, now: Instant) -> Box<Established> {
        let mut handshake = Handshake::new(now, HANDSHAKE_DEADLINE);
        let (icreq, connect) = self.bytes();
        assert!(matches!(handshake.handle_bytes(&icreq), Progress::More));
        let mut raw = [0; 128];
        raw.copy_from_slice(handshake.output());
        let response = IcResp::decode(&raw).unwrap();
        assert_eq!((response.cpda, response.digests), (0, self.digests));
        handshake.advance(128);
        match handshake.handle_bytes(&connect) {
            Progress::Established(established) => established,
            other => panic!("{other:?}"),
        }
    }

    /// Opens a queue; the completion of Connect.
    pub(super) fn open(&self, rig: &mut Rig) -> (Queue, Option<Cqe>) {
        let established = self.establish(rig.now);
        let local = LocalAddress { adrfam: 1, traddr: "10.0.0.1".into(), trsvcid: "4420".into() };
        let conn = rig.target.accept(&established, &local, rig.now).unwrap();
        rig.drain_events();
        let mut queue = Queue {
            conn,
            digests: self.digests,
            hpda: self.hpda,
            no_sq_flow: self.connect.no_sq_flow,
            input: Vec::new(),
            next_cid: 100,
            inline_max: 8192,
        };
        let reply = match queue.receive(rig) {
            None => None,
            Some(FromTarget::Response(cqe)) => Some(cqe),
            other => panic!("{other:?}"),
        };
        (queue, reply)
    }
}

impl Queue {
    /// The next PDU of the target, validated as a strict host would.
    pub(super) fn receive(&mut self, rig: &mut Rig) -> Option<FromTarget> {
        self.input.extend(rig.output(self.conn));
        let common = self.input.first_chunk::<8>()?;
        let frame =
            Frame::parse(common, Direction::ToHost, self.digests, self.hpda, u32::MAX).unwrap();
        assert!(self.input.len() >= frame.total, "PDUs are sent whole");
        let pdu: Vec<u8> = self.input.drain(..frame.total).collect();
        frame.check_header(&pdu).unwrap();
        let raw: [u8; 24] = pdu[..24].try_into().unwrap();
        let data = pdu[frame.data_at..frame.data_at + frame.data_len].to_vec();
        if frame.ddgst {
            assert!(pdu.ends_with(&data_digest(&data)), "data digest");
        }
        Some(match frame.kind {
            PduKind::CapsuleResp => {
                let cqe = Cqe::decode(raw[8..].try_into().unwrap());
                FromTarget::Response(cqe)
            }
            PduKind::C2hData => FromTarget::Data {
                pdu: DataPdu::decode(&raw),
                last: frame.flags & FLAG_LAST != 0,
                success: frame.flags & FLAG_SUCCESS != 0,
                data,
            },
            PduKind::R2t => FromTarget::R2t(DataPdu::decode(&raw)),
            PduKind::C2hTermReq => FromTarget::Term(TermReq::decode(&raw).fatal),
            other => panic!("{other:?}"),
        })
    }

    pub(super) fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// A capsule with data in it.
    pub(super) fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let len = u32::try_from(data.len()).unwrap();
        put_capsule_cmd(&mut out, sqe, len, self.digests, 0);
        out.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            out.extend_from_slice(&data_digest(data));
        }
        out
    }

    /// The answer to an R2T, in PDUs of at most `most` bytes.
    pub(super) fn answer(&self, r2t: &DataPdu, data: &[u8], most: usize) -> Vec<u8> {
        let from = usize::try_from(r2t.offset).unwrap();
        let asked = &data[from..from + usize::try_from(r2t.len).unwrap()];
        let mut out = Vec::new();
        for (i, part) in asked.chunks(most).enumerate() {
            let offset = r2t.offset + u32::try_from(i * most).unwrap();
            let len = u32::try_from(part.len()).unwrap();
            let last = offset + len == r2t.offset + r2t.len;
            let pdu = DataPdu { cid: r2t.cid, ttag: r2t.ttag, offset, len };
            put_h2c_data(&mut out, &pdu, last, self.digests, 0);
            out.extend_from_slice(part);
            if self.digests.data {
                out.extend_from_slice(&data_digest(part));
            }
        }
        out
    }

    /// Waits for the reply to `cid`, answering R2Ts with `data`.
    pub(super) fn finish(&mut self, rig: &mut Rig, cid: u16, data: &[u8]) -> Reply {
        let mut reply = Reply::default();
        loop {
            match self.receive(rig).expect("a reply") {
                FromTarget::R2t(r2t) => {
                    assert_eq!(r2t.cid, cid);
                    let bytes = self.answer(&r2t, data, 5000);
                    rig.feed(self.conn, &bytes);
                }
                FromTarget::Data { pdu, last, success, data } => {
                    assert_eq!((pdu.cid, pdu.ttag), (cid, 0));
                    assert_eq!(usize::try_from(pdu.offset).unwrap(), reply.data.len());
                    assert!(last);
                    reply.data.extend(data);
                    if success {
                        assert!(self.no_sq_flow, "SUCCESS only without SQ flow control");
                        reply.by_flag = true;
                        return reply;
                    }
                }
                FromTarget::Response(cqe) => {
                    assert_eq!(cqe.cid, cid);
                    reply.cqe = cqe;
                    return reply;
                }
                FromTarget::Term(fatal) => panic!("{fatal}"),
            }
        }
    }

    /// Sends a command with data, in the capsule or on request, and waits.
    pub(super) fn write(&mut self, rig: &mut Rig, sqe: Sqe, data: &[u8]) -> Reply {
        let cid = self.cid();
        let len = u32::try_from(data.len()).unwrap();
        let inline = data.len() <= self.inline_max;
        let sgl = if inline { Sgl::InCapsule { offset: 0, len } } else { Sgl::Transport { len } };
        let bytes = self.capsule(&sqe.with_cid(cid).with_sgl(sgl), if inline { data } else { &[] });
        rig.feed(self.conn, &bytes);
        self.finish(rig, cid, data)
    }

    /// Sends a command that returns `len` bytes (0 for none) and waits.
    pub(super) fn read(&mut self, rig: &mut Rig, sqe: Sqe, len: u32) -> Reply {
        let cid = self.send(rig, sqe, len);
        self.finish(rig, cid, &[])
    }

    /// Sends a command without data.
    pub(super) fn send(&mut self, rig: &mut Rig, sqe: Sqe, len: u32) -> u16 {
        let cid = self.cid();
        let sqe = if len > 0 { sqe.with_sgl(Sgl::Transport { len }) } else { sqe };
        let bytes = self.capsule(&sqe.with_cid(cid), &[]);
        rig.feed(self.conn, &bytes);
        cid
    }

    pub(super) fn property(&mut self, rig: &mut Rig, offset: u32, wide: bool) -> Reply {
        let sqe = PropertyGet { wide, offset }.encode(0);
        self.read(rig, sqe, 0)
    }

    pub(super) fn set_cc(&mut self, rig: &mut Rig, value: u64) -> Reply {
        let sqe = PropertySet { wide: false, offset: property::CC, value }.encode(0);
        self.read(rig, sqe, 0)
    }

    pub(super) fn identify(&mut self, rig: &mut Rig, cns: u8, nsid: u32) -> Reply {
        let identify = Identify { cns, ..Identify::default() };
        self.read(rig, identify.encode(Sqe::new(admin::IDENTIFY, 0, nsid)), 4096)
    }

    pub(super) fn set_feature(&mut self, rig: &mut Rig, fid: u8, dw11: u32) -> Reply {
        let set = SetFeatures { fid, save: false, dw11 };
        self.read(rig, set.encode(Sqe::new(admin::SET_FEATURES, 0, 0)), 0)
    }

    pub(super) fn log(&mut self, rig: &mut Rig, lid: u8, len: u32) -> Reply {
        let get = forebay_wire::sqe::GetLogPage {
            lid,
            len: len.into(),
            ..forebay_wire::sqe::GetLogPage::default()
        };
        let sqe = get.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0xffff_ffff));
        self.read(rig, sqe, len)
    }
}

/// CC as Linux sets it: command sets by Identify 1Ch, entry sizes 64 and 16 bytes, enable.
pub(super) const CC_ENABLE: u64 = 0x0046_0061;

/// An enabled controller.
pub(super) struct Host {
    pub(super) opening: Opening,
    pub(super) admin: Queue,
    pub(super) cntlid: u16,
}

impl Host {
    pub(super) fn connect(rig: &mut Rig, opening: Opening) -> Self {
        let (mut admin, cqe) = opening.open(rig);
        let cqe = cqe.unwrap();
        assert!(cqe.status.is_success(), "{}", cqe.status);
        assert!(admin.set_cc(rig, CC_ENABLE).cqe.status.is_success());
        assert_eq!(admin.property(rig, property::CSTS, false).cqe.result, 1);
        Self { opening, admin, cntlid: u16::try_from(cqe.result).unwrap() }
    }

    pub(super) fn a(rig: &mut Rig) -> Self {
        Self::connect(rig, Opening::admin(HOST_A))
    }

    /// An I/O queue.
    pub(super) fn queue(&self, rig: &mut Rig, qid: u16) -> Queue {
        let (queue, cqe) = self.opening.io(self.cntlid, qid).open(rig);
        let cqe = cqe.unwrap();
        assert!(cqe.status.is_success(), "{}", cqe.status);
        assert_eq!(cqe.result, u64::from(self.cntlid));
        queue
    }
}

/// A host with one I/O queue.
pub(super) fn host_and_queue() -> (Rig, Host, Queue) {
    let mut rig = Rig::new();
    let host = Host::a(&mut rig);
    let queue = host.queue(&mut rig, 1);
    (rig, host, queue)
}

pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + usize::from(seed)) % 251).unwrap()).collect()
}
