use super::*;
use crate::sqe::Sqe;
use crate::{Cqe, Status};
use proptest::prelude::*;

const NONE: Digests = Digests { header: false, data: false };
const BOTH: Digests = Digests { header: true, data: true };

fn parse(raw: &[u8], direction: Direction, digests: Digests) -> Result<Frame, Fatal> {
    let mut common = [0; 8];
    common.copy_from_slice(&raw[..8]);
    Frame::parse(&common, direction, digests, 0, 8192)
}

#[test]
fn tcp_1_0_3_6_2_2_icreq_as_linux_sends_it() {
    let request = IcReq { hpda: 0, digests: BOTH, maxr2t: 0 };
    let raw = request.encode();
    assert_eq!(raw[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
    assert!(raw[16..].iter().all(|b| *b == 0));
    assert_eq!(IcReq::decode(&raw), Ok(request));
    let frame = parse(&raw, Direction::ToController, NONE).unwrap();
    assert_eq!((frame.total, frame.header_len()), (128, 128));
    for (at, value, fatal) in [
        (0, 1, Fatal::field(0)),
        (2, 127, Fatal::field(2)),
        (4, 127, Fatal::field(4)),
        (8, 1, Fatal { fes: Fes::UnsupportedParameter, fei: 8 }),
        (10, 32, Fatal { fes: Fes::UnsupportedParameter, fei: 10 }),
    ] {
        let mut bad = raw;
        bad[at] = value;
        assert_eq!(IcReq::decode(&bad), Err(fatal), "byte {at}");
    }
}

#[test]
fn tcp_1_0_3_6_2_3_icresp() {
    let response = IcResp { cpda: 0, digests: NONE, maxh2cdata: 0x0002_0000 };
    let raw = response.encode();
    assert_eq!(raw[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(IcResp::decode(&raw), Ok(response));
    let small = IcResp { maxh2cdata: 4095, ..response }.encode();
    assert_eq!(IcResp::decode(&small), Err(Fatal { fes: Fes::UnsupportedParameter, fei: 12 }));
}

#[test]
fn tcp_1_0_3_6_2_6_command_capsules() {
    let sqe = Sqe::new(1, 2, 3);
    let mut out = Vec::new();
    put_capsule_cmd(&mut out, &sqe, 0, NONE, 0);
    assert_eq!(out[..8], [4, 0, 72, 0, 72, 0, 0, 0]);
    assert_eq!(out.len(), 72);
    out.clear();
    put_capsule_cmd(&mut out, &sqe, 4096, NONE, 0);
    assert_eq!(out[..8], [4, 0, 72, 72, 0x48, 0x10, 0, 0]);
    let frame = parse(&out, Direction::ToController, NONE).unwrap();
    assert_eq!((frame.data_at, frame.data_len, frame.total), (72, 4096, 4168));
    out.clear();
    put_capsule_cmd(&mut out, &sqe, 4096, BOTH, 0);
    assert_eq!(out[..8], [4, 3, 72, 76, 0x50, 0x10, 0, 0]);
    assert_eq!(out.len(), 76);
    let frame = parse(&out, Direction::ToController, BOTH).unwrap();
    assert_eq!((frame.data_at, frame.data_len, frame.total), (76, 4096, 4176));
    assert_eq!(frame.check_header(&out), Ok(()));
    out[9] ^= 1;
    let received = u32::from_le_bytes([out[72], out[73], out[74], out[75]]);
    let fatal = Fatal { fes: Fes::HeaderDigest, fei: received };
    assert_eq!(frame.check_header(&out), Err(fatal));
    assert_eq!(frame.check_header(&out[..40]), Err(Fatal::field(2)));
}

#[test]
fn tcp_1_0_3_6_2_7_response_capsule() {
    let mut out = Vec::new();
    let cqe = Cqe { cid: 5, sqhd: 7, status: Status::SUCCESS, ..Cqe::default() };
    put_capsule_resp(&mut out, &cqe, NONE);
    let golden = [5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0];
    assert_eq!(out, golden);
    assert_eq!(parse(&out, Direction::ToHost, NONE).unwrap().total, 24);
    assert_eq!(parse(&out, Direction::ToController, NONE), Err(Fatal::field(0)));
}

#[test]
fn tcp_1_0_3_6_2_8_to_10_data_and_r2t() {
    let pdu = DataPdu { cid: 0x0102, ttag: 0x0304, offset: 0x1000, len: 0x2000 };
    let mut out = Vec::new();
    put_h2c_data(&mut out, &pdu, true, NONE, 0);
    let golden =
        [6, 4, 24, 24, 0x18, 0x20, 0, 0, 2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0];
    assert_eq!(out, golden);
    out.clear();
    put_c2h_data(&mut out, &DataPdu { ttag: 0, ..pdu }, true, true, BOTH, 0);
    assert_eq!(out[..12], [7, 0x0f, 24, 28, 0x20, 0x20, 0, 0, 2, 1, 0, 0]);
    assert_eq!(out.len(), 28);
    out.clear();
    put_c2h_data(&mut out, &pdu, false, true, NONE, 31);
    assert_eq!((out[1], out[3], out.len()), (0, 128, 128));
    out.clear();
    put_r2t(&mut out, &pdu, NONE);
    assert_eq!(out[..8], [9, 0, 24, 0, 24, 0, 0, 0]);
    assert_eq!(out[8..], golden[8..]);
    let mut raw = [0; 24];
    raw.copy_from_slice(&out);
    assert_eq!(DataPdu::decode(&raw), pdu);
}

#[test]
fn tcp_1_0_3_6_2_5_terminate_request() {
    let mut out = Vec::new();
    put_term_req(&mut out, Direction::ToHost, Fatal::field(3), &[0xee; 200]);
    assert_eq!(out.len(), 152);
    assert_eq!(out[..14], [3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 3, 0, 0, 0]);
    let frame = parse(&out, Direction::ToHost, BOTH).unwrap();
    assert_eq!((frame.total, frame.data_len), (152, 128));
    let mut raw = [0; 24];
    raw.copy_from_slice(&out[..24]);
    assert_eq!(TermReq::decode(&raw).fatal, Fatal::field(3));
    out[4] = 153;
    assert_eq!(parse(&out, Direction::ToHost, BOTH), Err(Fatal::field(4)));
    out[4] = 23;
    assert_eq!(parse(&out, Direction::ToHost, BOTH), Err(Fatal::field(4)));
    for value in 0..9 {
        assert_eq!(Fes::decode(value).encode(), value);
    }
}

/// Security checklist: wrong HLEN, PDO, PLEN; PLEN too small once digests are taken off.
#[test]
fn wrong_lengths_are_refused_with_the_field() {
    let head = |digests, data_len| {
        let mut out = Vec::new();
        put_capsule_cmd(&mut out, &Sqe::new(1, 2, 3), data_len, digests, 0);
        out
    };
    let to = Direction::ToController;
    for (at, value, fatal) in [(0, 8, 0), (0, 0xff, 0), (1, 1, 1), (2, 71, 2), (3, 73, 3)] {
        let mut bad = head(NONE, 512);
        bad[at] = value;
        assert_eq!(parse(&bad, to, NONE), Err(Fatal::field(fatal)), "byte {at}");
    }
    for plen in [0u32, 71, 75, 77, 78, 80, 76 + 4 + 8193, u32::MAX] {
        let mut bad = head(BOTH, 512);
        bad[4..8].copy_from_slice(&plen.to_le_bytes());
        assert_eq!(parse(&bad, to, BOTH), Err(Fatal::field(4)), "PLEN {plen}");
    }
    for plen in [76u32, 81, 76 + 4 + 8192] {
        let mut good = head(BOTH, 512);
        good[4..8].copy_from_slice(&plen.to_le_bytes());
        assert!(parse(&good, to, BOTH).is_ok(), "PLEN {plen}");
    }
    assert_eq!(parse(&head(BOTH, 512), to, NONE), Err(Fatal::field(1)));
    assert_eq!(parse(&head(NONE, 512), to, BOTH), Err(Fatal::field(1)));
    let header_only = Digests { header: true, data: false };
    assert_eq!(parse(&head(header_only, 512), to, BOTH), Err(Fatal::field(1)));
    let mut no_data = Vec::new();
    put_h2c_data(&mut no_data, &DataPdu::default(), true, NONE, 0);
    assert_eq!(parse(&no_data, to, NONE), Err(Fatal::field(4)));
}

#[test]
fn tcp_1_0_3_3_1_1_digest_is_rfc_3720_crc32c_little_endian() {
    assert_eq!(header_digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    let mut digest = Digest::default();
    digest.update(b"1234");
    digest.update(b"");
    digest.update(b"56789");
    assert_eq!(digest.finish(), data_digest(b"123456789"));
    assert_eq!(digest.finish(), 0xe306_9283u32.to_le_bytes());
}

proptest! {
    #[test]
    fn any_common_header_is_judged_and_an_accepted_one_is_consistent(
        raw: [u8; 8], header: bool, data: bool, pda in 0u8..32, max: u32, host: bool
    ) {
        let digests = Digests { header, data };
        let direction = if host { Direction::ToHost } else { Direction::ToController };
        if let Ok(frame) = Frame::parse(&raw, direction, digests, pda, max) {
            let end = frame.data_at + frame.data_len + if frame.ddgst { 4 } else { 0 };
            prop_assert_eq!(end, frame.total);
            prop_assert!(frame.header_len() <= frame.data_at.max(frame.kind.hlen()));
            let term = matches!(frame.kind, PduKind::H2cTermReq | PduKind::C2hTermReq);
            prop_assert!(term || frame.data_len <= max as usize);
        }
    }

    #[test]
    fn split_data_has_the_same_digest(data: Vec<u8>, at: prop::sample::Index) {
        let at = if data.is_empty() { 0 } else { at.index(data.len()) };
        let mut digest = Digest::default();
        digest.update(&data[..at]);
        digest.update(&data[at..]);
        prop_assert_eq!(digest.finish(), data_digest(&data));
    }

    #[test]
    fn what_is_put_is_accepted(
        len in 1u32..8192, header: bool, data: bool, pda in 0u8..32, last: bool, success: bool
    ) {
        let digests = Digests { header, data };
        let pdu = DataPdu { cid: 1, ttag: 2, offset: 3, len };
        let mut out = Vec::new();
        put_c2h_data(&mut out, &pdu, last, success, digests, pda);
        let mut common = [0; 8];
        common.copy_from_slice(&out[..8]);
        let frame = Frame::parse(&common, Direction::ToHost, digests, pda, 8192).unwrap();
        prop_assert_eq!(frame.data_at, out.len());
        prop_assert_eq!(frame.data_len, len as usize);
        prop_assert_eq!(frame.check_header(&out), Ok(()));
        out.clear();
        put_capsule_cmd(&mut out, &Sqe::new(0, 0, 0), len, digests, pda);
        common.copy_from_slice(&out[..8]);
        let frame = Frame::parse(&common, Direction::ToController, digests, pda, 8192).unwrap();
        prop_assert_eq!((frame.data_at, frame.data_len), (out.len(), len as usize));
    }
}
