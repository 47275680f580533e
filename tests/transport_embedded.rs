//! The embedded transport by itself, over a log that lives in memory and receivers that do as they are told:
//! order per key, barriers, retries that hold their key, parking, pausing, and the way back after a restart.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hie::{
    channel::{AfterPark, Mode, Outage, Route, Storage},
    engine::{
        deliver::RouteWorker,
        fact::{Accepted, BodyRef, Fact, Keeper, RouteProgress, RouteState, Seq, What},
        gate::Gate,
        ports::{
            Append, BodyStream, ChannelWork, Clock, CommitSink, Committed, Connector, Delivery, Ended, Log, LogError,
            OperatorsWord, PausedBy, Pauses, Reply, ReplyKind, SendError, Transport, Unfinished,
        },
        resend::ResendWindow,
    },
    message::{Envelope, MessageId, Protocol},
    transport::embedded::{Embedded, Parts, Sink},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

#[derive(Default)]
struct MemoryLog {
    facts: Mutex<Vec<Fact>>,
    finished: Mutex<HashSet<Seq>>,
    accepted: Mutex<HashMap<Seq, Accepted>>,
}

impl Log for MemoryLog {
    fn append(&self, _: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
        unreachable!("the tests feed the commit sink themselves")
    }
    fn append_later(&self, record: Append) {
        self.facts.lock().unwrap().push(record.fact);
    }
    fn durable(&self) -> BoxFuture<'static, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }
    fn chunk(&self, _: Bytes, _: bool) -> BoxFuture<'static, Result<Seq, LogError>> {
        Box::pin(async { Ok(1) })
    }
    fn read(&self, _: Seq, _: &BodyRef) -> BodyStream {
        Box::pin(futures_util::stream::empty())
    }
    fn accepted(&self, seq: Seq) -> BoxFuture<'static, Result<Accepted, LogError>> {
        let found = self.accepted.lock().unwrap().get(&seq).cloned().ok_or(LogError::Failed("not there".into()));
        Box::pin(async move { found })
    }
    fn finished(&self, seq: Seq) {
        assert!(self.finished.lock().unwrap().insert(seq), "finished twice: {seq}");
    }
    fn ended(&self, _: Seq) -> BoxFuture<'_, Result<Ended, LogError>> {
        Box::pin(async { Ok(Ended::Not) })
    }
    fn unfinished_by_id(&self, _: MessageId) -> BoxFuture<'_, Result<Option<Unfinished>, LogError>> {
        Box::pin(async { Ok(None) })
    }
}

/// Keeps operators' words as a file would.
#[derive(Default)]
struct MemoryPauses(Mutex<Vec<OperatorsWord>>);
impl Pauses for MemoryPauses {
    fn load(&self) -> Vec<OperatorsWord> {
        self.0.lock().unwrap().clone()
    }
    fn keep(&self, words: &[OperatorsWord]) -> Result<(), String> {
        *self.0.lock().unwrap() = words.to_vec();
        Ok(())
    }
}

struct WallClock;
impl Clock for WallClock {
    fn now_ms(&self) -> i64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
    }
}

/// Answers by script: `answers[control id]` is used up from the front, then AA.
#[derive(Default)]
struct Receiver {
    seen: Mutex<Vec<String>>,
    answers: Mutex<HashMap<String, Vec<&'static str>>>,
    in_hand: Mutex<HashSet<String>>,
    delay: Duration,
}

impl Connector for Receiver {
    fn send(&self, delivery: Delivery) -> BoxFuture<'_, Result<Reply, SendError>> {
        let id = delivery.message.envelope().control_id.clone().unwrap();
        Box::pin(async move {
            for key in &delivery.message.envelope().keys {
                assert!(self.in_hand.lock().unwrap().insert(key.to_string()), "two of key {key} at the same time");
            }
            tokio::time::sleep(self.delay).await;
            for key in &delivery.message.envelope().keys {
                self.in_hand.lock().unwrap().remove(&key.to_string());
            }
            let next =
                self.answers.lock().unwrap().get_mut(&id).and_then(|a| if a.is_empty() { None } else { Some(a.remove(0)) });
            match next.unwrap_or("AA") {
                "down" => Err(SendError::NotSent { target: "t".into(), reason: "refused".into() }),
                "panic" => panic!("a bug in a connector"),
                code => {
                    if code == "AA" {
                        self.seen.lock().unwrap().push(id);
                    }
                    let kind = ReplyKind::Ack { code: code.into() };
                    Ok(Reply { target: "t".into(), kind, body: Box::pin(futures_util::stream::empty()), len: Some(0) })
                }
            }
        })
    }
}

/// The one channel, with these workers.
fn channel(workers: Vec<Arc<RouteWorker>>) -> Vec<ChannelWork> {
    vec![ChannelWork { name: "a.b".into(), outage: Outage::Spool, several_keys: true, workers }]
}

struct Bed {
    log: Arc<MemoryLog>,
    gate: Arc<Gate>,
    transport: Arc<Embedded>,
    sink: Sink,
    seq: Seq,
}

impl Bed {
    fn new(limit: u64, hot_bodies: u64) -> Self {
        Self::keeping(limit, hot_bodies, Arc::default())
    }

    fn keeping(limit: u64, hot_bodies: u64, pauses: Arc<MemoryPauses>) -> Self {
        let log = Arc::new(MemoryLog::default());
        let gate = Arc::new(Gate::new(limit));
        let transport = Embedded::new(Parts {
            log: log.clone(),
            clock: Arc::new(WallClock),
            gate: gate.clone(),
            pauses,
            resend: Arc::new(ResendWindow::new(1000, 1000)),
            runtime: tokio::runtime::Handle::current(),
            hot_bodies,
        });
        Self { log, gate, sink: Sink(transport.clone()), transport, seq: 0 }
    }

    fn worker(&self, name: &str, receiver: &Arc<Receiver>, after_park: AfterPark) -> Arc<RouteWorker> {
        let mut route: Route = toml::from_str(&format!("name = \"{name}\"\nmllp = [\"t:1\"]\n")).unwrap();
        route.in_flight = 16;
        route.retry.first = Duration::from_millis(20);
        route.retry.max = Duration::from_millis(40);
        Arc::new(RouteWorker {
            channel: "a.b".into(),
            route,
            after_park,
            connector: receiver.clone(),
            log: self.log.clone(),
            clock: Arc::new(WallClock),
            metrics: hie::telemetry::engine::ChannelMetrics::of("a.b").route(name),
        })
    }

    fn message(&mut self, control_id: &str, keys: &[u64], routes: &[&str]) -> (Seq, Accepted) {
        self.seq += 1;
        let accepted = Accepted {
            envelope: Envelope {
                version: 1,
                id: MessageId::now(),
                received_ms: WallClock.now_ms(),
                protocol: Protocol::Mllp,
                listener: "mllp".into(),
                client: "c".into(),
                remote: String::new(),
                kind: String::new(),
                control_id: Some(control_id.into()),
                patients: vec![],
                keys: keys.to_vec(),
                content_type: String::new(),
                http: None,
                body_len: 3,
                parent: None,
                control_id_reused: false,
            },
            channel: "a.b".into(),
            mode: Mode::Queue,
            storage: Storage::All,
            routes: routes.iter().map(|r| r.to_string()).collect(),
            idempotent: false,
            body: BodyRef::Own,
            body_hash: 0,
            resend_key: 0,
            keeper: Keeper::Log,
        };
        self.log.accepted.lock().unwrap().insert(self.seq, accepted.clone());
        (self.seq, accepted)
    }

    fn commit(&mut self, control_id: &str, keys: &[u64], routes: &[&str]) -> (Seq, Accepted) {
        let (seq, accepted) = self.message(control_id, keys, routes);
        self.sink.committed(vec![Committed { seq, accepted: accepted.clone(), body: Some(Bytes::from_static(b"abc")) }]);
        (seq, accepted)
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("did not come: {what}");
    }
}

fn of_key(seen: &[String], key: &str) -> Vec<String> {
    seen.iter().filter(|s| s.starts_with(key)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_per_key_is_kept_through_failures_and_without_memory_for_bodies() {
    for hot_bodies in [0, 1 << 20] {
        let mut bed = Bed::new(1_000_000, hot_bodies);
        let receiver = Arc::new(Receiver { delay: Duration::from_micros(200), ..Receiver::default() });
        for n in (0..600).step_by(7) {
            let script = if n % 2 == 0 { vec!["AR", "down"] } else { vec!["down", "down", "AR"] };
            receiver.answers.lock().unwrap().insert(format!("k{}-{n:04}", n % 6), script);
        }
        bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Continue)]));
        for n in 0..600u64 {
            bed.commit(&format!("k{}-{n:04}", n % 6), &[n % 6], &["r"]);
        }
        bed.until("all delivered", || bed.log.finished.lock().unwrap().len() == 600).await;
        let seen = receiver.seen.lock().unwrap().clone();
        for key in 0..6 {
            let of = of_key(&seen, &format!("k{key}-"));
            let mut sorted = of.clone();
            sorted.sort();
            assert_eq!(of, sorted);
            assert_eq!(of.len(), 100);
        }
        assert_eq!(bed.gate.pending(), 0);
        assert_eq!(bed.transport.routes()[0].pending, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_message_lets_its_successors_pass_or_holds_them() {
    for (after_park, passes) in [(AfterPark::Continue, true), (AfterPark::Hold, false)] {
        let mut bed = Bed::new(1000, 1 << 20);
        let receiver = Arc::new(Receiver::default());
        receiver.answers.lock().unwrap().insert("1".into(), vec!["AE"]);
        bed.transport.configure(channel(vec![bed.worker("r", &receiver, after_park)]));
        let (seq, accepted) = bed.commit("1", &[7], &["r"]);
        bed.commit("2", &[7], &["r"]);
        bed.commit("3", &[8], &["r"]);
        bed.until("the other key", || receiver.seen.lock().unwrap().contains(&"3".to_string())).await;
        bed.until("parked", || bed.transport.routes()[0].parked == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(receiver.seen.lock().unwrap().contains(&"2".to_string()), passes);
        let message = Unfinished {
            seq,
            accepted,
            routes: vec![RouteProgress { attempts: 1, state: RouteState::Parked, inside: 0, held: false }],
        };
        assert_eq!(bed.transport.requeue(&message, Some("other")).await, Ok(0));
        assert_eq!(bed.transport.requeue(&message, None).await, Ok(1));
        assert_eq!(bed.transport.requeue(&message, None).await, Ok(0), "only once");
        bed.until("all finished", || bed.log.finished.lock().unwrap().len() == 3).await;
        let seen = receiver.seen.lock().unwrap().clone();
        let position = |id: &str| seen.iter().position(|s| s == id).unwrap();
        assert_eq!(position("1") < position("2"), !passes, "held: the order is kept");
        assert_eq!((bed.gate.pending(), bed.transport.routes()[0].parked), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_message_is_finished_and_frees_its_key() {
    let mut bed = Bed::new(1000, 1 << 20);
    let receiver = Arc::new(Receiver::default());
    receiver.answers.lock().unwrap().insert("1".into(), vec!["AE"]);
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Hold)]));
    let (seq, accepted) = bed.commit("1", &[7], &["r"]);
    bed.commit("2", &[7], &["r"]);
    bed.until("parked", || bed.transport.routes()[0].parked == 1).await;
    let message = Unfinished { seq, accepted, routes: vec![] };
    assert_eq!(bed.transport.discard(&message, None).await, Ok(1));
    bed.until("both finished", || bed.log.finished.lock().unwrap().len() == 2).await;
    assert_eq!(*receiver.seen.lock().unwrap(), ["2"]);
    assert_eq!(bed.gate.pending(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_on_a_held_route_is_given_up_and_its_late_retry_wakes_nobody_else() {
    let mut bed = Bed::new(1000, 1 << 20);
    let receiver = Arc::new(Receiver { delay: Duration::from_millis(30), ..Receiver::default() });
    for id in ["1", "3"] {
        receiver.answers.lock().unwrap().insert(id.into(), vec!["AR"; 100]);
    }
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Continue)]));
    let (seq, accepted) = bed.commit("1", &[7], &["r"]);
    let first = Unfinished { seq, accepted, routes: vec![] };
    let (seq, accepted) = bed.commit("2", &[7], &["r"]);
    let second = Unfinished { seq, accepted, routes: vec![] };
    assert!(bed.transport.discard(&second, None).await.is_err(), "its route is at work");
    // Held between two attempts: its retry's timer still runs when it is given up, and its place is used again at once.
    bed.transport.pause("a.b", "r", true).unwrap();
    bed.until("not in hand", || bed.transport.routes()[0].in_flight == 0).await;
    assert_eq!(bed.transport.discard(&first, Some("other")).await, Ok(0));
    assert_eq!(bed.transport.discard(&first, None).await, Ok(1));
    assert_eq!(bed.transport.discard(&first, None).await, Ok(0), "only once");
    bed.commit("3", &[8], &["r"]);
    bed.transport.pause("a.b", "r", false).unwrap();
    bed.until("the second", || receiver.seen.lock().unwrap().contains(&"2".to_string())).await;
    // The receiver itself panics when two of one key are in its hands at the same time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!receiver.seen.lock().unwrap().contains(&"1".to_string()));
    assert_eq!(bed.gate.pending(), 1, "the third is still tried");
    let discarded = |f: &Fact| matches!(f.what, What::Discarded { .. });
    assert_eq!(bed.log.facts.lock().unwrap().iter().filter(|f| discarded(f)).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_secondary_route_does_not_hold_up_the_primary_and_is_probed_not_hammered() {
    let mut bed = Bed::new(100_000, 1 << 20);
    let (good, dead) = (Arc::new(Receiver::default()), Arc::new(Receiver::default()));
    for n in 0..200 {
        dead.answers.lock().unwrap().insert(n.to_string(), vec!["down"; 10_000]);
    }
    let workers = vec![bed.worker("good", &good, AfterPark::Continue), bed.worker("dead", &dead, AfterPark::Continue)];
    bed.transport.configure(channel(workers));
    for n in 0..200u64 {
        bed.commit(&n.to_string(), &[n], &["good", "dead"]);
    }
    bed.until("primary complete", || good.seen.lock().unwrap().len() == 200).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let attempts =
        bed.log.facts.lock().unwrap().iter().filter(|f| matches!(&f.what, What::Attempt(a) if a.route == "dead")).count();
    assert!((2..=60).contains(&attempts), "{attempts} attempts on a dead receiver: one probe at a time with backoff");
    assert_eq!(bed.gate.pending(), 200);
    assert!(bed.log.finished.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_connector_neither_loses_the_message_nor_stops_the_others() {
    let mut bed = Bed::new(1000, 1 << 20);
    let receiver = Arc::new(Receiver::default());
    receiver.answers.lock().unwrap().insert("1".into(), vec!["panic"]);
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Continue)]));
    bed.commit("1", &[1], &["r"]);
    bed.commit("2", &[2], &["r"]);
    bed.until("the other", || receiver.seen.lock().unwrap().contains(&"2".to_string())).await;
    assert_eq!(bed.transport.routes()[0].pending, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_routes_keep_what_comes_and_the_gate_shuts_at_the_limit() {
    let mut bed = Bed::new(5, 1 << 20);
    let receiver = Arc::new(Receiver::default());
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Continue)]));
    bed.transport.pause("a.b", "r", true).unwrap();
    assert!(bed.transport.pause("a.b", "x", true).is_err());
    for n in 0..5u64 {
        bed.commit(&n.to_string(), &[1], &["r"]);
    }
    assert!(!bed.gate.is_open());
    assert_eq!(bed.transport.routes()[0].pending, 5);
    bed.transport.pause("a.b", "r", false).unwrap();
    bed.gate.wait_open().await;
    bed.until("all", || receiver.seen.lock().unwrap().len() == 5).await;
    assert_eq!(*receiver.seen.lock().unwrap(), ["0", "1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_unfinished_comes_back_in_order_and_an_interrupted_request_is_never_sent_again() {
    let mut bed = Bed::new(1000, 1 << 20);
    let receiver = Arc::new(Receiver::default());
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Hold)]));
    let waiting = RouteProgress::default();
    let parked = RouteProgress { attempts: 3, state: RouteState::Parked, inside: 0, held: false };
    let mut proxied = bed.message("proxied", &[9], &["r"]);
    proxied.1.mode = Mode::Proxy;
    let mut idempotent = bed.message("idempotent", &[9], &["r"]);
    idempotent.1.mode = Mode::Proxy;
    idempotent.1.idempotent = true;
    let held = bed.message("held", &[5], &["r"]);
    let behind = bed.message("behind", &[5], &["r"]);
    let free = bed.message("free", &[6], &["r"]);
    for ((seq, accepted), state) in
        [(proxied, waiting), (idempotent, waiting), (held.clone(), parked), (behind, waiting), (free, waiting)]
    {
        bed.transport.restore(Unfinished { seq, accepted, routes: vec![state] });
    }
    assert!(receiver.seen.lock().unwrap().is_empty(), "nothing before launch");
    bed.transport.launch();
    bed.until("the free ones", || receiver.seen.lock().unwrap().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut seen = receiver.seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, ["free", "idempotent"]);
    assert!(bed.log.facts.lock().unwrap().iter().any(|f| matches!(f.what, What::Unknown)));
    let message = Unfinished { seq: held.0, accepted: held.1, routes: vec![parked] };
    assert_eq!(bed.transport.requeue(&message, Some("r")).await, Ok(1));
    bed.until("all", || receiver.seen.lock().unwrap().len() == 4).await;
    assert_eq!(receiver.seen.lock().unwrap()[2..], ["held", "behind"]);
    assert_eq!(bed.log.finished.lock().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_lets_what_is_in_hand_end_and_begins_nothing_new() {
    let mut bed = Bed::new(1000, 1 << 20);
    let receiver = Arc::new(Receiver { delay: Duration::from_millis(100), ..Receiver::default() });
    bed.transport.configure(channel(vec![bed.worker("r", &receiver, AfterPark::Continue)]));
    bed.commit("1", &[1], &["r"]);
    bed.commit("2", &[1], &["r"]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    bed.transport.drain().await;
    assert_eq!(*receiver.seen.lock().unwrap(), ["1"]);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(*receiver.seen.lock().unwrap(), ["1"]);
    assert_eq!(bed.gate.pending(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_word_outlives_a_restart_and_the_configuration_is_the_initial_one() {
    let pauses = Arc::new(MemoryPauses::default());
    let receiver = Arc::new(Receiver::default());
    let bed = || Bed::keeping(1000, 1 << 20, pauses.clone());
    let configured = |bed: &Bed, paused: bool| {
        let worker = bed.worker("r", &receiver, AfterPark::Continue);
        let mut worker = Arc::into_inner(worker).unwrap();
        worker.route.paused = paused;
        bed.transport.configure(channel(vec![Arc::new(worker)]));
    };
    let paused_by = |bed: &Bed| bed.transport.routes()[0].paused_by;

    let first = bed();
    configured(&first, false);
    first.transport.pause("a.b", "r", true).unwrap();
    let mut second = bed();
    configured(&second, false);
    assert_eq!(paused_by(&second), Some(PausedBy::Operator), "kept");
    second.commit("1", &[1], &["r"]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(receiver.seen.lock().unwrap().is_empty());
    second.transport.pause("a.b", "r", false).unwrap();
    second.until("delivered", || receiver.seen.lock().unwrap().len() == 1).await;
    assert!(pauses.0.lock().unwrap().is_empty(), "as configured: nothing to keep");

    let third = bed();
    configured(&third, true);
    assert_eq!(paused_by(&third), Some(PausedBy::Configuration));
    third.transport.pause("a.b", "r", false).unwrap();
    let fourth = bed();
    configured(&fourth, true);
    assert_eq!(paused_by(&fourth), None, "resumed by an operator, against its file");
    configured(&fourth, false);
    configured(&fourth, true);
    assert_eq!(paused_by(&fourth), Some(PausedBy::Configuration), "a change of the file counts again");
    let fifth = bed();
    configured(&fifth, true);
    assert_eq!(paused_by(&fifth), Some(PausedBy::Configuration), "also after a restart");
}
