//! How an appender waits for its commit, at the price of one wake-up per thread and group instead of one per record.
//!
//! Waking a task of another thread costs a lock and often a system call. A group's tickets are therefore strung
//! together by the thread they wait on: the writer wakes the first of each thread, and whoever is polled, or dropped,
//! first wakes the rest from within that thread, where it is cheap.

use super::queue::{Queued, Record};
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
    /// What is left of the record.
    rest: Option<Box<Record>>,
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
            let record = Record { ticket: Some(Promise(Some(ticket))), ..Record::default() };
            tell(std::iter::once((Box::new(record), Some(gone))));
        }
    }
}

/// Tells those who wait for these records that they are durable, or the error; gives how many they were. What is left of
/// a record goes with the word, so that its memory is freed in the appender's thread, not in the writer's.
pub fn tell(outcomes: impl Iterator<Item = (Box<Record>, Option<LogError>)>) -> usize {
    let mut told = 0;
    // Few threads wait, so that a list is quicker than a map.
    let mut firsts: Vec<(ThreadId, Arc<Ticket>, Waker, Vec<Waker>)> = Vec::new();
    for (mut record, error) in outcomes {
        let Some(ticket) = record.ticket.take().and_then(|mut promise| promise.0.take()) else { continue };
        told += 1;
        let mut state = ticket.lock();
        state.outcome = Some(error.map_or(Ok(record.seq), Err));
        state.rest = Some(record);
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
    for (_, ticket, waker, mut others) in firsts {
        let mut state = ticket.lock();
        // Where it has gone on already (polled by chance since it was told), nobody would pass them on.
        if state.outcome.is_some() {
            state.others = std::mem::take(&mut others);
        }
        drop(state);
        drop(ticket);
        waker.wake();
        others.into_iter().for_each(Waker::wake);
    }
    told
}

/// For the build that is broken on purpose: tells before the commit.
pub fn tell_early(group: &mut [Queued]) {
    let early = |r: &mut Box<Record>| {
        let ticket = r.ticket.take()?;
        Some((Box::new(Record { seq: r.seq, ticket: Some(ticket), ..Record::default() }), None))
    };
    tell(group.iter_mut().filter_map(early));
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
