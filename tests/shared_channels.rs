//! Channels that a domain's nodes share in the KV of a real Consul: followed, refused as a whole when one is wrong, kept over restarts and
//! when Consul is away or has lost them.

mod consul_support;
mod harness;

use consul_support::{Agent, SOON, cluster, lines, mllp_serves, node_at, time_until, wait_log};
use harness::channels::{queue, route};
use harness::{Builder, Node, Receiver, wait_until};
use nix::sys::signal::Signal;
use std::{fs, time::Duration};

/// A channel of this name for everything, to one receiver.
fn shared(name: &str, receiver: &Receiver, more: &str) -> String {
    queue(name, "true") + more + &route("r", &receiver.target(), "")
}

fn has_channel(node: &Node, name: &str) -> bool {
    node.get(&format!("/channels/{name}")).status == 200
}

/// What is wrong with the KV's channels is told with these words everywhere, and the last good ones are in force.
fn refused(node: &Node, words: &[&str]) {
    let said = || cluster(node)["channels"]["refused"].as_str().unwrap_or("").to_owned();
    assert!(wait_until(SOON, || words.iter().all(|w| said().contains(w))), "{words:?} in {:?}\n{}", said(), node.log_tail(10));
    let line = |l: &str| l.contains("channels in Consul refused") && words.iter().all(|w| l.replace('\\', "").contains(w));
    assert!(node.log().lines().any(line), "{words:?}\n{}", node.log_tail(20));
    let problems = node.get("/status").json()["problems"].clone();
    let told = |p: &serde_json::Value| p.as_str().is_some_and(|p| words.iter().all(|w| p.contains(w)));
    assert!(problems.as_array().is_some_and(|all| all.iter().any(told)), "{problems}");
    assert_eq!(node.metric("hie_discovery_channels_refused"), Some(1.0));
}

fn accepted(node: &Node) {
    let well = || cluster(node)["channels"]["refused"].is_null() && node.metric("hie_discovery_channels_refused") == Some(0.0);
    assert!(wait_until(SOON, well), "{}", cluster(node)["channels"]);
}

#[test]
fn channels_of_the_kv_are_followed_and_wrong_ones_refused() {
    let (agent, receiver) = (Agent::start(), Receiver::willing());
    agent.set("hie/default/channels/lab/adt", &shared("lab.adt", &receiver, ""));
    let mut one = node_at(&agent.url(), "one", 2, Builder::new(), "");
    let mut two = node_at(&agent.url(), "two", 3, Builder::new().channel(shared("own.first", &receiver, "priority = 900\n")), "");
    for node in [&mut one, &mut two] {
        node.start();
        assert!(has_channel(node, "lab.adt"), "in force before the node says that it is ready\n{}", node.log_tail(20));
        assert!(mllp_serves(node.mllp, 1));
    }
    assert!(wait_until(SOON, || receiver.count() == 2), "{} delivered", receiver.count());
    assert_eq!((one.metric("hie_discovery_channels"), two.metric("hie_discovery_channels")), (Some(1.0), Some(1.0)));

    // A change, a second channel, one taken away.
    agent.set("hie/default/channels/lab/adt", &shared("lab.adt", &receiver, "priority = 42\n"));
    let took =
        time_until("a change is in force", Duration::from_secs(2), || one.get("/channels/lab.adt").json()["priority"] == 42);
    println!("a change in the KV is in force after {took:?}");
    agent.set("hie/default/channels/lab.oru/results", &shared("lab.oru.results", &receiver, ""));
    assert!(wait_until(SOON, || has_channel(&one, "lab.oru.results") && has_channel(&two, "lab.oru.results")));
    agent.set("hie/other/channels/far/away", "not ours = ");
    agent.delete("hie/default/channels/lab.oru/results");
    assert!(wait_until(SOON, || !has_channel(&one, "lab.oru.results")));

    // What is wrong, and where.
    for (key, value, words) in [
        ("lab/bad", "[[channel]]\nname = \"lab.bad\"\nwen = 'true'\n".to_owned(), ["lab/bad:3:1", "did you mean `when`?"]),
        ("lab/bad", shared("lab.other", &receiver, ""), ["holds the channel \"lab.other\"", "where \"lab.bad\" belongs"]),
        ("lab/bad", shared("lab.bad", &receiver, "") + &shared("lab.two", &receiver, ""), ["lab/bad", "holds 2 channels"]),
        (
            "lab/bad",
            queue("lab.bad", "true") + &route("r", "mllp = [\"h:1\"]", "tls = { ca = \"/no/ca.pem\" }"),
            ["lab/bad:", "/no/ca.pem"],
        ),
        ("nothing", shared("nothing", &receiver, ""), ["hie/default/channels/nothing", "NAMESPACE/NAME"]),
        (
            "own/first",
            shared("own.first", &receiver, ""),
            ["own/first: the channel \"own.first\" is in", "keep it in one of the two"],
        ),
    ] {
        let key = format!("hie/default/channels/{key}");
        agent.set(&key, &value);
        refused(&two, &words);
        assert!(
            has_channel(&two, "lab.adt") && !has_channel(&two, "lab.bad") && mllp_serves(two.mllp, 2),
            "the last good ones stay"
        );
        let before = lines(&two, "channels in Consul refused");
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(lines(&two, "channels in Consul refused"), before, "said once");
        agent.delete(&key);
        accepted(&two);
    }
    assert!(two.metric("hie_discovery_channel_refusals_total").is_some_and(|n| n >= 6.0));

    // In both places, and then in one: a reload takes what was refused.
    agent.set("hie/default/channels/own/first", &shared("own.first", &receiver, "priority = 7\n"));
    refused(&two, &["keep it in one of the two"]);
    two.setup.channels.clear();
    two.write_config();
    two.signal(Signal::SIGHUP);
    assert!(wait_until(SOON, || two.get("/channels/own.first").json()["priority"] == 7), "{}", two.log_tail(20));
    accepted(&two);

    // What is shared is changed in the KV only, and written into no file.
    let put = two.admin("PUT", "/channels/lab.adt", "{}").expect("an answer");
    let put = if put.status == 400 {
        two.admin("PUT", "/channels/lab.adt", &two.get("/channels/lab.adt").text()).expect("an answer")
    } else {
        put
    };
    assert_eq!(put.status, 409, "{}", put.text());
    assert!(put.text().contains("Consul KV hie/default/channels/lab/adt"), "{}", put.text());
    let made = two.post("/channels", r#"{"name":"own.made","when":"false","route":[{"name":"r","mllp":["127.0.0.1:1"]}]}"#);
    assert_eq!(made.status, 201, "{}", made.text());
    let mut files: Vec<String> = fs::read_dir(two.dir().join("channels.d"))
        .expect("a folder")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, ["own.made.toml", "test.toml"]);
    agent.set("hie/default/channels/lab/adt", &shared("lab.adt", &receiver, "priority = 43\n"));
    assert!(wait_until(SOON, || two.get("/channels/lab.adt").json()["priority"] == 43));
    assert!(has_channel(&two, "own.made"), "a change in the KV leaves the folder's in force");
}

#[test]
fn the_last_good_channels_stay_while_consul_is_away_and_when_it_lost_them() {
    let (mut agent, receiver) = (Agent::start(), Receiver::willing());
    agent.set("hie/default/channels/lab/adt", &shared("lab.adt", &receiver, "priority = 5\n"));
    let mut node = node_at(&agent.url(), "one", 2, Builder::new(), "dns_ttl = \"0s\"\ntimeout = \"500ms\"");
    node.start();
    assert!(has_channel(&node, "lab.adt"));
    // A wrong value, over a restart: the good one is taken from the store.
    agent.set("hie/default/channels/lab/adt", "no TOML");
    refused(&node, &["lab/adt:1:"]);
    node.stop(SOON);
    node.start();
    assert_eq!(node.get("/channels/lab.adt").json()["priority"], 5);
    refused(&node, &["lab/adt:1:"]);
    // Consul away, over kill -9.
    agent.kill();
    node.kill9();
    node.start();
    assert!(has_channel(&node, "lab.adt") && mllp_serves(node.mllp, 1));
    assert!(wait_until(SOON, || receiver.count() == 1));
    assert_eq!(cluster(&node)["channels"]["state"], "unreachable");
    let config = node.config_file();
    let check = node.command(&["check", "--config", config.to_str().expect("a path")]).output().expect("hie check");
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && said.contains("lab.adt"), "the check builds what a start would: {said}");
    // Consul comes back without anything.
    agent.kill_and_forget();
    agent.run();
    refused(&node, &["holds nothing any more", "without a value"]);
    assert!(has_channel(&node, "lab.adt"));
    node.signal(Signal::SIGHUP);
    wait_log(&node, "read again");
    assert!(has_channel(&node, "lab.adt"), "neither does a reload take them away");
    // On purpose.
    agent.set("hie/default/channels/", "");
    assert!(wait_until(SOON, || !has_channel(&node, "lab.adt")), "{}", node.log_tail(20));
    accepted(&node);
    agent.set("hie/default/channels/lab/adt", &shared("lab.adt", &receiver, "priority = 6\n"));
    assert!(wait_until(SOON, || node.get("/channels/lab.adt").json()["priority"] == 6), "{}", node.log_tail(20));
}
