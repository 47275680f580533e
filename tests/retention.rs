//! Tries to break: **retention unlinks whole segments, keeps the disk under its limit under continuous load, and never
//! drops what is pending.** One route is dead while load flows through another; the store is looked at all the time.

mod harness;

use harness::channels::{queue, route};
use harness::{Behaviour, Builder, Doubles, Load, Receiver, Rng, Via, check, env_number};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: u64 = 48 << 20;
const SEGMENT: u64 = 4 << 20;

#[test]
fn the_disk_stays_under_its_limit_and_pending_messages_stay() {
    let seconds = env_number("HIE_RETENTION", 30);
    let (lively, mut dead) = (Receiver::willing(), Receiver::willing());
    dead.down();
    let mut node = Builder::new()
        .section(&format!(
            "[ledger]\nmax_size = \"{} MiB\"\nsegment_size = \"{} MiB\"\nmin_free = \"1 MiB\"\n",
            LIMIT >> 20,
            SEGMENT >> 20
        ))
        .channel(
            queue("test.dead", "protocol == \"http\"") + "priority = 1\n" + &route("primary", &dead.target(), "in_flight = 1"),
        )
        .channel(queue("test.lively", "true") + &route("primary", &lively.target(), ""))
        .start();
    // Pending from the first segment on, and some in every later one.
    let waiting =
        Load { name: "W".into(), connections: 2, rate: Some(20.0), size: 2000, ..Load::new(Via::Http(node.http, "/adt".into())) }
            .start();
    let flowing = Load { connections: 8, size: 3500, ..Load::new(Via::Mllp(node.mllp)) }.start();
    let (mut largest, begin) = (0, Instant::now());
    while begin.elapsed() < Duration::from_secs(seconds) {
        largest = largest.max(size(&node.store));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (flowing, waiting) = (flowing.stop(Duration::from_secs(20)), waiting.stop(Duration::from_secs(20)));
    let written = flowing.acknowledged.len() as u64 * 3500;
    println!("{} MiB of bodies went through, the store held {} MiB at most", written >> 20, largest >> 20);
    assert!(written > 2 * LIMIT, "the load was too small to need retention: {} MiB", written >> 20);
    assert!(largest <= LIMIT, "the store grew to {} MiB, its limit is {} MiB", largest >> 20, LIMIT >> 20);
    assert!(lively.wait_for(&flowing, Duration::from_secs(30)));
    check(&flowing, &lively.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));

    // What waited is there, after a start too, and comes out in order.
    node.kill9();
    dead.up();
    node.start();
    assert!(dead.wait_for(&waiting, Duration::from_secs(60)), "pending messages were dropped\n{}", node.log_tail(20));
    check(&waiting, &dead.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
}

/// The same with channels that keep no bodies, whose messages wait in short-lived files for a slow receiver: all that lies in the
/// ledger's folder counts, and what waits is far from filling it. Nothing that retention removes is told as missing after a kill.
#[test]
fn short_lived_bodies_keep_to_the_limit_too() {
    const LIMIT: u64 = 16 << 20;
    let seconds = env_number("HIE_RETENTION", 30) / 2;
    let slowly = Behaviour { delay: Duration::from_millis(4), ..Behaviour::default() };
    let (lively, slow) = (Receiver::willing(), Receiver::http(slowly, Rng::new(3)));
    let short = |name: &str, path: &str, storage: &str| {
        queue(name, &format!("protocol == \"http\" && path == \"{path}\""))
            + &format!("priority = 1\nstorage = \"{storage}\"\n")
            + &route("primary", &slow.target(), "in_flight = 1")
    };
    let mut node = Builder::new()
        .section("[ledger]\nmax_size = \"16 MiB\"\nsegment_size = \"1 MiB\"\nmin_free = \"1 MiB\"\n")
        .section("[limits]\nmax_pending = 1300\n")
        .channel(short("test.none", "/none", "none"))
        .channel(short("test.metadata", "/metadata", "metadata"))
        .channel(queue("test.lively", "protocol == \"mllp\"") + &route("primary", &lively.target(), ""))
        .start();
    let load = |via: Via, name: &str| Load { name: name.into(), connections: 8, size: 3000, ..Load::new(via) };
    let flowing = load(Via::Mllp(node.mllp), "M").start();
    let none = load(Via::Http(node.http, "/none".into()), "N").start();
    let metadata = load(Via::Http(node.http, "/metadata".into()), "D").start();
    let (mut largest, mut kinds, begin) = (0, String::new(), Instant::now());
    while begin.elapsed() < Duration::from_secs(seconds) {
        let now = size(&node.store);
        if now > largest {
            (largest, kinds) = (now, by_kind(&node.store.join("ledger")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let told = node.metric("hie_ledger_bytes");
    println!("{} KiB at most, the limit is {} KiB; the node says {told:?}; {kinds}", largest >> 10, LIMIT >> 10);
    let stops = node.log().lines().filter(|line| line.contains("unfinished messages fill")).count();
    node.kill9();
    node.start();
    let (flowing, mut brief) = (flowing.stop(Duration::from_secs(20)), none.stop(Duration::from_secs(20)));
    brief.merge(metadata.stop(Duration::from_secs(20)));
    let (all, short) = (flowing.acknowledged.len(), brief.acknowledged.len());
    assert!(all > 1000 && short > 1000, "the load was too small: {all} and {short} short-lived");
    assert!(largest <= LIMIT, "the store grew to {} KiB, its limit is {} KiB: {kinds}", largest >> 10, LIMIT >> 10);
    assert_eq!(stops, 0, "told that what waits fills it, and it is a quarter\n{}", node.log_tail(20));
    assert_eq!(node.metric("hie_ledger_damage_total"), Some(0.0), "what retention removes is not missing\n{}", node.log_tail(20));
    slow.behave(Behaviour::default());
    assert!(lively.wait_for(&flowing, Duration::from_secs(30)) && slow.wait_for(&brief, Duration::from_secs(60)));
    for (sent, receiver) in [(&flowing, &lively), (&brief, &slow)] {
        check(sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// KiB of the files in a folder by the first part of their name.
fn by_kind(folder: &Path) -> String {
    let mut kinds = std::collections::BTreeMap::<String, (u64, u32)>::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = name.replace(|c: char| c.is_ascii_digit(), "");
        let kind = kinds.entry(kind).or_default();
        *kind = (kind.0 + entry.metadata().map_or(0, |m| m.len()), kind.1 + 1);
    }
    kinds.iter().map(|(kind, (bytes, n))| format!("{kind} {n}: {} KiB", bytes >> 10)).collect::<Vec<_>>().join(", ")
}

/// Bytes that the files below `folder` take on the disk.
fn size(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => size(&e.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
