//! `hie check`: the effective configuration, where each value came from, and everything that is wrong with it.

use super::{
    configuration::{ConfigArgs, flag},
    exit::Failure,
    output, sample,
};
use crate::{
    app,
    channel::{Channel, client::Client},
    config::{self, Channels, Loaded},
    ledger,
};
use clap::Args;
use serde_json::json;

/// Check the configuration, and show every value with its origin
///
/// Reads what `hie run` would read (file, environment, flags, channels, clients, certificates) and builds of it what a start would
/// build. Changes nothing, opens no port, sends nothing.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie check --config /etc/hie/hie.toml
  hie check --config hie.toml --json | jq '.values[] | select(.origin != \"default\")'

Ends with 65 when anything is wrong, and says all of it at once; with 69 when the store was written by a release whose
tables this one does not read.")]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Preset, as `hie run --preset`
    #[arg(long, value_name = "PRESET")]
    preset: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print only what is wrong
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

pub(super) fn main(args: CheckArgs) -> Result<(), Failure> {
    let preset: Vec<_> = args.preset.iter().map(|name| flag("--preset", "node.preset", name)).collect();
    let loaded = args.config.load(&preset)?;
    let (channels, clients) = contents(&loaded)?;
    builds(&loaded, &channels, &clients)?;
    let channels = channels.list;
    // A binary that is asked whether it could take over must be able to read what is stored.
    ledger::readable(&loaded.config.node.store.join("ledger")).map_err(Failure::unavailable)?;
    let warnings = warnings(&loaded, &channels, &clients);
    if args.json {
        return print_json(&loaded, &channels, &clients, &warnings);
    }
    if !args.quiet {
        print_tables(&loaded, &channels, &clients)?;
    }
    for warning in warnings {
        eprintln!("hie: warning: {warning}");
    }
    Ok(())
}

/// The channels and clients of a configuration; every mistake of both folders at once. For a node that was given no
/// configuration and has not run yet, the sample channels that it would write.
pub(super) fn contents(loaded: &Loaded) -> Result<(Channels, Vec<Client>), Failure> {
    let config = &loaded.config;
    let channels = match loaded.file {
        None if !config.node.channels.exists() => {
            let text = sample::channels(&config.node.store);
            Channels::parse(&text, "sample channels").map_err(|e| vec![e.to_string()])
        }
        _ => match app::kept_channels(config) {
            Ok(shared) => config::channels::load(&config.node.channels, &shared),
            Err(error) => Err(vec![error]),
        },
    };
    let clients = config::clients::load(&config.node.clients);
    match (channels, clients) {
        (Ok(channels), Ok(clients)) => Ok((channels, clients)),
        (channels, clients) => {
            let mut wrong = channels.err().unwrap_or_default();
            wrong.extend(clients.err().unwrap_or_default().iter().map(ToString::to_string));
            Err(Failure::config(wrong.join("\n")))
        }
    }
}

/// Builds what a start would build of it, and tells all that cannot be: certificates, destinations, receivers of alerts.
pub(super) fn builds(loaded: &Loaded, channels: &Channels, clients: &[Client]) -> Result<(), Failure> {
    app::check(loaded, channels, clients).map_err(|wrong| Failure::config(wrong.join("\n")))
}

/// What works but is probably not meant.
fn warnings(loaded: &Loaded, channels: &[Channel], clients: &[Client]) -> Vec<String> {
    let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let config = &loaded.config;
    let sample = loaded.file.is_none() && !config.node.channels.exists();
    if channels.iter().all(|c| !c.enabled) {
        warnings.push(format!("{}: no channel is enabled: every message is refused", config.node.channels.display()));
    }
    for channel in channels {
        let known = |name: &str| clients.iter().any(|c| c.name == name || c.roles.iter().any(|role| role == name));
        let named = config.mllp.iter().map(|m| &m.client).chain(config.file.iter().map(|f| &f.client)).flatten();
        let named: Vec<&String> = named.collect();
        for name in channel.allow.iter().filter(|name| !known(name) && !named.contains(name)) {
            warnings.push(format!("channel {}: no client has the name or role \"{name}\" that it allows", channel.name));
        }
        for route in &channel.routes {
            // The folders of the sample are made together with it.
            if let Some(file) = &route.within(&config.node.channels).file
                && !file.directory.is_dir()
                && !sample
            {
                let (name, route, folder) = (&channel.name, &route.name, file.directory.display());
                warnings.push(format!("channel {name}, route {route}: the folder {folder} does not exist"));
            }
        }
    }
    warnings
}

fn print_tables(loaded: &Loaded, channels: &[Channel], clients: &[Client]) -> Result<(), Failure> {
    let mut table = output::table(["KEY", "VALUE", "ORIGIN"]);
    for row in loaded.origins.rows(&loaded.config) {
        table.add_row([row.key, row.value, row.origin.to_string()]);
    }
    output::print_table(&table)?;
    if let Some(tier) = loaded.preset {
        output::print(format!("\npreset {} ({})", tier.name, tier.title))?;
    }
    output::print("")?;
    if channels.is_empty() {
        output::print(format!("no channels in {}", loaded.config.node.channels.display()))?;
    } else {
        let mut sorted: Vec<_> = channels.iter().collect();
        sorted.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        let mut table = output::table(["CHANNEL", "PRIORITY", "ENABLED", "WHEN", "ROUTES"]);
        for channel in sorted {
            let routes: Vec<_> = channel.routes.iter().map(|r| r.name.as_str()).collect();
            let (priority, enabled) = (channel.priority.to_string(), channel.enabled.to_string());
            table.add_row([&channel.name, &priority, &enabled, &channel.when, &routes.join(", ")]);
        }
        output::print_table(&table)?;
    }
    output::print(format!("\nwell: {} channels, {} clients", channels.len(), clients.len()))
}

fn print_json(loaded: &Loaded, channels: &[Channel], clients: &[Client], warnings: &[String]) -> Result<(), Failure> {
    let rows = loaded.origins.rows(&loaded.config);
    let values: Vec<_> = rows.iter().map(|r| json!({ "key": r.key, "value": r.value, "origin": r.origin.to_string() })).collect();
    let clients: Vec<_> = clients.iter().map(|c| &c.name).collect();
    output::json(
        &json!({ "preset": loaded.preset.map(|tier| &tier.name), "values": values, "channels": channels, "clients": clients, "warnings": warnings }),
    )
}
