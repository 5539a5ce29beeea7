//! The fuzz targets: plain functions of bytes, which panic where a promise is broken. libFuzzer's
//! programs in `fuzz_targets` and the mutation driver (`src/main.rs`) call the same ones.
//!
//! What every target promises besides: it allocates within bounds and does not hang; the drivers
//! watch that.

mod chunks;
mod initiator;
mod journal;
pub mod mutate;
pub mod reached;
mod recovery;
pub mod rng;
mod rpc;
pub mod seeds;
mod storage;
mod target;
mod text;
mod wire;

use rpc::support::words;

pub use initiator::{discovery, initiator};
pub use journal::journal;
pub use recovery::recovery;
pub use rpc::rpc;
pub use storage::{segment, superblock};
pub use target::target;
pub use text::{config, uri};
pub use wire::wire;

/// One fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which its corpus directory and libFuzzer program have, too.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// Inputs of a bounded run.
    pub runs: u64,
    /// Longest input.
    pub max_len: usize,
    /// Words that its parser knows, for mutation.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "wire", run: wire, runs: 1_000_000, max_len: 4200, words: &[] },
    Target { name: "target", run: target, runs: 600_000, max_len: 8192, words: &[] },
    Target { name: "initiator", run: initiator, runs: 400_000, max_len: 24_576, words: &[] },
    Target { name: "discovery", run: discovery, runs: 200_000, max_len: 16_384, words: &[] },
    Target { name: "superblock", run: superblock, runs: 300_000, max_len: 4096, words: &[] },
    Target { name: "segment", run: segment, runs: 300_000, max_len: 4096, words: &[] },
    Target { name: "journal", run: journal, runs: 100_000, max_len: 1024, words: &[] },
    Target { name: "recovery", run: recovery, runs: 40_000, max_len: 1024, words: &[] },
    Target { name: "rpc", run: rpc, runs: 300_000, max_len: 4096, words: words::RPC },
    Target { name: "config", run: config, runs: 200_000, max_len: 4096, words: words::TOML },
    Target { name: "uri", run: uri, runs: 500_000, max_len: 512, words: text::URI },
];
