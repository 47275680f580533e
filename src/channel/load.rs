//! Channel files: text to channels, with errors that say where and what instead.

use super::{
    Channel,
    check::{self, Place},
};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

/// A channel file that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct LoadError {
    /// As given to [`parse`].
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// What a channel file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    channel: Vec<Channel>,
}

/// Reads a channel file: TOML, any number of `[[channel]]` tables. `file` is its name, for errors.
/// Fails on the first thing that is wrong: syntax, unknown keys (names the nearest), types, values, rules.
/// What is wrong only between channels (the same name twice in several files) is found by [`super::Set::compile`].
pub fn parse(text: &str, file: &str) -> Result<Vec<Channel>, LoadError> {
    let error = |offset: usize, message: String| {
        let (line, column) = position(text, offset);
        LoadError { file: file.to_owned(), line, column, message }
    };
    let File { channel: channels } = toml::from_str(text).map_err(|e| {
        let offset = e.span().map_or(0, |span| span.start);
        error(offset, explain(e.message()))
    })?;
    let places: Places = toml::from_str(text).unwrap_or_default();
    for (index, channel) in channels.iter().enumerate() {
        if let Some(fault) = check::check(channel).into_iter().next() {
            return Err(error(places.offset(text, index, &fault.place), fault.message));
        }
        let first = channels.iter().position(|c| c.name == channel.name);
        if first != Some(index) {
            let message = format!("the name `{}` is given to two channels", channel.name);
            return Err(error(places.offset(text, index, &Place::Name), message));
        }
    }
    Ok(channels)
}

/// Line and column of each route's name, by channel and route in the order of the file; empty for what is no channel file.
pub fn route_places(text: &str) -> Vec<Vec<(usize, usize)>> {
    let places: Places = toml::from_str(text).unwrap_or_default();
    // Counted once: a file may hold thousands of routes.
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let at = |offset: usize| {
        let line = lines.partition_point(|start| *start <= offset);
        let before = text.get(lines.get(line - 1).copied().unwrap_or(0)..offset).unwrap_or("");
        (line, before.chars().count() + 1)
    };
    places.channel.iter().map(|c| c.routes.iter().map(|r| at(r.name.span().start)).collect()).collect()
}

/// The known word that a wrong one probably means; `None` when none is near. Case, `-` and `_` do not count.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            // A third of the shorter one; of two or three letters, one.
            let shorter = candidate.len().min(word.len());
            *distance <= (shorter / 3).max(usize::from(shorter > 1))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What serde expects, in an operator's words, and how to write it (empty where that is clear).
pub fn in_words(expected: &str) -> (&str, &'static str) {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a whole number from 0", ""),
        "f64" => ("a number", ""),
        "a boolean" => ("true or false", ""),
        "a sequence" => ("a list", ""),
        "a map" => ("a table", ""),
        "a duration" => (expected, "; write it with its unit, such as \"30s\" or \"24h\""),
        "an integer or string" | "parsable string" => ("a size", "; write a size such as \"64 MiB\""),
        "struct FileTarget" => ("a table", "; write { directory = \"/srv/out\" }"),
        "struct ClientTls" => ("a table", "; write { ca = \"ca.pem\" }"),
        "struct Retry" => ("a table", "; write { first = \"500ms\", max = \"60s\" }"),
        "struct Rate" => ("a table", "; write { per_second = 50, burst = 200 }"),
        _ if expected.starts_with("struct ") => ("a table", ""),
        _ => (expected, ""),
    }
}

/// `invalid type: string "x", expected u32` in an operator's words.
fn wrong_type(message: &str) -> Option<String> {
    let (what, expected) = message.trim_end().rsplit_once(", expected ")?;
    let found = what.strip_prefix("invalid type: ").or_else(|| what.strip_prefix("invalid value: "))?;
    let (expected, hint) = in_words(expected);
    Some(format!("expected {expected}, found {found}{hint}"))
}

/// Serde's error in an operator's words: an unknown key or value is named together with the nearest known one.
pub fn explain(message: &str) -> String {
    let what = match message {
        m if m.starts_with("unknown field ") => "key",
        m if m.starts_with("unknown variant ") => "value",
        m => return wrong_type(m).unwrap_or_else(|| m.trim_end().replace("missing field", "missing key")),
    };
    let mut words = message.split('`').skip(1).step_by(2);
    let Some(word) = words.next() else { return message.to_owned() };
    let known: Vec<&str> = words.collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("unknown {what} `{word}`; did you mean `{near}`?"),
        None if known.is_empty() => format!("unknown {what} `{word}`"),
        None => format!("unknown {what} `{word}`; known are {}", known.join(", ")),
    }
}

/// Line and column of a byte offset, from 1; columns in characters.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// Where things stand in the file.
#[derive(Default, Deserialize)]
struct Places {
    #[serde(default)]
    channel: Vec<ChannelPlaces>,
}

#[derive(Deserialize)]
struct ChannelPlaces {
    name: Spanned<String>,
    when: Spanned<String>,
    order: Option<Spanned<String>>,
    #[serde(default, rename = "route")]
    routes: Vec<RoutePlaces>,
}

#[derive(Deserialize)]
struct RoutePlaces {
    name: Spanned<String>,
}

impl Places {
    fn offset(&self, text: &str, index: usize, place: &Place) -> usize {
        let Some(channel) = self.channel.get(index) else { return 0 };
        match place {
            Place::Name => channel.name.span().start,
            Place::When(line, column) => inside(text, &channel.when, *line, *column),
            Place::Order(line, column) => {
                channel.order.as_ref().map_or(channel.name.span().start, |order| inside(text, order, *line, *column))
            }
            Place::Route(route) => {
                channel.routes.get(*route).unwrap_or(&RoutePlaces { name: channel.name.clone() }).name.span().start
            }
        }
    }
}

/// Where line and column of a string's value stand in the file: exactly where the value is written without escapes, else its begin.
fn inside(text: &str, value: &Spanned<String>, line: usize, column: usize) -> usize {
    let Range { start, end } = value.span();
    let written = text.get(start..end).unwrap_or("");
    let Some(begin) = written.find(value.get_ref().as_str()) else { return start };
    let before: usize = value.get_ref().split_inclusive('\n').take(line - 1).map(str::len).sum();
    let rest = &value.get_ref()[before..];
    let within: usize = rest.chars().take(column - 1).map(char::len_utf8).sum();
    start + begin + before + within
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[channel]]\nname = \"a.b\"\nwhen = 'true'\n[[channel.route]]\nname = \"r\"\nmllp = [\"h:2575\"]\n";

    fn wrong(from: &str, to: &str) -> (usize, usize, String) {
        assert!(GOOD.contains(from));
        let error = parse(&GOOD.replacen(from, to, 1), "x.toml").unwrap_err();
        assert!(error.to_string().starts_with(&format!("x.toml:{}:{}: ", error.line, error.column)));
        (error.line, error.column, error.message)
    }

    #[test]
    fn reads_channels() {
        assert_eq!(parse(GOOD, "x.toml").unwrap()[0].routes[0].mllp, ["h:2575"]);
        assert!(parse("", "x.toml").unwrap().is_empty());
    }

    #[test]
    fn routes_have_places() {
        let text = GOOD.to_owned() + "[[channel.route]]\nmllp = [\"é:1\"]\nname = \"s\"\n" + &GOOD.replace("a.b", "a.c");
        assert_eq!(route_places(&text), [vec![(5, 8), (9, 8)], vec![(14, 8)]]);
        assert!(route_places("no TOML").is_empty());
    }

    #[test]
    fn unknown_keys_and_values_name_the_nearest() {
        assert_eq!(wrong("when", "wen"), (3, 1, "unknown key `wen`; did you mean `when`?".into()));
        assert_eq!(wrong("mllp =", "timout = \"3s\"\nmllp ="), (6, 1, "unknown key `timout`; did you mean `timeout`?".into()));
        assert_eq!(wrong("[[channel]]", "[[chanel]]").2, "unknown key `chanel`; did you mean `channel`?");
        let (line, _, message) = wrong("when", "mode = \"quue\"\nwhen");
        assert_eq!((line, message.as_str()), (3, "unknown value `quue`; did you mean `queue`?"));
        assert!(wrong("when", "zzz = 1\nwhen").2.starts_with("unknown key `zzz`; known are name, when,"));
    }

    #[test]
    fn types_syntax_and_missing_keys_say_where() {
        let (line, column, message) = wrong("when", "priority = \"high\"\nwhen");
        assert_eq!((line, column), (3, 12));
        assert_eq!(message, "expected a whole number from 0, found string \"high\"");
        assert_eq!(
            wrong("mllp = [\"h:2575\"]", "file = \"out\"").2,
            "expected a table, found string \"out\"; write { directory = \"/srv/out\" }"
        );
        assert!(wrong("mllp =", "timeout = \"soon\"\nmllp =").2.contains("such as \"30s\""));
        assert_eq!(wrong("'true'", "'true").0, 3);
        assert_eq!(wrong("name = \"a.b\"\n", "").2, "missing key `name`");
        assert_eq!(wrong("when", "enabled = 3\nwhen").0, 3);
    }

    #[test]
    fn rules_say_where_in_the_file() {
        assert_eq!(
            wrong("'true'", "'protocol == \"mllp\" && clint == \"x\"'"),
            (3, 31, "unknown name `clint`; did you mean `client`?".into())
        );
        let (line, column, _) = wrong("'true'", "'''\nprotocol == \"mllp\"\n  && clint == \"x\"'''");
        assert_eq!((line, column), (5, 6));
        let (line, column, _) = wrong("when", "order = \"pateint\"\nwhen");
        assert_eq!((line, column), (3, 10));
    }

    #[test]
    fn channels_are_checked() {
        assert_eq!(wrong("\"r\"", "\"r r\"").0, 5);
        assert_eq!(wrong("\"a.b\"", "\"ab\"").0, 2);
        let twice = format!("{GOOD}{GOOD}");
        assert_eq!(parse(&twice, "x").unwrap_err().line, 8);
    }

    #[test]
    fn nearest_has_limits() {
        assert_eq!(nearest("timout", ["timeout", "retry"]), Some("timeout"));
        assert_eq!(nearest("ForwardPath", ["forward_path"]), Some("forward_path"));
        assert_eq!(nearest("Forward-Path", ["forward_path"]), Some("forward_path"));
        assert_eq!(nearest("caa", ["ca", "cert", "key"]), Some("ca"));
        assert_eq!(nearest("k", ["ca", "key"]), None);
        assert_eq!(nearest("xyz", ["abc", "timeout"]), None);
        assert_eq!(nearest("", ["a"]), None);
    }
}
