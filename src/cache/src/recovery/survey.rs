//! What the tail and the first slot of each segment say of it, before any record is read.

use crate::format::BLOCK;
use crate::format::batch::{BatchView, SegmentName};
use crate::format::footer::{FooterHead, FreeMark};
use forebay_io::Uuid;

/// What is known of one segment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Its free mark.
    pub(super) mark: Option<FreeMark>,
    /// The block of the mark could not be read.
    pub(super) mark_unread: bool,
    /// The head of its footer.
    pub(super) footer: Option<FooterHead>,
    /// The name and number in its first batch header.
    pub(super) first: Option<(SegmentName, u64)>,
    /// A block that decides could not be read.
    pub(super) unread: bool,
    /// The highest number in any of these.
    pub(super) highest: u64,
}

/// Whose structures count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) cache: Uuid,
    pub(super) shard: u16,
    /// The device's number of the segment.
    pub(super) segment: u32,
}

impl Owner {
    fn owns(&self, name: &SegmentName) -> bool {
        name.cache == self.cache && name.shard == self.shard && name.segment == self.segment
    }
}

/// What a segment is, as far as its ends tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Free,
    /// It has a footer (whose body is not checked yet).
    Sealed,
    /// It was opened and has no footer.
    Unsealed(SegmentName),
    /// It cannot be told.
    Unreadable,
}

impl Found {
    /// Takes the block of the free mark.
    pub(super) fn mark(&mut self, owner: &Owner, block: Option<&[u8]>) {
        self.mark_unread = block.is_none();
        self.unread |= block.is_none();
        self.mark = block.and_then(FreeMark::parse).filter(|mark| owner.owns(&mark.name));
        self.highest = self.highest.max(self.mark.map_or(0, |mark| mark.seal));
    }

    /// Takes the first block of the footer.
    pub(super) fn footer(&mut self, owner: &Owner, block: Option<&[u8]>) {
        self.unread |= block.is_none();
        self.footer = block.and_then(FooterHead::parse).filter(|head| owner.owns(&head.name));
        self.highest =
            self.highest.max(self.footer.map_or(0, |head| head.seal.max(head.last_batch)));
    }

    /// Takes the first slot.
    pub(super) fn first(&mut self, owner: &Owner, block: Option<&[u8]>) {
        self.unread |= block.is_none();
        self.first = block
            .and_then(|block| BatchView::parse(block.get(..BLOCK)?).ok())
            .filter(|view| owner.owns(&view.name) && view.slot == 0)
            .map(|view| (view.name, view.number));
        let number = self.first.map_or(0, |(name, number)| name.seq.max(number));
        self.highest = self.highest.max(number);
    }

    /// The life of the segment that its free mark ended; 0 for none.
    fn freed(&self) -> u64 {
        self.mark.map_or(0, |mark| mark.name.seq)
    }

    /// Whether the tail alone shows that it is sealed, so that the first slot need not be read.
    pub(super) fn surely_sealed(&self) -> bool {
        !self.mark_unread && self.footer.is_some_and(|head| head.name.seq > self.freed())
    }

    /// What the segment is. `horizon` is the highest seal number in any free mark: segments are
    /// freed in the order of their seals, so every seal up to it is over, even where the
    /// mark cannot be read.
    pub(super) fn verdict(&self, horizon: u64) -> Verdict {
        let footer = self.footer.filter(|head| head.name.seq > self.freed());
        let sealed = footer.filter(|head| head.seal > horizon);
        let ended = footer.filter(|head| head.seal <= horizon);
        let freed = self.freed().max(ended.map_or(0, |head| head.name.seq));
        let first = self.first.filter(|(name, _)| name.seq > freed);
        match (sealed, first) {
            // Where the mark could not be read, a newer life may have begun.
            (Some(head), Some((name, _))) if name.seq > head.name.seq => Verdict::Unsealed(name),
            (Some(_), _) => Verdict::Sealed,
            (None, Some((name, _))) => Verdict::Unsealed(name),
            (None, None) if self.unread => Verdict::Unreadable,
            (None, None) => Verdict::Free,
        }
    }
}
