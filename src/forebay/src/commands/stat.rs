//! `stat`: live numbers, and what is wrong.

use super::Context;
use crate::cli::{Format, Stat};
use crate::output::{self, bytes, count, micros};
use forebay_control::error::Result;
use forebay_control::stat::{DeviceStat, Health, NodeStat, OpStat, VolumeStat};
use serde_json::json;
use std::process::ExitCode;

/// Exit code of a node on which something is wrong.
const DEGRADED: u8 = 3;

pub(super) fn run(context: &Context, args: &Stat) -> Result<ExitCode> {
    let mut client = context.client()?;
    loop {
        let stat: NodeStat = client.get("stat", json!({}))?;
        if !args.watch {
            output::show(context.format, &stat, render)?;
            let good = stat.complaints().is_empty();
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) });
        }
        if context.format == Format::Json || !output::is_watched(context.format) {
            output::line(&stat)?;
        } else {
            // Home, then each line cleared as it is rewritten, then the rest of the screen: no
            // flicker.
            let text = render(&stat).replace('\n', "\x1b[K\n");
            output::print(&format!("\x1b[H{text}\x1b[J"))?;
        }
        std::thread::sleep(args.interval.duration());
    }
}

/// The whole tree as tables.
pub(crate) fn render(stat: &NodeStat) -> String {
    let node = &stat.node;
    let state = format!("{:?}", node.state).to_lowercase();
    let listen: Vec<String> = node
        .listen
        .iter()
        .map(|l| format!("{} {} port {}", l.transport, l.address, l.port))
        .collect();
    let mut text = format!(
        "{} {state} for {}, version {}, {}\n",
        node.name,
        output::seconds(node.uptime_s),
        node.version,
        listen.join(", ")
    );
    for complaint in stat.complaints() {
        text.push_str(&format!("! {complaint}\n"));
    }
    text.push('\n');
    text.push_str(&volumes(&stat.volumes));
    text.push('\n');
    text.push_str(&devices(stat));
    text.push('\n');
    text.push_str(&reactors(stat));
    text
}

fn volumes(volumes: &[VolumeStat]) -> String {
    if volumes.is_empty() {
        return "There are no volumes.\n".to_owned();
    }
    let head = [
        "VOLUME", "MODE", "HIT", "DIRTY", "OLDEST", "DESTAGE", "R IOPS", "R MiB/s", "R p50",
        "R p99", "R p99.9", "W IOPS", "W MiB/s", "W p50", "W p99", "W p99.9",
    ];
    let rows = volumes.iter().map(|volume| {
        let mut row = vec![
            volume.name.clone(),
            volume.mode.to_string(),
            volume.hit_ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1}%", r * 100.0)),
            bytes(volume.dirty_bytes),
            super::volume::age_of(volume),
            format!("{}/s", bytes_f64(volume.destage_bytes_per_s)),
        ];
        row.extend(op(&volume.read));
        row.extend(op(&volume.write));
        row
    });
    let right: Vec<usize> = (2..head.len()).collect();
    output::table(&head, &right, rows.collect())
}

fn bytes_f64(value: f64) -> String {
    format!("{:.1} MiB", value / f64::from(1 << 20))
}

fn op(op: &OpStat) -> [String; 5] {
    let at = |pick: fn(&forebay_control::stat::Latency) -> f64| {
        op.latency.as_ref().map_or_else(|| "-".to_owned(), |l| micros(pick(l)))
    };
    [
        count(op.iops),
        format!("{:.1}", op.bytes_per_s / f64::from(1 << 20)),
        at(|l| l.p50_us),
        at(|l| l.p99_us),
        at(|l| l.p999_us),
    ]
}

fn devices(stat: &NodeStat) -> String {
    let caches = stat.caches.iter().enumerate().map(|(i, device)| (format!("cache:{i}"), device));
    let backing = stat.volumes.iter().map(|v| (format!("backing:{}", v.name), &v.backing));
    let row = |(name, device): (String, &DeviceStat)| {
        let health = match device.health {
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Failed => "FAILED",
        };
        vec![
            name,
            health.to_owned(),
            bytes(device.size),
            device.in_flight.to_string(),
            count(device.read.iops),
            count(device.write.iops),
            device.errors.to_string(),
            device.uri.clone(),
        ]
    };
    let head = ["DEVICE", "HEALTH", "SIZE", "IN FLIGHT", "R IOPS", "W IOPS", "ERRORS", "URI"];
    output::table(&head, &[2, 3, 4, 5, 6], caches.chain(backing).map(row).collect())
}

fn reactors(stat: &NodeStat) -> String {
    let rows = stat.reactors.iter().map(|reactor| {
        vec![
            reactor.id.to_string(),
            reactor.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
            format!("{:.1}%", reactor.busy_percent),
            reactor.connections.to_string(),
            reactor.volumes.to_string(),
        ]
    });
    let head = ["REACTOR", "CORE", "BUSY", "CONNECTIONS", "VOLUMES"];
    output::table(&head, &[0, 1, 2, 3, 4], rows.collect())
}
