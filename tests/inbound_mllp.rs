//! MLLP in, through real sockets: good senders, odd senders, bad senders.

mod inbound_support;

use futures_util::stream;
use hie::{
    config,
    engine::ports::{Answer, Denied, Refusal, Response},
    message::MessageId,
};
use inbound_support::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, time::sleep};

fn config() -> config::Mllp {
    config::Mllp { name: "test".into(), ..config::Mllp::default() }
}

#[tokio::test]
async fn frames_in_random_pieces_arrive_byte_for_byte_and_are_acknowledged_in_order() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut random = Random(0x5eed);
    let messages: Vec<Vec<u8>> = (0..300)
        .map(|i| {
            let mut message = adt(&i.to_string());
            // Latin-1, and whatever else a sender may have: nothing is decoded on the way.
            message.extend((0..random.below(3000)).map(|n| [b'x', 0xFC, b'\r', 0x1C, b'y', 0x00][n % 5]));
            message
        })
        .collect();
    let stream: Vec<u8> = messages.iter().flat_map(|m| framed(m)).collect();
    let (mut receive, mut send) = connect(&running).await.into_split();
    let sender = tokio::spawn(async move {
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + random.below(5000)).min(rest.len()));
            send.write_all(piece).await.unwrap();
            if random.below(4) == 0 {
                tokio::task::yield_now().await;
            }
            rest = after;
        }
        send
    });
    let mut bytes = Vec::new();
    let mut acks = Vec::new();
    while acks.len() < messages.len() {
        let mut piece = [0; 8192];
        let n = tokio::io::AsyncReadExt::read(&mut receive, &mut piece).await.unwrap();
        assert!(n > 0, "ended after {} acknowledgments", acks.len());
        bytes.extend_from_slice(&piece[..n]);
        while let Some(end) = bytes.windows(2).position(|w| w == b"\x1c\r") {
            let frame: Vec<u8> = bytes.drain(..end + 2).collect();
            acks.push(hie::message::hl7::ack::parse_ack(&frame[1..end]).unwrap());
        }
    }
    drop(sender.await.unwrap());
    for (i, ack) in acks.iter().enumerate() {
        assert_eq!((ack.code.as_str(), ack.control_id.as_str()), ("AA", i.to_string().as_str()));
    }
    assert_eq!(fake.bodies(), messages);
    let seen = fake.seen.lock().unwrap();
    assert_eq!((seen[0].listener.as_str(), seen[0].client.as_str()), ("test", "anonymous"));
    assert!(seen[0].remote.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn pipelined_frames_reach_the_engine_in_order_and_at_most_32_at_once() {
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // Later ones are answered sooner.
            let number: u64 = seen.control_id().parse().unwrap();
            sleep(Duration::from_millis(64 - (number % 32) * 2)).await;
            NOW.fetch_sub(1, Ordering::SeqCst);
            default_answer(&seen)
        })
    });
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    let all: Vec<u8> = (0..200).flat_map(|i| framed(&adt(&i.to_string()))).collect();
    client.send(&all).await;
    for i in 0..200 {
        assert_eq!(client.ack().await, Some(format!("AA {i}")));
    }
    let order: Vec<String> = fake.seen.lock().unwrap().iter().map(Seen::control_id).collect();
    assert_eq!(order, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());
    let most = MOST.load(Ordering::SeqCst);
    assert!((2..=32).contains(&most), "{most} at once");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_and_the_connection_kept() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    for junk in [&b""[..], b"PID|1||SECRET-NAME\r", b"MSH", b"\r\n\r\n"] {
        client.send(&framed(junk)).await;
        let answer = client.next().await.unwrap();
        assert!(answer.contains("\rMSA|AR||"), "{answer}");
        assert!(!answer.contains("SECRET"), "{answer}");
    }
    client.send(&framed(&adt("after"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA after"));
    assert_eq!(fake.count(), 5, "the engine records what is refused");
}

#[tokio::test]
async fn refusals_become_ae_and_ar() {
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            let wait = Duration::from_millis(1);
            let refusal = match seen.control_id().as_str() {
                "channel" => Refusal::NoChannel,
                "allowed" => Refusal::NotAllowed,
                "busy" => Refusal::Busy("full", wait),
                "store" => Refusal::Store,
                "rate" => Refusal::RateLimited { retry_after: wait },
                "large" => Refusal::TooLarge { limit: 5 },
                "upstream" => Refusal::Upstream("connection refused".into()),
                _ => Refusal::UpstreamTimeout,
            };
            Answer::Refused { id: Some(MessageId::now()), refusal }
        })
    });
    let running = mllp(config(), fake).await;
    let mut client = Frames::new(connect(&running).await);
    for (id, code) in [
        ("channel", "AR"),
        ("allowed", "AR"),
        ("busy", "AE"),
        ("store", "AE"),
        ("rate", "AE"),
        ("large", "AR"),
        ("upstream", "AE"),
        ("late", "AE"),
    ] {
        client.send(&framed(&adt(id))).await;
        assert_eq!(client.ack().await, Some(format!("{code} {id}")));
    }
}

#[tokio::test]
async fn enhanced_mode_sends_what_msh_15_and_16_ask_for() {
    let running = mllp(config(), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    let message = |id: &str, accept: &str, application: &str| {
        framed(format!("MSH|^~\\&|A|B|C|D|2024||ADT^A01|{id}|P|2.5.1|||{accept}|{application}\r").as_bytes())
    };
    client.send(&message("1", "AL", "NE")).await;
    assert_eq!(client.ack().await.as_deref(), Some("CA 1"));
    // Nothing is sent for the second and third, so the fourth's comes next.
    client.send(&[message("2", "NE", "NE"), message("3", "ER", "NE"), message("4", "NE", "AL")].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 4"));
}

#[tokio::test]
async fn a_batch_is_taken_apart_and_answered_by_a_batch() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    let (one, two) = (adt("m1"), adt("m2"));
    let batch = [
        &b"FHS|^~\\&|APP|FAC|HIE|HIE|2024||name||F1\rBHS|^~\\&|APP|FAC|HIE|HIE|2024||||B1\r"[..],
        &one,
        b"MSH|^~\\&|APP|FAC|HIE|HIE|2024||ADT^A01|m3|P|2.5.1|||NE|NE\r",
        &two,
        b"BTS|3\rFTS|1\r",
    ]
    .concat();
    client.send(&framed(&batch)).await;
    let answer = client.next().await.unwrap();
    let segments: Vec<&str> = answer.split_terminator('\r').collect();
    assert!(segments[0].starts_with("FHS|^~\\&|HIE|HIE|APP|FAC|") && segments[0].ends_with("|F1"), "{answer}");
    assert!(segments[1].starts_with("BHS|^~\\&|HIE|HIE|APP|FAC|") && segments[1].ends_with("|B1"), "{answer}");
    assert_eq!(segments[3], "MSA|AA|m1");
    assert_eq!(segments[5], "MSA|AA|m2");
    assert_eq!(&segments[6..], ["BTS|2", "FTS|1"]);
    assert_eq!(fake.bodies()[0], one);
    assert_eq!(fake.bodies()[2], two);

    // A frame after the batch is only seen after the last message of the batch.
    let large: Vec<u8> = [b"BHS|^~\\&|APP\r".to_vec(), (0..500).flat_map(|i| adt(&format!("b{i}"))).collect()].concat();
    client.send(&[framed(&large), framed(&adt("last"))].concat()).await;
    let answer = client.next().await.unwrap();
    assert_eq!(answer.matches("MSA|AA|b").count(), 500);
    assert!(answer.ends_with("BTS|500\r"));
    assert_eq!(client.ack().await.as_deref(), Some("AA last"));
    assert_eq!(fake.count(), 504);
    assert_eq!(fake.seen.lock().unwrap()[503].control_id(), "last");
}

#[tokio::test]
async fn an_upstreams_answer_is_relayed_as_it_is() {
    const QUERY_RESPONSE: &[u8] = b"MSH|^~\\&|LAB|X|APP|FAC|2024||RSP^K11|77|P|2.5\rMSA|AA|q\rQAK|1|OK\rPID|1||M\xfcller\r";
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            let (status, body): (u16, &[u8]) = match seen.control_id().as_str() {
                "q" => (200, QUERY_RESPONSE),
                "created" => (201, b"{\"resourceType\":\"Bundle\"}"),
                "missing" => (404, b"not found"),
                "breaks" => (200, b"MSH|^~\\&|A\x1c\rMSA|AA|x\r"),
                _ => (500, b""),
            };
            let pieces: Vec<_> = body.chunks(7).map(|c| Ok(bytes::Bytes::copy_from_slice(c))).collect();
            let response =
                Response { status, headers: vec![], len: Some(body.len() as u64), body: Box::pin(stream::iter(pieces)) };
            Answer::Response { id: MessageId::now(), response, resend: false }
        })
    });
    let running = mllp(config(), fake).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("q"))).await;
    assert_eq!(client.next().await.unwrap(), String::from_utf8_lossy(QUERY_RESPONSE));
    for (id, code) in [("created", "AA"), ("missing", "AE"), ("breaks", "AA"), ("error", "AE")] {
        client.send(&framed(&adt(id))).await;
        assert_eq!(client.ack().await, Some(format!("{code} {id}")));
    }
}

#[tokio::test]
async fn an_oversized_frame_is_refused_and_the_connection_kept() {
    let fake = Fake::accepting();
    let limited = config::Mllp { max_frame: bytesize::ByteSize::kib(100), ..config() };
    let running = mllp(limited, fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    let mut large = adt("large");
    large.resize(5_000_000, b'x');
    client.send(&[framed(&adt("before")), framed(&large), framed(&adt("after"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA before"));
    let answer = client.next().await.unwrap();
    assert!(answer.contains("MSA|AR|large|larger than the limit of 102400 bytes"), "{answer}");
    assert_eq!(client.ack().await.as_deref(), Some("AA after"));
    assert_eq!(fake.count(), 2);
}

#[tokio::test]
async fn several_large_frames_at_once_all_pass() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut large = adt("large");
    large.resize(3_000_000, b'x');
    let large = Arc::new(framed(&large));
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let (large, address) = (large.clone(), running.address);
            tokio::spawn(async move {
                let mut client = Frames::new(tokio::net::TcpStream::connect(address).await.unwrap());
                client.send(&large).await;
                client.ack().await
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap().as_deref(), Some("AA large"));
    }
    assert_eq!(fake.count(), 12);
}

#[tokio::test]
async fn a_truncated_frame_is_never_handed_over() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[framed(&adt("whole")), b"\x0bMSH|^~\\&|half".to_vec()].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA whole"));
    client.io.shutdown().await.unwrap();
    assert!(client.ends(Duration::from_secs(1)).await);
    // A new start block drops what came before it.
    let mut client = Frames::new(connect(&running).await);
    client.send(&[b"\x0bMSH|^~\\&|half".to_vec(), framed(&adt("next"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA next"));
    assert_eq!(fake.count(), 2);
}

#[tokio::test]
async fn a_sender_that_closes_its_side_still_gets_its_acknowledgments() {
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            sleep(Duration::from_millis(100)).await;
            default_answer(&seen)
        })
    });
    let running = mllp(config(), fake).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[framed(&adt("1")), framed(&adt("2"))].concat()).await;
    client.io.shutdown().await.unwrap();
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    assert_eq!(client.ack().await.as_deref(), Some("AA 2"));
    assert!(client.ends(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_frame_without_its_last_byte_is_taken_after_a_short_while() {
    let running = mllp(config(), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    for i in 0..3 {
        client.send(&[b"\x0b", &adt(&i.to_string())[..], b"\x1c"].concat()).await;
        assert_eq!(client.ack().await, Some(format!("AA {i}")));
    }
}

#[tokio::test]
async fn a_frame_that_never_ends_is_cut() {
    let fake = Fake::accepting();
    let hasty = config::Mllp { frame_timeout: Duration::from_millis(300), ..config() };
    let running = mllp(hasty, fake.clone()).await;
    // No end block.
    let mut client = Frames::new(connect(&running).await);
    let begun = Instant::now();
    client.send(&[b"\x0b", &adt("1")[..]].concat()).await;
    assert!(client.ends(Duration::from_secs(3)).await);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // A byte now and then does not help.
    let mut slow = connect(&running).await;
    let begun = Instant::now();
    slow.write_all(b"\x0b").await.unwrap();
    let cut = loop {
        sleep(Duration::from_millis(50)).await;
        if slow.write_all(b"x").await.is_err() {
            break true;
        }
        if begun.elapsed() > Duration::from_secs(3) {
            break false;
        }
    };
    assert!(cut);
    // An idle connection has no such limit.
    let mut idle = Frames::new(connect(&running).await);
    sleep(Duration::from_millis(500)).await;
    idle.send(&framed(&adt("2"))).await;
    assert_eq!(idle.ack().await.as_deref(), Some("AA 2"));
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn idle_connections_are_closed_where_configured() {
    let impatient = config::Mllp { idle_timeout: Duration::from_millis(200), ..config() };
    let running = mllp(impatient, Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    for i in 0..4 {
        sleep(Duration::from_millis(100)).await;
        client.send(&framed(&adt(&i.to_string()))).await;
        assert_eq!(client.ack().await, Some(format!("AA {i}")));
    }
    assert!(client.ends(Duration::from_secs(2)).await);
}

#[tokio::test]
async fn garbage_is_passed_over_and_too_much_of_it_ends_the_connection() {
    let fake = Fake::accepting();
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[b"GET / HTTP/1.1\r\n\r\n".to_vec(), framed(&adt("1")), b"\r\n\r\n".to_vec(), framed(&adt("2"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    assert_eq!(client.ack().await.as_deref(), Some("AA 2"));

    let mut bad = connect(&running).await;
    let piece = vec![b'g'; 64 * 1024];
    let begun = Instant::now();
    let mut sent = 0usize;
    while sent < 100_000_000 && bad.write_all(&piece).await.is_ok() {
        sent += piece.len();
    }
    assert!(sent < 20_000_000, "{sent} bytes were taken");
    assert!(begun.elapsed() < Duration::from_secs(10));
    client.send(&framed(&adt("3"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 3"), "others are not disturbed");
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once() {
    let small = config::Mllp { max_connections: 3, ..config() };
    let running = mllp(small, Fake::accepting()).await;
    let mut good = Vec::new();
    for i in 0..3 {
        let mut client = Frames::new(connect(&running).await);
        client.send(&framed(&adt(&i.to_string()))).await;
        assert_eq!(client.ack().await, Some(format!("AA {i}")));
        good.push(client);
    }
    for _ in 0..10 {
        assert!(Frames::new(connect(&running).await).ends(Duration::from_secs(1)).await);
    }
    good.pop();
    sleep(Duration::from_millis(100)).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("again"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA again"));
}

#[tokio::test]
async fn while_the_node_pushes_back_nothing_is_read() {
    let fake = Fake::accepting();
    let hasty = config::Mllp { frame_timeout: Duration::from_millis(200), ..config() };
    let running = mllp(hasty, fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("1"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    fake.set_open(false);
    let large = vec![b'x'; 20_000_000];
    let (mut receive, mut send) = client.io.into_split();
    let sender = tokio::spawn(async move {
        send.write_all(&framed(&adt("2"))).await.unwrap();
        send.write_all(b"\x0b").await.unwrap();
        send.write_all(&adt("3")).await.unwrap();
        send.write_all(&large).await.unwrap();
        send.write_all(b"\x1c\r").await.unwrap();
        send
    });
    sleep(Duration::from_millis(500)).await;
    assert_eq!(fake.count(), 1);
    assert!(!sender.is_finished(), "20 MB were read while the node pushed back");
    fake.set_open(true);
    let mut answers = Vec::new();
    while answers.iter().filter(|b| **b == 0x1C).count() < 2 {
        let mut piece = [0; 4096];
        let n = tokio::io::AsyncReadExt::read(&mut receive, &mut piece).await.unwrap();
        assert!(n > 0, "waiting for the node does not count as the sender's delay");
        answers.extend_from_slice(&piece[..n]);
    }
    assert_eq!(fake.count(), 3);
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_sender_over_its_rate_is_slowed_down() {
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            match seen.control_id().as_str() {
                "1" => Answer::Refused { id: None, refusal: Refusal::RateLimited { retry_after: Duration::from_millis(400) } },
                _ => default_answer(&seen),
            }
        })
    });
    let running = mllp(config(), fake).await;
    let mut client = Frames::new(connect(&running).await);
    let begun = Instant::now();
    client.send(&framed(&adt("1"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AE 1"));
    client.send(&framed(&adt("2"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 2"));
    assert!(begun.elapsed() >= Duration::from_millis(390), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn over_the_rate_a_message_waits_for_its_turn_and_keeps_its_place() {
    let fake = Fake::accepting();
    let wait = |ms| Err(Duration::from_millis(ms));
    fake.rates.lock().unwrap().extend([Ok(()), wait(200), wait(150), Ok(()), Ok(()), wait(100)]);
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    let begun = Instant::now();
    let batch = [b"BHS|^~\\&|A|B\r".to_vec(), adt("4"), adt("5"), b"BTS|2\r".to_vec()].concat();
    client.send(&[framed(&adt("1")), framed(&adt("2")), framed(&adt("3")), framed(&batch), framed(&adt("6"))].concat()).await;
    for id in ["1", "2", "3"] {
        assert_eq!(client.ack().await, Some(format!("AA {id}")), "none is refused");
    }
    let batch = client.next().await.unwrap();
    assert!(batch.contains("MSA|AA|4") && batch.contains("MSA|AA|5"), "{batch}");
    assert_eq!(client.ack().await.as_deref(), Some("AA 6"));
    assert!(begun.elapsed() >= Duration::from_millis(440), "{:?}", begun.elapsed());
    let order: Vec<String> = fake.seen.lock().unwrap().iter().map(|s| s.control_id()).collect();
    assert_eq!(order, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn a_turn_that_is_too_far_off_is_refused_and_told_to_the_engine() {
    let fake = Fake::accepting();
    let far = Duration::from_secs(60);
    fake.rates.lock().unwrap().extend([Err(far)]);
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("1"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AE 1"));
    assert_eq!(*fake.refused.lock().unwrap(), [Refusal::RateLimited { retry_after: far }]);
    // And then it is not read from for a while.
    client.send(&framed(&adt("2"))).await;
    assert!(client.next().await.is_none(), "not within two seconds");
    assert_eq!(client.ack().await, None);
    assert_eq!(client.ack().await.as_deref(), Some("AA 2"));
}

#[tokio::test]
async fn a_drain_finishes_the_message_that_waits_for_its_turn() {
    let fake = Fake::accepting();
    fake.rates.lock().unwrap().extend([Err(Duration::from_millis(400))]);
    let running = mllp(config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("1"))).await;
    sleep(Duration::from_millis(100)).await;
    running.drain.cancel();
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
}

#[tokio::test]
async fn who_is_not_let_in_is_closed() {
    let denying = Fake::with_identity(|seen| Box::pin(async move { default_answer(&seen) }), |_, _, _| Err(Denied::Address));
    let running = mllp(config(), denying.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    assert!(client.ends(Duration::from_secs(1)).await);
    assert_eq!(denying.count(), 0);

    let elsewhere = config::Mllp { allow_ips: vec!["10.0.0.0/8".parse().unwrap()], ..config() };
    let running = mllp(elsewhere, Fake::accepting()).await;
    assert!(Frames::new(connect(&running).await).ends(Duration::from_secs(1)).await);

    let strict = config::Mllp { require_client: true, ..config() };
    let running = mllp(strict, Fake::accepting()).await;
    assert!(Frames::new(connect(&running).await).ends(Duration::from_secs(1)).await);

    let fake = Fake::accepting();
    let named = config::Mllp { require_client: true, client: Some("ward-7".into()), ..config() };
    let running = mllp(named, fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("1"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    assert_eq!(fake.seen.lock().unwrap()[0].client, "ward-7");
    assert_eq!(fake.identified.lock().unwrap().len(), 1, "once per connection");
}
