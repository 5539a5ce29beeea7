//! Over real sockets, against the project's own target on a thread of this process.

use super::*;
use forebay_io::{BufPool, DeviceError, HeapBuf, HeapPool, OpKind, Outcome, Payload, Piece};
use forebay_io::{Request, RequestOp, Uuid, VolumeId};
use forebay_nvmf::target::{
    AnaState, BlockSize, ConnId, DiscoveryRecord, Event, HostAccess, IoSink, LocalAddress,
    NamespaceConfig, SubsystemConfig, Target, TargetConfig,
};
use forebay_nvmf::tcp::{Handshake, Progress};
use forebay_wire::log::{DiscoveryEntry, SubsystemType};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const SIZE: usize = 8 << 20;
const NQN: &str = "nqn.2026-01.io.forebay:v";

#[derive(Default)]
struct Volume {
    memory: Arc<Mutex<Vec<u8>>>,
    pending: Vec<(Request, Vec<u8>)>,
}

impl IoSink<HeapBuf> for Volume {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let data = match payload {
            Payload::Inline(bytes) => bytes.to_vec(),
            Payload::Owned(buf) => buf.as_slice().to_vec(),
            _ => Vec::new(),
        };
        self.pending.push((request, data));
    }
}

enum End {
    Handshake(Handshake),
    Conn(ConnId),
}

/// A target on a port of this machine, until it is dropped.
struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(port: u16, memory: Arc<Mutex<Vec<u8>>>) -> Self {
        let listener = (0..100)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                TcpListener::bind(("127.0.0.1", port)).ok()
            })
            .expect("a port");
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = Some(std::thread::spawn(move || serve(&listener, memory, &ended)));
        Self { port, stop, thread }
    }

    fn uri(&self, options: &str) -> NvmfUri {
        format!("nvmf+tcp://127.0.0.1:{}/{NQN}?{options}", self.port).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn target(now: Instant) -> Target<HeapBuf> {
    let mut target = Target::new(TargetConfig::default(), now);
    let nqn: forebay_wire::Nqn = NQN.parse().unwrap();
    let hosts = HostAccess::Any;
    target.add_subsystem(SubsystemConfig { nqn: nqn.clone(), serial: "1".into(), hosts }).unwrap();
    let namespace = NamespaceConfig {
        nsid: 1,
        volume: VolumeId(0),
        blocks: SIZE as u64 / 4096,
        block_size: BlockSize::B4096,
        uuid: Uuid([5; 16]),
        nguid: [5; 16],
        volatile_write_cache: false,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 0,
    };
    target.add_namespace(&nqn, namespace, now).unwrap();
    let entry = DiscoveryEntry {
        trtype: 3,
        adrfam: 1,
        subtype: SubsystemType::Nvm,
        treq: 0,
        portid: 1,
        cntlid: 0xffff,
        asqsz: 32,
        eflags: 0,
        trsvcid: "4420".into(),
        traddr: "127.0.0.1".into(),
        subnqn: nqn,
        tsas: 0,
    };
    target.set_discovery(vec![DiscoveryRecord { entry, hosts: HostAccess::Any }], now);
    target
}

fn serve(listener: &TcpListener, memory: Arc<Mutex<Vec<u8>>>, stop: &AtomicBool) {
    let mut target = target(MonotonicClock.now());
    let mut volume = Volume { memory, pending: Vec::new() };
    let mut conns: Vec<(TcpStream, End)> = Vec::new();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let now = MonotonicClock.now();
        target.handle_timeout(now);
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            conns.push((stream, End::Handshake(Handshake::new(now, Duration::from_secs(5)))));
        }
        let mut moved = false;
        conns.retain_mut(|(stream, end)| {
            let alive = match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    moved = true;
                    take(end, &buffer[..count], &mut target, &mut volume, now);
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if let (false, End::Conn(id)) = (alive, &end) {
                target.conn_closed(*id, now);
            }
            alive
        });
        answer(&mut target, &mut volume);
        for (stream, end) in &mut conns {
            send(stream, end, &mut target);
        }
        while let Some(event) = target.poll_event() {
            if let Event::Close(id) = event {
                target.conn_closed(id, now);
                conns.retain(|(_, end)| !matches!(end, End::Conn(at) if *at == id));
            }
        }
        if !moved {
            std::thread::yield_now();
        }
    }
}

fn take(
    end: &mut End,
    bytes: &[u8],
    target: &mut Target<HeapBuf>,
    volume: &mut Volume,
    now: Instant,
) {
    match end {
        End::Conn(id) => target.handle_bytes(*id, bytes, now, &mut HeapPool, volume),
        End::Handshake(handshake) => {
            if let Progress::Established(established) = handshake.handle_bytes(bytes) {
                let id = target.accept(&established, &LocalAddress::default(), now).unwrap();
                target.handle_bytes(id, &established.leftover, now, &mut HeapPool, volume);
                *end = End::Conn(id);
            }
        }
    }
}

fn answer(target: &mut Target<HeapBuf>, volume: &mut Volume) {
    for (request, data) in std::mem::take(&mut volume.pending) {
        let mut memory = volume.memory.lock().unwrap();
        let first = usize::try_from(request.lba.0).unwrap() * 4096;
        let place = first..first + request.blocks as usize * 4096;
        let mut pieces = Vec::new();
        match request.op {
            RequestOp::Read => {
                let buf = HeapBuf::from_bytes(&memory[place]);
                let len = u32::try_from(buf.len()).unwrap();
                pieces.push(Piece { buf, offset: 0, len });
            }
            RequestOp::Write => memory[place].copy_from_slice(&data),
            RequestOp::WriteZeroes { .. } | RequestOp::Deallocate => memory[place].fill(0),
            _ => {}
        }
        target.complete(request.tag, Outcome::Done, &mut pieces);
    }
}

fn send(stream: &mut TcpStream, end: &mut End, target: &mut Target<HeapBuf>) {
    match end {
        End::Handshake(handshake) => {
            let out = handshake.output().to_vec();
            if !out.is_empty() {
                let count = stream.write(&out).unwrap_or(0);
                handshake.advance(count);
            }
        }
        End::Conn(id) => {
            let out: Vec<u8> = target
                .tx(*id)
                .map(|tx| tx.slices().flat_map(<[u8]>::to_vec).collect())
                .unwrap_or_default();
            if !out.is_empty() {
                let count = stream.write(&out).unwrap_or(0);
                target.advance(*id, count);
            }
        }
    }
}

fn memory() -> Arc<Mutex<Vec<u8>>> {
    Arc::new(Mutex::new(vec![0; SIZE]))
}

fn run(device: &mut NvmfDevice<HeapBuf>, op: Op<HeapBuf>) -> Completion<HeapBuf> {
    device.submit(op).unwrap();
    let mut done = Vec::new();
    let limit = MonotonicClock.now() + Duration::from_secs(20);
    while done.is_empty() && MonotonicClock.now() < limit {
        device.poll(&mut done);
    }
    done.pop().expect("a completion in time")
}

#[test]
fn data_goes_over_real_sockets() {
    let server = Server::start(0, memory());
    for options in
        ["nsid=1", "hdgst=1&ddgst=1&queues=3", "disable_sqflow=1&qd=4", "queues=2&ddgst=1"]
    {
        let mut device = NvmfDevice::open(&server.uri(options)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((device.info().size, device.info().block_size), (SIZE as u64, 4096));
        assert_eq!(device.info().identity, "nvme-uuid.05050505-0505-0505-0505-050505050505");
        for (turn, len) in [4096usize, 8192, 131_072].into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + turn).to_le_bytes()[0]).collect();
            let data = HeapBuf::from_bytes(&bytes);
            let offset = 1 << (20 + turn);
            let op = Op::write(1, offset, len as u64, data.clone());
            assert_eq!(run(&mut device, op).result, Ok(()), "{options}");
            let buf = HeapPool.alloc(len).unwrap();
            let done = run(&mut device, Op::read(2, offset, len as u64, buf));
            assert_eq!((done.result, done.buf), (Ok(()), Some(data)), "{options}");
        }
        assert_eq!(run(&mut device, Op::flush(3)).result, Ok(()));
        let op = Op::range(4, OpKind::WriteZeroes, 0, 1 << 20);
        assert_eq!(run(&mut device, op).result, Ok(()));
        device.close(Duration::from_secs(2));
    }
}

#[test]
fn many_operations_in_flight_all_complete() {
    let server = Server::start(0, memory());
    let mut device = NvmfDevice::<HeapBuf>::open(&server.uri("queues=2&qd=32")).unwrap();
    let (mut sent, mut done) = (0u64, Vec::new());
    while done.len() < 5000 {
        while sent < 5000 {
            let op = Op::read(sent, sent % 2048 * 4096, 4096, HeapPool.alloc(4096).unwrap());
            if device.submit(op).is_err() {
                break;
            }
            sent += 1;
        }
        device.poll(&mut done);
    }
    let mut tokens: Vec<u64> = done.iter().map(|d| d.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..5000).collect::<Vec<_>>());
    assert!(done.iter().all(|d| d.result == Ok(())));
    assert_eq!(device.in_flight(), 0);
}

#[test]
fn it_comes_back_after_the_target_was_away() {
    let memory = memory();
    let server = Server::start(0, Arc::clone(&memory));
    let port = server.port;
    let mut device = NvmfDevice::open(&server.uri("fail_after=20s")).unwrap();
    let data = HeapBuf::from_bytes(&[7; 4096]);
    assert_eq!(run(&mut device, Op::write(1, 0, 4096, data.clone())).result, Ok(()));
    drop(server);
    let mut done = Vec::new();
    while *device.link() == Link::Up {
        device.poll(&mut done);
    }
    // Submitted while nobody answers: waits.
    device.submit(Op::read(2, 0, 4096, HeapPool.alloc(4096).unwrap())).unwrap();
    let pause = MonotonicClock.now() + Duration::from_millis(200);
    while MonotonicClock.now() < pause {
        assert_eq!(device.poll(&mut done), 0);
    }
    let _server = Server::start(port, memory);
    let limit = MonotonicClock.now() + Duration::from_secs(20);
    while done.is_empty() && MonotonicClock.now() < limit {
        device.poll(&mut done);
    }
    assert_eq!((done[0].token, done[0].result), (2, Ok(())));
    assert_eq!(done[0].buf, Some(data));
    assert_eq!(device.associations(), 2);
}

#[test]
fn a_gone_target_fails_operations_in_bounded_time() {
    let server = Server::start(0, memory());
    let mut device = NvmfDevice::<HeapBuf>::open(&server.uri("fail_after=300ms")).unwrap();
    drop(server);
    let begin = MonotonicClock.now();
    let done = run(&mut device, Op::read(2, 0, 4096, HeapPool.alloc(4096).unwrap()));
    assert_eq!(done.result, Err(DeviceError::Gone));
    assert!(MonotonicClock.now().since(begin) < Duration::from_secs(2));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uri: NvmfUri =
        format!("nvmf+tcp://127.0.0.1:{free}/{NQN}?connect_timeout=200ms").parse().unwrap();
    let error = NvmfDevice::<HeapBuf>::open(&uri).unwrap_err().to_string();
    assert!(error.contains("cannot connect") && error.contains("refused"), "{error}");
    let server = Server::start(0, memory());
    let uri: NvmfUri =
        format!("nvmf+tcp://127.0.0.1:{}/nqn.other?connect_timeout=200ms", server.port)
            .parse()
            .unwrap();
    let error = NvmfDevice::<HeapBuf>::open(&uri).unwrap_err().to_string();
    assert!(error.contains("Connect of the admin queue was refused"), "{error}");
    let uri = server.uri("nsid=2&connect_timeout=200ms");
    let error = NvmfDevice::<HeapBuf>::open(&uri).unwrap_err().to_string();
    assert!(error.contains("Namespace") || error.contains("namespace"), "{error}");
}

#[test]
fn discovery_over_a_real_socket() {
    let server = Server::start(0, memory());
    let found = discover("127.0.0.1", server.port, None, Duration::from_secs(5)).unwrap();
    assert!(found.iter().any(|entry| entry.subnqn.as_str() == NQN), "{found:?}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(discover("127.0.0.1", free, None, Duration::from_secs(1)).is_err());
}
