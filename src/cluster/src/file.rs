//! The keys of one node alone, in a file.
//!
//! The file is replaced by fsync and rename, so that a crash leaves the old or the new one whole,
//! and carries a CRC32C of its content, so that a damaged one is refused, not believed. It is
//! written only under the lock, which is the lease: whoever has it owns the volumes.

use crate::key::{Keyed, Member, NewVolume, Owner, Tombstone, VolumeKey, forbidden, uuid_text};
use crate::lock::{Lock, LockError};
use forebay_io::Uuid;
use forebay_io::crc::crc32c;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The name of the file in the state directory.
pub const STORE_FILE: &str = "volumes.json";
/// The name of the file that is locked; another, because the store's own is replaced.
pub const LOCK_FILE: &str = "volumes.lock";
/// The version of the format that is written, and the only one that is read.
pub const STORE_VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const STORE_LEN_MAX: u64 = 64 << 20;
/// Most volumes, and most tombstones.
const KEYS_MAX: usize = 65536;

/// Why the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store.
    #[error(
        "the state directory {} is in use by {}: stop that process first, or use another directory",
        dir.display(), holder.as_deref().unwrap_or("another process")
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// What the process wrote of itself.
        holder: Option<String>,
    },
    /// The system refuses.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error(
        "the store {} is damaged: {why}; nothing was changed. Put back a copy of it; without one, \
         the volumes can be made again over their backing devices, with cold caches",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file is of another version.
    #[error(
        "the store {} has version {found}, this program reads {STORE_VERSION}: start the version \
         of forebay that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// There is no such volume.
    #[error("there is no volume {0} in the store")]
    NoSuchVolume(String),
    /// The name is taken.
    #[error("there is a volume `{0}` already")]
    Exists(String),
    /// The key has changed since it was read.
    #[error("volume `{name}` has revision {found}, not {expected}: read it again")]
    Conflict {
        /// The volume.
        name: String,
        /// The revision that the swap named.
        expected: u64,
        /// The revision that it has.
        found: u64,
    },
    /// The change is not allowed.
    #[error("volume `{name}` cannot be changed so: {why}")]
    Forbidden {
        /// The volume.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// There is no room.
    #[error("the store has {KEYS_MAX} volumes, as many as it can")]
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(with = "uuid_text")]
    cluster: Uuid,
    /// Rises at each start.
    incarnation: u64,
    /// Of the kernel's run in which the store was opened last.
    boot_id: String,
    /// Rises with every change.
    revision: u64,
    volumes: Vec<Keyed>,
    tombstones: Vec<Tombstone>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    schema_version: u32,
    /// Of `content` as it is written without white space, eight hexadecimal digits.
    crc32c: String,
    content: Content,
}

/// The store of one node alone. Holds the lock as long as it lives.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    content: Content,
    node: String,
    same_boot: bool,
    _lock: Lock,
}

impl FileStore {
    /// Opens the store of a directory, or makes one where there is none; takes the lock; raises
    /// the incarnation, and with it every volume's owner epoch.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be read, believed or written. Nothing is then
    /// changed.
    pub fn open(dir: &Path, node: &str) -> Result<Self, StoreError> {
        let io = |what, path: &Path, source| StoreError::Io { what, path: path.to_owned(), source };
        fs::create_dir_all(dir).map_err(|error| io("cannot make", dir, error))?;
        let lock_path = dir.join(LOCK_FILE);
        let holder = format!("node `{node}`, process {}", std::process::id());
        let lock = Lock::take(&lock_path, &holder).map_err(|error| match error {
            LockError::Held(holder) => StoreError::Locked { dir: dir.to_owned(), holder },
            LockError::Io(error) => io("cannot lock", &lock_path, error),
        })?;
        let path = dir.join(STORE_FILE);
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default();
        let before = match load(&path)? {
            Some(content) => content,
            None => Content {
                cluster: random_uuid().map_err(|error| io("cannot read", &path, error))?,
                incarnation: 0,
                boot_id: String::new(),
                revision: 0,
                volumes: Vec::new(),
                tombstones: Vec::new(),
            },
        };
        let same_boot = !boot_id.is_empty() && before.boot_id == boot_id;
        let mut store =
            Self { path, content: before.clone(), node: node.to_owned(), same_boot, _lock: lock };
        let mut content = Content { incarnation: before.incarnation + 1, boot_id, ..before };
        let owner = Owner { node: node.to_owned(), incarnation: content.incarnation };
        content.revision += 1;
        for keyed in &mut content.volumes {
            keyed.revision = content.revision;
            keyed.key.owner = owner.clone();
            keyed.key.owner_epoch += 1;
            keyed.key.epoch += 1;
            // One node alone: it is its own only replica, under whichever name it goes now.
            for member in &mut keyed.key.isr {
                member.node = node.to_owned();
            }
        }
        store.write(content)?;
        Ok(store)
    }

    /// The identifier of this store.
    #[must_use]
    pub fn cluster_id(&self) -> Uuid {
        self.content.cluster
    }

    /// Which run of the node this is, from 1.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.content.incarnation
    }

    /// Whether the machine has not been started anew since the store was opened before: nothing
    /// that was written then can have been lost with the power.
    #[must_use]
    pub fn same_boot(&self) -> bool {
        self.same_boot
    }

    /// Every volume, in the order in which they were made.
    #[must_use]
    pub fn volumes(&self) -> &[Keyed] {
        &self.content.volumes
    }

    /// Every deleted volume.
    #[must_use]
    pub fn tombstones(&self) -> &[Tombstone] {
        &self.content.tombstones
    }

    /// The volume with this identifier.
    #[must_use]
    pub fn get(&self, uuid: Uuid) -> Option<&Keyed> {
        self.content.volumes.iter().find(|keyed| keyed.key.uuid == uuid)
    }

    /// The volume with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Keyed> {
        self.content.volumes.iter().find(|keyed| keyed.key.name == name)
    }

    /// Makes a volume that this node owns. It starts clean: the owner clears that by a swap before
    /// it acknowledges a write that is only in the journal.
    ///
    /// # Errors
    /// The name is taken, or the store cannot be written; then nothing is changed.
    pub fn create(&mut self, new: NewVolume) -> Result<Keyed, StoreError> {
        if self.find(&new.name).is_some() {
            return Err(StoreError::Exists(new.name));
        }
        if self.content.volumes.len() >= KEYS_MAX {
            return Err(StoreError::Full);
        }
        let uuid = random_uuid().map_err(|source| StoreError::Io {
            what: "cannot read random bytes for",
            path: self.path.clone(),
            source,
        })?;
        let nsid = match &new.group {
            None => 1,
            Some(group) => self.next_nsid(group),
        };
        let key = VolumeKey {
            subsystem: new.group.unwrap_or_else(|| new.name.clone()),
            name: new.name,
            uuid,
            nguid: uuid,
            nsid,
            epoch: 1,
            owner: Owner { node: self.node.clone(), incarnation: self.content.incarnation },
            owner_epoch: 1,
            isr: vec![Member { node: self.node.clone(), journal: Uuid::NIL }],
            mode: new.mode,
            target_mode: new.mode,
            replicas: 1,
            min_copies: 1,
            clean: true,
            size: new.size,
            block_size: new.block_size,
            backing: new.backing,
            backing_identity: new.backing_identity,
            placement: new.placement,
            ordered_journal: None,
        };
        if let Some(why) = forbidden(&key, &key) {
            return Err(StoreError::Forbidden { name: key.name, why });
        }
        let mut content = self.content.clone();
        content.revision += 1;
        let keyed = Keyed { revision: content.revision, key };
        content.volumes.push(keyed.clone());
        self.write(content)?;
        Ok(keyed)
    }

    /// One above every namespace identifier that hosts can have seen there.
    fn next_nsid(&self, group: &str) -> u32 {
        let live = self.content.volumes.iter().map(|k| (&k.key.subsystem, k.key.nsid));
        let dead = self.content.tombstones.iter().map(|t| (&t.subsystem, t.nsid));
        let highest = live.chain(dead).filter(|(name, _)| *name == group).map(|(_, nsid)| nsid);
        highest.max().unwrap_or(0) + 1
    }

    /// Replaces a volume's key if its revision is still `expected`. The store raises the epoch.
    /// Returns the key as it is then.
    ///
    /// # Errors
    /// No such volume, another revision, a change that is not allowed, or a store that cannot be
    /// written; then nothing is changed.
    pub fn swap(&mut self, expected: u64, new: VolumeKey) -> Result<Keyed, StoreError> {
        let at = self.position(new.uuid, expected)?;
        let mut content = self.content.clone();
        content.revision += 1;
        let Some(slot) = content.volumes.get_mut(at) else {
            return Err(StoreError::NoSuchVolume(new.uuid.to_string()));
        };
        if let Some(why) = forbidden(&slot.key, &new) {
            return Err(StoreError::Forbidden { name: new.name, why });
        }
        let epoch = slot.key.epoch + 1;
        *slot = Keyed { revision: content.revision, key: VolumeKey { epoch, ..new } };
        let keyed = slot.clone();
        self.write(content)?;
        Ok(keyed)
    }

    /// Deletes a volume if its revision is still `expected`; a tombstone stays.
    ///
    /// # Errors
    /// As for [`FileStore::swap`].
    pub fn delete(&mut self, uuid: Uuid, expected: u64) -> Result<Tombstone, StoreError> {
        let at = self.position(uuid, expected)?;
        if self.content.tombstones.len() >= KEYS_MAX {
            return Err(StoreError::Full);
        }
        let mut content = self.content.clone();
        content.revision += 1;
        let VolumeKey { name, subsystem, nsid, .. } = content.volumes.remove(at).key;
        let tombstone = Tombstone { uuid, name, subsystem, nsid, revision: content.revision };
        content.tombstones.push(tombstone.clone());
        self.write(content)?;
        Ok(tombstone)
    }

    fn position(&self, uuid: Uuid, expected: u64) -> Result<usize, StoreError> {
        let volumes = &self.content.volumes;
        let (at, keyed) = volumes
            .iter()
            .enumerate()
            .find(|(_, keyed)| keyed.key.uuid == uuid)
            .ok_or_else(|| StoreError::NoSuchVolume(uuid.to_string()))?;
        if keyed.revision != expected {
            let (name, found) = (keyed.key.name.clone(), keyed.revision);
            return Err(StoreError::Conflict { name, expected, found });
        }
        Ok(at)
    }

    /// Puts the content on the medium, then takes it over.
    fn write(&mut self, content: Content) -> Result<(), StoreError> {
        let result = encode(&content).and_then(|bytes| replace(&self.path, &bytes));
        result.map_err(|source| StoreError::Io {
            what: "cannot write the store",
            path: self.path.clone(),
            source,
        })?;
        self.content = content;
        Ok(())
    }
}

fn encode(content: &Content) -> io::Result<Vec<u8>> {
    let crc = crc32c(&serde_json::to_vec(content)?);
    let envelope = Envelope {
        schema_version: STORE_VERSION,
        crc32c: format!("{crc:08x}"),
        content: content.clone(),
    };
    let mut bytes = serde_json::to_vec_pretty(&envelope)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = temporary(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself must survive a power loss before anything is built on it.
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The content of the file; `None` where there is none. What an interrupted write left beside it
/// is not looked at: it was never announced.
fn load(path: &Path) -> Result<Option<Content>, StoreError> {
    let io =
        |source| StoreError::Io { what: "cannot read the store", path: path.to_owned(), source };
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(STORE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > STORE_LEN_MAX {
        return Err(damaged(format!("it has more than {STORE_LEN_MAX} bytes")));
    }
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    match value.get("schema_version").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(STORE_VERSION) => {
            return Err(StoreError::Version { path: path.to_owned(), found });
        }
        _ => {}
    }
    let envelope: Envelope =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let crc = serde_json::to_vec(&envelope.content).map_err(|error| damaged(error.to_string()))?;
    let found = format!("{:08x}", crc32c(&crc));
    if found != envelope.crc32c {
        return Err(damaged(format!(
            "its content has the CRC32C {found}, written was {}",
            envelope.crc32c
        )));
    }
    Ok(Some(envelope.content))
}

fn random_uuid() -> io::Result<Uuid> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Uuid::from_random(bytes))
}

#[cfg(test)]
mod tests;
