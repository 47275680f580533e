//! Watched folders: files in.
//!
//! A file is taken when its size and time of change have stood still for `settle`, the oldest change first, then by name.
//! It is first renamed into `.taking/`, then its messages are accepted one after the other, then it is moved to `done/`, or, when any of
//! them was refused, to `failed/` with a `.reason` file beside it. Nothing is ever overwritten: a name in use gets a suffix.
//!
//! A file that begins with MSH, FHS or BHS is HL7: each message in it is one message; a file of one message without batch
//! segments is handed over whole, byte for byte. Any other file is one message. Large ones are never in memory whole.
//!
//! While the node pushes back (queues full, store full, over the rate) the file waits and is tried again.
//!
//! A crash: what lies in `.taking/` is taken again at the next start, from its beginning. Messages that had been accepted are then
//! recognised as resends (HL7 messages, within the resend window: same client, MSH-3, MSH-4, MSH-10 and body) and not delivered again.
//! A file that is not HL7 carries nothing to recognise it by: if the node dies between its accept and its rename, it is
//! delivered twice, never lost.
//!
//! Only one accepting instance may watch a folder. `done` and `failed` must be on its file system, and hidden files (a leading dot) are never taken.

mod place;
mod scan;
mod split;
mod take;

use crate::{
    config::WatchedFolder,
    engine::ports::Intake,
    telemetry::inbound::{FolderFailed, Meters},
};
use place::Places;
use scan::Scan;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The same trouble is logged again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Watches until `drain` is cancelled; the message in hand is finished first, the rest of its file waits in `.taking/`.
pub async fn watch(config: WatchedFolder, intake: Arc<dyn Intake>, drain: CancellationToken) {
    let mut watch = Watch {
        places: Places::new(&config),
        scan: Scan::default(),
        meters: Meters::new(&config.name),
        trouble: None,
        unmoved: None,
        config,
    };
    loop {
        if let Err((doing, error)) = watch.look(&*intake, &drain).await {
            watch.tell(doing, &error);
        }
        tokio::select! {
            biased;
            () = drain.cancelled() => return,
            () = tokio::time::sleep(watch.config.poll) => {}
        }
    }
}

struct Watch {
    config: WatchedFolder,
    places: Places,
    scan: Scan,
    meters: Meters,
    /// What was told last, and when.
    trouble: Option<(&'static str, io::ErrorKind, Instant)>,
    /// A file that is finished and could not be moved away: it must not be accepted again, so nothing else is taken until it is gone.
    unmoved: Option<take::Finished>,
}

/// What was being done, and how it failed.
type Trouble = (&'static str, io::Error);

impl Watch {
    /// One look: what was left over, then all files that have settled.
    async fn look(&mut self, intake: &dyn Intake, drain: &CancellationToken) -> Result<(), Trouble> {
        self.places.prepare().await?;
        if let Some(finished) = self.unmoved.take() {
            self.move_away(finished).await?;
        }
        for taken in self.places.left_over().await? {
            if !self.take(&taken, intake, drain).await? {
                return Ok(());
            }
        }
        for name in self.scan.settled(&self.config).await? {
            if drain.is_cancelled() {
                return Ok(());
            }
            let taken = self.places.begin(&name).await?;
            self.scan.forget(&name);
            if !self.take(&taken, intake, drain).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes one file in `.taking/` to its end. False when the drain came before that.
    async fn take(&mut self, taken: &place::Taken, intake: &dyn Intake, drain: &CancellationToken) -> Result<bool, Trouble> {
        let source = take::Source { config: &self.config, meters: &self.meters, intake, drain };
        match take::take(&source, taken).await {
            Some(finished) => self.move_away(finished).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn move_away(&mut self, finished: take::Finished) -> Result<(), Trouble> {
        if let Err(trouble) = self.places.end(&finished).await {
            self.unmoved = Some(finished);
            return Err(trouble);
        }
        finished.event(&self.config.name).emit();
        Ok(())
    }

    fn tell(&mut self, doing: &'static str, error: &io::Error) {
        let again = match self.trouble {
            Some((d, k, at)) => d != doing || k != error.kind() || at.elapsed() >= TELL_AGAIN,
            None => true,
        };
        if again {
            FolderFailed { folder: &self.config.name, doing, error }.emit();
            self.trouble = Some((doing, error.kind(), Instant::now()));
        }
    }
}
