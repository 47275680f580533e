//! `hie domain`: the domains, as Consul knows them.

mod partitions;

use super::{
    consul::{Consul, ConsulArgs},
    exit::Failure,
    output,
};
use crate::discovery::{Member, catalog, kv};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeMap;

/// Domains: sets of namespaces with nodes of their own
#[derive(Subcommand, Debug)]
pub enum DomainCommand {
    List(ListArgs),
    Partitions(partitions::PartitionsArgs),
}

/// List the domains with their namespaces and nodes
///
/// From Consul's catalog and KV; channels that are in a node's own channels.d only are not seen there.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie domain list --config /etc/hie/hie.toml
  hie domain list --consul http://127.0.0.1:8500 --json")]
pub struct ListArgs {
    #[command(flatten)]
    consul: ConsulArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct Domain {
    namespaces: Vec<String>,
    members: Vec<Member>,
}

pub(super) fn main(command: DomainCommand) -> Result<(), Failure> {
    let args = match command {
        DomainCommand::List(args) => args,
        DomainCommand::Partitions(args) => return partitions::main(&args),
    };
    let consul = Consul::open(&args.consul)?;
    let mut domains: BTreeMap<String, Domain> = BTreeMap::new();
    for member in consul.ask(catalog::members(&consul.client))? {
        domains.entry(member.domain.clone()).or_default().members.push(member);
    }
    for (domain, namespace) in consul.ask(kv::namespaces(&consul.client))? {
        domains.entry(domain).or_default().namespaces.push(namespace);
    }
    if args.json {
        return output::json(&domains);
    }
    if domains.is_empty() {
        return output::print("no node is registered, and no channel is in the KV");
    }
    let mut table = output::table(["DOMAIN", "NAMESPACES", "NODE", "HEALTH", "VERSION"]);
    for (name, domain) in &domains {
        let namespaces = domain.namespaces.join(", ");
        if domain.members.is_empty() {
            table.add_row([name.as_str(), &namespaces, "none", "", ""]);
        }
        for (i, member) in domain.members.iter().enumerate() {
            // Named once.
            let (name, namespaces) = if i == 0 { (name.as_str(), namespaces.as_str()) } else { ("", "") };
            table.add_row([name, namespaces, &member.node, &member.health, &member.version]);
        }
    }
    output::print_table(&table)
}
