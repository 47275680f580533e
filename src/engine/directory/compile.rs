//! Clients made ready for look-ups.

use super::{DirectoryError, Failure};
use crate::{
    channel::client::{self, Client, Rate},
    engine::ports::Denied,
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// One client, ready.
pub(super) struct Known {
    pub name: Arc<str>,
    pub client: Client,
    pub limiter: Option<Arc<DefaultDirectRateLimiter>>,
    /// Messages since the start; counted where `silent_after` is given.
    pub sent: Arc<AtomicU64>,
}

/// All of them.
pub(super) struct Compiled {
    names: HashMap<Arc<str>, Arc<Known>>,
    tokens: HashMap<[u8; 32], Arc<Known>>,
    fingerprints: HashMap<[u8; 32], Arc<Known>>,
    common_names: HashMap<String, Arc<Known>>,
    /// Is any client's silence to be told of?
    pub watched: bool,
}

impl Compiled {
    pub fn new(clients: Vec<Client>, before: Option<&Compiled>) -> Result<Self, DirectoryError> {
        let watched = clients.iter().any(|c| c.silent_after.is_some());
        let mut out = Self {
            names: HashMap::new(),
            tokens: HashMap::new(),
            fingerprints: HashMap::new(),
            common_names: HashMap::new(),
            watched,
        };
        for client in clients {
            client::check(&client).map_err(DirectoryError)?;
            out.add(client, before)?;
        }
        Ok(out)
    }

    fn add(&mut self, client: Client, before: Option<&Compiled>) -> Result<(), DirectoryError> {
        let name: Arc<str> = client.name.as_str().into();
        if client.password_file.is_some() || client.token_file.is_some() {
            return Err(DirectoryError(format!("client \"{name}\": its secret files have not been read")));
        }
        let old = before.and_then(|b| b.names.get(&name));
        let limiter = match (client.rate, old) {
            (None, _) => None,
            (Some(rate), Some(old)) if old.client.rate == Some(rate) => old.limiter.clone(),
            (Some(rate), _) => Some(Arc::new(limiter(rate))),
        };
        let sent = old.map(|old| old.sent.clone()).unwrap_or_default();
        let known = Arc::new(Known { name: name.clone(), limiter, sent, client });
        let twice = |what: &str, other: &Known| {
            Err(DirectoryError(format!("clients \"{}\" and \"{name}\" have the same {what}; each needs its own", other.name)))
        };
        if let Some(other) = self.names.insert(name.clone(), known.clone()) {
            return twice("name", &other);
        }
        if let Some(token) = known.client.token_sha256.as_deref().and_then(client::hex32)
            && let Some(other) = self.tokens.insert(token, known.clone())
        {
            return twice("token", &other);
        }
        if let Some(certificate) = known.client.certificate.as_deref() {
            let other = match client::hex32(certificate) {
                Some(fingerprint) => self.fingerprints.insert(fingerprint, known.clone()),
                None => self.common_names.insert(certificate.to_owned(), known.clone()),
            };
            if let Some(other) = other {
                return twice("certificate", &other);
            }
        }
        Ok(())
    }

    pub fn clients(&self) -> Vec<Client> {
        let sorted: BTreeMap<_, _> = self.names.iter().collect();
        sorted.into_values().map(|known| known.client.clone()).collect()
    }

    /// Clients whose silence is to be told of, and how many messages each has sent.
    pub fn sent(&self) -> Vec<(String, Duration, u64)> {
        let watched = self.names.values().filter(|known| known.client.enabled);
        let one = |known: &Arc<Known>| Some((known.name.to_string(), known.client.silent_after?, known.sent.load(Relaxed)));
        watched.filter_map(one).collect()
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Known>> {
        self.names.get(name)
    }

    pub fn by_token(&self, token: &[u8]) -> Option<&Arc<Known>> {
        // Looked up by hash: how long that takes tells nothing about any stored token.
        self.tokens.get::<[u8; 32]>(&Sha256::digest(token).into())
    }

    /// By fingerprint, else by the subject's common name where it has exactly one.
    pub fn by_certificate(&self, der: &[u8]) -> Option<&Arc<Known>> {
        if let Some(known) = self.fingerprints.get::<[u8; 32]>(&Sha256::digest(der).into()) {
            return Some(known);
        }
        if self.common_names.is_empty() {
            return None;
        }
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let mut names = certificate.subject().iter_common_name();
        let name = names.next()?.as_str().ok()?;
        if names.next().is_some() {
            return None;
        }
        self.common_names.get(name)
    }

    /// The last checks on a client whose credential was right: enabled, and at an address of its own.
    pub fn admit(known: Arc<Known>, ip: Option<IpAddr>) -> Result<Arc<str>, Failure> {
        if !known.client.enabled {
            return Err(Failure::of(Denied::BadCredentials, "disabled", &known));
        }
        let allow = &known.client.allow_ips;
        match ip {
            Some(ip) if !allow.is_empty() && !allow.iter().any(|net| net.contains(&ip)) => {
                Err(Failure::of(Denied::Address, "address", &known))
            }
            _ => Ok(known.name.clone()),
        }
    }
}

fn limiter(rate: Rate) -> DefaultDirectRateLimiter {
    let burst = rate.burst.unwrap_or(rate.per_second.ceil() as u32).max(1);
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    // The rate was checked to lie between 0.001 and a million: neither zero nor too long.
    let period = Duration::from_secs_f64(1.0 / rate.per_second);
    let quota = Quota::with_period(period).unwrap_or(Quota::per_second(burst));
    RateLimiter::direct(quota.allow_burst(burst))
}
