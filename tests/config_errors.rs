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
