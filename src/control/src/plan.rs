//! Differences between a configuration file and what a node runs with, and what `config apply`
//! does about each.

use crate::config::{ServeConfig, VolumeConfig};
use crate::state::check_fixed;
use crate::value::Mode;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// What `config apply` does about a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Makes the volume.
    Create,
    /// Changes it now.
    Change,
    /// Nothing: it is read at start.
    Restart,
    /// Nothing: the file does not name it, and only `volume delete` deletes.
    Keep,
    /// Nothing: it can never be changed.
    Refuse,
}

impl Action {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Restart => "needs a restart",
            Self::Keep => "kept (only in the node)",
            Self::Refuse => "cannot be changed",
        }
    }

    /// Whether `config apply` does something.
    #[must_use]
    pub const fn applies(self) -> bool {
        matches!(self, Self::Create | Self::Change)
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What differs: `node.poll`, `volume db`, `volume db.mode`.
    pub what: String,
    /// The volume it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// In the file; empty where it is not there.
    pub file: String,
    /// In the node; empty where it is not there.
    pub node: String,
    /// What is done about it.
    pub action: Action,
}

/// Every difference between a file and what a node runs with.
#[must_use]
pub fn differences(file: &ServeConfig, node: &ServeConfig) -> Vec<Difference> {
    let mut all = List(Vec::new());
    all.sections(file, node);
    for nqn in sorted(&file.security.hosts, &node.security.hosts) {
        let shown = |list: &[String]| if list.contains(nqn) { "allowed" } else { "" };
        let what = format!("host {nqn}");
        let (in_file, in_node) = (shown(&file.security.hosts), shown(&node.security.hosts));
        all.text(&what, None, in_file, in_node, Action::Change);
    }
    for volume in &file.volumes {
        match node.volumes.iter().find(|other| other.name == volume.name) {
            Some(other) => all.volume(volume, other),
            None => {
                let what = format!("volume {}", volume.name);
                let shown = format!("{} over {}", volume.mode, volume.backing);
                all.text(&what, Some(volume), &shown, "", Action::Create);
            }
        }
    }
    for volume in &node.volumes {
        if !file.volumes.iter().any(|other| other.name == volume.name) {
            let shown = format!("{} over {}", volume.mode, volume.backing);
            let what = format!("volume {}", volume.name);
            all.text(&what, Some(volume), "", &shown, Action::Keep);
        }
    }
    all.0
}

fn sorted<'a>(a: &'a [String], b: &'a [String]) -> Vec<&'a String> {
    let mut all: Vec<&String> = a.iter().chain(b).collect();
    all.sort();
    all.dedup();
    all
}

struct List(Vec<Difference>);

impl List {
    fn text(
        &mut self,
        what: &str,
        volume: Option<&VolumeConfig>,
        file: &str,
        node: &str,
        action: Action,
    ) {
        if file != node {
            self.0.push(Difference {
                what: what.to_owned(),
                volume: volume.map(|volume| volume.name.clone()),
                file: file.to_owned(),
                node: node.to_owned(),
                action,
            });
        }
    }

    fn restart(&mut self, what: &str, file: String, node: String) {
        self.text(what, None, &file, &node, Action::Restart);
    }

    fn sections(&mut self, file: &ServeConfig, node: &ServeConfig) {
        let (f, n) = (&file.node, &node.node);
        self.restart("node.name", f.name.clone(), n.name.clone());
        self.restart("node.cores", format!("{:?}", f.cores), format!("{:?}", n.cores));
        self.restart("node.poll", f.poll.to_string(), n.poll.to_string());
        self.restart("node.memory", option(f.memory.as_ref()), option(n.memory.as_ref()));
        self.restart("node.hugepages", f.hugepages.to_string(), n.hugepages.to_string());
        self.restart("node.nqn_prefix", f.nqn_prefix.clone(), n.nqn_prefix.clone());
        let path = |path: &std::path::Path| path.display().to_string();
        self.restart("node.state_dir", path(&f.state_dir), path(&n.state_dir));
        let listen = |config: &ServeConfig| {
            let all: Vec<String> =
                config.listen.iter().map(|listen| format!("tcp {}", listen.address)).collect();
            all.join(", ")
        };
        self.restart("listen", listen(file), listen(node));
        let caches = |config: &ServeConfig| {
            let all: Vec<String> = config
                .caches
                .iter()
                .map(|cache| format!("{} ({})", cache.device, cache.durability))
                .collect();
            all.join(", ")
        };
        self.restart("cache", caches(file), caches(node));
        self.restart("control.socket", path(&file.control.socket), path(&node.control.socket));
        let metrics = |config: &ServeConfig| option(config.control.metrics.as_ref());
        self.restart("control.metrics", metrics(file), metrics(node));
    }

    fn volume(&mut self, file: &VolumeConfig, node: &VolumeConfig) {
        let mut add = |key: &str, f: String, n: String, action: Action| {
            self.text(&format!("volume {}.{key}", file.name), Some(file), &f, &n, action);
        };
        let size = |v: &VolumeConfig| v.block_size.to_string();
        let group = |v: &VolumeConfig| v.subsystem_name().to_owned();
        if check_fixed(node, file).is_err() {
            add("block_size", size(file), size(node), Action::Refuse);
            add("subsystem", group(file), group(node), Action::Refuse);
        }
        add("backing", file.backing.clone(), node.backing.clone(), Action::Restart);
        add("mode", file.mode.to_string(), node.mode.to_string(), Action::Change);
        let hosts = |v: &VolumeConfig| {
            v.hosts.as_ref().map_or_else(|| "those of [security]".to_owned(), |h| h.join(", "))
        };
        add("hosts", hosts(file), hosts(node), Action::Change);
        macro_rules! optional {
            ($($key:ident),+) => {
                $(add(
                    stringify!($key),
                    option(file.$key.as_ref()),
                    option(node.$key.as_ref()),
                    Action::Change,
                );)+
            };
        }
        optional!(
            dirty_max,
            dirty_age_max,
            batch_max,
            batch_age_max,
            memory_tier,
            cache_min,
            cache_max
        );
        let pins = |v: &VolumeConfig| {
            let all: Vec<String> = v.pin.iter().map(ToString::to_string).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        add("pin", pins(file), pins(node), Action::Change);
        // One can be given to a volume that has none while it is served; another needs a start.
        let live = node.ordered_journal.is_none() && file.mode == Mode::WriteBackOrdered;
        add(
            "ordered_journal",
            option(file.ordered_journal.as_ref()),
            option(node.ordered_journal.as_ref()),
            if live { Action::Change } else { Action::Restart },
        );
    }
}

fn option(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "default".to_owned(), ToString::to_string)
}

/// `now` with everything of `file` that can be changed while it runs, but for the mode. An ordered
/// journal can be given to a volume without one.
#[must_use]
pub fn changed(now: &VolumeConfig, file: &VolumeConfig) -> VolumeConfig {
    VolumeConfig {
        name: now.name.clone(),
        backing: now.backing.clone(),
        mode: now.mode,
        block_size: now.block_size,
        subsystem: now.subsystem.clone(),
        ordered_journal: now.ordered_journal.clone().or_else(|| {
            let ordered = file.mode == Mode::WriteBackOrdered;
            file.ordered_journal.clone().filter(|_| ordered)
        }),
        ..file.clone()
    }
}
