//! Places of a listener's connections. When all are taken, the oldest one that has nothing in hand gives way to a newcomer:
//! connections that say nothing never keep an operator or a balancer out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A connection that has had its answer may give way after so long: by then it is sent.
const ANSWERED: Duration = Duration::from_secs(5);

/// Who has asked for nothing yet may give way after so long: by then its request, sent with the connection, was read.
const SILENT: Duration = Duration::from_secs(1);
/// Time between looks whether somebody may give way.
const LOOK: Duration = Duration::from_millis(100);

/// The places of one listener.
pub(super) struct Places {
    most: usize,
    began: Instant,
    taken: Mutex<BTreeMap<u64, Arc<Use>>>,
    left: Notify,
    next: AtomicU64,
    /// Answers are small: who has had one may give way. Else only who has asked for nothing yet.
    small: bool,
}

#[derive(Default)]
struct Use {
    /// When it came, in milliseconds as below.
    came: u64,
    /// Requests being answered.
    in_hand: AtomicUsize,
    /// When the latest request began, in milliseconds since the listener did, from 1; 0: there was none.
    asked: AtomicU64,
    gives_way: CancellationToken,
}

/// One place; free again when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    used: Arc<Use>,
}

impl Places {
    pub fn new(most: usize, small: bool) -> Arc<Self> {
        Arc::new(Self {
            most,
            began: Instant::now(),
            taken: Mutex::default(),
            left: Notify::new(),
            next: AtomicU64::new(0),
            small,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Use>>> {
        self.taken.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// A place, as soon as there is one.
    pub async fn take(self: &Arc<Self>) -> Place {
        loop {
            let left = self.left.notified();
            {
                let mut taken = self.lock();
                if taken.len() < self.most {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    let used = Arc::new(Use { came: self.now_ms(), ..Use::default() });
                    taken.insert(number, used.clone());
                    return Place { places: self.clone(), number, used };
                }
                // The oldest first: numbers rise.
                if let Some(idle) = taken.values().find(|used| self.may_give_way(used)) {
                    idle.gives_way.cancel();
                }
            }
            // Somebody goes, or has been silent for long enough.
            let _ = tokio::time::timeout(LOOK, left).await;
        }
    }

    fn may_give_way(&self, used: &Use) -> bool {
        let asked = used.asked.load(Ordering::Acquire);
        let over = |since: u64, limit: Duration| self.now_ms().saturating_sub(since) >= limit.as_millis() as u64;
        let done = if asked == 0 { over(used.came, SILENT) } else { self.small && over(asked, ANSWERED) };
        used.in_hand.load(Ordering::Acquire) == 0 && done
    }
}

impl Place {
    /// A request begins; it is in hand until what is given is dropped.
    pub fn asked(&self) -> InHand {
        self.used.in_hand.fetch_add(1, Ordering::AcqRel);
        self.used.asked.store(self.places.now_ms(), Ordering::Release);
        InHand(self.used.clone())
    }

    /// Resolves when the connection has to end: it gives way, or has asked for nothing within `patience`.
    pub async fn over(&self, patience: Duration) {
        let silent = async {
            tokio::time::sleep(patience).await;
            if self.used.asked.load(Ordering::Acquire) != 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.used.gives_way.cancelled() => {}
            () = silent => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(&self.number);
        self.places.left.notify_one();
    }
}

/// A request being answered.
pub(super) struct InHand(Arc<Use>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_has_nothing_in_hand_gives_way() {
        let places = Places::new(2, false);
        let (busy, silent) = (places.take().await, places.take().await);
        let in_hand = busy.asked();
        let (newcomer, ()) = tokio::join!(places.take(), async {
            silent.over(Duration::from_secs(60)).await;
            drop(silent);
        });
        drop(in_hand);
        // It has asked for something: its answer may still be on the way.
        let _second = newcomer.asked();
        assert!(tokio::time::timeout(Duration::from_millis(50), places.take()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_millis(50), busy.over(Duration::ZERO)).await.is_err());
    }
}
