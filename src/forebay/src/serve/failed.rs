//! Caches that failed while they were in use. From then on writes go past such a cache to the backing
//! devices, so that what is dirty in it grows stale: it must not be served again as if it were
//! whole. A mark in the state directory says so before the first write goes past it.

use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_io::Uuid;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

fn mark(state_dir: &Path, cache: Uuid) -> PathBuf {
    state_dir.join(format!("cache-{cache}.failed"))
}

/// Marks a cache, durably.
pub(crate) fn note(state_dir: &Path, cache: Uuid, why: &str) -> io::Result<()> {
    let mut file = File::create(mark(state_dir, cache))?;
    writeln!(file, "{why}")?;
    file.sync_all()?;
    File::open(state_dir)?.sync_all()
}

/// Refuses a cache that is marked.
///
/// # Errors
/// Unsafe, with what to do.
pub(crate) fn check(state_dir: &Path, cache: Uuid, device: &str) -> Result<()> {
    let path = mark(state_dir, cache);
    let why = match fs::read_to_string(&path) {
        Ok(why) => why,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(ControlError::failed(format!(
                "{} cannot be read: {error}",
                path.display()
            )));
        }
    };
    let message = format!(
        "cache {cache} failed while it was in use ({}); writes have gone past it since, so that what \
         is dirty in it is older than the backing devices",
        why.trim()
    );
    let remedy = "what it alone had is lost: make a cache device anew (`forebay format DEVICE --force NAME`), \
         then `forebay volume recover NAME --lost-cache` for each of its volumes";
    let error = ControlError::new(ErrorKind::Unsafe, message).field("cache.device").value(device);
    Err(error.remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_cache_is_refused_and_no_other() {
        let dir = std::env::temp_dir().join(format!("forebay-failed-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (bad, good) = (Uuid([1; 16]), Uuid([2; 16]));
        assert!(check(&dir, bad, "x").is_ok());
        note(&dir, bad, "I/O error").unwrap();
        let error = check(&dir, bad, "x").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsafe);
        assert!(error.to_string().contains("I/O error"));
        assert!(check(&dir, good, "x").is_ok());
        fs::remove_dir_all(&dir).unwrap();
    }
}
