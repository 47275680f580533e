//! The log: what was acknowledged is there, in order, byte for byte, after closing and opening again.

mod ledger_support;

use hie::channel::Storage;
use hie::engine::fact::{BodyRef, Outcome, Status, What};
use hie::engine::ports::Log;
use hie::ledger::Query;
use ledger_support::*;
use std::sync::Arc;

#[tokio::test]
async fn accepted_messages_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut known = Vec::new();
    {
        let (ledger, sink, unfinished) = start(dir.path(), small());
        assert!(unfinished.is_empty());
        for (n, len) in [10, 1_000, 5_000, 100_000].into_iter().enumerate() {
            let message = message(n, len);
            let seq = accept(&ledger, &message).await.unwrap();
            assert_eq!(sink.0.lock().unwrap().last(), Some(&(seq, message.id)), "handed on before the appender was told");
            known.push((seq, message));
        }
        ledger.close();
        assert!(ledger.append(message(99, 10).append()).await.is_err(), "a closed ledger took a message");
    }
    let (ledger, _, unfinished) = start(dir.path(), small());
    assert_eq!(unfinished.iter().map(|u| u.seq).collect::<Vec<_>>(), known.iter().map(|k| k.0).collect::<Vec<_>>());
    for (seq, message) in &known {
        assert_eq!(read(&ledger, *seq, &BodyRef::Own).await.unwrap(), *message.body.as_ref().unwrap());
        let accepted = ledger.accepted(*seq).await.unwrap();
        assert_eq!(accepted.envelope.id, message.id);
        assert_eq!((accepted.body_hash, accepted.resend_key), (message.accepted.body_hash, message.accepted.resend_key));
    }
    let mut recent = Vec::new();
    ledger.recent(&mut |r| recent.push((r.key, r.body_hash, r.id))).unwrap();
    let wanted: Vec<_> = known.iter().map(|(_, m)| (m.accepted.resend_key, m.accepted.body_hash, m.id)).collect();
    assert_eq!(recent, wanted);
    assert!(ledger.accepted(1_000_000).await.is_err());
}

#[tokio::test]
async fn ten_writers_at_once_and_log_order() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, sink, _) = start(dir.path(), small());
    let tasks: Vec<_> = (0..10)
        .map(|w| {
            let ledger: Arc<_> = ledger.clone();
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                for n in 0..200 {
                    seqs.push(accept(&ledger, &message(w * 1000 + n, 600)).await.unwrap());
                }
                assert!(seqs.is_sorted(), "one writer's messages are in its order");
                seqs
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    let order: Vec<_> = sink.0.lock().unwrap().iter().map(|s| s.0).collect();
    assert!(order.is_sorted(), "handed on in log order");
    all.sort_unstable();
    assert_eq!(order, all);
    assert_eq!(order.len(), 2000);
}

#[tokio::test]
async fn a_body_in_pieces_is_read_in_order_also_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let mut big = message(1, 10);
    let piece = |i: usize| message(i, 300_000).body.unwrap();
    let mut seqs = Vec::new();
    for i in 0..20 {
        seqs.push(ledger.chunk(piece(i), false).await.unwrap());
    }
    big.accepted.body = BodyRef::Chunks { seqs: seqs.clone(), transient: false };
    big.body = None;
    let seq = accept(&ledger, &big).await.unwrap();
    assert!(files(dir.path(), "log-").len() > 1, "it was to span segments");
    let wanted: Vec<u8> = (0..20).flat_map(|i| piece(i).to_vec()).collect();
    assert!(read(&ledger, seq, &big.accepted.body).await.unwrap() == wanted);
}

#[tokio::test]
async fn a_transaction_is_seen_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let m = message(1, 500);
    let seq = accept(&ledger, &m).await.unwrap();
    ledger.append_later(attempt(m.id, seq, "ehr", 1, Outcome::Retry));
    ledger.append_later(attempt(m.id, seq, "ehr", 2, Outcome::Delivered));
    ledger.append(attempt(m.id, seq, "archive", 1, Outcome::Parked)).await.unwrap();
    caught_up(&ledger);
    let detail = ledger.transaction(m.id).unwrap().expect("found by id");
    assert_eq!(detail.row.status, Status::CompletedWithErrors);
    assert!(detail.row.open && detail.row.is_parked());
    assert_eq!(detail.facts.len(), 4);
    let (place, last) = detail.facts.last().unwrap();
    let What::Attempt(a) = &last.what else { panic!("not an attempt") };
    assert_eq!(read(&ledger, *place, &a.response).await.unwrap(), b"MSA|");
    assert_eq!(detail.accepted.unwrap().envelope.control_id.as_deref(), Some("C1"));

    ledger.append(attempt(m.id, seq, "archive", 2, Outcome::Delivered)).await.unwrap();
    caught_up(&ledger);
    let row = ledger.search(&Query { control_id: Some("C1".into()), ..Query::default() }).unwrap().pop().unwrap();
    assert_eq!((row.status, row.open, row.routes[1].1.attempts), (Status::Successful, false, 2));
}

#[tokio::test]
async fn short_lived_bodies_go_when_all_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    let make = |n: usize| {
        let mut m = message(n, 2_000);
        m.accepted.storage = Storage::NoBodies;
        m.accepted.body = BodyRef::OwnTransient;
        m
    };
    let (first, second) = (make(1), make(2));
    let (a, b);
    {
        let (ledger, _, _) = start(dir.path(), small());
        a = accept(&ledger, &first).await.unwrap();
        b = accept(&ledger, &second).await.unwrap();
        assert_eq!(read(&ledger, a, &BodyRef::OwnTransient).await.unwrap(), *first.body.as_ref().unwrap());
        deliver(&ledger, first.id, a);
    }
    {
        let (ledger, _, unfinished) = start(dir.path(), small());
        assert_eq!(unfinished.len(), 1);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(files(dir.path(), "transient-").len(), 1, "one message still needs it");
        assert_eq!(read(&ledger, b, &BodyRef::OwnTransient).await.unwrap(), *second.body.as_ref().unwrap());
        deliver(&ledger, second.id, b);
        until("the file goes", || files(dir.path(), "transient-").is_empty());
        assert!(read(&ledger, b, &BodyRef::OwnTransient).await.is_err());
        caught_up(&ledger);
        assert_eq!(ledger.transaction(second.id).unwrap().unwrap().row.status, Status::Successful);
    }
}
