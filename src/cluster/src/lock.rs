//! An open file description lock (fcntl(2), `F_OFD_SETLK`): held as long as the file is open,
//! gone with the process however it ends, and not shared with anybody who opens the file again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    /// Keeps the descriptor open, and with it the lock.
    _file: File,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else has it; what they wrote of themselves, where they have.
    Held(Option<String>),
    /// The system refuses.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Lock {
    /// Takes the lock on a file, which is made if need be, and writes `holder` into it for others
    /// to read. Does not wait.
    ///
    /// # Errors
    /// Somebody else holds it, or the system refuses.
    pub fn take(path: &Path, holder: &str) -> Result<Self, LockError> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if !try_lock(&file)? {
            const HOLDER_LEN_MAX: u64 = 256;
            let mut text = String::new();
            let known = Read::take(&file, HOLDER_LEN_MAX).read_to_string(&mut text).is_ok();
            let text = text.trim();
            return Err(LockError::Held((known && !text.is_empty()).then(|| text.to_owned())));
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{holder}")?;
        Ok(Self { _file: file })
    }
}

/// Whether the lock was free.
fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: `flock` is plain data for which zeroes are valid: the whole file, from its start.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = libc::F_WRLCK.try_into().unwrap_or_default();
    request.l_whence = libc::SEEK_SET.try_into().unwrap_or_default();
    // SAFETY: the descriptor is open while `file` is borrowed, and `request` outlives the call,
    // which only reads it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
