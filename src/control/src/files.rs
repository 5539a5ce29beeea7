//! Replacing a small file so that a crash leaves the old one or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest file that [`read_bounded`] takes.
pub const FILE_LEN_MAX: u64 = 64 << 20;

/// Where the new content is written before it takes the old one's place.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Replaces `path` by `content`: written beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// Those of the system; the old content is then still there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = temporary(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// The content of a file; `None` where there is no file.
///
/// # Errors
/// Those of the system, and a file larger than [`FILE_LEN_MAX`].
pub fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if meta.len() > FILE_LEN_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} bytes, more than the {FILE_LEN_MAX} that it can have", meta.len()),
        ));
    }
    fs::read(path).map(Some)
}
