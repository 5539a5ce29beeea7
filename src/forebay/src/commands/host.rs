//! `host`: who may connect, and who has.

use super::Context;
use crate::cli::{Host, HostChange};
use crate::output;
use forebay_control::controller::HostList;
use forebay_control::error::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The answer of `host_list`.
#[derive(Serialize, Deserialize)]
struct Hosts {
    schema_version: u32,
    hosts: HostList,
}

pub(super) fn run(context: &Context, args: &Host) -> Result<()> {
    match args {
        Host::Allow(change) => self::change(context, "host_allow", change, "may connect"),
        Host::Deny(change) => self::change(context, "host_deny", change, "may not connect"),
        Host::List => {
            let hosts: Hosts = context.client()?.get("host_list", json!({}))?;
            output::show(context.format, &hosts, |hosts| table(&hosts.hosts))
        }
    }
}

fn change(context: &Context, method: &str, change: &HostChange, what: &str) -> Result<()> {
    let mut params = json!({ "nqn": change.nqn });
    if let Some(volume) = &change.volume {
        params["volume"] = json!(volume);
    }
    let answer: Value = context.client()?.call(method, params)?;
    output::show(context.format, &answer, |answer| {
        let already = if answer["changed"] == json!(true) { "now" } else { "already" };
        let volume = change.volume.as_ref().map_or(String::new(), |v| format!(" to volume {v}"));
        format!("{} {already} {what}{volume}", change.nqn)
    })
}

fn table(hosts: &HostList) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    if hosts.any_host_from_loopback {
        rows.push(vec!["any, from this machine".to_owned(), "all".to_owned()]);
    }
    rows.extend(hosts.allowed.iter().map(|nqn| vec![nqn.clone(), "all".to_owned()]));
    for list in &hosts.volumes {
        rows.extend(list.hosts.iter().map(|nqn| vec![nqn.clone(), list.volume.clone()]));
        if list.hosts.is_empty() {
            rows.push(vec!["nobody".to_owned(), list.volume.clone()]);
        }
    }
    let mut text = if rows.is_empty() {
        "No host may connect yet: forebay host allow NQN\n".to_owned()
    } else {
        output::table(&["ALLOWED", "VOLUME"], &[], rows)
    };
    text.push('\n');
    text.push_str(&connected(hosts));
    text
}

fn connected(hosts: &HostList) -> String {
    if hosts.connected.is_empty() {
        return "No host is connected.\n".to_owned();
    }
    let rows = hosts.connected.iter().map(|host| {
        let digests = match (host.header_digest, host.data_digest) {
            (true, true) => "header, data",
            (true, false) => "header",
            (false, true) => "data",
            (false, false) => "none",
        };
        vec![
            host.nqn.clone(),
            host.subsystem.clone(),
            host.address.clone(),
            host.controller.to_string(),
            host.io_queues.to_string(),
            host.in_flight.to_string(),
            digests.to_owned(),
            output::seconds(host.connected_s),
        ]
    });
    let head =
        ["CONNECTED", "SUBSYSTEM", "ADDRESS", "CNTLID", "QUEUES", "IN FLIGHT", "DIGESTS", "SINCE"];
    output::table(&head, &[3, 4, 5], rows.collect())
}
