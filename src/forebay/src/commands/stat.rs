//! `stat`: live numbers, and what is wrong.

use super::Context;
use crate::cli::{Format, Stat};
use crate::output::{self, bytes, count, micros};
use forebay_control::error::Result;
use forebay_control::stat::{
    DeviceStat, Health, Latency, NodeStat, OpStat, ReactorStat, VolumeStat,
};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit code of a node on which something is wrong.
const DEGRADED: u8 = 3;

pub(super) fn run(context: &Context, args: &Stat) -> Result<ExitCode> {
    let mut client = context.client()?;
    let mut last: Option<(Instant, NodeStat)> = None;
    loop {
        let stat: NodeStat = client.get("stat", json!({}))?;
        if !args.watch {
            output::show(context.format, &stat, |stat| render(stat, &Over::start(stat)))?;
            let good = stat.complaints().is_empty();
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) });
        }
        let now = Instant::now();
        if context.format == Format::Json || !output::is_watched(context.format) {
            output::line(&stat)?;
        } else {
            let over = match &last {
                Some((then, before)) => Over::since(before, now.duration_since(*then)),
                None => Over::start(&stat),
            };
            // Home, then each line cleared as it is rewritten, then the rest of the screen: no
            // flicker.
            let text = render(&stat, &over).replace('\n', "\x1b[K\n");
            output::print(&format!("\x1b[H{text}\x1b[J"))?;
        }
        last = Some((now, stat));
        std::thread::sleep(args.interval.duration());
    }
}

/// What rates, shares and percentiles are over: the node's life, as a single look has no other
/// interval that means anything, or the time since the look before.
struct Over<'a> {
    before: Option<&'a NodeStat>,
    seconds: f64,
}

impl<'a> Over<'a> {
    fn start(stat: &NodeStat) -> Self {
        Self { before: None, seconds: stat.node.uptime_s.max(1) as f64 }
    }

    fn since(before: &'a NodeStat, time: Duration) -> Self {
        Self { before: Some(before), seconds: time.as_secs_f64().max(0.001) }
    }

    /// A counter's increase; 0 where it began anew.
    fn more(&self, now: u64, then: impl Fn(&NodeStat) -> Option<u64>) -> f64 {
        now.saturating_sub(self.before.and_then(then).unwrap_or(0)) as f64
    }

    fn of_volume(&self, now: &VolumeStat, pick: impl Fn(&VolumeStat) -> u64) -> f64 {
        self.more(pick(now), |before| before.volume(&now.name).map(&pick))
    }
}

/// The whole tree as tables.
fn render(stat: &NodeStat, over: &Over<'_>) -> String {
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
    if node.memory.tier_max_bytes > 0 {
        text.push_str(&format!("memory tier of at most {}\n", bytes(node.memory.tier_max_bytes)));
    }
    if over.before.is_none() {
        text.push_str("rates, shares and latencies since the start; live with --watch\n");
    }
    text.push('\n');
    text.push_str(&volumes(&stat.volumes, over));
    text.push('\n');
    text.push_str(&devices(stat, over));
    text.push('\n');
    text.push_str(&reactors(stat, over));
    text
}

fn volumes(volumes: &[VolumeStat], over: &Over<'_>) -> String {
    if volumes.is_empty() {
        return "There are no volumes.\n".to_owned();
    }
    let head = [
        "VOLUME", "MODE", "HIT", "MEM", "BYPASS", "W BYPASS", "CACHED", "DIRTY", "OLDEST",
        "DESTAGE", "R IOPS", "R MiB/s", "R p50", "R p99", "R p99.9", "W IOPS", "W MiB/s", "W p50",
        "W p99", "W p99.9",
    ];
    let rows = volumes.iter().map(|volume| {
        let destaged = over.of_volume(volume, |v| v.destaged_bytes) / over.seconds;
        let mut row = vec![volume.name.clone(), volume.mode.to_string()];
        row.extend(shares(volume, over));
        row.extend([
            bytes(volume.cached_bytes),
            bytes(volume.dirty_bytes),
            super::volume::age_of(volume),
            format!("{}/s", bytes_f64(destaged)),
        ]);
        row.extend(op(volume, over, |v| &v.read));
        row.extend(op(volume, over, |v| &v.write));
        row
    });
    let right: Vec<usize> = (2..head.len()).collect();
    output::table(&head, &right, rows.collect())
}

fn bytes_f64(value: f64) -> String {
    format!("{:.1} MiB", value / f64::from(1 << 20))
}

/// Of the blocks that hosts read, those that the cache had, those that it had in memory, and those
/// that went past it; of the blocks that they wrote, those that went past it.
fn shares(volume: &VolumeStat, over: &Over<'_>) -> [String; 4] {
    let blocks = |pick: fn(&VolumeStat) -> u64| over.of_volume(volume, pick);
    let (hits, bypassed) = (blocks(|v| v.hits), blocks(|v| v.bypassed));
    let reads = hits + blocks(|v| v.misses) + bypassed;
    let past = blocks(|v| v.bypassed_writes);
    let writes = blocks(|v| v.cached_writes) + past;
    let share = |part: f64, all: f64| {
        if all > 0.0 { format!("{:.1}%", part / all * 100.0) } else { "-".to_owned() }
    };
    [
        share(hits, reads),
        share(blocks(|v| v.memory_hits), reads),
        share(bypassed, reads),
        share(past, writes),
    ]
}

fn op(volume: &VolumeStat, over: &Over<'_>, side: fn(&VolumeStat) -> &OpStat) -> [String; 5] {
    let now = side(volume);
    let latency = if over.before.is_none() { &now.latency_since_start } else { &now.latency };
    let at = |pick: fn(&Latency) -> f64| {
        latency.as_ref().map_or_else(|| "-".to_owned(), |l| micros(pick(l)))
    };
    let moved = over.of_volume(volume, |v| side(v).bytes) / over.seconds;
    [
        count(over.of_volume(volume, |v| side(v).ops) / over.seconds),
        format!("{:.1}", moved / f64::from(1 << 20)),
        at(|l| l.p50_us),
        at(|l| l.p99_us),
        at(|l| l.p999_us),
    ]
}

/// The devices in the order of the table: what they are called, and what they are.
fn all_devices(stat: &NodeStat) -> Vec<(String, &DeviceStat)> {
    let caches = stat.caches.iter().enumerate().map(|(i, device)| (format!("cache:{i}"), device));
    let backing = stat.volumes.iter().map(|v| (format!("backing:{}", v.name), &v.backing));
    let journals = stat.volumes.iter().filter_map(|v| {
        v.ordered_journal.as_ref().map(|journal| (format!("journal:{}", v.name), &journal.device))
    });
    caches.chain(backing).chain(journals).collect()
}

fn devices(stat: &NodeStat, over: &Over<'_>) -> String {
    let before = over.before.map(all_devices).unwrap_or_default();
    let row = |(name, device): (String, &DeviceStat)| {
        let then = before.iter().find(|(other, _)| *other == name).map(|(_, device)| *device);
        let rate = |pick: fn(&DeviceStat) -> u64| {
            let more = pick(device).saturating_sub(then.map_or(0, pick));
            count(more as f64 / over.seconds)
        };
        let health = match device.health {
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Failed => "FAILED",
        };
        let health =
            if device.buffered { format!("{health}, buffered") } else { health.to_owned() };
        vec![
            name,
            health,
            bytes(device.size),
            device.in_flight.to_string(),
            rate(|d| d.read.ops),
            rate(|d| d.write.ops),
            device.errors.to_string(),
            device.uri.clone(),
        ]
    };
    let head = ["DEVICE", "HEALTH", "SIZE", "IN FLIGHT", "R IOPS", "W IOPS", "ERRORS", "URI"];
    output::table(&head, &[2, 3, 4, 5, 6], all_devices(stat).into_iter().map(row).collect())
}

fn reactors(stat: &NodeStat, over: &Over<'_>) -> String {
    let rows = stat.reactors.iter().map(|reactor| {
        let nanos = |pick: fn(&ReactorStat) -> u64| {
            let same = |r: &&ReactorStat| r.id == reactor.id;
            over.more(pick(reactor), |before| before.reactors.iter().find(same).map(pick))
        };
        let (busy, idle) = (nanos(|r| r.busy_ns), nanos(|r| r.idle_ns));
        let busy = 100.0 * busy / (busy + idle).max(1.0);
        vec![
            reactor.id.to_string(),
            reactor.core.map_or_else(|| "-".to_owned(), |core| core.to_string()),
            format!("{busy:.1}%"),
            reactor.connections.to_string(),
            reactor.volumes.to_string(),
        ]
    });
    let head = ["REACTOR", "CORE", "BUSY", "CONNECTIONS", "VOLUMES"];
    output::table(&head, &[0, 1, 2, 3, 4], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeStat {
        let mut value = json!({
            "name": "v", "uuid": "", "nguid": "", "nqn": "", "nsid": 1, "state": "active",
            "mode": "write-back", "target_mode": "write-back", "size": 0, "block_size": 4096,
            "owner_epoch": 1, "reactor": 0, "cache": 0,
        });
        for side in ["read", "write", "flush"] {
            value[side] = json!(OpStat::default());
        }
        value["backing"] = json!(DeviceStat::default());
        for count in [
            "hits",
            "memory_hits",
            "misses",
            "bypassed",
            "cached_bytes",
            "memory_tier_bytes",
            "dirty_bytes",
            "dirty_pinned_bytes",
            "dirty_max",
            "destaged_bytes",
            "lost_bytes",
        ] {
            value[count] = json!(0);
        }
        value["destage_bytes_per_s"] = json!(0.0);
        serde_json::from_value(value).unwrap()
    }

    fn node(volume: VolumeStat) -> NodeStat {
        NodeStat {
            schema_version: 1,
            node: forebay_control::stat::NodeInfo { uptime_s: 100, ..Default::default() },
            reactors: vec![],
            caches: vec![],
            volumes: vec![volume],
            hosts: vec![],
        }
    }

    #[test]
    fn a_watch_shows_the_interval_and_a_single_look_all_time() {
        let before = VolumeStat { hits: 90, misses: 10, cached_writes: 5, ..volume() };
        let mut now =
            VolumeStat { memory_hits: 5, bypassed: 5, bypassed_writes: 15, ..before.clone() };
        now.hits = 95;
        let latency = |p50_us| Some(Latency { p50_us, ..Latency::default() });
        now.read.ops = 500;
        now.read.latency = latency(70.0);
        now.read.latency_since_start = latency(8.0);
        let (before, now) = (node(before), node(now));
        let over = Over::since(&before, Duration::from_secs(2));
        assert_eq!(shares(&now.volumes[0], &over), ["50.0%", "50.0%", "50.0%", "100.0%"]);
        let shown = op(&now.volumes[0], &over, |v| &v.read);
        assert_eq!((shown[0].as_str(), shown[2].as_str()), ("250", "70 us"));
        let all = Over::start(&now);
        assert_eq!(shares(&now.volumes[0], &all), ["86.4%", "4.5%", "4.5%", "75.0%"]);
        let shown = op(&now.volumes[0], &all, |v| &v.read);
        assert_eq!((shown[0].as_str(), shown[2].as_str()), ("5", "8 us"));
        let idle = Over::since(&now, Duration::from_secs(1));
        assert_eq!(shares(&now.volumes[0], &idle), ["-", "-", "-", "-"], "nothing was read");
        assert!(render(&now, &all).contains("since the start"));
        assert!(!render(&now, &over).contains("since the start"));
        let mut old = volume();
        (old.oldest_dirty_ms, old.oldest_dirty_before_start) = (Some(1500), true);
        assert_eq!(super::super::volume::age_of(&old), ">1.5 s");
    }
}
