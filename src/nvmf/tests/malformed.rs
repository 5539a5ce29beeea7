//! Hosts that break the protocol, against the target through its public API: valid sessions whose
//! PDUs are damaged, doubled, reordered, replayed or made up. The target must not panic, must answer
//! within bounds, must drain, must keep its memory, and must serve a well-behaved host throughout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use forebay_io::{
    BlockError, Buf, BufPool, HeapBuf, HeapPool, Instant, Outcome, Payload, Piece, Request,
    RequestOp, Tag, Uuid, VolumeId,
};
use forebay_nvmf::target::{
    AnaState, BlockSize, ConnId, Event, HostAccess, IoSink, LocalAddress, NamespaceConfig,
    SubsystemConfig, TRANSFER_MAX, Target, TargetConfig,
};
use forebay_nvmf::tcp::{HANDSHAKE_DEADLINE, Handshake, Params, Progress};
use forebay_wire::fabrics::{self, Connect, ConnectData, PropertyGet, PropertySet};
use forebay_wire::sqe::{
    Abort, DatasetManagement, Fuse, GetFeatures, GetLogPage, Identify, ReadWrite, SetFeatures, Sgl,
    admin, nvm,
};
use forebay_wire::tcp::{
    DataPdu, Digests, Direction, FLAG_SUCCESS, Frame, IcReq, IcResp, PduKind, data_digest,
    header_digest, put_capsule_cmd, put_h2c_data,
};
use forebay_wire::{Cqe, Nqn, Sqe, dsm, feature, identify::cns, property};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::mem::{Discriminant, discriminant};

const SEED: u64 = 0x5eed_f04e_ba11;
/// Malformed PDUs to send.
const MALFORMED: u64 = 120_000;
/// Malformed PDUs before memory is measured first.
const WARM_UP: u64 = 10_000;
/// Growth of the resident set that is tolerated after that, in KiB.
const GROWTH_MAX: u64 = 32 << 10;
/// Output bytes that one PDU or one completed request may cause.
const OUTPUT_MAX: usize = (TRANSFER_MAX as usize) + 4096;
/// Requests that one PDU may cause: the ranges of Dataset Management.
const REQUESTS_MAX: usize = 256;
const BLOCKS: u64 = 256;
/// CC as Linux sets it.
const CC_ENABLE: u64 = 0x0046_0061;
const PUBLIC: &str = "nqn.2026-01.io.forebay:public";
const PRIVATE: &str = "nqn.2026-01.io.forebay:private";
const BAD_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:bad-host";
const GOOD_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:well-behaved";

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() % u64::from(n)).unwrap()
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A value that is likely to be at an edge of something.
    fn interesting(&mut self, now: u64) -> u64 {
        let edge = [0, 1, 2, 7, 24, 72, 128, 0x7f, 0x80, 0xff, 0x1000, 0x7fff, 0x8000, 0xffff];
        let far = [0x2_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
        match self.below(8) {
            0..3 => self.pick(&edge),
            3 => self.pick(&far),
            4 => now.wrapping_add(1),
            5 => now.wrapping_sub(1),
            6 => now ^ (1 << self.below(64)),
            _ => self.next(),
        }
    }
}

/// What a volume has still to do.
struct Job {
    request: Request,
    data: Vec<u8>,
    second: Vec<u8>,
}

/// Volumes in memory. They insist on what the target promises: ranges inside, payloads exact.
struct Volumes {
    pending: VecDeque<Job>,
    submitted: usize,
    /// Kinds of requests on the bad host's volumes.
    kinds: HashSet<Discriminant<RequestOp>>,
    media: Vec<Vec<u8>>,
}

fn block_size(volume: VolumeId) -> usize {
    if volume.0 == 2 { 4096 } else { 512 }
}

impl IoSink<HeapBuf> for Volumes {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let (data, second) = match payload {
            Payload::None => (vec![], vec![]),
            Payload::Inline(bytes) => (bytes.to_vec(), vec![]),
            Payload::Owned(buf) => (buf.as_slice().to_vec(), vec![]),
            Payload::Pair(a, b) => (a.as_slice().to_vec(), b.as_slice().to_vec()),
        };
        let blocks = u64::from(request.blocks);
        assert!(request.lba.0.checked_add(blocks).is_some_and(|end| end <= BLOCKS), "{request:?}");
        let bytes = request.blocks as usize * block_size(request.volume);
        let (one, two) = match request.op {
            RequestOp::Write | RequestOp::Compare => (bytes, 0),
            RequestOp::CompareAndWrite => (bytes, bytes),
            _ => (0, 0),
        };
        assert_eq!((data.len(), second.len()), (one, two), "{request:?}");
        self.submitted += 1;
        if request.volume.0 != 0 {
            self.kinds.insert(discriminant(&request.op));
        }
        self.pending.push_back(Job { request, data, second });
    }
}

impl Volumes {
    fn run(&mut self, job: &Job) -> (Outcome, Vec<Piece<HeapBuf>>) {
        let size = block_size(job.request.volume);
        let from = usize::try_from(job.request.lba.0).unwrap() * size;
        let len = job.request.blocks as usize * size;
        let media = &mut self.media[job.request.volume.0 as usize];
        let range = &mut media[from..from + len];
        match job.request.op {
            RequestOp::Read => {
                let piece = |part: &[u8]| {
                    let len = u32::try_from(part.len()).unwrap();
                    Piece { buf: HeapBuf::from_bytes(part), offset: 0, len }
                };
                let (a, b) = range.split_at(len / 2);
                return (Outcome::Done, vec![piece(a), piece(b)]);
            }
            RequestOp::Write => range.copy_from_slice(&job.data),
            RequestOp::Compare | RequestOp::CompareAndWrite if *range != job.data => {
                return (Outcome::Failed(BlockError::CompareFailed), vec![]);
            }
            RequestOp::CompareAndWrite => range.copy_from_slice(&job.second),
            RequestOp::WriteZeroes { .. } | RequestOp::Deallocate => range.fill(0),
            RequestOp::Compare | RequestOp::Flush => {}
        }
        (Outcome::Done, vec![])
    }
}

/// A pool that is sometimes empty.
struct Pool {
    empty: bool,
}

impl BufPool for Pool {
    type Buf = HeapBuf;

    fn alloc(&mut self, len: usize) -> Option<HeapBuf> {
        (!self.empty).then(|| HeapPool.alloc(len))?
    }
}

/// The target, its volumes, time, and what was seen.
struct World {
    target: Target<HeapBuf>,
    volumes: Volumes,
    pool: Pool,
    now: Instant,
    rng: Rng,
    /// Connections that the target asked to close.
    told: Vec<ConnId>,
    /// PDUs sent as good hosts never would.
    malformed: u64,
    handshake_failures: u64,
    /// Fatal error statuses, and status fields of responses.
    fatals: BTreeSet<u16>,
    statuses: BTreeSet<u16>,
    /// PDUs and completions whose output has not been taken yet.
    causes: usize,
    /// PDUs of earlier sessions.
    heard: VecDeque<Vec<u8>>,
}

fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

fn namespace(nsid: u32, volume: u32) -> NamespaceConfig {
    let volume = VolumeId(volume);
    NamespaceConfig {
        nsid,
        volume,
        blocks: BLOCKS,
        block_size: BlockSize::from_bytes(u32::try_from(block_size(volume)).unwrap()).unwrap(),
        uuid: Uuid::from_random([7; 16]),
        nguid: [7; 16],
        volatile_write_cache: false,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 0,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant(1_000_000_000);
        let mut target = Target::new(TargetConfig::default(), now);
        for (subsystem, host) in [(PUBLIC, BAD_HOST), (PRIVATE, GOOD_HOST)] {
            let hosts = HostAccess::Only([nqn(host)].into_iter().collect());
            let config = SubsystemConfig { nqn: nqn(subsystem), serial: "FB1".into(), hosts };
            target.add_subsystem(config).unwrap();
        }
        for (subsystem, nsid, volume) in [(PUBLIC, 1, 1), (PUBLIC, 2, 2), (PRIVATE, 1, 0)] {
            target.add_namespace(&nqn(subsystem), namespace(nsid, volume), now).unwrap();
        }
        let blocks = usize::try_from(BLOCKS).unwrap();
        let media = (0..3).map(|at| vec![0; blocks * block_size(VolumeId(at))]).collect();
        Self {
            target,
            volumes: Volumes {
                pending: VecDeque::new(),
                submitted: 0,
                kinds: HashSet::new(),
                media,
            },
            pool: Pool { empty: false },
            now,
            rng: Rng(seed),
            told: Vec::new(),
            malformed: 0,
            handshake_failures: 0,
            fatals: BTreeSet::new(),
            statuses: BTreeSet::new(),
            causes: 0,
            heard: VecDeque::new(),
        }
    }

    /// Gives the bytes of so many PDUs to a connection, sometimes in two parts.
    fn feed(&mut self, conn: ConnId, bytes: &[u8], pdus: usize) {
        let before = self.volumes.submitted;
        let cut = if self.rng.one_in(4) { self.rng.below(bytes.len() + 1) } else { bytes.len() };
        let (a, b) = bytes.split_at(cut);
        for part in [a, b] {
            if !part.is_empty() && self.target.wants_read(conn) {
                let (pool, volumes) = (&mut self.pool, &mut self.volumes);
                self.target.handle_bytes(conn, part, self.now, pool, volumes);
            }
        }
        // One more PDU may have been whole but for its last bytes.
        assert!(self.volumes.submitted - before <= (pdus + 1) * REQUESTS_MAX, "bounded requests");
        self.causes += pdus + 1;
        self.events();
    }

    fn events(&mut self) {
        let mut events = 0;
        while let Some(event) = self.target.poll_event() {
            events += 1;
            assert!(events < 64, "bounded events");
            match event {
                Event::Close(conn) => self.told.push(conn),
                Event::Protocol { fatal, .. } => {
                    self.fatals.insert(fatal.fes.encode());
                }
                _ => {}
            }
        }
    }

    /// Completes up to `most` requests; a few of the bad host's fail.
    fn complete(&mut self, most: usize) {
        for _ in 0..most {
            let Some(job) = self.volumes.pending.pop_front() else { break };
            let (mut outcome, mut pieces) = self.volumes.run(&job);
            if job.request.volume.0 != 0 && self.rng.one_in(32) {
                outcome = Outcome::Failed(BlockError::NotReady);
                pieces.clear();
            }
            self.causes += 1;
            self.target.complete(job.request.tag, outcome, &mut pieces);
            if self.rng.one_in(256) {
                // Twice, and one that never was: counted, nothing else.
                self.target.complete(job.request.tag, Outcome::Done, &mut Vec::new());
                self.target.complete(Tag(self.rng.next()), Outcome::Done, &mut Vec::new());
            }
        }
        self.events();
    }

    fn wait(&mut self, nanos: u64) {
        self.now = Instant(self.now.0 + nanos);
        if self.now >= self.target.next_deadline() {
            self.target.handle_timeout(self.now);
        }
        if self.target.waiting_for_buffers() && !self.pool.empty {
            self.target.poll_buffers(&mut self.pool);
        }
        while self.target.poll_ready().is_some() {}
        self.events();
    }

    fn closed(&self, conn: ConnId) -> bool {
        self.told.contains(&conn)
    }

    /// What a connection has to send.
    fn output(&mut self, conn: ConnId, into: &mut Vec<u8>) -> usize {
        let before = into.len();
        if let Some(tx) = self.target.tx(conn) {
            tx.slices().for_each(|slice| into.extend_from_slice(slice));
        }
        let len = into.len() - before;
        self.target.advance(conn, len);
        self.events();
        len
    }
}

/// How a host opens its queues.
#[derive(Clone)]
struct Opening {
    request: IcReq,
    connect: Connect,
    data: ConnectData,
}

fn capsule(sqe: &Sqe, data: &[u8], digests: Digests) -> Vec<u8> {
    let mut out = Vec::new();
    put_capsule_cmd(&mut out, sqe, u32::try_from(data.len()).unwrap(), digests, 0);
    out.extend_from_slice(data);
    if digests.data && !data.is_empty() {
        out.extend_from_slice(&data_digest(data));
    }
    out
}

/// One queue, the host's end.
struct Link {
    conn: ConnId,
    params: Params,
    input: Vec<u8>,
    cid: u16,
    /// R2Ts and how much of each is answered.
    r2ts: VecDeque<(DataPdu, u32)>,
    data: Vec<u8>,
    last: Option<Cqe>,
    ended: bool,
}

impl Link {
    /// Reads what the target sent, which must be right whatever it was sent.
    fn receive(&mut self, world: &mut World) -> usize {
        let len = world.output(self.conn, &mut self.input);
        let mut at = 0;
        while at < self.input.len() {
            let (digests, hpda) = (self.params.digests, self.params.hpda);
            let common = self.input[at..].first_chunk().expect("PDUs are sent whole");
            let frame = Frame::parse(common, Direction::ToHost, digests, hpda, u32::MAX).unwrap();
            let pdu = &self.input[at..at + frame.total];
            frame.check_header(pdu).unwrap();
            let data = &pdu[frame.data_at..frame.data_at + frame.data_len];
            assert!(!frame.ddgst || pdu.ends_with(&data_digest(data)), "data digest");
            match frame.kind {
                PduKind::CapsuleResp => {
                    let cqe = Cqe::decode(pdu[8..24].try_into().unwrap());
                    world.statuses.insert(cqe.status.to_field());
                    self.last = Some(cqe);
                }
                PduKind::C2hData => {
                    self.data = data.to_vec();
                    if frame.flags & FLAG_SUCCESS != 0 {
                        let cid = DataPdu::decode(pdu[..24].try_into().unwrap()).cid;
                        self.last = Some(Cqe { cid, ..Cqe::default() });
                    }
                }
                PduKind::R2t => {
                    self.r2ts.push_back((DataPdu::decode(pdu[..24].try_into().unwrap()), 0));
                }
                // Left unsent by the handshake.
                PduKind::IcResp => {}
                kind => {
                    assert_eq!(kind, PduKind::C2hTermReq);
                    self.ended = true;
                }
            }
            at += frame.total;
        }
        self.input.clear();
        len
    }

    fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    fn h2c(&self, pdu: &DataPdu, last: bool, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_h2c_data(&mut out, pdu, last, self.params.digests, 0);
        out.extend_from_slice(data);
        if self.params.digests.data {
            out.extend_from_slice(&data_digest(data));
        }
        out
    }

    /// The next piece of data that the target asked for.
    fn answer(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
        let (r2t, sent) = self.r2ts.front().copied()?;
        let left = r2t.len - sent;
        let len = if rng.one_in(2) { left } else { left.min(512 + rng.small(8192)) };
        let last = len == left;
        if last {
            self.r2ts.pop_front();
        } else {
            self.r2ts[0].1 += len;
        }
        let pdu = DataPdu { offset: sent, len, ..r2t };
        Some(self.h2c(&pdu, last, &vec![rng.byte(); len as usize]))
    }

    /// A valid command of a well-behaved host, and its answer.
    fn ask(&mut self, world: &mut World, sqe: &Sqe, data: &[u8]) -> Cqe {
        let cid = self.next_cid();
        let bytes = capsule(&sqe.with_cid(cid), data, self.params.digests);
        (self.last, self.data) = (None, Vec::new());
        world.feed(self.conn, &bytes, 1);
        world.complete(usize::MAX);
        self.receive(world);
        let cqe = self.last.expect("an answer");
        assert_eq!(cqe.cid, cid);
        cqe
    }
}

/// A connection up to its first answer; what the bad host sends is sometimes spoilt.
fn open(world: &mut World, opening: &Opening, spoil: bool) -> Option<Link> {
    let mut handshake = Handshake::new(world.now, HANDSHAKE_DEADLINE);
    let mut first = opening.request.encode().to_vec();
    if spoil && world.rng.one_in(8) {
        world.damage(&mut first, Digests::default());
    }
    let mut progress = handshake.handle_bytes(&first);
    let mut digests = opening.request.digests;
    if let Some(response) = handshake.output().first_chunk().map(IcResp::decode) {
        digests = response.map_or(digests, |response| response.digests);
        if !world.rng.one_in(4) {
            handshake.advance(128);
        }
    }
    if matches!(progress, Progress::More) {
        let sqe = opening.connect.encode(1).with_sgl(Sgl::InCapsule { offset: 0, len: 1024 });
        let mut bytes = capsule(&sqe, &opening.data.encode(), digests);
        if spoil && world.rng.one_in(8) {
            world.damage(&mut bytes, digests);
        }
        progress = handshake.handle_bytes(&bytes);
    }
    if spoil && matches!(progress, Progress::More) {
        let junk: Vec<u8> = (0..2048).map(|_| world.rng.byte()).collect();
        progress = handshake.handle_bytes(&junk);
    }
    assert!(handshake.output().len() <= 512, "bounded handshake");
    let Progress::Established(established) = progress else {
        world.handshake_failures += u64::from(matches!(progress, Progress::Failed(_)));
        return None;
    };
    let local = LocalAddress { adrfam: 1, traddr: "192.0.2.1".into(), trsvcid: "4420".into() };
    let conn = world.target.accept(&established, &local, world.now).unwrap();
    let mut link = Link {
        conn,
        params: established.params,
        input: Vec::new(),
        cid: 0,
        r2ts: VecDeque::new(),
        data: Vec::new(),
        last: None,
        ended: false,
    };
    if !established.leftover.is_empty() {
        world.feed(conn, &established.leftover, 1);
    }
    link.receive(world);
    let welcome = link.last.is_some_and(|cqe| cqe.status.is_success());
    (welcome && !world.closed(conn)).then_some(link)
}

/// Where fields of PDU headers begin, by the kind of PDU.
fn fields(kind: u8) -> &'static [usize] {
    match kind {
        0 => &[8, 10, 11, 12],
        // The command; then Connect data or ranges, where there are some.
        4 => &[
            8, 9, 10, 12, 32, 40, 47, 48, 49, 50, 52, 54, 56, 60, 64, 68, 72, 76, 80, 88, 328, 584,
        ],
        _ => &[8, 10, 12, 16],
    }
}

impl World {
    fn overwrite(&mut self, pdu: &mut [u8], at: usize) {
        let len = self.rng.pick(&[1, 2, 4, 8]);
        let Some(place) = pdu.get_mut(at..at + len) else { return };
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(place);
        let value = self.rng.interesting(u64::from_le_bytes(raw));
        place.copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Damages a PDU; for half of the ways it can be, digests are made right again.
    fn damage(&mut self, pdu: &mut Vec<u8>, digests: Digests) {
        self.malformed += 1;
        let original = pdu.clone();
        let hlen = PduKind::from_byte(pdu[0]).map_or(8, PduKind::hlen).min(pdu.len());
        while *pdu == original {
            let right = self.rng.one_in(2);
            match self.rng.below(16) {
                0 | 1 => {
                    for _ in 0..=self.rng.below(3) {
                        let at = self.rng.below(hlen);
                        pdu[at] ^= 1 << self.rng.below(8);
                    }
                }
                2..=10 => {
                    let field = self.rng.pick(fields(original[0]));
                    self.overwrite(pdu, field);
                }
                11 => {
                    let field = self.rng.pick(&[0, 1, 2, 3, 4]);
                    self.overwrite(pdu, field);
                }
                12 => pdu.truncate(1 + self.rng.below(original.len() - 1)),
                13 => {
                    let from = if self.rng.one_in(4) { 0 } else { 8 };
                    pdu[from..hlen].fill_with(|| self.rng.byte());
                }
                14 => {
                    let more = self.rng.pick(&[1, 4, 100, 1 << 14, 1 << 18, 1 << 31]);
                    let plen = u32::try_from(pdu.len()).unwrap().wrapping_add(more);
                    pdu[4..8].copy_from_slice(&plen.to_le_bytes());
                }
                _ => self.wrong_digest(pdu, hlen, digests),
            }
            let same_digest_rule = pdu.len() == original.len() && original[0] != 0;
            if right && same_digest_rule {
                redigest(pdu, hlen, digests);
            }
        }
    }

    /// A wrong digest, or one where none was agreed on.
    fn wrong_digest(&mut self, pdu: &mut [u8], hlen: usize, digests: Digests) {
        let end = pdu.len();
        match (digests.header && end >= hlen + 4, digests.data && end > hlen + 8) {
            (_, true) if self.rng.one_in(2) => pdu[end - 1 - self.rng.below(4)] ^= 0x10,
            (true, _) => pdu[hlen + self.rng.below(4)] ^= 0x10,
            _ => pdu[1] ^= self.rng.pick(&[1, 2, 3]),
        }
    }

    /// A PDU of any kind from nothing.
    fn made_up(&mut self) -> Vec<u8> {
        self.malformed += 1;
        let kind = self.rng.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xff]);
        let hlen = PduKind::from_byte(kind).map_or(24, PduKind::hlen);
        let mut pdu: Vec<u8> = (0..hlen + self.rng.below(64)).map(|_| self.rng.byte()).collect();
        if self.rng.one_in(2) {
            let len = u32::try_from(pdu.len()).unwrap();
            pdu[..4].copy_from_slice(&[kind, 0, u8::try_from(hlen).unwrap(), 0]);
            pdu[4..8].copy_from_slice(&len.to_le_bytes());
        }
        pdu
    }
}

/// Makes the digests of a PDU right for its bytes.
fn redigest(pdu: &mut [u8], hlen: usize, digests: Digests) {
    let header_end = hlen + if digests.header { 4 } else { 0 };
    if pdu.len() < header_end {
        return;
    }
    if digests.header {
        let digest = header_digest(&pdu[..hlen]);
        pdu[hlen..header_end].copy_from_slice(&digest);
    }
    if digests.data && pdu.len() > header_end + 4 {
        let at = pdu.len() - 4;
        let digest = data_digest(&pdu[header_end..at]);
        pdu[at..].copy_from_slice(&digest);
    }
}

/// A valid admin command as hosts send them.
fn admin_command(rng: &mut Rng, link: &mut Link) -> Vec<u8> {
    let cid = link.next_cid();
    let with = |opcode, nsid| Sqe::new(opcode, cid, nsid);
    let sqe = match rng.below(10) {
        0..3 => {
            let kinds = [
                cns::NAMESPACE,
                cns::CONTROLLER,
                cns::ACTIVE_NAMESPACES,
                cns::CSI_NAMESPACE,
                cns::NAMESPACE_DESCRIPTORS,
                cns::CSI_CONTROLLER,
                cns::INDEPENDENT_NAMESPACE,
            ];
            let identify = Identify { cns: rng.pick(&kinds), ..Identify::default() };
            let sqe = identify.encode(with(admin::IDENTIFY, 1 + rng.small(2)));
            sqe.with_sgl(Sgl::Transport { len: 4096 })
        }
        3 => {
            let len = rng.pick(&[4, 64, 512, 4096, 36 << 10]);
            let lid = rng.pick(&[0, 1, 2, 3, 4, 5, 0x0c, 0x12, 0x70]);
            let get = GetLogPage { lid, len: len.into(), ..GetLogPage::default() };
            get.encode(with(admin::GET_LOG_PAGE, 0xffff_ffff)).with_sgl(Sgl::Transport { len })
        }
        4 => {
            let fid = rng.pick(&[1, 2, 4, 5, 6, 7, 0x0a, 0x0b, 0x0f, 0x81]);
            let get = GetFeatures { fid, ..GetFeatures::default() };
            get.encode(with(admin::GET_FEATURES, 0))
        }
        5 => {
            let (fid, dw11) = rng.pick(&[
                (feature::NUMBER_OF_QUEUES, 0x0003_0003),
                (feature::ASYNC_EVENT_CONFIG, 0x900),
                (feature::KEEP_ALIVE_TIMER, 5000),
            ]);
            SetFeatures { fid, save: false, dw11 }.encode(with(admin::SET_FEATURES, 0))
        }
        6 => {
            let abort = Abort { sqid: rng.pick(&[0, 1, 1, 2]), cid: link.cid.wrapping_sub(1) };
            abort.encode(with(admin::ABORT, 0))
        }
        7 => with(admin::ASYNC_EVENT_REQUEST, 0),
        8 => with(admin::KEEP_ALIVE, 0),
        _ => {
            let offset = rng.pick(&[property::CAP, property::VS, property::CC, property::CSTS]);
            PropertyGet { wide: offset == property::CAP, offset }.encode(cid)
        }
    };
    capsule(&sqe, &[], link.params.digests)
}

/// Valid I/O commands as hosts send them: one, or the two of a fused pair.
fn io_commands(rng: &mut Rng, link: &mut Link) -> Vec<Vec<u8>> {
    let digests = link.params.digests;
    let nsid = 1 + rng.small(2);
    let size = if nsid == 2 { 4096 } else { 512 };
    let blocks = if rng.one_in(24) { TRANSFER_MAX / size } else { 1 + rng.small(8192 / size) };
    let len = blocks * size;
    let slba = rng.next() % (BLOCKS - u64::from(blocks) + 1);
    let rw = ReadWrite { slba, blocks, fua: rng.one_in(4), ..ReadWrite::default() };
    let inline = len <= 8192 && rng.one_in(2);
    let fill = rng.byte() & 1;
    let with_data = |sqe: Sqe, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        if inline {
            capsule(&sqe.with_sgl(Sgl::InCapsule { offset: 0, len }), data, digests)
        } else {
            capsule(&sqe.with_sgl(Sgl::Transport { len }), &[], digests)
        }
    };
    let mut new = |opcode| Sqe::new(opcode, link.next_cid(), nsid);
    let data = vec![fill; len as usize];
    match rng.below(12) {
        0..2 => {
            let sqe = rw.encode(new(nvm::READ)).with_sgl(Sgl::Transport { len });
            vec![capsule(&sqe, &[], digests)]
        }
        2..6 => vec![with_data(rw.encode(new(nvm::WRITE)), &data)],
        6 => vec![with_data(rw.encode(new(nvm::COMPARE)), &data)],
        7 | 8 => {
            let first = rw.encode(new(nvm::COMPARE)).with_fuse(Fuse::First);
            let second = rw.encode(new(nvm::WRITE)).with_fuse(Fuse::Second);
            vec![with_data(first, &data), with_data(second, &data)]
        }
        9 => {
            let ranges = u16::from(rng.byte()) + 1;
            let dsm = DatasetManagement { ranges, deallocate: true, ..Default::default() };
            let range = dsm::Range { blocks: 1, slba, attributes: 0 };
            let data = range.encode().repeat(usize::from(ranges));
            vec![with_data(dsm.encode(new(nvm::DATASET_MANAGEMENT)), &data)]
        }
        10 => vec![capsule(&rw.encode(new(nvm::WRITE_ZEROES)), &[], digests)],
        _ => vec![capsule(&new(nvm::FLUSH), &[], digests)],
    }
}

/// A bad host's association.
struct Session {
    links: Vec<Link>,
    /// PDUs to send before anything else, by link: second halves, and what was held back.
    next: VecDeque<(usize, Vec<u8>)>,
}

fn opening(rng: &mut Rng, host: &str, subsystem: &str) -> Opening {
    let digests = Digests { header: rng.one_in(2), data: rng.one_in(2) };
    let request = IcReq { hpda: rng.pick(&[0, 0, 1, 7, 31]), digests, maxr2t: 0 };
    let connect = Connect {
        sqsize: rng.pick(&[3, 31, 127]),
        no_sq_flow: rng.one_in(2),
        kato: 5000,
        ..Connect::default()
    };
    let hostid = if host == GOOD_HOST { [1; 16] } else { [2; 16] };
    let (subnqn, hostnqn) = (nqn(subsystem), nqn(host));
    let cntlid = fabrics::CNTLID_DYNAMIC;
    Opening { request, connect, data: ConnectData { hostid, cntlid, subnqn, hostnqn } }
}

/// Brings up a controller with one or two I/O queues, in the order in which Linux does.
fn bring_up(world: &mut World, host: &str, subsystem: &str, spoil: bool) -> Option<Session> {
    let mut opening = opening(&mut world.rng, host, subsystem);
    let mut admin = open(world, &opening, spoil)?;
    opening.data.cntlid = u16::try_from(admin.last?.result).ok()?;
    let sets = PropertySet { wide: false, offset: property::CC, value: CC_ENABLE }.encode(0);
    assert!(admin.ask(world, &sets, &[]).status.is_success());
    let ready = PropertyGet { wide: false, offset: property::CSTS }.encode(0);
    assert_eq!(admin.ask(world, &ready, &[]).result, 1);
    let mut links = vec![admin];
    opening.connect.kato = 0;
    for qid in 1..=1 + u16::from(spoil && world.rng.one_in(4)) {
        // Now and then a number that is taken: that Connect waits for the older queue.
        opening.connect.qid = if spoil && world.rng.one_in(16) { 1 } else { qid };
        links.extend(open(world, &opening, spoil));
    }
    Some(Session { links, next: VecDeque::new() })
}

impl Session {
    /// The next valid PDU of a queue.
    fn valid(&mut self, rng: &mut Rng) -> (usize, Vec<u8>) {
        if let Some(next) = self.next.pop_front() {
            return next;
        }
        let at = if rng.one_in(4) { 0 } else { rng.below(self.links.len()) };
        let link = &mut self.links[at];
        if !rng.one_in(3)
            && let Some(data) = link.answer(rng)
        {
            return (at, data);
        }
        if at == 0 {
            return (0, admin_command(rng, link));
        }
        let mut pdus = io_commands(rng, link).into_iter();
        let first = pdus.next().unwrap();
        self.next.extend(pdus.map(|pdu| (at, pdu)));
        (at, first)
    }

    /// Sends one PDU, right or wrong.
    fn step(&mut self, world: &mut World) {
        let (at, mut pdu) = self.valid(&mut world.rng);
        let (conn, digests) = (self.links[at].conn, self.links[at].params.digests);
        if world.rng.one_in(16) {
            world.heard.truncate(63);
            world.heard.push_front(pdu.clone());
        }
        let mut pdus = 1;
        if !world.rng.one_in(3) {
            match world.rng.below(16) {
                0 => {
                    pdu.extend_from_within(..);
                    (world.malformed, pdus) = (world.malformed + 1, 2);
                }
                1 => {
                    // Held back until after the next one.
                    world.malformed += 1;
                    let (other, later) = self.valid(&mut world.rng);
                    self.next.push_front((at, pdu));
                    world.feed(self.links[other].conn, &later, 1);
                    return;
                }
                2 if !world.heard.is_empty() => {
                    world.malformed += 1;
                    let old = world.rng.below(world.heard.len());
                    pdu.extend_from_slice(&world.heard[old]);
                    pdus = 2;
                }
                3 => pdu = world.made_up(),
                _ => world.damage(&mut pdu, digests),
            }
        }
        world.feed(conn, &pdu, pdus);
    }

    /// Sends until the target closes a connection, or the host has had enough.
    fn run(&mut self, world: &mut World, good: &mut Good) {
        for _ in 0..16 + world.rng.below(48) {
            world.pool.empty = world.rng.one_in(16);
            self.step(world);
            world.pool.empty = false;
            if !world.rng.one_in(4) {
                world.complete(usize::MAX);
            }
            world.wait(100_000);
            if !world.rng.one_in(8) {
                let sent: usize = self.links.iter_mut().map(|link| link.receive(world)).sum();
                assert!(sent <= world.causes * OUTPUT_MAX, "{sent} bytes of {}", world.causes);
                world.causes = 0;
            }
            if world.rng.one_in(8) {
                good.check(world);
            }
            if self.links.iter().any(|link| link.ended || world.closed(link.conn)) {
                break;
            }
        }
    }
}

/// A well-behaved host: each of its commands must be answered right.
struct Good {
    session: Session,
    cntlid: u16,
    conns: [ConnId; 2],
}

impl Good {
    fn new(world: &mut World) -> Self {
        let session = bring_up(world, GOOD_HOST, PRIVATE, false).unwrap();
        let cntlid = world.target.controllers().next().unwrap().cntlid;
        let conns = [session.links[0].conn, session.links[1].conn];
        Self { session, cntlid, conns }
    }

    fn check(&mut self, world: &mut World) {
        // The bad host's requests may stay where they are.
        let theirs = std::mem::take(&mut world.volumes.pending);
        let causes = world.causes;
        let [admin, io] = &mut self.session.links[..] else { panic!("two queues") };
        let identify = Identify { cns: cns::CONTROLLER, ..Identify::default() };
        let identify = identify.encode(Sqe::new(admin::IDENTIFY, 0, 0));
        let cqe = admin.ask(world, &identify.with_sgl(Sgl::Transport { len: 4096 }), &[]);
        assert!(cqe.status.is_success() && admin.data.len() == 4096);
        assert_eq!(admin.data[78..80], self.cntlid.to_le_bytes());

        let len = world.rng.pick(&[512, 4096, 8192, 16384]);
        let slba = world.rng.next() % (BLOCKS - 32);
        let rw = ReadWrite { slba, blocks: len / 512, ..ReadWrite::default() };
        let data: Vec<u8> = (0..len).map(|_| world.rng.byte()).collect();
        let write = rw.encode(Sqe::new(nvm::WRITE, io.next_cid(), 1));
        if len <= 8192 {
            let sqe = write.with_sgl(Sgl::InCapsule { offset: 0, len });
            assert!(io.ask(world, &sqe, &data).status.is_success());
        } else {
            let sqe = write.with_sgl(Sgl::Transport { len });
            world.feed(io.conn, &capsule(&sqe, &[], io.params.digests), 1);
            io.receive(world);
            let (r2t, _) = io.r2ts.pop_front().expect("R2T");
            assert_eq!((r2t.cid, r2t.offset, r2t.len), (sqe.cid(), 0, len));
            world.feed(io.conn, &io.h2c(&r2t, true, &data), 1);
            world.complete(usize::MAX);
            io.receive(world);
            let cqe = io.last.expect("an answer");
            assert!(cqe.status.is_success() && cqe.cid == sqe.cid());
        }
        let read = rw.encode(Sqe::new(nvm::READ, 0, 1)).with_sgl(Sgl::Transport { len });
        assert!(io.ask(world, &read, &[]).status.is_success());
        assert!(io.data == data, "what was written");
        assert!(world.volumes.pending.is_empty());
        (world.volumes.pending, world.causes) = (theirs, causes);
    }
}

/// Closes the bad host's connections; afterwards only the well-behaved host is left.
fn end(world: &mut World, good: &mut Good) {
    if world.rng.one_in(2) {
        world.complete(usize::MAX);
    }
    let conns: Vec<ConnId> =
        world.target.connections().filter(|conn| !good.conns.contains(conn)).collect();
    for conn in conns {
        world.target.conn_closed(conn, world.now);
    }
    world.complete(usize::MAX);
    world.events();
    world.told.clear();
    world.causes = 0;
    if world.rng.one_in(32) {
        world.wait(3_000_000_000);
        good.check(world);
    }
    assert_eq!(world.target.outstanding(), 0);
    assert_eq!(world.target.connections().count(), 2);
    assert_eq!(world.target.controllers().count(), 1);
}

/// The resident set in KiB.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}

#[test]
fn malformed_pdus() {
    let mut world = World::new(SEED);
    let mut good = Good::new(&mut world);
    let (mut sessions, mut warm) = (0, None);
    while world.malformed < MALFORMED {
        if warm.is_none() && world.malformed >= WARM_UP {
            warm = Some(resident());
        }
        sessions += 1;
        if let Some(mut session) = bring_up(&mut world, BAD_HOST, PUBLIC, true) {
            session.run(&mut world, &mut good);
        }
        end(&mut world, &mut good);
    }
    good.check(&mut world);
    let growth = resident().saturating_sub(warm.unwrap());
    let errors = world.target.stats().protocol_errors + world.handshake_failures;
    println!(
        "malformed: {} PDUs in {sessions} sessions, seed {SEED:#x}, {errors} protocol errors, RSS \
         growth {growth} KiB",
        world.malformed
    );
    assert!(growth < GROWTH_MAX, "memory grew by {growth} KiB");
    // How deep it went: each kind of protocol error and of request, many kinds of refusals.
    assert_eq!(world.fatals.iter().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(world.volumes.kinds.len(), 7);
    assert!(world.statuses.len() >= 20, "{:x?}", world.statuses);
    assert!(errors > MALFORMED / 20, "hardly anything was noticed");
    assert!(world.target.stats().data_digest_errors > 0);
    assert!(world.target.stats().stale_completions > 0);
}
