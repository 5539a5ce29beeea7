//! Recovery: from an opened cache device to an index, a segment table and each volume's place in
//! its log. A state machine without I/O: drive [`Recovery::poll_action`] and
//! [`Recovery::handle_completion`] until [`Recovery::is_done`], then [`Recovery::finish`].
//!
//! 1. **Survey**: the free mark and the footer's head of every segment, and the first batch header
//!    of those without a valid footer.
//! 2. **Scan**: segments without a footer, batch by batch, all data checked: what a crash tore ends
//!    the replay exactly there ([`scan`]).
//! 3. **Replay**: the records of all segments in the order of their batches' numbers, which is the
//!    order of placement; only the segments that were open at the same moment are in memory at
//!    once. The highest LSN wins; kills and trims apply to what their LSN covers ([`replay`]).
//! 4. **Settle**: what had no footer gets one that holds only what counted, so that a record left out now
//!    cannot come back at a later recovery; flush; then the superblock with the next incarnation,
//!    twice. A crash before that leaves a device that recovers to the same.
//!
//! Besides the index and the CRC folds it uses 8 bytes a slot while it runs.

mod kills;
mod outcome;
mod replay;
mod scan;
mod settle;
mod source;
mod survey;
pub mod transfer;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::test_volume;

pub use outcome::{
    Deferred, Lost, Recovered, RecoveredRange, RecoveredVolume, RecoveryError, SegmentInfo,
    SegmentState, Stats,
};

use crate::format::BLOCK;
use crate::format::geometry::{LogStream, Numbers, ShardMap};
use crate::format::open::Opened;
use crate::format::superblock::Superblock;
use crate::index::{Index, IndexError, MAX_SLOTS};
use crate::plant::Plant;
use forebay_io::{Buf, BufPool, Completion, Op};
use replay::Replay;
use source::Sources;
use survey::{Found, Owner, Verdict};
use transfer::{Done, Transfer};

/// Segments without a footer at most: a crash leaves a few for each stream.
pub const MAX_UNSEALED: usize = 64;
/// Ranges of one volume that a staged recovery remembers as dead; with more it is not staged.
/// (Tests go over the bound.)
pub const MAX_KILLS: usize = if cfg!(test) { 6 } else { 1 << 18 };
/// LSNs that a start in stages leaves out: more than the log of any device holds at a time. Copies that are
/// not read yet may carry those of changes that damage of the journal hides, and must stay older than
/// what comes now.
pub const LSNS_SKIPPED: u64 = 1 << 40;

/// Whether a volume whose last number is this one was ever changed: numbers that were only skipped are no
/// changes.
#[must_use]
pub(crate) const fn has_changes(last: u64) -> bool {
    !last.is_multiple_of(LSNS_SKIPPED)
}
/// Transfers asked for at once.
const MAX_JOBS: usize = 48;

/// How far it is, for progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments whose records are in the index.
    pub done: u32,
    /// Segments that have records.
    pub total: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Survey,
    Scan,
    Replay,
    Settle,
    Done,
}

/// Why a transfer was asked for; with a segment it makes the transfer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Free mark and first block of the footer, together.
    Tail,
    Mark,
    FooterHead,
    First,
    /// A whole data area.
    Data,
    /// One block of a data area, whose number is in the name.
    DataBlock,
    Footer,
    Settle,
}

const ASKS: [Ask; 8] = [
    Ask::Tail,
    Ask::Mark,
    Ask::FooterHead,
    Ask::First,
    Ask::Data,
    Ask::DataBlock,
    Ask::Footer,
    Ask::Settle,
];

fn name(ask: Ask, segment: u32, block: u16) -> u64 {
    let code = ASKS.iter().position(|other| *other == ask).unwrap_or(0);
    (code as u64) << 48 | u64::from(block) << 32 | u64::from(segment)
}

fn unname(id: u64) -> Option<(Ask, u32, u16)> {
    let ask = ASKS.get(usize::try_from(id >> 48).ok()?)?;
    let block = u16::try_from((id >> 32) & 0xffff).ok()?;
    Some((*ask, u32::try_from(id & u64::from(u32::MAX)).ok()?, block))
}

/// The recovery of one shard. See the module's description.
pub struct Recovery {
    transfer: Transfer,
    phase: Phase,
    superblock: Superblock,
    map: ShardMap,
    replay: Replay,
    found: Vec<Found>,
    /// The next segment to look at, and how many answers are awaited.
    next: u32,
    sources: Sources,
    settle: settle::Settle,
    numbers: Numbers,
    read_only: bool,
    /// Sealed fill segments, by seal, that are left to the engine; `None` if none is.
    deferred: Option<Vec<(u64, u32)>>,
    error: Option<RecoveryError>,
    plant: Plant,
}

impl Recovery {
    /// The recovery of a shard of an opened device into `index`, which must be empty and take
    /// every slot of the shard. With `read_only` nothing is written and the incarnation stays:
    /// for inspection only.
    ///
    /// # Errors
    /// [`RecoveryError::NoSuchShard`], [`RecoveryError::Index`] (more slots than an index takes).
    pub fn new(
        opened: &Opened,
        shard: u16,
        index: Index,
        read_only: bool,
    ) -> Result<Self, RecoveryError> {
        let none = RecoveryError::NoSuchShard(shard);
        let superblock = opened.shards.get(usize::from(shard)).ok_or(none.clone())?.clone();
        let map = opened.map(shard).ok_or(none)?;
        if !read_only {
            superblock.check_start().map_err(RecoveryError::Superblock)?;
        }
        if map.slots() > MAX_SLOTS {
            return Err(RecoveryError::Index(IndexError::Capacity(map.slots())));
        }
        let segments = map.segments();
        Ok(Self {
            transfer: Transfer::default(),
            phase: Phase::Survey,
            replay: Replay::new(&superblock, map.geometry(), segments, index),
            found: vec![Found::default(); segments as usize],
            next: 0,
            sources: Sources::new(map.geometry()),
            settle: settle::Settle::new(&opened.header),
            numbers: Numbers::after(0),
            superblock,
            map,
            read_only,
            deferred: None,
            error: None,
            plant: Plant::default(),
        })
    }

    /// Removes a rule on purpose, by its number in [`crate::plant::Bug`]; 0 for none.
    #[cfg(feature = "planted-bugs")]
    pub const fn plant(&mut self, bug: u16) {
        self.plant = crate::plant::Plant::new(bug);
        self.replay.plant = self.plant;
    }

    /// Leaves the sealed segments of the fill log to the engine, which loads them while it serves.
    ///
    /// They hold nothing but copies of what the backing devices have, so that all that is dirty, every
    /// LSN and every range of zeroes is known without them; and what made such a copy dead is in the
    /// journal. [`Recovered::deferred`] says which they are.
    #[must_use]
    pub fn staged(mut self) -> Self {
        self.deferred = Some(Vec::new());
        self.replay.remember_kills(true);
        self
    }

    /// The next device operation. `None` while enough are in flight, or the pool has no buffer (ask
    /// again), or it is done.
    pub fn poll_action<P: BufPool>(&mut self, pool: &mut P) -> Option<Op<P::Buf>> {
        loop {
            if let Some(op) = self.transfer.poll_action(pool) {
                return Some(op);
            }
            if self.error.is_some() || !self.advance() {
                return None;
            }
        }
    }

    /// Takes the completion of one of its operations.
    pub fn handle_completion<B: Buf>(&mut self, completion: Completion<B>) {
        let Some(done) = self.transfer.handle_completion(completion) else { return };
        if self.error.is_none() {
            self.transferred(done);
        }
    }

    /// Whether it has ended, well or not, and no operation is in flight.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        (matches!(self.phase, Phase::Done) || self.error.is_some())
            && self.transfer.in_flight() == 0
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.sources.progress()
    }

    /// What was recovered. To be called when [`Recovery::is_done`].
    ///
    /// # Errors
    /// [`RecoveryError`]; the device is as good as before and recovery may be tried again.
    pub fn finish(mut self) -> Result<Recovered, RecoveryError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut segments = self.deferred.unwrap_or_default();
        segments.sort_unstable();
        let segments = segments.into_iter().map(|(_, segment)| segment).collect();
        let deferred = Deferred { segments, killed: self.replay.take_kills() };
        let (mut volumes, ranges, lost) = self.replay.outcome();
        for volume in volumes.iter_mut().filter(|_| !self.read_only) {
            if let Some(entry) = self.superblock.volume(volume.volume) {
                volume.last = entry.accounted;
            }
        }
        let numbers =
            if self.read_only { self.numbers } else { Numbers::new(self.superblock.incarnation) };
        let mut stats = self.replay.stats;
        stats.temporary_bytes =
            self.replay.temporary_bytes() + (self.found.capacity() * size_of::<Found>()) as u64;
        Ok(Recovered {
            superblock: self.superblock,
            map: self.map,
            numbers,
            index: self.replay.index,
            folds: self.replay.folds,
            segments: self.replay.segments,
            volumes,
            ranges,
            lost,
            deferred,
            stats,
        })
    }

    /// Asks for more transfers or goes to the next phase; says whether anything changed.
    fn advance(&mut self) -> bool {
        match self.phase {
            Phase::Survey => self.advance_survey(),
            Phase::Scan => self.advance_scan(),
            Phase::Replay => self.advance_replay(),
            Phase::Settle => self.advance_settle(),
            Phase::Done => false,
        }
    }

    fn transferred(&mut self, done: Done) {
        let Some((ask, segment, block)) = unname(done.id) else { return };
        match ask {
            Ask::Tail | Ask::Mark | Ask::FooterHead | Ask::First => {
                self.surveyed(ask, segment, done);
            }
            Ask::Data | Ask::DataBlock => self.data_read(ask, segment, block, done),
            Ask::Footer => self.footer_read(segment, done),
            Ask::Settle => self.settled(segment, &done),
        }
    }

    fn owner(&self, segment: u32) -> Option<Owner> {
        Some(Owner {
            cache: self.superblock.cache,
            shard: self.superblock.shard,
            segment: self.map.device_segment(segment)?,
        })
    }

    /// Asks for blocks of a segment.
    fn read(&mut self, ask: Ask, segment: u32, slot: u32, blocks: usize, block: u16) {
        if let Some(offset) = self.map.segment_offset(segment) {
            let offset = offset + u64::from(slot) * BLOCK as u64;
            self.transfer.read(name(ask, segment, block), offset, blocks * BLOCK);
        }
    }

    // ---- survey

    fn advance_survey(&mut self) -> bool {
        if self.next < self.map.segments() {
            if self.transfer.pending() >= MAX_JOBS {
                return false;
            }
            let (segment, slot) = (self.next, self.map.geometry().mark_slot());
            self.next += 1;
            self.read(Ask::Tail, segment, slot, 2, 0);
            return true;
        }
        if self.transfer.pending() > 0 {
            return false;
        }
        self.judge();
        true
    }

    fn surveyed(&mut self, ask: Ask, segment: u32, done: Done) {
        let Some(owner) = self.owner(segment) else { return };
        let geometry = self.map.geometry();
        let Some(found) = self.found.get_mut(segment as usize) else { return };
        let bytes = done.result.is_ok().then_some(done.bytes.as_slice());
        match (ask, bytes) {
            (Ask::Tail, Some(bytes)) => {
                found.mark(&owner, bytes.get(..BLOCK));
                found.footer(&owner, bytes.get(BLOCK..));
                if !found.surely_sealed() {
                    self.read(Ask::First, segment, 0, 1, 0);
                }
            }
            (Ask::Tail, None) => {
                self.read(Ask::Mark, segment, geometry.mark_slot(), 1, 0);
                self.read(Ask::FooterHead, segment, geometry.footer_slot(), 1, 0);
                self.read(Ask::First, segment, 0, 1, 0);
            }
            (Ask::Mark, bytes) => found.mark(&owner, bytes),
            (Ask::FooterHead, bytes) => found.footer(&owner, bytes),
            (_, bytes) => found.first(&owner, bytes),
        }
        self.transfer.recycle(done.bytes);
    }

    /// Judges every segment, now that all marks are known.
    fn judge(&mut self) {
        let horizon = self.found.iter().filter_map(|found| found.mark).map(|mark| mark.seal).max();
        let horizon = horizon.unwrap_or(0);
        let mut highest = 0;
        for (segment, found) in (0u32..).zip(&self.found) {
            highest = highest.max(found.highest);
            let Some(info) = self.replay.segments.get_mut(segment as usize) else { continue };
            match (found.verdict(horizon), found.footer) {
                (Verdict::Sealed, Some(head)) => {
                    info.state = SegmentState::Sealed;
                    (info.stream, info.seq, info.seal) =
                        (Some(head.name.stream), head.name.seq, head.seal);
                    // One that recovery made may have been torn by its end: the batches say what it says.
                    let copies =
                        head.name.stream == LogStream::Fill && head.dirty == 0 && !head.recovered;
                    match &mut self.deferred {
                        Some(deferred) if copies => deferred.push((head.seal, segment)),
                        _ => self.sources.sealed(segment, head, head.name.seq <= horizon),
                    }
                }
                (Verdict::Unsealed(name), _) => {
                    (info.stream, info.seq) = (Some(name.stream), name.seq);
                    self.sources.unsealed(segment, name, name.seq <= horizon);
                }
                (Verdict::Unreadable, _) => {
                    info.state = SegmentState::Bad;
                    self.replay.stats.bad += 1;
                }
                _ => info.seq = found.mark.map_or(0, |mark| mark.name.seq),
            }
        }
        self.go_on_after(highest);
        let unsealed = self.sources.unsealed_count();
        if unsealed > MAX_UNSEALED {
            let count = u32::try_from(unsealed).unwrap_or(u32::MAX);
            self.error = Some(RecoveryError::TooManyOpen(count));
        }
        self.phase = Phase::Scan;
    }

    /// Takes note of a number in the log: fresh ones are higher, and none is of a later incarnation
    /// than the superblock.
    fn go_on_after(&mut self, highest: u64) {
        if highest >= self.numbers.peek() {
            self.numbers = Numbers::after(highest);
        }
        if Numbers::incarnation(highest) > u64::from(self.superblock.incarnation) {
            self.error = Some(RecoveryError::Superseded {
                superblock: self.superblock.incarnation,
                log: Numbers::incarnation(highest),
            });
        }
    }

    // ---- scan

    fn advance_scan(&mut self) -> bool {
        if let Some(segment) = self.sources.next_scan() {
            let blocks = self.map.geometry().data_slots() as usize;
            self.read(Ask::Data, segment, 0, blocks, 0);
            return true;
        }
        if let Some((segment, slot)) = self.sources.next_block(self.transfer.pending() < MAX_JOBS) {
            self.read(Ask::DataBlock, segment, u32::from(slot), 1, slot);
            return true;
        }
        if self.phase == Phase::Scan && self.sources.all_scanned() {
            self.sources.begin();
            self.phase = Phase::Replay;
            return true;
        }
        false
    }

    fn data_read(&mut self, ask: Ask, segment: u32, block: u16, done: Done) {
        let bytes = match (ask, done.result) {
            (Ask::Data, Ok(())) => Some(done.bytes),
            (Ask::Data, Err(_)) => {
                // Block by block: what can be read is used.
                self.sources.retry_blocks(segment, done.bytes);
                None
            }
            (_, result) => {
                self.sources.block_read(segment, block, result.is_ok().then_some(&done.bytes))
            }
        };
        if let Some(bytes) = bytes {
            let replay = &self.replay;
            let checked = !self.plant.has(crate::plant::Bug::TornBatch);
            self.sources.scanned(segment, &bytes, |record| replay.key(record).filter(|_| checked));
            self.go_on_after(self.sources.highest(segment));
            self.replay.stats.scanned += 1;
            self.transfer.recycle(bytes);
        }
    }

    // ---- replay

    fn advance_replay(&mut self) -> bool {
        if self.advance_scan() {
            return true;
        }
        if self.transfer.pending() < MAX_JOBS
            && let Some((segment, bytes)) = self.sources.next_footer()
        {
            let slot = self.map.geometry().footer_slot();
            self.read(Ask::Footer, segment, slot, bytes / BLOCK, 0);
            return true;
        }
        match self.sources.replay(&mut self.replay) {
            Ok(source::Step::Progress) => true,
            Ok(source::Step::Wait) => false,
            Ok(source::Step::End) if self.replay.forgot_kills() => {
                self.start_over();
                true
            }
            Ok(source::Step::End) => {
                self.replay.sweep();
                self.begin_settle();
                true
            }
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }

    /// More was made dead than can be remembered: everything is replayed in its order instead.
    fn start_over(&mut self) {
        self.deferred = None;
        self.replay.start_over(&self.superblock);
        self.sources = Sources::new(self.map.geometry());
        self.phase = Phase::Survey;
    }

    fn footer_read(&mut self, segment: u32, done: Done) {
        let footer = if done.result.is_ok() { Some(done.bytes.as_slice()) } else { None };
        if !self.sources.footer(segment, footer) {
            // Torn by the crash, or damaged later: its batches tell the same.
            self.replay.stats.damaged_footers += 1;
            if let Some(info) = self.replay.segments.get_mut(segment as usize) {
                info.state = SegmentState::Free;
                info.seal = 0;
            }
        }
        self.transfer.recycle(done.bytes);
    }
}
