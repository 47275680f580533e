//! What the command line asks of the management API, and how it shows the answers: against a server that answers as
//! told and keeps what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
    sync::mpsc,
};

const TX: &str = r#"{"_id":"0198","clientID":"lab","channelID":"lab.results","status":"Parked","request":{"timestamp":"2026-01-31T08:00:00Z"},
"childIDs":[],"hie":{"type":"ORU^R01","controlId":"C\u001b[31m1","protocol":"mllp","listener":"lis","remote":"10.0.0.1:5","resends":0,
"attempts":[{"route":"ehr","attempt":2,"target":"ehr:2575","timestamp":"2026-01-31T08:00:01Z","tookMs":5,"outcome":"Parked","status":0,"ack":"AE","error":""}],
"bodies":{"request":{"length":120}}}}"#;

struct Asked {
    line: String,
    token: String,
    body: String,
}

/// Runs `hie` against a server that gives one answer; what it printed, and what it asked.
fn ask(status: &str, answer: &str, args: &[&str], stdin: &str) -> (Output, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("address");
    let (send, asked) = mpsc::channel();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}", answer.len());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a request");
        let mut reader = BufReader::new(stream.try_clone().expect("a clone"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("a line"), 0);
        }
        let header = |name: &str| {
            let found = head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body).expect("the body");
        stream.write_all(answer.as_bytes()).expect("answered");
        let line = head.lines().next().unwrap_or_default().to_owned();
        let body = String::from_utf8(body).expect("UTF-8");
        send.send(Asked { line, token: header("authorization"), body }).expect("told");
    });
    let dir = tempfile::tempdir().expect("a folder");
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("a token");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hie"));
    command.args(args).args(["--url", &format!("http://{address}")]).arg("--token-file").arg(&token);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("hie runs");
    child.stdin.take().expect("standard input").write_all(stdin.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    (output, asked.recv().expect("it asked"))
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn searches_are_posted_so_that_no_patient_is_in_a_url() {
    let args = ["tx", "list", "--patient", "-", "--status", "Parked", "--limit", "3"];
    let (output, asked) = ask("200 OK", &format!("[{TX}]"), &args, "12345\n");
    assert_eq!(asked.line, "POST /transactions/search HTTP/1.1");
    assert_eq!(asked.token, "Bearer s3cret");
    let body: serde_json::Value = serde_json::from_str(&asked.body).expect("JSON");
    let expected = serde_json::json!({ "patient": "12345", "status": "Parked", "filterLimit": 3, "filterPage": 0,
        "filterRepresentation": "simple" });
    assert_eq!(body, expected);
    let printed = printed(&output);
    assert!(printed.contains("0198  2026-01-31T08:00:00Z  Parked  lab.results  lab     ORU^R01"), "{printed}");
    assert!(!printed.contains('\x1b'), "a message must not steer the terminal");
}

#[test]
fn a_transaction_is_shown_with_its_attempts_and_its_body_is_downloaded() {
    let (output, asked) = ask("200 OK", TX, &["tx", "show", "0198"], "");
    assert_eq!(asked.line, "GET /transactions/0198 HTTP/1.1");
    let printed = printed(&output);
    for expected in ["status      Parked", "from        lis 10.0.0.1:5", "ehr:2575", "AE"] {
        assert!(printed.contains(expected), "{expected} is not in {printed}");
    }
    let (output, asked) = ask("200 OK", "MSH|\r", &["tx", "show", "a/b", "--body", "request"], "");
    assert_eq!(asked.line, "GET /transactions/a%2Fb/body/request HTTP/1.1");
    assert_eq!(output.stdout, b"MSH|\r");
}

#[test]
fn reruns_are_single_or_tasks() {
    let (output, asked) = ask("201 Created", r#"{"_id":"0199"}"#, &["tx", "rerun", "0198"], "");
    assert_eq!(asked.line, "POST /transactions/0198/rerun HTTP/1.1");
    assert_eq!(printed(&output), "runs again as 0199\n");
    let args = ["tx", "rerun", "0198", "--parked", "--route", "ehr"];
    let (_, asked) = ask("200 OK", r#"{"deliveries":1}"#, &args, "");
    assert_eq!((asked.line.as_str(), asked.body.as_str()), ("POST /transactions/0198/requeue HTTP/1.1", r#"{"route":"ehr"}"#));
    let task = r#"{"_id":"t","status":"Completed","totalTransactions":2,"hie":{"done":1,"failed":1}}"#;
    let (output, asked) = ask("202 Accepted", task, &["tx", "rerun", "--channel", "a.b", "--rate", "5", "--wait"], "");
    assert_eq!(asked.line, "POST /tasks HTTP/1.1");
    let body: serde_json::Value = serde_json::from_str(&asked.body).expect("JSON");
    assert_eq!(body, serde_json::json!({ "parked": false, "rate": 5, "filter": { "channel": "a.b" } }));
    assert_eq!(output.status.code(), Some(1), "one failed");
}

#[test]
fn routes_are_listed_held_and_let_go() {
    let route = r#"{"channel":"a.b","route":"r/1","primary":true,"paused":true,"pending":7,"in_flight":0,"parked":1,"oldest_ms":61000,"last_error":"x"}"#;
    let (output, asked) = ask("200 OK", &format!("[{route}]"), &["route", "list"], "");
    assert_eq!(asked.line, "GET /routes HTTP/1.1");
    let list = printed(&output);
    assert!(list.contains("r/1 (primary)  paused  7") && list.contains("1m 1s"), "{list}");
    for action in ["pause", "resume"] {
        let (output, asked) = ask("200 OK", route, &["route", action, "a.b", "r/1"], "");
        assert_eq!(asked.line, format!("POST /routes/a.b/r%2F1/{action} HTTP/1.1"));
        printed(&output);
    }
}

#[test]
fn status_says_by_its_exit_code_whether_the_node_accepts() {
    let status = |ready: bool| {
        format!(
            r#"{{"node":"n","domain":"d","version":"1","uptime":61.5,"ready":{ready},"missing":["disk"],"pending":3,"parked":0,"memory":1048576}}"#
        )
    };
    let (output, asked) = ask("200 OK", &status(true), &["status"], "");
    assert_eq!(asked.line, "GET /status HTTP/1.1");
    assert!(printed(&output).contains("up for          1m 1s"));
    let (output, _) = ask("200 OK", &status(false), &["status", "--json"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok());
}

#[test]
fn refusals_are_told_with_the_nodes_own_words() {
    let error = r#"{"error":"credentials not accepted","hint":"show the token"}"#;
    let (output, _) = ask("401 Unauthorized", error, &["channel", "list"], "");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("credentials not accepted; show the token (the token of ") && !said.contains("s3cret"), "{said}");
    let (output, _) = ask("503 Service Unavailable", r#"{"error":"busy"}"#, &["client", "list"], "");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(69), "hie: busy\n"));
    let (output, _) = ask("404 Not Found", "", &["tx", "show", "x"], "");
    assert_eq!(output.status.code(), Some(1));
}
