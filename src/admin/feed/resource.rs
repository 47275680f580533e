//! What can be listened to.

use crate::admin::error::ApiError;
use http::StatusCode;
use std::{fmt, sync::Arc};

/// Longest name after the colon.
const LONGEST: usize = 256;

/// One resource of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Everything that happens to messages.
    Transactions,
    /// What happens to messages of one channel, by its full name.
    Channel(Arc<str>),
    /// What happens to messages of one client.
    Client(Arc<str>),
    /// What happens on the nodes of one domain.
    Domain(Arc<str>),
    /// The alerts.
    Alerts,
}

/// The kinds, as they are written and counted.
pub const KINDS: [&str; 5] = ["transactions", "channel", "client", "domain", "alerts"];

impl Resource {
    /// Its kind: one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transactions => KINDS[0],
            Self::Channel(_) => KINDS[1],
            Self::Client(_) => KINDS[2],
            Self::Domain(_) => KINDS[3],
            Self::Alerts => KINDS[4],
        }
    }

    /// Reads `transactions`, `channel:NAME`, …; 404 with the list of kinds for anything else.
    pub(in crate::admin) fn parse(text: &str) -> Result<Self, ApiError> {
        let (kind, name) = text.split_once(':').map_or((text, None), |(kind, name)| (kind, Some(name)));
        let named = name.filter(|n| !n.is_empty() && n.len() <= LONGEST && !n.chars().any(char::is_control));
        match (kind, name, named) {
            ("transactions", None, _) => Ok(Self::Transactions),
            ("alerts", None, _) => Ok(Self::Alerts),
            ("channel", _, Some(name)) => Ok(Self::Channel(name.into())),
            ("client", _, Some(name)) => Ok(Self::Client(name.into())),
            ("domain", _, Some(name)) => Ok(Self::Domain(name.into())),
            _ => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "no such resource of the live feed",
                "resources are: transactions, channel:NAMESPACE.NAME, client:NAME, domain:NAME, alerts",
            )),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transactions | Self::Alerts => f.write_str(self.kind()),
            Self::Channel(name) | Self::Client(name) | Self::Domain(name) => write!(f, "{}:{name}", self.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_the_same() {
        for text in ["transactions", "alerts", "channel:lab.results", "client:a:b", "domain:default"] {
            assert_eq!(Resource::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "x", "transactions:", "transactions:a", "channel", "channel:", "client:a\nb", "Alerts"] {
            assert!(Resource::parse(text).is_err(), "{text:?}");
        }
    }
}
