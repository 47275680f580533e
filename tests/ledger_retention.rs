//! Retention: the disk stays under its limit under continuous load, nothing pending is dropped, and those who know a
//! carried message by its old number still reach it.

mod ledger_support;

use bytesize::ByteSize;
use hie::config;
use hie::engine::fact::{BodyRef, Outcome, Status};
use hie::engine::ports::{Log, LogError};
use hie::ledger::{Ledger, Query};
use ledger_support::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn tight() -> config::Ledger {
    config::Ledger { max_size: ByteSize::mib(16), segment_size: ByteSize::mib(512), ..config::Ledger::default() }
}

fn disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir.join("ledger"))
        .unwrap()
        .filter_map(|e| e.ok()?.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

/// Fills with finished messages until `done`; gives the most that was on disk.
async fn churn(ledger: &Arc<Ledger>, dir: &Path, from: usize, mut done: impl FnMut(usize) -> bool) -> u64 {
    let mut most = 0;
    let mut n = from;
    while !done(n) {
        let batch: Vec<_> = (0..64).map(|i| message(n + i, 4_000)).collect();
        let waiting: Vec<_> = batch.iter().map(|m| ledger.append(m.append())).collect();
        for (m, w) in batch.iter().zip(waiting) {
            let seq = w.await.unwrap();
            deliver(ledger, m.id, seq);
        }
        n += 64;
        let now = disk(dir);
        most = most.max(now);
    }
    most
}

#[tokio::test]
async fn the_disk_stays_under_its_limit_and_pending_messages_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (pieces, pending);
    {
        let (ledger, _, _) = start(dir.path(), tight());
        let mut kept = Vec::new();
        for n in 0..50 {
            let m = message(n, 3_000);
            let seq = accept(&ledger, &m).await.unwrap();
            if n % 2 == 0 {
                ledger.append(attempt(m.id, seq, "ehr", 1, Outcome::Parked)).await.unwrap();
            }
            kept.push((seq, m));
        }
        // One in pieces, one short-lived.
        let mut big = message(50, 10);
        let mut seqs = Vec::new();
        for i in 0..5 {
            seqs.push(ledger.chunk(message(i, 100_000).body.unwrap(), false).await.unwrap());
        }
        big.accepted.body = BodyRef::Chunks { seqs, transient: false };
        big.body = None;
        kept.push((accept(&ledger, &big).await.unwrap(), big));
        let mut brief = message(51, 5_000);
        brief.accepted.body = BodyRef::OwnTransient;
        kept.push((accept(&ledger, &brief).await.unwrap(), brief));
        pieces = (0..5).flat_map(|i| message(i, 100_000).body.unwrap().to_vec()).collect::<Vec<u8>>();

        let first_log = files(dir.path(), "log-").remove(0);
        // Through the whole ledger twice: some are carried more than once.
        let most = churn(&ledger, dir.path(), 1_000, |n| n > 12_000).await;
        assert!(!first_log.exists(), "retention has done nothing");
        assert!(most <= tight().max_size.as_u64(), "{most} bytes on disk");
        caught_up(&ledger);

        for (n, (seq, m)) in kept.iter().enumerate() {
            // By the old number.
            assert_eq!(ledger.accepted(*seq).await.unwrap().envelope.id, m.id);
            let body = read(&ledger, *seq, &m.accepted.body).await.unwrap();
            assert!(body == m.body.as_ref().map_or(pieces.clone(), |b| b.to_vec()), "body of {n}");
            let row = ledger.search(&Query { id: Some(m.id), ..Query::default() }).unwrap().pop().expect("found");
            let wanted = if n < 50 && n % 2 == 0 { Status::Parked } else { Status::Processing };
            assert_eq!((row.status, row.open), (wanted, true), "message {n}");
            assert!(row.seq > *seq, "message {n} was not carried");
        }
        // Facts under the old number count.
        for (seq, m) in &kept[..10] {
            deliver(&ledger, m.id, *seq);
        }
        caught_up(&ledger);
        let done = ledger.search(&Query { control_id: Some("C3".into()), ..Query::default() }).unwrap();
        assert!(done.iter().any(|r| r.id == kept[3].1.id && r.status == Status::Successful));
        pending = kept;
        ledger.close();
    }
    let (ledger, _, unfinished) = start(dir.path(), tight());
    let mut ids: Vec<_> = unfinished.iter().map(|u| u.accepted.envelope.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, pending[10..].iter().map(|(_, m)| m.id).collect::<Vec<_>>());
    for u in &unfinished {
        let body = read(&ledger, u.seq, &u.accepted.body).await.unwrap();
        let (_, m) = pending.iter().find(|(_, m)| m.id == u.accepted.envelope.id).unwrap();
        assert!(body == m.body.as_ref().map_or(pieces.clone(), |b| b.to_vec()));
    }
    ledger.close();
    drop(ledger);

    // The same from the logs alone.
    for file in files(dir.path(), "view-").into_iter().chain(files(dir.path(), "filter-")) {
        std::fs::remove_file(file).unwrap();
    }
    let (_, _, again) = start(dir.path(), tight());
    let facts = |all: &[hie::engine::ports::Unfinished]| {
        all.iter().map(|u| (u.seq, u.accepted.envelope.id, u.routes.clone())).collect::<Vec<_>>()
    };
    assert_eq!(facts(&again), facts(&unfinished));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_segments_go_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Ledger { retention: Duration::from_secs(1), segment_age: Duration::from_millis(300), ..small() };
    let (ledger, _, _) = start(dir.path(), config);
    let (old, parked) = (message(1, 100), message(2, 100));
    let seq = accept(&ledger, &old).await.unwrap();
    deliver(&ledger, old.id, seq);
    accept(&ledger, &parked).await.unwrap();
    until("the old one goes", || {
        // A segment is closed by what comes after its age.
        one_more(&ledger);
        ledger.transaction(old.id).unwrap().is_none()
    });
    caught_up(&ledger);
    assert!(ledger.transaction(parked.id).unwrap().is_some_and(|d| d.row.open));
}

fn one_more(ledger: &Arc<Ledger>) {
    let m = message(7, 100);
    let waiting = ledger.append(m.append());
    tokio::task::block_in_place(|| {
        let _ = tokio::runtime::Handle::current().block_on(waiting);
    });
}

#[tokio::test]
async fn when_pending_messages_fill_it_nothing_more_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), tight());
    let mut pending = Vec::new();
    let refused = loop {
        let batch: Vec<_> = (0..32).map(|i| message(pending.len() + i, 4_000)).collect();
        let waiting: Vec<_> = batch.iter().map(|m| ledger.append(m.append())).collect();
        let mut end = None;
        for (m, w) in batch.into_iter().zip(waiting) {
            match w.await {
                Ok(seq) => pending.push((seq, m)),
                Err(e) => end = Some(e),
            }
        }
        if let Some(e) = end {
            break e;
        }
        assert!(pending.len() < 20_000, "never refused");
    };
    assert!(matches!(refused, LogError::Full));
    assert!(ledger.not_ready().is_some() && !ledger.problems().is_empty());
    assert!(disk(dir.path()) < tight().max_size.as_u64() * 5 / 4, "{}", disk(dir.path()));
    // What finishes them is still taken, and then there is room again.
    for (seq, m) in &pending {
        ledger.append(attempt(m.id, *seq, "ehr", 1, Outcome::Delivered)).await.unwrap();
        ledger.append(attempt(m.id, *seq, "archive", 1, Outcome::Delivered)).await.unwrap();
    }
    until("room again", || ledger.not_ready().is_none());
    accept(&ledger, &message(1, 100)).await.unwrap();
}
