//! Fused compare and write.

use super::rig::*;
use forebay_io::RequestOp;
use forebay_wire::sqe::{Fuse, ReadWrite, Sgl, nvm};
use forebay_wire::{Sqe, Status};

fn half(queue: &mut Queue, fuse: Fuse, slba: u64, len: u32, inline: bool) -> Sqe {
    let opcode = if fuse == Fuse::First { nvm::COMPARE } else { nvm::WRITE };
    let cid = queue.cid();
    let sgl = if inline { Sgl::InCapsule { offset: 0, len } } else { Sgl::Transport { len } };
    ReadWrite { slba, blocks: len / 512, ..ReadWrite::default() }
        .encode(Sqe::new(opcode, cid, 1))
        .with_fuse(fuse)
        .with_sgl(sgl)
}

fn send(rig: &mut Rig, queue: &Queue, sqe: &Sqe, data: &[u8]) {
    let inline = matches!(sqe.sgl(), Sgl::InCapsule { .. });
    let bytes = queue.capsule(sqe, if inline { data } else { &[] });
    rig.feed(queue.conn, &bytes);
}

/// The next two completions, answering R2Ts by command identifier.
fn two(rig: &mut Rig, queue: &mut Queue, data: &[(u16, &[u8])]) -> Vec<(u16, Status)> {
    let mut ends = Vec::new();
    while ends.len() < 2 {
        match queue.receive(rig).expect("a completion") {
            FromTarget::Response(cqe) => ends.push((cqe.cid, cqe.status)),
            FromTarget::R2t(r2t) => {
                let (_, bytes) = data.iter().find(|(cid, _)| *cid == r2t.cid).unwrap();
                let answer = queue.answer(&r2t, bytes, 3000);
                rig.feed(queue.conn, &answer);
            }
            other => panic!("{other:?}"),
        }
    }
    ends
}

#[test]
fn a_pair_is_one_request_and_two_adjacent_completions() {
    for (first_inline, second_inline) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let (mut rig, _host, mut queue) = host_and_queue();
        let (old, new) = (vec![0; 4096], pattern(4096, 1));
        let one = half(&mut queue, Fuse::First, 8, 4096, first_inline);
        let two_ = half(&mut queue, Fuse::Second, 8, 4096, second_inline);
        send(&mut rig, &queue, &one, &old);
        assert_eq!(rig.volumes.seen, 0, "a half alone does nothing");
        send(&mut rig, &queue, &two_, &new);
        let data = [(one.cid(), &old[..]), (two_.cid(), &new[..])];
        let ends = two(&mut rig, &mut queue, &data);
        assert_eq!(ends, [(one.cid(), Status::SUCCESS), (two_.cid(), Status::SUCCESS)]);
        assert_eq!(rig.volumes.seen, 1);
        // Again: now the compare fails, and the write with it.
        let one = half(&mut queue, Fuse::First, 8, 4096, first_inline);
        let two_ = half(&mut queue, Fuse::Second, 8, 4096, second_inline);
        send(&mut rig, &queue, &one, &old);
        send(&mut rig, &queue, &two_, &old);
        let data = [(one.cid(), &old[..]), (two_.cid(), &old[..])];
        let ends = two(&mut rig, &mut queue, &data);
        let failed =
            [(one.cid(), Status::COMPARE_FAILURE.dnr()), (two_.cid(), Status::FUSED_FAILED.dnr())];
        assert_eq!(ends, failed);
        let read = ReadWrite { slba: 8, blocks: 8, ..ReadWrite::default() };
        let sqe = read.encode(Sqe::new(nvm::READ, 0, 1));
        assert_eq!(queue.read(&mut rig, sqe, 4096).data, new);
    }
}

#[test]
fn a_first_half_that_stays_alone_fails_and_the_next_command_runs() {
    for inline in [true, false] {
        let (mut rig, _host, mut queue) = host_and_queue();
        let data = vec![0; 4096];
        let one = half(&mut queue, Fuse::First, 8, 4096, inline);
        send(&mut rig, &queue, &one, &data);
        let cid = queue.cid();
        send(&mut rig, &queue, &Sqe::new(nvm::FLUSH, cid, 1), &[]);
        let mut ends = two(&mut rig, &mut queue, &[(one.cid(), &data)]);
        ends.sort_by_key(|end| end.0);
        assert_eq!(ends, [(one.cid(), Status::FUSED_MISSING.dnr()), (cid, Status::SUCCESS)]);
        assert_eq!(rig.volumes.seen, 1);
    }
}

#[test]
fn halves_that_do_not_fit_fail_both() {
    let data = vec![0; 4096];
    let (mut rig, _host, mut queue) = host_and_queue();
    let one = half(&mut queue, Fuse::First, 8, 4096, true);
    let other = half(&mut queue, Fuse::Second, 16, 4096, true);
    send(&mut rig, &queue, &one, &data);
    send(&mut rig, &queue, &other, &data);
    let ends = two(&mut rig, &mut queue, &[]);
    assert_eq!(ends[0], (one.cid(), Status::FUSED_FAILED.dnr()));
    assert_eq!(ends[1], (other.cid(), Status::INVALID_FIELD.dnr()));
    // The first is beyond the end: the second fails with it.
    let one = half(&mut queue, Fuse::First, BLOCKS, 4096, true);
    let other = half(&mut queue, Fuse::Second, BLOCKS, 4096, true);
    send(&mut rig, &queue, &one, &data);
    send(&mut rig, &queue, &other, &data);
    let ends = two(&mut rig, &mut queue, &[]);
    assert_eq!(ends[0], (one.cid(), Status::LBA_OUT_OF_RANGE.dnr()));
    assert_eq!(ends[1], (other.cid(), Status::FUSED_FAILED.dnr()));
    // A write cannot be first.
    let mut raw = *half(&mut queue, Fuse::First, 0, 512, true).as_bytes();
    raw[0] = nvm::WRITE;
    let sqe = Sqe::from_bytes(&raw);
    send(&mut rig, &queue, &sqe, &[0; 512]);
    assert_eq!(queue.finish(&mut rig, sqe.cid(), &[]).cqe.status, Status::INVALID_FIELD.dnr());
    assert_eq!(rig.volumes.seen, 0);
}

#[test]
fn a_pair_of_a_dead_queue_drains() {
    let (mut rig, host, mut queue) = host_and_queue();
    rig.auto = false;
    for fuse in [Fuse::First, Fuse::Second] {
        let sqe = half(&mut queue, fuse, 0, 512, true);
        send(&mut rig, &queue, &sqe, &[0; 512]);
    }
    assert_eq!(rig.volumes.pending[0].request.op, RequestOp::CompareAndWrite);
    rig.target.conn_closed(queue.conn, rig.now);
    rig.target.conn_closed(host.admin.conn, rig.now);
    assert_eq!(rig.target.controllers().count(), 1);
    rig.run_all();
    assert_eq!(rig.target.controllers().count(), 0);
}

#[test]
fn no_buffer_for_a_half_is_a_status_to_retry() {
    let (mut rig, _host, mut queue) = host_and_queue();
    rig.pool.left = 0;
    let one = half(&mut queue, Fuse::First, 0, 512, true);
    let other = half(&mut queue, Fuse::Second, 0, 512, true);
    send(&mut rig, &queue, &one, &[0; 512]);
    send(&mut rig, &queue, &other, &[0; 512]);
    let ends = two(&mut rig, &mut queue, &[]);
    assert_eq!(ends[0], (one.cid(), Status::COMMAND_INTERRUPTED));
    assert!(ends[1].1.is(Status::FUSED_FAILED));
}
