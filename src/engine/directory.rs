//! The directory: who may send. Clients with their credentials, compiled and swapped as a whole.
//!
//! A right password costs its Argon2 check once; after that a keyed hash of it is remembered, so that a request costs
//! about a microsecond. A wrong one costs as much whether or not there is such a client. How many checks run at the same
//! time is bounded, and so is how many failures one address may cause.

mod check;
mod compile;
mod password;
mod throttle;
mod verified;

pub use password::hash_password;
pub use throttle::Throttle;
pub(super) use throttle::network;

use super::ports::{Credentials, Denied, Identity};
use crate::{
    channel::client::{ANONYMOUS, Client},
    telemetry::admin::IdentifyFailed,
};
use arc_swap::ArcSwap;
use check::{Claim, PasswordCheck};
use compile::{Compiled, Known};
use governor::clock::Clock;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use throttle::Gate;
use verified::Verified;

/// A set of clients that cannot be used; says which and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DirectoryError(pub String);

/// All clients. Shared by all gateways; see [`Directory::replace`] for changing them while running.
pub struct Directory {
    compiled: ArcSwap<Compiled>,
    verified: Verified,
    throttle: Throttle,
    gate: Gate,
    anonymous: Arc<str>,
}

impl Directory {
    /// Compiles the clients, whose secrets lie in `password` and `token_sha256` (files are read by the configuration).
    pub fn new(clients: Vec<Client>) -> Result<Self, DirectoryError> {
        Ok(Self {
            compiled: ArcSwap::from_pointee(Compiled::new(clients, None)?),
            verified: Verified::new(),
            throttle: Throttle::new(20, Duration::from_secs(1)),
            gate: Gate::new(),
            anonymous: ANONYMOUS.into(),
        })
    }

    /// Swaps in another set, or leaves the old one in force when anything in it is wrong. What a client has used of its
    /// rate is kept; a changed password counts at once.
    pub fn replace(&self, clients: Vec<Client>) -> Result<(), DirectoryError> {
        let next = Compiled::new(clients, Some(&self.compiled.load()))?;
        self.compiled.store(Arc::new(next));
        Ok(())
    }

    /// The clients in force, by name. They hold hashes: show [`Client::name`] and the like, never the whole.
    pub fn clients(&self) -> Vec<Client> {
        self.compiled.load().clients()
    }

    /// Who is it? `peer` is the sender's address (`None`: a file). Without any credential it is [`ANONYMOUS`], or
    /// [`Denied::Unauthenticated`] when `require`. A wrong credential is always refused. A certificate that belongs to no
    /// client counts as none: the listener's authority vouched for it, the directory just does not know it.
    ///
    /// The first time a password is seen, its check takes some 20 ms of CPU: it is made on a thread of the current runtime's
    /// blocking pool. A few checks run at the same time, some wait a moment, all others get [`Denied::Busy`].
    pub fn identify(self: &Arc<Self>, peer: Option<SocketAddr>, credentials: &Credentials, require: bool) -> Identity<'static> {
        let ip = peer.map(|p| p.ip().to_canonical());
        match self.claim(ip, credentials, require) {
            Claim::Done(result) => Identity::Known(self.settle(result, ip)),
            Claim::Password(check) => {
                let this = self.clone();
                Identity::Checking(Box::pin(async move { this.settle(this.check(check, ip).await, ip) }))
            }
        }
    }

    async fn check(self: &Arc<Self>, check: PasswordCheck, ip: Option<IpAddr>) -> Result<Arc<str>, Failure> {
        let busy = || Failure::new(Denied::Busy, "busy");
        let permit = self.gate.enter().await.ok_or_else(busy)?;
        let this = self.clone();
        let checked = tokio::task::spawn_blocking(move || {
            // Held to the end of the check, also when the sender has gone.
            let _permit = permit;
            check.run(&this.verified)
        });
        // The task fails only when the runtime ends.
        let known = checked.await.unwrap_or_else(|_| Err(busy()))?;
        Compiled::admit(known, ip)
    }

    /// Takes one message off the client's rate; `Err`: over it, and how long until there is room. Clients without a rate, and names
    /// that are no client's, are never over it.
    pub fn rate_check(&self, client: &str) -> Result<(), Duration> {
        let compiled = self.compiled.load();
        let Some(limiter) = compiled.by_name(client).and_then(|known| known.limiter.as_ref()) else { return Ok(()) };
        limiter.check().map_err(|until| until.wait_time_from(limiter.clock().now()))
    }

    /// The client sent a message: noted where its silence is to be told of ([`Client::silent_after`]).
    pub fn heard(&self, client: &str) {
        let compiled = self.compiled.load();
        if compiled.watched
            && let Some(known) = compiled.by_name(client)
        {
            known.sent.fetch_add(1, Relaxed);
        }
    }

    /// The clients whose silence is to be told of: name, after how long, and how many messages each has sent since the start.
    pub fn watched(&self) -> Vec<(String, Duration, u64)> {
        self.compiled.load().sent()
    }

    /// May the client use a channel with this `allow` list of names and roles? An empty list lets everybody in.
    pub fn allowed(&self, client: &str, allow: &[String]) -> bool {
        allow.is_empty()
            || allow.iter().any(|a| a == client)
            || self.compiled.load().by_name(client).is_some_and(|known| known.client.roles.iter().any(|r| allow.contains(r)))
    }

    /// May a sender at this address speak under this name because its listener says so? True for names that are no client's.
    pub fn may_be(&self, client: &str, peer: Option<SocketAddr>) -> bool {
        let compiled = self.compiled.load();
        compiled.by_name(client).is_none_or(|known| Compiled::admit(known.clone(), peer.map(|p| p.ip().to_canonical())).is_ok())
    }

    fn claim(&self, ip: Option<IpAddr>, credentials: &Credentials, require: bool) -> Claim {
        let none = || match require {
            true => Err(Failure::new(Denied::Unauthenticated, "credentials-required")),
            false => Ok(self.anonymous.clone()),
        };
        let compiled = self.compiled.load();
        match check::claim(&compiled, &self.verified, credentials) {
            check::Found::Nothing => Claim::Done(none()),
            check::Found::Known(known) => Claim::Done(Compiled::admit(known, ip)),
            check::Found::Failed(failure) => Claim::Done(Err(failure)),
            check::Found::Password(_) if ip.is_some_and(|ip| !self.throttle.open(ip)) => {
                Claim::Done(Err(Failure::new(Denied::Busy, "throttled")))
            }
            check::Found::Password(check) => Claim::Password(check),
        }
    }

    fn settle(&self, result: Result<Arc<str>, Failure>, ip: Option<IpAddr>) -> Result<Arc<str>, Denied> {
        result.map_err(|failure| {
            if let (Denied::BadCredentials, Some(ip)) = (&failure.denied, ip) {
                self.throttle.failed(ip);
            }
            IdentifyFailed { kind: failure.kind, client: failure.client.as_deref() }.emit();
            failure.denied
        })
    }
}

/// Why somebody is not let in, for the sender and for the metric.
struct Failure {
    denied: Denied,
    kind: &'static str,
    client: Option<Arc<str>>,
}

impl Failure {
    fn new(denied: Denied, kind: &'static str) -> Self {
        Self { denied, kind, client: None }
    }

    fn of(denied: Denied, kind: &'static str, known: &Known) -> Self {
        Self { denied, kind, client: Some(known.name.clone()) }
    }
}
