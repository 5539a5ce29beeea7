//! The end of a recovery: footers for the segments that had none, then the superblock of the new
//! incarnation, each durable before the next.

use super::{Ask, LSNS_SKIPPED, MAX_JOBS, Phase, Recovery, RecoveryError, SegmentState, name};
use crate::format::BLOCK;
use crate::format::device::DeviceHeader;
use crate::format::footer::{Keep, build_footer, set_recovered};
use crate::format::record::MAX_LSN;
use crate::plant::Bug;
use forebay_io::{DeviceError, Lsn};
use std::collections::VecDeque;

use super::transfer::Done;

/// What is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Footers,
    FlushFooters,
    /// The first, then the second copy of the superblock, each flushed.
    Super(u8),
    FlushSuper(u8),
}

/// The names of the transfers that are no footers.
const FLUSH: u32 = u32::MAX;
const SUPER: u32 = u32::MAX - 1;

/// What is still to be written.
#[derive(Debug)]
pub(super) struct Settle {
    header: DeviceHeader,
    stage: Stage,
    footers: VecDeque<u32>,
}

impl Settle {
    pub(super) const fn new(header: &DeviceHeader) -> Self {
        Self { header: *header, stage: Stage::Footers, footers: VecDeque::new() }
    }
}

impl Recovery {
    pub(super) fn begin_settle(&mut self) {
        if self.read_only {
            self.phase = Phase::Done;
            return;
        }
        let mut order: Vec<(u64, u32)> = self
            .sources
            .unsettled
            .iter()
            .map(|(segment, (name, _))| (name.seq, *segment))
            .collect();
        order.sort_unstable();
        self.settle.footers = order.into_iter().map(|(_, segment)| segment).collect();
        self.phase = Phase::Settle;
    }

    pub(super) fn advance_settle(&mut self) -> bool {
        if self.settle.stage == Stage::Footers
            && let Some(segment) = self.settle.footers.front().copied()
        {
            if self.transfer.pending() >= MAX_JOBS {
                return false;
            }
            self.settle.footers.pop_front();
            self.write_footer(segment);
            return true;
        }
        if self.transfer.pending() > 0 {
            return false;
        }
        self.settle.stage = match self.settle.stage {
            Stage::Footers => Stage::FlushFooters,
            Stage::FlushFooters => Stage::Super(0),
            Stage::Super(copy) => Stage::FlushSuper(copy),
            Stage::FlushSuper(0) => Stage::Super(1),
            Stage::FlushSuper(_) => {
                self.phase = Phase::Done;
                return true;
            }
        };
        match self.settle.stage {
            Stage::Super(copy) => self.write_superblock(copy == 0),
            _ => self.transfer.flush(name(Ask::Settle, FLUSH, 0)),
        }
        true
    }

    fn write_footer(&mut self, segment: u32) {
        let Some((segment_name, log)) = self.sources.unsettled.get(&segment) else { return };
        let geometry = self.map.geometry();
        let (map, replay) = (&self.map, &self.replay);
        let seal = self.numbers.next();
        let mut bytes = vec![0; geometry.footer_bytes()];
        let built = build_footer(&mut bytes, log, segment_name, seal, |record, index| {
            let slot = u16::try_from(index).ok().and_then(|index| record.slot.checked_add(index));
            let slot = slot.map_or(u32::MAX, |slot| map.slot(segment, slot));
            match replay.fate(record.volume, record.block + u64::from(index), slot) {
                None => Keep::Dead,
                Some(false) => Keep::Clean,
                Some(true) => Keep::Dirty,
            }
        });
        let Some(info) = self.replay.segments.get_mut(segment as usize) else { return };
        let Some(offset) = self.map.segment_offset(segment) else { return };
        let Some(built) = built else {
            // Only a log that broke the bounds of the format comes here.
            info.state = SegmentState::Bad;
            self.replay.stats.bad += 1;
            return;
        };
        bytes.truncate(built.bytes);
        set_recovered(&mut bytes);
        info.state = SegmentState::Sealed;
        info.seal = seal;
        self.replay.stats.sealed += 1;
        if self.plant.has(Bug::NoSettledFooter) {
            return;
        }
        let offset = offset + u64::from(geometry.footer_slot()) * BLOCK as u64;
        self.transfer.write(name(Ask::Settle, segment, 0), offset, bytes);
    }

    /// Writes the next copy of the superblock; the first time with the new incarnation.
    fn write_superblock(&mut self, first: bool) {
        let hidden = self.deferred.as_ref().is_some_and(|segments| !segments.is_empty());
        let superblock = &mut self.superblock;
        superblock.generation += 1;
        if first {
            // A clean stop has noted the last LSN: none is hidden.
            let skipped = if hidden && !superblock.clean_stop { LSNS_SKIPPED } else { 0 };
            superblock.incarnation += u32::from(!self.plant.has(Bug::SameIncarnation));
            superblock.clean_stop = false;
            for entry in &mut superblock.volumes {
                if let Some((last, epoch)) = self.replay.last(entry.index) {
                    entry.accounted = Lsn((last.0 + skipped).min(MAX_LSN - 1));
                    entry.base = last;
                    entry.epoch = entry.epoch.max(epoch);
                }
            }
        }
        let mut bytes = vec![0; superblock.encoded_len()];
        match superblock.encode(&mut bytes) {
            Ok(_) => {
                let offset =
                    self.settle.header.superblock_offset(superblock.shard, superblock.copy());
                self.transfer.write(name(Ask::Settle, SUPER, 0), offset, bytes);
            }
            Err(error) => self.error = Some(RecoveryError::Superblock(error)),
        }
    }

    pub(super) fn settled(&mut self, segment: u32, done: &Done) {
        let Err(error) = done.result else { return };
        match segment {
            // A device without a volatile cache need not know flushes.
            FLUSH if error == DeviceError::Unsupported => {}
            FLUSH | SUPER => self.error = Some(RecoveryError::Write(error)),
            _ => {
                // What it holds stays readable; it gets no new life.
                if let Some(info) = self.replay.segments.get_mut(segment as usize) {
                    info.state = SegmentState::Bad;
                }
                self.replay.stats.bad += 1;
            }
        }
    }
}
