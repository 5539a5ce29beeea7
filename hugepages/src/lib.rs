//! Hugepage regions with a fallback to ordinary pages: the only mmap of the project.
//!
//! A [`Region`] is anonymous memory aligned to 2 MiB, from the kernel's reserved 2 MiB pages where
//! there are enough of them, else from ordinary pages with transparent hugepages asked for. Which
//! of the two it became is part of its public state, and [`usage`] adds it up for the process.
//!
//! | module | holds |
//! |---|---|
//! | [`region`] | one mapping: where it is, what backs it |
//! | [`memory`] | a region that is used by copying only, without its address |
//! | [`heap`] | the process's allocator, with hugepages for what is large |
//! | [`status`] | what the kernel has reserved (`/sys/kernel/mm/hugepages`), and our own totals |

pub mod heap;
pub mod memory;
pub mod region;
pub mod status;

pub use heap::{HugeHeap, allocations};
pub use memory::Memory;
pub use region::{Backing, Preference, Region, RegionError};
pub use status::{PagePool, Usage, page_pools, usage};

/// The size of a hugepage that regions are made of, in bytes.
pub const HUGE_PAGE: usize = 2 << 20;

/// The size of an ordinary page that devices' buffers are aligned to, in bytes.
pub const PAGE: usize = 4096;

#[cfg(test)]
mod tests;
