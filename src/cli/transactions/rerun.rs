//! `hie tx rerun`: messages run again, or parked deliveries put back.

use super::FilterArgs;
use crate::cli::{
    client::{Api, ApiArgs},
    exit::Failure,
    output::{self, text},
};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Run messages again, or put their parked deliveries back into their queues
///
/// A rerun is a new transaction of the same message, through the channel that took it, to all of its routes. With --parked
/// only the parked deliveries are tried again, as part of the old transaction.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie tx rerun 0198c0de-0000-7000-8000-000000000001
  hie tx rerun --status Failed --channel lab.results --from 2026-01-31 --wait
  hie tx rerun --parked --channel lab.results")]
pub struct RerunArgs {
    /// Ids of transactions; without any, all that the filters below find
    ids: Vec<String>,
    /// Put parked deliveries back, instead of running whole messages again
    #[arg(long)]
    parked: bool,
    /// Of this route only (one transaction, with --parked)
    #[arg(long, requires = "parked")]
    route: Option<String>,
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

pub(super) fn main(args: &RerunArgs) -> Result<(), Failure> {
    let filter = args.filter.body()?;
    if !args.ids.is_empty() && !filter.is_empty() {
        return Err(Failure::usage("give ids or filters, not both"));
    }
    if args.ids.is_empty() && filter.is_empty() && !args.parked {
        return Err(Failure::usage("say which: ids, or filters such as --status Failed --channel NAME"));
    }
    if args.route.is_some() && args.ids.len() != 1 {
        return Err(Failure::usage("--route goes with one id"));
    }
    let api = Api::open(&args.api)?;
    if let [id] = args.ids.as_slice() {
        return one(&api, args, id);
    }
    let mut task = json!({ "parked": args.parked });
    if let Some(rate) = args.rate {
        task["rate"] = rate.into();
    }
    if args.ids.is_empty() {
        task["filter"] = Value::Object(filter);
    } else {
        task["tids"] = json!(args.ids);
    }
    let mut task = api.post(&["tasks"], &task)?;
    let id = text(&task, &["_id"]);
    while args.wait && !matches!(text(&task, &["status"]).as_str(), "Completed" | "Cancelled" | "Failed") {
        std::thread::sleep(Duration::from_millis(500));
        task = api.get(&["tasks", &id], &[])?;
    }
    if args.api.json {
        output::json(&task)?;
    } else {
        let [status, total] = [["status"], ["totalTransactions"]].map(|path| text(&task, &path));
        let [done, failed] = ["done", "failed"].map(|key| text(&task, &["hie", key]));
        output::print(format!("task {id}: {status}, {total} transactions, {done} done, {failed} failed"))?;
    }
    if let Some(error) = task.pointer("/hie/error").and_then(Value::as_str) {
        return Err(Failure::failed(format!("the transactions could not be found: {error}")));
    }
    let failed = task.pointer("/hie/failed").and_then(Value::as_u64).unwrap_or(0);
    if args.wait && failed > 0 {
        return Err(Failure::failed(format!("{failed} transactions were not run again; GET /tasks/{id} says why")));
    }
    Ok(())
}

fn one(api: &Api, args: &RerunArgs, id: &str) -> Result<(), Failure> {
    let (action, body) = match args.parked {
        true => ("requeue", args.route.as_ref().map_or_else(|| json!({}), |route| json!({ "route": route }))),
        false => ("rerun", json!({})),
    };
    let done = api.post(&["transactions", id, action], &body)?;
    if args.api.json {
        return output::json(&done);
    }
    output::print(match args.parked {
        true => format!("{} deliveries put back", text(&done, &["deliveries"])),
        false => format!("runs again as {}", text(&done, &["_id"])),
    })
}
