//! What is looked at besides the answers that hosts get: everything after a crash, the backing devices,
//! everything at the end.

use super::world::World;
use crate::buffer::SimBuf;
use crate::config::id_of;
use crate::world::Ask;
use forebay_cache::engine::{CopyAt, Event};
use forebay_io::{Buf, Instant, Lba, Outcome, Request, RequestOp, Tag};
use forebay_node::Message;
use forebay_node::route::Cargo;

/// The checkers ask as a reactor of this number.
pub(super) const JUDGE: u32 = 9;
/// Bytes of one look.
const CHUNK: u64 = 64 << 10;

/// How a read of the checkers' own ended, and its data.
pub type RawEnd = (Outcome, Vec<u8>);

impl World {
    pub(super) fn raw_answer(&mut self, message: Message<SimBuf>) {
        let Message::Answer { tag, outcome, pieces } = message else {
            return self.judge.fail("a request to the checkers".to_owned());
        };
        let mut data = Vec::new();
        for piece in &pieces {
            let start = piece.offset as usize;
            let part = piece.buf.as_slice().get(start..start + piece.len as usize);
            data.extend_from_slice(part.unwrap_or_default());
        }
        if let Some(raw) = self.raw.as_mut().filter(|raw| raw.0 == tag.0) {
            raw.1 = Some((outcome, data));
        }
    }

    /// Reads past the hosts.
    fn read_raw(&mut self, volume: usize, offset: u64, len: u64) -> Option<Vec<u8>> {
        let tag = self.next_raw;
        self.next_raw += 1;
        let unit = self.places[volume].unit;
        let request = Request {
            tag: Tag(tag),
            volume: id_of(volume),
            op: RequestOp::Read,
            lba: Lba(offset / unit),
            blocks: u32::try_from(len / unit).unwrap_or(0),
            fua: false,
        };
        let home = self.homes[volume];
        let message = Message::Forward { from: JUDGE, request, cargo: Cargo::None };
        self.raw = Some((tag, None));
        self.reactors[home].shard.handle_message(message, Instant(self.now));
        self.poll(home);
        self.until("a read does not end", |world| {
            world.raw.as_ref().is_none_or(|raw| raw.1.is_some())
        });
        let (outcome, data) = self.raw.take()?.1?;
        (outcome == Outcome::Done && data.len() as u64 == len).then_some(data)
    }

    /// Reads everything after a crash: what is found is how it is.
    pub(super) fn look_at_all(&mut self, power: bool) {
        let lasting = power || !self.config.volatile;
        for volume in 0..self.backing.len() {
            let size = self.config.volumes[volume].size;
            for offset in (0..size).step_by(usize::try_from(CHUNK).unwrap_or(1)) {
                if self.failed() {
                    return;
                }
                let Some(data) = self.read_raw(volume, offset, CHUNK.min(size - offset)) else {
                    if !self.judge.tolerance.lost && !self.judge.tolerance.refused {
                        self.judge.fail(format!("volume {volume} cannot be read at {offset}"));
                    }
                    continue;
                };
                let tick = self.judge.ticked();
                if let Err(wrong) = self.judge.oracles[volume].judge(offset, &data, tick) {
                    self.judge.fail(format!("after a crash, volume {volume}: {wrong}"));
                }
                self.judge.oracles[volume].settled(offset, &data, tick, lasting);
            }
            self.check_places(volume);
        }
    }

    /// Judges a backing device by what the engine says of each block: what is not dirty in the cache
    /// must be there, and for good: trimmed implies flushed.
    pub fn check_places(&mut self, volume: usize) {
        if self.cache_failed {
            return;
        }
        let tick = self.judge.ticked();
        let size = self.config.volumes[volume].size;
        let places = self.engine(volume).locate(id_of(volume), 0, size.div_ceil(4096), usize::MAX);
        // Without a volatile cache a write that bypasses the log is durable when it is acknowledged.
        let bypassed = self.config.volatile && self.bypassed[volume];
        for place in places {
            if !matches!(place.copy, CopyAt::Clean | CopyAt::Backing) {
                continue;
            }
            let (from, end) = (place.block * 4096, ((place.block + place.blocks) * 4096).min(size));
            let disk = &self.backing[volume];
            let lasting = place.copy == CopyAt::Clean || !bypassed;
            let medium = if lasting { disk.stable() } else { &disk.bytes };
            let data = medium.bytes(from, end - from);
            self.judge.counts.places += place.blocks;
            if let Err(wrong) = self.judge.oracles[volume].judge(from, &data, tick) {
                let copy = place.copy;
                return self.judge.fail(format!(
                    "the backing device of volume {volume}, where the cache has no newer copy ({copy:?}): {wrong}"
                ));
            }
        }
    }

    /// Destages all and checks that the backing devices hold it.
    pub fn check_backing(&mut self) {
        for volume in 0..self.backing.len() {
            if self.failed() || self.cache_failed {
                return;
            }
            let drained = Event::Drained { volume: id_of(volume) };
            self.events.retain(|event| *event != drained);
            self.drain(volume);
            self.wait_for(&drained);
            if self.failed() {
                return;
            }
            let data = self.backing[volume].bytes.bytes(0, self.config.volumes[volume].size);
            let tick = self.judge.ticked();
            if let Err(wrong) = self.judge.oracles[volume].judge(0, &data, tick) {
                self.judge.fail(format!("the drained backing device of volume {volume}: {wrong}"));
            }
            self.check_places(volume);
        }
    }

    /// Gives a command to a host that uses the volume's subsystem; `pick` says which.
    pub fn ask(&mut self, pick: usize, ask: Ask) {
        let subsystem = self.places[ask.volume].subsystem;
        let able = || (0..self.hosts.len()).filter(|h| self.hosts[*h].subsystem == subsystem);
        let Some(h) = able().nth(pick % able().count().max(1)) else { return };
        let tag = self.judge.begin(h, ask, &mut self.rng);
        self.hosts[h].waiting.push((self.now, tag));
    }

    /// Runs until no command is under way.
    pub fn quiesce(&mut self) {
        self.until("commands do not end", |world| world.judge.asked.is_empty());
    }

    /// Reads everything as hosts do, and judges it.
    pub fn check_all(&mut self) {
        for volume in 0..self.backing.len() {
            let size = self.config.volumes[volume].size;
            for (pick, offset) in (0..size).step_by(usize::try_from(CHUNK).unwrap_or(1)).enumerate()
            {
                if self.failed() {
                    return;
                }
                let (op, len) = (RequestOp::Read, CHUNK.min(size - offset));
                self.ask(pick, Ask { volume, op, offset, len, fua: false, spoil: false });
            }
            self.quiesce();
        }
    }
}
