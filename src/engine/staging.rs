//! A message's bytes on their way into the log: small ones whole, large ones piece by piece, hashed as they come.

use super::{
    fact::BodyRef,
    ports::{BodyStream, Log, LogError, Refusal},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use xxhash_rust::xxh3::Xxh3;

/// The size of a piece in the log.
const PIECE: usize = 256 * 1024;

/// A staged body.
pub(super) struct Staged {
    /// The reference for the accept fact.
    pub body: BodyRef,
    /// The bytes, when whole.
    pub whole: Option<Bytes>,
    /// Length in bytes.
    pub len: u64,
    /// xxh3-128.
    pub hash: u128,
}

/// A body that is all there.
pub(super) fn whole(bytes: Bytes, transient: bool) -> Staged {
    let hash = xxhash_rust::xxh3::xxh3_128(&bytes);
    let len = bytes.len() as u64;
    if bytes.is_empty() {
        return Staged { body: BodyRef::None, whole: None, len, hash };
    }
    let body = if transient { BodyRef::OwnTransient } else { BodyRef::Own };
    Staged { body, whole: Some(bytes), len, hash }
}

/// A body that still arrives: goes into the log piece by piece; never more than a piece or two in memory.
pub(super) async fn pieces(
    head: Bytes,
    mut rest: BodyStream,
    log: &dyn Log,
    transient: bool,
    limit: u64,
) -> Result<Staged, Refusal> {
    let mut hasher = Xxh3::new();
    let mut seqs = Vec::new();
    let mut len = 0u64;
    let mut buffer = BytesMut::with_capacity(PIECE);
    let mut next = Some(head);
    loop {
        if let Some(piece) = next {
            len += piece.len() as u64;
            if len > limit {
                return Err(Refusal::TooLarge { limit });
            }
            hasher.update(&piece);
            let mut piece = piece;
            while !piece.is_empty() {
                let room = (PIECE - buffer.len()).min(piece.len());
                buffer.extend_from_slice(&piece.split_to(room));
                if buffer.len() == PIECE {
                    let full = std::mem::replace(&mut buffer, BytesMut::with_capacity(PIECE)).freeze();
                    seqs.push(log.chunk(full, transient).await.map_err(refusal)?);
                }
            }
        }
        match rest.next().await {
            Some(Ok(piece)) => next = Some(piece),
            Some(Err(e)) => return Err(broken_off(e)),
            None => break,
        }
    }
    let hash = hasher.digest128();
    if seqs.is_empty() {
        let mut staged = whole(buffer.freeze(), transient);
        staged.hash = hash;
        return Ok(staged);
    }
    if !buffer.is_empty() {
        seqs.push(log.chunk(buffer.freeze(), transient).await.map_err(refusal)?);
    }
    Ok(Staged { body: BodyRef::Chunks { seqs, transient }, whole: None, len, hash })
}

/// See [`super::ports::Incoming::Stream`].
fn broken_off(error: std::io::Error) -> Refusal {
    match error.downcast::<Refusal>() {
        Ok(refusal) => refusal,
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => Refusal::TooSlow,
        Err(_) => Refusal::Aborted,
    }
}

/// What the sender is told when the log cannot take it.
pub(super) fn refusal(error: LogError) -> Refusal {
    match error {
        LogError::Busy => Refusal::Busy("too much is waiting to be written", std::time::Duration::from_secs(1)),
        LogError::Full | LogError::Failed(_) => Refusal::Store,
    }
}
