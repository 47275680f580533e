//! Tasks: many messages run again, parked deliveries put back, or deliveries given up, in the background. As OpenHIM's tasks.
//!
//! Tasks live in memory: a restart forgets them, and what they had not done yet stays undone. Their number, the
//! transactions of one, and how many run at the same time are bounded.

mod run;

use super::{
    error::ApiError,
    extract::{Body, Params},
    filter::{Search, timestamp},
    shared::App,
};
use crate::message::MessageId;
use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};

/// Tasks remembered, ended ones included.
const REMEMBERED: usize = 100;
/// Tasks at work at the same time; more wait.
const AT_WORK: usize = 2;
/// Transactions of one task.
const MOST: usize = 200_000;
/// Of which each is listed by itself.
const LISTED: usize = 1000;

/// All tasks.
pub(super) struct Tasks {
    known: Mutex<VecDeque<Arc<Task>>>,
    places: Semaphore,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { known: Mutex::default(), places: Semaphore::new(AT_WORK) }
    }
}

/// One task.
pub(super) struct Task {
    id: MessageId,
    work: Work,
    /// Of this route only.
    route: Option<String>,
    /// Messages per second at most.
    rate: u32,
    created: i64,
    cancel: CancellationToken,
    state: Mutex<Progress>,
}

/// What a task does with each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Rerun,
    Requeue,
    Discard,
}

#[derive(Clone, Default)]
struct Progress {
    status: &'static str,
    total: usize,
    done: u64,
    failed: u64,
    deliveries: u64,
    ended: Option<i64>,
    /// Why its transactions could not be found.
    error: Option<String>,
    listed: Vec<TaskTransaction>,
}

/// A task as OpenHIM shows one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskView {
    #[serde(rename = "_id")]
    id: String,
    /// `Queued`, `Processing`, `Completed`, `Cancelled`, or `Failed` when its transactions could not be found.
    status: String,
    created: String,
    #[serde(rename = "completedDate", skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(rename = "totalTransactions")]
    total: usize,
    #[serde(rename = "remainingTransactions")]
    remaining: u64,
    /// The first thousand, each with what became of it.
    transactions: Vec<TaskTransaction>,
    hie: TaskExtra,
}

#[derive(Debug, Serialize, ToSchema)]
struct TaskExtra {
    /// `rerun`, `requeue` or `discard`.
    work: String,
    done: u64,
    failed: u64,
    /// Deliveries put back or given up.
    deliveries: u64,
    /// Messages per second at most.
    rate: u32,
    /// Why its transactions could not be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One of a task's transactions.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TaskTransaction {
    tid: String,
    /// `Queued`, `Completed`, `Failed`.
    tstatus: &'static str,
    #[serde(rename = "rerunID", skip_serializing_if = "Option::is_none")]
    rerun: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A task to begin: transactions by id, or by filter.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewTask {
    /// Transactions by id.
    tids: Vec<String>,
    /// Or all that a search finds (its limit and page do not count).
    filter: Option<Search>,
    /// Put parked deliveries back into their queues, instead of running the messages again as new ones. Without `tids` or
    /// a filter's status: all that are parked.
    parked: bool,
    /// Give up deliveries that are parked, or wait on a route that is paused or not configured any more, instead of running the
    /// messages again. Needs `tids` or a filter.
    discard: bool,
    /// With `parked` or `discard`: of this route only.
    route: Option<String>,
    /// Messages per second at most: 1 to 1000, default 200.
    rate: Option<u32>,
    /// OpenHIM's; taken, but `rate` is what bounds the work.
    #[serde(rename = "batchSize")]
    batch_size: Option<u32>,
    /// OpenHIM's; a task that would not begin is refused.
    paused: bool,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Tasks of a page; default all.
    filter_limit: Option<usize>,
    /// Page, from 0.
    filter_page: Option<usize>,
}

#[utoipa::path(post, path = "/tasks", tag = "tasks", request_body = NewTask, responses((status = 201, body = TaskView), (status = 400, body = super::error::ErrorBody)))]
/// Begins a task.
pub(super) async fn create(State(app): State<App>, Body(new): Body<NewTask>) -> Result<(StatusCode, Json<TaskView>), ApiError> {
    if new.paused {
        return Err(ApiError::bad("a task cannot begin paused", "create it when it may run"));
    }
    let rate = new.rate.unwrap_or(200);
    if !(1..=1000).contains(&rate) {
        return Err(ApiError::bad("rate is 1 to 1000 messages per second", "leave it out for 200"));
    }
    let work = match (new.parked, new.discard) {
        (false, false) => Work::Rerun,
        (true, false) => Work::Requeue,
        (false, true) => Work::Discard,
        (true, true) => return Err(ApiError::bad("give parked or discard, one of them", "parked: put back; discard: give up")),
    };
    if new.route.is_some() && work == Work::Rerun {
        return Err(ApiError::bad("a message is run again on all its routes", "give route with parked or discard only"));
    }
    let what = match (new.tids.is_empty(), new.filter, new.parked) {
        (false, None, _) if new.tids.len() > MOST => return Err(too_many()),
        (false, None, _) => run::What::Ids(ids(&new.tids)?),
        (true, Some(filter), _) if new.discard => run::What::Found(Box::new(run::unfinished(filter.query()?))),
        (true, Some(filter), parked) => run::What::Found(Box::new(run::all(filter.query()?, parked))),
        (true, None, true) => run::What::Found(Box::new(run::all(Search::default().query()?, true))),
        _ => {
            return Err(ApiError::bad(
                "give tids or filter, one of them",
                "{\"tids\": [\"…\"]} or {\"filter\": {\"status\": \"Failed\"}}",
            ));
        }
    };
    let task = Arc::new(Task {
        id: MessageId::now(),
        work,
        route: new.route,
        rate,
        created: now_ms(),
        cancel: CancellationToken::new(),
        state: Mutex::new(Progress { status: "Queued", ..Progress::default() }),
    });
    app.tasks.remember(task.clone())?;
    if let run::What::Ids(ids) = &what {
        task.begin(ids);
    }
    let view = task.view();
    tokio::spawn(run::run(app, task, what));
    Ok((StatusCode::CREATED, Json(view)))
}

#[utoipa::path(get, path = "/tasks", tag = "tasks", params(Page), responses((status = 200, body = [TaskView])))]
/// The latest tasks, newest first, without their transactions.
pub(super) async fn list(State(app): State<App>, Params(page): Params<Page>) -> Json<Vec<TaskView>> {
    let limit = page.filter_limit.unwrap_or(REMEMBERED).min(REMEMBERED);
    let skip = page.filter_page.unwrap_or(0).saturating_mul(limit);
    let known = app.tasks.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let views = known.iter().rev().skip(skip).take(limit).map(|task| TaskView { transactions: Vec::new(), ..task.view() });
    Json(views.collect())
}

#[utoipa::path(get, path = "/tasks/{id}", tag = "tasks", params(("id" = String, Path)), responses((status = 200, body = TaskView), (status = 404, body = super::error::ErrorBody)))]
/// One task and how far it has come.
pub(super) async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<TaskView>, ApiError> {
    Ok(Json(app.tasks.get(&id)?.view()))
}

#[utoipa::path(delete, path = "/tasks/{id}", tag = "tasks", params(("id" = String, Path)), responses((status = 200, body = TaskView), (status = 404, body = super::error::ErrorBody)))]
/// Ends a task: what it has done stays done.
pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Result<Json<TaskView>, ApiError> {
    let task = app.tasks.get(&id)?;
    task.cancel.cancel();
    Ok(Json(task.view()))
}

fn ids(texts: &[String]) -> Result<Vec<MessageId>, ApiError> {
    let wrong = || ApiError::bad("tids holds something that is no transaction's id", "ids are UUIDs");
    texts.iter().map(|t| t.parse().map_err(|_| wrong())).collect()
}

fn too_many() -> ApiError {
    ApiError::bad(
        format!("more than {MOST} transactions"),
        "narrow the filter by time or channel, and begin one task after the other",
    )
}

fn now_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

impl Tasks {
    fn get(&self, id: &str) -> Result<Arc<Task>, ApiError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|t| t.id.to_string() == id).cloned().ok_or_else(|| ApiError::not_found("task"))
    }

    /// Makes room by forgetting the oldest task that has ended.
    fn remember(&self, task: Arc<Task>) -> Result<(), ApiError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            let ended = known.iter().position(|t| t.progress().ended.is_some());
            let full =
                || ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many tasks wait", "wait for some to end, or cancel some");
            known.remove(ended.ok_or_else(full)?);
        }
        known.push_back(task);
        Ok(())
    }
}

impl Task {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, ids: &[MessageId]) {
        let mut progress = self.progress();
        progress.total = ids.len();
        let queued = |id: &MessageId| TaskTransaction { tid: id.to_string(), tstatus: "Queued", rerun: None, error: None };
        progress.listed = ids.iter().take(LISTED).map(queued).collect();
    }

    fn view(&self) -> TaskView {
        let progress = self.progress().clone();
        TaskView {
            id: self.id.to_string(),
            status: progress.status.into(),
            created: timestamp(self.created),
            completed: progress.ended.map(timestamp),
            total: progress.total,
            remaining: (progress.total as u64).saturating_sub(progress.done + progress.failed),
            transactions: progress.listed,
            hie: TaskExtra {
                work: format!("{:?}", self.work).to_lowercase(),
                done: progress.done,
                failed: progress.failed,
                deliveries: progress.deliveries,
                rate: self.rate,
                error: progress.error,
            },
        }
    }
}
