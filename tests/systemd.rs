//! What systemd is told, by a socket that stands in for it: ready, reloading, stopping, and the watchdog at its rate, also
//! while an upgrade is checked and while the node drains. What a second TERM or INT does. Where the log goes under
//! systemd: to the journal's own socket, and to standard error where that is not to be had.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::http::Client;
use harness::journal::{Inbox, under_systemd};
use harness::{Behaviour, Builder, Node, Peer, Receiver, Rng, wait_until};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// `WATCHDOG_USEC`: fed twice in that time, missed when not fed for all of it.
const WATCHDOG: Duration = Duration::from_millis(1500);

fn told(systemd: &Inbox) -> Builder {
    Builder::new()
        .env("NOTIFY_SOCKET", systemd.socket().to_str().expect("UTF-8"))
        .env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())
}

/// A node whose drain lasts until `drain_timeout`: a request in proxy mode waits for a receiver that never answers.
struct Busy {
    node: Node,
    _upstream: Receiver,
    _client: Client,
}

fn busy(builder: Builder, drain_timeout: &str) -> Busy {
    let upstream = Receiver::http(Behaviour { silent: 1.0, ..Behaviour::default() }, Rng::new(1));
    let channel = queue("t.proxy", "protocol == \"http\"").replace("\"queue\"", "\"proxy\"");
    let route = route("up", &upstream.target(), "").replace("timeout = \"2s\"", "timeout = \"60s\"");
    let builder = builder.node(&format!("drain_timeout = \"{drain_timeout}\""));
    let node = builder.channel(channel + &route).channel(all_to(&Receiver::willing())).start();
    let mut client = Client::connect(node.http, PATIENCE).expect("a connection");
    client.raw(b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{}").expect("sent");
    assert!(wait_until(PATIENCE, || upstream.connections() == 1), "the request waits for its answer");
    Busy { node, _upstream: upstream, _client: client }
}

/// The watchdog was fed from `from` to `to` without a gap as long as it allows, and not in a tight loop.
fn fed(systemd: &Inbox, from: Instant, to: Instant) {
    let mut last = from;
    let times: Vec<Instant> = systemd.times("WATCHDOG=1").into_iter().filter(|at| (from..=to).contains(at)).collect();
    for at in times.iter().copied().chain([to]) {
        assert!(at - last < WATCHDOG, "not fed for {:?}", at - last);
        last = at;
    }
    let expected = (to - from).as_secs_f64() / WATCHDOG.as_secs_f64() * 2.0;
    assert!(times.len() as f64 <= expected + 3.0, "fed {} times instead of {expected}", times.len());
}

#[test]
fn start_reload_and_stop_are_told_and_the_watchdog_is_fed_all_the_while() {
    let systemd = Inbox::new();
    let mut busy = busy(told(&systemd), "4s");
    let ready = systemd.wait_for("READY=1", PATIENCE);
    assert!(systemd.text().contains("STATUS=accepting"));
    std::thread::sleep(Duration::from_secs(3));
    fed(&systemd, ready, Instant::now());

    let seen = systemd.all().len();
    busy.node.signal(Signal::SIGHUP);
    systemd.wait_for("RELOADING=1", PATIENCE);
    let ready_again = || systemd.times("READY=1").len() == 2;
    assert!(wait_until(PATIENCE, ready_again), "{}", systemd.text());
    let later: Vec<String> = systemd.all().split_off(seen).into_iter().map(|(_, text)| text).collect();
    let reloading = later.iter().find(|text| text.contains("RELOADING=1")).expect("told above");
    // systemd.service(5), Type=notify-reload: both in one message.
    assert!(
        reloading.lines().any(|l| l.strip_prefix("MONOTONIC_USEC=").is_some_and(|n| n.parse::<u64>().is_ok())),
        "{reloading}"
    );

    busy.node.signal(Signal::SIGTERM);
    let stopping = systemd.wait_for("STOPPING=1", PATIENCE);
    let extend = systemd.all().iter().find_map(|(_, text)| {
        let line = text.lines().find_map(|l| l.strip_prefix("EXTEND_TIMEOUT_USEC="))?;
        line.parse::<u64>().ok()
    });
    assert!(extend.is_some_and(|usec| (13_500_000..=14_000_000).contains(&usec)), "drain_timeout and 10 s: {extend:?}");
    let status = busy.node.wait_end(PATIENCE);
    let ended = Instant::now();
    assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", busy.node.log_tail(20));
    assert!(ended - stopping > Duration::from_secs(3), "it drained for drain_timeout: {:?}", ended - stopping);
    fed(&systemd, ready, ended);
}

#[test]
fn the_watchdog_is_fed_and_messages_are_taken_while_an_upgrade_is_checked() {
    let systemd = Inbox::new();
    let receiver = Receiver::willing();
    let mut node = told(&systemd).channel(all_to(&receiver)).lay_out();
    let (real, link) = (node.setup.binary.clone(), node.dir().join("hie"));
    std::os::unix::fs::symlink(&real, &link).expect("a link");
    node.setup.binary = link.clone();
    node.start();
    let ready = systemd.wait_for("READY=1", PATIENCE);
    // The next one takes its time to say whether it would take the configuration.
    let slow = format!("#!/bin/sh\n[ \"$1\" = check ] && sleep 4\nexec '{}' \"$@\"\n", real.display());
    let script = node.dir().join("slow");
    std::fs::write(&script, slow).expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
    std::fs::rename(&script, &link).expect("in its place");
    node.signal(Signal::SIGUSR2);
    let asked = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let answer = Peer::connect(node.mllp).exchange(b"MSH|^~\\&|A|B|C|D|20260101||ADT^A08|U1|P|2.5\rPID|1||1\r");
    assert_eq!(harness::wire::text(&answer, "MSA", 1), "AA");
    assert!(asked.elapsed() < Duration::from_secs(3), "it did not wait for the check");
    let upgrading = systemd.wait_for("RELOADING=1", PATIENCE);
    assert!(upgrading - asked > Duration::from_millis(3500), "the check comes first");
    fed(&systemd, ready, upgrading);
    assert!(wait_until(PATIENCE, || systemd.times("READY=1").len() == 2), "{}\n{}", systemd.text(), node.log_tail(20));
    let again = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    fed(&systemd, again, Instant::now());
    let status = node.stop(PATIENCE);
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    for (first, second) in
        [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM), (Signal::SIGTERM, Signal::SIGINT)]
    {
        let mut busy = busy(Builder::new(), "60s");
        busy.node.signal(first);
        assert!(wait_until(PATIENCE, || busy.node.log().contains("draining")));
        std::thread::sleep(Duration::from_millis(500));
        assert!(busy.node.alive(), "it drains");
        let asked = Instant::now();
        busy.node.signal(second);
        let status = busy.node.wait_end(PATIENCE);
        assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", busy.node.log_tail(20));
        assert!(asked.elapsed() < Duration::from_secs(3), "{second}: after {:?}", asked.elapsed());
        let log = busy.node.log();
        let line = log.lines().find(|l| l.contains("told to stop again")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("connections=1") && line.contains("pending="), "says what was left: {line}");
    }
}

/// Asked to stop while it drains for an upgrade, the node stops instead of becoming another.
#[test]
fn a_signal_during_an_upgrade_s_drain_makes_it_a_stop() {
    let systemd = Inbox::new();
    let mut busy = busy(told(&systemd), "3s");
    busy.node.signal(Signal::SIGUSR2);
    systemd.wait_for("RELOADING=1", PATIENCE);
    busy.node.signal(Signal::SIGTERM);
    systemd.wait_for("STOPPING=1", PATIENCE);
    let status = busy.node.wait_end(PATIENCE);
    assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", busy.node.log_tail(20));
    assert_eq!(systemd.times("READY=1").len(), 1, "no successor was started");
    assert!(!busy.node.log().contains("told to stop again"), "the drain was not cut short");
}

#[test]
fn under_systemd_the_log_goes_to_the_journal() {
    let journal = Inbox::new();
    let mut builder = Builder::new();
    builder.wrapper = under_systemd(Some(&journal));
    let mut node = builder.channel(all_to(&Receiver::willing())).start();
    journal.wait_for("MESSAGE=ready", PATIENCE);
    let entry = journal.all().into_iter().map(|(_, text)| text).find(|t| t.contains("MESSAGE=ready")).expect("told above");
    for field in ["SYSLOG_IDENTIFIER=hie", "PRIORITY=5", "HIE_CHANNELS=1"] {
        assert!(entry.lines().any(|line| line == field), "{field} in {entry}");
    }
    assert!(node.stop(PATIENCE).is_some_and(|s| s.success()));
    assert_eq!(node.log(), "", "nothing on standard error");
}

#[test]
fn without_the_journal_s_socket_the_log_is_text_on_standard_error() {
    let mut builder = Builder::new();
    builder.wrapper = under_systemd(None);
    let node = builder.channel(all_to(&Receiver::willing())).start();
    assert!(wait_until(PATIENCE, || node.log().contains("ready")), "{}", node.log());
    // Asked for by name it must be there.
    let mut builder = Builder::new().arg("--log").arg("journald");
    builder.wrapper = under_systemd(None);
    let mut node = builder.channel(all_to(&Receiver::willing())).lay_out();
    node.spawn();
    assert_eq!(node.wait_end(PATIENCE).and_then(|s| s.code()), Some(64), "{}", node.log());
    assert!(node.log().contains("use --log text or --log json"), "{}", node.log());
}

/// Another program's standard error: `JOURNAL_STREAM` is inherited, the descriptor is not the one that it names.
#[test]
fn a_redirected_standard_error_gets_the_log_itself() {
    let journal = Inbox::new();
    let mut builder = Builder::new().env("JOURNAL_STREAM", "1:1");
    builder.wrapper = under_systemd(Some(&journal));
    let last = builder.wrapper.len() - 2;
    builder.wrapper[last] = builder.wrapper[last].replace("export JOURNAL_STREAM=", "OTHER=");
    let node = builder.channel(all_to(&Receiver::willing())).start();
    assert!(wait_until(PATIENCE, || node.log().contains("ready")), "{}", node.log());
    assert_eq!(journal.text(), "");
}
