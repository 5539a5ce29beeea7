//! The initiator against a scripted controller, whose every byte a test can change.

use super::admin::Identity;
use super::remote::{Link, RemoteConfig};
use super::*;
use forebay_io::{
    Buf, BufPool, Completion, DeviceError, Duration, HeapBuf, HeapPool, Instant, Op, OpKind,
};
use forebay_wire::tcp::{Digests, Fes};
use peer::{Peer, Script};
use std::io::IoSlice;

mod hostile;
mod peer;
mod target;

pub(super) fn host(queues: u16, digests: Digests, no_sq_flow: bool) -> HostConfig {
    HostConfig {
        identity: Identity {
            hostnqn: "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-4333-8444-555555555555"
                .parse()
                .unwrap(),
            hostid: [0x11; 16],
            subnqn: "nqn.2026-01.io.forebay:v".parse().unwrap(),
        },
        nsid: 1,
        queues,
        depth: 16,
        digests,
        no_sq_flow,
        keep_alive: Duration::from_secs(10),
        setup_timeout: Duration::from_secs(5),
        io_timeout: Duration::from_secs(30),
    }
}

pub(super) fn remote_config(host: HostConfig) -> RemoteConfig {
    RemoteConfig {
        host,
        reconnect_min: Duration::from_millis(100),
        reconnect_max: Duration::from_secs(5),
        fail_after: Duration::from_secs(3),
    }
}

/// All that a queue has to send, taken out in pieces of `step` bytes.
fn sent(remote: &mut Remote<HeapBuf>, queue: u16, step: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while remote.has_output(queue) {
        let mut slices = [IoSlice::new(&[]); 3];
        let used = remote.gather(queue, &mut slices);
        let now: Vec<u8> = slices[..used].iter().flat_map(|s| s.to_vec()).collect();
        let count = now.len().min(step);
        all.extend_from_slice(&now[..count]);
        remote.advance(queue, count);
    }
    all
}

/// A remote namespace and the controllers' ends of its connections.
struct Bench {
    remote: Remote<HeapBuf>,
    script: Script,
    peers: Vec<Option<Peer>>,
    now: Instant,
    /// Bytes handed over at a time.
    step: usize,
    reachable: bool,
    opened: u32,
}

impl Bench {
    fn new(script: Script, host: HostConfig) -> Self {
        let queues = usize::from(host.queues) + 1;
        let now = Instant(1_000_000_000);
        Self {
            remote: Remote::new(remote_config(host), now),
            script,
            peers: (0..queues).map(|_| None).collect(),
            now,
            step: usize::MAX,
            reachable: true,
            opened: 0,
        }
    }

    /// Carries everything to and fro until nothing moves.
    fn settle(&mut self) -> Vec<Completion<HeapBuf>> {
        let mut done = Vec::new();
        loop {
            let mut moved = false;
            while let Some(action) = self.remote.poll_action() {
                moved = true;
                self.act(action);
            }
            for queue in 0..self.peers.len() {
                let id = u16::try_from(queue).unwrap();
                let bytes = sent(&mut self.remote, id, self.step);
                let Some(peer) = &mut self.peers[queue] else { continue };
                let answer = peer.handle(&bytes);
                moved |= !bytes.is_empty() || !answer.is_empty();
                for part in answer.chunks(self.step.min(1 << 20)) {
                    self.remote.handle_bytes(id, part, self.now);
                }
            }
            done.extend(std::iter::from_fn(|| self.remote.poll_done()));
            if !moved {
                return done;
            }
        }
    }

    fn act(&mut self, action: SocketAction) {
        match action {
            SocketAction::Open(queue) if self.reachable => {
                self.opened += 1;
                self.peers[usize::from(queue)] = Some(Peer::new(self.script.clone()));
                self.remote.handle_connected(queue, self.now);
            }
            SocketAction::Open(_) => self.remote.handle_closed(self.now),
            SocketAction::CloseAll => {
                for queue in 0..self.peers.len() {
                    let last = sent(&mut self.remote, u16::try_from(queue).unwrap(), 64);
                    if let Some(peer) = &mut self.peers[queue] {
                        peer.handle(&last);
                        self.script.farewells.borrow_mut().append(&mut peer.farewells);
                    }
                    self.peers[queue] = None;
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) -> Vec<Completion<HeapBuf>> {
        self.now = self.now + time;
        self.remote.handle_timeout(self.now);
        self.settle()
    }

    fn run(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        self.remote.submit(op, self.now).unwrap();
        let mut done = self.settle();
        assert_eq!(done.len(), 1, "{:?}", self.remote.last_error());
        done.remove(0)
    }
}

fn pattern(len: usize, seed: u8) -> HeapBuf {
    let bytes: Vec<u8> = (0..len).map(|i| seed.wrapping_add((i / 7).to_le_bytes()[0])).collect();
    HeapBuf::from_bytes(&bytes)
}

fn read_back(bench: &mut Bench, offset: u64, len: usize) -> HeapBuf {
    let buf = HeapPool.alloc(len).unwrap();
    let done = bench.run(Op::read(9, offset, len as u64, buf));
    assert_eq!(done.result, Ok(()));
    done.buf.unwrap()
}

fn write(bench: &mut Bench, offset: u64, data: &HeapBuf) {
    let done = bench.run(Op::write(8, offset, data.len() as u64, data.clone()));
    assert_eq!((done.token, done.result), (8, Ok(())));
    assert_eq!(done.buf.as_ref().map(Buf::as_slice), Some(data.as_slice()));
}

#[test]
fn every_size_way_and_digest_brings_the_data() {
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        for (success, maxh2cdata, c2h, step) in [
            (false, 131_072, 1 << 20, usize::MAX),
            (true, 4096, 3000, usize::MAX),
            (true, 4100, 512, 1),
            (false, 8192, 4096, 13),
        ] {
            let digests = Digests { header, data };
            let script = Script { success, maxh2cdata, c2h_chunk: c2h, ..Script::default() };
            let mut bench = Bench::new(script, host(2, digests, success));
            bench.step = step;
            bench.settle();
            assert_eq!(*bench.remote.link(), Link::Up, "{:?}", bench.remote.last_error());
            assert_eq!(bench.opened, 3);
            let sizes = [512usize, 4096, 8192, if step == 1 { 12_288 } else { 65_536 }];
            for (turn, len) in sizes.into_iter().enumerate() {
                let (offset, data) = (turn as u64 * 131_072, pattern(len, turn.to_le_bytes()[0]));
                write(&mut bench, offset, &data);
                let back = read_back(&mut bench, offset, len);
                assert_eq!(back, data, "{digests:?} {success} {maxh2cdata} {c2h} {step} {len}");
            }
        }
    }
}

#[test]
fn it_states_what_the_namespace_is() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    assert!(bench.remote.info().is_none());
    bench.settle();
    let info = bench.remote.info().unwrap().clone();
    assert_eq!((info.size, info.block_size, info.max_io), (1 << 20, 512, 1 << 17));
    assert_eq!((info.atomic_write, info.volatile_write_cache), (8 * 512, true));
    assert!(info.deallocate && info.write_zeroes);
    assert_eq!(info.identity, "nvme-uuid.abababab-abab-abab-abab-abababababab");
    assert_eq!(bench.remote.controller().unwrap().info().unwrap().cntlid, 7);
}

#[test]
fn flush_zeroes_and_deallocate() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), true));
    bench.settle();
    write(&mut bench, 0, &pattern(8192, 1));
    assert_eq!(bench.run(Op::flush(1)).result, Ok(()));
    assert_eq!(bench.run(Op::range(2, OpKind::WriteZeroes, 512, 512)).result, Ok(()));
    assert_eq!(bench.run(Op::range(3, OpKind::Deallocate, 4096, 4096)).result, Ok(()));
    let back = read_back(&mut bench, 0, 8192);
    assert_eq!(back.as_slice()[..512], pattern(512, 1).as_slice()[..]);
    assert!(back.as_slice()[512..1024].iter().all(|b| *b == 0));
    assert!(back.as_slice()[4096..].iter().all(|b| *b == 0));
    // More than one command: the namespace pretends to be large.
    let script = Script { blocks: 1 << 34, ..Script::default() };
    let mut bench = Bench::new(script, host(1, Digests::default(), true));
    bench.settle();
    let all = (1u64 << 34) * 512;
    assert_eq!(bench.run(Op::range(4, OpKind::Deallocate, 0, all)).result, Ok(()));
    assert_eq!(bench.run(Op::range(5, OpKind::WriteZeroes, 0, 100 << 20)).result, Ok(()));
    let counts = bench.peers[1].as_ref().unwrap().counts.clone();
    assert_eq!((counts.get(&9), counts.get(&8)), (Some(&5), Some(&4)));
}

#[test]
fn bad_operations_fail_and_are_not_sent() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.settle();
    let buf = pattern(4096, 0);
    for (op, want) in [
        (Op::read(0, 100, 512, buf.clone()), DeviceError::Unsupported),
        (Op::read(0, 0, 8192, buf.clone()), DeviceError::Unsupported),
        (Op::read(0, 1 << 20, 512, buf.clone()), DeviceError::OutOfRange),
        (Op::write(0, u64::MAX - 511, 512, buf.clone()), DeviceError::OutOfRange),
        (Op::write(0, 0, 0, buf.clone()), DeviceError::Unsupported),
    ] {
        let done = bench.run(op);
        assert_eq!(done.result, Err(want));
        assert!(done.buf.is_some());
    }
    assert!(bench.peers[1].as_ref().unwrap().counts.is_empty());
}

#[test]
fn a_full_queue_gives_operations_back_and_all_complete() {
    let mut bench = Bench::new(Script::default(), host(2, Digests::default(), true));
    bench.settle();
    let mut taken = 0u64;
    while bench.remote.submit(Op::read(taken, 0, 512, pattern(512, 0)), bench.now).is_ok() {
        taken += 1;
    }
    assert_eq!((taken, bench.remote.in_flight()), (32, 32));
    let mut tokens: Vec<u64> = bench.settle().iter().map(|done| done.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..32).collect::<Vec<_>>());
    assert_eq!(bench.remote.in_flight(), 0);
}

#[test]
fn statuses_become_device_errors_and_transient_ones_are_tried_again() {
    use forebay_wire::Status;
    let cases = [
        (Status::UNRECOVERED_READ, DeviceError::Media),
        (Status::CAPACITY_EXCEEDED.dnr(), DeviceError::NoSpace),
        (Status::LBA_OUT_OF_RANGE.dnr(), DeviceError::OutOfRange),
        (Status::INVALID_NAMESPACE.dnr(), DeviceError::Gone),
        (Status::WRITE_FAULT, DeviceError::Io(0)),
    ];
    for (status, want) in cases {
        let script = Script { fail_io: Some((status, u32::MAX)), ..Script::default() };
        let mut bench = Bench::new(script, host(1, Digests::default(), false));
        bench.settle();
        let done = bench.run(Op::read(1, 0, 512, pattern(512, 0)));
        assert_eq!(done.result, Err(want), "{status}");
    }
    let script = Script { fail_io: Some((Status::NAMESPACE_NOT_READY, 3)), ..Script::default() };
    let mut bench = Bench::new(script, host(1, Digests::default(), false));
    bench.settle();
    bench.remote.submit(Op::read(1, 0, 512, pattern(512, 0)), bench.now).unwrap();
    assert!(bench.settle().is_empty());
    let waits = (0..10).take_while(|_| bench.pass(Duration::from_millis(50)).is_empty()).count();
    assert_eq!(waits, 2, "the fourth attempt ends well");
    let script =
        Script { fail_io: Some((Status::ANA_INACCESSIBLE, u32::MAX)), ..Script::default() };
    let mut bench = Bench::new(script, host(1, Digests::default(), false));
    bench.settle();
    bench.remote.submit(Op::read(1, 0, 512, pattern(512, 0)), bench.now).unwrap();
    bench.settle();
    let waits = (0..100).take_while(|_| bench.pass(Duration::from_millis(50)).is_empty()).count();
    assert_eq!(waits, 59, "given up after three seconds");
}

#[test]
fn a_wrong_data_digest_from_the_controller_fails_the_command_alone() {
    let digests = Digests { header: true, data: true };
    let script = Script { damage_data: 1, ..Script::default() };
    let mut bench = Bench::new(script, host(1, digests, false));
    bench.settle();
    write(&mut bench, 0, &pattern(4096, 3));
    // The first answer is damaged; the command is tried again by itself.
    bench.remote.submit(Op::read(1, 0, 4096, pattern(4096, 0)), bench.now).unwrap();
    assert!(bench.settle().is_empty());
    let done = bench.pass(Duration::from_millis(60));
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(done[0].buf.as_ref(), Some(&pattern(4096, 3)));
    assert_eq!(bench.remote.associations(), 1);
}

#[test]
fn a_lost_connection_fails_what_was_in_flight_and_comes_back() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.settle();
    bench.remote.submit(Op::write(1, 0, 512, pattern(512, 0)), bench.now).unwrap();
    bench.reachable = false;
    bench.remote.handle_closed(bench.now);
    let done = bench.settle();
    assert_eq!((done.len(), done[0].result), (1, Err(DeviceError::Gone)));
    assert!(done[0].buf.is_some());
    assert_eq!(*bench.remote.link(), Link::Connecting);
    // Submitted in the meantime: waits, and is carried out on the new association.
    bench.remote.submit(Op::read(2, 0, 512, pattern(512, 0)), bench.now).unwrap();
    assert!(bench.settle().is_empty());
    for _ in 0..3 {
        assert!(bench.pass(Duration::from_millis(400)).is_empty());
    }
    bench.reachable = true;
    let done = bench.pass(Duration::from_millis(800));
    assert_eq!((done.len(), done[0].token, done[0].result), (1, 2, Ok(())));
    assert_eq!((bench.remote.associations(), bench.remote.link()), (2, &Link::Up));
}

#[test]
fn waiting_ends_after_a_bound_and_then_nothing_waits() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.settle();
    bench.reachable = false;
    bench.remote.handle_closed(bench.now);
    bench.remote.submit(Op::read(1, 0, 512, pattern(512, 0)), bench.now).unwrap();
    assert!(bench.pass(Duration::from_millis(2900)).is_empty());
    let done = bench.pass(Duration::from_millis(200));
    assert_eq!((done.len(), done[0].result), (1, Err(DeviceError::Gone)));
    let done = bench.run(Op::read(2, 0, 512, pattern(512, 0)));
    assert_eq!(done.result, Err(DeviceError::Gone));
    bench.reachable = true;
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.run(Op::flush(3)).result, Ok(()));
}

#[test]
fn silence_ends_the_association() {
    for (mute, io, what) in [(true, true, "an I/O command"), (true, false, "keep-alive")] {
        let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
        bench.settle();
        for peer in bench.peers.iter_mut().flatten() {
            peer.mute = mute;
        }
        if io {
            bench.remote.submit(Op::flush(1), bench.now).unwrap();
            // The admin queue still answers.
            bench.peers[0].as_mut().unwrap().mute = false;
        }
        let mut done = Vec::new();
        let mut spent = 0;
        while bench.remote.last_error().is_none() && spent < 100 {
            spent += 1;
            done.append(&mut bench.pass(Duration::from_secs(1)));
        }
        assert_eq!(bench.remote.last_error(), Some(&Error::Timeout(what)));
        assert!(if io { (30..32).contains(&spent) } else { spent <= 11 }, "{what}: {spent} s");
        if io {
            assert_eq!(done[0].result, Err(DeviceError::Timeout));
        }
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.remote.associations(), 2);
    }
}

#[test]
fn a_namespace_that_grows_is_noticed_and_another_one_is_refused() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.settle();
    let admin = bench.peers[0].as_mut().unwrap();
    admin.script.blocks = 4096;
    let event = admin.raise_namespace_event();
    bench.remote.handle_bytes(0, &event, bench.now);
    bench.settle();
    assert_eq!(bench.remote.info().unwrap().size, 4096 * 512);
    // A second event comes through as well: the request was sent anew.
    let admin = bench.peers[0].as_mut().unwrap();
    admin.script.blocks = 8192;
    let event = admin.raise_namespace_event();
    bench.remote.handle_bytes(0, &event, bench.now);
    bench.settle();
    assert_eq!(bench.remote.info().unwrap().size, 8192 * 512);
    bench.script.uuid = [9; 16];
    bench.remote.handle_closed(bench.now);
    bench.settle();
    bench.pass(Duration::from_secs(1));
    assert_eq!(*bench.remote.link(), Link::Dead);
    let text = bench.remote.last_error().unwrap().to_string();
    assert!(text.contains("another one answers"), "{text}");
    assert_eq!(bench.run(Op::flush(1)).result, Err(DeviceError::Gone));
}

#[test]
fn refusals_are_told_and_final_ones_are_not_repeated() {
    use forebay_wire::Status;
    let refuse = Some(Status::CONNECT_INVALID_HOST.dnr());
    let script = Script { refuse_connect: refuse, ..Script::default() };
    let mut bench = Bench::new(script, host(1, Digests::default(), false));
    bench.settle();
    assert_eq!(*bench.remote.link(), Link::Dead);
    let text = bench.remote.last_error().unwrap().to_string();
    assert!(text.contains("Connect of the admin queue") && text.contains("CONNECT_INVALID_HOST"));
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.opened, 1);
    // Busy is another matter.
    let refuse = Some(Status::CONNECT_BUSY);
    let script = Script { refuse_connect: refuse, ..Script::default() };
    let mut bench = Bench::new(script, host(1, Digests::default(), false));
    bench.settle();
    bench.script.refuse_connect = None;
    bench.pass(Duration::from_secs(1));
    assert_eq!((bench.opened, bench.remote.link()), (3, &Link::Up));
}

#[test]
fn a_shutdown_tells_the_controller() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.settle();
    bench.remote.shut_down(bench.now);
    assert!(!bench.remote.is_shut_down());
    bench.settle();
    assert!(bench.remote.is_shut_down());
    assert_eq!(bench.peers[0].as_ref().unwrap().cc >> 14 & 3, 1, "SHN: normal");
}

#[test]
fn pauses_between_attempts_double() {
    let mut bench = Bench::new(Script::default(), host(1, Digests::default(), false));
    bench.reachable = false;
    bench.settle();
    let mut attempts = Vec::new();
    for tick in 0..200u64 {
        let before = bench.remote.next_deadline();
        bench.pass(Duration::from_millis(100));
        if bench.remote.next_deadline() > before {
            attempts.push(tick);
        }
    }
    assert!((6..12).contains(&attempts.len()), "{attempts:?}");
    assert_eq!(bench.remote.last_error(), Some(&Error::Closed));
}

#[test]
fn a_discovery_log_is_read_whole_even_if_it_changes() {
    for (entries, changes) in [(0, 0), (1, 0), (3, 0), (4, 0), (9, 2)] {
        let script = Script { entries, log_changes: changes, ..Script::default() };
        let mut peer = Peer::new(script);
        let now = Instant(0);
        let hostnqn = "nqn.2014-08.org.nvmexpress:uuid:1".parse().unwrap();
        let mut discovery = Discovery::new(hostnqn, [1; 16], Duration::from_secs(5), now).unwrap();
        loop {
            let mut bytes = Vec::new();
            while !discovery.output().is_empty() {
                let mut slices = [IoSlice::new(&[]); 4];
                let used = discovery.output().gather(&mut slices);
                let part: Vec<u8> = slices[..used].iter().flat_map(|s| s.to_vec()).collect();
                discovery.output().advance(part.len());
                bytes.extend(part);
            }
            let answer = peer.handle(&bytes);
            if answer.is_empty() {
                break;
            }
            discovery.handle_bytes(&answer, now).unwrap();
        }
        let found = discovery.result().expect("read");
        assert_eq!(found.len() as u64, entries);
        assert!(found.iter().enumerate().all(|(i, entry)| entry.trsvcid == (4420 + i).to_string()));
        assert_eq!(peer.script.log_changes, 0);
    }
}
