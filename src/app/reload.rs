//! Channels and clients from where they are kept, at start and again on SIGHUP.

use super::shared::Sources;
use crate::{
    channel::client::Client,
    config::{Channels, Config, SharedChannel, channels as channel_files, clients as client_files},
    engine::{Engine, SetError, directory::Directory},
    telemetry::app as events,
};
use anyhow::Context;
use std::path::Path;

/// All channels of `channels.d/*.toml`, in the order of the files' names, and the shared ones. A folder that is not there holds
/// none. The error tells every mistake.
pub(super) fn channels(folder: &Path, shared: &[SharedChannel]) -> anyhow::Result<Channels> {
    channel_files::load(folder, shared).map_err(|wrong| anyhow::anyhow!(wrong.join("\n")))
}

/// Why the engine refuses the channels, with the place of the route that it names.
pub(super) fn refused(channels: &Channels, error: SetError) -> anyhow::Error {
    match error {
        SetError::Route(channel, route, what) => anyhow::anyhow!(channels.wrong(&channel, &route, &what)),
        other => other.into(),
    }
}

/// All clients of `clients.d/*.toml`. The error tells every mistake of every file.
pub(super) fn clients(folder: &Path) -> anyhow::Result<Vec<Client>> {
    client_files::load(folder)
        .map_err(|wrong| anyhow::anyhow!(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Reads both again and swaps them in, whole or not at all.
pub(super) fn all(config: &Config, sources: &Sources, engine: &Engine, directory: &Directory) {
    if let Err(error) = try_all(config, sources, engine, directory) {
        events::ReloadRefused { error: &format!("{error:#}") }.emit();
    }
}

fn try_all(config: &Config, sources: &Sources, engine: &Engine, directory: &Directory) -> anyhow::Result<()> {
    let changes = sources.changes();
    let _one_at_a_time = changes.lock().unwrap_or_else(|e| e.into_inner());
    let clients = clients(&config.node.clients)?;
    // Compiled before the channels are in force: both or neither.
    Directory::new(clients.clone()).with_context(|| format!("clients of {}", config.node.clients.display()))?;
    let (channels, clients_known) = (sources.put_in_force(engine)?, clients.len());
    directory.replace(clients)?;
    events::Reloaded { channels, clients: clients_known }.emit();
    Ok(())
}
