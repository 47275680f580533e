//! A reader of server-sent events (WHATWG HTML, section 9.2), blocking and small, on a socket of its own.

use super::http::{Head, Response};
use super::node::Node;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    pub name: String,
    pub id: u64,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {:?}", self.data))
    }

    /// A field of the data; null when it is not there.
    pub fn field(&self, name: &str) -> serde_json::Value {
        self.json().get(name).cloned().unwrap_or_default()
    }
}

/// What came next.
#[derive(Debug)]
pub enum Next {
    Event(Event),
    /// A comment, which keeps the connection alive.
    Sign,
    /// Nothing within the time.
    Silence,
    /// The stream has ended.
    End,
}

/// An open stream.
pub struct Reader {
    stream: BufReader<TcpStream>,
    pub head: Head,
    /// The `retry` field, milliseconds.
    pub retry: Option<u64>,
    /// The last number seen, with or without an event.
    pub last: Option<u64>,
    /// Everything that came after the head.
    pub raw: Vec<u8>,
    line: Vec<u8>,
    event: Event,
    comment: bool,
}

impl Reader {
    /// Opens a stream with the node's token; the answer, when it is another than 200.
    pub fn open(node: &Node, resource: &str, last: Option<u64>) -> Result<Self, Response> {
        Self::at(node.admin, &node.token(), resource, last)
    }

    pub fn at(to: SocketAddr, token: &str, resource: &str, last: Option<u64>) -> Result<Self, Response> {
        let mut stream = TcpStream::connect(to).expect("the management API");
        let last_line = last.map(|n| format!("Last-Event-ID: {n}\r\n")).unwrap_or_default();
        write!(stream, "GET /events/{resource} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{last_line}\r\n")
            .expect("a request");
        Self::answered(stream)
    }

    /// Reads the answer to a request that was written.
    pub fn answered(stream: TcpStream) -> Result<Self, Response> {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        let head = Head::read(&mut stream).expect("an answer").expect("a head");
        let status = head.line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if status != 200 {
            let mut body = Vec::new();
            let length = head.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            stream.take(length).read_to_end(&mut body).expect("a body");
            return Err(Response { status, head, body });
        }
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        Ok(Self { stream, head, retry: None, last: None, raw: vec![], line: vec![], event: Event::default(), comment: false })
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// The next thing that happens, at most `limit` away.
    pub fn next(&mut self, limit: Duration) -> Next {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && self.stream.buffer().is_empty() {
                return Next::Silence;
            }
            self.stream.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a timeout");
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => return Next::End,
                Ok(_) if self.line.last() == Some(&b'\n') => {
                    self.raw.extend_from_slice(&self.line);
                    let line = String::from_utf8(std::mem::take(&mut self.line)).expect("UTF-8");
                    if let Some(next) = self.take(line.trim_end_matches('\n')) {
                        return next;
                    }
                }
                Ok(_) => return Next::End,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Next::Silence,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Next::End,
            }
        }
    }

    fn take(&mut self, line: &str) -> Option<Next> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !event.data.is_empty() {
                return Some(Next::Event(Event { id: self.last.unwrap_or(0), ..event }));
            }
            return std::mem::take(&mut self.comment).then_some(Next::Sign);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comment = true,
            "event" => self.event.name = value.to_owned(),
            "data" => self.event.data += value,
            "id" => self.last = Some(value.parse().expect("a number")),
            "retry" => self.retry = Some(value.parse().expect("a number")),
            _ => panic!("an unknown field: {line}"),
        }
        None
    }

    /// The next event, passing over signs of life; panics when none comes in time.
    pub fn event(&mut self, limit: Duration) -> Event {
        self.event_or_end(limit).unwrap_or_else(|| panic!("the stream has ended after {:?}", self.last))
    }

    /// The same; `None` at the stream's end.
    pub fn event_or_end(&mut self, limit: Duration) -> Option<Event> {
        let end = Instant::now() + limit;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Next::Event(event) => return Some(event),
                Next::Sign => {}
                Next::Silence => panic!("no event within {limit:?} after {:?}", self.last),
                Next::End => return None,
            }
        }
    }

    /// Everything that comes until nothing has come for so long, or the end.
    pub fn drain(&mut self, quiet: Duration) -> Vec<Event> {
        let mut all = Vec::new();
        let mut since = Instant::now();
        loop {
            match self.next(quiet) {
                Next::Event(event) => {
                    all.push(event);
                    since = Instant::now();
                }
                // Signs of life are no events.
                Next::Sign if since.elapsed() < quiet => {}
                _ => return all,
            }
        }
    }
}
