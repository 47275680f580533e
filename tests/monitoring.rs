//! The bundle's monitoring: a real promtool takes its files, every metric that they name is in a real node's answer, and a real
//! Prometheus scrapes that node, loads the rules, answers the dashboard's queries and fires an alert. Debian's package is unpacked
//! below target/tools; nothing is installed.

mod alert_support;
mod harness;

use alert_support::unpacked;
use harness::channels::{queue, route};
use harness::wire::{Tag, adt};
use harness::{Behaviour, Builder, Peer, Receiver, Rng, http, node, wait_until};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring")
}

fn tool(name: &str) -> PathBuf {
    unpacked("prometheus", &["prometheus"], "usr/bin/promtool").join("usr/bin").join(name)
}

/// A copy of the bundle in which the example's token file is there.
fn copied() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["prometheus.yml", "rules.yml", "rules_test.yml"] {
        fs::copy(bundle().join(name), folder.path().join(name)).expect("the bundle's file");
    }
    fs::write(folder.path().join("hie-token"), "a token").expect("written");
    folder
}

#[test]
fn promtool_takes_configuration_rules_and_their_tests() {
    let folder = copied();
    for arguments in [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]]
    {
        let told = Command::new(tool("promtool")).args(arguments).current_dir(folder.path()).output().expect("promtool runs");
        let text = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
        assert!(told.status.success() && !text.contains("FAILED"), "{arguments:?}: {text}");
    }
}

/// Every query of the dashboard, its variables filled in.
fn queries() -> Vec<String> {
    let text = fs::read_to_string(bundle().join("grafana/hie.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let filled = |query: &str| query.replace("$__rate_interval", "30s").replace("$node", ".*");
    targets.map(|target| filled(target["expr"].as_str().expect("a query"))).collect()
}

fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|w| w.starts_with("hie_") || w.starts_with("process_")).map(str::to_owned).collect()
}

/// A Prometheus; ended when dropped.
struct Prometheus {
    addr: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// The bundle's configuration, with this node and quicker.
    fn start(target: SocketAddr, token: &str) -> Self {
        let folder = copied();
        let base = folder.path().to_owned();
        let at = |name: &str| base.join(name);
        fs::write(at("hie-token"), token).expect("written");
        let config = fs::read_to_string(at("prometheus.yml")).expect("the configuration");
        let config = config.replace("127.0.0.1:8080", &target.to_string()).replace("interval: 15s", "interval: 1s");
        fs::write(at("prometheus.yml"), config).expect("written");
        let addr = node::free_port();
        let log = fs::File::create(at("log")).expect("a log file");
        let child = Command::new(tool("prometheus"))
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("prometheus runs");
        let this = Self { addr, child, _folder: folder };
        let ready = || http::once(addr, "GET", "/-/ready", &[], b"").is_ok_and(|r| r.status == 200);
        assert!(wait_until(Duration::from_secs(30), ready), "{}", fs::read_to_string(at("log")).unwrap_or_default());
        this
    }

    fn get(&self, path: &str) -> Value {
        http::once(self.addr, "GET", path, &[], b"").expect("an answer").json()
    }

    fn query(&self, query: &str) -> Value {
        let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        self.get(&format!("/api/v1/query?query={encoded}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_a_node_and_fires_an_alert() {
    // A receiver that says AE: the messages are parked, which is one of the rules.
    let receiver = Receiver::mllp(Behaviour { error: 1.0, ..Behaviour::default() }, Rng::new(1));
    let channel = queue("test.all", "true").replace("mode =", "silent_after = \"1h\"\nmode =")
        + &route("primary", &receiver.target(), "primary = true");
    let folder = tempfile::tempdir().expect("a folder");
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (cert_file, key_file) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&cert_file, key.cert.pem()).expect("written");
    fs::write(&key_file, key.signing_key.serialize_pem()).expect("written");
    let tls = format!("tls_listen = \"{}\"\ntls = {{ cert = {cert_file:?}, key = {key_file:?} }}", node::free_port());
    // A receiver of alerts that is not there: that it is not told is a metric.
    let nobody = node::free_port();
    let alerts = format!("[alerts]\nevery = \"200ms\"\ngroup_wait = \"0s\"\n[[alerts.webhook]]\nurl = \"http://{nobody}/\"\n");
    let node = Builder::new().http(&tls).section(&alerts).channel(channel).start();
    let mut peer = Peer::connect(node.mllp);
    for seq in 1..=8 {
        peer.exchange(&adt(&Tag { key: "k".into(), seq, id: format!("M{seq}") }, 300, "pad"));
    }
    peer.exchange(b"no HL7 at all");
    let told = || node.metrics().contains("hie_alert_notifications_total{receiver=\"webhook\",outcome=\"failed\"}");
    assert!(wait_until(Duration::from_secs(20), told), "{}", node.log_tail(20));

    // Every metric that rules and dashboard name is in the answer.
    let answer = node.metrics();
    let there = names(&answer);
    let rules = fs::read_to_string(bundle().join("rules.yml")).expect("the rules");
    let named = names(&(rules + &queries().join("\n")));
    let absent: Vec<_> = named.difference(&there).filter(|name| *name != "hie_node").collect();
    assert!(named.len() > 25, "{named:?}");
    assert!(absent.is_empty(), "named and not there: {absent:?}");
    let check = Command::new(tool("promtool")).args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut check = check.expect("promtool runs");
    std::io::Write::write_all(check.stdin.as_mut().expect("its input"), answer.as_bytes()).expect("written");
    let checked = check.wait_with_output().expect("its end");
    // It warns of style too; an error is what a scraper would stumble over.
    let errors = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(!errors.contains("error while linting"), "{errors}");

    let prometheus = Prometheus::start(node.admin, &node.token());
    let value = |query: &str| prometheus.query(query)["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
    assert!(wait_until(Duration::from_secs(20), || value("up{job=\"hie\"}").as_deref() == Some("1")), "not scraped");
    let targets = prometheus.get("/api/v1/targets");
    let target = &targets["data"]["activeTargets"][0];
    assert_eq!((target["health"].as_str(), target["lastError"].as_str()), (Some("up"), Some("")), "{target}");
    let fires = || {
        let alerts = prometheus.get("/api/v1/alerts");
        let all = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        all.iter()
            .any(|a| a["labels"]["alertname"] == "HieParked" && a["state"] == "firing" && a["labels"]["channel"] == "test.all")
    };
    assert!(wait_until(Duration::from_secs(30), fires), "{}", prometheus.get("/api/v1/alerts"));
    let groups = prometheus.get("/api/v1/rules");
    let loaded = groups["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    assert!(loaded.len() >= 20, "{groups}");
    assert!(loaded.iter().all(|rule| rule["health"] == "ok"), "{groups}");
    // Two scrapes and more are in: rates have something to work on.
    std::thread::sleep(Duration::from_secs(3));
    let mut empty = Vec::new();
    for query in queries() {
        let answer = prometheus.query(&query);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        if answer["data"]["result"].as_array().is_none_or(Vec::is_empty) {
            empty.push(query);
        }
    }
    println!("{} queries, {} rules; without a result now: {empty:#?}", queries().len(), loaded.len());
    assert!(empty.len() <= 2, "queries without a result: {empty:#?}");
}
