//! What hosts asked and were told, whatever connection it took, and the judgement of it.

use crate::config::Config;
use crate::oracle::{Oracle, Seen, content, recognise};
use crate::rng::Rng;
use crate::world::{Ask, Tolerance};
use forebay_io::RequestOp;
use forebay_wire::Status;
use std::collections::BTreeMap;

/// Has not ended.
const OPEN: u64 = u64::MAX;
/// Lines of the timeline that are kept.
const LINES_MAX: usize = 200_000;

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Commands that ended well.
    pub done: u64,
    /// Commands that ended in an error.
    pub failed: u64,
    /// Commands whose answer a lost connection took along.
    pub lost: u64,
    /// Commands sent again, as they were refused while an earlier association was not over.
    pub again: u64,
    /// Reads and successful compares that the oracle judged.
    pub reads: u64,
    /// Blocks whose copy on a backing device was judged.
    pub places: u64,
    /// Crashes of the node.
    pub crashes: u64,
    /// Connections cut, stopped for a while, and reactors that stood still.
    pub network: u64,
    /// Associations that became ready.
    pub associations: u64,
    /// Messages between the shards.
    pub messages: u64,
}

impl Counts {
    /// Adds another run's.
    pub const fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.failed += other.failed;
        self.lost += other.lost;
        self.again += other.again;
        self.reads += other.reads;
        self.places += other.places;
        self.crashes += other.crashes;
        self.network += other.network;
        self.associations += other.associations;
        self.messages += other.messages;
    }
}

/// A command of a host, from the first time it is sent until it has an end.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What.
    pub ask: Ask,
    /// Its name, if it changes anything.
    pub write: u64,
    /// What a compare compares with.
    pub want: Vec<u8>,
    /// An Abort was sent for it.
    pub aborted: bool,
    start: u64,
    /// Nobody else changes the range: a compare ends as expected.
    sure: bool,
}

/// What is to be done with a command that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has ended.
    Ended,
    /// It is sent again.
    Again,
}

/// A change whose answer was lost.
#[derive(Clone, Copy, Debug)]
struct Lost {
    volume: usize,
    at: (u64, u64),
    write: u64,
}

/// See the module's description.
pub struct Judge {
    /// The judges of the volumes.
    pub oracles: Vec<Oracle>,
    /// Commands under way.
    pub asked: BTreeMap<u64, Asked>,
    /// Which errors are allowed now.
    pub tolerance: Tolerance,
    /// A stopping node may refuse.
    pub stopped: bool,
    /// Counts.
    pub counts: Counts,
    /// What is wrong.
    pub violation: Option<String>,
    /// What happened, if it is kept.
    pub lines: Option<Vec<String>>,
    /// A sum of everything that happened.
    pub hash: u64,
    /// Virtual time in nanoseconds.
    pub now: u64,
    tick: u64,
    next: u64,
    /// Begin and end of each write, for the order on the backing devices.
    times: Vec<(u64, u64)>,
    /// By host.
    lost: Vec<Vec<Lost>>,
}

impl Judge {
    /// A judge of the volumes of a configuration.
    #[must_use]
    pub fn new(config: &Config, hosts: usize, lines: bool) -> Self {
        let oracle = |size| Oracle::new(size, !config.volatile);
        Self {
            oracles: config.volumes.iter().map(|v| oracle(v.size)).collect(),
            asked: BTreeMap::new(),
            tolerance: Tolerance::default(),
            stopped: false,
            counts: Counts::default(),
            violation: None,
            lines: lines.then(Vec::new),
            hash: 0xcbf2_9ce4_8422_2325,
            now: 0,
            tick: 1,
            next: 1,
            times: vec![(0, 0)],
            lost: vec![Vec::new(); hosts],
        }
    }

    /// Notes a violation; the first one counts.
    pub fn fail(&mut self, what: String) {
        self.line(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    /// Adds a line to the timeline.
    pub fn line(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                // The begin and the end tell most.
                lines.remove(LINES_MAX / 2);
            }
            lines.push(format!("{:>12.3} µs  {}", now as f64 / 1000.0, text()));
        }
    }

    /// Adds to the sum of everything that happened.
    pub const fn sum(&mut self, what: u64) {
        self.hash = (self.hash ^ what).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    /// The next moment, as the oracles count.
    pub const fn ticked(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A host begins a command.
    pub fn begin(&mut self, host: usize, ask: Ask, rng: &mut Rng) -> u64 {
        let tag = self.next;
        self.next += 1;
        let (want, sure) = self.want(&ask, rng);
        let start = self.ticked();
        let write = if ask.changes() { self.times.len() as u64 } else { 0 };
        if ask.changes() {
            for other in self.asked.values_mut().filter(|other| overlap(&other.ask, &ask)) {
                other.sure = false;
            }
            self.times.push((start, OPEN));
            let zero = matches!(ask.op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
            let certain = ask.op != RequestOp::Deallocate;
            self.oracles[ask.volume].started(ask.span(), write, zero, certain, start);
        }
        self.line(|| {
            let fua = if ask.fua { " FUA" } else { "" };
            let (op, volume, (offset, len)) = (ask.op, ask.volume, ask.span());
            format!("host{host}  asks {tag}: {op:?} vol{volume} {offset}+{len}{fua} write {write}")
        });
        self.asked.insert(tag, Asked { ask, write, want, aborted: false, start, sure });
        tag
    }

    /// The data of a compare, and whether nobody else changes it.
    fn want(&self, ask: &Ask, rng: &mut Rng) -> (Vec<u8>, bool) {
        if !matches!(ask.op, RequestOp::Compare | RequestOp::CompareAndWrite) {
            return (Vec::new(), false);
        }
        let oracle = &self.oracles[ask.volume];
        let busy = self.asked.values().any(|o| o.ask.changes() && overlap(&o.ask, ask));
        let known = oracle.known(ask.offset, ask.len);
        let sure = known.is_some() && !busy;
        let mut data = known.unwrap_or_else(|| oracle.guess(ask.offset, ask.len));
        if ask.spoil && !data.is_empty() {
            let at = rng.index(data.len());
            data[at] ^= 0x55;
        }
        (data, sure)
    }

    /// The bytes that a write writes.
    #[must_use]
    pub fn data(asked: &Asked) -> Vec<u8> {
        content(asked.write, asked.ask.offset, asked.ask.len)
    }

    /// A command is sent again; what only looks begins anew.
    pub fn again(&mut self, tag: u64) {
        self.counts.again += 1;
        let tick = self.ticked();
        if let Some(asked) = self.asked.get_mut(&tag).filter(|asked| !asked.ask.changes()) {
            asked.start = tick;
        }
    }

    /// A host was told the end of a command: `data` is what a read got.
    pub fn answered(&mut self, tag: u64, status: Status, data: Option<&[u8]>) -> Verdict {
        self.sum(tag ^ u64::from(status.to_field()) << 40);
        self.line(|| format!("host   {tag} ends: {status}"));
        if self.asked.contains_key(&tag) && status.is(Status::ANA_INACCESSIBLE) {
            // The controller is held, and nothing has happened.
            return Verdict::Again;
        }
        let Some(asked) = self.asked.remove(&tag) else {
            self.fail(format!("command {tag} ended twice"));
            return Verdict::Ended;
        };
        let tick = self.ticked();
        if status.is_success() {
            self.ended_well(&asked, tick, data);
        } else {
            self.ended_badly(&asked, status, tick);
        }
        Verdict::Ended
    }

    /// A volume that is not ready, a buffer that was not there: as may be now.
    fn refusal(&self, status: Status) -> bool {
        (status.is(Status::ANA_TRANSITION) || status.is(Status::COMMAND_INTERRUPTED))
            && (self.tolerance.refused || self.stopped)
    }

    fn ended_well(&mut self, asked: &Asked, tick: u64, data: Option<&[u8]>) {
        self.counts.done += 1;
        let (ask, at) = (&asked.ask, asked.ask.span());
        let oracle = &mut self.oracles[ask.volume];
        let seen = match ask.op {
            RequestOp::Read => data.unwrap_or_default(),
            RequestOp::Compare | RequestOp::CompareAndWrite => &asked.want[..],
            _ => &[],
        };
        let told = oracle.read(ask.offset, seen, asked.start, tick);
        if ask.op == RequestOp::CompareAndWrite {
            oracle.swapped(at, asked.write, &asked.want);
        }
        if ask.op == RequestOp::Flush {
            oracle.flushed(asked.start);
        } else if ask.changes() {
            let horizon = self.asked.values().map(|a| a.start).min().unwrap_or(OPEN);
            self.times[usize::try_from(asked.write).unwrap_or(0)].1 = tick;
            oracle.ended(at, asked.write, tick, horizon.min(asked.start), ask.fua);
        }
        if !seen.is_empty() {
            self.counts.reads += 1;
            self.sum(u64::from(forebay_io::crc::crc32c(seen)));
        }
        if let Err(wrong) = told {
            self.fail(format!("{:?} of volume {}: {wrong}", ask.op, ask.volume));
        }
    }

    fn ended_badly(&mut self, asked: &Asked, status: Status, tick: u64) {
        self.counts.failed += 1;
        let (ask, at) = (&asked.ask, asked.ask.span());
        let aborted = asked.aborted && status.is(Status::ABORT_REQUESTED);
        if aborted || status.is(Status::COMPARE_FAILURE) {
            if asked.sure && !ask.spoil && !aborted {
                self.fail(format!("a compare that must succeed failed: {asked:?}"));
            }
            if ask.changes() {
                self.oracles[ask.volume].never(at, asked.write);
            }
            return;
        }
        let allowed = if status.is(Status::UNRECOVERED_READ) {
            self.tolerance.lost
        } else {
            self.refusal(status) || (status.is(Status::CAPACITY_EXCEEDED) && self.tolerance.refused)
        };
        if !allowed {
            self.fail(format!("{ask:?} ended in {status}"));
        }
        if ask.changes() {
            self.oracles[ask.volume].gone(at, asked.write, tick);
        }
    }

    /// The connection of a command is lost and the host gives it up: it may still happen.
    pub fn given_up(&mut self, host: usize, tag: u64) {
        self.counts.lost += 1;
        self.line(|| format!("host{host}  gives {tag} up"));
        if let Some(asked) = self.asked.remove(&tag).filter(|asked| asked.ask.changes()) {
            let (volume, at) = (asked.ask.volume, asked.ask.span());
            self.lost[host].push(Lost { volume, at, write: asked.write });
        }
    }

    /// A later association of a host was served: what the earlier ones asked for has ended.
    pub fn concluded(&mut self, host: usize) {
        let tick = self.ticked();
        for lost in core::mem::take(&mut self.lost[host]) {
            self.oracles[lost.volume].gone(lost.at, lost.write, tick);
            self.times[usize::try_from(lost.write).unwrap_or(0)].1 = tick;
        }
    }

    /// The node died: everything under way happened or not.
    pub fn crashed(&mut self, power: bool, volatile: bool) {
        self.counts.crashes += 1;
        self.line(|| format!("crash  power {power}"));
        self.oracles.iter_mut().for_each(|oracle| oracle.crashed(power));
        if power && volatile {
            self.times.iter_mut().for_each(|times| *times = (0, OPEN));
        }
        self.asked.clear();
        self.lost.iter_mut().for_each(Vec::clear);
    }

    /// A sector of a volume's backing device changed: not back to an older write.
    pub fn judge_order(&mut self, volume: usize, place: u64, old: &[u8], new: &[u8]) {
        let (Seen::Write(old), Seen::Write(new)) = (recognise(place, old), recognise(place, new))
        else {
            return;
        };
        let time = |write| usize::try_from(write).ok().and_then(|at| self.times.get(at));
        if let (Some(old_time), Some(new_time)) = (time(old), time(new))
            && new_time.1 < old_time.0
        {
            self.fail(format!(
                "the backing device of volume {volume} goes back in time: sector {place} held write {old}, now write {new}"
            ));
        }
    }
}

fn overlap(a: &Ask, b: &Ask) -> bool {
    a.volume == b.volume && a.offset < b.offset + b.len && b.offset < a.offset + a.len
}
