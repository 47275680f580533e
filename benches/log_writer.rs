//! The log's writer against a bare rusqlite loop that commits the same rows and bodies in groups of the same size, in
//! turns, in one run. `cargo bench --bench log_writer [-- seconds-per-turn] [folder]`
//!
//! Bare: one thread, prepared statements, WAL, synchronous FULL, no hand-over between threads, rows encoded beforehand.
//! Ours: so many writers, each waiting for its message to be durable before it brings the next; encoding included.

use bytes::Bytes;
use comfy_table::Table;
use hie::channel::{Mode, Storage};
use hie::config;
use hie::engine::fact::{Accepted, BodyRef, Fact, Keeper, What};
use hie::engine::ports::{Append, CommitSink, Committed, Log};
use hie::ledger::{Ledger, Options};
use hie::message::{Envelope, MessageId, Protocol};
use rusqlite::{Connection, params};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;

struct Nobody;

impl CommitSink for Nobody {
    fn committed(&self, _: Vec<Committed>) {}
}

fn accepted(id: MessageId, body: &Bytes) -> Accepted {
    let envelope = Envelope {
        version: 1,
        id,
        received_ms: id.unix_ms().unwrap_or(0),
        protocol: Protocol::Mllp,
        listener: "mllp".into(),
        client: "anonymous".into(),
        remote: "127.0.0.1:54321".into(),
        kind: "ADT^A01".into(),
        control_id: Some(format!("MSG{:08}", id.as_bytes()[15])),
        patients: vec!["12345678".into()],
        keys: vec![0x1234_5678_9abc],
        content_type: "x-application/hl7-v2+er7".into(),
        http: None,
        body_len: body.len() as u64,
        parent: None,
        control_id_reused: false,
    };
    Accepted {
        envelope,
        channel: "sample.adt".into(),
        mode: Mode::Queue,
        storage: Storage::All,
        routes: vec!["ehr".into()],
        idempotent: false,
        body: BodyRef::Own,
        body_hash: 0x1234_5678_9abc_def0,
        resend_key: 0x1234_5678,
        keeper: Keeper::Log,
    }
}

fn body() -> Bytes {
    let mut text = String::from("MSH|^~\\&|SENDER|HOSPITAL|RECEIVER|CLINIC|20260101120000||ADT^A01|MSG00001|P|2.5\r");
    while text.len() < 1024 {
        text.push_str("OBX|1|NM|8867-4^HEART RATE^LN||72|/min|60-100|N|||F\r");
    }
    text.truncate(1024);
    Bytes::from(text)
}

fn bare(dir: &Path, group: usize, time: Duration) -> f64 {
    let conn = Connection::open(dir.join("bare.db")).expect("a database in the folder");
    conn.pragma_update(None, "journal_mode", "wal").expect("WAL");
    conn.pragma_update(None, "synchronous", "full").expect("synchronous FULL");
    conn.execute_batch(
        "CREATE TABLE facts(seq INTEGER PRIMARY KEY, id BLOB, home INTEGER, at INTEGER, kind INTEGER, data BLOB);
         CREATE TABLE bodies(seq INTEGER PRIMARY KEY, codec INTEGER, len INTEGER, sum INTEGER, data BLOB);",
    )
    .expect("tables");
    let body = body();
    let id = MessageId::now();
    let data = rmp_serde::to_vec_named(&What::Accepted(Box::new(accepted(id, &body)))).expect("a fact");
    let mut begin = conn.prepare("BEGIN IMMEDIATE").expect("BEGIN");
    let mut commit = conn.prepare("COMMIT").expect("COMMIT");
    let mut fact = conn.prepare("INSERT INTO facts VALUES(?1,?2,?3,?4,?5,?6)").expect("INSERT");
    let mut piece = conn.prepare("INSERT INTO bodies VALUES(?1,?2,?3,?4,?5)").expect("INSERT");
    let began = Instant::now();
    let mut seq = 0i64;
    while began.elapsed() < time {
        begin.execute([]).expect("BEGIN");
        for _ in 0..group {
            seq += 1;
            fact.execute(params![seq, id.as_bytes(), 0, 1_700_000_000_000i64, 1, data]).expect("a fact");
            piece.execute(params![seq, 0, 1024, 77, &body[..]]).expect("a body");
        }
        commit.execute([]).expect("COMMIT");
    }
    seq as f64 / began.elapsed().as_secs_f64()
}

fn ours(dir: &Path, writers: usize, time: Duration, views: bool, folding: &mut Vec<f64>) -> f64 {
    let options = Options::new(dir.join("ledger"), config::Ledger::default());
    let ledger = Arc::new(Ledger::open(options).expect("the ledger opens"));
    ledger.pause_views(!views);
    ledger.start(Arc::new(Nobody)).expect("the ledger starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let body = body();
    let began = Instant::now();
    let count: u64 = runtime.block_on(async {
        let tasks: Vec<_> = (0..writers)
            .map(|_| {
                let (ledger, body) = (ledger.clone(), body.clone());
                tokio::spawn(async move {
                    let mut count = 0u64;
                    while began.elapsed() < time {
                        let id = MessageId::now();
                        let what = What::Accepted(Box::new(accepted(id, &body)));
                        let fact = Fact { id, home: 0, at: 1_700_000_000_000, what };
                        ledger.append(Append { fact, body: Some(body.clone()), deliver: true }).await.expect("durable");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("a writer");
        }
        sum
    });
    let rate = count as f64 / began.elapsed().as_secs_f64();
    if !views {
        // What the views cost when they have the machine to themselves.
        let began = Instant::now();
        ledger.pause_views(false);
        assert!(ledger.caught_up(Duration::from_secs(60)), "the views do not catch up");
        folding.push(began.elapsed().as_secs_f64() * 1e6 / count as f64);
    }
    ledger.close();
    rate
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let seconds: f64 = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(0.7);
    let base = arguments.next().map_or_else(|| std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")), Into::into);
    let time = Duration::from_secs_f64(seconds);
    let mut table = Table::new();
    table.set_header(["waiting writers", "bare loop /s", "log writer /s", "ratio", "with views /s", "ratio", "folding µs"]);
    let only: Option<usize> = std::env::var("GROUP").ok().and_then(|g| g.parse().ok());
    for group in [1, 16, 256].into_iter().filter(|g| only.is_none_or(|o| o == *g)) {
        let mut folding = Vec::new();
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (which, rate) in rates.iter_mut().enumerate() {
                let dir = tempfile::tempdir_in(&base).expect("a folder");
                rate.push(match which {
                    0 => bare(dir.path(), group, time),
                    1 => ours(dir.path(), group, time, false, &mut folding),
                    _ => ours(dir.path(), group, time, true, &mut folding),
                });
            }
        }
        // Neighbours in time are compared, so that what else the machine does hits both.
        let ratio = |which: usize| median(rates[which].iter().zip(&rates[0]).map(|(r, bare)| r / bare).collect());
        let rate = |which: usize| format!("{:.0}", median(rates[which].clone()));
        let row = [
            rate(0),
            rate(1),
            format!("{:.2}", ratio(1)),
            rate(2),
            format!("{:.2}", ratio(2)),
            format!("{:.1}", median(folding)),
        ];
        table.add_row([group.to_string()].into_iter().chain(row));
    }
    println!(
        "{table}\nmedians of {ROUNDS} turns of {seconds} s each and of their ratios, 1 KB bodies; limit: 0.90 for the log writer by itself"
    );
}
