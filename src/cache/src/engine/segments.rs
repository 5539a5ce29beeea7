//! The table of segments: which are free, open, sealed; how much of each is live and dirty; and the
//! order in which they may be freed.

use crate::format::geometry::{Geometry, LogStream};
use crate::format::segment_log::SegmentLog;
use forebay_io::Instant;
use std::collections::VecDeque;

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Batches are appended.
    Open,
    /// Nothing more is appended; its records commit, then its footer is written.
    Sealing,
    /// Its footer is on the way.
    Footer,
    Sealed,
    /// Its free mark is durable; reads of it may still be under way.
    Freed,
    /// The device does not take writes there.
    Bad,
}

/// Whether the index has what a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    Whole,
    /// Its footer is still to be read.
    Later,
    /// It will not be read any more, or the index could not take all of it.
    Never,
}

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) state: State,
    pub(super) stream: LogStream,
    pub(super) cover: Cover,
    /// Number taken when it was opened.
    pub(super) seq: u64,
    /// Number taken when it was sealed.
    pub(super) seal: u64,
    /// Segments that were opened before it since the engine was made.
    pub(super) ordinal: u64,
    /// Blocks that the index names here.
    pub(super) live: u32,
    /// Those of them that are dirty.
    pub(super) dirty: u32,
    /// Versions that were replaced and are kept for their batch (write-back-ordered).
    pub(super) kept: u32,
    /// Device reads under way here.
    readers: u32,
    /// Records that are neither committed nor dropped.
    pub(super) pins: u32,
    /// Batches that are not durable.
    pub(super) batches: u32,
    /// Slots used by batches.
    pub(super) used: u32,
    /// When the oldest data that may be dirty here was written.
    pub(super) since: Instant,
    /// Destage could do nothing here; not tried again before this.
    pub(super) skip_until: Instant,
    /// Reads of its footer that found none.
    pub(super) footer_tries: u8,
    /// Its footer counts as lost.
    pub(super) footer_lost: bool,
    /// Its records, until the footer is written; those of a sealed one whose footer is gone.
    pub(super) log: Option<SegmentLog>,
}

/// All segments of the shard.
#[derive(Debug)]
pub(super) struct Segments {
    geometry: Geometry,
    list: Vec<Segment>,
    free: VecDeque<u32>,
    /// Sealed, by seal number: the order in which they are freed.
    sealed: VecDeque<u32>,
    /// Open and being sealed, by the number they were opened with.
    young: Vec<u32>,
    /// Logs of sealed segments, to be used again.
    spare: Vec<SegmentLog>,
    /// Sealed ones with a log, as their footers are gone.
    kept: VecDeque<u32>,
    /// Segments opened so far.
    pub(super) opened: u64,
}

/// Logs of segments whose footers are gone that are in memory at once.
const KEPT_MAX: usize = 4;

impl Segments {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            list: Vec::new(),
            free: VecDeque::new(),
            sealed: VecDeque::new(),
            young: Vec::new(),
            spare: Vec::new(),
            kept: VecDeque::new(),
            opened: 0,
        }
    }

    /// Adds a segment that holds nothing.
    pub(super) fn add_free(&mut self) {
        let seg = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(Segment {
            state: State::Free,
            stream: LogStream::Journal,
            cover: Cover::Whole,
            seq: 0,
            seal: 0,
            ordinal: 0,
            live: 0,
            dirty: 0,
            kept: 0,
            readers: 0,
            pins: 0,
            batches: 0,
            used: 0,
            since: Instant(0),
            skip_until: Instant(0),
            footer_tries: 0,
            footer_lost: false,
            log: None,
        });
        self.free.push_back(seg);
    }

    /// Makes a free segment a sealed one, as recovery found it. Called in the order of seals, and at the
    /// end of all [`Segments::restored`].
    pub(super) fn restore(&mut self, seg: u32, stream: LogStream, seq: u64, seal: u64) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            (s.state, s.stream, s.seq, s.seal) = (State::Sealed, stream, seq, seal);
            self.sealed.push_back(seg);
        }
    }

    /// A segment that must not be used, as recovery found it; see [`Segments::restored`].
    pub(super) fn set_bad(&mut self, seg: u32) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.state = State::Bad;
        }
    }

    /// Leaves in the list of free segments only what is free, in one pass.
    pub(super) fn restored(&mut self) {
        let list = &self.list;
        let free = |seg: &u32| list.get(*seg as usize).is_some_and(|s| s.state == State::Free);
        self.free.retain(free);
    }

    pub(super) fn get(&self, seg: u32) -> Option<&Segment> {
        self.list.get(seg as usize)
    }

    pub(super) fn get_mut(&mut self, seg: u32) -> Option<&mut Segment> {
        self.list.get_mut(seg as usize)
    }

    /// The number of a segment's opening: the same slots in another life of it are others.
    pub(super) fn life(&self, seg: u32) -> u64 {
        self.get(seg).map_or(0, |s| s.seq)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks of data that fit into all segments.
    pub(super) fn data_slots(&self) -> u64 {
        self.list.len() as u64 * u64::from(self.geometry.data_slots())
    }

    /// Opens a free segment, if more than `reserve` are free.
    pub(super) fn open(
        &mut self,
        stream: LogStream,
        seq: u64,
        reserve: usize,
        now: Instant,
    ) -> Option<u32> {
        if self.free.len() <= reserve {
            return None;
        }
        let seg = self.free.pop_front()?;
        let log = self.spare.pop().unwrap_or_else(|| SegmentLog::new(self.geometry));
        let s = self.list.get_mut(seg as usize)?;
        (s.state, s.stream, s.seq, s.seal) = (State::Open, stream, seq, 0);
        (s.live, s.dirty, s.kept, s.pins, s.batches, s.used) = (0, 0, 0, 0, 0, 0);
        (s.since, s.skip_until) = (now, Instant(0));
        (s.footer_tries, s.footer_lost) = (0, false);
        s.log = Some(log);
        s.ordinal = self.opened;
        self.opened += 1;
        self.young.push(seg);
        Some(seg)
    }

    /// The footer is durable: the segment waits for its turn to be freed.
    pub(super) fn sealed(&mut self, seg: u32) {
        self.young.retain(|young| *young != seg);
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.state = State::Sealed;
        }
        self.drop_log(seg);
    }

    fn drop_log(&mut self, seg: u32) {
        if let Some(mut log) = self.list.get_mut(seg as usize).and_then(|s| s.log.take()) {
            log.clear();
            self.spare.push(log);
        }
    }

    /// Keeps the records of a sealed segment whose footer is gone; those of the one that was kept
    /// first are dropped where there are too many, and gathered again when they are wanted.
    pub(super) fn keep_log(&mut self, seg: u32, log: SegmentLog) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.log = Some(log);
            self.kept.push_back(seg);
        }
        if self.kept.len() > KEPT_MAX
            && let Some(first) = self.kept.pop_front()
        {
            self.drop_log(first);
        }
    }

    /// A seal number was taken.
    pub(super) fn seal_ordered(&mut self, seg: u32, seal: u64) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            (s.state, s.seal) = (State::Footer, seal);
            self.sealed.push_back(seg);
        }
    }

    /// The segment that is to be freed next.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.sealed.front().copied()
    }

    /// Open segments and those that are being sealed.
    pub(super) fn young(&self) -> &[u32] {
        &self.young
    }

    /// Sealed ones, oldest first.
    pub(super) fn sealed_iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.sealed.iter().copied()
    }

    /// The free mark of the oldest is durable and its entries left the index.
    pub(super) fn freed(&mut self, seg: u32) {
        if self.sealed.front() == Some(&seg) {
            self.sealed.pop_front();
        }
        self.kept.retain(|kept| *kept != seg);
        self.drop_log(seg);
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.state = State::Freed;
        }
        self.reuse(seg);
    }

    /// Counts device reads of a segment; a freed one is used again when the last has ended.
    pub(super) fn reader(&mut self, seg: u32, change: i32) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.readers = s.readers.saturating_add_signed(change);
            self.reuse(seg);
        }
    }

    fn reuse(&mut self, seg: u32) {
        if let Some(s) = self.list.get_mut(seg as usize)
            && s.state == State::Freed
            && s.readers == 0
        {
            s.state = State::Free;
            (s.live, s.dirty) = (0, 0);
            self.free.push_back(seg);
        }
    }

    /// A block became, or ceased to be, the current version.
    pub(super) fn count(&mut self, seg: u32, live: i32, dirty: i32) {
        if let Some(s) = self.list.get_mut(seg as usize) {
            s.live = s.live.saturating_add_signed(live);
            s.dirty = s.dirty.saturating_add_signed(dirty);
        }
    }

    /// When the oldest dirty data was written; `None` where nothing is dirty.
    pub(super) fn oldest_dirty(&self) -> Option<Instant> {
        let all = self.sealed.iter().chain(&self.young);
        all.filter_map(|seg| self.get(*seg)).filter(|s| s.dirty > 0).map(|s| s.since).min()
    }
}
