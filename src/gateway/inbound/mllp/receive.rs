//! A large frame on its way to the engine: handed over piece by piece while it arrives, so that its size costs no memory.

use crate::engine::ports::{BodyStream, Refusal};
use bytes::Bytes;
use std::{
    io,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Pieces between the connection and the engine; while there are as many, nothing is read.
const IN_BETWEEN: usize = 4;

enum Piece {
    Next(Bytes),
    Last(Bytes),
    /// The frame turned out to be none that can be taken.
    Refused(Refusal),
}

/// The connection's side of a large frame.
pub(super) struct Receiving {
    to: PollSender<Piece>,
    /// The engine wants no more of it: it has refused the message.
    unwanted: bool,
}

impl Receiving {
    /// With what the engine reads: all pieces, then the end; an error when the frame was refused or never ended.
    pub fn new() -> (Self, BodyStream) {
        let (to, mut from) = mpsc::channel(IN_BETWEEN);
        let mut ended = false;
        let stream = futures_util::stream::poll_fn(move |cx| {
            if ended {
                return Poll::Ready(None);
            }
            let piece = ready!(from.poll_recv(cx));
            ended = !matches!(piece, Some(Piece::Next(_)));
            Poll::Ready(Some(match piece {
                Some(Piece::Next(piece) | Piece::Last(piece)) => Ok(piece),
                Some(Piece::Refused(refusal)) => Err(io::Error::other(refusal)),
                // The connection ended within the frame: never to be taken for the end of the message.
                None => Err(io::ErrorKind::ConnectionAborted.into()),
            }))
        });
        (Self { to: PollSender::new(to), unwanted: false }, Box::pin(stream))
    }

    /// Resolves when there is room for one piece; to be waited for before each.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.unwanted {
            self.unwanted = ready!(self.to.poll_reserve(cx)).is_err();
        }
        Poll::Ready(())
    }

    pub fn next(&mut self, piece: Bytes) {
        self.send(Piece::Next(piece));
    }

    pub fn last(mut self, piece: Bytes) {
        self.send(Piece::Last(piece));
    }

    pub fn refuse(mut self, refusal: Refusal) {
        self.send(Piece::Refused(refusal));
    }

    fn send(&mut self, piece: Piece) {
        // Fails when the engine wants no more of it.
        self.unwanted = self.unwanted || self.to.send_item(piece).is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    async fn ready(receiving: &mut Receiving) {
        std::future::poll_fn(|cx| receiving.poll_ready(cx)).await;
    }

    #[tokio::test]
    async fn ends_only_with_the_last_piece() {
        let (mut receiving, mut stream) = Receiving::new();
        ready(&mut receiving).await;
        receiving.next(Bytes::from_static(b"a"));
        ready(&mut receiving).await;
        receiving.last(Bytes::from_static(b"b"));
        assert_eq!(stream.next().await.map(|p| p.ok()), Some(Some(Bytes::from_static(b"a"))));
        assert_eq!(stream.next().await.map(|p| p.ok()), Some(Some(Bytes::from_static(b"b"))));
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn one_that_breaks_off_is_an_error_and_a_refusal_is_told() {
        let (mut receiving, mut stream) = Receiving::new();
        ready(&mut receiving).await;
        receiving.next(Bytes::from_static(b"a"));
        drop(receiving);
        assert!(stream.next().await.is_some_and(|p| p.is_ok()));
        assert!(stream.next().await.is_some_and(|p| p.is_err()));
        let (mut receiving, mut stream) = Receiving::new();
        ready(&mut receiving).await;
        receiving.refuse(Refusal::TooLarge { limit: 7 });
        let error = stream.next().await.and_then(Result::err).expect("an error");
        assert_eq!(error.downcast::<Refusal>().ok(), Some(Refusal::TooLarge { limit: 7 }));
    }

    #[tokio::test]
    async fn what_nobody_wants_is_passed_over() {
        let (mut receiving, stream) = Receiving::new();
        drop(stream);
        for _ in 0..2 * IN_BETWEEN {
            ready(&mut receiving).await;
            receiving.next(Bytes::from_static(b"a"));
        }
        receiving.last(Bytes::new());
    }
}
