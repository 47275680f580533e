//! A power cut takes with it what was written without a sync: the views may be older than the log, some more than others. The
//! answers are the same afterwards.

mod ledger_support;

use hie::engine::fact::{Outcome, Status};
use hie::engine::ports::Log;
use hie::ledger::Query;
use ledger_support::*;
use std::path::Path;

fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if wanted(entry.file_name().to_str().unwrap()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn views_that_lost_their_latest_writes_catch_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("ledger");
    let saved = dir.path().join("saved");
    let mut known = Vec::new();
    {
        let (ledger, _, _) = start(dir.path(), small());
        for n in 0..1_200 {
            let m = message(n, 1_500);
            known.push((accept(&ledger, &m).await.unwrap(), m));
        }
        caught_up(&ledger);
        ledger.close();
    }
    // What is on stable storage of the views now …
    copy(&store, &saved, |name| name.starts_with("view-") || name == "marks.json");
    let wanted = {
        let (ledger, _, _) = start(dir.path(), small());
        for (n, (seq, m)) in known.iter().enumerate() {
            match n % 3 {
                0 => deliver(&ledger, m.id, *seq),
                1 => {
                    ledger.append(attempt(m.id, *seq, "ehr", 1, Outcome::Parked)).await.unwrap();
                }
                _ => {}
            }
        }
        caught_up(&ledger);
        let all = ledger.search(&Query { limit: 10_000, ..Query::default() }).unwrap();
        assert_eq!(all.iter().filter(|r| r.status == Status::Successful).count(), 400);
        ledger.close();
        all
    };
    // … is all that is left of the older ones, while the newest has everything: written in the same boot.
    let newest = files(dir.path(), "view-").pop().unwrap();
    let newest = newest.file_name().unwrap().to_str().unwrap().to_owned();
    for entry in std::fs::read_dir(&store).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("view-") && !name.starts_with(&newest) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    copy(&saved, &store, |name| !name.starts_with(&newest));
    let mut options = options(dir.path(), small());
    options.boot_id = Box::new(|| Some("boot-2".into()));
    let (ledger, _, unfinished) = start_with(options);
    assert_eq!(unfinished.len(), 800);
    let all = ledger.search(&Query { limit: 10_000, ..Query::default() }).unwrap();
    assert!(all == wanted);
}
