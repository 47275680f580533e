//! Tries to break: **bounded, for everybody.** Senders of large messages that send slowly are ended, and before that one
//! of them never holds so many places that others are kept out, over HTTP and MLLP.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::http::Head;
use harness::wire::{Tag, adt, frame, text};
use harness::{Behaviour, Builder, Peer, Receiver, Rng, wait_until};
use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const SELF: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A connection that comes from the given address.
fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((IpAddr::V4(from), 0)).into()).expect("an address of this machine");
    socket.connect(&to.into()).expect("connected");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// Announces `announced` bytes and sends the first `sent` of them.
fn begin_post(from: Ipv4Addr, to: SocketAddr, announced: usize, sent: usize) -> TcpStream {
    let mut stream = connect(from, to);
    write!(stream, "POST /x HTTP/1.1\r\nHost: n\r\nContent-Type: text/plain\r\nContent-Length: {announced}\r\n\r\n")
        .expect("sent");
    stream.write_all(&vec![b'x'; sent]).expect("sent");
    stream
}

fn status(stream: &TcpStream) -> u16 {
    let head = Head::read(&mut BufReader::new(stream)).expect("a response").expect("a response");
    head.line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

const KIB: usize = 1024;

#[test]
fn a_body_that_trickles_is_ended_with_408_and_counted() {
    let receiver = Receiver::willing();
    let node = Builder::new().http("min_body_rate = \"64 KiB\"\nbody_rate_window = \"1s\"").channel(all_to(&receiver)).start();
    let begun = Instant::now();
    let stream = begin_post(SELF, node.http, 1024 * KIB, 300 * KIB);
    let mut trickle = stream.try_clone().expect("a clone");
    std::thread::spawn(move || {
        while trickle.write_all(&[b'x'; 512]).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(status(&stream), 408);
    assert!(begun.elapsed() < Duration::from_secs(6), "ended after {:?}", begun.elapsed());
    let metrics = node.metrics();
    assert!(metrics.contains("hie_inbound_connections_cut_total{listener=\"http\",reason=\"slow-body\"} 1"), "{metrics}");
    let refused = wait_until(Duration::from_secs(10), || {
        node.post("/transactions/search", "{\"status\":\"Refused\",\"filterRepresentation\":\"full\"}")
            .text()
            .contains("not sent in time")
    });
    assert!(refused, "it arrived, so it is a transaction");

    // As slow, but above the rate: taken.
    let stream = begin_post(SELF, node.http, 600 * KIB, 300 * KIB);
    let mut steady = stream.try_clone().expect("a clone");
    for _ in 0..25 {
        steady.write_all(&vec![b'x'; 12 * KIB]).expect("sent");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(&stream), 202);
}

#[test]
fn one_address_never_holds_all_places_for_large_bodies() {
    let receiver = Receiver::willing();
    let node =
        Builder::new().section("[limits]\nstreams = 4").http("body_rate_window = \"60s\"").channel(all_to(&receiver)).start();
    let held: Vec<_> = (0..2).map(|_| begin_post(SELF, node.http, 1024 * KIB, 300 * KIB)).collect();
    let full = wait_until(Duration::from_secs(10), || {
        let more = begin_post(SELF, node.http, 400 * KIB, 400 * KIB);
        status(&more) == 503
    });
    assert!(full, "a third of the same address is pushed back");
    for _ in 0..5 {
        assert_eq!(status(&begin_post(OTHER, node.http, 400 * KIB, 400 * KIB)), 202, "another address gets through");
    }
    drop(held);
    let free = wait_until(Duration::from_secs(10), || status(&begin_post(SELF, node.http, 400 * KIB, 400 * KIB)) == 202);
    assert!(free, "places come back");
}

/// A large ADT.
fn large(id: &str) -> Vec<u8> {
    adt(&Tag { key: "large".into(), seq: 1, id: id.into() }, 400 * KIB, "pad")
}

/// Begins a large frame and stops.
fn begin_frame(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let mut stream = connect(from, to);
    stream.write_all(&frame(&large("SLOW"))[..300 * KIB]).expect("sent");
    stream
}

fn exchange(from: Ipv4Addr, to: SocketAddr, id: &str) -> String {
    let ack = Peer::over(connect(from, to)).exchange(&large(id));
    text(&ack, "MSA", 1)
}

#[test]
fn slow_large_frames_of_one_address_keep_no_other_out() {
    let receiver = Receiver::willing();
    let node = Builder::new().mllp("frame_timeout = \"40s\"").channel(all_to(&receiver)).start();
    let held: Vec<_> = (0..8).map(|_| begin_frame(SELF, node.mllp)).collect();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    assert_eq!(exchange(OTHER, node.mllp, "QUICK"), "AA");
    assert!(begun.elapsed() < Duration::from_secs(10), "waited for {:?}", begun.elapsed());
    drop(held);
}

#[test]
fn a_quick_client_is_slowed_down_to_its_rate_and_nothing_is_refused() {
    let receiver = Receiver::willing();
    let mut node = Builder::new().mllp("client = \"lab\"").channel(all_to(&receiver)).lay_out();
    let clients = node.dir().join("clients.d");
    std::fs::create_dir_all(&clients).expect("a folder");
    let lab = "[[client]]\nname = \"lab\"\nrate = { per_second = 20, burst = 5 }\n";
    std::fs::write(clients.join("lab.toml"), lab).expect("a client file");
    node.start();
    let begun = Instant::now();
    let mut peer = Peer::connect(node.mllp);
    let message = |n: u64| adt(&Tag { key: "k".into(), seq: n, id: format!("RATE{n}") }, 300, "pad");
    peer.raw(&(0..30).flat_map(|n| frame(&message(n))).collect::<Vec<u8>>()).expect("sent");
    for n in 0..30 {
        let ack = peer.answer().expect("an answer").expect("the connection is kept");
        assert_eq!((text(&ack, "MSA", 1), text(&ack, "MSA", 2)), ("AA".into(), format!("RATE{n}")));
    }
    assert!(begun.elapsed() > Duration::from_millis(1100), "25 at 20 per second: {:?}", begun.elapsed());
    // Hopelessly over it, a message is refused after all, and recorded.
    let lab = lab.replace("20, burst = 5", "0.01, burst = 1");
    std::fs::write(clients.join("lab.toml"), lab).expect("a client file");
    node.signal(nix::sys::signal::Signal::SIGHUP);
    let refused =
        wait_until(Duration::from_secs(20), || text(&Peer::connect(node.mllp).exchange(&message(99)), "MSA", 1) == "AE");
    assert!(refused);
    let recorded = wait_until(Duration::from_secs(10), || {
        node.post("/transactions/search", "{\"status\":\"Refused\",\"filterRepresentation\":\"simpledetails\"}")
            .text()
            .contains("rate limit reached")
    });
    assert!(recorded);
}

#[test]
fn slow_large_frames_end_with_frame_timeout() {
    let receiver = Receiver::willing();
    let node = Builder::new().mllp("frame_timeout = \"1s\"").channel(all_to(&receiver)).start();
    let held: Vec<_> = (0..6).map(|_| begin_frame(SELF, node.mllp)).collect();
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    // Two at a time, a second each, and then it is this one's turn.
    assert_eq!(exchange(SELF, node.mllp, "PATIENT"), "AA");
    assert!(begun.elapsed() < Duration::from_secs(12), "waited for {:?}", begun.elapsed());
    assert_eq!(node.metric("hie_inbound_connections_cut_total"), Some(6.0));
    drop(held);
}

/// Writes `bytes` every 200 ms until the other side closes; how long that took, `None` when it had not within 10 s.
fn repeat(mut stream: TcpStream, bytes: &[u8]) -> Option<Duration> {
    let begun = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    while begun.elapsed() < Duration::from_secs(10) {
        let written = stream.write_all(bytes);
        match stream.read(&mut [0; 64]) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && written.is_ok() => {}
            _ => return Some(begun.elapsed()),
        }
    }
    None
}

#[test]
fn a_frame_begun_over_and_over_has_to_end_in_time() {
    let receiver = Receiver::willing();
    let node = Builder::new().mllp("frame_timeout = \"2s\"").channel(all_to(&receiver)).start();
    let lasted = repeat(connect(SELF, node.mllp), b"\x0bMSH|").expect("ended by the node");
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&lasted), "ended after {lasted:?}");
    let metrics = node.metrics();
    assert!(metrics.contains("hie_inbound_connections_cut_total{listener=\"lis\",reason=\"frame-timeout\"} 1"), "{metrics}");
    // A sender that begins anew and then ends its frame is served.
    let mut stream = connect(SELF, node.mllp);
    stream.write_all(b"\x0bMSH|half").expect("sent");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(text(&Peer::over(stream).exchange(&large("ANEW")), "MSA", 1), "AA");
}

#[test]
fn bytes_outside_frames_are_no_activity() {
    let receiver = Receiver::willing();
    let node = Builder::new().mllp("idle_timeout = \"2s\"").channel(all_to(&receiver)).start();
    for bytes in [&b"\r"[..], b"stray"] {
        let lasted = repeat(connect(SELF, node.mllp), bytes).expect("ended by the node");
        assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&lasted), "{bytes:?}: ended after {lasted:?}");
    }
    // Messages are.
    let mut peer = Peer::connect(node.mllp);
    for n in 0..5 {
        std::thread::sleep(Duration::from_millis(900));
        let small = adt(&Tag { key: "k".into(), seq: n, id: format!("IDLE{n}") }, 300, "pad");
        assert_eq!(text(&peer.exchange(&small), "MSA", 1), "AA");
    }
}

/// Is the connection still there?
fn is_open(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    matches!((&*stream).read(&mut [0; 64]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn idle_connections_of_one_address_keep_no_other_out_and_what_is_in_hand_is_kept() {
    let receiver = Receiver::willing();
    let slow = Behaviour { delay: Duration::from_secs(5), ..Behaviour::default() };
    let upstream = Receiver::mllp(slow, Rng::new(1));
    let proxy = queue("test.proxy", "hl7(\"MSH-10\") == \"INHAND\"").replace("\"queue\"", "\"proxy\"") + "priority = 1\n";
    let proxy = proxy + &route("up", &upstream.target(), "").replace("timeout = \"2s\"", "timeout = \"15s\"");
    let node = Builder::new().mllp("max_connections = 20").channel(proxy + &all_to(&receiver)).start();
    let message = |id: &str| adt(&Tag { key: "k".into(), seq: 1, id: id.into() }, 300, "pad");
    // The oldest of all, and at work.
    let mut working = Peer::over(connect(SELF, node.mllp));
    working.raw(&frame(&message("INHAND"))).expect("sent");
    std::thread::sleep(Duration::from_millis(200));
    let held: Vec<_> = (0..19).map(|_| connect(SELF, node.mllp)).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!is_open(&connect(SELF, node.mllp)), "no more of the same address");
    assert!(held.iter().all(is_open));
    let others: Vec<_> = (0..8)
        .map(|n| {
            let mut peer = Peer::over(connect(OTHER, node.mllp));
            assert_eq!(text(&peer.exchange(&message(&format!("OTHER{n}"))), "MSA", 1), "AA", "another address gets in");
            peer
        })
        .collect();
    assert_eq!(held.iter().filter(|stream| is_open(stream)).count(), 11, "each took the place of an idle one");
    let ack = working.answer().expect("an answer").expect("the connection at work is kept");
    assert_eq!((text(&ack, "MSA", 1), text(&ack, "MSA", 2)), ("AA".into(), "INHAND".into()));
    let metrics = node.metrics();
    assert!(metrics.contains("hie_inbound_connections_cut_total{listener=\"lis\",reason=\"gave-way\"} 8"), "{metrics}");
    assert!(node.log().contains("gives way"), "{}", node.log_tail(10));
    drop((held, others));
}

#[test]
fn begun_frames_of_one_address_keep_no_other_out() {
    let receiver = Receiver::willing();
    let node = Builder::new().mllp("max_connections = 20").channel(all_to(&receiver)).start();
    let mut held: Vec<_> = (0..20).map(|_| connect(SELF, node.mllp)).collect();
    held.iter_mut().for_each(|stream| stream.write_all(b"\x0bMSH|").expect("sent"));
    let small = adt(&Tag { key: "k".into(), seq: 1, id: "IN".into() }, 300, "pad");
    let in_time = wait_until(Duration::from_secs(15), || {
        let mut peer = Peer::over(connect(OTHER, node.mllp));
        peer.raw(&frame(&small)).is_ok() && matches!(peer.answer(), Ok(Some(ack)) if text(&ack, "MSA", 1) == "AA")
    });
    assert!(in_time, "kept out although frame_timeout is 30 s\n{}", node.log_tail(10));
    drop(held);
}
