//! Channels and clients from their folders, at start and again on SIGHUP.

use crate::{
    channel::{self, Channel, client::Client},
    config::{Config, clients as client_files},
    engine::{Engine, directory::Directory},
    telemetry::app as events,
};
use anyhow::Context;
use std::path::Path;

/// All channels of `channels.d/*.toml`, in the order of the files' names. A folder that is not there holds none.
/// The error tells every mistake of every file.
pub(super) fn channels(folder: &Path) -> anyhow::Result<Vec<Channel>> {
    let mut all = Vec::new();
    let mut wrong = Vec::new();
    for path in client_files::toml_files(folder).with_context(|| format!("channels folder {}", folder.display()))? {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).with_context(|| format!("channel file {name}"))?;
        match channel::load::parse(&text, &name) {
            Ok(channels) => all.extend(channels),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    if wrong.is_empty() { Ok(all) } else { Err(anyhow::anyhow!(wrong.join("\n"))) }
}

/// All clients of `clients.d/*.toml`. The error tells every mistake of every file.
pub(super) fn clients(folder: &Path) -> anyhow::Result<Vec<Client>> {
    client_files::load(folder)
        .map_err(|wrong| anyhow::anyhow!(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Reads both again and swaps them in, whole or not at all.
pub(super) fn all(config: &Config, engine: &Engine, directory: &Directory) {
    if let Err(error) = try_all(config, engine, directory) {
        events::ReloadRefused { error: &format!("{error:#}") }.emit();
    }
}

fn try_all(config: &Config, engine: &Engine, directory: &Directory) -> anyhow::Result<()> {
    let channels = channels(&config.node.channels)?;
    let clients = clients(&config.node.clients)?;
    let counts = (channels.len(), clients.len());
    engine.configure(channels)?;
    directory.replace(clients)?;
    events::Reloaded { channels: counts.0, clients: counts.1 }.emit();
    Ok(())
}
