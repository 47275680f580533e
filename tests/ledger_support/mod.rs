//! What the ledger's tests share.
#![allow(dead_code)] // each test file uses its part

pub mod stream;

use bytes::Bytes;
use futures_util::StreamExt;
use hie::channel::{Mode, Storage};
use hie::config;
use hie::engine::fact::{Accepted, Attempt, BodyRef, Fact, Keeper, Outcome, Seq, What};
use hie::engine::ports::{Append, CommitSink, Committed, Log, LogError, Unfinished};
use hie::ledger::{Ledger, Options};
use hie::message::{Envelope, MessageId, Protocol};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Remembers what it was handed.
#[derive(Default)]
pub struct Sink(pub Mutex<Vec<(Seq, MessageId)>>);

impl CommitSink for Sink {
    fn committed(&self, batch: Vec<Committed>) {
        self.0.lock().unwrap().extend(batch.iter().map(|c| (c.seq, c.accepted.envelope.id)));
    }
}

pub fn options(dir: &Path, config: config::Ledger) -> Options {
    Options { boot_id: Box::new(|| Some("boot-1".into())), ..Options::new(dir.join("ledger"), config) }
}

pub fn small() -> config::Ledger {
    config::Ledger { segment_size: bytesize::ByteSize::mib(1), ..config::Ledger::default() }
}

/// Opens and starts.
pub fn start(dir: &Path, config: config::Ledger) -> (Arc<Ledger>, Arc<Sink>, Vec<Unfinished>) {
    start_with(options(dir, config))
}

pub fn start_with(options: Options) -> (Arc<Ledger>, Arc<Sink>, Vec<Unfinished>) {
    // The log of a failing test says what happened.
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let ledger = Ledger::open(options).expect("the ledger opens");
    let mut unfinished = Vec::new();
    ledger.unfinished(&mut |u| unfinished.push(u)).unwrap();
    let sink = Arc::new(Sink::default());
    ledger.start(sink.clone()).unwrap();
    (Arc::new(ledger), sink, unfinished)
}

pub fn envelope(id: MessageId, control_id: &str, patient: &str, len: usize) -> Envelope {
    Envelope {
        version: 1,
        id,
        received_ms: id.unix_ms().unwrap_or(0),
        protocol: Protocol::Mllp,
        listener: "mllp".into(),
        client: "lab".into(),
        remote: "10.0.0.1:4711".into(),
        kind: "ADT^A01".into(),
        control_id: Some(control_id.into()),
        patients: vec![patient.into()],
        keys: vec![7],
        content_type: "x-application/hl7-v2+er7".into(),
        http: None,
        body_len: len as u64,
        parent: None,
        control_id_reused: false,
    }
}

/// A message to accept.
#[derive(Clone)]
pub struct Message {
    pub id: MessageId,
    pub accepted: Accepted,
    pub body: Option<Bytes>,
}

pub fn message(n: usize, len: usize) -> Message {
    let id = MessageId::now();
    let mut text = format!("MSH|^~\\&|A|B|C|D|20260101||ADT^A01|C{n}|P|2.5\rPID|||P{n}\rNTE|||word{n}end\r").into_bytes();
    // Not compressible, so that sizes on disk are as wanted.
    let mut x = n as u64 + 1;
    while text.len() < len {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(b'!' + ((x >> 40) % 90) as u8);
    }
    let body = Bytes::from(text);
    let accepted = Accepted {
        envelope: envelope(id, &format!("C{n}"), &format!("P{n}"), body.len()),
        channel: "lab.results".into(),
        mode: Mode::Queue,
        storage: Storage::All,
        routes: vec!["ehr".into(), "archive".into()],
        idempotent: false,
        body: BodyRef::Own,
        body_hash: n as u128,
        resend_key: n as u64 + 1,
        keeper: Keeper::Log,
    };
    Message { id, accepted, body: Some(body) }
}

impl Message {
    pub fn append(&self) -> Append {
        let what = What::Accepted(Box::new(self.accepted.clone()));
        Append { fact: fact(self.id, 0, what), body: self.body.clone(), deliver: true }
    }
}

pub fn fact(id: MessageId, home: Seq, what: What) -> Fact {
    Fact { id, home, at: id.unix_ms().unwrap_or(0), what }
}

pub fn attempt(id: MessageId, home: Seq, route: &str, number: u32, outcome: Outcome) -> Append {
    let attempt = Attempt {
        route: route.into(),
        number,
        target: "ehr:2575".into(),
        took_ms: 3,
        outcome,
        status: 0,
        ack: "AA".into(),
        error: String::new(),
        response: BodyRef::Own,
        response_len: 4,
        inside: 0,
    };
    Append { fact: fact(id, home, What::Attempt(Box::new(attempt))), body: Some(Bytes::from_static(b"MSA|")), deliver: false }
}

/// Delivers on both routes.
pub fn deliver(ledger: &Ledger, id: MessageId, seq: Seq) {
    for route in ["ehr", "archive"] {
        ledger.append_later(attempt(id, seq, route, 1, Outcome::Delivered));
    }
    ledger.finished(seq);
}

pub async fn accept(ledger: &Ledger, message: &Message) -> Result<Seq, LogError> {
    ledger.append(message.append()).await
}

pub async fn read(ledger: &Ledger, seq: Seq, body: &BodyRef) -> std::io::Result<Vec<u8>> {
    let mut stream = ledger.read(seq, body);
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

pub fn caught_up(ledger: &Ledger) {
    assert!(ledger.caught_up(Duration::from_secs(20)), "the views do not catch up");
}

/// Waits until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn files(dir: &Path, prefix: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir.join("ledger"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            let name = p.file_name().unwrap().to_str().unwrap();
            name.starts_with(prefix) && (name.ends_with(".db") || name.ends_with(".bin"))
        })
        .collect();
    found.sort();
    found
}

/// A small file system of its own.
pub struct SmallDisk(pub std::path::PathBuf);

impl SmallDisk {
    /// `None`: that needs root.
    pub fn mount(dir: &Path, mib: u32) -> Option<Self> {
        let done =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir).status();
        done.is_ok_and(|s| s.success()).then(|| Self(dir.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
