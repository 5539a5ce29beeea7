//! `config`: the file against what the node runs with.

use super::Context;
use crate::cli::{Config, ConfigFile};
use crate::output;
use forebay_control::controller::Applied;
use forebay_control::error::{ControlError, ErrorKind, Result};
use forebay_control::plan::Difference;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The answer of `config_diff` and `config_plan`.
#[derive(Serialize, Deserialize)]
struct Differences {
    schema_version: u32,
    differences: Vec<Difference>,
}

pub(super) fn run(context: &Context, args: &Config) -> Result<()> {
    match args {
        Config::Export => {
            let answer = context.client()?.call("config_export", json!({}))?;
            output::show(context.format, &answer, |answer| {
                answer["toml"].as_str().unwrap_or_default().to_owned()
            })
        }
        Config::Diff(file) => {
            let all: Differences = context.client()?.get("config_diff", params(file)?)?;
            output::show(context.format, &all, |all| table(&all.differences, "No difference."))
        }
        Config::Plan(file) => {
            let mut all: Differences = context.client()?.get("config_plan", params(file)?)?;
            all.differences.sort_by_key(|difference| !difference.action.applies());
            output::show(context.format, &all, |all| {
                let steps = all.differences.iter().filter(|d| d.action.applies()).count();
                table(&all.differences, "") + &format!("{steps} to change\n")
            })
        }
        Config::Apply(file) => {
            let done: Applied = context.client()?.get("config_apply", params(file)?)?;
            output::show(context.format, &done, applied)
        }
    }
}

/// The text of the file, which is read here: the daemon may have other rights than the caller.
fn params(file: &ConfigFile) -> Result<Value> {
    let Some(path) = &file.file else { return Ok(json!({})) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        ControlError::new(ErrorKind::Invalid, format!("{} cannot be read: {error}", path.display()))
    })?;
    Ok(json!({ "file": path.display().to_string(), "text": text }))
}

fn table(differences: &[Difference], none: &str) -> String {
    if differences.is_empty() {
        return none.to_owned();
    }
    let shown = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let rows = differences.iter().map(|d| {
        vec![d.what.clone(), shown(&d.file), shown(&d.node), d.action.as_str().to_owned()]
    });
    output::table(&["WHAT", "FILE", "NODE", "APPLY"], &[], rows.collect())
}

fn applied(done: &Applied) -> String {
    let mut text = table(&done.changed, "");
    text.push_str(&format!("{} changed\n", done.changed.len()));
    for job in &done.jobs {
        text.push_str(&format!("job {job} has begun: forebay job wait {job}\n"));
    }
    if !done.remaining.is_empty() {
        text.push_str("\nStill different:\n");
        text.push_str(&table(&done.remaining, ""));
    }
    text
}
