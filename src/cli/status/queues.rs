//! The brokers, the ledger stream and the queues, where the transport has any.

use crate::cli::{
    exit::Failure,
    output::{self, text},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Partitions of one inbox or route.
#[derive(Default)]
struct Queue {
    partitions: u64,
    waiting: u64,
    /// The least of all partitions.
    consumers: Option<u64>,
    here: u64,
    /// By problem how many.
    problems: BTreeMap<String, u64>,
}

/// Prints the transport out of `/cluster`; nothing for the embedded one.
pub(super) fn print(cluster: &Value) -> Result<(), Failure> {
    let transport = &cluster["transport"];
    if transport.get("kind").and_then(Value::as_str) != Some("rabbitmq") {
        return Ok(());
    }
    let link = |key: &str| text(transport, &["link", key]);
    let ledger = |key: &str| text(transport, &["ledger", key]);
    let mut table = output::table(["BROKER", "STATE", "RELEASE", "SINCE", "SPOOL", "UNCONFIRMED", "UNAPPLIED", "BEHIND"]);
    let mut behind =
        transport["ledger"]["read_ms"].as_u64().map_or("unknown".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
    if transport["ledger"]["catching_up"] == true {
        behind += ", catching up";
    }
    table.add_row([
        Some(link("broker")).filter(|b| !b.is_empty()).unwrap_or_else(|| "none".into()),
        link("state"),
        link("version"),
        link("since"),
        text(transport, &["spooled"]),
        ledger("unconfirmed"),
        ledger("unapplied"),
        behind,
    ]);
    output::print("")?;
    output::print_table(&table)?;
    for (what, error) in
        [("broker", link("error")), ("ledger stream", ledger("sending_error")), ("ledger stream", ledger("reading_error"))]
    {
        if !error.is_empty() {
            output::print(format!("{what}: {error}"))?;
        }
    }
    if let Some(change) = change(&transport["layout"]) {
        output::print(change)?;
    }
    let queues = grouped(transport);
    if queues.is_empty() {
        return Ok(());
    }
    let mut table = output::table(["CHANNEL", "QUEUE", "PARTITIONS", "HERE", "WAITING", "CONSUMERS", "PROBLEM"]);
    for ((channel, name), queue) in &queues {
        let problems: Vec<String> = queue.problems.iter().map(|(kind, n)| format!("{kind} ({n})")).collect();
        table.add_row([
            channel.clone(),
            name.clone(),
            queue.partitions.to_string(),
            queue.here.to_string(),
            queue.waiting.to_string(),
            queue.consumers.map(|n| n.to_string()).unwrap_or_default(),
            problems.join(", "),
        ]);
    }
    output::print("")?;
    output::print_table(&table)
}

/// How far a change of the number of partitions is; `None`: none is under way.
fn change(layout: &Value) -> Option<String> {
    let before = layout.get("previous").filter(|p| !p.is_null())?;
    let waits: Vec<&str> = layout["waits_for"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let waits = if waits.is_empty() { String::new() } else { format!("; waits for {}", waits.join(", ")) };
    Some(format!(
        "partitions: from {} to {}, {}, {} old queues are not empty{waits}",
        text(before, &["partitions"]),
        text(layout, &["partitions"]),
        text(layout, &["stage"]),
        text(layout, &["not_drained"]),
    ))
}

/// By channel and route.
fn grouped(transport: &Value) -> BTreeMap<(String, String), Queue> {
    let mut all: BTreeMap<(String, String), Queue> = BTreeMap::new();
    for one in transport.get("queues").and_then(Value::as_array).into_iter().flatten() {
        let kind = text(one, &["kind"]);
        // An inbox stands before the routes.
        let name = if kind == "route" { format!("route {}", text(one, &["route"])) } else { kind };
        let queue = all.entry((text(one, &["channel"]), name)).or_default();
        queue.partitions += 1;
        queue.waiting += one["waiting"].as_u64().unwrap_or(0);
        if let Some(consumers) = one["consumers"].as_u64() {
            queue.consumers = Some(queue.consumers.map_or(consumers, |least| least.min(consumers)));
        }
        queue.here += u64::from(one["active"] == Value::Bool(true));
        if let Some(problem) = one["problem"].as_str() {
            *queue.problems.entry(problem.to_owned()).or_default() += 1;
        }
    }
    all
}
