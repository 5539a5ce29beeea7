//! Asynchronous events, namespace changes, discovery.

use super::rig::*;
use crate::target::*;
use forebay_wire::feature::{self, AsyncEvent, event_bit};
use forebay_wire::identify::{ControllerType, IdController, IdNamespace, cns};
use forebay_wire::log::{self, DiscoveryEntry, DiscoveryHeader, ErrorEntry, SubsystemType, trtype};
use forebay_wire::sqe::{Abort, GetLogPage, admin, nvm};
use forebay_wire::{DISCOVERY_NQN, Sqe, Status};

fn aer(rig: &mut Rig, queue: &mut Queue) -> u16 {
    queue.send(rig, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, 0), 0)
}

fn event(rig: &mut Rig, queue: &mut Queue, cid: u16) -> Option<AsyncEvent> {
    match queue.receive(rig)? {
        FromTarget::Response(cqe) => {
            assert_eq!((cqe.cid, cqe.status), (cid, Status::SUCCESS));
            Some(AsyncEvent::decode(cqe.dw0()))
        }
        other => panic!("{other:?}"),
    }
}

fn changed(rig: &mut Rig, queue: &mut Queue) -> Vec<u32> {
    let raw = queue.log(rig, log::CHANGED_NAMESPACES, 4096).data;
    forebay_wire::identify::nsid_list(raw.as_slice().try_into().unwrap()).collect()
}

#[test]
fn namespace_changes_are_told() {
    let (mut rig, mut host, _queue) = host_and_queue();
    let queue = &mut host.admin;
    queue.set_feature(&mut rig, feature::ASYNC_EVENT_CONFIG, event_bit::NAMESPACE);
    let cid = aer(&mut rig, queue);
    let name = nqn(SUBNQN);
    rig.target.resize_namespace(&name, 1, 2 * BLOCKS, rig.now).unwrap();
    assert_eq!(event(&mut rig, queue, cid), Some(AsyncEvent::NAMESPACE));
    let cid = aer(&mut rig, queue);
    rig.target.add_namespace(&name, namespace(7, BlockSize::B4096), rig.now).unwrap();
    rig.target.remove_namespace(&name, 2, rig.now).unwrap();
    assert_eq!(event(&mut rig, queue, cid), None, "not again until the list is read");
    assert_eq!(changed(&mut rig, queue), [1, 2, 7]);
    assert_eq!(changed(&mut rig, queue), []);
    let raw = queue.identify(&mut rig, cns::NAMESPACE, 1).data;
    let id = IdNamespace::decode(raw.as_slice().try_into().unwrap());
    assert_eq!(id.nsze, 2 * BLOCKS);
    // Gone: its structure is all zeroes, which tells a host to drop it.
    let raw = queue.identify(&mut rig, cns::NAMESPACE, 2).data;
    assert_eq!(raw, [0; 4096]);
    rig.target.resize_namespace(&name, 7, 5, rig.now).unwrap();
    assert_eq!(event(&mut rig, queue, cid), Some(AsyncEvent::NAMESPACE));
    for (nsid, blocks, error) in [
        (9, 1, NamespaceError::NoNamespace),
        (0, 1, NamespaceError::NoNamespace),
        (1, 0, NamespaceError::Size),
        (1, 1 << 51, NamespaceError::Size),
    ] {
        assert_eq!(rig.target.resize_namespace(&name, nsid, blocks, rig.now), Err(error));
    }
}

#[test]
fn wrong_namespaces_are_refused_and_change_nothing() {
    let mut rig = Rig::new();
    let name = nqn(SUBNQN);
    let good = namespace(3, BlockSize::B512);
    for (config, error) in [
        (NamespaceConfig { nsid: 0, ..good.clone() }, NamespaceError::Nsid),
        (NamespaceConfig { nsid: 1025, ..good.clone() }, NamespaceError::Nsid),
        (NamespaceConfig { nsid: 1, ..good.clone() }, NamespaceError::InUse),
        (NamespaceConfig { blocks: 0, ..good.clone() }, NamespaceError::Size),
        (NamespaceConfig { nguid: [0; 16], ..good.clone() }, NamespaceError::Identity),
        (NamespaceConfig { uuid: forebay_io::Uuid::NIL, ..good.clone() }, NamespaceError::Identity),
        (NamespaceConfig { optimal_io: 700, ..good.clone() }, NamespaceError::OptimalIo),
    ] {
        assert_eq!(rig.target.add_namespace(&name, config, rig.now), Err(error));
    }
    let other = nqn("nqn.other");
    let missing = rig.target.add_namespace(&other, good, rig.now);
    assert_eq!(missing, Err(NamespaceError::NoSubsystem));
    let mut host = Host::a(&mut rig);
    let raw = host.admin.identify(&mut rig, cns::ACTIVE_NAMESPACES, 0).data;
    let list: Vec<u32> =
        forebay_wire::identify::nsid_list(raw.as_slice().try_into().unwrap()).collect();
    assert_eq!(list, [1, 2]);
    let hosts = HostAccess::Any;
    for (text, error) in
        [(SUBNQN, AddSubsystemError::Exists), (DISCOVERY_NQN, AddSubsystemError::Discovery)]
    {
        let config =
            SubsystemConfig { nqn: nqn(text), serial: String::new(), hosts: hosts.clone() };
        assert_eq!(rig.target.add_subsystem(config), Err(error));
    }
}

#[test]
fn event_requests_are_limited_abortable_and_dropped_with_the_controller() {
    let mut rig = Rig::new();
    let mut host = Host::a(&mut rig);
    let queue = &mut host.admin;
    let cids: Vec<u16> = (0..4).map(|_| aer(&mut rig, queue)).collect();
    let one_more = aer(&mut rig, queue);
    let reply = queue.finish(&mut rig, one_more, &[]);
    assert_eq!(reply.cqe.status, Status::AER_LIMIT.dnr());
    let abort = Abort { sqid: 0, cid: cids[2] }.encode(Sqe::new(admin::ABORT, 0, 0));
    let cid = queue.send(&mut rig, abort, 0);
    let reply = queue.finish(&mut rig, cids[2], &[]);
    assert_eq!(reply.cqe.status, Status::ABORT_REQUESTED);
    assert_eq!(queue.finish(&mut rig, cid, &[]).cqe.result, 0);
    assert_eq!(queue.read(&mut rig, abort, 0).cqe.result, 1, "not there any more");
    let abort = Abort { sqid: 5, cid: 1 }.encode(Sqe::new(admin::ABORT, 0, 0));
    assert_eq!(queue.read(&mut rig, abort, 0).cqe.status, Status::INVALID_FIELD.dnr());
    let cid = queue.send(
        &mut rig,
        forebay_wire::fabrics::PropertySet { wide: false, offset: 0x14, value: 0 }.encode(0),
        0,
    );
    for aborted in [cids[0], cids[1], cids[3]] {
        let reply = queue.finish(&mut rig, aborted, &[]);
        assert_eq!(reply.cqe.status, Status::ABORT_REQUESTED);
    }
    assert!(queue.finish(&mut rig, cid, &[]).cqe.status.is_success());
}

fn record(subnqn: &str, hosts: HostAccess) -> DiscoveryRecord {
    let entry = DiscoveryEntry {
        trtype: trtype::TCP,
        adrfam: 0,
        subtype: SubsystemType::Nvm,
        treq: 4,
        portid: 1,
        cntlid: 0xffff,
        asqsz: 32,
        eflags: 0,
        trsvcid: String::new(),
        traddr: String::new(),
        subnqn: nqn(subnqn),
        tsas: 0,
    };
    DiscoveryRecord { entry, hosts }
}

fn discovery(rig: &mut Rig, host: &str) -> Host {
    let mut opening = Opening::admin(host);
    opening.data.subnqn = nqn(DISCOVERY_NQN);
    Host::connect(rig, opening)
}

#[test]
fn discovery_lists_what_the_host_may_see_and_tells_of_changes() {
    let mut rig = Rig::new();
    let only = HostAccess::Only([nqn(HOST_A)].into_iter().collect());
    let records = vec![record(SUBNQN, only), record("nqn.open", HostAccess::Any)];
    rig.target.set_discovery(records.clone(), rig.now);
    let mut a = discovery(&mut rig, HOST_A);
    let mut b = discovery(&mut rig, "nqn.of-nobody");
    let raw = a.admin.identify(&mut rig, cns::CONTROLLER, 0).data;
    let id = IdController::decode(raw.as_slice().try_into().unwrap());
    assert_eq!((id.kind, id.oaes), (ControllerType::Discovery, event_bit::DISCOVERY));
    assert_eq!(id.subnqn, Some(nqn(DISCOVERY_NQN)));
    let header = |rig: &mut Rig, host: &mut Host| {
        let raw = host.admin.log(rig, log::DISCOVERY, 1024).data;
        DiscoveryHeader::decode(raw.as_slice().try_into().unwrap()).unwrap()
    };
    let before = header(&mut rig, &mut a);
    assert_eq!((before.numrec, header(&mut rig, &mut b).numrec), (2, 1));
    // As hosts read it: an entry at an offset, 1024 bytes at a time; then the whole log.
    let get = GetLogPage { lid: log::DISCOVERY, len: 1024, offset: 2048, ..Default::default() };
    let raw = a.admin.read(&mut rig, get.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0)), 1024).data;
    let entry = DiscoveryEntry::decode(raw.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(entry.subnqn, nqn("nqn.open"));
    // Without an address of its own: the one that the host used.
    assert_eq!(
        (entry.traddr.as_str(), entry.trsvcid.as_str(), entry.adrfam),
        ("10.0.0.1", "4420", 1)
    );
    assert_eq!(a.admin.log(&mut rig, log::DISCOVERY, 3072).data.len(), 3072);

    a.admin.set_feature(&mut rig, feature::ASYNC_EVENT_CONFIG, event_bit::DISCOVERY);
    let cid = aer(&mut rig, &mut a.admin);
    rig.target.set_discovery(records[..1].to_vec(), rig.now);
    assert_eq!(event(&mut rig, &mut a.admin, cid), Some(AsyncEvent::DISCOVERY));
    let after = header(&mut rig, &mut a);
    assert_eq!((after.numrec, after.genctr > before.genctr), (1, true));
}

#[test]
fn a_discovery_controller_offers_discovery_only() {
    let mut rig = Rig::new();
    let mut host = discovery(&mut rig, HOST_A);
    let queue = &mut host.admin;
    let field = Status::INVALID_FIELD.dnr();
    for other in [cns::NAMESPACE, cns::ACTIVE_NAMESPACES, cns::NAMESPACE_DESCRIPTORS] {
        assert_eq!(queue.identify(&mut rig, other, 1).cqe.status, field);
    }
    for lid in [log::SMART, log::ANA, log::EFFECTS] {
        assert_eq!(queue.log(&mut rig, lid, 16).cqe.status, Status::INVALID_LOG_PAGE.dnr());
    }
    assert_eq!(queue.set_feature(&mut rig, feature::NUMBER_OF_QUEUES, 0).cqe.status, field);
    let reply = queue.set_feature(&mut rig, feature::ASYNC_EVENT_CONFIG, event_bit::ANA);
    assert_eq!(reply.cqe.status, field);
    let io = host.opening.io(host.cntlid, 1).open(&mut rig).1.unwrap();
    assert_eq!(io.status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    // Without keep-alive it may be silent for two minutes.
    rig.events.clear();
    rig.after(121 * SECOND);
    assert!(rig.events.iter().any(|e| matches!(e, Event::KeepAliveExpired { .. })));
}

#[test]
fn errors_are_logged_newest_first() {
    let (mut rig, mut host, mut queue) = host_and_queue();
    for opcode in [0x99, 0x98] {
        queue.read(&mut rig, Sqe::new(opcode, 0, 1), 0);
    }
    queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 9), 0);
    let raw = host.admin.log(&mut rig, log::ERROR, 64 * 64).data;
    let entries: Vec<ErrorEntry> = raw.as_chunks::<64>().0.iter().map(ErrorEntry::decode).collect();
    let counts: Vec<u64> = entries.iter().map(|e| e.count).collect();
    assert_eq!(counts[..4], [3, 2, 1, 0]);
    assert_eq!((entries[0].nsid, entries[0].sqid), (9, 1));
    assert_eq!(entries[0].status_field, Status::INVALID_NAMESPACE.dnr().to_field());
    assert_eq!(entries[1].status_field, Status::INVALID_OPCODE.dnr().to_field());
}
