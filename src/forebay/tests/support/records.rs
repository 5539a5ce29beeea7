//! Where blocks are on a cache device that lies in a file, found as docs/FORMAT.md says: without the
//! daemon's own code, so that a test can spoil what it means to.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SLOT: u64 = 4096;

/// A block's newest record with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its LSN, then the number of its batch.
    pub version: (u64, u64),
    /// Where its data is in the file.
    pub offset: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

fn slot_at(file: &File, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// The newest record with data of each cache block of a device with one volume.
pub fn records(path: &Path) -> BTreeMap<u64, Found> {
    let file = File::open(path).unwrap();
    let head = slot_at(&file, 0);
    assert_eq!(&head[..8], b"FOREBAY\0");
    let (shards, slots, footer) =
        (number::<2>(&head, 14), number::<4>(&head, 40), number::<4>(&head, 44));
    let (segments, size) = (number::<4>(&head, 48), number::<4>(&head, 40) * SLOT);
    let first = ((128 << 10) + shards * 2 * (256 << 10)).next_multiple_of(size);
    let mut found = BTreeMap::new();
    for segment in (0..segments).map(|n| first + n * size) {
        let (mut slot, mut seq) = (0, None);
        while slot < slots - 1 - footer {
            let header = slot_at(&file, segment + slot * SLOT);
            let same = *seq.get_or_insert(number::<8>(&header, 32)) == number::<8>(&header, 32);
            if &header[..8] != b"FBYBATCH" || !same || number::<2>(&header, 60) != slot {
                break;
            }
            take(&header, segment, &mut found);
            slot += 1 + number::<2>(&header, 62);
        }
    }
    found
}

/// The records of one batch header.
fn take(header: &[u8], segment: u64, found: &mut BTreeMap<u64, Found>) {
    let batch = number::<8>(header, 40);
    let mut at = 80;
    for _ in 0..number::<2>(header, 64) {
        let (kind, blocks) = (header[at], number::<4>(header, at + 32));
        let (block, lsn) = (number::<8>(header, at + 8), number::<8>(header, at + 16));
        let slot = number::<2>(header, at + 36);
        at += 40;
        if !matches!(kind, 1 | 2) {
            continue;
        }
        for n in 0..blocks {
            let offset = segment + (slot + n) * SLOT;
            let new = Found { version: (lsn, batch), offset };
            let old = found.entry(block + n).or_insert(new);
            *old = new.max(*old);
        }
        at += usize::try_from(blocks * 4).unwrap();
    }
}

/// Flips one bit.
pub fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    // The daemon reads past the page cache.
    file.sync_data().unwrap();
}
