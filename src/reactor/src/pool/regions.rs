//! The process's table of buffer regions, whose indices name registered memory.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use forebay_hugepages::{Preference, Region, RegionError};
use std::sync::OnceLock;

/// The most regions that one table holds.
pub const MAX_REGIONS: usize = 1024;

/// Why a region could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The kernel gave no memory.
    Region(RegionError),
    /// The table holds [`MAX_REGIONS`] already.
    Full,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(error) => error.fmt(f),
            Self::Full => write!(f, "{MAX_REGIONS} buffer regions exist; use larger regions"),
        }
    }
}

impl core::error::Error for TableError {}

/// Regions of all the pools of a process, only ever added to, so that an index means the same memory
/// for as long as the table lives: a ring or an adapter that registers region `i` once may keep using
/// it. Whoever registers memory keeps the table alive.
pub struct RegionTable {
    slots: Box<[OnceLock<Region>]>,
    next: AtomicUsize,
}

impl RegionTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: (0..MAX_REGIONS).map(|_| OnceLock::new()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// Maps a new region of `len` bytes and returns its index.
    ///
    /// # Errors
    /// [`TableError`]; the table is then as before.
    pub fn map(&self, len: usize, preference: Preference) -> Result<u16, TableError> {
        let region = Region::new(len, preference).map_err(TableError::Region)?;
        let index = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (next < MAX_REGIONS).then_some(next + 1)
            })
            .map_err(|_| TableError::Full)?;
        let slot = self.slots.get(index).ok_or(TableError::Full)?;
        // The slot is ours alone: the counter gave its index to nobody else.
        slot.set(region).map_err(|_| TableError::Full)?;
        u16::try_from(index).map_err(|_| TableError::Full)
    }

    /// The region with this index.
    #[must_use]
    pub fn get(&self, index: u16) -> Option<&Region> {
        self.slots.get(usize::from(index))?.get()
    }

    /// The regions that exist, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Region)> {
        (0u16..).zip(&self.slots).filter_map(|(index, slot)| Some((index, slot.get()?)))
    }
}

impl Default for RegionTable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RegionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(_, region)| region)).finish()
    }
}
