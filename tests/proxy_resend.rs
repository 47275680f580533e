//! Tries to break: **a sender that repeats a proxied request gets no false acknowledgment.** While the upstream is away
//! every repetition is told so; when it is back the repetition reaches it; only what succeeded is not sent again. And one
//! message that can never be sent on a route does not stop the route.

mod harness;

use harness::channels::{queue, route};
use harness::http;
use harness::{Builder, Receiver, node::free_port, wait_until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Answers 200 to everything and counts it.
fn upstream(at: SocketAddr) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(at).expect("the upstream's port");
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || {
                let mut input = std::io::BufReader::new(&stream);
                while let Ok(Some(head)) = http::Head::read(&mut input) {
                    http::read_body(&head, &mut input, false, |_| ()).ok()?;
                    seen.fetch_add(1, Ordering::SeqCst);
                    (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").ok()?;
                }
                Some(())
            });
        }
    });
    count
}

fn mllp(to: SocketAddr, message: &str) -> String {
    let mut stream = TcpStream::connect(to).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream.write_all(format!("\x0b{message}\x1c\r").as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\x1c\r") && stream.read(&mut byte).expect("an answer") == 1 {
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_repetition_is_forwarded_until_it_has_succeeded() {
    let port = free_port();
    let target = format!("http = [\"http://{port}/in\"]");
    let channel = queue("proxy.all", "true").replace("\"queue\"", "\"proxy\"") + &route("upstream", &target, "");
    let node = Builder::new().channel(channel).start();
    let post = || http::once(node.http, "POST", "/x", &[("Idempotency-Key", "k-1")], b"{}").expect("an answer");
    let adt = "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|ID-1|P|2.5\rPID|1||123\r";

    assert_eq!(post().status, 502);
    let again = post();
    assert_eq!(again.status, 502, "the upstream is still away: {}", again.text());
    assert!(!again.text().contains(&port.port().to_string()), "addresses inside are nobody's business: {}", again.text());
    assert!(mllp(node.mllp, adt).contains("MSA|AE|ID-1"));
    assert!(mllp(node.mllp, adt).contains("MSA|AE|ID-1"), "no false acknowledgment of a repetition");

    let seen = upstream(port);
    let done = post();
    assert_eq!((done.status, seen.load(Ordering::SeqCst)), (200, 1), "the repetition reached it: {}", done.text());
    assert!(mllp(node.mllp, adt).contains("MSA|AA|ID-1"));
    assert_eq!(seen.load(Ordering::SeqCst), 2);

    let repeated = post();
    assert_eq!((repeated.status, seen.load(Ordering::SeqCst)), (202, 2), "what succeeded is not sent again");
    assert!(mllp(node.mllp, adt).contains("MSA|AA|ID-1"));
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[test]
fn a_message_that_can_never_be_sent_is_set_aside_and_the_others_pass() {
    let receiver = Receiver::willing();
    let node = Builder::new().channel(queue("to.mllp", "true") + &route("lab", &receiver.target(), "in_flight = 1")).start();
    receiver.keep_others(true);
    // A frame end inside the body cannot go over MLLP.
    let poison =
        http::once(node.http, "POST", "/x", &[("Content-Type", "text/plain")], b"MSH|^~\\&|a\x1c\rb").expect("an answer");
    assert_eq!(poison.status, 202, "{}", poison.text());
    let after = http::once(node.http, "POST", "/x", &[("Content-Type", "text/plain")], b"plain").expect("an answer");
    assert_eq!(after.status, 202, "{}", after.text());
    let passed = wait_until(Duration::from_secs(20), || receiver.others().iter().any(|m| m == b"plain"));
    assert!(passed, "the message behind it is delivered");
    assert_eq!(node.metric("hie_route_parked"), Some(1.0));
}

/// The window is read from the log at start: what failed, or was on its way when the node died, is not taken for done.
#[test]
fn after_a_kill_too_only_what_succeeded_is_recognised() {
    let port = free_port();
    let channel = queue("proxy.all", "true").replace("\"queue\"", "\"proxy\"")
        + &route("up", &format!("http = [\"http://{port}/in\"]"), "");
    let mut node = Builder::new().channel(channel).start();
    let post = |at: SocketAddr, key: &str| http::once(at, "POST", "/x", &[("Idempotency-Key", key)], b"{}").map(|a| a.status);
    assert_eq!(post(node.http, "failed").expect("an answer"), 502);
    // One that takes requests and never answers: the node dies with a request there.
    let silent = TcpListener::bind(port).expect("the upstream's port");
    let (to, waiting) = (node.http, std::thread::spawn(move || silent.accept().map(drop)));
    let under_way = std::thread::spawn(move || {
        let mut client = http::Client::connect(to, Duration::from_secs(20)).expect("connected");
        client.request("POST", "/x", &[("Idempotency-Key", "unknown")], b"{}").map(|a| a.status)
    });
    let arrived = wait_until(Duration::from_secs(10), || waiting.is_finished());
    assert!(arrived, "the request reached the upstream");
    node.kill9();
    let _ = (waiting.join(), under_way.join());
    let seen = upstream(port);
    node.start();
    assert_eq!(post(node.http, "done").expect("an answer"), 200);
    for (key, count) in [("failed", 2), ("unknown", 3)] {
        assert_eq!((post(node.http, key).expect("an answer"), seen.load(Ordering::SeqCst)), (200, count), "{key}: forwarded");
    }
    assert!(harness::ledger::settled(&node, Duration::from_secs(10)));
    node.kill9();
    node.start();
    for key in ["done", "failed", "unknown"] {
        assert_eq!((post(node.http, key).expect("an answer"), seen.load(Ordering::SeqCst)), (202, 3), "{key}: recognised");
    }
}
