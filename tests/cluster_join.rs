//! A node with an empty disk joins a domain: it copies the ledger of a peer, reads the rest from the stream, and answers searches
//! completely; also when the stream has lost everything, when it or the peer is killed in the middle, and when a peer refuses.
//!
//! `HIE_JOIN_MESSAGES`: how many transactions the domain has (25,000). The times are printed.

mod harness;

use harness::channels::{queue, route};
use harness::http::once;
use harness::ledger::{body, settled, text, transactions_each};
use harness::parts::{self, Rabbitmq};
use harness::wire::{Tag, adt};
use harness::{Builder, Node, Receiver, env_number, wait_until};
use hie::peer::{Nonce, Secret};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";
const SECRET: &str = "the secret of the domain north, which is long enough";

/// A broker, and the files with its password and the domain's secrets.
struct Domain {
    rabbit: Rabbitmq,
    dir: tempfile::TempDir,
}

impl Domain {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let domain = Self { rabbit: Rabbitmq::start(&parts::fetch("rabbitmq-3.10"), CONF), dir };
        domain.secret("password", "sesame");
        domain.secret("secret", SECRET);
        domain.secret("other", "the secret of another domain, which is long enough too");
        domain
    }

    fn secret(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), format!("{text}\n")).expect("a file");
    }

    /// A node that is laid out; `peers`: lines of `[peers]`.
    fn node(&self, name: &str, receiver: &Receiver, peers: &str) -> Node {
        let file = |name: &str| self.dir.path().join(name);
        let channel = queue("test.all", "true").replace("\"patient\"", "\"none\"");
        let mut builder = Builder::new().node("domain = \"north\"").patience(120 * SECOND);
        builder = builder.section(&format!(
            "[transport]\nkind = \"rabbitmq\"\nurls = [\"amqp://127.0.0.1:{}\"]\npassword_file = {:?}\npartitions = 2\n",
            self.rabbit.port(),
            file("password")
        ));
        builder.name = name.into();
        let peers = peers.replace("SECRET", file("secret").to_str().unwrap()).replace("OTHER", file("other").to_str().unwrap());
        builder = builder.section(&format!("[peers]\n{peers}")).section("[ledger]\nsegment_size = \"512 KiB\"\n");
        builder.channel(channel + &route("lis", &receiver.target(), "primary = true")).lay_out()
    }

    /// As if the stream's retention had removed everything: it is deleted, and made anew by the next node that needs it.
    fn forget_the_stream(&self) {
        self.rabbit.eval(
            "{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"hie.north.ledger\">>)), \
             rabbit_amqqueue:delete(Q, false, false, <<\"test\">>).",
        );
    }
}

/// It reads the stream, and every queue is there and has a consumer.
fn works(node: &Node) -> bool {
    let transport = node.get("/cluster").json()["transport"].clone();
    let queues = transport["queues"].as_array().cloned().unwrap_or_default();
    let served = |q: &Value| q["problem"].is_null() && q["consumers"].as_u64() > Some(0);
    transport["ledger"]["catching_up"] == false
        && transport["link"]["state"] == "up"
        && queues.len() == 4
        && queues.iter().all(served)
}

/// Sends so many messages, each with its own control id, as quickly as the node takes them.
fn fill(node: &Node, count: u64) {
    let file = node.dir().join("message.hl7");
    std::fs::write(&file, adt(&Tag { key: "P".into(), seq: 1, id: "M".into() }, 200, "")).expect("a file");
    assert!(wait_until(60 * SECOND, || works(node)), "{}\n{}", node.get("/cluster").text(), node.log_tail(20));
    let begun = Instant::now();
    let done = Command::new(&node.setup.binary)
        .args(["send", "--quiet", "--connections", "128", "--fresh-ids", "--count", &count.to_string()])
        .args(["--http", &format!("http://{}/", node.http)])
        .arg(&file)
        .output()
        .expect("hie runs");
    assert!(
        done.status.success(),
        "{}{}\n{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
        node.log_tail(20)
    );
    println!("{count} messages accepted in {:.1?}", begun.elapsed());
}

/// Id and status of every transaction.
fn known(node: &Node) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    transactions_each(node, |row| {
        all.insert(text(&row["_id"]).to_owned(), text(&row["status"]).to_owned());
    });
    all
}

/// Both know the same transactions, all of them finished, and have the same bodies.
fn same(a: &Node, b: &Node) -> usize {
    let (there, mut here) = (known(a), BTreeMap::new());
    let complete = wait_until(60 * SECOND, || {
        here = known(b);
        here == there
    });
    let differs = there.iter().filter(|(id, status)| here.get(*id) != Some(*status)).take(3).collect::<Vec<_>>();
    assert!(complete, "{} of {} known, differing {differs:?}\n{}", here.len(), there.len(), b.log_tail(30));
    assert!(there.values().all(|status| status == "Successful"), "all are finished");
    same_bodies(a, b, &there);
    there.len()
}

/// Some fifty of them are compared.
fn same_bodies(a: &Node, b: &Node, of: &BTreeMap<String, String>) {
    for id in of.keys().step_by(of.len().div_ceil(50).max(1)) {
        for part in ["request", "lis"] {
            let (left, right) = (body(a, id, part), body(b, id, part));
            assert_eq!((left.status, &left.body), (right.status, &right.body), "{id} {part}");
            assert!(part != "request" || left.status == 200 && left.body.starts_with(b"MSH"), "{id}");
        }
    }
}

fn staged(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.store.join("ledger.joining")).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries.map(|e| e.path()).collect();
    all.sort();
    all
}

fn has(files: &[PathBuf], prefix: &str, suffix: &str) -> bool {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.iter().map(|f| name(f)).any(|n| n.starts_with(prefix) && n.ends_with(suffix))
}

/// Each has a broker and nodes of its own, which are enough for one machine.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_node_with_an_empty_disk_copies_a_peers_ledger_and_knows_everything() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let messages = env_number("HIE_JOIN_MESSAGES", 25_000);
    let (domain, receiver) = (Domain::start(), Receiver::willing());
    let mut a = domain.node("a", &receiver, "secret_file = \"SECRET\"");
    a.start();
    fill(&a, messages);
    assert!(settled(&a, Duration::from_secs(60 + messages / 100)), "all delivered\n{}", a.log_tail(20));
    let peer = format!("http://{}", a.admin);
    let alone = reading_the_stream_alone(&domain, &receiver, &a, messages);

    // From here on only those two have what came before.
    domain.forget_the_stream();
    fill(&a, 100);
    let told = wait_until(30 * SECOND, || a.log().contains("the ledger stream was deleted and made anew"));
    assert!(told, "{}", a.log_tail(30));
    assert!(settled(&a, 60 * SECOND), "{}", a.log_tail(20));
    // Who has read the old one goes on with the new one, and has all of it once.
    let mut found = 0;
    let all = wait_until(60 * SECOND, || {
        found = known(&alone).len() as u64;
        found == messages + 100
    });
    assert!(all, "{found} of {}\n{}", messages + 100, alone.log_tail(20));
    drop(alone);

    let mut b = domain.node("b", &receiver, &format!("secret_file = \"SECRET\"\nurls = [\"{peer}\"]"));
    let begun = Instant::now();
    let ready = b.start();
    let joined = b.get("/cluster").json()["joined"].clone();
    println!("a joiner: ready {ready:.1?} after its start: {joined}");
    assert_eq!(text(&joined["from"]), peer, "{joined}\n{}", b.log_tail(30));
    assert!(joined["logs"].as_u64() > Some(2), "several segments: {joined}");
    caught_up_within(&b, 60 * SECOND);
    println!("a joiner: has caught up with the stream {:.1?} after its start", begun.elapsed());
    let looking = Instant::now();
    let here = known(&b);
    println!(
        "a joiner: tells of {} transactions {:.1?} after its start, of which the look through them took {:.1?}",
        here.len(),
        begun.elapsed(),
        looking.elapsed()
    );
    let there = known(&a);
    assert!(here == there, "{} of {} as soon as it says that it is complete", here.len(), there.len());
    assert_eq!(there.len() as u64, messages + 100);
    same_bodies(&a, &b, &there);
    for name in ["ledger.joining", "ledger.untouched"] {
        assert!(!b.store.join(name).exists(), "{name} is cleared away");
    }
}

#[test]
fn who_joined_takes_part_and_who_is_killed_or_refused_begins_again_or_says_why() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let (domain, receiver) = (Domain::start(), Receiver::willing());
    let mut a = domain.node("a", &receiver, "secret_file = \"SECRET\"");
    a.start();
    fill(&a, 3_000);
    assert!(settled(&a, 120 * SECOND), "all delivered\n{}", a.log_tail(20));
    let peer = format!("http://{}", a.admin);
    nobody_gets_anything_without_the_secret(&a);
    let mut b = domain.node("b", &receiver, &format!("secret_file = \"SECRET\"\nurls = [\"{peer}\"]"));
    b.start();
    caught_up_within(&b, 60 * SECOND);

    // What either accepts is known to both, also after a restart.
    fill(&b, 300);
    fill(&a, 300);
    assert!(settled(&a, 60 * SECOND) && settled(&b, 60 * SECOND), "{}", b.log_tail(20));
    assert_eq!(same(&a, &b), 3_600);
    b.stop(30 * SECOND);
    b.start();
    assert_eq!(b.get("/cluster").json()["joined"], Value::Null, "nothing is copied twice");
    caught_up_within(&b, 60 * SECOND);
    assert_eq!(same(&a, &b), 3_600);
    assert!(!b.log().contains("records of another node are gone") && !a.log().contains("records of another node are gone"));
    // Who joined hands on to the next.
    let mut c = domain.node("c", &receiver, &format!("secret_file = \"SECRET\"\nurls = [\"http://{}\"]", b.admin));
    c.start();
    assert_eq!(same(&a, &c), 3_600);
    drop(c);

    killed_in_the_middle(&domain, &receiver, &mut a);
    refused(&domain, &receiver, &a, &peer);
}

/// It says that searches are complete.
fn caught_up_within(node: &Node, limit: Duration) {
    let done = wait_until(limit, || node.get("/transactions?filterLimit=1").header("x-hie-incomplete").is_none());
    assert!(done, "{}\n{}", node.get("/cluster").json()["transport"]["ledger"], node.log_tail(30));
}

/// Without a secret: all is read from the stream. Gives the node.
fn reading_the_stream_alone(domain: &Domain, receiver: &Receiver, a: &Node, messages: u64) -> Node {
    let mut alone = domain.node("alone", receiver, "");
    // Its first answer is asked for as early as can be.
    alone.start();
    let begun = Instant::now();
    let said = alone.get("/transactions?filterLimit=1").header("x-hie-incomplete").map(str::to_owned);
    let problems = alone.get("/status").json()["problems"].to_string();
    caught_up_within(&alone, Duration::from_secs(60 + messages / 100));
    println!("from the stream alone: caught up in {:.1?}", begun.elapsed());
    assert!(said.is_some_and(|why| why.contains("still reads")), "searches say that they are incomplete");
    assert!(problems.contains("still reads what the others wrote"), "{problems}");
    assert_eq!(known(&alone).len(), known(a).len());
    assert!(alone.log().contains("peers.secret_file is not set"), "{}", alone.log_tail(20));
    let closed = once(alone.admin, "GET", "/peer/ledger", &[], b"").expect("an answer");
    assert_eq!(closed.status, 404, "hands out nothing: {}", closed.text());
    alone
}

/// The management token included.
fn nobody_gets_anything_without_the_secret(a: &Node) {
    for header in ["", &*format!("Bearer {}", a.token()), "HIE-Domain 0 0"] {
        let headers: &[(&str, &str)] = if header.is_empty() { &[] } else { &[("authorization", header)] };
        for path in ["/peer/ledger", "/peer/ledger?roll=true", "/peer/ledger/log-00000000000000000001.db"] {
            let answer = once(a.admin, "GET", path, headers, b"").expect("an answer");
            assert_eq!(answer.status, 401, "{path} {header}: {}", answer.text());
        }
    }
}

/// The joiner is killed, then its peer: what was copied is used, and in the end all is there.
fn killed_in_the_middle(domain: &Domain, receiver: &Receiver, a: &mut Node) {
    let bytes: u64 = std::fs::read_dir(a.store.join("ledger"))
        .expect("a ledger")
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("log-"))
        .map(|e| e.metadata().map_or(0, |m| m.len()))
        .sum();
    // The whole takes about ten seconds.
    let rate = (bytes / 10).max(64 << 10);
    a.setup.sections = a.setup.sections.replace("[peers]\n", &format!("[peers]\nrate = {rate}\n"));
    a.write_config();
    a.stop(30 * SECOND);
    a.start();
    let peers = format!("secret_file = \"SECRET\"\nurls = [\"http://{}\"]\npatience = \"60s\"", a.admin);
    let mut d = domain.node("d", receiver, &peers);
    d.spawn();
    let halfway = |d: &Node, logs: usize| {
        let files = staged(d);
        has(&files, "log-", ".part") && files.iter().filter(|f| f.extension().is_some_and(|e| e == "db")).count() >= logs
    };
    assert!(wait_until(60 * SECOND, || halfway(&d, 2)), "copying: {:?}\n{}", staged(&d), d.log_tail(20));
    d.kill9();
    assert!(!d.store.join("ledger").join("marks.json").exists(), "nothing of it is in use");
    let kept = staged(&d).iter().filter(|f| f.extension().is_some_and(|e| e == "db")).count();
    d.spawn();
    assert!(wait_until(60 * SECOND, || halfway(&d, kept + 1)), "copying again: {:?}\n{}", staged(&d), d.log_tail(20));
    let line = d.log().lines().rfind(|l| l.contains("copying that of a peer")).unwrap_or_default().to_owned();
    assert!(!line.contains("kept=0") && line.contains("kept="), "what was copied is used: {line}");
    a.kill9();
    assert!(wait_until(60 * SECOND, || d.log().contains("a peer's ledger cannot be copied")), "told\n{}", d.log_tail(20));
    a.start();
    d.wait_ready(120 * SECOND).unwrap_or_else(|why| panic!("{why}\n{}", d.log_tail(40)));
    assert!(d.get("/cluster").json()["joined"]["from"].is_string(), "{}", d.log_tail(30));
    same(a, &d);
}

/// Who cannot copy says why, and begins with the stream.
fn refused(domain: &Domain, receiver: &Receiver, a: &Node, peer: &str) {
    let told = |name: &str, peers: &str, what: &[&str]| {
        let mut node = domain.node(name, receiver, peers);
        let ready = node.start();
        let cluster = node.get("/cluster").json();
        let problems = node.get("/status").json()["problems"].to_string();
        for part in what {
            let why = text(&cluster["joined"]["why"]).to_owned();
            assert!(
                why.contains(part) && problems.contains(part) && node.log().contains(part),
                "{part:?}: {why} {problems}\n{}",
                node.log()
            );
        }
        assert!(node.log().contains("this node reads the ledger stream alone"), "{}", node.log_tail(10));
        assert!(node.get("/transactions?filterLimit=1").status == 200 && !node.store.join("ledger.joining").exists());
        ready
    };
    told(
        "wrong",
        &format!("secret_file = \"OTHER\"\nurls = [\"{peer}\"]"),
        &["it refuses this node", "peers.secret_file must hold the same"],
    );
    assert!(
        a.metric("hie_admin_denied_total").is_some_and(|n| n >= 1.0) || a.log().contains("wrong credential"),
        "{}",
        a.log_tail(10)
    );
    let fake = fake_peer(
        json!({ "form": 1, "release": "9.9.9", "tables": 99, "origin": 7, "logs": [{ "first": 1, "end": 9, "bytes": 100 }], "transients": [] }),
    );
    told(
        "other",
        &format!("secret_file = \"SECRET\"\nurls = [\"http://{fake}\"]"),
        &["it runs hie 9.9.9", "tables of version 99"],
    );
    let fake = fake_peer(
        json!({ "form": 1, "release": "0.1.0", "tables": 2, "origin": 7, "logs": [{ "first": 1, "end": 9, "bytes": 100 }], "transients": [] }),
    );
    told("garbage", &format!("secret_file = \"SECRET\"\nurls = [\"http://{fake}\"]"), &["log-00000000000000000001.db"]);
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("an address");
    let ready = told(
        "lonely",
        &format!("secret_file = \"SECRET\"\nurls = [\"http://{nobody}\"]\npatience = \"2s\""),
        &["it cannot be reached"],
    );
    assert!(ready > 2 * SECOND, "it waits for its peer: {ready:?}");
}

/// A peer that has the secret and offers this; the files that it gives are a hundred zeros.
fn fake_peer(offer: Value) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines().map_while(Result::ok);
            let path = lines.next().and_then(|l| l.split(' ').nth(1).map(str::to_owned)).unwrap_or_default();
            let shown = lines
                .by_ref()
                .take_while(|l| !l.is_empty())
                .find(|l| l.to_lowercase().starts_with("authorization"))
                .unwrap_or_default();
            let nonce = shown.split(' ').nth(2).and_then(Nonce::parse).expect("a nonce");
            let what = format!("north\nGET\n{path}");
            let proof = shown.split(' ').nth(3).unwrap_or_default();
            assert!(Secret::new(SECRET).proves(nonce, &what, proof), "it has the secret");
            let mine = Nonce::make();
            let content = if path.contains("log-") { vec![0; 100] } else { offer.to_string().into_bytes() };
            let sealed = Secret::new(SECRET).sealer(nonce, mine, &what).and_then(|s| s.seal_all(&content)).expect("sealed");
            let mut stream = stream;
            let head =
                format!("HTTP/1.1 200 OK\r\nx-hie-seal: {mine}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", sealed.len());
            let _ = stream.write_all(&[head.as_bytes(), &sealed].concat());
        }
    });
    at
}
