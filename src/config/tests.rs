use super::*;
use std::ffi::OsString;

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn machine() -> crate::preset::Machine {
    crate::preset::Machine { cores: 2.0, memory_mib: 2048 }
}

fn told(text: &str) -> String {
    parse(text, "hie.toml").expect_err("a mistake").to_string()
}

#[test]
fn an_empty_text_gives_the_defaults() {
    let config = parse("", "hie.toml").expect("defaults are valid");
    assert_eq!(config.mllp.len(), 1);
    assert_eq!(config.http.listen, Some(([127, 0, 0, 1], 5001).into()));
    assert!(parse("mllp = []", "hie.toml").expect("none is allowed").mllp.is_empty());
    assert_eq!(parse("[http]\nlisten = 'off'", "x").expect("off").http.listen, None);
}

#[test]
fn every_default_can_be_written_in_a_file() {
    let written = toml::to_string(&Config::default()).expect("serializes");
    let read = parse(&written, "hie.toml").expect("reads back");
    assert_eq!(toml::to_string(&read).expect("serializes"), written);
}

#[test]
fn an_unknown_key_is_told_with_line_column_and_the_nearest() {
    assert_eq!(
        told("[node]\nname = \"a\"\n  stroe = \"x\"\n"),
        "hie.toml:3:3: unknown key \"stroe\" in [node]; did you mean \"store\"?"
    );
    assert_eq!(told("[htpp]\nlisten = \"x\"\n"), "hie.toml:1:2: unknown key \"htpp\"; did you mean \"http\"?");
    assert_eq!(
        told("[[mllp]]\nmax_frames = 3\n"),
        "hie.toml:2:1: unknown key \"max_frames\" in [mllp]; did you mean \"max_frame\"?"
    );
    let elsewhere = told("[node]\nretention = \"1h\"\n");
    assert!(elsewhere.contains("there is a key \"retention\" in [ledger]"), "{elsewhere}");
}

#[test]
fn a_wrong_type_is_told_with_place_and_both_types() {
    assert_eq!(
        told("[http]\n\nmax_connections = \"many\"\n"),
        "hie.toml:3:19: http.max_connections: expected a whole number from 0, found string \"many\""
    );
    let duration = told("[http]\nheader_timeout = 30\n");
    assert!(duration.starts_with("hie.toml:2:18: http.header_timeout: expected a duration, found"), "{duration}");
    assert!(duration.contains("\"30s\""), "{duration}");
    let size = told("[limits]\nmax_body = \"big\"\n");
    assert!(size.starts_with("hie.toml:2:12: limits.max_body: expected a size, found string"), "{size}");
    let table = told("[mllp]\nname = \"a\"\n");
    assert!(table.contains("write [[mllp]]"), "{table}");
    let cluster = told("[node]\ncluster = 0\n");
    assert!(cluster.contains("a number from 1 or \"auto\""), "{cluster}");
    let address = told("[admin]\nlisten = \"localhost\"\n");
    assert!(address.starts_with("hie.toml:2:10: admin.listen:"), "{address}");
}

#[test]
fn all_mistakes_are_told_at_once_in_order() {
    let text = "[http]\nallow_ips = [\"10.0.0.0/8\", \"here\"]\nmax_conections = 3\n[node]\ncluster = true\ndomain = 7\n";
    let lines: Vec<String> = told(text).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, place) in lines.iter().zip(["hie.toml:2:28:", "hie.toml:3:1:", "hie.toml:5:11:", "hie.toml:6:10:"]) {
        assert!(line.starts_with(place), "{line} at {place}");
    }
}

#[test]
fn broken_toml_is_told_with_its_place() {
    let text = told("[node]\nname = \"a\nstore = 1\n");
    assert!(text.starts_with("hie.toml:2:"), "{text}");
    assert!(told("[node]\nname = 'a'\nname = 'b'\n").starts_with("hie.toml:3:"));
}

#[test]
fn hostile_texts_are_mistakes_not_crashes() {
    for text in [
        "a.".repeat(100_000) + "b = 1",
        "[".repeat(100_000),
        format!("[{}x]", "a.".repeat(100_000)),
        format!("[{}x]\nk = 1", "a.".repeat(100_000)),
        format!("[[{}x]]\nk = 1", "a.".repeat(100_000)),
        format!("x = {{ {}b = 1 }}", "a.".repeat(100_000)),
        format!("{}b = [{{ {}b = 1 }}]", "a.".repeat(50), "a.".repeat(50)),
        "a = ".to_owned() + &"{b=".repeat(50_000),
        "[node]\ncluster = 99999999999999999999".into(),
        "[node]\ncluster = -3".into(),
        "x = 1\n".repeat(300_000),
        (0..90_000).map(|i| format!("k{i} = 1\n")).collect(),
        "\u{0}".into(),
        "a=[".repeat(5000),
    ] {
        assert!(parse(&text, "hie.toml").is_err());
    }
}

#[test]
fn values_that_cannot_work_are_told() {
    for (text, expected) in [
        ("[[mllp]]\n[[mllp]]\nlisten='127.0.0.1:2600'\n", "the name \"mllp\" is taken by mllp.0.name"),
        ("[[mllp]]\nname='a'\nlisten='127.0.0.1:5001'\n", "127.0.0.1:5001 is in use by http.listen"),
        ("[[mllp]]\nname='a'\nlisten='0.0.0.0:8080'\n", "is in use by mllp.0.listen (0.0.0.0:8080)"),
        ("[[mllp]]\nname='http'\n", "one of the node's own listeners"),
        ("[[mllp]]\nname='a b'\n", "a name is"),
        ("[http]\nheader_timeout='0s'\n", "0s is not within"),
        ("[http]\nmax_connections=0\n", "0 is not within 1"),
        ("[limits]\nmax_body='1 B'\n", "is not within"),
        ("[ledger]\nsegment_size='1 GiB'\nmax_size='1 GiB'\n", "fewer than two segments"),
        ("[http.tls]\ncert='a.pem'\n", "http.tls.key: is missing"),
        ("[http.tls]\ncert='a'\nkey='b'\nclient_required=true\n", "needs client_ca"),
        ("[[file]]\n", "name the folder to watch"),
        ("[[file]]\ndirectory='in'\ndone='.'\n", "must be a folder of its own"),
    ] {
        let told = told(text);
        assert!(told.contains(expected), "{text:?} told {told:?}, expected {expected:?}");
    }
}

#[test]
fn listeners_on_port_0_do_not_clash() {
    let text = "[[mllp]]\nname='a'\nlisten='127.0.0.1:0'\n[[mllp]]\nname='b'\nlisten='127.0.0.1:0'\n";
    assert_eq!(parse(text, "hie.toml").expect("valid").mllp.len(), 2);
}

#[test]
fn variables_take_precedence_and_are_read_as_their_key_asks() {
    let env = env(&[
        ("HIE_NODE__NAME", "123"),
        ("HIE_NODE__CLUSTER", "auto"),
        ("HIE_HTTP__MAX_CONNECTIONS", "77"),
        ("HIE_HTTP__REQUIRE_CLIENT", "true"),
        ("HIE_HTTP__ALLOW_IPS", "10.0.0.0/8, 192.168.0.0/16"),
        ("HIE_LIMITS__MAX_BODY", "5 MiB"),
        ("HIE_MLLP__LISTEN", "127.0.0.1:2600"),
        ("HIE_MLLP__MAX_CONNECTIONS", "9"),
        ("HIE_LOG", "debug"),
        ("HIE_PORT_5001_TCP", "tcp://10.0.0.1:5001"),
        ("PATH", "/bin"),
    ]);
    let flags = [Flag { name: "--cluster".into(), key: "node.cluster".into(), value: "3".into() }];
    let loaded = load(None, env, &flags, &machine).expect("valid");
    let config = &loaded.config;
    assert_eq!(config.node.name, "123");
    assert_eq!(config.node.cluster, Cluster::N(3));
    assert_eq!(config.http.max_connections, 77);
    assert!(config.http.require_client);
    assert_eq!(config.http.allow_ips.len(), 2);
    assert_eq!(config.limits.max_body.as_u64(), 5 << 20);
    assert_eq!((config.mllp.len(), config.mllp[0].listen.port(), config.mllp[0].max_connections), (1, 2600, 9));
    assert_eq!(loaded.origins.get("node.cluster"), Origin::Flag("--cluster".into()));
    assert_eq!(loaded.origins.get("mllp.0.listen"), Origin::Env("HIE_MLLP__LISTEN".into()));
    assert_eq!(loaded.origins.get("mllp.0.name"), Origin::Default);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn mistakes_in_variables_name_the_variable() {
    let told = |pairs: &[(&str, &str)]| load(None, env(pairs), &[], &machine).expect_err("a mistake").to_string();
    assert_eq!(told(&[("HIE_NODE__STROE", "x")]), "HIE_NODE__STROE: sets no known key; did you mean HIE_NODE__STORE?");
    assert!(told(&[("HIE_NOED__STORE", "x")]).contains("did you mean HIE_NODE__STORE?"));
    let foreign = told(&[("HIE_FOO__BAR", "x")]);
    assert!(foreign.contains("there is no section [foo]; sections are ") && !foreign.contains("did you mean"), "{foreign}");
    assert!(foreign.contains("http") && foreign.contains("ledger"), "{foreign}");
    let unlike = told(&[("HIE_ADMIN__COLOUR", "x")]);
    assert!(unlike.contains("known are ") && unlike.contains("HIE_ADMIN__LISTEN"), "{unlike}");
    assert!(told(&[("HIE_HTTP__MAX_CONNECTIONS", "many")]).starts_with("HIE_HTTP__MAX_CONNECTIONS: http.max_connections:"));
    assert!(told(&[("HIE_HTTP__ALLOW_IPS", "here")]).starts_with("HIE_HTTP__ALLOW_IPS: http.allow_ips"));
    assert!(told(&[("HIE_MLLP__LISTN", "x")]).contains("HIE_MLLP__LISTEN"));
    assert!(told(&[("HIE_NODE", "x"), ("HIE_NODE__NAME__X", "y"), ("HIE_NODE__NAME", "z")]).contains("HIE_NODE__NAME__X"));
    let slip = load(None, env(&[("HIE_NODE_STORE", "x")]), &[], &machine).expect("only a warning");
    assert_eq!(slip.warnings[0].to_string(), "HIE_NODE_STORE: is ignored; did you mean HIE_NODE__STORE?");
}

#[test]
fn without_a_file_everything_lies_below_the_store() {
    let at = |pairs: &[(&str, &str)]| load(None, env(pairs), &[], &machine).expect("valid").config.node;
    let node = at(&[]);
    assert_eq!((node.store.as_path(), node.channels.as_path()), (Path::new("hie-data"), Path::new("hie-data/channels.d")));
    assert_eq!(at(&[("XDG_STATE_HOME", "/s")]).clients, Path::new("/s/hie/clients.d"));
    assert_eq!(at(&[("HIE_NODE__STORE", "/x"), ("XDG_STATE_HOME", "/s")]).channels, Path::new("/x/channels.d"));
    let sample = Config::sample(Path::new("/x"));
    assert_eq!((sample.node.channels, sample.admin.token_file), ("/x/channels.d".into(), None));
}

#[test]
fn a_preset_lies_below_the_file_and_holds_for_every_listener() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("hie.toml");
    let text = "[node]\npreset='auto'\n[limits]\nstreams=7\n[[mllp]]\nname='a'\n[[mllp]]\nname='b'\nlisten='127.0.0.1:2600'\nmax_connections=3\n";
    std::fs::write(&file, text).expect("hie.toml");
    let loaded = load(Some(&file), env(&[("HIE_HTTP__MAX_CONNECTIONS", "9")]), &[], &machine).expect("valid");
    assert_eq!(loaded.preset.expect("a preset").name, "small-clinic");
    let config = &loaded.config;
    let preset = Origin::Preset("small-clinic".into());
    assert_eq!(preset.to_string(), "preset small-clinic");
    assert_eq!((config.node.cluster, loaded.origins.get("node.cluster")), (Cluster::N(2), preset.clone()));
    assert_eq!((config.limits.streams, config.http.max_connections), (7, 9));
    assert!(matches!(loaded.origins.get("limits.streams"), Origin::File { line: 4, .. }));
    assert_eq!(loaded.origins.get("http.max_connections"), Origin::Env("HIE_HTTP__MAX_CONNECTIONS".into()));
    assert_eq!((config.mllp[0].max_connections, config.mllp[1].max_connections), (256, 3));
    assert_eq!(loaded.origins.get("mllp.0.max_connections"), preset);
    assert!(matches!(loaded.origins.get("mllp.1.max_connections"), Origin::File { .. }));
    assert_eq!(loaded.origins.get("mllp.1.max_frame"), preset);
    // Variable over file, flag over variable; the variable for the only listener takes nothing from the preset's away.
    let over = env(&[("HIE_NODE__PRESET", "edge"), ("HIE_MLLP__LISTEN", "127.0.0.1:2601")]);
    let flags = [Flag { name: "--preset".into(), key: "node.preset".into(), value: "large-hospital".into() }];
    let loaded = load(None, over.clone(), &flags, &machine).expect("valid");
    assert_eq!((loaded.config.mllp[0].max_connections, loaded.config.mllp[0].listen.port()), (2048, 2601));
    assert_eq!(load(None, over, &[], &machine).expect("valid").config.mllp[0].max_connections, 64);
    let none = load(None, env(&[("HIE_NODE__PRESET", "")]), &[], &machine).expect("valid");
    assert!(none.preset.is_none());
    let unknown = load(None, env(&[("HIE_NODE__PRESET", "small-clinik")]), &[], &machine).expect_err("no such preset");
    assert!(
        unknown
            .to_string()
            .starts_with("HIE_NODE__PRESET: node.preset: no preset is called \"small-clinik\"; did you mean \"small-clinic\"?")
    );
}
