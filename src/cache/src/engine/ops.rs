//! Device operations under way: what each is for, when it began, who waits.

use super::Engine;
use super::order::Step;
use super::slab::Handle;
use super::types::Action;
use crate::format::geometry::LogStream;
use forebay_io::{Buf, Instant, Op};

/// What an operation is for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum What {
    /// Nothing: a place of the table that is free.
    #[default]
    None,
    /// A host's read of cached blocks.
    Hit { req: Handle, part: u32, blocks: u32, volume: u16, block: u64, slot: u32 },
    /// A host's read of blocks that are not cached.
    Miss { req: Handle, part: u32, blocks: u32, volume: u16, block: u64, fill: Option<u64> },
    /// A batch of a log, by its ordinal.
    Batch { stream: LogStream, ordinal: u64 },
    /// The footer of a segment.
    Footer { seg: u32 },
    /// The footer of a sealed segment, read for destage.
    DestageFooter { seg: u32 },
    /// The footer of a sealed segment, read to warm the index.
    WarmFooter { seg: u32 },
    /// Blocks read for destage.
    DestageRead { run: Handle, at: u32, blocks: u32, slot: u32 },
    /// A run written to the backing device.
    DestageWrite { run: Handle },
    /// A run written to the ordered journal.
    Gathered { run: Handle },
    /// A step of the ordered journal of the volume in this place.
    Ordered { place: u16, step: Step },
    /// A range of zeroes given to the backing device.
    DestageZeroes { run: Handle },
    /// The flush of a backing device that closes a round of destage.
    DestageFlush { volume: u16 },
    /// The same, when its round had gone on without it.
    LateFlush { volume: u16 },
    /// The footer of the segment that is being reclaimed.
    ReclaimFooter { seg: u32 },
    /// Blocks read to be appended again.
    ReclaimRead { at: u32 },
    /// The free mark.
    FreeMark,
    /// A flush of the cache device.
    CacheFlush,
    /// A write of a host's data to the backing device.
    HostWrite { req: Handle },
    /// A host's write-zeroes or deallocate on the backing device.
    HostRange { req: Handle },
    /// A flush of a backing device for a host.
    HostFlush { req: Handle },
    /// A flush of a backing device whose writes are to be kept in the cache.
    QuietFlush { volume: u16 },
    /// A superblock.
    Superblock,
    /// A read to see whether a failing backing device works again.
    Probe { volume: u16 },
    /// The footer of a segment whose blocks are scrubbed.
    ScrubFooter { seg: u32 },
    /// A block that may be the header of a batch, in a segment whose footer is gone.
    Rebuild,
    /// Blocks that are scrubbed, from this slot on.
    ScrubRead { slot: u32 },
    /// A block that scrub dropped, read from the backing device.
    ScrubFill { volume: u16, block: u64, fill: u64, serial: u64 },
    /// Pinned blocks that the cache lacked, read from the backing device.
    PinFill { volume: u16, block: u64, blocks: u64, fill: u64 },
}

/// An operation under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Under {
    pub(super) what: What,
    /// The volume whose backing device it went to; `None` for the cache device.
    pub(super) backing: Option<u16>,
    /// It went to that volume's ordered journal instead.
    pub(super) journal: bool,
    pub(super) started: Instant,
}

impl<B: Buf> Engine<B> {
    fn under(&mut self, now: Instant, what: What, backing: Option<u16>, journal: bool) -> u64 {
        match self.ops.take() {
            Some((handle, under)) => {
                *under = Under { what, backing, journal, started: now };
                handle.token()
            }
            // 2³² operations at once cannot be: each needs a buffer or a place of its own.
            None => u64::MAX,
        }
    }

    /// Hands an operation to the cache device.
    pub(super) fn cache_op(&mut self, now: Instant, what: What, mut op: Op<B>) {
        op.token = self.under(now, what, None, false);
        self.actions.push_back(Action::Cache(op));
    }

    /// Hands an operation to a volume's backing device.
    pub(super) fn backing_op(&mut self, now: Instant, volume: u16, what: What, mut op: Op<B>) {
        let Some(vol) = self.vols.get_mut(volume) else { return };
        vol.backing_ops += 1;
        let id = vol.id;
        op.token = self.under(now, what, Some(volume), false);
        self.actions.push_back(Action::Backing(id, op));
    }
    /// Hands an operation to a volume's ordered journal.
    pub(super) fn journal_op(&mut self, now: Instant, volume: u16, what: What, mut op: Op<B>) {
        let Some(vol) = self.vols.get_mut(volume) else { return };
        vol.backing_ops += 1;
        let id = vol.id;
        op.token = self.under(now, what, Some(volume), true);
        self.actions.push_back(Action::Journal(id, op));
    }
}
