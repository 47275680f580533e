//! What the sink prints: a line per message where asked for, a total every few seconds while something comes.

use super::{Counts, Handle, Hook, Received};
use crate::message::hl7::Header;
use std::{
    io::{IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

const EVERY: Duration = Duration::from_secs(5);

/// Prints messages.
#[derive(Clone, Copy)]
pub(super) struct Printer {
    json: bool,
    colour: bool,
}

impl Printer {
    pub(super) fn new(json: bool) -> Self {
        Self { json, colour: !json && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    pub(super) fn hook(self) -> Hook {
        Arc::new(move |received| {
            // A closed pipe ends the printing, not the receiving.
            let _ = writeln!(std::io::stdout().lock(), "{}", self.line(received));
        })
    }

    fn line(&self, message: &Received<'_>) -> String {
        let header = Header::parse(message.body).ok();
        let kind = match (&header, message.http) {
            (Some(header), _) => header.message_type(),
            (None, Some(head)) => format!("{} {}", head.method, head.uri.path()),
            (None, None) => "?".into(),
        };
        let id = String::from_utf8_lossy(message.control_id);
        let (number, len, protocol) = (message.number, message.len, message.protocol.as_str());
        if self.json {
            let line = serde_json::json!({"number": number, "protocol": protocol, "connection": message.connection,
                "type": kind, "control_id": id, "bytes": len});
            return line.to_string();
        }
        // What came over the wire must not steer the terminal.
        let clean = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
        let (on, off) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        format!("{number:>8}  {protocol:<4}  {on}{:<16}{off}  {:<24}  {len} bytes", clean(&kind), clean(&id))
    }
}

/// Prints totals while messages come; never resolves.
pub(super) async fn totals(handle: &Handle, json: bool) {
    let mut before = Counts::default();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = handle.counts();
        if now != before {
            let rate = (now.messages - before.messages) as f64 / EVERY.as_secs_f64();
            if json {
                total(now, true);
            } else {
                eprintln!("hie sink: {} ({rate:.0}/s)", text(now));
            }
            before = now;
        }
    }
}

/// Prints the counts: JSON to standard output, text to standard error.
pub(super) fn total(counts: Counts, json: bool) {
    if !json {
        return eprintln!("hie sink: {}", text(counts));
    }
    let Counts { messages, bytes, accepted, refused, unanswered, connections, garbage } = counts;
    let line = serde_json::json!({"total": {"messages": messages, "bytes": bytes, "accepted": accepted, "refused": refused,
        "unanswered": unanswered, "connections": connections, "garbage": garbage}});
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn text(c: Counts) -> String {
    let size = bytesize::ByteSize(c.bytes);
    let mut text = format!("{} messages, {size}, {} connections, {} accepted", c.messages, c.connections, c.accepted);
    for (count, what) in [(c.refused, "refused"), (c.unanswered, "unanswered"), (c.garbage, "garbage")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}
