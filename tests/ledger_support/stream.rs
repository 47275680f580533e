//! A stream between ledgers, in memory: batches in order, each packed as on the wire; readers apply the gap rule.

use super::*;
use hie::engine::replica::{OwnRecords, Positions, Replica, Shipped};
use hie::ledger::{Detail, Query};

/// What one log shipped at a time.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    pub origin: u64,
    pub prev: Seq,
    pub records: Vec<Shipped>,
}

#[derive(Default)]
pub struct Stream(pub Mutex<Vec<Vec<u8>>>);

impl Stream {
    pub fn push(&self, batch: &Batch) {
        self.0.lock().unwrap().push(rmp_serde::to_vec_named(batch).unwrap());
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn get(&self, at: usize) -> Option<Batch> {
        self.0.lock().unwrap().get(at).map(|bytes| rmp_serde::from_slice(bytes).unwrap())
    }
}

/// The next own records, or nothing when there are none just now.
pub async fn own(ledger: &Ledger, after: Seq, bytes: usize) -> Option<OwnRecords> {
    let patience = match (after < ledger.committed(), ledger.positions().taken.is_empty()) {
        (true, true) => Duration::from_secs(10),
        // What is left may be from others: then there is nothing to tell.
        (true, false) => Duration::from_millis(500),
        (false, _) => Duration::from_millis(50),
    };
    tokio::time::timeout(patience, ledger.own(after, bytes)).await.ok().map(Result::unwrap)
}

/// Ships what a log wrote itself.
#[derive(Clone, Copy, Default)]
pub struct Shipper {
    pub after: Seq,
    pub prev: Seq,
}

impl Shipper {
    /// All that there is now.
    pub async fn ship(&mut self, ledger: &Ledger, stream: &Stream, bytes: usize) {
        ledger.durable().await.unwrap();
        while let Some(own) = own(ledger, self.after, bytes).await {
            assert!(own.upto > self.after && own.records.is_sorted_by(|a, b| a.seq < b.seq));
            self.after = own.upto;
            if let Some(last) = own.records.last().map(|r| r.seq) {
                stream.push(&Batch { origin: ledger.origin(), prev: self.prev, records: own.records });
                self.prev = last;
            }
        }
    }
}

/// Applies one batch by the rule for gaps and duplicates.
pub async fn take(ledger: &Ledger, batch: Batch, offset: u64) {
    let high = ledger.positions().taken.get(&batch.origin).copied().unwrap_or(0);
    let gap = batch.prev > high && batch.origin != ledger.origin();
    let records = if gap { Vec::new() } else { batch.records };
    ledger.apply(batch.origin, records, offset).await.unwrap();
}

/// Reads the stream to its end, from where the ledger stands.
pub async fn catch_up(ledger: &Ledger, stream: &Stream) {
    let mut at = ledger.positions().offset.unwrap_or(0);
    while let Some(batch) = stream.get(at as usize) {
        at += 1;
        take(ledger, batch, at).await;
    }
}

/// What a transaction is, the same on every node: status, kinds of its facts, bodies.
pub async fn image(ledger: &Ledger, id: MessageId) -> Option<String> {
    let Detail { row, accepted, refused, facts } = ledger.transaction(id).unwrap()?;
    let mut text = format!("{:?} {:?} {:?}", row.status, row.routes, row.control_id);
    if let Some(accepted) = &accepted {
        text += &format!(" {:?}", read(ledger, row.seq, &accepted.body).await.map(|b| xxh(&b)));
    }
    if let Some(refused) = &refused {
        text += &format!(" {} {:?}", refused.reason, read(ledger, row.seq, &refused.body).await.map(|b| xxh(&b)));
    }
    for (seq, fact) in &facts {
        if let What::Attempt(a) = &fact.what {
            let body = read(ledger, *seq, &a.response).await.map(|b| xxh(&b));
            text += &format!(" [{} {} {:?} {body:?}]", a.route, a.number, a.outcome);
        } else if !matches!(fact.what, What::Accepted(_) | What::Carried { .. }) {
            text += &format!(" [{}]", format!("{:?}", fact.what).split([' ', '(', '{']).next().unwrap_or_default());
        }
    }
    Some(text)
}

fn xxh(bytes: &[u8]) -> (usize, u64) {
    (bytes.len(), xxhash_rust::xxh3::xxh3_64(bytes))
}

/// All transactions, by id.
pub fn all(ledger: &Ledger) -> Vec<hie::ledger::Row> {
    let query = Query { limit: usize::MAX, deadline: Duration::from_secs(60), ..Query::default() };
    let mut rows = ledger.search(&query).unwrap();
    rows.sort_by_key(|r| r.id);
    rows
}

pub fn at(offset: u64, taken: &[(u64, Seq)]) -> Positions {
    Positions { offset: Some(offset), taken: taken.iter().copied().collect() }
}
