//! `hie domain partitions`: how many partitions the domain's queues have, and another number of them.

use crate::{
    cli::{
        consul::{Consul, ConsulArgs},
        exit::Failure,
        output,
    },
    config::{Layout, MOST_PARTITIONS},
    discovery::layout,
};
use clap::Args;
use serde_json::json;

/// Show or change the number of partitions of the domain's queues
///
/// The nodes change it under load: nothing is lost, and order is kept. One change at a time: it is over when what waited in the
/// queues of before has been worked off and they have been removed; until then another is refused. `hie status` on a node tells how
/// far it is, and who is waited for.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie domain partitions --config /etc/hie/hie.toml
  hie domain partitions 8 --config /etc/hie/hie.toml
  hie domain partitions --domain north --consul http://127.0.0.1:8500 --json")]
pub struct PartitionsArgs {
    /// How many there are to be, 1 to 1024; without it, shows how many there are
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_PARTITIONS)))]
    partitions: Option<u16>,
    #[command(flatten)]
    consul: ConsulArgs,
    /// Which domain [default: node.domain of the configuration]
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn main(args: &PartitionsArgs) -> Result<(), Failure> {
    let consul = Consul::open(&args.consul)?;
    let domain = args.domain.as_deref().unwrap_or(&consul.domain);
    let standing = consul.ask(layout::read(&consul.client, domain))?.ok_or_else(|| {
        Failure::failed(format!(
            "Consul's KV has no {}: is {domain} a domain whose nodes work over RabbitMQ, and may their token write that key (key:write)? \
             The first of them puts it there",
            layout::key(domain)
        ))
    })?;
    let now = standing.layout.map_err(Failure::failed)?;
    let Some(wanted) = args.partitions else { return show(domain, &now, args.json) };
    let new = now.changed(wanted).map_err(|why| Failure::failed(format!("domain {domain}: {why}")))?;
    if !consul.ask(layout::put(&consul.client, domain, &new, standing.index))? {
        return Err(Failure::failed(format!("domain {domain}: somebody else changed it in this moment; look, and try again")));
    }
    show(domain, &new, args.json)
}

/// How far the change is.
fn state(layout: &Layout) -> &'static str {
    match layout.previous {
        None => "settled",
        Some(past) if past.drained => "removing the queues of before",
        Some(_) => "changing: the queues of before are worked off",
    }
}

fn show(domain: &str, layout: &Layout, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return output::json(&json!({ "domain": domain, "layout": layout, "state": state(layout) }));
    }
    let mut table = output::table(["DOMAIN", "PARTITIONS", "BEFORE", "EPOCH", "STATE"]);
    table.add_row([
        domain.to_owned(),
        layout.partitions.to_string(),
        layout.previous.map(|past| past.partitions.to_string()).unwrap_or_default(),
        layout.epoch.to_string(),
        state(layout).to_owned(),
    ]);
    output::print_table(&table)
}
