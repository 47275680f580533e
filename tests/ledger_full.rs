//! A full disk: refused plainly, nothing acknowledged lost, work goes on when space returns.

mod ledger_support;

use bytesize::ByteSize;
use hie::config;
use hie::engine::fact::Outcome;
use hie::engine::ports::{Log, LogError};
use hie::ledger::Query;
use ledger_support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 12) else {
        println!("not run: mounting a small file system needs root");
        return;
    };
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let (ledger, _, _) = start(&disk.0, small());
    let mut known = Vec::new();
    let mut refused = 0;
    // A segment that is closed sets some space free: full is when nothing helps any more.
    while refused < 20 {
        let m = message(known.len(), 3_000);
        match accept(&ledger, &m).await {
            Ok(seq) => {
                known.push((seq, m));
                refused = 0;
            }
            Err(e) => {
                assert!(matches!(e, LogError::Full), "{e}");
                refused += 1;
            }
        }
        assert!(known.len() < 100_000, "never full");
    }
    assert!(!ledger.problems().is_empty());
    // Nobody waits for these; they are kept until they can be written.
    let (seq, first) = known[0].clone();
    ledger.append_later(attempt(first.id, seq, "ehr", 1, Outcome::Delivered));
    ledger.append_later(attempt(first.id, seq, "archive", 1, Outcome::Delivered));
    std::fs::remove_file(&ballast).unwrap();
    let mut more = 0;
    until("it takes messages again", || {
        more += 1;
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(accept(&ledger, &message(100_000 + more, 100))).is_ok()
        })
    });
    caught_up(&ledger);
    assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
    assert!(!ledger.transaction(first.id).unwrap().unwrap().row.open, "facts that nobody waited for were kept");
    ledger.close();
    drop(ledger);
    let (ledger, _, unfinished) = start(&disk.0, small());
    assert_eq!(unfinished.len(), known.len(), "all but the first, and the one after");
    for (seq, m) in known.iter().step_by(50) {
        assert_eq!(read(&ledger, *seq, &m.accepted.body).await.unwrap(), *m.body.as_ref().unwrap());
    }
    let all = ledger.search(&Query { limit: usize::MAX, ..Query::default() }).unwrap();
    assert_eq!(all.len(), known.len() + 1);
}

#[tokio::test]
async fn below_the_reserve_only_what_finishes_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 40));
    let seen = free.clone();
    let mut options = options(dir.path(), config::Ledger { min_free: ByteSize::mib(64), ..small() });
    options.free_space = Box::new(move || Some(seen.load(Ordering::Relaxed)));
    let (ledger, _, _) = start_with(options);
    let m = message(1, 100);
    let seq = accept(&ledger, &m).await.unwrap();
    free.store(63 << 20, Ordering::Relaxed);
    until("it says so", || ledger.not_ready().is_some());
    assert!(matches!(accept(&ledger, &message(2, 100)).await, Err(LogError::Full)));
    assert!(matches!(ledger.chunk(m.body.clone().unwrap(), false).await, Err(LogError::Full)));
    ledger.append(attempt(m.id, seq, "ehr", 1, Outcome::Delivered)).await.unwrap();
    free.store(1 << 40, Ordering::Relaxed);
    until("it takes messages again", || ledger.not_ready().is_none());
    accept(&ledger, &message(3, 100)).await.unwrap();
}
