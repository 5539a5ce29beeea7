//! `/metrics` in Prometheus' text format and `/healthz`, off unless configured. Read-only, without
//! authentication: listen where only the monitoring can connect.
//!
//! Names have the shape of the Ceph NVMe-oF gateway's, so that dashboards port. Labels are volumes,
//! reactors, devices and hosts, all of them bounded; never addresses of blocks.

use crate::controller::Controller;
use crate::error::{ControlError, Result};
use crate::stat::{BELOW_FROM, DeviceStat, Health, NodeStat, NodeState, OpStat, VolumeStat};
use std::fmt::{Display, Write as _};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A request must be whole, and an answer taken, within this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest request in bytes.
const REQUEST_LEN_MAX: usize = 8 << 10;

/// A running responder; one connection at a time, one request each. Dropped, it stops.
pub struct Http {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Listens and answers on a thread of its own.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(address: SocketAddr, controller: Arc<Controller>) -> Result<Self> {
        let failed = |error: io::Error| {
            ControlError::failed(format!("metrics cannot be served on {address}: {error}"))
                .field("control.metrics")
                .remedy("name another address, or leave `[control] metrics` out")
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    if of_thread.load(Ordering::Acquire) {
                        return;
                    }
                    // What goes wrong with one connection is that client's business.
                    let _ = stream.and_then(|stream| serve(stream, &controller));
                }
            })
            .map_err(failed)?;
        Ok(Self { stop, address, thread: Some(thread) })
    }

    /// Where it listens, with the port that was bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The thread waits in accept: a connection wakes it up.
        let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, controller: &Controller) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let began = Instant::now();
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    // Up to the empty line: a body would follow it, and nothing here has one.
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 || request.len() + read > REQUEST_LEN_MAX || began.elapsed() > PATIENCE {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
        request.extend_from_slice(&buffer[..read]);
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some("/metrics")) => match controller.stat() {
            Ok(stat) => ("200 OK", metrics(&stat)),
            Err(error) => ("503 Service Unavailable", error.to_string()),
        },
        (Some("GET" | "HEAD"), Some("/healthz")) => health(controller),
        (Some("GET" | "HEAD"), _) => ("404 Not Found", "/metrics, /healthz\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if line.starts_with("HEAD") { Ok(()) } else { stream.write_all(body.as_bytes()) }
}

/// Whether hosts are served; what is wrong besides is said, but does not make it unhealthy: taking
/// a degraded node away would make a small failure a large one.
fn health(controller: &Controller) -> (&'static str, String) {
    match controller.stat() {
        Ok(stat) if stat.node.state == NodeState::Ready => {
            let complaints: String =
                stat.complaints().iter().map(|what| format!("{what}\n")).collect();
            ("200 OK", format!("ready\n{complaints}"))
        }
        Ok(stat) => ("503 Service Unavailable", format!("{:?}\n", stat.node.state).to_lowercase()),
        Err(error) => ("503 Service Unavailable", format!("{error}\n")),
    }
}

/// Picks the operations of one direction.
type Side = fn(&VolumeStat) -> &OpStat;

/// One sample: labels and value.
type Sample = (String, String);

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP forebay_{name} {help}\n# TYPE forebay_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "forebay_{name}{{{labels}}} {value}");
        }
    }
}

/// The times of host commands as a histogram: cumulative buckets, sum and count.
fn latencies(text: &mut Text, volumes: &[VolumeStat]) {
    let name = "forebay_volume_command_seconds";
    let help = "Times of host commands, from their arrival to their response.";
    if volumes.is_empty() {
        return;
    }
    let _ = writeln!(text.0, "# HELP {name} {help}\n# TYPE {name} histogram");
    for volume in volumes {
        let sides = [("read", &volume.read), ("write", &volume.write), ("flush", &volume.flush)];
        for (command, op) in sides {
            let labels = [label("volume", &volume.name), label("command", command)].join(",");
            let count = op.latency_since_start.map_or(0, |latency| latency.count);
            for (log, below) in (BELOW_FROM..).zip(op.below) {
                let bound = label("le", &nanos_to_s(1 << log));
                let _ = writeln!(text.0, "{name}_bucket{{{labels},{bound}}} {below}");
            }
            let _ = writeln!(text.0, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(text.0, "{name}_sum{{{labels}}} {}", micros_to_s(op.total_us));
            let _ = writeln!(text.0, "{name}_count{{{labels}}} {count}");
        }
    }
}

/// A label; backslash, quote and line feed are escaped.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

fn micros_to_s(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn nanos_to_s(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// The statistics as Prometheus' text format.
#[must_use]
pub fn metrics(stat: &NodeStat) -> String {
    let mut text = Text(String::new());
    let node = &stat.node;
    let info = [label("node", &node.name), label("version", &node.version)].join(",");
    text.family("node_info", "gauge", "The node.", vec![(info, "1".to_owned())]);
    let ready = u32::from(node.state == NodeState::Ready).to_string();
    let named = label("node", &node.name);
    text.family("node_ready", "gauge", "Whether hosts are served.", vec![(named, ready)]);
    volume_counters(&mut text, &stat.volumes);
    volume_gauges(&mut text, &stat.volumes);
    devices(&mut text, stat);
    let mut seconds = Vec::new();
    for reactor in &stat.reactors {
        for (state, ns) in [("busy", reactor.busy_ns), ("idle", reactor.idle_ns)] {
            let labels = [label("reactor", &reactor.id.to_string()), label("state", state)];
            seconds.push((labels.join(","), nanos_to_s(ns)));
        }
    }
    text.family("reactor_seconds_total", "counter", "Time of reactors.", seconds);
    let hosts = stat.hosts.iter().map(|host| {
        let labels = [
            label("host_nqn", &host.nqn),
            label("nqn", &host.subsystem),
            label("controller", &host.controller.to_string()),
        ];
        (labels.join(","), "1".to_owned())
    });
    text.family("host_connection_state", "gauge", "Hosts that are connected.", hosts.collect());
    text.0
}

fn each<V: Display>(volumes: &[VolumeStat], value: impl Fn(&VolumeStat) -> V) -> Vec<Sample> {
    volumes.iter().map(|v| (label("volume", &v.name), value(v).to_string())).collect()
}

fn volume_counters(text: &mut Text, volumes: &[VolumeStat]) {
    let sides: [(&str, &str, &str, Side); 2] = [
        ("reads_completed", "read_bytes", "read_seconds", |v| &v.read),
        ("writes_completed", "written_bytes", "write_seconds", |v| &v.write),
    ];
    for (ops, bytes, seconds, side) in sides {
        let name = |name: &str| format!("volume_{name}_total");
        let (help_ops, help_bytes) = ("Host commands completed.", "Bytes moved by host commands.");
        text.family(&name(ops), "counter", help_ops, each(volumes, |v| side(v).ops));
        text.family(&name(bytes), "counter", help_bytes, each(volumes, |v| side(v).bytes));
        let times = each(volumes, |v| micros_to_s(side(v).total_us));
        text.family(&name(seconds), "counter", "Time of host commands, summed.", times);
    }
    latencies(text, volumes);
    let mut outcomes = Vec::new();
    for v in volumes {
        for (outcome, blocks) in [("hit", v.hits), ("miss", v.misses), ("bypass", v.bypassed)] {
            let labels = [label("volume", &v.name), label("outcome", outcome)];
            outcomes.push((labels.join(","), blocks.to_string()));
        }
    }
    let help = "Blocks of 4 KiB read by hosts.";
    text.family("volume_read_blocks_total", "counter", help, outcomes);
    let mut outcomes = Vec::new();
    for v in volumes {
        for (outcome, blocks) in [("cached", v.cached_writes), ("bypass", v.bypassed_writes)] {
            let labels = [label("volume", &v.name), label("outcome", outcome)];
            outcomes.push((labels.join(","), blocks.to_string()));
        }
    }
    let help = "Blocks of 4 KiB written by hosts.";
    text.family("volume_write_blocks_total", "counter", help, outcomes);
    let healed = each(volumes, |v| v.healed);
    text.family("volume_healed_total", "counter", "Wrong clean blocks, fetched again.", healed);
    let destaged = each(volumes, |v| v.destaged_bytes);
    text.family("volume_destaged_bytes_total", "counter", "Bytes destaged.", destaged);
}

fn volume_gauges(text: &mut Text, volumes: &[VolumeStat]) {
    let mut gauge = |name: &str, help: &str, samples: Vec<Sample>| {
        text.family(&format!("volume_{name}"), "gauge", help, samples);
    };
    gauge("dirty_bytes", "Bytes that the backing store lacks.", each(volumes, |v| v.dirty_bytes));
    gauge("dirty_bytes_max", "The bound on them.", each(volumes, |v| v.dirty_max));
    let age = |v: &VolumeStat| micros_to_s(v.oldest_dirty_ms.unwrap_or(0).saturating_mul(1000));
    gauge("oldest_dirty_seconds", "Age of the oldest of them; 0 where none.", each(volumes, age));
    gauge("cached_bytes", "Bytes in the cache.", each(volumes, |v| v.cached_bytes));
    let help = "Bytes of cache that other volumes leave it.";
    gauge("cache_min_bytes", help, each(volumes, |v| v.cache_min_bytes));
    let bound = |v: &VolumeStat| -> Option<Sample> {
        Some((label("volume", &v.name), v.cache_max_bytes?.to_string()))
    };
    let help = "Bytes of cache beyond which it gets no fills; none where there is no bound.";
    gauge("cache_max_bytes", help, volumes.iter().filter_map(bound).collect());
    gauge("pinned_bytes", "Bytes that are pinned.", each(volumes, |v| v.pinned_bytes));
    gauge("memory_tier_bytes", "Bytes of them in memory.", each(volumes, |v| v.memory_tier_bytes));
    let complete = |v: &VolumeStat| -> Option<Sample> {
        let journal = v.ordered_journal.as_ref()?;
        Some((label("volume", &v.name), u32::from(journal.complete).to_string()))
    };
    let help = "Whether the ordered journal holds a batch that the backing store has in part.";
    gauge("ordered_journal_complete", help, volumes.iter().filter_map(complete).collect());
    gauge("size_bytes", "Size.", each(volumes, |v| v.size));
    gauge("lost_bytes", "Bytes whose only copy cannot be read.", each(volumes, |v| v.lost_bytes));
    let damaged = each(volumes, |v| v.damaged_bytes);
    gauge("damaged_bytes", "Of them, those wrong on a device that works.", damaged);
    let mode = |v: &VolumeStat| {
        let labels = [label("volume", &v.name), label("mode", v.mode.as_str())];
        (labels.join(","), "1".to_owned())
    };
    gauge("mode", "The cache mode.", volumes.iter().map(mode).collect());
}

fn devices(text: &mut Text, stat: &NodeStat) {
    let caches = stat.caches.iter().enumerate().map(|(i, d)| (format!("cache:{i}"), d));
    let backings = stat.volumes.iter().map(|v| (format!("backing:{}", v.name), &v.backing));
    let journals = stat.volumes.iter().filter_map(|v| {
        v.ordered_journal.as_ref().map(|journal| (format!("journal:{}", v.name), &journal.device))
    });
    let all: Vec<(String, &DeviceStat)> = caches.chain(backings).chain(journals).collect();
    let each = |value: &dyn Fn(&DeviceStat) -> String| -> Vec<Sample> {
        all.iter().map(|(name, d)| (label("device", name), value(d))).collect()
    };
    let healthy = |d: &DeviceStat| u32::from(d.health == Health::Ok).to_string();
    text.family("device_healthy", "gauge", "Whether a device works.", each(&healthy));
    let errors = each(&|d| d.errors.to_string());
    text.family("device_errors_total", "counter", "Operations that failed.", errors);
    let in_flight = each(&|d| d.in_flight.to_string());
    text.family("device_in_flight", "gauge", "Operations in flight.", in_flight);
}
