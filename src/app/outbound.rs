//! Joins the engine's wish for connectors with the outbound gateways.

use crate::{
    channel::Route,
    engine::ports::{Connectors, OpenConnector},
    gateway::outbound::{self, balance::Targets},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Channel and route.
type RouteName = (String, String);

/// The targets as configured, and their state.
type Known = (Vec<String>, Arc<Targets>);

/// Keeps each route's balancing state over reloads of the configuration.
pub(super) struct Outbound {
    /// Of the channel files: what relative paths of routes start from.
    folder: PathBuf,
    targets: Mutex<HashMap<RouteName, Known>>,
}

impl Outbound {
    /// For channels of this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), targets: Mutex::default() }
    }
}

impl Connectors for Outbound {
    fn prepare(&self, channel: &str, route: &Route) -> Result<OpenConnector, String> {
        let route = &route.within(&self.folder);
        let folder = route.file.iter().map(|f| f.directory.display().to_string());
        let names: Vec<String> = route.http.iter().chain(&route.mllp).cloned().chain(folder).collect();
        let targets = {
            let mut all = self.targets.lock().unwrap_or_else(|e| e.into_inner());
            let key = (channel.to_owned(), route.name.clone());
            match all.get(&key) {
                Some((known, targets)) if *known == names => targets.clone(),
                _ => {
                    let targets = Targets::new(channel, route);
                    all.insert(key, (names, targets.clone()));
                    targets
                }
            }
        };
        let (channel, route) = (channel.to_owned(), route.clone());
        Ok(Arc::new(move || outbound::connector(&channel, &route, targets.clone()).map_err(|e| e.to_string())))
    }
}
