//! Load on a namespace, every answer held against the model.

use super::host::Host;
use super::model::{Model, Wrong};
use forebay_bench::random::Random;
use forebay_io::{Buf, BufPool, Completion, HeapPool, Op, OpKind};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Operations that were begun must end within this time.
const DRAIN_MAX: Duration = Duration::from_secs(120);

/// What a load does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of a unit: the smallest operation, and what a stamp fills.
    pub unit: usize,
    /// Units that are used, from the start of the namespace.
    pub units: u64,
    /// Units of an operation, evenly drawn.
    pub sizes: Range<u64>,
    pub depth: usize,
    /// Of a hundred operations.
    pub reads: u64,
    pub zeroes: u64,
    pub flushes: u64,
    /// This part of the units gets this share of a hundred operations.
    pub hot: Range<u64>,
    pub hot_share: u64,
}

impl Plan {
    /// Overlapping operations of 4 KiB to 128 KiB, half of them on an eighth of the range.
    pub fn mixed(bytes: u64) -> Self {
        let units = bytes / 4096;
        Self {
            unit: 4096,
            units,
            sizes: 1..33,
            depth: 32,
            reads: 35,
            zeroes: 3,
            flushes: 1,
            hot: units / 4..units / 4 + units / 8,
            hot_share: 60,
        }
    }
}

/// What a load has done.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub zeroes: u64,
    pub flushes: u64,
    /// Units that were read and right.
    pub verified: u64,
    /// Writes whose answer never came.
    pub unknown: u64,
    /// Operations that failed: kind, error.
    pub errors: BTreeMap<(&'static str, String), u64>,
}

impl Counts {
    /// Failed operations, of this kind.
    pub fn failed(&self, kind: &str) -> u64 {
        self.errors.iter().filter(|((k, _), _)| *k == kind).map(|(_, n)| n).sum()
    }

    /// Operations that ended well.
    pub fn ops(&self) -> u64 {
        self.reads + self.writes + self.zeroes + self.flushes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zeroes,
    Flush,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zeroes => "zeroes",
            Self::Flush => "flush",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    kind: Kind,
    first: u64,
    count: u64,
    begun: u64,
}

/// A load with its model. Lives longer than hosts and daemons.
pub struct Load {
    pub plan: Plan,
    pub model: Model,
    pub counts: Counts,
    /// Ranges of units whose reads failed, since it was last emptied.
    pub failed_reads: Vec<(u64, u64)>,
    random: Random,
    pending: Vec<Option<Pending>>,
    /// The daemon is about to be killed: what has no answer then did not fail.
    crashing: bool,
    /// The connections are gone.
    down: bool,
}

impl Load {
    pub fn new(seed: u64, plan: Plan) -> Self {
        let model = Model::new(seed, plan.unit, plan.units);
        let pending = vec![None; plan.depth];
        let (counts, random) = (Counts::default(), Random::new(seed));
        let failed_reads = Vec::new();
        Self { plan, model, counts, failed_reads, random, pending, crashing: false, down: false }
    }

    /// Keeps the namespace busy until `enough` says so, then lets everything end.
    pub fn run(&mut self, host: &mut Host, mut enough: impl FnMut(&Counts) -> bool) {
        while !enough(&self.counts) {
            self.fill_up(host);
            self.step(host);
        }
        self.settle(host);
    }

    /// The same for a time.
    pub fn run_for(&mut self, host: &mut Host, time: Duration) {
        let end = Instant::now() + time;
        self.run(host, |_| Instant::now() >= end);
    }

    /// Keeps the namespace busy until `crash` has happened, in the middle of it all (it says so by
    /// `true`). What has no answer then will never get one.
    pub fn run_into_crash(&mut self, mut host: Host, mut crash: impl FnMut(&Counts) -> bool) {
        self.crashing = true;
        loop {
            if host.is_up() {
                self.fill_up(&mut host);
            }
            self.step(&mut host);
            if crash(&self.counts) {
                break;
            }
        }
        // Answers that were on their way still count.
        let end = Instant::now() + Duration::from_secs(10);
        while host.is_up() && Instant::now() < end {
            self.step(&mut host);
        }
        assert!(!host.is_up(), "the connections of a killed daemon are still there");
        self.step(&mut host);
        self.give_up();
        (self.crashing, self.down) = (false, false);
    }

    /// Nothing that is under way will be answered.
    fn give_up(&mut self) {
        for at in 0..self.pending.len() {
            let Some(Pending { kind, first, count, begun }) = self.pending[at].take() else {
                continue;
            };
            match kind {
                Kind::Read => drop(self.model.end_read(first, count, begun, None)),
                Kind::Write | Kind::Zeroes => {
                    self.counts.unknown += 1;
                    self.model.end_write(first, count, begun, false);
                }
                Kind::Flush => {}
            }
        }
    }

    /// Reads all units, in random order so that no read-ahead or sequential rule helps. Returns
    /// how many units were right; what is wrong ends the test.
    pub fn verify(&mut self, host: &mut Host) -> u64 {
        self.verify_range(host, 0..self.plan.units)
    }

    /// The same for a range of units.
    pub fn verify_range(&mut self, host: &mut Host, range: Range<u64>) -> u64 {
        let piece = (64 << 10) / self.plan.unit as u64;
        let mut starts: Vec<u64> =
            (range.start..range.end).step_by(usize::try_from(piece).unwrap()).collect();
        for at in (1..starts.len()).rev() {
            let other = self.random.below(at as u64 + 1);
            starts.swap(at, usize::try_from(other).unwrap());
        }
        let reads: Vec<(u64, u64)> =
            starts.into_iter().map(|first| (first, piece.min(range.end - first))).collect();
        self.read_all(host, &reads)
    }

    /// Reads single units drawn as the load draws them: the same ones for the same seed, but for
    /// those whose data the host has since replaced by zeroes. Returns how many; all were right.
    pub fn sample(&mut self, host: &mut Host, seed: u64, reads: usize) -> u64 {
        let mut random = Random::new(seed);
        let all: Vec<(u64, u64)> = (0..reads)
            .map(|_| (place(&self.plan, &mut random, 1), 1))
            .filter(|(unit, _)| !self.model.may_be_zeroed(*unit))
            .collect();
        let right = self.read_all(host, &all);
        assert_eq!(right, all.len() as u64, "{:?}", self.counts.errors);
        right
    }

    /// Writes each of these ranges of units once.
    pub fn write_all(&mut self, host: &mut Host, ranges: &[(u64, u64)]) {
        self.each(host, Kind::Write, ranges);
    }

    /// Reads each of these ranges of units once; the units that were right.
    pub fn read_all(&mut self, host: &mut Host, ranges: &[(u64, u64)]) -> u64 {
        let before = self.counts.verified;
        self.each(host, Kind::Read, ranges);
        self.counts.verified - before
    }

    fn each(&mut self, host: &mut Host, kind: Kind, ranges: &[(u64, u64)]) {
        for (first, count) in ranges {
            let end = Instant::now() + DRAIN_MAX;
            while !self.start(host, kind, *first, *count) {
                self.step(host);
                assert!(Instant::now() < end, "operations do not end: {:?}", self.counts);
            }
        }
        self.settle(host);
    }

    /// Waits for the end of all that was begun.
    pub fn settle(&mut self, host: &mut Host) {
        let end = Instant::now() + DRAIN_MAX;
        while self.pending.iter().any(Option::is_some) {
            self.step(host);
            let why = host.last_error();
            assert!(Instant::now() < end, "never ends: {:?}; {why}", self.pending);
        }
    }

    fn fill_up(&mut self, host: &mut Host) {
        while self.pending.iter().any(Option::is_none) {
            let kind = self.random.below(100);
            let Plan { reads, zeroes, flushes, .. } = self.plan;
            let kind = match kind {
                n if n < reads => Kind::Read,
                n if n < reads + zeroes => Kind::Zeroes,
                n if n < reads + zeroes + flushes => Kind::Flush,
                _ => Kind::Write,
            };
            let sizes = self.plan.sizes.clone();
            let count = sizes.start + self.random.below(sizes.end - sizes.start);
            let first = place(&self.plan, &mut self.random, count);
            if !self.start(host, kind, first, count) {
                return;
            }
        }
    }

    fn start(&mut self, host: &mut Host, kind: Kind, first: u64, count: u64) -> bool {
        let Some(at) = self.pending.iter().position(Option::is_none) else { return false };
        let size = self.plan.unit as u64;
        let (token, offset, len) = (at as u64, first * size, count * size);
        let bytes = usize::try_from(len).unwrap();
        let (op, begun) = match kind {
            Kind::Read => {
                let buf = HeapPool.alloc(bytes).unwrap();
                (Op::read(token, offset, len, buf), self.model.begin_read(first, count))
            }
            Kind::Write => {
                let mut buf = HeapPool.alloc(bytes).unwrap();
                let begun = self.model.begin_write(first, count, buf.as_mut_slice());
                (Op::write(token, offset, len, buf), begun)
            }
            Kind::Zeroes => {
                let op = Op::range(token, OpKind::WriteZeroes, offset, len);
                (op, self.model.begin_write(first, count, None))
            }
            Kind::Flush => (Op::flush(token), 0),
        };
        assert!(host.submit(op).is_ok(), "the host's queues are deeper than the load");
        self.pending[at] = Some(Pending { kind, first, count, begun });
        true
    }

    fn step(&mut self, host: &mut Host) {
        host.pump();
        self.down = !host.is_up();
        while let Some(done) = host.done() {
            self.finish(done);
        }
    }

    fn finish(&mut self, done: Completion<forebay_io::HeapBuf>) {
        let at = usize::try_from(done.token).unwrap();
        let Pending { kind, first, count, begun } = self.pending[at].take().expect("was begun");
        let lost = self.crashing && self.down && done.result.is_err();
        if let (Err(error), false) = (done.result, lost) {
            *self.counts.errors.entry((kind.name(), error.to_string())).or_default() += 1;
        }
        let good = done.result.is_ok();
        match kind {
            Kind::Read => {
                let data = done.buf.as_ref().filter(|_| good).map(Buf::as_slice);
                let wrong = self.model.end_read(first, count, begun, data);
                assert!(wrong.is_empty(), "{}", complaint(&wrong, first, count));
                if good {
                    self.counts.verified += count;
                    self.counts.reads += 1;
                } else if !lost {
                    self.failed_reads.push((first, count));
                }
            }
            Kind::Write | Kind::Zeroes => {
                self.model.end_write(first, count, begun, good);
                self.counts.unknown += u64::from(lost);
                match kind {
                    _ if !good => {}
                    Kind::Write => self.counts.writes += 1,
                    _ => self.counts.zeroes += 1,
                }
            }
            Kind::Flush => self.counts.flushes += u64::from(good),
        }
    }

    /// No operation has failed so far.
    pub fn assert_no_errors(&self) {
        assert!(self.counts.errors.is_empty(), "{:?}", self.counts.errors);
    }

    /// Holds a file against what the host wrote, byte for byte. Returns the bytes compared.
    pub fn compare_file(&self, path: &std::path::Path) -> u64 {
        use std::io::Read;
        let mut file = std::fs::File::open(path).unwrap();
        let (mut found, mut wanted) = (vec![0; self.plan.unit], vec![0; self.plan.unit]);
        for unit in 0..self.plan.units {
            file.read_exact(&mut found).unwrap();
            assert!(self.model.expect(unit, &mut wanted), "unit {unit} is not certain: read it");
            assert!(found == wanted, "{}: unit {unit} differs", path.display());
        }
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert!(rest.iter().all(|byte| *byte == 0), "{}: written past the load", path.display());
        self.plan.units * self.plan.unit as u64 + rest.len() as u64
    }
}

fn place(plan: &Plan, random: &mut Random, count: u64) -> u64 {
    let hot = random.below(100) < plan.hot_share;
    let range = if hot { plan.hot.clone() } else { 0..plan.units };
    let first = range.start + random.below(range.end - range.start);
    first.min(plan.units - count)
}

fn complaint(wrong: &[Wrong], first: u64, count: u64) -> String {
    let some: Vec<String> = wrong.iter().take(3).map(ToString::to_string).collect();
    format!(
        "a read of units {first}+{count} returned {} wrong ones:\n  {}",
        wrong.len(),
        some.join("\n  ")
    )
}
