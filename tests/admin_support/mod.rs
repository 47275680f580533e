//! A management API on real sockets over an engine and a ledger that tests hold in their hand; a small HTTP client.
#![allow(dead_code)] // each test file uses its part

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};
use hie::{
    admin::{
        AdminState, Cluster, Detail, Hit, Info, Query, Records, RecordsError, Token,
        feed::{Facts, Feed, Journal, Wake},
    },
    channel::{Channel, Mode, Storage},
    engine::{
        directory::Directory,
        fact::{Accepted, Attempt, BodyRef, Fact, Keeper, Outcome, Seq, Status, What},
        ports::{BodyStream, Control, ControlError, NotReady, RouteStatus},
    },
    message::{
        Envelope, HttpHead, MessageId, Protocol,
        envelope::{FORMAT_VERSION, HeaderBytes},
    },
};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

pub const TOKEN: &str = "a-token-of-enough-length";

// === the fakes ===

/// A node without others; `lab.shared` is its domain's.
struct Alone;

impl Cluster for Alone {
    fn view(&self) -> BoxFuture<'static, serde_json::Value> {
        Box::pin(async { serde_json::json!({ "discovery": "off", "members": [] }) })
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    fn shared_channels(&self) -> BTreeMap<String, String> {
        [("lab.shared".to_owned(), "Consul KV hie/default/channels/lab/shared".to_owned())].into()
    }
}

/// An engine that does as it is told and remembers it.
#[derive(Default)]
pub struct FakeControl {
    pub channels: Mutex<Vec<Channel>>,
    pub paused: Mutex<Vec<(String, String)>>,
    pub reruns: Mutex<Vec<(MessageId, Vec<u8>)>>,
    pub requeued: Mutex<Vec<MessageId>>,
    pub discarded: Mutex<Vec<(MessageId, Option<String>)>>,
    pub missing: Mutex<Vec<String>>,
    /// While true, `rerun` fails as a full store does.
    pub full: AtomicBool,
    /// Held by tests to block whoever asks for the routes or pauses one, and the runtime itself by `requeue`.
    pub block: Mutex<()>,
}

impl Control for FakeControl {
    fn routes(&self) -> Vec<RouteStatus> {
        let _held = self.block.lock();
        let paused = self.paused.lock().unwrap().clone();
        let channels = self.channels.lock().unwrap();
        let of = |c: &Channel| {
            let name = c.name.clone();
            let paused = paused.clone();
            c.routes.clone().into_iter().map(move |r| RouteStatus {
                configured: true,
                paused_by: None,
                channel: name.clone(),
                paused: paused.contains(&(name.clone(), r.name.clone())),
                route: r.name,
                primary: r.primary,
                pending: 7,
                in_flight: 1,
                parked: 2,
                oldest_ms: 1500,
                last_error: String::new(),
            })
        };
        channels.iter().flat_map(of).collect()
    }

    fn pause(&self, channel: &str, route: &str) -> Result<(), ControlError> {
        let _held = self.block.lock();
        let known = self.channels.lock().unwrap().iter().any(|c| c.name == channel && c.routes.iter().any(|r| r.name == route));
        if !known {
            return Err(ControlError::NotFound(format!("route {channel}/{route}")));
        }
        self.paused.lock().unwrap().push((channel.into(), route.into()));
        Ok(())
    }

    fn resume(&self, channel: &str, route: &str) -> Result<(), ControlError> {
        self.paused.lock().unwrap().retain(|p| *p != (channel.into(), route.into()));
        Ok(())
    }

    fn requeue(&self, id: MessageId, _: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>> {
        let _held = self.block.lock();
        self.requeued.lock().unwrap().push(id);
        Box::pin(async { Ok(1) })
    }

    fn discard(&self, id: MessageId, route: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>> {
        self.discarded.lock().unwrap().push((id, route.map(Into::into)));
        Box::pin(async { Err(ControlError::Conflict("nothing is parked".into())) })
    }

    fn rerun(&self, accepted: Accepted, mut body: BodyStream) -> BoxFuture<'_, Result<MessageId, ControlError>> {
        Box::pin(async move {
            if self.full.load(Relaxed) {
                return Err(ControlError::Failed("the disk under the store is full".into()));
            }
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece.map_err(|e| ControlError::Failed(e.to_string()))?);
            }
            self.reruns.lock().unwrap().push((accepted.envelope.id, bytes));
            Ok(MessageId::now())
        })
    }

    fn channels(&self) -> Vec<Channel> {
        self.channels.lock().unwrap().clone()
    }

    fn set_channels(&self, channels: Vec<Channel>) -> Result<(), ControlError> {
        if let Some(wrong) = channels.iter().find(|c| c.when.contains("(((")) {
            return Err(ControlError::Conflict(format!("channel {}: its rule cannot be read", wrong.name)));
        }
        *self.channels.lock().unwrap() = channels;
        Ok(())
    }

    fn pending(&self) -> u64 {
        7
    }

    fn not_ready(&self) -> NotReady {
        self.missing.lock().unwrap().clone()
    }
}

/// A ledger in memory.
#[derive(Default)]
pub struct FakeRecords {
    pub entries: Mutex<Vec<Entry>>,
    pub bodies: Mutex<BTreeMap<Seq, Bytes>>,
    pub queries: Mutex<Vec<Query>>,
    pub broken: AtomicBool,
}

#[derive(Clone)]
pub struct Entry {
    pub id: MessageId,
    pub status: Status,
    pub facts: Vec<(Seq, Fact)>,
}

impl Records for FakeRecords {
    fn settle(&self) {}

    fn search(&self, query: &Query) -> Result<Vec<Hit>, RecordsError> {
        if self.broken.load(Relaxed) {
            return Err(RecordsError::Failed);
        }
        self.queries.lock().unwrap().push(query.clone());
        let entries = self.entries.lock().unwrap();
        let fits = |e: &&Entry| {
            (query.status.is_empty() || query.status.contains(&e.status))
                && query.before.is_none_or(|before| e.facts[0].0 < before)
        };
        let hits = entries.iter().rev().filter(fits).skip(query.offset).take(query.limit);
        Ok(hits.map(|e| Hit { seq: e.facts[0].0, id: e.id }).collect())
    }

    fn transaction(&self, id: MessageId) -> Result<Option<Detail>, RecordsError> {
        let entries = self.entries.lock().unwrap();
        let found = entries.iter().find(|e| e.id == id).cloned();
        Ok(found.map(|e| Detail { status: e.status, facts: e.facts }))
    }

    fn children(&self, id: MessageId) -> Result<Vec<MessageId>, RecordsError> {
        let entries = self.entries.lock().unwrap();
        let parent = |e: &Entry| match &e.facts[0].1.what {
            What::Accepted(accepted) => accepted.envelope.parent,
            _ => None,
        };
        Ok(entries.iter().filter(|e| parent(e) == Some(id)).map(|e| e.id).collect())
    }

    fn read(&self, seq: Seq, body: &BodyRef) -> BodyStream {
        let found = self.bodies.lock().unwrap().get(&seq).cloned();
        match (body, found) {
            (BodyRef::None, _) => Box::pin(stream::empty()),
            // In pieces, as the ledger reads large ones.
            (_, Some(bytes)) => {
                Box::pin(stream::iter(bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>()))
            }
            _ => Box::pin(stream::once(async { Err(io::Error::other("gone")) })),
        }
    }

    fn stats(&self) -> serde_json::Value {
        serde_json::json!({ "segments": 1 })
    }

    fn problems(&self) -> Vec<String> {
        vec!["segment 3 was set aside".into()]
    }
}

impl FakeRecords {
    fn put(&self, seq: Seq, body: &[u8]) -> BodyRef {
        self.bodies.lock().unwrap().insert(seq, Bytes::copy_from_slice(body));
        BodyRef::Own
    }

    /// An HL7 message over MLLP: delivered by its primary route, parked on its secondary one.
    pub fn hl7(&self, body: &[u8]) -> MessageId {
        let envelope = envelope(Protocol::Mllp, body, None);
        self.add(envelope, body, Mode::Queue, Status::CompletedWithErrors)
    }

    /// A FHIR resource over HTTP in proxy mode.
    pub fn fhir(&self, body: &[u8]) -> MessageId {
        let header = |n: &str, v: &str| (n.to_owned(), HeaderBytes(v.as_bytes().to_vec()));
        let http = HttpHead {
            method: "POST".into(),
            path: "/fhir/Patient".into(),
            query: "a=1".into(),
            headers: vec![header("host", "hie.example:5001"), header("x-two", "1"), header("x-two", "2")],
        };
        let mut envelope = envelope(Protocol::Http, body, Some(http));
        envelope.content_type = "application/fhir+json".into();
        self.add(envelope, body, Mode::Proxy, Status::Successful)
    }

    fn add(&self, envelope: Envelope, body: &[u8], mode: Mode, status: Status) -> MessageId {
        let id = envelope.id;
        let base = (self.entries.lock().unwrap().len() as Seq + 1) * 100;
        let at = envelope.received_ms;
        let fact = |seq: Seq, what| (seq, Fact { id, home: base, at: at + 10, what });
        let accepted = Accepted {
            envelope,
            channel: "lab.results".into(),
            mode,
            storage: Storage::All,
            routes: vec!["ehr".into(), "archive".into()],
            idempotent: false,
            body: self.put(base, body),
            body_hash: 1,
            resend_key: 1,
            keeper: Keeper::Log,
        };
        let attempt = |seq: Seq, route: &str, number, outcome, status, ack: &str, error: &str, answer: &[u8]| {
            let response = if answer.is_empty() { BodyRef::None } else { self.put(seq, answer) };
            fact(
                seq,
                What::Attempt(Box::new(Attempt {
                    route: route.into(),
                    number,
                    target: "ehr-a:2575".into(),
                    took_ms: 5,
                    outcome,
                    status,
                    ack: ack.into(),
                    error: error.into(),
                    response,
                    response_len: answer.len() as u64,
                    inside: 0,
                })),
            )
        };
        let mut facts = vec![fact(base, What::Accepted(Box::new(accepted)))];
        match mode {
            Mode::Queue => {
                facts.push(attempt(base + 1, "ehr", 1, Outcome::Retry, 0, "", "connection refused", b""));
                facts.push(attempt(base + 2, "ehr", 2, Outcome::Delivered, 0, "AA", "", b"MSH|ack\rMSA|AA|1\r"));
                facts.push(attempt(base + 3, "archive", 1, Outcome::Parked, 422, "", "answered 422", b"no"));
                facts.push(fact(base + 4, What::Resent { remote: "10.0.0.1:9".into() }));
            }
            Mode::Proxy => {
                let headers = vec![("content-type".to_owned(), HeaderBytes(b"application/fhir+json".to_vec()))];
                let answer = b"{\"resourceType\":\"OperationOutcome\"}";
                let body = self.put(base + 1, answer);
                facts.push(fact(base + 1, What::Responded { status: 201, headers, body, len: answer.len() as u64 }));
            }
        }
        self.entries.lock().unwrap().push(Entry { id, status, facts });
        id
    }
}

pub fn envelope(protocol: Protocol, body: &[u8], http: Option<HttpHead>) -> Envelope {
    Envelope {
        version: FORMAT_VERSION,
        id: MessageId::now(),
        received_ms: 1_769_904_000_007,
        protocol,
        listener: "mllp".into(),
        client: "lab".into(),
        remote: "10.0.0.1:4711".into(),
        kind: "ORU^R01".into(),
        control_id: Some("CID-1".into()),
        patients: vec!["canary-patient".into()],
        keys: vec![],
        content_type: "x-application/hl7-v2+er7".into(),
        http,
        body_len: body.len() as u64,
        parent: None,
        control_id_reused: false,
    }
}

pub fn channel(name: &str) -> Channel {
    let text = format!("name = \"{name}\"\nwhen = 'true'\n[[route]]\nname = \"ehr\"\nprimary = true\nmllp = [\"ehr-a:2575\"]\n");
    toml::from_str(&text).unwrap()
}

/// A log in which nothing happens; what is read of it above 0 panics.
#[derive(Default)]
pub struct NoJournal(pub Arc<std::sync::atomic::AtomicU64>);

impl Journal for NoJournal {
    fn committed(&self) -> Seq {
        self.0.load(Relaxed)
    }

    fn after(&self, seq: Seq, _: usize) -> Result<Facts, String> {
        assert_eq!(self.committed(), 0, "a bug");
        Ok(Facts { facts: vec![], from: seq + 1, at: seq })
    }

    fn parties(&self, _: Seq) -> Option<(String, String)> {
        None
    }

    fn on_commit(&self, _: Wake) {}
}

// === the node ===

/// A management API over the fakes.
pub struct Node {
    pub admin: SocketAddr,
    pub health: SocketAddr,
    pub control: Arc<FakeControl>,
    pub records: Arc<FakeRecords>,
    pub directory: Arc<Directory>,
    pub folder: tempfile::TempDir,
    pub drain: CancellationToken,
    pub feed: Arc<Feed>,
    /// The highest number of the feed's log.
    pub committed: Arc<std::sync::atomic::AtomicU64>,
    pub stop: CancellationToken,
    pub threads: Vec<JoinHandle<()>>,
}

impl Node {
    pub fn start() -> Self {
        let records = Arc::new(FakeRecords::default());
        Self::over(records.clone(), records)
    }

    /// Over another ledger; `records` then stays empty.
    pub fn over(shown: Arc<dyn Records>, records: Arc<FakeRecords>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = Arc::new(FakeControl::default());
        control.channels.lock().unwrap().push(channel("lab.results"));
        let directory = Arc::new(Directory::new(vec![]).unwrap());
        let (stop, drain) = (CancellationToken::new(), CancellationToken::new());
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (admin, health) = (bind(), bind());
        let (admin_at, health_at) = (admin.local_addr().unwrap(), health.local_addr().unwrap());
        let committed: Arc<std::sync::atomic::AtomicU64> = Arc::default();
        let feed = Feed::start(Arc::new(NoJournal(committed.clone())), hie::config::Feed::default(), || {}).unwrap();
        let state = AdminState {
            control: control.clone(),
            records: shown,
            directory: directory.clone(),
            channels: folder.path().join("channels.d"),
            clients: folder.path().join("clients.d"),
            token: Token::new(TOKEN),
            info: Info { node: "n1".into(), domain: "default".into(), version: "0.0.0".into() },
            cluster: Arc::new(Alone),
            changes: Arc::default(),
            alerts: Arc::new(hie::alert::Alerts::none()),
            drain: drain.clone(),
            feed: feed.clone(),
            peers: None,
        };
        let asked = control.clone();
        let threads = vec![
            hie::admin::spawn(admin, state, stop.clone()).unwrap(),
            hie::admin::health::spawn(health, Arc::new(move || asked.not_ready()), stop.clone()).unwrap(),
        ];
        Self { admin: admin_at, health: health_at, control, records, directory, folder, drain, feed, committed, stop, threads }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.with("GET", path, "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.with("POST", path, body)
    }

    /// With the token.
    pub fn with(&self, method: &str, path: &str, body: &str) -> Answer {
        call(self.admin, method, path, &format!("Authorization: Bearer {TOKEN}\r\n"), body)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

// === the client ===

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

pub fn call(to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{length}{headers}\r\n").unwrap();
    // A body that is refused while it is sent breaks the connection; the answer is read all the same.
    let _ = stream.write_all(body.as_bytes());
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no head in {all:?}"));
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = all[end + 4..].to_vec();
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(&body) } else { body };
    Answer { status, head, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    out
}
