//! Reads the header and every superblock of a device, and says exactly what is wrong where it is
//! not a cache device that can be used.

use super::device::{DeviceHeader, OpenError, PROBE_BYTES, probe};
use super::geometry::{Extent, ShardMap};
use super::superblock::{SUPER_BYTES, Superblock};
use crate::recovery::transfer::{CHUNK, Done, Transfer};
use forebay_io::{Buf, BufPool, Completion, Op, Uuid};

/// A device that was opened: all that [`crate::recovery::Recovery`] and the allocator of extents need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The header.
    pub header: DeviceHeader,
    /// The newest sound superblock of each shard.
    pub shards: Vec<Superblock>,
}

impl Opened {
    /// The map of a shard's segments.
    #[must_use]
    pub fn map(&self, shard: u16) -> Option<ShardMap> {
        let superblock = self.shards.get(usize::from(shard))?;
        let header = &self.header;
        Some(ShardMap::new(header.geometry, header.segments_offset(), &superblock.extents))
    }

    /// The runs of segments that belong to no shard, in order.
    #[must_use]
    pub fn free_extents(&self) -> Vec<Extent> {
        let mut taken: Vec<Extent> =
            self.shards.iter().flat_map(|shard| shard.extents.iter().copied()).collect();
        taken.sort_unstable_by_key(|extent| extent.first);
        let mut free = Vec::new();
        let mut next = 0;
        for extent in taken.into_iter().chain([Extent { first: self.header.segments, count: 0 }]) {
            if extent.first > next {
                free.push(Extent { first: next, count: extent.first - next });
            }
            next = next.max(extent.first.saturating_add(extent.count));
        }
        free
    }

    fn check(&self) -> Result<(), OpenError> {
        let mut all = Vec::new();
        for (shard, superblock) in (0u16..).zip(&self.shards) {
            let wrong = |what| Err(OpenError::Inconsistent { shard, what });
            if superblock.shard != shard || superblock.cache != self.header.cache {
                return wrong("it belongs to another shard or cache device");
            }
            for extent in &superblock.extents {
                if extent.count == 0 || extent.end() > u64::from(self.header.segments) {
                    return wrong("an extent lies outside the device");
                }
                all.push((*extent, shard));
            }
        }
        all.sort_unstable_by_key(|(extent, _)| extent.first);
        for pair in all.windows(2) {
            if let [(a, _), (b, shard)] = pair
                && a.end() > u64::from(b.first)
            {
                let what = "an extent belongs to another shard as well";
                return Err(OpenError::Inconsistent { shard: *shard, what });
            }
        }
        Ok(())
    }
}

/// Reads a device's header and superblocks. Drive it until [`Opener::result`] is some.
#[derive(Debug)]
pub struct Opener {
    transfer: Transfer,
    size: u64,
    wanted: Option<Uuid>,
    header: Option<DeviceHeader>,
    /// Both copies of each shard's superblock: what was read so far, and whether that is all.
    copies: Vec<Option<Superblock>>,
    heads: Vec<Vec<u8>>,
    waiting: usize,
    result: Option<Result<Opened, OpenError>>,
}

const PROBE_ID: u64 = u64::MAX;
/// Added to a copy's number for the read of what is behind its first chunk.
const REST: u64 = 1 << 32;

impl Opener {
    /// Opens a device of `size` bytes. `wanted` is the cache that the configuration names.
    #[must_use]
    pub fn new(size: u64, wanted: Option<Uuid>) -> Self {
        let mut transfer = Transfer::default();
        let len = usize::try_from(size).unwrap_or(usize::MAX).min(PROBE_BYTES);
        transfer.read(PROBE_ID, 0, len);
        Self {
            transfer,
            size,
            wanted,
            header: None,
            copies: Vec::new(),
            heads: Vec::new(),
            waiting: 0,
            result: None,
        }
    }

    /// The next device operation; `None` also while the pool has no buffer: ask again.
    pub fn poll_action<P: BufPool>(&mut self, pool: &mut P) -> Option<Op<P::Buf>> {
        self.transfer.poll_action(pool)
    }

    /// Takes the completion of one of its operations.
    pub fn handle_completion<B: Buf>(&mut self, completion: Completion<B>) {
        if let Some(done) = self.transfer.handle_completion(completion)
            && self.result.is_none()
        {
            if done.id == PROBE_ID {
                self.probed(&done);
            } else {
                self.copy_read(done);
            }
        }
    }

    /// The end, once it is reached and no operation is in flight.
    #[must_use]
    pub fn result(&mut self) -> Option<Result<Opened, OpenError>> {
        if self.transfer.in_flight() > 0 { None } else { self.result.take() }
    }

    fn probed(&mut self, done: &Done) {
        let header = done
            .result
            .map_err(OpenError::Device)
            .and_then(|()| probe(&done.bytes, self.size, self.wanted));
        let header = match header {
            Ok(header) => header,
            Err(error) => {
                self.result = Some(Err(error));
                return;
            }
        };
        let copies = usize::from(header.shards) * 2;
        self.copies = vec![None; copies];
        self.heads = vec![Vec::new(); copies];
        self.waiting = copies;
        for shard in 0..header.shards {
            for copy in 0..2 {
                let id = u64::from(shard) * 2 + copy;
                self.transfer.read(id, header.superblock_offset(shard, copy), CHUNK);
            }
        }
        self.header = Some(header);
    }

    fn copy_read(&mut self, done: Done) {
        let copy = done.id % REST;
        let Ok(at) = usize::try_from(copy) else { return };
        let Some(header) = self.header else { return };
        let rest = done.id >= REST;
        let mut bytes = done.bytes;
        if rest && let Some(head) = self.heads.get_mut(at) {
            let mut whole = core::mem::take(head);
            whole.append(&mut bytes);
            bytes = whole;
        }
        let parsed = if done.result.is_ok() { Superblock::parse(&bytes) } else { None };
        let long =
            bytes.get(60..64).and_then(|len| len.first_chunk()).map(|len| u32::from_le_bytes(*len));
        let long = long.is_some_and(|len| {
            usize::try_from(len).is_ok_and(|len| len > CHUNK && len <= SUPER_BYTES)
        });
        if parsed.is_none() && !rest && long && done.result.is_ok() {
            let shard = u16::try_from(copy / 2).unwrap_or(0);
            let offset = header.superblock_offset(shard, copy % 2) + CHUNK as u64;
            self.transfer.read(copy + REST, offset, SUPER_BYTES - CHUNK);
            if let Some(head) = self.heads.get_mut(at) {
                *head = bytes;
            }
            return;
        }
        if let Some(slot) = self.copies.get_mut(at) {
            *slot = parsed;
        }
        self.waiting -= 1;
        if self.waiting == 0 {
            self.result = Some(self.finish(header));
        }
    }

    fn finish(&mut self, header: DeviceHeader) -> Result<Opened, OpenError> {
        let mut shards = Vec::with_capacity(usize::from(header.shards));
        for (shard, pair) in (0u16..).zip(self.copies.chunks_exact_mut(2)) {
            let [a, b] = pair else { continue };
            let ours = |copy: &mut Option<Superblock>| {
                copy.take().filter(|copy| copy.cache == header.cache && copy.shard == shard)
            };
            let superblock = Superblock::newer(ours(a), ours(b));
            shards.push(superblock.ok_or(OpenError::SuperblockDamaged { shard })?);
        }
        let opened = Opened { header, shards };
        opened.check()?;
        Ok(opened)
    }
}
