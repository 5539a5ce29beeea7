//! Identify, log pages, features.

use super::rig::*;
use crate::target::*;
use forebay_wire::feature::{self, event_bit};
use forebay_wire::identify::{IdController, cns};
use forebay_wire::log;
use forebay_wire::sqe::{GetFeatures, Identify, Select, SetFeatures, Sgl, admin};
use forebay_wire::{Sqe, Status};

fn get(rig: &mut Rig, queue: &mut Queue, fid: u8, select: Select, dw11: u32) -> Reply {
    let get = GetFeatures { fid, select, dw11 };
    let len = if fid == feature::HOST_IDENTIFIER { 16 } else { 0 };
    queue.read(rig, get.encode(Sqe::new(admin::GET_FEATURES, 0, 0)), len)
}

#[test]
fn identify_answers_every_cns_of_the_list_and_no_other() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let queue = &mut host.admin;
    for known in [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x1c] {
        let reply = queue.identify(&mut rig, known, 1);
        assert_eq!((reply.cqe.status, reply.data.len()), (Status::SUCCESS, 4096), "{known:#x}");
    }
    for unknown in (0u8..=255).filter(|c| !matches!(c, 0..=3 | 5..=8 | 0x1c)) {
        let reply = queue.identify(&mut rig, unknown, 1);
        assert_eq!(reply.cqe.status, Status::INVALID_FIELD.dnr(), "{unknown:#x}");
    }
    for (cns, nsid, status) in [
        (cns::NAMESPACE, 0, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, 1025, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, 0xffff_ffff, Status::INVALID_NAMESPACE),
        (cns::ACTIVE_NAMESPACES, 0xffff_fffe, Status::INVALID_NAMESPACE),
        (cns::ACTIVE_NAMESPACES, 0xffff_ffff, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE_DESCRIPTORS, 3, Status::INVALID_NAMESPACE),
    ] {
        assert_eq!(queue.identify(&mut rig, cns, nsid).cqe.status, status.dnr());
    }
    for cns in [cns::CSI_NAMESPACE, cns::CSI_CONTROLLER, cns::CSI_ACTIVE_NAMESPACES] {
        let zoned = Identify { cns, csi: 2, ..Identify::default() };
        let sqe = zoned.encode(Sqe::new(admin::IDENTIFY, 0, 1));
        let status = queue.read(&mut rig, sqe, 4096).cqe.status;
        assert_eq!(status, Status::INVALID_IO_COMMAND_SET.dnr());
    }
    let short = Identify { cns: 1, ..Identify::default() }.encode(Sqe::new(admin::IDENTIFY, 0, 0));
    let status = queue.read(&mut rig, short, 4092).cqe.status;
    assert_eq!(status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    let cid = queue.cid();
    let wrong = short.with_cid(cid).with_sgl(Sgl::InCapsule { offset: 0, len: 4096 });
    rig.feed(queue.conn, &queue.capsule(&wrong, &[]));
    let status = queue.finish(&mut rig, cid, &[]).cqe.status;
    assert_eq!(status, Status::SGL_TYPE_INVALID.dnr());
}

#[test]
fn every_log_page_that_is_listed_can_be_read() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let queue = &mut host.admin;
    let listed = queue.log(&mut rig, log::SUPPORTED, 1024).data;
    let mut known = Vec::new();
    for lid in 0..=255u8 {
        let reply = queue.log(&mut rig, lid, 64);
        if listed[usize::from(lid) * 4] & 1 == 1 {
            assert_eq!((reply.cqe.status, reply.data.len()), (Status::SUCCESS, 64));
            known.push(lid);
        } else {
            assert_eq!(reply.cqe.status, Status::INVALID_LOG_PAGE.dnr(), "{lid:#x}");
        }
    }
    assert_eq!(known, [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x0c, 0x12, 0x80]);
    let slot = queue.log(&mut rig, log::FIRMWARE_SLOT, 512).data;
    assert_eq!(slot[0], 1);
    let effects = queue.log(&mut rig, log::EFFECTS, 4096).data;
    let supported = |at: usize| effects[at * 4] & 1 == 1;
    let admin: Vec<usize> = (0..256).filter(|at| supported(*at)).collect();
    assert_eq!(admin, [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18]);
    let io: Vec<usize> = (0..256).filter(|at| supported(256 + *at)).collect();
    assert_eq!(io, [0x00, 0x01, 0x02, 0x05, 0x08, 0x09]);
    let features = queue.log(&mut rig, log::FEATURES, 1024).data;
    for fid in 0..=255u8 {
        let listed = features[usize::from(fid) * 4] & 1 == 1;
        let reply = get(&mut rig, queue, fid, Select::Current, 1);
        let answered = reply.cqe.status.is_success() || fid == feature::VOLATILE_WRITE_CACHE;
        assert_eq!(listed, answered, "feature {fid:#x}");
    }
}

#[test]
fn features_are_set_read_back_and_reset() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let queue = &mut host.admin;
    let events = event_bit::NAMESPACE | event_bit::SMART;
    for (fid, value) in [
        (feature::ARBITRATION, 0x0102_0307),
        (feature::TEMPERATURE_THRESHOLD, 0x0150),
        (feature::ERROR_RECOVERY, 7),
        (feature::ASYNC_EVENT_CONFIG, events),
    ] {
        assert!(queue.set_feature(&mut rig, fid, value).cqe.status.is_success());
        let reply = get(&mut rig, queue, fid, Select::Current, 0);
        assert_eq!(reply.cqe.result, u64::from(value));
        let before = get(&mut rig, queue, fid, Select::Default, 0).cqe.result;
        assert_ne!(before, u64::from(value));
        let reply = get(&mut rig, queue, fid, Select::Capabilities, 0);
        assert_eq!(reply.cqe.result, 4);
    }
    queue.set_cc(&mut rig, 0);
    queue.set_cc(&mut rig, CC_ENABLE);
    let reply = get(&mut rig, queue, feature::ASYNC_EVENT_CONFIG, Select::Current, 0);
    assert_eq!(reply.cqe.result, 0);
    assert!(queue.set_feature(&mut rig, feature::KEEP_ALIVE_TIMER, 1500).cqe.status.is_success());
    let reply = get(&mut rig, queue, feature::KEEP_ALIVE_TIMER, Select::Current, 0);
    assert_eq!(reply.cqe.result, 2000, "rounded up to KAS");
    let reply = get(&mut rig, queue, feature::HOST_IDENTIFIER, Select::Current, 1);
    assert_eq!(reply.data, [0xa; 16]);
    let reply = get(&mut rig, queue, feature::HOST_IDENTIFIER, Select::Current, 0);
    assert_eq!(reply.cqe.status, Status::HOST_ID_INCONSISTENT.dnr());
}

#[test]
fn wrong_features_are_refused() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let queue = &mut host.admin;
    let field = Status::INVALID_FIELD;
    for (fid, dw11, status) in [
        (feature::POWER_MANAGEMENT, 1, field),
        (feature::ERROR_RECOVERY, 1 << 16, field),
        (feature::ASYNC_EVENT_CONFIG, event_bit::DISCOVERY, field),
        (feature::ASYNC_EVENT_CONFIG, 1 << 9, field),
        (feature::NUMBER_OF_QUEUES, 0xffff, field),
        (feature::NUMBER_OF_QUEUES, 0xffff_0000, field),
        (feature::TIMESTAMP, 0, field),
        (feature::HOST_BEHAVIOR, 0, field),
        (feature::HOST_IDENTIFIER, 1, Status::COMMAND_SEQUENCE),
        (feature::VOLATILE_WRITE_CACHE, 0, Status::FEATURE_NOT_CHANGEABLE),
        (0xc0, 0, field),
    ] {
        let reply = queue.set_feature(&mut rig, fid, dw11);
        assert_eq!(reply.cqe.status, status.dnr(), "feature {fid:#x} = {dw11:#x}");
    }
    let save = SetFeatures { fid: feature::ARBITRATION, save: true, dw11: 0 };
    let sqe = save.encode(Sqe::new(admin::SET_FEATURES, 0, 0));
    let status = queue.read(&mut rig, sqe, 0).cqe.status;
    assert_eq!(status, Status::FEATURE_NOT_SAVEABLE.dnr());
    for opcode in [0x00, 0x01, 0x04, 0x05, 0x0d, 0x10, 0x11, 0x80, 0x81, 0x84, 0xc0] {
        let status = queue.read(&mut rig, Sqe::new(opcode, 0, 0), 0).cqe.status;
        assert_eq!(status, Status::INVALID_OPCODE.dnr(), "admin opcode {opcode:#x}");
    }
}

#[test]
fn queues_are_granted_before_the_first_is_connected() {
    let limits = Limits { io_queues: 3, ..Limits::default() };
    let mut rig = Rig::with(TargetConfig { limits, ..TargetConfig::default() });
    let mut host = Host::a(&mut rig);
    for (asked, granted) in
        [(0x003f_003f, 0x0002_0002), (0x0000_0005, 0), (0x0001_0001, 0x0001_0001)]
    {
        let reply = host.admin.set_feature(&mut rig, feature::NUMBER_OF_QUEUES, asked);
        assert_eq!(reply.cqe.result, granted);
    }
    host.queue(&mut rig, 2);
    let cqe = host.opening.io(host.cntlid, 3).open(&mut rig).1.unwrap();
    assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    let reply = host.admin.set_feature(&mut rig, feature::NUMBER_OF_QUEUES, 0);
    assert_eq!(reply.cqe.status, Status::COMMAND_SEQUENCE.dnr());
}

#[test]
fn a_volatile_write_cache_is_reported_where_there_is_one() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let vwc = |rig: &mut Rig, host: &mut Host| {
        let raw = host.admin.identify(rig, cns::CONTROLLER, 0).data;
        IdController::decode(raw.as_slice().try_into().unwrap()).vwc
    };
    assert_eq!(vwc(&mut rig, &mut host), 0b100);
    let reply = get(&mut rig, &mut host.admin, feature::VOLATILE_WRITE_CACHE, Select::Current, 0);
    assert_eq!(reply.cqe.status, Status::INVALID_FIELD.dnr());
    let config = NamespaceConfig { volatile_write_cache: true, ..namespace(3, BlockSize::B512) };
    rig.target.add_namespace(&nqn(SUBNQN), config, rig.now).unwrap();
    assert_eq!(vwc(&mut rig, &mut host), 0b101);
    let fid = feature::VOLATILE_WRITE_CACHE;
    let reply = get(&mut rig, &mut host.admin, fid, Select::Current, 0);
    assert_eq!(reply.cqe.result, 1);
    assert!(host.admin.set_feature(&mut rig, fid, 1).cqe.status.is_success());
    let reply = host.admin.set_feature(&mut rig, fid, 0);
    assert_eq!(reply.cqe.status, Status::FEATURE_NOT_CHANGEABLE.dnr());
}
