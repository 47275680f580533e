//! Views: what can be asked, the same answers after they were deleted or damaged, and what storage modes hide.

mod ledger_support;

use hie::channel::Storage;
use hie::engine::fact::{BodyRef, Outcome, Seq, Status, What};
use hie::engine::ports::{Append, Log};
use hie::ledger::{Ledger, Query, Row, SearchError};
use ledger_support::*;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const MESSAGES: usize = 3_000;

/// Messages over several segments in every state.
async fn fill(ledger: &Ledger) -> Vec<(Seq, Message)> {
    let mut known = Vec::new();
    for n in 0..MESSAGES {
        let m = message(n, 700);
        let seq = if n % 50 == 0 {
            accept(ledger, &m).await.unwrap()
        } else {
            // Many in one group.
            let waiting = ledger.append(m.append());
            waiting.await.unwrap()
        };
        match n % 10 {
            0 => {}
            1 => ledger.append_later(attempt(m.id, seq, "ehr", 1, Outcome::Parked)),
            2 => {
                ledger.append_later(attempt(m.id, seq, "ehr", 1, Outcome::Delivered));
                ledger.append_later(attempt(m.id, seq, "archive", 1, Outcome::Parked));
            }
            _ => deliver(ledger, m.id, seq),
        }
        known.push((seq, m));
    }
    // Finished only now, from a later segment.
    let (seq, m) = &known[0];
    deliver(ledger, m.id, *seq);
    known
}

fn answers(ledger: &Ledger, known: &[(Seq, Message)]) -> Vec<Vec<Row>> {
    let all = Query { limit: 100_000, ..Query::default() };
    let mut queries = vec![
        all.clone(),
        Query { status: vec![Status::Parked], ..all.clone() },
        Query { status: vec![Status::Processing], ..all.clone() },
        Query { status: vec![Status::Successful, Status::CompletedWithErrors], ..all.clone() },
        Query { open: true, ..all.clone() },
        Query { parked: true, ..all.clone() },
        Query { client: Some("lab".into()), kind: Some("ADT^A01".into()), ..all.clone() },
        Query { channel: Some("no.such".into()), ..all.clone() },
        Query { control_id: Some("no such".into()), ..all.clone() },
    ];
    for n in [0, 1, 777, MESSAGES - 1] {
        queries.push(Query { id: Some(known[n].1.id), ..all.clone() });
        queries.push(Query { control_id: Some(format!("C{n}")), ..all.clone() });
        queries.push(Query { patient: Some(format!("P{n}")), ..all.clone() });
    }
    queries.iter().map(|q| ledger.search(q).unwrap()).collect()
}

#[tokio::test]
async fn every_question_has_its_answer_and_the_same_after_the_views_were_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (before, known);
    {
        let (ledger, _, _) = start(dir.path(), small());
        known = fill(&ledger).await;
        caught_up(&ledger);
        assert!(files(dir.path(), "log-").len() >= 3, "several segments were wanted");
        before = answers(&ledger, &known);
        let counts: Vec<usize> = before.iter().map(Vec::len).collect();
        let tenth = MESSAGES / 10;
        assert_eq!(counts[..9], [MESSAGES, tenth, tenth - 1, MESSAGES - 2 * tenth + 1, 3 * tenth - 1, 2 * tenth, MESSAGES, 0, 0]);
        assert!(counts[9..].iter().all(|n| *n == 1));
        assert!(before[0].is_sorted_by(|a, b| a.seq > b.seq), "newest first");
        assert_eq!(ledger.stats().transactions, MESSAGES as u64);
        assert_eq!(ledger.stats().open, 3 * tenth as u64 - 1);

        // Page after page gives the same as all at once.
        let mut paged = Vec::new();
        let mut query = Query { limit: 170, ..Query::default() };
        loop {
            let page = ledger.search(&query).unwrap();
            let Some(last) = page.last() else { break };
            query.before = Some(last.seq);
            paged.extend(page);
        }
        assert_eq!(paged, before[0]);
        let offset = ledger.search(&Query { limit: 5, offset: 1000, ..Query::default() }).unwrap();
        assert_eq!(offset, before[0][1000..1005]);
        ledger.close();
    }
    for damage in [delete_views, garbage_in_views, truncate_views, foreign_views] {
        damage(dir.path());
        let (ledger, _, unfinished) = start(dir.path(), small());
        assert_eq!(unfinished.len(), 3 * MESSAGES / 10 - 1);
        same(&answers(&ledger, &known), &before);
        assert!(ledger.problems().is_empty(), "{:?}", ledger.problems());
        ledger.close();
    }
}

/// Segments may hold nothing but pieces of bodies, which have numbers and are no facts.
#[tokio::test]
async fn views_that_are_behind_go_through_segments_full_of_pieces_without_a_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    accept(&ledger, &message(0, 700)).await.unwrap();
    caught_up(&ledger);
    // Somebody else holds the view meanwhile.
    let other = rusqlite::Connection::open(&files(dir.path(), "view-")[0]).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    accept(&ledger, &message(1, 700)).await.unwrap();
    for i in 0..80 {
        ledger.chunk(message(i, 300_000).body.unwrap(), false).await.unwrap();
        // Each in a commit of its own: a large one may fill several times the size of a segment.
        ledger.durable().await.unwrap();
    }
    accept(&ledger, &message(2, 700)).await.unwrap();
    other.execute_batch("ROLLBACK").unwrap();
    let began = Instant::now();
    caught_up(&ledger);
    assert!(began.elapsed() < Duration::from_secs(7), "they took a rest: {:?}", began.elapsed());
    assert!(files(dir.path(), "log-").len() >= 15, "many segments were wanted");
    assert_eq!(ledger.search(&Query { control_id: Some("C2".into()), ..Query::default() }).unwrap().len(), 1);
}

/// Names the first difference only: the answers are long.
fn same(now: &[Vec<Row>], before: &[Vec<Row>]) {
    for (question, (now, before)) in now.iter().zip(before).enumerate() {
        let differ = now.iter().zip(before).find(|(n, b)| n != b);
        assert!(differ.is_none(), "question {question}: {differ:?}");
        assert_eq!(now.len(), before.len(), "answers to question {question}");
    }
}

fn delete_views(dir: &Path) {
    for file in files(dir, "view-").into_iter().chain(files(dir, "filter-")) {
        std::fs::remove_file(file).unwrap();
    }
}

fn garbage_in_views(dir: &Path) {
    for file in files(dir, "view-") {
        let mut file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&[0x55; 8192]).unwrap();
    }
}

fn truncate_views(dir: &Path) {
    for file in files(dir, "view-") {
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(5000).unwrap();
    }
}

fn foreign_views(dir: &Path) {
    let view = files(dir, "view-").remove(0);
    std::fs::copy(&files(dir, "log-")[0], view).unwrap();
}

#[tokio::test]
async fn a_view_damaged_while_running_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let known = fill(&ledger).await;
    caught_up(&ledger);
    let before = answers(&ledger, &known);
    ledger.close();
    let (ledger, _, _) = start(dir.path(), small());
    let view = files(dir.path(), "view-").remove(0);
    let size = view.metadata().unwrap().len();
    let mut file = std::fs::OpenOptions::new().write(true).open(&view).unwrap();
    // Leave the first page, so that only use finds it.
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0x55; size as usize - 4096]).unwrap();
    drop(file);
    // Found by the search, which waits for it.
    let found = ledger.search(&Query { limit: 100_000, ..Query::default() }).expect("made again meanwhile");
    assert_eq!(found.len(), known.len());
    let hurried = Query { limit: 100_000, deadline: std::time::Duration::ZERO, ..Query::default() };
    assert!(ledger.search(&hurried).is_err(), "not beyond its deadline");
    same(&answers(&ledger, &known), &before);
}

#[tokio::test]
async fn a_damaged_file_of_keys_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let known = fill(&ledger).await;
    caught_up(&ledger);
    let before = answers(&ledger, &known);
    until("closed segments have their keys in a file", || {
        files(dir.path(), "filter-").len() == files(dir.path(), "log-").len() - 1
    });
    for file in files(dir.path(), "filter-") {
        let len = file.metadata().unwrap().len() as usize;
        std::fs::write(file, vec![0x55; len]).unwrap();
    }
    same(&answers(&ledger, &known), &before);
    until("made again", || files(dir.path(), "filter-").len() == files(dir.path(), "log-").len() - 1);
    same(&answers(&ledger, &known), &before);
}

#[tokio::test]
async fn free_text_needs_a_time_range_and_finds_what_is_in_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let mut known = Vec::new();
    for n in 0..40 {
        // From the fourth on compressed.
        let m = message(n, if n < 4 { 300 } else { 6_000 });
        known.push((accept(&ledger, &m).await.unwrap(), m));
    }
    caught_up(&ledger);
    let text = |t: &str| Query { text: Some(t.into()), from_ms: Some(0), to_ms: Some(i64::MAX), ..Query::default() };
    assert!(matches!(ledger.search(&Query { text: Some("x".into()), ..Query::default() }), Err(SearchError::TextNeedsTime)));
    for n in [0, 3, 17, 39] {
        let found = ledger.search(&text(&format!("WORD{n}END"))).unwrap();
        assert_eq!(found.iter().map(|r| r.id).collect::<Vec<_>>(), [known[n].1.id]);
    }
    assert!(ledger.search(&text("never written")).unwrap().is_empty());
    let late = Query { from_ms: Some(known[39].1.id.unix_ms().unwrap() + 1), ..text("word") };
    assert!(ledger.search(&late).unwrap().is_empty());
    let hurried = Query { deadline: std::time::Duration::ZERO, ..text("word1end") };
    assert!(matches!(ledger.search(&hurried), Err(SearchError::Deadline { .. })));
}

#[tokio::test]
async fn storage_modes_hide_what_they_promise_to_hide() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let mut all = Vec::new();
    for (n, storage) in [Storage::All, Storage::NoBodies, Storage::Metadata, Storage::None].into_iter().enumerate() {
        let mut m = message(n, 300);
        m.accepted.storage = storage;
        if storage != Storage::All {
            m.accepted.body = BodyRef::OwnTransient;
        }
        let seq = accept(&ledger, &m).await.unwrap();
        deliver(&ledger, m.id, seq);
        all.push(m);
    }
    caught_up(&ledger);
    let by_id = |n: usize| ledger.search(&Query { id: Some(all[n].id), ..Query::default() }).unwrap().len();
    let by_control = |n: usize| ledger.search(&Query { control_id: Some(format!("C{n}")), ..Query::default() }).unwrap().len();
    let by_patient = |n: usize| ledger.search(&Query { patient: Some(format!("P{n}")), ..Query::default() }).unwrap().len();
    assert_eq!([0, 1, 2, 3].map(by_id), [1, 1, 1, 0]);
    assert_eq!([0, 1, 2, 3].map(by_control), [1, 1, 0, 0]);
    assert_eq!([0, 1, 2, 3].map(by_patient), [1, 1, 0, 0]);
    assert_eq!(ledger.search(&Query::default()).unwrap().len(), 3);
    assert!(ledger.transaction(all[3].id).unwrap().is_none());
    let mut recent = 0;
    ledger.recent(&mut |_| recent += 1).unwrap();
    assert_eq!(recent, 4, "resends are recognised in every mode");
}

#[tokio::test]
async fn refused_messages_and_reruns_are_transactions_too() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, sink, _) = start(dir.path(), small());
    let refused = message(1, 100);
    let what = What::Refused {
        envelope: Box::new(refused.accepted.envelope.clone()),
        reason: "no channel takes it".into(),
        body: BodyRef::Own,
    };
    ledger.append(Append { fact: fact(refused.id, 0, what), body: refused.body.clone(), deliver: false }).await.unwrap();
    assert!(sink.0.lock().unwrap().is_empty());
    let mut rerun = message(2, 100);
    rerun.accepted.envelope.parent = Some(refused.id);
    accept(&ledger, &rerun).await.unwrap();
    caught_up(&ledger);
    let detail = ledger.transaction(refused.id).unwrap().unwrap();
    assert_eq!((detail.row.status, detail.row.open), (Status::Refused, false));
    assert_eq!(detail.refused.unwrap().reason, "no channel takes it");
    let children = ledger.search(&Query { parent: Some(refused.id), ..Query::default() }).unwrap();
    assert_eq!(children.iter().map(|r| r.id).collect::<Vec<_>>(), [rerun.id]);
    let body = ledger.body(detail.row.seq, &BodyRef::Own);
    let pieces: Vec<_> = futures_util::StreamExt::collect(body).await;
    assert_eq!(pieces.into_iter().map(|p| p.unwrap()).collect::<Vec<_>>().concat(), *refused.body.unwrap());
}
