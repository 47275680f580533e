//! The file layer: TOML with the place of every key and value.

use super::{
    ConfigError, Origin,
    error::Problem,
    layer::{Layer, MAX_DEPTH},
};
use figment::value::{Dict, Num, Tag, Value};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// Larger than any sensible configuration.
const MAX_BYTES: usize = 1 << 20;

/// Reads the text of a configuration file. `name` is the file's name in messages.
pub(super) fn layer(text: &str, name: &str) -> Result<Layer, ConfigError> {
    let places = Places::new(text, name);
    let start = places.at(0);
    if text.len() > MAX_BYTES {
        return Err(ConfigError::one(start, format!("larger than {MAX_BYTES} bytes: not a configuration file")));
    }
    let table = DeTable::parse(text).map_err(|e| {
        let place = places.at(e.span().unwrap_or(Range { start: 0, end: 0 }).start);
        ConfigError::one(place, e.message().replace('\n', ", "))
    })?;
    let mut reader = Reader { places, layer: Layer { name: name.to_owned(), ..Layer::default() }, problems: vec![] };
    reader.layer.values = reader.table(table.get_ref(), &mut Vec::new());
    if reader.problems.is_empty() { Ok(reader.layer) } else { Err(ConfigError::new(reader.problems)) }
}

struct Places<'a> {
    text: &'a str,
    name: &'a str,
    /// Offset of each line's first byte.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    fn new(text: &'a str, name: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { text, name, lines }
    }

    fn at(&self, offset: usize) -> Origin {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Origin::File { file: self.name.to_owned(), line, column }
    }
}

struct Reader<'a> {
    places: Places<'a>,
    layer: Layer,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &mut Vec<String>) -> Dict {
        let mut dict = Dict::new();
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.layer.keys.insert(path.clone(), self.places.at(key.span().start));
            let value = self.value(value.get_ref(), value.span(), path);
            dict.insert(key.get_ref().to_string(), value);
            path.pop();
        }
        dict
    }

    fn value(&mut self, value: &DeValue<'_>, span: Range<usize>, path: &mut Vec<String>) -> Value {
        let place = self.places.at(span.start);
        self.layer.places.insert(path.clone(), place.clone());
        let tag = Tag::Default;
        if path.len() > MAX_DEPTH {
            self.problems.push(Problem::new(place, "nested too deeply"));
            return Value::Bool(tag, false);
        }
        match value {
            DeValue::String(s) => Value::String(tag, s.to_string()),
            DeValue::Boolean(b) => Value::Bool(tag, *b),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Value::Num(tag, u64::try_from(n).map_or(Num::I64(n), Num::U64)),
                Err(_) => {
                    self.problems.push(Problem::new(place, format!("the number {n} is out of range")));
                    Value::Bool(tag, false)
                }
            },
            DeValue::Float(n) => Value::Num(tag, Num::F64(n.as_str().parse().unwrap_or(f64::NAN))),
            DeValue::Datetime(t) => Value::String(tag, t.to_string()),
            DeValue::Array(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    path.push(i.to_string());
                    list.push(self.value(item.get_ref(), item.span(), path));
                    path.pop();
                }
                Value::Array(tag, list)
            }
            DeValue::Table(table) => Value::Dict(tag, self.table(table, path)),
        }
    }
}
