//! Reclaim: what a freed segment killed or trimmed does not come back, in scenes and in random
//! histories against a model.

use super::rig::{Item, Writer, content, found, recover, warmed};
use crate::format::footer::Keep;
use crate::format::geometry::LogStream::{self, Fill, Journal, Reinsert};
use crate::format::record::Kind;
use crate::recovery::LSNS_SKIPPED;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_version_that_a_freed_segment_killed_is_left_out_of_the_footer_sealed_later() {
    for filtered in [true, false] {
        let mut writer = Writer::new();
        // The fill segment is open all the time; the journal's is sealed, destaged and freed.
        writer.put(Fill, &[writer.item(Kind::Fill, 0, 7, 1, 0)]);
        writer.put(
            Journal,
            &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 7, 1, 1)],
        );
        let seq = writer.seq(Journal);
        let (segment, seal) = writer.seal_all(Journal);
        writer.put(
            Journal,
            &[writer.item(Kind::Commit, 0, 0, 0, 1), writer.item(Kind::Trim, 0, 7, 1, 1)],
        );
        let fate = if filtered { Keep::Dead } else { Keep::Clean };
        writer.seal(Fill, |_, _, _| fate);
        let before = recover(&mut writer.disk.clone()).unwrap();
        assert_eq!(found(&writer.disk, &before, 0, 7), Some((1, false)));
        writer.free(Journal, segment, seq, seal);
        let after = writer.restart();
        // The footer that keeps the old version shows that this test can fail.
        let expect = if filtered { None } else { Some((0, false)) };
        assert_eq!(found(&writer.disk, &after, 0, 7), expect);
        assert_eq!(after.volumes[0].last.0, 1, "the commit mark keeps the LSN");
    }
}

#[test]
fn a_segment_whose_mark_is_torn_is_not_freed_and_one_reused_is_not_its_old_self() {
    let mut writer = Writer::new();
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 7, 1, 1)],
    );
    let seq = writer.seq(Journal);
    let (segment, seal) = writer.seal_all(Journal);
    let held = writer.disk.clone();
    writer.free(Journal, segment, seq, seal);
    let slot = writer.map.geometry().mark_slot();
    let at = writer.map.segment_offset(segment).unwrap() + u64::from(slot) * 4096;
    let at = usize::try_from(at).unwrap();
    for cut in 0..=8 {
        let mut torn = held.clone();
        torn.bytes[at..at + cut * 512].copy_from_slice(&writer.disk.bytes[at..at + cut * 512]);
        let whole = torn.bytes == writer.disk.bytes;
        let got = recover(&mut torn).unwrap();
        assert_eq!(content(&got).is_empty(), whole, "cut {cut}");
    }
    // Used again, its first batch torn: the old footer is still there and does not count.
    writer.free.retain(|free| *free != segment);
    writer.free.push(segment);
    let (ready, _) = writer.batch(Journal, &[writer.item(Kind::Write, 0, 8, 1, 2)]);
    for cut in 0..ready.bytes.len() / 512 {
        let mut torn = writer.disk.clone();
        torn.write(ready.offset, &ready.bytes[..cut * 512]);
        if torn.bytes[usize::try_from(ready.offset).unwrap()..].starts_with(&ready.bytes) {
            continue;
        }
        let got = recover(&mut torn).unwrap();
        assert!(content(&got).is_empty(), "cut {cut}");
    }
}

#[test]
fn moved_blocks_keep_their_lsn_and_lose_to_newer_ones() {
    let mut writer = Writer::new();
    let first = [writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 7, 2, 1)];
    writer.put(Journal, &first);
    let (seq, (segment, seal)) = (writer.seq(Journal), writer.seal_all(Journal));
    let mut moved = writer.item(Kind::Write, 0, 7, 2, 1);
    moved.0.moved = true;
    writer.put(Reinsert, &[moved]);
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 1), writer.item(Kind::Write, 0, 8, 1, 2)],
    );
    writer.free(Journal, segment, seq, seal);
    let got = writer.restart();
    assert_eq!(found(&writer.disk, &got, 0, 7), Some((1, true)));
    assert_eq!(found(&writer.disk, &got, 0, 8), Some((2, true)));
    assert_eq!(got.volumes[0].last.0, 2);
    assert_eq!(got.volumes[0].dirty, 2);
}

// ---- random histories

#[derive(Clone, Debug)]
enum Act {
    Write {
        block: u64,
        blocks: u32,
    },
    Fill {
        block: u64,
    },
    Invalidate {
        block: u64,
        blocks: u32,
    },
    Zeroes {
        block: u64,
        blocks: u32,
    },
    /// Destage all that is dirty in a range, then trim.
    Trim {
        block: u64,
        blocks: u32,
    },
    Seal(LogStream),
    /// End the open segment; its footer comes later.
    Park(LogStream),
    /// Free the segment that was sealed first, its live dirty blocks moved.
    Free,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let block = 0u64..12;
    let blocks = 1u32..4;
    prop_oneof![
        6 => (block.clone(), blocks.clone()).prop_map(|(block, blocks)| Act::Write { block, blocks }),
        4 => block.clone().prop_map(|block| Act::Fill { block }),
        1 => (block.clone(), blocks.clone())
            .prop_map(|(block, blocks)| Act::Invalidate { block, blocks }),
        1 => (block.clone(), blocks.clone()).prop_map(|(block, blocks)| Act::Zeroes { block, blocks }),
        3 => (block, blocks).prop_map(|(block, blocks)| Act::Trim { block, blocks }),
        2 => (0usize..3).prop_map(|at| Act::Seal(LogStream::ALL[at])),
        2 => (0usize..3).prop_map(|at| Act::Park(LogStream::ALL[at])),
        3 => Just(Act::Free),
        1 => Just(Act::Restart),
    ]
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    lsn: u64,
    dirty: bool,
    /// Where; `None` for zeroes that are dirty.
    slot: Option<u32>,
}

#[derive(Clone, Debug)]
struct Sealed {
    stream: LogStream,
    segment: u32,
    seq: u64,
    seal: u64,
}

/// An engine in small: everything is durable and committed at once.
struct Model {
    writer: Writer,
    blocks: BTreeMap<u64, Version>,
    lsn: u64,
    sealed: Vec<Sealed>,
    /// Segments opened, with their numbers, not sealed yet.
    open: BTreeMap<u64, LogStream>,
    marked: BTreeSet<u64>,
    /// The highest LSN in a journal segment that is sealed.
    sealed_lsn: u64,
    /// The highest LSN in each journal segment, by its number.
    lsns: BTreeMap<u64, u64>,
}

impl Model {
    fn new() -> Self {
        Self {
            writer: Writer::new(),
            blocks: BTreeMap::new(),
            lsn: 0,
            sealed: Vec::new(),
            open: BTreeMap::new(),
            marked: BTreeSet::new(),
            sealed_lsn: 0,
            lsns: BTreeMap::new(),
        }
    }

    /// Makes room and writes; the first batch of a journal segment has a commit mark.
    fn put(&mut self, stream: LogStream, item: Item) -> Option<u32> {
        let need = 1 + item.0.data_blocks();
        let data_slots = self.writer.map.geometry().data_slots() as usize;
        if usize::from(self.writer.used(stream)) + need > data_slots {
            self.seal(stream);
        }
        if self.writer.used(stream) == 0 && self.writer.free.is_empty() {
            return None;
        }
        self.writer.segment(stream);
        let seq = self.writer.seq(stream);
        self.open.insert(seq, stream);
        let mut items = vec![item];
        if stream == Journal && self.marked.insert(seq) {
            // Commits may lag, but not behind what is sealed.
            let committed = self.lsn.saturating_sub(4).max(self.sealed_lsn);
            items.insert(0, self.writer.item(Kind::Commit, 0, 0, 0, committed));
        }
        if stream == Journal {
            self.lsns.insert(seq, self.lsn);
        }
        self.writer.put(stream, &items).last().copied()
    }

    fn seal(&mut self, stream: LogStream) {
        if self.writer.used(stream) > 0 {
            self.writer.park(stream);
        }
        while self.writer.parked(stream) > 0 {
            self.seal_parked(stream);
        }
    }

    fn seal_parked(&mut self, stream: LogStream) {
        let blocks = &self.blocks;
        let sealed = self.writer.seal_parked(stream, |_, block, slot| match blocks.get(&block) {
            Some(version) if version.slot == Some(slot) && version.dirty => Keep::Dirty,
            Some(version) if version.slot == Some(slot) => Keep::Clean,
            _ => Keep::Dead,
        });
        if let Some((segment, seal, seq)) = sealed {
            self.open.remove(&seq);
            self.sealed_lsn = self.sealed_lsn.max(self.lsns.remove(&seq).unwrap_or(0));
            self.sealed.push(Sealed { stream, segment, seq, seal });
        }
    }

    fn step(&mut self, act: &Act) {
        match *act {
            Act::Write { block, blocks } => {
                self.lsn += 1;
                let item = self.writer.item(Kind::Write, 0, block, blocks, self.lsn);
                match self.put(Journal, item) {
                    Some(slot) => {
                        for index in 0..blocks {
                            let version =
                                Version { lsn: self.lsn, dirty: true, slot: Some(slot + index) };
                            self.blocks.insert(block + u64::from(index), version);
                        }
                    }
                    None => self.lsn -= 1,
                }
            }
            Act::Fill { block } => {
                if !self.blocks.contains_key(&block) {
                    let item = self.writer.item(Kind::Fill, 0, block, 1, self.lsn);
                    if let Some(slot) = self.put(Fill, item) {
                        let version = Version { lsn: self.lsn, dirty: false, slot: Some(slot) };
                        self.blocks.insert(block, version);
                    }
                }
            }
            Act::Invalidate { block, blocks } => {
                self.change(Kind::Invalidate, block, blocks);
            }
            Act::Zeroes { block, blocks } => {
                if self.change(Kind::Zeroes, block, blocks) {
                    for block in block..block + u64::from(blocks) {
                        let version = Version { lsn: self.lsn, dirty: true, slot: None };
                        self.blocks.insert(block, version);
                    }
                }
            }
            Act::Trim { block, blocks } => {
                let item = self.writer.item(Kind::Trim, 0, block, blocks, self.lsn);
                if self.put(Journal, item).is_some() {
                    for block in block..block + u64::from(blocks) {
                        if let Some(version) = self.blocks.get_mut(&block) {
                            version.dirty = false;
                            if version.slot.is_none() {
                                self.blocks.remove(&block);
                            }
                        }
                    }
                }
            }
            Act::Seal(stream) => self.seal(stream),
            // A few are enough, and leave segments to write to.
            Act::Park(stream) if self.writer.parked(stream) < 2 => self.writer.park(stream),
            Act::Park(stream) => self.seal_parked(stream),
            Act::Free => self.free(),
            Act::Restart => self.restart(),
        }
    }

    fn change(&mut self, kind: Kind, block: u64, blocks: u32) -> bool {
        self.lsn += 1;
        let item = self.writer.item(kind, 0, block, blocks, self.lsn);
        if self.put(Journal, item).is_none() {
            self.lsn -= 1;
            return false;
        }
        for block in block..block + u64::from(blocks) {
            self.blocks.remove(&block);
        }
        true
    }

    fn free(&mut self) {
        let Some(first) = self.sealed.first().cloned() else { return };
        // Everything opened before its seal must have a footer.
        let before: Vec<_> = self.open.range(..first.seal).map(|(_, stream)| *stream).collect();
        for stream in before {
            self.seal(stream);
        }
        let slots =
            self.writer.map.slot(first.segment, 0)..self.writer.map.slot(first.segment + 1, 0);
        let here: Vec<(u64, Version)> = self
            .blocks
            .iter()
            .filter(|(_, version)| version.slot.is_some_and(|slot| slots.contains(&slot)))
            .map(|(block, version)| (*block, *version))
            .collect();
        for (block, version) in here {
            if version.dirty {
                let mut item = self.writer.item(Kind::Write, 0, block, 1, version.lsn);
                item.0.moved = true;
                let Some(slot) = self.put(Reinsert, item) else { return };
                self.blocks.insert(block, Version { slot: Some(slot), ..version });
            }
        }
        // Zeroes that are dirty are moved within the journal, wherever their record is.
        if first.stream == Journal {
            let zeroes: Vec<_> = self
                .blocks
                .iter()
                .filter(|(_, version)| version.slot.is_none())
                .map(|(block, version)| (*block, version.lsn))
                .collect();
            for (block, lsn) in zeroes {
                let mut item = self.writer.item(Kind::Zeroes, 0, block, 1, lsn);
                item.0.moved = true;
                if self.put(Journal, item).is_none() {
                    return;
                }
            }
        }
        // The LSNs of a journal segment are accounted for in a later one before it is freed.
        if first.stream == Journal {
            let item = self.writer.item(Kind::Commit, 0, 0, 0, self.lsn);
            if self.put(Journal, item).is_none() {
                return;
            }
        }
        // Putting may have sealed segments, but this one is still the first.
        self.writer.free(first.stream, first.segment, first.seq, first.seal);
        self.sealed.remove(0);
        self.blocks.retain(|_, version| version.slot.is_none_or(|slot| !slots.contains(&slot)));
    }

    fn restart(&mut self) {
        let (blocks, staged) = warmed(&mut self.writer.disk.clone());
        let got = recover(&mut self.writer.disk).unwrap();
        self.check(&got);
        assert_eq!(blocks, got.index.len() as u64, "blocks after a staged recovery");
        assert_eq!((&staged.ranges, &staged.lost), (&got.ranges, &got.lost));
        let volume = |of: &crate::recovery::Recovered| {
            let volume = of.volumes[0];
            (volume.dirty, volume.void, volume.epoch)
        };
        assert_eq!(volume(&staged), volume(&got));
        let skipped = if staged.deferred.segments.is_empty() { 0 } else { LSNS_SKIPPED };
        assert_eq!(staged.volumes[0].last.0, got.volumes[0].last.0 + skipped);
        let (first, all) = (content(&staged), content(&got));
        let left: BTreeSet<u32> = staged.deferred.segments.iter().copied().collect();
        for (name, entry) in &all {
            let later = left.contains(&got.map.segment_of(entry.0));
            assert!(first.get(name) == Some(entry) || (later && !entry.1), "{name:?}");
        }
        self.writer.adopt(&got);
        self.open.clear();
        self.sealed_lsn = self.lsn;
        self.sealed = (0u32..)
            .zip(&got.segments)
            .filter_map(|(segment, info)| {
                let stream = info.stream.filter(|_| info.seal > 0)?;
                Some(Sealed { stream, segment, seq: info.seq, seal: info.seal })
            })
            .collect();
        self.sealed.sort_by_key(|sealed| sealed.seal);
    }

    fn check(&self, got: &crate::recovery::Recovered) {
        assert_eq!(got.volumes[0].last.0, self.lsn);
        let zeroes: BTreeSet<u64> =
            got.ranges.iter().flat_map(|range| range.block..range.block + range.blocks).collect();
        let expected: BTreeSet<u64> = self
            .blocks
            .iter()
            .filter(|(_, version)| version.slot.is_none())
            .map(|(block, _)| *block)
            .collect();
        assert_eq!(zeroes, expected, "zeroes");
        for block in 0..16 {
            let expected = self
                .blocks
                .get(&block)
                .filter(|version| version.slot.is_some())
                .map(|version| (version.lsn, version.dirty));
            assert_eq!(found(&self.writer.disk, got, 0, block), expected, "block {block}");
        }
        let (mut live, mut dirty) = (vec![0; got.segments.len()], vec![0; got.segments.len()]);
        got.index.for_each(|_, entry| {
            live[got.map.segment_of(entry.slot) as usize] += 1;
            dirty[got.map.segment_of(entry.slot) as usize] += u32::from(entry.flags.dirty());
        });
        for (segment, info) in got.segments.iter().enumerate() {
            assert_eq!((info.live, info.dirty), (live[segment], dirty[segment]));
        }
    }
}

/// Records with the shard's slot of each.
type Placed = Vec<(Item, Option<u32>)>;

/// A journal batch that is on its way when the crash comes.
#[derive(Clone, Debug)]
struct Flying {
    /// Kind (write, zeroes, invalidation), first block, blocks of each record.
    records: Vec<(u8, u64, u32)>,
    /// The segment ends before it.
    ends: bool,
    /// Which sectors arrive, cyclically; all of them where `whole`.
    sectors: Vec<bool>,
    whole: bool,
}

fn flying() -> impl Strategy<Value = Flying> {
    let record = (0u8..3, 0u64..12, 1u32..4);
    (
        prop::collection::vec(record, 1..4),
        any::<bool>(),
        prop::collection::vec(any::<bool>(), 1..40),
        any::<bool>(),
    )
        .prop_map(|(records, ends, sectors, whole)| Flying { records, ends, sectors, whole })
}

impl Model {
    /// Places a batch of changes and writes what arrives of it. Says whether all did.
    fn fly(&mut self, flying: &Flying, lsn: &mut u64) -> Option<(bool, Placed)> {
        let need: usize =
            1 + flying.records.iter().map(|(.., blocks)| *blocks as usize).sum::<usize>();
        let full = usize::from(self.writer.used(Journal)) + need
            > self.writer.map.geometry().data_slots() as usize;
        if flying.ends || full {
            self.writer.end(Journal);
        }
        if self.writer.used(Journal) == 0 && self.writer.free.is_empty() {
            return None;
        }
        let mut items = Vec::new();
        if self.writer.used(Journal) == 0 {
            items.push(self.writer.item(Kind::Commit, 0, 0, 0, self.lsn));
        }
        for (kind, block, blocks) in &flying.records {
            *lsn += 1;
            let kind = [Kind::Write, Kind::Zeroes, Kind::Invalidate][usize::from(*kind)];
            items.push(self.writer.item(kind, 0, *block, *blocks, *lsn));
        }
        let (ready, slots) = self.writer.batch(Journal, &items);
        for (at, sector) in ready.bytes.chunks(512).enumerate() {
            if flying.whole || flying.sectors[at % flying.sectors.len()] {
                self.writer.disk.write(ready.offset + at as u64 * 512, sector);
            }
        }
        let at = usize::try_from(ready.offset).unwrap();
        let arrived = self.writer.disk.bytes[at..].starts_with(&ready.bytes);
        let slots = slots.into_iter().map(Some);
        Some((arrived, items.into_iter().zip(slots).collect()))
    }

    /// The changes of a batch count after all.
    fn commit(&mut self, records: Placed) {
        for ((record, _), slot) in records {
            if !record.kind.takes_lsn() {
                continue;
            }
            self.lsn = record.lsn.0;
            for index in 0..record.blocks {
                let block = record.block + u64::from(index);
                let slot = slot.filter(|_| record.kind == Kind::Write).map(|slot| slot + index);
                self.blocks.remove(&block);
                if record.kind != Kind::Invalidate {
                    self.blocks.insert(block, Version { lsn: self.lsn, dirty: true, slot });
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn of_batches_in_flight_those_before_the_first_torn_one_count(
        before in prop::collection::vec(act(), 1..60),
        flying in prop::collection::vec(flying(), 1..3),
        after in prop::collection::vec(act(), 0..20),
    ) {
        let mut model = Model::new();
        before.iter().for_each(|act| model.step(act));
        let (mut lsn, mut whole) = (model.lsn, true);
        for flying in &flying {
            let Some((arrived, records)) = model.fly(flying, &mut lsn) else { break };
            whole &= arrived;
            if whole {
                model.commit(records);
            }
        }
        model.restart();
        // The next life gives out the same LSNs again.
        after.iter().for_each(|act| model.step(act));
        model.restart();
    }

    #[test]
    fn random_histories_recover_to_what_the_model_has(
        acts in prop::collection::vec(act(), 1..160)
    ) {
        let mut model = Model::new();
        for act in &acts {
            model.step(act);
        }
        model.restart();
        model.restart();
    }
}
