//! `hie plan`: what a site needs, and what a running node should change.

mod print;

use super::{
    client::{Api, ApiArgs},
    configuration::ConfigArgs,
    exit::Failure,
    output,
};
use crate::preset::{
    self,
    plan::{Live, Plan, Sign, Site, plan, signs::signs},
};
use bytesize::ByteSize;
use clap::Args;
use reqwest::Url;
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Plan capacity: which preset a site needs, and what a running node should change
///
/// Peak connections of the live feed = patients a day x 0.03 + doctors x 2; twice that is planned for.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie plan --patients-per-day 10000 --doctors 30
  hie plan --patients-per-day 4000 --doctors 12 --growth 50 --retention 90days --json
  hie plan --from http://127.0.0.1:8080 --config /etc/hie/hie.toml
  hie plan --patients-per-day 4000 --doctors 12 --from http://127.0.0.1:8080 --config /etc/hie/hie.toml

With --from alone: what that node should change, and why. With a site too, message sizes and numbers are those that the node has seen. Its token is found as by `hie status`.")]
pub struct PlanArgs {
    /// Patients a day
    #[arg(long, value_name = "N", required_unless_present = "from", requires = "doctors", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    patients_per_day: Option<u64>,
    /// Doctors at work at the same time
    #[arg(long, value_name = "M", requires = "patients_per_day", value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    doctors: Option<u64>,
    /// Growth to plan for, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = growth)]
    growth: f64,
    /// Mean size of a message [default: measured on the test corpus]
    #[arg(long, value_name = "SIZE")]
    message_size: Option<ByteSize>,
    /// Messages for one patient of the day [default: 20, an assumption]
    #[arg(long, value_name = "N", value_parser = positive)]
    messages_per_patient: Option<f64>,
    /// How long finished transactions are kept [default: as the preset says]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// Read a running node: address of its management API
    #[arg(long, value_name = "URL")]
    from: Option<Url>,
    /// File of its token [default: admin.token_file, else <store>/admin-token]
    #[arg(long, value_name = "FILE", requires = "from")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn growth(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "a number, such as 25".to_owned())?;
    if (-90.0..=10_000.0).contains(&percent) { Ok(percent) } else { Err("from -90 to 10000".into()) }
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| *n > 0.0 && *n <= 1e6).ok_or_else(|| "a number above 0, 1000000 at most".to_owned())
}

/// What is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Node>,
}

/// A running node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    url: String,
    live: Live,
    signs: Vec<Sign>,
}

pub(super) fn main(args: PlanArgs) -> Result<(), Failure> {
    let node = args.from.clone().map(|url| look(&args, url)).transpose()?;
    let plan =
        args.patients_per_day.zip(args.doctors).map(|(patients, doctors)| plan(&site(&args, patients, doctors, node.as_ref())));
    let answer = Answer { plan, node };
    if args.json {
        return output::json(&answer);
    }
    if let Some(node) = &answer.node {
        print::node(node)?;
    }
    answer.plan.as_ref().map_or(Ok(()), print::plan)
}

fn site(args: &PlanArgs, patients_per_day: u64, doctors: u64, node: Option<&Node>) -> Site {
    let live = node.map(|node| &node.live);
    let seen = live.and_then(|live| live.messages_per_day);
    Site {
        patients_per_day,
        doctors,
        growth_percent: args.growth,
        message_bytes: args.message_size.map(|size| size.as_u64()),
        messages_per_patient: args.messages_per_patient.or(seen.map(|messages| messages / patients_per_day as f64)),
        // A size that was given is meant.
        stored_bytes: live.filter(|_| args.message_size.is_none()).and_then(|live| live.stored_bytes_per_message),
        retention_days: args.retention.map(|time| time.as_secs_f64() / 86_400.0),
        connections_per_resource: live.and_then(|live| live.max_connections_per_resource),
        url: node.map(|node| node.url.trim_end_matches('/').to_owned()),
    }
}

fn look(args: &PlanArgs, url: Url) -> Result<Node, Failure> {
    let (config, token_file) = (args.config.clone(), args.token_file.clone());
    let api = Api::open(&ApiArgs { config, url: Some(url.clone()), token_file, json: args.json })?;
    let status = api.get(&["status"], &[])?;
    let mut metrics = Vec::new();
    api.download(&["metrics"], &mut metrics)?;
    // A node of an older release has none.
    let stats = api.get(&["api", "admin", "system-stats"], &[]).ok();
    let live = Live::read(&status, &String::from_utf8_lossy(&metrics), stats.as_ref());
    // The node does not tell its preset; the limit in force is that of one, unless it was set by hand.
    let tier = live.max_connections_per_resource.and_then(|n| preset::tiers().iter().find(|t| t.connections_per_resource() == n));
    let signs = signs(&live, tier);
    Ok(Node { url: url.to_string(), live, signs })
}
