//! One file: its messages to the engine, one after the other.

use super::{place::Taken, split::Splitter};
use crate::{
    config::WatchedFolder,
    engine::ports::{Answer, Arrival, BodyStream, Credentials, Incoming, Intake, Refusal},
    gateway::inbound::{identify, outcome},
    message::{Protocol, hl7::Header},
    telemetry::inbound::{FileTaken, Meters, Outcome},
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use std::{collections::VecDeque, io, ops::Range, path::Path, sync::Arc, time::Duration};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::sync::CancellationToken;

/// Messages up to this size are handed over whole.
const WHOLE: u64 = 256 * 1024;
/// Read at a time, and at least this much of a large message before it is handed over.
const PIECE: usize = 64 * 1024;
/// Reasons written down per file.
const REASONS: usize = 100;
/// Wait before a message is tried again, where the refusal does not say.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// What a file's messages have in common.
pub(super) struct Source<'a> {
    pub config: &'a WatchedFolder,
    pub meters: &'a Meters,
    pub intake: &'a dyn Intake,
    pub drain: &'a CancellationToken,
}

/// A file whose messages are all answered.
pub(super) struct Finished {
    pub taken: Taken,
    pub messages: u64,
    pub refused: u64,
    /// Why it goes to `failed`: fixed text with the message's number in the file.
    pub reasons: Vec<String>,
}

impl Finished {
    pub fn event<'a>(&self, folder: &'a str) -> FileTaken<'a> {
        FileTaken { folder, messages: self.messages, refused: self.refused }
    }
}

/// Accepts the messages of a file. `None` when the drain came before its end.
pub(super) async fn take(source: &Source<'_>, taken: &Taken) -> Option<Finished> {
    let named = source.config.client.as_deref().map(Arc::from);
    let client = identify(source.intake, &source.config.name, None, &Credentials::default(), named.as_ref(), false).await;
    let mut work = Work {
        source,
        client: client.as_ref().map_or_else(|_| "".into(), Arc::clone),
        remote: taken.name.to_string_lossy().into_owned(),
        listener: source.config.name.as_str().into(),
        finished: Finished { taken: taken.clone(), messages: 0, refused: 0, reasons: Vec::new() },
    };
    if let Err(denied) = client {
        source.meters.answered(Outcome::Unauthenticated);
        work.refused(&denied.to_string());
        return Some(work.finished);
    }
    let whole = match work.file(&taken.path).await {
        Ok(whole) => whole,
        // It must not stand in the way of all others. The kind only: the text may hold its path.
        Err(error) => {
            work.refused(&format!("the file cannot be read: {}", error.kind()));
            true
        }
    };
    whole.then_some(work.finished)
}

struct Work<'a> {
    source: &'a Source<'a>,
    client: Arc<str>,
    remote: String,
    listener: Arc<str>,
    finished: Finished,
}

impl Work<'_> {
    /// True at the file's end, false when the drain came first.
    async fn file(&mut self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path).await?;
        let len = file.metadata().await?.len();
        if len == 0 {
            self.refused("the file is empty");
            return Ok(true);
        }
        let mut piece = BytesMut::with_capacity(PIECE);
        file.read_buf(&mut piece).await?;
        if Header::parse(&piece).is_err() {
            return self.message(path, 0..len, None).await;
        }
        // The first message is held back until it is known whether it is the only one.
        let (mut splitter, mut ranges, mut held) = (Splitter::default(), VecDeque::new(), None);
        let mut window = Window::default();
        while !piece.is_empty() {
            window.push(&piece);
            splitter.feed(&piece, |range| ranges.push_back(range));
            while let Some(range) = ranges.pop_front() {
                if let Some(before) = held.replace(range)
                    && !self.part(path, before, &mut window).await?
                {
                    return Ok(false);
                }
            }
            piece.clear();
            file.read_buf(&mut piece).await?;
        }
        let single = splitter.end(|range| ranges.push_back(range));
        if single {
            return self.message(path, 0..len, window.get(&(0..len))).await;
        }
        for range in held.into_iter().chain(ranges) {
            if !self.part(path, range, &mut window).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One of several messages in a file.
    async fn part(&mut self, path: &Path, range: Range<u64>, window: &mut Window) -> io::Result<bool> {
        let bytes = window.get(&range);
        window.drop_before(range.end);
        self.message(path, range, bytes).await
    }

    /// One message, tried until the node takes or refuses it. False when the drain came first.
    /// `bytes`: the message, where it is at hand.
    async fn message(&mut self, path: &Path, range: Range<u64>, bytes: Option<Bytes>) -> io::Result<bool> {
        let Source { intake, drain, meters, .. } = *self.source;
        let mut wait = RETRY;
        self.finished.messages += 1;
        meters.received(range.end - range.start);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(false),
                () = intake.wait_open() => {}
            }
            let arrival = Arrival {
                client: self.client.clone(),
                protocol: Protocol::File,
                listener: self.listener.clone(),
                remote: self.remote.clone(),
                http: None,
                paced: false,
                body: match &bytes {
                    Some(bytes) => Incoming::Whole(bytes.clone()),
                    None => body(path, range.clone()).await?,
                },
            };
            let refusal = match intake.accept(arrival).await {
                Answer::Accepted { resend, .. } => {
                    meters.answered(if resend { Outcome::Resend } else { Outcome::Accepted });
                    return Ok(true);
                }
                Answer::Response { mut response, .. } => {
                    meters.answered(Outcome::Response);
                    // Read to its end, so that it is recorded whole.
                    while let Some(Ok(_)) = response.body.next().await {}
                    if response.status >= 400 {
                        self.refused(&format!("the receiver answered with status {}", response.status));
                    }
                    return Ok(true);
                }
                Answer::Refused { refusal, .. } => refusal,
            };
            meters.answered(outcome(&refusal));
            let again = match &refusal {
                Refusal::RateLimited { retry_after } | Refusal::Busy(_, retry_after) => *retry_after,
                Refusal::Store => wait,
                _ => {
                    self.refused(&refusal.to_string());
                    return Ok(true);
                }
            };
            wait = (wait * 2).min(RETRY_AT_MOST);
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(false),
                () = tokio::time::sleep(again.min(RETRY_AT_MOST)) => {}
            }
        }
    }

    fn refused(&mut self, why: &str) {
        self.finished.refused += 1;
        if self.finished.reasons.len() < REASONS {
            self.finished.reasons.push(format!("message {}: {why}", self.finished.messages.max(1)));
        }
    }
}

/// The latest bytes of a file, so that small messages are not read twice.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: BytesMut,
}

impl Window {
    fn push(&mut self, piece: &[u8]) {
        if self.bytes.len() as u64 > 2 * WHOLE {
            // Within a large message, which is read from the file.
            self.drop_before(self.end());
        }
        self.bytes.extend_from_slice(piece);
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        let small = range.end - range.start <= WHOLE;
        self.bytes.get(from..to).filter(|_| small).map(Bytes::copy_from_slice)
    }

    fn drop_before(&mut self, at: u64) {
        let n = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.advance(n);
        self.start += n as u64;
    }
}

/// A part of a file, whole or flowing.
async fn body(path: &Path, range: Range<u64>) -> io::Result<Incoming> {
    let mut file = File::open(path).await?;
    file.seek(io::SeekFrom::Start(range.start)).await?;
    let len = range.end - range.start;
    let mut part = file.take(len);
    let whole = len <= WHOLE;
    let mut head = BytesMut::with_capacity(if whole { usize::try_from(len).unwrap_or(PIECE) } else { PIECE });
    while (whole || head.len() < PIECE) && part.read_buf(&mut head).await? > 0 {}
    if whole {
        return Ok(Incoming::Whole(head.freeze()));
    }
    let rest: BodyStream = Box::pin(stream::unfold(Some(part), |part| async {
        let mut part = part?;
        let mut piece = BytesMut::with_capacity(PIECE);
        match part.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(piece)), Some(part))),
            Err(error) => Some((Err(error), None)),
        }
    }));
    Ok(Incoming::Stream { head: head.freeze(), rest })
}
