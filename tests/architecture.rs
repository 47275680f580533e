//! The shape of the house: who may import whom, who may use which library, how long a file may be, and where unsafe
//! code may stand. The checker itself is tested on snippets that break the rules.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use syn::{ItemUse, UseTree, visit::Visit};

/// Modules that each part may import, besides itself. A longer path wins over a shorter one.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("message", &[]),
    // A rule without a value is counted.
    ("channel", &["message", "telemetry/rule"]),
    ("preset", &[]),
    ("engine", &["channel", "message", "telemetry", "config"]),
    ("transport", &["engine", "channel", "message", "telemetry", "config"]),
    ("ledger", &["engine", "channel", "message", "telemetry", "config"]),
    ("gateway", &["engine", "channel", "message", "telemetry", "config"]),
    ("gateway/inbound", &["engine", "channel", "message", "telemetry", "config"]),
    ("gateway/outbound", &["engine", "channel", "message", "telemetry", "config"]),
    // The agent's client; who is named and what is done with channels comes from app.
    ("discovery", &["telemetry", "config"]),
    // How nodes of a domain ask each other; what they hand over comes from app.
    ("peer", &["config"]),
    // Named by its receivers, and read by the management API.
    ("alert", &["telemetry", "config"]),
    ("gateway/outbound/notify", &["alert", "gateway/outbound/tls", "channel", "config", "telemetry/alert"]),
    // The thresholds of the capacity guide are preset's.
    (
        "admin",
        &["alert", "peer", "gateway", "transport", "ledger", "engine", "channel", "message", "telemetry", "config", "preset"],
    ),
    // Events name the engine's values.
    ("telemetry", &["engine/fact", "engine/ports", "channel", "message"]),
    // A preset is the layer below the file.
    ("config", &["channel", "message/hl7/charset", "preset"]),
    // Its clock is the engine's.
    ("host", &["telemetry", "engine/ports"]),
    (
        "app",
        &[
            "admin",
            "alert",
            "discovery",
            "peer",
            "gateway",
            "transport",
            "ledger",
            "engine",
            "channel",
            "message",
            "telemetry",
            "config",
            "host",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "admin",
            "discovery",
            "gateway",
            "ledger",
            "engine",
            "channel",
            "message",
            "telemetry",
            "config",
            "host",
            "preset",
        ],
    ),
];

/// Libraries that belong to some parts only.
const BELONGS_TO: &[(&str, &[&str])] = &[
    ("rusqlite", &["ledger"]),
    ("lapin", &["transport/rabbitmq"]),
    ("async_rs", &["transport/rabbitmq"]),
    ("futures_io", &["transport/rabbitmq"]),
    ("reqwest", &["gateway/outbound", "discovery", "peer", "cli"]),
    ("ring", &["peer"]),
    ("lettre", &["gateway/outbound/notify"]),
    ("nix", &["host"]),
    ("rustix", &["host"]),
    ("sd_notify", &["host"]),
    ("socket2", &["host", "gateway", "admin", "cli"]),
    ("tracing_journald", &["host"]),
    ("tracing_subscriber", &["host"]),
    ("figment", &["config"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("comfy_table", &["cli"]),
    ("axum", &["admin"]),
    ("utoipa", &["admin"]),
    ("hyper", &["gateway", "admin", "cli"]),
    ("hyper_util", &["gateway", "admin", "cli"]),
    // Thousands of readers on one poll.
    ("mio", &["admin"]),
    ("httparse", &["admin"]),
    ("governor", &["engine"]),
    ("cel", &["channel"]),
    ("prometheus_client", &["telemetry"]),
];

/// What pure parts do without: text in, values out.
const PURE: &[&str] = &["message", "channel", "preset"];
const NOT_PURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "std::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
    "std::env",
    "tracing",
];

/// The one file that has a reason for unsafe code, written in it.
const UNSAFE: &[&str] = &["host/listeners/inherited.rs"];

const MOST_LINES: usize = 600;

/// Everything that a file does against the rules. `path` is relative to src/.
fn offences(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES {
        found.push(format!("has {lines} lines, more than {MOST_LINES}"));
    }
    let file = match syn::parse_file(text) {
        Ok(file) => file,
        Err(error) => return vec![format!("cannot be parsed: {error}")],
    };
    let mut seen = Seen { module: module(path), ..Seen::default() };
    seen.visit_file(&file);
    if seen.unsafe_code && !UNSAFE.contains(&path) {
        found.push("has unsafe code".into());
    }
    let part = path.strip_suffix(".rs").unwrap_or(path);
    let within = |name: &str| part == name || part.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    let rule = MAY_IMPORT.iter().filter(|(name, _)| within(name)).max_by_key(|(name, _)| name.len());
    for used in &seen.paths {
        let Some((first, rest)) = used.split_first() else { continue };
        if first == "crate" {
            let target = rest.join("/");
            if let Some((own, allowed)) = rule.filter(|_| !rest.is_empty()) {
                let inside = |part: &str| target == part || target.strip_prefix(part).is_some_and(|r| r.starts_with('/'));
                if !inside(own) && !allowed.iter().any(|part| inside(part)) {
                    found.push(format!("imports crate::{}", rest.join("::")));
                }
            }
            continue;
        }
        if let Some((library, parts)) = BELONGS_TO.iter().find(|(library, _)| library == first)
            && !parts.iter().any(|part| within(part))
        {
            found.push(format!("uses {library}, which belongs to {}", parts.join(", ")));
        }
        if PURE.iter().any(|part| within(part)) {
            let full = used.join("::");
            if let Some(what) = NOT_PURE.iter().find(|what| full == **what || full.starts_with(&format!("{what}::"))) {
                found.push(format!("uses {what}, and is to be pure"));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The module that a file is: `ledger/log.rs` is `ledger::log`, `ledger/mod.rs` is `ledger`.
fn module(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Paths that a file uses, from the crate's root (`crate::…`) or another crate's, outside `#[cfg(test)]`.
#[derive(Default)]
struct Seen {
    module: Vec<String>,
    paths: Vec<Vec<String>>,
    unsafe_code: bool,
}

impl Seen {
    fn add(&mut self, mut path: Vec<String>) {
        match path.first().map(String::as_str) {
            Some("hie") => path[0] = "crate".into(),
            Some("self") => self.relative(&mut path, 0),
            Some("super") => {
                let ups = path.iter().take_while(|p| *p == "super").count();
                self.relative(&mut path, ups);
            }
            _ => {}
        }
        self.paths.push(path);
    }

    fn relative(&self, path: &mut Vec<String>, ups: usize) {
        let rest = path.split_off(ups.max(1));
        let stay = self.module.len().saturating_sub(ups);
        *path = std::iter::once("crate".to_owned()).chain(self.module[..stay].iter().cloned()).chain(rest).collect();
    }

    fn tree(&mut self, tree: &UseTree, mut prefix: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(&path.tree, prefix);
            }
            UseTree::Name(name) if name.ident == "self" => self.add(prefix),
            UseTree::Name(name) => {
                prefix.push(name.ident.to_string());
                self.add(prefix);
            }
            UseTree::Rename(rename) => {
                prefix.push(rename.ident.to_string());
                self.add(prefix);
            }
            UseTree::Glob(_) => self.add(prefix),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, prefix.clone());
                }
            }
        }
    }
}

fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|argument| argument.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Seen {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            self.module.push(item.ident.to_string());
            syn::visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !for_tests(&item.attrs) {
            self.tree(&item.tree, Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.add(path.segments.iter().map(|s| s.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        // What stands in a macro is no syntax tree: its paths are found as words.
        let words = item.tokens.to_string().replace(' ', "");
        for (at, _) in words.match_indices("crate::") {
            let path = words[at..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next().unwrap_or("");
            self.add(path.split("::").filter(|p| !p.is_empty()).map(str::to_owned).collect());
        }
        syn::visit::visit_macro(self, item);
    }

    fn visit_expr_unsafe(&mut self, item: &'ast syn::ExprUnsafe) {
        self.unsafe_code = true;
        syn::visit::visit_expr_unsafe(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.unsafe_code |= item.unsafety.is_some();
        syn::visit::visit_item_impl(self, item);
    }

    fn visit_signature(&mut self, item: &'ast syn::Signature) {
        self.unsafe_code |= item.unsafety.is_some();
        syn::visit::visit_signature(self, item);
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_source_keeps_to_the_shape_of_the_house() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "only {} sources found", files.len());
    let mut told = String::new();
    for file in files {
        let path = file.strip_prefix(&root).expect("below src").to_str().expect("UTF-8").to_owned();
        // Test modules in files of their own may use what they like.
        if path.ends_with("/tests.rs") || path.contains("/tests/") {
            continue;
        }
        for offence in offences(&path, &fs::read_to_string(&file).expect("a source")) {
            let _ = writeln!(told, "src/{path} {offence}");
        }
    }
    assert!(told.is_empty(), "\n{told}");
}

#[test]
fn the_checker_finds_what_is_forbidden() {
    for (path, text, expected) in [
        ("message/hl7.rs", "use crate::channel::Channel;", "imports crate::channel::Channel"),
        ("message/hl7.rs", "use super::super::engine;", "imports crate::engine"),
        ("message/mod.rs", "fn f() { crate::engine::x() }", "imports crate::engine::x"),
        ("message/hl7.rs", "fn f() { std::fs::read(\"x\"); }", "uses std::fs, and is to be pure"),
        ("channel/mod.rs", "use {std::{fs::File, io}, tokio as t};", "uses tokio, and is to be pure"),
        ("ledger/log.rs", "use crate::gateway::outbound;", "imports crate::gateway::outbound"),
        ("gateway/inbound/http.rs", "use crate::{gateway::outbound::x, engine};", "imports crate::gateway::outbound::x"),
        ("gateway/outbound/http.rs", "fn f() -> super::super::inbound::X {}", "imports crate::gateway::inbound::X"),
        ("engine/accept.rs", "use crate::ledger::Log;", "imports crate::ledger::Log"),
        ("engine/accept.rs", "use rusqlite::Connection;", "uses rusqlite, which belongs to ledger"),
        ("engine/accept.rs", "mod inner { use nix::unistd; }", "uses nix, which belongs to host"),
        ("engine/accept.rs", "fn f() { let _ = figment::Figment::new(); }", "uses figment, which belongs to config"),
        (
            "gateway/inbound/http.rs",
            "use reqwest::Client;",
            "uses reqwest, which belongs to gateway/outbound, discovery, peer, cli",
        ),
        ("host/lock.rs", "use crate::config::Config;", "imports crate::config::Config"),
        ("telemetry/host.rs", "use crate::engine::accept;", "imports crate::engine::accept"),
        ("engine/accept.rs", "fn f() { tokio::select! { _ = crate::ledger::x() => {} } }", "imports crate::ledger::x"),
        ("host/lock.rs", "fn f() { unsafe { g() } }", "has unsafe code"),
        ("host/lock.rs", "unsafe impl Send for X {}", "has unsafe code"),
        ("host/lock.rs", "fn {", "cannot be parsed"),
        ("host/lock.rs", &"\n".repeat(601), "has 601 lines, more than 600"),
    ] {
        let found = offences(path, text);
        assert!(found.iter().any(|offence| offence.starts_with(expected)), "{path}: {text:?} gave {found:?}");
    }
}

#[test]
fn the_checker_lets_pass_what_is_allowed() {
    for (path, text) in [
        ("message/hl7.rs", "use super::Envelope; use std::{fmt, net::SocketAddr}; #[cfg(test)] mod tests { use tokio::time; }"),
        ("channel/mod.rs", "use crate::message::Envelope;"),
        ("ledger/log.rs", "use crate::{engine::ports::Log, ledger::x}; use rusqlite::Connection; use super::catalog;"),
        ("gateway/outbound/http/mod.rs", "use reqwest::Client; use super::balance; use crate::gateway::outbound::tls;"),
        ("app.rs", "use crate::{ledger, gateway, admin, transport};"),
        ("cli/run.rs", "use crate::app; use clap::Args;"),
        ("lib.rs", "pub mod cli;"),
        ("host/lock.rs", &"\n".repeat(600)),
    ] {
        assert_eq!(offences(path, text), Vec::<String>::new(), "{path}: {text:?}");
    }
}
