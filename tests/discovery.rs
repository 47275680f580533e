//! Discovery on a real Consul: the names hold exactly the healthy nodes, a dead one leaves them within three seconds, a drained one
//! before it refuses anything, an upgrade shows nowhere, an agent that lost the node gets it again; and what is said when the agent
//! is away, refuses, or is not trusted. Channels in the KV: `tests/shared_channels.rs`.

mod consul_support;
mod harness;

use consul_support::{Agent, SOON, cluster, ip, lines, mllp_serves, node_at, time_until, wait_log};
use harness::channels::all_to;
use harness::{Builder, Node, Receiver, http, wait_until};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

fn node(agent: &Agent, name: &str, last: u8, receiver: &Receiver, more: &str) -> Node {
    let mut node = node_at(&agent.url(), name, last, Builder::new().channel(all_to(receiver)), more);
    node.start();
    node
}

fn srv(node: &Node, weight: u16, last: u8) -> String {
    format!("1 {weight} {} 7f0000{last:02x}.addr.dc1.consul.", node.mllp.port())
}

#[test]
fn the_names_hold_exactly_the_healthy_nodes() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let one = node(&agent, "one", 2, &receiver, "weight = 7");
    let mut two = node(&agent, "two", 3, &receiver, "");
    let mut other = node_at(&agent.url(), "far", 4, Builder::new().node("domain = \"lab\"").channel(all_to(&receiver)), "");
    other.start();
    agent.wait_for("hie", &[ip(2), ip(3), ip(4)]);
    agent.wait_for("default.hie", &[ip(2), ip(3)]);
    agent.wait_for("lab.hie", &[ip(4)]);
    agent.wait_for("mllp.hie", &[ip(2), ip(3), ip(4)]);
    agent.wait_for("http.hie", &[ip(2), ip(3), ip(4)]);
    agent.wait_for("admin.hie", &[ip(2), ip(3), ip(4)]);
    agent.wait_for("mllps.hie", &[]);
    let expected: BTreeSet<String> = [srv(&one, 7, 2), srv(&two, 10, 3), srv(&other, 10, 4)].into();
    assert_eq!(agent.dig("mllp.hie", "SRV"), expected);
    assert_eq!(one.metric("hie_discovery_registered"), Some(1.0));

    // kill -9, several times: gone within three seconds, back after the start.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        two.kill9();
        // On a machine that is busy with other tests the agent looks late.
        let took = time_until("a killed node leaves the names", Duration::from_secs(8), || {
            !agent.addresses("hie").contains(&ip(3)) && !agent.dig("mllp.hie", "SRV").contains(&srv(&two, 10, 3))
        });
        println!("gone from the names {took:?} after kill -9");
        best = best.min(took);
        assert_eq!(agent.addresses("default.hie"), [ip(2)].into());
        two.start();
        agent.wait_for("default.hie", &[ip(2), ip(3)]);
    }
    assert!(best < Duration::from_secs(3), "{best:?}");
    // Stopped as a whole, as a machine that hangs.
    two.signal(Signal::SIGSTOP);
    let took =
        time_until("a hanging node leaves the names", Duration::from_secs(10), || !agent.addresses("hie").contains(&ip(3)));
    println!("gone from the names {took:?} after SIGSTOP");
    two.signal(Signal::SIGCONT);
    agent.wait_for("default.hie", &[ip(2), ip(3)]);

    let seen = cluster(&one);
    let members = seen["members"].as_array().expect("members");
    let named: Vec<_> = members.iter().map(|m| (m["node"].as_str().unwrap_or(""), m["domain"].as_str().unwrap_or(""))).collect();
    assert_eq!(named, [("one", "default"), ("two", "default"), ("far", "lab")]);
    assert_eq!(seen["registration"]["state"], "well");
    let mllp = members[0]["instances"].as_array().expect("instances").iter().find(|i| i["protocol"] == "mllp").expect("mllp");
    assert_eq!((&mllp["weight"], &mllp["health"], &mllp["address"]), (&7.into(), &"passing".into(), &"127.0.0.2".into()));
    assert_eq!(mllp["port"], one.mllp.port());
}

/// What a prober saw, from one moment on.
struct Probe {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<(Instant, bool)>>,
}

impl Probe {
    fn start(mut look: impl FnMut() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut seen = Vec::new();
                while !stop.load(Relaxed) {
                    // For an answer the moment of asking counts when it is yes, that of having it when it is no.
                    let asked = Instant::now();
                    let yes = look();
                    seen.push((if yes { asked } else { Instant::now() }, yes));
                    std::thread::sleep(Duration::from_millis(5));
                }
                seen
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> Vec<(Instant, bool)> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("a prober")
    }
}

#[test]
fn a_drained_node_is_gone_from_the_names_before_it_refuses_anything() {
    let (agent, receiver) = (Arc::new(Agent::start()), Receiver::willing());
    let stays = node(&agent, "stays", 2, &receiver, "dns_ttl = \"1s\"");
    let mut goes = node(&agent, "goes", 3, &receiver, "dns_ttl = \"1s\"");
    for way in ["signal", "api"] {
        agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
        let (mllp, health, mut n) = (goes.mllp, goes.health, 0);
        let named = Probe::start({
            let agent = agent.clone();
            move || agent.addresses("mllp.hie").contains(&ip(3)) || agent.addresses("hie").contains(&ip(3))
        });
        let some = Probe::start({
            let agent = agent.clone();
            move || !agent.addresses("hie").is_empty()
        });
        let served = Probe::start(move || {
            n += 1;
            mllp_serves(mllp, n)
        });
        let healthy = Probe::start(move || http::once(health, "GET", "/health/ready", &[], b"").is_ok_and(|r| r.status == 200));
        std::thread::sleep(Duration::from_millis(300));
        match way {
            "signal" => goes.signal(Signal::SIGTERM),
            _ => assert_eq!(goes.post("/drain", "").status, 202),
        }
        let status = goes.wait_end(Duration::from_secs(30)).expect("the node ends");
        assert!(status.success(), "{status}\n{}", goes.log_tail(20));
        let (named, some, served, healthy) = (named.end(), some.end(), served.end(), healthy.end());
        let first_no = |all: &[(Instant, bool)]| all.iter().find(|(_, yes)| !yes).map(|(at, _)| *at).expect("it ended");
        let last_yes = |all: &[(Instant, bool)]| all.iter().rev().find(|(_, yes)| *yes).map(|(at, _)| *at).expect("it was there");
        let (left, refused, unhealthy) = (last_yes(&named), first_no(&served), first_no(&healthy));
        println!("{way}: refused {:?} after it was last in the names", refused.duration_since(left));
        assert!(refused > left + Duration::from_millis(800), "it served on for dns_ttl after it had left the names");
        assert!(unhealthy < refused, "balancers see it before anything is refused");
        assert!(some.iter().all(|(_, yes)| *yes), "the name never resolves to nothing while one node is healthy");
        assert!(mllp_serves(stays.mllp, 1));
        assert!(!agent.registered().iter().any(|id| id.starts_with("hie-goes")), "{:?}", agent.registered());
        wait_log(&goes, "out of Consul's names");
        wait_log(&goes, "deregistered from Consul");
        goes.start();
    }
    // A second TERM does not wait.
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    goes.setup.sections = goes.setup.sections.replace("dns_ttl = \"1s\"", "dns_ttl = \"60s\"");
    goes.write_config();
    goes.stop(SOON);
    let before = lines(&goes, "ready store=");
    goes.start();
    assert!(wait_until(SOON, || lines(&goes, "ready store=") > before), "signals are taken over a moment after health answers");
    goes.signal(Signal::SIGTERM);
    wait_log(&goes, "serving_ms=60000");
    let took = time_until("a second TERM ends it", Duration::from_secs(10), || {
        goes.signal(Signal::SIGTERM);
        goes.wait_end(Duration::from_millis(100)).is_some()
    });
    println!("cut short in {took:?}");
    assert!(wait_until(SOON, || !agent.registered().iter().any(|id| id.starts_with("hie-goes"))), "{:?}", agent.registered());
}

#[test]
fn an_upgrade_in_place_and_a_restart_in_the_same_second_do_not_show_in_the_names() {
    let (agent, receiver) = (Arc::new(Agent::start()), Receiver::willing());
    // Four looks have to fail: a busy test machine takes a second for what else is done in a tenth of one.
    let mut only = node(&agent, "only", 2, &receiver, "check_failures = 4");
    agent.wait_for("mllp.hie", &[ip(2)]);
    wait_log(&only, "ready store=");
    let named = Probe::start({
        let agent = agent.clone();
        move || agent.addresses("mllp.hie").contains(&ip(2)) && agent.registered().len() == 3
    });
    for _ in 0..3 {
        let before = lines(&only, "ready store=");
        only.signal(Signal::SIGUSR2);
        assert!(wait_until(Duration::from_secs(30), || lines(&only, "ready store=") > before), "{}", only.log_tail(20));
        std::thread::sleep(Duration::from_millis(1500));
    }
    let process = |agent: &Agent| agent.get("/v1/agent/services").expect("services")["hie-only-http"]["Meta"]["process"].clone();
    let before = process(&agent);
    // kill -9 and a start before enough looks have failed.
    only.kill9();
    only.start();
    time_until("it registers anew", SOON, || process(&agent) != before);
    std::thread::sleep(Duration::from_millis(1500));
    let seen = named.end();
    let gaps = seen.iter().filter(|(_, yes)| !yes).count();
    println!("{} looks at the names, {gaps} without the node", seen.len());
    assert!(seen.len() > 10 && gaps == 0, "{gaps} of {}", seen.len());
    assert_eq!(lines(&only, "deregistered from Consul"), 0);
}

#[test]
fn an_agent_that_was_away_or_lost_the_node_gets_it_again() {
    let (mut agent, receiver) = (Agent::start(), Receiver::willing());
    let node = node(&agent, "keeps", 2, &receiver, "timeout = \"500ms\"");
    agent.wait_for("mllp.hie", &[ip(2)]);
    // Somebody takes one port out.
    agent.put("/v1/agent/service/deregister/hie-keeps-mllp-lis", "");
    time_until("it is registered again", Duration::from_secs(5), || agent.registered().contains("hie-keeps-mllp-lis"));
    // Somebody writes over another.
    agent.put("/v1/agent/service/register", r#"{"ID":"hie-keeps-http","Name":"hie","Port":1,"Tags":["wrong"]}"#);
    let right = |agent: &Agent| agent.get("/v1/agent/services").is_some_and(|s| s["hie-keeps-http"]["Port"] == node.http.port());
    time_until("it is put right", Duration::from_secs(15), || right(&agent));
    // A restart with its data, then one without.
    for forget in [false, true] {
        let (before, wells) = (lines(&node, "not in Consul's names"), lines(&node, " registered with Consul instances"));
        if forget {
            agent.kill_and_forget()
        } else {
            agent.kill()
        }
        assert!(wait_until(SOON, || lines(&node, "not in Consul's names") > before), "{}", node.log_tail(20));
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(lines(&node, "not in Consul's names"), before + 1, "one line for a state that lasts");
        assert!(mllp_serves(node.mllp, 1), "the node goes on");
        let seen = cluster(&node);
        assert_eq!(seen["registration"]["state"], "unreachable");
        let error = seen["registration"]["error"].as_str().expect("text");
        assert!(error.contains("cannot be reached") && error.contains("discovery.consul"), "{error}");
        assert!(seen["members_error"].as_str().is_some_and(|e| e.contains("cannot be reached")), "{seen}");
        assert_eq!(node.metric("hie_discovery_registered"), Some(0.0));
        assert!(node.metric("hie_discovery_failures_total").is_some_and(|n| n > 0.0));
        agent.run();
        agent.wait_for("mllp.hie", &[ip(2)]);
        assert!(wait_until(SOON, || lines(&node, " registered with Consul instances") > wells), "{}", node.log_tail(20));
        assert_eq!(cluster(&node)["registration"]["state"], "well");
        assert_eq!(node.metric("hie_discovery_registered"), Some(1.0));
    }
    assert!(lines(&node, "Consul's agent had lost the node") >= 1, "{}", node.log_tail(20));
}

/// `words` in the log, in `/cluster`, in `/status`, and a count of failures of this kind.
fn told(node: &Node, state: &str, words: &[&str]) {
    let right = || {
        let seen = cluster(node);
        let error = seen["registration"]["error"].as_str().unwrap_or("").to_owned();
        seen["registration"]["state"] == state && words.iter().all(|w| error.contains(w))
    };
    assert!(wait_until(SOON, right), "{:?}\n{}", cluster(node)["registration"], node.log_tail(10));
    let log = node.log();
    assert!(
        log.lines().any(|l| l.contains("not in Consul's names") && words.iter().all(|w| l.contains(w))),
        "{}",
        node.log_tail(20)
    );
    let status = node.get("/status").json();
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    assert!(problems.iter().any(|p| words.iter().all(|w| p.as_str().is_some_and(|p| p.contains(w)))), "{status}");
    let metrics = node.metrics();
    let counted = format!("hie_discovery_failures_total{{work=\"registration\",kind=\"{state}\"}}");
    assert!(metrics.contains(&counted), "no {counted}");
    assert_eq!(node.metric("hie_discovery_registered"), Some(0.0));
    assert!(mllp_serves(node.mllp, 1), "the node goes on");
}

#[test]
fn a_refused_token_is_told_and_a_mended_one_is_taken() {
    const MASTER: &str = "5f0e3a3c-0000-4000-8000-000000000001";
    let mut agent = Agent::with(&format!(
        r#"{{"acl":{{"enabled":true,"default_policy":"deny","tokens":{{"master":"{MASTER}","agent":"{MASTER}","default":""}}}},
            "primary_datacenter":"dc1"}}"#
    ));
    agent.token = MASTER.into();
    assert!(wait_until(SOON, || agent.call("GET", "/v1/acl/policies", "").is_ok_and(|r| r.status == 200)), "{}", agent.log());
    let rules = r#"service "hie" { policy = "write" } service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } key_prefix "hie/" { policy = "read" }"#;
    agent.put("/v1/acl/policy", &serde_json::json!({ "Name": "hie", "Rules": rules }).to_string());
    let made = agent.put("/v1/acl/token", r#"{"Policies":[{"Name":"hie"}]}"#);
    let good =
        serde_json::from_str::<serde_json::Value>(&made).expect("a token")["SecretID"].as_str().expect("a secret").to_owned();
    const WRONG: &str = "11111111-2222-3333-4444-555555555555";

    let receiver = Receiver::willing();
    let mut node = node_at(&agent.url(), "shy", 2, Builder::new().channel(all_to(&receiver)), "");
    node.start();
    told(&node, "token", &["without a token", "403", "discovery.token_file"]);
    node.stop(SOON);
    let file = node.dir().join("consul-token");
    fs::write(&file, WRONG).expect("written");
    let section = format!("[discovery]\nconsul = \"{}\"\ntoken_file = \"consul-token\"\n", agent.url());
    node.setup.sections = section.clone();
    node.write_config();
    node.start();
    told(&node, "token", &["consul-token", "403", "service:write"]);
    fs::write(&file, format!("{good}\n")).expect("written");
    assert!(wait_until(SOON, || cluster(&node)["registration"]["state"] == "well"), "{}", node.log_tail(20));
    // The file vanishes for a moment: the last token serves.
    fs::remove_file(&file).expect("removed");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster(&node)["registration"]["state"], "well");
    assert!(cluster(&node)["members"].as_array().is_some_and(|m| m.len() == 1));
    node.stop(SOON);
    // From systemd.
    let credentials = node.dir().join("credentials");
    fs::create_dir(&credentials).expect("a folder");
    node.setup.sections = section.replace("consul-token", "credential:consul");
    node.write_config();
    node.start();
    told(&node, "token", &["CREDENTIALS_DIRECTORY", "LoadCredential=consul"]);
    node.stop(SOON);
    fs::write(credentials.join("consul"), &good).expect("written");
    node.setup.env.push(("CREDENTIALS_DIRECTORY".into(), credentials.display().to_string()));
    node.start();
    assert!(wait_until(SOON, || cluster(&node)["registration"]["state"] == "well"), "{}", node.log_tail(20));
    for secret in [good.as_str(), WRONG] {
        assert!(!node.log().contains(secret) && !node.get("/cluster").text().contains(secret), "a token is told nowhere");
    }
}

#[test]
fn an_agent_is_reached_by_https_when_its_authority_is_trusted() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).expect("written");
        rcgen::Issuer::new(params, key)
    };
    let (ours, _) = (authority("ours"), authority("theirs"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("parameters");
    fs::write(folder.path().join("agent.pem"), params.signed_by(&key, &ours).expect("a certificate").pem()).expect("written");
    fs::write(folder.path().join("agent.key"), key.serialize_pem()).expect("written");
    let https = harness::node::free_port();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let agent = Agent::with(
        &serde_json::json!({ "ports": { "https": https.port() }, "cert_file": at("agent.pem"), "key_file": at("agent.key"),
            "ca_file": at("ours.pem") })
        .to_string(),
    );
    let receiver = Receiver::willing();
    let url = format!("https://{https}");
    let mut node = node_at(&url, "tls", 2, Builder::new().channel(all_to(&receiver)), &format!("ca = {:?}", at("theirs.pem")));
    node.start();
    told(&node, "tls", &["TLS with the Consul agent", "discovery.ca"]);
    node.stop(SOON);
    node.setup.sections = node.setup.sections.replace("theirs.pem", "ours.pem");
    node.write_config();
    node.start();
    agent.wait_for("mllp.hie", &[ip(2)]);
    node.stop(SOON);
    // Plain HTTP where TLS is expected.
    node.setup.sections = node.setup.sections.replace(&https.port().to_string(), &agent.http.port().to_string());
    node.write_config();
    node.start();
    told(&node, "tls", &["does it speak https"]);
    node.stop(SOON);
    // Something else than an agent.
    node.setup.sections = format!("[discovery]\nconsul = \"http://{}\"\n", node.http);
    node.write_config();
    node.start();
    told(&node, "answer", &["Consul agent at http://127.0.0.2"]);
}

#[test]
fn two_nodes_of_one_name_are_told() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let first = node(&agent, "twin", 2, &receiver, "");
    agent.wait_for("hie", &[ip(2)]);
    let _second = node(&agent, "twin", 3, &receiver, "");
    let conflict = || cluster(&first)["registration"]["error"].as_str().is_some_and(|e| e.contains("node.name"));
    assert!(wait_until(Duration::from_secs(25), conflict), "{}", first.log_tail(20));
    wait_log(&first, "under the name twin too");
}

#[test]
fn wrong_values_are_told_by_the_check() {
    let node = Builder::new().lay_out();
    let file = node.config_file();
    let base = fs::read_to_string(&file).expect("hie.toml").replace("name = \"witness\"", "name = \"witness\"\n#");
    let said = |more: &str| {
        fs::write(&file, format!("{base}\n{more}\n")).expect("written");
        let out = node.command(&["check", "-q", "--config", file.to_str().expect("a path")]).output().expect("hie check");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for (text, words) in [
        ("[discovery]\nconsul = \"127.0.0.1:8500\"", "not the URL of an agent"),
        ("[discovery]\nconsul = \"http://u:p@127.0.0.1:8500\"", "token_file"),
        ("[discovery]\nconsul = \"http://127.0.0.1:8500/v1\"", "has a path"),
        ("[discovery]\nconsul = \"http://127.0.0.1:8500\"\ncheck_interval = \"100ms\"", "is not within"),
        ("[discovery]\nconsul = \"http://127.0.0.1:8500\"\ntoken_file = \"/no/such\"", "/no/such cannot be read"),
        ("[discovery]\nconsul = \"http://127.0.0.1:8500\"\ntoken_file = \"credential:\"", "names no credential"),
        ("[discovery]\nconsul = \"https://127.0.0.1:8500\"\ncert = \"/no/such\"", "given together"),
        ("[discovery]\nconsul = \"https://127.0.0.1:8500\"\nca = \"hie.toml\"", "it must be PEM"),
        ("[discovery]\nweigth = 3", "did you mean \"weight\"?"),
        ("[discovery]\naddress = \"0.0.0.0\"", "no address that others can reach"),
    ] {
        let (code, told) = said(text);
        assert_eq!(code, Some(65), "{text}: {told}");
        assert!(told.contains(words) && told.contains("hie.toml"), "{text}: {told}");
        assert!(!told.contains("u:p"), "{told}");
    }
    let (code, told) = said("[discovery]\nconsul = \"https://127.0.0.1:8500\"\ntoken_file = \"credential:consul\"");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("name its own with ca") && told.contains("LoadCredential="), "{told}");
    for (domain, words) in [("mllp", "names a protocol"), ("Lab_1", "part of a DNS name")] {
        fs::write(
            &file,
            base.replace("\n#", &format!("\ndomain = \"{domain}\"\n#")) + "\n[discovery]\nconsul = \"http://127.0.0.1:8500\"\n",
        )
        .expect("written");
        let out = node.command(&["check", "-q", "--config", file.to_str().expect("a path")]).output().expect("hie check");
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(65) && told.contains(words), "{told}");
    }
}

/// A node that cannot accept leaves the names, and both that and an operator's maintenance are told with the reason.
#[test]
fn a_node_that_the_agent_finds_unhealthy_says_so() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let mut away = Receiver::willing();
    away.down();
    let builder = Builder::new().channel(all_to(&away)).section("[limits]\nmax_pending = 1");
    let mut full = node_at(&agent.url(), "full", 2, builder, "");
    full.start();
    let open = node(&agent, "open", 3, &receiver, "");
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    assert!(mllp_serves(full.mllp, 1));
    time_until("a node that is full leaves the names", Duration::from_secs(8), || agent.addresses("mllp.hie") == [ip(3)].into());
    let told = |node: &Node, words: &str| {
        let said = || cluster(node)["registration"].clone();
        let right = || said()["state"] == "unhealthy" && said()["error"].as_str().is_some_and(|e| e.contains(words));
        assert!(wait_until(Duration::from_secs(25), right), "{}", said());
        wait_log(node, "keeps this node out of the names");
    };
    told(&full, "queues are full");
    away.up();
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    assert!(wait_until(Duration::from_secs(25), || cluster(&full)["registration"]["state"] == "well"));
    // Maintenance by hand is respected.
    agent.put("/v1/agent/service/maintenance/hie-open-mllp-lis?enable=true&reason=by+hand", "");
    told(&open, "into maintenance (by hand)");
    assert_eq!(agent.addresses("mllp.hie"), [ip(2)].into());
    agent.put("/v1/agent/service/maintenance/hie-open-mllp-lis?enable=false", "");
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
}

/// What the operations guide says of a resolver that remembers: the agent's own, with the settings that presets render.
#[test]
fn the_names_go_on_being_answered_while_no_server_is_there() {
    let mut server = Agent::start();
    let rendered = std::process::Command::new(harness::node::binary())
        .args(["preset", "render", "small-clinic", "--part", "consul"])
        .output()
        .expect("hie runs");
    let rendered: serde_json::Value = serde_json::from_slice(&rendered.stdout).expect("JSON");
    let agent = Arc::new(Agent::joined_to(&server, &serde_json::json!({ "dns_config": rendered["dns_config"] }).to_string()));
    let receiver = Receiver::willing();
    let mut one = node(&agent, "one", 2, &receiver, "");
    let two = node(&agent, "two", 3, &receiver, "");
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    agent.wait_for("hie", &[ip(2), ip(3)]);
    one.kill9();
    time_until("a memory of answers changes nothing while servers are there", Duration::from_secs(8), || {
        agent.addresses("mllp.hie") == [ip(3)].into()
    });
    one.start();
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    agent.wait_for("hie", &[ip(2), ip(3)]);
    server.kill();
    let answered = Probe::start({
        let agent = agent.clone();
        move || agent.addresses("hie") == [ip(2), ip(3)].into() && agent.dig("mllp.hie", "SRV").len() == 2
    });
    std::thread::sleep(Duration::from_secs(8));
    assert!(answered.end().iter().all(|(_, yes)| *yes), "the names hold what they held");
    assert!(mllp_serves(one.mllp, 1) && mllp_serves(two.mllp, 1));
    assert_eq!(cluster(&one)["registration"]["state"], "well", "the agent of this machine is there");
    let channels = cluster(&one)["channels"].clone();
    assert!(
        channels["state"] == "answer" && channels["error"].as_str().is_some_and(|e| e.contains("answered 500")),
        "{channels}"
    );
    server.run();
    // Agent and server look for each other again every half a minute.
    let well = || cluster(&one)["channels"]["state"] == "well";
    assert!(wait_until(Duration::from_secs(60), well), "{}\n{}", one.log_tail(20), agent.log());
    agent.wait_for("mllp.hie", &[ip(2), ip(3)]);
    one.kill9();
    // What it remembers is asked again after a minute at most.
    let took = time_until("gone", Duration::from_secs(90), || agent.addresses("mllp.hie") == [ip(3)].into());
    println!("gone {took:?} after kill -9, just after an outage of the servers");
}

#[test]
fn status_and_domain_list_show_the_members() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    let one = node(&agent, "one", 2, &receiver, "");
    let mut far = node_at(&agent.url(), "far", 3, Builder::new().node("domain = \"lab\"").channel(all_to(&receiver)), "");
    far.start();
    agent.set("hie/lab/channels/lab.oru/results", "");
    agent.set("hie/empty/channels/x/y", "");
    let all_pass =
        || cluster(&one)["members"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|m| m["health"] == "passing"));
    assert!(wait_until(SOON, all_pass), "{}", cluster(&one));
    let said = |args: &[&str]| {
        let config = one.config_file();
        let out = one.command(&[args, &["--config", config.to_str().expect("a path")]].concat()).output().expect("hie runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let status = said(&["status"]);
    let line = |text: &str, begin: &str| {
        text.lines().find(|l| l.starts_with(begin)).unwrap_or_else(|| panic!("{begin} in {text}")).to_owned()
    };
    let own = line(&status, "one (this)");
    for word in
        ["default", "passing", "127.0.0.2", &format!("mllp:{}", one.mllp.port()), &format!("http:{}", one.http.port()), "10"]
    {
        assert!(own.contains(word), "{word} in {own}");
    }
    assert!(line(&status, "far").contains("lab"));
    let json: serde_json::Value = serde_json::from_str(&said(&["status", "--json"])).expect("JSON");
    assert_eq!(json["cluster"]["members"].as_array().map(Vec::len), Some(2));
    let list = said(&["domain", "list"]);
    assert!(line(&list, "lab").contains("lab.oru") && line(&list, "lab").contains("far"), "{list}");
    assert!(line(&list, "default").contains("one") && line(&list, "empty").contains("none"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&said(&["domain", "list", "--json"])).expect("JSON");
    assert_eq!(json["lab"]["namespaces"][0], "lab.oru");
    assert_eq!(json["default"]["members"][0]["node"], "one");
    // No agent, and none that answers.
    let out = one.command(&["domain", "list", "--consul", "http://127.0.0.1:1"]).output().expect("hie runs");
    assert_eq!(out.status.code(), Some(69), "{}", String::from_utf8_lossy(&out.stderr));
    let out = one.command(&["domain", "list"]).output().expect("hie runs");
    assert_eq!(out.status.code(), Some(64), "{}", String::from_utf8_lossy(&out.stderr));
    // Without discovery there is nobody else.
    let alone = Builder::new().start();
    let seen = cluster(&alone);
    assert_eq!((seen["discovery"].as_str(), seen["members"].as_array().map(Vec::len)), (Some("off"), Some(0)));
}
