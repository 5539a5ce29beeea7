//! Bring-up in the order in which Linux does it.

use super::rig::*;
use crate::target::*;
use forebay_wire::feature::event_bit;
use forebay_wire::identify::{
    IdController, IdNamespace, IdNamespaceIndependent, NamespaceDescriptors, cns, nsid_list,
};
use forebay_wire::log::{self, AnaLog};
use forebay_wire::property::{self, Cap};
use forebay_wire::sqe::{ReadWrite, admin, nvm};
use forebay_wire::tcp::Digests;
use forebay_wire::{Sqe, feature};

fn page(reply: &Reply) -> [u8; 4096] {
    assert!(reply.by_flag || reply.cqe.status.is_success(), "{}", reply.cqe.status);
    reply.data.as_slice().try_into().unwrap()
}

fn as_linux_does(digests: Digests, hpda: u8, no_sq_flow: bool, queues: u16, chunk: usize) {
    let mut rig = Rig::new();
    rig.chunk = chunk;
    let mut opening = Opening { digests, hpda, ..Opening::admin(HOST_A) };
    opening.connect.kato = 5000;
    opening.connect.no_sq_flow = no_sq_flow;
    let (mut queue, cqe) = opening.open(&mut rig);
    let cntlid = u16::try_from(cqe.unwrap().result).unwrap();
    let cap = Cap::decode(queue.property(&mut rig, property::CAP, true).cqe.result);
    assert_eq!((cap.mqes, cap.cqr, cap.mpsmin, cap.css), (1023, true, 0, 0x41));
    assert_eq!(queue.property(&mut rig, property::CSTS, false).cqe.result, 0);
    queue.set_cc(&mut rig, CC_ENABLE);
    assert_eq!(queue.property(&mut rig, property::CSTS, false).cqe.result, 1);
    assert_eq!(queue.property(&mut rig, property::VS, false).cqe.result, 0x0002_0000);
    assert_ne!(queue.property(&mut rig, property::CRTO, false).cqe.result, 0);

    let id = IdController::decode(&page(&queue.identify(&mut rig, cns::CONTROLLER, 0)));
    assert_eq!((id.cntlid, id.mdts, id.kas, id.sqes, id.cqes), (cntlid, 5, 10, 0x66, 0x44));
    assert_eq!((id.ioccsz * 16 - 64, id.iorcsz, id.icdoff), (8192, 1, 0));
    assert_eq!(id.subnqn, Some(nqn(SUBNQN)));
    assert!(id.mnan <= id.nn && id.sgls & 3 != 0 && id.cmic & 0xa == 0xa);
    // Linux switches ANA off if the log may be larger than a transfer.
    assert!(16 + 32 * id.nanagrpid + 4 * id.mnan <= 4096 << id.mdts);
    page(&queue.identify(&mut rig, cns::CSI_CONTROLLER, 0));
    assert_eq!(queue.log(&mut rig, log::EFFECTS, 4096).data.len(), 4096);
    let ana = queue.log(&mut rig, log::ANA, 16 + 36 * 1024);
    let ana = AnaLog::decode(&ana.data).unwrap();
    assert_eq!(ana.groups.iter().map(|g| g.id).collect::<Vec<_>>(), [1, 2]);
    assert!(ana.groups.iter().all(|g| g.state == AnaState::Optimized && g.nsids == [g.id]));

    let granted = queue.set_feature(&mut rig, feature::NUMBER_OF_QUEUES, 0x003f_003f);
    assert_eq!(granted.cqe.result, 0x003f_003f);
    let host = Host { opening, admin: queue, cntlid };
    let mut ios: Vec<Queue> = (1..=queues).map(|qid| host.queue(&mut rig, qid)).collect();
    let mut queue = host.admin;
    let events = event_bit::NAMESPACE | event_bit::ANA;
    assert_eq!(id.oaes, events);
    queue.set_feature(&mut rig, feature::ASYNC_EVENT_CONFIG, events);
    queue.send(&mut rig, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, 0), 0);
    assert_eq!(queue.receive(&mut rig), None);

    let list = page(&queue.identify(&mut rig, cns::ACTIVE_NAMESPACES, 0));
    assert_eq!(nsid_list(&list).collect::<Vec<_>>(), [1, 2]);
    for (nsid, size) in [(1u32, 512), (2, 4096)] {
        let raw = page(&queue.identify(&mut rig, cns::NAMESPACE_DESCRIPTORS, nsid));
        let ids = NamespaceDescriptors::decode(&raw);
        let config = namespace(nsid, BlockSize::B512);
        assert_eq!(ids.uuid, Some(config.uuid.0));
        assert_eq!((ids.nguid, ids.csi), (Some(config.nguid), Some(0)));
        let raw = page(&queue.identify(&mut rig, cns::INDEPENDENT_NAMESPACE, nsid));
        let independent = IdNamespaceIndependent::decode(&raw);
        assert_eq!((independent.anagrpid, independent.nstat, independent.nmic), (nsid, 1, 1));
        let raw = page(&queue.identify(&mut rig, cns::NAMESPACE, nsid));
        let id = IdNamespace::decode(&raw);
        assert_eq!((id.nsze, id.block_size()), (BLOCKS, Some(size)));
        assert_eq!((id.nguid, id.anagrpid, id.nmic), (config.nguid, nsid, 1));
        page(&queue.identify(&mut rig, cns::CSI_NAMESPACE, nsid));
    }
    for (i, io) in ios.iter_mut().enumerate() {
        let data = pattern(4096, u8::try_from(i).unwrap());
        let rw = ReadWrite { slba: 8 * i as u64, blocks: 8, ..ReadWrite::default() };
        let reply = io.write(&mut rig, rw.encode(Sqe::new(nvm::WRITE, 0, 1)), &data);
        assert!(reply.cqe.status.is_success());
        let reply = io.read(&mut rig, rw.encode(Sqe::new(nvm::READ, 0, 1)), 4096);
        assert_eq!((reply.data, reply.by_flag), (data, no_sq_flow));
        assert!(io.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status.is_success());
    }
    assert_eq!(rig.target.outstanding(), 0);
}

#[test]
fn linux_brings_up_a_controller_with_1_and_4_queues() {
    as_linux_does(Digests::default(), 0, false, 1, usize::MAX);
    as_linux_does(Digests::default(), 0, false, 4, usize::MAX);
}

#[test]
fn linux_brings_up_with_every_combination_of_digests_and_flow_control() {
    for header in [false, true] {
        for data in [false, true] {
            for no_sq_flow in [false, true] {
                as_linux_does(Digests { header, data }, 0, no_sq_flow, 2, usize::MAX);
            }
        }
    }
}

#[test]
fn bring_up_one_byte_at_a_time() {
    as_linux_does(Digests { header: true, data: true }, 0, true, 1, 1);
}

#[test]
fn a_host_that_wants_aligned_data_gets_it() {
    for hpda in [1, 7, 31] {
        as_linux_does(Digests { header: true, data: true }, hpda, false, 1, usize::MAX);
    }
}

/// While SQ flow control is on SQHD advances modulo SQSIZE + 1; off, it is FFFFh.
#[test]
fn sqhd_follows_the_queue() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let mut before = 0;
    for i in 0..300u32 {
        let reply = queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
        let expected = if i == 0 { reply.cqe.sqhd } else { (before + 1) % 128 };
        assert_eq!(reply.cqe.sqhd, expected);
        before = reply.cqe.sqhd;
    }
    let mut rig = Rig::new();
    let mut opening = Opening::admin(HOST_A);
    opening.connect.no_sq_flow = true;
    let host = Host::connect(&mut rig, opening);
    let mut queue = host.queue(&mut rig, 1);
    let reply = queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    assert_eq!(reply.cqe.sqhd, 0xffff);
}
