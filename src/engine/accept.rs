//! Accept: identify, match, make durable, acknowledge (DESIGN.md §3).

use super::{
    Engine,
    content::Content,
    fact::{Accepted, BodyRef, Fact, Keeper, What},
    ports::{Answer, Append, Arrival, Credentials, Denied, Identity, Incoming, Intake, Refusal},
    proxy::{Direct, Proxied},
    repeat::{Arrived, Known},
    shares::{Holder, NoPlace},
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
    fn identify(&self, listener: &str, peer: Option<SocketAddr>, credentials: &Credentials) -> Identity<'_> {
        let policy = self.parts.listeners.get(listener);
        let required = policy.is_some_and(|p| p.require_client);
        let found = self.parts.directory.identify(peer, credentials, required);
        let Some(named) = policy.and_then(|p| p.client.as_ref()) else { return found };
        found.and_then(move |client| match &*client == ANONYMOUS {
            false => Ok(client),
            true if self.parts.directory.may_be(named, peer) => Ok(named.clone()),
            true => Err(Denied::Address),
        })
    }

    fn rate(&self, client: &str) -> Result<(), Duration> {
        self.parts.directory.rate_check(client)
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
            Incoming::Stream { head, .. } | Incoming::Refused { head, .. } => (head.clone(), false),
        };
        #[cfg(feature = "break-panic")]
        super::broken::provoke(&head);
        let matched = match self.examine(&mut arrival, id, &head, complete) {
            Ok(matched) => matched,
            Err((refusal, envelope, storage)) => {
                let refusal = if let Incoming::Refused { refusal, .. } = body { refusal } else { refusal };
                return self.refuse(*envelope, refusal, head, storage);
            }
        };
        if let Incoming::Refused { refusal, .. } = body {
            return self.refuse(matched.envelope, refusal, head, matched.channel.channel.storage);
        }
        if self.parts.gate.is_draining() && arrival.protocol == Protocol::File {
            return Answer::Refused { id: None, refusal: Refusal::Busy("the node is shutting down", Duration::from_secs(5)) };
        }
        if !self.parts.gate.is_open() {
            let refusal = Refusal::Busy("too many messages wait for delivery", Duration::from_secs(5));
            return Answer::Refused { id: None, refusal };
        }
        let holder = Holder::of(&arrival.client, &arrival.remote, &arrival.listener);
        let channel = &matched.channel.channel;
        let storage = channel.storage;
        let transient = storage != Storage::All;
        let limit = channel.max_body.unwrap_or(self.parts.limits.max_body).as_u64();
        let staged = match body {
            Incoming::Whole(bytes) if bytes.len() as u64 > limit => Err(Refusal::TooLarge { limit }),
            Incoming::Whole(bytes) => Ok(staging::whole(bytes, transient)),
            // Its gateway has places of its own, for which a sender waits instead of being refused.
            Incoming::Stream { head, rest } if arrival.protocol == Protocol::Mllp => {
                staging::pieces(head, rest, &*self.parts.log, transient, limit).await
            }
            Incoming::Stream { head, rest } => match self.streams.take(holder) {
                Ok(_place) => staging::pieces(head, rest, &*self.parts.log, transient, limit).await,
                Err(NoPlace::Share) => {
                    Err(Refusal::Busy("too many large messages of this sender are arriving", Duration::from_secs(2)))
                }
                Err(NoPlace::Full) => Err(Refusal::Busy("too many large messages are arriving", Duration::from_secs(2))),
            },
            Incoming::Refused { refusal, .. } => Err(refusal),
        };
        match staged {
            Ok(staged) => self.commit(matched, staged).await,
            Err(refusal) => {
                let kept = if complete { head } else { head.slice(..head.len().min(REFUSED_BODY)) };
                self.refuse(matched.envelope, refusal, kept, storage)
            }
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
        if !arrival.paced
            && let Err(retry_after) = self.parts.directory.rate_check(&arrival.client)
        {
            return Err((Refusal::RateLimited { retry_after }, Box::new(envelope), storage));
        }
        self.parts.directory.heard(&arrival.client);
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
        let mode = channel.mode(envelope.protocol);
        let (at_ms, remote) = (envelope.received_ms, &*envelope.remote);
        match self.known(Arrived { key: resend_key, body_hash, id, at_ms, remote, mode }, metrics.as_deref()).await {
            Known::New { reused } => envelope.control_id_reused = reused,
            Known::Answered(answer) => return answer,
        }
        envelope.body_len = staged.len;
        let config = &channel.channel;
        let accepted = Accepted {
            channel: config.name.clone(),
            mode,
            storage: config.storage,
            routes: super::route_names(&channel),
            idempotent: config.idempotent,
            body: staged.body,
            body_hash,
            resend_key,
            keeper: Keeper::Log,
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
