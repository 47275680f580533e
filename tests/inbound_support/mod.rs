//! What the tests of the inbound gateways share: an engine that does as it is told, and raw clients.
#![allow(dead_code)] // each test file uses its own part

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use hie::{
    config,
    engine::ports::{Answer, Arrival, Credentials, Denied, Identity, Incoming, Intake, Refusal},
    gateway::inbound::{
        http::{self, HttpServer},
        mllp::{self, MllpServer},
    },
    message::{HttpHead, MessageId, Protocol, hl7::Header},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One message as the engine saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub client: String,
    pub protocol: Protocol,
    pub listener: String,
    pub remote: String,
    pub http: Option<HttpHead>,
    pub body: Bytes,
    /// It came in pieces, the first of this length.
    pub head: Option<usize>,
    /// It broke off.
    pub broken: bool,
}

impl Seen {
    pub fn control_id(&self) -> String {
        Header::parse(&self.body).ok().and_then(|h| h.control_id()).unwrap_or_default()
    }
}

type Script = dyn Fn(Seen) -> BoxFuture<'static, Answer> + Send + Sync;
type Identify = dyn Fn(&str, Option<SocketAddr>, &Credentials) -> Result<Arc<str>, Denied> + Send + Sync;

/// An engine that remembers what it saw and answers as it is told.
pub struct Fake {
    pub seen: Mutex<Vec<Seen>>,
    /// Refused by the gateway itself, told for the record.
    pub refused: Mutex<Vec<Refusal>>,
    pub identified: Mutex<Vec<(Option<SocketAddr>, Credentials)>>,
    script: Box<Script>,
    identify: Box<Identify>,
    open: watch::Sender<bool>,
    /// What is said of the rate, one after the other; then there is room.
    pub rates: Mutex<VecDeque<Result<(), Duration>>>,
    /// Senders with a credential wait until it holds.
    pub checks: Option<watch::Sender<bool>>,
}

impl Fake {
    /// Accepts what has a readable header (HTTP: everything).
    pub fn accepting() -> Arc<Self> {
        Self::new(|seen| Box::pin(async move { default_answer(&seen) }))
    }

    pub fn new(script: impl Fn(Seen) -> BoxFuture<'static, Answer> + Send + Sync + 'static) -> Arc<Self> {
        Self::with_identity(script, |_, _, _| Ok("anonymous".into()))
    }

    pub fn with_identity(
        script: impl Fn(Seen) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
        identify: impl Fn(&str, Option<SocketAddr>, &Credentials) -> Result<Arc<str>, Denied> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            refused: Mutex::default(),
            identified: Mutex::default(),
            script: Box::new(script),
            identify: Box::new(identify),
            open: watch::Sender::new(true),
            rates: Mutex::default(),
            checks: None,
        })
    }

    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    pub fn bodies(&self) -> Vec<Bytes> {
        self.seen.lock().unwrap().iter().map(|s| s.body.clone()).collect()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

pub fn default_answer(seen: &Seen) -> Answer {
    if seen.broken {
        return Answer::Refused { id: None, refusal: Refusal::Aborted };
    }
    match Header::parse(&seen.body) {
        Err(error) if seen.protocol == Protocol::Mllp => {
            Answer::Refused { id: None, refusal: Refusal::Unreadable(error.to_string()) }
        }
        _ => Answer::Accepted { id: MessageId::now(), resend: false },
    }
}

impl Intake for Fake {
    fn identify(&self, listener: &str, peer: Option<SocketAddr>, credentials: &Credentials) -> Identity<'_> {
        self.identified.lock().unwrap().push((peer, credentials.clone()));
        let result = (self.identify)(listener, peer, credentials);
        // Like a password seen for the first time: told when the test lets it.
        match &self.checks {
            Some(checks) if credentials.authorization.is_some() => {
                let mut checks = checks.subscribe();
                Identity::Checking(Box::pin(async move {
                    let _ = checks.wait_for(|done| *done).await;
                    result
                }))
            }
            _ => Identity::Known(result),
        }
    }

    fn rate(&self, _: &str) -> Result<(), Duration> {
        self.rates.lock().unwrap().pop_front().unwrap_or(Ok(()))
    }

    fn accept(&self, arrival: Arrival) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            if let Incoming::Refused { refusal, .. } = arrival.body {
                self.refused.lock().unwrap().push(refusal.clone());
                return Answer::Refused { id: None, refusal };
            }
            // Remembered at the first poll, so that the order of polls is what is seen; the rest of a body follows.
            let at = {
                let mut seen = self.seen.lock().unwrap();
                let (body, head) = match &arrival.body {
                    Incoming::Whole(body) => (body.clone(), None),
                    Incoming::Stream { head, .. } | Incoming::Refused { head, .. } => (head.clone(), Some(head.len())),
                };
                seen.push(Seen {
                    client: arrival.client.to_string(),
                    protocol: arrival.protocol,
                    listener: arrival.listener.to_string(),
                    remote: arrival.remote.clone(),
                    http: arrival.http.clone(),
                    body,
                    head,
                    broken: false,
                });
                seen.len() - 1
            };
            if let Incoming::Stream { head, mut rest } = arrival.body {
                let mut body = head.to_vec();
                let mut broken = false;
                while let Some(piece) = rest.next().await {
                    match piece {
                        Ok(piece) => body.extend_from_slice(&piece),
                        Err(_) => broken = true,
                    }
                }
                let mut seen = self.seen.lock().unwrap();
                seen[at].body = body.into();
                seen[at].broken = broken;
            }
            let seen = self.seen.lock().unwrap()[at].clone();
            (self.script)(seen).await
        })
    }

    fn open(&self) -> bool {
        *self.open.borrow()
    }

    fn wait_open(&self) -> BoxFuture<'_, ()> {
        let mut open = self.open.subscribe();
        Box::pin(async move {
            let _ = open.wait_for(|open| *open).await;
        })
    }
}

/// A gateway under test.
pub struct Running {
    pub address: SocketAddr,
    pub drain: CancellationToken,
    pub tasks: TaskTracker,
    /// As the owner of the listening sockets holds it.
    pub held: std::net::TcpListener,
}

impl Running {
    /// Drains and waits for all connections, at most `within`.
    pub async fn stop(&self, within: Duration) -> bool {
        self.drain.cancel();
        self.tasks.close();
        timeout(within, self.tasks.wait()).await.is_ok()
    }
}

async fn listen() -> (TcpListener, SocketAddr, std::net::TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let std = listener.into_std().unwrap();
    let held = std.try_clone().unwrap();
    (TcpListener::from_std(std).unwrap(), address, held)
}

pub async fn mllp(config: config::Mllp, intake: Arc<Fake>) -> Running {
    mllps(config, None, intake).await
}

pub async fn mllps(config: config::Mllp, tls: Option<TlsAcceptor>, intake: Arc<Fake>) -> Running {
    let (listener, address, held) = listen().await;
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(mllp::serve(listener, MllpServer::new(config, tls), intake, drain.clone(), tasks.clone()));
    Running { address, drain, tasks, held }
}

pub async fn http(config: config::Http, intake: Arc<Fake>) -> Running {
    https(config, None, intake).await
}

pub const MAX_BODY: u64 = 64 * 1024 * 1024;

pub async fn https(config: config::Http, tls: Option<TlsAcceptor>, intake: Arc<Fake>) -> Running {
    let (listener, address, held) = listen().await;
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(http::serve(listener, HttpServer::new(config, tls, MAX_BODY), intake, drain.clone(), tasks.clone()));
    Running { address, drain, tasks, held }
}

pub async fn connect(running: &Running) -> TcpStream {
    TcpStream::connect(running.address).await.unwrap()
}

/// An ADT with this control id.
pub fn adt(control_id: &str) -> Vec<u8> {
    format!("MSH|^~\\&|APP|FAC|HIE|HIE|20240101||ADT^A01|{control_id}|P|2.5.1\rPID|1||123\r").into_bytes()
}

pub fn framed(message: &[u8]) -> Vec<u8> {
    [b"\x0b", message, b"\x1c\r"].concat()
}

/// A client that reads frames.
pub struct Frames<S> {
    pub io: S,
    buffer: Vec<u8>,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Frames<S> {
    pub fn new(io: S) -> Self {
        Self { io, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// The next frame; `None` at the end of the stream or when none comes within two seconds.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\x1c\r") {
                let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&frame[1..end]).into_owned());
            }
            let mut piece = [0; 4096];
            match timeout(Duration::from_secs(2), self.io.read(&mut piece)).await {
                Ok(Ok(n)) if n > 0 => self.buffer.extend_from_slice(&piece[..n]),
                _ => return None,
            }
        }
    }

    /// `AA 17` of the next acknowledgment.
    pub async fn ack(&mut self) -> Option<String> {
        let frame = self.next().await?;
        hie::message::hl7::ack::parse_ack(frame.as_bytes()).map(|a| format!("{} {}", a.code, a.control_id).trim().to_owned())
    }

    /// True when the stream ends (or is reset) within `within` and nothing more came.
    pub async fn ends(&mut self, within: Duration) -> bool {
        let mut piece = [0; 4096];
        matches!(timeout(within, self.io.read(&mut piece)).await, Ok(Ok(0) | Err(_)))
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

/// Fixed seed, so that a failure can be seen again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
