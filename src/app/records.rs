//! The ledger as the management API sees it.

use crate::{
    admin::{Detail, Hit, Query, Records, RecordsError},
    engine::{
        fact::{BodyRef, Seq},
        ports::BodyStream,
    },
    ledger::{self, Ledger, SearchError},
    message::MessageId,
};
use std::time::Duration;

/// How long a request waits for the views to show what was committed when it came.
const SETTLE: Duration = Duration::from_millis(500);
/// Reruns of one transaction that are shown.
const CHILDREN: usize = 100;
/// Shorter than what a request may take altogether.
const DEADLINE: Duration = Duration::from_secs(20);

impl Records for Ledger {
    fn settle(&self) {
        // Behind by more than that, the answer is a little old; no reason to give none.
        self.caught_up(SETTLE);
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, RecordsError> {
        let rows = Ledger::search(self, &translate(query)).map_err(failed)?;
        Ok(rows.into_iter().map(|row| Hit { seq: row.seq, id: row.id }).collect())
    }

    fn transaction(&self, id: MessageId) -> Result<Option<Detail>, RecordsError> {
        let found = Ledger::transaction(self, id).map_err(failed)?;
        Ok(found.map(|found| Detail { status: found.row.status, facts: found.facts }))
    }

    fn children(&self, id: MessageId) -> Result<Vec<MessageId>, RecordsError> {
        let query = ledger::Query { parent: Some(id), limit: CHILDREN, deadline: DEADLINE, ..ledger::Query::default() };
        Ok(Ledger::search(self, &query).map_err(failed)?.into_iter().map(|row| row.id).collect())
    }

    fn read(&self, seq: Seq, body: &BodyRef) -> BodyStream {
        self.body(seq, body)
    }

    fn stats(&self) -> serde_json::Value {
        serde_json::to_value(Ledger::stats(self)).unwrap_or_default()
    }

    fn problems(&self) -> Vec<String> {
        Ledger::problems(self).into_iter().map(|p| format!("{}: {}", p.what, p.text)).collect()
    }
}

fn translate(query: &Query) -> ledger::Query {
    // A search for text needs both ends; what has not arrived yet is not in it anyway.
    let to = query.to.or(query.text.is_some().then_some(i64::MAX));
    ledger::Query {
        id: query.id,
        from_ms: query.from,
        // Ours is exclusive, the ledger's inclusive.
        to_ms: to.map(|to| to.saturating_sub(1)),
        channel: query.channel.clone(),
        status: query.status.clone(),
        client: query.client.clone(),
        kind: query.kind.clone(),
        control_id: query.control_id.clone(),
        patient: query.patient.clone(),
        parent: query.parent,
        text: query.text.clone(),
        parked: query.parked,
        limit: query.limit,
        offset: query.offset,
        before: query.before,
        deadline: DEADLINE,
        ..ledger::Query::default()
    }
}

fn failed(error: SearchError) -> RecordsError {
    match error {
        SearchError::TextNeedsTime => RecordsError::Query(error.to_string()),
        SearchError::Deadline { .. } | SearchError::Rebuilding => RecordsError::Later(error.to_string()),
        // The ledger has told it as a problem already.
        SearchError::File(_) => RecordsError::Failed,
    }
}
