//! A connection: two lanes of bytes on their way, in order, in pieces of any size, that can stop, or
//! end in the middle.

use super::tap::Tap;
use crate::rng::Rng;
use forebay_nvmf::target::ConnId;
use forebay_nvmf::tcp::Handshake;
use std::collections::VecDeque;

/// How a network treats bytes.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// Shortest and longest delay in nanoseconds.
    pub delay: (u64, u64),
    /// Largest piece.
    pub piece: usize,
    /// One piece in so many is cut to a few bytes.
    pub tiny: u64,
    /// Bytes on their way in one direction at most.
    pub window: usize,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Lane {
    parts: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// Nothing arrives before.
    last: u64,
    /// When the receiver is told that nothing more comes.
    end: Option<u64>,
}

impl Lane {
    /// Bytes that may be sent now.
    #[must_use]
    pub fn room(&self, net: &Net) -> usize {
        net.window.saturating_sub(self.bytes)
    }

    /// Sends bytes; after the end they are lost.
    pub fn send(&mut self, mut bytes: &[u8], now: u64, net: &Net, rng: &mut Rng) {
        if self.end.is_some() {
            return;
        }
        while !bytes.is_empty() {
            let most = if rng.one_in(net.tiny) { 1 + rng.index(90) } else { net.piece };
            let (part, rest) = bytes.split_at(most.min(bytes.len()));
            let at = now + net.delay.0 + rng.below(net.delay.1 - net.delay.0);
            self.last = self.last.max(at);
            self.parts.push_back((self.last, part.to_vec()));
            self.bytes += part.len();
            bytes = rest;
        }
    }

    /// The next bytes that have arrived, sometimes several pieces at once.
    pub fn take(&mut self, now: u64, rng: &mut Rng) -> Option<Vec<u8>> {
        let mut bytes = self.due(now)?;
        while rng.below(4) > 0
            && let Some(more) = self.due(now)
        {
            bytes.extend_from_slice(&more);
        }
        self.bytes -= bytes.len();
        Some(bytes)
    }

    fn due(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.parts.front()?.0 > now {
            return None;
        }
        self.parts.pop_front().map(|part| part.1)
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether it has an end.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.end.is_some()
    }

    /// Whether everything arrived, and then the end.
    #[must_use]
    pub fn ended(&self, now: u64) -> bool {
        self.parts.is_empty() && self.end.is_some_and(|end| end <= now)
    }

    /// When something arrives next.
    #[must_use]
    pub fn next(&self) -> u64 {
        let end = self.end.unwrap_or(u64::MAX);
        self.parts.front().map_or(end, |part| part.0)
    }

    /// Nothing more is sent; what is on its way arrives.
    pub fn close(&mut self, at: u64) {
        self.end = Some(self.end.map_or(at, |end| end.min(at)).max(self.last));
    }

    /// Some of what is on its way is lost, from any byte on.
    pub fn cut(&mut self, at: u64, rng: &mut Rng) {
        let mut left = rng.index(self.bytes + 1);
        self.bytes = left;
        self.parts.retain_mut(|(_, part)| {
            part.truncate(left);
            left -= part.len();
            !part.is_empty()
        });
        self.last = self.parts.back().map_or(0, |part| part.0);
        self.close(at);
    }

    /// What is on its way, stalled or not, has arrived by `at`.
    pub fn flow(&mut self, at: u64) {
        for part in &mut self.parts {
            part.0 = part.0.min(at);
        }
        self.last = self.last.min(at);
        self.end = self.end.map(|end| end.min(at));
    }

    /// Nothing arrives before `until`.
    pub fn stall(&mut self, until: u64) {
        for part in &mut self.parts {
            part.0 = part.0.max(until);
        }
        self.last = self.last.max(until);
        self.end = self.end.map(|end| end.max(until));
    }
}

/// Where the node's end of a connection is.
pub enum End {
    /// At the reactor that accepted it, not associated yet.
    Greeting(usize, Box<Handshake>),
    /// On its way to the reactor of its subsystem.
    Moving,
    /// Served.
    Conn(usize, ConnId),
    /// Closed.
    Gone,
}

/// A connection.
pub struct Link {
    /// The host.
    pub host: usize,
    /// The queue.
    pub queue: u16,
    /// From the host to the node.
    pub up: Lane,
    /// From the node to the host.
    pub down: Lane,
    /// The node's end.
    pub end: End,
    /// The host has not closed its end.
    pub open: bool,
    /// The host has more to send than there was room for.
    pub full: bool,
    /// The node's end has more to send than there was room for.
    pub blocked: bool,
    /// The checker of its bytes.
    pub tap: Tap,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_a_cut_leaves_a_prefix() {
        let net = Net { delay: (10, 5000), piece: 700, tiny: 3, window: 1 << 20 };
        for seed in 0..50 {
            let mut rng = Rng::new(seed, 0);
            let sent: Vec<u8> = (0..9000u32).map(|n| n.to_le_bytes()[0]).collect();
            let mut lane = Lane::default();
            for (n, part) in (0u64..).zip(sent.chunks(1 + rng.index(3000))) {
                lane.send(part, n * 100, &net, &mut rng);
            }
            if seed % 2 == 0 {
                lane.cut(4000, &mut rng);
            } else {
                lane.close(4000);
            }
            let mut got = Vec::new();
            while !lane.ended(1 << 20) {
                let now = lane.next();
                got.extend(lane.take(now, &mut rng).unwrap_or_default());
            }
            assert!(sent.starts_with(&got), "seed {seed}");
            assert!(seed % 2 == 0 || got == sent, "seed {seed}");
            assert_eq!(lane.room(&net), 1 << 20);
        }
    }
}
