//! A message has one accept fact in a log. With RabbitMQ two come to the writer now and then, one written here and one taken from another
//! node: neither could know of the other when it was queued. The writer sees them one after the other, and drops the second.

use super::codec::kind;
use super::core::Core;
use super::failure::{self, Failure};
use super::queue::{Queued, Record};
use crate::message::MessageId;
use std::collections::HashSet;

/// Messages of the group that is being written.
#[derive(Default)]
pub struct Once(HashSet<MessageId>);

impl Once {
    /// A new group begins.
    pub fn begin(&mut self) {
        self.0.clear();
    }

    /// Looks through a part of a group. An accept fact of this node's own that is not the first loses what it would write and is told as
    /// written: the first is durable with it. One from another node breaks its round there, which is applied again and then knows; what
    /// comes before it in the round is written.
    pub fn look_through(&mut self, core: &Core, failure: &mut Failure, part: Vec<Queued>) -> Vec<Queued> {
        if !core.recents.is_on() {
            return part;
        }
        let mut broken = None;
        let mut left: Vec<Queued> = Vec::with_capacity(part.len());
        let mut refused: Vec<Queued> = Vec::new();
        for mut record in part {
            let round = record.round();
            // What is not written is no first one.
            if broken.is_some() && round == broken {
                refused.push(record);
                continue;
            }
            if let Some(id) = accepts(&record)
                && (core.recents.get(id).is_some() || !self.0.insert(id))
            {
                match round {
                    Some(round) => {
                        failure.break_round(round);
                        broken = Some(round);
                        refused.push(record);
                        continue;
                    }
                    None if record.once => {
                        (record.fact, record.body, record.pieces) = (None, None, Box::default());
                        record.holds_transient = false;
                    }
                    None => {}
                }
            }
            left.push(record);
        }
        failure::refuse_part(refused);
        left
    }
}

fn accepts(record: &Record) -> Option<MessageId> {
    let fact = record.fact.as_ref().filter(|fact| fact.kind == kind::ACCEPTED)?;
    Some(MessageId(uuid::Uuid::from_bytes(fact.id)))
}
