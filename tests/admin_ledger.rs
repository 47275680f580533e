//! The management API over the real ledger.

mod admin_support;

use admin_support::{FakeRecords, Node, envelope};
use bytes::Bytes;
use hie::{
    channel::{Mode, Storage},
    config,
    engine::{
        fact::{Accepted, Attempt, BodyRef, Fact, Keeper, Outcome, What},
        ports::{Append, CommitSink, Committed, Log},
    },
    ledger::{Ledger, Options},
    message::{MessageId, Protocol},
};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

struct Nobody;

impl CommitSink for Nobody {
    fn committed(&self, _: Vec<Committed>) {}
}

fn open(folder: &tempfile::TempDir) -> Arc<Ledger> {
    let options = Options::new(folder.path().join("ledger"), config::Ledger::default());
    let ledger = Ledger::open(Options { free_space: Box::new(|| Some(1 << 40)), ..options }).unwrap();
    ledger.start(Arc::new(Nobody)).unwrap();
    Arc::new(ledger)
}

/// A message accepted by `lab.results`; its delivery on `ehr` ends as told.
async fn message(ledger: &Ledger, body: &str, outcome: Outcome, change: impl FnOnce(&mut hie::message::Envelope)) -> MessageId {
    let mut envelope = envelope(Protocol::Mllp, body.as_bytes(), None);
    envelope.patients.clear();
    change(&mut envelope);
    let (id, at) = (envelope.id, envelope.received_ms);
    let accepted = Accepted {
        envelope,
        channel: "lab.results".into(),
        mode: Mode::Queue,
        storage: Storage::All,
        routes: vec!["ehr".into()],
        idempotent: false,
        body: BodyRef::Own,
        body_hash: 1,
        resend_key: 0,
        keeper: Keeper::Log,
    };
    let fact = Fact { id, home: 0, at, what: What::Accepted(Box::new(accepted)) };
    let home = ledger.append(Append { fact, body: Some(Bytes::copy_from_slice(body.as_bytes())), deliver: true }).await.unwrap();
    let attempt = Attempt {
        route: "ehr".into(),
        number: 1,
        target: "ehr-a:2575".into(),
        took_ms: 3,
        outcome,
        status: 0,
        ack: "AA".into(),
        error: String::new(),
        response: BodyRef::Own,
        response_len: 6,
        inside: 0,
    };
    let fact = Fact { id, home, at: at + 5, what: What::Attempt(Box::new(attempt)) };
    ledger.append(Append { fact, body: Some(Bytes::from_static(b"MSA|AA")), deliver: false }).await.unwrap();
    id
}

fn ids(answer: &Value) -> Vec<String> {
    answer.as_array().unwrap().iter().map(|t| t["_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_is_found_shown_and_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder);
    let first = message(&ledger, "MSH|one needle", Outcome::Delivered, |e| e.patients = vec!["P1".into()]).await;
    let second = message(&ledger, "MSH|two", Outcome::Parked, |e| {
        e.control_id = Some("C2".into());
        e.parent = Some(first);
        e.received_ms += 1000;
    })
    .await;
    let node = Node::over(ledger, Arc::new(FakeRecords::default()));
    let search = |what: Value| ids(&node.post("/transactions/search", &what.to_string()).expect(200).json());
    let (one, two) = (first.to_string(), second.to_string());
    assert_eq!(search(json!({})), [two.clone(), one.clone()]);
    assert_eq!(search(json!({"patient": "P1"})), std::slice::from_ref(&one));
    assert_eq!(search(json!({"patient": "P2"})), [""; 0]);
    assert_eq!(search(json!({"controlId": "C2"})), std::slice::from_ref(&two));
    assert_eq!(search(json!({"parent": one})), std::slice::from_ref(&two));
    assert_eq!(search(json!({"text": "NEEDLE", "from": "2026-01-01"})), std::slice::from_ref(&one));
    assert_eq!(search(json!({"filters": {"_id": two}})), std::slice::from_ref(&two));
    // `to` is exclusive.
    assert_eq!(search(json!({"to": "2026-02-01T00:00:01.007Z"})), std::slice::from_ref(&one));
    assert_eq!(
        ids(&node.get("/transactions?status=Parked&channel=lab.results&client=lab&type=ORU%5ER01").json()),
        std::slice::from_ref(&two)
    );
    assert_eq!(ids(&node.get("/transactions?channel=no.such").json()), [""; 0]);

    let shown = node.get(&format!("/transactions/{first}")).expect(200).json();
    assert_eq!((&shown["status"], &shown["childIDs"]), (&json!("Successful"), &json!([two])));
    assert_eq!((&shown["request"]["body"], &shown["response"]["body"]), (&json!("MSH|one needle"), &json!("MSA|AA")));
    assert_eq!(node.get(&format!("/transactions/{first}/body/ehr?attempt=1")).expect(200).body, b"MSA|AA");
    node.get(&format!("/transactions/{}", MessageId::now())).expect(404);
    node.post(&format!("/transactions/{first}/rerun"), "").expect(201);
    assert_eq!(node.control.reruns.lock().unwrap()[..], [(first, b"MSH|one needle".to_vec())]);
    let status = node.get("/status").expect(200).json();
    assert_eq!((&status["ledger"]["transactions"], &status["problems"]), (&json!(2), &json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_finds_all_that_are_parked_and_lists_stay_quick() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder);
    let mut parked = Vec::new();
    let waiting: Vec<_> = (0..2500)
        .map(|i| {
            let ledger = ledger.clone();
            let outcome = if i % 2 == 0 { Outcome::Parked } else { Outcome::Delivered };
            tokio::spawn(async move { (outcome, message(&ledger, &format!("MSH|{i}"), outcome, |_| {}).await) })
        })
        .collect();
    for task in waiting {
        let (outcome, id) = task.await.unwrap();
        parked.extend((outcome == Outcome::Parked).then_some(id));
    }
    let node = Node::over(ledger, Arc::new(FakeRecords::default()));
    let start = Instant::now();
    assert_eq!(ids(&node.get("/transactions?filterLimit=1000").expect(200).json()).len(), 1000);
    println!("a list of 1000: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));

    let task = node.post("/tasks", r#"{"parked":true,"rate":1000}"#).expect(201).json();
    let start = Instant::now();
    let ended = loop {
        let now = node.get(&format!("/tasks/{}", task["_id"].as_str().unwrap())).expect(200).json();
        if now["status"] == "Completed" {
            break now;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{}", now["hie"]);
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!((&ended["hie"]["done"], &ended["totalTransactions"]), (&json!(1250), &json!(1250)));
    let mut requeued = node.control.requeued.lock().unwrap().clone();
    requeued.sort();
    parked.sort();
    assert_eq!(requeued, parked);
}
