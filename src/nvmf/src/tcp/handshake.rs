//! The target's side of a connection until its Connect command is whole.
//!
//! A connection that belongs to no subsystem yet holds no pool memory and no more than
//! [`HANDSHAKE_BUFFER_MAX`] bytes, has one deadline for ICReq and Connect together, and is `Send`: once
//! [`Established`] it moves to the reactor of its subsystem.
//!
//! ```text
//! IcReq --ICReq--> Connect --Connect capsule--> Done
//!   |                 |
//!   +---- Failed <----+     (deadline, malformed, out of sequence; output is flushed, then closed)
//! ```

use super::{MAXH2CDATA, Params};
use core::fmt;
use forebay_io::{Duration, Instant};
use forebay_wire::fabrics::{CONNECT_DATA_LEN, Connect, ConnectData, fctype};
use forebay_wire::sqe::{Sgl, admin};
use forebay_wire::tcp::{
    COMMON_LEN, DIGEST_LEN, Digests, Direction, Fatal, Frame, IC_LEN, IcReq, IcResp, PduKind,
    TermReq, data_digest, put_capsule_resp, put_term_req,
};
use forebay_wire::{Cqe, Sqe, Status};

/// Most bytes that a handshake buffers: the Connect capsule with both digests.
pub const HANDSHAKE_BUFFER_MAX: usize = 72 + DIGEST_LEN + CONNECT_DATA_LEN + DIGEST_LEN;
/// Default time from accepting the connection to a whole Connect command.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The host broke the protocol; a terminate request is in the output.
    Protocol(Fatal),
    /// The host ended the connection, and why.
    Terminated(Fatal),
    /// The first command was refused; its completion is in the output.
    Refused(Status),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(fatal) => write!(f, "protocol error: {fatal}"),
            Self::Terminated(fatal) => write!(f, "terminated by the host: {fatal}"),
            Self::Refused(status) => write!(f, "first command refused: {status}"),
        }
    }
}

impl core::error::Error for HandshakeError {}

/// How far a handshake is.
#[derive(Debug)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The Connect command is whole: give it to the target that holds its subsystem.
    Established(Box<Established>),
    /// Send what is in the output, then close.
    Failed(HandshakeError),
}

/// A connection whose Connect command is whole.
#[derive(Clone, Debug)]
pub struct Established {
    /// What the connection agreed on.
    pub params: Params,
    /// The Connect command.
    pub connect: Connect,
    /// Its data: the subsystem decides where the connection lives.
    pub data: ConnectData,
    /// Its command identifier.
    pub cid: u16,
    /// Output of the handshake that is not sent yet (none, with a host that waits for ICResp).
    pub unsent: Vec<u8>,
    /// Bytes received after the Connect capsule: give them to the target next.
    pub leftover: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    IcReq,
    Connect(Params),
    Done,
}

/// A connection that belongs to no subsystem yet.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    deadline: Instant,
}

impl Handshake {
    /// A connection just accepted, which must be established by `now + within` (for example
    /// [`HANDSHAKE_DEADLINE`]).
    #[must_use]
    pub fn new(now: Instant, within: Duration) -> Self {
        Self { state: State::IcReq, input: Vec::new(), output: Vec::new(), deadline: now + within }
    }

    /// When to close the connection if it is not established by then.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Bytes to send.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The first `n` bytes of the output are sent.
    pub fn advance(&mut self, n: usize) {
        self.output.drain(..n.min(self.output.len()));
    }

    /// Takes received bytes. After [`Progress::Established`] or [`Progress::Failed`] further bytes
    /// are ignored.
    pub fn handle_bytes(&mut self, mut bytes: &[u8]) -> Progress {
        loop {
            let need = match self.needed() {
                Ok(need) => need,
                Err(fatal) => return self.fail(fatal),
            };
            let take = need.saturating_sub(self.input.len()).min(bytes.len());
            let (now, rest) = bytes.split_at(take);
            self.input.extend_from_slice(now);
            bytes = rest;
            if matches!(self.state, State::Done) || self.input.len() < need {
                return Progress::More;
            }
            if need == COMMON_LEN {
                continue;
            }
            match self.step(bytes) {
                Ok(Progress::More) => self.input.clear(),
                Ok(end) => {
                    self.state = State::Done;
                    self.input = Vec::new();
                    return end;
                }
                Err(fatal) => return self.fail(fatal),
            }
        }
    }

    fn digests(&self) -> Digests {
        match self.state {
            State::Connect(params) => params.digests,
            _ => Digests::default(),
        }
    }

    fn frame(&self) -> Result<Option<Frame>, Fatal> {
        let Some(common) = self.input.first_chunk::<COMMON_LEN>() else { return Ok(None) };
        let data_max = u32::try_from(CONNECT_DATA_LEN).unwrap_or(0);
        Frame::parse(common, Direction::ToController, self.digests(), 0, data_max).map(Some)
    }

    /// Bytes of the current PDU to collect.
    fn needed(&self) -> Result<usize, Fatal> {
        let Some(frame) = self.frame()? else { return Ok(COMMON_LEN) };
        match (self.state, frame.kind) {
            (State::IcReq, PduKind::IcReq)
            | (State::Connect(_), PduKind::CapsuleCmd)
            | (_, PduKind::H2cTermReq) => Ok(frame.total),
            // A second ICReq, data before Connect, a command before ICReq.
            _ => Err(Fatal::sequence()),
        }
    }

    /// One whole PDU is in `input`; `rest` follows it.
    fn step(&mut self, rest: &[u8]) -> Result<Progress, Fatal> {
        let Some(frame) = self.frame()? else { return Err(Fatal::sequence()) };
        frame.check_header(&self.input)?;
        if frame.kind == PduKind::H2cTermReq {
            let fatal = self.input.first_chunk().map(TermReq::decode).map(|term| term.fatal);
            let fatal = fatal.unwrap_or(Fatal::sequence());
            return Ok(Progress::Failed(HandshakeError::Terminated(fatal)));
        }
        let State::Connect(params) = self.state else {
            let Some(raw) = self.input.first_chunk::<IC_LEN>() else {
                return Err(Fatal::field(4));
            };
            let request = IcReq::decode(raw)?;
            let digests = request.digests;
            self.state =
                State::Connect(Params { digests, hpda: request.hpda, maxr2t: request.maxr2t });
            // CPDA 0 and the host's own digest bits: what every known host expects.
            let response = IcResp { cpda: 0, digests, maxh2cdata: MAXH2CDATA };
            self.output.extend_from_slice(&response.encode());
            return Ok(Progress::More);
        };
        Ok(match read_connect(&self.input, &frame) {
            Ok((cid, connect, data)) => Progress::Established(Box::new(Established {
                params,
                connect,
                data,
                cid,
                unsent: core::mem::take(&mut self.output),
                leftover: rest.to_vec(),
            })),
            Err(refusal) => {
                put_capsule_resp(&mut self.output, &refusal, params.digests);
                Progress::Failed(HandshakeError::Refused(refusal.status))
            }
        })
    }

    fn fail(&mut self, fatal: Fatal) -> Progress {
        if !matches!(self.state, State::Done) {
            put_term_req(&mut self.output, Direction::ToHost, fatal, &self.input);
        }
        self.state = State::Done;
        self.input = Vec::new();
        Progress::Failed(HandshakeError::Protocol(fatal))
    }
}

/// Reads the first command capsule: it must be a Connect with its data in the capsule.
fn read_connect(pdu: &[u8], frame: &Frame) -> Result<(u16, Connect, ConnectData), Cqe> {
    let raw = pdu.get(8..72).and_then(|raw| raw.first_chunk()).copied().unwrap_or([0; 64]);
    let sqe = Sqe::from_bytes(&raw);
    let connect = Connect::decode(&sqe);
    // With flow control off SQHD is FFFFh; the queue is empty, so that it is 0 otherwise.
    let sqhd = if connect.no_sq_flow { 0xffff } else { 0 };
    let refuse = |status: Status, result: u32| Cqe {
        result: result.into(),
        sqhd,
        cid: sqe.cid(),
        status,
        ..Cqe::default()
    };
    if sqe.opcode() != admin::FABRICS || sqe.fctype() != fctype::CONNECT {
        return Err(refuse(Status::COMMAND_SEQUENCE.dnr(), 0));
    }
    if connect.recfmt != 0 {
        return Err(refuse(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr(), 0));
    }
    let data = pdu.get(frame.data_at..frame.data_at + frame.data_len).unwrap_or(&[]);
    match sqe.sgl() {
        Sgl::InCapsule { offset: 0, len }
            if usize::try_from(len) == Ok(CONNECT_DATA_LEN) && data.len() == CONNECT_DATA_LEN => {}
        Sgl::InCapsule { .. } => return Err(refuse(Status::DATA_SGL_LENGTH_INVALID.dnr(), 0)),
        _ => return Err(refuse(Status::SGL_TYPE_INVALID.dnr(), 0)),
    }
    if frame.ddgst && !pdu.ends_with(&data_digest(data)) {
        return Err(refuse(Status::TRANSIENT_TRANSPORT, 0));
    }
    let Some(raw) = data.first_chunk::<CONNECT_DATA_LEN>() else {
        return Err(refuse(Status::DATA_SGL_LENGTH_INVALID.dnr(), 0));
    };
    match ConnectData::decode(raw) {
        Ok(data) => Ok((sqe.cid(), connect, data)),
        Err(error) => Err(refuse(Status::CONNECT_INVALID_PARAMETERS.dnr(), error.result())),
    }
}
