//! Which queues have been declared on the present connection: each is declared, and so verified, once per connection, before its first use.

use super::{
    Link, Session,
    topology::{self, QueueKind, QueueSpec, TopologyError},
};
use crate::telemetry::cluster as events;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// How long a declaration may take before it counts as failed.
const WITHIN: Duration = Duration::from_secs(5);

/// See [`Unusable::kind`].
const KINDS: [&str; 5] = ["otherwise", "forbidden", "missing", "failed", "consumer"];

/// How the queues of a domain are made.
#[derive(Clone, Debug)]
pub struct Making {
    /// The domain.
    pub domain: String,
    /// Messages that an inbox holds; more are refused.
    pub max_queue: u32,
    /// See [`QueueKind::Stream`].
    pub stream_max_age: Duration,
    /// See [`QueueKind::Stream`].
    pub stream_max_bytes: u64,
}

/// A queue that cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// `otherwise`, `forbidden`, `missing`, `failed` or `consumer` (it cannot be consumed).
    pub kind: &'static str,
    /// What is wrong and what to do.
    pub text: String,
    /// Since when.
    pub since: SystemTime,
}

/// See the module.
pub struct Declared {
    making: Making,
    stream: Arc<str>,
    /// By queue the number of the session it was declared on.
    on: Mutex<HashMap<Arc<str>, u64>>,
    /// Those that cannot be used now.
    unusable: Mutex<BTreeMap<Arc<str>, Unusable>>,
}

impl Declared {
    /// None yet.
    pub fn new(making: Making) -> Self {
        let stream = topology::ledger(&making.domain);
        Self { making, stream, on: Mutex::default(), unusable: Mutex::default() }
    }

    /// The domain's ledger stream.
    pub fn stream(&self) -> Arc<str> {
        self.stream.clone()
    }

    /// Declares an inbox, or the stream, unless it has been on this session.
    pub async fn ensure(&self, session: &Session, queue: &Arc<str>) -> Result<(), TopologyError> {
        let kind = match *queue == self.stream {
            true => QueueKind::Stream { max_age: self.making.stream_max_age, max_bytes: self.making.stream_max_bytes },
            false => QueueKind::Quorum { max_length: self.making.max_queue },
        };
        self.make(session, queue, kind).await
    }

    /// Declares a route's queue, unless it has been on this session. It has no limit of its own: were one message refused and the next
    /// taken, their order would be lost. What waits is bounded where it is accepted.
    pub async fn ensure_route(&self, session: &Session, queue: &Arc<str>) -> Result<(), TopologyError> {
        self.make(session, queue, QueueKind::Quorum { max_length: u32::MAX }).await
    }

    /// As [`Declared::ensure`], on whatever session stands.
    pub async fn ensure_now(&self, link: &Link, queue: &Arc<str>) -> Result<(), TopologyError> {
        match link.try_session() {
            Some(session) => self.ensure(&session, queue).await,
            None => Err(TopologyError::Failed { queue: queue.clone(), said: "no broker is connected".into() }),
        }
    }

    /// Whether it has been declared on the session that stands.
    pub fn is_ready(&self, link: &Link, queue: &Arc<str>) -> bool {
        link.try_session().is_some_and(|session| self.known().get(queue) == Some(&session.number()))
    }

    /// It turned out not to be there.
    pub fn forget(&self, queue: &Arc<str>) {
        self.known().remove(queue);
    }

    async fn make(&self, session: &Session, queue: &Arc<str>, kind: QueueKind) -> Result<(), TopologyError> {
        if self.known().get(queue) == Some(&session.number()) {
            return Ok(());
        }
        let spec = [QueueSpec { name: queue.clone(), kind }];
        let failed = |said: &str| TopologyError::Failed { queue: queue.clone(), said: said.into() };
        let answer = match timeout(WITHIN, topology::declare(session, &spec)).await {
            Ok(answers) => answers.into_iter().next().unwrap_or_else(|| Err(failed("no answer"))),
            Err(_) => Err(failed("the broker does not answer")),
        };
        match answer {
            Ok(_) => {
                self.known().insert(queue.clone(), session.number());
                self.usable(queue);
                Ok(())
            }
            Err(error) => {
                self.unusable(queue, error.kind(), &error.to_string());
                Err(error)
            }
        }
    }

    /// Notes that a queue cannot be used; told once while the cause stays.
    pub fn unusable(&self, queue: &Arc<str>, kind: &'static str, text: &str) {
        let mut all = self.wrong();
        let before = all.get(queue);
        if before.is_some_and(|b| b.kind == kind && b.text == text) {
            return;
        }
        let since = before.map_or_else(SystemTime::now, |b| b.since);
        all.insert(queue.clone(), Unusable { kind, text: text.to_owned(), since });
        events::QueueUnusable { queue, kind, error: text }.emit();
        count(&all);
    }

    /// Notes that it can.
    pub fn usable(&self, queue: &Arc<str>) {
        let mut all = self.wrong();
        if all.remove(queue).is_some() {
            events::QueueUsable { queue }.emit();
            count(&all);
        }
    }

    /// Forgets the queues of channels that are gone.
    pub fn retain(&self, stays: impl Fn(&Arc<str>) -> bool) {
        let mut all = self.wrong();
        all.retain(|queue, _| *queue == self.stream || stays(queue));
        count(&all);
    }

    /// Those that cannot be used now.
    pub fn all_unusable(&self) -> BTreeMap<Arc<str>, Unusable> {
        self.wrong().clone()
    }

    fn wrong(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Unusable>> {
        self.unusable.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Arc<str>, u64>> {
        self.on.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The gauges of [`events::QueuesUnusable`].
fn count(all: &BTreeMap<Arc<str>, Unusable>) {
    for kind in KINDS {
        events::QueuesUnusable { kind, queues: all.values().filter(|u| u.kind == kind).count() }.emit();
    }
}
