//! Writing on the threads that accept: where the disk is quick, an accepting thread that has appended records writes their group itself
//! as soon as it has nothing else at hand, instead of waking a writer and being woken by it. Several such threads pass the desk
//! on, so that one's group is made durable while another's is gathered.
//!
//! The thread stands still while the disk works; where that takes long, the writers' own threads do it as ever.

use super::queue::Attend;
use super::writer::Writers;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

/// A disk that makes a group durable within this time is quick: a thread may stand still for so long.
pub const QUICK: Duration = Duration::from_micros(400);
/// Times to look for the desk, between other work, before a writer is woken instead.
const LOOKS: u32 = 200;
/// Rounds of other work, each of which brought more records, before they are written.
const ROUNDS: u32 = 4;

/// What a thread that writes by itself knows.
#[derive(Default)]
struct Here {
    /// Runs [`write`]; `None` where the thread does not write.
    task: RefCell<Option<Waker>>,
    /// Something was appended, and [`write`] will see to it.
    wanted: Cell<bool>,
}

thread_local! {
    static HERE: Here = Here::default();
}

/// Something was appended: will this thread see to it by itself? Then it counts as `looking` from now on.
pub fn call(looking: &AtomicUsize) -> bool {
    HERE.with(|here| match &*here.task.borrow() {
        Some(task) => {
            if !here.wanted.replace(true) {
                looking.fetch_add(1, Ordering::SeqCst);
                task.wake_by_ref();
            }
            true
        }
        None => false,
    })
}

/// While it lives, this thread's records are left to it.
struct Presence<'a>(&'a Writers);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        HERE.with(|here| {
            here.task.replace(None);
            if here.wanted.take() {
                self.0.core.queue.looked();
            }
        });
        self.0.core.queue.call();
    }
}

/// Writes this thread's records, until dropped. To be run as a task of a runtime with one thread.
pub async fn write(writers: Arc<Writers>) {
    // Each needs its own descriptor, so that a failure is told to every one.
    let Some(number) = writers.visitor() else { return };
    let presence = Presence(&writers);
    let queue = &writers.core.queue;
    loop {
        poll_fn(|cx| {
            HERE.with(|here| {
                if here.wanted.get() {
                    return Poll::Ready(());
                }
                let mut task = here.task.borrow_mut();
                match &mut *task {
                    Some(task) => task.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            })
        })
        .await;
        // What else is ready comes first, and with it more records.
        let mut seen = 0;
        for _ in 0..ROUNDS {
            tokio::task::yield_now().await;
            if std::mem::replace(&mut seen, queue.len()) >= queue.len() {
                break;
            }
        }
        let mut taken = queue.try_attend();
        for _ in 0..LOOKS {
            if taken != Attend::Busy {
                break;
            }
            tokio::task::yield_now().await;
            taken = queue.try_attend();
        }
        HERE.with(|here| here.wanted.set(false));
        queue.looked();
        match taken {
            Attend::Taken if !writers.write(number, false) => break,
            Attend::Taken => {}
            Attend::Busy | Attend::Nothing => queue.call(),
        }
    }
    drop(presence);
}
