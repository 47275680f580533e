//! One connection to a receiver: at most one message under way on it.

use super::{
    ack,
    plan::{Expect, Plan},
    stream::{Stream, Unread},
};
use crate::message::mllp::{self, Decoder, Event};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Largest acknowledgment; a query's response is one too.
const MAX_ANSWER: usize = 1024 * 1024;
/// Up to here a message is copied into one buffer and goes out in one system call.
const ONE_WRITE: usize = 64 * 1024;
/// Accepted messages whose application acknowledgment may still come on this connection; more: it is closed.
const MAX_LATE: usize = 16;
/// How long a connection that is given up waits for its receiver to read what it was sent.
const LINGER: std::time::Duration = std::time::Duration::from_secs(10);
/// How long to wait for the CR of an end block, for receivers that leave it out.
const AWAIT_CR: Duration = Duration::from_millis(200);
/// How long to wait for an error where silence is success.
const AWAIT_ERROR: Duration = Duration::from_secs(1);

/// What is sent.
pub(super) enum Outgoing {
    Whole(Bytes),
    /// The pieces already read, and what follows them.
    Stream(Bytes, crate::engine::ports::BodyStream),
}

/// What came back.
pub(super) enum Answer {
    Ack {
        code: &'static str,
        raw: Bytes,
        /// The connection must not be used again.
        last: bool,
    },
    /// Written; no answer is expected.
    None,
}

/// Why there is no usable answer; fixed text.
pub(super) type Failure = String;

pub(super) struct Conn {
    /// Which connector instance opened it.
    pub(super) instance: u64,
    stream: Stream,
    input: BytesMut,
    output: BytesMut,
    decoder: Decoder,
    /// Control ids whose application acknowledgment may still come: skipped when it does.
    late: Vec<Bytes>,
}

impl Conn {
    pub(super) fn new(instance: u64, stream: Stream) -> Self {
        Self {
            instance,
            stream,
            input: BytesMut::with_capacity(1024),
            output: BytesMut::with_capacity(4096),
            decoder: Decoder::new(MAX_ANSWER),
            late: vec![],
        }
    }

    /// May the next message go out here? Not when the receiver has closed, nor when something unexpected lies in the
    /// socket: an answer to nobody's message would be taken for the answer to the next one.
    pub(super) async fn is_clean(&mut self, plan: &Plan, whole: bool) -> bool {
        if !self.late.is_empty() && (!whole || self.late.contains(&plan.control_id)) {
            return false;
        }
        // Each round consumes something; a peer that keeps talking is not clean.
        for _ in 0..2 * MAX_LATE {
            if !self.only_late_acknowledgments() {
                return false;
            }
            match self.stream.unread() {
                Unread::Nothing => return true,
                Unread::End => return false,
                Unread::Bytes => {}
            }
            match self.stream.read_buf(&mut self.input).now_or_never() {
                Some(Ok(n)) if n > 0 => {}
                Some(_) => return false,
                // Under TLS the bytes may have been the protocol's own; else the runtime has yet to hear of them.
                None => {
                    if matches!(self.stream.unread(), Unread::Bytes) && self.stream.readable().await.is_err() {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Takes acknowledgments of earlier messages out of what was read; false when anything else is there.
    fn only_late_acknowledgments(&mut self) -> bool {
        while let Some(event) = self.decoder.decode(&mut self.input) {
            match event {
                Event::Frame(frame) if self.take_late(&frame) => {}
                _ => return false,
            }
        }
        !self.decoder.in_frame()
    }

    fn take_late(&mut self, frame: &[u8]) -> bool {
        let Some(ack) = ack::parse(frame) else { return false };
        let at = self.late.iter().position(|id| ack.control_id == id);
        at.map(|at| self.late.swap_remove(at)).is_some()
    }

    /// Sends one message and waits for its answer.
    pub(super) async fn exchange(&mut self, out: Outgoing, plan: &Plan) -> Result<Answer, Failure> {
        let sent_whole = match out {
            Outgoing::Whole(body) if body.len() <= ONE_WRITE => {
                self.output.clear();
                mllp::encode(&body, &mut self.output);
                self.stream.write_all(&self.output).await.map_err(|e| lost("sending", &e))?;
                true
            }
            Outgoing::Whole(body) => self.send_pieces(body, futures_util::stream::empty().boxed()).await?,
            Outgoing::Stream(head, rest) => self.send_pieces(head, rest).await?,
        };
        self.stream.flush().await.map_err(|e| lost("sending", &e))?;
        match plan.expect {
            Expect::Answer => self.answer(plan, sent_whole).await,
            _ if !sent_whole => self.answer(plan, sent_whole).await,
            Expect::Nothing => Ok(self.unanswered(plan)),
            Expect::OnlyErrors => match timeout(AWAIT_ERROR, self.answer(plan, true)).await {
                Ok(answer) => answer,
                Err(_) => Ok(self.unanswered(plan)),
            },
        }
    }

    /// A receiver that acknowledges although it was asked not to is passed over.
    fn unanswered(&mut self, plan: &Plan) -> Answer {
        self.late.push(plan.control_id.clone());
        Answer::None
    }

    /// Ends a connection on which a message went out that asks for no acknowledgment: says that nothing more comes, and
    /// reads on until the receiver ends too. Closed with answers unread, the connection would be reset, and what the
    /// receiver had not read yet would be lost although it counts as delivered.
    pub(super) fn retire(mut self) {
        if self.late.is_empty() {
            return;
        }
        tokio::spawn(timeout(LINGER, async move {
            if self.stream.shutdown().await.is_err() {
                return;
            }
            while matches!(self.stream.read_buf(&mut self.input).await, Ok(n) if n > 0) {
                self.input.clear();
            }
        }));
    }

    pub(super) fn may_be_kept(&self) -> bool {
        self.late.len() <= MAX_LATE
    }

    /// Frames a body around its pieces without holding more than one. False when the receiver answered before the end:
    /// the rest is not sent.
    async fn send_pieces(&mut self, head: Bytes, mut rest: crate::engine::ports::BodyStream) -> Result<bool, Failure> {
        let Self { stream, input, output, .. } = self;
        let (mut reader, mut writer) = tokio::io::split(stream);
        output.clear();
        output.put_u8(mllp::START);
        let write = async {
            let mut previous = None;
            let mut next = Some(head);
            while let Some(piece) = next {
                check_framing(&mut previous, &piece)?;
                if output.len() + piece.len() <= ONE_WRITE {
                    output.put_slice(&piece);
                } else {
                    let mut both = Buf::chain(&output[..], piece);
                    writer.write_all_buf(&mut both).await.map_err(|e| lost("sending", &e))?;
                    output.clear();
                }
                next = match rest.next().await {
                    Some(Ok(piece)) => Some(piece),
                    Some(Err(_)) => return Err("the stored body could not be read".to_owned()),
                    None => None,
                };
            }
            output.put_slice(&[mllp::END, mllp::CR]);
            writer.write_all(output).await.map_err(|e| lost("sending", &e))
        };
        let early = reader.read_buf(input);
        tokio::select! {
            biased;
            written = write => written.map(|()| true),
            read = early => match read {
                Ok(0) => Err("closed by the receiver before the message was sent whole".into()),
                Ok(_) => Ok(false),
                Err(e) => Err(lost("sending", &e)),
            },
        }
    }

    /// The acknowledgment of the message under way.
    async fn answer(&mut self, plan: &Plan, sent_whole: bool) -> Result<Answer, Failure> {
        loop {
            let event = match self.decoder.decode(&mut self.input) {
                Some(event) => event,
                None => match self.more().await? {
                    Some(event) => event,
                    None => continue,
                },
            };
            let Event::Frame(raw) = event else {
                return Err("the receiver sent something that is not a framed acknowledgment".into());
            };
            let Some(ack) = ack::parse(&raw) else {
                return Err("the receiver's answer is not an HL7 acknowledgment".into());
            };
            if !plan.control_id.is_empty() && ack.control_id != plan.control_id {
                if self.take_late(&raw) {
                    continue;
                }
                return Err("the receiver acknowledged another message".into());
            }
            let Some(code) = ack.code else {
                return Err("the receiver's acknowledgment code is none of AA, AE, AR, CA, CE, CR".into());
            };
            if !sent_whole && matches!(code, "AA" | "CA") {
                return Err("acknowledged before the message was sent whole".into());
            }
            if code.starts_with('C') && !plan.accept_is_all {
                self.late.push(plan.control_id.clone());
            }
            return Ok(Answer::Ack { code, raw, last: !sent_whole || !self.may_be_kept() });
        }
    }

    /// Reads on; an event only where the end of the frame has to be guessed.
    async fn more(&mut self) -> Result<Option<Event>, Failure> {
        self.input.reserve(512);
        let awaits_cr = self.decoder.awaits_cr(&self.input);
        let read = self.stream.read_buf(&mut self.input);
        let read = if awaits_cr { timeout(AWAIT_CR, read).await } else { Ok(read.await) };
        match read {
            Err(_) => Ok(self.decoder.flush(&mut self.input)),
            Ok(Ok(0)) => match self.decoder.flush(&mut self.input) {
                Some(event) => Ok(Some(event)),
                None => Err("closed by the receiver before it acknowledged".into()),
            },
            Ok(Ok(_)) => Ok(None),
            Ok(Err(e)) => Err(lost("waiting for the acknowledgment", &e)),
        }
    }
}

/// Refuses what would end the frame early: a receiver would take the rest for another message.
/// `previous` is the last byte of the piece before.
pub(super) fn check_framing(previous: &mut Option<u8>, piece: &[u8]) -> Result<(), Failure> {
    let across = *previous == Some(mllp::END) && piece.first() == Some(&mllp::CR);
    let inside = memchr::memchr2_iter(mllp::START, mllp::END, piece)
        .any(|at| piece[at] == mllp::START || piece.get(at + 1) == Some(&mllp::CR));
    if across || inside {
        return Err("the message holds MLLP's own block characters and cannot be framed; route it over HTTP".into());
    }
    *previous = piece.last().copied().or(*previous);
    Ok(())
}

fn lost(doing: &str, error: &std::io::Error) -> Failure {
    format!("connection lost while {doing}: {}", error.kind())
}
