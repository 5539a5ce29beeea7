//! Batches that are torn, misdirected, stale or behind a gap: the replay ends exactly there.

use super::rig::{Writer, content, found, recover, recover_with};
use crate::format::footer::Keep;
use crate::format::geometry::LogStream::{Fill, Journal};
use crate::format::geometry::Numbers;
use crate::format::record::Kind::{Commit, Fill as FillData, Invalidate, Trim, Write, Zeroes};
use crate::format::{BLOCK, BLOCK_U64};
use crate::recovery::RecoveryError;

/// A journal with LSNs 1 to 3 durable; returns the batch with 4 and 5, and the one with 6 behind.
fn three_and_more(writer: &mut Writer) -> [super::rig::Ready; 2] {
    let first = [
        writer.item(Commit, 0, 0, 0, 0),
        writer.item(Write, 0, 10, 1, 1),
        writer.item(Write, 0, 11, 2, 2),
    ];
    writer.put(Journal, &first);
    writer.put(Journal, &[writer.item(Write, 1, 10, 1, 1), writer.item(Write, 0, 12, 1, 3)]);
    let (torn, _) =
        writer.batch(Journal, &[writer.item(Write, 0, 10, 1, 4), writer.item(Zeroes, 0, 11, 1, 5)]);
    let next = [writer.item(Write, 0, 12, 1, 6), writer.item(Write, 1, 20, 1, 2)];
    let (after, _) = writer.batch(Journal, &next);
    [torn, after]
}

#[test]
fn a_batch_torn_at_any_sector_ends_the_replay_there_and_nowhere_else() {
    for head_first in [true, false] {
        for with_next in [true, false] {
            let mut writer = Writer::new();
            let [torn, after] = three_and_more(&mut writer);
            let sectors = torn.bytes.len() / 512;
            for cut in 0..=sectors {
                let mut disk = writer.disk.clone();
                let (from, to) =
                    if head_first { (0, cut * 512) } else { (cut * 512, torn.bytes.len()) };
                disk.write(torn.offset + from as u64, &torn.bytes[from..to]);
                if with_next {
                    disk.write(after.offset, &after.bytes);
                }
                let whole = (head_first && cut == sectors) || (!head_first && cut == 0);
                // The sectors of a header behind its records are zero, those of a block behind
                // its first and last are too: what is there already may be as good.
                let same = disk.bytes[usize::try_from(torn.offset).unwrap()..][..torn.bytes.len()]
                    == torn.bytes[..];
                assert!(same || !whole);
                let got = recover(&mut disk).unwrap();
                let label = format!("head first {head_first}, next {with_next}, cut {cut}");
                assert_eq!(found(&disk, &got, 1, 10), Some((1, true)), "{label}");
                if same {
                    let last = if with_next { 6 } else { 5 };
                    assert_eq!(got.volumes[0].last.0, last, "{label}");
                    assert_eq!(found(&disk, &got, 0, 10), Some((4, true)), "{label}");
                    assert_eq!(found(&disk, &got, 0, 11), None, "{label}");
                    assert_eq!(got.ranges.len(), 1, "{label}");
                    let other = with_next.then_some((2, true));
                    assert_eq!(found(&disk, &got, 1, 20), other, "{label}");
                } else {
                    assert_eq!(got.volumes[0].last.0, 3, "{label}");
                    assert_eq!(got.volumes[1].last.0, 1, "{label}");
                    assert_eq!(found(&disk, &got, 0, 10), Some((1, true)), "{label}");
                    assert_eq!(found(&disk, &got, 0, 11), Some((2, true)), "{label}");
                    assert_eq!(found(&disk, &got, 0, 12), Some((3, true)), "{label}");
                    assert_eq!(found(&disk, &got, 1, 20), None, "{label}");
                    assert!(got.ranges.is_empty(), "{label}");
                }
                assert!(got.lost.is_empty(), "{label}");
            }
        }
    }
}

#[test]
fn a_batch_that_a_later_header_proves_durable_does_not_end_the_replay() {
    let mut writer = Writer::new();
    let [torn, after] = three_and_more(&mut writer);
    writer.disk.write(torn.offset, &torn.bytes);
    writer.disk.write(after.offset, &after.bytes);
    writer.durable_below = u64::MAX;
    writer.put(Journal, &[writer.item(Write, 0, 30, 1, 7)]);
    // Rot in the data of LSN 4: its blocks are known, dirty, and lost.
    let mut rotten = writer.disk.clone();
    rotten.bytes[usize::try_from(torn.offset).unwrap() + BLOCK + 100] ^= 1;
    let got = recover(&mut rotten).unwrap();
    assert_eq!(got.volumes[0].last.0, 7);
    assert_eq!(found(&rotten, &got, 0, 30), Some((7, true)));
    assert_eq!(got.lost.len(), 1);
    assert_eq!((got.lost[0].volume, got.lost[0].block, got.lost[0].lsn.0), (0, 10, 4));
    assert!(content(&got).contains_key(&(0, 10)), "the older version must not come back");
    // Rot in the header: what it held is unknown, what follows is not lost with it.
    let mut rotten = writer.disk.clone();
    rotten.bytes[usize::try_from(torn.offset).unwrap() + 100] ^= 1;
    let got = recover(&mut rotten).unwrap();
    assert_eq!(got.stats.damaged_batches, 1);
    assert_eq!(found(&rotten, &got, 0, 10), Some((1, true)));
    // That all before it was durable also proves that the gap in the LSNs is damage.
    assert_eq!(found(&rotten, &got, 0, 30), Some((7, true)));
    assert_eq!((got.volumes[0].last.0, got.stats.void), (7, 0));
}

/// The next lives give the same LSNs to other changes, and their headers say that all of theirs was durable.
#[test]
fn what_was_torn_stays_so_without_the_footer_that_recovery_made() {
    for (erased, header) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut writer = Writer::new();
        let [mut torn, after] = three_and_more(&mut writer);
        torn.bytes[if header { 100 } else { BLOCK + 100 }] ^= 1;
        writer.disk.write(torn.offset, &torn.bytes);
        if header {
            writer.disk.write(after.offset, &after.bytes);
        }
        let segment = writer.segment(Journal);
        let mut lsn = 3;
        for _ in 0..2 {
            let got = writer.restart();
            assert_eq!((got.volumes[0].last.0, found(&writer.disk, &got, 1, 20)), (lsn, None));
            writer.durable_below = u64::MAX;
            writer.put(Journal, &[writer.item(Commit, 0, 0, 0, lsn)]);
            for _ in 0..5 {
                lsn += 1;
                writer.put(Journal, &[writer.item(Write, 0, 40 + lsn, 1, lsn)]);
            }
        }
        let footer = u64::from(writer.map.geometry().footer_slot()) * BLOCK_U64;
        let at = writer.map.segment_offset(segment).unwrap() + footer;
        let at = usize::try_from(at).unwrap();
        assert!(writer.disk.bytes[at..].starts_with(b"FBYFOOT\0"));
        writer.disk.bytes[if erased { at } else { at + 200 }] ^= 1;
        let got = recover(&mut writer.disk).unwrap();
        let label = format!("erased {erased}, header {header}");
        assert_eq!(found(&writer.disk, &got, 0, 10), Some((1, true)), "{label}");
        assert_eq!(found(&writer.disk, &got, 0, 12), Some((3, true)), "{label}");
        assert_eq!(found(&writer.disk, &got, 1, 20), None, "{label}");
        assert_eq!(found(&writer.disk, &got, 0, 53), Some((13, true)), "{label}");
        assert!(got.ranges.is_empty() && got.lost.is_empty(), "{label}");
        assert_eq!(got.volumes[0].last.0, 13, "{label}");
    }
}

#[test]
fn stale_and_misdirected_batches_are_not_taken() {
    let mut writer = Writer::new();
    let [torn, _] = three_and_more(&mut writer);
    let clean = {
        let mut disk = writer.disk.clone();
        content(&recover(&mut disk).unwrap())
    };
    let mut places = vec![torn.offset + BLOCK_U64, torn.offset + 2 * BLOCK_U64];
    // Into a segment that is free, at its start and in its middle.
    let other = writer.map.segment_offset(writer.free[0]).unwrap();
    places.extend([other, other + 3 * BLOCK_U64]);
    for place in places {
        let mut disk = writer.disk.clone();
        disk.write(place, &torn.bytes);
        assert_eq!(content(&recover(&mut disk).unwrap()), clean, "at {place}");
    }
    // Of an earlier life of the segment, another shard, another cache device: at the right place.
    for (at, what) in [(32, "seq"), (14, "shard"), (16, "cache"), (56, "segment"), (66, "stream")] {
        let mut bytes = torn.bytes.clone();
        bytes[at] ^= 1;
        crate::format::test_support::fix_crc(&mut bytes[..BLOCK]);
        let mut disk = writer.disk.clone();
        disk.write(torn.offset, &bytes);
        assert_eq!(content(&recover(&mut disk).unwrap()), clean, "{what}");
    }
    // At its own place it counts.
    let mut disk = writer.disk.clone();
    disk.write(torn.offset, &torn.bytes);
    assert_ne!(content(&recover(&mut disk).unwrap()), clean);
}

#[test]
fn a_gap_in_the_lsns_of_one_volume_ends_that_volume_only() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    // The last batch of this segment never arrives, the next segment does.
    let _ = writer.batch(Journal, &[writer.item(Write, 0, 1, 1, 2)]);
    let _ = writer.footer(Journal, |_, _, _| Keep::Dirty);
    writer.put(
        Journal,
        &[
            writer.item(Commit, 0, 0, 0, 1),
            writer.item(Write, 0, 3, 1, 3),
            writer.item(Write, 1, 3, 1, 1),
        ],
    );
    let got = writer.restart();
    assert_eq!(got.volumes[0].last.0, 1);
    assert_eq!((got.volumes[0].void, got.volumes[1].void), (1, 0));
    assert_eq!(found(&writer.disk, &got, 0, 3), None);
    assert_eq!(found(&writer.disk, &got, 1, 3), Some((1, true)));
    // The next life gives the LSNs 2 and 3 to other writes: the void record stays void.
    for restart in 0..3 {
        if restart == 0 {
            writer.put(
                Journal,
                &[
                    writer.item(Commit, 0, 0, 0, 1),
                    writer.item(Write, 0, 50, 1, 2),
                    writer.item(Write, 0, 51, 1, 3),
                ],
            );
        }
        let got = writer.restart();
        assert_eq!(found(&writer.disk, &got, 0, 3), None, "restart {restart}");
        assert_eq!(found(&writer.disk, &got, 0, 51), Some((3, true)), "restart {restart}");
        assert_eq!(got.volumes[0].last.0, 3);
    }
}

#[test]
fn highest_lsn_wins_over_all_streams_and_trims_reach_as_far_as_they_say() {
    let mut writer = Writer::new();
    writer.put(Fill, &[writer.item(FillData, 0, 1, 2, 0)]);
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    // A fill that began before the write and arrived later.
    writer.put(Fill, &[writer.item(FillData, 0, 1, 1, 0)]);
    writer.put(Journal, &[writer.item(Write, 0, 2, 1, 2), writer.item(Write, 0, 3, 1, 3)]);
    writer.put(Journal, &[writer.item(Write, 0, 3, 1, 4)]);
    // Chosen when 3 was the last: covers 1 to 3 but not block 3's LSN 4.
    writer.put(Journal, &[writer.item(Trim, 0, 1, 3, 3)]);
    let got = recover(&mut writer.disk.clone()).unwrap();
    assert_eq!(found(&writer.disk, &got, 0, 1), Some((1, false)));
    assert_eq!(found(&writer.disk, &got, 0, 2), Some((2, false)));
    assert_eq!(found(&writer.disk, &got, 0, 3), Some((4, true)));
    assert_eq!((got.volumes[0].live, got.volumes[0].dirty), (3, 1));
    // Invalidation kills what is older, not a fill that began after it.
    writer.put(Journal, &[writer.item(Invalidate, 0, 1, 3, 5)]);
    writer.put(Fill, &[writer.item(FillData, 0, 2, 1, 5)]);
    let got = recover(&mut writer.disk.clone()).unwrap();
    assert_eq!(found(&writer.disk, &got, 0, 1), None);
    assert_eq!(found(&writer.disk, &got, 0, 2), Some((5, false)));
    assert_eq!((got.volumes[0].live, got.volumes[0].dirty), (1, 0));
    let live: u32 = got.segments.iter().map(|info| info.live).sum();
    assert_eq!(live, 1);
    assert_eq!(got.volumes[0].last.0, 5);
}

#[test]
fn zeroes_hide_what_is_older_and_give_way_to_what_is_newer() {
    for blocks in [8u32, 100_000] {
        let mut writer = Writer::new();
        writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 4, 1)]);
        writer.put(Journal, &[writer.item(Zeroes, 0, 2, blocks, 2)]);
        writer.put(Journal, &[writer.item(Write, 0, 4, 1, 3)]);
        let got = recover(&mut writer.disk.clone()).unwrap();
        let holes: Vec<_> = got.ranges.iter().map(|range| (range.block, range.blocks)).collect();
        let end = 2 + u64::from(blocks);
        assert_eq!(holes, [(2, 2), (5, end - 5)]);
        assert_eq!(content(&got).keys().map(|(_, block)| *block).collect::<Vec<_>>(), [1, 4]);
        // Moved within the journal, with the LSN kept, after the write: the write stays.
        let mut moved = writer.item(Zeroes, 0, 2, blocks, 2);
        moved.0.moved = true;
        writer.put(Journal, &[moved]);
        let got = recover(&mut writer.disk.clone()).unwrap();
        let again: Vec<_> = got.ranges.iter().map(|range| (range.block, range.blocks)).collect();
        assert_eq!(again, holes, "{blocks}");
        assert_eq!(found(&writer.disk, &got, 0, 4), Some((3, true)));
        // Destaged: no range is left, and what it killed stays dead.
        writer.put(Journal, &[writer.item(Trim, 0, 2, blocks, 3)]);
        let got = writer.restart();
        assert!(got.ranges.is_empty());
        assert_eq!(found(&writer.disk, &got, 0, 4), Some((3, false)));
        assert_eq!(found(&writer.disk, &got, 0, 2), None);
        let got = writer.restart();
        assert!(got.ranges.is_empty());
        assert_eq!(found(&writer.disk, &got, 0, 2), None);
    }
}

#[test]
fn a_higher_cache_generation_and_a_reused_index_make_records_dead() {
    let mut writer = Writer::new();
    writer.put(
        Journal,
        &[
            writer.item(Commit, 0, 0, 0, 0),
            writer.item(Write, 0, 1, 1, 1),
            writer.item(Write, 1, 1, 1, 1),
        ],
    );
    let generation = writer.superblock.take_generation();
    let entry = writer.superblock.volume_mut(0).unwrap();
    entry.generation = generation;
    entry.accounted = forebay_io::Lsn(1);
    writer.write_superblock();
    let got = writer.restart();
    assert_eq!(content(&got).len(), 1);
    assert_eq!(got.volumes[0].last.0, 1);
    assert_eq!(got.stats.stale, 2);
    assert_eq!(found(&writer.disk, &got, 1, 1), Some((1, true)));
}

#[test]
fn a_superblock_older_than_the_log_is_refused() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    let old = writer.superblock.clone();
    writer.restart();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 1), writer.item(Write, 0, 1, 1, 2)]);
    writer.superblock = old;
    writer.superblock.generation += 10;
    writer.write_superblock();
    let error = recover_with(&mut writer.disk, true).err().unwrap();
    assert!(matches!(error, RecoveryError::Superseded { .. }), "{error}");
    assert!(error.to_string().contains("older copy"));
}

#[test]
fn a_batch_of_a_later_incarnation_inside_an_open_segment_is_refused_before_anything_is_written() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    writer.numbers = Numbers::new(writer.superblock.incarnation + 1);
    writer.put(Journal, &[writer.item(Write, 0, 2, 1, 2)]);
    let before = writer.disk.bytes.clone();
    let error = recover(&mut writer.disk).err().unwrap();
    assert!(matches!(error, RecoveryError::Superseded { .. }), "{error}");
    assert!(writer.disk.bytes == before);
}

#[test]
fn a_segment_of_the_cache_that_was_here_before_a_format_does_not_count() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    writer.seal_all(Journal);
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 1), writer.item(Write, 0, 2, 1, 2)]);
    assert_eq!(content(&recover(&mut writer.disk.clone()).unwrap()).len(), 2);
    // The same volumes on a cache with another identity.
    writer.superblock.cache = forebay_io::Uuid::from_random([0xcb; 16]);
    let header =
        crate::format::device::DeviceHeader { cache: writer.superblock.cache, ..writer.header };
    let mut block = [0; BLOCK];
    header.encode(&mut block);
    writer.disk.write(0, &block);
    writer.disk.write(crate::format::device::HEADER_COPY_OFFSET, &block);
    writer.write_superblock();
    assert!(content(&recover(&mut writer.disk).unwrap()).is_empty());
}

#[test]
fn a_kill_reaches_a_fill_that_was_placed_before_it_in_a_batch_with_a_higher_number() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Invalidate, 0, 1, 1, 1)]);
    writer.put(Fill, &[writer.item(FillData, 0, 1, 1, 0), writer.item(FillData, 0, 2, 1, 0)]);
    let got = recover(&mut writer.disk).unwrap();
    assert_eq!(content(&got).keys().collect::<Vec<_>>(), [&(0, 2)]);
}

#[test]
fn a_copy_moved_as_dirty_is_clean_when_its_version_is_known_to_be() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    writer.put(Journal, &[writer.item(Trim, 0, 1, 1, 1)]);
    let mut moved = writer.item(Write, 0, 1, 1, 1);
    moved.0.moved = true;
    let slots = writer.put(crate::format::geometry::LogStream::Reinsert, &[moved]);
    let got = recover(&mut writer.disk).unwrap();
    assert_eq!(content(&got)[&(0, 1)], (slots[0], false));
}

#[test]
fn a_void_record_stays_void_even_if_the_footer_that_left_it_out_is_damaged() {
    let mut writer = Writer::new();
    writer.put(Journal, &[writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)]);
    let _ = writer.batch(Journal, &[writer.item(Write, 0, 1, 1, 2)]);
    writer.end(Journal);
    let gap = [writer.item(Commit, 0, 0, 0, 1), writer.item(Write, 0, 3, 1, 3)];
    writer.put(Journal, &gap);
    let segment = writer.segment(Journal);
    writer.restart();
    let slot = u64::from(writer.map.geometry().footer_slot());
    let at = writer.map.segment_offset(segment).unwrap() + slot * BLOCK_U64;
    assert!(writer.disk.bytes[usize::try_from(at).unwrap()..].starts_with(b"FBYFOOT"));
    for byte in [3, 200] {
        let mut disk = writer.disk.clone();
        disk.bytes[usize::try_from(at).unwrap() + byte] ^= 1;
        let got = recover(&mut disk).unwrap();
        assert_eq!(found(&disk, &got, 0, 3), None, "byte {byte}");
        assert_eq!(got.volumes[0].last.0, 1);
    }
}

#[test]
fn a_change_whose_blocks_are_left_out_of_a_footer_leaves_no_gap() {
    let mut writer = Writer::new();
    let first = [writer.item(Commit, 0, 0, 0, 0), writer.item(Write, 0, 1, 1, 1)];
    writer.put(Journal, &first);
    writer.put(Journal, &[writer.item(Write, 0, 2, 1, 2)]);
    writer.park(Journal);
    // The commit mark is older than LSN 2, which LSN 3 overwrites before the footer is built.
    let next = [writer.item(Commit, 0, 0, 0, 1), writer.item(Write, 0, 2, 1, 3)];
    writer.put(Journal, &next);
    writer.seal_parked(Journal, |_, block, _| if block == 2 { Keep::Dead } else { Keep::Dirty });
    for _ in 0..2 {
        let got = writer.restart();
        assert_eq!((got.volumes[0].last.0, got.volumes[0].void), (3, 0));
        assert_eq!(found(&writer.disk, &got, 0, 2), Some((3, true)));
        assert_eq!(found(&writer.disk, &got, 0, 1), Some((1, true)));
    }
}
