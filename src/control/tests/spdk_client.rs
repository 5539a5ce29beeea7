//! The published client of SPDK (PyPI: `spdk`, command `spdk-rpc`) against our server. Runs where
//! the command is found in `PATH`, and says so where it is not; where `SPDK_RPC` names it (as
//! `ci/test` does) it must be there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::process::Command;
use support::{Dir, config, serve};

#[test]
fn the_published_client_reads_us() {
    let named = std::env::var("SPDK_RPC");
    let client = named.clone().unwrap_or_else(|_| "spdk-rpc".to_owned());
    if let Err(error) = Command::new(&client).arg("--help").output() {
        assert!(named.is_err(), "SPDK_RPC names {client}: {error}");
        println!("not run: {client} is not installed (pip install spdk, or set SPDK_RPC)");
        return;
    }
    let dir = Dir::new("spdk");
    let config = config(&dir.0);
    let (_node, _controller, _server) = serve(&config);
    let call = |args: &[&str]| {
        let out = Command::new(&client)
            .arg("-s")
            .arg(&config.control.socket)
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        println!("$ spdk-rpc {}\n{}{}", args.join(" "), text(&out.stdout), text(&out.stderr));
        (out.status.success(), text(&out.stdout) + &text(&out.stderr))
    };
    for (args, expected) in [
        (&["spdk_get_version"][..], "Forebay v"),
        (&["rpc_get_methods"], "nvmf_get_subsystems"),
        (&["nvmf_get_subsystems"], ":db"),
        (&["nvmf_get_transports"], "TCP"),
        (&["bdev_get_bdevs"], "Forebay volume"),
        (&["bdev_get_bdevs", "-b", "db"], "Forebay volume"),
        (&["bdev_get_iostat"], "num_read_ops"),
        (&["framework_get_reactors"], "lcore"),
    ] {
        let (good, text) = call(args);
        assert!(good && text.contains(expected), "{args:?}: {text}");
    }
    let (good, text) = call(&["bdev_get_bdevs", "-b", "nobody"]);
    assert!(!good && text.contains("-19") && text.contains("No such device"), "{text}");
    let (good, text) = call(&["bdev_aio_create", "/x", "x", "512"]);
    assert!(!good && text.contains("-32601"), "{text}");
}
