//! What must hold of the bytes of a connection, judged by reading them once more: each command is
//! answered exactly once, SQHD names entries that were filled, nobody ends the connection with a
//! complaint.

use forebay_wire::fabrics::{Connect, fctype};
use forebay_wire::sqe::admin;
use forebay_wire::tcp::{
    COMMON_LEN, DataPdu, Digests, Direction, FLAG_SUCCESS, Frame, IC_LEN, IcResp, PduKind,
    SHORT_HLEN, TermReq,
};
use forebay_wire::{Cqe, Sqe};
use std::collections::BTreeSet;

/// Reads along on one connection.
#[derive(Debug, Default)]
pub struct Tap {
    up: Vec<u8>,
    down: Vec<u8>,
    digests: Digests,
    /// Commands that are not answered.
    waiting: BTreeSet<u16>,
    /// Entries of the queue, and whether SQHD counts.
    entries: u64,
    flow: bool,
    sqhd: u64,
    /// Commands sent, commands that SQHD says were taken, responses received.
    sent: u64,
    taken: u64,
    answered: u64,
}

impl Tap {
    /// What the host sends.
    ///
    /// # Errors
    /// What is wrong.
    pub fn sends(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.up.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((frame, pdu)) = next(&self.up[at..], Direction::ToController, self.digests)?
        {
            if frame.kind == PduKind::CapsuleCmd {
                let raw = pdu.get(8..72).and_then(|raw| raw.first_chunk::<64>());
                let sqe = Sqe::from_bytes(raw.ok_or("a short capsule")?);
                if sqe.opcode() == admin::FABRICS && sqe.fctype() == fctype::CONNECT {
                    let connect = Connect::decode(&sqe);
                    self.entries = u64::from(connect.sqsize) + 1;
                    self.flow = !connect.no_sq_flow;
                }
                self.sent += 1;
                if !self.waiting.insert(sqe.cid()) {
                    return Err(format!("the host uses command identifier {} twice", sqe.cid()));
                }
            }
            at += frame.total;
        }
        self.up.drain(..at);
        Ok(())
    }

    /// What the host receives.
    ///
    /// # Errors
    /// What is wrong.
    pub fn receives(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.down.extend_from_slice(bytes);
        let down = core::mem::take(&mut self.down);
        let mut at = 0;
        while let Some((frame, pdu)) = next(&down[at..], Direction::ToHost, self.digests)? {
            self.received(&frame, pdu)?;
            at += frame.total;
        }
        self.down = down;
        self.down.drain(..at);
        Ok(())
    }

    fn received(&mut self, frame: &Frame, pdu: &[u8]) -> Result<(), String> {
        let short = pdu.first_chunk::<SHORT_HLEN>().ok_or("a short PDU")?;
        match frame.kind {
            PduKind::IcResp => {
                let whole = pdu.first_chunk::<IC_LEN>().ok_or("a short ICResp")?;
                let response = IcResp::decode(whole).map_err(|fatal| format!("ICResp: {fatal}"))?;
                self.digests = response.digests;
            }
            PduKind::C2hTermReq => {
                return Err(format!(
                    "the target ends a connection: {}",
                    TermReq::decode(short).fatal
                ));
            }
            PduKind::CapsuleResp => {
                let cqe = pdu.get(8..24).and_then(|raw| raw.first_chunk()).map(Cqe::decode);
                let cqe = cqe.ok_or("a short response")?;
                self.answer(cqe.cid)?;
                // The first is Connect; where that is refused there is no queue that has a head.
                if self.answered > 1 || cqe.status.is_success() {
                    self.head(cqe.sqhd)?;
                }
            }
            PduKind::C2hData => {
                let data = DataPdu::decode(short);
                if frame.flags & FLAG_SUCCESS != 0 {
                    return self.answer(data.cid);
                }
                self.known(data.cid)?;
            }
            _ => self.known(DataPdu::decode(short).cid)?,
        }
        Ok(())
    }

    fn known(&self, cid: u16) -> Result<(), String> {
        let known = self.waiting.contains(&cid);
        if known { Ok(()) } else { Err(format!("a PDU of command {cid}, which is not under way")) }
    }

    fn answer(&mut self, cid: u16) -> Result<(), String> {
        self.answered += 1;
        let known = self.waiting.remove(&cid);
        if known { Ok(()) } else { Err(format!("an answer to command {cid}, which has none due")) }
    }

    /// SQHD lies between what was answered and what was sent (Base 2.0 §3.3.3.2).
    fn head(&mut self, sqhd: u16) -> Result<(), String> {
        if !self.flow {
            let none = sqhd == 0xffff;
            return if none { Ok(()) } else { Err(format!("SQHD {sqhd} without flow control")) };
        }
        let sqhd = u64::from(sqhd);
        if sqhd >= self.entries {
            return Err(format!("SQHD {sqhd} of {} entries", self.entries));
        }
        self.taken += (sqhd + self.entries - self.sqhd) % self.entries;
        self.sqhd = sqhd;
        if self.taken > self.sent || self.taken < self.answered {
            return Err(format!(
                "SQHD says that {} commands were taken; {} were sent, {} answered",
                self.taken, self.sent, self.answered
            ));
        }
        Ok(())
    }
}

/// The PDU at the front, if it is whole.
fn next(
    bytes: &[u8],
    direction: Direction,
    digests: Digests,
) -> Result<Option<(Frame, &[u8])>, String> {
    let Some(common) = bytes.first_chunk::<COMMON_LEN>() else { return Ok(None) };
    let frame = Frame::parse(common, direction, digests, 0, u32::MAX)
        .map_err(|fatal| format!("{direction:?}: {fatal}"))?;
    Ok(bytes.get(..frame.total).map(|pdu| (frame, pdu)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_wire::sqe::nvm;
    use forebay_wire::tcp::{capsule_resp, put_capsule_cmd};

    fn tap(commands: u16) -> Tap {
        let mut tap = Tap { entries: 4, flow: true, ..Tap::default() };
        for cid in 0..commands {
            let mut bytes = Vec::new();
            let sqe = Sqe::new(nvm::FLUSH, cid, 1);
            put_capsule_cmd(&mut bytes, &sqe, 0, Digests::default(), 0);
            bytes.chunks(50).for_each(|part| tap.sends(part).unwrap());
        }
        tap
    }

    fn response(cid: u16, sqhd: u16) -> [u8; 24] {
        capsule_resp(&Cqe { cid, sqhd, ..Cqe::default() }, Digests::default())
    }

    #[test]
    fn a_second_answer_and_a_wrong_head_are_noticed() {
        let mut good = tap(3);
        good.receives(&response(2, 1)).unwrap();
        good.receives(&response(0, 3)).unwrap();
        assert!(good.receives(&response(0, 3)).is_err(), "answered before");
        assert!(tap(3).receives(&response(3, 1)).is_err(), "never sent");
        assert!(tap(2).receives(&response(0, 3)).is_err(), "more taken than sent");
        assert!(tap(2).receives(&response(0, 0)).is_err(), "answered and not taken");
        assert!(tap(2).receives(&response(0, 4)).is_err(), "beyond the queue");
    }
}
