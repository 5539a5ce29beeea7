//! Hostile bytes, case by case: each gets its terminate request or its status, changes nothing, and
//! leaves the target well.

use super::rig::*;
use crate::target::*;
use crate::tcp::{HANDSHAKE_DEADLINE, Handshake, HandshakeError, Progress};
use forebay_wire::fabrics::fctype;
use forebay_wire::sqe::{Fuse, GetLogPage, ReadWrite, Sgl, admin, nvm};
use forebay_wire::tcp::{DataPdu, Digests, Direction, Fatal, Fes, IcReq};
use forebay_wire::tcp::{put_capsule_cmd, put_h2c_data, put_term_req};
use forebay_wire::{Sqe, Status};
use proptest::prelude::*;

const NONE: Digests = Digests { header: false, data: false };
const BOTH: Digests = Digests { header: true, data: true };

fn host_with(digests: Digests) -> (Rig, Host, Queue) {
    let mut rig = Rig::new();
    let host = Host::connect(&mut rig, Opening { digests, ..Opening::admin(HOST_A) });
    let queue = host.queue(&mut rig, 1);
    (rig, host, queue)
}

/// The bytes end the connection with this terminate request, whole or byte by byte, and nothing
/// else: another queue goes on.
fn fatal(digests: Digests, bytes: &[u8], expected: Fatal) {
    for chunk in [usize::MAX, 1] {
        let (mut rig, host, mut queue) = host_with(digests);
        rig.chunk = chunk;
        let mut other = host.queue(&mut rig, 2);
        rig.feed(queue.conn, bytes);
        assert_eq!(queue.receive(&mut rig), Some(FromTarget::Term(expected)));
        assert_eq!(rig.closed, [queue.conn]);
        assert!(!rig.target.wants_read(queue.conn));
        // Whatever follows is ignored.
        rig.feed(queue.conn, &queue.capsule(&Sqe::new(nvm::FLUSH, 1, 1), &[]));
        assert_eq!((queue.receive(&mut rig), rig.volumes.seen), (None, 0));
        rig.close_told();
        assert!(other.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status.is_success());
        assert_eq!(rig.target.stats().protocol_errors, 1);
    }
}

fn write_capsule(digests: Digests, len: u32) -> Vec<u8> {
    let sqe = ReadWrite { slba: 0, blocks: len / 512, ..ReadWrite::default() }
        .encode(Sqe::new(nvm::WRITE, 5, 1))
        .with_sgl(Sgl::InCapsule { offset: 0, len });
    let mut out = Vec::new();
    put_capsule_cmd(&mut out, &sqe, len, digests, 0);
    out.resize(out.len() + usize::try_from(len).unwrap() + digests.data_len(), 7);
    out
}

fn changed(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn wrong_hlen() {
    fatal(NONE, &changed(write_capsule(NONE, 512), 2, &[71]), Fatal::field(2));
}

#[test]
fn wrong_pdo() {
    fatal(NONE, &changed(write_capsule(NONE, 512), 3, &[80]), Fatal::field(3));
    fatal(NONE, &changed(write_capsule(NONE, 512), 3, &[0]), Fatal::field(3));
}

#[test]
fn wrong_plen() {
    for plen in [0u32, 71, u32::MAX, 72 + 8193] {
        let bytes = changed(write_capsule(NONE, 512), 4, &plen.to_le_bytes());
        fatal(NONE, &bytes, Fatal::field(4));
    }
}

#[test]
fn plen_underflow_after_digests() {
    for plen in [72u32, 75, 77, 79, 80] {
        let bytes = changed(write_capsule(BOTH, 512), 4, &plen.to_le_bytes());
        fatal(BOTH, &bytes, Fatal::field(4));
    }
}

#[test]
fn unknown_or_misdirected_pdu_types() {
    for kind in [0x01, 0x03, 0x05, 0x07, 0x08, 0x09, 0x0a, 0xff] {
        fatal(NONE, &changed(write_capsule(NONE, 512), 0, &[kind]), Fatal::field(0));
    }
}

#[test]
fn digest_flags_that_were_not_agreed() {
    fatal(NONE, &changed(write_capsule(NONE, 512), 1, &[1]), Fatal::field(1));
    fatal(NONE, &changed(write_capsule(NONE, 512), 1, &[2]), Fatal::field(1));
    fatal(BOTH, &changed(write_capsule(BOTH, 512), 1, &[2]), Fatal::field(1));
    fatal(BOTH, &changed(write_capsule(BOTH, 512), 1, &[1]), Fatal::field(1));
}

#[test]
fn wrong_header_digest() {
    let bytes = changed(write_capsule(BOTH, 512), 72, &[1, 2, 3, 4]);
    fatal(BOTH, &bytes, Fatal { fes: Fes::HeaderDigest, fei: 0x0403_0201 });
}

#[test]
fn late_icreq() {
    fatal(NONE, &IcReq::default().encode(), Fatal::sequence());
}

#[test]
fn second_icreq() {
    let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
    handshake.handle_bytes(&IcReq::default().encode());
    let Progress::Failed(error) = handshake.handle_bytes(&IcReq::default().encode()) else {
        panic!()
    };
    assert_eq!(error, HandshakeError::Protocol(Fatal::sequence()));
    assert_eq!(handshake.output()[128..130], [3, 0]);
    assert!(matches!(handshake.handle_bytes(&[0; 500]), Progress::More));
}

#[test]
fn h2cdata_before_connect() {
    for after_icreq in [false, true] {
        let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
        if after_icreq {
            handshake.handle_bytes(&IcReq::default().encode());
        }
        let mut bytes = Vec::new();
        let pdu = DataPdu { cid: 1, ttag: 1, offset: 0, len: 512 };
        put_h2c_data(&mut bytes, &pdu, true, NONE, 0);
        let Progress::Failed(error) = handshake.handle_bytes(&bytes) else { panic!() };
        assert_eq!(error, HandshakeError::Protocol(Fatal::sequence()));
    }
}

#[test]
fn capsule_before_icreq_and_oversize_connect() {
    let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
    let progress = handshake.handle_bytes(&write_capsule(NONE, 512));
    assert!(
        matches!(progress, Progress::Failed(HandshakeError::Protocol(f)) if f == Fatal::sequence())
    );
    let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
    handshake.handle_bytes(&IcReq::default().encode());
    let progress = handshake.handle_bytes(&write_capsule(NONE, 1536));
    assert!(
        matches!(progress, Progress::Failed(HandshakeError::Protocol(f)) if f == Fatal::field(4))
    );
}

#[test]
fn non_nul_nqn() {
    for (at, result) in [(256usize, 0x1_0100u64), (512, 0x1_0200)] {
        let (icreq, mut connect) = Opening::admin(HOST_A).bytes();
        connect[72 + at..72 + at + 256].fill(b'n');
        let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
        handshake.handle_bytes(&icreq);
        let Progress::Failed(error) = handshake.handle_bytes(&connect) else { panic!() };
        let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
        assert_eq!(error, HandshakeError::Refused(status));
        let raw: [u8; 16] = handshake.output()[128 + 8..].try_into().unwrap();
        assert_eq!(forebay_wire::Cqe::decode(&raw).result, result);
    }
}

fn h2c(pdu: &DataPdu, last: bool) -> Vec<u8> {
    let mut out = Vec::new();
    put_h2c_data(&mut out, pdu, last, NONE, 0);
    out.resize(out.len() + usize::try_from(pdu.len).unwrap(), 1);
    out
}

#[test]
fn h2cdata_before_r2t() {
    for ttag in [0u16, 1, 2, 128, 0x801, 0xffff] {
        let pdu = DataPdu { cid: 1, ttag, offset: 0, len: 512 };
        fatal(NONE, &h2c(&pdu, true), Fatal::field(10));
    }
}

/// A write of 16 KiB has its R2T; what then breaks it.
fn after_r2t(change: impl Fn(&mut DataPdu), last: bool, expected: Fatal) {
    let (mut rig, _host, mut queue) = host_with(NONE);
    let write = ReadWrite { slba: 0, blocks: 4, ..ReadWrite::default() };
    queue.send(&mut rig, write.encode(Sqe::new(nvm::WRITE, 0, 2)), 16_384);
    let Some(FromTarget::R2t(mut pdu)) = queue.receive(&mut rig) else { panic!() };
    pdu.len = 4096;
    let good = h2c(&pdu, false);
    rig.feed(queue.conn, &good);
    pdu.offset = 4096;
    change(&mut pdu);
    rig.feed(queue.conn, &h2c(&pdu, last));
    assert_eq!(queue.receive(&mut rig), Some(FromTarget::Term(expected)));
    rig.close_told();
    assert_eq!((rig.volumes.seen, rig.target.outstanding()), (0, 0));
}

#[test]
fn ttag_zero_out_of_range_or_stale() {
    for ttag in [0u16, 2, 129, 0xffff] {
        after_r2t(|pdu| pdu.ttag = ttag, false, Fatal::field(10));
    }
    after_r2t(|pdu| pdu.ttag |= 0x0800, false, Fatal::field(10));
    // The tag of a command that has ended.
    let (mut rig, _host, mut queue) = host_with(NONE);
    let write = ReadWrite { slba: 0, blocks: 4, ..ReadWrite::default() };
    let cid = queue.send(&mut rig, write.encode(Sqe::new(nvm::WRITE, 0, 2)), 16_384);
    let Some(FromTarget::R2t(pdu)) = queue.receive(&mut rig) else { panic!() };
    let data = pattern(16_384, 0);
    rig.feed(queue.conn, &queue.answer(&pdu, &data, 16_384));
    assert!(queue.finish(&mut rig, cid, &[]).cqe.status.is_success());
    rig.feed(queue.conn, &queue.answer(&pdu, &data, 16_384));
    assert_eq!(queue.receive(&mut rig), Some(FromTarget::Term(Fatal::field(10))));
    // The slot lives again, under a new generation.
    let (mut rig, _host, mut queue) = host_with(NONE);
    let mut tags = Vec::new();
    for _ in 0..2 {
        let sqe = write.encode(Sqe::new(nvm::WRITE, 0, 2));
        let cid = queue.send(&mut rig, sqe, 16_384);
        let Some(FromTarget::R2t(pdu)) = queue.receive(&mut rig) else { panic!() };
        tags.push(pdu.ttag);
        rig.feed(queue.conn, &queue.answer(&pdu, &data, 16_384));
        queue.finish(&mut rig, cid, &[]);
    }
    assert_ne!(tags[0], tags[1]);
}

#[test]
fn cccid_mismatch() {
    after_r2t(|pdu| pdu.cid ^= 1, false, Fatal::field(8));
}

#[test]
fn u32_offset_plus_length_wrap() {
    after_r2t(|pdu| pdu.offset = u32::MAX - 100, false, Fatal::out_of_range());
}

#[test]
fn data_out_of_order_repeated_or_beyond_the_end() {
    after_r2t(|pdu| pdu.offset = 0, false, Fatal::out_of_range());
    after_r2t(|pdu| pdu.offset = 8192, false, Fatal::out_of_range());
    after_r2t(|pdu| pdu.len = 12_289, true, Fatal::out_of_range());
}

#[test]
fn last_flag_before_the_end() {
    after_r2t(|_| {}, true, Fatal::field(1));
}

#[test]
fn datal_that_is_not_the_data() {
    let pdu = DataPdu { cid: 1, ttag: 1, offset: 0, len: 512 };
    let (mut rig, _host, mut queue) = host_with(NONE);
    let write = ReadWrite { slba: 0, blocks: 4, ..ReadWrite::default() };
    let cid = queue.send(&mut rig, write.encode(Sqe::new(nvm::WRITE, 0, 2)), 16_384);
    let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
    let lie = changed(h2c(&DataPdu { cid, ttag: r2t.ttag, ..pdu }, false), 16, &[0, 4, 0, 0]);
    rig.feed(queue.conn, &lie);
    assert_eq!(queue.receive(&mut rig), Some(FromTarget::Term(Fatal::field(16))));
}

#[test]
fn h2cdata_larger_than_maxh2cdata_or_empty() {
    let mut pdu = DataPdu { cid: 1, ttag: 1, offset: 0, len: (128 << 10) + 1 };
    fatal(NONE, &h2c(&pdu, true)[..24], Fatal::field(4));
    pdu.len = 0;
    fatal(NONE, &h2c(&pdu, true), Fatal::field(4));
}

#[test]
fn oversize_in_capsule_data() {
    fatal(NONE, &write_capsule(NONE, 8192 + 512), Fatal::field(4));
}

#[test]
fn log_offset_and_numd_wrap() {
    let (mut rig, mut host, _queue) = host_with(NONE);
    let get = |len: u64, offset| {
        let get = GetLogPage { lid: 0x02, len, offset, ..GetLogPage::default() };
        get.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0xffff_ffff))
    };
    for (len, offset) in [
        (1 << 34, 0),
        ((128 << 10) + 4, 0),
        (512, u64::MAX - 3),
        (512, 516),
        (512, 2),
        (4, u64::MAX - 511),
    ] {
        let reply = host.admin.read(&mut rig, get(len, offset), 512);
        assert_eq!(reply.cqe.status, Status::INVALID_FIELD.dnr(), "{len} at {offset}");
    }
    let reply = host.admin.read(&mut rig, get(1024, 0), 512);
    assert_eq!(reply.cqe.status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    assert_eq!(host.admin.read(&mut rig, get(4, 508), 4).data, [0; 4]);
    assert!(host.admin.read(&mut rig, get(4, 512), 4).cqe.status.is_success());
}

#[test]
fn fused_half() {
    let (mut rig, _host, mut queue) = host_with(NONE);
    let rw = ReadWrite { slba: 0, blocks: 1, ..ReadWrite::default() };
    let second = rw.encode(Sqe::new(nvm::WRITE, 0, 1)).with_fuse(Fuse::Second);
    let reply = queue.write(&mut rig, second, &[0; 512]);
    assert_eq!(reply.cqe.status, Status::FUSED_MISSING.dnr());
    let reserved = rw.encode(Sqe::new(nvm::WRITE, 0, 1)).with_fuse(Fuse::Reserved);
    let reply = queue.write(&mut rig, reserved, &[0; 512]);
    assert_eq!(reply.cqe.status, Status::INVALID_FIELD.dnr());
    assert_eq!(rig.volumes.seen, 0);
}

#[test]
fn authentication_is_not_offered_whatever_lengths_it_states() {
    let (mut rig, mut host, mut queue) = host_with(NONE);
    for kind in [fctype::AUTH_SEND, fctype::AUTH_RECEIVE] {
        let sqe = Sqe::new(admin::FABRICS, 0, kind.into()).with_cdw(11, u32::MAX);
        let status = host.admin.read(&mut rig, sqe, u32::MAX).cqe.status;
        assert_eq!(status, Status::INVALID_OPCODE.dnr());
        let status = queue.read(&mut rig, sqe, u32::MAX).cqe.status;
        assert_eq!(status, Status::COMMAND_SEQUENCE.dnr());
    }
}

#[test]
fn a_hosts_terminate_request_closes_without_an_answer() {
    let (mut rig, _host, mut queue) = host_with(NONE);
    let mut bytes = Vec::new();
    put_term_req(&mut bytes, Direction::ToController, Fatal::sequence(), &[0; 64]);
    rig.feed(queue.conn, &bytes);
    assert_eq!((queue.receive(&mut rig), rig.closed.len()), (None, 1));
}

/// A host that disregards flow control: more commands than entries, or requests for answers that
/// it never reads. The target's memory stays bounded.
#[test]
fn commands_beyond_the_queue() {
    let (mut rig, _host, mut queue) = host_with(NONE);
    rig.auto = false;
    for _ in 0..128 {
        queue.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    }
    assert!(rig.closed.is_empty());
    let cid = queue.cid();
    let one_more = queue.capsule(&Sqe::new(nvm::FLUSH, cid, 1), &[]);
    rig.feed(queue.conn, &one_more);
    assert_eq!(queue.receive(&mut rig), Some(FromTarget::Term(Fatal::sequence())));
    rig.run_all();
    rig.close_told();
    assert_eq!(rig.target.outstanding(), 0);

    let (mut rig, mut host, _queue) = host_with(NONE);
    let cid = host.admin.cid();
    let get = GetLogPage { lid: 0x05, len: 128 << 10, ..GetLogPage::default() };
    let sqe = get.encode(Sqe::new(admin::GET_LOG_PAGE, cid, 0));
    let sqe = sqe.with_sgl(Sgl::Transport { len: 128 << 10 });
    let bytes = host.admin.capsule(&sqe, &[]).repeat(10_000);
    rig.feed(host.admin.conn, &bytes);
    assert!(rig.target.tx(host.admin.conn).unwrap().len() < 20 << 20);
    assert_eq!(rig.target.stats().protocol_errors, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Noise after valid framing: every command and field, on both queues, never panics, and every
    /// request that reaches a volume lies inside it.
    #[test]
    fn any_commands_are_answered_or_end_the_connection(
        raws in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 64), 0usize..64, any::<bool>(), 0u8..32), 1..40
        ),
        chunk in 1usize..400,
    ) {
        let (mut rig, mut host, mut queue) = host_with(NONE);
        rig.auto = false;
        rig.chunk = chunk;
        for (raw, data, on_admin, opcode) in raws {
            let mut sqe: [u8; 64] = raw.try_into().unwrap();
            // Likely opcodes, namespaces, addresses and descriptors, so that checks are passed.
            sqe[0] = if opcode == 31 { 0x7f } else { opcode };
            sqe[1] = 0x40 | ((sqe[1] & 3) * u8::from(sqe[1] > 200));
            sqe[4] &= 7;
            if opcode != 31 { sqe[5..8].fill(0); }
            sqe[39] = if sqe[39] & 1 == 0 { 0x5a } else { 0x01 };
            sqe[34..36].fill(0);
            sqe[42..48].fill(0);
            sqe[49] &= 1;
            let to = if on_admin { &mut host.admin } else { &mut queue };
            let bytes = to.capsule(&Sqe::from_bytes(&sqe), &vec![1; data * 16]);
            rig.feed(to.conn, &bytes);
        }
        for seen in &rig.volumes.pending {
            prop_assert!(seen.request.lba.0 + u64::from(seen.request.blocks) <= BLOCKS);
        }
        rig.run_all();
        prop_assert_eq!(rig.target.outstanding(), 0);
        rig.target.conn_closed(host.admin.conn, rig.now);
        rig.drain_events();
        rig.close_told();
        rig.target.conn_closed(queue.conn, rig.now);
        prop_assert_eq!(rig.target.controllers().count(), 0);
    }

    /// Noise without framing.
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), kind in 0u8..10) {
        let (mut rig, _host, queue) = host_with(NONE);
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() { *first = kind; }
        rig.feed(queue.conn, &bytes);
        rig.target.conn_closed(queue.conn, rig.now);
    }
}
