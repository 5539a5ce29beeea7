//! Device operations on a remote namespace: splits them into commands, maps their ends, and makes
//! the association anew when it is lost.
//!
//! What was in flight when an association is lost fails, since whether it took effect is not
//! known. What is submitted while there is none waits for the next one, up to a bound.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::initiator::Error;
use crate::initiator::controller::{Controller, ControllerEvent, HostConfig, NamespaceInfo};
use crate::initiator::qpair::{Command, Finished, Transfer};
use forebay_io::{Buf, Completion, DeviceError, DeviceInfo, Duration, Instant, Op, OpKind, Uuid};
use forebay_wire::sqe::{DatasetManagement, ReadWrite, nvm};
use forebay_wire::{Sqe, Status, dsm};

/// Blocks of one Write Zeroes command: NLB has 16 bits, zero-based.
const WRITE_ZEROES_MAX: u64 = 1 << 16;
/// Blocks of one Dataset Management range.
const DEALLOCATE_MAX: u64 = u32::MAX as u64;
/// Between attempts of a command that the controller asks to retry (it is starting, or holds this
/// association back until an older one has ended).
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// How a remote namespace is reached and kept.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Host, subsystem, queues.
    pub host: HostConfig,
    /// First pause before an attempt to connect again; doubles up to `reconnect_max`.
    pub reconnect_min: Duration,
    /// Longest such pause.
    pub reconnect_max: Duration,
    /// How long operations wait for a lost association, or are tried again where the controller
    /// asks for that, before they fail.
    pub fail_after: Duration,
}

/// What the shell does with sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAction {
    /// Open a connection for this queue, without waiting; then [`Remote::handle_connected`] or
    /// [`Remote::handle_closed`].
    Open(u16),
    /// Send what is left of all queues' output, if it goes at once, and close all connections.
    CloseAll,
}

/// Whether the namespace can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not yet, or not any more.
    Connecting,
    /// I/O travels.
    Up,
    /// It was given up: another namespace answers, or trying again would fail again.
    Dead,
}

/// An operation between submission and completion.
struct Task<B> {
    token: u64,
    kind: OpKind,
    /// In logical blocks: what is left, from where.
    lba: u64,
    blocks: u64,
    /// Blocks of the command in flight.
    step: u64,
    fua: bool,
    buf: Option<B>,
    /// When the operation was submitted: retries are bounded from then on.
    since: Instant,
}

/// A remote namespace. See the module's description.
pub struct Remote<B> {
    config: RemoteConfig,
    /// The present association, or the last one until the next one begins.
    controller: Option<Controller<B>>,
    /// Whether that one has ended: only its last words may still be sent.
    ended: bool,
    info: Option<DeviceInfo>,
    block_size: u64,
    tasks: Vec<Option<Task<B>>>,
    free: Vec<usize>,
    /// Tasks to be sent when there is room or an association.
    waiting: VecDeque<usize>,
    /// Tasks to be sent again, and when.
    delayed: VecDeque<(Instant, usize)>,
    done: VecDeque<Completion<B>>,
    actions: VecDeque<SocketAction>,
    link: Link,
    /// Since when there is no association.
    down_since: Instant,
    retry_at: Instant,
    pause: Duration,
    last_error: Option<Error>,
    associations: u64,
}

impl<B: Buf> Remote<B> {
    /// Begins to connect.
    #[must_use]
    pub fn new(config: RemoteConfig, now: Instant) -> Self {
        let size = usize::from(config.host.depth.max(1)) * usize::from(config.host.queues.max(1));
        let mut remote = Self {
            controller: None,
            ended: true,
            info: None,
            block_size: 0,
            tasks: (0..size).map(|_| None).collect(),
            free: (0..size).rev().collect(),
            waiting: VecDeque::with_capacity(size),
            delayed: VecDeque::with_capacity(size),
            done: VecDeque::with_capacity(size),
            actions: VecDeque::new(),
            link: Link::Connecting,
            down_since: now,
            retry_at: now,
            pause: config.reconnect_min,
            last_error: None,
            associations: 0,
            config,
        };
        remote.connect(now);
        remote
    }

    /// What the device is, once it was reached for the first time.
    #[must_use]
    pub const fn info(&self) -> Option<&DeviceInfo> {
        self.info.as_ref()
    }

    /// Whether the namespace can be reached.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.link
    }

    /// Why the last association ended or could not be made.
    #[must_use]
    pub const fn last_error(&self) -> Option<&Error> {
        self.last_error.as_ref()
    }

    /// Associations made so far.
    #[must_use]
    pub const fn associations(&self) -> u64 {
        self.associations
    }

    /// The controller of the present association.
    #[must_use]
    pub const fn controller(&self) -> Option<&Controller<B>> {
        self.controller.as_ref()
    }

    /// Operations submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len() + self.done.len()
    }

    /// The next thing to do with sockets.
    pub fn poll_action(&mut self) -> Option<SocketAction> {
        self.actions.pop_front()
    }

    /// Takes an operation; whatever is wrong with it arrives as a completion.
    ///
    /// # Errors
    /// The operation itself while as many as may be are in flight.
    pub fn submit(&mut self, op: Op<B>, now: Instant) -> Result<(), Op<B>> {
        let Some(at) = self.free.pop() else { return Err(op) };
        let refuse = match (&self.link, self.check(&op)) {
            (Link::Dead, _) => Some(DeviceError::Gone),
            (Link::Connecting, _) if now >= self.down_since + self.config.fail_after => {
                Some(DeviceError::Gone)
            }
            (_, checked) => checked.err(),
        };
        if let Some(error) = refuse {
            self.free.push(at);
            let (token, buf) = (op.token, op.buf);
            self.done.push_back(Completion { token, result: Err(error), buf });
            return Ok(());
        }
        let size = self.block_size.max(1);
        self.tasks[at] = Some(Task {
            token: op.token,
            kind: op.kind,
            lba: op.offset / size,
            blocks: op.len / size,
            step: 0,
            fua: op.fua,
            buf: op.buf,
            since: now,
        });
        if !self.waiting.is_empty() || !self.send(at, now) {
            self.waiting.push_back(at);
        }
        Ok(())
    }

    /// The next operation that ended.
    pub fn poll_done(&mut self) -> Option<Completion<B>> {
        self.done.pop_front()
    }

    /// The connection of a queue is open.
    pub fn handle_connected(&mut self, queue: u16, now: Instant) {
        if let Some(controller) = self.present() {
            controller.handle_connected(queue, now);
        }
    }

    /// Takes bytes from a queue's connection.
    pub fn handle_bytes(&mut self, queue: u16, bytes: &[u8], now: Instant) {
        let Some(controller) = self.present() else { return };
        match controller.handle_bytes(queue, bytes, now) {
            Ok(()) => self.drain(now),
            Err(error) => self.lose(error, now),
        }
    }

    /// The connection of a queue was closed by the other side, or could not be opened.
    pub fn handle_closed(&mut self, now: Instant) {
        if !self.ended {
            self.lose(Error::Closed, now);
        }
    }

    /// Time limits, keep-alive, retries, attempts to connect again.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(controller) = self.present() {
            if let Err(error) = controller.handle_timeout(now) {
                self.lose(error, now);
            }
        } else if self.link == Link::Connecting && now >= self.retry_at {
            self.connect(now);
        }
        while self.delayed.front().is_some_and(|(at, _)| now >= *at) {
            if let Some((_, task)) = self.delayed.pop_front() {
                self.waiting.push_back(task);
            }
        }
        let give_up = now >= self.down_since + self.config.fail_after;
        if self.link == Link::Dead || (self.link == Link::Connecting && give_up) {
            self.fail_waiting();
        }
        self.send_waiting(now);
    }

    /// When [`Remote::handle_timeout`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let association = match (&self.controller, &self.link) {
            (Some(controller), _) if !self.ended => controller.next_deadline(),
            (_, Link::Connecting) => self.retry_at,
            _ => Instant::NEVER,
        };
        let waiting = match self.link {
            Link::Connecting if !self.waiting.is_empty() => {
                self.down_since + self.config.fail_after
            }
            _ => Instant::NEVER,
        };
        let delayed = self.delayed.front().map_or(Instant::NEVER, |(at, _)| *at);
        association.min(waiting).min(delayed)
    }

    /// Whether a queue has bytes to send.
    #[must_use]
    pub fn has_output(&self, queue: u16) -> bool {
        self.controller.as_ref().is_some_and(|controller| controller.has_output(queue))
    }

    /// Fills `slices` with what a queue has to send, in order; returns how many it used.
    pub fn gather<'a>(&'a mut self, queue: u16, slices: &mut [IoSlice<'a>]) -> usize {
        let Some(controller) = &mut self.controller else { return 0 };
        if queue == 0 {
            controller.admin_output().map_or(0, |output| output.gather(slices))
        } else {
            controller.io_output(queue).map_or(0, |output| output.gather(slices))
        }
    }

    /// Notes that `count` bytes of a queue were sent.
    pub fn advance(&mut self, queue: u16, count: usize) {
        let Some(controller) = &mut self.controller else { return };
        if queue == 0 {
            if let Some(output) = controller.admin_output() {
                output.advance(count);
            }
        } else if let Some(output) = controller.io_output(queue) {
            output.advance(count);
        }
    }

    /// Ends in good order; afterwards [`Remote::is_shut_down`] turns true, or time runs out.
    pub fn shut_down(&mut self, now: Instant) {
        let result = self.present().map_or(Ok(()), |controller| controller.shut_down(now));
        self.link = Link::Dead;
        self.fail_waiting();
        if result.is_err() {
            self.drop_association();
        }
    }

    /// Whether a shutdown is over.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        let over = self.ended || self.controller.as_ref().is_none_or(Controller::is_ended);
        self.link == Link::Dead && over
    }

    fn connect(&mut self, now: Instant) {
        self.controller = Some(Controller::new(self.config.host.clone(), now));
        self.ended = false;
        self.drain(now);
    }

    fn present(&mut self) -> Option<&mut Controller<B>> {
        self.controller.as_mut().filter(|_| !self.ended)
    }

    /// Whether an operation can be carried out by this device as it is known.
    fn check(&self, op: &Op<B>) -> Result<(), DeviceError> {
        let Some(info) = &self.info else { return Err(DeviceError::Gone) };
        let size = u64::from(info.block_size);
        if !op.offset.is_multiple_of(size) || !op.len.is_multiple_of(size) {
            return Err(DeviceError::Unsupported);
        }
        if op.offset.checked_add(op.len).is_none_or(|end| end > info.size) {
            return Err(DeviceError::OutOfRange);
        }
        match op.kind {
            OpKind::Flush => Ok(()),
            _ if op.len == 0 => Err(DeviceError::Unsupported),
            OpKind::Read | OpKind::Write => {
                let room = op.buf.as_ref().map_or(0, |buf| buf.len() as u64);
                let fits = op.len <= room && op.len <= u64::from(info.max_io);
                if fits { Ok(()) } else { Err(DeviceError::Unsupported) }
            }
            OpKind::Deallocate if info.deallocate => Ok(()),
            OpKind::WriteZeroes if info.write_zeroes => Ok(()),
            OpKind::Deallocate | OpKind::WriteZeroes => Err(DeviceError::Unsupported),
        }
    }

    /// Sends a task's next command, if there is an association with room.
    fn send(&mut self, at: usize, now: Instant) -> bool {
        let (Some(controller), Some(task)) = (&mut self.controller, &mut self.tasks[at]) else {
            return false;
        };
        if !controller.is_ready() {
            return false;
        }
        let nsid = self.config.host.nsid;
        let token = at as u64;
        if task.kind == OpKind::Deallocate {
            task.step = task.blocks.min(DEALLOCATE_MAX);
            let range = dsm::Range {
                attributes: 0,
                blocks: u32::try_from(task.step).unwrap_or(u32::MAX),
                slba: task.lba,
            };
            let command = DatasetManagement { ranges: 1, deallocate: true, ..Default::default() };
            let sqe = command.encode(Sqe::new(nvm::DATASET_MANAGEMENT, 0, nsid));
            return controller.submit_inline(token, &sqe, &range.encode(), now);
        }
        let sqe = match task.kind {
            OpKind::Flush => Sqe::new(nvm::FLUSH, 0, nsid),
            kind => {
                task.step = match kind {
                    OpKind::WriteZeroes => task.blocks.min(WRITE_ZEROES_MAX),
                    _ => task.blocks,
                };
                let opcode = match kind {
                    OpKind::Read => nvm::READ,
                    OpKind::Write => nvm::WRITE,
                    _ => nvm::WRITE_ZEROES,
                };
                let (slba, fua) = (task.lba, task.fua);
                let blocks = u32::try_from(task.step).unwrap_or(u32::MAX);
                let range = ReadWrite { slba, blocks, fua, ..ReadWrite::default() };
                range.encode(Sqe::new(opcode, 0, nsid))
            }
        };
        let len = u32::try_from(task.step * self.block_size).unwrap_or(u32::MAX);
        let transfer = match (task.kind, task.buf.take()) {
            (OpKind::Read, Some(buf)) => Transfer::In { buf, len },
            (OpKind::Write, Some(buf)) => Transfer::Out { buf, len },
            (_, buf) => {
                task.buf = buf;
                Transfer::None
            }
        };
        match controller.submit(Command { token, sqe, transfer }, now) {
            Ok(()) => true,
            Err(command) => {
                if let Transfer::In { buf, .. } | Transfer::Out { buf, .. } = command.transfer {
                    task.buf = Some(buf);
                }
                false
            }
        }
    }

    fn send_waiting(&mut self, now: Instant) {
        while let Some(at) = self.waiting.front().copied() {
            if !self.send(at, now) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Takes events and ends out of the controller.
    fn drain(&mut self, now: Instant) {
        while let Some(event) = self.controller.as_mut().and_then(Controller::poll_event) {
            match event {
                ControllerEvent::Open(queue) => self.actions.push_back(SocketAction::Open(queue)),
                ControllerEvent::Ready => {
                    if let Err(error) = self.adopt() {
                        return self.lose(error, now);
                    }
                    self.associations += 1;
                    self.link = Link::Up;
                    self.pause = self.config.reconnect_min;
                }
                ControllerEvent::NamespaceChanged => {
                    if let Err(error) = self.adopt() {
                        return self.lose(error, now);
                    }
                }
                ControllerEvent::AccessChanged => {}
            }
        }
        while let Some(finished) = self.controller.as_mut().and_then(Controller::poll_finished) {
            self.handle_finished(finished, DeviceError::Gone, now);
        }
        self.send_waiting(now);
    }

    /// Takes over what the namespace is now; another one than before is refused.
    fn adopt(&mut self) -> Result<(), Error> {
        let Some(controller) = &self.controller else { return Err(Error::Closed) };
        let (Some(info), Some(namespace)) = (controller.info(), controller.namespace()) else {
            return Err(Error::Closed);
        };
        let size = namespace.block_size;
        let bytes = |blocks: u32| blocks.saturating_mul(size);
        let found = DeviceInfo {
            size: namespace.blocks.saturating_mul(u64::from(size)),
            block_size: size,
            atomic_write: bytes(namespace.atomic_blocks.unwrap_or(info.atomic_blocks)),
            volatile_write_cache: info.volatile_write_cache,
            optimal_io: namespace.granularity.map_or(size.max(4096), bytes),
            max_io: info.max_io,
            // A range of a Dataset Management command travels in the capsule.
            deallocate: info.deallocate && info.capsule_data as usize >= dsm::RANGE_LEN,
            write_zeroes: info.write_zeroes,
            identity: identity(self.config.host.identity.subnqn.as_str(), namespace),
        };
        if let Some(old) = &self.info
            && (old.identity != found.identity || old.block_size != found.block_size)
        {
            return Err(Error::Unsupported("the namespace of before: another one answers"));
        }
        self.block_size = u64::from(size);
        self.info = Some(found);
        Ok(())
    }

    fn handle_finished(&mut self, finished: Finished<B>, lost: DeviceError, now: Instant) {
        let Ok(at) = usize::try_from(finished.token) else { return };
        let Some(mut task) = self.tasks.get_mut(at).and_then(Option::take) else { return };
        task.buf = finished.buf.or(task.buf);
        let status = match finished.cqe {
            None => return self.end(at, task, Err(lost)),
            Some(cqe) => cqe.status,
        };
        if status.is_success() {
            task.lba += task.step;
            task.blocks = task.blocks.saturating_sub(task.step);
            task.step = 0;
            if task.blocks == 0 || task.kind == OpKind::Flush {
                return self.end(at, task, Ok(()));
            }
            self.tasks[at] = Some(task);
            self.waiting.push_back(at);
        } else if wants_retry(status) && now < task.since + self.config.fail_after {
            self.tasks[at] = Some(task);
            self.delayed.push_back((now + RETRY_DELAY, at));
        } else {
            self.end(at, task, Err(device_error(status)));
        }
    }

    fn end(&mut self, at: usize, task: Task<B>, result: Result<(), DeviceError>) {
        self.free.push(at);
        self.done.push_back(Completion { token: task.token, result, buf: task.buf });
    }

    /// The association is lost: what was in flight fails, and another attempt follows.
    fn lose(&mut self, error: Error, now: Instant) {
        let cause = if matches!(error, Error::Timeout(_)) {
            DeviceError::Timeout
        } else {
            DeviceError::Gone
        };
        let final_error = error.is_final();
        self.last_error = Some(error);
        if let Some(controller) = &mut self.controller {
            controller.end();
        }
        while let Some(finished) = self.controller.as_mut().and_then(Controller::poll_finished) {
            self.handle_finished(finished, cause, now);
        }
        self.drop_association();
        if self.link == Link::Up {
            self.down_since = now;
        }
        if self.link != Link::Dead {
            self.link = if final_error { Link::Dead } else { Link::Connecting };
        }
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(self.config.reconnect_max);
    }

    /// The connections close; the shell sends what they still hold first (a terminate request).
    fn drop_association(&mut self) {
        self.actions.retain(|action| *action == SocketAction::CloseAll);
        self.actions.push_back(SocketAction::CloseAll);
        self.ended = true;
    }

    fn fail_waiting(&mut self) {
        let delayed = core::mem::take(&mut self.delayed);
        self.waiting.extend(delayed.iter().map(|(_, at)| *at));
        while let Some(at) = self.waiting.pop_front() {
            if let Some(task) = self.tasks[at].take() {
                self.end(at, task, Err(DeviceError::Gone));
            }
        }
    }
}

/// What tells the namespace from others across restarts.
fn identity(subnqn: &str, namespace: &NamespaceInfo) -> String {
    match namespace.uuid {
        Some(uuid) => format!("nvme-uuid.{}", Uuid(uuid)),
        None if namespace.nguid != [0; 16] => format!("nvme-nguid.{}", Uuid(namespace.nguid)),
        None => format!("nvme-name.{subnqn}.{}", namespace.nsid),
    }
}

/// Whether the controller says that the same command may end well later.
fn wants_retry(status: Status) -> bool {
    !status.is_dnr()
        && (status.sct() == 3
            || status.is(Status::NAMESPACE_NOT_READY)
            || status.is(Status::COMMAND_INTERRUPTED)
            || status.is(Status::TRANSIENT_TRANSPORT))
}

/// The one mapping from NVMe status to device errors.
fn device_error(status: Status) -> DeviceError {
    if status.is(Status::UNRECOVERED_READ) || status.is(Status::DEALLOCATED_BLOCK) {
        DeviceError::Media
    } else if status.is(Status::CAPACITY_EXCEEDED) {
        DeviceError::NoSpace
    } else if status.is(Status::LBA_OUT_OF_RANGE) {
        DeviceError::OutOfRange
    } else if status.is(Status::INVALID_OPCODE) || status.is(Status::INVALID_FIELD) {
        DeviceError::Unsupported
    } else if status.is(Status::INVALID_NAMESPACE) || status.sct() == 3 {
        DeviceError::Gone
    } else {
        DeviceError::Io(0)
    }
}
