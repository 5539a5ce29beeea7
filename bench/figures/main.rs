//! Programs that measure Forebay's figures with the real daemon.
//!
//! | command | figure |
//! |---|---|
//! | `memory` | DRAM for each cached block: the slope between two full caches of different size |
//! | `wear` | bytes written to the cache device for each byte that a host writes |
//! | `ordered` | what `write-back-ordered` costs against `write-back` |
//! | `recovery` | time after a crash until writes, right reads and the whole cache are there |
//! | `determinism` | percentiles of hits, misses and writes by an open loop, and with the backing device down |
//! | `allocs` | allocations of the reactor for 100,000 commands in steady state |
//! | `compare` | targets side by side in alternating runs: rate, latency, their ratios |
//! | `report` | the report of `compare` or `determinism` again, from its raw samples |
#![forbid(unsafe_code)]

mod allocs;
mod compare;
mod determinism;
mod guard;
mod machine;
mod memory;
mod node;
mod ordered;
mod plot;
mod recovery;
mod sample;
mod stats;
mod threads;
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
    /// Percentiles of hits, misses, and with the backing device down, by an open loop
    Determinism(determinism::Args),
    /// Allocations of the reactor for 100,000 commands in steady state
    Allocs(allocs::Args),
    /// Targets side by side, in alternating runs
    Compare(compare::Args),
    /// Makes the report and its plots again from the raw samples in its directory
    Report {
        /// The directory that `--report` named
        dir: std::path::PathBuf,
    },
}

/// A figure could not be had, in words; printed as it is.
type Result<T> = core::result::Result<T, String>;

fn main() -> ExitCode {
    let done = match Cli::parse().figure {
        Figure::Memory(args) => memory::run(&args),
        Figure::Wear(args) => wear::run(&args),
        Figure::Ordered(args) => ordered::run(&args),
        Figure::Recovery(args) => recovery::run(&args),
        Figure::Determinism(args) => determinism::run(&args),
        Figure::Allocs(args) => allocs::run(&args),
        Figure::Compare(args) => compare::run(&args),
        Figure::Report { dir } => sample::Figures::load(&dir)
            .and_then(|figures| compare::write(&dir, &figures))
            .map(|()| true),
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
