//! The preset layer: the keys of a tier, below everything that an operator writes.

use super::{
    ConfigError, Origin,
    layer::{Layer, string},
    variables::LISTS,
};
use crate::preset::{self, Machine, Tier};
use figment::value::{Dict, Num, Tag, Value};

/// The key that names the tier.
const KEY: [&str; 2] = ["node", "preset"];

/// The tier that the layers ask for, `layers` being in rising order of precedence. `auto` asks `machine`; an empty name
/// is none.
pub(super) fn wanted(layers: &[&Layer], machine: &dyn Fn() -> Machine) -> Result<Option<&'static Tier>, ConfigError> {
    let path: Vec<String> = KEY.map(str::to_owned).to_vec();
    for layer in layers.iter().rev() {
        let Some(Value::Dict(_, node)) = layer.values.get(KEY[0]) else { continue };
        // What is no text is told as a wrong type, with all else.
        let Some(Value::String(_, name)) = node.get(KEY[1]) else { continue };
        return match name.trim() {
            "" => Ok(None),
            "auto" => Ok(Some(preset::detect(machine()))),
            name => preset::find(name).map(Some).map_err(|unknown| {
                let place = layer.places.get(&path).cloned().unwrap_or(Origin::Default);
                ConfigError::one(place, format!("node.preset: {unknown}, and \"auto\" for the one that fits this machine"))
            }),
        };
    }
    Ok(None)
}

/// The tier's keys as a layer. Those of a list hold for each of its tables, so they are put into the tables that `above`
/// has; where no layer has any, into the one that there is by default.
pub(super) fn layer(tier: &Tier, above: &mut [Layer]) -> Layer {
    let mut layer = Layer { name: "preset".into(), ..Layer::default() };
    let origin = Origin::Preset(tier.name.clone());
    for (section, keys) in &tier.node {
        let serde_json::Value::Object(keys) = keys else { continue };
        let mut dict = Dict::new();
        let list = LISTS.contains(&[section.as_str()].as_slice());
        for (key, given) in keys {
            dict.insert(key.clone(), value(given));
            let mut path = vec![section.clone(), key.clone()];
            if list {
                path.insert(1, "0".into());
            }
            layer.places.insert(path, origin.clone());
        }
        if list {
            for upper in above.iter_mut() {
                fill(upper, section, &dict, &origin);
            }
        }
        let table = Value::Dict(Tag::Default, dict);
        let entry = if list { Value::Array(Tag::Default, vec![table]) } else { table };
        layer.values.insert(section.clone(), entry);
    }
    layer
}

/// Puts what is missing into each table of a list.
fn fill(layer: &mut Layer, list: &str, defaults: &Dict, origin: &Origin) {
    let Some(Value::Array(_, items)) = layer.values.get_mut(list) else { return };
    for (i, item) in items.iter_mut().enumerate() {
        let Value::Dict(_, table) = item else { continue };
        for (key, value) in defaults {
            if !table.contains_key(key) {
                table.insert(key.clone(), value.clone());
                layer.places.insert(vec![list.to_owned(), i.to_string(), key.clone()], origin.clone());
            }
        }
    }
}

fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::String(text) => string(text),
        serde_json::Value::Bool(b) => Value::Bool(Tag::Default, *b),
        serde_json::Value::Number(n) => match n.as_u64() {
            Some(n) => Value::Num(Tag::Default, Num::U64(n)),
            None => Value::Num(Tag::Default, Num::F64(n.as_f64().unwrap_or(f64::NAN))),
        },
        // No key of a tier is a list or null; a test reads every tier's layer.
        other => string(other.to_string()),
    }
}
