//! Tries to break: **graceful restart and upgrade in place: 0 refused connections, 0 failed requests**, over 20 restarts
//! under load, HTTP (kept and fresh connections) and MLLP.
//!
//! Two ways: a restart as systemd does it with socket activation (the parent holds the listening sockets; SIGTERM, wait
//! for the end, start again), and an upgrade in place (SIGUSR2).
//!
//! A request on a kept connection that the node closed before a byte of the answer is sent once more on a fresh one, as
//! every HTTP client does (RFC 9110, section 9.2.2; the Idempotency-Key makes it safe) and as MLLP senders do; these are
//! counted apart. A refused connection, an error answer, or a failure on a fresh connection fails the test.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::http::Client;
use harness::wire::{Tag, adt};
use harness::{Builder, Doubles, Load, Node, Receiver, Sent, Via, check, env_number, wait_until};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the HTTP senders saw.
#[derive(Debug, Default)]
struct Seen {
    /// Messages, and those answered below 300.
    attempted: Vec<Tag>,
    answered: Vec<Tag>,
    /// Sent once more because a kept connection was closed.
    again: u64,
    failed: Vec<String>,
}

fn http_sender(to: SocketAddr, path: String, fresh: bool, name: String, stop: Arc<AtomicBool>) -> JoinHandle<Seen> {
    std::thread::spawn(move || {
        let mut seen = Seen::default();
        let mut kept: Option<Client> = None;
        let mut number = 0;
        while !stop.load(Ordering::SeqCst) {
            number += 1;
            let key = format!("{name}-{number}");
            let tag = Tag { key: name.clone(), seq: number, id: key.clone() };
            let message = adt(&tag, 500, "");
            seen.attempted.push(tag.clone());
            loop {
                let reused = kept.is_some();
                let told = kept.take().map_or_else(|| Client::connect(to, Duration::from_secs(15)), Ok).and_then(|mut c| {
                    let answer = c.request("POST", &path, &[("Idempotency-Key", &key)], &message)?;
                    Ok((answer, c))
                });
                match told {
                    Ok((answer, client)) => {
                        if answer.status < 300 {
                            seen.answered.push(tag.clone());
                        } else {
                            seen.failed.push(format!("{key}: {} {}", answer.status, answer.text()));
                        }
                        if !client.closing && !fresh {
                            kept = Some(client);
                        }
                        break;
                    }
                    Err(_) if reused => seen.again += 1,
                    Err(e) => {
                        seen.failed.push(format!("{key}: {e}"));
                        std::thread::sleep(Duration::from_millis(20));
                        break;
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        seen
    })
}

struct Traffic {
    mllp: harness::sender::Fleet,
    http: Vec<JoinHandle<Seen>>,
    stop: Arc<AtomicBool>,
}

fn traffic(node: &Node) -> Traffic {
    let stop = Arc::new(AtomicBool::new(false));
    let http = (0..6)
        .map(|n| {
            let path = if n % 3 == 0 { "/proxy" } else { "/queue" };
            http_sender(node.http, path.into(), n >= 4, format!("R{n}"), stop.clone())
        })
        .collect();
    let mllp = Load { connections: 4, rate: Some(400.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    Traffic { mllp, http, stop }
}

impl Traffic {
    /// Ends it; fails on any refused connection or failed request. `rounds`: how often the node was replaced.
    ///
    /// Sent again may be one request for each kept connection (four over HTTP, four over MLLP) and round: the node closes each
    /// once, and a sender that does not look finds out with its next request. More would mean that connections are closed
    /// with requests in them, or more than once.
    fn judge(self, receiver: &Receiver, web: &Receiver, rounds: u64) {
        self.stop.store(true, Ordering::SeqCst);
        let sent: Sent = self.mllp.stop(Duration::from_secs(20));
        let mut all = Seen::default();
        for thread in self.http {
            let seen = thread.join().expect("a sender");
            all.attempted.extend(seen.attempted);
            all.answered.extend(seen.answered);
            all.again += seen.again;
            all.failed.extend(seen.failed);
        }
        println!(
            "HTTP: {} answered, {} sent again after a kept connection closed, {} failed · MLLP: {} acknowledged, {} sent \
             again, {} connections refused, refusals {:?}",
            all.answered.len(),
            all.again,
            all.failed.len(),
            sent.acknowledged.len(),
            sent.sent_again,
            sent.connect_failures,
            sent.refused
        );
        assert!(all.answered.len() > 500 && sent.acknowledged.len() > 500, "the load did not run");
        assert!(all.failed.is_empty(), "{} failed requests, first: {}", all.failed.len(), all.failed[0]);
        assert!(all.again <= 4 * rounds, "{} requests sent again in {rounds} rounds", all.again);
        assert!(sent.sent_again <= 4 * rounds, "{} messages sent again in {rounds} rounds", sent.sent_again);
        assert_eq!(sent.connect_failures, 0, "refused MLLP connections");
        assert!(sent.refused.is_empty(), "refused messages: {:?}", sent.refused);
        assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "all acknowledged delivered");
        check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
        // HTTP, queued and proxied.
        let sent = Sent { attempted: all.attempted, acknowledged: all.answered, sent_again: all.again, ..Sent::default() };
        assert!(web.wait_for(&sent, Duration::from_secs(30)), "all acknowledged over HTTP delivered");
        check(&sent, &web.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

fn channels(builder: Builder, lis: &Receiver, web: &Receiver) -> Builder {
    let proxy = queue("test.proxy", "protocol == \"http\" && path == \"/proxy\"").replace("queue", "proxy");
    builder
        .channel(proxy + "priority = 1\n" + &route("upstream", &web.target(), ""))
        .channel(queue("test.http", "protocol == \"http\"") + "priority = 2\n" + &route("web", &web.target(), ""))
        .channel(all_to(lis))
}

#[test]
fn restarts_under_socket_activation_fail_no_request() {
    let (lis, web) = (Receiver::willing(), Receiver::http(Default::default(), harness::Rng::new(2)));
    let mut node = channels(Builder::new(), &lis, &web).lay_out();
    // The parent's sockets, inherited through the shell, which puts them where LISTEN_FDS says they are.
    // Inheritable, and not 3 or 4 themselves (another test may just have freed those): the shell would close what it has put there.
    let [http, mllp] = [node.http, node.mllp].map(|at| {
        let socket = TcpListener::bind(at).expect("a port");
        fcntl(&socket, FcntlArg::F_DUPFD(64)).expect("a descriptor")
    });
    let script = format!(
        "exec {{h}}<&{http} {{m}}<&{mllp} {http}<&- {mllp}<&-; exec 3<&$h 4<&$m; \
         export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=http:mllp.lis; exec \"$@\""
    );
    node.setup.wrapper = ["bash", "-c", &script, "bash"].iter().map(|s| (*s).to_owned()).collect();
    node.start();
    let traffic = traffic(&node);
    let rounds = env_number("HIE_RESTARTS", 20);
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(400));
        let status = node.stop(Duration::from_secs(30));
        assert!(status.is_some_and(|s| s.success()), "restart {round}: {status:?}\n{}", node.log_tail(20));
        node.start();
    }
    std::thread::sleep(Duration::from_millis(400));
    traffic.judge(&lis, &web, rounds);
}

#[test]
fn upgrades_in_place_fail_no_request() {
    let (lis, web) = (Receiver::willing(), Receiver::http(Default::default(), harness::Rng::new(2)));
    let mut node = channels(Builder::new(), &lis, &web).start();
    let traffic = traffic(&node);
    let rounds = env_number("HIE_RESTARTS", 20);
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(400));
        let before = image(node.pid());
        node.signal(Signal::SIGUSR2);
        let replaced = wait_until(Duration::from_secs(30), || {
            let now = image(node.pid());
            !now.is_empty() && now != before
        });
        assert!(replaced, "upgrade {round}: still the old program\n{}", node.log_tail(20));
        node.wait_ready(Duration::from_secs(20)).unwrap_or_else(|e| panic!("upgrade {round}: {e}\n{}", node.log_tail(20)));
    }
    std::thread::sleep(Duration::from_millis(400));
    traffic.judge(&lis, &web, rounds);
}

/// Tells one program in a process from the next: the auxiliary vector holds addresses that are chosen anew at each exec.
fn image(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default()
}

/// SIGTERM with work in hand: what was acknowledged is there after the next start, and the exit is clean.
#[test]
fn a_stop_with_pending_work_loses_nothing() {
    let mut receiver = Receiver::willing();
    receiver.down();
    let mut node = Builder::new().channel(all_to(&receiver)).start();
    let sent = Load { count: Some(50), ..Load::new(Via::Mllp(node.mllp)) }.run(Duration::from_secs(20));
    let status = node.stop(Duration::from_secs(40));
    assert!(status.is_some_and(|s| s.success()), "a clean end: {status:?}\n{}", node.log_tail(20));
    receiver.up();
    node.start();
    assert!(receiver.wait_for(&sent, Duration::from_secs(20)), "{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
}
