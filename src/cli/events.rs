//! `hie events`: the live feed on a terminal.

use super::{
    client::{Api, ApiArgs},
    exit::{self, Failure},
    output::text,
};
use clap::Args;
use serde_json::Value;
use std::{
    io::{ErrorKind, Write},
    time::Duration,
};

/// Show what happens to messages, as it happens
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie events --config /etc/hie/hie.toml
  hie events channel:lab.results
  hie events client:lab --after 4711 --json

Goes on by itself when the node restarts, and misses nothing. Ends with 69 when the node is not there at the beginning.")]
pub struct EventsArgs {
    /// transactions, channel:NAMESPACE.NAME, client:NAME, domain:NAME or alerts
    #[arg(default_value = "transactions")]
    resource: String,
    /// Begin behind this event; 0: with the first that is stored
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Without a byte for so long the connection is taken for dead: several signs of life are missing.
const SILENCE: Duration = Duration::from_secs(120);
/// Pause before coming back, unless the node says another.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) fn main(args: &EventsArgs) -> Result<(), Failure> {
    let api = Api::open(&args.api)?;
    let mut lines = Lines { last: args.after, json: args.api.json, ..Lines::default() };
    let mut been_there = false;
    loop {
        let last = lines.last;
        let ended = api.stream(&["events", &args.resource], last, SILENCE, &mut |piece| {
            been_there = true;
            lines.take(piece)
        });
        match ended {
            Ok(()) if lines.closed => return Ok(()),
            Ok(()) => {}
            Err(failure) if !been_there || failure.code != exit::UNAVAILABLE => return Err(failure),
            Err(_) => {}
        }
        lines.buffer.clear();
        std::thread::sleep(lines.pause.unwrap_or(PAUSE));
    }
}

/// The stream, line by line.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    last: Option<u64>,
    pause: Option<Duration>,
    data: String,
    json: bool,
    /// Nobody reads any more.
    closed: bool,
}

impl Lines {
    /// Takes a piece; false: enough.
    fn take(&mut self, piece: &[u8]) -> Result<bool, Failure> {
        self.buffer.extend_from_slice(piece);
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            match line.split_once(": ") {
                Some(("data", data)) => data.clone_into(&mut self.data),
                Some(("id", id)) => self.last = id.parse().ok().or(self.last),
                Some(("retry", ms)) => self.pause = ms.parse().ok().map(Duration::from_millis),
                _ => {}
            }
            if line.is_empty() && !self.data.is_empty() {
                let data = std::mem::take(&mut self.data);
                self.print(&data)?;
            }
        }
        Ok(!self.closed)
    }

    fn print(&mut self, data: &str) -> Result<(), Failure> {
        let line = if self.json { data.to_owned() } else { line(&serde_json::from_str(data).unwrap_or_default()) };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            written => written.map_err(|e| Failure::failed(format!("cannot write the output: {e}")))?,
        }
        Ok(())
    }
}

/// One event for people.
fn line(event: &Value) -> String {
    let field = |name: &str| text(event, &[name]);
    let mut parts = vec![format!("{:<24} {:<10}", field("time"), field("event")), field("channel")];
    for (name, label) in [("route", "route "), ("attempt", "attempt "), ("status", "status "), ("ack", ""), ("client", "client ")]
    {
        let value = field(name);
        parts.push(if value.is_empty() { value } else { format!("{label}{value}") });
    }
    parts.extend([field("transaction"), field("why")]);
    parts.retain(|p| !p.is_empty());
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_put_together_and_numbers_remembered() {
        let mut lines = Lines { json: true, ..Lines::default() };
        for piece in [": hie\nretry: 700\nid: 4\n\nev", "ent: x\ndata: {\"event\":\"x\"}\ni", "d: 7\n\n:\nid: 9\n\nid: 1"] {
            assert!(lines.take(piece.as_bytes()).unwrap());
        }
        assert_eq!((lines.last, lines.pause), (Some(9), Some(Duration::from_millis(700))));
    }

    #[test]
    fn an_event_is_one_line() {
        let event = serde_json::json!({
            "transaction": "t", "time": "2026-01-01T00:00:00.000Z", "event": "retry", "channel": "a.b", "route": "r", "attempt": 2,
        });
        assert_eq!(line(&event), "2026-01-01T00:00:00.000Z retry       a.b  route r  attempt 2  t");
    }
}
