//! The sample channels of a node that was given no configuration, and what it says about itself then.

use super::exit::Failure;
use crate::{config::Config, host::listeners::Listeners};
use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// The sample channels; `@STORE@` stands for the store's folder.
const CHANNELS: &str = include_str!("sample/channels.toml");

/// Name of the file that holds them.
const FILE: &str = "sample.toml";

/// The sample channels of a node with this store.
pub(super) fn channels(store: &Path) -> String {
    // A TOML basic string: backslash and quote are the only characters of a path that need care.
    // Absolute: a relative path would start from the channels' folder.
    let store = std::path::absolute(store).unwrap_or_else(|_| store.into());
    let store = store.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    CHANNELS.replace("@STORE@", &store)
}

/// Writes the sample channels where there is no folder of channels yet, and the folders that they write into.
pub(super) fn write(config: &Config) -> Result<(), Failure> {
    let folder = &config.node.channels;
    if folder.exists() {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let store = std::path::absolute(&config.node.store)?;
        for output in ["inbox", "archive"] {
            fs::create_dir_all(store.join(output))?;
        }
        fs::create_dir_all(folder)?;
        // Under another name first: a node that ends in between must not leave half a file.
        let temporary = folder.join(format!(".{FILE}"));
        fs::write(&temporary, channels(&store))?;
        fs::rename(temporary, folder.join(FILE))
    };
    write().map_err(|e| Failure::unavailable(format!("cannot write the sample channels to {}: {e}", folder.display())))
}

/// Where everything is.
pub(super) fn welcome(config: &Config, listeners: &Listeners) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path)).display().to_string();
    let address = |name: &str| listeners.address(name).map(|a| a.to_string());
    let mut lines: Vec<(&str, String)> = Vec::new();
    for mllp in &config.mllp {
        lines.extend(address(&format!("mllp:{}", mllp.name)).map(|a| ("HL7 v2 over MLLP", a)));
    }
    lines.extend(address("http").map(|a| ("HTTP and FHIR", format!("http://{a}"))));
    lines.extend(address("admin").map(|a| ("management API", format!("http://{a}"))));
    lines.push(("  its token", absolute(&config.admin_token_file())));
    lines.extend(address("health").map(|a| ("health", format!("http://{a}/health/ready"))));
    lines.push(("store", absolute(&config.node.store)));
    lines.push(("channels", absolute(&config.node.channels)));

    let mut text = "No configuration given: an embedded node with sample channels.\n\n".to_owned();
    for (what, place) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {what:<18}{place}");
    }
    text + "\nThe sample channels deliver to a receiver that you start in another terminal:\n\n  \
            hie sink --mllp 127.0.0.1:6661 --http 127.0.0.1:6662\n\nEnd the node with Ctrl-C.\n"
}
