//! `hie send` against `hie sink`: what is counted, what is sent byte for byte, and what each trouble is called.

use bytes::Bytes;
use hie::{
    channel::ClientTls,
    cli::{
        send::{self, Options, Outcome, SendArgs, SendFailure, Sent, Summary, Target},
        sink::{self, Behaviour, Handle, SinkArgs},
    },
    message::{Protocol, hl7::ack::AckCode},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

type Seen = Arc<Mutex<Vec<(u64, Bytes)>>>;

/// A sink on both protocols that keeps (connection, body).
async fn keeping(behaviour: Behaviour) -> (Handle, Seen) {
    let seen = Seen::default();
    let kept = seen.clone();
    let hook = move |r: &sink::Received<'_>| kept.lock().expect("lock").push((r.connection, r.body.clone()));
    let at = Some(([127, 0, 0, 1], 0).into());
    let options = sink::Options { mllp: at, http: at, behaviour, hook: Some(Arc::new(hook)), ..Default::default() };
    (sink::serve(options).await.expect("a sink"), seen)
}

fn to(sink: &Handle) -> Options {
    Options::new(Target::Mllp { address: sink.mllp.expect("MLLP").to_string(), tls: None })
}

fn to_http(sink: &Handle) -> Options {
    let url = format!("http://{}/", sink.http.expect("HTTP"));
    Options::new(Target::Http { url, tls: None, headers: vec![("x-trial".into(), "1".into())] })
}

fn adt(id: &str) -> Bytes {
    format!("MSH|^~\\&|APP|FAC|RAPP|RFAC|20260102030405||ADT^A01^ADT_A01|{id}|P|2.5.1\rPID|1||4711\r").into()
}

async fn run(options: Options) -> Summary {
    send::run(options).await.expect("a run")
}

fn bodies(seen: &Seen) -> Vec<Bytes> {
    seen.lock().expect("lock").iter().map(|(_, body)| body.clone()).collect()
}

#[tokio::test]
async fn files_and_folders_go_out_in_order_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("b")).expect("made");
    let batch = [&b"FHS|^~\\&\rBHS|^~\\&\r"[..], &adt("4"), &adt("5"), b"BTS|2\rFTS|1\r"].concat();
    let files: [(&str, Vec<u8>); 6] = [
        ("a.hl7", adt("1").to_vec()),
        ("b/x.hl7", b"MSH|^~\\&|\xfc\n\nPID\n".to_vec()),
        ("b/y.txt", b"no HL7 at all".to_vec()),
        ("c-batch.hl7", batch.clone()),
        (".hidden", b"not sent".to_vec()),
        ("d.hl7", adt("6").to_vec()),
    ];
    for (name, body) in &files {
        std::fs::write(folder.path().join(name), body).expect("written");
    }
    let (sink, seen) = keeping(Behaviour::default()).await;
    let options = Options { paths: vec![folder.path().into(), folder.path().join("a.hl7")], ..to(&sink) };
    let summary = run(options.clone()).await;
    let expected: Vec<&[u8]> = [0, 1, 2, 3, 5, 0].iter().map(|i| &files[*i].1[..]).collect();
    assert_eq!(bodies(&seen), expected);
    // What has no MSH is refused by the sink, as a receiver would.
    assert_eq!((summary.sent, summary.accepted, summary.failed), (6, 5, 0), "{summary:?}");
    assert_eq!(summary.refused, BTreeMap::from([("AR".to_owned(), 1)]));
    assert_eq!(sink.counts().connections, 1);
    assert!(!summary.all_accepted());

    seen.lock().expect("lock").clear();
    let split = Options { paths: vec![folder.path().join("c-batch.hl7")], split: true, ..options.clone() };
    assert_eq!(run(split).await.accepted, 2);
    assert_eq!(bodies(&seen), [adt("4"), adt("5")]);

    seen.lock().expect("lock").clear();
    let cr = Options { paths: vec![folder.path().join("b/x.hl7")], cr: true, ..options };
    run(cr).await;
    assert_eq!(bodies(&seen), [&b"MSH|^~\\&|\xfc\r\rPID\r"[..]]);
}

#[tokio::test]
async fn counts_cycles_and_fresh_ids() {
    let (sink, seen) = keeping(Behaviour::default()).await;
    let messages = vec![adt("a"), adt("b"), adt("")];
    let repeat = Options { messages: messages.clone(), repeat: 3, ..to(&sink) };
    assert_eq!(run(repeat).await.accepted, 9);
    assert_eq!(bodies(&seen)[..3], messages[..]);
    assert_eq!(bodies(&seen)[3..6], messages[..]);

    seen.lock().expect("lock").clear();
    // Number, control id, accepted.
    type Results = Arc<Mutex<Vec<(u64, Vec<u8>, bool)>>>;
    let results = Results::default();
    let kept = results.clone();
    let hook = move |s: &Sent<'_>| {
        kept.lock().expect("lock").push((s.number, s.control_id.to_vec(), *s.outcome == Outcome::Accepted));
    };
    let count = Options {
        messages: vec![adt("a"), adt("b")],
        count: Some(501),
        connections: 4,
        fresh_ids: true,
        hook: Some(Arc::new(hook)),
        ..to(&sink)
    };
    assert_eq!(run(count).await.accepted, 501);
    assert_eq!(sink.counts().connections, 1 + 4);
    let results = results.lock().expect("lock");
    let told: BTreeSet<_> = results.iter().map(|(_, id, _)| String::from_utf8(id.clone()).expect("text")).collect();
    let arrived: BTreeSet<_> =
        bodies(&seen).iter().map(|b| String::from_utf8_lossy(b).split('|').nth(9).expect("MSH-10").to_owned()).collect();
    assert_eq!((told.len(), &told), (501, &arrived), "each its own, and told as sent");
    assert!(told.iter().all(|id| id.len() <= 20));
    assert!(results.iter().all(|(_, _, accepted)| *accepted));
    let numbers: BTreeSet<_> = results.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (0..501).collect());
    // Nothing but MSH-10 changed.
    assert!(bodies(&seen).iter().all(|b| b.ends_with(b"|P|2.5.1\rPID|1||4711\r")));
}

#[tokio::test]
async fn the_rate_is_kept() {
    let (sink, _) = keeping(Behaviour::default()).await;
    let summary =
        run(Options { messages: vec![adt("a")], count: Some(100), rate: Some(200.0), connections: 3, ..to(&sink) }).await;
    assert_eq!(summary.accepted, 100);
    // 99 gaps of 5 ms; slower only on a machine that is busy.
    assert!(summary.seconds > 0.48 && summary.seconds < 5.0, "{summary}");
    assert!(summary.p50_ms > 0.0 && summary.p99_ms >= summary.p50_ms && summary.max_ms >= summary.p99_ms);
}

#[tokio::test]
async fn answers_are_told_apart() {
    let (sink, _) = keeping(Behaviour::default()).await;
    let options = Options { messages: vec![adt("a")], timeout: Duration::from_millis(300), ..to(&sink) };
    for answer in [AckCode::CA, AckCode::AE, AckCode::AR, AckCode::CE, AckCode::CR] {
        sink.set(Behaviour { answer, ..Behaviour::default() });
        let summary = run(options.clone()).await;
        assert_eq!(summary.all_accepted(), answer.is_accept());
        let code = answer.as_str().to_owned();
        assert_eq!(summary.refused, if answer.is_accept() { BTreeMap::new() } else { BTreeMap::from([(code, 1)]) });
    }
    for (behaviour, reason) in [
        (Behaviour { silent: true, ..Behaviour::default() }, "no answer in time"),
        (Behaviour { wrong_id: true, ..Behaviour::default() }, "the answer is for another message"),
        (Behaviour { drop_rate: 1.0, ..Behaviour::default() }, "closed before the answer"),
    ] {
        sink.set(behaviour);
        let summary = run(options.clone()).await;
        assert_eq!((summary.sent, summary.failed), (1, 1));
        assert_eq!(summary.failures, BTreeMap::from([(reason.to_owned(), 1)]));
    }
    sink.set(Behaviour { fail_rate: 0.5, ..Behaviour::default() });
    let summary = run(Options { count: Some(400), ..options.clone() }).await;
    let refused = summary.refused.get("AR").copied().unwrap_or(0);
    assert!((100..300).contains(&refused) && refused + summary.accepted == 400, "{summary}");
    let counts = sink.counts();
    assert_eq!(counts.messages, counts.accepted + counts.refused + counts.unanswered, "{counts:?}");
    sink.set(Behaviour { delay: Duration::from_secs(1), ..Behaviour::default() });
    assert_eq!(run(Options { count: None, ..options.clone() }).await.failed, 1);
    let slow = run(Options { timeout: Duration::from_secs(5), ..options.clone() }).await;
    assert!(slow.accepted == 1 && slow.p50_ms > 999.0 && slow.p50_ms < 5000.0, "{slow}");
    // MSH-15 and MSH-16 say which acknowledgment is wanted, if any.
    sink.set(Behaviour::default());
    let asking = |accept: &str, application: &str| {
        let text = String::from_utf8(adt("e").to_vec()).expect("text");
        Bytes::from(text.replace("|2.5.1\r", &format!("|2.5.1|||{accept}|{application}\r")))
    };
    let before = sink.counts();
    let messages = vec![asking("NE", "NE"), asking("AL", "NE"), asking("NE", "AL"), adt("f")];
    assert_eq!(run(Options { messages, ..options }).await.accepted, 4);
    let after = sink.counts();
    assert_eq!((after.accepted - before.accepted, after.unanswered - before.unanswered), (3, 1));
}

#[tokio::test]
async fn a_receiver_that_closes_after_each_answer_gets_each_message_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let received = Arc::new(Mutex::new(vec![]));
    let kept = received.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut frame = vec![];
            while !frame.ends_with(&[0x1c, 0x0d]) {
                let Ok(byte) = socket.read_u8().await else { break };
                frame.push(byte);
            }
            let id = String::from_utf8_lossy(&frame).split('|').nth(9).expect("MSH-10").to_owned();
            let ack = format!("\x0bMSH|^~\\&|R\rMSA|AA|{id}\r\x1c\r");
            kept.lock().expect("lock").push(id);
            let _ = socket.write_all(ack.as_bytes()).await;
        }
    });
    let messages = (0..10).map(|i| adt(&format!("id-{i}"))).collect();
    let summary = run(Options { messages, ..Options::new(Target::Mllp { address, tls: None }) }).await;
    assert_eq!((summary.accepted, summary.failed, summary.reconnects), (10, 0, 9), "{summary}");
    let received = received.lock().expect("lock").clone();
    assert_eq!(received, (0..10).map(|i| format!("id-{i}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_run_can_be_stopped_and_ends_when_the_target_goes_away() {
    let (sink, _) = keeping(Behaviour::default()).await;
    let options = Options { messages: vec![adt("a")], count: Some(1000), rate: Some(10.0), ..to(&sink) };
    let stop = options.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(250)).await;
        stop.cancel();
    });
    let summary = run(options).await;
    assert!(summary.all_accepted() && (2..100).contains(&summary.sent), "{summary}");

    for options in [to(&sink), to_http(&sink)] {
        let sink = Arc::new(keeping(Behaviour::default()).await.0);
        let target = match options.target {
            Target::Mllp { .. } => to(&sink).target,
            Target::Http { .. } => to_http(&sink).target,
        };
        let timeout = Duration::from_millis(500);
        let gone = Options { messages: vec![adt("a")], count: Some(1000), rate: Some(100.0), timeout, ..Options::new(target) };
        let (stopping, began) = (sink.clone(), std::time::Instant::now());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            stopping.stop().await;
        });
        let summary = run(gone).await;
        assert!(summary.accepted > 0 && summary.failed > 0 && summary.sent < 1000, "{summary}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn http_sends_with_type_and_headers() {
    let seen: Arc<Mutex<Vec<(String, String, String)>>> = Arc::default();
    let kept = seen.clone();
    let hook = move |r: &sink::Received<'_>| {
        let head = r.http.expect("a head");
        let text = |name: &str| String::from_utf8_lossy(head.headers.get(name).map_or(b"", |v| v.as_bytes())).into_owned();
        assert_eq!(r.protocol, Protocol::Http);
        kept.lock().expect("lock").push((head.method.to_string(), text("content-type"), text("x-trial")));
    };
    let options = sink::Options { http: Some(([127, 0, 0, 1], 0).into()), hook: Some(Arc::new(hook)), ..Default::default() };
    let sink = sink::serve(options).await.expect("a sink");
    let messages = vec![adt("a"), "{\"resourceType\":\"Patient\"}".into(), " <Patient/>".into(), "x".into()];
    let summary = run(Options { messages, ..to_http(&sink) }).await;
    assert_eq!((summary.accepted, sink.counts().connections), (4, 1));
    let kinds = ["x-application/hl7-v2+er7", "application/fhir+json", "application/fhir+xml", ""];
    let expected: Vec<_> = kinds.iter().map(|k| ("POST".to_owned(), k.to_string(), "1".to_owned())).collect();
    assert_eq!(*seen.lock().expect("lock"), expected);

    sink.set(Behaviour { status: 422, ..Behaviour::default() });
    let refused = run(Options { messages: vec!["x".into()], ..to_http(&sink) }).await;
    assert_eq!(refused.refused, BTreeMap::from([("422".to_owned(), 1)]));
    sink.set(Behaviour { drop_rate: 1.0, ..Behaviour::default() });
    assert_eq!(run(Options { messages: vec!["x".into()], ..to_http(&sink) }).await.failed, 1);
}

#[tokio::test]
async fn nothing_listening_and_nothing_to_send_are_told_apart() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let targets = [
        Target::Mllp { address: free.to_string(), tls: None },
        Target::Http { url: format!("http://{free}/"), tls: None, headers: vec![] },
    ];
    for target in targets {
        let options = Options { messages: vec![adt("a")], connections: 3, count: Some(50), ..Options::new(target) };
        assert!(matches!(send::run(options).await, Err(SendFailure::Unreachable(_))));
    }
    let target = Target::Mllp { address: free.to_string(), tls: None };
    let missing = Options { paths: vec!["/does/not/exist".into()], ..Options::new(target.clone()) };
    assert!(matches!(send::run(missing).await, Err(SendFailure::Usage(reason)) if reason.contains("/does/not/exist")));
    assert!(matches!(send::run(Options::new(target)).await, Err(SendFailure::Usage(_))));
    let nowhere = Target::Mllp { address: "nowhere".into(), tls: None };
    let nowhere = Options { messages: vec![adt("a")], ..Options::new(nowhere) };
    assert!(matches!(send::run(nowhere).await, Err(SendFailure::Usage(_))));
}

#[tokio::test]
async fn tls_on_both_sides() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = rcgen::KeyPair::generate().expect("a key");
    let cert = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters").self_signed(&key).expect("signed");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("cert.pem"), cert.pem()).expect("written");
    std::fs::write(path("key.pem"), key.serialize_pem()).expect("written");
    let server = hie::config::ServerTls { cert: path("cert.pem"), key: path("key.pem"), ..Default::default() };
    let at = Some(([127, 0, 0, 1], 0).into());
    let sink = sink::serve(sink::Options { mllp: at, http: at, tls: Some(server), ..Default::default() }).await.expect("a sink");
    let tls = Some(ClientTls { ca: Some(path("cert.pem")), ..ClientTls::default() });
    let mllp = Target::Mllp { address: format!("localhost:{}", sink.mllp.expect("MLLP").port()), tls: tls.clone() };
    let url = format!("https://localhost:{}/", sink.http.expect("HTTP").port());
    for target in [mllp, Target::Http { url, tls, headers: vec![] }] {
        let summary = run(Options { messages: vec![adt("a"), adt("b")], ..Options::new(target) }).await;
        assert_eq!(summary.accepted, 2, "{summary}");
    }
}

#[tokio::test]
async fn the_sink_saves_stops_at_its_limit_and_survives_garbage() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = sink::Options {
        mllp: Some(([127, 0, 0, 1], 0).into()),
        save: Some(folder.path().into()),
        max: Some(3),
        ..Default::default()
    };
    let sink = sink::serve(options).await.expect("a sink");
    let address = sink.mllp.expect("MLLP");
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    assert_eq!(socket.read(&mut [0; 10]).await.expect("closed"), 0);
    assert_eq!(sink.counts().garbage, 1);
    // Three frames in one write, the last without its CR.
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let frames: Vec<u8> = ["a", "b", "c"].iter().flat_map(|id| [b"\x0b", &adt(id)[..], b"\x1c\r"].concat()).collect();
    socket.write_all(&frames[..frames.len() - 1]).await.expect("written");
    let mut answers = String::new();
    tokio::time::timeout(Duration::from_secs(5), socket.read_to_string(&mut answers)).await.expect("stops").expect("read");
    for id in ["a", "b", "c"] {
        assert!(answers.contains(&format!("MSA|AA|{id}\r\x1c\r")), "{answers:?}");
    }
    assert!(answers.contains("|RAPP|RFAC|APP|FAC|"), "application and facility changed places: {answers:?}");
    sink.stopped().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_eq!(std::fs::read(folder.path().join("00000002")).expect("saved"), adt("b"));
}

#[tokio::test]
async fn a_frame_of_any_size_is_counted() {
    let sink = sink::serve(sink::Options { mllp: Some(([127, 0, 0, 1], 0).into()), ..Default::default() }).await.expect("a sink");
    let mut large = adt("large").to_vec();
    large.resize(8 << 20, b'x');
    let summary = run(Options { messages: vec![large.into(), adt("a")], ..to(&sink) }).await;
    assert_eq!((summary.accepted, sink.counts().bytes), (2, (8 << 20) + adt("a").len() as u64), "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_corpus_arrives_as_it_is() {
    let Some(corpus) = std::env::var_os("HIE_CORPUS") else {
        println!("not run: HIE_CORPUS is not set");
        return;
    };
    let hl7 = Path::new(&corpus).join("hl7v2");
    let mut files = vec![];
    collect(&hl7, &mut files);
    let (sink, seen) = keeping(Behaviour::default()).await;
    let summary = run(Options { paths: vec![hl7], connections: 8, ..to(&sink) }).await;
    assert_eq!(summary.sent, files.len() as u64);
    assert_eq!(summary.failed, 0, "{summary}");
    let mut expected: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).expect("read")).collect();
    let mut arrived: Vec<Vec<u8>> = bodies(&seen).iter().map(|b| b.to_vec()).collect();
    expected.sort();
    arrived.sort();
    assert!(expected == arrived, "{} sent, {} arrived", expected.len(), arrived.len());
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => collect(&path, files),
            false if !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) => files.push(path),
            false => {}
        }
    }
}

#[test]
fn arguments_are_checked() {
    use clap::{Args, Command};
    let send = SendArgs::augment_args(Command::new("send"));
    let sink = SinkArgs::augment_args(Command::new("sink"));
    send.clone().debug_assert();
    sink.clone().debug_assert();
    let table = [
        (true, "send --mllp h:1 a b --rate 500/s --connections 4 --count 10 --fresh-ids --json --tls-ca ca.pem"),
        (true, "send --http http://h/ --header a:b --repeat 3 --timeout 200ms -"),
        (false, "send a"),
        (false, "send --mllp h:1 --http http://h/ a"),
        (false, "send --mllp h:1"),
        (false, "send --mllp h:1 a --rate 0"),
        (false, "send --mllp h:1 a --connections 0"),
        (false, "send --mllp h:1 a --header a:b"),
        (false, "send --mllp h:1 a --tls-cert c"),
        (true, "sink"),
        (true, "sink --mllp 127.0.0.1:1 --answer ae --fail-rate 0.1 --delay 200ms --silent --max 3"),
        (false, "sink --answer ZZ"),
        (false, "sink --fail-rate 2"),
        (false, "sink --status 100"),
        (false, "sink --mllp nowhere"),
        (false, "sink --tls-cert c"),
    ];
    for (good, line) in table {
        let command = if line.starts_with("send") { send.clone() } else { sink.clone() };
        assert_eq!(command.try_get_matches_from(line.split(' ')).is_ok(), good, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_leaves_the_summary() {
    let (sink, _) = keeping(Behaviour::default()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let sample = folder.path().join("a.hl7");
    std::fs::write(&sample, "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|1|P|2.5\rPID|1\r").expect("written");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hie"));
    command.args(["send", "--quiet", "--mllp", &sink.mllp.expect("MLLP").to_string()]).arg(&sample);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("hie runs");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("sent") && said.contains("accepted"), "{said}");
}
