//! Bodies as streams: one stored piece in memory at a time.

use super::core::Core;
use super::read::{self, ReadError};
use super::readers::Readers;
use crate::engine::fact::{BodyRef, Seq};
use crate::engine::ports::BodyStream;
use futures_util::stream;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

enum State {
    Start(BodyRef),
    Pieces(VecDeque<Seq>, bool),
    End,
}

/// Reads a body, piece by piece as it is asked for.
pub fn stream(core: Arc<Core>, readers: Arc<Readers>, seq: Seq, body: BodyRef) -> BodyStream {
    if body == BodyRef::None {
        return Box::pin(stream::empty());
    }
    Box::pin(stream::unfold(State::Start(body), move |state| {
        let (core, readers) = (core.clone(), readers.clone());
        async move {
            let (item, next) = match readers.run(move || step(&core, seq, state)).await {
                Some(stepped) => stepped,
                None => (Some(Err(io::Error::other("the ledger is closed"))), State::End),
            };
            item.map(|item| (item, next))
        }
    }))
}

type Item = io::Result<bytes::Bytes>;

fn step(core: &Core, seq: Seq, state: State) -> (Option<Item>, State) {
    let (mut left, transient) = match state {
        State::End => return (None, State::End),
        State::Pieces(left, transient) => (left, transient),
        State::Start(body) => match read::present(core, seq, &body) {
            Ok((seq, body)) => {
                let (pieces, transient) = read::pieces(seq, &body);
                (pieces.into(), transient)
            }
            Err(e) => return (Some(Err(told(core, seq, false, e))), State::End),
        },
    };
    match left.pop_front() {
        None => (None, State::End),
        Some(piece) => match read::piece(core, piece, transient) {
            Ok(bytes) => (Some(Ok(bytes)), State::Pieces(left, transient)),
            Err(e) => (Some(Err(told(core, piece, transient, e))), State::End),
        },
    }
}

fn told(core: &Core, seq: Seq, transient: bool, e: ReadError) -> io::Error {
    match e {
        ReadError::Gone => io::Error::new(io::ErrorKind::NotFound, "the body is no longer stored"),
        ReadError::File(e) => {
            if transient {
                super::damage::noticed_transient(core, seq, &e);
            } else {
                super::damage::noticed(core, seq, &e);
            }
            io::Error::other(format!("the body cannot be read: {e}"))
        }
    }
}
