//! A task at work.

use super::{MOST, Task, Work, now_ms, too_many};
use crate::{
    admin::{
        delivery::{nothing_to_discard, rerun_one},
        error::ApiError,
        records::Query,
        shared::App,
    },
    engine::{fact::Status, ports::ControlError},
    message::MessageId,
    telemetry::admin::TaskEnded,
};
use http::StatusCode;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Which transactions a task is about.
pub(super) enum What {
    Ids(Vec<MessageId>),
    Found(Box<Query>),
}

/// Ids read from the ledger at once.
const BATCH: usize = 1000;
/// How long a task waits for a node that cannot accept before it counts a message as failed.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The whole of what a query finds, as it stands now: what the task itself makes is younger and not found.
pub(super) fn all(mut query: Query, parked: bool) -> Query {
    // Whatever their status: a dead secondary route parks too.
    query.parked = parked;
    query.to = Some(query.to.unwrap_or(i64::MAX).min(now_ms() + 1));
    Query { offset: 0, limit: BATCH, ..query }
}

/// What a query finds that may have deliveries waiting or parked, where it does not ask for a status itself.
pub(super) fn unfinished(mut query: Query) -> Query {
    if query.status.is_empty() {
        use Status::{CompletedWithErrors, Failed, Parked, Processing, Unknown};
        query.status = vec![Processing, Parked, CompletedWithErrors, Failed, Unknown];
    }
    all(query, false)
}

/// All ids first, then the work: the work changes what the query would find next.
async fn collect(app: &App, mut query: Query) -> Result<Vec<MessageId>, ApiError> {
    let mut ids = Vec::new();
    loop {
        let found = app.search(query.clone()).await?;
        query.before = found.last().map(|hit| hit.seq);
        let last = found.len() < query.limit;
        ids.extend(found.into_iter().map(|hit| hit.id));
        if ids.len() > MOST {
            return Err(too_many());
        }
        if last {
            // Oldest first: the order in which they came is the order in which they go again.
            ids.reverse();
            return Ok(ids);
        }
    }
}

/// Finds the transactions, then does the work, message by message, at the task's rate.
pub(super) async fn run(app: App, task: Arc<Task>, what: What) {
    // Never closed, so that this cannot fail.
    let _place = tokio::select! {
        place = app.tasks.places.acquire() => place.ok(),
        () = task.cancel.cancelled() => None,
    };
    if !task.cancel.is_cancelled() {
        task.progress().status = "Processing";
    }
    let found = matches!(what, What::Found(_));
    let ids = match what {
        What::Ids(ids) => ids,
        What::Found(query) => match collect(&app, *query).await {
            Ok(ids) => ids,
            Err(e) => {
                let mut progress = task.progress();
                progress.status = "Failed";
                progress.error = Some(e.text().to_owned());
                progress.ended = Some(now_ms());
                return;
            }
        },
    };
    task.begin(&ids);
    let mut tick = interval(Duration::from_secs(1) / task.rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for (i, id) in ids.into_iter().enumerate() {
        tokio::select! {
            _ = tick.tick() => {}
            () = task.cancel.cancelled() => break,
        }
        let result = one(&app, &task, id, found).await;
        let mut progress = task.progress();
        let (done, new, error) = match result {
            Ok(Done::Rerun(new)) => (true, Some(new), None),
            Ok(Done::Deliveries(n)) => {
                progress.deliveries += u64::from(n);
                (true, None, None)
            }
            Err(e) => (false, None, Some(e.text().to_owned())),
        };
        match done {
            true => progress.done += 1,
            false => progress.failed += 1,
        }
        if let Some(listed) = progress.listed.get_mut(i) {
            listed.tstatus = if done { "Completed" } else { "Failed" };
            listed.rerun = new.map(|id| id.to_string());
            listed.error = error;
        }
    }
    let cancelled = task.cancel.is_cancelled();
    let mut progress = task.progress();
    progress.status = if cancelled { "Cancelled" } else { "Completed" };
    progress.ended = Some(now_ms());
    TaskEnded { done: progress.done, failed: progress.failed, cancelled }.emit();
}

/// What was done with one transaction.
enum Done {
    Rerun(MessageId),
    Deliveries(u32),
}

/// `found`: by a search, which finds finished ones too.
async fn one(app: &App, task: &Task, id: MessageId, found: bool) -> Result<Done, ApiError> {
    let start = Instant::now();
    loop {
        let result = match task.work {
            Work::Rerun => rerun_one(app, id).await.map(Done::Rerun),
            Work::Discard => match app.state.control.discard(id, task.route.as_deref()).await {
                Err(ControlError::NotFound(_)) if found => Ok(Done::Deliveries(0)),
                Ok(0) if !found => Err(nothing_to_discard()),
                result => result.map(Done::Deliveries).map_err(Into::into),
            },
            Work::Requeue => match app.state.control.requeue(id, task.route.as_deref()).await {
                Ok(0) => Err(ApiError::conflict("nothing of it is parked", "")),
                Ok(n) => Ok(Done::Deliveries(n)),
                Err(e) => Err(e.into()),
            },
        };
        match result {
            // The store is full or the queues are: that passes.
            Err(e)
                if e.status() == StatusCode::SERVICE_UNAVAILABLE && start.elapsed() < PATIENCE && !task.cancel.is_cancelled() =>
            {
                sleep(LOOK_AGAIN).await;
            }
            result => return result,
        }
    }
}
