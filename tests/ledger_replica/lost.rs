//! What is kept, carried, given up, read again, or refused.

use super::ledger_support::stream::{Shipper, Stream, all, at, catch_up, image, own, take};
use super::ledger_support::*;
use super::{Told, accept_all, same_everywhere, variety, work_on};
use bytesize::ByteSize;
use hie::config;
use hie::engine::fact::BodyRef;
use hie::engine::ports::{Log, LogError};
use hie::engine::replica::{OwnRecords, Replica};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let newest = |own: &OwnRecords| own.records.iter().rev().find_map(|r| Some(r.fact.as_ref()?.id));
        let (mut last, mut seen) = (None, None);
        let mut after = 0;
        for n in 0..80 {
            for (seq, id) in accept_all(&ledger, (0..64).map(|i| message(n * 64 + i, 4_000))).await {
                deliver(&ledger, id, seq);
                last = Some(id);
            }
            if n == 0 || shipped {
                let told = ledger.own(after, 4 << 20).await.unwrap();
                after = told.upto;
                seen = newest(&told).or(seen);
                if shipped {
                    ledger.shipped(told.records.last().unwrap().seq);
                }
            }
        }
        assert!(!first_log.exists(), "retention has done nothing");
        let told: Vec<_> = ledger.problems().into_iter().filter(|p| p.what == "shipping").collect();
        assert_eq!(told.len(), usize::from(!shipped), "{told:?}");
        ledger.durable().await.unwrap();
        while let Some(own) = own(&ledger, after, 4 << 20).await {
            after = own.upto;
            seen = newest(&own).or(seen);
        }
        assert_eq!(seen, last);
    }
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

/// Rounds larger than a commit on a disk that fills up: parts of them are stored and parts are not, and nothing is skipped or twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_the_middle_of_a_round_leaves_no_hole() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = SmallDisk::mount(here.path(), 16) else {
        println!("not run: mounting a small file system needs root");
        return;
    };
    let (source, _, _) = start(there.path(), small());
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.extend(variety(&source, n * 10).await);
        let part = accept_all(&source, (0..100).map(|i| message(n * 100 + i, 3_000))).await;
        part.iter().step_by(3).for_each(|(seq, id)| deliver(&source, *id, *seq));
        ids.extend(part.into_iter().map(|(_, id)| id));
    }
    let (stream, told) = (Stream::default(), Arc::new(Told::default()));
    Shipper::default().ship(&source, &stream, 400_000).await;
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; 11 << 20]).unwrap();
    let (ledger, _, _) = start(&disk.0, small());
    ledger.observe(told.clone());
    let mut failures = 0;
    loop {
        let at = ledger.positions().offset.unwrap_or(0);
        let calls: Vec<_> = (at..stream.len() as u64)
            .map(|at| (at, stream.get(at as usize).unwrap()))
            .map(|(at, b)| ledger.apply(b.origin, b.records, at + 1))
            .collect();
        let mut failed = false;
        for call in calls {
            let result = call.await;
            assert!(!failed || result.is_err(), "what comes after one that failed fails too");
            failed |= result.is_err();
        }
        if !failed {
            break;
        }
        failures += 1;
        if failures == 3 {
            std::fs::remove_file(&ballast).unwrap();
        }
        assert!(failures < 200, "never again");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{failures} rounds failed");
    assert!(failures >= 3, "the disk was never full");
    same_everywhere(&[&source, &ledger], &ids).await;
    let mut arrived: Vec<_> = told.0.lock().unwrap().iter().map(|a| a.id).collect();
    let told = arrived.len();
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!((arrived.len(), told), (ids.len() - 12, ids.len() - 12), "each accept fact is told once");
}
