//! The target, its volumes, a pool and time.

use super::*;

/// What a volume has still to do.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) data: Vec<u8>,
    pub(super) second: Vec<u8>,
}

/// Volumes in memory. They insist on what the target promises: ranges inside, payloads exact.
pub(super) struct Volumes {
    pub(super) pending: VecDeque<Job>,
    pub(super) submitted: usize,
    /// Kinds of requests on the bad host's volumes.
    pub(super) kinds: HashSet<Discriminant<RequestOp>>,
    pub(super) media: Vec<Vec<u8>>,
}

pub(super) fn block_size(volume: VolumeId) -> usize {
    if volume.0 == 2 { 4096 } else { 512 }
}

impl IoSink<HeapBuf> for Volumes {
    fn submit(&mut self, request: Request, payload: Payload<'_, HeapBuf>) {
        let (data, second) = match payload {
            Payload::None => (vec![], vec![]),
            Payload::Inline(bytes) => (bytes.to_vec(), vec![]),
            Payload::Owned(buf) => (buf.as_slice().to_vec(), vec![]),
            Payload::Pair(a, b) => (a.as_slice().to_vec(), b.as_slice().to_vec()),
        };
        let blocks = u64::from(request.blocks);
        assert!(request.lba.0.checked_add(blocks).is_some_and(|end| end <= BLOCKS), "{request:?}");
        let bytes = request.blocks as usize * block_size(request.volume);
        let (one, two) = match request.op {
            RequestOp::Write | RequestOp::Compare => (bytes, 0),
            RequestOp::CompareAndWrite => (bytes, bytes),
            _ => (0, 0),
        };
        assert_eq!((data.len(), second.len()), (one, two), "{request:?}");
        self.submitted += 1;
        if request.volume.0 != 0 {
            self.kinds.insert(discriminant(&request.op));
        }
        self.pending.push_back(Job { request, data, second });
    }
}

impl Volumes {
    pub(super) fn run(&mut self, job: &Job) -> (Outcome, Vec<Piece<HeapBuf>>) {
        let size = block_size(job.request.volume);
        let from = usize::try_from(job.request.lba.0).unwrap() * size;
        let len = job.request.blocks as usize * size;
        let media = &mut self.media[job.request.volume.0 as usize];
        let range = &mut media[from..from + len];
        match job.request.op {
            RequestOp::Read => {
                let piece = |part: &[u8]| {
                    let len = u32::try_from(part.len()).unwrap();
                    Piece { buf: HeapBuf::from_bytes(part), offset: 0, len }
                };
                let (a, b) = range.split_at(len / 2);
                return (Outcome::Done, vec![piece(a), piece(b)]);
            }
            RequestOp::Write => range.copy_from_slice(&job.data),
            RequestOp::Compare | RequestOp::CompareAndWrite if *range != job.data => {
                return (Outcome::Failed(BlockError::CompareFailed), vec![]);
            }
            RequestOp::CompareAndWrite => range.copy_from_slice(&job.second),
            RequestOp::WriteZeroes { .. } | RequestOp::Deallocate => range.fill(0),
            RequestOp::Compare | RequestOp::Flush => {}
        }
        (Outcome::Done, vec![])
    }
}

/// A pool that is sometimes empty.
pub(super) struct Pool {
    pub(super) empty: bool,
}

impl BufPool for Pool {
    type Buf = HeapBuf;

    fn alloc(&mut self, len: usize) -> Option<HeapBuf> {
        (!self.empty).then(|| HeapPool.alloc(len))?
    }
}

/// The target, its volumes, time, and what was seen.
pub(super) struct World {
    pub(super) target: Target<HeapBuf>,
    pub(super) volumes: Volumes,
    pub(super) pool: Pool,
    pub(super) now: Instant,
    pub(super) rng: Rng,
    /// Connections that the target asked to close.
    pub(super) told: Vec<ConnId>,
    /// PDUs sent as good hosts never would.
    pub(super) malformed: u64,
    pub(super) handshake_failures: u64,
    /// Fatal error statuses, and status fields of responses.
    pub(super) fatals: BTreeSet<u16>,
    pub(super) statuses: BTreeSet<u16>,
    /// PDUs and completions whose output has not been taken yet.
    pub(super) causes: usize,
    /// PDUs of earlier sessions.
    pub(super) heard: VecDeque<Vec<u8>>,
}

pub(super) fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

pub(super) fn namespace(nsid: u32, volume: u32) -> NamespaceConfig {
    let volume = VolumeId(volume);
    NamespaceConfig {
        nsid,
        volume,
        blocks: BLOCKS,
        block_size: BlockSize::from_bytes(u32::try_from(block_size(volume)).unwrap()).unwrap(),
        uuid: Uuid::from_random([7; 16]),
        nguid: [7; 16],
        volatile_write_cache: false,
        read_only: false,
        ana: AnaState::Optimized,
        optimal_io: 0,
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let now = Instant(1_000_000_000);
        let mut target = Target::new(TargetConfig::default(), now);
        for (subsystem, host) in [(PUBLIC, BAD_HOST), (PRIVATE, GOOD_HOST)] {
            let hosts = HostAccess::Only([nqn(host)].into_iter().collect());
            let config = SubsystemConfig { nqn: nqn(subsystem), serial: "FB1".into(), hosts };
            target.add_subsystem(config).unwrap();
        }
        for (subsystem, nsid, volume) in [(PUBLIC, 1, 1), (PUBLIC, 2, 2), (PRIVATE, 1, 0)] {
            target.add_namespace(&nqn(subsystem), namespace(nsid, volume), now).unwrap();
        }
        let blocks = usize::try_from(BLOCKS).unwrap();
        let media = (0..3).map(|at| vec![0; blocks * block_size(VolumeId(at))]).collect();
        Self {
            target,
            volumes: Volumes {
                pending: VecDeque::new(),
                submitted: 0,
                kinds: HashSet::new(),
                media,
            },
            pool: Pool { empty: false },
            now,
            rng: Rng(seed),
            told: Vec::new(),
            malformed: 0,
            handshake_failures: 0,
            fatals: BTreeSet::new(),
            statuses: BTreeSet::new(),
            causes: 0,
            heard: VecDeque::new(),
        }
    }

    /// Gives the bytes of so many PDUs to a connection, sometimes in two parts.
    pub(super) fn feed(&mut self, conn: ConnId, bytes: &[u8], pdus: usize) {
        let before = self.volumes.submitted;
        let cut = if self.rng.one_in(4) { self.rng.below(bytes.len() + 1) } else { bytes.len() };
        let (a, b) = bytes.split_at(cut);
        for part in [a, b] {
            if !part.is_empty() && self.target.wants_read(conn) {
                let (pool, volumes) = (&mut self.pool, &mut self.volumes);
                self.target.handle_bytes(conn, part, self.now, pool, volumes);
            }
        }
        // One more PDU may have been whole but for its last bytes.
        assert!(self.volumes.submitted - before <= (pdus + 1) * REQUESTS_MAX, "bounded requests");
        self.causes += pdus + 1;
        self.events();
    }

    pub(super) fn events(&mut self) {
        let mut events = 0;
        while let Some(event) = self.target.poll_event() {
            events += 1;
            assert!(events < 64, "bounded events");
            match event {
                Event::Close(conn) => self.told.push(conn),
                Event::Protocol { fatal, .. } => {
                    self.fatals.insert(fatal.fes.encode());
                }
                _ => {}
            }
        }
    }

    /// Completes up to `most` requests; a few of the bad host's fail.
    pub(super) fn complete(&mut self, most: usize) {
        for _ in 0..most {
            let Some(job) = self.volumes.pending.pop_front() else { break };
            let (mut outcome, mut pieces) = self.volumes.run(&job);
            if job.request.volume.0 != 0 && self.rng.one_in(32) {
                outcome = Outcome::Failed(BlockError::NotReady);
                pieces.clear();
            }
            self.causes += 1;
            self.target.complete(job.request.tag, outcome, &mut pieces);
            if self.rng.one_in(256) {
                // Twice, and one that never was: counted, nothing else.
                self.target.complete(job.request.tag, Outcome::Done, &mut Vec::new());
                self.target.complete(Tag(self.rng.next()), Outcome::Done, &mut Vec::new());
            }
        }
        self.events();
    }

    pub(super) fn wait(&mut self, nanos: u64) {
        self.now = Instant(self.now.0 + nanos);
        if self.now >= self.target.next_deadline() {
            self.target.handle_timeout(self.now);
        }
        if self.target.waiting_for_buffers() && !self.pool.empty {
            self.target.poll_buffers(&mut self.pool);
        }
        while self.target.poll_ready().is_some() {}
        self.events();
    }

    pub(super) fn closed(&self, conn: ConnId) -> bool {
        self.told.contains(&conn)
    }

    /// What a connection has to send.
    pub(super) fn output(&mut self, conn: ConnId, into: &mut Vec<u8>) -> usize {
        let before = into.len();
        if let Some(tx) = self.target.tx(conn) {
            tx.slices().for_each(|slice| into.extend_from_slice(slice));
        }
        let len = into.len() - before;
        self.target.advance(conn, len);
        self.events();
        len
    }
}
