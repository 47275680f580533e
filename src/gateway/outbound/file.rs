//! Files out: each message a file, written under a temporary name in the same folder, fsynced, renamed, and the
//! folder fsynced, so that a reader never sees half a file and a delivered one survives a power cut.

use super::{ConnectorError, balance::Targets, broken, count_failure, not_sent};
use crate::{
    channel::FileTarget,
    engine::ports::{Connector, Delivery, Reply, ReplyKind, SendError},
    message::{Envelope, Protocol},
};
use futures_util::{StreamExt, future::BoxFuture};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use time::{OffsetDateTime, format_description::FormatItem, macros::format_description};

/// Longest pattern; with all places filled the name stays below the 255 bytes of a file system.
const MAX_PATTERN: usize = 100;
const STAMP: &[FormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");

/// A route into a folder.
pub(super) struct FileConnector {
    targets: Arc<Targets>,
    route: String,
    target: FileTarget,
}

impl FileConnector {
    pub(super) fn new(route: &str, target: &FileTarget, targets: Arc<Targets>) -> Result<Self, ConnectorError> {
        if let Some(name) = &target.name
            && (name.len() > MAX_PATTERN || name.contains(['/', '\0']) || name.trim_start_matches('.').is_empty())
        {
            return Err(ConnectorError::FileName(name.clone()));
        }
        Ok(Self { targets, route: safe(route), target: target.clone() })
    }

    async fn write(&self, delivery: Delivery, target: &str) -> Result<(), SendError> {
        let envelope = delivery.message.envelope();
        let directory = self.target.directory.clone();
        // The attempt's number, because an earlier attempt that timed out may still be writing.
        let temporary = directory.join(format!(".{}.{}.{}.tmp", envelope.id, self.route, delivery.attempt));
        let place = Place { name: file_name(&self.target, envelope), id: envelope.id.to_string(), directory, temporary };
        let fail = |e: io::Error| not_sent(target, describe(&e));
        if let Some(body) = delivery.message.body.clone() {
            let done = tokio::task::spawn_blocking(move || {
                let mut file = place.create()?;
                file.write_all(&body).and_then(|()| place.finish(file)).inspect_err(|_| place.abandon())
            });
            return done.await.map_err(|_| not_sent(target, "the writer was stopped"))?.map_err(fail);
        }
        let (place, file) = tokio::task::spawn_blocking(move || place.create().map(|file| (place, file)))
            .await
            .map_err(|_| not_sent(target, "the writer was stopped"))?
            .map_err(fail)?;
        let unfinished = Abandon(Some(place));
        let mut file = tokio::fs::File::from_std(file);
        let mut body = delivery.message.open();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|_| super::broken(target, "the stored body could not be read"))?;
            tokio::io::AsyncWriteExt::write_all(&mut file, &piece).await.map_err(fail)?;
        }
        let file = file.into_std().await;
        let done = tokio::task::spawn_blocking(move || unfinished.finish(file));
        done.await.map_err(|_| broken(target, "the writer was stopped"))?.map_err(fail)
    }
}

impl Connector for FileConnector {
    fn send(&self, delivery: Delivery) -> BoxFuture<'_, Result<Reply, SendError>> {
        Box::pin(async move {
            let lease = self.targets.pick(delivery.message.envelope());
            let after = delivery.timeout;
            let result = match tokio::time::timeout(after, self.write(delivery, lease.name())).await {
                Ok(result) => result,
                // A write that is still under way may yet succeed: not "not sent".
                Err(_) => Err(SendError::Timeout { target: lease.name().into(), after }),
            };
            match &result {
                Ok(()) => lease.answered(true),
                Err(error) => count_failure(&lease, error),
            }
            result.map(|()| Reply {
                target: lease.name().into(),
                kind: ReplyKind::Written,
                body: Box::pin(futures_util::stream::empty()),
                len: Some(0),
            })
        })
    }
}

/// Where one message goes.
struct Place {
    directory: PathBuf,
    temporary: PathBuf,
    name: String,
    id: String,
}

impl Place {
    fn create(&self) -> io::Result<File> {
        // 0640: health data is not for everyone on the machine; the folder's group may read.
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&self.temporary)
    }

    fn finish(&self, file: File) -> io::Result<()> {
        file.sync_all()?;
        drop(file);
        let wanted = self.directory.join(&self.name);
        if self.name.contains(&self.id) {
            // Only an earlier attempt of this very message can be there.
            std::fs::rename(&self.temporary, &wanted)?;
        } else {
            self.place_without_overwriting(&wanted)?;
        }
        File::open(&self.directory)?.sync_all()
    }

    /// The name does not tell messages apart. A hard link fails where a name is taken, which a rename does not.
    fn place_without_overwriting(&self, wanted: &Path) -> io::Result<()> {
        if std::fs::hard_link(&self.temporary, wanted).is_ok() {
            return std::fs::remove_file(&self.temporary);
        }
        let own = self.directory.join(with_id(&self.name, &self.id));
        // Taken, or a file system without links: the name with the id is this message's alone. An equal file under the
        // plain name may be an earlier attempt of ours or another message: keeping both loses nothing.
        std::fs::rename(&self.temporary, own)
    }

    fn abandon(&self) {
        // The first error is the one to report; a leftover is overwritten by the next attempt.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Removes the temporary file when the delivery is given up half-way.
struct Abandon(Option<Place>);

impl Abandon {
    fn finish(mut self, file: File) -> io::Result<()> {
        match self.0.take() {
            Some(place) => place.finish(file).inspect_err(|_| place.abandon()),
            None => Ok(()),
        }
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(place) = &self.0 {
            place.abandon();
        }
    }
}

/// The file's name: the pattern with its places filled; what comes from content is letters, digits, `-` and
/// `_` only, so that it can neither leave the folder nor hide.
fn file_name(target: &FileTarget, envelope: &Envelope) -> String {
    let hl7 = envelope.protocol == Protocol::Mllp || envelope.content_type.contains("hl7-v2");
    let pattern = target.name.as_deref().unwrap_or(if hl7 { "{id}.hl7" } else { "{id}" });
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(envelope.received_ms) * 1_000_000)
        .ok()
        .and_then(|t| t.format(STAMP).ok())
        .unwrap_or_else(|| envelope.received_ms.to_string());
    let kind = if envelope.kind.is_empty() { "unknown".into() } else { safe(&envelope.kind) };
    pattern.replace("{id}", &envelope.id.to_string()).replace("{time}", &time).replace("{kind}", &kind)
}

/// Anything but ASCII letters, digits, `-` and `_` becomes `_`, at most 64 characters.
fn safe(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

fn with_id(name: &str, id: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() => format!("{stem}-{id}.{ending}"),
        _ => format!("{name}-{id}"),
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the folder is not there: create it, or correct the route's `directory`".into(),
        io::ErrorKind::PermissionDenied => "not allowed to write there: give the node's user write access".into(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no space left there".into(),
        _ => format!("writing failed: {}", error.kind()),
    }
}
