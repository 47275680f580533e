//! The engine's answer as an HL7 acknowledgment; see the module's text for which is sent when.

use crate::{
    engine::ports::Refusal,
    message::{
        MessageId,
        hl7::{
            Header, HeaderKind,
            ack::{self, Ack, AckCode, AckMode},
        },
        mllp,
    },
};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is to be told of one message.
pub(super) enum Verdict<'a> {
    /// Durable.
    Accepted,
    /// Not accepted.
    Refused(&'a Refusal),
    /// The upstream, which does not speak HL7, answered with this HTTP status.
    Status(u16),
}

/// The acknowledgment of `message` (its bytes, or at least its first segment); `None` where the sender wants none.
pub(super) fn acknowledge(message: &[u8], id: Option<MessageId>, verdict: &Verdict<'_>) -> Option<Vec<u8>> {
    let header = Header::parse(message).ok().filter(|h| h.kind == HeaderKind::Msh);
    let mode = header.as_ref().map_or(AckMode::Original, ack::acceptance);
    let status_text;
    let (code, text, error) = match verdict {
        Verdict::Accepted => (AckCode::AA, None, None),
        Verdict::Status(status) if *status < 400 => (AckCode::AA, None, None),
        Verdict::Status(status) => {
            status_text = format!("the receiver answered with HTTP status {status}");
            (AckCode::AE, Some(status_text), None)
        }
        Verdict::Refused(refusal) => {
            let fault = header.as_ref().and_then(Header::fault).filter(|_| matches!(refusal, Refusal::Unreadable(_)));
            if let Some(fault) = &fault {
                (AckCode::AE, Some(fault.text.to_owned()), Some((fault.code, fault.location)))
            } else {
                (code(refusal, header.is_some()), Some(refusal.to_string()), Some((error(refusal, header.is_some()), "")))
            }
        }
    };
    let code = match verdict {
        // The application has spoken: its own acknowledgment first.
        Verdict::Status(_) => wanted(mode, [code, mode.on_receipt(code)]),
        _ => wanted(mode, [mode.on_receipt(code), code]),
    }?;
    let text = text.unwrap_or_default();
    let ack = if code.is_accept() {
        Ack::accepted(code)
    } else {
        let (error, location) = error.unwrap_or((207, ""));
        Ack { error: Some(ack::ErrorDetail { code: error, location }), ..Ack::refused(code, error, &text) }
    };
    Some(ack.build(header.as_ref(), &control_id(id), now_ms()))
}

fn wanted(mode: AckMode, codes: [AckCode; 2]) -> Option<AckCode> {
    codes.into_iter().find(|code| mode.should_send(*code))
}

/// As documented with [`Refusal`].
fn code(refusal: &Refusal, readable: bool) -> AckCode {
    match refusal {
        Refusal::Unreadable(_) if readable => AckCode::AE,
        Refusal::Unreadable(_) | Refusal::NoChannel | Refusal::NotAllowed | Refusal::TooLarge { .. } => AckCode::AR,
        Refusal::RateLimited { .. }
        | Refusal::Busy(..)
        | Refusal::Store
        | Refusal::Upstream(_)
        | Refusal::UpstreamTimeout
        | Refusal::Aborted
        | Refusal::Unsendable(_)
        | Refusal::TooSlow => AckCode::AE,
    }
}

/// HL7 table 0357.
fn error(refusal: &Refusal, readable: bool) -> u16 {
    match refusal {
        Refusal::Unreadable(_) if !readable => 100,
        Refusal::NoChannel => 200,
        _ => 207,
    }
}

/// MSH-10 of an acknowledgment: 20 characters (the length that HL7 v2.5.1 allows), the random part of the transaction's id.
pub(super) fn control_id(id: Option<MessageId>) -> String {
    let id = id.unwrap_or_else(MessageId::now);
    let mut text = String::with_capacity(20);
    for byte in &id.as_bytes()[6..] {
        for half in [byte >> 4, byte & 0xF] {
            text.push(char::from_digit(u32::from(half), 16).unwrap_or('0').to_ascii_uppercase());
        }
    }
    text
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_millis()).ok()).unwrap_or(0)
}

/// Can the upstream's answer be relayed as it is: an HL7 message that does not break the framing?
pub(super) fn relayable(response: &[u8]) -> bool {
    let breaks = memchr::memchr(mllp::START, response).is_some()
        || memchr::memchr_iter(mllp::END, response).any(|at| response.get(at + 1).is_none_or(|b| *b == mllp::CR));
    !breaks && Header::parse(response).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn told(msh_15: &str, msh_16: &str, verdict: &Verdict<'_>) -> Option<String> {
        let request = format!("MSH|^~\\&|A|B|C|D|2024||ADT^A01|7|P|2.5|||{msh_15}|{msh_16}\rPID|1||SECRET\r");
        let ack = acknowledge(request.as_bytes(), None, verdict)?;
        Some(ack::parse_ack(&ack).map(|a| format!("{} {}", a.code, a.control_id)).unwrap())
    }

    #[test]
    fn modes_follow_msh_15_and_16() {
        let refused = Verdict::Refused(&Refusal::NoChannel);
        let busy = Refusal::Busy("busy", Duration::from_secs(1));
        for (accept, application, accepted, rejected) in [
            ("", "", Some("AA 7"), Some("AR 7")),
            ("AL", "NE", Some("CA 7"), Some("CR 7")),
            ("AL", "AL", Some("CA 7"), Some("CR 7")),
            ("NE", "AL", Some("AA 7"), Some("AR 7")),
            ("NE", "", None, None),
            ("ER", "NE", None, Some("CR 7")),
            ("SU", "NE", Some("CA 7"), None),
            ("ER", "AL", Some("AA 7"), Some("CR 7")),
        ] {
            assert_eq!(told(accept, application, &Verdict::Accepted).as_deref(), accepted, "{accept} {application}");
            assert_eq!(told(accept, application, &refused).as_deref(), rejected, "{accept} {application}");
        }
        assert_eq!(told("AL", "NE", &Verdict::Refused(&busy)).as_deref(), Some("CE 7"));
        assert_eq!(told("AL", "AL", &Verdict::Status(201)).as_deref(), Some("AA 7"));
        assert_eq!(told("", "", &Verdict::Status(404)).as_deref(), Some("AE 7"));
    }

    #[test]
    fn an_unreadable_message_is_rejected_without_its_content() {
        let unreadable = Refusal::Unreadable("the message does not begin with an MSH segment".into());
        let ack = acknowledge(b"PID|1||SECRET", None, &Verdict::Refused(&unreadable)).unwrap();
        let info = ack::parse_ack(&ack).unwrap();
        assert_eq!((info.code.as_str(), info.control_id.as_str()), ("AR", ""));
        assert!(!String::from_utf8(ack).unwrap().contains("SECRET"));
    }

    #[test]
    fn an_acknowledgment_has_an_id_of_its_own() {
        let id = MessageId::now();
        assert_eq!(control_id(Some(id)).len(), 20);
        assert_eq!(control_id(Some(id)), control_id(Some(id)));
        assert_ne!(control_id(None), control_id(None));
    }

    #[test]
    fn only_hl7_that_keeps_the_frame_is_relayed() {
        assert!(relayable(b"MSH|^~\\&|A\rMSA|AA|1\r"));
        assert!(relayable(b"MSH|^~\\&|A\rNTE|odd \x1c byte\r"));
        for not in [&b""[..], b"<html>", b"MSH|^~\\&|A\x1c\rMSA", b"MSH|^~\\&|A\x0b", b"MSH|^~\\&|A\x1c"] {
            assert!(!relayable(not));
        }
    }
}
