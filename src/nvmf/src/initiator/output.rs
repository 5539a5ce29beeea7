//! What a connection has to send: header bytes in one arena, data where it lies.

use std::collections::VecDeque;
use std::io::IoSlice;

use forebay_io::{Buf, Piece};

/// Sent header bytes that may stand at the arena's front before the rest is moved there.
const SLACK: usize = 64 * 1024;

enum Segment<B> {
    /// So many bytes of the arena.
    Bytes(usize),
    /// Data in a shared buffer.
    Data(Piece<B>),
}

/// An ordered queue of bytes to send. In steady state it does not allocate.
pub struct Output<B> {
    arena: Vec<u8>,
    /// First byte of the arena that is not sent.
    front: usize,
    segments: VecDeque<Segment<B>>,
    /// Bytes of the first data segment that are sent.
    sent: usize,
}

impl<B: Buf> Output<B> {
    /// An empty queue with room for about `commands` command capsules.
    #[must_use]
    pub fn new(commands: usize) -> Self {
        Self {
            arena: Vec::with_capacity(commands * 96 + 256),
            front: 0,
            segments: VecDeque::with_capacity(commands * 3 + 4),
            sent: 0,
        }
    }

    /// Appends bytes that `put` writes to the arena.
    pub fn bytes(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        if self.segments.is_empty() {
            self.arena.clear();
            self.front = 0;
        } else if self.front > SLACK {
            self.arena.drain(..self.front);
            self.front = 0;
        }
        let before = self.arena.len();
        put(&mut self.arena);
        let added = self.arena.len() - before;
        match self.segments.back_mut() {
            Some(Segment::Bytes(len)) => *len += added,
            _ if added > 0 => self.segments.push_back(Segment::Bytes(added)),
            _ => {}
        }
    }

    /// Appends data.
    pub fn data(&mut self, piece: Piece<B>) {
        if piece.len > 0 {
            self.segments.push_back(Segment::Data(piece));
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Fills `slices` from the front with what is to be sent, in order; returns how many it used.
    pub fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut at, mut skip, mut used) = (self.front, self.sent, 0);
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(match segment {
                Segment::Bytes(len) => {
                    let bytes = &self.arena[at..at + len];
                    at += len;
                    bytes
                }
                Segment::Data(piece) => {
                    let first = piece.offset as usize;
                    &piece.buf.as_slice()[first + skip..first + piece.len as usize]
                }
            });
            skip = 0;
            used += 1;
        }
        used
    }

    /// Notes that `count` bytes were sent.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            match self.segments.front_mut() {
                None => return,
                Some(Segment::Bytes(len)) => {
                    let step = count.min(*len);
                    self.front += step;
                    *len -= step;
                    count -= step;
                    if *len > 0 {
                        return;
                    }
                }
                Some(Segment::Data(piece)) => {
                    let step = count.min(piece.len as usize - self.sent);
                    self.sent += step;
                    count -= step;
                    if self.sent < piece.len as usize {
                        return;
                    }
                    self.sent = 0;
                }
            }
            self.segments.pop_front();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.arena.clear();
        (self.front, self.sent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_io::HeapBuf;

    #[test]
    fn bytes_and_data_leave_in_order_however_they_are_sent() {
        for step in 1..40 {
            let mut output = Output::new(1);
            output.bytes(|arena| arena.extend_from_slice(b"head"));
            output.bytes(|arena| arena.extend_from_slice(b"er "));
            let buf = HeapBuf::from_bytes(b"..payload..");
            output.data(Piece { buf: buf.clone(), offset: 2, len: 7 });
            output.data(Piece { buf, offset: 0, len: 0 });
            output.bytes(|arena| arena.extend_from_slice(b" digest"));
            let mut sent = Vec::new();
            while !output.is_empty() {
                let mut slices = [IoSlice::new(&[]); 2];
                let used = output.gather(&mut slices);
                let all: Vec<u8> = slices[..used].iter().flat_map(|s| s.to_vec()).collect();
                let count = all.len().min(step);
                sent.extend_from_slice(&all[..count]);
                output.advance(count);
                if sent.len() == step {
                    output.bytes(|arena| arena.extend_from_slice(b"!"));
                }
            }
            let text = String::from_utf8(sent).unwrap();
            assert_eq!(text.trim_end_matches('!'), "header payload digest", "{step}");
        }
    }
}
