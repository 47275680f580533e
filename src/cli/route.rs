//! `hie route`: the ways out of a running node.

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::time::Duration;

/// Routes: how deliveries stand; hold them, let them go on
#[derive(Subcommand, Debug)]
pub enum RouteCommand {
    List(ListArgs),
    /// Hold a route until it is resumed, also over restarts: deliveries in hand end, new ones wait, accepting goes on
    #[command(after_help = "Example:\n  hie route pause lab.results ehr")]
    Pause(OneArgs),
    /// Let a held route go on
    #[command(after_help = "Example:\n  hie route resume lab.results ehr")]
    Resume(OneArgs),
}

/// List all routes with their queues
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie route list
  hie route list --json | jq '.[] | select(.parked > 0)'")]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
}

/// One route.
#[derive(Args, Debug)]
pub struct OneArgs {
    /// Full name of the channel
    channel: String,
    /// Name of the route
    route: String,
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) fn main(command: RouteCommand) -> Result<(), Failure> {
    match command {
        RouteCommand::List(args) => list(&args.api),
        RouteCommand::Pause(args) => change(&args, "pause"),
        RouteCommand::Resume(args) => change(&args, "resume"),
    }
}

fn list(args: &ApiArgs) -> Result<(), Failure> {
    let routes = Api::open(args)?.get(&["routes"], &[])?;
    if args.json {
        return output::json(&routes);
    }
    print(routes.as_array().map(Vec::as_slice).unwrap_or_default())
}

fn change(args: &OneArgs, action: &str) -> Result<(), Failure> {
    let route = Api::open(&args.api)?.post(&["routes", &args.channel, &args.route, action], &json!({}))?;
    if args.api.json { output::json(&route) } else { print(&[route]) }
}

/// What the route does with what waits.
fn state(route: &Value) -> String {
    let is = |key: &str| route.get(key).and_then(Value::as_bool);
    match (is("configured"), is("paused")) {
        (Some(false), _) => "not configured".into(),
        (_, Some(true)) => match text(route, &["paused_by"]) {
            by if by.is_empty() => "paused".into(),
            by => format!("paused ({by})"),
        },
        _ => "open".into(),
    }
}

fn print(routes: &[Value]) -> Result<(), Failure> {
    let mut table = output::table(["CHANNEL", "ROUTE", "STATE", "WAITING", "IN FLIGHT", "PARKED", "OLDEST", "LAST ERROR"]);
    for route in routes {
        let yes = |key: &str| route.get(key).and_then(Value::as_bool).unwrap_or(false);
        let oldest = route.get("oldest_ms").and_then(Value::as_u64).unwrap_or(0);
        let name = text(route, &["route"]);
        table.add_row([
            text(route, &["channel"]),
            if yes("primary") { name + " (primary)" } else { name },
            state(route),
            text(route, &["pending"]),
            text(route, &["in_flight"]),
            text(route, &["parked"]),
            // Whole seconds are as fine as anyone looks at a queue.
            if oldest == 0 { String::new() } else { humantime::format_duration(Duration::from_secs(oldest / 1000)).to_string() },
            text(route, &["last_error"]),
        ]);
    }
    output::print_table(&table)
}
