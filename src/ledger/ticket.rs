//! How an appender waits for its commit, at the price of one wake-up per thread and group instead of one per record.
//!
//! Waking a task of another thread costs a lock and often a system call. A group's tickets are therefore strung
//! together by the thread they wait on: the writer wakes the first of each thread, and whoever is polled, or dropped,
//! first wakes the rest from within that thread, where it is cheap.

use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;

type Outcome = Result<Seq, LogError>;

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    waker: Option<(Waker, ThreadId)>,
    /// Others of the same thread that this one has to wake.
    others: Vec<Waker>,
    blocked: bool,
}

/// One appender's wait.
#[derive(Default)]
pub struct Ticket {
    state: Mutex<State>,
    done: Condvar,
}

impl Ticket {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values only: sound also after a panic elsewhere.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Blocks until told; for the ledger's own threads.
    pub fn wait(&self) -> Outcome {
        let mut state = self.lock();
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            state.blocked = true;
            state = self.done.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// The writer's side of a [`Ticket`]. Dropped without a word, it tells the waiter that the writer has ended.
pub struct Promise(Option<Arc<Ticket>>);

impl Promise {
    pub fn new(ticket: &Arc<Ticket>) -> Self {
        Self(Some(ticket.clone()))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            let gone = LogError::Failed("the log's writer has ended; restart the node".into());
            tell(std::iter::once((Promise(Some(ticket)), Err(gone))));
        }
    }
}

/// Tells many waiters their outcomes.
pub fn tell(outcomes: impl Iterator<Item = (Promise, Outcome)>) {
    // Few threads wait, so that a list is quicker than a map.
    let mut firsts: Vec<(ThreadId, Arc<Ticket>, Waker, Vec<Waker>)> = Vec::new();
    for (mut promise, outcome) in outcomes {
        let Some(ticket) = promise.0.take() else { continue };
        let mut state = ticket.lock();
        state.outcome = Some(outcome);
        if state.blocked {
            ticket.done.notify_all();
        }
        let Some((waker, thread)) = state.waker.take() else { continue };
        drop(state);
        match firsts.iter_mut().find(|(t, ..)| *t == thread) {
            Some((.., others)) => others.push(waker),
            None => firsts.push((thread, ticket, waker, Vec::new())),
        }
    }
    for (_, ticket, waker, others) in firsts {
        let mut left = others;
        {
            let mut state = ticket.lock();
            // Already gone on (polled by chance since it was told): then nobody would pass it on.
            if state.outcome.is_some() {
                std::mem::swap(&mut state.others, &mut left);
            }
        }
        waker.wake();
        left.into_iter().for_each(Waker::wake);
    }
}

/// The appender's side of a [`Ticket`].
pub struct Waiting(pub Arc<Ticket>);

impl Future for Waiting {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.0.lock();
        if let Some(outcome) = state.outcome.take() {
            let others = std::mem::take(&mut state.others);
            drop(state);
            others.into_iter().for_each(Waker::wake);
            return Poll::Ready(outcome);
        }
        match &mut state.waker {
            Some((waker, thread)) => {
                waker.clone_from(cx.waker());
                *thread = std::thread::current().id();
            }
            none => *none = Some((cx.waker().clone(), std::thread::current().id())),
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // Its outcome stays: a `tell` that comes after sees that nobody will pass the wake-ups on.
        state.outcome = None;
        state.waker = None;
        let others = std::mem::take(&mut state.others);
        drop(state);
        others.into_iter().for_each(Waker::wake);
    }
}
