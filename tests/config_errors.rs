//! What an operator is told about a configuration that is wrong: by the program itself, from file, environment and
//! flags, with the exit code that scripts rely on.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

struct Check {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
    args: Vec<String>,
}

impl Check {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("hie.toml"), text).expect("hie.toml");
        fs::create_dir(dir.path().join("channels.d")).expect("channels.d");
        Self { dir, env: vec![], args: vec![] }
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect(name);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    fn run(&self, subcommand: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hie"));
        command.args([subcommand, "--config", "hie.toml"]).args(&self.args).current_dir(self.dir.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIE_")) {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(n, v)| (n, v))).output().expect("hie runs")
    }

    /// What is said when it is refused.
    fn refused(&self) -> String {
        let output = self.run("check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{said}");
        said
    }

    fn json(&self) -> serde_json::Value {
        let output = self.run("check");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

const CHANNEL: &str = "[[channel]]\nname = \"a.b\"\nwhen = 'true'\n[[channel.route]]\nname = \"r\"\nmllp = [\"h:2575\"]\n";

#[test]
fn unknown_keys_and_wrong_types_are_told_together_with_their_places() {
    let said = Check::new("[node]\nstroe = \"x\"\n[http]\nmax_connections = \"many\"\n").refused();
    let expected = "hie: hie.toml:2:1: unknown key \"stroe\" in [node]; did you mean \"store\"?\n\
                    hie: hie.toml:4:19: http.max_connections: expected a whole number from 0, found string \"many\"\n";
    assert_eq!(said, expected);
}

#[test]
fn run_refuses_what_check_refuses_and_opens_nothing() {
    let check = Check::new("[node]\nstroe = \"x\"\n");
    assert_eq!(check.run("run").status.code(), Some(65));
    assert!(!check.dir.path().join("hie-data").exists());
}

#[test]
fn mistakes_in_variables_and_flags_name_them() {
    let said = Check::new("").env("HIE_HTTP__LISTN", "127.0.0.1:1").refused();
    assert_eq!(said, "hie: HIE_HTTP__LISTN: sets no known key; did you mean HIE_HTTP__LISTEN?\n");
    let said = Check::new("").arg("--set").arg("http.listen=nowhere").refused();
    assert!(said.starts_with("hie: --set http.listen: http.listen: expected an address"), "{said}");
    let said = Check::new("[[mllp]]\nname='a'\n[[mllp]]\nname='b'\n").env("HIE_MLLP__LISTEN", "127.0.0.1:1").refused();
    assert!(said.contains("HIE_MLLP__LISTEN: sets the only [[mllp]], but hie.toml has 2 of them"), "{said}");
}

#[test]
fn a_variable_of_no_section_is_told_with_the_sections_and_not_with_a_guess() {
    let said = Check::new("").env("HIE_FOO__BAR", "x").refused();
    assert!(said.starts_with("hie: HIE_FOO__BAR: sets no known key: there is no section [foo]; sections are "), "{said}");
    assert!(said.contains("http") && said.contains("ledger") && !said.contains("did you mean"), "{said}");
}

#[test]
fn an_unknown_charset_is_told_with_the_nearest_one() {
    for (label, nearest) in
        [("UTF8-", "UTF-8"), ("8859/l", "8859/1"), ("iso-8859-1x", "ISO-8859-1"), ("windows-125O", "windows-125")]
    {
        let text = format!("[[mllp]]\nname = \"lab\"\ncharset = \"{label}\"\n");
        for subcommand in ["check", "run"] {
            let output = Check::new(&text).run(subcommand);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(65), "{said}");
            let expected =
                format!("hie: hie.toml:3:11: mllp.0.charset: unknown charset \"{label}\"; the nearest known one is \"{nearest}");
            assert!(said.starts_with(&expected), "{said}");
        }
    }
    for known in ["UTF-8", "utf-8", "8859/1", "UNICODE UTF-8", "latin1", "windows-1252", "GB 18030-2000"] {
        let text = format!("[[mllp]]\nname = \"lab\"\ncharset = \"{known}\"\n");
        assert!(Check::new(&text).run("check").status.success(), "{known}");
    }
}

#[test]
fn files_that_are_named_and_not_there_are_told() {
    let text = "[http.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n[[file]]\ndirectory = \"in\"\n";
    let said = Check::new(text).file("cert.pem", "").refused();
    assert!(said.contains("hie.toml:3:7: http.tls.key: key.pem cannot be read"), "{said}");
    assert!(said.contains("hie.toml:5:13: file.0.directory: the folder in does not exist"), "{said}");
    assert!(!said.contains("tls.cert"), "{said}");
    let missing =
        Command::new(env!("CARGO_BIN_EXE_hie")).args(["check", "--config", "/no/such.toml"]).output().expect("hie runs");
    assert_eq!(missing.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("configuration file /no/such.toml cannot be read"));
}

#[test]
fn every_channel_and_client_file_is_looked_at() {
    let said = Check::new("")
        .file("channels.d/a.toml", &CHANNEL.replace("when", "wen"))
        .file("channels.d/b.toml", &CHANNEL.replace("'true'", "'clint == \"x\"'"))
        .file("clients.d/c.toml", "[[client]]\nname = \"lab\"\npasword = \"x\"\n")
        .refused();
    for expected in
        ["channels.d/a.toml:3:1: unknown key `wen`", "channels.d/b.toml:3:9: unknown name `clint`", "clients.d/c.toml"]
    {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    let twice = Check::new("").file("channels.d/a.toml", CHANNEL).file("channels.d/b.toml", CHANNEL).refused();
    assert!(twice.contains("channels.d/b.toml: the channel \"a.b\" is in channels.d/a.toml already"), "{twice}");
}

#[test]
fn the_table_shows_every_value_with_its_origin() {
    let check = Check::new("[http]\nlisten = \"127.0.0.1:6001\"\nmax_connections = 9\n\n[[mllp]]\nname = \"lab\"\n")
        .file("channels.d/a.toml", CHANNEL)
        .env("HIE_HTTP__MAX_CONNECTIONS", "10")
        .arg("--set")
        .arg("limits.streams=7")
        .arg("--json");
    let json = check.json();
    let row = |key: &str| {
        let values = json["values"].as_array().expect("values");
        let row = values.iter().find(|v| v["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (row["value"].as_str().expect("text").to_owned(), row["origin"].as_str().expect("text").to_owned())
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(row("http.listen"), pair("127.0.0.1:6001", "hie.toml:2:10"));
    assert_eq!(row("http.max_connections"), pair("10", "HIE_HTTP__MAX_CONNECTIONS"));
    assert_eq!(row("limits.streams"), pair("7", "--set limits.streams"));
    assert_eq!(row("mllp.0.name"), pair("lab", "hie.toml:6:8"));
    assert_eq!(row("mllp.0.listen"), pair("127.0.0.1:2575", "default"));
    assert_eq!(json["channels"][0]["name"], "a.b");
}

#[test]
fn what_works_and_is_probably_not_meant_is_a_warning() {
    let channel = CHANNEL.replace("[[channel.route]]", "allow = [\"lab\"]\n[[channel.route]]");
    let check = Check::new("[admin]\nlisten = \"0.0.0.0:8080\"\n").file("channels.d/a.toml", &channel).arg("--quiet");
    let output = check.run("check");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("warning: hie.toml:2:10: admin.listen: the management API has no TLS"), "{said}");
    assert!(said.contains("no client has the name or role \"lab\""), "{said}");
    let empty = Check::new("").arg("-q").run("check");
    assert!(String::from_utf8_lossy(&empty.stderr).contains("no channel is enabled"));
}

#[test]
fn paths_of_the_file_are_relative_to_it() {
    let check = Check::new("[node]\nstore = \"data\"\n").arg("--json");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let file = check.dir.path().join("hie.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_hie"))
        .args([Path::new("check"), Path::new("--json"), Path::new("--config"), &file])
        .current_dir(elsewhere.path())
        .output()
        .expect("hie runs");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let store = json["values"].as_array().expect("values").iter().find(|v| v["key"] == "node.store").expect("node.store");
    assert_eq!(store["value"], check.dir.path().join("data").to_str().expect("UTF-8"));
}

/// A pair as PEM: certificate and key.
fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

/// Garbage that looks like a certificate until it is parsed.
const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// A configuration with files around it: a good pair, another one's key, and what is no certificate.
fn with_files(config: &str, route: &str) -> Check {
    let ((cert, key), (_, other)) = (pair(), pair());
    Check::new(&format!("[node]\nstore = \"data\"\n{config}"))
        .file("channels.d/a.toml", &format!("{CHANNEL}{route}"))
        .file("good.pem", &cert)
        .file("good.key", &key)
        .file("other.key", &other)
        .file("garbage.pem", GARBAGE)
        .file("empty.pem", "")
        .arg("--set")
        .arg("admin.token_file=token")
}

#[test]
fn check_refuses_what_run_would_refuse_when_it_builds_it() {
    let https = |more: &str| format!("[http]\ntls_listen = \"127.0.0.1:0\"\n[http.tls]\n{more}\n");
    let mllps = |more: &str| format!("[[mllp]]\nname = \"lab\"\nlisten = \"127.0.0.1:0\"\n[mllp.tls]\n{more}\n");
    let mail = "[[alerts.mail]]\nsmtp = \"localhost:25\"\nto = [\"it@example.org\"]\nfrom = \"hie@example.org\"\n";
    let hook = "[[alerts.webhook]]\nurl = \"https://localhost/\"\n";
    let good = "cert = \"good.pem\"\nkey = \"good.key\"\n";
    let route = "channels.d/a.toml:5:8: channel a.b, route r: ";
    // hie.toml, lines of the route, all parts that have to be said.
    let cases: Vec<(String, &str, Vec<&str>)> = vec![
        ("".into(), "tls = { ca = \"/no/nope.pem\" }", vec![route, "`ca`", "/no/nope.pem cannot be read", "must exist"]),
        ("".into(), "tls = { ca = \"../garbage.pem\" }", vec![route, "`ca`", "garbage.pem", "must be PEM"]),
        ("".into(), "tls = { ca = \"../empty.pem\" }", vec![route, "empty.pem: no certificate in it"]),
        ("".into(), "tls = { cert = \"../garbage.pem\", key = \"../good.key\" }", vec![route, "garbage.pem", "good.key"]),
        ("".into(), "tls = { cert = \"../good.pem\", key = \"../garbage.pem\" }", vec![route, "`key`", "garbage.pem"]),
        (
            "".into(),
            "tls = { cert = \"../good.pem\", key = \"../other.key\" }",
            vec![route, "good.pem", "other.key", "make sure that the key belongs"],
        ),
        ("".into(), "tls = { server_name = \"not a name\" }", vec![route, "`server_name` \"not a name\" is not a host name"]),
        (
            "".into(),
            "[[channel.route]]\nname = \"web\"\nhttp = [\"http://h:99999/\"]",
            vec!["channels.d/a.toml:8:8", "no valid host and port"],
        ),
        (https("cert = \"garbage.pem\"\nkey = \"good.key\""), "", vec!["http.tls.key: certificate garbage.pem and key good.key"]),
        (https("cert = \"empty.pem\"\nkey = \"good.key\""), "", vec!["hie.toml:6:8: http.tls.cert: empty.pem", "must be PEM"]),
        (
            https("cert = \"good.pem\"\nkey = \"other.key\""),
            "",
            vec!["hie.toml:7:7: http.tls.key: ", "good.pem", "other.key", "make sure that the key belongs"],
        ),
        (
            https(&format!("{good}client_ca = \"garbage.pem\"")),
            "",
            vec!["hie.toml:8:13: http.tls.client_ca: garbage.pem", "must be"],
        ),
        (mllps("cert = \"empty.pem\"\nkey = \"good.key\""), "", vec!["hie.toml:7:8: mllp.0.tls.cert: empty.pem"]),
        (mllps("cert = \"good.pem\"\nkey = \"other.key\""), "", vec!["hie.toml:8:7: mllp.0.tls.key: ", "other.key"]),
        (mllps(&format!("{good}client_ca = \"empty.pem\"")), "", vec!["hie.toml:9:13: mllp.0.tls.client_ca: empty.pem"]),
        (
            format!("{mail}tls = \"starttls\"\nca = \"garbage.pem\"\n"),
            "",
            vec!["hie.toml:", "alerts.mail.0", "garbage.pem", "must be a PEM"],
        ),
        (mail.replace("it@example.org", "it at@x y"), "", vec!["hie.toml:", "alerts.mail.0", "no mail address"]),
        (format!("{hook}ca = \"empty.pem\"\n"), "", vec!["hie.toml:", "alerts.webhook.0", "empty.pem", "no certificate in it"]),
    ];
    for (config, lines, parts) in cases {
        let check = with_files(&config, "");
        let check = check.file("channels.d/a.toml", &format!("{CHANNEL}{lines}\n"));
        let said = check.refused();
        for part in parts {
            assert!(said.contains(part), "{config}{lines}: {part:?} is not in {said}");
        }
        let run = check.run("run");
        assert_eq!(run.status.code(), Some(65), "{config}{lines}");
        assert_eq!(String::from_utf8_lossy(&run.stderr), said, "run and check say the same");
        assert!(!check.dir.path().join("data").exists(), "nothing was opened for {config}{lines}");
    }
    // All of them at once, and nothing where all is well.
    let two = with_files(&https("cert = \"good.pem\"\nkey = \"other.key\""), "tls = { ca = \"/no/nope.pem\" }").refused();
    assert!(two.contains("other.key") && two.contains("nope.pem") && two.lines().count() == 2, "{two}");
    let well = with_files(&https(&format!("{good}client_ca = \"good.pem\"")), "").run("check");
    assert!(well.status.success(), "{}", String::from_utf8_lossy(&well.stderr));
}

#[test]
fn a_token_that_the_start_would_refuse_is_refused_by_check() {
    let check = with_files("", "").file("token", "short");
    std::fs::set_permissions(check.dir.path().join("token"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("a mode");
    let said = check.refused();
    assert!(said.contains("admin.token_file: token holds less than 16 characters"), "{said}");
}

#[test]
fn sizes_out_of_range_are_refused() {
    for (text, key) in [
        ("[ledger]\nmax_size = \"99999999 EiB\"\n", "hie.toml:2:12: ledger.max_size: 16"),
        ("[ledger]\nmin_free = \"99999999 EiB\"\n", "hie.toml:2:12: ledger.min_free: 16"),
        ("[ledger]\ncompress_from = \"99999999 EiB\"\n", "hie.toml:2:17: ledger.compress_from: 16"),
        ("[limits]\nmax_body = \"99999999 EiB\"\n", "hie.toml:2:12: limits.max_body: 16"),
    ] {
        let said = Check::new(text).refused();
        assert!(said.contains(key) && said.contains("is not within"), "{said}");
    }
    let channel = CHANNEL.replace("when", "max_body = \"99999999 EiB\"\nwhen");
    let said = Check::new("").file("channels.d/a.toml", &channel).refused();
    assert!(said.contains("channels.d/a.toml:2:8: max_body: ") && said.contains("out of range; at most 1 TiB"), "{said}");
}

#[test]
fn a_variable_that_names_a_section_alone_is_told() {
    for (name, such_as) in
        [("HIE_NODE", "HIE_NODE__"), ("HIE_MLLP", "HIE_MLLP__"), ("HIE_ALERTS_WEBHOOK", "HIE_ALERTS__WEBHOOK__")]
    {
        let output = Check::new("").file("channels.d/a.toml", CHANNEL).env(name, "x").arg("-q").run("check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let expected = format!(
            "hie: warning: {name}: is ignored: it names a section without a key; write HIE_SECTION__KEY, such as {such_as}"
        );
        assert!(said.starts_with(&expected), "{said}");
    }
    // What Kubernetes sets for a service called hie, or hie-http.
    let check = Check::new("").file("channels.d/a.toml", CHANNEL).env("HIE_PORT", "tcp://10.0.0.1:5001").arg("-q");
    let output = check.env("HIE_HTTP_PORT", "tcp://10.0.0.1:5001").env("HIE_SERVICE_HOST", "10.0.0.1").run("check");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn what_a_route_expects_is_told_in_an_operators_words() {
    for (lines, expected) in [
        ("tls = { caa = \"x\" }", "channels.d/a.toml:7:9: unknown key `caa`; did you mean `ca`?"),
        (
            "retry = \"5s\"",
            "channels.d/a.toml:7:9: expected a table, found string \"5s\"; write { first = \"500ms\", max = \"60s\" }",
        ),
        ("in_flight = \"many\"", "channels.d/a.toml:7:13: expected a whole number from 0, found string \"many\""),
    ] {
        let said = Check::new("").file("channels.d/a.toml", &format!("{CHANNEL}{lines}\n")).refused();
        assert_eq!(said, format!("hie: {expected}\n"));
    }
    let file = CHANNEL.replace("mllp = [\"h:2575\"]", "file = \"x\"");
    let said = Check::new("").file("channels.d/a.toml", &file).refused();
    assert_eq!(said, "hie: channels.d/a.toml:6:8: expected a table, found string \"x\"; write { directory = \"/srv/out\" }\n");
    let rate = "[[client]]\nname = \"lab\"\nrate = 5\n";
    let said = Check::new("").file("clients.d/a.toml", rate).refused();
    assert!(said.contains("expected a table; write { per_second = 50, burst = 200 }"), "{said}");
}

#[test]
fn a_transport_that_cannot_work_is_told_without_its_secrets() {
    let rabbitmq =
        |rest: &str| Check::new(&format!("[transport]\nkind = \"rabbitmq\"\n{rest}")).file("password", "sesame\n").refused();
    let right = "urls = [\"amqp://a\", \"amqps://b:5671\", \"amqp://[::1]:5672\"]\npassword_file = \"password\"\n";
    let said = rabbitmq("");
    assert!(
        said.contains("transport.urls: is empty; name the brokers") && said.contains("transport.password_file: is missing"),
        "{said}"
    );
    for url in ["amqp://hie:sesame@a", "amqp://sesame@a", "amqp://a/sesame@", "amqp://a:5672/?password=sesame"] {
        let said = rabbitmq(&right.replace("amqp://a", url));
        assert!(said.contains("transport.urls: entry 1 ") && !said.contains("sesame"), "{said}");
        assert!(said.contains("transport.password_file") || said.contains("transport.vhost"), "{said}");
    }
    for (url, told) in [
        ("http://a", "write amqp:// or amqps://"),
        ("a:5672", "is no URL of a broker"),
        ("amqp://", "has no host"),
        ("amqp://a:x", "has a port"),
    ] {
        let said = rabbitmq(&right.replace("amqp://a", url));
        assert!(said.contains("hie.toml:3:8: transport.urls: entry 1") && said.contains(told), "{said}");
    }
    for (line, told) in [
        ("prefetsh = 3", "unknown key \"prefetsh\" in [transport]; did you mean \"prefetch\"?"),
        ("partitions = 0", "transport.partitions: 0 is not within 1 to 1024"),
        ("heartbeat = \"1500ms\"", "transport.heartbeat: is not in whole seconds"),
        ("inline = \"1 GiB\"", "transport.inline: 1.0 GiB is not within"),
        ("cert = \"password\"", "transport.key: and cert are given together or not at all"),
        ("ca = \"nowhere.pem\"", "transport.ca: nowhere.pem cannot be read"),
        ("user = \"\"", "transport.user: is empty"),
        ("hold = \"2days\"", "transport.hold: 2days is not within"),
    ] {
        let said = rabbitmq(&format!("{right}{line}\n"));
        assert!(said.contains(told), "{said}");
    }
    let said = rabbitmq(&right.replace("\"password\"", "\"nowhere\""));
    assert!(said.contains("transport.password_file: nowhere cannot be read"), "{said}");
    // An operator's shell has no credentials, the service does. Messages are held for less than the broker waits for them.
    let warned = |rest: &str| {
        let check = Check::new(&format!("[transport]\nkind = \"rabbitmq\"\n{rest}")).file("password", "sesame\n");
        let output = check.run("check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let said = warned(&right.replace("\"password\"", "\"credential:broker\""));
    assert!(said.contains("systemd passes no credentials on; add LoadCredential=broker:PATH to the unit"), "{said}");
    assert!(!warned(right).contains("transport.hold"));
    let said = warned(&format!("{right}hold = \"11m\"\n"));
    assert!(said.contains("transport.hold: 11m is above a third of RabbitMQ's usual consumer_timeout, 30m"), "{said}");
    let said = warned(&format!("{right}hold = \"21m\"\n[node]\npreset = \"edge\"\n"));
    assert!(said.contains("transport.hold: 21m is above a third of the preset's consumer_timeout, 1h"), "{said}");
    assert!(!warned(&format!("{right}hold = \"11m\"\n[node]\npreset = \"edge\"\n")).contains("transport.hold"));
    let said = rabbitmq(&right.replace("\"password\"", "\"credential:\""));
    assert!(said.contains("names no credential"), "{said}");
    let check =
        Check::new("").arg("--json").env("HIE_TRANSPORT__KIND", "rabbitmq").env("HIE_TRANSPORT__URLS", "amqp://a, amqp://b");
    let check = check.env("HIE_TRANSPORT__PASSWORD_FILE", "password").file("password", "sesame");
    assert!(!check.json().to_string().contains("sesame"));
    let said = Check::new("")
        .file("channels.d/a.toml", &CHANNEL.replace("name = \"a.b\"", "name = \"a.b\"\noutage = \"wait\""))
        .refused();
    assert!(said.contains("spool") && said.contains("refuse"), "{said}");
}
