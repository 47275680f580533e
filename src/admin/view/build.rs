//! From a transaction's facts to its view.

use super::{AttemptView, BodyView, Event, Extra, Orchestration, Problem, Request, Response, Route, RouteRequest, Transaction};
use crate::{
    admin::{
        filter::{Representation, timestamp},
        records::{Detail, Records},
    },
    channel::Storage,
    engine::fact::{Attempt, BodyRef, Fact, Outcome, Seq, Status, What},
    message::{Envelope, MessageId, envelope::HeaderBytes},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use std::{collections::BTreeMap, sync::Arc};

/// Builds the view. Bodies are read with [`Representation::Full`], at most `cap` bytes of each.
pub(in crate::admin) async fn build(
    id: MessageId,
    detail: &Detail,
    children: Option<Vec<MessageId>>,
    representation: Representation,
    records: &Arc<dyn Records>,
    cap: usize,
) -> Transaction {
    let mut view = Transaction { id: id.to_string(), status: detail.status.as_str().into(), ..Transaction::default() };
    view.was_rerun = children.as_ref().map(|c| !c.is_empty());
    view.children = children.map(|c| c.iter().map(ToString::to_string).collect());
    let details = representation != Representation::Simple;
    let accepted = detail.accepted().map(|(_, a)| a);
    // The channel's storage mode says how much of a message may be seen, however much the log still holds.
    let keys = !accepted.is_some_and(|a| matches!(a.storage, Storage::Metadata | Storage::None));
    if let Some(envelope) = detail.envelope() {
        of_envelope(&mut view, envelope, details, keys);
    }
    let primary = accepted.and_then(|a| a.routes.first()).map(String::as_str);
    view.channel = accepted.map(|a| a.channel.clone());
    view.hie.mode = accepted.map(|a| format!("{:?}", a.mode).to_lowercase());
    view.can_rerun = accepted.is_some_and(|a| a.body != BodyRef::None || a.envelope.body_len == 0);

    let mut last: BTreeMap<&str, (Seq, i64, &Attempt)> = BTreeMap::new();
    let mut reader = Reader { records, cap: (representation == Representation::Full).then_some(cap), id };
    if let Some((seq, body, len)) = detail.request_body() {
        let (text, body) = reader.read("request", seq, body, len, None).await;
        view.request.body = text;
        view.hie.bodies.insert("request".into(), body);
    }
    for (seq, fact) in &detail.facts {
        match &fact.what {
            What::Attempt(attempt) => {
                last.insert(&attempt.route, (*seq, fact.at, attempt));
                if details {
                    view.hie.attempts.push(attempt_view(id, fact.at, attempt));
                }
            }
            What::Responded { status, headers, body, len } => {
                let (text, body) = reader.read("response", *seq, body, *len, None).await;
                view.hie.bodies.insert("response".into(), body);
                let headers = if details && keys { header_map(headers) } else { BTreeMap::new() };
                view.response = Some(Response { status: *status, headers, body: text, timestamp: timestamp(fact.at) });
            }
            What::Resent { .. } => view.hie.resends += 1,
            What::Repeated { of } => view.hie.repeats = Some(of.to_string()),
            What::Refused { reason, .. } => view.error = Some(Problem { message: reason.clone(), ..Problem::default() }),
            What::Step { name, outcome, .. } if details => view.orchestrations.push(Orchestration {
                name: name.clone(),
                group: view.channel.clone().unwrap_or_default(),
                timestamp: timestamp(fact.at),
                outcome: outcome.clone(),
            }),
            other if details => view.hie.events.extend(event(fact, other)),
            _ => {}
        }
    }
    if let Some((seq, at, attempt)) = primary.and_then(|p| last.get(p)).copied() {
        view.auto_retry_attempt = Some(attempt.number);
        view.auto_retry = detail.status == Status::Processing && attempt.outcome == Outcome::Retry;
        view.error = problem(attempt).or(view.error);
        if view.response.is_none() {
            view.response = reader.response(seq, at, attempt, "response", &mut view.hie.bodies).await;
        }
    }
    if details {
        for name in accepted.iter().flat_map(|a| a.routes.iter().skip(1)) {
            view.routes.push(reader.route(name, last.get(name.as_str()).copied(), &mut view.hie.bodies).await);
        }
    }
    view
}

fn of_envelope(view: &mut Transaction, envelope: &Envelope, details: bool, keys: bool) {
    view.client = envelope.client.to_string();
    view.client_ip = envelope.remote.rsplit_once(':').map_or("", |(ip, _)| ip.trim_matches(['[', ']'])).to_owned();
    view.parent = envelope.parent.map(|p| p.to_string());
    view.request.timestamp = timestamp(envelope.received_ms);
    if let Some(http) = envelope.http.as_ref().filter(|_| keys) {
        let (host, port) = authority(http.header("host").unwrap_or_default());
        view.request = Request {
            host,
            port,
            path: http.path.clone(),
            querystring: http.query.clone(),
            method: http.method.clone(),
            headers: if details { header_map(&http.headers) } else { BTreeMap::new() },
            timestamp: std::mem::take(&mut view.request.timestamp),
            body: None,
        };
    }
    view.hie = Extra {
        protocol: envelope.protocol.as_str().into(),
        listener: envelope.listener.to_string(),
        remote: envelope.remote.clone(),
        r#type: envelope.kind.clone(),
        control_id: envelope.control_id.clone().filter(|_| keys),
        control_id_reused: envelope.control_id_reused,
        patients: if details && keys { envelope.patients.clone() } else { Vec::new() },
        content_type: envelope.content_type.clone(),
        ..Extra::default()
    };
}

fn authority(host: &str) -> (String, String) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name.into(), port.into()),
        _ => (host.into(), String::new()),
    }
}

fn header_map(headers: &[(String, HeaderBytes)]) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(&value.0);
        map.entry(name.clone())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    map
}

fn attempt_view(id: MessageId, at: i64, attempt: &Attempt) -> AttemptView {
    let stored = attempt.response != BodyRef::None;
    AttemptView {
        route: attempt.route.clone(),
        attempt: attempt.number,
        target: attempt.target.clone(),
        timestamp: timestamp(at),
        took_ms: attempt.took_ms,
        outcome: format!("{:?}", attempt.outcome),
        status: attempt.status,
        ack: attempt.ack.clone(),
        error: attempt.error.clone(),
        length: attempt.response_len,
        href: stored.then(|| format!("{}?attempt={}", href(id, &attempt.route), attempt.number)),
    }
}

fn event(fact: &Fact, what: &What) -> Option<Event> {
    let (what, route) = match what {
        What::Requeued { route } => ("requeued", route.as_str()),
        What::Discarded { route } => ("discarded", route.as_str()),
        What::Unknown => ("interrupted while with the upstream", ""),
        What::Carried { .. } => ("carried on into a younger segment", ""),
        What::Forwarded => ("handed on to the broker", ""),
        What::Held { route } => ("taken out of the broker's queue to wait in the ledger", route.as_str()),
        _ => return None,
    };
    Some(Event { timestamp: timestamp(fact.at), what: what.into(), route: route.into() })
}

fn problem(attempt: &Attempt) -> Option<Problem> {
    let failed = attempt.outcome != Outcome::Delivered && !attempt.error.is_empty();
    failed.then(|| Problem { message: attempt.error.clone(), stack: String::new() })
}

fn href(id: MessageId, part: &str) -> String {
    let mut out = format!("/transactions/{id}/body/");
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

struct Reader<'a> {
    records: &'a Arc<dyn Records>,
    cap: Option<usize>,
    id: MessageId,
}

impl Reader<'_> {
    async fn route(&mut self, name: &str, last: Option<(Seq, i64, &Attempt)>, bodies: &mut BTreeMap<String, BodyView>) -> Route {
        let mut route = Route { name: name.into(), state: "Waiting".into(), ..Route::default() };
        if let Some((seq, at, attempt)) = last {
            route.state = format!("{:?}", attempt.outcome);
            route.request = RouteRequest { host: attempt.target.clone(), timestamp: timestamp(at - i64::from(attempt.took_ms)) };
            route.error = problem(attempt);
            route.response = self.response(seq, at, attempt, name, bodies).await;
        }
        route
    }

    async fn response(
        &mut self,
        seq: Seq,
        at: i64,
        attempt: &Attempt,
        part: &str,
        bodies: &mut BTreeMap<String, BodyView>,
    ) -> Option<Response> {
        if attempt.status == 0 && attempt.ack.is_empty() && attempt.response_len == 0 && attempt.outcome != Outcome::Delivered {
            return None;
        }
        let (text, body) = self.read(part, seq, &attempt.response, attempt.response_len, Some(attempt.number)).await;
        bodies.insert(part.into(), body);
        Some(Response { status: attempt.status, headers: BTreeMap::new(), body: text, timestamp: timestamp(at) })
    }

    /// The body's beginning as text, and what to know about it.
    async fn read(&mut self, part: &str, seq: Seq, body: &BodyRef, len: u64, attempt: Option<u32>) -> (Option<String>, BodyView) {
        let stored = *body != BodyRef::None;
        let query = attempt.map(|n| format!("?attempt={n}")).unwrap_or_default();
        let mut view =
            BodyView { length: len, stored, href: stored.then(|| href(self.id, part) + &query), ..BodyView::default() };
        let Some(cap) = self.cap.filter(|_| stored) else { return (None, view) };
        let mut stream = self.records.read(seq, body);
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            let Ok(piece) = piece else { return (None, view) };
            let room = cap - bytes.len();
            view.truncated = piece.len() > room;
            bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            if view.truncated {
                break;
            }
        }
        let (text, encoding) = as_text(bytes, view.truncated);
        view.encoding = Some(encoding.into());
        (Some(text), view)
    }
}

/// UTF-8 as it is (a character cut in two at the end left out), all else in base64.
fn as_text(bytes: Vec<u8>, cut: bool) -> (String, &'static str) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, "utf-8"),
        Err(e) => {
            let whole = e.utf8_error().valid_up_to();
            let only_cut = cut && e.utf8_error().error_len().is_none();
            let mut bytes = e.into_bytes();
            if only_cut {
                bytes.truncate(whole);
                return (String::from_utf8(bytes).unwrap_or_default(), "utf-8");
            }
            (STANDARD.encode(bytes), "base64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_the_rest_is_base64() {
        assert_eq!(as_text("Müller".into(), false), ("Müller".into(), "utf-8"));
        assert_eq!(as_text("Mü".as_bytes()[..2].into(), true), ("M".into(), "utf-8"));
        assert_eq!(as_text(vec![0x4d, 0xfc, 0x6c], false), ("Tfxs".into(), "base64"));
        assert_eq!(as_text(vec![0x4d, 0xfc, 0x6c], true), ("Tfxs".into(), "base64"));
    }

    #[test]
    fn a_route_s_name_cannot_leave_its_place_in_the_path() {
        assert!(href(MessageId::now(), "a/../b c").ends_with("/body/a%2F..%2Fb%20c"));
    }
}
