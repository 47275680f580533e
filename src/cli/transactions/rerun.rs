//! `hie tx rerun`: messages run again, or parked deliveries put back.

use super::work::{Work, WorkArgs};
use crate::cli::{exit::Failure, output::text};
use clap::Args;
use serde_json::json;

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
    /// Put parked deliveries back, instead of running whole messages again
    #[arg(long)]
    parked: bool,
    /// Of this route only (with --parked)
    #[arg(long, requires = "parked")]
    route: Option<String>,
    #[command(flatten)]
    work: WorkArgs,
}

pub(super) fn main(args: &RerunArgs) -> Result<(), Failure> {
    args.work.run(match args.parked {
        true => Work {
            route: args.route.as_deref(),
            action: "requeue",
            task: json!({ "parked": true }),
            all: true,
            told: |done| format!("{} deliveries put back", text(done, &["deliveries"])),
        },
        false => Work {
            route: None,
            action: "rerun",
            task: json!({ "parked": false }),
            all: false,
            told: |done| format!("runs again as {}", text(done, &["_id"])),
        },
    })
}
