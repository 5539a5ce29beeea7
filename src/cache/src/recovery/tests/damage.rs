//! Blocks that cannot be read and bytes that rot: the rest is recovered, what is lost is said.

use super::rig::{Writer, content, found, open, recover, recover_with, warmed};
use crate::format::BLOCK_U64;
use crate::format::device::OpenError;
use crate::format::footer::Keep;
use crate::format::geometry::LogStream::{Fill, Journal};
use crate::format::record::Kind;
use crate::format::superblock::{MAX_GENERATION, SuperblockError};
use crate::recovery::{RecoveryError, SegmentState};

fn log() -> Writer {
    let mut writer = Writer::new();
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 1, 3, 1)],
    );
    writer.put(Fill, &[writer.item(Kind::Fill, 0, 9, 2, 0)]);
    writer.put(Journal, &[writer.item(Kind::Write, 0, 2, 1, 2)]);
    writer.seal_all(Journal);
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 2), writer.item(Kind::Write, 0, 3, 1, 3)],
    );
    writer
}

#[test]
fn any_one_block_unreadable_costs_no_more_than_what_it_held() {
    let writer = log();
    let whole = content(&recover(&mut writer.disk.clone()).unwrap());
    let blocks = writer.disk.bytes.len() as u64 / BLOCK_U64;
    let start = writer.map.segment_offset(0).unwrap() / BLOCK_U64;
    let (mut same, mut less) = (0, 0);
    for block in start..blocks {
        let mut disk = writer.disk.clone();
        disk.unreadable.insert(block);
        let got = recover(&mut disk).unwrap();
        let now = content(&got);
        let bad = got.segments.iter().filter(|info| info.state == SegmentState::Bad).count();
        if now == whole {
            same += 1;
        } else {
            less += 1;
            // One of the segments without a footer lost its tail, or its start.
            for (key, (slot, _)) in &now {
                let expected = whole.get(key).map(|(slot, _)| *slot);
                assert!(
                    expected == Some(*slot) || *key == (0, 3) || *key == (0, 9) || *key == (0, 10),
                    "block {block}: {key:?}"
                );
            }
            assert!(whole.len() - now.len() <= 2, "block {block}");
        }
        assert!(bad <= 1);
    }
    assert!(less >= 3 && same > 100, "{same} {less}");
}

#[test]
fn a_damaged_footer_is_replaced_by_the_batches_themselves() {
    let writer = log();
    let whole = content(&recover(&mut writer.disk.clone()).unwrap());
    let slot = u64::from(writer.map.geometry().footer_slot());
    let mut tried = 0;
    for segment in 0..writer.map.segments() {
        let at = writer.map.segment_offset(segment).unwrap() + slot * BLOCK_U64;
        let at = usize::try_from(at).unwrap();
        if !writer.disk.bytes[at..].starts_with(b"FBYFOOT\0") {
            continue;
        }
        for byte in 0..400 {
            let mut disk = writer.disk.clone();
            disk.bytes[at + byte] ^= 0x10;
            let got = recover(&mut disk).unwrap();
            assert_eq!(content(&got), whole, "byte {byte}");
            assert_eq!(got.volumes[0].last.0, 3);
            tried += 1;
        }
    }
    assert_eq!(tried, 400);
}

/// A fill with an LSN that the journal does not show any more, in a segment that is read later.
#[test]
fn what_comes_after_a_start_in_stages_is_newer_than_what_damage_hides() {
    for kind in [Kind::Invalidate, Kind::Write] {
        let mut writer = Writer::new();
        writer.put(
            Journal,
            &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 1, 1, 1)],
        );
        let (mut last, _) = writer.batch(Journal, &[writer.item(Kind::Write, 0, 2, 1, 2)]);
        writer.put(Fill, &[writer.item(Kind::Fill, 0, 9, 1, 2)]);
        writer.seal(Fill, |_, _, _| Keep::Clean);
        last.bytes[100] ^= 1;
        writer.disk.write(last.offset, &last.bytes);
        let (blocks, got) = warmed(&mut writer.disk);
        assert_eq!(blocks, 2);
        writer.adopt(&got);
        let lsn = got.volumes[0].last.0 + 1;
        let change = [writer.item(Kind::Commit, 0, 0, 0, lsn - 1), writer.item(kind, 0, 9, 1, lsn)];
        writer.put(Journal, &change);
        let (blocks, _) = warmed(&mut writer.disk.clone());
        let got = recover(&mut writer.disk).unwrap();
        let there = (kind == Kind::Write).then_some((lsn, true));
        assert_eq!(found(&writer.disk, &got, 0, 9), there);
        assert_eq!(blocks, 1 + u64::from(there.is_some()));
        assert_eq!(got.volumes[0].last.0, lsn);
    }
}

#[test]
fn a_footer_damaged_after_older_segments_were_freed_makes_its_dirty_blocks_lost() {
    let mut writer = Writer::new();
    // The fill segment is opened first, sealed and freed after the journal's was opened.
    writer.put(Fill, &[writer.item(Kind::Fill, 0, 9, 1, 0)]);
    let fill = writer.seq(Fill);
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 1, 2, 1)],
    );
    let (segment, seal) = writer.seal_all(Fill);
    let (journal, _) = writer.seal_all(Journal);
    writer.free(Fill, segment, fill, seal);
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 1), writer.item(Kind::Write, 0, 2, 1, 2)],
    );
    let slot = u64::from(writer.map.geometry().footer_slot());
    let at = writer.map.segment_offset(journal).unwrap() + slot * BLOCK_U64;
    writer.disk.bytes[usize::try_from(at).unwrap() + 5] ^= 1;
    let got = recover(&mut writer.disk).unwrap();
    assert_eq!(got.lost.len(), 1);
    assert_eq!((got.lost[0].block, got.lost[0].blocks, got.lost[0].lsn.0), (1, 1, 1));
    assert_eq!(found(&writer.disk, &got, 0, 2), Some((2, true)), "the newer version is fine");
    // It is still dirty, and its CRC matches nothing: a read fails until the host writes it anew.
    let entry = got.index.get(crate::index::Key::new(0, 1).unwrap()).unwrap();
    let key = got.superblock.volume(0).unwrap().key();
    let crc = forebay_io::crc::block_crc(key, 1, 0, &super::rig::data(0, 1, 1, 1));
    assert!(entry.flags.dirty() && !got.folds.matches(entry.slot, crc));
    // So it stays at the next start, from the footer that this recovery wrote.
    let again = recover(&mut writer.disk).unwrap();
    assert_eq!(content(&again), content(&got));
    assert!(!again.folds.matches(entry.slot, crc));
}

#[test]
fn either_copy_of_the_superblock_and_of_the_header_is_enough() {
    let writer = log();
    let whole = content(&recover(&mut writer.disk.clone()).unwrap());
    let header = &writer.header;
    let places = [
        [0, crate::format::device::HEADER_COPY_OFFSET],
        [header.superblock_offset(0, 0), header.superblock_offset(0, 1)],
    ];
    for pair in places {
        for at in pair {
            let mut disk = writer.disk.clone();
            disk.bytes[usize::try_from(at).unwrap() + 70] ^= 4;
            assert_eq!(content(&recover(&mut disk).unwrap()), whole, "{at}");
            if at >= header.superblock_offset(0, 0) {
                let mut disk = writer.disk.clone();
                disk.unreadable.insert(at / BLOCK_U64);
                assert_eq!(content(&recover(&mut disk).unwrap()), whole, "{at} unreadable");
            }
        }
        let mut disk = writer.disk.clone();
        for at in pair {
            disk.bytes[usize::try_from(at).unwrap() + 70] ^= 4;
        }
        let error = open(&mut disk).unwrap_err();
        assert!(
            matches!(error, OpenError::HeaderDamaged | OpenError::SuperblockDamaged { shard: 0 }),
            "{error:?}"
        );
    }
}

#[test]
fn a_superblock_of_the_last_generation_is_refused_and_stays_as_it_is() {
    let mut writer = log();
    writer.superblock.generation = MAX_GENERATION - 4;
    writer.write_superblock();
    let before = writer.disk.bytes.clone();
    let refused = recover(&mut writer.disk).err();
    assert!(recover_with(&mut writer.disk, true).is_ok());
    assert_eq!(refused, Some(RecoveryError::Superblock(SuperblockError::Generation)));
    assert!(writer.disk.bytes == before);
}
