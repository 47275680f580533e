use super::*;

const LEASE: Duration = Duration::from_secs(4);

fn later(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

/// A node whose beats come back at once.
struct Node {
    epochs: Epochs,
    number: u64,
}

impl Node {
    fn new(layout: Layout, now: Instant) -> Self {
        Self { epochs: Epochs::new(layout, LEASE, now), number: 0 }
    }

    /// A beat goes out, comes back, and is what the others hear.
    fn beat(&mut self, now: Instant) -> (Layout, Stage) {
        self.number += 1;
        let told = self.epochs.sends(self.number, now);
        self.epochs.confirmed(now, told.1);
        self.epochs.echo(self.number, now);
        told
    }

    fn hears(&mut self, name: &str, told: (Layout, Stage)) {
        self.epochs.heard(name, Some(told.0), told.1);
    }
}

/// Two that have known each other for a while; the time now.
fn two(layout: Layout) -> (Node, Node, Instant) {
    let mut now = Instant::now();
    let (mut a, mut b) = (Node::new(layout, now), Node::new(layout, now));
    for _ in 0..8 {
        now = later(now, 1);
        let (said_a, said_b) = (a.beat(now), b.beat(now));
        a.hears("b", said_b);
        b.hears("a", said_a);
    }
    (a, b, now)
}

fn change() -> (Layout, Layout) {
    let first = Layout::first(4);
    (first, first.changed(7).expect("a change"))
}

fn learn(node: &mut Node, layout: Layout) {
    assert_eq!(node.epochs.learn(layout), Ok(true));
    assert!(!node.epochs.step(true), "not before it is on disk");
    node.epochs.kept(layout);
}

#[test]
fn nobody_accepts_into_the_new_before_all_have_left_the_old() {
    let (first, second) = change();
    let (mut a, mut b, now) = two(first);
    assert_eq!(a.epochs.may_publish(now), Some((0, 4)));
    learn(&mut a, second);
    assert!(!a.epochs.step(true), "b does not know of it");
    assert_eq!(a.epochs.may_publish(now), Some((0, 4)));
    let said = a.beat(now);
    b.hears("a", said);
    b.epochs.kept(second);
    assert_eq!((b.epochs.stage(), b.epochs.may_publish(now)), (Stage::Known, Some((0, 4))));
    assert!(b.epochs.step(true), "both know");
    assert_eq!((b.epochs.stage(), b.epochs.may_publish(now)), (Stage::Quiet, None));
    assert!(!b.epochs.step(true), "a goes on with the old one");
    let said = b.beat(now);
    a.hears("b", said);
    assert!(a.epochs.step(true) && a.epochs.stage() == Stage::Quiet);
    assert!(!a.epochs.step(false), "something is under way");
    assert!(!a.epochs.step(true), "the others cannot have heard that it is quiet");
    a.beat(now);
    assert!(a.epochs.step(true));
    assert_eq!(a.epochs.may_publish(now), Some((1, 7)));
    let said = a.beat(now);
    b.hears("a", said);
    assert!(b.epochs.step(true) && b.epochs.stage() == Stage::Open);
    assert_eq!(b.epochs.in_use(), [(0, 4), (1, 7)]);
    // The end of it.
    assert!(!b.epochs.closed());
    let drained = second.next_step().expect("a step");
    learn(&mut b, drained);
    assert!(b.epochs.closed());
    assert_eq!((b.epochs.stage(), b.epochs.in_use()), (Stage::Closed, vec![(1, 7)]));
    assert_eq!(b.epochs.behind(Stage::Closed), ["a"]);
    learn(&mut b, drained.next_step().expect("a step"));
    assert_eq!(b.epochs.may_publish(now), Some((1, 7)));
}

#[test]
fn a_silent_node_is_waited_for_until_it_cannot_publish_any_more() {
    let (first, second) = change();
    let (mut a, mut b, mut now) = two(first);
    let begin = now;
    learn(&mut a, second);
    while a.epochs.stage() != Stage::Open {
        now = later(now, 1);
        a.beat(now);
        a.epochs.step(true);
        assert!(now < later(begin, 20));
        if a.epochs.stage() >= Stage::Quiet {
            assert!(b.epochs.may_publish(now).is_none(), "its lease is over");
        }
    }
    // Back again: it reads what was told before it publishes, and goes after the others.
    assert_eq!(b.epochs.may_publish(now), None);
    let said = a.beat(now);
    b.hears("a", said);
    b.epochs.kept(second);
    assert_eq!(b.epochs.may_publish(now), None);
    while b.epochs.step(true) {}
    b.beat(now);
    assert_eq!(b.epochs.may_publish(now), Some((1, 7)));
}

#[test]
fn a_node_that_starts_is_in_step_before_it_publishes() {
    let (first, second) = change();
    let (mut a, mut b, mut now) = two(first);
    // In the middle, from what its disk remembers; and one that knows the new one already.
    for (known, layout) in [(first, second), (second, second)] {
        let mut c = Node::new(known, now);
        assert_eq!(c.epochs.may_publish(now), None);
        c.hears("a", (layout, Stage::Quiet));
        c.epochs.kept(layout);
        let said = c.beat(now);
        assert_eq!(said.1, Stage::Out);
        assert_eq!(c.epochs.stage(), Stage::Known);
        assert_eq!(c.epochs.may_publish(now), None, "nobody has heard of it");
        while c.epochs.step(true) {}
        assert_eq!(c.epochs.stage(), Stage::Quiet, "others are quiet");
        c.beat(now);
        assert!(!c.epochs.step(true), "it does not know all others yet");
        c.hears("b", (layout, Stage::Open));
        assert!(c.epochs.step(true));
        assert_eq!(c.epochs.may_publish(now), Some((1, 7)));
    }
    // Those that were there wait for one that starts with the old one.
    learn(&mut a, second);
    a.hears("c", (first, Stage::Closed));
    b.hears("c", (first, Stage::Out));
    let said = b.beat(now);
    a.hears("b", said);
    now = later(now, 1);
    a.beat(now);
    assert!(!a.epochs.step(true));
    assert_eq!(a.epochs.behind(Stage::Known), ["b", "c"]);
    // After a change that is over for all others.
    let over = second.next_step().and_then(|l| l.next_step()).expect("steps");
    learn(&mut b, over);
    assert_eq!(b.epochs.may_publish(now), None);
    while b.epochs.step(true) {}
    assert_eq!(b.epochs.may_publish(now), Some((1, 7)));
}

#[test]
fn what_does_not_fit_is_not_followed_but_told() {
    let (first, second) = change();
    let (mut a, ..) = two(first);
    assert!(a.epochs.learn(Layout::first(6)).is_err_and(|e| e.contains("transport.partitions")));
    a.hears("b", (Layout::first(6), Stage::Closed));
    assert!(a.epochs.problem().is_some_and(|p| p.contains("6")));
    a.hears("b", (first, Stage::Closed));
    assert_eq!(a.epochs.problem(), None);
    let other = Layout::first(6).changed(7).expect("a change");
    assert!(a.epochs.learn(other).is_err());
    assert!(a.epochs.problem().is_some_and(|p| p.contains("previous")));
    assert_eq!(a.epochs.layout(), first);
    assert_eq!(a.epochs.learn(second), Ok(true));
    a.epochs.heard("old", None, Stage::Unaware);
    assert_eq!(a.epochs.behind(Stage::Known), ["b", "old"], "one of a release before is waited for");
}

#[test]
fn queues_are_drained_for_one_change() {
    let (first, second) = change();
    let (mut a, ..) = two(first);
    learn(&mut a, second);
    a.epochs.told_drained("x/0");
    assert!(a.epochs.are_drained(["x/0"]) && !a.epochs.are_drained(["x/0", "x/1"]));
    let third = Layout { epoch: 2, partitions: 3, previous: Some(Past { epoch: 1, partitions: 7, drained: false }) };
    learn(&mut a, third);
    assert!(!a.epochs.are_drained(["x/0"]));
}
