//! `hie run`: the node.

use super::{
    configuration::{ConfigArgs, flag},
    exit::Failure,
    output, sample,
};
use crate::{
    app::{self, Ended, StartError},
    config::{Config, Loaded},
    host::{
        limits,
        listeners::{Listeners, Wanted, inherited},
        lock::StoreLock,
        log,
        upgrade::Upgrade,
    },
    telemetry::host::{ConfigWarning, PresetInForce},
};
use clap::Args;
use std::sync::Arc;

/// Run the node
///
/// Without a configuration: an embedded node on loopback with sample channels, everything it keeps in ./hie-data (or
/// $XDG_STATE_HOME/hie).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie run
  hie run --config /etc/hie/hie.toml --cluster auto
  hie run --preset small-clinic
  HIE_MLLP__LISTEN=0.0.0.0:2575 hie run --log json

Signals: TERM and INT drain and end, a second one ends at once; HUP reads channels and clients again; USR2 drains and goes on as the binary that
is on disk then, without refusing a connection.")]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Accepting instances that share the ports: a number, or auto for one per core (node.cluster)
    #[arg(long, value_name = "N|auto")]
    cluster: Option<String>,
    /// Preset whose values lie below those of the file: a name, or auto for the one that fits this machine (node.preset)
    #[arg(long, value_name = "PRESET")]
    preset: Option<String>,
    /// Form of the log: auto (the journal under systemd, else text), text, json, journald
    #[arg(long, value_name = "FORM", default_value_t)]
    log: log::Format,
    /// What to log: info, debug, hie::engine=debug, … [default: HIE_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

pub(super) fn main(args: RunArgs) -> Result<(), Failure> {
    let cluster = args.cluster.iter().map(|n| flag("--cluster", "node.cluster", n));
    let preset = args.preset.iter().map(|name| flag("--preset", "node.preset", name));
    let loaded = args.config.load(&cluster.chain(preset).collect::<Vec<_>>())?;
    let filter = args.log_level.or_else(|| std::env::var("HIE_LOG").ok());
    log::init(args.log, filter.as_deref()).map_err(Failure::usage)?;
    for warning in &loaded.warnings {
        ConfigWarning { text: &warning.to_string() }.emit();
    }
    if let Some(tier) = loaded.preset {
        let feed = &loaded.config.feed;
        let per_resource = feed.max_connections_per_resource;
        PresetInForce { preset: &tier.name, per_resource, timeout: feed.timeout }.emit();
    }

    let mut check = vec!["check".into(), "--quiet".into()];
    check.extend(args.config.to_args());
    check.extend(args.preset.iter().flat_map(|name| ["--preset".into(), name.into()]));
    let upgrade = Upgrade::record(check).map_err(|e| Failure::failed(format!("cannot find this binary: {e}")))?;
    limits::raise_open_files();
    // Told here with every place, before anything is opened.
    let (channels, clients) = super::check::contents(&loaded)?;
    super::check::builds(&loaded, &channels, &clients)?;
    let store = StoreLock::take(&loaded.config.node.store).map_err(Failure::unavailable)?;
    let sample = loaded.file.is_none();
    if sample {
        sample::write(&loaded.config)?;
    }
    let listeners = Arc::new(Listeners::open(&wanted(&loaded.config), inherited()).map_err(Failure::unavailable)?);
    if sample {
        output::print(sample::welcome(&loaded.config, &listeners))?;
    }
    serve(&loaded, &listeners, &upgrade)?;
    drop(store);
    Ok(())
}

/// What the configuration wants to listen on. One thread serves administration and one health, whatever the number of
/// instances.
fn wanted(config: &Config) -> Vec<Wanted> {
    let instances = config.node.cluster.instances();
    let wanted = |(name, address): (String, _)| {
        let instances = if matches!(name.as_str(), "admin" | "health") { 1 } else { instances };
        Wanted { name, address, instances }
    };
    config.listeners().into_iter().map(wanted).collect()
}

/// Runs the node; after a drain for an upgrade, becomes the binary on disk.
fn serve(loaded: &Loaded, listeners: &Arc<Listeners>, upgrade: &Upgrade) -> Result<(), Failure> {
    loop {
        match app::run(loaded, listeners.clone(), upgrade) {
            Ok(Ended::Stopped) => return Ok(()),
            // Returns only when it failed, which is in the log. The sockets are open still: the node goes on as it was.
            Ok(Ended::Upgrade) => drop(upgrade.exec(listeners)),
            Err(error @ StartError::Config(_)) => return Err(Failure::config(error)),
            Err(error @ StartError::Unavailable(_)) => return Err(Failure::unavailable(error)),
        }
    }
}
