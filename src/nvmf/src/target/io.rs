//! I/O commands: checked whole before anything happens, then handed to the volume.

use super::conn::{Conn, Fusion, Gate, Home, Kind, Start, State};
use super::{Env, IoSink, LINGER, TRANSFER_MAX, Target};
use crate::tcp::widen;
use forebay_io::{Buf, Lba, Payload, Request, RequestOp, VolumeId};
use forebay_wire::fabrics::fctype;
use forebay_wire::log::{AnaState, ErrorEntry, trtype};
use forebay_wire::sqe::{DatasetManagement, Fuse, Psdt, ReadWrite, Sgl, admin, nvm};
use forebay_wire::tcp::Fatal;
use forebay_wire::{Sqe, Status, dsm};

/// A command that passed every check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    pub(super) start: Start,
    pub(super) volume: VolumeId,
    /// Blocks of the namespace, for the ranges of Dataset Management.
    pub(super) deallocate: bool,
}

impl<B: Buf> Target<B> {
    pub(super) fn io_command(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        if sqe.opcode() == admin::FABRICS && sqe.fctype() == fctype::DISCONNECT {
            // Deletes this queue (Base 2.0 §6.4): the response is sent, then the socket closes.
            conn.respond(sqe.cid(), Status::SUCCESS, 0);
            conn.close(env.now() + LINGER);
            self.wake_at(env.now() + LINGER);
            return Ok(());
        }
        if sqe.fuse() != Fuse::Normal || conn.fusion != Fusion::None {
            return self.fused_command(conn, sqe, data, env);
        }
        match self.check(conn, sqe) {
            Ok(checked) => self.carry_out(conn, sqe, &checked, data, env),
            Err(status) => {
                self.io_error(conn, sqe, status);
                Ok(())
            }
        }
    }

    /// Carries out a checked command that is not half of a fused pair.
    #[inline(always)]
    pub(super) fn carry_out(
        &mut self,
        conn: &mut Conn<B>,
        sqe: &Sqe,
        checked: &Checked,
        data: &[u8],
        env: &mut impl Env<B>,
    ) -> Result<(), Fatal> {
        let start = checked.start;
        let op = match start.kind {
            Kind::Read => RequestOp::Read,
            Kind::Write => RequestOp::Write,
            Kind::Compare => RequestOp::Compare,
            Kind::Flush => RequestOp::Flush,
            Kind::WriteZeroes => RequestOp::WriteZeroes { deallocate: checked.deallocate },
            Kind::Dsm if !checked.deallocate => {
                // Hints only: nothing to do with the ranges.
                conn.respond(start.cid, Status::SUCCESS, 0);
                return Ok(());
            }
            _ => RequestOp::Deallocate,
        };
        let inline = match self.data_source(sqe, &start, data) {
            Ok(inline) => inline,
            Err(status) => {
                self.io_error(conn, sqe, status);
                return Ok(());
            }
        };
        // More commands outstanding than the queue has entries: the host broke flow control.
        let at = conn.start(start).ok_or(Fatal::sequence())?;
        if !inline {
            conn.ask_for_data(at, env.pool());
        } else if start.kind == Kind::Dsm {
            self.deallocate(conn, at, checked.volume, data, env.io());
        } else {
            let payload = if data.is_empty() { Payload::None } else { Payload::Inline(data) };
            submit(conn, at, op, checked.volume, payload, env.io());
        }
        Ok(())
    }

    /// Whether the data of a command is there already (or there is none), or must be asked for.
    #[inline(always)]
    pub(super) fn data_source(
        &self,
        sqe: &Sqe,
        start: &Start,
        data: &[u8],
    ) -> Result<bool, Status> {
        match start.kind {
            Kind::Read => match sqe.sgl() {
                Sgl::Transport { len } if len == start.bytes && data.is_empty() => Ok(true),
                Sgl::Transport { .. } => Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
                _ => Err(Status::SGL_TYPE_INVALID.dnr()),
            },
            Kind::Flush | Kind::WriteZeroes | Kind::AsyncEvent => {
                if data.is_empty() {
                    Ok(true)
                } else {
                    Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
                }
            }
            _ => match sqe.sgl() {
                Sgl::InCapsule { offset: 0, len }
                    if len == start.bytes && widen(len) == data.len() =>
                {
                    Ok(true)
                }
                Sgl::InCapsule { offset: 0, .. } => Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
                Sgl::InCapsule { .. } => Err(Status::SGL_OFFSET_INVALID.dnr()),
                Sgl::Transport { len } if len == start.bytes && data.is_empty() => Ok(false),
                Sgl::Transport { .. } => Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
                _ => Err(Status::SGL_TYPE_INVALID.dnr()),
            },
        }
    }

    /// Checks everything that does not need the data.
    #[inline(always)]
    pub(super) fn check(&self, conn: &Conn<B>, sqe: &Sqe) -> Result<Checked, Status> {
        if conn.gate == Gate::NotReady {
            return Err(Status::COMMAND_SEQUENCE.dnr());
        }
        let kind = match sqe.opcode() {
            nvm::READ => Kind::Read,
            nvm::WRITE => Kind::Write,
            nvm::FLUSH => Kind::Flush,
            nvm::COMPARE => Kind::Compare,
            nvm::WRITE_ZEROES => Kind::WriteZeroes,
            nvm::DATASET_MANAGEMENT => Kind::Dsm,
            admin::FABRICS => return Err(Status::COMMAND_SEQUENCE.dnr()),
            _ => return Err(Status::INVALID_OPCODE.dnr()),
        };
        let Home::Subsystem(home) = conn.home else { return Err(Status::INVALID_OPCODE.dnr()) };
        let namespace = self
            .subsystem(home)
            .and_then(|subsystem| subsystem.namespace(sqe.nsid()))
            .ok_or(Status::INVALID_NAMESPACE.dnr())?;
        if conn.gate == Gate::Held {
            return Err(Status::ANA_INACCESSIBLE);
        }
        let config = &namespace.config;
        match config.ana {
            AnaState::Optimized | AnaState::NonOptimized => {}
            AnaState::Inaccessible => return Err(Status::ANA_INACCESSIBLE),
            AnaState::PersistentLoss => return Err(Status::ANA_PERSISTENT_LOSS),
            AnaState::Change => return Err(Status::ANA_TRANSITION),
        }
        if config.read_only && !matches!(kind, Kind::Read | Kind::Compare | Kind::Flush) {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.dnr());
        }
        let mut checked = Checked {
            start: Conn::<B>::begin(sqe, kind),
            volume: config.volume,
            deallocate: false,
        };
        match kind {
            Kind::Flush => return Ok(checked),
            Kind::Dsm => {
                let dsm = DatasetManagement::decode(sqe);
                checked.deallocate = dsm.deallocate;
                checked.start.blocks = dsm.ranges.into();
                checked.start.bytes = ranges_len(sqe, dsm.ranges)?;
                return described(sqe).map(|()| checked);
            }
            _ => {}
        }
        let rw = ReadWrite::decode(sqe);
        let end = rw.slba.checked_add(rw.blocks.into()).ok_or(Status::LBA_OUT_OF_RANGE.dnr())?;
        if end > config.blocks {
            return Err(Status::LBA_OUT_OF_RANGE.dnr());
        }
        checked.start.slba = rw.slba;
        checked.start.blocks = rw.blocks;
        checked.start.fua = rw.fua;
        if kind == Kind::WriteZeroes {
            checked.deallocate = rw.deallocate;
            return Ok(checked);
        }
        // At most 2^16 blocks of 2^12 bytes: no overflow.
        let bytes = rw.blocks << config.block_size.shift();
        if bytes > TRANSFER_MAX {
            return Err(Status::INVALID_FIELD.dnr());
        }
        checked.start.bytes = bytes;
        described(sqe).map(|()| checked)
    }

    /// Completes a command with an error and logs it.
    pub(super) fn io_error(&mut self, conn: &mut Conn<B>, sqe: &Sqe, status: Status) {
        conn.respond(sqe.cid(), status, 0);
        self.log_error(conn, sqe.cid(), sqe.nsid(), ReadWrite::decode(sqe).slba, status);
    }

    /// Adds to the controller's error log, unless only the path is to blame.
    pub(super) fn log_error(
        &mut self,
        conn: &Conn<B>,
        cid: u16,
        nsid: u32,
        lba: u64,
        status: Status,
    ) {
        if status.sct() == 3 {
            return;
        }
        if let Some(ctrl) = self.controllers.get_mut(conn.ctrl).and_then(Option::as_deref_mut) {
            ctrl.log_error(ErrorEntry {
                count: 0,
                sqid: conn.qid,
                cid,
                status_field: status.to_field(),
                location: 0xffff,
                lba,
                nsid,
                trtype: trtype::TCP,
            });
        }
    }

    /// Carries out a Dataset Management command whose ranges are here.
    pub(super) fn deallocate<I: IoSink<B>>(
        &mut self,
        conn: &mut Conn<B>,
        at: u16,
        volume: VolumeId,
        data: &[u8],
        io: &mut I,
    ) {
        let nsid = conn.slot(at).nsid;
        let blocks = self.namespace_of(conn.home, nsid).map_or(0, |n| n.config.blocks);
        let used = widen(conn.slot(at).blocks * RANGE_BYTES);
        let data = data.get(..used).unwrap_or(data);
        let inside = |range: &dsm::Range| {
            range.slba.checked_add(range.blocks.into()).is_some_and(|end| end <= blocks)
        };
        if !dsm::Range::list(data).all(|range| inside(&range)) {
            let status = Status::LBA_OUT_OF_RANGE.dnr();
            let cid = conn.slot(at).cid;
            conn.finish(at, status);
            return self.log_error(conn, cid, nsid, 0, status);
        }
        let ranges = || (0u8..=255).zip(dsm::Range::list(data).filter(|range| range.blocks > 0));
        let parts = u32::try_from(ranges().count()).unwrap_or(0);
        if parts == 0 {
            return conn.finish(at, Status::SUCCESS);
        }
        conn.slot(at).state = State::Submitted;
        conn.slot(at).parts = parts;
        conn.admitted += parts;
        for (part, range) in ranges() {
            let request = Request {
                tag: conn.tag(at, part),
                volume,
                op: RequestOp::Deallocate,
                lba: Lba(range.slba),
                blocks: range.blocks,
                fua: false,
            };
            io.submit(request, Payload::None);
        }
    }
}

/// Bytes of one range.
const RANGE_BYTES: u32 = 16;
/// Ranges of one command at most.
const RANGES_MAX: u32 = 256;

/// Data must be described by an SGL: fabrics know no PRPs.
#[inline]
fn described(sqe: &Sqe) -> Result<(), Status> {
    match sqe.psdt() {
        Psdt::Sgl | Psdt::SglMetadataSgl => Ok(()),
        Psdt::Prp | Psdt::Reserved => Err(Status::INVALID_FIELD.dnr()),
    }
}

/// Hands one command to its volume.
#[inline]
pub(super) fn submit<B: Buf, I: IoSink<B>>(
    conn: &mut Conn<B>,
    at: u16,
    op: RequestOp,
    volume: VolumeId,
    payload: Payload<'_, B>,
    io: &mut I,
) {
    let tag = conn.tag(at, 0);
    conn.admitted += 1;
    let slot = conn.slot(at);
    slot.state = State::Submitted;
    slot.parts = 1;
    let request =
        Request { tag, volume, op, lba: Lba(slot.slba), blocks: slot.blocks, fua: slot.fua };
    io.submit(request, payload);
}

/// The length of the data of a Dataset Management command. Linux sends room for all 256 ranges
/// whatever NR says (NVM Command Set 1.0 §3.2.3: only NR + 1 of them count).
fn ranges_len(sqe: &Sqe, ranges: u16) -> Result<u32, Status> {
    let needed = u32::from(ranges) * RANGE_BYTES;
    let len = match sqe.sgl() {
        Sgl::InCapsule { len, .. } | Sgl::Transport { len } => len,
        _ => needed,
    };
    if (needed..=RANGES_MAX * RANGE_BYTES).contains(&len) {
        Ok(len)
    } else {
        Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
    }
}
