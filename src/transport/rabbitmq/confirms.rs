//! Confirms of many publishes on one channel, without a task for each.
//!
//! lapin pairs a returned (unroutable) message with the first confirm that comes in after it, which may be another message's: then
//! the unroutable one looks stored. So every message carries its number as message id, which a returned one brings back, and a round
//! of confirms is judged only when everything that came before them has been looked at: lapin's reader completes confirms one after
//! the other, waking each, so what came before a confirm that is seen here stands in the list by then.

use futures_util::{future::BoxFuture, task::AtomicWaker};
use lapin::Confirmation;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A message's number among those of its publisher.
pub(super) type Number = u64;

/// What the broker did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has it.
    Stored,
    /// It does not take it.
    Refused,
    /// There is no such queue.
    Returned,
    /// Not known: the channel ended.
    Unknown,
}

/// A publish that is waited for; made by [`Ready::slot`].
pub(super) struct Pending {
    confirm: BoxFuture<'static, lapin::Result<Confirmation>>,
    slot: Arc<Slot>,
    waker: Waker,
}

/// Which publishes of a channel have news.
#[derive(Default)]
pub(super) struct Ready {
    numbers: Mutex<Vec<Number>>,
    reader: AtomicWaker,
    /// Returned by the broker; their own confirms are still to come, and may bring what belongs to others.
    returned: Mutex<HashSet<Number>>,
}

struct Slot {
    number: Number,
    listed: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.lock().push(self.number);
            self.ready.reader.wake();
        }
    }
}

impl Ready {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Number>> {
        self.numbers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Begins a publish: lapin has its frames in hand when this returns. The second value is a confirm that is there already.
    pub(super) fn begin(
        self: &Arc<Self>,
        number: Number,
        confirm: BoxFuture<'static, lapin::Result<Confirmation>>,
    ) -> (Pending, Option<lapin::Result<Confirmation>>) {
        let slot = Arc::new(Slot { number, listed: AtomicBool::new(false), ready: self.clone() });
        let mut pending = Pending { confirm, waker: slot.clone().into(), slot };
        let first = pending.poll();
        (pending, first)
    }

    /// Waits until a publish has news.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.reader.register(cx.waker());
        match self.lock().is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Takes the numbers with news.
    fn take(&self) -> Vec<Number> {
        std::mem::take(&mut *self.lock())
    }

    /// Everything that the broker has said so far, in no order, and why the channel ended if it did. `answers` are those of
    /// [`Ready::begin`]; `poll` asks the publish of a number that has news (it may be settled already).
    pub(super) fn judge(
        &self,
        mut answers: Vec<(Number, lapin::Result<Confirmation>)>,
        mut poll: impl FnMut(Number) -> Option<lapin::Result<Confirmation>>,
    ) -> (Vec<(Number, Verdict)>, Option<lapin::Error>) {
        loop {
            let numbers = self.take();
            if numbers.is_empty() {
                break;
            }
            answers.extend(numbers.into_iter().filter_map(|number| Some((number, poll(number)?))));
        }
        let mut returned = self.returned.lock().unwrap_or_else(|e| e.into_inner());
        let mut nameless = false;
        let mut error = None;
        let mut verdicts = Vec::with_capacity(answers.len());
        for (number, answer) in answers {
            verdicts.push(match &answer {
                Ok(Confirmation::Ack(_)) => (number, Verdict::Stored),
                Ok(Confirmation::Nack(_)) => (number, Verdict::Refused),
                _ => (number, Verdict::Unknown),
            });
            match answer {
                Ok(confirmation) => {
                    let Some(message) = confirmation.take_message() else { continue };
                    let id: Option<Number> =
                        message.delivery.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
                    // One without our number cannot be told apart: then nothing of this round counts as stored.
                    nameless |= id.is_none();
                    returned.extend(id);
                }
                Err(e) => error = Some(e),
            }
        }
        for (number, verdict) in &mut verdicts {
            if returned.remove(number) {
                *verdict = Verdict::Returned;
            } else if nameless && *verdict == Verdict::Stored {
                *verdict = Verdict::Unknown;
            }
        }
        (verdicts, error)
    }
}

impl Pending {
    /// Its answer, once.
    pub(super) fn poll(&mut self) -> Option<lapin::Result<Confirmation>> {
        // From here on news are listed again.
        self.slot.listed.store(false, Ordering::Release);
        match self.confirm.as_mut().poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }
}
