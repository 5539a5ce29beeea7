//! Writes whose order a backing file alone is held against: that of `write-back-ordered`.

use super::{Host, wait};
use forebay_bench::random::Random;
use forebay_io::{Buf, BufPool, HeapPool, Op};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a block, and blocks of the volume.
pub const BLOCK: u64 = 4096;
/// See [`BLOCK`].
pub const BLOCKS: u64 = 4096;
const DEPTH: usize = 16;

/// A write, and when it was submitted and acknowledged.
#[derive(Clone, Copy)]
pub struct Write {
    first: u64,
    blocks: u64,
    start: u64,
    /// `u64::MAX` while it is not acknowledged.
    end: u64,
}

/// Writes that name themselves in each of their blocks, and their order in real time.
pub struct Log {
    pub random: Random,
    pub writes: Vec<Write>,
    clock: u64,
    pub flushes: u64,
    /// Under way.
    open: usize,
}

impl Log {
    /// Nothing is written yet.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), writes: Vec::new(), clock: 0, flushes: 0, open: 0 }
    }

    /// Writes, `DEPTH` at once; one command in `flushes` is a Flush (0: none). Ends when `enough` says
    /// so (with the commands begun), without waiting for what is under way.
    pub fn run(&mut self, host: &mut Host, flushes: u64, mut enough: impl FnMut(u64) -> bool) {
        let mut begun = 0;
        let end = Instant::now() + Duration::from_secs(120);
        while !enough(begun) && host.is_up() {
            assert!(Instant::now() < end, "{}", host.last_error());
            while self.open < DEPTH && host.is_up() {
                let op = if flushes > 0 && self.random.below(flushes) == 0 {
                    self.flushes += 1;
                    Op::flush(u64::MAX)
                } else {
                    self.next()
                };
                assert!(host.submit(op).is_ok(), "the host's queue is deeper");
                (self.open, begun) = (self.open + 1, begun + 1);
            }
            host.pump();
            self.take(host);
        }
    }

    fn next(&mut self) -> Op<forebay_io::HeapBuf> {
        let blocks = 1 + self.random.below(8);
        let hot = self.random.below(2) == 0;
        let first = self.random.below(if hot { 256 } else { BLOCKS }).min(BLOCKS - blocks);
        let name = self.writes.len() as u64 + 1;
        let mut buf = HeapPool.alloc(usize::try_from(blocks * BLOCK).unwrap()).unwrap();
        for block in buf.as_mut_slice().unwrap().chunks_mut(4096) {
            block.fill(name.to_le_bytes()[0]);
            block[..8].copy_from_slice(&name.to_le_bytes());
        }
        self.clock += 1;
        self.writes.push(Write { first, blocks, start: self.clock, end: u64::MAX });
        Op::write(name, first * BLOCK, blocks * BLOCK, buf)
    }

    fn take(&mut self, host: &mut Host) {
        while let Some(done) = host.done() {
            self.open -= 1;
            if let Some(at) = done.token.checked_sub(1).and_then(|at| usize::try_from(at).ok())
                && let Some(write) = self.writes.get_mut(at)
                && done.result.is_ok()
            {
                self.clock += 1;
                write.end = self.clock;
            }
        }
    }

    /// Waits for all that is under way.
    pub fn settle(&mut self, host: &mut Host) {
        wait("the end of all writes", Duration::from_secs(60), || {
            host.pump();
            self.take(host);
            (self.open == 0).then_some(())
        });
    }

    /// Writes that were under way when the daemon died may have happened or not.
    pub fn killed(&mut self, host: &mut Host) {
        let end = Instant::now() + Duration::from_secs(10);
        while host.is_up() && Instant::now() < end {
            host.pump();
            self.take(host);
        }
        self.take(host);
        self.open = 0;
    }

    /// Why the file alone is no prefix, and the acknowledged writes that it lacks in part.
    pub fn judge(&self, path: &Path) -> (Option<String>, u64) {
        let held = held(path);
        let write = |name: u64| &self.writes[usize::try_from(name - 1).unwrap()];
        let newest = held.iter().filter(|name| **name > 0).map(|name| write(*name).start).max();
        let (mut broken, mut lacks) = (None, 0);
        for (at, wanted) in self.writes.iter().enumerate().filter(|(_, w)| w.end != u64::MAX) {
            let older = self.older(&held, wanted);
            lacks += u64::from(older.is_some());
            if let Some(block) = older
                && newest.is_some_and(|newest| wanted.end < newest)
            {
                broken.get_or_insert(format!(
                    "block {block} is older than write {}, which was acknowledged before the newest write \
                     there began",
                    at + 1
                ));
            }
        }
        (broken, lacks)
    }

    /// A block of a write where something older is.
    fn older(&self, held: &[u64], wanted: &Write) -> Option<u64> {
        (wanted.first..wanted.first + wanted.blocks).find(|block| {
            let name = held[usize::try_from(*block).unwrap()];
            name == 0 || self.writes[usize::try_from(name - 1).unwrap()].end < wanted.start
        })
    }

    /// The cache is lost: what the file lacks is no longer asked for.
    pub fn lost(&mut self, path: &Path) {
        let held = held(path);
        for at in 0..self.writes.len() {
            if self.older(&held, &self.writes[at]).is_some() {
                self.writes[at].end = u64::MAX;
            }
        }
    }
}

/// The write that each block of a file is of.
fn held(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let name = |block: &[u8]| {
        let name = u64::from_le_bytes(block[..8].try_into().unwrap());
        assert!(block[8..].iter().all(|byte| *byte == name.to_le_bytes()[0]), "a torn block");
        name
    };
    bytes.chunks(4096).map(name).collect()
}
