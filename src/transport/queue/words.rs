//! What operators said about routes, in memory and in the keeper that outlives the process.

use crate::engine::ports::{OperatorsWord, Pauses};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// See the module. A route that nobody spoke about goes by its configuration.
pub struct Words {
    keeper: Arc<dyn Pauses>,
    /// Channel and route.
    said: Mutex<BTreeMap<(String, String), bool>>,
}

impl Words {
    /// With what was kept.
    pub fn new(keeper: Arc<dyn Pauses>) -> Self {
        let said = keeper.load().into_iter().map(|word| ((word.channel, word.route), word.paused)).collect();
        Self { keeper, said: Mutex::new(said) }
    }

    /// What was said about a route: `Some(true)`, paused.
    pub fn about(&self, channel: &str, route: &str) -> Option<bool> {
        self.lock().get(&(channel.to_owned(), route.to_owned())).copied()
    }

    /// Notes a word, or that there is none any more; `apply` makes it true before anybody else can say another.
    /// The error: it is in force, but could not be kept.
    pub fn say(&self, channel: &str, route: &str, word: Option<bool>, apply: impl FnOnce()) -> Result<(), String> {
        let mut said = self.lock();
        apply();
        let key = (channel.to_owned(), route.to_owned());
        let before = match word {
            Some(word) => said.insert(key, word),
            None => said.remove(&key),
        };
        // One that could not be kept before is tried again.
        if before == word && before.is_none() { Ok(()) } else { self.keep(&said) }
    }

    /// A resumed route whose configuration no longer pauses it needs no word; a later `paused = true` shall count.
    pub fn forget_resumed(&self, open: impl Fn(&str, &str) -> bool) {
        let mut said = self.lock();
        let before = said.len();
        said.retain(|(channel, route), paused| *paused || !open(channel, route));
        if said.len() != before {
            // A failure costs nothing now: it is written with the next word.
            let _ = self.keep(&said);
        }
    }

    fn keep(&self, said: &BTreeMap<(String, String), bool>) -> Result<(), String> {
        let words = said.iter().map(|((channel, route), paused)| OperatorsWord {
            channel: channel.clone(),
            route: route.clone(),
            paused: *paused,
        });
        self.keeper.keep(&words.collect::<Vec<_>>())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), bool>> {
        self.said.lock().unwrap_or_else(|e| e.into_inner())
    }
}
