//! HTTP caching on the management API (RFC 9110, 9111): validators, 304, HEAD, 412; never a stale answer, and nothing that messages
//! said is kept.

mod admin_support;

use admin_support::{Answer, Node, TOKEN, call};
use std::time::Duration;

fn ask(node: &Node, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    call(node.admin, method, path, &format!("Authorization: Bearer {TOKEN}\r\n{headers}"), body)
}

fn tag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_else(|| panic!("no ETag: {}", answer.head)).to_owned()
}

const CHANNEL: &str = r#"{"name": "lab.results", "when": "true", "priority": 7, "routes": [{"name": "ehr", "primary": true, "mllp": ["ehr-a:2575"]}]}"#;

#[test]
fn every_resource_has_a_validator_and_is_asked_for_again_each_time() {
    let node = Node::start();
    for path in ["/channels", "/channels/lab.results", "/clients", "/routes", "/tasks", "/alerts", "/openapi.json"] {
        let first = node.get(path).expect(200);
        let etag = tag(&first);
        assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() == 34, "{path}: a strong tag: {etag}");
        assert_eq!(first.header("cache-control"), Some("private, no-cache"), "{path}");
        assert_eq!(first.header("vary"), Some("Authorization"), "{path}");
        assert_eq!(first.header("x-content-type-options"), Some("nosniff"), "{path}");
        for sent in [etag.clone(), format!("\"other\", {etag}"), format!("W/{etag}"), "*".into()] {
            let again = ask(&node, "GET", path, &format!("If-None-Match: {sent}\r\n"), "").expect(304);
            assert!(again.body.is_empty(), "{path}");
            assert_eq!((tag(&again), again.header("cache-control")), (etag.clone(), Some("private, no-cache")), "{path}");
            assert_eq!((again.header("vary"), again.header("content-type")), (Some("Authorization"), None), "{path}");
            assert!(again.header("date").is_some(), "{path}");
        }
        let other = ask(&node, "GET", path, "If-None-Match: \"other\"\r\n", "").expect(200);
        assert_eq!(other.body, first.body, "{path}");
        let head = ask(&node, "HEAD", path, "", "").expect(200);
        assert_eq!((tag(&head), head.body.len()), (etag.clone(), 0), "{path}");
        assert_eq!(head.header("content-length"), Some(first.body.len().to_string().as_str()), "{path}");
        ask(&node, "HEAD", path, &format!("If-None-Match: {etag}\r\n"), "").expect(304);
        // Without the token there is nothing to learn.
        let stranger = call(node.admin, "GET", path, &format!("If-None-Match: {etag}\r\n"), "").expect(401);
        assert_eq!((stranger.header("etag"), stranger.header("cache-control")), (None, Some("no-store")), "{path}");
    }
    for path in ["/status", "/metrics", "/heartbeat", "/health/live"] {
        let answer = node.get(path).expect(200);
        assert_eq!((answer.header("etag"), answer.header("cache-control")), (None, Some("no-store")), "{path}");
    }
    let missing = node.get("/channels/absent").expect(404);
    assert_eq!((missing.header("etag"), missing.header("cache-control")), (None, Some("no-store")));
}

#[test]
fn what_changed_is_never_answered_with_304() {
    let node = Node::start();
    let before = node.get("/channels/lab.results").expect(200);
    ask(&node, "PUT", "/channels/lab.results", "", CHANNEL).expect(200);
    let after = ask(&node, "GET", "/channels/lab.results", &format!("If-None-Match: {}\r\n", tag(&before)), "").expect(200);
    assert_ne!(tag(&before), tag(&after));
    assert!(after.text().contains("\"priority\":7"));

    // By time: a change is told a second later, and only that very time counts.
    std::thread::sleep(Duration::from_millis(2100));
    let shown = node.get("/channels/lab.results").expect(200);
    let when = shown.header("last-modified").expect("a time").to_owned();
    ask(&node, "GET", "/channels/lab.results", &format!("If-Modified-Since: {when}\r\n"), "").expect(304);
    let day_after = "If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT\r\n";
    ask(&node, "GET", "/channels/lab.results", day_after, "").expect(200);
    // A tag that does not match goes before a time that does.
    let both = format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {when}\r\n");
    ask(&node, "GET", "/channels/lab.results", &both, "").expect(200);
    for n in 0..20 {
        let text = CHANNEL.replace("\"priority\": 7", &format!("\"priority\": {}", 100 + n));
        ask(&node, "PUT", "/channels/lab.results", "", &text).expect(200);
        let answer = ask(&node, "GET", "/channels/lab.results", &format!("If-Modified-Since: {when}\r\n"), "").expect(200);
        assert!(answer.text().contains(&format!("\"priority\":{}", 100 + n)), "changed within the second");
        assert_ne!(answer.header("last-modified"), Some(when.as_str()));
    }
}

#[test]
fn a_change_to_what_somebody_else_changed_is_412() {
    let node = Node::start();
    let etag = tag(&node.get("/channels/lab.results").expect(200));
    let with = |tag: &str| format!("If-Match: {tag}\r\n");
    ask(&node, "PUT", "/channels/lab.results", &with(&etag), CHANNEL).expect(200);
    // The same tag again: it is another channel now.
    let refused = ask(&node, "PUT", "/channels/lab.results", &with(&etag), &CHANNEL.replace("7", "9")).expect(412);
    assert!(refused.json()["hint"].as_str().is_some_and(|h| h.contains("ETag")), "{}", refused.text());
    assert!(node.get("/channels/lab.results").text().contains("\"priority\":7"), "nothing was changed");
    ask(&node, "DELETE", "/channels/lab.results", &with(&etag), "").expect(412);
    let now = tag(&node.get("/channels/lab.results").expect(200));
    ask(&node, "DELETE", "/channels/lab.results", &with(&format!("W/{now}")), "").expect(412);
    ask(&node, "PUT", "/channels/absent.one", &with("*"), &CHANNEL.replace("lab.results", "absent.one")).expect(412);
    ask(&node, "DELETE", "/channels/lab.results", &with(&format!("\"x\", {now}")), "").expect(204);

    node.post("/clients", r#"{"name": "lab", "password": "long enough"}"#).expect(201);
    let etag = tag(&node.get("/clients/lab").expect(200));
    ask(&node, "PUT", "/clients/lab", &with(&etag), r#"{"roles": ["senders"], "silent_after": "2h"}"#).expect(200);
    ask(&node, "PUT", "/clients/lab", &with(&etag), r#"{"roles": []}"#).expect(412);
    let etag = tag(&node.get("/clients/lab").expect(200));
    assert_eq!(node.get("/clients/lab").json()["silent_after"], "2h");
    // A password is not shown, and a change of it is one.
    node.with("PUT", "/clients/lab", r#"{"password": "another one"}"#).expect(200);
    assert_ne!(tag(&node.get("/clients/lab").expect(200)), etag);
    ask(&node, "DELETE", "/clients/lab", &with(&etag), "").expect(412);
    ask(&node, "DELETE", "/clients/lab", &with("*"), "").expect(204);
}

#[test]
fn what_messages_said_is_not_kept() {
    let node = Node::start();
    let body = b"MSH|^~\\&|A|B|C|D|20240101||ADT^A01|CID|P|2.5\rPID|1||P77\r";
    let id = node.records.hl7(body);
    let path = format!("/transactions/{id}");
    let shown = node.get(&path).expect(200);
    assert_eq!((shown.header("cache-control"), shown.header("vary")), (Some("no-store"), Some("Authorization")));
    assert!(shown.header("last-modified").is_some(), "that of its last fact: {}", shown.head);
    let since = format!("If-Modified-Since: {}\r\n", shown.header("last-modified").unwrap_or_default());
    let conditional = ask(&node, "GET", &path, &format!("If-None-Match: {}\r\n", tag(&shown)), "").expect(304);
    assert_eq!(conditional.header("cache-control"), Some("no-store"));
    ask(&node, "GET", &path, &since, "").expect(304);
    let list = node.get("/transactions?filterLimit=5").expect(200);
    assert_eq!(list.header("cache-control"), Some("no-store"));
    ask(&node, "GET", "/transactions?filterLimit=5", &format!("If-None-Match: {}\r\n", tag(&list)), "").expect(304);
    for answer in [node.get(&format!("{path}/body/request")), node.post("/transactions/search", r#"{"patient": "P77"}"#)] {
        let answer = answer.expect(200);
        assert_eq!((answer.header("cache-control"), answer.header("etag")), (Some("no-store"), None));
    }
    // A new transaction is another list.
    node.records.hl7(b"MSH|^~\\&|A|B|C|D|20240101||ADT^A01|OTHER|P|2.5\r");
    ask(&node, "GET", "/transactions?filterLimit=5", &format!("If-None-Match: {}\r\n", tag(&list)), "").expect(200);
}
