//! The node's channels and where they come from: the folder of channel files, and those that the domain's nodes share in Consul's
//! KV. The last shared ones that were good are kept in the store: a restart needs no Consul.

use super::{keep, reload};
use crate::{
    config::{Channels, Config, SharedChannel},
    discovery::{Follow, Seen, kv},
    engine::Engine,
    telemetry::discovery as events,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, Weak},
};

const NAME: &str = "shared-channels.json";
const VERSION: u32 = 1;

/// The file. Fields that a later release adds are passed over.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Of the domain whose keys these are.
    domain: String,
    channels: Vec<Kept>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    place: String,
    name: String,
    text: String,
}

/// The shared channels kept in the store; none where discovery does not follow them. The error is for the operator.
pub fn kept(config: &Config) -> Result<Vec<SharedChannel>, String> {
    if !config.discovery.follows_channels() {
        return Ok(Vec::new());
    }
    let path = config.node.store.join(NAME);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| format!("{}: cannot be read: {e}", path.display()))?,
    };
    let hint = "move it away; the channels come from Consul again";
    let content: Content = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}; {hint}", path.display()))?;
    if content.version != VERSION {
        return Err(format!("{}: version {} is of another release; {hint}", path.display(), content.version));
    }
    // A node that was given to another domain begins with that one's.
    if content.domain != config.node.domain {
        return Ok(Vec::new());
    }
    let shared = content.channels.into_iter();
    Ok(shared.map(|k| SharedChannel { place: k.place, name: Ok(k.name), text: Ok(k.text) }).collect())
}

fn keep(store: &Path, domain: &str, channels: &[SharedChannel]) -> Result<(), String> {
    let kept = channels.iter().filter_map(|c| match (&c.name, &c.text) {
        (Ok(name), Ok(text)) => Some(Kept { place: c.place.clone(), name: name.clone(), text: text.clone() }),
        _ => None,
    });
    let content = Content { version: VERSION, domain: domain.to_owned(), channels: kept.collect() };
    let text = serde_json::to_vec_pretty(&content).map_err(|e| format!("{NAME} cannot be written: {e}"))?;
    keep::replace(store, NAME, &text)
}

struct State {
    /// In force.
    good: Vec<SharedChannel>,
    /// What stands in the KV now, when that is known.
    seen: Option<Seen>,
    /// What is wrong with it.
    problem: Option<String>,
}

/// Where channels come from. Whatever changes the channels in force does so while it holds [`Sources::changes`].
pub(super) struct Sources {
    folder: PathBuf,
    store: PathBuf,
    domain: String,
    engine: OnceLock<Weak<Engine>>,
    changes: Arc<Mutex<()>>,
    state: Mutex<State>,
}

impl Sources {
    /// With the shared channels that were kept.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let good = kept(config).map_err(|e| anyhow::anyhow!(e))?;
        events::channels(good.len(), false);
        Ok(Self {
            folder: config.node.channels.clone(),
            store: config.node.store.clone(),
            domain: config.node.domain.clone(),
            engine: OnceLock::new(),
            changes: Arc::default(),
            state: Mutex::new(State { good, seen: None, problem: None }),
        })
    }

    /// Held by whoever changes the channels in force.
    pub fn changes(&self) -> Arc<Mutex<()>> {
        self.changes.clone()
    }

    /// The channels at start.
    pub fn channels(&self) -> anyhow::Result<Channels> {
        let good = self.state().good.clone();
        reload::channels(&self.folder, &good)
    }

    /// The engine that has them; known only after it was made with them.
    pub fn joined(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts the channels in force as they are now in the folder and in the KV; with the last good shared ones where the KV's are not.
    /// The caller holds [`Sources::changes`]. Gives how many there are.
    pub fn put_in_force(&self, engine: &Engine) -> anyhow::Result<usize> {
        let (good, newer) = {
            let state = self.state();
            // What was refused may be good now, with another folder.
            let refused =
                state.seen.clone().filter(|seen| state.problem.is_some() && seen.channels != state.good && !vanished(seen));
            (state.good.clone(), refused.map(|seen| seen.channels))
        };
        if let Some(newer) = newer
            && let Ok(count) = self.configure(&newer, engine)
        {
            self.now_good(newer);
            return Ok(count);
        }
        self.configure(&good, engine)
    }

    fn now_good(&self, shared: Vec<SharedChannel>) {
        events::channels(shared.len(), false);
        let kept = keep(&self.store, &self.domain, &shared);
        if let Err(error) = &kept {
            events::ChannelsNotKept { error }.emit();
        }
        let mut state = self.state();
        state.good = shared;
        state.problem = kept.err();
    }

    fn configure(&self, shared: &[SharedChannel], engine: &Engine) -> anyhow::Result<usize> {
        let channels = reload::channels(&self.folder, shared)?;
        engine.configure(channels.list.clone()).map_err(|e| reload::refused(&channels, e))?;
        Ok(channels.list.len())
    }

    /// Names of the shared channels in force, with their places.
    pub fn shared(&self) -> BTreeMap<String, String> {
        let state = self.state();
        state.good.iter().filter_map(|c| Some((c.name.clone().ok()?, c.place.clone()))).collect()
    }

    /// What is wrong with the channels in the KV.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// For `/cluster`.
    pub fn view(&self) -> Value {
        let state = self.state();
        json!({
            "prefix": kv::prefix(&self.domain),
            "in_force": state.good.iter().filter_map(|c| c.name.clone().ok()).collect::<Vec<_>>(),
            "index": state.seen.as_ref().map(|seen| seen.index),
            "refused": state.problem,
        })
    }
}

/// Nothing there, and nothing says that this is meant.
fn vanished(seen: &Seen) -> bool {
    seen.channels.is_empty() && !seen.folder
}

impl Follow for Sources {
    fn take(&self, seen: Seen) {
        let Some(engine) = self.engine.get().and_then(Weak::upgrade) else { return };
        let _one_at_a_time = self.changes.lock().unwrap_or_else(|e| e.into_inner());
        let (same, again) = {
            let mut state = self.state();
            let again = state.seen.as_ref().is_some_and(|last| (&last.channels, last.folder) == (&seen.channels, seen.folder));
            state.seen = Some(seen.clone());
            (state.good == seen.channels, again)
        };
        // After an interruption the same comes again: it was judged already.
        if again {
            return;
        }
        if same {
            events::channels(seen.channels.len(), false);
            self.state().problem = None;
            return;
        }
        let tried = match vanished(&seen) {
            true => {
                let prefix = kv::prefix(&self.domain);
                Err(anyhow::anyhow!(
                    "Consul KV {prefix}: holds nothing any more; has Consul lost its data, or may the token not read them? To take \
                     the last shared channel away on purpose, put the key {prefix} without a value first"
                ))
            }
            false => self.configure(&seen.channels, &engine),
        };
        match tried {
            Ok(channels) => {
                events::ChannelsTaken { shared: seen.channels.len(), channels }.emit();
                self.now_good(seen.channels);
            }
            Err(error) => {
                let error = format!("{error:#}");
                events::ChannelsRefused { error: &error }.emit();
                let mut state = self.state();
                events::channels(state.good.len(), true);
                state.problem = Some(error);
            }
        }
    }
}
