//! Sending over HTTP: each message one POST.

use super::{AGAIN, Code, Options, Outcome, Sent, Shared, summary::Tally};
use crate::{channel::ClientTls, gateway::outbound::tls};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use reqwest::Url;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

const CONNECT: Duration = Duration::from_secs(10);

/// The HTTP client and what goes with each request.
#[derive(Clone)]
pub(super) struct Client {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
}

impl Client {
    pub(super) fn new(
        url: &str,
        tls: Option<&ClientTls>,
        headers: &[(String, String)],
        options: &Options,
    ) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|e| format!("{url}: {e}"))?;
        let config = tls::client_config(tls.unwrap_or(&ClientTls::default()), &[b"http/1.1"]).map_err(|e| e.to_string())?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(options.timeout.min(CONNECT))
            .timeout(options.timeout)
            .pool_max_idle_per_host(options.connections)
            .build()
            .map_err(|e| format!("HTTP client: {}", e.without_url()))?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header name"))?;
            let value = HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} cannot be sent"))?;
            map.append(name, value);
        }
        Ok(Self { client, url, headers: map })
    }

    async fn exchange(&self, headers: &HeaderMap, body: &Bytes) -> reqwest::Result<StatusCode> {
        let request = self.client.post(self.url.clone()).headers(headers.clone()).body(body.clone());
        let response = request.send().await?;
        let status = response.status();
        // Read to its end, so that the connection can serve again.
        response.bytes().await.map(|_| status)
    }
}

/// Sends messages until there are no more. The error: the target was never reached.
pub(super) async fn worker(shared: Arc<Shared>, client: Client, connection: usize) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while let Some(number) = shared.next().await {
        let Ok(message) = shared.material.get(number, &shared.options) else {
            let outcome = Outcome::Failed("the file cannot be read any more");
            shared.finished(&mut tally, Sent { number, connection, control_id: b"", outcome: &outcome }, Duration::ZERO);
            continue;
        };
        let mut headers = client.headers.clone();
        if !headers.contains_key(CONTENT_TYPE)
            && let Some(kind) = content_type(&message.body)
        {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        let began = Instant::now();
        let outcome = loop {
            match client.exchange(&headers, &message.body).await {
                Ok(status) => {
                    shared.reached.store(true, Relaxed);
                    let refused = || Outcome::Refused(Code::Status(status.as_u16()));
                    break if status.is_success() { Outcome::Accepted } else { refused() };
                }
                Err(e) if !e.is_connect() => {
                    shared.reached.store(true, Relaxed);
                    break Outcome::Failed(if e.is_timeout() { "no answer in time" } else { "closed before the answer" });
                }
                Err(_) if !shared.reached.load(Relaxed) => {
                    shared.stop.store(true, Relaxed);
                    return Err(format!("{}: no connection", client.url.origin().ascii_serialization()));
                }
                // A receiver that restarts is back soon; one that stays away would fail the rest the same way.
                Err(_) if began.elapsed() + AGAIN > shared.options.timeout => {
                    shared.stop.store(true, Relaxed);
                    break Outcome::Failed("the target went away");
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
        let sent = Sent { number, connection, control_id: message.control_id(), outcome: &outcome };
        shared.finished(&mut tally, sent, began.elapsed());
    }
    Ok(tally)
}

/// What the first bytes look like.
fn content_type(body: &[u8]) -> Option<&'static str> {
    match body.trim_ascii_start() {
        [b'M', b'S', b'H', ..] | [b'F' | b'B', b'H', b'S', ..] => Some("x-application/hl7-v2+er7"),
        [b'{', ..] => Some("application/fhir+json"),
        [b'<', ..] => Some("application/fhir+xml"),
        _ => None,
    }
}
