//! A buffer of a pool.

use super::remote::Link;
use super::{Home, thread_number};
use crate::sync::{AtomicPtr, AtomicU32, Ordering, fence};
use core::fmt;
use core::ptr::{self, NonNull};
use forebay_io::Buf;

/// What is known of a page of a region; the first page's stands for a buffer. 32 bytes, so 0.8 % of
/// the memory, kept beside it so that the data stays aligned.
pub(super) struct Header {
    pub(super) refs: AtomicU32,
    /// Index of the chunk in the pool.
    pub(super) chunk: u16,
    /// Index of the region in the table.
    region: u16,
    pub(super) next: AtomicPtr<Header>,
    data: NonNull<u8>,
    home: NonNull<Home>,
}

impl Header {
    pub(super) fn new(home: NonNull<Home>, data: NonNull<u8>, region: u16, chunk: u16) -> Self {
        let (refs, next) = (AtomicU32::new(0), AtomicPtr::new(ptr::null_mut()));
        Self { refs, chunk, region, next, data, home }
    }
}

impl Link for Header {
    fn next(&self) -> &AtomicPtr<Self> {
        &self.next
    }
}

/// A reference to a buffer of a [`Pool`](super::Pool): cloning counts, dropping the last one sends the
/// buffer home from whatever thread. The bytes are aligned to 4096 and lie in a region of the table.
pub struct PoolBuf {
    header: NonNull<Header>,
    len: u32,
}

// SAFETY: the count is atomic; bytes are written only through `&mut` of the single reference; and the
// last drop on another thread goes through the lock-free stack.
unsafe impl Send for PoolBuf {}
// SAFETY: `&PoolBuf` gives `&[u8]` and clones, both fine from several threads at once.
unsafe impl Sync for PoolBuf {}

impl PoolBuf {
    pub(super) fn new(header: NonNull<Header>, len: usize) -> Self {
        // Buffers are at most 2 MiB.
        Self { header, len: u32::try_from(len).unwrap_or(u32::MAX) }
    }

    fn header(&self) -> &Header {
        // SAFETY: the home, and so its headers, outlives every buffer.
        unsafe { self.header.as_ref() }
    }

    /// The first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.header().data.as_ptr()
    }

    /// The index of the buffer's region in the pool's [`RegionTable`](super::RegionTable), which names
    /// it to whoever has registered that region.
    #[must_use]
    pub fn region(&self) -> u16 {
        self.header().region
    }

    /// Whether this is the only reference, so that the bytes may be written.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        // Acquire: what the last other holder did happened before.
        self.header().refs.load(Ordering::Acquire) == 1
    }

    /// Makes the buffer shorter; what is beyond `len` is no longer reachable. Longer is ignored.
    pub fn truncate(&mut self, len: usize) {
        if let Ok(len) = u32::try_from(len) {
            self.len = self.len.min(len);
        }
    }
}

impl Buf for PoolBuf {
    fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or(0)
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the buffer has at least `len` initialised bytes (anonymous memory starts as zeroes),
        // and no `&mut` to them exists while `&self` does, here or through a clone.
        unsafe { core::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() {
            return None;
        }
        // SAFETY: as in `as_slice`; this is the only reference, borrowed mutably.
        Some(unsafe { core::slice::from_raw_parts_mut(self.header().data.as_ptr(), self.len()) })
    }
}

impl Clone for PoolBuf {
    fn clone(&self) -> Self {
        // Relaxed, as in Arc: the new reference comes from one that exists. Four billion references to
        // one buffer would need more memory than there is, since each sits in a bounded queue.
        self.header().refs.fetch_add(1, Ordering::Relaxed);
        Self { header: self.header, len: self.len }
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        let header = self.header();
        // A single reference cannot become two without us: no read-modify-write is needed then.
        if header.refs.load(Ordering::Acquire) != 1 {
            if header.refs.fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            fence(Ordering::Acquire);
        }
        Home::give_back(header.home, self.header, thread_number());
    }
}

impl fmt::Debug for PoolBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuf").field("region", &self.region()).field("len", &self.len).finish()
    }
}

impl PartialEq for PoolBuf {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for PoolBuf {}
