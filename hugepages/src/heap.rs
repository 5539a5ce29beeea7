//! The process's heap, with transparent hugepages for what is large.

use crate::HUGE_PAGE;
use core::cell::Cell;
use std::alloc::{GlobalAlloc, Layout, System};

/// What is at least this large is aligned to hugepages.
const LARGE: usize = 16 << 20;

/// The system's allocator, which for allocations of 16 MiB and more asks for transparent hugepages: a
/// cache's index is read all over, and with ordinary pages each look waits for the page tables first.
/// Where the kernel has none to give, ordinary pages serve.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugeHeap;

thread_local! {
    /// Constant at its beginning and without a destructor, so that it needs no allocation itself.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often the calling thread has allocated or resized through [`HugeHeap`] since it began. A thread
/// on which nothing is to be allocated in steady state can be held to that.
#[must_use]
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
}

/// The layout with the alignment of a hugepage, where it is large.
fn aligned(layout: Layout) -> Option<Layout> {
    (layout.size() >= LARGE).then(|| layout.align_to(HUGE_PAGE).ok()).flatten()
}

/// Asks for hugepages for a fresh allocation.
fn advise(start: *mut u8, bytes: usize) {
    if !start.is_null() {
        // SAFETY: the range was allocated just now; the advice changes no content.
        unsafe {
            libc::madvise(start.cast(), bytes / HUGE_PAGE * HUGE_PAGE, libc::MADV_HUGEPAGE);
        }
    }
}

// SAFETY: every call goes to `System`, with one layout for all calls on one allocation: whether it is
// the aligned one follows from the size alone, and an allocation that is resized across that bound, or
// above it, is a new one.
unsafe impl GlobalAlloc for HugeHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        let Some(large) = aligned(layout) else {
            // SAFETY: the caller's promises are those of `System`.
            return unsafe { System.alloc(layout) };
        };
        // SAFETY: as above; the size is not zero.
        let start = unsafe { System.alloc(large) };
        advise(start, large.size());
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        let Some(large) = aligned(layout) else {
            // SAFETY: the caller's promises are those of `System`.
            return unsafe { System.alloc_zeroed(layout) };
        };
        // SAFETY: as above; the size is not zero.
        let start = unsafe { System.alloc(large) };
        advise(start, large.size());
        if !start.is_null() {
            // SAFETY: that many bytes were allocated.
            unsafe { start.write_bytes(0, large.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: allocated by `System` with this same layout.
        unsafe { System.dealloc(start, aligned(layout).unwrap_or(layout)) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < LARGE && size < LARGE {
            count();
            // SAFETY: the caller's promises are those of `System`.
            return unsafe { System.realloc(start, layout, size) };
        }
        let Ok(new) = Layout::from_size_align(size, layout.align()) else {
            return core::ptr::null_mut();
        };
        // SAFETY: the size is not zero, by the caller's promise.
        let to = unsafe { self.alloc(new) };
        if !to.is_null() {
            // SAFETY: both are allocations of at least that many bytes, and distinct.
            unsafe {
                start.copy_to_nonoverlapping(to, size.min(layout.size()));
                self.dealloc(start, layout);
            }
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_allocations_are_aligned_zeroed_and_keep_their_content() {
        let heap = HugeHeap;
        for (from, to) in [(LARGE, 2 * LARGE), (100, LARGE + 1), (LARGE + 5, 100), (10, 2000)] {
            let layout = Layout::from_size_align(from, 64).unwrap();
            // SAFETY: sizes are not zero; each pointer is used within its allocation and freed once.
            unsafe {
                let start = heap.alloc_zeroed(layout);
                assert!(!start.is_null());
                assert!(from < LARGE || start.addr().is_multiple_of(HUGE_PAGE));
                assert_eq!((start.read(), start.add(from - 1).read()), (0, 0));
                start.write(7);
                start.add(9).write(8);
                let moved = heap.realloc(start, layout, to);
                assert!(to < LARGE || moved.addr().is_multiple_of(HUGE_PAGE));
                assert_eq!((moved.read(), moved.add(9).read()), (7, 8));
                heap.dealloc(moved, Layout::from_size_align(to, 64).unwrap());
            }
        }
    }

    #[test]
    fn a_thread_counts_its_own_allocations_and_resizes() {
        let layout = Layout::from_size_align(100, 8).unwrap();
        let other = move || {
            // SAFETY: the size is not zero; the pointer is freed once.
            unsafe { HugeHeap.dealloc(HugeHeap.alloc(layout), layout) };
            allocations()
        };
        let before = allocations();
        assert_eq!(std::thread::spawn(other).join().unwrap(), 1);
        assert_eq!(allocations(), before);
        // SAFETY: sizes are not zero; the pointer is freed once, with the layout it has then.
        unsafe {
            let start = HugeHeap.realloc(HugeHeap.alloc_zeroed(layout), layout, 300);
            HugeHeap.dealloc(start, Layout::from_size_align(300, 8).unwrap());
        }
        assert_eq!(allocations(), before + 2);
    }
}
