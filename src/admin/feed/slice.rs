//! Slices: a stretch of the log, rendered once, and what of it belongs to each resource. Bytes are shared by all who are sent
//! them.

use super::{
    names::Names,
    render,
    resource::Resource,
    source::{AlertEvent, Facts, Journal},
};
use crate::engine::fact::{Seq, What};
use bytes::Bytes;
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

/// Bytes of the stream with the places where events end.
#[derive(Debug)]
pub(super) struct Batch {
    pub bytes: Bytes,
    /// End of each event in `bytes`, and its number.
    ends: Vec<(u32, Seq)>,
    /// What a reader has that was sent nothing of this.
    before: Seq,
}

impl Batch {
    /// Bytes that are no events: a reader that has them has what it had before.
    pub fn plain(bytes: impl Into<Bytes>, at: Seq) -> Rc<Self> {
        let bytes = bytes.into();
        let ends = vec![(bytes.len() as u32, at)];
        Rc::new(Self { bytes, ends, before: at })
    }

    /// Where the first event above `seq` begins; the length when there is none.
    pub fn offset_after(&self, seq: Seq) -> usize {
        let gone = self.ends.partition_point(|(_, s)| *s <= seq);
        gone.checked_sub(1).map_or(0, |last| self.ends[last].0 as usize)
    }

    /// For a reader that was sent `from` bytes: where the event ends that was begun, and the number that it then has.
    pub fn boundary(&self, from: usize) -> (usize, Seq) {
        if from == 0 {
            return (0, self.before);
        }
        let found = self.ends.partition_point(|(end, _)| (*end as usize) < from);
        self.ends.get(found).map_or((self.bytes.len(), self.before), |(end, seq)| (*end as usize, *seq))
    }
}

struct Event {
    seq: Seq,
    channel: Arc<str>,
    client: Arc<str>,
    start: u32,
    end: u32,
}

/// A stretch of the log: all events with numbers above `after` and up to `to`.
pub(super) struct Slice {
    pub after: Seq,
    pub to: Seq,
    bytes: Bytes,
    events: Vec<Event>,
    batches: RefCell<HashMap<Resource, Option<Rc<Batch>>>>,
}

impl Slice {
    /// Renders facts. `wanted` says whether anybody wants those of a channel and client; others are passed over.
    pub fn of_facts(
        piece: Facts,
        names: &mut Names,
        journal: &dyn Journal,
        wanted: impl Fn(&Arc<str>, &Arc<str>) -> bool,
    ) -> Self {
        let mut out = Vec::with_capacity(piece.facts.len() * 256);
        let mut events = Vec::with_capacity(piece.facts.len());
        for (seq, fact) in &piece.facts {
            let (channel, client) = match &fact.what {
                What::Accepted(accepted) => names.learn(*seq, &accepted.channel, &accepted.envelope.client),
                What::Refused { envelope, .. } => (names.name(""), names.name(&envelope.client)),
                _ => names.of(fact.home, journal),
            };
            if !wanted(&channel, &client) {
                continue;
            }
            let start = out.len() as u32;
            if render::event(&mut out, *seq, fact, &channel, &client) {
                events.push(Event { seq: *seq, channel, client, start, end: out.len() as u32 });
            }
        }
        Self { after: piece.from - 1, to: piece.at, bytes: out.into(), events, batches: RefCell::default() }
    }

    /// Renders alerts.
    pub fn of_alerts(after: u64, alerts: &[AlertEvent]) -> Self {
        let mut out = String::new();
        let mut events = Vec::new();
        let none: Arc<str> = "".into();
        for alert in alerts {
            let start = out.len() as u32;
            let one_line = |text: &str| text.replace(['\r', '\n'], " ");
            out += &format!("event: {}\ndata: {}\nid: {}\n\n", one_line(&alert.event), one_line(&alert.json), alert.id);
            events.push(Event { seq: alert.id, channel: none.clone(), client: none.clone(), start, end: out.len() as u32 });
        }
        let to = alerts.last().map_or(after, |a| a.id);
        Self { after, to, bytes: out.into(), events, batches: RefCell::default() }
    }

    /// Is what comes after `seq` in it, or is it known that nothing does?
    pub fn covers(&self, seq: Seq) -> bool {
        self.after <= seq && seq < self.to
    }

    /// How many events it holds.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Channels and clients that occur in it, each once.
    pub fn parties(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let once = |pick: fn(&Event) -> &Arc<str>| {
            let mut all: Vec<Arc<str>> = self.events.iter().map(|e| pick(e).clone()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        (once(|e| &e.channel), once(|e| &e.client))
    }

    /// What of it belongs to a resource; `None`: nothing.
    pub fn batch(&self, resource: &Resource) -> Option<Rc<Batch>> {
        if let Some(made) = self.batches.borrow().get(resource) {
            return made.clone();
        }
        let made = self.make(resource);
        self.batches.borrow_mut().insert(resource.clone(), made.clone());
        made
    }

    fn make(&self, resource: &Resource) -> Option<Rc<Batch>> {
        let before = self.after;
        let batch = match resource {
            Resource::Transactions | Resource::Domain(_) | Resource::Alerts => {
                let ends = self.events.iter().map(|e| (e.end, e.seq)).collect();
                Batch { bytes: self.bytes.clone(), ends, before }
            }
            Resource::Channel(name) => self.part(|e| e.channel == *name),
            Resource::Client(name) => self.part(|e| e.client == *name),
        };
        (!batch.ends.is_empty()).then(|| Rc::new(batch))
    }

    fn part(&self, belongs: impl Fn(&Event) -> bool) -> Batch {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for event in self.events.iter().filter(|e| belongs(e)) {
            bytes.extend_from_slice(&self.bytes[event.start as usize..event.end as usize]);
            ends.push((bytes.len() as u32, event.seq));
        }
        Batch { bytes: bytes.into(), ends, before: self.after }
    }
}

/// Slices lately made for those who come back: readers that were cut off together ask for the same.
#[derive(Default)]
pub(super) struct Cache(Vec<Rc<Slice>>);

/// Slices kept.
const KEPT: usize = 16;

impl Cache {
    /// One that goes on from `seq`.
    pub fn find(&self, seq: Seq) -> Option<Rc<Slice>> {
        self.0.iter().find(|s| s.covers(seq)).cloned()
    }

    pub fn keep(&mut self, slice: Rc<Slice>) {
        if self.0.len() >= KEPT {
            self.0.remove(0);
        }
        self.0.push(slice);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alerts() -> Slice {
        let alert = |id| AlertEvent { id, event: "raised".into(), json: "{}".into() };
        Slice::of_alerts(4, &[alert(5), alert(7), alert(9)])
    }

    #[test]
    fn readers_go_on_where_they_were() {
        let batch = alerts().batch(&Resource::Alerts).unwrap();
        let one = "event: raised\ndata: {}\nid: 5\n\n".len();
        assert_eq!(batch.bytes.len(), 3 * one);
        for (seq, offset) in [(0, 0), (4, 0), (5, one), (6, one), (7, 2 * one), (8, 2 * one), (9, 3 * one), (10, 3 * one)] {
            assert_eq!(batch.offset_after(seq), offset, "{seq}");
        }
        // Nothing sent; at an event's end; within one.
        for (from, expected) in [(0, (0, 4)), (one, (one, 5)), (one + 1, (2 * one, 7)), (3 * one, (3 * one, 9))] {
            assert_eq!(batch.boundary(from), expected, "{from}");
        }
    }

    #[test]
    fn a_slice_covers_what_comes_after() {
        let slice = alerts();
        assert!(slice.covers(4) && slice.covers(8));
        assert!(!slice.covers(3) && !slice.covers(9));
    }
}
