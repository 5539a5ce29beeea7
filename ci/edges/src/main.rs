//! Checks the dependencies between the project's crates against the allowed edges of
//! `docs/ARCHITECTURE.md`. Reads `cargo metadata --format-version 1 --no-deps` from standard input;
//! prints every forbidden edge and ends with a count; exit code 1 where there is one.

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::process::ExitCode;

/// Who may depend on whom; a crate that is not listed here is itself an error.
const ALLOWED: &[(&str, &[&str])] = &[
    ("forebay-wire", &[]),
    ("forebay-io", &[]),
    ("forebay-hugepages", &[]),
    ("forebay-nvmf", &["forebay-wire", "forebay-io"]),
    ("forebay-cache", &["forebay-io"]),
    ("forebay-node", &["forebay-wire", "forebay-io", "forebay-nvmf", "forebay-cache"]),
    ("forebay-reactor", &["forebay-io", "forebay-hugepages"]),
    (
        "forebay-driver",
        &["forebay-io", "forebay-reactor", "forebay-hugepages", "forebay-wire", "forebay-nvmf"],
    ),
    ("forebay-cluster", &["forebay-wire", "forebay-io", "forebay-node"]),
    ("forebay-control", &["forebay-io", "forebay-node", "forebay-reactor"]),
    ("forebay-bench", ABOVE),
    ("forebay", ABOVE),
    // The simulator is around the core alone: never the shell.
    (
        "forebay-sim",
        &["forebay-wire", "forebay-io", "forebay-nvmf", "forebay-cache", "forebay-node"],
    ),
    ("edges", &[]),
    ("fuzz", ABOVE),
];

const ABOVE: &[&str] = &[
    "forebay-wire",
    "forebay-io",
    "forebay-hugepages",
    "forebay-nvmf",
    "forebay-cache",
    "forebay-node",
    "forebay-reactor",
    "forebay-driver",
    "forebay-cluster",
    "forebay-control",
];

/// Crates that are core: they must forbid unsafe code in their first lines.
const CORE: &[&str] =
    &["forebay-wire", "forebay-io", "forebay-nvmf", "forebay-cache", "forebay-node"];

fn main() -> ExitCode {
    let mut text = String::new();
    if let Err(error) = std::io::stdin().read_to_string(&mut text) {
        eprintln!("edges: cannot read the metadata: {error}");
        return ExitCode::FAILURE;
    }
    let metadata: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => {
            eprintln!("edges: not `cargo metadata --format-version 1`: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (checked, problems) = check(&metadata);
    for problem in &problems {
        println!("edges: {problem}");
    }
    println!("edges: {checked} edges checked, {} forbidden", problems.len());
    if problems.is_empty() && checked > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Counts the edges between our crates and lists what is forbidden.
fn check(metadata: &Value) -> (usize, Vec<String>) {
    let none = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&none);
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut checked = 0;
    let mut problems = Vec::new();
    for package in packages {
        let Some(name) = package["name"].as_str() else { continue };
        let Some((_, allowed)) = ALLOWED.iter().find(|(listed, _)| *listed == name) else {
            problems.push(format!("{name} is in no row of the table of allowed edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap_or(&none) {
            let Some(to) = dependency["name"].as_str().filter(|to| ours.contains(to)) else {
                continue;
            };
            checked += 1;
            // A crate's tests may drive it with what it does not otherwise know.
            let for_tests = dependency["kind"].as_str() == Some("dev");
            // The binary alone may use the load generator, besides all that the latter may use.
            let bench = (name, to) == ("forebay", "forebay-bench");
            if !for_tests && !bench && !allowed.contains(&to) {
                problems.push(format!("{name} -> {to} is not an allowed edge"));
            }
        }
        if CORE.contains(&name) && !forbids_unsafe(package) {
            problems.push(format!("{name} is core and does not forbid(unsafe_code)"));
        }
    }
    (checked, problems)
}

fn forbids_unsafe(package: &Value) -> bool {
    let Some(manifest) = package["manifest_path"].as_str() else { return false };
    let source = std::path::Path::new(manifest).with_file_name("src").join("lib.rs");
    std::fs::read_to_string(source).is_ok_and(|text| text.contains("#![forbid(unsafe_code)]"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, to: &[&str]) -> Value {
        let deps: Vec<Value> = to.iter().map(|t| json!({"name": t, "kind": null})).collect();
        json!({"name": name, "dependencies": deps, "manifest_path": "/nowhere/Cargo.toml"})
    }

    #[test]
    fn a_forbidden_edge_and_an_unknown_crate_are_named() {
        let metadata = json!({"packages": [
            package("forebay-reactor", &["forebay-io", "forebay-cache"]),
            package("forebay-io", &[]),
            package("forebay-cache", &[]),
            package("stranger", &[]),
        ]});
        let (checked, problems) = check(&metadata);
        assert_eq!(checked, 2);
        assert!(
            problems.iter().any(|p| p == "forebay-reactor -> forebay-cache is not an allowed edge")
        );
        assert!(problems.iter().any(|p| p.starts_with("stranger is in no row")));
        assert!(
            problems.iter().any(|p| p == "forebay-io is core and does not forbid(unsafe_code)")
        );
        assert_eq!(problems.len(), 4);
    }
}
