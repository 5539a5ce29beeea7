//! `serve`: where the configuration comes from. The rest is the node's.

use crate::cli::Serve;
use forebay_control::ServeConfig;
use forebay_control::error::Result;

pub(super) fn run(args: &Serve) -> Result<()> {
    crate::serve::run(configuration(args)?)
}

/// The configuration that the command line asks for.
pub(super) fn configuration(args: &Serve) -> Result<ServeConfig> {
    match &args.config {
        Some(file) => forebay_control::config::read_file(file),
        None => {
            // Everything in the state names files by absolute paths, so that a restart from
            // another working directory finds them.
            let dir = std::path::absolute(&args.dir).unwrap_or_else(|_| args.dir.clone());
            Ok(ServeConfig::quickstart(&dir))
        }
    }
}
