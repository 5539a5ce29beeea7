//! What the store keeps of a volume, and which changes of it are allowed.

use forebay_io::Uuid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Cache modes, as they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is cached.
    PassThrough,
    /// Reads are cached.
    WriteAround,
    /// Reads and writes are cached; the backing store acknowledges.
    WriteThrough,
    /// The journal acknowledges.
    WriteBack,
    /// The journal acknowledges, and destage keeps the order of writes.
    WriteBackOrdered,
}

impl Mode {
    /// Whether the journal acknowledges.
    #[must_use]
    pub const fn is_write_back(self) -> bool {
        matches!(self, Self::WriteBack | Self::WriteBackOrdered)
    }
}

/// Who owns a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// Which run of the node it is; rises at each start.
    pub incarnation: u64,
}

/// A member of the in-sync replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its journal of this volume; nil until it has one.
    #[serde(with = "uuid_text")]
    pub journal: Uuid,
}

/// Where on a node a volume's cache is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The cache device's own identifier.
    #[serde(with = "uuid_text")]
    pub cache: Uuid,
    /// The logical shard on it.
    pub shard: u32,
}

/// What is kept of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeKey {
    /// Its name; unique among those that are not deleted.
    pub name: String,
    /// What hosts, journals and caches know it by; never used again. Fixed.
    #[serde(with = "uuid_text")]
    pub uuid: Uuid,
    /// The namespace's globally unique identifier. Fixed.
    #[serde(with = "uuid_text")]
    pub nguid: Uuid,
    /// The name of its subsystem. Fixed.
    pub subsystem: String,
    /// Its namespace identifier in the subsystem. Fixed.
    pub nsid: u32,
    /// Raised by every change.
    pub epoch: u64,
    /// Who owns it.
    pub owner: Owner,
    /// Raised when the owner, or its incarnation, changes.
    pub owner_epoch: u64,
    /// The in-sync replicas, the owner's own journal included.
    pub isr: Vec<Member>,
    /// The mode it is in.
    pub mode: Mode,
    /// The mode it is on its way to.
    pub target_mode: Mode,
    /// Journals that are wanted, the owner's included.
    pub replicas: u32,
    /// Journals that must have a write before it is acknowledged.
    pub min_copies: u32,
    /// Whether no journal holds anything that the backing store lacks.
    pub clean: bool,
    /// Bytes.
    pub size: u64,
    /// Logical block size in bytes. Fixed.
    pub block_size: u32,
    /// The URI of the backing device.
    pub backing: String,
    /// What the backing device states of itself.
    pub backing_identity: String,
    /// Where its cache is; `None` where it has none yet.
    pub placement: Option<Placement>,
    /// What the ordered journal states of itself that the volume has been served with ever since;
    /// `None` where it was served without one last. A batch in any other is out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_journal: Option<String>,
}

/// A key with its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyed {
    /// Rises with every change of any key; what a swap names.
    pub revision: u64,
    /// The key.
    pub key: VolumeKey,
}

/// What is left of a deleted volume, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// The volume's identifier.
    #[serde(with = "uuid_text")]
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its subsystem: a namespace identifier that hosts have seen there is not given again.
    pub subsystem: String,
    /// Its namespace identifier.
    pub nsid: u32,
    /// When it was deleted.
    pub revision: u64,
}

/// What a new volume is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// The subsystem that it shares with others; `None`: one of its own, with its name.
    pub group: Option<String>,
    /// Its mode.
    pub mode: Mode,
    /// Bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// The URI of the backing device.
    pub backing: String,
    /// What the backing device states of itself.
    pub backing_identity: String,
    /// Where its cache is.
    pub placement: Option<Placement>,
}

/// Says why a key may not become another; `None` where it may. `epoch` is the store's to raise.
#[must_use]
pub(crate) fn forbidden(old: &VolumeKey, new: &VolumeKey) -> Option<&'static str> {
    if (old.uuid, old.nguid, old.nsid) != (new.uuid, new.nguid, new.nsid)
        || old.subsystem != new.subsystem
        || old.block_size != new.block_size
    {
        return Some("uuid, nguid, nsid, subsystem and block size are fixed when a volume is made");
    }
    if old.name != new.name {
        return Some("a volume cannot be renamed");
    }
    if old.mode.is_write_back() && !new.mode.is_write_back() && !new.clean {
        // Otherwise a restart in the new mode would overlook what is still dirty.
        return Some("the mode leaves write-back only in the swap that sets `clean`");
    }
    if new.mode != old.mode && new.mode != old.target_mode {
        return Some("`target_mode` is set before `mode`");
    }
    if !new.mode.is_write_back() && !new.clean && old.clean {
        return Some("only a volume in write-back becomes dirty");
    }
    if new.size < old.size && !(old.clean && new.clean) {
        return Some("a volume shrinks only while it is clean");
    }
    if new.size == 0 || !new.size.is_multiple_of(u64::from(new.block_size)) {
        return Some("the size is a multiple of the block size, and not zero");
    }
    let owner_changes = old.owner != new.owner;
    if owner_changes != (new.owner_epoch > old.owner_epoch) || new.owner_epoch < old.owner_epoch {
        return Some("the owner epoch rises when the owner changes, and only then");
    }
    if !new.isr.iter().any(|member| member.node == new.owner.node) {
        return Some("the owner is a member of the in-sync replicas");
    }
    None
}

/// UUIDs as text.
pub(crate) mod uuid_text {
    use super::{Deserialize, Deserializer, Serializer, Uuid};

    pub(crate) fn serialize<S: Serializer>(uuid: &Uuid, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(uuid)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}
