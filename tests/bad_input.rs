//! Bad input, each with a clear answer and the node unharmed: a good message right after it is acknowledged and
//! delivered, and nothing panicked.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::http::{Client, once};
use harness::wire::{Tag, adt, frame, text};
use harness::{Builder, Node, Peer, Receiver, Rng, ledger, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A node with tight limits, and a receiver.
struct Pair {
    node: Node,
    receiver: Receiver,
}

fn pair() -> Pair {
    let receiver = Receiver::willing();
    let node = Builder::new()
        .mllp("frame_timeout = \"1s\"\nmax_frame = \"1 MiB\"\nmax_connections = 24")
        .http("header_timeout = \"1s\"\nbody_idle_timeout = \"1s\"\nmax_header_bytes = \"16 KiB\"\nmax_connections = 24")
        .channel(all_to(&receiver))
        .start();
    Pair { node, receiver }
}

fn good(id: &str) -> Vec<u8> {
    adt(&Tag { key: "good".into(), seq: 1, id: id.into() }, 800, "pad")
}

impl Pair {
    /// A good message passes, and nothing panicked.
    fn unharmed(&mut self) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = format!("GOOD{}", NEXT.fetch_add(1, Ordering::SeqCst));
        assert!(self.node.alive(), "the node ended\n{}", self.node.log_tail(40));
        let ack = Peer::connect(self.node.mllp).exchange(&good(&id));
        assert_eq!((text(&ack, "MSA", 1), text(&ack, "MSA", 2)), ("AA".into(), id.clone()));
        let delivered = wait_until(Duration::from_secs(10), || self.receiver.arrivals().iter().any(|a| a.tag.id == id));
        assert!(delivered, "a good message is delivered afterwards\n{}", self.node.log_tail(20));
        assert!(!self.node.log().contains("panicked"), "{}", self.node.log_tail(40));
    }
}

/// The other side closed, within `limit`. (An answer before that is fine.)
fn closed_within(stream: &mut TcpStream, limit: Duration) -> bool {
    let begin = Instant::now();
    let _ = stream.set_read_timeout(Some(limit));
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return begin.elapsed() <= limit,
            Ok(_) if begin.elapsed() <= limit => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return begin.elapsed() <= limit,
            _ => return false,
        }
    }
}

// === MLLP ===

#[test]
fn a_frame_cut_off_by_the_sender_is_no_message() {
    let mut t = pair();
    for cut in [1, 5, 60, 700] {
        let mut peer = Peer::connect(t.node.mllp);
        peer.raw(&frame(&good("CUT"))[..cut]).expect("sent");
    }
    t.unharmed();
    assert!(t.receiver.arrivals().iter().all(|a| a.tag.id != "CUT"), "half a message was delivered");
}

#[test]
fn a_frame_without_an_end_block_times_out() {
    let mut t = pair();
    let mut peer = Peer::connect(t.node.mllp);
    let framed = frame(&good("NOEND"));
    peer.raw(&framed[..framed.len() - 2]).expect("sent");
    assert!(closed_within(&mut peer.stream, Duration::from_secs(5)), "closed after frame_timeout");
    t.unharmed();
    assert!(t.receiver.arrivals().iter().all(|a| a.tag.id != "NOEND"));
}

#[test]
fn a_hundred_megabytes_of_garbage_cost_no_memory() {
    let mut t = pair();
    t.unharmed();
    let before = t.node.rss_kib();
    let mut rng = Rng::new(9);
    for begin in [&b""[..], &b"\x0b"[..], &b"\x0bMSH|^~\\&|"[..]] {
        let mut peer = Peer::connect(t.node.mllp);
        let _ = peer.raw(begin);
        let mut block = vec![0u8; 1 << 20];
        for _ in 0..100 {
            // Any byte but those that frame a message.
            block.iter_mut().for_each(|b| *b = (rng.next() as u8) | 0x20);
            if peer.raw(&block).is_err() {
                break; // cut off, as it may be
            }
        }
        let grown = t.node.rss_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "resident memory grew by {grown} KiB");
        drop(peer);
        t.unharmed();
    }
}

#[test]
fn a_frame_beyond_the_limit_is_refused_and_skipped() {
    let mut t = pair();
    let mut peer = Peer::connect(t.node.mllp);
    let mut message = good("BIG");
    message.resize((1 << 20) + 5000, b'x');
    let ack = peer.exchange(&message);
    assert_eq!((text(&ack, "MSA", 1), text(&ack, "MSA", 2)), ("AR".into(), "BIG".into()), "{}", String::from_utf8_lossy(&ack));
    assert!(ack.len() > 60, "and says why: {}", String::from_utf8_lossy(&ack));
    let refused = wait_until(Duration::from_secs(10), || {
        ledger::search(&t.node, &serde_json::json!({ "status": "Refused", "controlId": "BIG" })).len() == 1
    });
    assert!(refused, "what arrived is a transaction, whatever became of it");
    let found = ledger::search(&t.node, &serde_json::json!({ "controlId": "BIG", "filterRepresentation": "full" }));
    assert!(found[0]["error"]["message"].as_str().is_some_and(|m| m.contains("larger than the limit")), "{}", found[0]);
    assert!(found[0]["request"]["body"].as_str().is_some_and(|b| b.starts_with("MSH|")), "its head is kept");
    let ack = peer.exchange(&good("AFTERBIG"));
    assert_eq!(text(&ack, "MSA", 1), "AA", "the connection goes on");
    t.unharmed();
}

#[test]
fn what_is_no_hl7_is_refused_with_a_reason_and_the_connection_kept() {
    let mut t = pair();
    let mut peer = Peer::connect(t.node.mllp);
    for bytes in
        [&b"hello"[..], b"", b"MSH", b"MSH|", b"PID|1||X\rMSH|^~\\&|", b"\xff\xfe\x00\x00", b"{\"resourceType\":\"Patient\"}"]
    {
        let ack = peer.exchange(bytes);
        let code = text(&ack, "MSA", 1);
        assert!(code == "AR" || code == "AE", "{bytes:?}: {}", String::from_utf8_lossy(&ack));
        let reason = text(&ack, "MSA", 3) + &text(&ack, "ERR", 3) + &text(&ack, "ERR", 8);
        assert!(reason.len() > 3, "{bytes:?}: no reason in {}", String::from_utf8_lossy(&ack));
    }
    assert_eq!(text(&peer.exchange(&good("THEN")), "MSA", 1), "AA");
    t.unharmed();
}

#[test]
fn bytes_that_are_not_of_the_declared_charset_are_answered_and_kept() {
    let mut t = pair();
    for (charset, name) in
        [("UNICODE UTF-8", &b"M\xfcller"[..]), ("8859/1", b"M\xfcller"), ("NO-SUCH", b"Mueller"), ("ASCII", b"\xc3\xbc")]
    {
        let mut message = format!("MSH|^~\\&|A|B|C|D|20250101||ADT^A08|CS1|P|2.5||||||{charset}\rPID|1||9||").into_bytes();
        message.extend_from_slice(name);
        message.push(b'\r');
        let ack = Peer::connect(t.node.mllp).exchange(&message);
        assert_eq!(text(&ack, "MSA", 2), "CS1", "{charset}: {}", String::from_utf8_lossy(&ack));
        if text(&ack, "MSA", 1) == "AA" {
            let there = wait_until(Duration::from_secs(10), || t.receiver.others().contains(&message));
            assert!(there, "{charset}: delivered byte for byte");
        } else {
            assert!(!text(&ack, "MSA", 3).is_empty() || !text(&ack, "ERR", 3).is_empty(), "{charset}: refused without a reason");
        }
    }
    t.unharmed();
}

#[test]
fn a_declared_charset_that_the_message_is_not_in_is_named() {
    let t = pair();
    for name in [&b"Mueller"[..], b"M\xfcller"] {
        let mut message = b"MSH|^~\\&|A|B|C|D|20250101||ADT^A08|CS2|P|2.5||||||UNICODE UTF-16\rPID|1||9||".to_vec();
        message.extend_from_slice(name);
        message.push(b'\r');
        let ack = Peer::connect(t.node.mllp).exchange(&message);
        assert_eq!(text(&ack, "MSA", 2), "CS2", "{}", String::from_utf8_lossy(&ack));
        if name.is_ascii() {
            assert_eq!(text(&ack, "MSA", 1), "AA", "ASCII is read as what it is: {}", String::from_utf8_lossy(&ack));
            continue;
        }
        assert_eq!(text(&ack, "MSA", 1), "AE", "{}", String::from_utf8_lossy(&ack));
        let reason = text(&ack, "MSA", 3);
        assert!(reason.contains("UTF-16") && reason.contains("MSH-18"), "{reason}");
        assert!(!reason.contains("begin with"), "{reason}");
    }
}

#[test]
fn ten_thousand_segments_pass() {
    let mut t = pair();
    let mut message = b"MSH|^~\\&|A|B|C|D|20250101||ORU^R01|TENK|P|2.5\rPID|1||77\r".to_vec();
    for n in 0..10_000 {
        message.extend_from_slice(format!("OBX|{n}|NM|X||{n}\r").as_bytes());
    }
    let ack = Peer::connect(t.node.mllp).exchange(&message);
    assert_eq!((text(&ack, "MSA", 1), text(&ack, "MSA", 2)), ("AA".into(), "TENK".into()));
    assert!(wait_until(Duration::from_secs(10), || t.receiver.others().contains(&message)), "byte for byte");
    t.unharmed();
}

// === both ===

#[test]
fn slow_senders_are_cut_off_and_hold_nobody_up() {
    let mut t = pair();
    let drip = |mut stream: TcpStream, text: &'static [u8]| {
        std::thread::spawn(move || {
            let begin = Instant::now();
            for byte in text.iter().cycle() {
                if stream.write_all(&[*byte]).is_err() || begin.elapsed() > Duration::from_secs(10) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            begin.elapsed()
        })
    };
    let open = |to| TcpStream::connect(to).expect("a connection");
    let threads = [
        drip(open(t.node.mllp), b"\x0bMSH|^~\\&|slow|slow|slow|slow|slow|slow|"),
        drip(open(t.node.http), b"GET / HTTP/1.1\r\nHost: slow\r\nX-A: b\r\nX-B: c\r\nX-C: d\r\nX-D: e\r\n"),
    ];
    std::thread::sleep(Duration::from_millis(300));
    t.unharmed();
    for thread in threads {
        let lasted = thread.join().expect("the slow sender");
        assert!(lasted < Duration::from_secs(6), "a slow sender was let in for {lasted:?}");
    }
    // A body that stops coming.
    let mut client = Client::connect(t.node.http, Duration::from_secs(8)).expect("a connection");
    client.raw(b"POST /adt HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nhalf").expect("sent");
    let mut stream = client.stream().try_clone().expect("a descriptor");
    assert!(closed_within(&mut stream, Duration::from_secs(6)), "closed after body_idle_timeout");
    t.unharmed();
    // One that comes byte by byte, each well within that time: the average is looked at too.
    let mut client = Client::connect(t.node.http, Duration::from_secs(15)).expect("a connection");
    client.raw(b"POST /adt HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n").expect("sent");
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let dripping = drip(client.stream().try_clone().expect("a descriptor"), b"slow");
    let begin = Instant::now();
    assert!(closed_within(&mut stream, Duration::from_secs(6)), "closed although a byte came every 50 ms");
    println!("a dripping body was ended after {:?}", begin.elapsed());
    let _ = dripping.join();
    t.unharmed();
}

#[test]
fn connections_beyond_the_limit_are_turned_away_and_told() {
    let mut t = pair();
    for (to, listener) in [(t.node.mllp, "lis"), (t.node.http, "http")] {
        let cut = |node: &Node| {
            let own = format!("hie_inbound_connections_cut_total{{listener=\"{listener}\",reason=\"limit\"}}");
            let metrics = node.metrics();
            let line = metrics.lines().find_map(|l| l.strip_prefix(own.as_str())).unwrap_or_else(|| panic!("no {own}"));
            line.trim().parse::<f64>().expect("a number") as usize
        };
        let before = cut(&t.node);
        let mut open: Vec<TcpStream> = (0..40).filter_map(|_| TcpStream::connect(to).ok()).collect();
        // 24 are let in; some of the others may still wait in the accept queue.
        let told = wait_until(Duration::from_secs(5), || cut(&t.node) - before >= 40 - 24);
        let counted = cut(&t.node) - before;
        let mut turned_away = 0;
        for stream in &mut open {
            stream.set_nonblocking(true).expect("not waiting");
            match stream.read(&mut [0]) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => turned_away += 1,
            }
        }
        let held = t.node.descriptors();
        println!("{to}: {counted} of 40 counted, {turned_away} closed, the node holds {held} descriptors");
        assert!(told, "{counted} of 40 turned away at a limit of 24");
        // A busy machine may have ended some of those that were let in as well, for saying nothing.
        assert!(counted <= turned_away, "the metric counts those that were turned away: {counted}, not {turned_away}");
        drop(open);
        let again = wait_until(Duration::from_secs(5), || once(t.node.http, "GET", "/nothing", &[], b"").is_ok());
        assert!(again, "free again when the connections are gone\n{}", t.node.log_tail(20));
        t.unharmed();
    }
    let log = t.node.log();
    assert!(log.to_lowercase().contains("connection"), "a line says that the limit was reached\n{}", t.node.log_tail(20));
}

// === HTTP ===

#[test]
fn smuggled_requests_are_refused() {
    let upstream = Receiver::http(Default::default(), Rng::new(1));
    let receiver = Receiver::willing();
    let proxy = queue("test.web", "protocol == \"http\"").replace("\"queue\"", "\"proxy\"") + "priority = 1\n";
    let node = Builder::new().channel(proxy + &route("up", &upstream.target(), "")).channel(all_to(&receiver)).start();
    let mut t = Pair { node, receiver };
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases: Vec<(&str, String)> = vec![
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
        ),
        ("a list of lengths", format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, {}\r\n\r\n{inner}", inner.len())),
        ("a signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd".into()),
        ("a negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".into()),
        (
            "chunked not last",
            format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("an unknown coding", format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        (
            "a space before the colon",
            format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("a folded header", format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}")),
        (
            "a chunk size beyond all numbers",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\nx".into(),
        ),
        ("no number as chunk size", format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{inner}")),
        ("a NUL in a header", "POST / HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n".into()),
        (
            "a coding besides chunked",
            format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("chunked twice", format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("no host", "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n".into()),
        ("two hosts", "POST / HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n".into()),
        ("a host that is none", "POST / HTTP/1.1\r\nHost: x y\r\nContent-Length: 0\r\n\r\n".into()),
        ("no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into()),
    ];
    for (what, bytes) in cases {
        let taken = upstream.accepted();
        let mut client = Client::connect(t.node.http, Duration::from_secs(5)).expect("a connection");
        client.raw(bytes.as_bytes()).expect("sent");
        let answer = client.response();
        let status = answer.as_ref().map_or(0, |a| a.status);
        println!("{what}: {status}");
        assert!(matches!(status, 400 | 501), "{what}: {status}");
        assert!(client.response().map_or(true, |second| second.status >= 400), "{what}: the hidden request was answered");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(upstream.accepted(), taken, "{what}: something reached the upstream");
    }
    // Both framings (RFC 9112, 6.1): the chunks count, the length does not, and the connection ends after the answer, so
    // that what follows is never taken for a request.
    let both = "POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let taken = upstream.accepted();
    let mut client = Client::connect(t.node.http, Duration::from_secs(5)).expect("a connection");
    client.raw(format!("{both}{inner}").as_bytes()).expect("sent");
    let answer = client.response().expect("an answer");
    assert!(answer.status == 200 && client.closing || answer.status == 400, "{} {:?}", answer.status, answer.head);
    assert!(client.response().is_err(), "the hidden request was answered");
    assert!(upstream.accepted() <= taken + 1, "the hidden request reached the upstream");
    t.unharmed();
}

#[test]
fn a_body_announced_too_large_is_refused_and_is_a_transaction() {
    let node = Builder::new()
        .section("[limits]\nmax_body = \"1 MiB\"\n")
        .channel(queue("to.all", "true") + &route("none", "http = [\"http://127.0.0.1:9\"]", ""))
        .start();
    let mut stream = TcpStream::connect(node.http).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    write!(stream, "POST /fhir HTTP/1.1\r\nHost: hie\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let id = answer.to_ascii_lowercase().lines().find_map(|l| l.strip_prefix("x-hie-transaction-id: ").map(str::to_owned));
    let id = id.unwrap_or_else(|| panic!("no id of the transaction: {answer}"));
    let mut found = serde_json::Value::Null;
    let recorded = wait_until(Duration::from_secs(10), || {
        found = node.get(&format!("/transactions/{id}")).json();
        found["error"]["message"].as_str().is_some_and(|m| m.contains("larger than the limit"))
    });
    assert!(recorded, "{found}");
}

#[test]
fn oversized_headers_and_request_lines_are_refused() {
    let mut t = pair();
    let long = "h".repeat(40_000);
    let many: String = (0..3000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    for head in [
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        format!("GET /{long}{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let mut client = Client::connect(t.node.http, Duration::from_secs(5)).expect("a connection");
        let _ = client.raw(head.as_bytes());
        let answer = client.response().unwrap_or_else(|e| panic!("no answer: {e}"));
        assert!(matches!(answer.status, 414 | 431), "{}", answer.status);
        assert!(answer.body.is_empty() && client.response().is_err(), "no body, and the connection ends, as documented");
        t.unharmed();
    }
}

#[test]
fn invalid_json_and_unknown_paths_get_a_clear_answer() {
    let receiver = Receiver::http(Default::default(), Rng::new(1));
    let fhir = queue("test.fhir", "protocol == \"http\" && resource == \"Patient\"") + &route("up", &receiver.target(), "");
    let lis = Receiver::willing();
    let mllp = queue("test.mllp", "protocol == \"mllp\"") + &route("primary", &lis.target(), "");
    let mut t = Pair { node: Builder::new().channel(fhir).channel(mllp).start(), receiver: lis };
    let json = [("Content-Type", "application/fhir+json")];
    let post = |body: &[u8]| once(t.node.http, "POST", "/fhir/Patient", &json, body).expect("an answer").status;
    assert!(matches!(post(b"{\"resourceType\":\"Patient\"}"), 200 | 202));
    let deep = "[".repeat(200_000);
    for body in [&b"{\"resourceType\":\"Pat"[..], b"nonsense", b"", b"\xff\xff", deep.as_bytes(), b"{\"resourceType\":{}}"] {
        let status = post(body);
        assert!(matches!(status, 400 | 404 | 415 | 422), "{} bytes: {status}", body.len());
    }
    let told = t.node.post("/channels", "{ no json");
    assert!((400..500).contains(&told.status), "management API: {} {}", told.status, told.text());
    let told = t.node.get("/transactions?filterLimit=minus&filters=%7Bbroken");
    assert!((400..500).contains(&told.status), "management API: {} {}", told.status, told.text());
    t.unharmed();
}

// === at start ===

/// Runs the node until it ends by itself; its exit code and all that it said.
fn fails_to_start(node: &mut Node) -> (Option<i32>, String) {
    node.spawn();
    let status = node.wait_end(Duration::from_secs(15));
    assert!(status.is_some(), "the node started although it cannot work\n{}", node.log_tail(20));
    (status.and_then(|s| s.code()), node.log())
}

#[test]
fn a_wrong_configuration_is_told_with_file_line_and_nearest_key() {
    let cases = [
        ("[ledger]\nretenton = \"3 days\"\n", "retenton", "retention"),
        ("[limits]\nmax_pending = \"many\"\n", "max_pending", ""),
        ("[limts]\nmax_pending = 5\n", "limts", "limits"),
        ("[ledger]\nretention = \"soon\"\n", "retention", ""),
        ("[health\n", "", ""),
    ];
    every_key_mistyped_is_told_with_the_nearest();
    every_key_of_a_wrong_type_is_told();
    for (text, key, nearest) in cases {
        let mut node = Builder::new().section(text).channel(all_to(&Receiver::willing())).lay_out();
        let line = std::fs::read_to_string(node.config_file()).expect("hie.toml").lines().count() - text.lines().count();
        let (code, said) = fails_to_start(&mut node);
        assert_eq!(code, Some(65), "{text:?}: {said}");
        assert!(said.contains("hie.toml"), "{text:?}: names the file: {said}");
        assert!(said.contains(key) && said.contains(nearest), "{text:?}: names key and nearest key: {said}");
        let near = (line..=line + 2).any(|n| said.contains(&format!(":{n}")) || said.contains(&format!("line {n}")));
        assert!(near, "{text:?}: names the line (about {line}): {said}");
    }
}

/// Every table of `hie.toml`, by its header. A section that is not here is found by [`keys_of`]'s caller.
const TABLES: [&str; 17] = [
    "[node]",
    "[http]",
    "[http.tls]",
    "[[mllp]]",
    "[[mllp]]\n[mllp.tls]",
    "[[file]]",
    "[admin]",
    "[health]",
    "[feed]",
    "[alerts]",
    "[[alerts.webhook]]",
    "[[alerts.mail]]",
    "[ledger]",
    "[limits]",
    "[transport]",
    "[discovery]",
    "[peers]",
];
/// Tables of a channel file: what stands before the key, and behind it; and its keys of which there is no other list.
const CHANNEL: &str = "[[channel]]\nname = \"a.b\"\nwhen = 'true'\n";
const ROUTE: &str = "[[channel]]\nname = \"a.b\"\nwhen = 'true'\n[[channel.route]]\nname = \"r\"\nmllp = [\"h:1\"]\n";
const CHANNEL_TABLES: [(&str, &str, &str); 5] = [
    (CHANNEL, "", ""),
    (ROUTE, "", ""),
    (ROUTE, "tls = { ", " }"),
    (ROUTE, "retry = { ", " }"),
    (ROUTE, "file = { directory = \"x\", ", " }"),
];
const CLIENT: &str = "[[client]]\nname = \"lab\"\n";
const CLIENT_KEYS: [&str; 10] = [
    "roles",
    "password",
    "password_file",
    "token_sha256",
    "token_file",
    "certificate",
    "allow_ips",
    "rate",
    "silent_after",
    "enabled",
];

/// What `hie check` says of these files below an empty folder; they are refused.
fn told(files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [("hie.toml", "")].iter().chain(files) {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }
    let mut hie = std::process::Command::new(harness::node::binary());
    let output = hie.args(["check", "--config", "hie.toml"]).current_dir(folder.path()).output().expect("hie runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(65), "{files:?}: {said}");
    said
}

/// The keys of a table, as the program itself lists them for one that is like none of them.
fn keys_of(said: &str) -> Vec<String> {
    let (_, list) = said
        .trim_end()
        .split_once("known here: ")
        .or_else(|| said.trim_end().split_once("known are "))
        .unwrap_or_else(|| panic!("{said}"));
    list.lines().next().expect("a line").split(", ").map(str::to_owned).collect()
}

/// The line of `said` about a place.
fn line_about<'a>(said: &'a str, place: &str) -> &'a str {
    said.lines().find(|l| l.contains(place)).unwrap_or_else(|| panic!("nothing about {place}: {said}"))
}

/// The last letter twice.
fn mistyped(key: &str) -> String {
    format!("{key}{}", key.chars().last().expect("a letter"))
}

fn every_key_mistyped_is_told_with_the_nearest() {
    for section in keys_of(&told(&[("hie.toml", "zzqx = 1\n")])) {
        let known = |table: &&&str| table.trim_matches(['[', ']']) == section;
        assert!(TABLES.iter().any(|table| known(&table)), "[{section}] is new: put it into TABLES");
        let said = told(&[("hie.toml", &format!("[{}]\n", mistyped(&section)))]);
        assert!(line_about(&said, "hie.toml:1:2: ").contains(&format!("did you mean \"{section}\"?")), "{said}");
    }
    let mut keys = 0;
    for table in TABLES {
        let known = keys_of(&told(&[("hie.toml", &format!("{table}\nzzqx = 1\n"))]));
        let lines: Vec<String> = known.iter().map(|key| format!("{} = 1\n", mistyped(key))).collect();
        let said = told(&[("hie.toml", &format!("{table}\n{}", lines.concat()))]);
        for (i, key) in known.iter().enumerate() {
            let place = format!("hie.toml:{}:1: ", table.lines().count() + 1 + i);
            assert!(line_about(&said, &place).contains(&format!("did you mean \"{key}\"?")), "{table} {key}: {said}");
            keys += 1;
        }
    }
    assert!(keys > 90, "{keys} keys");
    for (before, open, close) in CHANNEL_TABLES {
        let line = before.lines().count() + 1;
        for key in keys_of(&told(&[("channels.d/a.toml", &format!("{before}{open}zzqx = 1{close}\n"))])) {
            let said = told(&[("channels.d/a.toml", &format!("{before}{open}{} = 1{close}\n", mistyped(&key)))]);
            let about = line_about(&said, &format!("channels.d/a.toml:{line}:{}: ", open.len() + 1));
            assert!(about.contains(&format!("did you mean `{key}`?")), "{open}{key}: {said}");
        }
    }
    for key in CLIENT_KEYS {
        let said = told(&[("clients.d/a.toml", &format!("{CLIENT}{} = 1\n", mistyped(key)))]);
        assert!(
            line_about(&said, "clients.d/a.toml, line 3, column 1").contains(&format!("nearest known one is `{key}`")),
            "{said}"
        );
    }
}

/// No key takes a table with an unknown key in it.
fn every_key_of_a_wrong_type_is_told() {
    for table in TABLES {
        let known = keys_of(&told(&[("hie.toml", &format!("{table}\nzzqx = 1\n"))]));
        let lines: Vec<String> = known.iter().map(|key| format!("{key} = {{ zzqx = 1 }}\n")).collect();
        let said = told(&[("hie.toml", &format!("{table}\n{}", lines.concat()))]);
        for (i, key) in known.iter().enumerate() {
            let about = line_about(&said, &format!("hie.toml:{}:", table.lines().count() + 1 + i));
            assert!(about.contains(key.as_str()) && !about.contains("struct "), "{table} {key}: {said}");
        }
    }
    for (before, open, close) in CHANNEL_TABLES {
        let line = before.lines().count() + 1;
        for key in keys_of(&told(&[("channels.d/a.toml", &format!("{before}{open}zzqx = 1{close}\n"))])) {
            if before.contains(&format!("\n{key} =")) || open.contains(&format!(" {key} =")) {
                continue; // There already: told as given twice.
            }
            let said = told(&[("channels.d/a.toml", &format!("{before}{open}{key} = {{ zzqx = 1 }}{close}\n"))]);
            let about = line_about(&said, &format!("channels.d/a.toml:{line}:"));
            assert!(!about.contains("struct ") && !about.contains(" u32"), "{open}{key}: {said}");
        }
    }
    for key in CLIENT_KEYS {
        let said = told(&[("clients.d/a.toml", &format!("{CLIENT}{key} = {{ zzqx = 1 }}\n"))]);
        assert!(!line_about(&said, "clients.d/a.toml, line 3").contains("struct "), "{said}");
    }
}

#[test]
fn a_wrong_channel_is_told_with_its_file() {
    let receiver = Receiver::willing();
    let cases = [
        all_to(&receiver).replace("when = 'true'", "when = 'hl7('"),
        all_to(&receiver).replace("when = 'true'", "when = 'no_such_function(1)'"),
        all_to(&receiver).replace("priority", "x").replace("primary = true", "primry = true"),
        all_to(&receiver).replace("test.all", "nodots"),
        queue("test.all", "true"),
        all_to(&receiver) + &all_to(&receiver),
    ];
    for text in cases {
        let mut node = Builder::new().channel(text.clone()).lay_out();
        let (code, said) = fails_to_start(&mut node);
        assert_eq!(code, Some(65), "{text}\n{said}");
        assert!(said.contains("test.toml"), "names the file: {said}");
    }
}

#[test]
fn a_port_in_use_is_told() {
    let mut node = Builder::new().channel(all_to(&Receiver::willing())).lay_out();
    for at in [node.mllp, node.http, node.admin, node.health] {
        let _taken = std::net::TcpListener::bind(at).expect("the port");
        let (code, said) = fails_to_start(&mut node);
        assert!(code.is_some_and(|c| c != 0), "{said}");
        assert!(said.contains(&at.to_string()), "names {at}: {said}");
    }
}

#[test]
fn a_store_that_cannot_be_written_is_told() {
    // A regular file where the folder should be, and (root may write everywhere else) a read-only file system.
    let mut node = Builder::new().channel(all_to(&Receiver::willing())).lay_out();
    let file = node.dir().join("a-file");
    std::fs::write(&file, "").expect("a file");
    node.store = file.join("store");
    node.write_config();
    let (code, said) = fails_to_start(&mut node);
    assert!(code.is_some_and(|c| c != 0 && c != 70), "{code:?} {said}");
    assert!(said.contains("a-file"), "names the store: {said}");

    let mount = node.dir().join("ro");
    std::fs::create_dir(&mount).expect("a folder");
    node.store = mount.join("store");
    node.write_config();
    let script = format!("mount -t tmpfs -o ro tmpfs '{}' && exec \"$@\"", mount.display());
    let wrapper = ["unshare", "-m", "--propagation", "private", "sh", "-c", &script, "sh"];
    node.setup.wrapper = wrapper.iter().map(|s| (*s).to_owned()).collect();
    let (code, said) = fails_to_start(&mut node);
    assert!(code.is_some_and(|c| c != 0 && c != 70), "{code:?} {said}");
    assert!(said.contains("/ro"), "names the store: {said}");
}

#[test]
fn a_store_of_a_running_node_is_told() {
    let first = pair();
    let mut second = Builder::new().store(first.node.store.clone()).channel(all_to(&first.receiver)).lay_out();
    let (code, said) = fails_to_start(&mut second);
    assert!(code.is_some_and(|c| c != 0 && c != 70), "{code:?} {said}");
    assert!(said.contains("store") && said.contains("another") || said.contains("running"), "says who owns it: {said}");
    let mut first = first;
    first.unharmed();
}
