//! What a read may return: each unit (a logical block or some of them) is a register that several
//! writes may be under way to at once.
//!
//! A write is a candidate from its submission on. It stops being one when a write that began
//! after its end is acknowledged, or when a read has shown that another one came after it. A write
//! that failed, or whose answer was lost, stays a candidate: it may have taken effect or not, but
//! whatever a read has once shown must not go away again.

use forebay_bench::stamp;
use std::fmt;

/// What a unit held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes: never written, or written so.
    Zeroes,
    /// The stamp of this version.
    Version(u32),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    content: Content,
    submitted: u64,
    ended: Option<u64>,
    /// Since when it can no longer be what is stored. Kept while reads are under way that may
    /// have seen it before.
    dead: Option<u64>,
}

#[derive(Clone, Debug)]
struct Unit {
    candidates: Vec<Candidate>,
    newest: u32,
    reads: u32,
}

/// A unit that a read returned wrongly.
#[derive(Clone, Debug)]
pub struct Wrong {
    pub unit: u64,
    what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}: {}", self.unit, self.what)
    }
}

/// The registers of a volume.
#[derive(Clone, Debug)]
pub struct Model {
    seed: u64,
    size: usize,
    units: Vec<Unit>,
    /// Orders submissions and ends.
    time: u64,
}

impl Model {
    /// For `count` units of `size` bytes that hold zeroes.
    pub fn new(seed: u64, size: usize, count: u64) -> Self {
        let zeroes =
            Candidate { content: Content::Zeroes, submitted: 0, ended: Some(0), dead: None };
        let unit = Unit { candidates: vec![zeroes], newest: 0, reads: 0 };
        Self { seed, size, units: vec![unit; usize::try_from(count).unwrap()], time: 0 }
    }

    /// Bytes of a unit.
    pub const fn unit_size(&self) -> usize {
        self.size
    }

    /// Units.
    pub fn count(&self) -> u64 {
        self.units.len() as u64
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn at(&mut self, unit: u64) -> &mut Unit {
        &mut self.units[usize::try_from(unit).unwrap()]
    }

    /// A write of `count` units begins; `data` gets their stamps, or it is one of zeroes. Returns
    /// what names it at its end.
    pub fn begin_write(&mut self, first: u64, count: u64, mut data: Option<&mut [u8]>) -> u64 {
        let (now, seed, size) = (self.tick(), self.seed, self.size);
        for (at, unit) in (first..first + count).enumerate() {
            let register = self.at(unit);
            register.newest += 1;
            let version = register.newest;
            let content = match &mut data {
                Some(data) => {
                    stamp::fill(&mut data[at * size..(at + 1) * size], seed, unit, version);
                    Content::Version(version)
                }
                None => Content::Zeroes,
            };
            register.candidates.push(Candidate {
                content,
                submitted: now,
                ended: None,
                dead: None,
            });
        }
        now
    }

    /// A write has ended: acknowledged, or failed, or nobody will ever know.
    pub fn end_write(&mut self, first: u64, count: u64, begun: u64, acknowledged: bool) {
        let now = self.tick();
        for unit in first..first + count {
            let register = self.at(unit);
            for candidate in &mut register.candidates {
                if candidate.submitted == begun {
                    candidate.ended = Some(now);
                } else if acknowledged && candidate.ended.is_some_and(|ended| ended < begun) {
                    candidate.dead.get_or_insert(now);
                }
            }
            register.prune();
        }
    }

    /// A read of `count` units begins.
    pub fn begin_read(&mut self, first: u64, count: u64) -> u64 {
        (first..first + count).for_each(|unit| self.at(unit).reads += 1);
        self.tick()
    }

    /// A read has ended, with data unless it failed. Returns what is wrong with it.
    pub fn end_read(
        &mut self,
        first: u64,
        count: u64,
        begun: u64,
        data: Option<&[u8]>,
    ) -> Vec<Wrong> {
        let (now, seed, size) = (self.tick(), self.seed, self.size);
        let mut wrong = Vec::new();
        for (at, unit) in (first..first + count).enumerate() {
            let register = self.at(unit);
            register.reads -= 1;
            if let Some(data) = data {
                let data = &data[at * size..(at + 1) * size];
                if let Err(what) = register.check(seed, unit, data, begun, now) {
                    wrong.push(Wrong { unit, what });
                }
            }
            register.prune();
        }
        wrong
    }

    /// Whether a write of zeroes may be what a unit holds.
    pub fn may_be_zeroed(&self, unit: u64) -> bool {
        let register = &self.units[usize::try_from(unit).unwrap()];
        let mut now = register.candidates.iter().filter(|c| c.dead.is_none());
        now.any(|c| c.content == Content::Zeroes && c.submitted > 0)
    }

    /// What a unit holds, where that is certain.
    pub fn certain(&self, unit: u64) -> Option<Content> {
        let register = &self.units[usize::try_from(unit).unwrap()];
        let mut contents = register.candidates.iter().filter(|c| c.dead.is_none());
        let first = contents.next()?.content;
        contents.all(|c| c.content == first).then_some(first)
    }

    /// Writes what a unit holds to `data`; `false` where that is not certain.
    pub fn expect(&self, unit: u64, data: &mut [u8]) -> bool {
        match self.certain(unit) {
            Some(Content::Zeroes) => data.fill(0),
            Some(Content::Version(version)) => stamp::fill(data, self.seed, unit, version),
            None => return false,
        }
        true
    }
}

impl Unit {
    fn prune(&mut self) {
        if self.reads == 0 {
            self.candidates.retain(|candidate| candidate.dead.is_none());
        }
    }

    fn check(
        &mut self,
        seed: u64,
        unit: u64,
        data: &[u8],
        begun: u64,
        now: u64,
    ) -> Result<(), String> {
        let found = if data.iter().all(|byte| *byte == 0) {
            Content::Zeroes
        } else {
            match stamp::read(data, seed, unit) {
                Ok(version) => Content::Version(version),
                Err(mismatch) => return Err(format!("{mismatch:?}; {}", self.words())),
            }
        };
        let possible = |c: &Candidate| c.content == found && c.dead.is_none_or(|dead| dead > begun);
        let Some(seen) = self.candidates.iter().filter(|c| possible(c)).map(|c| c.submitted).min()
        else {
            return Err(format!("found {found:?}, read begun at {begun}; {}", self.words()));
        };
        for other in &mut self.candidates {
            let before = |time: u64| other.ended.is_some_and(|ended| ended < time);
            if other.content != found && (before(begun) || before(seen)) {
                other.dead.get_or_insert(now);
            }
        }
        Ok(())
    }

    fn words(&self) -> String {
        format!("newest {}, possible: {:?}", self.newest, self.candidates)
    }
}

#[test]
fn the_model_bears_what_may_be_and_nothing_else() {
    let mut model = Model::new(7, 64, 4);
    let mut old = [0u8; 128];
    let read = |model: &mut Model, data: &[u8]| {
        let begun = model.begin_read(0, 2);
        model.end_read(0, 2, begun, Some(data)).len()
    };
    assert_eq!(read(&mut model, &[0; 128]), 0, "never written");
    assert_eq!(read(&mut model, &[1; 128]), 2, "foreign");
    let first = model.begin_write(0, 2, Some(&mut old));
    model.end_write(0, 2, first, true);
    assert_eq!(read(&mut model, &[0; 128]), 2, "lost");
    // Two writes under way at once: either may come last.
    let (mut a, mut b) = ([0u8; 128], [0u8; 128]);
    let begun_a = model.begin_write(0, 2, Some(&mut a));
    let begun_b = model.begin_write(0, 2, Some(&mut b));
    let early = model.begin_read(0, 2);
    model.end_write(0, 2, begun_b, true);
    model.end_write(0, 2, begun_a, true);
    assert_eq!(model.end_read(0, 2, early, Some(&old)).len(), 0, "began before either ended");
    assert_eq!(read(&mut model, &old), 2, "older than both");
    let mut later = model.clone();
    assert_eq!(read(&mut later, &b), 0);
    assert_eq!(read(&mut later, &a), 2, "seen to be overwritten");
    assert_eq!(read(&mut model, &a), 0);
    assert_eq!(read(&mut model, &b), 2, "seen to be overwritten");
    assert_eq!(model.certain(0), Some(Content::Version(2)));
    // One whose answer was lost may be there or not, until it was seen.
    let unknown = model.begin_write(0, 1, None);
    model.end_write(0, 1, unknown, false);
    assert_eq!(model.certain(0), None);
    let mut zeroed = a;
    zeroed[..64].fill(0);
    assert_eq!(read(&mut model.clone(), &a), 0);
    assert_eq!(read(&mut model, &zeroed), 0);
    assert_eq!(read(&mut model, &a), 1, "seen, and gone again");
    let mut torn = zeroed;
    torn[100] ^= 1;
    assert_eq!(read(&mut model, &torn), 1);
}
