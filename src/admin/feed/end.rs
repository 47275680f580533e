//! How connections end, and what keeps them alive until then.

use super::{
    conn::{Conn, Mode, Sent, Sink, Tick},
    resource::Resource,
    run::Loop,
    slice::Batch,
};
use crate::{engine::fact::Seq, telemetry::feed::FeedEnded};
use std::time::{Duration, Instant};

/// A last event that is not taken in this time is not waited for.
const LAST_WORDS: Tick = 50;
/// Connections whose last event is on the way, at most; those beyond are closed without it.
const CLOSING: usize = 1000;
/// A reader that takes nothing for so long is dropped, however little waits.
const STALLED: Tick = 300;

impl Loop {
    /// The number that a reader has when all that waits for it is sent.
    pub fn position(&self, conn: &Conn) -> Seq {
        let tail = if *conn.resource == Resource::Alerts { &self.alerts } else { &self.log };
        if conn.mode == Mode::Live { conn.at.max(tail.at) } else { conn.at }
    }

    /// Ends a connection with a last event that says why and where to go on.
    pub fn end(&mut self, slot: u32, why: &'static str, text: &str) {
        let now = self.now();
        let Some(conn) = self.conns[slot as usize].as_ref() else { return };
        let position = self.position(conn);
        self.leave(slot);
        FeedEnded { why }.emit();
        let Some(conn) = self.conns[slot as usize].as_mut() else { return };
        let resume = conn.cut().unwrap_or(position);
        let last =
            format!("event: {why}\ndata: {{\"event\":\"{why}\",\"resume\":{resume},\"why\":\"{text}\"}}\nid: {resume}\n\n");
        conn.mode = Mode::Closing;
        conn.opened = now;
        let sent = conn.send_last(&Batch::plain(last, resume), now);
        let done = sent != Sent::Fine || conn.is_flushed() || matches!(conn.sink, Sink::Body(_));
        self.closing += 1;
        if done || self.closing > CLOSING {
            self.close(slot);
        }
    }

    /// A reader that is too slow.
    pub fn drop_slow(&mut self, slot: u32) {
        self.end(slot, "dropped", "the reader takes too little: more than feed.buffer waited, or nothing was taken for 30 s");
    }

    /// Timeouts and signs of life.
    pub fn sweep(&mut self) {
        let now = self.now();
        let every = (self.sweep_every().as_millis() / 100) as Tick;
        if now.saturating_sub(self.swept) < every.max(1) {
            return;
        }
        self.swept = now;
        let ticks = |d: Duration| Tick::try_from(d.as_millis() / 100).unwrap_or(Tick::MAX).max(1);
        let (timeout, silent) = (ticks(self.config.timeout), ticks(self.config.keep_alive));
        for slot in 0..self.conns.len() as u32 {
            let Some(conn) = self.conns[slot as usize].as_ref() else { continue };
            let age = now.saturating_sub(conn.opened);
            if conn.mode == Mode::Closing {
                if age >= LAST_WORDS {
                    self.close(slot);
                }
            } else if age >= timeout {
                self.end(slot, "timeout", "feed.timeout has passed; come back and go on");
            } else if conn.stalled(now) >= STALLED {
                self.drop_slow(slot);
            } else if conn.is_flushed() && now.saturating_sub(conn.wrote) >= silent - spread(slot, silent) {
                let at = self.position(conn);
                // With the number reached, so that who comes back to a quiet resource need not begin far behind.
                let sign = Batch::plain(format!(":\nid: {at}\n\n"), at);
                if let Some(conn) = self.conns[slot as usize].as_mut()
                    && conn.send(&sign, 0, usize::MAX, now) == Sent::Gone
                {
                    self.close(slot);
                }
            }
        }
    }

    /// Ends readers over time; true when the thread may end.
    pub fn drained(&mut self) -> bool {
        let Some(draining) = &self.draining else { return false };
        let share =
            if draining.over.is_zero() { 1.0 } else { draining.began.elapsed().as_secs_f64() / draining.over.as_secs_f64() };
        let keep = (draining.total as f64 * (1.0 - share)).max(0.0) as usize;
        let until = draining.until;
        let mut slot = 0;
        while self.groups.total() > keep && (slot as usize) < self.conns.len() {
            if self.conns[slot as usize].as_ref().is_some_and(|c| c.mode != Mode::Closing) {
                self.end(slot, "closing", "the node drains; come back in a moment");
            }
            slot += 1;
        }
        (self.groups.is_empty() && self.closing == 0) || Instant::now() >= until
    }
}

/// Signs of life of those who were sent something at the same time are spread over a quarter of the silence.
fn spread(slot: u32, silent: Tick) -> Tick {
    (slot % 16) * silent / 64
}
