//! `[[file]]`: watched folders.

use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// `[[file]]`: a watched folder. Default: none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchedFolder {
    /// Name in rules, ordering keys and metrics. Default `folder`.
    pub name: String,
    /// The folder; must be given and exist.
    pub directory: PathBuf,
    /// File name pattern with `*` and `?`. Default `*`.
    pub pattern: String,
    /// Time between looks. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// Size and time of change must have stood still this long. Default 2 s.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// Subfolder for files taken. Default `done`.
    pub done: PathBuf,
    /// Subfolder for files refused. Default `failed`.
    pub failed: PathBuf,
    /// Client name for its messages. Default: `anonymous`.
    pub client: Option<String>,
}

impl Default for WatchedFolder {
    fn default() -> Self {
        Self {
            name: "folder".into(),
            directory: PathBuf::new(),
            pattern: "*".into(),
            poll: Duration::from_secs(1),
            settle: Duration::from_secs(2),
            done: "done".into(),
            failed: "failed".into(),
            client: None,
        }
    }
}
