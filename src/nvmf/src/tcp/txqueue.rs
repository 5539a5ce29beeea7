//! Bytes to send, in order: headers in one arena, data as pieces of shared buffers.
//!
//! ```text
//! arena:     |-- gone --|-- run 0 --|-- run 1 --|...|-- open --|
//!                       head                        closed     end
//! segments:  run 0 + piece 0, run 1 + piece 1, ...
//! to send:   run 0, piece 0, run 1, piece 1, ..., open
//! ```
//! Headers are appended to the open run at the cost of a copy; only a piece, or sending, closes it.

use forebay_io::{Buf, Piece};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Arena bytes already sent above which the rest is moved to the front.
const COMPACT_AT: usize = 64 << 10;
/// Arena capacity above which an emptied queue gives memory back.
const SHRINK_AT: usize = 512 << 10;

/// A run of arena bytes, then bytes of a buffer.
#[derive(Debug)]
struct Segment<B> {
    /// Arena bytes of the run that are not sent.
    run: usize,
    /// Responses in the run.
    responses: u32,
    /// What follows the run; its sent bytes are cut off.
    piece: Option<Piece<B>>,
}

/// An ordered queue of bytes to send. Its memory is kept when it empties.
#[derive(Debug)]
pub struct TxQueue<B> {
    arena: Vec<u8>,
    /// Arena bytes before this one are sent.
    head: usize,
    /// Where the open run begins.
    closed: usize,
    /// Responses in the open run.
    open_responses: u32,
    segments: VecDeque<Segment<B>>,
    queued: usize,
    responses: u32,
}

impl<B> Default for TxQueue<B> {
    fn default() -> Self {
        Self {
            arena: Vec::new(),
            head: 0,
            closed: 0,
            open_responses: 0,
            segments: VecDeque::new(),
            queued: 0,
            responses: 0,
        }
    }
}

/// A u32 as usize (every supported target has at least 32-bit addresses).
#[inline]
pub(crate) fn widen(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl<B: Buf> TxQueue<B> {
    /// Bytes not yet sent.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.queued
    }

    /// Whether everything is sent.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Response capsules (and successful data PDUs) not yet wholly sent; those that were queued
    /// together with one that is not sent count as not sent.
    #[must_use]
    pub const fn responses(&self) -> u32 {
        self.responses
    }

    /// Lets `write` append bytes to the arena; `responses` of them end a command.
    #[inline]
    pub fn push_with(&mut self, responses: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.arena.len();
        write(&mut self.arena);
        self.queued += self.arena.len().saturating_sub(before);
        self.responses += responses;
        self.open_responses += responses;
    }

    /// Appends bytes of a fixed length; `responses` of them end a command.
    #[inline]
    pub fn push_array<const N: usize>(&mut self, responses: u32, bytes: &[u8; N]) {
        self.arena.extend_from_slice(bytes);
        self.queued += N;
        self.responses += responses;
        self.open_responses += responses;
    }

    /// Appends a piece of a buffer, which is kept until it is sent. The caller has checked that
    /// the piece lies in its buffer; one that does not is cut.
    #[inline]
    pub fn push_piece(&mut self, mut piece: Piece<B>) {
        let room = piece.buf.len().saturating_sub(widen(piece.offset));
        piece.len = piece.len.min(u32::try_from(room).unwrap_or(u32::MAX));
        if piece.len > 0 {
            self.queued += widen(piece.len);
            self.close(Some(piece));
        }
    }

    /// Makes a segment of the open run and of what follows it.
    fn close(&mut self, piece: Option<Piece<B>>) {
        let run = self.arena.len() - self.closed;
        self.closed = self.arena.len();
        let responses = core::mem::take(&mut self.open_responses);
        self.segments.push_back(Segment { run, responses, piece });
    }

    /// The bytes to send, in order, as slices that are not empty.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = self.head;
        let segments = self.segments.iter().flat_map(move |segment| {
            let run = &self.arena[at..at + segment.run];
            at += segment.run;
            [run, segment.piece.as_ref().map_or(&[][..], bytes_of)]
        });
        let open = core::iter::once(&self.arena[self.closed..]);
        segments.chain(open).filter(|slice| !slice.is_empty())
    }

    /// At least as many as [`TxQueue::gather`] fills.
    #[must_use]
    pub fn most_slices(&self) -> usize {
        2 * self.segments.len() + 1
    }

    /// Fills `pieces` from the front with what is to be sent, in order; returns how many it used.
    pub fn gather<'a>(&'a self, pieces: &mut [IoSlice<'a>]) -> usize {
        let (mut used, mut at) = (0, self.head);
        let mut put = |slice: &'a [u8]| {
            if let Some(piece) = pieces.get_mut(used) {
                *piece = IoSlice::new(slice);
                used += 1;
            }
        };
        for segment in &self.segments {
            if segment.run > 0 {
                put(&self.arena[at..at + segment.run]);
                at += segment.run;
            }
            // Never empty: it is cut from the front and goes with its last byte.
            if let Some(piece) = &segment.piece {
                put(bytes_of(piece));
            }
        }
        if self.closed < self.arena.len() {
            put(&self.arena[self.closed..]);
        }
        used
    }

    /// The first `n` bytes are sent; more than [`TxQueue::len`] counts as all.
    pub fn advance(&mut self, n: usize) {
        let mut left = n.min(self.queued);
        self.queued -= left;
        // What is on its way is not extended, so that its responses are seen as sent.
        if self.closed < self.arena.len() {
            self.close(None);
        }
        while left > 0 {
            let Some(front) = self.segments.front_mut() else { break };
            let run = left.min(front.run);
            front.run -= run;
            self.head += run;
            left -= run;
            if front.run > 0 {
                break;
            }
            if let Some(piece) = &mut front.piece {
                let sent = u32::try_from(left).unwrap_or(u32::MAX).min(piece.len);
                piece.offset += sent;
                piece.len -= sent;
                left -= widen(sent);
                if piece.len > 0 {
                    break;
                }
            }
            self.responses -= front.responses;
            self.segments.pop_front();
        }
        if self.segments.is_empty() {
            self.arena.clear();
            self.head = 0;
            self.closed = 0;
            if self.arena.capacity() > SHRINK_AT {
                self.arena.shrink_to(COMPACT_AT);
            }
        } else if self.head > COMPACT_AT && self.head > self.arena.len() / 2 {
            self.arena.drain(..self.head);
            self.closed -= self.head;
            self.head = 0;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The bytes of a piece that lies in its buffer.
fn bytes_of<B: Buf>(piece: &Piece<B>) -> &[u8] {
    let from = widen(piece.offset);
    &piece.buf.as_slice()[from..from + widen(piece.len)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::HeapBuf;
    use proptest::prelude::*;

    fn all(tx: &TxQueue<HeapBuf>) -> Vec<u8> {
        tx.slices().flat_map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_piece_beyond_its_buffer_is_cut() {
        let mut tx = TxQueue::default();
        tx.push_piece(Piece { buf: HeapBuf::from_bytes(&[1, 2, 3]), offset: 2, len: 9 });
        tx.push_piece(Piece { buf: HeapBuf::from_bytes(&[1, 2, 3]), offset: 7, len: 1 });
        assert_eq!((all(&tx), tx.len()), (vec![3], 1));
    }

    #[test]
    fn neighbouring_headers_share_a_slice() {
        let mut tx = TxQueue::<HeapBuf>::default();
        for _ in 0..40 {
            tx.push_with(1, |out| out.extend_from_slice(&[7; 24]));
        }
        assert_eq!((tx.slices().count(), tx.responses()), (1, 40));
        tx.advance(39 * 24);
        // The first 40 are on their way: what comes next is counted apart.
        tx.push_array(1, &[8; 24]);
        assert_eq!((tx.slices().count(), tx.responses()), (2, 41));
        tx.advance(24);
        assert_eq!((tx.slices().count(), tx.responses()), (1, 1));
    }

    proptest! {
        /// What comes out is what went in, however it is sent, and memory stays bounded.
        #[test]
        fn any_order_of_pushes_and_sends_keeps_the_bytes(
            steps in proptest::collection::vec((0u8..3, 1usize..3000), 1..200)
        ) {
            let mut tx = TxQueue::default();
            let (mut model, mut responses) = (VecDeque::new(), 0);
            for (i, (what, n)) in steps.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..n).map(|k| u8::try_from((i * 31 + k) % 251).unwrap()).collect();
                match what {
                    0 => { tx.push_with(1, |out| out.extend_from_slice(&bytes)); responses += 1; }
                    1 => tx.push_piece(Piece { buf: HeapBuf::from_bytes(&bytes), offset: 0, len: u32::try_from(n).unwrap() }),
                    _ => {
                        tx.advance(n * 2);
                        model.drain(..(n * 2).min(model.len()));
                    }
                }
                if what < 2 { model.extend(bytes); }
                prop_assert_eq!(tx.len(), model.len());
                prop_assert_eq!(all(&tx), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(tx.slices().all(|s| !s.is_empty()));
                let mut pieces = [IoSlice::new(&[]); 3];
                let used = tx.gather(&mut pieces);
                prop_assert!(pieces[..used].iter().map(|piece| &piece[..]).eq(tx.slices().take(3)));
                prop_assert_eq!(used, tx.slices().count().min(3));
                prop_assert!(tx.slices().count() <= tx.most_slices());
                prop_assert!(tx.arena.len() <= 2 * model.len() + COMPACT_AT + 3000);
            }
            tx.advance(usize::MAX);
            prop_assert!(tx.is_empty() && tx.responses() == 0 && responses >= tx.responses());
        }
    }
}
