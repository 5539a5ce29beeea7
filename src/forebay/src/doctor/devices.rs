//! Checks of block devices: above all whether they lose completed writes with the power.

use super::{Check, Machine, Verdict};
use forebay_control::ServeConfig;
use forebay_control::value::Durability;
use std::path::Path;

/// The block devices of a configuration; without one every NVMe device there is.
pub(super) fn caches(machine: &Machine<'_>, config: Option<&ServeConfig>) -> Vec<Check> {
    let Some(config) = config else {
        let names = machine.list("/sys/block").into_iter().filter(|n| n.starts_with("nvme"));
        return names.map(|name| write_cache(machine, &name, Durability::Auto)).collect();
    };
    let caches = config.caches.iter().map(|cache| (cache.device.as_str(), cache.durability));
    let backings = config.volumes.iter().map(|v| (v.backing.as_str(), Durability::Auto));
    let mut all = Vec::new();
    for (uri, durability) in caches.chain(backings) {
        let Some(path) = local_path(uri) else { continue };
        match block_name(machine, path) {
            Some(name) => all.push(write_cache(machine, &name, durability)),
            None => all.push(presence(path, uri.contains("size="))),
        }
    }
    all
}

/// The path of a `uring:` device, through its wrappers.
fn local_path(uri: &str) -> Option<&str> {
    let mut rest = uri;
    while let Some(tail) = rest.strip_prefix("slow:").or_else(|| rest.strip_prefix("fault:")) {
        rest = tail;
    }
    rest.strip_prefix("uring:")?.split('?').next()
}

/// The name below /sys/block of a device node, a partition's disk included.
fn block_name(machine: &Machine<'_>, path: &str) -> Option<String> {
    let real = std::fs::canonicalize(path).ok()?;
    let name = real.file_name()?.to_str()?;
    let disks = machine.list("/sys/block");
    if real.parent() != Some(Path::new("/dev")) {
        return None;
    }
    // The longest disk's name that it starts with: nvme0n1p2 is a part of nvme0n1.
    disks.into_iter().filter(|disk| name.starts_with(disk.as_str())).max_by_key(String::len)
}

fn write_cache(machine: &Machine<'_>, name: &str, durability: Durability) -> Check {
    let cache = machine.read(&format!("/sys/block/{name}/queue/write_cache"));
    let (verdict, measured) = match (cache.as_deref(), durability) {
        (Some("write through"), _) => (Verdict::Ok, "no volatile write cache".to_owned()),
        (Some("write back"), Durability::Protected) => {
            (Verdict::Ok, "a write cache, declared to be protected".to_owned())
        }
        (Some("write back"), _) => (Verdict::Advice, "a volatile write cache".to_owned()),
        _ => (Verdict::Unknown, "not known".to_owned()),
    };
    Check {
        name: format!("write cache of {name}"),
        verdict,
        measured,
        wanted: "none, or one that is protected against power loss",
        fix: "if the drive's data sheet says that it is protected: `[[cache]] durability = \
              \"protected\"`; else use a drive that is"
            .to_owned(),
        why: "with a volatile one the namespace says so to hosts, and their Flush and FUA wait \
              for the drive's media",
    }
}

/// A file, or a device that is not there.
fn presence(path: &str, is_made: bool) -> Check {
    let exists = Path::new(path).exists();
    let (verdict, measured) = match (exists, is_made) {
        (true, _) => (Verdict::Ok, "a file"),
        (false, true) => (Verdict::Ok, "not there yet: it is made at start"),
        (false, false) => (Verdict::Problem, "not there"),
    };
    Check {
        name: format!("device {path}"),
        verdict,
        measured: measured.to_owned(),
        wanted: "an existing file or device, or ?size= to make a file",
        fix: "name another, or add ?size=8G".to_owned(),
        why: "a volume or cache is configured on it",
    }
}
