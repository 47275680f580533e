//! Ledgers that ship what they wrote to each other: every transaction is found in all of them, whatever comes twice, stops or is killed.

mod held;
mod killed;
#[path = "../ledger_support/mod.rs"]
mod ledger_support;
mod lost;
mod twice;

use hie::channel::Storage;
use hie::engine::fact::{BodyRef, Keeper, Outcome, RouteState, Status, What};
use hie::engine::ports::{Append, Log, LogError};
use hie::engine::replica::{Arrived, Observer, PackedBody, Positions, Replica, Shipped};
use hie::ledger::{Ledger, Query};
use hie::message::MessageId;
use ledger_support::stream::{Shipper, Stream, all, catch_up, image, own, take};
use ledger_support::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Writes one message of each kind: whole, packed, in pieces, short-lived, refused, resent, without a trace.
async fn variety(ledger: &Ledger, n: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    let small = message(n, 300);
    let mut packed = message(n + 1, 10);
    packed.body = Some(vec![b'x'; 50_000 + n].into());
    packed.accepted.envelope.body_len = 50_000 + n as u64;
    let mut big = message(n + 2, 10);
    let mut brief = message(n + 3, 4_000);
    brief.accepted.storage = Storage::NoBodies;
    brief.accepted.body = BodyRef::OwnTransient;
    let mut brief_pieces = message(n + 4, 10);
    brief_pieces.accepted.storage = Storage::Metadata;
    let mut broker = message(n + 5, 100);
    broker.accepted.keeper = Keeper::Broker;
    for (m, transient) in [(&mut big, false), (&mut brief_pieces, true)] {
        let mut seqs = Vec::new();
        for i in 0..4 {
            seqs.push(ledger.chunk(message(n + i, 20_000).body.unwrap(), transient).await.unwrap());
        }
        m.accepted.envelope.body_len = 80_000;
        m.accepted.body = BodyRef::Chunks { seqs, transient };
        m.body = None;
    }
    for m in [&small, &packed, &big, &brief, &brief_pieces, &broker] {
        accept(ledger, m).await.unwrap();
        ids.push(m.id);
    }
    let refused = message(n + 6, 100);
    let what = What::Refused {
        envelope: Box::new(refused.accepted.envelope.clone()),
        reason: "no channel takes it".into(),
        body: BodyRef::Own,
    };
    ledger.append(Append { fact: fact(refused.id, 0, what), body: refused.body, deliver: false }).await.unwrap();
    ids.push(refused.id);
    ids
}

/// Accepts messages that need not wait for each other; gives them with their numbers.
async fn accept_all(ledger: &Ledger, messages: impl Iterator<Item = Message>) -> Vec<(u64, MessageId)> {
    let mut all = Vec::new();
    let mut messages = messages.peekable();
    while messages.peek().is_some() {
        let part: Vec<_> = messages.by_ref().take(64).map(|m| (m.id, ledger.append(m.append()))).collect();
        for (id, waiting) in part {
            all.push((waiting.await.unwrap(), id));
        }
    }
    all
}

/// Writes something about messages that are known here, wherever they were accepted.
async fn work_on(ledger: &Ledger, ids: &[MessageId]) {
    for (i, id) in ids.iter().enumerate() {
        let home = ledger.home(*id).await.expect("known here");
        match i % 4 {
            0 => {
                ledger.append(attempt(*id, home, "ehr", 1, Outcome::Delivered)).await.unwrap();
                ledger.append(attempt(*id, home, "archive", 1, Outcome::Delivered)).await.unwrap();
            }
            1 => drop(ledger.append(attempt(*id, home, "ehr", 1, Outcome::Retry)).await.unwrap()),
            2 => drop(ledger.append(attempt(*id, home, "ehr", 1, Outcome::Parked)).await.unwrap()),
            _ => {
                let what = What::Resent { remote: "10.0.0.2:1".into() };
                ledger.append(Append { fact: fact(*id, home, what), body: None, deliver: false }).await.unwrap();
            }
        }
    }
}

async fn same_everywhere(ledgers: &[&Ledger], ids: &[MessageId]) {
    for ledger in ledgers {
        caught_up(ledger);
        let unlike = all(ledger).len();
        assert_eq!(unlike, ids.len(), "transactions, neither fewer nor more");
    }
    for id in ids {
        let first = image(ledgers[0], *id).await.expect("found");
        assert!(!first.contains("Err"), "{first}");
        for other in &ledgers[1..] {
            assert_eq!(image(other, *id).await.expect("found"), first);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_ledgers_tell_each_other_everything() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes: Vec<_> = dirs.iter().map(|d| start(d.path(), small()).0).collect();
    let origins: Vec<u64> = nodes.iter().map(|n| n.origin()).collect();
    assert!(origins.iter().all(|o| *o != 0) && origins[0] != origins[1] && origins[1] != origins[2]);
    let stream = Stream::default();
    let mut shippers = [Shipper::default(); 3];
    let mut ids = Vec::new();
    for round in 0..6 {
        for (i, node) in nodes.iter().enumerate() {
            ids.extend(variety(node, round * 100 + i * 10).await);
        }
        for (i, node) in nodes.iter().enumerate() {
            // Small batches cut large bodies apart.
            shippers[i].ship(node, &stream, if round % 2 == 0 { 30_000 } else { 1 << 20 }).await;
            if round == 3 {
                // A shipper that did not hear of its confirms ships again from far back.
                let mut again = Shipper { after: shippers[i].after / 2, prev: 0 };
                again.ship(node, &stream, 10_000).await;
            }
        }
        for node in &nodes {
            catch_up(node, &stream).await;
        }
        if round > 0 {
            // Work goes on on another node than the one that accepted.
            let from = ids.len() - 21 + round;
            work_on(&nodes[round % 3], &ids[from..from + 8]).await;
        }
        if round == 2 {
            let stopped = nodes.remove(1);
            let positions = stopped.positions();
            stopped.close();
            drop(stopped);
            let (again, sink, _) = start(dirs[1].path(), small());
            assert_eq!((again.origin(), again.positions()), (origins[1], positions));
            assert!(sink.0.lock().unwrap().is_empty());
            nodes.insert(1, again);
        }
    }
    for _ in 0..2 {
        for (i, node) in nodes.iter().enumerate() {
            shippers[i].ship(node, &stream, 100_000).await;
        }
        for node in &nodes {
            catch_up(node, &stream).await;
        }
    }
    let nodes: Vec<&Ledger> = nodes.iter().map(|n| &**n).collect();
    same_everywhere(&nodes, &ids).await;

    // Everything once more, batch by batch and in pairs: nothing changes.
    let before: Vec<Positions> = nodes.iter().map(|n| n.positions()).collect();
    for node in &nodes {
        for offset in 0..stream.len() {
            take(node, stream.get(offset).unwrap(), offset as u64 + 1).await;
        }
        let end = stream.len() as u64;
        let calls: Vec<_> =
            (0..end).map(|o| stream.get(o as usize).unwrap()).map(|b| node.apply(b.origin, b.records, end)).collect();
        for call in calls {
            call.await.unwrap();
        }
    }
    assert_eq!(
        nodes.iter().map(|n| n.positions().taken).collect::<Vec<_>>(),
        before.iter().map(|p| p.taken.clone()).collect::<Vec<_>>()
    );
    same_everywhere(&nodes, &ids).await;
    for node in &nodes {
        assert!(node.problems().is_empty(), "{:?}", node.problems());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_records_are_told_in_order_waited_for_and_told_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    assert_eq!(ledger.shipped_upto(), 0);
    let waiting = tokio::spawn(ledger.own(0, 1 << 20));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "nothing to tell");
    let m = message(1, 100);
    let seq = accept(&ledger, &m).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!((first.records.len(), first.records[0].seq, first.upto), (1, seq, seq));
    let body: &PackedBody = first.records[0].body.as_ref().unwrap();
    assert_eq!((body.codec, body.len), (0, m.body.as_ref().unwrap().len() as u64));

    // Over several segments, in answers of bounded size.
    let mut ids = vec![m.id];
    ids.extend(accept_all(&ledger, (0..300).map(|n| message(n, 9_000))).await.into_iter().map(|(_, id)| id));
    assert!(files(dir.path(), "log-").len() > 2, "several segments");
    let (source, _, _) = start(other.path(), small());
    variety(&source, 5_000).await;
    let stream = Stream::default();
    Shipper::default().ship(&source, &stream, 1 << 20).await;
    catch_up(&ledger, &stream).await;
    let (mut at, mut told) = (0, Vec::new());
    while let Some(own) = own(&ledger, at, 40_000).await {
        at = own.upto;
        // What only others' records follow ends with an answer that says how far that is.
        assert!(!own.records.is_empty() || at >= ledger.committed(), "nothing up to {at} of {}", ledger.committed());
        assert!(own.records.len() < 8, "{}", own.records.len());
        told.extend(own.records.iter().map(|r| r.fact.as_ref().unwrap().id));
    }
    assert_eq!(told, ids, "its own, and nothing that it took from others");
    let half = at / 2;
    ledger.shipped(half);
    ledger.close();
    assert!(matches!(ledger.own(at, 1).await, Err(LogError::Failed(_))));
    drop(ledger);
    let (ledger, _, unfinished) = start(dir.path(), small());
    assert_eq!(ledger.shipped_upto(), half);
    assert_eq!(
        unfinished.iter().map(|u| u.accepted.envelope.id).collect::<Vec<_>>(),
        ids,
        "others' messages are no work of this log's"
    );
    let rest = own(&ledger, half, usize::MAX).await.unwrap();
    assert!(!rest.records.is_empty() && rest.records[0].seq > half);
    let waiting = tokio::spawn(ledger.own(u64::MAX >> 1, 1));
    tokio::time::sleep(Duration::from_millis(50)).await;
    ledger.close();
    assert!(matches!(tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap(), Err(LogError::Failed(_))));
}

/// Remembers what it was told.
#[derive(Default)]
struct Told(Mutex<Vec<Arrived>>);

impl Observer for Told {
    fn applied(&self, batch: &[Arrived]) {
        self.0.lock().unwrap().extend_from_slice(batch);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_where_it_lies_and_whose_work_it_is() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let (ledger, sink, _) = start(here.path(), small());
    let told = Arc::new(Told::default());
    ledger.observe(told.clone());
    let (mine, forwarded, mut kept, repeated) = (message(1, 50), message(2, 50), message(3, 50), message(4, 50));
    kept.accepted.keeper = Keeper::Broker;
    let mut seqs = HashMap::new();
    for m in [&mine, &forwarded, &kept, &repeated] {
        seqs.insert(m.id, accept(&ledger, m).await.unwrap());
    }
    let ids = variety(&source, 100).await;
    let mut hidden = message(9, 50);
    hidden.accepted.storage = Storage::None;
    hidden.accepted.body = BodyRef::OwnTransient;
    accept(&source, &hidden).await.unwrap();
    let (stream, mut shipper) = (Stream::default(), Shipper::default());
    assert_eq!(ledger.home(ids[0]).await, None);
    assert!(ledger.known(ids[0]).await.unwrap().is_none());
    shipper.ship(&source, &stream, 1 << 20).await;
    catch_up(&ledger, &stream).await;

    let accepted: Vec<_> = ids[..6].iter().copied().chain([hidden.id]).collect();
    let arrived = told.0.lock().unwrap().clone();
    assert_eq!(arrived.iter().map(|a| a.id).collect::<Vec<_>>(), accepted, "told once, without what was refused");
    assert_eq!((arrived[0].resend_key, arrived[0].body_hash), (101, 100));
    for a in &arrived {
        assert_eq!(ledger.home(a.id).await, Some(a.seq));
        let known = ledger.known(a.id).await.unwrap().expect("known");
        assert_eq!((known.seq, known.accepted.envelope.id, known.routes.len()), (a.seq, a.id, 2));
    }
    assert!(ledger.known(ids[6]).await.unwrap().is_none(), "refused");
    assert_eq!(ledger.home(mine.id).await, Some(seqs[&mine.id]));
    assert_eq!(sink.0.lock().unwrap().len(), 4, "the engine is handed its own only");

    for (m, what) in [(&forwarded, What::Forwarded), (&repeated, What::Repeated { of: ids[0] })] {
        ledger.append(Append { fact: fact(m.id, seqs[&m.id], what), body: None, deliver: false }).await.unwrap();
    }
    assert_eq!(ledger.known(forwarded.id).await.unwrap().unwrap().accepted.keeper, Keeper::Broker);
    assert_eq!(ledger.unfinished_by_id(forwarded.id).await.unwrap().unwrap().accepted.keeper, Keeper::Broker);
    let done = ledger.known(repeated.id).await.unwrap().unwrap();
    assert!(done.routes.iter().all(|r| r.state == RouteState::Delivered));
    // A fact about a message that nobody knows, and the accept fact of one that is known, have no effect; what comes after still has.
    let late = ledger.home(ids[0]).await.unwrap();
    let stranger = Shipped {
        seq: 10_001,
        fact: Some(attempt(MessageId::now(), 5, "ehr", 1, Outcome::Parked).fact),
        body: None,
        transient: false,
    };
    let again = Shipped { seq: 10_002, fact: Some(message_fact(&mine)), body: None, transient: false };
    let mut parked = attempt(ids[0], 10_001, "ehr", 1, Outcome::Parked).fact;
    if let What::Attempt(a) = &mut parked.what {
        a.response = BodyRef::None;
    }
    let third = Shipped { seq: 10_003, fact: Some(parked), body: None, transient: false };
    ledger.apply(77, vec![stranger, again, third], 500).await.unwrap();
    assert_eq!(ledger.positions().taken[&77], 10_003);
    let row = ledger.known(ids[0]).await.unwrap().unwrap();
    assert_eq!((row.seq, row.routes[0].state), (late, RouteState::Parked));
    assert_eq!(ledger.home(mine.id).await, Some(seqs[&mine.id]), "its own stays its own");
    assert_eq!(told.0.lock().unwrap().len(), accepted.len());
    ledger.close();
    drop(ledger);

    let (ledger, _, unfinished) = start(here.path(), small());
    assert_eq!(unfinished.iter().map(|u| u.accepted.envelope.id).collect::<Vec<_>>(), [mine.id]);
    let status = |id| ledger.search(&Query { id: Some(id), ..Query::default() }).unwrap()[0].status;
    assert_eq!(
        (status(repeated.id), status(forwarded.id), status(ids[0])),
        (Status::Successful, Status::Processing, Status::Parked)
    );
    assert!(ledger.search(&Query { id: Some(hidden.id), ..Query::default() }).unwrap().is_empty(), "never shown");
    // From the views now; what was accepted before this run is found too.
    for id in accepted.iter().chain(seqs.keys()) {
        let seq = ledger.home(*id).await.expect("still known");
        let known = ledger.known(*id).await.unwrap().expect("still known");
        assert_eq!(known.seq, seq);
        let body = read(&ledger, seq, &known.accepted.body).await.unwrap();
        assert_eq!(body.len() as u64, known.accepted.envelope.body_len);
    }
    drop(ledger);
    let ledger = Ledger::open(options(here.path(), small())).unwrap();
    let mut window = Vec::new();
    ledger.recent(&mut |r| window.push(r.id)).unwrap();
    assert_eq!(window.len(), seqs.len() + accepted.len(), "a resend is known, wherever the first came");
}

fn message_fact(m: &Message) -> hie::engine::fact::Fact {
    m.append().fact
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_version_before_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let ids: Vec<_> = accept_all(&ledger, (0..300).map(|n| message(n, 9_000))).await.into_iter().map(|(_, id)| id).collect();
    caught_up(&ledger);
    ledger.close();
    drop(ledger);
    // As the release before left it.
    std::fs::remove_file(dir.path().join("ledger/origin")).unwrap();
    let mut logs = files(dir.path(), "log-");
    assert!(logs.len() > 2);
    logs.extend(files(dir.path(), "spare"));
    for log in logs {
        let conn = rusqlite::Connection::open(log).unwrap();
        conn.execute_batch(
            "ALTER TABLE facts DROP COLUMN origin; ALTER TABLE bodies DROP COLUMN origin; DROP TABLE taken; DROP TABLE pieces;
             PRAGMA user_version=1",
        )
        .unwrap();
    }
    let (ledger, _, unfinished) = start(dir.path(), small());
    assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
    assert_eq!((unfinished.len(), ledger.positions(), ledger.shipped_upto()), (300, Positions::default(), 0));
    let origin = ledger.origin();
    let (stream, there) = (Stream::default(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let theirs = variety(&source, 1).await;
    Shipper::default().ship(&source, &stream, 1 << 20).await;
    catch_up(&ledger, &stream).await;
    let mut told = Vec::new();
    let mut after = 0;
    while let Some(own) = own(&ledger, after, 1 << 20).await {
        after = own.upto;
        told.extend(own.records.iter().filter_map(|r| Some(r.fact.as_ref()?.id)));
    }
    assert_eq!(told, ids);
    let positions = ledger.positions();
    ledger.close();
    drop(ledger);
    let (ledger, _, unfinished) = start(dir.path(), small());
    assert_eq!((unfinished.len(), ledger.positions(), ledger.origin()), (300, positions, origin));
    caught_up(&ledger);
    for id in &theirs {
        assert_eq!(image(&ledger, *id).await, image(&source, *id).await);
    }
}
