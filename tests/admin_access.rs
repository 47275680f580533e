//! Who gets in, what stays out of logs and metrics, and that health answers whatever else is stuck.

mod admin_support;

use admin_support::{Node, TOKEN, basic, call};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

#[test]
fn everything_but_health_needs_the_token() {
    let node = Node::start();
    let id = node.records.hl7(b"MSH|x");
    for (method, path) in hie::admin::mounted() {
        let path = path.replace("{id}", &id.to_string()).replace("{name}", "lab.results").replace("{channel}", "lab.results");
        let path = path.replace("{route}", "ehr").replace("{part}", "request");
        let open = path == "/heartbeat" || path.starts_with("/health/");
        let answer = call(node.admin, &method.to_uppercase(), &path, "", "");
        if path.starts_with("/peer/") {
            // Asks for the domain's secret instead; where there is none, nobody gets anything.
            assert_eq!(answer.status, 404, "{method} {path}");
            continue;
        }
        assert_eq!(answer.status, if open { 200 } else { 401 }, "{method} {path}");
        if !open {
            let challenges: Vec<&str> =
                answer.head.lines().filter(|l| l.to_lowercase().starts_with("www-authenticate")).collect();
            assert_eq!(challenges.len(), 2, "{}", answer.head);
            assert!(answer.json()["hint"].as_str().unwrap().contains("admin-token"));
        }
    }
    assert!(!node.drain.is_cancelled());
    assert_eq!(call(node.admin, "GET", "/no/such/thing", "", "").status, 401);
    assert_eq!(node.get("/no/such/thing").status, 404);
    assert_eq!(node.with("PATCH", "/status", "").status, 405);
}

#[test]
fn the_token_in_every_accepted_form() {
    let node = Node::start();
    for right in [
        format!("Authorization: Bearer {TOKEN}\r\n"),
        format!("authorization: bearer   {TOKEN} \r\n"),
        basic("root@openhim.org", TOKEN),
        basic("", TOKEN),
    ] {
        assert_eq!(call(node.admin, "GET", "/status", &right, "").status, 200, "{right}");
    }
    for wrong in [
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: {TOKEN}\r\n"),
        basic(TOKEN, ""),
        format!("Authorization: Basic {TOKEN}\r\n"),
        "Authorization: Bearer\r\n".into(),
        "Authorization: \u{e9}\r\n".into(),
    ] {
        assert_eq!(call(node.admin, "GET", "/status", &wrong, "").status, 401, "{wrong}");
    }
}

#[test]
fn guessing_is_slowed_down_and_the_right_token_still_passes() {
    let node = Node::start();
    let statuses: Vec<u16> =
        (0..15).map(|i| call(node.admin, "GET", "/status", &basic("x", &format!("guess{i}")), "").status).collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[11..], [429; 4]);
    let throttled = call(node.admin, "GET", "/status", &basic("x", "again"), "");
    assert!(throttled.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(node.get("/status").status, 200);
}

#[test]
fn another_site_s_page_cannot_use_a_browser_s_password() {
    let node = Node::start();
    let headers = format!("{}Sec-Fetch-Site: cross-site\r\nOrigin: https://evil.example\r\n", basic("x", TOKEN));
    let answer = call(node.admin, "POST", "/drain", &headers, "");
    assert_eq!(answer.status, 403);
    assert!(!node.drain.is_cancelled());
    assert!(!answer.head.to_lowercase().contains("access-control"));
    assert_eq!(
        call(node.admin, "GET", "/status", &format!("{}Sec-Fetch-Site: same-origin\r\n", basic("x", TOKEN)), "").status,
        200
    );
}

#[test]
fn answers_are_not_kept_and_not_guessed_at() {
    let node = Node::start();
    for answer in [node.get("/status"), call(node.admin, "GET", "/status", "", "")] {
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn health_says_what_is_missing() {
    let node = Node::start();
    for at in [node.health, node.admin] {
        let ready = call(at, "GET", "/health/ready", "", "");
        assert_eq!((ready.status, ready.json()["status"].as_str()), (200, Some("ok")));
        assert!(call(at, "GET", "/heartbeat", "", "").json()["master"].is_f64());
    }
    node.control.missing.lock().unwrap().push("the store is full".into());
    for at in [node.health, node.admin] {
        let ready = call(at, "GET", "/health/ready", "", "");
        assert_eq!((ready.status, ready.json()["missing"][0].as_str()), (503, Some("the store is full")));
        assert_eq!(call(at, "GET", "/health/live", "", "").status, 200);
    }
    assert_eq!(call(node.health, "GET", "/status", "", "").status, 404);
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let node = Node::start();
    for (at, path) in [(node.health, "/health/live"), (node.admin, "/heartbeat")] {
        // More than there are places.
        let silent: Vec<TcpStream> = (0..140).map(|_| TcpStream::connect(at).unwrap()).collect();
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(call(at, "GET", path, "", "").status, 200);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{path}: {:?}", start.elapsed());
        drop(silent);
    }
}

#[test]
fn health_answers_while_the_admin_runtime_is_blocked() {
    let node = Node::start();
    let held = node.control.block.lock().unwrap();
    // The first ones occupy the threads for work that blocks, the last one the runtime itself.
    let stuck: Vec<TcpStream> = (0..20)
        .map(|i| {
            let mut stream = TcpStream::connect(node.admin).unwrap();
            let line = if i == 19 { "POST /transactions/0198c0de-0000-7000-8000-000000000000/requeue" } else { "GET /routes" };
            write!(stream, "{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let mut unanswered = TcpStream::connect(node.admin).unwrap();
    write!(unanswered, "GET /heartbeat HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    unanswered.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    unanswered.read_exact(&mut [0; 1]).expect_err("the management API is not blocked");
    let start = Instant::now();
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(call(node.health, "GET", path, "", "").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    drop(held);
    for mut stream in stuck {
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
}

#[test]
fn requests_are_bounded() {
    let node = Node::start();
    let large = "x".repeat(16 * 1024 * 1024 + 1);
    assert_eq!(node.post("/transactions/search", &large).status, 413);
    assert_eq!(node.get(&format!("/transactions?channel={}", "x".repeat(9000))).status, 414);
    // A request that never ends its head holds up nobody.
    let mut slow = TcpStream::connect(node.admin).unwrap();
    write!(slow, "GET /sta").unwrap();
    assert_eq!(node.get("/status").status, 200);
}

#[test]
fn stopping_ends_the_threads_soon() {
    let mut node = Node::start();
    let mut idle = TcpStream::connect(node.admin).unwrap();
    write!(idle, "GET /heartbeat HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).unwrap();
    let asked = Instant::now();
    node.stop.cancel();
    for thread in node.threads.drain(..) {
        thread.join().unwrap();
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn canaries_stay_out_of_logs_and_metrics() {
    let lines = Lines::default();
    let writer = lines.clone();
    // For the whole process: the API logs from its own threads. The other tests here log no canary either.
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).try_init();
    let node = Node::start();
    let id = node.records.hl7(b"MSH|^~\\&|canary-body\rPID|||canary-patient\r");
    node.get(&format!("/transactions/{id}")).expect(200);
    node.get(&format!("/transactions/{id}/body/request")).expect(200);
    node.get(&format!("/transactions/{id}/body/canary-part")).expect(404);
    node.get("/transactions?patient=canary-patient").expect(400);
    node.get("/transactions?canary-key=1").expect(400);
    node.get("/transactions/canary-id").expect(400);
    node.post("/transactions/search", "{\"patient\":\"canary-patient\",\"text\":\"canary-text\",\"from\":\"2026-01-01\"}")
        .expect(200);
    node.post("/transactions/search", "{\"patient\":[\"canary-patient\"]}").expect(400);
    node.post("/clients", "{\"name\":\"c1\",\"password\":\"canary-password\"}").expect(201);
    node.post("/clients", "{\"name\":\"c2\",\"password\":{\"canary-password\":1}}").expect(400);
    node.with("PUT", "/clients/c1", "{\"token\":\"canary-token-0123456789\"}").expect(200);
    node.post(&format!("/transactions/{id}/rerun"), "").expect(201);
    call(node.admin, "GET", "/status", &basic("canary-user", "canary-wrong"), "").expect(401);
    call(node.admin, "GET", "/canary-path?canary=1", "", "").expect(401);
    node.records.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    node.post("/transactions/search", "{\"patient\":\"canary-patient\"}").expect(503);
    let metrics = node.get("/metrics").expect(200).text();
    assert!(metrics.contains("hie_admin_denied_total{kind=\"wrong\"}"), "{metrics}");
    assert!(!metrics.contains("canary"), "{metrics}");
    let log = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    assert!(log.contains("changed by an operator") && log.contains("wrong credential"), "{log}");
    let found: Vec<&str> = log.lines().filter(|l| l.contains("canary")).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(!log.contains(TOKEN));
}
