//! Opening the journal of `write-back-ordered`: reads its headers, makes it where the device is blank,
//! and reads a complete batch back, all of it, before anything of it is written anywhere.

use crate::format::device::{DEVICE_MAGIC, PROBE_BYTES, foreign};
use crate::format::order_journal::{
    Entry, HEADERS, Header, JournalError, Layout, State, TABLE_ENTRIES, data_crc, least_bytes,
    newest, parse_table,
};
use crate::format::superblock::VolumeEntry;
use crate::format::{BLOCK, BLOCK_U64};
use forebay_io::device::DeviceInfo;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Lsn, Op, Uuid};

/// Blocks of one read of data at most.
const READ_MAX: u64 = 64;

/// The batch that a journal was found with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// None: the backing device has all that ever was in the journal.
    Nothing,
    /// A complete batch, which could be read back and matches its CRCs.
    Batch(Vec<Entry>),
    /// A complete batch, of which something cannot be read back.
    Damaged,
}

/// A journal that was opened, for [`Engine::set_ordered_journal`](crate::engine::Engine::set_ordered_journal).
#[derive(Clone, Debug)]
pub struct OpenedJournal {
    /// What its device states of itself.
    pub info: DeviceInfo,
    /// Its newest header.
    pub header: Header,
    /// What it holds.
    pub found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Headers,
    /// What is there in place of a journal is looked at, up to here so far.
    Probe(usize),
    Make,
    MakeFlush,
    Table(u32),
    Data(u64),
    Done,
}

/// What is expected of a journal's device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expect {
    /// The journal that the volume had all the time, or none yet: a blank device is made one.
    #[default]
    Anything,
    /// The volume was written without this journal since, if it ever was its: a batch in it is out of
    /// date and is voided.
    Outdated,
    /// Only to be looked at: nothing is written.
    Look,
}

/// Opens a journal. Drive it until [`JournalOpener::result`] is some; one operation is under way at once.
#[derive(Debug)]
pub struct JournalOpener {
    info: DeviceInfo,
    volume: Uuid,
    backing: (String, u64),
    expect: Expect,
    step: Step,
    under_way: bool,
    probed: Vec<u8>,
    header: Option<Header>,
    entries: Vec<Entry>,
    /// The data entries: block and CRC, in the order of their slots.
    data: Vec<(u64, u32)>,
    result: Option<Result<OpenedJournal, JournalError>>,
}

impl JournalOpener {
    /// Opens the journal of this volume and backing device on a device that states `journal` of itself.
    #[must_use]
    pub fn new(volume: Uuid, backing: &DeviceInfo, journal: &DeviceInfo) -> Self {
        let wanted = least_bytes();
        let small = journal.size < wanted || Layout::of(journal.size).is_none();
        Self {
            info: journal.clone(),
            volume,
            backing: (VolumeEntry::identity_text(&backing.identity), backing.size),
            expect: Expect::Anything,
            step: Step::Headers,
            under_way: false,
            probed: Vec::new(),
            header: None,
            entries: Vec::new(),
            data: Vec::new(),
            result: small.then_some(Err(JournalError::TooSmall { found: journal.size, wanted })),
        }
    }

    /// With what is expected there.
    #[must_use]
    pub const fn expecting(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    /// How it ended.
    pub fn result(&mut self) -> Option<Result<OpenedJournal, JournalError>> {
        self.result.take()
    }

    /// The next operation for the journal device; `None` while one is under way, at the end, and while
    /// the pool has no buffer.
    pub fn poll_action<P: BufPool>(&mut self, pool: &mut P) -> Option<Op<P::Buf>> {
        if self.under_way || self.result.is_some() {
            return None;
        }
        let op = match self.step {
            Step::Headers => {
                let len = HEADERS * BLOCK_U64;
                Op::read(0, 0, len, pool.alloc(usize::try_from(len).ok()?)?)
            }
            Step::Probe(at) => {
                let len = self.probe_len(at);
                Op::read(0, at as u64, len as u64, pool.alloc(len)?)
            }
            Step::Make => {
                let header = self.header.as_ref()?;
                let mut buf = pool.alloc(BLOCK)?;
                let out = buf.as_mut_slice()?.first_chunk_mut()?;
                if !header.encode(out) {
                    self.result = Some(Err(JournalError::Damaged));
                    return None;
                }
                Op::write(0, header.offset(), BLOCK_U64, buf)
            }
            Step::MakeFlush => Op::flush(0),
            Step::Table(index) => {
                let at = self.header.as_ref()?.layout.table_offset(u64::from(index));
                Op::read(0, at, BLOCK_U64, pool.alloc(BLOCK)?)
            }
            Step::Data(slot) => {
                let at = self.header.as_ref()?.layout.data_offset(slot);
                let len = self.blocks(slot) * BLOCK_U64;
                Op::read(0, at, len, pool.alloc(usize::try_from(len).ok()?)?)
            }
            Step::Done => return None,
        };
        self.under_way = true;
        Some(op)
    }

    fn probe_len(&self, at: usize) -> usize {
        let most = usize::try_from(self.info.max_io).unwrap_or(BLOCK) / BLOCK * BLOCK;
        (PROBE_BYTES - at).min(most.max(BLOCK))
    }

    fn blocks(&self, slot: u64) -> u64 {
        let most = READ_MAX.min(u64::from(self.info.max_io) / BLOCK_U64).max(1);
        (self.data.len() as u64).saturating_sub(slot).min(most)
    }

    /// Takes the end of an operation.
    pub fn handle_completion<B: Buf>(&mut self, done: Completion<B>) {
        self.under_way = false;
        if let Err(error) = done.result {
            // What a complete batch holds may be a matter of a single sector that cannot be read; a device
            // that does not answer, or is gone, says nothing of it.
            let unreadable = matches!(error, DeviceError::Io(_) | DeviceError::Media);
            if unreadable && matches!(self.step, Step::Table(_) | Step::Data(_)) {
                self.finish(Found::Damaged);
            } else {
                self.result = Some(Err(JournalError::Device(error)));
            }
            return;
        }
        let bytes = done.buf.as_ref().map(Buf::as_slice).unwrap_or_default();
        match self.step {
            Step::Headers => {
                if let Err(error) = self.headers(bytes) {
                    self.result = Some(Err(error));
                }
            }
            Step::Probe(at) => self.probe(at, bytes),
            Step::Make => self.step = Step::MakeFlush,
            Step::MakeFlush => self.finish(Found::Nothing),
            Step::Table(index) => self.table(index, bytes),
            Step::Data(slot) => self.check(slot, bytes),
            Step::Done => {}
        }
    }

    fn headers(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let (identity, size) = &self.backing;
        let header = match newest(bytes) {
            Ok(Some(header)) => header,
            // It is no journal: what is it?
            Ok(None) | Err(JournalError::Foreign(_)) => {
                self.step = Step::Probe(0);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if header.volume != self.volume {
            return Err(JournalError::OtherVolume(header.volume));
        }
        if header.backing_identity != *identity {
            let recorded = header.backing_identity;
            return Err(JournalError::OtherBacking { recorded, found: identity.clone() });
        }
        if header.backing_size != *size {
            let recorded = header.backing_size;
            return Err(JournalError::OtherSize { recorded, found: *size });
        }
        if header.layout.bytes() > self.info.size {
            let (recorded, found) = (header.layout.bytes(), self.info.size);
            return Err(JournalError::CutShort { recorded, found });
        }
        let complete = header.state == State::Complete && header.entries > 0;
        if complete && self.expect == Expect::Outdated {
            let generation = header.generation + 1;
            self.header = Some(Header { generation, state: State::Nothing, ..header });
            self.step = Step::Make;
            return Ok(());
        }
        self.header = Some(header);
        if complete {
            self.step = Step::Table(0);
        } else {
            self.finish(Found::Nothing);
        }
        Ok(())
    }

    /// Takes a part of what is there in place of a journal. Blank to the end of what other formats
    /// begin with, it is made a journal.
    fn probe(&mut self, at: usize, bytes: &[u8]) {
        self.probed.extend_from_slice(bytes);
        let next = at + self.probe_len(at);
        self.step = Step::Probe(next);
        if next < PROBE_BYTES {
            return;
        }
        let probed = core::mem::take(&mut self.probed);
        if probed.iter().any(|byte| *byte != 0) {
            let ours = probed.starts_with(&DEVICE_MAGIC).then_some("a Forebay cache");
            self.result = Some(Err(JournalError::Foreign(ours.or_else(|| foreign(&probed)))));
            return;
        }
        let Some(layout) = Layout::of(self.info.size) else { return };
        let (backing_identity, backing_size) = self.backing.clone();
        self.header = Some(Header {
            volume: self.volume,
            generation: 1,
            state: State::Nothing,
            layout,
            batch: 0,
            end: Lsn(0),
            entries: 0,
            backing_size,
            backing_identity,
        });
        match self.expect {
            Expect::Look => self.finish(Found::Nothing),
            Expect::Anything | Expect::Outdated => self.step = Step::Make,
        }
    }

    fn table(&mut self, index: u32, bytes: &[u8]) {
        let Some(header) = &self.header else { return };
        let (batch, wanted) = (header.batch, header.entries);
        let before = self.entries.len() as u64;
        let parsed = parse_table(bytes, batch, index, &mut self.entries);
        let got = self.entries.len() as u64;
        if parsed.is_none() || got - before != (wanted - before).min(TABLE_ENTRIES as u64) {
            return self.finish(Found::Damaged);
        }
        self.step = Step::Table(index + 1);
        if got < wanted {
            return;
        }
        let size = self.backing.1.div_ceil(BLOCK_U64);
        let mut inside = true;
        for entry in &self.entries {
            let (block, blocks) = match *entry {
                Entry::Data { block, crc } => {
                    self.data.push((block, crc));
                    (block, 1)
                }
                Entry::Zeroes { block, blocks } => (block, u64::from(blocks)),
            };
            inside &= block + blocks <= size;
        }
        if !inside || self.data.len() as u64 > header.layout.data {
            self.finish(Found::Damaged);
        } else if self.data.is_empty() {
            self.complete();
        } else {
            self.step = Step::Data(0);
        }
    }

    fn check(&mut self, slot: u64, bytes: &[u8]) {
        let Some(batch) = self.header.as_ref().map(|header| header.batch) else { return };
        let from = usize::try_from(slot).unwrap_or(usize::MAX);
        let blocks = usize::try_from(self.blocks(slot)).unwrap_or(0);
        let wanted = self.data.get(from..from + blocks).unwrap_or_default();
        let good = bytes.len() == blocks * BLOCK
            && wanted
                .iter()
                .zip(bytes.chunks(BLOCK))
                .all(|((block, crc), data)| data_crc(self.volume, batch, *block, data) == *crc);
        let next = from + blocks;
        if !good {
            self.finish(Found::Damaged);
        } else if next < self.data.len() {
            self.step = Step::Data(next as u64);
        } else {
            self.complete();
        }
    }

    fn complete(&mut self) {
        let entries = core::mem::take(&mut self.entries);
        self.finish(Found::Batch(entries));
    }

    fn finish(&mut self, found: Found) {
        self.step = Step::Done;
        if let Some(header) = self.header.take() {
            self.result = Some(Ok(OpenedJournal { info: self.info.clone(), header, found }));
        }
    }
}
