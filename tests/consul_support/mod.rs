//! A real Consul agent (a server of its own, with DNS), what its names and catalog say, and nodes that register with it.
#![allow(dead_code)] // each test file uses its part

use crate::harness::{
    Builder, Node, http,
    node::free_port,
    parts, wait_until,
    wire::{Tag, adt, frame},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

/// The time that a change may take to be seen where nothing is measured.
pub const SOON: Duration = Duration::from_secs(15);

/// An agent on ports of its own; killed when dropped.
pub struct Agent {
    child: Option<Child>,
    dir: tempfile::TempDir,
    binary: PathBuf,
    pub http: SocketAddr,
    pub dns: SocketAddr,
    serf: SocketAddr,
    /// Times that it has told the catalog of itself.
    syncs: usize,
    /// The token shown by the calls of this harness.
    pub token: String,
}

impl Agent {
    pub fn start() -> Self {
        Self::with("{}")
    }

    /// One that is no server, joined to one that is.
    pub fn joined_to(server: &Agent, text: &str) -> Self {
        let more = format!(r#""server":false,"node_name":"joined","retry_join":["{}"]"#, server.serf);
        Self::laid_out(&more, text)
    }

    /// With a further file of configuration.
    pub fn with(text: &str) -> Self {
        Self::laid_out(r#""server":true,"bootstrap_expect":1"#, text)
    }

    fn laid_out(more: &str, text: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hie-agent-").tempdir().expect("a folder");
        let (http, dns, server, serf) = (free_port(), free_port(), free_port(), free_port());
        let own = format!(
            r#"{{"data_dir":{:?},"bind_addr":"127.0.0.1","client_addr":"127.0.0.1",{more},
                "performance":{{"raft_multiplier":1}},
                "ports":{{"http":{},"dns":{},"grpc":-1,"server":{},"serf_lan":{},"serf_wan":-1}}}}"#,
            dir.path().join("data"),
            http.port(),
            dns.port(),
            server.port(),
            serf.port()
        );
        fs::create_dir(dir.path().join("conf")).expect("a folder");
        fs::write(dir.path().join("conf/10-own.json"), own).expect("configuration");
        fs::write(dir.path().join("conf/50-more.json"), text).expect("configuration");
        let mut agent =
            Self { child: None, dir, binary: parts::fetch("consul"), http, dns, serf, syncs: 0, token: String::new() };
        agent.run();
        agent
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Starts it (again) and waits until it has a leader and has come to rest.
    pub fn run(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = Command::new(&self.binary);
        command.arg("agent").arg("-config-dir").arg(self.dir.path().join("conf")).stdin(Stdio::null());
        self.child = Some(command.stdout(log).stderr(Stdio::null()).spawn().expect("consul starts"));
        let up = wait_until(Duration::from_secs(30), || self.get("/v1/status/leader").is_some_and(|v| v.to_string().len() > 4));
        assert!(up, "{}", self.log());
        // When its server comes up an agent compares all that it has with the catalog, up to three seconds later; should something be
        // registered in that moment, it tries again after 15 to 30 s and tells nothing of a change until then (agent/ae of Consul).
        let before = self.syncs;
        assert!(
            wait_until(Duration::from_secs(60), || self.log().matches("Synced node info").count() > before),
            "{}",
            self.log()
        );
        self.syncs = self.log().matches("Synced node info").count();
        std::thread::sleep(Duration::from_millis(3200));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it, and with it all that it knows.
    pub fn kill_and_forget(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(self.dir.path().join("data"));
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> std::io::Result<http::Response> {
        let token = self.token.clone();
        let headers: &[(&str, &str)] = if token.is_empty() { &[] } else { &[("X-Consul-Token", &token)] };
        http::once(self.http, method, path, headers, body.as_bytes())
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.call("GET", path, "").ok()?.text()).ok()
    }

    pub fn put(&self, path: &str, body: &str) -> String {
        let answer = self.call("PUT", path, body).expect("the agent answers");
        assert_eq!(answer.status, 200, "PUT {path}: {}", answer.text());
        answer.text()
    }

    /// A value of the KV.
    pub fn set(&self, key: &str, value: &str) {
        self.put(&format!("/v1/kv/{key}"), value);
    }

    pub fn delete(&self, key: &str) {
        assert_eq!(self.call("DELETE", &format!("/v1/kv/{key}"), "").expect("the agent answers").status, 200);
    }

    /// Ids of the service in the catalog, healthy or not.
    pub fn registered(&self) -> BTreeSet<String> {
        let all = self.get("/v1/health/service/hie").and_then(|v| v.as_array().cloned()).unwrap_or_default();
        all.iter().filter_map(|e| Some(e["Service"]["ID"].as_str()?.to_owned())).collect()
    }

    /// What `dig +short` says of a name below `.service.consul`, line by line.
    pub fn dig(&self, name: &str, kind: &str) -> BTreeSet<String> {
        let server = format!("@{}", self.dns.ip());
        let (port, name) = (self.dns.port().to_string(), format!("{name}.service.consul"));
        let out = Command::new(dig())
            .args(["+short", "+tries=2", "+time=3", "+noedns", &server, "-p", &port, &name, kind])
            .output()
            .expect("dig runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines().filter(|l| !l.is_empty() && !l.starts_with(';')).map(str::to_owned).collect()
    }

    /// Addresses of a name.
    pub fn addresses(&self, name: &str) -> BTreeSet<IpAddr> {
        self.dig(name, "A").iter().filter_map(|l| l.parse().ok()).collect()
    }

    pub fn wait_for(&self, name: &str, expected: &[IpAddr]) {
        let expected: BTreeSet<IpAddr> = expected.iter().copied().collect();
        let right = wait_until(SOON, || self.addresses(name) == expected);
        let lines = self.log();
        let lines: Vec<&str> = lines.lines().collect();
        let last = lines.into_iter().filter(|l| !l.contains("Check is now critical")).collect::<Vec<_>>().join("\n");
        assert!(right, "{name}: {:?}, not {expected:?}\n--- the agent's last lines:\n{last}", self.addresses(name));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

fn dig() -> &'static str {
    static LOOKED: Mutex<bool> = Mutex::new(false);
    let mut looked = LOOKED.lock().unwrap_or_else(|e| e.into_inner());
    if !*looked {
        install("dig", "bind9-dnsutils");
        *looked = true;
    }
    "dig"
}

/// Installs a Debian package when its program is not there.
pub fn install(program: &str, package: &str) {
    let there = || Command::new("which").arg(program).output().is_ok_and(|o| o.status.success());
    if there() || Path::new("/usr/sbin").join(program).exists() {
        return;
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "-y", "-qq", package]).env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).output().is_ok_and(|o| o.status.success())
    };
    let had = install() || {
        let _ = Command::new("apt-get").args(["update", "-qq"]).output();
        install()
    };
    assert!(had, "{program} is missing: apt-get install {package}");
}

/// A node called `name` whose listeners are on 127.0.0.`last`, not started yet. `more` are lines of `[discovery]`.
pub fn node_at(agent_url: &str, name: &str, last: u8, builder: Builder, more: &str) -> Node {
    let section = format!("[discovery]\nconsul = \"{agent_url}\"\n{more}\n");
    let mut node = builder.section(&section).env("HIE_NODE__NAME", name).lay_out();
    let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    for address in [&mut node.mllp, &mut node.http, &mut node.admin, &mut node.health] {
        address.set_ip(ip);
    }
    node.write_config();
    node
}

pub fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// How long until `done`; fails after `limit`.
pub fn time_until(what: &str, limit: Duration, done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    assert!(wait_until(limit, done), "{what}: not within {limit:?}");
    begin.elapsed()
}

/// `/cluster` of a node.
pub fn cluster(node: &Node) -> Value {
    serde_json::from_str(&node.get("/cluster").text()).expect("JSON")
}

/// Waits for a line of the log.
pub fn wait_log(node: &Node, words: &str) {
    assert!(wait_until(SOON, || node.log().contains(words)), "no line {words:?}\n{}", node.log_tail(30));
}

/// The lines of the log that hold these words.
pub fn lines(node: &Node, words: &str) -> usize {
    node.log().lines().filter(|l| l.contains(words)).count()
}

/// A new connection gets a message acknowledged.
pub fn mllp_serves(at: SocketAddr, n: u64) -> bool {
    let try_it = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let message = adt(&Tag { key: format!("k{n}"), seq: 1, id: format!("D{n}") }, 300, "");
        stream.write_all(&frame(&message))?;
        let mut answer = [0; 1024];
        let n = stream.read(&mut answer)?;
        Ok(answer[..n].windows(6).any(|w| w == b"MSA|AA"))
    };
    try_it().unwrap_or(false)
}
