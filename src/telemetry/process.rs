//! The process as the kernel sees it, read from `/proc/self` when somebody asks; under the names that every
//! Prometheus client library uses, so that ready-made dashboards show it.

use std::{
    fmt::Write,
    fs,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// Ticks per second of the times in `/proc`: a constant of Linux's interface to programs (USER_HZ).
const TICKS: f64 = 100.0;

/// Time since this was first called; the node calls it at start.
pub fn uptime() -> Duration {
    STARTED.0.elapsed()
}

/// Resident memory in bytes; `None` where `/proc` does not tell.
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the resident memory is made of, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub resident: u64,
    /// The heap, stacks and the like.
    pub anonymous: u64,
    /// Pages of files: the program itself, and what is mapped of the ledger.
    pub files: u64,
}

/// What the resident memory is made of; zeros where `/proc` does not tell.
pub fn resident_parts() -> Memory {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| {
        let kib = status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    Memory { resident: bytes("VmRSS:"), anonymous: bytes("RssAnon:"), files: bytes("RssFile:") + bytes("RssShmem:") }
}

/// Processor time so far: in the program, and in the kernel for it.
pub fn cpu_times() -> Option<(Duration, Duration)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let time = |i: usize| Some(Duration::from_secs_f64(fields.get(i)?.parse::<u64>().ok()? as f64 / TICKS));
    Some((time(11)?, time(12)?))
}

fn cpu_seconds_and_threads() -> Option<(f64, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the program's name in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64 / TICKS, number(17)?))
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// Appends the process's metrics in the Prometheus text format.
pub(super) fn encode(out: &mut String) {
    let mut put = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    if let Some(bytes) = resident_bytes() {
        put("process_resident_memory_bytes", "gauge", "Resident memory.", bytes as f64);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        put("process_open_fds", "gauge", "Open file descriptors.", open.count() as f64);
    }
    if let Some(max) = max_fds() {
        put("process_max_fds", "gauge", "Limit of open file descriptors.", max as f64);
    }
    if let Some((seconds, threads)) = cpu_seconds_and_threads() {
        put("process_cpu_seconds_total", "counter", "User and system time.", seconds);
        put("process_threads", "gauge", "Threads.", threads as f64);
    }
    let usage = super::usage::now();
    put(
        "hie_cpu_utilisation_average_percent",
        "gauge",
        "Processor used, of what may be used; mean of five minutes.",
        usage.cpu_average,
    );
    put("hie_cpu_utilisation_peak_percent", "gauge", "Processor used in the busiest second of five minutes.", usage.cpu_peak);
    put(
        "hie_memory_used_bytes",
        "gauge",
        "Memory in use: of the control group when it has a limit, else of the machine.",
        usage.used as f64,
    );
    put("hie_memory_total_bytes", "gauge", "Memory there is: the control group's limit, else the machine's.", usage.total as f64);
    put("hie_memory_utilisation_percent", "gauge", "Memory in use, of what there is.", usage.memory_percent());
    let start = STARTED.1.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    put("process_start_time_seconds", "gauge", "Start, Unix time.", start);
    put("hie_uptime_seconds", "gauge", "Time since start.", uptime().as_secs_f64());
    let version = env!("CARGO_PKG_VERSION");
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP hie_build_info The running program.\n# TYPE hie_build_info gauge\nhie_build_info{{version=\"{version}\"}} 1"
    );
}
