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
