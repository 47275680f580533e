//! Transactions as the management API tells of them.

use super::http::Response;
use super::wire::digest;
use super::{Node, wait_until};
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// All transactions, newest first.
pub fn transactions(node: &Node) -> Vec<Value> {
    let mut all = Vec::new();
    transactions_each(node, |row| all.push(row));
    all
}

/// The same, one after the other: for ledgers that are too large for memory. Pages go as deep as the API lets them; beyond that `to`
/// moves to the oldest row's time.
pub fn transactions_each(node: &Node, mut take: impl FnMut(Value)) {
    let mut seen = HashSet::new();
    let (mut page, mut to, mut before) = (0, String::new(), 0);
    loop {
        // 503: a view that was found damaged just now is being made again.
        let mut answer = Response::default();
        wait_until(Duration::from_secs(20), || {
            answer = node.get(&format!("/transactions?filterLimit=1000&filterPage={page}{to}"));
            answer.status != 503
        });
        assert_eq!(answer.status, 200, "{}", answer.text());
        let Value::Array(rows) = answer.json() else { panic!("no list: {}", answer.text()) };
        let full = rows.len() == 1000;
        let oldest = rows.last().map(|r| text(&r["request"]["timestamp"]).to_owned()).unwrap_or_default();
        rows.into_iter().filter(|r| seen.insert(digest(text(&r["_id"]).as_bytes()))).for_each(&mut take);
        page += 1;
        if page == 100 {
            assert!(seen.len() > before, "more than 100,000 transactions of one moment");
            (page, to, before) = (0, format!("&to={}", later(&oldest)), seen.len());
        } else if !full {
            return;
        }
    }
}

/// The next millisecond: `to` excludes, and other rows may have the same time.
fn later(timestamp: &str) -> i128 {
    let at = time::OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339);
    at.unwrap_or_else(|e| panic!("{timestamp:?}: {e}")).unix_timestamp_nanos() / 1_000_000 + 1
}

/// One transaction with its bodies.
pub fn transaction(node: &Node, id: &str) -> Value {
    node.get(&format!("/transactions/{id}")).json()
}

/// One body, byte for byte: `request`, `response` or a route's name.
pub fn body(node: &Node, id: &str, part: &str) -> Response {
    node.get(&format!("/transactions/{id}/body/{part}"))
}

/// A search by POST.
pub fn search(node: &Node, what: &Value) -> Vec<Value> {
    let answer = node.post("/transactions/search", &what.to_string());
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    answer.json().as_array().cloned().unwrap_or_default()
}

/// Waits until nothing is pending and the views have followed the log; false after `limit`.
pub fn settled(node: &Node, limit: Duration) -> bool {
    wait_until(limit, || {
        let metrics = node.metrics();
        let of = |name: &str| super::node::metric(&metrics, name);
        of("hie_messages_pending") == Some(0.0) && of("hie_ledger_view_lag") == Some(0.0)
    })
}

/// MSH-10, as a transaction tells it.
pub fn control_id(row: &Value) -> String {
    text(&row["hie"]["controlId"]).to_owned()
}

/// A string, or nothing.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
