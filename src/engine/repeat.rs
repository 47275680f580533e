//! A sender's resend: acknowledged again, and where the first was proxied, answered again as the first was.

use super::{
    Engine,
    fact::{BodyRef, Fact, Seq, What},
    ports::{Answer, Append, Ended, Refusal, Response},
    resend::Seen,
};
use crate::{channel::Mode, message::MessageId, telemetry::engine as events};
use futures_util::{StreamExt, stream};
use std::time::{Duration, Instant};

/// How long a resend waits for the first to become durable, or to be answered.
const WAIT: Duration = Duration::from_secs(20);
/// How often a message may turn out to be the repetition of one that failed, before the sender is asked to come again.
const TURNS: usize = 4;

/// An arriving message, as far as the window is concerned.
pub(super) struct Arrived<'a> {
    pub key: u64,
    pub body_hash: u128,
    pub id: MessageId,
    pub at_ms: i64,
    pub remote: &'a str,
    /// How the channel takes it now.
    pub mode: Mode,
}

/// Whether a message is taken.
pub(super) enum Known {
    /// As a new one; `reused`: its control id came with another body before.
    New { reused: bool },
    /// It is a repetition (or cannot be told from one yet): this is the answer.
    Answered(Answer),
}

impl Engine {
    /// Looks a message up in the resend window and, when it is new, notes it there as under way.
    pub(super) async fn known(&self, message: Arrived<'_>, metrics: Option<&events::ChannelMetrics>) -> Known {
        for _ in 0..TURNS {
            let (first, seq) = match self.parts.resend.check(message.key, message.body_hash, message.id, message.at_ms) {
                Seen::New => return Known::New { reused: false },
                Seen::Reused => return Known::New { reused: true },
                Seen::Durable(first, seq) => (first, seq),
                Seen::UnderWay(first) => match self.wait_durable(message.key, first).await {
                    Some(seq) => (first, seq),
                    None => break,
                },
            };
            if let Some(answer) = self.again(first, seq, message.mode).await {
                let what = What::Resent { remote: message.remote.to_owned() };
                let fact = Fact { id: first, home: seq, at: self.parts.clock.now_ms(), what };
                self.parts.log.append_later(Append { fact, body: None, deliver: false });
                if let Some(channel) = metrics {
                    events::Resent { channel }.emit();
                }
                return Known::Answered(answer);
            }
            // The sender was told that the first failed: sent again, it is meant.
            self.parts.resend.failed(message.key, first);
        }
        let refusal = Refusal::Busy("the same message is still being stored", Duration::from_secs(1));
        Known::Answered(Answer::Refused { id: None, refusal })
    }

    async fn wait_durable(&self, key: u64, first: MessageId) -> Option<Seq> {
        let until = Instant::now() + WAIT;
        while Instant::now() < until {
            match self.parts.resend.state(key, first) {
                Seen::Durable(_, seq) => return Some(seq),
                Seen::UnderWay(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                Seen::New | Seen::Reused => return None,
            }
        }
        None
    }

    /// What the sender of a repetition is told: of a proxied one the response that is stored; else, or where it is stored no
    /// more, that the message is here. `None`: the first was proxied and did not succeed.
    async fn again(&self, first: MessageId, home: Seq, mode: Mode) -> Option<Answer> {
        let accepted = Answer::Accepted { id: first, resend: true };
        if mode != Mode::Proxy {
            return Some(accepted);
        }
        let (seq, status, headers, body, len) = match self.parts.log.ended(home).await {
            Ok(Ended::Responded { status, .. }) if !(200..300).contains(&status) => return None,
            Ok(Ended::Unknown) => return None,
            Ok(Ended::Responded { seq, status, headers, body, len }) => (seq, status, headers, body, len),
            Ok(Ended::Not) | Err(_) => return Some(accepted),
        };
        if body == BodyRef::None && len > 0 {
            return Some(accepted);
        }
        let mut stored = self.parts.log.read(seq, &body);
        let body = match stored.next().await {
            None if len > 0 => return Some(accepted),
            Some(Err(_)) => return Some(accepted),
            None => stream::empty().boxed(),
            piece @ Some(Ok(_)) => stream::iter(piece).chain(stored).boxed(),
        };
        Some(Answer::Response { id: first, response: Response { status, headers, body, len: Some(len) }, resend: true })
    }
}
