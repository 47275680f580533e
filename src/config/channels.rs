//! The folder of channel files: `channels.d/*.toml`, read in the order of their names.

use super::clients::toml_files;
use crate::channel::{Channel, Set, load};
use std::{collections::BTreeMap, path::Path};

/// Larger than any sensible channel file.
const LARGEST: u64 = 16 * 1024 * 1024;

/// All channels of a folder, and how many files they came from. A folder that is not there holds none.
/// Tells every file's mistake, and what is wrong only between files, at once; each line begins with its place.
pub fn load(folder: &Path) -> Result<Vec<Channel>, Vec<String>> {
    let mut channels = Vec::new();
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
        match text.map(|text| load::parse(&text, &name)) {
            Err(error) => wrong.push(unreadable(&path, &error)),
            Ok(Err(error)) => wrong.push(error.to_string()),
            Ok(Ok(found)) => {
                for channel in &found {
                    if let Some(first) = seen.insert(channel.name.clone(), name.clone()) {
                        wrong.push(format!("{name}: the channel \"{}\" is in {first} already", channel.name));
                    }
                }
                channels.extend(found);
            }
        }
    }
    if wrong.is_empty() {
        // What a set finds that single files do not show; as the node itself does.
        if let Err(errors) = Set::compile(channels.clone()) {
            wrong.extend(errors.iter().map(|e| format!("{}: {e}", folder.display())));
        }
    }
    if wrong.is_empty() { Ok(channels) } else { Err(wrong) }
}
