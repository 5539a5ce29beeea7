//! Commands that move data: in the capsule, by R2T, with and without digests, cut anywhere.

use super::rig::*;
use crate::target::*;
use forebay_io::{BlockError, Outcome, RequestOp};
use forebay_wire::sqe::{DatasetManagement, ReadWrite, Sgl, nvm};
use forebay_wire::tcp::Digests;
use forebay_wire::{Sqe, Status, dsm};
use proptest::prelude::*;

fn rw(opcode: u8, nsid: u32, slba: u64, blocks: u32) -> Sqe {
    ReadWrite { slba, blocks, ..ReadWrite::default() }.encode(Sqe::new(opcode, 0, nsid))
}

#[test]
fn writes_in_the_capsule_and_by_r2t_read_back() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        let mut rig = Rig::new();
        let host = Host::connect(&mut rig, Opening { digests, ..Opening::admin(HOST_A) });
        let mut queue = host.queue(&mut rig, 1);
        for (nsid, size) in [(1, 512u32), (2, 4096)] {
            for bytes in [512, 4096, 8192, 12_288, 131_072u32] {
                if bytes % size != 0 {
                    continue;
                }
                let data = pattern(usize::try_from(bytes).unwrap(), 3);
                let blocks = bytes / size;
                rig.auto = false;
                let cid = queue.cid();
                let sqe = rw(nvm::WRITE, nsid, 5, blocks).with_cid(cid);
                let inline = bytes <= 8192;
                let sgl = if inline {
                    Sgl::InCapsule { offset: 0, len: bytes }
                } else {
                    Sgl::Transport { len: bytes }
                };
                let capsule = queue.capsule(&sqe.with_sgl(sgl), if inline { &data } else { &[] });
                rig.feed(queue.conn, &capsule);
                if !inline {
                    let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
                    assert_eq!((r2t.offset, r2t.len, r2t.cid), (0, bytes, cid));
                    assert_ne!(r2t.ttag, 0);
                    assert_eq!(queue.receive(&mut rig), None, "one R2T");
                    let answer = queue.answer(&r2t, &data, 30_000);
                    rig.feed(queue.conn, &answer);
                }
                let seen = rig.volumes.pending.front().unwrap();
                assert_eq!((seen.inline, &seen.data), (inline, &data));
                assert_eq!(seen.request.op, RequestOp::Write);
                rig.run_all();
                rig.auto = true;
                assert!(queue.finish(&mut rig, cid, &[]).cqe.status.is_success());
                let reply = queue.read(&mut rig, rw(nvm::READ, nsid, 5, blocks), bytes);
                assert_eq!(reply.data, data);
            }
        }
    }
}

#[test]
fn fua_reaches_the_volume_and_zeroes_and_ranges_too() {
    let (mut rig, _host, mut queue) = host_and_queue();
    rig.auto = false;
    let sqe = ReadWrite { slba: 1, blocks: 1, fua: true, ..ReadWrite::default() };
    let cid = queue.cid();
    let sqe = sqe.encode(Sqe::new(nvm::WRITE, cid, 1));
    let bytes = queue.capsule(&sqe.with_sgl(Sgl::InCapsule { offset: 0, len: 512 }), &[1; 512]);
    rig.feed(queue.conn, &bytes);
    assert!(rig.volumes.pending.pop_back().unwrap().request.fua);
    for deallocate in [false, true] {
        let rw = ReadWrite { slba: 0, blocks: 4096, deallocate, ..ReadWrite::default() };
        queue.send(&mut rig, rw.encode(Sqe::new(nvm::WRITE_ZEROES, 0, 2)), 0);
        let seen = rig.volumes.pending.pop_back().unwrap();
        // No MDTS for commands without data.
        assert_eq!(seen.request.op, RequestOp::WriteZeroes { deallocate });
        assert_eq!(seen.request.blocks, 4096);
    }
}

#[test]
fn dataset_management_is_split_into_ranges() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let ranges: Vec<u8> = (0..256u64)
        .flat_map(|i| dsm::Range { attributes: 0, blocks: u32::from(i != 3), slba: i }.encode())
        .collect();
    let dsm = |ranges, deallocate| DatasetManagement { ranges, deallocate, ..Default::default() };
    for inline_max in [0, 8192] {
        queue.inline_max = inline_max;
        rig.auto = false;
        let cid = queue.cid();
        let sqe = dsm(256, true).encode(Sqe::new(nvm::DATASET_MANAGEMENT, cid, 1));
        let inline = inline_max > 0;
        let sgl = if inline {
            Sgl::InCapsule { offset: 0, len: 4096 }
        } else {
            Sgl::Transport { len: 4096 }
        };
        let bytes = queue.capsule(&sqe.with_sgl(sgl), if inline { &ranges } else { &[] });
        rig.feed(queue.conn, &bytes);
        if !inline {
            let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
            let answer = queue.answer(&r2t, &ranges, 4096);
            rig.feed(queue.conn, &answer);
        }
        assert_eq!(rig.volumes.pending.len(), 255, "the empty range is left out");
        let mut tags: Vec<_> = rig.volumes.pending.iter().map(|s| s.request.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 255, "every request has its own tag");
        // One of them fails: the command does, once all have ended.
        let first = rig.volumes.pending.pop_front().unwrap();
        let failed = Outcome::Failed(BlockError::WriteFault);
        rig.target.complete(first.request.tag, failed, &mut vec![]);
        for _ in 0..253 {
            assert!(rig.run_one());
        }
        assert_eq!(queue.receive(&mut rig), None);
        assert!(rig.run_one());
        assert_eq!(queue.finish(&mut rig, cid, &[]).cqe.status, Status::WRITE_FAULT);
    }
    rig.auto = true;
    queue.inline_max = 8192;
    let sqe = |dsm: DatasetManagement| dsm.encode(Sqe::new(nvm::DATASET_MANAGEMENT, 0, 1));
    let reply = queue.write(&mut rig, sqe(dsm(256, false)), &ranges);
    assert!(reply.cqe.status.is_success(), "hints alone do nothing");
    let beyond = dsm::Range { attributes: 0, blocks: 2, slba: BLOCKS - 1 }.encode();
    let wrap = dsm::Range { attributes: 0, blocks: 2, slba: u64::MAX }.encode();
    for range in [beyond, wrap] {
        let reply = queue.write(&mut rig, sqe(dsm(1, true)), &range);
        assert_eq!(reply.cqe.status, Status::LBA_OUT_OF_RANGE.dnr());
    }
    let reply = queue.write(&mut rig, sqe(dsm(2, true)), &beyond);
    assert_eq!(reply.cqe.status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    let empty = dsm::Range::default().encode();
    assert!(queue.write(&mut rig, sqe(dsm(1, true)), &empty).cqe.status.is_success());
    // As Linux sends it: room for all ranges, of which only the first counts.
    let mut page = vec![0xff; 4096];
    page[..16].copy_from_slice(&dsm::Range { attributes: 0, blocks: 2, slba: 4 }.encode());
    let before = rig.volumes.seen;
    let reply = queue.write(&mut rig, sqe(dsm(1, true)), &page);
    assert!(reply.cqe.status.is_success());
    assert_eq!(rig.volumes.seen, before + 1, "one range, one request");
    page.resize(4112, 0);
    let reply = queue.write(&mut rig, sqe(dsm(1, true)), &page);
    assert_eq!(reply.cqe.status, Status::DATA_SGL_LENGTH_INVALID.dnr());
    assert_eq!(rig.target.outstanding(), 0);
}

#[test]
fn compare_matches_or_fails() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let data = pattern(4096, 9);
    for inline_max in [0, 8192] {
        queue.inline_max = inline_max;
        queue.write(&mut rig, rw(nvm::WRITE, 1, 0, 8), &data);
        let reply = queue.write(&mut rig, rw(nvm::COMPARE, 1, 0, 8), &data);
        assert!(reply.cqe.status.is_success());
        let reply = queue.write(&mut rig, rw(nvm::COMPARE, 1, 8, 8), &data);
        assert_eq!(reply.cqe.status, Status::COMPARE_FAILURE.dnr());
    }
}

/// The checks before a command becomes a request: nothing reaches the volume.
#[test]
fn wrong_commands_are_refused_before_the_volume() {
    let (mut rig, _host, mut queue) = host_and_queue();
    let transport = |sqe: Sqe, len| sqe.with_sgl(Sgl::Transport { len });
    let prp = |sqe: Sqe| {
        let mut raw = *transport(sqe, 512).as_bytes();
        raw[1] &= 0x3f;
        Sqe::from_bytes(&raw)
    };
    let lba = Status::LBA_OUT_OF_RANGE;
    let field = Status::INVALID_FIELD;
    let length = Status::DATA_SGL_LENGTH_INVALID;
    let namespace = Status::INVALID_NAMESPACE;
    for (sqe, status) in [
        (transport(rw(nvm::READ, 1, BLOCKS, 1), 512), lba),
        (transport(rw(nvm::READ, 1, BLOCKS - 1, 2), 1024), lba),
        (transport(rw(nvm::READ, 1, u64::MAX, 2), 1024), lba),
        (transport(rw(nvm::WRITE, 1, u64::MAX - 7, 8), 4096), lba),
        (rw(nvm::WRITE_ZEROES, 1, BLOCKS, 1), lba),
        (transport(rw(nvm::READ, 2, 0, 33), 33 * 4096), field),
        (transport(rw(nvm::READ, 1, 0, 257), 257 * 512), field),
        (transport(rw(nvm::WRITE, 2, 0, 33), 33 * 4096), field),
        (prp(rw(nvm::READ, 1, 0, 1)), field),
        (prp(rw(nvm::WRITE, 1, 0, 1)), field),
        (transport(rw(nvm::READ, 1, 0, 2), 512), length),
        (transport(rw(nvm::READ, 1, 0, 1), 1024), length),
        (transport(rw(nvm::WRITE, 1, 0, 2), 512), length),
        (
            rw(nvm::READ, 1, 0, 1).with_sgl(Sgl::InCapsule { offset: 0, len: 512 }),
            Status::SGL_TYPE_INVALID,
        ),
        (rw(nvm::WRITE, 1, 0, 1).with_sgl(Sgl::Other(0x20)), Status::SGL_TYPE_INVALID),
        (
            rw(nvm::WRITE, 1, 0, 1).with_sgl(Sgl::InCapsule { offset: 64, len: 512 }),
            Status::SGL_OFFSET_INVALID,
        ),
        (rw(nvm::WRITE, 1, 0, 1).with_sgl(Sgl::InCapsule { offset: 0, len: 512 }), length),
        (transport(rw(nvm::READ, 0, 0, 1), 512), namespace),
        (transport(rw(nvm::READ, 3, 0, 1), 512), namespace),
        (transport(rw(nvm::READ, 0xffff_ffff, 0, 1), 512), namespace),
        (Sqe::new(nvm::FLUSH, 0, 0xffff_ffff), namespace),
        (rw(nvm::WRITE_UNCORRECTABLE, 1, 0, 1), Status::INVALID_OPCODE),
        (rw(nvm::VERIFY, 1, 0, 1), Status::INVALID_OPCODE),
        (rw(nvm::RESERVATION_REGISTER, 1, 0, 1), Status::INVALID_OPCODE),
        (rw(nvm::COPY, 1, 0, 1), Status::INVALID_OPCODE),
        (rw(0xff, 1, 0, 1), Status::INVALID_OPCODE),
    ] {
        let cid = queue.cid();
        let bytes = queue.capsule(&sqe.with_cid(cid), &[]);
        rig.feed(queue.conn, &bytes);
        let reply = queue.finish(&mut rig, cid, &[]);
        assert_eq!(reply.cqe.status, status.dnr(), "{sqe:?}");
    }
    assert_eq!(rig.volumes.seen, 0);
    let config = NamespaceConfig { read_only: true, ..super::rig::namespace(3, BlockSize::B512) };
    rig.target.add_namespace(&nqn(SUBNQN), config, rig.now).unwrap();
    let status = queue.write(&mut rig, rw(nvm::WRITE, 3, 0, 1), &[0; 512]).cqe.status;
    assert_eq!(status, Status::NAMESPACE_WRITE_PROTECTED.dnr());
}

#[test]
fn the_volumes_errors_have_their_status() {
    let (mut rig, _host, mut queue) = host_and_queue();
    for (error, status) in [
        (BlockError::Unrecovered, Status::UNRECOVERED_READ),
        (BlockError::WriteFault, Status::WRITE_FAULT),
        (BlockError::NotReady, Status::ANA_TRANSITION),
        (BlockError::CapacityExceeded, Status::CAPACITY_EXCEEDED),
        (BlockError::Aborted, Status::ABORT_REQUESTED),
        (BlockError::NoSuchVolume, Status::INVALID_NAMESPACE),
        (BlockError::Internal, Status::INTERNAL),
    ] {
        rig.volumes.fail = Some(error);
        let reply = queue.read(&mut rig, rw(nvm::READ, 1, 0, 1), 512);
        assert_eq!((reply.cqe.status, reply.data.len()), (status, 0));
    }
}

/// A host fails a short read; the target never sends one.
#[test]
fn a_read_with_too_little_data_is_an_internal_error() {
    let (mut rig, _host, mut queue) = host_and_queue();
    rig.auto = false;
    for (len, offset) in [(511u32, 0u32), (0, 0), (512, 1)] {
        let cid = queue.send(&mut rig, rw(nvm::READ, 1, 0, 1), 512);
        let seen = rig.volumes.pending.pop_front().unwrap();
        let buf = forebay_io::HeapBuf::from_bytes(&[0; 512]);
        let mut pieces = vec![forebay_io::Piece { buf, offset, len }];
        rig.target.complete(seen.request.tag, Outcome::Done, &mut pieces);
        let reply = queue.finish(&mut rig, cid, &[]);
        assert_eq!((reply.cqe.status, reply.data.len()), (Status::INTERNAL, 0));
    }
}

/// A wrong data digest fails that command with 00h/22h, nothing more.
#[test]
fn a_wrong_data_digest_fails_the_command_only() {
    let digests = Digests { header: false, data: true };
    let mut rig = Rig::new();
    let host = Host::connect(&mut rig, Opening { digests, ..Opening::admin(HOST_A) });
    let mut queue = host.queue(&mut rig, 1);
    let cid = queue.cid();
    let sqe = rw(nvm::WRITE, 1, 0, 1).with_cid(cid);
    let mut bytes = queue.capsule(&sqe.with_sgl(Sgl::InCapsule { offset: 0, len: 512 }), &[7; 512]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    rig.feed(queue.conn, &bytes);
    assert_eq!(queue.finish(&mut rig, cid, &[]).cqe.status, Status::TRANSIENT_TRANSPORT);

    let data = pattern(16_384, 1);
    let cid = queue.send(&mut rig, rw(nvm::WRITE, 2, 0, 4), 16_384);
    let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
    let mut answer = queue.answer(&r2t, &data, 4096);
    answer[24 + 100] ^= 1; // in the first of four PDUs; the others still come
    rig.feed(queue.conn, &answer);
    assert_eq!(queue.finish(&mut rig, cid, &[]).cqe.status, Status::TRANSIENT_TRANSPORT);
    assert_eq!((rig.volumes.seen, rig.target.stats().data_digest_errors), (0, 2));
    let reply = queue.write(&mut rig, rw(nvm::WRITE, 2, 0, 4), &data);
    assert!(reply.cqe.status.is_success());
}

/// Writes that find the pool empty wait in line and are asked for in order.
#[test]
fn writes_wait_for_buffers_in_order() {
    let (mut rig, mut host, mut queue) = host_and_queue();
    rig.pool.left = 1;
    let cids: Vec<u16> =
        (0..4).map(|i| queue.send(&mut rig, rw(nvm::WRITE, 2, i * 4, 4), 16_384)).collect();
    assert!(rig.target.waiting_for_buffers());
    let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
    assert_eq!((r2t.cid, queue.receive(&mut rig)), (cids[0], None));
    // The second in line is aborted before it was asked for.
    let abort = forebay_wire::sqe::Abort { sqid: 1, cid: cids[1] };
    let reply = host.admin.read(&mut rig, abort.encode(Sqe::new(8, 0, 0)), 0);
    assert_eq!(reply.cqe.result, 0);
    let Some(FromTarget::Response(cqe)) = queue.receive(&mut rig) else { panic!() };
    assert_eq!((cqe.cid, cqe.status), (cids[1], Status::ABORT_REQUESTED));
    let abort = forebay_wire::sqe::Abort { sqid: 1, cid: cids[0] };
    let reply = host.admin.read(&mut rig, abort.encode(Sqe::new(8, 0, 0)), 0);
    assert_eq!(reply.cqe.result, 1, "too late");
    rig.target.poll_buffers(&mut rig.pool);
    assert_eq!(queue.receive(&mut rig), None);
    rig.pool.left = 5;
    rig.target.poll_buffers(&mut rig.pool);
    assert!(!rig.target.waiting_for_buffers());
    for cid in &cids[2..] {
        assert_eq!(rig.target.poll_ready().is_some(), *cid == cids[2]);
        let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
        assert_eq!(r2t.cid, *cid);
    }
}

/// Completions of one poll are one contiguous slice of headers: one gathered send.
#[test]
fn many_completions_coalesce() {
    let (mut rig, _host, mut queue) = host_and_queue();
    rig.auto = false;
    for _ in 0..32 {
        queue.send(&mut rig, Sqe::new(nvm::FLUSH, 0, 1), 0);
    }
    rig.run_all();
    assert_eq!(rig.target.poll_ready(), Some(queue.conn));
    assert_eq!(rig.target.poll_ready(), None);
    let tx = rig.target.tx(queue.conn).unwrap();
    assert_eq!((tx.slices().count(), tx.len()), (1, 32 * 24));
}

#[test]
fn counters_and_smart_log_tell_what_was_done() {
    let (mut rig, mut host, mut queue) = host_and_queue();
    let data = pattern(4096, 0);
    for _ in 0..3 {
        queue.write(&mut rig, rw(nvm::WRITE, 2, 0, 1), &data);
        queue.read(&mut rig, rw(nvm::READ, 2, 0, 1), 4096);
        queue.read(&mut rig, rw(nvm::READ, 1, 0, 8), 4096);
    }
    queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 2), 0);
    let counters = rig.target.namespace_counters(&nqn(SUBNQN), 2).unwrap();
    assert_eq!((counters.reads, counters.blocks_read), (3, 3));
    assert_eq!((counters.writes, counters.blocks_written, counters.flushes), (3, 3, 1));
    let raw = host.admin.log(&mut rig, forebay_wire::log::SMART, 512).data;
    let smart = forebay_wire::log::Smart::decode(raw.as_slice().try_into().unwrap());
    assert_eq!((smart.host_reads, smart.host_writes), (6, 3));
    assert_eq!((smart.data_units_read, smart.data_units_written), (1, 1));
    let info = rig.target.controllers().next().unwrap();
    assert_eq!(info.queues.len(), 2);
    assert_eq!(info.queues[1].2.commands, 10);
}

/// From the capsule (not from the data that is asked for) to the time that the shell reads after
/// the response was queued; what fails is not in it.
#[test]
fn latencies_are_from_the_capsule_to_the_end_of_the_loop() {
    use forebay_io::Duration;
    let (mut rig, _host, mut queue) = host_and_queue();
    let latency = |rig: &Rig| rig.target.namespace_latency(&nqn(SUBNQN), 2).unwrap().clone();
    let cid = queue.send(&mut rig, rw(nvm::WRITE, 2, 0, 4), 16_384);
    let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
    rig.now = Instant(rig.now.0 + 300_000);
    let data = queue.answer(&r2t, &pattern(16_384, 1), 16_384);
    rig.feed(queue.conn, &data);
    assert!(queue.finish(&mut rig, cid, &[]).cqe.status.is_success());
    assert_eq!(latency(&rig), NamespaceLatency::default(), "its end is not known yet");
    let now = Instant(rig.now.0 + 20_000);
    rig.target.measure(now);
    let write = latency(&rig).write;
    assert_eq!((write.count(), write.total()), (1, Duration::from_micros(320)));
    assert_eq!((write.max(), write.quantile(999_000)), (write.total(), write.total()));
    for _ in 0..3 {
        queue.read(&mut rig, rw(nvm::READ, 2, 0, 1), 4096);
    }
    queue.read(&mut rig, Sqe::new(nvm::FLUSH, 0, 2), 0);
    rig.volumes.fail = Some(BlockError::Unrecovered);
    queue.read(&mut rig, rw(nvm::READ, 2, 0, 1), 4096);
    rig.target.measure(now);
    rig.target.measure(Instant(now.0 + SECOND));
    let all = latency(&rig);
    let counts = (all.read.count(), all.write.count(), all.flush.count());
    let counters = rig.target.namespace_counters(&nqn(SUBNQN), 2).unwrap();
    assert_eq!(counts, (counters.reads, counters.writes, counters.flushes));
    assert_eq!((counts, counters.errors), ((3, 1, 1), 1));
    assert_eq!(all.read.max(), Duration::from_micros(20), "measured once");
    let other = rig.target.namespace_latency(&nqn(SUBNQN), 1).unwrap();
    assert_eq!(*other, NamespaceLatency::default());
}

/// Every byte of a session's input; then the same input in other pieces gives the same output.
fn session(chunks: &[usize], digests: Digests) -> (Vec<u8>, Vec<Seen>) {
    let mut rig = Rig::new();
    let host = Host::connect(&mut rig, Opening { digests, ..Opening::admin(HOST_A) });
    let mut queue = host.queue(&mut rig, 1);
    let data = pattern(12_288, 5);
    let mut input = Vec::new();
    let write = |queue: &mut Queue, blocks: u32| {
        let len = blocks * 512;
        let cid = queue.cid();
        let sqe = rw(nvm::WRITE, 1, 3, blocks).with_cid(cid);
        queue.capsule(
            &sqe.with_sgl(Sgl::InCapsule { offset: 0, len }),
            &data[..usize::try_from(len).unwrap()],
        )
    };
    for blocks in [1, 16, 3] {
        input.extend(write(&mut queue, blocks));
        let cid = queue.cid();
        let read = rw(nvm::READ, 1, 3, blocks).with_cid(cid);
        input.extend(queue.capsule(&read.with_sgl(Sgl::Transport { len: blocks * 512 }), &[]));
    }
    // Two writes by R2T: the tags are known, the target gives them in order.
    for _ in 0..2 {
        let cid = queue.cid();
        let sqe = rw(nvm::WRITE, 2, 7, 3).with_cid(cid).with_sgl(Sgl::Transport { len: 12_288 });
        let bytes = queue.capsule(&sqe, &[]);
        rig.feed(queue.conn, &bytes);
        let Some(FromTarget::R2t(r2t)) = queue.receive(&mut rig) else { panic!() };
        input.extend(queue.answer(&r2t, &data, 5000));
        input.extend(write(&mut queue, 2));
    }
    rig.auto = false;
    let mut chunks = chunks.iter().copied().cycle();
    let mut at = 0;
    while at < input.len() {
        let end = (at + chunks.next().unwrap()).min(input.len());
        rig.feed(queue.conn, &input[at..end]);
        at = end;
    }
    let seen = rig.volumes.pending.iter().cloned().collect();
    rig.run_all();
    (rig.output(queue.conn), seen)
}

#[test]
fn a_session_in_pieces_of_every_size_is_the_same() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        let whole = session(&[usize::MAX / 2], digests);
        assert_eq!(whole.1.len(), 10);
        for size in (1..100).chain([500, 4168, 8191, 8192, 8193]) {
            assert!(session(&[size], digests) == whole, "pieces of {size} bytes");
        }
    }
}

proptest! {
    #[test]
    fn a_session_cut_anywhere_is_the_same(
        cuts in proptest::collection::vec(1usize..9000, 1..20), header: bool, data: bool
    ) {
        let digests = Digests { header, data };
        prop_assert!(session(&cuts, digests) == session(&[usize::MAX / 2], digests));
    }
}
