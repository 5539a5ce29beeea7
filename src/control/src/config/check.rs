//! What the sections of a configuration ask of each other.

use super::{CacheConfig, NodeConfig, ServeConfig, VolumeConfig};
use crate::error::{ControlError, Detail, ErrorKind};
use crate::fields::{ISSUES_MAX, Issue};
use crate::value::{Mode, NQN_LEN_MAX};

/// What sections ask of each other.
pub(super) fn check_together(
    node: &NodeConfig,
    caches: &[CacheConfig],
    volumes: &[(usize, VolumeConfig)],
    issues: &mut Vec<Issue>,
) {
    for (i, (at, volume)) in volumes.iter().enumerate() {
        let others = volumes.iter().take(i).map(|(_, other)| other);
        if let Some(conflict) = conflict(node, caches, others, volume)
            && issues.len() < ISSUES_MAX
        {
            let detail = Detail { remedy: Some(conflict.remedy), ..Detail::default() };
            issues.push(Issue { at: *at, message: conflict.message, detail });
        }
    }
    for (i, cache) in caches.iter().enumerate() {
        if caches.iter().take(i).any(|other| same_device(&other.device, &cache.device)) {
            let message = format!("the cache device {} is named twice", cache.device);
            issues.push(Issue { at: 0, message, detail: Detail::default() });
        }
    }
    if let (true, Some((at, volume))) =
        (caches.is_empty(), volumes.iter().find(|(_, v)| v.mode != Mode::PassThrough))
    {
        let remedy = "add: [[cache]] with device = \"uring:/dev/…\", or mode = \"pass-through\"";
        issues.push(Issue {
            at: *at,
            message: format!("volume `{}` wants a cache and there is no [[cache]]", volume.name),
            detail: Detail { remedy: Some(remedy.to_owned()), ..Detail::default() },
        });
    }
}

struct Conflict {
    kind: ErrorKind,
    message: String,
    remedy: String,
}

/// Checks a volume that is to be made against what there is.
pub(crate) fn check_volume(
    config: &ServeConfig,
    others: &[VolumeConfig],
    volume: &VolumeConfig,
) -> Result<(), ControlError> {
    match conflict(&config.node, &config.caches, others.iter(), volume) {
        Some(conflict) => {
            Err(ControlError::new(conflict.kind, conflict.message).remedy(conflict.remedy))
        }
        None => Ok(()),
    }
}

/// Whether two URIs name one device. Memory is another with every URI.
fn same_device(a: &str, b: &str) -> bool {
    let last = |uri: &str| {
        let mut rest = uri;
        while let Some(tail) = rest.strip_prefix("slow:").or_else(|| rest.strip_prefix("fault:")) {
            rest = tail;
        }
        // Parameters do not change which device it is, but for a remote namespace.
        let end = if rest.starts_with("uring:") { rest.find('?') } else { None };
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    let (a, b) = (last(a), last(b));
    a == b && !a.starts_with("mem:")
}

/// Two volumes of which one has the other's backing device or ordered journal as its journal.
fn journal_conflict(other: &VolumeConfig, volume: &VolumeConfig) -> Option<Conflict> {
    let same =
        |a: Option<&String>, b: Option<&String>| a.zip(b).is_some_and(|(a, b)| same_device(a, b));
    let (theirs, ours) = (other.ordered_journal.as_ref(), volume.ordered_journal.as_ref());
    let (name, of) = (&volume.name, &other.name);
    let (journal, what) = if same(ours, Some(&other.backing)) {
        (
            ours?,
            format!(
                "the ordered journal of volume `{name}` is the backing device of volume `{of}`"
            ),
        )
    } else if same(ours, theirs) {
        (ours?, format!("the volumes `{of}` and `{name}` have the same ordered journal"))
    } else if same(theirs, Some(&volume.backing)) {
        (
            theirs?,
            format!(
                "the backing device of volume `{name}` is the ordered journal of volume `{of}`"
            ),
        )
    } else {
        return None;
    };
    Some(Conflict {
        kind: ErrorKind::Exists,
        message: format!("{what}: {journal}"),
        remedy: "a journal holds one batch of one volume: give each volume a device of its own"
            .to_owned(),
    })
}

/// What a volume must not share with those before it.
fn conflict<'v>(
    node: &NodeConfig,
    caches: &[CacheConfig],
    others: impl Iterator<Item = &'v VolumeConfig>,
    volume: &VolumeConfig,
) -> Option<Conflict> {
    let found = |kind: ErrorKind, message: String, remedy: &str| {
        Some(Conflict { kind, message, remedy: remedy.to_owned() })
    };
    let name = &volume.name;
    let nqn_len = node.nqn_prefix.len() + 1 + volume.subsystem_name().len();
    if nqn_len > NQN_LEN_MAX {
        return found(
            ErrorKind::Invalid,
            format!(
                "the NQN of volume `{name}` would have {nqn_len} bytes, more than {NQN_LEN_MAX}"
            ),
            "shorten `node.nqn_prefix` or the name",
        );
    }
    if caches.iter().any(|cache| same_device(&cache.device, &volume.backing)) {
        return found(
            ErrorKind::Invalid,
            format!("the backing device of volume `{name}` is a cache device: {}", volume.backing),
            "name another device",
        );
    }
    if let Some(journal) = &volume.ordered_journal {
        let taken = if same_device(journal, &volume.backing) {
            Some("is its backing device")
        } else if caches.iter().any(|cache| same_device(&cache.device, journal)) {
            Some("is a cache device")
        } else {
            None
        };
        if let Some(taken) = taken {
            return found(
                ErrorKind::Invalid,
                format!("the ordered journal of volume `{name}` {taken}: {journal}"),
                "name a device of its own, best one that does not fail with the cache",
            );
        }
    }
    for other in others {
        if let Some(conflict) = journal_conflict(other, volume) {
            return Some(conflict);
        }
        if other.name == *name {
            return found(
                ErrorKind::Exists,
                format!("the volume name `{name}` is used twice"),
                "give each volume a name of its own",
            );
        }
        if same_device(&other.backing, &volume.backing) {
            return found(
                ErrorKind::Exists,
                format!(
                    "the volumes `{}` and `{name}` have the same backing device {}",
                    other.name, volume.backing
                ),
                "two caches over one device would hide each other's writes: give each its own",
            );
        }
        let same = other.subsystem_name() == volume.subsystem_name();
        if same && other.subsystem.is_some() != volume.subsystem.is_some() {
            return found(
                ErrorKind::Exists,
                format!(
                    "the subsystem `{}` is that of one volume and of a group",
                    volume.subsystem_name()
                ),
                "give the group a name that no volume outside it has",
            );
        }
    }
    None
}
