//! An arbitrary image of a cache device: opened, recovered, and recovered once more; and the same in
//! stages, up to an engine that has read all that was left for later. An input is a list of edits to a
//! sound image that holds every structure and every kind of record.
//!
//! ```text
//! edit: kind (1 byte), block among those that are not zero (1), offset in it (2, LE), 8 bytes
//! ```
//! Kinds (modulo 8): 0–3 write 1, 2, 4 or 8 of the bytes; 4 copy another block here; 5 zero the
//! block from the offset on; 6 the block cannot be read; 7 write them and make the CRC of the
//! structure right. With bit 7 of the kind all structures that were written to get right CRCs.

use crate::reached::{RECOVERED, REFUSED};
use crate::storage::fix;
use forebay_cache::engine::{Action, Engine, EngineConfig, Limits, Source};
use forebay_cache::format::BLOCK;
use forebay_cache::format::open::{Opened, Opener};
use forebay_cache::index::Index;
use forebay_cache::policy::PolicyKind;
use forebay_cache::recovery::{Recovered, Recovery, RecoveryError};
use forebay_io::{Buf, Completion, DeviceError, HeapBuf, HeapPool, Instant, Op, OpKind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

const SPARSE: &[u8] = include_bytes!("../../../src/cache/tests/golden/v1.sparse");
/// Operations of one recovery at most: every block of the image a few times.
const OPS_MAX: usize = 20_000;
const EDIT: usize = 12;

/// The sound image, and its blocks that are not all zero.
struct Base {
    bytes: Vec<u8>,
    blocks: Vec<u64>,
}

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let number = |at: usize| {
        let raw = SPARSE[at..].first_chunk().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(*raw)).expect("a small number")
    };
    let mut bytes = vec![0; number(0)];
    let mut at = 8;
    while at < SPARSE.len() {
        let (offset, len) = (number(at), number(at + 8));
        bytes[offset..offset + len].copy_from_slice(&SPARSE[at + 16..at + 16 + len]);
        at += 16 + len;
    }
    let used =
        |(at, block): (usize, &[u8])| block.iter().any(|byte| *byte != 0).then_some(at as u64);
    let blocks = bytes.chunks(BLOCK).enumerate().filter_map(used).collect();
    Base { bytes, blocks }
});

/// The sound image.
pub(crate) fn sound_image() -> &'static [u8] {
    &BASE.bytes
}

/// A device of which only what differs from the base is kept.
#[derive(Clone, Default)]
struct Disk {
    changed: BTreeMap<u64, Vec<u8>>,
    unreadable: BTreeSet<u64>,
    ops: usize,
}

impl Disk {
    fn block(&self, number: u64) -> &[u8] {
        let at = number as usize * BLOCK;
        self.changed.get(&number).map_or_else(|| &BASE.bytes[at..at + BLOCK], Vec::as_slice)
    }

    fn change(&mut self, number: u64) -> &mut Vec<u8> {
        let at = number as usize * BLOCK;
        self.changed.entry(number).or_insert_with(|| BASE.bytes[at..at + BLOCK].to_vec())
    }

    fn size() -> u64 {
        BASE.bytes.len() as u64
    }

    fn edited(input: &[u8]) -> Self {
        let mut disk = Self::default();
        let mut touched = BTreeSet::new();
        let mut fix_all = false;
        let pick = |byte: u8| BASE.blocks[usize::from(byte) % BASE.blocks.len()];
        for edit in input.chunks_exact(EDIT) {
            let number = pick(edit[1]);
            let at = usize::from(u16::from_le_bytes([edit[2], edit[3]])) % (BLOCK - 8);
            fix_all |= edit[0] & 0x80 != 0;
            match edit[0] & 7 {
                kind @ (0..=3 | 7) => {
                    let len = if kind == 7 { 8 } else { 1 << kind };
                    disk.change(number)[at..at + len].copy_from_slice(&edit[4..4 + len]);
                    touched.insert(number);
                    if kind == 7 {
                        fix(disk.change(number));
                    }
                }
                4 => {
                    let other = disk.block(pick(edit[4])).to_vec();
                    *disk.change(number) = other;
                }
                5 => disk.change(number)[at..].fill(0),
                _ => {
                    disk.unreadable.insert(number);
                }
            }
        }
        if fix_all {
            touched.into_iter().for_each(|number| fix(disk.change(number)));
        }
        disk
    }

    fn execute(&mut self, op: Op<HeapBuf>) -> Completion<HeapBuf> {
        self.ops += 1;
        assert!(self.ops < OPS_MAX, "it does not end");
        let mut buf = op.buf;
        let mut result = Ok(());
        let end = op.offset.checked_add(op.len).expect("an offset that is one");
        let aligned = (op.offset | op.len).is_multiple_of(BLOCK as u64);
        let blocks = op.offset / BLOCK as u64..end / BLOCK as u64;
        match op.kind {
            OpKind::Flush => {}
            OpKind::Read | OpKind::Write if end > Self::size() || !aligned => {
                panic!("{:?} of {} bytes at {}", op.kind, op.len, op.offset)
            }
            OpKind::Read if blocks.clone().any(|block| self.unreadable.contains(&block)) => {
                result = Err(DeviceError::Media);
            }
            OpKind::Read => {
                let out = buf.as_mut().and_then(Buf::as_mut_slice).expect("a buffer of its own");
                for (out, block) in out.chunks_mut(BLOCK).zip(blocks) {
                    out.copy_from_slice(&self.block(block)[..out.len()]);
                }
            }
            OpKind::Write => {
                let data = buf.as_ref().expect("a buffer").as_slice();
                for (data, block) in data.chunks(BLOCK).zip(blocks) {
                    *self.change(block) = data.to_vec();
                    self.unreadable.remove(&block);
                }
            }
            _ => result = Err(DeviceError::Unsupported),
        }
        Completion { token: op.token, result, buf }
    }

    fn open(&mut self) -> Option<Opened> {
        let mut opener = Opener::new(Self::size(), None);
        loop {
            let mut moved = false;
            while let Some(op) = opener.poll_action(&mut HeapPool) {
                moved = true;
                opener.handle_completion(self.execute(op));
            }
            match opener.result() {
                Some(Ok(opened)) => return Some(opened),
                Some(Err(error)) => {
                    assert!(!error.to_string().is_empty());
                    return None;
                }
                None => assert!(moved, "opening is stuck"),
            }
        }
    }

    fn recover(
        &mut self,
        opened: &Opened,
        shard: u16,
        staged: bool,
    ) -> Result<Recovered, RecoveryError> {
        let slots = opened.map(shard).expect("a shard").slots();
        assert!(slots <= Self::size() / BLOCK as u64, "slots within the device");
        let max_slot = u32::try_from(slots.max(1) - 1).expect("a small device");
        let Ok(index) = Index::new(slots.max(1), max_slot, 7) else {
            panic!("no index for {slots} slots")
        };
        let mut recovery = Recovery::new(opened, shard, index, false)?;
        if staged {
            recovery = recovery.staged();
        }
        let mut flying = Vec::new();
        while !recovery.is_done() {
            while let Some(op) = recovery.poll_action(&mut HeapPool) {
                flying.push(op);
            }
            assert!(!flying.is_empty() || recovery.is_done(), "recovery is stuck");
            for op in flying.drain(..).rev() {
                recovery.handle_completion(self.execute(op));
            }
        }
        recovery.finish()
    }
}

/// What was recovered, to compare.
type Content = BTreeMap<(u16, u64), (u32, bool)>;

fn content(recovered: &Recovered) -> Content {
    let mut all = BTreeMap::new();
    recovered.index.for_each(|key, entry| {
        assert!(u64::from(entry.slot) < recovered.map.slots(), "a slot of the shard");
        all.insert((key.volume(), key.block()), (entry.slot, entry.flags.dirty()));
    });
    assert_eq!(all.len(), recovered.index.len());
    all
}

/// An engine reads what a staged recovery left for later.
fn warm(disk: &mut Disk, opened: &Opened, recovered: Recovered) {
    let config = EngineConfig {
        limits: Limits::default(),
        tier_pages: 0,
        policy: PolicyKind::default(),
        ghost_blocks: 16,
        volatile_write_cache: false,
    };
    let mut engine = Engine::new(&config, opened.header, recovered);
    for poll in 0..OPS_MAX as u64 {
        let now = Instant(poll * 1_000_000);
        if engine.stats(now).warming == 0 {
            return;
        }
        engine.end_of_poll(&mut HeapPool, now);
        while let Some(Action::Cache(op)) = engine.poll_action() {
            let done = disk.execute(op);
            engine.handle_completion(Source::Cache, done, &mut HeapPool, now);
        }
    }
    panic!("it does not get warm");
}

/// Recovers a shard twice, to the same.
fn recover_twice(mut disk: Disk, opened: &Opened, shard: u16, staged: bool) {
    let first = match disk.recover(opened, shard, staged) {
        Ok(first) => first,
        Err(error) => {
            REFUSED.add(1);
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    RECOVERED.add(1);
    let before = content(&first);
    // What it settled can be opened and recovered.
    let again = disk.open().expect("what was settled can be opened");
    match disk.recover(&again, shard, staged) {
        Ok(second) => {
            assert_eq!(content(&second), before, "recovered to the same");
            warm(&mut disk, &again, second);
        }
        Err(error) => panic!("what was settled is not recovered: {error}"),
    }
}

/// Edits of an image.
pub fn recovery(input: &[u8]) {
    let mut disk = Disk::edited(input);
    let Some(opened) = disk.open() else { return };
    for shard in 0..u16::try_from(opened.shards.len()).expect("few shards") {
        for staged in [false, true] {
            recover_twice(disk.clone(), &opened, shard, staged);
        }
    }
}
