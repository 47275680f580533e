//! `hie tx discard`: deliveries given up.

use super::work::{Work, WorkArgs};
use crate::cli::{exit::Failure, output::text};
use clap::Args;
use serde_json::json;

/// Give deliveries up: parked ones, and those that wait on a route that is paused or not configured any more
///
/// Each is recorded as discarded; the message stays in the ledger and can be run again. A delivery in hand, or one that waits
/// on a route at work, is left as it is: hold the route first (`hie route pause`).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie tx discard 0198c0de-0000-7000-8000-000000000001
  hie tx discard --channel lab.results --route old-ehr --wait
  hie tx discard --status Parked --channel lab.results --to 2026-01-31 --json")]
pub struct DiscardArgs {
    /// Of this route only
    #[arg(long)]
    route: Option<String>,
    #[command(flatten)]
    work: WorkArgs,
}

pub(super) fn main(args: &DiscardArgs) -> Result<(), Failure> {
    args.work.run(Work {
        route: args.route.as_deref(),
        action: "discard",
        task: json!({ "discard": true }),
        all: false,
        told: |done| format!("{} deliveries discarded", text(done, &["deliveries"])),
    })
}
