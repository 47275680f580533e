//! Tries to break: **retention unlinks whole segments, keeps the disk under its limit under continuous load, and never
//! drops what is pending.** One route is dead while load flows through another; the store is looked at all the time.

mod harness;

use harness::channels::{queue, route};
use harness::{Builder, Doubles, Load, Receiver, Via, check, env_number};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: u64 = 48 << 20;
const SEGMENT: u64 = 4 << 20;
/// The node stops one and a half segments below its limit and counts its files now and then: between two counts it may be
/// wrong by a part of a segment, and no more.
const SLACK: u64 = SEGMENT / 2;

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
    assert!(largest < LIMIT + SLACK, "the store grew to {} MiB, its limit is {} MiB", largest >> 20, LIMIT >> 20);
    assert!(lively.wait_for(&flowing, Duration::from_secs(30)));
    check(&flowing, &lively.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));

    // What waited is there, after a start too, and comes out in order.
    node.kill9();
    dead.up();
    node.start();
    assert!(dead.wait_for(&waiting, Duration::from_secs(60)), "pending messages were dropped\n{}", node.log_tail(20));
    check(&waiting, &dead.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
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
