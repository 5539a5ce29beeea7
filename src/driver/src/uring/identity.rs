//! What tells a file or disk from another across restarts, and what the kernel says of a disk.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A block device as sysfs shows it.
pub(super) struct BlockQueue {
    /// The folder of the device, which may be a partition.
    device: PathBuf,
    /// The folder of the whole disk; a partition has no queue of its own.
    disk: PathBuf,
}

impl BlockQueue {
    /// The device with this number, which need not exist: then nothing is known of it.
    pub(super) fn of(device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let device = link.canonicalize().unwrap_or(link);
        Self::at(device)
    }

    pub(super) fn at(device: PathBuf) -> Self {
        let partition = device.join("partition").exists();
        let parent = device.parent().filter(|_| partition).map(Path::to_path_buf);
        Self { disk: parent.unwrap_or_else(|| device.clone()), device }
    }

    fn queue(&self, name: &str) -> Option<String> {
        read(&self.disk.join("queue").join(name))
    }

    fn queue_number(&self, name: &str) -> Option<u32> {
        self.queue(name)?.parse().ok()
    }

    /// Whether the disk may lose completed writes at a power loss. Unknown counts as yes.
    pub(super) fn volatile_write_cache(&self) -> bool {
        self.queue("write_cache").is_none_or(|text| text != "write through")
    }

    /// Whether the disk zeroes ranges by itself.
    pub(super) fn zeroes_without_writing(&self) -> bool {
        self.queue("write_zeroes_max_bytes").is_some_and(|text| text != "0")
    }

    /// The preferred granularity in bytes, if the disk states one.
    pub(super) fn optimal_io(&self) -> Option<u32> {
        let stated = self.queue_number("optimal_io_size").filter(|size| *size > 0);
        stated.or_else(|| self.queue_number("physical_block_size"))
    }

    /// Bytes of a sector.
    pub(super) fn logical_block_size(&self) -> Option<u32> {
        self.queue_number("logical_block_size")
    }

    /// A text that stays with the disk: its WWID, UUID or serial number, and the place of a partition on
    /// it. Without any of them, its name and size, which is all there is.
    pub(super) fn identity(&self) -> String {
        // NVMe; SCSI; device mapper; MD; virtio; NVMe and ATA through their controllers.
        let places = ["wwid", "device/wwid", "dm/uuid", "md/uuid", "serial", "device/serial"];
        let named = places.iter().find_map(|place| {
            let text = read(&self.disk.join(place)).filter(|text| !text.is_empty())?;
            Some(format!("{} {text}", place.rsplit('/').next().unwrap_or(place)))
        });
        // A loop device is what its file is.
        let file = || {
            let path = read(&self.disk.join("loop/backing_file"))?;
            let file = File::open(path).ok()?;
            let metadata = file.metadata().ok()?;
            Some(format!("loop of {}", of_file(&file, &metadata)))
        };
        let name = self.disk.file_name().unwrap_or_default().to_string_lossy();
        let size = read(&self.disk.join("size")).unwrap_or_default();
        let disk = named.or_else(file).unwrap_or_else(|| format!("name {name} sectors {size}"));
        match read(&self.device.join("start")).filter(|_| self.disk != self.device) {
            Some(start) => format!("block {disk} from {start}"),
            None => format!("block {disk}"),
        }
    }
}

/// A file by its inode and the nanosecond of its birth: independent of its path, of the number that its
/// disk has this time, and of the kernel's version. A copy is another file.
pub(super) fn of_file(file: &File, metadata: &Metadata) -> String {
    let birth = file.metadata().and_then(|metadata| metadata.created());
    match birth.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        Some(since) => format!("file inode {} born {}", metadata.ino(), since.as_nanos()),
        // No time of birth (NFS): the device number is the next best.
        None => format!("file inode {} on {}", metadata.ino(), metadata.dev()),
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
