//! What may be wrong between a node and a real RabbitMQ: it is told in the log, over the management API, by `hie status` and by a
//! metric, with what to do; the node goes on, keeps what it acknowledges, and takes the correction without a restart.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::ledger::settled;
use harness::parts::{self, Rabbitmq};
use harness::{Builder, Doubles, Load, Node, Receiver, Via, check, wait_until};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";
const SOON: Duration = Duration::from_secs(30);

struct Broker {
    rabbit: Rabbitmq,
    dir: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self { rabbit: Rabbitmq::start(&parts::fetch("rabbitmq-3.10"), CONF), dir }
    }

    /// A file with a password.
    fn password(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).expect("a file");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
        file
    }

    /// A node, laid out; its domain is its own, so that a test finds no queues of another. `more` adds lines to `[transport]`.
    fn node(&self, domain: &str, name: &str, channels: &[String], more: &str) -> Builder {
        let mut transport = format!("[transport]\nkind = \"rabbitmq\"\npartitions = 2\n{more}\n");
        for (key, value) in [
            ("urls", format!("[\"amqp://127.0.0.1:{}\"]", self.rabbit.port())),
            ("password_file", format!("{:?}", self.password("right", "sesame\n"))),
        ] {
            if !more.contains(key) {
                transport += &format!("{key} = {value}\n");
            }
        }
        let mut builder = Builder::new().node(&format!("domain = {domain:?}")).section(&transport).patience(SOON * 2);
        builder.name = name.into();
        builder.channels = channels.to_vec();
        builder
    }
}

fn cluster(node: &Node) -> Value {
    node.get("/cluster").json()
}

fn status(node: &Node) -> String {
    let file = node.config_file();
    let output = node.command(&["status", "--config", file.to_str().expect("a path")]).output().expect("hie runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every text of the transport's link and queues.
fn errors(node: &Node) -> String {
    let transport = &cluster(node)["transport"];
    let queues = transport["queues"].as_array().cloned().unwrap_or_default();
    queues.iter().map(|q| q["error"].clone()).chain([transport["link"]["error"].clone()]).map(|e| format!("{e}\n")).collect()
}

/// The words are told everywhere, once; meanwhile messages are acknowledged and kept; corrected, all arrive in order, and it is the
/// same process.
fn told_and_mended(node: &mut Node, receiver: &Receiver, words: &str, metric: &str, mend: impl FnOnce()) {
    assert!(wait_until(SOON, || errors(node).contains(words)), "/cluster: {}\n{}", errors(node), node.log_tail(20));
    assert!(wait_until(SOON, || node.log().contains(words)), "log: {words}\n{}", node.log_tail(20));
    let shown = status(node);
    assert!(shown.contains(words), "hie status: {words}\n{shown}");
    assert!(wait_until(SOON, || node.metrics().lines().any(|line| line == metric)), "{metric:?}\n{}", node.metrics());
    let pid = node.pid();
    let load = Load { connections: 2, count: Some(40), timeout: SOON, ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(SOON * 2);
    assert_eq!(sent.acknowledged.len(), 80, "{:?}\n{}", sent.refused, node.log_tail(20));
    assert_eq!(receiver.count(), 0, "it went through");
    assert!(wait_until(SOON, || node.metric("hie_spooled") == Some(80.0)), "{:?}", node.metric("hie_spooled"));
    let shown = status(node);
    assert!(shown.contains("80 messages are in this node's own log only"), "{shown}");
    assert_eq!(cluster(node)["transport"]["members"][0]["spooled"], 80);
    assert_eq!(node.get("/health/ready").status, 200, "it accepts durably");
    mend();
    assert!(receiver.wait_for(&sent, SOON * 2), "all drained\n{}\n{}", errors(node), node.log_tail(40));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(wait_until(SOON, || node.metric("hie_spooled") == Some(0.0)), "{}", node.log_tail(20));
    assert!(wait_until(SOON, || !errors(node).contains(words)), "{}", errors(node));
    assert!(settled(node, SOON), "{}", node.log_tail(20));
    assert!(node.alive() && node.pid() == pid, "no restart");
    // Attempts come every few seconds; the cause is a line for each queue at most.
    let lines = node.log().lines().filter(|line| line.contains(words)).count();
    assert!(lines <= 6, "{lines} lines\n{}", node.log_tail(40));
    let secrets = ["sesame", "open-barley"].iter().any(|s| node.log().contains(s) || status(node).contains(s));
    assert!(!secrets, "a password is told nowhere");
}

#[test]
fn what_is_wrong_with_the_way_to_the_broker_is_told_and_mended() {
    let mut broker = Broker::start();
    let eval = |broker: &Broker, text: &str| broker.rabbit.eval(text);

    // The password.
    let receiver = Receiver::willing();
    let file = broker.password("wrong", "open-barley\n");
    let more = format!("password_file = {file:?}");
    let mut node = broker.node("password", "a", &[all_to(&receiver)], &more).start();
    let mend = || drop(broker.password("wrong", "sesame\n"));
    told_and_mended(&mut node, &receiver, "the user or the password is wrong", "hie_broker_up 0", mend);
    assert_eq!(node.metric("hie_broker_up"), Some(1.0));
    assert_eq!(cluster(&node)["transport"]["link"]["state"], "up");
    assert!(node.metric("hie_broker_connect_failures_total").is_some_and(|n| n >= 1.0));

    // The virtual host.
    let receiver = Receiver::willing();
    let mut node = broker.node("vhost", "a", &[all_to(&receiver)], "vhost = \"nowhere\"").start();
    let mend = || {
        eval(&broker, "rabbit_vhost:add(<<\"nowhere\">>, <<\"test\">>).");
        let all = "<<\".*\">>, <<\".*\">>, <<\".*\">>";
        eval(
            &broker,
            &format!("rabbit_auth_backend_internal:set_permissions(<<\"hie\">>, <<\"nowhere\">>, {all}, <<\"test\">>)."),
        );
    };
    told_and_mended(
        &mut node,
        &receiver,
        "correct transport.vhost, or make it with rabbitmqctl add_vhost",
        "hie_broker_up 0",
        mend,
    );

    // A user that may not declare the queues.
    let receiver = Receiver::willing();
    eval(&broker, "rabbit_auth_backend_internal:add_user(<<\"limited\">>, <<\"sesame\">>, <<\"test\">>).");
    let permit = |names: &str| {
        // As docs/operations.md gives them, but for the names.
        let three = format!(r#"<<"^{names}\\.">>, <<"^({names}\\.|amq\\.default$)">>, <<"^{names}\\.">>"#);
        eval(
            &broker,
            &format!("rabbit_auth_backend_internal:set_permissions(<<\"limited\">>, <<\"/\">>, {three}, <<\"test\">>)."),
        );
    };
    permit("other");
    let mut node = broker.node("limited", "a", &[all_to(&receiver)], "user = \"limited\"").start();
    // Before it knows the stream it declares nothing else.
    let metric = "hie_queues_unusable{kind=\"forbidden\"} 1";
    told_and_mended(&mut node, &receiver, "may not declare or use the queue hie.limited.ledger", metric, || permit("^hie"));
    let shown = status(&node);
    for words in ["BROKER", "UNCONFIRMED", "a (this)", "PARTITIONS", "SPOOL", "test.all", "inbox", "route primary"] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
    assert_eq!(node.metric("hie_queues_unusable"), Some(0.0));
    drop(node);

    // Nobody there.
    let receiver = Receiver::willing();
    broker.rabbit.kill();
    let mut node = broker.node("away", "a", &[all_to(&receiver)], "").start();
    told_and_mended(&mut node, &receiver, "nothing listens there: start the broker", "hie_broker_up 0", || {
        broker.rabbit.restart()
    });
}

#[test]
fn a_queue_declared_otherwise_is_told_and_mended_by_deleting_it() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    let channels = [all_to(&receiver)];
    let mut before = broker.node("otherwise", "a", &channels, "max_queue = 77").start();
    let depth = |q: &Value| q["kind"] == "inbox" && q["consumers"].as_u64() == Some(1);
    let made = |node: &Node| {
        cluster(node)["transport"]["queues"].as_array().is_some_and(|all| all.iter().filter(|q| depth(q)).count() == 2)
    };
    assert!(wait_until(SOON, || made(&before)), "{}", cluster(&before));
    before.stop(SOON);
    let mut node = broker.node("otherwise", "a", &channels, "").start();
    let mend = || {
        for p in 0..2 {
            let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"hie.otherwise.test.all/in/{p}\">>)");
            broker.rabbit.eval(&format!(
                "{{ok, Q}} = rabbit_amqqueue:lookup({name}), rabbit_amqqueue:delete(Q, false, false, <<\"t\">>)."
            ));
        }
    };
    let words = "hie.otherwise.test.all/in/0 is there, but not as it has to be";
    told_and_mended(&mut node, &receiver, words, "hie_queues_unusable{kind=\"otherwise\"} 2", mend);
}

#[test]
fn a_node_that_refuses_while_brokers_are_away_says_so_in_its_health() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    let channel = queue("test.all", "true") + "outage = \"refuse\"\n" + &route("primary", &receiver.target(), "primary = true");
    let file = broker.password("wrong", "open-barley\n");
    let mut node = broker.node("refuse", "a", &[channel], &format!("password_file = {file:?}")).lay_out();
    node.spawn();
    let said =
        || harness::http::once(node.health, "GET", "/health/ready", &[], b"").map(|r| (r.status, r.text())).unwrap_or_default();
    let told = || said().0 == 503 && said().1.contains("the user or the password is wrong");
    assert!(wait_until(SOON, told), "{:?}\n{}", said(), node.log_tail(20));
    assert!(status(&node).contains("no: no broker takes messages"), "{}", status(&node));
    broker.password("wrong", "sesame\n");
    assert!(wait_until(SOON, || said().0 == 200), "{:?}\n{}", said(), node.log_tail(20));
}

#[test]
fn nodes_whose_clocks_differ_by_minutes_lose_nothing_and_keep_the_order() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    let library = parts::fetch("faketime");
    let at = |name: &str, skew: &str| {
        let builder = broker.node("skew", name, &[all_to(&receiver)], "");
        // The wall clock only, as where a time server is missing.
        let env = builder.env("LD_PRELOAD", library.to_str().expect("a path")).env("FAKETIME", skew);
        env.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").start()
    };
    let (mut ahead, mut behind) = (at("ahead", "+240"), at("behind", "-240"));
    let received = |node: &Node| {
        let rows = harness::ledger::transactions(node);
        rows.iter().map(|row| row["request"]["timestamp"].to_string()).collect::<Vec<_>>()
    };
    let mut all = harness::Sent::default();
    for (turn, node) in [(0, &ahead), (1, &behind), (2, &ahead)] {
        let load = Load { connections: 4, count: Some(50), name: format!("S{turn}"), ..Load::new(Via::Mllp(node.mllp)) };
        let sent = load.run(SOON);
        assert_eq!(sent.acknowledged.len(), 200);
        assert!(receiver.wait_for(&sent, SOON * 2), "{}\n{}", ahead.log_tail(20), behind.log_tail(20));
        all.attempted.extend(sent.attempted);
        all.acknowledged.extend(sent.acknowledged);
    }
    // Both take messages of the same keys at once, and one of them is killed.
    let both = [&ahead, &behind].map(|n| n.mllp);
    let named = harness::sender::Lookup(std::sync::Arc::new(move || both.to_vec()));
    let load = Load { connections: 6, rate: Some(150.0), name: "K".into(), ..Load::new(Via::MllpNamed(named)) }.start();
    std::thread::sleep(Duration::from_secs(3));
    ahead.kill9();
    std::thread::sleep(Duration::from_secs(2));
    ahead.start();
    std::thread::sleep(Duration::from_secs(2));
    behind.kill9();
    std::thread::sleep(Duration::from_secs(2));
    behind.start();
    let sent = load.stop(SOON);
    assert!(receiver.wait_for(&sent, SOON * 3), "{}\n{}", ahead.log_tail(20), behind.log_tail(20));
    all.attempted.extend(sent.attempted);
    all.acknowledged.extend(sent.acknowledged);
    check(&all, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    for node in [&ahead, &behind] {
        let whole = wait_until(SOON * 2, || received(node).len() >= all.acknowledged.len());
        assert!(whole, "{} known\n{}", received(node).len(), node.log_tail(20));
    }
    // The library did what it is for: minutes lie between what was received within seconds.
    let seconds = |time: &str| humantime::parse_rfc3339_weak(time.trim_matches('"')).expect("a time");
    let times: Vec<_> = received(&ahead).iter().map(|time| seconds(time)).collect();
    let (first, last) = (times.iter().min().expect("some"), times.iter().max().expect("some"));
    assert!(last.duration_since(*first).is_ok_and(|d| d > Duration::from_secs(400)), "{first:?} to {last:?}");
}
