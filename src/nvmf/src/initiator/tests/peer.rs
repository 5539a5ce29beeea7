//! A scripted controller, written from the specification's side: bytes in, bytes out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use forebay_wire::fabrics::{Connect, PropertyGet, PropertySet, fctype};
use forebay_wire::feature::{AsyncEvent, NumberOfQueues, event_bit};
use forebay_wire::identify::{
    IDENTIFY_LEN, IdController, IdNamespace, LbaFormat, NamespaceDescriptors, cns, oncs,
};
use forebay_wire::log::{self, DiscoveryEntry, DiscoveryHeader, SubsystemType};
use forebay_wire::property::Cap;
use forebay_wire::sqe::{GetLogPage, Identify, ReadWrite, Sgl, admin, nvm};
use forebay_wire::tcp::{
    COMMON_LEN, DataPdu, Digests, Direction, Fatal, Frame, IC_LEN, IcReq, IcResp, PduKind,
    SHORT_HLEN, TermReq, data_digest, put_c2h_data, put_capsule_resp, put_r2t,
};
use forebay_wire::{Cqe, Sqe, Status, dsm};

/// How the controller behaves.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) maxh2cdata: u32,
    /// Data bytes of one C2HData PDU.
    pub(super) c2h_chunk: usize,
    /// Whether reads end with the SUCCESS flag, where the host lets it.
    pub(super) success: bool,
    pub(super) blocks: u64,
    pub(super) uuid: [u8; 16],
    /// Status of so many I/O commands.
    pub(super) fail_io: Option<(Status, u32)>,
    pub(super) refuse_connect: Option<Status>,
    /// So many data digests are wrong.
    pub(super) damage_data: u32,
    /// Entries of the discovery log, and how often it changes while it is read.
    pub(super) entries: u64,
    pub(super) log_changes: u64,
    /// The memory of the namespace, shared by all connections.
    pub(super) memory: Rc<RefCell<Vec<u8>>>,
    /// Whether data that was not asked for is passed over.
    pub(super) careless: bool,
    /// Terminate requests that came.
    pub(super) farewells: Rc<RefCell<Vec<Fatal>>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            maxh2cdata: 131_072,
            c2h_chunk: 1 << 20,
            success: false,
            blocks: 2048,
            uuid: [0xab; 16],
            fail_io: None,
            refuse_connect: None,
            damage_data: 0,
            entries: 0,
            log_changes: 0,
            memory: Rc::new(RefCell::new(vec![0; 1 << 20])),
            careless: false,
            farewells: Rc::default(),
        }
    }
}

/// A write whose data is awaited.
struct Awaited {
    sqe: Sqe,
    data: Vec<u8>,
    want: usize,
}

/// The controller's end of one connection.
pub(super) struct Peer {
    pub(super) script: Script,
    pub(super) mute: bool,
    /// I/O commands by opcode.
    pub(super) counts: BTreeMap<u8, u32>,
    pub(super) cc: u32,
    pub(super) farewells: Vec<Fatal>,
    input: Vec<u8>,
    out: Vec<u8>,
    digests: Digests,
    initialized: bool,
    qid: u16,
    no_sq_flow: bool,
    awaited: BTreeMap<u16, Awaited>,
    event_cid: Option<u16>,
}

impl Peer {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            mute: false,
            counts: BTreeMap::new(),
            cc: 0,
            farewells: Vec::new(),
            input: Vec::new(),
            out: Vec::new(),
            digests: Digests::default(),
            initialized: false,
            qid: 0,
            no_sq_flow: false,
            awaited: BTreeMap::new(),
            event_cid: None,
        }
    }

    pub(super) fn handle(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.mute {
            return Vec::new();
        }
        self.input.extend_from_slice(bytes);
        while let Some(common) = self.input.first_chunk::<COMMON_LEN>() {
            let frame =
                Frame::parse(common, Direction::ToController, self.digests, 0, 1 << 20).unwrap();
            if self.input.len() < frame.total {
                break;
            }
            let pdu: Vec<u8> = self.input.drain(..frame.total).collect();
            frame.check_header(&pdu).unwrap();
            self.handle_pdu(&frame, &pdu);
        }
        std::mem::take(&mut self.out)
    }

    /// The bytes of a namespace event.
    pub(super) fn raise_namespace_event(&mut self) -> Vec<u8> {
        let cid = self.event_cid.take().expect("an event request is outstanding");
        let result = u64::from(AsyncEvent::NAMESPACE.encode());
        self.respond(&Cqe { result, cid, ..Cqe::default() });
        std::mem::take(&mut self.out)
    }

    fn handle_pdu(&mut self, frame: &Frame, pdu: &[u8]) {
        match frame.kind {
            PduKind::IcReq => {
                assert!(!self.initialized);
                self.initialized = true;
                let request = IcReq::decode(pdu.first_chunk::<IC_LEN>().unwrap()).unwrap();
                assert_eq!((request.hpda, request.maxr2t), (0, 0));
                let maxh2cdata = self.script.maxh2cdata;
                let answer = IcResp { cpda: 0, digests: request.digests, maxh2cdata };
                self.out.extend_from_slice(&answer.encode());
                self.digests = request.digests;
            }
            PduKind::H2cTermReq => {
                self.farewells.push(TermReq::decode(pdu.first_chunk().unwrap()).fatal);
            }
            PduKind::CapsuleCmd => {
                let sqe = Sqe::from_bytes(pdu[8..].first_chunk().unwrap());
                self.handle_command(sqe, self.data_of(frame, pdu));
            }
            PduKind::H2cData if self.script.careless => {}
            PduKind::H2cData => {
                let header = DataPdu::decode(pdu.first_chunk::<SHORT_HLEN>().unwrap());
                assert!(header.len <= self.script.maxh2cdata);
                assert_eq!(header.ttag, 0x4321);
                let data = self.data_of(frame, pdu);
                let awaited = self.awaited.get_mut(&header.cid).unwrap();
                assert_eq!(header.offset as usize, awaited.data.len(), "in order");
                awaited.data.extend_from_slice(&data);
                let complete = awaited.data.len() == awaited.want;
                let half = awaited.want.div_ceil(2).next_multiple_of(4);
                let pause = awaited.data.len() == half && half < awaited.want;
                assert_eq!(frame.flags & 4 != 0, complete || pause, "LAST");
                if complete {
                    let awaited = self.awaited.remove(&header.cid).unwrap();
                    self.carry_out(awaited.sqe, &awaited.data);
                } else if pause {
                    // The second half is asked for on its own.
                    let len = word(awaited.want - half);
                    self.ask_for(header.cid, word(half), len);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn data_of(&self, frame: &Frame, pdu: &[u8]) -> Vec<u8> {
        let data = &pdu[frame.data_at..frame.data_at + frame.data_len];
        if frame.ddgst && frame.data_len > 0 {
            assert_eq!(pdu[frame.data_at + frame.data_len..], data_digest(data));
        }
        data.to_vec()
    }

    fn ask_for(&mut self, cid: u16, offset: u32, len: u32) {
        let digests = self.digests;
        put_r2t(&mut self.out, &DataPdu { cid, ttag: 0x4321, offset, len }, digests);
    }

    fn handle_command(&mut self, sqe: Sqe, data: Vec<u8>) {
        match sqe.sgl() {
            Sgl::InCapsule { offset, len } => assert_eq!((offset, len as usize), (0, data.len())),
            Sgl::Transport { len } if matches!(sqe.opcode(), nvm::WRITE) && self.qid > 0 => {
                let want = len as usize;
                self.awaited.insert(sqe.cid(), Awaited { sqe, data, want });
                self.ask_for(sqe.cid(), 0, word(want.div_ceil(2).next_multiple_of(4).min(want)));
                return;
            }
            Sgl::Transport { .. } => assert!(data.is_empty()),
            other => panic!("{other:?}"),
        }
        self.carry_out(sqe, &data);
    }

    fn carry_out(&mut self, sqe: Sqe, data: &[u8]) {
        if sqe.opcode() == admin::FABRICS {
            self.fabrics(sqe, data);
        } else if self.qid == 0 {
            self.admin(sqe);
        } else {
            self.io(sqe, data);
        }
    }

    fn fabrics(&mut self, sqe: Sqe, data: &[u8]) {
        let cid = sqe.cid();
        let mut cqe = Cqe { cid, ..Cqe::default() };
        match sqe.fctype() {
            fctype::CONNECT => {
                let connect = Connect::decode(&sqe);
                assert_eq!((connect.recfmt, data.len()), (0, 1024));
                self.qid = connect.qid;
                self.no_sq_flow = connect.no_sq_flow;
                let cntlid = u16::from_le_bytes([data[16], data[17]]);
                assert_eq!(cntlid, if connect.qid == 0 { 0xffff } else { 7 });
                cqe.result = 7;
                cqe.status = self.script.refuse_connect.unwrap_or(Status::SUCCESS);
            }
            fctype::PROPERTY_GET => {
                let get = PropertyGet::decode(&sqe).unwrap();
                let cap = Cap { mqes: 127, cqr: true, to: 10, css: 1, ..Cap::default() };
                cqe.result = match get.offset {
                    0 => cap.encode(),
                    0x1c => u64::from(self.cc & 1),
                    other => panic!("{other:#x}"),
                };
            }
            fctype::PROPERTY_SET => {
                let set = PropertySet::decode(&sqe).unwrap();
                assert_eq!(set.offset, 0x14);
                self.cc = u32::try_from(set.value).unwrap();
                assert_eq!(self.cc & 0x00ff_0001, 0x0046_0001);
            }
            other => panic!("{other:#x}"),
        }
        self.respond(&cqe);
    }

    fn admin(&mut self, sqe: Sqe) {
        let mut raw = [0u8; IDENTIFY_LEN];
        let cid = sqe.cid();
        match sqe.opcode() {
            admin::IDENTIFY => match Identify::decode(&sqe).cns {
                cns::CONTROLLER => controller().encode(&mut raw),
                cns::NAMESPACE => self.namespace().encode(&mut raw),
                cns::NAMESPACE_DESCRIPTORS => {
                    let uuid = Some(self.script.uuid);
                    NamespaceDescriptors { uuid, ..Default::default() }.encode(&mut raw);
                }
                other => panic!("{other:#x}"),
            },
            admin::GET_LOG_PAGE => {
                let page = GetLogPage::decode(&sqe);
                let log = self.log(&page);
                let from = usize::try_from(page.offset).unwrap();
                let mut part = log[from.min(log.len())..].to_vec();
                part.resize(usize::try_from(page.len).unwrap(), 0);
                return self.send(cid, &part);
            }
            admin::SET_FEATURES if sqe.cdw(10) & 0xff == 7 => {
                let result = u64::from(NumberOfQueues { nsq: 3, ncq: 3 }.encode());
                return self.respond(&Cqe { cid, result, ..Cqe::default() });
            }
            admin::SET_FEATURES => {
                assert_eq!(sqe.cdw(11), event_bit::NAMESPACE);
                return self.respond(&Cqe { cid, ..Cqe::default() });
            }
            admin::ASYNC_EVENT_REQUEST => {
                assert_eq!(self.event_cid, None, "one is enough");
                self.event_cid = Some(cid);
                return;
            }
            admin::KEEP_ALIVE => return self.respond(&Cqe { cid, ..Cqe::default() }),
            other => panic!("{other:#x}"),
        }
        self.send(cid, &raw);
    }

    fn log(&mut self, page: &GetLogPage) -> Vec<u8> {
        if page.lid != log::DISCOVERY {
            assert_eq!((page.lid, page.rae), (log::CHANGED_NAMESPACES, false));
            return vec![0; 4096];
        }
        // It changes after its header was read for the first time.
        if page.offset > 0 && self.script.log_changes > 0 {
            self.script.log_changes -= 1;
        }
        let genctr = 100 - self.script.log_changes;
        let header = DiscoveryHeader { genctr, numrec: self.script.entries };
        let mut all = header.encode().to_vec();
        for i in 0..self.script.entries {
            let entry = DiscoveryEntry {
                trtype: 3,
                adrfam: 1,
                subtype: SubsystemType::Nvm,
                treq: 0,
                portid: 1,
                cntlid: 0xffff,
                asqsz: 32,
                eflags: 0,
                trsvcid: (4420 + i).to_string(),
                traddr: "127.0.0.1".into(),
                subnqn: "nqn.2026-01.io.forebay:v".parse().unwrap(),
                tsas: 0,
            };
            all.extend_from_slice(&entry.encode());
        }
        all
    }

    fn namespace(&self) -> IdNamespace {
        let blocks = self.script.blocks;
        let formats = vec![LbaFormat { metadata: 0, data_shift: 9, performance: 0 }];
        IdNamespace { nsze: blocks, ncap: blocks, nuse: blocks, formats, ..Default::default() }
    }

    fn io(&mut self, sqe: Sqe, data: &[u8]) {
        *self.counts.entry(sqe.opcode()).or_default() += 1;
        let cid = sqe.cid();
        if let Some((status, left @ 1..)) = &mut self.script.fail_io {
            *left -= 1;
            let status = *status;
            return self.respond(&Cqe { cid, status, ..Cqe::default() });
        }
        let range = ReadWrite::decode(&sqe);
        let memory = self.script.memory.clone();
        let mut memory = memory.borrow_mut();
        let mut zero = |slba: u64, blocks: u64| {
            let end = memory.len();
            let at = |block: u64| usize::try_from(block * 512).unwrap_or(end).min(end);
            memory[at(slba)..at(slba + blocks)].fill(0);
        };
        match sqe.opcode() {
            nvm::FLUSH => {}
            nvm::WRITE_ZEROES => zero(range.slba, u64::from(range.blocks)),
            nvm::DATASET_MANAGEMENT => {
                let ranges: Vec<_> = dsm::Range::list(data).collect();
                assert_eq!(ranges.len(), 1);
                zero(ranges[0].slba, u64::from(ranges[0].blocks));
            }
            opcode @ (nvm::READ | nvm::WRITE) => {
                let first = usize::try_from(range.slba).unwrap() * 512;
                let place = first..first + range.blocks as usize * 512;
                if opcode == nvm::READ {
                    assert_eq!(sqe.sgl(), Sgl::Transport { len: range.blocks * 512 });
                    let found = memory[place].to_vec();
                    return self.send(cid, &found);
                }
                memory[place].copy_from_slice(data);
            }
            other => panic!("{other:#x}"),
        }
        drop(memory);
        self.respond(&Cqe { cid, ..Cqe::default() });
    }

    /// Data to the host, then the end of the command.
    fn send(&mut self, cid: u16, data: &[u8]) {
        let digests = self.digests;
        let success = self.script.success && self.no_sq_flow && self.qid > 0;
        for (at, part) in data.chunks(self.script.c2h_chunk).enumerate() {
            let offset = at * self.script.c2h_chunk;
            let len = word(part.len());
            let last = offset + part.len() == data.len();
            let pdu = DataPdu { cid, ttag: 0, offset: word(offset), len };
            put_c2h_data(&mut self.out, &pdu, last, last && success, digests, 0);
            self.out.extend_from_slice(part);
            if digests.data {
                let mut digest = data_digest(part);
                if self.script.damage_data > 0 && self.qid > 0 {
                    self.script.damage_data -= 1;
                    digest[0] ^= 1;
                }
                self.out.extend_from_slice(&digest);
            }
        }
        if !success {
            self.respond(&Cqe { cid, ..Cqe::default() });
        }
    }

    fn respond(&mut self, cqe: &Cqe) {
        put_capsule_resp(&mut self.out, cqe, self.digests);
    }
}

fn word(len: usize) -> u32 {
    u32::try_from(len).unwrap()
}

fn controller() -> IdController {
    IdController {
        mdts: 5,
        cntlid: 7,
        oaes: event_bit::NAMESPACE,
        maxcmd: 128,
        oncs: oncs::DSM | oncs::WRITE_ZEROES,
        vwc: 1,
        awupf: 7,
        // 64 bytes of command and 8 KiB of data.
        ioccsz: 4 + 512,
        iorcsz: 1,
        ..IdController::default()
    }
}
