//! Reference-counted buffers in size classes over hugepage regions.
//!
//! A [`Pool`] belongs to one thread, which takes from it and returns to it without any atomic
//! read-modify-write. A buffer whose last reference is dropped on another thread goes onto a lock-free
//! stack that the owner empties when a class has run dry. Memory is mapped region by region, up to a
//! bound, and moves between size classes in chunks of 2 MiB. Nothing is allocated in steady state.

mod buf;
mod chunks;
mod classes;
mod regions;
mod remote;

pub use buf::PoolBuf;
pub use classes::MAX_BUFFER;
pub use regions::{MAX_REGIONS, RegionTable, TableError};

use buf::Header;
use chunks::Chunks;
use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use forebay_hugepages::{HUGE_PAGE, Preference};
use forebay_io::BufPool;
use remote::{Orphans, RemoteStack};
use std::sync::Arc;

/// The most memory of one pool: chunks are numbered with 16 bits, one number means "none".
pub const MAX_POOL: usize = (u16::MAX as usize - 1) * HUGE_PAGE;

/// How large a pool may become, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// The most bytes that are mapped, rounded down to 2 MiB.
    pub max_bytes: usize,
    /// Bytes that are mapped at once when room is needed, rounded down to 2 MiB.
    pub region_bytes: usize,
    /// From which pages.
    pub pages: Preference,
}

impl PoolConfig {
    /// A pool of at most `max_bytes`, at least 2 MiB, in regions of a 64th part of it within 8 MiB to
    /// 1 GiB (the largest buffer that io_uring registers), from hugepages where there are any.
    #[must_use]
    pub fn bounded(max_bytes: usize) -> Self {
        let max_bytes = max_bytes.clamp(HUGE_PAGE, MAX_POOL);
        let region_bytes = (max_bytes / 64).clamp(8 << 20, 1 << 30);
        Self { max_bytes, region_bytes, pages: Preference::PreferHugetlb }
    }

    fn checked(mut self) -> Self {
        self.max_bytes = self.max_bytes.clamp(HUGE_PAGE, MAX_POOL);
        self.region_bytes = self.region_bytes.clamp(HUGE_PAGE, 1 << 30);
        self
    }
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// The bound, in bytes.
    pub max_bytes: usize,
    /// Bytes mapped so far; `hugetlb + ordinary`.
    pub mapped: usize,
    /// Of the mapped bytes, those in reserved 2 MiB pages.
    pub hugetlb: usize,
    /// Of the mapped bytes, those in ordinary pages.
    pub ordinary: usize,
    /// Buffers that are out (one freed elsewhere counts until the owner has taken it back).
    pub buffers: usize,
    /// The bytes of those buffers, at the size of their class.
    pub bytes: usize,
    /// How often a buffer was refused for want of room.
    pub refused: u64,
}

/// What a pool and its buffers share; freed by whoever is last.
pub(crate) struct Home {
    /// The number of the thread that owns the pool; 0 once the pool is gone.
    owner: AtomicU64,
    remote: RemoteStack<Header>,
    orphans: Orphans,
    /// Touched by the owner's thread only.
    chunks: UnsafeCell<Chunks>,
}

impl Home {
    /// Takes back a buffer whose last reference is gone, on the thread with number `thread`.
    fn give_back(home: NonNull<Self>, header: NonNull<Header>, thread: u64) {
        // SAFETY: the home lives while a buffer of it is out, and this one still is.
        let shared = unsafe { home.as_ref() };
        if shared.owner.load(Ordering::Relaxed) == thread {
            // SAFETY: only the owner's thread reads its own number here, and it holds no other
            // reference to the chunks: no method of `Chunks` drops a buffer.
            unsafe { &mut *shared.chunks.get() }.free(header);
            return;
        }
        // SAFETY: headers live as long as the home; nobody else has this one now.
        let refused = unsafe { shared.remote.push(header) }.is_err();
        if refused && shared.orphans.returned() {
            // SAFETY: the pool is gone and this was its last buffer: nobody refers to the home.
            drop(unsafe { Box::from_raw(home.as_ptr()) });
        }
    }
}

/// This thread's number, from 1; never given twice.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// A bounded pool of buffers, owned by the thread that made it.
pub struct Pool {
    home: NonNull<Home>,
    /// Not `Send`: the owner's thread is written in the home.
    _thread: PhantomData<*mut ()>,
}

impl Pool {
    /// An empty pool of this thread; memory is mapped into `table` as it is needed.
    #[must_use]
    pub fn new(config: PoolConfig, table: Arc<RegionTable>) -> Self {
        let home = Box::new(Home {
            owner: AtomicU64::new(thread_number()),
            remote: RemoteStack::new(),
            orphans: Orphans::new(),
            chunks: UnsafeCell::new(Chunks::new(config.checked(), table)),
        });
        Self { home: NonNull::from(Box::leak(home)), _thread: PhantomData }
    }

    fn chunks(&mut self) -> &mut Chunks {
        // SAFETY: the pool is not `Send`, so this is the owner's thread; the borrow ends before the
        // next call, and buffers that are dropped meanwhile are not dropped inside `Chunks`.
        unsafe { &mut *self.home.as_ref().chunks.get() }
    }

    /// Sets memory aside so that `count` buffers of `len` bytes can always be out at once, whatever
    /// the other sizes take. Adds to earlier reservations of the same class.
    ///
    /// False where the bound does not allow it; then nothing more is reserved.
    pub fn reserve(&mut self, len: usize, count: usize) -> bool {
        let home = self.home;
        self.chunks().reserve(home, len, count)
    }

    /// What the pool holds now, after taking back what other threads have freed.
    pub fn usage(&mut self) -> PoolUsage {
        let home = self.home;
        let chunks = self.chunks();
        chunks.take_remote(home);
        chunks.usage()
    }

    /// Why no more memory is mapped, if the kernel or the table refused some.
    pub fn error(&mut self) -> Option<TableError> {
        self.chunks().error()
    }

    /// The table that this pool's regions are in.
    pub fn table(&mut self) -> Arc<RegionTable> {
        Arc::clone(self.chunks().table())
    }
}

impl BufPool for Pool {
    type Buf = PoolBuf;

    fn alloc(&mut self, len: usize) -> Option<PoolBuf> {
        let home = self.home;
        Some(PoolBuf::new(self.chunks().alloc(home, len)?, len))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let home = self.home;
        // SAFETY: the home lives until the pool and all buffers are gone.
        let shared = unsafe { home.as_ref() };
        // From here on this thread's own frees take the remote way, too.
        shared.owner.store(0, Ordering::Relaxed);
        let back = shared.remote.close();
        let chunks = self.chunks();
        chunks.free_list(back);
        let out = isize::try_from(chunks.usage().buffers).unwrap_or(isize::MAX);
        if shared.orphans.announce(out) {
            // SAFETY: no buffer is out and the pool goes now: nobody refers to the home.
            drop(unsafe { Box::from_raw(home.as_ptr()) });
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: not `Send`, so this is the owner's thread, and the borrow is short.
        let usage = unsafe { (*self.home.as_ref().chunks.get()).usage() };
        f.debug_tuple("Pool").field(&usage).finish()
    }
}

#[cfg(test)]
mod tests;
