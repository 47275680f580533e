//! `hie preset show`: every value of a tier.

use super::{Failure, named, output};
use clap::Args;
use serde_json::Value;

/// Show every value of a preset
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hie preset show small-clinic
  hie preset show auto --json | jq .node.feed

Keys below `node` are those of hie.toml; each can be set there, in the environment or by --set, above the preset.")]
pub struct ShowArgs {
    /// Name of the preset, or auto for the one that fits this machine
    #[arg(value_name = "PRESET")]
    preset: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn main(args: &ShowArgs) -> Result<(), Failure> {
    let tier = named(&args.preset)?;
    if args.json {
        return output::json(tier);
    }
    let mut table = output::table(["KEY", "VALUE"]);
    let value = serde_json::to_value(tier).map_err(|e| Failure::bug(format!("no JSON: {e}")))?;
    let mut rows = Vec::new();
    flatten("", &value, &mut rows);
    for row in rows {
        table.add_row(row);
    }
    output::print_table(&table)
}

/// Dotted keys and their values; ranges on one line.
fn flatten(key: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
    match value {
        Value::Object(fields) => match (fields.len(), fields.get("min"), fields.get("max")) {
            (2, Some(min), Some(max)) => rows.push([key.to_owned(), format!("{min} to {max}")]),
            _ => {
                for (name, value) in fields {
                    let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                    flatten(&inner, value, rows);
                }
            }
        },
        Value::String(text) => rows.push([key.to_owned(), text.clone()]),
        other => rows.push([key.to_owned(), other.to_string()]),
    }
}
