//! Tries to break: **views are rebuilt when missing or damaged, with the same answers**; **a damaged log segment is set
//! aside and told, the node starts, everything else is intact.** Black-box: files are deleted and bytes flipped while the
//! node is down.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::ledger::{settled, transaction, transactions};
use harness::{Builder, Doubles, Load, Node, Receiver, Rng, Sent, Via, check};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// A node that took enough for several segments, and is down now.
struct Filled {
    node: Node,
    receiver: Receiver,
    sent: Sent,
    answers: Answers,
}

/// What the searches said before the damage: id to (status, control id).
type Answers = BTreeMap<String, (String, String)>;

fn filled() -> Filled {
    let receiver = Receiver::willing();
    let mut node = Builder::new().section("[ledger]\nsegment_size = \"1 MiB\"\n").channel(all_to(&receiver)).start();
    let load = Load { connections: 8, count: Some(150), size: 3500, ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(Duration::from_secs(60));
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)) && settled(&node, Duration::from_secs(30)));
    let answers = answers(&node);
    assert_eq!(answers.len(), 1200);
    assert!(node.stop(Duration::from_secs(30)).is_some());
    assert!(files(&node, "log-").len() > 2, "several segments: {:?}", files(&node, ""));
    Filled { node, receiver, sent, answers }
}

fn answers(node: &Node) -> Answers {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    transactions(node).iter().map(|row| (text(&row["_id"]), (text(&row["status"]), harness::ledger::control_id(row)))).collect()
}

/// Files anywhere below the store whose names begin so, sorted by name.
fn files(node: &Node, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![node.store.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the store").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Overwrites `times` stretches of 2 KiB at random places.
fn damage(path: &PathBuf, rng: &mut Rng, times: u32) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("a file");
    let length = file.metadata().expect("its length").len();
    for _ in 0..times {
        let junk: Vec<u8> = (0..2048).map(|_| rng.next() as u8).collect();
        file.write_all_at(&junk, rng.range(0, length.saturating_sub(2048).max(1))).expect("damage");
    }
}

impl Filled {
    /// Starts it and compares all answers.
    fn same_answers(&mut self, what: &str) {
        self.node.start();
        let settled = settled(&self.node, Duration::from_secs(60));
        let status = self.node.get("/status").text();
        assert!(settled, "{what}: views made again: {status}\n{}", self.node.log_tail(20));
        let now = answers(&self.node);
        assert_eq!(now.len(), self.answers.len(), "{what}: as many transactions\n{}", self.node.log_tail(20));
        assert!(now == self.answers, "{what}: the same answers");
        for id in now.keys().step_by(100) {
            let told = transaction(&self.node, id);
            assert!(told["request"]["body"].as_str().is_some_and(|b| b.starts_with("MSH|")), "{what}: {id}: {told}");
        }
    }

    fn works(&mut self, name: &str) {
        let load = Load { count: Some(10), name: name.into(), ..Load::new(Via::Mllp(self.node.mllp)) };
        let sent = load.run(Duration::from_secs(20));
        assert_eq!(sent.acknowledged.len(), 80, "accepts\n{}", self.node.log_tail(20));
        assert!(self.receiver.wait_for(&sent, Duration::from_secs(20)), "delivers\n{}", self.node.log_tail(20));
        self.sent.merge(sent);
        check(&self.sent, &self.receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn views_that_are_gone_or_damaged_are_made_again() {
    let mut rng = Rng::from_env("views");
    let mut filled = filled();
    for file in [files(&filled.node, "view-"), files(&filled.node, "filter-")].concat() {
        fs::remove_file(file).expect("removed");
    }
    filled.same_answers("views deleted");
    filled.node.stop(Duration::from_secs(30));
    for file in [files(&filled.node, "view-"), files(&filled.node, "filter-")].concat() {
        damage(&file, &mut rng, 4);
    }
    filled.same_answers("views damaged");
    filled.node.stop(Duration::from_secs(30));
    for (number, file) in files(&filled.node, "view-").iter().enumerate() {
        let length = if number % 2 == 0 { 0 } else { 5000 };
        fs::OpenOptions::new().write(true).open(file).and_then(|f| f.set_len(length)).expect("cut");
    }
    filled.same_answers("views cut short");
    filled.works("V");
}

#[test]
fn a_damaged_log_segment_is_set_aside_and_told() {
    one_segment_lost(1);
}

/// The newest log, which the last run was writing: a fresh one begins.
#[test]
fn a_damaged_newest_log_is_set_aside_and_told() {
    one_segment_lost(usize::MAX);
}

fn one_segment_lost(which: usize) {
    let mut rng = Rng::from_env("segment");
    let mut filled = filled();
    // Its beginning too, so that nothing of it can be trusted.
    let logs: Vec<_> = files(&filled.node, "log-").into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect();
    let victim = &logs[which.min(logs.len() - 1)];
    damage(victim, &mut rng, 20);
    fs::OpenOptions::new().write(true).open(victim).and_then(|f| f.write_all_at(&[0x55; 4096], 0)).expect("damage");
    filled.node.start();
    let name = victim.file_name().expect("a name").to_string_lossy().into_owned();
    let log = filled.node.log();
    assert!(log.contains(&name), "the log names {name}\n{}", filled.node.log_tail(20));
    assert!(filled.node.metric("hie_ledger_damage_total").unwrap_or(0.0) >= 1.0, "the metric counts it");
    assert!(settled(&filled.node, Duration::from_secs(30)));
    let now = answers(&filled.node);
    println!("{} of {} transactions after the loss of one of {} segments", now.len(), filled.answers.len(), logs.len());
    let lost = filled.answers.len() - now.len();
    assert!(lost < filled.answers.len() * 2 / logs.len() + 50, "more than one segment is gone: {lost}");
    assert!(now.iter().all(|(id, told)| filled.answers.get(id) == Some(told)), "what is there is unchanged");
    filled.works("S");
    // And again after another start.
    filled.node.stop(Duration::from_secs(30));
    filled.node.start();
    assert!(answers(&filled.node).len() >= now.len());
}

/// A few bytes inside a stored body, with no structure hurt: found when it is read, told with its file, and given to nobody.
#[test]
fn damaged_contents_are_told_when_they_are_read() {
    let mut filled = filled();
    let logs: Vec<_> = files(&filled.node, "log-").into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect();
    let victim = &logs[1];
    let bytes = fs::read(victim).expect("a log");
    let find = |from: usize, what: &[u8]| bytes[from..].windows(what.len()).position(|w| w == what).map(|at| from + at);
    // Its MSH-11 and MSH-12, wherever they are in the file: pages keep what lay in them before they were divided.
    let parts = |id: &str| (format!("|{id}|P|2.5.1\r"), format!("|{id}|X|9.9.9\r"));
    let text = String::from_utf8_lossy(&bytes);
    let inside = |id: &&String| text.contains(&parts(id).0);
    let id = filled.answers.values().map(|(_, id)| id).find(inside).expect("a body in the second log").clone();
    let (before, hurt) = parts(&id);
    let file = fs::OpenOptions::new().write(true).open(victim).expect("the log");
    let mut at = 0;
    while let Some(found) = find(at, before.as_bytes()) {
        file.write_all_at(hurt.as_bytes(), found as u64).expect("damage");
        at = found + 1;
    }
    filled.node.start();
    assert_eq!(filled.node.metric("hie_ledger_damage_total"), Some(0.0), "{}", filled.node.log_tail(20));
    let transaction = filled.answers.iter().find(|(_, (_, control_id))| *control_id == id).expect("its transaction").0;
    let shown = filled.node.get(&format!("/transactions/{transaction}/body/request"));
    assert!(!shown.text().contains("9.9.9"), "{}", shown.status);
    let name = victim.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(filled.node.metric("hie_ledger_damage_total").unwrap_or(0.0) >= 1.0, "the metric counts it: {}", shown.status);
    assert!(filled.node.log().contains(&name), "the log names {name}\n{}", filled.node.log_tail(20));
    assert!(filled.node.get("/status").json()["problems"].to_string().contains(&name));
    assert!(answers(&filled.node) == filled.answers, "all are found");
    filled.works("C");
}

/// A log that is gone, whoever took it: told as a damaged one is, with what to do, and all else is there.
#[test]
fn a_log_segment_that_is_gone_is_told() {
    let mut filled = filled();
    let mut now = filled.answers.clone();
    // The first, one in the middle, the newest, one after the other.
    for (which, name) in [(0, "F"), (usize::MAX / 2, "M"), (usize::MAX, "N")] {
        let logs: Vec<_> = files(&filled.node, "log-").into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect();
        let victim = &logs[match which {
            usize::MAX => logs.len() - 1,
            0 => 0,
            _ => logs.len() / 2,
        }];
        let file = victim.file_name().expect("a name").to_string_lossy().into_owned();
        let number = file.trim_start_matches("log-").trim_end_matches(".db").to_owned();
        for path in files(&filled.node, "").into_iter().filter(|p| p.to_string_lossy().contains(&number)) {
            fs::remove_file(path).expect("removed");
        }
        filled.node.start();
        assert!(settled(&filled.node, Duration::from_secs(30)));
        let told = |node: &Node| node.log().lines().filter(|l| l.contains(&file) && l.contains("missing")).count();
        assert!(told(&filled.node) >= 1, "{name}: the log names {file}\n{}", filled.node.log_tail(20));
        assert!(filled.node.metric("hie_ledger_damage_total").unwrap_or(0.0) >= 1.0, "{name}: the metric counts it");
        let status = filled.node.get("/status").json();
        let problems = status["problems"].to_string();
        assert!(problems.contains(&file) && problems.contains("backup"), "{name}: {status}");
        let (before, left) = (now.len(), answers(&filled.node));
        println!("{name}: {} of {before} transactions after the loss of one of {} segments", left.len(), logs.len());
        assert!(left.iter().all(|(id, told)| now.get(id) == Some(told)), "{name}: what is there is unchanged");
        assert!(before - left.len() < before * 2 / logs.len() + 50, "{name}: more than one segment is gone");
        filled.works(name);
        assert!(settled(&filled.node, Duration::from_secs(30)));
        now = answers(&filled.node);
        assert!(now.len() >= left.len() + 80);
        // Told again until it is back or retention would have removed it.
        filled.node.stop(Duration::from_secs(30));
        filled.node.start();
        assert!(told(&filled.node) >= 2, "{name}: told at every start\n{}", filled.node.log_tail(20));
        assert_eq!(answers(&filled.node).len(), now.len());
        filled.node.stop(Duration::from_secs(30));
    }
}

/// The open log's end torn off, as a power cut may leave it: what was whole is there, the node starts.
#[test]
fn a_torn_end_of_the_open_log_is_survived() {
    let receiver = Receiver::willing();
    let mut node = Builder::new().channel(all_to(&receiver)).start();
    let sent = Load { count: Some(50), ..Load::new(Via::Mllp(node.mllp)) }.run(Duration::from_secs(30));
    assert!(receiver.wait_for(&sent, Duration::from_secs(20)) && settled(&node, Duration::from_secs(20)));
    node.kill9();
    // Bytes that never became a commit, after the last whole one.
    for wal in files(&node, "log-").iter().filter(|p| p.to_string_lossy().ends_with("-wal")) {
        let length = fs::metadata(wal).expect("a file").len();
        let file = fs::OpenOptions::new().append(true).open(wal).expect("a file");
        file.write_all_at(&[0xa5; 6000], length).expect("a torn end");
    }
    node.start();
    assert!(settled(&node, Duration::from_secs(20)));
    assert_eq!(transactions(&node).len(), sent.acknowledged.len());
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}

/// What SQLite has at byte 60 of a file: `user_version` (SQLite file format, 1.3).
fn set_version(path: &PathBuf, version: u32) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.write_all_at(&version.to_be_bytes(), 60).expect("written");
}

fn contents(node: &Node) -> BTreeMap<PathBuf, Vec<u8>> {
    files(node, "")
        .into_iter()
        .filter(|p| p.starts_with(node.store.join("ledger")))
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

#[test]
fn a_store_of_another_release_is_refused_and_left_as_it_is() {
    let mut receiver = Receiver::willing();
    receiver.down();
    let short =
        queue("test.short", "protocol == \"http\"") + "priority = 1\nstorage = \"none\"\n" + &route("p", &receiver.target(), "");
    let mut node =
        Builder::new().section("[ledger]\nsegment_size = \"1 MiB\"\n").channel(short).channel(all_to(&receiver)).start();
    let load = |via: Via, name: &str| Load { connections: 4, count: Some(100), size: 3500, name: name.into(), ..Load::new(via) };
    let mut sent = load(Via::Mllp(node.mllp), "M").run(Duration::from_secs(30));
    sent.merge(load(Via::Http(node.http, "/x".into()), "H").run(Duration::from_secs(30)));
    node.kill9(); // with filled write-ahead logs
    let logs =
        |prefix: &str| files(&node, prefix).into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect::<Vec<_>>();
    let (log, transient) = (logs("log-"), logs("transient-"));
    for victim in [&log[0], &log[log.len() - 1], &transient[0]] {
        set_version(victim, 3);
        let before = contents(&node);
        node.spawn();
        let status = node.wait_end(Duration::from_secs(15));
        assert_eq!(status.and_then(|s| s.code()), Some(69), "{}", node.log_tail(20));
        let (said, name) = (node.log(), victim.file_name().unwrap().to_string_lossy().into_owned());
        for part in [
            &name,
            "tables of version 3",
            "reads versions 1 to 2",
            "nothing was changed",
            concat!("this is hie ", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(contents(&node) == before, "no file was touched");
        // What an upgrade in place asks first refuses too.
        let config = node.config_file();
        let check = node.command(&["check", "--quiet", "--config", config.to_str().unwrap()]).output().expect("hie check");
        assert_eq!(check.status.code(), Some(69), "{}", String::from_utf8_lossy(&check.stderr));
        set_version(victim, 2);
    }
    receiver.up();
    node.start();
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "nothing is lost\n{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    // Once notes were written they name the release that did.
    node.stop(Duration::from_secs(20));
    set_version(&log[log.len() - 1], 7);
    node.spawn();
    node.wait_end(Duration::from_secs(15));
    assert!(node.log().contains(concat!("was written by hie ", env!("CARGO_PKG_VERSION"))), "{}", node.log_tail(5));
}

/// Bodies of a channel that keeps none, damaged while they wait: told, set aside, and in nobody's way.
#[test]
fn a_damaged_file_of_short_lived_bodies_is_told_and_in_nobody_s_way() {
    let mut receiver = Receiver::willing();
    receiver.down();
    let short = queue("test.short", "protocol == \"http\"")
        + "priority = 1\nstorage = \"no-bodies\"\n"
        + &route("p", &receiver.target(), "");
    let mut node = Builder::new().channel(short).channel(all_to(&receiver)).start();
    let load = |via: Via, name: &str, count| Load {
        connections: 4,
        count: Some(count),
        size: 3500,
        name: name.into(),
        ..Load::new(via)
    };
    let kept = load(Via::Mllp(node.mllp), "M", 50).run(Duration::from_secs(30));
    let lost = load(Via::Http(node.http, "/x".into()), "H", 8).run(Duration::from_secs(30));
    assert_eq!((kept.acknowledged.len(), lost.acknowledged.len()), (200, 32));
    node.stop(Duration::from_secs(20));
    let transient: Vec<_> = files(&node, "transient-");
    assert!(!transient.is_empty());
    for file in transient {
        let length = fs::metadata(&file).expect("a file").len();
        fs::write(&file, vec![0x5a; length as usize]).expect("damage");
    }
    receiver.up();
    node.start();
    assert!(receiver.wait_for(&kept, Duration::from_secs(30)), "the other channel's messages\n{}", node.log_tail(20));
    let after = load(Via::Http(node.http, "/x".into()), "A", 10).run(Duration::from_secs(20));
    let passed = receiver.wait_for(&after, Duration::from_secs(60));
    assert!(passed, "new messages of that channel\n{}", node.log_tail(20));
    assert!(node.metric("hie_ledger_damage_total").unwrap_or(0.0) >= 1.0, "the metric counts it\n{}", node.log_tail(20));
    assert!(node.log().contains("transient"), "the log names the file\n{}", node.log_tail(20));
    // None of them is told as delivered, and none is forgotten.
    let parked = Duration::from_secs(60);
    assert!(harness::wait_until(parked, || node.metric("hie_route_parked") == Some(32.0)), "{}", node.log_tail(20));
    assert!(settled_views(&node));
    let parked = transactions(&node).iter().filter(|row| row["status"] == "Parked").count();
    assert_eq!(parked, 32);
    let mut sent = kept;
    sent.merge(after);
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
}

/// A read that fails for a moment, after a long outage: the attempts that the outage took do not count against it.
#[test]
fn a_message_that_cannot_be_read_for_a_moment_after_an_outage_is_tried_again() {
    let mut receiver = Receiver::willing();
    receiver.down();
    let short = queue("test.short", "true") + "storage = \"no-bodies\"\n" + &route("p", &receiver.target(), "");
    let mut node = Builder::new().channel(short).start();
    let load = Load { connections: 1, count: Some(1), ..Load::new(Via::Http(node.http, "/x".into())) };
    let sent = load.run(Duration::from_secs(20));
    assert_eq!(sent.acknowledged.len(), 1);
    let attempts = |node: &Node| node.metric("hie_delivery_attempts_total").unwrap_or(0.0);
    assert!(harness::wait_until(Duration::from_secs(20), || attempts(&node) > 12.0), "{}", node.metrics());
    // After a start its body is in the file alone, which nobody has open while the route is held.
    assert_eq!(node.post("/routes/test.short/p/pause", "").status, 200);
    node.stop(Duration::from_secs(20));
    node.start();
    let transient: Vec<_> = files(&node, "transient-").into_iter().filter(|p| p.extension().is_some_and(|e| e == "db")).collect();
    let away = node.dir().join("away");
    fs::rename(&transient[0], &away).expect("moved");
    receiver.up();
    assert_eq!(node.post("/routes/test.short/p/resume", "").status, 200);
    let told = || node.get("/routes").text();
    let tried = harness::wait_until(Duration::from_secs(20), || told().contains("could not be read"));
    assert!(tried, "{}\n{}", told(), node.log_tail(20));
    assert_eq!(node.metric("hie_route_parked"), Some(0.0), "{}\n{}", told(), node.log_tail(20));
    fs::rename(&away, &transient[0]).expect("moved back");
    assert!(receiver.wait_for(&sent, Duration::from_secs(20)), "{}\n{}", told(), node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Waits until the views have followed the log; something may be pending.
fn settled_views(node: &Node) -> bool {
    harness::wait_until(Duration::from_secs(20), || node.metric("hie_ledger_view_lag") == Some(0.0))
}
