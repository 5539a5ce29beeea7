//! Goes through a segment that has no footer, batch by batch, and says which of them count.

use crate::format::BLOCK;
use crate::format::batch::{BatchView, SegmentName, bad_blocks};
use crate::format::geometry::Geometry;
use crate::format::record::Record;
use crate::format::segment_log::SegmentLog;
use crate::plant::{Bug, Plant};
use core::ops::Range;

/// Blocks of a record whose data do not match their CRCs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) record: Record,
    /// Blocks of the record, from the first bad one to the last.
    pub(super) blocks: Range<u32>,
}

/// A batch with a sound header.
#[derive(Clone, Debug)]
struct Candidate {
    number: u64,
    /// Between the batch before and this one lies something that is no header.
    after_hole: bool,
    /// Its data are not all right.
    damage: Vec<Damage>,
}

/// What was found in a segment.
#[derive(Debug)]
pub(super) struct Scan {
    log: SegmentLog,
    candidates: Vec<Candidate>,
    /// The highest `durable_below` of any sound header.
    pub(super) durable_below: u64,
    pub(super) proof: Proof,
}

/// What a footer that was begun proves of its segment's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    None,
    /// That those up to this one count, and none behind it: recovery made the footer.
    UpTo(u64),
    /// That all were durable.
    All,
}

/// The batches that count.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) log: SegmentLog,
    /// Damaged data in batches that were durable once.
    pub(super) damage: Vec<Damage>,
    /// Batches that were durable once and are damaged.
    pub(super) damaged_batches: u64,
}

impl Scan {
    /// Looks at the data area of a segment of this name. `key` gives the CRC key of a record's
    /// volume; data of other volumes are not checked.
    pub(super) fn walk(
        bytes: &[u8],
        name: SegmentName,
        geometry: Geometry,
        key: impl Fn(&Record) -> Option<u64>,
    ) -> Self {
        let mut scan = Self {
            log: SegmentLog::new(geometry),
            candidates: Vec::new(),
            durable_below: 0,
            proof: Proof::None,
        };
        let (mut slot, mut hole, mut last) = (0u16, false, 0);
        while u32::from(slot) < geometry.data_slots() {
            let at = usize::from(slot) * BLOCK;
            let header = bytes.get(at..at + BLOCK).and_then(|block| BatchView::parse(block).ok());
            let header = header.filter(|view| {
                let end = u32::from(slot) + 1 + u32::from(view.blocks);
                view.belongs(&name, slot) && view.number > last && end <= geometry.data_slots()
            });
            let Some(view) = header else {
                hole = true;
                slot += 1;
                continue;
            };
            scan.take(&view, bytes, hole, &key);
            last = view.number;
            hole = false;
            slot += 1 + view.blocks;
        }
        scan
    }

    fn take(
        &mut self,
        view: &BatchView<'_>,
        bytes: &[u8],
        after_hole: bool,
        key: &impl Fn(&Record) -> Option<u64>,
    ) {
        let mut damage = Vec::new();
        for (record, crcs) in view.records() {
            self.log.push(&record);
            crcs.iter().for_each(|crc| self.log.push_crc(crc));
            let data = bytes.get(usize::from(record.slot) * BLOCK..);
            if record.kind.has_data()
                && let (Some(key), Some(data)) = (key(&record), data)
                && let Some(blocks) = bad_blocks(&record, crcs, key, data)
            {
                damage.push(Damage { record, blocks });
            }
        }
        self.log.close_batch(view.number);
        self.durable_below = self.durable_below.max(view.durable_below);
        // A header without records is never written, but would shift the groups.
        if view.records > 0 {
            self.candidates.push(Candidate { number: view.number, after_hole, damage });
        }
    }

    /// The number of the first batch; 0 without any.
    pub(super) fn first_batch(&self) -> u64 {
        self.candidates.first().map_or(0, |first| first.number)
    }

    /// The highest number seen.
    pub(super) fn last_batch(&self) -> u64 {
        self.candidates.last().map_or(0, |last| last.number)
    }

    /// The batches up to the first that is torn or missing. One that is damaged although it was
    /// durable once does not end the log: `durable_below` of any later header of the stream
    /// proves that.
    pub(super) fn accept(mut self, durable_below: u64, plant: Plant) -> Accepted {
        let mut accepted = 0;
        let mut all = Vec::new();
        let mut damaged_batches = 0;
        for candidate in &mut self.candidates {
            let sure = match self.proof {
                Proof::None => false,
                Proof::UpTo(last) if candidate.number > last => break,
                Proof::UpTo(_) | Proof::All => true,
            };
            let before_was_durable = sure || durable_below >= candidate.number;
            let was_durable = sure || durable_below > candidate.number;
            let torn = (candidate.after_hole && !before_was_durable)
                || (!candidate.damage.is_empty() && !was_durable);
            if torn && !plant.has(Bug::PastTear) {
                break;
            }
            accepted += 1;
            damaged_batches += u64::from(candidate.after_hole);
            damaged_batches += u64::from(!candidate.damage.is_empty());
            all.append(&mut candidate.damage);
        }
        self.log.truncate(accepted);
        Accepted { log: self.log, damage: all, damaged_batches }
    }
}
