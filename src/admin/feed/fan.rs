//! From the log to the readers: what happens, to those who are up to date; what they missed, to those who come back.

use super::{
    conn::{Mode, Sent},
    resource::Resource,
    run::Loop,
    shared::Ticket,
    slice::{Batch, Slice},
};
use crate::{
    engine::fact::Seq,
    telemetry::feed::{FeedSent, FeedUnreadable},
};
use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Facts of one step of the tail: some 15 KiB, well below what may wait for a reader.
const STEP: usize = 64;
/// Facts of one stretch of what a reader missed.
const STRETCH: usize = 128;
/// Stretches made in one round, so that what happens now is not held up by them.
const STRETCHES: usize = 8;
/// Alerts of one step.
const ALERTS: usize = 256;
/// After all was sent, what happens in this time goes together.
const PACE: Duration = Duration::from_millis(5);
/// A step that takes so long has many readers to write to …
const HEAVY: Duration = Duration::from_millis(5);
/// … and while messages keep coming it is followed by a pause of so many times its length, at most [`LONGEST_PAUSE`]: writing to ten
/// thousand readers would take a core from them, whatever the thread's priority.
const PAUSE: u32 = 7;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After the log could not be read.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

impl Loop {
    /// Number of the latest event of a resource's source.
    pub fn latest(&self, resource: &Resource) -> Seq {
        match resource {
            Resource::Alerts => self.shared.alerts.get().map_or(0, |alerts| alerts.latest()),
            _ => self.journal.committed(),
        }
    }

    /// One step of the log's tail; is there more at once?
    pub fn follow_log(&mut self) -> bool {
        if self.log.live == 0 || Instant::now() < self.log.not_before {
            return false;
        }
        let committed = self.journal.committed();
        let lag = committed.saturating_sub(self.log.at);
        self.shared.lag.store(lag, Ordering::Relaxed);
        if lag == 0 {
            return false;
        }
        let began = Instant::now();
        let piece = match self.journal.after(self.log.at, STEP) {
            Ok(piece) => piece,
            Err(error) => {
                self.log.not_before = Instant::now() + AFTER_FAILURE;
                FeedUnreadable { error: &error }.emit();
                return false;
            }
        };
        let whole = self.groups.whole_log();
        let groups = &self.groups;
        let wanted = |channel: &Arc<str>, client: &Arc<str>| {
            !whole.is_empty()
                || groups.of(&Resource::Channel(channel.clone())) > 0
                || groups.of(&Resource::Client(client.clone())) > 0
        };
        let slice = Slice::of_facts(piece, &mut self.names, &*self.journal, wanted);
        if slice.after > self.log.at {
            self.log.at = self.gap(slice.after);
        }
        let mut connections = 0;
        for resource in &whole {
            connections += self.fan(&slice, resource);
        }
        let (channels, clients) = slice.parties();
        for resource in channels.into_iter().map(Resource::Channel).chain(clients.into_iter().map(Resource::Client)) {
            if self.groups.of(&resource) > 0 {
                connections += self.fan(&slice, &resource);
            }
        }
        self.log.at = slice.to;
        let lag = committed.saturating_sub(self.log.at);
        self.shared.lag.store(lag, Ordering::Relaxed);
        FeedSent { events: slice.len() as u64, connections, lag }.emit();
        let took = began.elapsed();
        let pause = if lag == 0 {
            PACE
        } else if took > HEAVY && self.journal.committed() > committed + STEP as Seq {
            (took * PAUSE).min(LONGEST_PAUSE)
        } else {
            return true;
        };
        self.log.not_before = Instant::now() + pause;
        false
    }

    /// What lies between is no longer stored: everybody who is up to date is told. The number from which it goes on.
    fn gap(&mut self, after: Seq) -> Seq {
        for slot in 0..self.conns.len() as u32 {
            let alive = self.conns[slot as usize].as_ref();
            if alive.is_some_and(|c| c.mode == Mode::Live && *c.resource != Resource::Alerts && c.at < after) {
                self.tell_reset(slot, after + 1);
            }
        }
        after
    }

    /// One step of the alerts; is there more at once?
    pub fn follow_alerts(&mut self) -> bool {
        let Some(source) = self.shared.alerts.get().filter(|_| self.alerts.live > 0) else { return false };
        if source.latest() <= self.alerts.at {
            return false;
        }
        let slice = Slice::of_alerts(self.alerts.at, &source.since(self.alerts.at, ALERTS));
        if slice.len() == 0 {
            return false;
        }
        let connections = self.fan(&slice, &Resource::Alerts);
        self.alerts.at = slice.to;
        FeedSent { events: slice.len() as u64, connections, lag: self.shared.lag.load(Ordering::Relaxed) }.emit();
        true
    }

    /// Sends what of a slice belongs to a resource to those who are up to date. To how many.
    fn fan(&mut self, slice: &Slice, resource: &Resource) -> u64 {
        let Some(batch) = slice.batch(resource) else { return 0 };
        let now = self.now();
        let mut connections = 0;
        for slot in self.groups.members(resource) {
            let Some(conn) = self.conns[slot as usize].as_mut().filter(|c| c.mode == Mode::Live) else { continue };
            // Who has just come has some of it already.
            let from = if conn.at > slice.after { batch.offset_after(conn.at) } else { 0 };
            connections += 1;
            match conn.send(&batch, from, self.buffer, now) {
                Sent::Fine => {}
                Sent::Slow => self.drop_slow(slot),
                Sent::Gone => self.close(slot),
            }
        }
        connections
    }

    /// A reader that comes back has taken a stretch: the next one is for it when its turn comes.
    pub fn replay_next(&mut self, ticket: Ticket) {
        if let Some(conn) = self.conn(ticket).filter(|c| !c.queued) {
            conn.queued = true;
            self.replays.push_back(ticket);
        }
    }

    /// Sends some stretches; is there more at once?
    pub fn replay(&mut self) -> bool {
        for _ in 0..STRETCHES {
            let Some(ticket) = self.replays.pop_front() else { return false };
            let Some(conn) = self.conn(ticket) else { continue };
            conn.queued = false;
            if conn.mode != Mode::Replay || !conn.is_flushed() {
                // Flushing brings it back.
                continue;
            }
            let (at, resource) = (conn.at, conn.resource.clone());
            let found = if *resource == Resource::Alerts { Ok(self.stretch_of_alerts(at)) } else { self.stretch(at) };
            match found {
                Ok(slice) => self.send_stretch(ticket, &slice),
                Err(error) => {
                    FeedUnreadable { error: &error }.emit();
                    // Whoever comes back tries again; a loop here would only hold up others.
                    self.end(ticket.slot, "closing", "the log cannot be read now; come back in a moment");
                }
            }
        }
        !self.replays.is_empty()
    }

    fn stretch(&mut self, at: Seq) -> Result<Rc<Slice>, String> {
        if let Some(slice) = self.cache.find(at) {
            return Ok(slice);
        }
        let piece = self.journal.after(at, STRETCH)?;
        let slice = Rc::new(Slice::of_facts(piece, &mut self.names, &*self.journal, |_, _| true));
        if slice.to > slice.after {
            self.cache.keep(slice.clone());
        }
        Ok(slice)
    }

    fn stretch_of_alerts(&self, at: Seq) -> Rc<Slice> {
        let Some(source) = self.shared.alerts.get() else { return Rc::new(Slice::of_alerts(at, &[])) };
        let from = source.complete_from().max(1);
        let after = at.max(from - 1);
        Rc::new(Slice::of_alerts(after, &source.since(after, ALERTS)))
    }

    fn send_stretch(&mut self, ticket: Ticket, slice: &Slice) {
        let now = self.now();
        let Some(conn) = self.conn(ticket) else { return };
        let resource = conn.resource.clone();
        if slice.after > conn.at {
            self.tell_reset(ticket.slot, slice.after + 1);
        }
        let Some(conn) = self.conn(ticket) else { return };
        let at = conn.at;
        conn.at = slice.to.max(at);
        let sent = match slice.batch(&resource) {
            // Nothing waits for it but, perhaps, a word on what is missing.
            Some(batch) => conn.send(&batch, batch.offset_after(at), usize::MAX, now),
            None => Sent::Fine,
        };
        let (at, flushed) = (conn.at, conn.is_flushed());
        if sent == Sent::Gone {
            return self.close(ticket.slot);
        }
        let tail = if *resource == Resource::Alerts { &self.alerts } else { &self.log };
        let there = if tail.live > 0 { at >= tail.at } else { at >= self.latest(&resource) };
        if there {
            self.go_live(ticket.slot);
        } else if flushed {
            self.replay_next(ticket);
        }
    }

    /// Tells a reader that numbers below `from` that it has not seen are no longer stored.
    pub fn tell_reset(&mut self, slot: u32, from: Seq) {
        let now = self.now();
        let Some(conn) = self.conns[slot as usize].as_mut() else { return };
        let (asked, at) = (conn.at, from - 1);
        let text = format!(
            "event: reset\ndata: {{\"event\":\"reset\",\"asked\":{asked},\"complete_from\":{from},\"why\":\"what lies between is no \
             longer stored\"}}\nid: {at}\n\n"
        );
        conn.at = at;
        if conn.send(&Batch::plain(text, at), 0, usize::MAX, now) == Sent::Gone {
            self.close(slot);
        }
    }
}
