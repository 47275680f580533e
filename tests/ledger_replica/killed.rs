//! Processes that end in the middle of applying, and how fast it goes.

use super::ledger_support::stream::{Batch, Shipper, Stream, all, catch_up, image};
use super::ledger_support::*;
use super::{accept_all, variety, work_on};
use bytesize::ByteSize;
use hie::config;
use hie::engine::ports::Log;
use hie::engine::replica::{Positions, Replica, Shipped};
use hie::ledger::Query;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

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
            .args(["--exact", "killed::child", "--nocapture", "--test-threads=1"])
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
    assert!(source.caught_up(Duration::from_secs(60)));
    let began = Instant::now();
    let mut after = 0;
    while after < source.committed() {
        after = source.own(after, 256 << 10).await.unwrap().upto;
    }
    println!("told in {:.1} s", began.elapsed().as_secs_f64());
    let stream = Stream::default();
    Shipper::default().ship(&source, &stream, 256 << 10).await;
    let records: usize = (0..stream.len()).map(|o| stream.get(o).unwrap().records.len()).sum();
    println!("{records} records in {} batches", stream.len());
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
