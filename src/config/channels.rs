//! The folder of channel files: `channels.d/*.toml`, read in the order of their names.

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

/// All channels of a folder. A folder that is not there holds none.
/// Tells every file's mistake, and what is wrong only between files, at once; each line begins with its place.
pub fn load(folder: &Path) -> Result<Channels, Vec<String>> {
    let mut channels = Channels::default();
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| format!("{}: cannot be read: {error}", path.display());
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
            Ok(Ok(found)) => {
                for channel in &found.list {
                    if let Some(first) = seen.insert(channel.name.clone(), name.clone()) {
                        wrong.push(format!("{name}: the channel \"{}\" is in {first} already", channel.name));
                    }
                }
                channels.list.extend(found.list);
                channels.places.extend(found.places);
            }
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
