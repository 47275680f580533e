//! A disk that says, now and then, that it could not write: whoever waited for that commit is told so, whoever comes later is served, and
//! nothing acknowledged is lost, also not over a restart.
//!
//! strace lets chosen calls fail; no file system has to be broken for it.

mod harness;

use harness::channels::all_to;
use harness::sender::{Load, Via};
use harness::{Builder, Doubles, Receiver, check, wait_until};
use std::time::Duration;

#[test]
fn a_failed_sync_is_told_and_loses_nothing() {
    let receiver = Receiver::willing();
    let mut node = Builder::new().channel(all_to(&receiver)).lay_out();
    // Of each thread every 200th fdatasync from the 100th on: under load, and not those at start.
    let fault = "inject=fdatasync:error=EIO:when=100+200";
    node.setup.wrapper =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", fault].map(str::to_owned).into();
    node.start();
    node.find_pid();
    let load = Load { name: "S".into(), ..Load::new(Via::Mllp(node.mllp)) }.start();
    assert!(wait_until(Duration::from_secs(30), || load.refused() >= 10), "no sync has failed\n{}", node.log_tail(20));
    let log = node.log();
    assert!(log.contains("the log cannot commit") && log.contains("the log commits again"), "{}", node.log_tail(20));

    node.kill9();
    node.setup.wrapper.clear();
    node.start();
    std::thread::sleep(Duration::from_secs(1));
    let sent = load.stop(Duration::from_secs(20));
    assert!(sent.acknowledged.len() > 500, "the load did not run: {}", sent.acknowledged.len());
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "all acknowledged delivered\n{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}
