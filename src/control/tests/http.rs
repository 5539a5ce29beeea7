//! `/metrics` and `/healthz`, as a scraper and as a stranger ask for them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use forebay_control::http::Http;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{Dir, config, start};

fn ask(http: &Http, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(http.address()).unwrap();
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn metrics_are_well_formed_and_strangers_get_short_answers() {
    let dir = Dir::new("http");
    let (node, controller) = start(&config(&dir.0));
    {
        let db = &mut node.volumes.lock().unwrap()[0];
        db.backing.uri = "x\"\\\n".to_owned();
        (db.cached_bytes, db.cache_min_bytes) = (5 << 20, 4 << 20);
        (db.cache_max_bytes, db.pinned_bytes) = (Some(8 << 20), 4096);
    }
    let http = Http::start("127.0.0.1:0".parse().unwrap(), controller).unwrap();
    let answer = ask(&http, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(body.contains("forebay_volume_reads_completed_total{volume=\"db\"} 10\n"), "{body}");
    assert!(body.contains("forebay_volume_read_blocks_total{volume=\"db\",outcome=\"hit\"} 8\n"));
    assert!(
        body.contains("forebay_volume_write_blocks_total{volume=\"db\",outcome=\"cached\"} 6\n")
    );
    assert!(
        body.contains("forebay_volume_write_blocks_total{volume=\"db\",outcome=\"bypass\"} 1\n")
    );
    for line in [
        "forebay_volume_cached_bytes{volume=\"db\"} 5242880\n",
        "forebay_volume_cache_min_bytes{volume=\"db\"} 4194304\n",
        "forebay_volume_cache_max_bytes{volume=\"db\"} 8388608\n",
        "forebay_volume_pinned_bytes{volume=\"db\"} 4096\n",
    ] {
        assert!(body.contains(line), "{line}{body}");
    }
    // A histogram: cumulative, its last bucket and its count all commands.
    let of = |name: &str| {
        let line = format!("forebay_volume_command_seconds_{name}");
        let found = body.lines().find_map(|at| at.strip_prefix(&line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{name}: {body}")).parse::<f64>().unwrap()
    };
    let read = "volume=\"db\",command=\"read\"";
    let at = |le: &str| of(&format!("bucket{{{read},le=\"{le}\"}}"));
    assert_eq!((at("0.000004096"), at("0.000131072"), at("8.589934592")), (2.0, 9.0, 9.0));
    assert_eq!((at("+Inf"), of(&format!("count{{{read}}}"))), (10.0, 10.0));
    assert_eq!(of(&format!("sum{{{read}}}")), 9.000_35);
    let (mut typed, mut series) = (BTreeSet::new(), BTreeSet::new());
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(typed.insert(rest.split(' ').next().unwrap()), "twice: {line}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let family = name.split('{').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"];
            let whole = parts.iter().find_map(|part| family.strip_suffix(part));
            let known = typed.contains(family) || whole.is_some_and(|name| typed.contains(name));
            assert!(known, "no type: {line}");
            assert!(series.insert(name), "twice: {line}");
        }
    }
    println!("{} families, {} series", typed.len(), series.len());
    assert!(ask(&http, b"GET /healthz HTTP/1.0\r\n\r\n").ends_with("\r\n\r\nready\n"));
    assert!(ask(&http, b"HEAD /healthz HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
    assert!(ask(&http, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask(&http, b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(ask(&http, b"\xff\x00 \r\n\r\n").starts_with("HTTP/1.1 405"));
    let mut long = TcpStream::connect(http.address()).unwrap();
    let _ = long.write_all(&[b'a'; 16 << 10]);
    let mut text = Vec::new();
    let _ = long.read_to_end(&mut text);
    assert!(ask(&http, b"GET /healthz HTTP/1.1\r\n\r\n").contains("ready"));
}
