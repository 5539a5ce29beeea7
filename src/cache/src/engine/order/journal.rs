//! The ordered journal of a volume: each batch is complete on a device of its own before the backing
//! device gets anything of it.
//!
//! Rounds of destage gather the batch in the journal in place of the backing device. When all of it is
//! there, its table is written and flushed, and a header says that it is complete. From then on the
//! batch needs nothing of the cache: it is read back from the journal, written to the backing device,
//! flushed, and a header says that it is applied. Meanwhile nothing else is written to the backing
//! device, by whatever way: after a crash the batch is applied again from its begin. That is also how
//! a start completes the batch that it finds, with the cache or without it.
//!
//! The volume's dirty data is bounded by the journal, so that a batch always fits, the one that a start
//! makes of all that recovery found dirty among them.

mod apply;
mod gather;

use super::super::destage::{Written, Zeroes};
use super::super::ops::What;
use super::super::slab::Handle;
use super::super::types::BLOCK;
use super::super::volume::{Volume, spare};
use super::{CacheMode, Engine, Phase};
use crate::engine::Cx;
use crate::format::BLOCK as BLOCK_LEN;
use crate::format::order_journal::{
    Entry, Header, JournalError, State, TABLE_ENTRIES, data_crc, encode_table,
};
use crate::order_journal::{Found, OpenedJournal};
use crate::plant::Bug;
use crate::recovery::has_changes;
use apply::Piece;
use forebay_io::device::DeviceInfo;
use forebay_io::{
    Buf, BufPool, Completion, DeviceError, Duration, Instant, Lsn, Op, Uuid, VolumeId,
};

/// First and longest pause between tries of a failing journal device.
const BACKOFF_FROM: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Tries to read a piece of a batch back before it is given up and made anew from the cache.
const TRIES_MAX: u8 = 5;

/// What is done next with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is gathered, or there is none.
    Gather,
    /// Its table is written, from this block on.
    Table(u32),
    /// Data and table are made durable.
    Flush,
    /// The header that says that it is complete is written, and made durable.
    Complete,
    CompleteFlush,
    /// It is written to the backing device, which is flushed then.
    Apply,
    BackingFlush,
    /// The header that says that it is applied is written, and made durable.
    Mark,
    MarkFlush,
}

/// What an operation of the journal's is for.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::engine) enum Step {
    /// The one operation of a stage.
    #[default]
    Only,
    /// A read of a piece of the batch, from the journal.
    Read(u8),
    /// Its write to the backing device.
    Write(u8),
}

/// A volume's ordered journal.
pub(in crate::engine) struct Journal {
    info: DeviceInfo,
    /// The newest durable header.
    header: Header,
    stage: Stage,
    entries: Vec<Entry>,
    /// Blocks of data that the batch takes so far.
    data: u64,
    /// What becomes clean with the batch.
    done: Vec<Written>,
    zeroes: Vec<Zeroes>,
    end: u64,
    /// The backing device is a prefix once the batch is applied.
    whole: bool,
    under_way: bool,
    pieces: [Piece; apply::PIECES],
    next: apply::Cursor,
    /// The batch is given up: it could not be read back.
    abandoned: bool,
    /// The volume is not served before the batch is applied: there is no cache that hides it.
    cold: bool,
    failing: Option<(Instant, DeviceError)>,
    backoff: Duration,
    retry_at: Instant,
    /// A write that timed out may be carried out until then.
    doubt_until: Instant,
}

/// The state of a volume's ordered journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderJournalStats {
    /// Bytes of data that one batch may have.
    pub capacity: u64,
    /// It holds a complete batch, which the backing device has in part: a start completes it, also
    /// after the loss of the cache.
    pub complete: bool,
    /// Since when and why its device fails. No batch is begun meanwhile; what is acknowledged stays
    /// dirty in the cache.
    pub failing: Option<(Instant, DeviceError)>,
    /// The oldest of its operations that has been without an answer for long began then.
    pub hanging: Option<Instant>,
}

impl Journal {
    fn new(opened: OpenedJournal) -> Self {
        Self {
            info: opened.info,
            header: opened.header,
            stage: Stage::Gather,
            entries: Vec::new(),
            data: 0,
            done: Vec::new(),
            zeroes: Vec::new(),
            end: 0,
            whole: false,
            under_way: false,
            pieces: [Piece::default(); apply::PIECES],
            next: apply::Cursor::default(),
            abandoned: false,
            cold: false,
            failing: None,
            backoff: Duration::ZERO,
            retry_at: Instant(0),
            doubt_until: Instant(0),
        }
    }

    /// A batch is complete in it, or about to be: nothing but that batch may be written to the backing
    /// device.
    pub(in crate::engine) fn busy(&self) -> bool {
        self.stage != Stage::Gather
    }

    /// Nothing of it is under way, and nothing will be without its device or the backing device coming
    /// back.
    fn rests(&self, vol: &Volume) -> bool {
        let stuck = self.failing.is_some() || vol.health.failing.is_some();
        !self.busy() || (stuck && !self.under_way && self.pieces.iter().all(Piece::rests))
    }

    /// What was gathered is nothing any more. Nothing of it is under way.
    pub(super) fn restart(&mut self) {
        (self.data, self.abandoned) = (0, false);
        self.entries.clear();
        self.done.clear();
        self.zeroes.clear();
    }

    /// Blocks that a batch may have.
    pub(super) const fn capacity(&self) -> u64 {
        self.header.layout.data
    }

    /// When it may be tried again.
    pub(super) fn retry_at(&self) -> Instant {
        self.retry_at.max(self.doubt_until)
    }

    /// Blocks of one write at most.
    pub(in crate::engine) fn blocks_max(&self) -> u64 {
        (u64::from(self.info.max_io) / BLOCK).max(1)
    }

    pub(in crate::engine) const fn cold(&self) -> bool {
        self.cold
    }

    /// The generation of the batch's header, of its table and of its data.
    const fn batch(&self) -> u64 {
        self.header.generation + 1
    }

    fn has_room(&self, data: u64, entries: u64) -> bool {
        self.data + data <= self.header.layout.data
            && self.entries.len() as u64 + entries <= self.header.layout.entries()
    }
}

impl Volume {
    /// Whether a batch in its journal keeps all else from its backing device.
    pub(in crate::engine) fn journal_busy(&self) -> bool {
        self.order_journal.as_ref().is_some_and(|journal| journal.busy())
    }

    /// Whether a batch in its journal still has to be voided, and can be.
    pub(in crate::engine) fn journal_voids(&self) -> bool {
        self.order_journal
            .as_ref()
            .is_some_and(|journal| journal.busy() && journal.failing.is_none())
    }

    /// Whether its journal needs nothing before a stop.
    pub(in crate::engine) fn journal_rests(&self) -> bool {
        self.order_journal.as_ref().is_none_or(|journal| journal.rests(self))
    }

    /// Whether what is destaged goes through its journal.
    pub(in crate::engine) fn in_journal(&self) -> bool {
        self.order_journal.is_some() && self.in_batches()
    }

    /// Whether all that is dirty fits the journal as one batch.
    pub(super) fn fits_journal(&self) -> bool {
        self.order_journal.as_ref().is_none_or(|journal| {
            let layout = journal.header.layout;
            self.dirty <= layout.data && self.dirty + self.ranges.len() as u64 <= layout.entries()
        })
    }
}

impl<B: Buf> Engine<B> {
    /// Gives a volume its ordered journal: right after `add_volume`, or later, while it has none. A
    /// complete batch that was found there is applied: before the volume is served where the cache does
    /// not know it (it was lost), else while it is served. Where the cache knows the volume and has
    /// destaged some of that batch or forgotten it, the batch is out of date and dropped: what is applied
    /// is trimmed in the log only after the journal says that it is.
    ///
    /// # Errors
    /// [`JournalError::BatchDamaged`] where the cache does not know the volume and the batch cannot be
    /// read back; [`JournalError::InUse`] where the volume has a journal, or is served and the batch of
    /// this one came before; nothing changed.
    pub fn set_ordered_journal(
        &mut self,
        id: VolumeId,
        opened: OpenedJournal,
    ) -> Result<(), JournalError> {
        let Some(place) = self.vols.find(id) else { return Ok(()) };
        let Some(vol) = self.vols.get(place) else { return Ok(()) };
        let known = vol.known;
        if vol.order_journal.is_some() || (vol.attached && opened.found != Found::Nothing) {
            return Err(JournalError::InUse);
        }
        if !known && opened.found == Found::Damaged {
            return Err(JournalError::BatchDamaged);
        }
        let found = opened.found.clone();
        let mut journal = Journal::new(opened);
        match found {
            Found::Nothing => {}
            Found::Batch(entries) => {
                let wanted = !known || self.all_dirty(place, &entries);
                journal.stage = if wanted { Stage::Apply } else { Stage::Mark };
                (journal.entries, journal.cold) = (entries, !known);
            }
            Found::Damaged => journal.stage = Stage::Mark,
        }
        if let Some(vol) = self.vols.get_mut(place) {
            vol.order_journal = Some(Box::new(journal));
            if let Some(order) = vol.order.as_mut().filter(|order| order.phase == Phase::Batch) {
                // What of it is on the backing device already is not in the journal.
                order.extend = true;
            }
        }
        Ok(())
    }

    /// Whether the cache knows changes of a volume that may be added: where it does not, a batch that its
    /// ordered journal holds must be readable.
    #[must_use]
    pub fn knows(&self, volume: Uuid) -> bool {
        let entry = self.supers.block.volumes.iter().find(|entry| entry.uuid == volume);
        entry.is_some_and(|entry| {
            let found = self.found.iter().find(|found| found.volume == entry.index);
            has_changes(found.map_or(entry.accounted.0, |found| found.last.0))
        })
    }

    /// Whether each block of a batch is dirty still.
    fn all_dirty(&self, place: u16, entries: &[Entry]) -> bool {
        let Some(vol) = self.vols.get(place) else { return false };
        let dirty = |block: u64| {
            let entry = self.vols.key(place, block).and_then(|key| self.index.get(key));
            entry.is_some_and(|entry| entry.flags.dirty())
                || vol.ranges.get(block).is_some_and(|range| range.dirty)
        };
        entries.iter().all(|entry| match *entry {
            Entry::Data { block, .. } => dirty(block),
            Entry::Zeroes { block, blocks } => (block..block + u64::from(blocks)).all(dirty),
        })
    }

    /// How full of a volume's dirty data its journal is, in thousandths, with a request that comes: a
    /// write waits where its batch might not fit.
    pub(in crate::engine) fn journal_level(&self, h: Handle) -> u64 {
        let Some(req) = self.reqs.get(h) else { return 0 };
        let Some(vol) = self.vols.get(req.volume) else { return 0 };
        let Some(journal) = vol.order_journal.as_ref() else { return 0 };
        if vol.mode != CacheMode::WriteBackOrdered {
            return 0;
        }
        let pending: u64 = vol.pending.iter().map(|p| p.blocks).sum();
        let units = vol.dirty + pending;
        if units > 0 && units + req.blocks().1 > journal.capacity() {
            return 1000;
        }
        (units * 1000 / journal.capacity()).min(999)
    }

    /// The state of a volume's journal.
    pub(in crate::engine) fn journal_stats(&self, place: u16) -> Option<OrderJournalStats> {
        let journal = self.vols.get(place)?.order_journal.as_ref()?;
        Some(OrderJournalStats {
            capacity: journal.capacity() * BLOCK,
            complete: journal.header.state == State::Complete,
            failing: journal.failing,
            hanging: self.journal_silent(place, self.last_poll),
        })
    }

    /// Whether a batch is on its way through a journal, with all devices well: its trims come at its end,
    /// and what is moved before that only fills the log and has to be gathered again.
    pub(in crate::engine) fn trims_come(&self) -> bool {
        self.vols.iter().any(|(_, vol)| {
            let well = vol.health.failing.is_none() && vol.health.hanging.is_none();
            let journal = vol.order_journal.as_ref().filter(|journal| journal.failing.is_none());
            let order = vol.order.as_ref();
            let under_way = journal.is_some_and(|journal| {
                journal.busy()
                    || self.destage.wrote()
                    || order.is_some_and(|order| order.phase == Phase::Batch)
            });
            well && under_way
        })
    }

    /// All of the batch is gathered: it is completed in the journal. `false` where there is nothing of
    /// it, or no journal.
    pub(super) fn journal_commit(&mut self, place: u16, whole: bool) -> bool {
        let Some(vol) = self.vols.get_mut(place) else { return false };
        let (Some(order), Some(journal)) = (vol.order.as_mut(), vol.order_journal.as_mut()) else {
            return false;
        };
        if journal.entries.is_empty() {
            return false;
        }
        (journal.end, journal.whole, journal.stage) = (order.end, whole, Stage::Table(0));
        self.order_release(place);
        true
    }

    /// Goes on with all batches that are complete, or about to be.
    pub(in crate::engine) fn journals_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        for place in 0..self.vols.bound() {
            while self.vols.get(place).is_some_and(Volume::journal_busy)
                && self.journal_step(cx, place)
            {}
        }
    }

    /// One step of a volume's; `true` where another may follow at once.
    fn journal_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16) -> bool {
        let ordered = self.vols.get(place).is_some_and(|vol| vol.order.is_some());
        let Some(vol) = self.vols.get_mut(place) else { return false };
        let volatile = vol.backing.volatile_write_cache;
        let (doubts, discards) = (vol.doubts > 0, vol.discards());
        let Some(journal) = vol.order_journal.as_mut() else { return false };
        if journal.under_way || journal.retry_at() > cx.now {
            return false;
        }
        let begun = !matches!(journal.stage, Stage::Table(_) | Stage::Flush);
        if !begun && !ordered {
            // The order was given up before anything says that the batch is complete.
            journal.stage = Stage::Gather;
            journal.restart();
            return false;
        }
        if discards && matches!(journal.stage, Stage::Apply | Stage::BackingFlush) {
            // Its data is given up: the batch is voided, whatever the backing device has of it.
            (journal.stage, journal.abandoned) = (Stage::Apply, true);
        }
        let flushes = journal.info.volatile_write_cache;
        let skipped = match journal.stage {
            Stage::Flush => self.plant.has(Bug::JournalUnflushed),
            Stage::CompleteFlush => self.plant.has(Bug::JournalHeaderNotAwaited),
            Stage::BackingFlush => self.plant.has(Bug::JournalApplyUnflushed),
            _ => false,
        };
        if skipped {
            self.stage_done(cx, place);
            return true;
        }
        match journal.stage {
            Stage::Gather => false,
            Stage::Table(index) => {
                let done = index as usize * TABLE_ENTRIES >= journal.entries.len();
                if done {
                    journal.stage = Stage::Flush;
                    return true;
                }
                self.table_write(cx, place, index);
                false
            }
            Stage::Flush | Stage::CompleteFlush | Stage::MarkFlush if !flushes => {
                self.stage_done(cx, place);
                true
            }
            Stage::Flush | Stage::CompleteFlush | Stage::MarkFlush => {
                journal.under_way = true;
                self.journal_op(
                    cx.now,
                    place,
                    What::Ordered { place, step: Step::Only },
                    Op::flush(0),
                );
                false
            }
            Stage::Complete | Stage::Mark => {
                self.header_write(cx, place);
                false
            }
            Stage::Apply => !doubts && self.apply_step(cx, place),
            Stage::BackingFlush if !volatile => {
                self.stage_done(cx, place);
                true
            }
            Stage::BackingFlush => {
                if !self.apply_willing(place, cx.now) {
                    return false;
                }
                if let Some(journal) = self.journal_mut(place) {
                    journal.under_way = true;
                }
                let what = What::Ordered { place, step: Step::Only };
                self.backing_op(cx.now, place, what, Op::flush(0));
                false
            }
        }
    }

    fn journal_mut(&mut self, place: u16) -> Option<&mut Journal> {
        self.vols.get_mut(place)?.order_journal.as_deref_mut()
    }

    fn table_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16, index: u32) {
        let Some(mut buf) = self.alloc(cx, BLOCK) else { return };
        let Some(journal) = self.journal_mut(place) else { return };
        let Some(out) = buf.as_mut_slice().and_then(|out| out.first_chunk_mut()) else { return };
        let from = index as usize * TABLE_ENTRIES;
        let entries = journal.entries.get(from..).unwrap_or_default();
        encode_table(journal.batch(), index, entries, out);
        journal.under_way = true;
        let at = journal.header.layout.table_offset(u64::from(index));
        let what = What::Ordered { place, step: Step::Only };
        self.journal_op(cx.now, place, what, Op::write(0, at, BLOCK, buf));
    }

    /// The header that comes next.
    fn next_header(journal: &Journal) -> Header {
        let complete = journal.stage == Stage::Complete || journal.stage == Stage::CompleteFlush;
        let mut header = journal.header.clone();
        header.generation += 1;
        if complete {
            (header.batch, header.end) = (header.generation, Lsn(journal.end));
            (header.state, header.entries) = (State::Complete, journal.entries.len() as u64);
        } else {
            header.state = State::Nothing;
        }
        header
    }

    fn header_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16) {
        let Some(mut buf) = self.alloc(cx, BLOCK) else { return };
        let Some(journal) = self.journal_mut(place) else { return };
        let header = Self::next_header(journal);
        let Some(out) = buf.as_mut_slice().and_then(|out| out.first_chunk_mut()) else { return };
        if !header.encode(out) {
            // 2⁶³ headers: never.
            return;
        }
        journal.under_way = true;
        let complete = header.state == State::Complete;
        let mut op = Op::write(0, header.offset(), BLOCK, buf);
        op.fua = !(complete && self.plant.has(Bug::JournalHeaderNotAwaited));
        self.journal_op(cx.now, place, What::Ordered { place, step: Step::Only }, op);
    }

    /// An operation of the journal's has ended.
    pub(in crate::engine) fn journal_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        step: Step,
        done: Completion<B>,
    ) {
        match step {
            Step::Read(at) => return self.piece_read(cx, place, at, done),
            Step::Write(at) => return self.piece_written(cx, place, at, done.result),
            Step::Only => {}
        }
        let Some(journal) = self.journal_mut(place) else { return };
        journal.under_way = false;
        let stage = journal.stage;
        if let Err(error) = done.result {
            if stage == Stage::BackingFlush {
                // Whatever it has not flushed is written again.
                journal.stage = Stage::Apply;
                journal.next = apply::Cursor::default();
                return self.backing_error(cx, place, error);
            }
            self.journal_error(cx.now, place, error);
            let Some(vol) = self.vols.get_mut(place) else { return };
            let Some(journal) = vol.order_journal.as_mut() else { return };
            match stage {
                // A flush that failed says nothing of what was written before it.
                Stage::Flush => {
                    let at = journal.retry_at();
                    journal.stage = Stage::Gather;
                    if let Some(order) = vol.order.as_mut() {
                        (order.extend, order.retry_at) = (order.phase == Phase::Batch, at);
                    }
                }
                Stage::CompleteFlush => journal.stage = Stage::Complete,
                Stage::MarkFlush => journal.stage = Stage::Mark,
                _ => {}
            }
            return;
        }
        if stage == Stage::BackingFlush {
            self.backing_good(cx, place);
        } else {
            self.journal_good(place);
        }
        self.stage_done(cx, place);
    }

    /// What a stage is for is reached.
    fn stage_done<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16) {
        let Some(journal) = self.journal_mut(place) else { return };
        journal.stage = match journal.stage {
            Stage::Gather => Stage::Gather,
            Stage::Table(index) => Stage::Table(index + 1),
            Stage::Flush => Stage::Complete,
            Stage::Complete => Stage::CompleteFlush,
            Stage::CompleteFlush => {
                journal.header = Self::next_header(journal);
                journal.next = apply::Cursor::default();
                journal.stage = Stage::Apply;
                if self.plant.has(Bug::JournalTrimEarly) {
                    self.journal_trims(cx.now, place, true);
                }
                return;
            }
            Stage::Apply => Stage::BackingFlush,
            Stage::BackingFlush => Stage::Mark,
            Stage::Mark => Stage::MarkFlush,
            Stage::MarkFlush => {
                journal.header = Self::next_header(journal);
                return self.journal_applied(cx, place);
            }
        };
    }

    /// The batch is applied, and the journal says so: what it wrote may be trimmed.
    fn journal_applied<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16) {
        let failed = self.cache_failed.is_some();
        let Some(journal) = self.journal_mut(place) else { return };
        journal.stage = Stage::Gather;
        journal.cold = false;
        let (whole, end, good) = (journal.whole, journal.end, !journal.abandoned && !failed);
        journal.whole = false;
        self.journal_trims(cx.now, place, good);
        if let Some(journal) = self.journal_mut(place) {
            journal.restart();
        }
        let Some(vol) = self.vols.get_mut(place) else { return };
        if let Some(order) = vol.order.as_mut().filter(|order| order.phase == Phase::Batch) {
            if order.extend {
                // What was moved meanwhile is dirty still.
                order.open_since.get_or_insert(cx.now);
            }
            order.held = (whole && good).then_some(end);
            (order.phase, order.writing, order.extend) = (Phase::Open, false, false);
            if !good {
                order.phase = Phase::Entering;
            }
        }
        self.attach_step();
    }

    /// What a batch wrote awaits its trim, if it is `good`.
    fn journal_trims(&mut self, now: Instant, place: u16, good: bool) {
        let Some(journal) = self.journal_mut(place) else { return };
        let mut done = core::mem::take(&mut journal.done);
        let mut zeroes = core::mem::take(&mut journal.zeroes);
        for w in done.drain(..).filter(|_| good) {
            let same = self.lives(w.slot, w.life);
            let Some(key) = self.vols.key(w.place, w.block).filter(|_| same) else { continue };
            let old = self.index.update_if_slot(key, w.slot, |flags| {
                if flags.dirty() { flags.with_spare(flags.spare() | spare::WRITTEN) } else { flags }
            });
            if old.is_some_and(|flags| flags.dirty()) {
                self.destage.written(now, w);
            }
        }
        for z in zeroes.drain(..).filter(|_| good) {
            self.destage.zeroes_written(now, z);
        }
        if let Some(journal) = self.journal_mut(place) {
            // Their room is kept.
            (journal.done, journal.zeroes) = (done, zeroes);
        }
    }

    fn journal_error(&mut self, now: Instant, place: u16, error: DeviceError) {
        let timeout = self.limits.op_timeout;
        let Some(journal) = self.journal_mut(place) else { return };
        let began = journal.failing.is_none();
        journal.failing = Some((journal.failing.map_or(now, |(since, _)| since), error));
        if began || journal.retry_at <= now {
            let longer = (journal.backoff * 2).clamp(BACKOFF_FROM, BACKOFF_MAX);
            journal.backoff = if began { BACKOFF_FROM } else { longer };
            journal.retry_at = now + journal.backoff;
        }
        if error == DeviceError::Timeout {
            journal.doubt_until = now + timeout;
        }
    }

    fn journal_good(&mut self, place: u16) {
        if let Some(journal) = self.journal_mut(place) {
            (journal.failing, journal.backoff) = (None, Duration::ZERO);
        }
    }

    /// When a journal is to be gone on with.
    pub(in crate::engine) fn journals_deadline(&self) -> Instant {
        let mut at = Instant::NEVER;
        for (_, vol) in self.vols.iter() {
            let Some(journal) = vol.order_journal.as_ref().filter(|j| j.busy()) else { continue };
            let applies = journal.stage == Stage::Apply;
            if journal.under_way || (applies && !journal.waits()) {
                continue;
            }
            let soon = self.last_poll + super::super::throttle::RETRY;
            let backing = if vol.health.failing.is_some() { vol.health.retry_at } else { soon };
            let waits = matches!(journal.stage, Stage::Apply | Stage::BackingFlush);
            let then = journal.retry_at().max(if waits { backing } else { Instant(0) });
            at = at.min(then.max(soon));
        }
        at
    }
}
