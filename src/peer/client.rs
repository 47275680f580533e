//! The asking side.

use super::{Broken, LEDGER, NODE, Nonce, SCHEME, SEAL, Secret};
use crate::config::client_tls::{self, ClientTls};
use reqwest::{Response, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;
use std::{
    error::Error as StdError,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The longest list of files that is read.
const MOST_LIST: usize = 8 << 20;
/// What is repeated of a peer's own words.
const MOST_SAID: usize = 300;
const CONNECT: Duration = Duration::from_secs(3);
/// A peer that says nothing for so long is given up.
const SILENT: Duration = Duration::from_secs(30);

/// Why a peer gave nothing. The texts are for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it ended.
    #[error("it cannot be reached ({0})")]
    Unreachable(String),
    /// It copies to others already, or drains.
    #[error("it is busy ({0})")]
    Busy(String),
    /// What was offered is there no more: its retention was quicker.
    #[error("what it offered is there no more")]
    Gone,
    /// Another secret, here or there, or another domain.
    #[error("it refuses this node ({0})")]
    Refused(String),
    /// It serves no such thing: an earlier release, or no secret there.
    #[error("it hands out nothing ({0})")]
    Closed(String),
    /// What came is not what was asked for.
    #[error("its answer cannot be used: {0}")]
    Unusable(String),
    /// This side: the disk, or the configuration.
    #[error("{0}")]
    Here(String),
}

impl PeerError {
    /// May it be otherwise in a moment?
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Busy(_) | Self::Gone)
    }
}

impl From<Broken> for PeerError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::CutOff => Self::Unreachable(format!("what it sent ended early: {broken}")),
            Broken::Changed => {
                Self::Refused(format!("what it sent is not to be trusted: {broken}; see peers.secret_file there and here"))
            }
        }
    }
}

/// A peer's management API.
#[derive(Clone)]
pub struct Peer {
    http: reqwest::Client,
    base: Url,
    secret: Secret,
    domain: String,
    node: String,
}

impl Peer {
    /// `url`: of the management API, without a path; `ca`: see `peers.ca`; `domain`, `node`: this node's. Connects to nothing yet.
    pub fn new(url: &str, ca: Option<PathBuf>, secret: Secret, domain: &str, node: &str) -> Result<Self, PeerError> {
        let wrong = |e: &dyn std::fmt::Display| PeerError::Here(format!("peers.urls: {e}"));
        let base = Url::parse(url).map_err(|e| wrong(&e))?;
        let trust = ClientTls { ca, cert: None, key: None, server_name: None };
        let tls = client_tls::client_config(&trust, &[]).map_err(|e| PeerError::Here(format!("[peers] {e}")))?;
        let http = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT)
            .read_timeout(SILENT)
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|e| wrong(&e))?;
        Ok(Self { http, base, secret, domain: domain.to_owned(), node: node.to_owned() })
    }

    /// `scheme://host:port`, for messages.
    pub fn at(&self) -> String {
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{}{port}", self.base.scheme(), self.base.host_str().unwrap_or_default())
    }

    /// What it offers. `roll`: of everything until now.
    pub async fn list<T: DeserializeOwned>(&self, roll: bool) -> Result<T, PeerError> {
        let path = if roll { format!("{LEDGER}?roll=true") } else { LEDGER.to_owned() };
        let mut list = Vec::new();
        self.get(&path, &mut |bytes| {
            list.extend(bytes);
            if list.len() > MOST_LIST { Err(PeerError::Unusable("it is too long".into())) } else { Ok(()) }
        })
        .await?;
        serde_json::from_slice(&list).map_err(|e| PeerError::Unusable(e.to_string()))
    }

    /// One file of its ledger, by name; pieces go to `take` as they come.
    pub async fn file(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<(), PeerError>) -> Result<(), PeerError> {
        self.get(&format!("{LEDGER}/{name}"), take).await
    }

    async fn get(&self, path: &str, take: &mut dyn FnMut(&[u8]) -> Result<(), PeerError>) -> Result<(), PeerError> {
        let what = format!("{}\nGET\n{path}", self.domain);
        let asked = Nonce::make();
        let proof = self.secret.proof(asked, &what)?;
        let url = self.base.join(path).map_err(|e| PeerError::Here(e.to_string()))?;
        let request = self.http.get(url).header(NODE, &self.node).header("authorization", format!("{SCHEME} {asked} {proof}"));
        let mut response = request.send().await.map_err(|e| PeerError::Unreachable(cause(&e)))?;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        let answered = response.headers().get(SEAL).and_then(|v| Nonce::parse(v.to_str().ok()?));
        let answered = answered.ok_or_else(|| PeerError::Unusable("it is not sealed: is that a node of this domain?".into()))?;
        let mut opener = self.secret.opener(asked, answered, &what)?;
        let mut taken = Ok(());
        while let Some(bytes) = response.chunk().await.map_err(|e| PeerError::Unreachable(cause(&e)))? {
            opener.open(&bytes, &mut |piece| {
                if taken.is_ok() {
                    taken = take(piece);
                }
            })?;
            taken.clone()?;
        }
        Ok(opener.end()?)
    }
}

/// What an answer that is none means.
async fn refused(response: Response) -> PeerError {
    let status = response.status();
    let until = Instant::now() + CONNECT;
    let mut said = Vec::new();
    let mut response = response;
    while said.len() < 64 * 1024 && Instant::now() < until {
        match response.chunk().await {
            Ok(Some(bytes)) => said.extend(bytes),
            _ => break,
        }
    }
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
    let words = |key: &str| said[key].as_str().map(str::to_owned);
    let said = match (words("error"), words("hint")) {
        (Some(error), Some(hint)) => format!("{error}; {hint}"),
        (Some(error), None) => error,
        _ => status.to_string(),
    };
    let said: String = said.chars().filter(|c| !c.is_control()).take(MOST_SAID).collect();
    match status {
        StatusCode::GONE => PeerError::Gone,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => PeerError::Closed(said),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PeerError::Refused(said),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => PeerError::Busy(said),
        _ => PeerError::Unusable(said),
    }
}

/// The innermost reason of a failure.
fn cause(error: &reqwest::Error) -> String {
    let mut last: &dyn StdError = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
