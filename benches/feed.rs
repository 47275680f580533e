//! The live feed with 10,000 readers (`HIE_BENCH_READERS`) on loopback, readers on the same cores, against nchan in nginx in the
//! same run:
//!
//! - *memory*: resident bytes of the server per idle connection; at most 8 KiB
//! - *one event*: from sending the message until the last reader has its event; at most 150 ms
//! - *throughput*: messages accepted durably with 10,000 readers connected, against none; at least 90 %. Once with all of them on
//!   a resource where nothing happens, once on `transactions`, where more happens than can be sent: the feed then lags.
//!   The reader processes have the lowest priority there, as they would be on other machines.
//!
//! The node runs in a control group with 2 GiB of memory, where root may make one. nginx with nchan is installed from Debian's
//! packages when missing (root); without it that part is left out and said so.
//!
//! `cargo bench --bench feed`; `HIE_BENCH_SECONDS`, `HIE_BENCH_ROUNDS`, `HIE_BENCH_READERS`.

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::mllp::Sender;
use common::sse::{Readers, play};
use common::{Series, load, median, number, phase, ratio, rounds, table};
use harness::node::{Node, free_port, metric};
use harness::{Builder, channels, http};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const CONNECTIONS: usize = 16;
const EVENTS: usize = 20;

fn main() {
    play();
    common::play_role();
    let count = number("HIE_BENCH_READERS", 10_000) as usize;
    let group = Group::new();
    println!("{count} readers; node {}", if group.is_some() { "in a control group of 2 GiB" } else { "in no control group" });
    let mut rows = Vec::new();
    one_event(count, group.as_ref(), &mut rows);
    match Nginx::start() {
        Ok(nginx) => nchan(count, &nginx, &mut rows),
        Err(why) => put(&mut rows, "nchan", why, ""),
    }
    throughput(count, group.as_ref(), &mut rows);
    table(&["what", "figure", "against"], &rows);
}

/// A figure, told at once and kept for the table.
fn put(rows: &mut Vec<Vec<String>>, what: impl Into<String>, figure: impl Into<String>, against: impl Into<String>) {
    let row = vec![what.into(), figure.into(), against.into()];
    println!("{}", row.join(" | "));
    rows.push(row);
}

fn start(count: usize, group: Option<&Group>) -> Node {
    let nobody = free_port();
    let mut node = Builder::new()
        .node("cluster = \"auto\"")
        .section("[limits]\nmax_pending = 50_000_000\n")
        .section(&format!("[feed]\nmax_connections = {count}\nmax_connections_per_resource = {count}\n"))
        // One event for each message: nothing is delivered.
        .channel(
            channels::queue("bench.adt", "true") + &channels::route("sink", &format!("mllp = [\"{nobody}\"]"), "paused = true"),
        );
    if let Some(group) = group {
        node = node.wrapper(&["sh", "-c", &format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display()), "sh"]);
    }
    node.start()
}

fn request(node: &Node, resource: &str) -> String {
    format!("GET /events/{resource} HTTP/1.1\nHost: x\nAuthorization: Bearer {}\n\n", node.token())
}

fn post(to: SocketAddr, path: &str) {
    let answer = http::once(to, "POST", path, &[], b"{\"resourceType\":\"Basic\"}").expect("an answer");
    assert!(answer.status < 300, "{} {}", answer.status, answer.text());
}

fn events(readers: &mut Readers, publish: impl Fn()) -> (f64, f64) {
    let all: Vec<f64> = (0..EVENTS)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(300));
            readers.all_have(&publish)
        })
        .collect();
    (median(all.clone()), all.iter().copied().fold(0.0, f64::max))
}

fn one_event(count: usize, group: Option<&Group>, rows: &mut Vec<Vec<String>>) {
    let node = start(count, group);
    // What a first few readers and messages bring with them is not theirs alone.
    drop(Readers::start(node.admin, &request(&node, "transactions"), 10, false));
    (0..10).for_each(|_| post(node.http, "/x"));
    std::thread::sleep(Duration::from_secs(2));
    let (before, group_before) = (node.rss_kib(), group.map(Group::used));
    let mut readers = Readers::start(node.admin, &request(&node, "transactions"), count, false);
    std::thread::sleep(Duration::from_secs(3));
    let idle = node.rss_kib();
    let each = (idle as f64 - before as f64) / count as f64;
    put(
        rows,
        "hie: resident per idle connection",
        format!("{:.0} bytes ({before} KiB before, {idle} KiB with all)", each * 1024.0),
        ratio(8.0, each, 1.0) + " of 8 KiB",
    );
    if let (Some(group), Some(before)) = (group, group_before) {
        let grown = group.used().saturating_sub(before) / count as u64;
        put(rows, "hie: control group per idle connection, the kernel's part included", format!("{grown} bytes"), "");
    }
    let (typical, worst) = events(&mut readers, || post(node.http, "/x"));
    put(
        rows,
        "hie: one event to the last",
        format!("median {typical:.1} ms, worst {worst:.1} ms of {EVENTS}"),
        ratio(150.0, worst, 1.0) + " of 150 ms",
    );
    put(rows, "hie: resident after these", format!("{} KiB", node.rss_kib()), "");
}

fn nchan(count: usize, nginx: &Nginx, rows: &mut Vec<Vec<String>>) {
    drop(Readers::start(nginx.at, "GET /sub HTTP/1.1\nHost: x\nAccept: text/event-stream\n\n", 10, false));
    std::thread::sleep(Duration::from_secs(1));
    let before = nginx.rss_kib();
    let mut readers = Readers::start(nginx.at, "GET /sub HTTP/1.1\nHost: x\nAccept: text/event-stream\n\n", count, false);
    std::thread::sleep(Duration::from_secs(3));
    let idle = nginx.rss_kib();
    put(
        rows,
        "nchan: resident per idle connection",
        format!("{:.0} bytes", (idle as f64 - before as f64) / count as f64 * 1024.0),
        "",
    );
    let (typical, worst) = events(&mut readers, || post(nginx.at, "/pub"));
    let what = "nchan: one event to the last (nothing stored)";
    put(rows, what, format!("median {typical:.1} ms, worst {worst:.1} ms of {EVENTS}"), "");
}

fn throughput(count: usize, group: Option<&Group>, rows: &mut Vec<Vec<String>>) {
    let send = |node: &Node, span| {
        let to = node.mllp;
        load(CONNECTIONS, span, move |number| Sender::connect(to, number))
    };
    let [mut none, mut quiet, mut busy] = std::array::from_fn(|_| Series::default());
    let mut notes = Vec::new();
    for _ in 0..rounds() {
        for (resource, series) in [(None, &mut none), (Some("alerts"), &mut quiet), (Some("transactions"), &mut busy)] {
            let node = start(count, group);
            let mut readers = resource.map(|r| Readers::start(node.admin, &request(&node, r), count, true));
            send(&node, Duration::from_millis(500));
            series.add(send(&node, phase()));
            if let Some(readers) = readers.as_mut().filter(|_| resource == Some("transactions")) {
                let metrics = node.metrics();
                let (events, open) = readers.count();
                let lag = metric(&metrics, "hie_feed_lag").unwrap_or(0.0);
                notes.push(format!("{events} events sent to readers, {open} of {count} still connected, {lag} facts behind"));
            }
        }
    }
    put(rows, format!("messages/s, no readers, {CONNECTIONS} senders"), format!("{:.0}", none.rate()), "the limit");
    for (what, series) in [("on a quiet resource", &quiet), ("on transactions", &busy)] {
        let figure = format!("{:.0}, p99 {:.2} ms, {} failed", series.rate(), series.ms(0.99), series.failed());
        put(rows, format!("messages/s, {count} readers {what}"), figure, ratio(series.rate(), none.rate(), 0.9));
    }
    notes.iter().for_each(|n| println!("readers on transactions, at the load's end: {n}"));
}

/// A control group with 2 GiB of memory, version 1 or 2.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let of = |controller: &str| {
            let line = own.lines().find(|l| l.split(':').nth(1) == Some(controller))?;
            Some(line.splitn(3, ':').nth(2)?.trim_start_matches('/').to_owned())
        };
        let (root, limit) = match of("memory") {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            None => (Path::new("/sys/fs/cgroup").join(of("")?), "memory.max"),
        };
        let root = if root.is_dir() { root } else { root.ancestors().find(|p| p.is_dir())?.to_owned() };
        let group = Self(root.join(format!("hie-bench-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(limit), "2147483648").ok()?;
        Some(group)
    }

    /// Bytes, those of the kernel included; without the cache of files.
    fn used(&self) -> u64 {
        let read = |name: &str| fs::read_to_string(self.0.join(name)).unwrap_or_default();
        let used: u64 = ["memory.usage_in_bytes", "memory.current"].iter().find_map(|n| read(n).trim().parse().ok()).unwrap_or(0);
        let stat = read("memory.stat");
        let cache = stat.lines().find_map(|l| l.strip_prefix("cache ").or_else(|| l.strip_prefix("file ")));
        used.saturating_sub(cache.and_then(|n| n.trim().parse().ok()).unwrap_or(0))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty only when the last node has ended.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// nginx with nchan: one worker per core, events kept in memory for those who come back.
struct Nginx {
    child: Child,
    at: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nginx {
    fn start() -> Result<Self, String> {
        const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
        if !Path::new(MODULE).exists() || !Path::new("/usr/sbin/nginx").exists() {
            let install = "apt-get install -y -q --no-install-recommends nginx libnginx-mod-nchan";
            let done = Command::new("sh").args(["-c", install]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !done.is_ok_and(|s| s.success()) {
                return Err("left out: install Debian's packages nginx and libnginx-mod-nchan".into());
            }
        }
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let at = free_port();
        let here = dir.path().display();
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let text = format!(
            "{user}\nload_module {MODULE};\ndaemon off;\npid {here}/pid;\nerror_log {here}/error;\nworker_processes 2;\n\
             worker_rlimit_nofile 20000;\nevents {{ worker_connections 12000; }}\n\
             http {{ access_log off; nchan_shared_memory_size 256M; client_body_temp_path {here}/b; proxy_temp_path {here}/p;\n\
             fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
             server {{ listen {at} backlog=4096; location /sub {{ nchan_subscriber eventsource; nchan_channel_id bench; \
             nchan_subscriber_first_message newest; }}\n\
             location /pub {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 10; }} }} }}\n"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, text).map_err(|e| e.to_string())?;
        let child = Command::new("/usr/sbin/nginx").arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let nginx = Self { child: child.map_err(|e| e.to_string())?, at, _dir: dir };
        for _ in 0..200 {
            if std::net::TcpStream::connect(at).is_ok() {
                return Ok(nginx);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(nginx._dir.path().join("error")).unwrap_or_default();
        Err(format!("left out: nginx does not start: {log}"))
    }

    /// Resident memory of all its processes; what they share is counted once (proportional shares).
    fn rss_kib(&self) -> u64 {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let all = children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()).chain([own]);
        all.map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
            line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
        })
        .sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // QUIT would wait for the readers.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
