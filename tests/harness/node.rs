//! A node in a folder of its own, driven from outside: processes, signals, /proc, the management API.

use super::http::{self, Response};
use super::{Rng, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The binary under test; `HIE_BIN` names another one.
pub fn binary() -> PathBuf {
    std::env::var_os("HIE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_hie").into(), PathBuf::from)
}

/// A free loopback port below the ephemeral range, so that no outgoing connection takes it meanwhile.
pub fn free_port() -> SocketAddr {
    static CHANCE: Mutex<Option<(Rng, HashSet<u16>)>> = Mutex::new(None);
    let mut chance = CHANCE.lock().unwrap();
    let (rng, given) = chance.get_or_insert_with(|| {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        (Rng::new(nanos ^ u64::from(std::process::id()) << 40), HashSet::new())
    });
    loop {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, rng.range(10_000, 32_000) as u16));
        if given.insert(at.port()) && TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}

/// What a node is to be.
pub struct Builder {
    pub binary: PathBuf,
    pub store: Option<PathBuf>,
    /// Lines inside `[node]`, `[http]`, `[[mllp]]`; and whole further sections.
    pub node: String,
    pub http: String,
    pub mllp: String,
    pub sections: String,
    pub channels: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// A command that ends by running the arguments it is given (strace, nsenter, a shell).
    pub wrapper: Vec<String>,
    /// How long a start may take.
    pub patience: Duration,
    pub name: String,
    /// The address of a machine of its own, where it has the usual ports; else free ones of this machine.
    pub at: Option<IpAddr>,
    /// Where its folder is made.
    pub within: PathBuf,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            binary: binary(),
            store: None,
            node: String::new(),
            http: String::new(),
            mllp: String::new(),
            sections: String::new(),
            channels: vec![],
            args: vec![],
            env: vec![],
            wrapper: vec![],
            patience: Duration::from_secs(20),
            name: "witness".into(),
            at: None,
            within: std::env::temp_dir(),
        }
    }
}

impl Builder {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }
    pub fn store(mut self, path: impl Into<PathBuf>) -> Self {
        self.store = Some(path.into());
        self
    }
    /// A line of `[node]`.
    pub fn node(mut self, line: &str) -> Self {
        self.node += &format!("{line}\n");
        self
    }
    /// A line of `[http]`.
    pub fn http(mut self, line: &str) -> Self {
        self.http += &format!("{line}\n");
        self
    }
    /// A line of `[[mllp]]`.
    pub fn mllp(mut self, line: &str) -> Self {
        self.mllp += &format!("{line}\n");
        self
    }
    /// A whole section, its header included.
    pub fn section(mut self, text: &str) -> Self {
        self.sections += &format!("{text}\n");
        self
    }
    /// One `[[channel]]` with its routes.
    pub fn channel(mut self, text: impl Into<String>) -> Self {
        self.channels.push(text.into());
        self
    }
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|s| (*s).to_owned()).collect();
        self
    }
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// Lays the folder out and takes ports; starts nothing.
    pub fn lay_out(self) -> Node {
        let dir = tempfile::Builder::new().prefix("hie-test-").tempdir_in(&self.within).expect("a temporary folder");
        let store = self.store.clone().unwrap_or_else(|| dir.path().join("store"));
        let port = |usual: u16| self.at.map_or_else(free_port, |ip| (ip, usual).into());
        let node = Node {
            mllp: port(2575),
            http: port(5001),
            admin: port(8080),
            health: port(8081),
            token_file: dir.path().join("admin-token"),
            store,
            setup: self,
            child: None,
            starts: 0,
            pid: None,
            keep: std::env::var_os("HIE_KEEP").is_some(),
            dir,
        };
        node.write_config();
        node
    }

    /// Lays out, starts, waits until it is ready.
    pub fn start(self) -> Node {
        let mut node = self.lay_out();
        node.start();
        node
    }
}

/// A node; killed when dropped.
pub struct Node {
    pub mllp: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub health: SocketAddr,
    pub store: PathBuf,
    pub setup: Builder,
    token_file: PathBuf,
    child: Option<Child>,
    starts: u32,
    /// Where it is not the child's: behind a wrapper, or after an upgrade.
    pid: Option<i32>,
    keep: bool,
    dir: tempfile::TempDir,
}

impl Node {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir().join("hie.toml")
    }

    /// Writes `hie.toml` and `channels.d/`; again after `setup` was changed.
    pub fn write_config(&self) {
        let s = &self.setup;
        let mut text = format!("[node]\nname = {:?}\nstore = {:?}\n{}\n", s.name, self.store, s.node);
        let _ = write!(text, "[http]\nlisten = \"{}\"\n{}\n", self.http, s.http);
        let _ = write!(text, "[[mllp]]\nname = \"lis\"\nlisten = \"{}\"\n{}\n", self.mllp, s.mllp);
        let _ = write!(text, "[admin]\nlisten = \"{}\"\ntoken_file = {:?}\n\n", self.admin, self.token_file);
        let _ = write!(text, "[health]\nlisten = \"{}\"\n\n{}", self.health, s.sections);
        fs::write(self.config_file(), text).expect("hie.toml");
        let channels = self.dir().join("channels.d");
        fs::create_dir_all(&channels).expect("channels.d");
        fs::write(channels.join("test.toml"), s.channels.join("\n")).expect("channel file");
    }

    /// The command that runs the node (or, with other arguments, any subcommand).
    pub fn command(&self, args: &[&str]) -> Command {
        let mut words: Vec<std::ffi::OsString> = self.setup.wrapper.iter().map(Into::into).collect();
        words.push(self.setup.binary.clone().into());
        words.extend(args.iter().map(Into::into));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.dir()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HIE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.setup.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts the process; does not wait.
    pub fn spawn(&mut self) {
        self.starts += 1;
        self.pid = None;
        let config = self.config_file();
        let mut args = vec!["run", "--config", config.to_str().expect("a UTF-8 path")];
        args.extend(self.setup.args.iter().map(String::as_str));
        let log = fs::File::create(self.dir().join(format!("log.{}", self.starts))).expect("a log file");
        let mut command = self.command(&args);
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.setup.binary)));
    }

    /// Starts it and waits until it is ready; gives the time that took.
    pub fn start(&mut self) -> Duration {
        let begin = Instant::now();
        self.spawn();
        if let Err(why) = self.wait_ready(self.setup.patience) {
            panic!("{why}\n{}", self.log_tail(60));
        }
        begin.elapsed()
    }

    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        loop {
            let said = http::once(self.health, "GET", "/health/ready", &[], b"");
            if said.as_ref().is_ok_and(|r| r.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok()).flatten()
                && self.pid.is_none()
            {
                return Err(format!("the node ended: {status}"));
            }
            if Instant::now() >= end {
                let said = said.map(|r| r.text()).unwrap_or_else(|e| e.to_string());
                return Err(format!("not ready within {limit:?}: {said}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The node's process; behind a wrapper that forks, its (only) descendant that runs the binary.
    pub fn pid(&self) -> i32 {
        self.pid.unwrap_or_else(|| self.child.as_ref().expect("a running node").id() as i32)
    }

    /// Looks for the process by its binary and configuration: behind strace, or after an upgrade that forked.
    pub fn find_pid(&mut self) -> i32 {
        let config = self.config_file();
        let config = config.to_string_lossy();
        let mut found = None;
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
            let ours = words.get(1).is_some_and(|w| w == "run") && words.contains(&config);
            if ours && fs::read_link(entry.path().join("exe")).is_ok() {
                found = Some(pid.max(found.unwrap_or(0)));
            }
        }
        let pid = found.unwrap_or_else(|| panic!("no node runs\n{}", self.log_tail(40)));
        self.pid = Some(pid);
        pid
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// kill -9, and the process is gone afterwards.
    pub fn kill9(&mut self) {
        if self.child.is_none() {
            return;
        }
        self.signal(Signal::SIGKILL);
        self.reap();
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = self.pid {
                // The descendant first; the wrapper ends with it, and is made to.
                wait_until(Duration::from_secs(10), || !Path::new(&format!("/proc/{pid}/exe")).exists());
                if !wait_until(Duration::from_secs(5), || child.try_wait().is_ok_and(|s| s.is_some())) {
                    let _ = child.kill();
                }
            }
            let _ = child.wait();
        }
        self.pid = None;
    }

    /// SIGTERM, and waits for the end; kills after `limit`.
    pub fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        let pid = self.pid();
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take()?;
        let ended =
            wait_until(limit, || child.try_wait().is_ok_and(|s| s.is_some()) && !Path::new(&format!("/proc/{pid}/exe")).exists());
        if !ended {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = child.kill();
            let _ = child.wait();
            self.pid = None;
            return None;
        }
        self.pid = None;
        child.wait().ok()
    }

    /// Waits for the process to end by itself.
    pub fn wait_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        wait_until(limit, || child.try_wait().is_ok_and(|s| s.is_some()));
        let status = child.try_wait().ok().flatten();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Is a process there?
    pub fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().is_ok_and(|s| s.is_none()))
            || self.pid.is_some_and(|p| Path::new(&format!("/proc/{p}/exe")).exists())
    }

    // === /proc ===

    fn status_kib(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most it ever was, in KiB.
    pub fn rss_peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    // === management ===

    /// The management API's token, written before the node says that it is ready.
    pub fn token(&self) -> String {
        fs::read_to_string(&self.token_file).unwrap_or_default().trim().to_owned()
    }

    pub fn admin(&self, method: &str, path: &str, body: &str) -> std::io::Result<Response> {
        let authorization = format!("Bearer {}", self.token());
        let mut headers = vec![("Authorization", authorization.as_str())];
        if !body.is_empty() {
            headers.push(("Content-Type", "application/json"));
        }
        http::once(self.admin, method, path, &headers, body.as_bytes())
    }

    pub fn get(&self, path: &str) -> Response {
        self.admin("GET", path, "").unwrap_or_else(|e| panic!("GET {path}: {e}\n{}", self.log_tail(40)))
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.admin("POST", path, body).unwrap_or_else(|e| panic!("POST {path}: {e}\n{}", self.log_tail(40)))
    }

    /// All metrics in the text format.
    pub fn metrics(&self) -> String {
        self.get("/metrics").text()
    }

    /// A metric's value, summed over its labels; `None` when there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        metric(&self.metrics(), name)
    }

    /// Everything that the node has said so far, over all its starts.
    pub fn log(&self) -> String {
        (1..=self.starts)
            .map(|n| fs::read(self.dir().join(format!("log.{n}"))).unwrap_or_default())
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .collect()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        format!("--- the node's last lines:\n{}", all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

/// A metric's value in a text, summed over its labels.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let mut sum = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((head, value)) = line.rsplit_once(' ') else { continue };
        if head.split('{').next() == Some(name)
            && let Ok(value) = value.parse::<f64>()
        {
            *sum.get_or_insert(0.0) += value;
        }
    }
    sum
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tail(40));
        }
        if let Some(child) = &mut self.child {
            if let Some(pid) = self.pid {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.keep {
            println!("kept: {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
        }
    }
}
