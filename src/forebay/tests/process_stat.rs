//! What `stat` says is what hosts did: counts, latencies and where blocks came from, per volume.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::{Latency, OpStat, VolumeStat};
use std::time::{Duration, Instant};
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed, wait};

/// Added to each operation of the backing devices.
const SLOW_US: f64 = 3000.0;

/// The percentiles of what a side did since the start: as many as there were commands, in order.
fn right(op: &OpStat) -> Latency {
    let latency = op.latency_since_start.unwrap_or_else(|| panic!("no latency: {op:?}"));
    assert_eq!(latency.count, op.ops, "each command is measured, and once");
    let Latency { mean_us, p50_us, p99_us, p999_us, p9999_us, max_us, .. } = latency;
    let order = [0.0, p50_us, p99_us, p999_us, p9999_us, max_us];
    assert!(order.windows(2).all(|two| two[0] <= two[1]), "{latency:?}");
    assert!(p50_us > 0.0 && mean_us <= max_us, "{latency:?}");
    let sum = mean_us * latency.count as f64;
    assert!((op.total_us as f64 - sum).abs() <= 1.0 + sum / 1000.0, "{op:?}");
    latency
}

fn reads_of(volume: &VolumeStat) -> u64 {
    volume.hits + volume.misses + volume.bypassed
}

/// The columns of a volume in the table, by their names.
fn row(daemon: &Daemon, name: &str) -> Vec<String> {
    let shown = daemon.command(&["stat"]);
    assert_eq!(shown.code, Some(0), "{}", shown.text);
    assert!(shown.text.contains("since the start"), "{}", shown.text);
    let split = |line: &str| -> Vec<String> {
        let columns = line.split("  ").map(str::trim).filter(|text| !text.is_empty());
        columns.map(str::to_owned).collect()
    };
    let mut lines = shown.text.lines().skip_while(|line| !line.starts_with("VOLUME"));
    let head = split(lines.next().unwrap());
    let row = split(lines.find(|line| line.starts_with(name)).unwrap());
    println!("process: {head:?}\nprocess: {row:?}");
    assert_eq!(head.len(), row.len());
    for column in ["R p50", "R p99", "R p99.9", "W p50", "W p99", "W p99.9"] {
        let at = head.iter().position(|text| text == column).unwrap();
        assert!(row[at].ends_with("us") || row[at].ends_with("ms"), "{column}: {}", row[at]);
    }
    row
}

#[test]
fn stat_says_what_hosts_did() {
    let seed = seed(11);
    let mut setup = Setup::new();
    setup.cache_file("", 256 * MIB);
    let slow = |name: &str| {
        let path = setup.backing_file(name, 32 * MIB);
        format!("slow:uring:{}?read_us=3000&write_us=3000", path.display())
    };
    let (v, w) = (Volume::new("v", &slow("v.img")), Volume::new("w", &slow("w.img")));
    setup.volumes = vec![v, Volume { mode: "pass-through".to_owned(), ..w }];
    let daemon = Daemon::start(&setup);
    let fresh = daemon.volume("v");
    assert_eq!((fresh.read, reads_of(&fresh)), (OpStat::default(), 0), "nothing was done yet");
    assert_eq!(fresh.hit_ratio, None);

    let mut load = Load::new(seed, Plan { zeroes: 0, ..Plan::mixed(16 * MIB) });
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let began = Instant::now();
    load.run(&mut host, |counts| counts.ops() >= 4000);
    let elapsed = began.elapsed().as_micros() as f64;
    load.assert_no_errors();
    let v = daemon.volume("v");
    let counts = &load.counts;
    assert_eq!((v.read.ops, v.write.ops), (counts.reads, counts.writes));
    assert_eq!(v.flush.ops, counts.flushes);
    assert_eq!(v.read.bytes / 4096, counts.verified, "the load counts blocks that it read");
    assert_eq!(reads_of(&v), counts.verified, "{v:?}");
    assert_eq!((v.cached_writes, v.bypassed_writes), (v.write.bytes / 4096, 0));
    assert!(v.hits > 0 && v.misses > 0, "{v:?}");
    for op in [&v.read, &v.write] {
        right(op);
        // At no time were more commands under way than the load has places (a loop ends a little
        // later than the host has its answer).
        let most = elapsed * load.plan.depth as f64 * 1.5;
        assert!(op.total_us as f64 <= most, "{op:?} in {elapsed} us");
    }

    // Another volume: all of it past the cache, each read as slow as the backing device.
    let mut other = Host::connect(setup.address(), &Setup::nqn("w"), HostOptions::default());
    for block in 0..20 {
        other.read(block * 64 * 4096, 8192).unwrap();
    }
    other.write(0, &[7; 16384]).unwrap();
    let w = daemon.volume("w");
    assert_eq!((w.hits, w.misses, w.bypassed), (0, 0, 40));
    assert_eq!((w.cached_writes, w.bypassed_writes), (0, 4));
    assert_eq!((w.read.ops, w.write.ops), (20, 1));
    let read = right(&w.read);
    assert!(read.p50_us >= SLOW_US && read.p50_us < 20.0 * SLOW_US, "{read:?}");
    assert!(right(&w.write).p50_us >= SLOW_US);
    assert_eq!(w.read.latency.unwrap().count, 20, "of the interval, and no other volume's");
    let still = daemon.volume("v");
    assert_eq!((reads_of(&still), still.read.ops), (reads_of(&v), v.read.ops), "v did nothing");
    assert_eq!(still.read.latency, None, "nothing in the last interval");
    assert_eq!(still.read.latency_since_start, v.read.latency_since_start);

    // What the cache has is faster than what the backing device has.
    load.write_all(&mut host, &[(0, 16)]);
    daemon.volume("v");
    let before = load.counts.reads;
    load.read_all(&mut host, &[(0, 4); 50]);
    let hit = daemon.volume("v").read.latency.unwrap();
    assert_eq!(hit.count, load.counts.reads - before);
    assert!(hit.p50_us < SLOW_US, "{hit:?}");
    println!(
        "process: stat: {} reads and {} writes measured; p50 of hits {:.0} us, of a slow device {:.0} us",
        v.read.ops, v.write.ops, hit.p50_us, read.p50_us
    );
    assert!(row(&daemon, "v").len() > 10);
    row(&daemon, "w");
    let text = daemon.command(&["--output", "json", "stat"]).text;
    assert!(text.contains("\"latency_since_start\"") && text.contains("\"p999_us\""), "{text}");
    load.verify(&mut host);
    load.assert_no_errors();
    daemon.stop();
}

/// A backing device that stops answering is named after five seconds, and since when it does not
/// answer is right from the first.
#[test]
fn a_hanging_device_is_named_soon_and_since_it_hangs() {
    let mut setup = Setup::new();
    setup.cache_file("", 256 * MIB);
    let backing = setup.backing_file("backing.img", 32 * MIB);
    let volume = Volume::new("v", &format!("fault:uring:{}", backing.display()));
    setup.volumes = vec![Volume { mode: "pass-through".to_owned(), ..volume }];
    let daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    host.read(0, 4096).unwrap();
    assert_eq!(daemon.stat().complaints(), Vec::<String>::new());
    daemon.fault("backing:v", "hang", &["read"]);
    let buf = forebay_io::BufPool::alloc(&mut forebay_io::HeapPool, 4096).unwrap();
    assert!(host.submit(forebay_io::Op::read(1, 4096, 4096, buf)).is_ok());
    let began = Instant::now();
    let named = wait("the hang is named", Duration::from_secs(15), || {
        host.pump();
        daemon.stat().complaints().into_iter().find(|text| text.contains("answer"))
    });
    let took = began.elapsed().as_secs_f64();
    assert!((4.8..9.0).contains(&took), "after {took} s: {named}");
    let said = daemon.volume("v").backing.cause.unwrap();
    let seconds: f64 = said.split(' ').find_map(|word| word.parse().ok()).unwrap();
    let now = began.elapsed().as_secs_f64();
    assert!(seconds >= 5.0 && (now - 2.0..=now + 0.5).contains(&seconds), "{said}, in fact {now}");
    println!("process: stat: named after {took:.1} s: {named}");
    daemon.fault("backing:v", "heal", &[]);
    let limit = Duration::from_secs(10);
    wait("the device is well again", limit, || {
        host.pump();
        daemon.stat().complaints().is_empty().then_some(())
    });
    let done = wait("the read ends", limit, || {
        host.pump();
        host.done()
    });
    assert!(done.result.is_ok(), "{:?}", done.result);
    daemon.stop();
}
