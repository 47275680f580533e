//! Where each effective value came from.

use super::{Config, layer::Layer};
use figment::value::{Dict, Num, Value};
use std::{collections::BTreeMap, fmt};

/// The place of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    Default,
    /// The preset of this name.
    Preset(String),
    /// A configuration file; line and column from 1.
    File {
        /// The file as it was named.
        file: String,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One line of the table that `hie check` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Key: `http.listen`, `mllp.0.name`.
    pub key: String,
    /// The effective value, as it would be written in the file; empty when there is none.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Origins of the values that were given; everything else is built in.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    given: BTreeMap<Vec<String>, Origin>,
}

impl Origins {
    /// Of the layers in rising order of precedence.
    pub(super) fn of(layers: &[Layer]) -> Self {
        let mut given = BTreeMap::new();
        for layer in layers {
            given.extend(layer.places.iter().map(|(path, origin)| (path.clone(), origin.clone())));
        }
        Self { given }
    }

    /// Origin of the value at a dotted key, such as `mllp.0.listen`.
    pub fn get(&self, key: &str) -> Origin {
        self.at(&key.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    /// Where a mistake at a dotted key stands: the value's place, else the closest one that was given.
    pub fn place_of(&self, key: &str) -> Origin {
        self.place(&key.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    fn at(&self, path: &[String]) -> Origin {
        self.given.get(path).cloned().unwrap_or(Origin::Default)
    }

    /// Where a mistake at a path stands: the value's place, else anything given below it, else the closest table above.
    pub(super) fn place(&self, path: &[String]) -> Origin {
        let below = || self.given.range(path.to_vec()..).next().filter(|(p, _)| p.starts_with(path)).map(|(_, o)| o);
        let above = || (1..path.len()).rev().find_map(|n| self.given.get(&path[..n]));
        self.given.get(path).or_else(below).or_else(above).cloned().unwrap_or(Origin::Default)
    }

    /// Every effective value with its origin, in the order of the sections' names.
    pub fn rows(&self, config: &Config) -> Vec<Row> {
        let mut rows = Vec::new();
        // A Config holds nothing that serde cannot represent; were it otherwise the table would be empty.
        if let Ok(Value::Dict(_, dict)) = Value::serialize(config) {
            self.collect(&dict, &mut Vec::new(), &mut rows);
        }
        rows
    }

    fn collect(&self, dict: &Dict, path: &mut Vec<String>, rows: &mut Vec<Row>) {
        for (key, value) in dict {
            path.push(key.clone());
            match value {
                Value::Dict(_, inner) => self.collect(inner, path, rows),
                Value::Array(_, items) if items.iter().any(|v| matches!(v, Value::Dict(..))) => {
                    for (i, item) in items.iter().enumerate() {
                        if let Value::Dict(_, inner) = item {
                            path.push(i.to_string());
                            self.collect(inner, path, rows);
                            path.pop();
                        }
                    }
                }
                _ => rows.push(Row { key: path.join("."), value: show(value), origin: self.at(path) }),
            }
            path.pop();
        }
    }
}

/// A scalar or a list of scalars as text.
fn show(value: &Value) -> String {
    match value {
        Value::String(_, s) => s.clone(),
        Value::Char(_, c) => c.to_string(),
        Value::Bool(_, b) => b.to_string(),
        Value::Num(_, n) => {
            // The library's conversions leave out numbers of the machine's own width.
            let own = match n {
                Num::USize(n) => Some(n.to_string()),
                Num::ISize(n) => Some(n.to_string()),
                _ => n.to_u128().map(|n| n.to_string()).or_else(|| n.to_i128().map(|n| n.to_string())),
            };
            own.or_else(|| n.to_f64().map(|n| n.to_string())).unwrap_or_default()
        }
        Value::Empty(..) => String::new(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        Value::Dict(..) => "{…}".into(),
    }
}
