//! What every node must be able to tell of every message, whoever took it.

use crate::harness::ledger::{body, control_id, text, transaction, transactions_each};
use crate::harness::node::Node;
use crate::harness::wire::digest;
use crate::harness::{Rng, Sent};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Each node finds each acknowledged message as exactly one transaction with the status `Successful` (beside those that name it as the
/// one they repeat: resends that another node had accepted), at last after `limit`, and gives its body byte for byte (looked at for `sample` of them per node, chosen by chance). Prints the
/// counts; `Err` names offenders, per node.
pub fn told_everywhere(nodes: &[&Node], sent: &[&Sent], sample: usize, rng: &mut Rng, limit: Duration) -> Result<(), String> {
    let digests: HashMap<&str, u64> = sent.iter().flat_map(|s| &s.digests).map(|(id, digest)| (&**id, *digest)).collect();
    let end = Instant::now() + limit;
    let mut faults = Vec::new();
    for node in nodes {
        let name = &node.setup.name;
        let seen = loop {
            let seen = Seen::of(node, &digests);
            if seen.faults().is_empty() || Instant::now() >= end {
                break seen;
            }
            std::thread::sleep(Duration::from_secs(1));
        };
        println!(
            "{name}: {} transactions, resends recognised when accepted {}, later {}, by status {:?}",
            seen.rows, seen.resends, seen.repeats, seen.statuses
        );
        faults.extend(seen.faults().into_iter().map(|fault| format!("{name}: {fault}")));
        let mut ids: Vec<_> = seen.ids.iter().collect();
        ids.sort();
        rng.shuffle(&mut ids);
        let wrong = ids.iter().take(sample).filter(|(id, transaction)| {
            let answer = body(node, transaction, "request");
            answer.status != 200 || Some(&digest(&answer.body)) != digests.get(id.as_str())
        });
        let wrong: Vec<_> = wrong.map(|(id, transaction)| format!("{id} ({transaction})")).collect();
        if !wrong.is_empty() {
            let some = wrong.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            faults.push(format!("{name}: {} of {sample} bodies wrong: {some}", wrong.len()));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// What a node's list holds of the messages in question.
#[derive(Default)]
struct Seen {
    rows: usize,
    resends: u64,
    /// Transactions that name another as the one they repeat.
    repeats: usize,
    statuses: BTreeMap<String, u32>,
    /// Control id to transaction.
    ids: HashMap<String, String>,
    twice: Vec<String>,
    unfinished: Vec<String>,
    missing: Vec<String>,
}

impl Seen {
    fn of(node: &Node, wanted: &HashMap<&str, u64>) -> Self {
        let mut seen = Self::default();
        // Control ids with further transactions.
        let mut more: HashMap<String, Vec<String>> = HashMap::new();
        transactions_each(node, |row| {
            seen.rows += 1;
            seen.resends += row["hie"]["resends"].as_u64().unwrap_or(0);
            let status = text(&row["status"]).to_owned();
            *seen.statuses.entry(status.clone()).or_default() += 1;
            let id = control_id(&row);
            if status == "Refused" || !wanted.contains_key(id.as_str()) {
                return;
            }
            if status != "Successful" {
                seen.unfinished.push(format!("{id} {status}"));
            }
            if let Some(other) = seen.ids.insert(id.clone(), text(&row["_id"]).to_owned()) {
                more.entry(id).or_default().push(other);
            }
        });
        for (id, mut all) in more {
            all.extend(seen.ids.get(&id).cloned());
            let repeats: Vec<_> = all.iter().map(|t| text(&transaction(node, t)["hie"]["repeats"]).to_owned()).collect();
            let originals: Vec<_> = all.iter().zip(&repeats).filter(|(_, of)| of.is_empty()).map(|(t, _)| t).collect();
            match originals[..] {
                [original] if repeats.iter().all(|of| of.is_empty() || of == original) => {
                    seen.repeats += all.len() - 1;
                    seen.ids.insert(id, original.clone());
                }
                _ => seen.twice.push(id),
            }
        }
        seen.missing = wanted.keys().filter(|id| !seen.ids.contains_key(**id)).map(|id| (*id).to_owned()).collect();
        seen
    }

    fn faults(&self) -> Vec<String> {
        let kinds = [("missing", &self.missing), ("more than once", &self.twice), ("not Successful", &self.unfinished)];
        let some = |list: &[String]| list.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        kinds.iter().filter(|(_, l)| !l.is_empty()).map(|(what, l)| format!("{} {what}: {}", l.len(), some(l))).collect()
    }
}
