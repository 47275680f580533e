//! `hie status`: how a running node is.

mod members;
mod queues;

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
        members::print(&cluster)?;
        queues::print(&cluster)?;
    }
    if ready { Ok(()) } else { Err(Failure::failed("the node cannot accept messages now")) }
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
