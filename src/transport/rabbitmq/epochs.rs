//! The change of a domain's partitions, as one node sees it: how far it is itself, how far the others are, what has run empty. Pure: time is
//! an argument. The reasons are in docs/design.md ("The number of partitions is changed under load").
//!
//! [`Stage::Known`] (accepts into the old queues as before) → [`Stage::Quiet`] (publishes to no inbox, and nothing is under way) →
//! [`Stage::Open`] (accepts into the new ones; old queues are worked off) → [`Stage::Closed`] (works on no old queue any more).

use crate::config::{Layout, Past};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// A node that has told nothing for so long publishes nothing any more; longer than its lease.
const SILENT: Duration = Duration::from_secs(5);
/// Own beats that have not come back yet; more are not waited for.
const BEATS: usize = 1024;

/// How far a node is with the latest layout that it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum Stage {
    /// Of a release that knows no layouts.
    #[default]
    Unaware,
    /// Publishes nothing before it has read what the others told.
    Out,
    /// It knows the layout, and goes on with the one before.
    Known,
    /// It publishes into no inbox, and what it had published is confirmed or given up.
    Quiet,
    /// It accepts into the new inboxes.
    Open,
    /// It works on no queue of the epoch before.
    Closed,
}

impl Stage {
    const ALL: [Self; 6] = [Self::Unaware, Self::Out, Self::Known, Self::Quiet, Self::Open, Self::Closed];

    /// For operators.
    pub fn word(self) -> &'static str {
        ["unaware", "starting", "known", "quiet", "open", "closed"][self as usize]
    }
}

impl From<u8> for Stage {
    fn from(n: u8) -> Self {
        // One of a later release comes after all that are known here.
        Self::ALL.get(usize::from(n)).copied().unwrap_or(Self::Closed)
    }
}

impl From<Stage> for u8 {
    fn from(stage: Stage) -> Self {
        stage as u8
    }
}

/// Into which inboxes: the epoch, and its partitions.
pub type Target = (u64, u16);

#[derive(Clone, Debug)]
struct Other {
    layout: Layout,
    stage: Stage,
    /// When a beat of this node came back that is behind the other's latest in the stream: as late is that one, at the most.
    since: Option<Instant>,
}

/// A beat of this node that is on its way through the stream.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    at: Instant,
    epoch: u64,
    stage: Stage,
}

/// See the module.
#[derive(Debug)]
pub struct Epochs {
    layout: Layout,
    stage: Stage,
    accepts: Option<Target>,
    /// The layout is on this node's disk.
    kept: bool,
    lease: Duration,
    others: HashMap<String, Other>,
    drained: BTreeSet<Arc<str>>,
    sent: VecDeque<Sent>,
    /// When the first own beat came back.
    began: Option<Instant>,
    /// When the latest own beat that came back was sent, and what it said.
    echoed: Option<Sent>,
    /// When the latest that the stream confirmed was sent.
    confirmed: Option<Instant>,
    /// The others may have gone on without this node since: it reads a beat of its own that is later before it publishes again.
    lapsed: Option<Instant>,
    /// Why a layout that was told is not followed.
    problem: Option<String>,
}

impl Epochs {
    /// With the layout known at start.
    pub fn new(layout: Layout, lease: Duration, now: Instant) -> Self {
        Self {
            layout,
            stage: Stage::Out,
            accepts: None,
            kept: true,
            lease,
            others: HashMap::new(),
            drained: BTreeSet::new(),
            sent: VecDeque::new(),
            began: None,
            echoed: None,
            confirmed: None,
            lapsed: Some(now),
            problem: None,
        }
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What an operator has to put right.
    pub fn problem(&self) -> Option<String> {
        let differs = |o: &&Other| o.layout.epoch == self.layout.epoch && o.layout.partitions != self.layout.partitions;
        self.problem.clone().or_else(|| self.others.values().find(differs).map(|o| self.mismatch(&o.layout)))
    }

    fn mismatch(&self, other: &Layout) -> String {
        format!(
            "this node has {} partitions and others of its domain have {}: write the same transport.partitions on all nodes and start \
             them again",
            self.layout.partitions, other.partitions
        )
    }

    /// The epochs whose queues are worked on, the oldest first.
    pub fn in_use(&self) -> Vec<Target> {
        let past = self.layout.draining().map(|p| (p.epoch, p.partitions));
        past.into_iter().chain([(self.layout.epoch, self.layout.partitions)]).collect()
    }

    /// A layout was told, by Consul or by another node. True: it is newer, and followed. The error: why it is not, for the operator.
    pub fn learn(&mut self, new: Layout) -> Result<bool, String> {
        let own = self.layout;
        if new.epoch == own.epoch && new.partitions != own.partitions {
            return Err(self.mismatch(&new));
        }
        if !new.is_newer(&own) {
            return Ok(false);
        }
        let follows = new.previous.is_some_and(|p| p.epoch == own.epoch && p.partitions != own.partitions);
        if follows && self.stage > Stage::Out {
            let error = format!(
                "the domain's new layout says that epoch {} had another number of partitions than the {} of this node: it is not followed; \
                 correct `previous` in Consul's KV, or start this node again with that number in transport.partitions",
                own.epoch, own.partitions
            );
            self.problem = Some(error.clone());
            return Err(error);
        }
        self.problem = None;
        self.layout = new;
        self.kept = false;
        if new.epoch > own.epoch {
            self.drained.clear();
            if self.stage > Stage::Out {
                let goes_on = self.accepts == new.draining().map(|p| (p.epoch, p.partitions)) && self.accepts.is_some();
                self.stage = if goes_on { Stage::Known } else { Stage::Quiet };
                self.accepts = self.accepts.filter(|_| goes_on);
            }
        }
        Ok(true)
    }

    /// The layout that has to be on disk before this node goes on, unless it is.
    pub fn to_keep(&self) -> Option<Layout> {
        (!self.kept).then_some(self.layout)
    }

    /// This layout is on disk.
    pub fn kept(&mut self, layout: Layout) {
        self.kept |= layout == self.layout;
    }

    /// A beat of this node goes out.
    pub fn sends(&mut self, number: u64, now: Instant) -> (Layout, Stage) {
        if self.sent.len() == BEATS {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { number, at: now, epoch: self.layout.epoch, stage: self.stage });
        (self.layout, self.stage)
    }

    /// The stream has confirmed a beat of this node that was sent then.
    pub fn confirmed(&mut self, sent: Instant, stage: Stage) {
        if stage > Stage::Out {
            self.is_heard(sent);
        }
    }

    /// The others can have heard a beat that was sent then.
    fn is_heard(&mut self, sent: Instant) {
        if self.confirmed.is_some_and(|before| sent > before + self.lease) {
            self.lapsed.get_or_insert(sent);
        }
        self.confirmed = self.confirmed.max(Some(sent));
    }

    /// A beat of this node came back: all that was told before it has been read.
    pub fn echo(&mut self, number: u64, now: Instant) {
        let Some(at) = self.sent.iter().position(|s| s.number == number) else { return };
        let Some(beat) = self.sent.drain(..=at).next_back() else { return };
        self.began.get_or_insert(now);
        for other in self.others.values_mut() {
            other.since.get_or_insert(now);
        }
        self.others.retain(|_, o| o.since.is_none_or(|since| beat.at <= since + SILENT));
        self.echoed = Some(beat);
        if self.stage == Stage::Out {
            let past = self.layout.draining();
            self.stage = if past.is_some() { Stage::Known } else { Stage::Closed };
            let current = Past { epoch: self.layout.epoch, partitions: self.layout.partitions, drained: false };
            let into = past.unwrap_or(current);
            self.accepts = Some((into.epoch, into.partitions));
        } else if beat.stage > Stage::Out {
            self.is_heard(beat.at);
            self.lapsed = self.lapsed.filter(|lapsed| beat.at < *lapsed);
        }
    }

    /// Another node told how far it is.
    pub fn heard(&mut self, name: &str, layout: Option<Layout>, stage: Stage) {
        if let Some(layout) = layout {
            // Why one is not followed is told as a problem.
            let _ = self.learn(layout);
        }
        if stage == Stage::Out {
            self.others.remove(name);
            return;
        }
        let layout = layout.unwrap_or(Layout { epoch: 0, ..self.layout });
        self.others.insert(name.to_owned(), Other { layout, stage, since: None });
    }

    /// A queue of the epoch before has run empty.
    pub fn told_drained(&mut self, queue: &str) {
        self.drained.insert(queue.into());
    }

    /// Whether all of these have run empty.
    pub fn are_drained<Q: AsRef<str>>(&self, queues: impl IntoIterator<Item = Q>) -> bool {
        queues.into_iter().all(|queue| self.drained.contains(queue.as_ref()))
    }

    /// Into which inboxes messages may be published now.
    pub fn may_publish(&mut self, now: Instant) -> Option<Target> {
        if self.lapsed.is_none() && self.confirmed.is_none_or(|sent| now > sent + self.lease) {
            self.lapsed = Some(now);
        }
        self.accepts.filter(|_| self.lapsed.is_none())
    }

    /// Whether it has come as far as to take part.
    pub fn takes_part(&self) -> bool {
        self.stage > Stage::Out && self.lapsed.is_none()
    }

    /// Goes on when it can; true when it did, and the others have to hear of it. `quiet`: nothing is under way into an inbox.
    pub fn step(&mut self, quiet: bool) -> bool {
        if !self.kept {
            return false;
        }
        // A change that is over for the others is over.
        let over = self.layout.draining().is_none();
        match self.stage {
            Stage::Known if over || self.some_at(Stage::Quiet) || self.all_at(Stage::Known) => {
                (self.stage, self.accepts) = (Stage::Quiet, None);
                true
            }
            Stage::Quiet
                if quiet && (over || self.some_at(Stage::Open) || (self.said(Stage::Quiet) && self.all_at(Stage::Quiet))) =>
            {
                self.stage = Stage::Open;
                self.accepts = Some((self.layout.epoch, self.layout.partitions));
                true
            }
            _ => false,
        }
    }

    /// Nobody works on queues of an epoch before here any more.
    pub fn closed(&mut self) -> bool {
        let closes = self.stage == Stage::Open && self.layout.draining().is_none();
        if closes {
            self.stage = Stage::Closed;
        }
        closes
    }

    /// Whether this node, and every other that lives, is at least so far.
    pub fn all_at(&self, stage: Stage) -> bool {
        self.stage >= stage && self.knows_all() && self.behind(stage).is_empty()
    }

    /// Those that are not so far.
    pub fn behind(&self, stage: Stage) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.others.iter().filter(|(_, o)| self.stands(o) < stage).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// It has listened for so long that no node that lives is unknown.
    fn knows_all(&self) -> bool {
        matches!((self.began, self.echoed), (Some(began), Some(beat)) if beat.at > began + SILENT)
    }

    fn some_at(&self, stage: Stage) -> bool {
        self.others.values().any(|o| o.layout.epoch == self.layout.epoch && o.stage >= stage)
    }

    /// The others can have heard that this node is so far.
    fn said(&self, stage: Stage) -> bool {
        self.echoed.is_some_and(|beat| beat.epoch == self.layout.epoch && beat.stage >= stage)
    }

    fn stands(&self, other: &Other) -> Stage {
        match other.layout.epoch.cmp(&self.layout.epoch) {
            std::cmp::Ordering::Less => Stage::Unaware,
            std::cmp::Ordering::Equal => other.stage,
            std::cmp::Ordering::Greater => Stage::Closed,
        }
    }
}

#[cfg(test)]
#[path = "epochs_tests.rs"]
mod tests;
