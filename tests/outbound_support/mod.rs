//! What the outbound tests share: deliveries without a ledger, routes from JSON, certificates.
#![allow(dead_code)] // each test file uses its own part

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use hie::{
    channel::{Mode, Route, Storage},
    engine::{
        fact::{Accepted, BodyRef, Keeper, Seq},
        ports::{Append, BodyStream, Connector, Delivery, Ended, Log, LogError, Reply, Stored},
    },
    gateway::outbound::{balance::Targets, connector},
    message::{Envelope, HttpHead, MessageId, Protocol},
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// A log that only gives back one body, in pieces: `len` bytes, each piece `piece` repeated up to its length.
struct OneBody {
    head: Bytes,
    piece: Bytes,
    pieces: usize,
}

impl Log for OneBody {
    fn ended(&self, _: Seq) -> BoxFuture<'_, Result<Ended, LogError>> {
        Box::pin(async { Ok(Ended::Not) })
    }
    fn unfinished_by_id(
        &self,
        _: hie::message::MessageId,
    ) -> futures_util::future::BoxFuture<'_, Result<Option<hie::engine::ports::Unfinished>, hie::engine::ports::LogError>> {
        Box::pin(async { Ok(None) })
    }

    fn append(&self, _: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
        Box::pin(async { Err(LogError::Full) })
    }
    fn append_later(&self, _: Append) {}
    fn durable(&self) -> BoxFuture<'static, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }
    fn chunk(&self, _: Bytes, _: bool) -> BoxFuture<'static, Result<Seq, LogError>> {
        Box::pin(async { Err(LogError::Full) })
    }
    fn read(&self, _: Seq, _: &BodyRef) -> BodyStream {
        let piece = self.piece.clone();
        let rest = futures_util::stream::iter(0..self.pieces).map(move |_| Ok(piece.clone()));
        futures_util::stream::once(std::future::ready(Ok(self.head.clone()))).chain(rest).boxed()
    }
    fn accepted(&self, _: Seq) -> BoxFuture<'static, Result<Accepted, LogError>> {
        Box::pin(async { Err(LogError::Full) })
    }
    fn finished(&self, _: Seq) {}
}

pub fn envelope(protocol: Protocol, content_type: &str) -> Envelope {
    Envelope {
        version: 1,
        id: MessageId::now(),
        received_ms: 1_767_323_045_123, // 2026-01-02T03:04:05.123Z
        protocol,
        listener: "test".into(),
        client: "lab".into(),
        remote: "192.0.2.7:40001".into(),
        kind: "ADT^A01".into(),
        control_id: None,
        patients: vec![],
        keys: vec![7],
        content_type: content_type.into(),
        http: None,
        body_len: 0,
        parent: None,
        control_id_reused: false,
    }
}

pub fn accepted(envelope: Envelope, mode: Mode, routes: &[&str]) -> Accepted {
    Accepted {
        envelope,
        channel: "test.channel".into(),
        mode,
        storage: Storage::All,
        routes: routes.iter().map(|r| r.to_string()).collect(),
        idempotent: false,
        body: BodyRef::Own,
        body_hash: 0,
        resend_key: 0,
        keeper: Keeper::Log,
    }
}

pub fn delivery(mut accepted: Accepted, body: impl Into<Bytes>) -> Delivery {
    let body = body.into();
    accepted.envelope.body_len = body.len() as u64;
    let source = Arc::new(OneBody { head: Bytes::new(), piece: Bytes::new(), pieces: 0 });
    let message = Arc::new(Stored { seq: 1, accepted, body: Some(body), source });
    Delivery { message, attempt: 1, timeout: Duration::from_secs(5) }
}

/// A body that is not in memory: `head`, then `pieces` times `piece`.
pub fn streamed(mut accepted: Accepted, head: Bytes, piece: Bytes, pieces: usize) -> Delivery {
    accepted.envelope.body_len = (head.len() + pieces * piece.len()) as u64;
    let message = Stored { seq: 1, accepted, body: None, source: Arc::new(OneBody { head, piece, pieces }) };
    Delivery { message: Arc::new(message), attempt: 1, timeout: Duration::from_secs(60) }
}

/// An HL7 message in queue mode.
pub fn hl7(body: impl Into<Bytes>) -> Delivery {
    delivery(accepted(envelope(Protocol::Mllp, "x-application/hl7-v2+er7"), Mode::Queue, &["out"]), body)
}

pub fn adt(control_id: &str) -> String {
    format!("MSH|^~\\&|APP|FAC|RAPP|RFAC|20260102030405||ADT^A01^ADT_A01|{control_id}|P|2.5.1\rPID|1||4711\r")
}

pub fn http_head(method: &str, path: &str, query: &str, headers: &[(&str, &[u8])]) -> HttpHead {
    let headers = headers.iter().map(|(n, v)| (n.to_string(), hie::message::envelope::HeaderBytes(v.to_vec()))).collect();
    HttpHead { method: method.into(), path: path.into(), query: query.into(), headers }
}

/// A route named `out` with these settings.
pub fn route(mut settings: serde_json::Value) -> Route {
    settings["name"] = "out".into();
    serde_json::from_value(settings).expect("a route")
}

/// The route's connector and its shared state.
pub fn open(settings: serde_json::Value) -> (Arc<dyn Connector>, Arc<Targets>) {
    let route = route(settings);
    let targets = Targets::new("test.channel", &route);
    (connector("test.channel", &route, targets.clone()).expect("a connector"), targets)
}

pub async fn body(reply: Reply) -> Vec<u8> {
    let pieces: Vec<_> = reply.body.collect().await;
    pieces.into_iter().flat_map(|piece| piece.expect("a body").to_vec()).collect()
}

/// An authority, and certificates that it signed for `localhost`, as PEM files.
pub struct Certificates {
    pub folder: tempfile::TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let ca = params.self_signed(&ca_key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).expect("written");
        let issuer = rcgen::Issuer::new(params, ca_key);
        for name in ["server", "client", "stranger"] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters");
            let cert = match name {
                "stranger" => params.self_signed(&key).expect("a certificate"),
                _ => params.signed_by(&key, &issuer).expect("a certificate"),
            };
            std::fs::write(folder.path().join(format!("{name}.pem")), cert.pem()).expect("written");
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).expect("written");
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
