//! The control socket, spoken to as clients do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use forebay_control::rpc::{CONNECTIONS_MAX, Client, DEPTH_MAX, FRAME_LEN_MAX, Framer, METHODS};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::{Dir, config, serve};

fn connect(dir: &Dir) -> UnixStream {
    let stream = UnixStream::connect(dir.0.join("s")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// The next `count` answers.
fn answers(stream: &mut UnixStream, count: usize) -> Vec<Value> {
    let (mut framer, mut all) = (Framer::default(), Vec::new());
    let mut buffer = [0; 4096];
    while all.len() < count {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {} of {count} answers", all.len());
        framer
            .feed(&buffer[..read], |frame| all.push(serde_json::from_slice(frame).unwrap()))
            .unwrap();
    }
    all
}

fn ask(stream: &mut UnixStream, request: &str) -> Value {
    stream.write_all(request.as_bytes()).unwrap();
    answers(stream, 1).remove(0)
}

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {answer}"))
}

#[test]
fn requests_are_framed_by_their_own_ends_at_every_split() {
    let dir = Dir::new("rpc-split");
    let (_node, _controller, _server) = serve(&config(&dir.0));
    // Two requests with nothing, and white space, between; texts with every bracket and quote.
    let text = concat!(
        r#"{"jsonrpc":"2.0","id":"a}]\"\\","method":"spdk_get_version"}"#,
        r#"[{"jsonrpc": "2.0", "id": 2, "method": "job_list", "params": {}}]"#,
        "\n \t",
        r#"{"jsonrpc":"2.0","id":3,"method":"volume_show","params":{"name":"no[such"}}"#,
    );
    let mut stream = connect(&dir);
    for at in 0..=text.len() {
        stream.write_all(&text.as_bytes()[..at]).unwrap();
        stream.write_all(&text.as_bytes()[at..]).unwrap();
        let answers = answers(&mut stream, 3);
        assert_eq!(answers[0]["id"], json!("a}]\"\\"));
        assert!(answers[0]["result"]["version"].is_string());
        assert_eq!(answers[1][0]["result"]["jobs"], json!([]));
        assert_eq!(code(&answers[2]), -19);
    }
    println!("{} split points", text.len() + 1);
    for byte in text.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(answers(&mut stream, 3).len(), 3);
}

#[test]
fn the_framer_finds_the_same_values_at_every_pair_of_splits() {
    let text = br#"{"a":[1,{"b":"}"}]} "x\"" 12 true[[]]{}-1.5e3"#;
    let whole = |cuts: &[usize]| {
        let (mut framer, mut all) = (Framer::default(), Vec::new());
        let mut start = 0;
        for cut in cuts.iter().copied().chain([text.len()]) {
            framer.feed(&text[start..cut], |frame| all.push(frame.to_vec())).unwrap();
            start = cut;
        }
        framer.feed(b" ", |frame| all.push(frame.to_vec())).unwrap();
        assert!(!framer.is_partial());
        all
    };
    let values = whole(&[]);
    let texts: Vec<&str> = values.iter().map(|v| std::str::from_utf8(v).unwrap()).collect();
    let expected = [r#"{"a":[1,{"b":"}"}]}"#, r#""x\"""#, "12", "true", "[[]]", "{}", "-1.5e3"];
    assert_eq!(texts, expected);
    for a in 0..=text.len() {
        for b in a..=text.len() {
            assert_eq!(whole(&[a, b]), values, "cut at {a} and {b}");
        }
    }
}

#[test]
fn errors_have_the_codes_of_the_standard_and_of_spdk() {
    let dir = Dir::new("rpc-codes");
    let (_node, _controller, _server) = serve(&config(&dir.0));
    let mut stream = connect(&dir);
    let mut check = |request: &str, expected: i64| {
        let answer = ask(&mut stream, request);
        assert_eq!(code(&answer), expected, "{request}: {answer}");
        answer
    };
    // JSON-RPC 2.0 §5.1; the stream stays usable where its framing does.
    check(r#"{"jsonrpc":"2.0","id":1,"method":}"#, -32700);
    check("[]", -32600);
    check("12 ", -32600);
    check(r#"{"id":1,"method":"stat"}"#, -32600);
    check(r#"{"jsonrpc":"1.0","id":1,"method":"stat"}"#, -32600);
    check(r#"{"jsonrpc":"2.0","id":{},"method":"stat"}"#, -32600);
    check(r#"{"jsonrpc":"2.0","id":1,"method":3}"#, -32600);
    check(r#"{"jsonrpc":"2.0","id":1,"method":"stat","extra":3}"#, -32600);
    let near = check(r#"{"jsonrpc":"2.0","id":1,"method":"volume_lst"}"#, -32601);
    assert_eq!(near["error"]["data"]["remedy"], "did you mean `volume_list`?");
    check(r#"{"jsonrpc":"2.0","id":1,"method":"stat","params":[1]}"#, -32602);
    check(r#"{"jsonrpc":"2.0","id":1,"method":"stat","params":null}"#, -32602);
    let wrong = r#"{"jsonrpc":"2.0","id":1,"method":"volume_set_mode","params":{"name":"db","mode":"writeback"}}"#;
    let data = check(wrong, -32602)["error"]["data"].clone();
    assert_eq!(data["field"], "mode");
    assert_eq!(data["value"], "\"writeback\"");
    assert_eq!(
        data["accepted"],
        "pass-through, write-around, write-through, write-back, write-back-ordered"
    );
    assert_eq!(data["remedy"], "did you mean `write-back`?");
    let missing = check(r#"{"jsonrpc":"2.0","id":1,"method":"volume_drain"}"#, -32602);
    assert_eq!(missing["error"]["message"], "`name` is missing");
    let unknown = r#"{"jsonrpc":"2.0","id":1,"method":"volume_drain","params":{"nmae":"db"}}"#;
    check(unknown, -32602);
    check(r#"{"jsonrpc":"2.0","id":1,"method":"volume_drain","params":{"name":"x"}}"#, -19);
    check(r#"{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"x"}}"#, -19);
    check(
        r#"{"jsonrpc":"2.0","id":1,"method":"volume_create","params":{"name":"db","backing":"mem:?size=1G","mode":"write-back"}}"#,
        -17,
    );
    check(
        r#"{"jsonrpc":"2.0","id":1,"method":"volume_recover","params":{"name":"db","lost_cache":true}}"#,
        -16,
    );
}

#[test]
fn batches_and_notifications() {
    let dir = Dir::new("rpc-batch");
    let (node, _controller, _server) = serve(&config(&dir.0));
    let mut stream = connect(&dir);
    // The notification's fault is injected and not answered; the batch of it alone has no answer.
    let fault = r#"{"jsonrpc":"2.0","method":"device_fault","params":{"device":"cache:0","fault":"hang","ops":["read"]}}"#;
    stream.write_all(format!("{fault}[{fault}]").as_bytes()).unwrap();
    let answer = ask(
        &mut stream,
        &format!(
            r#"[{{"jsonrpc":"2.0","id":1,"method":"stat"}},{fault},7,{{"jsonrpc":"2.0","id":2,"method":"x"}}]"#
        ),
    );
    let batch = answer.as_array().unwrap();
    assert_eq!(batch.len(), 3);
    assert_eq!(batch[0]["id"], 1);
    assert_eq!((code(&batch[1]), code(&batch[2])), (-32600, -32601));
    assert_eq!(node.faults.lock().unwrap().len(), 3);
    let many = format!("[{}]", vec!["1"; 129].join(","));
    assert_eq!(code(&ask(&mut stream, &many)), -32600);
}

#[test]
fn what_cannot_be_framed_is_answered_and_ends_the_connection() {
    let dir = Dir::new("rpc-frame");
    let (_node, _controller, server) = serve(&config(&dir.0));
    let long = format!("\"{}", "a".repeat(FRAME_LEN_MAX + 1));
    let deep = "[".repeat(usize::try_from(DEPTH_MAX).unwrap() + 1);
    for bad in ["}", "]", "{]", "[}", ":", "\u{7f}", "\\", "é", &deep, &long] {
        let mut stream = connect(&dir);
        // The server may close before everything is written.
        let _ = stream.write_all(bad.as_bytes());
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        let shown = &bad[..bad.len().min(4)];
        assert!(
            text.contains("-32700") || (bad.len() > FRAME_LEN_MAX && read.is_err()),
            "{shown}: {text}"
        );
    }
    let mut stream = connect(&dir);
    assert!(ask(&mut stream, r#"{"jsonrpc":"2.0","id":1,"method":"stat"}"#)["result"].is_object());
    drop(stream);
    while server.connections() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn connections_are_bounded_and_the_socket_is_not_for_everybody() {
    let dir = Dir::new("rpc-many");
    let config = config(&dir.0);
    let (_node, controller, server) = serve(&config);
    let mode = std::fs::metadata(&config.control.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // A second daemon on the same socket is refused; the first still answers.
    let second = forebay_control::rpc::Server::start(&config.control.socket, controller.clone());
    assert_eq!(second.err().unwrap().kind, forebay_control::ErrorKind::Busy);
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"job_list"}"#;
    // An answer to a later connection says that the second daemon's, which asked whether anybody answers,
    // has been accepted, too.
    assert!(ask(&mut connect(&dir), request)["result"].is_object());
    while server.connections() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut open: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| connect(&dir)).collect();
    for stream in &mut open {
        assert!(ask(stream, request)["result"].is_object());
    }
    let mut text = String::new();
    connect(&dir).read_to_string(&mut text).unwrap();
    assert!(text.contains("too many connections"), "{text}");
    open.pop();
    while server.connections() >= CONNECTIONS_MAX {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(ask(&mut connect(&dir), request)["result"].is_object());
    drop(open);
    drop(server);
    assert!(!config.control.socket.exists());
    // What a killed daemon leaves behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&config.control.socket).unwrap());
    forebay_control::rpc::Server::start(&config.control.socket, controller).unwrap();
}

#[test]
fn every_method_is_listed_and_answers() {
    let dir = Dir::new("rpc-methods");
    let config = config(&dir.0);
    let (_node, _controller, _server) = serve(&config);
    let mut client = Client::connect(&config.control.socket).unwrap();
    let listed: Vec<String> = client.get("rpc_get_methods", json!({})).unwrap();
    assert_eq!(listed, METHODS);
    for method in METHODS {
        // Without parameters every method does something or says which are missing.
        if let Err(error) = client.call(method, json!({})) {
            assert_eq!(error.kind, forebay_control::ErrorKind::Invalid, "{method}: {error}");
        }
    }
    let systems = client.call("nvmf_get_subsystems", json!({})).unwrap();
    assert_eq!(systems[0]["nqn"], config.nqn("db"));
    assert_eq!(systems[0]["hosts"][0]["nqn"], config.security.hosts[0]);
    assert_eq!(systems[0]["listen_addresses"][0]["trsvcid"], "4420");
    let made =
        json!({"name": "v", "backing": "mem:?size=1G", "mode": "write-through", "dirty_max": "1G"});
    let shown = client.call("volume_create", made).unwrap();
    assert_eq!(shown["volume"]["mode"], "write-through");
    assert_eq!(shown["config"]["dirty_max"], 1 << 30);
    let error = Client::connect(&dir.0.join("nobody")).unwrap_err();
    assert_eq!(error.kind.exit_code(), 4);
    assert!(error.to_string().contains("forebay serve"), "{error}");
}
