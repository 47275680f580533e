//! HTTP in, through real sockets: good senders, odd senders, bad senders.

mod inbound_support;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hie::{
    config,
    engine::ports::{Answer, Denied, Refusal, Response},
    message::{MessageId, Protocol, envelope::HeaderBytes},
};
use inbound_support::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

fn config() -> config::Http {
    config::Http::default()
}

/// Sends raw bytes and reads until the end of the stream.
async fn raw(running: &Running, bytes: &[u8]) -> String {
    let mut client = connect(running).await;
    client.write_all(bytes).await.unwrap();
    to_end(&mut client).await
}

async fn to_end(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(matches!(read, Ok(Ok(_))), "not ended properly: {read:?} after {answer:?}");
    answer
}

/// One response with a Content-Length off a connection that stays open.
async fn response(client: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 16 * 1024];
        let n = timeout(Duration::from_secs(5), client.read(&mut piece)).await.expect("no response").unwrap();
        assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..n]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end + 4].to_vec()).unwrap();
        let len = head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |v| v.parse::<usize>().unwrap());
        if bytes.len() >= end + 4 + len {
            return (head, bytes[end + 4..].to_vec());
        }
    }
}

fn relay(status: u16, headers: &[(&str, &str)], body: &'static [u8]) -> Answer {
    Answer::Response {
        resend: false,
        id: MessageId::now(),
        response: Response {
            status,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), HeaderBytes(v.as_bytes().to_vec()))).collect(),
            len: Some(body.len() as u64),
            body: Box::pin(stream::iter([Ok(Bytes::from_static(body))])),
        },
    }
}

#[tokio::test]
async fn a_message_is_accepted_and_its_bytes_and_head_are_kept() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    let mut client = connect(&running).await;
    for _ in 0..3 {
        client
            .write_all(
                b"PATCH /fhir/Patient%2F1?_pretty=true&x HTTP/1.1\r\nHost: hie:5001\r\nContent-Type: text/plain; charset=latin1\r\n\
                  Authorization: Basic c2VjcmV0\r\nConnection: X-Hop\r\nX-Hop: 1\r\ntraceparent: 00-a-b-01\r\nContent-Length: 7\r\n\r\nM\xfcller\0",
            )
            .await
            .unwrap();
        let (head, body) = response(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 202 Accepted\r\n"), "{head}");
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let id = value["id"].as_str().unwrap();
        assert_eq!(value["status"], "Processing");
        assert!(value.get("resend").is_none());
        assert!(head.contains(&format!("x-hie-transaction-id: {id}\r\n")), "{head}");
        assert!(head.contains(&format!("x-openhim-transactionid: {id}\r\n")), "{head}");
    }
    let seen = fake.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    let head = seen[2].http.as_ref().unwrap();
    assert_eq!((head.method.as_str(), head.path.as_str(), head.query.as_str()), ("PATCH", "/fhir/Patient%2F1", "_pretty=true&x"));
    let names: Vec<&str> = head.headers.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["host", "content-type", "traceparent", "content-length"]);
    assert_eq!(&seen[2].body[..], b"M\xfcller\0");
    assert_eq!((seen[2].protocol, seen[2].listener.as_str()), (Protocol::Http, "http"));
    let identified = fake.identified.lock().unwrap();
    assert_eq!(identified[2].1.authorization, Some(HeaderBytes(b"Basic c2VjcmV0".to_vec())));
}

#[tokio::test]
async fn any_method_passes_except_connect() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND", "X-OWN"] {
        let answer = raw(&running, format!("{method} /x HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{method}: {answer}");
        assert_eq!(answer.ends_with("\r\n\r\n"), method == "HEAD", "only HEAD has no body: {answer}");
        assert_eq!(fake.seen.lock().unwrap().last().unwrap().http.as_ref().unwrap().method, method);
    }
    let answer = raw(&running, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET"), "{answer}");
    let answer = raw(&running, b"OPTIONS * HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204") && answer.contains("allow: GET"), "{answer}");
    assert_eq!(fake.count(), 6);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            let refusal = Refusal::Unreadable(String::from_utf8_lossy(&seen.body).into_owned());
            Answer::Refused { id: None, refusal }
        })
    });
    let running = http(config(), fake).await;
    let mut all: String = (0..50).map(|i| format!("POST / HTTP/1.1\r\nHost: hie\r\nContent-Length: 2\r\n\r\n{i:02}")).collect();
    all += "GET / HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n";
    let answers = raw(&running, all.as_bytes()).await;
    let order: Vec<&str> =
        answers.match_indices("{\"error\":\"").map(|(at, m)| &answers[at + m.len()..at + m.len() + 2]).collect();
    assert_eq!(order[..50], (0..50).map(|i| format!("{i:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn bodies_arrive_whole_or_in_pieces_whatever_their_framing() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    let mut random = Random(77);
    for (len, in_pieces) in [(0, false), (1, false), (20_000, false), (262_143, false), (262_145, true), (3_000_000, true)] {
        let body: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut chunked = b"POST / HTTP/1.1\r\nHost: hie\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at((1 + random.below(70_000)).min(rest.len()));
            chunked.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
            rest = after;
        }
        chunked.extend_from_slice(b"0\r\nX-Trailer: 1\r\n\r\n");
        let mut plain =
            format!("POST / HTTP/1.1\r\nHost: hie\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n").into_bytes();
        plain.extend_from_slice(&body);
        for request in [chunked, plain] {
            let answer = raw(&running, &request).await;
            assert!(answer.starts_with("HTTP/1.1 202"), "{len}: {answer}");
            let seen = fake.seen.lock().unwrap().pop().unwrap();
            assert!(seen.body == body, "{len} bytes are the same");
            assert_eq!(seen.head.is_some(), in_pieces, "{len}");
            assert!(seen.head.is_none_or(|head| (64 * 1024..400_000).contains(&head)), "{:?}", seen.head);
        }
    }
}

#[tokio::test]
async fn a_large_body_flows_through_without_being_held() {
    // The engine reads slowly; the sender must be held back, not the bytes held here.
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    struct Slow;
    impl hie::engine::ports::Intake for Slow {
        fn identify(
            &self,
            _: &str,
            _: Option<std::net::SocketAddr>,
            _: &hie::engine::ports::Credentials,
        ) -> hie::engine::ports::Identity<'_> {
            hie::engine::ports::Identity::Known(Ok("anonymous".into()))
        }
        fn rate(&self, _: &str) -> Result<(), Duration> {
            Ok(())
        }
        fn accept(&self, arrival: hie::engine::ports::Arrival) -> futures_util::future::BoxFuture<'_, Answer> {
            Box::pin(async move {
                let hie::engine::ports::Incoming::Stream { head, mut rest } = arrival.body else { panic!("whole") };
                TAKEN.store(head.len(), Ordering::SeqCst);
                sleep(Duration::from_millis(500)).await;
                while let Some(piece) = rest.next().await {
                    TAKEN.fetch_add(piece.unwrap().len(), Ordering::SeqCst);
                }
                Answer::Accepted { id: MessageId::now(), resend: true }
            })
        }
        fn open(&self) -> bool {
            true
        }
        fn wait_open(&self) -> futures_util::future::BoxFuture<'_, ()> {
            Box::pin(async {})
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, tasks) = (tokio_util::sync::CancellationToken::new(), tokio_util::task::TaskTracker::new());
    let server = hie::gateway::inbound::http::HttpServer::new(config(), None, MAX_BODY);
    tokio::spawn(hie::gateway::inbound::http::serve(listener, server, Arc::new(Slow), drain, tasks));
    let (mut receive, mut send) = TcpStream::connect(address).await.unwrap().into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    tokio::spawn(async move {
        let piece = vec![7; 64 * 1024];
        send.write_all(b"POST / HTTP/1.1\r\nHost: hie\r\nConnection: close\r\nContent-Length: 20971520\r\n\r\n").await.unwrap();
        for _ in 0..320 {
            send.write_all(&piece).await.unwrap();
            counter.fetch_add(piece.len(), Ordering::SeqCst);
        }
        send
    });
    sleep(Duration::from_millis(300)).await;
    let (sent_now, taken_now) = (sent.load(Ordering::SeqCst), TAKEN.load(Ordering::SeqCst));
    assert!(sent_now < 15_000_000 && taken_now < 200_000, "sent {sent_now}, taken {taken_now}");
    let mut answer = String::new();
    receive.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202") && answer.contains("\"resend\":true"), "{answer}");
    assert_eq!(TAKEN.load(Ordering::SeqCst), 20_971_520);
}

#[tokio::test]
async fn a_response_is_relayed_without_what_belongs_to_its_hop() {
    let fake = Fake::new(|seen| {
        let method = seen.http.as_ref().unwrap().method.clone();
        let path = seen.http.unwrap().path;
        Box::pin(async move {
            match path.as_str() {
                "/headers" => relay(
                    201,
                    &[
                        ("content-type", "application/fhir+json"),
                        ("location", "/Patient/1"),
                        ("set-cookie", "a=1"),
                        ("set-cookie", "b=2"),
                        ("connection", "close, x-own"),
                        ("x-own", "1"),
                        ("keep-alive", "timeout=1"),
                        ("transfer-encoding", "chunked"),
                        ("content-length", "9"),
                        ("x-hie-transaction-id", "forged"),
                        ("bad\nname", "x"),
                        ("etag", "W/\"1\""),
                    ],
                    b"{\"a\":1}\xff",
                ),
                "/head" => {
                    assert_eq!(method, "HEAD");
                    relay(200, &[("content-length", "12345"), ("etag", "x")], b"")
                }
                "/nothing" => relay(204, &[], b""),
                "/informational" => relay(101, &[], b""),
                "/unknown-length" => Answer::Response {
                    resend: false,
                    id: MessageId::now(),
                    response: Response {
                        status: 200,
                        headers: vec![],
                        body: Box::pin(stream::iter((0..100).map(|_| Ok(Bytes::from_static(b"0123456789"))))),
                        len: None,
                    },
                },
                _ => Answer::Response {
                    resend: false,
                    id: MessageId::now(),
                    response: Response {
                        status: 200,
                        headers: vec![],
                        body: Box::pin(stream::iter([
                            Ok(Bytes::from_static(b"half")),
                            Err(std::io::ErrorKind::BrokenPipe.into()),
                        ])),
                        len: Some(8),
                    },
                },
            }
        })
    });
    let running = http(config(), fake).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n");
    let mut client = connect(&running).await;
    client.write_all(get("/headers").as_bytes()).await.unwrap();
    let (head, body) = response(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 201 Created\r\n"), "{head}");
    assert_eq!(body, b"{\"a\":1}\xff");
    for there in [
        "content-type: application/fhir+json",
        "location: /Patient/1",
        "set-cookie: a=1",
        "set-cookie: b=2",
        "content-length: 8",
        "etag: W/\"1\"",
    ] {
        assert!(head.contains(&format!("{there}\r\n")), "{there} is missing in {head}");
    }
    for gone in ["x-own", "keep-alive", "transfer-encoding", "forged", "\r\nbad"] {
        assert!(!head.contains(gone), "{gone} is there in {head}");
    }
    let head = raw(&running, b"HEAD /head HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 12345\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(raw(&running, get("/nothing").as_bytes()).await.starts_with("HTTP/1.1 204 No Content\r\n"));
    assert!(raw(&running, get("/informational").as_bytes()).await.starts_with("HTTP/1.1 502 "));
    let answer = raw(&running, get("/unknown-length").as_bytes()).await;
    assert!(answer.contains("transfer-encoding: chunked") && answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    // What breaks off is not taken for whole: fewer bytes than said, or none.
    let answer = raw(&running, get("/broken").as_bytes()).await;
    assert!(answer.is_empty() || answer.contains("content-length: 8") && answer.ends_with("half"), "{answer}");
}

#[tokio::test]
async fn refusals_have_their_status_and_say_when_to_try_again() {
    let fake = Fake::with_identity(
        |seen| {
            let path = seen.http.unwrap().path;
            Box::pin(async move {
                let refusal = match path.as_str() {
                    "/400" => Refusal::Unreadable("the body is not valid JSON".into()),
                    "/404" => Refusal::NoChannel,
                    "/403" | "/401" => Refusal::NotAllowed,
                    "/413" => Refusal::TooLarge { limit: 10 },
                    "/429" => Refusal::RateLimited { retry_after: Duration::from_millis(1200) },
                    "/503" => Refusal::Busy("too many messages wait for delivery", Duration::from_secs(7)),
                    "/store" => Refusal::Store,
                    "/502" => Refusal::Upstream("connection refused".into()),
                    "/504" => Refusal::UpstreamTimeout,
                    _ => Refusal::Aborted,
                };
                Answer::Refused { id: Some(MessageId::now()), refusal }
            })
        },
        |_, _, credentials| match credentials.authorization.as_ref().map(|a| &a.0[..]) {
            Some(b"Bearer known") => Ok("known".into()),
            Some(b"Bearer elsewhere") => Err(Denied::Address),
            Some(_) => Err(Denied::BadCredentials),
            None => Ok("anonymous".into()),
        },
    );
    let running = http(config(), fake.clone()).await;
    for (path, credential, status, retry) in [
        ("/400", None, 400, None),
        ("/404", None, 404, None),
        ("/403", Some("known"), 403, None),
        ("/401", None, 401, None),
        ("/413", None, 413, None),
        ("/429", None, 429, Some("2")),
        ("/503", None, 503, Some("7")),
        ("/store", None, 503, Some("5")),
        ("/502", None, 502, None),
        ("/504", None, 504, None),
        ("/aborted", None, 408, None),
        ("/x", Some("wrong"), 401, None),
        ("/x", Some("elsewhere"), 403, None),
    ] {
        let authorization = credential.map(|c| format!("Authorization: Bearer {c}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: hie\r\n{authorization}Connection: close\r\n\r\n");
        let answer = raw(&running, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        let value = answer.lines().find_map(|l| l.strip_prefix("retry-after: "));
        assert_eq!(value, retry, "{path}");
        assert_eq!(answer.contains("www-authenticate: Basic realm=\"hie\""), status == 401, "{path}");
        let json: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert!(!json["error"].as_str().unwrap().is_empty());
        if path != "/x" {
            assert!(answer.contains(&format!("x-hie-transaction-id: {}", json["transaction"].as_str().unwrap())));
        }
    }
    let strict = config::Http { require_client: true, ..config() };
    let running = http(strict, fake).await;
    assert!(raw(&running, b"GET /404 HTTP/1.1\r\nHost: hie\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test]
async fn a_body_announced_too_large_is_refused_before_it_is_sent() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    let head = format!("POST / HTTP/1.1\r\nHost: hie\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    let answer = raw(&running, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Also when the sender does not wait: the answer arrives, not a reset.
    let mut client = connect(&running).await;
    client.write_all(head.replace("Expect: 100-continue\r\n", "").as_bytes()).await.unwrap();
    let mut sent = 0;
    let piece = vec![0; 64 * 1024];
    while sent < 1_000_000 && client.write_all(&piece).await.is_ok() {
        sent += piece.len();
    }
    client.shutdown().await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let running = http(config(), Fake::accepting()).await;
    let mut client = connect(&running).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: hie\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let (head, _) = response(&mut client).await;
    assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hi").await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 202 "));
}

#[tokio::test]
async fn smuggling_is_refused_or_cannot_hide_a_second_request() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    for (what, request) in [
        ("differing lengths", &b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"[..]),
        ("a list of lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!"),
        ("a signed length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
        ("chunked not last", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("unknown coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("chunked in 1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a folded header", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
        ("a space before the colon", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello"),
        ("a bare CR", b"POST / HTTP/1.1\r\nHost: a\rContent-Length: 5\r\n\r\nhello"),
        ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("no version", b"GET /\r\n\r\n"),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let answer = raw(&running, request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{what}: {answer}");
        assert_eq!(fake.count(), 0, "{what}");
    }
    // A bad chunk: the head was good, so the answer is the gateway's.
    let answer = raw(&running, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(fake.count(), 0);
    // Both: chunked counts, the length is dropped, and nothing after it is read as a request.
    for lengths in ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = raw(&running, request.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 202").count(), 1, "{answer}");
        let seen = fake.seen.lock().unwrap().pop().unwrap();
        assert!(seen.body.is_empty());
        assert_eq!(seen.http.unwrap().header("content-length"), None);
        assert_eq!(fake.count(), 0);
    }
}

#[tokio::test]
async fn heads_over_the_limit_are_refused() {
    let small = config::Http { max_header_bytes: bytesize::ByteSize::kib(16), ..config() };
    let fake = Fake::accepting();
    let running = http(small, fake.clone()).await;
    let request = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Big: {}\r\n\r\n", "x".repeat(len));
    assert!(raw(&running, request(15_000).as_bytes()).await.starts_with("HTTP/1.1 202 "));
    for len in [17_000, 100_000, 5_000_000] {
        let mut client = connect(&running).await;
        // The node may have answered and closed before all is sent.
        let _ = client.write_all(request(len).as_bytes()).await;
        let mut answer = vec![0; 64];
        let n = client.read(&mut answer).await.unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 431 "), "{len}");
    }
    let many: String = (0..500).map(|i| format!("X-{i}: 1\r\n")).collect();
    let answer = raw(&running, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn slow_heads_bodies_and_readers_are_cut() {
    let hasty = config::Http {
        header_timeout: Duration::from_millis(300),
        body_idle_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(300),
        ..config()
    };
    let fake = Fake::new(|seen| {
        let path = seen.http.as_ref().unwrap().path.clone();
        Box::pin(async move {
            if path != "/large" {
                return default_answer(&seen);
            }
            let body = stream::iter((0..1000).map(|_| Ok(Bytes::from(vec![b'x'; 64 * 1024]))));
            let response = Response { status: 200, headers: vec![], body: Box::pin(body), len: None };
            Answer::Response { id: MessageId::now(), response, resend: false }
        })
    });
    let running = http(hasty, fake.clone()).await;

    // A head, byte by byte.
    let (mut receive, mut send) = connect(&running).await.into_split();
    let begun = Instant::now();
    let dripping = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nX-Slow: 1".iter().cycle() {
            if send.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = vec![0; 200];
    let n = receive.read(&mut answer).await.unwrap();
    assert!(answer[..n].starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer[..n]));
    assert!((300..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    dripping.abort();

    // Nothing at all.
    let mut silent = Frames::new(connect(&running).await);
    assert!(silent.ends(Duration::from_secs(3)).await);

    // A body that stands still, small and large.
    for len in [100, 1_000_000] {
        let mut client = connect(&running).await;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'x'; len - 10]).await.unwrap();
        let answer = to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert!(fake.seen.lock().unwrap().iter().all(|s| s.broken), "no half body is taken for whole");

    // A body, byte by byte: never idle, but far too slow.
    let mut client = connect(&running).await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    while client.write_all(b"x").await.is_ok() && begun.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(4));

    // A peer that does not read its response.
    let mut client = connect(&running).await;
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(1500)).await;
    let mut read = 0;
    let mut piece = vec![0; 1 << 20];
    while let Ok(n @ 1..) = client.read(&mut piece).await {
        read += n;
    }
    assert!(read < 60_000_000, "cut before all of it was written, after {read}");

    // Idle between requests.
    let mut client = connect(&running).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    response(&mut client).await;
    assert_eq!(to_end(&mut client).await, "");
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let small = config::Http { max_connections: 2, ..config() };
    let running = http(small, Fake::accepting()).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut client = connect(&running).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        response(&mut client).await;
        kept.push(client);
    }
    for _ in 0..20 {
        let answer = raw(&running, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 5\r\n"), "{answer}");
        assert!(answer.ends_with("{\"error\":\"too many connections\"}"));
    }
    kept.pop();
    sleep(Duration::from_millis(100)).await;
    assert!(raw(&running, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 202 "));
}

#[tokio::test]
async fn a_sender_that_breaks_off_is_not_taken_for_finished() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    for request in [
        &b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"[..],
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"POST / HTTP/1.1\r\nHo",
    ] {
        let mut client = connect(&running).await;
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        let answer = to_end(&mut client).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(fake.count(), 0);
    // A sender that only closes its own side still gets its answer.
    let mut client = connect(&running).await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(to_end(&mut client).await.starts_with("HTTP/1.1 202 "));
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let fake = Fake::accepting();
    let running = http(config(), fake.clone()).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/fhir?x=1", running.address);
    let large = vec![b'z'; 20_000_000];
    let answers = futures_util::future::join_all((0..40).map(|i| {
        let body = if i == 7 { large.clone() } else { format!("body {i}").into_bytes() };
        client.post(&url).header("x-n", i.to_string()).header("cookie", "a=1").body(body).send()
    }))
    .await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (202, reqwest::Version::HTTP_2));
        assert!(answer.headers().contains_key("x-hie-transaction-id"));
    }
    {
        let seen = fake.seen.lock().unwrap();
        assert_eq!(seen.len(), 40);
        let host = running.address.to_string();
        for one in seen.iter() {
            let head = one.http.as_ref().unwrap();
            assert_eq!((head.header("host"), head.path.as_str(), head.query.as_str()), (Some(host.as_str()), "/fhir", "x=1"));
            let n = head.header("x-n").unwrap();
            assert!(if n == "7" { one.body == large } else { one.body == format!("body {n}").as_bytes() });
        }
    }
    // Drained: told by GOAWAY, so that the client's next request opens another connection (here: is refused).
    running.drain.cancel();
    assert!(running.stop(Duration::from_secs(5)).await, "an idle HTTP/2 connection ends at once");
}
