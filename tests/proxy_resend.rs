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

/// Serves HTTP and counts: `answer` gives the whole response to the request of that number (from 1).
fn counting(at: SocketAddr, answer: fn(&http::Head, usize) -> Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(at).expect("the upstream's port");
    let at = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || {
                let mut input = std::io::BufReader::new(&stream);
                while let Ok(Some(head)) = http::Head::read(&mut input) {
                    http::read_body(&head, &mut input, false, |_| ()).ok()?;
                    let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
                    (&stream).write_all(&answer(&head, number)).ok()?;
                }
                Some(())
            });
        }
    });
    (at, count)
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

    let (_, seen) = counting(port, |_, _| b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone".to_vec());
    let done = post();
    assert_eq!((done.status, seen.load(Ordering::SeqCst)), (200, 1), "the repetition reached it: {}", done.text());
    assert!(mllp(node.mllp, adt).contains("MSA|AA|ID-1"));
    assert_eq!(seen.load(Ordering::SeqCst), 2);

    let repeated = post();
    assert_eq!((repeated.status, seen.load(Ordering::SeqCst)), (200, 2), "what succeeded is not sent again");
    assert_eq!(repeated.text(), "done", "but answered again");
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

/// The body says which request it was, and a header too; of 300 KiB where asked.
fn numbered(head: &http::Head, n: usize, code: u16) -> Vec<u8> {
    let size = if head.header("x-large").is_some() { 300 * 1024 } else { 8 };
    let mut response =
        format!("HTTP/1.1 {code} X\r\nX-Number: {n}\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    let body = format!("answer {n}").into_bytes().into_iter().chain(std::iter::repeat(b'.'));
    response.extend(body.take(size));
    response
}

fn numbering(answer: fn(&http::Head, usize) -> Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    counting("127.0.0.1:0".parse().expect("an address"), answer)
}

fn proxy(more: &str, at: SocketAddr) -> String {
    let channel = queue("proxy.all", "true").replace("\"queue\"", "\"proxy\"") + more + "\n";
    channel + &route("upstream", &format!("http = [\"http://{at}/in\"]"), "")
}

#[test]
fn a_repetition_gets_the_stored_response_also_after_a_restart() {
    let (at, seen) = numbering(|head, n| numbered(head, n, 201));
    let mut node = Builder::new().channel(proxy("", at)).start();
    let adt = "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|ID-1|P|2.5\rPID|1||123\r";
    for round in 0..2 {
        for (key, large, body) in [("small", false, "answer 1"), ("large", true, "answer 2")] {
            let mut headers = vec![("Idempotency-Key", key), ("Content-Type", "text/plain")];
            headers.extend(large.then_some(("X-Large", "1")));
            let first = http::once(node.http, "POST", "/x", &headers, b"same").expect("an answer");
            let again = http::once(node.http, "POST", "/x", &headers, b"same").expect("an answer");
            assert_eq!((first.status, again.status), (201, 201), "{}", again.text());
            assert!(again.text().starts_with(body), "the stored one: {:?}", &again.text()[..20.min(again.text().len())]);
            assert_eq!(first.body, again.body, "byte for byte");
            assert_eq!(again.body.len(), if large { 300 * 1024 } else { 8 });
            for name in ["x-number", "content-type", "x-hie-transaction-id"] {
                assert_eq!(first.header(name), again.header(name), "{name}");
                assert!(again.header(name).is_some(), "{name}");
            }
            assert_eq!((first.header("x-hie-resend").is_some(), again.header("x-hie-resend")), (round == 1, Some("true")));
        }
        let first = mllp(node.mllp, adt);
        assert!(first.contains("MSA|AA|ID-1"), "{first}");
        assert_eq!(seen.load(Ordering::SeqCst), 3, "none reached the upstream twice");
        if round == 0 {
            // How it ended is recorded without making the sender wait.
            assert!(harness::ledger::settled(&node, Duration::from_secs(10)));
            node.kill9();
            node.start();
        }
    }
    assert!(node.metric("hie_channel_resent_total").or(node.metric("hie_messages_resent_total")).is_some_and(|n| n >= 3.0));
}

#[test]
fn an_hl7_answer_is_repeated_byte_for_byte() {
    let receiver = Receiver::willing();
    let channel = queue("proxy.all", "true").replace("\"queue\"", "\"proxy\"") + &route("upstream", &receiver.target(), "");
    let node = Builder::new().channel(channel).start();
    let adt = "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|ID-1|P|2.5\rPID|1||123\r";
    let first = mllp(node.mllp, adt);
    assert!(first.contains("MSA|AA|ID-1"), "{first}");
    assert_eq!(mllp(node.mllp, adt), first, "the application's own acknowledgment, not the node's");
}

#[test]
fn where_no_body_is_stored_a_repetition_is_only_acknowledged() {
    let (at, seen) = numbering(|head, n| numbered(head, n, 201));
    let node = Builder::new().channel(proxy("storage = \"no-bodies\"", at)).start();
    let post = || http::once(node.http, "POST", "/x", &[("Idempotency-Key", "k")], b"same").expect("an answer");
    assert_eq!(post().status, 201);
    let again = post();
    assert_eq!((again.status, again.header("x-hie-resend")), (202, Some("true")), "{}", again.text());
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn what_failed_is_forwarded_again_after_a_restart_too() {
    let (at, seen) = numbering(|head, n| numbered(head, n, if n == 1 { 500 } else { 201 }));
    let mut node = Builder::new().channel(proxy("", at)).start();
    let post =
        |node: &harness::Node| http::once(node.http, "POST", "/x", &[("Idempotency-Key", "k")], b"same").expect("an answer");
    assert_eq!(post(&node).status, 500);
    node.stop(Duration::from_secs(20));
    node.start();
    let again = post(&node);
    assert_eq!((again.status, again.text().as_str()), (201, "answer 2"), "no false acknowledgment of what failed");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[test]
fn a_path_that_leads_out_of_the_targets_is_the_senders_mistake() {
    let (at, seen) = numbering(|head, n| numbered(head, n, 201));
    let channel = queue("proxy.all", "true").replace("\"queue\"", "\"proxy\"");
    let node = Builder::new()
        .channel(channel + &route("upstream", &format!("http = [\"http://{at}/in\"]"), "forward_path = true"))
        .start();
    let get = |path: &str| http::once(node.http, "GET", path, &[], b"").expect("an answer");
    for path in ["/../admin", "/a/../../admin", "/%2e%2E/admin"] {
        let refused = get(path);
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
        assert!(refused.text().contains("leads out of"), "says why: {}", refused.text());
        assert!(!refused.text().contains(&at.to_string()), "and nothing of the inside: {}", refused.text());
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert_eq!(get("/a/../b").status, 201, "one that stays inside passes");
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
    let (_, seen) = counting(port, |_, _| b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone".to_vec());
    node.start();
    assert_eq!(post(node.http, "done").expect("an answer"), 200);
    for (key, count) in [("failed", 2), ("unknown", 3)] {
        assert_eq!((post(node.http, key).expect("an answer"), seen.load(Ordering::SeqCst)), (200, count), "{key}: forwarded");
    }
    assert!(harness::ledger::settled(&node, Duration::from_secs(10)));
    node.kill9();
    node.start();
    for key in ["done", "failed", "unknown"] {
        assert_eq!((post(node.http, key).expect("an answer"), seen.load(Ordering::SeqCst)), (200, 3), "{key}: recognised");
    }
}

/// Senders count their keys from 1: what is stored of one request is no answer to another.
#[test]
fn a_key_belongs_to_its_request() {
    let (at, seen) = numbering(|head, n| numbered(head, n, 201));
    let node = Builder::new().channel(proxy("", at)).start();
    let ask = |method: &str, path: &str| {
        let answer = http::once(node.http, method, path, &[("Idempotency-Key", "1")], b"").expect("an answer");
        (answer.status, answer.text())
    };
    for (n, (method, path)) in [("GET", "/a"), ("GET", "/b"), ("GET", "/a?c=d"), ("DELETE", "/a")].into_iter().enumerate() {
        assert_eq!(ask(method, path), (201, format!("answer {}", n + 1)), "{method} {path}");
    }
    assert_eq!(ask("GET", "/a"), (201, "answer 1".into()), "the repetition");
    assert_eq!(seen.load(Ordering::SeqCst), 4);
}
