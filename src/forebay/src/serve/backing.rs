//! Whether a volume's backing device is the one that it was made over.

use forebay_cluster::{FileStore, VolumeKey};
use forebay_control::config::{ServeConfig, VolumeConfig};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_driver::{DeviceUri, DriverContext};
use forebay_io::{Device, DeviceInfo};
use forebay_reactor::{LoopTime, MonotonicClock, RegionTable, WaitSet};
use std::path::Path;
use std::sync::Arc;

/// Checks the backing files and block devices, and the ordered journals, of all volumes that there were before, while nothing
/// has touched a cache device yet: recovery writes to it, and a refusal must leave everything as it
/// was. Devices behind a network are checked when they are opened to be used.
///
/// # Errors
/// The first device that cannot be opened or is not the volume's, with what to do.
pub(crate) fn check_all(config: &ServeConfig, store: &FileStore) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| ControlError::failed(format!("devices: {error}"));
    let wait = WaitSet::new().map_err(|error| failed(&error))?;
    let time = LoopTime::new(MonotonicClock.now());
    let context = DriverContext::new(time, wait, Arc::new(RegionTable::new()));
    for volume in config.volumes.iter().filter(|volume| !volume.backing.contains("nvmf+")) {
        let Some(keyed) = store.find(&volume.name) else { continue };
        if path_of(&volume.backing).is_some_and(|path| !Path::new(&path).exists()) {
            // Opened with a size it would be made anew, blank.
            return Err(missing(&keyed.key, volume));
        }
        let device = forebay_driver::open(&volume.backing, &context)
            .map_err(|error| unopened(&volume.backing, &error))?;
        check(&keyed.key, volume, device.info())?;
        let journal = volume.ordered_journal.as_ref();
        if journal.is_some_and(|uri| !uri.contains("nvmf+")) {
            super::journal::check(volume, Some(&keyed.key), device.info())?;
        }
    }
    Ok(())
}

/// The path of a file or block device, out of what wraps it.
pub(super) fn path_of(uri: &str) -> Option<String> {
    let mut uri: DeviceUri = uri.parse().ok()?;
    loop {
        uri = match uri {
            DeviceUri::Uring { path, .. } => return Some(path),
            DeviceUri::Slow { inner, .. } | DeviceUri::Fault { inner, .. } => *inner,
            _ => return None,
        };
    }
}

/// A volume's backing device that is not there.
fn missing(key: &VolumeKey, volume: &VolumeConfig) -> ControlError {
    ControlError::failed(format!("the backing device of volume {} is not there", volume.name))
        .field("backing")
        .value(&volume.backing)
        .remedy(format!(
            "attach it: the volume belongs to \"{}\"; nothing was changed",
            key.backing_identity
        ))
}

/// A backing device that cannot be opened.
pub(crate) fn unopened(uri: &str, error: &dyn std::fmt::Display) -> ControlError {
    ControlError::failed(format!("the backing device cannot be opened: {error}"))
        .field("backing")
        .value(uri)
}

/// Checks a device against the volume's key.
///
/// # Errors
/// Unsafe: another device, or one that has shrunk.
pub(crate) fn check(key: &VolumeKey, config: &VolumeConfig, info: &DeviceInfo) -> Result<()> {
    let refuse = |message: String, remedy: &str| {
        Err(ControlError::new(ErrorKind::Unsafe, message)
            .field("backing")
            .value(&config.backing)
            .remedy(remedy))
    };
    if key.backing_identity != info.identity {
        return refuse(
            format!(
                "volume {} belongs to the backing device \"{}\", this is \"{}\"",
                key.name, key.backing_identity, info.identity
            ),
            "give it its own backing device. A copy restored elsewhere is another device: what is cached \
             does not fit it. Write the copy back onto the original, or serve it as a volume of \
             another name, without what is dirty in the cache. Nothing was changed",
        );
    }
    if info.size < key.size {
        return refuse(
            format!(
                "the backing device of volume {} has shrunk from {} to {} bytes",
                key.name, key.size, info.size
            ),
            "give it back its size; nothing was changed",
        );
    }
    if key.block_size != config.block_size {
        return refuse(
            format!(
                "volume {} was made with blocks of {} bytes, not {}",
                key.name, key.block_size, config.block_size
            ),
            "a block size is fixed when a volume is made",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn paths_are_found_inside_wrappers() {
        assert_eq!(path_of("uring:/dev/sdb"), Some("/dev/sdb".to_owned()));
        assert_eq!(
            path_of("fault:slow:uring:/a/b.img?size=8G&read_us=5"),
            Some("/a/b.img".to_owned())
        );
        assert_eq!(path_of("mem:?size=1G"), None);
    }
}
