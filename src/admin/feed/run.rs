//! The feed's thread: all readers on one poll, without a task, a timer or a lock for each.

use super::{
    conn::{Conn, Mode, Sent, Sink, Tick},
    group::Groups,
    names::Names,
    resource::Resource,
    shared::{Command, Join, Refused, Shared, Ticket, Way},
    slice::{Batch, Cache},
    source::Journal,
};
use crate::{
    config,
    engine::fact::Seq,
    telemetry::feed::{FeedFull, Listeners},
};
use mio::{Events, Interest, Poll, Token};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

/// The waker's.
pub(super) const WAKER: Token = Token(usize::MAX);
/// Milliseconds after which a reader should come back: told at the beginning of each stream.
const RETRY_MS: u32 = 2000;
/// Streams that hyper carries at the same time: each costs some ten times the memory of one of our own, and a place at the
/// management API.
const CARRIED: usize = 64;
/// Looks for readers that have gone, before one is refused.
const LOOKS: usize = 64;
/// Connections ended per second of a drain: those who come back must not all come at once.
const ENDED_PER_SECOND: u32 = 2000;

/// How far a source has been sent to those who are up to date.
pub(super) struct Tail {
    pub at: Seq,
    /// Who is.
    pub live: usize,
    /// Not looked at before.
    pub not_before: Instant,
}

pub(super) struct Draining {
    pub began: Instant,
    pub over: Duration,
    pub total: usize,
    /// When to end in any case.
    pub until: Instant,
}

pub(super) struct Loop {
    pub poll: Poll,
    pub shared: Arc<Shared>,
    pub journal: Arc<dyn Journal>,
    pub config: config::Feed,
    /// Bytes that may wait for one reader.
    pub buffer: usize,
    began: Instant,
    pub conns: Vec<Option<Conn>>,
    free: Vec<u32>,
    serial: u32,
    pub closing: usize,
    pub groups: Groups,
    pub log: Tail,
    pub alerts: Tail,
    pub cache: Cache,
    pub names: Names,
    /// Those who are to be sent the next stretch of what they missed.
    pub replays: VecDeque<Ticket>,
    pub swept: Tick,
    pub draining: Option<Draining>,
}

impl Loop {
    pub fn new(poll: Poll, shared: Arc<Shared>, journal: Arc<dyn Journal>, config: config::Feed) -> Self {
        let now = Instant::now();
        let tail = || Tail { at: 0, live: 0, not_before: now };
        Self {
            poll,
            shared,
            journal,
            buffer: usize::try_from(config.buffer.as_u64()).unwrap_or(usize::MAX),
            config,
            began: now,
            conns: Vec::new(),
            free: Vec::new(),
            serial: 0,
            closing: 0,
            groups: Groups::default(),
            log: tail(),
            alerts: tail(),
            cache: Cache::default(),
            names: Names::default(),
            replays: VecDeque::new(),
            swept: 0,
            draining: None,
        }
    }

    /// Runs until drained.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut busy = false;
        loop {
            let patience = if busy { Some(Duration::ZERO) } else { self.patience() };
            if let Err(error) = self.poll.poll(&mut events, patience)
                && error.kind() != io::ErrorKind::Interrupted
            {
                break;
            }
            self.heard(&events);
            for command in self.shared.told() {
                self.obey(command, &mut events);
            }
            // Both, whatever the first says.
            busy = self.follow_log() | self.follow_alerts();
            busy |= self.replay();
            self.sweep();
            if self.drained() {
                break;
            }
        }
        for slot in 0..self.conns.len() as u32 {
            self.close(slot);
        }
    }

    pub fn now(&self) -> Tick {
        Tick::try_from(self.began.elapsed().as_millis() / 100).unwrap_or(Tick::MAX)
    }

    /// How long nothing will be to do, unless something happens.
    fn patience(&mut self) -> Option<Duration> {
        let mut patience = (!self.groups.is_empty() || self.closing > 0).then(|| self.sweep_every());
        let mut least = |other: Duration| patience = Some(patience.map_or(other, |p| p.min(other)));
        if self.draining.is_some() {
            least(Duration::from_millis(10));
        }
        if self.log.live > 0 {
            let pause = self.log.not_before.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                self.shared.arm();
                if self.journal.committed() > self.log.at {
                    least(Duration::ZERO);
                }
            } else {
                least(pause);
            }
        }
        patience
    }

    pub fn sweep_every(&self) -> Duration {
        let shortest = self.config.timeout.min(self.config.keep_alive) / 4;
        shortest.clamp(Duration::from_millis(100), Duration::from_secs(1))
    }

    /// What the sockets tell.
    fn heard(&mut self, events: &Events) {
        let now = self.now();
        for event in events.iter().filter(|e| e.token() != WAKER) {
            let slot = event.token().0 as u32;
            let Some(conn) = self.conns.get_mut(slot as usize).and_then(Option::as_mut) else { continue };
            let mut here = !event.is_error();
            if here && (event.is_readable() || event.is_read_closed()) {
                here = conn.listen();
            }
            if here && event.is_writable() {
                here = conn.flush(now);
            }
            if !here || (conn.mode == Mode::Closing && conn.is_flushed()) {
                self.close(slot);
            } else if conn.mode == Mode::Replay && conn.is_flushed() {
                let ticket = Ticket { slot, serial: conn.serial };
                self.replay_next(ticket);
            }
        }
    }

    fn obey(&mut self, command: Command, events: &mut Events) {
        match command {
            Command::Join(join) => self.join(*join, events),
            Command::Gone(ticket) => {
                if self.conn(ticket).is_some() {
                    self.close(ticket.slot);
                }
            }
            Command::Taken(ticket) => {
                if self.conn(ticket).is_some_and(|c| c.mode == Mode::Replay) {
                    self.replay_next(ticket);
                }
            }
            Command::Drain(within) => {
                let total = self.groups.total();
                let over = (Duration::from_secs(1) * total as u32 / ENDED_PER_SECOND).min(within);
                let began = Instant::now();
                self.draining.get_or_insert(Draining { began, over, total, until: began + over + Duration::from_secs(1) });
            }
        }
    }

    pub fn conn(&mut self, ticket: Ticket) -> Option<&mut Conn> {
        self.conns.get_mut(ticket.slot as usize)?.as_mut().filter(|c| c.serial == ticket.serial)
    }

    /// Is there a place?
    fn room(&self, join: &Join) -> Result<(), Refused> {
        if self.draining.is_some() {
            return Err(Refused::Draining);
        }
        if self.groups.of(&join.resource) >= self.config.max_connections_per_resource {
            return Err(Refused::Resource(self.config.max_connections_per_resource));
        }
        if self.groups.total() >= self.config.max_connections {
            return Err(Refused::Total(self.config.max_connections));
        }
        if matches!(join.way, Way::Body(..)) && self.groups.carried >= CARRIED {
            return Err(Refused::Carried(CARRIED));
        }
        Ok(())
    }

    fn join(&mut self, join: Join, events: &mut Events) {
        let mut room = self.room(&join);
        if room.is_err() && self.draining.is_none() {
            // Whoever has gone, however lately, has left a place.
            for _ in 0..LOOKS {
                if self.poll.poll(events, Some(Duration::ZERO)).is_err() || events.is_empty() {
                    break;
                }
                self.heard(events);
            }
            room = self.room(&join);
        }
        if let Err(refused) = room {
            return refuse(join, refused);
        }
        let latest = self.latest(&join.resource);
        let at = join.last.unwrap_or(latest);
        let now = self.now();
        let slot = self.free.pop().unwrap_or(self.conns.len() as u32);
        self.serial = self.serial.wrapping_add(1);
        let ticket = Ticket { slot, serial: self.serial };
        let greeting = format!(": hie\nretry: {RETRY_MS}\nid: {at}\n\n");
        let (sink, head) = match join.way {
            Way::Body(pipe, answer) => {
                if answer.send(Ok(ticket)).is_err() {
                    return self.free.push(slot);
                }
                (Sink::Body(Box::new(pipe)), greeting)
            }
            Way::Socket(stream) => {
                let mut stream = mio::net::TcpStream::from_std(stream);
                let interest = Interest::READABLE | Interest::WRITABLE;
                if self.poll.registry().register(&mut stream, Token(slot as usize), interest).is_err() {
                    return self.free.push(slot);
                }
                (Sink::Socket(stream), format!("{}{greeting}", super::answer::HEAD))
            }
        };
        let resource = self.groups.name(&join.resource);
        let mut conn = Conn::new(sink, resource, at, self.serial, now);
        let sent = conn.send(&Batch::plain(head, at), 0, usize::MAX, now);
        conn.place = self.groups.add(&conn, slot);
        if slot as usize == self.conns.len() {
            self.conns.push(None);
        }
        self.conns[slot as usize] = Some(conn);
        self.counted(&join.resource, 1);
        if sent == Sent::Gone {
            return self.close(slot);
        }
        if at == latest {
            self.go_live(slot);
        } else if at > latest {
            // Numbers of another store, or of one that was restored from a backup.
            self.tell_reset(slot, latest + 1);
            self.go_live(slot);
        } else {
            self.replay_next(ticket);
        }
    }

    /// A reader has all there was: from now on it is sent what happens.
    pub fn go_live(&mut self, slot: u32) {
        let Some(conn) = self.conns[slot as usize].as_mut() else { return };
        conn.mode = Mode::Live;
        let at = conn.at;
        let alerts = *conn.resource == Resource::Alerts;
        let tail = if alerts { &mut self.alerts } else { &mut self.log };
        if tail.live == 0 {
            tail.at = at;
        }
        tail.live += 1;
    }

    fn counted(&mut self, resource: &Resource, change: i64) {
        Listeners { kind: resource.kind(), change, resources: self.groups.resources() }.emit();
        let mut counts = self.shared.counts();
        counts.total = self.groups.total();
        counts.carried = self.groups.carried;
        match self.groups.of(resource) {
            0 => drop(counts.by_resource.remove(resource)),
            n => drop(counts.by_resource.insert(resource.clone(), n)),
        }
    }

    /// Gives a connection's place back.
    pub fn leave(&mut self, slot: u32) {
        let Some(conn) = self.conns[slot as usize].as_ref().filter(|c| c.mode != Mode::Closing) else { return };
        let (mode, resource) = (conn.mode, conn.resource.clone());
        if mode == Mode::Live {
            let tail = if *resource == Resource::Alerts { &mut self.alerts } else { &mut self.log };
            tail.live -= 1;
        }
        if let Some((moved, place)) = self.groups.remove(conn)
            && let Some(moved) = self.conns[moved as usize].as_mut()
        {
            moved.place = place;
        }
        self.counted(&resource, -1);
        if self.groups.is_empty() {
            self.cache.clear();
            self.names.clear();
        }
    }

    /// Closes a connection at once.
    pub fn close(&mut self, slot: u32) {
        self.leave(slot);
        if let Some(conn) = self.conns[slot as usize].take() {
            if conn.mode == Mode::Closing {
                self.closing -= 1;
            }
            self.free.push(slot);
        }
    }
}

/// Answers a reader that is not taken.
pub(super) fn refuse(join: Join, refused: Refused) {
    let (scope, limit) = match refused {
        Refused::Resource(limit) => ("resource", limit),
        Refused::Total(limit) => ("total", limit),
        Refused::Carried(limit) => ("carried", limit),
        Refused::Draining => ("draining", 0),
    };
    FeedFull { scope, resource: &join.resource.to_string(), limit }.emit();
    match join.way {
        // Who does not take the refusal has none.
        Way::Body(_, answer) => drop(answer.send(Err(refused))),
        Way::Socket(mut stream) => {
            let answer = super::answer::refusal(&join.resource, refused).into_wire();
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
}
