//! `hie try`: a sample through the configuration; nothing is sent, nothing stored.

mod report;

use super::{check, configuration::ConfigArgs, exit::Failure, output};
use crate::{
    channel::{Set, client::ANONYMOUS, load::nearest},
    config::Config,
    engine::{
        content::Content,
        directory::Directory,
        ports::{Arrival, Incoming},
    },
    message::{
        HttpHead, Protocol,
        envelope::HeaderBytes,
        hl7::{batch, charset},
    },
};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use report::Report;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Larger samples tell no more.
const LARGEST: u64 = 64 << 20;

/// Try a sample: which channel takes it, why the others do not, and where it would go
///
/// Reads configuration, channels and clients as `hie run` would. Nothing is sent and nothing is stored.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie try --config hie.toml samples/hl7v2/adt-a01-admit.hl7
  hie try --config hie.toml --protocol http --path /fhir/Patient \\
      --header 'Content-Type: application/fhir+json' patient.json
  hie try samples/hl7v2/oru-r01-laboratory.hl7 --client lab --json

Ends with 0 when a channel takes the sample, 1 when it would be refused, 65 when the configuration is wrong.")]
pub struct TryArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The sample: a file, or - for standard input
    sample: PathBuf,
    /// How it would come [default: mllp for HL7 v2, else http]
    #[arg(long)]
    protocol: Option<By>,
    /// Name of the listener or watched folder [default: the first of the protocol]
    #[arg(long)]
    listener: Option<String>,
    /// HTTP method
    #[arg(long, default_value = "POST")]
    method: String,
    /// HTTP path, with query
    #[arg(long, default_value = "/")]
    path: String,
    /// HTTP header; several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Name of the sending client [default: what the listener gives to senders without a credential]
    #[arg(long)]
    client: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a sample would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Mllp,
    Http,
    File,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

pub(super) fn main(args: &TryArgs) -> Result<(), Failure> {
    let loaded = args.config.load(&[])?;
    let (channels, clients) = check::contents(&loaded)?;
    let wrong = |e: &dyn std::fmt::Display| Failure::config(e.to_string());
    let set = Set::compile(channels.list)
        .map_err(|e| Failure::config(e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let directory = Directory::new(clients).map_err(|e| wrong(&e))?;
    let sample = read(&args.sample)?;

    let mut reports = Vec::new();
    for body in messages(&sample) {
        let (protocol, listener) = listener(args, &loaded.config, &body)?;
        let arrival = arrival(args, &loaded.config, &body, protocol, listener);
        if arrival.client.as_ref() != ANONYMOUS && !directory.clients().iter().any(|c| c.name == *arrival.client) {
            return Err(Failure::usage(format!("no client is called \"{}\"; `hie check` lists them", arrival.client)));
        }
        let mllp = loaded.config.mllp.iter().find(|m| protocol == Protocol::Mllp && m.name == listener);
        let view = charset::view(&body, mllp.and_then(|m| charset::encoding(&m.charset)));
        reports.push(match Content::read(&arrival, &body, &view, true) {
            Ok(content) => Report::new(&arrival, &body, &content, &set, &directory, &loaded.config),
            Err(refusal) => Report::unreadable(&arrival, &body, &refusal),
        });
    }
    if args.json {
        output::json(&reports)?;
    } else {
        for report in &reports {
            output::print(report)?;
        }
    }
    match reports.iter().filter(|r| r.refused.is_some()).count() {
        0 => Ok(()),
        _ if reports.len() == 1 => Err(Failure::failed("the sample would be refused")),
        n => Err(Failure::failed(format!("{n} of {} messages would be refused", reports.len()))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::usage(format!("the sample {} cannot be read: {e}", path.display()));
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        std::fs::File::open(path).and_then(|f| f.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(failed)?;
    }
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::usage(format!("the sample {} is larger than {LARGEST} bytes", path.display())));
    }
    Ok(bytes)
}

/// The messages of a sample: without MLLP's frame, HL7's segments ended as they travel, batches taken apart.
fn messages(sample: &[u8]) -> Vec<Bytes> {
    let mut body = sample.strip_prefix(b"\x0b").unwrap_or(sample).to_vec();
    while body.last().is_some_and(|last| matches!(last, 0x1c)) || body.ends_with(b"\x1c\r") {
        body.truncate(body.len() - if body.ends_with(b"\r") { 2 } else { 1 });
    }
    if !is_hl7(&body) {
        return vec![body.into()];
    }
    // Editors end lines with LF; on the wire segments end with CR.
    if !body.contains(&b'\r') {
        body.iter_mut().filter(|b| **b == b'\n').for_each(|b| *b = b'\r');
    }
    let body = Bytes::from(body);
    match batch::split(&body) {
        Some(ranges) => ranges.map(|range| body.slice(range)).collect(),
        None => vec![body],
    }
}

fn is_hl7(body: &[u8]) -> bool {
    [b"MSH", b"FHS", b"BHS"].iter().any(|segment| body.starts_with(*segment))
}

/// How the sample would come, and through which listener or watched folder. A listener that is named says the protocol
/// too; one that the configuration does not have is told with those that it has.
fn listener<'a>(args: &'a TryArgs, config: &'a Config, body: &[u8]) -> Result<(Protocol, &'a str), Failure> {
    let mut known: Vec<(Protocol, &str)> = vec![(Protocol::Http, "http"), (Protocol::Http, "https")];
    known.extend(config.mllp.iter().map(|m| (Protocol::Mllp, m.name.as_str())));
    known.extend(config.file.iter().map(|f| (Protocol::File, f.name.as_str())));
    let asked = args.protocol.map(|by| match by {
        By::Mllp => Protocol::Mllp,
        By::Http => Protocol::Http,
        By::File => Protocol::File,
    });
    let Some(name) = &args.listener else {
        let protocol = asked.unwrap_or(if is_hl7(body) { Protocol::Mllp } else { Protocol::Http });
        let first = known.iter().find(|(by, _)| *by == protocol);
        return Ok((protocol, first.map_or("none", |(_, name)| name)));
    };
    known.retain(|(by, _)| asked.is_none_or(|asked| asked == *by));
    if let Some(found) = known.iter().find(|(_, known)| known == name) {
        return Ok(*found);
    }
    let of = asked.map_or(String::new(), |by| format!(" for {}", by.as_str()));
    let names: Vec<&str> = known.iter().map(|(_, name)| *name).collect();
    let meant = nearest(name, names.iter().copied()).map_or(".".into(), |near| format!("; did you mean \"{near}\"?"));
    let list = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Failure::usage(format!("no listener{of} is called \"{name}\"{meant} Listeners{of}: {list}")))
}

/// The sample as a gateway would hand it over.
fn arrival(args: &TryArgs, config: &Config, body: &Bytes, protocol: Protocol, listener: &str) -> Arrival {
    let given = match protocol {
        Protocol::Mllp => config.mllp.iter().find(|m| m.name == listener).and_then(|m| m.client.as_deref()),
        Protocol::Http => None,
        Protocol::File => config.file.iter().find(|f| f.name == listener).and_then(|f| f.client.as_deref()),
    };
    let (path, query) = args.path.split_once('?').unwrap_or((&args.path, ""));
    let http = (protocol == Protocol::Http).then(|| HttpHead {
        method: args.method.to_ascii_uppercase(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: args.header.iter().map(|(n, v)| (n.clone(), HeaderBytes(v.clone().into_bytes()))).collect(),
    });
    let file = args.sample.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Arrival {
        client: args.client.as_deref().or(given).unwrap_or(ANONYMOUS).into(),
        protocol,
        listener: listener.into(),
        remote: if protocol == Protocol::File { file } else { "127.0.0.1:0".into() },
        http,
        paced: true,
        body: Incoming::Whole(body.clone()),
    }
}
