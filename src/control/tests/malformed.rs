//! Ten thousand malformed requests and ten thousand malformed configuration files: none makes a
//! panic, a hang or memory grow. Seeds are printed; a failing input is too.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use forebay_control::config;
use forebay_control::rpc::{Framer, handle_frame};
use serde_json::Value;
use std::time::{Duration, Instant};
use support::{Dir, config as test_config, start, words};

const COUNT: usize = 10_000;
/// Far above what any of these takes, on a loaded machine too.
const LONGEST: Duration = Duration::from_secs(5);

/// xorshift64*: inputs repeat, given the seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

/// Bytes of its own, replaced, removed, repeated, swapped; and pieces that parsers trip over.
fn mutate(random: &mut Random, seed: &[u8], pieces: &[&str]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            2 if !bytes.is_empty() => {
                let len = random.below(bytes.len() - at).min(40);
                bytes.drain(at..at + len);
            }
            3 => {
                let len = random.below(bytes.len() - at).min(200);
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => bytes.truncate(at),
            _ => {
                let piece = pieces[random.below(pieces.len())].as_bytes();
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Runs `each` on ten thousand inputs and watches time and memory.
fn run(name: &str, seed: u64, mut each: impl FnMut(&mut Random) -> (Vec<u8>, bool)) {
    println!("{name}: seed {seed:#x}");
    let mut random = Random(seed);
    let (mut refused, mut slowest, mut before) = (0, Duration::ZERO, 0);
    for i in 0..COUNT {
        if i == COUNT / 10 {
            before = resident();
        }
        let began = Instant::now();
        let (input, good) = each(&mut random);
        let took = began.elapsed();
        assert!(took < LONGEST, "{name} {i} took {took:?}: {}", input.escape_ascii());
        slowest = slowest.max(took);
        refused += usize::from(!good);
    }
    let grown = resident().saturating_sub(before);
    println!(
        "{name}: {COUNT} inputs, {refused} refused, {} taken as valid, slowest {slowest:?}, \
         memory grown by {grown} bytes",
        COUNT - refused
    );
    assert!(refused > COUNT / 2, "most are malformed, or the test shows nothing");
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");
}

#[test]
fn malformed_configuration_files() {
    let dir = Dir::new("malformed-toml");
    let full = config::export(&test_config(&dir.0))
        + "\n[[volume]]\nname = \"w\"\nbacking = \"mem:?size=1G\"\nmode = \"write-around\"\n\
           dirty_max = \"1G\"\ndirty_age_max = \"3s\"\nhosts = []\nblock_size = 4096\n";
    let deep = "[".repeat(3000);
    let pieces = [words::TOML, &[&deep]].concat();
    run("TOML", 0x7031, |random| {
        let bytes = mutate(random, full.as_bytes(), &pieces);
        let text = String::from_utf8_lossy(&bytes);
        let good = match config::parse("f", &text) {
            Ok(config) => {
                // What is accepted can be written and read again, to the same.
                let again = config::parse("f", &config::export(&config)).unwrap();
                assert_eq!(again, config, "{text}");
                true
            }
            Err(errors) => {
                let shown = errors.to_string();
                assert!(!errors.errors.is_empty() && shown.len() < 64 << 10, "{shown}");
                assert!(errors.errors.iter().all(|e| e.line > 0 && e.column > 0));
                false
            }
        };
        (bytes, good)
    });
}

#[test]
fn malformed_requests() {
    let dir = Dir::new("malformed-rpc");
    let (_node, controller) = start(&test_config(&dir.0));
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    let pieces = [words::RPC, &[&deep]].concat();
    let mut answered = 0;
    run("JSON-RPC", 0x4a53, |random| {
        let seed = words::REQUESTS[random.below(words::REQUESTS.len())].as_bytes();
        let bytes = mutate(random, seed, &pieces);
        let mut good = true;
        let mut answers = Vec::new();
        // As a connection does: cut at a place of its own, answered, closed where it cannot be
        // read on.
        let cut = random.below(bytes.len() + 1);
        let mut framer = Framer::default();
        let mut take = |frame: &[u8]| answers.extend(handle_frame(&controller, frame));
        let fed = framer
            .feed(&bytes[..cut], &mut take)
            .and_then(|()| framer.feed(&bytes[cut..], &mut take))
            .and_then(|()| framer.feed(b" ", &mut take));
        good &= fed.is_ok() && !framer.is_partial();
        for answer in &answers {
            let answer: Value = serde_json::from_slice(answer).unwrap();
            let list = match &answer {
                Value::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            for one in list {
                assert_eq!(one["jsonrpc"], "2.0");
                assert!(one.get("result").is_some() != one.get("error").is_some(), "{one}");
                good &= one.get("result").is_some();
                answered += 1;
            }
        }
        (bytes, good)
    });
    println!("JSON-RPC: {answered} answers");
    // The volume that was there is there, and the daemon's state can be read again.
    let db = controller.volume_config("db").unwrap();
    assert_eq!(db.name, "db");
    forebay_control::state::State::load(&dir.0).unwrap();
}
