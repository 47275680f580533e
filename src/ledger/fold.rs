//! The rules by which facts make a transaction's state. Pure, and the only place where they are written: views,
//! recovery and details all use it.
//!
//! Facts may come in any order and more than once. What can change back and forth (a route waits, is parked, waits
//! again) is decided by the fact's place in the log: the latest counts, except that delivered stays delivered.

use crate::channel::{Mode, Storage};
use crate::engine::fact::{Accepted, Keeper, Outcome, RouteProgress, RouteState, Seq, Status, What};

/// Places of facts remembered per transaction. A message that is retried more often keeps the first and the latest ones.
const FACTS_KEPT: usize = 8192;

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    pub progress: RouteProgress,
    /// Place of the fact that decided the state.
    pub by: Seq,
}

/// What the facts so far say of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// The accept fact has been seen: routes are complete and in its order, the primary first.
    pub accepted: bool,
    pub refused: bool,
    pub proxy: bool,
    pub storage: Storage,
    pub routes: Vec<Route>,
    /// Proxy mode: the status that the sender was answered.
    pub responded: Option<u16>,
    /// Proxy mode: interrupted while with the upstream.
    pub unknown: bool,
    /// The sender sent it again.
    pub resent: bool,
    /// A queue of the broker holds it, not the log of the node that accepted it.
    pub broker: bool,
    /// It repeats another transaction: finished, with nothing delivered.
    pub repeated: bool,
    /// Unix milliseconds of the latest fact.
    pub changed: i64,
    /// Places of its facts, rising.
    pub facts: Vec<Seq>,
}

impl Folded {
    /// Takes in one fact.
    pub fn apply(&mut self, seq: Seq, at: i64, what: &What) {
        self.changed = self.changed.max(at);
        self.remember(seq);
        match what {
            What::Accepted(accepted) => self.accept(accepted),
            What::Carried { accepted, routes, as_of, .. } => {
                self.accept(accepted);
                for (name, progress) in routes {
                    let route = self.route(name);
                    route.progress.attempts = route.progress.attempts.max(progress.attempts);
                    route.progress.held |= progress.held;
                    set(route, *as_of, progress.state, progress.inside);
                }
            }
            What::Refused { .. } => self.refused = true,
            What::Resent { .. } => self.resent = true,
            What::Attempt(attempt) => {
                let route = self.route(&attempt.route);
                route.progress.attempts = route.progress.attempts.max(attempt.number);
                let state = match attempt.outcome {
                    Outcome::Delivered => RouteState::Delivered,
                    Outcome::Retry => RouteState::Waiting,
                    Outcome::Parked => RouteState::Parked,
                    Outcome::Failed => RouteState::Failed,
                };
                set(route, seq, state, attempt.inside);
            }
            What::Requeued { route } => set(self.route(route), seq, RouteState::Waiting, 0),
            What::Discarded { route } => set(self.route(route), seq, RouteState::Failed, 0),
            What::Responded { status, .. } => self.responded = Some(*status),
            What::Unknown => self.unknown = true,
            What::Step { .. } => {}
            What::Forwarded => self.broker = true,
            What::Repeated { .. } => self.repeated = true,
            What::Held { route } => self.route(route).progress.held = true,
        }
        self.settle();
    }

    /// Takes in what is known of the same transaction under the number it had before it was carried.
    pub fn merge(&mut self, older: &Folded) {
        for old in &older.routes {
            let route = self.route(&old.name);
            route.progress.attempts = route.progress.attempts.max(old.progress.attempts);
            route.progress.held |= old.progress.held;
            set(route, old.by, old.progress.state, old.progress.inside);
        }
        self.responded = self.responded.or(older.responded);
        self.unknown |= older.unknown;
        self.resent |= older.resent;
        self.broker |= older.broker;
        self.repeated |= older.repeated;
        self.changed = self.changed.max(older.changed);
        for seq in &older.facts {
            self.remember(*seq);
        }
        self.settle();
    }

    /// What follows from several facts, in whichever order they came. What repeats another transaction is done on every route. What is
    /// held has come out of a queue of the broker: no node is to hand it to the broker again (of a proxied one its node has more to say).
    fn settle(&mut self) {
        self.broker |= self.accepted && !self.proxy && self.is_held();
        if self.repeated {
            for route in &mut self.routes {
                route.progress = RouteProgress { state: RouteState::Delivered, inside: 0, ..route.progress };
                route.by = 0;
            }
        }
    }

    /// The delivery on some route was held, finished or not.
    pub fn is_held(&self) -> bool {
        self.routes.iter().any(|r| r.progress.held)
    }

    fn accept(&mut self, accepted: &Accepted) {
        self.accepted = true;
        self.proxy = accepted.mode == Mode::Proxy;
        self.storage = accepted.storage;
        self.broker |= accepted.keeper == Keeper::Broker;
        // Routes that other facts have named already keep what is known of them, in the accept fact's order.
        let mut known = std::mem::take(&mut self.routes);
        for name in &accepted.routes {
            let route = match known.iter().position(|r| r.name == *name) {
                Some(at) => known.remove(at),
                None => Route { name: name.clone(), progress: RouteProgress::default(), by: 0 },
            };
            self.routes.push(route);
        }
        self.routes.append(&mut known);
    }

    fn route(&mut self, name: &str) -> &mut Route {
        let at = match self.routes.iter().position(|r| r.name == name) {
            Some(at) => at,
            None => {
                self.routes.push(Route { name: name.to_owned(), progress: RouteProgress::default(), by: 0 });
                self.routes.len() - 1
            }
        };
        &mut self.routes[at]
    }

    fn remember(&mut self, seq: Seq) {
        let Err(at) = self.facts.binary_search(&seq) else { return };
        self.facts.insert(at, seq);
        if self.facts.len() > FACTS_KEPT {
            self.facts.remove(FACTS_KEPT / 2);
        }
    }

    /// The primary route's part is over: delivered, failed, or (proxy mode) answered or left unknown.
    fn primary_is_finished(&self) -> bool {
        (self.proxy && (self.responded.is_some() || self.unknown))
            || self.routes.first().is_some_and(|r| r.progress.state.is_finished())
    }

    /// Nothing more happens by itself and no operator is waited for.
    pub fn is_finished(&self) -> bool {
        if self.refused || self.repeated || !self.accepted {
            return true;
        }
        self.routes.is_empty() || (self.primary_is_finished() && self.secondaries().all(|r| r.progress.state.is_finished()))
    }

    fn secondaries(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().skip(1)
    }

    /// The status shown.
    pub fn status(&self) -> Status {
        if self.refused {
            return Status::Refused;
        }
        if self.repeated {
            return Status::Successful;
        }
        let Some(primary) = self.routes.first() else {
            return if self.accepted { Status::Successful } else { Status::Processing };
        };
        let state = primary.progress.state;
        if self.proxy {
            match self.responded {
                Some(status) if status >= 500 => return Status::Failed,
                Some(_) => {}
                None if self.unknown && state != RouteState::Delivered => return Status::Unknown,
                None => {}
            }
        }
        let answered = self.proxy && self.responded.is_some();
        match state {
            RouteState::Waiting if !answered => Status::Processing,
            RouteState::Parked if !answered => Status::Parked,
            RouteState::Failed if !answered => Status::Failed,
            _ if self.secondaries().any(|r| r.progress.state == RouteState::Waiting) => Status::Processing,
            _ if self.secondaries().any(|r| r.progress.state != RouteState::Delivered) => Status::CompletedWithErrors,
            _ if self.responded.is_some_and(|s| s >= 400) => Status::Completed,
            _ => Status::Successful,
        }
    }

    /// How far each route has come, in the order of the accept fact.
    pub fn progress(&self) -> Vec<RouteProgress> {
        self.routes.iter().map(|r| r.progress).collect()
    }
}

/// The later fact decides; delivered stays.
fn set(route: &mut Route, by: Seq, state: RouteState, inside: u32) {
    let wins = match (route.progress.state == RouteState::Delivered, state == RouteState::Delivered) {
        (true, false) => false,
        (false, true) => true,
        _ => by >= route.by,
    };
    if wins {
        route.progress.state = state;
        route.progress.inside = inside;
        route.by = by;
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
