//! What a receiver's answer leads to: the acknowledgment rules of DESIGN.md §3 and their overrides per route. Pure.

use super::ports::{ReplyKind, SendError};
use crate::channel::{AckAction, Route};

/// A judged answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Deliver, retry or park.
    pub action: AckAction,
    /// HTTP status; 0 when there was none.
    pub status: u16,
    /// Acknowledgment code; empty when there was none.
    pub ack: String,
    /// Why it did not succeed; empty when it did. Without content.
    pub error: String,
    /// The receiver could not be reached at all: the whole route waits, not only this key.
    pub unreachable: bool,
}

/// Judges an answer or its absence by the route's rules.
pub fn judge(route: &Route, answer: Result<&ReplyKind, &SendError>) -> Judgement {
    match answer {
        Ok(ReplyKind::Written) => done(0, String::new()),
        Ok(ReplyKind::Http { status, .. }) => http(route, *status),
        Ok(ReplyKind::Ack { code }) => ack(route, code),
        Err(error @ SendError::Unsendable { .. }) => {
            Judgement { action: AckAction::Park, status: 0, ack: String::new(), error: error.to_string(), unreachable: false }
        }
        Err(error) => {
            let key = if matches!(error, SendError::Timeout { .. }) { "timeout" } else { "broken" };
            let action = route.on.get(key).copied().unwrap_or(AckAction::Retry);
            let unreachable = matches!(error, SendError::NotSent { .. }) && action == AckAction::Retry;
            Judgement { action, status: 0, ack: String::new(), error: error.to_string(), unreachable }
        }
    }
}

fn done(status: u16, ack: String) -> Judgement {
    Judgement { action: AckAction::Deliver, status, ack, error: String::new(), unreachable: false }
}

fn http(route: &Route, status: u16) -> Judgement {
    let class = format!("{}xx", status / 100);
    let action = route.on.get(&status.to_string()).or_else(|| route.on.get(&class)).copied().unwrap_or(match status {
        200..=299 => AckAction::Deliver,
        // The request never had its turn: too early, too slow, too many.
        408 | 425 | 429 => AckAction::Retry,
        // A redirect is a wrong address in the configuration: it does not get better by itself.
        300..=499 => AckAction::Park,
        _ => AckAction::Retry,
    });
    if action == AckAction::Deliver {
        return done(status, String::new());
    }
    Judgement { action, status, ack: String::new(), error: format!("the receiver answered {status}"), unreachable: false }
}

fn ack(route: &Route, code: &str) -> Judgement {
    let action = route.on.get(code).copied().unwrap_or(match code {
        "AA" | "CA" => AckAction::Deliver,
        // The content is wrong: the same bytes will be refused again.
        "AE" | "CE" => AckAction::Park,
        // The receiver is unwell.
        _ => AckAction::Retry,
    });
    if action == AckAction::Deliver {
        return done(0, code.to_owned());
    }
    Judgement { action, status: 0, ack: code.to_owned(), error: format!("the receiver answered {code}"), unreachable: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn route(on: &str) -> Route {
        toml::from_str(&format!("name = \"r\"\nmllp = [\"h:1\"]\n{on}")).expect("a route")
    }

    #[test]
    fn acknowledgments_lead_where_the_design_says() {
        let r = route("");
        for (code, action) in [
            ("AA", AckAction::Deliver),
            ("CA", AckAction::Deliver),
            ("AE", AckAction::Park),
            ("CE", AckAction::Park),
            ("AR", AckAction::Retry),
            ("CR", AckAction::Retry),
            ("", AckAction::Retry),
        ] {
            assert_eq!(judge(&r, Ok(&ReplyKind::Ack { code: code.into() })).action, action, "{code}");
        }
        for (status, action) in [
            (200, AckAction::Deliver),
            (299, AckAction::Deliver),
            (302, AckAction::Park),
            (400, AckAction::Park),
            (408, AckAction::Retry),
            (429, AckAction::Retry),
            (500, AckAction::Retry),
            (503, AckAction::Retry),
        ] {
            assert_eq!(judge(&r, Ok(&ReplyKind::Http { status, headers: vec![] })).action, action, "{status}");
        }
        assert_eq!(judge(&r, Ok(&ReplyKind::Written)).action, AckAction::Deliver);
        let silence = SendError::Timeout { target: "h:1".into(), after: Duration::from_secs(1) };
        assert_eq!(judge(&r, Err(&silence)).action, AckAction::Retry);
        let never = SendError::Unsendable { target: "h:1".into(), reason: "a frame end in the body".into() };
        assert_eq!(judge(&r, Err(&never)).action, AckAction::Park);
        assert!(!judge(&r, Err(&never)).unreachable);
        assert!(judge(&r, Err(&SendError::NotSent { target: "h:1".into(), reason: "refused".into() })).unreachable);
    }

    #[test]
    fn each_can_be_overridden() {
        let r = route("on = { AE = \"retry\", AR = \"park\", 404 = \"deliver\", 4xx = \"retry\", timeout = \"park\" }");
        assert_eq!(judge(&r, Ok(&ReplyKind::Ack { code: "AE".into() })).action, AckAction::Retry);
        assert_eq!(judge(&r, Ok(&ReplyKind::Ack { code: "AR".into() })).action, AckAction::Park);
        assert_eq!(judge(&r, Ok(&ReplyKind::Http { status: 404, headers: vec![] })).action, AckAction::Deliver);
        assert_eq!(judge(&r, Ok(&ReplyKind::Http { status: 400, headers: vec![] })).action, AckAction::Retry);
        let silence = SendError::Timeout { target: "h:1".into(), after: Duration::from_secs(1) };
        assert_eq!(judge(&r, Err(&silence)).action, AckAction::Park);
    }
}
