//! The whole HL7 v2 corpus over MLLP: random chunk sizes, 8 connections, many frames in flight. Answers are matched by
//! position on the connection: each frame is acknowledged with its own control id (HL7 v2.5.1, 2.9: or not at all where
//! its MSH-15 and MSH-16 ask for none); those without a readable header are refused with a reason and the connection is
//! kept; as many are stored as were sent; stored and delivered bytes are identical.

mod harness;

use harness::channels::all_to;
use harness::ledger::{body, control_id, settled, text as str_of, transactions};
use harness::wire::{Frames, Tag, adt, field, frame, header_start, text};
use harness::{Builder, Node, Receiver, Rng, corpus};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A frame of the corpus and what is to be expected of it.
struct Item {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Fate {
    Accepted,
    Refused,
    /// No answer, as its header asks; it may have been accepted or refused.
    Silent,
}

impl Item {
    fn id(&self) -> String {
        text(&self.bytes, "MSH", 10).trim().to_owned()
    }

    fn is_batch(&self) -> bool {
        header_start(&self.bytes).is_some_and(|at| &self.bytes[at..at + 3] != b"MSH")
    }

    /// The messages inside: of a batch each, else one.
    fn messages(&self) -> Vec<&[u8]> {
        if !self.is_batch() {
            return vec![&self.bytes];
        }
        let mut starts = Vec::new();
        for at in 0..self.bytes.len().saturating_sub(3) {
            let begins = at == 0 || matches!(self.bytes[at - 1], b'\r' | b'\n');
            if begins && matches!(&self.bytes[at..at + 3], b"MSH" | b"BHS" | b"FHS" | b"BTS" | b"FTS") {
                starts.push(at);
            }
        }
        starts.push(self.bytes.len());
        let ranges = starts.windows(2).map(|w| &self.bytes[w[0]..w[1]]);
        ranges.filter(|m| m.starts_with(b"MSH")).collect()
    }
}

/// HL7 table 0155 on MSH-15 and MSH-16; neither: original mode, always one answer.
fn wants_answer(message: &[u8], accepted: bool) -> bool {
    let asked = [15, 16].map(|n| text(message, "MSH", n).trim().to_owned());
    if asked.iter().all(String::is_empty) {
        return true;
    }
    asked.iter().any(|when| match when.as_str() {
        "" | "NE" | "\"\"" => false,
        "ER" => !accepted,
        "SU" => accepted,
        _ => true,
    })
}

fn sentinel(connection: usize) -> Vec<u8> {
    adt(&Tag { key: format!("END{connection}"), seq: 1, id: format!("END{connection}") }, 500, "end")
}

/// Sends all on one connection in random chunks, reads the answers at the same time.
fn one_connection(node: &Node, number: usize, items: &[Item], mut rng: Rng) -> Vec<Fate> {
    let stream = TcpStream::connect(node.mllp).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let mut out = stream.try_clone().expect("a descriptor");
    let mut all: Vec<u8> = items.iter().flat_map(|i| frame(&i.bytes)).collect();
    all.extend(frame(&sentinel(number)));
    let writer = std::thread::spawn(move || {
        let mut at = 0;
        while at < all.len() {
            let size = match rng.range(0, 10) {
                0 => 1,
                1..4 => rng.range(1, 20),
                4..8 => rng.range(20, 2000),
                _ => rng.range(2000, 100_000),
            };
            let end = all.len().min(at + size as usize);
            out.write_all(&all[at..end]).expect("the node goes on reading");
            at = end;
        }
    });
    let fates = read_answers(&mut Frames::new(&stream), number, items);
    writer.join().expect("the writer");
    fates
}

fn read_answers(frames: &mut Frames<&TcpStream>, number: usize, items: &[Item]) -> Vec<Fate> {
    let mut fates = Vec::new();
    let mut answer = None;
    for item in items {
        let next = match answer.take() {
            Some(next) => next,
            None => frames.read().expect("an answer").expect("the connection is kept"),
        };
        let code = answer_code(&next);
        let accepted = matches!(code.as_str(), "AA" | "CA");
        let own = match item.is_batch() {
            true => batch_answers(item, &next),
            false => text(&next, "MSA", 2).trim() == item.id() && wants_answer(&item.bytes, accepted),
        };
        if own {
            if !accepted && !item.is_batch() {
                let reason = text(&next, "MSA", 3) + &text(&next, "ERR", 3) + &text(&next, "ERR", 8);
                assert!(reason.len() > 3, "{}: refused without a reason: {}", item.path.display(), shown(&next));
            }
            fates.push(if accepted { Fate::Accepted } else { Fate::Refused });
        } else {
            // Silence is right only where the header asks for it, with one outcome or the other.
            let may_be_silent = item.messages().iter().all(|m| !wants_answer(m, true) || !wants_answer(m, false));
            assert!(may_be_silent, "connection {number}, {}: no answer of its own, but {}", item.path.display(), shown(&next));
            fates.push(Fate::Silent);
            answer = Some(next);
        }
    }
    let last = answer.take().unwrap_or_else(|| frames.read().expect("an answer").expect("the connection is kept"));
    assert_eq!(text(&last, "MSA", 2), format!("END{number}"), "more answers than frames: {}", shown(&last));
    fates
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "\n  ")
}

/// The code; of a batch's answer that of its first message.
fn answer_code(answer: &[u8]) -> String {
    let segment = answer.split(|b| *b == b'\r').find(|s| s.starts_with(b"MSA")).unwrap_or(b"");
    segment.get(4..6).map(|c| String::from_utf8_lossy(c).into_owned()).unwrap_or_default()
}

/// A response batch with one acknowledgment for each message that wants one, in order.
fn batch_answers(item: &Item, answer: &[u8]) -> bool {
    let given: Vec<_> = answer
        .split(|b| *b == b'\r')
        .filter(|s| s.starts_with(b"MSA|"))
        .map(|s| s.split(|b| *b == b'|').nth(2).unwrap_or(b"").to_vec())
        .collect();
    let id = |m: &&[u8]| field(m, "MSH", 10).trim_ascii().to_vec();
    let wanted: Vec<_> = item.messages().iter().filter(|m| wants_answer(m, !id(m).is_empty())).map(id).collect();
    given == wanted
}

#[test]
fn every_message_of_the_corpus_is_answered_and_stored_byte_for_byte() {
    let Some(root) = corpus::root() else { return };
    let mut rng = Rng::from_env("corpus");
    let mut items: Vec<Item> =
        corpus::files(&root.join("hl7v2"), "hl7").into_iter().map(|(path, bytes)| Item { path, bytes }).collect();
    assert!(items.len() > 1000, "{} files", items.len());
    rng.shuffle(&mut items);
    let receiver = Receiver::willing();
    let node = Builder::new().channel(all_to(&receiver)).start();

    let items = Arc::new(items);
    let share = items.len().div_ceil(8);
    let mut fates = Vec::new();
    std::thread::scope(|scope| {
        let node = &node;
        let threads: Vec<_> = items
            .chunks(share)
            .enumerate()
            .map(|(number, part)| {
                let rng = rng.split();
                scope.spawn(move || one_connection(node, number, part, rng))
            })
            .collect();
        for thread in threads {
            fates.extend(thread.join().expect("a connection"));
        }
    });

    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for (item, fate) in items.iter().zip(&fates) {
        *counts.entry(format!("{fate:?}")).or_default() += 1;
        // HL7 v2.5.1, 2.15.9.10: MSH-10 is required; all else in the corpus can be read.
        let right = if item.is_batch() || !item.id().is_empty() { Fate::Accepted } else { Fate::Refused };
        assert!(*fate == right || *fate == Fate::Silent, "{}: {fate:?}, should be {right:?}", item.path.display());
    }
    println!("{} frames over 8 connections: {counts:?}", items.len());

    assert!(settled(&node, Duration::from_secs(60)), "{}", node.log_tail(20));
    stored_as_sent(&node, &items, &receiver);
}

/// As many transactions as messages; the body of each is one that was sent under its own control id, as often as it was sent,
/// and what was delivered is what was stored.
fn stored_as_sent(node: &Node, items: &[Item], receiver: &Receiver) {
    // Control id to bodies, and how often each was sent.
    let mut sent: HashMap<String, HashMap<Vec<u8>, u64>> = HashMap::new();
    let messages: Vec<&[u8]> = items.iter().flat_map(Item::messages).collect();
    for message in &messages {
        let id = text(message, "MSH", 10).trim().to_owned();
        *sent.entry(id).or_default().entry(message.to_vec()).or_default() += 1;
    }
    let rows: Vec<_> = transactions(node).into_iter().filter(|r| !control_id(r).starts_with("END")).collect();
    let refused = rows.iter().filter(|r| r["status"] == "Refused").count();
    println!("{} messages sent, {} transactions, {refused} of them refused", messages.len(), rows.len());
    let resent: u64 = rows.iter().filter_map(|r| r["hie"]["resends"].as_u64()).sum();
    assert_eq!(rows.len() as u64 + resent, messages.len() as u64, "as many stored as sent (and {resent} resends)");

    let mut delivered: HashMap<Vec<u8>, i64> = HashMap::new();
    for message in receiver.others() {
        *delivered.entry(message).or_default() += 1;
    }
    for row in &rows {
        let id = str_of(&row["_id"]);
        let stored = body(node, id, "request");
        let own = control_id(row).trim().to_owned();
        // A refused one too: none in the corpus is larger than what the node keeps of those (256 KiB).
        assert_eq!(stored.status, 200, "{id}: {}", stored.text());
        let times = 1 + row["hie"]["resends"].as_u64().unwrap_or(0);
        let left = sent.get_mut(&own).and_then(|bodies| bodies.get_mut(&stored.body));
        let left = left.unwrap_or_else(|| panic!("{id}: nobody sent this under the control id {own:?}: {}", shown(&stored.body)));
        *left = left.checked_sub(times).unwrap_or_else(|| panic!("{id}: {own:?} is stored more often than it was sent"));
        if row["status"] == "Successful" {
            let left = delivered.get_mut(&stored.body).map(|n| {
                *n -= 1;
                *n
            });
            assert!(left.is_some_and(|n| n >= 0), "{id}: not delivered byte for byte: {}", shown(&stored.body));
        }
    }
    for (id, bodies) in &sent {
        let left: u64 = bodies.values().sum();
        assert_eq!(left, 0, "messages sent under {id:?} and stored under no transaction");
    }
    assert!(delivered.values().all(|n| *n == 0), "delivered more than was accepted");
}
