//! What commands print on standard output.

use super::exit::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use std::io::{ErrorKind, IsTerminal, Write};

/// Prints a text and a line end. A reader that has seen enough (`hie tx list | head`) is no failure.
pub(super) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::failed(format!("cannot write the output: {e}"))),
        _ => Ok(()),
    }
}

/// Tells, on standard error, what people should know of what is printed.
pub(super) fn warn(text: &str) {
    eprintln!("hie: {}", clean(text));
}

/// Prints a value as JSON for programs.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(serde_json::to_string_pretty(value).map_err(|e| Failure::bug(format!("no JSON: {e}")))?)
}

/// An empty table with these headings, as wide as the terminal (or as its content, in a pipe).
pub(super) fn table<const N: usize>(headings: [&str; N]) -> Table {
    table_of(&headings)
}

/// As [`table`], where their number is not fixed.
pub(super) fn table_of(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// Prints a table without the blanks at the ends of its lines.
pub(super) fn print_table(table: &Table) -> Result<(), Failure> {
    print(table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n"))
}

/// A field of a JSON answer as text; empty when it is not there.
pub(super) fn text(value: &serde_json::Value, path: &[&str]) -> String {
    match path.iter().try_fold(value, |value, key| value.get(key)) {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => clean(text),
        Some(other) => other.to_string(),
    }
}

/// Control characters must not reach the terminal: parts of messages are shown here.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
