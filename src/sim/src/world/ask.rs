//! What hosts ask of the world, and what they are told.

use super::{FRONT, OPEN, World, gather};
use crate::buffer::SimBuf;
use crate::config::id_of;
use crate::history::{Host, Span};
use crate::oracle::content;
use crate::script::RICHER_FROM;
use forebay_io::{BlockError, Instant, Lba, Outcome, Piece, Request, RequestOp, Tag};
use forebay_node::route::{Cargo, Message};

/// What a host asks.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Volume.
    pub volume: usize,
    /// What.
    pub op: RequestOp,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Force unit access.
    pub fua: bool,
    /// Spoil the data of a compare, so that it must fail.
    pub spoil: bool,
}

/// A request under way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) write: u64,
    pub(super) start: u64,
    /// When, in virtual time.
    pub(super) since: u64,
    /// What a compare-and-write must find.
    pub(super) want: Vec<u8>,
    /// A compare that must succeed, or must fail.
    pub(super) expect: Option<bool>,
}

impl Ask {
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.op, RequestOp::Read | RequestOp::Compare | RequestOp::Flush)
    }

    pub(crate) const fn span(&self) -> Span {
        (self.offset, self.len)
    }
}

impl World {
    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.asked.len()
    }

    /// Sends a request to the reactor that serves; returns its tag.
    pub fn ask(&mut self, ask: Ask) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let unit = u64::from(self.config.volumes[ask.volume].unit);
        let request = Request {
            tag: Tag(tag),
            volume: id_of(ask.volume),
            op: ask.op,
            lba: Lba(ask.offset / unit),
            blocks: u32::try_from(ask.len / unit).unwrap_or(0),
            fua: ask.fua,
        };
        let write = if ask.changes() { self.times.len() as u64 } else { 0 };
        let (want, expect) = self.want(&ask);
        let data = SimBuf::from_bytes(&content(write, ask.offset, ask.len));
        let cargo = match ask.op {
            RequestOp::Write => Cargo::One(data),
            RequestOp::Compare => Cargo::One(SimBuf::from_bytes(&want)),
            RequestOp::CompareAndWrite => Cargo::Pair(SimBuf::from_bytes(&want), data),
            _ => Cargo::None,
        };
        let start = self.ticked();
        if ask.changes() {
            self.times.push((start, OPEN));
            let zero = matches!(ask.op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
            self.tell(Host::Started {
                volume: ask.volume,
                at: ask.span(),
                write,
                zero,
                certain: ask.op != RequestOp::Deallocate,
                tick: start,
            });
        }
        self.line(|| {
            let fua = if ask.fua { " FUA" } else { "" };
            format!(
                "host   {tag} {:?} vol{} {}+{}{fua} write {write}",
                ask.op, ask.volume, ask.offset, ask.len
            )
        });
        self.drained[ask.volume] &= !ask.changes();
        let since = self.now;
        let want = if ask.op == RequestOp::CompareAndWrite { want } else { Vec::new() };
        self.asked.insert(tag, Asked { ask, write, start, since, want, expect });
        let message = Message::Forward { from: FRONT, request, cargo };
        let richer = self.config.seed >= RICHER_FROM;
        if self.config.mail == 0 && !(richer && self.rng.one_in(2)) {
            self.shard.handle_message(message, Instant(self.now));
            self.pump();
        } else {
            let at = self.now + self.rng.below(self.config.mail.max(1));
            self.mail.push((at, message, tag));
        }
        tag
    }

    /// The data of a compare, and whether it must be found.
    pub(super) fn want(&mut self, ask: &Ask) -> (Vec<u8>, Option<bool>) {
        if !matches!(ask.op, RequestOp::Compare | RequestOp::CompareAndWrite) {
            return (Vec::new(), None);
        }
        let end = ask.offset + ask.len;
        // Others may write the same place meanwhile.
        let busy = self.asked.values().any(|o| {
            o.ask.volume == ask.volume
                && o.ask.changes()
                && o.ask.offset < end
                && ask.offset < o.ask.offset + o.ask.len
        });
        // Two that want the same at once: one of them must fail.
        let rival = self.asked.values().find(|o| {
            let swap = RequestOp::CompareAndWrite;
            (o.ask.volume, o.ask.span()) == (ask.volume, ask.span())
                && (o.ask.op, ask.op) == (swap, swap)
        });
        if let Some(rival) = rival {
            return (rival.want.clone(), None);
        }
        let known = self.oracles[ask.volume].known(ask.offset, ask.len);
        let expect = (known.is_some() && !busy).then_some(!ask.spoil);
        let mut data = known.unwrap_or_else(|| vec![0; usize::try_from(ask.len).unwrap_or(0)]);
        if ask.spoil && !data.is_empty() {
            let at = self.rng.index(data.len());
            data[at] ^= 0x55;
        }
        // A later overlapping change may overtake a message, and a compare that writes nothing
        // holds nobody up.
        let direct = self.config.mail == 0 && self.config.seed < RICHER_FROM;
        let sure = direct && ask.op == RequestOp::CompareAndWrite;
        (data, expect.filter(|_| sure))
    }

    pub(super) fn answered(&mut self, to: u32, message: Message<SimBuf>) {
        let Message::Answer { tag, outcome, pieces } = message else {
            self.fail(format!("an unexpected message to {to}: {message:?}"));
            return;
        };
        if let Some(raw) = self.raw.as_mut().filter(|raw| raw.0 == tag.0 && raw.1.is_none()) {
            raw.1 = Some((outcome, gather(&pieces)));
            return;
        }
        let Some(asked) = self.asked.remove(&tag.0) else {
            self.fail(format!("request {} ended twice", tag.0));
            return;
        };
        let tick = self.ticked();
        let code = match outcome {
            Outcome::Done => 0,
            Outcome::Failed(error) => 1 + error as u64,
        };
        self.sum(tag.0 ^ code.rotate_left(40));
        self.line(|| format!("host   {} ends: {outcome:?}", tag.0));
        match outcome {
            Outcome::Done => self.ended_well(&asked, tick, &pieces),
            Outcome::Failed(error) => self.ended_badly(&asked, error),
        }
    }

    pub(super) fn horizon(&self, start: u64) -> u64 {
        self.asked.values().map(|a| a.start).min().unwrap_or(OPEN).min(start)
    }

    pub(super) fn ended_well(&mut self, asked: &Asked, tick: u64, pieces: &[Piece<SimBuf>]) {
        self.counts.done += 1;
        let ask = &asked.ask;
        let horizon = self.horizon(asked.start);
        match ask.op {
            RequestOp::Read => {
                let data = gather(pieces);
                if data.len() as u64 != ask.len {
                    self.fail(format!("a read of {} bytes got {}", ask.len, data.len()));
                    return;
                }
                let crc = forebay_io::crc::crc32c(&data);
                self.sum(u64::from(crc));
                self.counts.reads += 1;
                let (volume, offset, start) = (ask.volume, ask.offset, asked.start);
                self.tell(Host::Read { volume, offset, data: data.into(), start, tick });
            }
            RequestOp::Flush => {
                self.tell(Host::Flushed { volume: ask.volume, start: asked.start });
            }
            RequestOp::Compare => {
                if asked.expect == Some(false) {
                    self.fail(format!("a compare that must fail succeeded: {asked:?}"));
                }
            }
            _ => {
                if asked.expect == Some(false) {
                    self.fail(format!("a compare that must fail succeeded: {asked:?}"));
                }
                self.check_replaced(asked);
                self.times[usize::try_from(asked.write).unwrap_or(0)].1 = tick;
                self.tell(Host::Ended {
                    volume: ask.volume,
                    at: ask.span(),
                    write: asked.write,
                    tick,
                    horizon,
                    fua: ask.fua,
                });
            }
        }
    }

    pub(super) fn ended_badly(&mut self, asked: &Asked, error: BlockError) {
        self.counts.failed += 1;
        let ask = &asked.ask;
        if error == BlockError::CompareFailed {
            if asked.expect == Some(true) {
                self.fail(format!("a compare that must succeed failed: {asked:?}"));
            }
            if ask.op == RequestOp::CompareAndWrite {
                let (volume, at, write) = (ask.volume, ask.span(), asked.write);
                self.tell(Host::Never { volume, at, write });
            }
            return;
        }
        let allowed = match error {
            BlockError::Unrecovered => self.tolerance.lost,
            BlockError::NotReady | BlockError::CapacityExceeded => self.tolerance.refused,
            _ => false,
        };
        if !allowed {
            self.fail(format!("{asked:?} ended in {error:?}"));
        }
    }
}
