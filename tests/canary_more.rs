//! Tries to break the same promise as `canary.rs` on the remaining paths: certificates' subjects, watched folders (names and
//! contents), routes into folders, running again singly and as a task, oversized headers, broken JSON and unknown paths on
//! every listener, and what MLLP refuses. In JSON at the finest level, and in text at level debug.

mod harness;

use harness::canary::{CANARIES, adt, search, told};
use harness::channels::{queue, route};
use harness::http::{Client, once};
use harness::wire::{frame, text};
use harness::{Builder, Node, Peer, Receiver, wait_until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Two authorities; certificates whose subjects are canaries, as PEM files.
struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: String, text: String| fs::write(folder.path().join(name), text).expect("written");
        let authority = || {
            let mut params = CertificateParams::new(vec![]).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
        };
        let (ours, others) = (authority(), authority());
        write("ca.pem".into(), ours.pem());
        for (name, subject, expired) in [
            ("server", "server", false),
            ("known", "ZZSUBJECTZZ-known", false),
            ("unknown", "ZZSUBJECTZZ-unknown", false),
            ("expired", "ZZSUBJECTZZ-expired", true),
            ("foreign", "ZZSUBJECTZZ-foreign", false),
        ] {
            let mut params =
                CertificateParams::new(vec![if name == "server" { "localhost" } else { "zzsubjectzz.example" }.into()])
                    .expect("parameters");
            params.distinguished_name.push(DnType::CommonName, subject);
            params.distinguished_name.push(DnType::OrganizationName, "ZZSUBJECTZZ");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            if expired {
                params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            }
            let key = KeyPair::generate().expect("a key");
            let issuer = if name == "foreign" { &others } else { &ours };
            write(format!("{name}.pem"), params.signed_by(&key, issuer).expect("signed").pem());
            write(format!("{name}.key"), key.serialize_pem());
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self) -> String {
        let (cert, key, ca) = (self.path("server.pem"), self.path("server.key"), self.path("ca.pem"));
        format!("cert = {cert:?}\nkey = {key:?}\nclient_ca = {ca:?}\n")
    }

    /// Sends `bytes` with this certificate and gives what came back; nothing when the handshake failed.
    fn send(&self, to: SocketAddr, certificate: Option<&str>, bytes: &[u8]) -> Vec<u8> {
        let pem = |name: &str| CertificateDer::from_pem_file(self.path(name)).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pem("ca.pem")).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(roots);
        let config = match certificate {
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(vec![pem(&format!("{name}.pem"))], key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
        let stream = TcpStream::connect(to).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let mut tls = rustls::StreamOwned::new(session, stream);
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        if tls.write_all(bytes).is_ok() {
            while !all.ends_with(b"\x1c\r") && !all.starts_with(b"HTTP/1.1 ") {
                match tls.read(&mut buffer) {
                    Ok(n) if n > 0 => all.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
        }
        all
    }
}

struct Laid {
    node: Node,
    pki: Pki,
    mllps: SocketAddr,
    https: SocketAddr,
    folders: tempfile::TempDir,
}

fn lay_out(args: [&str; 4], lis: &Receiver) -> Laid {
    let (pki, folders) = (Pki::new(), tempfile::tempdir().expect("a folder"));
    let folder = |name: &str| {
        let path = folders.path().join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    };
    let (mllps, https) = (harness::node::free_port(), harness::node::free_port());
    let (drop, out, gone) = (folder("drop"), folder("out"), folder("gone"));
    let hl7 = |code: &str| format!("protocol != \"http\" && hl7(\"MSH-9.2\") == \"{code}\"");
    let into = |path: &Path, name: &str| format!("file = {{ directory = {path:?}, name = \"{name}\" }}");
    let mut builder = Builder::new();
    for arg in args {
        builder = builder.arg(arg);
    }
    let node = builder
        .mllp("max_frame = \"64 KiB\"")
        .http(&format!("tls_listen = \"{https}\"\nmax_header_bytes = \"16 KiB\""))
        .section(&format!("[http.tls]\n{}", pki.server()))
        .section(&format!(
            "[[mllp]]\nname = \"mllps\"\nlisten = \"{mllps}\"\nrequire_client = true\n[mllp.tls]\n{}",
            pki.server()
        ))
        .section(&format!("[[file]]\nname = \"drop\"\ndirectory = {drop:?}\npoll = \"50ms\"\nsettle = \"50ms\"\n"))
        .section("[limits]\nmax_body = \"256 KiB\"\n")
        .channel(queue("t.lis", &hl7("A01")) + "priority = 1\n" + &route("lis", &lis.target(), ""))
        .channel(
            queue("t.out", &hl7("A02"))
                + "priority = 2\n"
                + &route("out", &into(&out, "{id}.hl7"), "")
                + &route("fixed", &into(&out, "{kind}-{id}.hl7"), ""),
        )
        .channel(queue("t.gone", &hl7("A03")) + "priority = 3\n" + &route("gone", &into(&gone, "{time}-{id}.hl7"), ""))
        .channel(queue("t.closed", &hl7("A04")) + "priority = 4\nallow = [\"known\"]\n" + &route("lis", &lis.target(), ""))
        .channel(
            queue("t.fhir", "protocol == \"http\" && resource == \"Patient\"")
                + "priority = 5\n"
                + &route("out", &into(&out, "{id}"), ""),
        )
        .lay_out();
    let clients = node.dir().join("clients.d");
    fs::create_dir(&clients).expect("clients.d");
    let known = "[[client]]\nname = \"known\"\ncertificate = \"ZZSUBJECTZZ-known\"\nrate = { per_second = 0.05, burst = 3 }\n";
    fs::write(clients.join("c.toml"), known).expect("clients");
    fs::remove_dir(&gone).expect("a folder that is not there");
    Laid { node, pki, mllps, https, folders }
}

fn run(args: [&str; 4]) {
    let mut lis = Receiver::willing();
    let mut laid = lay_out(args, &lis);
    laid.node.start();
    certificates(&laid);
    watched_folder(&laid);
    refusals(&laid);
    for port in [laid.node.http, laid.node.admin, laid.node.health] {
        bad_requests(&laid.node, port);
    }
    let ids = stored(&laid.node);
    again(&laid.node, &ids);
    lis.down();
    again(&laid.node, &ids[..1]);
    std::thread::sleep(Duration::from_millis(500));
    let mut texts = told(&laid.node);
    let status = laid.node.stop(Duration::from_secs(30));
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
    texts.push(("the log", laid.node.log()));
    assert!(texts[texts.len() - 1].1.lines().count() > 30, "the log is talkative enough to tell something");
    search(&laid.node, &texts);
    for name in fs::read_dir(laid.folders.path().join("out")).expect("the folder").flatten().map(|e| e.file_name()) {
        let name = name.to_string_lossy().into_owned();
        assert!(CANARIES.iter().all(|c| !name.contains(c)), "a name made by the node: {name}");
    }
}

#[test]
fn a_json_log_at_the_finest_level_tells_nothing_of_them() {
    run(["--log", "json", "--log-level", "trace"]);
}

#[test]
fn a_text_log_at_level_debug_tells_nothing_of_them() {
    run(["--log", "text", "--log-level", "debug"]);
}

/// A known client until its rate is used up, one that nobody knows, and certificates that are not to be trusted.
fn certificates(laid: &Laid) {
    let mut codes = Vec::new();
    for n in 0..5 {
        let answer = laid.pki.send(laid.mllps, Some("known"), &frame(&adt("ADT^A01", &format!("C{n}"))));
        codes.push(text(answer.strip_prefix(b"\x0b").unwrap_or_default(), "MSA", 1));
    }
    assert_eq!(codes[..3], ["AA", "AA", "AA"], "{codes:?}");
    assert!(codes.contains(&"AE".to_owned()) || codes.contains(&"AR".to_owned()), "the rate is refused: {codes:?}");
    for name in [Some("unknown"), Some("expired"), Some("foreign"), None] {
        let answer = laid.pki.send(laid.mllps, name, &frame(&adt("ADT^A01", "X")));
        assert!(answer.is_empty(), "{name:?}: {}", String::from_utf8_lossy(&answer));
    }
    let request = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\nConnection: close\r\n\r\nZZBODYZZ";
    for name in [Some("known"), Some("unknown"), Some("expired"), Some("foreign"), None] {
        laid.pki.send(laid.https, name, request);
    }
    // Plain bytes where TLS is expected.
    for port in [laid.mllps, laid.https] {
        let mut stream = TcpStream::connect(port).expect("a connection");
        let _ = stream.write_all(&frame(&adt("ADT^A01", "PLAIN")));
    }
}

/// Files that are taken, refused, too large, empty, a batch, and one that is no file; all with canaries for names.
fn watched_folder(laid: &Laid) {
    let folder = laid.folders.path().join("drop");
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("a file");
    put("ZZFILEZZ-1.hl7", &adt("ADT^A01", "F1"));
    put("ZZFILEZZ-2.hl7", &adt("ADT^A99", "F2")); // no channel
    put("ZZFILEZZ-3.hl7", b"ZZBODYZZ, no HL7");
    put("ZZFILEZZ-4.hl7", &vec![b'Z'; 400 * 1024]);
    put("ZZFILEZZ-5.hl7", b"");
    put("ZZFILEZZ-6.hl7", &[b"FHS|^~\\&|ZZFACILITYZZ\r".to_vec(), adt("ADT^A02", "F6"), adt("ADT^A99", "F7")].concat());
    put("ZZFILEZZ-7.json", b"{\"resourceType\":\"Patient\",\"id\":\"ZZPATIENTZZ\", ZZJSONZZ");
    fs::create_dir(folder.join("ZZFILEZZ-8.hl7")).expect("a folder");
    std::os::unix::fs::symlink("/nowhere/ZZFILEZZ", folder.join("ZZFILEZZ-9.hl7")).expect("a link");
    // What is taken is in the way already, and a folder that cannot be written to.
    fs::create_dir_all(folder.join("done/ZZFILEZZ-10.hl7")).expect("a folder");
    put("ZZFILEZZ-10.hl7", &adt("ADT^A01", "F10"));
    let taken = wait_until(Duration::from_secs(15), || {
        !folder.join("ZZFILEZZ-1.hl7").exists() && !folder.join("ZZFILEZZ-6.hl7").exists()
    });
    assert!(taken, "the folder is watched\n{}", laid.node.log_tail(20));
    assert!(folder.join("failed").read_dir().is_ok_and(|mut d| d.next().is_some()), "and files are refused");
    // The whole folder goes away for a while.
    let aside = laid.folders.path().join("aside");
    fs::rename(&folder, &aside).expect("renamed");
    std::thread::sleep(Duration::from_millis(300));
    fs::rename(&aside, &folder).expect("renamed back");
}

/// Everything that MLLP has an error for.
fn refusals(laid: &Laid) {
    let mut peer = Peer::connect(laid.node.mllp);
    for trigger in ["A01", "A02", "A02", "A03", "A04", "A99"] {
        peer.exchange(&adt(&format!("ADT^{trigger}"), trigger)); // A04: not allowed, A99: no channel
    }
    let mut large = adt("ADT^A01", "LARGE");
    large.resize(300 * 1024, b'Z');
    for refused in [
        &b"MSH|^~\\&|ZZFACILITYZZ"[..],
        b"MSH",
        b"",
        b"ZZBODYZZ",
        b"PID|1||ZZPATIENTZZ||ZZNAMEZZ",
        b"MSH|^~\\&|A|B|C|D|20250101||ADT^A01||P|2.5\rPID|1||ZZPATIENTZZ\r",
        b"MSH|^~\\&|A|B|C|D|20250101||ZZBODYZZ^ZZBODYZZ|ZZCONTROLZZ|ZZ|ZZ\r",
        b"MSH|^~\\&|A|B|C|D|20250101||ADT^A01|ZZCONTROLZZ|P|2.5||||||ZZBODYZZ\r",
        b"MSH|^~\\&|A|B|C|D|20250101||ADT^A01|ZZCONTROLZZ|P|2.5||||||UNICODE UTF-16\rPID|1||ZZPATIENTZZ\r",
        b"BHS|^~\\&|ZZFACILITYZZ\rBTS|ZZBODYZZ\r",
        b"MSHZZNAMEZZ",
        &large,
    ] {
        let answer = peer.raw(&frame(refused)).and_then(|()| peer.answer());
        if !matches!(answer, Ok(Some(_))) {
            peer = Peer::connect(laid.node.mllp);
        }
    }
}

/// What no client should send to this listener.
fn bad_requests(node: &Node, port: SocketAddr) {
    let long = "ZZHEADERZZ".repeat(10_000);
    let many: String = (0..300).map(|n| format!("ZZHEADERZZ-{n}: ZZHEADERZZ\r\n")).collect();
    for raw in [
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        "GET / HTTP/1.1\r\nHost: ZZHEADERZZ ZZHEADERZZ\r\nX Y: ZZHEADERZZ\r\n\r\n".into(),
        "POST /transactions/search HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{\"patient\": \"ZZSEARCHZZ".into(),
        "ZZQUERYZZ ZZQUERYZZ ZZQUERYZZ\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZBODYZZ\r\n".into(),
    ] {
        let mut client = Client::connect(port, Duration::from_secs(2)).expect("a connection");
        let _ = client.raw(raw.as_bytes());
        let _ = client.response();
    }
    let token = format!("Bearer {}", node.token());
    let json = ("Content-Type", "application/json");
    let authorization = ("Authorization", token.as_str());
    // The management token belongs to its own listener only.
    let headers: &[(&str, &str)] = if port == node.admin { &[json, authorization] } else { &[json] };
    for (method, path) in [
        ("GET", "/ZZQUERYZZ?ZZQUERYZZ=ZZQUERYZZ"),
        ("GET", "/transactions/ZZSEARCHZZ"),
        ("GET", "/transactions?filters=ZZSEARCHZZ&filterLimit=ZZSEARCHZZ&ZZQUERYZZ=1"),
        ("GET", "/channels/ZZSEARCHZZ"),
        ("PUT", "/channels/ZZSEARCHZZ"),
        ("POST", "/channels"),
        ("POST", "/clients"),
        ("DELETE", "/clients/ZZSEARCHZZ"),
        ("POST", "/tasks"),
        ("POST", "/transactions/search"),
        ("POST", "/routes/ZZSEARCHZZ/ZZSEARCHZZ/pause"),
        ("ZZQUERYZZ", "/transactions"),
        ("GET", "/health/ZZQUERYZZ"),
    ] {
        for body in ["{\"ZZJSONZZ\": ZZJSONZZ", "{\"ZZJSONZZ\": \"ZZJSONZZ\"}", "[{\"ZZJSONZZ\": 1}]", "ZZBODYZZ", ""] {
            let _ = once(port, method, path, headers, body.as_bytes());
        }
    }
    if port == node.http {
        let fhir = [("Content-Type", "application/fhir+json"), ("X-Note", "ZZHEADERZZ")];
        for body in [
            "{\"resourceType\":\"Patient\",\"id\":\"ZZPATIENTZZ\"}",
            "{\"resourceType\": ZZJSONZZ",
            "{\"resourceType\":\"ZZJSONZZ\"}",
        ] {
            let _ = once(port, "POST", "/fhir/ZZQUERYZZ?ZZQUERYZZ", &fhir, body.as_bytes());
        }
    }
}

/// The ids of what was accepted with canaries in it, which are in the ledger, where they belong.
fn stored(node: &Node) -> Vec<String> {
    let mut ids = Vec::new();
    let found = wait_until(Duration::from_secs(15), || {
        let rows = harness::ledger::transactions(node);
        let ended = rows.iter().filter(|row| row["status"] == "Successful");
        ids = ended.filter_map(|row| row["_id"].as_str().map(str::to_owned)).collect();
        ids.len() >= 4
    });
    assert!(found, "messages were delivered: {}\n{}", node.get("/transactions").text(), node.log_tail(20));
    let bodies: String = ids.iter().map(|id| harness::ledger::transaction(node, id).to_string()).collect();
    assert!(bodies.contains("ZZNAMEZZ") && bodies.contains("ZZCONTROLZZ"));
    ids
}

/// Runs them again, one by one, as a task by ids, and as a task by what is in them.
fn again(node: &Node, ids: &[String]) {
    let list = ids.iter().map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(",");
    let mut taken = 0;
    for body in [
        format!("{{\"tids\":[{list}]}}"),
        "{\"filter\":{\"patient\":\"ZZPATIENTZZ\"}}".into(),
        "{\"filter\":{\"controlId\":\"ZZCONTROLZZA01\"}}".into(),
        "{\"filter\":{\"ZZSEARCHZZ\":\"ZZSEARCHZZ\"}}".into(),
        "{\"tids\":[\"ZZSEARCHZZ\"]}".into(),
    ] {
        taken += u32::from(node.post("/tasks", &body).status < 300);
    }
    assert!(taken >= 2, "tasks by ids and by filter are taken\n{}", node.get("/tasks").text());
    for id in ids {
        node.post(&format!("/transactions/{id}/rerun"), "");
    }
    let rest = || node.get("/tasks").json().as_array().is_some_and(|all| all.iter().all(|t| t["status"] != "Processing"));
    assert!(wait_until(Duration::from_secs(15), rest), "{}", node.get("/tasks").text());
}
