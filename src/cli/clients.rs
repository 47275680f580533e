//! `hie client`: who may send.

use super::{
    client::{Api, ApiArgs},
    exit::Failure,
    output,
};
use crate::engine::directory::hash_password;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::io::{BufRead, IsTerminal};

/// Clients: who may send
#[derive(Subcommand, Debug)]
pub enum ClientCommand {
    List(ListArgs),
    HashPassword(HashArgs),
}

/// List the clients in force in a running node
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  hie client list --config /etc/hie/hie.toml")]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
}

/// Print the hash of a password, for `password` in clients.d
///
/// Reads the password from standard input (one line), so that it stands in no list of processes and in no shell's history.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  hie client hash-password < password.txt")]
pub struct HashArgs {}

pub(super) fn main(command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::List(args) => list(&args.api),
        ClientCommand::HashPassword(_) => hash(),
    }
}

fn list(args: &ApiArgs) -> Result<(), Failure> {
    let clients = Api::open(args)?.get(&["clients"], &[])?;
    if args.json {
        return output::json(&clients);
    }
    let mut table = output::table(["CLIENT", "ROLES", "ENABLED"]);
    for client in clients.as_array().into_iter().flatten() {
        let name = output::text(client, &["clientID", "name"]);
        let roles: Vec<&str> =
            client.get("roles").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let enabled = client.get("enabled").and_then(Value::as_bool).unwrap_or(true);
        table.add_row([name, roles.join(", "), enabled.to_string()]);
    }
    output::print_table(&table)
}

fn hash() -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("Type the password (it is shown) and Enter:");
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(|e| Failure::failed(format!("no password on standard input: {e}")))?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::usage("the password is empty; write it to standard input"));
    }
    output::print(hash_password(password.as_bytes()).map_err(Failure::failed)?)
}
