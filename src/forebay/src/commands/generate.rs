//! Man pages and completions, from the definition of the command line.

use crate::cli::Cli;
use crate::output;
use clap::CommandFactory;
use forebay_control::error::{ControlError, Result};
use std::path::Path;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut out);
    output::print(&String::from_utf8_lossy(&out))
}

pub(super) fn man(dir: Option<&Path>) -> Result<()> {
    let failed = |error: std::io::Error| ControlError::failed(format!("man pages: {error}"));
    match dir {
        None => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out).map_err(failed)?;
            output::print(&String::from_utf8_lossy(&out))
        }
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
        }
    }
}
