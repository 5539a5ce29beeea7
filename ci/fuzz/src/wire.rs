//! Every decoder of `forebay-wire` alone: commands and their SGLs, PDU headers, Identify data, log
//! pages, Connect data. What was decoded and encoded again must decode to the same.

use core::fmt::Debug;
use forebay_wire::fabrics::{Connect, ConnectData, PropertyGet, PropertySet};
use forebay_wire::feature::{AsyncEvent, NumberOfQueues};
use forebay_wire::identify::{
    DescriptorList, IDENTIFY_LEN, IdController, IdControllerNvm, IdNamespace,
    IdNamespaceIndependent, NamespaceDescriptors, nsid_list,
};
use forebay_wire::log::{
    AnaLog, DISCOVERY_ENTRY_LEN, DiscoveryEntry, DiscoveryHeader, ErrorEntry, Smart,
    decode_firmware_slot,
};
use forebay_wire::property::{Cap, Cc, Crto, Csts};
use forebay_wire::sqe::{
    Abort, DatasetManagement, GetFeatures, GetLogPage, Identify, ReadWrite, SetFeatures, Sgl,
};
use forebay_wire::tcp::{DataPdu, Digests, Direction, Frame, IcReq, IcResp, TermReq, put_term_req};
use forebay_wire::{Cqe, Sqe, dsm};

/// The first `N` bytes, filled up with zeros.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let len = bytes.len().min(N);
    out[..len].copy_from_slice(&bytes[..len]);
    out
}

/// Decodes, encodes, decodes again.
fn again<T: Debug + PartialEq, E: ?Sized>(
    raw: &E,
    decode: impl Fn(&E) -> T,
    encode: impl Fn(&T) -> Box<E>,
) {
    let one = decode(raw);
    let two = decode(&encode(&one));
    assert_eq!(one, two);
}

fn identify<T: Debug + PartialEq>(
    raw: &[u8; IDENTIFY_LEN],
    decode: impl Fn(&[u8; IDENTIFY_LEN]) -> T,
    encode: impl Fn(&T, &mut [u8; IDENTIFY_LEN]),
) {
    again(raw, decode, |value| {
        let mut out = Box::new([0; IDENTIFY_LEN]);
        encode(value, &mut out);
        out
    });
}

fn command(bytes: &[u8]) {
    let raw = array::<64>(bytes);
    let sqe = Sqe::from_bytes(&raw);
    assert_eq!(*sqe.as_bytes(), raw);
    let base = Sqe::new(sqe.opcode(), sqe.cid(), sqe.nsid());
    let boxed = |sqe: Sqe| Box::new(sqe);
    again(&sqe, ReadWrite::decode, |view| boxed(view.encode(base)));
    again(&sqe, DatasetManagement::decode, |view| boxed(view.encode(base)));
    again(&sqe, Identify::decode, |view| boxed(view.encode(base)));
    again(&sqe, GetLogPage::decode, |view| boxed(view.encode(base)));
    again(&sqe, GetFeatures::decode, |view| boxed(view.encode(base)));
    again(&sqe, SetFeatures::decode, |view| boxed(view.encode(base)));
    again(&sqe, Abort::decode, |view| boxed(view.encode(base)));
    again(&sqe, Connect::decode, |view| boxed(view.encode(sqe.cid())));
    again(&sqe, PropertyGet::decode, |view| {
        boxed(view.as_ref().map_or(sqe, |view| view.encode(sqe.cid())))
    });
    again(&sqe, PropertySet::decode, |view| {
        boxed(view.as_ref().map_or(sqe, |view| view.encode(sqe.cid())))
    });
    again(&array::<16>(&raw[24..]), Sgl::decode, |sgl| Box::new(sgl.encode()));
    assert_eq!(sqe.with_sgl(sqe.sgl()).sgl(), sqe.sgl());
    assert_eq!(sqe.with_fuse(sqe.fuse()).fuse(), sqe.fuse());
    let _ = (sqe.psdt(), sqe.fctype(), sqe.cdw(15), sqe.sgl().len());
}

fn pdu(select: u8, bytes: &[u8]) {
    let digests = Digests { header: select & 0x10 != 0, data: select & 0x20 != 0 };
    let direction = if select & 0x40 == 0 { Direction::ToController } else { Direction::ToHost };
    let common = array::<8>(bytes);
    let (pda, max) = (select >> 3 & 0x1f, 1 << (select & 0x1f));
    if let Ok(frame) = Frame::parse(&common, direction, digests, pda, max) {
        crate::reached::FRAMES.add(1);
        assert!(frame.data_at >= frame.kind.hlen() && frame.data_at.is_multiple_of(4), "{frame:?}");
        let end = frame.data_at + frame.data_len + if frame.ddgst { 4 } else { 0 };
        assert!(end <= frame.total && frame.header_len() <= frame.total, "{frame:?}");
        let _ = frame.check_header(bytes);
    }
    let (short, long) = (array::<24>(bytes), array::<128>(bytes));
    let _ = DataPdu::decode(&short);
    let term = TermReq::decode(&short).fatal;
    let mut out = Vec::new();
    put_term_req(&mut out, direction, term, bytes);
    assert!(out.len() <= 152, "{} bytes of a terminate request", out.len());
    assert_eq!(TermReq::decode(&array(&out)).fatal, term);
    if let Ok(request) = IcReq::decode(&long) {
        assert_eq!(IcReq::decode(&request.encode()), Ok(request));
    }
    if let Ok(response) = IcResp::decode(&long) {
        assert_eq!(IcResp::decode(&response.encode()), Ok(response));
    }
    again(&array::<16>(bytes), Cqe::decode, |cqe| Box::new(cqe.encode()));
}

fn identifies(bytes: &[u8]) {
    let raw = array::<IDENTIFY_LEN>(bytes);
    identify(&raw, IdController::decode, IdController::encode);
    identify(&raw, IdControllerNvm::decode, IdControllerNvm::encode);
    identify(&raw, IdNamespace::decode, IdNamespace::encode);
    identify(&raw, IdNamespaceIndependent::decode, IdNamespaceIndependent::encode);
    identify(&raw, NamespaceDescriptors::decode, NamespaceDescriptors::encode);
    let namespace = IdNamespace::decode(&raw);
    let _ = (namespace.format(), namespace.block_size());
    assert!(nsid_list(&raw).count() <= 1024);
    assert!(DescriptorList::new(&raw).count() <= IDENTIFY_LEN / 5);
}

fn logs(bytes: &[u8]) {
    if let Ok(log) = AnaLog::decode(bytes) {
        let mut out = Vec::new();
        log.encode(&mut out);
        assert!(out.len() <= bytes.len() && AnaLog::decode(&out) == Ok(log));
    }
    again(&array(bytes), Smart::decode, |smart| Box::new(smart.encode()));
    again(&array(bytes), ErrorEntry::decode, |entry| Box::new(entry.encode()));
    if let Some(header) = DiscoveryHeader::decode(&array(bytes)) {
        assert_eq!(DiscoveryHeader::decode(&header.encode()), Some(header));
    }
    if let Some(entry) = DiscoveryEntry::decode(&array::<DISCOVERY_ENTRY_LEN>(bytes)) {
        assert_eq!(DiscoveryEntry::decode(&entry.encode()), Some(entry));
    }
    let _ = decode_firmware_slot(&array(bytes));
    let ranges: Vec<u8> = dsm::Range::list(bytes).flat_map(|range| range.encode()).collect();
    assert_eq!(ranges, bytes[..bytes.len() / 16 * 16]);
}

fn rest(bytes: &[u8]) {
    if let Ok(data) = ConnectData::decode(&array(bytes)) {
        assert_eq!(ConnectData::decode(&data.encode()), Ok(data));
    }
    let (wide, word) = (u64::from_le_bytes(array(bytes)), u32::from_le_bytes(array(bytes)));
    assert_eq!(Cap::decode(Cap::decode(wide).encode()), Cap::decode(wide));
    assert_eq!(Cc::decode(Cc::decode(word).encode()), Cc::decode(word));
    assert_eq!(Csts::decode(Csts::decode(word).encode()), Csts::decode(word));
    assert_eq!(Crto::decode(Crto::decode(word).encode()), Crto::decode(word));
    let queues = NumberOfQueues::decode(word);
    assert_eq!(NumberOfQueues::decode(queues.encode()), queues);
    let event = AsyncEvent::decode(word);
    assert_eq!(AsyncEvent::decode(event.encode()), event);
}

/// One byte that chooses the decoders, then their bytes.
pub fn wire(input: &[u8]) {
    let Some((select, bytes)) = input.split_first() else { return };
    match select & 7 {
        0 | 1 => command(bytes),
        2..=4 => pdu(*select, bytes),
        5 => identifies(bytes),
        6 => logs(bytes),
        _ => rest(bytes),
    }
}
