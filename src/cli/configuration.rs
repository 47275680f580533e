//! The options that name the configuration.

use super::exit::Failure;
use crate::config::{self, Flag, Loaded};
use clap::Args;
use std::{ffi::OsString, path::PathBuf};

/// Which configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file [default: HIE_CONFIG; without one, the sample configuration]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the ledger, the admin token and the lock (node.store)
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,
    /// Any other key, above file and environment: --set http.listen=127.0.0.1:6001
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.split('.').count() < 2 {
        return Err("the key is written section.key, such as http.listen".into());
    }
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl ConfigArgs {
    /// Reads all layers; `more` are flags of the subcommand.
    pub(super) fn load(&self, more: &[Flag]) -> Result<Loaded, Failure> {
        let store = self.store.iter().map(|value| flag("--store", "node.store", value));
        let set = self.set.iter().map(|(key, value)| flag(&format!("--set {key}"), key, value));
        let flags: Vec<Flag> = store.chain(set).chain(more.iter().cloned()).collect();
        let mut loaded = config::load(self.config.as_deref(), std::env::vars_os(), &flags, &super::preset::machine)
            .map_err(Failure::config)?;
        if loaded.config.node.name.is_empty() {
            loaded.config.node.name = crate::host::hostname();
        }
        Ok(loaded)
    }

    /// The same options as arguments for another `hie`.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let config = self.config.iter().flat_map(|path| ["--config".into(), path.clone().into_os_string()]);
        let store = self.store.iter().flat_map(|dir| ["--store".into(), dir.into()]);
        let set = self.set.iter().flat_map(|(key, value)| ["--set".into(), format!("{key}={value}").into()]);
        config.chain(store).chain(set).collect()
    }
}

/// A flag that sets a key.
pub(super) fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag { name: name.into(), key: key.into(), value: value.into() }
}
