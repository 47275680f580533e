//! `hie tx show`: one transaction.

use crate::cli::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::Args;
use serde_json::Value;

/// Show one transaction: every step and every attempt
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie tx show 0198c0de-0000-7000-8000-000000000001
  hie tx show 0198c0de-0000-7000-8000-000000000001 --body request > message.hl7")]
pub struct ShowArgs {
    /// The transaction's id
    id: String,
    /// Write a body to standard output, byte for byte: request, response, or the name of a route
    #[arg(long, value_name = "PART", conflicts_with = "json")]
    body: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) fn main(args: &ShowArgs) -> Result<(), Failure> {
    let api = Api::open(&args.api)?;
    if let Some(part) = &args.body {
        return api.download(&["transactions", &args.id, "body", part], &mut std::io::stdout().lock());
    }
    let tx = api.get(&["transactions", &args.id], &[])?;
    if args.api.json {
        return output::json(&tx);
    }
    let request = &["method", "path"].map(|key| text(&tx, &["request", key])).join(" ");
    for (label, value) in [
        ("id", text(&tx, &["_id"])),
        ("status", text(&tx, &["status"])),
        ("arrived", text(&tx, &["request", "timestamp"])),
        ("channel", text(&tx, &["channelID"])),
        ("client", text(&tx, &["clientID"])),
        ("from", format!("{} {}", text(&tx, &["hie", "listener"]), text(&tx, &["hie", "remote"]))),
        ("mode", text(&tx, &["hie", "mode"])),
        ("type", text(&tx, &["hie", "type"])),
        ("control id", text(&tx, &["hie", "controlId"])),
        ("request", request.trim().to_owned()),
        ("body", text(&tx, &["hie", "bodies", "request", "length"]) + " bytes"),
        ("answer", number(&tx, &["response", "status"])),
        ("rerun of", text(&tx, &["parentID"])),
        ("reruns", list(&tx, "childIDs")),
        ("resends", number(&tx, &["hie", "resends"])),
        ("repeats", text(&tx, &["hie", "repeats"])),
        ("error", text(&tx, &["error", "message"])),
    ] {
        if !value.trim().is_empty() {
            output::print(format!("{label:<12}{value}"))?;
        }
    }
    attempts(&tx)
}

fn attempts(tx: &Value) -> Result<(), Failure> {
    let attempts = tx.pointer("/hie/attempts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if attempts.is_empty() {
        return Ok(());
    }
    output::print("")?;
    let mut table = output::table(["ROUTE", "ATTEMPT", "AT", "TARGET", "OUTCOME", "ANSWER", "MS", "ERROR"]);
    for attempt in attempts {
        let (ack, status) = (text(attempt, &["ack"]), number(attempt, &["status"]));
        table.add_row([
            text(attempt, &["route"]),
            text(attempt, &["attempt"]),
            text(attempt, &["timestamp"]),
            text(attempt, &["target"]),
            text(attempt, &["outcome"]),
            if ack.is_empty() { status } else { ack },
            text(attempt, &["tookMs"]),
            text(attempt, &["error"]),
        ]);
    }
    output::print_table(&table)
}

/// A number; empty for 0, which stands for none.
fn number(value: &Value, path: &[&str]) -> String {
    Some(text(value, path)).filter(|n| n != "0").unwrap_or_default()
}

fn list(tx: &Value, key: &str) -> String {
    let items = tx.get(key).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}
