use super::*;
use crate::engine::fact::{Attempt, BodyRef};
use crate::message::{Envelope, MessageId, Protocol};

fn accepted(mode: Mode, routes: &[&str]) -> Accepted {
    let id = MessageId::now();
    Accepted {
        envelope: Envelope {
            version: 1,
            id,
            received_ms: 5,
            protocol: Protocol::Http,
            listener: "http".into(),
            client: "c".into(),
            remote: String::new(),
            kind: String::new(),
            control_id: None,
            patients: vec![],
            keys: vec![],
            content_type: String::new(),
            http: None,
            body_len: 0,
            parent: None,
            control_id_reused: false,
        },
        channel: "a.b".into(),
        mode,
        storage: Storage::All,
        routes: routes.iter().map(|r| (*r).to_owned()).collect(),
        idempotent: false,
        body: BodyRef::Own,
        body_hash: 0,
        resend_key: 0,
        keeper: Keeper::Log,
    }
}

fn attempt(route: &str, number: u32, outcome: Outcome) -> What {
    What::Attempt(Box::new(Attempt {
        route: route.into(),
        number,
        target: String::new(),
        took_ms: 1,
        outcome,
        status: 0,
        ack: String::new(),
        error: String::new(),
        response: BodyRef::None,
        response_len: 0,
        inside: 0,
    }))
}

fn requeued(route: &str) -> What {
    What::Requeued { route: route.into() }
}

fn discarded(route: &str) -> What {
    What::Discarded { route: route.into() }
}

fn responded(status: u16) -> What {
    What::Responded { status, headers: vec![], body: BodyRef::None, len: 0 }
}

fn repeated() -> What {
    What::Repeated { of: MessageId(uuid::Uuid::nil()) }
}

/// Every order of up to six facts, each fact also twice: always the same.
fn fold(facts: &[What]) -> Folded {
    let numbered: Vec<(Seq, &What)> = facts.iter().enumerate().map(|(i, w)| (10 + i as Seq, w)).collect();
    let run = |order: &[usize]| {
        let mut folded = Folded::default();
        for i in order.iter().chain(order) {
            folded.apply(numbered[*i].0, 100 + numbered[*i].0 as i64, numbered[*i].1);
        }
        folded
    };
    let straight = run(&(0..facts.len()).collect::<Vec<_>>());
    let mut order: Vec<usize> = (0..facts.len()).collect();
    permute(&mut order, 0, &mut |order| assert_eq!(run(order), straight, "order {order:?}"));
    straight
}

fn permute(order: &mut Vec<usize>, from: usize, each: &mut impl FnMut(&[usize])) {
    if from == order.len() {
        return each(order);
    }
    for i in from..order.len() {
        order.swap(from, i);
        permute(order, from + 1, each);
        order.swap(from, i);
    }
}

#[test]
fn facts_make_the_status_in_any_order_and_repeated() {
    use Outcome::{Delivered, Failed, Parked, Retry};
    use Status as S;
    let queue = || What::Accepted(Box::new(accepted(Mode::Queue, &["p", "s"])));
    let proxy = || What::Accepted(Box::new(accepted(Mode::Proxy, &["p", "s"])));
    let lone = || What::Accepted(Box::new(accepted(Mode::Proxy, &["p"])));
    let p = |n, o| attempt("p", n, o);
    let s = |n, o| attempt("s", n, o);
    let table: Vec<(&str, Vec<What>, Status, bool)> = vec![
        ("accepted", vec![queue()], S::Processing, false),
        ("retrying", vec![queue(), p(1, Retry)], S::Processing, false),
        ("primary done, secondary waits", vec![queue(), p(1, Delivered)], S::Processing, false),
        ("secondary done, primary waits", vec![queue(), s(1, Delivered)], S::Processing, false),
        ("all done", vec![queue(), p(1, Retry), p(2, Delivered), s(1, Delivered)], S::Successful, true),
        ("primary parked", vec![queue(), p(1, Parked), s(1, Delivered)], S::Parked, false),
        ("primary parked, requeued", vec![queue(), p(1, Parked), requeued("p"), s(1, Delivered)], S::Processing, false),
        ("requeued and parked again", vec![queue(), p(1, Parked), requeued("p"), p(2, Parked)], S::Parked, false),
        ("requeued and done", vec![queue(), p(1, Parked), requeued("p"), p(2, Delivered), s(1, Delivered)], S::Successful, true),
        ("primary discarded", vec![queue(), p(1, Parked), discarded("p"), s(1, Delivered)], S::Failed, true),
        ("secondary parked", vec![queue(), p(1, Delivered), s(1, Parked)], S::CompletedWithErrors, false),
        ("secondary discarded", vec![queue(), p(1, Delivered), s(1, Parked), discarded("s")], S::CompletedWithErrors, true),
        ("resent changes nothing", vec![queue(), What::Resent { remote: String::new() }], S::Processing, false),
        ("proxy accepted", vec![proxy()], S::Processing, false),
        ("proxy answered, secondary waits", vec![proxy(), p(1, Delivered), responded(200)], S::Processing, false),
        ("proxy answered and done", vec![proxy(), responded(201), s(1, Delivered)], S::Successful, true),
        ("proxy 4xx", vec![proxy(), p(1, Failed), responded(404), s(1, Delivered)], S::Completed, true),
        ("proxy 5xx", vec![proxy(), p(1, Failed), responded(502), s(1, Delivered)], S::Failed, true),
        ("proxy 5xx, secondary waits", vec![proxy(), p(1, Failed), responded(502)], S::Failed, false),
        ("proxy 4xx, secondary parked", vec![proxy(), responded(400), s(1, Parked)], S::CompletedWithErrors, false),
        ("proxy unknown", vec![lone(), What::Unknown], S::Unknown, true),
        ("proxy unknown, secondary waits", vec![proxy(), What::Unknown], S::Unknown, false),
        ("proxy unknown after all answered", vec![lone(), What::Unknown, responded(200)], S::Successful, true),
        ("proxy alone answered", vec![lone(), responded(200)], S::Successful, true),
        ("proxy sent again after a restart", vec![lone(), p(1, Delivered)], S::Successful, true),
        ("repeats another", vec![queue(), repeated()], S::Successful, true),
        ("repeats another, was tried", vec![queue(), p(1, Parked), s(1, Retry), repeated(), requeued("p")], S::Successful, true),
        ("handed on to the broker", vec![queue(), What::Forwarded], S::Processing, false),
        ("no routes", vec![What::Accepted(Box::new(accepted(Mode::Queue, &[])))], S::Successful, true),
        (
            "refused",
            vec![What::Refused {
                envelope: Box::new(accepted(Mode::Queue, &[]).envelope),
                reason: String::new(),
                body: BodyRef::None,
            }],
            S::Refused,
            true,
        ),
        ("accept fact not seen", vec![p(1, Retry)], S::Processing, true),
    ];
    for (name, facts, status, finished) in table {
        let folded = fold(&facts);
        assert_eq!((folded.status(), folded.is_finished()), (status, finished), "{name}");
        assert_eq!(folded.facts.len(), facts.len(), "{name}");
    }
}

#[test]
fn routes_keep_the_accept_facts_order_and_count_attempts() {
    let facts = [
        attempt("s", 4, Outcome::Retry),
        attempt("s", 2, Outcome::Retry),
        What::Accepted(Box::new(accepted(Mode::Queue, &["p", "s"]))),
    ];
    let folded = fold(&facts);
    assert_eq!(folded.routes.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["p", "s"]);
    assert_eq!(folded.progress()[1].attempts, 4);
}

#[test]
fn delivered_stays_delivered() {
    let facts = [What::Accepted(Box::new(accepted(Mode::Queue, &["p"]))), attempt("p", 1, Outcome::Delivered), requeued("p")];
    assert_eq!(fold(&facts).status(), Status::Successful);
}

#[test]
fn what_happened_while_a_transaction_was_carried_counts() {
    // The carried fact was made when facts up to 11 were known; fact 12 came between.
    let carried = What::Carried {
        accepted: Box::new(accepted(Mode::Queue, &["p", "s"])),
        from: 1,
        first: 1,
        routes: vec![
            ("p".into(), RouteProgress { attempts: 3, state: RouteState::Parked, inside: 0, held: false }),
            ("s".into(), RouteProgress { attempts: 1, state: RouteState::Delivered, inside: 0, held: false }),
        ],
        as_of: 11,
    };
    let between = requeued("p");
    let mut one = Folded::default();
    one.apply(12, 0, &between);
    one.apply(13, 0, &carried);
    let mut other = Folded::default();
    other.apply(13, 0, &carried);
    other.apply(12, 0, &between);
    assert_eq!(one, other);
    assert_eq!(one.status(), Status::Processing);
    assert_eq!(one.progress()[0], RouteProgress { attempts: 3, state: RouteState::Waiting, inside: 0, held: false });
    // As a merge of the row it had before.
    let mut old = Folded::default();
    old.apply(1, 0, &What::Accepted(Box::new(accepted(Mode::Queue, &["p", "s"]))));
    old.apply(12, 0, &attempt("p", 4, Outcome::Delivered));
    let mut now = Folded::default();
    now.apply(13, 0, &carried);
    now.merge(&old);
    assert_eq!((now.status(), now.is_finished()), (Status::Successful, true));
}

#[test]
fn failures_inside_the_node_are_counted_by_themselves() {
    let inside = |number: u32, inside: u32| match attempt("p", number, Outcome::Retry) {
        What::Attempt(mut attempt) => {
            attempt.inside = inside;
            What::Attempt(attempt)
        }
        other => other,
    };
    let accept = What::Accepted(Box::new(accepted(Mode::Queue, &["p"])));
    let facts = [accept, attempt("p", 40, Outcome::Retry), inside(41, 1), inside(42, 2)];
    let now = |facts: &[What]| fold(facts).progress()[0];
    assert_eq!(now(&facts), RouteProgress { attempts: 42, state: RouteState::Waiting, inside: 2, held: false });
    // Folded twice and in another order.
    let mut twice = fold(&facts);
    for (n, what) in facts.iter().enumerate().rev() {
        twice.apply(10 + n as Seq, 0, what);
    }
    assert_eq!(twice.progress(), fold(&facts).progress());
    // A real attempt, or an operator's word, begins anew.
    assert_eq!(now(&[&facts[..], &[attempt("p", 43, Outcome::Retry)]].concat()).inside, 0);
    assert_eq!(now(&[&facts[..], &[requeued("p")]].concat()).inside, 0);
}

#[test]
fn places_of_facts_are_bounded() {
    let mut folded = Folded::default();
    for seq in 1..=(FACTS_KEPT as Seq + 500) {
        folded.apply(seq, 0, &attempt("p", 1, Outcome::Retry));
    }
    assert_eq!(folded.facts.len(), FACTS_KEPT);
    assert_eq!((folded.facts[0], folded.facts.last().copied()), (1, Some(FACTS_KEPT as Seq + 500)));
}
