//! One connection: its queue's command slots, its receive state, its output.

use super::stats::ConnStats;
use super::{ConnId, TagParts, tag};
use crate::plant::{Bug, Plant};
use crate::tcp::{Params, TxQueue};
use forebay_io::{Buf, BufPool, Instant, Piece, Tag};
use forebay_wire::tcp::{
    DataPdu, Digest, Digests, Direction, Fatal, c2h_data, capsule_resp, put_c2h_data,
    put_capsule_resp, put_r2t, put_term_req,
};
use forebay_wire::{Cqe, Sqe, Status};
use std::collections::VecDeque;

/// Which subsystem a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// The discovery subsystem.
    Discovery,
    /// A subsystem, by slot.
    Subsystem(usize),
}

/// Whether I/O commands are admitted on a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Yes.
    Open,
    /// The controller is not enabled.
    NotReady,
    /// An older controller of the same host has not ended yet.
    Held,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Compare,
    WriteZeroes,
    Flush,
    Dsm,
    FusedCompare,
    FusedWrite,
    AsyncEvent,
}

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The slot is free.
    Free,
    /// A write without a buffer yet: no R2T is sent.
    WaitBuffer,
    /// R2T is sent; data arrives.
    Receiving,
    /// Half of a fused pair whose data is complete.
    Whole,
    /// In the volume.
    Submitted,
    /// An Asynchronous Event Request.
    Parked,
}

/// A command.
#[derive(Debug)]
pub(super) struct Slot<B> {
    pub(super) generation: u16,
    pub(super) state: State,
    pub(super) kind: Kind,
    /// When its capsule was there, whole.
    pub(super) arrived: Instant,
    pub(super) cid: u16,
    pub(super) nsid: u32,
    pub(super) slba: u64,
    pub(super) blocks: u32,
    pub(super) fua: bool,
    /// Bytes of data that the command moves.
    pub(super) bytes: u32,
    /// Bytes of data received.
    pub(super) received: u32,
    pub(super) buf: Option<B>,
    /// Requests in the volume.
    pub(super) parts: u32,
    /// The first failure.
    pub(super) failed: Option<Status>,
    /// The other half of a fused pair.
    pub(super) partner: Option<u16>,
}

/// What a command starts with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) kind: Kind,
    pub(super) cid: u16,
    pub(super) nsid: u32,
    pub(super) slba: u64,
    pub(super) blocks: u32,
    pub(super) fua: bool,
    pub(super) bytes: u32,
}

/// Data of an H2CData PDU that is arriving.
#[derive(Debug)]
pub(super) struct Arriving {
    pub(super) slot: u16,
    /// Where the next byte goes in the command's buffer.
    pub(super) at: usize,
    /// Data bytes still to come in this PDU.
    pub(super) left: usize,
    pub(super) len: u32,
    pub(super) digest: Option<Digest>,
    /// The digest received so far.
    pub(super) trailer: [u8; 4],
    pub(super) trailer_len: usize,
}

/// The halves of a fused pair seen so far on the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fusion {
    None,
    /// The first half waits for the second.
    First(u16),
    /// The first half failed, so will the second.
    FirstFailed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn<B> {
    pub(super) id: ConnId,
    pub(super) home: Home,
    pub(super) ctrl: usize,
    pub(super) qid: u16,
    pub(super) params: Params,
    /// No digests.
    pub(super) plain: bool,
    pub(super) no_sq_flow: bool,
    pub(super) gate: Gate,
    entries: u16,
    sqhd: u16,
    pub(super) slots: Vec<Slot<B>>,
    free: Vec<u16>,
    pub(super) tx: TxQueue<B>,
    /// A PDU that is not complete; bounded by the largest capsule.
    pub(super) side: Vec<u8>,
    pub(super) arriving: Option<Arriving>,
    pub(super) fusion: Fusion,
    /// Slots in state [`State::WaitBuffer`], oldest first.
    waiting: VecDeque<u16>,
    pub(super) starved: bool,
    /// Requests in the volumes.
    pub(super) admitted: u32,
    pub(super) heard: Instant,
    /// When to stop waiting for the output to be sent; set once the connection closes.
    pub(super) closing: Option<Instant>,
    pub(super) close_told: bool,
    /// The socket is gone; only `admitted` keeps the connection.
    pub(super) dead: bool,
    /// An I/O Connect that waits for an older queue, its command identifier, and until when.
    pub(super) parked: Option<(u16, Instant)>,
    pub(super) in_ready: bool,
    pub(super) stats: ConnStats,
    pub(super) plant: Plant,
}

impl<B: Buf> Conn<B> {
    pub(super) fn new(id: ConnId, home: Home, qid: u16, params: Params, now: Instant) -> Self {
        Self {
            id,
            home,
            ctrl: usize::MAX,
            qid,
            params,
            plain: params.digests == Digests::default(),
            no_sq_flow: false,
            gate: Gate::NotReady,
            entries: 1,
            sqhd: 0,
            slots: Vec::new(),
            free: Vec::new(),
            tx: TxQueue::default(),
            side: Vec::new(),
            arriving: None,
            fusion: Fusion::None,
            waiting: VecDeque::new(),
            starved: false,
            admitted: 0,
            heard: now,
            closing: None,
            close_told: false,
            dead: false,
            parked: None,
            in_ready: false,
            stats: ConnStats::default(),
            plant: Plant::default(),
        }
    }

    /// Makes room for `entries` commands, once the queue is known to be wanted.
    pub(super) fn open_queue(&mut self, entries: u16) {
        self.entries = entries;
        self.slots = (0..entries).map(|_| Slot::free()).collect();
        self.free = (0..entries).rev().collect();
    }

    /// Whether bytes from the host still count.
    pub(super) const fn live(&self) -> bool {
        self.closing.is_none() && !self.dead
    }

    /// Whether a well-behaved host may send another command: a response that is not sent yet
    /// cannot have freed the host's queue entry.
    #[inline]
    pub(super) fn within_queue(&self) -> bool {
        self.tx.responses() <= u32::from(self.entries) * 2 + 64
    }

    /// Takes a slot; `None` where the host has more commands outstanding than entries.
    #[inline]
    pub(super) fn start(&mut self, start: Start) -> Option<u16> {
        let at = self.free.pop()?;
        let slot = &mut self.slots[usize::from(at)];
        slot.arrived = self.heard;
        slot.kind = start.kind;
        slot.cid = start.cid;
        slot.nsid = start.nsid;
        slot.slba = start.slba;
        slot.blocks = start.blocks;
        slot.fua = start.fua;
        slot.bytes = start.bytes;
        slot.received = 0;
        slot.parts = 0;
        slot.failed = None;
        slot.partner = None;
        Some(at)
    }

    #[inline]
    pub(super) fn slot(&mut self, at: u16) -> &mut Slot<B> {
        &mut self.slots[usize::from(at)]
    }

    /// Whether the command that a tag names is in a volume.
    #[inline]
    pub(super) fn awaits(&self, tag: TagParts) -> bool {
        self.slots
            .get(usize::from(tag.slot))
            .is_some_and(|slot| slot.parts > 0 && slot.generation & 0xfff == tag.generation)
    }

    #[inline]
    pub(super) fn release(&mut self, at: u16) {
        let slot = &mut self.slots[usize::from(at)];
        slot.state = State::Free;
        slot.buf = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at);
    }

    #[inline]
    pub(super) fn tag(&self, at: u16, part: u8) -> Tag {
        tag(self.id, at, self.slots[usize::from(at)].generation, part)
    }

    fn next_sqhd(&mut self) -> u16 {
        if self.no_sq_flow {
            return 0xffff;
        }
        if self.plant.has(Bug::StaleHead) {
            return self.sqhd;
        }
        self.sqhd = if self.sqhd + 1 >= self.entries { 0 } else { self.sqhd + 1 };
        self.sqhd
    }

    /// Completes a command that holds no slot.
    #[inline]
    pub(super) fn respond(&mut self, cid: u16, status: Status, result: u64) {
        let sqhd = self.next_sqhd();
        if !status.is_success() {
            self.stats.errors += 1;
        }
        let cqe = Cqe { result, sqhd, sqid: 0, cid, status };
        let digests = self.params.digests;
        if digests.header {
            self.tx.push_with(1, |out| put_capsule_resp(out, &cqe, digests));
        } else {
            self.tx.push_array(1, &capsule_resp(&cqe, digests));
        }
    }

    /// Completes a command and frees its slot.
    #[inline]
    pub(super) fn finish(&mut self, at: u16, status: Status) {
        let cid = self.slot(at).cid;
        self.release(at);
        self.respond(cid, status, 0);
    }

    /// Sends control data, then success. `len` bytes are expected: shorter data is filled up with
    /// zeroes, longer is cut.
    pub(super) fn send_data(&mut self, cid: u16, data: &[u8], len: u32, result: u64) {
        if len == 0 {
            return self.respond(cid, Status::SUCCESS, result);
        }
        let cut = &data[..data.len().min(crate::tcp::widen(len))];
        let success = self.no_sq_flow && result == 0;
        let (digests, hpda) = (self.params.digests, self.params.hpda);
        let pdu = DataPdu { cid, ttag: 0, offset: 0, len };
        self.tx.push_with(u32::from(success), |out| {
            put_c2h_data(out, &pdu, true, success, digests, hpda);
            let start = out.len();
            out.extend_from_slice(cut);
            out.resize(start + crate::tcp::widen(len), 0);
            if digests.data {
                let digest = forebay_wire::tcp::data_digest(&out[start..]);
                out.extend_from_slice(&digest);
            }
        });
        if !success {
            self.respond(cid, Status::SUCCESS, result);
        }
    }

    /// Sends the pieces of a read as one PDU, then success, and frees the slot. Pieces that are
    /// not exactly the data asked for are an internal error: a host must never see a short read.
    pub(super) fn send_read(&mut self, at: u16, pieces: &mut Vec<Piece<B>>) -> bool {
        let (cid, bytes) = {
            let slot = self.slot(at);
            (slot.cid, slot.bytes)
        };
        let mut sum = 0;
        for piece in pieces.iter() {
            let inside = u64::from(piece.offset) + u64::from(piece.len);
            // One that leaves its buffer spoils the sum.
            sum += if inside <= piece.buf.len() as u64 { u64::from(piece.len) } else { 1 << 32 };
        }
        if sum != u64::from(bytes) {
            pieces.clear();
            self.finish(at, Status::INTERNAL);
            return false;
        }
        let success = self.no_sq_flow;
        let (digests, hpda) = (self.params.digests, self.params.hpda);
        let pdu = DataPdu { cid, ttag: 0, offset: 0, len: bytes };
        let ends = u32::from(success);
        if digests.header || hpda > 0 {
            self.tx.push_with(ends, |out| put_c2h_data(out, &pdu, true, success, digests, hpda));
        } else {
            self.tx.push_array(ends, &c2h_data(&pdu, true, success, digests, 0));
        }
        let digest = digests.data.then(|| digest_of(pieces));
        if pieces.len() == 1
            && let Some(piece) = pieces.pop()
        {
            // The usual case by far: no iterator to set up and take down.
            self.tx.push_piece(piece);
        } else {
            pieces.drain(..).for_each(|piece| self.tx.push_piece(piece));
        }
        if let Some(digest) = digest {
            self.tx.push_array(0, &digest);
        }
        self.release(at);
        if !success {
            self.respond(cid, Status::SUCCESS, 0);
        }
        true
    }

    /// Gets a buffer for a write and asks the host for its data; waits in line without one.
    pub(super) fn ask_for_data<P: BufPool<Buf = B>>(&mut self, at: u16, pool: &mut P) {
        if !self.waiting.is_empty() || !self.try_ask(at, pool) {
            self.slot(at).state = State::WaitBuffer;
            self.waiting.push_back(at);
        }
    }

    fn try_ask<P: BufPool<Buf = B>>(&mut self, at: u16, pool: &mut P) -> bool {
        let slot = &mut self.slots[usize::from(at)];
        let Some(buf) = pool.alloc(crate::tcp::widen(slot.bytes)) else { return false };
        slot.buf = Some(buf);
        slot.state = State::Receiving;
        let pdu = DataPdu {
            cid: slot.cid,
            ttag: transfer_tag(at, slot.generation),
            offset: 0,
            len: slot.bytes,
        };
        let digests = self.params.digests;
        self.tx.push_with(0, |out| put_r2t(out, &pdu, digests));
        true
    }

    /// Gives buffers to commands in line; whether the line is empty now.
    pub(super) fn feed<P: BufPool<Buf = B>>(&mut self, pool: &mut P) -> bool {
        while let Some(at) = self.waiting.front().copied() {
            if !self.try_ask(at, pool) {
                return false;
            }
            self.waiting.pop_front();
        }
        true
    }

    pub(super) fn is_starved(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a command out of the line for buffers.
    pub(super) fn leave_line(&mut self, at: u16) {
        self.waiting.retain(|waiting| *waiting != at);
    }

    /// The command that a transfer tag names, if it is receiving data.
    pub(super) fn receiving(&self, ttag: u16) -> Option<u16> {
        let at = (ttag & 0x7ff).checked_sub(1)?;
        let slot = self.slots.get(usize::from(at))?;
        let right = slot.state == State::Receiving && transfer_tag(at, slot.generation) == ttag;
        right.then_some(at)
    }

    /// The command with this identifier.
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let at = self.slots.iter().position(|s| s.state != State::Free && s.cid == cid)?;
        u16::try_from(at).ok()
    }

    /// Ends the connection for a protocol error, with a terminate request.
    pub(super) fn terminate(&mut self, fatal: Fatal, offending: &[u8], until: Instant) {
        if self.live() {
            self.tx.push_with(0, |out| put_term_req(out, Direction::ToHost, fatal, offending));
            self.close(until);
        }
    }

    /// Stops reading; the output is still sent, until `until`.
    pub(super) fn close(&mut self, until: Instant) {
        if self.closing.is_none() {
            self.closing = Some(until);
        }
        self.side = Vec::new();
        self.arriving = None;
    }

    /// The socket is gone: everything that is not in a volume ends now.
    pub(super) fn die(&mut self, now: Instant) {
        self.close(now);
        self.dead = true;
        self.tx.clear();
        self.waiting.clear();
        self.parked = None;
        self.fusion = Fusion::None;
        for at in 0..self.entries {
            if self
                .slots
                .get(usize::from(at))
                .is_some_and(|s| !matches!(s.state, State::Free | State::Submitted) && s.parts == 0)
            {
                self.release(at);
            }
        }
    }

    /// The start of a command: identity and place, no data.
    #[inline]
    pub(super) fn begin(sqe: &Sqe, kind: Kind) -> Start {
        Start { kind, cid: sqe.cid(), nsid: sqe.nsid(), slba: 0, blocks: 0, fua: false, bytes: 0 }
    }
}

/// The digest of all pieces together.
fn digest_of<B: Buf>(pieces: &[Piece<B>]) -> [u8; 4] {
    let mut digest = Digest::default();
    for piece in pieces {
        let from = crate::tcp::widen(piece.offset);
        digest.update(&piece.buf.as_slice()[from..from + crate::tcp::widen(piece.len)]);
    }
    digest.finish()
}

/// A transfer tag: slot + 1 (never 0) and the slot's generation, so that a stale one is noticed.
/// Queues have at most 1024 entries, so that 11 bits hold the slot.
const fn transfer_tag(at: u16, generation: u16) -> u16 {
    (at + 1) | (generation & 0x1f) << 11
}

impl<B> Slot<B> {
    const fn free() -> Self {
        Self {
            generation: 0,
            state: State::Free,
            kind: Kind::Flush,
            arrived: Instant(0),
            cid: 0,
            nsid: 0,
            slba: 0,
            blocks: 0,
            fua: false,
            bytes: 0,
            received: 0,
            buf: None,
            parts: 0,
            failed: None,
            partner: None,
        }
    }
}
