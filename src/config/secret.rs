//! Secrets that the configuration refers to: a file, or a credential that systemd passes on.

use std::{env, fs, path::Path};

/// What marks a systemd credential: `credential:NAME` is `$CREDENTIALS_DIRECTORY/NAME` (systemd.exec(5)).
pub const CREDENTIAL: &str = "credential:";
/// Larger than any secret.
const LARGEST: u64 = 64 * 1024;

/// Is this the name of a systemd credential, and no path?
pub fn is_credential(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(CREDENTIAL))
}

/// Reads a secret, without the line end that editors leave. The error names the file and what to do, never what is in it.
pub fn read(path: &Path) -> Result<String, String> {
    let path = match path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL)) {
        None => path.to_owned(),
        Some(name) => {
            let folder = env::var_os("CREDENTIALS_DIRECTORY");
            let folder = folder.ok_or_else(|| {
                format!("systemd passes no credentials on; add LoadCredential={name}:PATH to the unit, or name a file instead of {CREDENTIAL}{name}")
            })?;
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(format!("{CREDENTIAL}{name} is no credential's name"));
            }
            Path::new(&folder).join(name)
        }
    };
    let wrong = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    if fs::metadata(&path).map_err(wrong)?.len() > LARGEST {
        return Err(format!("{} is larger than {LARGEST} bytes: no secret", path.display()));
    }
    let text = fs::read_to_string(&path).map_err(wrong)?;
    let text = text.trim_end_matches(['\r', '\n']);
    match text.is_empty() {
        true => Err(format!("{} is empty", path.display())),
        false => Ok(text.to_owned()),
    }
}
