//! The sender as a subcommand: arguments to exit code.

use super::{Options, SendFailure, Target, run};
use crate::channel::ClientTls;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// Send files or folders to a receiver and sum up what it answered
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  hie send --mllp 127.0.0.1:2575 samples/hl7v2\n  \
                  hie send --mllp 127.0.0.1:2575 --connections 16 --count 100000 --fresh-ids samples/hl7v2/adt-a01-admit.hl7\n  \
                  hie send --http http://127.0.0.1:5001/fhir --header 'Authorization: Bearer …' bundle.json\n\n\
                  Exit code 0 when every message was accepted, 1 when not, 64 for wrong arguments, 69 when the target cannot be reached.")]
#[command(group = clap::ArgGroup::new("target").required(true).args(["mllp", "http"]))]
pub struct SendArgs {
    /// Send over MLLP to this receiver
    #[arg(long, value_name = "HOST:PORT")]
    mllp: Option<String>,
    /// POST each message to this URL
    #[arg(long, value_name = "URL")]
    http: Option<String>,
    /// Files or folders (recursive, by name); - for standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// At most so many messages a second, for example 500/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Connections, each with one message under way
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    connections: u32,
    /// Messages in all; the material is cycled through
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Passes over the material
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "count")]
    repeat: u64,
    /// Give each message its own control id (MSH-10), so that it is not taken for a resend
    #[arg(long)]
    fresh_ids: bool,
    /// Send the messages of a file or batch one by one
    #[arg(long)]
    split: bool,
    /// Turn LF and CRLF into CR (the default is to send byte for byte)
    #[arg(long)]
    cr: bool,
    /// For each answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// TLS, trusting the public authorities (for --mllp; an https URL says it by itself)
    #[arg(long)]
    tls: bool,
    /// TLS, trusting the authorities in this PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// PEM of our own certificate
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM of its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Name to expect in the receiver's certificate, where it is not the target's host
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Header for each request, for example 'Authorization: Bearer …'
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header, conflicts_with = "mllp")]
    headers: Vec<(String, String)>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// No progress bar; the summary stays
    #[arg(long)]
    quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().ok().filter(|r: &f64| r.is_finite() && *r > 0.0).ok_or_else(|| "a number above 0, as in 500/s".into())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("give NAME: VALUE")?;
    Ok((name.trim().into(), value.trim().into()))
}

impl SendArgs {
    fn options(self) -> Options {
        let given = self.tls || self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_name.is_some();
        let tls =
            given.then_some(ClientTls { ca: self.tls_ca, cert: self.tls_cert, key: self.tls_key, server_name: self.tls_name });
        let target = match (self.mllp, self.http) {
            (Some(address), _) => Target::Mllp { address, tls },
            (None, url) => Target::Http { url: url.unwrap_or_default(), tls, headers: self.headers },
        };
        Options {
            paths: self.paths,
            connections: self.connections as usize,
            rate: self.rate,
            repeat: self.repeat,
            count: self.count,
            fresh_ids: self.fresh_ids,
            split: self.split,
            cr: self.cr,
            timeout: self.timeout,
            progress: !self.quiet && !self.json,
            ..Options::new(target)
        }
    }
}

/// Runs the subcommand. Exit codes: 0 all accepted, 1 not all, 64 usage, 69 target not reached, 70 no runtime.
pub fn main(args: SendArgs) -> ExitCode {
    let json = args.json;
    // One connection needs no second thread, and is quicker without.
    let mut builder = match args.connections {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(70, &format!("no runtime: {e}")),
    };
    let options = args.options();
    let stop = options.stop.clone();
    runtime.spawn(async move {
        // The first interruption ends the run with its summary; where it cannot be listened for, it ends the process.
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    match runtime.block_on(run(options)) {
        Ok(summary) => {
            if json {
                println!("{}", serde_json::json!(summary));
            } else {
                println!("{summary}");
            }
            ExitCode::from(u8::from(!summary.all_accepted()))
        }
        Err(SendFailure::Usage(reason)) => fail(64, &reason),
        Err(SendFailure::Unreachable(reason)) => fail(69, &reason),
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    eprintln!("hie send: {text}");
    ExitCode::from(code)
}
