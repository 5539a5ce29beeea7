//! An arbitrary ordered journal: opened, and opened once more. An input is what is expected of the
//! journal (1 byte, modulo 4) and a list of edits to a sound one that holds a complete batch.
//!
//! ```text
//! edit: kind (1 byte), block of those that are used (1), offset in it (2, LE), 8 bytes
//! ```
//! Kinds (modulo 8): 0–2 write 1, 4 or 8 of the bytes; 3 write them and make the CRC of the structure
//! right; 4 copy another block here; 5 zero the block from the offset on; 6 the block cannot be read;
//! 7 all blocks from here on are zero.

use crate::reached::{BATCHES, JOURNALS};
use crate::storage::fix_crc;
use forebay_cache::format::BLOCK;
use forebay_cache::format::order_journal::{
    Entry, HEADERS, Header, Layout, State, data_crc, encode_table,
};
use forebay_cache::order_journal::{Expect, Found, JournalOpener, OpenedJournal};
use forebay_io::device::DeviceInfo;
use forebay_io::{Buf, Completion, DeviceError, HeapBuf, HeapPool, Lsn, Op, OpKind, Uuid};
use std::collections::{BTreeMap, BTreeSet};

const SIZE: u64 = 4 << 20;
const BACKING: u64 = 1 << 20;
const EDIT: usize = 12;
/// Operations of one opening at most: every block a few times.
const OPS_MAX: usize = 4096;
const VOLUME: Uuid = Uuid([7; 16]);
const ENTRIES: usize = 6;

fn info(identity: &str, size: u64) -> DeviceInfo {
    DeviceInfo {
        size,
        block_size: 512,
        atomic_write: 4096,
        volatile_write_cache: true,
        optimal_io: 4096,
        max_io: 64 << 10,
        deallocate: true,
        write_zeroes: true,
        identity: identity.to_owned(),
    }
}

#[derive(Clone, Default)]
struct Disk {
    blocks: BTreeMap<u64, Vec<u8>>,
    unreadable: BTreeSet<u64>,
    ops: usize,
}

impl Disk {
    /// A journal with a complete batch.
    fn sound() -> Self {
        let layout = Layout::of(SIZE).expect("room for a journal");
        let batch = 4;
        let mut disk = Self::default();
        let mut entries = Vec::new();
        for block in 0..ENTRIES as u64 - 1 {
            let data = vec![u8::try_from(block).expect("small") + 1; BLOCK];
            entries.push(Entry::Data { block, crc: data_crc(VOLUME, batch, block, &data) });
            disk.blocks.insert(layout.data_offset(block) / BLOCK as u64, data);
        }
        entries.push(Entry::Zeroes { block: 100, blocks: 20 });
        let mut table = [0; BLOCK];
        encode_table(batch, 0, &entries, &mut table);
        disk.blocks.insert(layout.table_offset(0) / BLOCK as u64, table.to_vec());
        for (generation, state) in [(3, State::Nothing), (batch, State::Complete)] {
            let header = Header {
                volume: VOLUME,
                generation,
                state,
                layout,
                batch,
                end: Lsn(77),
                entries: ENTRIES as u64,
                backing_size: BACKING,
                backing_identity: "backing".to_owned(),
            };
            let mut block = [0; BLOCK];
            assert!(header.encode(&mut block));
            disk.blocks.insert(header.offset() / BLOCK as u64, block.to_vec());
        }
        disk
    }

    fn edit(&mut self, edit: &[u8]) {
        let used: Vec<u64> = self.blocks.keys().copied().collect();
        let pick = |byte: u8| used[usize::from(byte) % used.len()];
        let number = pick(edit[1]);
        let at = usize::from(u16::from_le_bytes([edit[2], edit[3]])) % (BLOCK - 8);
        let other = self.blocks.get(&pick(edit[4])).cloned();
        let Some(block) = self.blocks.get_mut(&number) else { return };
        match edit[0] & 7 {
            kind @ 0..=3 => {
                let len = [1, 4, 8, 8][usize::from(kind)];
                block[at..at + len].copy_from_slice(&edit[4..4 + len]);
                if kind == 3 {
                    fix_crc(block);
                }
            }
            4 => *block = other.expect("a block that is used"),
            5 => block[at..].fill(0),
            6 => {
                self.unreadable.insert(number);
            }
            _ => self.blocks.range_mut(number..).for_each(|(_, block)| block.fill(0)),
        }
    }

    fn execute(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        self.ops += 1;
        assert!(self.ops < OPS_MAX, "it does not end");
        let mut buf = op.buf;
        let mut result = Ok(());
        let end = op.offset.checked_add(op.len).expect("an offset that is one");
        assert!(end <= SIZE && (op.offset | op.len).is_multiple_of(BLOCK as u64));
        let blocks = op.offset / BLOCK as u64..end / BLOCK as u64;
        match op.kind {
            OpKind::Flush => {}
            OpKind::Read if blocks.clone().any(|block| self.unreadable.contains(&block)) => {
                result = Err(DeviceError::Media);
            }
            OpKind::Read => {
                let out = buf.as_mut().and_then(Buf::as_mut_slice).expect("a buffer of its own");
                for (out, block) in out.chunks_mut(BLOCK).zip(blocks) {
                    match self.blocks.get(&block) {
                        Some(block) => out.copy_from_slice(block),
                        None => out.fill(0),
                    }
                }
            }
            OpKind::Write => {
                assert!(blocks.end <= HEADERS, "only a header is written");
                let data = buf.as_ref().expect("a buffer").as_slice();
                for (data, block) in data.chunks(BLOCK).zip(blocks) {
                    self.blocks.insert(block, data.to_vec());
                    self.unreadable.remove(&block);
                }
            }
            _ => result = Err(DeviceError::Unsupported),
        }
        Completion { token: op.token, result, buf }
    }

    fn open(&mut self, expect: Expect) -> Option<OpenedJournal> {
        let backing = info("backing", BACKING);
        let opener = JournalOpener::new(VOLUME, &backing, &info("journal", SIZE));
        let mut opener = opener.expecting(expect);
        loop {
            match opener.result() {
                Some(Ok(opened)) => return Some(opened),
                Some(Err(error)) => {
                    assert!(!error.to_string().is_empty());
                    return None;
                }
                None => {}
            }
            let op = opener.poll_action(&mut HeapPool).expect("opening is stuck");
            opener.handle_completion(self.execute(op));
        }
    }
}

/// Edits of a journal.
pub fn journal(input: &[u8]) {
    let (select, edits) = input.split_first().map_or((0, input), |(first, rest)| (*first, rest));
    let expect = [Expect::Anything, Expect::Look, Expect::Outdated][usize::from(select) % 3];
    let mut disk = Disk::sound();
    edits.chunks_exact(EDIT).for_each(|edit| disk.edit(edit));
    let before = disk.blocks.clone();
    let Some(opened) = disk.open(expect) else {
        assert!(disk.blocks == before, "what is refused is left as it is");
        return;
    };
    JOURNALS.add(1);
    assert!(expect != Expect::Look || disk.blocks == before, "a look changes nothing");
    assert!(opened.header.layout.bytes() <= SIZE);
    if let Found::Batch(entries) = &opened.found {
        BATCHES.add(1);
        assert_eq!(entries.len() as u64, opened.header.entries);
        let data = entries.iter().filter(|entry| matches!(entry, Entry::Data { .. }));
        assert!(data.count() as u64 <= opened.header.layout.data);
        for entry in entries {
            let (block, blocks) = match *entry {
                Entry::Data { block, .. } => (block, 1),
                Entry::Zeroes { block, blocks } => (block, u64::from(blocks)),
            };
            assert!((block + blocks) * BLOCK as u64 <= BACKING, "inside the backing device");
        }
    }
    if expect != Expect::Look {
        let again = disk.open(Expect::Anything).expect("what was opened can be opened");
        assert_eq!((again.header, again.found), (opened.header, opened.found));
    }
}
