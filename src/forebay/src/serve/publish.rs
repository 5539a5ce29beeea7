//! What hosts are told of the node: who may connect, where subsystems live, what discovery lists.

use super::attach::{Presentation, parse_nqn, present};
use super::node::{CacheUnit, Inner, Node};
use super::registry::{Registry, Served};
use super::service::Directory;
use forebay_control::config::VolumeConfig;
use forebay_control::error::Result;
use forebay_control::value::Durability;
use forebay_nvmf::target::{DiscoveryRecord, HostAccess};
use forebay_wire::log::{DiscoveryEntry, SubsystemType, trtype};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

impl Node {
    /// Shows a volume to hosts, as a namespace of its subsystem.
    pub(crate) fn present_volume(&self, inner: &Inner, volume: &Served) -> Result<()> {
        let any = self.config.security.any_host_from_loopback;
        let hosts = access(&volume.config, &inner.hosts, any)?;
        let cache = usize::try_from(volume.cache).ok().and_then(|at| self.caches.get(at));
        let how = Presentation {
            home: home_of(&inner.registry, volume),
            hosts,
            volatile_write_cache: cache.is_none_or(volatile),
            optimal_io: 4096.max(volume.config.block_size),
            serial: serial(&volume.nqn),
            volume,
        };
        present(&self.reactors, how)
    }

    /// Tells all reactors where subsystems live, and discovery what there is.
    pub(crate) fn publish(&self, inner: &Inner) -> Result<()> {
        let mut homes = BTreeMap::new();
        for served in &inner.registry.served {
            homes.insert(parse_nqn(&served.nqn)?, home_of(&inner.registry, served));
        }
        let directory = Arc::new(Directory { homes });
        let records = self.discovery(inner)?;
        self.reactors.each(move |service, context| {
            service.directory = Arc::clone(&directory);
            service.shard.target.set_discovery(records.clone(), context.now);
        })?;
        Ok(())
    }

    fn discovery(&self, inner: &Inner) -> Result<Vec<DiscoveryRecord>> {
        let mut records = Vec::new();
        let mut seen = BTreeSet::new();
        for served in &inner.registry.served {
            if !seen.insert(served.nqn.clone()) {
                continue;
            }
            let any = self.config.security.any_host_from_loopback;
            let hosts = access(&served.config, &inner.hosts, any)?;
            for (port, address) in (0u16..).zip(&self.listening) {
                let entry = discovery_entry(&served.nqn, port, address)?;
                records.push(DiscoveryRecord { entry, hosts: hosts.clone() });
            }
        }
        Ok(records)
    }
}

/// Who may connect to a volume.
pub(crate) fn access(config: &VolumeConfig, node: &[String], any: bool) -> Result<HostAccess> {
    if any && config.hosts.is_none() && node.is_empty() {
        return Ok(HostAccess::Any);
    }
    let names = config.hosts.as_deref().unwrap_or(node);
    let hosts = names.iter().map(|name| parse_nqn(name)).collect::<Result<BTreeSet<_>>>()?;
    Ok(HostAccess::Only(hosts))
}

/// The reactor of a volume's subsystem: that of its lowest namespace.
pub(crate) fn home_of(registry: &Registry, volume: &Served) -> u32 {
    let same = registry.served.iter().filter(|other| other.nqn == volume.nqn);
    same.min_by_key(|other| other.nsid).map_or(volume.reactor, |first| first.reactor)
}

/// Whether hosts must flush: unless completed writes survive a power loss.
fn volatile(cache: &CacheUnit) -> bool {
    match cache.durability {
        Durability::Auto => cache.info.volatile_write_cache,
        Durability::Protected => false,
        Durability::Volatile => true,
    }
}

/// A serial number of 20 characters, the same on all nodes: a checksum of the subsystem's name.
fn serial(nqn: &str) -> String {
    let low = forebay_io::crc::crc32c(nqn.as_bytes());
    let high = forebay_io::crc::crc32c(format!("forebay {nqn}").as_bytes());
    format!("FB{high:08X}{low:08X}")
}

fn discovery_entry(nqn: &str, port: u16, address: &SocketAddr) -> Result<DiscoveryEntry> {
    let ip = address.ip().to_canonical();
    // An empty address stands for the one that the host asked at.
    let traddr = if ip.is_unspecified() { String::new() } else { ip.to_string() };
    Ok(DiscoveryEntry {
        trtype: trtype::TCP,
        adrfam: if ip.is_ipv4() { 1 } else { 2 },
        subtype: SubsystemType::Nvm,
        // Bit 2: hosts may turn flow control of submission queues off; no secure channel.
        treq: 4,
        portid: port,
        cntlid: 0xffff,
        asqsz: 32,
        eflags: 0,
        trsvcid: address.port().to_string(),
        traddr,
        subnqn: parse_nqn(nqn)?,
        tsas: 0,
    })
}
