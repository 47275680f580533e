//! Where log lines go: the journal, JSON, or text with colour on a terminal.

use std::{fmt, io::IsTerminal, os::unix::fs::MetadataExt};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

/// The forms of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The journal when standard error is connected to it and its socket answers, else text.
    #[default]
    Auto,
    /// Text on standard error; with colour on a terminal (unless `NO_COLOR` is set).
    Text,
    /// One JSON object per line on standard error.
    Json,
    /// The journal, with fields.
    Journald,
}

/// A log that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("the log filter {filter:?} cannot be read: {reason}; try \"info\" or \"hie=debug\"")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The journal does not answer.
    #[error("the journal cannot be reached: {0}; use --log text or --log json")]
    Journal(#[from] std::io::Error),
    /// There is a log already.
    #[error("the log is set up already")]
    Twice,
}

/// Sets up the process's log. `filter` is `info`, `hie=debug`, … (tracing's directives); default `info`.
///
/// Lines of the libraries below are kept to warnings whatever the filter says: at finer levels some of them write
/// the bytes that they carry.
pub fn init(format: Format, filter: Option<&str>) -> Result<(), LogError> {
    let given = filter.filter(|f| !f.is_empty()).unwrap_or("info");
    let filter = EnvFilter::try_new(given)
        .map_err(|e: tracing_subscriber::filter::ParseError| LogError::Filter { filter: given.into(), reason: e.to_string() })?;
    let own = filter_fn(|meta| {
        let ours = meta.target().strip_prefix("hie").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        // lapin warns of a returned message with all its bytes; what operators need of it the link tells.
        ours || (*meta.level() <= tracing::Level::WARN && !meta.target().starts_with("lapin"))
    });
    let registry = tracing_subscriber::registry().with(filter);
    let text = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let journal = match format {
        Format::Journald => Some(tracing_journald::layer()?),
        // Where its socket is not to be had (a container that has only standard error), text reaches the journal too.
        Format::Auto if on_journal() => tracing_journald::layer().ok(),
        _ => None,
    };
    if let Some(journal) = journal {
        let journal = journal.with_field_prefix(Some("HIE".into())).with_syslog_identifier("hie".into());
        return registry.with(journal.with_filter(own)).try_init().map_err(|_| LogError::Twice);
    }
    let done = match format {
        Format::Json => registry.with(text().json().flatten_event(true).with_filter(own)).try_init(),
        _ => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            registry.with(text().with_ansi(colour).with_filter(own)).try_init()
        }
    };
    done.map_err(|_| LogError::Twice)
}

/// Is standard error the stream that systemd connected to the journal? (`JOURNAL_STREAM`, systemd.exec(5))
fn on_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    // /proc/self/fd/2 leads to the socket itself.
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino()))
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err("auto, text, json or journald".into()),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
            Self::Journald => "journald",
        })
    }
}
