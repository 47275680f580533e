//! Alerts by HTTP: a POST in the shape of Alertmanager's webhook, version 4, so that its receivers understand it.
//! <https://prometheus.io/docs/alerting/latest/configuration/#webhook_config>

use super::{secret, timestamp};
use crate::{
    alert::{
        Alert, Notice,
        ports::{NotSent, Receiver},
    },
    channel::ClientTls,
    config,
    gateway::outbound::tls,
};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use reqwest::{Client, Url, redirect};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, error::Error, path::PathBuf, time::Duration};
use xxhash_rust::xxh3::xxh3_64;

/// Alertmanager's word for "not ended".
const NEVER: &str = "0001-01-01T00:00:00Z";

enum Source {
    Given(String),
    File(PathBuf),
    Variable(String),
}

impl Source {
    fn of(text: &str) -> Self {
        match (text.strip_prefix("file:"), text.strip_prefix("env:")) {
            (Some(path), _) => Self::File(path.into()),
            (_, Some(name)) => Self::Variable(name.into()),
            _ => Self::Given(text.into()),
        }
    }

    fn read(&self) -> Result<String, NotSent> {
        match self {
            Self::Given(text) => Ok(text.clone()),
            Self::File(path) => secret(path),
            Self::Variable(name) => {
                std::env::var(name).map_err(|_| NotSent(format!("the environment variable {name} is not set")))
            }
        }
    }
}

/// One HTTP receiver.
pub(super) struct Webhook {
    client: Client,
    url: Source,
    name: String,
    headers: Vec<(HeaderName, Source)>,
    timeout: Duration,
    resolved: bool,
}

impl Webhook {
    pub fn new(index: usize, config: &config::Webhook) -> Result<Self, String> {
        let trust = ClientTls { ca: config.ca.clone(), ..ClientTls::default() };
        let tls = tls::client_config(&trust, &[b"h2", b"http/1.1"]).map_err(|e| e.to_string())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(config.timeout)
            // A notification is rare: a kept connection would be found closed.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|e| root_cause(&e))?;
        let url = match &config.url_file {
            Some(path) => Source::File(path.clone()),
            None => Source::Given(config.url.clone()),
        };
        // Of a URL in a file nothing is shown.
        let name = match Url::parse(&config.url) {
            Ok(url) => {
                let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
                format!("{}://{}{port} ({index})", url.scheme(), url.host_str().unwrap_or_default())
            }
            Err(_) => format!("url_file ({index})"),
        };
        let mut headers = Vec::with_capacity(config.headers.len());
        for (name, value) in &config.headers {
            let header = HeaderName::try_from(name.as_str()).map_err(|_| format!("{name} is no header's name"))?;
            headers.push((header, Source::of(value)));
        }
        Ok(Self { client, url, name, headers, timeout: config.timeout, resolved: config.resolved })
    }

    async fn post(&self, notice: &Notice) -> Result<(), NotSent> {
        let url: Url = self.url.read()?.parse().map_err(|_| NotSent("the URL cannot be read".into()))?;
        let mut request = self.client.post(url).json(&body(notice));
        for (name, value) in &self.headers {
            let value = HeaderValue::try_from(value.read()?).map_err(|_| NotSent(format!("{name} has no header's value")))?;
            let mut value = value;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let answer = request.send().await.map_err(|e| match e.is_timeout() {
            true => NotSent(format!("no answer within {:?}", self.timeout)),
            false => NotSent(root_cause(&e)),
        })?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(NotSent(format!("answered {}", status.as_u16()))),
        }
    }
}

impl Receiver for Webhook {
    fn kind(&self) -> &'static str {
        "webhook"
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn resolved(&self) -> bool {
        self.resolved
    }

    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<(), NotSent>> {
        Box::pin(self.post(notice))
    }
}

/// The innermost cause: it names the fact (refused, unknown issuer) and never the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, error) { "request failed".into() } else { cause.to_string().chars().take(200).collect() }
}

fn body(notice: &Notice) -> Value {
    let mut alerts: Vec<Value> = notice.firing.iter().chain(&notice.resolved).map(|alert| one(notice, alert)).collect();
    let common = [("node", notice.node.as_str()), ("domain", notice.domain.as_str())];
    let common: Map<String, Value> = common.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    if notice.test {
        let mut labels = common.clone();
        labels.insert("alertname".into(), "HieTest".into());
        labels.insert("severity".into(), "warning".into());
        let annotations = json!({ "summary": "a test: alerts arrive here", "description": "Nothing is wrong." });
        alerts.push(json!({
            "status": "firing", "labels": labels, "annotations": annotations, "startsAt": timestamp(now_ms()), "endsAt": NEVER,
            "generatorURL": "", "fingerprint": notice.id,
        }));
    }
    json!({
        "version": "4",
        "groupKey": format!("hie/{}/{}", notice.domain, notice.node),
        "truncatedAlerts": notice.more,
        "status": if notice.test || !notice.firing.is_empty() { "firing" } else { "resolved" },
        "receiver": "hie",
        "groupLabels": common,
        "commonLabels": common,
        "commonAnnotations": {},
        "externalURL": "",
        "alerts": alerts,
        "hie": { "notification": notice.id, "title": notice.subject(), "test": notice.test },
    })
}

fn one(notice: &Notice, alert: &Alert) -> Value {
    let fixed = [
        ("alertname", alert.rule.alert_name()),
        ("severity", alert.severity.as_str()),
        ("node", &notice.node),
        ("domain", &notice.domain),
    ];
    let labels: BTreeMap<&str, &str> = fixed.into_iter().chain(alert.subject.labels()).collect();
    // What identifies the alert, whatever its severity is now.
    let identity: String = labels.iter().filter(|(n, _)| **n != "severity").map(|(n, v)| format!("{n}\u{1f}{v}\u{1e}")).collect();
    json!({
        "status": if alert.ended_ms.is_some() { "resolved" } else { "firing" },
        "labels": labels,
        "annotations": { "summary": alert.summary, "description": alert.advice() },
        "startsAt": timestamp(alert.since_ms),
        "endsAt": alert.ended_ms.map_or_else(|| NEVER.to_owned(), timestamp),
        "generatorURL": "",
        "fingerprint": format!("{:016x}", xxh3_64(identity.as_bytes())),
    })
}

fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    i64::try_from(now).unwrap_or(i64::MAX)
}
