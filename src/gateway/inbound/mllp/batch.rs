//! A frame that holds a batch: its messages, accepted one by one, and the response batch (HL7 v2.5.1, 2.10.3).

use super::{
    LARGE,
    answer::control_id,
    connection::MAX_IN_FLIGHT,
    pace::Pace,
    slot::{Finished, Message, Reply, Source},
};
use crate::{
    engine::ports::Refusal,
    message::hl7::{Header, HeaderKind, batch},
};
use bytes::Bytes;
use futures_util::StreamExt;
use std::{
    collections::VecDeque,
    ops::Range,
    task::{Context, Poll},
    time::Duration,
};

/// Most messages in one frame; bounds the size of the response batch.
pub(super) const MAX_MESSAGES: usize = 10_000;

/// A batch in hand.
pub(super) struct Batch<'a> {
    frame: Bytes,
    ranges: std::vec::IntoIter<Range<usize>>,
    in_flight: VecDeque<InFlight<'a>>,
    messages: usize,
    replies: Vec<Vec<u8>>,
    slow_down: Option<Duration>,
}

enum InFlight<'a> {
    Message(Message<'a>),
    Done(Reply),
}

/// What a frame is.
pub(super) enum Taken<'a> {
    NoBatch,
    Batch(Box<Batch<'a>>),
    TooMany,
}

impl<'a> Batch<'a> {
    /// Takes `frame` apart when it begins with FHS or BHS.
    pub fn take(frame: &Bytes) -> Taken<'a> {
        if frame.starts_with(b"MSH") {
            return Taken::NoBatch;
        }
        let Some(ranges) = batch::split(frame) else { return Taken::NoBatch };
        let ranges: Vec<_> = ranges.take(MAX_MESSAGES + 1).collect();
        if ranges.len() > MAX_MESSAGES {
            return Taken::TooMany;
        }
        Taken::Batch(Box::new(Self {
            frame: frame.clone(),
            messages: ranges.len(),
            ranges: ranges.into_iter(),
            in_flight: VecDeque::new(),
            replies: Vec::new(),
            slow_down: None,
        }))
    }

    pub fn len(&self) -> usize {
        self.frame.len()
    }

    pub fn has_more(&self) -> bool {
        self.ranges.len() > 0
    }

    pub fn poll(&mut self, source: &Source<'a>, pace: &mut Pace, cx: &mut Context<'_>) -> Poll<Finished> {
        loop {
            for slot in &mut self.in_flight {
                if let InFlight::Message(message) = slot
                    && let Poll::Ready(finished) = message.poll(source, cx)
                {
                    self.slow_down = self.slow_down.max(finished.slow_down);
                    *slot = InFlight::Done(finished.reply);
                }
            }
            while let Some(InFlight::Done(reply)) = self.in_flight.front_mut() {
                self.replies.extend(reply.take());
                self.in_flight.pop_front();
            }
            let (mut started, mut waits) = (false, false);
            while self.in_flight.len() < MAX_IN_FLIGHT && self.has_more() && !self.has_large_in_flight() {
                let turn = match pace.poll(source, cx) {
                    Poll::Ready(turn) => turn,
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                };
                let Some(range) = self.ranges.next() else { break };
                // Polled at once, in order: see `Connection`.
                let mut message = match turn {
                    Ok(()) => start(source, self.frame.slice(range)),
                    Err(retry_after) => {
                        let bytes = Bytes::copy_from_slice(&self.frame[range]);
                        Message::refuse(source, bytes, Refusal::RateLimited { retry_after })
                    }
                };
                self.in_flight.push_back(match message.poll(source, cx) {
                    Poll::Ready(finished) => {
                        self.slow_down = self.slow_down.max(finished.slow_down);
                        InFlight::Done(finished.reply)
                    }
                    Poll::Pending => InFlight::Message(message),
                });
                started = true;
            }
            match (self.in_flight.is_empty(), started) {
                (true, _) if !self.has_more() => {
                    return Poll::Ready(Finished { reply: self.response(), slow_down: self.slow_down });
                }
                // Those that were ready at once make room for more.
                (false, true) if (self.has_more() && !waits) || matches!(self.in_flight[0], InFlight::Done(_)) => {}
                _ => return Poll::Pending,
            }
        }
    }

    /// Large ones go one at a time: each has a piece or two in memory.
    fn has_large_in_flight(&self) -> bool {
        self.in_flight.iter().any(|slot| matches!(slot, InFlight::Message(message) if message.len() > LARGE))
    }

    /// `[FHS] BHS { acknowledgment } BTS [FTS]`; nothing when no message wants an acknowledgment.
    fn response(&self) -> Reply {
        if self.replies.is_empty() && self.messages > 0 {
            return None;
        }
        let first = Header::parse(&self.frame).ok()?;
        let (file, group) =
            if first.kind == HeaderKind::Fhs { (Some(first), group_header(&self.frame)) } else { (None, Some(first)) };
        let mut out = Vec::with_capacity(256 + self.replies.iter().map(Vec::len).sum::<usize>());
        let like = group.as_ref().or(file.as_ref())?;
        if let Some(file) = &file {
            header(&mut out, b"FHS", file, file.control_id);
        }
        header(&mut out, b"BHS", like, group.as_ref().map_or(&[], |g| g.control_id));
        for reply in &self.replies {
            out.extend_from_slice(reply);
        }
        trailer(&mut out, b"BTS", like.delimiters.field, self.replies.len());
        if let Some(file) = &file {
            trailer(&mut out, b"FTS", file.delimiters.field, 1);
        }
        Some(out)
    }
}

/// Hands over one message of the frame: copied, because while it waits for delivery it must not hold the whole frame; a large one piece
/// by piece.
fn start<'a>(source: &Source<'a>, bytes: Bytes) -> Message<'a> {
    if bytes.len() <= LARGE {
        return Message::start(source, Bytes::copy_from_slice(&bytes));
    }
    let head = Bytes::copy_from_slice(&bytes[..LARGE]);
    let mut left = bytes.slice(LARGE..);
    source.meters.received(left.len() as u64);
    let pieces = std::iter::from_fn(move || (!left.is_empty()).then(|| Ok(left.split_to(left.len().min(LARGE)))));
    Message::start_pieces(source, head, futures_util::stream::iter(pieces).boxed())
}

/// The first BHS of a file.
fn group_header(frame: &[u8]) -> Option<Header<'_>> {
    let mut rest = frame;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        rest = rest[end + 1..].trim_ascii_start();
        match rest.get(..3)? {
            b"BHS" => return Header::parse(rest).ok(),
            b"MSH" => return None,
            _ => {}
        }
    }
    None
}

/// FHS and BHS have the same fields: 3 to 6 the applications and facilities, which change places, 11 an id of our own,
/// 12 the id of what is answered.
fn header(out: &mut Vec<u8>, name: &[u8], of: &Header<'_>, reference: &[u8]) {
    let encoding = if of.encoding_characters.is_empty() { b"^~\\&" } else { of.encoding_characters };
    let id = control_id(None);
    let fields: [&[u8]; 12] = [
        name,
        encoding,
        of.receiving_application,
        of.receiving_facility,
        of.sending_application,
        of.sending_facility,
        b"",
        b"",
        b"",
        b"",
        id.as_bytes(),
        reference,
    ];
    out.extend_from_slice(&fields.join(&of.delimiters.field));
    out.push(b'\r');
}

fn trailer(out: &mut Vec<u8>, name: &[u8], separator: u8, count: usize) {
    out.extend_from_slice(name);
    out.push(separator);
    out.extend_from_slice(count.to_string().as_bytes());
    out.push(b'\r');
}
