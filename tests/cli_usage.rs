//! The command line as scripts and readers of `--help` rely on it: exit codes, and examples that can be typed.

use clap::{Command as Clap, CommandFactory, Parser};
use hie::cli::Cli;
use std::process::{Command, Output, Stdio};

fn hie(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hie"));
    command.args(args).stdin(Stdio::null()).current_dir(std::env::temp_dir());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HIE_")) {
        command.env_remove(name);
    }
    command.output().expect("hie runs")
}

fn code(args: &[&str]) -> Option<i32> {
    hie(args).status.code()
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    for args in [
        &["frob"][..],
        &["run", "--frob"],
        &["run", "--log", "xml"],
        &[],
        &["tx"],
        &["try"],
        &["check", "--set", "x"],
        &["tx", "list", "--limit", "0"],
        &["tx", "list", "--text", "word"],
        &["tx", "rerun", "--url", "http://127.0.0.1:1", "--token-file", "/dev/null"],
    ] {
        assert_eq!(code(args), Some(64), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["help", "run"], &["tx", "list", "--help"]] {
        assert_eq!(code(args), Some(0), "{args:?}");
    }
}

#[test]
fn wrong_configuration_is_65() {
    assert_eq!(code(&["check", "--config", "/no/such.toml"]), Some(65));
    assert_eq!(code(&["run", "--set", "http.listn=x"]), Some(65));
    assert_eq!(code(&["try", "--set", "http.listn=x", "/dev/null"]), Some(65));
}

#[test]
fn a_node_that_is_away_is_69() {
    let dir = tempfile::tempdir().expect("a folder");
    let token = dir.path().join("token");
    std::fs::write(&token, "x").expect("a token");
    let token = token.to_str().expect("UTF-8");
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("address").port();
    let url = format!("http://127.0.0.1:{port}");
    for args in [&["status"][..], &["tx", "list"], &["route", "list"], &["channel", "list"], &["client", "list"]] {
        let output = hie(&[args, &["--url", &url, "--token-file", token]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{args:?}: {said}");
        assert!(said.contains("cannot be reached: is it running"), "{said}");
    }
    let store = dir.path().to_str().expect("UTF-8");
    let output = hie(&["status", "--store", store]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("admin-token"));
    assert_eq!(code(&["drain", "--store", store]), Some(69));
}

/// Every leaf of the tree of commands, with its path.
fn leaves(command: &Clap, path: &str, found: &mut Vec<(String, Clap)>) {
    let mut subcommands = command.get_subcommands().filter(|c| c.get_name() != "help").peekable();
    if subcommands.peek().is_none() {
        found.push((path.to_owned(), command.clone()));
    }
    for subcommand in subcommands {
        leaves(subcommand, format!("{path} {}", subcommand.get_name()).trim_start(), found);
    }
}

/// The words of a shell line, as far as examples need it: quotes, and no more.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, ' ') => words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty())),
            _ => word.push(c),
        }
    }
    words.extend(Some(word).filter(|w| !w.is_empty()));
    words
}

/// The calls of hie in a help text.
fn examples(help: &str) -> Vec<Vec<String>> {
    let joined = help.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| line.starts_with("  "));
    lines
        .filter_map(|line| {
            let words = words(line.trim());
            let start = words.iter().position(|w| w == "hie")?;
            let ends = |w: &String| matches!(w.as_str(), "|" | "<" | ">");
            Some(words[start..].iter().take_while(|w| !ends(w)).cloned().collect())
        })
        .collect()
}

#[test]
fn every_subcommand_has_help_with_an_example_that_can_be_typed() {
    Cli::command().debug_assert();
    let mut found = Vec::new();
    leaves(&Cli::command(), "", &mut found);
    let names: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    for expected in ["run", "check", "try", "send", "sink", "tx list", "tx show", "tx rerun", "route list", "status", "drain"] {
        assert!(names.contains(&expected), "{expected} is not among {names:?}");
    }
    for (path, command) in found {
        assert!(command.get_about().is_some(), "{path} does not say what it does");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{path} has no example");
        for example in examples {
            if let Err(error) = Cli::try_parse_from(&example) {
                panic!("the example {example:?} of {path} cannot be typed: {error}");
            }
        }
    }
}

#[test]
fn commands_that_print_data_print_json_too() {
    let mut found = Vec::new();
    leaves(&Cli::command(), "", &mut found);
    for (path, command) in found {
        if ["check", "try", "status", "drain"].contains(&path.as_str()) || path.ends_with(" list") || path.starts_with("tx ") {
            assert!(command.get_arguments().any(|a| a.get_long() == Some("json")), "{path} has no --json");
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hie"))
        .arg("check")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(std::env::temp_dir())
        .spawn()
        .expect("hie runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_password_is_hashed_from_standard_input() {
    use std::io::Write;
    let hash = |password: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hie"))
            .args(["client", "hash-password"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("hie runs");
        let mut stdin = child.stdin.take().expect("standard input");
        stdin.write_all(password.as_bytes()).expect("written");
        drop(stdin);
        child.wait_with_output().expect("ends")
    };
    let output = hash("correct horse\n");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && text.starts_with("$argon2id$"), "{text}");
    assert!(hie::channel::client::check_password_hash(text.trim()).is_ok());
    assert_eq!(hash("\n").status.code(), Some(64));
}
