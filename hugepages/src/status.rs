//! What the kernel has of hugepages, and what this process has mapped.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::path::Path;
use std::{fs, io};

/// The process's mapped regions, in bytes.
pub(crate) struct Totals {
    pub(crate) hugetlb: AtomicUsize,
    pub(crate) ordinary: AtomicUsize,
}

pub(crate) static TOTALS: Totals =
    Totals { hugetlb: AtomicUsize::new(0), ordinary: AtomicUsize::new(0) };

/// How much memory the regions of this process hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In reserved 2 MiB pages (not counted in the process's RSS).
    pub hugetlb: usize,
    /// In ordinary pages (counted in RSS as far as they were touched).
    pub ordinary: usize,
}

/// What the regions of this process hold now.
#[must_use]
pub fn usage() -> Usage {
    Usage {
        hugetlb: TOTALS.hugetlb.load(Ordering::Relaxed),
        ordinary: TOTALS.ordinary.load(Ordering::Relaxed),
    }
}

/// The kernel's reserve of one size of hugepages; all counts are pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePool {
    /// The size of one page in bytes.
    pub page_size: u64,
    /// Pages in the reserve.
    pub total: u64,
    /// Pages that nobody has touched.
    pub free: u64,
    /// Of the free ones, those promised to a mapping.
    pub reserved: u64,
    /// Pages above `total` that the kernel made on demand.
    pub surplus: u64,
}

impl PagePool {
    /// Pages that a new mapping can get.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

/// The kernel's reserves, smallest page first; empty where the kernel has no hugetlb.
///
/// # Errors
/// Where `/sys/kernel/mm/hugepages` exists but cannot be read.
pub fn page_pools() -> io::Result<Vec<PagePool>> {
    page_pools_at(Path::new("/sys/kernel/mm/hugepages"))
}

pub(crate) fn page_pools_at(root: &Path) -> io::Result<Vec<PagePool>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pools = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let size = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB"));
        let Some(kib) = size.and_then(|digits| digits.parse::<u64>().ok()) else { continue };
        pools.push(PagePool {
            page_size: kib * 1024,
            total: number(&path, "nr_hugepages")?,
            free: number(&path, "free_hugepages")?,
            reserved: number(&path, "resv_hugepages")?,
            surplus: number(&path, "surplus_hugepages")?,
        });
    }
    pools.sort_by_key(|pool| pool.page_size);
    Ok(pools)
}

fn number(directory: &Path, file: &str) -> io::Result<u64> {
    let path = directory.join(file);
    let text = fs::read_to_string(&path)?;
    text.trim().parse().map_err(|_| {
        let message = format!("{} holds {:?}, not a count of pages", path.display(), text.trim());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}
