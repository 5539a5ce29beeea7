//! Golden errors and round trips of configuration files.

use super::*;
use crate::value::ByteSize;

const FULL: &str = r#"
[node]
name = "a"
cores = "0-2,5"
poll = "busy"
memory = "2G"
hugepages = "required"
nqn_prefix = "nqn.2026-11.org.example:fb"
state_dir = "/tmp/fb"

[[listen]]
address = "192.0.2.1"
[[listen]]
transport = "tcp"
address = "::1"
port = 4421

[[cache]]
device = "uring:/dev/nvme0n1"
durability = "protected"

[[volume]]
name = "db"
backing = "slow:uring:/dev/sdb?read_us=5000"
mode = "write-back"
block_size = 4096
subsystem = "group"
hosts = ["nqn.2014-08.org.nvmexpress:uuid:1"]
dirty_max = "8G"
dirty_age_max = "30s"
memory_tier = 1048576
cache_min = "1G"
cache_max = "64G"
pin = ["100+28", "0-7", "8"]
replicas = 1

[[volume]]
name = "plain"
backing = "mem:?size=1G"
mode = "pass-through"

[security]
hosts = ["nqn.2014-08.org.nvmexpress:uuid:2"]

[control]
socket = "/run/fb.sock"
metrics = "127.0.0.1:9820"
"#;

#[test]
fn everything_that_can_be_said_is_read_and_exported_again() {
    let config = parse("forebay.toml", FULL).unwrap();
    assert_eq!(config.node.cores, [0, 1, 2, 5]);
    assert_eq!(config.node.memory, Some(ByteSize(2 << 30)));
    assert_eq!(config.listen[0].address.to_string(), "192.0.2.1:4420");
    assert_eq!(config.listen[1].address.to_string(), "[::1]:4421");
    let db = &config.volumes[0];
    assert_eq!((db.block_size, db.memory_tier), (4096, Some(ByteSize(1 << 20))));
    let pins: Vec<String> = db.pin.iter().map(ToString::to_string).collect();
    assert_eq!(pins, ["0-8", "100-127"]);
    assert_eq!((db.cache_min, db.cache_max), (Some(ByteSize(1 << 30)), Some(ByteSize(64 << 30))));
    assert_eq!(db.dirty_age_max.unwrap().duration().as_secs(), 30);
    assert_eq!(config.nqn(db.subsystem_name()), "nqn.2026-11.org.example:fb:group");
    assert_eq!(config.volumes[1].block_size, 512);
    let again = parse("forebay.toml", &export(&config)).unwrap();
    assert_eq!(again, config);
    let quick = ServeConfig::quickstart(std::path::Path::new("/tmp/q \"x\""));
    let mut again = parse("q", &export(&quick)).unwrap();
    again.origin = quick.origin.clone();
    again.security.any_host_from_loopback = true;
    assert_eq!(again, quick);
}

#[test]
fn a_file_that_says_nothing_but_where_to_listen_gets_the_defaults() {
    let config = parse("f", "[[listen]]\naddress = \"0.0.0.0\"").unwrap();
    assert_eq!(config.node.state_dir, std::path::Path::new(STATE_DIR));
    assert_eq!(config.control.socket, std::path::Path::new(SOCKET));
    assert!(config.security.hosts.is_empty() && !config.security.any_host_from_loopback);
    assert!(config.control.metrics.is_none());
}

/// A file with `text` and what else is needed, and the error it gives.
fn golden(text: &str, expected: &str) {
    let text = format!("{text}\n[[listen]]\naddress = \"127.0.0.1\"\n");
    let errors = parse("f.toml", &text).unwrap_err().to_string();
    assert_eq!(errors, expected, "of:\n{text}");
}

const HAS_CACHE: &str = "[[cache]]\ndevice = \"mem:?size=1G\"\n";

#[test]
fn errors_name_place_key_value_what_is_accepted_and_the_remedy() {
    golden(
        "[node]\nnmae = \"a\"",
        "f.toml:2:1: `node.nmae` is not known\n  accepted: name, cores, poll, memory, hugepages, \
         nqn_prefix, state_dir\n  what to do: did you mean `name`?",
    );
    golden(
        "[nodes]",
        "f.toml:1:2: `nodes` is not known\n  accepted: node, listen, cache, volume, security, \
         control, cluster\n  what to do: did you mean `node`?",
    );
    golden(
        "[node]\n  poll = \"bussy\"",
        "f.toml:2:10: `node.poll` is not valid\n  value: \"bussy\"\n  accepted: adaptive, busy\n  \
         what to do: did you mean `busy`?",
    );
    golden(
        "[node]\nmemory = \"8X\"",
        "f.toml:2:10: `node.memory` is not valid\n  value: \"8X\"\n  accepted: a whole number of \
         bytes, or with a unit K, M, G or T (powers of 1024): 8G, 64MiB",
    );
    golden(
        "[cluster]\netcd = [\"http://a:2379\"]",
        "f.toml:1:1: `cluster` comes in a later version\n  what to do: remove the section: one \
         node alone keeps its configuration in `node.state_dir`",
    );
    golden(
        "[security]\nhosts = [\"*\"]",
        "f.toml:2:10: `security.hosts` is not valid\n  value: \"*\"\n  accepted: an NVMe qualified \
         name of at most 223 bytes: nqn.2014-08.org.nvmexpress:uuid:…\n  what to do: there is no \
         wildcard: name each host (on a Linux host: cat /etc/nvme/hostnqn)",
    );
    golden("node = 3", "f.toml:1:8: `node` is not a section\n  accepted: a section [node]");
    golden(
        "[node]\nname = ",
        "f.toml:2:8: not TOML: string values must be quoted, expected literal string",
    );
}

#[test]
fn errors_of_volumes_name_the_volume() {
    let volume = |keys: &str| format!("{HAS_CACHE}[[volume]]\n{keys}");
    let good = "name = \"v\"\nbacking = \"mem:?size=1G\"\nmode = \"write-back\"\n";
    golden(
        &volume("name = \"v\"\nmode = \"write-back-orderly\""),
        "f.toml:3:1: `volume[0].backing` is missing\n  accepted: a device URI, such as \
         uring:/dev/sdb\nf.toml:5:8: `volume[0].mode` is not valid\n  value: \
         \"write-back-orderly\"\n  accepted: pass-through, write-around, write-through, \
         write-back, write-back-ordered\n  what to do: did you mean `write-back-ordered`?",
    );
    golden(
        &volume(&format!("{good}block_size = 1024")),
        "f.toml:7:14: `volume[0].block_size` is not valid\n  value: 1024\n  accepted: 512, 4096",
    );
    golden(
        &volume(&format!("{good}replicas = 2")),
        "f.toml:7:12: `volume[0].replicas` is not valid\n  value: 2\n  accepted: 1\n  what to do: \
         replication comes in a later version",
    );
    golden(
        &volume(&format!("{good}cache_min = \"2G\"\ncache_max = \"1G\"")),
        "f.toml:3:1: `volume[0].cache_min` is above `cache_max`\n  value: 2GiB\n  accepted: at \
         most cache_max = 1GiB",
    );
    golden(
        &volume(&format!("{good}[[volume]]\n{good}")),
        "f.toml:7:1: the volume name `v` is used twice\n  what to do: give each volume a name of \
         its own",
    );
    golden(
        &volume("name = \"v\"\nbacking = \"/dev/sdb\"\nmode = \"write-back\""),
        "f.toml:5:11: `volume[0].backing` is not valid\n  value: \"/dev/sdb\"\n  accepted: \
         uring:/path[?size=8G], mem:?size=1G, nvmf+tcp://host:port/NQN[?nsid=1], slow:URI, \
         fault:URI\n  what to do: did you mean `uring:/dev/sdb`?",
    );
    golden(
        &format!("[[volume]]\n{good}"),
        "f.toml:1:1: volume `v` wants a cache and there is no [[cache]]\n  what to do: add: \
         [[cache]] with device = \"uring:/dev/…\", or mode = \"pass-through\"",
    );
    let two = "name = \"a\"\nbacking = \"uring:/dev/sdb\"\nmode = \"write-back\"\n[[volume]]\n\
               name = \"b\"\nbacking = \"slow:uring:/dev/sdb?read_us=1\"\nmode = \"write-back\"";
    golden(
        &volume(two),
        "f.toml:7:1: the volumes `a` and `b` have the same backing device \
         slow:uring:/dev/sdb?read_us=1\n  what to do: two caches over one device would hide each \
         other's writes: give each its own",
    );
}

#[test]
fn the_first_twenty_errors_are_reported_at_once_in_order() {
    let keys: String = (0..100).map(|i| format!("x{i:03} = 1\n")).collect();
    let errors = parse("f", &format!("[node]\n{keys}")).unwrap_err().errors;
    assert_eq!(errors.len(), 20);
    assert!(errors.windows(2).all(|two| two[0].line <= two[1].line));
}
