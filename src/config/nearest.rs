//! The nearest known key to one that is not known.

use super::{Config, Mail, ServerTls, WatchedFolder, Webhook};
use figment::value::{Dict, Value};

/// The candidate most like `word`, whatever the case of either, with its likeness from 0 to 1.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<(&'a str, f64)> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let c = candidate.to_lowercase();
            (candidate, strsim::jaro_winkler(&word, &c).max(strsim::normalized_damerau_levenshtein(&word, &c)))
        })
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// What to say about an unknown key, `known` being the keys at its place.
pub(super) fn unknown(word: &str, section: &str, known: &[&str]) -> String {
    let here = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
    let (best, likeness) = nearest(word, known.iter().copied()).unwrap_or(("", 0.0));
    if likeness < 0.8 {
        let all = everywhere();
        // The right key in the wrong section is a likelier mistake than an unlike key in this one.
        if let Some((elsewhere, 0.95..)) = nearest(word, all.iter().map(|(_, key)| key.as_str())) {
            let sections: Vec<_> = all.iter().filter(|(_, key)| key == elsewhere).map(|(s, _)| format!("[{s}]")).collect();
            return format!("unknown key \"{word}\"{here}; there is a key \"{elsewhere}\" in {}", sections.join(", "));
        }
        return format!("unknown key \"{word}\"{here}; the nearest known key is \"{best}\"; known here: {}", known.join(", "));
    }
    format!("unknown key \"{word}\"{here}; did you mean \"{best}\"?")
}

/// Every key with its section.
pub(super) fn everywhere() -> Vec<(String, String)> {
    let mut config = Config { file: vec![WatchedFolder::default()], ..Config::default() };
    config.http.tls = Some(ServerTls::default());
    config.alerts.webhook = vec![Webhook::default()];
    config.alerts.mail = vec![Mail::default()];
    let mut keys = Vec::new();
    if let Ok(Value::Dict(_, dict)) = Value::serialize(&config) {
        collect(&dict, "", &mut keys);
    }
    keys
}

fn collect(dict: &Dict, section: &str, keys: &mut Vec<(String, String)>) {
    for (key, value) in dict {
        let inner = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match value {
            Value::Dict(_, dict) => collect(dict, &inner, keys),
            Value::Array(_, items) => match items.first() {
                Some(Value::Dict(_, dict)) => collect(dict, &inner, keys),
                _ => keys.push((section.to_owned(), key.clone())),
            },
            _ => keys.push((section.to_owned(), key.clone())),
        }
    }
}
