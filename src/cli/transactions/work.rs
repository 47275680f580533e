//! What `rerun` and `discard` have in common: transactions by id or by filter, done at once or as a task of the node.

use super::FilterArgs;
use crate::cli::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Which transactions, how fast, and whether to wait.
#[derive(Args, Debug)]
pub struct WorkArgs {
    /// Ids of transactions; without any, all that the filters below find
    ids: Vec<String>,
    /// Messages per second at most: 1 to 1000
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: Option<u32>,
    /// Wait until all are done; ends with 1 when some failed
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    api: ApiArgs,
}

/// What is done with them.
pub(super) struct Work<'a> {
    /// Of this route only.
    pub route: Option<&'a str>,
    /// The resource of one transaction that does it.
    pub action: &'static str,
    /// What makes a task do it.
    pub task: Value,
    /// Without ids and filters it is done with all there are.
    pub all: bool,
    /// One transaction's answer, told.
    pub told: fn(&Value) -> String,
}

impl WorkArgs {
    /// Does the work, or has the node do it.
    pub(super) fn run(&self, work: Work<'_>) -> Result<(), Failure> {
        let filter = self.filter.body()?;
        if !self.ids.is_empty() && !filter.is_empty() {
            return Err(Failure::usage("give ids or filters, not both"));
        }
        if self.ids.is_empty() && filter.is_empty() && !work.all {
            return Err(Failure::usage("say which: ids, or filters such as --status Failed --channel NAME"));
        }
        let api = Api::open(&self.api)?;
        if let [id] = self.ids.as_slice() {
            let body = work.route.map_or_else(|| json!({}), |route| json!({ "route": route }));
            let done = api.post(&["transactions", id, work.action], &body)?;
            return if self.api.json { output::json(&done) } else { output::print((work.told)(&done)) };
        }
        let mut task = work.task;
        if let Some(rate) = self.rate {
            task["rate"] = rate.into();
        }
        if let Some(route) = work.route {
            task["route"] = route.into();
        }
        if self.ids.is_empty() {
            task["filter"] = Value::Object(filter);
        } else {
            task["tids"] = json!(self.ids);
        }
        self.follow(&api, api.post(&["tasks"], &task)?)
    }

    /// Tells how a task stands, with `--wait` when it has ended.
    fn follow(&self, api: &Api, mut task: Value) -> Result<(), Failure> {
        let id = text(&task, &["_id"]);
        while self.wait && !matches!(text(&task, &["status"]).as_str(), "Completed" | "Cancelled" | "Failed") {
            std::thread::sleep(Duration::from_millis(500));
            task = api.get(&["tasks", &id], &[])?;
        }
        if self.api.json {
            output::json(&task)?;
        } else {
            let [status, total] = [["status"], ["totalTransactions"]].map(|path| text(&task, &path));
            let [work, done, failed] = ["work", "done", "failed"].map(|key| text(&task, &["hie", key]));
            let deliveries = match text(&task, &["hie", "deliveries"]) {
                n if work == "rerun" || n.is_empty() => String::new(),
                n => format!(" ({n} deliveries)"),
            };
            output::print(format!("task {id}: {status}, {total} transactions, {done} done{deliveries}, {failed} failed"))?;
        }
        if let Some(error) = task.pointer("/hie/error").and_then(Value::as_str) {
            return Err(Failure::failed(format!("the transactions could not be found: {error}")));
        }
        let failed = task.pointer("/hie/failed").and_then(Value::as_u64).unwrap_or(0);
        if self.wait && failed > 0 {
            return Err(Failure::failed(format!("{failed} transactions were left as they were; GET /tasks/{id} says why")));
        }
        Ok(())
    }
}
