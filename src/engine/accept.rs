//! Accept: identify, match, make durable, acknowledge (DESIGN.md §3).

use super::{
    Engine,
    content::Content,
    fact::{Accepted, BodyRef, Fact, Seq, What},
    ports::{Answer, Append, Arrival, Credentials, Denied, Incoming, Intake, Refusal},
    proxy::{Direct, Proxied},
    resend::Seen,
    staging::{self, Staged},
};
use crate::{
    channel::{Compiled, Mode, Storage, client::ANONYMOUS},
    message::{Envelope, MessageId, Protocol, envelope::FORMAT_VERSION, hl7::charset},
    telemetry::engine as events,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// A refused message is recorded with at most this much of its body.
const REFUSED_BODY: usize = 256 * 1024;
/// How long a resend waits for the first to become durable.
const RESEND_WAIT: Duration = Duration::from_secs(20);

/// What the head of a message led to.
struct Matched {
    channel: Arc<Compiled>,
    metrics: Option<Arc<events::ChannelMetrics>>,
    /// The way to the primary route, of the same configuration as the channel.
    direct: Option<Arc<Direct>>,
    started: Instant,
    envelope: Envelope,
    resend_key: u64,
}

impl Intake for Engine {
    fn identify(&self, listener: &str, peer: Option<SocketAddr>, credentials: &Credentials) -> Result<Arc<str>, Denied> {
        let policy = self.parts.listeners.get(listener);
        let required = policy.is_some_and(|p| p.require_client);
        let client = self.parts.directory.identify(peer, credentials, required)?;
        match policy.and_then(|p| p.client.clone()) {
            Some(named) if &*client == ANONYMOUS => match self.parts.directory.may_be(&named, peer) {
                true => Ok(named),
                false => Err(Denied::Address),
            },
            _ => Ok(client),
        }
    }

    fn accept(&self, arrival: Arrival) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let answer = self.take(arrival).await;
            if let Answer::Refused { refusal, .. } = &answer {
                events::Refused { refusal, channel: None }.emit();
            }
            answer
        })
    }

    fn open(&self) -> bool {
        self.parts.gate.is_open()
    }

    fn wait_open(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.parts.gate.wait_open())
    }
}

impl Engine {
    async fn take(&self, mut arrival: Arrival) -> Answer {
        let id = MessageId::now();
        let body = std::mem::replace(&mut arrival.body, Incoming::Whole(Bytes::new()));
        let (head, complete) = match &body {
            Incoming::Whole(bytes) => (bytes.clone(), true),
            Incoming::Stream { head, .. } => (head.clone(), false),
        };
        #[cfg(feature = "break-panic")]
        super::broken::provoke(&head);
        let matched = match self.examine(&mut arrival, id, &head, complete) {
            Ok(matched) => matched,
            Err((refusal, envelope, storage)) => return self.refuse(*envelope, refusal, head, storage),
        };
        if self.parts.gate.is_draining() && arrival.protocol == Protocol::File {
            return Answer::Refused { id: None, refusal: Refusal::Busy("the node is shutting down", Duration::from_secs(5)) };
        }
        if !self.parts.gate.is_open() {
            let refusal = Refusal::Busy("too many messages wait for delivery", Duration::from_secs(5));
            return Answer::Refused { id: None, refusal };
        }
        let channel = &matched.channel.channel;
        let storage = channel.storage;
        let transient = storage != Storage::All;
        let limit = channel.max_body.unwrap_or(self.parts.limits.max_body).as_u64();
        let staged = match body {
            Incoming::Whole(bytes) if bytes.len() as u64 > limit => Err(Refusal::TooLarge { limit }),
            Incoming::Whole(bytes) => Ok(staging::whole(bytes, transient)),
            Incoming::Stream { head, rest } => match self.streams.try_acquire() {
                Ok(_permit) => staging::pieces(head, rest, &*self.parts.log, transient, limit).await,
                Err(_) => Err(Refusal::Busy("too many large messages are arriving", Duration::from_secs(2))),
            },
        };
        match staged {
            Ok(staged) => self.commit(matched, staged).await,
            Err(refusal) => self.refuse(matched.envelope, refusal, head, storage),
        }
    }

    /// Reads the head, finds the channel, checks what the client may.
    fn examine(
        &self,
        arrival: &mut Arrival,
        id: MessageId,
        head: &[u8],
        complete: bool,
    ) -> Result<Matched, (Refusal, Box<Envelope>, Storage)> {
        let charset = self.parts.listeners.get(&*arrival.listener).and_then(|policy| policy.charset);
        let view = charset::view(head, charset);
        let content = match Content::read(arrival, head, &view, complete) {
            Ok(content) => content,
            Err(refusal) => return Err((refusal, Box::new(self.envelope(arrival, id, None, head.len())), Storage::All)),
        };
        let in_force = self.in_force.load();
        let subject = content.subject(arrival, head.len() as u64);
        let Some(channel) = in_force.set.choose(&subject) else {
            return Err((Refusal::NoChannel, Box::new(self.envelope(arrival, id, Some(&content), head.len())), Storage::All));
        };
        let keys = channel.keys(&subject);
        let channel = channel.clone();
        let storage = channel.channel.storage;
        let mut envelope = self.envelope(arrival, id, Some(&content), head.len());
        let resend_key = content.resend_key;
        envelope.keys = keys;
        if !self.parts.directory.allowed(&arrival.client, &channel.channel.allow) {
            return Err((Refusal::NotAllowed, Box::new(envelope), storage));
        }
        if let Err(retry_after) = self.parts.directory.rate_check(&arrival.client) {
            return Err((Refusal::RateLimited { retry_after }, Box::new(envelope), storage));
        }
        envelope.http = arrival.http.take();
        let metrics = in_force.metrics.get(&channel.channel.name).cloned();
        let direct = in_force.direct.get(&channel.channel.name).cloned();
        Ok(Matched { channel, metrics, direct, started: Instant::now(), envelope, resend_key })
    }

    fn envelope(&self, arrival: &Arrival, id: MessageId, content: Option<&Content<'_>>, len: usize) -> Envelope {
        Envelope {
            version: FORMAT_VERSION,
            id,
            received_ms: self.parts.clock.now_ms(),
            protocol: arrival.protocol,
            listener: arrival.listener.clone(),
            client: arrival.client.clone(),
            remote: arrival.remote.clone(),
            kind: content.map(|c| c.kind.clone()).unwrap_or_default(),
            control_id: content.and_then(|c| c.control_id.clone()),
            patients: content.map(Content::patients).unwrap_or_default(),
            keys: Vec::new(),
            content_type: content.map(|c| c.content_type.clone()).unwrap_or_default(),
            http: None,
            body_len: len as u64,
            parent: None,
            control_id_reused: false,
        }
    }

    /// Makes it durable, unless it is a resend of what is durable already.
    async fn commit(&self, matched: Matched, staged: Staged) -> Answer {
        let Matched { channel, metrics, direct, started, mut envelope, resend_key } = matched;
        let id = envelope.id;
        let body_hash = staged.hash;
        match self.parts.resend.check(resend_key, body_hash, id, envelope.received_ms) {
            Seen::New => {}
            Seen::Reused => envelope.control_id_reused = true,
            Seen::Durable(first, seq) => return self.resent((first, seq), envelope.remote, metrics.as_deref()),
            Seen::UnderWay(first) => {
                if let Some(seq) = self.wait_durable(resend_key, first).await {
                    return self.resent((first, seq), envelope.remote, metrics.as_deref());
                }
                let refusal = Refusal::Busy("the same message is still being stored", Duration::from_secs(1));
                return Answer::Refused { id: None, refusal };
            }
        }
        envelope.body_len = staged.len;
        let config = &channel.channel;
        let mode = channel.mode(envelope.protocol);
        let accepted = Accepted {
            channel: config.name.clone(),
            mode,
            storage: config.storage,
            routes: super::route_names(&channel),
            idempotent: config.idempotent,
            body: staged.body,
            body_hash,
            resend_key,
            envelope,
        };
        if mode == Mode::Proxy {
            let Some(direct) = direct else {
                return Answer::Refused { id: None, refusal: Refusal::NoChannel };
            };
            let answer = direct.forward(Proxied { accepted, body: staged.whole }).await;
            if let (Some(channel), Answer::Response { .. }) = (&metrics, &answer) {
                events::Accepted { channel, bytes: staged.len, took: started.elapsed() }.emit();
            }
            return answer;
        }
        let fact = Fact { id, home: 0, at: accepted.envelope.received_ms, what: What::Accepted(Box::new(accepted)) };
        match self.parts.transport.accept(Append { fact, body: staged.whole, deliver: true }).await {
            Ok(_) => {
                if let Some(channel) = &metrics {
                    events::Accepted { channel, bytes: staged.len, took: started.elapsed() }.emit();
                }
                Answer::Accepted { id, resend: false }
            }
            Err(error) => {
                if resend_key != 0 {
                    self.parts.resend.failed(resend_key, id);
                }
                Answer::Refused { id: None, refusal: staging::refusal(error) }
            }
        }
    }

    /// Records that the sender sent it again and acknowledges it again: the first one is durable, so nothing is waited for.
    fn resent(&self, (first, home): (MessageId, Seq), remote: String, metrics: Option<&events::ChannelMetrics>) -> Answer {
        let fact = Fact { id: first, home, at: self.parts.clock.now_ms(), what: What::Resent { remote } };
        self.parts.log.append_later(Append { fact, body: None, deliver: false });
        if let Some(channel) = metrics {
            events::Resent { channel }.emit();
        }
        Answer::Accepted { id: first, resend: true }
    }

    async fn wait_durable(&self, key: u64, first: MessageId) -> Option<Seq> {
        let until = Instant::now() + RESEND_WAIT;
        while Instant::now() < until {
            match self.parts.resend.state(key, first) {
                Seen::Durable(_, seq) => return Some(seq),
                Seen::UnderWay(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                Seen::New | Seen::Reused => return None,
            }
        }
        None
    }

    /// Records a refused message, as far as the store goes along, and answers.
    fn refuse(&self, mut envelope: Envelope, refusal: Refusal, head: Bytes, storage: Storage) -> Answer {
        let id = envelope.id;
        if refusal == Refusal::Store || !(self.parts.troubles)().is_empty() {
            // What space is left belongs to what finishes accepted messages.
            return Answer::Refused { id: None, refusal };
        }
        if matches!(storage, Storage::Metadata | Storage::None) {
            envelope.patients.clear();
            envelope.control_id = None;
            envelope.http = None;
        }
        let kept = storage == Storage::All && head.len() <= REFUSED_BODY && !head.is_empty();
        let fact = Fact {
            id,
            home: 0,
            at: envelope.received_ms,
            what: What::Refused {
                envelope: Box::new(envelope),
                reason: refusal.to_string(),
                body: if kept { BodyRef::Own } else { BodyRef::None },
            },
        };
        self.parts.log.append_later(Append { fact, body: kept.then_some(head), deliver: false });
        Answer::Refused { id: Some(id), refusal }
    }
}
