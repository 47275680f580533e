//! Balancers in front of the nodes, their configuration rendered from the live catalog of a real Consul: a real haproxy and a real
//! nginx take it, carry HL7 and HTTP, pass the sender's address on, leave out what drains, and log no URL. LVS needs a kernel module
//! that few test machines have: its text is held against the form that ipvsadm restores (unit tests of `discovery::balancer`).

mod consul_support;
mod harness;

use consul_support::{Agent, SOON, install, ip, node_at};
use harness::channels::{queue, route};
use harness::{Builder, Load, Node, Receiver, Via, http, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Where the balancers listen; they send from here too.
const FRONT: u8 = 9;
/// In URLs and bodies; nothing may log it.
const CANARY: &str = "KANARIENVOGEL";

/// Two nodes with the same ports on addresses of their own, which believe the balancer's PROXY header.
fn nodes(agent: &Agent, receiver: &Receiver) -> [Node; 2] {
    let channel = queue("test.all", "true") + &route("primary", &receiver.target(), "");
    let builder = || {
        let trusted = "proxy_protocol_from = [\"127.0.0.0/8\"]";
        Builder::new().http(trusted).mllp(trusted).channel(channel.clone())
    };
    let more = "dns_ttl = \"4s\"\nforget_after = \"60s\"";
    let mut one = node_at(&agent.url(), "one", 2, builder(), more);
    let mut two = node_at(&agent.url(), "two", 3, builder(), more);
    for (from, to) in [(&one.mllp, &mut two.mllp), (&one.http, &mut two.http)] {
        to.set_port(from.port());
    }
    two.write_config();
    one.start();
    two.start();
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    agent.wait_for("http.hie", &[ip(2), ip(3)]);
    [one, two]
}

fn front(of: SocketAddr) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, FRONT), of.port()))
}

/// What `hie lb render` writes.
fn render(agent: &Agent, node: &Node, kind: &str, more: &[&str]) -> Result<String, String> {
    let (url, bind) = (agent.url(), format!("127.0.0.{FRONT}"));
    let args = [&["lb", "render", kind, "--consul", &url, "--bind", &bind], more].concat();
    let out = node.command(&args).output().expect("hie runs");
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

/// A balancer in a folder of its own; ended when dropped.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
    command: Vec<String>,
}

impl Running {
    fn start(folder: tempfile::TempDir, command: &[&str], open: SocketAddr) -> Self {
        let log = fs::File::create(folder.path().join("out")).expect("a log");
        let mut run = Command::new(command[0]);
        run.args(&command[1..]).stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = run.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let running = Self { child, folder, command: command.iter().map(|s| (*s).to_owned()).collect() };
        let up = wait_until(SOON, || http::Client::connect(open, Duration::from_secs(1)).is_ok());
        assert!(up, "{:?}: {}", running.command, running.log());
        running
    }

    fn log(&self) -> String {
        let read =
            |name: &str| String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap_or_default()).into_owned();
        read("out") + &read("access.log") + &read("error.log")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        if !wait_until(Duration::from_secs(5), || self.child.try_wait().is_ok_and(|s| s.is_some())) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn checked(command: &[&str]) {
    let out = Command::new(command[0]).args(&command[1..]).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !said.contains("[WARNING]") && !said.contains("[warn]"), "{command:?}: {said}");
}

fn program(name: &str) -> String {
    let system = Path::new("/usr/sbin").join(name);
    if system.exists() { system.display().to_string() } else { name.to_owned() }
}

/// HL7 and HTTP through the balancer: all acknowledged, nothing refused, by both nodes; the sender's address is known.
fn carries(nodes: &[Node; 2], receiver: &Receiver, name: &str) {
    let before: Vec<f64> = nodes.iter().map(|n| n.metric("hie_messages_accepted_total").unwrap_or(0.0)).collect();
    let load = |via: Via, kind: &str| Load { count: Some(20), name: format!("{name}{kind}"), ..Load::new(via) };
    let mllp = load(Via::Mllp(front(nodes[0].mllp)), "M").run(SOON);
    let web = load(Via::Http(front(nodes[0].http), format!("/fhir/Patient?name={CANARY}")), "H").run(SOON);
    for sent in [&mllp, &web] {
        assert_eq!(sent.acknowledged.len(), 160, "{:?} {:?}", sent.refused, sent.violations);
        assert!(sent.refused.is_empty() && sent.violations.is_empty() && sent.connect_failures == 0);
        assert!(receiver.wait_for(sent, SOON), "all delivered");
    }
    for (node, before) in nodes.iter().zip(before) {
        let now = node.metric("hie_messages_accepted_total").unwrap_or(0.0);
        assert!(now - before >= 20.0, "each node takes its share: {before} to {now}");
        let all = node.get("/transactions?filterLimit=5&filterRepresentation=full").json();
        let of = |t: &serde_json::Value| t["clientIP"].as_str().unwrap_or("").to_owned();
        let sources: Vec<String> = all.as_array().expect("transactions").iter().map(of).collect();
        assert!(
            !sources.is_empty() && sources.iter().all(|s| s == "127.0.0.1"),
            "the sender's address, not the balancer's: {sources:?}"
        );
    }
}

/// A drain under load through a balancer that looks at health: nobody is refused.
fn drains_unseen(nodes: &mut [Node; 2], receiver: &Receiver, checks: bool) {
    let mut loads = vec![Load { rate: Some(100.0), name: "DM".into(), ..Load::new(Via::Mllp(front(nodes[0].mllp))) }.start()];
    if checks {
        let via = Via::Http(front(nodes[0].http), format!("/fhir/Observation?code={CANARY}"));
        loads.push(Load { rate: Some(100.0), name: "DH".into(), ..Load::new(via) }.start());
    }
    std::thread::sleep(Duration::from_millis(500));
    let status = nodes[1].stop(Duration::from_secs(30)).expect("it ends");
    assert!(status.success(), "{status}");
    std::thread::sleep(Duration::from_millis(500));
    for fleet in loads {
        let sent = fleet.stop(SOON);
        println!("{} sent, {} reconnects, {} again", sent.acknowledged.len(), sent.reconnects, sent.sent_again);
        assert_eq!(sent.attempted.len(), sent.acknowledged.len());
        assert!(sent.refused.is_empty() && sent.violations.is_empty(), "{:?} {:?}", sent.refused, sent.violations);
        assert_eq!(sent.connect_failures, 0, "nobody is refused a connection");
        assert!(receiver.wait_for(&sent, SOON), "all delivered");
    }
}

fn nothing_told(balancer: &Running) {
    let log = balancer.log();
    assert!(log.lines().filter(|l| l.contains("127.0.0.1")).count() > 10, "it logs connections:\n{log}");
    for secret in [CANARY, "Patient", "WITNESS", "MSH|", "/fhir"] {
        assert!(!log.contains(secret), "{secret} in the balancer's log");
    }
}

#[test]
fn haproxy_takes_the_rendered_file_and_carries_the_load() {
    install("haproxy", "haproxy");
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let mut nodes = nodes(&agent, &receiver);
    let text = render(&agent, &nodes[0], "haproxy", &["--proxy-protocol"]).expect("a configuration");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, &text).expect("written");
    let (haproxy, path) = (program("haproxy"), file.display().to_string());
    checked(&[&haproxy, "-c", "-f", &path]);
    // Where the test can read it.
    fs::write(&file, text.replace("log /dev/log local0", "log stdout format raw local0")).expect("written");
    let running = Running::start(folder, &[&haproxy, "-db", "-f", &path], front(nodes[0].mllp));
    carries(&nodes, &receiver, "A");
    drains_unseen(&mut nodes, &receiver, true);
    let after = render(&agent, &nodes[0], "haproxy", &[]).expect("a configuration");
    assert!(after.contains("127.0.0.2") && !after.contains("127.0.0.3"), "a drained node is left out:\n{after}");
    nothing_told(&running);
}

#[test]
fn nginx_takes_the_rendered_block_and_carries_the_load() {
    install("nginx", "nginx");
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if !module.exists() {
        install("no-such-program", "libnginx-mod-stream");
    }
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let mut nodes = nodes(&agent, &receiver);
    let text = render(&agent, &nodes[0], "nginx", &["--proxy-protocol"]).expect("a configuration");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    fs::write(at("hie.conf"), text.replace("/var/log/nginx/hie.log", &at("access.log").display().to_string())).expect("written");
    let main = format!(
        "load_module {};\ndaemon off;\nworker_processes 1;\npid {};\nerror_log {} info;\nevents {{ worker_connections 1024; }}\ninclude {};\n",
        module.display(),
        at("pid").display(),
        at("error.log").display(),
        at("hie.conf").display()
    );
    fs::write(at("nginx.conf"), main).expect("written");
    let (nginx, path) = (program("nginx"), at("nginx.conf").display().to_string());
    checked(&[&nginx, "-t", "-q", "-c", &path]);
    let running = Running::start(folder, &[&nginx, "-c", &path], front(nodes[0].mllp));
    carries(&nodes, &receiver, "N");
    drains_unseen(&mut nodes, &receiver, false);
    nothing_told(&running);
}

#[test]
fn lvs_gets_every_healthy_node_and_nobody_an_empty_file() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let mut nodes = nodes(&agent, &receiver);
    let port = nodes[0].mllp.port();
    let text = render(&agent, &nodes[0], "ipvs", &[]).expect("a configuration");
    let expected = format!(
        "-A -t 127.0.0.{FRONT}:{port} -s wlc\n-a -t 127.0.0.{FRONT}:{port} -r 127.0.0.2:{port} -m -w 10\n\
         -a -t 127.0.0.{FRONT}:{port} -r 127.0.0.3:{port} -m -w 10\n"
    );
    assert!(text.contains(&expected), "{text}");
    assert!(
        render(&agent, &nodes[0], "haproxy", &["--domain", "elsewhere"])
            .expect_err("none")
            .contains("no healthy node of the domain")
    );
    for node in &mut nodes {
        node.kill9();
    }
    agent.wait_for("hie", &[]);
    assert!(render(&agent, &nodes[0], "ipvs", &[]).expect_err("none").contains("no healthy node"));
}
