//! What strace saw, read: which write held which message, which fsync completed when, which acknowledgment left.
//!
//! A trace is taken with `strace -f -yy -s 70000 -e trace=…`; a line is one call or, where another thread's call came
//! between, its beginning (`<unfinished ...>`) and its end (`<... resumed>`). The lines' order is the order of events.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// One call, with the lines on which it began and ended.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// The path, or `TCP:[from->to]`, of its descriptor.
    pub target: String,
    /// The arguments as printed.
    pub text: String,
    pub begin: usize,
    pub end: usize,
    /// It returned 0 or more.
    pub ok: bool,
}

/// Reads a trace; calls in the order of their beginning. Calls that never returned have `end == usize::MAX`.
pub fn read(path: &Path) -> Vec<Call> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(BufReader::new(file))
}

pub fn parse(mut from: impl BufRead) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: HashMap<String, usize> = HashMap::new();
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        if from.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let Some((pid, rest)) = text.trim_end().split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            if let Some(index) = open.remove(pid) {
                calls[index].end = number;
                calls[index].ok = succeeded(resumed);
            }
            continue;
        }
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let unfinished = arguments.ends_with("<unfinished ...>");
        if unfinished {
            open.insert(pid.to_owned(), calls.len());
        }
        calls.push(Call {
            name: name.to_owned(),
            target: target(arguments),
            text: arguments.to_owned(),
            begin: number,
            end: if unfinished { usize::MAX } else { number },
            ok: !unfinished && succeeded(arguments),
        });
    }
    calls
}

/// `12</srv/log-wal>, …` gives `/srv/log-wal`; `9<TCP:[a->b]>, …` gives `TCP:[a->b]`.
fn target(arguments: &str) -> String {
    let end = if arguments.contains("<TCP") { "]>" } else { ">" };
    let inside = arguments.split_once('<').map_or("", |(_, rest)| rest);
    match inside.find(end) {
        Some(at) if end == "]>" => inside[..=at].to_owned(),
        Some(at) => inside[..at].to_owned(),
        None => String::new(),
    }
}

fn succeeded(text: &str) -> bool {
    text.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-') && !result.starts_with('?'))
}

/// Where each message was written, made durable and acknowledged.
pub struct Story {
    /// Per token: (file, end of write) of each write that held it, in order.
    writes: HashMap<String, Vec<(String, usize)>>,
    /// Per file: (begin, end) of each fsync or fdatasync that succeeded.
    syncs: HashMap<String, Vec<(usize, usize)>>,
}

impl Story {
    /// `tokens` are looked for in every write to a file below `store`.
    pub fn new(calls: &[Call], store: &Path, tokens: &[String]) -> Self {
        let store = store.to_string_lossy().into_owned();
        let length = tokens.first().map_or(0, String::len);
        let wanted: std::collections::HashSet<&str> = tokens.iter().map(String::as_str).collect();
        let mut story = Self { writes: HashMap::new(), syncs: HashMap::new() };
        for call in calls.iter().filter(|c| c.target.starts_with(&store)) {
            match call.name.as_str() {
                "fsync" | "fdatasync" if call.ok => {
                    story.syncs.entry(call.target.clone()).or_default().push((call.begin, call.end));
                }
                "pwrite64" | "pwritev" | "pwritev2" | "write" | "writev" => {
                    for token in found(&call.text, length, &wanted) {
                        story.writes.entry(token.to_owned()).or_default().push((call.target.clone(), call.end));
                    }
                }
                _ => {}
            }
        }
        story
    }

    /// The files below the store whose name begins so and into which a token was written.
    pub fn files<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = &'s str> {
        let all: std::collections::BTreeSet<&str> = self.writes.values().flatten().map(|(file, _)| file.as_str()).collect();
        // The write-ahead log and what it is copied into are one.
        let bare: std::collections::BTreeSet<&str> = all.into_iter().map(|f| f.trim_end_matches("-wal")).collect();
        bare.into_iter().filter(move |f| f.rsplit('/').next().is_some_and(|name| name.starts_with(prefix)))
    }

    /// Was what `token` marks on stable storage when a call began at `line`? Some write that held it came before an fsync of
    /// that very file which completed before `line`. (The page may be written once more with a later commit.)
    pub fn durable_before(&self, token: &str, line: usize) -> Result<(), String> {
        let writes = self.writes.get(token).map_or(&[][..], Vec::as_slice);
        let mut why = "no write into the store held it before".to_owned();
        for (file, written) in writes.iter().filter(|(_, end)| *end < line) {
            let synced = self.syncs.get(file).is_some_and(|all| all.iter().any(|(b, e)| b > written && *e < line));
            if synced {
                return Ok(());
            }
            let name = file.rsplit('/').next().unwrap_or(file);
            why = format!("written into {name} (line {written}), no fsync of it completed before line {line}");
        }
        Err(why)
    }
}

/// The tokens in a text: words of that length made of letters and digits, surrounded by `=`.
fn found<'t>(text: &'t str, length: usize, wanted: &std::collections::HashSet<&str>) -> Vec<&'t str> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("==") {
        rest = &rest[at + 2..];
        if let Some(word) = rest.get(..length)
            && wanted.contains(word)
            && rest[length..].starts_with("==")
        {
            all.push(word);
        }
    }
    all
}
