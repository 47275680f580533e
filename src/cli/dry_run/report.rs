//! What `hie try` found about one message.

use crate::{
    channel::{Compiled, Mode, Route, Set},
    config::Config,
    engine::{
        content::Content,
        directory::Directory,
        ports::{Arrival, Refusal},
    },
};
use serde::Serialize;
use std::{fmt, path::Path};

/// One message: what it is, who was asked, where it would go.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bytes: usize,
    protocol: &'static str,
    listener: String,
    client: String,
    #[serde(rename = "type")]
    kind: String,
    /// How many patient identifiers it names.
    patients: usize,
    /// The channels in the order in which they were asked, up to the one that took it.
    asked: Vec<Asked>,
    channel: Option<String>,
    mode: Option<Mode>,
    /// Hashes of the ordering keys; several make it a barrier.
    keys: Vec<String>,
    routes: Vec<Destination>,
    /// Why it would be refused.
    pub refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Asked {
    channel: String,
    when: String,
    answer: String,
}

#[derive(Debug, Serialize)]
struct Destination {
    route: String,
    primary: bool,
    paused: bool,
    targets: Vec<String>,
}

impl Report {
    /// Asks the channels as the engine would.
    pub fn new(arrival: &Arrival, body: &[u8], content: &Content<'_>, set: &Set, directory: &Directory, config: &Config) -> Self {
        let mut report = Self::of(arrival, body);
        report.kind = content.kind.clone();
        report.patients = content.patients().len();
        let subject = content.subject(arrival, body.len() as u64);
        let mut taken = None;
        for channel in set.iter() {
            let answer = match channel.rule.matches(&subject) {
                _ if !channel.channel.enabled => "not enabled".into(),
                Ok(true) => {
                    taken = Some(channel);
                    "takes it".into()
                }
                Ok(false) => "no: the rule does not hold".into(),
                Err(error) => format!("no: {error}"),
            };
            report.asked.push(Asked { channel: channel.channel.name.clone(), when: channel.channel.when.clone(), answer });
            if taken.is_some() {
                break;
            }
        }
        let Some(channel) = taken else {
            report.refused = Some(Refusal::NoChannel.to_string());
            return report;
        };
        report.channel = Some(channel.channel.name.clone());
        report.mode = Some(channel.mode(arrival.protocol));
        report.keys = channel.order.keys(&subject).iter().map(|key| format!("{key:016x}")).collect();
        let limit = channel.channel.max_body.unwrap_or(config.limits.max_body).as_u64();
        if !directory.allowed(&arrival.client, &channel.channel.allow) {
            report.refused = Some(Refusal::NotAllowed.to_string());
        } else if body.len() as u64 > limit {
            report.refused = Some(Refusal::TooLarge { limit }.to_string());
        } else {
            report.routes = destinations(channel, &config.node.channels);
        }
        report
    }

    /// A message that cannot be read as what it claims to be.
    pub fn unreadable(arrival: &Arrival, body: &[u8], refusal: &Refusal) -> Self {
        Self { refused: Some(refusal.to_string()), ..Self::of(arrival, body) }
    }

    fn of(arrival: &Arrival, body: &[u8]) -> Self {
        Self {
            bytes: body.len(),
            protocol: arrival.protocol.as_str(),
            listener: arrival.listener.to_string(),
            client: arrival.client.to_string(),
            kind: String::new(),
            patients: 0,
            asked: vec![],
            channel: None,
            mode: None,
            keys: vec![],
            routes: vec![],
            refused: None,
        }
    }
}

/// The primary route first. `folder`: of the channel files.
fn destinations(channel: &Compiled, folder: &Path) -> Vec<Destination> {
    let mut routes: Vec<&Route> = channel.channel.routes.iter().collect();
    routes.sort_by_key(|route| !route.primary);
    let targets = |route: &Route| {
        let folder = route.within(folder).file.map(|f| f.directory.display().to_string());
        let mllp = route.mllp.iter().map(|target| format!("mllp://{target}"));
        route.http.iter().cloned().chain(mllp).chain(folder).collect()
    };
    let routes = routes.into_iter();
    routes.map(|r| Destination { route: r.name.clone(), primary: r.primary, paused: r.paused, targets: targets(r) }).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind.is_empty() { "unknown" } else { &self.kind };
        writeln!(f, "message     {kind}, {} bytes, patient identifiers: {}", self.bytes, self.patients)?;
        writeln!(f, "arrives     by {} at \"{}\" from client \"{}\"", self.protocol, self.listener, self.client)?;
        for asked in &self.asked {
            writeln!(f, "asked       {}: {}\n              when {}", asked.channel, asked.answer, asked.when.trim())?;
        }
        if let (Some(channel), Some(mode)) = (&self.channel, self.mode) {
            let mode = match mode {
                Mode::Queue => "queue: acknowledged when durable, delivered later",
                Mode::Proxy => "proxy: the sender waits for the primary route's answer",
            };
            writeln!(f, "channel     {channel}\nmode        {mode}")?;
            let keys = match self.keys.as_slice() {
                [] => "none: waits for nobody".into(),
                [key] => key.clone(),
                keys => format!("{} (a barrier between these sequences)", keys.join(", ")),
            };
            writeln!(f, "order key   {keys}")?;
        }
        for route in &self.routes {
            let what = if route.primary { "primary" } else { "secondary" };
            let paused = if route.paused { ", paused" } else { "" };
            writeln!(f, "route       {} ({what}{paused}): {}", route.route, route.targets.join(", "))?;
        }
        if let Some(refused) = &self.refused {
            writeln!(f, "refused     {refused}")?;
        }
        Ok(())
    }
}
