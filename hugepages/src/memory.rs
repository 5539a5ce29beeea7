//! Memory that is read and written by copying only: safe, because nobody gets its address.

use crate::PAGE;
use crate::region::{Backing, Preference, Region, RegionError};
use core::ops::Range;
use core::ptr;

/// A region whose bytes are reached only through the methods here.
#[derive(Debug)]
pub struct Memory(Region);

impl Memory {
    /// Maps `len` zeroed bytes, rounded up to 2 MiB.
    ///
    /// # Errors
    /// As [`Region::new`].
    pub fn new(len: usize, preference: Preference) -> Result<Self, RegionError> {
        Region::new(len, preference).map(Self)
    }

    /// The length in bytes, a multiple of 2 MiB.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the length is zero; it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What pages hold it.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.0.backing()
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// Where `offset + into.len()` lies beyond the end: the caller checks ranges first.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.0.len()));
        // SAFETY: the range is inside the mapping, whose address nobody else has, so that no reference
        // into it exists that `into` could be or overlap.
        unsafe {
            ptr::copy_nonoverlapping(self.0.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// Where `offset + from.len()` lies beyond the end: the caller checks ranges first.
    pub fn write(&mut self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.0.len()));
        // SAFETY: as in `read`, and `&mut self` excludes other users of these methods.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.0.as_ptr().add(offset), from.len());
        }
    }

    /// Makes the bytes of `range` read as zeroes. Whole ordinary pages go back to the kernel, at a cost
    /// by the pages that were in use; hugetlb pages are filled, at a cost by the length.
    ///
    /// # Panics
    /// Where `range` lies beyond the end: the caller checks ranges first.
    pub fn zero(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.0.len());
        let first = range.start.next_multiple_of(PAGE);
        let last = range.end / PAGE * PAGE;
        if first >= last || !self.give_back(first..last) {
            self.fill_zero(range);
        } else {
            self.fill_zero(range.start..first);
            self.fill_zero(last..range.end);
        }
    }

    /// Drops whole pages, which then read as zeroes; false where that is not done. Never for hugetlb:
    /// the reservation may be lost with the page, and touching it again without one is SIGBUS.
    fn give_back(&mut self, range: Range<usize>) -> bool {
        if self.0.backing() == Backing::Hugetlb {
            return false;
        }
        // SAFETY: the range is inside our private anonymous mapping and page-aligned; `&mut self` says
        // that nobody reads it meanwhile.
        unsafe {
            let start = self.0.as_ptr().add(range.start);
            libc::madvise(start.cast(), range.len(), libc::MADV_DONTNEED) == 0
        }
    }

    fn fill_zero(&mut self, range: Range<usize>) {
        // SAFETY: the range is inside the mapping, and `&mut self` excludes other users.
        unsafe { ptr::write_bytes(self.0.as_ptr().add(range.start), 0, range.len()) }
    }
}
