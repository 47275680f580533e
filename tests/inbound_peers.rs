//! Who is at the other end: PROXY protocol, allow lists, TLS and mutual TLS.

mod inbound_support;

use hie::{
    config::{self, ServerTls},
    engine::ports::Denied,
    gateway::inbound::{http::ALPN, tls},
};
use inbound_support::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 2575\r\n";

fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13".to_vec();
    header.extend_from_slice(&[192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x0A, 0x0F]);
    // One extension (a NOOP of four bytes), as balancers like to add.
    header.extend_from_slice(&[4, 0, 4, 0, 0, 0, 0]);
    header
}

fn behind_balancer(from: &str) -> config::Mllp {
    config::Mllp { name: "balanced".into(), proxy_protocol_from: vec![from.parse().unwrap()], ..config::Mllp::default() }
}

#[tokio::test]
async fn the_sender_behind_a_balancer_is_seen() {
    let fake = Fake::accepting();
    let running = mllp(behind_balancer("127.0.0.0/8"), fake.clone()).await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".to_vec();
    for (header, remote) in [(V1.to_vec(), "192.0.2.7:56324"), (v2(), "192.0.2.7:56324"), (local, "127.0.0.1:")] {
        // In one piece with the frame, and byte for byte.
        for slowly in [false, true] {
            let mut client = Frames::new(connect(&running).await);
            if slowly {
                for byte in &header {
                    client.send(&[*byte]).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                client.send(&framed(&adt("1"))).await;
            } else {
                client.send(&[header.clone(), framed(&adt("1"))].concat()).await;
            }
            assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
            let seen = fake.seen.lock().unwrap().last().unwrap().remote.clone();
            assert!(seen.starts_with(remote), "{seen}");
        }
    }
    let (peer, _) = fake.identified.lock().unwrap()[0].clone();
    assert_eq!(peer.unwrap().to_string(), "192.0.2.7:56324");
}

#[tokio::test]
async fn a_header_that_is_absent_or_wrong_ends_the_connection() {
    let fake = Fake::accepting();
    let running = mllp(behind_balancer("127.0.0.0/8"), fake.clone()).await;
    for bad in [
        framed(&adt("1")),
        b"PROXY TCP4 nonsense\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1 99999\r\n".to_vec(),
        vec![b'P'; 200],
    ] {
        let mut client = Frames::new(connect(&running).await);
        client.send(&bad).await;
        assert!(client.ends(Duration::from_secs(2)).await);
    }
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn from_others_a_header_is_not_believed() {
    let fake = Fake::accepting();
    let running = mllp(behind_balancer("10.0.0.0/8"), fake.clone()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[V1.to_vec(), framed(&adt("1"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"), "to MLLP it is bytes between frames");
    assert!(fake.seen.lock().unwrap()[0].remote.starts_with("127.0.0.1:"));

    let running = http(config::Http::default(), fake.clone()).await;
    let mut client = connect(&running).await;
    client.write_all(&[V1, b"GET / HTTP/1.1\r\nHost: hie\r\n\r\n"].concat()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn allow_lists_look_at_the_sender_not_the_balancer() {
    let allow = |net: &str| config::Mllp { allow_ips: vec![net.parse().unwrap()], ..behind_balancer("127.0.0.1/32") };
    let running = mllp(allow("192.0.2.0/24"), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[v2(), framed(&adt("1"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));

    let running = mllp(allow("127.0.0.0/8"), Fake::accepting()).await;
    let mut client = Frames::new(connect(&running).await);
    client.send(&[v2(), framed(&adt("1"))].concat()).await;
    assert!(client.ends(Duration::from_secs(1)).await);

    let elsewhere = config::Http { allow_ips: vec!["10.0.0.0/8".parse().unwrap()], ..config::Http::default() };
    let running = http(elsewhere, Fake::accepting()).await;
    let mut client = connect(&running).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: hie\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("{\"error\":\"address not allowed\"}"), "{answer}");
}

/// A small authority with a server's and a client's certificate, as PEM files.
struct Pki {
    folder: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", authority.pem());
        for (name, usage) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
            let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            write(&format!("{name}.pem"), params.signed_by(&key, &authority).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn server(&self, client_ca: bool, client_required: bool) -> ServerTls {
        ServerTls {
            cert: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: client_ca.then(|| self.path("ca.pem")),
            client_required,
        }
    }

    fn connector(&self, with_certificate: bool, alpn: &[&[u8]]) -> TlsConnector {
        let certificates = |path: &Path| CertificateDer::from_pem_file(path).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&self.path("ca.pem"))).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = if with_certificate {
            let key = PrivateKeyDer::from_pem_file(self.path("client.key")).unwrap();
            builder.with_client_auth_cert(vec![certificates(&self.path("client.pem"))], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

#[tokio::test]
async fn mllps_and_mutual_tls() {
    let pki = Pki::new();
    let by_certificate = Fake::with_identity(
        |seen| Box::pin(async move { default_answer(&seen) }),
        |_, _, credentials| match credentials.certificate {
            Some(_) => Ok("certified".into()),
            None => Err(Denied::Unauthenticated),
        },
    );
    let acceptor = tls::acceptor(&pki.server(true, false), &[]).unwrap();
    let running = mllps(config::Mllp::default(), Some(acceptor), by_certificate.clone()).await;
    let stream = pki.connector(true, &[]).connect(localhost(), connect(&running).await).await.unwrap();
    let mut client = Frames::new(stream);
    client.send(&[framed(&adt("1")), framed(&adt("2"))].concat()).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 1"));
    assert_eq!(client.ack().await.as_deref(), Some("AA 2"));
    assert_eq!(by_certificate.seen.lock().unwrap()[0].client, "certified");
    let certificate = by_certificate.identified.lock().unwrap()[0].1.certificate.clone().unwrap();
    assert_eq!(&certificate[..], &CertificateDer::from_pem_file(pki.path("client.pem")).unwrap()[..]);

    // Without a certificate: let through the handshake, denied by the engine.
    let stream = pki.connector(false, &[]).connect(localhost(), connect(&running).await).await.unwrap();
    assert!(Frames::new(stream).ends(Duration::from_secs(1)).await);

    // Drained: the acknowledgment, then a proper end of the TLS stream.
    running.drain.cancel();
    client.send(&framed(&adt("3"))).await;
    assert_eq!(client.ack().await.as_deref(), Some("AA 3"));
    assert_eq!(client.io.read(&mut [0; 16]).await.unwrap(), 0, "close_notify");

    // Required: refused in the handshake (TLS 1.3 tells at the first read).
    let acceptor = tls::acceptor(&pki.server(true, true), &[]).unwrap();
    let running = mllps(config::Mllp::default(), Some(acceptor), Fake::accepting()).await;
    let refused = match pki.connector(false, &[]).connect(localhost(), connect(&running).await).await {
        Ok(mut stream) => stream.read(&mut [0; 16]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);

    // Plain MLLP to an MLLPS port.
    let mut client = Frames::new(connect(&running).await);
    client.send(&framed(&adt("4"))).await;
    assert_eq!(client.ack().await, None);
}

#[tokio::test]
async fn https_speaks_both_versions() {
    let pki = Pki::new();
    let fake = Fake::accepting();
    let acceptor = tls::acceptor(&pki.server(false, false), ALPN).unwrap();
    let running = https(config::Http::default(), Some(acceptor), fake.clone()).await;
    let offers: [&[&[u8]]; 3] = [&[], &[b"http/1.1"], &[b"h2", b"http/1.1"]];
    for alpn in offers {
        let mut stream = pki.connector(false, alpn).connect(localhost(), connect(&running).await).await.unwrap();
        if alpn.len() == 2 {
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            continue;
        }
        stream.write_all(b"POST / HTTP/1.1\r\nHost: hie\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    assert_eq!(fake.seen.lock().unwrap()[0].listener, "https");

    let ca = reqwest::Certificate::from_pem(&std::fs::read(pki.path("ca.pem")).unwrap()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_certs_only([ca]).resolve("localhost", running.address).build().unwrap();
    let url = format!("https://localhost:{}/x", running.address.port());
    let response = client.post(url).body("over h2").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (202, reqwest::Version::HTTP_2));
    assert_eq!(&fake.bodies().last().unwrap()[..], b"over h2");
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let pki = Pki::new();
    std::fs::write(pki.path("empty.pem"), "").unwrap();
    std::fs::write(pki.path("der.pem"), b"\x30\x82\x01\x00").unwrap();
    let told = |change: fn(&mut ServerTls, &Pki)| {
        let mut config = pki.server(false, false);
        change(&mut config, &pki);
        match tls::acceptor(&config, &[]) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    };
    let text = told(|c, p| c.cert = p.path("nowhere.pem"));
    assert!(text.contains("nowhere.pem") && text.contains("must exist"), "{text}");
    let text = told(|c, p| c.cert = p.path("empty.pem"));
    assert!(text.contains("empty.pem") && text.contains("BEGIN CERTIFICATE"), "{text}");
    let text = told(|c, p| c.key = p.path("der.pem"));
    assert!(text.contains("der.pem") && text.contains("not encrypted"), "{text}");
    let text = told(|c, p| c.key = p.path("client.key"));
    assert!(text.contains("client.key") && text.contains("server.pem"), "{text}");
    let text = told(|c, _| c.client_required = true);
    assert!(text.contains("client_ca"), "{text}");
    let text = told(|c, p| c.client_ca = Some(p.path("empty.pem")));
    assert!(text.contains("empty.pem"), "{text}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_credential_that_is_being_checked_keeps_no_other_sender_waiting() {
    let mut fake = Arc::into_inner(Fake::with_identity(
        |seen| Box::pin(async move { default_answer(&seen) }),
        |_, _, credentials| match &credentials.authorization {
            Some(_) => Err(Denied::Busy),
            None => Ok("anonymous".into()),
        },
    ))
    .unwrap();
    let (done, _) = tokio::sync::watch::channel(false);
    fake.checks = Some(done.clone());
    let running = http(config::Http::default(), Arc::new(fake)).await;
    let request = |more: &str| format!("POST / HTTP/1.1\r\nHost: n\r\n{more}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    let mut checked = connect(&running).await;
    checked.write_all(request("Authorization: Basic eDp5\r\n").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // One thread serves both: only a check that does not hold it lets this one through.
    let mut other = connect(&running).await;
    other.write_all(request("").as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), other.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    done.send_replace(true);
    let mut answer = String::new();
    checked.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "too many checks: {answer}");
}
