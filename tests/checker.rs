//! The judge of the durability and order tests is itself judged here: it must turn red on every kind of fault.

mod harness;

use harness::checker::{Doubles, check};
use harness::receiver::Arrival;
use harness::sender::{Load, Sent, Via};
use harness::wire::{Frames, Tag, ack, adt, field, frame, text};
use harness::{Behaviour, Receiver, Rng};
use std::time::Duration;

fn tag(key: &str, seq: u64) -> Tag {
    Tag { key: key.into(), seq, id: format!("{key}-{seq}") }
}

fn sent(tags: &[(&str, u64)]) -> Sent {
    let tags: Vec<_> = tags.iter().map(|(k, s)| tag(k, *s)).collect();
    Sent { attempted: tags.clone(), acknowledged: tags, ..Sent::default() }
}

fn arrived(tags: &[(&str, u64)]) -> Vec<Arrival> {
    tags.iter().map(|(k, s)| Arrival { tag: tag(k, *s), accepted: true }).collect()
}

#[test]
fn a_faultless_run_passes() {
    let report = check(&sent(&[("a", 1), ("b", 1), ("a", 2)]), &arrived(&[("b", 1), ("a", 1), ("a", 2)]), Doubles::Forbidden);
    assert_eq!(report.expect("no fault").accepted_by_receiver, 3);
}

#[test]
fn a_lost_message_is_named() {
    let fault = check(&sent(&[("a", 1), ("a", 2)]), &arrived(&[("a", 1)]), Doubles::Counted).unwrap_err();
    assert!(fault.contains("1 lost: a#2"), "{fault}");
}

#[test]
fn a_message_that_the_receiver_never_accepted_is_lost() {
    let mut arrivals = arrived(&[("a", 1)]);
    arrivals[0].accepted = false;
    assert!(check(&sent(&[("a", 1)]), &arrivals, Doubles::Counted).unwrap_err().contains("lost"));
}

#[test]
fn an_overtaken_message_is_named() {
    let fault = check(&sent(&[("a", 1), ("a", 2)]), &arrived(&[("a", 2), ("a", 1)]), Doubles::Counted).unwrap_err();
    assert!(fault.contains("1 out of order: a#1 (a-1) after #2"), "{fault}");
}

#[test]
fn a_retry_that_lets_its_successor_pass_is_out_of_order() {
    let mut arrivals = arrived(&[("a", 1), ("a", 2), ("a", 1)]);
    arrivals[0].accepted = false;
    assert!(check(&sent(&[("a", 1), ("a", 2)]), &arrivals, Doubles::Counted).unwrap_err().contains("out of order"));
}

#[test]
fn redelivery_after_a_crash_is_counted_and_keeps_the_order() {
    let arrivals = arrived(&[("a", 1), ("a", 2), ("a", 1), ("a", 2), ("a", 3)]);
    let report = check(&sent(&[("a", 1), ("a", 2), ("a", 3)]), &arrivals, Doubles::Counted).expect("no fault");
    assert_eq!(report.doubled.len(), 2);
}

#[test]
fn a_double_is_a_fault_where_nothing_crashed() {
    let fault = check(&sent(&[("a", 1)]), &arrived(&[("a", 1), ("a", 1)]), Doubles::Forbidden).unwrap_err();
    assert!(fault.contains("1 doubled: a#1"), "{fault}");
}

#[test]
fn a_message_that_nobody_sent_is_foreign() {
    assert!(check(&sent(&[]), &arrived(&[("x", 9)]), Doubles::Counted).unwrap_err().contains("1 foreign: x#9"));
}

#[test]
fn an_unacknowledged_message_may_be_missing_or_delivered() {
    let mut log = sent(&[("a", 1)]);
    log.attempted.extend([tag("a", 2), tag("b", 1)]);
    check(&log, &arrived(&[("a", 1), ("a", 2)]), Doubles::Forbidden).expect("no fault");
}

#[test]
fn a_senders_violation_is_a_fault() {
    let log = Sent { violations: vec!["acknowledged \"Z\"".into()], ..Sent::default() };
    assert!(check(&log, &[], Doubles::Counted).unwrap_err().contains("violations"));
}

#[test]
fn fields_and_frames_are_read_as_hl7_says() {
    let message = adt(&Tag { key: "K".into(), seq: 7, id: "C1".into() }, 600, "pad");
    assert_eq!(text(&message, "MSH", 9), "ADT^A08^ADT_A01");
    assert_eq!(field(&message, "MSH", 1), b"|");
    assert_eq!(Tag::of(&message), Some(Tag { key: "K".into(), seq: 7, id: "C1".into() }));
    assert_eq!(text(&ack(&message, "AE", "no"), "MSA", 2), "C1");
    assert_eq!(text(b"\xef\xbb\xbfMSH$^~\\&$$$$$$$$ID\nPID$1", "MSH", 10), "ID");
    let bytes = [frame(b"one\x1ctwo"), frame(b"")].concat();
    let mut frames = Frames::new(&bytes[..]);
    assert_eq!(frames.read().expect("a frame").as_deref(), Some(&b"one\x1ctwo"[..]));
    assert_eq!(frames.read().expect("a frame").as_deref(), Some(&b""[..]));
    assert_eq!(frames.read().expect("the end"), None);
    assert!(Frames::new(&b"x"[..]).read().is_err());
}

/// Senders and receivers joined without a node between: every failure of the receiver makes the sender send again, and
/// nothing is lost or out of order.
#[test]
fn senders_send_again_until_the_receiver_accepts() {
    for http in [false, true] {
        let behaviour = Behaviour { close: 0.1, reject: 0.1, ..Behaviour::default() };
        let mut receiver = if http { Receiver::http(behaviour, Rng::new(3)) } else { Receiver::mllp(behaviour, Rng::new(3)) };
        let via = if http { Via::Http(receiver.addr, "/in".into()) } else { Via::Mllp(receiver.addr) };
        let fleet = Load { connections: 3, count: Some(60), size: 400, ..Load::new(via) }.start();
        std::thread::sleep(Duration::from_millis(30));
        receiver.down();
        std::thread::sleep(Duration::from_millis(50));
        receiver.up();
        let log = fleet.join(Duration::from_secs(20));
        assert_eq!(log.acknowledged.len(), 180);
        assert!(log.sent_again > 0, "the receiver failed, so something was sent again");
        assert!(receiver.wait_for(&log, Duration::from_secs(1)));
        check(&log, &receiver.arrivals(), Doubles::Counted).expect("no fault");
    }
}
