//! The lower half of the RabbitMQ transport on real brokers, of Debian 12 (3.10) and Debian 13 (4.x).

mod broker_support;
mod harness;

use broker_support::*;
use harness::parts::{self, Rabbitmq};
use hie::{
    config::{BrokerUrl, Transport, TransportKind},
    transport::rabbitmq::{
        ConsumeEnd, Consumer, Link, LinkSettings, LinkState, PasswordSource, PublishError, Publisher, PublisherLimits, QueueKind,
        QueueSpec, Session, StreamStart, TopologyError, topology,
    },
};
use lapin::types::AMQPValue;
use std::{
    collections::{HashMap, HashSet},
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, time::timeout};

async fn queues_are_declared_and_checked(broker: &Rabbitmq, session: &Session) {
    let stream = |bytes| QueueSpec {
        name: "declared.stream".into(),
        kind: QueueKind::Stream { max_age: 3600 * SECOND, max_bytes: bytes },
    };
    for _ in 0..2 {
        let done = topology::declare(session, &[quorum("declared"), stream(100_000_000)]).await;
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }
    let raw = raw(broker).await;
    let own = || {
        vec![
            ("x-queue-type", text("quorum")),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000_000)),
            ("x-overflow", text("reject-publish")),
            ("x-max-length", AMQPValue::LongLongInt(1_000_000)),
        ]
    };
    let mut wrong = vec![quorum("otherwise.classic"), stream(200_000_000)];
    raw_queue(&raw, "otherwise.classic", &[]).await.expect("declared");
    for missing in 1..own().len() {
        let mut arguments = own();
        let (key, _) = arguments.remove(missing);
        let name = format!("otherwise.{key}");
        raw_queue(&raw, &name, &arguments).await.expect("declared");
        wrong.push(quorum(&name));
    }
    raw_queue(&raw, "otherwise.length", &[own(), vec![("x-max-length-bytes", AMQPValue::LongLongInt(5))]].concat())
        .await
        .expect("declared");
    wrong.push(quorum("otherwise.length"));
    raw_queue(&raw, "otherwise.ttl", &[own(), vec![("x-message-ttl", AMQPValue::LongLongInt(5))]].concat())
        .await
        .expect("declared");
    wrong.push(quorum("otherwise.ttl"));
    wrong.push(quorum("declared"));
    let number = session.number();
    let done = topology::declare(session, &wrong).await;
    assert!(done.last().is_some_and(Result::is_ok), "those behind a refusal are declared: {done:?}");
    for (spec, done) in wrong.iter().zip(&done).rev().skip(1) {
        let error = done.as_ref().expect_err(&spec.name);
        assert!(matches!(error, TopologyError::Otherwise { .. }), "{error}");
        assert!(error.to_string().contains(&*spec.name) && error.to_string().contains("delete_queue"), "{error}");
    }
    assert!(session.stands() && session.number() == number);

    let depths = topology::depths(session, &["declared".into(), "nowhere".into(), "declared.stream".into()]).await;
    assert_eq!(depths[0], Ok(topology::Depth { messages: 0, consumers: 0 }));
    assert!(matches!(&depths[1], Err(TopologyError::Missing { queue }) if &**queue == "nowhere"), "{depths:?}");
    assert!(depths[2].is_ok());
    let _ = raw.close(200, "OK".into()).await;
}

async fn what_is_not_stored_is_told(link: &Link, session: &Session) {
    let publisher = Publisher::start(link, "test", limits(), &Handle::current());
    let good = declared(session, &quorum("told.good")).await;
    let missing: Arc<str> = "told.missing".into();
    // Returned messages among confirmed ones: each answer is its own message's.
    for round in 2..12 {
        let answers: Vec<_> = (0..3000)
            .map(|n| {
                let lost = n % (round * 5) == 1;
                (lost, publisher.publish(if lost { &missing } else { &good }, number(n), false))
            })
            .collect();
        for (lost, answer) in answers {
            match within(20, "an answer", answer).await {
                Ok(_) => assert!(!lost, "an unroutable message was taken as stored"),
                Err(PublishError::Unroutable { ref queue, maybe_stored: false }) if lost => assert_eq!(*queue, missing),
                other => panic!("{other:?}, unroutable: {lost}"),
            }
        }
    }
    let full = declared(session, &QueueSpec { name: "told.full".into(), kind: QueueKind::Quorum { max_length: 5 } }).await;
    // The broker's channel learns a little later that the queue is full: a burst goes in whole.
    let mut answers = Vec::new();
    for n in 0..200 {
        answers.extend(publish(&publisher, &full, [n]).await);
    }
    let refused = answers.iter().filter(|a| matches!(a, Err(PublishError::Rejected { maybe_stored: false, .. }))).count();
    let stored = answers.iter().filter(|a| a.is_ok()).count();
    println!("a queue of 5: {stored} stored, {refused} refused");
    assert!(refused > 100 && stored >= 5 && refused + stored == 200);
    let depth = topology::depths(session, &[full]).await;
    assert_eq!(depth[0].as_ref().expect("there").messages as usize, stored);
    let large = publisher.publish(&good, vec![0; 13 << 20].into(), false).await;
    assert_eq!(large, Err(PublishError::TooLarge(13 << 20)));
}

async fn a_stream_is_read_from_an_offset(link: &Link, session: &Session) {
    let spec =
        QueueSpec { name: "read.stream".into(), kind: QueueKind::Stream { max_age: 3600 * SECOND, max_bytes: 100_000_000 } };
    let stream = declared(session, &spec).await;
    let publisher = Publisher::start(link, "test", limits(), &Handle::current());
    assert!(publish(&publisher, &stream, 0..300).await.iter().all(Result::is_ok));
    let mut reader = Consumer::open_stream(session, &stream, 10, StreamStart::First).await.expect("a reader");
    let mut offsets = Vec::new();
    for n in 0..300 {
        let got = take(&mut reader, 1).await.remove(0);
        assert_eq!(read(&got.payload), n);
        offsets.push(got.offset.expect("an offset"));
        reader.acks().ack(got.tag, true).await.expect("acknowledged");
    }
    reader.close().await;
    assert!(offsets.windows(2).all(|w| w[0] < w[1]));
    let mut reader = Consumer::open_stream(session, &stream, 10, StreamStart::Offset(offsets[200])).await.expect("a reader");
    // Not acknowledged, it stops at about the prefetch.
    let got = take(&mut reader, 10).await;
    assert_eq!(numbers(&got), (200..210).collect::<Vec<_>>());
    assert_eq!(got[0].offset, Some(offsets[200]));
    reader.close().await;
    let mut reader = Consumer::open_stream(session, &stream, 10, StreamStart::Next).await.expect("a reader");
    assert!(publish(&publisher, &stream, 300..301).await[0].is_ok());
    assert_eq!(numbers(&take(&mut reader, 1).await), [300]);
    reader.close().await;
}

/// What is in hand goes back in order, however often; and the next in line takes over where it stood.
async fn closing_hands_back_in_order(link: &Link, session: &Session) {
    let queue = declared(session, &quorum("back")).await;
    let publisher = Publisher::start(link, "test", limits(), &Handle::current());
    assert!(publish(&publisher, &queue, 0..60).await.iter().all(Result::is_ok));
    for round in 0..30 {
        let mut active = Consumer::open(session, &queue, 20).await.expect("a consumer");
        let got = take(&mut active, 20).await;
        assert_eq!(numbers(&got), (round..round + 20).collect::<Vec<_>>(), "round {round}");
        assert!(got.iter().take(19).all(|d| d.redelivered == (round > 0)), "round {round}");
        let mut next = Consumer::open(session, &queue, 20).await.expect("a consumer");
        assert!(timeout(Duration::from_millis(50), next.next()).await.is_err(), "one consumer at a time");
        active.acks().ack(1, false).await.expect("acknowledged");
        match round % 2 {
            0 => active.close().await,
            _ => drop(active),
        }
        let got = take(&mut next, 20).await;
        assert_eq!(numbers(&got), (round + 1..round + 21).collect::<Vec<_>>(), "round {round}");
        next.close().await;
    }
    let mut last = Consumer::open(session, &queue, 100).await.expect("a consumer");
    assert_eq!(numbers(&take(&mut last, 30).await), (30..60).collect::<Vec<_>>(), "none was dropped for its returns");
    let end = last.acks().clone();
    end.close().await;
    assert_eq!(within(5, "the end", last.next()).await.expect_err("closed"), ConsumeEnd::Closed);
}

async fn ends_of_consumers_are_told(broker: &Rabbitmq, link: &Link, session: &Session) {
    let missing = Consumer::open(session, &"nowhere".into(), 1).await.err();
    assert_eq!(missing, Some(ConsumeEnd::Missing { queue: "nowhere".into() }));

    let queue = declared(session, &quorum("ends")).await;
    let mut consumer = Consumer::open(session, &queue, 1).await.expect("a consumer");
    broker.eval("{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"ends\">>)), rabbit_amqqueue:delete(Q, false, false, <<\"test\">>).");
    assert_eq!(within(10, "the end", consumer.next()).await.expect_err("ended"), ConsumeEnd::Cancelled { queue: queue.clone() });

    // The broker looks at held messages once a minute, unless told otherwise.
    broker.eval("application:set_env(rabbit, channel_tick_interval, 500), application:set_env(rabbit, consumer_timeout, 1500).");
    let queue = declared(session, &quorum("held")).await;
    let publisher = Publisher::start(link, "test", limits(), &Handle::current());
    assert!(publish(&publisher, &queue, 0..3).await.iter().all(Result::is_ok));
    let mut consumer = Consumer::open(session, &queue, 3).await.expect("a consumer");
    let got = take(&mut consumer, 3).await;
    let end = within(30, "the end", consumer.next()).await.expect_err("ended");
    println!("{end}");
    assert!(matches!(&end, ConsumeEnd::Timeout { queue, .. } if &**queue == "held"), "{end:?}");
    let late = consumer.acks().ack(got[0].tag, false).await;
    assert!(late.is_err(), "an acknowledgment after the end is not taken for one");
    broker.eval("application:set_env(rabbit, consumer_timeout, 1800000).");
    let mut consumer = Consumer::open(session, &queue, 3).await.expect("a consumer");
    assert_eq!(numbers(&take(&mut consumer, 3).await), [0, 1, 2]);
    consumer.close().await;
    assert!(session.stands());
}

async fn on(part: &str, release: &str) {
    let root = parts::fetch(part);
    let broker = Rabbitmq::start(&root, CONF);
    let link = link(&broker);
    let session = within(10, "a session", link.session()).await;
    assert!(session.release().starts_with(release), "{}", session.release());
    let LinkState::Up { broker: at, version, .. } = link.state() else { panic!("{:?}", link.state()) };
    assert_eq!((at, &*version), (format!("127.0.0.1:{}", broker.port()), session.release()));
    queues_are_declared_and_checked(&broker, &session).await;
    what_is_not_stored_is_told(&link, &session).await;
    a_stream_is_read_from_an_offset(&link, &session).await;
    closing_hands_back_in_order(&link, &session).await;
    ends_of_consumers_are_told(&broker, &link, &session).await;
    an_alarm_of_the_broker_is_told(&broker, &link, &session).await;
    refusals_are_told(&broker).await;
    assert_eq!(link.session().await.number(), 1, "nothing of it cost the connection");
    let named = broker.eval("[proplists:get_value(<<\"connection_name\">>, [{K, V} || {K, _, V} <- P]) || [{client_properties, P}] <- rabbit_networking:connection_info_all([client_properties])].");
    assert!(named.contains("hie test"), "{named}");
    link.close().await;
    assert!(matches!(link.state(), LinkState::Away { .. }));
    assert!(!session.stands() && link.try_session().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_publishing_and_consuming_on_3_10() {
    on("rabbitmq-3.10", "3.10.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_publishing_and_consuming_on_4() {
    on("rabbitmq-4", "4.").await;
}

/// Waits until the link tells an error that `holds`.
async fn told(settings: LinkSettings, holds: &str) {
    let link = Link::start(settings, &Handle::current());
    let mut states = link.watch();
    let found = timeout(Duration::from_secs(15), states.wait_for(|s| s.error().is_some_and(|e| e.text().contains(holds)))).await;
    let said = link.state();
    assert!(found.is_ok_and(|f| f.is_ok()), "not told: {holds:?}, but: {said:?}");
    let said = said.error().map(ToString::to_string).unwrap_or_default();
    println!("    {said}");
    assert!(!said.contains("sesame") && !said.contains("wrong!"), "{said}");
    link.close().await;
}

async fn refusals_are_told(broker: &Rabbitmq) {
    let right = || settings(broker.port());
    told(
        LinkSettings { password: PasswordSource::Given("wrong!".into()), ..right() },
        "refuses user \"hie\": the user or the password is wrong",
    )
    .await;
    told(LinkSettings { user: "nobody".into(), ..right() }, "refuses user \"nobody\"").await;
    told(LinkSettings { vhost: "nowhere".into(), ..right() }, "has no virtual host \"nowhere\"; correct transport.vhost").await;
    broker.eval("rabbit_vhost:add(<<\"other\">>, <<\"test\">>), rabbit_auth_backend_internal:clear_permissions(<<\"hie\">>, <<\"other\">>, <<\"test\">>).");
    told(LinkSettings { vhost: "other".into(), ..right() }, "does not let user \"hie\" use the virtual host \"other\"").await;
    let limit = |limit| {
        format!(
            "rabbit_auth_backend_internal:set_permissions(<<\"hie\">>, <<\"other\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>), \
        rabbit_vhost_limit:set(<<\"other\">>, [{{<<\"max-connections\">>, {limit}}}], <<\"test\">>)."
        )
    };
    broker.eval(&limit(0));
    told(LinkSettings { vhost: "other".into(), ..right() }, "allows no more connections").await;
    broker.eval(&limit(-1));
    broker.eval("rabbit_auth_backend_internal:set_permissions(<<\"hie\">>, <<\"other\">>, <<\"hie.*\">>, <<\"hie.*\">>, <<\"hie.*\">>, <<\"test\">>).");
    told(LinkSettings { vhost: "other".into(), ..right() }, "does not let user \"hie\" publish").await;
    broker.eval("rabbit_auth_backend_internal:set_permissions(<<\"hie\">>, <<\"other\">>, <<\"none\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>).");
    let may_not = Link::start(LinkSettings { vhost: "other".into(), ..right() }, &Handle::current());
    let session = within(10, "a session", may_not.session()).await;
    let error = topology::declare(&session, &[quorum("hie.forbidden")]).await.remove(0).expect_err("refused");
    assert!(matches!(error, TopologyError::Forbidden { .. }) && error.to_string().contains("set_permissions"), "{error}");
    may_not.close().await;
    let missing = PasswordSource::File("/nowhere/password".into());
    told(LinkSettings { password: missing, ..right() }, "transport.password_file: /nowhere/password cannot be read").await;

    let at = |port| LinkSettings {
        brokers: vec![BrokerUrl { host: "127.0.0.1".into(), port, tls: false }],
        connect_timeout: SECOND,
        ..right()
    };
    told(at(harness::node::free_port().port()), "nothing listens there: start the broker").await;
    let unknown = vec![BrokerUrl { host: "broker.invalid".into(), port: 5672, tls: false }];
    told(LinkSettings { brokers: unknown, connect_timeout: 5 * SECOND, ..right() }, "correct transport.urls").await;
    // Takes connections and says nothing, hangs up, or speaks something else.
    for (answer, says) in [
        (None, "does not answer in time (greeting)"),
        (Some(""), "ended the connection while greeting"),
        (Some("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "AMQP"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                match answer {
                    None => kept.push(stream),
                    Some(text) => {
                        let _ = std::io::Read::read(&mut stream, &mut [0; 8]);
                        let _ = stream.write_all(text.as_bytes());
                    }
                }
            }
        });
        told(at(port), says).await;
    }
}

async fn an_alarm_of_the_broker_is_told(broker: &Rabbitmq, link: &Link, session: &Session) {
    let queue = declared(session, &quorum("alarm")).await;
    let publisher = Publisher::start(link, "test", limits(), &Handle::current());
    assert!(publish(&publisher, &queue, [0]).await[0].is_ok());
    broker.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).");
    // The first one may pass; it is what makes the broker say so.
    drop(publisher.publish(&queue, number(1), false));
    let mut states = link.watch();
    let blocked =
        within(10, "blocked", states.wait_for(|s| matches!(s, LinkState::Blocked { .. }))).await.expect("a state").clone();
    let said = blocked.error().expect("an error").to_string();
    assert!(said.contains("takes no messages") && said.contains("memory"), "{said}");
    let waiting = publisher.publish(&queue, number(2), false);
    tokio::pin!(waiting);
    // Longer than the confirm timeout: it is no reason to leave the channel.
    assert!(timeout(4 * SECOND, &mut waiting).await.is_err(), "it takes nothing");
    broker.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}).");
    let confirmed = within(10, "a confirm", waiting).await.expect("confirmed");
    assert!(!confirmed.repeated, "{confirmed:?}");
    within(5, "up", states.wait_for(LinkState::up)).await.expect("a state");

    // One that connects while it takes nothing is told so before it publishes anything; what is given up then was never sent.
    broker.eval("rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []}).");
    let late = Link::start(settings(broker.port()), &Handle::current());
    let mut states = late.watch();
    within(10, "blocked", states.wait_for(|s| matches!(s, LinkState::Blocked { .. }))).await.expect("a state");
    within(10, "a session", late.session()).await;
    let hasty = PublisherLimits { give_up: Some(SECOND), ..limits() };
    let hasty = Publisher::start(&late, "test", hasty, &Handle::current());
    for answer in publish(&hasty, &queue, [10, 11]).await {
        let Err(PublishError::Away { maybe_stored: false, error }) = answer else { panic!("{answer:?}") };
        assert!(error.text().contains("disk"), "{error}");
    }
    let waiting = hasty.publish(&queue, number(12), false);
    broker.eval("rabbit_alarm:clear_alarm({resource_limit, disk, node()}).");
    let _ = waiting.await;
    assert!(publish(&hasty, &queue, [13]).await[0].is_ok());
    assert_eq!(late.session().await.number(), 1);
    late.close().await;
    let (found, _) = first_deliveries(session, &queue).await;
    assert!(found.ends_with(&[13]) && !found.contains(&10) && !found.contains(&11), "{found:?}");
}

/// First deliveries of a queue: in order, repeats (which are marked) dropped. Gives the numbers and how many were repeats.
async fn first_deliveries(session: &Session, queue: &Arc<str>) -> (Vec<u64>, usize) {
    let mut consumer = Consumer::open(session, queue, 1000).await.expect("a consumer");
    let (mut seen, mut order, mut repeats) = (HashSet::new(), Vec::new(), 0);
    while let Ok(delivery) = timeout(2 * SECOND, consumer.next()).await {
        let delivery = delivery.expect("a delivery");
        let n = read(&delivery.payload);
        if seen.insert(n) {
            order.push(n);
        } else {
            assert!(delivery.again, "a repeat without its mark: {n}");
            repeats += 1;
        }
        consumer.acks().ack(delivery.tag, true).await.expect("acknowledged");
    }
    consumer.close().await;
    (order, repeats)
}

/// Published all the time to two queues, while the broker is killed and comes back.
async fn killed(part: &str) {
    let root = parts::fetch(part);
    let mut broker = Rabbitmq::start(&root, CONF);
    let link = link(&broker);
    let session = within(10, "a session", link.session()).await;
    let queues = [declared(&session, &quorum("killed.a")).await, declared(&session, &quorum("killed.b")).await];
    let patient = Publisher::start(&link, "patient", limits(), &Handle::current());
    // Another publisher on the same connection gives up before the broker is back.
    let brief = declared(&session, &quorum("killed.brief")).await;
    let hasty = PublisherLimits { give_up: Some(Duration::from_millis(1500)), ..limits() };
    let hasty = Publisher::start(&link, "hasty", hasty, &Handle::current());

    let (mut answers, mut brief_answers) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    let mut n = 0;
    let mut phase = 0;
    while begun.elapsed() < Duration::from_secs(40) {
        for _ in 0..4 {
            answers.push((n, patient.publish(&queues[(n % 2) as usize], number(n), false)));
            brief_answers.push((n, hasty.publish(&brief, number(n), false)));
            n += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        match phase {
            0 if begun.elapsed() > SECOND => {
                broker.kill();
                phase = 1;
            }
            1 if begun.elapsed() > 4 * SECOND => {
                broker = tokio::task::spawn_blocking(move || {
                    broker.restart();
                    broker
                })
                .await
                .expect("restarted");
                phase = 2;
            }
            2 if link.try_session().is_some_and(|s| s.number() > session.number()) => break,
            _ => {}
        }
    }
    let mut confirmed: HashMap<Arc<str>, Vec<u64>> = HashMap::new();
    let mut repeated = 0;
    for (n, answer) in answers {
        let answer = within(60, "a confirm", answer).await.expect("confirmed at last");
        repeated += usize::from(answer.repeated);
        confirmed.entry(queues[(n % 2) as usize].clone()).or_default().push(n);
    }
    let (mut stored, mut maybe, mut never) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (n, answer) in brief_answers {
        match within(10, "an answer", answer).await {
            Ok(_) => stored.insert(n),
            Err(PublishError::Away { maybe_stored: true, error }) => {
                assert!(!error.text().is_empty());
                maybe.insert(n)
            }
            Err(PublishError::Away { maybe_stored: false, .. }) => never.insert(n),
            Err(other) => panic!("{other:?}"),
        };
    }
    let session = within(30, "a session", link.session()).await;
    assert!(session.number() > 1);
    let mut repeats = 0;
    for queue in &queues {
        let (order, more) = first_deliveries(&session, queue).await;
        repeats += more;
        assert_eq!(order, confirmed[queue], "all that was confirmed is there, in the order of the calls");
    }
    let (order, _) = first_deliveries(&session, &brief).await;
    assert!(order.is_sorted(), "{order:?}");
    let found: HashSet<u64> = order.into_iter().collect();
    assert!(stored.is_subset(&found), "confirmed and lost");
    assert!(found.is_disjoint(&never), "published after it was reported as taken back");
    let taken_back = found.intersection(&maybe).count();
    println!(
        "{part}: {n} published, {repeated} confirmed repeats, {repeats} repeats in the queues; given up: {} certainly not stored, {} perhaps, of them {taken_back} were",
        never.len(),
        maybe.len()
    );
    assert!(repeated > 0 && !never.is_empty(), "the kill hit nothing");
    link.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_costs_nothing_that_was_confirmed_on_3_10() {
    killed("rabbitmq-3.10").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_costs_nothing_that_was_confirmed_on_4() {
    killed("rabbitmq-4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_given_up_and_all_is_published_again() {
    let root = parts::fetch("rabbitmq-4");
    let broker = Rabbitmq::start(&root, CONF);
    let (bad, good) = (Proxy::start(broker.port()).await, Proxy::start(broker.port()).await);
    let address = |proxy: &Proxy| BrokerUrl { host: "127.0.0.1".into(), port: proxy.port, tls: false };
    let both = LinkSettings {
        brokers: vec![address(&bad), address(&good)],
        connect_timeout: SECOND,
        heartbeat: 60 * SECOND,
        ..settings(0)
    };
    let link = Link::start(both, &Handle::current());
    let session = within(10, "a session", link.session()).await;
    let queue = declared(&session, &quorum("silent")).await;
    let (at, other) = if session.broker().ends_with(&bad.port.to_string()) { (&bad, &good) } else { (&good, &bad) };
    let publisher =
        Publisher::start(&link, "test", PublisherLimits { confirm_timeout: 2 * SECOND, ..limits() }, &Handle::current());
    assert!(publish(&publisher, &queue, 0..100).await.iter().all(Result::is_ok));
    at.hold(true);
    // The heartbeat is far off: the missing confirms alone make it leave, to the other address.
    let answers = within(30, "confirms", publish(&publisher, &queue, 100..200)).await;
    assert!(answers.iter().all(|a| a.as_ref().is_ok_and(|c| c.repeated && c.session == 2)), "{answers:?}");
    let session = within(10, "a session", link.session()).await;
    assert!(session.broker().ends_with(&other.port.to_string()));
    at.hold(false);
    assert_eq!(first_deliveries(&session, &queue).await.0, (0..200).collect::<Vec<_>>());
    link.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn amqps_with_certificates_of_both_sides() {
    let root = parts::fetch("rabbitmq-4");
    let files = tempfile::tempdir().expect("a folder");
    let key = || rcgen::KeyPair::generate().expect("a key");
    let (ca_key, server_key, client_key, other_key) = (key(), key(), key(), key());
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    };
    let ca = authority("test authority").self_signed(&ca_key).expect("a certificate").pem();
    let other = authority("another authority").self_signed(&other_key).expect("a certificate").pem();
    let issuer = rcgen::Issuer::new(authority("test authority"), ca_key);
    let signed = |key: &rcgen::KeyPair, name: &str| {
        rcgen::CertificateParams::new(vec![name.into()])
            .expect("parameters")
            .signed_by(key, &issuer)
            .expect("a certificate")
            .pem()
    };
    let (server, client) = (signed(&server_key, "localhost"), signed(&client_key, "node"));
    for (name, content) in [
        ("ca.pem", &ca),
        ("other.pem", &other),
        ("client.pem", &client),
        ("client.key", &client_key.serialize_pem()),
        ("password", &"sesame\n".to_owned()),
    ] {
        std::fs::write(files.path().join(name), content).expect("written");
    }
    let port = harness::node::free_port().port();
    let conf = format!(
        "{CONF}listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = /node/ca.pem\nssl_options.certfile = /node/server.pem\n\
        ssl_options.keyfile = /node/server.key\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    );
    let given =
        [("ca.pem", ca.as_bytes()), ("server.pem", server.as_bytes()), ("server.key", server_key.serialize_pem().as_bytes())]
            .map(|(n, c)| (n, c.to_vec()));
    let given: Vec<(&str, &[u8])> = given.iter().map(|(n, c)| (*n, c.as_slice())).collect();
    let broker = Rabbitmq::start_with(&root, &conf, &given);

    let file = |name: &str| Some(files.path().join(name));
    let right = Transport {
        kind: TransportKind::Rabbitmq,
        urls: vec![format!("amqps://localhost:{port}")],
        password_file: file("password"),
        ca: file("ca.pem"),
        cert: file("client.pem"),
        key: file("client.key"),
        ..Transport::default()
    };
    let link = Link::start(LinkSettings::new(&right, "node-7").expect("settings"), &Handle::current());
    let session = within(15, "a session", link.session()).await;
    let queue = declared(&session, &quorum("tls")).await;
    let publisher = Publisher::start(&link, "test", limits(), &Handle::current());
    assert!(publish(&publisher, &queue, 0..1000).await.iter().all(Result::is_ok));
    let large = publisher.publish(&queue, vec![7; 3 << 20].into(), false).await;
    assert!(large.is_ok());
    let mut consumer = Consumer::open(&session, &queue, 2000).await.expect("a consumer");
    assert_eq!(numbers(&take(&mut consumer, 1000).await), (0..1000).collect::<Vec<_>>());
    assert_eq!(take(&mut consumer, 1).await[0].payload, vec![7; 3 << 20]);
    link.close().await;

    let wrong = |change: &dyn Fn(&mut Transport)| {
        let mut transport = right.clone();
        change(&mut transport);
        LinkSettings::new(&transport, "node-7").expect("settings")
    };
    told(wrong(&|t| t.ca = file("other.pem")), "name the authority's file as transport.ca").await;
    told(wrong(&|t| t.server_name = Some("elsewhere".into())), "write the name as transport.server_name").await;
    told(wrong(&|t| (t.cert, t.key) = (None, None)), "transport.cert and transport.key").await;
    told(wrong(&|t| t.urls = vec![format!("amqps://localhost:{}", broker.port())]), "use amqp://, or the port for TLS").await;
    told(wrong(&|t| t.urls = vec![format!("amqp://localhost:{port}")]), "wants TLS (amqps://").await;
}
