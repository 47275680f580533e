//! A node under strace: what each message's acknowledgment came after. For the real build and the one without fsync.

use super::channels::{all_to, queue, route};
use super::http::Client;
use super::trace::{self, Call, Story};
use super::wire::{Frames, Tag, adt, frame, text};
use super::{Behaviour, Builder, Receiver, Rng};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Load under strace; every acknowledgment and every copy to a receiver must come after the message's fsync.
pub fn run(binary: PathBuf) -> Result<(), String> {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return Err("strace is missing: apt-get install strace".into());
    }
    let rng = &mut Rng::from_env("trace");
    let (lis, web) = (Receiver::mllp(Behaviour::default(), rng.split()), Receiver::http(Behaviour::default(), rng.split()));
    let proxy = format!(
        "[[channel]]\nname = \"test.proxy\"\nwhen = 'protocol == \"http\" && path == \"/proxy\"'\nmode = \"proxy\"\npriority = 1\n{}",
        route("upstream", &web.target(), "primary = true")
    );
    let to_web = |name: &str, path: &str, more: &str| {
        queue(name, &format!("protocol == \"http\" && path == \"{path}\"")) + more + &route("primary", &web.target(), "")
    };
    // Small segments: several begin and end meanwhile.
    let mut node = Builder::new()
        .section("[ledger]\nsegment_size = \"512 KiB\"\n")
        .channel(proxy)
        .channel(to_web("test.short", "/short", "priority = 2\nstorage = \"none\"\n"))
        .channel(to_web("test.large", "/large", "priority = 3\n"))
        .channel(to_web("test.packed", "/packed", "priority = 4\n"))
        .channel(all_to(&lis))
        .patience(Duration::from_secs(60))
        .lay_out();
    let file = node.dir().join("trace");
    let calls = "trace=pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fsync,fdatasync";
    let name = file.to_string_lossy().into_owned();
    let strace = ["strace", "-f", "-yy", "-s", "70000", "-e", calls, "-o", &name];
    node.setup.wrapper = strace.iter().map(|s| (*s).to_owned()).collect();
    node.setup.binary = binary;
    node.start();
    node.find_pid();

    let mut threads = Vec::new();
    for number in 0..16 {
        let (mllp, http) = (node.mllp, node.http);
        let mut rng = rng.split();
        threads.push(std::thread::spawn(move || match number {
            0..6 => traced_mllp(mllp, number, &mut rng, 60),
            6..9 => traced_http(http, "/queue", number, &mut rng, 60),
            9..12 => traced_http(http, "/proxy", number, &mut rng, 60),
            12..14 => traced_http(http, "/short", number, &mut rng, 30),
            14 => traced_http(http, "/packed", number, &mut rng, 20),
            _ => traced_http(http, "/large", number, &mut rng, 2),
        }));
    }
    let mut told = Vec::new();
    for thread in threads {
        told.extend(thread.join().map_err(|_| "a sender panicked")??);
    }
    node.stop(Duration::from_secs(60));
    judge(&trace::read(&file), &node.store, &told)
}

/// Random bytes, which stay as they are when they are packed, with the marks far apart: it comes in many pieces, each with
/// a commit of its own.
fn large(rng: &mut Rng, token: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(LARGE);
    for mark in marks(token) {
        body.extend_from_slice(format!("=={mark}==").as_bytes());
        body.extend((0..LARGE / MARKS / 8).flat_map(|_| rng.next().to_le_bytes()));
    }
    body
}

/// What one sender did: the token in the message, the two ports of its connection, and which of the connection's
/// answers it was; for MLLP the control id says it.
struct Traced {
    token: String,
    /// Where the body lies apart from the accept fact: the token in the headers, which are stored in the fact.
    fact: Option<String>,
    /// `MSA|AA|id` for MLLP.
    ack: Option<String>,
    /// The client's port, and the number of the answer on this connection, for HTTP.
    answer: (u16, usize),
}

/// Bytes of a body that comes in pieces.
const LARGE: usize = 5 << 18;

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
        told.push(Traced { token, fact: None, ack: Some(format!("MSA|AA|{}", tag.id)), answer: (0, 0) });
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
        // A packed body shows no marks; the headers are stored as they are, in the fact that is written with it. A body that lies in
        // a file of its own, or in pieces, says nothing of the fact: that has marks of its own.
        let fact = matches!(path, "/short" | "/large").then(|| rng.token(24));
        let shown = fact.as_ref().or((path == "/packed").then_some(&token));
        let in_headers: Vec<(String, String)> = shown
            .into_iter()
            .flat_map(|token| marks(token))
            .map(|m| (format!("X-{m}"), format!("=={m}=={}", "-".repeat(200))))
            .collect();
        let headers: Vec<_> = in_headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let message = match path {
            "/packed" => adt(&tag, 40_000, "the same words again and again, which pack well"),
            "/large" => large(rng, &token),
            _ => body(&tag, &token),
        };
        let answer = client.request("POST", path, &headers, &message).map_err(|e| e.to_string())?;
        if answer.status >= 300 || client.closing {
            return Err(format!("{} refused under trace: {} {}", tag.id, answer.status, answer.text()));
        }
        told.push(Traced { token, fact, ack: None, answer: (port, told.len()) });
    }
    Ok(told)
}

fn judge(calls: &[Call], store: &Path, told: &[Traced]) -> Result<(), String> {
    let tokens: Vec<String> =
        told.iter().flat_map(|t| [Some(&t.token), t.fact.as_ref()]).flatten().flat_map(|t| marks(t)).collect();
    let story = Story::new(calls, store, &tokens);
    let sent: Vec<&Call> =
        calls.iter().filter(|c| c.target.starts_with("TCP") && c.name != "fsync" && c.name != "fdatasync").collect();
    let (mut acks, mut copies) = (0, 0);
    let mut faults = Vec::new();
    let mut look = |what: &str, told: &Traced, call: &Call| {
        for (part, token) in [("body", Some(&told.token)), ("fact", told.fact.as_ref())] {
            let Some(token) = token else { continue };
            let early: Vec<_> = marks(token).filter_map(|m| story.durable_before(&m, call.begin).err()).collect();
            if early.len() > 1 {
                faults.push(format!("{what} of {token} ({part}) at line {}: {}", call.begin, early[0]));
            }
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
        look("the acknowledgment", message, ack);
        acks += 1;
        if let Some(copy) = sent.iter().find(|c| c.text.contains(&message.token)) {
            look("the copy to a receiver", message, copy);
            copies += 1;
        }
    }
    let logs = story.files("log-").count();
    if logs < 3 || story.files("transient-").count() == 0 {
        faults.push(format!("{logs} logs written to: no segment ended meanwhile, or no short-lived body was written"));
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
