//! Handshake and Connect.

use super::rig::*;
use crate::target::*;
use crate::tcp::{HANDSHAKE_DEADLINE, Handshake, HandshakeError, Progress};
use forebay_io::Duration;
use forebay_wire::fabrics::{PropertySet, disconnect};
use forebay_wire::sqe::{Sgl, nvm};
use forebay_wire::tcp::{Digests, IcReq, put_capsule_cmd};
use forebay_wire::{Cqe, DISCOVERY_NQN, Sqe, Status};
use proptest::prelude::*;

fn refused(rig: &mut Rig, opening: &Opening) -> Cqe {
    let (queue, cqe) = opening.open(rig);
    let cqe = cqe.unwrap();
    assert!(!cqe.status.is_success());
    assert_eq!(rig.closed, [queue.conn], "closed once the refusal is sent");
    assert!(!rig.target.wants_read(queue.conn));
    rig.close_told();
    assert_eq!(rig.target.tx(queue.conn).map(|_| ()), None);
    cqe
}

#[test]
fn a_connect_with_a_wrong_parameter_names_it() {
    let mut rig = Rig::new();
    let good = Opening::admin(HOST_A);
    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let mut case = good.clone();
    case.data.subnqn = nqn("nqn.2026-01.io.forebay:other");
    let cqe = refused(&mut rig, &case);
    // Retried by hosts that reconnect: no DNR.
    assert_eq!((cqe.status, cqe.result), (invalid, 0x1_0100));
    let mut case = good.clone();
    case.data.hostnqn = nqn("nqn.2014-08.org.nvmexpress:uuid:c");
    assert_eq!(refused(&mut rig, &case).status, Status::CONNECT_INVALID_HOST.dnr());
    let mut case = good.clone();
    case.data.cntlid = 1;
    let cqe = refused(&mut rig, &case);
    assert_eq!((cqe.status, cqe.result), (invalid.dnr(), 0x1_0010));
    for sqsize in [0, 1024, 0xffff] {
        let mut case = good.clone();
        case.connect.sqsize = sqsize;
        let cqe = refused(&mut rig, &case);
        assert_eq!((cqe.status, cqe.result), (invalid.dnr(), 44));
    }
    assert_eq!(rig.target.stats().connects_refused, 6);
    assert_eq!(rig.target.controllers().count(), 0);
    Host::a(&mut rig);
}

#[test]
fn an_io_connect_must_fit_its_controller() {
    let mut rig = Rig::new();
    let (mut admin, cqe) = Opening::admin(HOST_A).open(&mut rig);
    let cntlid = u16::try_from(cqe.unwrap().result).unwrap();
    let good = Opening::admin(HOST_A).io(cntlid, 1);
    assert_eq!(refused(&mut rig, &good).status, Status::COMMAND_SEQUENCE.dnr(), "before CC.EN");
    admin.set_cc(&mut rig, CC_ENABLE);
    for (change, result) in [
        (Box::new(|o: &mut Opening| o.data.cntlid += 1) as Box<dyn Fn(&mut Opening)>, 0x1_0010),
        (Box::new(|o| o.data.hostnqn = nqn(HOST_B)), 0x1_0200),
        (Box::new(|o| o.data.hostid = [9; 16]), 0x1_0200),
        (Box::new(|o| o.connect.qid = 65), 42),
        (Box::new(|o| o.connect.sqsize = 0), 44),
        (Box::new(|o| o.data.subnqn = nqn(DISCOVERY_NQN)), 0x1_0010),
    ] {
        let mut case = good.clone();
        change(&mut case);
        let cqe = refused(&mut rig, &case);
        assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
        assert_eq!(cqe.result, result);
    }
    assert!(good.open(&mut rig).1.unwrap().status.is_success());
}

#[test]
fn controller_identifiers_are_unique_and_stay_in_their_range() {
    let limits = Limits { cntlids: 0x1000..=0x1002, ..Limits::default() };
    let mut rig = Rig::with(TargetConfig { limits, ..TargetConfig::default() });
    let mut live = Vec::new();
    for _ in 0..3 {
        live.push(Host::a(&mut rig));
    }
    let mut ids: Vec<u16> = live.iter().map(|host| host.cntlid).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0x1000, 0x1001, 0x1002]);
    assert_eq!(refused(&mut rig, &Opening::admin(HOST_A)).status, Status::CONNECT_BUSY);
    let gone = live.remove(1);
    rig.target.conn_closed(gone.admin.conn, rig.now);
    assert_eq!(Host::a(&mut rig).cntlid, gone.cntlid);
}

/// Some hosts connect a queue again before the end of the old one is noticed (ESXi).
#[test]
fn a_duplicate_qid_waits_for_the_old_queue() {
    let (mut rig, host, old) = host_and_queue();
    let (mut new, none) = host.opening.io(host.cntlid, 1).open(&mut rig);
    assert_eq!(none, None, "not answered yet");
    rig.target.conn_closed(old.conn, rig.now);
    assert!(
        matches!(new.receive(&mut rig), Some(FromTarget::Response(c)) if c.status.is_success())
    );
    assert!(new.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status.is_success());

    let (mut third, none) = host.opening.io(host.cntlid, 1).open(&mut rig);
    assert_eq!(none, None);
    rig.after(3 * SECOND);
    let Some(FromTarget::Response(cqe)) = third.receive(&mut rig) else { panic!() };
    assert_eq!(cqe.status, Status::CONNECT_BUSY, "may be tried again");
    assert_eq!(rig.closed, [third.conn]);
}

#[test]
fn a_queue_waits_while_the_old_ones_commands_drain() {
    let (mut rig, host, mut old) = host_and_queue();
    rig.auto = false;
    old.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    rig.target.conn_closed(old.conn, rig.now);
    let (mut new, none) = host.opening.io(host.cntlid, 1).open(&mut rig);
    assert_eq!(none, None);
    assert!(rig.run_one());
    assert!(
        matches!(new.receive(&mut rig), Some(FromTarget::Response(c)) if c.status.is_success())
    );
}

#[test]
fn a_host_identifier_under_another_name_is_refused_while_it_lives() {
    let mut rig = Rig::new();
    let host = Host::a(&mut rig);
    let mut other = Opening::admin(HOST_B);
    other.data.hostid = host.opening.data.hostid;
    assert_eq!(refused(&mut rig, &other).status, Status::CONNECT_INVALID_HOST.dnr());
    rig.target.conn_closed(host.admin.conn, rig.now);
    assert!(other.open(&mut rig).1.unwrap().status.is_success());
}

#[test]
fn disconnect_deletes_an_io_queue_only() {
    let (mut rig, mut host, mut queue) = host_and_queue();
    let status = host.admin.read(&mut rig, disconnect(0), 0).cqe.status;
    assert_eq!(status, Status::INVALID_FIELD.dnr());
    assert!(queue.read(&mut rig, disconnect(0), 0).cqe.status.is_success());
    assert_eq!(rig.closed, [queue.conn]);
    rig.close_told();
    let mut again = host.queue(&mut rig, 1);
    assert!(again.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status.is_success());
}

#[test]
fn disabling_drops_the_io_queues_and_enabling_starts_again() {
    let (mut rig, mut host, queue) = host_and_queue();
    assert!(host.admin.set_cc(&mut rig, CC_ENABLE & !1).cqe.status.is_success());
    assert_eq!(host.admin.property(&mut rig, 0x1c, false).cqe.result, 0);
    assert_eq!(rig.closed, [queue.conn]);
    rig.close_told();
    let status = host.admin.identify(&mut rig, 1, 0).cqe.status;
    assert_eq!(status, Status::COMMAND_SEQUENCE.dnr(), "before EN only fabrics");
    host.admin.set_cc(&mut rig, CC_ENABLE);
    let mut queue = host.queue(&mut rig, 1);
    assert!(queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status.is_success());
}

#[test]
fn shutdown_completes_and_a_wrong_configuration_is_fatal() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    host.admin.set_cc(&mut rig, CC_ENABLE | 1 << 14);
    assert_eq!(host.admin.property(&mut rig, 0x1c, false).cqe.result, 0b1001);
    for wrong in [0x0045_0001, 0x0046_0011, 0x0046_0081, 0x0046_0801] {
        let (mut queue, _) = Opening::admin(HOST_B).open(&mut rig);
        queue.set_cc(&mut rig, wrong);
        assert_eq!(queue.property(&mut rig, 0x1c, false).cqe.result, 2, "CC {wrong:#x}");
    }
    for (offset, wide) in [(0x14, true), (0x20, false), (0, false), (8, false)] {
        let set = PropertySet { wide, offset, value: 1 }.encode(0);
        let status = host.admin.read(&mut rig, set, 0).cqe.status;
        assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    }
    for (offset, wide) in [(0x00, false), (0x14, true), (0x10, false), (0xffff_fff0, true)] {
        let status = host.admin.property(&mut rig, offset, wide).cqe.status;
        assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr(), "offset {offset:#x}");
    }
}

#[test]
fn keep_alive_expires_and_traffic_counts() {
    let mut rig = Rig::new();
    let mut opening = Opening::admin(HOST_A);
    opening.connect.kato = 4500; // rounded up to 5 s
    let mut host = Host::connect(&mut rig, opening);
    let mut queue = host.queue(&mut rig, 1);
    for _ in 0..5 {
        rig.after(4 * SECOND);
        host.admin.read(&mut rig, Sqe::new(0x18, 0, 0), 0);
    }
    for _ in 0..5 {
        rig.after(4 * SECOND);
        queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    }
    rig.after(5 * SECOND - 1);
    assert!(rig.closed.is_empty());
    assert_eq!(rig.target.next_deadline(), Instant(rig.now.0 + 1));
    rig.after(1);
    rig.closed.sort_unstable();
    assert_eq!(rig.closed, [host.admin.conn, queue.conn]);
    rig.close_told();
    assert_eq!(rig.target.controllers().count(), 0);
    assert_eq!(rig.target.stats().keep_alive_expired, 1);
    assert!(rig.events.iter().any(|e| matches!(e, Event::KeepAliveExpired { .. })));
    assert!(rig.events.iter().any(|e| matches!(e, Event::Disconnected { .. })));
}

#[test]
fn the_handshake_has_a_deadline() {
    let handshake = Handshake::new(Instant(5), Duration::from_secs(10));
    assert_eq!(handshake.deadline(), Instant(5 + 10 * SECOND));
}

#[test]
fn a_first_command_other_than_connect_is_refused() {
    let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
    let mut bytes = IcReq::default().encode().to_vec();
    put_capsule_cmd(&mut bytes, &Sqe::new(6, 7, 0), 0, Digests::default(), 0);
    let Progress::Failed(error) = handshake.handle_bytes(&bytes) else { panic!() };
    assert_eq!(error, HandshakeError::Refused(Status::COMMAND_SEQUENCE.dnr()));
    let raw: [u8; 16] = handshake.output()[128 + 8..].try_into().unwrap();
    assert_eq!(Cqe::decode(&raw).cid, 7);
}

#[test]
fn connect_data_must_be_in_the_capsule_and_1024_bytes() {
    let opening = Opening::admin(HOST_A);
    for (sgl, len, status) in [
        (Sgl::Transport { len: 1024 }, 0, Status::SGL_TYPE_INVALID),
        (Sgl::InCapsule { offset: 0, len: 1023 }, 1023, Status::DATA_SGL_LENGTH_INVALID),
        (Sgl::InCapsule { offset: 0, len: 1024 }, 1000, Status::DATA_SGL_LENGTH_INVALID),
        (Sgl::InCapsule { offset: 4, len: 1024 }, 1024, Status::DATA_SGL_LENGTH_INVALID),
    ] {
        let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
        let mut bytes = IcReq::default().encode().to_vec();
        let sqe = opening.connect.encode(1).with_sgl(sgl);
        put_capsule_cmd(&mut bytes, &sqe, len, Digests::default(), 0);
        bytes.extend_from_slice(&opening.data.encode()[..usize::try_from(len).unwrap()]);
        let Progress::Failed(error) = handshake.handle_bytes(&bytes) else { panic!() };
        assert_eq!(error, HandshakeError::Refused(status.dnr()));
    }
}

proptest! {
    /// However the bytes of a handshake are cut, it ends the same, and what follows it is kept.
    #[test]
    fn a_handshake_split_anywhere_is_the_same(
        header: bool, data: bool, cuts in proptest::collection::vec(1usize..300, 1..30)
    ) {
        let opening = Opening { digests: Digests { header, data }, ..Opening::admin(HOST_A) };
        let (mut bytes, connect) = opening.bytes();
        bytes.extend(connect);
        let whole = bytes.len();
        bytes.extend_from_slice(&[0xab; 5]);
        let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
        let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
        let (established, consumed) = loop {
            let end = (at + cuts.next().unwrap()).min(bytes.len());
            let progress = handshake.handle_bytes(&bytes[at..end]);
            at = end;
            match progress {
                Progress::More => prop_assert!(at < bytes.len()),
                Progress::Established(established) => break (established, at),
                Progress::Failed(error) => panic!("{error}"),
            }
        };
        prop_assert_eq!(&established.data, &opening.data);
        prop_assert_eq!(established.connect, opening.connect);
        prop_assert_eq!(established.params.digests, opening.digests);
        prop_assert_eq!(established.unsent.len(), 128);
        prop_assert_eq!(established.leftover.len(), consumed - whole);
    }

    #[test]
    fn any_bytes_end_a_handshake_or_wait(bytes: Vec<u8>, after_icreq: bool) {
        let mut handshake = Handshake::new(Instant(0), HANDSHAKE_DEADLINE);
        if after_icreq {
            handshake.handle_bytes(&IcReq::default().encode());
        }
        for part in bytes.chunks(7) {
            if let Progress::Established(_) = handshake.handle_bytes(part) {
                prop_assert!(false, "established by noise");
            }
        }
        prop_assert!(handshake.output().len() <= 128 + 152);
    }
}
