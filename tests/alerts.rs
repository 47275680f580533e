//! Tries to break: one alert, not a thousand. A route that fails (`HIE_ALERT_SECONDS`, ten minutes in the full run) is one mail in a
//! real mail server and one POST at a real HTTP receiver, and its end is one more; neither a restart nor a mail server that is away
//! or refuses changes that. Silent feeds and certificates that end are told too, and nothing that a message held is.

mod alert_support;
mod harness;

use alert_support::{Hook, MailServer};
use harness::channels::{queue, route};
use harness::wire::{Tag, adt, text};
use harness::{Behaviour, Builder, Load, Node, Peer, Receiver, Rng, Via, env_number, node, wait_until};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

/// Time compressed by configuration; what the machine under the test is like has no say.
const RULES: &str = "[alerts]\nevery = \"200ms\"\nfailure_window = \"10s\"\nfailure_min = 5\nqueue_age = \"2s\"\n\
    resolve_after = \"2s\"\ngroup_wait = \"700ms\"\nmemory_warning = 0\nmemory_critical = 0\ncpu_warning = 0\ncpu_critical = 0\n\
    disk_warning = 0\ndisk_critical = 0\nledger_warning = 0\nproblems = false\n";

fn webhook(hook: &Hook, more: &str) -> String {
    format!("[[alerts.webhook]]\nurl = \"http://{}/alerts/path-secret\"\n{more}\n", hook.addr)
}

fn mail(server: &MailServer, more: &str) -> String {
    format!(
        "[[alerts.mail]]\nsmtp = \"localhost:{}\"\nfrom = \"hie@example.org\"\nto = [\"ops@example.org\"]\n{more}\n",
        server.addr.port()
    )
}

fn active(node: &Node) -> Vec<String> {
    let alerts = node.get("/alerts").json();
    let all = alerts["active"].as_array().cloned().unwrap_or_default();
    all.iter().map(|a| format!("{} {}", a["rule"].as_str().unwrap_or(""), a["subject"].as_str().unwrap_or(""))).collect()
}

fn statuses(posts: &[alert_support::Posted]) -> Vec<&str> {
    posts.iter().map(|(_, json)| json["status"].as_str().unwrap_or("")).collect()
}

/// A certificate for localhost with its key, and its authority, as PEM files.
fn certificate(folder: &Path, days: i64) {
    let mut authority = rcgen::CertificateParams::new(vec![]).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer =
        rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().expect("a key")).expect("an authority");
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs((days * 86_400) as u64)).into();
    let key = rcgen::KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, &issuer).expect("a certificate");
    fs::write(folder.join("ca.pem"), issuer.as_ref().pem()).expect("written");
    fs::write(folder.join("cert.pem"), cert.pem()).expect("written");
    fs::write(folder.join("key.pem"), key.serialize_pem()).expect("written");
}

#[test]
fn a_route_that_fails_is_one_mail_and_one_post() {
    let seconds = env_number("HIE_ALERT_SECONDS", 20);
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = MailServer::new(folder.path(), None);
    server.up();
    let hook = Hook::start();
    let receiver = Receiver::mllp(Behaviour { reject: 1.0, ..Behaviour::default() }, Rng::new(1));
    fs::write(folder.path().join("token"), "Bearer of-the-test\n").expect("written");
    let secret = format!("headers = {{ Authorization = \"file:{}\" }}", folder.path().join("token").display());
    let sections = format!("{RULES}{}{}", webhook(&hook, &secret), mail(&server, "tls = \"none\""));
    let channel = queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true\nin_flight = 8");
    let mut node = Builder::new().section(&sections).channel(channel).start();

    let load = Load { connections: 4, keys: 20, rate: Some(50.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    assert!(
        wait_until(Duration::from_secs(20), || !server.mails().is_empty() && !hook.posted().is_empty()),
        "{}",
        node.log_tail(30)
    );
    // What waits is tried again and again; more need not come for ten minutes.
    std::thread::sleep(Duration::from_secs((seconds / 2).min(10)));
    let sent = load.stop(Duration::from_secs(20));
    std::thread::sleep(Duration::from_secs((seconds / 2).saturating_sub(10)));
    // A crash in the middle: nothing is told again.
    let failed = node::metric(
        &node.metrics().lines().filter(|l| !l.contains("delivered")).collect::<Vec<_>>().join("\n"),
        "hie_delivery_attempts_total",
    );
    node.kill9();
    node.start();
    std::thread::sleep(Duration::from_secs(seconds / 2));
    assert_eq!((server.mails().len(), hook.posted().len()), (1, 1), "{:#?}\n{}", hook.posted(), node.log_tail(40));
    assert!(failed > Some(100.0), "{failed:?} attempts failed before the crash");
    println!("{seconds} s, {failed:?} attempts failed before the crash: one mail, one POST");

    let found = active(&node);
    assert!(found.contains(&"route_failing test.all/primary".to_owned()), "{found:?}");
    assert!(found.contains(&"queue_age test.all/primary".to_owned()), "several rules are broken: {found:?}");
    assert!(node.metrics().contains("hie_alerts_active{rule=\"route_failing\"} 1"));
    let (head, json) = &hook.posted()[0];
    assert_eq!(head.header("authorization"), Some("Bearer of-the-test"));
    let labels = &json["alerts"][0]["labels"];
    assert_eq!((json["version"].as_str(), json["status"].as_str()), (Some("4"), Some("firing")));
    assert_eq!(labels["alertname"], "HieRouteFailing");
    assert_eq!(
        (&labels["channel"], &labels["route"], &labels["node"]),
        (&"test.all".into(), &"primary".into(), &"witness".into())
    );
    let mail = &server.mails()[0];
    assert!(mail.contains("CRITICAL") && mail.contains("test.all/primary") && mail.contains("hie route list"), "{mail}");
    assert!(mail.contains("Auto-Submitted: auto-generated"), "{mail}");

    receiver.behave(Behaviour::default());
    assert!(receiver.wait_for(&sent, Duration::from_secs(60)), "everything is delivered");
    assert!(
        wait_until(Duration::from_secs(20), || server.mails().len() == 2 && hook.posted().len() == 2),
        "{}",
        node.log_tail(40)
    );
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(statuses(&hook.posted()), ["firing", "resolved"]);
    assert_eq!(server.mails().len(), 2);
    assert!(server.mails()[1].contains("OVER"), "{}", server.mails()[1]);
    assert_eq!(active(&node), Vec::<String>::new());
    // The events are numbered over the crash, and every one that began is over.
    let alerts = node.get("/alerts").json();
    let mut ids: Vec<u64> = alerts["recent"].as_array().expect("events").iter().filter_map(|e| e["id"].as_u64()).collect();
    ids.reverse();
    assert!(ids.len() >= 4 && ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");

    // Nothing of a message is told: the harness' patients, ids and bodies; nor the secret and the URL's path.
    let posts: Vec<Value> = hook.posted().into_iter().map(|(_, json)| json).collect();
    let told = format!("{:?}{posts:?}{}{alerts}", server.mails(), node.log());
    for private in ["PID|", "WILMA", "HARNESS", "of-the-test", "path-secret"] {
        assert!(!told.contains(private), "{private}");
    }
}

#[test]
fn a_recipient_that_is_refused_keeps_no_other_from_being_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = MailServer::new(folder.path(), None);
    server.up();
    let section = mail(&server, "tls = \"none\"").replace("[\"ops@", "[\"gone@example.org\", \"ops@");
    let node = Builder::new()
        .section(&format!("{RULES}{section}"))
        .channel(queue("test.all", "true") + &route("x", "http = [\"http://127.0.0.1:9\"]", ""))
        .start();
    let config = node.config_file();
    let test = ["alert", "test", "--config", config.to_str().expect("a UTF-8 path"), "--json"];
    let told = wait_until(Duration::from_secs(20), || node.command(&test).output().expect("hie runs").status.success());
    assert!(told, "{}", node.log_tail(20));
    assert_eq!(server.mails().len(), 1, "{:?}", server.mails());
    assert!(node.log().contains("a recipient of alerts was not told"), "{}", node.log_tail(20));
}

#[test]
fn a_mail_server_that_is_away_or_refuses_gets_one_mail_in_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), 300);
    let at = |name: &str| folder.path().join(name);
    fs::write(at("password"), "a secret of the test\n").expect("written");
    let mut server = MailServer::new(&at("server"), Some((at("cert.pem"), at("key.pem"))));
    let login = format!("username = \"hie\"\npassword_file = {:?}\nca = {:?}", at("password"), at("ca.pem"));
    let receiver = Receiver::mllp(Behaviour { error: 1.0, ..Behaviour::default() }, Rng::new(1));
    let channel = queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true");
    let node = Builder::new().section(&format!("{RULES}{}", mail(&server, &login))).channel(channel).start();
    let mut peer = Peer::connect(node.mllp);
    let ack = peer.exchange(&adt(&Tag { key: "k".into(), seq: 1, id: "PARKED".into() }, 300, "pad"));
    assert_eq!(text(&ack, "MSA", 1), "AA");

    let failures = || {
        node::metric(
            &node.metrics().lines().filter(|l| l.contains("\"failed\"")).collect::<Vec<_>>().join("\n"),
            "hie_alert_notifications_total",
        )
    };
    assert!(wait_until(Duration::from_secs(20), || failures() >= Some(2.0)), "the server is away\n{}", node.log_tail(20));
    let config = node.config_file();
    let config = config.to_str().expect("a UTF-8 path");
    let away = node.command(&["alert", "test", "--config", config]).output().expect("hie runs");
    assert_eq!(away.status.code(), Some(1), "{away:?}");
    assert!(String::from_utf8_lossy(&away.stdout).contains("no"), "{away:?}");

    server.refuse(true);
    server.up();
    let before = failures();
    assert!(wait_until(Duration::from_secs(40), || failures() > before), "the server answers 451\n{}", node.log_tail(20));
    assert!(node.log().contains("answered 451"), "{}", node.log_tail(20));
    assert!(server.mails().is_empty());
    server.refuse(false);
    assert!(wait_until(Duration::from_secs(60), || !server.mails().is_empty()), "{}", node.log_tail(20));
    std::thread::sleep(Duration::from_secs(3));
    let mails = server.mails();
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert!(mails[0].contains("1 message set aside"), "{}", mails[0]);
    assert!(!node.log().contains("a secret of the test"));

    let test = node.command(&["alert", "test", "--config", config, "--json"]).output().expect("hie runs");
    assert!(test.status.success(), "{test:?}");
    let told: Value = serde_json::from_slice(&test.stdout).expect("JSON");
    assert_eq!((told[0]["kind"].as_str(), told[0]["arrived"].as_bool()), (Some("mail"), Some(true)), "{told}");
    assert!(server.mails().iter().any(|m| m.contains("This is a test")));
    let list = node.command(&["alert", "list", "--config", config]).output().expect("hie runs");
    assert!(String::from_utf8_lossy(&list.stdout).contains("test.all/primary: 1 message set aside"), "{list:?}");
}

#[test]
fn silent_feeds_and_certificates_that_end() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), 3);
    let receiver = Receiver::willing();
    let hook = Hook::start();
    let channel = queue("test.all", "true").replace("mode =", "silent_after = \"3s\"\nmode =")
        + &route("primary", &receiver.target(), "primary = true");
    let https = node::free_port();
    let tls = format!(
        "tls_listen = \"{https}\"\ntls = {{ cert = {:?}, key = {:?} }}",
        folder.path().join("cert.pem"),
        folder.path().join("key.pem")
    );
    // A second receiver behind TLS: the node's own HTTPS listener, which passes on what comes there. Its URL is a secret in a file.
    let own = Hook::start();
    let target = format!("http = [\"http://{}/own\"]\nmethod = \"POST\"", own.addr);
    let channel = queue("alerts.own", "path == \"/own\"") + &route("hook", &target, "primary = true") + &channel;
    let at = |name: &str| folder.path().join(name);
    fs::write(at("url"), format!("https://localhost:{}/own\n", https.port())).expect("written");
    let second = format!(
        "[[alerts.webhook]]\nurl_file = {:?}\nca = {:?}\nheaders = {{ X-Token = \"env:ALERT_TOKEN\" }}\n",
        at("url"),
        at("ca.pem")
    );
    let mut node = Builder::new()
        .env("ALERT_TOKEN", "from the environment")
        .http(&tls)
        .mllp("client = \"lab\"")
        .section(&format!("{RULES}{}{second}", webhook(&hook, "resolved = false")))
        .channel(channel)
        .lay_out();
    let clients = node.dir().join("clients.d");
    fs::create_dir_all(&clients).expect("a folder");
    fs::write(clients.join("lab.toml"), "[[client]]\nname = \"lab\"\nsilent_after = \"3s\"\n").expect("written");
    node.start();
    let both = ["channel_silent test.all", "client_silent client lab"];
    let silent = |node: &Node| both.iter().filter(|b| active(node).iter().any(|a| a == *b)).count();
    assert!(
        wait_until(Duration::from_secs(10), || active(&node).contains(&"certificate listener https".to_owned())),
        "{:?}",
        active(&node)
    );
    assert!(wait_until(Duration::from_secs(10), || silent(&node) == 2), "{:?}", active(&node));
    assert!(wait_until(Duration::from_secs(10), || !own.posted().is_empty()), "{}", node.log_tail(30));
    let (head, json) = &own.posted()[0];
    assert_eq!((head.header("x-token"), json["version"].as_str()), (Some("from the environment"), Some("4")), "{head:?}");
    assert!(node.metrics().contains("hie_silent_after_seconds{kind=\"channel\",name=\"test.all\"} 3"));
    let mut peer = Peer::connect(node.mllp);
    let heard = wait_until(Duration::from_secs(15), || {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let seq = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        peer.exchange(&adt(&Tag { key: "k".into(), seq, id: format!("HEARD{seq}") }, 300, "pad"));
        std::thread::sleep(Duration::from_millis(200));
        silent(&node) == 0
    });
    assert!(heard, "{:?}", active(&node));
    assert_eq!(active(&node), ["certificate listener https"]);
    // Over a restart the certificate is not told again, and nothing that is over was told.
    let before = hook.posted().len();
    node.stop(Duration::from_secs(20));
    node.start();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(statuses(&hook.posted()), vec!["firing"; before]);
    assert!(before >= 1);
}

#[test]
fn what_cannot_work_is_refused_at_start() {
    for (text, expected) in [
        ("[[alerts.webhook]]\nurl = \"ftp://x\"", "alerts.webhook.0.url"),
        ("[[alerts.webhook]]\nurl = \"http://user:word@x/\"", "credential"),
        ("[[alerts.webhook]]\nurl = \"http://x/\"\nheaders = { Authorization = \"Bearer x\" }", "file:PATH"),
        ("[[alerts.mail]]\nsmtp = \"h:25\"\nfrom = \"a@b\"\nto = []", "alerts.mail.0.to"),
        ("[[alerts.mail]]\nsmtp = \"h:25\"\nfrom = \"nobody\"\nto = [\"a@b\"]", "no mail address"),
        (
            "[[alerts.mail]]\nsmtp = \"h:25\"\ntls = \"none\"\nfrom = \"a@b\"\nto = [\"a@b\"]\nusername = \"u\"\npassword_file = \"p\"",
            "in clear",
        ),
        ("[alerts]\nmemory_warning = 101", "alerts.memory_warning"),
        ("[alerts]\nmemry_warning = 1", "memory_warning"),
    ] {
        let error = hie::config::parse(text, "hie.toml").expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    // One receiver can be set in the environment alone.
    let env = [("HIE_ALERTS__WEBHOOK__URL", "http://h/"), ("HIE_ALERTS__QUEUE_AGE", "1h")].map(|(k, v)| (k.into(), v.into()));
    let loaded =
        hie::config::load(None, env, &[], &|| hie::preset::Machine { cores: 2.0, memory_mib: 2048 }).expect("a configuration");
    assert_eq!(loaded.config.alerts.webhook[0].url, "http://h/");
    assert_eq!(loaded.config.alerts.queue_age, Duration::from_secs(3600));
    // What only the start finds out ends with the code for a wrong configuration.
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("ca.pem"), "no certificate").expect("written");
    let ca = folder.path().join("ca.pem");
    let section = format!("[[alerts.mail]]\nsmtp = \"h:25\"\nfrom = \"a@b.c\"\nto = [\"a@b.c\"]\nca = {ca:?}");
    let mut node = Builder::new().section(&section).lay_out();
    node.spawn();
    let status = node.wait_end(Duration::from_secs(20)).expect("it ends");
    assert_eq!(status.code(), Some(65), "{}", node.log());
    assert!(node.log().contains("alerts.mail.0") && node.log().contains("ca.pem"), "{}", node.log());
}
