//! The segments that have records: how each is loaded, and the merge of their batches in the order
//! of their numbers.

use super::replay::{Replay, Source};
use super::scan::{Proof, Scan};
use super::{MAX_UNSEALED, Progress, RecoveryError};
use crate::format::BLOCK;
use crate::format::batch::SegmentName;
use crate::format::footer::{FooterHead, FooterView};
use crate::format::geometry::{Geometry, LogStream, Numbers};
use crate::format::record::Record;
use crate::format::segment_log::SegmentLog;
use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Footers loaded ahead of the merge.
const AHEAD: usize = 16;
/// Data areas in memory at once.
const SCANS: usize = 2;

/// Where one segment's records come from.
#[derive(Debug)]
enum Load {
    /// Its footer, of which the head is known.
    Footer(FooterHead),
    /// Its footer is being read.
    Reading(FooterHead),
    /// Its data area is to be read.
    Scan,
    /// Gone through; what counts is decided when the merge reaches it.
    Scanned(Box<Scan>),
    /// Its records.
    Ready(SegmentLog),
    /// In the merge, or through it.
    Taken,
}

#[derive(Debug)]
struct Entry {
    name: SegmentName,
    /// The number of its first batch, once it is known.
    first: u64,
    load: Load,
    scanned: bool,
    suspect: bool,
    proof: Proof,
}

impl Entry {
    const fn complete(&self) -> bool {
        matches!(self.proof, Proof::All)
    }
}

/// A segment in the merge.
#[derive(Debug)]
struct Active {
    source: Source,
    log: SegmentLog,
    group: usize,
    of: (usize, u64),
    /// Records that must not get into the new footer, nor their LSNs.
    void: Vec<u32>,
}

/// A data area that is read block by block.
#[derive(Debug)]
struct Retry {
    bytes: Vec<u8>,
    next: u16,
    missing: u16,
}

/// What a step of the merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Progress,
    /// A segment that comes next is not loaded yet.
    Wait,
    End,
}

/// All segments that have records.
#[derive(Debug)]
pub(super) struct Sources {
    geometry: Geometry,
    by_segment: BTreeMap<u32, Entry>,
    /// Segments whose data area is to be read, and how many of those are being read.
    to_scan: VecDeque<u32>,
    scanning: usize,
    retries: BTreeMap<u32, Retry>,
    /// Segments by the number of their first batch.
    order: Vec<(u64, u32)>,
    /// How far `order` is in the merge, and how far footers were asked for.
    taken: usize,
    asked: usize,
    active: BTreeMap<u32, Active>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    spare: Vec<SegmentLog>,
    /// By stream and incarnation; see [`log_of`].
    durable_below: BTreeMap<(usize, u64), u64>,
    /// The logs of segments without a footer, after the merge: they get one.
    pub(super) unsettled: BTreeMap<u32, (SegmentName, SegmentLog)>,
}

impl Sources {
    pub(super) const fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            by_segment: BTreeMap::new(),
            to_scan: VecDeque::new(),
            scanning: 0,
            retries: BTreeMap::new(),
            order: Vec::new(),
            taken: 0,
            asked: 0,
            active: BTreeMap::new(),
            heap: BinaryHeap::new(),
            spare: Vec::new(),
            durable_below: BTreeMap::new(),
            unsettled: BTreeMap::new(),
        }
    }

    /// A segment with a footer's head. `suspect`: should the footer be damaged, its batches may
    /// hold what was left out of it because of a segment that is freed by now.
    pub(super) fn sealed(&mut self, segment: u32, head: FooterHead, suspect: bool) {
        let load = Load::Footer(head);
        let (name, first) = (head.name, head.first_batch);
        // A recovery that was interrupted may have torn the footer it made over what a crash tore.
        let proof = if head.recovered { Proof::UpTo(head.last_batch) } else { Proof::All };
        self.by_segment
            .insert(segment, Entry { name, first, load, scanned: false, suspect, proof });
    }

    /// A segment without a footer.
    pub(super) fn unsealed(&mut self, segment: u32, name: SegmentName, suspect: bool) {
        let load = Load::Scan;
        self.to_scan.push_back(segment);
        let proof = if suspect { Proof::All } else { Proof::None };
        self.by_segment
            .insert(segment, Entry { name, first: 0, load, scanned: true, suspect, proof });
    }

    pub(super) fn unsealed_count(&self) -> usize {
        self.by_segment.values().filter(|entry| entry.scanned && !entry.suspect).count()
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            done: u32::try_from(self.taken.saturating_sub(self.active.len())).unwrap_or(u32::MAX),
            total: u32::try_from(self.by_segment.len()).unwrap_or(u32::MAX),
        }
    }

    // ---- segments without a footer

    /// The next segment whose data area is to be read.
    pub(super) fn next_scan(&mut self) -> Option<u32> {
        if self.scanning >= SCANS {
            return None;
        }
        let segment = self.to_scan.pop_front()?;
        self.scanning += 1;
        Some(segment)
    }

    pub(super) fn all_scanned(&self) -> bool {
        self.to_scan.is_empty() && self.scanning == 0
    }

    /// A data area could not be read as a whole.
    pub(super) fn retry_blocks(&mut self, segment: u32, mut bytes: Vec<u8>) {
        bytes.fill(0);
        let missing = u16::try_from(self.geometry.data_slots()).unwrap_or(u16::MAX);
        self.retries.insert(segment, Retry { bytes, next: 0, missing });
    }

    /// The next single block to be read, if one more may be asked for.
    pub(super) fn next_block(&mut self, may: bool) -> Option<(u32, u16)> {
        let slots = self.geometry.data_slots();
        let (segment, retry) =
            self.retries.iter_mut().find(|(_, retry)| may && u32::from(retry.next) < slots)?;
        retry.next += 1;
        Some((*segment, retry.next - 1))
    }

    /// A single block; the whole area when it was the last. What cannot be read stays zero, which
    /// is no header and matches no CRC.
    pub(super) fn block_read(
        &mut self,
        segment: u32,
        block: u16,
        bytes: Option<&Vec<u8>>,
    ) -> Option<Vec<u8>> {
        let retry = self.retries.get_mut(&segment)?;
        let at = usize::from(block) * BLOCK;
        if let (Some(out), Some(bytes)) = (retry.bytes.get_mut(at..at + BLOCK), bytes)
            && bytes.len() == BLOCK
        {
            out.copy_from_slice(bytes);
        }
        retry.missing = retry.missing.saturating_sub(1);
        if retry.missing > 0 {
            return None;
        }
        self.retries.remove(&segment).map(|retry| retry.bytes)
    }

    /// Goes through a data area.
    pub(super) fn scanned(
        &mut self,
        segment: u32,
        bytes: &[u8],
        key: impl Fn(&Record) -> Option<u64>,
    ) {
        let Some(entry) = self.by_segment.get_mut(&segment) else { return };
        let mut scan = Scan::walk(bytes, entry.name, self.geometry, key);
        scan.proof = entry.proof;
        entry.first = if entry.first == 0 { scan.first_batch() } else { entry.first };
        let below = self.durable_below.entry(log_of(&entry.name)).or_insert(0);
        *below = (*below).max(scan.durable_below);
        entry.load = Load::Scanned(Box::new(scan));
        self.scanning = self.scanning.saturating_sub(1);
    }

    /// The highest number in a scanned segment.
    pub(super) fn highest(&self, segment: u32) -> u64 {
        match self.by_segment.get(&segment).map(|entry| &entry.load) {
            Some(Load::Scanned(scan)) => scan.last_batch(),
            _ => 0,
        }
    }

    // ---- the merge

    /// Puts the segments in order.
    pub(super) fn begin(&mut self) {
        self.order =
            self.by_segment.iter().map(|(segment, entry)| (entry.first, *segment)).collect();
        self.order.sort_unstable();
    }

    /// The next footer to be read, and its bytes.
    pub(super) fn next_footer(&mut self) -> Option<(u32, usize)> {
        while self.asked < self.taken + AHEAD {
            let (_, segment) = *self.order.get(self.asked)?;
            self.asked += 1;
            let entry = self.by_segment.get_mut(&segment)?;
            if let Load::Footer(head) = entry.load {
                entry.load = Load::Reading(head);
                return Some((segment, head.read_bytes().min(self.geometry.footer_bytes())));
            }
        }
        None
    }

    /// A footer was read (or not); says whether it was sound. If not, the segment is scanned.
    pub(super) fn footer(&mut self, segment: u32, bytes: Option<&[u8]>) -> bool {
        let Some(entry) = self.by_segment.get_mut(&segment) else { return true };
        let view = bytes.and_then(FooterView::parse);
        let head = if let Load::Reading(head) = entry.load { Some(head) } else { None };
        if let Some(view) = view.filter(|view| Some(view.head) == head) {
            let mut log = self.spare.pop().unwrap_or_else(|| SegmentLog::new(self.geometry));
            view.load(&mut log);
            entry.load = Load::Ready(log);
            return true;
        }
        entry.load = Load::Scan;
        entry.scanned = true;
        self.to_scan.push_back(segment);
        false
    }

    /// Applies the records of one batch, or takes up one more segment.
    pub(super) fn replay(&mut self, replay: &mut Replay) -> Result<Step, RecoveryError> {
        let head = self.heap.peek().map(|Reverse((number, _))| *number);
        if let Some((first, segment)) = self.order.get(self.taken).copied()
            && head.is_none_or(|number| first < number)
        {
            return self.take(segment, replay);
        }
        let Some(Reverse((_, segment))) = self.heap.pop() else { return Ok(Step::End) };
        self.apply_group(segment, replay)?;
        Ok(Step::Progress)
    }

    fn take(&mut self, segment: u32, replay: &mut Replay) -> Result<Step, RecoveryError> {
        let Some(entry) = self.by_segment.get_mut(&segment) else { return Ok(Step::Wait) };
        let log = match core::mem::replace(&mut entry.load, Load::Taken) {
            Load::Ready(log) => log,
            Load::Scanned(scan) => {
                let below = self.durable_below.get(&log_of(&entry.name)).copied().unwrap_or(0);
                let mut accepted = scan.accept(below, replay.plant);
                for damage in &accepted.damage {
                    if damage.record.dirty() {
                        let from = damage.record.block + u64::from(damage.blocks.start);
                        replay.lost(&damage.record, from, damage.blocks.len_u32());
                    }
                }
                replay.stats.damaged_batches += accepted.damaged_batches;
                if entry.suspect {
                    accepted.log.poison();
                    for (record, _) in accepted.log.iter().filter(|(record, _)| record.dirty()) {
                        replay.lost(record, record.block, record.blocks);
                    }
                }
                accepted.log
            }
            other => {
                entry.load = other;
                return Ok(Step::Wait);
            }
        };
        self.taken += 1;
        let source = Source {
            segment,
            seq: entry.name.seq,
            scanned: entry.scanned,
            complete: entry.complete(),
            suspect: entry.scanned && entry.suspect,
        };
        if self.active.len() >= MAX_UNSEALED * 2 {
            let count = u32::try_from(self.active.len()).unwrap_or(u32::MAX);
            return Err(RecoveryError::TooManyOpen(count));
        }
        let of = log_of(&entry.name);
        self.active.insert(segment, Active { source, log, group: 0, of, void: Vec::new() });
        self.queue(segment);
        Ok(Step::Progress)
    }

    /// Puts a segment's next batch in the heap, or ends the segment.
    fn queue(&mut self, segment: u32) {
        let Some(active) = self.active.get(&segment) else { return };
        if let Some((number, _)) = active.log.group(active.group) {
            self.heap.push(Reverse((number, segment)));
            return;
        }
        if let Some(mut active) = self.active.remove(&segment)
            && let Some(entry) = self.by_segment.get(&segment)
        {
            if active.source.scanned {
                active.log.remove(&active.void);
                self.unsettled.insert(segment, (entry.name, active.log));
            } else if self.spare.len() < AHEAD {
                self.spare.push(active.log);
            }
        }
    }

    fn apply_group(&mut self, segment: u32, replay: &mut Replay) -> Result<(), RecoveryError> {
        if let Some(active) = self.active.get_mut(&segment)
            && let Some((number, entries)) = active.log.group(active.group)
        {
            // All before it in its stream was durable: where an LSN is missing, that is damage.
            let below = self.durable_below.get(&active.of).copied().unwrap_or(0);
            let source =
                Source { complete: active.source.complete || number <= below, ..active.source };
            replay.touch(entries.clone().filter_map(|entry| active.log.get(entry)));
            for entry in entries {
                let Some((record, crcs)) = active.log.get(entry) else { continue };
                let counts = replay.apply(&source, record, crcs).map_err(RecoveryError::Index)?;
                if !counts {
                    active.void.push(entry);
                }
            }
            active.group += 1;
        }
        self.queue(segment);
        Ok(())
    }
}

/// The log that a segment is a part of: its stream in one incarnation. A later incarnation begins
/// behind what recovery took for the end, and proves nothing of what lies beyond that.
fn log_of(name: &SegmentName) -> (usize, u64) {
    let stream = LogStream::ALL.iter().position(|stream| *stream == name.stream).unwrap_or(0);
    (stream, Numbers::incarnation(name.seq))
}

trait LenU32 {
    fn len_u32(&self) -> u32;
}

impl LenU32 for core::ops::Range<u32> {
    fn len_u32(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }
}
