//! Layers to a [`Config`]: every mistake told at once, each with its place.

use super::{
    Config, ConfigError, Origin, Origins, check,
    error::Problem,
    layer::{self, Layer},
    nearest, preset, secret, text, variables,
};
use crate::{
    channel::load::in_words,
    preset::{Machine, Tier},
};
use figment::{
    Figment,
    error::Kind,
    value::{Num, Tag, Value},
};
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Position of the file among the layers: the preset lies below it.
const FILE: usize = 1;

/// More mistakes than anyone corrects in one go.
const MAX_PROBLEMS: usize = 50;

/// A value from the command line: the highest layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as typed, for messages: `--cluster`.
    pub name: String,
    /// Dotted key that it sets: `node.cluster`.
    pub key: String,
    /// The value as typed.
    pub value: String,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The effective values; relative paths resolved.
    pub config: Config,
    /// Where each came from.
    pub origins: Origins,
    /// The file, when there is one.
    pub file: Option<PathBuf>,
    /// The preset in force.
    pub preset: Option<&'static Tier>,
    /// What works but is probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads the layers: built in < preset < `file` (else `HIE_CONFIG`) < `HIE_SECTION__KEY` in `env` < `flags`.
/// `machine` tells what the preset `auto` is chosen for; it is asked only then.
/// Without a file the node keeps everything below its store: `$XDG_STATE_HOME/hie` or `./hie-data`.
///
/// Errors: file not readable, syntax, unknown keys (naming the nearest), wrong types, values that cannot
/// work; all of them at once, except that a file that is not TOML hides what stands in it.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag],
    machine: &dyn Fn() -> Machine,
) -> Result<Loaded, ConfigError> {
    let env: Vec<_> = env.into_iter().collect();
    let variable = |name: &str| env.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| PathBuf::from(v));
    let file = file.map(Path::to_owned).or_else(|| variable("HIE_CONFIG"));
    let from_file = match &file {
        Some(path) => text::layer(&read(path)?, &path.display().to_string())?,
        None => Layer::default(),
    };
    let (from_env, mut problems, mut warnings) = variables::environment(&env, &from_file);
    let mut merged_lists = from_file.clone();
    merged_lists.values.extend(from_env.values.clone());
    let (from_flags, more) = variables::flags(flags, &merged_lists);
    problems.extend(more);

    let mut above = [from_file, from_env, from_flags];
    let wanted = preset::wanted(&above.each_ref(), machine).map_err(|e| problems.extend(e.problems)).ok().flatten();
    let layers: Vec<Layer> =
        std::iter::once(wanted.map_or_else(Layer::default, |tier| preset::layer(tier, &mut above))).chain(above).collect();
    let origins = Origins::of(&layers);
    let (config, more) = extract(layers, &origins);
    problems.extend(more);
    let Some(mut config) = config.filter(|_| problems.is_empty()) else {
        return Err(ConfigError::new(problems));
    };
    resolve(&mut config, &origins, file.as_deref(), variable("XDG_STATE_HOME"));
    let found = check::values(&config, &origins, wanted).and_files(&config, &origins);
    warnings.extend(found.warnings);
    if found.problems.is_empty() {
        Ok(Loaded { config, origins, file, preset: wanted, warnings })
    } else {
        Err(ConfigError::new(found.problems))
    }
}

/// Reads one text alone over the built-in defaults, without a preset; looks at nothing outside it. `name` is its name in messages.
pub fn parse(text: &str, name: &str) -> Result<Config, ConfigError> {
    let layers = vec![Layer::default(), text::layer(text, name)?];
    let origins = Origins::of(&layers);
    let (config, mut problems) = extract(layers, &origins);
    if let Some(config) = &config {
        problems.extend(check::values(config, &origins, None).problems);
    }
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::new(problems)),
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let place = || Origin::File { file: path.display().to_string(), line: 1, column: 1 };
    let bytes = std::fs::read(path)
        .map_err(|e| ConfigError::one(Origin::Default, format!("configuration file {} cannot be read: {e}", path.display())))?;
    String::from_utf8(bytes)
        .map_err(|e| ConfigError::one(place(), format!("is not UTF-8 (from byte {} on)", e.utf8_error().valid_up_to())))
}

/// Merges and reads the layers. On a mistake: notes it, takes the value out and goes on, so that all are told.
fn extract(mut layers: Vec<Layer>, origins: &Origins) -> (Option<Config>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut converted = BTreeSet::new();
    loop {
        let figment = layers.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
        let error = match figment.extract::<Config>() {
            Ok(config) => return (Some(config), problems),
            Err(error) => error,
        };
        let path = error.path.clone();
        if convert(&mut layers, &path, &error.kind) && converted.insert(path.clone()) {
            continue;
        }
        let mut removed = false;
        for path in alike(&layers, path, &error.kind) {
            if problems.len() < MAX_PROBLEMS {
                problems.push(problem(&layers, origins, &path, &error.kind));
            }
            for layer in &mut layers {
                removed |= layer::remove(&mut layer.values, &path);
            }
        }
        if !removed || problems.len() >= MAX_PROBLEMS {
            return (None, problems);
        }
    }
}

/// The paths with the same mistake: all unknown keys of a table at once, else the one path.
fn alike(layers: &[Layer], path: Vec<String>, kind: &Kind) -> Vec<Vec<String>> {
    let (Kind::UnknownField(_, known), Some((_, parent))) = (kind, path.split_last()) else { return vec![path] };
    let tables = layers.iter().filter_map(|layer| layer::table(&layer.values, parent));
    let keys: BTreeSet<&String> = tables.flat_map(|table| table.keys()).collect();
    let unknown = keys.into_iter().filter(|key| !known.contains(&key.as_str()));
    let paths: Vec<Vec<String>> = unknown.map(|key| [parent, std::slice::from_ref(key)].concat()).collect();
    if paths.contains(&path) { paths } else { vec![path] }
}

/// Variables and flags are text: turns one into what its key asks for, when it can be read as that.
fn convert(layers: &mut [Layer], path: &[String], kind: &Kind) -> bool {
    let Kind::InvalidType(_, expected) = kind else { return false };
    // In preset and file a type is meant as it is written.
    let Some(layer) = layers.iter_mut().skip(FILE + 1).rev().find(|l| l.places.contains_key(path)) else { return false };
    let Some(value) = layer::get_mut(&mut layer.values, path) else { return false };
    let Value::String(_, text) = &*value else { return false };
    let text = text.trim().to_owned();
    let tag = Tag::Default;
    let new = match expected.as_str() {
        "a boolean" => text.parse().ok().map(|b| Value::Bool(tag, b)),
        "a sequence" => {
            let text = text.trim_start_matches('[').trim_end_matches(']');
            let items = text.split(',').map(|item| item.trim().trim_matches('"')).filter(|item| !item.is_empty());
            Some(Value::Array(tag, items.map(layer::string).collect()))
        }
        _ => text
            .parse()
            .map(Num::U64)
            .or_else(|_| text.parse().map(Num::I64))
            .ok()
            .or_else(|| text.parse().map(Num::F64).ok())
            .map(|n| Value::Num(tag, n)),
    };
    match new {
        Some(new) => {
            *value = new;
            true
        }
        None => false,
    }
}

fn problem(layers: &[Layer], origins: &Origins, path: &[String], kind: &Kind) -> Problem {
    let place = origins.place(path);
    let shown: Vec<&str> = path.iter().map(String::as_str).collect();
    let key = shown.join(".");
    let message = match kind {
        Kind::UnknownField(word, known) => {
            let word = path.last().unwrap_or(word);
            // The key's own place, not its value's.
            let at_key = layers[FILE].keys.get(path).cloned();
            if let (None, Origin::Env(name)) = (&at_key, &place) {
                return Problem::new(place.clone(), variables::unknown_variable(OsStr::new(name)));
            }
            let section = shown[..shown.len().saturating_sub(1)].iter().filter(|p| p.parse::<usize>().is_err());
            let section = section.copied().collect::<Vec<_>>().join(".");
            return Problem::new(at_key.unwrap_or(place), nearest::unknown(word, &section, known));
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            let list = variables::LISTS.iter().any(|list| list.join(".") == key) && expected == "a sequence";
            let (expected, hint) = in_words(expected);
            let hint = if list { format!("; write [[{key}]], one such table for each") } else { hint.to_owned() };
            format!("{key}: expected {expected}, found {found}{hint}")
        }
        other => format!("{key}: {other}"),
    };
    Problem::new(place, message)
}

/// Makes paths usable: those of the file are relative to its folder, those of variables and flags to the working
/// directory; what is not given lies beside the file, or below the store when there is none.
fn resolve(config: &mut Config, origins: &Origins, file: Option<&Path>, state_home: Option<PathBuf>) {
    let folder = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let relative = |path: &mut PathBuf, key: &str| {
        if !path.as_os_str().is_empty() && matches!(origins.get(key), Origin::File { .. } | Origin::Default) {
            *path = folder.join(&path);
        }
    };
    let given = |key: &str| origins.get(key) != Origin::Default;
    match (file, state_home) {
        (None, Some(home)) if !given("node.store") => config.node.store = home.join("hie"),
        _ => relative(&mut config.node.store, "node.store"),
    }
    for (key, path) in [("node.channels", &mut config.node.channels), ("node.clients", &mut config.node.clients)] {
        if file.is_none() && !given(key) {
            *path = config.node.store.join(&path);
        } else {
            relative(path, key);
        }
    }
    if let Some(path) = &mut config.admin.token_file {
        relative(path, "admin.token_file");
    }
    let servers = config.http.tls.iter_mut().map(|tls| ("http".to_owned(), tls));
    let listeners = config.mllp.iter_mut().enumerate().filter_map(|(i, m)| Some((format!("mllp.{i}"), m.tls.as_mut()?)));
    for (section, tls) in servers.chain(listeners) {
        relative(&mut tls.cert, &format!("{section}.tls.cert"));
        relative(&mut tls.key, &format!("{section}.tls.key"));
        if let Some(ca) = &mut tls.client_ca {
            relative(ca, &format!("{section}.tls.client_ca"));
        }
    }
    let t = &mut config.transport;
    let files = [("password_file", &mut t.password_file), ("ca", &mut t.ca), ("cert", &mut t.cert), ("key", &mut t.key)];
    for (key, path) in files {
        if let Some(path) = path.as_mut().filter(|path| !secret::is_credential(path)) {
            relative(path, &format!("transport.{key}"));
        }
    }
    let p = &mut config.peers;
    for (key, path) in [("peers.secret_file", &mut p.secret_file), ("peers.ca", &mut p.ca)] {
        if let Some(path) = path.as_mut().filter(|path| !secret::is_credential(path)) {
            relative(path, key);
        }
    }
    let d = &mut config.discovery;
    if let Some(path) = d.token_file.as_mut().filter(|path| !secret::is_credential(path)) {
        relative(path, "discovery.token_file");
    }
    for (key, path) in [("discovery.ca", &mut d.ca), ("discovery.cert", &mut d.cert), ("discovery.key", &mut d.key)] {
        if let Some(path) = path {
            relative(path, key);
        }
    }
    for (i, watched) in config.file.iter_mut().enumerate() {
        relative(&mut watched.directory, &format!("file.{i}.directory"));
    }
    for (i, hook) in config.alerts.webhook.iter_mut().enumerate() {
        let key = |name: &str| format!("alerts.webhook.{i}.{name}");
        for (name, path) in [("url_file", &mut hook.url_file), ("ca", &mut hook.ca)] {
            if let Some(path) = path {
                relative(path, &key(name));
            }
        }
        for (name, value) in &mut hook.headers {
            if let Some(file) = value.strip_prefix("file:") {
                let mut path = PathBuf::from(file);
                relative(&mut path, &key(&format!("headers.{name}")));
                *value = format!("file:{}", path.display());
            }
        }
    }
    for (i, mail) in config.alerts.mail.iter_mut().enumerate() {
        for (name, path) in [("ca", &mut mail.ca), ("password_file", &mut mail.password_file)] {
            if let Some(path) = path {
                relative(path, &format!("alerts.mail.{i}.{name}"));
            }
        }
    }
}
