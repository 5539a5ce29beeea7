//! The `forebay` command.

mod cli;
mod commands;
mod devices;
mod doctor;
mod output;
mod progress;
mod serve;

use clap::Parser;
use std::process::ExitCode;

/// A cache's index is large and read all over.
#[global_allocator]
static HEAP: forebay_hugepages::HugeHeap = forebay_hugepages::HugeHeap;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match serve::failpoints::arm().and_then(|()| commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}
