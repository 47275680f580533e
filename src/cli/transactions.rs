//! `hie tx`: transactions of a running node, searched, shown, run again and given up.

mod discard;
mod rerun;
mod show;
mod work;

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::io::Read;

/// Transactions: what happened to each message
#[derive(Subcommand, Debug)]
pub enum TxCommand {
    List(ListArgs),
    Show(show::ShowArgs),
    Rerun(rerun::RerunArgs),
    Discard(discard::DiscardArgs),
}

/// List transactions, newest first
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie tx list --status Parked --channel lab.results
  hie tx list --from 2026-01-31 --type ADT^A01 --limit 5 --json
  echo 12345 | hie tx list --patient -")]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many: 1 to 1000
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Which page of so many, from 0
    #[arg(long, default_value_t = 0)]
    page: u32,
    #[command(flatten)]
    api: ApiArgs,
}

/// Which transactions: all that is given must hold.
#[derive(Args, Clone, Debug, Default)]
struct FilterArgs {
    /// Processing, Successful, Completed, "Completed with error(s)", Failed, Parked, Unknown, Refused; several with commas
    #[arg(long)]
    status: Option<String>,
    /// Full name of the channel
    #[arg(long)]
    channel: Option<String>,
    /// Name of the sending client
    #[arg(long)]
    client: Option<String>,
    /// Message type, as ADT^A01 or Patient
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// MSH-10, or the resource's id
    #[arg(long, value_name = "ID")]
    control_id: Option<String>,
    /// Patient identifier; "-" reads it from standard input, so that it stands in no list of processes
    #[arg(long, value_name = "ID")]
    patient: Option<String>,
    /// Words in the body; needs --from; "-" reads them from standard input
    #[arg(long, value_name = "WORDS", requires = "from")]
    text: Option<String>,
    /// Arrived at or after: a date, or a time such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Arrived before
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Reruns of this transaction
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
}

impl FilterArgs {
    /// The body of a search; never a URL, which ends up in logs.
    fn body(&self) -> Result<Map<String, Value>, Failure> {
        let given = [
            ("status", self.status.clone()),
            ("channel", self.channel.clone()),
            ("client", self.client.clone()),
            ("type", self.r#type.clone()),
            ("controlId", self.control_id.clone()),
            ("patient", typed(self.patient.as_deref())?),
            ("text", typed(self.text.as_deref())?),
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("parent", self.parent.clone()),
        ];
        Ok(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect())
    }
}

/// A value, or standard input's first line for `-`.
fn typed(value: Option<&str>) -> Result<Option<String>, Failure> {
    if value != Some("-") {
        return Ok(value.map(str::to_owned));
    }
    let mut input = String::new();
    let read = std::io::stdin().lock().take(64 * 1024).read_to_string(&mut input);
    read.map_err(|e| Failure::failed(format!("nothing on standard input: {e}")))?;
    match input.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Some(line.to_owned())),
        None => Err(Failure::usage("standard input is empty; write what to search for")),
    }
}

pub(super) fn main(command: TxCommand) -> Result<(), Failure> {
    match command {
        TxCommand::List(args) => list(&args),
        TxCommand::Show(args) => show::main(&args),
        TxCommand::Rerun(args) => rerun::main(&args),
        TxCommand::Discard(args) => discard::main(&args),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let mut body = args.filter.body()?;
    body.insert("filterLimit".into(), args.limit.into());
    body.insert("filterPage".into(), args.page.into());
    body.insert("filterRepresentation".into(), json!("simple"));
    let found = Api::open(&args.api)?.post(&["transactions", "search"], &Value::Object(body))?;
    if args.api.json {
        return output::json(&found);
    }
    let rows = found.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return output::print("no transaction found");
    }
    let mut table = output::table(["ID", "ARRIVED", "STATUS", "CHANNEL", "CLIENT", "TYPE", "CONTROL ID"]);
    for tx in rows {
        table.add_row([
            text(tx, &["_id"]),
            text(tx, &["request", "timestamp"]),
            text(tx, &["status"]),
            text(tx, &["channelID"]),
            text(tx, &["clientID"]),
            text(tx, &["hie", "type"]),
            text(tx, &["hie", "controlId"]),
        ]);
    }
    output::print_table(&table)
}
