//! Damaged logs are set aside and told; everything else is intact and the ledger works.

mod ledger_support;

use hie::engine::fact::Seq;
use hie::ledger::{Ledger, Query};
use ledger_support::*;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

async fn fill(ledger: &Ledger, count: usize) -> Vec<(Seq, Message)> {
    let mut known = Vec::new();
    for n in 0..count {
        let m = message(n, 2_000);
        let seq = accept(ledger, &m).await.unwrap();
        if n % 7 != 0 {
            deliver(ledger, m.id, seq);
        }
        known.push((seq, m));
    }
    caught_up(ledger);
    known
}

fn first_of(log: &Path) -> Seq {
    log.file_stem().unwrap().to_str().unwrap().trim_start_matches("log-").parse().unwrap()
}

fn overwrite(file: &Path, at: u64, len: usize) {
    let mut file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&vec![0xAA; len]).unwrap();
}

async fn damaged(which: usize, damage: impl Fn(&PathBuf)) {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let known = fill(&ledger, 1_500).await;
    ledger.close();
    drop(ledger);
    let logs = files(dir.path(), "log-");
    assert!(logs.len() >= 3);
    let which = which.min(logs.len() - 1);
    damage(&logs[which]);
    let from = first_of(&logs[which]);
    let to = logs.get(which + 1).map_or(Seq::MAX, |l| first_of(l));

    let (ledger, _, unfinished) = start(dir.path(), small());
    assert_eq!(ledger.problems().len(), 1, "{:?}", ledger.problems());
    let quarantined: Vec<_> =
        std::fs::read_dir(dir.path().join("ledger/quarantine")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(quarantined.contains(&logs[which].file_name().unwrap().to_owned()), "{quarantined:?}");
    let lost = |seq: Seq| (from..to).contains(&seq);
    let wanted: Vec<Seq> = known.iter().enumerate().filter(|(n, (s, _))| n % 7 == 0 && !lost(*s)).map(|(_, (s, _))| *s).collect();
    assert_eq!(unfinished.iter().map(|u| u.seq).collect::<Vec<_>>(), wanted);
    for (n, (seq, m)) in known.iter().enumerate().step_by(40) {
        let found = ledger.search(&Query { control_id: Some(format!("C{n}")), ..Query::default() }).unwrap();
        assert_eq!(found.len(), usize::from(!lost(*seq)), "message {n}");
        assert_eq!(read(&ledger, *seq, &m.accepted.body).await.is_ok(), !lost(*seq));
    }
    // Numbers go on above every number that was ever used.
    let seq = accept(&ledger, &message(9_999, 100)).await.unwrap();
    assert!(seq > known.last().unwrap().0, "{seq}");
    caught_up(&ledger);
    assert_eq!(ledger.search(&Query { control_id: Some("C9999".into()), ..Query::default() }).unwrap().len(), 1);
}

#[tokio::test]
async fn a_closed_log_with_a_broken_head_is_set_aside() {
    damaged(1, |log| overwrite(log, 0, 4096)).await;
}

#[tokio::test]
async fn a_closed_log_cut_short_is_set_aside() {
    damaged(1, |log| {
        let len = log.metadata().unwrap().len();
        std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(len / 2).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_closed_log_overwritten_inside_is_set_aside() {
    damaged(1, |log| overwrite(log, 8192, log.metadata().unwrap().len() as usize - 8192)).await;
}

#[tokio::test]
async fn a_closed_log_with_one_bad_page_is_set_aside() {
    damaged(1, |log| overwrite(log, log.metadata().unwrap().len() / 2 / 8192 * 8192, 8192)).await;
}

#[tokio::test]
async fn a_broken_active_log_is_set_aside_and_a_fresh_one_begins() {
    damaged(99, |log| overwrite(log, 0, 4096)).await;
}

#[tokio::test]
async fn a_flipped_bit_in_a_body_is_an_error_not_another_message() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let known = fill(&ledger, 900).await;
    ledger.close();
    drop(ledger);
    let log = files(dir.path(), "log-").remove(0);
    let mut bytes = std::fs::read(&log).unwrap();
    let needle = b"word5end";
    let at = bytes.windows(needle.len()).position(|w| w == needle).expect("the body is in the first log");
    bytes[at] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    assert!(read(&ledger, known[5].0, &known[5].1.accepted.body).await.is_err());
    assert_eq!(read(&ledger, known[6].0, &known[6].1.accepted.body).await.unwrap(), *known[6].1.body.as_ref().unwrap());
    assert_eq!(ledger.problems().len(), 1, "{:?}", ledger.problems());
}
