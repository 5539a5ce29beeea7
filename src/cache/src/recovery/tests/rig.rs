//! A disk in memory, a writer of logs, and a driver for the recovery.

use crate::engine::{Action, Engine, EngineConfig, Limits, Source};
use crate::format::batch::{BatchBuilder, SegmentName};
use crate::format::device::DeviceHeader;
use crate::format::footer::{FreeMark, Keep, build_footer};
use crate::format::geometry::{LogStream, Numbers, ShardMap};
use crate::format::open::{Opened, Opener};
use crate::format::plan::{FormatOptions, Step, plan};
use crate::format::record::{Kind, Record};
use crate::format::segment_log::SegmentLog;
use crate::format::superblock::{Superblock, VolumeEntry};
use crate::format::{BLOCK, BLOCK_U64};
use crate::index::{Index, Key};
use crate::policy::PolicyKind;
use crate::recovery::{Recovered, Recovery, RecoveryError};
use forebay_io::{
    Completion, DeviceError, DeviceInfo, Epoch, HeapBuf, HeapPool, Instant, Lsn, Op, OpKind, Uuid,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) const SLOTS: u32 = 32;
pub(super) const SEGMENTS: u64 = 12;

/// Bytes that can be read and written, some of which cannot.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    /// Blocks that cannot be read.
    pub(super) unreadable: BTreeSet<u64>,
    /// Writes since it was made, each with what it wrote.
    pub(super) writes: Vec<(u64, Vec<u8>)>,
    pub(super) flushes: usize,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, unreadable: BTreeSet::new(), writes: Vec::new(), flushes: 0 }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn execute(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        let at = usize::try_from(op.offset).unwrap();
        let len = usize::try_from(op.len).unwrap();
        let mut buf = op.buf;
        let mut result = Ok(());
        match op.kind {
            OpKind::Read => {
                let blocks = op.offset / BLOCK_U64..(op.offset + op.len).div_ceil(BLOCK_U64);
                if blocks.into_iter().any(|block| self.unreadable.contains(&block)) {
                    result = Err(DeviceError::Media);
                } else {
                    let out = buf.as_mut().and_then(forebay_io::Buf::as_mut_slice).unwrap();
                    out[..len].copy_from_slice(&self.bytes[at..at + len]);
                }
            }
            OpKind::Write => {
                let data = forebay_io::Buf::as_slice(buf.as_ref().unwrap())[..len].to_vec();
                self.write(op.offset, &data);
                self.writes.push((op.offset, data));
            }
            OpKind::Flush => self.flushes += 1,
            _ => result = Err(DeviceError::Unsupported),
        }
        Completion { token: op.token, result, buf }
    }
}

pub(super) fn info(size: u64) -> DeviceInfo {
    DeviceInfo {
        size,
        block_size: 512,
        atomic_write: 512,
        volatile_write_cache: false,
        optimal_io: 4096,
        max_io: 1 << 20,
        deallocate: false,
        write_zeroes: false,
        identity: "test".to_owned(),
    }
}

pub(super) fn cache_uuid() -> Uuid {
    Uuid::from_random([0xca; 16])
}

pub(super) fn open(disk: &mut Disk) -> Result<Opened, crate::format::device::OpenError> {
    let mut opener = Opener::new(disk.bytes.len() as u64, None);
    loop {
        while let Some(op) = opener.poll_action(&mut HeapPool) {
            opener.handle_completion(disk.execute(op));
        }
        if let Some(result) = opener.result() {
            return result;
        }
    }
}

pub(super) fn recover(disk: &mut Disk) -> Result<Recovered, RecoveryError> {
    recover_with(disk, false)
}

pub(super) fn recover_with(disk: &mut Disk, read_only: bool) -> Result<Recovered, RecoveryError> {
    let opened = open(disk).unwrap();
    // What is refused is refused in stages, too, before anything is written.
    let mut copy = disk.clone();
    let staged = new_recovery(&opened, read_only).and_then(|new| drive(&mut copy, new.staged()));
    let got = new_recovery(&opened, read_only).and_then(|new| drive(disk, new));
    assert_eq!(staged.as_ref().err(), got.as_ref().err());
    if !matches!(staged, Ok(_) | Err(RecoveryError::Write(_))) {
        assert!(copy.bytes == disk.bytes);
    }
    got
}

fn new_recovery(opened: &Opened, read_only: bool) -> Result<Recovery, RecoveryError> {
    let map = opened.map(0).unwrap();
    let last = u32::try_from(map.slots() - 1).unwrap();
    let index = Index::new(map.data_slots(), last, 7).unwrap();
    Recovery::new(opened, 0, index, read_only)
}

/// Blocks that an engine has in its index once it has loaded what a staged recovery left to it, and
/// what that recovery found.
pub(super) fn warmed(disk: &mut Disk) -> (u64, Recovered) {
    let opened = open(disk).unwrap();
    let staged =
        |disk: &mut Disk| drive(disk, new_recovery(&opened, false).unwrap().staged()).unwrap();
    let found = staged(&mut disk.clone());
    let config = EngineConfig {
        limits: Limits::default(),
        tier_pages: 0,
        policy: PolicyKind::default(),
        ghost_blocks: 16,
        volatile_write_cache: false,
    };
    let mut engine = Engine::new(&config, opened.header, staged(disk));
    let now = Instant(1);
    while engine.stats(now).warming > 0 {
        engine.end_of_poll(&mut HeapPool, now);
        while let Some(Action::Cache(op)) = engine.poll_action() {
            // Nothing is freed meanwhile: no write ends.
            if op.kind == OpKind::Read {
                let done = disk.execute(op);
                engine.handle_completion(Source::Cache, done, &mut HeapPool, now);
            }
        }
    }
    (engine.stats(now).cached_blocks, found)
}

fn drive(disk: &mut Disk, mut recovery: Recovery) -> Result<Recovered, RecoveryError> {
    let mut flying = Vec::new();
    while !recovery.is_done() {
        // Many in flight, completed in the reverse order of submission.
        while let Some(op) = recovery.poll_action(&mut HeapPool) {
            flying.push(op);
        }
        assert!(!flying.is_empty() || recovery.is_done(), "recovery is stuck");
        for op in flying.drain(..).rev() {
            recovery.handle_completion(disk.execute(op));
        }
    }
    recovery.finish()
}

/// What recovery found, in a form to compare: (volume, block) → (slot, dirty).
pub(super) fn content(recovered: &Recovered) -> BTreeMap<(u16, u64), (u32, bool)> {
    let mut all = BTreeMap::new();
    recovered.index.for_each(|key, entry| {
        all.insert((key.volume(), key.block()), (entry.slot, entry.flags.dirty()));
    });
    all
}

struct Open {
    segment: u32,
    seq: u64,
    used: u16,
    log: SegmentLog,
}

/// A batch that is ready to be written.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// One record to be placed: without data `None`.
pub(super) type Item = (Record, Option<Vec<u8>>);

/// Makes logs as an engine would.
pub(super) struct Writer {
    pub(super) disk: Disk,
    pub(super) header: DeviceHeader,
    pub(super) map: ShardMap,
    pub(super) superblock: Superblock,
    pub(super) numbers: Numbers,
    open: BTreeMap<LogStream, Open>,
    /// Ended, and without a footer yet.
    parked: BTreeMap<LogStream, VecDeque<Open>>,
    pub(super) free: Vec<u32>,
    pub(super) durable_below: u64,
}

pub(crate) fn volume(index: u16, generation: u32) -> VolumeEntry {
    let tag = u8::try_from(index).unwrap() + 1;
    VolumeEntry {
        index,
        generation,
        uuid: Uuid::from_random([tag; 16]),
        journal: Uuid::from_random([tag + 100; 16]),
        epoch: Epoch(1),
        promised: Epoch(1),
        accounted: Lsn(0),
        base: Lsn(0),
        size: 1 << 48,
        block_size: 512,
        clean: false,
        mode: 3,
        backing_size: 1 << 40,
        backing_identity: "file:1:2".to_owned(),
        name: format!("vol{index}"),
    }
}

impl Writer {
    /// A formatted device with volumes 0 and 1 after its first start; what was there before the
    /// format is not zero.
    pub(super) fn new() -> Self {
        Self::blank(0x5a)
    }

    /// The same on a device full of these bytes.
    pub(super) fn blank(filler: u8) -> Self {
        let geometry = crate::format::geometry::Geometry::new(SLOTS).unwrap();
        let size = crate::format::device::segments_offset(1, geometry)
            + SEGMENTS * geometry.segment_bytes();
        let mut options = FormatOptions::new(cache_uuid());
        options.shards = Some(1);
        options.segment_slots = Some(SLOTS);
        let plan = plan(&info(size), &options).unwrap();
        let mut disk = Disk::new(vec![filler; usize::try_from(size).unwrap()]);
        for step in plan.steps {
            if let Step::Write { offset, bytes } = step {
                disk.write(offset, &bytes);
            }
        }
        let opened = open(&mut disk).unwrap();
        let mut superblock = opened.shards[0].clone();
        for index in 0..2 {
            let generation = superblock.take_generation();
            superblock.volumes.push(volume(index, generation));
        }
        let mut writer = Self {
            map: opened.map(0).unwrap(),
            header: opened.header,
            superblock,
            numbers: Numbers::after(0),
            open: BTreeMap::new(),
            parked: BTreeMap::new(),
            free: (0..u32::try_from(SEGMENTS).unwrap()).rev().collect(),
            disk,
            durable_below: 0,
        };
        writer.write_superblock();
        writer.restart();
        writer
    }

    pub(super) fn write_superblock(&mut self) {
        for _ in 0..2 {
            self.superblock.generation += 1;
            let mut bytes = vec![0; self.superblock.encoded_len()];
            self.superblock.encode(&mut bytes).unwrap();
            let offset = self.header.superblock_offset(0, self.superblock.copy());
            self.disk.write(offset, &bytes);
        }
    }

    /// Recovers and goes on in the next incarnation. What was open is sealed by the recovery.
    pub(super) fn restart(&mut self) -> Recovered {
        let recovered = recover(&mut self.disk).unwrap();
        self.adopt(&recovered);
        recovered
    }

    /// Goes on from what was recovered.
    pub(super) fn adopt(&mut self, recovered: &Recovered) {
        self.superblock = recovered.superblock.clone();
        self.numbers = recovered.numbers;
        self.durable_below = 0;
        self.open.clear();
        self.parked.clear();
        self.free = (0u32..)
            .zip(&recovered.segments)
            .filter(|(_, info)| info.state == crate::recovery::SegmentState::Free)
            .map(|(segment, _)| segment)
            .collect();
        self.free.reverse();
    }

    pub(super) fn record(
        &self,
        kind: Kind,
        volume: u16,
        block: u64,
        blocks: u32,
        lsn: u64,
    ) -> Record {
        Record {
            kind,
            moved: false,
            clean: false,
            volume,
            generation: self.superblock.volume(volume).unwrap().generation,
            block,
            blocks,
            lsn: Lsn(lsn),
            epoch: Epoch(1),
            slot: 0,
        }
    }

    /// A record of data whose bytes tell volume, block and LSN.
    pub(super) fn item(&self, kind: Kind, volume: u16, block: u64, blocks: u32, lsn: u64) -> Item {
        let record = self.record(kind, volume, block, blocks, lsn);
        let data = record.kind.has_data().then(|| data(volume, block, blocks, lsn));
        (record, data)
    }

    pub(super) fn name(&self, stream: LogStream) -> SegmentName {
        let open = &self.open[&stream];
        SegmentName {
            cache: self.superblock.cache,
            shard: 0,
            segment: self.map.device_segment(open.segment).unwrap(),
            seq: open.seq,
            stream,
        }
    }

    /// The open segment of a stream, opened if need be.
    pub(super) fn segment(&mut self, stream: LogStream) -> u32 {
        if !self.open.contains_key(&stream) {
            let segment = self.free.pop().unwrap();
            let log = SegmentLog::new(self.map.geometry());
            let seq = self.numbers.next();
            self.open.insert(stream, Open { segment, seq, used: 0, log });
        }
        self.open[&stream].segment
    }

    /// Makes a batch without writing it. Returns it with the shard's slot of each record.
    pub(super) fn batch(&mut self, stream: LogStream, items: &[Item]) -> (Ready, Vec<u32>) {
        let segment = self.segment(stream);
        let name = self.name(stream);
        let offset = self.map.segment_offset(segment).unwrap();
        let open = self.open.get_mut(&stream).unwrap();
        let blocks: usize = items.iter().map(|(record, _)| record.data_blocks()).sum();
        let mut bytes = vec![0xa5; (1 + blocks) * BLOCK];
        let mut builder = BatchBuilder::new(name, open.used, 0);
        let mut slots = Vec::new();
        for (record, data) in items {
            let placed = match data {
                Some(data) => {
                    let key = self.superblock.volume(record.volume).unwrap().key();
                    builder.append_data(&mut bytes, &mut open.log, record, key, data).unwrap()
                }
                None => builder.append_mark(&mut bytes, &mut open.log, record).unwrap(),
            };
            slots.push(self.map.slot(segment, placed.slot));
        }
        let number = self.numbers.next();
        let at = offset + u64::from(open.used) * BLOCK_U64;
        open.used = u16::try_from(builder.next_slot()).unwrap();
        assert_eq!(builder.end(), bytes.len());
        builder.finish(&mut bytes, &mut open.log, number, self.durable_below.min(number));
        (Ready { offset: at, bytes }, slots)
    }

    /// Makes a batch and writes it.
    pub(super) fn put(&mut self, stream: LogStream, items: &[Item]) -> Vec<u32> {
        let (ready, slots) = self.batch(stream, items);
        self.disk.write(ready.offset, &ready.bytes);
        slots
    }

    /// Seals the open segment of a stream; `fate` is asked with volume, block and slot.
    pub(super) fn seal(
        &mut self,
        stream: LogStream,
        fate: impl FnMut(u16, u64, u32) -> Keep,
    ) -> (u32, u64) {
        let (ready, segment, seal) = self.footer(stream, fate);
        self.disk.write(ready.offset, &ready.bytes);
        (segment, seal)
    }

    pub(super) fn footer(
        &mut self,
        stream: LogStream,
        mut fate: impl FnMut(u16, u64, u32) -> Keep,
    ) -> (Ready, u32, u64) {
        assert!(self.parked(stream) == 0, "in the order of opening");
        let open = self.open.remove(&stream).unwrap();
        self.footer_of(stream, &open, &mut fate)
    }

    /// Ends the open segment of a stream; its footer comes later.
    pub(super) fn park(&mut self, stream: LogStream) {
        if let Some(open) = self.open.remove(&stream) {
            self.parked.entry(stream).or_default().push_back(open);
        }
    }

    pub(super) fn parked(&self, stream: LogStream) -> usize {
        self.parked.get(&stream).map_or(0, VecDeque::len)
    }

    /// Writes the footer of the segment that was parked first; its number comes back, too.
    pub(super) fn seal_parked(
        &mut self,
        stream: LogStream,
        mut fate: impl FnMut(u16, u64, u32) -> Keep,
    ) -> Option<(u32, u64, u64)> {
        let open = self.parked.get_mut(&stream)?.pop_front()?;
        let (ready, segment, seal) = self.footer_of(stream, &open, &mut fate);
        self.disk.write(ready.offset, &ready.bytes);
        Some((segment, seal, open.seq))
    }

    fn footer_of(
        &mut self,
        stream: LogStream,
        open: &Open,
        fate: &mut impl FnMut(u16, u64, u32) -> Keep,
    ) -> (Ready, u32, u64) {
        let name = SegmentName {
            cache: self.superblock.cache,
            shard: 0,
            segment: self.map.device_segment(open.segment).unwrap(),
            seq: open.seq,
            stream,
        };
        let geometry = self.map.geometry();
        let seal = self.numbers.next();
        let mut bytes = vec![0xa5; geometry.footer_bytes()];
        let map = &self.map;
        let built = build_footer(&mut bytes, &open.log, &name, seal, |record, index| {
            let slot = map.slot(open.segment, record.slot + u16::try_from(index).unwrap());
            fate(record.volume, record.block + u64::from(index), slot)
        });
        bytes.truncate(built.unwrap().bytes);
        let offset = map.segment_offset(open.segment).unwrap()
            + u64::from(geometry.footer_slot()) * BLOCK_U64;
        (Ready { offset, bytes }, open.segment, seal)
    }

    /// Seals with everything kept as it was placed.
    pub(super) fn seal_all(&mut self, stream: LogStream) -> (u32, u64) {
        self.seal(stream, |_, _, _| Keep::Dirty)
    }

    /// Writes the free mark of a sealed segment.
    pub(super) fn free(&mut self, stream: LogStream, segment: u32, seq: u64, seal: u64) {
        let name = SegmentName {
            cache: self.superblock.cache,
            shard: 0,
            segment: self.map.device_segment(segment).unwrap(),
            seq,
            stream,
        };
        let mut block = [0; BLOCK];
        FreeMark { name, seal }.encode(&mut block);
        let offset = self.map.segment_offset(segment).unwrap()
            + u64::from(self.map.geometry().mark_slot()) * BLOCK_U64;
        self.disk.write(offset, &block);
        self.free.insert(0, segment);
    }

    /// Ends the open segment of a stream without a footer: the crash comes before it.
    pub(super) fn end(&mut self, stream: LogStream) {
        self.open.remove(&stream);
    }

    pub(super) fn seq(&self, stream: LogStream) -> u64 {
        self.open[&stream].seq
    }

    pub(super) fn used(&self, stream: LogStream) -> u16 {
        self.open.get(&stream).map_or(0, |open| open.used)
    }
}

pub(super) fn data(volume: u16, block: u64, blocks: u32, lsn: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for block in block..block + u64::from(blocks) {
        let mut one = vec![0; BLOCK];
        one[..2].copy_from_slice(&volume.to_le_bytes());
        one[2..10].copy_from_slice(&block.to_le_bytes());
        one[10..18].copy_from_slice(&lsn.to_le_bytes());
        one[4090] = 0x77;
        all.extend_from_slice(&one);
    }
    all
}

/// The LSN in the data of a slot, which must be of this block.
pub(super) fn stored_lsn(disk: &Disk, map: &ShardMap, slot: u32, volume: u16, block: u64) -> u64 {
    let at = usize::try_from(map.slot_offset(slot).unwrap()).unwrap();
    let bytes = &disk.bytes[at..at + BLOCK];
    assert_eq!(bytes[..2], volume.to_le_bytes(), "volume in slot {slot}");
    assert_eq!(bytes[2..10], block.to_le_bytes(), "block in slot {slot}");
    u64::from_le_bytes(*bytes[10..].first_chunk().unwrap())
}

/// The LSN that recovery has for a block, if any, and whether it is dirty. Checks the fold.
pub(super) fn found(
    disk: &Disk,
    recovered: &Recovered,
    volume: u16,
    block: u64,
) -> Option<(u64, bool)> {
    let entry = recovered.index.get(Key::new(volume, block).unwrap())?;
    let lsn = stored_lsn(disk, &recovered.map, entry.slot, volume, block);
    let key = recovered.superblock.volume(volume).unwrap().key();
    let crc = forebay_io::crc::block_crc(key, block, 0, &data(volume, block, 1, lsn));
    assert!(recovered.folds.matches(entry.slot, crc), "fold of slot {}", entry.slot);
    Some((lsn, entry.flags.dirty()))
}
