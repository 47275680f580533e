//! What operators see of the transport.

use super::Rabbit;
use crate::channel::Outage;
use crate::engine::{ports::RouteStatus, replica::HeldCount};
use crate::transport::rabbitmq::{LinkState, declared::Unusable, shipping::Lag, topology};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// How many texts of queues are repeated among the problems; their number is told anyway.
const TOLD: usize = 3;

/// The transport as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Sight {
    /// The connection with the brokers.
    pub link: LinkSight,
    /// Partitions of each queue.
    pub partitions: u16,
    /// The same with its epoch, and how far a change is.
    pub layout: LayoutSight,
    /// Messages accepted into this node's own log and not yet handed to the broker.
    pub spooled: u64,
    /// The ledger stream.
    pub ledger: Lag,
    /// The members of the domain that were heard on the stream within the last hour, this one first.
    pub members: Vec<MemberSight>,
    /// The queues of the channels, by name; the stream only when it cannot be used.
    pub queues: Vec<QueueSight>,
}

/// How many partitions there are, and how far a change of them is.
#[derive(Clone, Debug, Serialize)]
pub struct LayoutSight {
    /// Rises with each change.
    pub epoch: u64,
    /// Partitions of each queue.
    pub partitions: u16,
    /// What it was before, until its queues have been removed: epoch and partitions; null: no change is under way.
    pub previous: Option<PastSight>,
    /// How far this node is: `starting`, `known` (accepts into the old queues), `quiet` (accepts nothing for a moment), `open` (into the
    /// new ones), `closed` (works on no old ones).
    pub stage: &'static str,
    /// Members that are waited for.
    pub waits_for: Vec<String>,
    /// Queues of the epoch before that have not run empty.
    pub not_drained: usize,
}

/// The epoch before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PastSight {
    pub epoch: u64,
    pub partitions: u16,
}

/// The connection with the brokers.
#[derive(Clone, Debug, Serialize)]
pub struct LinkSight {
    /// `up`, `blocked` (the broker takes nothing for want of memory or disk) or `away`.
    pub state: &'static str,
    /// `host:port`; null when away.
    pub broker: Option<String>,
    /// Release of RabbitMQ; null when away.
    pub version: Option<String>,
    /// RFC 3339.
    pub since: String,
    /// What is wrong and what to do; null when up.
    pub error: Option<String>,
}

/// A member of the domain.
#[derive(Clone, Debug, Serialize)]
pub struct MemberSight {
    /// Its name.
    pub node: String,
    /// This node.
    pub this: bool,
    /// Heard within the last seconds.
    pub alive: bool,
    /// Silent for so long, milliseconds; 0: this node.
    pub silent_ms: u64,
    /// Messages it accepted into its own log and has not handed to the broker.
    pub spooled: u64,
    /// Partitions that are its turn.
    pub partitions: usize,
}

/// A queue at the broker.
#[derive(Clone, Debug, Serialize)]
pub struct QueueSight {
    /// Its name at the broker.
    pub queue: String,
    /// `inbox`, `route` or `ledger`.
    pub kind: &'static str,
    /// The channel; empty for the ledger stream.
    pub channel: String,
    /// The route; empty for an inbox.
    pub route: String,
    /// The partition.
    pub partition: u16,
    /// Messages that wait, without those in a consumer's hands, as last heard; null: never.
    pub waiting: Option<u32>,
    /// Consumers, those that stand by included.
    pub consumers: Option<u32>,
    /// This node works on it: something came from it since it subscribed.
    pub active: bool,
    /// The member whose turn it is.
    pub turn: String,
    /// Why it cannot be used: `otherwise`, `forbidden`, `missing`, `failed`, `consumer`; null when it can.
    pub problem: Option<&'static str>,
    /// The same in words, with what to do.
    pub error: Option<String>,
}

impl Rabbit {
    /// What operators see. Asks nobody.
    pub fn sight(&self) -> Sight {
        let now = Instant::now();
        let queues = self.queue_sights(now);
        let mut turns: HashMap<&str, usize> = HashMap::new();
        queues.iter().filter(|q| q.kind != "ledger").for_each(|q| *turns.entry(&q.turn).or_default() += 1);
        let spooled = self.accepting.spooled();
        let members = self.shared.shipping.members();
        let own = MemberSight {
            node: members.own().to_owned(),
            this: true,
            alive: true,
            silent_ms: 0,
            spooled,
            partitions: turns.get(members.own()).copied().unwrap_or(0),
        };
        let others = members.others(now).map(|(node, spooled, silent, alive)| MemberSight {
            node: node.to_owned(),
            this: false,
            alive,
            silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
            spooled,
            partitions: turns.get(node).copied().unwrap_or(0),
        });
        let mut members: Vec<MemberSight> = std::iter::once(own).chain(others).collect();
        members.sort_by(|a, b| (!a.this, &a.node).cmp(&(!b.this, &b.node)));
        let ledger = self.shared.shipping.lag();
        let layout = self.layout_sight();
        Sight { link: link(&self.link.state()), partitions: layout.partitions, layout, spooled, ledger, members, queues }
    }

    /// Every queue of every channel: name, channel, route (`None`: inbox), partition.
    pub(super) fn each_queue(&self) -> Vec<(Arc<str>, String, Option<String>, u16)> {
        let partitions = self.partitions();
        let channels = self.channels();
        let mut all = Vec::new();
        for (name, channel) in channels.iter() {
            for (epoch, p) in partitions.clone() {
                all.push((topology::inbox(&self.domain, name, p, epoch), name.clone(), None, p));
                let route =
                    |route: &String| (topology::route(&self.domain, name, route, p, epoch), name.clone(), Some(route.clone()), p);
                all.extend(channel.routes.keys().map(route));
            }
        }
        all
    }

    fn queue_sights(&self, now: Instant) -> Vec<QueueSight> {
        let unusable = self.unusable();
        let each = self.each_queue();
        let (depths, active) = (self.depths.lock().unwrap_or_else(|e| e.into_inner()), self.shared.active());
        let members = self.shared.shipping.members();
        let mut all: Vec<QueueSight> = each
            .into_iter()
            .map(|(queue, channel, route, partition)| {
                let (depth, wrong) = (depths.get(&queue), unusable.get(&queue));
                QueueSight {
                    kind: if route.is_some() { "route" } else { "inbox" },
                    channel,
                    route: route.unwrap_or_default(),
                    partition,
                    waiting: depth.map(|d| d.messages),
                    consumers: depth.map(|d| d.consumers),
                    active: active.contains(&queue),
                    turn: members.turn(&queue, now).to_owned(),
                    problem: wrong.map(|w| w.kind),
                    error: wrong.map(|w| w.text.clone()),
                    queue: queue.to_string(),
                }
            })
            .collect();
        let stream = self.shared.queues.stream();
        if let Some(wrong) = unusable.get(&stream) {
            all.push(QueueSight {
                queue: stream.to_string(),
                kind: "ledger",
                channel: String::new(),
                route: String::new(),
                partition: 0,
                waiting: None,
                consumers: None,
                active: false,
                turn: String::new(),
                problem: Some(wrong.kind),
                error: Some(wrong.text.clone()),
            });
        }
        all.sort_by(|a, b| (&a.channel, &a.route, a.partition).cmp(&(&b.channel, &b.route, b.partition)));
        all
    }

    /// Counts what the ledger holds for other nodes, and names routes that are gone as long as it holds something for them.
    pub(super) fn count_held(&self, all: &mut Vec<RouteStatus>) {
        for HeldCount { channel, route, waiting } in self.shared.replica.held_counts().into_iter().filter(|h| h.waiting > 0) {
            match all.iter_mut().find(|r| r.channel == channel && r.route == route) {
                Some(known) => {
                    let here = self.queues.find(&channel, &route).map_or(0, |queue| queue.held());
                    known.pending += waiting.saturating_sub(here);
                }
                None => all.push(RouteStatus {
                    channel,
                    route,
                    primary: false,
                    configured: false,
                    paused: false,
                    paused_by: None,
                    pending: waiting,
                    in_flight: 0,
                    parked: 0,
                    oldest_ms: 0,
                    last_error: "not configured any more: bring the channel or route back, or `hie tx discard` what waits".into(),
                }),
            }
        }
    }

    /// The queues that cannot be used. While no broker is connected that one failed says nothing of the queue.
    fn unusable(&self) -> BTreeMap<Arc<str>, Unusable> {
        let away = matches!(self.link.state(), LinkState::Away { .. });
        let mut all = self.shared.queues.all_unusable();
        all.retain(|_, u| !(away && u.kind == "failed"));
        all
    }

    /// Why messages cannot be accepted durably now: all channels refuse while no broker takes messages, and none does, or none takes
    /// theirs. Where one spools, its node is ready.
    pub fn not_ready(&self) -> Option<String> {
        let channels = self.channels();
        if channels.is_empty() || !channels.values().all(|c| c.outage == Outage::Refuse) {
            return None;
        }
        let state = self.link.state();
        if let Some(error) = state.error() {
            return Some(format!("no broker takes messages: {error}"));
        }
        let Some((epoch, partitions)) = self.shared.admission().target() else {
            return self.turning();
        };
        let unusable = self.unusable();
        let mut first = None;
        for name in channels.keys() {
            let inboxes = (0..partitions).map(|p| unusable.get(&topology::inbox(&self.domain, name, p, epoch)));
            // One that takes messages is enough to be of use.
            let wrong: Option<Vec<&Unusable>> = inboxes.collect();
            first = Some(wrong?.first().map(|u| u.text.clone()).unwrap_or_default());
        }
        first.map(|text| format!("the broker takes no messages: {text}"))
    }

    /// Why searches may miss what other nodes wrote.
    pub fn incomplete(&self) -> Option<&'static str> {
        let catching_up = "this node still reads what the other nodes wrote: see catching_up in /cluster";
        self.shared.shipping.is_catching_up().then_some(catching_up)
    }

    /// What an operator should look at.
    pub fn problems(&self) -> Vec<String> {
        let state = self.link.state();
        let mut problems: Vec<String> = state.error().map(|e| e.text().to_owned()).into_iter().collect();
        let unusable = self.unusable();
        problems.extend(unusable.values().take(TOLD).map(|u| u.text.clone()));
        if let Some(more) = unusable.len().checked_sub(TOLD).filter(|more| *more > 0) {
            problems.push(format!("{more} more queues cannot be used; see `hie status`"));
        }
        problems.extend(self.layout_problem());
        let ledger = self.shared.shipping.lag();
        if ledger.catching_up {
            let far = ledger.read_ms.map_or(String::new(), |ms| format!(", which it last had read {} s ago", ms / 1000));
            problems.push(format!("this node still reads what the others wrote{far}: searches may miss transactions"));
        }
        problems.extend(ledger.incomplete.map(|text| format!("{text}: searches miss transactions")));
        let spooled = self.accepting.spooled();
        if spooled > 0 {
            problems.push(format!(
                "{spooled} messages are in this node's own log only and wait for the broker: keep this node and its disk"
            ));
        }
        problems
    }

    /// How many problems have lasted for so long.
    pub fn lasting_problems(&self, lasting: Duration) -> usize {
        let state = self.link.state();
        let now = SystemTime::now();
        let lasts = |u: &Unusable| now.duration_since(u.since).is_ok_and(|d| d >= lasting);
        usize::from(!state.up() && state.away_for() >= lasting) + usize::from(self.unusable().values().any(lasts))
    }
}

fn link(state: &LinkState) -> LinkSight {
    let (word, broker, version, since) = match state {
        LinkState::Up { broker, version, since } => ("up", Some(broker), Some(version), since),
        LinkState::Blocked { broker, version, since, .. } => ("blocked", Some(broker), Some(version), since),
        LinkState::Away { since, .. } => ("away", None, None, since),
    };
    LinkSight {
        state: word,
        broker: broker.cloned(),
        version: version.cloned(),
        since: humantime::format_rfc3339_seconds(*since).to_string(),
        error: state.error().map(|e| e.text().to_owned()),
    }
}
