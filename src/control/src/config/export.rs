//! Writes a configuration as TOML.

use super::{ServeConfig, Transport, VolumeConfig};
use std::fmt::{Display, Write};

/// The configuration as a file that [`super::parse`] reads to the same value. What a quickstart
/// alone can have (any host from loopback) is a comment.
#[must_use]
pub fn export(config: &ServeConfig) -> String {
    let mut out = Out(String::new());
    let node = &config.node;
    out.section("[node]");
    out.text("name", &node.name);
    if !node.cores.is_empty() {
        let cores: Vec<String> = node.cores.iter().map(usize::to_string).collect();
        out.raw("cores", format_args!("[{}]", cores.join(", ")));
    }
    out.text("poll", node.poll);
    out.option("memory", node.memory.as_ref());
    out.text("hugepages", node.hugepages);
    out.text("nqn_prefix", &node.nqn_prefix);
    out.text("state_dir", node.state_dir.display());
    for listen in &config.listen {
        out.section("[[listen]]");
        out.text(
            "transport",
            match listen.transport {
                Transport::Tcp => "tcp",
            },
        );
        out.text("address", listen.address.ip());
        out.raw("port", listen.address.port());
    }
    for cache in &config.caches {
        out.section("[[cache]]");
        out.text("device", &cache.device);
        out.text("durability", cache.durability);
    }
    for volume in &config.volumes {
        out.volume(volume);
    }
    out.section("[security]");
    if config.security.any_host_from_loopback {
        out.0.push_str("# a quickstart also lets any host connect from a loopback address\n");
    }
    out.list("hosts", &config.security.hosts);
    out.section("[control]");
    out.text("socket", config.control.socket.display());
    out.option("metrics", config.control.metrics.as_ref());
    out.0
}

struct Out(String);

impl Out {
    fn section(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(name);
        self.0.push('\n');
    }

    fn raw(&mut self, key: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: impl Display) {
        let value = toml::Value::String(value.to_string());
        self.raw(key, value);
    }

    fn option(&mut self, key: &str, value: Option<&impl Display>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn list(&mut self, key: &str, values: &[String]) {
        let texts: Vec<String> =
            values.iter().map(|v| toml::Value::String(v.clone()).to_string()).collect();
        self.raw(key, format_args!("[{}]", texts.join(", ")));
    }

    fn volume(&mut self, volume: &VolumeConfig) {
        self.section("[[volume]]");
        self.text("name", &volume.name);
        self.text("backing", &volume.backing);
        self.text("mode", volume.mode);
        self.raw("block_size", volume.block_size);
        self.option("subsystem", volume.subsystem.as_ref());
        if let Some(hosts) = &volume.hosts {
            self.list("hosts", hosts);
        }
        self.option("dirty_max", volume.dirty_max.as_ref());
        self.option("dirty_age_max", volume.dirty_age_max.as_ref());
        self.option("batch_max", volume.batch_max.as_ref());
        self.option("batch_age_max", volume.batch_age_max.as_ref());
        self.option("ordered_journal", volume.ordered_journal.as_ref());
        self.option("memory_tier", volume.memory_tier.as_ref());
        self.option("cache_min", volume.cache_min.as_ref());
        self.option("cache_max", volume.cache_max.as_ref());
        if !volume.pin.is_empty() {
            let pins: Vec<String> = volume.pin.iter().map(ToString::to_string).collect();
            self.list("pin", &pins);
        }
    }
}
