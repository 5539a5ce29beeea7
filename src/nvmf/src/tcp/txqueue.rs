//! Bytes to send, in order: headers in one arena, data as pieces of shared buffers.

use forebay_io::{Buf, Piece};
use std::collections::VecDeque;

/// Arena bytes already sent above which the rest is moved to the front.
const COMPACT_AT: usize = 64 << 10;
/// Arena capacity above which an emptied queue gives memory back.
const SHRINK_AT: usize = 512 << 10;
/// Responses that share one segment: bounds how late they are seen as sent.
const RESPONSES_PER_SEGMENT: u32 = 32;

#[derive(Debug)]
enum Segment<B> {
    /// The next `len` bytes of the arena, with this many responses in them.
    Arena { len: usize, responses: u32 },
    /// Bytes of a buffer.
    Data(Piece<B>),
}

impl<B> Segment<B> {
    fn len(&self) -> usize {
        match self {
            Self::Arena { len, .. } => *len,
            Self::Data(piece) => widen(piece.len),
        }
    }
}

/// An ordered queue of bytes to send. Its memory is kept when it empties.
#[derive(Debug)]
pub struct TxQueue<B> {
    arena: Vec<u8>,
    /// Arena bytes before this one belong to segments that are gone.
    head: usize,
    segments: VecDeque<Segment<B>>,
    /// Bytes of the first segment that are sent.
    sent: usize,
    queued: usize,
    responses: u32,
}

impl<B> Default for TxQueue<B> {
    fn default() -> Self {
        Self {
            arena: Vec::new(),
            head: 0,
            segments: VecDeque::new(),
            sent: 0,
            queued: 0,
            responses: 0,
        }
    }
}

/// A u32 as usize (every supported target has at least 32-bit addresses).
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

    /// Response capsules (and successful data PDUs) not yet wholly sent; counted late by at most
    /// the responses that share a segment.
    #[must_use]
    pub const fn responses(&self) -> u32 {
        self.responses
    }

    /// Lets `write` append bytes to the arena; `responses` of them end a command.
    pub fn push_with(&mut self, responses: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.arena.len();
        write(&mut self.arena);
        let added = self.arena.len().saturating_sub(before);
        if added == 0 {
            return;
        }
        self.queued += added;
        self.responses += responses;
        // A segment that is on its way is not extended, so that its responses are seen as sent.
        let alone = self.segments.len() == 1 && self.sent > 0;
        if let (false, Some(Segment::Arena { len, responses: held })) =
            (alone, self.segments.back_mut())
            && *held < RESPONSES_PER_SEGMENT
        {
            *len += added;
            *held += responses;
            return;
        }
        self.segments.push_back(Segment::Arena { len: added, responses });
    }

    /// Appends a piece of a buffer, which is kept until it is sent. The caller has checked that
    /// the piece lies in its buffer; one that does not is cut.
    pub fn push_piece(&mut self, mut piece: Piece<B>) {
        let room = piece.buf.len().saturating_sub(widen(piece.offset));
        piece.len = piece.len.min(u32::try_from(room).unwrap_or(u32::MAX));
        if piece.len > 0 {
            self.queued += widen(piece.len);
            self.segments.push_back(Segment::Data(piece));
        }
    }

    /// The bytes to send, in order, as slices that are not empty.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = self.head;
        let mut skip = self.sent;
        self.segments.iter().map(move |segment| {
            let bytes = match segment {
                Segment::Arena { len, .. } => {
                    let bytes = &self.arena[at..at + len];
                    at += len;
                    bytes
                }
                Segment::Data(piece) => {
                    let from = widen(piece.offset);
                    &piece.buf.as_slice()[from..from + widen(piece.len)]
                }
            };
            let rest = &bytes[skip..];
            skip = 0;
            rest
        })
    }

    /// The first `n` bytes are sent; more than [`TxQueue::len`] counts as all.
    pub fn advance(&mut self, n: usize) {
        let mut left = n.min(self.queued);
        self.queued -= left;
        while left > 0 {
            let Some(front) = self.segments.front() else { break };
            let rest = front.len() - self.sent;
            if left < rest {
                self.sent += left;
                break;
            }
            left -= rest;
            self.sent = 0;
            if let Some(Segment::Arena { len, responses }) = self.segments.pop_front() {
                self.head += len;
                self.responses -= responses;
            }
        }
        if self.segments.is_empty() {
            self.arena.clear();
            self.head = 0;
            if self.arena.capacity() > SHRINK_AT {
                self.arena.shrink_to(COMPACT_AT);
            }
        } else if self.head > COMPACT_AT && self.head > self.arena.len() / 2 {
            self.arena.drain(..self.head);
            self.head = 0;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
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
        assert_eq!((tx.slices().count(), tx.responses()), (2, 40));
        tx.advance(32 * 24);
        assert_eq!(tx.responses(), 8);
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
                prop_assert!(tx.arena.len() <= 2 * model.len() + COMPACT_AT + 3000);
            }
            tx.advance(usize::MAX);
            prop_assert!(tx.is_empty() && tx.responses() == 0 && responses >= tx.responses());
        }
    }
}
