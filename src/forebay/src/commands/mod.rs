//! One module for each command: arguments in, control calls out, answers printed.

mod bench;
mod config;
mod fault;
mod format;
mod generate;
mod host;
mod job;
mod serve;
mod stat;
mod volume;

use crate::cli::{Cli, Command, Format};
use forebay_control::config::{QUICKSTART_DIR, QUICKSTART_SOCKET, SOCKET};
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::rpc::Client;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the client commands share.
pub(crate) struct Context {
    pub(crate) format: Format,
    socket: Option<PathBuf>,
}

impl Context {
    /// Connects to the daemon.
    pub(crate) fn client(&self) -> Result<Client> {
        Client::connect(&self.socket_path())
    }

    fn socket_path(&self) -> PathBuf {
        if let Some(path) = &self.socket {
            return path.clone();
        }
        if let Some(path) = std::env::var_os("FOREBAY_SOCKET") {
            return PathBuf::from(path);
        }
        let quickstart = Path::new(QUICKSTART_DIR).join(QUICKSTART_SOCKET);
        if quickstart.exists() { quickstart } else { PathBuf::from(SOCKET) }
    }
}

/// Carries out a command.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let context = Context { format: cli.output, socket: cli.socket };
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        Command::Serve(args) => serve::run(&args).map(done),
        Command::Doctor(args) => crate::doctor::run(&context, &args),
        Command::Format(args) => format::run(&context, &args).map(done),
        Command::Volume(args) => volume::run(&context, args).map(done),
        Command::Scrub(args) => volume::scrub(&context, &args).map(done),
        Command::Host(args) => host::run(&context, &args).map(done),
        Command::Job(args) => job::run(&context, &args).map(done),
        Command::Stat(args) => stat::run(&context, &args),
        Command::Bench(args) => bench::run(&context, &args).map(done),
        Command::Config(args) => config::run(&context, &args).map(done),
        Command::Fault(args) => fault::run(&context, &args).map(done),
        Command::Man { dir } => generate::man(dir.as_deref()).map(done),
        Command::Completions { shell } => generate::completions(shell).map(done),
    }
}

/// Asks for the name of what is to be destroyed; where nobody can be asked, `--yes` is needed.
pub(crate) fn confirm(name: &str, yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    let refused = |why: &str| {
        ControlError::new(ErrorKind::Unsafe, format!("refused: {what}"))
            .remedy(format!("{why}; --yes says that you mean it"))
    };
    if !std::io::stdin().is_terminal() {
        return Err(refused("nobody can be asked here"));
    }
    eprint!("{what}.\nType `{name}` to go on: ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == name {
        return Ok(());
    }
    Err(refused("that is not its name"))
}
