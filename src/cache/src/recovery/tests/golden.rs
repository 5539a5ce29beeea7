//! The image of format version 1 that is kept in the tests: it must be made byte for byte as it
//! was, and must recover as it did. When it fails, the format has changed: raise the version, and
//! have the image of the new one written to the path in `FOREBAY_WRITE_GOLDEN` (at compile time).

use super::rig::{Disk, Writer, found, recover};
use crate::format::footer::Keep;
use crate::format::geometry::LogStream::{Fill, Journal, Reinsert};
use crate::format::record::Kind;

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/v1.sparse");
const RUN: usize = 16;

/// The image as its size and the runs of 16 bytes that are not all zero: offset, length, bytes.
fn sparse(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    let mut at = 0;
    let zero = |at: usize| bytes[at..at + RUN].iter().all(|byte| *byte == 0);
    while at < bytes.len() {
        let from = at;
        while at < bytes.len() && !zero(at) {
            at += RUN;
        }
        if at > from {
            out.extend((from as u64).to_le_bytes());
            out.extend(((at - from) as u64).to_le_bytes());
            out.extend(&bytes[from..at]);
        } else {
            at += RUN;
        }
    }
    out
}

fn whole(sparse: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        usize::try_from(u64::from_le_bytes(*sparse[at..].first_chunk().unwrap())).unwrap()
    };
    let mut bytes = vec![0; number(0)];
    let mut at = 8;
    while at < sparse.len() {
        let (offset, len) = (number(at), number(at + 8));
        bytes[offset..offset + len].copy_from_slice(&sparse[at + 16..at + 16 + len]);
        at += 16 + len;
    }
    bytes
}

/// Every structure and every kind of record.
fn make() -> Writer {
    let mut writer = Writer::blank(0);
    let mut discard = writer.item(Kind::Discard, 1, 100, 8, 2);
    discard.0.epoch = forebay_io::Epoch(5);
    let mut promise = writer.item(Kind::Promise, 1, 0, 0, 0);
    promise.0.epoch = forebay_io::Epoch(6);
    writer.put(
        Journal,
        &[
            writer.item(Kind::Commit, 0, 0, 0, 0),
            writer.item(Kind::Commit, 1, 0, 0, 0),
            writer.item(Kind::Write, 0, 1, 2, 1),
            writer.item(Kind::Write, 1, 1 << 35, 1, 1),
            promise,
        ],
    );
    writer.put(Fill, &[writer.item(Kind::Fill, 0, 50, 2, 1)]);
    writer.put(
        Journal,
        &[
            writer.item(Kind::Zeroes, 0, 60, 1 << 20, 2),
            discard,
            writer.item(Kind::Invalidate, 0, 50, 1, 3),
            writer.item(Kind::Trim, 0, 1, 1, 3),
        ],
    );
    let seq = writer.seq(Journal);
    let (segment, seal) =
        writer.seal(Journal, |_, block, _| if block == 1 { Keep::Clean } else { Keep::Dirty });
    let mut moved = writer.item(Kind::Write, 1, 1 << 35, 1, 1);
    moved.0.moved = true;
    let mut zeroes = writer.item(Kind::Zeroes, 0, 60, 1 << 20, 2);
    zeroes.0.moved = true;
    let mut again = writer.item(Kind::Write, 0, 2, 1, 1);
    again.0.moved = true;
    writer.put(Reinsert, &[moved, again]);
    writer.put(
        Journal,
        &[
            writer.item(Kind::Commit, 0, 0, 0, 3),
            writer.item(Kind::Commit, 1, 0, 0, 2),
            zeroes,
            writer.item(Kind::Write, 0, 70, 1, 4),
        ],
    );
    writer.seal(Fill, |_, block, _| if block == 50 { Keep::Dead } else { Keep::Clean });
    writer.free(Journal, segment, seq, seal);
    writer
}

#[test]
fn format_version_1_is_written_as_it_was() {
    let made = sparse(&make().disk.bytes);
    if let Some(path) = option_env!("FOREBAY_WRITE_GOLDEN") {
        std::fs::write(path, &made).unwrap();
    }
    assert_eq!(made.len(), GOLDEN.len());
    let differs = made.iter().zip(GOLDEN).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first byte that differs");
    assert!(GOLDEN.len() < 16_384, "{} bytes", GOLDEN.len());
}

#[test]
fn format_version_1_recovers() {
    let mut disk = Disk::new(whole(GOLDEN));
    let got = recover(&mut disk).unwrap();
    let last: Vec<_> = got.volumes.iter().map(|volume| volume.last.0).collect();
    assert_eq!(last, [4, 2]);
    assert_eq!(found(&disk, &got, 0, 1), None, "clean, and freed");
    assert_eq!(found(&disk, &got, 0, 2), Some((1, true)));
    assert_eq!(found(&disk, &got, 1, 1 << 35), Some((1, true)));
    assert_eq!(found(&disk, &got, 0, 50), None);
    assert_eq!(found(&disk, &got, 0, 51), Some((1, false)));
    assert_eq!(found(&disk, &got, 0, 70), Some((4, true)));
    let ranges: Vec<_> =
        got.ranges.iter().map(|r| (r.volume, r.block, r.blocks, r.lsn.0, r.discard)).collect();
    assert_eq!(ranges, [(0, 60, 10, 2, false), (0, 71, (1 << 20) - 11, 2, false)]);
    assert_eq!(got.volumes.iter().map(|volume| volume.dirty).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(got.stats.sealed, 2);
    assert!(got.lost.is_empty());
}
