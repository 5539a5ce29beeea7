//! Gathering a batch: rounds of destage write it to the journal in place of the backing device.

use super::{BLOCK, BLOCK_LEN, Bug, Engine, Entry, Handle, Phase, What, Written, Zeroes, data_crc};
use forebay_io::{Buf, DeviceError, Instant, Lsn, Op};

impl<B: Buf> Engine<B> {
    /// Writes what a run has read into the journal; `false` where that cannot be now.
    pub(in crate::engine) fn journal_gather(
        &mut self,
        now: Instant,
        h: Handle,
        (place, block, blocks): (u16, u64, u64),
        buf: B,
    ) -> bool {
        let Some(vol) = self.vols.get_mut(place) else { return false };
        let uuid = vol.uuid;
        let (Some(journal), Some(order)) = (vol.order_journal.as_mut(), vol.order.as_mut()) else {
            return false;
        };
        if journal.busy() || order.phase != Phase::Batch || order.extend {
            return false;
        }
        if !journal.has_room(blocks, blocks) {
            // What was tried again takes room twice: from the begin, then.
            order.extend = true;
            return false;
        }
        let batch = journal.batch();
        for (block, data) in (block..block + blocks).zip(buf.as_slice().chunks(BLOCK_LEN)) {
            journal.entries.push(Entry::Data { block, crc: data_crc(uuid, batch, block, data) });
        }
        let at = journal.header.layout.data_offset(journal.data);
        journal.data += blocks;
        self.journal_op(
            now,
            place,
            What::Gathered { run: h },
            Op::write(0, at, blocks * BLOCK, buf),
        );
        true
    }

    /// A run's blocks are in the journal, or not: then the batch is gathered anew.
    pub(in crate::engine) fn journal_gathered(
        &mut self,
        now: Instant,
        place: u16,
        result: Result<(), DeviceError>,
    ) {
        match result {
            Ok(()) => self.journal_good(place),
            Err(error) => self.journal_error(now, place, error),
        }
        let Some(vol) = self.vols.get_mut(place) else { return };
        if self.plant.has(Bug::JournalHoled) {
            return;
        }
        if let (Err(_), Some(order), Some(journal)) =
            (result, vol.order.as_mut(), vol.order_journal.as_ref())
        {
            order.extend = order.phase == Phase::Batch;
            order.retry_at = journal.retry_at();
        }
    }

    /// Blocks of the batch are in the journal: nothing is kept for them any more.
    pub(in crate::engine) fn journal_took(&mut self, written: Written) {
        let words = self.words();
        if !self.lives(written.slot, written.life) {
            return;
        }
        let (seg, slot) =
            (self.map.segment_of(written.slot), self.map.slot_in_segment(written.slot));
        self.order_done(written.place, written.slot);
        let Some(vol) = self.vols.get_mut(written.place) else { return };
        let (Some(order), Some(journal)) = (vol.order.as_mut(), vol.order_journal.as_mut()) else {
            return;
        };
        if journal.busy() || order.phase != Phase::Batch {
            return;
        }
        if let Some((at, mask)) = order.bit(seg, slot, words)
            && let Some(word) = order.gathered.get_mut(at)
        {
            *word |= mask;
        }
        journal.done.push(written);
    }

    /// Whether a version of the batch is still to be gathered; `true` where there is no journal.
    pub(in crate::engine) fn journal_wants(&self, place: u16, slot: u32) -> bool {
        let Some(vol) = self.vols.get(place).filter(|vol| vol.in_journal()) else { return true };
        let (seg, within) = (self.map.segment_of(slot), self.map.slot_in_segment(slot));
        let bit = vol.order.as_ref().and_then(|order| {
            let (at, mask) = order.bit(seg, within, self.words())?;
            Some(order.gathered.get(at)? & mask == 0)
        });
        bit.unwrap_or(false)
    }

    /// Takes a range of zeroes into the batch.
    pub(in crate::engine) fn journal_zeroes(&mut self, zeroes: Zeroes) {
        let Some(vol) = self.vols.get_mut(zeroes.place) else { return };
        let (Some(order), Some(journal)) = (vol.order.as_mut(), vol.order_journal.as_mut()) else {
            return;
        };
        let Ok(blocks) = u32::try_from(zeroes.blocks) else { return };
        if journal.busy() || order.phase != Phase::Batch || order.extend {
            return;
        }
        if !journal.has_room(0, 1) {
            order.extend = true;
            return;
        }
        journal.entries.push(Entry::Zeroes { block: zeroes.block, blocks });
        journal.zeroes.push(zeroes);
        order.zeroed = true;
        let _ = order.zeroes.punch(zeroes.block, zeroes.blocks, Lsn(u64::MAX));
    }
}
