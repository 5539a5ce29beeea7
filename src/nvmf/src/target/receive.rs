//! From bytes to PDUs. PDUs that are whole in the receive buffer are read in place; one that is
//! split is completed in the connection's side buffer, which holds at most one capsule. The data
//! of H2CData goes straight into the command's buffer.

use super::conn::{Arriving, Conn, Slot};
use super::{Env, Event, LINGER, Target};
use crate::tcp::{IN_CAPSULE_MAX, MAXH2CDATA, widen};
use forebay_io::Buf;
use forebay_wire::tcp::{
    CAPSULE_CMD_HLEN, COMMON_LEN, DIGEST_LEN, DataPdu, Digest, Direction, FLAG_LAST, Fatal, Frame,
    PduKind, data_digest,
};
use forebay_wire::{Sqe, Status};

/// How a PDU is laid out on an associated connection.
fn frame_of<B>(conn: &Conn<B>, common: &[u8; COMMON_LEN]) -> Result<Frame, Fatal> {
    let data_max = if common[0] == PduKind::H2cData.byte() { MAXH2CDATA } else { IN_CAPSULE_MAX };
    let frame = Frame::parse(common, Direction::ToController, conn.params.digests, 0, data_max)?;
    // A second ICReq; anything while Connect is not answered.
    if frame.kind == PduKind::IcReq || conn.parked.is_some() {
        return Err(Fatal::sequence());
    }
    Ok(frame)
}

/// The common case, without digests: a right command capsule that is whole. Its length, command and
/// data; `None` sends it the long way, which judges everything else.
#[inline]
fn plain_capsule<'i, B>(conn: &Conn<B>, input: &'i [u8]) -> Option<(usize, Sqe, &'i [u8])> {
    let header = input.first_chunk::<CAPSULE_CMD_HLEN>()?;
    // Type 04h, no flags, HLEN 72.
    if header[..3] != [4, 0, 72] || !conn.plain || conn.parked.is_some() {
        return None;
    }
    let total = widen(u32::from_le_bytes([header[4], header[5], header[6], header[7]]));
    let data = input.get(CAPSULE_CMD_HLEN..total)?;
    let right = data.is_empty() || (header[3] == 72 && data.len() <= widen(IN_CAPSULE_MAX));
    let sqe = header.last_chunk::<64>().map(Sqe::from_bytes)?;
    right.then_some((total, sqe, data))
}

/// Bytes that must be there before a PDU is handled: of H2CData the header, else all.
const fn needed(frame: &Frame) -> usize {
    if matches!(frame.kind, PduKind::H2cData) { frame.data_at } else { frame.total }
}

impl<B: Buf> Target<B> {
    pub(super) fn receive(&mut self, conn: &mut Conn<B>, mut input: &[u8], env: &mut impl Env<B>) {
        while !input.is_empty() && conn.live() {
            if conn.arriving.is_some() {
                input = self.take_data(conn, input, env);
            } else if conn.side.is_empty() {
                if let Some((total, sqe, data)) = plain_capsule(conn, input) {
                    if let Err(fatal) = self.command(conn, &sqe, data, env) {
                        return self.terminate(conn, fatal, input, env);
                    }
                    input = &input[total..];
                    continue;
                }
                let Some(common) = input.first_chunk::<COMMON_LEN>() else {
                    conn.side.extend_from_slice(input);
                    return;
                };
                let frame = match frame_of(conn, common) {
                    Ok(frame) => frame,
                    Err(fatal) => return self.terminate(conn, fatal, input, env),
                };
                let Some((pdu, rest)) = input.split_at_checked(needed(&frame)) else {
                    conn.side.extend_from_slice(input);
                    return;
                };
                if let Err(fatal) = self.pdu(conn, &frame, pdu, env) {
                    return self.terminate(conn, fatal, pdu, env);
                }
                input = rest;
            } else {
                input = self.complete_side(conn, input, env);
            }
        }
    }

    /// Adds to the split PDU what it lacks, and handles it once it is whole.
    fn complete_side<'i>(
        &mut self,
        conn: &mut Conn<B>,
        input: &'i [u8],
        env: &mut impl Env<B>,
    ) -> &'i [u8] {
        let frame = match conn.side.first_chunk::<COMMON_LEN>().map(|raw| frame_of(conn, raw)) {
            Some(Ok(frame)) => Some(frame),
            Some(Err(fatal)) => {
                let side = core::mem::take(&mut conn.side);
                self.terminate(conn, fatal, &side, env);
                return &[];
            }
            None => None,
        };
        let need = frame.as_ref().map_or(COMMON_LEN, needed);
        let lacks = need.saturating_sub(conn.side.len()).min(input.len());
        let (now, rest) = input.split_at(lacks);
        conn.side.extend_from_slice(now);
        if let Some(frame) = frame
            && conn.side.len() >= need
        {
            let mut side = core::mem::take(&mut conn.side);
            if let Err(fatal) = self.pdu(conn, &frame, &side, env) {
                self.terminate(conn, fatal, &side, env);
            }
            side.clear();
            if conn.live() {
                conn.side = side;
            }
        }
        rest
    }

    /// Handles a PDU: whole, or the header of H2CData.
    fn pdu(
        &mut self,
        conn: &mut Conn<B>,
        frame: &Frame,
        pdu: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        frame.check_header(pdu)?;
        match frame.kind {
            PduKind::CapsuleCmd => {
                let raw = pdu[COMMON_LEN..].first_chunk().ok_or(Fatal::field(4))?;
                let sqe = Sqe::from_bytes(raw);
                let data = &pdu[frame.data_at..frame.data_at + frame.data_len];
                if frame.ddgst && !pdu.ends_with(&data_digest(data)) {
                    // Not fatal (TCP transport 1.0 §3.3.1.1): the command fails, the host retries.
                    self.stats.data_digest_errors += 1;
                    conn.respond(sqe.cid(), Status::TRANSIENT_TRANSPORT, 0);
                    self.break_fusion(conn, &sqe);
                    return Ok(());
                }
                self.command(conn, &sqe, data, env)
            }
            PduKind::H2cData => start_data(conn, frame, pdu),
            PduKind::H2cTermReq => {
                // The host ends the connection; nothing is answered.
                conn.close(env.now());
                self.dirty_close(conn);
                Ok(())
            }
            _ => Err(Fatal::sequence()),
        }
    }

    /// Handles a command whose data, if it came with any, is right.
    #[inline]
    fn command(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        conn.stats.commands += 1;
        if !conn.within_queue() {
            return Err(Fatal::sequence());
        }
        if conn.qid == 0 {
            self.admin_command(conn, sqe, data, env)
        } else {
            self.io_command(conn, sqe, data, env)
        }
    }

    /// Takes data of an H2CData PDU, and its digest.
    fn take_data<'i>(
        &mut self,
        conn: &mut Conn<B>,
        input: &'i [u8],
        env: &mut impl Env<B>,
    ) -> &'i [u8] {
        let Some(arriving) = &mut conn.arriving else { return input };
        let slot = &mut conn.slots[usize::from(arriving.slot)];
        let (data, mut rest) = input.split_at(arriving.left.min(input.len()));
        if !data.is_empty() && !arriving.take(slot, data) {
            slot.failed = Some(Status::INTERNAL);
        }
        if arriving.left > 0 {
            return rest;
        }
        if let Some(digest) = &arriving.digest {
            let (more, after) = rest.split_at(rest.len().min(DIGEST_LEN - arriving.trailer_len));
            let at = arriving.trailer_len;
            arriving.trailer[at..at + more.len()].copy_from_slice(more);
            arriving.trailer_len += more.len();
            rest = after;
            if arriving.trailer_len < DIGEST_LEN {
                return rest;
            }
            if digest.finish() != arriving.trailer {
                self.stats.data_digest_errors += 1;
                slot.failed = Some(Status::TRANSIENT_TRANSPORT);
            }
        }
        slot.received += arriving.len;
        let (at, whole) = (arriving.slot, slot.received == slot.bytes);
        conn.arriving = None;
        if whole {
            self.data_complete(conn, at, env);
        }
        rest
    }

    fn terminate(&mut self, conn: &mut Conn<B>, fatal: Fatal, offending: &[u8], env: &impl Env<B>) {
        self.stats.protocol_errors += 1;
        self.events.push_back(Event::Protocol { conn: conn.id, fatal });
        let header = offending.len().min(header_len(offending));
        conn.terminate(fatal, &offending[..header], env.now() + LINGER);
        self.wake_at(env.now() + LINGER);
    }

    /// Tells the shell to close a connection that has nothing to send.
    pub(super) fn dirty_close(&mut self, conn: &mut Conn<B>) {
        if conn.tx.is_empty() && !conn.close_told && !conn.dead {
            conn.close_told = true;
            self.events.push_back(Event::Close(conn.id));
        }
    }
}

/// The header that is sent back in a terminate request: at most what HLEN can be.
fn header_len(pdu: &[u8]) -> usize {
    pdu.first().and_then(|byte| PduKind::from_byte(*byte)).map_or(COMMON_LEN, PduKind::hlen)
}

impl Arriving {
    /// Puts data into the command's buffer; whether it could.
    fn take<B: Buf>(&mut self, slot: &mut Slot<B>, data: &[u8]) -> bool {
        let place = slot
            .buf
            .as_mut()
            .and_then(Buf::as_mut_slice)
            .and_then(|bytes| bytes.get_mut(self.at..self.at + data.len()));
        self.at += data.len();
        self.left -= data.len();
        if let Some(digest) = &mut self.digest {
            digest.update(data);
        }
        match place {
            Some(place) => {
                place.copy_from_slice(data);
                true
            }
            None => false,
        }
    }
}

/// Judges the header of H2CData. The tag must name a command that waits for data, the command
/// identifier must be its own, and data must come in order (one R2T covers the whole command).
fn start_data<B: Buf>(conn: &mut Conn<B>, frame: &Frame, pdu: &[u8]) -> Result<(), Fatal> {
    let data = DataPdu::decode(pdu.first_chunk().ok_or(Fatal::field(2))?);
    let at = conn.receiving(data.ttag).ok_or(Fatal::field(10))?;
    let slot = &conn.slots[usize::from(at)];
    if slot.cid != data.cid {
        return Err(Fatal::field(8));
    }
    if widen(data.len) != frame.data_len {
        return Err(Fatal::field(16));
    }
    let end = u64::from(data.offset) + u64::from(data.len);
    if data.offset != slot.received || end > u64::from(slot.bytes) {
        return Err(Fatal::out_of_range());
    }
    if frame.flags & FLAG_LAST != 0 && end != u64::from(slot.bytes) {
        return Err(Fatal::field(1));
    }
    conn.arriving = Some(Arriving {
        slot: at,
        at: widen(data.offset),
        left: frame.data_len,
        len: data.len,
        digest: frame.ddgst.then(Digest::default),
        trailer: [0; 4],
        trailer_len: 0,
    });
    Ok(())
}
