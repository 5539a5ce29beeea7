//! Structures of a cache device, one at a time: whatever is found where one is looked for.

use crate::reached::{PARTS, SUPERS};
use forebay_cache::format::BLOCK;
use forebay_cache::format::batch::{BatchView, bad_blocks};
use forebay_cache::format::device::{PROBE_BYTES, probe};
use forebay_cache::format::footer::{FooterHead, FooterView, FreeMark};
use forebay_cache::format::geometry::Geometry;
use forebay_cache::format::segment_log::SegmentLog;
use forebay_cache::format::superblock::Superblock;
use forebay_io::crc::crc32c;

/// Where a structure's CRC stands, and where what it covers begins.
const CRC_AT: usize = 8;
const CRC_FROM: usize = 12;
const FOOTER_HEAD: usize = 128;

/// Puts the right CRC into a structure.
pub(crate) fn fix_crc(bytes: &mut [u8]) {
    if bytes.len() > CRC_FROM {
        let crc = crc32c(&bytes[CRC_FROM..]);
        bytes[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Puts the right CRCs into whatever structure begins here, by its magic.
pub(crate) fn fix(bytes: &mut [u8]) {
    let number = |at: usize| {
        let raw = bytes.get(at..at + 4).and_then(|raw| raw.first_chunk());
        raw.map_or(0, |raw| u32::from_le_bytes(*raw) as usize)
    };
    match bytes.get(..8) {
        Some(b"FBYFOOT\0") => {
            let end = number(68);
            if let Some(body) = bytes.get(FOOTER_HEAD..end) {
                let crc = crc32c(body);
                bytes[80..84].copy_from_slice(&crc.to_le_bytes());
            }
            let head = bytes.len().min(FOOTER_HEAD);
            fix_crc(&mut bytes[..head]);
        }
        Some(b"FBYSUPER") => {
            let end = number(60).clamp(BLOCK, bytes.len().max(BLOCK)).min(bytes.len());
            fix_crc(&mut bytes[..end]);
        }
        _ => {
            let end = bytes.len().min(BLOCK);
            fix_crc(&mut bytes[..end]);
        }
    }
}

/// The block that an input stands for, with right CRCs if its first byte is odd.
fn block(input: &[u8]) -> (u8, Vec<u8>) {
    let (select, bytes) = input.split_first().map_or((0, input), |(first, rest)| (*first, rest));
    let mut block = bytes.to_vec();
    block.resize(bytes.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    if select & 1 == 1 {
        fix(&mut block);
    }
    (select, block)
}

/// Superblocks, and what the start of a device is.
pub fn superblock(input: &[u8]) {
    let (select, mut block) = block(input);
    if select & 2 == 0 {
        if let Some(superblock) = Superblock::parse(&block) {
            SUPERS.add(1);
            let mut out = vec![0xa5; superblock.encoded_len()];
            let len = superblock.encode(&mut out).expect("what was read can be written");
            assert_eq!(len, superblock.encoded_len());
            let again = Superblock::parse(&out);
            assert_eq!(again.as_ref(), Some(&superblock));
            assert_eq!(Superblock::newer(again, None), Some(superblock));
        }
    } else {
        // Both copies of the header where the first is damaged.
        if select & 4 != 0 {
            let copy = block.clone();
            block[0] ^= 1;
            block.resize(64 << 10, 0);
            block.extend_from_slice(&copy);
        }
        block.resize(PROBE_BYTES.max(block.len()), 0);
        match probe(&block, 1 << 40, None) {
            Ok(header) => {
                SUPERS.add(1);
                assert!(header.segments_offset() <= header.size && header.segments >= 1);
                assert!(header.size <= 1 << 40);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Batch headers, footers and free marks of a segment.
pub fn segment(input: &[u8]) {
    let (_, block) = block(input);
    if let Ok(view) = BatchView::parse(&block[..BLOCK]) {
        PARTS.add(1);
        let mut blocks = 0;
        for (record, crcs) in view.records() {
            assert!(record.valid(), "{record:?}");
            blocks += record.data_blocks();
            assert_eq!(crcs.iter().count(), record.data_blocks());
            let bad = bad_blocks(&record, crcs, 1, &block);
            assert!(bad.is_none_or(|bad| bad.end <= record.blocks));
        }
        assert_eq!(blocks, usize::from(view.blocks));
        assert_eq!(view.bytes(), (1 + blocks) * BLOCK);
        assert!(view.belongs(&view.name, view.slot));
    }
    if let Some(head) = FooterHead::parse(&block) {
        assert!(head.read_bytes() >= FOOTER_HEAD && head.dirty <= head.live);
    }
    if let Some(view) = FooterView::parse(&block) {
        PARTS.add(1);
        let mut live = 0;
        for (number, record, crcs) in view.records() {
            assert!(number >= view.head.first_batch && number <= view.head.last_batch);
            assert_eq!(crcs.iter().count(), record.data_blocks());
            live += record.data_blocks() as u64;
        }
        assert_eq!(live, u64::from(view.head.live));
        let mut log = SegmentLog::new(Geometry::new(64).expect("a geometry"));
        view.load(&mut log);
        assert!(log.memory_bytes() <= 1 << 20);
    }
    if let Some(mark) = FreeMark::parse(&block[..BLOCK]) {
        PARTS.add(1);
        let mut out = [0; BLOCK];
        mark.encode(&mut out);
        assert_eq!(FreeMark::parse(&out), Some(mark));
    }
}
