//! Opening a file or block device: flags, lock, size, and what it states of itself.

use super::identity::{self, BlockQueue};
use core::fmt;
use core::time::Duration;
use forebay_io::DeviceInfo;
use forebay_reactor::pool::MAX_BUFFER;
use std::ffi::CString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// How long to wait for whoever holds a file. The kernel closes the files of a ring some time after
/// the process that had it was killed, and a node that is started again at once must not fail by that.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Why a file or block device cannot be used.
#[derive(Debug)]
pub enum UringError {
    /// The system refused something.
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: String,
        /// Its answer.
        error: io::Error,
    },
    /// io_uring is not to be had.
    NoRing(io::Error),
    /// There is no such file, and no size to make one with.
    Missing(String),
    /// There is a file, but it is empty.
    Empty(String),
    /// It exists with another size than the URI asks for.
    OtherSize {
        /// The path.
        path: String,
        /// Bytes there are.
        found: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// Too small for one block, or not a multiple of its block size.
    BadSize {
        /// The path.
        path: String,
        /// Bytes there are, or were asked for.
        size: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// Another process, or another device of this one, uses it.
    InUse(String),
    /// Neither a file nor a block device.
    NotADevice(String),
}

impl fmt::Display for UringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, path, error } => write!(f, "{what} {path}: {error}"),
            Self::NoRing(error) => write!(
                f,
                "io_uring is not available: {error}; it wants Linux 5.11 or newer, \
                 `sysctl kernel.io_uring_disabled=0`, and in a container a seccomp profile that allows it"
            ),
            Self::Missing(path) => write!(
                f,
                "{path} does not exist; give its size to have it made: uring:{path}?size=8G"
            ),
            Self::Empty(path) => write!(
                f,
                "{path} is empty, perhaps cut short; nothing was changed: restore it, or remove it to have \
                 it made anew"
            ),
            Self::OtherSize { path, found, wanted } => write!(
                f,
                "{path} has {found} bytes, not the {wanted} that are asked for; nothing was changed: \
                 correct the size in the URI, or leave it out"
            ),
            Self::BadSize { path, size, block_size } => write!(
                f,
                "{path}: {size} bytes; a device has a multiple of its block size, {block_size}, and not 0"
            ),
            Self::InUse(path) => write!(
                f,
                "{path} is in use: another process, a mount, or another part of this configuration has it; \
                 stop that first (`fuser -v {path}` names processes)"
            ),
            Self::NotADevice(path) => write!(f, "{path} is neither a file nor a block device"),
        }
    }
}

impl std::error::Error for UringError {}

/// An open file with what is known of it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) info: DeviceInfo,
    pub(super) block_device: bool,
    pub(super) direct: bool,
}

fn io_error(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> UringError {
    let path = path.to_owned();
    move |error| UringError::Io { what, path, error }
}

/// Opens `path` exclusively, making a sparse file of `size` where there is none.
pub(super) fn open(
    path: &str,
    size: Option<u64>,
    patience: Duration,
) -> Result<Opened, UringError> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error("cannot look at", path)(error)),
    };
    let block_device = metadata.as_ref().is_some_and(|m| m.file_type().is_block_device());
    match (&metadata, size) {
        (Some(metadata), _) if !block_device && !metadata.is_file() => {
            return Err(UringError::NotADevice(path.to_owned()));
        }
        (Some(_), _) => {}
        (None, None) => return Err(UringError::Missing(path.to_owned())),
        (None, Some(size)) => make(path, size)?,
    }
    let until = std::time::Instant::now() + patience;
    let (file, direct) = loop {
        let opened = open_file(path, block_device)
            .and_then(|(file, direct)| lock(&file, path).map(|()| (file, direct)));
        match opened {
            Err(UringError::InUse(_)) if std::time::Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            other => break other?,
        }
    };
    let metadata = file.metadata().map_err(io_error("cannot look at", path))?;
    let found = if block_device { device_size(&file, path)? } else { metadata.len() };
    if found == 0 && !block_device {
        return Err(UringError::Empty(path.to_owned()));
    }
    if let Some(wanted) = size.filter(|wanted| *wanted != found) {
        return Err(UringError::OtherSize { path: path.to_owned(), found, wanted });
    }
    let info = describe(&file, &metadata, found, block_device, direct);
    if found == 0 || !found.is_multiple_of(u64::from(info.block_size)) {
        let (path, block_size) = (path.to_owned(), info.block_size);
        return Err(UringError::BadSize { path, size: found, block_size });
    }
    Ok(Opened { file, info, block_device, direct })
}

fn describe(
    file: &File,
    metadata: &Metadata,
    size: u64,
    block_device: bool,
    direct: bool,
) -> DeviceInfo {
    let queue = BlockQueue::of(if block_device { metadata.rdev() } else { metadata.dev() });
    let block_size = match (block_device, direct) {
        (true, _) => sector_size(file),
        (false, true) => file_alignment(file),
        (false, false) => 512,
    };
    let (deallocate, write_zeroes) = if block_device {
        (queue.zeroes_without_writing(), true)
    } else {
        let holes = has_holes(file, size);
        (holes, holes)
    };
    DeviceInfo {
        size,
        block_size,
        atomic_write: block_size,
        // A write to a file is not durable without fdatasync even where the disk has no volatile cache:
        // the file system keeps new extents, and the end of a fresh one's "unwritten" mark, in memory
        // until its journal is committed. The page cache is volatile in any case.
        volatile_write_cache: !block_device || !direct || queue.volatile_write_cache(),
        optimal_io: queue.optimal_io().unwrap_or(0).max(block_size).max(4096),
        max_io: u32::try_from(MAX_BUFFER).unwrap_or(u32::MAX),
        deallocate,
        write_zeroes,
        identity: if block_device { queue.identity() } else { identity::of_file(file, metadata) },
    }
}

/// Makes a sparse file that is whole or not there at all, whenever the power fails.
fn make(path: &str, size: u64) -> Result<(), UringError> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(UringError::BadSize { path: path.to_owned(), size, block_size: 512 });
    }
    let fresh = format!("{path}.new-{}", std::process::id());
    let failed = io_error("cannot make", path);
    let made = (|| {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.set_len(size)?;
        file.sync_all()?;
        rename_new(&fresh, path)?;
        let directory = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    })();
    made.map_err(|error| {
        // Nothing is left behind, so far as the system lets us.
        let _ = std::fs::remove_file(&fresh);
        failed(error)
    })
}

/// Renames, unless somebody made the target in the meantime.
fn rename_new(from: &str, to: &str) -> io::Result<()> {
    let text = |path: &str| CString::new(Path::new(path).as_os_str().as_bytes());
    let (from_text, to_text) = (text(from)?, text(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: both texts are valid and end with zero.
    let result = unsafe {
        libc::renameat2(here, from_text.as_ptr(), here, to_text.as_ptr(), libc::RENAME_NOREPLACE)
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // File systems without RENAME_NOREPLACE have hard links, which replace nothing either.
        error if error.raw_os_error() == Some(libc::EINVAL) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        error => Err(error),
    }
}

/// Opens with O_DIRECT, unless the file system refuses it; whether it did not.
fn open_file(path: &str, block_device: bool) -> Result<(File, bool), UringError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // O_EXCL without O_CREAT: a block device that is mounted or held exclusively is refused.
    let exclusive = if block_device { libc::O_EXCL } else { 0 };
    let mut attempt =
        |direct| options.custom_flags(direct | exclusive | libc::O_CLOEXEC).open(path);
    let opened = match attempt(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            attempt(0).map(|file| (file, false))
        }
        other => other.map(|file| (file, true)),
    };
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => UringError::InUse(path.to_owned()),
        _ => io_error("cannot open", path)(error),
    })
}

/// An open file description lock on all of the file: it belongs to this opening, not to the process.
fn lock(file: &File, path: &str) -> Result<(), UringError> {
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or(1),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and `whole` is a valid lock description during the call.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) };
    if taken == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(UringError::InUse(path.to_owned())),
        _ => Err(io_error("cannot lock", path)(error)),
    }
}

const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

fn device_size(file: &File, path: &str) -> Result<u64, UringError> {
    let mut size = 0u64;
    // SAFETY: this request writes eight bytes to the place it is given.
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) } != 0;
    if failed {
        return Err(io_error("cannot ask the size of", path)(io::Error::last_os_error()));
    }
    Ok(size)
}

fn sector_size(file: &File) -> u32 {
    let mut size: libc::c_int = 512;
    // SAFETY: this request writes one int to the place it is given; a refusal leaves it as it is.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) };
    u32::try_from(size).unwrap_or(512).max(512)
}

/// What direct I/O on a file must be aligned to: what the file system says (Linux 6.1), else the usual
/// sector, unless the disk's are larger.
fn file_alignment(file: &File) -> u32 {
    let mut stat = core::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; `stat` has room for the answer and
    // is valid when zeroed.
    let stat = unsafe {
        let mask = libc::STATX_DIOALIGN;
        let empty = c"".as_ptr();
        libc::statx(file.as_raw_fd(), empty, libc::AT_EMPTY_PATH, mask, stat.as_mut_ptr());
        stat.assume_init()
    };
    let said = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0;
    if said {
        return stat.stx_dio_offset_align.clamp(512, 4096);
    }
    let device = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    BlockQueue::of(device).logical_block_size().unwrap_or(512)
}

/// Whether the file system can make holes: tried beyond the end, where it changes nothing.
fn has_holes(file: &File, size: u64) -> bool {
    let Ok(end) = i64::try_from(size.next_multiple_of(4096)) else { return false };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, end, 4096) == 0 }
}

/// Sets aside the space of a file; what it holds stays. Kept by size, so that it never grows.
pub(super) fn reserve(file: &File, size: u64) -> io::Result<()> {
    let missing = unreserved(file, size);
    if missing == 0 {
        return Ok(());
    }
    // Asked first: a call that fails midway would have taken all the space that is left.
    if free(file)? < missing {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is passed.
    match unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes that a file's file system has left for everybody.
fn free(file: &File) -> io::Result<u64> {
    let mut stat = core::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: there is room for the answer, which is valid when zeroed.
    let stat = unsafe {
        if libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of a file without space of their own. A file system that cannot tell has it all.
pub(super) fn unreserved(file: &File, size: u64) -> u64 {
    // `st_blocks` counts 512 bytes, whatever the file system's block is.
    file.metadata().map_or(0, |metadata| size.saturating_sub(metadata.blocks() * 512))
}
