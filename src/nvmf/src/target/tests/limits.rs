//! Bounds and backpressure.

use super::rig::*;
use crate::target::*;
use forebay_wire::sqe::{ReadWrite, nvm};
use forebay_wire::{Sqe, Status};

#[test]
fn connections_beyond_the_limit_are_told_busy_and_then_refused() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let mut rig = Rig::with(TargetConfig { limits, ..TargetConfig::default() });
    let host = Host::a(&mut rig);
    let _queue = host.queue(&mut rig, 1);
    let mut refused = 0;
    for _ in 0..100 {
        let established = Opening::admin(HOST_B).establish(rig.now);
        match rig.target.accept(&established, &LocalAddress::default(), rig.now) {
            Ok(_) => refused += 1,
            Err(TargetFull) => break,
        }
    }
    assert_eq!(refused, 16);
    assert_eq!(rig.target.stats().connects_refused, 16);
    // They never read their answers: they are closed in time.
    rig.drain_events();
    assert!(rig.closed.is_empty());
    rig.after(6 * SECOND);
    assert_eq!(rig.closed.len(), 16);
    rig.close_told();
    assert_eq!(rig.target.connections().count(), 2);
}

#[test]
fn controllers_beyond_the_limit_are_told_busy() {
    let limits = Limits { controllers: 1, ..Limits::default() };
    let mut rig = Rig::with(TargetConfig { limits, ..TargetConfig::default() });
    let host = Host::a(&mut rig);
    let cqe = Opening::admin(HOST_B).open(&mut rig).1.unwrap();
    assert_eq!(cqe.status, Status::CONNECT_BUSY);
    rig.target.conn_closed(host.admin.conn, rig.now);
    assert!(Opening::admin(HOST_B).open(&mut rig).1.unwrap().status.is_success());
}

/// A host that does not read its data is not read from.
#[test]
fn a_full_output_stops_reading() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let rw = ReadWrite { slba: 0, blocks: 32, ..ReadWrite::default() };
    let mut sent = 0;
    while rig.target.wants_read(queue.conn) {
        queue.send(&mut rig, rw.encode(Sqe::new(nvm::READ, 0, 2)), 131_072);
        sent += 1;
        assert!(sent < 100);
    }
    assert_eq!(sent, 32);
    let first = rig.target.tx(queue.conn).unwrap().len();
    rig.target.advance(queue.conn, first / 2);
    assert!(rig.target.wants_read(queue.conn));
}

/// The volume answers after the connection, its slot or the target has moved on.
#[test]
fn late_completions_are_counted_and_harmless() {
    let (mut rig, host, mut queue) = host_and_queue();
    rig.auto = false;
    queue.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    let tag = rig.volumes.pending[0].request.tag;
    rig.target.conn_closed(queue.conn, rig.now);
    rig.run_all();
    let mut again = host.queue(&mut rig, 1);
    assert_eq!(again.conn.index(), queue.conn.index());
    assert_ne!(again.conn, queue.conn);
    again.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    for tag in [tag, forebay_io::Tag(u64::MAX), forebay_io::Tag(0x7fff << 48)] {
        rig.target.complete(tag, forebay_io::Outcome::Done, &mut vec![]);
    }
    assert_eq!(again.receive(&mut rig), None);
    assert_eq!(rig.target.stats().stale_completions, 3);
    rig.run_all();
    assert!(again.receive(&mut rig).is_some());
}

#[test]
fn a_removed_subsystem_ends_its_associations_and_drains() {
    let (mut rig, host, mut queue) = host_and_queue();
    rig.auto = false;
    queue.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    assert!(rig.target.remove_subsystem(&nqn(SUBNQN), rig.now));
    assert!(!rig.target.remove_subsystem(&nqn(SUBNQN), rig.now));
    rig.drain_events();
    rig.closed.sort_unstable();
    assert_eq!(rig.closed, [host.admin.conn, queue.conn]);
    rig.close_told();
    assert_eq!(rig.target.controllers().count(), 1);
    rig.run_all();
    assert_eq!(rig.target.controllers().count(), 0);
    let cqe = Opening::admin(HOST_A).open(&mut rig).1.unwrap();
    assert_eq!(cqe.status, Status::CONNECT_INVALID_PARAMETERS);
}

#[test]
fn a_host_that_may_not_any_more_is_disconnected() {
    let (mut rig, host, _queue) = host_and_queue();
    let only_b = HostAccess::Only([nqn(HOST_B)].into_iter().collect());
    assert!(rig.target.set_hosts(&nqn(SUBNQN), only_b, rig.now));
    rig.drain_events();
    assert!(rig.closed.contains(&host.admin.conn));
    rig.close_told();
    assert_eq!(rig.target.controllers().count(), 0);
}

/// A namespace removed while a write's data is on its way.
#[test]
fn a_namespace_gone_in_the_middle_of_a_write() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let rw = ReadWrite { slba: 0, blocks: 4, ..ReadWrite::default() };
    let cid = queue.send(&mut rig, rw.encode(Sqe::new(nvm::WRITE, 0, 2)), 16_384);
    rig.target.remove_namespace(&nqn(SUBNQN), 2, rig.now).unwrap();
    let reply = queue.finish(&mut rig, cid, &pattern(16_384, 0));
    assert_eq!(reply.cqe.status, Status::INVALID_NAMESPACE.dnr());
    assert_eq!(rig.volumes.seen, 0);
}
