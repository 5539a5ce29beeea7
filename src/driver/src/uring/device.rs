//! A file or block device on a reactor's ring.

use super::file::{self, UringError};
use super::ring::Ring;
use crate::check::check;
use forebay_io::{Completion, Device, DeviceInfo, Op};
use forebay_reactor::PoolBuf;

/// A file or block device on a reactor's ring. Dropping it closes the file after the last operation
/// that is under way.
pub struct UringDevice {
    ring: Ring,
    at: usize,
    info: DeviceInfo,
    direct: bool,
}

impl UringDevice {
    /// Opens a file or block device exclusively; with `size`, makes a sparse file where there is none.
    /// Blocks for some system calls, and for up to three seconds while another process holds it.
    ///
    /// # Errors
    /// [`UringError`].
    pub fn open(path: &str, size: Option<u64>, ring: Ring) -> Result<Self, UringError> {
        let opened = file::open(path, size, file::LOCK_PATIENCE)?;
        let at = ring.0.borrow_mut().add(opened.file, opened.block_device);
        Ok(Self { ring, at, info: opened.info, direct: opened.direct })
    }

    /// Whether I/O goes past the page cache. Where the file system refuses that it works all the same,
    /// but uses memory of the system and is slower.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Sets aside the space of all of a file; block devices have theirs.
    ///
    /// # Errors
    /// The file system's.
    pub fn reserve(&self) -> std::io::Result<()> {
        let ring = self.ring.0.borrow();
        ring.file_of(self.at).map_or(Ok(()), |file| file::reserve(file, self.info.size))
    }

    /// Bytes of a file without space of their own; 0 of a block device.
    #[must_use]
    pub fn unreserved(&self) -> u64 {
        let ring = self.ring.0.borrow();
        ring.file_of(self.at).map_or(0, |file| file::unreserved(file, self.info.size))
    }

    /// The ring it is on.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.ring
    }
}

impl Device for UringDevice {
    type Buf = PoolBuf;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: Op<PoolBuf>) -> Result<(), Op<PoolBuf>> {
        let checked = check(&self.info, &op);
        let mut ring = self.ring.0.borrow_mut();
        match checked {
            Ok(()) => ring.start(self.at, op),
            Err(error) => {
                ring.refuse(self.at, op, error);
                Ok(())
            }
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion<PoolBuf>>) -> usize {
        let mut ring = self.ring.0.borrow_mut();
        ring.poll();
        ring.take_done(self.at, done)
    }

    fn in_flight(&self) -> usize {
        self.ring.0.borrow().in_flight(self.at)
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.ring.0.borrow_mut().give_up(self.at);
    }
}
