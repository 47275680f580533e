//! What operators said about routes (paused, resumed), in `<store>/paused.json`: a route stays as an operator left it over
//! restarts and upgrades. Replaced atomically and fsynced.

use crate::{
    engine::ports::{OperatorsWord, Pauses},
    telemetry::app as events,
};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::PathBuf};

const NAME: &str = "paused.json";
const VERSION: u32 = 1;

/// The file. Fields that a later release adds are passed over.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    routes: Vec<OperatorsWord>,
}

/// Keeps them below the store.
pub(super) struct PausesFile {
    store: PathBuf,
}

impl PausesFile {
    pub fn new(store: PathBuf) -> Self {
        Self { store }
    }

    fn read(&self) -> io::Result<Vec<OperatorsWord>> {
        let text = match fs::read(self.store.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text?,
        };
        let content: Content = serde_json::from_slice(&text)?;
        match content.version {
            VERSION => Ok(content.routes),
            other => Err(io::Error::other(format!("version {other} is of another release"))),
        }
    }
}

impl Pauses for PausesFile {
    fn load(&self) -> Vec<OperatorsWord> {
        self.read().unwrap_or_else(|error| {
            // Accepting goes before pausing: the node starts, and says so. What is there is kept for a look.
            events::PausesUnreadable { file: NAME, error: &error }.emit();
            let _ = fs::rename(self.store.join(NAME), self.store.join(format!("{NAME}.unreadable")));
            Vec::new()
        })
    }

    fn keep(&self, words: &[OperatorsWord]) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(&Content { version: VERSION, routes: words.to_vec() })
            .map_err(|e| format!("{NAME} cannot be written: {e}"))?;
        super::keep::replace(&self.store, NAME, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_as_none() {
        let store = tempfile::tempdir().expect("a folder");
        let file = PausesFile::new(store.path().into());
        assert_eq!(file.load(), []);
        let words = [OperatorsWord { channel: "a.b".into(), route: "r".into(), paused: true }];
        file.keep(&words).expect("written");
        assert_eq!(file.load(), words);
        fs::write(store.path().join(NAME), "{\"version\":1,").expect("written");
        assert_eq!(file.load(), []);
        file.keep(&words).expect("written over");
        assert_eq!(file.load(), words);
        assert!(PausesFile::new(store.path().join("absent")).keep(&words).is_err());
    }
}
