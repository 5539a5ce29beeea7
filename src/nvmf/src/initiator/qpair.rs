//! One connection: its initialization, the commands in flight, data in both directions.

use std::collections::VecDeque;

use crate::initiator::Error;
use crate::initiator::receive::{Receive, Receiver};
use crate::tcp::TxQueue;
use forebay_io::{Buf, Instant, Piece};
use forebay_wire::sqe::Sgl;
use forebay_wire::tcp::{
    DataPdu, Digests, Direction, Fatal, IcReq, IcResp, data_digest, put_capsule_cmd, put_h2c_data,
    put_term_req,
};
use forebay_wire::{Cqe, Sqe, Status};

/// Most commands in flight on one queue.
pub const DEPTH_MAX: u16 = 1024;
/// Bits of a command identifier that name the slot; the rest counts its uses, so that a late or
/// repeated completion is recognised.
const SLOT_BITS: u32 = 10;
/// In-capsule data of Fabrics commands, on every queue (NVMe/TCP Transport 1.0 §3.3.2).
const FABRICS_CAPSULE: u32 = 8192;

/// The data of a command.
#[derive(Clone, Debug)]
pub enum Transfer<B> {
    /// None.
    None,
    /// The controller fills the first `len` bytes; the buffer is not shared.
    In {
        /// Where to.
        buf: B,
        /// Bytes.
        len: u32,
    },
    /// The controller takes the first `len` bytes.
    Out {
        /// Where from.
        buf: B,
        /// Bytes.
        len: u32,
    },
}

/// A command to carry out; its identifier and data pointer are set here.
#[derive(Clone, Debug)]
pub struct Command<B> {
    /// Comes back with the end.
    pub token: u64,
    /// The submission queue entry.
    pub sqe: Sqe,
    /// The data.
    pub transfer: Transfer<B>,
}

/// A command that ended.
#[derive(Clone, Debug)]
pub struct Finished<B> {
    /// The token of the [`Command`].
    pub token: u64,
    /// The completion; `None` where the connection was lost first, and whether the command took
    /// effect is not known.
    pub cqe: Option<Cqe>,
    /// The buffer.
    pub buf: Option<B>,
}

/// What is wished for at initialization.
#[derive(Clone, Copy, Debug)]
pub struct QpairConfig {
    /// Commands in flight, 1 to [`DEPTH_MAX`].
    pub depth: u16,
    /// Digests; the controller may only agree or leave them out.
    pub digests: Digests,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// ICReq is sent.
    Initializing,
    /// Commands travel.
    Open,
    /// Ended.
    Ended,
}

/// A command in flight.
struct Slot<B> {
    token: u64,
    buf: Option<B>,
    len: u32,
    /// The controller fills the buffer.
    inward: bool,
    /// Bytes received, or bytes the controller asked for.
    moved: u32,
    /// Uses of this slot, part of the command identifier.
    uses: u16,
    busy: bool,
    /// A data digest was wrong.
    damaged: bool,
    started: Instant,
}

/// One connection of an association. See the module's description.
pub struct Qpair<B> {
    depth: u16,
    wished: Digests,
    digests: Digests,
    phase: Phase,
    cpda: u8,
    maxh2cdata: u32,
    /// Largest in-capsule write of an I/O command.
    capsule_data: u32,
    slots: Vec<Slot<B>>,
    free: Vec<u16>,
    finished: VecDeque<Finished<B>>,
    output: TxQueue<B>,
    receiver: Receiver,
}

impl<B: Buf> Qpair<B> {
    /// A connection that sends its ICReq (NVMe/TCP Transport 1.0 §3.6.2.2) at once.
    #[must_use]
    pub fn new(config: QpairConfig) -> Self {
        let depth = config.depth.clamp(1, DEPTH_MAX);
        let mut output = TxQueue::default();
        let request = IcReq { hpda: 0, digests: config.digests, maxr2t: 0 };
        output.push_array(0, &request.encode());
        let slot = |_| Slot {
            token: 0,
            buf: None,
            len: 0,
            inward: false,
            moved: 0,
            uses: 0,
            busy: false,
            damaged: false,
            started: Instant(0),
        };
        Self {
            depth,
            wished: config.digests,
            digests: Digests::default(),
            phase: Phase::Initializing,
            cpda: 0,
            maxh2cdata: 0,
            capsule_data: 0,
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).rev().collect(),
            finished: VecDeque::with_capacity(usize::from(depth)),
            output,
            receiver: Receiver::new(),
        }
    }

    /// Whether commands may be submitted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Commands that may be in flight.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The identifier of a command in flight, by its token.
    #[must_use]
    pub fn cid_of(&self, token: u64) -> Option<u16> {
        let at = self.slots.iter().position(|slot| slot.busy && slot.token == token)?;
        u16::try_from(at).ok().map(|at| self.cid(at))
    }

    /// The digests agreed on.
    #[must_use]
    pub const fn digests(&self) -> Digests {
        self.digests
    }

    /// Sets the largest write whose data travels in its capsule, from the controller's IOCCSZ.
    pub const fn set_capsule_data(&mut self, bytes: u32) {
        self.capsule_data = bytes;
    }

    /// What is to be sent.
    pub const fn output(&mut self) -> &mut TxQueue<B> {
        &mut self.output
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The next command that ended.
    pub fn poll_finished(&mut self) -> Option<Finished<B>> {
        self.finished.pop_front()
    }

    /// When the command that waits longest was submitted.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.slots.iter().filter(|slot| slot.busy).map(|slot| slot.started).min()
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The command itself while the connection is not open or as many as may be are in flight.
    pub fn submit(&mut self, command: Command<B>, now: Instant) -> Result<(), Command<B>> {
        if self.phase != Phase::Open {
            return Err(command);
        }
        let Some(at) = self.free.pop() else { return Err(command) };
        let (cid, digests, cpda) = (self.cid(at), self.digests, self.cpda);
        let sqe = command.sqe.with_cid(cid);
        let capsule_data = self.capsule_of(&sqe);
        let slot = &mut self.slots[usize::from(at)];
        (slot.token, slot.started, slot.busy) = (command.token, now, true);
        (slot.moved, slot.damaged, slot.inward) = (0, false, false);
        match command.transfer {
            Transfer::None => {
                slot.len = 0;
                let sqe = sqe.with_sgl(Sgl::InCapsule { offset: 0, len: 0 });
                self.output.push_with(0, |arena| put_capsule_cmd(arena, &sqe, 0, digests, cpda));
            }
            Transfer::In { buf, len } => {
                (slot.buf, slot.len, slot.inward) = (Some(buf), len, true);
                let sqe = sqe.with_sgl(Sgl::Transport { len });
                self.output.push_with(0, |arena| put_capsule_cmd(arena, &sqe, 0, digests, cpda));
            }
            Transfer::Out { buf, len } if len <= capsule_data => {
                slot.len = len;
                // All of it is on its way: an R2T would be out of range.
                slot.moved = len;
                slot.buf = Some(buf.clone());
                let sqe = sqe.with_sgl(Sgl::InCapsule { offset: 0, len });
                self.output.push_with(0, |arena| put_capsule_cmd(arena, &sqe, len, digests, cpda));
                self.send_data(Piece { buf, offset: 0, len });
            }
            Transfer::Out { buf, len } => {
                (slot.buf, slot.len) = (Some(buf), len);
                let sqe = sqe.with_sgl(Sgl::Transport { len });
                self.output.push_with(0, |arena| put_capsule_cmd(arena, &sqe, 0, digests, cpda));
            }
        }
        Ok(())
    }

    /// Sends a command with a little data of its own in the capsule; says whether it could.
    pub fn submit_inline(&mut self, token: u64, sqe: &Sqe, data: &[u8], now: Instant) -> bool {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if self.phase != Phase::Open || len > self.capsule_of(sqe) {
            return false;
        }
        let Some(at) = self.free.pop() else { return false };
        let (digests, cpda) = (self.digests, self.cpda);
        let sqe = sqe.with_cid(self.cid(at)).with_sgl(Sgl::InCapsule { offset: 0, len });
        let slot = &mut self.slots[usize::from(at)];
        (slot.token, slot.started, slot.busy) = (token, now, true);
        (slot.moved, slot.len, slot.damaged, slot.inward) = (len, len, false, false);
        self.output.push_with(0, |arena| {
            put_capsule_cmd(arena, &sqe, len, digests, cpda);
            arena.extend_from_slice(data);
            if digests.data && len > 0 {
                arena.extend_from_slice(&data_digest(data));
            }
        });
        true
    }

    /// Takes bytes from the connection.
    ///
    /// # Errors
    /// Where the connection must end. A terminate request to the controller, if one is due, is in
    /// the output; all commands in flight come out of [`Qpair::poll_finished`] as lost.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.phase == Phase::Ended {
            return Err(Error::Closed);
        }
        let mut receiver = core::mem::replace(&mut self.receiver, Receiver::new());
        let result = receiver.take(bytes, self);
        if let Err(error) = &result {
            if let Error::Protocol(fatal) = error {
                let header = receiver.offending();
                let to = Direction::ToController;
                self.output.push_with(0, |arena| put_term_req(arena, to, *fatal, header));
            }
            self.end();
        }
        self.receiver = receiver;
        result
    }

    /// Ends the connection: every command in flight is lost.
    pub fn end(&mut self) {
        self.phase = Phase::Ended;
        for at in 0..self.depth {
            if self.slots[usize::from(at)].busy {
                self.finish(at, None);
            }
        }
    }

    /// Most data in the capsule of this command.
    const fn capsule_of(&self, sqe: &Sqe) -> u32 {
        let fabrics = sqe.opcode() == forebay_wire::sqe::admin::FABRICS;
        if fabrics { FABRICS_CAPSULE } else { self.capsule_data }
    }

    fn cid(&self, at: u16) -> u16 {
        (self.slots[usize::from(at)].uses << SLOT_BITS) | at
    }

    /// The slot of a command in flight.
    fn slot_of(&self, cid: u16) -> Option<u16> {
        let at = cid & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get(usize::from(at))?;
        (slot.busy && self.cid(at) == cid).then_some(at)
    }

    fn finish(&mut self, at: u16, cqe: Option<Cqe>) {
        let slot = &mut self.slots[usize::from(at)];
        slot.busy = false;
        slot.uses = slot.uses.wrapping_add(1);
        self.finished.push_back(Finished { token: slot.token, cqe, buf: slot.buf.take() });
        self.free.push(at);
    }

    /// Sends data and its digest.
    fn send_data(&mut self, piece: Piece<B>) {
        if self.digests.data && piece.len > 0 {
            let first = piece.offset as usize;
            let digest = data_digest(&piece.buf.as_slice()[first..first + piece.len as usize]);
            self.output.push_piece(piece);
            self.output.push_array(0, &digest);
        } else {
            self.output.push_piece(piece);
        }
    }
}

/// What the receiver found.
impl<B: Buf> Receive for Qpair<B> {
    fn digests(&self) -> Digests {
        self.digests
    }

    fn is_initializing(&self) -> bool {
        self.phase == Phase::Initializing
    }

    fn initialized(&mut self, response: IcResp) -> Result<(), Error> {
        if (response.digests.header && !self.wished.header)
            || (response.digests.data && !self.wished.data)
        {
            return Err(Error::Unsupported("connections without the digests it insists on"));
        }
        self.digests = response.digests;
        self.cpda = response.cpda;
        // A multiple of four bytes, as H2CData lengths should be.
        self.maxh2cdata = response.maxh2cdata & !3;
        self.phase = Phase::Open;
        Ok(())
    }

    fn responded(&mut self, cqe: Cqe) -> Result<(), Error> {
        // CID is at bytes 12–13 of the completion, which follows the 8-byte common header.
        let at = self.slot_of(cqe.cid).ok_or(Fatal::field(20))?;
        let slot = &self.slots[usize::from(at)];
        let short = slot.moved != slot.len;
        let cqe = if !cqe.status.is_success() {
            cqe
        } else if slot.damaged {
            Cqe { status: Status::TRANSIENT_TRANSPORT, ..cqe }
        } else if short {
            // A success must have moved all the data, in whichever direction.
            Cqe { status: Status::DATA_TRANSFER_ERROR, ..cqe }
        } else {
            cqe
        };
        self.finish(at, Some(cqe));
        Ok(())
    }

    fn data_begins(&mut self, pdu: &DataPdu, data_len: usize) -> Result<u16, Error> {
        let at = self.slot_of(pdu.cid).ok_or(Fatal::field(8))?;
        let slot = &self.slots[usize::from(at)];
        if usize::try_from(pdu.len) != Ok(data_len) {
            return Err(Fatal::field(16).into());
        }
        let end = pdu.offset.checked_add(pdu.len).ok_or(Fatal::out_of_range())?;
        // In order and inside the buffer (§3.3.2.1.1).
        if !slot.inward || pdu.offset != slot.moved || end > slot.len {
            return Err(Fatal::out_of_range().into());
        }
        Ok(at)
    }

    fn data_arrives(&mut self, at: u16, bytes: &[u8]) -> Result<(), Error> {
        let slot = &mut self.slots[usize::from(at)];
        let first = slot.moved as usize;
        let place = slot
            .buf
            .as_mut()
            .and_then(Buf::as_mut_slice)
            .and_then(|all| all.get_mut(first..first + bytes.len()))
            .ok_or(Fatal::out_of_range())?;
        place.copy_from_slice(bytes);
        slot.moved += u32::try_from(bytes.len()).map_err(|_| Fatal::out_of_range())?;
        Ok(())
    }

    fn data_ends(&mut self, at: u16, from: u32, digest: Option<[u8; 4]>) {
        let slot = &mut self.slots[usize::from(at)];
        if let (Some(digest), Some(buf)) = (digest, &slot.buf) {
            let data = &buf.as_slice()[from as usize..slot.moved as usize];
            slot.damaged |= data_digest(data) != digest;
        }
    }

    fn succeeded(&mut self, at: u16) -> Result<(), Error> {
        let cid = self.cid(at);
        self.responded(Cqe { cid, sqhd: 0xffff, ..Cqe::default() })
    }

    fn ready_to_transfer(&mut self, pdu: &DataPdu) -> Result<(), Error> {
        let at = self.slot_of(pdu.cid).ok_or(Fatal::field(8))?;
        let slot = &mut self.slots[usize::from(at)];
        let end = pdu.offset.checked_add(pdu.len).ok_or(Fatal::out_of_range())?;
        if slot.inward || pdu.len == 0 || pdu.offset != slot.moved || end > slot.len {
            return Err(Fatal::out_of_range().into());
        }
        slot.moved = end;
        let Some(buf) = slot.buf.clone() else { return Err(Fatal::out_of_range().into()) };
        let mut offset = pdu.offset;
        while offset < end {
            let len = (end - offset).min(self.maxh2cdata);
            let part = DataPdu { cid: pdu.cid, ttag: pdu.ttag, offset, len };
            let (last, digests, cpda) = (offset + len == end, self.digests, self.cpda);
            self.output.push_with(0, |arena| put_h2c_data(arena, &part, last, digests, cpda));
            self.send_data(Piece { buf: buf.clone(), offset, len });
            offset += len;
        }
        Ok(())
    }
}
