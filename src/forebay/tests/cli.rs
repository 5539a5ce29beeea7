//! The program as it is run: exit codes, what is printed where, and refusals, against a control
//! socket with a node in memory behind it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../../control/tests/support/mod.rs"]
mod support;

use forebay_control::stat::{DeviceStat, Health};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use support::{Dir, config, serve};

/// Runs the program with the socket of the test; nobody can be asked and nobody watches.
fn forebay(dir: &Dir, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(line.split_whitespace())
        .env_remove("FOREBAY_SOCKET")
        .env("FOREBAY_SOCKET", dir.0.join("s"))
        .current_dir(&dir.0)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs it, checks the exit code, and gives standard output and error.
fn expect(dir: &Dir, line: &str, code: i32) -> (String, String) {
    let out = forebay(dir, line);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    assert_eq!(out.status.code(), Some(code), "{line}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let dir = Dir::new("exit");
    // 4: nobody answers, with how to start somebody.
    let (_, stderr) = expect(&dir, "volume list", 4);
    assert!(stderr.contains("no daemon answers") && stderr.contains("forebay serve"), "{stderr}");
    let config = config(&dir.0);
    let (node, _controller, _server) = serve(&config);
    expect(&dir, "volume list", 0);
    // 1: it cannot be done.
    let (_, stderr) = expect(&dir, "volume show dc", 1);
    assert!(stderr.contains("did you mean `db`?"), "{stderr}");
    expect(&dir, "volume create db --backing mem:?size=1G --mode write-back", 1);
    // 2: it is asked wrongly, whoever notices: the parser or the daemon.
    expect(&dir, "volume set-mode db fast", 2);
    let (_, stderr) = expect(&dir, "volume create v --backing /dev/sdb --mode write-back", 2);
    assert!(stderr.contains("did you mean `uring:/dev/sdb`?"), "{stderr}");
    let (_, stderr) =
        expect(&dir, "volume create v --backing mem:?size=1G --mode write-back --replicas 2", 2);
    assert!(stderr.contains("replication comes in a later version"), "{stderr}");
    expect(&dir, "serve --config nothing.toml", 2);
    // 5: it destroys, and was not confirmed; nothing happens.
    let (_, stderr) = expect(&dir, "volume delete db", 5);
    assert!(stderr.contains("--yes"), "{stderr}");
    assert_eq!(node.volumes.lock().unwrap().len(), 1);
    // 6: it goes on.
    node.hold.store(true, Ordering::Release);
    let (_, stderr) = expect(&dir, "volume drain db --timeout 100ms", 6);
    assert!(stderr.contains("forebay job wait 1"), "{stderr}");
    let (stdout, _) = expect(&dir, "job list", 0);
    assert!(stdout.contains("drain") && stdout.contains("the test holds it"), "{stdout}");
    expect(&dir, "job cancel 1", 0);
    expect(&dir, "job wait 1", 1);
    node.hold.store(false, Ordering::Release);
    expect(&dir, "volume drain db", 0);
    // 3: something is wrong with the node, and it says what.
    expect(&dir, "stat", 0);
    node.volumes.lock().unwrap()[0].backing = DeviceStat {
        uri: "uring:/dev/sdb".to_owned(),
        health: Health::Failed,
        cause: Some("no answer for 12 s".to_owned()),
        ..DeviceStat::default()
    };
    let (stdout, _) = expect(&dir, "stat", 3);
    assert!(stdout.contains("uring:/dev/sdb failed: no answer for 12 s"), "{stdout}");
    expect(&dir, "volume delete db --yes", 0);
    assert!(node.volumes.lock().unwrap().is_empty());
}

#[test]
fn tables_and_json_say_the_same() {
    let dir = Dir::new("output");
    let mut config = config(&dir.0);
    let file = dir.0.join("own.toml");
    std::fs::write(&file, forebay_control::config::export(&config)).unwrap();
    config.origin = forebay_control::config::Origin::File(file);
    let (_node, _controller, _server) = serve(&config);
    for line in
        ["volume list", "volume show db", "host list", "job list", "stat", "config diff", "doctor"]
    {
        let (table, _) = forebay_text(&dir, line);
        let (json, _) = forebay_text(&dir, &format!("{line} -o json"));
        let json: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(json["schema_version"], 1, "{line}");
        assert!(!table.is_empty() && serde_json::from_str::<Value>(&table).is_err(), "{line}");
    }
    let (table, _) = forebay_text(&dir, "volume list");
    assert!(table.starts_with("NAME") && table.contains(&config.nqn("db")), "{table}");
    // Long work: one JSON value a line where nobody watches.
    let (lines, _) = expect(&dir, "volume set-mode db pass-through", 0);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(
        (last["state"].as_str(), last["work"]["mode"].as_str()),
        (Some("done"), Some("pass-through"))
    );
    let (list, _) = forebay_text(&dir, "volume list");
    assert!(list.contains("pass-through"));
}

fn forebay_text(dir: &Dir, line: &str) -> (String, String) {
    let out = forebay(dir, line);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(out.stdout), text(out.stderr))
}

#[test]
fn configuration_goes_around() {
    let dir = Dir::new("config");
    let config = config(&dir.0);
    let (_node, _controller, _server) = serve(&config);
    expect(
        &dir,
        "volume create extra --backing mem:?size=1G --mode write-around --dirty-max 1G",
        0,
    );
    let (toml, _) = expect(&dir, "config export", 0);
    std::fs::write(dir.0.join("f.toml"), &toml).unwrap();
    let (text, _) = expect(&dir, "config diff f.toml", 0);
    assert_eq!(text, "No difference.\n");
    std::fs::write(dir.0.join("f.toml"), toml.replace("write-around", "write-through")).unwrap();
    let (text, _) = expect(&dir, "config plan f.toml", 0);
    assert!(text.contains("volume extra.mode") && text.contains("1 to change"), "{text}");
    expect(&dir, "config apply f.toml", 0);
    expect(&dir, "job wait 1", 0);
    let (text, _) = expect(&dir, "config apply f.toml", 0);
    assert_eq!(text, "0 changed\n");
    std::fs::write(dir.0.join("f.toml"), toml.replace("write-around", "write-arond")).unwrap();
    let (_, stderr) = expect(&dir, "config plan f.toml", 2);
    assert!(
        stderr.contains("f.toml:") && stderr.contains("did you mean `write-around`?"),
        "{stderr}"
    );
}

#[test]
fn hosts_faults_and_places() {
    let dir = Dir::new("hosts");
    let config = config(&dir.0);
    let (node, _controller, _server) = serve(&config);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:7";
    expect(&dir, &format!("host allow {nqn}"), 0);
    assert!(node.hosts.lock().unwrap().iter().any(|host| host == nqn));
    let (again, _) = expect(&dir, &format!("host allow {nqn}"), 0);
    assert!(again.contains("already"), "{again}");
    expect(&dir, &format!("host deny {nqn}"), 0);
    expect(&dir, "host allow any", 2);
    expect(&dir, "fault cache:0 hang --op read --count 3", 0);
    assert_eq!(node.faults.lock().unwrap()[0].count, Some(3));
    let (text, _) = expect(&dir, "volume where db --lba 0-7", 0);
    assert!(text.contains("0-7") && text.contains("backing"), "{text}");
    let (_, stderr) = expect(&dir, "volume recover db --lost-cache", 1);
    assert!(stderr.contains("is not lost"), "{stderr}");
}

#[test]
fn man_pages_and_completions_come_from_the_same_definition() {
    let dir = Dir::new("man");
    let (page, _) = expect(&dir, "man", 0);
    assert!(page.contains(".TH forebay 1") && page.contains("Exit codes"), "{page}");
    expect(&dir, "man --dir pages", 0);
    let pages: Vec<String> = std::fs::read_dir(dir.0.join("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["forebay.1", "forebay-volume-set-mode.1", "forebay-serve.1", "forebay-bench.1"] {
        assert!(pages.iter().any(|page| page == name), "{name} among {pages:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (text, _) = expect(&dir, &format!("completions {shell}"), 0);
        assert!(text.contains("set-mode"), "{shell}");
    }
    // The usage error's code is clap's own.
    expect(&dir, "completions tcsh", 2);
}
