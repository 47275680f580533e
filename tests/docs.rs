//! Keeps `docs/configuration.md` true: every key that the program knows is in it, under its section, and none that it
//! does not know. The program's own "unknown key" error tells which it knows.

mod harness;

use hie::{channel, config};
use serde::de::DeserializeOwned;

/// The keys of a section's type.
fn keys<T: DeserializeOwned>() -> Vec<String> {
    let Err(error) = toml::from_str::<T>("no-such-key = 1") else { panic!("unknown keys are taken") };
    let text = error.to_string();
    let (_, list) = text.split_once("expected").unwrap_or_else(|| panic!("no list of keys: {text}"));
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The first column of the tables below a heading.
fn documented(text: &str, heading: &str) -> Vec<String> {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading:?} in docs/configuration.md"));
    let table = rest.lines().skip_while(|l| !l.starts_with("| `")).take_while(|l| l.starts_with("| `"));
    table.filter_map(|l| l.split('`').nth(1)).map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented() {
    let text = include_str!("../docs/configuration.md");
    let admin = |section: &str, keys: Vec<String>| keys.iter().map(|k| format!("{section}.{k}")).collect::<Vec<_>>();
    let sections: Vec<(&str, Vec<String>)> = vec![
        ("## `[node]`", keys::<config::Node>()),
        ("## `[http]`", keys::<config::Http>()),
        ("## `[[mllp]]`", keys::<config::Mllp>()),
        ("## `[[file]]`", keys::<config::WatchedFolder>()),
        ("## `tls` of a listener", keys::<config::ServerTls>()),
        ("## `[admin]`", [admin("admin", keys::<config::Admin>()), admin("health", keys::<config::Health>())].concat()),
        ("## `[feed]`", keys::<config::Feed>()),
        ("## `[discovery]`", keys::<config::Discovery>()),
        ("## `[ledger]`", keys::<config::Ledger>()),
        ("## `[limits]`", keys::<config::Limits>()),
        ("## `[transport]`", keys::<config::Transport>()),
        ("## `[alerts]`", keys::<config::Alerts>()),
        ("| key of `[[alerts.webhook]]`", keys::<config::Webhook>()),
        ("| key of `[[alerts.mail]]`", keys::<config::Mail>()),
        ("| key of `[[channel]]`", keys::<channel::Channel>()),
        ("| key of `[[channel.route]]`", keys::<channel::Route>()),
        ("| key of `[[client]]`", keys::<channel::Client>()),
    ];
    for (heading, mut known) in sections {
        let mut told = documented(text, heading);
        known.sort();
        told.sort();
        assert_eq!(told, known, "{heading}: documented (left) and known (right)");
    }
}

/// What the README tells a newcomer to type is what the command line takes.
#[test]
fn the_readme_names_subcommands_that_exist() {
    let text = include_str!("../README.md");
    let called = text.lines().filter_map(|l| l.trim().strip_prefix("hie ")).map(|l| l.split_whitespace().next().unwrap_or(""));
    let mut seen = 0;
    for name in called {
        let told = std::process::Command::new(env!("CARGO_BIN_EXE_hie")).args([name, "--help"]).output().expect("hie runs");
        assert!(told.status.success(), "hie {name} --help: {}", String::from_utf8_lossy(&told.stderr));
        seen += 1;
    }
    assert!(seen >= 5, "the README shows the walk-through");
}

/// Every metric that the operations guide names is registered somewhere. (A family without a series yet is not in the answer
/// of a fresh node, so the sources are asked.)
#[test]
fn the_metrics_that_operators_are_told_of_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/telemetry");
    let sources: String =
        harness::corpus::files(&root, "rs").iter().map(|(_, b)| String::from_utf8_lossy(b).into_owned()).collect();
    let text = include_str!("../docs/operations.md");
    let named: Vec<_> = text.split('`').filter(|w| w.starts_with("hie_")).map(|w| w.split('{').next().unwrap_or(w)).collect();
    assert!(named.len() > 5);
    for name in named {
        let base = name.trim_start_matches("hie_").trim_end_matches("_total");
        assert!(
            sources.contains(&format!("\"{base}\"")) || sources.contains(&format!("\"{name}\"")),
            "{name} is registered nowhere"
        );
    }
}
