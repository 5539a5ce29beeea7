//! Write-zeroes and deallocate.

use super::request::Stage;
use super::slab::Handle;
use super::types::BLOCK;
use super::{Cx, Engine};
use crate::format::record::Kind;
use crate::plant::Bug;
use crate::ranges::{Range, RangeKind};
use forebay_io::{Buf, BufPool, Lsn, Outcome, Payload, RequestOp};

/// Ranges of zeroes of one volume that await destage at most: above it deallocates are ignored and
/// write-zeroes wait. (Later writes may split them into more.)
const RANGES_MAX: usize = 4096;

impl<B: Buf> Engine<B> {
    /// Begins a write-zeroes or a deallocate. Small ones are written as data. Of larger ones the
    /// whole blocks become records without data; parts of blocks at the edges are left alone by a
    /// deallocate and written by requests of their own for a write-zeroes.
    pub(super) fn range_begin<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(req) = self.reqs.get(h) else { return };
        let Some(vol) = self.vols.get(req.volume) else { return };
        let deallocate = req.op == RequestOp::Deallocate;
        // What reads as zeroes must stay so: a device that only drops blocks does not promise it.
        if deallocate && (!vol.backing.write_zeroes || vol.ranges.len() >= RANGES_MAX) {
            self.finish(h, Outcome::Done);
            return;
        }
        let (offset, end) = (req.offset, req.offset + req.len);
        let inner = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        if deallocate {
            if inner.0 >= inner.1 {
                self.finish(h, Outcome::Done);
                return;
            }
            let whole = (offset / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
            self.narrow(h, if self.plant.has(Bug::DiscardWhole) { whole } else { inner });
        } else if Self::zeroes_as_data(req.blocks().1) || inner.0 >= inner.1 {
            self.zeroes_as_write(cx, h);
            return;
        } else {
            self.edge(cx, h, offset, inner.0);
            self.edge(cx, h, inner.1, end);
            self.narrow(h, inner);
        }
        self.write_go(cx, h, None);
    }

    fn narrow(&mut self, h: Handle, (offset, end): (u64, u64)) {
        if let Some(req) = self.reqs.get_mut(h) {
            (req.offset, req.len) = (offset, end - offset);
        }
    }

    fn zeroes_as_write<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, h: Handle) {
        let Some(len) = self.reqs.get(h).map(|req| req.len) else { return };
        let buf = self.alloc(cx, len).and_then(|mut buf| {
            buf.as_mut_slice()?.fill(0);
            Some(buf)
        });
        let Some(buf) = buf else {
            self.finish(h, Outcome::Failed(forebay_io::BlockError::NotReady));
            return;
        };
        if let Some(req) = self.reqs.get_mut(h) {
            req.op = RequestOp::Write;
        }
        self.write_new(cx, h, Payload::Owned(buf));
    }

    /// Writes zeroes to a part of a block, as a request of its own that `parent` waits for.
    fn edge<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        parent: Handle,
        offset: u64,
        end: u64,
    ) {
        let Some(of) = self.reqs.get(parent).map(|req| (req.volume, req.fua)) else { return };
        if offset >= end {
            return;
        }
        let Some((h, req)) = self.reqs.take() else { return };
        req.reset();
        (req.volume, req.fua) = of;
        (req.op, req.offset, req.len) = (RequestOp::Write, offset, end - offset);
        (req.parent, req.arrived) = (Some(parent), cx.now);
        if let Some(parent) = self.reqs.get_mut(parent) {
            parent.outstanding += 1;
        }
        if let Some(vol) = self.vols.get_mut(of.0) {
            vol.requests += 1;
        }
        self.zeroes_as_write(cx, h);
    }

    /// An edge of a request ended.
    pub(super) fn edge_over(&mut self, parent: Handle, outcome: Outcome) {
        let Some(req) = self.reqs.get_mut(parent) else { return };
        req.outstanding = req.outstanding.saturating_sub(1);
        if let Outcome::Failed(error) = outcome {
            req.error = req.error.or(Some(error));
        }
        if req.outstanding == 0 && req.stage == Stage::Edges {
            let outcome = req.error.map_or(Outcome::Done, Outcome::Failed);
            self.finish(parent, outcome);
        }
    }

    /// A record without data commits.
    pub(super) fn apply_range(
        &mut self,
        place: u16,
        kind: Kind,
        first: u64,
        blocks: u64,
        lsn: Lsn,
    ) {
        if !self.plant.has(Bug::ZeroesKeepIndex) {
            self.forget_range(place, first, blocks);
        }
        let Some(vol) = self.vols.get_mut(place) else { return };
        let kind = match kind {
            Kind::Zeroes => RangeKind::Zeroes,
            Kind::Discard => RangeKind::Discarded,
            _ => {
                let _ = vol.ranges.punch(first, blocks, lsn);
                return;
            }
        };
        // The map itself is unbounded: its bound is kept at admission.
        let _ = vol.ranges.insert(Range { first, blocks, lsn, kind, dirty: true });
        if vol.ranges.len() > RANGES_MAX / 2 {
            self.destage.urgent = true;
        }
    }

    /// Whether a write-zeroes has to wait for the destage of earlier ones.
    pub(super) fn too_many_ranges(&self, h: Handle) -> bool {
        let Some(req) = self.reqs.get(h) else { return false };
        matches!(req.op, RequestOp::WriteZeroes { .. })
            && req.data.is_none()
            && self.vols.get(req.volume).is_some_and(|vol| vol.ranges.len() >= RANGES_MAX)
    }
}
