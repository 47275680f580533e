//! A process killed at a random moment: everything acknowledged is there afterwards, in order, and work goes on.

mod ledger_support;

use hie::engine::ports::Log;
use hie::ledger::Query;
use hie::message::MessageId;
use ledger_support::*;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const ROUNDS: u64 = 6;

/// Not a test by itself: the process that is killed. Prints each id when it is acknowledged.
#[test]
fn child() {
    let Ok(dir) = std::env::var("HIE_LEDGER_CRASH_DIR") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ledger, _, _) = start(dir.as_ref(), small());
        let writers: Vec<_> = (0..8)
            .map(|w| {
                let ledger = ledger.clone();
                tokio::spawn(async move {
                    for n in 0..1_000_000 {
                        let m = message(w * 1_000_000 + n, 900);
                        let seq = accept(&ledger, &m).await.unwrap();
                        writeln!(std::io::stdout(), "ack {}", m.id).unwrap();
                        if n % 3 == 0 {
                            deliver(&ledger, m.id, seq);
                        }
                    }
                })
            })
            .collect();
        for w in writers {
            w.await.unwrap();
        }
    });
}

#[test]
fn everything_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<MessageId> = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("HIE_LEDGER_CRASH_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.filter_map(|l| l.split("ack ").nth(1)?.parse().ok()).collect::<Vec<MessageId>>()
        });
        std::thread::sleep(Duration::from_millis(400 + round * 150));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(reader.join().unwrap());

        let (ledger, _, unfinished) = start(dir.path(), small());
        assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
        caught_up(&ledger);
        let stored: HashSet<_> = ledger
            .search(&Query { limit: usize::MAX, deadline: Duration::from_secs(60), ..Query::default() })
            .unwrap()
            .iter()
            .map(|r| r.id)
            .collect();
        let missing = acknowledged.iter().filter(|id| !stored.contains(id)).count();
        assert_eq!(missing, 0, "of {} acknowledged", acknowledged.len());
        assert!(unfinished.is_sorted_by_key(|u| u.seq));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for u in unfinished.iter().rev().take(20) {
            assert_eq!(
                runtime.block_on(read(&ledger, u.seq, &u.accepted.body)).unwrap().len() as u64,
                u.accepted.envelope.body_len
            );
        }
        // Finish some, so that the next round starts from another state.
        for u in unfinished.iter().step_by(2) {
            deliver(&ledger, u.accepted.envelope.id, u.seq);
        }
        ledger.finished(1);
    }
    assert!(acknowledged.len() > 500, "only {} acknowledged", acknowledged.len());
}
