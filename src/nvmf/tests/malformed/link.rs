//! One queue, the host's end of it: how it is opened, what it receives, what it asks.

use super::*;

/// How a host opens its queues.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) request: IcReq,
    pub(super) connect: Connect,
    pub(super) data: ConnectData,
}

pub(super) fn capsule(sqe: &Sqe, data: &[u8], digests: Digests) -> Vec<u8> {
    let mut out = Vec::new();
    put_capsule_cmd(&mut out, sqe, u32::try_from(data.len()).unwrap(), digests, 0);
    out.extend_from_slice(data);
    if digests.data && !data.is_empty() {
        out.extend_from_slice(&data_digest(data));
    }
    out
}

/// One queue, the host's end.
pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) params: Params,
    pub(super) input: Vec<u8>,
    pub(super) cid: u16,
    /// R2Ts and how much of each is answered.
    pub(super) r2ts: VecDeque<(DataPdu, u32)>,
    pub(super) data: Vec<u8>,
    pub(super) last: Option<Cqe>,
    pub(super) ended: bool,
}

impl Link {
    /// Reads what the target sent, which must be right whatever it was sent.
    pub(super) fn receive(&mut self, world: &mut World) -> usize {
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

    pub(super) fn next_cid(&mut self) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        self.cid
    }

    pub(super) fn h2c(&self, pdu: &DataPdu, last: bool, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_h2c_data(&mut out, pdu, last, self.params.digests, 0);
        out.extend_from_slice(data);
        if self.params.digests.data {
            out.extend_from_slice(&data_digest(data));
        }
        out
    }

    /// The next piece of data that the target asked for.
    pub(super) fn answer(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
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
    pub(super) fn ask(&mut self, world: &mut World, sqe: &Sqe, data: &[u8]) -> Cqe {
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
pub(super) fn open(world: &mut World, opening: &Opening, spoil: bool) -> Option<Link> {
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
