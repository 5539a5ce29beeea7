//! `doctor`: what this machine has, what we want, how to get it, and why.

mod checks;
mod devices;

use crate::cli::Doctor;
use crate::commands::Context;
use crate::output;
use forebay_control::ServeConfig;
use forebay_control::error::Result;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

/// Rises when a field changes its meaning or goes.
const SCHEMA_VERSION: u32 = 1;
/// Exit code where something is wrong that a node will feel.
const DEGRADED: u8 = 3;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// As wanted.
    Ok,
    /// It works so; it is faster or safer otherwise.
    Advice,
    /// It does not work so, or it may lose what it says it does not.
    Problem,
    /// It could not be found out.
    Unknown,
}

/// One thing about the machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What.
    pub(crate) name: String,
    /// How it came out.
    pub(crate) verdict: Verdict,
    /// What is there.
    pub(crate) measured: String,
    /// What we want.
    pub(crate) wanted: &'static str,
    /// The command that makes it so; empty where there is nothing to do.
    pub(crate) fix: String,
    /// Why we want it.
    pub(crate) why: &'static str,
}

/// All checks.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    checks: Vec<Check>,
}

/// Where the kernel shows itself; another directory in tests.
pub(crate) struct Machine<'a> {
    pub(crate) root: &'a Path,
}

impl Machine<'_> {
    /// A file's text without the white space around it; `None` where it cannot be read.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok()?;
        Some(text.trim().to_owned())
    }

    /// The names in a directory, sorted.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join(path.trim_start_matches('/'))) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

pub(crate) fn run(context: &Context, args: &Doctor) -> Result<ExitCode> {
    let config = match &args.config {
        Some(file) => Some(forebay_control::config::read_file(file)?),
        None => None,
    };
    let daemon = context.client().is_ok();
    let report = Report {
        schema_version: SCHEMA_VERSION,
        checks: all(&Machine { root: Path::new("/") }, config.as_ref(), daemon),
    };
    output::show(context.format, &report, |report| table(&report.checks))?;
    let problems = report.checks.iter().any(|check| check.verdict == Verdict::Problem);
    Ok(if problems { ExitCode::from(DEGRADED) } else { ExitCode::SUCCESS })
}

/// Every check. `daemon`: one answers on the control socket, so that the ports may be its own.
fn all(machine: &Machine<'_>, config: Option<&ServeConfig>, daemon: bool) -> Vec<Check> {
    let mut all = vec![
        checks::hugepages(machine),
        checks::memlock(machine),
        checks::io_uring(machine),
        checks::isolated(machine),
        checks::governor(machine),
        checks::clock(machine),
        checks::jitter(),
    ];
    all.extend(checks::ports(config, daemon));
    all.extend(devices::caches(machine, config));
    all
}

fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Advice => "advice ",
            Verdict::Problem => "PROBLEM",
            Verdict::Unknown => "unknown",
        };
        text.push_str(&format!("{mark}  {}: {}\n", check.name, check.measured));
        if check.verdict != Verdict::Ok {
            text.push_str(&format!("         wanted: {}\n", check.wanted));
            if !check.fix.is_empty() {
                text.push_str(&format!("         fix:    {}\n", check.fix));
            }
            text.push_str(&format!("         why:    {}\n", check.why));
        }
    }
    text
}

#[cfg(test)]
mod tests;
