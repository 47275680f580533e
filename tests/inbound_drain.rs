//! The drain of the socket gateways: what is in hand is answered, senders learn it in time, nothing is reset.

mod inbound_support;

use hie::config;
use inbound_support::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn mllp_config() -> config::Mllp {
    config::Mllp { name: "drain".into(), ..config::Mllp::default() }
}

/// Runs a gateway on a thread of its own, as an accepting instance does, so that clients here may block.
fn on_thread(
    start: impl AsyncFnOnce() -> Running + Send + 'static,
) -> (SocketAddr, CancellationToken, TaskTracker, thread::JoinHandle<bool>) {
    let (send, receive) = mpsc::channel();
    let instance = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let running = start().await;
            send.send((running.address, running.drain.clone(), running.tasks.clone())).unwrap();
            running.drain.cancelled().await;
            running.stop(Duration::from_secs(10)).await
        })
    });
    let (address, drain, tasks) = receive.recv().unwrap();
    (address, drain, tasks, instance)
}

fn read_ack(client: &mut TcpStream) -> std::io::Result<String> {
    let mut ack = Vec::new();
    while !ack.ends_with(b"\x1c\r") {
        let mut piece = [0; 4096];
        let n = client.read(&mut piece)?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        ack.extend_from_slice(&piece[..n]);
    }
    Ok(String::from_utf8(ack).unwrap())
}

#[test]
fn the_last_acknowledgment_and_the_end_of_the_stream_come_together() {
    for round in 0..40 {
        // In hand in the even rounds, already answered in the odd ones.
        let answered = Arc::new(AtomicBool::new(round % 2 == 1));
        let may_answer = answered.clone();
        let (address, drain, _, instance) = on_thread(async move || {
            let slow = Fake::new(move |seen| {
                let may_answer = may_answer.clone();
                Box::pin(async move {
                    while !may_answer.load(Ordering::SeqCst) {
                        sleep(Duration::from_millis(1)).await;
                    }
                    default_answer(&seen)
                })
            });
            mllp(mllp_config(), slow).await
        });
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&framed(&adt("in-hand"))).unwrap();
        if round % 2 == 0 {
            thread::sleep(Duration::from_millis(5));
            drain.cancel();
            thread::sleep(Duration::from_millis(5));
            answered.store(true, Ordering::SeqCst);
        } else {
            read_ack(&mut client).unwrap();
            drain.cancel();
            // Not as soon as it could: who does that is waited for, see below.
            thread::sleep(Duration::from_millis(150));
            client.write_all(&framed(&adt("one more"))).unwrap();
        }
        assert!(read_ack(&mut client).unwrap().contains("MSA|AA|"));
        // The end must be there already: a sender that looks for it now never sends into a closing connection.
        client.set_nonblocking(true).unwrap();
        match client.read(&mut [0; 16]) {
            Ok(0) => {}
            other => panic!("round {round}: after the last acknowledgment: {other:?}"),
        }
        drop(client);
        assert!(instance.join().unwrap(), "all connections ended");
    }
}

/// A balancer hands the last acknowledgment and the end on one after the other: who sends without a pause would send between the two.
#[tokio::test]
async fn a_sender_without_a_pause_is_left_in_its_next_pause_or_after_seconds() {
    let (mut in_pause, mut without) = (false, false);
    // A busy machine makes pauses of its own.
    for _ in 0..10 {
        in_pause = in_pause || left_after(100, Some(80)).await == 80;
        without = without || left_after(100, None).await > 110;
        if in_pause && without {
            return;
        }
    }
    panic!("left in its pause: {in_pause}; goes on while it makes none: {without}");
}

/// Sends without a pause, but before this message; the drain begins `ms` after the first. Gives the last message that was acknowledged.
async fn left_after(ms: u64, pause_before: Option<u32>) -> u32 {
    let running = mllp(mllp_config(), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    let begin = Instant::now();
    let mut sent = 0;
    loop {
        if begin.elapsed() >= Duration::from_millis(ms) || pause_before.is_some_and(|n| sent + 10 == n) {
            running.drain.cancel();
        }
        sent += 1;
        if pause_before == Some(sent) {
            sleep(Duration::from_millis(150)).await;
        }
        client.send(&framed(&adt(&sent.to_string()))).await;
        if client.ack().await.is_none() {
            sent -= 1;
            break;
        }
        // The end comes with the acknowledgment.
        if client.ends(Duration::from_millis(2)).await {
            break;
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "it ends");
    assert!(running.stop(Duration::from_secs(5)).await);
    sent
}

#[tokio::test]
async fn idle_mllp_connections_are_closed_within_seconds_and_without_a_reset() {
    let fake = Fake::accepting();
    let running = mllp(mllp_config(), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("1"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    let mut halfway = Frames::new(connect(&running).await);
    halfway.send(b"\x0bMSH|^~\\&|half").await;
    sleep(Duration::from_millis(20)).await;
    running.drain.cancel();
    // The stream's end, not an error.
    let mut piece = [0; 16];
    for client in [&mut client, &mut halfway] {
        let read = tokio::time::timeout(Duration::from_secs(3), tokio::io::AsyncReadExt::read(&mut client.io, &mut piece)).await;
        assert_eq!(read.expect("closed in time").unwrap(), 0);
    }
    // What a sender sends all the same is read and dropped, never half taken.
    client.send(&framed(&adt("2"))).await;
    assert_eq!(client.ack().await, None);
    assert!(running.stop(Duration::from_secs(5)).await);
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn a_begun_frame_may_still_end() {
    let running = mllp(mllp_config(), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    let frame = framed(&adt("begun"));
    client.send(&frame[..20]).await;
    sleep(Duration::from_millis(50)).await;
    running.drain.cancel();
    sleep(Duration::from_millis(200)).await;
    client.send(&frame[20..]).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA begun"));
    assert!(client.ends(Duration::from_millis(500)).await);
    assert!(running.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn the_listening_socket_stays_with_its_owner() {
    let running = mllp(mllp_config(), Fake::accepting()).await;
    running.stop(Duration::from_secs(5)).await;
    // Nobody accepts now, but the connection is taken into the queue and waits for the next instance.
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("waiting"))).await;
    let listener = tokio::net::TcpListener::from_std(running.held.try_clone().unwrap()).unwrap();
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let server = hie::gateway::inbound::mllp::MllpServer::new(mllp_config(), None);
    tokio::spawn(hie::gateway::inbound::mllp::serve(listener, server, Fake::accepting(), drain, tasks));
    assert_eq!(client.ack().await.as_deref(), Some("AA waiting"));
}

/// Two instances on one port; one drains and is replaced again and again while senders with persistent connections go on. A sender
/// reconnects when it sees the end of the stream after an acknowledgment; nothing it sends may go unanswered.
#[test]
fn mllp_senders_see_no_failure_while_instances_are_replaced() {
    senders_see_no_failure(
        |owner| Box::new(move || hie_mllp(&owner)),
        |address, stop, sent| {
            let mut client = TcpStream::connect(address).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let id = sent.fetch_add(1, Ordering::Relaxed).to_string();
                client.write_all(&framed(&adt(&id))).map_err(|e| format!("write: {e}"))?;
                let ack = read_ack(&mut client).map_err(|e| format!("acknowledgment: {e}"))?;
                if !ack.contains(&format!("MSA|AA|{id}\r")) {
                    return Err(format!("answered {ack}"));
                }
                // Is the stream at its end?
                client.set_nonblocking(true).unwrap();
                let ended = matches!(client.read(&mut [0; 1]), Ok(0));
                client.set_nonblocking(false).unwrap();
                if ended {
                    client = TcpStream::connect(address).unwrap();
                }
            }
            Ok(())
        },
    );
}

#[test]
fn http_senders_see_no_failure_while_instances_are_replaced() {
    senders_see_no_failure(
        |owner| Box::new(move || hie_http(&owner)),
        |address, stop, sent| {
            let mut client = TcpStream::connect(address).unwrap();
            while !stop.load(Ordering::Relaxed) {
                sent.fetch_add(1, Ordering::Relaxed);
                client
                    .write_all(b"POST /x HTTP/1.1\r\nHost: hie\r\nContent-Length: 5\r\n\r\nhello")
                    .map_err(|e| format!("write: {e}"))?;
                let mut head = Vec::new();
                while !head.ends_with(b"Processing\"}") {
                    let mut piece = [0; 4096];
                    match client.read(&mut piece) {
                        Ok(n) if n > 0 => head.extend_from_slice(&piece[..n]),
                        other => return Err(format!("response: {other:?} after {:?}", String::from_utf8_lossy(&head))),
                    }
                }
                let head = String::from_utf8(head).unwrap();
                if !head.starts_with("HTTP/1.1 202 ") {
                    return Err(head);
                }
                if head.contains("connection: close") {
                    client = TcpStream::connect(address).unwrap();
                }
            }
            Ok(())
        },
    );
}

type Serve = Box<dyn FnOnce() -> (CancellationToken, TaskTracker) + Send>;

fn hie_mllp(owner: &std::net::TcpListener) -> (CancellationToken, TaskTracker) {
    let listener = tokio::net::TcpListener::from_std(owner.try_clone().unwrap()).unwrap();
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let server = hie::gateway::inbound::mllp::MllpServer::new(mllp_config(), None);
    tasks.spawn(hie::gateway::inbound::mllp::serve(listener, server, Fake::accepting(), drain.clone(), tasks.clone()));
    (drain, tasks)
}

fn hie_http(owner: &std::net::TcpListener) -> (CancellationToken, TaskTracker) {
    let listener = tokio::net::TcpListener::from_std(owner.try_clone().unwrap()).unwrap();
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let server = hie::gateway::inbound::http::HttpServer::new(config::Http::default(), None, 1 << 20);
    tasks.spawn(hie::gateway::inbound::http::serve(listener, server, Fake::accepting(), drain.clone(), tasks.clone()));
    (drain, tasks)
}

fn senders_see_no_failure(
    serve: impl Fn(std::net::TcpListener) -> Serve,
    sender: fn(SocketAddr, &AtomicBool, &AtomicUsize) -> Result<(), String>,
) {
    let owner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    owner.set_nonblocking(true).unwrap();
    let address = owner.local_addr().unwrap();
    let instance = |serve: Serve| {
        let (send, receive) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (drain, tasks) = serve();
                send.send(drain.clone()).unwrap();
                drain.cancelled().await;
                tasks.close();
                tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.is_ok()
            })
        });
        (receive.recv().unwrap(), thread)
    };
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut current = instance(serve(owner.try_clone().unwrap()));
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            thread::spawn(move || sender(address, &stop, &sent))
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(100));
        let next = instance(serve(owner.try_clone().unwrap()));
        current.0.cancel();
        assert!(current.1.join().unwrap(), "drained in time");
        current = next;
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        if let Err(failure) = sender.join().unwrap() {
            panic!("{failure}");
        }
    }
    current.0.cancel();
    current.1.join().unwrap();
    assert!(sent.load(Ordering::Relaxed) > 500, "only {} sent in {:?}", sent.load(Ordering::Relaxed), begun.elapsed());
}

#[tokio::test]
async fn http_tells_keep_alive_clients_to_go() {
    let fake = Fake::new(|seen| {
        Box::pin(async move {
            sleep(Duration::from_millis(100)).await;
            default_answer(&seen)
        })
    });
    let running = http(config::Http::default(), fake).await;
    let request = b"POST /x HTTP/1.1\r\nHost: hie\r\nContent-Length: 2\r\n\r\nhi";
    let mut working = Frames::new(connect(&running).await);
    working.send(request).await;
    let mut idle = Frames::new(connect(&running).await);
    idle.send(request).await;
    let mut silent = Frames::new(connect(&running).await);
    sleep(Duration::from_millis(20)).await;
    let mut first = vec![0; 4096];
    let n = tokio::io::AsyncReadExt::read(&mut idle.io, &mut first).await.unwrap();
    assert!(!String::from_utf8_lossy(&first[..n]).contains("connection: close"));
    working.send(b"").await;
    running.drain.cancel();
    // One more request is served, with the word that it is the last.
    idle.send(request).await;
    for client in [&mut idle] {
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut client.io, &mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 202") && answer.contains("connection: close"), "{answer}");
    }
    assert!(silent.ends(Duration::from_secs(3)).await);
    assert!(running.stop(Duration::from_secs(5)).await);
}
