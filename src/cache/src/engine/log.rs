//! Appending to the logs: batches are opened, filled, closed at the end of a poll, sent, and count
//! in their order.

use super::ops::What;
use super::segments::State;
use super::stream::{BATCH_BYTES, Batch, IN_FLIGHT_MAX, SECOND_FROM, Sent};
use super::types::Event;
use super::volume::Volume;
use super::{Cx, Engine};
use crate::format::batch::{BatchBuilder, Placed, SegmentName, timeless_mask};
use crate::format::geometry::LogStream;
use crate::format::record::{Kind, Record};
use crate::plant::Bug;
use forebay_io::device::Stream as Lifetime;
use forebay_io::{Buf, BufPool, DeviceError, Instant, Lsn, Op};

/// Tries of one batch before the cache device counts as failed.
const TRIES_MAX: u8 = 3;

impl<B: Buf> Engine<B> {
    fn name(&self, seg: u32) -> Option<SegmentName> {
        let s = self.segs.get(seg)?;
        Some(SegmentName {
            cache: self.cache_uuid,
            shard: self.shard,
            segment: self.map.device_segment(seg)?,
            seq: s.seq,
            stream: s.stream,
        })
    }

    pub(super) fn segment_name(&self, seg: u32) -> Option<SegmentName> {
        self.name(seg)
    }

    /// How many data blocks one record may have now in the open batch of a log, which is opened
    /// where none is. `None` while there is neither a segment beyond `reserve` nor a buffer.
    pub(super) fn room<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        kind: LogStream,
        reserve: usize,
    ) -> Option<u32> {
        // A segment that was opened out of the reserve, for marks, is not for others to fill.
        if self.segs.free_count() < reserve {
            self.reclaim.wanted = true;
            return None;
        }
        loop {
            let stream = &self.streams[usize::from(kind.code())];
            if let Some(batch) = &stream.open {
                let log = self.segs.get(batch.seg)?.log.as_ref()?;
                let room = batch.builder.room(BATCH_BYTES, log);
                if room > 0 {
                    return Some(room);
                }
                self.close_batch(kind);
            }
            self.open_batch(cx, kind, reserve)?;
        }
    }

    fn open_batch<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        kind: LogStream,
        reserve: usize,
    ) -> Option<()> {
        // What was under way when the device failed, a read of reclaim, may still bring a block.
        if self.cache_failed.is_some() {
            return None;
        }
        let index = usize::from(kind.code());
        if let Some(seg) = self.streams[index].seg {
            let s = self.segs.get(seg)?;
            let log = s.log.as_ref()?;
            // Room for a header, a block and a mark; else the segment is done.
            if s.used + 2 > log.data_slots() || log.room_blocks() < 2 {
                self.end_segment(kind);
            }
        }
        if self.streams[index].queue.len() >= self.queue_max {
            return None;
        }
        let buf = match self.streams[index].spare() {
            Some(buf) => buf,
            None => self.alloc(cx, BATCH_BYTES as u64)?,
        };
        let seg = match self.streams[index].seg {
            Some(seg) => seg,
            None => {
                let seq = self.numbers.peek();
                let Some(seg) = self.segs.open(kind, seq, reserve, cx.now) else {
                    self.streams[index].keep(Some(buf), Vec::new());
                    self.reclaim.wanted = true;
                    return None;
                };
                self.numbers.next();
                self.streams[index].seg = Some(seg);
                seg
            }
        };
        let name = self.name(seg)?;
        let s = self.segs.get(seg)?;
        let slot = u16::try_from(s.used).ok()?;
        let (first, start) = (s.log.as_ref()?.len(), self.map.segment_offset(seg)?);
        // A journal batch takes its number when it is closed, the others before their first record.
        let number = if kind == LogStream::Journal { 0 } else { self.numbers.next() };
        let stream = &mut self.streams[index];
        let ordinal = stream.next_ordinal;
        stream.next_ordinal += 1;
        let from = stream.list();
        stream.open = Some(Batch {
            builder: BatchBuilder::new(name, slot, 0),
            buf: Some(buf),
            seg,
            entries: first..first,
            ordinal,
            number,
            sent: Sent::No,
            tries: 0,
            at: start + u64::from(slot) * super::types::BLOCK,
            len: 0,
            from,
        });
        if kind == LogStream::Journal && slot == 0 {
            self.commit_marks();
        }
        Some(())
    }

    /// The first journal batch of a segment says what is committed: older segments may be freed.
    fn commit_marks(&mut self) {
        for place in 0..self.vols.bound() {
            let Some(vol) = self.vols.get(place) else { continue };
            let (record, committed) = (Self::commit_record(vol), vol.committed);
            let ordinal = self.put_mark(LogStream::Journal, &record);
            let seg = self.streams[usize::from(LogStream::Journal.code())].seg;
            if let (Some(_), Some(seg), Some(vol)) = (ordinal, seg, self.vols.get_mut(place)) {
                vol.marked = (committed, ordinal, seg);
            }
        }
    }

    /// All numbers of a volume up to the last committed one are accounted for.
    pub(super) fn commit_record(vol: &Volume) -> Record {
        Record {
            kind: Kind::Commit,
            moved: false,
            clean: false,
            volume: vol.index,
            generation: vol.generation,
            block: 0,
            blocks: 0,
            lsn: Lsn(vol.committed),
            epoch: vol.epoch,
            slot: 0,
        }
    }

    /// Appends a mark to the open batch; `None` where it does not fit or none is open.
    fn put_mark(&mut self, kind: LogStream, record: &Record) -> Option<u64> {
        let batch = self.streams[usize::from(kind.code())].open.as_mut()?;
        let log = self.segs.get_mut(batch.seg)?.log.as_mut()?;
        let buffer = batch.buf.as_mut()?.as_mut_slice()?;
        batch.builder.append_mark(buffer, log, record).ok()?;
        if record.kind.takes_lsn() && !record.moved {
            self.segs.get_mut(batch.seg)?.pins += 1;
        }
        Some(batch.ordinal)
    }

    /// Appends a record without data; returns the batch's ordinal and its segment. `None` while
    /// there is no room.
    pub(super) fn append_mark<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        kind: LogStream,
        reserve: usize,
        record: &Record,
    ) -> Option<(u64, u32)> {
        for _ in 0..3 {
            self.room(cx, kind, reserve)?;
            if let Some(ordinal) = self.put_mark(kind, record) {
                let batch = self.streams[usize::from(kind.code())].open.as_ref()?;
                return Some((ordinal, batch.seg));
            }
            self.close_batch(kind);
        }
        None
    }

    /// Appends a record with data to the open batch, which must have the room. Returns the slot of
    /// its first block, its segment, and the batch's ordinal.
    pub(super) fn append_data(
        &mut self,
        kind: LogStream,
        record: &Record,
        key: u64,
        data: &[u8],
        from: Option<u32>,
    ) -> Option<(u32, u32, u64)> {
        let batch = self.streams[usize::from(kind.code())].open.as_mut()?;
        let segment = self.segs.get_mut(batch.seg)?;
        let log = segment.log.as_mut()?;
        let buffer = batch.buf.as_mut()?.as_mut_slice()?;
        let Placed { slot, entry } =
            batch.builder.append_data(buffer, log, record, key, data).ok()?;
        segment.pins += 1;
        batch.from.extend((0..record.blocks).map(|_| from.unwrap_or(0)));
        let first = self.map.slot(batch.seg, slot);
        let (_, crcs) = log.get(entry)?;
        let mask = timeless_mask(record.lsn.0);
        for (slot, crc) in (first..).zip(crcs) {
            self.folds.set(slot, *crc ^ mask);
        }
        Some((first, batch.seg, batch.ordinal))
    }

    /// Closes the open batch of a log, if it holds anything.
    pub(super) fn close_batch(&mut self, kind: LogStream) {
        let stream = &mut self.streams[usize::from(kind.code())];
        let Some(mut batch) = stream.open.take() else { return };
        let segment = self.segs.get_mut(batch.seg);
        let log = segment.and_then(|s| s.log.as_mut());
        let buffer = batch.buf.as_mut().and_then(Buf::as_mut_slice);
        let (Some(log), Some(buffer), false) = (log, buffer, batch.builder.is_empty()) else {
            stream.next_ordinal -= 1;
            stream.keep(batch.buf.take(), core::mem::take(&mut batch.from));
            return;
        };
        if kind == LogStream::Journal {
            batch.number = self.numbers.next();
        }
        let oldest = stream.queue.front().map_or(batch.number, |first| first.number);
        let below = if self.volatile { self.flush.durable_below(kind, oldest) } else { oldest };
        batch.builder.finish(buffer, log, batch.number, below);
        batch.entries.end = log.len();
        batch.len = batch.builder.end() as u64;
        let next = batch.builder.next_slot();
        if let Some(s) = self.segs.get_mut(batch.seg) {
            s.used = next;
            s.batches += 1;
        }
        stream.queue.push_back(batch);
    }

    /// Sends what may be sent. The open batch of the journal is closed when nothing, or little, is
    /// on the way: one device write for all that a poll brought.
    pub(super) fn pump(&mut self, now: Instant, kind: LogStream) {
        let index = usize::from(kind.code());
        let stream = &self.streams[index];
        let unsent = stream.queue.len() > stream.in_flight;
        if let Some(batch) = &stream.open
            && !unsent
            && (stream.in_flight == 0
                || (stream.in_flight < IN_FLIGHT_MAX && batch.builder.end() > SECOND_FROM))
        {
            self.close_batch(kind);
        }
        loop {
            let stream = &mut self.streams[index];
            if stream.in_flight >= IN_FLIGHT_MAX {
                return;
            }
            let Some(batch) = stream.queue.iter_mut().find(|batch| batch.sent == Sent::No) else {
                return;
            };
            batch.sent = Sent::Yes;
            stream.in_flight += 1;
            let (ordinal, at, len) = (batch.ordinal, batch.at, batch.len);
            let Some(buf) = batch.buf.take() else { return };
            let mut op = Op::write(0, at, len, buf);
            op.stream = match kind {
                LogStream::Journal => Lifetime::Journal,
                LogStream::Fill => Lifetime::Fill,
                LogStream::Reinsert => Lifetime::Reinsert,
            };
            self.stats.log_bytes[index] += len;
            self.cache_op(now, What::Batch { stream: kind, ordinal }, op);
        }
    }

    /// A batch's device write ended.
    pub(super) fn batch_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        kind: LogStream,
        ordinal: u64,
        result: Result<(), DeviceError>,
        buf: Option<B>,
    ) {
        let stream = &mut self.streams[usize::from(kind.code())];
        stream.in_flight -= 1;
        let Some(batch) = stream.queue.iter_mut().find(|batch| batch.ordinal == ordinal) else {
            return;
        };
        batch.buf = buf;
        if let Err(error) = result
            && !self.plant.has(Bug::LogErrorIgnored)
        {
            batch.tries += 1;
            batch.sent = Sent::No;
            let last = batch.tries >= TRIES_MAX;
            self.cache_error(cx, error, last);
            return;
        }
        batch.sent = Sent::Landed;
        while self.streams[usize::from(kind.code())].queue.front().is_some_and(|batch| {
            let early = self.plant.has(Bug::AckOutOfOrder) && batch.sent == Sent::Yes;
            batch.sent == Sent::Landed || early
        }) {
            let stream = &mut self.streams[usize::from(kind.code())];
            let Some(batch) = stream.queue.pop_front() else { return };
            stream.durable = batch.ordinal + 1;
            self.batch_counts(&batch);
            if let Some(s) = self.segs.get_mut(batch.seg) {
                s.batches -= 1;
            }
            self.streams[usize::from(kind.code())].keep(batch.buf, batch.from);
        }
    }

    /// A batch and all earlier ones of its log are on the device.
    fn batch_counts(&mut self, batch: &Batch<B>) {
        let mut at = 0;
        for entry in batch.entries.clone() {
            let log = self.segs.get(batch.seg).and_then(|s| s.log.as_ref());
            let Some(record) = log.and_then(|log| log.get(entry)).map(|(record, _)| *record) else {
                return;
            };
            let from = batch.from.get(at..at + record.data_blocks()).unwrap_or_default();
            at += record.data_blocks();
            if record.moved {
                if record.kind.has_data() {
                    self.moved_counts(&record, batch.seg, from);
                    self.unpin(batch.seg);
                }
            } else if record.kind.takes_lsn() && !self.plant.has(Bug::AckBeforeDurable) {
                if let Some(vol) = self.vols.of_index(record.volume, record.generation) {
                    let first = Lsn(vol.persisted + 1);
                    vol.persisted = record.lsn.0;
                    let volume = vol.id;
                    self.persisted_event(volume, first, record.lsn);
                }
            } else if record.kind == Kind::Fill {
                self.fill_counts(&record, batch.seg, from);
                self.unpin(batch.seg);
            }
        }
    }

    /// Says what is durable, joined with what was said just before.
    pub(super) fn persisted_event(&mut self, volume: forebay_io::VolumeId, first: Lsn, last: Lsn) {
        for (event, _) in self.events.iter_mut().rev().take(4) {
            if let Event::Persisted { volume: other, last: end, .. } = event
                && *other == volume
            {
                *end = last;
                return;
            }
        }
        self.event(Event::Persisted { volume, first, last });
    }

    pub(super) fn unpin(&mut self, seg: u32) {
        if let Some(s) = self.segs.get_mut(seg) {
            s.pins = s.pins.saturating_sub(1);
        }
    }

    /// Nothing more goes to the open segment of a log.
    pub(super) fn end_segment(&mut self, kind: LogStream) {
        self.close_batch(kind);
        if let Some(seg) = self.streams[usize::from(kind.code())].seg.take()
            && let Some(s) = self.segs.get_mut(seg)
        {
            s.state = State::Sealing;
        }
    }
}
