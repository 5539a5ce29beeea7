//! Cuts received bytes into PDUs: headers are read where they lie in the receive buffer, split
//! ones in a small side buffer, and data goes straight to its command.

use crate::initiator::Error;
use forebay_wire::tcp::{
    COMMON_LEN, DIGEST_LEN, DataPdu, Digests, Direction, FLAG_LAST, FLAG_SUCCESS, Fatal, Frame,
    IC_LEN, IcResp, PduKind, SHORT_HLEN, TERM_LEN_MAX, TermReq,
};
use forebay_wire::{Cqe, cqe::CQE_LEN};

/// Longest run of header, digest and padding (or of a whole PDU without data).
const SIDE_LEN: usize = if TERM_LEN_MAX > IC_LEN { TERM_LEN_MAX } else { IC_LEN };

/// Who takes what was received.
pub(super) trait Receive {
    /// The digests of the connection.
    fn digests(&self) -> Digests;
    /// Whether only an ICResp may come.
    fn is_initializing(&self) -> bool;
    /// ICResp.
    fn initialized(&mut self, response: IcResp) -> Result<(), Error>;
    /// A response capsule.
    fn responded(&mut self, cqe: Cqe) -> Result<(), Error>;
    /// The header of C2HData; returns the slot that takes the data.
    fn data_begins(&mut self, pdu: &DataPdu, data_len: usize) -> Result<u16, Error>;
    /// Some of the data.
    fn data_arrives(&mut self, slot: u16, bytes: &[u8]) -> Result<(), Error>;
    /// The data that began at byte `from` of the command is whole.
    fn data_ends(&mut self, slot: u16, from: u32, digest: Option<[u8; 4]>);
    /// The data was the last, and no response capsule follows.
    fn succeeded(&mut self, slot: u16) -> Result<(), Error>;
    /// R2T.
    fn ready_to_transfer(&mut self, pdu: &DataPdu) -> Result<(), Error>;
}

/// C2HData whose data is still coming.
#[derive(Clone, Copy)]
struct Incoming {
    slot: u16,
    /// First byte in the command's data.
    from: u32,
    left: usize,
    ddgst: bool,
    success: bool,
}

/// Bytes so far of what is being received.
pub(super) struct Receiver {
    side: [u8; SIDE_LEN],
    have: usize,
    incoming: Option<Incoming>,
}

impl Receiver {
    pub(super) const fn new() -> Self {
        Self { side: [0; SIDE_LEN], have: 0, incoming: None }
    }

    /// The start of the PDU that was found wrong.
    pub(super) fn offending(&self) -> &[u8] {
        &self.side[..self.have.min(SHORT_HLEN)]
    }

    /// Takes all the bytes.
    pub(super) fn take(&mut self, mut bytes: &[u8], to: &mut impl Receive) -> Result<(), Error> {
        while !bytes.is_empty() {
            bytes = match self.incoming {
                Some(incoming) => self.take_data(incoming, bytes, to)?,
                None => self.take_header(bytes, to)?,
            };
        }
        Ok(())
    }

    /// Takes a header, in place where it is whole; returns what is left.
    fn take_header<'a>(
        &mut self,
        bytes: &'a [u8],
        to: &mut impl Receive,
    ) -> Result<&'a [u8], Error> {
        if self.have == 0
            && let Some(common) = bytes.first_chunk::<COMMON_LEN>()
        {
            let frame = self.judge(common, to)?;
            let need = header_need(&frame);
            if let Some((header, rest)) = bytes.split_at_checked(need) {
                let result = self.handle_header(&frame, header, to);
                if result.is_err() {
                    self.keep(header);
                }
                return result.map(|()| rest);
            }
        }
        // Split: first enough for the common header, then for all of it.
        let need = match self.side.first_chunk::<COMMON_LEN>() {
            Some(common) if self.have >= COMMON_LEN => {
                let common = *common;
                header_need(&self.judge(&common, to)?)
            }
            _ => COMMON_LEN,
        };
        let count = (need - self.have).min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        self.side[self.have..self.have + count].copy_from_slice(now);
        self.have += count;
        if self.have < need || need == COMMON_LEN {
            return Ok(rest);
        }
        let side = self.side;
        let frame = match side.first_chunk::<COMMON_LEN>() {
            Some(common) => self.judge(common, to)?,
            None => return Ok(rest),
        };
        self.handle_header(&frame, &side[..need], to)?;
        self.have = 0;
        Ok(rest)
    }

    fn keep(&mut self, header: &[u8]) {
        self.have = header.len().min(SIDE_LEN);
        self.side[..self.have].copy_from_slice(&header[..self.have]);
    }

    fn judge(&mut self, common: &[u8; COMMON_LEN], to: &impl Receive) -> Result<Frame, Error> {
        let frame = Frame::parse(common, Direction::ToHost, to.digests(), 0, u32::MAX);
        let frame = frame.and_then(|frame| {
            let fits = match frame.kind {
                PduKind::IcResp => to.is_initializing(),
                PduKind::C2hTermReq => true,
                _ => !to.is_initializing(),
            };
            if fits { Ok(frame) } else { Err(Fatal::sequence()) }
        });
        frame.map_err(|fatal| {
            self.keep(common);
            Error::Protocol(fatal)
        })
    }

    fn handle_header(
        &mut self,
        frame: &Frame,
        header: &[u8],
        to: &mut impl Receive,
    ) -> Result<(), Error> {
        frame.check_header(header)?;
        let (Some(short), Some(cqe)) = (
            header.first_chunk::<SHORT_HLEN>(),
            header.get(COMMON_LEN..).and_then(|rest| rest.first_chunk::<CQE_LEN>()),
        ) else {
            return Err(Fatal::field(2).into());
        };
        match frame.kind {
            PduKind::IcResp => {
                let whole = header.first_chunk::<IC_LEN>().ok_or(Fatal::field(4))?;
                to.initialized(IcResp::decode(whole)?)
            }
            PduKind::CapsuleResp => to.responded(Cqe::decode(cqe)),
            PduKind::R2t => to.ready_to_transfer(&DataPdu::decode(short)),
            PduKind::C2hTermReq => Err(Error::Terminated(TermReq::decode(short).fatal)),
            PduKind::C2hData => {
                let success = frame.flags & FLAG_SUCCESS != 0;
                // SUCCESS without LAST contradicts itself (§3.6.2.9).
                if success && frame.flags & FLAG_LAST == 0 {
                    return Err(Fatal::field(1).into());
                }
                let pdu = DataPdu::decode(short);
                let slot = to.data_begins(&pdu, frame.data_len)?;
                let (from, left, ddgst) = (pdu.offset, frame.data_len, frame.ddgst);
                self.incoming = Some(Incoming { slot, from, left, ddgst, success });
                Ok(())
            }
            _ => Err(Fatal::field(0).into()),
        }
    }

    /// Takes data and, after it, its digest; returns what is left.
    fn take_data<'a>(
        &mut self,
        mut incoming: Incoming,
        bytes: &'a [u8],
        to: &mut impl Receive,
    ) -> Result<&'a [u8], Error> {
        let (data, mut rest) = bytes.split_at(incoming.left.min(bytes.len()));
        if !data.is_empty() {
            to.data_arrives(incoming.slot, data)?;
            incoming.left -= data.len();
        }
        self.incoming = Some(incoming);
        if incoming.left > 0 {
            return Ok(rest);
        }
        let mut digest = None;
        if incoming.ddgst {
            let count = (DIGEST_LEN - self.have).min(rest.len());
            let (now, after) = rest.split_at(count);
            self.side[self.have..self.have + count].copy_from_slice(now);
            self.have += count;
            rest = after;
            if self.have < DIGEST_LEN {
                return Ok(rest);
            }
            digest = self.side.first_chunk::<DIGEST_LEN>().copied();
        }
        (self.have, self.incoming) = (0, None);
        to.data_ends(incoming.slot, incoming.from, digest);
        if incoming.success {
            to.succeeded(incoming.slot)?;
        }
        Ok(rest)
    }
}

/// Bytes to wait for before a PDU is handled: all of it, or all before its data.
const fn header_need(frame: &Frame) -> usize {
    match frame.kind {
        PduKind::C2hData => frame.data_at,
        _ => frame.total,
    }
}
