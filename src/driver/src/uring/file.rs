//! Opening a file or block device: flags, lock, size, and what it states of itself.

use core::fmt;
use forebay_io::DeviceInfo;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

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
    /// There is no such file, and no size to make one with.
    Missing(String),
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
        /// Bytes.
        size: u64,
    },
    /// Another process, or another device of this one, uses it.
    InUse(String),
    /// Neither a file nor a block device.
    NotADevice(String),
}

impl fmt::Display for UringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, path, error } if path.is_empty() => write!(f, "{what}: {error}"),
            Self::Io { what, path, error } => write!(f, "{what} {path}: {error}"),
            Self::Missing(path) => write!(
                f,
                "{path} does not exist; give its size to have it made: uring:{path}?size=8G"
            ),
            Self::OtherSize { path, found, wanted } => write!(
                f,
                "{path} has {found} bytes, not the {wanted} that are asked for; nothing was changed: \
                 correct the size in the URI, or leave it out"
            ),
            Self::BadSize { path, size } => {
                write!(f, "{path} has {size} bytes; a device has a multiple of 512, and not 0")
            }
            Self::InUse(path) => write!(
                f,
                "{path} is in use: another process, or another part of this configuration, has it open; \
                 stop that first (`fuser -v {path}` names it)"
            ),
            Self::NotADevice(path) => write!(f, "{path} is neither a file nor a block device"),
        }
    }
}

impl std::error::Error for UringError {}

/// An open file with what is known of it.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) info: DeviceInfo,
    pub(super) block_device: bool,
}

fn io_error(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> UringError {
    let path = path.to_owned();
    move |error| UringError::Io { what, path, error }
}

/// Opens `path` exclusively, making a sparse file of `size` where there is none.
pub(super) fn open(path: &str, size: Option<u64>) -> Result<Opened, UringError> {
    let exists = Path::new(path).exists();
    if !exists && size.is_none() {
        return Err(UringError::Missing(path.to_owned()));
    }
    let (file, direct) = open_file(path, !exists)?;
    lock(&file, path)?;
    let metadata = file.metadata().map_err(io_error("cannot look at", path))?;
    let block_device = metadata.file_type().is_block_device();
    if !block_device && !metadata.is_file() {
        return Err(UringError::NotADevice(path.to_owned()));
    }
    if let Some(size) = size.filter(|_| !block_device && metadata.len() == 0) {
        file.set_len(size).map_err(io_error("cannot make room in", path))?;
        file.sync_all().map_err(io_error("cannot make room in", path))?;
    }
    let found = if block_device { device_size(&file, path)? } else { file.metadata().map_err(io_error("cannot look at", path))?.len() };
    if let Some(wanted) = size.filter(|wanted| *wanted != found && !block_device) {
        return Err(UringError::OtherSize { path: path.to_owned(), found, wanted });
    }
    let block_size = if block_device { sector_size(&file) } else { file_alignment(&file, direct) };
    if found == 0 || !found.is_multiple_of(u64::from(block_size)) {
        return Err(UringError::BadSize { path: path.to_owned(), size: found });
    }
    let device = if block_device { metadata.rdev() } else { metadata.dev() };
    let info = DeviceInfo {
        size: found,
        block_size,
        atomic_write: block_size,
        volatile_write_cache: write_cache(device),
        optimal_io: 4096,
        max_io: 1 << 20,
        deallocate: true,
        write_zeroes: true,
        identity: identity(&file, &metadata, device, block_device),
    };
    Ok(Opened { file, info, block_device })
}

/// O_DIRECT, unless the file system refuses it.
fn open_file(path: &str, create: bool) -> Result<(File, bool), UringError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create);
    // O_EXCL without O_CREAT: a block device that is mounted or held exclusively is refused.
    let block = Path::new(path).metadata().is_ok_and(|m| m.file_type().is_block_device());
    let exclusive = if block { libc::O_EXCL } else { 0 };
    for direct in [libc::O_DIRECT, 0] {
        match options.custom_flags(direct | exclusive | libc::O_CLOEXEC).open(path) {
            Ok(file) => return Ok((file, direct != 0)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(UringError::InUse(path.to_owned()));
            }
            Err(error) if direct != 0 && error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(io_error("cannot open", path)(error)),
        }
    }
    Err(UringError::NotADevice(path.to_owned()))
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

const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKSSZGET: libc::c_ulong = 0x1268;

fn device_size(file: &File, path: &str) -> Result<u64, UringError> {
    let mut size = 0u64;
    // SAFETY: this request writes eight bytes to the place it is given.
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) } != 0;
    if failed {
        return Err(io_error("cannot ask the size of", path)(io::Error::last_os_error()));
    }
    Ok(size)
}

fn sector_size(file: &File) -> u32 {
    let mut size: libc::c_int = 512;
    // SAFETY: this request writes one int to the place it is given.
    unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET as _, &raw mut size) };
    u32::try_from(size).unwrap_or(512).max(512)
}

/// What direct I/O on a file must be aligned to: what the file system says, else the usual 512.
fn file_alignment(file: &File, direct: bool) -> u32 {
    if !direct {
        return 512;
    }
    let mut stat = core::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; `stat` has room for the answer and
    // is valid when zeroed.
    let stat = unsafe {
        let mask = libc::STATX_DIOALIGN;
        let empty = c"".as_ptr();
        libc::statx(file.as_raw_fd(), empty, libc::AT_EMPTY_PATH, mask, stat.as_mut_ptr());
        stat.assume_init()
    };
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 { 512 } else { stat.stx_dio_offset_align.clamp(512, 4096) }
}

/// Whether the disk under a device number has a volatile write cache. Unknown counts as one.
fn write_cache(device: u64) -> bool {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition has no queue of its own; its disk is the folder above.
    [format!("{base}/queue/write_cache"), format!("{base}/../queue/write_cache")]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .is_none_or(|text| text.trim() != "write through")
}

/// What tells it from another across restarts and renames: a file by its inode and time of birth, a
/// block device by its WWID or serial number where it has one.
fn identity(file: &File, metadata: &std::fs::Metadata, device: u64, block_device: bool) -> String {
    if block_device {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let base = format!("/sys/dev/block/{major}:{minor}");
        let named = ["wwid", "device/wwid", "serial", "device/serial", "../wwid", "dm/uuid"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(format!("{base}/{name}")).ok())
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty());
        let partition = std::fs::read_to_string(format!("{base}/partition")).unwrap_or_default();
        return match named {
            Some(name) => format!("block {name} {}", partition.trim()).trim_end().to_owned(),
            None => format!("block {major}:{minor}"),
        };
    }
    let birth = file.metadata().ok().and_then(|m| m.created().ok());
    let birth = birth
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |span| span.as_nanos());
    format!("file inode {} born {birth}", metadata.ino())
}
