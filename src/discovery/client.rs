//! The agent's HTTP API: bounded answers, bounded times, errors that say what to do.
//! <https://developer.hashicorp.com/consul/api-docs>

use crate::config::{
    Discovery,
    client_tls::{self, ClientTls},
    secret,
};
use reqwest::{Method, Response, StatusCode, Url, header::HeaderValue, redirect};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

/// The longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;
/// What is repeated of an agent's own words.
const MAX_SAID: usize = 200;

/// Why the agent did not do what was asked. The texts are for the operator and hold no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection, or no answer in time.
    #[error("the Consul agent at {at} cannot be reached ({cause}): is it running, and is discovery.consul its address?")]
    Unreachable { at: String, cause: String },
    /// The handshake failed.
    #[error(
        "TLS with the Consul agent at {at} fails ({cause}): does it speak https there, and is its authority in discovery.ca?"
    )]
    Tls { at: String, cause: String },
    /// 403, or 401.
    #[error("the Consul agent at {at} refuses {credential} ({said}): {advice}")]
    Refused { at: String, credential: String, said: String, advice: &'static str },
    /// Any other status.
    #[error("the Consul agent at {at} answered {status} ({said})")]
    Answer { at: String, status: u16, said: String },
    /// Nothing that belongs there.
    #[error("the Consul agent at {at} gave an answer that cannot be read ({what}): is discovery.consul the address of an agent?")]
    Unreadable { at: String, what: String },
    /// The token's file.
    #[error("the token for the Consul agent cannot be read: {0}; see discovery.token_file")]
    Token(String),
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// One of a fixed set, for metrics and for telling one state from another.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Refused { .. } | Self::Token(_) => "token",
            Self::Answer { .. } | Self::Unreadable { .. } | Self::Config(_) => "answer",
        }
    }

    /// The agent does not know the check or service that was named.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            // Up to 1.10 the agent answers 500 and says it in words.
            Self::Answer { status, said, .. } => {
                *status == 404 || *status == 500 && (said.contains("does not have associated TTL") || said.contains("Unknown"))
            }
            _ => false,
        }
    }
}

/// A client of one agent. Cheap to share; works on the runtime that first used it.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    /// For messages: no path, no credential.
    at: String,
    token_file: Option<PathBuf>,
    /// The last one that could be read.
    token: Mutex<Option<HeaderValue>>,
    timeout: Duration,
}

/// An answer with the index for the next blocking query.
pub(super) struct Indexed<T> {
    pub index: u64,
    /// `None`: 404.
    pub value: Option<T>,
}

impl Client {
    /// A client for the agent of this configuration; connects to nothing yet. Reads the PEM files once.
    pub fn new(config: &Discovery) -> Result<Self, Error> {
        let wrong = |e: &dyn std::fmt::Display| Error::Config(format!("discovery.consul: {e}"));
        let base = Url::parse(&config.consul).map_err(|e| wrong(&e))?;
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(config.timeout)
            .pool_idle_timeout(Duration::from_secs(50))
            .pool_max_idle_per_host(4);
        let trust = ClientTls { ca: config.ca.clone(), cert: config.cert.clone(), key: config.key.clone(), server_name: None };
        let tls = client_tls::client_config(&trust, &[]).map_err(|e| Error::Config(format!("[discovery] {e}")))?;
        builder = builder.tls_backend_preconfigured(tls);
        let http = builder.build().map_err(|e| wrong(&cause(&e)))?;
        let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
        let at = format!("{}://{}{port}", base.scheme(), base.host_str().unwrap_or_default());
        Ok(Self { http, base, at, token_file: config.token_file.clone(), token: Mutex::default(), timeout: config.timeout })
    }

    /// PUT; the answer's body is not looked at.
    pub(super) async fn put(&self, path: &[&str], query: &[(&str, &str)], body: Option<&Value>) -> Result<(), Error> {
        self.exchange(Method::PUT, path, query, body, self.timeout).await.map(drop)
    }

    /// PUT that is answered by `true` or `false`.
    pub(super) async fn put_told(&self, path: &[&str], query: &[(&str, &str)], body: &Value) -> Result<bool, Error> {
        let response = self.exchange(Method::PUT, path, query, Some(body), self.timeout).await?;
        self.json(response).await
    }

    /// GET of JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, Error> {
        let response = self.exchange(Method::GET, path, query, None, self.timeout).await?;
        self.json(response).await
    }

    /// GET that waits up to `wait` for a change beyond `index`; 0 answers at once.
    pub(super) async fn watch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        index: u64,
        wait: Duration,
    ) -> Result<Indexed<T>, Error> {
        let (at, seconds) = (index.to_string(), format!("{}s", wait.as_secs().max(1)));
        let mut query = query.to_vec();
        if index > 0 {
            query.extend([("index", at.as_str()), ("wait", seconds.as_str())]);
        }
        // The agent adds up to a sixteenth of the wait, so that not all come back at once.
        let limit = if index > 0 { wait + wait / 16 + self.timeout } else { self.timeout };
        let response = self.send(Method::GET, path, &query, None, limit).await?;
        let headers = response.headers().clone();
        let value = match response.status() {
            StatusCode::NOT_FOUND => None,
            _ => Some(self.json(self.successful(response).await?).await?),
        };
        let index = headers.get("x-consul-index").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        match index {
            // Never 0: that would not wait. https://developer.hashicorp.com/consul/api-docs/features/blocking
            Some(index) => Ok(Indexed { index: std::cmp::max(index, 1), value }),
            None => Err(self.unreadable("no X-Consul-Index")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Response, Error> {
        let response = self.send(method, path, query, body, limit).await?;
        self.successful(response).await
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Response, Error> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).timeout(limit);
        if let Some(token) = self.token()? {
            request = request.header("x-consul-token", token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|e| self.away(&e))
    }

    async fn successful(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = self.body(response, 4096).await.unwrap_or_default();
        Err(self.refusal(status, &said))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        let text = String::from_utf8_lossy(body);
        let said: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SAID).collect();
        match (status, &self.token_file) {
            (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, file) => {
                let (credential, advice) = match file {
                    Some(path) => (
                        format!("the token of {}", path.display()),
                        "write a valid one into the file (it is read again), whose policy has service:write on \"hie\", service:read and \
                         node:read on all, key:read on \"hie/\", key:write on \"hie/DOMAIN/layout\"",
                    ),
                    None => ("a caller without a token".into(), "name a file with a token in discovery.token_file"),
                };
                Error::Refused { at: self.at.clone(), credential, said: format!("{}: {said}", status.as_u16()), advice }
            }
            _ => Error::Answer { at: self.at.clone(), status: status.as_u16(), said },
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let body = self.body(response, MAX_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|e| self.unreadable(&format!("{:?} at line {}", e.classify(), e.line())))
    }

    async fn body(&self, mut response: Response, most: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.away(&e))? {
            if body.len() + piece.len() > most {
                return Err(self.unreadable(&format!("more than {most} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn unreadable(&self, what: &str) -> Error {
        Error::Unreadable { at: self.at.clone(), what: what.to_owned() }
    }

    fn away(&self, error: &reqwest::Error) -> Error {
        let at = self.at.clone();
        match handshake_failure(error) {
            Some(cause) => Error::Tls { at, cause },
            None if error.is_timeout() => Error::Unreachable { at, cause: "no answer in time".into() },
            None => Error::Unreachable { at, cause: cause(error) },
        }
    }

    /// The token as it is in its file now; a file that cannot be read for a moment leaves the last one in force.
    fn token(&self) -> Result<Option<HeaderValue>, Error> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let mut last = self.token.lock().unwrap_or_else(|e| e.into_inner());
        match read_token(file) {
            Ok(token) => *last = Some(token),
            Err(error) if last.is_none() => return Err(Error::Token(error)),
            Err(_) => {}
        }
        Ok(last.clone())
    }
}

/// The token in a file, or in one that systemd handed over.
fn read_token(file: &Path) -> Result<HeaderValue, String> {
    let mut token =
        HeaderValue::try_from(secret::read(file)?.trim()).map_err(|_| format!("{} holds no token", file.display()))?;
    token.set_sensitive(true);
    Ok(token)
}

/// What rustls says, when it is what made a request fail.
fn handshake_failure(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string().chars().take(MAX_SAID).collect());
        }
        // An io::Error hides what it wraps from `source`.
        if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            next = Some(wrapped);
            continue;
        }
        next = error.source();
    }
    None
}

/// The innermost cause: it names the fact (refused, unknown issuer) and never the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, error) { "request failed".into() } else { cause.to_string().chars().take(MAX_SAID).collect() }
}
