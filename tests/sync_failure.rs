//! A disk that says, at last, that it could not write: what an fdatasync that failed was to make durable is not known, so the node
//! tells nobody anything about it and ends. Started again, it has everything that it acknowledged.
//!
//! strace lets chosen calls fail; no file system has to be broken for it.

mod harness;

use harness::channels::all_to;
use harness::sender::{Load, Via};
use harness::{Builder, Doubles, Receiver, check};
use std::time::Duration;

#[test]
fn a_failed_sync_ends_the_node_and_loses_nothing() {
    let receiver = Receiver::willing();
    let mut node = Builder::new().channel(all_to(&receiver)).lay_out();
    // The 300th fdatasync of each thread: under load, and not one of those at start.
    let fault = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=300"];
    node.setup.wrapper = fault.iter().map(|s| (*s).to_owned()).collect();
    node.start();
    let load = Load { name: "S".into(), ..Load::new(Via::Mllp(node.mllp)) }.start();
    let status = node.wait_end(Duration::from_secs(60));
    let log = node.log_tail(50);
    assert!(log.contains("cannot be made durable") && log.contains("check the disk"), "{log}");
    assert_eq!(status.and_then(|s| s.code()), Some(69), "{status:?}\n{log}");

    node.setup.wrapper.clear();
    node.start();
    std::thread::sleep(Duration::from_secs(1));
    let sent = load.stop(Duration::from_secs(20));
    assert!(sent.acknowledged.len() > 500, "the load did not run: {}", sent.acknowledged.len());
    assert!(sent.refused.is_empty(), "nobody is told a refusal that may be wrong: {:?}", sent.refused);
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "all acknowledged delivered\n{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
}
