//! The admin queue of an association: brings a controller up (NVMe Base 2.0 §3.5.2), keeps it
//! alive, collects its events, and carries other admin commands.

use std::collections::VecDeque;

use crate::initiator::Error;
use crate::initiator::qpair::{Command, Finished, Qpair, QpairConfig, Transfer};
use crate::tcp::TxQueue;
use forebay_io::{Buf, BufPool, Duration, HeapBuf, HeapPool, Instant};
use forebay_wire::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, PropertyGet, PropertySet};
use forebay_wire::feature::AsyncEvent;
use forebay_wire::identify::{IDENTIFY_LEN, IdController, cns};
use forebay_wire::property::{self, Cap, Cc, Csts, Shn};
use forebay_wire::sqe::{Identify, admin};
use forebay_wire::tcp::Digests;
use forebay_wire::{Cqe, Nqn, Sqe};

/// Commands in flight on the admin queue.
const DEPTH: u16 = 31;
/// Between two looks at CSTS.
const READY_POLL: Duration = Duration::from_millis(5);
/// One command of the bring-up at a time.
const SETUP: u64 = 1;
const KEEP_ALIVE: u64 = 2;
const EVENT: u64 = 3;
/// Tokens of other admin commands begin here.
pub(super) const FIRST_TOKEN: u64 = 16;

/// Who connects to what.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The host's name.
    pub hostnqn: Nqn,
    /// The host's identifier.
    pub hostid: [u8; 16],
    /// The subsystem's name.
    pub subnqn: Nqn,
}

impl Identity {
    /// Connect data for this controller identifier.
    pub(super) fn connect_data(&self, cntlid: u16) -> ConnectData {
        ConnectData {
            hostid: self.hostid,
            cntlid,
            subnqn: self.subnqn.clone(),
            hostnqn: self.hostnqn.clone(),
        }
    }
}

/// How an admin queue behaves.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Who connects to what.
    pub identity: Identity,
    /// Digests wished for.
    pub digests: Digests,
    /// Whether SQ flow control is switched off.
    pub no_sq_flow: bool,
    /// Keep-alive timeout; zero for none.
    pub keep_alive: Duration,
    /// How long each command may take.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Initializing,
    Connecting,
    ReadingCap,
    Enabling,
    AskingReady,
    WaitingReady(Instant),
    Identifying,
    Ready,
    ShuttingDown,
    Ended,
}

impl Step {
    /// What is being waited for, in words.
    const fn what(self) -> &'static str {
        match self {
            Self::Initializing => "connection initialization",
            Self::Connecting => "Connect of the admin queue",
            Self::ReadingCap => "Property Get of CAP",
            Self::Enabling => "Property Set of CC",
            Self::AskingReady | Self::WaitingReady(_) => "controller ready",
            Self::Identifying => "Identify Controller",
            Self::Ready | Self::Ended => "an admin command",
            Self::ShuttingDown => "controller shutdown",
        }
    }
}

/// The admin queue. See the module's description.
pub struct Admin {
    config: AdminConfig,
    qpair: Qpair<HeapBuf>,
    step: Step,
    began: Instant,
    cap: Cap,
    cntlid: u16,
    identity: Option<Box<IdController>>,
    keep_alive_at: Instant,
    keep_alive_out: bool,
    replies: VecDeque<Finished<HeapBuf>>,
    events: VecDeque<AsyncEvent>,
}

impl Admin {
    /// Begins to bring a controller up on a connection that is open.
    #[must_use]
    pub fn new(config: AdminConfig, now: Instant) -> Self {
        let qpair = Qpair::new(QpairConfig { depth: DEPTH, digests: config.digests });
        Self {
            config,
            qpair,
            step: Step::Initializing,
            began: now,
            cap: Cap::default(),
            cntlid: CNTLID_DYNAMIC,
            identity: None,
            keep_alive_at: Instant::NEVER,
            keep_alive_out: false,
            replies: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether the controller is ready for other admin commands.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.step == Step::Ready
    }

    /// Whether a shutdown that was asked for is over, or the queue ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.step == Step::Ended
    }

    /// Identify Controller, once ready.
    #[must_use]
    pub fn identity(&self) -> Option<&IdController> {
        self.identity.as_deref()
    }

    /// Controller capabilities, once ready.
    #[must_use]
    pub const fn cap(&self) -> Cap {
        self.cap
    }

    /// The controller identifier, once connected.
    #[must_use]
    pub const fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// What is to be sent.
    pub const fn output(&mut self) -> &mut TxQueue<HeapBuf> {
        self.qpair.output()
    }

    /// What is to be sent, to look at.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.qpair.has_output()
    }

    /// The next asynchronous event.
    pub fn poll_event(&mut self) -> Option<AsyncEvent> {
        self.events.pop_front()
    }

    /// The next admin command of [`Admin::request`] that ended.
    pub fn poll_reply(&mut self) -> Option<Finished<HeapBuf>> {
        self.replies.pop_front()
    }

    /// Sends an admin command; `read` is the length of the data it brings. Tokens are at least 16.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where too many are in flight.
    pub fn request(
        &mut self,
        token: u64,
        sqe: Sqe,
        read: usize,
        now: Instant,
    ) -> Result<(), Error> {
        let full = Error::Unsupported("so many admin commands at once");
        let transfer = match (read, u32::try_from(read)) {
            (0, _) => Transfer::None,
            (_, Ok(len)) => {
                Transfer::In { buf: HeapPool.alloc(read).ok_or_else(|| full.clone())?, len }
            }
            _ => return Err(full),
        };
        self.qpair.submit(Command { token, sqe, transfer }, now).map_err(|_| full)
    }

    /// Takes bytes from the connection.
    ///
    /// # Errors
    /// Where the association must end.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<(), Error> {
        self.qpair.handle_bytes(bytes)?;
        if self.step == Step::Initializing && self.qpair.is_open() {
            self.connect(now)?;
        }
        while let Some(finished) = self.qpair.poll_finished() {
            self.handle_finished(finished, now)?;
        }
        Ok(())
    }

    /// Keeps alive, looks whether the controller is ready, and checks time limits.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        match self.step {
            Step::Ended => return Ok(()),
            Step::WaitingReady(at) if now >= at => {
                self.ask(property::CSTS, Step::AskingReady, now)?
            }
            _ => {}
        }
        if !matches!(self.step, Step::Ready) {
            let limit =
                self.config.timeout.max(Duration::from_millis(500) * u32::from(self.cap.to));
            return if now >= self.began + limit {
                Err(Error::Timeout(self.step.what()))
            } else {
                Ok(())
            };
        }
        if now >= self.keep_alive_at {
            if self.keep_alive_out {
                return Err(Error::Timeout("keep-alive"));
            }
            self.keep_alive_out = true;
            self.keep_alive_at = now + self.config.keep_alive / 2;
            let sqe = Sqe::new(admin::KEEP_ALIVE, 0, 0);
            let command = Command { token: KEEP_ALIVE, sqe, transfer: Transfer::None };
            self.qpair.submit(command, now).map_err(|_| Error::Timeout("admin commands"))?;
        }
        Ok(())
    }

    /// When [`Admin::handle_timeout`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match self.step {
            Step::Ended => Instant::NEVER,
            Step::Ready => self.keep_alive_at,
            Step::WaitingReady(at) => at,
            _ => self.began + self.config.timeout,
        }
    }

    /// Tells the controller that no more commands come (CC.SHN), so that it can end in good order.
    ///
    /// # Errors
    /// As for [`Admin::request`].
    pub fn shut_down(&mut self, now: Instant) -> Result<(), Error> {
        self.step = Step::ShuttingDown;
        self.began = now;
        let cc = Cc { shn: Shn::Normal, ..Self::configuration(self.cap) };
        self.set_cc(cc, now)
    }

    /// Ends the queue.
    pub fn end(&mut self) {
        self.qpair.end();
        self.step = Step::Ended;
    }

    const fn configuration(cap: Cap) -> Cc {
        // 64-byte submission and 16-byte completion queue entries.
        Cc {
            en: true,
            css: 0,
            mps: cap.mpsmin,
            ams: 0,
            shn: Shn::None,
            iosqes: 6,
            iocqes: 4,
            crime: false,
        }
    }

    fn connect(&mut self, now: Instant) -> Result<(), Error> {
        let kato = u32::try_from(self.config.keep_alive.as_millis()).unwrap_or(u32::MAX);
        let no_sq_flow = self.config.no_sq_flow;
        let connect = Connect { recfmt: 0, qid: 0, sqsize: DEPTH, no_sq_flow, kato };
        let data = self.config.identity.connect_data(CNTLID_DYNAMIC).encode();
        self.step = Step::Connecting;
        let sent = self.qpair.submit_inline(SETUP, &connect.encode(0), &data, now);
        if sent { Ok(()) } else { Err(Error::Closed) }
    }

    fn ask(&mut self, offset: u32, step: Step, now: Instant) -> Result<(), Error> {
        let get = PropertyGet { wide: offset == property::CAP, offset };
        self.setup(get.encode(0), 0, step, now)
    }

    fn set_cc(&mut self, cc: Cc, now: Instant) -> Result<(), Error> {
        let value = u64::from(cc.encode());
        let set = PropertySet { wide: false, offset: property::CC, value };
        let step = self.step;
        self.setup(set.encode(0), 0, step, now)
    }

    /// Sends the next command of the bring-up.
    fn setup(&mut self, sqe: Sqe, read: usize, step: Step, now: Instant) -> Result<(), Error> {
        self.step = step;
        self.request(SETUP, sqe, read, now)
    }

    fn handle_finished(&mut self, finished: Finished<HeapBuf>, now: Instant) -> Result<(), Error> {
        let Some(cqe) = finished.cqe else {
            if finished.token >= FIRST_TOKEN {
                self.replies.push_back(finished);
            }
            return Ok(());
        };
        match finished.token {
            SETUP if !cqe.status.is_success() => {
                Err(Error::Refused { what: self.step.what(), status: cqe.status })
            }
            SETUP => self.advance(&cqe, finished.buf.as_ref(), now),
            KEEP_ALIVE => {
                self.keep_alive_out = false;
                Ok(())
            }
            EVENT if cqe.status.is_success() => {
                self.events.push_back(AsyncEvent::decode(cqe.dw0()));
                self.listen(now)
            }
            // A controller without events is one that nothing is heard of.
            EVENT => Ok(()),
            _ => {
                self.replies.push_back(finished);
                Ok(())
            }
        }
    }

    /// The answer of one step begins the next.
    fn advance(&mut self, cqe: &Cqe, buf: Option<&HeapBuf>, now: Instant) -> Result<(), Error> {
        self.began = now;
        match self.step {
            Step::Connecting => {
                // Bits 18:16 of the result ask for authentication (§6.3).
                if cqe.dw0() >> 16 & 7 != 0 {
                    return Err(Error::Unsupported("connections without authentication"));
                }
                let id = cqe.dw0().to_le_bytes();
                self.cntlid = u16::from_le_bytes([id[0], id[1]]);
                self.ask(property::CAP, Step::ReadingCap, now)
            }
            Step::ReadingCap => {
                self.cap = Cap::decode(cqe.result);
                self.step = Step::Enabling;
                self.set_cc(Self::configuration(self.cap), now)
            }
            Step::Enabling => self.ask(property::CSTS, Step::AskingReady, now),
            Step::AskingReady => {
                let csts = Csts::decode(cqe.dw0());
                if csts.cfs {
                    return Err(Error::Unsupported("this: it reports a fatal status"));
                }
                if !csts.rdy {
                    self.step = Step::WaitingReady(now + READY_POLL);
                    return Ok(());
                }
                let identify = Identify { cns: cns::CONTROLLER, ..Identify::default() };
                let sqe = identify.encode(Sqe::new(admin::IDENTIFY, 0, 0));
                self.setup(sqe, IDENTIFY_LEN, Step::Identifying, now)
            }
            Step::Identifying => {
                let raw = buf.and_then(|buf| buf.as_slice().first_chunk::<IDENTIFY_LEN>());
                let identity = IdController::decode(raw.ok_or(Error::Unsupported("Identify"))?);
                self.identity = Some(Box::new(identity));
                self.step = Step::Ready;
                if self.config.keep_alive > Duration::ZERO {
                    self.keep_alive_at = now + self.config.keep_alive / 2;
                }
                self.listen(now)
            }
            Step::ShuttingDown => {
                self.step = Step::Ended;
                Ok(())
            }
            Step::Initializing | Step::WaitingReady(_) | Step::Ready | Step::Ended => Ok(()),
        }
    }

    /// Keeps one Asynchronous Event Request outstanding.
    fn listen(&mut self, now: Instant) -> Result<(), Error> {
        self.request(EVENT, Sqe::new(admin::ASYNC_EVENT_REQUEST, 0, 0), 0, now)
    }
}
