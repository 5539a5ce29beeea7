//! Faults on request, for devices that were configured as `fault:URI`.

use super::node::Node;
use super::registry::Registry;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::node::DeviceFault;
use forebay_io::VolumeId;

/// Which device is meant: its URI, `cache:N`, `backing:VOLUME` or `journal:VOLUME`.
enum Which {
    Cache { reactor: u32, number: u32 },
    Backing { reactor: u32, volume: VolumeId },
    Journal { reactor: u32, volume: VolumeId },
}

fn find(node: &Node, registry: &Registry, name: &str) -> Result<Which> {
    for (number, cache) in (0u32..).zip(&node.caches) {
        if cache.uri == name || name == format!("cache:{number}") {
            return Ok(Which::Cache { reactor: cache.reactor, number });
        }
    }
    let backing = registry.served.iter().find(|served| {
        served.config.backing == name || name.strip_prefix("backing:") == Some(&served.config.name)
    });
    if let Some(served) = backing {
        return Ok(Which::Backing { reactor: served.reactor, volume: served.id });
    }
    let journal = registry.served.iter().find(|served| {
        served.config.ordered_journal.as_deref() == Some(name)
            || name.strip_prefix("journal:") == Some(&served.config.name)
    });
    match journal {
        Some(served) => Ok(Which::Journal { reactor: served.reactor, volume: served.id }),
        None => Err(ControlError::not_found("device", name)),
    }
}

/// Carries a fault to its device.
pub(crate) fn inject(node: &Node, registry: &Registry, fault: &DeviceFault) -> Result<()> {
    let which = find(node, registry, &fault.device)?;
    let reactor = match which {
        Which::Cache { reactor, .. }
        | Which::Backing { reactor, .. }
        | Which::Journal { reactor, .. } => reactor,
    };
    let wanted = super::fault_plan::plan(fault);
    let done = node.reactors.call(reactor, move |service, _| {
        let unit = match which {
            Which::Cache { number, .. } => {
                service.devices.caches.iter_mut().find(|(n, _)| *n == number).map(|(_, unit)| unit)
            }
            Which::Backing { volume, .. } => service.devices.backing(volume),
            Which::Journal { volume, .. } => service.devices.journal(volume),
        };
        unit.and_then(|unit| unit.device.faults())
            .map(|faults| super::fault_plan::apply(&wanted, &faults))
    })?;
    done.ok_or_else(|| {
        ControlError::new(ErrorKind::Unsupported, format!("{} takes no faults", fault.device))
            .remedy("configure the device as `fault:URI`; this is for tests only")
    })
}
