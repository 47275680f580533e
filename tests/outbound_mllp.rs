//! MLLP out against real sockets: what each behaviour of a receiver leads to, and that no acknowledgment ever credits
//! another message.

mod outbound_support;

use bytes::Bytes;
use futures_util::future::join_all;
use hie::{
    cli::sink::{self, Behaviour, Options},
    engine::ports::{ReplyKind, SendError},
    message::hl7::ack::AckCode,
};
use outbound_support::*;
use serde_json::json;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

async fn sink_with(behaviour: Behaviour) -> sink::Handle {
    let options = Options { mllp: Some(([127, 0, 0, 1], 0).into()), behaviour, ..Options::default() };
    sink::serve(options).await.expect("a sink")
}

fn address(handle: &sink::Handle) -> String {
    handle.mllp.expect("MLLP").to_string()
}

fn code(kind: &ReplyKind) -> &str {
    match kind {
        ReplyKind::Ack { code } => code,
        ReplyKind::Written => "written",
        ReplyKind::Http { .. } => "http",
    }
}

/// Reads one frame; `None` when the peer closed.
async fn frame(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![];
    loop {
        let byte = socket.read_u8().await.ok()?;
        frame.push(byte);
        if frame.ends_with(&[0x1c, 0x0d]) {
            return Some(frame[1..frame.len() - 2].to_vec());
        }
    }
}

fn control_id(frame: &[u8]) -> String {
    String::from_utf8_lossy(frame).split('|').nth(9).expect("MSH-10").into()
}

fn ack(code: &str, control_id: &str) -> Vec<u8> {
    format!("\x0bMSH|^~\\&|R|||||||ACK|x|P|2.5\rMSA|{code}|{control_id}\r\x1c\r").into_bytes()
}

/// A receiver scripted by connection: `script(number, socket)`, numbers from 1.
async fn scripted<F, Fut>(script: F) -> String
where
    F: Fn(u64, TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        for number in 1.. {
            let (socket, _) = listener.accept().await.expect("a connection");
            socket.set_nodelay(true).expect("nodelay");
            tokio::spawn(script(number, socket));
        }
    });
    address
}

#[tokio::test]
async fn each_code_comes_back_with_the_raw_acknowledgment() {
    for answer in [AckCode::AA, AckCode::AE, AckCode::AR, AckCode::CA, AckCode::CE, AckCode::CR] {
        let sink = sink_with(Behaviour { answer, ..Behaviour::default() }).await;
        let (out, targets) = open(json!({"mllp": [address(&sink)]}));
        let reply = out.send(hl7(adt("id-1"))).await.expect("an answer");
        assert_eq!(code(&reply.kind), answer.as_str());
        assert_eq!(reply.target, address(&sink));
        let (len, body) = (reply.len, body(reply).await);
        assert_eq!(len, Some(body.len() as u64));
        assert!(body.starts_with(b"MSH|") && body.ends_with(format!("MSA|{}|id-1\r", answer.as_str()).as_bytes()));
        let unwell = u32::from(matches!(answer, AckCode::AR | AckCode::CR));
        assert_eq!(targets.status()[0].failures, unwell);
        assert_eq!(targets.status()[0].in_hand, 0);
        let metrics = hie::telemetry::encode();
        let labels = format!("channel=\"test.channel\",route=\"out\",target=\"{}\"", address(&sink));
        for line in [
            format!("hie_outbound_exchanges_total{{{labels},result=\"answered\"}} 1"),
            format!("hie_outbound_connections_opened_total{{{labels}}} 1"),
        ] {
            assert!(metrics.contains(&line), "{line}");
        }
    }
}

#[tokio::test]
async fn bytes_arrive_as_they_are_over_few_connections() {
    let seen = Arc::new(Mutex::new(vec![]));
    let (hook_seen, options) = (seen.clone(), Options { mllp: Some(([127, 0, 0, 1], 0).into()), ..Options::default() });
    let hook = move |r: &sink::Received<'_>| hook_seen.lock().expect("lock").push(r.body.clone());
    let sink = sink::serve(Options { hook: Some(Arc::new(hook)), ..options }).await.expect("a sink");
    let (out, _) = open(json!({"mllp": [address(&sink)], "in_flight": 3}));
    let odd = "MSH|^~\\&|\u{fc}\n\n\u{1c}x|||||20260102||ADT^A01|odd|P|2.5\nZZZ|".to_string();
    let large = format!("{}OBX|{}\r", adt("large"), "x".repeat(500_000));
    let bodies: Vec<String> = (0..40).map(|i| adt(&format!("id-{i}"))).chain([odd, large]).collect();
    let replies = join_all(bodies.iter().map(|body| out.send(hl7(body.clone())))).await;
    assert!(replies.iter().all(|r| r.as_ref().is_ok_and(|r| code(&r.kind) == "AA")));
    let mut got: Vec<Vec<u8>> = seen.lock().expect("lock").iter().map(|b| b.to_vec()).collect();
    let mut sent: Vec<Vec<u8>> = bodies.into_iter().map(String::into_bytes).collect();
    got.sort();
    sent.sort();
    assert!(got == sent);
    assert!(sink.counts().connections <= 3, "{:?}", sink.counts());
}

#[tokio::test]
async fn connections_are_bounded_over_all_instances_of_a_route() {
    let sink = sink_with(Behaviour { delay: Duration::from_millis(5), ..Behaviour::default() }).await;
    let route = route(json!({"mllp": [address(&sink)], "in_flight": 1}));
    let targets = hie::gateway::outbound::balance::Targets::new("test.channel", &route);
    let threads: Vec<_> = (0..3)
        .map(|n| {
            let (route, targets) = (route.clone(), targets.clone());
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let out = hie::gateway::outbound::connector("test.channel", &route, targets).expect("a connector");
                runtime.block_on(async {
                    for i in 0..10 {
                        let reply = out.send(hl7(adt(&format!("{n}-{i}")))).await.expect("an answer");
                        assert_eq!(code(&reply.kind), "AA");
                    }
                    // The connection belongs to one of the runtimes: none may end before all are done with it.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                });
            })
        })
        .collect();
    for done in join_all(threads).await {
        done.expect("no panic");
    }
    assert_eq!((sink.counts().messages, sink.counts().connections), (30, 1));
}

#[tokio::test]
async fn silence_is_a_timeout_and_a_late_acknowledgment_credits_nobody() {
    // Answers each message only when the next one comes on the same connection, with both ids equal.
    let address = scripted(|number, mut socket| async move {
        let mut first = true;
        while let Some(message) = frame(&mut socket).await {
            if number == 1 && first {
                first = false;
                tokio::time::sleep(Duration::from_millis(400)).await;
                let _ = socket.write_all(&ack("AA", &control_id(&message))).await;
            } else {
                let _ = socket.write_all(&ack("AE", &control_id(&message))).await;
            }
        }
    })
    .await;
    let (out, targets) = open(json!({"mllp": [address]}));
    let mut late = hl7(adt("same"));
    late.timeout = Duration::from_millis(200);
    let Err(SendError::Timeout { after, .. }) = out.send(late).await else { panic!("an answer?") };
    assert_eq!(after, Duration::from_millis(200));
    assert_eq!(targets.status()[0].failures, 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let reply = out.send(hl7(adt("same"))).await.expect("an answer");
    assert_eq!(code(&reply.kind), "AE", "the late AA was taken for the second message");
}

#[tokio::test]
async fn unexpected_bytes_on_an_idle_connection_replace_it() {
    // After each answer the receiver sends one more acknowledgment, for the id that comes next.
    let address = scripted(|_, mut socket| async move {
        while let Some(message) = frame(&mut socket).await {
            let id = control_id(&message);
            let next = format!("id-{}", id[3..].parse::<u32>().expect("a number") + 1);
            let answer = if id == "id-1" { "AA" } else { "AE" };
            let _ = socket.write_all(&ack(answer, &id)).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            let _ = socket.write_all(&ack("AA", &next)).await;
        }
    })
    .await;
    let (out, _) = open(json!({"mllp": [address], "in_flight": 1}));
    assert_eq!(code(&out.send(hl7(adt("id-1"))).await.expect("an answer").kind), "AA");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(code(&out.send(hl7(adt("id-2"))).await.expect("an answer").kind), "AE");
}

#[tokio::test]
async fn an_answer_to_another_message_or_no_acknowledgment_breaks_the_connection() {
    let answers: [&[u8]; 6] = [
        b"\x0bMSH|^~\\&|R\rMSA|AA|zz-9\r\x1c\r",
        b"\x0bMSH|^~\\&|R\rMSA|AA\r\x1c\r",
        b"\x0bMSH|^~\\&|R\rMSA|XX|id-1\r\x1c\r",
        b"\x0bMSH|^~\\&|R\rPID|1\r\x1c\r",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x0b\x1c\r",
    ];
    for answer in answers {
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        let address = scripted(move |number, mut socket| {
            counted.store(number, Ordering::SeqCst);
            async move {
                while let Some(message) = frame(&mut socket).await {
                    let good = ack("AA", &control_id(&message));
                    let _ = socket.write_all(if number == 1 { answer } else { &good }).await;
                }
            }
        })
        .await;
        let (out, _) = open(json!({"mllp": [address], "in_flight": 1}));
        let Err(SendError::Broken { reason, .. }) = out.send(hl7(adt("id-1"))).await else { panic!("{answer:?}") };
        assert!(!reason.contains("zz-9") && !reason.contains("XX"), "content in {reason:?}");
        assert_eq!(code(&out.send(hl7(adt("id-1"))).await.expect("an answer").kind), "AA");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn an_oversized_answer_breaks_the_connection() {
    let address = scripted(|_, mut socket| async move {
        let _ = frame(&mut socket).await;
        let _ = socket.write_all(b"\x0bMSH|^~\\&|R\rMSA|AA|id-1\r").await;
        while socket.write_all(&[b'x'; 65536]).await.is_ok() {}
    })
    .await;
    let (out, _) = open(json!({"mllp": [address]}));
    let mut delivery = hl7(adt("id-1"));
    delivery.timeout = Duration::from_secs(3);
    // Bounded memory, then whichever limit is met first.
    assert!(matches!(out.send(delivery).await, Err(SendError::Broken { .. } | SendError::Timeout { .. })));
}

#[tokio::test]
async fn without_a_control_id_any_acknowledgment_is_the_answer() {
    let address = scripted(|_, mut socket| async move {
        while frame(&mut socket).await.is_some() {
            let _ = socket.write_all(&ack("AA", "whatever")).await;
        }
    })
    .await;
    let (out, _) = open(json!({"mllp": [address]}));
    for body in [adt(""), format!("FHS|^~\\&\rBHS|^~\\&|||||||||b-1\r{}BTS|1\rFTS|1\r", adt("in-batch"))] {
        assert_eq!(code(&out.send(hl7(body)).await.expect("an answer").kind), "AA");
    }
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced_in_silence() {
    let address = scripted(|_, mut socket| async move {
        // One message a connection, as some receivers do.
        if let Some(message) = frame(&mut socket).await {
            let _ = socket.write_all(&ack("AA", &control_id(&message))).await;
        }
    })
    .await;
    let (out, targets) = open(json!({"mllp": [address]}));
    for i in 0..5 {
        let reply = out.send(hl7(adt(&format!("id-{i}")))).await.expect("an answer");
        assert_eq!(code(&reply.kind), "AA");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(targets.status()[0].failures, 0);
}

#[tokio::test]
async fn closed_before_the_answer_is_broken_and_refused_is_not_sent() {
    let address = scripted(|_, mut socket| async move {
        let _ = frame(&mut socket).await;
    })
    .await;
    let (out, _) = open(json!({"mllp": [address]}));
    assert!(matches!(out.send(hl7(adt("id-1"))).await, Err(SendError::Broken { .. })));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let (out, _) = open(json!({"mllp": [free.to_string()]}));
    let Err(SendError::NotSent { target, reason }) = out.send(hl7(adt("id-1"))).await else { panic!("sent?") };
    assert_eq!(target, free.to_string());
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn enhanced_mode_takes_the_accept_acknowledgment_and_skips_what_follows() {
    let address = scripted(|_, mut socket| async move {
        while let Some(message) = frame(&mut socket).await {
            let id = control_id(&message);
            let _ = socket.write_all(&ack("CA", &id)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = socket.write_all(&ack("AE", &id)).await;
        }
    })
    .await;
    let enhanced = |id: &str| adt(id).replace("|2.5.1\r", "|2.5.1|||AL|AL\r");
    let (out, targets) = open(json!({"mllp": [address], "in_flight": 1}));
    for (id, wait) in [("a", 50), ("b", 0), ("c", 50), ("c", 0), ("c", 0)] {
        assert_eq!(code(&out.send(hl7(enhanced(id))).await.expect("an answer").kind), "CA", "{id}");
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    assert_eq!(targets.status()[0].failures, 0);
}

#[tokio::test]
async fn no_acknowledgment_asked_for_is_delivered_when_written() {
    let sink = sink_with(Behaviour { silent: true, ..Behaviour::default() }).await;
    let (out, _) = open(json!({"mllp": [address(&sink)]}));
    let quiet = adt("id-1").replace("|2.5.1\r", "|2.5.1|||NE|NE\r");
    assert_eq!(out.send(hl7(quiet)).await.expect("written").kind, ReplyKind::Written);
    let errors = adt("id-2").replace("|2.5.1\r", "|2.5.1|||ER|NE\r");
    assert_eq!(out.send(hl7(errors.clone())).await.expect("written").kind, ReplyKind::Written);
    sink.set(Behaviour { answer: AckCode::CE, ..Behaviour::default() });
    assert_eq!(code(&out.send(hl7(errors)).await.expect("an answer").kind), "CE");
    assert_eq!(sink.counts().messages, 3);
}

#[tokio::test]
async fn a_message_with_block_characters_is_not_sent() {
    let sink = sink_with(Behaviour::default()).await;
    let (out, _) = open(json!({"mllp": [address(&sink)]}));
    for inside in ["\u{1c}\r\u{b}MSH|smuggled", "\u{b}"] {
        let result = out.send(hl7(format!("{}{inside}", adt("id-1")))).await;
        assert!(matches!(result, Err(SendError::Unsendable { .. })), "{inside:?}");
    }
    assert_eq!(sink.counts().messages, 0);
}

#[tokio::test]
async fn a_large_body_is_streamed() {
    let sink = sink_with(Behaviour::default()).await;
    let (out, _) = open(json!({"mllp": [address(&sink)], "timeout": "60s"}));
    let message =
        accepted(envelope(hie::message::Protocol::Mllp, "x-application/hl7-v2+er7"), hie::channel::Mode::Queue, &["out"]);
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let delivery = streamed(message, Bytes::from(format!("{}OBX|", adt("big"))), piece, 1024);
    let len = delivery.message.envelope().body_len;
    let reply = out.send(delivery).await.expect("an answer");
    assert_eq!(code(&reply.kind), "AA");
    assert_eq!((sink.counts().messages, sink.counts().bytes), (1, len));
    // The same connection serves the next.
    assert_eq!(code(&out.send(hl7(adt("small"))).await.expect("an answer").kind), "AA");
    assert_eq!(sink.counts().connections, 1);
}

#[tokio::test]
async fn a_receiver_that_refuses_a_large_body_half_way_is_heard() {
    for (answer, expected) in [("AR", true), ("AA", false)] {
        let address = scripted(move |_, mut socket| async move {
            let mut some = [0; 1000];
            let _ = socket.read_exact(&mut some).await;
            let _ = socket.write_all(&ack(answer, "big")).await;
            // Reads no more.
            tokio::time::sleep(Duration::from_secs(20)).await;
        })
        .await;
        let (out, _) = open(json!({"mllp": [address]}));
        let message = accepted(envelope(hie::message::Protocol::Mllp, ""), hie::channel::Mode::Queue, &["out"]);
        let began = Instant::now();
        let delivery = streamed(message, Bytes::from(adt("big")), Bytes::from(vec![b'x'; 65536]), 4096);
        match out.send(delivery).await {
            Ok(reply) => assert!(expected && code(&reply.kind) == answer),
            Err(e) => assert!(!expected && matches!(e, SendError::Broken { .. }), "{e}"),
        }
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_failing_target_is_left_out_and_comes_back() {
    let (one, two) = (sink_with(Behaviour::default()).await, sink_with(Behaviour::default()).await);
    let (out, targets) = open(json!({"mllp": [address(&one), address(&two)], "eject_after": 2, "eject_for": "300ms"}));
    one.set(Behaviour { answer: AckCode::AR, ..Behaviour::default() });
    for i in 0..20 {
        let _ = out.send(hl7(adt(&format!("id-{i}")))).await.expect("an answer");
    }
    assert_eq!(one.counts().messages, 2, "left out after two failures in a row");
    assert!(targets.status()[0].ejected_for > Duration::ZERO);
    one.set(Behaviour::default());
    tokio::time::sleep(Duration::from_millis(350)).await;
    for i in 20..30 {
        assert_eq!(code(&out.send(hl7(adt(&format!("id-{i}")))).await.expect("an answer").kind), "AA");
    }
    assert_eq!(one.counts().messages, 7);
    assert_eq!(targets.status()[0].failures, 0);
}

#[tokio::test]
async fn with_all_targets_left_out_one_is_still_tried() {
    let sinks = [sink_with(Behaviour::default()).await, sink_with(Behaviour::default()).await];
    sinks.iter().for_each(|s| s.set(Behaviour { answer: AckCode::AR, ..Behaviour::default() }));
    let list: Vec<_> = sinks.iter().map(address).collect();
    let (out, _) = open(json!({"mllp": list, "eject_after": 1, "eject_for": "1h"}));
    for i in 0..6 {
        assert_eq!(code(&out.send(hl7(adt(&format!("id-{i}")))).await.expect("an answer").kind), "AR");
    }
    assert!(sinks.iter().all(|s| s.counts().messages == 3), "in turn, by whose time ends first");
}

#[tokio::test]
async fn tls_verifies_the_receiver_and_shows_our_certificate() {
    let pem = Certificates::new();
    let tls = |client_required: bool| hie::config::ServerTls {
        cert: pem.path("server.pem"),
        key: pem.path("server.key"),
        client_ca: client_required.then(|| pem.path("ca.pem")),
        client_required,
    };
    let serve = async |required| {
        let options = Options { mllp: Some(([127, 0, 0, 1], 0).into()), tls: Some(tls(required)), ..Options::default() };
        sink::serve(options).await.expect("a sink")
    };
    let (plain, mutual) = (serve(false).await, serve(true).await);
    let at = |s: &sink::Handle| format!("localhost:{}", s.mllp.expect("MLLP").port());
    let send = async |target: String, tls: serde_json::Value| {
        let (out, _) = open(json!({"mllp": [target], "tls": tls, "in_flight": 1}));
        let mut last = out.send(hl7(adt("id-1"))).await;
        // Again on the same connection: tickets and the like must not make it look unclean.
        if last.is_ok() {
            last = out.send(hl7(adt("id-2"))).await;
        }
        last.map(|reply| code(&reply.kind).to_owned())
    };
    let ca = pem.path("ca.pem");
    assert_eq!(send(at(&plain), json!({"ca": ca})).await.expect("an answer"), "AA");
    assert_eq!(plain.counts().connections, 1);
    assert!(matches!(send(at(&plain), json!({})).await, Err(SendError::NotSent { .. })), "an unknown authority");
    let wrong_name = send(at(&plain), json!({"ca": ca, "server_name": "elsewhere"})).await;
    assert!(matches!(wrong_name, Err(SendError::NotSent { .. })));
    let by_address = at(&plain).replace("localhost", "127.0.0.1");
    assert!(send(by_address.clone(), json!({"ca": ca})).await.is_err());
    assert_eq!(send(by_address, json!({"ca": ca, "server_name": "localhost"})).await.expect("an answer"), "AA");

    let own = json!({"ca": ca, "cert": pem.path("client.pem"), "key": pem.path("client.key")});
    assert_eq!(send(at(&mutual), own).await.expect("an answer"), "AA");
    assert!(send(at(&mutual), json!({"ca": ca})).await.is_err(), "no certificate");
    let strange = json!({"ca": ca, "cert": pem.path("stranger.pem"), "key": pem.path("stranger.key")});
    assert!(send(at(&mutual), strange).await.is_err(), "a certificate of nobody");
}

#[tokio::test]
async fn a_route_that_cannot_work_is_refused_with_a_reason() {
    let bad = [
        json!({}),
        json!({"mllp": ["h:1"], "http": ["http://h/"]}),
        json!({"mllp": ["nowhere"]}),
        json!({"mllp": [":2575"]}),
        json!({"mllp": ["h:99999"]}),
        json!({"mllp": ["h:2575"], "tls": {"ca": "/does/not/exist.pem"}}),
        json!({"mllp": ["h:2575"], "tls": {"cert": "/a.pem"}}),
        json!({"http": ["ftp://h/"]}),
        json!({"http": ["http://user:secret@h/"]}),
        json!({"http": ["http://h/"], "method": "NO SPACE"}),
        json!({"http": ["http://h/"], "headers": {"connection": "close"}}),
        json!({"file": {"directory": "/tmp", "name": "../x"}}),
    ];
    for settings in bad {
        let route = route(settings.clone());
        let targets = hie::gateway::outbound::balance::Targets::new("test.channel", &route);
        let error = hie::gateway::outbound::connector("test.channel", &route, targets).err();
        let text = error.unwrap_or_else(|| panic!("{settings} was taken")).to_string();
        assert!(text.len() > 20 && !text.contains("secret"), "{text}");
    }
}
