//! A host's request on its way through the engine.

use super::slab::Handle;
use crate::hazard::ClaimId;
use forebay_io::{BlockError, Instant, Piece, RequestOp, Tag};

/// Where a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for a hazard claim.
    #[default]
    Claim,
    /// Waits for room in the log, for a buffer, for its delay to pass, or for a mode switch.
    Stalled,
    /// A host's read, its parts on their way.
    Read,
    /// Reads what a sub-block write, a compare or a compare-and-write needs.
    Prepare,
    /// Its records are in the log and wait for commit.
    Journal,
    /// Committed; its data is on the way to the backing device (write-through, write-around,
    /// pass-through).
    Backing,
    /// Waits for a flush of the cache device or the backing device.
    Flush,
    /// Waits for its edges.
    Edges,
}

/// Where a block that a host reads comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The cache device.
    Device,
    /// The memory tier.
    Tier,
    /// A range of zeroes in the log.
    Zeroes,
    /// The backing device, as the cache does not have it.
    Miss,
    /// The backing device, past the cache.
    Past,
}

/// One cache block of a read, or a part of one.
#[derive(Clone, Debug)]
pub(super) struct Part<B> {
    pub(super) piece: Option<Piece<B>>,
    pub(super) origin: Origin,
    /// The operation that filled it, to join neighbours again; 0 for none.
    pub(super) from: u64,
    /// Device reads tried.
    pub(super) tries: u8,
    /// First byte wanted inside its cache block, and bytes wanted.
    pub(super) offset: u16,
    pub(super) len: u16,
}

/// A request. Its place is reused: `reset` clears what the last user left.
#[derive(Debug)]
pub(super) struct Req<B> {
    pub(super) tag: Tag,
    pub(super) volume: u16,
    pub(super) op: RequestOp,
    /// Bytes from the volume's begin.
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) fua: bool,
    pub(super) stage: Stage,
    /// Write data, or compare data.
    pub(super) data: Option<B>,
    /// Write data of a compare-and-write.
    pub(super) second: Option<B>,
    pub(super) parts: Vec<Part<B>>,
    /// Operations under way for it.
    pub(super) outstanding: u32,
    pub(super) error: Option<BlockError>,
    /// A buffer was missing: begin again once all operations have ended.
    pub(super) again: bool,
    /// Cache blocks that are in the log already.
    pub(super) placed: u64,
    /// Claim on the volume's blocks against other writes.
    pub(super) claim: Option<ClaimId>,
    /// Claim on the backing device's blocks.
    pub(super) backing: Option<ClaimId>,
    /// When it may go on, while throttled.
    pub(super) release: Instant,
    /// Its delay near the dirty bound is over.
    pub(super) delayed: bool,
    /// This request bypasses the log (write-around or pass-through).
    pub(super) bypass: bool,
    /// Counted in its volume's `journaling`.
    pub(super) counted: bool,
    /// Acknowledged only after the backing device has the data.
    pub(super) through: bool,
    /// Counted in its volume's `direct`.
    pub(super) direct: bool,
    /// Counted in its volume's `bypassing`.
    pub(super) bypassing: bool,
    /// `data` covers whole cache blocks: its edges were read and merged.
    pub(super) merged: bool,
    /// Belongs to a long sequential stream.
    pub(super) sequential: bool,
    /// The invalidation that a bypassing write needs is committed, or was not needed.
    pub(super) invalidated: bool,
    /// Its records: first block, blocks, first slot, life of its segment (write-through).
    pub(super) records: Vec<(u64, u32, u32, u64)>,
    /// Its records are committed; what is left concerns the backing device.
    pub(super) committed: bool,
    /// Its write of the backing device was durable when it ended (FUA).
    pub(super) lasting: bool,
    /// Bytes of zeroes written to a backing device that has no write-zeroes.
    pub(super) zeroed: u64,
    /// A write of it timed out at the backing device, which may still carry it out.
    pub(super) doubt: bool,
    /// The request that this one is an edge of; such a one has no tag of its own.
    pub(super) parent: Option<Handle>,
    /// The flush of the cache device that it waits for.
    pub(super) ticket: u64,
    pub(super) arrived: Instant,
}

impl<B> Default for Req<B> {
    fn default() -> Self {
        Self {
            tag: Tag(0),
            volume: 0,
            op: RequestOp::Flush,
            offset: 0,
            len: 0,
            fua: false,
            stage: Stage::Claim,
            data: None,
            second: None,
            parts: Vec::new(),
            outstanding: 0,
            error: None,
            again: false,
            placed: 0,
            claim: None,
            backing: None,
            release: Instant(0),
            delayed: false,
            bypass: false,
            counted: false,
            through: false,
            direct: false,
            merged: false,
            sequential: false,
            invalidated: false,
            records: Vec::new(),
            committed: false,
            lasting: false,
            zeroed: 0,
            doubt: false,
            bypassing: false,
            parent: None,
            ticket: 0,
            arrived: Instant(0),
        }
    }
}

impl<B> Req<B> {
    /// First cache block touched, and how many.
    pub(super) const fn blocks(&self) -> (u64, u64) {
        let first = self.offset / super::types::BLOCK;
        let end = (self.offset + self.len).div_ceil(super::types::BLOCK);
        (first, end - first)
    }

    /// Clears what the last user of the place left; vectors keep their capacity. Field by field: a whole
    /// new value would be made beside the old one and copied over it, for every request.
    pub(super) fn reset(&mut self) {
        let Self {
            parts,
            records,
            data,
            second,
            tag,
            volume,
            op,
            offset,
            len,
            fua,
            stage,
            outstanding,
            error,
            again,
            placed,
            claim,
            backing,
            release,
            delayed,
            bypass,
            counted,
            through,
            direct,
            merged,
            sequential,
            invalidated,
            committed,
            lasting,
            zeroed,
            doubt,
            bypassing,
            parent,
            ticket,
            arrived,
        } = self;
        parts.clear();
        records.clear();
        (*data, *second) = (None, None);
        *tag = Tag(0);
        *volume = 0;
        *op = RequestOp::Flush;
        *offset = 0;
        *len = 0;
        *fua = false;
        *stage = Stage::Claim;
        *outstanding = 0;
        *error = None;
        *again = false;
        *placed = 0;
        *claim = None;
        *backing = None;
        *release = Instant(0);
        *delayed = false;
        *bypass = false;
        *counted = false;
        *through = false;
        *direct = false;
        *merged = false;
        *sequential = false;
        *invalidated = false;
        *committed = false;
        *lasting = false;
        *zeroed = 0;
        *doubt = false;
        *bypassing = false;
        *parent = None;
        *ticket = 0;
        *arrived = Instant(0);
    }
}
