//! Messages that two nodes accept at the same moment, as at a hand-over: one by this node's own hand, one read from the stream.

use super::ledger_support::stream::{Shipper, Stream, all, catch_up};
use super::ledger_support::*;
use hie::engine::fact::{Keeper, Outcome, Status};
use hie::engine::ports::{Append, Log};
use hie::engine::replica::Replica;
use std::collections::HashSet;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_comes_from_both_sides_at_once_is_one_transaction() {
    const BATCH: usize = 16;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, _, _) = start(there.path(), small());
    let (ledger, _, _) = start(here.path(), small());
    let (stream, mut shipper) = (Arc::new(Stream::default()), Shipper::default());
    let mut ids = Vec::new();
    for n in 0..120 {
        let mut messages: Vec<_> = (0..BATCH).map(|i| message(n * BATCH + i, 200)).collect();
        messages.iter_mut().for_each(|m| m.accepted.keeper = Keeper::Broker);
        let own = |m: &Message| Append { deliver: false, ..m.append() };
        for m in &messages {
            source.append(own(m)).await.unwrap();
        }
        shipper.ship(&source, &stream, 700).await;
        // Both at once, the own ones from the middle on, so that each side is first with some.
        let appends: Vec<_> = messages.iter().cycle().skip(BATCH / 2).take(BATCH).map(own).collect();
        let applying = {
            let (ledger, stream) = (ledger.clone(), stream.clone());
            tokio::spawn(async move {
                // What breaks off is read again from where the ledger stands.
                loop {
                    let mut at = ledger.positions().offset.unwrap_or(0);
                    let mut calls = Vec::new();
                    while let Some(batch) = stream.get(at as usize) {
                        at += 1;
                        calls.push(ledger.apply(batch.origin, batch.records, at));
                    }
                    let mut whole = true;
                    for call in calls {
                        whole &= call.await.is_ok();
                    }
                    if whole {
                        return;
                    }
                }
            })
        };
        let writing = {
            let ledger: Arc<_> = ledger.clone();
            tokio::spawn(async move {
                for append in appends {
                    ledger.append(append).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        };
        applying.await.unwrap();
        writing.await.unwrap();
        for m in &messages {
            let home = ledger.home(m.id).await.expect("it is there");
            for route in ["ehr", "archive"] {
                ledger.append(attempt(m.id, home, route, 1, Outcome::Delivered)).await.unwrap();
            }
        }
        ids.extend(messages.iter().map(|m| m.id));
    }
    catch_up(&ledger, &stream).await;
    caught_up(&ledger);
    let rows = all(&ledger);
    let different: HashSet<_> = rows.iter().map(|row| row.id).collect();
    assert_eq!((rows.len(), different.len()), (ids.len(), ids.len()), "each is one transaction");
    let unfinished = rows.iter().filter(|row| row.status != Status::Successful).count();
    assert_eq!(unfinished, 0, "what was written of them is found with them");
    assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
}
