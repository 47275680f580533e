//! `hie try`: which channel takes a sample, why the others do not, and where it would go; nothing is sent.

use std::{fs, process::Command};

const CHANNELS: &str = r#"
[[channel]]
name = "lab.off"
when = 'true'
priority = 1
enabled = false
[[channel.route]]
name = "r"
mllp = ["127.0.0.1:1"]

[[channel]]
name = "lab.results"
when = 'protocol == "mllp" && hl7("MSH-9.1") == "ORU"'
priority = 2
[[channel.route]]
name = "ehr"
mllp = ["127.0.0.1:1"]

[[channel]]
name = "adt.merge"
when = 'protocol == "mllp" && hl7("MSH-9.2") == "A40"'
priority = 3
order = "patient"
[[channel.route]]
name = "copy"
file = { directory = "out" }
[[channel.route]]
name = "mpi"
primary = true
mllp = ["127.0.0.1:1", "127.0.0.1:2"]

[[channel]]
name = "fhir.store"
when = 'protocol == "http" && resource == "Patient" && header("x-site") == "north"'
allow = ["app"]
[[channel.route]]
name = "server"
http = ["http://127.0.0.1:1/fhir"]
"#;

const MERGE: &str = "MSH|^~\\&|A|B|C|D|20260101||ADT^A40|1|P|2.5\nPID|1||111^^^X\nMRG|222^^^X\n";

fn attempt(sample: &str, args: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = "[[mllp]]\nname = \"ward\"\ncharset = \"8859/1\"\n[[mllp]]\nname = \"lab\"\nlisten = \"127.0.0.1:2599\"\n\
                  [[file]]\nname = \"drop\"\ndirectory = \"channels.d\"\n";
    fs::write(dir.path().join("hie.toml"), config).expect("hie.toml");
    fs::create_dir(dir.path().join("channels.d")).expect("channels.d");
    fs::write(dir.path().join("channels.d/a.toml"), CHANNELS).expect("channels");
    fs::create_dir(dir.path().join("clients.d")).expect("clients.d");
    fs::write(
        dir.path().join("clients.d/a.toml"),
        "[[client]]\nname = \"app\"\ntoken_sha256 = \"".to_owned() + &"0".repeat(64) + "\"\n",
    )
    .expect("clients");
    fs::write(dir.path().join("sample"), sample).expect("the sample");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hie"));
    command.args(["try", "--config", "hie.toml", "sample", "--json"]).args(args).current_dir(dir.path());
    let output = command.output().expect("hie runs");
    let mut left: Vec<_> = fs::read_dir(dir.path()).expect("the folder").map(|e| e.expect("an entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["channels.d", "clients.d", "hie.toml", "sample"], "something was written");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

#[test]
fn the_channel_that_takes_it_is_named_with_all_its_routes() {
    let (code, json, said) = attempt(MERGE, &[]);
    assert_eq!(code, Some(0), "{said}");
    let report = &json[0];
    assert_eq!((report["channel"].as_str(), report["mode"].as_str()), (Some("adt.merge"), Some("queue")));
    assert_eq!((report["type"].as_str(), report["patients"].as_u64()), (Some("ADT^A40"), Some(2)));
    assert_eq!(report["keys"].as_array().map(Vec::len), Some(2), "a merge is a barrier between two sequences");
    let answers: Vec<_> =
        report["asked"].as_array().expect("asked").iter().map(|a| a["answer"].as_str().expect("text")).collect();
    assert_eq!(answers, ["not enabled", "no: the rule does not hold", "takes it"]);
    let routes = &report["routes"];
    assert_eq!((routes[0]["route"].as_str(), routes[0]["primary"].as_bool()), (Some("mpi"), Some(true)));
    assert_eq!(routes[0]["targets"][1], "mllp://127.0.0.1:2");
    assert_eq!((&routes[1]["route"], &routes[1]["targets"][0]), (&"copy".into(), &"channels.d/out".into()));
    // No identifier is in what is printed: only how many there are, and hashes.
    assert!(!json.to_string().contains("111") || !json.to_string().contains("222"));
}

#[test]
fn frames_and_batches_are_taken_apart() {
    let framed = format!("\x0b{}\x1c\r", MERGE.replace('\n', "\r"));
    assert_eq!(attempt(&framed, &[]).1[0]["channel"], "adt.merge");
    let batch = format!("FHS|^~\\&|A\nBHS|^~\\&|A\n{MERGE}{}BTS|2\nFTS|1\n", MERGE.replace("ADT^A40", "ORU^R01"));
    let (code, json, _) = attempt(&batch, &[]);
    assert_eq!((code, json.as_array().map(Vec::len)), (Some(0), Some(2)));
    assert_eq!((json[0]["channel"].as_str(), json[1]["channel"].as_str()), (Some("adt.merge"), Some("lab.results")));
}

#[test]
fn http_is_tried_with_path_header_and_client() {
    let patient = r#"{"resourceType":"Patient","id":"1"}"#;
    let as_fhir = ["--header", "Content-Type: application/fhir+json", "--header", "X-Site: north"];
    let (code, json, _) = attempt(patient, &[&as_fhir[..], &["--client", "app"]].concat());
    assert_eq!((code, json[0]["channel"].as_str(), json[0]["mode"].as_str()), (Some(0), Some("fhir.store"), Some("proxy")));
    let (code, json, _) = attempt(patient, &as_fhir);
    assert_eq!((code, json[0]["channel"].as_str()), (Some(1), Some("fhir.store")), "anonymous may not use it");
    assert!(json[0]["refused"].as_str().expect("a reason").contains("not allowed"));
    let (code, json, _) = attempt(patient, &["--header", "content-type: application/fhir+json"]);
    assert_eq!((code, json[0]["channel"].is_null()), (Some(1), true), "no channel without the header");
    let (code, _, said) = attempt(patient, &["--client", "nobody"]);
    assert_eq!(code, Some(64), "{said}");
}

#[test]
fn what_cannot_be_read_says_so() {
    let (code, json, said) = attempt("hello", &["--protocol", "mllp"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(json[0]["refused"].is_string(), "{json}");
    let (code, _, said) = attempt("x", &["--header", "nonsense"]);
    assert_eq!(code, Some(64), "{said}");
}

#[test]
fn the_listener_must_be_one_of_the_configuration() {
    for (args, expected) in [
        (
            &["--listener", "wrad"][..],
            "no listener is called \"wrad\"; did you mean \"ward\"? Listeners: http, https, ward, lab, drop",
        ),
        (&["--listener", "zzz"], "no listener is called \"zzz\". Listeners: http, https, ward, lab, drop"),
        (&["--listener", "http", "--protocol", "mllp"], "no listener for mllp is called \"http\". Listeners for mllp: ward, lab"),
    ] {
        let (code, _, said) = attempt(MERGE, args);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(attempt(MERGE, &["--listener", "lab"]).0, Some(0));
    // A listener says how the sample would come: the channel takes MLLP only.
    let (code, json, _) = attempt(MERGE, &["--listener", "drop"]);
    assert_eq!((code, json[0]["channel"].is_null()), (Some(1), true), "{json}");
}
