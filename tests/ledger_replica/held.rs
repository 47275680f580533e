//! Deliveries that wait in the ledger: found in every log, in order, whoever held them; gone when they are finished, wherever.

use super::*;
use hie::config;
use hie::engine::fact::RouteProgress;
use hie::engine::replica::{HeldCount, HeldDelivery};

async fn hold(ledger: &Ledger, id: MessageId, route: &str) {
    let home = ledger.home(id).await.expect("known here");
    let what = What::Held { route: route.into() };
    ledger.append(Append { fact: fact(id, home, what), body: None, deliver: false }).await.unwrap();
}

async fn held(ledger: &Ledger, route: &str) -> Vec<HeldDelivery> {
    ledger.held("lab.results", route, Box::new(|_, _| true)).await.unwrap()
}

async fn ids(ledger: &Ledger, route: &str) -> Vec<MessageId> {
    held(ledger, route).await.into_iter().map(|h| h.id).collect()
}

fn kept_by_broker(n: usize) -> Message {
    let mut m = message(n, 500);
    m.accepted.keeper = Keeper::Broker;
    m
}

/// Those that two ledgers ship to each other.
struct Pair {
    ledgers: [Arc<Ledger>; 2],
    shippers: [Shipper; 2],
    stream: Stream,
}

impl Pair {
    async fn exchange(&mut self) {
        for _ in 0..2 {
            for (ledger, shipper) in self.ledgers.iter().zip(&mut self.shippers) {
                shipper.ship(ledger, &self.stream, 1 << 20).await;
            }
            for ledger in &self.ledgers {
                catch_up(ledger, &self.stream).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn held_by_anybody_they_are_found_everywhere_in_their_order_until_they_are_finished() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let ledgers = [start(dirs[0].path(), small()).0, start(dirs[1].path(), small()).0];
    let mut pair = Pair { ledgers, shippers: [Shipper::default(); 2], stream: Stream::default() };
    let messages: Vec<Message> = (0..8).map(kept_by_broker).collect();
    for m in &messages {
        accept(&pair.ledgers[0], m).await.unwrap();
    }
    pair.exchange().await;
    let id = |n: usize| messages[n].id;
    // In any order, by both, one of them twice; of one message both routes.
    for (ledger, n) in [(1, 5), (0, 2), (1, 0), (0, 5), (0, 6), (1, 1)] {
        hold(&pair.ledgers[ledger], id(n), "ehr").await;
    }
    hold(&pair.ledgers[1], id(6), "archive").await;
    pair.exchange().await;
    for ledger in &pair.ledgers {
        assert_eq!(ids(ledger, "ehr").await, [id(0), id(1), id(2), id(5), id(6)]);
        assert_eq!(ids(ledger, "archive").await, [id(6)]);
        assert!(ids(ledger, "elsewhere").await.is_empty());
        assert_eq!((ledger.held_on("lab.results", "ehr"), ledger.held_on("lab.results", "archive")), (5, 1));
        let first = &held(ledger, "ehr").await[0];
        assert_eq!((first.keys.as_slice(), first.progress), (&[7][..], RouteProgress { held: true, ..Default::default() }));
        assert_eq!(ledger.home(first.id).await, Some(first.seq), "its place in this log");
        let some = ledger.held("lab.results", "ehr", Box::new(|a, _| a.body_hash < 2)).await.unwrap();
        assert_eq!(some.iter().map(|h| h.id).collect::<Vec<_>>(), [id(0), id(1)], "only what is wanted is told");
        let known = ledger.known(id(5)).await.unwrap().unwrap();
        assert_eq!((known.routes[0].held, known.routes[1].held), (true, false));
    }
    // Worked on, on one or the other: tried, delivered, set aside, wanted again, given up.
    let work = |ledger: usize, n: usize, number: u32, outcome: Outcome| {
        let (ledger, id) = (pair.ledgers[ledger].clone(), id(n));
        async move {
            let home = ledger.home(id).await.unwrap();
            ledger.append(attempt(id, home, "ehr", number, outcome)).await.unwrap();
        }
    };
    work(0, 0, 3, Outcome::Retry).await;
    work(1, 1, 1, Outcome::Delivered).await;
    work(0, 2, 1, Outcome::Parked).await;
    work(1, 5, 1, Outcome::Parked).await;
    let home = pair.ledgers[1].home(id(6)).await.unwrap();
    let what = What::Discarded { route: "ehr".into() };
    pair.ledgers[1].append(Append { fact: fact(id(6), home, what), body: None, deliver: false }).await.unwrap();
    pair.exchange().await;
    let home = pair.ledgers[0].home(id(5)).await.unwrap();
    let what = What::Requeued { route: "ehr".into() };
    pair.ledgers[0].append(Append { fact: fact(id(5), home, what), body: None, deliver: false }).await.unwrap();
    pair.exchange().await;
    let now = async |ledger: &Ledger| {
        let all = held(ledger, "ehr").await;
        assert_eq!(all.iter().map(|h| h.id).collect::<Vec<_>>(), [id(0), id(2), id(5)]);
        assert_eq!((all[0].progress.attempts, all[0].progress.state), (3, RouteState::Waiting));
        assert_eq!((all[1].progress.state, all[2].progress.state), (RouteState::Parked, RouteState::Waiting));
        let count = |route: &str, waiting| HeldCount { channel: "lab.results".into(), route: route.into(), waiting };
        let mut counts = ledger.held_counts();
        counts.sort_by(|a, b| a.route.cmp(&b.route));
        assert_eq!(counts, [count("archive", 1), count("ehr", 2)], "the parked one waits for an operator");
    };
    for ledger in &pair.ledgers {
        now(ledger).await;
    }
    // After a restart, and with the views made again; they are nobody's spool.
    for views_are_lost in [false, true] {
        for (ledger, dir) in pair.ledgers.iter_mut().zip(&dirs) {
            ledger.close();
            if views_are_lost {
                files(dir.path(), "view-").iter().for_each(|file| std::fs::remove_file(file).unwrap());
            }
            let (again, _, unfinished) = start(dir.path(), small());
            assert!(unfinished.is_empty(), "{}", unfinished.len());
            *ledger = again;
            now(ledger).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_spooled_and_is_held_is_no_spool_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _, _) = start(dir.path(), small());
    let (spooled, mut proxied) = (message(1, 50), message(2, 50));
    proxied.accepted.mode = hie::channel::Mode::Proxy;
    for m in [&spooled, &proxied] {
        accept(&ledger, m).await.unwrap();
        // The word that it was forwarded was lost with a crash.
        hold(&ledger, m.id, "archive").await;
    }
    ledger.close();
    let (ledger, _, unfinished) = start(dir.path(), small());
    let left: Vec<_> = unfinished.iter().map(|u| (u.accepted.envelope.id, u.routes[0].held, u.routes[1].held)).collect();
    assert_eq!(left, [(proxied.id, false, true)], "of what was proxied its node has more to say");
    assert_eq!(ids(&ledger, "archive").await, [spooled.id, proxied.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_carries_them_on_in_every_log_with_their_bodies() {
    let config = || config::Ledger {
        max_size: bytesize::ByteSize::mib(16),
        segment_size: bytesize::ByteSize::mib(512),
        ..config::Ledger::default()
    };
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let ledgers = [start(dirs[0].path(), config()).0, start(dirs[1].path(), config()).0];
    let mut pair = Pair { ledgers, shippers: [Shipper::default(); 2], stream: Stream::default() };
    let mut messages: Vec<Message> = (0..20).map(kept_by_broker).collect();
    messages[3].accepted.storage = Storage::NoBodies;
    messages[3].accepted.body = BodyRef::OwnTransient;
    for m in &messages {
        accept(&pair.ledgers[0], m).await.unwrap();
    }
    pair.exchange().await;
    for (i, m) in messages.iter().enumerate() {
        hold(&pair.ledgers[i % 2], m.id, "ehr").await;
    }
    pair.exchange().await;
    let all: Vec<MessageId> = messages.iter().map(|m| m.id).collect();
    let oldest: Vec<_> = dirs.iter().map(|dir| files(dir.path(), "log-").remove(0)).collect();
    // Each has to make room for what it accepts itself.
    for (ledger, oldest) in pair.ledgers.iter().zip(&oldest) {
        let mut n = 1_000;
        while oldest.exists() {
            assert!(n < 60_000, "retention has done nothing");
            for (seq, id) in accept_all(ledger, (n..n + 64).map(|n| message(n, 4_000))).await {
                deliver(ledger, id, seq);
            }
            n += 64;
        }
    }
    for (ledger, dir) in pair.ledgers.iter_mut().zip(&dirs) {
        for _ in 0..2 {
            assert_eq!(ids(ledger, "ehr").await, all, "in the order in which they were accepted");
            assert_eq!(ledger.held_on("lab.results", "ehr"), 20);
            for (held, m) in held(ledger, "ehr").await.iter().zip(&messages) {
                let accepted = ledger.accepted(held.seq).await.unwrap();
                assert_eq!(
                    read(ledger, held.seq, &accepted.body).await.unwrap(),
                    m.body.as_ref().unwrap().to_vec(),
                    "byte for byte"
                );
            }
            ledger.close();
            *ledger = start(dir.path(), config()).0;
        }
    }
}
