//! An association: one admin queue and some I/O queues, each on a connection of its own, and one
//! namespace of the subsystem.

use std::collections::VecDeque;

use crate::initiator::Error;
use crate::initiator::admin::{Admin, AdminConfig, FIRST_TOKEN, Identity};
use crate::initiator::qpair::{Command, DEPTH_MAX, Finished, Qpair, QpairConfig};
use crate::tcp::TxQueue;
use forebay_io::{Buf, Duration, HeapBuf, Instant};
use forebay_wire::Sqe;
use forebay_wire::fabrics::Connect;
use forebay_wire::feature::{self, AsyncEvent, NumberOfQueues, event_bit};
use forebay_wire::identify::{
    IDENTIFY_LEN, IdController, IdNamespace, NamespaceDescriptors, cns, oncs,
};
use forebay_wire::log;
use forebay_wire::sqe::{Abort, GetLogPage, Identify, SetFeatures, admin};
use forebay_wire::tcp::Digests;

/// Bytes of a log page that are read to acknowledge an event.
const LOG_LEN: usize = 4096;
/// Token of Connect on an I/O queue; tokens of I/O commands are smaller.
const CONNECT: u64 = u64::MAX;
/// Largest single transfer where the controller states no limit.
const MAX_IO: u32 = 1 << 20;

/// How a host uses a subsystem.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Who connects to what.
    pub identity: Identity,
    /// The namespace.
    pub nsid: u32,
    /// I/O queues wished for, at least 1.
    pub queues: u16,
    /// Commands in flight on each I/O queue.
    pub depth: u16,
    /// Digests wished for.
    pub digests: Digests,
    /// Whether SQ flow control is switched off.
    pub no_sq_flow: bool,
    /// Keep-alive timeout; zero for none.
    pub keep_alive: Duration,
    /// How long a command of the bring-up may take.
    pub setup_timeout: Duration,
    /// How long an I/O command may take.
    pub io_timeout: Duration,
}

/// What a controller states of itself, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Controller identifier.
    pub cntlid: u16,
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Largest single transfer in bytes.
    pub max_io: u32,
    /// Largest in-capsule write in bytes.
    pub capsule_data: u32,
    /// Whether a volatile write cache is there.
    pub volatile_write_cache: bool,
    /// Whether Dataset Management is supported.
    pub deallocate: bool,
    /// Whether Write Zeroes is supported.
    pub write_zeroes: bool,
    /// Atomic write unit at power fail, in logical blocks.
    pub atomic_blocks: u32,
    /// I/O queues in use.
    pub queues: u16,
}

/// What the namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its identifier in the subsystem.
    pub nsid: u32,
    /// Size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// UUID, if stated.
    pub uuid: Option<[u8; 16]>,
    /// NGUID; zero is none.
    pub nguid: [u8; 16],
    /// Whether it is write protected.
    pub read_only: bool,
    /// Atomic write unit at power fail of this namespace, in logical blocks, if stated.
    pub atomic_blocks: Option<u32>,
    /// Preferred write granularity in logical blocks, if stated.
    pub granularity: Option<u32>,
}

/// What the owner of a controller has to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEvent {
    /// Open a connection for this queue (0 is the admin queue).
    Open(u16),
    /// I/O may begin.
    Ready,
    /// The namespace changed; what it is now is in [`Controller::namespace`].
    NamespaceChanged,
    /// Asymmetric access changed.
    AccessChanged,
}

/// Admin commands in flight besides the bring-up, by token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Queues,
    Events,
    Namespace,
    Descriptors,
    NamespaceAgain,
    ClearLog,
    Abort,
}

impl Ask {
    const ALL: [Self; 7] = [
        Self::Queues,
        Self::Events,
        Self::Namespace,
        Self::Descriptors,
        Self::NamespaceAgain,
        Self::ClearLog,
        Self::Abort,
    ];

    const fn what(self) -> &'static str {
        match self {
            Self::Queues => "Set Features Number of Queues",
            Self::Events => "Set Features Asynchronous Event Configuration",
            Self::Namespace | Self::NamespaceAgain => "Identify Namespace",
            Self::Descriptors => "Identify Namespace Descriptors",
            Self::ClearLog => "Get Log Page",
            Self::Abort => "Abort",
        }
    }

    fn token(self) -> u64 {
        FIRST_TOKEN + Self::ALL.iter().position(|ask| *ask == self).map_or(0, |at| at as u64)
    }

    fn of(token: u64) -> Option<Self> {
        let at = usize::try_from(token.checked_sub(FIRST_TOKEN)?).ok()?;
        Self::ALL.get(at).copied()
    }
}

/// One association with a controller. See the module's description.
pub struct Controller<B> {
    config: HostConfig,
    admin: Option<Admin>,
    io: Vec<Option<Qpair<B>>>,
    connected: usize,
    events: VecDeque<ControllerEvent>,
    info: Option<ControllerInfo>,
    namespace: Option<NamespaceInfo>,
    asked: bool,
    ready: bool,
    began: Instant,
    next_queue: usize,
    finished: VecDeque<Finished<B>>,
}

impl<B: Buf> Controller<B> {
    /// Begins an association; the first event asks for the admin queue's connection.
    #[must_use]
    pub fn new(config: HostConfig, now: Instant) -> Self {
        Self {
            config,
            admin: None,
            io: Vec::new(),
            connected: 0,
            events: VecDeque::from([ControllerEvent::Open(0)]),
            info: None,
            namespace: None,
            asked: false,
            ready: false,
            began: now,
            next_queue: 0,
            finished: VecDeque::new(),
        }
    }

    /// What is to be done or known.
    pub fn poll_event(&mut self) -> Option<ControllerEvent> {
        self.events.pop_front()
    }

    /// Whether I/O may be submitted.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether a shutdown is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.admin.as_ref().is_none_or(Admin::is_ended)
    }

    /// What the controller states of itself, once ready.
    #[must_use]
    pub const fn info(&self) -> Option<&ControllerInfo> {
        self.info.as_ref()
    }

    /// What the namespace is, once ready.
    #[must_use]
    pub const fn namespace(&self) -> Option<&NamespaceInfo> {
        self.namespace.as_ref()
    }

    /// I/O commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.io.iter().flatten().map(Qpair::in_flight).sum()
    }

    /// The connection of a queue is open.
    pub fn handle_connected(&mut self, queue: u16, now: Instant) {
        if queue == 0 {
            let HostConfig { identity, digests, no_sq_flow, keep_alive, setup_timeout, .. } =
                self.config.clone();
            let timeout = setup_timeout;
            let config = AdminConfig { identity, digests, no_sq_flow, keep_alive, timeout };
            self.admin = Some(Admin::new(config, now));
        } else if let Some(place) = self.io.get_mut(usize::from(queue) - 1) {
            let (depth, digests) = (self.config.depth, self.config.digests);
            *place = Some(Qpair::new(QpairConfig { depth, digests }));
        }
    }

    /// Takes bytes from a queue's connection.
    ///
    /// # Errors
    /// Where the association must end.
    pub fn handle_bytes(&mut self, queue: u16, bytes: &[u8], now: Instant) -> Result<(), Error> {
        if queue == 0 {
            self.admin.as_mut().ok_or(Error::Closed)?.handle_bytes(bytes, now)?;
            return self.drive_admin(now);
        }
        let at = usize::from(queue) - 1;
        let qpair = self.io.get_mut(at).and_then(Option::as_mut).ok_or(Error::Closed)?;
        let was_open = qpair.is_open();
        qpair.handle_bytes(bytes)?;
        if !was_open && qpair.is_open() {
            self.connect_io(queue, now)?;
        }
        self.drain_io(at)
    }

    /// Sends an I/O command on the next queue with room.
    ///
    /// # Errors
    /// The command itself while the controller is not ready or all queues are full.
    pub fn submit(&mut self, mut command: Command<B>, now: Instant) -> Result<(), Command<B>> {
        if !self.ready {
            return Err(command);
        }
        for _ in 0..self.io.len() {
            let at = self.next_queue;
            self.next_queue = (at + 1) % self.io.len();
            let Some(qpair) = &mut self.io[at] else { continue };
            match qpair.submit(command, now) {
                Ok(()) => return Ok(()),
                Err(back) => command = back,
            }
        }
        Err(command)
    }

    /// Sends an I/O command with a little data of its own in the capsule, as
    /// [`Controller::submit`]; says whether it could.
    pub fn submit_inline(&mut self, token: u64, sqe: &Sqe, data: &[u8], now: Instant) -> bool {
        if !self.ready {
            return false;
        }
        (0..self.io.len()).any(|_| {
            let at = self.next_queue;
            self.next_queue = (at + 1) % self.io.len();
            self.io[at].as_mut().is_some_and(|qpair| qpair.submit_inline(token, sqe, data, now))
        })
    }

    /// Sends a fused pair (NVMe Base 2.0 §3.4.2): two commands, marked as first and second by the
    /// caller, next to each other on a queue with room for both; says whether there was one.
    pub fn submit_fused(&mut self, pair: [Command<B>; 2], now: Instant) -> bool {
        let fits = |qpair: &Qpair<B>| {
            qpair.is_open() && qpair.in_flight() + 2 <= usize::from(qpair.depth())
        };
        let queues = self.io.len();
        let at = (self.next_queue..self.next_queue + queues)
            .map(|at| at % queues)
            .find(|at| self.ready && self.io[*at].as_ref().is_some_and(fits));
        let Some((at, qpair)) = at.and_then(|at| Some((at, self.io[at].as_mut()?))) else {
            return false;
        };
        self.next_queue = (at + 1) % queues;
        // Neither is refused: the queue is open and has room for both.
        pair.map(|command| qpair.submit(command, now).is_ok()) == [true, true]
    }

    /// Asks the controller to abort an I/O command, by its token: at best that ends with Command Abort
    /// Requested, in any case it ends as usual. Says whether the request could be sent.
    pub fn abort(&mut self, token: u64, now: Instant) -> bool {
        let found = (1u16..).zip(&self.io).find_map(|(sqid, qpair)| {
            qpair.as_ref().and_then(|qpair| qpair.cid_of(token)).map(|cid| Abort { sqid, cid })
        });
        let Some(abort) = found.filter(|_| self.ready) else { return false };
        self.ask(Ask::Abort, abort.encode(Sqe::new(admin::ABORT, 0, 0)), 0, now).is_ok()
    }

    /// The next I/O command that ended.
    pub fn poll_finished(&mut self) -> Option<Finished<B>> {
        self.finished.pop_front()
    }

    /// Whether a queue has bytes to send.
    #[must_use]
    pub fn has_output(&self, queue: u16) -> bool {
        if queue == 0 {
            return self.admin.as_ref().is_some_and(Admin::has_output);
        }
        let qpair = self.io.get(usize::from(queue) - 1);
        qpair.and_then(Option::as_ref).is_some_and(Qpair::has_output)
    }

    /// The admin queue's bytes to send.
    pub fn admin_output(&mut self) -> Option<&mut TxQueue<HeapBuf>> {
        self.admin.as_mut().map(Admin::output)
    }

    /// An I/O queue's bytes to send.
    pub fn io_output(&mut self, queue: u16) -> Option<&mut TxQueue<B>> {
        let at = usize::from(queue).checked_sub(1)?;
        self.io.get_mut(at)?.as_mut().map(Qpair::output)
    }

    /// Checks time limits and keeps alive.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        match &mut self.admin {
            None if now >= self.began + self.config.setup_timeout => {
                return Err(Error::Timeout("opening the connection"));
            }
            None => return Ok(()),
            Some(admin) => admin.handle_timeout(now)?,
        }
        let admin_ready = self.admin.as_ref().is_some_and(Admin::is_ready);
        if admin_ready && !self.ready && now >= self.began + self.config.setup_timeout * 2 {
            return Err(Error::Timeout("I/O queues"));
        }
        let oldest = self.io.iter().flatten().filter_map(Qpair::oldest).min();
        match oldest {
            Some(at) if now >= at + self.config.io_timeout => Err(Error::Timeout("an I/O command")),
            _ => Ok(()),
        }
    }

    /// When [`Controller::handle_timeout`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let Some(admin) = &self.admin else { return self.began + self.config.setup_timeout };
        let setup =
            if self.ready { Instant::NEVER } else { self.began + self.config.setup_timeout * 2 };
        let oldest = self.io.iter().flatten().filter_map(Qpair::oldest).min();
        let io = oldest.map_or(Instant::NEVER, |at| at + self.config.io_timeout);
        admin.next_deadline().min(setup).min(io)
    }

    /// Ends in good order: no more I/O, and the controller is told.
    ///
    /// # Errors
    /// Where it cannot be told.
    pub fn shut_down(&mut self, now: Instant) -> Result<(), Error> {
        self.ready = false;
        self.admin.as_mut().map_or(Ok(()), |admin| admin.shut_down(now))
    }

    /// The association is lost: every I/O command in flight comes out as lost.
    pub fn end(&mut self) {
        self.ready = false;
        if let Some(admin) = &mut self.admin {
            admin.end();
        }
        for qpair in self.io.iter_mut().flatten() {
            qpair.end();
            while let Some(finished) = qpair.poll_finished() {
                if finished.token != CONNECT {
                    self.finished.push_back(finished);
                }
            }
        }
    }

    fn connect_io(&mut self, queue: u16, now: Instant) -> Result<(), Error> {
        let admin = self.admin.as_ref().ok_or(Error::Closed)?;
        let data = self.config.identity.connect_data(admin.cntlid()).encode();
        let (sqsize, no_sq_flow) = (self.config.depth, self.config.no_sq_flow);
        let connect = Connect { recfmt: 0, qid: queue, sqsize, no_sq_flow, kato: 0 };
        let capsule_data = self.info.as_ref().map_or(0, |info| info.capsule_data);
        let Some(qpair) = self.io.get_mut(usize::from(queue) - 1).and_then(Option::as_mut) else {
            return Err(Error::Closed);
        };
        qpair.set_capsule_data(capsule_data);
        if qpair.submit_inline(CONNECT, &connect.encode(0), &data, now) {
            Ok(())
        } else {
            Err(Error::Closed)
        }
    }

    fn drain_io(&mut self, at: usize) -> Result<(), Error> {
        let queues = self.io.len();
        let Some(qpair) = self.io.get_mut(at).and_then(Option::as_mut) else { return Ok(()) };
        while let Some(finished) = qpair.poll_finished() {
            if finished.token != CONNECT {
                self.finished.push_back(finished);
                continue;
            }
            let Some(cqe) = finished.cqe else { return Err(Error::Closed) };
            if !cqe.status.is_success() {
                let what = "Connect of an I/O queue";
                return Err(Error::Refused { what, status: cqe.status });
            }
            self.connected += 1;
            if self.connected == queues {
                self.ready = true;
                self.events.push_back(ControllerEvent::Ready);
            }
        }
        Ok(())
    }

    /// Takes the admin queue's answers and events further.
    fn drive_admin(&mut self, now: Instant) -> Result<(), Error> {
        let Some(admin) = &mut self.admin else { return Ok(()) };
        if admin.is_ready() && !self.asked {
            self.asked = true;
            let identity = admin.identity().ok_or(Error::Closed)?;
            self.info = Some(controller_info(identity, admin.cntlid(), admin.cap().mpsmin));
            self.config.depth = self
                .config
                .depth
                .clamp(1, DEPTH_MAX)
                .min(admin.cap().mqes.max(1))
                .min(if identity.maxcmd == 0 { u16::MAX } else { identity.maxcmd });
            self.ask_queues(now)?;
        }
        while let Some(reply) = self.admin.as_mut().and_then(Admin::poll_reply) {
            self.handle_reply(&reply, now)?;
        }
        while let Some(event) = self.admin.as_mut().and_then(Admin::poll_event) {
            self.handle_event(event, now)?;
        }
        Ok(())
    }

    fn ask(&mut self, ask: Ask, sqe: Sqe, read: usize, now: Instant) -> Result<(), Error> {
        let admin = self.admin.as_mut().ok_or(Error::Closed)?;
        admin.request(ask.token(), sqe, read, now)
    }

    fn ask_queues(&mut self, now: Instant) -> Result<(), Error> {
        let wanted = self.config.queues.max(1) - 1;
        let dw11 = NumberOfQueues { nsq: wanted, ncq: wanted }.encode();
        let set = SetFeatures { fid: feature::NUMBER_OF_QUEUES, save: false, dw11 };
        self.ask(Ask::Queues, set.encode(Sqe::new(admin::SET_FEATURES, 0, 0)), 0, now)
    }

    fn ask_namespace(&mut self, ask: Ask, now: Instant) -> Result<(), Error> {
        let cns = if ask == Ask::Descriptors { cns::NAMESPACE_DESCRIPTORS } else { cns::NAMESPACE };
        let sqe = Sqe::new(admin::IDENTIFY, 0, self.config.nsid);
        let sqe = Identify { cns, ..Identify::default() }.encode(sqe);
        self.ask(ask, sqe, IDENTIFY_LEN, now)
    }

    fn handle_reply(&mut self, reply: &Finished<HeapBuf>, now: Instant) -> Result<(), Error> {
        let (Some(ask), Some(cqe)) = (Ask::of(reply.token), reply.cqe) else { return Ok(()) };
        let good = cqe.status.is_success();
        // Without descriptors or events there is less to know, but I/O works.
        let optional = matches!(ask, Ask::Events | Ask::Descriptors | Ask::ClearLog | Ask::Abort);
        if !good && !optional {
            return Err(Error::Refused { what: ask.what(), status: cqe.status });
        }
        let raw = reply.buf.as_ref().and_then(|buf| buf.as_slice().first_chunk::<IDENTIFY_LEN>());
        match ask {
            Ask::Queues => {
                let granted = NumberOfQueues::decode(cqe.dw0());
                let most = granted.nsq.min(granted.ncq).saturating_add(1);
                self.io = (0..self.config.queues.clamp(1, most)).map(|_| None).collect();
                let wanted = event_bit::NAMESPACE | event_bit::ANA;
                let dw11 = wanted & self.oaes();
                let set = SetFeatures { fid: feature::ASYNC_EVENT_CONFIG, save: false, dw11 };
                self.ask(Ask::Events, set.encode(Sqe::new(admin::SET_FEATURES, 0, 0)), 0, now)
            }
            Ask::Events => self.ask_namespace(Ask::Namespace, now),
            Ask::Namespace | Ask::NamespaceAgain => {
                let uuid = self.namespace.as_ref().and_then(|old| old.uuid);
                let found = raw.map(IdNamespace::decode);
                let mut info = namespace_info(self.config.nsid, &found.unwrap_or_default())?;
                info.uuid = uuid;
                let changed = self.namespace.as_ref().is_some_and(|old| *old != info);
                self.namespace = Some(info);
                if ask == Ask::Namespace {
                    return self.ask_namespace(Ask::Descriptors, now);
                }
                if changed {
                    self.events.push_back(ControllerEvent::NamespaceChanged);
                }
                Ok(())
            }
            Ask::Descriptors => {
                if let (true, Some(raw), Some(namespace)) = (good, raw, &mut self.namespace) {
                    namespace.uuid = NamespaceDescriptors::decode(raw).uuid;
                }
                let queues = u16::try_from(self.io.len()).unwrap_or(u16::MAX);
                if let Some(info) = &mut self.info {
                    info.queues = queues;
                }
                self.events.extend((1..=queues).map(ControllerEvent::Open));
                Ok(())
            }
            Ask::ClearLog | Ask::Abort => Ok(()),
        }
    }

    fn oaes(&self) -> u32 {
        self.admin.as_ref().and_then(Admin::identity).map_or(0, |identity| identity.oaes)
    }

    /// Reading the log page that an event names lets the next event of its kind come.
    fn handle_event(&mut self, event: AsyncEvent, now: Instant) -> Result<(), Error> {
        let lid = match event {
            AsyncEvent::NAMESPACE => log::CHANGED_NAMESPACES,
            AsyncEvent::ANA => {
                self.events.push_back(ControllerEvent::AccessChanged);
                log::ANA
            }
            other => other.lid,
        };
        let page = GetLogPage { lid, len: LOG_LEN as u64, ..GetLogPage::default() };
        let sqe = page.encode(Sqe::new(admin::GET_LOG_PAGE, 0, forebay_wire::NSID_ALL));
        self.ask(Ask::ClearLog, sqe, LOG_LEN, now)?;
        if event == AsyncEvent::NAMESPACE {
            self.ask_namespace(Ask::NamespaceAgain, now)?;
        }
        Ok(())
    }
}

fn controller_info(identity: &IdController, cntlid: u16, mpsmin: u8) -> ControllerInfo {
    let page_shift = 12 + u32::from(mpsmin);
    let max_io = match identity.mdts {
        0 => MAX_IO,
        mdts => 1u32.checked_shl(page_shift + u32::from(mdts)).unwrap_or(MAX_IO).min(MAX_IO),
    };
    // A capsule of IOCCSZ units of 16 bytes holds the 64-byte command and then, ICDOFF units
    // further on, the data; other offsets than 0 are not used here.
    let capsule = identity.ioccsz.saturating_mul(16).saturating_sub(64);
    ControllerInfo {
        cntlid,
        serial: identity.serial.clone(),
        model: identity.model.clone(),
        firmware: identity.firmware.clone(),
        max_io: if max_io == 0 { MAX_IO } else { max_io },
        capsule_data: if identity.icdoff == 0 { capsule } else { 0 },
        volatile_write_cache: identity.vwc & 1 != 0,
        deallocate: identity.oncs & oncs::DSM != 0,
        write_zeroes: identity.oncs & oncs::WRITE_ZEROES != 0,
        atomic_blocks: u32::from(identity.awupf) + 1,
        queues: 0,
    }
}

fn namespace_info(nsid: u32, found: &IdNamespace) -> Result<NamespaceInfo, Error> {
    if found.nsze == 0 {
        return Err(Error::Unsupported("this namespace: it is not there or not active"));
    }
    let block_size = found.block_size();
    let plain = found.format().is_some_and(|format| format.metadata == 0);
    let block_size = block_size
        .filter(|_| plain)
        .ok_or(Error::Unsupported("a format that can be used: 512 B to 64 KiB, no metadata"))?;
    Ok(NamespaceInfo {
        nsid,
        blocks: found.nsze,
        block_size,
        uuid: None,
        nguid: found.nguid,
        read_only: found.nsattr & 1 != 0,
        // NSFEAT bit 1: the namespace states its own atomics; bit 4: preferred sizes.
        atomic_blocks: (found.nsfeat & 2 != 0).then(|| u32::from(found.nawupf) + 1),
        granularity: (found.nsfeat & 16 != 0).then(|| u32::from(found.npwg) + 1),
    })
}
