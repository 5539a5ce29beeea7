//! A crash inside recovery: whatever part of its writes arrived, the next recovery finds the same.

use super::rig::{Disk, Writer, content, recover, recover_with};
use crate::format::geometry::LogStream::{Fill, Journal};
use crate::format::record::Kind;
use std::collections::BTreeMap;

type Content = (BTreeMap<(u16, u64), (u32, bool)>, Vec<u64>, usize);

fn summary(disk: &Disk) -> Content {
    let got = recover_with(&mut disk.clone(), true).unwrap();
    let last = got.volumes.iter().map(|volume| volume.last.0).collect();
    (content(&got), last, got.ranges.len())
}

fn torn_log() -> Writer {
    let mut writer = Writer::new();
    writer.put(
        Journal,
        &[writer.item(Kind::Commit, 0, 0, 0, 0), writer.item(Kind::Write, 0, 1, 3, 1)],
    );
    writer.put(Fill, &[writer.item(Kind::Fill, 0, 9, 1, 0)]);
    // The tail of this segment is torn, and so is its footer; the next segment has a gap.
    let (torn, _) = writer.batch(Journal, &[writer.item(Kind::Write, 0, 1, 1, 2)]);
    writer.disk.write(torn.offset, &torn.bytes[..5000]);
    let _ = writer.footer(Journal, |_, _, _| crate::format::footer::Keep::Dirty);
    writer.put(
        Journal,
        &[
            writer.item(Kind::Commit, 0, 0, 0, 1),
            writer.item(Kind::Write, 0, 2, 1, 3),
            writer.item(Kind::Zeroes, 1, 5, 2, 1),
        ],
    );
    writer
}

#[test]
fn every_prefix_and_every_single_write_of_a_recovery_leaves_the_same() {
    let writer = torn_log();
    let expected = summary(&writer.disk);
    assert_eq!(expected.1, [1, 1]);
    let mut disk = Disk::new(writer.disk.bytes.clone());
    recover(&mut disk).unwrap();
    let writes = disk.writes.clone();
    assert!(writes.len() >= 5, "{} writes", writes.len());
    assert_eq!(disk.flushes, 3);
    let mut images = 0;
    for upto in 0..=writes.len() {
        let mut prefix = writer.disk.clone();
        for (offset, bytes) in &writes[..upto] {
            prefix.write(*offset, bytes);
        }
        assert_eq!(summary(&prefix), expected, "prefix {upto}");
        // The next write torn at each sector, in both directions.
        if let Some((offset, bytes)) = writes.get(upto) {
            for cut in 0..=bytes.len() / 512 {
                for head in [true, false] {
                    let mut torn = prefix.clone();
                    let (from, to) = if head { (0, cut * 512) } else { (cut * 512, bytes.len()) };
                    torn.write(offset + from as u64, &bytes[from..to]);
                    assert_eq!(summary(&torn), expected, "write {upto} cut {cut} head {head}");
                    images += 1;
                }
            }
        }
    }
    // The footers are written without an order between them.
    for (offset, bytes) in &writes[..3] {
        let mut one = writer.disk.clone();
        one.write(*offset, bytes);
        assert_eq!(summary(&one), expected, "only the footer at {offset}");
        images += 1;
    }
    assert!(images >= 90, "{images}");
}

#[test]
fn a_second_recovery_writes_no_footer_and_finds_the_same() {
    let mut writer = torn_log();
    let first = recover(&mut writer.disk).unwrap();
    assert_eq!(first.stats.sealed, 3);
    writer.disk.writes.clear();
    let second = recover(&mut writer.disk).unwrap();
    assert_eq!((second.stats.sealed, second.stats.scanned), (0, 0));
    assert_eq!(content(&first), content(&second));
    assert_eq!(second.superblock.incarnation, first.superblock.incarnation + 1);
    assert_eq!(writer.disk.writes.len(), 2, "the two copies of the superblock");
}
