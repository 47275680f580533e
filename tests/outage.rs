//! Tries to break: **bounded**, and order over an outage. The receiver is away for 60 s (`HIE_OUTAGE`) while 500
//! messages a second come in: resident memory grows by less than 32 MiB, all is delivered in order after. A dead
//! secondary route costs the primary's deliveries nothing.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::{Behaviour, Builder, Doubles, Load, Receiver, Rng, Via, check, env_number, wait_until};
use std::time::Duration;

#[test]
fn an_outage_of_the_receiver_costs_no_memory_and_no_order() {
    let seconds = env_number("HIE_OUTAGE", 60);
    let mut receiver = Receiver::willing();
    let node = Builder::new().channel(all_to(&receiver)).start();
    let load = Load { connections: 10, keys: 20, rate: Some(500.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    assert!(wait_until(Duration::from_secs(20), || receiver.count() > 1500), "warm-up\n{}", node.log_tail(20));
    let before = node.rss_kib();
    receiver.down();
    let at_down = load.acknowledged();
    let mut peak = before;
    for _ in 0..seconds * 4 {
        std::thread::sleep(Duration::from_millis(250));
        peak = peak.max(node.rss_kib());
    }
    let meanwhile = load.acknowledged() - at_down;
    receiver.up();
    let sent = load.stop(Duration::from_secs(20));
    let drained = receiver.wait_for(&sent, Duration::from_secs(90));
    peak = peak.max(node.rss_kib());
    println!("{seconds} s away, {meanwhile} accepted meanwhile, resident {before} KiB before, {peak} KiB at most");
    assert!(drained, "not all delivered within 90 s after the outage\n{}", node.log_tail(20));
    // Counted: what the receiver had taken when its connections were cut is delivered again.
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(meanwhile as f64 > seconds as f64 * 500.0 * 0.8, "accepting went on: {meanwhile} in {seconds} s");
    assert!(peak < before + 32 * 1024, "resident memory grew by {} KiB", peak - before);
}

#[test]
fn a_dead_secondary_route_costs_the_primary_nothing() {
    #[derive(Clone, Copy, PartialEq)]
    enum Second {
        None,
        /// Connections are refused.
        Refusing,
        /// Takes connections and messages, never answers, so that attempts last until the route's timeout.
        Silent,
    }
    let run = |second: Second| {
        let receiver = Receiver::willing();
        let black_hole = Receiver::mllp(Behaviour { silent: 1.0, ..Behaviour::default() }, Rng::new(1));
        let mut channel = queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true");
        match second {
            Second::None => {}
            Second::Refusing => {
                let nobody = harness::node::free_port();
                channel += &route("dead", &format!("mllp = [\"{nobody}\"]"), "");
            }
            Second::Silent => channel += &route("dead", &black_hole.target(), ""),
        }
        let node = Builder::new().channel(channel).start();
        let load = Load { connections: 8, rate: Some(500.0), count: Some(500), ..Load::new(Via::Mllp(node.mllp)) };
        let sent = load.run(Duration::from_secs(60));
        let all = receiver.wait_for(&sent, Duration::from_secs(5));
        let report = check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(all, "the primary route has everything 5 s after the last acknowledgment");
        if second == Second::Silent {
            assert!(black_hole.count() > 0 && black_hole.accepted() == 0, "the silent one was tried");
        }
        (report.accepted_by_receiver, node.metric("hie_messages_pending"))
    };
    let (alone, _) = run(Second::None);
    for second in [Second::Refusing, Second::Silent] {
        let (beside_a_dead_one, pending) = run(second);
        assert_eq!(alone, beside_a_dead_one);
        assert_eq!(pending, Some(beside_a_dead_one as f64), "the dead route's deliveries wait");
    }
}
