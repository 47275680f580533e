//! What is wrong with the store, for the operator: kept until the cause is gone, shown by health and the admin API.

use std::collections::VecDeque;
use std::sync::Mutex;

/// Problems kept; older ones give way.
const KEPT: usize = 64;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Unix milliseconds.
    pub at: i64,
    /// File or part.
    pub what: String,
    /// What happened and what to do next; no content of messages.
    pub text: String,
}

/// All problems.
#[derive(Default)]
pub struct Problems(Mutex<VecDeque<Problem>>);

impl Problems {
    /// Adds one; the same text about the same file only once, with the time of the latest. True: it was not there.
    pub fn add(&self, what: &str, text: String) -> bool {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let before = all.len();
        all.retain(|p| p.what != what || p.text != text);
        let new = all.len() == before;
        if all.len() >= KEPT {
            all.pop_front();
        }
        all.push_back(Problem { at: super::core::now_ms(), what: what.to_owned(), text });
        new
    }

    /// What was wrong with `what` is so no longer.
    pub fn clear(&self, what: &str) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).retain(|p| p.what != what);
    }

    /// Did it happen to `what` within the last so many milliseconds?
    pub fn lately(&self, what: &str, within_ms: i64) -> bool {
        let since = super::core::now_ms() - within_ms;
        self.0.lock().unwrap_or_else(|e| e.into_inner()).iter().any(|p| p.what == what && p.at >= since)
    }

    /// Oldest first.
    pub fn all(&self) -> Vec<Problem> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).iter().cloned().collect()
    }
}
