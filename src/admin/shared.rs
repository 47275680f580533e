//! What all handlers share.

use super::{
    AdminState,
    caching::Seen,
    error::ApiError,
    records::{Detail, Hit, Query, RecordsError},
    tasks::Tasks,
};
use crate::{engine::directory::Throttle, message::MessageId};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, Semaphore};

/// The state of every handler.
pub(super) type App = Arc<Shared>;

pub(super) struct Shared {
    pub state: AdminState,
    pub tasks: Tasks,
    /// Held while channels or clients are changed: one change after the other.
    pub edit: Mutex<()>,
    /// Wrong credentials per address.
    pub throttle: Throttle,
    /// Names of channels as they were a moment ago.
    pub known: std::sync::Mutex<Option<(Instant, HashSet<String>)>>,
    /// When answers changed.
    pub seen: Seen,
    searches: Semaphore,
}

/// Look-ups in the ledger at the same time; more wait.
const SEARCHES: usize = 4;

impl Shared {
    pub fn new(state: AdminState) -> App {
        Arc::new(Self {
            state,
            tasks: Tasks::default(),
            edit: Mutex::default(),
            throttle: Throttle::new(10, Duration::from_secs(6)),
            known: std::sync::Mutex::default(),
            seen: Seen::default(),
            searches: Semaphore::new(SEARCHES),
        })
    }

    /// Runs something that blocks.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&AdminState) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let _permit = self.searches.acquire().await;
        let this = self.clone();
        // Fails when the work panicked or the runtime ends; neither tells the caller anything.
        tokio::task::spawn_blocking(move || work(&this.state)).await.map_err(|_| ApiError::internal())
    }

    /// The transactions that match, newest first.
    pub async fn search(self: &Arc<Self>, query: Query) -> Result<Vec<Hit>, ApiError> {
        let found = self.blocking(move |state| {
            state.records.settle();
            state.records.search(&query)
        });
        found.await?.map_err(from_records)
    }

    /// One transaction, or 404.
    pub async fn detail(self: &Arc<Self>, id: MessageId) -> Result<Detail, ApiError> {
        let found = self.blocking(move |state| {
            state.records.settle();
            state.records.transaction(id)
        });
        found.await?.map_err(from_records)?.ok_or_else(|| ApiError::not_found(format!("transaction {id}")))
    }

    /// Transactions that rerun one.
    pub async fn children(self: &Arc<Self>, id: MessageId) -> Result<Vec<MessageId>, ApiError> {
        self.blocking(move |state| state.records.children(id)).await?.map_err(from_records)
    }
}

pub(super) fn from_records(error: RecordsError) -> ApiError {
    match error {
        RecordsError::Query(text) => ApiError::bad(text, "narrow the search, or see /openapi.json"),
        RecordsError::Later(text) => ApiError::unavailable(text, "narrow the search by time or channel, or ask again"),
        RecordsError::Failed => {
            ApiError::unavailable("the ledger cannot be read now", "see the node's log and `problems` in /status")
        }
    }
}
