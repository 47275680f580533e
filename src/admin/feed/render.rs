//! A fact as an event: what happened to which message, and nothing of what is in it. No control id, no patient, no address, no
//! error text: receivers may put content into those.

use crate::{
    channel::Mode,
    engine::fact::{Attempt, Fact, Outcome, Seq, What},
    message::MessageId,
};
use serde::Serialize;
use std::io::Write;
use time::OffsetDateTime;

/// Acknowledgment codes that are shown; anything else may be content.
const ACKS: [&str; 6] = ["AA", "AE", "AR", "CA", "CE", "CR"];

/// The JSON of one event.
#[derive(Serialize)]
struct Event<'a> {
    transaction: MessageId,
    time: String,
    event: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<u32>,
}

/// The kind of event that a fact is; `None`: no event.
fn kind(what: &What) -> Option<&'static str> {
    Some(match what {
        What::Accepted(_) => "accepted",
        What::Refused { .. } => "refused",
        What::Resent { .. } => "resent",
        What::Attempt(attempt) => match attempt.outcome {
            Outcome::Delivered => "delivered",
            Outcome::Retry => "retry",
            Outcome::Parked => "parked",
            Outcome::Failed => "failed",
        },
        What::Requeued { .. } => "requeued",
        What::Discarded { .. } => "discarded",
        What::Responded { .. } => "responded",
        What::Unknown => "unknown",
        What::Step { .. } => "step",
        What::Forwarded => "forwarded",
        What::Repeated { .. } => "repeated",
        What::Held { .. } => "held",
        // The same transaction under another number: nothing happened to the message.
        What::Carried { .. } => return None,
    })
}

/// Appends a fact as an event of the stream; false when it is none.
pub(super) fn event(out: &mut Vec<u8>, seq: Seq, fact: &Fact, channel: &str, client: &str) -> bool {
    let Some(kind) = kind(&fact.what) else { return false };
    let mut event = Event {
        transaction: fact.id,
        time: time(fact.at),
        event: kind,
        channel,
        client,
        mode: None,
        route: None,
        attempt: None,
        status: None,
        ack: None,
        took_ms: None,
    };
    match &fact.what {
        What::Accepted(accepted) => event.mode = Some(if accepted.mode == Mode::Proxy { "proxy" } else { "queue" }),
        What::Attempt(attempt) => attempted(&mut event, attempt),
        What::Requeued { route } | What::Discarded { route } | What::Held { route } => event.route = Some(route),
        What::Responded { status, .. } => event.status = Some(*status),
        _ => {}
    }
    // Writing to memory cannot fail, and neither can JSON of these fields.
    let _ = write!(out, "event: {kind}\ndata: ");
    let _ = serde_json::to_writer(&mut *out, &event);
    // The number last: a reader that lost the end of an event has not seen its number either.
    let _ = write!(out, "\nid: {seq}\n\n");
    true
}

fn attempted<'a>(event: &mut Event<'a>, attempt: &'a Attempt) {
    event.route = Some(&attempt.route);
    event.attempt = Some(attempt.number);
    event.status = (attempt.status != 0).then_some(attempt.status);
    event.ack = ACKS.iter().find(|known| **known == attempt.ack).copied();
    event.took_ms = Some(attempt.took_ms);
}

/// RFC 3339 with milliseconds, UTC.
pub(super) fn time(ms: i64) -> String {
    let Ok(t) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000) else { return String::new() };
    let (date, clock) = (t.date(), t.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fact::BodyRef;

    #[test]
    fn an_event_is_three_lines_and_holds_nothing_that_a_receiver_said() {
        let attempt = Attempt {
            route: "ehr".into(),
            number: 3,
            target: "10.0.0.1:2575".into(),
            took_ms: 12,
            outcome: Outcome::Parked,
            status: 0,
            ack: "CANARY\n".into(),
            error: "CANARY".into(),
            response: BodyRef::None,
            response_len: 0,
            inside: 0,
        };
        let mut fact = Fact { id: MessageId::now(), home: 7, at: 1_769_904_000_007, what: What::Attempt(Box::new(attempt)) };
        let mut out = Vec::new();
        assert!(event(&mut out, 9, &fact, "lab.results", "lab"));
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines[3]), ("event: parked", "id: 9", ""));
        let json: serde_json::Value = serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(json["time"], "2026-02-01T00:00:00.007Z");
        assert_eq!((&json["route"], &json["attempt"]), (&"ehr".into(), &3.into()));
        assert!(!text.contains("CANARY") && !text.contains("10.0.0.1") && json.get("ack").is_none());

        let (headers, body) = (vec![], BodyRef::None);
        fact.what = What::Responded { status: 404, headers, body, len: 0 };
        let mut out = Vec::new();
        assert!(event(&mut out, 10, &fact, "", ""));
        assert!(String::from_utf8(out).unwrap().contains("\"event\":\"responded\",\"status\":404"));
    }
}
