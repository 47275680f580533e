//! Receivers that remember what came, in which order, and what they answered; and fail as they are told.

use super::http::{Head, read_body};
use super::wire::{Frames, Tag, ack, frame};
use super::{Rng, wait_until};
use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How a receiver fails: probabilities per message, asked in this order; else it accepts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// Closes the connection without an answer.
    pub close: f64,
    /// Answers AR (HTTP: 503).
    pub reject: f64,
    /// Answers AE (HTTP: 400).
    pub error: f64,
    /// Never answers, keeps the connection.
    pub silent: f64,
    /// Answers for another control id (MLLP only).
    pub wrong_id: f64,
    /// Waits this long before it answers.
    pub delay: Duration,
}

/// One message that came.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub tag: Tag,
    /// Answered AA or 2xx (before the answer was written: the receiver keeps what it has taken).
    pub accepted: bool,
}

/// What is kept of a message that is no harness message (corpus, samples): its bytes.
type Other = Vec<u8>;

struct State {
    http: bool,
    up: AtomicBool,
    behaviour: Mutex<Behaviour>,
    /// Beginnings of keys whose messages are answered AE.
    refused: Mutex<Vec<String>>,
    rng: Mutex<Rng>,
    arrivals: Mutex<Vec<Arrival>>,
    others: Mutex<Vec<Other>>,
    keep_others: AtomicBool,
    accepted: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
    next: AtomicU64,
}

/// A receiver on a port of its own; down when dropped.
pub struct Receiver {
    pub addr: SocketAddr,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Receiver {
    pub fn mllp(behaviour: Behaviour, rng: Rng) -> Self {
        Self::new(super::node::free_port(), false, behaviour, rng)
    }

    pub fn http(behaviour: Behaviour, rng: Rng) -> Self {
        Self::new(super::node::free_port(), true, behaviour, rng)
    }

    /// Either of them on another address of this machine, which other machines reach.
    pub fn at(ip: IpAddr, http: bool, behaviour: Behaviour, rng: Rng) -> Self {
        Self::new((ip, super::node::free_port().port()).into(), http, behaviour, rng)
    }

    /// One that always accepts.
    pub fn willing() -> Self {
        Self::mllp(Behaviour::default(), Rng::new(1))
    }

    fn new(addr: SocketAddr, http: bool, behaviour: Behaviour, rng: Rng) -> Self {
        let state = Arc::new(State {
            http,
            up: AtomicBool::new(false),
            behaviour: Mutex::new(behaviour),
            refused: Mutex::default(),
            rng: Mutex::new(rng),
            arrivals: Mutex::default(),
            others: Mutex::default(),
            keep_others: AtomicBool::new(true),
            accepted: AtomicU64::new(0),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let mut receiver = Self { addr, state, listener: None };
        receiver.up();
        receiver
    }

    /// For a route: `mllp = [..]` or `http = [..]`.
    pub fn target(&self) -> String {
        if self.state.http { format!("http = [\"http://{}/in\"]", self.addr) } else { format!("mllp = [\"{}\"]", self.addr) }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.state.behaviour) = behaviour;
    }

    /// Answers AE (HTTP: 400) to all harness messages whose key begins with one of these; other messages as it behaves.
    pub fn refuse(&self, keys: &[&str]) {
        *lock(&self.state.refused) = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    /// Listens (again).
    pub fn up(&mut self) {
        if self.state.up.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut listener = None;
        wait_until(Duration::from_secs(5), || {
            listener = TcpListener::bind(self.addr).ok();
            listener.is_some()
        });
        let listener = listener.unwrap_or_else(|| panic!("{} cannot be bound", self.addr));
        let state = self.state.clone();
        self.listener = Some(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !state.up.load(Ordering::SeqCst) {
                    return;
                }
                let number = state.next.fetch_add(1, Ordering::SeqCst);
                if let Ok(copy) = stream.try_clone() {
                    lock(&state.connections).insert(number, copy);
                }
                let state = state.clone();
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    let _ = if state.http { serve_http(&state, &stream) } else { serve_mllp(&state, &stream) };
                    let _ = stream.shutdown(Shutdown::Both);
                    lock(&state.connections).remove(&number);
                });
            }
        }));
    }

    /// Stops listening and cuts all connections.
    pub fn down(&mut self) {
        if !self.state.up.swap(false, Ordering::SeqCst) {
            return;
        }
        let _ = TcpStream::connect(self.addr); // wakes the accept
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        for stream in lock(&self.state.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Cuts all connections, keeps listening.
    pub fn cut(&self) {
        for stream in lock(&self.state.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn connections(&self) -> usize {
        lock(&self.state.connections).len()
    }

    /// All harness messages in the order of their arrival.
    pub fn arrivals(&self) -> Vec<Arrival> {
        lock(&self.state.arrivals).clone()
    }

    /// Arrivals so far, doubles included.
    pub fn count(&self) -> usize {
        lock(&self.state.arrivals).len()
    }

    /// Messages answered AA or 2xx, doubles and others included.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// The bytes of the messages that are no harness messages.
    pub fn others(&self) -> Vec<Vec<u8>> {
        lock(&self.state.others).clone()
    }

    /// Whether to keep those bytes (default) or only count them.
    pub fn keep_others(&self, keep: bool) {
        self.state.keep_others.store(keep, Ordering::SeqCst);
    }

    /// Waits until every acknowledged message of `sent` was accepted here; false after `limit`.
    pub fn wait_for(&self, sent: &super::Sent, limit: Duration) -> bool {
        let mut missing: std::collections::HashSet<Tag> = sent.acknowledged.iter().cloned().collect();
        let mut looked = 0;
        wait_until(limit, || {
            let arrivals = lock(&self.state.arrivals);
            for arrival in &arrivals[looked..] {
                if arrival.accepted {
                    missing.remove(&arrival.tag);
                }
            }
            looked = arrivals.len();
            missing.is_empty()
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.down();
    }
}

enum Verdict {
    Accept,
    Reject,
    Error,
    WrongId,
    Close,
    Silent,
}

impl State {
    /// Decides, and writes down what came before anything is answered.
    fn take(&self, message: &[u8]) -> Verdict {
        let behaviour = *lock(&self.behaviour);
        let tag = Tag::of(message);
        let refused = tag.as_ref().is_some_and(|tag| lock(&self.refused).iter().any(|key| tag.key.starts_with(key)));
        let verdict = {
            let mut rng = lock(&self.rng);
            if refused {
                Verdict::Error
            } else if rng.chance(behaviour.close) {
                Verdict::Close
            } else if rng.chance(behaviour.reject) {
                Verdict::Reject
            } else if rng.chance(behaviour.error) {
                Verdict::Error
            } else if rng.chance(behaviour.silent) {
                Verdict::Silent
            } else if rng.chance(behaviour.wrong_id) {
                Verdict::WrongId
            } else {
                Verdict::Accept
            }
        };
        let accepted = matches!(verdict, Verdict::Accept);
        match tag {
            Some(tag) => lock(&self.arrivals).push(Arrival { tag, accepted }),
            None if self.keep_others.load(Ordering::SeqCst) => lock(&self.others).push(message.to_vec()),
            None => {}
        }
        if accepted {
            self.accepted.fetch_add(1, Ordering::SeqCst);
        }
        if !behaviour.delay.is_zero() {
            std::thread::sleep(behaviour.delay);
        }
        verdict
    }
}

fn serve_mllp(state: &State, stream: &TcpStream) -> io::Result<()> {
    let mut frames = Frames::new(stream);
    let mut out = stream;
    while let Some(message) = frames.read()? {
        let answer = match state.take(&message) {
            Verdict::Accept => ack(&message, "AA", ""),
            Verdict::Reject => ack(&message, "AR", "not now"),
            Verdict::Error => ack(&message, "AE", "not so"),
            Verdict::WrongId => ack(b"MSH|^~\\&||||||||SOME-OTHER-ID|P|2.5\r", "AA", ""),
            Verdict::Close => return Ok(()),
            Verdict::Silent => continue,
        };
        out.write_all(&frame(&answer))?;
    }
    Ok(())
}

fn serve_http(state: &State, stream: &TcpStream) -> io::Result<()> {
    let mut input = BufReader::with_capacity(64 * 1024, stream);
    let mut out = stream;
    while let Some(head) = Head::read(&mut input)? {
        if head.header("expect").is_some() {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        read_body(&head, &mut input, false, |piece| body.extend_from_slice(piece))?;
        let answer: &[u8] = match state.take(&body) {
            Verdict::Accept | Verdict::WrongId => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Verdict::Reject => b"HTTP/1.1 503 Not Now\r\nContent-Length: 0\r\n\r\n",
            Verdict::Error => b"HTTP/1.1 400 Not So\r\nContent-Length: 0\r\n\r\n",
            Verdict::Close => return Ok(()),
            Verdict::Silent => continue,
        };
        out.write_all(answer)?;
    }
    Ok(())
}
