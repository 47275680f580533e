//! The FHIR corpus, POSTed through a proxy-mode channel: the upstream's response is relayed, and each transaction is
//! complete, with both bodies byte for byte.

mod harness;

use harness::channels::{queue, route};
use harness::http::{Client, Head, read_body};
use harness::ledger::{body, settled, text, transaction};
use harness::{Builder, Rng, corpus};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Answers 201 with a body made from the request's.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut input = BufReader::new(&stream);
                while let Ok(Some(head)) = Head::read(&mut input) {
                    let mut request = Vec::new();
                    read_body(&head, &mut input, false, |piece| request.extend_from_slice(piece)).ok()?;
                    let response = reply(&request);
                    let mut out = &stream;
                    write!(
                        out,
                        "HTTP/1.1 201 Created\r\nContent-Type: application/fhir+json\r\nLocation: Thing/1/_history/1\r\n\
                         ETag: W/\"1\"\r\nContent-Length: {}\r\n\r\n",
                        response.len()
                    )
                    .ok()?;
                    out.write_all(&response).ok()?;
                }
                Some(())
            });
        }
    });
    addr
}

fn reply(request: &[u8]) -> Vec<u8> {
    [b"taken: ", request].concat()
}

#[test]
fn every_resource_is_relayed_and_its_transaction_complete() {
    let Some(root) = corpus::root() else { return };
    let mut files = corpus::files(&root.join("fhir"), "json");
    assert!(files.len() > 500, "{} files", files.len());
    Rng::from_env("fhir").shuffle(&mut files);
    let target = format!("http = [\"http://{}/fhir\"]", upstream());
    let channel = queue("fhir.all", "protocol == \"http\" && resource != \"\"").replace("\"queue\"", "\"proxy\"");
    let node = Builder::new().channel(channel + &route("server", &target, "forward_path = true")).start();

    let mut told = Vec::new();
    std::thread::scope(|scope| {
        let node = &node;
        let threads: Vec<_> = files
            .chunks(files.len().div_ceil(4))
            .map(|part| {
                scope.spawn(move || {
                    let mut client = Client::connect(node.http, Duration::from_secs(20)).expect("a connection");
                    let mut told = Vec::new();
                    for (path, bytes) in part {
                        let json = [("Content-Type", "application/fhir+json")];
                        let answer = client.request("POST", "/Thing?x=1", &json, bytes).expect("an answer");
                        assert_eq!(answer.status, 201, "{}: {}", path.display(), answer.text());
                        assert_eq!(answer.body, reply(bytes), "{}: the response's bytes", path.display());
                        assert_eq!(answer.header("location"), Some("Thing/1/_history/1"));
                        assert_eq!(answer.header("etag"), Some("W/\"1\""));
                        let id = answer.header("x-hie-transaction-id").expect("the transaction's id").to_owned();
                        assert_eq!(answer.header("x-openhim-transactionid"), Some(id.as_str()));
                        told.push((id, path, bytes));
                    }
                    told
                })
            })
            .collect();
        for thread in threads {
            told.extend(thread.join().expect("a sender"));
        }
    });

    assert!(settled(&node, Duration::from_secs(30)), "{}", node.log_tail(20));
    for (id, path, bytes) in &told {
        let row = transaction(&node, id);
        assert_eq!(text(&row["status"]), "Successful", "{}: {row}", path.display());
        assert_eq!(row["response"]["status"], 201, "{}", path.display());
        assert_eq!(body(&node, id, "request").body, **bytes, "{}: the request as stored", path.display());
        assert_eq!(body(&node, id, "response").body, reply(bytes), "{}: the response as stored", path.display());
        let resource: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        assert_eq!(row["hie"]["type"], resource["resourceType"], "{}: the resource's type", path.display());
    }
    println!("{} resources relayed, {} transactions complete with both bodies", files.len(), told.len());
}
