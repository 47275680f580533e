//! The durability and order runs, used on the real build (must pass) and on the broken ones (must fail).

use super::channels::{all_to, queue, route};
use super::chaos::kill_often;
use super::http::Client;
use super::ledger::{control_id, settled, transactions};
use super::trace::{self, Call, Story};
use super::wire::{Frames, Tag, adt, frame, text};
use super::{Behaviour, Builder, Doubles, Load, Receiver, Rng, Sent, Via, check};
use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Load over MLLP and HTTP to two receivers that fail at random, `kills` times kill -9; then everything must arrive within
/// `patience`. `Err` says what broke.
pub fn kills(binary: PathBuf, rng: &mut Rng, kills: u64, patience: Duration) -> Result<(), String> {
    let failing =
        Behaviour { close: 0.01, reject: 0.01, silent: 0.0005, wrong_id: 0.002, delay: Duration::ZERO, ..Behaviour::default() };
    let lis = Receiver::mllp(failing, rng.split());
    let web = Receiver::http(Behaviour { wrong_id: 0.0, ..failing }, rng.split());
    let mut node = Builder::new()
        .binary(binary)
        .channel(queue("test.mllp", "protocol == \"mllp\"") + &route("primary", &lis.target(), "primary = true"))
        .channel(queue("test.http", "protocol == \"http\"") + &route("primary", &web.target(), "primary = true"))
        .start();
    let load = |via: Via, name: &str, rng: &mut Rng| Load {
        name: name.into(),
        connections: 6,
        rate: Some(900.0),
        seed: rng.next(),
        ..Load::new(via)
    };
    let by_mllp = load(Via::Mllp(node.mllp), "M", rng).start();
    let by_http = load(Via::Http(node.http, "/adt".into()), "H", rng).start();

    kill_often(&mut node, rng, kills, (Duration::from_millis(50), Duration::from_millis(900)), || false);

    let by_mllp = by_mllp.stop(Duration::from_secs(30));
    let by_http = by_http.stop(Duration::from_secs(30));
    let all_there = lis.wait_for(&by_mllp, patience) && web.wait_for(&by_http, patience);
    let mut faults: Vec<String> = Vec::new();
    if !all_there {
        faults.push(format!("not everything acknowledged was delivered within {patience:?}"));
    }
    for (name, sent, receiver) in [("MLLP", &by_mllp, &lis), ("HTTP", &by_http, &web)] {
        print!("{name}: ");
        if let Err(fault) = check(sent, &receiver.arrivals(), Doubles::Counted) {
            faults.push(format!("{name}: {fault}"));
        }
        if sent.acknowledged.len() < 100 {
            faults.push(format!("{name}: only {} acknowledged: the load did not run", sent.acknowledged.len()));
        }
    }
    if faults.is_empty() && !settled(&node, Duration::from_secs(60)) {
        faults.push("the node did not come to rest within 60 s".into());
    }
    if faults.is_empty()
        && let Err(fault) = one_transaction_each(&node, &[&by_mllp, &by_http])
    {
        faults.push(fault);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// A resend is no new transaction: each control id is in the ledger exactly once.
fn one_transaction_each(node: &super::Node, all: &[&Sent]) -> Result<(), String> {
    let mut times: HashMap<String, u32> = HashMap::new();
    for row in transactions(node) {
        if row["status"] != "Refused" {
            *times.entry(control_id(&row)).or_default() += 1;
        }
    }
    let sent_again: u64 = all.iter().map(|s| s.sent_again).sum();
    let twice: Vec<_> = times.iter().filter(|(_, n)| **n > 1).map(|(id, n)| format!("{id} {n} times")).take(10).collect();
    let missing: Vec<_> = all.iter().flat_map(|s| &s.acknowledged).filter(|t| !times.contains_key(&t.id)).collect();
    println!("ledger: {} transactions, {sent_again} resends, {} control ids more than once", times.len(), twice.len());
    if !twice.is_empty() {
        return Err(format!("resends taken for new messages: {}", twice.join(", ")));
    }
    if !missing.is_empty() {
        return Err(format!("{} acknowledged messages have no transaction, first {:?}", missing.len(), missing[0]));
    }
    Ok(())
}

/// Order and completeness without any crash, the receiver failing at random: doubles are forbidden here.
pub fn order(binary: PathBuf, rng: &mut Rng, per_connection: u64) -> Result<(), String> {
    let receiver = Receiver::mllp(Behaviour { close: 0.02, reject: 0.02, wrong_id: 0.01, ..Behaviour::default() }, rng.split());
    let node = Builder::new().binary(binary).channel(all_to(&receiver)).start();
    let load = Load { connections: 8, count: Some(per_connection), seed: rng.next(), ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(Duration::from_secs(60));
    if !receiver.wait_for(&sent, Duration::from_secs(60)) {
        println!("not everything was delivered within 60 s");
    }
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).map(|_| ())
}

/// Load under strace; every acknowledgment and every copy to a receiver must come after the message's fsync.
pub fn traced(binary: PathBuf) -> Result<(), String> {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return Err("strace is missing: apt-get install strace".into());
    }
    let rng = &mut Rng::from_env("trace");
    let (lis, web) = (Receiver::mllp(Behaviour::default(), rng.split()), Receiver::http(Behaviour::default(), rng.split()));
    let proxy = format!(
        "[[channel]]\nname = \"test.proxy\"\nwhen = 'protocol == \"http\" && path == \"/proxy\"'\nmode = \"proxy\"\npriority = 1\n{}",
        route("upstream", &web.target(), "primary = true")
    );
    let mut node = Builder::new().channel(proxy).channel(all_to(&lis)).patience(Duration::from_secs(60)).lay_out();
    let file = node.dir().join("trace");
    let calls = "trace=pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fsync,fdatasync";
    let name = file.to_string_lossy().into_owned();
    let strace = ["strace", "-f", "-yy", "-s", "70000", "-e", calls, "-o", &name];
    node.setup.wrapper = strace.iter().map(|s| (*s).to_owned()).collect();
    node.setup.binary = binary;
    node.start();
    node.find_pid();

    let mut threads = Vec::new();
    for number in 0..12 {
        let (mllp, http) = (node.mllp, node.http);
        let mut rng = rng.split();
        threads.push(std::thread::spawn(move || match number {
            0..6 => traced_mllp(mllp, number, &mut rng, 60),
            6..9 => traced_http(http, "/queue", number, &mut rng, 60),
            _ => traced_http(http, "/proxy", number, &mut rng, 60),
        }));
    }
    let mut told = Vec::new();
    for thread in threads {
        told.extend(thread.join().map_err(|_| "a sender panicked")??);
    }
    node.stop(Duration::from_secs(60));
    judge_trace(&trace::read(&file), &node.store, &told)
}

/// What one sender did: the token in the message, the two ports of its connection, and which of the connection's
/// answers it was; for MLLP the control id says it.
struct Traced {
    token: String,
    /// `MSA|AA|id` for MLLP.
    ack: Option<String>,
    /// The client's port, and the number of the answer on this connection, for HTTP.
    answer: (u16, usize),
}

/// Marks in a message: numbered copies of its token, far enough apart that a page's end cuts no more than one of them.
const MARKS: usize = 6;

fn marks(token: &str) -> impl Iterator<Item = String> {
    (0..MARKS).map(move |n| format!("{token}{n}"))
}

fn body(tag: &Tag, token: &str) -> Vec<u8> {
    let mut message = adt(tag, 0, "");
    for mark in marks(token) {
        message.extend(format!("NTE|1||=={mark}=={}\r", "-".repeat(200)).into_bytes());
    }
    message
}

fn traced_mllp(to: SocketAddr, number: u32, rng: &mut Rng, count: u64) -> Result<Vec<Traced>, String> {
    let mut told = Vec::new();
    let mut stream = TcpStream::connect(to).map_err(|e| e.to_string())?;
    let mut frames = Frames::new(stream.try_clone().map_err(|e| e.to_string())?);
    for seq in 1..=count {
        let token = rng.token(24);
        let tag = Tag { key: format!("T{number}"), seq, id: format!("T{number}-{seq}") };
        stream.write_all(&frame(&body(&tag, &token))).map_err(|e| e.to_string())?;
        let answer = frames.read().map_err(|e| e.to_string())?.ok_or("connection closed")?;
        if text(&answer, "MSA", 1) != "AA" {
            return Err(format!("{} refused under trace: {}", tag.id, String::from_utf8_lossy(&answer)));
        }
        told.push(Traced { token, ack: Some(format!("MSA|AA|{}", tag.id)), answer: (0, 0) });
    }
    Ok(told)
}

fn traced_http(to: SocketAddr, path: &str, number: u32, rng: &mut Rng, count: u64) -> Result<Vec<Traced>, String> {
    let mut told = Vec::new();
    let mut client = Client::connect(to, Duration::from_secs(30)).map_err(|e| e.to_string())?;
    let port = client.stream().local_addr().map_err(|e| e.to_string())?.port();
    for seq in 1..=count {
        let token = rng.token(24);
        let tag = Tag { key: format!("T{number}"), seq, id: format!("T{number}-{seq}") };
        let answer = client.request("POST", path, &[], &body(&tag, &token)).map_err(|e| e.to_string())?;
        if answer.status >= 300 || client.closing {
            return Err(format!("{} refused under trace: {} {}", tag.id, answer.status, answer.text()));
        }
        told.push(Traced { token, ack: None, answer: (port, told.len()) });
    }
    Ok(told)
}

fn judge_trace(calls: &[Call], store: &Path, told: &[Traced]) -> Result<(), String> {
    let tokens: Vec<String> = told.iter().flat_map(|t| marks(&t.token)).collect();
    let story = Story::new(calls, store, &tokens);
    let sent: Vec<&Call> =
        calls.iter().filter(|c| c.target.starts_with("TCP") && c.name != "fsync" && c.name != "fdatasync").collect();
    let (mut acks, mut copies) = (0, 0);
    let mut faults = Vec::new();
    let mut judge = |what: &str, told: &Traced, call: &Call| {
        let early: Vec<_> = marks(&told.token).filter_map(|m| story.durable_before(&m, call.begin).err()).collect();
        if early.len() > 1 {
            faults.push(format!("{what} of {} at line {}: {}", told.token, call.begin, early[0]));
        }
    };
    for message in told {
        let ack = match &message.ack {
            Some(text) => sent.iter().find(|c| c.text.contains(text.as_str())),
            None => {
                let to = format!("->127.0.0.1:{}]", message.answer.0);
                sent.iter().filter(|c| c.target.ends_with(&to) && c.text.contains("HTTP/1.1 2")).nth(message.answer.1)
            }
        };
        let Some(ack) = ack else { return Err(format!("the acknowledgment of {} is not in the trace", message.token)) };
        judge("the acknowledgment", message, ack);
        acks += 1;
        if let Some(copy) = sent.iter().find(|c| c.text.contains(&message.token)) {
            judge("the copy to a receiver", message, copy);
            copies += 1;
        }
    }
    let syncs = calls.iter().filter(|c| c.name == "fsync" || c.name == "fdatasync").count();
    println!(
        "trace: {} calls, {syncs} syncs, {acks} acknowledgments and {copies} deliveries judged, {} early",
        calls.len(),
        faults.len()
    );
    if copies == 0 {
        faults.push("no delivery was seen in the trace".into());
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} too early, first: {}", faults.len(), faults[0])) }
}
