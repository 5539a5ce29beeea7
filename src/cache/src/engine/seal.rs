//! Sealing: once all records of a full segment are durable and committed its footer is written,
//! which names what is current then.

use super::ops::What;
use super::segments::State;
use super::volume::spare;
use super::{Cx, Engine};
use crate::format::footer::{Keep, build_footer};
use crate::format::geometry::LogStream;
use crate::format::record::Record;
use crate::index::{Index, Key};
use crate::plant::Bug;
use forebay_io::{Buf, BufPool, DeviceError, Op};

/// Tries of one footer before the cache device counts as failed.
const TRIES_MAX: u8 = 3;

/// A footer that is built and not written yet.
#[derive(Debug)]
pub(super) struct Footer<B> {
    seg: u32,
    buf: B,
    len: u64,
    /// Flush of the cache device that must end before it is written.
    ticket: u64,
}

/// What a footer says of a record's block.
pub(super) fn fate(index: &Index, record: &Record, first_slot: u32, at: u32) -> Keep {
    let key = Key::new(record.volume, record.block + u64::from(at));
    match key.and_then(|key| index.get(key)) {
        Some(entry) if entry.slot == first_slot + at => {
            if entry.flags.dirty() {
                Keep::Dirty
            } else {
                Keep::Clean
            }
        }
        _ => Keep::Dead,
    }
}

impl<B: Buf> Engine<B> {
    /// Seals what may be sealed.
    pub(super) fn seal_step<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>) {
        for at in 0..self.segs.young().len() {
            let Some(seg) = self.segs.young().get(at).copied() else { continue };
            let ready = self
                .segs
                .get(seg)
                .is_some_and(|s| s.state == State::Sealing && s.batches == 0 && s.pins == 0);
            if !ready || self.older_unsealed(seg) {
                continue;
            }
            // The segment's batches are completed, its records committed. What the footer leaves out
            // has a newer version elsewhere: both that and the batches must be durable before it is.
            self.footer_build(cx, seg);
        }
        while let Some(footer) = self.footers.first()
            && (self.flush_passed(footer.ticket) || self.plant.has(Bug::FooterBeforeDurable))
        {
            let footer = self.footers.remove(0);
            self.footer_write(cx, footer);
        }
    }

    /// Whether an earlier segment of the same log has no footer yet: they are sealed in order.
    fn older_unsealed(&self, seg: u32) -> bool {
        let Some(this) = self.segs.get(seg) else { return false };
        self.segs
            .young()
            .iter()
            .filter_map(|other| self.segs.get(*other))
            .any(|other| other.stream == this.stream && other.seq < this.seq && other.seal == 0)
    }

    fn footer_build<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, seg: u32) {
        let geometry = self.map.geometry();
        let Some(mut buf) = self.alloc(cx, geometry.footer_bytes() as u64) else { return };
        let seal = self.numbers.next();
        let built = (|| {
            let name = self.segment_name(seg)?;
            let log = self.segs.get(seg)?.log.as_ref()?;
            let (index, map) = (&self.index, &self.map);
            let dead = if self.plant.has(Bug::FooterKeepsDead) { Keep::Clean } else { Keep::Dead };
            build_footer(buf.as_mut_slice()?, log, &name, seal, |record, at| {
                let first = map.slot(seg, record.slot);
                match fate(index, record, first, at) {
                    // Its batch is being destaged and reads it from here.
                    Keep::Dead if self.order_keeps_record(record, first + at) => Keep::Dirty,
                    Keep::Dead => dead,
                    kept => kept,
                }
            })
        })();
        let Some(built) = built else { return };
        self.segs.seal_ordered(seg, seal);
        let ticket = self.flush_ticket();
        self.footers.push(Footer { seg, buf, len: built.bytes as u64, ticket });
        self.flush_pump(cx.now);
    }

    fn footer_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, footer: Footer<B>) {
        let Footer { seg, buf, len, .. } = footer;
        let Some(start) = self.map.segment_offset(seg) else { return };
        let at = start + u64::from(self.map.geometry().footer_slot()) * super::types::BLOCK;
        self.stats.footer_bytes += len;
        self.cache_op(cx.now, What::Footer { seg }, Op::write(0, at, len, buf));
    }

    pub(super) fn footer_done<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        seg: u32,
        result: Result<(), DeviceError>,
        buf: Option<B>,
    ) {
        match result {
            Ok(()) => {
                self.footer_tries = 0;
                self.segs.sealed(seg);
            }
            Err(error) => {
                self.footer_tries += 1;
                let last = self.footer_tries >= TRIES_MAX;
                self.cache_error(cx, error, last);
                // The same bytes again: the seal number is taken, and what they say is still true
                // of that moment.
                let start = self.map.segment_offset(seg);
                if let (Some(buf), Some(start), false) = (buf, start, last) {
                    let at =
                        start + u64::from(self.map.geometry().footer_slot()) * super::types::BLOCK;
                    let len = buf.len() as u64;
                    self.cache_op(cx.now, What::Footer { seg }, Op::write(0, at, len, buf));
                }
            }
        }
    }

    /// Whether an entry of the index must not be offered for destage: it is bad, or only its flush
    /// is missing.
    pub(super) const fn not_for_destage(bits: u8) -> bool {
        bits & (spare::BAD | spare::WRITTEN) != 0
    }

    /// Ends the open segments that were opened before a number, so that they get their footers.
    pub(super) fn end_before(&mut self, number: u64) {
        for kind in LogStream::ALL {
            let seg = self.streams[usize::from(kind.code())].seg;
            let old = seg.and_then(|seg| self.segs.get(seg)).is_some_and(|s| s.seq < number);
            if old {
                self.end_segment(kind);
            }
        }
    }
}
