//! What the node uses otherwise than an operator would expect is said at the start and shown by `stat`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Mount, Plan, Setup, Volume, seed};

/// A file system that refuses `O_DIRECT` serves all the same: through the page cache, and it is said.
#[test]
fn buffered_devices_are_named() {
    let mut setup = Setup::new();
    let Some(mount) = Mount::new(&setup.dir, "ramfs", "buffered I/O", &["-t", "ramfs", "ramfs"])
    else {
        return;
    };
    setup.cache_file("", 128 * MIB);
    let (buffered, direct) =
        (mount.sparse("b.img", 64 * MIB), setup.backing_file("d.img", 64 * MIB));
    setup.volumes = vec![
        Volume::new("b", &format!("slow:uring:{}?write_us=100", buffered.display())),
        Volume::new("d", &format!("slow:uring:{}?write_us=100", direct.display())),
    ];
    let daemon = Daemon::start(&setup);
    let stat = daemon.stat();
    assert!(stat.volume("b").unwrap().backing.buffered, "ramfs has no O_DIRECT");
    assert!(stat.volume("b").unwrap().backing.volatile_write_cache, "the page cache is volatile");
    assert!(!stat.volume("d").unwrap().backing.buffered && !stat.caches[0].buffered);
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("O_DIRECT")).collect();
    assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("b.img"), "{log}");
    let shown = daemon.command(&["stat"]);
    assert_eq!(shown.code, Some(0), "it works: {}", shown.text);
    assert!(shown.text.contains("ok, buffered"), "{}", shown.text);
    // And it is right.
    let mut load = Load::new(seed(9), Plan::mixed(64 * MIB));
    let mut host = Host::connect(setup.address(), &Setup::nqn("b"), HostOptions::default());
    load.run_for(&mut host, Duration::from_secs(1));
    let verified = load.verify(&mut host);
    load.assert_no_errors();
    host.disconnect();
    daemon.drain("b", Duration::from_secs(60));
    daemon.stop();
    load.compare_file(&buffered);
    println!("process: a backing file without O_DIRECT is named; {verified} blocks verified");
}

/// A memory tier larger than the memory allows is cut, with both figures and what to set; `stat` shows
/// what it is.
#[test]
fn a_memory_tier_that_is_cut_is_named() {
    let mut setup = Setup::new();
    setup.cache_file("", 64 * MIB);
    let backing = setup.backing_file("backing.img", 64 * MIB);
    let volume = Volume::new("v", &format!("uring:{}", backing.display()));
    setup.memory = "64MiB".to_owned();
    for (asked, shown, warned) in [(48 * MIB, 32 * MIB, true), (32 * MIB, 32 * MIB, false)] {
        setup.volumes = vec![volume.clone().with("memory_tier", &format!("{asked}"))];
        setup.state = format!("state{asked}");
        let _ = std::fs::remove_file(setup.dir.file("cache.img"));
        setup.caches.clear();
        setup.cache_file("", 64 * MIB);
        let daemon = Daemon::start(&setup);
        assert_eq!(daemon.stat().node.memory.tier_max_bytes, shown);
        let text = daemon.command(&["stat"]).text;
        assert!(text.contains("memory tier of at most 32"), "{text}");
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("memory_tier"));
        assert_eq!(line.is_some(), warned, "{log}");
        for figure in [asked, shown, 2 * asked].map(|bytes| bytes.to_string()) {
            assert!(line.is_none_or(|line| line.contains(&figure)), "{figure} is not in {line:?}");
        }
        daemon.stop();
    }
    println!("process: a memory tier larger than half of the memory is cut, and both are named");
}
