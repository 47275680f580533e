//! The management API's client: finds address and token of the node from its configuration.

use super::{configuration::ConfigArgs, exit::Failure, output};
use clap::Args;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;
use std::{
    io::{ErrorKind, Write},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

/// Longest answer taken.
const MAX_ANSWER: usize = 64 << 20;

/// Which node, and in which form the answer is printed.
#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Address of the node's management API [default: admin.listen of the configuration]
    #[arg(long, value_name = "URL")]
    pub url: Option<Url>,
    /// File of its token [default: admin.token_file, else <store>/admin-token]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A connection to the management API.
pub(super) struct Api {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    base: Url,
    token: String,
    token_file: PathBuf,
}

impl Api {
    /// Reads address and token; does not connect yet.
    pub fn open(args: &ApiArgs) -> Result<Self, Failure> {
        // With address and token given, the configuration of this machine has no say.
        let (base, token_file) = match (&args.url, &args.token_file) {
            (Some(url), Some(file)) => (url.clone(), file.clone()),
            (url, file) => {
                let config = args.config.load(&[])?.config;
                let base = url.clone().map_or_else(|| address(config.admin.listen), Ok)?;
                (base, file.clone().unwrap_or_else(|| config.admin_token_file()))
            }
        };
        let token = std::fs::read_to_string(&token_file).map_err(|e| {
            Failure::unavailable(format!(
                "the token of the management API cannot be read from {}: {e}\nthe node writes it at its first start; \
                 name the node's configuration with --config, or the file with --token-file",
                token_file.display()
            ))
        })?;
        let bug = |e: &dyn std::fmt::Display| Failure::bug(format!("no client: {e}"));
        // A second installation fails, and the first one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5));
        let client = builder.timeout(Duration::from_secs(120)).build().map_err(|e| bug(&e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| bug(&e))?;
        Ok(Self { runtime, client, base, token: token.trim().to_owned(), token_file })
    }

    /// GET.
    pub fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, Failure> {
        self.call(self.client.request(Method::GET, self.url(path, query)?))
    }

    /// POST of a JSON body.
    pub fn post(&self, path: &[&str], body: &Value) -> Result<Value, Failure> {
        self.call(self.client.request(Method::POST, self.url(path, &[])?).json(body))
    }

    /// GET of bytes, written to `out` as they come.
    pub fn download(&self, path: &[&str], out: &mut impl Write) -> Result<(), Failure> {
        let request = self.client.get(self.url(path, &[])?).bearer_auth(&self.token);
        self.runtime.block_on(async {
            let mut response = request.send().await.map_err(|e| self.away(&e))?;
            let status = response.status();
            if !status.is_success() {
                let body = response.bytes().await.unwrap_or_default();
                return Err(self.refused(status, &body));
            }
            while let Some(piece) = response.chunk().await.map_err(|e| self.away(&e))? {
                match out.write_all(&piece) {
                    Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    written => written.map_err(|e| Failure::failed(format!("cannot write the output: {e}")))?,
                }
            }
            out.flush().map_err(|e| Failure::failed(format!("cannot write the output: {e}")))
        })
    }

    /// GET of a stream; `take` gets each piece and says whether to go on. Ends with the stream, or as unavailable after `silence`
    /// without a piece. `last` goes into `Last-Event-ID`.
    pub fn stream(
        &self,
        path: &[&str],
        last: Option<u64>,
        silence: Duration,
        take: &mut dyn FnMut(&[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        // The client's own limit is for answers that have an end.
        const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);
        let mut request = self.client.get(self.url(path, &[])?).bearer_auth(&self.token).timeout(ENDLESS);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        self.runtime.block_on(async {
            let mut response = request.send().await.map_err(|e| self.away(&e))?;
            let status = response.status();
            if !status.is_success() {
                let body = response.bytes().await.unwrap_or_default();
                return Err(self.refused(status, &body));
            }
            loop {
                match tokio::time::timeout(silence, response.chunk()).await {
                    Ok(Ok(Some(piece))) if take(&piece)? => {}
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(e)) => return Err(self.away(&e)),
                    Err(_) => return Err(Failure::unavailable("the node says nothing any more")),
                }
            }
        })
    }

    /// The URL of a resource; every segment is encoded.
    fn url(&self, path: &[&str], query: &[(&str, String)]) -> Result<Url, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::usage(format!("{} is not the address of a management API", self.base)))?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn call(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let (status, body) = self.runtime.block_on(async {
            let mut response = request.bearer_auth(&self.token).send().await.map_err(|e| self.away(&e))?;
            if let Some(why) = response.headers().get("x-hie-incomplete").and_then(|v| v.to_str().ok()) {
                output::warn(&format!("transactions may be missing: {why}"));
            }
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(|e| self.away(&e))? {
                if body.len() + piece.len() > MAX_ANSWER {
                    return Err(Failure::failed("the answer is too long; ask for less, for example with --limit"));
                }
                body.extend_from_slice(&piece);
            }
            Ok((response.status(), body))
        })?;
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            // OpenHIM answers some requests with plain text.
            let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
            return Ok(serde_json::from_slice(&body).unwrap_or_else(|_| text()));
        }
        Err(self.refused(status, &body))
    }

    fn away(&self, error: &reqwest::Error) -> Failure {
        let why = if error.is_timeout() { "does not answer in time" } else { "cannot be reached" };
        let (base, cause) = (&self.base, root(error));
        Failure::unavailable(format!("the node at {base} {why}: is it running, and is this its management API? ({cause})"))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let said = |key: &str| answer.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
        let mut text = said("error").map_or_else(|| format!("the node answered {status}"), str::to_owned);
        if let Some(hint) = said("hint") {
            text = format!("{text}; {hint}");
        }
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::failed(format!("{text} (the token of {} was shown)", self.token_file.display()))
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Failure::unavailable(text),
            _ => Failure::failed(text),
        }
    }
}

/// Address of the management API on this machine.
fn address(listen: std::net::SocketAddr) -> Result<Url, Failure> {
    let mut reach = listen;
    match reach.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => reach.set_ip([127, 0, 0, 1].into()),
        IpAddr::V6(ip) if ip.is_unspecified() => reach.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    if reach.port() == 0 {
        return Err(Failure::usage("admin.listen takes any free port; say where the node listens with --url"));
    }
    Url::parse(&format!("http://{reach}/")).map_err(|e| Failure::bug(format!("no URL for {reach}: {e}")))
}

/// The innermost cause: the outer ones repeat the URL.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
