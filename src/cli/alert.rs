//! `hie alert`: what is wrong with a running node, and whether those who should hear of it do.

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Alerts: what is wrong now; test the receivers
#[derive(Subcommand, Debug)]
pub enum AlertCommand {
    List(ListArgs),
    /// Send a test notification to every receiver and say of each whether it arrived
    #[command(after_help = "Example:\n  hie alert test --config /etc/hie/hie.toml\n\nEnds with 1 when one did not arrive.")]
    Test(TestArgs),
}

/// List what is wrong now
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie alert list
  hie alert list --recent
  hie alert list --json | jq '.active[] | select(.severity == \"critical\")'")]
pub struct ListArgs {
    /// What happened lately too: what began, changed and is over
    #[arg(long)]
    recent: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Of all receivers.
#[derive(Args, Debug)]
pub struct TestArgs {
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) fn main(command: AlertCommand) -> Result<(), Failure> {
    match command {
        AlertCommand::List(args) => list(&args),
        AlertCommand::Test(args) => test(&args.api),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let alerts = Api::open(&args.api)?.get(&["alerts"], &[])?;
    if args.api.json {
        return output::json(&alerts);
    }
    let items = |key: &str| alerts.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let active = items("active");
    if active.is_empty() {
        output::print("nothing is wrong")?;
    }
    let mut table = output::table(["SINCE", "SEVERITY", "RULE", "WHAT", "WHAT TO DO"]);
    for alert in &active {
        table.add_row(["since", "severity", "rule", "summary", "advice"].map(|key| text(alert, &[key])));
    }
    if !active.is_empty() {
        output::print_table(&table)?;
    }
    if args.recent {
        let mut table = output::table(["TIME", "EVENT", "SEVERITY", "RULE", "SUBJECT", "WHAT"]);
        for event in items("recent") {
            let of = |key: &str| text(&event, &["alert", key]);
            table.add_row([
                text(&event, &["timestamp"]),
                text(&event, &["event"]),
                of("severity"),
                of("rule"),
                of("subject"),
                of("summary"),
            ]);
        }
        output::print("")?;
        output::print_table(&table)?;
    }
    Ok(())
}

fn test(args: &ApiArgs) -> Result<(), Failure> {
    let told = Api::open(args)?.post(&["alerts", "test"], &json!({}))?;
    let all = told.as_array().cloned().unwrap_or_default();
    let arrived = |one: &Value| one.get("arrived").and_then(Value::as_bool).unwrap_or(false);
    if args.json {
        output::json(&told)?;
    } else if all.is_empty() {
        output::print("no receiver is configured: see [[alerts.mail]] and [[alerts.webhook]]")?;
    } else {
        let mut table = output::table(["KIND", "RECEIVER", "ARRIVED", "ERROR"]);
        for one in &all {
            let said = if arrived(one) { "yes" } else { "no" };
            table.add_row([text(one, &["kind"]), text(one, &["receiver"]), said.into(), text(one, &["error"])]);
        }
        output::print_table(&table)?;
    }
    match all.iter().filter(|one| !arrived(one)).count() {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} receivers did not take the test", all.len()))),
    }
}
