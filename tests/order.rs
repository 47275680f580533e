//! Tries to break: **in order per key; retrying holds the key**, with a receiver that fails at random, and no double
//! where nothing crashed. The build that breaks the order turns this red (`broken_builds.rs`).

mod harness;

use harness::channels::{queue, route};
use harness::{Behaviour, Builder, Doubles, Load, Receiver, Rng, Via, check};
use std::time::Duration;

#[test]
fn order_per_patient_holds_while_the_receiver_fails() {
    let mut rng = Rng::from_env("order");
    harness::scenario::order(harness::node::binary(), &mut rng, 500).unwrap_or_else(|fault| panic!("{fault}"));
}

/// The default key is the feed: what one sender sends arrives in that order, over all its patients.
#[test]
fn order_per_feed_holds_over_patients() {
    let mut rng = Rng::from_env("order per feed");
    let receiver = Receiver::mllp(Behaviour { reject: 0.02, ..Behaviour::default() }, rng.split());
    let channel = queue("test.feed", "true").replace("patient", "feed") + &route("primary", &receiver.target(), "");
    let node = Builder::new().channel(channel).start();
    let load = Load { connections: 1, keys: 20, count: Some(600), ..Load::new(Via::Mllp(node.mllp)) };
    let sent = load.run(Duration::from_secs(60));
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    let accepted = receiver.arrivals().into_iter().filter(|a| a.accepted).map(|a| a.tag.id);
    let sent = sent.acknowledged.into_iter().map(|t| t.id);
    assert!(accepted.eq(sent), "the feed's messages arrived in another order than they were sent");
}

/// A parked message lets its successors pass by default, and holds its key where the channel says so.
#[test]
fn a_parked_message_passes_or_holds_as_configured() {
    for (policy, passes) in [("continue", true), ("hold", false)] {
        let receiver = Receiver::mllp(Behaviour { error: 1.0, ..Behaviour::default() }, Rng::new(1));
        let channel = format!("{}after_park = \"{policy}\"\n", queue("test.park", "true"));
        let node = Builder::new().channel(channel + &route("primary", &receiver.target(), "")).start();
        let one =
            |name: &str| Load { connections: 1, keys: 1, count: Some(1), name: name.into(), ..Load::new(Via::Mllp(node.mllp)) };
        // The same key twice: both loads call their only key "A0K0", told apart by their control ids.
        let parked = one("A").run(Duration::from_secs(10));
        assert!(harness::wait_until(Duration::from_secs(10), || node.metric("hie_route_parked") == Some(1.0)), "AE parks");
        receiver.behave(Behaviour::default());
        let tag = harness::wire::Tag { key: "A0K0".into(), seq: 2, id: "SECOND".into() };
        let answer = harness::Peer::connect(node.mllp).exchange(&harness::wire::adt(&tag, 500, "x"));
        assert_eq!(harness::wire::text(&answer, "MSA", 1), "AA");
        let arrived = || receiver.arrivals().iter().any(|a| a.tag.id == "SECOND");
        assert_eq!(harness::wait_until(Duration::from_millis(1500), arrived), passes, "after_park = {policy}");
        assert_eq!(parked.acknowledged.len(), 1);
    }
}
