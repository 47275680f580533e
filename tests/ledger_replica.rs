//! Ledgers that ship what they wrote to each other: every transaction is found in all of them, whatever comes twice, stops or is killed.

mod ledger_support;

use bytesize::ByteSize;
use hie::channel::Storage;
use hie::config;
use hie::engine::fact::{BodyRef, Keeper, Outcome, RouteState, Status, What};
use hie::engine::ports::{Append, Log, LogError};
use hie::engine::replica::{Arrived, Observer, PackedBody, Positions, Replica, Shipped};
use hie::ledger::{Ledger, Query};
use hie::message::MessageId;
use ledger_support::stream::{Batch, Shipper, Stream, all, at, catch_up, image, own, take};
use ledger_support::*;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
    let mut shippers = vec![Shipper::default(); 3];
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
        assert!(!own.records.is_empty() && own.records.len() < 8, "{}", own.records.len());
        at = own.upto;
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
async fn pieces_and_short_lived_bodies_wait_for_their_fact_over_restarts() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let ids = variety(&source, 1).await;
    let (stream, mut shipper) = (Stream::default(), Shipper::default());
    // A record to a batch.
    shipper.ship(&source, &stream, 1).await;
    assert!(stream.len() > 14);
    for offset in 0..stream.len() {
        let (ledger, _, _) = start(here.path(), small());
        take(&ledger, stream.get(offset).unwrap(), offset as u64 + 1).await;
        assert_eq!(ledger.positions().offset, Some(offset as u64 + 1));
        // Time for what is not needed to be removed.
        std::thread::sleep(Duration::from_millis(50));
    }
    let (ledger, _, _) = start(here.path(), small());
    same_everywhere(&[&source, &ledger], &ids).await;
    // Short-lived bodies go when they are finished, here as there.
    assert!(!files(here.path(), "transient-").is_empty());
    for id in &ids[3..5] {
        let home = source.home(*id).await.unwrap();
        deliver(&source, *id, home);
    }
    shipper.ship(&source, &stream, 1 << 20).await;
    catch_up(&ledger, &stream).await;
    caught_up(&ledger);
    // They are of earlier runs: none is being written.
    until("the short-lived files go", || files(here.path(), "transient-").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_carries_what_others_accepted_and_pieces_that_wait() {
    let tight = || config::Ledger { max_size: ByteSize::mib(16), segment_size: ByteSize::mib(512), ..config::Ledger::default() };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let ids = variety(&source, 1).await;
    let (stream, mut shipper) = (Stream::default(), Shipper::default());
    shipper.ship(&source, &stream, 1).await;
    // The pieces of one message come now, its fact much later.
    let mut late = message(50, 10);
    let mut seqs = Vec::new();
    for i in 0..3 {
        seqs.push(source.chunk(message(i, 60_000).body.unwrap(), false).await.unwrap());
    }
    shipper.ship(&source, &stream, 1).await;
    late.accepted.body = BodyRef::Chunks { seqs, transient: false };
    late.body = None;
    let (ledger, _, _) = start(here.path(), tight());
    catch_up(&ledger, &stream).await;
    let mine = message(60, 500);
    accept(&ledger, &mine).await.unwrap();
    let first_log = files(here.path(), "log-").remove(0);
    let mut filled = tempfile::tempdir().unwrap();
    for turn in 0..2 {
        // Some of it comes from others, some is its own; all of it is finished.
        let (filler, _, _) = start(filled.path(), small());
        let flood = Stream::default();
        for (log, from, len) in [(&filler, turn * 10_000, 3_000), (&ledger, turn * 10_000 + 5_000, 1_000)] {
            for part in 0..40 {
                let some = (0..64).map(|n| message(from + part * 64 + n, len));
                for (seq, id) in accept_all(log, some).await {
                    deliver(log, id, seq);
                }
            }
        }
        Shipper::default().ship(&filler, &flood, 1 << 18).await;
        let before = ledger.positions().offset.unwrap_or(0);
        for offset in 0..flood.len() {
            let batch = flood.get(offset).unwrap();
            ledger.apply(batch.origin, batch.records, before).await.unwrap();
        }
        filled = tempfile::tempdir().unwrap();
    }
    caught_up(&ledger);
    assert!(!first_log.exists(), "retention has done nothing");
    accept(&source, &late).await.unwrap();
    shipper.ship(&source, &stream, 1).await;
    catch_up(&ledger, &stream).await;
    caught_up(&ledger);
    for id in ids.iter().take(6).chain([&late.id]) {
        assert_eq!(image(&ledger, *id).await, image(&source, *id).await);
    }
    let before = ledger.positions();
    // What is carried is not shipped.
    let (mut after, mut shipped) = (0, Vec::new());
    while let Some(own) = own(&ledger, after, 1 << 20).await {
        after = own.upto;
        shipped.extend(own.records);
    }
    assert!(shipped.iter().all(|r| r.fact.is_some()), "pieces of others");
    assert!(shipped.iter().all(|r| r.fact.as_ref().is_some_and(|f| !ids.contains(&f.id) && f.id != late.id)));
    ledger.close();
    drop(ledger);
    let (ledger, _, unfinished) = start(here.path(), tight());
    assert_eq!(
        unfinished.iter().map(|u| u.accepted.envelope.id).collect::<Vec<_>>(),
        [mine.id],
        "it is still known whose they are"
    );
    assert_eq!(ledger.positions(), before, "the newest log says it all");
    for id in ids.iter().take(6).chain([&late.id]) {
        assert_eq!(image(&ledger, *id).await, image(&source, *id).await);
        let known = ledger.known(*id).await.unwrap().unwrap();
        assert_eq!(ledger.home(*id).await, Some(known.seq));
    }
    // Facts about them still find them.
    work_on(&source, &ids[..4]).await;
    shipper.ship(&source, &stream, 1 << 20).await;
    catch_up(&ledger, &stream).await;
    caught_up(&ledger);
    caught_up(&source);
    for id in &ids[..4] {
        assert_eq!(image(&ledger, *id).await, image(&source, *id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removes_unshipped_is_told_and_passed_over() {
    let tight = || config::Ledger { max_size: ByteSize::mib(16), segment_size: ByteSize::mib(512), ..config::Ledger::default() };
    for shipped in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _, _) = start(dir.path(), tight());
        let first_log = files(dir.path(), "log-").remove(0);
        let mut last = None;
        let mut after = 0;
        for n in 0..80 {
            for (seq, id) in accept_all(&ledger, (0..64).map(|i| message(n * 64 + i, 4_000))).await {
                deliver(&ledger, id, seq);
                last = Some(id);
            }
            if n == 0 || shipped {
                let told = ledger.own(after, 4 << 20).await.unwrap();
                after = told.upto;
                if shipped {
                    ledger.shipped(told.records.last().unwrap().seq);
                }
            }
        }
        assert!(!first_log.exists(), "retention has done nothing");
        let told: Vec<_> = ledger.problems().into_iter().filter(|p| p.what == "shipping").collect();
        assert_eq!(told.len(), usize::from(!shipped), "{told:?}");
        ledger.durable().await.unwrap();
        let mut seen = None;
        while let Some(own) = own(&ledger, after, 4 << 20).await {
            after = own.upto;
            seen = own.records.iter().rev().find_map(|r| Some(r.fact.as_ref()?.id)).or(seen);
        }
        assert_eq!(seen, last);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_what_is_being_applied() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    accept_all(&source, (0..300).map(|n| message(n, 3_000))).await;
    let stream = Stream::default();
    Shipper::default().ship(&source, &stream, 20_000).await;
    let (ledger, _, _) = start(here.path(), small());
    let calls: Vec<_> = (0..stream.len())
        .map(|at| stream.get(at).unwrap())
        .enumerate()
        .map(|(i, b)| tokio::spawn(ledger.apply(b.origin, b.records, i as u64 + 1)))
        .collect();
    let closing = ledger.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    let mut done = 0;
    for call in calls {
        let ended = tokio::time::timeout(Duration::from_secs(5), call).await.expect("it ends").unwrap();
        done += u64::from(ended.is_ok());
    }
    assert!(ledger.apply(1, Vec::new(), 1).await.is_err());
    drop(ledger);
    let (ledger, _, _) = start(here.path(), small());
    assert!(ledger.positions().offset.unwrap_or(0) >= done);
    catch_up(&ledger, &stream).await;
    caught_up(&ledger);
    assert_eq!(all(&ledger).len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_log_the_stream_is_read_again_from_before_it() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let accepted = accept_all(&source, (0..800).map(|n| message(n, 6_000))).await;
    accepted.iter().step_by(2).for_each(|(seq, id)| deliver(&source, *id, *seq));
    let ids: Vec<_> = accepted.into_iter().map(|(_, id)| id).collect();
    let stream = Stream::default();
    Shipper::default().ship(&source, &stream, 30_000).await;
    let (ledger, _, _) = start(here.path(), small());
    catch_up(&ledger, &stream).await;
    let whole = ledger.positions();
    ledger.close();
    drop(ledger);
    let logs = files(here.path(), "log-");
    assert!(logs.len() > 3);
    let at_end = stream.len() as u64;
    assert_eq!(whole, at(at_end, &[(source.origin(), whole.taken[&source.origin()])]));

    // In the middle; the newest; the oldest; and one that is gone.
    for (round, victim) in [1, usize::MAX, 0, 1].into_iter().enumerate() {
        let logs = files(here.path(), "log-");
        let victim = &logs[victim.min(logs.len() - 1)];
        if round < 3 {
            let file = std::fs::OpenOptions::new().write(true).open(victim).unwrap();
            file.set_len(5_000).unwrap();
        } else {
            std::fs::remove_file(victim).unwrap();
        }
        let (ledger, _, _) = start(here.path(), small());
        assert!(!ledger.problems().is_empty());
        let back = ledger.positions();
        assert!(back.offset < whole.offset, "round {round}: {back:?}");
        catch_up(&ledger, &stream).await;
        assert_eq!(ledger.positions(), whole, "round {round}");
        caught_up(&ledger);
        for id in &ids {
            let (mut ours, mut theirs) = (image(&ledger, *id).await.expect("found again"), image(&source, *id).await.unwrap());
            // Attempts that were there are told twice now.
            ours.truncate(ours.find('[').unwrap_or(ours.len()).min(90));
            theirs.truncate(ours.len());
            assert_eq!(ours, theirs, "round {round}");
        }
        assert_eq!(all(&ledger).len(), ids.len(), "round {round}: none twice");
        ledger.close();
        drop(ledger);
        if round == 3 {
            // It is read again once, not at each start.
            let (ledger, _, _) = start(here.path(), small());
            assert_eq!(ledger.positions(), whole);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ledger_takes_no_more_and_leaves_no_hole() {
    let tight = config::Ledger { max_size: ByteSize::mib(16), segment_size: ByteSize::mib(512), ..config::Ledger::default() };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let sent = accept_all(&source, (0..4_000).map(|n| message(n, 4_000))).await;
    let (stream, mut shipper) = (Stream::default(), Shipper::default());
    shipper.ship(&source, &stream, 200_000).await;
    let (ledger, _, _) = start(here.path(), tight);
    // Several calls under way: what comes after one that failed fails too.
    let mut offset = 0;
    let refused = loop {
        let calls: Vec<_> = (offset..(offset + 3).min(stream.len()))
            .map(|at| stream.get(at).unwrap())
            .enumerate()
            .map(|(i, b)| ledger.apply(b.origin, b.records, (offset + i + 1) as u64))
            .collect();
        assert!(!calls.is_empty(), "never refused");
        let mut results = Vec::new();
        for call in calls {
            results.push(call.await);
        }
        let failed = results.iter().position(Result::is_err);
        if let Some(first) = failed {
            assert!(results[first..].iter().all(Result::is_err));
            offset += first;
            break results.remove(first).unwrap_err();
        }
        offset += results.len();
    };
    assert!(matches!(refused, LogError::Full), "{refused:?}");
    let high = ledger.positions();
    assert_eq!(high.offset, Some(offset as u64));
    let beyond = stream.get(offset + 1).unwrap();
    assert!(ledger.apply(beyond.origin, beyond.records, offset as u64 + 2).await.is_err(), "not before the one that failed");
    assert_eq!(ledger.positions(), high);
    // What finishes the messages that are here is taken, and makes room.
    let here_now = all(&ledger).into_iter().map(|r| r.id).collect::<std::collections::HashSet<_>>();
    for (seq, id) in sent.iter().filter(|(_, id)| here_now.contains(id)) {
        deliver(&source, *id, *seq);
    }
    let end = Stream::default();
    shipper.ship(&source, &end, 1 << 20).await;
    for at in 0..end.len() {
        // Told by another origin, so that it need not wait for its turn.
        let batch = end.get(at).unwrap();
        ledger.apply(4711, batch.records, offset as u64).await.unwrap();
    }
    until("room again", || ledger.not_ready().is_none());
    for at in offset..stream.len() {
        let batch = stream.get(at).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(e) = ledger.apply(batch.origin, batch.records.clone(), at as u64 + 1).await {
            if Instant::now() > deadline || at > offset + 5 {
                // Full again, of what is not finished: told, and nothing skipped.
                assert!(matches!(e, LogError::Full));
                return;
            }
        }
    }
}

/// Not a test by itself: the process that is killed. Applies the stream in a file, several calls at a time, and tells each that is durable.
#[test]
fn child() {
    let Ok(dir) = std::env::var("HIE_LEDGER_REPLICA_DIR") else { return };
    let stream = load(dir.as_ref());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ledger, _, _) = start(Path::new(&dir), small());
        let mut offset = ledger.positions().offset.unwrap_or(0) as usize;
        let mut waiting = std::collections::VecDeque::new();
        while let Some(batch) = stream.get(offset) {
            offset += 1;
            waiting.push_back((offset, ledger.apply(batch.origin, batch.records, offset as u64)));
            // Own messages between them.
            let m = message(offset, 200);
            ledger.append_later(m.append());
            if waiting.len() >= 4 {
                let (offset, call) = waiting.pop_front().unwrap();
                call.await.unwrap();
                writeln!(std::io::stdout(), "done {offset}").unwrap();
            }
        }
        for (offset, call) in waiting {
            call.await.unwrap();
            writeln!(std::io::stdout(), "done {offset}").unwrap();
        }
        writeln!(std::io::stdout(), "end").unwrap();
        std::thread::sleep(Duration::from_secs(60));
    });
}

fn load(dir: &Path) -> Stream {
    let bytes = std::fs::read(dir.join("stream")).unwrap();
    Stream(Mutex::new(rmp_serde::from_slice(&bytes).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_survive_kill_9_exactly_with_the_data() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let mut ids = Vec::new();
    for n in 0..60 {
        ids.extend(variety(&source, n * 10).await);
        ids.extend(accept_all(&source, (0..30).map(|i| message(n * 10 + i, 700))).await.into_iter().map(|(_, id)| id));
        let some: Vec<_> = ids.iter().rev().take(16).step_by(2).copied().collect();
        work_on(&source, &some).await;
    }
    let stream = Stream::default();
    Shipper::default().ship(&source, &stream, 20_000).await;
    let records: Vec<Shipped> = (0..stream.len()).flat_map(|o| stream.get(o).unwrap().records).collect();
    let batches: Vec<Batch> = (0..stream.len()).map(|o| stream.get(o).unwrap()).collect();
    std::fs::write(here.path().join("stream"), rmp_serde::to_vec(&*stream.0.lock().unwrap()).unwrap()).unwrap();
    const ROUNDS: usize = 8;
    let mut partial = 0;
    for round in 0.. {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("HIE_LEDGER_REPLICA_DIR", here.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        // Killed when it has come so far, or, in the last round, to the end.
        let target = stream.len() * (round + 1) / ROUNDS + 1;
        let mut told = 0;
        let mut finished = false;
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            told = line.split("done ").nth(1).and_then(|n| n.parse().ok()).unwrap_or(told);
            finished = line == "end";
            if finished || told >= target {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let (ledger, _, _) = start(here.path(), small());
        assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
        let Positions { offset, taken } = ledger.positions();
        let taken = taken.get(&source.origin()).copied().unwrap_or(0);
        assert!(offset.unwrap_or(0) >= told as u64, "what was told to be durable is");
        // What the offset covers is taken, and nothing beyond the batches that were under way.
        let covered = batches[..offset.unwrap_or(0) as usize].last().map_or(0, |b| b.records.last().unwrap().seq);
        assert!(taken >= covered);
        partial += usize::from(taken > covered || offset.unwrap_or(0) > told as u64);
        caught_up(&ledger);
        let mut facts = HashMap::new();
        for record in records.iter().filter(|r| r.seq <= taken) {
            if let Some(fact) = &record.fact {
                *facts.entry(fact.id).or_insert(0) += 1;
            }
        }
        for id in &ids {
            let has = ledger.transaction(*id).unwrap().map_or(0, |d| d.facts.len());
            assert_eq!(has, facts.get(id).copied().unwrap_or(0), "round {round}: facts up to {taken}, each once");
        }
        ledger.close();
        drop(ledger);
        if finished {
            break;
        }
        assert!(round < ROUNDS, "it never comes to the end");
    }
    let (ledger, _, unfinished) = start(here.path(), small());
    assert_eq!(ledger.positions().offset, Some(stream.len() as u64));
    assert!(unfinished.iter().all(|u| !ids.contains(&u.accepted.envelope.id)));
    caught_up(&ledger);
    caught_up(&source);
    for id in &ids {
        assert_eq!(image(&ledger, *id).await, image(&source, *id).await);
    }
    println!("{partial} times something was under way when it was killed");
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

#[tokio::test(flavor = "multi_thread")]
async fn many_records_are_taken_in() {
    const MESSAGES: usize = 33_334;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let big = || config::Ledger { max_size: ByteSize::gib(4), ..config::Ledger::default() };
    let (source, _, _) = start(there.path(), big());
    for n in 0..MESSAGES / 64 + 1 {
        for (seq, id) in accept_all(&source, (0..64).map(|i| message(n * 64 + i, 600))).await {
            deliver(&source, id, seq);
        }
    }
    let stream = Stream::default();
    let began = Instant::now();
    assert!(source.caught_up(Duration::from_secs(60)));
    let began = Instant::now();
    let mut after = 0;
    while after < source.committed() {
        after = source.own(after, 256 << 10).await.unwrap().upto;
    }
    println!("told in {:.1} s", began.elapsed().as_secs_f64());
    Shipper::default().ship(&source, &stream, 256 << 10).await;
    let records: usize = (0..stream.len()).map(|o| stream.get(o).unwrap().records.len()).sum();
    println!("{records} records shipped in {} batches, {:.1} s", stream.len(), began.elapsed().as_secs_f64());
    let (ledger, _, _) = start(here.path(), big());
    let batches: Vec<Batch> = (0..stream.len()).map(|o| stream.get(o).unwrap()).collect();
    let began = Instant::now();
    let mut waiting = std::collections::VecDeque::new();
    for (offset, batch) in batches.into_iter().enumerate() {
        waiting.push_back(ledger.apply(batch.origin, batch.records, offset as u64 + 1));
        if waiting.len() >= 4 {
            waiting.pop_front().unwrap().await.unwrap();
        }
    }
    for call in waiting {
        call.await.unwrap();
    }
    let took = began.elapsed().as_secs_f64();
    println!("{records} records applied in {took:.1} s: {:.0} a second", records as f64 / took);
    assert!(records >= 100_000);
    assert!(ledger.caught_up(Duration::from_secs(60)));
    assert_eq!(
        ledger.stats().transactions,
        source.search(&Query { limit: usize::MAX, deadline: Duration::from_secs(60), ..Query::default() }).unwrap().len() as u64
    );
    assert_eq!(ledger.stats().open, 0);
}
