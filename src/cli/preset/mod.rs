//! `hie preset`: the tiers, which one fits this machine, and the files that put one into force.

mod render;
mod show;

use super::{exit::Failure, output};
use crate::{
    host,
    preset::{self, Machine, Tier, detect::short_of_next},
};
use clap::{Args, Subcommand};
use serde_json::json;

/// Presets: the tuning for a hardware tier
///
/// A preset's values lie below those of hie.toml, the environment and flags: `[node] preset = "small-clinic"`, or "auto".
#[derive(Subcommand, Debug)]
pub enum PresetCommand {
    List(ListArgs),
    Show(show::ShowArgs),
    Detect(DetectArgs),
    Render(render::RenderArgs),
}

/// List the presets
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  hie preset list")]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say which preset fits this machine
///
/// The limits of the control group count: in a container of 2 GiB on a large machine it is the preset for 2 GiB.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie preset detect
  hie preset detect --json | jq -r .preset

`hie run --preset auto` takes the same one.")]
pub struct DetectArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(command: PresetCommand) -> Result<(), Failure> {
    match command {
        PresetCommand::List(args) => list(&args),
        PresetCommand::Show(args) => show::main(&args),
        PresetCommand::Detect(args) => detect(&args),
        PresetCommand::Render(args) => render::main(&args),
    }
}

/// What this process may use, limits of its control group included.
pub(super) fn machine() -> Machine {
    let found = host::cgroup::resources();
    Machine { cores: found.cores, memory_mib: found.memory / (1024 * 1024) }
}

/// The tier of a name, `auto` being the one that fits this machine.
fn named(name: &str) -> Result<&'static Tier, Failure> {
    if name == "auto" { Ok(preset::detect(machine())) } else { preset::find(name).map_err(Failure::usage) }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    if args.json {
        return output::json(&preset::tiers());
    }
    let headings =
        ["PRESET", "PATIENTS/DAY", "CORES", "MEMORY MIB", "DISK GB", "MBIT/S", "FEED PER RESOURCE", "IN TOTAL", "USD/MONTH"];
    let mut table = output::table(headings);
    let range = |r: preset::Range| format!("{}-{}", r.min, r.max);
    for tier in preset::tiers() {
        let h = &tier.hardware;
        table.add_row([
            tier.name.clone(),
            range(tier.patients_per_day),
            range(h.cores),
            range(h.memory_mib),
            h.disk_gb.to_string(),
            h.network_mbps.to_string(),
            tier.connections_per_resource().to_string(),
            tier.connections().to_string(),
            range(tier.cost_usd_per_month),
        ]);
    }
    output::print_table(&table)
}

fn detect(args: &DetectArgs) -> Result<(), Failure> {
    let (found, machine) = (host::cgroup::resources(), machine());
    let (tier, next) = (preset::detect(machine), short_of_next(machine));
    if args.json {
        return output::json(&json!({
            "preset": tier.name,
            "cores": machine.cores,
            "memoryMib": machine.memory_mib,
            "coreLimit": found.core_limit,
            "memoryLimitMib": found.memory_limit.map(|bytes| bytes / (1024 * 1024)),
            "next": next,
        }));
    }
    output::print(&tier.name)?;
    let limited = |limit: bool| if limit { " (limit of the control group)" } else { "" };
    let cores_limited = found.core_limit.is_some_and(|limit| limit <= machine.cores);
    output::print(format!("  cores   {}{}", machine.cores, limited(cores_limited)))?;
    output::print(format!("  memory  {} MiB{}", machine.memory_mib, limited(found.memory_limit.is_some())))?;
    next.map_or(Ok(()), |next| output::print(format!("  {next}")))
}
