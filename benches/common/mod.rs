//! What the measurements share: a load of one message in flight per connection, bare peers in processes of their own,
//! rounds that alternate between the measured and its limit, and a table.
#![allow(dead_code)] // each measurement uses a part of it

pub mod http;
pub mod mllp;
pub mod sse;

use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds of one phase; `HIE_BENCH_SECONDS` sets another number.
pub fn phase() -> Duration {
    Duration::from_secs(number("HIE_BENCH_SECONDS", 4))
}

/// How often measured and limit alternate; `HIE_BENCH_ROUNDS`.
pub fn rounds() -> u64 {
    number("HIE_BENCH_ROUNDS", 3)
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// What a load saw in one phase.
#[derive(Clone)]
pub struct Figures {
    pub count: u64,
    pub elapsed: Duration,
    pub latency_us: Histogram<u64>,
    /// Answers other than an acceptance, and broken connections.
    pub failed: u64,
}

impl Figures {
    pub fn new() -> Self {
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        Self { count: 0, elapsed: Duration::ZERO, latency_us, failed: 0 }
    }

    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub fn ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.failed += other.failed;
        self.latency_us.add(&other.latency_us).expect("the same bounds");
    }
}

/// Runs `connections` tasks on a runtime of their own until `span` has passed; `one` makes one exchange a call.
pub fn load<C, F>(connections: usize, span: Duration, make: impl Fn(usize) -> F) -> Figures
where
    C: Exchange + Send + 'static,
    F: Future<Output = std::io::Result<C>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for number in 0..connections {
            tasks.push(make(number));
        }
        // All connected before the clock starts.
        let mut open = Vec::new();
        for task in tasks {
            open.push(task.await.expect("a connection"));
        }
        let begin = Instant::now();
        let end = begin + span;
        let running: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                tokio::spawn(async move {
                    let mut seen = Figures::new();
                    loop {
                        let start = Instant::now();
                        if start >= end {
                            return seen;
                        }
                        match connection.once().await {
                            Ok(true) => {
                                seen.count += 1;
                                let _ = seen.latency_us.record((start.elapsed().as_micros() as u64).max(1));
                            }
                            Ok(false) => seen.failed += 1,
                            Err(_) => {
                                seen.failed += 1;
                                return seen;
                            }
                        }
                    }
                })
            })
            .collect();
        let mut all = Figures::new();
        for task in running {
            all.add(&task.await.expect("a sender"));
        }
        all.elapsed = begin.elapsed();
        all
    })
}

/// One request and its answer; true when it was accepted.
pub trait Exchange {
    fn once(&mut self) -> impl Future<Output = std::io::Result<bool>> + Send;
}

/// This program again, in another role (`--bare-mllp PORT`, `--bare-http PORT`), so that a peer shares no runtime with
/// the load.
pub struct Peer(Child, pub SocketAddr);

impl Peer {
    pub fn start(role: &str, at: SocketAddr) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.arg(role).arg(at.port().to_string()).stdin(Stdio::null());
        let child = command.spawn().expect("this program starts again");
        for _ in 0..500 {
            if std::net::TcpStream::connect(at).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child, at)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this process as a bare peer when its arguments say so; never returns then.
pub fn play_role() {
    let args: Vec<String> = std::env::args().collect();
    let port = |role: &str| {
        let at = args.iter().position(|a| a == role)?;
        args.get(at + 1)?.parse::<u16>().ok()
    };
    if let Some(port) = port("--bare-mllp") {
        mllp::bare(port);
    }
    if let Some(port) = port("--bare-durable") {
        mllp::durable(port);
    }
    if let Some(port) = port("--bare-http") {
        http::bare(port);
    }
}

/// The middle one of several figures.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    if all.is_empty() { 0.0 } else { all[all.len() / 2] }
}

/// Rates of several rounds, and all latencies together.
#[derive(Default)]
pub struct Series {
    pub rates: Vec<f64>,
    pub all: Option<Figures>,
}

impl Series {
    pub fn add(&mut self, figures: Figures) {
        self.rates.push(figures.rate());
        match &mut self.all {
            Some(all) => all.add(&figures),
            None => self.all = Some(figures),
        }
    }
    pub fn rate(&self) -> f64 {
        median(self.rates.clone())
    }
    pub fn ms(&self, quantile: f64) -> f64 {
        self.all.as_ref().map_or(0.0, |a| a.ms(quantile))
    }
    pub fn failed(&self) -> u64 {
        self.all.as_ref().map_or(0, |a| a.failed)
    }
}

/// A table for a terminal.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    println!("{table}");
}

/// `measured` as a share of `limit`, and whether it reaches `least`.
pub fn ratio(measured: f64, limit: f64, least: f64) -> String {
    let share = measured / limit.max(1e-9);
    format!("{share:.3} ({} {least:.3})", if share >= least { "reaches" } else { "BELOW" })
}
