//! Controllers that break the rules: the association ends with the right words, nothing panics.

use super::*;
use forebay_wire::tcp::{
    DataPdu, Fatal, IcResp, PduKind, put_c2h_data, put_capsule_resp, put_r2t, put_term_req,
};
use forebay_wire::{Cqe, tcp::Direction};
use proptest::prelude::*;

/// An association with one read (of 4096 bytes) or one large write in flight, whose command
/// identifier is known: the first slot, used once before for Connect.
fn in_flight(write: bool, digests: Digests) -> (Bench, u16) {
    let script = Script { careless: true, ..Script::default() };
    let mut bench = Bench::new(script, host(1, digests, true));
    bench.settle();
    let op = if write {
        Op::write(77, 0, 65_536, pattern(65_536, 1))
    } else {
        Op::read(77, 0, 4096, pattern(4096, 0))
    };
    bench.remote.submit(op, bench.now).unwrap();
    let bytes = sent(&mut bench.remote, 1, usize::MAX);
    let cid = u16::from_le_bytes([bytes[10], bytes[11]]);
    (bench, cid)
}

/// What the association ended with, and the status of the terminate request that was sent.
fn verdict(bytes: &[u8], write: bool, digests: Digests) -> (Option<Error>, Vec<Fatal>) {
    let (mut bench, _) = in_flight(write, digests);
    bench.reachable = false;
    bench.remote.handle_bytes(1, bytes, bench.now);
    let done = bench.settle();
    let error = bench.remote.last_error().cloned();
    if error.is_some() {
        assert_eq!((done.len(), done[0].result), (1, Err(DeviceError::Gone)));
    }
    let farewells = bench.script.farewells.borrow().clone();
    (error, farewells)
}

fn expect(fes: Fes, what: &str, write: bool, digests: Digests, bytes: &[u8]) {
    let (error, farewells) = verdict(bytes, write, digests);
    let Some(Error::Protocol(fatal)) = error else { panic!("{what}: {error:?}") };
    assert_eq!(fatal.fes, fes, "{what}");
    assert_eq!(farewells, [fatal], "{what}");
}

fn c2h(cid: u16, offset: u32, len: u32, last: bool, success: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pdu = DataPdu { cid, ttag: 0, offset, len };
    put_c2h_data(&mut bytes, &pdu, last, success, Digests::default(), 0);
    bytes.resize(bytes.len() + len as usize, 0x5a);
    bytes
}

fn r2t(cid: u16, offset: u32, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_r2t(&mut bytes, &DataPdu { cid, ttag: 1, offset, len }, Digests::default());
    bytes
}

#[test]
fn data_and_r2t_outside_of_what_was_asked_for() {
    let none = Digests::default();
    let (_, cid) = in_flight(false, none);
    let field = Fes::InvalidHeaderField;
    expect(Fes::OutOfRange, "beyond the end", false, none, &c2h(cid, 0, 4100, true, false));
    expect(Fes::OutOfRange, "a gap", false, none, &c2h(cid, 512, 512, false, false));
    expect(Fes::OutOfRange, "wrapping", false, none, &c2h(cid, u32::MAX - 3, 512, false, false));
    let twice = [c2h(cid, 0, 512, false, false), c2h(cid, 0, 512, false, false)].concat();
    expect(Fes::OutOfRange, "the same again", false, none, &twice);
    expect(field, "an unknown command", false, none, &c2h(cid ^ 1, 0, 512, false, false));
    expect(field, "an old command", false, none, &c2h(cid ^ 0x400, 0, 512, false, false));
    let mut lie = c2h(cid, 0, 512, false, false);
    lie[16] = 0;
    lie[17] = 1;
    expect(field, "DATAL is not PLEN", false, none, &lie);
    let mut success = c2h(cid, 0, 512, true, true);
    success[1] &= !4;
    expect(field, "SUCCESS without LAST", false, none, &success);
    expect(Fes::OutOfRange, "R2T for a read", false, none, &r2t(cid, 0, 512));
    let (_, cid) = in_flight(true, none);
    expect(Fes::OutOfRange, "data for a write", true, none, &c2h(cid, 0, 512, true, false));
    expect(Fes::OutOfRange, "R2T beyond", true, none, &r2t(cid, 0, 65_540));
    expect(Fes::OutOfRange, "R2T of nothing", true, none, &r2t(cid, 0, 0));
    expect(Fes::OutOfRange, "R2T with a gap", true, none, &r2t(cid, 4, 512));
    expect(Fes::OutOfRange, "R2T wraps", true, none, &r2t(cid, u32::MAX, 512));
    expect(field, "R2T, unknown command", true, none, &r2t(cid ^ 2, 0, 512));
    let again = [r2t(cid, 0, 65_536), r2t(cid, 0, 4)].concat();
    expect(Fes::OutOfRange, "R2T for what was asked for", true, none, &again);
}

#[test]
fn headers_that_are_wrong() {
    let none = Digests::default();
    let mut capsule = Vec::new();
    put_capsule_resp(&mut capsule, &Cqe { cid: 5, ..Cqe::default() }, none);
    let field = Fes::InvalidHeaderField;
    expect(field, "unknown command", false, none, &capsule);
    for (at, what) in [(0, "type"), (1, "flags"), (2, "HLEN"), (4, "PLEN"), (7, "PLEN high")] {
        let mut bad = capsule.clone();
        bad[at] ^= if at == 1 { 1 } else { 0x40 };
        expect(field, what, false, none, &bad);
    }
    let icresp = IcResp { cpda: 0, digests: none, maxh2cdata: 4096 }.encode();
    expect(Fes::Sequence, "a second ICResp", false, none, &icresp);
    let both = Digests { header: true, data: true };
    let mut signed = Vec::new();
    put_capsule_resp(&mut signed, &Cqe::default(), both);
    signed[9] ^= 1;
    expect(Fes::HeaderDigest, "header digest", false, both, &signed);
    let mut term = Vec::new();
    put_term_req(&mut term, Direction::ToHost, Fatal::out_of_range(), &[1, 2, 3]);
    let (error, farewells) = verdict(&term, false, none);
    assert_eq!(error, Some(Error::Terminated(Fatal::out_of_range())));
    assert!(farewells.is_empty(), "a terminate request is not answered");
    assert_eq!(PduKind::C2hTermReq.byte(), term[0]);
}

#[test]
fn answers_before_the_connection_is_initialized() {
    let mut qpair = Qpair::<HeapBuf>::new(super::super::qpair::QpairConfig {
        depth: 4,
        digests: Digests::default(),
    });
    let mut capsule = Vec::new();
    put_capsule_resp(&mut capsule, &Cqe::default(), Digests::default());
    assert_eq!(qpair.handle_bytes(&capsule), Err(Error::Protocol(Fatal::sequence())));
    assert_eq!(qpair.handle_bytes(&capsule), Err(Error::Closed));
    // Digests that nobody asked for, and a MAXH2CDATA below the least.
    for (digests, maxh2cdata) in
        [(Digests { header: true, data: false }, 4096), (Digests::default(), 4092)]
    {
        let config = super::super::qpair::QpairConfig { depth: 4, digests: Digests::default() };
        let mut qpair = Qpair::<HeapBuf>::new(config);
        let answer = IcResp { cpda: 0, digests, maxh2cdata }.encode();
        assert!(qpair.handle_bytes(&answer).is_err() && !qpair.is_open());
    }
}

#[test]
fn a_short_success_is_an_error() {
    let (mut bench, cid) = in_flight(false, Digests::default());
    bench.remote.handle_bytes(1, &c2h(cid, 0, 512, true, true), bench.now);
    let done = bench.settle();
    assert_eq!(done[0].result, Err(DeviceError::Io(0)));
    assert_eq!(bench.remote.associations(), 1);
    let (mut bench, cid) = in_flight(true, Digests::default());
    let mut capsule = Vec::new();
    put_capsule_resp(&mut capsule, &Cqe { cid, ..Cqe::default() }, Digests::default());
    bench.remote.handle_bytes(1, &capsule, bench.now);
    assert_eq!(bench.settle()[0].result, Err(DeviceError::Io(0)), "it never took the data");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_at_any_time_do_no_harm(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        kind in prop::sample::select(vec![1u8, 3, 5, 7, 9]),
        write: bool, fix_header: bool, cut in 1usize..64, queue in 0u16..2
    ) {
        let (mut bench, cid) = in_flight(write, Digests::default());
        let mut noise = noise;
        if fix_header && noise.len() >= 24 {
            // Let it pass the first look, so that the deeper ones are reached.
            let len = u32::try_from(noise.len()).unwrap();
            noise[0] = kind;
            noise[1] &= 0x0c;
            noise[2] = if kind == 1 { 128 } else { 24 };
            noise[3] = 24;
            let plen = if kind == 7 || kind == 3 { len } else { u32::from(noise[2]) };
            noise[4..8].copy_from_slice(&plen.to_le_bytes());
            noise[8..10].copy_from_slice(&cid.to_le_bytes());
            noise[20..22].copy_from_slice(&cid.to_le_bytes());
        }
        bench.reachable = false;
        for part in noise.chunks(cut) {
            bench.remote.handle_bytes(queue, part, bench.now);
        }
        let mut done = bench.settle();
        let failed = bench.remote.last_error().is_some();
        // A status that asks for a retry makes it wait for an association that does not come.
        done.append(&mut bench.pass(Duration::from_millis(3100)));
        prop_assert!(done.len() <= 1);
        if failed {
            prop_assert_eq!(done.len(), 1, "nothing is forgotten");
            prop_assert_eq!(bench.remote.in_flight(), 0);
        }
    }
}
