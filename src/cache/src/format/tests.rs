//! Round trips, mutations and limits of every structure.

mod device;

use super::batch::{
    BatchBuilder, BatchError, BatchView, Full, SegmentName, bad_blocks, timeless_mask,
};
use super::device::probe;
use super::footer::{FooterHead, FooterView, FreeMark, Keep, build_footer};
use super::geometry::{Extent, Geometry, LogStream, Numbers, ShardMap};
use super::record::{Kind, MAX_BLOCK, MAX_LSN, MAX_VOLUME, Record};
use super::segment_log::SegmentLog;
use super::superblock::{
    MAX_GENERATION, MAX_IDENTITY, MAX_NAME, Superblock, SuperblockError, VolumeEntry, volume_key,
};
use super::test_support::fix_crc;
use super::{BLOCK, VERSION};
use forebay_io::crc::block_crc;
use forebay_io::{Epoch, Lsn, Uuid};
use proptest::prelude::*;

const KEY: u64 = 0x1234_5678_9abc_def0;

fn name() -> SegmentName {
    SegmentName {
        cache: Uuid::from_random([9; 16]),
        shard: 3,
        segment: 77,
        seq: (5 << 44) + 12,
        stream: LogStream::Journal,
    }
}

fn geometry() -> Geometry {
    Geometry::new(64).unwrap()
}

fn kind() -> impl Strategy<Value = Kind> {
    (1u8..=8).prop_map(|code| Kind::from_code(code).unwrap())
}

prop_compose! {
    fn record()(
        kind in kind(), moved: bool, clean: bool, volume in 0..MAX_VOLUME, generation: u32,
        block in 0..MAX_BLOCK - 70_000, blocks in 1u32..5, many in 1u32..70_000,
        lsn in 0u64..1 << 62, epoch: u64,
    ) -> Record {
        let ranged = !matches!(kind, Kind::Commit | Kind::Promise);
        let blocks = if kind.has_data() { blocks } else if ranged { many } else { 0 };
        Record {
            kind, moved, clean, volume, generation, blocks,
            block: if ranged { block } else { 0 },
            lsn: Lsn(lsn), epoch: Epoch(epoch), slot: 0,
        }
    }
}

fn data_of(record: &Record, salt: u8) -> Vec<u8> {
    (0..record.data_blocks() * BLOCK).map(|at| u8::try_from(at % 251).unwrap() ^ salt).collect()
}

/// Builds a batch of the records that fit; returns them as they were placed.
fn build(
    records: &[Record],
    log: &mut SegmentLog,
    slot: u16,
    number: u64,
) -> (Vec<u8>, Vec<Record>) {
    let mut buffer = vec![0xee; 40 * BLOCK];
    let mut builder = BatchBuilder::new(name(), slot, 0);
    let mut placed = Vec::new();
    for (record, salt) in records.iter().zip(1u8..) {
        let result = if record.kind.has_data() {
            builder.append_data(&mut buffer, log, record, KEY, &data_of(record, salt))
        } else {
            builder.append_mark(&mut buffer, log, record)
        };
        match result {
            Ok(at) => placed.push(Record { slot: at.slot, ..*record }),
            Err(full) => assert_ne!(full, Full::Invalid),
        }
    }
    let end = builder.end();
    builder.finish(&mut buffer, log, number, number - 1);
    buffer.truncate(end);
    (buffer, placed)
}

proptest! {
    #[test]
    fn a_batch_comes_back_as_it_was_built(records in prop::collection::vec(record(), 0..40)) {
        let mut log = SegmentLog::new(geometry());
        let (bytes, placed) = build(&records, &mut log, 2, 900);
        let view = BatchView::parse(&bytes[..BLOCK]).unwrap();
        prop_assert!(view.belongs(&name(), 2));
        prop_assert_eq!((view.number, view.durable_below), (900, 899));
        prop_assert_eq!(view.bytes(), bytes.len());
        let back: Vec<Record> = view.records().map(|(record, _)| record).collect();
        prop_assert_eq!(&back, &placed);
        let kept: Vec<Record> = log.iter().map(|(record, _)| *record).collect();
        prop_assert_eq!(&back, &kept);
        for ((record, crcs), (_, logged)) in view.records().zip(log.iter()) {
            prop_assert_eq!(crcs.iter().collect::<Vec<_>>(), logged);
            if record.kind.has_data() {
                let from = usize::from(record.slot - 2) * BLOCK;
                prop_assert_eq!(bad_blocks(&record, crcs, KEY, &bytes[from..]), None);
                let mut rotten = bytes[from..].to_vec();
                rotten[BLOCK - 1] ^= 0x80;
                prop_assert_eq!(bad_blocks(&record, crcs, KEY, &rotten), Some(0..1));
                prop_assert_eq!(bad_blocks(&record, crcs, KEY + 1, &bytes[from..]).unwrap().start, 0);
            }
        }
    }

    #[test]
    fn any_changed_byte_of_a_header_is_noticed(
        records in prop::collection::vec(record(), 1..10), at in 0..BLOCK, flip in 1u8..,
    ) {
        let (mut bytes, _) = build(&records, &mut SegmentLog::new(geometry()), 2, 900);
        bytes[at] ^= flip;
        prop_assert_eq!(BatchView::parse(&bytes[..BLOCK]).err(), Some(BatchError::NotAHeader));
    }

    #[test]
    fn bytes_with_a_right_crc_never_panic(
        mut block in prop::collection::vec(any::<u8>(), BLOCK),
        records in prop::collection::vec(record(), 0..20),
        changes in prop::collection::vec((12usize..400, any::<u8>()), 0..6),
    ) {
        for magic in [b"FBYBATCH", b"FBYFOOT\0", b"FBYFREE\0", b"FBYSUPER", b"FOREBAY\0"] {
            block[..8].copy_from_slice(magic);
            block[12..14].copy_from_slice(&VERSION.to_le_bytes());
            block[60..64].copy_from_slice(&4096u32.to_le_bytes());
            fix_crc(&mut block);
            if let Ok(view) = BatchView::parse(&block) {
                for (record, crcs) in view.records() {
                    let _ = bad_blocks(&record, crcs, 1, &block);
                }
            }
            let _ = (FooterHead::parse(&block), FooterView::parse(&block), FreeMark::parse(&block));
            let _ = (Superblock::parse(&block), probe(&block, 1 << 30, None));
            fix_crc(&mut block[..128]);
            let _ = (FooterHead::parse(&block), FooterView::parse(&block));
        }
        // Near misses of a sound batch and footer.
        let mut log = SegmentLog::new(geometry());
        let (mut bytes, _) = build(&records, &mut log, 2, 900);
        let mut footer = vec![0; geometry().footer_bytes()];
        let built = build_footer(&mut footer, &log, &name(), 1 << 50, |_, _| Keep::Dirty).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
            footer[at.min(built.bytes - 1)] = value;
        }
        fix_crc(&mut bytes[..BLOCK]);
        fix_crc(&mut footer[..128]);
        if let Ok(view) = BatchView::parse(&bytes[..BLOCK]) {
            prop_assert!(view.records().all(|(record, _)| record.valid()));
        }
        if let Some(view) = FooterView::parse(&footer) {
            view.load(&mut log);
        }
    }

    #[test]
    fn a_footer_holds_what_was_kept_and_notices_any_change(
        batches in prop::collection::vec(prop::collection::vec(record(), 1..6), 1..5),
        fates in prop::collection::vec(0u8..3, 64),
        at in 0usize..2000, flip in 1u8..,
    ) {
        let mut log = SegmentLog::new(geometry());
        let (mut slot, mut number) = (0, 10);
        for batch in &batches {
            let (bytes, _) = build(batch, &mut log, slot, number);
            slot += u16::try_from(bytes.len() / BLOCK).unwrap();
            number += 1;
        }
        let mut out = vec![0xee; geometry().footer_bytes()];
        let fate = |slot: u16| match fates[usize::from(slot)] {
            0 => Keep::Dead,
            1 => Keep::Clean,
            _ => Keep::Dirty,
        };
        let built = build_footer(&mut out, &log, &name(), 1 << 50, |record, index| {
            fate(record.slot + u16::try_from(index).unwrap())
        })
        .unwrap();
        prop_assert_eq!(built.bytes % BLOCK, 0);
        let view = FooterView::parse(&out[..built.bytes]).unwrap();
        prop_assert_eq!(FooterHead::parse(&out[..BLOCK]), Some(view.head));
        prop_assert_eq!(view.head.name, name());
        prop_assert_eq!(view.head.read_bytes(), built.bytes);
        // Block by block it is what the log has and the fates say.
        let mut expected = Vec::new();
        for (batch, entries) in log.groups() {
            for (record, crcs) in entries.filter_map(|entry| log.get(entry)) {
                if !record.kind.has_data() {
                    expected.push((batch, *record, 0));
                }
                for (index, crc) in (0u16..).zip(crcs) {
                    let slot = record.slot + index;
                    if fate(slot) != Keep::Dead {
                        let block = record.block + u64::from(index);
                        let clean = fate(slot) == Keep::Clean && record.kind == Kind::Write;
                        expected.push((batch, Record { block, slot, clean, blocks: 1, ..*record }, *crc));
                    }
                }
            }
        }
        // The last change of each volume, if all of it was left out, leaves a commit.
        let mut lasts: Vec<(Record, u64)> = Vec::new();
        for (record, _) in log.iter().filter(|(record, _)| record.kind.takes_lsn() && !record.moved) {
            let kept = !record.kind.has_data()
                || (0..u16::try_from(record.blocks).unwrap())
                    .any(|index| fate(record.slot + index) != Keep::Dead);
            let kept = if kept { record.lsn.0 } else { 0 };
            let same = |(last, _): &&mut (Record, u64)| {
                (last.volume, last.generation) == (record.volume, record.generation)
            };
            match lasts.iter_mut().find(same) {
                Some((last, shown)) => {
                    last.lsn = last.lsn.max(record.lsn);
                    *shown = kept.max(*shown);
                }
                None => lasts.push((*record, kept)),
            }
        }
        let last_batch = log.groups().last().map_or(0, |(number, _)| number);
        for (last, _) in lasts.into_iter().filter(|(last, shown)| last.lsn.0 > *shown) {
            let commit = Record {
                kind: Kind::Commit, clean: false, block: 0, blocks: 0, slot: 0, ..last
            };
            expected.push((last_batch, commit, 0));
        }
        let mut back = Vec::new();
        for (batch, record, crcs) in view.records() {
            if !record.kind.has_data() {
                back.push((batch, record, 0));
            }
            for (index, crc) in (0u16..).zip(crcs.iter()) {
                let (block, slot) = (record.block + u64::from(index), record.slot + index);
                back.push((batch, Record { block, slot, blocks: 1, ..record }, crc));
            }
        }
        prop_assert_eq!(&back, &expected);
        let dirty = back.iter().filter(|(_, record, _)| record.dirty()).count();
        let live = back.iter().filter(|(_, record, _)| record.kind.has_data()).count();
        prop_assert_eq!((built.live as usize, built.dirty as usize), (live, dirty));
        // Loaded into a log and built again, it is the same.
        let mut copy = SegmentLog::new(geometry());
        view.load(&mut copy);
        prop_assert_eq!(copy.groups().count(), view.records().map(|(batch, ..)| batch)
            .collect::<std::collections::BTreeSet<_>>().len());
        let used = usize::try_from(view.head.bytes).unwrap();
        let mut rotten = out[..built.bytes].to_vec();
        rotten[at % used] ^= flip;
        prop_assert!(FooterView::parse(&rotten).is_none());
        prop_assert!(FooterView::parse(&out[..used - 1]).is_none());
    }

    #[test]
    fn superblocks_come_back_and_any_change_is_noticed(
        shard: u16, generation in 0..MAX_GENERATION, incarnation in 0u32..1 << 20, clean_stop: bool,
        extents in prop::collection::vec((any::<u32>(), any::<u32>()), 0..30),
        volumes in prop::collection::btree_map(0..MAX_VOLUME, (any::<[u8; 16]>(), any::<[u64; 4]>(), ".{0,20}"), 0..20),
        at: prop::sample::Index, flip in 1u8..,
    ) {
        let superblock = Superblock {
            cache: Uuid::from_random([4; 16]), shard, generation, incarnation, clean_stop,
            next_volume_generation: 99,
            extents: extents.iter().map(|(first, count)| Extent { first: *first, count: *count }).collect(),
            volumes: volumes.iter().map(|(index, (bytes, numbers, text))| VolumeEntry {
                index: *index, generation: u32::from(*index) + 1,
                uuid: Uuid::from_random(*bytes), journal: Uuid::from_random(*bytes),
                epoch: Epoch(numbers[0]), promised: Epoch(numbers[1]),
                accounted: Lsn(numbers[2] >> 1), base: Lsn(numbers[3] >> 1), size: numbers[1], block_size: 512,
                clean: numbers[2] % 2 == 0, mode: bytes[0], backing_size: numbers[3],
                backing_identity: text.clone(), name: text.clone(),
            }).collect(),
        };
        let mut bytes = vec![0xee; superblock.encoded_len()];
        prop_assert_eq!(superblock.encode(&mut bytes), Ok(superblock.encoded_len()));
        prop_assert_eq!(Superblock::parse(&bytes), Some(superblock.clone()));
        bytes.resize(super::superblock::SUPER_BYTES, 7);
        prop_assert_eq!(Superblock::parse(&bytes), Some(superblock.clone()));
        let at = at.index(superblock.encoded_len());
        bytes[at] ^= flip;
        prop_assert_eq!(Superblock::parse(&bytes), None);
        prop_assert!(Superblock::parse(&bytes[..at]).is_none());
    }
}

#[test]
fn each_limit_of_a_batch_is_told_apart_and_changes_nothing() {
    let mut log = SegmentLog::new(geometry());
    let base = Record {
        kind: Kind::Write,
        moved: false,
        clean: false,
        volume: 1,
        generation: 1,
        block: 5,
        blocks: 1,
        lsn: Lsn(1),
        epoch: Epoch(1),
        slot: 0,
    };
    let mark = Record { kind: Kind::Trim, ..base };
    let data = vec![1; BLOCK];
    let mut buffer = vec![0; 3 * BLOCK];
    let mut builder = BatchBuilder::new(name(), 0, 0);
    assert_eq!(builder.room(buffer.len(), &log), 2);
    for _ in 0..2 {
        builder.append_data(&mut buffer, &mut log, &base, KEY, &data).unwrap();
    }
    let refuse = |builder: &mut BatchBuilder,
                  buffer: &mut [u8],
                  log: &mut SegmentLog,
                  record: &Record,
                  data: &[u8]| {
        let before = (buffer.to_vec(), log.len(), builder.end());
        let error = builder.append_data(buffer, log, record, KEY, data).unwrap_err();
        assert_eq!(before, (buffer.to_vec(), log.len(), builder.end()));
        error
    };
    assert_eq!(refuse(&mut builder, &mut buffer, &mut log, &base, &data), Full::Buffer);
    assert_eq!(builder.room(buffer.len(), &log), 0);
    for (record, data) in [
        (mark, &data[..]),
        (base, &data[1..]),
        (Record { blocks: 0, ..base }, &[][..]),
        (Record { volume: MAX_VOLUME, ..base }, &data),
        (Record { block: MAX_BLOCK, ..base }, &data),
        (Record { lsn: Lsn(1 << 63), ..base }, &data),
    ] {
        let mut large = vec![0; 64 * BLOCK];
        let error = refuse(&mut builder, &mut large, &mut log, &record, data);
        assert_eq!(error, Full::Invalid, "{record:?}");
    }
    // The header.
    let mut count = 0;
    let full = loop {
        match builder.append_mark(&mut buffer, &mut log, &mark) {
            Ok(_) => count += 1,
            Err(full) => break full,
        }
    };
    assert_eq!((full, count), (Full::Header, (4096 - 80 - 2 * 44) / 40));
    builder.finish(&mut buffer, &mut log, 7, 7);
    assert_eq!(BatchView::parse(&buffer[..BLOCK]).unwrap().records, 2 + count);
    // The segment's slots: 61 for data in this geometry.
    let mut buffer = vec![0; 64 * BLOCK];
    let mut log = SegmentLog::new(geometry());
    let mut builder = BatchBuilder::new(name(), 58, 0);
    assert_eq!(builder.room(buffer.len(), &log), 2);
    for _ in 0..2 {
        builder.append_data(&mut buffer, &mut log, &base, KEY, &data).unwrap();
    }
    assert_eq!(refuse(&mut builder, &mut buffer, &mut log, &base, &data), Full::Segment);
    assert_eq!(builder.next_slot(), 61);
}

#[test]
fn the_footer_has_room_for_all_that_a_log_takes_however_it_is_split() {
    for slots in [16u32, 32, 64, 256, 1024, 4096] {
        let geometry = Geometry::new(slots).unwrap();
        // One long record, every other block dead, and marks until the log is full.
        let mut log = SegmentLog::new(geometry);
        let mut buffer = vec![0; (slots as usize) * BLOCK];
        let blocks = geometry.data_slots() - 2;
        let mut record = Record {
            kind: Kind::Write,
            moved: false,
            clean: false,
            volume: 1,
            generation: 1,
            block: 5,
            blocks: 1,
            lsn: Lsn(1),
            epoch: Epoch(1),
            slot: 0,
        };
        let (mut slot, mut number, mut left) = (0, 1, blocks);
        while left > 0 {
            let mut builder = BatchBuilder::new(name(), slot, 0);
            record.blocks = builder.room(buffer.len(), &log).min(left);
            if record.blocks == 0 {
                break;
            }
            builder.append_with(&mut buffer, &mut log, &record, KEY, |_| true).unwrap();
            left -= record.blocks;
            slot = u16::try_from(builder.next_slot()).unwrap();
            builder.finish(&mut buffer, &mut log, number, number);
            number += 1;
        }
        let mark = Record { kind: Kind::Trim, slot: 0, ..record };
        while u32::from(slot) < geometry.data_slots() && log.fits(&mark) {
            let mut builder = BatchBuilder::new(name(), slot, 0);
            while builder.append_mark(&mut buffer, &mut log, &mark).is_ok() {}
            slot = u16::try_from(builder.next_slot()).unwrap();
            builder.finish(&mut buffer, &mut log, number, number);
            number += 1;
        }
        let mut out = vec![0; geometry.footer_bytes()];
        let fate = |record: &Record, index: u32| {
            if (u32::from(record.slot) + index).is_multiple_of(2) {
                Keep::Clean
            } else {
                Keep::Dirty
            }
        };
        let built = build_footer(&mut out, &log, &name(), 1 << 50, fate).unwrap();
        assert!(FooterView::parse(&out[..built.bytes]).is_some(), "{slots} slots");
    }
}

#[test]
fn a_free_mark_comes_back_and_any_changed_byte_is_noticed() {
    let mark = FreeMark { name: name(), seal: 1 << 50 };
    let mut block = [0xee; BLOCK];
    mark.encode(&mut block);
    assert_eq!(FreeMark::parse(&block), Some(mark));
    for at in 0..BLOCK {
        block[at] ^= 0x20;
        assert_eq!(FreeMark::parse(&block), None, "byte {at}");
        block[at] ^= 0x20;
    }
}

#[test]
fn slots_map_to_places_in_the_order_of_the_grants() {
    let geometry = geometry();
    let extents = [Extent { first: 10, count: 2 }, Extent { first: 3, count: 1 }];
    let mut map = ShardMap::new(geometry, 1 << 20, &extents);
    assert_eq!((map.segments(), map.slots()), (3, 192));
    let places: Vec<_> = (0..4).map(|segment| map.device_segment(segment)).collect();
    assert_eq!(places, [Some(10), Some(11), Some(3), None]);
    assert_eq!(map.slot_offset(64 + 5), Some((1 << 20) + 11 * 64 * 4096 + 5 * 4096));
    assert_eq!(map.slot_offset(192), None);
    assert_eq!((map.segment_of(130), map.slot_in_segment(130)), (2, 2));
    assert_eq!(map.slot(2, 2), 130);
    map.grant(Extent { first: 0, count: 1 });
    assert_eq!(map.device_segment(3), Some(0));
    for slots in [0, 15, 17, 24, 8, 32_768] {
        assert!(Geometry::new(slots).is_none(), "{slots}");
    }
    assert!(Geometry::with_footer(64, 3).is_none());
    assert_eq!(geometry.data_slots() + 1 + geometry.footer_slots(), 64);
}

#[test]
fn numbers_of_a_later_incarnation_are_higher() {
    let mut numbers = Numbers::new(4);
    let first = numbers.next();
    assert_eq!(numbers.next(), first + 1);
    assert_eq!(Numbers::incarnation(first), 4);
    assert!(Numbers::new(5).peek() > first + (1 << 43));
    assert_eq!(Numbers::after(first).peek(), first + 1);
}

#[test]
fn the_timeless_crc_is_the_block_crc_with_lsn_0() {
    let data = [3; BLOCK];
    let crc = block_crc(KEY, 7, 1234, &data);
    assert_eq!(crc ^ timeless_mask(1234), block_crc(KEY, 7, 0, &data));
    assert_ne!(volume_key(Uuid([1; 16])), volume_key(Uuid([2; 16])));
}

#[test]
fn a_superblock_refuses_what_it_cannot_hold() {
    let mut superblock = Superblock {
        cache: Uuid::from_random([4; 16]),
        shard: 0,
        generation: 1,
        incarnation: 1,
        clean_stop: true,
        next_volume_generation: 1,
        extents: Vec::new(),
        volumes: Vec::new(),
    };
    let volume = crate::recovery::test_volume(0, 1);
    let mut out = vec![0; super::superblock::SUPER_BYTES];
    superblock.volumes = vec![volume.clone(), volume.clone()];
    assert_eq!(superblock.encode(&mut out), Err(SuperblockError::Volume(0)));
    superblock.volumes = vec![VolumeEntry { name: "x".repeat(MAX_NAME + 1), ..volume.clone() }];
    assert_eq!(superblock.encode(&mut out), Err(SuperblockError::Volume(0)));
    superblock.volumes = (0..400).map(|index| VolumeEntry { index, ..volume.clone() }).collect();
    assert_eq!(superblock.encode(&mut out), Err(SuperblockError::Volumes));
    superblock.volumes.truncate(super::superblock::MAX_VOLUMES);
    superblock.extents = vec![Extent { first: 0, count: 1 }; super::superblock::MAX_EXTENTS];
    let len = superblock.encode(&mut out).unwrap();
    assert!(len <= super::superblock::SUPER_BYTES, "{len}");
    assert_eq!(Superblock::parse(&out), Some(superblock.clone()));
    superblock.incarnation = 1 << 20;
    assert_eq!(superblock.encode(&mut out), Err(SuperblockError::Incarnation));
    superblock.incarnation = 1;
    superblock.generation = MAX_GENERATION;
    assert_eq!(superblock.encode(&mut out), Err(SuperblockError::Generation));
    superblock.generation -= 1;
    for lsn in [MAX_LSN - 1, MAX_LSN] {
        for (accounted, base) in [(lsn, 0), (0, lsn)] {
            let entry =
                VolumeEntry { accounted: Lsn(accounted), base: Lsn(base), ..volume.clone() };
            superblock.volumes = vec![entry];
            let refused = (lsn == MAX_LSN).then_some(SuperblockError::Volume(0));
            assert_eq!(superblock.encode(&mut out).err(), refused);
        }
    }
    let long = "é".repeat(200);
    let text = VolumeEntry::identity_text(&long);
    assert!(text.len() <= MAX_IDENTITY && text != VolumeEntry::identity_text(&long[2..]));
    assert_eq!(VolumeEntry::identity_text("wwid"), "wwid");
}
