//! `--cluster=N`: N accepting instances share the same ports; messages taken by all of them come out complete and in
//! order per key, over kill -9 too.

mod harness;

use harness::channels::all_to;
use harness::{Builder, Doubles, Load, Receiver, Rng, Via, chaos, check};
use std::time::Duration;

#[test]
fn four_instances_accept_and_keep_the_order() {
    let receiver = Receiver::willing();
    let node = Builder::new().arg("--cluster").arg("4").channel(all_to(&receiver)).start();
    let load = |via: Via, name: &str| Load { connections: 16, count: Some(100), name: name.into(), ..Load::new(via) };
    let by_http = load(Via::Http(node.http, "/adt".into()), "H").start();
    let mut sent = load(Via::Mllp(node.mllp), "M").run(Duration::from_secs(60));
    sent.merge(by_http.join(Duration::from_secs(60)));
    assert_eq!(sent.acknowledged.len(), 3200);
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    let threads = thread_names(node.pid());
    let accepting = threads.iter().filter(|n| n.starts_with("hie-accept-")).count();
    assert_eq!(accepting, 4, "four accepting threads among {threads:?}");
}

fn thread_names(pid: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok()).map(|n| n.trim().to_owned()).collect()
}

#[test]
fn instances_lose_nothing_over_kills() {
    let mut rng = Rng::from_env("cluster");
    let receiver = Receiver::willing();
    let mut node = Builder::new().node("cluster = \"auto\"").channel(all_to(&receiver)).start();
    let load = Load { connections: 12, rate: Some(800.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    chaos::kill_often(&mut node, &mut rng, 6, (Duration::from_millis(100), Duration::from_millis(700)), || false);
    let sent = load.stop(Duration::from_secs(20));
    assert!(receiver.wait_for(&sent, Duration::from_secs(60)), "{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}
