//! Queues threaded through the pages: a page can leave from the middle.

const NONE: u32 = u32::MAX;

/// The links of all pages; each page is in at most one queue.
pub(super) struct Links(Vec<(u32, u32)>);

impl Links {
    pub(super) fn new(size: usize) -> Self {
        Self(vec![(NONE, NONE); size])
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(u32, u32)>()
    }
}

/// A queue of pages, first in first out.
pub(super) struct Queue {
    head: u32,
    tail: u32,
    len: usize,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(super) fn push(&mut self, links: &mut Links, at: u32) {
        links.0[at as usize] = (self.tail, NONE);
        if self.tail == NONE {
            self.head = at;
        } else {
            links.0[self.tail as usize].1 = at;
        }
        self.tail = at;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, links: &mut Links, at: u32) {
        let (prev, next) = links.0[at as usize];
        if prev == NONE {
            self.head = next;
        } else {
            links.0[prev as usize].1 = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            links.0[next as usize].0 = prev;
        }
        self.len -= 1;
    }
}
