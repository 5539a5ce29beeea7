//! The owner's side of a pool: chunks of one hugepage each, given to size classes and taken back.

use super::buf::Header;
use super::classes::{CHUNK, CHUNK_PAGES, CLASSES, class_of, pages_of, per_chunk};
use super::regions::{RegionTable, TableError};
use super::{Home, PoolConfig, PoolUsage};
use crate::sync::Ordering;
use core::ptr::{self, NonNull};
use forebay_hugepages::{Backing, PAGE};
use std::sync::Arc;

/// No chunk: the end of a list.
const NONE: u16 = u16::MAX;

/// One hugepage of buffers, which belongs to one size class while any of them is out.
struct Chunk {
    /// The header of its first page; the others follow.
    first: NonNull<Header>,
    /// The class that it serves, if it is not free.
    class: usize,
    /// Buffers returned and not handed out again, newest first, so that warm memory is used first.
    returned: *mut Header,
    /// Buffers from this index on were never handed out since the class got the chunk.
    fresh: u16,
    /// Buffers that can be handed out.
    free: u16,
    previous: u16,
    next: u16,
}

/// A size class: the chunks that have something to hand out, as a list through [`Chunk::next`].
#[derive(Clone, Copy)]
struct Class {
    partial: u16,
    chunks: u16,
    /// Chunks that stay with the class although they are wholly free.
    reserved: u16,
    /// Chunks that are wholly free now.
    whole: u16,
}

/// The state that only the owner's thread touches.
pub(super) struct Chunks {
    config: PoolConfig,
    table: Arc<RegionTable>,
    headers: Vec<NonNull<[Header]>>,
    chunks: Vec<Chunk>,
    unused: Vec<u16>,
    classes: [Class; CLASSES],
    usage: PoolUsage,
    error: Option<TableError>,
}

impl Chunks {
    pub(super) fn new(config: PoolConfig, table: Arc<RegionTable>) -> Self {
        Self {
            config,
            table,
            headers: Vec::new(),
            chunks: Vec::new(),
            unused: Vec::new(),
            classes: [Class { partial: NONE, chunks: 0, reserved: 0, whole: 0 }; CLASSES],
            usage: PoolUsage { max_bytes: config.max_bytes, ..PoolUsage::default() },
            error: None,
        }
    }

    pub(super) fn usage(&self) -> PoolUsage {
        self.usage
    }

    pub(super) fn error(&self) -> Option<TableError> {
        self.error
    }

    pub(super) fn table(&self) -> &Arc<RegionTable> {
        &self.table
    }

    /// Hands out a buffer for `len` bytes, with a reference count of one.
    pub(super) fn alloc(&mut self, home: NonNull<Home>, len: usize) -> Option<NonNull<Header>> {
        let class = class_of(len)?;
        if self.classes[class].partial == NONE {
            self.take_remote(home);
            if self.classes[class].partial == NONE && !self.give_chunk(home, class) {
                self.usage.refused += 1;
                return None;
            }
        }
        let index = self.classes[class].partial;
        let chunk = &mut self.chunks[usize::from(index)];
        let header = match NonNull::new(chunk.returned) {
            Some(header) => {
                // SAFETY: headers live as long as the pool's home; a returned one is linked by us.
                chunk.returned = unsafe { header.as_ref() }.next.load(Ordering::Relaxed);
                header
            }
            None => {
                let page = usize::from(chunk.fresh) * pages_of(class);
                chunk.fresh += 1;
                // SAFETY: `fresh` is below the chunk's buffers, so `page` is inside its headers.
                unsafe { chunk.first.add(page) }
            }
        };
        let was_whole = usize::from(chunk.free) == per_chunk(class);
        chunk.free -= 1;
        let empty = chunk.free == 0;
        if was_whole {
            self.classes[class].whole -= 1;
        }
        if empty {
            self.unlink(index);
        }
        self.usage.buffers += 1;
        self.usage.bytes += pages_of(class) * PAGE;
        // SAFETY: as above; nobody else refers to a header that is not handed out.
        unsafe { header.as_ref() }.refs.store(1, Ordering::Relaxed);
        Some(header)
    }

    /// Takes a buffer back whose last reference is gone.
    pub(super) fn free(&mut self, header: NonNull<Header>) {
        // SAFETY: the header is one of ours (its home is this pool's).
        let shared = unsafe { header.as_ref() };
        let index = shared.chunk;
        let chunk = &mut self.chunks[usize::from(index)];
        shared.next.store(chunk.returned, Ordering::Relaxed);
        chunk.returned = header.as_ptr();
        chunk.free += 1;
        let class = chunk.class;
        let (was_empty, whole) = (chunk.free == 1, usize::from(chunk.free) == per_chunk(class));
        self.usage.buffers -= 1;
        self.usage.bytes -= pages_of(class) * PAGE;
        if was_empty {
            self.link(index);
        }
        if whole {
            self.classes[class].whole += 1;
            // The last chunk that can serve the class at once stays, so that one buffer taken and
            // returned again and again does not move it to and fro.
            if self.classes[class].partial != index || self.chunks[usize::from(index)].next != NONE
            {
                self.release_chunk(index);
            }
        }
    }

    /// Takes what other threads have freed.
    pub(super) fn take_remote(&mut self, home: NonNull<Home>) {
        // SAFETY: the home outlives its owner-side state.
        self.free_list(unsafe { home.as_ref() }.remote.take());
    }

    /// Frees a list linked by [`Header::next`].
    pub(super) fn free_list(&mut self, mut head: *mut Header) {
        while let Some(header) = NonNull::new(head) {
            // SAFETY: nodes of the list are ours alone until freed; the link is read before that.
            head = unsafe { header.as_ref() }.next.load(Ordering::Relaxed);
            self.free(header);
        }
    }

    /// Sets chunks aside so that `count` buffers of `len` bytes always fit; false without room.
    pub(super) fn reserve(&mut self, home: NonNull<Home>, len: usize, count: usize) -> bool {
        let Some(class) = class_of(len) else { return false };
        let Ok(more) = u16::try_from(count.div_ceil(per_chunk(class))) else { return false };
        let Some(wanted) = self.classes[class].reserved.checked_add(more) else { return false };
        while self.classes[class].chunks < wanted {
            if !self.give_chunk(home, class) {
                return false;
            }
        }
        self.classes[class].reserved = wanted;
        true
    }

    /// Gives an unused chunk to a class, mapping a region if there is none; false without room.
    fn give_chunk(&mut self, home: NonNull<Home>, class: usize) -> bool {
        if self.unused.is_empty() && !self.grow(home) && !self.reclaim(class) {
            return false;
        }
        let Some(index) = self.unused.pop() else { return false };
        let chunk = &mut self.chunks[usize::from(index)];
        chunk.class = class;
        chunk.returned = ptr::null_mut();
        chunk.fresh = 0;
        chunk.free = u16::try_from(per_chunk(class)).unwrap_or(0);
        self.classes[class].chunks += 1;
        self.classes[class].whole += 1;
        self.link(index);
        true
    }

    /// Takes a wholly free chunk from its class unless it is reserved; whether it did.
    fn release_chunk(&mut self, index: u16) -> bool {
        let number = self.chunks[usize::from(index)].class;
        if self.classes[number].chunks <= self.classes[number].reserved {
            return false;
        }
        self.unlink(index);
        self.classes[number].chunks -= 1;
        self.classes[number].whole -= 1;
        self.unused.push(index);
        true
    }

    /// Takes a wholly free chunk from whichever other class keeps one that is not reserved.
    fn reclaim(&mut self, wanting: usize) -> bool {
        for number in 0..CLASSES {
            let class = self.classes[number];
            if number == wanting || class.whole == 0 || class.chunks <= class.reserved {
                continue;
            }
            let mut index = class.partial;
            while index != NONE {
                let chunk = &self.chunks[usize::from(index)];
                if usize::from(chunk.free) == per_chunk(number) {
                    return self.release_chunk(index);
                }
                index = chunk.next;
            }
        }
        false
    }

    /// Maps one more region and cuts it into chunks; false where the bound or the kernel forbids.
    fn grow(&mut self, home: NonNull<Home>) -> bool {
        let len = self.config.region_bytes.min(self.config.max_bytes - self.usage.mapped);
        let len = len / CHUNK * CHUNK;
        if len == 0 || self.error.is_some() {
            return false;
        }
        match self.table.map(len, self.config.pages) {
            Ok(region) => self.cut(home, region),
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }

    fn cut(&mut self, home: NonNull<Home>, index: u16) -> bool {
        let Some(region) = self.table.get(index) else { return false };
        let len = region.len();
        let Ok(base_chunk) = u16::try_from(self.chunks.len()) else { return false };
        let headers: Box<[Header]> = (0..len / PAGE)
            .map(|page| {
                let chunk = base_chunk + u16::try_from(page / CHUNK_PAGES).unwrap_or(0);
                // SAFETY: `page` is inside the region.
                let data = unsafe { NonNull::new_unchecked(region.as_ptr().add(page * PAGE)) };
                Header::new(home, data, index, chunk)
            })
            .collect();
        match region.backing() {
            Backing::Hugetlb => self.usage.hugetlb += len,
            Backing::Ordinary => self.usage.ordinary += len,
        }
        self.usage.mapped += len;
        let headers = NonNull::from(Box::leak(headers));
        self.headers.push(headers);
        for number in 0..len / CHUNK {
            // SAFETY: the region has a header for every page of every chunk.
            let first = unsafe { headers.cast::<Header>().add(number * CHUNK_PAGES) };
            let chunk = base_chunk + u16::try_from(number).unwrap_or(0);
            self.chunks.push(Chunk {
                first,
                class: 0,
                returned: ptr::null_mut(),
                fresh: 0,
                free: 0,
                previous: NONE,
                next: NONE,
            });
            self.unused.push(chunk);
        }
        // Room for every chunk at once, so that releasing one never allocates.
        self.unused.reserve(self.chunks.len());
        true
    }

    fn link(&mut self, index: u16) {
        let class = self.chunks[usize::from(index)].class;
        let head = self.classes[class].partial;
        if head != NONE {
            self.chunks[usize::from(head)].previous = index;
        }
        let chunk = &mut self.chunks[usize::from(index)];
        (chunk.previous, chunk.next) = (NONE, head);
        self.classes[class].partial = index;
    }

    fn unlink(&mut self, index: u16) {
        let chunk = &self.chunks[usize::from(index)];
        let (class, previous, next) = (chunk.class, chunk.previous, chunk.next);
        if previous == NONE {
            self.classes[class].partial = next;
        } else {
            self.chunks[usize::from(previous)].next = next;
        }
        if next != NONE {
            self.chunks[usize::from(next)].previous = previous;
        }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        for headers in self.headers.drain(..) {
            // SAFETY: leaked by `cut`; the home is dropped only when no buffer refers to a header.
            drop(unsafe { Box::from_raw(headers.as_ptr()) });
        }
    }
}
