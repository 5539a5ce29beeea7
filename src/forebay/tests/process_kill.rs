//! kill -9 in the middle of verified write-back load: every acknowledged write reads back right,
//! and the cache is as warm as before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use forebay_control::stat::VolumeStat;
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

/// Kills.
const KILLS: u64 = 20;
/// Reads of a sample of the working set.
const SAMPLE: usize = 3000;

/// Hits of a hundred blocks read between two samples of the statistics.
fn hit_ratio(read: u64, before: &VolumeStat, after: &VolumeStat) -> f64 {
    let hits = after.hits - before.hits;
    let others = after.misses - before.misses + after.bypassed - before.bypassed;
    assert!(hits + others >= read, "the statistics count every block that is read");
    hits as f64 / (hits + others) as f64
}

fn sample(daemon: &Daemon, load: &mut Load, host: &mut Host, seed: u64) -> f64 {
    let before = daemon.volume("v");
    let read = load.sample(host, seed, SAMPLE);
    assert!(read >= SAMPLE as u64 / 2, "most of the working set is data: {read}");
    hit_ratio(read, &before, &daemon.volume("v"))
}

#[test]
fn twenty_kills_lose_nothing_and_stay_warm() {
    let seed = seed(2);
    let mut setup = Setup::new();
    setup.cache_file("", 384 * MIB);
    let backing = setup.backing_file("backing.img", 128 * MIB);
    let uri = format!("slow:uring:{}?read_us=2000&write_us=3000", backing.display());
    setup.volumes = vec![Volume::new("v", &uri)];
    let nqn = Setup::nqn("v");

    let mut load = Load::new(seed, Plan::mixed(128 * MIB));
    let mut daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &nqn, HostOptions::default());
    load.run_for(&mut host, Duration::from_secs(2));
    let (mut worst, mut slowest, mut dirty, mut kept) = (f64::MAX, Duration::ZERO, 0, 0);
    for kill in 0..KILLS {
        let sample_seed = seed ^ kill << 32;
        // The first pass brings in what was never written or read; the second is the measure.
        sample(&daemon, &mut load, &mut host, sample_seed);
        let before = sample(&daemon, &mut load, &mut host, sample_seed);
        assert!(before > 0.9, "a working set that fits is cached: {before}");
        let volume = daemon.volume("v");
        dirty += volume.dirty_bytes;
        kept += volume.cached_bytes;

        let (ops, begun) = (400 + kill * 97 % 700, load.counts.ops());
        load.run_into_crash(host, |counts| {
            let now = counts.ops() >= begun + ops;
            if now {
                daemon.kill();
            }
            now
        });
        daemon = Daemon::start(&setup);
        slowest = slowest.max(daemon.started_in);
        host = Host::connect(setup.address(), &nqn, HostOptions::default());
        let after = sample(&daemon, &mut load, &mut host, sample_seed);
        let verified = load.verify(&mut host);
        println!(
            "kill: {kill}: after {ops} operations; hit ratio {before:.4} before, {after:.4} after; \
             {verified} blocks verified"
        );
        assert!(after >= 0.95 * before, "hit ratio {after:.4} after, {before:.4} before the crash");
        worst = worst.min(after / before);
        load.run_for(&mut host, Duration::from_millis(300));
        load.assert_no_errors();
    }
    let counts = &load.counts;
    println!(
        "kill: {KILLS} kills: {} writes, {} writes of zeroes, {} flushes, {} reads, {} without an \
         answer at a kill, {} blocks verified, 0 wrong; on average {} MiB dirty of {} MiB cached; \
         least hit ratio after against before {worst:.4}; slowest start {slowest:?}",
        counts.writes,
        counts.zeroes,
        counts.flushes,
        counts.reads,
        counts.unknown,
        counts.verified,
        dirty / KILLS / MIB,
        kept / KILLS / MIB,
    );
    assert!(counts.unknown >= KILLS, "kills come in the middle of writes");
    // Of writes that overlapped in flight, reads show which came last.
    load.verify(&mut host);
    host.disconnect();
    daemon.drain("v", Duration::from_secs(120));
    let compared = load.compare_file(&backing);
    println!("kill: drained: {compared} bytes of the backing file compared, no difference");
    daemon.stop();
    support::conclude(load.counts.verified);
}
