//! Tries to break: **the live feed misses nothing and repeats nothing, over restarts and kill -9; its limits hold, and what is
//! freed is free at once; nobody is held up by a slow reader; nothing private is in it.**

mod harness;

use harness::channels::{all_to, queue, route};
use harness::sse::{Event, Next};
use harness::{Behaviour, Builder, Load, Node, Reader, Receiver, Rng, Via, canary, chaos, env_number, wait_until, wire};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// Kinds of fact as stored; `C` is no event.
const CARRIED: i64 = 9;

fn start(feed: &str, receiver: &Receiver) -> Node {
    Builder::new().section(&format!("[feed]\n{feed}\n")).channel(all_to(receiver)).start()
}

/// Sends messages by MLLP, each acknowledged.
fn send(node: &Node, name: &str, count: u64) {
    let load = Load { name: name.into(), connections: 1, count: Some(count), ..Load::new(Via::Mllp(node.mllp)) };
    assert_eq!(load.run(Duration::from_secs(30)).acknowledged.len() as u64, count);
}

/// Numbers of all facts that are events, as they lie in the logs; the node does not run.
fn stored(store: &Path) -> Vec<u64> {
    let mut logs: Vec<_> = std::fs::read_dir(store.join("ledger"))
        .expect("a ledger")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("log-")))
        .filter(|p| p.extension().is_some_and(|e| e == "db"))
        .collect();
    logs.sort();
    let mut all = Vec::new();
    for log in logs {
        let conn = rusqlite::Connection::open(&log).expect("a log");
        let mut statement = conn.prepare("SELECT seq FROM facts WHERE kind <> ?1 ORDER BY seq").expect("facts");
        let rows = statement.query_map([CARRIED], |r| r.get::<_, i64>(0)).expect("rows");
        all.extend(rows.map(|seq| seq.expect("a number") as u64));
    }
    all
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.id).collect()
}

fn refused(node: &Node, resource: &str) -> harness::http::Response {
    match Reader::open(node, resource, None) {
        Ok(_) => panic!("{resource}: not refused"),
        Err(answer) => answer,
    }
}

#[test]
fn the_limits_hold_and_a_freed_place_is_free_at_once() {
    let receiver = Receiver::willing();
    let node = start("max_connections_per_resource = 3\nmax_connections = 5", &receiver);
    let open = |resource: &str| Reader::open(&node, resource, None).unwrap_or_else(|a| panic!("{}", a.text()));
    let mut first: Vec<_> = (0..3).map(|_| open("transactions")).collect();
    let answer = refused(&node, "transactions");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!(json["error"], "connection limit reached for transactions: 3 of 3");
    assert!(json["hint"].as_str().unwrap().contains("feed.max_connections_per_resource"), "{json}");

    // Freed and taken again, over and over, without a pause.
    for _ in 0..300 {
        first.pop();
        first.push(open("transactions"));
    }
    let second: Vec<_> = (0..2).map(|_| open("alerts")).collect();
    let answer = refused(&node, "domain:default");
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"], "connection limit of the live feed reached: 5 of 5");
    assert!(answer.json()["hint"].as_str().unwrap().contains("feed.max_connections "), "{}", answer.text());

    let metrics = node.metrics();
    assert!(metrics.contains("hie_feed_connections{kind=\"transactions\"} 3"), "{metrics}");
    assert!(metrics.contains("hie_feed_connections{kind=\"alerts\"} 2"));
    assert!(metrics.contains("hie_feed_refused_total{scope=\"resource\"} 1"));
    assert!(metrics.contains("hie_feed_refused_total{scope=\"total\"} 1"));
    assert!(metrics.contains("hie_feed_connections_limit{scope=\"resource\"} 3"));
    assert!(node.log().contains("connection limit reached for a resource of the live feed"), "{}", node.log_tail(20));
    drop((first, second));
    assert!(wait_until(SOON, || node.metric("hie_feed_connections") == Some(0.0)), "places are not given back");
}

#[test]
fn every_resource_has_its_own_events_and_nothing_else() {
    let receiver = Receiver::willing();
    let node = Builder::new()
        .node("domain = \"north\"")
        .channel(queue("test.http", "protocol == \"http\"") + "priority = 1\n" + &route("a", &receiver.target(), ""))
        .channel(queue("test.rest", "true") + &route("b", &receiver.target(), ""))
        .start();
    let resources =
        ["transactions", "domain:north", "channel:test.http", "channel%3Atest.rest", "client:anonymous", "client:nobody"];
    let mut readers: Vec<_> =
        resources.iter().map(|r| Reader::open(&node, r, None).unwrap_or_else(|a| panic!("{r}: {}", a.text()))).collect();
    send(&node, "M", 3);
    Load { name: "H".into(), connections: 1, count: Some(2), ..Load::new(Via::Http(node.http, "/x".into())) }.run(SOON);
    let seen: Vec<Vec<Event>> = readers.iter_mut().map(|r| r.drain(Duration::from_secs(1))).collect();
    let kinds = |events: &[Event]| {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        events.iter().for_each(|e| *kinds.entry(e.name.clone()).or_default() += 1);
        kinds.into_iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    };
    let expected = ["accepted 5, delivered 5", "accepted 5, delivered 5", "accepted 2, delivered 2", "accepted 3, delivered 3"];
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(kinds(&seen[i]), *expected, "{}", resources[i]);
    }
    assert_eq!(ids(&seen[4]), ids(&seen[0]));
    assert!(seen[5].is_empty());
    let delivered = seen[2].iter().find(|e| e.name == "delivered").unwrap();
    assert_eq!(delivered.field("channel"), "test.http");
    assert_eq!((delivered.field("route"), delivered.field("attempt")), ("a".into(), 1.into()));
    assert_eq!(delivered.field("client"), "anonymous");
    let accepted = seen[2].iter().find(|e| e.name == "accepted").unwrap();
    assert_eq!(accepted.field("transaction").as_str().unwrap().len(), 36);
    assert!(accepted.field("time").as_str().unwrap().ends_with('Z'));

    for (resource, expected) in
        [("nothing", "transactions, channel:"), ("channel:no.such", "/channels"), ("domain:south", "/status")]
    {
        let answer = refused(&node, resource);
        assert_eq!(answer.status, 404, "{resource}");
        assert!(answer.json()["hint"].as_str().unwrap().contains(expected), "{}", answer.text());
    }
}

#[test]
fn a_timeout_ends_a_stream_and_a_silent_one_is_kept_alive() {
    let receiver = Receiver::willing();
    let node = start("timeout = \"3s\"\nkeep_alive = \"1s\"", &receiver);
    let mut reader = Reader::open(&node, "transactions", None).unwrap_or_else(|a| panic!("{}", a.text()));
    let begin = Instant::now();
    let (mut signs, mut last) = (0, None);
    loop {
        match reader.next(SOON) {
            Next::Sign => signs += 1,
            Next::Event(event) => last = Some(event),
            Next::End => break,
            Next::Silence => panic!("not ended"),
        }
    }
    let last = last.expect("a last event");
    assert_eq!(last.name, "timeout");
    assert_eq!(last.field("resume"), last.id);
    assert!(reader.retry.is_some_and(|ms| ms <= 5000), "browsers are to come back soon");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(2800) && took < Duration::from_secs(6), "{took:?}");
    assert!((2..=5).contains(&signs), "{signs} signs of life");
    // Who comes back goes on where it was.
    send(&node, "T", 1);
    let mut reader = Reader::open(&node, "transactions", Some(last.id)).unwrap_or_else(|a| panic!("{}", a.text()));
    assert_eq!(reader.event(SOON).name, "accepted");
}

/// Follows a resource until told to stop, coming back as a browser does. Every event in the order in which it came.
fn follow(node: &Node, stop: Arc<AtomicBool>, seed: u64) -> std::thread::JoinHandle<Vec<Event>> {
    let (admin, token) = (node.admin, node.token());
    std::thread::spawn(move || {
        let mut rng = Rng::new(seed);
        let mut all = Vec::new();
        let mut last = 0;
        while !stop.load(Ordering::SeqCst) {
            let Ok(stream) = TcpStream::connect(admin) else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let opened = std::panic::catch_unwind(|| {
                let mut stream = stream;
                let _ = write!(
                    stream,
                    "GET /events/transactions?lastEventId={last} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n"
                );
                let mut first = [0];
                stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
                matches!(stream.peek(&mut first), Ok(1)).then(|| Reader::answered(stream).ok())?
            });
            let Ok(Some(mut reader)) = opened else { continue };
            // Now and then it hangs up by itself.
            let patience = Instant::now() + Duration::from_millis(rng.range(50, 3000));
            while Instant::now() < patience {
                match reader.next(Duration::from_millis(50)) {
                    Next::Event(event) if ["timeout", "closing", "dropped"].contains(&event.name.as_str()) => break,
                    Next::Event(event) => all.push(event),
                    Next::End => break,
                    _ => {}
                }
                last = reader.last.unwrap_or(last);
            }
        }
        all
    })
}

#[test]
fn nothing_is_missed_or_repeated_over_kills_and_restarts_under_load() {
    let mut receiver = Receiver::willing();
    let mut node = Builder::new()
        // Several segments, so that readers go from one to the next.
        .section("[ledger]\nsegment_size = \"1 MiB\"\n[feed]\nmax_connections_per_resource = 100\n")
        .channel(all_to(&receiver))
        .start();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4).map(|n| follow(&node, stop.clone(), n + 1)).collect();
    let load = Load { connections: 4, rate: Some(600.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    let mut rng = Rng::new(7);
    let kills = env_number("HIE_KILLS", 6);
    chaos::kill_often(&mut node, &mut rng, kills, (Duration::from_millis(300), Duration::from_millis(1200)), || false);
    // A restart as operators do it, and a receiver that was away.
    receiver.down();
    std::thread::sleep(Duration::from_millis(300));
    node.stop(SOON);
    node.start();
    receiver.up();
    std::thread::sleep(Duration::from_millis(700));
    let sent = load.stop(Duration::from_secs(20));
    assert!(receiver.wait_for(&sent, Duration::from_secs(20)));
    assert!(wait_until(SOON, || node.metric("hie_messages_pending") == Some(0.0)));
    // All have what there is.
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::SeqCst);
    let seen: Vec<Vec<Event>> = readers.into_iter().map(|r| r.join().expect("a reader")).collect();
    node.stop(SOON);
    let stored = stored(&node.store);
    println!("{} messages, {} facts", sent.acknowledged.len(), stored.len());
    assert!(stored.len() > 2 * sent.acknowledged.len() - 10 && !sent.acknowledged.is_empty());
    for (n, events) in seen.iter().enumerate() {
        let ids = ids(events);
        assert!(ids.windows(2).all(|w| w[0] < w[1]), "reader {n}: repeated or out of order");
        let (seen, stored): (BTreeSet<_>, BTreeSet<_>) = (ids.iter().collect(), stored.iter().collect());
        let missed: Vec<_> = stored.difference(&seen).take(10).collect();
        let invented: Vec<_> = seen.difference(&stored).take(10).collect();
        assert!(missed.is_empty() && invented.is_empty(), "reader {n}: missed {missed:?}, not in the log {invented:?}");
    }
    // Every message's end is told, whoever looks.
    let accepted = seen[0].iter().filter(|e| e.name == "accepted").count();
    assert!(accepted >= sent.acknowledged.len(), "{accepted} accepted");
}

#[test]
fn a_slow_reader_is_dropped_with_a_place_to_go_on_and_holds_nobody_up() {
    let receiver = Receiver::willing();
    let node = start("buffer = \"8 KiB\"", &receiver);
    let slow = TcpStream::connect(node.admin).unwrap();
    socket2::SockRef::from(&slow).set_recv_buffer_size(4096).unwrap();
    write!(&slow, "GET /events/transactions HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n", node.token()).unwrap();
    let mut slow = Reader::answered(slow).unwrap_or_else(|a| panic!("{}", a.text()));
    let mut quick = Reader::open(&node, "transactions", None).unwrap_or_else(|a| panic!("{}", a.text()));
    let quick = std::thread::spawn(move || quick.drain(Duration::from_secs(2)));
    send(&node, "S", 400);
    assert!(wait_until(SOON, || node.metric("hie_feed_ended_total").is_some_and(|n| n >= 1.0)), "{}", node.metrics());
    assert!(node.metrics().contains("hie_feed_ended_total{why=\"dropped\"} 1"));
    let all = quick.join().unwrap();
    assert_eq!(all.iter().filter(|e| e.name == "accepted").count(), 400);
    assert_eq!(all.iter().filter(|e| e.name == "delivered").count(), 400);

    // The slow one wakes up: whole events, then why it was dropped, then the end; and goes on where it was.
    let mut had = slow.drain(Duration::from_secs(2));
    let last = had.pop().expect("a last event");
    assert_eq!(last.name, "dropped");
    assert_eq!(last.field("resume"), last.id);
    assert_eq!(last.id, had.last().expect("some events").id);
    let mut again = Reader::open(&node, "transactions", Some(last.id)).unwrap_or_else(|a| panic!("{}", a.text()));
    had.extend(again.drain(Duration::from_secs(1)));
    assert_eq!(ids(&had), ids(&all));
}

#[test]
fn who_was_away_for_too_long_is_told_from_where_on_it_is_complete() {
    let receiver = Receiver::willing();
    let node = Builder::new()
        .section("[ledger]\nsegment_size = \"256 KiB\"\nmax_size = \"2 MiB\"\nmin_free = \"1 MiB\"\n")
        .channel(all_to(&receiver))
        .start();
    let mut reader = Reader::open(&node, "transactions", Some(0)).unwrap_or_else(|a| panic!("{}", a.text()));
    send(&node, "A", 1);
    let first = reader.event(SOON);
    assert_eq!(first.name, "accepted");
    drop(reader);
    let load = Load { name: "B".into(), connections: 4, size: 3500, ..Load::new(Via::Mllp(node.mllp)) }.start();
    let oldest = || {
        let names = std::fs::read_dir(node.store.join("ledger")).unwrap().flatten().map(|e| e.file_name());
        let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        names.iter().filter_map(|n| n.strip_prefix("log-")?.strip_suffix(".db")?.parse::<u64>().ok()).min().unwrap()
    };
    let gone = wait_until(Duration::from_secs(30), || oldest() > first.id + 1);
    load.stop(SOON);
    assert!(gone, "retention has removed nothing");
    let mut reader = Reader::open(&node, "transactions", Some(first.id)).unwrap_or_else(|a| panic!("{}", a.text()));
    let reset = reader.event(SOON);
    assert_eq!((reset.name.as_str(), reset.field("asked")), ("reset", first.id.into()));
    let from = reset.field("complete_from").as_u64().unwrap();
    assert_eq!(reset.id, from - 1);
    assert!(reader.event(SOON).id >= from);

    // Numbers of another store: there is nothing to go on from. What was sent above is over by now.
    assert!(wait_until(Duration::from_secs(60), || node.metric("hie_messages_pending") == Some(0.0)));
    std::thread::sleep(Duration::from_millis(300));
    let mut reader = Reader::open(&node, "transactions", Some(u64::MAX / 4)).unwrap_or_else(|a| panic!("{}", a.text()));
    assert_eq!(reader.event(SOON).name, "reset");
    send(&node, "C", 1);
    assert_eq!(reader.event(SOON).name, "accepted");
}

#[test]
fn nothing_private_is_in_an_event() {
    let refusing = Receiver::mllp(harness::Behaviour { error: 1.0, ..Default::default() }, Rng::new(1));
    let node = Builder::new()
        .channel(queue("test.all", "hl7(\"MSH-9.1\") == \"ADT\"") + &route("primary", &refusing.target(), "primary = true"))
        .start();
    let mut reader = Reader::open(&node, "transactions", None).unwrap_or_else(|a| panic!("{}", a.text()));
    let mut stream = TcpStream::connect(node.mllp).unwrap();
    let mut frames = wire::Frames::new(stream.try_clone().unwrap());
    // Accepted and parked; sent again; no channel for it; not readable.
    for message in [canary::adt("ADT^A01", "1"), canary::adt("ADT^A01", "1"), canary::adt("ORU^R01", "2"), b"ZZBODYZZ".to_vec()] {
        stream.write_all(&wire::frame(&message)).unwrap();
        frames.read().unwrap();
    }
    let secret = [("Authorization", "Basic WlpQQVNTWlo6WlpQQVNTWlo="), ("X-Secret", "ZZHEADERZZ")];
    let _ = harness::http::once(node.http, "POST", "/ZZQUERYZZ?ZZQUERYZZ=ZZPATIENTZZ", &secret, b"ZZBODYZZ");
    let events = reader.drain(Duration::from_secs(2));
    let names: BTreeSet<_> = events.iter().map(|e| e.name.as_str()).collect();
    for name in ["accepted", "parked", "resent", "refused"] {
        assert!(names.contains(name), "no {name} among {names:?}");
    }
    let text = String::from_utf8(reader.raw.clone()).unwrap();
    assert!(!text.contains("127.0.0.1"), "an address in the feed");
    canary::search(&node, &[("the live feed", text), ("the log", node.log()), ("metrics", node.metrics())]);
}

#[test]
fn only_those_with_the_token_listen_and_bad_heads_are_answered() {
    let receiver = Receiver::willing();
    let node = start("", &receiver);
    let token = format!("Authorization: Bearer {}\r\n", node.token());
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(node.admin).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        // In two parts, the first shorter than what tells the feed's requests apart.
        stream.write_all(&head.as_bytes()[..5]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        stream.write_all(&head.as_bytes()[5..]).unwrap();
        let mut answer = vec![0; 4096];
        let n = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    for (head, status) in [
        ("GET /events/transactions HTTP/1.1\r\n\r\n".to_owned(), 401),
        ("GET /events/transactions HTTP/1.1\r\nAuthorization: Bearer wrong\r\n\r\n".into(), 401),
        (format!("GET /events/transactions HTTP/1.1\r\n{token}Sec-Fetch-Site: cross-site\r\n\r\n"), 403),
        (format!("GET /events/transactions HTTP/1.1\r\n{token}\r\n"), 200),
        (format!("GET /events/transactions HTTP/1.0\r\n{token}\r\n"), 200),
        (format!("GET /events/ HTTP/1.1\r\n{token}\r\n"), 404),
        (format!("GET /events/transactions HTTP/1.1\r\n{token}Last-Event-ID: x\r\n\r\n"), 400),
        (format!("GET /events/%ff HTTP/1.1\r\n{token}\r\n"), 400),
        (format!("GET /events/transactions HTTP/1.1\r\n{token}a b: c\r\n\r\n"), 400),
        (format!("GET /events/x HTTP/1.1\r\n{token}X: {}\r\n\r\n", "y".repeat(20_000)), 431),
        (format!("GET /events/x HTTP/1.1\r\n{token}{}\r\n", "X: y\r\n".repeat(70)), 431),
        (format!("POST /events/transactions HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 0\r\n\r\n"), 405),
        (format!("GET /status HTTP/1.1\r\nHost: x\r\n{token}\r\n"), 200),
    ] {
        let answer = ask(&head);
        let first: String = head.chars().take(60).collect();
        assert!(answer.starts_with("HTTP/1.1 ") && answer[9..].starts_with(&status.to_string()), "{first}: {answer}");
        assert!(answer.contains("cache-control: no-store"), "{answer}");
        if status == 401 {
            assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
        }
    }
}

#[test]
fn heads_that_never_end_keep_nobody_out_for_long_and_readers_take_no_places_from_operators() {
    let receiver = Receiver::willing();
    let node = start("max_connections_per_resource = 300", &receiver);
    let readers: Vec<_> =
        (0..200).map(|_| Reader::open(&node, "alerts", None).unwrap_or_else(|a| panic!("{}", a.text()))).collect();
    assert_eq!(node.get("/status").status, 200, "200 readers hold the places of the management API");
    // As many as there are places, each with a head that does not end.
    let stuck: Vec<_> = (0..128)
        .map(|_| {
            let mut stream = TcpStream::connect(node.admin).unwrap();
            stream.write_all(b"GET /events/transactions HTTP/1.1\r\nX: ").unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(node.get("/status").status, 200);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(15), "kept out for {took:?}");
    drop((stuck, readers));
}

#[test]
fn kept_connections_and_http2_are_served_too() {
    let receiver = Receiver::willing();
    let node = start("keep_alive = \"1s\"\nmax_connections_per_resource = 200", &receiver);
    // A second installation fails, and the first one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        for http2 in [false, true] {
            let builder = reqwest::Client::builder().no_proxy();
            let client = if http2 { builder.http2_prior_knowledge() } else { builder }.build().unwrap();
            let url = |path: &str| format!("http://{}{path}", node.admin);
            // The connection has been used for something else.
            let status = client.get(url("/status")).bearer_auth(node.token()).send().await.unwrap();
            assert_eq!(status.status(), 200);
            status.bytes().await.unwrap();
            let mut events = client.get(url("/events/transactions")).bearer_auth(node.token()).send().await.unwrap();
            assert_eq!(events.status(), 200);
            assert_eq!(events.headers()["content-type"], "text/event-stream");
            send(&node, if http2 { "H2" } else { "H1" }, 2);
            let mut text = String::new();
            while text.matches("event: delivered").count() < 2 || !text.contains("\n:\n") {
                let piece = tokio::time::timeout(SOON, events.chunk()).await.expect("in time").unwrap().expect("more");
                text += std::str::from_utf8(&piece).unwrap();
            }
            assert_eq!(text.matches("event: accepted").count(), 2, "{text}");
            assert!(node.metrics().contains("hie_feed_connections{kind=\"transactions\"} 1"));
            // What was missed, too.
            let last = text.lines().filter_map(|l| l.strip_prefix("id: ")).next().unwrap().to_owned();
            drop(events);
            let again = client.get(url("/events/transactions")).header("Last-Event-ID", last).bearer_auth(node.token());
            let mut again = again.send().await.unwrap();
            let mut text = String::new();
            while text.matches("event: ").count() < 4 {
                text += std::str::from_utf8(&again.chunk().await.unwrap().expect("more")).unwrap();
            }
            drop(again);
            // Many at once: bounded apart from the others.
            if http2 {
                let ask = || client.get(url("/events/alerts")).bearer_auth(node.token()).send();
                let mut open = Vec::new();
                for _ in 0..24 {
                    open.push(ask().await.unwrap());
                }
                assert!(open.iter().all(|r| r.status() == 200));
            }
            drop(client);
            let none = || node.metric("hie_feed_connections") == Some(0.0);
            assert!(wait_until(SOON, none), "places are not given back");
        }
    });
}

#[test]
fn a_drain_ends_streams_over_time_with_a_last_event() {
    let receiver = Receiver::willing();
    let mut node = start("max_connections_per_resource = 1000\nmax_connections = 1000", &receiver);
    let mut readers: Vec<_> =
        (0..400).map(|_| Reader::open(&node, "transactions", None).unwrap_or_else(|a| panic!("{}", a.text()))).collect();
    let token = node.token();
    let ended = std::thread::spawn(move || {
        let begin = Instant::now();
        let ends: Vec<(Event, Duration)> = readers.iter_mut().map(|r| (r.event(SOON), begin.elapsed())).collect();
        assert!(readers.iter_mut().all(|r| matches!(r.next(SOON), Next::End)));
        ends
    });
    let begin = Instant::now();
    node.stop(Duration::from_secs(20)).expect("an end in time");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let ends = ended.join().unwrap();
    assert!(ends.iter().all(|(event, _)| event.name == "closing" && event.field("resume") == event.id));
    let (first, last) = (ends.iter().map(|e| e.1).min().unwrap(), ends.iter().map(|e| e.1).max().unwrap());
    assert!(last - first > Duration::from_millis(100), "all at once: {first:?} to {last:?}");
    assert!(!node.log().contains(&token));
}

#[test]
fn statistics_have_the_guide_s_names_and_sums() {
    let receiver = Receiver::willing();
    let node = start("max_connections_per_resource = 100", &receiver);
    // The worked example: 85 connections to 15 resources with 100 places each.
    let readers: Vec<_> = (0..85)
        .map(|i| Reader::open(&node, &format!("client:doctor-{}", i % 15), None).unwrap_or_else(|a| panic!("{}", a.text())))
        .collect();
    let sse = node.get("/api/sse/stats").json();
    let expected = serde_json::json!({
        "totalConnections": 85, "resourceCount": 15, "maxConnectionsPerResource": 100, "connectionTimeout": 1_800_000,
    });
    assert_eq!(sse, expected);
    send(&node, "S", 20);
    // Two samples of the processor.
    assert!(wait_until(SOON, || node.metric("hie_cpu_utilisation_peak_percent") > Some(0.0)));
    let told = node.get("/api/admin/system-stats").json();
    assert_eq!(told["sse"]["utilizationPercent"], "5.67");
    assert_eq!(told["sse"]["capacityRemaining"], 1415);
    assert_eq!(told["sse"]["totalConnections"], 85);
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&told), ["cache", "config", "hie", "sse", "system"]);
    assert_eq!(names(&told["system"]), ["cpu", "memory", "nodeVersion", "platform", "uptime"]);
    assert_eq!(names(&told["system"]["memory"]), ["arrayBuffers", "external", "heapTotal", "heapUsed", "rss"]);
    assert!(told["system"]["memory"]["rss"].as_u64().unwrap() > 1 << 20);
    assert!(told["system"]["cpu"]["user"].is_u64() && told["system"]["uptime"].as_f64().unwrap() > 0.0);
    let hie = &told["hie"];
    let channel = &hie["channels"].as_array().unwrap()[0];
    assert_eq!((&channel["channel"], &channel["answered"]["count"]), (&"test.all".into(), &20.into()));
    assert_eq!(channel["delivered"]["count"], 20);
    assert!(channel["answered"]["p99"].as_f64().unwrap() >= channel["answered"]["p50"].as_f64().unwrap());
    assert!(hie["cpu"]["peakPercent"].as_f64().unwrap() >= hie["cpu"]["averagePercent"].as_f64().unwrap());
    assert!(hie["memory"]["percent"].as_f64().unwrap() > 0.0 && hie["memory"]["total"].as_u64().unwrap() > 1 << 28);
    assert_eq!(hie["broker"]["connections"], 0);
    assert_eq!(hie["feed"]["resources"].as_array().unwrap().len(), 15);
    assert!(["healthy", "warning"].contains(&hie["health"]["status"].as_str().unwrap()));
    assert_eq!(node.get("/status").json()["feed_connections"], 85);
    let status = node.command(&["status", "--config", node.config_file().to_str().unwrap()]).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("live feed       85 of 1000 readers"), "{status}");
    drop(readers);
}

#[test]
fn the_command_line_follows_over_a_restart() {
    let receiver = Receiver::willing();
    let mut node = start("", &receiver);
    let config = node.config_file();
    let mut command =
        node.command(&["events", "channel:test.all", "--after", "0", "--json", "--config", config.to_str().unwrap()]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    send(&node, "A", 2);
    let kinds = |lines: &mut dyn Iterator<Item = std::io::Result<String>>, n: usize| {
        let events = lines.take(n).map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
        let mut kinds: Vec<String> = events.map(|e| e["event"].as_str().unwrap().to_owned()).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(&mut lines, 4), ["accepted", "accepted", "delivered", "delivered"]);
    node.stop(SOON);
    node.start();
    send(&node, "B", 1);
    assert_eq!(kinds(&mut lines, 3), ["accepted", "closing", "delivered"]);
    child.kill().unwrap();
    child.wait().unwrap();

    let absent = node.command(&["events", "channel:no.such", "--config", config.to_str().unwrap()]).output().unwrap();
    assert_eq!(absent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/channels"));
}

#[test]
fn alerts_are_events_over_a_restart_too() {
    let receiver = Receiver::mllp(Behaviour { reject: 1.0, ..Behaviour::default() }, Rng::new(1));
    let rules = "[alerts]\nevery = \"200ms\"\nfailure_window = \"10s\"\nfailure_min = 5\nqueue_age = \"1h\"\nresolve_after = \"1s\"\n\
        memory_warning = 0\nmemory_critical = 0\ncpu_warning = 0\ncpu_critical = 0\ndisk_warning = 0\ndisk_critical = 0\n\
        ledger_warning = 0\nproblems = false\n[feed]\nmax_connections_per_resource = 4\n";
    let channel = queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true");
    let mut node = Builder::new().section(rules).channel(channel).start();
    let mut reader = Reader::open(&node, "alerts", Some(0)).expect("a stream");
    send(&node, "A", 3);
    let wanted = |reader: &mut Reader, name: &str, rule: &str| loop {
        match reader.next(Duration::from_secs(30)) {
            Next::Event(event) if event.name == name && event.field("alert")["rule"] == rule => return event,
            Next::Event(_) | Next::Sign => {}
            other => panic!("no {name} of {rule}: {other:?}"),
        }
    };
    let fired = wanted(&mut reader, "firing", "route_failing");
    receiver.behave(Behaviour::default());
    node.kill9();
    node.start();
    let mut again = Reader::open(&node, "alerts", Some(fired.id)).expect("a stream");
    let over = wanted(&mut again, "resolved", "route_failing");
    assert!(over.id > fired.id, "numbers rise over a restart: {} {}", fired.id, over.id);
    let mut from_the_start = Reader::open(&node, "alerts", Some(0)).expect("a stream");
    assert_eq!(wanted(&mut from_the_start, "firing", "route_failing").id, fired.id, "and stay the same");
    // Three of four places are more than 70 %.
    let _third = Reader::open(&node, "alerts", Some(over.id)).expect("a stream");
    wanted(&mut again, "firing", "feed");
}

#[test]
fn readers_that_come_all_at_once_are_all_answered() {
    const READERS: usize = 500;
    let receiver = Receiver::willing();
    let node = start("max_connections_per_resource = 450\nmax_connections = 1000", &receiver);
    let request = format!("GET /events/transactions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", node.token());
    // As after a restart of the node: each sends its request with its connection, and nobody waits for another.
    let all: Vec<_> = (0..READERS / 50)
        .map(|_| {
            let (to, request) = (node.admin, request.clone());
            std::thread::spawn(move || {
                let mut open: Vec<TcpStream> = (0..50)
                    .map(|_| {
                        let mut stream = TcpStream::connect(to).expect("a connection");
                        stream.write_all(request.as_bytes()).expect("sent");
                        stream
                    })
                    .collect();
                open.drain(..)
                    .map(|mut stream| {
                        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
                        let mut line = [0; 12];
                        let answer = stream.read_exact(&mut line).map(|()| String::from_utf8_lossy(&line).into_owned());
                        (stream, answer.unwrap_or_else(|e| format!("no answer: {e}")))
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let answers: Vec<(TcpStream, String)> = all.into_iter().flat_map(|thread| thread.join().expect("readers")).collect();
    let count = |wanted: &str| answers.iter().filter(|(_, answer)| answer == wanted).count();
    let odd: Vec<&String> = answers.iter().map(|(_, a)| a).filter(|a| !a.starts_with("HTTP/1.1 ")).take(3).collect();
    assert_eq!((count("HTTP/1.1 200"), count("HTTP/1.1 503")), (450, READERS - 450), "{odd:?}");
}
