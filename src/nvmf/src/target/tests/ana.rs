//! One active controller for each host and subsystem; ANA states.

use super::rig::*;
use crate::target::*;
use forebay_wire::feature::{self, AsyncEvent, event_bit};
use forebay_wire::log::{self, AnaLog};
use forebay_wire::sqe::{ReadWrite, admin, nvm};
use forebay_wire::{Sqe, Status};

fn states(rig: &mut Rig, host: &mut Host) -> Vec<AnaState> {
    let raw = host.admin.log(rig, log::ANA, 4096).data;
    AnaLog::decode(&raw).unwrap().groups.iter().map(|group| group.state).collect()
}

fn flush(rig: &mut Rig, queue: &mut Queue) -> Status {
    queue.read(rig, Sqe::new(nvm::FLUSH, 0, 1), 0).cqe.status
}

fn watch(rig: &mut Rig, host: &mut Host) -> u16 {
    let events = event_bit::NAMESPACE | event_bit::ANA;
    host.admin.set_feature(rig, feature::ASYNC_EVENT_CONFIG, events);
    host.admin.send(rig, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, 0), 0)
}

fn event(rig: &mut Rig, host: &mut Host, cid: u16) -> Option<AsyncEvent> {
    match host.admin.receive(rig)? {
        FromTarget::Response(cqe) => {
            assert_eq!(cqe.cid, cid);
            Some(AsyncEvent::decode(cqe.dw0()))
        }
        other => panic!("{other:?}"),
    }
}

/// TP4129's hazard: the old association's write, still in the volume, must end before the new one's
/// is admitted.
#[test]
fn a_new_association_admits_io_only_after_the_olds_admitted_commands_have_ended() {
    let (mut rig, old, mut old_queue) = host_and_queue();
    rig.auto = false;
    let rw = ReadWrite { slba: 0, blocks: 1, ..ReadWrite::default() };
    old_queue.send(&mut rig, rw.encode(Sqe::new(nvm::READ, 0, 1)), 512);
    assert_eq!(rig.volumes.pending.len(), 1);

    let mut new = Host::a(&mut rig);
    let mut new_queue = new.queue(&mut rig, 1);
    assert_eq!(states(&mut rig, &mut new), [AnaState::Inaccessible; 2]);
    assert_eq!(flush(&mut rig, &mut new_queue), Status::ANA_INACCESSIBLE, "retried by the host");
    let cid = watch(&mut rig, &mut new);
    assert_eq!(event(&mut rig, &mut new, cid), None, "nothing new since the log was read");

    // The old sockets end, but its command is in the volume.
    rig.target.conn_closed(old_queue.conn, rig.now);
    rig.target.conn_closed(old.admin.conn, rig.now);
    assert_eq!(rig.target.controllers().count(), 2);
    assert_eq!(flush(&mut rig, &mut new_queue), Status::ANA_INACCESSIBLE);
    assert_eq!(event(&mut rig, &mut new, cid), None);

    assert!(rig.run_one());
    assert_eq!(rig.target.controllers().count(), 1);
    assert_eq!(event(&mut rig, &mut new, cid), Some(AsyncEvent::ANA));
    assert_eq!(states(&mut rig, &mut new), [AnaState::Optimized; 2]);
    rig.auto = true;
    assert!(flush(&mut rig, &mut new_queue).is_success());
}

/// A write whose data has not arrived was not admitted: it dies with its socket.
#[test]
fn a_write_without_its_data_holds_nothing_back() {
    let (mut rig, old, mut old_queue) = host_and_queue();
    let rw = ReadWrite { slba: 0, blocks: 4, ..ReadWrite::default() };
    old_queue.send(&mut rig, rw.encode(Sqe::new(nvm::WRITE, 0, 2)), 16_384);
    let new = Host::a(&mut rig);
    let mut new_queue = new.queue(&mut rig, 1);
    assert_eq!(flush(&mut rig, &mut new_queue), Status::ANA_INACCESSIBLE);
    rig.target.conn_closed(old.admin.conn, rig.now);
    rig.drain_events();
    assert_eq!(rig.closed, [old_queue.conn]);
    assert_eq!(flush(&mut rig, &mut new_queue), Status::ANA_INACCESSIBLE, "its socket lives");
    rig.close_told();
    assert!(flush(&mut rig, &mut new_queue).is_success());
}

/// After a reset (CC.EN) or a shutdown the next controller goes first, in order of enabling.
#[test]
fn controllers_of_one_host_take_turns() {
    let mut rig = Rig::new();
    let mut hosts: Vec<Host> = (0..3).map(|_| Host::a(&mut rig)).collect();
    let mut queues: Vec<Queue> = hosts.iter().map(|h| h.queue(&mut rig, 1)).collect();
    let run = |rig: &mut Rig, queues: &mut [Queue]| -> Vec<bool> {
        queues.iter_mut().map(|q| flush(rig, q).is_success()).collect()
    };
    assert_eq!(run(&mut rig, &mut queues), [true, false, false]);
    // Shut down: but its queue is still there.
    hosts[0].admin.set_cc(&mut rig, CC_ENABLE | 1 << 14);
    assert_eq!(flush(&mut rig, &mut queues[1]), Status::ANA_INACCESSIBLE);
    assert_eq!(flush(&mut rig, &mut queues[0]), Status::COMMAND_SEQUENCE.dnr());
    rig.target.conn_closed(queues[0].conn, rig.now);
    assert_eq!(run(&mut rig, &mut queues[1..]), [true, false]);
    // Reset: its queues are dropped, and it goes to the end of the line.
    hosts[1].admin.set_cc(&mut rig, 0);
    rig.close_told();
    hosts[1].admin.set_cc(&mut rig, CC_ENABLE);
    queues[1] = hosts[1].queue(&mut rig, 1);
    assert_eq!(run(&mut rig, &mut queues[1..]), [false, true]);
    assert!(rig.target.disconnect(hosts[2].cntlid, rig.now));
    rig.drain_events();
    rig.close_told();
    assert_eq!(run(&mut rig, &mut queues[1..2]), [true]);
}

#[test]
fn other_hosts_are_not_held() {
    let (mut rig, _a, mut a_queue) = host_and_queue();
    let b = Host::connect(&mut rig, Opening::admin(HOST_B));
    let mut b_queue = b.queue(&mut rig, 1);
    assert!(flush(&mut rig, &mut a_queue).is_success());
    assert!(flush(&mut rig, &mut b_queue).is_success());
}

/// A change between reading the log and asking for events is not lost.
#[test]
fn a_change_before_events_are_asked_for_is_told() {
    let (mut rig, mut host, mut queue) = host_and_queue();
    states(&mut rig, &mut host);
    let inaccessible = AnaState::Inaccessible;
    rig.target.set_ana(&nqn(SUBNQN), 1, inaccessible, rig.now).unwrap();
    let cid = watch(&mut rig, &mut host);
    assert_eq!(event(&mut rig, &mut host, cid), Some(AsyncEvent::ANA));
    let cid = watch(&mut rig, &mut host);
    assert_eq!(event(&mut rig, &mut host, cid), None, "told once until the log is read");
    rig.target.set_ana(&nqn(SUBNQN), 1, AnaState::Change, rig.now).unwrap();
    assert_eq!(event(&mut rig, &mut host, cid), None);
    assert_eq!(states(&mut rig, &mut host), [AnaState::Change, AnaState::Optimized]);
    assert_eq!(flush(&mut rig, &mut queue), Status::ANA_TRANSITION);
    rig.target.set_ana(&nqn(SUBNQN), 1, AnaState::PersistentLoss, rig.now).unwrap();
    assert_eq!(event(&mut rig, &mut host, cid), Some(AsyncEvent::ANA));
    assert_eq!(flush(&mut rig, &mut queue), Status::ANA_PERSISTENT_LOSS);
    rig.target.set_ana(&nqn(SUBNQN), 1, AnaState::NonOptimized, rig.now).unwrap();
    assert!(flush(&mut rig, &mut queue).is_success());
    let missing = rig.target.set_ana(&nqn(SUBNQN), 9, inaccessible, rig.now);
    assert_eq!(missing, Err(NamespaceError::NoNamespace));
}

#[test]
fn return_groups_only_leaves_namespaces_out() {
    let (mut rig, mut host, _queue) = host_and_queue();
    let get = forebay_wire::sqe::GetLogPage {
        lid: log::ANA,
        lsp: 1,
        len: 80,
        ..forebay_wire::sqe::GetLogPage::default()
    };
    let sqe = get.encode(Sqe::new(admin::GET_LOG_PAGE, 0, 0));
    let groups = AnaLog::decode(&host.admin.read(&mut rig, sqe, 80).data).unwrap().groups;
    assert_eq!(groups.len(), 2);
    assert!(groups.iter().all(|group| group.nsids.is_empty()));
}
