//! `hie status`: how a running node is.

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use bytesize::ByteSize;
use clap::Args;
use serde_json::Value;
use std::time::Duration;

/// Show how a running node is
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  hie status --config /etc/hie/hie.toml

Ends with 0 when the node can accept, 1 when it says that it cannot, 69 when it does not answer.")]
pub struct StatusArgs {
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) fn main(args: StatusArgs) -> Result<(), Failure> {
    let api = Api::open(&args.api)?;
    let mut status = api.get(&["status"], &[])?;
    // A node of an earlier release has no such answer.
    let cluster = api.get(&["cluster"], &[]).unwrap_or_default();
    if let Some(status) = status.as_object_mut().filter(|_| !cluster.is_null()) {
        status.insert("cluster".into(), cluster.clone());
    }
    let ready = status.get("ready").and_then(Value::as_bool).unwrap_or(false);
    if args.api.json {
        output::json(&status)?;
    } else {
        print(&status, ready)?;
        members(&cluster)?;
    }
    if ready { Ok(()) } else { Err(Failure::failed("the node cannot accept messages now")) }
}

/// The members of all domains, where there is discovery.
fn members(cluster: &Value) -> Result<(), Failure> {
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(error) = cluster.get("members_error").and_then(Value::as_str) {
        output::print(format!("\nmembers are not known: {error}"))?;
    }
    let all = list(cluster, "members");
    if all.is_empty() {
        return Ok(());
    }
    let own = |member: &Value| ["node", "domain"].iter().all(|key| member.get(*key) == cluster.get(*key));
    let mut table = output::table(["NODE", "DOMAIN", "HEALTH", "ADDRESS", "PORTS", "WEIGHT", "VERSION", "FAILING"]);
    for member in &all {
        let instances = list(member, "instances");
        let of = |key: &str| {
            let mut values: Vec<String> = instances.iter().map(|i| text(i, &[key])).collect();
            values.dedup();
            values.join(", ")
        };
        let tls = |one: &Value| if one.get("tls").and_then(Value::as_bool).unwrap_or(false) { "s" } else { "" };
        let port = |one: &Value| format!("{}{}:{}", text(one, &["protocol"]), tls(one), text(one, &["port"]));
        let mut failing: Vec<String> =
            instances.iter().flat_map(|i| list(i, "failing")).filter_map(|f| Some(f.as_str()?.to_owned())).collect();
        failing.sort();
        failing.dedup();
        let name = text(member, &["node"]);
        table.add_row([
            if own(member) { format!("{name} (this)") } else { name },
            text(member, &["domain"]),
            text(member, &["health"]),
            of("address"),
            instances.iter().map(port).collect::<Vec<_>>().join(" "),
            of("weight"),
            text(member, &["version"]),
            failing.join(", "),
        ]);
    }
    output::print("")?;
    output::print_table(&table)
}

fn print(status: &Value, ready: bool) -> Result<(), Failure> {
    let list = |key: &str| {
        let items = status.get(key).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
    };
    let uptime = Duration::from_secs(status.get("uptime").and_then(Value::as_f64).unwrap_or(0.0).max(0.0) as u64);
    let memory = status.get("memory").and_then(Value::as_u64).map(|bytes| ByteSize(bytes).to_string());
    for (label, value) in [
        (
            "node",
            format!("{} (domain {}, version {})", text(status, &["node"]), text(status, &["domain"]), text(status, &["version"])),
        ),
        ("ready", if ready { "yes".into() } else { format!("no: {}", list("missing")) }),
        ("up for", humantime::format_duration(uptime).to_string()),
        ("unfinished", text(status, &["pending"])),
        ("parked", text(status, &["parked"])),
        ("paused", list("paused")),
        ("not configured", list("not_configured")),
        ("live feed", format!("{} of {} readers", text(status, &["feed_connections"]), text(status, &["feed_limit"]))),
        ("memory", memory.unwrap_or_default()),
        ("problems", list("problems")),
    ] {
        if !value.is_empty() {
            output::print(format!("{label:<16}{value}"))?;
        }
    }
    for (key, value) in status.get("ledger").and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        output::print(format!("ledger          {key} {value}"))?;
    }
    Ok(())
}
