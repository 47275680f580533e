//! A route that an operator paused stays paused over a crash, a restart and an upgrade, until it is resumed. And where the
//! relative paths of a route lead: to the folder of the channel files, whoever reads them.

mod harness;

use harness::channels::{queue, route};
use harness::wire::{Tag, adt, text};
use harness::{Builder, Node, Peer, Receiver, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

fn state(node: &Node, name: &str) -> (bool, String) {
    let routes = node.get("/routes").json();
    let found = routes.as_array().and_then(|all| all.iter().find(|r| r["route"] == name)).cloned().unwrap_or_default();
    (found["paused"] == true, found["paused_by"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_pause_is_kept_until_it_is_taken_back() {
    let receiver = Receiver::willing();
    let channel = queue("test.all", "true")
        + &route("one", &receiver.target(), "primary = true")
        + &route("two", "file = { directory = \"out\" }", "paused = true");
    let mut node = Builder::new().channel(channel).lay_out();
    std::fs::create_dir_all(node.dir().join("channels.d/out")).expect("a folder");
    node.start();
    let operator = (true, "operator".to_owned());
    assert_eq!((state(&node, "one"), state(&node, "two")), ((false, String::new()), (true, "configuration".to_owned())));
    assert_eq!(node.post("/routes/test.all/one/pause", "").status, 200);
    // Answered means on stable storage: even a crash right after does not lose it.
    node.kill9();
    node.start();
    assert_eq!(state(&node, "one"), operator);
    let config = node.config_file();
    let list = node.command(&["route", "list", "--config", config.to_str().expect("a UTF-8 path")]).output().expect("hie runs");
    assert!(String::from_utf8_lossy(&list.stdout).contains("paused (operator)"), "{list:?}");
    let mut peer = Peer::connect(node.mllp);
    let ack = peer.exchange(&adt(&Tag { key: "k".into(), seq: 1, id: "HELD".into() }, 300, "pad"));
    assert_eq!(text(&ack, "MSA", 1), "AA");
    drop(peer);

    node.signal(Signal::SIGUSR2);
    let upgraded = || node.log().split_once("upgrading in place").is_some_and(|(_, after)| after.contains(" ready"));
    assert!(wait_until(Duration::from_secs(30), upgraded), "{}", node.log_tail(30));
    assert!(wait_until(Duration::from_secs(10), || node.get("/health/ready").status == 200));
    assert_eq!(state(&node, "one"), operator, "after an upgrade in place");
    assert!(receiver.arrivals().is_empty(), "nothing went out");

    assert_eq!(node.post("/routes/test.all/one/resume", "").status, 200);
    assert_eq!(node.post("/routes/test.all/two/resume", "").status, 200);
    assert!(wait_until(Duration::from_secs(10), || receiver.arrivals().iter().any(|a| a.tag.id == "HELD")));
    node.stop(Duration::from_secs(20));
    node.start();
    assert_eq!((state(&node, "one").0, state(&node, "two").0), (false, false));
}

fn pem() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters").self_signed(&key).expect("a certificate").pem()
}

#[test]
fn relative_paths_of_a_route_start_from_the_channels_folder() {
    let into = |folder: &str| route("copy", &format!("file = {{ directory = \"{folder}\" }}"), "primary = true");
    let tls = route("ehr", "mllp = [\"127.0.0.1:9\"]", "tls = { ca = \"certs/ca.pem\" }\npaused = true");
    let mut node = Builder::new().channel(queue("test.all", "true") + &into("../by-file") + &tls).lay_out();
    for folder in ["by-file", "channels.d/by-api", "channels.d/certs"] {
        std::fs::create_dir_all(node.dir().join(folder)).expect("a folder");
    }
    std::fs::write(node.dir().join("channels.d/certs/ca.pem"), pem()).expect("written");
    let config = node.config_file();
    let config = config.to_str().expect("a UTF-8 path").to_owned();
    let check = node.command(&["check", "--quiet", "--config", &config]).output().expect("hie runs");
    assert!(check.status.success() && check.stderr.is_empty(), "{check:?}");
    node.start();
    let arrives = |node: &Node, id: &str, folder: &str| {
        let ack = Peer::connect(node.mllp).exchange(&adt(&Tag { key: "k".into(), seq: 1, id: id.into() }, 300, "pad"));
        assert_eq!(text(&ack, "MSA", 1), "AA");
        let is_there = || {
            let files = std::fs::read_dir(node.dir().join(folder)).expect("the folder").flatten();
            files.into_iter().any(|f| std::fs::read_to_string(f.path()).is_ok_and(|text| text.contains(id)))
        };
        assert!(wait_until(Duration::from_secs(10), is_there), "{id} in {folder}\n{}", node.log_tail(20));
    };
    arrives(&node, "BYFILE", "by-file");
    let mut channel = node.get("/channels/test.all").json();
    assert_eq!(channel["route"][0]["file"]["directory"], "../by-file", "shown as it was given");
    channel["route"][0]["file"]["directory"] = "by-api".into();
    let told = node.admin("PUT", "/channels/test.all", &channel.to_string()).expect("an answer");
    assert_eq!(told.status, 200, "{}", told.text());
    arrives(&node, "BYAPI", "channels.d/by-api");
    node.signal(Signal::SIGHUP);
    assert!(wait_until(Duration::from_secs(10), || node.log().contains("read again")), "{}", node.log_tail(20));
    arrives(&node, "BYHUP", "channels.d/by-api");
    let sample = node.dir().join("sample");
    std::fs::write(&sample, adt(&Tag { key: "k".into(), seq: 2, id: "TRY".into() }, 300, "pad")).expect("written");
    let sample = sample.to_str().expect("a UTF-8 path");
    let tried = node.command(&["try", "--config", &config, sample]).output().expect("hie runs");
    let said = String::from_utf8_lossy(&tried.stdout).into_owned();
    assert!(said.contains(&node.dir().join("channels.d/by-api").display().to_string()), "{said}");
}
