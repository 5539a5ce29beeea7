//! The read-only calls of SPDK that its published clients and the bridges built on them make
//! first, as views of our statistics. A volume is shown as a bdev of its name.

use super::methods::{none, read};
use crate::controller::Controller;
use crate::error::{ControlError, ErrorKind, Result};
use crate::stat::{NodeStat, VolumeStat};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Our times are in microseconds.
const TICK_RATE: u64 = 1_000_000;

pub(super) fn call(
    controller: &Controller,
    method: &str,
    params: Map<String, Value>,
) -> Result<Value> {
    match method {
        "spdk_get_version" => none(params).map(|()| version()),
        "framework_get_reactors" => {
            none(params)?;
            Ok(reactors(&controller.stat()?))
        }
        "bdev_get_bdevs" => {
            let name = read(params, |fields| {
                fields.int("timeout", 0, u64::MAX);
                Some(fields.text("name", |name| Ok(name.to_owned())))
            })?;
            let stat = controller.stat()?;
            Ok(Value::Array(named(&stat, name.as_deref())?.into_iter().map(bdev).collect()))
        }
        "bdev_get_iostat" => {
            let name = read(params, |fields| {
                per_channel(fields);
                Some(fields.text("name", |name| Ok(name.to_owned())))
            })?;
            let stat = controller.stat()?;
            let bdevs: Vec<Value> =
                named(&stat, name.as_deref())?.into_iter().map(iostat).collect();
            let ticks = stat.node.uptime_s.saturating_mul(TICK_RATE);
            Ok(json!({ "tick_rate": TICK_RATE, "ticks": ticks, "bdevs": bdevs }))
        }
        "nvmf_get_transports" => {
            let wanted = read(params, |fields| {
                fields.text("tgt_name", |_| Ok(()));
                Some(fields.text("trtype", |name| Ok(name.to_uppercase())))
            })?;
            transports(&controller.stat()?, wanted.as_deref())
        }
        _ => {
            let nqn = read(params, |fields| {
                fields.text("tgt_name", |_| Ok(()));
                Some(fields.text("nqn", |nqn| Ok(nqn.to_owned())))
            })?;
            subsystems(controller, nqn.as_deref())
        }
    }
}

/// Options of `bdev_get_iostat` that ask for more than we keep are refused, not ignored.
fn per_channel(fields: &mut crate::fields::Fields<'_>) {
    use crate::fields::Raw;
    use crate::value::BadValue;
    fields.with("per_channel", |raw| match raw {
        Raw::Bool(false) => Ok(()),
        _ => Err(BadValue::accepted("false: figures are kept for each volume")),
    });
    fields.text("reset_mode", |mode| match mode {
        "none" => Ok(()),
        _ => Err(BadValue::accepted("none: counters only rise")),
    });
}

fn version() -> Value {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    json!({
        "version": concat!("Forebay v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    })
}

fn no_device(what: &str, name: &str) -> ControlError {
    // Clients compare this message.
    ControlError::new(ErrorKind::NotFound, "No such device").field(what).value(name)
}

fn named<'s>(stat: &'s NodeStat, name: Option<&str>) -> Result<Vec<&'s VolumeStat>> {
    let Some(name) = name else { return Ok(stat.volumes.iter().collect()) };
    let matches = |volume: &&VolumeStat| volume.name == name || volume.uuid == name;
    let found: Vec<_> = stat.volumes.iter().filter(matches).collect();
    if found.is_empty() { Err(no_device("name", name)) } else { Ok(found) }
}

fn bdev(volume: &VolumeStat) -> Value {
    json!({
        "name": volume.name,
        "aliases": [volume.uuid],
        "product_name": "Forebay volume",
        "block_size": volume.block_size,
        "num_blocks": volume.size / u64::from(volume.block_size.max(1)),
        "uuid": volume.uuid,
        "claimed": true,
        "claim_type": "exclusive_write",
        "zoned": false,
        "supported_io_types": {
            "read": true,
            "write": true,
            "unmap": true,
            "flush": true,
            "reset": false,
            "write_zeroes": true,
            "compare": true,
            "compare_and_write": true,
            "abort": true,
        },
        "driver_specific": {
            "forebay": {
                "mode": volume.mode,
                "target_mode": volume.target_mode,
                "state": volume.state,
                "backing": volume.backing.uri,
                "dirty_bytes": volume.dirty_bytes,
                "write_back": volume.mode.is_write_back(),
            },
        },
    })
}

fn iostat(volume: &VolumeStat) -> Value {
    json!({
        "name": volume.name,
        "bytes_read": volume.read.bytes,
        "num_read_ops": volume.read.ops,
        "bytes_written": volume.write.bytes,
        "num_write_ops": volume.write.ops,
        "read_latency_ticks": volume.read.total_us,
        "write_latency_ticks": volume.write.total_us,
    })
}

fn reactors(stat: &NodeStat) -> Value {
    let reactors: Vec<Value> = stat
        .reactors
        .iter()
        .map(|reactor| {
            json!({
                "lcore": reactor.core.unwrap_or(reactor.id),
                "busy": reactor.busy_ns / 1000,
                "idle": reactor.idle_ns / 1000,
                "in_interrupt": false,
                "lw_threads": [],
            })
        })
        .collect();
    json!({ "tick_rate": TICK_RATE, "pid": std::process::id(), "reactors": reactors })
}

fn transports(stat: &NodeStat, wanted: Option<&str>) -> Result<Value> {
    let mut types: Vec<String> =
        stat.node.listen.iter().map(|listen| listen.transport.to_uppercase()).collect();
    types.sort();
    types.dedup();
    if let Some(wanted) = wanted {
        if !types.iter().any(|name| name == wanted) {
            return Err(no_device("trtype", wanted));
        }
        types.retain(|name| name == wanted);
    }
    Ok(types.into_iter().map(|name| json!({ "trtype": name })).collect())
}

fn subsystems(controller: &Controller, wanted: Option<&str>) -> Result<Value> {
    let (stat, hosts) = (controller.stat()?, controller.hosts()?);
    let listen: Vec<Value> = stat
        .node
        .listen
        .iter()
        .map(|listen| {
            json!({
                "trtype": listen.transport.to_uppercase(),
                "adrfam": if listen.address.contains(':') { "IPv6" } else { "IPv4" },
                "traddr": listen.address,
                "trsvcid": listen.port.to_string(),
            })
        })
        .collect();
    let mut groups: BTreeMap<&str, Vec<&VolumeStat>> = BTreeMap::new();
    for volume in &stat.volumes {
        groups.entry(&volume.nqn).or_default().push(volume);
    }
    if let Some(nqn) = wanted {
        groups.retain(|group, _| *group == nqn);
        if groups.is_empty() {
            return Err(no_device("nqn", nqn));
        }
    }
    let subsystem = |(nqn, volumes): (&str, Vec<&VolumeStat>)| {
        let own: Vec<&String> = hosts
            .volumes
            .iter()
            .filter(|list| volumes.iter().any(|volume| volume.name == list.volume))
            .flat_map(|list| &list.hosts)
            .collect();
        let allowed = if own.is_empty() { hosts.allowed.iter().collect() } else { own };
        let allowed: Vec<Value> = allowed.into_iter().map(|nqn| json!({ "nqn": nqn })).collect();
        let namespaces: Vec<Value> = volumes
            .iter()
            .map(|volume| {
                json!({
                    "nsid": volume.nsid,
                    "bdev_name": volume.name,
                    "name": volume.name,
                    "nguid": volume.nguid.replace('-', "").to_uppercase(),
                    "uuid": volume.uuid,
                })
            })
            .collect();
        json!({
            "nqn": nqn,
            "subtype": "NVMe",
            "listen_addresses": listen,
            "allow_any_host": hosts.any_host_from_loopback,
            "hosts": allowed,
            "namespaces": namespaces,
        })
    };
    Ok(groups.into_iter().map(subsystem).collect())
}
