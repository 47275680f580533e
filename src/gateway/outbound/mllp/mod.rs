//! MLLP out: persistent connections, one message under way on each, the acknowledgment waited for and handed to the
//! engine as it is.
//!
//! - The acknowledgment's MSA-2 must be the message's MSH-10. Another one, anything that is no acknowledgment, and
//!   silence close the connection, so that a late acknowledgment never credits the next message. A message with an empty
//!   MSH-10, or that does not begin with MSH (a batch), takes any acknowledgment.
//! - Enhanced mode: the first acknowledgment for the message is the answer, be it `CA` or `AA`. An application
//!   acknowledgment that follows a `CA` on the same connection is recognised by its control id and skipped; a message
//!   with that same control id goes out on another connection meanwhile.
//! - MSH-15 and MSH-16 both `NE`: delivered when written and flushed. `ER`: delivered when no error came within a second.
//! - An idle connection is looked at before it is used; closed, or with anything unexpected unread, it is replaced.

pub(crate) mod ack;
mod conn;
pub(crate) mod plan;
mod pool;
mod stream;

pub(super) use pool::Pool;
pub(crate) use stream::Stream;

use super::{ConnectorError, balance::Lease, balance::Targets, broken, count_failure, not_sent, tls};
use crate::{
    channel::{ClientTls, Route},
    engine::ports::{Connector, Delivery, Reply, ReplyKind, SendError, Stored},
};
use bytes::{Bytes, BytesMut};
use conn::{Answer, Conn, Outgoing, check_framing};
use futures_util::{StreamExt, future::BoxFuture};
use plan::{HEAD, Plan};
use rustls::pki_types::ServerName;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// Longest wait for a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// A route to MLLP receivers.
pub(super) struct MllpConnector {
    instance: u64,
    targets: Arc<Targets>,
    addresses: Vec<Address>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

struct Address {
    host: String,
    port: u16,
    name: Option<ServerName<'static>>,
}

/// How far an exchange has come; decides what its end by timeout means.
enum Stage {
    Waiting,
    Connecting,
    Sending,
}

impl MllpConnector {
    pub(super) fn new(route: &Route, targets: Arc<Targets>) -> Result<Self, ConnectorError> {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        let config = route.tls.as_ref().map(|tls| tls::client_config(tls, &[])).transpose()?;
        let addresses = route.mllp.iter().map(|target| Address::parse(target, route.tls.as_ref()));
        Ok(Self {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            targets,
            addresses: addresses.collect::<Result<_, _>>()?,
            tls: config.map(Arc::new),
        })
    }

    async fn deliver(&self, delivery: &Delivery, lease: &Lease) -> Result<Reply, SendError> {
        let target = lease.name();
        let (mut out, plan) = prepare(&delivery.message).await.map_err(|fault| match fault {
            Fault::Content(reason) => super::unsendable(target, reason),
            Fault::Store => broken(target, "the stored body could not be read"),
        })?;
        let mut stage = Stage::Waiting;
        let exchange = self.exchange(delivery.timeout, lease, &mut out, &plan, &mut stage);
        let answer = match timeout(delivery.timeout, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(match stage {
                    Stage::Waiting => not_sent(target, "all connections were busy; raise the route's `in_flight`"),
                    Stage::Connecting => not_sent(target, "no connection in time"),
                    Stage::Sending => SendError::Timeout { target: target.into(), after: delivery.timeout },
                });
            }
        };
        let (kind, raw) = match answer {
            Answer::Ack { code, raw, .. } => (ReplyKind::Ack { code: code.into() }, raw),
            Answer::None => (ReplyKind::Written, Bytes::new()),
        };
        let len = Some(raw.len() as u64);
        let body = futures_util::stream::once(std::future::ready(Ok(raw))).boxed();
        Ok(Reply { target: target.into(), kind, body, len })
    }

    async fn exchange(
        &self,
        within: Duration,
        lease: &Lease,
        out: &mut Option<Outgoing>,
        plan: &Plan,
        stage: &mut Stage,
    ) -> Result<Answer, SendError> {
        let target = lease.name();
        let mut place = lease.pool().take(self.instance).await.ok_or_else(|| not_sent(target, "the route is closed"))?;
        *stage = Stage::Connecting;
        let whole = matches!(out, Some(Outgoing::Whole(_)));
        if let Some(conn) = &mut place.conn
            && !conn.is_clean(plan, whole).await
            && let Some(conn) = place.conn.take()
        {
            conn.retire();
        }
        let conn = match &mut place.conn {
            Some(conn) => conn,
            empty => {
                let stream = self.connect(within, lease).await?;
                empty.insert(Conn::new(self.instance, stream))
            }
        };
        let Some(out) = out.take() else { return Err(not_sent(target, "the message is gone")) };
        *stage = Stage::Sending;
        let answer = conn.exchange(out, plan).await.map_err(|reason| broken(target, reason))?;
        if !matches!(answer, Answer::Ack { last: true, .. }) && conn.may_be_kept() {
            place.keep();
        } else if let Some(conn) = place.conn.take() {
            conn.retire();
        }
        Ok(answer)
    }

    async fn connect(&self, within: Duration, lease: &Lease) -> Result<Stream, SendError> {
        let address = &self.addresses[lease.index()];
        let tls = self.tls.clone().zip(address.name.clone());
        match timeout(within.min(CONNECT), Stream::connect(&address.host, address.port, tls)).await {
            Ok(Ok(stream)) => {
                lease.metrics().connection_opened();
                Ok(stream)
            }
            Ok(Err(e)) => Err(not_sent(lease.name(), format!("no connection: {e}"))),
            Err(_) => Err(not_sent(lease.name(), "no connection in time")),
        }
    }
}

impl Connector for MllpConnector {
    fn send(&self, delivery: Delivery) -> BoxFuture<'_, Result<Reply, SendError>> {
        Box::pin(async move {
            let lease = self.targets.pick(delivery.message.envelope());
            let result = self.deliver(&delivery, &lease).await;
            match &result {
                // AR and CR: the receiver is unwell.
                Ok(reply) => lease.answered(!matches!(&reply.kind, ReplyKind::Ack { code } if code.ends_with('R'))),
                Err(error) => count_failure(&lease, error),
            }
            result
        })
    }
}

impl Address {
    fn parse(target: &str, tls: Option<&ClientTls>) -> Result<Self, ConnectorError> {
        let error = || ConnectorError::Target { target: target.into(), reason: "give host:port".into() };
        let (host, port) = target.rsplit_once(':').ok_or_else(error)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| error())?;
        if host.is_empty() || host.contains(char::is_whitespace) || port == 0 {
            return Err(error());
        }
        let name = tls.map(|tls| tls::server_name(tls, host)).transpose()?;
        Ok(Self { host: host.into(), port, name })
    }
}

/// Why a message is not fit to be sent.
enum Fault {
    /// What it holds cannot go over MLLP.
    Content(String),
    /// It cannot be read back now.
    Store,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Content(reason)
    }
}

/// The message as it will be sent, and what it asks for. Reads no more of a large one than its first segment.
async fn prepare(message: &Stored) -> Result<(Option<Outgoing>, Plan), Fault> {
    if let Some(body) = &message.body {
        check_framing(&mut None, body)?;
        return Ok((Some(Outgoing::Whole(body.clone())), Plan::of(body)));
    }
    let mut rest = message.open();
    let mut head = BytesMut::new();
    while head.len() < HEAD {
        match rest.next().await {
            Some(piece) => head.extend_from_slice(&piece.map_err(|_| Fault::Store)?),
            None => {
                let body = head.freeze();
                check_framing(&mut None, &body)?;
                let plan = Plan::of(&body);
                return Ok((Some(Outgoing::Whole(body)), plan));
            }
        }
    }
    let head = head.freeze();
    let plan = Plan::of(&head);
    Ok((Some(Outgoing::Stream(head, rest)), plan))
}
