//! Ordering keys: messages with a common key reach a route in the order in which they arrived.

use super::rule::{EvalError, KeyExpression, RuleError, Subject};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// More keys than this are not kept apart; the message is ordered by its feed.
pub const MAX_KEYS: usize = 64;

/// How a channel's messages are ordered.
#[derive(Clone, Debug)]
pub enum Order {
    /// By listener and client.
    Feed,
    /// By patient; a message about several is a barrier between their sequences. Without a patient, by feed.
    Patient,
    /// Not at all.
    None,
    /// By the string or strings that an expression gives; where it gives none, by feed.
    Expression(KeyExpression),
}

impl Order {
    /// From `feed`, `patient`, `none` or a CEL expression.
    pub fn compile(text: &str) -> Result<Self, RuleError> {
        match text {
            "feed" => Ok(Self::Feed),
            "patient" => Ok(Self::Patient),
            "none" => Ok(Self::None),
            other => KeyExpression::compile(other).map(Self::Expression).map_err(|mut error| {
                if other.bytes().all(|b| b.is_ascii_alphabetic()) {
                    error.message =
                        format!("`{other}` is no order: feed, patient, none, or a CEL expression ({})", error.message);
                }
                error
            }),
        }
    }

    /// Whether a message may have several keys.
    pub fn may_give_several(&self) -> bool {
        matches!(self, Self::Patient | Self::Expression(_))
    }

    /// The hashes of a message's keys, each once; empty: it waits for nobody. Where an expression has no value, those of the feed.
    pub fn keys(&self, subject: &Subject<'_>) -> Vec<u64> {
        self.try_keys(subject).unwrap_or_else(|_| feed(subject))
    }

    /// As [`Order::keys`], telling when an expression has no value.
    pub fn try_keys(&self, subject: &Subject<'_>) -> Result<Vec<u64>, EvalError> {
        let mut keys = Vec::new();
        let mut take = |kind: &str, key: &str| {
            let hash = hash(&[kind, key]);
            if !keys.contains(&hash) && keys.len() <= MAX_KEYS {
                keys.push(hash);
            }
        };
        match self {
            Self::Feed => {}
            Self::None => return Ok(keys),
            Self::Patient => subject.ordering_patients().iter().for_each(|id| take("patient", id)),
            Self::Expression(expression) => expression.each(subject, |key| take("key", key))?,
        }
        Ok(if keys.is_empty() || keys.len() > MAX_KEYS { feed(subject) } else { keys })
    }
}

fn feed(subject: &Subject<'_>) -> Vec<u64> {
    vec![hash(&["feed", subject.listener, subject.client])]
}

/// xxh3-64 of the parts, each hashed with the hash of those before it as seed, so that no two lists run into each other.
fn hash(parts: &[&str]) -> u64 {
    parts.iter().fold(0, |seed, part| xxh3_64_with_seed(part.as_bytes(), seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::hl7::Message;

    fn keys(order: &str, body: &str) -> Vec<u64> {
        let text = format!("MSH|^~\\&|A|B|C|D|||ADT^A40|1|P|2.5\r{body}");
        let message = Message::new(text.as_bytes()).unwrap();
        let subject = Subject { listener: "l", client: "c", hl7: Some(&message), ..Subject::EMPTY };
        Order::compile(order).unwrap().keys(&subject)
    }

    #[test]
    fn feed_is_one_key_for_listener_and_client() {
        assert_eq!(keys("feed", ""), keys("feed", "PID|1||2\r"));
        let other = Subject { listener: "lc", client: "", ..Subject::EMPTY };
        assert_ne!(Order::Feed.keys(&other), keys("feed", ""));
        assert!(keys("none", "").is_empty());
    }

    #[test]
    fn patient_keys_meet_in_a_merge() {
        let (one, two) = (keys("patient", "PID|1||1\r"), keys("patient", "PID|1||2\r"));
        let merge = keys("patient", "PID|1||1\rMRG|2\r");
        assert_eq!(merge, [one, two].concat());
        assert_eq!(keys("patient", "EVN\r"), keys("feed", ""));
    }

    #[test]
    fn expressions_give_one_key_or_several() {
        assert_eq!(keys("hl7(\"PID-18\")", "PID|1\r"), keys("feed", ""));
        let account = keys("hl7(\"PID-18.1\")", "PID|||||||||||||||||7^x\r");
        assert_eq!(account.len(), 1);
        assert_eq!(keys("[hl7(\"PID-18.1\"), hl7(\"PID-1\")]", "PID|||||||||||||||||7^x\r"), account);
        assert_eq!(keys("[hl7(\"PID-18.1\").trim()]", "PID|||||||||||||||||7 ^x\r"), account);
        assert_eq!(keys("patients()", "PID|1||1~2~1\r").len(), 2);
        assert_eq!(keys("string(int(hl7(\"PID-1\")))", "PID|x\r"), keys("feed", ""));
    }

    #[test]
    fn says_what_an_order_is() {
        let error = Order::compile("pateint").unwrap_err();
        assert!(error.message.contains("feed, patient, none"), "{error}");
        assert!(Order::compile("size > 3").unwrap_err().message.contains("string"));
    }
}
