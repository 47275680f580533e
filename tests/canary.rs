//! Tries to break: **no body, patient name or identifier, and no credential in a log line, metric label or URL.** Canary
//! strings go through every path, errors included; then everything that the node said is searched for them.
//!
//! The log level is the most talkative one. `canary_more.rs` has the other paths and the other forms of the log.

mod harness;

use harness::canary::{adt, search, told};
use harness::channels::{queue, route};
use harness::http::once;
use harness::wire::frame;
use harness::{Behaviour, Builder, Node, Peer, Receiver, Rng, wait_until};
use std::time::Duration;

#[test]
fn nothing_of_a_message_is_told_to_anyone_but_its_receivers() {
    let mut lis = Receiver::willing();
    let web = Receiver::http(Behaviour::default(), Rng::new(4));
    let answering = speaking_receiver();
    let nobody = harness::node::free_port();
    let http_proxy = "protocol == \"http\" && path.startsWith(\"/proxy\")";
    let http_dead = "protocol == \"http\" && path.startsWith(\"/dead\")";
    let hl7 = |code: &str| format!("protocol == \"mllp\" && hl7(\"MSH-9.2\") == \"{code}\"");
    let node = Builder::new()
        .env("RUST_LOG", "trace")
        .env("HIE_LOG", "trace")
        .mllp("max_frame = \"256 KiB\"\nframe_timeout = \"1s\"")
        .http("header_timeout = \"1s\"\nbody_idle_timeout = \"1s\"")
        .channel(
            queue("t.proxy", http_proxy).replace("\"queue\"", "\"proxy\"")
                + "priority = 1\n"
                + &route("up", &web.target(), "forward_path = true"),
        )
        .channel(
            queue("t.dead", http_dead).replace("\"queue\"", "\"proxy\"")
                + "priority = 2\n"
                + &route("up", &format!("http = [\"http://{nobody}\"]"), "forward_path = true"),
        )
        .channel(queue("t.a01", &hl7("A01")) + "priority = 3\n" + &route("lis", &lis.target(), ""))
        .channel(queue("t.a02", &hl7("A02")) + "priority = 4\n" + &route("speaks", &format!("mllp = [\"{answering}\"]"), ""))
        .channel(queue("t.a03", &hl7("A03")) + "priority = 5\n" + &route("dead", &format!("mllp = [\"{nobody}\"]"), ""))
        .channel(
            queue("t.webq", "protocol == \"http\" && path.startsWith(\"/queue\")")
                + "priority = 6\n"
                + &route("web", &web.target(), ""),
        )
        .channel(
            queue("t.broken", "protocol == \"mllp\" && hl7(\"MSH-9.2\") == \"A05\" && int(hl7(\"PID-3\")) > 1")
                + "priority = 7\n"
                + &route("lis", &lis.target(), ""),
        )
        .start();

    mllp_paths(&node);
    let read_back = http_paths(&node);
    lis.behave(Behaviour { reject: 0.5, wrong_id: 0.5, ..Behaviour::default() });
    Peer::connect(node.mllp).exchange(&adt("ADT^A01", "again"));
    std::thread::sleep(Duration::from_millis(700));
    lis.down();
    std::thread::sleep(Duration::from_millis(700));
    let stored = wait_until(Duration::from_secs(10), || node.get("/transactions?filterLimit=50").text().len() > 100);
    assert!(stored, "the paths left transactions");
    let mut texts = told(&node);
    node.signal(nix::sys::signal::Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    let log = node.log();

    assert!(log.lines().count() > 10, "the log is talkative enough to tell something:\n{log}");
    assert!(read_back, "the canaries are in the ledger, where they belong");
    texts.push(("the log", log));
    search(&node, &texts);
}

fn mllp_paths(node: &Node) {
    let mut peer = Peer::connect(node.mllp);
    for trigger in ["A01", "A02", "A03", "A05", "A99"] {
        peer.exchange(&adt(&format!("ADT^{trigger}"), trigger));
    }
    peer.exchange(&adt("ADT^A01", "A01")); // a resend
    peer.exchange(&[adt("ADT^A01", "A01"), b"NTE|2||ZZBODYZZ\r".to_vec()].concat()); // the same control id, another body
    peer.exchange(b"PID|1||ZZPATIENTZZ||ZZNAMEZZ"); // no header
    peer.exchange(b"MSH|^~\\&|ZZFACILITYZZ"); // half a header
    peer.exchange(
        &[&b"MSH|^~\\&|A|B|C|D|2025||ADT^A01|ZZCONTROLZZ8|P|2.5||||||8859/1\rPID|1||ZZPATIENTZZ\xff\xfe\r"[..]].concat(),
    );
    let batch =
        [b"FHS|^~\\&|ZZFACILITYZZ\rBHS|^~\\&|ZZFACILITYZZ\r".to_vec(), adt("ADT^A01", "B1"), b"BTS|1\rFTS|1\r".to_vec()].concat();
    peer.exchange(&batch);
    let mut big = adt("ADT^A01", "BIG");
    big.resize(300 * 1024, b'Z');
    peer.exchange(&big);
    let mut cut = Peer::connect(node.mllp);
    let _ = cut.raw(&frame(&adt("ADT^A01", "CUT"))[..80]);
    std::thread::sleep(Duration::from_millis(1500)); // frame_timeout
    let mut garbage = Peer::connect(node.mllp);
    let _ = garbage.raw(b"ZZBODYZZ without a frame ZZNAMEZZ");
}

/// True when the ledger tells the canaries back to an operator.
fn http_paths(node: &Node) -> bool {
    let body =
        b"{\"resourceType\":\"Patient\",\"id\":\"ZZPATIENTZZ\",\"name\":[{\"family\":\"ZZNAMEZZ\"}],\"note\":\"ZZJSONZZ\"}";
    let headers = [
        ("Content-Type", "application/fhir+json"),
        ("Authorization", "Basic WlpQQVNTWlo6WlpQQVNTWlo="), // ZZPASSZZ:ZZPASSZZ
        ("X-Note", "ZZHEADERZZ"),
        ("Idempotency-Key", "ZZHEADERZZ-1"),
    ];
    for path in
        ["/proxy/Patient/ZZPATIENTZZ?name=ZZQUERYZZ", "/dead/ZZPATIENTZZ?q=ZZQUERYZZ", "/queue/ZZPATIENTZZ", "/nowhere/ZZQUERYZZ"]
    {
        for authorization in [headers[1].1, "Bearer ZZTOKENZZ", "ZZTOKENZZ"] {
            let mut headers = headers;
            headers[1].1 = authorization;
            let _ = once(node.http, "POST", path, &headers, body);
            let _ = once(node.http, "POST", path, &[headers[0], headers[2]], body);
        }
        let _ = once(node.http, "POST", path, &headers[..1], b"{\"broken\": ZZJSONZZ");
    }
    let _ = once(node.http, "POST", "/proxy", &[("Content-Length", "ZZHEADERZZ")], b"ZZBODYZZ");
    let _ = once(node.http, "ZZQUERYZZ", "/ZZQUERYZZ", &[], b"");
    // The management API: wrong tokens, searches by patient, searches that make no sense.
    for token in ["Bearer ZZTOKENZZ", "Basic WlpQQVNTWlo6WlpQQVNTWlo="] {
        let _ = once(node.admin, "GET", "/transactions", &[("Authorization", token)], b"");
    }
    node.post("/transactions/search", "{\"patient\":\"ZZSEARCHZZ\"}");
    node.post("/transactions/search", "{\"patient\": ZZSEARCHZZ");
    node.get("/transactions?filters=%7B%22ZZSEARCHZZ%22%3A1%7D");
    node.get("/transactions/ZZSEARCHZZ");
    wait_until(Duration::from_secs(10), || {
        let rows = harness::ledger::transactions(node);
        rows.iter().any(|row| {
            let id = row["_id"].as_str().unwrap_or_default();
            harness::ledger::transaction(node, id).to_string().contains("ZZNAMEZZ")
        })
    })
}

/// A receiver whose acknowledgments are full of canaries: AE with text, then AR, then no HL7 at all.
fn speaking_receiver() -> std::net::SocketAddr {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            std::thread::spawn(move || {
                let mut frames = harness::wire::Frames::new(&stream);
                while let Ok(Some(message)) = frames.read() {
                    let answer = match number % 3 {
                        0 => harness::wire::ack(&message, "AR", "ZZANSWERZZ is not known"),
                        1 => b"ZZANSWERZZ, this is no acknowledgment".to_vec(),
                        _ => harness::wire::ack(&message, "AE", "ZZANSWERZZ is not known"),
                    };
                    if (&stream).write_all(&frame(&answer)).is_err() || number % 3 == 0 {
                        break;
                    }
                }
            });
        }
    });
    addr
}

/// A configuration full of secrets, refused: the message names the place, not the secret.
#[test]
fn a_refused_configuration_does_not_tell_its_values() {
    let mut node = Builder::new()
        .channel("[[channel]]\nname = \"t.x\"\nwhen = 'true'\n[[channel.route]]\nname = \"up\"\nhttp = [\"http://user:ZZPASSZZ@127.0.0.1:1/\"]\nheaders = { Authorization = \"Bearer ZZTOKENZZ\" }\nnonsense = 1\n")
        .lay_out();
    node.spawn();
    assert!(node.wait_end(Duration::from_secs(15)).is_some(), "it must not start\n{}", node.log_tail(20));
    let log = node.log();
    assert!(!log.contains("ZZPASSZZ") && !log.contains("ZZTOKENZZ"), "{log}");
}
