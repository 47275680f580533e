//! Response bodies as hyper takes them.

use super::pulse::Busy;
use crate::engine::ports::BodyStream;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Body, Frame, SizeHint};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

/// A response's body. Holds the request "in hand" until it is written.
pub(super) struct OutBody {
    kind: Kind,
    _busy: Option<Busy>,
}

enum Kind {
    /// Empty when taken.
    Whole(Bytes),
    /// `left`: bytes to come, where the upstream has said so.
    Stream { stream: BodyStream, left: Option<u64> },
}

impl OutBody {
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Whole(bytes.into()), _busy: None }
    }

    pub fn stream(stream: BodyStream, len: Option<u64>) -> Self {
        match len {
            Some(0) => Self::whole(Bytes::new()),
            left => Self { kind: Kind::Stream { stream, left }, _busy: None },
        }
    }

    pub fn hold(&mut self, busy: Busy) {
        self._busy = Some(busy);
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Stream { stream, left } => match std::task::ready!(stream.poll_next_unpin(cx)) {
                Some(Ok(data)) => {
                    if let Some(left) = left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                // Told as an error, so that the sender does not take a part for the whole.
                None if left.is_some_and(|left| left > 0) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Kind::Stream { left: None, .. } => SizeHint::default(),
        }
    }
}
