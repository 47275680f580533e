//! Tries to break: **no `AA`, `CA`, 200 or 202 leaves before the message is on stable storage**, and in proxy mode the
//! request is durable before it is forwarded. A system-call trace under load: for each message, the write that holds it
//! into the log comes before an fsync or fdatasync of that very file, which completes before the acknowledgment (or the
//! copy to a receiver) is written. Among them bodies that come in pieces, packed ones, and those of a channel that keeps none,
//! which lie in files of their own; and segments end meanwhile. The build without fsync is caught by this test (`broken_builds.rs`).

mod harness;

use harness::trace::{self, Story};

#[test]
fn each_message_is_synced_before_its_acknowledgment_is_written() {
    harness::traced::run(harness::node::binary()).unwrap_or_else(|fault| panic!("{fault}"));
}

const SAMPLE: &str = r#"10 pwrite64(7</s/log-wal>, "..==TOKEN1==..", 4096, 0) = 4096
10 pwrite64(7</s/log-wal>, "..==TOKEN2==..", 4096, 4096 <unfinished ...>
11 sendto(9<TCP:[127.0.0.1:1->127.0.0.1:2]>, "\vMSA|AA|x", 9, 0, NULL, 0) = 9
10 <... pwrite64 resumed>) = 4096
10 fdatasync(7</s/log-wal>) = 0
11 sendto(9<TCP:[127.0.0.1:1->127.0.0.1:2]>, "\vMSA|AA|y", 9, 0, NULL, 0) = 9
10 fdatasync(8</s/other>) = -1 EIO (Input/output error)
"#;

/// The reader of traces is itself judged: order of events, the very file, and failed calls count.
#[test]
fn a_trace_is_read_as_it_happened() {
    let calls = trace::parse(SAMPLE.as_bytes());
    assert_eq!(calls.len(), 6);
    assert_eq!(calls[1].target, "/s/log-wal");
    assert_eq!((calls[1].begin, calls[1].end), (1, 3));
    assert_eq!(calls[2].target, "TCP:[127.0.0.1:1->127.0.0.1:2]");
    assert!(!calls[5].ok);
    let tokens = vec!["TOKEN1".to_owned(), "TOKEN2".to_owned(), "TOKEN3".to_owned()];
    let story = Story::new(&calls, "/s".as_ref(), &tokens);
    assert!(story.durable_before("TOKEN1", 2).is_err(), "no fsync yet");
    assert!(story.durable_before("TOKEN1", 5).is_ok());
    assert!(story.durable_before("TOKEN2", 5).is_ok());
    assert!(story.durable_before("TOKEN3", 5).is_err(), "never written");
    let moved = SAMPLE.replace("fdatasync(7</s/log-wal>)", "fdatasync(6</s/other>)");
    let story = Story::new(&trace::parse(moved.as_bytes()), "/s".as_ref(), &tokens);
    assert!(story.durable_before("TOKEN1", 5).is_err(), "the fsync of another file does not count");
}
