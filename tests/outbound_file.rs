//! Files out: whole or not at all, never over another message's file, never outside the folder.

mod outbound_support;

use bytes::Bytes;
use hie::{
    channel::Mode,
    engine::ports::{Delivery, ReplyKind, SendError},
    message::Protocol,
};
use outbound_support::*;
use serde_json::json;
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_message_is_a_file_named_by_its_id() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, _) = open(json!({"file": {"directory": folder.path()}}));
    let (message, json_message) =
        (hl7(adt("id-1")), delivery(accepted(envelope(Protocol::Http, "application/fhir+json"), Mode::Queue, &["out"]), "{}"));
    let id = message.message.envelope().id;
    let reply = out.send(message.clone()).await.expect("written");
    assert_eq!(reply.kind, ReplyKind::Written);
    assert_eq!(names(folder.path()), [format!("{id}.hl7")]);
    let file = folder.path().join(format!("{id}.hl7"));
    assert_eq!(std::fs::read(&file).expect("read"), adt("id-1").as_bytes());
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o007, 0, "not for everyone");
    // A second attempt of the same message takes the place of the first.
    out.send(Delivery { attempt: 2, ..message }).await.expect("written");
    assert_eq!(names(folder.path()).len(), 1);
    let id = json_message.message.envelope().id;
    out.send(json_message).await.expect("written");
    assert!(names(folder.path()).contains(&id.to_string()));
}

#[tokio::test]
async fn a_name_that_is_taken_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, _) = open(json!({"file": {"directory": folder.path(), "name": "{time}-{kind}.txt"}}));
    for body in ["first", "second", "second"] {
        out.send(hl7(body)).await.expect("written");
    }
    let names = names(folder.path());
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&"20260102T030405.123Z-ADT_A01.txt".to_owned()), "{names:?}");
    let mut bodies: Vec<_> = names.iter().map(|n| std::fs::read_to_string(folder.path().join(n)).expect("read")).collect();
    bodies.sort();
    assert_eq!(bodies, ["first", "second", "second"]);
}

#[tokio::test]
async fn content_cannot_choose_the_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).expect("made");
    let (out, _) = open(json!({"file": {"directory": inner, "name": "{kind}-{id}"}}));
    for kind in ["../../evil", "/etc/passwd", "..", ".hidden", "a\0b", "", &"x".repeat(5000)] {
        let mut message = envelope(Protocol::Http, "");
        message.kind = kind.into();
        out.send(delivery(accepted(message, Mode::Queue, &["out"]), "x")).await.expect("written");
    }
    assert_eq!(names(folder.path()), ["inner"]);
    assert_eq!(names(&inner).len(), 7);
    assert!(names(&inner).iter().all(|n| !n.starts_with('.') && n.len() < 255));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_half_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, _) = open(json!({"file": {"directory": folder.path(), "name": "{id}.bin"}}));
    let done = Arc::new(AtomicBool::new(false));
    let (watched, stop) = (folder.path().to_owned(), done.clone());
    let watcher = std::thread::spawn(move || {
        let (mut seen, mut looks) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            looks += 1;
            for name in names(&watched).iter().filter(|n| !n.starts_with('.')) {
                assert_eq!(std::fs::metadata(watched.join(name)).expect("there").len(), 64 << 20);
                seen += 1;
            }
        }
        (seen, looks)
    });
    for _ in 0..2 {
        let message = accepted(envelope(Protocol::Http, ""), Mode::Queue, &["out"]);
        let delivery = streamed(message, Bytes::new(), Bytes::from(vec![7; 1 << 20]), 64);
        out.send(delivery).await.expect("written");
    }
    done.store(true, Ordering::Relaxed);
    let (seen, looks) = watcher.join().expect("never half a file");
    assert!(seen > 0 && looks > 5, "{seen} of {looks}");
    assert_eq!(names(folder.path()).len(), 2, "no temporary file is left");
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let (out, targets) = open(json!({"file": {"directory": gone}}));
    let Err(SendError::NotSent { reason, target }) = out.send(hl7("x")).await else { panic!("written?") };
    assert!(reason.contains("not there") && target.ends_with("gone"), "{target}: {reason}");
    assert_eq!(targets.status()[0].failures, 1);
    std::fs::create_dir(&gone).expect("made");
    out.send(hl7("x")).await.expect("written");
    assert_eq!(targets.status()[0].failures, 0);
}
