//! Two reactors: volumes on both, and a subsystem whose namespaces live on different ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

const SIZE: u64 = 64 * MIB;
/// Volumes, the subsystem that each is in, and its namespace there.
const VOLUMES: [(&str, Option<&str>, u32); 4] =
    [("a", None, 1), ("b", None, 1), ("g1", Some("group"), 1), ("g2", Some("group"), 2)];

fn host(setup: &Setup, number: u32, (name, group, nsid): (&str, Option<&str>, u32)) -> Host {
    let options = HostOptions { number, nsid, queues: 4, ..HostOptions::default() };
    Host::connect(setup.address(), &Setup::nqn(group.unwrap_or(name)), options)
}

/// Runs `work` on all volumes at once, each with a host of its own.
fn on_all(setup: &Setup, loads: &mut [Load], work: impl Fn(&mut Load, Host) + Sync) {
    std::thread::scope(|scope| {
        for ((number, load), volume) in (0..).zip(loads).zip(VOLUMES) {
            let work = &work;
            scope.spawn(move || work(load, host(setup, number, volume)));
        }
    });
}

#[test]
fn volumes_on_two_reactors_and_a_group_across_them() {
    let seed = seed(8);
    let mut setup = Setup::new();
    setup.cores = vec![0, 1];
    setup.memory = "512MiB".to_owned();
    // A cache device for each.
    setup.cache_file("", 512 * MIB);
    setup.cache_file("", 512 * MIB);
    for (name, group, _) in VOLUMES {
        let backing = setup.backing_file(&format!("{name}.img"), SIZE);
        let mut volume = Volume::new(name, &format!("uring:{}", backing.display()));
        volume.subsystem = group.map(str::to_owned);
        // Smaller blocks travel the mailbox too.
        volume.block_size = if name == "g2" { 512 } else { 4096 };
        setup.volumes.push(volume);
    }
    let mut daemon = Daemon::start(&setup);
    let stat = daemon.stat();
    assert_eq!(stat.reactors.len(), 2);
    let cores: BTreeSet<Option<u32>> = stat.reactors.iter().map(|r| r.core).collect();
    assert_eq!(cores, BTreeSet::from([Some(0), Some(1)]), "pinned as configured");
    let place = |name: &str| stat.volume(name).unwrap().reactor;
    let places: Vec<String> =
        VOLUMES.iter().map(|(name, ..)| format!("{name} on {}", place(name))).collect();
    println!("process: two reactors: {}", places.join(", "));
    for (name, group, nsid) in VOLUMES {
        let volume = stat.volume(name).unwrap();
        assert_eq!((volume.nsid, &*volume.nqn), (nsid, &*Setup::nqn(group.unwrap_or(name))));
    }
    assert_ne!(place("g1"), place("g2"), "the namespaces of the group live on different reactors");
    let used: BTreeSet<u32> = VOLUMES.iter().map(|(name, ..)| place(name)).collect();
    assert_eq!(used.len(), 2, "volumes on both");

    let mut loads: Vec<Load> = VOLUMES
        .iter()
        .zip(0..)
        .map(|((name, ..), n)| {
            let mut plan = Plan::mixed(SIZE);
            if *name == "g2" {
                (plan.unit, plan.units, plan.sizes) = (512, SIZE / 512, 1..129);
                plan.hot = plan.units / 4..plan.units / 4 + plan.units / 8;
            }
            Load::new(seed + n, plan)
        })
        .collect();
    on_all(&setup, &mut loads, |load, mut host| {
        load.run_for(&mut host, Duration::from_secs(5));
        load.verify(&mut host);
        load.assert_no_errors();
        host.disconnect();
    });
    let after = daemon.stat();
    for (then, now) in stat.reactors.iter().zip(&after.reactors) {
        assert!(now.busy_ns > then.busy_ns, "reactor {} did work", now.id);
    }
    for (name, ..) in VOLUMES {
        assert!(after.volume(name).unwrap().write.ops > 0, "{name} was written");
    }

    // And all of it across a kill.
    let barrier = std::sync::Barrier::new(VOLUMES.len());
    let killer = std::sync::Mutex::new(&mut daemon);
    let killed = std::sync::atomic::AtomicBool::new(false);
    let wrote: u64 = loads.iter().map(|load| load.counts.ops()).sum();
    on_all(&setup, &mut loads, |load, host| {
        barrier.wait();
        let begun = load.counts.ops();
        load.run_into_crash(host, |counts| {
            use std::sync::atomic::Ordering;
            if counts.ops() >= begun + 500 && !killed.swap(true, Ordering::AcqRel) {
                killer.lock().unwrap().kill();
            }
            killed.load(Ordering::Acquire)
        });
    });
    daemon = Daemon::start(&setup);
    on_all(&setup, &mut loads, |load, mut host| {
        load.verify(&mut host);
        load.run_for(&mut host, Duration::from_millis(500));
        load.verify(&mut host);
        host.disconnect();
    });
    for ((name, ..), load) in VOLUMES.iter().zip(&loads) {
        daemon.drain(name, Duration::from_secs(60));
        load.compare_file(&setup.dir.file(&format!("{name}.img")));
    }
    daemon.stop();
    let sum = |count: fn(&Load) -> u64| loads.iter().map(count).sum::<u64>();
    println!(
        "process: two reactors: 4 volumes at once, {wrote} operations before and {} after a kill, {} \
         blocks verified, {} bytes of backing files compared, 0 wrong",
        sum(|load| load.counts.ops()) - wrote,
        sum(|load| load.counts.verified),
        sum(|load| load.plan.units * load.plan.unit as u64),
    );
    support::conclude(sum(|load| load.counts.verified));
}
