//! One reader's connection: what is sent to it, what waits for it, how it ends. Small: there are thousands.

use super::{resource::Resource, shared::BodyPipe, slice::Batch};
use crate::engine::fact::Seq;
use mio::net::TcpStream;
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    rc::Rc,
};

/// Tenths of a second since the feed began.
pub(super) type Tick = u32;

/// What a reader may send after its request before it is taken for something else.
const CHATTER: usize = 16 * 1024;

/// How events reach the reader.
pub(super) enum Sink {
    /// A socket of our own.
    Socket(TcpStream),
    /// A response of hyper's: HTTP/2, or a connection that was used for something else before.
    Body(Box<BodyPipe>),
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Is sent what happens.
    Live,
    /// Is sent what happened since it was last here, at its own pace.
    Replay,
    /// Its last event is on the way; it has no place any more.
    Closing,
}

/// How sending went.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// Sent, or waiting within the limit.
    Fine,
    /// Too much waits; this was not taken.
    Slow,
    /// The reader has gone.
    Gone,
}

struct Part {
    batch: Rc<Batch>,
    from: usize,
}

/// What could not be sent at once.
#[derive(Default)]
struct Pending {
    parts: VecDeque<Part>,
    bytes: usize,
    /// When something of it was last taken.
    moved: Tick,
}

/// A connection.
pub(super) struct Conn {
    pub sink: Sink,
    pub resource: Rc<Resource>,
    /// Has, or has waiting, everything up to here. A live one that is up to date has what the tail has.
    pub at: Seq,
    /// Tells it from others in the same slot.
    pub serial: u32,
    /// Its place in its group.
    pub place: u32,
    pub opened: Tick,
    pub wrote: Tick,
    pub mode: Mode,
    /// It stands in the line for the next stretch of what it missed.
    pub queued: bool,
    pending: Option<Box<Pending>>,
}

impl Conn {
    pub fn new(sink: Sink, resource: Rc<Resource>, at: Seq, serial: u32, now: Tick) -> Self {
        Self { sink, resource, at, serial, place: 0, opened: now, wrote: now, mode: Mode::Replay, queued: false, pending: None }
    }

    /// Has everything that was sent been taken (by the kernel, or by hyper)?
    pub fn is_flushed(&self) -> bool {
        match &self.sink {
            Sink::Socket(_) => self.pending.is_none(),
            Sink::Body(pipe) => pipe.held() == 0,
        }
    }

    /// For how long nothing of what waits has been taken.
    pub fn stalled(&self, now: Tick) -> Tick {
        match &self.sink {
            Sink::Socket(_) => self.pending.as_ref().map_or(0, |p| now.saturating_sub(p.moved)),
            Sink::Body(pipe) if pipe.held() > 0 => now.saturating_sub(self.wrote),
            Sink::Body(_) => 0,
        }
    }

    /// Sends a batch from an offset on; what does not go at once waits, up to `limit` bytes besides one batch.
    pub fn send(&mut self, batch: &Rc<Batch>, from: usize, limit: usize, now: Tick) -> Sent {
        let left = batch.bytes.len() - from;
        if left == 0 {
            return Sent::Fine;
        }
        match &mut self.sink {
            Sink::Body(pipe) => {
                if pipe.held() > 0 && pipe.held() + left > limit {
                    return Sent::Slow;
                }
                self.wrote = now;
                if pipe.send(batch.bytes.slice(from..)) { Sent::Fine } else { Sent::Gone }
            }
            Sink::Socket(stream) => {
                if let Some(pending) = &mut self.pending {
                    if pending.bytes + left > limit {
                        return Sent::Slow;
                    }
                    pending.bytes += left;
                    pending.parts.push_back(Part { batch: batch.clone(), from });
                    return Sent::Fine;
                }
                match write(stream, &batch.bytes[from..]) {
                    None => Sent::Gone,
                    Some(n) => {
                        self.wrote = now;
                        if n < left {
                            let part = Part { batch: batch.clone(), from: from + n };
                            self.pending = Some(Box::new(Pending { parts: [part].into(), bytes: left - n, moved: now }));
                        }
                        Sent::Fine
                    }
                }
            }
        }
    }

    /// Sends what waits, as far as it goes; false: the reader has gone.
    pub fn flush(&mut self, now: Tick) -> bool {
        let (Sink::Socket(stream), Some(pending)) = (&mut self.sink, &mut self.pending) else { return true };
        while let Some(part) = pending.parts.front_mut() {
            let left = part.batch.bytes.len() - part.from;
            match write(stream, &part.batch.bytes[part.from..]) {
                None => return false,
                Some(n) => {
                    if n > 0 {
                        pending.bytes -= n;
                        pending.moved = now;
                        self.wrote = now;
                    }
                    if n < left {
                        part.from += n;
                        return true;
                    }
                    pending.parts.pop_front();
                }
            }
        }
        self.pending = None;
        true
    }

    /// Drops what waits, but for the end of an event that was begun. The number that the reader then has; `None` when nothing
    /// waited.
    pub fn cut(&mut self) -> Option<Seq> {
        let pending = self.pending.as_mut()?;
        let part = pending.parts.front()?;
        let (end, has) = part.batch.boundary(part.from);
        if end > part.from {
            let rest = Batch::plain(part.batch.bytes.slice(part.from..end), has);
            pending.bytes = rest.bytes.len();
            pending.parts = [Part { batch: rest, from: 0 }].into();
        } else {
            self.pending = None;
        }
        Some(has)
    }

    /// Sends its last event, whatever waits.
    pub fn send_last(&mut self, batch: &Rc<Batch>, now: Tick) -> Sent {
        self.send(batch, 0, usize::MAX, now)
    }

    /// Reads what the reader says, which is of no interest; false: it has gone, or talks too much.
    pub fn listen(&mut self) -> bool {
        let Sink::Socket(stream) = &mut self.sink else { return true };
        let mut scratch = [0; 2048];
        let mut heard = 0;
        loop {
            match stream.read(&mut scratch) {
                Ok(0) => return false,
                Ok(n) => {
                    heard += n;
                    if heard > CHATTER {
                        return false;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// Writes as much as goes without waiting; `None`: the connection is broken.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(0) => return None,
            Ok(n) => done += n,
            // Only after this answer the kernel tells when there is room again.
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(done)
}
