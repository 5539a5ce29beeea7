//! The initiator against the project's own target, both in this process, connected back to back.

use super::*;
use crate::target::{
    AnaState, BlockSize, ConnId, DiscoveryRecord, Event, HostAccess, IoSink, LocalAddress,
    NamespaceConfig, SubsystemConfig, Target, TargetConfig,
};
use crate::tcp::{Handshake, Progress};
use forebay_io::{BlockError, Outcome, Payload, Piece, Request, RequestOp, Uuid, VolumeId};
use forebay_wire::log::{DiscoveryEntry, SubsystemType};
use proptest::prelude::*;

const SIZE: usize = 4 << 20;

/// A volume in memory that answers when it is asked to.
struct Volume {
    memory: Vec<u8>,
    block_size: usize,
    pending: Vec<(Request, Vec<u8>)>,
    hold: bool,
    fail: Option<BlockError>,
}

impl IoSink<HeapBuf> for Volume {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let data = match payload {
            Payload::None => Vec::new(),
            Payload::Inline(bytes) => bytes.to_vec(),
            Payload::Owned(buf) => buf.as_slice().to_vec(),
            Payload::Pair(..) => panic!("the initiator sends no fused pairs"),
        };
        self.pending.push((request, data));
    }
}

impl Volume {
    fn answer(&mut self, request: &Request, data: &[u8]) -> (Outcome, Vec<Piece<HeapBuf>>) {
        if let Some(error) = self.fail {
            return (Outcome::Failed(error), Vec::new());
        }
        let first = usize::try_from(request.lba.0).unwrap() * self.block_size;
        let place = first..first + request.blocks as usize * self.block_size;
        let mut pieces = Vec::new();
        match request.op {
            RequestOp::Read => {
                // In two pieces, as a read across cache blocks would be.
                let buf = HeapBuf::from_bytes(&self.memory[place]);
                let half = u32::try_from(buf.len() / 2).unwrap();
                pieces.push(Piece { buf: buf.clone(), offset: 0, len: half });
                let len = u32::try_from(buf.len()).unwrap() - half;
                pieces.push(Piece { buf, offset: half, len });
            }
            RequestOp::Write => self.memory[place].copy_from_slice(data),
            RequestOp::WriteZeroes { .. } | RequestOp::Deallocate => self.memory[place].fill(0),
            RequestOp::Flush => {}
            other => panic!("{other:?}"),
        }
        (Outcome::Done, pieces)
    }
}

enum End {
    Handshake(Handshake),
    Conn(ConnId),
}

/// A target, a volume, and the connections of one remote namespace.
struct Pair {
    remote: Remote<HeapBuf>,
    target: Target<HeapBuf>,
    volume: Volume,
    ends: Vec<Option<End>>,
    now: Instant,
    step: usize,
    shift: usize,
}

fn subnqn() -> forebay_wire::Nqn {
    "nqn.2026-01.io.forebay:v".parse().unwrap()
}

fn target(block_size: BlockSize, now: Instant) -> Target<HeapBuf> {
    let mut target = Target::new(TargetConfig::default(), now);
    let config = SubsystemConfig { nqn: subnqn(), serial: "FB1".into(), hosts: HostAccess::Any };
    target.add_subsystem(config).unwrap();
    let namespace = NamespaceConfig {
        nsid: 1,
        volume: VolumeId(3),
        blocks: SIZE as u64 / u64::from(block_size.bytes()),
        block_size,
        uuid: Uuid([0x77; 16]),
        nguid: [0x77; 16],
        volatile_write_cache: true,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 4096,
    };
    target.add_namespace(&subnqn(), namespace, now).unwrap();
    target
}

impl Pair {
    fn new(host: HostConfig, block_size: BlockSize, step: usize) -> Self {
        let now = Instant(1_000_000_000);
        let queues = usize::from(host.queues) + 1;
        let mut pair = Self {
            remote: Remote::new(remote_config(host), now),
            target: target(block_size, now),
            volume: Volume {
                memory: vec![0; SIZE],
                block_size: block_size.bytes() as usize,
                pending: Vec::new(),
                hold: false,
                fail: None,
            },
            ends: (0..queues).map(|_| None).collect(),
            now,
            step,
            shift: 0,
        };
        pair.settle();
        pair
    }

    fn settle(&mut self) -> Vec<Completion<HeapBuf>> {
        let mut done = Vec::new();
        loop {
            let mut moved = false;
            while let Some(action) = self.remote.poll_action() {
                moved = true;
                self.act(action);
            }
            for queue in 0..self.ends.len() {
                moved |= self.carry(queue);
            }
            while !self.volume.hold && !self.volume.pending.is_empty() {
                moved = true;
                // Any order will do.
                self.shift += 5;
                let at = self.shift % self.volume.pending.len();
                let (request, data) = self.volume.pending.swap_remove(at);
                let (outcome, mut pieces) = self.volume.answer(&request, &data);
                self.target.complete(request.tag, outcome, &mut pieces);
            }
            while let Some(event) = self.target.poll_event() {
                if let Event::Close(id) = event {
                    self.close(id);
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
            SocketAction::Open(queue) => {
                let handshake = Handshake::new(self.now, Duration::from_secs(10));
                self.ends[usize::from(queue)] = Some(End::Handshake(handshake));
                self.remote.handle_connected(queue, self.now);
            }
            SocketAction::CloseAll => {
                for end in &mut self.ends {
                    if let Some(End::Conn(id)) = end.take() {
                        self.target.conn_closed(id, self.now);
                    }
                }
            }
        }
    }

    fn close(&mut self, id: ConnId) {
        self.target.conn_closed(id, self.now);
        let held = self.ends.iter_mut().find(|end| matches!(end, Some(End::Conn(at)) if *at == id));
        if let Some(end) = held {
            *end = None;
            self.remote.handle_closed(self.now);
        }
    }

    /// Bytes of one connection, both ways; says whether there were any.
    fn carry(&mut self, queue: usize) -> bool {
        let id = u16::try_from(queue).unwrap();
        let out = sent(&mut self.remote, id, self.step);
        for part in out.chunks(self.step.min(1 << 20)) {
            self.give_target(queue, part);
        }
        let back = self.take_target(queue);
        for part in back.chunks(self.step.min(1 << 20)) {
            self.remote.handle_bytes(id, part, self.now);
        }
        !out.is_empty() || !back.is_empty()
    }

    fn give_target(&mut self, queue: usize, bytes: &[u8]) {
        match &mut self.ends[queue] {
            None => {}
            Some(End::Conn(id)) => {
                self.target.handle_bytes(*id, bytes, self.now, &mut HeapPool, &mut self.volume);
            }
            Some(End::Handshake(handshake)) => match handshake.handle_bytes(bytes) {
                Progress::More => {}
                Progress::Failed(error) => panic!("{error}"),
                Progress::Established(established) => {
                    let local = LocalAddress::default();
                    let id = self.target.accept(&established, &local, self.now).unwrap();
                    self.ends[queue] = Some(End::Conn(id));
                    self.give_target(queue, &established.leftover);
                }
            },
        }
    }

    fn take_target(&mut self, queue: usize) -> Vec<u8> {
        match &mut self.ends[queue] {
            None => Vec::new(),
            Some(End::Handshake(handshake)) => {
                let bytes = handshake.output().to_vec();
                handshake.advance(bytes.len());
                bytes
            }
            Some(End::Conn(id)) => {
                let bytes: Vec<u8> = self
                    .target
                    .tx(*id)
                    .map(|tx| tx.slices().flat_map(<[u8]>::to_vec).collect())
                    .unwrap_or_default();
                self.target.advance(*id, bytes.len());
                bytes
            }
        }
    }

    fn pass(&mut self, time: Duration) -> Vec<Completion<HeapBuf>> {
        self.now = self.now + time;
        self.remote.handle_timeout(self.now);
        self.target.handle_timeout(self.now);
        self.settle()
    }

    fn run(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        self.remote.submit(op, self.now).unwrap();
        let mut done = self.settle();
        assert_eq!(done.len(), 1, "{:?}", self.remote.last_error());
        done.remove(0)
    }
}

#[test]
fn it_comes_up_and_moves_data_in_every_combination() {
    for bits in 0..16u8 {
        let digests = Digests { header: bits & 1 != 0, data: bits & 2 != 0 };
        let no_sq_flow = bits & 4 != 0;
        let block_size = if bits & 8 != 0 { BlockSize::B512 } else { BlockSize::B4096 };
        for (queues, step) in [(1, usize::MAX), (4, 1000), (2, 7)] {
            let mut pair = Pair::new(host(queues, digests, no_sq_flow), block_size, step);
            let error = pair.remote.last_error();
            assert_eq!(*pair.remote.link(), Link::Up, "{digests:?} {queues} {step}: {error:?}");
            let info = pair.remote.info().unwrap();
            assert_eq!((info.size, info.max_io), (SIZE as u64, 128 << 10));
            assert!(info.deallocate && info.write_zeroes && info.volatile_write_cache);
            for len in [4096usize, 8192, 12_288, if step == 7 { 16_384 } else { 131_072 }] {
                let (offset, data) = (len as u64 * 2, pattern(len, bits));
                let op = Op::write(1, offset, len as u64, data.clone());
                assert_eq!(pair.run(op).result, Ok(()));
                let buf = HeapPool.alloc(len).unwrap();
                let done = pair.run(Op::read(2, offset, len as u64, buf));
                assert_eq!((done.result, done.buf), (Ok(()), Some(data)), "{len}");
            }
            assert_eq!(pair.run(Op::flush(3)).result, Ok(()));
        }
    }
}

#[test]
fn zeroes_and_deallocation_reach_the_volume() {
    let mut pair = Pair::new(host(1, Digests::default(), false), BlockSize::B512, usize::MAX);
    pair.volume.memory.fill(1);
    let op = Op::range(1, OpKind::WriteZeroes, 512, 1024);
    assert_eq!(pair.run(op).result, Ok(()));
    assert_eq!(pair.run(Op::range(2, OpKind::Deallocate, 8192, 1 << 20)).result, Ok(()));
    let zero = pair.volume.memory.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zero, 1024 + (1 << 20));
    assert!(pair.volume.memory[512..1536].iter().all(|byte| *byte == 0));
}

#[test]
fn volume_errors_come_out_as_device_errors() {
    let mut pair = Pair::new(host(1, Digests::default(), true), BlockSize::B4096, usize::MAX);
    for (error, want) in [
        (BlockError::Unrecovered, DeviceError::Media),
        (BlockError::WriteFault, DeviceError::Io(0)),
        (BlockError::CapacityExceeded, DeviceError::NoSpace),
        (BlockError::Internal, DeviceError::Io(0)),
    ] {
        pair.volume.fail = Some(error);
        let done = pair.run(Op::read(1, 0, 4096, pattern(4096, 0)));
        assert_eq!(done.result, Err(want), "{error}");
    }
    pair.volume.fail = Some(BlockError::NotReady);
    pair.remote.submit(Op::flush(2), pair.now).unwrap();
    assert!(pair.settle().is_empty(), "tried again later");
    pair.volume.fail = None;
    assert_eq!(pair.pass(Duration::from_millis(60))[0].result, Ok(()));
}

#[test]
fn keep_alive_holds_an_idle_association_and_a_resize_is_noticed() {
    let mut pair = Pair::new(host(2, Digests::default(), false), BlockSize::B4096, usize::MAX);
    for _ in 0..60 {
        assert!(pair.pass(Duration::from_secs(1)).is_empty());
    }
    assert_eq!((pair.remote.link(), pair.remote.associations()), (&Link::Up, 1));
    for blocks in [512, 700] {
        pair.target.resize_namespace(&subnqn(), 1, blocks, pair.now).unwrap();
        pair.settle();
        assert_eq!(pair.remote.info().unwrap().size, blocks * 4096);
    }
}

#[test]
fn a_new_association_waits_for_what_the_old_one_admitted() {
    let mut pair = Pair::new(host(1, Digests::default(), false), BlockSize::B4096, usize::MAX);
    pair.volume.hold = true;
    pair.remote.submit(Op::write(1, 0, 4096, pattern(4096, 1)), pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.volume.pending.len(), 1);
    pair.remote.handle_closed(pair.now);
    assert_eq!(pair.settle()[0].result, Err(DeviceError::Gone));
    pair.pass(Duration::from_millis(200));
    assert_eq!(*pair.remote.link(), Link::Up);
    pair.remote.submit(Op::write(2, 0, 4096, pattern(4096, 2)), pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.volume.pending.len(), 1, "the second write is held back");
    pair.volume.hold = false;
    pair.settle();
    let done = pair.pass(Duration::from_millis(60));
    assert_eq!((done[0].token, done[0].result), (2, Ok(())));
    assert_eq!(pair.volume.memory[..4096], *pattern(4096, 2).as_slice());
}

#[test]
fn an_unknown_subsystem_and_a_host_that_may_not_are_refused() {
    let mut config = host(1, Digests::default(), false);
    config.identity.subnqn = "nqn.2026-01.io.forebay:other".parse().unwrap();
    let pair = Pair::new(config, BlockSize::B4096, usize::MAX);
    assert_eq!(*pair.remote.link(), Link::Connecting);
    assert!(matches!(pair.remote.last_error(), Some(Error::Refused { .. })));
    let mut pair = Pair::new(host(1, Digests::default(), false), BlockSize::B4096, usize::MAX);
    let nobody = HostAccess::Only(std::collections::BTreeSet::new());
    assert!(pair.target.set_hosts(&subnqn(), nobody, pair.now));
    pair.settle();
    pair.pass(Duration::from_secs(1));
    assert_eq!(*pair.remote.link(), Link::Dead);
    let text = pair.remote.last_error().unwrap().to_string();
    assert!(text.contains("CONNECT_INVALID_HOST"), "{text}");
}

#[test]
fn a_shutdown_is_answered() {
    let mut pair = Pair::new(host(2, Digests::default(), false), BlockSize::B4096, usize::MAX);
    pair.remote.shut_down(pair.now);
    pair.settle();
    assert!(pair.remote.is_shut_down(), "{:?}", pair.remote.last_error());
}

#[test]
fn the_discovery_log_of_the_target_is_read() {
    let now = Instant(5);
    let mut target = target(BlockSize::B4096, now);
    let records: Vec<DiscoveryRecord> = (0..7u16)
        .map(|port| DiscoveryRecord {
            entry: DiscoveryEntry {
                trtype: 3,
                adrfam: 1,
                subtype: SubsystemType::Nvm,
                treq: 0,
                portid: port,
                cntlid: 0xffff,
                asqsz: 32,
                eflags: 0,
                trsvcid: "4420".into(),
                traddr: "127.0.0.1".into(),
                subnqn: subnqn(),
                tsas: 0,
            },
            hosts: HostAccess::Any,
        })
        .collect();
    target.set_discovery(records, now);
    let hostnqn = "nqn.2014-08.org.nvmexpress:uuid:1".parse().unwrap();
    let mut discovery = Discovery::new(hostnqn, [1; 16], Duration::from_secs(5), now).unwrap();
    let mut volume = Volume {
        memory: Vec::new(),
        block_size: 512,
        pending: Vec::new(),
        hold: false,
        fail: None,
    };
    let mut handshake = Handshake::new(now, Duration::from_secs(1));
    let mut conn = None;
    for _ in 0..40 {
        let mut slices = [IoSlice::new(&[]); 16];
        let used = discovery.output().gather(&mut slices);
        let bytes: Vec<u8> = slices[..used].iter().flat_map(|s| s.to_vec()).collect();
        discovery.output().advance(bytes.len());
        let back = if let Some(id) = conn {
            target.handle_bytes(id, &bytes, now, &mut HeapPool, &mut volume);
            let all: Vec<u8> = target.tx(id).unwrap().slices().flat_map(<[u8]>::to_vec).collect();
            target.advance(id, all.len());
            all
        } else {
            if let Progress::Established(established) = handshake.handle_bytes(&bytes) {
                let local = LocalAddress::default();
                conn = Some(target.accept(&established, &local, now).unwrap());
            }
            let out = handshake.output().to_vec();
            handshake.advance(out.len());
            out
        };
        discovery.handle_bytes(&back, now).unwrap();
    }
    let ours = discovery.result().expect("read").iter().filter(|e| e.subnqn == subnqn()).count();
    assert_eq!(ours, 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_traffic_agrees_with_memory(
        bits in 0u8..8, step in prop_oneof![Just(usize::MAX), 1usize..3000],
        ops in prop::collection::vec((0u8..6, 0u64..64, 1u64..12, any::<u8>()), 1..40),
        cut in prop::option::of(0usize..40)
    ) {
        let digests = Digests { header: bits & 1 != 0, data: bits & 2 != 0 };
        let mut pair = Pair::new(host(2, digests, bits & 4 != 0), BlockSize::B4096, step);
        let mut model = vec![0u8; SIZE];
        for (turn, (what, block, blocks, seed)) in ops.into_iter().enumerate() {
            if cut == Some(turn) {
                pair.remote.handle_closed(pair.now);
                pair.settle();
                pair.pass(Duration::from_millis(150));
                prop_assert_eq!(pair.remote.link(), &Link::Up);
            }
            let (offset, len) = (block * 4096, blocks * 4096);
            let place = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            match what {
                0..=2 => {
                    let data = pattern(place.len(), seed);
                    model[place].copy_from_slice(data.as_slice());
                    prop_assert_eq!(pair.run(Op::write(1, offset, len, data)).result, Ok(()));
                }
                3 => {
                    model[place].fill(0);
                    let op = Op::range(2, OpKind::WriteZeroes, offset, len);
                    prop_assert_eq!(pair.run(op).result, Ok(()));
                }
                _ => {
                    let buf = HeapPool.alloc(place.len()).unwrap();
                    let done = pair.run(Op::read(3, offset, len, buf));
                    prop_assert_eq!(done.result, Ok(()));
                    let buf = done.buf.unwrap();
                    prop_assert_eq!(buf.as_slice(), &model[place]);
                }
            }
        }
        prop_assert_eq!(pair.remote.in_flight(), 0);
        prop_assert_eq!(pair.target.outstanding(), 0);
    }
}
