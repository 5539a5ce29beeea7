//! One mapping of anonymous memory, aligned to 2 MiB.

use crate::HUGE_PAGE;
use crate::status::TOTALS;
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

/// What pages hold a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Reserved 2 MiB pages: never swapped, one TLB entry each.
    Hugetlb,
    /// Ordinary pages; the kernel was asked for transparent hugepages and gives what it can.
    Ordinary,
}

/// What pages to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// Reserved 2 MiB pages where there are enough, else ordinary ones.
    #[default]
    PreferHugetlb,
    /// Reserved 2 MiB pages, or an error.
    OnlyHugetlb,
    /// Ordinary pages only.
    Ordinary,
}

/// Why there is no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionError {
    /// How many bytes were asked for, rounded up to 2 MiB.
    pub len: usize,
    /// Which pages were tried last.
    pub backing: Backing,
    /// The operating system's error number.
    pub errno: i32,
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.errno);
        let mib = self.len >> 20;
        match self.backing {
            Backing::Hugetlb => write!(
                f,
                "no {mib} MiB of 2 MiB hugepages: {error}; reserve {} more with `forebay hugepages \
                 reserve`, or allow ordinary pages",
                self.len / HUGE_PAGE
            ),
            Backing::Ordinary => write!(f, "no {mib} MiB of memory: {error}; ask for less"),
        }
    }
}

impl core::error::Error for RegionError {}

/// Anonymous private memory, zeroed when new, aligned to 2 MiB; unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access to its bytes goes through
// raw pointers (whose users answer for aliasing) or through `&self`/`&mut self` methods.
unsafe impl Send for Region {}
// SAFETY: `&Region` gives out only the address, the length and the backing; never a reference to bytes.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes, rounded up to 2 MiB. The memory is not touched: pages come on first use.
    ///
    /// # Errors
    /// [`RegionError`] where the kernel refuses the last kind of pages that `preference` allows.
    pub fn new(len: usize, preference: Preference) -> Result<Self, RegionError> {
        let len = len.max(1).checked_next_multiple_of(HUGE_PAGE).ok_or(RegionError {
            len,
            backing: Backing::Ordinary,
            errno: libc::ENOMEM,
        })?;
        let region = match preference {
            Preference::Ordinary => Self::ordinary(len)?,
            Preference::OnlyHugetlb => Self::hugetlb(len)?,
            Preference::PreferHugetlb => Self::hugetlb(len).or_else(|_| Self::ordinary(len))?,
        };
        TOTALS.add(region.backing, region.len);
        Ok(region)
    }

    fn hugetlb(len: usize) -> Result<Self, RegionError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let base = map(len, flags | libc::MAP_HUGE_2MB).map_err(|errno| RegionError {
            len,
            backing: Backing::Hugetlb,
            errno,
        })?;
        Ok(Self { base, len, backing: Backing::Hugetlb })
    }

    fn ordinary(len: usize) -> Result<Self, RegionError> {
        let error = |errno| RegionError { len, backing: Backing::Ordinary, errno };
        // One hugepage more than asked for, so that a 2 MiB boundary lies inside; the rest goes back.
        let whole = len.checked_add(HUGE_PAGE).ok_or(error(libc::ENOMEM))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let start = map(whole, flags).map_err(error)?;
        let head = start.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `head` is below HUGE_PAGE, so `head + len` lies inside the mapping of `whole` bytes;
        // the two ends that are unmapped are page-aligned and hold nothing yet.
        let base = unsafe {
            let base = start.add(head);
            if head > 0 {
                libc::munmap(start.as_ptr().cast(), head);
            }
            let tail = whole - head - len;
            if tail > 0 {
                libc::munmap(base.add(len).as_ptr().cast(), tail);
            }
            // Only advice: without transparent hugepages the region works all the same.
            libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            base
        };
        Ok(Self { base, len, backing: Backing::Ordinary })
    }

    /// The first byte; aligned to 2 MiB. Valid for reads and writes of [`Region::len`] bytes while
    /// the region lives; who dereferences it answers for aliasing.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The length in bytes, a multiple of 2 MiB.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero; it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What pages hold it.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The offset of `ptr` in the region; `None` where `len` bytes from it are not all inside.
    #[must_use]
    pub fn offset_of(&self, ptr: *const u8, len: usize) -> Option<usize> {
        let offset = ptr.addr().checked_sub(self.base.as_ptr().addr())?;
        (offset.checked_add(len)? <= self.len).then_some(offset)
    }
}

fn map(len: usize, flags: i32) -> Result<NonNull<u8>, i32> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM));
    }
    NonNull::new(address.cast()).ok_or(libc::ENOMEM)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever holds the pointer promised not to outlive us.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
        TOTALS.remove(self.backing, self.len);
    }
}

impl super::status::Totals {
    fn cell(&self, backing: Backing) -> &core::sync::atomic::AtomicUsize {
        match backing {
            Backing::Hugetlb => &self.hugetlb,
            Backing::Ordinary => &self.ordinary,
        }
    }

    fn add(&self, backing: Backing, len: usize) {
        self.cell(backing).fetch_add(len, Ordering::Relaxed);
    }

    fn remove(&self, backing: Backing, len: usize) {
        self.cell(backing).fetch_sub(len, Ordering::Relaxed);
    }
}
