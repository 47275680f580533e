//! The folder of channel files, `channels.d/*.toml`, read in the order of their names; and the channels that a domain's nodes share.

use super::clients::toml_files;
use crate::channel::{
    Channel, Route, Set,
    load::{self, LoadError},
};
use std::{collections::BTreeMap, path::Path};

/// Larger than any sensible channel file.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Channels, and where their routes stand.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    /// In the order of the files and of their lines.
    pub list: Vec<Channel>,
    /// `file:line:column` by names of channel and route.
    places: BTreeMap<(String, String), String>,
}

impl Channels {
    /// The channels of one text; `name` is its name in messages.
    pub fn parse(text: &str, name: &str) -> Result<Self, LoadError> {
        let list = load::parse(text, name)?;
        let places = list.iter().zip(load::route_places(text)).flat_map(|(channel, places)| {
            let of = |(route, (line, column)): (&Route, (usize, usize))| {
                ((channel.name.clone(), route.name.clone()), format!("{name}:{line}:{column}"))
            };
            channel.routes.iter().zip(places).map(of).collect::<Vec<_>>()
        });
        Ok(Self { places: places.collect(), list })
    }

    /// A mistake of a route as it is told: its place, channel and route, what is wrong.
    pub fn wrong(&self, channel: &str, route: &str, what: &str) -> String {
        let place = self.places.get(&(channel.to_owned(), route.to_owned()));
        let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
        format!("{place}channel {channel}, route {route}: {what}")
    }
}

/// One channel as the domain's nodes share it: the text of a channel file with exactly one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedChannel {
    /// Where it stands, for messages: `Consul KV hie/default/channels/lab/adt`.
    pub place: String,
    /// The name that it must have: `lab.adt`. The error is what is wrong with the place itself.
    pub name: Result<String, String>,
    /// The text, or why there is none.
    pub text: Result<String, String>,
}

impl SharedChannel {
    fn parse(&self) -> Result<Channels, String> {
        let wrong = |what: &str| format!("{}: {what}", self.place);
        let name = self.name.as_ref().map_err(|e| wrong(e))?;
        let text = self.text.as_ref().map_err(|e| wrong(e))?;
        let found = Channels::parse(text, &self.place).map_err(|e| e.to_string())?;
        match found.list.as_slice() {
            [one] if one.name == *name => Ok(found),
            [one] => Err(wrong(&format!("holds the channel \"{}\", where \"{name}\" belongs: the key is its name", one.name))),
            all => Err(wrong(&format!("holds {} channels; one [[channel]] belongs under each key", all.len()))),
        }
    }
}

/// All channels of a folder, and those that are shared. A folder that is not there holds none.
/// Tells every mistake, and what is wrong only between them, at once; each line begins with its place.
pub fn load(folder: &Path, shared: &[SharedChannel]) -> Result<Channels, Vec<String>> {
    let mut channels = Channels::default();
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| format!("{}: cannot be read: {error}", path.display());
    let mut take = |found: Channels, name: &str, wrong: &mut Vec<String>, kept_apart: &str| {
        for channel in &found.list {
            if let Some(first) = seen.insert(channel.name.clone(), name.to_owned()) {
                wrong.push(format!("{name}: the channel \"{}\" is in {first} already{kept_apart}", channel.name));
            }
        }
        channels.list.extend(found.list);
        channels.places.extend(found.places);
    };
    let files = toml_files(folder).map_err(|e| vec![unreadable(folder, &e)])?;
    for path in files {
        let name = path.display().to_string();
        let text = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > LARGEST => {
                wrong.push(format!("{name}: larger than {LARGEST} bytes: not a channel file"));
                continue;
            }
            _ => std::fs::read_to_string(&path),
        };
        match text.map(|text| Channels::parse(&text, &name)) {
            Err(error) => wrong.push(unreadable(&path, &error)),
            Ok(Err(error)) => wrong.push(error.to_string()),
            Ok(Ok(found)) => take(found, &name, &mut wrong, ""),
        }
    }
    for one in shared {
        match one.parse() {
            Ok(found) => take(found, &one.place, &mut wrong, "; keep it in one of the two"),
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() {
        // What a set finds that single files do not show; as the node itself does.
        if let Err(errors) = Set::compile(channels.list.clone()) {
            wrong.extend(errors.iter().map(|e| format!("{}: {e}", folder.display())));
        }
    }
    if wrong.is_empty() { Ok(channels) } else { Err(wrong) }
}
