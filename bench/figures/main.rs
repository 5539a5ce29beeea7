//! Programs that measure Forebay's figures with the real daemon.
//!
//! | command | figure |
//! |---|---|
//! | `memory` | DRAM for each cached block: the slope between two full caches of different size |
//! | `wear` | bytes written to the cache device for each byte that a host writes |
//! | `ordered` | what `write-back-ordered` costs against `write-back` |
//! | `recovery` | time after a crash until writes, right reads and the whole cache are there |
//! | `compare` | targets side by side in alternating runs: rate, latency, their ratios |
#![forbid(unsafe_code)]

mod compare;
mod guard;
mod memory;
mod node;
mod ordered;
mod recovery;
mod wear;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measures the figures of a Forebay daemon.
#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version)]
struct Cli {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Debug, Subcommand)]
enum Figure {
    /// DRAM for each cached 4 KiB block
    Memory(memory::Args),
    /// Device bytes for each host byte under random overwrites
    Wear(wear::Args),
    /// What write-back-ordered costs against write-back
    Ordered(ordered::Args),
    /// Time after a crash until the cache serves, reads right and is warm
    Recovery(recovery::Args),
    /// Targets side by side, in alternating runs
    Compare(compare::Args),
}

/// A figure could not be had, in words; printed as it is.
type Result<T> = core::result::Result<T, String>;

fn main() -> ExitCode {
    let done = match Cli::parse().figure {
        Figure::Memory(args) => memory::run(&args),
        Figure::Wear(args) => wear::run(&args),
        Figure::Ordered(args) => ordered::run(&args),
        Figure::Recovery(args) => recovery::run(&args),
        Figure::Compare(args) => compare::run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("forebay-bench: {error}");
            ExitCode::from(2)
        }
    }
}
