//! Whole devices: how they are laid out, and what opening makes of each that is not as it should be.

use super::super::BLOCK;
use super::super::device::{DeviceHeader, OpenError, PROBE_BYTES, foreign, probe};
use super::super::geometry::Extent;
use super::super::open::{Opened, Opener};
use super::super::plan::{FormatOptions, MIN_SEGMENTS, PlanError, Step, plan};
use super::super::superblock::{Superblock, VolumeEntry};
use super::super::test_support::fix_crc;
use forebay_io::{Completion, DeviceInfo, HeapPool, OpKind, Uuid};

fn device(size: u64) -> DeviceInfo {
    DeviceInfo {
        size,
        block_size: 4096,
        atomic_write: 4096,
        volatile_write_cache: true,
        optimal_io: 4096,
        max_io: 1 << 20,
        deallocate: true,
        write_zeroes: true,
        identity: String::new(),
    }
}

/// The start of a device that was formatted, and all of it if it is small.
fn formatted(size: u64, options: &FormatOptions) -> (DeviceHeader, Vec<u8>) {
    let plan = plan(&device(size), options).unwrap();
    let mut bytes = vec![0x11; usize::try_from(size.min(64 << 20)).unwrap()];
    for step in &plan.steps {
        if let Step::Write { offset, bytes: data } = step {
            let at = usize::try_from(*offset).unwrap();
            bytes[at..at + data.len()].copy_from_slice(data);
        }
    }
    (plan.header, bytes)
}

#[test]
fn a_plan_fits_the_device_and_says_what_is_too_small() {
    let options = FormatOptions::new(Uuid::from_random([1; 16]));
    for (size, shards, slots) in [
        (16 << 20, 1, 256),
        (300 << 20, 4, 256),
        (2 << 30, 4, 1024),
        (5 << 30, 16, 1024),
        (1 << 40, 16, 1024),
    ] {
        let header = plan(&device(size), &options).unwrap().header;
        assert_eq!((header.shards, header.geometry.segment_slots()), (shards, slots), "{size}");
        let end =
            header.segments_offset() + u64::from(header.segments) * header.geometry.segment_bytes();
        assert!(end <= size && size - end < header.geometry.segment_bytes());
        assert!(header.extent_segments >= MIN_SEGMENTS);
        assert!(header.segments >= u32::from(header.shards) * header.extent_segments);
    }
    let Err(PlanError::TooSmall { needed, size }) = plan(&device(1 << 20), &options) else {
        panic!()
    };
    assert_eq!(size, 1 << 20);
    assert!(plan(&device(needed), &options).is_ok());
    assert!(plan(&device(needed - 4096), &options).is_err());
    let one = FormatOptions { shards: Some(1), ..options };
    assert_eq!(plan(&device(5 << 40), &one).err(), Some(PlanError::TooLarge { shards: 2 }));
    let odd = FormatOptions { segment_slots: Some(100), ..options };
    assert_eq!(plan(&device(1 << 30), &odd).err(), Some(PlanError::SegmentSlots(100)));
    let none = FormatOptions { shards: Some(0), ..options };
    assert_eq!(plan(&device(1 << 30), &none).err(), Some(PlanError::Shards(0)));
    let large = DeviceInfo { block_size: 8192, ..device(1 << 30) };
    assert_eq!(plan(&large, &options).err(), Some(PlanError::BlockSize(8192)));
}

#[test]
fn every_unusable_device_has_its_own_name_and_advice() {
    let options =
        FormatOptions { shards: Some(1), ..FormatOptions::new(Uuid::from_random([1; 16])) };
    let size = 16 << 20;
    let (header, bytes) = formatted(size, &options);
    assert_eq!(probe(&bytes, size, None), Ok(header));
    assert_eq!(probe(&bytes[..PROBE_BYTES], size + 1, Some(header.cache)), Ok(header));
    let short = probe(&bytes, size - 4096, None).unwrap_err();
    assert_eq!(short, OpenError::CutShort { recorded: size, now: size - 4096 });
    let wanted = Uuid::from_random([2; 16]);
    let wrong = probe(&bytes, size, Some(wanted)).unwrap_err();
    assert_eq!(wrong, OpenError::WrongCache { wanted, found: header.cache });
    let mut newer = bytes.clone();
    for at in [0, 65_536] {
        newer[at + 12] = 2;
        fix_crc(&mut newer[at..at + BLOCK]);
    }
    assert_eq!(probe(&newer, size, None), Err(OpenError::Version { found: 2 }));
    let mut torn = bytes.clone();
    torn[40] ^= 1;
    assert_eq!(probe(&torn, size, None), Ok(header), "the second copy");
    torn[65_536 + 40] ^= 1;
    assert_eq!(probe(&torn, size, None), Err(OpenError::HeaderDamaged));
    assert_eq!(probe(&vec![0; PROBE_BYTES], size, None), Err(OpenError::Blank));
    assert_eq!(probe(&[], 0, None), Err(OpenError::Blank));
    assert_eq!(probe(&vec![9; PROBE_BYTES], size, None), Err(OpenError::Unknown));
    for error in [
        short,
        wrong,
        OpenError::Blank,
        OpenError::Unknown,
        OpenError::HeaderDamaged,
        OpenError::Version { found: 2 },
        OpenError::Version { found: 0 },
        OpenError::Foreign("x"),
        OpenError::SuperblockDamaged { shard: 1 },
    ] {
        let text = error.to_string();
        assert!(text.contains("format") || text.contains("attach"), "{text}");
    }
}

#[test]
fn what_else_a_device_holds_is_named() {
    let at = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![0; PROBE_BYTES];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    let mut gpt = at(512, b"EFI PART");
    gpt[510..512].copy_from_slice(b"\x55\xaa");
    for (bytes, name) in [
        (at(1080, b"\x53\xef"), "ext4"),
        (at(0, b"XFSB"), "XFS"),
        (at(65_600, b"_BHRfS_M"), "Btrfs"),
        (gpt, "GPT"),
        (at(510, b"\x55\xaa"), "MBR"),
        (at(512, b"LABELONE"), "LVM"),
        (at(0, b"LUKS\xba\xbe"), "LUKS"),
        (at(4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"), "bcache"),
        (at(4086, b"SWAPSPACE2"), "swap"),
        (at(4096, b"\xfc\x4e\x2b\xa9"), "RAID"),
    ] {
        let found = foreign(&bytes).unwrap();
        assert!(found.contains(name), "{found} for {name}");
        let error = probe(&bytes, 1 << 30, None).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

fn open(bytes: &[u8]) -> Result<Opened, OpenError> {
    let mut opener = Opener::new(bytes.len() as u64, None);
    loop {
        while let Some(mut op) = opener.poll_action(&mut HeapPool) {
            assert_eq!(op.kind, OpKind::Read);
            let at = usize::try_from(op.offset).unwrap();
            let len = usize::try_from(op.len).unwrap();
            let buf = op.buf.as_mut().and_then(forebay_io::Buf::as_mut_slice).unwrap();
            buf.copy_from_slice(&bytes[at..at + len]);
            opener.handle_completion(Completion { token: op.token, result: Ok(()), buf: op.buf });
        }
        if let Some(result) = opener.result() {
            return result;
        }
    }
}

#[test]
fn opening_reads_long_superblocks_and_refuses_extents_that_overlap() {
    let options = FormatOptions {
        shards: Some(2),
        segment_slots: Some(16),
        ..FormatOptions::new(Uuid::from_random([1; 16]))
    };
    let (header, mut bytes) = formatted(16 << 20, &options);
    let opened = open(&bytes).unwrap();
    assert_eq!(opened.shards.len(), 2);
    assert_eq!(opened.free_extents(), [Extent { first: 0, count: header.segments }]);
    let mut put = |superblock: &mut Superblock| {
        superblock.generation += 1;
        let mut encoded = vec![0; superblock.encoded_len()];
        superblock.encode(&mut encoded).unwrap();
        let offset = header.superblock_offset(superblock.shard, superblock.copy());
        let at = usize::try_from(offset).unwrap();
        bytes[at..at + encoded.len()].copy_from_slice(&encoded);
        open(&bytes)
    };
    let mut first = opened.shards[0].clone();
    let volume = crate::recovery::test_volume(0, 1);
    first.volumes = (0..300).map(|index| VolumeEntry { index, ..volume.clone() }).collect();
    first.extents = vec![Extent { first: 4, count: 8 }];
    let opened = put(&mut first).unwrap();
    assert_eq!(opened.shards[0], first);
    let free = [Extent { first: 0, count: 4 }, Extent { first: 12, count: header.segments - 12 }];
    assert_eq!(opened.free_extents(), free);
    let mut second = opened.shards[1].clone();
    second.extents = vec![Extent { first: 11, count: 2 }];
    assert!(matches!(put(&mut second), Err(OpenError::Inconsistent { .. })));
    second.extents = vec![Extent { first: header.segments, count: 1 }];
    assert!(matches!(put(&mut second), Err(OpenError::Inconsistent { shard: 1, .. })));
    second.extents = vec![Extent { first: 12, count: 2 }];
    assert!(put(&mut second).is_ok());
}
