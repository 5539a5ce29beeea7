//! Applying a complete batch: its pieces are read from the journal, checked, and written to the
//! backing device, a few at a time. Any of it may be done twice.

use super::{BLOCK, BLOCK_LEN, Engine, Journal, Step, TRIES_MAX};
use crate::engine::Cx;
use crate::engine::ops::What;
use crate::format::order_journal::{Entry, data_crc};
use crate::plant::Bug;
use forebay_io::{Buf, BufPool, Completion, DeviceError, Instant, Op, OpKind};

/// Pieces under way at once.
pub(super) const PIECES: usize = 8;
/// Blocks of a piece of data at most: 1 MiB.
const DATA_MAX: u64 = 256;
/// Blocks of one write-zeroes at most: 64 MiB; and of one write of zeroes: 256 KiB.
const ZEROES_MAX: u32 = 16384;
const ZEROES_WRITE_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Free,
    Waits,
    Flies,
}

/// Neighbouring blocks of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    at: At,
    block: u64,
    blocks: u32,
    /// Written so far, and by the write under way.
    done: u32,
    writing: u32,
    /// First entry and slot of the journal; no slot for zeroes.
    entry: usize,
    slot: Option<u64>,
    tries: u8,
}

impl Piece {
    pub(super) fn rests(&self) -> bool {
        self.at != At::Flies
    }
}

/// What of a batch comes next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    entry: usize,
    /// Blocks of it, if it is of zeroes, that are taken.
    within: u32,
    slot: u64,
}

impl Journal {
    /// Something of a batch that is applied waits to be begun.
    pub(super) fn waits(&self) -> bool {
        self.pieces.iter().any(|piece| piece.at == At::Waits)
            || self.pieces.iter().all(|piece| piece.at == At::Free)
    }

    fn take(&mut self, most: u64) -> Option<Piece> {
        let Cursor { entry, within, slot } = self.next;
        let piece = match *self.entries.get(entry)? {
            Entry::Zeroes { block, blocks } => {
                let n = (blocks - within).min(ZEROES_MAX);
                let end = within + n == blocks;
                self.next.within = if end { 0 } else { within + n };
                self.next.entry += usize::from(end);
                Piece {
                    block: block + u64::from(within),
                    blocks: n,
                    slot: None,
                    ..Piece::default()
                }
            }
            Entry::Data { block, .. } => {
                let follows = |n: &u64| {
                    let next = usize::try_from(*n).ok().and_then(|n| self.entries.get(entry + n));
                    matches!(next, Some(Entry::Data { block: next, .. }) if *next == block + n)
                };
                let n = (1..most).take_while(follows).count() as u64 + 1;
                self.next.slot += n;
                self.next.entry += usize::try_from(n).unwrap_or(1);
                let blocks = u32::try_from(n).unwrap_or(1);
                Piece { block, blocks, slot: Some(slot), ..Piece::default() }
            }
        };
        Some(Piece { at: At::Waits, entry, ..piece })
    }
}

impl<B: Buf> Engine<B> {
    /// Whether the backing device takes more of a batch now.
    pub(super) fn apply_willing(&self, place: u16, now: Instant) -> bool {
        self.vols.get(place).is_some_and(|vol| {
            let health = &vol.health;
            health.hanging.is_none() && (health.failing.is_none() || health.retry_at <= now)
        })
    }

    /// Begins what may be begun; `true` once the batch is applied, or given up.
    pub(super) fn apply_step<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
    ) -> bool {
        let Some(vol) = self.vols.get_mut(place) else { return false };
        let Some(journal) = vol.order_journal.as_deref_mut() else { return false };
        if journal.abandoned {
            // From here on the backing device has a part of it, and nothing completes that.
            if let Some(order) = vol.order.as_mut() {
                order.held = None;
            }
            if !journal.pieces.iter().all(Piece::rests) {
                return false;
            }
            journal.pieces = [Piece::default(); PIECES];
            journal.stage = super::Stage::Mark;
            return true;
        }
        if !self.apply_willing(place, cx.now) {
            return false;
        }
        for at in 0..PIECES {
            let Some(vol) = self.vols.get_mut(place) else { return false };
            let Some(journal) = vol.order_journal.as_deref_mut() else { return false };
            let most = DATA_MAX.min(u64::from(vol.backing.max_io) / BLOCK);
            let most = most.min(journal.blocks_max()).max(1);
            if journal.pieces[at].at == At::Free {
                let Some(piece) = journal.take(most) else { continue };
                journal.pieces[at] = piece;
            }
            if journal.pieces[at].at == At::Waits {
                self.piece_go(cx, place, at);
            }
        }
        let Some(journal) = self.journal_mut(place) else { return false };
        let over = journal.pieces.iter().all(|piece| piece.at == At::Free);
        if over {
            self.stage_done(cx, place);
        }
        over
    }

    fn piece(&mut self, place: u16, at: usize) -> Option<&mut Piece> {
        self.journal_mut(place)?.pieces.get_mut(at)
    }

    fn piece_go<P: BufPool<Buf = B>>(&mut self, cx: &mut Cx<'_, P>, place: u16, at: usize) {
        let Ok(step) = u8::try_from(at) else { return };
        let Some(piece) = self.piece(place, at).copied() else { return };
        let Some(slot) = piece.slot else { return self.piece_zeroes(cx, place, at, piece) };
        let len = u64::from(piece.blocks) * BLOCK;
        let Some(buf) = self.alloc(cx, len) else { return };
        let Some(journal) = self.journal_mut(place) else { return };
        journal.pieces[at].at = At::Flies;
        let from = journal.header.layout.data_offset(slot);
        let what = What::Ordered { place, step: Step::Read(step) };
        self.journal_op(cx.now, place, what, Op::read(0, from, len, buf));
    }

    fn piece_zeroes<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        at: usize,
        piece: Piece,
    ) {
        let Ok(step) = u8::try_from(at) else { return };
        let Some(vol) = self.vols.get(place) else { return };
        let direct = vol.backing.write_zeroes;
        let left = piece.blocks - piece.done;
        let blocks = if direct { left } else { left.min(ZEROES_WRITE_MAX) };
        let (offset, len) =
            vol.backing_range(piece.block + u64::from(piece.done), u64::from(blocks));
        let op = if direct {
            Op::range(0, OpKind::WriteZeroes, offset, len)
        } else {
            let Some(mut buf) = self.alloc(cx, len) else { return };
            let Some(out) = buf.as_mut_slice() else { return };
            out.fill(0);
            Op::write(0, offset, len, buf)
        };
        if let Some(piece) = self.piece(place, at) {
            (piece.at, piece.writing) = (At::Flies, blocks);
        }
        self.piece_write(cx.now, place, step, op);
    }

    fn piece_write(&mut self, now: Instant, place: u16, step: u8, op: Op<B>) {
        let Some(vol) = self.vols.get_mut(place) else { return };
        if let Some(order) = vol.order.as_mut() {
            order.writes();
        }
        self.destage.bytes += op.len;
        self.backing_op(now, place, What::Ordered { place, step: Step::Write(step) }, op);
    }

    /// A piece was read from the journal, or not.
    pub(super) fn piece_read<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        step: u8,
        done: Completion<B>,
    ) {
        let at = usize::from(step);
        let Some(vol) = self.vols.get(place) else { return };
        let Some(journal) = vol.order_journal.as_deref() else { return };
        let Some(piece) = journal.pieces.get(at).copied() else { return };
        let batch = journal.header.batch;
        let data = done.buf.as_ref().map(Buf::as_slice).unwrap_or_default();
        let entries = journal.entries.get(piece.entry..).unwrap_or_default();
        let unchecked = self.plant.has(Bug::JournalUnchecked);
        let good = done.result.is_ok()
            && (unchecked
                || entries.iter().take(piece.blocks as usize).zip(data.chunks(BLOCK_LEN)).all(
                    |(entry, data)| match *entry {
                        Entry::Data { block, crc } => data_crc(vol.uuid, batch, block, data) == crc,
                        Entry::Zeroes { .. } => false,
                    },
                ));
        let (offset, len) = vol.backing_range(piece.block, u64::from(piece.blocks));
        if let (true, Some(buf)) = (good, done.buf) {
            self.journal_good(place);
            if let Some(piece) = self.piece(place, at) {
                piece.writing = piece.blocks;
            }
            return self.piece_write(cx.now, place, step, Op::write(0, offset, len, buf));
        }
        let error = done.result.err().unwrap_or(DeviceError::Media);
        self.journal_error(cx.now, place, error);
        let Some(journal) = self.journal_mut(place) else { return };
        let Some(piece) = journal.pieces.get_mut(at) else { return };
        (piece.at, piece.tries) = (At::Waits, piece.tries.saturating_add(1));
        // The cache has all of it, and more; where there is none, the batch is all that there is.
        journal.abandoned |= piece.tries >= TRIES_MAX && !journal.cold;
    }

    /// A piece was written to the backing device, or not.
    pub(super) fn piece_written<P: BufPool<Buf = B>>(
        &mut self,
        cx: &mut Cx<'_, P>,
        place: u16,
        step: u8,
        result: Result<(), DeviceError>,
    ) {
        let (at, timeout) = (usize::from(step), self.limits.op_timeout);
        let Some(piece) = self.piece(place, at) else { return };
        let zeroes = piece.slot.is_none();
        piece.at = At::Waits;
        match result {
            Ok(()) => {
                piece.done += piece.writing;
                if piece.done >= piece.blocks {
                    *piece = Piece::default();
                }
                self.backing_good(cx, place);
            }
            Err(DeviceError::Unsupported) if zeroes => {
                if let Some(vol) = self.vols.get_mut(place) {
                    vol.backing.write_zeroes = false;
                }
            }
            Err(error) => {
                if error == DeviceError::Timeout
                    && let Some(journal) = self.journal_mut(place)
                {
                    // Nothing newer may be written there until it surely is not carried out.
                    journal.doubt_until = cx.now + timeout;
                }
                self.backing_error(cx, place, error);
            }
        }
    }
}
