//! `hie channel`: the channels in force in a running node.

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::{Args, Subcommand};
use serde_json::Value;

/// Channels: which messages go where
#[derive(Subcommand, Debug)]
pub enum ChannelCommand {
    List(ListArgs),
}

/// List the channels in force in a running node, in the order in which they are asked
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  hie channel list --config /etc/hie/hie.toml

`hie check` shows the channels as they are in the files.")]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) fn main(command: ChannelCommand) -> Result<(), Failure> {
    let ChannelCommand::List(args) = command;
    let channels = Api::open(&args.api)?.get(&["channels"], &[])?;
    if args.api.json {
        return output::json(&channels);
    }
    let mut table = output::table(["CHANNEL", "PRIORITY", "ENABLED", "MODE", "ORDER", "WHEN", "ROUTES"]);
    for channel in channels.as_array().into_iter().flatten() {
        let routes = channel.get("route").or_else(|| channel.get("routes")).and_then(Value::as_array);
        let routes: Vec<String> = routes.into_iter().flatten().map(|r| text(r, &["name"])).collect();
        let mut row = ["name", "priority", "enabled", "mode", "order", "when"].map(|key| text(channel, &[key])).to_vec();
        row.push(routes.join(", "));
        table.add_row(row);
    }
    output::print_table(&table)
}
