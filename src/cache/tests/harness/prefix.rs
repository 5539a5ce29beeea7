//! A black-box check that a backing device alone is a prefix of the acknowledged writes, by their
//! order in real time: where it holds any block of a write, then of every write that was acknowledged
//! before that one was submitted each block is there, or something that is not older.

use super::World;
use forebay_cache::engine::OrderState;
use forebay_io::{Outcome, RequestOp};
use std::collections::{BTreeMap, HashMap};

const BLOCK: u64 = 4096;

#[derive(Clone, Copy, Debug)]
struct Write {
    start: u64,
    /// Acknowledged at; `u64::MAX` while it is not.
    end: u64,
    zero: bool,
    /// It has happened for certain once it is acknowledged.
    certain: bool,
}

/// What was written to one volume, and how many states of its backing device were looked at.
pub struct Prefix {
    volume: usize,
    writes: HashMap<u64, Write>,
    /// The writes of each block, in the order of their submission.
    blocks: Vec<Vec<u64>>,
    /// Tags under way, with their writes.
    open: BTreeMap<u64, (u64, RequestOp)>,
    /// How much of the log was taken up.
    taken: usize,
    seen: (u64, u64),
    state: Option<OrderState>,
    /// States in which the engine said that it is a prefix.
    pub between: u64,
    /// Other states, and those of them that are no prefix.
    pub within: u64,
    pub broken_within: u64,
}

impl Prefix {
    pub fn new(w: &World, volume: usize) -> Self {
        let blocks = usize::try_from(w.setup.volumes[volume].0 / BLOCK).unwrap();
        Self {
            volume,
            writes: HashMap::new(),
            blocks: vec![Vec::new(); blocks],
            open: BTreeMap::new(),
            taken: w.log.len(),
            seen: (u64::MAX, 0),
            state: None,
            between: 0,
            within: 0,
            broken_within: 0,
        }
    }

    /// Takes up what the host asked and what was answered since the last call, then checks the
    /// backing device if it has changed.
    pub fn look(&mut self, w: &World) -> Result<(), String> {
        for (tag, asked) in &w.log[self.taken..] {
            let changes =
                !matches!(asked.op, RequestOp::Read | RequestOp::Compare | RequestOp::Flush);
            if asked.volume == self.volume && changes {
                self.started(*tag, asked.write, asked.op, (asked.offset, asked.len), asked.start);
            }
        }
        self.taken = w.log.len();
        let mut open = std::mem::take(&mut self.open);
        open.retain(|tag, (write, op)| match (w.done.get(tag), w.ends.get(tag)) {
            (Some(outcome), Some(at)) => {
                self.ended(*write, *op, *outcome, *at);
                false
            }
            // A crash ends what was under way without an answer.
            _ => w.asked.contains_key(tag),
        });
        self.open = open;
        let disk = &w.backing[self.volume];
        let state = w.engine.volume_stats(World::id(self.volume)).and_then(|stats| stats.order);
        let seen = (disk.writes, disk.written);
        if seen == self.seen && state == self.state {
            return Ok(());
        }
        (self.seen, self.state) = (seen, state);
        self.check(w, state)
    }

    fn started(&mut self, tag: u64, write: u64, op: RequestOp, at: (u64, u64), start: u64) {
        let zero = matches!(op, RequestOp::WriteZeroes { .. } | RequestOp::Deallocate);
        let certain = op != RequestOp::Deallocate;
        self.writes.insert(write, Write { start, end: u64::MAX, zero, certain });
        for block in at.0 / BLOCK..(at.0 + at.1) / BLOCK {
            self.blocks[usize::try_from(block).unwrap()].push(write);
        }
        self.open.insert(tag, (write, op));
    }

    fn ended(&mut self, write: u64, op: RequestOp, outcome: Outcome, now: u64) {
        let Some(known) = self.writes.get_mut(&write) else { return };
        match (op, outcome) {
            (_, Outcome::Done) => known.end = now,
            // Refused ones may have happened.
            _ => known.certain = false,
        }
    }

    /// Power was lost with a volatile cache: what was acknowledged may be gone.
    pub fn power_lost(&mut self) {
        for write in self.writes.values_mut() {
            write.certain = false;
        }
    }

    /// Whether a state of the device is a prefix; the first block that is too old, if not.
    pub fn broken(&self, held: impl Fn(u64) -> u64) -> Option<String> {
        let held: Vec<u64> = (0..self.blocks.len() as u64).map(held).collect();
        let newest =
            held.iter().filter_map(|write| self.writes.get(write)).map(|w| w.start).max()?;
        for (block, history) in self.blocks.iter().enumerate() {
            let here = held[block];
            let all = || history.iter().filter_map(|id| self.writes.get(id));
            // Zeroes may be of any write of zeroes, or the first content.
            let end = if here == 0 {
                all().filter(|w| w.zero).map(|w| w.end).max().unwrap_or(0)
            } else {
                self.writes.get(&here).map_or(0, |w| w.end)
            };
            let wanted = all().filter(|w| w.certain && w.end < newest).map(|w| w.start).max();
            if wanted.is_some_and(|start| end < start) {
                return Some(format!(
                    "block {block} holds write {here}, ended at {end}; one that began at {wanted:?} was \
                     acknowledged before {newest}, when a write began that is on the device"
                ));
            }
        }
        None
    }

    fn check(&mut self, w: &World, state: Option<OrderState>) -> Result<(), String> {
        let disk = &w.backing[self.volume];
        let broken = self
            .broken(|block| u64::from_le_bytes(disk.peek(block * BLOCK, 8).try_into().unwrap()));
        match (state, broken) {
            (Some(OrderState::Prefix(_)), None) => self.between += 1,
            (Some(OrderState::Prefix(lsn)), Some(what)) => {
                return Err(format!(
                    "at {} the device is said to be a prefix at {lsn:?}: {what}",
                    w.now
                ));
            }
            (_, broken) => {
                self.within += 1;
                self.broken_within += u64::from(broken.is_some());
            }
        }
        Ok(())
    }
}
