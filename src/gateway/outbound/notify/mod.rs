//! Those who are told of alerts: HTTP receivers and mail servers. Secrets are read from their files at each notification, so
//! that a changed one counts at once, and stand in no error.

mod mail;
mod webhook;

use crate::{
    alert::ports::{NotSent, Receiver},
    config::Alerts,
};
use std::{path::Path, sync::Arc};

/// A receiver that cannot be made as configured; says what to correct.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Its authorities, or the client.
    #[error("alerts.webhook.{0}: {1}")]
    Webhook(usize, String),
    /// Its authorities, or the client.
    #[error("alerts.mail.{0}: {1}")]
    Mail(usize, String),
}

impl NotifyError {
    /// Its table in the configuration: `alerts.mail.0`.
    pub fn key(&self) -> String {
        match self {
            Self::Webhook(i, _) => format!("alerts.webhook.{i}"),
            Self::Mail(i, _) => format!("alerts.mail.{i}"),
        }
    }
}

/// All receivers of `[alerts]`, webhooks first; or all that is wrong with them. Opens nothing and sends nothing.
pub fn receivers(config: &Alerts, node: &str) -> Result<Vec<Arc<dyn Receiver>>, Vec<NotifyError>> {
    let mut all: Vec<Arc<dyn Receiver>> = Vec::new();
    let mut wrong = Vec::new();
    for (i, hook) in config.webhook.iter().enumerate() {
        match webhook::Webhook::new(i, hook) {
            Ok(hook) => all.push(Arc::new(hook)),
            Err(e) => wrong.push(NotifyError::Webhook(i, e)),
        }
    }
    for (i, mail) in config.mail.iter().enumerate() {
        match mail::Mail::new(i, mail, node) {
            Ok(mail) => all.push(Arc::new(mail)),
            Err(e) => wrong.push(NotifyError::Mail(i, e)),
        }
    }
    if wrong.is_empty() { Ok(all) } else { Err(wrong) }
}

/// A secret out of a file, without the line's end; the error names the file only.
fn secret(path: &Path) -> Result<String, NotSent> {
    let text = std::fs::read_to_string(path).map_err(|e| NotSent(format!("{} cannot be read: {}", path.display(), e.kind())))?;
    Ok(text.trim().to_owned())
}

/// Unix milliseconds as RFC 3339.
fn timestamp(ms: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
    time.and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}
