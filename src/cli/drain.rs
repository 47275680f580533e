//! `hie drain`: finish what is in hand, then end.

use super::{
    client::{Api, ApiArgs},
    exit::{Failure, UNAVAILABLE},
    output,
};
use crate::host::{
    lock::{self, Holder},
    signals,
};
use clap::Args;
use serde_json::json;
use std::time::{Duration, Instant};

/// Let a node finish what is in hand and end
///
/// It stops accepting, finishes and acknowledges what it has begun, and ends; what waits for delivery stays in the store
/// for the next start. This command returns when it has ended.
///
/// The node on this machine is asked by a signal, one on another machine (--url) through its management API.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie drain --config /etc/hie/hie.toml --timeout 2m
  hie drain --url http://10.0.0.7:8080 --token-file token

Under systemd use `systemctl stop hie`, which does the same; after this command systemd may start the node again.")]
pub struct DrainArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// How long to wait for its end
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) fn main(args: &DrainArgs) -> Result<(), Failure> {
    if args.api.url.is_some() {
        return by_api(args);
    }
    let store = args.api.config.load(&[])?.config.node.store;
    let pid = match lock::held_by(&store) {
        Holder::Process(pid) => pid,
        Holder::Unseen => return by_api(args),
        Holder::Nobody => {
            return Err(Failure::unavailable(format!(
                "no node holds the store {}; name its configuration with --config, or its store with --store",
                store.display()
            )));
        }
    };
    signals::terminate(pid).map_err(|e| Failure::failed(format!("cannot ask process {pid} to drain: {e}")))?;
    wait(args.timeout, || lock::held_by(&store) != Holder::Process(pid))?;
    said(args, &format!("process {pid}"))
}

fn by_api(args: &DrainArgs) -> Result<(), Failure> {
    let api = Api::open(&args.api)?;
    api.post(&["drain"], &json!({}))?;
    wait(args.timeout, || api.get(&["heartbeat"], &[]).is_err_and(|e| e.code == UNAVAILABLE))?;
    said(args, "the node")
}

fn wait(timeout: Duration, ended: impl Fn() -> bool) -> Result<(), Failure> {
    let until = Instant::now() + timeout;
    while !ended() {
        if Instant::now() > until {
            let waited = humantime::format_duration(timeout);
            return Err(Failure::failed(format!("still draining after {waited}; it goes on by itself")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn said(args: &DrainArgs, who: &str) -> Result<(), Failure> {
    if args.api.json { output::json(&json!({ "drained": true })) } else { output::print(format!("drained: {who} has ended")) }
}
