//! The environment layer (`HIE_SECTION__KEY`) and the flag layer. Values are text until a key asks for something else.

use super::{
    Flag, Origin,
    error::Problem,
    layer::{self, Layer, MAX_DEPTH, insert, string},
    nearest::{everywhere, nearest},
};
use figment::value::{Dict, Tag, Value};
use std::ffi::{OsStr, OsString};

/// Sections that are lists of tables in the file: a variable or flag sets the only one.
pub(super) const LISTS: [&[&str]; 4] = [&["mllp"], &["file"], &["alerts", "webhook"], &["alerts", "mail"]];

/// Reads the variables of the process. Others than `HIE_*__*` are not looked at.
/// Returns the layer, mistakes, and warnings about names that look like a slip.
pub(super) fn environment(env: &[(OsString, OsString)], file: &Layer) -> (Layer, Vec<Problem>, Vec<Problem>) {
    let mut layer = Layer { name: "environment".into(), ..Layer::default() };
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let mut sorted: Vec<_> = env.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        let Some(name) = name.to_str().filter(|n| n.starts_with("HIE_")) else { continue };
        let key = name["HIE_".len()..].to_lowercase();
        let place = Origin::Env(name.to_owned());
        if !key.contains("__") {
            warnings.extend(slip(&key).map(|told| Problem::new(place, format!("is ignored{told}"))));
            continue;
        }
        match value.to_str() {
            Some(text) => set(&mut layer, &key, "__", text, place, file, &mut problems),
            None => problems.push(Problem::new(place, "is not UTF-8")),
        }
    }
    (layer, problems, warnings)
}

/// Reads the flags.
pub(super) fn flags(flags: &[Flag], file: &Layer) -> (Layer, Vec<Problem>) {
    let mut layer = Layer { name: "flags".into(), ..Layer::default() };
    let mut problems = Vec::new();
    for flag in flags {
        set(&mut layer, &flag.key, ".", &flag.value, Origin::Flag(flag.name.clone()), file, &mut problems);
    }
    (layer, problems)
}

/// `HIE_NODE_STORE` for `HIE_NODE__STORE`, and `HIE_NODE`, which names a section alone. Other names are not ours to judge:
/// Kubernetes sets `HIE_PORT` and `HIE_SERVICE_HOST` for a service called hie.
fn slip(key: &str) -> Option<String> {
    let variable = |section: &str, known: &str| format!("HIE_{}__{known}", section.replace('.', "__")).to_uppercase();
    let all = everywhere();
    if let Some((section, known)) = all.iter().find(|(section, known)| format!("{section}.{known}").replace('.', "_") == key) {
        return Some(format!("; did you mean {}?", variable(section, known)));
    }
    let below = |section: &str| section.replace('.', "_") == key || section.split('.').next() == Some(key);
    let (section, known) = all.iter().find(|(section, _)| below(section))?;
    Some(format!(": it names a section without a key; write HIE_SECTION__KEY, such as {}", variable(section, known)))
}

fn set(layer: &mut Layer, key: &str, separator: &str, text: &str, place: Origin, below: &Layer, problems: &mut Vec<Problem>) {
    let mut path: Vec<String> = key.split(separator).map(str::to_owned).collect();
    if path.len() > MAX_DEPTH {
        problems.push(Problem::new(place, "sets no known key: too many parts"));
        return;
    }
    let list = LISTS.into_iter().find(|list| path.len() > list.len() && path.iter().zip(*list).all(|(p, l)| p == l));
    if let Some(list) = list {
        let place_of: Vec<String> = list.iter().map(|part| (*part).to_owned()).collect();
        let mut others = below.values.clone();
        let others = match layer::get_mut(&mut others, &place_of) {
            Some(Value::Array(_, items)) => std::mem::take(items),
            _ => Vec::new(),
        };
        if others.len() > 1 {
            let text = format!("sets the only [[{}]], but {} has {} of them", list.join("."), below.name, others.len());
            problems.push(Problem::new(place, text));
            return;
        }
        path.insert(list.len(), "0".into());
        if layer::get_mut(&mut layer.values, &place_of).is_none() {
            let given = others.into_iter().next().unwrap_or_else(|| Value::Dict(Tag::Default, Dict::new()));
            insert(&mut layer.values, &place_of, Value::Array(Tag::Default, vec![given]));
        }
        if let Some(Value::Array(_, items)) = layer::get_mut(&mut layer.values, &place_of)
            && let Some(Value::Dict(_, dict)) = items.first_mut()
            && insert(dict, &path[list.len() + 1..], string(text))
        {
            layer.places.insert(path, place);
            return;
        }
    } else if insert(&mut layer.values, &path, string(text)) {
        layer.places.insert(path, place);
        return;
    }
    problems.push(Problem::new(place, "is below a key that another variable sets to a plain value"));
}

/// What to say of a variable that sets nothing known: the nearest one where it is near enough to be meant, else what
/// there is.
pub(super) fn unknown_variable(name: &OsStr) -> String {
    let name = name.to_string_lossy().to_uppercase();
    let rest = name.strip_prefix("HIE_").unwrap_or(&name);
    let (section, key) = rest.rsplit_once("__").unwrap_or((rest, ""));
    let variable = |section: &str, key: &str| format!("HIE_{}__{key}", section.replace('.', "__")).to_uppercase();
    let all = everywhere();
    // Section and key by themselves: a long common beginning says nothing about the rest.
    let likeness = |word: &str, known: &str| nearest(word, [known]).map_or(0.0, |(_, likeness)| likeness);
    let near = all.iter().map(|(s, k)| (variable(s, k), likeness(section, &s.replace('.', "__")).min(likeness(key, k))));
    if let Some((best, _)) = near.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, likeness)| *likeness >= 0.75) {
        return format!("sets no known key; did you mean {best}?");
    }
    let keys: Vec<String> =
        all.iter().filter(|(s, _)| s.replace('.', "__").eq_ignore_ascii_case(section)).map(|(s, k)| variable(s, k)).collect();
    if !keys.is_empty() {
        return format!("sets no known key; known are {}", keys.join(", "));
    }
    let mut sections: Vec<&str> = all.iter().map(|(s, _)| s.split('.').next().unwrap_or(s)).collect();
    sections.dedup();
    format!("sets no known key: there is no section [{}]; sections are {}", section.to_lowercase(), sections.join(", "))
}
