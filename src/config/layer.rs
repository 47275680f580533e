//! One layer of the configuration: its values and where each stands.

use super::Origin;
use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Tag, Value},
};
use std::collections::BTreeMap;

/// Deeper than any key goes; what is deeper is a mistake, and recursion must end.
pub(super) const MAX_DEPTH: usize = 8;

/// Values of one source.
#[derive(Clone, Default)]
pub(super) struct Layer {
    /// Name of the source.
    pub name: String,
    /// The values, nested as in the file.
    pub values: Dict,
    /// Place of each value, by path.
    pub places: BTreeMap<Vec<String>, Origin>,
    /// Place of each key, by path, where it differs from the value's.
    pub keys: BTreeMap<Vec<String>, Origin>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// A string as a value without a source.
pub(super) fn string(text: impl Into<String>) -> Value {
    Value::String(Tag::Default, text.into())
}

/// Puts `value` at `path`, making tables on the way. False when something else than a table is in the way.
pub(super) fn insert(dict: &mut Dict, path: &[String], value: Value) -> bool {
    match path {
        [] => false,
        [last] => {
            dict.insert(last.clone(), value);
            true
        }
        [first, rest @ ..] => match dict.entry(first.clone()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new())) {
            Value::Dict(_, inner) => insert(inner, rest, value),
            _ => false,
        },
    }
}

/// The value at a path; numbers in it are positions in lists.
pub(super) fn get_mut<'a>(dict: &'a mut Dict, path: &[String]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(dict.get_mut(first)?, |value, key| match value {
        Value::Dict(_, inner) => inner.get_mut(key),
        Value::Array(_, items) => items.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The table at a path.
pub(super) fn table<'a>(dict: &'a Dict, path: &[String]) -> Option<&'a Dict> {
    let Some((first, rest)) = path.split_first() else { return Some(dict) };
    let found = rest.iter().try_fold(dict.get(first)?, |value, key| match value {
        Value::Dict(_, inner) => inner.get(key),
        Value::Array(_, items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    });
    match found? {
        Value::Dict(_, inner) => Some(inner),
        _ => None,
    }
}

/// Removes the value at a path, or the closest value above it that is held by a table (a list loses no single
/// item: the positions of the others would shift). False when nothing was there.
pub(super) fn remove(dict: &mut Dict, path: &[String]) -> bool {
    for n in (1..=path.len()).rev() {
        let (parent, key) = (&path[..n - 1], &path[n - 1]);
        let removed = match parent {
            [] => dict.remove(key).is_some(),
            _ => match get_mut(dict, parent) {
                Some(Value::Dict(_, inner)) => inner.remove(key).is_some(),
                _ => false,
            },
        };
        if removed {
            return true;
        }
    }
    false
}
