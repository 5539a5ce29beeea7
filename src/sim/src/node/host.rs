//! A host: our own initiator, with a controller at a time, and the commands that it carries for the
//! script. What a lost connection took along is given up, and by some hosts asked anew; what a held
//! controller refuses is sent again.

use super::judge::{Asked, Judge, Verdict};
use super::link::{End, Lane, Link};
use super::tap::Tap;
use super::world::World;
use crate::buffer::SimBuf;
use forebay_io::{Buf, Instant, RequestOp};
use forebay_nvmf::initiator::controller::ControllerEvent;
use forebay_nvmf::initiator::{Command, Controller, Error, Finished, HostConfig, Transfer};
use forebay_nvmf::tcp::Handshake;
use forebay_wire::dsm::Range;
use forebay_wire::sqe::{DatasetManagement, Fuse, ReadWrite, nvm};
use forebay_wire::{Sqe, Status};
use std::collections::BTreeMap;

/// Time from a socket's opening to a whole Connect command.
const GREETING: forebay_io::Duration = forebay_io::Duration::from_secs(10);

/// The ends of the two commands of a fused pair.
type Halves = [Option<Status>; 2];

/// A host's use of one subsystem.
pub struct Host {
    /// The subsystem.
    pub subsystem: usize,
    /// How it connects.
    pub config: HostConfig,
    /// The association, if there is one.
    pub controller: Option<Controller<SimBuf>>,
    /// Its connections, by queue.
    pub links: Vec<u32>,
    /// When it connects again.
    pub retry_at: u64,
    /// Commands to send, and when.
    pub waiting: Vec<(u64, u64)>,
    /// Asks anew for what a lost connection took along.
    pub keeps: bool,
    /// By token: the command, and which half of a pair.
    flying: BTreeMap<u64, (u64, usize)>,
    halves: BTreeMap<u64, Halves>,
    next_token: u64,
    /// This association has had an answer of a volume.
    served: bool,
}

impl Host {
    /// A host that connects at once.
    #[must_use]
    pub const fn new(subsystem: usize, config: HostConfig, keeps: bool) -> Self {
        Self {
            subsystem,
            config,
            controller: None,
            links: Vec::new(),
            retry_at: 0,
            waiting: Vec::new(),
            keeps,
            flying: BTreeMap::new(),
            halves: BTreeMap::new(),
            next_token: 1,
            served: false,
        }
    }

    /// When it must be called at the latest.
    #[must_use]
    pub fn due(&self) -> u64 {
        let Some(controller) = &self.controller else { return self.retry_at };
        let waiting = self.waiting.iter().map(|waiting| waiting.0).min().unwrap_or(u64::MAX);
        let waiting = if controller.is_ready() { waiting } else { u64::MAX };
        controller.next_deadline().0.min(waiting)
    }

    /// Commands sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn token(&mut self, tag: u64, half: usize) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.flying.insert(token, (tag, half));
        token
    }

    /// Forgets everything: the node has died, and what was asked is not asked again.
    pub fn forget(&mut self, retry_at: u64) {
        self.controller = None;
        self.links.clear();
        self.waiting.clear();
        self.flying.clear();
        self.halves.clear();
        self.retry_at = retry_at;
    }

    /// Sends a command; `false` where there is no room.
    fn send(&mut self, tag: u64, asked: &Asked, place: Place, now: Instant) -> bool {
        let Some(mut controller) = self.controller.take() else { return false };
        let before = self.next_token;
        let sent = self.send_on(&mut controller, tag, asked, place, now);
        if !sent {
            self.flying.retain(|token, _| *token < before);
        }
        self.controller = Some(controller);
        sent
    }

    fn send_on(
        &mut self,
        controller: &mut Controller<SimBuf>,
        tag: u64,
        asked: &Asked,
        place: Place,
        now: Instant,
    ) -> bool {
        let ask = &asked.ask;
        let (slba, blocks) = (ask.offset / place.unit, ask.len / place.unit);
        let range = ReadWrite {
            slba,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            fua: ask.fua,
            deallocate: ask.op == RequestOp::WriteZeroes { deallocate: true },
            ..ReadWrite::default()
        };
        let len = u32::try_from(ask.len).unwrap_or(u32::MAX);
        let sqe = |opcode| range.encode(Sqe::new(opcode, 0, place.nsid));
        let out = |bytes: &[u8]| Transfer::Out { buf: SimBuf::from_bytes(bytes), len };
        let token = self.token(tag, 0);
        let (sqe, transfer) = match ask.op {
            RequestOp::Read => {
                let fresh = vec![0xee; usize::try_from(ask.len).unwrap_or(0)];
                (sqe(nvm::READ), Transfer::In { buf: SimBuf::from_bytes(&fresh), len })
            }
            RequestOp::Write => (sqe(nvm::WRITE), out(&Judge::data(asked))),
            RequestOp::Compare => (sqe(nvm::COMPARE), out(&asked.want)),
            RequestOp::WriteZeroes { .. } => (sqe(nvm::WRITE_ZEROES), Transfer::None),
            RequestOp::Flush => (Sqe::new(nvm::FLUSH, 0, place.nsid), Transfer::None),
            RequestOp::Deallocate => {
                // In two ranges, where that goes.
                let first = (blocks / 2).max(1);
                let range = |slba, blocks: u64| Range {
                    attributes: 0,
                    blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
                    slba,
                };
                let ranges = [range(slba, first), range(slba + first, blocks - first)];
                let count = if blocks > first { 2 } else { 1 };
                let dsm =
                    DatasetManagement { ranges: count, deallocate: true, ..Default::default() };
                let sqe = dsm.encode(Sqe::new(nvm::DATASET_MANAGEMENT, 0, place.nsid));
                let data = ranges[..usize::from(count)].iter().flat_map(Range::encode);
                let data: Vec<u8> = data.collect();
                return controller.submit_inline(token, &sqe, &data, now);
            }
            RequestOp::CompareAndWrite => {
                let sqes = [
                    sqe(nvm::COMPARE).with_fuse(Fuse::First),
                    sqe(nvm::WRITE).with_fuse(Fuse::Second),
                ];
                let second = self.token(tag, 1);
                let pair = [
                    Command { token, sqe: sqes[0], transfer: out(&asked.want) },
                    Command { token: second, sqe: sqes[1], transfer: out(&Judge::data(asked)) },
                ];
                return controller.submit_fused(pair, now);
            }
        };
        controller.submit(Command { token, sqe, transfer }, now).is_ok()
    }

    /// The end of a command, once all of it has ended: `Err` where a connection was lost first.
    fn ended(
        &mut self,
        finished: &Finished<SimBuf>,
        fused: bool,
    ) -> Option<Result<Status, String>> {
        let (tag, half) = self.flying.remove(&finished.token)?;
        let status = finished.cqe.map(|cqe| cqe.status)?;
        if !fused {
            return Some(Ok(status));
        }
        let halves = self.halves.entry(tag).or_default();
        halves[half] = Some(status);
        let [Some(first), Some(second)] = *halves else { return None };
        self.halves.remove(&tag);
        Some(if first == second || second.is(Status::FUSED_FAILED) {
            Ok(first)
        } else if first.is(Status::FUSED_FAILED) {
            Ok(second)
        } else {
            Err(format!("the halves of a fused pair ended in {first} and {second}"))
        })
    }
}

/// Where hosts find a volume.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The subsystem.
    pub subsystem: usize,
    /// Its namespace there.
    pub nsid: u32,
    /// Bytes of a logical block.
    pub unit: u64,
}

impl World {
    /// Time limits, connecting, sending of host `h`.
    pub(super) fn host_poll(&mut self, h: usize) {
        let now = Instant(self.now);
        if self.hosts[h].controller.is_none() {
            if self.now < self.hosts[h].retry_at {
                return;
            }
            let config = self.hosts[h].config.clone();
            self.hosts[h].controller = Some(Controller::new(config, now));
        }
        if let Some(controller) = &mut self.hosts[h].controller
            && let Err(error) = controller.handle_timeout(now)
        {
            return self.lose(h, &error);
        }
        self.host_events(h);
        self.host_send_waiting(h);
        self.host_output(h);
    }

    fn host_events(&mut self, h: usize) {
        loop {
            let controller = self.hosts[h].controller.as_mut();
            match controller.and_then(Controller::poll_event) {
                None => return,
                Some(ControllerEvent::Open(queue)) => self.open(h, queue),
                Some(ControllerEvent::Ready) => {
                    self.judge.counts.associations += 1;
                    self.judge.line(|| format!("host{h}  is connected"));
                    self.hosts[h].served = false;
                }
                Some(_) => {}
            }
        }
    }

    /// Opens the connection of a queue; any reactor may accept it.
    fn open(&mut self, h: usize, queue: u16) {
        let reactor = self.rng.index(self.reactors.len());
        let handshake = Box::new(Handshake::new(Instant(self.now), GREETING));
        let link = Link {
            host: h,
            queue,
            up: Lane::default(),
            down: Lane::default(),
            end: End::Greeting(reactor, handshake),
            open: true,
            full: false,
            blocked: false,
            tap: Tap::default(),
        };
        let id = self.next_link;
        self.next_link += 1;
        self.links.insert(id, link);
        let host = &mut self.hosts[h];
        host.links.push(id);
        if let Some(controller) = &mut host.controller {
            controller.handle_connected(queue, Instant(self.now));
        }
    }

    fn host_send_waiting(&mut self, h: usize) {
        let host = &mut self.hosts[h];
        if !host.controller.as_ref().is_some_and(Controller::is_ready) {
            return;
        }
        let mut at = 0;
        while let Some((when, tag)) = host.waiting.get(at).copied() {
            let Some(asked) = self.judge.asked.get(&tag) else {
                host.waiting.remove(at);
                continue;
            };
            let place = self.places[asked.ask.volume];
            if when <= self.now && host.send(tag, asked, place, Instant(self.now)) {
                host.waiting.remove(at);
                self.judge.sum(tag);
            } else {
                if when <= self.now {
                    // The queues are full; answers make room.
                    host.waiting[at].0 = self.now + 50_000;
                }
                at += 1;
            }
        }
    }

    /// Puts what the queues have to send on the wire, as far as there is room.
    fn host_output(&mut self, h: usize) {
        let host = &mut self.hosts[h];
        let Some(controller) = &mut host.controller else { return };
        for id in &host.links {
            let Some(link) = self.links.get_mut(id).filter(|link| link.open) else { continue };
            let room = link.up.room(&self.net);
            let bytes: Vec<u8> = if link.queue == 0 {
                controller.admin_output().map(|out| front(out, room)).unwrap_or_default()
            } else {
                controller.io_output(link.queue).map(|out| front(out, room)).unwrap_or_default()
            };
            link.full = controller.has_output(link.queue);
            if bytes.is_empty() {
                continue;
            }
            if let Err(wrong) = link.tap.sends(&bytes) {
                self.judge.fail(format!("host{h} queue {}: {wrong}", link.queue));
            }
            link.up.send(&bytes, self.now, &self.net, &mut self.rng);
        }
    }

    /// What arrived at host `h`.
    pub(super) fn host_receive(&mut self, id: u32) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.open) else { return };
        let (h, queue) = (link.host, link.queue);
        let Some(bytes) = link.down.take(self.now, &mut self.rng) else {
            if link.down.ended(self.now) {
                self.lose(h, &Error::Closed);
            }
            return;
        };
        let crc = forebay_io::crc::crc32c(&bytes);
        self.judge.sum(u64::from(crc) ^ self.now.rotate_left(32));
        if let Err(wrong) = link.tap.receives(&bytes) {
            self.judge.fail(format!("host{h} queue {queue}: {wrong}"));
            return;
        }
        let Some(controller) = &mut self.hosts[h].controller else { return };
        match controller.handle_bytes(queue, &bytes, Instant(self.now)) {
            Ok(()) => {
                self.host_finished(h);
                self.host_poll(h);
            }
            Err(error) => self.lose(h, &error),
        }
    }

    fn host_finished(&mut self, h: usize) {
        while let Some(finished) =
            self.hosts[h].controller.as_mut().and_then(Controller::poll_finished)
        {
            let host = &mut self.hosts[h];
            let Some((tag, _)) = host.flying.get(&finished.token).copied() else {
                self.judge.fail(format!("host{h}: a command that was not sent ended"));
                return;
            };
            let asked = self.judge.asked.get(&tag);
            let fused = asked.is_some_and(|a| a.ask.op == RequestOp::CompareAndWrite);
            let status = match host.ended(&finished, fused) {
                None => continue,
                Some(Ok(status)) => status,
                Some(Err(wrong)) => return self.judge.fail(format!("host{h}: {wrong}")),
            };
            // An answer of a volume: this association is not held, so that the earlier ones are over.
            if status.sct() != 3 && !status.is(Status::COMMAND_INTERRUPTED) && !host.served {
                host.served = true;
                self.judge.concluded(h);
            }
            let data = finished.buf.as_ref().map(Buf::as_slice);
            if self.judge.answered(tag, status, data) == Verdict::Again {
                self.judge.again(tag);
                let at = self.now + 2_000_000 + self.rng.below(30_000_000);
                self.hosts[h].waiting.push((at, tag));
            }
        }
    }

    /// The association of host `h` is lost; it closes its connections.
    pub(super) fn lose(&mut self, h: usize, error: &Error) {
        self.judge.line(|| format!("host{h}  loses its association: {error}"));
        match error {
            Error::Closed | Error::Timeout(_) => {}
            // Queues of an association that the target has ended meanwhile.
            Error::Refused { .. } if !self.quiet => {}
            error => self.judge.fail(format!("host{h}: {error}")),
        }
        let mut ended = Vec::new();
        if let Some(mut controller) = self.hosts[h].controller.take() {
            controller.end();
            ended.extend(core::iter::from_fn(|| controller.poll_finished()));
        }
        let host = &mut self.hosts[h];
        let mut tags: Vec<u64> =
            ended.iter().filter_map(|f| host.flying.remove(&f.token)).map(|f| f.0).collect();
        tags.dedup();
        host.halves.clear();
        for tag in tags {
            let Some(asked) = self.judge.asked.get(&tag) else { continue };
            let ask = asked.ask.clone();
            self.judge.given_up(h, tag);
            if self.hosts[h].keeps {
                // Its application asks anew: a second attempt may take effect besides the first.
                let tag = self.judge.begin(h, ask, &mut self.rng);
                self.hosts[h].waiting.push((self.now, tag));
            }
        }
        let pauses = [100_000, 1_000_000, 20_000_000, 300_000_000];
        self.hosts[h].retry_at = self.now + self.rng.pick(&pauses);
        for id in core::mem::take(&mut self.hosts[h].links) {
            self.hang_up(id);
        }
    }

    /// A host closes its end: what is on its way to the node arrives, or only some of it, and the node
    /// learns of the end soon, or late.
    fn hang_up(&mut self, id: u32) {
        let quiet = self.quiet;
        let Some(link) = self.links.get_mut(&id) else { return };
        link.open = false;
        let late =
            if quiet { 1_000_000 } else { self.rng.pick(&[20_000, 5_000_000, 1_500_000_000]) };
        let at = self.now + self.rng.below(late);
        if self.rng.one_in(2) {
            link.up.cut(at, &mut self.rng);
        } else {
            link.up.close(at);
        }
        if matches!(link.end, End::Gone) {
            self.links.remove(&id);
        }
    }

    /// Asks the controller to abort one of the commands of host `h` under way.
    pub(super) fn abort(&mut self, h: usize, pick: usize) {
        let host = &mut self.hosts[h];
        let Some((&token, &(tag, _))) = host.flying.iter().nth(pick % host.flying.len().max(1))
        else {
            return;
        };
        let (Some(controller), Some(asked)) =
            (&mut host.controller, self.judge.asked.get_mut(&tag))
        else {
            return;
        };
        // Half of a pair alone would leave the other without it.
        if asked.ask.op != RequestOp::CompareAndWrite && controller.abort(token, Instant(self.now))
        {
            asked.aborted = true;
            self.judge.line(|| format!("host{h}  aborts {tag}"));
        }
    }
}

/// Takes up to `room` bytes from the front of a queue of bytes to send.
fn front<B: Buf>(out: &mut forebay_nvmf::tcp::TxQueue<B>, room: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for slice in out.slices() {
        let take = slice.len().min(room - bytes.len());
        bytes.extend_from_slice(&slice[..take]);
        if bytes.len() == room {
            break;
        }
    }
    out.advance(bytes.len());
    bytes
}
