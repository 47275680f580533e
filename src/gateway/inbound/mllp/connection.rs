//! One MLLP connection: reads, hands frames to the engine in order, writes the replies in order.
//!
//! Up to [`MAX_IN_FLIGHT`] frames are with the engine at once. Each call to the engine is polled as soon as it is made, before the
//! next one is made, so that the engine sees the messages in the order in which they came. With one frame in flight this
//! costs nothing extra: no task, no channel, one read and one write per message.

use super::{
    GAVE_WAY, LARGE, MAX_GARBAGE, MllpServer, Socket,
    batch::{self, Batch, Taken},
    clock::{CR_WITHIN, Clock},
    large::Place,
    leave::Leave,
    pace::{PATIENCE, Pace},
    receive::Receiving,
    seats::{Doing, Seat},
    slot::{Message, Slot, Source},
};
use crate::{
    engine::ports::{Intake, Refusal},
    gateway::inbound::{LINGER, drain::Draining},
    message::{
        hl7::{Header, HeaderKind},
        mllp::{self, Decoder, Event},
    },
    telemetry::inbound::{Cut, Outcome},
};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};
use tokio_util::io::poll_read_buf;

/// Frames of one connection with the engine at the same time.
pub(super) const MAX_IN_FLIGHT: usize = 32;

/// Read at a time; more within a large frame.
const READ: usize = 8 * 1024;
const READ_LARGE: usize = 64 * 1024;
/// Frames up to this size are copied out of the read buffer, which then is never held, moved or allocated again.
const COPIED: usize = 16 * 1024;
/// Looked at to tell a batch from a message.
const HEADER_START: usize = 1024;

pub(super) struct Connection<'a, S> {
    server: &'a MllpServer,
    source: Source<'a>,
    peer: SocketAddr,
    io: S,
    decoder: Decoder,
    read: BytesMut,
    /// Replies, framed, to be written.
    write: BytesMut,
    slots: VecDeque<Slot<'a>>,
    /// A frame that waits for its turn: the client is at its rate.
    next: Option<Bytes>,
    pace: Pace,
    /// The large frame that is being received; the last slot is its message.
    receiving: Option<Receiving>,
    clock: Clock,
    /// Its place among the listener's connections.
    seat: &'a Seat,
    /// Bytes outside frames since the last frame.
    garbage: u64,
    /// Held while a large frame is being received or is in hand.
    large: Place,
    /// Resolves when the node takes messages again.
    reopened: Option<BoxFuture<'a, ()>>,
    slowed_until: Option<Instant>,
    /// The sender ended its side.
    ended: bool,
    draining: Leave,
}

/// What there is to do when the connection cannot go on by itself.
enum Step {
    Write,
    /// All is answered and the node drains.
    Finish,
    /// The sender ended the connection and all is answered.
    Ended,
    Broken,
    Cut(Cut, &'static str),
}

impl<'a, S: Socket> Connection<'a, S> {
    /// `sender`: the client's name, whether it has shown a certificate (and so is known by more than its address), and its address.
    pub fn new(
        server: &'a MllpServer,
        intake: &'a dyn Intake,
        seat: &'a Seat,
        io: S,
        sender: (Arc<str>, bool, SocketAddr),
    ) -> Self {
        let (client, proved, peer) = sender;
        let max_frame = usize::try_from(server.config.max_frame.as_u64()).unwrap_or(usize::MAX);
        Self {
            large: Place::new(&client, proved, peer.ip()),
            source: Source {
                intake,
                meters: server.connections.meters(),
                listener: server.listener.clone(),
                client,
                remote: peer.to_string(),
                max_response: max_frame,
            },
            peer,
            io,
            decoder: Decoder::new(max_frame),
            read: BytesMut::with_capacity(READ),
            write: BytesMut::new(),
            slots: VecDeque::new(),
            next: None,
            pace: Pace::default(),
            receiving: None,
            clock: Clock::new(),
            seat,
            garbage: 0,
            reopened: None,
            slowed_until: None,
            ended: false,
            draining: Leave::No,
            server,
        }
    }

    /// Runs until the sender ends the connection, a limit is passed, or the node drains.
    pub async fn run(mut self, draining: Draining) {
        let mut drained = Box::pin(draining.wait());
        // Once, so that the drain wakes this task; from then on it is asked for by `begun`.
        poll_fn(|cx| Poll::Ready(drained.as_mut().poll(cx).is_ready())).await;
        loop {
            match poll_fn(|cx| self.step(&draining, cx)).await {
                Step::Write => {
                    if let Err(cut) = self.flush().await {
                        return self.end(cut);
                    }
                }
                Step::Finish => return self.finish().await,
                Step::Ended => {
                    if self.decoder.in_frame() {
                        self.server.cut(self.peer, Cut::Truncated, "the sender ended the connection within a frame");
                    }
                    return;
                }
                Step::Broken => return,
                Step::Cut(cut, why) => {
                    // What is answered already still goes out, with all that the engine has said by now.
                    let _ = self.flush().await;
                    return self.end(Some((cut, why)));
                }
            }
        }
    }

    fn end(&self, cut: Option<(Cut, &'static str)>) {
        if let Some((cut, why)) = cut {
            self.server.cut(self.peer, cut, why);
        }
    }

    /// Moves everything on as far as it goes without waiting.
    fn step(&mut self, draining: &Draining, cx: &mut Context<'_>) -> Poll<Step> {
        if self.draining == Leave::No && draining.begun() {
            let idle = self.has_nothing();
            self.draining = Leave::begin(idle, self.clock.is_quick(idle));
        }
        loop {
            if self.draining == Leave::Last {
                // Not begun too late: it has not ended in the time that it had.
                self.abandon();
            }
            self.collect(cx);
            let blocked = match self.start(cx) {
                Ok(blocked) => blocked,
                Err(step) => return Poll::Ready(step),
            };
            if self.draining == Leave::Last && self.is_idle() {
                return Poll::Ready(Step::Finish);
            }
            if !self.write.is_empty() {
                return Poll::Ready(Step::Write);
            }
            if self.ended && self.is_idle() {
                return Poll::Ready(Step::Ended);
            }
            if self.is_answered() {
                // Answered at once: collected in the next round, which also may start more.
                continue;
            }
            let reading = !blocked && !self.ended && self.draining != Leave::Last;
            self.clock.reading(reading);
            if reading {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(0)) => {
                        self.ended = true;
                        continue;
                    }
                    Poll::Ready(Ok(_)) => continue,
                    // What is in hand is durable all the same; there is nobody left to tell.
                    Poll::Ready(Err(_)) => return Poll::Ready(Step::Broken),
                    Poll::Pending => {}
                }
            }
            match self.poll_time(reading, cx) {
                Some(step) => return Poll::Ready(step),
                None if self.clock.fired => self.clock.fired = false,
                None => return self.wait(reading, cx),
            }
        }
    }

    /// Begins to wait, or leaves the place to somebody else: see [`super::seats`].
    fn wait(&mut self, reading: bool, cx: &mut Context<'_>) -> Poll<Step> {
        self.seat.waits(match self.clock.frame {
            // What has come and is not looked at, because the node does not take more now, may be a message.
            _ if !self.is_idle() || !(reading || self.read.is_empty()) => Doing::Working,
            Some(begun) => Doing::Receiving(begun),
            None => Doing::Nothing(self.clock.active),
        });
        if self.seat.must_leave(cx) { Poll::Ready(Self::leave()) } else { Poll::Pending }
    }

    /// No whole frame is in hand.
    fn has_nothing(&self) -> bool {
        self.slots.len() == usize::from(self.receiving.is_some()) && self.next.is_none()
    }

    fn leave() -> Step {
        Step::Cut(Cut::GaveWay, GAVE_WAY)
    }

    /// Takes what the engine has answered, in order, into the write buffer.
    fn collect(&mut self, cx: &mut Context<'_>) {
        for slot in &mut self.slots {
            if let Some(wait) = slot.poll(&self.source, &mut self.pace, cx) {
                self.slowed_until = Some(Instant::now() + wait.min(PATIENCE));
            }
        }
        while self.is_answered()
            && let Some(Slot::Done(reply)) = self.slots.pop_front()
        {
            if let Some(reply) = reply {
                mllp::encode(&reply, &mut self.write);
            }
            self.clock.replied();
        }
        if self.large.is_held() && !self.is_large() {
            self.large.release();
        }
    }

    /// Hands frames to the engine as long as there are some and room for them. True when no more may come now.
    fn start(&mut self, cx: &mut Context<'_>) -> Result<bool, Step> {
        loop {
            if let Some(receiving) = &mut self.receiving {
                if receiving.poll_ready(cx).is_pending() {
                    return Ok(true);
                }
            } else {
                let last = self.draining == Leave::Last && self.next.is_none();
                if last || !self.has_room() || !self.may_take(cx) {
                    return Ok(true);
                }
            }
            if let Some(frame) = self.next.take() {
                let slot = match self.frame(frame, cx) {
                    Ok(slot) => slot,
                    Err(frame) => {
                        self.next = Some(frame);
                        return Ok(true);
                    }
                };
                self.slots.push_back(slot);
                self.draining.taken(self.clock.is_quick(false));
                continue;
            }
            let mut event = self.decoder.decode(&mut self.read);
            if event.is_none() && (self.ended || self.clock.cr_is_late(self.decoder.awaits_cr(&self.read))) {
                event = self.decoder.flush(&mut self.read);
            }
            let Some(event) = event else {
                self.clock.in_frame(self.decoder.in_frame());
                if self.ended {
                    self.abandon();
                    return Ok(false);
                }
                if !self.may_be_large(cx) {
                    return Ok(true);
                }
                match self.begin_large(cx)? {
                    Some(true) => continue,
                    waits => return Ok(waits.is_some()),
                }
            };
            // A frame that begins over again has not ended.
            if !matches!(event, Event::Truncated { .. } | Event::Piece(_)) {
                self.clock.in_frame(false);
            }
            if matches!(event, Event::Frame(_) | Event::TooLarge { .. }) {
                self.clock.frame_came();
                if !self.seat.works() {
                    return Err(Self::leave());
                }
            }
            match event {
                Event::Frame(frame) => {
                    self.garbage = 0;
                    self.next = Some(self.own(frame));
                }
                Event::Piece(piece) => {
                    self.source.meters.received(piece.len() as u64);
                    if let Some(receiving) = &mut self.receiving {
                        receiving.next(piece);
                    }
                }
                Event::LastPiece(piece) => {
                    self.garbage = 0;
                    self.clock.frame_came();
                    self.source.meters.received(piece.len() as u64);
                    if let Some(receiving) = self.receiving.take() {
                        receiving.last(piece);
                    }
                    self.shrink();
                    self.draining.taken(self.clock.is_quick(false));
                }
                Event::TooLarge { head, .. } => {
                    self.garbage = 0;
                    self.shrink();
                    let limit = self.server.config.max_frame.as_u64();
                    match self.receiving.take() {
                        Some(receiving) => receiving.refuse(Refusal::TooLarge { limit }),
                        None => {
                            let slot = self.refuse(head, Refusal::TooLarge { limit }, cx);
                            self.slots.push_back(slot);
                        }
                    }
                    self.draining.taken(self.clock.is_quick(false));
                }
                Event::Truncated { .. } => {
                    self.abandon();
                    self.shrink();
                    self.source.meters.answered(Outcome::Aborted);
                }
                Event::Garbage { bytes } => {
                    self.garbage += bytes as u64;
                    self.source.meters.garbage(bytes as u64);
                    if self.garbage > MAX_GARBAGE {
                        return Err(Step::Cut(Cut::Garbage, "too much outside frames: is this an MLLP sender?"));
                    }
                }
            }
        }
    }

    /// Begins to hand over a frame that has become large, piece by piece. True: begun; false: it has to wait for its turn; `None`: there
    /// is none. A batch is taken apart when it is whole.
    fn begin_large(&mut self, cx: &mut Context<'_>) -> Result<Option<bool>, Step> {
        let start = &self.read[..self.read.len().min(HEADER_START)];
        if self.decoder.begun() <= LARGE || Header::parse(start).is_ok_and(|header| header.kind != HeaderKind::Msh) {
            return Ok(None);
        }
        let Poll::Ready(turn) = self.pace.poll(&self.source, cx) else { return Ok(Some(false)) };
        if !self.seat.works() {
            return Err(Self::leave());
        }
        let Some(head) = self.decoder.begin_pieces(&mut self.read) else { return Ok(None) };
        let (receiving, rest) = Receiving::new();
        let message = match turn {
            Ok(()) => Message::start_pieces(&self.source, head, rest),
            Err(retry_after) => Message::refuse(&self.source, head, Refusal::RateLimited { retry_after }),
        };
        let slot = self.polled(Slot::One(message), cx);
        self.slots.push_back(slot);
        self.receiving = Some(receiving);
        Ok(Some(true))
    }

    /// The frame that is being received will not end: no message.
    fn abandon(&mut self) {
        if self.receiving.take().is_some() {
            self.slots.pop_back();
        }
    }

    /// Is the first message answered? One whose frame has not ended is not told so before.
    fn is_answered(&self) -> bool {
        matches!(self.slots.front(), Some(Slot::Done(_))) && (self.receiving.is_none() || self.slots.len() > 1)
    }

    /// A frame apart from the read buffer.
    fn own(&mut self, frame: Bytes) -> Bytes {
        if frame.len() <= COPIED {
            return Bytes::copy_from_slice(&frame);
        }
        self.shrink();
        frame
    }

    /// Calls the engine for a frame, or for the messages of a batch. The frame comes back when it has to wait for its turn.
    fn frame(&mut self, frame: Bytes, cx: &mut Context<'_>) -> Result<Slot<'a>, Bytes> {
        let slot = match Batch::take(&frame) {
            Taken::NoBatch => match self.pace.poll(&self.source, cx) {
                Poll::Ready(Ok(())) => Slot::One(Message::start(&self.source, frame)),
                Poll::Ready(Err(retry_after)) => return Ok(self.refuse(frame, Refusal::RateLimited { retry_after }, cx)),
                Poll::Pending => return Err(frame),
            },
            Taken::Batch(batch) => Slot::Batch(batch),
            Taken::TooMany => {
                let why = format!("the batch holds more than {} messages; send it in parts", batch::MAX_MESSAGES);
                return Ok(self.refuse(frame, Refusal::Unreadable(why), cx));
            }
        };
        Ok(self.polled(slot, cx))
    }

    /// Refused here: the engine records it.
    fn refuse(&mut self, head: Bytes, refusal: Refusal, cx: &mut Context<'_>) -> Slot<'a> {
        let slot = Slot::One(Message::refuse(&self.source, head, refusal));
        self.polled(slot, cx)
    }

    /// Polled before the next one is made.
    fn polled(&mut self, mut slot: Slot<'a>, cx: &mut Context<'_>) -> Slot<'a> {
        if let Some(wait) = slot.poll(&self.source, &mut self.pace, cx) {
            self.slowed_until = Some(Instant::now() + wait.min(PATIENCE));
        }
        slot
    }

    /// Nothing is in hand.
    fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.next.is_none()
    }

    /// Bytes of the messages in hand.
    fn held(&self) -> usize {
        self.slots.iter().map(Slot::len).sum::<usize>() + self.next.as_ref().map_or(0, Bytes::len)
    }

    /// Lets the allocation of a large frame go: the rest of the buffer must not hold it.
    fn shrink(&mut self) {
        let mut small = BytesMut::with_capacity(self.read.len() + READ);
        small.extend_from_slice(&self.read);
        self.read = small;
    }

    fn has_room(&self) -> bool {
        self.slots.len() < MAX_IN_FLIGHT
            && self.slots.iter().map(Slot::len).sum::<usize>() <= LARGE
            && !self.slots.back().is_some_and(Slot::holds_back)
    }

    /// Does the node take messages, and is the sender within its rate?
    fn may_take(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(until) = self.slowed_until {
            if Instant::now() < until {
                return false;
            }
            self.slowed_until = None;
        }
        if self.reopened.is_none() && self.source.intake.open() {
            return true;
        }
        let intake = self.source.intake;
        let reopened = self.reopened.get_or_insert_with(|| intake.wait_open());
        let open = reopened.as_mut().poll(cx).is_ready();
        if open {
            self.reopened = None;
        }
        open
    }

    fn is_large(&self) -> bool {
        (self.decoder.in_frame() && self.read.len() > LARGE) || self.held() > LARGE
    }

    /// May a frame that is growing large go on growing?
    fn may_be_large(&mut self, cx: &mut Context<'_>) -> bool {
        // Waiting in the queue goes on until there is a permit: one granted to a connection that no longer asks would be lost.
        if self.large.is_held() || !(self.decoder.in_frame() && self.read.len() > LARGE) {
            return true;
        }
        self.large.poll(&self.server.large, cx).is_ready()
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let want = if self.read.len() >= READ || self.receiving.is_some() { READ_LARGE } else { READ / 2 };
        if self.read.capacity() - self.read.len() < want {
            self.read.reserve(want);
        }
        if self.read.len() < READ && self.read.capacity() > LARGE {
            // What is left of a frame that was skipped.
            self.shrink();
        }
        let polled = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.clock.read = Instant::now();
        }
        polled
    }

    /// Applies the time limits; arms the timer for the next one.
    fn poll_time(&mut self, reading: bool, cx: &mut Context<'_>) -> Option<Step> {
        if self.slowed_until.is_some_and(|until| Instant::now() >= until) {
            self.slowed_until = None;
            self.clock.fired = true;
            return None;
        }
        let config = &self.server.config;
        let awaits_cr = reading && self.decoder.awaits_cr(&self.read);
        let frame = self.clock.frame.filter(|_| reading).map(|begun| begun + config.frame_timeout);
        let idle = (reading && !config.idle_timeout.is_zero() && self.is_idle() && frame.is_none())
            .then(|| self.clock.active + config.idle_timeout);
        let cr = awaits_cr.then(|| self.clock.read + CR_WITHIN);
        let drain = self.draining.until();
        let next = [frame, idle, cr, drain, self.slowed_until].into_iter().flatten().min()?;
        if !self.clock.poll_at(next, cx) {
            return None;
        }
        let passed = |limit: Option<Instant>| limit.is_some_and(|limit| Instant::now() >= limit);
        if passed(drain) {
            let idle = self.has_nothing();
            self.draining.passed(idle);
        }
        if passed(frame) {
            return Some(Step::Cut(Cut::FrameTimeout, "a begun frame did not end within frame_timeout"));
        }
        if passed(idle) {
            return Some(Step::Cut(Cut::IdleTimeout, "idle for longer than idle_timeout"));
        }
        None
    }

    /// Writes the replies there are.
    async fn flush(&mut self) -> Result<(), Option<(Cut, &'static str)>> {
        if self.write.is_empty() {
            return Ok(());
        }
        let written = timeout(self.server.config.frame_timeout, async {
            self.io.write_all(&self.write).await?;
            self.io.flush().await
        });
        match written.await {
            Ok(Ok(())) => {
                self.write.clear();
                Ok(())
            }
            Ok(Err(_)) => Err(None),
            Err(_) => Err(Some((Cut::WriteStalled, "the sender does not take its acknowledgments"))),
        }
    }

    /// The drain's end: the last replies and the end of the stream in one segment, so that a sender that has its acknowledgment
    /// sees at once that no more may be sent here. What it sends all the same is not acknowledged, so it will send it
    /// elsewhere; it is read and dropped, because closing over unread bytes would reset the connection and with it the reply.
    async fn finish(mut self) {
        if !self.write.is_empty() {
            // Without the option the two leave in two segments, which is less good but no error.
            let _ = socket2::SockRef::from(self.io.tcp()).set_tcp_cork(true);
        }
        if let Err(cut) = self.flush().await {
            return self.end(cut);
        }
        let _ = timeout(LINGER, async {
            self.io.shutdown().await?;
            self.read = BytesMut::zeroed(READ);
            while self.io.read(&mut self.read).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }
}
