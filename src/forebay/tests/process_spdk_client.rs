//! The published client of SPDK (PyPI: `spdk`, command `spdk-rpc`) against the daemon. Runs where the
//! command is found in `PATH`, and says so where it is not; where `SPDK_RPC` names it (as `ci/test`
//! does) it must be there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, whose helpers are not marked as such"
)]

mod support;

use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use support::{Daemon, Host, HostOptions, Load, MIB, Plan, Setup, Volume, seed};

/// The client, if this machine has it.
fn client() -> Option<String> {
    let named = std::env::var("SPDK_RPC");
    let client = named.clone().unwrap_or_else(|_| "spdk-rpc".to_owned());
    match Command::new(&client).arg("--help").output() {
        Ok(_) => Some(client),
        Err(error) => {
            assert!(named.is_err(), "SPDK_RPC names {client}: {error}");
            println!("not run: {client} is not installed (pip install spdk, or set SPDK_RPC)");
            None
        }
    }
}

/// Makes a call; whether it ended well, and all that was printed.
fn call(client: &str, setup: &Setup, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(client);
    let out = command.arg("-s").arg(setup.socket()).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout) + &text(&out.stderr))
}

/// The answer of a call that must succeed.
fn answer(client: &str, setup: &Setup, args: &[&str]) -> Value {
    let (good, text) = call(client, setup, args);
    assert!(good, "{args:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

#[test]
fn the_published_client_reads_a_node_under_load() {
    let Some(client) = client() else { return };
    let mut setup = Setup::new();
    setup.cache_file("", 96 * MIB);
    let backing = setup.backing_file("backing.img", 48 * MIB);
    setup.volumes = vec![Volume::new("v", &format!("uring:{}", backing.display()))];
    let daemon = Daemon::start(&setup);
    let mut host = Host::connect(setup.address(), &Setup::nqn("v"), HostOptions::default());
    let mut load = Load::new(seed(71), Plan::mixed(48 * MIB));
    load.run_for(&mut host, Duration::from_millis(500));
    load.assert_no_errors();

    let version = answer(&client, &setup, &["spdk_get_version"]);
    let version = version["version"].as_str().unwrap().to_owned();
    assert!(version.starts_with("Forebay v"), "{version}");
    let subsystems = answer(&client, &setup, &["nvmf_get_subsystems"]);
    let nqns: Vec<&str> =
        subsystems.as_array().unwrap().iter().filter_map(|s| s["nqn"].as_str()).collect();
    assert!(nqns.contains(&Setup::nqn("v").as_str()), "{subsystems}");
    let devices = answer(&client, &setup, &["bdev_get_bdevs", "-b", "v"]);
    let blocks = devices[0]["num_blocks"].as_u64().unwrap();
    let block = devices[0]["block_size"].as_u64().unwrap();
    assert_eq!(blocks * block, 48 * MIB, "{devices}");
    // Nothing is under way, so that what the client reads is what the node counts.
    let stat = daemon.volume("v");
    let counts = answer(&client, &setup, &["bdev_get_iostat"]);
    let counts = &counts["bdevs"][0];
    assert!(stat.write.ops > 0 && stat.read.ops > 0);
    assert_eq!(counts["num_write_ops"].as_u64(), Some(stat.write.ops), "{counts}");
    assert_eq!(counts["num_read_ops"].as_u64(), Some(stat.read.ops), "{counts}");
    assert_eq!(counts["bytes_written"].as_u64(), Some(stat.write.bytes), "{counts}");
    let (good, text) = call(&client, &setup, &["bdev_get_bdevs", "-b", "nobody"]);
    assert!(!good && text.contains("-19") && text.contains("No such device"), "{text}");
    println!(
        "process: spdk-rpc against the daemon: {version}, {blocks} blocks of {block} B, {} writes and {} reads counted",
        stat.write.ops, stat.read.ops
    );
    host.disconnect();
    daemon.stop();
}
