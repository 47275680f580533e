//! Senders that remember what was acknowledged: one message in flight per connection; what was not acknowledged is sent
//! again, under the same control id, until it is.

use super::Rng;
use super::http::Client;
use super::wire::{Frames, Tag, adt, frame, text};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The way in.
#[derive(Clone, Debug)]
pub enum Via {
    Mllp(SocketAddr),
    /// POST to this path; `Idempotency-Key` is the control id.
    Http(SocketAddr, String),
    /// Addresses looked up for each connection, tried in turn.
    MllpNamed(Lookup),
    HttpNamed(Lookup, String),
}

/// What a name stands for at the moment; empty when nothing answers.
#[derive(Clone)]
pub struct Lookup(pub Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>);

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup")
    }
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    pub via: Via,
    pub connections: usize,
    /// Ordering keys per connection; no two connections share one.
    pub keys: usize,
    /// Messages a second over all connections; `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// Between an acknowledgment and the next message, in place of a rate: nothing is made up for.
    pub pause: Duration,
    /// Messages per connection; `None`: until stopped.
    pub count: Option<u64>,
    /// Size of a message in bytes, about.
    pub size: usize,
    /// Patience for one acknowledgment.
    pub timeout: Duration,
    /// Patience for one address to accept a connection.
    pub connect: Duration,
    /// Looks before each message whether the node has ended the connection meanwhile, as HTTP clients with a pool and MLLP senders
    /// that read all the time do; else the message is written into it and has to be sent again.
    pub looks: bool,
    /// Distinguishes the keys and control ids of several loads in one test.
    pub name: String,
    pub seed: u64,
}

impl Load {
    pub fn new(via: Via) -> Self {
        Self {
            via,
            connections: 8,
            keys: 4,
            rate: None,
            pause: Duration::ZERO,
            count: None,
            size: 1000,
            timeout: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            looks: false,
            name: "L".into(),
            seed: 1,
        }
    }

    pub fn start(self) -> Fleet {
        let shared = Arc::new(Shared::default());
        let mut rng = Rng::new(self.seed);
        let threads = (0..self.connections)
            .map(|number| {
                let mut sender =
                    Sender { number, load: self.clone(), shared: shared.clone(), rng: rng.split(), log: Sent::default() };
                std::thread::spawn(move || {
                    sender.run();
                    sender.log
                })
            })
            .collect();
        Fleet { shared, threads }
    }

    /// Sends `count` per connection and waits for all acknowledgments (at most `limit`).
    pub fn run(self, limit: Duration) -> Sent {
        assert!(self.count.is_some(), "a load that ends");
        let fleet = self.start();
        fleet.join(limit)
    }
}

#[derive(Default)]
struct Shared {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
    /// Gives up what is not acknowledged at this moment.
    deadline: Mutex<Option<Instant>>,
}

/// Running senders.
pub struct Fleet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Sent>>,
}

/// What the senders remember.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Every message that was written at least once.
    pub attempted: Vec<Tag>,
    /// Those acknowledged with AA or CA, 200 or 202.
    pub acknowledged: Vec<Tag>,
    /// Writes beyond a message's first.
    pub sent_again: u64,
    /// Connections beyond each sender's first.
    pub reconnects: u64,
    /// Connections refused or cut while being made.
    pub connect_failures: u64,
    /// Messages written that got no answer: the connection ended, or patience did.
    pub unanswered: u64,
    /// Of the last two, the first some with their time and cause.
    pub troubles: Vec<String>,
    /// Names that gave no address.
    pub unresolved: u64,
    /// Negative answers by code (`AE`, `AR`, `503`, …) and how often.
    pub refused: std::collections::BTreeMap<String, u64>,
    /// Answers that no node may give: for another control id, of no known code.
    pub violations: Vec<String>,
    /// Time from write to acknowledgment, microseconds, of the acknowledged.
    pub latencies_us: Vec<u32>,
    /// Of each acknowledged control id: [`super::wire::digest`] of the message.
    pub digests: std::collections::HashMap<String, u64>,
}

impl Sent {
    pub fn merge(&mut self, other: Self) {
        self.attempted.extend(other.attempted);
        self.acknowledged.extend(other.acknowledged);
        self.sent_again += other.sent_again;
        self.reconnects += other.reconnects;
        self.connect_failures += other.connect_failures;
        self.unanswered += other.unanswered;
        self.troubles.extend(other.troubles);
        self.unresolved += other.unresolved;
        for (code, n) in other.refused {
            *self.refused.entry(code).or_default() += n;
        }
        self.violations.extend(other.violations);
        self.latencies_us.extend(other.latencies_us);
        self.digests.extend(other.digests);
    }

    fn trouble(&mut self, id: &str, took: Duration, error: &io::Error) {
        if self.troubles.len() < 20 {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            self.troubles.push(format!("{id} at {:.3}, after {took:.1?}: {error}", now.as_secs_f64()));
        }
    }

    /// The latency that the share `p` (0 to 1) of the acknowledged stayed below.
    pub fn percentile(&self, p: f64) -> Duration {
        let mut all = self.latencies_us.clone();
        all.sort_unstable();
        let index = ((all.len() as f64 * p) as usize).min(all.len().saturating_sub(1));
        Duration::from_micros(all.get(index).copied().unwrap_or(0).into())
    }
}

impl Fleet {
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Negative answers so far.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// No new messages; what is in hand is sent until acknowledged, at most `limit`.
    pub fn stop(self, limit: Duration) -> Sent {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join(limit)
    }

    /// Waits for the end of a load with a count.
    pub fn join(self, limit: Duration) -> Sent {
        *self.shared.deadline.lock().unwrap() = Some(Instant::now() + limit);
        let mut sent = Sent::default();
        for thread in self.threads {
            match thread.join() {
                Ok(log) => sent.merge(log),
                Err(_) => sent.violations.push("a sender panicked".into()),
            }
        }
        sent
    }
}

enum Connection {
    Mllp(TcpStream, Frames<TcpStream>),
    Http(Client),
}

impl Connection {
    /// The other side has ended it, or sent what was not asked for.
    fn ended(&self) -> bool {
        let stream = match self {
            Self::Mllp(stream, _) => stream,
            Self::Http(client) => client.stream(),
        };
        let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        let _ = stream.set_nonblocking(false);
        !looked.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }
}

enum Answer {
    Taken,
    /// The code.
    Refused(String),
    /// What no node may answer.
    Wrong(String),
}

struct Sender {
    number: usize,
    load: Load,
    shared: Arc<Shared>,
    rng: Rng,
    log: Sent,
}

impl Sender {
    fn run(&mut self) {
        let mut seqs = vec![0u64; self.load.keys.max(1)];
        let mut connection = None;
        let begin = Instant::now();
        let mut sent = 0u64;
        while !self.shared.stop.load(Ordering::SeqCst) && self.load.count.is_none_or(|n| sent < n) && !self.expired() {
            if let Some(rate) = self.load.rate {
                let due = begin + Duration::from_secs_f64(sent as f64 * self.load.connections as f64 / rate);
                while let Some(left) = due.checked_duration_since(Instant::now())
                    && !self.shared.stop.load(Ordering::SeqCst)
                {
                    std::thread::sleep(left.min(Duration::from_millis(50)));
                }
            }
            sent += 1;
            let which = self.rng.range(0, seqs.len() as u64) as usize;
            seqs[which] += 1;
            let key = format!("{}{}K{which}", self.load.name, self.number);
            let tag = Tag { key, seq: seqs[which], id: format!("{}{}-{sent}", self.load.name, self.number) };
            let pad = self.rng.token(200);
            let message = adt(&tag, self.load.size, &pad);
            if !self.deliver(&mut connection, &tag, &message) {
                return;
            }
            std::thread::sleep(self.load.pause);
        }
    }

    fn expired(&self) -> bool {
        self.shared.deadline.lock().unwrap().is_some_and(|d| Instant::now() >= d)
    }

    /// Until acknowledged; false when the deadline came first.
    fn deliver(&mut self, connection: &mut Option<Connection>, tag: &Tag, message: &[u8]) -> bool {
        let mut written = false;
        while !self.expired() {
            let Some(open) = self.connected(connection) else { continue };
            if written {
                self.log.sent_again += 1;
            } else {
                self.log.attempted.push(tag.clone());
                written = true;
            }
            let begin = Instant::now();
            match exchange(open, &self.load, &tag.id, message) {
                Ok(Answer::Taken) => {
                    self.log.acknowledged.push(tag.clone());
                    self.log.digests.insert(tag.id.clone(), super::wire::digest(message));
                    self.log.latencies_us.push(begin.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
                    self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
                    if matches!(connection, Some(Connection::Http(c)) if c.closing) {
                        *connection = None;
                    }
                    return true;
                }
                Ok(Answer::Refused(code)) => {
                    *self.log.refused.entry(code).or_default() += 1;
                    self.shared.refused.fetch_add(1, Ordering::SeqCst);
                    if matches!(connection, Some(Connection::Http(c)) if c.closing) {
                        *connection = None;
                    }
                    std::thread::sleep(Duration::from_millis(self.rng.range(20, 80)));
                }
                Ok(Answer::Wrong(what)) => {
                    self.log.violations.push(format!("{}: {what}", tag.id));
                    *connection = None;
                }
                Err(error) => {
                    self.log.unanswered += 1;
                    self.log.trouble(&tag.id, begin.elapsed(), &error);
                    *connection = None;
                }
            }
        }
        false
    }

    fn connected<'c>(&mut self, connection: &'c mut Option<Connection>) -> Option<&'c mut Connection> {
        if self.load.looks && connection.as_ref().is_some_and(Connection::ended) {
            *connection = None;
        }
        if connection.is_none() {
            let addresses = match &self.load.via {
                Via::Mllp(to) | Via::Http(to, _) => vec![*to],
                Via::MllpNamed(lookup) | Via::HttpNamed(lookup, _) => (lookup.0)(),
            };
            self.log.unresolved += u64::from(addresses.is_empty());
            for to in addresses {
                let begin = Instant::now();
                match connect(&self.load, to) {
                    Ok(open) => {
                        if !self.log.attempted.is_empty() {
                            self.log.reconnects += 1;
                        }
                        *connection = Some(open);
                        break;
                    }
                    Err(error) => {
                        self.log.connect_failures += 1;
                        self.log.trouble(&format!("{}{} to {to}", self.load.name, self.number), begin.elapsed(), &error);
                    }
                }
            }
            if connection.is_none() {
                std::thread::sleep(Duration::from_millis(self.rng.range(5, 25)));
            }
        }
        connection.as_mut()
    }
}

fn connect(load: &Load, to: SocketAddr) -> io::Result<Connection> {
    match &load.via {
        Via::Mllp(_) | Via::MllpNamed(_) => {
            let stream = TcpStream::connect_timeout(&to, load.connect)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(load.timeout))?;
            stream.set_write_timeout(Some(load.timeout))?;
            Ok(Connection::Mllp(stream.try_clone()?, Frames::new(stream)))
        }
        Via::Http(..) | Via::HttpNamed(..) => {
            let client = Client::connect(to, load.connect)?;
            client.stream().set_read_timeout(Some(load.timeout))?;
            client.stream().set_write_timeout(Some(load.timeout))?;
            Ok(Connection::Http(client))
        }
    }
}

fn exchange(connection: &mut Connection, load: &Load, id: &str, message: &[u8]) -> io::Result<Answer> {
    match connection {
        Connection::Mllp(out, frames) => {
            out.write_all(&frame(message))?;
            let answer = frames.read()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let (code, for_id) = (text(&answer, "MSA", 1), text(&answer, "MSA", 2));
            if for_id != id {
                return Ok(Answer::Wrong(format!("acknowledged {for_id:?}")));
            }
            Ok(match code.as_str() {
                "AA" | "CA" => Answer::Taken,
                "AE" | "AR" | "CE" | "CR" => Answer::Refused(code),
                _ => Answer::Wrong(format!("code {code:?}")),
            })
        }
        Connection::Http(client) => {
            let (Via::Http(_, path) | Via::HttpNamed(_, path)) = &load.via else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            let headers = [("Idempotency-Key", id), ("Content-Type", "application/hl7-v2")];
            let answer = client.request("POST", path, &headers, message)?;
            Ok(match answer.status {
                200..=202 => Answer::Taken,
                429 | 502..=504 => Answer::Refused(answer.status.to_string()),
                other => Answer::Wrong(format!("status {other}")),
            })
        }
    }
}
