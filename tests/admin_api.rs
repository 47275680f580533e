//! Every resource of the management API, over real HTTP.

mod admin_support;

use admin_support::{Node, channel};
use hie::{
    channel::client,
    engine::{
        fact::{BodyRef, Status, What},
        ports::{Control, Credentials},
    },
    message::envelope::HeaderBytes,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

#[test]
fn a_transaction_as_openhim_shows_one() {
    let node = Node::start();
    let id = node.records.hl7(b"MSH|^~\\&|LAB\rPID|||1\r").to_string();
    let t = node.get(&format!("/transactions/{id}")).expect(200).json();
    assert_eq!(t["_id"], *id);
    assert_eq!(
        (&t["clientID"], &t["channelID"], &t["status"]),
        (&json!("lab"), &json!("lab.results"), &json!("Completed with error(s)"))
    );
    assert_eq!((&t["clientIP"], &t["canRerun"], &t["autoRetry"]), (&json!("10.0.0.1"), &json!(true), &json!(false)));
    assert_eq!(
        (&t["request"]["body"], &t["request"]["timestamp"]),
        (&json!("MSH|^~\\&|LAB\rPID|||1\r"), &json!("2026-02-01T00:00:00.007Z"))
    );
    assert_eq!(t["response"]["body"], json!("MSH|ack\rMSA|AA|1\r"));
    assert_eq!(t["routes"].as_array().unwrap().len(), 1);
    assert_eq!((&t["routes"][0]["name"], &t["routes"][0]["state"]), (&json!("archive"), &json!("Parked")));
    assert_eq!((&t["routes"][0]["response"]["status"], &t["routes"][0]["response"]["body"]), (&json!(422), &json!("no")));
    assert_eq!(t["routes"][0]["error"]["message"], json!("answered 422"));
    let attempts: Vec<_> =
        t["hie"]["attempts"].as_array().unwrap().iter().map(|a| (a["route"].clone(), a["outcome"].clone())).collect();
    assert_eq!(
        attempts,
        [(json!("ehr"), json!("Retry")), (json!("ehr"), json!("Delivered")), (json!("archive"), json!("Parked"))]
    );
    assert_eq!((&t["hie"]["controlId"], &t["hie"]["resends"]), (&json!("CID-1"), &json!(1)));
    assert_eq!((&t["childIDs"], &t["wasRerun"]), (&json!([]), &json!(false)));
    assert_eq!(t["hie"].get("repeats"), None);
    let of = hie::message::MessageId::now();
    if let Some(entry) = node.records.entries.lock().unwrap().first_mut() {
        let (seq, mut fact) = entry.facts[0].clone();
        fact.what = What::Forwarded;
        entry.facts.push((seq + 8, fact.clone()));
        fact.what = What::Repeated { of };
        entry.facts.push((seq + 9, fact));
    }
    let t = node.get(&format!("/transactions/{id}")).json();
    assert_eq!(t["hie"]["repeats"], json!(of.to_string()));
    assert_eq!(t["hie"]["events"][0]["what"], json!("handed on to the broker"));

    let parent = id;
    let id = node.records.fhir(b"{\"resourceType\":\"Patient\"}").to_string();
    if let What::Accepted(accepted) = &mut node.records.entries.lock().unwrap()[1].facts[0].1.what {
        accepted.envelope.parent = parent.parse().ok();
    }
    let again = node.get(&format!("/transactions/{parent}")).json();
    assert_eq!((&again["childIDs"], &again["wasRerun"]), (&json!([id]), &json!(true)));
    let t = node.get(&format!("/transactions/{id}")).expect(200).json();
    let request = &t["request"];
    assert_eq!(
        (&request["host"], &request["port"], &request["path"]),
        (&json!("hie.example"), &json!("5001"), &json!("/fhir/Patient"))
    );
    assert_eq!(
        (&request["method"], &request["querystring"], &request["headers"]["x-two"]),
        (&json!("POST"), &json!("a=1"), &json!("1, 2"))
    );
    assert_eq!(
        (&t["response"]["status"], &t["response"]["headers"]["content-type"]),
        (&json!(201), &json!("application/fhir+json"))
    );
    assert_eq!(node.get("/transactions/00000000-0000-7000-8000-000000000000").status, 404);
    assert_eq!(node.get("/transactions/no-uuid").status, 400);
}

#[test]
fn bodies_come_out_as_they_went_in_and_are_downloads() {
    let node = Node::start();
    let binary: Vec<u8> = (0..=255u8).cycle().take(700_001).collect();
    let id = node.records.hl7(&binary);
    let shown = node.get(&format!("/transactions/{id}")).expect(200).json();
    let about = &shown["hie"]["bodies"]["request"];
    assert_eq!((&about["encoding"], &about["truncated"], &about["length"]), (&json!("base64"), &json!(true), &json!(700_001)));
    let answer = node.get(about["href"].as_str().unwrap()).expect(200);
    assert_eq!(answer.body, binary);
    assert_eq!(answer.header("content-type"), Some("x-application/hl7-v2+er7"));
    assert_eq!(answer.header("content-length"), Some("700001"));
    assert_eq!(answer.header("content-disposition"), Some(format!("attachment; filename=\"{id}-request.hl7\"").as_str()));
    assert_eq!(
        (answer.header("x-content-type-options"), answer.header("content-security-policy")),
        (Some("nosniff"), Some("sandbox"))
    );
    assert_eq!(node.get(&format!("/transactions/{id}/body/response")).expect(200).body, b"MSH|ack\rMSA|AA|1\r");
    assert_eq!(node.get(&format!("/transactions/{id}/body/archive?attempt=1")).expect(200).body, b"no");
    node.get(&format!("/transactions/{id}/body/archive?attempt=2")).expect(404);
    node.get(&format!("/transactions/{id}/body/nowhere")).expect(404);

    // Declared as something that is no header's value, kept no longer, or unreadable.
    let edit = |change: &dyn Fn(&mut hie::engine::fact::Accepted)| {
        let mut entries = node.records.entries.lock().unwrap();
        if let What::Accepted(accepted) = &mut entries[0].facts[0].1.what {
            change(accepted);
        }
    };
    edit(&|a| a.envelope.content_type = "a\r\nSet-Cookie: x".into());
    assert_eq!(
        node.get(&format!("/transactions/{id}/body/request")).expect(200).header("content-type"),
        Some("application/octet-stream")
    );
    node.records.bodies.lock().unwrap().remove(&100);
    node.get(&format!("/transactions/{id}/body/request")).expect(503);
    edit(&|a| a.body = BodyRef::OwnTransient);
    node.get(&format!("/transactions/{id}/body/request")).expect(404);
    edit(&|a| a.body = BodyRef::None);
    node.get(&format!("/transactions/{id}/body/request")).expect(404);
    node.post(&format!("/transactions/{id}/rerun"), "").expect(409);
    assert_eq!(node.get(&format!("/transactions/{id}")).expect(200).json()["canRerun"], json!(false));
}

#[test]
fn metadata_only_channels_show_metadata_only() {
    let node = Node::start();
    let id = node.records.fhir(b"{}");
    if let What::Accepted(accepted) = &mut node.records.entries.lock().unwrap()[0].facts[0].1.what {
        accepted.storage = hie::channel::Storage::Metadata;
    }
    let text = node.get(&format!("/transactions/{id}")).expect(200).text();
    for hidden in ["canary-patient", "CID-1", "x-two", "/fhir/Patient"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    assert!(text.contains("lab.results"));
}

#[test]
fn searches_in_both_tongues() {
    let node = Node::start();
    for i in 0..5 {
        node.records.hl7(format!("MSH|{i}").as_bytes());
    }
    let list = node.get("/transactions?filterLimit=2&filterPage=1&status=completed%20with%20error(s)").expect(200).json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert!(
        list[0]["request"].get("body").is_none() && list[0]["hie"]["attempts"] == json!([]),
        "simple has neither bodies nor attempts"
    );
    let full = node.get("/transactions?filterLimit=5&filterRepresentation=full").expect(200).json();
    assert_eq!(full[0]["request"]["body"], json!("MSH|4"), "newest first");
    node.get("/transactions?filters=%7B%22status%22%3A%22Failed%22%2C%22channelID%22%3A%22a.b%22%7D&filterLimit=10&filterPage=0")
        .expect(200);
    node.post(
        "/transactions/search",
        r#"{"patient":"P1","text":"needle","from":"2026-01-01","controlId":"C1","type":"ADT^A01","filterLimit":10}"#,
    )
    .expect(200);
    {
        let queries = node.records.queries.lock().unwrap();
        let [.., openhim, posted] = &queries[..] else { panic!("{queries:?}") };
        assert_eq!((openhim.status.clone(), openhim.channel.as_deref(), openhim.limit), (vec![Status::Failed], Some("a.b"), 10));
        assert_eq!(
            (posted.patient.as_deref(), posted.text.as_deref(), posted.from),
            (Some("P1"), Some("needle"), Some(1_767_225_600_000))
        );
        assert_eq!((posted.control_id.as_deref(), posted.kind.as_deref()), (Some("C1"), Some("ADT^A01")));
    }
    for (path, word) in [
        ("/transactions?patient=P1", "POST /transactions/search"),
        ("/transactions?text=needle", "POST /transactions/search"),
        ("/transactions?statsu=Failed", "statsu"),
        ("/transactions?filterLimit=100000", "filterLimit"),
        ("/transactions?filters=%7B", "JSON"),
    ] {
        let answer = node.get(path).expect(400);
        assert!(answer.text().contains(word), "{path}: {}", answer.text());
    }
    node.records.broken.store(true, Relaxed);
    assert!(node.get("/transactions").expect(503).header("retry-after").is_some());
}

#[test]
fn one_message_is_run_again_put_back_given_up() {
    let node = Node::start();
    let id = node.records.hl7(b"MSH|again");
    let answer = node.post(&format!("/transactions/{id}/rerun"), "").expect(201).json();
    assert_eq!(answer["parentID"], json!(id.to_string()));
    assert_eq!(node.control.reruns.lock().unwrap()[..], [(id, b"MSH|again".to_vec())]);
    assert_eq!(node.post(&format!("/transactions/{id}/requeue"), "{}").expect(200).json(), json!({"deliveries": 1}));
    let refused = node.post(&format!("/transactions/{id}/discard"), r#"{"route":"archive"}"#).expect(409).json();
    assert_eq!(refused["error"], json!("nothing is parked"));
    assert_eq!(node.control.discarded.lock().unwrap()[..], [(id, Some("archive".to_owned()))]);
    node.post(&format!("/transactions/{id}/discard"), r#"{"rout":"archive"}"#).expect(400);
}

fn ended(node: &Node, id: &Value) -> Value {
    let start = Instant::now();
    loop {
        let task = node.get(&format!("/tasks/{}", id.as_str().unwrap())).expect(200).json();
        if ["Completed", "Cancelled", "Failed"].iter().any(|s| task["status"] == *s) {
            return task;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{task}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn tasks_run_many_messages_again() {
    let node = Node::start();
    let ids: Vec<String> = (0..3).map(|i| node.records.hl7(format!("MSH|{i}").as_bytes()).to_string()).collect();
    let unknown = "00000000-0000-7000-8000-000000000000";
    let body = json!({"tids": [ids[0], ids[1], unknown], "batchSize": 1, "paused": false}).to_string();
    let task = node.post("/tasks", &body).expect(201).json();
    let task = ended(&node, &task["_id"]);
    assert_eq!(
        (&task["status"], &task["totalTransactions"], &task["remainingTransactions"]),
        (&json!("Completed"), &json!(3), &json!(0))
    );
    assert_eq!((&task["hie"]["done"], &task["hie"]["failed"]), (&json!(2), &json!(1)));
    assert!(task["transactions"][0]["rerunID"].is_string() && task["completedDate"].is_string());
    assert_eq!((&task["transactions"][2]["tstatus"], &task["transactions"][2]["tid"]), (&json!("Failed"), &json!(unknown)));

    // Parked deliveries, by filter; oldest first.
    let task = node.post("/tasks", r#"{"filter":{"channel":"lab.results"},"parked":true,"rate":1000}"#).expect(201).json();
    assert_eq!(ended(&node, &task["_id"])["hie"]["done"], json!(3));
    let requeued: Vec<String> = node.control.requeued.lock().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(requeued, ids);
    let queries = node.records.queries.lock().unwrap();
    assert!(queries.last().unwrap().parked);
    drop(queries);

    let list = node.get("/tasks").expect(200).json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["hie"]["work"], json!("requeue"), "newest first");
    for wrong in [
        "{}",
        r#"{"tids":["x"]}"#,
        r#"{"tids":[],"filter":{}, "rate":0}"#,
        r#"{"filter":{"statu":"x"}}"#,
        r#"{"tids":["00000000-0000-7000-8000-000000000000"],"filter":{}}"#,
    ] {
        node.post("/tasks", wrong).expect(400);
    }
    node.get("/tasks/none").expect(404);
    node.records.broken.store(true, Relaxed);
    let task = node.post("/tasks", r#"{"parked":true}"#).expect(201).json();
    assert!(ended(&node, &task["_id"])["hie"]["error"].is_string());
}

#[test]
fn a_task_waits_for_a_full_store_and_can_be_ended() {
    let node = Node::start();
    let ids: Vec<String> = (0..200).map(|i| node.records.hl7(format!("MSH|{i}").as_bytes()).to_string()).collect();
    node.control.full.store(true, Relaxed);
    let task = node.post("/tasks", &json!({"tids": ids, "rate": 1000}).to_string()).expect(201).json();
    std::thread::sleep(Duration::from_millis(400));
    let now = node.get(&format!("/tasks/{}", task["_id"].as_str().unwrap())).json();
    assert_eq!((&now["status"], &now["hie"]["failed"], &now["hie"]["done"]), (&json!("Processing"), &json!(0), &json!(0)));
    node.control.full.store(false, Relaxed);
    assert_eq!(ended(&node, &task["_id"])["hie"]["done"], json!(200));

    // Throttled: 200 at 20 a second take ten seconds; ended long before.
    let start = Instant::now();
    let task = node.post("/tasks", &json!({"tids": ids, "rate": 20}).to_string()).expect(201).json();
    std::thread::sleep(Duration::from_millis(500));
    node.with("DELETE", &format!("/tasks/{}", task["_id"].as_str().unwrap()), "").expect(200);
    let task = ended(&node, &task["_id"]);
    let (done, allowed) = (task["hie"]["done"].as_u64().unwrap(), 2 + 20 * start.elapsed().as_secs() + 20);
    assert!(task["status"] == "Cancelled" && done > 0 && done <= allowed, "{done} of at most {allowed}");
}

#[test]
fn channels_are_changed_checked_and_kept_as_files() {
    let node = Node::start();
    let dir = node.folder.path().join("channels.d");
    let list = node.get("/channels").expect(200).json();
    assert_eq!((&list[0]["_id"], &list[0]["name"]), (&json!("lab.results"), &json!("lab.results")));
    let new = json!({"name":"adt.in","when":"true","priority":5,"routes":[{"name":"a","http":["http://h:1/"],"retry":{"first":"1s","max":"2m","factor":2.0}}]});
    let made = node.post("/channels", &new.to_string()).expect(201).json();
    assert_eq!((&made["_id"], &made["route"][0]["retry"]["max"]), (&json!("adt.in"), &json!("2m")));
    assert_eq!(node.control.channels().len(), 2);
    let text = fs::read_to_string(dir.join("adt.in.toml")).unwrap();
    assert!(text.contains("[[channel]]") && text.contains("[[channel.route]]"), "{text}");
    // The built-in one, so far in no file, would be gone at the next start: it is written too.
    assert!(dir.join("lab.results.toml").exists());
    node.post("/channels", &new.to_string()).expect(409);

    // What is shown can be sent back.
    let shown = node.get("/channels/adt.in").expect(200).json();
    assert_eq!(node.with("PUT", "/channels/adt.in", &shown.to_string()).expect(200).json(), shown);
    for (body, word) in [
        (json!({"when":"(((","route":[]}), "cannot be read"),
        (json!({"when":"true","prioritty":1}), "prioritty"),
        (json!({"name":"other.name","when":"true"}), "keeps its name"),
        (json!([1]), "object"),
    ] {
        let answer = node.with("PUT", "/channels/adt.in", &body.to_string()).expect(400);
        assert!(answer.text().contains(word), "{}", answer.text());
        assert_eq!(fs::read_to_string(dir.join("adt.in.toml")).unwrap(), text);
    }
    node.with("PUT", "/channels/no.such", r#"{"when":"true"}"#).expect(404);
    node.post("/channels", r#"{"name":"../../x.y","when":"true"}"#).expect(400);

    node.with("DELETE", "/channels/adt.in", "").expect(204);
    assert!(!dir.join("adt.in.toml").exists());
    node.with("DELETE", "/channels/adt.in", "").expect(404);
    node.get("/channels/adt.in").expect(404);

    // A folder that cannot be written: nothing has changed.
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, "in the way").unwrap();
    node.post("/channels", &new.to_string()).expect(503);
    assert_eq!(node.control.channels().len(), 1);
}

#[test]
fn a_channel_in_a_file_of_several_is_changed_in_its_place() {
    let node = Node::start();
    let dir = node.folder.path().join("channels.d");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("site.toml");
    let block = |name: &str| {
        format!(
            "# about {name}\n[[channel]]\nname = \"{name}\"\nwhen = 'true'\n[[channel.route]]\nname = \"ehr\"\nmllp = [\"h:1\"]\n"
        )
    };
    fs::write(&file, format!("{}\n{}", block("lab.results"), block("adt.in"))).unwrap();
    node.control.channels.lock().unwrap().push(channel("adt.in"));
    node.with("PUT", "/channels/lab.results", r#"{"when":"false","route":[{"name":"x","mllp":["h:2"]}]}"#).expect(200);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"h:2\"") && text.contains("# about adt.in") && text.contains("\"h:1\""), "{text}");
    node.with("DELETE", "/channels/lab.results", "").expect(204);
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains("[[channel]]\nname = \"lab.results\"") && text.contains("adt.in"), "{text}");
    fs::write(dir.join("broken.toml"), "[[channel").unwrap();
    assert!(node.with("PUT", "/channels/adt.in", r#"{"when":"false","route":[]}"#).expect(409).text().contains("broken.toml"));
}

#[test]
fn clients_go_in_with_secrets_and_come_out_without() {
    use std::os::unix::fs::MetadataExt;
    let node = Node::start();
    let file = node.folder.path().join("clients.d/lab.toml");
    let body = r#"{"clientID":"lab","roles":["senders"],"password":"canary-password","token":"canary-token-0123456789","allow_ips":["10.0.0.0/8"],"rate":{"per_second":5}}"#;
    let made = node.post("/clients", body).expect(201);
    let shown = made.json();
    assert_eq!((&shown["_id"], &shown["hie"]["password"], &shown["hie"]["token"]), (&json!("lab"), &json!(true), &json!(true)));
    for answer in [&made, &node.get("/clients"), &node.get("/clients/lab")] {
        assert!(!answer.text().contains("argon2") && !answer.text().contains("canary"), "{}", answer.text());
    }
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("$argon2id$") && !text.contains("canary"), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(client::parse(&text).unwrap()[0].roles, ["senders"]);
    let show = |header: String| Credentials { authorization: Some(HeaderBytes(header.into_bytes())), certificate: None };
    let peer = Some("10.0.0.1:1".parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let enters = |header: &str| {
        runtime.block_on(async { node.directory.identify(peer, &show(header.into()), true).settled().await }).is_ok()
    };
    assert!(enters("Basic bGFiOmNhbmFyeS1wYXNzd29yZA==") && enters("Bearer canary-token-0123456789"));

    // What is not given stays; null takes away; a change counts at once.
    node.with("PUT", "/clients/lab", r#"{"token":null,"rate":null}"#).expect(200);
    assert!(enters("Basic bGFiOmNhbmFyeS1wYXNzd29yZA==") && !enters("Bearer canary-token-0123456789"));
    node.with("PUT", "/clients/lab", r#"{"enabled":false}"#).expect(200);
    assert!(!enters("Basic bGFiOmNhbmFyeS1wYXNzd29yZA=="));

    node.post("/clients", body).expect(409);
    for wrong in [
        r#"{}"#,
        r#"{"name":"../x"}"#,
        r#"{"name":"x","password":"short"}"#,
        r#"{"name":"x","token":"short"}"#,
        r#"{"name":"x","token_sha256":"12"}"#,
        r#"{"name":"anonymous"}"#,
        r#"{"name":"x","pasword":"y"}"#,
        "{",
    ] {
        node.post("/clients", wrong).expect(400);
    }
    node.with("PUT", "/clients/lab", r#"{"name":"other"}"#).expect(400);
    node.with("PUT", "/clients/none", "{}").expect(404);
    node.with("DELETE", "/clients/lab", "").expect(204);
    assert!(!file.exists());
    node.with("DELETE", "/clients/lab", "").expect(404);
    node.get("/clients/lab").expect(404);
    assert_eq!(node.get("/clients").expect(200).json(), json!([]));
}

#[test]
fn routes_are_held_and_let_go() {
    let node = Node::start();
    let routes = node.get("/routes").expect(200).json();
    assert_eq!(
        (&routes[0]["channel"], &routes[0]["route"], &routes[0]["pending"]),
        (&json!("lab.results"), &json!("ehr"), &json!(7))
    );
    assert_eq!(node.post("/routes/lab.results/ehr/pause", "").expect(200).json()["paused"], json!(true));
    assert_eq!(node.get("/status").expect(200).json()["paused"], json!(["lab.results/ehr"]));
    assert_eq!(node.post("/routes/lab.results/ehr/resume", "").expect(200).json()["paused"], json!(false));
    assert_eq!(
        node.post("/routes/lab.results/none/pause", "").expect(404).json()["error"],
        json!("route lab.results/none not found")
    );
}

#[test]
fn the_node_tells_how_it_is_and_drains() {
    let node = Node::start();
    node.control.missing.lock().unwrap().push("the store is full".into());
    let status = node.get("/status").expect(200).json();
    assert_eq!(
        (&status["node"], &status["ready"], &status["pending"], &status["parked"]),
        (&json!("n1"), &json!(false), &json!(7), &json!(2))
    );
    assert_eq!((&status["missing"][0], &status["ledger"]["segments"]), (&json!("the store is full"), &json!(1)));
    assert_eq!(status["problems"][0], json!("segment 3 was set aside"));
    node.post("/drain", "").expect(202);
    assert!(node.drain.is_cancelled());
}

#[test]
fn metrics_are_text_whatever_is_accepted() {
    let node = Node::start();
    let headers =
        format!("Authorization: Bearer {}\r\nAccept: application/json, application/openmetrics-text\r\n", admin_support::TOKEN);
    let answer = admin_support::call(node.admin, "GET", "/metrics", &headers, "").expect(200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for metric in
        ["hie_messages_pending", "process_resident_memory_bytes", "# TYPE hie_task_done_total counter", "hie_build_info{version="]
    {
        assert!(answer.text().contains(metric), "{metric} in {}", answer.text());
    }
}

#[test]
fn the_document_holds_what_is_served_and_nothing_else() {
    let node = Node::start();
    let document = node.get("/openapi.json").expect(200).json();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |m| (m.clone(), path.clone())))
        .collect();
    let served: BTreeSet<(String, String)> = hie::admin::mounted().into_iter().map(|(m, p)| (m.into(), p.into())).collect();
    assert_eq!(described, served);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|r| r.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    assert!(document["components"]["schemas"]["Transaction"]["properties"]["channelID"].is_object());
}

/// Alerts kept in memory, from the third on.
#[derive(Default)]
struct Alerts(std::sync::Mutex<Vec<hie::admin::feed::AlertEvent>>);

impl hie::admin::feed::AlertSource for Alerts {
    fn latest(&self) -> u64 {
        self.0.lock().unwrap().last().map_or(0, |a| a.id)
    }

    fn complete_from(&self) -> u64 {
        3
    }

    fn since(&self, id: u64, most: usize) -> Vec<hie::admin::feed::AlertEvent> {
        self.0.lock().unwrap().iter().filter(|a| a.id > id).take(most).cloned().collect()
    }
}

#[test]
fn alerts_are_a_resource_of_the_live_feed() {
    use hie::admin::feed::AlertEvent;
    use std::io::{Read, Write};
    let node = Node::start();
    let alerts = std::sync::Arc::new(Alerts::default());
    let raise = |id| {
        alerts.0.lock().unwrap().push(AlertEvent { id, event: "raised".into(), json: format!("{{\"n\":{id}}}") });
        node.feed.alerts_changed();
    };
    let open = |last: &str| {
        let mut stream = std::net::TcpStream::connect(node.admin).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        write!(stream, "GET /events/alerts HTTP/1.1\r\nAuthorization: Bearer {}\r\n{last}\r\n", admin_support::TOKEN).unwrap();
        stream
    };
    let until = |stream: &mut std::net::TcpStream, end: &str| {
        let mut text = String::new();
        let mut piece = [0; 4096];
        while !text.ends_with(end) {
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "ended: {text}");
            text += std::str::from_utf8(&piece[..n]).unwrap();
        }
        text
    };
    // Before there are any, too.
    let mut live = open("");
    until(&mut live, "id: 0\n\n");
    node.feed.set_alerts(alerts.clone());
    raise(3);
    raise(4);
    let text = until(&mut live, "id: 4\n\n");
    assert_eq!(text, "event: raised\ndata: {\"n\":3}\nid: 3\n\nevent: raised\ndata: {\"n\":4}\nid: 4\n\n");
    let mut back = open("Last-Event-ID: 3\r\n");
    assert!(until(&mut back, "id: 4\n\n").ends_with("id: 3\n\nevent: raised\ndata: {\"n\":4}\nid: 4\n\n"));
    let mut late = open("Last-Event-ID: 1\r\n");
    let text = until(&mut late, "id: 4\n\n");
    assert!(text.contains("event: reset") && text.contains("\"complete_from\":3") && text.contains("{\"n\":3}"), "{text}");
    raise(5);
    for mut stream in [live, back, late] {
        assert_eq!(until(&mut stream, "id: 5\n\n"), "event: raised\ndata: {\"n\":5}\nid: 5\n\n");
    }
}

#[test]
fn a_bug_in_the_live_feed_cuts_its_readers_off_and_lets_them_come_back() {
    use std::io::{Read, Write};
    let node = Node::start();
    let open = |last: &str| {
        let mut stream = std::net::TcpStream::connect(node.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET /events/transactions HTTP/1.1\r\nAuthorization: Bearer {}\r\n{last}\r\n", admin_support::TOKEN)
            .unwrap();
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).unwrap();
        assert!(piece[..n].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&piece[..n]));
        stream
    };
    // Counted a moment after its head is sent.
    let readers = |wanted: usize| {
        let begin = Instant::now();
        while node.feed.stats().total != wanted && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        node.feed.stats().total
    };
    let mut first = open("");
    assert_eq!(readers(1), 1);
    // A reader that has missed something has the log read, which panics.
    node.committed.store(5, Relaxed);
    let mut second = open("Last-Event-ID: 1\r\n");
    let mut rest = Vec::new();
    for stream in [&mut first, &mut second] {
        // Reset or closed: either way it is over.
        let _ = stream.read_to_end(&mut rest);
    }
    node.committed.store(0, Relaxed);
    assert_eq!(readers(0), 0);
    let _third = open("");
    assert_eq!(readers(1), 1);
    assert_eq!(node.get("/status").status, 200);
}
