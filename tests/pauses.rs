//! A route that an operator paused stays paused over a crash, a restart and an upgrade, until it is resumed.

mod harness;

use harness::channels::{queue, route};
use harness::wire::{Tag, adt, text};
use harness::{Builder, Node, Peer, Receiver, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

fn state(node: &Node, name: &str) -> (bool, String) {
    let routes = node.get("/routes").json();
    let found = routes.as_array().and_then(|all| all.iter().find(|r| r["route"] == name)).cloned().unwrap_or_default();
    (found["paused"] == true, found["paused_by"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_pause_is_kept_until_it_is_taken_back() {
    let receiver = Receiver::willing();
    let channel = queue("test.all", "true")
        + &route("one", &receiver.target(), "primary = true")
        + &route("two", "file = { directory = \"out\" }", "paused = true");
    let mut node = Builder::new().channel(channel).lay_out();
    std::fs::create_dir_all(node.dir().join("out")).expect("a folder");
    node.start();
    let operator = (true, "operator".to_owned());
    assert_eq!((state(&node, "one"), state(&node, "two")), ((false, String::new()), (true, "configuration".to_owned())));
    assert_eq!(node.post("/routes/test.all/one/pause", "").status, 200);
    // Answered means on stable storage: even a crash right after does not lose it.
    node.kill9();
    node.start();
    assert_eq!(state(&node, "one"), operator);
    let config = node.config_file();
    let list = node.command(&["route", "list", "--config", config.to_str().expect("a UTF-8 path")]).output().expect("hie runs");
    assert!(String::from_utf8_lossy(&list.stdout).contains("paused (operator)"), "{list:?}");
    let mut peer = Peer::connect(node.mllp);
    let ack = peer.exchange(&adt(&Tag { key: "k".into(), seq: 1, id: "HELD".into() }, 300, "pad"));
    assert_eq!(text(&ack, "MSA", 1), "AA");
    drop(peer);

    node.signal(Signal::SIGUSR2);
    let upgraded = || node.log().split_once("upgrading in place").is_some_and(|(_, after)| after.contains(" ready"));
    assert!(wait_until(Duration::from_secs(30), upgraded), "{}", node.log_tail(30));
    assert!(wait_until(Duration::from_secs(10), || node.get("/health/ready").status == 200));
    assert_eq!(state(&node, "one"), operator, "after an upgrade in place");
    assert!(receiver.arrivals().is_empty(), "nothing went out");

    assert_eq!(node.post("/routes/test.all/one/resume", "").status, 200);
    assert_eq!(node.post("/routes/test.all/two/resume", "").status, 200);
    assert!(wait_until(Duration::from_secs(10), || receiver.arrivals().iter().any(|a| a.tag.id == "HELD")));
    node.stop(Duration::from_secs(20));
    node.start();
    assert_eq!((state(&node, "one").0, state(&node, "two").0), (false, false));
}
