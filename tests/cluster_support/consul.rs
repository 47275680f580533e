//! Consul: servers on machines of their own, and an agent on each machine that registers or asks.
//!
//! Every agent answers DNS on port 53 of its machine, which is what `/etc/resolv.conf` there names, and HTTP on 8500.

use super::net::{Machine, Net};
use crate::harness::http::{self, Response};
use crate::harness::{parts, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What an agent is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Server,
    Client,
    /// Goes on answering names it was asked before while no server is there (`dns_config.use_cache`).
    Caching,
}

/// One Consul process.
pub struct Agent {
    pub machine: Machine,
    binary: PathBuf,
    child: Option<Child>,
    starts: u32,
}

impl Agent {
    fn lay_out(machine: Machine, kind: Kind, servers: &[Ipv4Addr], more: &Value) -> Self {
        let mut conf = json!({
            "node_name": machine.name, "data_dir": machine.dir().join("consul"), "bind_addr": machine.ip, "client_addr": "0.0.0.0",
            "ports": { "http": 8500, "dns": 53, "grpc": -1, "serf_wan": -1 }, "retry_join": servers, "retry_interval": "1s",
            "performance": { "raft_multiplier": 1 }, "disable_update_check": true, "leave_on_terminate": false,
            "server": kind == Kind::Server,
        });
        if kind == Kind::Server {
            conf["bootstrap_expect"] = servers.len().into();
        }
        if kind == Kind::Caching {
            conf["dns_config"] = json!({ "use_cache": true, "cache_max_age": "10m" });
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        fs::write(machine.dir().join("consul.json"), conf.to_string()).expect("consul.json");
        Self { machine, binary: parts::fetch("consul"), child: None, starts: 0 }
    }

    /// Lays one out and starts it; does not wait. `more`: further keys of its configuration.
    pub fn spawned(net: &Net, name: &str, kind: Kind, servers: &[Ipv4Addr], more: &Value) -> Self {
        let mut agent = Self::lay_out(net.machine(name), kind, servers, more);
        agent.spawn();
        agent
    }

    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{}'s agent runs already", self.machine.name);
        self.starts += 1;
        let log = fs::File::create(self.machine.dir().join(format!("consul.log.{}", self.starts))).expect("a log");
        let mut command = self.machine.command(&self.binary);
        command.arg("agent").arg("-config-file").arg(self.machine.dir().join("consul.json"));
        self.child = Some(command.stdout(log).stderr(Stdio::null()).spawn().expect("consul starts"));
    }

    /// Waits until its API answers and it knows a leader.
    pub fn wait_ready(&self, limit: Duration) {
        let up = wait_until(limit, || self.leader().is_some());
        assert!(up, "{}'s agent knows no leader:\n{}", self.machine.name, self.log_tail(30));
    }

    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Where its API listens.
    pub fn http(&self) -> SocketAddr {
        (self.machine.ip, 8500).into()
    }

    /// Where it answers DNS.
    pub fn dns(&self) -> SocketAddr {
        (self.machine.ip, 53).into()
    }

    /// A request of its API. `None` when it does not answer.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<Response> {
        http::once(self.http(), method, path, &[], body.as_bytes()).ok()
    }

    /// GET; null when it does not answer, or with an error.
    pub fn get(&self, path: &str) -> Value {
        self.request("GET", path, "").filter(|r| r.status == 200).map(|r| r.json()).unwrap_or_default()
    }

    /// PUT that must succeed.
    pub fn put(&self, path: &str, body: &str) {
        let answer = self.request("PUT", path, body);
        assert!(answer.as_ref().is_some_and(|r| r.status == 200), "PUT {path}: {:?}", answer.map(|r| r.text()));
    }

    /// The leader's address as it knows it.
    pub fn leader(&self) -> Option<Ipv4Addr> {
        self.get("/v1/status/leader").as_str()?.parse::<SocketAddr>().ok().and_then(|at| match at.ip() {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        })
    }

    /// What DNS there answers (`dig +short`), one line each; empty when it gives nothing or does not answer.
    pub fn dig(&self, name: &str, kind: &str) -> Vec<String> {
        dig(self.dns(), name, kind)
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let file = self.machine.dir().join(format!("consul.log.{}", self.starts));
        let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
        let all: Vec<_> = text.lines().collect();
        format!("--- consul on {} said at last:\n{}", self.machine.name, all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tail(5));
        }
        self.kill9();
    }
}

/// What a DNS server answers, one line each; empty when it gives nothing or does not answer within two seconds.
pub fn dig(server: SocketAddr, name: &str, kind: &str) -> Vec<String> {
    let at = format!("@{}", server.ip());
    let port = server.port().to_string();
    let mut command = Command::new("dig");
    command.args(["+short", "+time=1", "+tries=2", "-p", &port, &at, name, kind]).stdin(Stdio::null());
    let output = command.output().expect("dig runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // It tells of time-outs and refusals in comments.
    text.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect()
}

/// A resource record of an answer.
#[derive(Clone, Debug)]
pub struct Record {
    pub name: String,
    /// Seconds.
    pub ttl: u64,
    pub kind: String,
    pub data: String,
}

/// The records of a DNS server's answer and what it adds to it; empty when it gives nothing.
pub fn records(server: SocketAddr, name: &str, kind: &str) -> Vec<Record> {
    let at = format!("@{}", server.ip());
    let port = server.port().to_string();
    let mut command = Command::new("dig");
    command.args(["+noall", "+answer", "+additional", "+time=1", "+tries=2", "-p", &port, &at, name, kind]).stdin(Stdio::null());
    let output = command.output().expect("dig runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let record = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [name, ttl, "IN", kind, data @ ..] = &words[..] else { return None };
        Some(Record { name: (*name).into(), ttl: ttl.parse().ok()?, kind: (*kind).into(), data: data.join(" ") })
    };
    text.lines().filter(|line| !line.starts_with(';')).filter_map(record).collect()
}

/// The servers.
pub struct Servers {
    pub all: Vec<Agent>,
}

impl Servers {
    /// Starts one on each of these machines; does not wait.
    pub fn spawn(net: &Net, names: &[String], more: &Value) -> Self {
        super::net::need("dig", &["bind9-dnsutils"]);
        let addresses: Vec<_> = names.iter().map(|name| net.machine(name).ip).collect();
        let all = names.iter().map(|name| Agent::spawned(net, name, Kind::Server, &addresses, more));
        Self { all: all.collect() }
    }

    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.all.iter().map(|s| s.machine.ip).collect()
    }

    /// Waits until all that run know one leader, which takes writes.
    pub fn wait_formed(&self, limit: Duration) {
        let formed = wait_until(limit, || {
            let mut leaders: Vec<_> = self.all.iter().filter(|s| s.runs()).map(Agent::leader).collect();
            leaders.dedup();
            leaders.len() == 1 && leaders[0].is_some() && self.writable()
        });
        assert!(formed, "{}", self.all.iter().map(|s| s.log_tail(10)).collect::<String>());
    }

    fn writable(&self) -> bool {
        let running = self.all.iter().find(|s| s.runs());
        running.and_then(|s| s.request("PUT", "/v1/kv/bench/formed", "1")).is_some_and(|r| r.status == 200)
    }

    /// Which one leads.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.all.iter().filter(|s| s.runs()).find_map(Agent::leader)?;
        self.all.iter().position(|s| s.machine.ip == leader)
    }

    /// kill -9 of the leader; tells which.
    pub fn kill_leader(&mut self) -> usize {
        let leader = self.leader().expect("a leader");
        self.all[leader].kill9();
        leader
    }

    pub fn kill_all(&mut self) {
        self.all.iter_mut().for_each(Agent::kill9);
    }

    /// Starts those that do not run; does not wait.
    pub fn spawn_all(&mut self) {
        self.all.iter_mut().filter(|s| !s.runs()).for_each(Agent::spawn);
    }

    /// `rabbitmq.service.consul`: these machines, as an operator registers what has no agent. No checks.
    pub fn register_brokers(&self, brokers: &[&Machine]) {
        let server = self.all.iter().find(|s| s.runs()).expect("a server");
        for broker in brokers {
            let service =
                json!({ "ID": format!("rabbitmq-{}", broker.name), "Service": "rabbitmq", "Address": broker.ip, "Port": 5672 });
            let entry = json!({ "Node": broker.name, "Address": broker.ip, "Service": service });
            server.put("/v1/catalog/register", &entry.to_string());
        }
    }
}
